//! The hashed table of a guest: entering, hardware's use of it, aging by R.
//!
//! Models `kvmppc_h_enter`, `kvm_age_rmapp` and `kvmppc_clear_ref_hpte` of Linux 6.6. Locking: `mmu_lock`, and for clearing R the entry's own
//! lock bit; hardware's updates of R and C are atomic. Flush: a page whose R was cleared, before its entry is unlocked. Frees nothing.

use mmu_core::{Bytes, Gpa, GpaRange, HashGroup, HashedPages, Hpa, WalkCaches};

use super::{Mode, PowerVm, SwitchError};
use crate::engine::{Cmpxchg, Host, LockId, LockMode, Var};
use crate::protocols::aging::Aged;
use crate::protocols::young::Clear;

/// A found entry.
#[derive(Clone, Copy, Debug)]
struct Hashed {
    at: Hpa,
    first: u64,
}

/// Where the entries of a group of `gpa` are.
async fn group<F: HashedPages>(host: &Host<F>, vm: &PowerVm, gpa: Gpa, which: HashGroup) -> Result<Hpa, SwitchError> {
    let geometry = host.format().geometry();
    let bytes = 16 * F::GROUP_ENTRIES;
    let per_piece = geometry.table_bytes(geometry.root()) / bytes;
    let group = host.format().hashed_group(gpa, which, per_piece * u64::from(vm.count))?;
    let piece = host.load(Var(vm.pieces.0 + (group / per_piece) as u32)).await;
    Ok(Hpa::new(piece) + group % per_piece * bytes)
}

async fn find<F: HashedPages>(host: &Host<F>, vm: &PowerVm, gpa: Gpa) -> Result<Option<Hashed>, SwitchError> {
    for which in [HashGroup::Primary, HashGroup::Secondary] {
        let base = group(host, vm, gpa, which).await?;
        for slot in 0..F::GROUP_ENTRIES {
            let at = base + 16 * slot;
            let first = host.read(at).await;
            if first & F::HASHED_VALID != 0 {
                let second = host.read(at + 8).await;
                if host.format().hashed_matches([first, second], gpa, which) {
                    return Ok(Some(Hashed { at, first }));
                }
            }
        }
    }
    Ok(None)
}

/// `kvmppc_h_enter`: maps the page at `gpa` to `page` in the first free entry. Takes `mmu_lock`.
///
/// # Errors
/// Both groups full, a radix guest, an address out of reach.
pub async fn map_hashed<F: HashedPages>(host: &Host<F>, vm: &PowerVm, gpa: Gpa, page: Hpa) -> Result<(), SwitchError> {
    host.lock(LockId::MMU, LockMode::Write).await;
    let done = enter_hashed(host, vm, gpa, page).await;
    host.unlock(LockId::MMU).await;
    done
}

async fn enter_hashed<F: HashedPages>(host: &Host<F>, vm: &PowerVm, gpa: Gpa, page: Hpa) -> Result<(), SwitchError> {
    vm.expect(host, Mode::Hashed).await?;
    if find(host, vm, gpa).await?.is_some() {
        return Ok(());
    }
    for which in [HashGroup::Primary, HashGroup::Secondary] {
        let base = group(host, vm, gpa, which).await?;
        let [first, second] = host.format().hashed_entry(gpa, page, which)?;
        for slot in 0..F::GROUP_ENTRIES {
            let at = base + 16 * slot;
            // Locked, then the second word, then the first with V: hardware never sees half an entry.
            if host.read(at).await == 0 && host.cmpxchg(at, 0, F::HASHED_LOCK).await == Cmpxchg::Done {
                host.write(at + 8, second).await;
                host.write_release(at, first).await;
                return Ok(());
            }
        }
    }
    Err(SwitchError::Full { gpa })
}

/// How hardware uses a hashed mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Touch {
    /// A load: R is set.
    Load,
    /// A store: R and C are set.
    Store,
}

/// What the processor does for an access through the hashed table whose translation no TLB holds: search, and set R or R and C. True when the
/// page is mapped. The guest is in hashed mode; it keeps running, so no switch is under way.
///
/// # Errors
/// An address out of reach.
pub async fn touch_hashed<F: HashedPages>(
    host: &Host<F>,
    vm: &PowerVm,
    gpa: Gpa,
    touch: Touch,
) -> Result<bool, SwitchError> {
    vm.expect(host, Mode::Hashed).await?;
    let Some(entry) = find(host, vm, gpa).await? else { return Ok(false) };
    let flags = match touch {
        Touch::Load => F::HASHED_REFERENCED,
        Touch::Store => F::HASHED_REFERENCED | F::HASHED_CHANGED,
    };
    host.fetch_or(entry.at + 8, flags).await;
    Ok(true)
}

/// `kvm_age_rmapp` for each page: R is cleared in its hashed entry under the entry's lock, and the page's translations are flushed
/// (`kvmppc_clear_ref_hpte`). KVM finds the entry by a chain per page; here the table is searched for it.
pub(super) async fn age_hashed<F: HashedPages>(
    host: &Host<F>,
    vm: &PowerVm,
    range: GpaRange,
    clear: Clear,
) -> Result<Aged, SwitchError> {
    let page = host.format().geometry().granule();
    let mut aged = Aged::default();
    let mut gpa = range.start.align_down(page);
    while gpa < range.end() {
        if let Some(entry) = find(host, vm, gpa).await? {
            aged.leaves += 1;
            let young = host.read(entry.at + 8).await & F::HASHED_REFERENCED != 0;
            aged.young += u64::from(young);
            if young && clear == Clear::Clear {
                aged.made_old += u64::from(clear_reference(host, entry, gpa).await);
            }
        }
        gpa += page.bytes();
    }
    Ok(aged)
}

/// Clears R of one entry and flushes its page; whether it still was there.
async fn clear_reference<F: HashedPages>(host: &Host<F>, entry: Hashed, gpa: Gpa) -> bool {
    // lock_hpte(): spins while somebody else holds it; its holders never sleep.
    while host.cmpxchg(entry.at, entry.first & !F::HASHED_LOCK, entry.first | F::HASHED_LOCK).await != Cmpxchg::Done {
        let now = host.read(entry.at).await;
        if now & F::HASHED_VALID == 0 || now & !F::HASHED_LOCK != entry.first & !F::HASHED_LOCK {
            return false;
        }
    }
    host.fetch_and(entry.at + 8, !F::HASHED_REFERENCED).await;
    let page = host.format().geometry().granule();
    host.flush_range(GpaRange::new(gpa, Bytes(page.bytes())), WalkCaches::Keep).await;
    host.write_release(entry.at, entry.first & !F::HASHED_LOCK).await;
    true
}
