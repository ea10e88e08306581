//! Memslot updates: add, delete, move; and the way from a guest address to a host page.
//!
//! Models `kvm_set_memslot` and `kvm_swap_active_memslots` of Linux 6.6 under `slots_lock`. Delete and move first publish the slot as invalid,
//! so that no fault maps anything new, wait for SRCU readers, flush what is mapped, then publish the slot gone or elsewhere.
//!
//! Locking: `slots_lock` around the whole update; `mn_invalidate_lock` around the publication, which waits until no invalidation is active
//! (52ac8b358b0c), so that start and end of each see the same slots; `mmu_lock` for the zap. Flush: by the zap's policy. Frees: the old version of the
//! memslots after the grace period; tables as the zap says.

use mmu_core::{Delivery, Flush, Format, Gpa, GpaRange, Hva, WalkCaches};
use serde::{Deserialize, Serialize};

use super::iter::FlushDebt;
use super::kvm::Kvm;
use super::memslot::zap_all_fast_locked;
use super::primary::hva_to_pfn;
use super::roots::VmRoots;
use super::unmap::{UnmapPolicy, unmap_range};
use super::zap::{ZapLock, ZapPolicy};
use crate::engine::{
    Host, HostAccess, HvaError, LockId, LockMode, Memslot, Reference, Resolved, SlotChange, SlotFlags, SlotId, Var,
    WaitQueue,
};

/// How what a slot maps goes away.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SlotZap {
    /// The whole root (x86: `kvm_mmu_zap_all_fast`).
    Fast(ZapPolicy),
    /// The slot's leaves only (x86 without `KVM_X86_QUIRK_SLOT_ZAP_ALL`, 6.12).
    Leafs(ZapPolicy),
    /// The slot's range (Arm, POWER).
    Unmap(UnmapPolicy),
}

/// Whether a publication waits for active invalidations.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Publication {
    /// It does (52ac8b358b0c, 5.15).
    Blocked,
    /// It does not (G02): an invalidation's end may meet a slot that its start did not, and the count goes below zero.
    AtOnce,
    /// It takes an rwsem for write that invalidations hold for read from start to end (the first fix of G02, G03): whoever is between start and end and
    /// starts another one waits behind the update, which waits for him. The notifier must do its part ([`SlotsGuard`](super::notifier::SlotsGuard)).
    Rwsem,
}

/// Whether an update makes faults that are under way try again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SequenceBump {
    /// The sequence moves under `mmu_lock`, before the slot's mappings go (11362b1befea).
    UnderLock,
    /// It does not (P01, POWER before May 2020); only SRCU protects.
    None,
}

/// How memslots are updated.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlotPolicy {
    /// What happens to mappings.
    pub zap: SlotZap,
    /// When the new version is published.
    pub publication: Publication,
    /// Faults under way.
    pub bump: SequenceBump,
}

impl SlotPolicy {
    /// x86, Linux 6.9.
    pub const X86: SlotPolicy = SlotPolicy {
        zap: SlotZap::Fast(ZapPolicy::V6_9),
        publication: Publication::Blocked,
        bump: SequenceBump::UnderLock,
    };
    /// x86 without the quirk: leaves only.
    pub const X86_LEAFS: SlotPolicy = SlotPolicy { zap: SlotZap::Leafs(ZapPolicy::V6_9), ..Self::X86 };
    /// Arm.
    pub const UNMAP: SlotPolicy = SlotPolicy { zap: SlotZap::Unmap(UnmapPolicy::V6_6), ..Self::X86 };
    /// POWER.
    pub const POWER: SlotPolicy = SlotPolicy { zap: SlotZap::Unmap(UnmapPolicy::POWER), ..Self::X86 };

    /// What Linux does with this format: x86, whose flushes are interrupts, zaps the root; the others unmap the slot.
    pub fn linux_6_6<F: Format>(format: &F) -> SlotPolicy {
        match format.flush_plan(Flush::EVERYTHING).delivery {
            Delivery::Interrupt => Self::X86,
            Delivery::LocalInstruction | Delivery::Broadcast if Kvm::of::<F>() == Kvm::Power => Self::POWER,
            Delivery::LocalInstruction | Delivery::Broadcast => Self::UNMAP,
        }
    }
}

/// A memslot update (`KVM_SET_USER_MEMORY_REGION`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlotUpdate {
    /// Adds a slot.
    Create(Memslot),
    /// Takes it away.
    Delete(Memslot),
    /// Gives it other guest addresses.
    Move(Memslot, Gpa),
    /// Gives it other flags; nothing is flushed.
    Flags(Memslot, SlotFlags),
}

