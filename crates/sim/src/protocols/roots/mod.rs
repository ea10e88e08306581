//! Roots of second-stage trees: who keeps them alive, who tears them down, and who may look at them meanwhile.
//!
//! A VM has a list of roots: the one that its vCPUs use, another one for system-management mode, and those that were invalidated and
//! are being torn down. Models `arch/x86/kvm/mmu/tdp_mmu.c` from 5.12 on, in four life cycles (see [`RootPolicy`]):
//!
//! | | Linux | kept alive by | last put | fast zap |
//! | --- | --- | --- | --- | --- |
//! | R1 | 5.12-5.17 | vCPUs | unlinks, zaps without yielding, frees | marks all, takes a reference on each; zaps and puts them under the read lock |
//! | R2 | 5.18-6.4 | vCPUs | marks invalid, reference back to 1, worker zaps and puts | marks, takes a reference, queues a worker for each; waits for all |
//! | R3 | 6.4/6.5-6.8 | the TDP MMU (one reference from creation to invalidation) and vCPUs | frees; on a valid root a bug | marks; zaps by itself under the read lock, puts the TDP MMU's reference |
//! | R4 | 6.9- | as R3 | as R3 | as R3, in passes of 4K, 2M, 1G, root; roots are found and left under the read lock |
//!
//! **Rules** (22b94c4b63eb, 8351779ce65f, efd995dae5eb, edbdb43fc96b, 0df9dab891ff): a root is on the list while it has references; an invalid root never
//! becomes valid again; readers treat 0/valid, 0/invalid and 1/invalid alike, that is, take no reference on them; writers may; a
//! reference is put only by who took it or was given it.
//!
//! **State**: reference count, invalid flag and to-be-zapped flag are variables, racing by design. The list itself is an RCU list: changed
//! under `tdp_mmu_pages_lock` (a lock made for it), looked at under `mmu_lock` or RCU; here it is plain data that is never held
//! across an operation.
//!
//! **Flush**: none when a root goes; whoever loads a root flushes its own processor first ([`Host::load_root`]). Unmapping flushes before it
//! drops `mmu_lock`. **Frees**: tables and roots by RCU.
//!
//! arm64 and POWER have one root per VM for its whole life; there the list has one entry, and everything but switching roots has
//! the same meaning.

mod every;
mod policy;
mod thread;
mod walks;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;

use mmu_core::{Cycles, Format, Hpa};
use serde::{Deserialize, Serialize};

pub use every::{Visited, VmRoots};
pub use policy::{
    DebtScope, InvalidRootFlush, LastPut, LifeCycle, ObsoleteTest, ReaderRoots, RootPage, RootPolicy, UnmapRoots,
    WalkerPut, ZapGift,
};
pub use thread::{RanTo, RootedVcpu, Step, thread};

use super::fault::FaultPolicy;
use super::workqueue::{ProcessorId, Workqueue};
use super::zap::{ZapLock, ZapPolicy, zap_root};
use crate::engine::{
    ActorFuture, Announced, Bed, Cmpxchg, Fence, Frames, Host, LockId, LockKind, LockMode, Var, VcpuId, WaitQueue, Wake,
};

/// An address space of the guest: x86 has two, ordinary memory and what system-management mode sees.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct AddressSpace(pub u8);

impl AddressSpace {
    /// What the guest sees ordinarily.
    pub const NORMAL: AddressSpace = AddressSpace(0);
    /// What it sees in system-management mode.
    pub const SMM: AddressSpace = AddressSpace(1);
}

/// A root. A value of this type is a pointer: what may change is in its variables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Root {
    /// Its place in the order of creation.
    pub serial: u32,
    /// Its table.
    pub table: Hpa,
    /// Whose addresses it translates.
    pub space: AddressSpace,
    /// `tdp_mmu_root_count`
    pub refcount: Var,
    /// `role.invalid`: not zero once it is not to be used any more.
    pub invalid: Var,
    /// `tdp_mmu_scheduled_root_to_zap`: the TDP MMU's reference waits for the invalidator (R3, R4).
    pub to_zap: Var,
}

