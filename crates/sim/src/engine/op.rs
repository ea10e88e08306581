//! Micro-operations: what a host actor can ask the engine to do, as plain values.
//!
//! An actor never touches the world. It awaits an [`Op`]; the engine performs it on the world at the actor's own
//! moment, charges its cycles and resumes the actor with the [`Reply`]. Because operations are data, the same stream is what an
//! explorer schedules, what the checker watches and what a replay file holds.

use mmu_core::{Cycles, Flush, Gpa, GpaRange, Hpa, Level, PageSize};

use super::dirty::DirtyOp;
use super::lock::LockKind;
use super::primary::{PrimaryOp, SlotsOp};
use super::upkeep::Upkeep;

/// A lock by number; see the constants for the ones every VM has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
pub struct LockId(pub u32);

impl LockId {
    /// KVM's `mmu_lock`: guards the second-stage tables.
    pub const MMU: LockId = LockId(0);
    /// KVM's `slots_lock`: guards memslot updates.
    pub const SLOTS: LockId = LockId(1);
    /// `mn_invalidate_lock`: guards the count of active invalidations.
    pub const INVALIDATE: LockId = LockId(2);
    /// `gpc_lock`: guards the list of `gfn_to_pfn_cache`s.
    pub const GPC_LIST: LockId = LockId(3);
    /// The mutex of `kvm->srcu`'s grace periods.
    pub const SRCU: LockId = LockId(4);
    /// `mmu_notifier_slots_lock`, an rwsem that never was merged (G03).
    pub const NOTIFIER_SLOTS: LockId = LockId(5);
    /// How many locks every VM has.
    pub(crate) const FIXED: usize = 6;
}

/// How a lock is taken.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LockMode {
    /// Shared with other readers.
    Read,
    /// Alone.
    Write,
}

/// A variable of the VM that actors share, by number; see the constants for the ones every VM has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
pub struct Var(pub u32);

impl Var {
    /// `mmu_invalidate_seq`
    pub const INVALIDATE_SEQ: Var = Var(0);
    /// `mmu_invalidate_in_progress`
    pub const IN_PROGRESS: Var = Var(1);
    /// `mmu_invalidate_range_start`, a guest-physical address (host-virtual up to 6.7)
    pub const RANGE_START: Var = Var(2);
    /// `mmu_invalidate_range_end`, likewise
    pub const RANGE_END: Var = Var(3);
    /// `mn_active_invalidate_count`
    pub const ACTIVE_INVALIDATIONS: Var = Var(4);
    /// The pointer to the active memslots (`kvm->memslots`), a [`SlotsVersion`](super::SlotsVersion).
    pub const MEMSLOTS: Var = Var(5);
    /// `srcu_idx` of `kvm->srcu`.
    pub const SRCU_INDEX: Var = Var(6);
    /// Sections of `kvm->srcu` entered under index 0.
    pub const SRCU_LOCKS_0: Var = Var(7);
    /// Under index 1.
    pub const SRCU_LOCKS_1: Var = Var(8);
    /// Sections left under index 0.
    pub const SRCU_UNLOCKS_0: Var = Var(9);
    /// Under index 1.
    pub const SRCU_UNLOCKS_1: Var = Var(10);
    /// Whether somebody waits for a grace period of `kvm->srcu`.
    pub const SRCU_WAITING: Var = Var(11);
    /// Start of the merged range of active invalidations as `gfn_to_pfn_cache` refreshers see it, a host-virtual address.
    pub const GPC_RANGE_START: Var = Var(12);
    /// Its end.
    pub const GPC_RANGE_END: Var = Var(13);
    /// How many variables every VM has.
    pub(crate) const FIXED: usize = 14;
}

/// A queue of actors that wait for an event, by number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
pub struct WaitQueue(pub u32);

