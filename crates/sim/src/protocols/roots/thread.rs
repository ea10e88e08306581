//! A vCPU's thread that loads and leaves roots by itself.

use mmu_core::Format;

use super::{AddressSpace, ObsoleteTest, Root, Roots};
use crate::engine::{ExitReason, Host, VcpuId};
use crate::protocols::fault::{FaultPolicy, FaultRoot, Faults, PlainMemory};
use crate::workload::GuestWork;

/// What a vCPU does next.
#[derive(Clone, PartialEq, Debug)]
pub enum Step {
    /// Runs guest code until this work is done.
    Run(GuestWork),
    /// The guest toggles CR0.WP: `kvm_mmu_reset_context`, the root is left and looked up again (X22 where leaving it destroys it).
    ToggleWriteProtect,
    /// The guest enters or leaves system-management mode: from now on it runs on this address space.
    Enter(AddressSpace),
}

/// The thread of one vCPU: does its steps, then leaves its root and ends. A vCPU that gets no root for want of tables ends early.
pub async fn thread<F: Format>(host: Host<F>, vcpu: VcpuId, roots: Roots<F>, steps: Vec<Step>, policy: FaultPolicy) {
    let mut space = AddressSpace::NORMAL;
    let mut root = Some(roots.0.first);
    let mut faults = Faults::new(vcpu, policy);
    for step in steps {
        match step {
            Step::Run(work) => {
                host.assign(vcpu, work);
                if !run(&host, vcpu, &roots, space, &mut root, &mut faults).await {
                    break;
                }
            }
            Step::ToggleWriteProtect => leave(&host, &roots, &mut root).await,
            Step::Enter(entered) => {
                leave(&host, &roots, &mut root).await;
                space = entered;
            }
        }
    }
    leave(&host, &roots, &mut root).await;
    faults.release(&host).await;
    roots.task_ends(&host).await;
}

async fn leave<F: Format>(host: &Host<F>, roots: &Roots<F>, root: &mut Option<Root>) {
    if let Some(root) = root.take() {
        roots.unload(host, root).await;
    }
}

/// `vcpu_run`: until the guest has done its work; false when there was no root to run on.
async fn run<F: Format>(
    host: &Host<F>,
    vcpu: VcpuId,
    roots: &Roots<F>,
    space: AddressSpace,
    root: &mut Option<Root>,
    faults: &mut Faults<PlainMemory>,
) -> bool {
    loop {
        // KVM_REQ_MMU_FREE_OBSOLETE_ROOTS. A request after this look turns the entry below back.
        if host.xchg_var(roots.0.requests[vcpu.0], 0).await != 0 && is_obsolete(host, *root).await {
            leave(host, roots, root).await;
        }
        let loaded = match *root {
            Some(loaded) => loaded,
            None => {
                let Some(loaded) = roots.load(host, space).await else { return false };
                host.load_root(vcpu, loaded.table, loaded.serial as u16).await;
                *root = Some(loaded);
                loaded
            }
        };
        match host.vcpu_run(vcpu).await.reason {
            ExitReason::Fault(fault) => {
                let test = roots.policy().stale == ObsoleteTest::Tested;
                let below = FaultRoot { table: loaded.table, obsolete: test.then_some(loaded.invalid) };
                faults.work_below(below);
                // What could not be fixed is taken again; a run that failed is counted.
                let _ = faults.handle(host, fault).await;
            }
            ExitReason::Kicked | ExitReason::LogFull => {}
            ExitReason::Done => return true,
        }
    }
}

async fn is_obsolete<F: Format>(host: &Host<F>, root: Option<Root>) -> bool {
    match root {
        Some(root) => host.load(root.invalid).await != 0,
        None => false,
    }
}
