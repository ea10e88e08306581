//! A nested guest: the shadow second stage that an L2 runs on, its reverse maps, and aging through them.
//!
//! L1 describes L2's memory; KVM walks neither of L1's tables at run time but keeps a *shadow* tree that maps an L2 address straight to the
//! host page, filled by faults. For each L1 page a *chain* (`kvm_rmap_head`, POWER's nested rmap list) names the shadow leaves that map
//! it, so that unmapping and aging of an L1 page find them.
//!
//! | policy | models | TDP part | shadow part |
//! | --- | --- | --- | --- |
//! | [`RmapAging::ExcludedIfEverNested`] | seed thread v1 (X44) | by its policy until a nested guest ran once, under the lock for ever after | with it |
//! | [`RmapAging::ExcludedWhileShadowed`] | review of v1: `indirect_shadow_pages > 0` | by its policy while nothing is shadowed, else under the lock | with it |
//! | [`RmapAging::UnderMmuLock`] | `mmu_lock` taken for the chains only; POWER, with the TDP part under it too | by its policy | `mmu_lock` for write |
//! | [`RmapAging::ChainLock`] | x86 since 6.15 | by its policy | a bit lock per chain |
//!
//! Locking: whoever changes a chain holds `mmu_lock` for write *and* the chain's bit lock; a walker without `mmu_lock` holds the bit
//! lock, with preemption off. An empty chain is never locked. The words of shadow leaves are not protected by it: they change
//! atomically. Flush: [`Shadow::unmap`] and [`Shadow::release`] flush before they return; aging owes none. Frees: shadow tables
//! only in [`Shadow::release`], at once, after every leaf of theirs has left its chain and the flush is done.

mod error;
mod log;
mod policy;
mod rc;
mod unmap;

use mmu_core::{Bytes, Cycles, Format, Gpa, GpaRange, Hpa, Leaf, Level, PageSize};
use serde::{Deserialize, Serialize};

use super::aging::{self, Aged, AgingPath, AgingPolicy};
use super::fault_fast::lockless_leaf;
use super::fault_map::relaxed;
use super::iter::{FlushDebt, pass_over};
use super::notifier::{RetryPolicy, Target, invalidate_retry, snapshot};
use super::slots::{Faultin, faultin_pfn};
use super::young::Clear;
use crate::engine::{
    AgeRun, AgeWrite, Bed, Cmpxchg, Frames, GuestFault, Host, HostAccess, LockId, LockMode, Reference, Var, Work,
};

pub use error::ShadowError;
pub use policy::{RcCopy, RcTarget, ShadowLock, ShadowPolicy};
pub use rc::{RcClear, ShadowLeaf};

/// Whether a walker that holds a chain's bit lock can be preempted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChainLock {
    /// No: `preempt_disable()` (6.15).
    PreemptionOff,
    /// X45: it can, and those who wait hammer the word without a pause (v8, before its reviews).
    PreemptionOn,
}

/// How the chains are walked for aging.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RmapAging {
    /// X44: the VM is aged under `mmu_lock` for ever after it ran a nested guest.
    ExcludedIfEverNested,
    /// The VM is aged under `mmu_lock` while it has shadow tables.
    ExcludedWhileShadowed,
    /// The chains under `mmu_lock`, the rest by its own policy.
    UnderMmuLock,
    /// The chains one by one under their bit locks.
    ChainLock(ChainLock),
}

impl RmapAging {
    /// Linux 6.15.
    pub const V6_15: RmapAging = RmapAging::ChainLock(ChainLock::PreemptionOff);
}

/// How a VM with a nested guest is aged.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NestedAging {
    /// The tables that L1 runs on.
    pub tdp: AgingPolicy,
    /// The chains.
    pub rmap: RmapAging,
}

/// A chain's word: the chain is locked.
const LOCKED: u64 = 2;
/// A chain's word: the rest is the number of the first of several entries, not a leaf's address.
const MANY: u64 = 1;
/// Cycles of one `pause` (Intel Optimization Manual: about 140 since Skylake).
const PAUSE: Cycles = Cycles(140);

