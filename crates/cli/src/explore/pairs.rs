//! `explore --pairs`: every two protocols against each other, and one such pair by its name.

use std::fmt::Write;

use mmusim::Seed;
use mmusim::explore::museum::{Architecture, Variant};
use mmusim::explore::programs::{Act, Backing, NameError, Pair, Program, pairs};
use mmusim::sim::explore::{Budget, Failure, MemoryOrder, ReplayFile, Shrinking, Strategy};
use serde_json::json;

use super::ExploreArgs;
use crate::output::Output;
use crate::table::Columns;
use crate::{CliError, SCHEMA_VERSION};

/// Executions of each pair, unless told otherwise.
const SCHEDULES: u64 = 1_000;

/// The pair of a name such as `discard+log` or `discard+log:huge`; `None` for names of something else.
pub(super) fn named(name: &str, arch: Architecture) -> Option<Result<Program, CliError>> {
    match Program::named(name, arch) {
        Ok(program) => Some(Ok(program)),
        Err(NameError::NoPair) => None,
        Err(error) => Some(Err(CliError::argument(format!("scenario {name}"), error))),
    }
}

/// A failure of a pair, to be repeated.
pub(super) fn file_of(program: &Program, memory: MemoryOrder, failure: &Failure) -> ReplayFile {
    super::file_of(&program.name(), Variant::Fixed, Some(program.arch), memory, failure)
}

/// All of them.
pub(super) fn all(args: &ExploreArgs) -> Result<(), CliError> {
    let architectures = match &args.arch {
        Some(name) => vec![super::architecture_of(name)?],
        None => Architecture::ALL.to_vec(),
    };
    let strategy: Strategy = args.strategy.parse().map_err(|error| CliError::argument("--strategy", error))?;
    let schedules = args.schedules.unwrap_or(SCHEDULES);
    let shrinking = if args.no_shrink { Shrinking::Off } else { Shrinking::Thorough };
    let mut output = Output::open(args.output.as_deref())?;
    let memory = match args.memory.as_deref() {
        Some(name) => Some(super::memory_of(name)?),
        None => None,
    };
    let all = pairs(&architectures, memory, &strategy, Budget { schedules, seed: Seed(args.seed), shrinking });
    output.write(&if args.json { as_json(&all) } else { as_text(&all, &architectures) })?;
    output.finish()?;
    let broken = all.iter().filter(|pair| pair.report.failure.is_some()).count();
    if broken == 0 {
        return Ok(());
    }
    Err(CliError::Check(format!("{broken} of {} pairs break an invariant", all.len())))
}

fn as_json(all: &[Pair]) -> String {
    let rows = all.iter().map(|Pair { program, report }| {
        let failure = report.failure.as_ref();
        json!({
            "pair": program.name(),
            "arch": program.arch.name(),
            "pages": match program.backing { Backing::Small => "4K", Backing::Huge => "2M" },
            "verdict": report.verdict.name(),
            "executions": report.stats.executions,
            "steps": report.stats.steps,
            "invariant": failure.map(|failure| failure.broken.invariant.id()),
            "replay": failure.map(|failure| file_of(program, program.memory, failure).write()),
        })
    });
    let document = json!({ "schema_version": SCHEMA_VERSION, "pairs": rows.collect::<Vec<_>>() });
    format!("{document:#}\n")
}

/// A table for each architecture: an act in each row and column, the invariant that they break together in the cell. Then the failures.
fn as_text(all: &[Pair], architectures: &[Architecture]) -> String {
    let mut text = String::new();
    for &arch in architectures {
        let mut headings = vec![arch.name()];
        let acts = Act::all_on(arch);
        headings.extend(acts.iter().map(|act| act.name()));
        let mut columns = Columns::new(1, &headings);
        for &two in &acts {
            let mut row = vec![two.name().to_owned()];
            row.extend(acts.iter().filter(|&&one| one <= two).map(|&one| cell(all, &Program::pair(one, two, arch))));
            row.resize(headings.len(), String::new());
            columns.row(row);
        }
        text.push_str(&columns.render());
        text.push('\n');
    }
    let executions: u64 = all.iter().map(|pair| pair.report.stats.executions).sum();
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{} pairs with small and with huge pages, {executions} executions", all.len() / 2);
    for Pair { program, report } in all {
        if let Some(failure) = &report.failure {
            let file = file_of(program, program.memory, failure).write();
            let table = failure.table();
            let _ = write!(text, "\n{program}{table}\nTo repeat it, save this as a file for --replay:\n\n{file}");
        }
    }
    text
}

/// What two acts come to, with small pages and with huge ones.
fn cell(all: &[Pair], pair: &Program) -> String {
    let same = |program: &Program| (&program.actors, program.arch) == (&pair.actors, pair.arch);
    let broken: Vec<&str> = all
        .iter()
        .filter(|found| same(&found.program))
        .filter_map(|found| Some(found.report.failure.as_ref()?.broken.invariant.id()))
        .collect();
    if broken.is_empty() { "passed".to_owned() } else { broken.join(" ") }
}
