//! How the host reaches vCPUs: flushes, kicks, entering the guest, and waiting for answers.

use mmu_core::tlb::{Invalidate, TableCaches};
use mmu_core::{Cycles, Delivery, Flush, Format, Reach};

use super::actor::ActorState;
use super::flight::{Flight, FlightId};
use super::lock::{ActorId, Granted};
use super::op::{Reply, VcpuId};
use super::requests::What;
use super::vcpu::{Exit, ExitReason, Mode, Vcpu};
use super::world::{Performed, World};
use crate::arch::Arch;

impl<A: Arch> World<A> {
    pub(super) fn flush(&mut self, flush: Flush, actor: &mut ActorState, vcpus: &mut [Vcpu<A>]) -> Performed {
        let plan = self.arch.two().flush_plan(flush);
        self.counters.remote_flushes += u64::from(plan.delivery != Delivery::LocalInstruction);
        match plan.delivery {
            Delivery::LocalInstruction => {
                actor.now += self.costs.invalidate_local.times(plan.repeats);
                // The processor of a vCPU's thread is that vCPU's.
                if let Some(vcpu) = vcpus.iter_mut().find(|vcpu| vcpu.thread == Some(actor.id)) {
                    vcpu.flush_here(plan.covers);
                }
                Performed::Done(Reply::default())
            }
            Delivery::Interrupt => {
                actor.now += self.costs.invalidate_local;
                self.launch(actor, vcpus, |id, at, vcpu| vcpu.interrupt_for_flush(id, at, plan.covers))
            }
            Delivery::Broadcast => {
                self.counters.broadcasts += plan.repeats;
                let asked = actor.now + self.costs.broadcast_issue.times(plan.repeats);
                actor.now = self.broadcast(plan.repeats, actor.now);
                for vcpu in vcpus.iter_mut() {
                    vcpu.receive_broadcast(actor.now, plan.covers);
                }
                self.counters.flush_wait += actor.now.since(asked);
                Performed::Done(Reply::default())
            }
        }
    }

    /// Sends an invalidation for which nobody waits yet; returns when it is done. Where there is no broadcast (x86) it is taken for one that hardware delivers all the same.
    pub(super) fn invalidate(
        &mut self,
        what: Invalidate,
        tables: TableCaches,
        reach: Reach,
        actor: &mut ActorState,
        vcpus: &mut [Vcpu<A>],
    ) -> Cycles {
        if reach == Reach::Local {
            actor.now += self.costs.invalidate_local;
            if let Some(vcpu) = vcpus.iter_mut().find(|vcpu| vcpu.thread == Some(actor.id)) {
                vcpu.receive_invalidation(actor.now, what, tables);
            }
            return actor.now;
        }
        self.counters.remote_flushes += 1;
        self.counters.broadcasts += 1;
        let done = self.broadcast(1, actor.now);
        actor.now += self.costs.broadcast_issue;
        for vcpu in vcpus.iter_mut() {
            vcpu.receive_invalidation(done, what, tables);
        }
        done
    }

    /// Sends broadcast invalidations at `now`; returns when the barrier behind them is complete, which is when every processor has done
    /// them. The interconnect is busy with each for a share of its time, and another sender's wait meanwhile.
    fn broadcast(&mut self, repeats: u64, now: Cycles) -> Cycles {
        let start = now.max(self.upkeep.interconnect_free);
        let takes = self.broadcast_cost(repeats);
        self.upkeep.interconnect_free = start + self.costs.broadcast_share.of(takes);
        start + takes
    }

    /// What broadcast invalidations take while nobody else sends any.
    fn broadcast_cost(&self, repeats: u64) -> Cycles {
        self.costs.broadcast_issue.times(repeats) + self.costs.broadcast_barrier.max(self.costs.broadcast_latency)
    }

    /// Whether a flush of this kind would have to wait for another sender's.
    pub(super) fn waits_for_interconnect(&self, flush: Flush, now: Cycles) -> bool {
        self.arch.two().flush_plan(flush).delivery == Delivery::Broadcast && self.upkeep.interconnect_free > now
    }

    /// What [`flush`](Self::flush) costs its sender while no vCPU runs guest code.
    pub(super) fn unanswered_flush_cost(&self, flush: Flush) -> Cycles {
        let plan = self.arch.two().flush_plan(flush);
        match plan.delivery {
            Delivery::LocalInstruction => self.costs.invalidate_local.times(plan.repeats),
            Delivery::Interrupt => self.costs.invalidate_local,
            Delivery::Broadcast => self.broadcast_cost(plan.repeats),
        }
    }

