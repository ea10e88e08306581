//! Host processors that several actors share.
//!
//! An actor has a processor of its own unless it says otherwise: vCPU threads are pinned, and experiments have few host threads.
//! Where it matters who runs where - kernel workers, a task that must not wait - a processor is a lock: whoever holds it runs, the others
//! queue first come first served, and the holder gives it up where it reschedules. That is a kernel without full preemption:
//! the wait for a processor is the longest stretch of its holder without `cond_resched`.

use super::actor::ActorState;
use super::op::{LockId, LockMode};
use super::world::{Performed, World};
use crate::arch::Arch;

impl<A: Arch> World<A> {
    /// Whether an actor should give way: 2 when its time slice is over or somebody waits for the processor that it shares, 1 when somebody
    /// waits for `lock` only, else 0.
    #[inline]
    pub(super) fn should_give_way(&self, lock: LockId, actor: &ActorState) -> u64 {
        let wanted = |lock: LockId| self.locks[lock.0 as usize].is_contended();
        if self.slice_is_over(actor) || actor.processor.is_some_and(wanted) {
            return 2;
        }
        u64::from(wanted(lock))
    }

    /// The actor has taken the lock that stands for its processor, and gives it away wherever it reschedules.
    pub(super) fn occupy(processor: LockId, actor: &mut ActorState) {
        actor.processor = Some(processor);
        actor.start_slice();
    }

    /// The actor leaves the processor that it shares.
    pub(super) fn vacate(&mut self, actor: &mut ActorState) -> Performed {
        match actor.processor.take() {
            Some(processor) => self.unlock(processor, actor),
            None => Performed::Done(Default::default()),
        }
    }

    /// `schedule()`: another task of the same processor runs first if one waits.
    pub(super) fn reschedule(&mut self, actor: &mut ActorState) -> Performed {
        self.counters.reschedules += 1;
        actor.breathe();
        actor.now += self.costs.reschedule;
        actor.start_slice();
        match actor.processor {
            Some(processor) if self.locks[processor.0 as usize].is_contended() => {
                self.unlock(processor, actor);
                let lock = &mut self.locks[processor.0 as usize];
                if let Some(at) = lock.acquire(actor.id, LockMode::Write, actor.now, self.costs.lock()) {
                    actor.now = at;
                    return Performed::Done(Default::default());
                }
                actor.asleep = true;
                Performed::Blocked
            }
            _ => Performed::Done(Default::default()),
        }
    }
}
