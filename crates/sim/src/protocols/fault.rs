//! A second-stage fault, from the vCPU's exit to the installed entry.
//!
//! Models `kvm_tdp_page_fault` (x86), `user_mem_abort` (arm64) and `kvmppc_book3s_instantiate_page` (POWER) of Linux 6.6:
//!
//! 1. the memslot of the address; MMIO is emulated;
//! 2. [`FastPath::Lockless`]: what a compare-and-swap of the leaf can mend needs no lock (`fault_fast`);
//! 3. the memory cache is topped up, where allocating may sleep;
//! 4. the invalidation sequence is read, **before** the host page is looked up; a read barrier between;
//! 5. the host page is looked up, without locks; the primary MMU may have to bring it, or a handler in user space. A read of a page that
//!    the process may only read maps it read-only, a write of it fails (`EFAULT`);
//! 6. `mmu_lock`: for read where walkers compare and swap (x86, arm64 since 6.2), exclusively elsewhere (POWER: a spin lock);
//! 7. whether the look-up went stale meanwhile ([`RetryPolicy`](super::notifier::RetryPolicy)): then the guest tries again;
//! 8. the walk, inside an RCU section (`fault_map`): missing tables are linked, a huge leaf in the way is split, a table in the way of
//!    a huge leaf is coalesced ([`coalesce`](super::coalesce)), the leaf is installed or relaxed.
//!
//! Flush: installing owes none. Relaxing a leaf owes one to the own processor, where cached translations fault by themselves
//! ([`mmu_core::Denial::FaultsFromTlb`]); replacing a table or a huge leaf is flushed by whoever replaces. All of it is made here. Frees tables that it
//! coalesces (by RCU, or at once under an exclusive lock), and tables that lost a race, at once.
//!
//! A historical or buggy handler is a [`FaultPolicy`] value.

use mmu_core::{
    AccessKind, Bytes, FaultClass, Flush, FlushScope, Format, Gpa, Hpa, HpaRange, Level, PageSize, Reach, WalkCaches,
};
use serde::{Deserialize, Serialize};

use super::coalesce::{CacheMaintenance, clean_block};
use super::fault_fast::fast_page_fault;
use super::fault_map::{Attempt, Request, map};
pub use super::fault_policy::*;
use super::memory_cache::MemoryCache;
use super::notifier::{Snapshot, Target, invalidate_retry, retry_unlocked, snapshot};
use super::nx::{Mitigation, NxPages};
use super::slots::{Faultin, faultin_pfn};
use crate::engine::{GuestFault, Host, HostAccess, LockId, Reference, Resolved, Var, VcpuId, Work};

/// What a fault handler answers; the names are the kernel's (`RET_PF_*`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PfRet {
    /// The guest tries the access again: a race was lost, or an invalidation is under way.
    Retry,
    /// There is no memory: the access is emulated.
    Emulate,
    /// It cannot be handled: the run of the vCPU ends with an error.
    Invalid,
    /// The entry has been put in place.
    Fixed,
    /// It was in place already.
    Spurious,
}

/// What is behind a guest-physical address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SlotState {
    /// Memory.
    Memory,
    /// Memory whose slot is being deleted or moved (`KVM_MEMSLOT_INVALID`).
    Invalid,
    /// No slot: MMIO.
    None,
}

/// Whether writes to a guest-physical address are being logged.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Logging {
    /// They are not.
    Off,
    /// They are, page by page: pages are mapped small, and writable only once they are written.
    On,
}

/// Whether a nested guest's tables are in a page, so that its writes are emulated (write tracking).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum WriteTracking {
    /// They are not.
    Off,
    /// They are: it is never mapped writable.
    On,
}

/// What a host page is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PageKind {
    /// Memory.
    Memory,
    /// Registers of a device that user space has mapped (`VM_PFNMAP`), without a page structure: caches know nothing of it.
    Device,
}

