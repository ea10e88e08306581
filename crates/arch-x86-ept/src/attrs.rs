//! What an EPT leaf says beyond address and permissions.

use serde::{Deserialize, Serialize};

use crate::kvm;

/// EPT memory type of a leaf (bits 5:3; SDM 28.3.7.2). 2, 3 and 7 have no meaning and are not representable.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryType {
    /// 0, uncacheable.
    Uncacheable,
    /// 1, write combining.
    WriteCombining,
    /// 4, write through.
    WriteThrough,
    /// 5, write protected.
    WriteProtected,
    /// 6, write back: ordinary memory.
    #[default]
    WriteBack,
}

impl MemoryType {
    /// Every memory type.
    pub const ALL: [MemoryType; 5] = [
        MemoryType::Uncacheable,
        MemoryType::WriteCombining,
        MemoryType::WriteThrough,
        MemoryType::WriteProtected,
        MemoryType::WriteBack,
    ];

    /// The architecture's number, as in IA32_PAT.
    pub const fn code(self) -> u8 {
        match self {
            MemoryType::Uncacheable => 0,
            MemoryType::WriteCombining => 1,
            MemoryType::WriteThrough => 4,
            MemoryType::WriteProtected => 5,
            MemoryType::WriteBack => 6,
        }
    }
    /// The type with this number, or `None` for the numbers without meaning.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(MemoryType::Uncacheable),
            1 => Some(MemoryType::WriteCombining),
            4 => Some(MemoryType::WriteThrough),
            5 => Some(MemoryType::WriteProtected),
            6 => Some(MemoryType::WriteBack),
            _ => None,
        }
    }
}

/// Whether the guest's PAT takes part in the effective memory type (bit 6 of a leaf).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IgnorePat {
    /// Combined with the EPT type.
    #[default]
    Honour,
    /// The EPT type alone counts.
    Ignore,
}

/// Whether a violation by this leaf may become a virtualization exception (bit 63).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SuppressVe {
    /// It may, when the control is on.
    #[default]
    Convertible,
    /// It always exits.
    Suppressed,
}

/// Attributes of an EPT leaf.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EptAttrs {
    /// Memory type.
    pub memory_type: MemoryType,
    /// Whether the guest's PAT counts.
    pub ignore_pat: IgnorePat,
    /// Bit 63.
    pub suppress_ve: SuppressVe,
    /// The bits that hardware ignores in this configuration, in place: see [`crate::Ept::software_bits`].
    pub software: u64,
}

impl Default for EptAttrs {
    /// Write-back memory as KVM marks it ([`kvm::MMU_PRESENT`]).
    fn default() -> Self {
        Self {
            memory_type: MemoryType::default(),
            ignore_pat: IgnorePat::default(),
            suppress_ve: SuppressVe::default(),
            software: kvm::MMU_PRESENT,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_read_back_and_the_others_have_no_meaning() {
        for code in 0..=u8::MAX {
            match MemoryType::from_code(code) {
                Some(kind) => assert_eq!(kind.code(), code),
                None => assert!(!MemoryType::ALL.iter().any(|kind| kind.code() == code)),
            }
        }
    }
}
