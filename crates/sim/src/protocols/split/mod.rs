//! Splitting huge leaves: eagerly when dirty logging starts, lazily when a fault wants smaller pages.
//!
//! Models
//!  * x86, 5.18 and later: `kvm_tdp_mmu_try_split_huge_pages`, `tdp_mmu_split_huge_page` (a3fe5dbda0a4, "Split huge pages mapped by
//!    the TDP MMU when dirty logging is enabled"). A table is allocated without waiting; when that fails the lock is dropped, the table
//!    allocated with reclaim, and the iterator marked as yielded. The table is filled, then linked by compare-and-swap. **No
//!    flush**: old and new translations of a page are the same.
//!  * arm64, 6.5 and later: `kvm_mmu_split_huge_pages`, `kvm_pgtable_stage2_split` (8f5a3eb7513f, e7bf7a490c68). By chunks under the write
//!    lock; between chunks a cache of tables is topped up. A fully populated table is built unlinked, without cache maintenance and
//!    without invalidations; then break-before-make: the entry is locked, the block invalidated, the table linked.
//!  * faults: `tdp_mmu_map` of 5.12 (huge leaf frozen, flushed, cleared, A4.4) and of 6.1 (split in place); `stage2_map_walk_leaf` (broken,
//!    an empty table linked); POWER's `kvmppc_create_pte` (unmapped, the fault maps the small page).
//!
//! POWER's KVM splits nothing eagerly. The walk works there all the same, with break-before-make by its own rule.
//!
//! Locking: the caller holds `mmu_lock` in the policy's mode and gets it back in that mode; it is dropped in between by yields, top-ups
//! and allocations with reclaim. Flush: none is owed afterwards; where the architecture wants break-before-make it happened here. Frees:
//! only tables that were never linked, at once. Invalid roots are the caller's to leave out (X39).

mod chunks;
mod lazy;

use std::fmt;

use mmu_core::{
    BreakRule, Bytes, Cycles, Entry, Format, Gpa, GpaRange, Hpa, Leaf, Level, NotPresent, PageSize, Perms, WalkCaches,
};
use serde::{Deserialize, Serialize};

use super::iter::{FlushDebt, FlushOnYield, TdpIter, WalkRules, Yield, check_each, cond_resched, skip_run};
use super::roots::UnmapRoots;
use super::zap::{LinkedTable, ZapLock};
use crate::engine::{Apply, Atomicity, Cmpxchg, Frames, Host, LockId, ReschedCheck, RunOp, Work};
use crate::events::Trace;

pub use lazy::{LazilySplit, LazySplit, lazy_split};

/// Where tables for an eager split come from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum SplitTables {
    /// `GFP_NOWAIT` under the lock; when it fails the lock is dropped and the table allocated with reclaim (x86).
    NoWait {
        /// Every how manyth allocation fails; 0 for none.
        fails_every: u32,
    },
    /// A cache that is topped up outside the lock, one chunk's worth at a time (arm64).
    TopUp {
        /// Stretch between two top-ups (`KVM_CAP_ARM_EAGER_SPLIT_CHUNK_SIZE`); a block size of the format.
        chunk: Bytes,
    },
}

/// When a table becomes visible.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Publish {
    /// After all of its entries are written.
    FillThenLink,
    /// Before (X47): a walk meanwhile finds holes.
    LinkThenFill,
}

/// Whether the architecture's rule about replacing a live entry is kept.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BreakBeforeMake {
    /// Where the format asks for it.
    AsRequired,
    /// Never (A27: block and page translations coexist).
    Skipped,
}

/// How leaves are split.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitPolicy {
    /// How the caller holds `mmu_lock`.
    pub lock: ZapLock,
    /// When the walk yields; arm64 asks between chunks only.
    pub yielding: Yield,
    /// Where tables come from.
    pub tables: SplitTables,
    /// When a table becomes visible.
    pub publish: Publish,
    /// Break-before-make.
    pub breaking: BreakBeforeMake,
    /// What reclaiming memory for one table costs when an allocation without waiting has failed.
    pub reclaim: Cycles,
    /// Roots that are split where a VM has several: invalid ones are of no use to anybody (X39 splits them all the same, and links tables into trees that
    /// are being torn down).
    pub roots: UnmapRoots,
}

