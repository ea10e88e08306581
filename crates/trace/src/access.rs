//! One record of a trace, and sums of records by kind.

use std::fmt;
use std::ops::AddAssign;

use mmu_core::Gva;

/// What an access does to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum AccessKind {
    /// Instruction fetch.
    Fetch = 0,
    /// Data read.
    Load = 1,
    /// Data write.
    Store = 2,
    /// Data read, then written, by one instruction (`add [mem], reg`): two references.
    Modify = 3,
}

impl AccessKind {
    /// All kinds, in the order of their two-bit code.
    pub const ALL: [Self; 4] = [Self::Fetch, Self::Load, Self::Store, Self::Modify];

    /// The kind with this two-bit code; higher bits are ignored.
    #[inline]
    pub const fn from_code(code: u8) -> Self {
        Self::ALL[(code & 3) as usize]
    }

    /// The two-bit code used by `packed` and `mmut`.
    #[inline]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// How many memory references it makes: two for a modify, else one.
    #[inline]
    pub const fn references(self) -> u64 {
        match self {
            Self::Modify => 2,
            _ => 1,
        }
    }

    /// Whether it is a data access, so not a fetch.
    #[inline]
    pub const fn is_data(self) -> bool {
        !matches!(self, Self::Fetch)
    }

    /// Lackey's letter: `I`, `L`, `S` or `M`.
    pub const fn letter(self) -> char {
        match self {
            Self::Fetch => 'I',
            Self::Load => 'L',
            Self::Store => 'S',
            Self::Modify => 'M',
        }
    }
}

/// One access of the traced program.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Access {
    /// Address of the first byte.
    pub va: Gva,
    /// Bytes accessed. Zero is kept as found in a file and touches the page of `va` only.
    pub size: u16,
    /// What is done there.
    pub kind: AccessKind,
}

impl Access {
    /// An access of `size` bytes at `va`.
    #[inline]
    pub const fn new(kind: AccessKind, va: Gva, size: u16) -> Self {
        Self { va, size, kind }
    }

    /// Address of the last byte touched; stops at the end of the address space.
    #[inline]
    pub const fn last_byte(&self) -> Gva {
        Gva::new(self.va.raw().saturating_add((self.size as u64).saturating_sub(1)))
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:#x},{}", self.kind.letter(), self.va.raw(), self.size)
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Records of a trace by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceCounts {
    /// Instruction fetches.
    pub fetches: u64,
    /// Loads, without the load halves of modifies.
    pub loads: u64,
    /// Stores, without the store halves of modifies.
    pub stores: u64,
    /// Modifies.
    pub modifies: u64,
}

impl TraceCounts {
    /// Counts a slice of records.
    pub fn of(accesses: &[Access]) -> Self {
        let mut by_code = [0u64; 4];
        for access in accesses {
            by_code[usize::from(access.kind.code())] += 1;
        }
        let [fetches, loads, stores, modifies] = by_code;
        Self { fetches, loads, stores, modifies }
    }

    /// Records of all kinds.
    pub const fn records(&self) -> u64 {
        self.fetches + self.loads + self.stores + self.modifies
    }

    /// Memory references: records, with each modify counted twice.
    pub const fn references(&self) -> u64 {
        self.records() + self.modifies
    }
}

impl AddAssign for TraceCounts {
    fn add_assign(&mut self, more: Self) {
        self.fetches += more.fetches;
        self.loads += more.loads;
        self.stores += more.stores;
        self.modifies += more.modifies;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hot_type_stays_two_words() {
        assert_eq!(size_of::<Access>(), 16);
    }

    #[test]
    fn last_byte_stops_at_the_top() {
        let at = |va, size| Access::new(AccessKind::Load, Gva::new(va), size).last_byte().raw();
        assert_eq!([at(10, 0), at(10, 1), at(10, 8), at(u64::MAX - 1, 8)], [10, 10, 17, u64::MAX]);
    }
}
