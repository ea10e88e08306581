//! `run`: one run of a zap strategy, or of none, that can be saved at the end of any window and continued.

mod config;

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use mmu_sweep::{Datum, Record};
use mmusim::sim::MODEL_VERSION;
use mmusim::sim::arch::Arch;
use mmusim::sim::experiment::zap::Strategy;
use mmusim::sim::experiment::{RunReport, ZapRun};
use mmusim::sim::snapshot::Snapshot;
use mmusim::{Platform, Threads, strategies};
use serde_json::json;

use crate::args::CompareZap;
use crate::compare::plan::Plan;
use crate::compare::{Workers, failure};
use crate::output::Output;
use crate::platform::Formats;
use crate::signals::Signals;
use crate::{CliError, SCHEMA_VERSION};

/// `run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// Take the options from a TOML file: their names without dashes, and their values
    #[arg(long, value_name = "FILE.toml", conflicts_with = "resume")]
    spec: Option<PathBuf>,
    /// What the host does: a strategy of `compare zap` or an unambiguous part of its name, or `none`
    #[arg(long, value_name = "NAME", default_value = "none")]
    strategy: String,
    /// Save the run in this file, as --checkpoint-every says, and when it is asked to stop
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Save it whenever so many windows more have been run
    #[arg(long, value_name = "WINDOWS", requires = "checkpoint", value_parser = clap::value_parser!(u64).range(1..))]
    checkpoint_every: Option<u64>,
    /// Go on with a run that was saved; its options are in the file
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    /// The guest, the machine, the request
    #[command(flatten)]
    zap: CompareZap,
}

/// What `--checkpoint` asks for.
struct Checkpoint<'a> {
    file: Option<&'a Path>,
    /// In windows.
    every: Option<u64>,
    /// In real time.
    interval: Option<Duration>,
    stop: &'a (dyn Fn() -> bool + Sync),
}

/// How a run ended.
enum Ended {
    /// At its end.
    Finished(Box<RunReport>),
    /// Before, and it is saved.
    Saved,
}

/// `run`.
pub(crate) fn run(args: &RunArgs) -> Result<(), CliError> {
    if let Some(file) = &args.spec {
        return run(&config::from_spec(args, file)?);
    }
    let (snapshot, resumed);
    let spec = match &args.resume {
        None => (None, args),
        Some(file) => {
            let place = format!("--resume {}", file.display());
            let bytes = fs::read(file).map_err(|why| CliError::argument(&place, format!("cannot read: {why}")))?;
            snapshot = Snapshot::load(&bytes).map_err(|error| CliError::argument(&place, error))?;
            resumed = config::parse(&snapshot.info().config).map_err(|what| CliError::argument(&place, what))?;
            (Some(&snapshot), &resumed)
        }
    };
    let (snapshot, spec) = spec;
    let (plan, strategy) = plan(spec)?;
    let config = config::text(spec)?;
    if let Some(snapshot) = snapshot
        && snapshot.info().config != config
    {
        let what = "a trace or a machine sheet has changed since it was saved; restore the file";
        return Err(CliError::argument("--resume", what));
    }
    let mut output = Output::open(args.zap.output.as_deref())?;
    let signals = Signals::watch()?;
    let stop = || signals.stopped();
    let file = args.checkpoint.as_deref();
    let checkpoint = Checkpoint { file, every: args.checkpoint_every, interval: None, stop: &stop };
    let workers = Workers::new(args.zap.threads)?;
    let report = match workers.with(|threads| execute(&plan, strategy, &config, snapshot, &checkpoint, threads))? {
        Ended::Finished(report) => report,
        Ended::Saved => {
            let file = file.unwrap_or(Path::new("")).display();
            return Err(CliError::Stopped(format!("saved in {file}; `mmusim run --resume {file}` goes on")));
        }
    };
    output.write(&if args.zap.json { as_json(&config, &report)? } else { as_text(&report) })?;
    output.finish()
}

/// What is wrong with arguments, if anything is.
///
/// # Errors
/// What `run` would say before the first window.
pub(crate) fn check(args: &RunArgs) -> Result<(), CliError> {
    plan(args).map(drop)
}

/// A run that a sweep keeps: it saves itself every ten minutes and when it must stop, and goes on from there. `None`: stopped.
///
/// # Errors
/// As `run`.
pub(crate) fn row(args: &RunArgs, file: &Path, stop: &(dyn Fn() -> bool + Sync)) -> Result<Option<Record>, CliError> {
    let (plan, strategy) = plan(args)?;
    let config = config::text(args)?;
    // Whatever is there was left by another attempt at the same point. Damage costs time, not the result.
    let snapshot = fs::read(file).ok().and_then(|bytes| Snapshot::load(&bytes).ok());
    let snapshot = snapshot.filter(|snapshot| snapshot.info().config == config);
    let interval = Some(Duration::from_secs(600));
    let checkpoint = Checkpoint { file: Some(file), every: None, interval, stop };
    match execute(&plan, strategy, &config, snapshot.as_ref(), &checkpoint, Threads::One)? {
        Ended::Finished(report) => Ok(Some(record(&report))),
        Ended::Saved => Ok(None),
    }
}

/// The one plan of a command line, and its strategy.
fn plan(args: &RunArgs) -> Result<(Plan, Option<Strategy>), CliError> {
    let zap = &args.zap;
    if zap.trace.is_none() && zap.workload.is_none() {
        return Err(CliError::argument("run", "give --trace FILE or --workload KIND"));
    }
    if zap.csv || zap.record.events.is_some() || zap.record.timeline.is_some() {
        return Err(CliError::argument("run", "writes a table or --json; record a run with `compare zap`"));
    }
    let mut plans = crate::compare::plan::plans(zap)?;
    let strategy = strategy(&args.strategy)?;
    match (plans.pop(), plans.is_empty()) {
        (Some(plan), true) => Ok((plan, strategy)),
        _ => Err(CliError::argument("--arch", "a run is on one machine; name one architecture, or a --machine")),
    }
}

