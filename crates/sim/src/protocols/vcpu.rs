//! A vCPU's thread: the loop around entering the guest.
//!
//! Models `kvm_arch_vcpu_ioctl_run` as far as the second stage is concerned: enter, leave, handle the exit, again. Holds no lock
//! while the guest runs.

use mmu_core::Format;

use super::fault::{self, FaultPolicy};
use crate::engine::{ExitReason, Host, VcpuId};

/// Runs a vCPU until its work is done; second-stage faults are handled by `policy`.
pub async fn thread<F: Format>(host: Host<F>, vcpu: VcpuId, policy: FaultPolicy) {
    loop {
        match host.vcpu_run(vcpu).await.reason {
            ExitReason::Fault(fault) => fault::handle(&host, fault, policy).await,
            // Whatever it was kicked for is made good by the entry.
            ExitReason::Kicked => {}
            ExitReason::Done => return,
        }
    }
}
