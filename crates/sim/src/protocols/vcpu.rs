//! A vCPU's thread: the loop around entering the guest.
//!
//! Models `kvm_arch_vcpu_ioctl_run` as far as the second stage is concerned: enter, leave, handle the exit, again. Holds no lock
//! while the guest runs; a section of `kvm->srcu` while an exit is handled.

use mmu_core::Format;

use super::fault::{self, FaultPolicy};
use crate::engine::{ExitReason, Host, VcpuId};

/// Runs a vCPU until its work is done; second-stage faults are handled by `policy`.
pub async fn thread<F: Format>(host: Host<F>, vcpu: VcpuId, policy: FaultPolicy) {
    loop {
        match host.vcpu_run(vcpu).await.reason {
            ExitReason::Fault(fault) => {
                // kvm_vcpu_srcu_read_lock: memslots stay while the exit is handled.
                let section = host.srcu_read_lock().await;
                fault::handle(&host, fault, policy).await;
                host.srcu_read_unlock(section).await;
            }
            // Whatever it was kicked for is made good by the entry.
            ExitReason::Kicked => {}
            ExitReason::Done => return,
        }
    }
}
