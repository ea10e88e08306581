//! Locks, rescheduling, and how the host reaches vCPUs: flushes, kicks, entering the guest, and waiting for answers.

use mmu_core::{Delivery, Flush, FlushScope, Format, Reach};

use super::decision::Kind;
use super::invariant::Invariant;
use super::lab::{Lab, NO_TIME, Pending};
use super::limits::Hardware;
use super::memory::Sight;
use super::perform::DONE;
use super::traced::Happened;
use crate::arch::Arch;
use crate::engine::{Exit, ExitReason, Fence, LockId, LockKind, LockMode, Op, Reply, VcpuId, WaitQueue, Wake};

/// Something asked of a vCPU that runs guest code.
#[derive(Clone, Copy, PartialEq, Hash, Debug)]
pub(crate) struct Request {
    pub(crate) what: What,
    pub(crate) asked_by: usize,
}

#[derive(Clone, Copy, PartialEq, Hash, Debug)]
pub(crate) enum What {
    Flush(Flush),
    Reload,
    Leave,
}

impl What {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            What::Flush(_) => "flush",
            What::Reload => "reload of the root",
            What::Leave => "kick",
        }
    }
}

/// A lock, and who holds it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lock {
    pub(crate) kind: LockKind,
    pub(crate) writer: Option<u8>,
    /// Readers by actor; one may hold it several times.
    pub(crate) readers: Vec<u8>,
    /// What those who gave it back have seen.
    pub(crate) view: Sight,
}

impl Lock {
    // PERF: emptied in place; its vectors are those of the last execution.
    pub(crate) fn reset(&mut self) {
        self.kind = LockKind::Spin;
        self.writer = None;
        self.readers.clear();
        self.view.clear();
    }
    pub(crate) fn admits(&self, mode: LockMode) -> bool {
        let exclusive = mode == LockMode::Write || self.kind == LockKind::Spin;
        self.writer.is_none() && (!exclusive || self.readers.is_empty())
    }
    pub(crate) fn held_by(&self, actor: usize) -> bool {
        self.writer == Some(actor as u8) || self.readers.contains(&(actor as u8))
    }
}

impl<A: Arch> Lab<A> {
    // ---- locks and scheduling ----

    pub(crate) fn take_lock(&mut self, me: usize, lock: LockId, mode: LockMode) {
        let held = &mut self.locks[lock.0 as usize];
        if mode == LockMode::Write || held.kind == LockKind::Spin {
            held.writer = Some(me as u8);
        } else {
            held.readers.push(me as u8);
        }
        let view = std::mem::take(&mut held.view);
        self.join_view(me, &view);
        self.locks[lock.0 as usize].view = view;
    }

    pub(crate) fn give_lock(&mut self, me: usize, lock: LockId) {
        let held = self.locks[lock.0 as usize].held_by(me);
        self.hold(Invariant::O3, held, |_| "a lock is given back that is not held".to_owned());
        if lock == LockId::MMU {
            self.check_debt();
        }
        let Self { locks, hands, .. } = self;
        let lock = &mut locks[lock.0 as usize];
        if lock.writer == Some(me as u8) {
            lock.writer = None;
        } else if let Some(reader) = lock.readers.iter().position(|&reader| reader == me as u8) {
            lock.readers.swap_remove(reader);
        }
        // Readers give it back side by side: who takes it next sees what all of them have seen.
        lock.view.join(&hands[me].view.seen);
    }

    pub(crate) fn is_wanted(&self, me: usize, lock: LockId) -> bool {
        let wants =
            |hand: &super::lab::Hand| matches!(hand.pending, Pending::Op(Op::Lock(wanted, _)) if wanted == lock);
        self.hands.iter().enumerate().any(|(number, hand)| number != me && wants(hand))
    }

    pub(crate) fn need_resched(&mut self, me: usize, lock: LockId) -> u64 {
        let contended = self.is_wanted(me, lock);
        let processor = self.hands[me].processor.is_some_and(|processor| self.is_wanted(me, processor));
        let mut alternatives = [0; 3];
        let mut count = 1;
        if contended {
            alternatives[count] = 1;
            count += 1;
        }
        if self.ticks > 0 || processor {
            alternatives[count] = 2;
            count += 1;
        }
        // Where waits are bounded, who is told that somebody waits believes it.
        let sure = usize::from(self.limits.wait.is_some() && (contended || processor));
        let answer = alternatives[sure + self.pick(Kind::Resched, count - sure)];
        if answer == 2 && !processor {
            self.ticks -= 1;
        }
        if answer != 0 {
            self.check_progress(me);
        }
        answer
    }

    pub(crate) fn reschedule(&mut self, me: usize) -> Option<Reply> {
        self.give_others_a_turn(me);
        if let Some(processor) = self.hands[me].processor
            && self.is_wanted(me, processor)
        {
            self.give_lock(me, processor);
            return self.wait(Pending::Op(Op::Lock(processor, LockMode::Write)));
        }
        DONE
    }

    pub(crate) fn wake(&mut self, queue: WaitQueue, whom: Wake) {
        for actor in self.queues.wake(queue, whom) {
            if self.hands[actor].pending == Pending::Asleep {
                self.hands[actor].pending = Pending::Awake;
            }
        }
    }

    // ---- translations ----