impl WaitQueue {
    /// `mn_memslots_update_rcuwait`: a memslot update waits for active invalidations.
    pub const MEMSLOTS_UPDATE: WaitQueue = WaitQueue(0);
    /// A grace period of `kvm->srcu` waits for readers.
    pub const SRCU: WaitQueue = WaitQueue(1);
    /// Faults wait for pages under migration.
    pub const MIGRATION: WaitQueue = WaitQueue(2);
    /// Refreshes of a `gfn_to_pfn_cache` wait for invalidations.
    pub const GPC: WaitQueue = WaitQueue(3);
    /// How many queues every VM has.
    pub(crate) const FIXED: u32 = 4;
}

/// Whom a wake-up reaches.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Wake {
    /// The one that has waited longest.
    One,
    /// Everybody.
    All,
}

/// A vCPU by number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
pub struct VcpuId(pub usize);

/// What a load must not be overtaken by, or a store must not overtake.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Order {
    /// Nothing: `READ_ONCE`, `WRITE_ONCE`.
    Relaxed,
    /// An address dependency, of loads only: no older than what was written before the table entry that led here (`rcu_dereference`).
    Dependent,
    /// `smp_load_acquire`: later accesses stay later; `smp_store_release`: earlier accesses stay earlier.
    Synchronizing,
}

/// Whether an invalidation may sleep and give the processor away (`mmu_notifier_range_blockable`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
pub enum Blockable {
    /// It may.
    Yes,
    /// It must not: the OOM reaper waits for it.
    No,
}

/// A memory barrier.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Fence {
    /// `smp_rmb`: loads before stay before loads after.
    Read,
    /// `smp_wmb`: stores before stay before stores after.
    Write,
    /// `smp_mb`: everything stays.
    Full,
}

/// Costs that are charged by name because no single operation on the world stands for them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Work {
    /// The hypervisor's fixed path of one fault outside any lock: decode, memslot look-up, host page table walk.
    Fault,
    /// Bookkeeping of one leaf that went away: statistics, accessed and dirty state handed to the primary MMU.
    ReleaseLeaf,
    /// Dropping one reference to a table.
    PutReference,
    /// Zeroing one page of this size.
    ClearPage(PageSize),
    /// Allocating so many pages of 4 KiB that the kernel maps one after the other (`vmalloc`), and zeroing them.
    ZeroPages(u64),
    /// Filling one child entry of a huge leaf that is split, its bookkeeping included.
    SplitChild,
    /// `cpu_relax()`: a moment of spinning before something is read again.
    Relax,
    /// Queueing work to a kernel worker and waking it.
    Dispatch,
    /// One write to the line of `mmap_lock`, which may have to come from another processor.
    MmapLock,
    /// One write to the line in which a VM counts the pages that it maps (`kvm_update_page_stats` of x86).
    PageStats,
    /// What a call of an MMU notifier takes beside what it is for: the primary MMU's own entry, and sections of the notifiers' SRCU and of `kvm->srcu`, each of
    /// which begins and ends with a full barrier.
    NotifierCall,
    /// What an expedited grace period of SRCU takes while nobody is in a section: waking the worker, and two looks at the counters of all processors.
    GracePeriod,
    /// So many lines that come from memory.
    ColdLines(u64),
    /// A stretch of work given in cycles.
    Exactly(Cycles),
}

/// What a bulk operation does to each entry of a run.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Apply {
    /// Looks and moves on.
    Nothing,
    /// Replaces every word by this one.
    Set(u64),
    /// Fills a table that nobody else can see with an arithmetic progression. Nothing is read.
    Fill {
        /// The first word.
        first: u64,
        /// What is added from word to word.
        step: u64,
    },
    /// `word = (word & and) | or`.
    Mask {
        /// Bits kept.
        and: u64,
        /// Bits set.
        or: u64,
    },
}

/// Whether an update is a plain store or an atomic read-modify-write.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Atomicity {
    /// Nobody else can write the word.
    Plain,
    /// Hardware or another walker may.
    Atomic,
    /// Compare-and-swap: nothing is done, and 0 replied, when the first word is not this one any more. The others are read here.
    IfStill(u64),
}

