//! `sweep ...`: many experiments, on one machine or many.
//!
//! `experiment` makes commands of this program into points; everything about plans, shards and merges is in the crate `mmu-sweep`.

pub(crate) mod experiment;
mod submit;

use std::fmt::Write;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use mmu_sweep::datum::record_json;
use mmu_sweep::spec::{Notation, Spec};
use mmu_sweep::{Datum, Event, Plan, Point, Record, RunOptions, Shard, SweepError};
use mmusim::sim::MODEL_VERSION;
use serde_json::json;

use crate::args::EXIT_CODES;
use crate::output::Output;
use crate::progress::Progress;
use crate::signals::Signals;
use crate::{CliError, SCHEMA_VERSION};
use experiment::Commands;

/// `sweep`.
#[derive(Subcommand, Debug)]
pub enum Sweep {
    /// Expand a sweep into points, check each, and write the plan
    #[command(after_help = EXIT_CODES)]
    Plan(PlanArgs),
    /// Run the points of a shard that have no result yet, on all cores
    #[command(after_help = EXIT_CODES)]
    Run(RunArgs),
    /// Say what is done, missing, damaged
    #[command(after_help = EXIT_CODES)]
    Status(StatusArgs),
    /// Hand the missing shards to a scheduler
    #[command(after_help = EXIT_CODES)]
    Submit(submit::SubmitArgs),
    /// Put all results together, in the order of the plan
    #[command(after_help = EXIT_CODES)]
    Merge(MergeArgs),
}

/// `sweep plan`.
#[derive(Args, Debug)]
pub struct PlanArgs {
    /// The sweep: TOML, or JSON in a file that ends in .json
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Directory of the plan
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Points to run at once for the estimate, spread over the plan; their results count
    #[arg(long = "try", value_name = "N", default_value_t = 1)]
    tries: usize,
}

/// `sweep run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// Directory of the plan
    #[arg(value_name = "DIR")]
    plan: PathBuf,
    /// Which share of the points, I from 0 to N-1 [default: all]
    #[arg(long, value_name = "I/N", default_value_t = Shard::ALL, hide_default_value = true)]
    shard: Shard,
    /// Points at a time [default: one per processor]
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// Begin no point after this long: seconds, or 90s, 50m, 2h
    #[arg(long, value_name = "TIME", value_parser = duration)]
    time_limit: Option<Duration>,
    /// Points that take less than this share a file
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration)]
    short: Duration,
}

/// `sweep status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Directory of the plan
    #[arg(value_name = "DIR")]
    plan: PathBuf,
    /// Name the shards of so many that have missing points [default: as submitted last, else the points themselves]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    shards: Option<u32>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// `sweep merge`.
#[derive(Args, Debug)]
pub struct MergeArgs {
    /// Directory of the plan
    #[arg(value_name = "DIR")]
    plan: PathBuf,
    /// Write to a file, which appears when it is complete [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write CSV, one line per row, instead of lines of JSON
    #[arg(long)]
    csv: bool,
}

fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        other => return Err(format!("{other} is no unit of time; use ms, s, m or h")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("{text:?} is no time; write 90s, 50m or 2h"))?;
    Ok(Duration::from_millis(number.saturating_mul(unit)))
}

/// `sweep ...`.
pub(crate) fn run(sweep: &Sweep) -> Result<(), CliError> {
    match sweep {
        Sweep::Plan(args) => plan(args),
        Sweep::Run(args) => run_shard(args),
        Sweep::Status(args) => status(args),
        Sweep::Submit(args) => submit::submit(args),
        Sweep::Merge(args) => merge(args),
    }
}

impl From<SweepError> for CliError {
    fn from(error: SweepError) -> Self {
        match error {
            SweepError::Nondeterminism { .. } => CliError::Check(error.to_string()),
            SweepError::Incomplete { .. } => CliError::Incomplete(error.to_string()),
            other => CliError::Input(other.to_string()),
        }
    }
}

fn open(directory: &Path) -> Result<Plan, CliError> {
    Ok(Plan::open(directory, MODEL_VERSION)?)
}

// ---- plan ----

fn plan(args: &PlanArgs) -> Result<(), CliError> {
    let place = args.file.display().to_string();
    let text = fs::read_to_string(&args.file)
        .map_err(|why| CliError::input(format!("{place}: cannot read: {why}; name a sweep's TOML or JSON file")))?;
    let json = args.file.extension().is_some_and(|extension| extension == "json");
    let spec = Spec::parse(&place, &text, if json { Notation::Json } else { Notation::Toml })?;
    let (plan, planned) = Plan::create(&args.output, &place, &spec, &Commands)?;
    let points = plan.points().len();
    if planned.found {
        eprintln!("note: this plan was there already; its results are kept");
    }
    if planned.repeated > 0 {
        eprintln!("note: {} points were listed more than once", planned.repeated);
    }
    let mut output = Output::open(None)?;
    output.write(&format!("{points} points in {}\n", args.output.display()))?;
    if args.tries > 0 {
        output.write(&estimate(&plan, args.tries.min(points))?)?;
    }
    output.finish()
}

