//! mmu_notifier: the primary MMU takes pages of a range away, and a fault finds out that it was too late.
//!
//! Models `kvm_mmu_notifier_invalidate_range_start/end` and `mmu_invalidate_retry*` of Linux 5.11 to 6.9; `change_pte` has its own file. Variants are values of
//! [`NotifierPolicy`] and [`RetryPolicy`].
//!
//! Locking: `mn_invalidate_lock` for the count of active invalidations; SRCU for the memslots; `mmu_lock` for write around zap and
//! around end, and only when a memslot overlaps (5.15). Flush: once, before `mmu_lock` is dropped, and before every yield. Frees
//! nothing of KVM's; the caller frees host pages between start and end.
//!
//! Contract: when start returns nobody reaches the old pages through KVM, and no new mapping appears before end. The checker
//! holds every run to it: vCPUs' translations, `gfn_to_pfn_cache`s, accesses.

use mmu_core::{Format, Gpa, GpaRange, Hva, HvaRange, WalkCaches};
use serde::{Deserialize, Serialize};

pub use super::change_pte::{ChangePte, change_pte};
use super::iter::{FlushDebt, Yield};
use super::pfncache::{self, GpcList};
use super::roots::VmRoots;
use super::zap::{ZapLock, ZapPolicy, zap_leafs_owing};
use crate::engine::{Blockable, Fence, Host, LockId, LockMode, SlotsVersion, Var, WaitQueue, Wake};
use crate::events::Trace;

// ---- policies ----

/// Whether `mmu_lock` is taken when no memslot overlaps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LockElision {
    /// It always is (up to 5.14).
    Never,
    /// Only for an overlap ("Don't take mmu_lock for range invalidation unless necessary", 5.15).
    NoOverlap,
}

/// What becomes of the range when an invalidation begins while others are in progress.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RangeMerge {
    /// It grows to cover all, and shrinks only when all are done (4a42d848db95).
    Hull,
    /// The last one replaces it: a guard of ours, faults then map what is being invalidated.
    Replace,
}

/// In which order an end publishes itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndOrder {
    /// The sequence moves before the count drops, so that a reader sees one or the other.
    SequenceFirst,
    /// The other way round (G14).
    CountFirst,
}

/// Whether an invalidation that must not block yields all the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NonBlocking {
    /// It does not.
    Respected,
    /// It does (G11, before August 2020).
    Ignored,
}

/// When `gfn_to_pfn_cache`s of the range become invalid.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GpcInvalidation {
    /// At the start, before `mmu_lock` is taken.
    AtStart,
    /// At the end (G09: proposals W1, W2 and W3): users may reach the page after start has returned.
    AtEnd,
}

/// What keeps memslots as they are from an invalidation's start to its end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SlotsGuard {
    /// The count of active invalidations, for which updates wait (52ac8b358b0c).
    Count,
    /// An rwsem, held for read (G03): a pseudo-lock around whatever its holder does in between.
    Rwsem,
}

/// Which pages a loop over the pages of a range unmaps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PageLoop {
    /// There is no such loop: one walk does the range.
    #[default]
    Walk,
    /// Each page by a call of its own (POWER: `kvm_unmap_gfn_range_hv`).
    Each,
    /// The first one, as often as there are pages (P04, fixed by 32b48bf8514c): the others stay mapped.
    FirstEachTime,
}

/// How the notifier works.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NotifierPolicy {
    /// How leaves are zapped.
    pub zap: ZapPolicy,
    /// When `mmu_lock` is taken.
    pub elision: LockElision,
    /// What the range in progress holds, and what faults compare with it.
    pub test: RetryTest,
    /// How ranges merge.
    pub merge: RangeMerge,
    /// Order of the end.
    pub end: EndOrder,
    /// Invalidations that must not block.
    pub nonblocking: NonBlocking,
    /// `gfn_to_pfn_cache`s.
    pub gpc: GpcInvalidation,
    /// Memslots between start and end.
    pub slots: SlotsGuard,
    /// Pages of a range.
    #[serde(default)]
    pub pages: PageLoop,
}

