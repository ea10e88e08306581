//! What faults map: sizes, permissions, cache maintenance, tables that lose a race.

use mmu_core::{AccessKind, Bytes, Gpa, PageSize};
use mmu_sim::engine::{Bed, GuestCaches, Host, LockMode};
use mmu_sim::experiment::Populate;
use mmu_sim::explore::{Explorable, Invariant, LeafState, Limits, Mutation, Scenario, SmallVm, access, read, write};
use mmu_sim::protocols::coalesce::{BlockFlush, CacheMaintenance, CoalescePolicy, Order, References};
use mmu_sim::protocols::fault::{
    ExecMapping, FaultHooks, FaultPolicy, Faults, FoldedLevels, LoggedBy, PaOffset, PageKind, PresentLeaf, RelaxFlush,
};
use mmu_sim::protocols::vcpu;

use super::super::formats::{arm, arm_64k, arm_without_forced_caching, x86};
use super::super::{Exhibit, Make, Variant};
use super::resize::{coalescing, half_mapped};
use super::{PAGE, TABLE, at_most, gpas, plain, thread};

pub(super) const EXHIBITS: &[Exhibit] = &[
    Exhibit {
        id: "A05",
        title: "a block is mapped at the level of its name, which is folded: the walk never comes there",
        breaks: &[Invariant::P2],
        arch: "arm64",
        build: Make::Own(a05),
    },
    Exhibit {
        id: "A10",
        title: "a subtree is walked and freed while the entry above it is broken",
        breaks: &[Invariant::N3],
        arch: "arm64",
        build: Make::Own(a10),
    },
    Exhibit {
        id: "A11",
        title: "every fault cleans the block, whether or not it maps it",
        breaks: &[Invariant::N3],
        arch: "arm64",
        build: Make::Own(a11),
    },
    Exhibit {
        id: "A12",
        title: "registers of a device are cleaned as if they were memory",
        breaks: &[Invariant::B7],
        arch: "arm64",
        build: Make::Own(a12),
    },
    Exhibit {
        id: "A16",
        title: "the host address goes on with the callback, the guest address with the walker",
        breaks: &[Invariant::T8],
        arch: "arm64",
        build: Make::Own(a16),
    },
    Exhibit {
        id: "A18",
        title: "who loses a race to relax a permission invalidates at a level that it does not know",
        breaks: &[Invariant::P2],
        arch: "arm64",
        build: Make::Own(a18),
    },
    Exhibit {
        id: "A22",
        title: "a block that takes a table's place costs the guest all its translations",
        breaks: &[Invariant::N3],
        arch: "arm64",
        build: Make::Own(a22),
    },
    Exhibit {
        id: "A30",
        title: "the table that lost the race for its place is never freed",
        breaks: &[Invariant::R3],
        arch: "arm64",
        build: Make::Own(a30),
    },
    Exhibit {
        id: "X41",
        title: "a leaf that can be written is replaced by one that cannot, and nobody flushes",
        breaks: &[Invariant::T2],
        arch: "x86",
        build: Make::Own(x41),
    },
];

/// Mutations that none of these scenarios notices, and why.
pub(super) const UNNOTICED: &[(Mutation, &str)] =
    &[(Mutation::RelaxedOrder, super::WHOLE), (Mutation::OmitFence, super::FENCES)];

fn a05(variant: Variant) -> Box<dyn Explorable> {
    let folded = variant.choose(FoldedLevels::ByName, FoldedLevels::Known);
    let fault = FaultPolicy { folded, ..FaultPolicy::new(LockMode::Read, PageSize::SIZE_512M) };
    let vm = SmallVm { memory: Bytes(1 << 29), page: PageSize::SIZE_512M, populate: Populate::ByFaults };
    let scenario = Scenario::new("A05", arm_64k(), vm).pages([0]).vcpu([read(0)], thread(fault));
    Box::new(scenario.limits(Limits { steps: 600, livelock: Some(Invariant::P2), ..Limits::default() }))
}

/// A full table is turned into a block.
fn a10(variant: Variant) -> Box<dyn Explorable> {
    let order = variant.choose(Order::UnmapFirst, Order::InstallFirst);
    let fault = coalescing(CoalescePolicy { order, ..CoalescePolicy::V5_14 }, LockMode::Write);
    let scenario = Scenario::new("A10", arm(), SmallVm::huge(1)).leaves(PageSize::SIZE_4K).state(LeafState::Protected);
    let scenario = scenario.vcpu([write(0)], thread(fault)).setup(|build| {
        // The flush, the maintenance and the new entry; a table has 512 more.
        build.finally(Invariant::N3, |ended| {
            at_most(16, ended.longest_break, "steps in which everybody who touches the range faults")
        });
    });
    Box::new(scenario.limits(Limits { steps: 8000, ..Limits::default() }))
}

/// Two vCPUs fault in one block.
fn a11(variant: Variant) -> Box<dyn Explorable> {
    let maintenance = variant.choose(CacheMaintenance::PerFault, CacheMaintenance::InMapHandler);
    let coalesce = CoalescePolicy { maintenance, ..CoalescePolicy::V6_6 };
    let fault = FaultPolicy { coalesce, ..FaultPolicy::new(LockMode::Read, PageSize::SIZE_2M) };
    let vm = SmallVm { populate: Populate::ByFaults, ..SmallVm::huge(1) };
    let scenario = Scenario::new("A11", arm_without_forced_caching(), vm).pages([0, PAGE]);
    Box::new(scenario.vcpu([read(0)], thread(fault)).vcpu([read(PAGE)], thread(fault)).setup(|build| {
        build.finally(Invariant::N3, |ended| at_most(TABLE, ended.cleaned_bytes, "bytes cleaned for one block"));
    }))
}

