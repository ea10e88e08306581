//! `mmut`: our own format, compact, fast to decode, and proof against damage. All numbers are little-endian.
//!
//! **Header**
//!
//! | bytes | field |
//! | --- | --- |
//! | 0..8 | magic `89 4d 4d 55 54 0d 0a 1a` (`MMUT` and the bytes that a text-mode transfer spoils, as in PNG) |
//! | 8..10 | version, u16: 1 |
//! | 10 | log2 of the page size of the traced system, 0 if unknown: a hint |
//! | 11 | flags, u8: 0 |
//! | 12..20 | references (a modify counts twice), u64; all ones if not known when the header was written |
//! | 20..22 | length of the next field, u16, at most 4096 |
//! | 22.. | source: UTF-8 text that says where the trace is from |
//! | then 4 | CRC-32 (the one of gzip) of all bytes before, u32 |
//!
//! **Block**, any number of them. Each decodes by itself, so that a file can be entered in the middle.
//!
//! | bytes | field |
//! | --- | --- |
//! | 0..4 | `BLCK` |
//! | 4..8 | records, u32: 1 to 65536 |
//! | 8..16 | index of the first record in the file, u64: tells lost, doubled and swapped blocks |
//! | 16..20 | length of the payload, u32 |
//! | 20..24 | CRC-32 of bytes 0..20 and the payload, u32 |
//! | 24.. | payload |
//!
//! **Record** in the payload: a tag, then 0 to 8 bytes of address delta, then 0 or 2 bytes of size.
//!
//! | bits of the tag | field |
//! | --- | --- |
//! | 1:0 | kind: 0 fetch, 1 load, 2 store, 3 modify |
//! | 4:2 | size code: for fetches 0..=6 mean 1..=7 bytes, for data 1, 2, 4, 8, 16, 32, 64 bytes; 7: a u16 follows the delta |
//! | 7:5 | bytes of delta: 0..=6 as they are, 7 means 8 |
//!
//! The delta is the address minus the predicted one, modulo 2^64, as a zigzag number (0, -1, 1, -2, ... become 0, 1, 2,
//! 3, ...). Predicted is, for data, the address of the last record of the same kind and, for fetches, the end of the last
//! fetch, so that straight-line code costs one byte an instruction; at the start of a block, zero. (The length stands in
//! the tag instead of in continuation bits, because a load and a mask decode faster than a loop; the writer uses
//! the shortest one that holds the delta.)
//!
//! **End marker**, after which the file must end.
//!
//! | bytes | field |
//! | --- | --- |
//! | 0..4 | `ENDT` |
//! | 4..8 | blocks in the file, modulo 2^32, u32 |
//! | 8..16 | records, u64 |
//! | 16..24 | references, u64 |
//! | 24..28 | CRC-32 of bytes 0..24, u32 |

mod decode;
mod encode;

use mmu_core::PageSize;

pub(crate) use decode::Decoder;
pub(crate) use encode::Encoder;

use crate::AccessKind;

const MAGIC: [u8; 8] = [0x89, b'M', b'M', b'U', b'T', b'\r', b'\n', 0x1a];
const VERSION: u16 = 1;
const UNKNOWN: u64 = u64::MAX;
/// Header bytes before the source text.
const HEADER: usize = 22;
const MAX_SOURCE: usize = 4096;
const CRC: usize = 4;
const BLOCK: [u8; 4] = *b"BLCK";
const BLOCK_HEADER: usize = 24;
const BLOCK_RECORDS: u32 = 1 << 16;
/// Tag, delta, size.
const MAX_RECORD: usize = 1 + 8 + 2;
const END: [u8; 4] = *b"ENDT";
const END_BYTES: usize = 28;

const SIZE_FOLLOWS: u8 = 7;
/// Size of each code; the last column is never used as a size.
const SIZES: [[u16; 8]; 4] = [FETCH_SIZES, DATA_SIZES, DATA_SIZES, DATA_SIZES];
const FETCH_SIZES: [u16; 8] = [1, 2, 3, 4, 5, 6, 7, 0];
const DATA_SIZES: [u16; 8] = [1, 2, 4, 8, 16, 32, 64, 0];
/// Bytes of delta for each length code.
const DELTA_BYTES: [u8; 8] = [0, 1, 2, 3, 4, 5, 6, 8];

/// What the header of an `.mmut` file says about the trace; nothing in it changes how records decode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MmutHeader {
    /// Where the trace is from, for people: program, command, date. At most 4096 bytes are written.
    pub source: String,
    /// Memory references in the file, if they were known when the header was written; checked against the end marker.
    pub references: Option<u64>,
    /// Page size of the system that was traced, if known.
    pub page_size: Option<PageSize>,
}

/// At least six of the eight magic bytes: a damaged header is a damaged `.mmut`, never some other format.
pub(crate) fn looks_like(sample: &[u8]) -> bool {
    sample.len() >= MAGIC.len() && MAGIC.iter().zip(sample).filter(|(magic, byte)| magic == byte).count() >= 6
}

/// The address expected for the next record of each kind.
#[derive(Clone, Copy, Debug, Default)]
struct Predictor([u64; 4]);

impl Predictor {
    #[inline]
    fn get(&self, kind: AccessKind) -> u64 {
        self.0[usize::from(kind.code())]
    }

    #[inline]
    fn set(&mut self, kind: AccessKind, va: u64, size: u16) {
        // PERF: a mask instead of a branch on the kind; fetches and data alternate without pattern.
        let ahead = u64::from(size) & u64::from(kind.is_data()).wrapping_sub(1);
        self.0[usize::from(kind.code())] = va.wrapping_add(ahead);
    }
}

/// CRC-32 of the concatenation.
fn crc(parts: [&[u8]; 2]) -> u32 {
    let mut crc = flate2::Crc::new();
    for part in parts {
        crc.update(part);
    }
    crc.sum()
}
