//! Zapping: leaves of a range, one table, a whole root.
//!
//! Models the TDP MMU as it stood before and after "Overhaul TDP MMU zapping and flushing" (v4, March 2022, merged for
//! 5.18): `tdp_mmu_zap_leafs`, `kvm_tdp_mmu_zap_sp`, `tdp_mmu_zap_root`, `handle_removed_pt`.
//!
//! | flow | clears | flush | frees |
//! | --- | --- | --- | --- |
//! | [`zap_leafs`] | leaves of a range | caller, before the lock is dropped; before a yield here | nothing |
//! | [`zap_table`] | the entry above one table | before the RCU section ends | the subtree, by RCU |
//! | [`zap_root`] | everything below a root | by policy | all tables, by RCU |

use mmu_core::{Flush, Format, Gpa, GpaRange, Hpa, Level, NotPresent, WalkCaches};
use serde::{Deserialize, Serialize};

use super::iter::{
    FlushDebt, FlushOnYield, TdpIter, WalkRules, Yield, bulk, check_each, cond_resched, rest_of_table, skip_run, slices,
};
use crate::engine::{
    Apply, Atomicity, Cmpxchg, EachLeaf, Frames, Host, LockMode, RemoveSubtrees, ReschedCheck, RestOfTable, RunBelow,
    RunOp, SliceWork, Work,
};

/// When a torn-down table's translations are flushed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TableFlush {
    /// A remote flush per table page, before it is given to RCU (up to 5.17; X18).
    PerTablePage,
    /// One flush before the RCU section ends: the caller's section stands in for all vCPUs (bb95dfb9e2df).
    DeferredRcu,
    /// None: the root is unreachable, and its tag is flushed before it is used again (77c8cd6b85af).
    NoneUnreachable,
}

/// In how many passes, and at which levels, a root is zapped.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Passes {
    /// Root entries only, each torn down without a break (up to 5.17; X16, X17).
    One,
    /// 1 GiB entries first, then the root's (1b6043e8e584).
    GigThenRoot,
    /// 4K, 2M, 1G, root (6.9).
    FourLevels,
}

/// What the entries of a table become that was unlinked while others may still be inside it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DetachedEntries {
    /// Frozen where the lock is shared: nobody installs anything any more (e25f0e0cd51b).
    #[default]
    Frozen,
    /// Cleared (X12): a walker inside installs a leaf, which nobody will ever take away.
    Cleared,
}

/// Which leaves are zapped by an atomic exchange under the write lock, where the others get a plain store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AtomicZap {
    /// All of them.
    #[default]
    Always,
    /// Those that hardware or a fault without the lock may change (`kvm_tdp_mmu_spte_need_atomic_write`).
    Volatile,
    /// Those that may be made writable without the lock, even where they are writable already (X27).
    MmuWritable,
}

impl AtomicZap {
    fn wants<F: Format>(self, format: &F, leaf: u64) -> bool {
        let tracked = format.hardware_dirty() && format.dirty_mask() != 0;
        let writable = format.is_writable(leaf);
        let volatile = format.mark_young(leaf).is_some()
            || (tracked && writable && leaf & format.dirty_mask() == 0)
            || (!writable && format.restore_write(leaf).is_some());
        match self {
            AtomicZap::Always => true,
            AtomicZap::Volatile => volatile,
            AtomicZap::MmuWritable => volatile || writable,
        }
    }
}

/// How `mmu_lock` is held while zapping.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ZapLock {
    /// Exclusively.
    Write,
    /// Shared with faulting vCPUs.
    Read,
}

impl ZapLock {
    /// How leaves are written under it: exchanged where nobody else may, replaced only if they still are `old` where somebody may.
    const fn atomicity(self, old: u64) -> Atomicity {
        match self {
            ZapLock::Write => Atomicity::Atomic,
            ZapLock::Read => Atomicity::IfStill(old),
        }
    }

    /// As the lock operation wants it.
    pub const fn mode(self) -> LockMode {
        match self {
            ZapLock::Write => LockMode::Write,
            ZapLock::Read => LockMode::Read,
        }
    }
}

