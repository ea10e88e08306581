//! A vCPU's thread: the loop around entering the guest.
//!
//! Models `kvm_arch_vcpu_ioctl_run` as far as the second stage is concerned: enter, leave, handle the exit, again. Holds no lock
//! while the guest runs; a section of `kvm->srcu` while an exit is handled. Frees what the fault handler keeps when it ends.
//!
//! Flush: none owed; requests that arrive while it is in the host are served by the entry.

use mmu_core::Format;

use super::fault::{FaultHooks, FaultPolicy, Faults, PfRet};
use crate::engine::{ExitReason, Host, VcpuId};

/// Runs a vCPU until its work is done; second-stage faults are handled by `policy`.
pub async fn thread<F: Format>(host: Host<F>, vcpu: VcpuId, policy: FaultPolicy) {
    let mut faults = Faults::new(vcpu, policy);
    // A failed run is counted; the thread has nothing else to say.
    let _ = run(&host, vcpu, &mut faults).await;
    faults.release(&host).await;
}

/// How a stretch of guest work ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a run that failed has not done its work"]
pub enum Ran {
    /// The guest has done what it was given.
    Done,
    /// `KVM_RUN` returned an error: a fault could not be handled.
    Failed,
}

/// Runs a vCPU until the work that it was given is done (`vcpu_run` of the selftests).
pub async fn run<F: Format, H: FaultHooks<F>>(host: &Host<F>, vcpu: VcpuId, faults: &mut Faults<H>) -> Ran {
    loop {
        match host.vcpu_run(vcpu).await.reason {
            ExitReason::Fault(fault) => {
                // kvm_vcpu_srcu_read_lock: memslots stay while the exit is handled.
                let section = host.srcu_read_lock().await;
                let ret = faults.handle(host, fault).await;
                host.srcu_read_unlock(section).await;
                if ret == PfRet::Invalid {
                    return Ran::Failed;
                }
            }
            // Whatever it was kicked for is made good by the entry.
            ExitReason::Kicked | ExitReason::LogFull => {}
            ExitReason::Done => return Ran::Done,
        }
    }
}
