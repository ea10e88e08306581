//! `change_pte`: the primary MMU tells a page's new place, so that KVM need not fault to find it.
//!
//! Models `kvm_mmu_notifier_change_pte` of Linux 5.11 to 6.9. Locking: SRCU for the memslots, `mmu_lock` for write. Flush: the page, between break and
//! make. Frees nothing.

use mmu_core::{Entry, Format, GpaRange, Hpa, Hva, HvaRange, Level, WalkCaches};
use serde::{Deserialize, Serialize};

use super::iter::{TdpIter, bulk};
use crate::engine::{Apply, Atomicity, Host, LockId, LockMode, ReschedCheck, Work};
use crate::events::Trace;

/// What KVM does when the primary MMU tells it a page's new place (`change_pte`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangePte {
    /// Points the leaf at the new page, read-only (up to 6.9). Inside start and end there is no leaf left to point anywhere, which is
    /// why it was removed.
    Replace,
    /// Nothing: the next fault finds the new page (6.10).
    Ignore,
}

/// `kvm_mmu_notifier_change_pte`: for one page, between start and end or on its own. Whether a leaf was changed.
pub async fn change_pte<F: Format>(host: &Host<F>, at: Hva, new: Hpa, policy: ChangePte) -> bool {
    host.trace(|| Trace::KvmSetSpteHva { hva: at.raw() });
    if policy == ChangePte::Ignore {
        return false;
    }
    let format = *host.format();
    let page = HvaRange::new(at.align_down(format.geometry().granule()), format.geometry().granule().into());
    let section = host.srcu_read_lock().await;
    let slots = host.active_slots().await;
    let mut changed = false;
    let mut last = None;
    while let Some((slot, gpas)) = host.slot_overlapping(slots, page, last).await {
        host.lock(LockId::MMU, LockMode::Write).await;
        changed |= set_spte_gfn(host, gpas, new).await;
        host.unlock(LockId::MMU).await;
        last = Some(slot);
    }
    host.srcu_read_unlock(section).await;
    changed
}

/// `set_spte_gfn`: break, flush, make; only a leaf of the smallest size can change its page.
async fn set_spte_gfn<F: Format>(host: &Host<F>, range: GpaRange, new: Hpa) -> bool {
    let format = *host.format();
    let root = host.root().await;
    let mut changed = false;
    let mut iter = TdpIter::new(format, root, Level::LAST, range.start, range.end());
    while iter.next(host).await {
        let Entry::Leaf(mut leaf) = format.decode(iter.level, iter.old) else { continue };
        bulk(host, &mut iter, Apply::Set(0), Atomicity::Atomic, Some(Work::ReleaseLeaf), ReschedCheck::Never).await;
        host.flush_range(range, WalkCaches::Keep).await;
        leaf.output = new;
        if iter.level == Level::LAST
            && let Ok(word) = format.encode_leaf(iter.level, &leaf)
        {
            host.write_release(iter.sptep, format.write_protect(word)).await;
            changed = true;
        }
    }
    changed
}
