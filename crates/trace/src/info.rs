//! What is in a trace.

use std::fmt;
use std::path::Path;

use mmu_core::{Gva, PageSize};

use crate::pages::PageSet;
use crate::{
    Access, Compression, MmutHeader, Place, Problem, ReadOptions, TraceCounts, TraceError, TraceFormat, TraceReader,
};

/// A trace summed up, see [`info`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceInfo {
    /// Its format.
    pub format: TraceFormat,
    /// Its compression.
    pub compression: Compression,
    /// Bytes after decompression.
    pub decompressed_bytes: u64,
    /// Header, of an `.mmut` trace.
    pub header: Option<MmutHeader>,
    /// Records by kind.
    pub counts: TraceCounts,
    /// Distinct 4 KiB pages touched by any byte of any record.
    pub pages_4k: u64,
    /// Lowest address, `None` for an empty trace.
    pub lowest: Option<Gva>,
    /// Highest byte touched, `None` for an empty trace.
    pub highest: Option<Gva>,
    /// Records whose first and last byte are in different 4 KiB pages.
    pub page_splits: u64,
}

impl fmt::Display for TraceInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = |va: Option<Gva>| va.map_or_else(|| "-".to_owned(), |va| va.to_string());
        writeln!(f, "format       {} ({})", self.format, self.compression)?;
        if let Some(header) = &self.header {
            writeln!(f, "source       {}", header.source)?;
        }
        writeln!(f, "bytes        {}", self.decompressed_bytes)?;
        writeln!(f, "records      {}", self.counts.records())?;
        writeln!(f, "  fetches    {}", self.counts.fetches)?;
        writeln!(f, "  loads      {}", self.counts.loads)?;
        writeln!(f, "  stores     {}", self.counts.stores)?;
        writeln!(f, "  modifies   {}", self.counts.modifies)?;
        writeln!(f, "references   {}", self.counts.references())?;
        writeln!(f, "4K pages     {}", self.pages_4k)?;
        writeln!(f, "page splits  {}", self.page_splits)?;
        write!(f, "addresses    {} to {}", address(self.lowest), address(self.highest))
    }
}

/// Reads a whole trace and sums it up; memory is 8 bytes per distinct page, bounded by `limits.pages`.
///
/// # Errors
/// The trace cannot be read to its end, or has more distinct pages than the limit.
pub fn info(path: impl AsRef<Path>, options: &ReadOptions) -> Result<TraceInfo, TraceError> {
    let path = path.as_ref();
    let mut reader = TraceReader::open_with(path, options)?;
    let mut sum = Summary::new(options.limits.pages);
    let mut batch = Vec::new();
    while reader.fill(&mut batch, 1 << 14)? > 0 {
        sum.add(&batch);
        batch.clear();
        if !sum.pages.settle() {
            break;
        }
    }
    let pages_4k = sum.pages.len().ok_or_else(|| {
        let limit = Problem::Limit { limit: "pages", max: options.limits.pages as u64 };
        TraceError::new(Place::Byte(reader.bytes_read()), limit).named(&path.display().to_string())
    })?;
    Ok(TraceInfo {
        format: reader.format(),
        compression: reader.compression(),
        decompressed_bytes: reader.bytes_read(),
        header: reader.header().cloned(),
        counts: sum.counts,
        pages_4k,
        lowest: sum.range.map(|(lowest, _)| lowest),
        highest: sum.range.map(|(_, highest)| highest),
        page_splits: sum.splits,
    })
}

struct Summary {
    counts: TraceCounts,
    pages: PageSet,
    range: Option<(Gva, Gva)>,
    splits: u64,
}

impl Summary {
    fn new(max_pages: usize) -> Self {
        Self { counts: TraceCounts::default(), pages: PageSet::new(max_pages), range: None, splits: 0 }
    }

    fn add(&mut self, batch: &[Access]) {
        const SHIFT: u32 = PageSize::SIZE_4K.shift();
        self.counts += TraceCounts::of(batch);
        for access in batch {
            let last_byte = access.last_byte();
            let (first, last) = (access.va.raw() >> SHIFT, last_byte.raw() >> SHIFT);
            // At most 17 pages: a size has 16 bits.
            for page in first..=last {
                self.pages.insert(page);
            }
            self.splits += u64::from(first != last);
            let (lowest, highest) = self.range.unwrap_or((access.va, last_byte));
            self.range = Some((lowest.min(access.va), highest.max(last_byte)));
        }
    }
}
