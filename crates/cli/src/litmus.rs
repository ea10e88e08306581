//! `litmus`: page-table litmus tests on the exhaustive model (in the timed engine: `timed`). `lint`: protocol traces through the lint.

use std::fmt::Write;
use std::fs::File;
use std::path::Path;

use clap::Args;
use mmusim::explore::lint::{self, Judged};
use mmusim::explore::litmus::{
    ClassCount, Judgement, Limits, LitmusError, MemoryOrder, Test, explain, judge_all, read_each, summary,
};
use serde::Serialize;
use serde_json::json;

use crate::args::JudgedFiles;
use crate::output::Output;
use crate::table::Columns;
use crate::{CliError, SCHEMA_VERSION};

/// What became of a file.
#[derive(Serialize)]
struct FileReport {
    file: String,
    classes: Vec<ClassCount>,
    tests: Vec<Judgement>,
    /// What tests could not be read, and why.
    unreadable: Vec<String>,
    /// The tests themselves, to explain disagreements.
    #[serde(skip)]
    read: Vec<Test>,
}

/// `litmus`.
#[derive(Args, Debug)]
pub struct LitmusArgs {
    #[command(flatten)]
    pub(crate) judged: JudgedFiles,
    /// Run the tests in the timed engine, with its TLBs, walk caches and invalidations, instead of exploring them
    #[arg(long)]
    pub(crate) timed: bool,
    /// Executions of each test, each with other delays
    #[arg(long, value_name = "N", requires = "timed", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(crate) seeds: u64,
    /// Threads; 0, the default, takes one per processor. The result does not depend on it
    #[arg(long, value_name = "N", requires = "timed", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1024))]
    pub(crate) threads: u32,
}

/// Runs the tests of every file, on the model or in the timed engine.
pub fn run(args: &LitmusArgs) -> Result<(), CliError> {
    if args.timed { crate::timed::litmus(args) } else { litmus(&args.judged) }
}

/// Judges every test of every file; one that cannot be read does not stop the others.
fn litmus(args: &JudgedFiles) -> Result<(), CliError> {
    let mut output = Output::open(args.output.as_deref())?;
    let limits = Limits::default();
    let (mut reports, mut failed) = (Vec::new(), Vec::new());
    for file in &args.files {
        match tests(file, &limits) {
            Ok(tests) => {
                let report = report(file, tests, &limits);
                failed.extend(report.unreadable.iter().map(CliError::input));
                reports.push(report);
            }
            Err(error) => failed.push(error),
        }
    }
    output.write(&if args.json { as_json(&reports) } else { as_text(&reports) })?;
    output.finish()?;
    let disagreeing = judgements(&reports).filter(|judgement| !judgement.agrees()).count();
    if disagreeing > 0 {
        failed.push(CliError::Check(format!("{disagreeing} litmus tests disagree with what must be")));
    }
    if failed.is_empty() { Ok(()) } else { Err(CliError::Several(failed)) }
}

fn open(file: &Path) -> Result<File, CliError> {
    let cannot = |error| CliError::input(format!("{}: cannot read: {error}; name a file that exists", file.display()));
    File::open(file).map_err(cannot)
}

pub(crate) fn tests(file: &Path, limits: &Limits) -> Result<Vec<Result<Test, LitmusError>>, CliError> {
    read_each(&file.display().to_string(), open(file)?, limits).map_err(CliError::input)
}

fn report(file: &Path, tests: Vec<Result<Test, LitmusError>>, limits: &Limits) -> FileReport {
    let (mut read, mut unreadable) = (Vec::new(), Vec::new());
    for test in tests {
        match test {
            Ok(test) => read.push(test),
            Err(error) => unreadable.push(error.to_string()),
        }
    }
    let tests = judge_all(&read, None, limits);
    FileReport { file: file.display().to_string(), classes: summary(&tests), tests, unreadable, read }
}

fn judgements(reports: &[FileReport]) -> impl Iterator<Item = &Judgement> + Clone {
    reports.iter().flat_map(|report| &report.tests)
}

fn as_json(reports: &[FileReport]) -> String {
    let passed =
        judgements(reports).all(Judgement::agrees) && reports.iter().all(|report| report.unreadable.is_empty());
    let classes = summary(judgements(reports));
    let document = json!({ "schema_version": SCHEMA_VERSION, "passed": passed, "classes": classes, "files": reports });
    format!("{document:#}\n")
}

