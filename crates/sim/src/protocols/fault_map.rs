//! The walk of a fault under `mmu_lock`: down to the level of the page, and the leaf in place.
//!
//! Models `kvm_tdp_mmu_map` and `stage2_map_walker` (Linux 6.6). Locking: the caller's, see [`Walkers`]; RCU around the walk. A lost race or a locked
//! entry (`-EAGAIN`) sends the guest back to try again. Flush: a replaced table or huge leaf is flushed here, a relaxed leaf too; installing owes none.
//! Frees a table that was never linked at once, or keeps it in the memory cache.

use mmu_core::{
    AccessKind, Bytes, Denial, Entry, FaultClass, Flush, FlushScope, Format, Gpa, GpaRange, Hpa, Leaf, Level,
    NotPresent, Perms, Reach, WalkCaches,
};

use super::aging::restore_access;
use super::coalesce::{
    AfterReplace, CacheMaintenance, Changed, EntryAt, References, Walkers, block_to_table, clean_block, make,
    table_to_block,
};
use super::fault::{
    ExecMapping, FaultPolicy, FrozenEntries, Logging, PaOffset, PageKind, PresentLeaf, RelaxFlush, TableInTheWay,
    TopUp, writes,
};
use super::kvm::Kvm;
use super::memory_cache::MemoryCache;
use super::nx::{Mitigation, NxPages, Tracked};
use super::split::{LazilySplit, LazySplit, lazy_split};
use super::zap::{LinkedTable, is_table};
use crate::engine::{Announced, Cmpxchg, Host, Protection, Work};
use crate::events::Trace;

/// What became of one attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Attempt {
    /// The entry is in place.
    Fixed,
    /// Somebody else had put it there.
    Spurious,
    /// It must be tried again from the guest.
    Retry,
    /// The memory cache is empty: it must be topped up without the lock.
    NoTable,
    /// No memslot: an emulated device.
    NoSlot,
    /// The process that owns the guest has nothing there, or not for this access.
    NoPage,
}

/// What a fault wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Request {
    /// Where.
    pub(super) gpa: Gpa,
    /// For what.
    pub(super) access: AccessKind,
    /// Why it faulted.
    pub(super) class: FaultClass,
    /// Level of the leaf to map.
    pub(super) goal: Level,
    /// The host page behind `gpa`.
    pub(super) host_page: Hpa,
    /// What the process itself may do with that page.
    pub(super) protection: Protection,
    /// Whether writes are logged.
    pub(super) logging: Logging,
    /// Whether huge pages may be executable.
    pub(super) mitigation: Mitigation,
    /// What is behind the address.
    pub(super) kind: PageKind,
}

impl Request {
    /// A fetch from a VM whose huge pages are not executable: only the smallest page will do.
    fn fetches_small(&self) -> bool {
        self.mitigation == Mitigation::On && self.access == AccessKind::Execute
    }
}

