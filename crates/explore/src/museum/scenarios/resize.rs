//! Tables into blocks and blocks into tables.

use mmu_core::{Bytes, PageSize};
use mmu_sim::arch::Arch;
use mmu_sim::engine::{Bed, GuestCaches, LockId, LockMode};
use mmu_sim::experiment::Populate;
use mmu_sim::explore::{Explorable, Invariant, LeafState, Mutation, Scenario, SmallVm, read, write};
use mmu_sim::protocols::coalesce::{
    AfterReplace, BlockFlush, CacheMaintenance, CoalescePolicy, Freeing, References, Resize,
};
use mmu_sim::protocols::collapse::{CollapseFlush, CollapsePolicy, CollapseRecheck, CollapseTest, collapse_range};
use mmu_sim::protocols::fault::{
    FaultPolicy, Faults, FrozenEntries, LoggedBy, PermissionLock, RelaxFlush, TableInTheWay,
};
use mmu_sim::protocols::split::{LazySplit, Publish, SplitPolicy, eager_split};
use mmu_sim::protocols::unmap::{UnmapPolicy, unmap_range};
use mmu_sim::protocols::vcpu;

use super::super::formats::{Arm, X86, arm, arm_without_forced_caching, x86};
use super::super::{Exhibit, Make, Variant};
use super::{PAGE, TABLE, at_most, gpas, plain, thread, unless};

pub(super) const EXHIBITS: &[Exhibit] = &[
    Exhibit {
        id: "A01",
        title: "each update of a valid leaf takes one more reference to its table",
        breaks: &[Invariant::R3],
        arch: "arm64",
        build: Make::Own(a01),
    },
    Exhibit {
        id: "A02",
        title: "a table becomes a block and one page only is invalidated",
        breaks: &[Invariant::T7],
        arch: "arm64",
        build: Make::Own(a02),
    },
    Exhibit {
        id: "A07",
        title: "a permission fault splits a block while it holds only the read lock",
        breaks: &[Invariant::O3],
        arch: "arm64",
        build: Make::Own(a07),
    },
    Exhibit {
        id: "A09",
        title: "a block takes the place of a half-filled table, and nobody cleans what the table did not map",
        breaks: &[Invariant::B7],
        arch: "arm64",
        build: Make::Own(a09),
    },
    Exhibit {
        id: "A13",
        title: "the last reference of an unlinked table is forgotten",
        breaks: &[Invariant::R3],
        arch: "arm64",
        build: Make::Own(a13),
    },
    Exhibit {
        id: "A14",
        title: "who loses the race for a block puts his table twice",
        breaks: &[Invariant::R2],
        arch: "arm64",
        build: Make::Own(a14),
    },
    Exhibit {
        id: "A15",
        title: "a walk goes on in the table that it has just replaced and freed",
        breaks: &[Invariant::T5],
        arch: "arm64",
        build: Make::Own(a15),
    },
    Exhibit {
        id: "A17",
        title: "who loses a race to relax a permission skips the invalidation, and faults for ever",
        breaks: &[Invariant::P2],
        arch: "arm64",
        build: Make::Own(a17),
    },
    Exhibit {
        id: "A21",
        title: "a relaxed permission is announced to all processors",
        breaks: &[Invariant::N3],
        arch: "arm64",
        build: Make::Own(a21),
    },
    Exhibit {
        id: "A27",
        title: "a live table is replaced by a block without a break",
        breaks: &[Invariant::B1],
        arch: "arm64",
        build: Make::Own(a27),
    },
    Exhibit {
        id: "X10",
        title: "collapsing looks at leaves instead of tables, and never does anything",
        breaks: &[Invariant::N3],
        arch: "x86",
        build: Make::Own(x10),
    },
    Exhibit {
        id: "X11",
        title: "a huge leaf is cleared, then flushed: in between another fault fills the entry",
        breaks: &[Invariant::T7],
        arch: "x86",
        build: Make::Own(x11),
    },
    Exhibit {
        id: "X35",
        title: "collapsing flushes for every page",
        breaks: &[Invariant::N3],
        arch: "x86",
        build: Make::Own(x35),
    },
    Exhibit {
        id: "X36",
        title: "collapsing does not look whether the entry still points to the table",
        breaks: &[Invariant::T5],
        arch: "x86",
        build: Make::Own(x36),
    },
    Exhibit {
        id: "X47",
        title: "a table is linked before its entries are written",
        breaks: &[Invariant::B4],
        arch: "x86",
        build: Make::Own(x47),
    },
    Exhibit {
        id: "X13",
        title: "a store goes over an entry that somebody else has frozen",
        breaks: &[Invariant::O3],
        arch: "x86",
        build: Make::Own(x13),
    },
    Exhibit {
        id: "X38",
        title: "a table goes, and its first page only is flushed",
        breaks: &[Invariant::T4],
        arch: "arm64",
        build: Make::Own(x38),
    },
];

