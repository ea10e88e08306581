//! `gfn_to_pfn_cache`: the kernel's own mapping of one guest page, kept without a reference to the page.
//!
//! Models `virt/kvm/pfncache.c` from 5.17 to 6.9 and what was proposed for it in August 2024 ("KVM: pfncache: retry only for what
//! matters"; W1, W2 and W3 by Woodhouse, S1 by Christopherson). Forms are values of [`GpcPolicy`]; when the notifier invalidates is
//! [`GpcInvalidation`].
//!
//! Locking: `gpc->lock` (readers hold it shared while they use the mapping), `refresh_lock` (one refresh at a time, 5.19), `gpc_lock` for
//! the list; order `gpc_lock`, `gpc->lock`, never inside `mmu_lock`. Flush: none, nothing of the second stage changes. Frees: the page reference
//! that a refresh takes is put back when the refresh is over; from then on only the notifier protects the mapping.
//!
//! Invariants that the checker holds it to: no valid cache of a page that is free or between an invalidation's start and end; no use of
//! such a page; every reference put back.

use std::cell::RefCell;
use std::rc::Rc;

use mmu_core::{Bytes, Cycles, Format, Gpa, Hpa, HpaRange, Hva, HvaRange, PageSize};
use serde::{Deserialize, Serialize};

use super::notifier::{
    GpcInvalidation, NotifierPolicy, RetryOrder, RetryPolicy, RetryTest, Target, invalidate_retry, invalidation_covers,
    snapshot,
};
use super::primary::hva_to_pfn;
use crate::engine::{
    Bed, Host, HostAccess, HvaError, LockId, LockKind, LockMode, Reference, Resolved, SlotFlags, Var, WaitQueue, Work,
};

// ---- policies ----

/// When a refresh says that the mapping is valid.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Publish {
    /// When it has found that nothing was invalidated meanwhile.
    AfterCheck,
    /// Before it looks the page up, with a placeholder (up to 5.18; G04).
    Speculative,
}

/// How a refresh finds out that the page it found is stale.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Staleness {
    /// By this test of the notifier's counters.
    Test(RetryTest),
    /// By a flag of the cache that an invalidation of its address clears.
    Flag,
}

/// Whether a refresh waits for invalidations that cover its address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Waiting {
    /// It does not: it tries again at once.
    Never,
    /// Before it looks the page up.
    BeforeLookup,
    /// After it has mapped the page.
    AfterMapping,
}

/// Whether refreshes of one cache exclude each other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Serialization {
    /// By `refresh_lock` ("Fully serialize gfn=>pfn cache refresh via mutex", 5.19).
    Mutex,
    /// They interleave (G05).
    None,
}

/// What happens to the reference that a refresh took.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SamePfn {
    /// It is always put back.
    Put,
    /// Not when the page turns out to be the one that was mapped (G07).
    Leak,
}

/// What the cache remembers as its host address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CachedAddress {
    /// The page's.
    Page,
    /// With the offset in the page folded in (G06): it never compares equal, every refresh looks the page up again.
    WithOffset,
}

/// How a cache is refreshed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpcPolicy {
    /// When the mapping becomes valid.
    pub publish: Publish,
    /// How staleness is found.
    pub staleness: Staleness,
    /// Whether it waits.
    pub waiting: Waiting,
    /// One refresh at a time.
    pub serialization: Serialization,
    /// References.
    pub same_pfn: SamePfn,
    /// The address compared.
    pub address: CachedAddress,
    /// What a refresh looks at first, the count of invalidations or their sequence.
    #[serde(default)]
    pub order: RetryOrder,
    /// Rounds after which the simulation gives a refresh up; the kernel goes on for ever.
    pub max_rounds: u64,
}

