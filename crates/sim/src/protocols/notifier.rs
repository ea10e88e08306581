//! mmu_notifier: the primary MMU takes pages of a range away.
//!
//! Models `kvm_mmu_notifier_invalidate_range_start/end` of Linux 6.6 around `MADV_DONTNEED`. Locking: `mn_invalidate_lock` for the
//! count, `mmu_lock` for write around the zap and around the end. Flush: once, before `mmu_lock` is dropped, and before
//! every yield. Frees nothing of KVM's; the pages go between start and end.

use mmu_core::{Format, GpaRange, WalkCaches};

use super::iter::FlushDebt;
use super::zap::{ZapPolicy, zap_leafs};
use crate::engine::{Host, LockId, LockMode, Var};

/// Takes the backing pages of a range away from the guest and frees them.
pub async fn invalidate_range<F: Format>(host: &Host<F>, range: GpaRange, policy: &ZapPolicy) {
    range_start(host, range, policy).await;
    host.drop_pages(range).await;
    range_end(host).await;
}

/// When this returns nobody reaches the pages through KVM, and no new mapping appears until [`range_end`].
pub async fn range_start<F: Format>(host: &Host<F>, range: GpaRange, policy: &ZapPolicy) {
    begin(host, range).await;
    let root = host.root().await;
    // The notifier holds the lock exclusively whatever the policy says of root zaps.
    let policy = ZapPolicy { lock: super::zap::ZapLock::Write, ..*policy };
    if zap_leafs(host, root, range, &policy).await == FlushDebt::Owed {
        host.flush_range(range, WalkCaches::Keep).await;
    }
    host.unlock(LockId::MMU).await;
}

/// What every invalidation begins with: it is counted and its range recorded. Returns with `mmu_lock` held for write; the caller unmaps,
/// flushes and drops it.
pub async fn begin<F: Format>(host: &Host<F>, range: GpaRange) {
    let (start, end) = (range.start, range.end());
    host.lock(LockId::INVALIDATE, LockMode::Write).await;
    host.add(Var::ACTIVE_INVALIDATIONS, 1).await;
    host.unlock(LockId::INVALIDATE).await;

    host.lock(LockId::MMU, LockMode::Write).await;
    if host.add(Var::IN_PROGRESS, 1).await == 1 {
        host.store(Var::RANGE_START, start.raw()).await;
        host.store(Var::RANGE_END, end.raw()).await;
    } else {
        // Several at once: the range grows to cover all and shrinks only when all are done.
        let (low, high) = (host.load(Var::RANGE_START).await, host.load(Var::RANGE_END).await);
        host.store(Var::RANGE_START, low.min(start.raw())).await;
        host.store(Var::RANGE_END, high.max(end.raw())).await;
    }
}

/// The primary MMU has made its change: faults may map the range again.
pub async fn range_end<F: Format>(host: &Host<F>) {
    host.lock(LockId::MMU, LockMode::Write).await;
    // The sequence moves before the count drops, so that a fault sees one or the other.
    host.add(Var::INVALIDATE_SEQ, 1).await;
    host.add(Var::IN_PROGRESS, -1).await;
    host.unlock(LockId::MMU).await;

    host.lock(LockId::INVALIDATE, LockMode::Write).await;
    host.add(Var::ACTIVE_INVALIDATIONS, -1).await;
    host.unlock(LockId::INVALIDATE).await;
}
