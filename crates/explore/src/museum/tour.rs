//! Running the museum: how soon each strategy finds each defect, and that the fixed variants break nothing.

use std::fmt::Write;

use mmu_sim::explore::{Budget, Failure, Report, Shrinking, Strategy, Verdict};
use mmu_sim::rng::Seed;
use rayon::prelude::*;
use serde::Serialize;

use super::{Exhibit, UNSHOWN, Unshown, Variant, exhibits};

/// How thoroughly the museum is run.
#[derive(Clone, PartialEq, Debug)]
pub struct Plan {
    /// Strategies to be compared.
    pub strategies: Vec<Strategy>,
    /// Seeds of each.
    pub seeds: u64,
    /// Executions until a strategy gives up.
    pub most: u64,
    /// Executions of the fixed variant.
    pub fixed: u64,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            strategies: vec![Strategy::Portfolio, Strategy::Random, Strategy::Pct(3), Strategy::Bounded(2)],
            seeds: 10,
            most: 20_000,
            fixed: 100_000,
        }
    }
}

/// Executions until a strategy found a defect, over the seeds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Times {
    /// The strategy.
    pub strategy: String,
    /// Seeds with which it was found.
    pub found: usize,
    /// Seeds tried.
    pub seeds: usize,
    /// Of those that found it.
    pub median: Option<u64>,
    /// Of those that found it.
    pub p95: Option<u64>,
}

/// What the fixed variant did.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Entry {
    /// `proved`, `passed` or `broken`.
    pub verdict: &'static str,
    /// Executions.
    pub executions: u64,
    /// What was broken, if anything was, or which invariant that the row names was never evaluated: a finding.
    pub finding: Option<String>,
}

/// A row of the report.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Row {
    /// Number in the museum.
    pub id: &'static str,
    /// The defect.
    pub title: &'static str,
    /// Architecture.
    pub arch: &'static str,
    /// The invariant that was reported.
    pub invariant: Option<String>,
    /// It is one of those that the row names.
    pub as_expected: bool,
    /// Strategies.
    pub times: Vec<Times>,
    /// Steps of the shrunk failure.
    pub steps: Option<u64>,
    /// Its preemptions: the depth of the defect.
    pub preemptions: Option<u64>,
    /// Its decisions out of the ordinary.
    pub choices: Option<u64>,
    /// The fixed variant.
    pub fixed: Entry,
    /// The failure itself.
    #[serde(skip)]
    pub failure: Option<Failure>,
}

impl Row {
    /// Found as what it is, and nothing is broken without the defect.
    pub fn is_good(&self) -> bool {
        self.invariant.is_some() && self.as_expected && self.fixed.finding.is_none()
    }
}

/// The number at a share of sorted numbers.
fn quantile(sorted: &[u64], share: f64) -> Option<u64> {
    let last = sorted.len().checked_sub(1)?;
    sorted.get((last as f64 * share).round() as usize).copied()
}

fn times(exhibit: &Exhibit, strategy: &Strategy, plan: &Plan) -> Times {
    // A search has no seed.
    let seeds = if matches!(strategy, Strategy::Bounded(_) | Strategy::Exhaustive) { 1 } else { plan.seeds };
    let scenario = exhibit.scenario(Variant::Broken);
    let one = |seed: u64| {
        let budget = Budget { schedules: plan.most, seed: Seed(seed), shrinking: Shrinking::Off };
        let report = scenario.explore(strategy, budget);
        (report.verdict == Verdict::Broken).then_some(report.stats.executions)
    };
    let mut found: Vec<u64> = (1..=seeds).filter_map(one).collect();
    found.sort_unstable();
    Times {
        strategy: strategy.to_string(),
        found: found.len(),
        seeds: seeds as usize,
        median: quantile(&found, 0.5),
        p95: quantile(&found, 0.95),
    }
}