impl GpcPolicy {
    /// Linux 5.19 and later (58cd407ca4c6).
    pub const V5_19: GpcPolicy = GpcPolicy {
        publish: Publish::AfterCheck,
        staleness: Staleness::Test(RetryTest::ActiveCount),
        waiting: Waiting::Never,
        serialization: Serialization::Mutex,
        same_pfn: SamePfn::Put,
        address: CachedAddress::Page,
        order: RetryOrder::CountFirst,
        max_rounds: 1000,
    };
    /// Linux 5.17 and 5.18: valid before it is known to be.
    pub const V5_18: GpcPolicy = GpcPolicy {
        publish: Publish::Speculative,
        staleness: Staleness::Test(RetryTest::HvaRange),
        serialization: Serialization::None,
        ..Self::V5_19
    };
    /// Woodhouse, 5 August 2024: a flag, and invalidation at the end.
    pub const W1: GpcPolicy = GpcPolicy { staleness: Staleness::Flag, ..Self::V5_19 };
    /// Christopherson, 5 August 2024: the merged range of active invalidations.
    pub const S1: GpcPolicy = GpcPolicy { staleness: Staleness::Test(RetryTest::ActiveRange), ..Self::V5_19 };
    /// Woodhouse, 20 August 2024: the flag, and waiting for invalidations that cover the address after mapping.
    pub const W2: GpcPolicy = GpcPolicy { waiting: Waiting::AfterMapping, ..Self::W1 };
    /// Woodhouse, 21 August 2024: waiting before the look-up.
    pub const W3: GpcPolicy = GpcPolicy { waiting: Waiting::BeforeLookup, ..Self::W1 };
}

/// A form of the cache as it was, or as it was proposed: the refresh, and when the notifier invalidates.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct GpcForm {
    /// Short name.
    pub name: &'static str,
    /// How it is refreshed.
    pub policy: GpcPolicy,
    /// When the notifier invalidates it.
    pub invalidation: GpcInvalidation,
}

impl GpcForm {
    /// A notifier that works with this form.
    pub fn notifier(&self) -> NotifierPolicy {
        NotifierPolicy { gpc: self.invalidation, ..NotifierPolicy::V5_15 }
    }
}

/// All forms, in the order of history, and last what is left of W3 when invalidation stays at the start.
pub fn forms() -> Vec<GpcForm> {
    use GpcInvalidation::{AtEnd, AtStart};
    let form = |name, policy, invalidation| GpcForm { name, policy, invalidation };
    vec![
        form("valid in advance (5.18)", GpcPolicy::V5_18, AtStart),
        form("count and sequence (5.19)", GpcPolicy::V5_19, AtStart),
        form("W1: flag, invalidated at end", GpcPolicy::W1, AtEnd),
        form("S1: range and sequence", GpcPolicy::S1, AtStart),
        form("W2: flag, waits after mapping, at end", GpcPolicy::W2, AtEnd),
        form("W3: flag, waits before look-up, at end", GpcPolicy::W3, AtEnd),
        form("W3 without its last step: at start", GpcPolicy::W3, AtStart),
    ]
}

// ---- the cache ----

/// One cache. A handle: copies name the same cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gpc {
    lock: LockId,
    refresh_lock: LockId,
    active: Var,
    valid: Var,
    gpa: Var,
    generation: Var,
    uhva: Var,
    khva: Var,
    /// W1: `validating`; W2, W3: `needs_invalidation`.
    flag: Var,
}

/// No address.
const NOWHERE: u64 = u64::MAX;

/// What a cache maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// A guest address, found through the memslots of the day.
    Guest(Gpa),
    /// A host address (6.9): memslots do not matter.
    Host(Hva),
}

/// `kvm->gpc_list`. Always accessed under [`LockId::GPC_LIST`], or before the run begins.
#[derive(Clone, Debug, Default)]
pub struct GpcList(Rc<RefCell<Vec<Gpc>>>);

impl GpcList {
    /// Whether there is any cache.
    pub fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    fn nth(&self, n: usize) -> Option<Gpc> {
        self.0.borrow().get(n).copied()
    }
}