fn as_text(reports: &[FileReport]) -> String {
    let mut columns = Columns::new(2, &["test", "use", "sequential", "store buffer", "states", "verdict"]);
    for judgement in judgements(reports) {
        let reached = |reached: bool| if reached { "reached" } else { "not reached" }.to_owned();
        let states = judgement.sequential.stats.states + judgement.store_buffer.stats.states;
        let verdict = match judgement.agreement {
            Some(true) => "agrees",
            Some(false) => "DISAGREES",
            None => "not judged",
        };
        columns.row([
            judgement.id.clone(),
            judgement.usage.name().to_owned(),
            reached(judgement.sequential.reached),
            reached(judgement.store_buffer.reached),
            states.to_string(),
            verdict.to_owned(),
        ]);
    }
    let mut text = columns.render();
    text.push('\n');
    let headings = ["use", "tests", "reached, sequential", "reached, store buffer", "agreeing", "disagreeing"];
    let mut classes = Columns::new(1, &headings);
    for class in summary(judgements(reports)) {
        let numbers =
            [class.tests, class.reached_sequential, class.reached_store_buffer, class.agreeing, class.disagreeing];
        classes.row(std::iter::once(class.usage.name().to_owned()).chain(numbers.map(|number| number.to_string())));
    }
    text.push_str(&classes.render());
    for report in reports {
        for (test, judgement) in report.read.iter().zip(&report.tests).filter(|(_, judgement)| !judgement.agrees()) {
            explained(&mut text, &report.file, test, judgement);
        }
    }
    text
}

/// Why a test disagrees. Writing to a string cannot fail.
fn explained(text: &mut String, file: &str, test: &Test, judgement: &Judgement) {
    let _ = writeln!(text, "\n{file}, {}: {}", judgement.id, judgement.usage);
    let runs = [
        (MemoryOrder::SequentiallyConsistent, "sequentially consistent", &judgement.sequential),
        (MemoryOrder::StoreBuffer, "store buffers", &judgement.store_buffer),
    ];
    for (memory, name, found) in runs {
        let Some(path) = &found.path else {
            let _ = writeln!(text, "  {name}: not reached in {} states, {:?}", found.stats.states, found.extent);
            continue;
        };
        let _ = writeln!(text, "  {name}: reached by");
        for line in explain(test, memory, None, path).unwrap_or_default() {
            let _ = writeln!(text, "    {line}");
        }
    }
}

/// Replays every trace of every file through the lint.
pub fn lint(args: &JudgedFiles) -> Result<(), CliError> {
    let mut output = Output::open(args.output.as_deref())?;
    let (mut traces, mut failed) = (Vec::new(), Vec::new());
    for file in &args.files {
        let name = file.display().to_string();
        match lint::judge_file(&name, open(file)?, &lint::Limits::default()) {
            Ok(judged) => traces.extend(judged),
            Err(error) => failed.push(CliError::input(error)),
        }
    }
    output.write(&if args.json { lint_json(&traces) } else { lint_text(&traces) })?;
    output.finish()?;
    let disagreeing = traces.iter().filter(|trace| !trace.agrees).count();
    if disagreeing > 0 {
        failed.push(CliError::Check(format!("{disagreeing} traces disagree with their expected verdict")));
    }
    if failed.is_empty() { Ok(()) } else { Err(CliError::Several(failed)) }
}

fn lint_json(traces: &[Judged]) -> String {
    let passed = traces.iter().all(|trace| trace.agrees);
    let document = json!({ "schema_version": SCHEMA_VERSION, "passed": passed, "traces": traces });
    format!("{document:#}\n")
}

fn lint_text(traces: &[Judged]) -> String {
    let mut columns = Columns::new(4, &["trace", "expected", "found", "verdict", "step"]);
    for trace in traces {
        columns.row([
            trace.id.clone(),
            trace.expected.clone(),
            trace.found.map_or("ok", |violation| violation.rule.name()).to_owned(),
            if trace.agrees { "agrees" } else { "DISAGREES" }.to_owned(),
            trace.found.map_or_else(String::new, |violation| violation.step.to_string()),
        ]);
    }
    columns.render()
}
