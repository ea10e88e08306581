//! Roots: who keeps them alive, who tears them down, and what happens to them meanwhile.

use mmu_core::{Bytes, Cycles, PageSize};
use mmu_sim::engine::{Bed, LockMode, VcpuId, Work};
use mmu_sim::experiment::Populate;
use mmu_sim::explore::{Build, Explorable, Invariant, Limits, Mutation, Scenario, SmallVm, Wait, Waiters, read};
use mmu_sim::protocols::dirty_log::{DirtyLog, DirtyPolicy, LogKind, SplitWhen, enable_in};
use mmu_sim::protocols::roots::{
    AddressSpace, DebtScope, InvalidRootFlush, LastPut, LifeCycle, ObsoleteTest, ReaderRoots, RootPage, RootPolicy,
    Roots, Step, UnmapRoots, VmRoots, WalkerPut, ZapGift,
};
use mmu_sim::protocols::split::SplitPolicy;
use mmu_sim::protocols::workqueue::{ProcessorId, Workqueue, WorkqueueSpec};
use mmu_sim::protocols::zap::{Passes, ZapLock, ZapPolicy};
use mmu_sim::workload::{GuestAccess, GuestWork};

use super::super::formats::{X86, x86};
use super::super::{Exhibit, Make, Variant};
use super::{PAGE, TABLE, at_most, gpas, plain};

pub(super) const EXHIBITS: &[Exhibit] = &[
    Exhibit {
        id: "X05",
        title: "a flush owed for one root is forgotten by a yield in the next",
        breaks: &[Invariant::T4],
        arch: "x86",
        build: Make::Own(x05),
    },
    Exhibit {
        id: "X09",
        title: "a walk gives the last reference back by a decrement that never frees",
        breaks: &[Invariant::R3],
        arch: "x86",
        build: Make::Own(x09),
    },
    Exhibit {
        id: "X14",
        title: "the notifier skips invalid roots, one of which a zapper has yielded in",
        breaks: &[Invariant::T1],
        arch: "x86",
        build: Make::Own(x14),
    },
    Exhibit {
        id: "X15",
        title: "the last put of a root yields while it zaps, and the notifier does not see the root",
        breaks: &[Invariant::T1],
        arch: "x86",
        build: Make::Own(x15),
    },
    Exhibit {
        id: "X16",
        title: "the last put of a root zaps it without a break",
        breaks: &[Invariant::P3],
        arch: "x86",
        build: Make::Own(x16),
    },
    Exhibit {
        id: "X19",
        title: "a reference is put back by two: the worker that was given it, and the walker of invalid roots",
        breaks: &[Invariant::R2, Invariant::T5, Invariant::R1, Invariant::R4],
        arch: "x86",
        build: Make::Own(x19),
    },
    Exhibit {
        id: "X23",
        title: "a fault installs into a root that was invalidated and zapped",
        breaks: &[Invariant::R5],
        arch: "x86",
        build: Make::Own(x23),
    },
    Exhibit {
        id: "X21",
        title: "roots are zapped by workers on any processor, where somebody waits for it",
        breaks: &[Invariant::P6],
        arch: "x86",
        build: Make::Own(x21),
    },
    Exhibit {
        id: "X22",
        title: "a root is destroyed when the last vCPU leaves it, and built anew when the guest comes back",
        breaks: &[Invariant::N3],
        arch: "x86",
        build: Make::Own(x22),
    },
    Exhibit {
        id: "X24",
        title: "a fault asks the root's page whether it is valid, and some roots have none",
        breaks: &[Invariant::R5],
        arch: "x86",
        build: Make::Own(x24),
    },
    Exhibit {
        id: "X37",
        title: "leaves zapped below an invalid root are flushed",
        breaks: &[Invariant::N3],
        arch: "x86",
        build: Make::Own(x37),
    },
    Exhibit {
        id: "X39",
        title: "an eager split goes into roots that are being torn down",
        breaks: &[Invariant::R5],
        arch: "x86",
        build: Make::Own(x39),
    },
    Exhibit {
        id: "X40",
        title: "readers take references to invalid roots, and split in them",
        breaks: &[Invariant::R5],
        arch: "x86",
        build: Make::Own(x40),
    },
];

/// Why nobody has to wait for readers of a root that is torn down.
const LEFT: &str = "tables that go hang below roots that vCPUs have left and no fault installs into; who is in a read section meanwhile is in a root in use";

/// Mutations that none of these scenarios notices, and why.
pub(super) const UNNOTICED: &[(Mutation, &str)] = &[
    (Mutation::OmitRcu, LEFT),
    (Mutation::OmitGrace, LEFT),
    (Mutation::RelaxedOrder, "the flags of workers guard lists that are Rust data, of which everybody sees the latest"),
    (Mutation::OmitFence, "rare: 2,000 executions of each row show it as R1, R5 and T4, some hundred do not"),
];

const LIMITS: Limits = Limits { steps: 6000, leaks: mmu_sim::explore::Leaks::OfTheVm, ..Limits::DEFAULT };

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
    vm_of(two_tables(name), policy, vcpus, tasks)
}

fn two_tables(name: &str) -> Scenario<X86> {
    let small = SmallVm { memory: Bytes(2 * TABLE), page: PageSize::SIZE_4K, populate: Populate::Mapped };
    Scenario::new(name, x86(), small).pages([0, TABLE])
}