/// Why a cache cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GpcError {
    /// It was deactivated.
    Inactive,
    /// No memslot has the guest address, or the one that has it is going.
    NoSlot(Gpa),
    /// The primary MMU has no page.
    Page(HvaError),
    /// Given up after so many rounds, in each of which something had been invalidated.
    Starved(u64),
}

impl std::fmt::Display for GpcError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            GpcError::Inactive => f.write_str("the cache is not active; activate it first"),
            GpcError::NoSlot(gpa) => write!(f, "no memslot holds guest address {gpa}; add one first"),
            GpcError::Page(error) => error.fmt(f),
            GpcError::Starved(rounds) => write!(f, "given up after {rounds} rounds; raise max_rounds to go on"),
        }
    }
}
impl std::error::Error for GpcError {}

impl Gpc {
    /// Makes an active cache and puts it on the list, before the run begins.
    pub fn create(sim: &mut impl Bed, list: &GpcList) -> Gpc {
        let gpc = Gpc {
            lock: sim.new_lock(LockKind::ReadWrite),
            refresh_lock: sim.new_lock(LockKind::Spin),
            active: sim.new_var(1),
            valid: sim.new_var(0),
            gpa: sim.new_var(NOWHERE),
            generation: sim.new_var(0),
            uhva: sim.new_var(NOWHERE),
            khva: sim.new_var(NOWHERE),
            flag: sim.new_var(0),
        };
        list.0.borrow_mut().push(gpc);
        gpc
    }

    /// What the checker knows it by.
    fn id(self) -> u64 {
        u64::from(self.valid.0)
    }
}

fn page_of<F: Format>(host: &Host<F>) -> PageSize {
    host.format().geometry().granule()
}

// ---- users ----

/// `kvm_gpc_check`: whether the mapping may be used. Under `gpc->lock`, held as long as it is used.
pub async fn check<F: Format>(host: &Host<F>, gpc: Gpc, place: Place) -> bool {
    if host.load(gpc.active).await == 0 {
        return false;
    }
    if let Place::Guest(gpa) = place {
        let section = host.srcu_read_lock().await;
        let slots = host.active_slots().await;
        let generation = host.slots_generation(slots).await;
        host.srcu_read_unlock(section).await;
        if host.load(gpc.gpa).await != gpa.raw() || host.load(gpc.generation).await != generation {
            return false;
        }
    }
    host.load(gpc.valid).await != 0
}

/// Uses the mapping once, refreshing it as often as it takes. Rounds that the refreshes needed.
///
/// # Errors
/// When it cannot be refreshed.
pub async fn access<F: Format>(host: &Host<F>, gpc: Gpc, place: Place, policy: &GpcPolicy) -> Result<u64, GpcError> {
    let mut rounds = 0;
    host.lock(gpc.lock, LockMode::Read).await;
    while !check(host, gpc, place).await {
        host.unlock(gpc.lock).await;
        rounds += refresh(host, gpc, place, policy).await?;
        host.lock(gpc.lock, LockMode::Read).await;
    }
    let khva = host.load(gpc.khva).await;
    host.dereference((khva != NOWHERE).then_some(Hpa::new(khva))).await;
    host.unlock(gpc.lock).await;
    Ok(rounds)
}

/// Uses the mapping for `hold` cycles, looking at the page at the beginning and at the end, if it is valid now. Whether it was.
pub async fn use_for<F: Format>(host: &Host<F>, gpc: Gpc, place: Place, hold: Cycles) -> bool {
    host.lock(gpc.lock, LockMode::Read).await;
    let usable = check(host, gpc, place).await;
    if usable {
        let khva = host.load(gpc.khva).await;
        let page = (khva != NOWHERE).then_some(Hpa::new(khva));
        host.dereference(page).await;
        host.spend(Work::Exactly(hold)).await;
        host.dereference(page).await;
    }
    host.unlock(gpc.lock).await;
    usable
}

