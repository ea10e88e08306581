//! vCPUs that run a nested guest, and dirty logging of what it writes.
//!
//! Models the chains' part of `kvm_mmu_slot_remove_write_access` and `kvm_mmu_write_protect_pt_masked` (Linux 6.6): leaves of a nested guest are always
//! write-protected, because the processor's log of modified pages is off while L2 runs (`SPTE_TDP_AD_WRPROT_ONLY`).
//!
//! Locking: whoever takes write permission holds `mmu_lock` for write, as a nested fault does. Flush: owed by the caller, who gets the debt. Frees nothing.

use mmu_core::{Format, Gpa, GpaRange, Hpa};

use super::{ChainLock, Shadow, ShadowError};
use crate::engine::{Cmpxchg, ExitReason, Host, LockId, LockMode, Var, VcpuId};
use crate::protocols::dirty_log::vcpu::LoggedSlot;
use crate::protocols::fault::FaultHooks;
use crate::protocols::iter::FlushDebt;
use crate::protocols::vcpu::Ran;

impl Shadow {
    /// `slot_rmap_write_protect`: takes write permission from every shadow leaf of a range of L1's memory. `mmu_lock` is held for write; the flush is
    /// the caller's.
    pub(in crate::protocols) async fn write_protect<F: Format>(&self, host: &Host<F>, l1: GpaRange) -> FlushDebt {
        let mut debt = FlushDebt::Clean;
        for head in self.heads_of(l1) {
            debt = debt.merge(self.write_protect_chain(host, head).await);
        }
        debt
    }

    async fn write_protect_chain<F: Format>(&self, host: &Host<F>, head: Var) -> FlushDebt {
        let first = self.lock(host, head, ChainLock::PreemptionOff).await;
        let (mut word, mut debt) = (first, FlushDebt::Clean);
        while word != 0 {
            let (leaf, next) = self.link(host, word).await;
            if write_protect_leaf(host, leaf).await {
                debt = FlushDebt::Owed;
            }
            word = next;
        }
        // An empty chain is never locked.
        if first != 0 {
            self.unlock(host, head, first).await;
        }
        debt
    }

    /// Lets a vCPU run L2 from now on, on the shadow tree with `generation` as its tag.
    ///
    /// # Errors
    /// When there is no memory for the root.
    pub async fn enter<F: Format>(&self, host: &Host<F>, vcpu: VcpuId, generation: u16) -> Result<(), ShadowError> {
        host.lock(LockId::MMU, LockMode::Write).await;
        let root = self.root_table(host).await;
        host.unlock(LockId::MMU).await;
        host.load_root(vcpu, root?, generation).await;
        Ok(())
    }

    /// The thread of a vCPU that runs L2 until its work is done, on the shadow tree with `generation` as its tag.
    ///
    /// # Errors
    /// When the root or a page cannot be mapped.
    pub async fn thread<F: Format>(&self, host: &Host<F>, vcpu: VcpuId, generation: u16) -> Result<(), ShadowError> {
        self.enter(host, vcpu, generation).await?;
        loop {
            match host.vcpu_run(vcpu).await.reason {
                ExitReason::Fault(fault) => self.fault(host, fault).await?,
                ExitReason::Done => return Ok(()),
                // Whatever else it left for is made good by the entry.
                _ => {}
            }
        }
    }

    /// Runs a vCPU that has entered L2 until the work that it was given is done; what L2 writes is logged for `slot`. Exits are handled inside a section
    /// of `kvm->srcu`.
    pub async fn run_logged<F: Format>(&self, host: &Host<F>, vcpu: VcpuId, slot: &LoggedSlot) -> Ran {
        loop {
            let exit = host.vcpu_run(vcpu).await;
            let section = host.srcu_read_lock().await;
            let ran = match exit.reason {
                ExitReason::Fault(fault) => {
                    let mapped = self.fault_then(host, fault, async |l1: Gpa| slot.mark_dirty(host, l1).await).await;
                    if mapped.is_err() {
                        host.count_failed_run().await;
                    }
                    mapped.is_err().then_some(Ran::Failed)
                }
                ExitReason::Kicked | ExitReason::LogFull => None,
                ExitReason::Done => Some(Ran::Done),
            };
            host.srcu_read_unlock(section).await;
            if let Some(ran) = ran {
                return ran;
            }
        }
    }
}

/// `spte_write_protect`; whether the leaf was writable. Hardware may set its accessed and dirty flags meanwhile.
async fn write_protect_leaf<F: Format>(host: &Host<F>, at: Hpa) -> bool {
    let mut old = host.read(at).await;
    loop {
        let protected = host.format().write_protect(old);
        if protected == old {
            return false;
        }
        match host.cmpxchg(at, old, protected).await {
            Cmpxchg::Done => return true,
            Cmpxchg::Failed(found) => old = found,
        }
    }
}
