//! The checker's own account of written pages: slow, simple, and independent of any dirty log.
//!
//! A page is owed to user space from the first store after it was last reported. At the end of logging nothing may be owed. Stores
//! of guest code count, also those that hit the TLB; flags that walks set in the guest's own tables do not.

use std::collections::BTreeSet;

use mmu_core::{Gpa, GpaRange};

/// Pages of 4 KiB that were written and not reported since, and what was reported.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Written {
    /// Between the beginning of logging and its end; what is written at other times is owed to nobody.
    on: bool,
    owed: BTreeSet<u64>,
    reported: u64,
    needless: u64,
}

const SHIFT: u32 = 12;

impl Written {
    /// A store to this page, or to a page near it.
    pub(crate) fn wrote(&mut self, gpa: Gpa) {
        self.owed.insert(gpa.raw() >> SHIFT);
    }

    /// Logging begins: what was written before has been copied.
    pub(crate) fn begins(&mut self) {
        self.on = true;
        self.owed.clear();
    }

    /// Whether anybody wants to know of stores.
    pub(crate) fn is_on(&self) -> bool {
        self.on
    }

    pub(crate) fn reported(&mut self, range: GpaRange) {
        let (first, end) = (range.start.raw() >> SHIFT, range.end().raw().div_ceil(1 << SHIFT));
        let known: Vec<u64> = self.owed.range(first..end).copied().collect();
        for page in &known {
            self.owed.remove(page);
        }
        self.reported += end - first;
        self.needless += end - first - known.len() as u64;
    }

    /// Pages that were written and never reported, in order; they are forgotten.
    pub(crate) fn lost(&mut self) -> impl Iterator<Item = Gpa> + use<> {
        self.on = false;
        std::mem::take(&mut self.owed).into_iter().map(|page| Gpa::new(page << SHIFT))
    }

    /// How many pages were written and not reported since.
    pub fn owed(&self) -> u64 {
        self.owed.len() as u64
    }
    /// Pages of 4 KiB reported so far.
    pub fn reported_pages(&self) -> u64 {
        self.reported
    }
    /// Pages among them that nobody had written since they were last reported.
    pub fn needless_pages(&self) -> u64 {
        self.needless
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mmu_core::Bytes;

    #[test]
    fn what_is_reported_is_owed_no_more_until_it_is_written_again() {
        let mut written = Written::default();
        for gpa in [0x1234, 0x5000, 0x5fff, 0x9000] {
            written.wrote(Gpa::new(gpa));
        }
        assert_eq!(written.owed(), 3);
        written.reported(GpaRange::new(Gpa::new(0x5000), Bytes(0x4000)));
        assert_eq!((written.owed(), written.reported_pages(), written.needless_pages()), (2, 4, 3));
        written.wrote(Gpa::new(0x5008));
        assert_eq!(written.lost().map(Gpa::raw).collect::<Vec<_>>(), [0x1000, 0x5000, 0x9000]);
        assert_eq!(written.owed(), 0);
    }
}
