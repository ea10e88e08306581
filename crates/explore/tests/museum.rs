//! Every row of the museum: found with its defect, as what it is; broken in nothing without it. Small budgets; the whole tour is
//! `mmusim explore --museum`.

use mmu_explore::museum::{Architecture, Exhibit, UNSHOWN, Variant, exhibits, mutants, survivors};
use mmu_sim::explore::{Budget, Mutation, Strategy};
use mmu_sim::rng::Seed;
use rayon::prelude::*;

fn wrong(judge: impl Fn(&Exhibit) -> Option<String> + Sync + Send) -> Vec<String> {
    let mut wrong: Vec<String> = exhibits().par_iter().filter_map(judge).collect();
    wrong.sort();
    wrong
}

#[test]
fn every_defect_is_found_as_what_it_is() {
    let wrong = wrong(|exhibit| {
        let report = exhibit.scenario(Variant::Broken).explore(&Strategy::Portfolio, Budget::schedules(20_000));
        match &report.failure {
            None => Some(format!("{}: not found: {:?}", exhibit.id, report.stats)),
            Some(failure) if !exhibit.breaks.contains(&failure.broken.invariant) => {
                Some(format!("{}: {}", exhibit.id, failure.broken))
            }
            Some(_) => None,
        }
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_was_fixed_breaks_nothing() {
    let wrong = wrong(|exhibit| {
        let report = exhibit.scenario(Variant::Fixed).explore(&Strategy::Portfolio, Budget::schedules(1_000));
        let sound = report.is_sound();
        let table = report.failure.map(|failure| failure.table()).unwrap_or_default();
        (!sound).then(|| format!("{}: never evaluated {:?}: {table}", exhibit.id, report.unevaluated))
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_row_of_the_museum_has_a_scenario_or_a_reason() {
    let numbers = [("A", 30), ("G", 14), ("P", 12), ("T", 2), ("X", 47)];
    let all = numbers.into_iter().flat_map(|(letter, most)| (1..=most).map(move |n| format!("{letter}{n:02}")));
    let shown = |id: &str| exhibits().iter().any(|exhibit| exhibit.id == id);
    let unshown = |id: &str| UNSHOWN.iter().any(|row| row.id == id);
    let wrong: Vec<String> = all.filter(|id| shown(id) == unshown(id)).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    assert!(UNSHOWN.len() <= 5);
}

#[test]
fn what_runs_on_other_architectures_is_found_there_too() {
    let others: Vec<(Exhibit, Architecture)> = exhibits()
        .into_iter()
        .flat_map(|exhibit| exhibit.architectures().into_iter().map(move |arch| (exhibit, arch)))
        .filter(|(exhibit, arch)| exhibit.arch != arch.name())
        .collect();
    assert!(others.len() > 50, "{}", others.len());
    let wrong: Vec<String> = others
        .par_iter()
        .filter_map(|&(exhibit, arch)| {
            let explore = |variant, schedules| {
                let scenario = exhibit.scenario_on(arch, variant)?;
                Some(scenario.explore(&Strategy::Portfolio, Budget::schedules(schedules)))
            };
            let (broken, fixed) = (explore(Variant::Broken, 5_000)?, explore(Variant::Fixed, 200)?);
            let found = broken.failure.map(|failure| failure.broken);
            let right = found.as_ref().is_some_and(|broken| exhibit.breaks.contains(&broken.invariant));
            (!right || !fixed.is_sound()).then(|| format!("{} on {arch}: {found:?}, {:?}", exhibit.id, fixed.failure))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let x26 = exhibits().into_iter().find(|exhibit| exhibit.id == "X26").unwrap();
    assert!(x26.scenario_on(Architecture::Power, Variant::Fixed).is_none());
}

#[test]
fn every_mutation_is_noticed_and_an_unnoticed_one_is_named() {
    let mut all = mutants(60, Seed(1));
    assert_eq!(survivors(&all), []);
    let zap = |mutation| all.iter().find(|mutant| (mutant.topic, mutant.mutation) == ("zap", mutation)).unwrap();
    assert!(zap(Mutation::OmitFlush).noticed_by.contains(&("X20", "T4".to_owned())));
    for mutant in &mut all {
        assert!(mutant.noticed_by.iter().all(|(id, _)| mutant.tried.contains(id)));
        if mutant.mutation == Mutation::LateFlush {
            mutant.noticed_by.clear();
        }
    }
    assert_eq!(survivors(&all), [Mutation::LateFlush]);
}
