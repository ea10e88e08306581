//! What a protocol's shared state is made on before a run begins: a timed simulation, or an exploration.

use mmu_core::{Cycles, Format, Hpa};

use super::host::Host;
use super::lock::LockKind;
use super::op::{Frames, LockId, Var, VcpuId, WaitQueue};
use super::sim::{ActorFuture, Sim};
use crate::arch::Arch;

/// Makes variables, locks, queues and actors before a run.
pub trait Bed {
    /// The second-stage format.
    type Format: Format;

    /// Makes a shared variable.
    fn new_var(&mut self, initial: u64) -> Var;
    /// Makes a lock.
    fn new_lock(&mut self, kind: LockKind) -> LockId;
    /// Makes a wait queue.
    fn new_wait_queue(&mut self) -> WaitQueue;
    /// Allocates words of zeros in host memory, or `None` when the table pool is exhausted.
    fn alloc_words(&mut self, words: u64) -> Option<Frames>;
    /// The VM's root.
    fn root(&self) -> Hpa;
    /// How many vCPUs the VM has.
    fn vcpus(&self) -> usize;
    /// Starts a host actor at `at`; explorations know no time and start it at once.
    fn spawn_actor(&mut self, name: &'static str, at: Cycles, start: impl FnOnce(Host<Self::Format>) -> ActorFuture);
    /// Starts the thread of a vCPU.
    fn spawn_thread(&mut self, vcpu: VcpuId, start: impl FnOnce(Host<Self::Format>) -> ActorFuture);
}

impl<A: Arch> Bed for Sim<A> {
    type Format = A::Two;

    fn new_var(&mut self, initial: u64) -> Var {
        Sim::new_var(self, initial)
    }
    fn new_lock(&mut self, kind: LockKind) -> LockId {
        Sim::new_lock(self, kind)
    }
    fn new_wait_queue(&mut self) -> WaitQueue {
        Sim::new_wait_queue(self)
    }
    fn alloc_words(&mut self, words: u64) -> Option<Frames> {
        Sim::alloc_words(self, words)
    }
    fn root(&self) -> Hpa {
        self.world().root()
    }
    fn vcpus(&self) -> usize {
        Sim::vcpus(self)
    }
    fn spawn_actor(&mut self, name: &'static str, at: Cycles, start: impl FnOnce(Host<A::Two>) -> ActorFuture) {
        self.spawn(name, at, start);
    }
    fn spawn_thread(&mut self, vcpu: VcpuId, start: impl FnOnce(Host<A::Two>) -> ActorFuture) {
        self.spawn_vcpu(vcpu, start);
    }
}
