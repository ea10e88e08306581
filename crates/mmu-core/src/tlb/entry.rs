//! What a TLB remembers of one page.

use serde::{Deserialize, Serialize};

use super::{Input, Perms};
use crate::addr::{Gpa, Hpa, PageSize};

/// Which address spaces find an entry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reach {
    /// The one that made it.
    #[default]
    AddressSpace,
    /// Every one of the virtual machine (x86 G, Arm nG = 0).
    Global,
}

/// One translation: what a walk found, and what a look-up returns.
///
/// The filler chooses the size: the smaller of both stages' leaves, or more than one leaf when a contiguous hint says
/// so (Arm: 16 entries of 4K make one of 64K). Whether a store may go without a walk is [`Perms::DIRTY`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TlbEntry {
    /// First byte of the page.
    pub output: Hpa,
    /// Guest-physical page it came through; only meaningful where entries store it.
    pub gpa: Gpa,
    /// Size of the page.
    pub size: PageSize,
    /// What the translation allows.
    pub perms: Perms,
    /// Which address spaces find it.
    pub reach: Reach,
    /// Of a coalesced entry: which pages of the group are present. 1 in all others.
    pub(super) valid: u8,
}

impl TlbEntry {
    /// A translation to the page at `output`, which is cut to the page size, for one address space.
    pub const fn new(output: Hpa, size: PageSize, perms: Perms) -> Self {
        Self { output: output.align_down(size), gpa: Gpa::new(0), size, perms, reach: Reach::AddressSpace, valid: 1 }
    }
    /// The same translation with the guest-physical page it came through.
    pub const fn through(self, gpa: Gpa) -> Self {
        Self { gpa: gpa.align_down(self.size), ..self }
    }
    /// The same translation with other permissions.
    pub const fn with_perms(self, perms: Perms) -> Self {
        Self { perms, ..self }
    }
    /// The same translation found by every address space.
    pub const fn global(self) -> Self {
        Self { reach: Reach::Global, ..self }
    }
    /// Where an address of this page goes.
    #[inline]
    pub const fn translate(&self, input: Input) -> Hpa {
        Hpa::new(self.output.raw() | input.raw() & (self.size.bytes() - 1))
    }

    /// The part of this translation that a page of a smaller size around the address needs.
    pub(super) const fn fragment(self, address: u64, size: PageSize) -> Self {
        let offset = address & (self.size.bytes() - 1) & !(size.bytes() - 1);
        Self { output: Hpa::new(self.output.raw() | offset), gpa: Gpa::new(self.gpa.raw() | offset), size, ..self }
    }

    /// The translation that page 0 of a group has if page `index` has this one.
    pub(super) const fn group_base(self, index: u32, valid: u8) -> Self {
        let offset = (index as u64) << self.size.shift();
        Self {
            output: Hpa::new(self.output.raw().wrapping_sub(offset)),
            gpa: Gpa::new(self.gpa.raw().wrapping_sub(offset)),
            valid,
            ..self
        }
    }

    /// The translation of page `index` of the group that starts here.
    pub(super) const fn group_page(self, index: u32) -> Self {
        let offset = (index as u64) << self.size.shift();
        Self {
            output: Hpa::new(self.output.raw().wrapping_add(offset)),
            gpa: Gpa::new(self.gpa.raw().wrapping_add(offset)),
            valid: 1,
            ..self
        }
    }
}

impl Default for TlbEntry {
    /// Nothing allowed, at address 0.
    fn default() -> Self {
        Self::new(Hpa::new(0), PageSize::SIZE_4K, Perms::NONE)
    }
}

/// A [`TlbEntry`] as arrays hold it: its two addresses, with the rest in their low twelve bits, which are free because
/// no array holds pages below 4 KiB.
///
/// ```text
/// output  63..12 address | 11..8 valid pages 3..0 | 7 global     | 6..0 permissions
/// gpa     63..12 address |                          9..6 valid pages 7..4 | 5..0 shift of the size
/// ```
// PERF: two words travel in registers of the host. Copied by its fields, an entry cost a store-forwarding stall at
// every copy between levels.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Stored {
    output: u64,
    gpa: u64,
}

/// Bits of an address that are free.
const FREE: u64 = 0xfff;

impl Stored {
    #[inline(always)]
    pub(super) const fn pack(entry: &TlbEntry) -> Self {
        let (valid, perms) = (entry.valid as u64, entry.perms.bits() as u64);
        Self {
            output: entry.output.raw() & !FREE | (valid & 0xf) << 8 | (entry.reach as u64) << 7 | perms,
            gpa: entry.gpa.raw() & !FREE | valid >> 4 << 6 | entry.size.shift() as u64,
        }
    }
    #[inline(always)]
    pub(super) const fn unpack(self) -> TlbEntry {
        let size = match PageSize::from_shift(self.shift()) {
            Some(size) => size,
            None => PageSize::SIZE_4K,
        };
        TlbEntry {
            output: Hpa::new(self.output & !FREE),
            gpa: Gpa::new(self.gpa & !FREE),
            size,
            perms: Perms::from_bits(self.output as u8),
            reach: self.reach(),
            valid: self.valid(),
        }
    }
    /// Shift of the page size.
    #[inline(always)]
    pub(super) const fn shift(self) -> u32 {
        self.gpa as u32 & 0x3f
    }
    #[inline(always)]
    pub(super) const fn reach(self) -> Reach {
        if self.output >> 7 & 1 == 0 { Reach::AddressSpace } else { Reach::Global }
    }
    #[inline(always)]
    pub(super) const fn valid(self) -> u8 {
        (self.output >> 8 & 0xf | (self.gpa >> 6 & 0xf) << 4) as u8
    }
    /// The same entry without guest-physical address.
    #[inline(always)]
    pub(super) const fn without_gpa(self) -> Self {
        Self { gpa: self.gpa & FREE, ..self }
    }
}

impl Default for Stored {
    fn default() -> Self {
        Self::pack(&TlbEntry::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_keeps_everything() {
        let pages = [PageSize::SIZE_4K, PageSize::SIZE_1G];
        for size in pages {
            for valid in [1, 0x80, 0xff] {
                let entry =
                    TlbEntry::new(Hpa::new(u64::MAX), size, Perms::RWX | Perms::DIRTY).through(Gpa::new(1 << 40));
                for entry in [TlbEntry { valid, ..entry }, entry.global()] {
                    assert_eq!(Stored::pack(&entry).unpack(), entry);
                }
            }
        }
        assert_eq!(Stored::pack(&TlbEntry::default()), Stored::default());
    }
}