struct Shared<F> {
    policy: RootPolicy,
    list: RefCell<Vec<Root>>,
    serial: Cell<u32>,
    /// `tdp_mmu_pages_lock`
    pages_lock: LockId,
    /// `KVM_REQ_MMU_FREE_OBSOLETE_ROOTS`, one for each vCPU.
    requests: Vec<Var>,
    /// Workers that zap (R2).
    zappers: Option<Workqueue<F>>,
    /// The root that every vCPU begins on.
    first: Root,
    /// Tasks that were started, and how many of them have ended.
    started: Cell<u64>,
    ended: Var,
    /// Who waits for them.
    waiting: WaitQueue,
    /// References put that nobody held, or put last on a valid root: what the kernel warns about.
    warnings: Cell<u32>,
}

/// The roots of a VM. Cloning gives another handle to the same list.
pub struct Roots<F>(Rc<Shared<F>>);

impl<F> Clone for Roots<F> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<F> fmt::Debug for Roots<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Roots").field("policy", &self.0.policy).field("list", &self.0.list).finish_non_exhaustive()
    }
}

/// References that the TDP MMU itself has to a new root.
fn own_references(life: LifeCycle) -> u64 {
    match life {
        LifeCycle::LastUserZaps | LifeCycle::WorkerZaps => 0,
        LifeCycle::InvalidatorZaps => 1,
    }
}

impl<F: Format> Roots<F> {
    /// Takes over the root that a VM was built with: it becomes the one of ordinary memory, and every vCPU has it loaded. R2 needs a
    /// workqueue.
    pub fn adopt(sim: &mut impl Bed<Format = F>, policy: RootPolicy, zappers: Option<Workqueue<F>>) -> Self {
        let table = sim.root();
        let vcpus = sim.vcpus();
        let first = Root {
            serial: 1,
            table,
            space: AddressSpace::NORMAL,
            refcount: sim.new_var(vcpus as u64 + own_references(policy.life)),
            invalid: sim.new_var(0),
            to_zap: sim.new_var(0),
        };
        Self(Rc::new(Shared {
            policy,
            list: RefCell::new(vec![first]),
            serial: Cell::new(1),
            pages_lock: sim.new_lock(LockKind::Spin),
            requests: (0..vcpus).map(|_| sim.new_var(0)).collect(),
            zappers,
            first,
            started: Cell::new(0),
            ended: sim.new_var(0),
            waiting: sim.new_wait_queue(),
            warnings: Cell::new(0),
        }))
    }

    /// The policy.
    pub fn policy(&self) -> &RootPolicy {
        &self.0.policy
    }

    /// Roots that are on the list now, oldest first.
    pub fn snapshot(&self) -> Vec<Root> {
        self.0.list.borrow().clone()
    }

    /// References put that nobody held, or put last on a valid root that the TDP MMU still owned: the kernel's warnings.
    pub fn warnings(&self) -> u32 {
        self.0.warnings.get()
    }

    // ---- references ----

    /// `kvm_tdp_mmu_get_root`: one more reference, unless there is none.
    pub async fn get(&self, host: &Host<F>, root: Root) -> bool {
        let mut count = host.load(root.refcount).await;
        while count != 0 {
            match host.cmpxchg_var(root.refcount, count, count + 1).await {
                Cmpxchg::Done => return true,
                Cmpxchg::Failed(now) => count = now,
            }
        }
        false
    }

    /// `kvm_tdp_mmu_put_root`: one reference less; the last one ends the root's life as the policy says. Caller holds `mmu_lock`, in
    /// the mode it names.
    pub async fn put(&self, host: &Host<F>, root: Root, held: ZapLock) {
        let left = host.add(root.refcount, -1).await;
        if left != 0 {
            self.warn_if(left == u64::MAX);
            return;
        }
        match self.0.policy.life {
            LifeCycle::LastUserZaps => {
                // Off the list first: nobody shall find it. From here on the notifier does not see it either.
                self.unlink(host, root).await;
                Box::pin(zap_root(host, root.table, &self.0.policy.last_zap(held))).await;
                self.free(host, root).await;
            }
            LifeCycle::WorkerZaps => {
                if host.xchg_var(root.invalid, 1).await == 0 {
                    host.announce(Announced::RootInvalid(root.table)).await;
                    // It was valid: nobody has zapped it. The reference given to the worker keeps it visible to the notifier.
                    host.store(root.refcount, 1).await;
                    self.schedule_zap(host, root).await;
                } else {
                    self.unlink(host, root).await;
                    self.free(host, root).await;
                }
            }
            LifeCycle::InvalidatorZaps => {
                self.warn_if(host.load(root.invalid).await == 0);
                self.unlink(host, root).await;
                self.free(host, root).await;
            }
        }
    }