/// What a fault asks of the memslot that it hits. The default answers are those of one slot of plain memory.
pub trait FaultHooks<F: Format> {
    /// What is behind the address. Called without locks.
    fn slot(&self, _host: &Host<F>, _gpa: Gpa) -> impl Future<Output = SlotState> {
        async { SlotState::Memory }
    }
    /// Whether writes to it are logged. Called without locks and again under `mmu_lock`.
    fn logging(&self, _host: &Host<F>, _gpa: Gpa) -> impl Future<Output = Logging> {
        async { Logging::Off }
    }
    /// A page has become writable for a write while logging is on (`mark_page_dirty`). Called under `mmu_lock`, or inside an RCU section on the fast path.
    fn mark_dirty(&self, _host: &Host<F>, _gpa: Gpa) -> impl Future<Output = ()> {
        async {}
    }
    /// Whether writes to it are emulated. Called without locks and again under `mmu_lock`.
    fn write_tracking(&self, _host: &Host<F>, _gpa: Gpa) -> impl Future<Output = WriteTracking> {
        async { WriteTracking::Off }
    }
    /// What the page is.
    fn kind(&self, _gpa: Gpa) -> PageKind {
        PageKind::Memory
    }
    /// The NX huge pages of the VM, if it has the mitigation.
    fn nx(&self) -> Option<&NxPages> {
        None
    }
    /// Whether a signal waits for the thread, so that a call has to end.
    fn signal_pending(&self, _host: &Host<F>) -> impl Future<Output = bool> {
        async { false }
    }
}

/// One slot of memory, never logged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PlainMemory;

impl<F: Format> FaultHooks<F> for PlainMemory {}

/// One slot of memory whose log is on while a variable is not 0; pages are counted by nobody.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LoggedBy(pub Var);

impl<F: Format> FaultHooks<F> for LoggedBy {
    async fn logging(&self, host: &Host<F>, _gpa: Gpa) -> Logging {
        if host.load_acquire(self.0).await == 0 { Logging::Off } else { Logging::On }
    }
}

/// The root that a fault works on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FaultRoot {
    /// Its table.
    pub table: Hpa,
    /// Not zero once the root is obsolete, when the fault must be tried again with another one; `None` asks nobody (X23).
    pub obsolete: Option<Var>,
}

/// The fault handler of one vCPU, with what it keeps between faults.
#[derive(Clone, Debug)]
pub struct Faults<H> {
    vcpu: VcpuId,
    policy: FaultPolicy,
    hooks: H,
    cache: MemoryCache,
    root: Option<FaultRoot>,
    /// Where it has marked a page dirty last: the stretch that a table of the last level maps.
    marked: Option<Gpa>,
}

/// Lines that marking a page dirty touches once for each such stretch: the structure of the host's huge page (`kvm_set_pfn_dirty`) and a line of the bitmap
/// (`mark_page_dirty_in_slot`), 512 pages. In the dense faults that sheets' figures come from they are cold once in 512; of tables the hardware's own walk has
/// just brought the lines.
const LINES_OF_A_STRETCH: u64 = 2;

impl Faults<PlainMemory> {
    /// The handler of a vCPU on plain memory.
    pub fn new(vcpu: VcpuId, policy: FaultPolicy) -> Self {
        Self::with_hooks(vcpu, policy, PlainMemory)
    }
}

impl<H> Faults<H> {
    /// The handler of a vCPU on memory with hooks of its own.
    pub fn with_hooks(vcpu: VcpuId, policy: FaultPolicy, hooks: H) -> Self {
        Self { vcpu, policy, hooks, cache: MemoryCache::default(), root: None, marked: None }
    }

    /// Faults work below this root from now on, to which the caller has a reference; without one below the VM's current root.
    pub fn work_below(&mut self, root: FaultRoot) {
        self.root = Some(root);
    }

    /// The table of the root that faults work on.
    pub(super) async fn root_table<F: Format>(&self, host: &Host<F>) -> Hpa {
        match self.root {
            Some(root) => root.table,
            None => host.root().await,
        }
    }

    /// `is_obsolete_root`, under `mmu_lock`.
    async fn is_obsolete<F: Format>(&self, host: &Host<F>) -> bool {
        match self.root.and_then(|root| root.obsolete) {
            Some(obsolete) => host.load(obsolete).await != 0,
            None => false,
        }
    }

    /// The hooks.
    pub fn hooks(&self) -> &H {
        &self.hooks
    }

    /// Gives back what the handler keeps; the vCPU's thread ends.
    pub async fn release<F: Format>(mut self, host: &Host<F>) {
        self.cache.release(host).await;
    }

