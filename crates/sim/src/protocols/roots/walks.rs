//! Walks over all roots that may yield: `for_each_tdp_mmu_root_yield_safe`, and unmapping by it.
//!
//! Models Linux 5.12 to 6.9. Locking: the caller holds `mmu_lock`; the walk's reference keeps a root on the list while the lock is given up. Flush: owed to the
//! caller, carried from root to root (a835429cda91). Frees: a root whose other users left meanwhile.

use mmu_core::{Format, GpaRange, WalkCaches};

use super::{DebtScope, InvalidRootFlush, ReaderRoots, Root, Roots, UnmapRoots, WalkerPut};
use crate::engine::Host;
use crate::protocols::iter::FlushDebt;
use crate::protocols::notifier;
use crate::protocols::zap::{ZapLock, ZapPolicy, zap_leafs_owing};

impl<F: Format> Roots<F> {
    /// `tdp_mmu_next_root`: the next root after `previous`, with a reference; that of `previous` is put. Caller holds `mmu_lock` in this
    /// mode, and may drop it before it asks for the next one.
    pub async fn next_root(
        &self,
        host: &Host<F>,
        previous: Option<Root>,
        which: UnmapRoots,
        held: ZapLock,
    ) -> Option<Root> {
        let readers = held == ZapLock::Read && self.policy().readers == ReaderRoots::SkipInvalid;
        let valid_only = which == UnmapRoots::ValidOnly || readers;
        let mut after = previous.map_or(0, |root| root.serial);
        let mut found = None;
        // The list is in order of creation, and `previous` is on it as long as we hold its reference.
        while let Some(root) = self.successor(after) {
            after = root.serial;
            if valid_only && host.load(root.invalid).await != 0 {
                continue;
            }
            if self.get(host, root).await {
                found = Some(root);
                break;
            }
        }
        if let Some(previous) = previous {
            match self.policy().walker_put {
                WalkerPut::PutRoot => self.put(host, previous, held).await,
                WalkerPut::DecrementOnly => {
                    host.add(previous.refcount, -1).await;
                }
            }
        }
        found
    }

    /// The next root on the list.
    pub(super) fn successor(&self, serial: u32) -> Option<Root> {
        self.0.list.borrow().iter().find(|root| root.serial > serial).copied()
    }

    /// `kvm_tdp_mmu_unmap_gfn_range`: the leaves of a range go from every root. Caller holds `mmu_lock` for write, and owes the returned
    /// flush before it drops it.
    pub async fn unmap_gfn_range(&self, host: &Host<F>, range: GpaRange) -> FlushDebt {
        self.unmap_gfn_range_by(host, range, &self.policy().zap).await
    }

    /// [`unmap_gfn_range`](Self::unmap_gfn_range), zapping otherwise than invalid roots are.
    pub(super) async fn unmap_gfn_range_by(&self, host: &Host<F>, range: GpaRange, zap: &ZapPolicy) -> FlushDebt {
        let zap = ZapPolicy { lock: ZapLock::Write, ..*zap };
        let which = self.policy().unmap;
        let mut debt = FlushDebt::Clean;
        let mut next = self.next_root(host, None, which, ZapLock::Write).await;
        while let Some(root) = next {
            let carried = match self.policy().debt {
                DebtScope::Carried => debt,
                DebtScope::PerRoot => FlushDebt::Clean,
            };
            let mut now = zap_leafs_owing(host, root.table, range, &zap, carried).await;
            let lenient = self.policy().invalid_flush == InvalidRootFlush::NotOwed;
            if lenient && carried == FlushDebt::Clean && host.load(root.invalid).await != 0 {
                // Its vCPUs have been kicked out, and flush before they use another one.
                now = FlushDebt::Clean;
            }
            debt = match self.policy().debt {
                // A yield in this root paid for the others.
                DebtScope::Carried => now,
                DebtScope::PerRoot => debt.merge(now),
            };
            next = self.next_root(host, Some(root), which, ZapLock::Write).await;
        }
        debt
    }

    /// The primary MMU takes the pages behind a range away and frees them: [`notifier`] over all roots.
    pub async fn invalidate_range(&self, host: &Host<F>, range: GpaRange) {
        notifier::begin(host, range).await;
        if self.unmap_gfn_range(host, range).await == FlushDebt::Owed {
            host.flush_range(range, WalkCaches::Keep).await;
        }
        host.unlock(crate::engine::LockId::MMU).await;
        host.drop_pages(range).await;
        notifier::end(host).await;
    }
}