    pub(crate) fn flush(&mut self, flush: mmu_core::Flush) -> Option<Reply> {
        self.fence(Fence::Full);
        let plan = self.format.flush_plan(flush);
        self.tally.vm_flushes += u64::from(flush.scope == FlushScope::Vm);
        self.counters.remote_flushes += u64::from(plan.delivery != Delivery::LocalInstruction);
        self.check_cover(flush, plan.covers);
        let (me, now) = (self.me(), self.words.tick());
        if plan.delivery != Delivery::LocalInstruction {
            self.hands[me].flushing = Some(plan.covers);
            self.happened(Happened::FlushBegins(plan.covers));
        }
        match plan.delivery {
            Delivery::LocalInstruction => {
                if let Some(vcpu) = self.hands[me].vcpu {
                    self.guests[vcpu.0].invalidate(plan.covers, now);
                }
                DONE
            }
            Delivery::Interrupt => self.ask_everybody(|_| What::Flush(plan.covers)),
            Delivery::Broadcast => {
                let mut waiting = 0;
                for guest in &mut self.guests {
                    if guest.runs() {
                        guest.requests.push(Request { what: What::Flush(plan.covers), asked_by: me });
                        waiting += 1;
                    } else {
                        guest.invalidate(plan.covers, now);
                    }
                }
                self.fly(waiting)
            }
        }
    }

    pub(crate) fn fly(&mut self, waiting: u32) -> Option<Reply> {
        if waiting == 0 || self.limits.hardware == Hardware::AcknowledgesEarly {
            let me = self.me();
            self.flush_ends(me);
            self.check_invalidated(me);
            return DONE;
        }
        self.wait(Pending::Flight(waiting))
    }

    /// B2: who goes on behind an invalidation knows that everybody has made it.
    pub(crate) fn check_invalidated(&mut self, me: usize) {
        let left = self.guests.iter().position(|guest| {
            guest.requests.iter().any(|request| request.asked_by == me && matches!(request.what, What::Flush(_)))
        });
        self.hold(Invariant::B2, left.is_none(), |lab| {
            let vcpu = left.unwrap_or(0);
            format!("{} goes on, and vCPU {vcpu} has not made the invalidation that it waits for", lab.hands[me].name)
        });
    }

    pub(crate) fn ask_everybody(&mut self, what: impl Fn(usize) -> What) -> Option<Reply> {
        self.fence(Fence::Full);
        let (me, mut waiting) = (self.me(), 0);
        for (number, guest) in self.guests.iter_mut().enumerate() {
            if guest.runs() {
                guest.requests.push(Request { what: what(number), asked_by: me });
                waiting += 1;
            } else {
                // Out of the guest nothing can be used before it is entered again: noted, nobody waits.
                guest.note(what(number));
            }
        }
        self.fly(waiting)
    }

    /// What was asked of a vCPU is done there, and acknowledged.
    pub(crate) fn arrive(&mut self, vcpu: usize) {
        let now = self.words.tick();
        let Request { what, asked_by } = self.guests[vcpu].requests.remove(0);
        self.note(|_| format!("{}: done and acknowledged", what.name()));
        match what {
            What::Flush(flush) => self.guests[vcpu].invalidate(flush, now),
            What::Reload => {
                self.guests[vcpu].reload = true;
                self.leave(vcpu, ExitReason::Kicked);
            }
            What::Leave => self.leave(vcpu, ExitReason::Kicked),
        }
        self.evaluations.count(Invariant::T6);
        self.walks_are_seen(vcpu);
        if let Pending::Flight(left) = &mut self.hands[asked_by].pending {
            *left = left.saturating_sub(1);
        }
    }

    pub(crate) fn enter_guest(&mut self, id: VcpuId) -> Option<Reply> {
        // `smp_store_mb(vcpu->mode, IN_GUEST_MODE)` of Arm, `smp_mb__after_srcu_read_unlock` of x86, `ptesync` of POWER.
        self.fence(Fence::Full);
        let (me, now) = (self.me(), self.words.tick());
        let (root, generation) = (self.root, self.generation);
        self.hands[me].vcpu = Some(id);
        let guest = &mut self.guests[id.0];
        if std::mem::take(&mut guest.kicked) {
            guest.left = Exit { reason: ExitReason::Kicked, at: NO_TIME };
            return DONE;
        }
        if std::mem::take(&mut guest.reload) {
            guest.load_root(root, generation, now);
        }
        if let Some(owed) = guest.owed.take() {
            guest.invalidate(owed, now);
        }
        guest.enter(now);
        self.check_tag(id.0);
        self.check_relaxed(id.0);
        self.wait(Pending::Guest(id))
    }

    /// An exit and an acknowledgement are barriers: what the vCPU's walks wrote is seen by whoever waits for it.
    fn walks_are_seen(&mut self, vcpu: usize) {
        self.sc_view.join(&self.guests[vcpu].wrote);
    }

    pub(crate) fn leave(&mut self, vcpu: usize, reason: ExitReason) {
        self.walks_are_seen(vcpu);
        let guest = &mut self.guests[vcpu];
        if guest.runs() {
            guest.exit_with(reason);
            // What has not arrived yet is done before the guest is entered again, so nobody need wait for it.
            for request in std::mem::take(&mut guest.requests) {
                guest.note(request.what);
                if let Pending::Flight(left) = &mut self.hands[request.asked_by].pending {
                    *left = left.saturating_sub(1);
                }
            }
        }
    }

    pub(crate) fn check_cover(&mut self, asked: mmu_core::Flush, done: mmu_core::Flush) {
        let covers = match (asked.scope, done.scope) {
            (_, FlushScope::Vm) => true,
            (FlushScope::Vm, FlushScope::Range { .. }) => false,
            (FlushScope::Range { start, bytes, .. }, FlushScope::Range { start: from, bytes: much, .. }) => {
                from <= start && start.raw() + bytes <= from.raw() + much
            }
        };
        let everywhere = asked.reach == Reach::Local || done.reach == Reach::Everyone;
        self.hold(Invariant::B3, covers && everywhere, |_| format!("asked for {asked:?}, invalidated {done:?}"));
    }
}