/// The shadow tree of one nested guest, and the chains of its L1.
///
/// Everything in it is shared: heads and entries of chains are variables, so that walkers without a lock race as they do in the
/// kernel.
#[derive(Clone, Copy, Debug)]
pub struct Shadow {
    /// L2 address to L1 address: what L1's own tables say.
    nesting: fn(Gpa) -> Gpa,
    root: Var,
    /// `indirect_shadow_pages`
    pages: Var,
    /// Whether there ever was one.
    ever: Var,
    /// Spins of chain locks.
    spins: Var,
    /// First free chain entry; 0 is none.
    free: Var,
    /// The heads, one per L1 page: consecutive.
    heads: Var,
    gfns: u64,
    /// The entries from number 1 on: two variables each, the leaf and the next entry.
    entries: Var,
    /// Times that a walker gave the processor away with a chain locked.
    preempted: Var,
    page: PageSize,
    policy: ShadowPolicy,
}

impl Shadow {
    /// Chains for L1 memory of `l1`, with room for so many shadow mappings, and no shadow tree yet.
    pub fn new<B: Bed>(sim: &mut B, format: &B::Format, l1: Bytes, mappings: u64, nesting: fn(Gpa) -> Gpa) -> Self {
        let page = format.geometry().granule();
        let gfns = l1.0.div_ceil(page.bytes());
        let many = |sim: &mut B, count: u64| {
            (1..count.max(1)).fold(sim.new_var(0), |first, _| {
                sim.new_var(0);
                first
            })
        };
        let heads = many(sim, gfns);
        let entries = Var(sim.new_var(0).0);
        // A list of free entries, first to last.
        for number in 1..=mappings {
            if number > 1 {
                sim.new_var(0);
            }
            sim.new_var(if number < mappings { number + 1 } else { 0 });
        }
        let free = u64::from(mappings > 0);
        Self {
            nesting,
            root: sim.new_var(0),
            pages: sim.new_var(0),
            ever: sim.new_var(0),
            spins: sim.new_var(0),
            free: sim.new_var(free),
            heads,
            gfns,
            entries,
            preempted: sim.new_var(0),
            page,
            policy: ShadowPolicy::RIGHT,
        }
    }

    /// The same with faults handled otherwise.
    #[must_use]
    pub fn handled_by(self, policy: ShadowPolicy) -> Self {
        Self { policy, ..self }
    }

    /// `indirect_shadow_pages`: shadow tables in use.
    pub fn pages(&self) -> Var {
        self.pages
    }
    /// How often somebody spun on a chain's bit lock.
    pub fn spins(&self) -> Var {
        self.spins
    }
    /// How often a walker gave the processor away while it had a chain locked (X45).
    pub fn preempted(&self) -> Var {
        self.preempted
    }
    /// The L1 address behind an L2 address.
    pub fn l1_of(&self, l2: Gpa) -> Gpa {
        (self.nesting)(l2)
    }

    fn head(&self, l1: Gpa) -> Option<Var> {
        let gfn = l1.raw() / self.page.bytes();
        (gfn < self.gfns).then(|| Var(self.heads.0 + gfn as u32))
    }
    fn leaf_of(&self, entry: u64) -> Var {
        Var(self.entries.0 + 2 * (entry as u32 - 1))
    }
    fn next_of(&self, entry: u64) -> Var {
        Var(self.leaf_of(entry).0 + 1)
    }

    // ---- the bit lock ----

