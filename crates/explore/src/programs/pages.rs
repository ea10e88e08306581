//! The few pages that programs are about.

use std::fmt;

use mmu_core::{Bytes, Gpa, GpaRange, Hva, HvaRange};
use mmu_sim::experiment::vm::GUEST_MEMORY;

/// Pages of the smallest size that programs are about, from the beginning of guest memory.
pub const PAGES: u8 = 4;
/// Bytes of one.
pub(super) const PAGE: u64 = 4096;

/// One of the [`PAGES`] pages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Page(u8);

impl Page {
    /// All of them.
    pub const ALL: [Page; PAGES as usize] = [Page(0), Page(1), Page(2), Page(3)];

    /// The page of this number, counted round: every number is one's.
    pub const fn nth(number: u8) -> Page {
        Page(number % PAGES)
    }

    /// Its guest address.
    pub const fn gpa(self) -> Gpa {
        Gpa::new(self.0 as u64 * PAGE)
    }
}

impl fmt::Display for Page {
    /// Its number, from 0.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Pages in a row, one at least.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Pages {
    first: Page,
    last: Page,
}

impl Pages {
    /// All of them.
    pub const ALL: Pages = Pages { first: Page(0), last: Page(PAGES - 1) };

    /// So many from `first` on, one at least; those behind the last one are left out.
    pub const fn from(first: Page, many: u8) -> Pages {
        let more = if many == 0 { 0 } else { many - 1 };
        let left = PAGES - 1 - first.0;
        Pages { first, last: Page(first.0 + if more < left { more } else { left }) }
    }

    /// The first.
    pub const fn first(self) -> Page {
        self.first
    }

    /// How many.
    pub const fn count(self) -> u8 {
        self.last.0 - self.first.0 + 1
    }

    fn bytes(self) -> Bytes {
        Bytes(u64::from(self.count()) * PAGE)
    }

    /// By the host's addresses.
    pub fn hvas(self) -> HvaRange {
        HvaRange::new(Hva::new(GUEST_MEMORY.raw() + self.first.gpa().raw()), self.bytes())
    }

    /// By the guest's addresses.
    pub fn gpas(self) -> GpaRange {
        GpaRange::new(self.first.gpa(), self.bytes())
    }
}

impl fmt::Display for Pages {
    /// The first and how many, as in `1+2`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.first, self.count())
    }
}
