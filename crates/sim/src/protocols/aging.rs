//! Aging: which pages has the guest touched since they were looked at last, and forgetting it.
//!
//! Models the `clear_flush_young`, `clear_young` and `test_young` notifiers, and the `test_clear_young` that was proposed in "locklessly
//! clear the accessed bit" (Yu Zhao, v2, May 2023, never merged).
//!
//! | policy | models | walk | clears by | flush of `clear_flush_young` |
//! | --- | --- | --- | --- | --- |
//! | [`V6_12`](AgingPolicy::V6_12) | x86 and Arm up to 6.12 | `mmu_lock` for write | atomic AND, or one compare-and-swap without a flag | if young |
//! | [`V6_13`](AgingPolicy::V6_13) | `KVM_ELIDE_TLB_FLUSH_IF_YOUNG`; POWER always | the same | the same | none |
//! | [`V6_15`](AgingPolicy::V6_15) | `KVM_MMU_LOCKLESS_AGING` on x86 (Houghton, v9) | RCU | the same | none |
//! | [`YU_V2`](AgingPolicy::YU_V2) | the seed thread | RCU where hardware sets the flag, else the lock | compare-and-swap, failure ignored | if young |
//!
//! A VM may have several roots (x86: another one for system-management mode, and invalid ones that are being torn down): the functions with `_in`
//! look into all of them, in which a page may be young (`for_each_tdp_mmu_root`, in RCU sections `for_each_tdp_mmu_root_rcu`).
//!
//! Locking: by policy. The walk takes no other lock and never yields, as `kvm_tdp_mmu_age_gfn_range` does not. Frees nothing.
//! Flush: none is owed for safety; without one a translation that is cached with its flag already set hides later accesses until it
//! is evicted (P11), so a page may look idle that is not, never the other way round.
//!
//! Without an accessed flag (EPT without A/D bits) a young leaf loses its permissions, which are kept aside; where the flag is software's
//! (Arm without FEAT_HAFDBS, POWER with R/C interrupts) it is cleared. Either way the next walk faults, and [`restore_access`] in the fault
//! path makes the leaf young again.
//!
//! The memslot look-up under SRCU and the primary MMU's own page-table walk around each notifier call are not modelled.

use mmu_core::{Cycles, Format, Gpa, GpaRange, Hpa, Level, WalkCaches};
use serde::{Deserialize, Serialize};

use super::iter::{TdpIter, rest_of_table};
use super::nested::ChainLock;
use super::roots::{UnmapRoots, VmRoots};
use super::young::{Clear, YoungBitmap};
use crate::engine::{self, AgeBelow, AgeRun, AgeWrite, Cmpxchg, EachLeaf, Host, LockId, LockMode, ReschedCheck};
use crate::events::Trace;

/// What keeps tables in place while an aging walk reads them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgingLock {
    /// `mmu_lock`, exclusively: all faults wait.
    MmuLock,
    /// An RCU section, with nothing that keeps anybody away.
    Rcu,
    /// An RCU section where hardware sets the accessed flag, else `mmu_lock` (the seed's fast and slow path).
    RcuWithHardwareFlag,
}

/// How a young leaf is made old.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgeUpdate {
    /// Atomic AND of the flag; compare-and-swap where there is no flag to clear.
    And,
    /// Compare-and-swap always.
    Cmpxchg,
}

/// What a failed compare-and-swap means to an aging walk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LostRace {
    /// Whoever changed the leaf likely uses the page: it stays as it is, young.
    LeftYoung,
    /// X42: tried again until it works (removed in v7).
    Retried,
    /// X43: the walk goes on as if the leaf had been made old (review of v8).
    TakenForDone,
}

/// Whether `clear_flush_young` flushes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum YoungFlush {
    /// The range, when a page was young.
    IfYoung,
    /// Never (6.13; POWER always, P11): TLBs hide accesses until they evict.
    Elided,
}

/// Which addresses `test_young` looks at.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TestedRange {
    /// Those that it was asked about.
    #[default]
    Asked,
    /// From the first to the first (A06, January 2020): none, so that no page is ever young.
    Empty,
}

