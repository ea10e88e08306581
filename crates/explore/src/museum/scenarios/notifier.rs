//! Faults against invalidations: what may be installed, and when.

use mmu_sim::explore::{Explorable, Invariant, Scenario, SmallVm, read};
use mmu_sim::protocols::fault::{FaultPolicy, SnapshotTime};
use mmu_sim::protocols::notifier::{Notifier, NotifierPolicy};
use mmu_sim::protocols::primary::madvise_dontneed;

use super::super::formats::{X86, x86};
use super::super::{Exhibit, Variant};
use super::{hvas, plain, thread};

pub(super) const EXHIBITS: &[Exhibit] = &[Exhibit {
    id: "G13",
    title: "the sequence is read after the page was looked up",
    breaks: &[Invariant::O1],
    arch: "x86",
    build: g13,
}];

/// One vCPU faults on a page that is being dropped.
fn fault_and_drop(name: &str, fault: FaultPolicy, notifier: NotifierPolicy) -> Scenario<X86> {
    Scenario::new(name, x86(), SmallVm::unmapped(2)).vcpu([read(0)], thread(fault)).actor("madvise", move |host| {
        Box::pin(async move {
            let notifier = Notifier::new(notifier);
            madvise_dontneed(&host, &notifier, hvas(0, 1)).await;
        })
    })
}

fn g13(variant: Variant) -> Box<dyn Explorable> {
    let snapshot = variant.choose(SnapshotTime::AfterLookup, SnapshotTime::BeforeLookup);
    Box::new(fault_and_drop("G13", FaultPolicy { snapshot, ..plain() }, NotifierPolicy::V6_8))
}
