//! The end of a VM: everything that its tables hold is given back.
//!
//! Models `kvm_mmu_uninit_tdp_mmu` / `kvm_free_stage2_pgd`: no vCPU runs any more, the current root is torn down under the
//! write lock, and the call returns when the last grace period is over. Flush: none is owed, nobody can use the root. Frees all tables.

use mmu_core::Format;

use super::memslot::tear_down;
use super::zap::{ZapLock, ZapPolicy};
use crate::engine::Host;

/// Tears the VM's current root down and waits until all tables are freed.
pub async fn destroy<F: Format>(host: &Host<F>) {
    let root = host.root().await;
    tear_down(host, root, &ZapPolicy { lock: ZapLock::Write, ..ZapPolicy::V5_18 }).await;
    host.synchronize_rcu().await;
}