/// Walks to the goal, allocating missing tables, and installs the leaf.
pub(super) async fn map<F: Format>(
    host: &Host<F>,
    root: Hpa,
    request: &Request,
    policy: &FaultPolicy,
    cache: &mut MemoryCache,
    nx: Option<&NxPages>,
) -> Attempt {
    let mut request = *request;
    let format = *host.format();
    let geometry = *format.geometry();
    if Kvm::of::<F>() == Kvm::X86 {
        host.trace(|| Trace::KvmMmuSpteRequested {
            gfn: request.gpa.raw() >> 12,
            pfn: request.host_page.raw() >> 12,
            level: 1 + request.goal.index() as u32,
        });
    }
    let mut table = root;
    let mut level = geometry.root();
    let fetches_small = request.fetches_small();
    let mut goal = if fetches_small { Level::LAST } else { request.goal };
    loop {
        let ptep = table + 8 * geometry.index(level, request.gpa.raw()) as u64;
        let at = EntryAt { ptep, level, gpa: request.gpa.align_down(geometry.page_size(level)) };
        let word = host.read(ptep).await;
        let present = format.is_mapped(word);
        let leaf = present && format.is_leaf(level, word);
        if !present && word != 0 {
            // Locked or frozen: its owner is at work on this part.
            if policy.frozen == FrozenEntries::LeftAlone {
                return Attempt::Retry;
            }
            host.write(ptep, 0).await;
        }
        let splits = leaf && level > goal && (fetches_small || must_split(&format, level, word, &request));
        if leaf && !splits {
            return relax(host, at, table, word, &request, policy).await;
        }
        if level == goal {
            if !present {
                let attempt = install(host, at, &request, policy).await;
                if attempt == Attempt::Fixed && policy.offset == PaOffset::AdvancedByCallback && level > Level::LAST {
                    // The walker looks whether there is a table to descend into, and there may be one by now.
                    let now = host.read(ptep).await;
                    if is_table(&format, level, now)
                        && let Some(down) = level.down()
                    {
                        request.host_page += geometry.page_size(level).bytes();
                        (table, level, goal) = (format.next_table(level, now), down, Level::LAST);
                        continue;
                    }
                }
                return attempt;
            }
            let kept = match nx {
                Some(nx) if level > Level::LAST => nx.is_disallowed(host, format.next_table(level, word)).await,
                _ => false,
            };
            if policy.tables == TableInTheWay::Coalesce && request.logging == Logging::Off && !kept {
                match coalesce(host, at, word, &request, policy).await {
                    Coalesced::Ended(attempt) => return attempt,
                    // A15: on into the table that was there before.
                    Coalesced::Follow => {}
                }
            }
            // A table stays where it is: the page below it is mapped.
            goal = level.down().unwrap_or(Level::LAST);
        }
        let Some(down) = level.down() else { return Attempt::Retry };
        if present && !leaf {
            table = format.next_table(level, word);
            level = down;
            continue;
        }
        let marks = nx.filter(|_| fetches_small);
        // In place, the table's mark has to be there before the table is.
        let in_place = policy.split == LazySplit::InPlace && marks.is_some();
        if leaf && policy.split != LazySplit::EmptyTable && !in_place {
            match lazy_split(host, ptep, level, request.gpa, word, policy.split).await {
                // The entry is read again and found to be a table, or nothing.
                LazilySplit::Linked(_) | LazilySplit::Cleared => continue,
                LazilySplit::Raced => return Attempt::Retry,
                LazilySplit::NoTable => return Attempt::NoTable,
            }
        }
        let Some(child) = take_table(host, cache, down, policy).await else { return Attempt::NoTable };
        let linked = match marks {
            Some(nx) => {
                let tracked = if request.goal >= level { Tracked::Yes } else { Tracked::No };
                nx.link(host, LinkedTable { sptep: ptep, level, gpa: at.gpa, table: child }, word, tracked).await
            }
            None if leaf => block_to_table(host, at, word, child, &policy.coalesce, policy.walkers()).await,
            None => link(host, at, child, policy.walkers()).await,
        };
        if linked == Changed::Raced {
            // Somebody was first; ours was never visible.
            if policy.coalesce.references != References::ForgetsLoser {
                cache.give_back(host, down, child).await;
            }
            return Attempt::Retry;
        }
        table = child;
        level = down;
    }
}

async fn take_table<F: Format>(
    host: &Host<F>,
    cache: &mut MemoryCache,
    level: Level,
    policy: &FaultPolicy,
) -> Option<Hpa> {
    match policy.top_up {
        TopUp::EveryFault | TopUp::NotForPermission => cache.take(level),
        TopUp::UnderLock { fails_every } => cache.take_nowait(host, level, fails_every).await,
    }
}

/// Whether a huge leaf has to make room: logging counts small pages, and the leaf does not allow what the guest wants.
fn must_split<F: Format>(format: &F, level: Level, word: u64, request: &Request) -> bool {
    request.logging == Logging::On
        && request.class != FaultClass::AccessFlag
        && !allows(format, level, word, request.access)
}

/// Links an empty table where nothing is.
async fn link<F: Format>(host: &Host<F>, at: EntryAt, child: Hpa, walkers: Walkers) -> Changed {
    let Ok(word) = host.format().encode_table(at.level, child) else { return Changed::Raced };
    put(host, at, 0, word, walkers).await
}

/// Puts a word in place of another one, as the lock allows it.
async fn put<F: Format>(host: &Host<F>, at: EntryAt, old: u64, new: u64, walkers: Walkers) -> Changed {
    match walkers {
        Walkers::Exclusive => {
            host.write_release(at.ptep, new).await;
            Changed::Done
        }
        Walkers::Shared => match host.cmpxchg(at.ptep, old, new).await {
            Cmpxchg::Done => Changed::Done,
            Cmpxchg::Failed(_) => Changed::Raced,
        },
    }
}