impl NotifierPolicy {
    /// Linux 5.12 to 5.14: always under `mmu_lock`.
    pub const V5_12: NotifierPolicy = NotifierPolicy {
        zap: ZapPolicy::V5_17,
        elision: LockElision::Never,
        test: RetryTest::HvaRange,
        merge: RangeMerge::Hull,
        end: EndOrder::SequenceFirst,
        nonblocking: NonBlocking::Respected,
        gpc: GpcInvalidation::AtStart,
        slots: SlotsGuard::Count,
        pages: PageLoop::Walk,
    };
    /// Linux 5.15 to 6.7: `mmu_lock` only where a memslot overlaps.
    pub const V5_15: NotifierPolicy = NotifierPolicy { elision: LockElision::NoOverlap, ..Self::V5_12 };
    /// Linux 6.8: the range is one of guest frames.
    pub const V6_8: NotifierPolicy = NotifierPolicy { zap: ZapPolicy::V6_9, test: RetryTest::GfnRange, ..Self::V5_15 };
}

/// How staleness is found.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RetryTest {
    /// Any invalidation in progress, or one that ended since the snapshot (up to 5.11; G01).
    Sequence,
    /// One in progress whose host addresses cover the fault's, or any that ended (4a42d848db95, 5.12).
    HvaRange,
    /// The same by guest frames (`mmu_invalidate_retry_gfn`, 6.8).
    GfnRange,
    /// Any active invalidation by `mn_active_invalidate_count`, or one that ended: the `gfn_to_pfn_cache`'s (58cd407ca4c6, 5.19).
    ActiveCount,
    /// An active one whose merged host range covers the address, or any that ended (proposal S1, August 2024).
    ActiveRange,
}

/// Whether a fault looks before it resolves the page and before it takes the lock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precheck {
    /// No (up to 6.7; X33: a fault that can only retry still makes the invalidation yield).
    None,
    /// Yes, without the lock (d02c357e5bfa, 6.8).
    Lockless,
}

/// What holds the snapshot of the sequence.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotWidth {
    /// An `unsigned long`.
    Full,
    /// An `int` (X25, in 6.1 stable until 82d811ff5665): after 2^31 invalidations every fault is stale.
    SignedInt,
}

/// In which order a reader looks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RetryOrder {
    /// The count, a read barrier, the sequence.
    #[default]
    CountFirst,
    /// The sequence first (G14): an invalidation that ends in between is missed.
    SequenceFirst,
}

/// How a fault, or a refresh, finds out that what it resolved is stale.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetryPolicy {
    /// What is compared. For faults it must be the notifier's.
    pub test: RetryTest,
    /// Looking without the lock.
    pub precheck: Precheck,
    /// The snapshot's type.
    pub snapshot: SnapshotWidth,
    /// The reader's order.
    pub order: RetryOrder,
}

impl RetryPolicy {
    /// Linux up to 5.11.
    pub const V5_11: RetryPolicy = RetryPolicy {
        test: RetryTest::Sequence,
        precheck: Precheck::None,
        snapshot: SnapshotWidth::Full,
        order: RetryOrder::CountFirst,
    };
    /// Linux 5.12 to 6.7.
    pub const V5_12: RetryPolicy = RetryPolicy { test: RetryTest::HvaRange, ..Self::V5_11 };
    /// Linux 6.8.
    pub const V6_8: RetryPolicy =
        RetryPolicy { test: RetryTest::GfnRange, precheck: Precheck::Lockless, ..Self::V5_11 };
    /// The `gfn_to_pfn_cache`'s of 5.19.
    pub const GPC_5_19: RetryPolicy = RetryPolicy { test: RetryTest::ActiveCount, ..Self::V5_11 };
}

