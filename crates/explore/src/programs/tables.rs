//! A VM of POWER that changes between a radix tree and a hashed table.
//!
//! What keeps that apart from everything else is KVM's own: a vCPU counts itself as running for as long as it is in `KVM_RUN` and then looks whether the tables are
//! ready, the switch does so the other way round (`kvmhv_configure_mmu`) and gives up if anybody runs; whoever else goes through the tables holds `mmu_lock` and asks
//! which kind there is. Guests run on radix trees only: a vCPU that finds the other kind waits for the switch back, as one does whose user space makes both.

use std::future::Future;
use std::pin::Pin;

use mmu_core::{Format, HashedPages, Hpa};
use mmu_sim::arch::Arch;
use mmu_sim::engine::{Bed, Host, LockId, LockKind, LockMode, VcpuId, Work};
use mmu_sim::explore::Build;
use mmu_sim::protocols::hpt_switch::{Mode, PowerVm, Switch, SwitchError, configure};

type Configuring = Pin<Box<dyn Future<Output = Result<(), SwitchError>>>>;

/// How a VM comes to both kinds of tables, on formats that have them.
#[derive(Clone, Copy)]
pub(super) struct Both<A: Arch> {
    make: fn(&mut Build<'_, A>) -> PowerVm,
    configure: fn(Host<A::Two>, PowerVm, Mode) -> Configuring,
}

impl<A: Arch> Both<A>
where
    A::Two: HashedPages,
{
    /// Where the format has both. The order is that of Linux 6.6: all aging is under `mmu_lock`.
    pub(super) fn new() -> Self {
        let configure = |host: Host<A::Two>, vm: PowerVm, mode: Mode| -> Configuring {
            Box::pin(async move { configure(&host, &vm, mode, &Switch::BEFORE).await })
        };
        Self { make: |build| PowerVm::new(build, 1), configure }
    }
}

/// The tables of one VM.
#[derive(Clone, Copy)]
pub(super) struct Tables<F: Format> {
    vm: PowerVm,
    configure: fn(Host<F>, PowerVm, Mode) -> Configuring,
    /// User space's own: held from the first change to the last.
    changing: LockId,
    /// The tree that vCPUs have loaded at the start.
    pub(super) first: Hpa,
}

impl<F: Format> Tables<F> {
    pub(super) fn new<A: Arch<Two = F>>(build: &mut Build<'_, A>, both: Both<A>) -> Self {
        let (vm, first) = ((both.make)(build), build.root());
        Self { vm, configure: both.configure, changing: build.new_lock(LockKind::Spin), first }
    }

    /// A vCPU comes into `KVM_RUN`. It runs on the tree that the VM has by then; `loaded` is the one that it ran on before.
    pub(super) async fn enter(&self, host: &Host<F>, vcpu: VcpuId, loaded: &mut Hpa) {
        loop {
            if self.vm.vcpu_enters(host).await {
                if self.vm.mode(host).await == Mode::Radix {
                    break;
                }
                self.vm.vcpu_left(host).await;
            }
            host.lock(self.changing, LockMode::Write).await;
            host.unlock(self.changing).await;
        }
        let root = host.root().await;
        if std::mem::replace(loaded, root) != root {
            host.load_root(vcpu, root, 0).await;
        }
    }

    /// It leaves `KVM_RUN`.
    pub(super) async fn leave(&self, host: &Host<F>) {
        self.vm.vcpu_left(host).await;
    }

    /// To a hashed table, and back.
    pub(super) async fn there_and_back(&self, host: &Host<F>) {
        let configure = |mode| (self.configure)(host.clone(), self.vm, mode);
        host.lock(self.changing, LockMode::Write).await;
        if configure(Mode::Hashed).await.is_ok() {
            // vCPUs that look in find the hashed table, and leave.
            while configure(Mode::Radix).await.is_err() {
                host.spend(Work::Relax).await;
            }
        }
        host.unlock(self.changing).await;
    }
}