/// Runs some points and says how long all take.
fn estimate(plan: &Plan, tries: usize) -> Result<String, CliError> {
    let points = plan.points().len();
    let stop = Signals::watch()?;
    // Shards of one point each name the points; their results are kept like any others.
    let begun = Instant::now();
    let mut ran = 0;
    for i in 0..tries {
        let shard = Shard::new((i * points / tries) as u32, points as u32).map_err(CliError::input)?;
        let options = RunOptions { shard, jobs: NonZeroUsize::MIN, time_limit: None, short: Duration::from_secs(1) };
        let done = mmu_sweep::run(plan, &Commands, &options, &|| stop.stopped(), &|_| {})?;
        ran += done.ran;
        if let Some((id, why)) = done.failed.first_key_value() {
            return Err(CliError::Check(format!("point {id}: {why}")));
        }
    }
    if ran == 0 {
        return Ok("no estimate: the points tried have results already\n".to_owned());
    }
    let each = begun.elapsed().as_secs_f64() / ran as f64;
    let cores = available_parallelism().map_or(1, NonZeroUsize::get);
    let all = each * points as f64;
    Ok(format!(
        "estimate from {ran}: {each:.2} s a point, {} of one core, {} on the {cores} here\n",
        time(all),
        time(all / cores as f64)
    ))
}