// ---- the retry test ----

/// A snapshot of `mmu_invalidate_seq`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a snapshot is taken to be compared"]
pub struct Snapshot(u64);

/// What a fault is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target {
    /// The guest address; unused by host-range tests.
    pub gpa: Gpa,
    /// The host address; unused by guest-range tests.
    pub hva: Hva,
}

/// Takes the snapshot. It precedes the look-up of the host page, so that an invalidation after it will be seen (G13: the other way round).
pub async fn snapshot<F: Format>(host: &Host<F>, width: SnapshotWidth) -> Snapshot {
    let seq = host.load(Var::INVALIDATE_SEQ).await;
    host.fence(Fence::Read).await;
    Snapshot(match width {
        SnapshotWidth::Full => seq,
        SnapshotWidth::SignedInt => i64::from(seq as i32) as u64,
    })
}

/// `mmu_invalidate_retry_*`: whether an invalidation makes what was resolved since the snapshot stale. Under `mmu_lock` for faults,
/// under the cache's lock for a `gfn_to_pfn_cache`.
pub async fn invalidate_retry<F: Format>(
    host: &Host<F>,
    policy: &RetryPolicy,
    since: Snapshot,
    target: Target,
) -> bool {
    match policy.order {
        RetryOrder::CountFirst => {
            if invalidation_covers(host, policy.test, target).await {
                return true;
            }
            host.fence(Fence::Read).await;
            host.load(Var::INVALIDATE_SEQ).await != since.0
        }
        RetryOrder::SequenceFirst => {
            let moved = host.load(Var::INVALIDATE_SEQ).await != since.0;
            moved || invalidation_covers(host, policy.test, target).await
        }
    }
}

/// `mmu_invalidate_retry_gfn_unsafe`: the same without the lock, before the page is resolved and again before the lock is taken. A stale
/// "no" is made good under the lock.
pub async fn retry_unlocked<F: Format>(host: &Host<F>, policy: &RetryPolicy, since: Snapshot, target: Target) -> bool {
    match policy.precheck {
        Precheck::None => false,
        Precheck::Lockless => {
            invalidation_covers(host, policy.test, target).await || host.load(Var::INVALIDATE_SEQ).await != since.0
        }
    }
}

/// Whether an invalidation that is going on concerns the target.
pub async fn invalidation_covers<F: Format>(host: &Host<F>, test: RetryTest, target: Target) -> bool {
    let (count, bounds, at) = match test {
        RetryTest::Sequence => (Var::IN_PROGRESS, None, 0),
        RetryTest::ActiveCount => (Var::ACTIVE_INVALIDATIONS, None, 0),
        RetryTest::HvaRange => (Var::IN_PROGRESS, Some((Var::RANGE_START, Var::RANGE_END)), target.hva.raw()),
        RetryTest::GfnRange => (Var::IN_PROGRESS, Some((Var::RANGE_START, Var::RANGE_END)), target.gpa.raw()),
        RetryTest::ActiveRange => {
            (Var::ACTIVE_INVALIDATIONS, Some((Var::GPC_RANGE_START, Var::GPC_RANGE_END)), target.hva.raw())
        }
    };
    if host.load(count).await == 0 {
        return false;
    }
    let Some((start, end)) = bounds else { return true };
    (host.load(start).await..host.load(end).await).contains(&at)
}

// ---- invalidation ----

/// KVM's registration with the primary MMU: how it works, and the caches it must invalidate besides the second stage.
#[derive(Clone, Debug)]
pub struct Notifier<F> {
    /// How.
    pub policy: NotifierPolicy,
    /// `kvm->gpc_list`
    pub gpcs: GpcList,
    /// Where pages are mapped.
    pub roots: VmRoots<F>,
}

impl<F> Notifier<F> {
    /// The notifier of a VM with one root, without any `gfn_to_pfn_cache`.
    pub fn new(policy: NotifierPolicy) -> Self {
        Self::of(VmRoots::Current, policy)
    }