/// Why an update was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlotError {
    /// Its guest addresses are taken (`-EEXIST`).
    Exists {
        /// The slot that was to be there.
        slot: SlotId,
        /// The one that is.
        by: SlotId,
    },
    /// No table was left for a new root.
    NoTable,
}

impl std::fmt::Display for SlotError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            SlotError::Exists { slot, by } => write!(
                f,
                "memslot {} would share guest addresses with memslot {} (EEXIST); delete that first",
                slot.0, by.0
            ),
            SlotError::NoTable => f.write_str("no table is left for a new root; give the guest less memory"),
        }
    }
}
impl std::error::Error for SlotError {}

/// Updates the memslots.
///
/// # Errors
/// When guest addresses are taken, or no table is left for a fast zap.
pub async fn set_memory_region<F: Format>(
    host: &Host<F>,
    update: SlotUpdate,
    policy: &SlotPolicy,
) -> Result<(), SlotError> {
    set_memory_region_in(host, &VmRoots::Current, update, policy).await
}

/// [`set_memory_region`] of a VM with these roots: a fast zap is that of their list, and what a nested guest has of a slot goes with it.
///
/// # Errors
/// As [`set_memory_region`].
pub async fn set_memory_region_in<F: Format>(
    host: &Host<F>,
    roots: &VmRoots<F>,
    update: SlotUpdate,
    policy: &SlotPolicy,
) -> Result<(), SlotError> {
    host.lock(LockId::SLOTS, LockMode::Write).await;
    let result = set_memslot(host, roots, update, policy).await;
    host.unlock(LockId::SLOTS).await;
    result
}

async fn set_memslot<F: Format>(
    host: &Host<F>,
    roots: &VmRoots<F>,
    update: SlotUpdate,
    policy: &SlotPolicy,
) -> Result<(), SlotError> {
    match update {
        SlotUpdate::Create(slot) => {
            is_free(host, slot.id, slot.gpa).await?;
            install(host, SlotChange::Put(slot), policy).await;
        }
        SlotUpdate::Delete(slot) => {
            invalidate(host, roots, slot, policy).await?;
            install(host, SlotChange::Remove(slot.id), policy).await;
        }
        SlotUpdate::Move(slot, to) => {
            let moved = Memslot { gpa: GpaRange::new(to, slot.gpa.bytes), ..slot };
            is_free(host, slot.id, moved.gpa).await?;
            invalidate(host, roots, slot, policy).await?;
            install(host, SlotChange::Put(moved), policy).await;
        }
        SlotUpdate::Flags(slot, flags) => install(host, SlotChange::Put(Memslot { flags, ..slot }), policy).await,
    }
    Ok(())
}

async fn is_free<F: Format>(host: &Host<F>, slot: SlotId, range: GpaRange) -> Result<(), SlotError> {
    let active = host.active_slots().await;
    match host.slot_in_the_way(active, range, Some(slot)).await {
        Some(by) => Err(SlotError::Exists { slot, by }),
        None => Ok(()),
    }
}

/// `kvm_invalidate_memslot`: nobody maps anything of the slot from here on, and what was mapped is gone.
async fn invalidate<F: Format>(
    host: &Host<F>,
    roots: &VmRoots<F>,
    slot: Memslot,
    policy: &SlotPolicy,
) -> Result<(), SlotError> {
    let invalid = Memslot { flags: slot.flags | SlotFlags::INVALID, ..slot };
    install(host, SlotChange::Put(invalid), policy).await;
    let flushed = flush_shadow(host, roots, slot.gpa, policy).await;
    if flushed.is_err() {
        install(host, SlotChange::Put(slot), policy).await;
    }
    flushed
}

/// `kvm_swap_active_memslots`: publishes a change, waits for readers of the old version, frees that.
async fn install<F: Format>(host: &Host<F>, change: SlotChange, policy: &SlotPolicy) {
    let old = host.active_slots().await;
    let new = host.derive_slots(old, change).await;
    if policy.publication == Publication::Rwsem {
        host.lock(LockId::NOTIFIER_SLOTS, LockMode::Write).await;
    }
    host.lock(LockId::INVALIDATE, LockMode::Write).await;
    if policy.publication == Publication::Blocked {
        wait_for_invalidations(host).await;
    }
    host.store_release(Var::MEMSLOTS, new.0).await;
    host.unlock(LockId::INVALIDATE).await;
    if policy.publication == Publication::Rwsem {
        host.unlock(LockId::NOTIFIER_SLOTS).await;
    }
    host.synchronize_srcu().await;
    host.free_slots(old).await;
}