impl SplitPolicy {
    /// x86, Linux 5.18: when logging is enabled, sharing the lock with faults.
    pub const X86_5_18: SplitPolicy = SplitPolicy {
        lock: ZapLock::Read,
        yielding: Yield::YieldedGfn,
        tables: SplitTables::NoWait { fails_every: 0 },
        publish: Publish::FillThenLink,
        breaking: BreakBeforeMake::AsRequired,
        reclaim: Cycles(20_000),
        roots: UnmapRoots::ValidOnly,
    };
    /// arm64, Linux 6.5, in chunks of 2 MiB.
    pub const ARM64_6_5: SplitPolicy = SplitPolicy {
        lock: ZapLock::Write,
        tables: SplitTables::TopUp { chunk: Bytes(PageSize::SIZE_2M.bytes()) },
        ..Self::X86_5_18
    };

    fn rules(&self) -> WalkRules {
        let flush_on_yield = FlushOnYield::IfPending;
        WalkRules { yielding: self.yielding, flush_on_yield, lock: self.lock.mode() }
    }
}

/// What an eager split did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Splits {
    /// Leaves replaced by tables, of any size.
    pub leaves: u64,
    /// Races lost to somebody who shares the lock, or to hardware setting a flag.
    pub raced: u64,
    /// Allocations without waiting that failed: the lock was dropped for each.
    pub reclaims: u64,
    /// Top-ups of the cache of tables.
    pub top_ups: u64,
}

impl Splits {
    /// Both together.
    pub fn merge(&self, other: &Splits) -> Splits {
        Splits {
            leaves: self.leaves + other.leaves,
            raced: self.raced + other.raced,
            reclaims: self.reclaims + other.reclaims,
            top_ups: self.top_ups + other.top_ups,
        }
    }
}

/// Why a split stopped early. What was split stays split; the rest is split by faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SplitError {
    /// No table was left.
    NoTables {
        /// Where it stopped.
        at: Gpa,
        /// What was done before.
        done: Splits,
    },
    /// The format has no leaves of this size.
    PageSize {
        /// The size asked for.
        to: PageSize,
    },
    /// The chunk is no leaf size of the format above the target.
    Chunk {
        /// The chunk asked for.
        chunk: Bytes,
    },
}

impl fmt::Display for SplitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SplitError::NoTables { at, done } => write!(
                f,
                "no table was left to split the leaf at {at}, after {} leaves; give the VM a larger table pool",
                done.leaves
            ),
            SplitError::PageSize { to } => {
                write!(f, "the second stage has no leaves of {to}; split to one of its page sizes")
            }
            SplitError::Chunk { chunk } => {
                write!(
                    f,
                    "a split chunk of {chunk} is no block size of the second stage; use 2M or 1G with a 4K granule"
                )
            }
        }
    }
}
impl std::error::Error for SplitError {}

/// Splits every leaf of a range below `root` that is larger than `to`.
///
/// # Errors
/// When tables run out, or a size is not one of the format's.
pub async fn eager_split<F: Format>(
    host: &Host<F>,
    root: Hpa,
    range: GpaRange,
    to: PageSize,
    policy: &SplitPolicy,
) -> Result<Splits, SplitError> {
    let goal = host.format().geometry().level_of(to).ok_or(SplitError::PageSize { to })?;
    let range = Target { root, range, goal };
    let mut done = Splits::default();
    match policy.tables {
        SplitTables::NoWait { fails_every } => {
            let nowait = NoWait { fails_every, tried: 0, spare: None };
            split_range(host, range, policy, nowait, &mut done).await?;
        }
        SplitTables::TopUp { chunk } => {
            let geometry = host.format().geometry();
            if !geometry.page_sizes().any(|size| size.bytes() == chunk.0 && size > to) {
                return Err(SplitError::Chunk { chunk });
            }
            chunks::split_chunks(host, range, chunk, policy, &mut done).await?;
        }
    }
    Ok(done)
}

/// What is split, and down to which level.
#[derive(Clone, Copy, Debug)]
struct Target {
    root: Hpa,
    range: GpaRange,
    goal: Level,
}

/// Allocation without waiting, which fails by plan; the explorer makes every failure a decision of its own.
struct NoWait {
    fails_every: u32,
    tried: u32,
    /// A table with its level, allocated and not used yet.
    spare: Option<(Hpa, Level)>,
}

impl NoWait {
    async fn table<F: Format>(&mut self, host: &Host<F>, level: Level) -> Option<Hpa> {
        if let Some((table, of)) = self.spare.take() {
            if of == level {
                return Some(table);
            }
            give_back(host, table, of).await;
        }
        self.tried += 1;
        if self.fails_every != 0 && self.tried.is_multiple_of(self.fails_every) {
            return None;
        }
        host.alloc_table(level).await
    }
}

