//! What protocol code holds: a handle whose methods read like the kernel's and are micro-operations underneath.

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use mmu_core::{Cycles, Flush, FlushScope, Gpa, Hpa, Level, PageSize, Reach, WalkCaches};

use super::op::{Frames, LockId, LockMode, Op, RemoveSubtrees, Reply, RunBelow, RunOp, Var, Work};

/// One slot between an actor and the engine. Only one actor is polled at a time, so one slot serves all.
#[derive(Default)]
pub(crate) struct Mailbox {
    pub(crate) op: Cell<Option<Op>>,
    pub(crate) reply: Cell<Reply>,
}

/// An actor's handle to the host. Cloning gives another handle to the same host.
#[derive(Clone)]
pub struct Host<F> {
    mailbox: Rc<Mailbox>,
    format: F,
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

/// Outcome of an atomic compare-and-swap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a failed compare-and-swap changed nothing"]
pub enum Cmpxchg {
    /// The new word is in place.
    Done,
    /// Somebody else changed the word to this.
    Failed(u64),
}

struct OpFuture<'a> {
    mailbox: &'a Mailbox,
    op: Option<Op>,
}

impl Future for OpFuture<'_> {
    type Output = Reply;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Reply> {
        match self.op.take() {
            Some(op) => {
                self.mailbox.op.set(Some(op));
                Poll::Pending
            }
            None => Poll::Ready(self.mailbox.reply.get()),
        }
    }
}

impl<F: Copy> Host<F> {
    pub(crate) fn new(mailbox: Rc<Mailbox>, format: F) -> Self {
        Self { mailbox, format }
    }

    /// The second-stage format of this VM.
    pub fn format(&self) -> &F {
        &self.format
    }

    #[inline]
    fn op(&self, op: Op) -> OpFuture<'_> {
        OpFuture { mailbox: &self.mailbox, op: Some(op) }
    }

    // ---- table words ----

    /// Reads a table word.
    pub async fn read(&self, at: Hpa) -> u64 {
        self.op(Op::Read(at)).await.a
    }
    /// Reads a table word and how far its progression goes, up to `max` words.
    pub async fn read_run(&self, at: Hpa, max: u64) -> EntryRun {
        let Reply { a, b, c } = self.op(Op::ReadRun(at, max)).await;
        EntryRun { first: a, step: b, len: c.max(1) }
    }
    /// Writes a table word with a plain store (`WRITE_ONCE`).
    pub async fn write(&self, at: Hpa, word: u64) {
        self.op(Op::Write(at, word)).await;
    }
    /// Replaces a table word if it still is `old`.
    pub async fn cmpxchg(&self, at: Hpa, old: u64, new: u64) -> Cmpxchg {
        let found = self.op(Op::Cmpxchg(at, old, new)).await.a;
        if found == old { Cmpxchg::Done } else { Cmpxchg::Failed(found) }
    }
    /// Atomically replaces a table word; returns the old one.
    pub async fn xchg(&self, at: Hpa, new: u64) -> u64 {
        self.op(Op::Xchg(at, new)).await.a
    }
    /// Atomically clears bits of a table word; returns the old one.
    pub async fn fetch_and(&self, at: Hpa, mask: u64) -> u64 {
        self.op(Op::FetchAnd(at, mask)).await.a
    }
    /// Does the same to each entry of a run; returns how many entries were done before something else had to happen.
    pub async fn run(&self, run: RunOp) -> u64 {
        self.op(Op::Run(run)).await.a
    }
    /// Does the same to every leaf below consecutive table entries; returns how many tables were done (0: go down).
    pub async fn run_below(&self, run: RunBelow) -> u64 {
        self.op(Op::RunBelow(run)).await.a
    }
    /// Detaches whole subtrees at once where they are uniform; returns how many (0: do it entry by entry).
    pub async fn remove_subtrees(&self, remove: RemoveSubtrees) -> u64 {
        self.op(Op::RemoveSubtrees(remove)).await.a
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
    /// `cond_resched()`: gives the processor away once.
    pub async fn reschedule(&self) {
        self.op(Op::Reschedule).await;
    }

    // ---- translations ----

    /// Invalidates cached leaf translations of `[start, start + bytes)` on every processor of the VM.
    pub async fn flush_range(&self, start: Gpa, bytes: u64, walk_caches: WalkCaches) {
        let scope = FlushScope::Range { start, bytes, level: None };
        self.flush(Flush { scope, walk_caches, reach: Reach::Everyone }).await;
    }
    /// Invalidates everything cached for this VM (`kvm_flush_remote_tlbs`).
    pub async fn flush_vm(&self) {
        self.flush(Flush { scope: FlushScope::Vm, walk_caches: WalkCaches::Drop, reach: Reach::Everyone }).await;
    }
    /// Carries out a flush and waits until it is complete everywhere.
    pub async fn flush(&self, flush: Flush) {
        self.op(Op::Flush(flush)).await;
    }

    // ---- the VM ----

    /// Loads a shared variable.
    pub async fn load(&self, var: Var) -> u64 {
        self.op(Op::Load(var)).await.a
    }
    /// Stores a shared variable.
    pub async fn store(&self, var: Var, value: u64) {
        self.op(Op::Store(var, value)).await;
    }
    /// Adds to a shared variable; returns the new value.
    pub async fn add(&self, var: Var, delta: i64) -> u64 {
        self.op(Op::Add(var, delta)).await.a
    }
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
    /// The host page that backs the page of `size` at `gpa` (`hva_to_pfn`).
    pub async fn resolve_page(&self, gpa: Gpa, size: PageSize) -> Hpa {
        Hpa::new(self.op(Op::ResolvePage(gpa.raw(), size)).await.a)
    }
    /// The primary MMU frees the pages that back `[start, start + bytes)` (`MADV_DONTNEED` between range start and end).
    pub async fn drop_pages(&self, start: Gpa, bytes: u64) {
        self.op(Op::DropPages(start.raw(), bytes)).await;
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

    /// Counts a fault that found its entry already in place.
    pub async fn count_spurious(&self) {
        self.op(Op::CountSpurious).await;
    }
    /// Counts a fault that must be taken again.
    pub async fn count_retry(&self) {
        self.op(Op::CountRetry).await;
    }
}
