//! A fault that needs no lock: the leaf is there and only has to get back what was taken from it.
//!
//! Models `fast_page_fault` of Linux 6.6 (`arch/x86/kvm/mmu/mmu.c`): write-protected for dirty logging, or access-tracked, which without accessed and dirty flags
//! leaves it not present. Locking: an RCU section keeps the
//! tables alive; the leaf is read again inside it and changed by one compare-and-swap, tried a few times. A huge leaf is not made writable
//! while writes are logged: it has to be split, which takes the lock. Flush: none owed, where hardware walks again upon a denial. Frees nothing.

use mmu_core::{Format, Gpa, Hpa, Level};

use super::aging::restore_access;
use super::fault::{FaultHooks, Logging, PfRet, writes};
use super::fault_map::allows;
use crate::engine::{Cmpxchg, GuestFault, Host};
use crate::events::Trace;

/// Tries before the lock is taken.
const TRIES: u32 = 4;

/// `None`: this needs the lock.
pub(super) async fn fast_page_fault<F: Format, H: FaultHooks<F>>(
    host: &Host<F>,
    root: Hpa,
    fault: &GuestFault,
    hooks: &H,
) -> Option<PfRet> {
    host.rcu_read_lock().await;
    let mut ret = None;
    for _ in 0..TRIES {
        let Some((at, level, old)) = lockless_leaf(host, root, fault.gpa).await else { break };
        if allows(host.format(), level, old, fault.access) && host.format().mark_young(old).is_none() {
            ret = Some(PfRet::Spurious);
            break;
        }
        let Some(new) = mended(host.format(), level, old, fault) else { break };
        let logging = if writes(fault.access) { hooks.logging(host, fault.gpa).await } else { Logging::Off };
        if logging == Logging::On && level > Level::LAST {
            break;
        }
        let done = host.cmpxchg(at, old, new).await == Cmpxchg::Done;
        host.trace(|| Trace::FastPageFault {
            vcpu_id: 0,
            cr2_or_gpa: fault.gpa.raw(),
            error_code: fault.error_code(),
            sptep: at.raw(),
            old_spte: old,
            new_spte: new,
            ret: if done { "FIXED" } else { "RETRY" },
        });
        if done {
            if logging == Logging::On {
                hooks.mark_dirty(host, fault.gpa).await;
            }
            ret = Some(PfRet::Fixed);
            break;
        }
    }
    host.rcu_read_unlock().await;
    ret
}

/// The leaf with what was taken from it, if that makes the access possible.
fn mended<F: Format>(format: &F, level: Level, old: u64, fault: &GuestFault) -> Option<u64> {
    let young = restore_access(format, old);
    let new = if writes(fault.access) { format.restore_write(young).unwrap_or(young) } else { young };
    (new != old && allows(format, level, new, fault.access)).then_some(new)
}

/// `kvm_tdp_mmu_fast_pf_get_last_sptep`: the leaf that maps the address, as it is at this moment.
pub(crate) async fn lockless_leaf<F: Format>(host: &Host<F>, root: Hpa, gpa: Gpa) -> Option<(Hpa, Level, u64)> {
    let format = *host.format();
    let geometry = *format.geometry();
    let mut table = root;
    let mut level = geometry.root();
    loop {
        let at = table + 8 * geometry.index(level, gpa.raw()) as u64;
        let word = host.read(at).await;
        if !format.is_mapped(word) {
            return None;
        }
        if format.is_leaf(level, word) {
            return Some((at, level, word));
        }
        table = format.next_table(level, word);
        level = level.down()?;
    }
}
