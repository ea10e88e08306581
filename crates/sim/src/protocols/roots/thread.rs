//! A vCPU's thread that loads and leaves roots by itself.
//!
//! Models `kvm_mmu_reload`, `kvm_mmu_unload` and `kvm_mmu_reset_context` around `vcpu_enter_guest` (Linux 5.12 to 6.9). Locking: `mmu_lock` as
//! [`RootPolicy::root_lock`](super::RootPolicy::root_lock) says while a root is found or left. Flush: the own processor's, when a root is loaded. Frees: a root
//! whose last reference it puts, as the life cycle says.

use mmu_core::Format;
use serde::{Deserialize, Serialize};

use super::{AddressSpace, ObsoleteTest, Root, RootPage, Roots};
use crate::engine::{ExitReason, GuestFault, Host, VcpuId};
use crate::protocols::fault::{FaultHooks, FaultPolicy, FaultRoot, Faults, PfRet, PlainMemory};
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

/// How a stretch of guest code ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RanTo {
    /// Its work is done.
    Done,
    /// There was no table for a root: the vCPU cannot run.
    NoRoot,
}

/// A vCPU with the root that it has loaded, on memory with the hooks `H`.
#[derive(Debug)]
pub struct RootedVcpu<F, H = PlainMemory> {
    roots: Roots<F>,
    vcpu: VcpuId,
    space: AddressSpace,
    root: Option<Root>,
    faults: Faults<H>,
}

impl<F: Format> RootedVcpu<F> {
    /// A vCPU on plain memory that has the VM's first root loaded: once for each vCPU.
    pub fn new(roots: Roots<F>, vcpu: VcpuId, policy: FaultPolicy) -> Self {
        Self::with_hooks(roots, vcpu, policy, PlainMemory)
    }
}

impl<F: Format, H: FaultHooks<F>> RootedVcpu<F, H> {
    /// A vCPU that has the VM's first root loaded: once for each vCPU.
    pub fn with_hooks(roots: Roots<F>, vcpu: VcpuId, policy: FaultPolicy, hooks: H) -> Self {
        let root = Some(roots.0.first);
        Self { roots, vcpu, space: AddressSpace::NORMAL, root, faults: Faults::with_hooks(vcpu, policy, hooks) }
    }

    /// Leaves the root, if one is loaded (`kvm_mmu_unload`); the next entry looks one up.
    pub async fn leave(&mut self, host: &Host<F>) {
        if let Some(root) = self.root.take() {
            self.roots.unload(host, root).await;
        }
    }

    /// The vCPU's thread ends: leaves the root and gives back what the fault handler keeps.
    pub async fn release(mut self, host: &Host<F>) {
        self.leave(host).await;
        self.faults.release(host).await;
    }

    /// Leaves the root for that of another address space.
    pub async fn enter_space(&mut self, host: &Host<F>, space: AddressSpace) {
        self.leave(host).await;
        self.space = space;
    }

    /// Runs the guest until its work is done, handling its faults.
    pub async fn run(&mut self, host: &Host<F>) -> RanTo {
        loop {
            match self.run_once(host).await {
                None => return RanTo::NoRoot,
                // What could not be fixed is taken again; a run that failed is counted.
                Some(ExitReason::Fault(fault)) => {
                    self.handle(host, fault).await;
                }
                Some(ExitReason::Kicked | ExitReason::LogFull) => {}
                Some(ExitReason::Done) => return RanTo::Done,
            }
        }
    }

    /// `vcpu_run`: loads a root if it must and runs the guest up to the next exit; `None` when there was no table for a root.
    pub async fn run_once(&mut self, host: &Host<F>) -> Option<ExitReason> {
        self.reload(host).await?;
        Some(host.vcpu_run(self.vcpu).await.reason)
    }

    /// `kvm_mmu_reload`: leaves a root that is obsolete, and loads one if none is loaded.
    async fn reload(&mut self, host: &Host<F>) -> Option<Root> {
        // KVM_REQ_MMU_FREE_OBSOLETE_ROOTS. A request after this look turns the entry below back.
        if host.xchg_var(self.roots.0.requests[self.vcpu.0], 0).await != 0 && self.is_obsolete(host).await {
            self.leave(host).await;
        }
        if self.root.is_none() {
            let loaded = self.roots.load(host, self.space).await?;
            host.load_root(self.vcpu, loaded.table, loaded.serial as u16).await;
            self.root = Some(loaded);
        }
        self.root
    }

    /// The fault handler at work below the loaded root, for calls that fault without the guest; `None` when there was no table for a root.
    pub async fn faults(&mut self, host: &Host<F>) -> Option<&mut Faults<H>> {
        let root = self.reload(host).await?;
        self.work_below(root);
        Some(&mut self.faults)
    }

    async fn is_obsolete(&self, host: &Host<F>) -> bool {
        match self.root {
            Some(root) => host.load(root.invalid).await != 0,
            None => false,
        }
    }

    /// Handles a fault below the loaded root.
    pub async fn handle(&mut self, host: &Host<F>, fault: GuestFault) -> PfRet {
        let Some(root) = self.root else { return PfRet::Retry };
        self.work_below(root);
        self.faults.handle(host, fault).await
    }

    fn work_below(&mut self, root: Root) {
        let policy = self.roots.policy();
        // `is_page_fault_stale`: by the root's page, or where it has none by the request that everybody got.
        let obsolete = match (policy.stale, policy.page) {
            (ObsoleteTest::Ignored, _) | (ObsoleteTest::OwnPage, RootPage::None) => None,
            (_, RootPage::Own) => Some(root.invalid),
            (ObsoleteTest::Tested, RootPage::None) => Some(self.roots.0.requests[self.vcpu.0]),
        };
        self.faults.work_below(FaultRoot { table: root.table, obsolete });
    }
}

/// The thread of one vCPU: does its steps, then leaves its root and ends. A vCPU that gets no root for want of tables ends early.
pub async fn thread<F: Format>(host: Host<F>, vcpu: VcpuId, roots: Roots<F>, steps: Vec<Step>, policy: FaultPolicy) {
    let mut rooted = RootedVcpu::new(roots, vcpu, policy);
    for step in steps {
        match step {
            Step::Run(work) => {
                host.assign(vcpu, work);
                if rooted.run(&host).await == RanTo::NoRoot {
                    break;
                }
            }
            Step::ToggleWriteProtect => rooted.leave(&host).await,
            Step::Enter(space) => rooted.enter_space(&host, space).await,
        }
    }
    rooted.release(&host).await;
}
