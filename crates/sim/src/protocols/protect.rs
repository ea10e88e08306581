//! Write-protecting a range, so that the next write to each page faults.
//!
//! Models `kvm_mmu_wp_memory_region` / `kvm_tdp_mmu_wrprot_slot` (Linux 6.6), which run when dirty logging starts. Locking: `mmu_lock` for write. Flush: one for the
//! range, before the lock is dropped. Frees nothing.

use mmu_core::{Entry, Format, Gpa, GpaRange, Hpa, Leaf, Level, Perms, WalkCaches};
use serde::{Deserialize, Serialize};

use super::fault_fast::lockless_leaf;
use super::iter::{FlushDebt, TdpIter, bulk, skip_run};
use super::roots::{UnmapRoots, VmRoots};
use crate::engine::{Announced, Apply, Atomicity, Cmpxchg, Host, LockId, LockMode, ReschedCheck};

/// Takes write permission from every leaf of a range; each remembers that it had it. Of a VM with one root.
pub async fn write_protect_range<F: Format>(host: &Host<F>, range: GpaRange) {
    write_protect_range_in(host, &VmRoots::Current, range).await;
}

/// [`write_protect_range`] in all valid roots of a VM, and in the chains of a nested guest.
pub async fn write_protect_range_in<F: Format>(host: &Host<F>, roots: &VmRoots<F>, range: GpaRange) {
    host.lock(LockId::MMU, LockMode::Write).await;
    if let Some(shadow) = roots.shadow()
        && shadow.write_protect(host, range).await == FlushDebt::Owed
    {
        // Its addresses are others than those of the flush below.
        host.flush_vm().await;
    }
    host.rcu_read_lock().await;
    let mut next = roots.next(host, None, UnmapRoots::ValidOnly).await;
    while let Some(root) = next {
        protect_below(host, root.table, range).await;
        next = roots.next(host, next, UnmapRoots::ValidOnly).await;
    }
    host.flush_range(range, WalkCaches::Keep).await;
    host.announce(Announced::WriteProtected(range)).await;
    host.rcu_read_unlock().await;
    host.unlock(LockId::MMU).await;
}

async fn protect_below<F: Format>(host: &Host<F>, root: Hpa, range: GpaRange) {
    let mut iter = TdpIter::new(*host.format(), root, Level::LAST, range.start, range.end());
    while iter.next(host).await {
        let protected = host.format().write_protect(iter.old);
        if iter.is_leaf() && protected != iter.old {
            // Words of a run differ in their output only: what one loses and gets, all do.
            let (and, or) = (protected | !iter.old, protected & !iter.old);
            bulk(host, &mut iter, Apply::Mask { and, or }, Atomicity::Atomic, None, ReschedCheck::Never).await;
        } else {
            skip_run(host, &mut iter, ReschedCheck::Never).await;
        }
    }
}

/// What write tracking does with a leaf that is read-only already, for dirty logging.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReadOnlyLeaf {
    /// It loses what would let a fault make it writable again.
    Forgets,
    /// It is left as it is (X28, fixed by 7c8a4742c4ab): a fault without the lock makes it writable.
    Skipped,
}

/// `kvm_mmu_slot_gfn_write_protect`: the page of a nested guest's table is not written any more, and stays so. The caller has switched the tracking of
/// its writes on; faults that come after that emulate them. Takes `mmu_lock`; flushed before it is dropped.
pub async fn write_track<F: Format>(host: &Host<F>, gpa: Gpa, read_only: ReadOnlyLeaf) {
    let format = *host.format();
    let page = format.geometry().granule();
    host.lock(LockId::MMU, LockMode::Write).await;
    host.rcu_read_lock().await;
    let root = host.root().await;
    while let Some((at, level, old)) = lockless_leaf(host, root, gpa).await {
        let skipped = read_only == ReadOnlyLeaf::Skipped && !format.is_writable(old);
        let Some(new) = never_writable(&format, level, old).filter(|new| !skipped && *new != old) else { break };
        // Hardware or a fault without the lock may have been first.
        if host.cmpxchg(at, old, new).await == Cmpxchg::Done {
            break;
        }
    }
    let range = GpaRange::new(gpa.align_down(page), page.into());
    host.flush_range(range, WalkCaches::Keep).await;
    host.announce(Announced::WriteTracked(range)).await;
    host.rcu_read_unlock().await;
    host.unlock(LockId::MMU).await;
}

/// The leaf without write permission and without a memory of it.
fn never_writable<F: Format>(format: &F, level: Level, old: u64) -> Option<u64> {
    let Entry::Leaf(leaf) = format.decode(level, old) else { return None };
    let perms = leaf.perms.without(Perms::W.with(Perms::DIRTY));
    // Software's bits, which remember that it may be writable, go with the attributes.
    format.encode_leaf(level, &Leaf { perms, attrs: F::Attrs::default(), ..leaf }).ok()
}
