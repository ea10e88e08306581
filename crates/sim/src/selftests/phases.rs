//! Iterations of a test: the main thread starts one, every vCPU's thread does its share and says so, the main thread goes on.
//!
//! Models the `iteration` counters of the memstress tests, with sleeping instead of spinning, so that waiting costs nobody
//! anything. Holds no lock.

use mmu_core::{Cycles, Format};

use crate::arch::Arch;
use crate::engine::{Host, Sim, Var, WaitQueue, Wake};

/// The counters and queues of one test.
#[derive(Clone, Copy, Debug)]
pub struct Phases {
    iteration: Var,
    pending: Var,
    started: WaitQueue,
    ended: WaitQueue,
    threads: u64,
}

impl Phases {
    /// For as many threads as the simulation has vCPUs.
    pub fn new<A: Arch>(sim: &mut Sim<A>) -> Self {
        Self {
            iteration: sim.new_var(0),
            pending: sim.new_var(0),
            started: sim.new_wait_queue(),
            ended: sim.new_wait_queue(),
            threads: sim.vcpus() as u64,
        }
    }

    /// How many threads have not finished the current iteration: zero between two. May be watched by others.
    pub fn pending(&self) -> Var {
        self.pending
    }

    /// The main thread's side: starts the next iteration.
    pub async fn start<F: Format>(&self, host: &Host<F>) {
        host.store(self.pending, self.threads).await;
        let iteration = host.load(self.iteration).await;
        host.store_release(self.iteration, iteration + 1).await;
        host.wake_up(self.started, Wake::All).await;
    }

    /// The main thread's side: waits until every thread has finished.
    pub async fn finished<F: Format>(&self, host: &Host<F>) {
        loop {
            host.prepare_to_wait(self.ended).await;
            if host.load_acquire(self.pending).await == 0 {
                break host.finish_wait(self.ended).await;
            }
            host.schedule(self.ended).await;
        }
    }

    /// The main thread's side: one whole iteration; how long it took.
    pub async fn run<F: Format>(&self, host: &Host<F>) -> Cycles {
        let begun = host.now().await;
        self.start(host).await;
        self.finished(host).await;
        host.now().await.since(begun)
    }

    /// A thread's side: waits until iteration `n` (1 is the first) has been started.
    pub async fn wait_for<F: Format>(&self, host: &Host<F>, n: u64) {
        loop {
            host.prepare_to_wait(self.started).await;
            if host.load_acquire(self.iteration).await >= n {
                break host.finish_wait(self.started).await;
            }
            host.schedule(self.started).await;
        }
    }

    /// A thread's side: this thread has done its share of the iteration.
    pub async fn done<F: Format>(&self, host: &Host<F>) {
        if host.add(self.pending, -1).await == 0 {
            host.wake_up(self.ended, Wake::All).await;
        }
    }
}
