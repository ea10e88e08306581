//! Locks as queues: waiting time comes out of the queue, not out of a constant.
//!
//! Grants are in order of arrival (a qspinlock, a qrwlock): a reader that arrives behind a waiting writer waits. Moving
//! the lock's cache line to another processor costs a hand-over, for readers of a read-write lock too, when they come and when they go,
//! which is why read-locking does not scale for free.
//!
//! Between sockets a line takes longer. While several processors wait for it, those on the socket that has it get it first: a request from there is
//! there first. That is why test-and-set locks keep to a socket where queue locks do not (Radovic and Hagersten, HPCA 2003; Dice, Marathe and
//! Shavit, PPoPP 2012), and why the way between sockets is shared by all who wait.

use std::collections::VecDeque;

use mmu_core::Cycles;
use mmu_core::machine::SocketSpec;

use super::op::LockMode;

/// Whether a lock knows readers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, serde::Serialize, serde::Deserialize)]
pub enum LockKind {
    /// One holder, whatever the mode asked for.
    Spin,
    /// Many readers or one writer.
    #[default]
    ReadWrite,
}

/// Index of an actor.
pub(crate) type ActorId = usize;

/// Cycles of lock operations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LockCosts {
    /// Taking a lock whose line is in this processor's cache, or leaving it as a reader.
    pub(crate) local: Cycles,
    /// Giving it back where nobody else holds it.
    pub(crate) unlock: Cycles,
    /// Moving the lock's line from another processor.
    pub(crate) handoff: Cycles,
    /// Sockets between which that takes longer.
    pub(crate) sockets: Option<SocketSpec>,
}

impl LockCosts {
    /// Moving a line from one actor's processor to another's, for which others have waited for `queue` before. Actors are placed in the order of their numbers,
    /// which vCPUs' threads begin.
    fn between(&self, from: ActorId, to: ActorId, queue: Cycles) -> Cycles {
        match self.sockets {
            Some(sockets) if sockets.of(from) != sockets.of(to) => {
                let waiting = 1 + queue.0 / self.handoff.0.max(1);
                self.handoff + Cycles(sockets.line_transfer.since(self.handoff).0 / waiting)
            }
            _ => self.handoff,
        }
    }
}

/// A cache line that processors take from each other to write it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct SharedLine {
    /// Who has it.
    last: Option<ActorId>,
    /// When it has got there.
    free: Cycles,
}

impl SharedLine {
    /// Brings the line to an actor's processor: it serves one at a time. Returns when it is there.
    pub(crate) fn fetch(&mut self, actor: ActorId, now: Cycles, costs: LockCosts) -> Cycles {
        let start = now.max(self.free);
        let last = self.last.replace(actor).filter(|&last| last != actor);
        self.free = start + last.map_or(Cycles::ZERO, |last| costs.between(last, actor, start.since(now)));
        self.free
    }
}

/// What a lock went through.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct LockStats {
    /// Times it was taken.
    pub acquisitions: u64,
    /// Times it was not free at once.
    pub contended: u64,
    /// Time spent waiting, all actors together.
    pub wait: Cycles,
    /// The longest single wait.
    pub longest_wait: Cycles,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
struct Waiter {
    actor: ActorId,
    mode: LockMode,
    since: Cycles,
}

#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct SimLock {
    kind: LockKind,
    holders: Vec<ActorId>,
    exclusive: bool,
    queue: VecDeque<Waiter>,
    line: SharedLine,
    pub(crate) stats: LockStats,
}

/// A lock was granted to an actor that may go on at this moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Granted {
    pub(crate) actor: ActorId,
    pub(crate) at: Cycles,
}

impl SimLock {
    pub(crate) fn new(kind: LockKind) -> Self {
        Self { kind, ..Self::default() }
    }

    fn mode(&self, asked: LockMode) -> LockMode {
        match self.kind {
            LockKind::Spin => LockMode::Write,
            LockKind::ReadWrite => asked,
        }
    }

