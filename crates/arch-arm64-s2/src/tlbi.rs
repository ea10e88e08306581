//! The TLBI instructions that a hypervisor and a guest use, with their operands bit for bit.
//!
//! Before you work on this file read Arm ARM C5.5 (`TLBI IPAS2E1IS`, `TLBI RIPAS2E1IS`, `TLBI VMALLE1IS`, ...).

use std::fmt;

use mmu_core::Gpa;
use mmu_core::format::Reach;

use crate::granule::{ArmLevel, Granule};
use crate::layout::bits;

/// What an invalidation by address names.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Space {
    /// An intermediate physical address of the current VMID. Matches stage-2 entries only: entries that combine both stages
    /// need [`Tlbi::completion`].
    Ipa,
    /// A virtual address of one address space of the current VMID.
    Va {
        /// The address space.
        asid: u16,
    },
}

/// Which entries of an address go.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Entries {
    /// Leaves (the `L` forms).
    LastLevel,
    /// Leaves and the table pointers above them.
    AllLevels,
}

/// Unit in which a range operand counts its base address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BaseUnit {
    /// The granule.
    Granule,
    /// 64 KiB: with `FEAT_LPA2` and DS=1, so that 37 bits reach 2^53.
    Kib64,
}

impl BaseUnit {
    /// Base-two logarithm of the unit in bytes.
    pub const fn shift(self, granule: Granule) -> u32 {
        match self {
            BaseUnit::Granule => granule.shift(),
            BaseUnit::Kib64 => 16,
        }
    }
}

/// Operand of an invalidation of one address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct AddressOperand {
    /// The address (virtual for [`Space::Va`]).
    pub address: Gpa,
    /// Level of the leaf that maps it (`TTL`); a wrong hint invalidates nothing.
    pub hint: Option<(Granule, ArmLevel)>,
}

impl AddressOperand {
    /// Whether the TTL field can say this level with this granule: 1 to 3. Level 0 has no encoding that every
    /// implementation knows, -1 none at all.
    pub const fn can_hint(level: ArmLevel) -> bool {
        level.number() >= 1
    }

    /// The register operand: address bits from 12 on in 39:0 (IPA) or 43:0 (VA), TTL in 47:44, ASID in 63:48.
    pub const fn encode(self, space: Space) -> u64 {
        let ttl = match self.hint {
            Some((granule, level)) if Self::can_hint(level) => granule.tlbi_tg() << 2 | level.number() as u64,
            _ => 0,
        };
        match space {
            Space::Ipa => bits(self.address.raw(), 51, 12) | ttl << 44,
            Space::Va { asid } => bits(self.address.raw(), 55, 12) | ttl << 44 | (asid as u64) << 48,
        }
    }

    /// The operand that a register value is.
    pub const fn decode(raw: u64, space: Space) -> Self {
        let ttl = bits(raw, 47, 44);
        let hint = match (Granule::from_tlbi_tg(ttl >> 2), ArmLevel::new((ttl & 3) as i8)) {
            (Some(granule), Some(level)) if Self::can_hint(level) => Some((granule, level)),
            _ => None,
        };
        let page = match space {
            Space::Ipa => bits(raw, 39, 0),
            Space::Va { .. } => bits(raw, 43, 0),
        };
        Self { address: Gpa::new(page << 12), hint }
    }
}

/// Operand of an invalidation by range: `(NUM + 1) << (5 * SCALE + 1)` granules from the base on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RangeOperand {
    /// First address, a multiple of the unit.
    pub base: Gpa,
    /// Granule in which the length is counted.
    pub granule: Granule,
    /// Unit of the base.
    pub unit: BaseUnit,
    /// `SCALE`, 0 to 3.
    pub scale: u8,
    /// `NUM`, 0 to 31.
    pub num: u8,
    /// Level of the leaves (`TTL`).
    pub hint: Option<ArmLevel>,
}

impl RangeOperand {
    /// The longest range of one instruction, in granules: 8 GiB with 4K.
    pub const MAX_PAGES: u64 = Self::pages_of(3, 31);

    const fn pages_of(scale: u8, num: u8) -> u64 {
        (num as u64 + 1) << (5 * scale + 1)
    }
    /// Length in granules.
    pub const fn pages(&self) -> u64 {
        Self::pages_of(self.scale, self.num)
    }
    /// Length in bytes.
    pub const fn bytes(&self) -> u64 {
        self.pages() << self.granule.shift()
    }

    /// The register operand: BaseADDR 36:0, TTL 38:37, NUM 43:39, SCALE 45:44, TG 47:46, ASID 63:48.
    pub const fn encode(&self, space: Space) -> u64 {
        let base = bits(self.base.raw() >> self.unit.shift(self.granule), 36, 0);
        let ttl = match self.hint {
            Some(level) if AddressOperand::can_hint(level) => level.number() as u64,
            _ => 0,
        };
        let asid = match space {
            Space::Ipa => 0,
            Space::Va { asid } => (asid as u64) << 48,
        };
        asid | self.granule.tlbi_tg() << 46
            | (self.scale as u64 & 3) << 44
            | (self.num as u64 & 31) << 39
            | ttl << 37
            | base
    }