    /// `__kvm_rmap_lock`: the chain's word without its lock bit, the lock taken; 0 and no lock when the chain is empty.
    async fn lock<F: Format>(&self, host: &Host<F>, head: Var, kind: ChainLock) -> u64 {
        let mut old = host.load(head).await;
        loop {
            while old & LOCKED != 0 {
                host.add(self.spins, 1).await;
                match kind {
                    ChainLock::PreemptionOff => host.spend(Work::Exactly(PAUSE)).await,
                    // Without a pause each look costs the holder its cache line.
                    ChainLock::PreemptionOn => {
                        let _ = host.cmpxchg_var(head, old & !LOCKED, old).await;
                    }
                }
                old = host.load(head).await;
            }
            if old == 0 {
                return 0;
            }
            match host.cmpxchg_var(head, old, old | LOCKED).await {
                Cmpxchg::Done => return old,
                Cmpxchg::Failed(found) => old = found,
            }
        }
    }

    /// `__kvm_rmap_unlock`: publishes the chain's new word.
    async fn unlock<F: Format>(&self, host: &Host<F>, head: Var, word: u64) {
        host.store_release(head, word).await;
    }

    // ---- mappings; mmu_lock held for write ----

    /// `pte_list_add`
    async fn chain<F: Format>(&self, host: &Host<F>, head: Var, leaf: Hpa) -> Result<(), ShadowError> {
        let word = self.lock(host, head, ChainLock::PreemptionOff).await;
        let new = match self.chained(host, word, leaf).await {
            Ok(new) => new,
            Err(error) => {
                if word != 0 {
                    self.unlock(host, head, word).await;
                }
                return Err(error);
            }
        };
        self.unlock(host, head, new).await;
        Ok(())
    }

    /// The chain's word with `leaf` in front.
    async fn chained<F: Format>(&self, host: &Host<F>, word: u64, leaf: Hpa) -> Result<u64, ShadowError> {
        if word == 0 {
            return Ok(leaf.raw());
        }
        let rest = if word & MANY != 0 { word >> 2 } else { self.entry(host, Hpa::new(word), 0).await? };
        let first = match self.entry(host, leaf, rest).await {
            Ok(first) => first,
            Err(error) => {
                if word & MANY == 0 {
                    self.free_entry(host, rest).await;
                }
                return Err(error);
            }
        };
        Ok(first << 2 | MANY)
    }

    async fn entry<F: Format>(&self, host: &Host<F>, leaf: Hpa, next: u64) -> Result<u64, ShadowError> {
        let entry = host.load(self.free).await;
        if entry == 0 {
            return Err(ShadowError::NoChainEntry);
        }
        let free = host.load(self.next_of(entry)).await;
        host.store(self.free, free).await;
        host.store(self.leaf_of(entry), leaf.raw()).await;
        host.store(self.next_of(entry), next).await;
        Ok(entry)
    }

    async fn free_entry<F: Format>(&self, host: &Host<F>, entry: u64) {
        let free = host.load(self.free).await;
        host.store(self.next_of(entry), free).await;
        host.store(self.free, entry).await;
    }

    /// The leaf that a chain's word or entry names, and the entry after it.
    async fn link<F: Format>(&self, host: &Host<F>, word: u64) -> (Hpa, u64) {
        if word & MANY == 0 {
            return (Hpa::new(word), 0);
        }
        let entry = word >> 2;
        let leaf = host.load(self.leaf_of(entry)).await;
        let next = host.load(self.next_of(entry)).await;
        (Hpa::new(leaf), if next == 0 { 0 } else { next << 2 | MANY })
    }

    /// The shadow tree's root, made when there is none yet.
    async fn root_table<F: Format>(&self, host: &Host<F>) -> Result<Hpa, ShadowError> {
        let root = host.load(self.root).await;
        if root != 0 {
            return Ok(Hpa::new(root));
        }
        let table = self.table(host, host.format().geometry().root()).await?;
        host.store_release(self.root, table.raw()).await;
        Ok(table)
    }

    async fn table<F: Format>(&self, host: &Host<F>, level: Level) -> Result<Hpa, ShadowError> {
        let table = host.alloc_table(level).await.ok_or(ShadowError::NoTable)?;
        // Before any leaf can be found through it: who sees none has nothing to age.
        host.add(self.pages, 1).await;
        host.store(self.ever, 1).await;
        Ok(table)
    }

