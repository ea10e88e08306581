//! Partition table and process tables (ISA 3.1 Book III 6.7.6).

use std::fmt;

use mmu_core::{Gpa, Hpa};

use crate::radix::{RadixError, RootWord};

/// A PTCR value that names no table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PtcrError {
    /// The size field.
    pub pats: u32,
}

impl fmt::Display for PtcrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PTCR: a partition table of 2^{} bytes; PATS is at most 24", self.pats + 12)
    }
}
impl std::error::Error for PtcrError {}

/// Where the partition table is: PTCR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PartitionTable {
    base: u64,
    pats: u32,
}

impl PartitionTable {
    pub(super) const fn new(ptcr: u64) -> Result<Self, PtcrError> {
        let pats = (ptcr & 0x1f) as u32;
        if pats > 24 {
            return Err(PtcrError { pats });
        }
        Ok(Self { base: ptcr & 0x0fff_ffff_ffff_f000, pats })
    }
    /// Address of an entry, or `None` when the table is misaligned to its size or has no such entry.
    pub(super) fn entry(self, lpid: u32) -> Option<Hpa> {
        let bytes = 1u64 << (self.pats + 12);
        let offset = u64::from(lpid) * 16;
        (self.base & (bytes - 1) == 0 && offset < bytes).then(|| Hpa::new(self.base + offset))
    }
}

/// A partition-table entry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PartitionEntry {
    /// First doubleword: HR and the partition-scoped tree.
    pub tree: RootWord,
    /// Second doubleword: PRTB (bits 4:51) and PRTS (59:63).
    pub process_table: u64,
}

impl PartitionEntry {
    /// The entry of a radix partition with its tree at `root` and a process table of `2^(prts + 12)` bytes at `table`.
    ///
    /// # Errors
    /// A misaligned root.
    pub fn radix(root: Hpa, table: Gpa, prts: u32) -> Result<Self, RadixError> {
        let tree = RootWord::new(RootWord::of(root)?.raw() | RootWord::HOST_RADIX);
        let process_table = table.raw() & 0x0fff_ffff_ffff_f000 | u64::from(prts & 0x1f);
        Ok(Self { tree, process_table })
    }
    /// Whether the processor uses it at all: radix, and a root of at least five bits. LPID 0 is the hypervisor's own.
    pub(super) const fn is_usable(self) -> bool {
        self.tree.host_radix() && self.tree.root_bits() >= 5
    }
    /// Guest real address of the process-table entry of `pid`, or `None` beyond the table's end.
    pub fn process_entry(self, pid: u32) -> Option<Gpa> {
        let bytes = 1u64 << ((self.process_table & 0x1f) + 12);
        let offset = u64::from(pid) * 16;
        (offset < bytes).then(|| Gpa::new((self.process_table & 0x0fff_ffff_ffff_f000) + offset))
    }
}

/// A process-table entry (its second doubleword is reserved).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ProcessEntry {
    /// The process-scoped tree, at a guest real address (LPID 0: a real one).
    pub tree: RootWord,
}
