//! A second-stage fault, from the vCPU's exit to the installed entry.
//!
//! Models `kvm_tdp_page_fault` / `user_mem_abort` of Linux 6.6: snapshot the invalidation sequence, resolve the host page
//! without locks, take `mmu_lock`, test whether the snapshot went stale, walk and install with compare-and-swap. Locking: `mmu_lock`
//! for read (or exclusively where it is a spin lock), RCU around the walk. Owes no flush: it only makes entries present,
//! or relaxes them.

use mmu_core::{Format, Geometry, Gpa, Hpa, Leaf, Level, PageSize, Perms};

use super::notifier::{RetryPolicy, Target, invalidate_retry, retry_unlocked, snapshot};
use super::slots::{Faultin, faultin_pfn};
use crate::engine::{Cmpxchg, GuestFault, Host, HostAccess, LockId, LockMode, Reference, Var, Work};

/// How faults are handled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FaultPolicy {
    /// How `mmu_lock` is held.
    pub lock: LockMode,
    /// Size of the pages to map.
    pub page: PageSize,
    /// How stale pages are recognized.
    pub retry: RetryPolicy,
}

/// What became of one attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Attempt {
    /// The entry is in place.
    Fixed,
    /// Somebody else had put it there.
    Spurious,
    /// It must be tried again from the guest.
    Retry,
}

/// The root that a fault works on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FaultRoot {
    /// Its table.
    pub table: Hpa,
    /// Not zero once the root is obsolete, when the fault must be tried again with another one; `None` asks nobody.
    pub obsolete: Option<Var>,
}

/// Handles one fault below the VM's current root. The vCPU enters the guest afterwards and takes the fault again if it was not fixed.
pub async fn handle<F: Format>(host: &Host<F>, fault: GuestFault, policy: FaultPolicy) {
    handle_at(host, fault, policy, None).await;
}

/// Handles one fault below a root of the caller's, who has a reference to it.
pub async fn handle_below<F: Format>(host: &Host<F>, fault: GuestFault, policy: FaultPolicy, root: FaultRoot) {
    handle_at(host, fault, policy, Some(root)).await;
}

async fn handle_at<F: Format>(host: &Host<F>, fault: GuestFault, policy: FaultPolicy, root: Option<FaultRoot>) {
    host.spend(Work::Fault).await;
    // The snapshot precedes the look-up of the host page; an invalidation after it will be seen.
    let retry = &policy.retry;
    let seq = snapshot(host, retry.snapshot).await;
    // Only the notifier protects the page: no reference is taken.
    let found = faultin_pfn(host, fault.gpa, HostAccess::Write, Reference::None).await;
    let Faultin::Page { page: found, hva } = found else {
        return host.count_retry().await;
    };
    let target = Target { gpa: fault.gpa, hva };
    if retry_unlocked(host, retry, seq, target).await {
        return host.count_retry().await;
    }
    let (page, host_page) = (policy.page.min(found.size), found.host);
    host.lock(LockId::MMU, policy.lock).await;
    let attempt = if is_obsolete(host, root).await || invalidate_retry(host, retry, seq, target).await {
        Attempt::Retry
    } else {
        host.rcu_read_lock().await;
        let table = match root {
            Some(root) => root.table,
            None => host.root().await,
        };
        let attempt = map(host, table, fault.gpa, host_page, page).await;
        host.rcu_read_unlock().await;
        attempt
    };
    host.unlock(LockId::MMU).await;
    match attempt {
        Attempt::Fixed => {}
        Attempt::Spurious => host.count_spurious().await,
        Attempt::Retry => host.count_retry().await,
    }
}

/// `is_obsolete_root`
async fn is_obsolete<F: Format>(host: &Host<F>, root: Option<FaultRoot>) -> bool {
    match root.and_then(|root| root.obsolete) {
        Some(obsolete) => host.load(obsolete).await != 0,
        None => false,
    }
}

/// Walks to the level of `page`, allocating missing tables, and installs the leaf.
async fn map<F: Format>(host: &Host<F>, root: Hpa, gpa: Gpa, host_page: Hpa, page: PageSize) -> Attempt {
    let format = *host.format();
    let geometry = *format.geometry();
    let goal = leaf_level(&geometry, page);
    let mut table = root;
    let mut level = geometry.root();
    loop {
        let at = table + 8 * geometry.index(level, gpa.raw()) as u64;
        let word = host.read(at).await;
        let present = format.is_mapped(word);
        if level == goal || (present && format.is_leaf(level, word)) {
            return install(host, at, word, level, gpa, host_page).await;
        }
        let Some(down) = level.down() else { return Attempt::Retry };
        if present {
            table = format.next_table(level, word);
        } else {
            if word != 0 {
                // Frozen: its owner is tearing this part down.
                return Attempt::Retry;
            }
            let Some(child) = host.alloc_table(down).await else { return Attempt::Retry };
            let Ok(link) = format.encode_table(level, child) else { return Attempt::Retry };
            match host.cmpxchg(at, 0, link).await {
                Cmpxchg::Done => table = child,
                Cmpxchg::Failed(_) => {
                    // Somebody linked a table first; ours was never visible.
                    let bytes = geometry.table_bytes(down);
                    host.free_tables(crate::engine::Frames { first: child, count: 1, level: down, bytes }).await;
                    return Attempt::Retry;
                }
            }
        }
        level = down;
    }
}

/// The highest level whose leaves are no larger than a page.
fn leaf_level(geometry: &Geometry, page: PageSize) -> Level {
    let levels = (0..geometry.levels() as u8).map(Level::new);
    let fits = levels.filter(|&level| geometry.page_size(level) <= page && geometry.has_leaves_at(level));
    fits.last().unwrap_or(Level::LAST)
}

/// Puts the leaf in place, or makes what is there young and writable again.
async fn install<F: Format>(host: &Host<F>, at: Hpa, word: u64, level: Level, gpa: Gpa, host_page: Hpa) -> Attempt {
    let format = *host.format();
    let size = format.geometry().page_size(level);
    let new = if format.is_mapped(word) {
        if !format.is_leaf(level, word) {
            return Attempt::Spurious;
        }
        let young = format.mark_young(word).unwrap_or(word);
        let writable = format.restore_write(young).unwrap_or(young);
        if writable == word {
            return Attempt::Spurious;
        }
        writable
    } else if word != 0 {
        return Attempt::Retry;
    } else {
        let output = Hpa::new(host_page.raw() - gpa.offset_in(size)).align_down(size);
        let leaf = Leaf { output, perms: Perms::RWX.with(Perms::DIRTY), accessed: true, attrs: F::Attrs::default() };
        let Ok(new) = format.encode_leaf(level, &leaf) else { return Attempt::Retry };
        new
    };
    match host.cmpxchg(at, word, new).await {
        Cmpxchg::Done => Attempt::Fixed,
        Cmpxchg::Failed(_) => Attempt::Retry,
    }
}
