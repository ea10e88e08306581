//! Roots: who keeps them alive, who tears them down, and what happens to them meanwhile.

use mmu_core::{Bytes, Cycles, PageSize};
use mmu_sim::engine::VcpuId;
use mmu_sim::experiment::Populate;
use mmu_sim::explore::{Build, Explorable, Invariant, Limits, Scenario, SmallVm, read};
use mmu_sim::protocols::roots::{
    AddressSpace, DebtScope, LastPut, LifeCycle, ObsoleteTest, RootPolicy, Roots, Step, UnmapRoots, WalkerPut, ZapGift,
};
use mmu_sim::protocols::workqueue::{Workqueue, WorkqueueSpec};
use mmu_sim::protocols::zap::{Passes, ZapPolicy};
use mmu_sim::workload::{GuestAccess, GuestWork};

use super::super::formats::{X86, x86};
use super::super::{Exhibit, Variant};
use super::{PAGE, TABLE, gpas, plain};

pub(super) const EXHIBITS: &[Exhibit] = &[
    Exhibit {
        id: "X05",
        title: "a flush owed for one root is forgotten by a yield in the next",
        breaks: &[Invariant::T4],
        arch: "x86",
        build: x05,
    },
    Exhibit {
        id: "X09",
        title: "a walk gives the last reference back by a decrement that never frees",
        breaks: &[Invariant::R3],
        arch: "x86",
        build: x09,
    },
    Exhibit {
        id: "X14",
        title: "the notifier skips invalid roots, one of which a zapper has yielded in",
        breaks: &[Invariant::T1],
        arch: "x86",
        build: x14,
    },
    Exhibit {
        id: "X15",
        title: "the last put of a root yields while it zaps, and the notifier does not see the root",
        breaks: &[Invariant::T1],
        arch: "x86",
        build: x15,
    },
    Exhibit {
        id: "X16",
        title: "the last put of a root zaps it without a break",
        breaks: &[Invariant::P3],
        arch: "x86",
        build: x16,
    },
    Exhibit {
        id: "X19",
        title: "a reference is put back by two: the worker that was given it, and the walker of invalid roots",
        breaks: &[Invariant::R2, Invariant::T5, Invariant::R1, Invariant::R4],
        arch: "x86",
        build: x19,
    },
    Exhibit {
        id: "X23",
        title: "a fault installs into a root that was invalidated and zapped",
        breaks: &[Invariant::R3, Invariant::R4, Invariant::T5],
        arch: "x86",
        build: x23,
    },
];

const LIMITS: Limits = Limits {
    steps: 6000,
    ticks: 1,
    allocation_failures: 0,
    memory: mmu_sim::explore::MemoryOrder::Sequential,
    leaks: mmu_sim::explore::Leaks::OfTheVm,
    mmu_lock: mmu_sim::engine::LockKind::ReadWrite,
    handover: mmu_sim::engine::Handover::AccessedAndDirty,
    stretch: None,
    livelock: None,
};

fn run(accesses: &[GuestAccess]) -> Step {
    Step::Run(GuestWork::List(accesses.to_vec()))
}