/// How pages are aged.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgingPolicy {
    /// What the walk holds.
    pub lock: AgingLock,
    /// How leaves become old.
    pub update: AgeUpdate,
    /// What a failed compare-and-swap means.
    pub lost: LostRace,
    /// Whether `clear_flush_young` flushes.
    pub flush: YoungFlush,
    /// Where `test_young` looks.
    #[serde(default)]
    pub tested: TestedRange,
}

impl AgingPolicy {
    /// Up to Linux 6.12.
    pub const V6_12: AgingPolicy = AgingPolicy {
        lock: AgingLock::MmuLock,
        update: AgeUpdate::And,
        lost: LostRace::LeftYoung,
        flush: YoungFlush::IfYoung,
        tested: TestedRange::Asked,
    };
    /// Linux 6.13, and POWER of all versions.
    pub const V6_13: AgingPolicy = AgingPolicy { flush: YoungFlush::Elided, ..Self::V6_12 };
    /// Linux 6.15 on x86.
    pub const V6_15: AgingPolicy = AgingPolicy { lock: AgingLock::Rcu, ..Self::V6_13 };
    /// The seed thread, second version.
    pub const YU_V2: AgingPolicy =
        AgingPolicy { lock: AgingLock::RcuWithHardwareFlag, update: AgeUpdate::Cmpxchg, ..Self::V6_12 };
    /// X42: a lost compare-and-swap is tried again without bound.
    pub const X42: AgingPolicy = AgingPolicy { update: AgeUpdate::Cmpxchg, lost: LostRace::Retried, ..Self::V6_15 };
    /// X43: a lost compare-and-swap is taken for done.
    pub const X43: AgingPolicy =
        AgingPolicy { update: AgeUpdate::Cmpxchg, lost: LostRace::TakenForDone, ..Self::V6_15 };

    pub(super) fn write<F: Format>(&self, format: &F, clear: Clear) -> AgeWrite {
        match (clear, self.update) {
            (Clear::Test, _) => AgeWrite::Nothing,
            (Clear::Clear, AgeUpdate::And) if format.accessed_mask() != 0 => AgeWrite::And,
            (Clear::Clear, _) => AgeWrite::Cmpxchg,
        }
    }

    /// Which of the two ways this policy goes on this architecture.
    pub fn path<F: Format>(&self, format: &F) -> AgingPath {
        match self.lock {
            AgingLock::Rcu => AgingPath::Lockless,
            AgingLock::RcuWithHardwareFlag if format.hardware_accessed() => AgingPath::Lockless,
            AgingLock::MmuLock | AgingLock::RcuWithHardwareFlag => AgingPath::Locked,
        }
    }
}

/// The way that an aging walk went.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgingPath {
    /// Under `mmu_lock`.
    #[default]
    Locked,
    /// In an RCU section.
    Lockless,
}

/// What an aging walk found and did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Aged {
    /// Leaves looked at.
    pub leaves: u64,
    /// Young ones among them.
    pub young: u64,
    /// Leaves that the walk says it has made old.
    pub made_old: u64,
    /// Compare-and-swaps that failed.
    pub lost: u64,
    /// Compare-and-swaps tried again.
    pub retries: u64,
    /// How long `mmu_lock` was held, all sections together.
    pub held: Cycles,
    /// The longest such section.
    pub longest_hold: Cycles,
}

impl Aged {
    /// Both walks together.
    pub fn merge(&mut self, other: &Aged) {
        self.leaves += other.leaves;
        self.young += other.young;
        self.made_old += other.made_old;
        self.lost += other.lost;
        self.retries += other.retries;
        self.held += other.held;
        self.longest_hold = self.longest_hold.max(other.longest_hold);
    }
}

// ---- the flag ----

/// Whether a leaf counts as accessed: by its flag, or where the format has none by having its permissions.
pub fn is_young<F: Format>(format: &F, leaf: u64) -> bool {
    engine::is_young(format, leaf)
}