    /// Where the last-level entry of `l2` is; missing tables are made.
    async fn slot<F: Format>(&self, host: &Host<F>, l2: Gpa) -> Result<Hpa, ShadowError> {
        let format = *host.format();
        let geometry = *format.geometry();
        let mut table = self.root_table(host).await?;
        let mut level = geometry.root();
        loop {
            let at = table + 8 * geometry.index(level, l2.raw()) as u64;
            let Some(down) = level.down() else { return Ok(at) };
            let word = host.read(at).await;
            table = if format.is_mapped(word) {
                format.next_table(level, word)
            } else {
                let child = self.table(host, down).await?;
                let link = format.encode_table(level, child).map_err(|_| ShadowError::Address { l2 })?;
                host.write_release(at, link).await;
                child
            };
            level = down;
        }
    }

    /// Maps the page of `l2`, which is `l1` to L1, to a host page, or makes its leaf young and writable again. `mmu_lock` is held
    /// for write.
    ///
    /// # Errors
    /// [`ShadowError`]; nothing is mapped then.
    pub async fn map<F: Format>(
        &self,
        host: &Host<F>,
        l2: Gpa,
        l1: Gpa,
        page: Hpa,
        wanted: ShadowLeaf,
    ) -> Result<(), ShadowError> {
        let format = *host.format();
        let head = self.head(l1).ok_or(ShadowError::NoChain { l1 })?;
        let at = self.slot(host, l2).await?;
        let word = host.read(at).await;
        if format.is_mapped(word) {
            let (mut at, mut word) = (at, word);
            if self.policy.rc == RcTarget::OfL1
                && let Some((other, Level::LAST, found)) = lockless_leaf(host, host.root().await, l2).await
            {
                (at, word) = (other, found);
            }
            let usable = relaxed(&format, Level::LAST, word, wanted.access).unwrap_or(word);
            // Lost to an ager or to hardware: the guest faults again.
            let _ = host.cmpxchg(at, word, usable).await;
            self.forget_denial(host, l2).await;
            return Ok(());
        }
        let (output, perms) = (page.align_down(self.page), wanted.perms());
        let leaf = Leaf { output, perms, accessed: true, attrs: F::Attrs::default() };
        let leaf = format.encode_leaf(Level::LAST, &leaf).map_err(|_| ShadowError::Address { l2 })?;
        self.chain(host, head, at).await?;
        host.write_release(at, leaf).await;
        Ok(())
    }

    /// `kvm_zap_all_rmap_sptes`: clears every shadow leaf of an L1 page and empties its chain. `mmu_lock` is held for write.
    async fn zap_chain<F: Format>(&self, host: &Host<F>, head: Var) -> FlushDebt {
        let first = self.lock(host, head, ChainLock::PreemptionOff).await;
        if first == 0 {
            return FlushDebt::Clean;
        }
        let mut word = first;
        while word != 0 {
            let (leaf, next) = self.link(host, word).await;
            host.xchg(leaf, 0).await;
            host.spend(Work::ReleaseLeaf).await;
            if word & MANY != 0 {
                self.free_entry(host, word >> 2).await;
            }
            word = next;
        }
        self.unlock(host, head, 0).await;
        FlushDebt::Owed
    }

    fn heads_of(&self, l1: GpaRange) -> impl Iterator<Item = Var> + use<> {
        let page = self.page.bytes();
        let (first, last) = (l1.start.raw() / page, l1.end().raw().div_ceil(page).min(self.gfns));
        let heads = self.heads.0;
        (first..last).map(move |gfn| Var(heads + gfn as u32))
    }

