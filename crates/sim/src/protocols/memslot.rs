//! Memslot fast zap: the VM gets a new root at once, the old one is torn down behind it.
//!
//! Models `kvm_mmu_zap_all_fast` of Linux 5.18 to 6.9: under `slots_lock`, the current root is marked invalid and all vCPUs
//! are told to load another; then the invalid root is zapped under `mmu_lock` in the policy's mode, yielding. Flush: by policy; none is needed
//! once no vCPU runs on the old root. Frees all tables of the old root, the root last.
//!
//! Nobody counts references to roots here, and invalidations find the new root only. So nothing else may walk the VM's tables and give the lock up in between,
//! or free pages of the host, while a root goes: where notifiers, agers or dirty logging run beside it, use [`Roots`](super::roots::Roots).

use mmu_core::{Format, Hpa};

use super::zap::{ZapPolicy, zap_root};
use crate::engine::{Frames, Host, LockId, LockMode};
use crate::events::Trace;

/// Replaces the VM's root by an empty one and tears the old one down. `None` when no table could be allocated.
pub async fn zap_all_fast<F: Format>(host: &Host<F>, policy: &ZapPolicy) -> Option<()> {
    host.lock(LockId::SLOTS, LockMode::Write).await;
    let done = zap_all_fast_locked(host, policy).await;
    host.unlock(LockId::SLOTS).await;
    done
}

/// The same for a caller that holds `slots_lock`.
pub async fn zap_all_fast_locked<F: Format>(host: &Host<F>, policy: &ZapPolicy) -> Option<()> {
    let new = host.alloc_table(host.format().geometry().root()).await?;
    host.lock(LockId::MMU, LockMode::Write).await;
    host.trace(|| Trace::KvmMmuZapAllFast { mmu_valid_gen: 0, mmu_used_pages: 0 });
    let old = host.root().await;
    host.set_root(new).await;
    // KVM_REQ_MMU_FREE_OBSOLETE_ROOTS: from here on no vCPU enters the guest on the old root.
    host.reload_roots().await;
    host.unlock(LockId::MMU).await;

    tear_down(host, old, policy).await;
    Some(())
}

/// Zaps an unreachable root and retires it.
pub async fn tear_down<F: Format>(host: &Host<F>, root: Hpa, policy: &ZapPolicy) {
    host.lock(LockId::MMU, policy.lock.mode()).await;
    zap_root(host, root, policy).await;
    host.unlock(LockId::MMU).await;
    let geometry = host.format().geometry();
    let (level, bytes) = (geometry.root(), geometry.table_bytes(geometry.root()));
    host.call_rcu(Frames { first: root, count: 1, level, bytes }).await;
}
