//! Deliberate defects of the model: what a suite of tests is worth is how many of them it catches.

use std::fmt;

/// One thing done wrong.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Defect {
    /// An entry with a clear access flag translates where hardware does not manage the flag.
    Af0NotFaulting,
    /// A broadcast invalidation reaches the issuer only.
    BroadcastIsLocal,
    /// A clean entry that hardware does not manage is written through. In real words a read-only entry looks the same.
    Db0Writable,
    /// A DSB completes before the invalidations of its thread do.
    DsbDoesNotWaitTlbi,
    /// Hardware that manages the access flag translates and leaves the flag clear.
    HwAfNeverWritten,
    /// The access flag is OR-ed into whatever the entry has become since it was read.
    HwAfOrUnchecked,
    /// The entry as read is written back with the access flag, over whatever it has become.
    HwAfTwoStep,
    /// A dirty update is computed from a cached entry and written over the current one.
    HwDirtyBlind,
    /// The dirty state is merged into whatever the entry has become since it was read.
    HwDirtyOrUnchecked,
    /// The entry as read is written back dirty, over whatever it has become.
    HwDirtyTwoStep,
    /// Permissions are not looked at.
    NoPermissionCheck,
    /// Nothing is ever cached.
    NoTlb,
    /// Table pointers are never cached.
    NoWalkCache,
    /// The walker may use the table as it was in the beginning.
    StaleWalkSnapshot,
    /// Entries with a clear access flag are cached, and hit.
    TlbCachesAf0,
    /// A look-up does not compare the ASID.
    TlbIgnoresAsid,
    /// A look-up does not compare the VMID.
    TlbIgnoresVmid,
    /// An invalidation does not wait for stores that were translated before it.
    TlbiIgnoresInflightStores,
    /// Invalidations leave entries of stage 2 alone.
    TlbiIpaMissesStage2,
    /// Invalidations leave cached table pointers alone.
    TlbiMissesWalkCache,
    /// Invalidations remove nothing.
    TlbiNoop,
    /// Every invalidation removes everything.
    TlbiOverInvalidates,
}

impl Defect {
    /// All of them with their names.
    pub const ALL: [(&'static str, Defect); 22] = [
        ("af0_not_faulting", Defect::Af0NotFaulting),
        ("broadcast_is_local", Defect::BroadcastIsLocal),
        ("db0_writable", Defect::Db0Writable),
        ("dsb_does_not_wait_tlbi", Defect::DsbDoesNotWaitTlbi),
        ("hw_af_never_written", Defect::HwAfNeverWritten),
        ("hw_af_or_unchecked", Defect::HwAfOrUnchecked),
        ("hw_af_two_step", Defect::HwAfTwoStep),
        ("hw_dirty_blind", Defect::HwDirtyBlind),
        ("hw_dirty_or_unchecked", Defect::HwDirtyOrUnchecked),
        ("hw_dirty_two_step", Defect::HwDirtyTwoStep),
        ("no_permission_check", Defect::NoPermissionCheck),
        ("no_tlb", Defect::NoTlb),
        ("no_walk_cache", Defect::NoWalkCache),
        ("stale_walk_snapshot", Defect::StaleWalkSnapshot),
        ("tlb_caches_af0", Defect::TlbCachesAf0),
        ("tlb_ignores_asid", Defect::TlbIgnoresAsid),
        ("tlb_ignores_vmid", Defect::TlbIgnoresVmid),
        ("tlbi_ignores_inflight_stores", Defect::TlbiIgnoresInflightStores),
        ("tlbi_ipa_misses_stage2", Defect::TlbiIpaMissesStage2),
        ("tlbi_misses_walk_cache", Defect::TlbiMissesWalkCache),
        ("tlbi_noop", Defect::TlbiNoop),
        ("tlbi_over_invalidates", Defect::TlbiOverInvalidates),
    ];

    /// Its name in files of defects.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, defect)| *defect == self).map_or("", |(name, _)| name)
    }

    /// The defect of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, defect)| *defect)
    }
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
