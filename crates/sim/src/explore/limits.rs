//! What bounds a scenario, and what it is held to beside the invariants.

use super::decision::Actors;
use super::invariant::Invariant;
use super::memory::MemoryOrder;
use super::mutation::Mutation;
use crate::engine::{Handover, LockKind};

/// Whether tables that nobody reaches at the end are leaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leaks {
    /// They are.
    Reported,
    /// So are those that the VM's first root still reaches: the scenario ends with the VM.
    OfTheVm,
    /// They are not: the scenario ends before its protocol does.
    Ignored,
}

/// What bounds a scenario.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Steps after which an execution is cut off.
    pub steps: u64,
    /// How often a task may be told that its time slice is over, all together.
    pub ticks: u32,
    /// How many allocations may fail.
    pub allocation_failures: u32,
    /// How many compare-and-swaps may fail although the word is what was expected, as the stores of exclusive pairs do: on Arm without
    /// `FEAT_LSE` and on POWER. x86 and Arm's `CAS` never do.
    pub store_failures: u32,
    /// What actors have in common beside operations.
    pub sharing: Sharing,
    /// Actors that do nothing: a failure may not need them.
    pub without: Actors,
    /// What loads may return.
    pub memory: MemoryOrder,
    /// Leaks.
    pub leaks: Leaks,
    /// What kind of lock `mmu_lock` is.
    pub mmu_lock: LockKind,
    /// What zapped entries tell the primary MMU.
    pub handover: Handover,
    /// Entries that may be visited between two opportunities to reschedule.
    pub stretch: Option<u64>,
    /// How long somebody may wait for a lock that he cannot have.
    pub wait: Option<Wait>,
    /// Steps of the host that go wrong.
    pub mutation: Option<Mutation>,
    /// The invariant that is broken when a fair execution does not come to an end.
    pub livelock: Option<Invariant>,
    /// What statistics of pages are held to.
    pub statistics: Statistics,
    /// What processors do wrong.
    pub hardware: Hardware,
}

/// What actors have in common beside operations: it decides which states a search may take for one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Sharing {
    /// Nothing but what the scenario looks at in the end, to which each adds what it was answered, in any order. States are equal whatever
    /// the order in which actors came to them.
    Operations,
    /// Rust data, behind an `Rc` for example: the order in which actors ran is part of a state.
    #[default]
    Memory,
}

/// A bound of waiting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wait {
    /// Steps that those who hold the lock may make meanwhile.
    pub steps: u64,
    /// Whom it is promised to.
    pub of: Waiters,
}

impl Wait {
    /// Nobody waits for more than so many steps.
    pub const fn of_all(steps: u64) -> Wait {
        Wait { steps, of: Waiters::All }
    }
}

/// Whose waiting is bounded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Waiters {
    /// Everybody's.
    All,
    /// That of actors of this name.
    Named(&'static str),
}

impl Waiters {
    pub(crate) fn include(self, name: &str) -> bool {
        match self {
            Waiters::All => true,
            Waiters::Named(wanted) => wanted == name,
        }
    }
}

/// Whether leaves that go are booked ([`Work::ReleaseLeaf`](crate::engine::Work)), so that statistics of pages can be compared with the tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Statistics {
    /// They are not all booked.
    #[default]
    Loose,
    /// Each is, once.
    Booked,
}

/// Processors with a defect, to see the checker find it. Real ones have [`Hardware::Correct`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Hardware {
    /// None.
    #[default]
    Correct,
    /// They go on using translations that were invalidated.
    KeepsInvalidated,
    /// They acknowledge an invalidation before they have made it.
    AcknowledgesEarly,
}

impl Limits {
    /// What scenarios have unless they say otherwise.
    pub const DEFAULT: Limits = Limits {
        steps: 4000,
        ticks: 1,
        allocation_failures: 0,
        store_failures: 0,
        sharing: Sharing::Memory,
        without: Actors::NOBODY,
        memory: MemoryOrder::Sequential,
        leaks: Leaks::Reported,
        mmu_lock: LockKind::ReadWrite,
        handover: Handover::AccessedAndDirty,
        stretch: None,
        wait: None,
        mutation: None,
        livelock: None,
        statistics: Statistics::Loose,
        hardware: Hardware::Correct,
    };
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}