/// Mutations that none of these scenarios notices, and why.
pub(super) const UNNOTICED: &[(Mutation, &str)] =
    &[(Mutation::RelaxedOrder, super::WHOLE), (Mutation::OmitFence, super::FENCES)];

/// Memory in host pages of 2 MiB, of which the guest has two small ones mapped.
pub(super) fn half_mapped(name: &str) -> Scenario<Arm> {
    half_mapped_on(name, arm())
}

fn half_mapped_on(name: &str, arm: Arm) -> Scenario<Arm> {
    Scenario::new(name, arm, SmallVm::huge(1)).leaves(PageSize::SIZE_4K).pages([0, PAGE])
}

pub(super) fn coalescing(coalesce: CoalescePolicy, lock: LockMode) -> FaultPolicy {
    FaultPolicy { tables: TableInTheWay::Coalesce, coalesce, ..FaultPolicy::new(lock, PageSize::SIZE_2M) }
}

/// One vCPU uses small pages while another faults on a third page, which turns the table into a block.
fn coalesce(name: &str, policy: CoalescePolicy, lock: LockMode) -> Box<dyn Explorable> {
    let fault = coalescing(policy, lock);
    let scenario = half_mapped(name).vcpu([read(PAGE), read(PAGE)], thread(fault));
    Box::new(scenario.vcpu([read(2 * PAGE)], thread(fault)))
}

fn a02(variant: Variant) -> Box<dyn Explorable> {
    let flush = variant.choose(BlockFlush::FirstPage, BlockFlush::Range);
    coalesce("A02", CoalescePolicy { flush, ..CoalescePolicy::V6_6 }, LockMode::Read)
}

fn a13(variant: Variant) -> Box<dyn Explorable> {
    let references = variant.choose(References::ForgetsLast, References::Exact);
    coalesce("A13", CoalescePolicy { references, ..CoalescePolicy::V6_6 }, LockMode::Read)
}

fn a15(variant: Variant) -> Box<dyn Explorable> {
    let after = variant.choose(AfterReplace::FollowSaved, AfterReplace::Reload);
    let policy = CoalescePolicy { after, freeing: Freeing::Immediate, ..CoalescePolicy::V6_6 };
    coalesce("A15", policy, LockMode::Write)
}

fn a27(variant: Variant) -> Box<dyn Explorable> {
    let resize = variant.choose(Resize::Unchecked, Resize::BreakBeforeMake);
    coalesce("A27", CoalescePolicy { resize, ..CoalescePolicy::V6_6 }, LockMode::Read)
}

/// The guest that faults has its caches off.
fn a09(variant: Variant) -> Box<dyn Explorable> {
    let maintenance = variant.choose(CacheMaintenance::Skipped, CacheMaintenance::InMapHandler);
    let fault = coalescing(CoalescePolicy { maintenance, ..CoalescePolicy::V6_6 }, LockMode::Read);
    Box::new(half_mapped_on("A09", arm_without_forced_caching()).vcpu([read(2 * PAGE)], move |host, id| {
        Box::pin(async move {
            host.set_guest_caches(id, GuestCaches::Off).await;
            vcpu::thread(host, id, fault).await;
        })
    }))
}

/// vCPUs write to a write-protected block whose memslot is logged.
fn logged_writes(name: &str, fault: FaultPolicy, vcpus: u64) -> Box<dyn Explorable> {
    let scenario = Scenario::new(name, arm(), SmallVm::huge(1)).state(LeafState::Protected).pages([0, PAGE]);
    Box::new(scenario.setup(move |build| {
        let logging = build.new_var(1);
        for n in 0..vcpus {
            let id = build.add_vcpu(vec![write(n * PAGE)]);
            build.spawn_thread(id, move |host| {
                Box::pin(async move {
                    let mut faults = Faults::with_hooks(id, fault, LoggedBy(logging));
                    let _ = vcpu::run(&host, id, &mut faults).await;
                    faults.release(&host).await;
                })
            });
        }
    }))
}