    /// The notifier of a VM with these roots, without any `gfn_to_pfn_cache`.
    pub fn of(roots: VmRoots<F>, policy: NotifierPolicy) -> Self {
        Self { policy, gpcs: GpcList::default(), roots }
    }
}

/// An invalidation under way: start has returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "an invalidation that is never ended makes every fault in its range retry for ever"]
pub struct Invalidation {
    range: HvaRange,
    window: u64,
}

/// `invalidate_range_start`: when this returns nobody reaches the pages through KVM, and no new mapping appears until [`range_end`].
pub async fn range_start<F: Format>(
    host: &Host<F>,
    notifier: &Notifier<F>,
    range: HvaRange,
    blockable: Blockable,
) -> Invalidation {
    range_start_and(host, notifier, range, blockable, async || ()).await
}

/// [`range_start`] before a change of just this range: huge pages that it covers in part are split by the change, and whoever would map one of them whole must
/// be turned away as well. (`__split_huge_pmd` invalidates the huge page in a pass of its own; here one pass is for both.)
pub async fn split_and_start<F: Format>(
    host: &Host<F>,
    notifier: &Notifier<F>,
    range: HvaRange,
    blockable: Blockable,
) -> Invalidation {
    let whole = host.whole_mappings(range).await;
    range_start(host, notifier, whole, blockable).await
}

/// [`range_start`] of a VM whose pages are mapped elsewhere too: `also` takes those mappings away while faults are turned away, as
/// `kvm_unmap_gfn_range` does with the chains of a nested guest.
pub async fn range_start_and<F: Format>(
    host: &Host<F>,
    notifier: &Notifier<F>,
    range: HvaRange,
    blockable: Blockable,
    also: impl AsyncFnOnce(),
) -> Invalidation {
    let policy = &notifier.policy;
    host.may_block(blockable).await;
    if policy.slots == SlotsGuard::Rwsem {
        host.lock(LockId::NOTIFIER_SLOTS, LockMode::Read).await;
    }
    host.lock(LockId::INVALIDATE, LockMode::Write).await;
    // Raised before any cache is invalidated: a refresh that begins now sees it (G04).
    let active = host.add(Var::ACTIVE_INVALIDATIONS, 1).await;
    if !notifier.gpcs.is_empty() {
        merge_range(host, GPC_RANGE, (range.start.raw(), range.end().raw()), active == 1, RangeMerge::Hull).await;
    }
    host.unlock(LockId::INVALIDATE).await;

    if policy.gpc == GpcInvalidation::AtStart {
        pfncache::invalidate(host, &notifier.gpcs, range).await;
    }
    unmap_hva_range(host, notifier, range, blockable).await;
    also().await;
    host.may_block(Blockable::Yes).await;
    Invalidation { range, window: host.forbid_pages(range).await }
}

/// The slots of the range lose their mappings.
async fn unmap_hva_range<F: Format>(host: &Host<F>, notifier: &Notifier<F>, range: HvaRange, blockable: Blockable) {
    let policy = &notifier.policy;
    host.trace(|| Trace::KvmUnmapHvaRange { start: range.start.raw(), end: range.end().raw() });
    let section = host.srcu_read_lock().await;
    let slots = host.active_slots().await;
    let mut locked = false;
    if policy.elision == LockElision::Never {
        invalidate_begin(host, policy, range).await;
        locked = true;
    }
    let mut dirty: Option<GpaRange> = None;
    let mut last = None;
    while let Some((slot, gpas)) = host.slot_overlapping(slots, range, last).await {
        if !locked {
            invalidate_begin(host, policy, range).await;
            locked = true;
        }
        if policy.test == RetryTest::GfnRange {
            merge_range(host, MMU_RANGE, (gpas.start.raw(), gpas.end().raw()), false, policy.merge).await;
        }
        if unmap_gfn_range(host, notifier, gpas, blockable).await == FlushDebt::Owed {
            dirty = Some(dirty.map_or(gpas, |dirty| dirty.hull(gpas)));
        }
        last = Some(slot);
    }
    if let Some(dirty) = dirty {
        host.flush_range(dirty, WalkCaches::Keep).await;
    }
    if locked {
        host.unlock(LockId::MMU).await;
    }
    host.srcu_read_unlock(section).await;
}

