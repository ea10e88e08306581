//! A range of L1's memory goes from what L2 can reach.
//!
//! Models the chains' part of `kvm_unmap_gfn_range` (Linux 6.6). Locking: `mmu_lock` for write. Flush: everything that the VM has cached, because L2's addresses are
//! not L1's; before the lock is dropped. Frees nothing: tables stay until [`Shadow::release`].

use mmu_core::{Denial, Flush, FlushScope, Format, Gpa, GpaRange, Level, Reach, WalkCaches};

use super::Shadow;
use crate::engine::{Host, LockId, LockMode};
use crate::protocols::iter::FlushDebt;

impl Shadow {
    /// Where a cached translation goes on denying what its entry allows by now (Arm), the processor that faulted drops it
    /// (`kvm_pgtable_stage2_relax_perms`).
    pub(super) async fn forget_denial<F: Format>(&self, host: &Host<F>, l2: Gpa) {
        if host.format().denial() == Denial::FaultsFromTlb {
            let scope = FlushScope::Range { start: l2, bytes: self.page.bytes(), level: Some(Level::LAST) };
            host.flush(Flush { scope, walk_caches: WalkCaches::Keep, reach: Reach::Local }).await;
        }
    }

    /// Unmaps what L2 can reach of a range of L1's memory, and flushes it. Takes `mmu_lock`; call it from inside
    /// [`range_start_and`](super::super::notifier::range_start_and), while faults are turned away.
    pub async fn unmap<F: Format>(&self, host: &Host<F>, l1: GpaRange) {
        host.lock(LockId::MMU, LockMode::Write).await;
        self.unmap_locked(host, l1).await;
        host.unlock(LockId::MMU).await;
    }

    /// The same for a caller that holds `mmu_lock` for write.
    pub(in crate::protocols) async fn unmap_locked<F: Format>(&self, host: &Host<F>, l1: GpaRange) {
        let mut debt = FlushDebt::Clean;
        for head in self.heads_of(l1) {
            debt = debt.merge(self.zap_chain(host, head).await);
        }
        if debt == FlushDebt::Owed {
            host.flush_vm().await;
        }
    }
}