    /// Whether somebody waits for it.
    pub(crate) fn is_contended(&self) -> bool {
        !self.queue.is_empty()
    }

    pub(crate) fn is_held_by(&self, actor: ActorId) -> bool {
        self.holders.contains(&actor)
    }

    /// Whether this actor alone holds it, nobody waits, and its line is in this actor's cache.
    pub(crate) fn is_only(&self, actor: ActorId) -> bool {
        self.holders == [actor] && self.queue.is_empty() && self.line.last == Some(actor)
    }

    /// Whether this actor holds it and nobody else can.
    pub(crate) fn is_held_alone_by(&self, actor: ActorId) -> bool {
        self.exclusive && self.is_held_by(actor)
    }

    /// Takes the lock at `now` and tells when the actor may go on, or queues it.
    pub(crate) fn acquire(&mut self, actor: ActorId, mode: LockMode, now: Cycles, costs: LockCosts) -> Option<Cycles> {
        let mode = self.mode(mode);
        let free = match mode {
            LockMode::Write => self.holders.is_empty(),
            LockMode::Read => !self.exclusive || self.holders.is_empty(),
        };
        if free && self.queue.is_empty() {
            return Some(self.grant(actor, mode, now, now, costs));
        }
        self.stats.contended += 1;
        self.queue.push_back(Waiter { actor, mode, since: now });
        None
    }

    fn grant(&mut self, actor: ActorId, mode: LockMode, since: Cycles, now: Cycles, costs: LockCosts) -> Cycles {
        self.holders.push(actor);
        self.exclusive = mode == LockMode::Write;
        let taken = self.line.fetch(actor, now, costs);
        let wait = taken.since(since);
        self.stats.acquisitions += 1;
        self.stats.wait += wait;
        self.stats.longest_wait = self.stats.longest_wait.max(wait);
        taken + costs.local
    }

    /// What a holder takes to give it back while its line is here.
    pub(crate) fn giving_back(&self, costs: LockCosts) -> Cycles {
        if self.exclusive { costs.unlock } else { costs.local }
    }