/// Frees a table that nobody has ever seen.
async fn give_back<F: Format>(host: &Host<F>, table: Hpa, level: Level) {
    let bytes = host.format().geometry().table_bytes(level);
    host.free_tables(Frames { first: table, count: 1, level, bytes }).await;
}

/// `tdp_mmu_split_huge_pages_root`
async fn split_range<F: Format>(
    host: &Host<F>,
    range: Target,
    policy: &SplitPolicy,
    mut nowait: NoWait,
    done: &mut Splits,
) -> Result<(), SplitError> {
    let Target { root, range, goal } = range;
    let check = check_each(policy.yielding);
    let mut debt = FlushDebt::Clean;
    let mut outcome = Ok(());
    host.rcu_read_lock().await;
    let mut iter = TdpIter::new(*host.format(), root, goal.up(), range.start, range.end());
    while iter.next(host).await {
        if cond_resched(host, &mut iter, policy.rules(), &mut debt).await {
            continue;
        }
        let Some(child) = iter.level.down().filter(|_| iter.is_leaf() && iter.level > goal) else {
            skip_run(host, &mut iter, check).await;
            continue;
        };
        let Some(table) = nowait.table(host, child).await else {
            done.reclaims += 1;
            let Some(table) = reclaim_table(host, child, policy).await else {
                outcome = Err(SplitError::NoTables { at: iter.gpa, done: *done });
                break;
            };
            nowait.spare = Some((table, child));
            // Lock and RCU section were given up: every table but the root may have gone.
            iter.restart_next();
            continue;
        };
        match split_leaf(host, iter.sptep, iter.level, iter.gpa, iter.old, table, policy).await {
            Linked::Table(word) => {
                done.leaves += 1;
                iter.replaced(word);
            }
            Linked::Raced => {
                done.raced += 1;
                nowait.spare = Some((table, child));
                iter.retry();
            }
            Linked::Unsplittable => {
                nowait.spare = Some((table, child));
                iter.take(1);
            }
        }
    }
    host.rcu_read_unlock().await;
    if let Some((table, level)) = nowait.spare.take() {
        give_back(host, table, level).await;
    }
    outcome
}

/// `tdp_mmu_alloc_sp_for_split` after `GFP_NOWAIT` failed: without lock and RCU section, with reclaim.
async fn reclaim_table<F: Format>(host: &Host<F>, level: Level, policy: &SplitPolicy) -> Option<Hpa> {
    host.rcu_read_unlock().await;
    host.unlock(LockId::MMU).await;
    host.spend(Work::Exactly(policy.reclaim)).await;
    let table = host.alloc_table(level).await;
    host.lock(LockId::MMU, policy.lock.mode()).await;
    host.rcu_read_lock().await;
    table
}

/// What became of one leaf.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "the table is the caller's unless it was linked"]
pub enum Linked {
    /// The table is linked by this word.
    Table(u64),
    /// The leaf changed first; the table is still the caller's.
    Raced,
    /// The format has no leaves below this one that say the same; the table is still the caller's.
    Unsplittable,
}

/// Splits the leaf `old`, standing at `level` and covering from `gpa` on, into the entries of `table`, which is empty and of
/// the level below. Caller holds `mmu_lock` and is inside an RCU section. Break-before-make, where needed, is done here.
pub async fn split_leaf<F: Format>(
    host: &Host<F>,
    at: Hpa,
    level: Level,
    gpa: Gpa,
    old: u64,
    table: Hpa,
    policy: &SplitPolicy,
) -> Linked {
    let Some(children) = Children::of(host.format(), level, old) else { return Linked::Unsplittable };
    link_children(host, LinkedTable { sptep: at, level, gpa, table }, old, children, policy).await
}

