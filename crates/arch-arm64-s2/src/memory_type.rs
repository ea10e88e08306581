//! Memory types: what a stage-2 descriptor says, and what comes out together with stage 1.
//!
//! Before you work on this file read Arm ARM D8.6 (memory type and cacheability attributes) and the pseudo-code
//! `AArch64.S2ApplyFWBMemAttrs`, `S2CombineS1MemAttrs` and `S2CombineS1Shareability`.

use std::fmt;

use crate::registers::Hcr;

/// Memory type of a stage-2 leaf.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum S2Memory {
    /// Normal, inner and outer write-back.
    #[default]
    WriteBack,
    /// Normal, inner and outer non-cacheable.
    NonCacheable,
    /// Device: no gathering, no reordering, no early write acknowledgement.
    DeviceNGnRnE,
    /// Device: no gathering, no reordering.
    DeviceNGnRE,
    /// Device: no gathering.
    DeviceNGRE,
    /// Device: anything goes.
    DeviceGRE,
    /// What stage 1 says (`FEAT_S2FWB` only).
    StageOne,
    /// Any other encoding of the four MemAttr bits.
    Other(u8),
}

/// Whether stage 2 forces types (`HCR_EL2.FWB`) or only restricts them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TypeControl {
    /// The stricter of both stages wins.
    Restrict,
    /// Stage 2 may force write-back.
    Force,
}

impl S2Memory {
    /// The type that `MemAttr[3:0]` encodes.
    pub const fn from_bits(bits: u8, control: TypeControl) -> Self {
        match (bits & 15, control) {
            (0, _) => S2Memory::DeviceNGnRnE,
            (1, _) => S2Memory::DeviceNGnRE,
            (2, _) => S2Memory::DeviceNGRE,
            (3, _) => S2Memory::DeviceGRE,
            (5, _) => S2Memory::NonCacheable,
            (15, TypeControl::Restrict) | (6, TypeControl::Force) => S2Memory::WriteBack,
            (7, TypeControl::Force) => S2Memory::StageOne,
            (other, _) => S2Memory::Other(other),
        }
    }

    /// `MemAttr[3:0]`, or `None` when this type has no encoding (or another name).
    pub fn to_bits(self, control: TypeControl) -> Option<u8> {
        let bits = match (self, control) {
            (S2Memory::DeviceNGnRnE, _) => 0,
            (S2Memory::DeviceNGnRE, _) => 1,
            (S2Memory::DeviceNGRE, _) => 2,
            (S2Memory::DeviceGRE, _) => 3,
            (S2Memory::NonCacheable, _) => 5,
            (S2Memory::WriteBack, TypeControl::Restrict) => 15,
            (S2Memory::WriteBack, TypeControl::Force) => 6,
            (S2Memory::StageOne, _) => 7,
            (S2Memory::Other(bits), _) => bits,
        };
        (bits < 16 && Self::from_bits(bits, control) == self).then_some(bits)
    }

    /// Whether the stage-2 type alone makes the memory Device.
    pub const fn is_device(self) -> bool {
        matches!(self, S2Memory::DeviceNGnRnE | S2Memory::DeviceNGnRE | S2Memory::DeviceNGRE | S2Memory::DeviceGRE)
    }
}

/// Shareability, with the values of the `SH` field.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Shareability {
    /// `0b00`.
    Non,
    /// `0b01`, reserved: behaves as non-shareable in the recorded vectors.
    Reserved,
    /// `0b10`.
    Outer,
    /// `0b11`.
    #[default]
    Inner,
}

impl Shareability {
    /// The meaning of the two bits.
    pub const fn from_bits(bits: u64) -> Self {
        match bits & 3 {
            0 => Shareability::Non,
            1 => Shareability::Reserved,
            2 => Shareability::Outer,
            _ => Shareability::Inner,
        }
    }
    /// The two bits.
    pub const fn bits(self) -> u64 {
        match self {
            Shareability::Non => 0,
            Shareability::Reserved => 1,
            Shareability::Outer => 2,
            Shareability::Inner => 3,
        }
    }
    /// The wider of two (outer, inner, none).
    const fn widest(self, other: Self) -> Self {
        match (self, other) {
            (Shareability::Outer, _) | (_, Shareability::Outer) => Shareability::Outer,
            (Shareability::Inner, _) | (_, Shareability::Inner) => Shareability::Inner,
            _ => Shareability::Non,
        }
    }
}

/// A memory type as `MAIR_EL1` and `PAR_EL1.ATTR` write it, with its shareability.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MemoryAttributes {
    /// `MAIR` encoding: 0x00, 0x04, 0x08, 0x0c Device; 0x44 Normal non-cacheable; 0xff Normal write-back.
    pub attr: u8,
    /// Shareability.
    pub shareability: Shareability,
}