// ---- the notifier's side ----

/// `gfn_to_pfn_cache_invalidate_start`: caches of the range become invalid. Waits for users; never under `mmu_lock`.
pub async fn invalidate<F: Format>(host: &Host<F>, gpcs: &GpcList, range: HvaRange) {
    if gpcs.is_empty() {
        return;
    }
    host.lock(LockId::GPC_LIST, LockMode::Write).await;
    let mut n = 0;
    while let Some(gpc) = gpcs.nth(n) {
        n += 1;
        host.lock(gpc.lock, LockMode::Read).await;
        let hit = concerns(host, gpc, range).await;
        host.unlock(gpc.lock).await;
        if !hit {
            continue;
        }
        host.lock(gpc.lock, LockMode::Write).await;
        // It may have been refreshed to another place between the locks.
        if concerns(host, gpc, range).await {
            host.store(gpc.flag, 0).await;
            set_invalid(host, gpc).await;
        }
        host.unlock(gpc.lock).await;
    }
    host.unlock(LockId::GPC_LIST).await;
}

/// Whether an invalidation of the range has anything to do here. A placeholder without a page is left alone, as in the kernel.
async fn concerns<F: Format>(host: &Host<F>, gpc: Gpc, range: HvaRange) -> bool {
    let page = Hva::new(host.load(gpc.uhva).await).align_down(page_of(host));
    if !range.overlaps(HvaRange::new(page, page_of(host).into())) {
        return false;
    }
    let mapped = host.load(gpc.valid).await != 0 && host.load(gpc.khva).await != NOWHERE;
    mapped || host.load(gpc.flag).await != 0
}

async fn set_invalid<F: Format>(host: &Host<F>, gpc: Gpc) {
    // A placeholder stays what it is: nobody has mapped anything yet.
    if host.load(gpc.khva).await != NOWHERE {
        host.store(gpc.valid, 0).await;
        host.announce_mapping(gpc.id(), None).await;
    }
}

async fn set_mapped<F: Format>(host: &Host<F>, gpc: Gpc, page: Hpa) {
    let size = page_of(host);
    host.store(gpc.khva, page.raw()).await;
    if host.load(gpc.valid).await != 0 {
        let uhva = Hva::new(host.load(gpc.uhva).await).align_down(size);
        let page = HpaRange::new(page.align_down(size), size.into());
        host.announce_mapping(gpc.id(), Some((page, uhva))).await;
    }
}

/// `kvm_gpc_deactivate`: off the list, never valid again.
pub async fn deactivate<F: Format>(host: &Host<F>, gpc: Gpc, gpcs: &GpcList) {
    host.lock(gpc.refresh_lock, LockMode::Write).await;
    host.lock(gpc.lock, LockMode::Write).await;
    host.store(gpc.active, 0).await;
    host.store(gpc.valid, 0).await;
    host.announce_mapping(gpc.id(), None).await;
    host.unlock(gpc.lock).await;
    host.lock(LockId::GPC_LIST, LockMode::Write).await;
    gpcs.0.borrow_mut().retain(|&other| other != gpc);
    host.unlock(LockId::GPC_LIST).await;
    host.unlock(gpc.refresh_lock).await;
}

// ---- refresh ----

/// `kvm_gpc_refresh`: makes the cache map `place` again. Rounds it took: none when the page had not to be looked up.
///
/// # Errors
/// When there is no page, or in the policy's last round something had been invalidated again.
pub async fn refresh<F: Format>(host: &Host<F>, gpc: Gpc, place: Place, policy: &GpcPolicy) -> Result<u64, GpcError> {
    if policy.serialization == Serialization::Mutex {
        host.lock(gpc.refresh_lock, LockMode::Write).await;
    }
    host.lock(gpc.lock, LockMode::Write).await;
    let result = refresh_locked(host, gpc, place, policy).await;
    host.unlock(gpc.lock).await;
    if policy.serialization == Serialization::Mutex {
        host.unlock(gpc.refresh_lock).await;
    }
    result
}