    fn warn_if(&self, wrong: bool) {
        self.0.warnings.set(self.0.warnings.get() + u32::from(wrong));
    }

    async fn unlink(&self, host: &Host<F>, root: Root) {
        host.lock(self.0.pages_lock, LockMode::Write).await;
        self.0.list.borrow_mut().retain(|other| other.serial != root.serial);
        host.unlock(self.0.pages_lock).await;
    }

    async fn free(&self, host: &Host<F>, root: Root) {
        let geometry = host.format().geometry();
        let (level, bytes) = (geometry.root(), geometry.table_bytes(geometry.root()));
        host.call_rcu(Frames { first: root.table, count: 1, level, bytes }).await;
    }

    // ---- what vCPUs do ----

    /// `kvm_tdp_mmu_get_vcpu_root_hpa`, since 6.9 `kvm_tdp_mmu_alloc_root`: the valid root of an address space, made if there is none;
    /// the caller has a reference. `None` when no table is left.
    pub async fn load(&self, host: &Host<F>, space: AddressSpace) -> Option<Root> {
        host.lock(LockId::MMU, self.0.policy.root_lock.mode()).await;
        let mut root = self.find_valid(host, space).await;
        if root.is_none() {
            root = self.create(host, space).await;
        }
        host.unlock(LockId::MMU).await;
        root
    }

    async fn find_valid(&self, host: &Host<F>, space: AddressSpace) -> Option<Root> {
        for root in self.snapshot() {
            // The test precedes the reference; an invalidator holds the lock for write.
            if root.space == space && host.load(root.invalid).await == 0 && self.get(host, root).await {
                return Some(root);
            }
        }
        None
    }

    async fn create(&self, host: &Host<F>, space: AddressSpace) -> Option<Root> {
        let shared = self.0.policy.root_lock == ZapLock::Read;
        let table = host.alloc_table(host.format().geometry().root()).await?;
        host.lock(self.0.pages_lock, LockMode::Write).await;
        // Sharing the lock, somebody else may have made one meanwhile.
        let found = if shared { self.find_valid(host, space).await } else { None };
        let root = match found {
            Some(root) => root,
            None => self.insert(host, space, table).await,
        };
        host.unlock(self.0.pages_lock).await;
        if found.is_some() {
            let geometry = host.format().geometry();
            let (level, bytes) = (geometry.root(), geometry.table_bytes(geometry.root()));
            host.free_tables(Frames { first: table, count: 1, level, bytes }).await;
        }
        Some(root)
    }

    async fn insert(&self, host: &Host<F>, space: AddressSpace, table: Hpa) -> Root {
        let serial = self.0.serial.get() + 1;
        self.0.serial.set(serial);
        let refcount = host.new_var(1 + own_references(self.0.policy.life)).await;
        let (invalid, to_zap) = (host.new_var(0).await, host.new_var(0).await);
        let root = Root { serial, table, space, refcount, invalid, to_zap };
        self.0.list.borrow_mut().push(root);
        root
    }

    /// `kvm_mmu_free_roots`: a vCPU leaves its root.
    pub async fn unload(&self, host: &Host<F>, root: Root) {
        let held = self.0.policy.root_lock;
        host.lock(LockId::MMU, held.mode()).await;
        self.put(host, root, held).await;
        host.unlock(LockId::MMU).await;
    }

    // ---- zapping ----

    /// Queues a worker for a root; the reference that the caller has becomes the worker's.
    async fn schedule_zap(&self, host: &Host<F>, root: Root) {
        let Some(queue) = &self.0.zappers else {
            // Without workers the reference stays where it is, and the root is reported as leaked.
            self.warn_if(true);
            return;
        };
        let roots = self.clone();
        let item =
            move |host: Host<F>| -> ActorFuture { Box::pin(async move { roots.zap_root_work(&host, root).await }) };
        queue.queue_work(host, ProcessorId(0), Box::new(item)).await;
    }

