//! `litmus --timed`: page-table litmus tests in the timed engine, over many seeds.

use std::collections::BTreeMap;
use std::fmt::Write;

use mmusim::explore::litmus::timed::{Timed, TimedClass, time_all, timed_summary};
use mmusim::explore::litmus::{Limits, Use};
use serde::Serialize;
use serde_json::json;

use crate::litmus::{LitmusArgs, tests};
use crate::output::Output;
use crate::table::Columns;
use crate::{CliError, SCHEMA_VERSION};

/// What became of a file.
#[derive(Serialize)]
struct FileReport {
    file: String,
    classes: Vec<TimedClass>,
    tests: Vec<Timed>,
    /// Reasons why tests were not run, with how many.
    inexpressible: BTreeMap<String, usize>,
    /// What tests could not be read, and why.
    unreadable: Vec<String>,
}

/// Runs every test of every file; one that cannot be read does not stop the others.
pub fn litmus(args: &LitmusArgs) -> Result<(), CliError> {
    let judged = &args.judged;
    let mut output = Output::open(judged.output.as_deref())?;
    let threads = args.threads as usize;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|error| {
        CliError::argument(format!("--threads {threads}"), format!("cannot start threads: {error}; use fewer"))
    })?;
    let limits = Limits::default();
    let (mut reports, mut failed) = (Vec::new(), Vec::new());
    for file in &judged.files {
        match tests(file, &limits) {
            Ok(found) => {
                let (mut read, mut unreadable) = (Vec::new(), Vec::new());
                for test in found {
                    match test {
                        Ok(test) => read.push(test),
                        Err(error) => unreadable.push(error.to_string()),
                    }
                }
                failed.extend(unreadable.iter().map(CliError::input));
                let timed = pool.install(|| time_all(&read, args.seeds, None));
                reports.push(report(file.display().to_string(), timed.map_err(CliError::input)?, unreadable));
            }
            Err(error) => failed.push(error),
        }
    }
    output.write(&if judged.json { as_json(&reports, args) } else { as_text(&reports, args) })?;
    output.finish()?;
    let failing = failing(&reports).count();
    if failing > 0 {
        failed.push(CliError::Check(format!("{failing} litmus tests do in the timed engine what they must not")));
    }
    if failed.is_empty() { Ok(()) } else { Err(CliError::Several(failed)) }
}

fn report(file: String, tests: Vec<Timed>, unreadable: Vec<String>) -> FileReport {
    let mut inexpressible = BTreeMap::new();
    for why in tests.iter().filter_map(|test| test.inexpressible.clone()) {
        *inexpressible.entry(why).or_insert(0) += 1;
    }
    FileReport { file, classes: timed_summary(&tests), tests, inexpressible, unreadable }
}

fn failing(reports: &[FileReport]) -> impl Iterator<Item = (&FileReport, &Timed)> {
    let all = reports.iter().flat_map(|report| report.tests.iter().map(move |test| (report, test)));
    all.filter(|(_, test)| test.fails())
}

fn as_json(reports: &[FileReport], args: &LitmusArgs) -> String {
    let passed = failing(reports).next().is_none() && reports.iter().all(|report| report.unreadable.is_empty());
    let tests = reports.iter().flat_map(|report| &report.tests);
    let violations: u64 = tests.clone().filter(|test| forbids(test)).map(|test| test.seen).sum();
    let document = json!({
        "schema_version": SCHEMA_VERSION,
        "passed": passed,
        "seeds": args.seeds,
        "violations": violations,
        "classes": timed_summary(tests),
        "files": reports,
    });
    format!("{document:#}\n")
}

fn forbids(test: &Timed) -> bool {
    matches!(test.usage, Use::MustNotObserve | Use::MustAlwaysHold)
}

fn as_text(reports: &[FileReport], args: &LitmusArgs) -> String {
    let mut text = String::new();
    for report in reports {
        let _ = writeln!(text, "{}, {} seeds", report.file, args.seeds);
        let headings = ["use", "tests", "not run", "executions", "tests seen", "failing"];
        let mut columns = Columns::new(1, &headings);
        for class in &report.classes {
            columns.row([
                class.usage.name().to_owned(),
                class.tests.to_string(),
                (class.tests - class.run).to_string(),
                class.executions.to_string(),
                class.seen.to_string(),
                class.failing.to_string(),
            ]);
        }
        text.push_str(&columns.render());
        for (why, tests) in &report.inexpressible {
            let _ = writeln!(text, "  not run: {tests}, because {why}");
        }
        for test in report.tests.iter().filter(|test| test.inexpressible.is_some()) {
            let _ = writeln!(text, "    {} ({})", test.id, test.usage);
        }
        text.push('\n');
    }
    let mut columns = Columns::new(2, &["test", "use", "executions", "outcome seen", "endings", "verdict"]);
    for test in reports.iter().flat_map(|report| &report.tests).filter(|test| test.ran()) {
        columns.row([
            test.id.clone(),
            test.usage.name().to_owned(),
            test.executions.to_string(),
            test.seen.to_string(),
            test.endings.to_string(),
            if test.fails() {
                "FAILS"
            } else if forbids(test) {
                "holds"
            } else {
                "not judged"
            }
            .to_owned(),
        ]);
    }
    text.push_str(&columns.render());
    for (report, test) in failing(reports) {
        let what = match (&test.error, test.seed) {
            (Some(error), _) => error.clone(),
            (None, Some(seed)) => format!("first with seed {seed}"),
            (None, None) => String::new(),
        };
        let _ = writeln!(text, "\n{}, {} ({}): {what}", report.file, test.id, test.usage);
    }
    text
}