/// Whether entries that point to tables make runs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TableEntries {
    /// As leaves do.
    Alike,
    /// Each is one of its own: the walk goes below it, so nobody need look how far they are alike.
    Apart,
}

/// Where the loop around a run asks for rescheduling. The run stops where the loop would yield.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ReschedCheck {
    /// `cond_resched` is the loop's first statement: it asks before each entry.
    EachEntry,
    /// `cond_resched` is its last one: it asks behind the work on each entry, which is the caller's to do for the last entry of the run. Of the operations on
    /// runs only [`Op::Run`] knows it; the others do nothing.
    BehindEach,
    /// The loop does not ask.
    Never,
}

/// The same work on consecutive entries. A run of n costs, counts and yields exactly like n single entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RunOp {
    /// First entry.
    pub at: Hpa,
    /// Entries, at least one. The first one has been read and checked already; the others are read and checked here.
    pub len: u64,
    /// What happens to each.
    pub apply: Apply,
    /// How it is written.
    pub atomicity: Atomicity,
    /// Extra work per entry.
    pub work: Option<Work>,
    /// Where the loop asks for rescheduling.
    pub check: ReschedCheck,
}

/// The same work on all leaves below consecutive table entries with alike subtrees, exactly as a walk over single entries would do it,
/// table entries of all levels included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RunBelow {
    /// First table entry. It has been read and checked already.
    pub at: Hpa,
    /// Table entries, at least one.
    pub len: u64,
    /// Level of those entries.
    pub level: Level,
    /// What happens to each leaf.
    pub apply: Apply,
    /// Extra work per leaf.
    pub work: Option<Work>,
    /// Whether the loop checks for rescheduling.
    pub check: ReschedCheck,
}

/// How an aging walk clears the accessed state of a young leaf.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum AgeWrite {
    /// Not at all: it only looks.
    Nothing,
    /// Atomic AND of the accessed flag; only for formats that have one.
    And,
    /// Compare-and-swap by the old form of the leaf, as [`mmu_core::Format::mark_old`] gives it.
    Cmpxchg,
}

/// Aging of consecutive entries without holding anything that keeps others away. A run of n costs and counts exactly like n
/// single entries; entries after the first are read here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AgeRun {
    /// First entry.
    pub at: Hpa,
    /// Entries, at least one.
    pub len: u64,
    /// Their level.
    pub level: Level,
    /// The first entry as read.
    pub old: u64,
    /// What happens to young leaves.
    pub write: AgeWrite,
}

/// Aging of all leaves below consecutive table entries with alike subtrees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AgeBelow {
    /// First table entry. It has been read already.
    pub at: Hpa,
    /// Table entries, at least one.
    pub len: u64,
    /// Level of those entries.
    pub level: Level,
    /// What happens to young leaves.
    pub write: AgeWrite,
}

/// What becomes of each leaf of the rest of a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EachLeaf {
    /// It is looked at, and made old in this way if it is young.
    Age(AgeWrite),
    /// It is replaced by this word, and its state released.
    Release {
        /// The new word.
        word: u64,
        /// How it is written.
        atomicity: Atomicity,
    },
}

/// The same work on all leaves among consecutive entries of one table, whatever else those are, exactly as a loop over single entries would
/// do it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RestOfTable {
    /// First entry. Nobody has read it yet.
    pub at: Hpa,
    /// Entries, at least one.
    pub len: u64,
    /// Their level.
    pub level: Level,
    /// What becomes of leaves. Entries that map nothing are read and stay.
    pub leaf: EachLeaf,
    /// Whether the loop checks for rescheduling.
    pub check: ReschedCheck,
}

/// What a walk does to each of the entries that it works on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SliceWork {
    /// They are leaves.
    Leaves {
        /// What happens to each.
        apply: Apply,
        /// How it is written.
        atomicity: Atomicity,
        /// Extra work per leaf.
        work: Option<Work>,
    },
    /// They point to tables, which are torn down and retired with all that is below, as by [`Op::RemoveSubtrees`].
    Subtrees {
        /// What the entries become.
        unlinked: u64,
        /// What is written into the entries of a detached table.
        marker: u64,
    },
}

