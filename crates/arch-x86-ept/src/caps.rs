//! IA32_VMX_EPT_VPID_CAP: what a processor offers (SDM appendix A.10).

use std::fmt;

use serde::{Deserialize, Serialize};

/// One capability, by its bit in the register.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Capability {
    /// Execute-only translations.
    ExecuteOnly = 0,
    /// Four-level walks.
    WalkLength4 = 6,
    /// Five-level walks.
    WalkLength5 = 7,
    /// Paging structures may be uncacheable.
    Uncacheable = 8,
    /// Paging structures may be write-back.
    WriteBack = 14,
    /// 2 MiB leaves.
    Pages2M = 16,
    /// 1 GiB leaves.
    Pages1G = 17,
    /// The INVEPT instruction.
    Invept = 20,
    /// Accessed and dirty flags.
    AccessedDirty = 21,
    /// Advanced exit information: qualification bits 11:9.
    AdvancedInfo = 22,
    /// Supervisor shadow-stack control (EPTP bit 7).
    SupervisorShadowStack = 23,
    /// INVEPT type 1.
    InveptSingleContext = 25,
    /// INVEPT type 2.
    InveptAllContext = 26,
    /// The INVVPID instruction.
    Invvpid = 32,
    /// INVVPID type 0.
    InvvpidAddress = 40,
    /// INVVPID type 1.
    InvvpidSingleContext = 41,
    /// INVVPID type 2.
    InvvpidAllContext = 42,
    /// INVVPID type 3.
    InvvpidRetainingGlobals = 43,
}

/// The register's value.
///
/// ```
/// use arch_x86_ept::{Capability, EptCapabilities};
/// let skylake = EptCapabilities::from_msr(0xf0106334141);
/// assert!(skylake.has(Capability::ExecuteOnly) && !skylake.has(Capability::WalkLength5));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EptCapabilities(u64);

impl EptCapabilities {
    /// The register's value; bits without meaning are kept and not looked at.
    pub const fn from_msr(value: u64) -> Self {
        Self(value)
    }
    /// The register's value.
    pub const fn msr(self) -> u64 {
        self.0
    }
    /// Nothing at all.
    pub const fn none() -> Self {
        Self(0)
    }
    /// Everything that this crate models.
    pub const fn all() -> Self {
        Self(0xf01_0673_41c1)
    }
    /// With `capability` too.
    pub const fn with(self, capability: Capability) -> Self {
        Self(self.0 | 1 << capability as u8)
    }
    /// Without `capability`.
    pub const fn without(self, capability: Capability) -> Self {
        Self(self.0 & !(1 << capability as u8))
    }
    /// Whether the processor has it.
    pub const fn has(self, capability: Capability) -> bool {
        self.0 >> capability as u8 & 1 == 1
    }
}

impl fmt::Display for EptCapabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IA32_VMX_EPT_VPID_CAP {:#x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_has_everything_but_shadow_stacks() {
        use Capability::*;
        let modelled = [
            ExecuteOnly,
            WalkLength4,
            WalkLength5,
            Uncacheable,
            WriteBack,
            Pages2M,
            Pages1G,
            Invept,
            AccessedDirty,
            AdvancedInfo,
            InveptSingleContext,
            InveptAllContext,
            Invvpid,
            InvvpidAddress,
            InvvpidSingleContext,
            InvvpidAllContext,
            InvvpidRetainingGlobals,
        ];
        let built = modelled.iter().fold(EptCapabilities::none(), |caps, &one| caps.with(one));
        assert_eq!(built, EptCapabilities::all());
        assert!(!EptCapabilities::all().has(SupervisorShadowStack));
        assert!(!EptCapabilities::all().without(Pages1G).has(Pages1G));
    }
}