/// A leaf as the fault path puts it back: its flag set, its permissions restored (`restore_acc_track_spte`, `stage2_age_walker`'s counterpart
/// `handle_access_fault`). Young leaves stay as they are. Owes no flush: no TLB holds a translation that hardware could not use.
pub fn restore_access<F: Format>(format: &F, leaf: u64) -> u64 {
    format.mark_young(leaf).unwrap_or(leaf)
}

// ---- the notifiers ----

/// `clear_young`: makes the leaves of a range old. Never flushes. Of a VM with one root.
pub async fn clear_young<F: Format>(host: &Host<F>, range: GpaRange, policy: &AgingPolicy) -> Aged {
    clear_young_in(host, &VmRoots::Current, range, policy).await
}

/// [`clear_young`] in all roots of a VM.
pub async fn clear_young_in<F: Format>(
    host: &Host<F>,
    roots: &VmRoots<F>,
    range: GpaRange,
    policy: &AgingPolicy,
) -> Aged {
    let never = AgingPolicy { flush: YoungFlush::Elided, ..*policy };
    clear_flush_young_in(host, roots, range, &never).await
}

/// `clear_flush_young`: makes the leaves of a range old; flushes by policy, before the lock or the RCU section is left. Of a VM with one root.
pub async fn clear_flush_young<F: Format>(host: &Host<F>, range: GpaRange, policy: &AgingPolicy) -> Aged {
    clear_flush_young_in(host, &VmRoots::Current, range, policy).await
}

/// [`clear_flush_young`] in all roots of a VM.
pub async fn clear_flush_young_in<F: Format>(
    host: &Host<F>,
    roots: &VmRoots<F>,
    range: GpaRange,
    policy: &AgingPolicy,
) -> Aged {
    host.trace(|| Trace::KvmAgeHva { start: range.start.raw(), end: range.end().raw() });
    let section = enter(host, policy).await;
    let mut aged = walk_all(host, roots, range, policy).await;
    if let Some(shadow) = roots.shadow() {
        // The chains have locks of their own; who holds mmu_lock needs none (`kvm_rmap_age_gfn_range`, 6.15).
        let lock = (section.path == AgingPath::Lockless).then_some(ChainLock::PreemptionOff);
        aged.merge(&shadow.age_chains(host, range, Clear::Clear, policy, lock).await);
    }
    if aged.young > 0 && policy.flush == YoungFlush::IfYoung {
        host.flush_range(range, WalkCaches::Keep).await;
    }
    leave(host, section, &mut aged).await;
    aged
}

/// `test_young`: whether a leaf of the range is young; stops at the first one. Changes nothing. Of a VM with one root.
pub async fn test_young<F: Format>(host: &Host<F>, range: GpaRange, policy: &AgingPolicy) -> Aged {
    test_young_in(host, &VmRoots::Current, range, policy).await
}

/// [`test_young`] in all roots of a VM, up to the first young leaf.
pub async fn test_young_in<F: Format>(
    host: &Host<F>,
    roots: &VmRoots<F>,
    range: GpaRange,
    policy: &AgingPolicy,
) -> Aged {
    host.trace(|| Trace::KvmTestAgeHva { hva: range.start.raw() });
    let section = enter(host, policy).await;
    let mut aged = Aged::default();
    let mut next = roots.next(host, None, UnmapRoots::All).await;
    while let Some(root) = next
        && aged.young == 0
    {
        aged.merge(&find_young(host, root.table, range, policy).await);
        next = roots.next(host, next, UnmapRoots::All).await;
    }
    leave(host, section, &mut aged).await;
    aged
}

/// Looks for a young leaf of `range` below `root`, up to the first.
pub(super) async fn find_young<F: Format>(host: &Host<F>, root: Hpa, range: GpaRange, policy: &AgingPolicy) -> Aged {
    let mut aged = Aged::default();
    let end = if policy.tested == TestedRange::Empty { range.start } else { range.end() };
    let mut iter = TdpIter::new(*host.format(), root, Level::LAST, range.start, end);
    while aged.young == 0 && iter.next(host).await {
        let one = if iter.is_leaf() && is_young(host.format(), iter.old) { 1 } else { iter.len };
        let run = AgeRun { at: iter.sptep, len: one, level: iter.level, old: iter.old, write: AgeWrite::Nothing };
        step(host, &mut iter, run, policy, &mut aged).await;
    }
    aged
}