/// Time slices of a walk that has just given way and got its lock and its RCU section back: in each it goes down from the root to where it stopped, works on
/// entries until the slice is over, flushes if it has to, leaves the RCU section, gives the lock back, reschedules, takes the lock, and enters
/// a section.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slices {
    /// Below which root.
    pub root: Hpa,
    /// Where the walk has yielded.
    pub start: Gpa,
    /// Where it ends.
    pub end: Gpa,
    /// Level of the entries that it works on.
    pub level: Level,
    /// What it does to them.
    pub work: SliceWork,
    /// Where it asks: before each entry but the one at which it starts over, or behind the work on each.
    pub check: ReschedCheck,
    /// What it flushes before it gives way.
    pub flush: Option<Flush>,
    /// How it holds `mmu_lock`.
    pub lock: LockMode,
}

/// A stretch of table frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Frames {
    /// First byte of the first frame.
    pub first: Hpa,
    /// How many.
    pub count: u64,
    /// Their level.
    pub level: Level,
    /// Bytes of one frame.
    pub bytes: u64,
}

/// One micro-operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// Reads a table word.
    Read(Hpa),
    /// Reads a table word and how far its progression goes, up to this many words.
    ReadRun(Hpa, u64, TableEntries),
    /// Writes a table word.
    Write(Hpa, u64, Order),
    /// Compare-and-swap of a table word: expected, new.
    Cmpxchg(Hpa, u64, u64),
    /// Atomic exchange of a table word.
    Xchg(Hpa, u64),
    /// Atomic AND of a table word.
    FetchAnd(Hpa, u64),
    /// Atomic OR of a table word.
    FetchOr(Hpa, u64),
    /// Bulk work on consecutive entries; replies how many were done.
    Run(RunOp),
    /// Bulk work on every leaf below consecutive table entries; replies how many tables were done (0: go down).
    RunBelow(RunBelow),
    /// Ages consecutive entries; replies how many were done, whether the first's compare-and-swap failed, the first as found.
    Age(AgeRun),
    /// Ages every leaf below consecutive table entries; replies how many of the entries were done (0: go down), whether their leaves
    /// were young, leaves below each.
    AgeBelow(AgeBelow),
    /// Works on leaves among entries of all kinds; replies how many entries were done (0: go on one by one), the leaves among them, and how
    /// many of those were worked on.
    Rest(RestOfTable),
    /// Detaches the subtrees of consecutive table entries at once where they are alike, exactly as the entry-by-entry teardown would; replies
    /// how many it could do (0: do it entry by entry).
    RemoveSubtrees(RemoveSubtrees),
    /// Many time slices of a walk over entries that are alike; replies how many entries were worked on (0: go on slice by slice), after which the walk has
    /// just yielded again.
    Slices(Slices),
    /// Allocates a zeroed table of this level.
    Alloc(Level),
    /// Number of present entries in a table.
    Live(Hpa),
    /// Frees tables at once.
    Free(Frames),
    /// Frees tables after a grace period.
    CallRcu(Frames),
    /// Waits for a grace period.
    SynchronizeRcu,
    /// Enters an RCU read section.
    RcuLock,
    /// Leaves it.
    RcuUnlock,
    /// Takes a lock.
    Lock(LockId, LockMode),
    /// Gives it back.
    Unlock(LockId),
    /// Asks whether this actor should give way: its time slice is over, or somebody waits for this lock.
    NeedResched(LockId),
    /// Gives the processor away once.
    Reschedule,
    /// The lock with this number, which the actor holds, stands for the processor that it shares with others.
    Occupy(LockId),
    /// Leaves that processor.
    Vacate,
    /// Invalidates cached translations and waits until every processor has.
    Flush(Flush),
    /// Loads a shared variable.
    Load(Var, Order),
    /// Stores a shared variable.
    Store(Var, u64, Order),
    /// Adds to a shared variable; replies the new value.
    Add(Var, i64),
    /// Compare-and-swap of a shared variable: expected, new; replies what was found.
    CmpxchgVar(Var, u64, u64),
    /// Atomic exchange of a shared variable; replies what was found.
    XchgVar(Var, u64),
    /// A memory barrier.
    Fence(Fence),
    /// Makes a new shared variable with this value; replies its number.
    NewVar(u64),
    /// Makes a new lock; replies its number.
    NewLock(LockKind),
    /// Makes a new wait queue; replies its number.
    NewWaitQueue,
    /// Enters a wait queue (`prepare_to_wait`): a wake-up from now on is not missed.
    PrepareToWait(WaitQueue),
    /// Leaves a wait queue (`finish_wait`).
    FinishWait(WaitQueue),
    /// Sleeps until woken from this queue; returns at once when that has happened since the queue was entered.
    Schedule(WaitQueue),
    /// Wakes sleepers of a queue.
    WakeUp(WaitQueue, Wake),
    /// Spends time on work.
    Spend(Work),
    /// Sleeps.
    Sleep(Cycles),
    /// Sleeps until this moment.
    SleepUntil(Cycles),
    /// The moment it is.
    Now,
    /// The largest page, up to this size, that the primary MMU maps a guest page by; replies its shift.
    HostMapping(u64, PageSize),
    /// The primary MMU drops the backing pages of a guest-physical range and frees them.
    DropPages(GpaRange),
    /// Makes every vCPU leave its root and load the VM's current one before it enters the guest again; waits until none runs on the
    /// old one.
    ReloadRoots,
    /// Enters the guest on a vCPU and waits until it leaves.
    VcpuRun(VcpuId),
    /// Makes every vCPU that runs guest code leave it; waits until all have.
    KickAll,
    /// Makes a vCPU that is out of the guest use this root, with this generation as the tag of its translations.
    LoadRoot(VcpuId, Hpa, u16),
    /// Makes this the VM's current root.
    SetRoot(Hpa),
    /// The VM's current root.
    Root,
    /// Cache maintenance, references to tables, and what else the upkeep of guest memory takes.
    Upkeep(Upkeep),
    /// An operation on the primary MMU.
    Primary(PrimaryOp),
    /// An operation on memslots.
    Slots(SlotsOp),
    /// From here on, or no longer, the actor must not block: a notifier that is not blockable.
    MayBlock(Blockable),
    /// Dirty logging.
    Dirty(DirtyOp),
    /// Counts a second-stage fault that changed nothing (somebody else was first).
    CountSpurious,
    /// Counts a fault that has to be taken again.
    CountRetry,
}

