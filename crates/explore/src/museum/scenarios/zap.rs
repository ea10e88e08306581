//! Walks that zap, yield and flush.

use mmu_core::{Bytes, PageSize};
use mmu_sim::engine::{LockId, LockMode};
use mmu_sim::experiment::Populate;
use mmu_sim::explore::{Explorable, Invariant, Leaks, Limits, Scenario, SmallVm, read};
use mmu_sim::protocols::iter::FlushOnYield;
use mmu_sim::protocols::zap::{Passes, TableFlush, ZapLock, ZapPolicy, zap_root};

use super::super::formats::{X86, x86};
use super::super::{Exhibit, Variant};
use super::{TABLE, plain, thread};

pub(super) const EXHIBITS: &[Exhibit] = &[Exhibit {
    id: "X20",
    title: "a yield leaves its RCU section before the flush that it owes",
    breaks: &[Invariant::R1],
    arch: "x86",
    build: x20,
}];

/// A guest in the first of two tables.
fn two_tables(name: &str) -> Scenario<X86> {
    let vm = SmallVm { memory: Bytes(2 * TABLE), page: PageSize::SIZE_4K, populate: Populate::Mapped };
    Scenario::new(name, x86(), vm).pages([0, TABLE])
}

fn x20(variant: Variant) -> Box<dyn Explorable> {
    let policy = ZapPolicy {
        flush: TableFlush::DeferredRcu,
        flush_on_yield: variant.choose(FlushOnYield::IfPendingAfterRcu, FlushOnYield::IfPending),
        passes: Passes::FourLevels,
        lock: ZapLock::Write,
        ..ZapPolicy::V5_18
    };
    let scenario = two_tables("X20").vcpu([read(0)], thread(plain())).actor("zap", move |host| {
        Box::pin(async move {
            let root = host.root().await;
            host.lock(LockId::MMU, LockMode::Write).await;
            zap_root(&host, root, &policy).await;
            host.unlock(LockId::MMU).await;
        })
    });
    Box::new(scenario.limits(Limits { ticks: 2, leaks: Leaks::Reported, ..Limits::default() }))
}
