//! The dirty state of pages that a nested guest reaches: copied from L1's entry by a nested fault, cleared in both by whoever reads the dirty log.
//!
//! Models `__kvmhv_nested_page_fault` and `kvmppc_radix_clear_dirty` of POWER ("Clear nested PTEs' RC bits", August 2019). A nested fault reads L1's
//! entry without the lock and gives the shadow entry no more than that has; whoever clears the bits in between finds no shadow entry to
//! clear yet. Moving the invalidation sequence makes that fault start over.
//!
//! Locking: the fault reads inside an RCU section and maps under `mmu_lock`; clearing holds `mmu_lock` for write. Flush: one for the VM after
//! clearing, before the lock is dropped, so that the next write is noticed. Frees nothing.

use mmu_core::{AccessKind, Format, Gpa, GpaRange, Level, Perms};
use serde::{Deserialize, Serialize};

use super::{RcCopy, Shadow};
use crate::engine::{Host, LockId, LockMode, Var};
use crate::protocols::fault_fast::lockless_leaf;

/// Whether clearing the bits turns nested faults under way back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RcClear {
    /// The invalidation sequence moves under `mmu_lock`.
    BumpsSequence,
    /// It does not (P02): a fault that has copied the bits installs them after they were cleared, and later writes go unnoticed.
    Silent,
}

/// What a shadow leaf may have beside its address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShadowLeaf {
    /// What the fault was for.
    pub access: AccessKind,
    /// Whether it may be dirty from the start: L1's entry is, or this access makes it so.
    pub dirty: bool,
}

impl ShadowLeaf {
    pub(super) fn perms(self) -> Perms {
        if self.dirty { Perms::RWX.with(Perms::DIRTY) } else { Perms::RWX }
    }
}

impl Shadow {
    /// What a fault for `access` takes over from L1's entry, if there is one. Takes `mmu_lock` for the look, as `__kvmhv_nested_page_fault` does: faults of
    /// L1 may free tables at once.
    pub(super) async fn copied<F: Format>(&self, host: &Host<F>, l1: Gpa, access: AccessKind) -> ShadowLeaf {
        if self.policy.copies == RcCopy::Nothing {
            return ShadowLeaf { access, dirty: true };
        }
        host.lock(LockId::MMU, LockMode::Read).await;
        host.rcu_read_lock().await;
        let root = host.root().await;
        let leaf = lockless_leaf(host, root, l1).await;
        host.rcu_read_unlock().await;
        host.unlock(LockId::MMU).await;
        let mask = host.format().dirty_mask();
        let clean = leaf.is_some_and(|(_, _, word)| mask != 0 && word & mask == 0);
        let writes = matches!(access, AccessKind::Write | AccessKind::ReadWrite);
        ShadowLeaf { access, dirty: writes || !clean }
    }

    /// Takes the dirty state of L1's pages of a range out of L1's leaves and of the shadow leaves; how many pages were dirty. Takes `mmu_lock`.
    pub async fn test_clear_dirty<F: Format>(&self, host: &Host<F>, l1: GpaRange, how: RcClear) -> u64 {
        let format = *host.format();
        let (mask, page) = (format.dirty_mask(), self.page.bytes());
        let mut dirty = 0;
        host.lock(LockId::MMU, LockMode::Write).await;
        host.rcu_read_lock().await;
        let root = host.root().await;
        for head in self.heads_of(l1) {
            let gpa = Gpa::new(u64::from(head.0 - self.heads.0) * page);
            let mut was = 0;
            if let Some((at, Level::LAST, _)) = lockless_leaf(host, root, gpa).await {
                was |= host.fetch_and(at, !mask).await & mask;
            }
            was |= self.clear_chain(host, head, mask).await;
            dirty += u64::from(was != 0);
        }
        if how == RcClear::BumpsSequence {
            host.add(Var::INVALIDATE_SEQ, 1).await;
        }
        host.flush_vm().await;
        host.rcu_read_unlock().await;
        host.unlock(LockId::MMU).await;
        dirty
    }

    /// The shadow leaves of one page; which of the bits were set.
    async fn clear_chain<F: Format>(&self, host: &Host<F>, head: Var, mask: u64) -> u64 {
        let first = self.lock(host, head, super::ChainLock::PreemptionOff).await;
        let (mut word, mut was) = (first, 0);
        while word != 0 {
            let (leaf, next) = self.link(host, word).await;
            was |= host.fetch_and(leaf, !mask).await & mask;
            word = next;
        }
        // An empty chain is never locked.
        if first != 0 {
            self.unlock(host, head, first).await;
        }
        was
    }

    /// Whether the shadow leaf of an L2 address and L1's leaf behind it are dirty, for who checks.
    pub async fn dirty_state<F: Format>(&self, host: &Host<F>, l2: Gpa) -> [Option<bool>; 2] {
        let format = *host.format();
        let shadow_root = host.load(self.root).await;
        let roots = [(mmu_core::Hpa::new(shadow_root), l2), (host.root().await, self.l1_of(l2))];
        let mut found = [None; 2];
        host.rcu_read_lock().await;
        for (slot, (root, gpa)) in found.iter_mut().zip(roots) {
            if root.raw() != 0 {
                let leaf = lockless_leaf(host, root, gpa).await;
                *slot = leaf.map(|(_, _, word)| word & format.dirty_mask() != 0);
            }
        }
        host.rcu_read_unlock().await;
        found
    }
}