/// The first page is a device's, the second one memory.
#[derive(Clone, Copy, Debug)]
struct FirstIsDevice;

impl<F: mmu_core::Format> FaultHooks<F> for FirstIsDevice {
    fn kind(&self, gpa: Gpa) -> PageKind {
        if gpa.raw() < PAGE { PageKind::Device } else { PageKind::Memory }
    }
}

fn a12(variant: Variant) -> Box<dyn Explorable> {
    let maintenance = variant.choose(CacheMaintenance::InMapHandlerAnything, CacheMaintenance::InMapHandler);
    let coalesce = CoalescePolicy { maintenance, ..CoalescePolicy::V6_6 };
    let fault = FaultPolicy { coalesce, ..FaultPolicy::new(LockMode::Read, PageSize::SIZE_4K) };
    Box::new(Scenario::new("A12", arm_without_forced_caching(), SmallVm::unmapped(2)).setup(move |build| {
        build.add_device(gpas(0, 1));
        let id = build.add_vcpu(vec![read(PAGE), read(0)]);
        build.spawn_thread(id, move |host| {
            Box::pin(async move {
                host.set_guest_caches(id, GuestCaches::On).await;
                run(&host, id, fault, FirstIsDevice).await;
            })
        });
    }))
}

async fn run<F: mmu_core::Format>(
    host: &Host<F>,
    id: mmu_sim::engine::VcpuId,
    fault: FaultPolicy,
    hooks: impl FaultHooks<F>,
) {
    let mut faults = Faults::with_hooks(id, fault, hooks);
    // A failed run is counted; the scenario has nothing else to say.
    let _ = vcpu::run(host, id, &mut faults).await;
    faults.release(host).await;
}

/// One vCPU maps a block, logging begins, and another one splits the block.
fn a16(variant: Variant) -> Box<dyn Explorable> {
    let offset = variant.choose(PaOffset::AdvancedByCallback, PaOffset::FromIpa);
    let base = FaultPolicy::new(LockMode::Read, PageSize::SIZE_2M);
    let fault = FaultPolicy { offset, exec: ExecMapping::OnFetch, ..base };
    let vm = SmallVm { populate: Populate::ByFaults, ..SmallVm::huge(2) };
    Box::new(Scenario::new("A16", arm(), vm).pages([0, PAGE]).setup(move |build| {
        let logging = build.new_var(0);
        for accesses in [read(0), access(AccessKind::Execute, PAGE)] {
            let id = build.add_vcpu(vec![accesses]);
            build.spawn_thread(id, move |host| Box::pin(async move { run(&host, id, fault, LoggedBy(logging)).await }));
        }
        build.spawn("start logging", move |host| Box::pin(async move { host.store_release(logging, 1).await }));
    }))
}

/// Two vCPUs write to one write-protected page.
fn a18(variant: Variant) -> Box<dyn Explorable> {
    let relax = variant.choose(RelaxFlush::LocalUnknownLevel, RelaxFlush::Local);
    let fault = FaultPolicy { relax, ..FaultPolicy::new(LockMode::Read, PageSize::SIZE_4K) };
    let scenario = Scenario::new("A18", arm(), SmallVm::mapped(1)).state(LeafState::Protected);
    Box::new(scenario.vcpu([write(0)], thread(fault)).vcpu([write(0)], thread(fault)))
}

fn a22(variant: Variant) -> Box<dyn Explorable> {
    let flush = variant.choose(BlockFlush::Vmid, BlockFlush::Range);
    let fault = coalescing(CoalescePolicy { flush, ..CoalescePolicy::V6_6 }, LockMode::Read);
    Box::new(half_mapped("A22").vcpu([read(2 * PAGE)], thread(fault)).setup(|build| {
        build.finally(Invariant::N3, |ended| at_most(0, ended.vm_flushes, "flushes of all that the guest has cached"));
    }))
}

fn a30(variant: Variant) -> Box<dyn Explorable> {
    let references = variant.choose(References::ForgetsLoser, References::Exact);
    let coalesce = CoalescePolicy { references, ..CoalescePolicy::V6_6 };
    let fault = FaultPolicy { coalesce, ..FaultPolicy::new(LockMode::Read, PageSize::SIZE_4K) };
    let scenario = Scenario::new("A30", arm(), SmallVm::unmapped(2));
    Box::new(scenario.vcpu([read(0)], thread(fault)).vcpu([read(PAGE)], thread(fault)))
}

/// One vCPU writes a page that is logged; another one, which faulted on it too, only reads it.
fn x41(variant: Variant) -> Box<dyn Explorable> {
    let present = variant.choose(PresentLeaf::Replaced, PresentLeaf::ReplacedAndFlushed);
    let fault = FaultPolicy { present, ..plain() };
    Box::new(Scenario::new("X41", x86(), SmallVm::unmapped(1)).setup(move |build| {
        let logging = build.new_var(1);
        for accesses in [vec![write(0), write(0)], vec![read(0)]] {
            let id = build.add_vcpu(accesses);
            build.spawn_thread(id, move |host| Box::pin(async move { run(&host, id, fault, LoggedBy(logging)).await }));
        }
    }))
}