/// The same with other memory.
fn vm_of(
    scenario: Scenario<X86>,
    policy: RootPolicy,
    vcpus: Vec<Vec<Step>>,
    tasks: impl Fn(&mut Build<'_, X86>, &Roots<arch_x86_ept::Ept>) + Send + Sync + 'static,
) -> Scenario<X86> {
    scenario.limits(LIMITS).setup(move |build| {
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
        build.finally(Invariant::R2, move |_| {
            at_most(0, u64::from(ended.warnings()), "references put that nobody held")
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

/// Sound is played on a processor while a memslot is deleted on another one.
fn x21(variant: Variant) -> Box<dyn Explorable> {
    let policy = variant.choose(RootPolicy::R2, RootPolicy::R3);
    // A step or two of whoever else is on the processor, not a table.
    let limits = Limits { wait: Some(Wait { steps: 100, of: Waiters::Named("sound") }), ..LIMITS };
    Box::new(two_tables("X21").limits(limits).setup(move |build| {
        let vcpu = build.add_vcpu(Vec::new());
        let queue = Workqueue::start(build, WorkqueueSpec { processors: 1, ..WorkqueueSpec::KVM_5_18 });
        let processor = queue.processor(ProcessorId(0));
        let roots = Roots::adopt(build, policy, Some(queue));
        roots.spawn_vcpu(build, vcpu, Vec::new(), plain());
        fast_zap(build, &roots);
        roots.spawn_task(build, "sound", Cycles::ZERO, move |host, _| {
            Box::pin(async move {
                host.lock(processor, LockMode::Write).await;
                host.unlock(processor).await;
            })
        });
        roots.spawn_exit(build);
    }))
}

fn x22(variant: Variant) -> Box<dyn Explorable> {
    let policy = variant.choose(RootPolicy::R1, RootPolicy::R4);
    let steps = vec![run(&[read(0)]), Step::ToggleWriteProtect, run(&[read(0)])];
    Box::new(vm("X22", policy, vec![steps], |build, _| {
        build.finally(Invariant::N3, |ended| {
            at_most(0, ended.tables_allocated, "tables made for a root that the guest had just left")
        });
    }))
}

fn x24(variant: Variant) -> Box<dyn Explorable> {
    let stale = variant.choose(ObsoleteTest::OwnPage, ObsoleteTest::Tested);
    let policy = RootPolicy { stale, page: RootPage::None, ..RootPolicy::R4 };
    Box::new(vm("X24", policy, vec![vec![run(&[read(PAGE)])]], fast_zap))
}

/// The notifier comes when the root is invalid, and nothing is mapped below another one.
fn x37(variant: Variant) -> Box<dyn Explorable> {
    let invalid_flush = variant.choose(InvalidRootFlush::Owed, InvalidRootFlush::NotOwed);
    let policy = RootPolicy { invalid_flush, ..RootPolicy::R4 };
    Box::new(vm("X37", policy, vec![Vec::new()], |build, roots| {
        let invalid = roots.snapshot()[0].invalid;
        fast_zap(build, roots);
        roots.spawn_task(build, "notifier", Cycles::ZERO, move |host, roots| {
            Box::pin(async move {
                while host.load_acquire(invalid).await == 0 {
                    host.spend(Work::Relax).await;
                }
                roots.invalidate_range(&host, gpas(TABLE / PAGE, 1)).await;
            })
        });
        build.finally(Invariant::N3, |ended| {
            at_most(0, ended.remote_flushes, "flushes of what nobody can use any more")
        });
    }))
}

/// Logging begins on a huge page while a worker zaps the root that a vCPU has left.
fn split_and_leave(name: &str, policy: RootPolicy, split: SplitPolicy) -> Box<dyn Explorable> {
    let steps = vec![Step::ToggleWriteProtect, run(&[read(0)])];
    let scenario = Scenario::new(name, x86(), SmallVm::huge(1)).pages([0]);
    Box::new(vm_of(scenario, policy, vec![steps], move |build, roots| {
        let log = DirtyLog::new(gpas(0, 512), build.new_var(0), PageSize::SIZE_4K, LogKind::Bitmap);
        let dirty = DirtyPolicy { split: SplitWhen::Eagerly(split), ..DirtyPolicy::X86_WRITE_PROTECT };
        roots.spawn_task(build, "start logging", Cycles::ZERO, move |host, roots| {
            Box::pin(async move {
                let _ = enable_in(&host, &VmRoots::List(roots), &log, &dirty).await;
            })
        });
    }))
}

fn x39(variant: Variant) -> Box<dyn Explorable> {
    let roots = variant.choose(UnmapRoots::All, UnmapRoots::ValidOnly);
    let split = SplitPolicy { roots, lock: ZapLock::Write, ..SplitPolicy::X86_5_18 };
    split_and_leave("X39", RootPolicy::R2, split)
}

fn x40(variant: Variant) -> Box<dyn Explorable> {
    let readers = variant.choose(ReaderRoots::Any, ReaderRoots::SkipInvalid);
    let split = SplitPolicy { roots: UnmapRoots::All, ..SplitPolicy::X86_5_18 };
    split_and_leave("X40", RootPolicy { readers, ..RootPolicy::R2 }, split)
}