/// The leaf that a fault maps: everything is allowed but writing what is logged and was not written, and executing what no cache was invalidated for.
fn new_leaf<F: Format>(format: &F, level: Level, request: &Request, policy: &FaultPolicy) -> Option<u64> {
    let size = format.geometry().page_size(level);
    let output = Hpa::new(request.host_page.raw() - request.gpa.offset_in(size)).align_down(size);
    let fetches = request.access == AccessKind::Execute;
    let nx_huge = request.mitigation == Mitigation::On && level > Level::LAST;
    let exec = (policy.exec == ExecMapping::Always || fetches) && !nx_huge;
    let perms = if exec { Perms::RWX } else { Perms::RW }.with(Perms::DIRTY);
    let perms = match request.protection {
        Protection::ReadWrite => perms,
        // `map_writable` stays false: a write faults, and the host is asked again.
        Protection::Read | Protection::None => perms.without(Perms::W.with(Perms::DIRTY)),
    };
    let leaf = Leaf { output, perms, accessed: true, attrs: F::Attrs::default() };
    let word = format.encode_leaf(level, &leaf).ok()?;
    let writable = request.logging == Logging::Off || writes(request.access);
    Some(if writable { word } else { format.write_protect(word) })
}

/// Cache maintenance that is the map handler's, for a leaf about to become visible.
async fn maintain<F: Format>(host: &Host<F>, at: EntryAt, word: u64, request: &Request, policy: &FaultPolicy) {
    let bytes = Bytes(host.format().geometry().page_size(at.level).bytes());
    // What the RFC of 2021 skipped is the block that replaces a table, not the leaf that is new.
    let cleans = match policy.coalesce.maintenance {
        CacheMaintenance::InMapHandler | CacheMaintenance::Skipped => request.kind == PageKind::Memory,
        CacheMaintenance::InMapHandlerAnything => true,
        CacheMaintenance::PerFault | CacheMaintenance::NotNeeded => false,
    };
    if cleans {
        clean_block(host, mmu_core::HpaRange::new(host.format().output(at.level, word), bytes)).await;
    }
    if policy.exec == ExecMapping::OnFetch && request.access == AccessKind::Execute {
        host.invalidate_fetched(bytes).await;
    }
}

/// A leaf where nothing is. Where memory has to be cleaned first, the entry is locked meanwhile, so that one vCPU does it.
async fn install<F: Format>(host: &Host<F>, at: EntryAt, request: &Request, policy: &FaultPolicy) -> Attempt {
    let format = *host.format();
    let Some(new) = new_leaf(&format, at.level, request, policy) else { return Attempt::Retry };
    let locked = format.encode_not_present(NotPresent::Frozen).ok();
    if let (Walkers::Shared, Some(locked)) = (policy.walkers(), locked)
        && (format.uncached() == mmu_core::Uncached::NeedsClean || policy.exec == ExecMapping::OnFetch)
    {
        if host.cmpxchg(at.ptep, 0, locked).await != Cmpxchg::Done {
            return Attempt::Retry;
        }
        maintain(host, at, new, request, policy).await;
        make(host, at, new).await;
        return Attempt::Fixed;
    }
    maintain(host, at, new, request, policy).await;
    match put(host, at, 0, new, policy.walkers()).await {
        Changed::Done => {
            if Kvm::of::<F>() == Kvm::X86 {
                host.spend(Work::PageStats).await;
            }
            Attempt::Fixed
        }
        Changed::Raced => Attempt::Retry,
    }
}

enum Coalesced {
    Ended(Attempt),
    Follow,
}

/// A table where the block goes.
async fn coalesce<F: Format>(
    host: &Host<F>,
    at: EntryAt,
    word: u64,
    request: &Request,
    policy: &FaultPolicy,
) -> Coalesced {
    let Some(new) = new_leaf(host.format(), at.level, request, policy) else { return Coalesced::Ended(Attempt::Retry) };
    let changed = table_to_block(host, at, word, new, &policy.coalesce, policy.walkers()).await;
    match (changed, policy.coalesce.after) {
        (Changed::Raced, _) => Coalesced::Ended(Attempt::Retry),
        (Changed::Done, AfterReplace::Reload) => Coalesced::Ended(Attempt::Fixed),
        (Changed::Done, AfterReplace::FollowSaved) => Coalesced::Follow,
    }
}

/// Whether a leaf allows an access without a fault. What hardware marks by itself needs no fault.
pub(super) fn allows<F: Format>(format: &F, level: Level, word: u64, access: AccessKind) -> bool {
    let Entry::Leaf(leaf) = format.decode(level, word) else { return false };
    let need = needed(access);
    let need = if format.hardware_dirty() { need.without(Perms::DIRTY) } else { need };
    leaf.perms.contains(need) && (leaf.accessed || format.hardware_accessed())
}