    /// Handles one fault. The vCPU enters the guest afterwards and takes the fault again if it was not fixed.
    pub async fn handle<F: Format>(&mut self, host: &Host<F>, fault: GuestFault) -> PfRet
    where
        H: FaultHooks<F>,
    {
        host.spend(Work::Fault).await;
        let ret = match fault.class {
            FaultClass::TlbConflict => self.conflict(host, fault).await,
            _ => self.page_fault(host, fault).await,
        };
        match ret {
            PfRet::Fixed => {}
            PfRet::Spurious => host.count_spurious().await,
            PfRet::Retry => host.count_retry().await,
            PfRet::Emulate => {
                host.user_exit().await;
                host.emulated(self.vcpu).await;
            }
            PfRet::Invalid => host.count_failed_run().await,
        }
        ret
    }

    /// `handle_conflict_abort` of the TTRem series: a local invalidation suffices, because other processors find out for themselves.
    async fn conflict<F: Format>(&self, host: &Host<F>, fault: GuestFault) -> PfRet {
        let reach = match self.policy.conflict {
            ConflictAbort::LocalFlush => Reach::Local,
            ConflictAbort::BroadcastFlush => Reach::Everyone,
            ConflictAbort::Unhandled => {
                host.unhandled_conflict(self.vcpu, fault.gpa).await;
                return PfRet::Invalid;
            }
        };
        host.flush(Flush { scope: FlushScope::Vm, walk_caches: WalkCaches::Drop, reach }).await;
        PfRet::Fixed
    }

    /// A fault of the guest, or one that user space asks for in advance.
    pub(super) async fn page_fault<F: Format>(&mut self, host: &Host<F>, fault: GuestFault) -> PfRet
    where
        H: FaultHooks<F>,
    {
        match self.hooks.slot(host, fault.gpa).await {
            SlotState::Memory => {}
            SlotState::Invalid => return PfRet::Retry,
            SlotState::None => return PfRet::Emulate,
        }
        // `page_fault_handle_page_track`, before the way without the lock.
        if writes(fault.access) && self.hooks.write_tracking(host, fault.gpa).await == WriteTracking::On {
            return PfRet::Emulate;
        }
        // `page_fault_can_be_fast`: what is not present may be an old leaf where hardware keeps no flags.
        let mendable = match fault.class {
            FaultClass::Permission | FaultClass::AccessFlag => true,
            FaultClass::NotPresent => host.format().accessed_mask() == 0,
            _ => false,
        };
        if self.policy.fast == FastPath::Lockless && mendable {
            let root = self.root_table(host).await;
            if let Some(ret) = fast_page_fault(host, root, &fault, &self.hooks).await {
                return ret;
            }
        }
        let mut top_up = self.tops_up(host, &fault).await;
        loop {
            if top_up && self.cache.top_up(host).await.is_err() {
                return PfRet::Invalid;
            }
            match self.attempt(host, &fault).await {
                Attempt::Fixed => return PfRet::Fixed,
                Attempt::Spurious => return PfRet::Spurious,
                Attempt::Retry => return PfRet::Retry,
                Attempt::NoSlot => return PfRet::Emulate,
                Attempt::NoPage => return PfRet::Invalid,
                Attempt::NoTable if self.policy.top_up == TopUp::NotForPermission && !top_up => return PfRet::Invalid,
                // Without locks allocating may sleep, and cannot fail but for a pool that is empty.
                Attempt::NoTable => top_up = true,
            }
        }
    }

    /// Whether this fault fills the cache before it takes the lock.
    async fn tops_up<F: Format>(&self, host: &Host<F>, fault: &GuestFault) -> bool
    where
        H: FaultHooks<F>,
    {
        match self.policy.top_up {
            TopUp::EveryFault => true,
            TopUp::UnderLock { .. } => false,
            TopUp::NotForPermission => {
                let logged_write = writes(fault.access) && self.hooks.logging(host, fault.gpa).await == Logging::On;
                fault.class != FaultClass::Permission || logged_write
            }
        }
    }

    /// Finds the page.
    async fn look_up<F: Format>(&self, host: &Host<F>, gpa: Gpa, access: HostAccess) -> Faultin {
        // Only the notifier protects the page: no reference is taken.
        if self.policy.slots == SlotSection::Callers {
            return faultin_pfn(host, gpa, access, Reference::None).await;
        }
        let section = host.srcu_read_lock().await;
        let found = faultin_pfn(host, gpa, access, Reference::None).await;
        host.srcu_read_unlock(section).await;
        found
    }

