//! Where a descriptor keeps its address, and at which levels a block may stand.
//!
//! Before you work on this file read Arm ARM D8.3 (VMSAv8-64 descriptor formats) and the pseudo-code functions
//! `AArch64.LeafBase`, `AArch64.NextTableBase`, `AArch64.BlockDescSupported` and `AArch64.OAOutOfRange`.

use mmu_core::{Hpa, Level};

use crate::granule::Granule;

/// Valid bit.
pub(crate) const VALID: u64 = 1;
/// Table (or page at the last level) rather than block.
pub(crate) const TABLE: u64 = 1 << 1;
/// Access flag.
pub(crate) const AF: u64 = 1 << 10;
/// Block descriptor may be changed in size without break-before-make (`FEAT_BBM` level 1).
pub(crate) const NT: u64 = 1 << 16;
/// Dirty bit modifier.
pub(crate) const DBM: u64 = 1 << 51;
/// Contiguous hint.
pub(crate) const CONTIGUOUS: u64 = 1 << 52;
/// First of the four bits left to software.
pub(crate) const SOFTWARE_SHIFT: u32 = 55;

/// `high..=low` of a word.
pub(crate) const fn bits(word: u64, high: u32, low: u32) -> u64 {
    (word >> low) & (u64::MAX >> (63 - (high - low)))
}

/// Where the address bits above the plain field are.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Split {
    /// There are none: 48 bits.
    None,
    /// `FEAT_LPA`, 64K granule: bits 51:48 stand in 15:12. They do as soon as the *implementation* has 52-bit addresses,
    /// whatever size is configured.
    Lpa,
    /// `FEAT_LPA2` with DS=1: bits 49:48 in place, 51:50 in 9:8, where the shareability otherwise is.
    Lpa2,
}

/// The address part of a descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Layout {
    pub(crate) granule: Granule,
    pub(crate) split: Split,
    /// Effective output address size.
    pub(crate) output_bits: u32,
}

impl Layout {
    /// The address field, aligned to the granule.
    #[inline]
    pub(crate) const fn table(self, raw: u64) -> u64 {
        let shift = self.granule.shift();
        match self.split {
            Split::None => bits(raw, 47, shift) << shift,
            Split::Lpa => bits(raw, 47, shift) << shift | bits(raw, 15, 12) << 48,
            Split::Lpa2 => bits(raw, 49, shift) << shift | bits(raw, 9, 8) << 50,
        }
    }

    /// The address of a leaf of this level: bits inside the page are not part of it.
    #[inline]
    pub(crate) const fn leaf(self, level: Level, raw: u64) -> u64 {
        self.table(raw) >> self.granule.level_shift(level) << self.granule.level_shift(level)
    }

    /// An address, put where it belongs.
    pub(crate) const fn place(self, address: u64) -> u64 {
        match self.split {
            Split::None => address,
            Split::Lpa => address & ((1 << 48) - 1) | bits(address, 51, 48) << 12,
            Split::Lpa2 => address & ((1 << 50) - 1) | bits(address, 51, 50) << 8,
        }
    }

    /// Whether an address is wider than the configured size.
    #[inline]
    pub(crate) const fn too_wide(self, address: u64) -> bool {
        address >> self.output_bits != 0
    }

    /// Whether a block descriptor is legal at a level.
    #[inline]
    pub(crate) const fn block_at(self, level: Level) -> bool {
        match (self.granule, level.index()) {
            (_, 1) => true,
            (Granule::K4, 2) => true,
            (Granule::K4, 3) | (Granule::K16, 2) => matches!(self.split, Split::Lpa2),
            (Granule::K64, 2) => matches!(self.split, Split::Lpa),
            _ => false,
        }
    }

    /// What the two type bits of a descriptor say.
    #[inline]
    pub(crate) const fn kind(self, level: Level, raw: u64) -> Kind {
        match (raw & VALID != 0, raw & TABLE != 0) {
            (false, _) => Kind::Invalid,
            (true, true) if level.index() == 0 => Kind::Leaf,
            (true, true) => Kind::Table,
            (true, false) if self.block_at(level) => Kind::Leaf,
            (true, false) => Kind::Reserved,
        }
    }

    /// The type bits of a leaf.
    pub(crate) const fn leaf_type(level: Level) -> u64 {
        if level.index() == 0 { VALID | TABLE } else { VALID }
    }

    /// Leaves from `output` on up to where the address field splits.
    pub(crate) fn progression(self, level: Level, output: Hpa) -> u64 {
        let split = match self.split {
            Split::None => return u64::MAX,
            Split::Lpa => 48,
            Split::Lpa2 => 50,
        };
        let end = ((output.raw() >> split) + 1) << split;
        (end - output.raw()) >> self.granule.level_shift(level)
    }
}

/// What a descriptor is, by its type bits alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Invalid,
    /// A block where none may stand: behaves as invalid.
    Reserved,
    Table,
    Leaf,
}