    /// `tdp_mmu_zap_root_work`
    async fn zap_root_work(&self, host: &Host<F>, root: Root) {
        let zap = self.0.policy.zap;
        host.lock(LockId::MMU, zap.lock.mode()).await;
        zap_root(host, root.table, &zap).await;
        self.put(host, root, zap.lock).await;
        host.unlock(LockId::MMU).await;
    }

    /// `kvm_mmu_zap_all_fast`: a memslot goes. Every root is invalid and unused when `mmu_lock` is dropped, and zapped when this
    /// returns. Takes `slots_lock` and `mmu_lock`.
    pub async fn zap_all_fast(&self, host: &Host<F>) {
        host.lock(LockId::SLOTS, LockMode::Write).await;
        self.zap_all_fast_locked(host).await;
        host.unlock(LockId::SLOTS).await;
    }

    /// The same for a caller that holds `slots_lock`.
    pub async fn zap_all_fast_locked(&self, host: &Host<F>) {
        host.lock(LockId::MMU, LockMode::Write).await;
        self.invalidate_all(host).await;
        // KVM_REQ_MMU_FREE_OBSOLETE_ROOTS, waited for: nobody runs on an invalid root from here on. Who takes the request sees that the root
        // is invalid: the smp_wmb of `__kvm_make_request`, with the barrier of `kvm_check_request`.
        host.fence(Fence::Write).await;
        for &request in &self.0.requests {
            host.store(request, 1).await;
        }
        host.kick_all().await;
        host.unlock(LockId::MMU).await;
        self.zap_invalidated(host).await;
    }

    async fn invalidate(&self, host: &Host<F>, root: Root) {
        host.store(root.invalid, 1).await;
        host.announce(Announced::RootInvalid(root.table)).await;
    }

    /// `kvm_tdp_mmu_invalidate_all_roots`. Caller holds `mmu_lock` for write.
    async fn invalidate_all(&self, host: &Host<F>) {
        for root in self.snapshot() {
            let valid = host.load(root.invalid).await == 0;
            match self.0.policy.life {
                LifeCycle::LastUserZaps => {
                    if self.get(host, root).await {
                        self.invalidate(host, root).await;
                    }
                }
                LifeCycle::WorkerZaps => {
                    if valid && self.get(host, root).await {
                        self.invalidate(host, root).await;
                        if self.0.policy.gift == ZapGift::Owned {
                            self.schedule_zap(host, root).await;
                        }
                    }
                }
                LifeCycle::InvalidatorZaps => {
                    if valid {
                        host.store(root.to_zap, 1).await;
                        self.invalidate(host, root).await;
                    }
                }
            }
        }
    }

    /// `kvm_tdp_mmu_zap_invalidated_roots`: when this returns every root that was invalidated has been zapped.
    async fn zap_invalidated(&self, host: &Host<F>) {
        match (self.0.policy.life, self.0.policy.gift) {
            (LifeCycle::WorkerZaps, ZapGift::Owned) => {
                if let Some(queue) = &self.0.zappers {
                    queue.flush(host).await;
                }
            }
            (LifeCycle::InvalidatorZaps, _) => self.zap_each(host, |root| root.to_zap, Claim::Cleared).await,
            (LifeCycle::LastUserZaps | LifeCycle::WorkerZaps, _) => {
                self.zap_each(host, |root| root.invalid, Claim::Kept).await;
            }
        }
    }

    /// Zaps and puts each root that `flag` says is to go, under the policy's lock.
    async fn zap_each(&self, host: &Host<F>, flag: impl Fn(Root) -> Var, claim: Claim) {
        let zap = self.0.policy.zap;
        host.lock(LockId::MMU, zap.lock.mode()).await;
        for root in self.snapshot() {
            if host.load(flag(root)).await == 0 || host.load(root.refcount).await == 0 {
                continue;
            }
            if claim == Claim::Cleared {
                host.store(root.to_zap, 0).await;
            }
            zap_root(host, root.table, &zap).await;
            // The reference taken, or left over, when it was invalidated.
            self.put(host, root, zap.lock).await;
        }
        host.unlock(LockId::MMU).await;
    }

    // ---- the end ----

