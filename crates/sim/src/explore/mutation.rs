//! Mutations: host actors whose steps of one kind go wrong, to see whether the checks notice.
//!
//! The protocol stays as it is; the laboratory performs something else than it was asked for. A mutation that no scenario of a protocol notices
//! is a step that nothing tests. Guests are left alone: what hardware may do is decided by its model.

use std::fmt;

use mmu_core::{Flush, FlushScope, Hpa, WalkCaches};
use serde::{Deserialize, Serialize};

use super::guest::Guest;
use super::lab::Lab;
use super::perform::DONE;
use crate::arch::Arch;
use crate::engine::{Atomicity, LockId, LockKind, LockMode, Op, Order, Reply, Var};

/// What goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mutation {
    /// Flushes are left out.
    OmitFlush,
    /// Flushes inside a lock are made when it has been given back.
    LateFlush,
    /// A compare-and-swap of a table word stores without comparing, and atomic changes become plain stores.
    PlainStore,
    /// Who looks whether an invalidation has come in between, with a lock held, sees what was there before the lock.
    StaleRecheck,
    /// Read sections of RCU are not entered.
    OmitRcu,
    /// Nobody waits for a grace period.
    OmitGrace,
    /// `mmu_lock` is not taken.
    OmitLock,
    /// Releases and acquires order nothing.
    RelaxedOrder,
    /// Fences order nothing.
    OmitFence,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Mutation; 9] = [
        Mutation::OmitFlush,
        Mutation::LateFlush,
        Mutation::PlainStore,
        Mutation::StaleRecheck,
        Mutation::OmitRcu,
        Mutation::OmitGrace,
        Mutation::OmitLock,
        Mutation::RelaxedOrder,
        Mutation::OmitFence,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Mutation::OmitFlush => "omit-flush",
            Mutation::LateFlush => "late-flush",
            Mutation::PlainStore => "plain-store",
            Mutation::StaleRecheck => "stale-recheck",
            Mutation::OmitRcu => "omit-rcu",
            Mutation::OmitGrace => "omit-grace",
            Mutation::OmitLock => "omit-lock",
            Mutation::RelaxedOrder => "relaxed-order",
            Mutation::OmitFence => "omit-fence",
        }
    }
}

impl fmt::Display for Mutation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What an actor would be doing if its operations went right.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Imagined {
    /// Read sections of RCU that it would be in.
    reading: u32,
    /// How it would hold `mmu_lock`.
    holding: Option<LockMode>,
}

/// Accesses of an execution that are ordered otherwise than they should be, and what others read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Disordered {
    loads: Vec<(usize, Hpa)>,
    stores: Vec<(usize, Hpa)>,
    reads: Vec<(usize, Hpa)>,
}

impl Disordered {
    pub(crate) fn clear(&mut self) {
        self.loads.clear();
        self.stores.clear();
        self.reads.clear();
    }
}

/// What became of an operation.
pub(crate) enum Mutated {
    /// It is not one that goes wrong.
    No,
    /// Something else was performed; without an answer the actor waits.
    Performed(Option<Reply>),
}

impl<A: Arch> Lab<A> {
    /// Performs something else than the operation of the acting actor, if that is one that goes wrong.
    pub(crate) fn mutated(&mut self, op: Op) -> Mutated {
        let Some(mutation) = self.limits.mutation else { return Mutated::No };
        let me = self.me();
        self.imagine(mutation, op);
        let instead = match (mutation, op) {
            (Mutation::OmitFlush, Op::Flush(_)) => DONE,
            (Mutation::LateFlush, Op::Flush(flush)) if self.holds_any(me) => {
                let late = &mut self.hands[me].late_flush;
                // Two of them are made as one that covers both.
                *late = Some(if late.is_some() { everything(flush) } else { flush });
                DONE
            }
            (Mutation::LateFlush, Op::Unlock(lock)) if self.hands[me].late_flush.is_some() => {
                self.drain(me);
                self.give_lock(me, lock);
                match self.hands[me].late_flush.filter(|_| !self.holds_any(me)) {
                    None => DONE,
                    Some(flush) => {
                        self.hands[me].late_flush = None;
                        self.flush(flush)
                    }
                }
            }
            (Mutation::PlainStore, Op::Cmpxchg(at, old, new)) => {
                if self.is_word(at) {
                    self.store_plainly(at, new, Order::Relaxed);
                }
                Some(Reply { a: old, b: 0, c: 0 })
            }
            (Mutation::PlainStore, Op::Run(run)) if run.atomicity != Atomicity::Plain => {
                let done = self.run(crate::engine::RunOp { atomicity: Atomicity::Plain, ..run });
                Some(Reply { a: done, b: 0, c: 0 })
            }
            (Mutation::StaleRecheck, Op::Load(Var::INVALIDATE_SEQ, order)) => {
                if !self.holds_rwlock(me) {
                    let at = self.var(Var::INVALIDATE_SEQ);
                    let seen = self.load(at, order);
                    self.hands[me].sequence_seen = seen;
                    return Mutated::Performed(Some(Reply { a: seen, b: 0, c: 0 }));
                }
                Some(Reply { a: self.hands[me].sequence_seen, b: 0, c: 0 })
            }
            (Mutation::StaleRecheck, Op::Load(Var::IN_PROGRESS | Var::ACTIVE_INVALIDATIONS, _)) => DONE,
            (Mutation::OmitRcu, Op::RcuLock | Op::RcuUnlock) | (Mutation::OmitGrace, Op::SynchronizeRcu) => DONE,
            (Mutation::OmitGrace, Op::CallRcu(frames)) => return self.instead(Op::Free(frames)),
            (Mutation::OmitLock, Op::Lock(LockId::MMU, _) | Op::Unlock(LockId::MMU))
            | (Mutation::OmitFence, Op::Fence(_)) => DONE,
            (Mutation::RelaxedOrder, Op::Write(at, word, Order::Synchronizing)) => {
                return self.instead(Op::Write(at, word, Order::Relaxed));
            }
            (Mutation::RelaxedOrder, Op::Store(var, value, Order::Synchronizing)) => {
                return self.instead(Op::Store(var, value, Order::Relaxed));
            }
            (Mutation::RelaxedOrder, Op::Load(var, Order::Synchronizing)) => {
                return self.instead(Op::Load(var, Order::Relaxed));
            }
            _ => return Mutated::No,
        };
        self.evaluations.count_mutated();
        Mutated::Performed(instead)
    }

