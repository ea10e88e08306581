//! Walks that unmap, age and destroy tables; how far they go, how long, and who else is inside.

use std::cell::Cell;
use std::rc::Rc;

use mmu_core::{Bytes, Format, Gpa, GpaRange, Level, PageSize};
use mmu_sim::arch::Arch;
use mmu_sim::engine::LockMode;
use mmu_sim::experiment::Populate;
use mmu_sim::explore::{Explorable, Invariant, LeafState, Limits, Mutation, Scenario, SmallVm, Wait, read};
use mmu_sim::protocols::aging::{AgingLock, AgingPolicy, TestedRange, clear_young, test_young};
use mmu_sim::protocols::fault::FaultPolicy;
use mmu_sim::protocols::teardown::forget;
use mmu_sim::protocols::unmap::{EmptyTable, Recycling, UnmapPolicy, WalkBounds, recycle, unmap_range};
use mmu_sim::protocols::vcpu;
use mmu_sim::protocols::vm::{Destruction, FailedCreation, create, free_tables};

use super::super::{Exhibit, Variant};
use super::{PAGE, TABLE, gpas, plain, thread, unless};

pub(super) const EXHIBITS: &[Exhibit] = &[
    Exhibit {
        id: "A03",
        title: "a walk that starts inside a block steps by whole blocks from there, past what begins the next one",
        breaks: &[Invariant::P1],
        arch: "arm64",
        build: any!(a03),
    },
    Exhibit {
        id: "A04",
        title: "the end of a walk is counted from its rounded start, and comes a page too early",
        breaks: &[Invariant::P1],
        arch: "arm64",
        build: any!(a04),
    },
    Exhibit {
        id: "A06",
        title: "who asks whether a page is young is answered about no page",
        breaks: &[Invariant::D5],
        arch: "arm64",
        build: any!(a06),
    },
    Exhibit {
        id: "A08",
        title: "what a root entry covers is unmapped without a break",
        breaks: &[Invariant::P3],
        arch: "arm64",
        build: any!(a08),
    },
    Exhibit {
        id: "A23",
        title: "tables are destroyed with breaks while others still find them",
        breaks: &[Invariant::T5],
        arch: "arm64",
        build: any!(a23),
    },
    Exhibit {
        id: "A24",
        title: "a VM that could not be made keeps its tables",
        breaks: &[Invariant::R3],
        arch: "arm64",
        build: any!(a24),
    },
    Exhibit {
        id: "A26",
        title: "a table that became empty is freed while a walker without the lock is in it",
        breaks: &[Invariant::T5, Invariant::R1],
        arch: "arm64",
        build: any!(a26),
    },
    Exhibit {
        id: "A29",
        title: "the tables of a nested guest are emptied while a vCPU is loaded, all under the lock",
        breaks: &[Invariant::P6],
        arch: "arm64",
        build: any!(a29),
    },
];

/// Mutations that none of these scenarios notices, and why.
pub(super) const UNNOTICED: &[(Mutation, &str)] = &[(Mutation::OmitFence, super::FENCES)];

/// Small pages in so many tables, one in each.
fn sparse<A: Arch>(arch: A, name: &str, tables: u64, stride: u64) -> Scenario<A> {
    let vm = SmallVm { memory: Bytes(tables * stride), page: PageSize::SIZE_4K, populate: Populate::Mapped };
    Scenario::new(name, arch, vm).pages((0..tables).map(|n| n * stride))
}

/// All leaves of the range are gone when the walk has returned.
fn unmapped<A: Arch>(scenario: Scenario<A>, range: GpaRange, policy: UnmapPolicy, leaves: u64) -> Box<dyn Explorable> {
    let scenario = scenario.actor("unmap", move |host| {
        Box::pin(async move {
            unmap_range(&host, range, policy).await;
        })
    });
    Box::new(scenario.setup(move |build| {
        build.finally(Invariant::P1, move |ended| {
            let found = ended.zapped_leaves;
            unless(found != leaves, &format!("the walk has come to {found} leaves of {leaves}"))
        });
    }))
}

fn a03<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let bounds = variant.choose(WalkBounds::StepsUnaligned, WalkBounds::Rounded);
    let vm = SmallVm { memory: Bytes(2 * TABLE), page: PageSize::SIZE_4K, populate: Populate::Mapped };
    let scenario = Scenario::new("A03", arch, vm).pages([TABLE]);
    unmapped(scenario, gpas(1, 2 * TABLE / PAGE - 1), UnmapPolicy { bounds, ..UnmapPolicy::V6_6 }, 1)
}