impl Op {
    /// Whether the actor may lose the processor by it, beyond waiting for a spinning lock or for a flush.
    pub(crate) fn gives_way(self) -> bool {
        matches!(
            self,
            Op::Reschedule | Op::SynchronizeRcu | Op::Schedule(_) | Op::Sleep(_) | Op::SleepUntil(_) | Op::VcpuRun(_)
        )
    }
}

/// Arguments of [`Op::RemoveSubtrees`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RemoveSubtrees {
    /// First table entry of the parent. It has been read and checked already.
    pub at: Hpa,
    /// Table entries, at least one.
    pub len: u64,
    /// Level of those entries.
    pub level: Level,
    /// What the table entries become.
    pub unlinked: u64,
    /// What is written into the entries of a detached table; 0 leaves those that map nothing alone.
    pub marker: u64,
    /// Whether the loop checks for rescheduling before each table entry.
    pub check: ReschedCheck,
    /// What is flushed for each table before it is retired.
    pub flush: Option<Flush>,
}

/// The engine's answer: up to three numbers, read by the typed methods of `Host`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, serde::Serialize, serde::Deserialize)]
pub struct Reply {
    /// First number.
    pub a: u64,
    /// Second number.
    pub b: u64,
    /// Third number.
    pub c: u64,
}

impl Reply {
    /// A reply of one number.
    pub const fn one(a: u64) -> Self {
        Self { a, b: 0, c: 0 }
    }
}