    /// The nested guest is gone (`kvmhv_release_all_nested`): empties all chains, flushes, frees the shadow tables. No vCPU may enter
    /// L2 on them afterwards.
    pub async fn release<F: Format>(&self, host: &Host<F>) {
        host.lock(LockId::MMU, LockMode::Write).await;
        self.zap_chains(host).await;
        let root = host.xchg_var(self.root, 0).await;
        if root != 0 {
            host.flush_vm().await;
            self.free_tables(host, Hpa::new(root), host.format().geometry().root()).await;
        }
        host.unlock(LockId::MMU).await;
    }

    async fn free_tables<F: Format>(&self, host: &Host<F>, table: Hpa, level: Level) {
        let format = *host.format();
        let geometry = *format.geometry();
        let entries = if level == Level::LAST { 0 } else { geometry.entries(level) as u64 };
        let mut index = 0;
        while index < entries {
            let run = host.read_run(table + 8 * index, entries - index).await;
            if format.is_mapped(run.first)
                && let Some(down) = level.down()
            {
                Box::pin(self.free_tables(host, format.next_table(level, run.first), down)).await;
                index += 1;
            } else {
                index += pass_over(host, table + 8 * index, run.len).await;
            }
        }
        host.free_tables(Frames { first: table, count: 1, level, bytes: geometry.table_bytes(level) }).await;
        host.add(self.pages, -1).await;
    }

    // ---- L2's vCPU ----

    /// A fault of L2: snapshot, resolve through L1, lock, test, map. A stale one is left to the guest to take again. When the chain
    /// entries are used up, all shadow leaves go first (`make_mmu_pages_available`, which zaps the oldest).
    ///
    /// # Errors
    /// What keeps the page from being mapped at all.
    pub async fn fault<F: Format>(&self, host: &Host<F>, fault: GuestFault) -> Result<(), ShadowError> {
        self.fault_then(host, fault, async |_| ()).await
    }

    /// [`Shadow::fault`]; `mapped` learns L1's page while `mmu_lock` is held, when its leaf has been made writable (`mark_page_dirty_in_slot` of `make_spte`:
    /// shadow leaves are writable whatever the fault was for).
    async fn fault_then<F: Format>(
        &self,
        host: &Host<F>,
        fault: GuestFault,
        mapped: impl AsyncFnOnce(Gpa),
    ) -> Result<(), ShadowError> {
        host.spend(Work::Fault).await;
        let retry = &RetryPolicy::V6_8;
        let seq = snapshot(host, retry.snapshot).await;
        let l1 = self.l1_of(fault.gpa);
        let found = faultin_pfn(host, l1, HostAccess::Write, Reference::None).await;
        let Faultin::Page { page: found, hva } = found else {
            host.count_retry().await;
            return Ok(());
        };
        let (page, wanted) = (found.host, self.copied(host, l1, fault.access).await);
        let mode = if self.policy.lock == ShadowLock::Write { LockMode::Write } else { LockMode::Read };
        host.lock(LockId::MMU, mode).await;
        if invalidate_retry(host, retry, seq, Target { gpa: l1, hva }).await {
            host.count_retry().await;
            host.unlock(LockId::MMU).await;
            return Ok(());
        }
        let l2 = fault.gpa.align_down(self.page);
        let mut result = self.map(host, l2, l1, page, wanted).await;
        if result == Err(ShadowError::NoChainEntry) {
            self.zap_chains(host).await;
            result = self.map(host, l2, l1, page, wanted).await;
        }
        if result.is_ok() {
            mapped(l1).await;
        }
        host.unlock(LockId::MMU).await;
        result
    }

    /// Empties all chains and flushes what was in them; the tables stay. `mmu_lock` is held for write.
    async fn zap_chains<F: Format>(&self, host: &Host<F>) {
        let mut debt = FlushDebt::Clean;
        for gfn in 0..self.gfns {
            debt = debt.merge(self.zap_chain(host, Var(self.heads.0 + gfn as u32)).await);
        }
        if debt == FlushDebt::Owed {
            host.flush_vm().await;
        }
    }

    // ---- aging ----

