//! What a reader is willing to spend on a file nobody vouches for.

/// Upper bounds for reading one trace; exceeding one gives [`Problem::Limit`](crate::Problem::Limit) after the records
/// up to it were delivered. Memory does not depend on the first two: a reader holds one buffer and one block.
///
/// ```
/// use mmu_trace::Limits;
/// let careful = Limits { records: 1_000_000, ..Limits::default() };
/// assert!(careful.records < Limits::default().records);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Records delivered. Default 10^12.
    pub records: u64,
    /// Bytes after decompression, the guard against decompression bombs. Default 16 TiB.
    pub decompressed_bytes: u64,
    /// Bytes in one line of a text format. Default 4096; Lackey's records need fewer than 30.
    pub line_bytes: usize,
    /// KiB of memory an `.xz` file may ask for as its dictionary. Default 256 MiB; preset 9 needs 64 MiB.
    pub xz_memory_kib: u32,
    /// Distinct 4 KiB pages that [`info`](crate::info) holds, at 8 bytes each. Default 64 Mi pages (256 GiB footprint).
    pub pages: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            records: 1_000_000_000_000,
            decompressed_bytes: 16 << 40,
            line_bytes: 4096,
            xz_memory_kib: 256 << 10,
            pages: 64 << 20,
        }
    }
}
