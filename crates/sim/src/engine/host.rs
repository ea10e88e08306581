//! What protocol code holds: a handle whose methods read like the kernel's and are micro-operations underneath.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use mmu_core::{Cycles, Flush, FlushScope, Gpa, GpaRange, Hpa, Level, PageSize, Reach, WalkCaches};

use super::counters::HostCounters;
use super::lock::LockKind;
use super::op::{
    AgeBelow, AgeRun, Blockable, Fence, Frames, LockId, LockMode, Op, Order, RemoveSubtrees, Reply, RestOfTable,
    RunBelow, RunOp, Slices, TableEntries, Var, VcpuId, WaitQueue, Wake, Work,
};
use super::probe::{Probe, Probed};
use super::vcpu::Exit;
use crate::events::Trace;
use crate::workload::GuestWork;

/// Where operations go: what is performed at once, and what the actor must wait for. All actors share one stage.
pub(crate) trait Stage {
    /// Performs an operation of the actor that is being polled. `None`: it waits, and finds its answer in
    /// [`reply`](Self::reply) when it is polled again.
    fn perform(&self, op: Op) -> Option<Reply>;
    /// Performs [`Op::Read`], the most frequent one by far.
    // PERF: the word in a register and no operation in memory: 71 instructions for a read, where others take about 190
    // (`cargo bench -p mmu-sim --bench instructions -- micro`).
    #[inline]
    fn read(&self, at: Hpa) -> Option<u64> {
        self.perform(Op::Read(at)).map(|reply| reply.a)
    }
    /// The answer to the operation that the actor waited for.
    fn reply(&self) -> Reply;
    /// The actor that is being polled goes on after a wait.
    fn resumed(&self) {}
    /// Why a vCPU left the guest last.
    fn exit(&self, vcpu: VcpuId) -> Exit;
    /// What the host has done so far.
    fn counters(&self) -> HostCounters;
    /// What a vCPU does from its next entry on.
    fn assign(&self, vcpu: VcpuId, work: GuestWork);
    /// What a vCPU does on its next entry instead. Only the timed engine has probes.
    fn ask(&self, _vcpu: VcpuId, _probe: Probe) {}
    /// What became of it, as soon as that is known.
    fn probed(&self, _vcpu: VcpuId) -> Option<Probed> {
        None
    }
    /// Whether anybody wants to know what protocols have to say.
    fn is_recorded(&self) -> bool {
        false
    }
    /// Something that only the protocol knows.
    fn record(&self, _what: Trace) {}
}

/// An actor's handle to the host. Cloning gives another handle to the same host.
#[derive(Clone)]
pub struct Host<F> {
    stage: Rc<dyn Stage>,
    format: F,
    recorded: bool,
}

impl<F: fmt::Debug> fmt::Debug for Host<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("format", &self.format).finish_non_exhaustive()
    }
}

/// A table word and how far its arithmetic progression goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryRun {
    /// The first word.
    pub first: u64,
    /// What is added from word to word.
    pub step: u64,
    /// Words, at least one.
    pub len: u64,
}

/// Why an actor should give way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GiveWay {
    /// Nobody wants anything.
    No,
    /// Somebody waits for the lock (`rwlock_needbreak`): dropping it for a moment will do.
    Lock,
    /// The time slice is over, or another task waits for the processor (`need_resched`).
    Processor,
}

/// Outcome of an atomic compare-and-swap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a failed compare-and-swap changed nothing"]
pub enum Cmpxchg {
    /// The new word is in place.
    Done,
    /// Nothing was stored. Somebody else changed the word to this; or it is what was expected, and the store of an exclusive pair failed.
    Failed(u64),
}

impl Cmpxchg {
    /// What a reply says: the word that was found, and whether the store failed all the same.
    fn of(reply: Reply, old: u64) -> Self {
        if reply.a == old && reply.b == 0 { Cmpxchg::Done } else { Cmpxchg::Failed(reply.a) }
    }
}

/// What an aging operation on whole tables did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AgeBelowDone {
    /// Tables done; 0: go down.
    pub tables: u64,
    /// Leaves in them.
    pub leaves: u64,
    /// Young ones: all or none.
    pub young: u64,
}

/// What an aging operation on a run did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AgeDone {
    /// Entries done, at least one.
    pub entries: u64,
    /// The first entry as it was found, and whether it could be replaced.
    pub first: Cmpxchg,
}