fn time(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

// ---- run ----

fn run_shard(args: &RunArgs) -> Result<(), CliError> {
    let plan = open(&args.plan)?;
    let jobs = args.jobs.or_else(|| available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN);
    let options = RunOptions { shard: args.shard, jobs, time_limit: args.time_limit, short: args.short };
    let signals = Signals::watch()?;
    let progress = Progress::with_rate();
    progress.say(format!("{} shard {}", plan.name(), args.shard));
    let ran = mmu_sweep::run(&plan, &Commands, &options, &|| signals.stopped(), &|event| match event {
        Event::Begins { to_run, reused } => progress.of((to_run + reused) as u64, reused as u64),
        Event::Done(_) => progress.step(),
        Event::Failed(id, why) => {
            progress.step();
            progress.aside(|| eprintln!("point {id}: {why}"));
        }
    })?;
    drop(progress);
    eprintln!(
        "shard {}: ran {}, reused {}, failed {}, left {}",
        args.shard,
        ran.ran,
        ran.reused,
        ran.failed.len(),
        ran.left
    );
    if !ran.failed.is_empty() {
        return Err(CliError::Check(format!("{} points failed; `sweep status` lists them", ran.failed.len())));
    }
    if ran.left > 0 {
        return Err(CliError::Stopped(format!("{} points are left; run the same again to go on", ran.left)));
    }
    Ok(())
}

// ---- status ----

fn status(args: &StatusArgs) -> Result<(), CliError> {
    let plan = open(&args.plan)?;
    let status = mmu_sweep::status(&plan)?;
    let shards = args.shards.or_else(|| submit::submitted(&plan));
    let array = shards.map(|of| mmu_sweep::slurm::array(&status.missing_shards(of)));
    let mut output = Output::open(None)?;
    if args.json {
        let missing: Vec<String> = status.missing.iter().map(|&place| plan.points()[place].id.to_string()).collect();
        let failed: serde_json::Map<_, _> =
            status.failed.iter().map(|(id, why)| (id.to_string(), why.as_str().into())).collect();
        let document = json!({
            "schema_version": SCHEMA_VERSION,
            "plan": plan.name(),
            "points": status.points,
            "done": status.done(),
            "missing": missing,
            "missing_shards": array,
            "shards": shards,
            "failed": failed,
            "corrupt": status.corrupt,
            "duplicates": status.duplicates,
            "conflicts": status.conflicts.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "orphans": status.orphans,
            "strangers": status.strangers,
        });
        output.write(&format!("{document:#}\n"))?;
        return output.finish();
    }
    // Writing to a string cannot fail.
    let mut text = format!("{}: {} of {} points done", plan.name(), status.done(), status.points);
    for (count, what) in [
        (status.missing.len(), "missing"),
        (status.corrupt.len(), "corrupt"),
        (status.failed.len(), "failed"),
        (status.duplicates, "duplicates, all alike"),
        (status.conflicts.len(), "with two results"),
        (status.orphans, "partial files of killed runs"),
        (status.strangers, "results of no point here"),
    ] {
        if count > 0 {
            let _ = write!(text, ", {count} {what}");
        }
    }
    text.push('\n');
    for line in &status.corrupt {
        let _ = writeln!(text, "corrupt: {line}");
    }
    for id in &status.conflicts {
        let _ = writeln!(text, "two results: {id}");
    }
    for (id, why) in &status.failed {
        let _ = writeln!(text, "failed: {id}: {why}");
    }
    match array {
        Some(array) if !array.is_empty() => {
            let _ = writeln!(text, "--array={array}");
        }
        _ => {
            for &place in status.missing.iter().take(MOST_LISTED) {
                let _ = writeln!(text, "missing: {}", plan.points()[place].line());
            }
            if status.missing.len() > MOST_LISTED {
                let _ = writeln!(text, "missing: and {} more; --json has all", status.missing.len() - MOST_LISTED);
            }
        }
    }
    output.write(&text)?;
    output.finish()
}

/// Missing points that are listed one by one.
const MOST_LISTED: usize = 20;

// ---- merge ----

fn merge(args: &MergeArgs) -> Result<(), CliError> {
    let plan = open(&args.plan)?;
    let result = if args.csv { merge_csv(args, &plan) } else { merge_json(args, &plan) };
    if let Err(CliError::Incomplete(_)) = &result {
        let status = mmu_sweep::status(&plan)?;
        for &place in status.missing.iter().take(MOST_LISTED) {
            eprintln!("missing: {}", plan.points()[place].line());
        }
    }
    result
}

fn merge_json(args: &MergeArgs, plan: &Plan) -> Result<(), CliError> {
    let mut output = Output::open(args.output.as_deref())?;
    mmu_sweep::merge(plan, |point, row| {
        let arguments = record_json(&point.arguments);
        let (command, id) = (Datum::from(point.command.as_str()).json(), point.id);
        let row = record_json(&row);
        output.write(&format!(
            "{{\"arguments\":{arguments},\"command\":{command},\"id\":\"{id}\",\"model_version\":{},\"row\":{row},\"schema_version\":{}}}\n",
            plan.model(),
            mmu_sweep::SCHEMA_VERSION,
        ))
    })?;
    output.finish()
}

/// Columns are the names of all arguments and of all rows, sorted; a row without a value has an empty cell.
fn merge_csv(args: &MergeArgs, plan: &Plan) -> Result<(), CliError> {
    let mut rows: Vec<(&Point, Record)> = Vec::new();
    let points: std::collections::BTreeMap<_, &Point> = plan.points().iter().map(|point| (point.id, point)).collect();
    mmu_sweep::merge(plan, |point, row| {
        rows.push((points[&point.id], row));
        Ok::<_, SweepError>(())
    })?;
    let names = |of: &dyn Fn(&(&Point, Record)) -> Vec<String>| {
        rows.iter().flat_map(of).collect::<std::collections::BTreeSet<String>>()
    };
    let arguments = names(&|(point, _)| point.arguments.keys().cloned().collect());
    let values = names(&|(_, row)| row.keys().cloned().collect());
    let failed = |why: csv::Error| CliError::Write { to: "CSV".to_owned(), why: why.into() };
    let mut writer = csv::Writer::from_writer(Vec::new());
    let heading = ["model_version", "id", "command"].map(str::to_owned).into_iter();
    let heading = heading.chain(arguments.iter().map(|name| format!("arg_{name}"))).chain(values.iter().cloned());
    writer.write_record(heading).map_err(failed)?;
    for (point, row) in &rows {
        let cell = |record: &Record, name: &String| record.get(name).map(Datum::plain).unwrap_or_default();
        let cells = [plan.model().to_string(), point.id.to_string(), point.command.clone()].into_iter();
        let cells = cells.chain(arguments.iter().map(|name| cell(&point.arguments, name)));
        writer.write_record(cells.chain(values.iter().map(|name| cell(row, name)))).map_err(failed)?;
    }
    let bytes = writer.into_inner().map_err(|error| failed(error.into_error().into()))?;
    let mut output = Output::open(args.output.as_deref())?;
    output.write(&String::from_utf8_lossy(&bytes))?;
    output.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read() {
        let seconds = |text| duration(text).map(|time| time.as_millis());
        assert_eq!([seconds("90"), seconds("50m"), seconds("2h")], [Ok(90_000), Ok(3_000_000), Ok(7_200_000)]);
        assert_eq!(seconds("250ms"), Ok(250));
        assert!(duration("5d").unwrap_err().contains("unit") && duration("s").is_err());
    }
}
