//! A kernel workqueue: work that is done later, by somebody else, on some processor.
//!
//! Models `alloc_workqueue`, `queue_work` and `flush_workqueue` as far as they decide who pays for a root zap. Workers are actors that
//! occupy host processors (see [`Host::occupy`]). A *bound* worker runs on the processor that queued the work; an *unbound* one wherever,
//! here round robin, so that the affinity and the priority of who queued it are lost, and one caller can keep every processor busy
//! (X21, the reason why 0df9dab891ff took the zap workers out again in 6.6).
//!
//! Locking: the list of items is plain data under the pool's lock; the number of items not finished is a variable, decremented with full
//! ordering before a flusher is woken, so that who sees zero sees what the work did. Flushes and frees nothing itself.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use mmu_core::{Cycles, Format};
use serde::{Deserialize, Serialize};

use crate::engine::{ActorFuture, Bed, Host, LockId, LockKind, LockMode, Var, WaitQueue, Wake, Work};

/// Where queued work runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Binding {
    /// On the processor that queued it.
    Bound,
    /// On any (`WQ_UNBOUND`).
    Unbound,
}

/// How urgent a worker is against other tasks of its processor.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkerPriority {
    /// It gives the processor away wherever it reschedules and somebody waits.
    Normal,
    /// It keeps the processor until the work is done (`WQ_HIGHPRI` against ordinary tasks).
    High,
}

/// A workqueue's properties.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkqueueSpec {
    /// Where work runs.
    pub binding: Binding,
    /// How urgent it is.
    pub priority: WorkerPriority,
    /// Host processors, each with one worker; at least one.
    pub processors: u32,
}

impl WorkqueueSpec {
    /// What KVM allocated for zaps in 5.18: unbound, ordinary priority; on four processors.
    pub const KVM_5_18: WorkqueueSpec =
        WorkqueueSpec { binding: Binding::Unbound, priority: WorkerPriority::Normal, processors: 4 };
}

/// A host processor by number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ProcessorId(pub u32);

/// What a worker runs.
pub type WorkItem<F> = Box<dyn FnOnce(Host<F>) -> Pin<Box<dyn Future<Output = ()>>>>;

struct Queued<F> {
    item: WorkItem<F>,
    processor: ProcessorId,
}

struct Pool<F> {
    spec: WorkqueueSpec,
    /// Guards `items` and `next`.
    lock: LockId,
    /// Idle workers.
    idle: WaitQueue,
    /// Who waits for everything to be done.
    flushers: WaitQueue,
    /// Items queued and not finished.
    unfinished: Var,
    /// Set when workers are to end.
    stop: Var,
    /// The locks that stand for processors.
    processors: Vec<LockId>,
    items: RefCell<VecDeque<Queued<F>>>,
    next: Cell<u32>,
}

/// A workqueue. Cloning gives another handle to the same one.
pub struct Workqueue<F>(Rc<Pool<F>>);

impl<F> Clone for Workqueue<F> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<F> fmt::Debug for Workqueue<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workqueue").field("spec", &self.0.spec).finish_non_exhaustive()
    }
}

impl<F: Format> Workqueue<F> {
    /// Makes a workqueue and starts its workers. They run until [`stop`](Self::stop): a run in which nobody stops them ends in a
    /// deadlock of idle workers.
    pub fn start(sim: &mut impl Bed<Format = F>, spec: WorkqueueSpec) -> Self {
        let processors = (0..spec.processors.max(1)).map(|_| sim.new_lock(LockKind::Spin)).collect();
        let queue = Self(Rc::new(Pool {
            spec,
            lock: sim.new_lock(LockKind::Spin),
            idle: sim.new_wait_queue(),
            flushers: sim.new_wait_queue(),
            unfinished: sim.new_var(0),
            stop: sim.new_var(0),
            processors,
            items: RefCell::new(VecDeque::new()),
            next: Cell::new(0),
        }));
        for number in 0..spec.processors.max(1) {
            let queue = queue.clone();
            sim.spawn_actor("worker", Cycles::ZERO, move |host| -> ActorFuture {
                Box::pin(async move { queue.work(&host, ProcessorId(number)).await })
            });
        }
        queue
    }

