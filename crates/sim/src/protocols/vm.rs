//! The beginning and the end of a VM: everything that its tables hold is given back.
//!
//! Models `kvm_mmu_uninit_tdp_mmu` / `kvm_free_stage2_pgd`: no vCPU runs any more, the current root is torn down under the
//! write lock, and the call returns when the last grace period is over. Flush: none is owed, nobody can use the root. Frees all tables.

use mmu_core::{Format, Hpa, Level};
use serde::{Deserialize, Serialize};

use super::coalesce::one_table;
use super::memslot::tear_down;
use super::teardown::{forget, free_unlinked};
use super::zap::{ZapLock, ZapPolicy, is_table};
use crate::engine::{Host, LockId, LockMode};

/// The root of a VM whose tables are gone.
pub const NO_TABLES: Hpa = Hpa::new(0);

/// Tears the VM's current root down and waits until all tables are freed.
pub async fn destroy<F: Format>(host: &Host<F>) {
    let root = host.root().await;
    tear_down(host, root, &ZapPolicy { lock: ZapLock::Write, ..ZapPolicy::V5_18 }).await;
    host.synchronize_rcu().await;
}

/// How the tables of an Arm VM are destroyed (`kvm_free_stage2_pgd`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Destruction {
    /// The VM loses its root under `mmu_lock`; what hangs below it is freed when nobody can find it.
    DetachedFirst,
    /// It is freed piece by piece with `mmu_lock` given up in between, while the VM still has its root (A23: taken back in 6.18).
    Rescheduling,
}

/// Frees all tables of the VM. vCPUs are gone, other tasks may still come: the notifier's release.
pub async fn free_tables<F: Format>(host: &Host<F>, how: Destruction) {
    host.lock(LockId::MMU, LockMode::Write).await;
    let (root, level) = (host.root().await, host.format().geometry().root());
    if how == Destruction::Rescheduling && root != NO_TABLES {
        free_entries(host, root, level).await;
    }
    host.set_root(NO_TABLES).await;
    host.unlock(LockId::MMU).await;
    match how {
        _ if root == NO_TABLES => {}
        Destruction::DetachedFirst => free_unlinked(host, root, level).await,
        Destruction::Rescheduling => forget(host, root, level).await,
    }
}

/// What hangs below each entry of the root is freed; the entries stay as they are.
async fn free_entries<F: Format>(host: &Host<F>, root: Hpa, level: Level) {
    let format = *host.format();
    let Some(down) = level.down() else { return };
    for index in 0..format.geometry().entries(level) as u64 {
        let word = host.read(root + 8 * index).await;
        if !is_table(&format, level, word) {
            continue;
        }
        free_unlinked(host, format.next_table(level, word), down).await;
        if host.need_resched(LockId::MMU).await {
            host.unlock(LockId::MMU).await;
            host.reschedule().await;
            host.lock(LockId::MMU, LockMode::Write).await;
        }
    }
}

/// What becomes of the tables of a VM that could not be made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailedCreation {
    /// They are freed (a3ca3bfd01b7).
    FreesTables,
    /// Nobody does: the notifier's release would, and it was never registered (A24).
    LeavesThem,
}

/// `kvm_create_vm` as far as tables go: a root, then the registration with the primary MMU, which needs memory too. `None` when either fails.
pub async fn create<F: Format>(host: &Host<F>, failed: FailedCreation) -> Option<Hpa> {
    let level = host.format().geometry().root();
    let root = host.alloc_table(level).await?;
    // What the registration allocates goes back when the VM does; here it goes at once.
    if let Some(registration) = host.alloc_table(Level::LAST).await {
        host.free_tables(one_table(host.format(), registration, Level::LAST)).await;
        return Some(root);
    }
    if failed == FailedCreation::FreesTables {
        forget(host, root, level).await;
    }
    None
}