/// A VM whose vCPUs load and leave roots, and that ends when everybody has: what it is left with then has leaked.
fn vm(
    name: &str,
    policy: RootPolicy,
    vcpus: Vec<Vec<Step>>,
    tasks: impl Fn(&mut Build<'_, X86>, &Roots<arch_x86_ept::Ept>) + Send + Sync + 'static,
) -> Scenario<X86> {
    let small = SmallVm { memory: Bytes(2 * TABLE), page: PageSize::SIZE_4K, populate: Populate::Mapped };
    Scenario::new(name, x86(), small).pages([0, TABLE]).limits(LIMITS).setup(move |build| {
        let all: Vec<VcpuId> = vcpus.iter().map(|_| build.add_vcpu(Vec::new())).collect();
        let workers = WorkqueueSpec { processors: 1, ..WorkqueueSpec::KVM_5_18 };
        let queue = (policy.life == LifeCycle::WorkerZaps).then(|| Workqueue::start(build, workers));
        let roots = Roots::adopt(build, policy, queue);
        for (&vcpu, steps) in all.iter().zip(&vcpus) {
            roots.spawn_vcpu(build, vcpu, steps.clone(), plain());
        }
        tasks(build, &roots);
        roots.spawn_exit(build);
        // The root that the VM was built with goes with the others.
        let ended = roots.clone();
        build.finally(move |_| match ended.warnings() {
            0 => Ok(()),
            warnings => Err((Invariant::R2, format!("{warnings} references put that nobody held"))),
        });
    })
}

fn drop_range(build: &mut Build<'_, X86>, roots: &Roots<arch_x86_ept::Ept>, first: u64) {
    roots.spawn_task(build, "notifier", Cycles::ZERO, move |host, roots| {
        Box::pin(async move { roots.invalidate_range(&host, gpas(first, 1)).await })
    });
}

fn fast_zap(build: &mut Build<'_, X86>, roots: &Roots<arch_x86_ept::Ept>) {
    roots.spawn_task(build, "fast zap", Cycles::ZERO, |host, roots| {
        Box::pin(async move { roots.zap_all_fast(&host).await })
    });
}

fn x05(variant: Variant) -> Box<dyn Explorable> {
    let debt = variant.choose(DebtScope::PerRoot, DebtScope::Carried);
    let normal = vec![run(&[read(0), read(0)])];
    let smm = vec![Step::Enter(AddressSpace::SMM), run(&[read(PAGE)])];
    let policy = RootPolicy { debt, ..RootPolicy::R4 };
    Box::new(vm("X05", policy, vec![normal, smm], |build, roots| drop_range(build, roots, 0)))
}

fn x09(variant: Variant) -> Box<dyn Explorable> {
    let walker_put = variant.choose(WalkerPut::DecrementOnly, WalkerPut::PutRoot);
    let policy = RootPolicy { walker_put, ..RootPolicy::R1 };
    Box::new(vm("X09", policy, vec![vec![run(&[read(0)])]], |build, roots| drop_range(build, roots, 0)))
}

fn x14(variant: Variant) -> Box<dyn Explorable> {
    let unmap = variant.choose(UnmapRoots::ValidOnly, UnmapRoots::All);
    let policy = RootPolicy { unmap, ..RootPolicy::R4 };
    Box::new(vm("X14", policy, vec![vec![run(&[read(TABLE)])]], |build, roots| {
        fast_zap(build, roots);
        drop_range(build, roots, TABLE / PAGE);
    }))
}

fn x15(variant: Variant) -> Box<dyn Explorable> {
    let last_put = variant.choose(LastPut::Yields, LastPut::Unbroken);
    let zap = ZapPolicy { passes: Passes::FourLevels, ..RootPolicy::R1.zap };
    let policy = RootPolicy { last_put, zap, ..RootPolicy::R1 };
    let steps = vec![run(&[read(0)]), Step::ToggleWriteProtect];
    Box::new(vm("X15", policy, vec![steps], |build, roots| drop_range(build, roots, TABLE / PAGE)))
}

fn x16(variant: Variant) -> Box<dyn Explorable> {
    let policy = variant.choose(RootPolicy::R1, RootPolicy::R4);
    let scenario = vm("X16", policy, vec![vec![run(&[read(0)]), Step::ToggleWriteProtect]], |_, _| {});
    // One table of entries may be torn down at a stretch.
    Box::new(scenario.limits(Limits { stretch: Some(600), ..LIMITS }))
}

fn x19(variant: Variant) -> Box<dyn Explorable> {
    let gift = variant.choose(ZapGift::EveryInvalidRoot, ZapGift::Owned);
    let policy = RootPolicy { gift, ..RootPolicy::R2 };
    let steps = vec![run(&[read(0)]), Step::ToggleWriteProtect, run(&[read(0)])];
    Box::new(vm("X19", policy, vec![steps], fast_zap))
}

fn x23(variant: Variant) -> Box<dyn Explorable> {
    let stale = variant.choose(ObsoleteTest::Ignored, ObsoleteTest::Tested);
    let policy = RootPolicy { stale, ..RootPolicy::R4 };
    Box::new(vm("X23", policy, vec![vec![run(&[read(PAGE)])]], fast_zap))
}
