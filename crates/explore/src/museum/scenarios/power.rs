//! POWER: switching between a radix tree and a hashed table.

use mmu_core::{GpaRange, PageSize};
use mmu_sim::engine::LockKind;
use mmu_sim::explore::{Explorable, Invariant, Leaks, Limits, MemoryOrder, Mutation, Scenario, SmallVm, Statistics};
use mmu_sim::protocols::aging::{AgingLock, AgingPolicy};
use mmu_sim::protocols::hpt_switch::{
    Grace, Mode, PowerVm, Publish, SmallLeaves, Switch, TableMemory, age, configure, map_radix,
};
use mmu_sim::protocols::young::Clear;

use super::super::formats::{Power, power};
use super::super::{Exhibit, Make, Variant};
use super::gpas;

pub(super) const EXHIBITS: &[Exhibit] = &[
    Exhibit {
        id: "P08",
        title: "a radix tree is freed while lockless walkers are in it",
        breaks: &[Invariant::T5, Invariant::R1],
        arch: "power",
        build: Make::Own(p08),
    },
    Exhibit {
        id: "P09",
        title: "the tree is said to be in use before its address is there",
        breaks: &[Invariant::T5, Invariant::B4],
        arch: "power",
        build: Make::Own(p09),
    },
    Exhibit {
        id: "P10",
        title: "a table that a leaf replaced is freed for any use while a lockless walker is in it",
        breaks: &[Invariant::T5, Invariant::R1],
        arch: "power",
        build: Make::Own(p10),
    },
    Exhibit {
        id: "P12",
        title: "a large leaf takes the place of small ones that are freed without being unmapped",
        breaks: &[Invariant::D1],
        arch: "power",
        build: Make::Own(p12),
    },
];

/// Mutations that none of these scenarios notices, and why.
pub(super) const UNNOTICED: &[(Mutation, &str)] = &[(Mutation::RelaxedOrder, super::WHOLE)];

const LOCKLESS: AgingPolicy = AgingPolicy { lock: AgingLock::Rcu, ..AgingPolicy::V6_13 };

fn limits(memory: MemoryOrder) -> Limits {
    Limits { mmu_lock: LockKind::Spin, leaks: Leaks::Ignored, memory, ..Limits::default() }
}

/// An ager looks at a page of the radix tree while somebody changes the tables.
fn aged(
    name: &str,
    policy: Switch,
    change: impl Fn(mmu_sim::engine::Host<arch_ppc_radix::Radix>, PowerVm) -> mmu_sim::engine::ActorFuture
    + Copy
    + Send
    + Sync
    + 'static,
) -> Scenario<Power> {
    let range: GpaRange = gpas(0, 1);
    let scenario = Scenario::new(name, power(), SmallVm::huge(1)).leaves(PageSize::SIZE_4K).pages([0]);
    scenario.setup(move |build| {
        let vm = PowerVm::new(build, 1);
        build.spawn("change", move |host| change(host, vm));
        build.spawn("ager", move |host| {
            Box::pin(async move {
                let _ = age(&host, &vm, range, Clear::Clear, &LOCKLESS, &policy).await;
            })
        });
    })
}

fn p08(variant: Variant) -> Box<dyn Explorable> {
    let policy = Switch { grace: variant.choose(Grace::None, Grace::Synchronize), ..Switch::AFTER };
    let scenario = aged("P08", policy, move |host, vm| {
        Box::pin(async move {
            let _ = configure(&host, &vm, Mode::Hashed, &policy).await;
        })
    });
    Box::new(scenario.limits(limits(MemoryOrder::Sequential)))
}

fn p09(variant: Variant) -> Box<dyn Explorable> {
    let policy = Switch { publish: variant.choose(Publish::Plain, Publish::Ordered), ..Switch::AFTER };
    let scenario = aged("P09", policy, move |host, vm| {
        Box::pin(async move {
            let _ = configure(&host, &vm, Mode::Hashed, &policy).await;
            let _ = configure(&host, &vm, Mode::Radix, &policy).await;
        })
    });
    Box::new(scenario.limits(limits(MemoryOrder::Weak)))
}

fn p10(variant: Variant) -> Box<dyn Explorable> {
    let policy = Switch { tables: variant.choose(TableMemory::AnyUse, TableMemory::SameKind), ..Switch::AFTER };
    let scenario = aged("P10", policy, move |host, vm| {
        Box::pin(async move {
            // What the host has there: a page of 2 MiB.
            let page = mmu_core::Hpa::new(1 << 32);
            let level = mmu_core::Level::new(1);
            let _ = map_radix(&host, &vm, mmu_core::Gpa::new(0), page, level, &policy).await;
        })
    });
    Box::new(scenario.limits(limits(MemoryOrder::Sequential)))
}

fn p12(variant: Variant) -> Box<dyn Explorable> {
    let leaves = variant.choose(SmallLeaves::FreedWithTable, SmallLeaves::Unmapped);
    let policy = Switch { leaves, tables: TableMemory::AnyUse, ..Switch::AFTER };
    let scenario = Scenario::new("P12", power(), SmallVm::huge(1)).leaves(PageSize::SIZE_4K).pages([0]);
    let scenario = scenario.setup(move |build| {
        let vm = PowerVm::new(build, 1);
        build.spawn("fault", move |host| {
            Box::pin(async move {
                let (page, level) = (mmu_core::Hpa::new(1 << 32), mmu_core::Level::new(1));
                let _ = map_radix(&host, &vm, mmu_core::Gpa::new(0), page, level, &policy).await;
            })
        });
    });
    Box::new(scenario.limits(Limits { statistics: Statistics::Booked, ..limits(MemoryOrder::Sequential) }))
}