/// `test_clear_young`: tells which pages of the bitmap's range are young, and makes old what the bitmap's convention asks for. Of a VM with one root.
pub async fn test_clear_young<F: Format>(
    host: &Host<F>,
    bitmap: &mut YoungBitmap,
    clear: Clear,
    policy: &AgingPolicy,
) -> (AgingPath, Aged) {
    test_clear_young_in(host, &VmRoots::Current, bitmap, clear, policy).await
}

/// [`test_clear_young`] in all roots of a VM: a page is young if one of them says so.
pub async fn test_clear_young_in<F: Format>(
    host: &Host<F>,
    roots: &VmRoots<F>,
    bitmap: &mut YoungBitmap,
    clear: Clear,
    policy: &AgingPolicy,
) -> (AgingPath, Aged) {
    let range = bitmap.range();
    host.trace(|| Trace::KvmAgeHva { start: range.start.raw(), end: range.end().raw() });
    let section = enter(host, policy).await;
    let mut aged = Aged::default();
    let mut next = roots.next(host, None, UnmapRoots::All).await;
    let first = next;
    let asked = bitmap.clone();
    while let Some(root) = next {
        if next == first {
            aged.merge(&walk(host, root.table, range, clear, Some(bitmap), policy).await);
        } else {
            // Each root is asked the same question; two that say young do not undo each other's answer.
            let mut answer = asked.clone();
            aged.merge(&walk(host, root.table, range, clear, Some(&mut answer), policy).await);
            bitmap.join_changes(&asked, &answer);
        }
        next = roots.next(host, next, UnmapRoots::All).await;
    }
    leave(host, section, &mut aged).await;
    (section.path, aged)
}

/// Ages the leaves of a range in all roots.
async fn walk_all<F: Format>(host: &Host<F>, roots: &VmRoots<F>, range: GpaRange, policy: &AgingPolicy) -> Aged {
    let mut aged = Aged::default();
    let mut next = roots.next(host, None, UnmapRoots::All).await;
    while let Some(root) = next {
        aged.merge(&walk(host, root.table, range, Clear::Clear, None, policy).await);
        next = roots.next(host, next, UnmapRoots::All).await;
    }
    aged
}

// ---- the walk ----

/// A stretch of holding something.
#[derive(Clone, Copy, Debug)]
pub(super) struct Section {
    pub(super) path: AgingPath,
    since: Cycles,
}

pub(super) async fn enter<F: Format>(host: &Host<F>, policy: &AgingPolicy) -> Section {
    let path = policy.path(host.format());
    enter_by(host, path).await
}

pub(super) async fn enter_by<F: Format>(host: &Host<F>, path: AgingPath) -> Section {
    match path {
        AgingPath::Locked => host.lock(LockId::MMU, LockMode::Write).await,
        AgingPath::Lockless => host.rcu_read_lock().await,
    }
    Section { path, since: host.now().await }
}

pub(super) async fn leave<F: Format>(host: &Host<F>, section: Section, aged: &mut Aged) {
    match section.path {
        AgingPath::Locked => {
            let held = host.now().await.since(section.since);
            aged.held += held;
            aged.longest_hold = aged.longest_hold.max(held);
            host.unlock(LockId::MMU).await;
        }
        AgingPath::Lockless => host.rcu_read_unlock().await,
    }
}

