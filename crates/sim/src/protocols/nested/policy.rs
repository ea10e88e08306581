//! How a nested guest's faults are handled: what history did wrong, as values.

use serde::{Deserialize, Serialize};

/// How a nested fault holds `mmu_lock`, under which it may have to take shadow leaves away to get chain entries.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShadowLock {
    /// For write.
    Write,
    /// For read, as faults of the TDP MMU do (X29, fixed by 47b0c2e4c220): two faults take chain entries from one list.
    Read,
}

/// Whose entry gets the bits that a nested fault sets.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RcTarget {
    /// The nested guest's.
    Nested,
    /// That of L1's tables at the same address (P03, June 2020): the nested guest faults for ever.
    OfL1,
}

/// Which bits of L1's entry a nested fault takes over.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RcCopy {
    /// Whether it is dirty (POWER: `__kvmhv_nested_page_fault`).
    #[default]
    Dirty,
    /// None (x86): a shadow leaf is dirty from the start, and what L2 writes is noticed by write protection.
    Nothing,
}

/// How a nested guest's faults are handled.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShadowPolicy {
    /// How `mmu_lock` is held.
    pub lock: ShadowLock,
    /// Where bits are set.
    pub rc: RcTarget,
    /// What is taken over from L1's entry.
    #[serde(default)]
    pub copies: RcCopy,
}

impl ShadowPolicy {
    /// As it is right.
    pub const RIGHT: ShadowPolicy =
        ShadowPolicy { lock: ShadowLock::Write, rc: RcTarget::Nested, copies: RcCopy::Dirty };
    /// As it is right on x86, where L1 may have several roots.
    pub const X86: ShadowPolicy = ShadowPolicy { copies: RcCopy::Nothing, ..Self::RIGHT };
}
