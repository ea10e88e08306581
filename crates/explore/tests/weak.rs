//! What was fixed breaks nothing under other memory orders either: that of Arm and POWER, whatever a row's own architecture, and for what
//! runs on x86 that of its store buffers.

use mmu_explore::museum::{Architecture, Exhibit, Variant, exhibit, exhibits};
use mmu_sim::explore::{Budget, Explorable, Invariant, MemoryOrder, Mutation, Shrinking, Strategy};
use mmu_sim::rng::Seed;
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

/// The barriers of a request to reload a root, and of a refresh that looks at the count and then at the sequence.
#[test]
fn a_barrier_that_is_left_out_is_found() {
    let found = |id: &str| {
        let mut scenario = exhibit(id)?.scenario(Variant::Fixed);
        scenario.limits_mut().memory = MemoryOrder::Weak;
        scenario.limits_mut().mutation = Some(Mutation::OmitFence);
        let budget = Budget { schedules: 2_000, seed: Seed(1), shrinking: Shrinking::Off };
        scenario.explore(&Strategy::Portfolio, budget).failure.map(|failure| failure.broken.invariant)
    };
    assert_eq!(found("X23"), Some(Invariant::R1));
    for id in ["G04", "G14"] {
        assert_eq!(found(id), Some(Invariant::O2), "{id}");
    }
}
