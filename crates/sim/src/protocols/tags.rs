//! Tags of translations: who owns one, what is invalidated by it, and what a processor must do before it runs a guest.
//!
//! Two halves. **Arm**: VMIDs are few and roll over (`arch/arm64/kvm/arm.c`, `update_vmid`): all processors are flushed and kicked, and every guest gets a
//! new one. Who invalidates by VMID must read it after the entry is gone (cf364e08ea1c and after; A20). **POWER**: an LPID stays, but while one
//! vCPU only runs, its guest is invalidated on its own processor (`tlbiel`); a processor that it has left is flushed before it
//! comes back (`kvmppc_prepare_radix_vcpu`, `kvmppc_check_need_tlb_flush`), and every thread of a core loads the LPID that it runs under.
//!
//! A vCPU of the bed stands for a processor. Locking: `kvm_vmid_lock` around a roll-over and around taking up a VMID. Flush: made here. Frees nothing.

use mmu_core::{Format, Hpa};
use serde::{Deserialize, Serialize};

use crate::engine::{Bed, Host, LockId, LockKind, LockMode, OwnCaches, Tagged, Var, VcpuId, Work};

// ---- Arm: VMIDs ----

/// When whoever invalidates by a tag reads it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TagRead {
    /// After the entry is gone: if the guest has had another tag since, everything was flushed since.
    AfterStore,
    /// Before (A20): the guest may run under another tag when the entry goes, and that one is not invalidated.
    BeforeStore,
}

/// A guest with a tag that may change.
#[derive(Clone, Copy, Debug)]
pub struct TaggedGuest {
    root: Hpa,
    tag: Var,
    /// `kvm_vmid_lock`
    lock: LockId,
}

impl TaggedGuest {
    /// The guest of this root, under a first tag.
    pub fn new(sim: &mut impl Bed, root: Hpa, tag: u16) -> Self {
        Self { root, tag: sim.new_var(u64::from(tag)), lock: sim.new_lock(LockKind::Spin) }
    }

    /// Loads the guest's root under its tag on a processor that is out of the guest.
    pub async fn load<F: Format>(&self, host: &Host<F>, processor: VcpuId) {
        host.lock(self.lock, LockMode::Write).await;
        let tag = host.load(self.tag).await as u16;
        host.tagged(Tagged::Load(processor, self.root, tag)).await;
        host.unlock(self.lock).await;
    }

    /// Takes a leaf away and invalidates what was cached of the guest.
    pub async fn zap<F: Format>(&self, host: &Host<F>, leaf: Hpa, read: TagRead) {
        let mut tag = host.load(self.tag).await;
        host.xchg(leaf, 0).await;
        host.spend(Work::ReleaseLeaf).await;
        if read == TagRead::AfterStore {
            tag = host.load(self.tag).await;
        }
        host.tagged(Tagged::Flush(tag as u16)).await;
    }

    /// The tags are used up: the guest gets another one. All processors are kicked, so that none runs or enters under the old one, and flushed.
    pub async fn roll_over<F: Format>(&self, host: &Host<F>, tag: u16) {
        host.lock(self.lock, LockMode::Write).await;
        host.kick_all().await;
        host.flush_vm().await;
        host.store(self.tag, u64::from(tag)).await;
        host.unlock(self.lock).await;
    }
}

// ---- POWER: LPIDs and threads ----

/// Which processors are taken to have one TLB.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SharedTlb {
    /// Those that have (`cpu_first_tlb_thread_sibling`, 77bbbc0cf848).
    AsBuilt,
    /// All of a core (P05): a core of eight threads has two.
    PerCore,
}

/// What a processor drops that is flushed before a guest comes back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Erat {
    /// The ERAT too.
    Flushed,
    /// The TLB only (P06, June 2019).
    Forgotten,
}

/// What threads of a core other than the first do before a guest runs on them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecondaryThreads {
    /// They load the LPID and flush where they must.
    Load,
    /// They leave that to the first (P07, April 2019).
    Skip,
}

/// How processors are made ready.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThreadPolicy {
    /// Which processors share a TLB.
    pub shared: SharedTlb,
    /// What is flushed.
    pub erat: Erat,
    /// Threads other than the first.
    pub secondary: SecondaryThreads,
}

impl ThreadPolicy {
    /// As it is right.
    pub const RIGHT: ThreadPolicy =
        ThreadPolicy { shared: SharedTlb::AsBuilt, erat: Erat::Flushed, secondary: SecondaryThreads::Load };
}

/// A guest under an LPID, on a core whose threads have a TLB each.
#[derive(Clone, Copy, Debug)]
pub struct LpidGuest {
    root: Hpa,
    lpid: u16,
    /// `need_tlb_flush`: a bit for each TLB that must be flushed before the guest runs there.
    need_flush: Var,
    policy: ThreadPolicy,
}

impl LpidGuest {
    /// The guest of this root under this LPID.
    pub fn new(sim: &mut impl Bed, root: Hpa, lpid: u16, policy: ThreadPolicy) -> Self {
        Self { root, lpid, need_flush: sim.new_var(0), policy }
    }

    /// The number of a processor's TLB, as the policy has it.
    fn tlb(&self, processor: VcpuId) -> usize {
        match self.policy.shared {
            SharedTlb::AsBuilt => processor.0,
            SharedTlb::PerCore => 0,
        }
    }

    /// `kvmppc_prepare_radix_vcpu`: the guest's vCPU goes from one processor to another.
    pub async fn moves<F: Format>(&self, host: &Host<F>, from: VcpuId, to: VcpuId) {
        if self.tlb(from) != self.tlb(to) {
            let need = host.load(self.need_flush).await;
            host.store(self.need_flush, need | 1 << self.tlb(from)).await;
        }
    }

    /// Makes a processor ready for the guest: the LPID is loaded, and what may be stale goes.
    pub async fn prepare<F: Format>(&self, host: &Host<F>, processor: VcpuId) {
        if processor.0 == 0 || self.policy.secondary == SecondaryThreads::Load {
            host.tagged(Tagged::Load(processor, self.root, self.lpid)).await;
            self.check_need_flush(host, processor).await;
        }
        host.tagged(Tagged::Own(processor, self.lpid)).await;
    }

    /// `kvmppc_check_need_tlb_flush`
    async fn check_need_flush<F: Format>(&self, host: &Host<F>, processor: VcpuId) {
        let (need, bit) = (host.load(self.need_flush).await, 1 << self.tlb(processor));
        if need & bit != 0 {
            let what = if self.policy.erat == Erat::Flushed { OwnCaches::All } else { OwnCaches::ButTheFirst };
            host.tagged(Tagged::FlushOwn(processor, what)).await;
            host.store(self.need_flush, need & !bit).await;
        }
    }

    /// `kvmppc_unmap_pte` of a guest that runs on one processor only: the leaf goes, and what that processor has cached of it.
    pub async fn zap_here<F: Format>(&self, host: &Host<F>, leaf: Hpa, processor: VcpuId) {
        host.xchg(leaf, 0).await;
        host.spend(Work::ReleaseLeaf).await;
        host.tagged(Tagged::FlushOwn(processor, OwnCaches::All)).await;
    }
}
