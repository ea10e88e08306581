//! The timed stage: operations act on the world at once and cost cycles.

use std::cell::RefCell;

use mmu_core::Hpa;

use super::actor::ActorState;
use super::counters::HostCounters;
use super::host::Stage;
use super::op::{Op, Reply, VcpuId};
use super::probe::{Probe, Probed};
use super::vcpu::{Exit, Vcpu};
use super::world::{Horizon, Performed, World};
use crate::arch::Arch;
use crate::workload::GuestWork;

/// What operations act on, and the actor that is being polled.
pub(super) struct Timed<A: Arch> {
    pub(super) world: World<A>,
    pub(super) vcpus: Vec<Vcpu<A>>,
    pub(super) actor: ActorState,
    pub(super) horizon: Horizon,
    /// What the polled actor waits for, or its answer when it is polled again.
    pub(super) parked: Parked,
}

#[derive(Clone, Copy)]
pub(super) enum Parked {
    /// For its turn: the operation is done, this is the answer.
    Turn(Reply),
    /// For somebody else.
    Event,
}

impl<A: Arch> Stage for RefCell<Timed<A>> {
    #[inline]
    fn perform(&self, op: Op) -> Option<Reply> {
        self.borrow_mut().perform(op)
    }

    #[inline]
    fn read(&self, at: Hpa) -> Option<u64> {
        self.borrow_mut().read(at)
    }

    fn reply(&self) -> Reply {
        self.borrow().reply()
    }

    fn exit(&self, vcpu: VcpuId) -> Exit {
        self.borrow().vcpus[vcpu.0].exit
    }

    fn counters(&self) -> HostCounters {
        self.borrow().world.counters
    }

    fn assign(&self, vcpu: VcpuId, work: GuestWork) {
        self.borrow_mut().vcpus[vcpu.0].assign(work.stream(vcpu.0 as u64));
    }

    fn ask(&self, vcpu: VcpuId, probe: Probe) {
        self.borrow_mut().vcpus[vcpu.0].give(probe);
    }

    fn probed(&self, vcpu: VcpuId) -> Option<Probed> {
        self.borrow().vcpus[vcpu.0].probing.result()
    }
}

impl<A: Arch> Timed<A> {
    #[inline]
    pub(super) fn perform(&mut self, op: Op) -> Option<Reply> {
        let performed = self.world.perform(op, &mut self.actor, self.horizon, &mut self.vcpus);
        if self.world.disturbed {
            self.come_closer();
        }
        match performed {
            Performed::Done(reply) if self.actor.now < self.horizon.until => return Some(reply),
            Performed::Done(reply) => self.parked = Parked::Turn(reply),
            Performed::Blocked => self.parked = Parked::Event,
        }
        None
    }

    #[inline]
    fn read(&mut self, at: Hpa) -> Option<u64> {
        let word = self.world.visit_word(at, &mut self.actor);
        if self.actor.now < self.horizon.until {
            return Some(word);
        }
        self.parked = Parked::Turn(Reply::one(word));
        None
    }

    pub(super) fn reply(&self) -> Reply {
        match self.parked {
            Parked::Turn(reply) => reply,
            Parked::Event => Reply::default(),
        }
    }

    /// What the actor has just done may have given somebody an earlier moment than anybody had.
    fn come_closer(&mut self) {
        self.world.disturbed = false;
        let woken = self.world.woken.iter().map(|granted| granted.at).min();
        self.horizon.others = woken.map_or(self.horizon.others, |woken| self.horizon.others.min(woken));
        for moment in [woken, self.world.rcu.next()].into_iter().flatten() {
            self.horizon.until = self.horizon.until.min(moment);
        }
    }
}