/// Ages the leaves of `range` below `root`. The caller holds what the policy says.
pub(super) async fn walk<F: Format>(
    host: &Host<F>,
    root: Hpa,
    range: GpaRange,
    clear: Clear,
    mut bitmap: Option<&mut YoungBitmap>,
    policy: &AgingPolicy,
) -> Aged {
    let format = *host.format();
    let mut aged = Aged::default();
    let mut iter = TdpIter::new(format, root, Level::LAST, range.start, range.end());
    while iter.next(host).await {
        let write = policy.write(&format, clear);
        if bitmap.is_none() && below(host, &mut iter, write, &mut aged).await {
            continue;
        }
        let page = format.geometry().page_size(iter.level);
        let (len, wanted) = match &bitmap {
            Some(bitmap) if iter.is_leaf() => bitmap.plan(iter.gpa, iter.len, page, clear),
            _ => (iter.len, clear == Clear::Clear),
        };
        // Under v1 a set bit asks for clearing whatever the call says.
        let write = policy.write(&format, if wanted { Clear::Clear } else { Clear::Test });
        let run = AgeRun { at: iter.sptep, len, level: iter.level, old: iter.old, write };
        let (gpa, young) = (iter.gpa, aged.young);
        let entries = step(host, &mut iter, run, policy, &mut aged).await;
        match &mut bitmap {
            Some(bitmap) if aged.young > young => bitmap.note_young(gpa, entries * page.bytes(), clear),
            Some(_) => {}
            None => age_rest(host, &mut iter, write, &mut aged).await,
        }
    }
    aged
}

/// Ages the entries behind the current one, up to the end of its table.
async fn age_rest<F: Format>(host: &Host<F>, iter: &mut TdpIter<F>, write: AgeWrite, aged: &mut Aged) {
    let done = rest_of_table(host, iter, EachLeaf::Age(write), ReschedCheck::Never).await;
    aged.leaves += done.leaves;
    aged.young += done.worked;
    if write != AgeWrite::Nothing {
        aged.made_old += done.worked;
    }
}

/// Ages the first entries of the current run and moves on; how many.
async fn step<F: Format>(
    host: &Host<F>,
    iter: &mut TdpIter<F>,
    run: AgeRun,
    policy: &AgingPolicy,
    aged: &mut Aged,
) -> u64 {
    let leaf = iter.is_leaf();
    let young = leaf && is_young(host.format(), iter.old);
    if !young && run.len == 1 {
        aged.leaves += u64::from(leaf);
        iter.take(1);
        return 1;
    }
    let done = host.age(run).await;
    iter.take(done.entries);
    if leaf {
        aged.leaves += done.entries;
    }
    if young {
        aged.young += done.entries;
        if run.write != AgeWrite::Nothing {
            let kept = settle(host, run, done.first, policy, aged).await;
            aged.made_old += done.entries - kept;
        }
    }
    done.entries
}

/// What becomes of a first entry that somebody else changed; how many entries stay young.
pub(super) async fn settle<F: Format>(
    host: &Host<F>,
    run: AgeRun,
    mut first: Cmpxchg,
    policy: &AgingPolicy,
    aged: &mut Aged,
) -> u64 {
    let format = *host.format();
    while let Cmpxchg::Failed(found) = first {
        aged.lost += 1;
        match policy.lost {
            LostRace::LeftYoung => return 1,
            LostRace::TakenForDone => return 0,
            LostRace::Retried => {}
        }
        if !format.is_mapped(found) || !format.is_leaf(run.level, found) || !is_young(&format, found) {
            return 1;
        }
        aged.retries += 1;
        first = host.age(AgeRun { len: 1, old: found, ..run }).await.first;
    }
    0
}

/// Ages the leaves of whole tables, and of those below, at once where they are alike.
async fn below<F: Format>(host: &Host<F>, iter: &mut TdpIter<F>, write: AgeWrite, aged: &mut Aged) -> bool {
    let len = iter.tables_ahead();
    if len == 0 {
        return false;
    }
    let (tables, leaves, young) = {
        let done = host.age_below(AgeBelow { at: iter.sptep, len, level: iter.level, write }).await;
        (done.tables, done.leaves, done.young)
    };
    if tables == 0 {
        return false;
    }
    iter.skip_below(tables);
    aged.leaves += leaves;
    aged.young += young;
    if write != AgeWrite::Nothing {
        aged.made_old += young;
    }
    true
}

/// The last-level page at `gpa` as a range.
pub fn page_at<F: Format>(format: &F, gpa: Gpa) -> GpaRange {
    let page = format.geometry().granule();
    GpaRange::new(gpa.align_down(page), mmu_core::Bytes(page.bytes()))
}