/// A zap's policy.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ZapPolicy {
    /// When tables are flushed.
    pub flush: TableFlush,
    /// When the walk yields.
    pub yielding: Yield,
    /// Whether a yield flushes.
    pub flush_on_yield: FlushOnYield,
    /// Passes over a root.
    pub passes: Passes,
    /// Lock mode.
    pub lock: ZapLock,
    /// What becomes of a detached table's entries.
    #[serde(default)]
    pub detached: DetachedEntries,
    /// Which leaves need an atomic exchange.
    #[serde(default)]
    pub atomic: AtomicZap,
}

impl ZapPolicy {
    /// Linux 5.17 and before.
    pub const V5_17: ZapPolicy = ZapPolicy {
        flush: TableFlush::PerTablePage,
        yielding: Yield::YieldedGfn,
        flush_on_yield: FlushOnYield::IfPending,
        passes: Passes::One,
        lock: ZapLock::Write,
        detached: DetachedEntries::Frozen,
        atomic: AtomicZap::Always,
    };
    /// Linux 5.18: the overhaul.
    pub const V5_18: ZapPolicy = ZapPolicy {
        flush: TableFlush::NoneUnreachable,
        passes: Passes::GigThenRoot,
        lock: ZapLock::Read,
        ..Self::V5_17
    };
    /// Linux 6.9: 4 KiB granular.
    pub const V6_9: ZapPolicy = ZapPolicy { passes: Passes::FourLevels, ..Self::V5_18 };

    fn rules(&self) -> WalkRules {
        WalkRules { yielding: self.yielding, flush_on_yield: self.flush_on_yield, lock: self.lock.mode() }
    }
}

/// Zaps the leaves of a range below one root. Caller holds `mmu_lock` in the policy's mode and owes the returned flush before it drops it.
pub async fn zap_leafs<F: Format>(host: &Host<F>, root: Hpa, range: GpaRange, policy: &ZapPolicy) -> FlushDebt {
    zap_leafs_owing(host, root, range, policy, FlushDebt::Clean).await
}

/// [`zap_leafs`] for a caller that owes a flush already, for another root: a yield in this one pays it (a835429cda91; X05 is a
/// caller that keeps its debt to itself).
pub async fn zap_leafs_owing<F: Format>(
    host: &Host<F>,
    root: Hpa,
    range: GpaRange,
    policy: &ZapPolicy,
    owed: FlushDebt,
) -> FlushDebt {
    let mut debt = owed;
    let early = policy.yielding != Yield::AfterWorkOnly;
    let check = if early { check_each(policy.yielding) } else { ReschedCheck::BehindEach };
    host.rcu_read_lock().await;
    let mut iter = TdpIter::new(*host.format(), root, Level::LAST, range.start, range.end());
    while iter.next(host).await {
        if early && cond_resched(host, &mut iter, policy.rules(), &mut debt).await {
            leaf_slices(host, &mut iter, check, policy).await;
            continue;
        }
        if early && zap_below(host, &mut iter, check).await {
            debt = FlushDebt::Owed;
            continue;
        }
        if !iter.is_leaf() {
            // The old place for the question is behind work: entries that need none are passed over without it.
            let check = if early { check } else { ReschedCheck::Never };
            skip_run(host, &mut iter, check).await;
            continue;
        }
        let exchanged = policy.atomic.wants(host.format(), iter.old);
        let atomicity = if exchanged { Atomicity::Atomic } else { Atomicity::Plain };
        bulk(host, &mut iter, Apply::Set(0), atomicity, Some(Work::ReleaseLeaf), check).await;
        debt = FlushDebt::Owed;
        if early && policy.atomic == AtomicZap::Always {
            rest_of_table(host, &mut iter, EachLeaf::Release { word: 0, atomicity }, check).await;
        }
        if !early {
            // The walk goes on, or starts over, either way at the loop's head.
            if cond_resched(host, &mut iter, policy.rules(), &mut debt).await {
                leaf_slices(host, &mut iter, check, policy).await;
            }
        }
    }
    host.rcu_read_unlock().await;
    debt
}

/// Goes through the time slices at once that a walk over leaves has left, where they are alike.
async fn leaf_slices<F: Format>(host: &Host<F>, iter: &mut TdpIter<F>, check: ReschedCheck, policy: &ZapPolicy) {
    if policy.atomic == AtomicZap::Always {
        slices(host, iter, policy.rules(), check, ZAPPED, FlushDebt::Owed).await;
    }
}

/// What becomes of leaves that are alike.
const ZAPPED: SliceWork =
    SliceWork::Leaves { apply: Apply::Set(0), atomicity: Atomicity::Atomic, work: Some(Work::ReleaseLeaf) };