fn strategy(name: &str) -> Result<Option<Strategy>, CliError> {
    if name == "none" {
        return Ok(None);
    }
    let all = strategies();
    let mut found = all.iter().filter(|strategy| strategy.name == name).collect::<Vec<_>>();
    if found.is_empty() {
        found = all.iter().filter(|strategy| strategy.name.contains(name)).collect();
    }
    if let [one] = found[..] {
        return Ok(Some(*one));
    }
    let names: Vec<&str> = all.iter().map(|strategy| strategy.name).collect();
    let what = format!("names {} strategies; choose one of\n  none\n  {}", found.len(), names.join("\n  "));
    Err(CliError::argument(format!("--strategy {name:?}"), what))
}

fn execute(
    plan: &Plan,
    strategy: Option<Strategy>,
    config: &str,
    snapshot: Option<&Snapshot>,
    checkpoint: &Checkpoint<'_>,
    threads: Threads,
) -> Result<Ended, CliError> {
    match plan.formats {
        Formats::X86(arch) => execute_on(arch, plan, strategy, config, snapshot, checkpoint, threads),
        Formats::Arm64(arch) => execute_on(arch, plan, strategy, config, snapshot, checkpoint, threads),
        Formats::Power(arch) => execute_on(arch, plan, strategy, config, snapshot, checkpoint, threads),
    }
}

fn execute_on<A: Arch>(
    arch: A,
    plan: &Plan,
    strategy: Option<Strategy>,
    config: &str,
    snapshot: Option<&Snapshot>,
    checkpoint: &Checkpoint<'_>,
    threads: Threads,
) -> Result<Ended, CliError> {
    let failed = |error: mmusim::RunError| failure(plan, &error);
    let platform = Platform::new(arch, &plan.machine);
    let mut run = ZapRun::new(&platform, &plan.vm, plan.request, strategy, threads).map_err(failed)?;
    if let Some(snapshot) = snapshot {
        run.resume(snapshot).map_err(|error| CliError::argument("--resume", error))?;
    }
    let mut saved = (run.sim().windows(), Instant::now());
    while run.turn().map_err(failed)? {
        let stopped = checkpoint.file.is_some() && (checkpoint.stop)();
        let windows = run.sim().windows();
        let due = checkpoint.every.is_some_and(|every| windows / every > saved.0 / every)
            || checkpoint.interval.is_some_and(|interval| saved.1.elapsed() >= interval);
        if let Some(file) = checkpoint.file.filter(|_| stopped || due) {
            save(&run, config, file)?;
            saved = (windows, Instant::now());
        }
        if stopped {
            return Ok(Ended::Saved);
        }
        if checkpoint.file.is_none() && (checkpoint.stop)() {
            let what = "stopped without a --checkpoint FILE; nothing is saved";
            return Err(CliError::Stopped(what.to_owned()));
        }
    }
    Ok(Ended::Finished(Box::new(run.finish(&platform).map_err(failed)?)))
}

/// Puts a snapshot in its place, whole.
fn save<A: Arch>(run: &ZapRun<A>, config: &str, file: &Path) -> Result<(), CliError> {
    let bytes = run.save(config).map_err(|error| CliError::Check(error.to_string()))?;
    let mut output = Output::named("--checkpoint", file)?;
    output.write_bytes(&bytes)?;
    output.finish()
}

fn as_json(config: &str, report: &RunReport) -> Result<String, CliError> {
    let failed = |why: serde_json::Error| CliError::Write { to: "JSON".to_owned(), why: why.into() };
    let config: serde_json::Value = serde_json::from_str(config).map_err(failed)?;
    let document = json!({
        "schema_version": SCHEMA_VERSION,
        "versions": { "mmusim": env!("CARGO_PKG_VERSION"), "model": MODEL_VERSION },
        "experiment": "run",
        "configuration": config,
        "report": report,
    });
    serde_json::to_string_pretty(&document).map(|text| text + "\n").map_err(failed)
}

fn as_text(report: &RunReport) -> String {
    let mut text = format!("{} on {}: {}\n", report.arch, report.machine, report.strategy.unwrap_or("no zap"));
    let spread = report.spread;
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "  vCPUs finish after {} cycles (mean), {} at most, in {} windows",
        spread.mean, spread.max, report.windows
    );
    let _ = writeln!(
        text,
        "  zap {} cycles, longest without rescheduling {}",
        report.zap.finished.since(report.zap.started),
        report.zap.longest_unscheduled
    );
    let _ = writeln!(
        text,
        "  {} faults, {} remote flushes, {} cycles waiting for locks",
        report.guest.faults, report.host.remote_flushes, report.lock_wait
    );
    text
}

/// The report in integers and text.
fn record(report: &RunReport) -> Record {
    let json = serde_json::to_value(report).unwrap_or_default();
    let mut record = Record::new();
    flatten("", &json, &mut record);
    record
}

fn flatten(prefix: &str, json: &serde_json::Value, record: &mut Record) {
    for (name, value) in json.as_object().into_iter().flatten() {
        let name = format!("{prefix}{name}");
        if value.is_object() {
            flatten(&format!("{name}_"), value, record);
        } else if let Ok(datum) = Datum::from_json(value) {
            record.insert(name, datum);
        }
    }
}