fn a07(variant: Variant) -> Box<dyn Explorable> {
    let permission_lock = variant.choose(PermissionLock::ReadAlways, PermissionLock::Same);
    let base = FaultPolicy::new(LockMode::Write, PageSize::SIZE_2M);
    let fault = FaultPolicy { permission_lock, coalesce: CoalescePolicy::V5_14, ..base };
    logged_writes("A07", fault, 1)
}

fn a14(variant: Variant) -> Box<dyn Explorable> {
    let references = variant.choose(References::PutTwice, References::Exact);
    let coalesce = CoalescePolicy { references, ..CoalescePolicy::V6_6 };
    logged_writes("A14", FaultPolicy { coalesce, ..FaultPolicy::new(LockMode::Read, PageSize::SIZE_2M) }, 2)
}

/// A write to a write-protected page, whose table becomes empty afterwards.
fn a01(variant: Variant) -> Box<dyn Explorable> {
    let references = variant.choose(References::ExtraPerUpdate, References::Exact);
    let coalesce = CoalescePolicy { references, ..CoalescePolicy::V6_6 };
    let fault = FaultPolicy { coalesce, ..FaultPolicy::new(LockMode::Read, PageSize::SIZE_4K) };
    let scenario = Scenario::new("A01", arm(), SmallVm::mapped(1)).state(LeafState::Protected);
    Box::new(scenario.vcpu([write(0)], move |host, id| {
        Box::pin(async move {
            vcpu::thread(host.clone(), id, fault).await;
            unmap_range(&host, gpas(0, 1), UnmapPolicy::V6_6).await;
        })
    }))
}

fn a21(variant: Variant) -> Box<dyn Explorable> {
    let relax = variant.choose(RelaxFlush::Broadcast, RelaxFlush::Local);
    let fault = FaultPolicy { relax, ..FaultPolicy::new(LockMode::Read, PageSize::SIZE_4K) };
    let scenario = Scenario::new("A21", arm(), SmallVm::mapped(1)).state(LeafState::Protected);
    Box::new(scenario.vcpu([write(0)], thread(fault)).setup(|build| {
        build.finally(Invariant::N3, |ended| {
            at_most(0, ended.remote_flushes, "broadcasts, although others find out for themselves")
        });
    }))
}

/// Two vCPUs write to one write-protected page.
fn a17(variant: Variant) -> Box<dyn Explorable> {
    let relax = variant.choose(RelaxFlush::LocalIfChanged, RelaxFlush::Local);
    let fault = FaultPolicy { relax, ..FaultPolicy::new(LockMode::Read, PageSize::SIZE_4K) };
    let scenario = Scenario::new("A17", arm(), SmallVm::mapped(1)).state(LeafState::Protected);
    Box::new(scenario.vcpu([write(0)], thread(fault)).vcpu([write(0)], thread(fault)))
}

/// Logging has ended, and small pages become huge ones again.
fn collapsing(name: &str, tables: u64, policy: CollapsePolicy) -> Scenario<X86> {
    let vm = SmallVm { memory: Bytes(tables * TABLE), page: PageSize::SIZE_2M, populate: Populate::Mapped };
    let scenario = Scenario::new(name, x86(), vm).leaves(PageSize::SIZE_4K);
    scenario.pages((0..tables).map(|n| n * TABLE)).setup(move |build| {
        let collapsed = std::rc::Rc::new(std::cell::Cell::new(0));
        let count = collapsed.clone();
        build.spawn("collapse", move |host| {
            Box::pin(async move {
                let root = host.root().await;
                host.lock(LockId::MMU, policy.lock.mode()).await;
                let done =
                    collapse_range(&host, root, gpas(0, tables * TABLE / PAGE), PageSize::SIZE_2M, &policy).await;
                host.unlock(LockId::MMU).await;
                count.set(done.tables + done.raced);
            })
        });
        build.finally(Invariant::N3, move |ended| {
            unless(collapsed.get() == 0, "a walk over collapsible tables has done nothing")?;
            at_most(2, ended.remote_flushes, "flushes; one at the end would do")
        });
    })
}

fn x10(variant: Variant) -> Box<dyn Explorable> {
    let test = variant.choose(CollapseTest::Leaves, CollapseTest::Tables);
    Box::new(collapsing("X10", 1, CollapsePolicy { test, ..CollapsePolicy::X86_6_13 }))
}

fn x35(variant: Variant) -> Box<dyn Explorable> {
    let flush = variant.choose(CollapseFlush::Each, CollapseFlush::Batched);
    Box::new(collapsing("X35", 4, CollapsePolicy { flush, ..CollapsePolicy::X86_6_13 }))
}