    /// Takes account of what an operation that goes wrong would have done, and of whether anybody could have told the difference.
    fn imagine(&mut self, mutation: Mutation, op: Op) {
        let me = self.me();
        let others = |lab: &Self, is: fn(&Imagined) -> bool| {
            lab.hands.iter().enumerate().any(|(number, hand)| number != me && is(&hand.imagined))
        };
        let matters = match (mutation, op) {
            (Mutation::OmitFlush | Mutation::LateFlush, Op::Flush(_)) => self.guests.iter().any(Guest::has_run),
            (Mutation::PlainStore, Op::Cmpxchg(at, old, _)) => self.words.peek(at) != old,
            (Mutation::PlainStore, Op::Run(run)) => {
                matches!(run.atomicity, Atomicity::IfStill(old) if self.words.peek(run.at) != old)
                    || self.guests.iter().any(Guest::runs)
            }
            (Mutation::OmitRcu, Op::RcuLock | Op::RcuUnlock) => {
                let reading = &mut self.hands[me].imagined.reading;
                *reading = if op == Op::RcuLock { *reading + 1 } else { reading.saturating_sub(1) };
                false
            }
            (Mutation::OmitRcu, Op::CallRcu(_) | Op::SynchronizeRcu) => others(self, |hand| hand.reading > 0),
            (Mutation::OmitGrace, Op::CallRcu(_) | Op::SynchronizeRcu) => {
                self.hands.iter().enumerate().any(|(number, hand)| number != me && hand.rcu_depth > 0)
            }
            (Mutation::OmitLock, Op::Lock(LockId::MMU, mode)) => {
                self.hands[me].imagined.holding = Some(mode);
                match mode {
                    LockMode::Write => others(self, |hand| hand.holding.is_some()),
                    LockMode::Read => others(self, |hand| hand.holding == Some(LockMode::Write)),
                }
            }
            (Mutation::OmitLock, Op::Unlock(LockId::MMU)) => {
                self.hands[me].imagined.holding = None;
                false
            }
            (
                Mutation::StaleRecheck,
                Op::Load(var @ (Var::INVALIDATE_SEQ | Var::IN_PROGRESS | Var::ACTIVE_INVALIDATIONS), _),
            )
            | (Mutation::RelaxedOrder, Op::Load(var, Order::Synchronizing)) => {
                self.imagined.loads.push((me, self.var(var)));
                false
            }
            (Mutation::RelaxedOrder, Op::Store(var, _, Order::Synchronizing)) => {
                self.imagined.stores.push((me, self.var(var)));
                false
            }
            (Mutation::RelaxedOrder, Op::Write(at, _, Order::Synchronizing)) => {
                self.imagined.stores.push((me, at));
                false
            }
            // What a fence orders is not known: it counts as soon as somebody else is there.
            (Mutation::OmitFence, Op::Fence(_)) => self.hands.len() > 1,
            _ => false,
        };
        if matters {
            self.evaluations.count_mattering();
        }
    }

    /// An actor reads a word.
    pub(crate) fn imagine_read(&mut self, at: Hpa) {
        if self.limits.mutation == Some(Mutation::RelaxedOrder) {
            let read = (self.me(), at);
            self.imagined.reads.push(read);
        }
    }

    /// An execution has ended: whether somebody could have told that accesses were ordered otherwise.
    pub(crate) fn count_imagined(&mut self) {
        let written = |&(me, at): &(usize, Hpa)| {
            let index = self.words.index_of(at);
            let log = self.words.log().iter().skip(self.start as usize);
            log.into_iter().any(|write| usize::from(write.agent) != me && index.wrapping_sub(write.at) < write.len)
        };
        let read = |&(me, at): &(usize, Hpa)| self.imagined.reads.iter().any(|&(who, place)| who != me && place == at);
        let matters = self.imagined.loads.iter().any(written) || self.imagined.stores.iter().any(read);
        if matters {
            self.evaluations.count_mattering();
        }
        self.imagined.clear();
    }

    /// Performs another operation, which is not one that goes wrong.
    fn instead(&mut self, op: Op) -> Mutated {
        self.evaluations.count_mutated();
        Mutated::Performed(self.execute(op))
    }

    fn holds_any(&self, me: usize) -> bool {
        self.locks.iter().any(|lock| lock.held_by(me))
    }

    /// Fault handlers look again with `mmu_lock` held, refreshers of a gfn_to_pfn_cache with its reader-writer lock; the mutex around a
    /// refresh does not tell one look from the other.
    fn holds_rwlock(&self, me: usize) -> bool {
        self.locks.iter().any(|lock| lock.kind == LockKind::ReadWrite && lock.held_by(me))
    }
}

fn everything(flush: Flush) -> Flush {
    Flush { scope: FlushScope::Vm, walk_caches: WalkCaches::Drop, ..flush }
}