    /// The operand that a register value is; `None` when its granule field is the reserved 0 (nothing need be invalidated).
    pub const fn decode(raw: u64, unit: BaseUnit) -> Option<Self> {
        let Some(granule) = Granule::from_tlbi_tg(bits(raw, 47, 46)) else { return None };
        let hint = match bits(raw, 38, 37) {
            0 => None,
            level => ArmLevel::new(level as i8),
        };
        Some(Self {
            base: Gpa::new(bits(raw, 36, 0) << unit.shift(granule)),
            granule,
            unit,
            scale: bits(raw, 45, 44) as u8,
            num: bits(raw, 43, 39) as u8,
            hint,
        })
    }
}

/// A TLBI instruction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Tlbi {
    /// `IPAS2E1`, `VAE1` and their forms: one address.
    Address {
        /// What the address is.
        space: Space,
        /// The operand.
        operand: AddressOperand,
        /// Leaves or everything on the way.
        entries: Entries,
        /// This processor or the inner shareable domain.
        reach: Reach,
    },
    /// `RIPAS2E1`, `RVAE1` and their forms: a range.
    Range {
        /// What the addresses are.
        space: Space,
        /// The operand.
        operand: RangeOperand,
        /// Leaves or everything on the way.
        entries: Entries,
        /// This processor or the inner shareable domain.
        reach: Reach,
    },
    /// `ASIDE1`: one address space's stage-1 entries.
    Aside1 {
        /// The address space.
        asid: u16,
        /// This processor or the inner shareable domain.
        reach: Reach,
    },
    /// `VMALLE1`: stage-1 and combined entries of the current VMID.
    Vmalle1(Reach),
    /// `VMALLS12E1`: everything of the current VMID.
    Vmalls12e1(Reach),
    /// `ALLE1`: everything of EL1 and EL0, all VMIDs.
    Alle1(Reach),
}

impl Tlbi {
    /// Where it acts.
    pub const fn reach(&self) -> Reach {
        match *self {
            Tlbi::Address { reach, .. } | Tlbi::Range { reach, .. } | Tlbi::Aside1 { reach, .. } => reach,
            Tlbi::Vmalle1(reach) | Tlbi::Vmalls12e1(reach) | Tlbi::Alle1(reach) => reach,
        }
    }

    /// What must follow, once, after the last of these and a DSB: an invalidation by IPA leaves entries that combine both
    /// stages, since those are looked up by virtual address (Arm ARM D8.14.5; KVM `__kvm_tlb_flush_vmid_ipa`).
    pub const fn completion(&self) -> Option<Tlbi> {
        match *self {
            Tlbi::Address { space: Space::Ipa, reach, .. } | Tlbi::Range { space: Space::Ipa, reach, .. } => {
                Some(Tlbi::Vmalle1(reach))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Tlbi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is = match self.reach() {
            Reach::Local => "",
            Reach::Everyone => "IS",
        };
        let by_address = |space, entries| match (space, entries) {
            (Space::Ipa, Entries::AllLevels) => "IPAS2E1",
            (Space::Ipa, Entries::LastLevel) => "IPAS2LE1",
            (Space::Va { .. }, Entries::AllLevels) => "VAE1",
            (Space::Va { .. }, Entries::LastLevel) => "VALE1",
        };
        let asid = |space| match space {
            Space::Ipa => None,
            Space::Va { asid } => Some(asid),
        };
        match *self {
            Tlbi::Address { space, operand, entries, .. } => {
                write!(f, "TLBI {}{is} {}", by_address(space, entries), operand.address)?;
                if let Some((_, level)) = operand.hint {
                    write!(f, ", level {level}")?;
                }
                asid(space).map_or(Ok(()), |asid| write!(f, ", ASID {asid}"))
            }
            Tlbi::Range { space, operand, entries, .. } => {
                let RangeOperand { base, granule, scale, num, hint, .. } = operand;
                write!(f, "TLBI R{}{is} {base}, {} x {granule}", by_address(space, entries), operand.pages())?;
                write!(f, " (SCALE {scale}, NUM {num})")?;
                if let Some(level) = hint {
                    write!(f, ", level {level}")?;
                }
                asid(space).map_or(Ok(()), |asid| write!(f, ", ASID {asid}"))
            }
            Tlbi::Aside1 { asid, .. } => write!(f, "TLBI ASIDE1{is} ASID {asid}"),
            Tlbi::Vmalle1(_) => write!(f, "TLBI VMALLE1{is}"),
            Tlbi::Vmalls12e1(_) => write!(f, "TLBI VMALLS12E1{is}"),
            Tlbi::Alle1(_) => write!(f, "TLBI ALLE1{is}"),
        }
    }
}
