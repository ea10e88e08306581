//! Every row of the museum: found with its defect, as what it is; broken in nothing without it. Small budgets; the whole tour is
//! `mmusim explore --museum`.

use mmu_explore::museum::{Variant, exhibits};
use mmu_sim::explore::{Budget, Strategy, Verdict};

#[test]
fn every_defect_is_found_as_what_it_is() {
    let mut wrong = Vec::new();
    for exhibit in exhibits() {
        let report = exhibit.scenario(Variant::Broken).explore(&Strategy::Portfolio, Budget::schedules(20_000));
        match &report.failure {
            None => wrong.push(format!("{}: not found in {} executions", exhibit.id, report.stats.executions)),
            Some(failure) if !exhibit.breaks.contains(&failure.broken.invariant) => {
                wrong.push(format!("{}: {}\n{}", exhibit.id, failure.broken, failure.table()));
            }
            Some(_) => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_was_fixed_breaks_nothing() {
    let mut wrong = Vec::new();
    for exhibit in exhibits() {
        let report = exhibit.scenario(Variant::Fixed).explore(&Strategy::Portfolio, Budget::schedules(2_000));
        if report.verdict == Verdict::Broken {
            let table = report.failure.map(|failure| failure.table());
            wrong.push(format!("{}: {}", exhibit.id, table.unwrap_or_default()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