    /// The lock that stands for a processor, for tasks that share it with the workers; numbers wrap around.
    pub fn processor(&self, number: ProcessorId) -> LockId {
        self.0.processors[number.0 as usize % self.0.processors.len()]
    }

    /// `queue_work`: somebody does this later; `from` is the processor that the caller runs on.
    pub async fn queue_work(&self, host: &Host<F>, from: ProcessorId, item: WorkItem<F>) {
        host.add(self.0.unfinished, 1).await;
        host.lock(self.0.lock, LockMode::Write).await;
        let processor = match self.0.spec.binding {
            Binding::Bound => ProcessorId(from.0 % self.0.processors.len() as u32),
            Binding::Unbound => {
                let next = self.0.next.get();
                self.0.next.set((next + 1) % self.0.processors.len() as u32);
                ProcessorId(next)
            }
        };
        self.0.items.borrow_mut().push_back(Queued { item, processor });
        host.unlock(self.0.lock).await;
        host.wake_up(self.0.idle, Wake::All).await;
    }

    /// `flush_workqueue`: waits until nothing that is queued or running now is left. Work queued meanwhile is waited for too.
    pub async fn flush(&self, host: &Host<F>) {
        self.wait_for(host, self.0.flushers, |left| left == 0, self.0.unfinished).await;
    }

    /// `destroy_workqueue`: everything queued is done first, then the workers end.
    pub async fn stop(&self, host: &Host<F>) {
        self.flush(host).await;
        host.store_release(self.0.stop, 1).await;
        host.wake_up(self.0.idle, Wake::All).await;
    }

    /// Sleeps until a variable says so; tests it after entering the queue, so that no wake-up is missed.
    async fn wait_for(&self, host: &Host<F>, queue: WaitQueue, done: impl Fn(u64) -> bool, var: Var) {
        while !done(host.load_acquire(var).await) {
            host.prepare_to_wait(queue).await;
            if done(host.load_acquire(var).await) {
                host.finish_wait(queue).await;
                return;
            }
            host.schedule(queue).await;
        }
    }

    /// Takes the first item that this processor may run.
    async fn take(&self, host: &Host<F>, processor: ProcessorId) -> Option<WorkItem<F>> {
        host.lock(self.0.lock, LockMode::Write).await;
        let found = {
            let mut items = self.0.items.borrow_mut();
            let mine = items.iter().position(|queued| queued.processor == processor);
            mine.and_then(|i| items.remove(i))
        };
        host.unlock(self.0.lock).await;
        found.map(|queued| queued.item)
    }

    /// `worker_thread`
    async fn work(&self, host: &Host<F>, processor: ProcessorId) {
        loop {
            if let Some(item) = self.take(host, processor).await {
                self.run_item(host, processor, item).await;
                continue;
            }
            if host.load_acquire(self.0.stop).await != 0 {
                return;
            }
            host.prepare_to_wait(self.0.idle).await;
            if let Some(item) = self.take(host, processor).await {
                host.finish_wait(self.0.idle).await;
                self.run_item(host, processor, item).await;
            } else if host.load_acquire(self.0.stop).await != 0 {
                host.finish_wait(self.0.idle).await;
                return;
            } else {
                host.schedule(self.0.idle).await;
            }
        }
    }

    async fn run_item(&self, host: &Host<F>, processor: ProcessorId, item: WorkItem<F>) {
        let lock = self.processor(processor);
        match self.0.spec.priority {
            WorkerPriority::Normal => host.occupy(lock).await,
            WorkerPriority::High => host.lock(lock, LockMode::Write).await,
        }
        host.spend(Work::Dispatch).await;
        item(host.clone()).await;
        match self.0.spec.priority {
            WorkerPriority::Normal => host.vacate().await,
            WorkerPriority::High => host.unlock(lock).await,
        }
        if host.add(self.0.unfinished, -1).await == 0 {
            host.wake_up(self.0.flushers, Wake::All).await;
        }
    }
}
