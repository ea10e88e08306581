//! Mutants: the fixed scenarios of a topic with steps of one kind gone wrong. Each has to be noticed by one of them.

use mmu_sim::explore::{Budget, MemoryOrder, Mutation, Report, Shrinking, Strategy, Verdict};
use mmu_sim::rng::Seed;
use rayon::prelude::*;
use serde::Serialize;

use super::scenarios::topics;
use super::{Exhibit, Variant};

/// Mutants that nothing notices, and why that is right.
const EXPLAINED: &[(&str, Mutation, &str)] = &[];

/// The protocols of a topic with one kind of step gone wrong.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Mutant {
    /// The topic: a file of scenarios.
    pub topic: &'static str,
    /// What goes wrong.
    pub mutation: Mutation,
    /// Scenarios in which a step went wrong.
    pub tried: Vec<&'static str>,
    /// Those of them that noticed, with the invariant that they report.
    pub killed_by: Vec<(&'static str, String)>,
    /// Why nobody has to notice.
    pub explained: Option<&'static str>,
}

impl Mutant {
    /// There was something to notice, nobody noticed, and nobody knows why.
    pub fn survives(&self) -> bool {
        !self.tried.is_empty() && self.killed_by.is_empty() && self.explained.is_none()
    }
}

/// All mutants; each scenario is executed so often at most, with it and without.
pub fn mutants(schedules: u64, seed: Seed) -> Vec<Mutant> {
    let budget = Budget { schedules, seed, shrinking: Shrinking::Off };
    let all: Vec<_> =
        topics().into_iter().flat_map(|topic| Mutation::ALL.map(|mutation| (topic.0, topic.1, mutation))).collect();
    all.into_par_iter().map(|(topic, exhibits, mutation)| mutant(topic, exhibits, mutation, budget)).collect()
}

fn mutant(topic: &'static str, exhibits: &[Exhibit], mutation: Mutation, budget: Budget) -> Mutant {
    let explained = EXPLAINED.iter().find(|row| (row.0, row.1) == (topic, mutation)).map(|row| row.2);
    let mut mutant = Mutant { topic, mutation, tried: Vec::new(), killed_by: Vec::new(), explained };
    for exhibit in exhibits {
        let report = explored(exhibit, mutation, Some(mutation), budget);
        if report.stats.evaluations.mutated() == 0 {
            continue;
        }
        mutant.tried.push(exhibit.id);
        // Under weaker memory than it was written for, a scenario may break without any help.
        if let Some(failure) = report.failure
            && explored(exhibit, mutation, None, budget).verdict != Verdict::Broken
        {
            mutant.killed_by.push((exhibit.id, failure.broken.invariant.to_string()));
        }
    }
    mutant
}

/// The fixed scenario under the memory order that shows `shown`, with `mutation`.
fn explored(exhibit: &Exhibit, shown: Mutation, mutation: Option<Mutation>, budget: Budget) -> Report {
    let mut scenario = exhibit.scenario(Variant::Fixed);
    let limits = scenario.limits_mut();
    limits.mutation = mutation;
    if matches!(shown, Mutation::RelaxedOrder | Mutation::OmitFence) {
        limits.memory = MemoryOrder::Weak;
    }
    scenario.explore(&Strategy::Portfolio, budget)
}