/// Zaps the leaves of whole tables, and of those below, at once where they are alike.
async fn zap_below<F: Format>(host: &Host<F>, iter: &mut TdpIter<F>, check: ReschedCheck) -> bool {
    let len = iter.tables_ahead();
    if len == 0 {
        return false;
    }
    let work = Some(Work::ReleaseLeaf);
    let run = RunBelow { at: iter.sptep, len, level: iter.level, apply: Apply::Set(0), work, check };
    let n = host.run_below(run).await;
    if n > 0 {
        iter.skip_below(n);
    }
    n > 0
}

/// A table and the entry that points to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkedTable {
    /// The entry above it.
    pub sptep: Hpa,
    /// Level of that entry.
    pub level: Level,
    /// First guest-physical byte that the entry covers.
    pub gpa: Gpa,
    /// The table.
    pub table: Hpa,
}

/// What became of a request to zap one table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a zapped table may owe a flush before the RCU section ends"]
pub enum TableZap {
    /// Unlinked and given to RCU; the caller owes this before it leaves its RCU section.
    Zapped(FlushDebt),
    /// The entry above does not point to it any more: somebody else was first.
    Gone,
}

/// `kvm_tdp_mmu_zap_sp`: the entry above one table becomes non-present and the subtree is retired. Caller holds `mmu_lock` in
/// the policy's mode and is inside an RCU section, which must not end before the debt is paid (A4.2).
pub async fn zap_sp<F: Format>(host: &Host<F>, page: LinkedTable, policy: &ZapPolicy) -> TableZap {
    let LinkedTable { sptep, level, table, .. } = page;
    let old = host.read(sptep).await;
    if !is_table(host.format(), level, old) || host.format().next_table(level, old) != table {
        return TableZap::Gone;
    }
    if !detach(host, sptep, old, policy).await {
        return TableZap::Gone;
    }
    remove_table(host, table, level, policy).await;
    TableZap::Zapped(if policy.flush == TableFlush::PerTablePage { FlushDebt::Clean } else { FlushDebt::Owed })
}

/// Zaps whatever table the entry at `sptep` points to; it stands at `level` and covers from `gpa` on. Caller holds `mmu_lock`;
/// the flush is done before the RCU section here ends, unless the policy leaves it to the caller.
pub async fn zap_table<F: Format>(host: &Host<F>, sptep: Hpa, level: Level, gpa: Gpa, policy: &ZapPolicy) -> FlushDebt {
    host.rcu_read_lock().await;
    let old = host.read(sptep).await;
    let table = host.format().next_table(level, old);
    let mut debt = FlushDebt::Clean;
    if is_table(host.format(), level, old)
        && let TableZap::Zapped(owed) = zap_sp(host, LinkedTable { sptep, level, gpa, table }, policy).await
    {
        debt = owed;
    }
    if policy.flush == TableFlush::DeferredRcu && debt == FlushDebt::Owed {
        let page = host.format().geometry().page_size(level);
        host.flush_range(GpaRange::new(gpa.align_down(page), page.into()), WalkCaches::Drop).await;
        debt = FlushDebt::Clean;
    }
    host.rcu_read_unlock().await;
    debt
}

/// Zaps everything below `root`. Caller holds `mmu_lock` in the policy's mode; the root itself stays.
pub async fn zap_root<F: Format>(host: &Host<F>, root: Hpa, policy: &ZapPolicy) {
    let geometry = *host.format().geometry();
    let gig = gig_level(host.format());
    let levels: Vec<Level> = match policy.passes {
        Passes::One => vec![geometry.root()],
        Passes::GigThenRoot => vec![gig, geometry.root()],
        Passes::FourLevels => (0..=gig.index() as u8).map(Level::new).chain([geometry.root()]).collect(),
    };
    host.rcu_read_lock().await;
    for level in levels {
        zap_root_pass(host, root, level, policy).await;
    }
    host.rcu_read_unlock().await;
}

/// The level whose entries cover 1 GiB, or the one below the root where none does.
fn gig_level<F: Format>(format: &F) -> Level {
    let geometry = format.geometry();
    let below_root = geometry.root().down().unwrap_or(Level::LAST);
    let level = (0..geometry.levels() as u8).map(Level::new).find(|&level| geometry.shift(level) >= 30);
    level.unwrap_or(below_root).min(below_root)
}

