//! What an entry owes after it was made invalid.

use serde::Serialize;

/// A translation regime.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Regime {
    /// The hypervisor's own stage 1 at EL2.
    HypStage1,
    /// A guest's stage 2.
    Stage2,
}

/// What a DSB waits for, as far as the sequence cares.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BarrierReach {
    /// All accesses, at least in the inner shareable domain (`ish`, `osh`, `sy`): completes stores and invalidations.
    Full,
    /// Stores only (`ishst`, `oshst`, `st`): completes stores.
    Stores,
    /// Anything less (`ishld`, `nsh`): completes nothing that other processors see.
    Less,
}

/// What a broadcast TLBI invalidates.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TlbiKind {
    /// Both stages of every VMID (`alle1is`).
    AllGuests,
    /// Both stages of the current VMID (`vmalls12e1is`).
    BothStages,
    /// Stage 2 of one page of the current VMID (`ipas2e1is`).
    Stage2Page {
        /// Number of the 4K page.
        page: u64,
    },
    /// Stage 1 of the current VMID (`vmalle1is`), and what was cached of both stages together.
    Stage1,
    /// All of EL2's own (`alle2is`).
    AllHyp,
    /// One page of EL2's own (`vae2is`).
    HypPage {
        /// Number of the 4K page.
        page: u64,
    },
    /// One that does not reach other processors, or concerns neither regime.
    Other,
}

/// How far the invalidation of an entry has come. Each step names the thread that must take the next one, where it matters.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Owed {
    /// The store is not known to have completed: the writer owes a DSB.
    Barrier {
        /// The writer.
        writer: u32,
    },
    /// A covering TLBI is owed.
    Invalidation,
    /// One by IPA is on its way: its issuer owes a DSB.
    Stage2Barrier {
        /// The issuer.
        issuer: u32,
    },
    /// Stage 2 is clean; what was cached of both stages is owed.
    Stage1Invalidation,
    /// The last TLBI is on its way: its issuer owes a DSB.
    LastBarrier {
        /// The issuer.
        issuer: u32,
    },
    /// Nothing.
    Nothing,
}

impl Owed {
    /// After a DSB of `thread`.
    pub(crate) fn after_barrier(self, thread: u32, reach: BarrierReach) -> Self {
        match (self, reach) {
            (Owed::Barrier { writer }, BarrierReach::Full | BarrierReach::Stores) if writer == thread => {
                Owed::Invalidation
            }
            (Owed::Stage2Barrier { issuer }, BarrierReach::Full) if issuer == thread => Owed::Stage1Invalidation,
            (Owed::LastBarrier { issuer }, BarrierReach::Full) if issuer == thread => Owed::Nothing,
            _ => self,
        }
    }

    /// After a TLBI of `thread` that covers the entry entirely.
    pub(crate) fn after_all(self, thread: u32) -> Self {
        match self {
            Owed::Barrier { .. } | Owed::LastBarrier { .. } | Owed::Nothing => self,
            Owed::Invalidation | Owed::Stage2Barrier { .. } | Owed::Stage1Invalidation => {
                Owed::LastBarrier { issuer: thread }
            }
        }
    }

    /// After a TLBI of `thread` that covers its stage-2 part.
    pub(crate) fn after_stage2(self, thread: u32) -> Self {
        if self == Owed::Invalidation { Owed::Stage2Barrier { issuer: thread } } else { self }
    }

    /// After a TLBI of `thread` that covers what was cached of both stages.
    pub(crate) fn after_stage1(self, thread: u32) -> Self {
        if self == Owed::Stage1Invalidation { Owed::LastBarrier { issuer: thread } } else { self }
    }
}
