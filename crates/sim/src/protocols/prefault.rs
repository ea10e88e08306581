//! Faulting guest memory in before the guest touches it.
//!
//! Models `KVM_PRE_FAULT_MEMORY` (6.11, `kvm_vcpu_pre_fault_memory`): page by page as the second stage maps them, each as a read fault of the
//! guest would be handled, without leaving for user space. Locking: that of a fault, and SRCU around all of it, so that slots
//! stay. Flush and frees: those of a fault.
//!
//! X34: a slot that is being deleted makes every fault retry. The deleter waits until nobody is inside the SRCU section, the loop waits until the slot is
//! gone. Since 6.18 a prefault gives up with `-EAGAIN`.

use mmu_core::{AccessKind, Bytes, FaultClass, Format, Gpa, GpaRange};
use serde::{Deserialize, Serialize};

use super::fault::{FaultHooks, Faults, PfRet, SlotState};
use super::fault_fast::lockless_leaf;
use crate::engine::{GuestFault, Host, LockId};

/// What a prefault does in a slot that is being deleted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeletedSlot {
    /// Gives up (6.18).
    Again,
    /// Tries until the slot is gone (up to 6.17; X34).
    Loops,
}

/// Why nothing could be faulted in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PreFaultError {
    /// The slot is being deleted (`-EAGAIN`).
    Again,
    /// There is no memory at the address (`-ENOENT`).
    NoEntry,
    /// A signal is pending (`-EINTR`).
    Interrupted,
    /// The fault cannot be handled (`-EIO`).
    Failed,
}

/// What a call did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PreFaulted {
    /// What is left of the range.
    pub remaining: GpaRange,
    /// An error only if nothing was faulted in: the range shrinks or the call fails, never both.
    pub result: Result<(), PreFaultError>,
}

/// Faults a range in on a vCPU whose thread is not in the guest.
pub async fn pre_fault_memory<F: Format, H: FaultHooks<F>>(
    host: &Host<F>,
    faults: &mut Faults<H>,
    range: GpaRange,
    deleted: DeletedSlot,
) -> PreFaulted {
    let section = host.srcu_read_lock().await;
    let mut left = range;
    let mut result = Ok(());
    while left.bytes.0 > 0 {
        match one(host, faults, left.start, deleted).await {
            Ok(next) => left = GpaRange::between(next.min(left.end()), left.end()),
            Err(error) => {
                result = Err(error);
                break;
            }
        }
        if host.need_resched(LockId::MMU).await {
            host.reschedule().await;
        }
    }
    host.srcu_read_unlock(section).await;
    let shrunk = left.bytes < range.bytes;
    PreFaulted { remaining: left, result: if shrunk { Ok(()) } else { result } }
}

/// `kvm_arch_vcpu_pre_fault_memory`: one page; where the next one begins.
async fn one<F: Format, H: FaultHooks<F>>(
    host: &Host<F>,
    faults: &mut Faults<H>,
    gpa: Gpa,
    deleted: DeletedSlot,
) -> Result<Gpa, PreFaultError> {
    let fault = GuestFault { gpa, access: AccessKind::Read, class: FaultClass::NotPresent };
    loop {
        if faults.hooks().signal_pending(host).await {
            return Err(PreFaultError::Interrupted);
        }
        if deleted == DeletedSlot::Again && faults.hooks().slot(host, gpa).await == SlotState::Invalid {
            return Err(PreFaultError::Again);
        }
        match faults.page_fault(host, fault).await {
            PfRet::Fixed | PfRet::Spurious => break,
            // A race, an invalidation under way, or a slot that is going.
            PfRet::Retry => host.reschedule().await,
            PfRet::Emulate => return Err(PreFaultError::NoEntry),
            PfRet::Invalid => return Err(PreFaultError::Failed),
        }
    }
    host.rcu_read_lock().await;
    let root = faults.root_table(host).await;
    let leaf = lockless_leaf(host, root, gpa).await;
    host.rcu_read_unlock().await;
    let geometry = host.format().geometry();
    let page = leaf.map_or(geometry.granule(), |(_, level, _)| geometry.page_size(level));
    Ok(gpa.align_down(page) + Bytes(page.bytes()).0)
}