const MMU_RANGE: (Var, Var) = (Var::RANGE_START, Var::RANGE_END);
const GPC_RANGE: (Var, Var) = (Var::GPC_RANGE_START, Var::GPC_RANGE_END);

/// `kvm_mmu_invalidate_begin`: takes `mmu_lock` and says that an invalidation is in progress.
async fn invalidate_begin<F: Format>(host: &Host<F>, policy: &NotifierPolicy, range: HvaRange) {
    host.lock(LockId::MMU, LockMode::Write).await;
    let first = host.add(Var::IN_PROGRESS, 1).await == 1;
    if policy.test == RetryTest::HvaRange {
        merge_range(host, MMU_RANGE, (range.start.raw(), range.end().raw()), first, policy.merge).await;
    } else if first {
        // Guest ranges follow slot by slot: empty, so that the first one counts alone.
        host.store(Var::RANGE_START, u64::MAX).await;
        host.store(Var::RANGE_END, 0).await;
    }
}

/// What every invalidation of guest addresses begins with (6.8): it is counted and its range recorded. Returns with `mmu_lock` held for
/// write; the caller unmaps, flushes and drops it, and calls [`end`] when the pages are gone. For tables that the VM's current root does not
/// reach; otherwise see [`range_start`].
pub async fn begin<F: Format>(host: &Host<F>, range: GpaRange) {
    host.lock(LockId::INVALIDATE, LockMode::Write).await;
    host.add(Var::ACTIVE_INVALIDATIONS, 1).await;
    host.unlock(LockId::INVALIDATE).await;
    host.lock(LockId::MMU, LockMode::Write).await;
    let first = host.add(Var::IN_PROGRESS, 1).await == 1;
    merge_range(host, MMU_RANGE, (range.start.raw(), range.end().raw()), first, RangeMerge::Hull).await;
}

/// The end of what [`begin`] began: faults may map the range again.
pub async fn end<F: Format>(host: &Host<F>) {
    host.lock(LockId::MMU, LockMode::Write).await;
    publish_end(host, EndOrder::SequenceFirst).await;
    host.unlock(LockId::MMU).await;
    count_down(host).await;
}

/// Sets the range in progress, or makes it cover one more. Under the lock of its counter.
async fn merge_range<F: Format>(host: &Host<F>, vars: (Var, Var), range: (u64, u64), first: bool, merge: RangeMerge) {
    let (mut start, mut end) = range;
    if !first && merge == RangeMerge::Hull {
        start = start.min(host.load(vars.0).await);
        end = end.max(host.load(vars.1).await);
    }
    host.store(vars.0, start).await;
    host.store(vars.1, end).await;
}

/// `kvm_unmap_gfn_range`: the leaves of a range go. The caller owes the flush.
async fn unmap_gfn_range<F: Format>(
    host: &Host<F>,
    notifier: &Notifier<F>,
    range: GpaRange,
    blockable: Blockable,
) -> FlushDebt {
    let policy = &notifier.policy;
    let yields = blockable == Blockable::Yes || policy.nonblocking == NonBlocking::Ignored;
    let yielding = if yields { policy.zap.yielding } else { Yield::Never };
    // The notifier holds the lock exclusively whatever the policy says of root zaps.
    let zap = ZapPolicy { lock: ZapLock::Write, yielding, ..policy.zap };
    if policy.pages == PageLoop::Walk {
        return notifier.roots.unmap_gfn_range(host, range, &zap).await;
    }
    let root = host.root().await;
    let page = host.format().geometry().granule();
    let mut debt = FlushDebt::Clean;
    for n in 0..range.bytes.0.div_ceil(page.bytes()) {
        let n = if policy.pages == PageLoop::FirstEachTime { 0 } else { n };
        let one = GpaRange::new(range.start + n * page.bytes(), page.into());
        // A yield in one pays for those before it.
        debt = zap_leafs_owing(host, root, one, &zap, debt).await;
    }
    debt
}