    /// `kvm_rmap_age_gfn_range`: ages the shadow leaves of a range of L1's pages; with `lock` each chain is locked, without the caller
    /// holds `mmu_lock`.
    pub(super) async fn age_chains<F: Format>(
        &self,
        host: &Host<F>,
        l1: GpaRange,
        clear: Clear,
        policy: &AgingPolicy,
        lock: Option<ChainLock>,
    ) -> Aged {
        let mut aged = Aged::default();
        for head in self.heads_of(l1) {
            let first = match lock {
                Some(kind) => self.lock(host, head, kind).await,
                None => host.load(head).await,
            };
            let mut word = first;
            while word != 0 && (clear == Clear::Clear || aged.young == 0) {
                let (leaf, next) = self.link(host, word).await;
                aged.merge(&age_leaf(host, leaf, clear, policy).await);
                if lock == Some(ChainLock::PreemptionOn) && host.need_resched(LockId::MMU).await {
                    host.add(self.preempted, 1).await;
                    host.reschedule().await;
                }
                word = next;
            }
            if lock.is_some() && first != 0 {
                self.unlock(host, head, first).await;
            }
        }
        aged
    }
}

/// Ages one leaf that a chain names.
async fn age_leaf<F: Format>(host: &Host<F>, at: Hpa, clear: Clear, policy: &AgingPolicy) -> Aged {
    let old = host.read(at).await;
    let mut aged = Aged::default();
    // Its owner may just have cleared it, or not have written it yet.
    if !host.format().is_mapped(old) {
        return aged;
    }
    aged.leaves = 1;
    if !aging::is_young(host.format(), old) {
        return aged;
    }
    aged.young = 1;
    let write = policy.write(host.format(), clear);
    if write != AgeWrite::Nothing {
        let run = AgeRun { at, len: 1, level: Level::LAST, old, write };
        let done = host.age(run).await;
        aged.made_old = 1 - aging::settle(host, run, done.first, policy, &mut aged).await;
    }
    aged
}

/// Ages, or tests, a range of L1's memory in both trees. Tells how the L1 part was walked.
pub async fn age<F: Format>(
    host: &Host<F>,
    shadow: &Shadow,
    l1: GpaRange,
    clear: Clear,
    policy: &NestedAging,
) -> (AgingPath, Aged) {
    let shadowed = host.load_acquire(shadow.pages).await != 0;
    let excluded = match policy.rmap {
        RmapAging::ExcludedIfEverNested => host.load_acquire(shadow.ever).await != 0,
        RmapAging::ExcludedWhileShadowed => shadowed,
        RmapAging::UnderMmuLock | RmapAging::ChainLock(_) => false,
    };
    let path = if excluded { AgingPath::Locked } else { policy.tdp.path(host.format()) };
    let section = aging::enter_by(host, path).await;
    let root = host.root().await;
    let mut aged = match clear {
        Clear::Clear => aging::walk(host, root, l1, clear, None, &policy.tdp).await,
        Clear::Test => aging::find_young(host, root, l1, &policy.tdp).await,
    };
    // A young page needs no second witness; where nothing is shadowed there is none.
    let wanted = shadowed && (clear == Clear::Clear || aged.young == 0);
    if wanted && path == AgingPath::Locked {
        aged.merge(&shadow.age_chains(host, l1, clear, &policy.tdp, None).await);
    }
    aging::leave(host, section, &mut aged).await;
    if wanted && path == AgingPath::Lockless {
        if let RmapAging::ChainLock(kind) = policy.rmap {
            aged.merge(&shadow.age_chains(host, l1, clear, &policy.tdp, Some(kind)).await);
        } else {
            let section = aging::enter_by(host, AgingPath::Locked).await;
            let mut chains = shadow.age_chains(host, l1, clear, &policy.tdp, None).await;
            aging::leave(host, section, &mut chains).await;
            aged.merge(&chains);
        }
    }
    (path, aged)
}