/// What an access of anybody needs.
fn needed(access: AccessKind) -> Perms {
    match access {
        AccessKind::Read => Perms::R,
        AccessKind::Write => Perms::W.with(Perms::DIRTY),
        AccessKind::ReadWrite => Perms::RW.with(Perms::DIRTY),
        AccessKind::Execute => Perms::X,
    }
}

/// The leaf young, and allowing this access. `None` when it cannot be expressed.
pub(super) fn relaxed<F: Format>(format: &F, level: Level, word: u64, access: AccessKind) -> Option<u64> {
    let young = restore_access(format, word);
    let word = if writes(access) { format.restore_write(young).unwrap_or(young) } else { young };
    if allows(format, level, word, access) {
        return Some(word);
    }
    let Entry::Leaf(leaf) = format.decode(level, word) else { return None };
    format.encode_leaf(level, &Leaf { perms: leaf.perms.with(needed(access)), accessed: true, ..leaf }).ok()
}

/// Makes what is there young and allow the access (`kvm_pgtable_stage2_relax_perms`, `wp_page` and access tracking of x86).
async fn relax<F: Format>(
    host: &Host<F>,
    at: EntryAt,
    table: Hpa,
    word: u64,
    request: &Request,
    policy: &FaultPolicy,
) -> Attempt {
    let format = *host.format();
    if policy.present != PresentLeaf::Relaxed
        && let Some(new) = new_leaf(&format, at.level, request, policy)
        && format.is_writable(word)
        && !format.is_writable(new)
        && allows(&format, at.level, new, request.access)
    {
        return narrow(host, at, word, new, policy).await;
    }
    if allows(&format, at.level, word, request.access) && format.mark_young(word).is_none() {
        // Somebody was first. A cached translation of this processor may still forbid it.
        if policy.relax != RelaxFlush::LocalIfChanged {
            announce(host, at, policy, Changed::Raced).await;
        }
        return Attempt::Spurious;
    }
    let Some(new) = relaxed(&format, at.level, word, request.access) else { return Attempt::Retry };
    if request.access == AccessKind::Execute && policy.exec == ExecMapping::OnFetch {
        host.invalidate_fetched(Bytes(format.geometry().page_size(at.level).bytes())).await;
    }
    let changed = put(host, at, word, new, policy.walkers()).await;
    if changed == Changed::Done && policy.coalesce.references == References::ExtraPerUpdate {
        host.get_table(table).await;
    }
    if changed == Changed::Done || policy.relax != RelaxFlush::LocalIfChanged {
        announce(host, at, policy, changed).await;
    }
    if changed == Changed::Done { Attempt::Fixed } else { Attempt::Retry }
}

/// A leaf that can be written becomes one that cannot.
async fn narrow<F: Format>(host: &Host<F>, at: EntryAt, word: u64, new: u64, policy: &FaultPolicy) -> Attempt {
    if put(host, at, word, new, policy.walkers()).await == Changed::Raced {
        return Attempt::Retry;
    }
    let bytes = host.format().geometry().page_size(at.level).bytes();
    if policy.present == PresentLeaf::ReplacedAndFlushed {
        let scope = FlushScope::Range { start: at.gpa, bytes, level: Some(at.level) };
        host.flush(Flush { scope, walk_caches: WalkCaches::Keep, reach: Reach::Everyone }).await;
    }
    host.announce(Announced::WriteProtected(GpaRange::new(at.gpa, Bytes(bytes)))).await;
    Attempt::Fixed
}

/// Invalidates the translation that forbade the access, where hardware would go on using it.
async fn announce<F: Format>(host: &Host<F>, at: EntryAt, policy: &FaultPolicy, changed: Changed) {
    let reach = match (policy.relax, host.format().denial()) {
        (RelaxFlush::Broadcast, _) => Reach::Everyone,
        (_, Denial::WalksAgain) => return,
        (_, Denial::FaultsFromTlb) => Reach::Local,
    };
    let geometry = host.format().geometry();
    let bytes = geometry.page_size(at.level).bytes();
    let start = match (policy.relax, changed) {
        // The hint on the stack (FEAT_TTL) names another level: processors need not look where the entry is, which is as if it were another's.
        (RelaxFlush::LocalUnknownLevel, Changed::Raced) => Gpa::new(at.gpa.raw() ^ (geometry.input_bytes() / 2)),
        _ => at.gpa,
    };
    let scope = FlushScope::Range { start, bytes, level: Some(at.level) };
    host.flush(Flush { scope, walk_caches: WalkCaches::Keep, reach }).await;
}