impl MemoryAttributes {
    /// Device-nGnRnE, outer shareable: a data access with stage 1 off.
    pub const DEVICE: Self = Self { attr: 0, shareability: Shareability::Outer };
    /// Normal write-back read- and write-allocate, non-shareable: stage 1 off and `HCR_EL2.DC` set.
    pub const DEFAULT_CACHEABLE: Self = Self { attr: 0xff, shareability: Shareability::Non };

    /// What a data access has with stage 1 off (Arm ARM D8.2.12).
    pub const fn stage1_off(hcr: Hcr) -> Self {
        if hcr.dc() { Self::DEFAULT_CACHEABLE } else { Self::DEVICE }
    }

    const fn is_device(self) -> bool {
        self.attr & 0xf0 == 0
    }

    /// Together with a stage-2 leaf of this type and shareability.
    pub fn with_stage2(self, memory: S2Memory, shareability: Shareability, hcr: Hcr) -> Self {
        let attr = if hcr.fwb() { self.forced(memory) } else { self.restricted(memory, hcr) };
        let result = Self { attr, shareability: self.shareability.widest(shareability) };
        // Device and Normal non-cacheable memory is outer shareable whatever the fields say (Arm ARM D8.6.5).
        let outer = result.is_device() || attr == 0x44;
        Self { shareability: if outer { Shareability::Outer } else { result.shareability }, ..result }
    }

    /// `FEAT_S2FWB` (Arm ARM D8.6.6, pseudo-code `AArch64.S2ApplyFWBMemAttrs`).
    fn forced(self, memory: S2Memory) -> u8 {
        match memory {
            S2Memory::StageOne => self.attr,
            S2Memory::WriteBack if self.is_device() => 0xff,
            S2Memory::WriteBack => forced_write_back(self.attr >> 4) << 4 | forced_write_back(self.attr & 15),
            S2Memory::NonCacheable if self.is_device() => self.attr,
            S2Memory::NonCacheable => 0x44,
            S2Memory::DeviceNGnRnE => 0x0,
            S2Memory::DeviceNGnRE => 0x4,
            S2Memory::DeviceNGRE => 0x8,
            S2Memory::DeviceGRE => 0xc,
            // Bit 3 is RES0 and 0b0100 reserved: the strictest type.
            S2Memory::Other(_) => 0x0,
        }
    }

    /// Without forcing: Device wins over Normal, the stricter Device, the less cacheable Normal.
    fn restricted(self, memory: S2Memory, hcr: Hcr) -> u8 {
        let bits = memory.to_bits(TypeControl::Restrict).unwrap_or(0);
        let (mut outer, mut inner) = (bits >> 2, bits & 3);
        if outer == 0 {
            let device = inner << 2;
            return if self.is_device() { self.attr.min(device) } else { device };
        }
        if self.is_device() {
            return self.attr;
        }
        if hcr.cd() {
            (outer, inner) = (1, 1);
        }
        restricted_nibble(self.attr >> 4, outer) << 4 | restricted_nibble(self.attr & 15, inner)
    }
}

/// One half of a cacheability: stage 1's `MAIR` nibble under stage 2's two bits (1 NC, 2 write-through, 3 write-back).
const fn restricted_nibble(stage1: u8, stage2: u8) -> u8 {
    const NON_CACHEABLE: u8 = 4;
    match (stage1, stage1 >> 2, stage2) {
        (NON_CACHEABLE, _, _) | (_, _, 1) => NON_CACHEABLE,
        // Stage 1 is write-through already (transient or not).
        (_, 0 | 2, _) => stage1,
        (_, _, 2) => 2 << 2 | stage1 & 3,
        _ => stage1,
    }
}

/// Write-back with stage 1's allocation hints where it has some.
const fn forced_write_back(stage1: u8) -> u8 {
    match stage1 {
        0 | 4 => 0xf,
        nibble => nibble | 4,
    }
}

impl fmt::Display for MemoryAttributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = match self.shareability {
            Shareability::Non | Shareability::Reserved => "non-shareable",
            Shareability::Outer => "outer shareable",
            Shareability::Inner => "inner shareable",
        };
        match self.attr {
            0x00 => write!(f, "Device-nGnRnE"),
            0x04 => write!(f, "Device-nGnRE"),
            0x08 => write!(f, "Device-nGRE"),
            0x0c => write!(f, "Device-GRE"),
            0x44 => write!(f, "Normal non-cacheable"),
            attr => write!(f, "Normal {attr:#04x}, {share}"),
        }
    }
}