/// What work on the rest of a table did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RestDone {
    /// Entries done; behind them the walk goes on one by one.
    pub entries: u64,
    /// Leaves among them.
    pub leaves: u64,
    /// Leaves worked on: young ones where leaves are aged, else all.
    pub worked: u64,
}

/// The answer to an operation that has been asked for: there already, or there when the actor is polled again.
struct Answer<'a> {
    stage: &'a dyn Stage,
    progress: Progress,
}

enum Progress {
    Done(Reply),
    Blocked,
    Waiting,
}

impl Future for Answer<'_> {
    type Output = Reply;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Reply> {
        match self.progress {
            Progress::Done(reply) => Poll::Ready(reply),
            Progress::Blocked => {
                self.progress = Progress::Waiting;
                Poll::Pending
            }
            Progress::Waiting => {
                self.stage.resumed();
                Poll::Ready(self.stage.reply())
            }
        }
    }
}

impl<F: Copy> Host<F> {
    pub(crate) fn new(stage: Rc<dyn Stage>, format: F) -> Self {
        let recorded = stage.is_recorded();
        Self { stage, format, recorded }
    }

    /// The second-stage format of this VM.
    pub fn format(&self) -> &F {
        &self.format
    }

    /// Performs an operation of the actor that is being polled: to be awaited where it is called.
    #[inline]
    pub(super) fn op(&self, op: Op) -> impl Future<Output = Reply> + '_ {
        let progress = self.stage.perform(op).map_or(Progress::Blocked, Progress::Done);
        Answer { stage: &*self.stage, progress }
    }

    /// Records an event that only the protocol knows of; nothing when nobody records.
    #[inline]
    pub fn trace(&self, what: impl FnOnce() -> Trace) {
        if self.recorded {
            self.stage.record(what());
        }
    }

    // ---- table words ----

    /// Reads a table word.
    pub async fn read(&self, at: Hpa) -> u64 {
        match self.stage.read(at) {
            Some(word) => word,
            None => Answer { stage: &*self.stage, progress: Progress::Blocked }.await.a,
        }
    }
    /// Reads a table word and how far its progression goes, up to `max` words.
    pub async fn read_run(&self, at: Hpa, max: u64) -> EntryRun {
        let Reply { a, b, c } = self.op(Op::ReadRun(at, max, TableEntries::Alike)).await;
        EntryRun { first: a, step: b, len: c.max(1) }
    }
    /// As [`read_run`](Self::read_run), for a walk that goes below table entries: each of those is a run of its own.
    pub async fn read_leaf_run(&self, at: Hpa, max: u64) -> EntryRun {
        let Reply { a, b, c } = self.op(Op::ReadRun(at, max, TableEntries::Apart)).await;
        EntryRun { first: a, step: b, len: c.max(1) }
    }
    /// Writes a table word with a plain store (`WRITE_ONCE`).
    pub async fn write(&self, at: Hpa, word: u64) {
        self.op(Op::Write(at, word, Order::Relaxed)).await;
    }
    /// Writes a table word after everything before it (`smp_store_release`).
    pub async fn write_release(&self, at: Hpa, word: u64) {
        self.op(Op::Write(at, word, Order::Synchronizing)).await;
    }
    /// Replaces a table word if it still is `old`.
    pub async fn cmpxchg(&self, at: Hpa, old: u64, new: u64) -> Cmpxchg {
        Cmpxchg::of(self.op(Op::Cmpxchg(at, old, new)).await, old)
    }
    /// Atomically replaces a table word; returns the old one.
    pub async fn xchg(&self, at: Hpa, new: u64) -> u64 {
        self.op(Op::Xchg(at, new)).await.a
    }
    /// Atomically clears bits of a table word; returns the old one.
    pub async fn fetch_and(&self, at: Hpa, mask: u64) -> u64 {
        self.op(Op::FetchAnd(at, mask)).await.a
    }
    /// Atomically sets bits of a table word; returns the old one.
    pub async fn fetch_or(&self, at: Hpa, mask: u64) -> u64 {
        self.op(Op::FetchOr(at, mask)).await.a
    }
    /// Does the same to each entry of a run; returns how many entries were done before something else had to happen.
    pub async fn run(&self, run: RunOp) -> u64 {
        self.op(Op::Run(run)).await.a
    }
    /// Does the same to every leaf below consecutive table entries; returns how many tables were done (0: go down).
    pub async fn run_below(&self, run: RunBelow) -> u64 {
        self.op(Op::RunBelow(run)).await.a
    }
    /// Ages consecutive entries: young leaves become old as `run.write` says, others are looked at. All entries done are of the
    /// first one's kind.
    pub async fn age(&self, run: AgeRun) -> AgeDone {
        let Reply { a, b, c } = self.op(Op::Age(run)).await;
        AgeDone { entries: a.max(1), first: if b == 0 { Cmpxchg::Done } else { Cmpxchg::Failed(c) } }
    }
    /// Ages every leaf below consecutive table entries where they are all alike.
    pub async fn age_below(&self, run: AgeBelow) -> AgeBelowDone {
        let Reply { a, b, c } = self.op(Op::AgeBelow(run)).await;
        AgeBelowDone { tables: a, leaves: a * c, young: a * b * c }
    }
    /// Works on the leaves among entries of all kinds, as far as the loop would get before somebody else acts.
    pub async fn rest_of_table(&self, rest: RestOfTable) -> RestDone {
        let Reply { a, b, c } = self.op(Op::Rest(rest)).await;
        RestDone { entries: a, leaves: b, worked: c }
    }
    /// Detaches whole subtrees at once where they are uniform; returns how many (0: do it entry by entry).
    pub async fn remove_subtrees(&self, remove: RemoveSubtrees) -> u64 {
        self.op(Op::RemoveSubtrees(remove)).await.a
    }
    /// Goes through many time slices of a walk at once where they are alike; returns how many entries were worked on (0: go on slice by slice).
    pub async fn slices(&self, slices: Slices) -> u64 {
        self.op(Op::Slices(slices)).await.a
    }

    // ---- table frames ----

    /// Allocates a zeroed table, or `None` when the pool is exhausted.
    pub async fn alloc_table(&self, level: Level) -> Option<Hpa> {
        let Reply { a, b, .. } = self.op(Op::Alloc(level)).await;
        (b == 0).then_some(Hpa::new(a))
    }
    /// Number of present entries in a table, from its counter.
    pub async fn live_entries(&self, table: Hpa) -> u64 {
        self.op(Op::Live(table)).await.a
    }
    /// Frees tables at once: nobody may be walking them.
    pub async fn free_tables(&self, frames: Frames) {
        self.op(Op::Free(frames)).await;
    }
    /// Frees tables once every RCU reader of now is done (`call_rcu`).
    pub async fn call_rcu(&self, frames: Frames) {
        self.op(Op::CallRcu(frames)).await;
    }
    /// Waits until every RCU reader of now is done.
    pub async fn synchronize_rcu(&self) {
        self.op(Op::SynchronizeRcu).await;
    }
    /// `rcu_read_lock`
    pub async fn rcu_read_lock(&self) {
        self.op(Op::RcuLock).await;
    }
    /// `rcu_read_unlock`
    pub async fn rcu_read_unlock(&self) {
        self.op(Op::RcuUnlock).await;
    }

    // ---- locks and scheduling ----

    /// Takes a lock; a spin lock knows no readers and is taken alone either way.
    pub async fn lock(&self, lock: LockId, mode: LockMode) {
        self.op(Op::Lock(lock, mode)).await;
    }
    /// Gives a lock back.
    pub async fn unlock(&self, lock: LockId) {
        self.op(Op::Unlock(lock)).await;
    }
    /// `need_resched() || rwlock_needbreak(lock)`
    pub async fn need_resched(&self, lock: LockId) -> bool {
        self.op(Op::NeedResched(lock)).await.a != 0
    }
    /// Why a walk under `lock` should give way now, if it should. Costs as much as [`need_resched`](Self::need_resched).
    pub async fn give_way(&self, lock: LockId) -> GiveWay {
        match self.op(Op::NeedResched(lock)).await.a {
            0 => GiveWay::No,
            1 => GiveWay::Lock,
            _ => GiveWay::Processor,
        }
    }
    /// `cond_resched()`: gives the processor away once.
    pub async fn reschedule(&self) {
        self.op(Op::Reschedule).await;
    }

    /// Runs on a processor that this actor shares with others, once that is free: `processor` is a lock made for it. From now on
    /// [`need_resched`](Self::need_resched) says so when somebody waits for the processor, and
    /// [`reschedule`](Self::reschedule) lets him run.
    pub async fn occupy(&self, processor: LockId) {
        self.lock(processor, LockMode::Write).await;
        self.op(Op::Occupy(processor)).await;
    }
    /// Leaves the shared processor.
    pub async fn vacate(&self) {
        self.op(Op::Vacate).await;
    }

    // ---- translations ----

    /// Invalidates cached leaf translations of a range on every processor of the VM.
    pub async fn flush_range(&self, range: GpaRange, walk_caches: WalkCaches) {
        let scope = FlushScope::Range { start: range.start, bytes: range.bytes.0, level: None };
        self.flush(Flush { scope, walk_caches, reach: Reach::Everyone }).await;
    }
    /// Invalidates everything cached for this VM (`kvm_flush_remote_tlbs`).
    pub async fn flush_vm(&self) {
        self.flush(Flush::EVERYTHING).await;
    }
    /// Carries out a flush and waits until it is complete everywhere.
    pub async fn flush(&self, flush: Flush) {
        self.op(Op::Flush(flush)).await;
    }

    // ---- shared variables ----

    /// Loads a shared variable (`READ_ONCE`).
    pub async fn load(&self, var: Var) -> u64 {
        self.op(Op::Load(var, Order::Relaxed)).await.a
    }
    /// Loads a variable that belongs to a table, found by the entry that points to the table: what was written before the entry is seen
    /// without a barrier, for the address depends on it (`sp->...` of `spte_to_child_sp`).
    pub async fn load_dependent(&self, var: Var) -> u64 {
        self.op(Op::Load(var, Order::Dependent)).await.a
    }
    /// Loads a shared variable before everything that follows (`smp_load_acquire`).
    pub async fn load_acquire(&self, var: Var) -> u64 {
        self.op(Op::Load(var, Order::Synchronizing)).await.a
    }
    /// Stores a shared variable (`WRITE_ONCE`).
    pub async fn store(&self, var: Var, value: u64) {
        self.op(Op::Store(var, value, Order::Relaxed)).await;
    }
    /// Stores a shared variable after everything before it (`smp_store_release`).
    pub async fn store_release(&self, var: Var, value: u64) {
        self.op(Op::Store(var, value, Order::Synchronizing)).await;
    }
    /// Adds to a shared variable atomically; returns the new value.
    pub async fn add(&self, var: Var, delta: i64) -> u64 {
        self.op(Op::Add(var, delta)).await.a
    }
    /// Replaces a shared variable if it still is `old`.
    pub async fn cmpxchg_var(&self, var: Var, old: u64, new: u64) -> Cmpxchg {
        Cmpxchg::of(self.op(Op::CmpxchgVar(var, old, new)).await, old)
    }
    /// Atomically replaces a shared variable; returns the old value.
    pub async fn xchg_var(&self, var: Var, new: u64) -> u64 {
        self.op(Op::XchgVar(var, new)).await.a
    }
    /// A memory barrier (`smp_rmb`, `smp_wmb`, `smp_mb`).
    pub async fn fence(&self, fence: Fence) {
        self.op(Op::Fence(fence)).await;
    }
    /// Makes a shared variable.
    pub async fn new_var(&self, initial: u64) -> Var {
        Var(self.op(Op::NewVar(initial)).await.a as u32)
    }
    /// Makes a lock.
    pub async fn new_lock(&self, kind: LockKind) -> LockId {
        LockId(self.op(Op::NewLock(kind)).await.a as u32)
    }

    // ---- waiting for events ----

    /// Says whether this actor may sleep and give the processor away from here on; the checker holds it to that.
    pub async fn may_block(&self, blockable: Blockable) {
        self.op(Op::MayBlock(blockable)).await;
    }

    /// Makes a wait queue.
    pub async fn new_wait_queue(&self) -> WaitQueue {
        WaitQueue(self.op(Op::NewWaitQueue).await.a as u32)
    }
    /// Enters a wait queue (`prepare_to_wait`); test the condition afterwards, then [`schedule`](Self::schedule) or
    /// [`finish_wait`](Self::finish_wait).
    pub async fn prepare_to_wait(&self, queue: WaitQueue) {
        self.op(Op::PrepareToWait(queue)).await;
    }
    /// Leaves a wait queue without having slept (`finish_wait`).
    pub async fn finish_wait(&self, queue: WaitQueue) {
        self.op(Op::FinishWait(queue)).await;
    }
    /// Sleeps until woken from the queue; returns at once when that has happened since it was entered.
    pub async fn schedule(&self, queue: WaitQueue) {
        self.op(Op::Schedule(queue)).await;
    }
    /// Wakes sleepers of a queue.
    pub async fn wake_up(&self, queue: WaitQueue, whom: Wake) {
        self.op(Op::WakeUp(queue, whom)).await;
    }

    // ---- vCPUs ----

    /// Enters the guest on a vCPU and waits until it leaves: the call at the heart of a vCPU's thread. A vCPU is entered
    /// by one thread only.
    pub async fn vcpu_run(&self, vcpu: VcpuId) -> Exit {
        self.op(Op::VcpuRun(vcpu)).await;
        self.stage.exit(vcpu)
    }
    /// Gives a vCPU new work, to be done from its next entry on. For the vCPU's own thread, or before that runs.
    pub fn assign(&self, vcpu: VcpuId, work: GuestWork) {
        self.stage.assign(vcpu, work);
    }
    pub(super) fn ask(&self, vcpu: VcpuId, probe: Probe) {
        self.stage.ask(vcpu, probe);
    }
    pub(super) fn probed(&self, vcpu: VcpuId) -> Option<Probed> {
        self.stage.probed(vcpu)
    }
    /// Makes every vCPU that runs guest code leave it (`kvm_make_all_cpus_request`), and waits until all have.
    pub async fn kick_all(&self) {
        self.op(Op::KickAll).await;
    }
    /// Makes a vCPU that is out of the guest use `root`; translations cached under another generation are not used, and those of this
    /// one that an earlier use has left are invalidated (`kvm_mmu_load` flushes, so that freeing a root need not).
    pub async fn load_root(&self, vcpu: VcpuId, root: Hpa, generation: u16) {
        self.op(Op::LoadRoot(vcpu, root, generation)).await;
    }

    // ---- the VM ----

    /// The VM's current root table.
    pub async fn root(&self) -> Hpa {
        Hpa::new(self.op(Op::Root).await.a)
    }
    /// Makes `root` the VM's current root.
    pub async fn set_root(&self, root: Hpa) {
        self.op(Op::SetRoot(root)).await;
    }
    /// Makes all vCPUs load the current root before they run again, and waits until none runs on an older one.
    pub async fn reload_roots(&self) {
        self.op(Op::ReloadRoots).await;
    }
    /// The largest page up to `most` that the primary MMU maps `gpa` by (`kvm_mmu_max_mapping_level`): it is backed by one aligned
    /// host page of that size. Takes no lock; the answer can be stale unless an invalidation would be noticed.
    pub async fn host_mapping(&self, gpa: Gpa, most: PageSize) -> PageSize {
        let shift = self.op(Op::HostMapping(gpa.raw(), most)).await.a;
        PageSize::from_shift(shift as u32).unwrap_or(PageSize::SIZE_4K)
    }
    /// The primary MMU frees the pages that back a range (`MADV_DONTNEED` between range start and end).
    pub async fn drop_pages(&self, range: GpaRange) {
        self.op(Op::DropPages(range)).await;
    }

    // ---- time ----

    /// The actor's own moment.
    pub async fn now(&self) -> Cycles {
        Cycles(self.op(Op::Now).await.a)
    }
    /// Spends time on work.
    pub async fn spend(&self, work: Work) {
        self.op(Op::Spend(work)).await;
    }
    /// Sleeps.
    pub async fn sleep(&self, cycles: Cycles) {
        self.op(Op::Sleep(cycles)).await;
    }
    /// Sleeps until a moment; does not wait when it is past.
    pub async fn sleep_until(&self, moment: Cycles) {
        self.op(Op::SleepUntil(moment)).await;
    }

    // ---- counters ----

    /// What the host has done so far: for whoever measures, not for decisions.
    pub fn counters(&self) -> HostCounters {
        self.stage.counters()
    }

    /// Counts a fault that found its entry already in place.
    pub async fn count_spurious(&self) {
        self.op(Op::CountSpurious).await;
    }
    /// Counts a fault that must be taken again.
    pub async fn count_retry(&self) {
        self.op(Op::CountRetry).await;
    }
}