/// With `gpc->lock` held for write, which it gives up meanwhile.
async fn refresh_locked<F: Format>(
    host: &Host<F>,
    gpc: Gpc,
    place: Place,
    policy: &GpcPolicy,
) -> Result<u64, GpcError> {
    if host.load(gpc.active).await == 0 {
        return Err(GpcError::Inactive);
    }
    let page = page_of(host);
    let at = locate(host, gpc, place).await?;
    let wanted = at.align_down(page);
    let same = host.load(gpc.uhva).await == wanted.raw();
    if same && host.load(gpc.valid).await != 0 {
        return Ok(0);
    }
    let remembered = match policy.address {
        CachedAddress::Page => wanted,
        CachedAddress::WithOffset => at,
    };
    host.store(gpc.uhva, remembered.raw()).await;
    match policy.publish {
        Publish::AfterCheck => look_up(host, gpc, wanted, policy).await,
        Publish::Speculative => look_up_speculatively(host, gpc, wanted, policy).await,
    }
}

/// The host address of what is to be mapped.
async fn locate<F: Format>(host: &Host<F>, gpc: Gpc, place: Place) -> Result<Hva, GpcError> {
    let gpa = match place {
        Place::Host(hva) => return Ok(hva),
        Place::Guest(gpa) => gpa,
    };
    let section = host.srcu_read_lock().await;
    let slots = host.active_slots().await;
    host.store(gpc.gpa, gpa.raw()).await;
    host.store(gpc.generation, host.slots_generation(slots).await).await;
    let slot = host.slot_at(slots, gpa).await;
    host.srcu_read_unlock(section).await;
    match slot {
        Some(slot) if !slot.flags.contains(SlotFlags::INVALID) => Ok(slot.hva),
        _ => {
            host.store(gpc.valid, 0).await;
            host.announce_mapping(gpc.id(), None).await;
            Err(GpcError::NoSlot(gpa))
        }
    }
}

/// `hva_to_pfn_retry` since 5.19: invalid until the page is known to be good.
async fn look_up<F: Format>(host: &Host<F>, gpc: Gpc, uhva: Hva, policy: &GpcPolicy) -> Result<u64, GpcError> {
    let old = host.load(gpc.khva).await;
    host.store(gpc.valid, 0).await;
    host.announce_mapping(gpc.id(), None).await;
    let test = match policy.staleness {
        Staleness::Test(test) => RetryPolicy { test, order: policy.order, ..RetryPolicy::GPC_5_19 },
        Staleness::Flag => RetryPolicy::GPC_5_19,
    };
    let target = Target { gpa: Gpa::new(host.load(gpc.gpa).await), hva: uhva };
    let mut rounds = 0;
    loop {
        rounds += 1;
        if policy.staleness == Staleness::Flag {
            host.store(gpc.flag, 1).await;
        }
        let seq = snapshot(host, test.snapshot).await;
        host.unlock(gpc.lock).await;
        let found = find_page(host, uhva, policy).await;
        host.lock(gpc.lock, LockMode::Write).await;
        let page = found?;
        let stale = match policy.staleness {
            Staleness::Test(_) => invalidate_retry(host, &test, seq, target).await,
            Staleness::Flag => host.load(gpc.flag).await == 0,
        };
        if !stale {
            host.store(gpc.flag, 0).await;
            host.store(gpc.valid, 1).await;
            set_mapped(host, gpc, page.host).await;
            if policy.same_pfn == SamePfn::Put || old != page.host.raw() {
                put(host, page).await;
            }
            return Ok(rounds);
        }
        put(host, page).await;
        if rounds >= policy.max_rounds {
            host.store(gpc.flag, 0).await;
            return Err(GpcError::Starved(rounds));
        }
        if host.need_resched(gpc.lock).await {
            host.unlock(gpc.lock).await;
            host.reschedule().await;
            host.lock(gpc.lock, LockMode::Write).await;
        }
    }
}

