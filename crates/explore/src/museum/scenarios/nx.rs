//! NX huge pages and their recovery.

use mmu_core::{AccessKind, Cycles, GpaRange, PageSize};
use mmu_sim::engine::Bed;
use mmu_sim::engine::{ExitReason, Host, LockMode, VcpuId};
use mmu_sim::experiment::Populate;
use mmu_sim::explore::{Explorable, Invariant, Limits, Mutation, Scenario, SmallVm, Wait, access, read};
use mmu_sim::protocols::fault::{FaultPolicy, Faults};
use mmu_sim::protocols::nx::{MarkTime, NxDebt, NxMemory, NxPages, NxPolicy, NxYield};
use mmu_sim::protocols::split::LazySplit;

use super::super::formats::x86;
use super::super::{Exhibit, Make, Variant};
use super::{PAGE, TABLE, at_most, gpas};

pub(super) const EXHIBITS: &[Exhibit] = &[
    Exhibit {
        id: "X06",
        title: "recovery of NX pages forgets that the zap owes a flush",
        breaks: &[Invariant::T4, Invariant::R1],
        arch: "x86",
        build: Make::Own(x06),
    },
    Exhibit {
        id: "X07",
        title: "recovery of NX pages lets the zap yield while it owes a flush for an earlier page",
        breaks: &[Invariant::T4, Invariant::R1],
        arch: "x86",
        build: Make::Own(x07),
    },
    Exhibit {
        id: "X08",
        title: "recovery of NX pages keeps the last zap's debt only",
        breaks: &[Invariant::T4, Invariant::R1],
        arch: "x86",
        build: Make::Own(x08),
    },
    Exhibit {
        id: "X30",
        title: "a table is marked as split for execution after it can be found",
        breaks: &[Invariant::B4],
        arch: "x86",
        build: Make::Own(x30),
    },
    Exhibit {
        id: "X31",
        title: "recovery of NX pages holds the lock alone, and faults wait for all of it",
        breaks: &[Invariant::P6],
        arch: "x86",
        build: Make::Own(x31),
    },
];

/// Mutations that none of these scenarios notices, and why.
pub(super) const UNNOTICED: &[(Mutation, &str)] = &[(Mutation::OmitFence, super::FENCES)];

async fn thread<F: mmu_core::Format>(host: Host<F>, vcpu: VcpuId, nx: NxPages) {
    let policy = FaultPolicy { split: LazySplit::InPlace, ..FaultPolicy::new(LockMode::Read, PageSize::SIZE_2M) };
    let mut faults = Faults::with_hooks(vcpu, policy, NxMemory(nx));
    while let ExitReason::Fault(fault) = host.vcpu_run(vcpu).await.reason {
        // What could not be fixed is taken again.
        let _ = faults.handle(&host, fault).await;
    }
    faults.release(&host).await;
}

/// A guest executes from two huge pages, which are split for it; then they are recovered.
fn recovery(name: &str, policy: NxPolicy, fetches: &[u64], logged: Option<GpaRange>) -> Box<dyn Explorable> {
    let vm = SmallVm { populate: Populate::ByFaults, ..SmallVm::huge(2) };
    let fetches: Vec<_> = fetches.iter().map(|&at| access(AccessKind::Execute, at)).collect();
    let policy = NxPolicy { ratio: 1, ..policy };
    let scenario = Scenario::new(name, x86(), vm).pages([0, TABLE]).setup(move |build| {
        let nx = NxPages::new(build, policy);
        let vcpu = build.add_vcpu(fetches.clone());
        if let Some(slot) = logged {
            nx.start_logging(slot);
        }
        let handler = nx.clone();
        build.spawn_thread(vcpu, move |host| Box::pin(thread(host, vcpu, handler)));
        build.spawn("recovery", move |host| Box::pin(async move { nx.recovery_thread(&host, 1).await }));
    });
    Box::new(scenario.limits(Limits { ticks: 2, ..Limits::default() }))
}

/// Two vCPUs meet in a huge page that one of them executes from.
fn x30(variant: Variant) -> Box<dyn Explorable> {
    let policy =
        NxPolicy { mark: variant.choose(MarkTime::AfterLink, MarkTime::BeforeLink), ..NxPolicy::v6_1(Cycles(1)) };
    let vm = SmallVm { populate: Populate::ByFaults, ..SmallVm::huge(1) };
    Box::new(Scenario::new("X30", x86(), vm).pages([0, PAGE]).setup(move |build| {
        let nx = NxPages::new(build, policy);
        for accesses in [[access(AccessKind::Execute, 0)], [read(PAGE)]] {
            let (vcpu, handler) = (build.add_vcpu(accesses.to_vec()), nx.clone());
            build.spawn_thread(vcpu, move |host| Box::pin(thread(host, vcpu, handler)));
        }
        let nx = nx.clone();
        build.finally(Invariant::B4, move |_| {
            at_most(0, nx.found_unmarked(), "tables were found by a fault before they were marked")
        });
    }))
}

/// Two pages are recovered while another vCPU faults.
fn x31(variant: Variant) -> Box<dyn Explorable> {
    let base = variant.choose(NxPolicy::v6_1(Cycles(1)), NxPolicy::v6_18(Cycles(1)));
    let policy = NxPolicy { ratio: 1, ..base };
    let vm = SmallVm { populate: Populate::ByFaults, ..SmallVm::huge(3) };
    let scenario = Scenario::new("X31", x86(), vm).pages([0, TABLE, 2 * TABLE]).setup(move |build| {
        let nx = NxPages::new(build, policy);
        let fetches = [0, TABLE].map(|at| access(AccessKind::Execute, at)).to_vec();
        for accesses in [fetches, vec![read(2 * TABLE)]] {
            let (vcpu, handler) = (build.add_vcpu(accesses), nx.clone());
            build.spawn_thread(vcpu, move |host| Box::pin(thread(host, vcpu, handler)));
        }
        build.spawn("recovery", move |host| Box::pin(async move { nx.recovery_thread(&host, 1).await }));
    });
    // What a fault does under the lock, and a tenth of a table.
    Box::new(scenario.limits(Limits { ticks: 2, wait: Some(Wait::of_all(80)), ..Limits::default() }))
}

fn x06(variant: Variant) -> Box<dyn Explorable> {
    let debt = variant.choose(NxDebt::Forgotten, NxDebt::Merged);
    recovery("X06", NxPolicy { debt, ..NxPolicy::v6_1(Cycles(1)) }, &[0], None)
}

fn x07(variant: Variant) -> Box<dyn Explorable> {
    let yielding = variant.choose(NxYield::InsideZap, NxYield::BetweenPages);
    recovery("X07", NxPolicy { yielding, ..NxPolicy::v6_1(Cycles(1)) }, &[0, TABLE], None)
}

fn x08(variant: Variant) -> Box<dyn Explorable> {
    // The second page on the list is logged: it stays as it is, and owes nothing.
    let debt = variant.choose(NxDebt::LastOnly, NxDebt::Merged);
    let second = gpas(TABLE / PAGE, TABLE / PAGE);
    recovery("X08", NxPolicy { debt, ..NxPolicy::v6_1(Cycles(1)) }, &[0, TABLE], Some(second))
}