/// Two collapse the same table, sharing the lock.
fn x36(variant: Variant) -> Box<dyn Explorable> {
    let recheck = variant.choose(CollapseRecheck::None, CollapseRecheck::SameEntry);
    let policy = CollapsePolicy { recheck, ..CollapsePolicy::X86_6_13 };
    let collapse = move |host: mmu_sim::engine::Host<arch_x86_ept::Ept>| -> mmu_sim::engine::ActorFuture {
        Box::pin(async move {
            let root = host.root().await;
            host.lock(LockId::MMU, LockMode::Read).await;
            let _ = collapse_range(&host, root, gpas(0, 512), PageSize::SIZE_2M, &policy).await;
            host.unlock(LockId::MMU).await;
        })
    };
    let scenario = Scenario::new("X36", x86(), SmallVm::huge(1)).leaves(PageSize::SIZE_4K).pages([0, PAGE]);
    let fault = FaultPolicy::new(LockMode::Read, PageSize::SIZE_4K);
    Box::new(scenario.vcpu([read(0)], thread(fault)).actor("first", collapse).actor("second", collapse))
}

/// Two writes to a protected huge page, which is split for them; a third vCPU reads it.
fn x11(variant: Variant) -> Box<dyn Explorable> {
    let split = variant.choose(LazySplit::ClearThenFlush, LazySplit::Zap);
    let fault = FaultPolicy { split, ..FaultPolicy::new(LockMode::Read, PageSize::SIZE_2M) };
    let scenario = Scenario::new("X11", x86(), SmallVm::huge(1)).state(LeafState::Protected).pages([0, PAGE]);
    Box::new(scenario.setup(move |build| {
        let logging = build.new_var(1);
        for program in [vec![write(0)], vec![write(PAGE)], vec![read(PAGE)]] {
            let id = build.add_vcpu(program);
            build.spawn_thread(id, move |host| {
                Box::pin(async move {
                    let mut faults = Faults::with_hooks(id, fault, LoggedBy(logging));
                    let _ = vcpu::run(&host, id, &mut faults).await;
                    faults.release(&host).await;
                })
            });
        }
    }))
}

fn x47(variant: Variant) -> Box<dyn Explorable> {
    let publish = variant.choose(Publish::LinkThenFill, Publish::FillThenLink);
    let policy = SplitPolicy { publish, ..SplitPolicy::X86_5_18 };
    let scenario = Scenario::new("X47", x86(), SmallVm::huge(1)).pages([0, PAGE]);
    let scenario = scenario.vcpu([read(PAGE)], thread(FaultPolicy::new(LockMode::Read, PageSize::SIZE_4K)));
    Box::new(scenario.actor("eager split", move |host| {
        Box::pin(async move {
            let root = host.root().await;
            host.lock(LockId::MMU, policy.lock.mode()).await;
            let _ = eager_split(&host, root, gpas(0, 512), PageSize::SIZE_4K, &policy).await;
            host.unlock(LockId::MMU).await;
        })
    }))
}

/// A table with two pages is zapped so that a huge page can be mapped, while a vCPU uses or wants one of its pages.
fn zapped<A: Arch>(name: &str, arch: A, flush: CollapseFlush, at: u64, fault: FaultPolicy) -> Box<dyn Explorable> {
    let policy = CollapsePolicy { flush, ..CollapsePolicy::X86_5_14 };
    let scenario = Scenario::new(name, arch, SmallVm::huge(1)).leaves(PageSize::SIZE_4K).pages([0, PAGE]);
    Box::new(scenario.vcpu([read(at)], thread(fault)).actor("collapse", move |host| {
        Box::pin(async move {
            let root = host.root().await;
            host.lock(LockId::MMU, policy.lock.mode()).await;
            let _ = collapse_range(&host, root, gpas(0, 512), PageSize::SIZE_2M, &policy).await;
            host.unlock(LockId::MMU).await;
        })
    }))
}

fn x13(variant: Variant) -> Box<dyn Explorable> {
    let frozen = variant.choose(FrozenEntries::Overwritten, FrozenEntries::LeftAlone);
    zapped("X13", x86(), CollapseFlush::Each, 2 * PAGE, FaultPolicy { frozen, ..plain() })
}

fn x38(variant: Variant) -> Box<dyn Explorable> {
    let flush = variant.choose(CollapseFlush::EachFirstPage, CollapseFlush::Each);
    // INVEPT knows no ranges: these are the processors whose hypervisor below, or whose instructions, do.
    zapped("X38", arm(), flush, PAGE, plain())
}