/// Waits, with `mn_invalidate_lock` given up meanwhile, until no invalidation is active.
async fn wait_for_invalidations<F: Format>(host: &Host<F>) {
    loop {
        host.prepare_to_wait(WaitQueue::MEMSLOTS_UPDATE).await;
        if host.load(Var::ACTIVE_INVALIDATIONS).await == 0 {
            break;
        }
        host.unlock(LockId::INVALIDATE).await;
        host.schedule(WaitQueue::MEMSLOTS_UPDATE).await;
        host.lock(LockId::INVALIDATE, LockMode::Write).await;
    }
    host.finish_wait(WaitQueue::MEMSLOTS_UPDATE).await;
}

/// `kvm_arch_flush_shadow_memslot`
async fn flush_shadow<F: Format>(
    host: &Host<F>,
    roots: &VmRoots<F>,
    range: GpaRange,
    policy: &SlotPolicy,
) -> Result<(), SlotError> {
    if policy.bump == SequenceBump::UnderLock {
        // Before anything is unmapped: a fault that took the lock earlier has installed what goes below, a later one tries again. The kernel has it
        // in the section that unmaps (`kvmppc_radix_flush_memslot`), which here may be several.
        host.lock(LockId::MMU, LockMode::Write).await;
        host.add(Var::INVALIDATE_SEQ, 1).await;
        host.unlock(LockId::MMU).await;
    }
    match (policy.zap, roots.list()) {
        (SlotZap::Fast(_), Some(list)) => list.zap_all_fast_locked(host).await,
        (SlotZap::Fast(zap), None) => zap_all_fast_locked(host, &zap).await.ok_or(SlotError::NoTable)?,
        (SlotZap::Leafs(zap), _) => {
            // From the shadow's tables too.
            zap_memslot(host, roots, range, &zap).await;
            return Ok(());
        }
        (SlotZap::Unmap(unmap), _) => unmap_range(host, range, unmap).await,
    }
    if let Some(shadow) = roots.shadow() {
        shadow.unmap(host, range).await;
    }
    Ok(())
}

/// `kvm_mmu_zap_memslot` (6.12): the leaves of a range go from every root. Takes `mmu_lock`; flushed before it is dropped.
pub async fn zap_memslot<F: Format>(host: &Host<F>, roots: &VmRoots<F>, range: GpaRange, zap: &ZapPolicy) {
    host.lock(LockId::MMU, LockMode::Write).await;
    let zap = ZapPolicy { lock: ZapLock::Write, ..*zap };
    if roots.unmap_gfn_range(host, range, &zap).await == FlushDebt::Owed {
        host.flush_range(range, WalkCaches::Keep).await;
    }
    host.unlock(LockId::MMU).await;
}

// ---- faults ----

/// What a guest address is backed by now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Faultin {
    /// A page.
    Page {
        /// The page.
        page: Resolved,
        /// The host address of the page's beginning: what the retry test compares with ranges, which may be as short as the first byte of a page
        /// (`kvm_mmu_notifier_change_pte`).
        hva: Hva,
    },
    /// The slot is on its way out: enter the guest, take the fault again.
    Invalid,
    /// No slot: an emulated device.
    NoSlot,
    /// The process that owns the guest has nothing there, or not for this access.
    Error(HvaError),
}

/// `kvm_faultin_pfn`: from a guest address to the host page. Inside a section of `kvm->srcu`, without locks; may sleep.
pub async fn faultin_pfn<F: Format>(host: &Host<F>, gpa: Gpa, access: HostAccess, reference: Reference) -> Faultin {
    let slots = host.active_slots().await;
    let Some(slot) = host.slot_at(slots, gpa).await else { return Faultin::NoSlot };
    if slot.flags.contains(SlotFlags::INVALID) {
        return Faultin::Invalid;
    }
    match hva_to_pfn(host, slot.hva, access, reference).await {
        Ok(page) => {
            let within = slot.hva.raw() & (host.format().geometry().granule().bytes() - 1);
            Faultin::Page { page, hva: Hva::new(slot.hva.raw() - within) }
        }
        Err(error) => Faultin::Error(error),
    }
}
