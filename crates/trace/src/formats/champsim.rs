//! `champsim` and `champsim-cloudsuite`: one fixed-size little-endian record per instruction, no header
//! (ChampSim `inc/trace_instruction.h`, 2025-05-09). Published files are `.xz` or `.gz`.
//!
//! | field | `champsim`, 64 bytes | `champsim-cloudsuite`, 96 bytes |
//! | --- | --- | --- |
//! | `ip`, u64 | 0 | 0 |
//! | `is_branch`, `branch_taken`, u8 each | 8, 9 | 8, 9 |
//! | `destination_registers`, u8 each | 10, two | 10, four |
//! | `source_registers`, u8 each | 12, four | 14, four |
//! | `destination_memory`, u64 each | 16, two | 24, four |
//! | `source_memory`, u64 each | 32, four | 56, four |
//! | `asid`, u8 each | none | 88, two |
//!
//! An instruction becomes a fetch at `ip`, then a load for each source address, then a store for each destination
//! address that is not zero (zero means unused); address-space numbers are not kept. The format has no access sizes: 4
//! bytes are assumed for a fetch and 8 for data, **cut at the end of the 4 KiB page**, so that no page crossing is
//! invented that the traced program did not make. `is_branch` and `branch_taken` must be 0 or 1; that is what
//! exposes a file of the other layout.

use mmu_core::{Gva, PageSize};

use crate::source::Source;
use crate::{Access, AccessKind, Place, Problem, TraceError};

/// Fetch, four loads, four stores.
pub(crate) const MAX_ACCESSES: usize = 9;
const FETCH_SIZE: u64 = 4;
const DATA_SIZE: u64 = 8;

/// The two record layouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    Standard,
    CloudSuite,
}

impl Layout {
    const fn bytes(self) -> usize {
        match self {
            Self::Standard => 64,
            Self::CloudSuite => 96,
        }
    }

    /// Where the addresses of loads and of stores are.
    const fn memory(self) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
        match self {
            Self::Standard => (32..64, 16..32),
            Self::CloudSuite => (56..88, 24..56),
        }
    }

    const fn field(self) -> &'static str {
        match self {
            Self::Standard => "64-byte instruction record",
            Self::CloudSuite => "96-byte instruction record",
        }
    }
}

/// Whether all whole records of the sample have clean flags and a canonical, non-zero instruction address.
pub(crate) fn looks_like(sample: &[u8], layout: Layout) -> bool {
    let mut records = sample.chunks_exact(layout.bytes()).peekable();
    records.peek().is_some()
        && records.all(|record| {
            let ip = words(&record[..8]).next().unwrap_or(0);
            bad_flag(record).is_none() && ip != 0 && (ip >> 47 == 0 || ip >> 47 == 0x1ffff)
        })
}

fn bad_flag(record: &[u8]) -> Option<(&'static str, u8)> {
    match (record[8], record[9]) {
        (0 | 1, 0 | 1) => None,
        (0 | 1, taken) => Some(("branch_taken", taken)),
        (branch, _) => Some(("is_branch", branch)),
    }
}

#[inline]
fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word))
}

#[inline]
fn access(kind: AccessKind, va: u64, size: u64) -> Access {
    let va = Gva::new(va);
    let left = PageSize::SIZE_4K.bytes() - va.offset_in(PageSize::SIZE_4K);
    Access::new(kind, va, size.min(left) as u16)
}

fn instruction(record: &[u8], layout: Layout, out: &mut Vec<Access>) {
    let (loads, stores) = layout.memory();
    out.extend(words(&record[..8]).map(|ip| access(AccessKind::Fetch, ip, FETCH_SIZE)));
    for (kind, place) in [(AccessKind::Load, loads), (AccessKind::Store, stores)] {
        let used = words(&record[place]).filter(|va| *va != 0);
        out.extend(used.map(|va| access(kind, va, DATA_SIZE)));
    }
}

#[derive(Debug)]
pub(crate) struct Decoder {
    layout: Layout,
}

impl Decoder {
    pub(crate) fn new(layout: Layout) -> Self {
        Self { layout }
    }

    pub(crate) fn decode(&mut self, source: &mut Source, out: &mut Vec<Access>, room: usize) -> Result<(), TraceError> {
        let unit = self.layout.bytes();
        let count = (source.want(unit) / unit).min(room / MAX_ACCESSES);
        if count == 0 {
            return source.over(self.layout.field(), unit);
        }
        let mut used = 0;
        let mut bad = None;
        for record in source.bytes()[..count * unit].chunks_exact(unit) {
            bad = bad_flag(record);
            if bad.is_some() {
                break;
            }
            instruction(record, self.layout, out);
            used += unit;
        }
        source.consume(used);
        bad.map_or(Ok(()), |(field, found)| Err(self.flag_error(source.offset(), field, found)))
    }

    fn flag_error(&self, offset: u64, field: &'static str, found: u8) -> TraceError {
        let remedy = match self.layout {
            Layout::Standard => "the file is not of 64-byte records: try champsim-cloudsuite",
            Layout::CloudSuite => "the file is not of 96-byte records: try champsim",
        };
        TraceError::new(Place::Byte(offset), Problem::field(field, "0 or 1", found, remedy))
    }
}