fn fixed(exhibit: &Exhibit, plan: &Plan) -> Entry {
    let scenario = exhibit.scenario(Variant::Fixed);
    let report = |strategy: Strategy, schedules| scenario.explore(&strategy, Budget::schedules(schedules));
    // All there is, if that is little; else samples.
    let first = report(Strategy::Exhaustive, plan.fixed.min(20_000));
    let Report { verdict, stats, failure, unevaluated, .. } =
        if first.verdict == Verdict::Passed { report(Strategy::Portfolio, plan.fixed) } else { first };
    let never = unevaluated.first().map(|invariant| format!("{invariant} was never evaluated"));
    Entry {
        verdict: verdict.name(),
        executions: stats.executions,
        finding: failure.map(|failure| failure.broken.to_string()).or(never),
    }
}

fn row(exhibit: &Exhibit, plan: &Plan) -> Row {
    let times = plan.strategies.iter().map(|strategy| times(exhibit, strategy, plan)).collect();
    let broken = exhibit.scenario(Variant::Broken).explore(&Strategy::Portfolio, Budget::schedules(plan.most));
    let failure = broken.failure;
    let invariant = failure.as_ref().map(|failure| failure.broken.invariant);
    Row {
        id: exhibit.id,
        title: exhibit.title,
        arch: exhibit.arch,
        invariant: invariant.map(|invariant| invariant.to_string()),
        as_expected: invariant.is_some_and(|invariant| exhibit.breaks.contains(&invariant)),
        times,
        steps: failure.as_ref().and_then(|failure| failure.steps.last()).map(|step| step.number),
        preemptions: failure.as_ref().map(|failure| failure.preemptions),
        choices: failure.as_ref().map(Failure::choices),
        fixed: fixed(exhibit, plan),
        failure,
    }
}

/// Runs all rows, or those of these numbers.
pub fn tour(plan: &Plan, only: &[String]) -> Vec<Row> {
    let wanted = |exhibit: &Exhibit| only.is_empty() || only.iter().any(|id| id.eq_ignore_ascii_case(exhibit.id));
    let chosen: Vec<Exhibit> = exhibits().into_iter().filter(wanted).collect();
    chosen.par_iter().map(|exhibit| row(exhibit, plan)).collect()
}

/// The rows as a table for `docs/bug-museum.md`.
pub fn markdown(rows: &[Row], plan: &Plan) -> String {
    let mut text = String::from("# Bug museum\n\n");
    let _ = writeln!(
        text,
        "Defects of the past, found again. Generated by `mmusim explore --museum --markdown`; do not edit.\n\n\
         A cell of a strategy says after how many executions it found the defect: median and 95th percentile over {} seeds, up to {} executions each. \
         Steps and preemptions are those of the shrunk failure. *Fixed* is the same scenario without the defect: `proved` if all executions \
         were looked at, up to the order of steps that commute, `passed` after that many.\n",
        plan.seeds, plan.most
    );
    let names: Vec<String> = plan.strategies.iter().map(Strategy::to_string).collect();
    let _ = writeln!(text, "| id | defect | on | breaks | {} | steps | preemptions | fixed |", names.join(" | "));
    let _ = writeln!(text, "|---|---|---|---|{}---|---|---|", "---|".repeat(names.len()));
    for row in rows {
        let cell = |times: &Times| match (times.median, times.p95) {
            (Some(median), Some(p95)) if times.found == times.seeds => {
                if times.seeds == 1 {
                    median.to_string()
                } else {
                    format!("{median} / {p95}")
                }
            }
            (Some(median), Some(p95)) => format!("{median} / {p95} ({} of {})", times.found, times.seeds),
            _ => "-".to_owned(),
        };
        let cells: Vec<String> = row.times.iter().map(cell).collect();
        let number = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} {} |",
            row.id,
            row.title,
            row.arch,
            row.invariant.as_deref().unwrap_or("**not found**"),
            cells.join(" | "),
            number(row.steps),
            number(row.preemptions),
            row.fixed.verdict,
            row.fixed.executions,
        );
    }
    text.push_str("\nWithout a scenario:\n\n| id | defect | why |\n|---|---|---|\n");
    for Unshown { id, title, why } in UNSHOWN {
        let _ = writeln!(text, "| {id} | {title} | {why} |");
    }
    let good = rows.iter().filter(|row| row.is_good()).count();
    let _ = writeln!(text, "\n{good} of {} rows are found as what they are, and break nothing once fixed.", rows.len());
    text
}
