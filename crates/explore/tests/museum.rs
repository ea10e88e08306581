//! Every row of the museum: found with its defect, as what it is; broken in nothing without it. Small budgets; the whole tour is
//! `mmusim explore --museum`.

use mmu_explore::museum::{Exhibit, Variant, exhibits};
use mmu_sim::explore::{Budget, Strategy, Verdict};
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
        let table = report.failure.map(|failure| failure.table()).unwrap_or_default();
        (report.verdict == Verdict::Broken).then(|| format!("{}: {table}", exhibit.id))
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
