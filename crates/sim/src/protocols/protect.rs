//! Write-protecting a range, so that the next write to each page faults.
//!
//! Models `kvm_mmu_wp_memory_region` / `kvm_tdp_mmu_wrprot_slot` (Linux 6.6), which run when dirty logging starts. Locking: `mmu_lock` for write. Flush: one for the
//! range, before the lock is dropped. Frees nothing.

use mmu_core::{Format, GpaRange, Level, WalkCaches};

use super::iter::{TdpIter, bulk, skip_run};
use crate::engine::{Apply, Atomicity, Host, LockId, LockMode, ReschedCheck};

/// Takes write permission from every leaf of a range; each remembers that it had it.
pub async fn write_protect_range<F: Format>(host: &Host<F>, range: GpaRange) {
    host.lock(LockId::MMU, LockMode::Write).await;
    host.rcu_read_lock().await;
    let root = host.root().await;
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
    host.flush_range(range, WalkCaches::Keep).await;
    host.rcu_read_unlock().await;
    host.unlock(LockId::MMU).await;
}