/// Fills `link.table` with `children` and puts it in place of the leaf `old`: [`split_leaf`] for somebody who wants other children.
pub async fn link_children<F: Format>(
    host: &Host<F>,
    link: LinkedTable,
    old: u64,
    children: Children<F::Attrs>,
    policy: &SplitPolicy,
) -> Linked {
    let LinkedTable { sptep, level, gpa, table } = link;
    let Ok(word) = host.format().encode_table(level, table) else { return Linked::Unsplittable };
    if policy.publish == Publish::FillThenLink {
        children.fill(host, table).await;
    }
    let linked = replace(host, sptep, level, gpa, old, word, policy.breaking).await;
    if linked && policy.publish == Publish::LinkThenFill {
        children.fill(host, table).await;
    }
    host.trace(|| Trace::KvmMmuSplitHugePage {
        gfn: gpa.raw() >> 12,
        spte: old,
        level: 1 + level.index() as u32,
        // -EBUSY
        errno: if linked { 0 } else { -16 },
    });
    if linked { Linked::Table(word) } else { Linked::Raced }
}

/// Replaces a live entry by another one: in one step where the format allows it, else broken, invalidated and made. False
/// when the entry was not `old` any more.
pub(super) async fn replace<F: Format>(
    host: &Host<F>,
    at: Hpa,
    level: Level,
    gpa: Gpa,
    old: u64,
    new: u64,
    breaking: BreakBeforeMake,
) -> bool {
    let format = *host.format();
    let needed = matches!(format.break_rule(level, old, new), BreakRule::Needed(_));
    if !needed || breaking == BreakBeforeMake::Skipped {
        return host.cmpxchg(at, old, new).await == Cmpxchg::Done;
    }
    // `stage2_try_break_pte`: locked, so that nobody installs anything while the old translation is on its way out.
    let locked = format.encode_not_present(NotPresent::Frozen).unwrap_or(0);
    if host.cmpxchg(at, old, locked).await != Cmpxchg::Done {
        return false;
    }
    let walk_caches = if format.is_leaf(level, old) { WalkCaches::Keep } else { WalkCaches::Drop };
    host.flush_range(GpaRange::new(gpa, format.geometry().page_size(level).into()), walk_caches).await;
    // `stage2_make_pte`: the table's entries are visible before the table is.
    host.write_release(at, new).await;
    true
}

/// The entries that say together what one leaf said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Children<A> {
    level: Level,
    leaf: Leaf<A>,
    state: ChildState,
}

/// What software keeps of a leaf that hardware cannot use at the moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ChildState {
    /// As it is.
    Plain,
    /// Marked old by taking its permissions away: so are the children.
    AccessTracked,
}

impl<A: Copy + Eq + Default + fmt::Debug> Children<A> {
    /// Of the leaf `old` at `level` (`make_small_spte`): same attributes, same accessed and dirty state. `None` when it is no leaf, or
    /// stands at the last level, or there are no leaves below it.
    pub fn of<F: Format<Attrs = A>>(format: &F, level: Level, old: u64) -> Option<Self> {
        let child = level.down().filter(|&child| format.geometry().has_leaves_at(child))?;
        let (leaf, state) = match format.decode(level, old) {
            Entry::Leaf(leaf) => (leaf, ChildState::Plain),
            _ if format.is_mapped(old) => match format.decode(level, format.mark_young(old)?) {
                Entry::Leaf(leaf) => (leaf, ChildState::AccessTracked),
                _ => return None,
            },
            _ => return None,
        };
        let children = Self { level: child, leaf, state };
        children.word(format, leaf.output).map(|_| children)
    }

    /// The same with execute permission.
    pub fn executable(self) -> Self {
        Self { leaf: Leaf { perms: self.leaf.perms.with(Perms::X), ..self.leaf }, ..self }
    }

    /// The word of the child that maps `output`.
    pub fn word<F: Format<Attrs = A>>(&self, format: &F, output: Hpa) -> Option<u64> {
        let word = format.encode_leaf(self.level, &Leaf { output, ..self.leaf }).ok()?;
        Some(if self.state == ChildState::AccessTracked { format.mark_old(word) } else { word })
    }

    /// Writes all of them into a table.
    async fn fill<F: Format<Attrs = A>>(&self, host: &Host<F>, table: Hpa) {
        let format = *host.format();
        let geometry = *format.geometry();
        let (entries, page) = (geometry.entries(self.level) as u64, geometry.page_size(self.level).bytes());
        let mut done = 0;
        while done < entries {
            let output = self.leaf.output + done * page;
            let Some(first) = self.word(&format, output) else { return };
            let run = RunOp {
                at: table + 8 * done,
                len: format.progression(self.level, output).min(entries - done).max(1),
                apply: Apply::Fill { first, step: page },
                atomicity: Atomicity::Plain,
                work: Some(Work::SplitChild),
                check: ReschedCheck::Never,
            };
            done += host.run(run).await;
        }
    }
}