/// One pass over a root: every present entry down to `level` is removed, with a chance to yield before each.
async fn zap_root_pass<F: Format>(host: &Host<F>, root: Hpa, level: Level, policy: &ZapPolicy) {
    let end = Gpa::new(host.format().geometry().input_bytes());
    let mut debt = FlushDebt::Clean;
    let check = check_each(policy.yielding);
    let mut iter = TdpIter::new(*host.format(), root, level, Gpa::new(0), end);
    while iter.next(host).await {
        if cond_resched(host, &mut iter, policy.rules(), &mut debt).await {
            if let Some(work) = slice_work(host.format(), level, policy) {
                slices(host, &mut iter, policy.rules(), check, work, owed(policy)).await;
            }
            continue;
        }
        if level == Level::LAST && zap_below(host, &mut iter, check).await {
            debt = debt.merge(owed(policy));
            continue;
        }
        if !iter.is_present() || iter.level > level {
            skip_run(host, &mut iter, check).await;
            continue;
        }
        if zap_entries(host, &mut iter, check, policy).await {
            debt = debt.merge(owed(policy));
        } else {
            iter.retry();
        }
    }
    if debt == FlushDebt::Owed {
        host.flush_vm().await;
    }
}

/// What a pass down to `level` does to entries that are alike, if time slices of it can be gone through at once.
fn slice_work<F: Format>(format: &F, level: Level, policy: &ZapPolicy) -> Option<SliceWork> {
    let subtrees = SliceWork::Subtrees { unlinked: 0, marker: removed_marker(format, policy) };
    match (level, policy.flush) {
        (Level::LAST, _) => Some(ZAPPED),
        (_, TableFlush::PerTablePage) => None,
        (_, TableFlush::DeferredRcu | TableFlush::NoneUnreachable) => Some(subtrees),
    }
}

/// Removes the current leaves, or the current table and what lies below it; false when a race for the first entry was lost.
async fn zap_entries<F: Format>(
    host: &Host<F>,
    iter: &mut TdpIter<F>,
    check: ReschedCheck,
    policy: &ZapPolicy,
) -> bool {
    if iter.is_leaf() {
        let atomicity = policy.lock.atomicity(iter.old);
        return bulk(host, iter, Apply::Set(0), atomicity, Some(Work::ReleaseLeaf), check).await != 0;
    }
    if remove_alike(host, iter, check, policy).await != 0 {
        return true;
    }
    iter.take(1);
    let detached = detach(host, iter.sptep, iter.old, policy).await;
    if detached {
        remove_table(host, host.format().next_table(iter.level, iter.old), iter.level, policy).await;
    }
    detached
}

/// Clears a table entry; false when somebody sharing the lock changed it first.
async fn detach<F: Format>(host: &Host<F>, sptep: Hpa, old: u64, policy: &ZapPolicy) -> bool {
    match policy.lock {
        ZapLock::Write => host.xchg(sptep, 0).await == old,
        ZapLock::Read => host.cmpxchg(sptep, old, 0).await == Cmpxchg::Done,
    }
}

/// Whether tearing something down under this policy leaves a flush to its caller.
fn owed(policy: &ZapPolicy) -> FlushDebt {
    if policy.flush == TableFlush::DeferredRcu { FlushDebt::Owed } else { FlushDebt::Clean }
}

/// Tears down consecutive tables at once, with all that is below, where they are alike; how many.
async fn remove_alike<F: Format>(
    host: &Host<F>,
    iter: &mut TdpIter<F>,
    check: ReschedCheck,
    policy: &ZapPolicy,
) -> u64 {
    let (marker, flush) = (removed_marker(host.format(), policy), flush_of_each(policy));
    let remove = RemoveSubtrees { at: iter.sptep, len: iter.len, level: iter.level, unlinked: 0, marker, check, flush };
    let n = host.remove_subtrees(remove).await;
    if n > 0 {
        iter.take(n);
    }
    n
}

/// What is flushed for each table that goes.
fn flush_of_each(policy: &ZapPolicy) -> Option<Flush> {
    (policy.flush == TableFlush::PerTablePage).then_some(Flush::EVERYTHING)
}