/// `invalidate_range_end`: the primary MMU has made its change, faults may map the range again.
pub async fn range_end<F: Format>(host: &Host<F>, notifier: &Notifier<F>, invalidation: Invalidation) {
    let policy = &notifier.policy;
    host.allow_pages(invalidation.window).await;
    let section = host.srcu_read_lock().await;
    let slots = host.active_slots().await;
    let overlaps = host.slot_overlapping(slots, invalidation.range, None).await.is_some();
    if overlaps || policy.elision == LockElision::Never {
        host.lock(LockId::MMU, LockMode::Write).await;
        publish_end(host, policy.end).await;
        host.unlock(LockId::MMU).await;
    }
    host.srcu_read_unlock(section).await;
    if policy.gpc == GpcInvalidation::AtEnd {
        pfncache::invalidate(host, &notifier.gpcs, invalidation.range).await;
    }

    count_down(host).await;
    if policy.slots == SlotsGuard::Rwsem {
        host.unlock(LockId::NOTIFIER_SLOTS).await;
    }
    if !notifier.gpcs.is_empty() {
        host.wake_up(WaitQueue::GPC, Wake::All).await;
    }
}

/// One active invalidation less; the last one wakes a memslot update.
async fn count_down<F: Format>(host: &Host<F>) {
    host.lock(LockId::INVALIDATE, LockMode::Write).await;
    let left = host.add(Var::ACTIVE_INVALIDATIONS, -1).await;
    host.unlock(LockId::INVALIDATE).await;
    if left == 0 {
        // There can be one updater only: slots_lock sees to that.
        host.wake_up(WaitQueue::MEMSLOTS_UPDATE, Wake::One).await;
    }
}

/// `kvm_mmu_invalidate_end`
async fn publish_end<F: Format>(host: &Host<F>, order: EndOrder) {
    if order == EndOrder::CountFirst {
        host.add(Var::IN_PROGRESS, -1).await;
    }
    host.add(Var::INVALIDATE_SEQ, 1).await;
    if order == EndOrder::SequenceFirst {
        // A reader that sees the count dropped must see the sequence moved.
        host.fence(Fence::Write).await;
        host.add(Var::IN_PROGRESS, -1).await;
    }
}

/// Takes the backing pages of guest addresses away from the guest and frees them: `MADV_DONTNEED` as a guest's memory sees it.
pub async fn invalidate_range<F: Format>(host: &Host<F>, range: GpaRange, zap: &ZapPolicy) {
    let notifier = Notifier::new(NotifierPolicy { zap: *zap, ..NotifierPolicy::V6_8 });
    let mut at = range.start;
    while at < range.end() {
        let version = host.active_slots().await;
        let Some(hvas) = hvas_of(host, version, GpaRange::between(at, range.end())).await else { break };
        let invalidation = split_and_start(host, &notifier, hvas, Blockable::Yes).await;
        host.unmap_pages(hvas, crate::engine::Unmapping::Discard).await;
        range_end(host, &notifier, invalidation).await;
        at += hvas.bytes.0;
    }
}

/// The host addresses of guest addresses, as far as the slot of the first goes.
async fn hvas_of<F: Format>(host: &Host<F>, version: SlotsVersion, range: GpaRange) -> Option<HvaRange> {
    let slot = host.slot_at(version, range.start).await?;
    Some(HvaRange::new(slot.hva, slot.gpa.bytes.min(range.bytes)))
}