    /// One attempt, from the snapshot of the sequence to the unlocked lock.
    async fn attempt<F: Format>(&mut self, host: &Host<F>, fault: &GuestFault) -> Attempt
    where
        H: FaultHooks<F>,
    {
        let policy = self.policy;
        let early = self.snapshot(host, SnapshotTime::BeforeLookup).await;
        let access = if writes(fault.access) { HostAccess::Write } else { HostAccess::Read };
        let (found, hva) = match self.look_up(host, fault.gpa, access).await {
            Faultin::Page { page, hva } => (page, hva),
            Faultin::Invalid => return Attempt::Retry,
            Faultin::NoSlot => return Attempt::NoSlot,
            Faultin::Error(_) => return Attempt::NoPage,
        };
        let seq = match early {
            Some(seq) => seq,
            None => snapshot(host, policy.retry.snapshot).await,
        };
        let target = Target { gpa: fault.gpa, hva };
        if retry_unlocked(host, &policy.retry, seq, target).await {
            return Attempt::Retry;
        }
        let goal = self.goal(host, fault.gpa, found.size).await;
        let page = host.format().geometry().page_size(goal);
        if policy.coalesce.maintenance == CacheMaintenance::PerFault && fault.class != FaultClass::Permission {
            let block = Hpa::new(found.host.raw() - fault.gpa.offset_in(page));
            clean_block(host, HpaRange::new(block, Bytes(page.bytes()))).await;
        }
        host.lock(LockId::MMU, policy.lock_for(fault)).await;
        let stale = self.is_obsolete(host).await || invalidate_retry(host, &policy.retry, seq, target).await;
        let attempt = if stale { Attempt::Retry } else { self.map(host, fault, goal, found).await };
        host.unlock(LockId::MMU).await;
        attempt
    }

    /// What is done under `mmu_lock`.
    async fn map<F: Format>(&mut self, host: &Host<F>, fault: &GuestFault, goal: Level, found: Resolved) -> Attempt
    where
        H: FaultHooks<F>,
    {
        let GuestFault { gpa, access, class } = *fault;
        let logging = self.hooks.logging(host, gpa).await;
        let goal = if logging == Logging::On { Level::LAST } else { goal };
        let Resolved { host: host_page, protection, .. } = found;
        let mitigation = self.hooks.nx().map_or(Mitigation::Off, NxPages::mitigation);
        if writes(access) && self.hooks.write_tracking(host, gpa).await == WriteTracking::On {
            return Attempt::NoSlot;
        }
        let kind = self.hooks.kind(gpa);
        let request = Request { gpa, access, class, goal, host_page, protection, logging, mitigation, kind };
        host.rcu_read_lock().await;
        let root = self.root_table(host).await;
        let attempt = map(host, root, &request, &self.policy, &mut self.cache, self.hooks.nx()).await;
        if attempt == Attempt::Fixed && logging == Logging::On && writes(access) {
            let stretch = Some(gpa.align_down(host.format().geometry().page_size(Level::LAST.up())));
            if std::mem::replace(&mut self.marked, stretch) != stretch {
                host.spend(Work::ColdLines(LINES_OF_A_STRETCH)).await;
            }
            self.hooks.mark_dirty(host, gpa).await;
        }
        host.rcu_read_unlock().await;
        attempt
    }

    /// `mmu_invalidate_seq`, if this is the time to read it.
    async fn snapshot<F: Format>(&self, host: &Host<F>, time: SnapshotTime) -> Option<Snapshot> {
        if self.policy.snapshot != time {
            return None;
        }
        Some(snapshot(host, self.policy.retry.snapshot).await)
    }

    /// Level of the page to map: `kvm_mmu_max_mapping_level`, `transparent_hugepage_adjust`. Never larger than what the host maps by one page.
    async fn goal<F: Format>(&self, host: &Host<F>, gpa: Gpa, backing: PageSize) -> Level
    where
        H: FaultHooks<F>,
    {
        let geometry = *host.format().geometry();
        let logged = self.policy.level == LevelChoice::ByBacking && self.hooks.logging(host, gpa).await == Logging::On;
        if logged {
            return Level::LAST;
        }
        let most = self.policy.page.min(backing);
        let fits = |level: &Level| geometry.has_leaves_at(*level) && geometry.page_size(*level) <= most;
        let level = (0..geometry.levels() as u8).rev().map(Level::new).find(fits).unwrap_or(Level::LAST);
        if self.policy.folded == FoldedLevels::ByName && level == geometry.root() { level.up() } else { level }
    }
}

/// Whether an access writes.
pub(super) fn writes(access: AccessKind) -> bool {
    matches!(access, AccessKind::Write | AccessKind::ReadWrite)
}
