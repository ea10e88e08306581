//! What was fixed breaks nothing under other memory orders either: that of Arm and POWER, whatever a row's own architecture, and for what
//! runs on x86 that of its store buffers.

use mmu_explore::museum::{Architecture, Exhibit, Variant, exhibits};
use mmu_sim::explore::{Budget, Explorable, MemoryOrder, Strategy};
use rayon::prelude::*;

/// What each fixed scenario breaks under a memory order, with its schedule.
fn broken(
    memory: MemoryOrder,
    schedules: u64,
    scenario: impl Fn(&Exhibit) -> Option<Box<dyn Explorable>> + Sync,
) -> Vec<String> {
    let judge = |exhibit: &Exhibit| {
        let mut scenario = scenario(exhibit)?;
        scenario.limits_mut().memory = memory;
        let report = scenario.explore(&Strategy::Portfolio, Budget::schedules(schedules));
        report.failure.map(|failure| format!("{} under {}:\n{}", exhibit.id, memory.name(), failure.table()))
    };
    exhibits().par_iter().filter_map(judge).collect()
}

#[test]
fn what_was_fixed_breaks_nothing_under_weak_memory() {
    let wrong = broken(MemoryOrder::Weak, 500, |exhibit| Some(exhibit.scenario(Variant::Fixed)));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_was_fixed_breaks_nothing_with_store_buffers() {
    let on_x86 = |exhibit: &Exhibit| exhibit.scenario_on(Architecture::X86, Variant::Fixed);
    let wrong = broken(MemoryOrder::StoreBuffer, 200, on_x86);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