    /// Starts the thread of a vCPU, with the first root loaded.
    pub fn spawn_vcpu(&self, sim: &mut impl Bed<Format = F>, vcpu: VcpuId, steps: Vec<Step>, policy: FaultPolicy) {
        let roots = self.clone();
        self.spawn_vcpu_task(sim, vcpu, move |host| Box::pin(thread(host, vcpu, roots, steps, policy)));
    }

    /// Starts a thread of one's own for a vCPU: the VM does not end before it does.
    pub fn spawn_vcpu_task(
        &self,
        sim: &mut impl Bed<Format = F>,
        vcpu: VcpuId,
        thread: impl FnOnce(Host<F>) -> ActorFuture + 'static,
    ) {
        let roots = self.clone();
        self.0.started.set(self.0.started.get() + 1);
        sim.spawn_thread(vcpu, move |host| {
            Box::pin(async move {
                thread(host.clone()).await;
                roots.task_ends(&host).await;
            })
        });
    }

    /// Starts a task that uses the VM: the VM does not end before it does.
    pub fn spawn_task(
        &self,
        sim: &mut impl Bed<Format = F>,
        name: &'static str,
        at: Cycles,
        task: impl FnOnce(Host<F>, Self) -> ActorFuture + 'static,
    ) {
        let roots = self.clone();
        self.0.started.set(self.0.started.get() + 1);
        sim.spawn_actor(name, at, move |host| {
            Box::pin(async move {
                task(host.clone(), roots.clone()).await;
                roots.task_ends(&host).await;
            })
        });
    }

    /// Starts the task that ends the VM once every other one has ended.
    pub fn spawn_exit(&self, sim: &mut impl Bed<Format = F>) {
        let roots = self.clone();
        sim.spawn_actor("exit", Cycles::ZERO, move |host| {
            Box::pin(async move {
                roots.wait_for_tasks(&host).await;
                roots.vm_exit(&host).await;
            })
        });
    }

    async fn task_ends(&self, host: &Host<F>) {
        if host.add(self.0.ended, 1).await == self.0.started.get() {
            host.wake_up(self.0.waiting, Wake::All).await;
        }
    }

    /// Waits until every task that was started has ended.
    async fn wait_for_tasks(&self, host: &Host<F>) {
        while host.load_acquire(self.0.ended).await != self.0.started.get() {
            host.prepare_to_wait(self.0.waiting).await;
            if host.load_acquire(self.0.ended).await == self.0.started.get() {
                host.finish_wait(self.0.waiting).await;
                return;
            }
            host.schedule(self.0.waiting).await;
        }
    }

    /// `kvm_mmu_zap_all` (the notifier's release): everything below every root, valid or not, goes at once under the write lock, even if
    /// a worker is in the middle of one. References stay as they are.
    pub async fn zap_all(&self, host: &Host<F>) {
        host.lock(LockId::MMU, LockMode::Write).await;
        let zap = ZapPolicy { lock: ZapLock::Write, ..self.0.policy.zap };
        for root in self.snapshot() {
            // The zap yields: whoever else is at this root must not free it meanwhile (`for_each_tdp_mmu_root_yield_safe`).
            if self.get(host, root).await {
                zap_root(host, root.table, &zap).await;
                self.put(host, root, ZapLock::Write).await;
            }
        }
        host.unlock(LockId::MMU).await;
    }

    /// The end of the VM: [`zap_all`](Self::zap_all), then `kvm_mmu_uninit_tdp_mmu`. Returns when the last grace period is over. Whatever is
    /// left on the list then has leaked.
    pub async fn vm_exit(&self, host: &Host<F>) {
        self.zap_all(host).await;
        if self.0.policy.life == LifeCycle::InvalidatorZaps {
            host.lock(LockId::MMU, LockMode::Write).await;
            self.invalidate_all(host).await;
            host.unlock(LockId::MMU).await;
            self.zap_invalidated(host).await;
        }
        if let Some(queue) = &self.0.zappers {
            queue.stop(host).await;
        }
        host.synchronize_rcu().await;
    }
}

/// Whether zapping a root takes its flag away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Claim {
    /// The flag was for this zap.
    Cleared,
    /// An invalid root stays invalid.
    Kept,
}