/// Without any lock: waits as the policy says, finds the page, takes a reference and maps it.
async fn find_page<F: Format>(host: &Host<F>, uhva: Hva, policy: &GpcPolicy) -> Result<Resolved, GpcError> {
    if policy.waiting == Waiting::BeforeLookup {
        wait_for_invalidations(host, uhva).await;
    }
    // Walking the host's page table and mapping: the fixed part of a fault.
    host.spend(Work::Fault).await;
    let page = hva_to_pfn(host, uhva, HostAccess::Write, Reference::Take).await.map_err(GpcError::Page)?;
    if policy.waiting == Waiting::AfterMapping {
        wait_for_invalidations(host, uhva).await;
    }
    Ok(page)
}

/// Sleeps until no active invalidation covers the address. The merged range only grows, so unrelated ones on both sides count as covering.
async fn wait_for_invalidations<F: Format>(host: &Host<F>, uhva: Hva) {
    let target = Target { gpa: Gpa::new(0), hva: uhva };
    host.lock(LockId::INVALIDATE, LockMode::Write).await;
    loop {
        host.prepare_to_wait(WaitQueue::GPC).await;
        if !invalidation_covers(host, RetryTest::ActiveRange, target).await {
            break;
        }
        host.unlock(LockId::INVALIDATE).await;
        host.schedule(WaitQueue::GPC).await;
        host.lock(LockId::INVALIDATE, LockMode::Write).await;
    }
    host.finish_wait(WaitQueue::GPC).await;
    host.unlock(LockId::INVALIDATE).await;
}

/// The form up to 5.18: valid with a placeholder first; the test is the fault path's, under `mmu_lock`, and looks at what is raised
/// after caches were invalidated.
async fn look_up_speculatively<F: Format>(
    host: &Host<F>,
    gpc: Gpc,
    uhva: Hva,
    policy: &GpcPolicy,
) -> Result<u64, GpcError> {
    let test = match policy.staleness {
        Staleness::Test(test) => RetryPolicy { test, order: policy.order, ..RetryPolicy::V5_12 },
        Staleness::Flag => RetryPolicy::V5_12,
    };
    host.announce_mapping(gpc.id(), None).await;
    host.store(gpc.khva, NOWHERE).await;
    host.store(gpc.valid, 1).await;
    let target = Target { gpa: Gpa::new(host.load(gpc.gpa).await), hva: uhva };
    host.unlock(gpc.lock).await;
    let mut rounds = 0;
    let found = loop {
        rounds += 1;
        let seq = snapshot(host, test.snapshot).await;
        let page = match find_page(host, uhva, policy).await {
            Ok(page) => page,
            Err(error) => break Err(error),
        };
        host.lock(LockId::MMU, LockMode::Read).await;
        let stale = invalidate_retry(host, &test, seq, target).await;
        host.unlock(LockId::MMU).await;
        if !stale {
            break Ok(page);
        }
        put(host, page).await;
        if rounds >= policy.max_rounds {
            break Err(GpcError::Starved(rounds));
        }
    };
    host.lock(gpc.lock, LockMode::Write).await;
    match found {
        Ok(page) => {
            set_mapped(host, gpc, page.host).await;
            put(host, page).await;
            Ok(rounds)
        }
        Err(error) => {
            host.store(gpc.valid, 0).await;
            Err(error)
        }
    }
}

/// Puts the reference back that [`find_page`] took.
async fn put<F: Format>(host: &Host<F>, page: Resolved) {
    let size = page_of(host);
    host.put_host_page(HpaRange::new(page.host.align_down(size), Bytes(size.bytes()))).await;
}
