//! Mutants: the fixed scenarios of a topic with steps of one kind gone wrong. Each kind has to be noticed by some scenario; by which topics says
//! what the others leave untested.

use mmu_sim::explore::{Budget, Cast, MemoryOrder, Mutation, Report, Shrinking, Strategy, Verdict};
use mmu_sim::rng::Seed;
use rayon::prelude::*;
use serde::Serialize;

use super::scenarios::{Topic, topics};
use super::{Exhibit, Variant};

/// The fixed scenarios of a topic with one kind of step gone wrong.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Mutant {
    /// The topic: a file of scenarios.
    pub topic: &'static str,
    /// What goes wrong.
    pub mutation: Mutation,
    /// Scenarios in which a step went wrong.
    pub tried: Vec<&'static str>,
    /// Those of them that noticed, with the invariant that they report.
    pub noticed_by: Vec<(&'static str, String)>,
    /// Why none did, if that is known.
    pub why: Option<String>,
}

impl Mutant {
    /// Whether nobody notices and nobody knows why.
    pub fn is_unexplained(&self) -> bool {
        self.noticed_by.is_empty() && self.why.is_none()
    }
}

/// Mutations that no scenario of any topic notices: nothing tests such steps.
pub fn survivors(mutants: &[Mutant]) -> Vec<Mutation> {
    let noticed = |mutation| mutants.iter().any(|mutant| mutant.mutation == mutation && !mutant.noticed_by.is_empty());
    Mutation::ALL.into_iter().filter(|&mutation| !noticed(mutation)).collect()
}

/// All mutants; each scenario is executed so often at most, with it and without.
pub fn mutants(schedules: u64, seed: Seed) -> Vec<Mutant> {
    let budget = Budget { schedules, seed, shrinking: Shrinking::Off };
    let all: Vec<_> = topics().into_iter().flat_map(|topic| Mutation::ALL.map(|mutation| (topic, mutation))).collect();
    all.into_par_iter().map(|(topic, mutation)| mutant(&topic, mutation, budget)).collect()
}

fn mutant(topic: &Topic, mutation: Mutation, budget: Budget) -> Mutant {
    let mut mutant = Mutant { topic: topic.name, mutation, tried: Vec::new(), noticed_by: Vec::new(), why: None };
    let (mut casts, mut mattered) = (Vec::new(), 0);
    for exhibit in topic.rows {
        let report = explored(exhibit, mutation, Some(mutation), budget);
        if report.stats.evaluations.mutated() == 0 {
            continue;
        }
        mutant.tried.push(exhibit.id);
        mattered += report.stats.evaluations.mattering();
        casts.push(exhibit.scenario(Variant::Fixed).cast());
        // Under weaker memory than it was written for, a scenario may break without any help.
        if let Some(failure) = report.failure
            && explored(exhibit, mutation, None, budget).verdict != Verdict::Broken
        {
            mutant.noticed_by.push((exhibit.id, failure.broken.invariant.to_string()));
        }
    }
    if mutant.noticed_by.is_empty() {
        mutant.why = computed(mutation, &casts, mattered).map(str::to_owned).or_else(|| {
            let known = topic.unnoticed.iter().find(|(known, _)| *known == mutation);
            known.map(|(_, why)| (*why).to_owned())
        });
    }
    mutant
}

/// Why nobody can notice: by who takes part in the scenarios that have such steps, and by how often a wrong one could have been told.
fn computed(mutation: Mutation, casts: &[Cast], mattered: u64) -> Option<&'static str> {
    if casts.is_empty() {
        return Some("no step of this kind");
    }
    if mattered > 0 {
        return None;
    }
    Some(match mutation {
        Mutation::OmitFlush | Mutation::LateFlush if casts.iter().all(|cast| cast.vcpus == 0) => {
            "no vCPU that could have cached anything"
        }
        Mutation::OmitFlush | Mutation::LateFlush => "no vCPU has run before",
        Mutation::PlainStore => "nobody else changes the entries: no compare-and-swap would have failed",
        Mutation::StaleRecheck => "no invalidation begins or ends in these scenarios",
        Mutation::OmitRcu => "no grace period begins while somebody would be in a read section",
        Mutation::OmitGrace => "nobody is in a read section when a grace period begins",
        Mutation::OmitLock => "nobody else wants the lock meanwhile",
        Mutation::RelaxedOrder => "the words of these accesses are nobody else's in these scenarios",
        Mutation::OmitFence => "one actor: nobody is there to see another order",
    })
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