fn a04<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let bounds = variant.choose(WalkBounds::EndFromRoundedStart, WalkBounds::Rounded);
    let range = GpaRange::new(Gpa::new(PAGE / 2), Bytes(PAGE));
    let scenario = Scenario::new("A04", arch, SmallVm::mapped(2));
    unmapped(scenario, range, UnmapPolicy { bounds, ..UnmapPolicy::V6_6 }, 2)
}

/// A page is accessed, and looked at.
fn a06<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let tested = variant.choose(TestedRange::Empty, TestedRange::Asked);
    let policy = AgingPolicy { tested, ..AgingPolicy::V6_12 };
    let scenario = Scenario::new("A06", arch, SmallVm::mapped(1)).state(LeafState::Untouched);
    Box::new(scenario.setup(move |build| {
        let id = build.add_vcpu(vec![read(0)]);
        let hidden = Rc::new(Cell::new(false));
        let seen = hidden.clone();
        mmu_sim::engine::Bed::spawn_thread(build, id, move |host| {
            Box::pin(async move {
                vcpu::thread(host.clone(), id, plain()).await;
                seen.set(test_young(&host, gpas(0, 1), &policy).await.young == 0);
            })
        });
        build.finally(Invariant::D5, move |_| unless(hidden.get(), "the page was accessed, and looks old"));
    }))
}

fn a08<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let gib = PageSize::SIZE_1G.bytes();
    let chunk = Bytes(variant.choose(512 * gib, gib));
    let tables = entries(&arch, Level::LAST) + entries(&arch, Level::LAST.up());
    let scenario = sparse(arch, "A08", 2, gib).actor("unmap", move |host| {
        Box::pin(async move {
            let range = GpaRange::new(Gpa::new(0), Bytes(2 * gib));
            unmap_range(&host, range, UnmapPolicy { chunk, ..UnmapPolicy::V6_6 }).await;
        })
    });
    // What one gibibyte with one page in it takes: empty entries are visited as well.
    Box::new(scenario.limits(Limits { stretch: Some(12 + tables), ..Limits::default() }))
}

/// Entries of a table of this level.
fn entries<A: Arch>(arch: &A, level: Level) -> u64 {
    arch.two().geometry().entries(level) as u64
}

/// A VM ends while the notifier's release unmaps it.
fn a23<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let how = variant.choose(Destruction::Rescheduling, Destruction::DetachedFirst);
    let scenario = Scenario::new("A23", arch, SmallVm::mapped(1)).actor("destroy", move |host| {
        Box::pin(async move {
            free_tables(&host, how).await;
        })
    });
    Box::new(scenario.actor("release", |host| {
        Box::pin(async move {
            unmap_range(&host, gpas(0, 1), UnmapPolicy::V6_6).await;
        })
    }))
}

fn a24<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let failed = variant.choose(FailedCreation::LeavesThem, FailedCreation::FreesTables);
    let scenario = Scenario::new("A24", arch, SmallVm::unmapped(1)).actor("create a VM", move |host| {
        Box::pin(async move {
            if let Some(root) = create(&host, failed).await {
                forget(&host, root, host.format().geometry().root()).await;
            }
        })
    });
    Box::new(scenario.limits(Limits { allocation_failures: 1, ..Limits::default() }))
}

fn a26<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let empty = variant.choose(EmptyTable::AtOnce, EmptyTable::AfterGrace);
    let scenario = Scenario::new("A26", arch, SmallVm::mapped(1)).actor("unmap", move |host| {
        Box::pin(async move {
            unmap_range(&host, gpas(0, 1), UnmapPolicy { empty, ..UnmapPolicy::V6_6 }).await;
        })
    });
    Box::new(scenario.actor("ager", |host| {
        Box::pin(async move {
            let lockless = AgingPolicy { lock: AgingLock::Rcu, ..AgingPolicy::V6_13 };
            clear_young(&host, gpas(0, 1), &lockless).await;
        })
    }))
}

/// A vCPU faults while the tables of a nested guest are given to another one.
fn a29<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let when = variant.choose(Recycling::InLoad, Recycling::OnRequest);
    let fault = FaultPolicy::new(LockMode::Read, PageSize::SIZE_4K);
    let table = entries(&arch, Level::LAST);
    let scenario = sparse(arch, "A29", 4, TABLE).vcpu([read(PAGE)], thread(fault)).actor("vcpu load", move |host| {
        Box::pin(async move {
            let policy = UnmapPolicy { chunk: Bytes(TABLE), ..UnmapPolicy::V6_6 };
            recycle(&host, gpas(0, 4 * TABLE / PAGE), when, policy).await;
        })
    });
    // What one table with one page in it takes, and its flush.
    Box::new(scenario.limits(Limits { wait: Some(Wait::of_all(30 + table)), ..Limits::default() }))
}