    /// Gives the lock back; those who may go on now are pushed onto `granted`. Returns when the actor itself goes on, or `None` when it did not
    /// hold the lock. A reader takes itself off the count: if other readers came or went meanwhile, the line has to come back first.
    pub(crate) fn release(
        &mut self,
        actor: ActorId,
        now: Cycles,
        costs: LockCosts,
        granted: &mut Vec<Granted>,
    ) -> Option<Cycles> {
        let i = self.holders.iter().position(|&holder| holder == actor)?;
        let here = if self.line.last == Some(actor) { now } else { self.line.fetch(actor, now, costs) };
        let now = here + self.giving_back(costs);
        self.holders.swap_remove(i);
        while let Some(&next) = self.queue.front() {
            let may = match next.mode {
                LockMode::Write => self.holders.is_empty(),
                LockMode::Read => self.holders.is_empty() || !self.exclusive,
            };
            if !may {
                break;
            }
            self.queue.pop_front();
            let at = self.grant(next.actor, next.mode, next.since, now, costs);
            granted.push(Granted { actor: next.actor, at });
        }
        Some(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COSTS: LockCosts = LockCosts { local: Cycles(20), unlock: Cycles(5), handoff: Cycles(100), sockets: None };

    #[test]
    fn a_writer_waits_for_readers_and_later_readers_wait_for_it() {
        let mut lock = SimLock::new(LockKind::ReadWrite);
        assert_eq!(lock.acquire(0, LockMode::Read, Cycles(0), COSTS), Some(Cycles(20)));
        assert_eq!(lock.acquire(1, LockMode::Read, Cycles(0), COSTS), Some(Cycles(120)));
        assert_eq!(lock.acquire(2, LockMode::Write, Cycles(10), COSTS), None);
        assert_eq!(lock.acquire(3, LockMode::Read, Cycles(20), COSTS), None);
        let mut granted = Vec::new();
        // Each of the readers has to get the line back from the other one.
        assert_eq!(lock.release(0, Cycles(200), COSTS, &mut granted), Some(Cycles(320)));
        assert!(granted.is_empty());
        assert_eq!(lock.release(1, Cycles(300), COSTS, &mut granted), Some(Cycles(420)));
        assert_eq!(granted, [Granted { actor: 2, at: Cycles(540) }]);
        granted.clear();
        // A writer has had it all the time.
        assert_eq!(lock.release(2, Cycles(600), COSTS, &mut granted), Some(Cycles(605)));
        assert_eq!(granted, [Granted { actor: 3, at: Cycles(725) }]);
        assert_eq!(lock.stats.longest_wait, Cycles(685));
    }

    #[test]
    fn a_line_takes_longer_between_sockets() {
        let sockets = SocketSpec { number: 2, cores: 2, line_transfer: Cycles(300), shared_core_speed: None };
        let costs = LockCosts { sockets: Some(sockets), ..COSTS };
        let mut lock = SimLock::new(LockKind::ReadWrite);
        let took = [0_usize, 1, 2, 3, 4].map(|actor| {
            let now = Cycles(10_000 * (actor as u64 + 1));
            lock.acquire(actor, LockMode::Read, now, costs).unwrap().since(now).0
        });
        assert_eq!(
            took,
            [20, 120, 320, 120, 320],
            "0 and 1 are on one socket, 2 and 3 on the other, 4 back on the first"
        );
    }

    #[test]
    fn the_way_between_sockets_is_shared_by_all_who_wait() {
        let sockets = SocketSpec { number: 2, cores: 2, line_transfer: Cycles(300), shared_core_speed: None };
        let costs = LockCosts { sockets: Some(sockets), ..COSTS };
        let mut line = SharedLine::default();
        // 0, then 2 from the other socket while nobody waits: all of the way.
        assert_eq!(line.fetch(0, Cycles(0), costs), Cycles(0));
        assert_eq!(line.fetch(2, Cycles(0), costs), Cycles(300));
        // 1 finds it three transfers busy: a quarter of the 200 more that the way takes.
        assert_eq!(line.fetch(1, Cycles(0), costs), Cycles(300 + 100 + 200 / 4));
        assert_eq!(line.fetch(0, Cycles(0), costs), Cycles(450 + 100), "on one socket nothing is shared");
        assert_eq!(line.fetch(0, Cycles(0), costs), Cycles(550), "and who has it need not wait for it to move");
        assert_eq!(line.fetch(3, Cycles(9000), costs), Cycles(9300));
    }

    #[test]
    fn a_spin_lock_knows_no_readers() {
        let mut lock = SimLock::new(LockKind::Spin);
        assert!(lock.acquire(0, LockMode::Read, Cycles(0), COSTS).is_some());
        assert!(lock.acquire(1, LockMode::Read, Cycles(0), COSTS).is_none());
        assert!(lock.is_contended());
        assert_eq!(lock.release(1, Cycles(1), COSTS, &mut Vec::new()), None, "only the holder can release");
    }

    #[test]
    fn queued_contention_serves_one_at_a_time() {
        // N waiters behind a critical section of 1000 cycles: the last waits N times section plus hand-over.
        let mut lock = SimLock::new(LockKind::Spin);
        lock.acquire(0, LockMode::Write, Cycles(0), COSTS);
        for actor in 1..=8 {
            assert_eq!(lock.acquire(actor, LockMode::Write, Cycles(0), COSTS), None);
        }
        let mut now = Cycles(1020);
        for actor in 0..8 {
            let mut granted = Vec::new();
            assert_eq!(lock.release(actor, now, COSTS, &mut granted), Some(now + COSTS.unlock));
            now = granted[0].at + Cycles(1000);
        }
        assert_eq!(lock.stats.longest_wait, Cycles(1025 + 7 * 1125 + 100));
    }
}
