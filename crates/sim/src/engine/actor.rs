//! What the engine keeps of an actor beside its future.

use mmu_core::Cycles;

use super::lock::ActorId;
use super::op::{Blockable, LockId};

/// What one actor went through.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct ActorStats {
    /// When it started.
    pub started: Cycles,
    /// When it finished.
    pub finished: Cycles,
    /// Longest stretch between two opportunities to reschedule.
    pub longest_unscheduled: Cycles,
    /// Longest RCU read section.
    pub longest_rcu: Cycles,
    /// Time spent waiting for locks.
    pub lock_wait: Cycles,
}

/// The part of an actor that operations change.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct ActorState {
    pub(crate) id: ActorId,
    pub(crate) now: Cycles,
    pub(crate) stats: ActorStats,
    /// Last opportunity to reschedule.
    pub(super) scheduled: Cycles,
    /// Start of the current time slice.
    pub(super) slice: Cycles,
    /// The lock that stands for the processor it shares with others.
    pub(super) processor: Option<LockId>,
    pub(super) rcu_since: Option<Cycles>,
    pub(super) waiting_since: Option<Cycles>,
    /// Gave the processor away until it is woken.
    pub(super) asleep: bool,
    pub(super) blockable: Blockable,
}

impl ActorState {
    pub(crate) fn new(id: ActorId, now: Cycles) -> Self {
        let stats = ActorStats { started: now, ..ActorStats::default() };
        Self {
            id,
            now,
            stats,
            scheduled: now,
            slice: now,
            processor: None,
            rcu_since: None,
            waiting_since: None,
            asleep: false,
            blockable: Blockable::Yes,
        }
    }

    /// An opportunity to reschedule: the stretch since the last one ends.
    pub(super) fn breathe(&mut self) {
        let stretch = self.now.since(self.scheduled);
        self.stats.longest_unscheduled = self.stats.longest_unscheduled.max(stretch);
        self.scheduled = self.now;
    }

    /// A time slice begins now.
    pub(super) fn start_slice(&mut self) {
        self.slice = self.now;
        self.scheduled = self.now;
    }

    /// A run of checks has been made: the first so long after the last opportunity, the others so far apart, the last one
    /// `since` cycles ago.
    pub(super) fn checked(&mut self, first: Cycles, apart: Cycles, since: Cycles) {
        self.stats.longest_unscheduled = self.stats.longest_unscheduled.max(first).max(apart);
        self.scheduled = Cycles(self.now.0.saturating_sub(since.0));
    }

    pub(crate) fn finish(&mut self) {
        self.breathe();
        self.stats.finished = self.now;
    }

    /// The actor slept or waited until `now`; waiting for a lock is counted as such. Whoever wakes it may be earlier than the moment at which it
    /// fell asleep, by less than a window: its own time never goes back.
    pub(crate) fn resume(&mut self, now: Cycles) {
        if let Some(since) = self.waiting_since.take() {
            self.stats.lock_wait += now.since(since);
        }
        self.now = self.now.max(now);
        if std::mem::take(&mut self.asleep) {
            self.start_slice();
        }
    }
}