    /// Counts `n` such flushes, and leaves them to the vCPUs for their next entry.
    pub(super) fn count_unanswered_flushes(&mut self, flush: Flush, n: u64, vcpus: &mut [Vcpu<A>]) {
        let plan = self.arch.two().flush_plan(flush);
        match plan.delivery {
            Delivery::LocalInstruction => return,
            Delivery::Interrupt => {}
            Delivery::Broadcast => {
                self.counters.broadcasts += plan.repeats * n;
                let waits = self.broadcast_cost(plan.repeats).since(self.costs.broadcast_issue.times(plan.repeats));
                self.counters.flush_wait += waits.times(n);
            }
        }
        self.counters.remote_flushes += n;
        for vcpu in vcpus.iter_mut().filter(|vcpu| vcpu.mode != Mode::Finished) {
            vcpu.note(What::Flush(plan.covers));
        }
    }

    /// The thread of a vCPU enters the guest, with whatever was asked of the vCPU meanwhile.
    pub(super) fn enter_guest(&mut self, id: VcpuId, actor: &mut ActorState, vcpus: &mut [Vcpu<A>]) -> Performed {
        let vcpu = &mut vcpus[id.0];
        vcpu.thread = Some(actor.id);
        actor.breathe();
        if std::mem::take(&mut vcpu.kicked) {
            // `kvm_request_pending` with interrupts off: what was asked since the thread looked last comes first.
            vcpu.exit = Exit { reason: ExitReason::Kicked, at: actor.now };
            return Performed::Done(Reply::default());
        }
        actor.asleep = true;
        if vcpu.mode == Mode::Fresh {
            // It comes out of its creation as if it had been entered just before.
            vcpu.clock = actor.now;
            vcpu.mode = Mode::Guest;
            self.entered = Some(vcpu.clock);
            return Performed::Blocked;
        }
        let left = vcpu.clock;
        vcpu.clock = actor.now + self.costs.entry;
        self.entered = Some(vcpu.clock);
        if vcpu.wants_reload() {
            vcpu.load_root(self.root, self.root_generation);
        }
        vcpu.enter(&self.costs);
        // A thread that waits for work, or for others, is not handling a fault.
        if matches!(vcpu.exit.reason, ExitReason::Fault(_)) {
            vcpu.account_exit(left, &self.costs);
        }
        Performed::Blocked
    }

    /// Interrupts every vCPU that runs guest code and waits for all of them.
    pub(super) fn launch(
        &mut self,
        actor: &mut ActorState,
        vcpus: &mut [Vcpu<A>],
        interrupt: impl Fn(FlightId, Cycles, &mut Vcpu<A>) -> bool,
    ) -> Performed {
        let id = FlightId(self.flights.len());
        let mut waiting = 0;
        for vcpu in vcpus.iter_mut() {
            let at = actor.now + self.costs.ipi_latency + self.costs.ipi_extra.times(waiting);
            if interrupt(id, at, vcpu) {
                waiting += 1;
            }
        }
        self.counters.ipis += waiting;
        if waiting == 0 {
            return Performed::Done(Reply::default());
        }
        self.flights.push(Flight { actor: actor.id, started: actor.now, waiting, last: actor.now });
        Performed::Blocked
    }

    /// Who sent a flight, and when.
    pub(super) fn sender(&self, id: FlightId) -> Option<(ActorId, Cycles)> {
        self.flights.get(id.0).map(|flight| (flight.actor, flight.started))
    }

    /// A vCPU has done what a flight asked of it.
    pub(crate) fn acknowledge(&mut self, id: FlightId, at: Cycles) {
        let ack = self.costs.ipi_ack;
        let Some(flight) = self.flights.get_mut(id.0) else { return };
        flight.last = flight.last.max(at);
        flight.waiting = flight.waiting.saturating_sub(1);
        if flight.waiting == 0 {
            let at = flight.last + ack;
            self.counters.flush_wait += at.since(flight.started);
            self.woken.push(Granted { actor: flight.actor, at });
        }
        // Numbers are reused only when nothing is in the air, so that no late acknowledgement meets a new flight.
        if self.flights.iter().all(|flight| flight.waiting == 0) {
            self.flights.clear();
        }
    }
}