/// What entries of a detached table become. In shared mode a walker still inside must not install anything: they are
/// frozen, not cleared (e25f0e0cd51b).
fn removed_marker<F: Format>(format: &F, policy: &ZapPolicy) -> u64 {
    match (policy.lock, policy.detached) {
        (ZapLock::Read, DetachedEntries::Frozen) => format.encode_not_present(NotPresent::Frozen).unwrap_or(0),
        _ => 0,
    }
}

/// `handle_removed_pt`: tears down the table below an entry of `parent` level that has just been unlinked, and everything
/// below it, then retires it.
pub(super) async fn remove_table<F: Format>(host: &Host<F>, table: Hpa, parent: Level, policy: &ZapPolicy) {
    let Some(level) = parent.down() else { return };
    let geometry = *host.format().geometry();
    let marker = removed_marker(host.format(), policy);
    let entries = geometry.entries(level) as u64;
    let mut index = 0;
    while index < entries {
        let at = table + 8 * index;
        let run = host.read_run(at, entries - index).await;
        index += if marker != 0 && run.first == marker {
            // Somebody who shares the lock owns this entry for the moment: he will give it back.
            host.spend(Work::Relax).await;
            0
        } else if !host.format().is_mapped(run.first) {
            // Two words are always a progression: one after another unless they are all alike.
            let len = if run.step == 0 { run.len } else { 1 };
            skip_removed(host, at, run.first, len, marker).await
        } else if host.format().is_leaf(level, run.first) {
            let done = remove_leaves(host, at, run.first, run.len, marker, policy).await;
            let (at, len) = (at + 8 * done, entries - index - done);
            if done == 0 || len == 0 { done } else { done + remove_rest(host, at, len, level, marker).await }
        } else {
            Box::pin(remove_children(host, at, run.first, run.len, level, marker, policy)).await
        };
    }
    if policy.flush == TableFlush::PerTablePage {
        host.flush_vm().await;
    }
    let bytes = geometry.table_bytes(level);
    host.call_rcu(Frames { first: table, count: 1, level, bytes }).await;
}

/// Entries that map nothing: left alone where nobody else is inside, else marked. Replies how many, 0 if the first changed.
async fn skip_removed<F: Format>(host: &Host<F>, at: Hpa, old: u64, len: u64, marker: u64) -> u64 {
    let (apply, atomicity) = match marker {
        0 => (Apply::Nothing, Atomicity::Plain),
        _ => (Apply::Set(marker), Atomicity::IfStill(old)),
    };
    host.run(RunOp { at, len, apply, atomicity, work: None, check: ReschedCheck::Never }).await
}

/// Leaves: each is replaced and its state released. Replies how many, 0 if the first one changed meanwhile.
async fn remove_leaves<F: Format>(host: &Host<F>, at: Hpa, old: u64, len: u64, marker: u64, policy: &ZapPolicy) -> u64 {
    let (work, atomicity) = (Some(Work::ReleaseLeaf), policy.lock.atomicity(old));
    host.run(RunOp { at, len, apply: Apply::Set(marker), atomicity, work, check: ReschedCheck::Never }).await
}

/// What comes behind leaves in a table that is torn down, as far as it is leaves, and empty entries where those are left alone.
async fn remove_rest<F: Format>(host: &Host<F>, at: Hpa, len: u64, level: Level, marker: u64) -> u64 {
    let leaf = EachLeaf::Release { word: marker, atomicity: Atomicity::Atomic };
    host.rest_of_table(RestOfTable { at, len, level, leaf, check: ReschedCheck::Never }).await.entries
}

/// Table entries: each is replaced and its table torn down in turn. Replies how many, 0 if the first one changed.
async fn remove_children<F: Format>(
    host: &Host<F>,
    at: Hpa,
    first: u64,
    len: u64,
    level: Level,
    marker: u64,
    policy: &ZapPolicy,
) -> u64 {
    let (check, flush) = (ReschedCheck::Never, flush_of_each(policy));
    let remove = RemoveSubtrees { at, len, level, unlinked: marker, marker, check, flush };
    let done = host.remove_subtrees(remove).await;
    if done > 0 {
        return done;
    }
    if host.cmpxchg(at, first, marker).await != Cmpxchg::Done {
        return 0;
    }
    remove_table(host, host.format().next_table(level, first), level, policy).await;
    1
}

/// Whether `word` points to a table.
pub(super) fn is_table<F: Format>(format: &F, level: Level, word: u64) -> bool {
    format.is_mapped(word) && !format.is_leaf(level, word)
}
