//! The thread of a vCPU: as the dirty log's, on whatever root is loaded.

use mmu_core::{Format, Gpa, Hpa};
use mmu_sim::engine::{ExitReason, Host, SlotFlags, VcpuId};
use mmu_sim::protocols::dirty_log::flush_modification_log;
use mmu_sim::protocols::dirty_log::vcpu::LoggedSlot;
use mmu_sim::protocols::fault::{FaultHooks, Faults, Logging, PfRet, SlotState};
use mmu_sim::protocols::nx::NxPages;
use mmu_sim::protocols::prefault::{DeletedSlot, pre_fault_memory};
use mmu_sim::protocols::roots::RootedVcpu;
use mmu_sim::workload::{GuestAccess, GuestWork};

use super::tables::Tables;
use super::{Pages, Vm};

/// Memory of a program's VM, as faults ask for it.
#[derive(Clone, Debug)]
struct Memory {
    logged: LoggedSlot,
    nx: Option<NxPages>,
}

impl<F: Format> FaultHooks<F> for Memory {
    async fn slot(&self, host: &Host<F>, gpa: Gpa) -> SlotState {
        let slots = host.active_slots().await;
        match host.slot_at(slots, gpa).await {
            None => SlotState::None,
            Some(slot) if slot.flags.contains(SlotFlags::INVALID) => SlotState::Invalid,
            Some(_) => SlotState::Memory,
        }
    }

    async fn logging(&self, host: &Host<F>, gpa: Gpa) -> Logging {
        self.logged.logging(host, gpa).await
    }

    async fn mark_dirty(&self, host: &Host<F>, gpa: Gpa) {
        self.logged.mark_dirty(host, gpa).await;
    }

    fn nx(&self) -> Option<&NxPages> {
        self.nx.as_ref()
    }
}

/// On which root a vCPU runs.
enum On<F> {
    /// The one that the VM has.
    TheVms(Faults<Memory>),
    /// One of a list, which it loads and leaves.
    Listed(RootedVcpu<F, Memory>),
}

/// The thread of one vCPU.
pub(super) struct Thread<F: Format> {
    pub(super) vcpu: VcpuId,
    logged: LoggedSlot,
    on: On<F>,
    /// Tables of two kinds, and the tree that it runs on.
    tables: Option<(Tables<F>, Hpa)>,
}

impl<F: Format> Thread<F> {
    /// The thread of a vCPU that has the VM's first root loaded: one for each vCPU.
    pub(super) fn new(vm: &Vm<F>, vcpu: VcpuId) -> Self {
        let logged = LoggedSlot::new(vm.log);
        let memory = Memory { logged, nx: vm.nx.clone() };
        let on = match vm.roots().list() {
            Some(roots) => On::Listed(RootedVcpu::with_hooks(roots.clone(), vcpu, vm.fault, memory)),
            None => On::TheVms(Faults::with_hooks(vcpu, vm.fault, memory)),
        };
        Self { vcpu, logged, on, tables: vm.tables.map(|tables| (tables, tables.first)) }
    }

    /// What is logged of what it writes, for a nested guest on it.
    pub(super) fn logged(&self) -> &LoggedSlot {
        &self.logged
    }

    /// `KVM_RUN` begins.
    pub(super) async fn enter(&mut self, host: &Host<F>) {
        if let Some((tables, loaded)) = &mut self.tables {
            tables.enter(host, self.vcpu, loaded).await;
        }
    }

    /// `KVM_RUN` ends.
    pub(super) async fn exit(&self, host: &Host<F>) {
        if let Some((tables, _)) = &self.tables {
            tables.leave(host).await;
        }
    }

    /// Runs the guest until its work is done. A run that failed is one that the host could not go on with; what it left is checked all the same.
    pub(super) async fn run(&mut self, host: &Host<F>) {
        self.enter(host).await;
        self.run_guest(host).await;
        self.exit(host).await;
    }

    async fn run_guest(&mut self, host: &Host<F>) {
        loop {
            let exit = match &mut self.on {
                On::TheVms(_) => Some(host.vcpu_run(self.vcpu).await.reason),
                On::Listed(rooted) => rooted.run_once(host).await,
            };
            let Some(exit) = exit else { return };
            let section = host.srcu_read_lock().await;
            flush_modification_log(host, &self.logged.log, self.vcpu).await;
            let over = match (exit, &mut self.on) {
                (ExitReason::Fault(fault), On::TheVms(faults)) => faults.handle(host, fault).await == PfRet::Invalid,
                (ExitReason::Fault(fault), On::Listed(rooted)) => rooted.handle(host, fault).await == PfRet::Invalid,
                (ExitReason::Kicked | ExitReason::LogFull, _) => false,
                (ExitReason::Done, _) => true,
            };
            host.srcu_read_unlock(section).await;
            if over {
                return;
            }
        }
    }

    /// Runs the guest through these accesses.
    pub(super) async fn touch(&mut self, host: &Host<F>, accesses: Vec<GuestAccess>) {
        host.assign(self.vcpu, GuestWork::List(accesses));
        self.run(host).await;
    }

    /// Faults pages in without the guest.
    pub(super) async fn pre_fault(&mut self, host: &Host<F>, pages: Pages) {
        let faults = match &mut self.on {
            On::TheVms(faults) => Some(faults),
            On::Listed(rooted) => rooted.faults(host).await,
        };
        if let Some(faults) = faults {
            // How far it came is the caller's affair.
            let _ = pre_fault_memory(host, faults, pages.gpas(), DeletedSlot::Again).await;
        }
    }

    /// Leaves its root, if there are several; the next entry looks one up.
    pub(super) async fn leave(&mut self, host: &Host<F>) {
        if let On::Listed(rooted) = &mut self.on {
            rooted.leave(host).await;
        }
    }

    /// A nested guest has run on it: where there are no several roots it has the VM's again.
    pub(super) async fn back_in_l1(&mut self, host: &Host<F>) {
        if let On::TheVms(_) = self.on {
            host.load_root(self.vcpu, host.root().await, 0).await;
        }
    }

    /// The thread ends.
    pub(super) async fn release(self, host: &Host<F>) {
        match self.on {
            On::TheVms(faults) => faults.release(host).await,
            On::Listed(rooted) => rooted.release(host).await,
        }
    }
}
