//! Stretches of an address space as one value: where it starts and how long it is, each with its unit.
//!
//! ```
//! use mmu_core::{ByteUnits, Bytes, Gpa, GpaRange};
//! let slot = GpaRange::new(Gpa::new(1.GiB()), Bytes(2.MiB()));
//! assert!(slot.contains(Gpa::new(1.GiB() + 4095)) && !slot.contains(slot.end()));
//! let cut = slot.intersection(GpaRange::between(Gpa::new(0), Gpa::new(1.GiB() + 0x1000)));
//! assert_eq!(cut, Some(GpaRange::new(slot.start, Bytes(4096))));
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::addr::{Bytes, Gpa, Gva, Hpa, Hva};

/// An address of some address space.
pub trait Address: Copy + Ord + fmt::Display {
    /// Wraps a byte address.
    fn from_raw(raw: u64) -> Self;
    /// The byte address as a number.
    fn to_raw(self) -> u64;
}

macro_rules! addresses {
    ($($name:ident),*) => {$(
        impl Address for $name {
            fn from_raw(raw: u64) -> Self {
                $name::new(raw)
            }
            fn to_raw(self) -> u64 {
                self.raw()
            }
        }
    )*};
}
addresses!(Gva, Gpa, Hva, Hpa);

/// `bytes` bytes from `start` on. A range never wraps: its end stops at 2^64 - 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct AddrRange<A> {
    /// First byte.
    pub start: A,
    /// Length.
    pub bytes: Bytes,
}

/// A stretch of guest-physical addresses.
pub type GpaRange = AddrRange<Gpa>;
/// A stretch of a host process's addresses.
pub type HvaRange = AddrRange<Hva>;
/// A stretch of host-physical addresses.
pub type HpaRange = AddrRange<Hpa>;

impl<A: Address> AddrRange<A> {
    /// `bytes` from `start` on.
    pub const fn new(start: A, bytes: Bytes) -> Self {
        Self { start, bytes }
    }
    /// From `start` up to, not including, `end`; empty when `end` is not above `start`.
    pub fn between(start: A, end: A) -> Self {
        Self { start, bytes: Bytes(end.to_raw().saturating_sub(start.to_raw())) }
    }
    /// First byte after it.
    pub fn end(self) -> A {
        A::from_raw(self.start.to_raw().saturating_add(self.bytes.0))
    }
    /// Whether nothing is in it.
    pub const fn is_empty(self) -> bool {
        self.bytes.0 == 0
    }
    /// Whether this address is in it.
    pub fn contains(self, at: A) -> bool {
        self.start <= at && at < self.end()
    }
    /// Whether both share a byte.
    pub fn overlaps(self, other: Self) -> bool {
        self.intersection(other).is_some()
    }
    /// What both share, if anything.
    pub fn intersection(self, other: Self) -> Option<Self> {
        let both = Self::between(self.start.max(other.start), self.end().min(other.end()));
        (!both.is_empty()).then_some(both)
    }
    /// The smallest range that covers both: how KVM merges invalidations (minimum and maximum).
    pub fn hull(self, other: Self) -> Self {
        Self::between(self.start.min(other.start), self.end().max(other.end()))
    }
}

impl<A: Address> fmt::Display for AddrRange<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {})", self.start, self.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_range_stops_at_the_end_of_addresses() {
        let range = GpaRange::new(Gpa::new(u64::MAX - 10), Bytes(100));
        assert_eq!(range.end(), Gpa::new(u64::MAX));
        assert!(!GpaRange::new(Gpa::new(8), Bytes(0)).contains(Gpa::new(8)));
        assert_eq!(GpaRange::new(Gpa::new(0x1000), Bytes(0x1000)).to_string(), "[0x1000, 0x2000)");
    }

    proptest! {
        #[test]
        fn intersection_and_hull_are_what_membership_says(a in 0u64..40, la in 0u64..20, b in 0u64..40, lb in 0u64..20) {
            let (one, two) = (HvaRange::new(Hva::new(a), Bytes(la)), HvaRange::new(Hva::new(b), Bytes(lb)));
            for at in (0..80).map(Hva::new) {
                let both = one.contains(at) && two.contains(at);
                prop_assert_eq!(one.intersection(two).is_some_and(|range| range.contains(at)), both);
                if one.contains(at) || two.contains(at) {
                    prop_assert!(one.hull(two).contains(at));
                }
            }
        }
    }
}
