//! `explore`: the scenarios of the bug museum under a strategy, the whole museum, protocols in pairs, or a replay file.

mod pairs;
mod tour;

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use mmusim::Seed;
use mmusim::explore::lint;
use mmusim::explore::museum::{Architecture, Exhibit, UnknownArchitecture, UnknownVariant, Variant, exhibit, exhibits};
use mmusim::explore::programs::Program;
use mmusim::sim::MODEL_VERSION;
use mmusim::sim::explore::{
    Budget, Explorable, Failure, Invariant, MemoryOrder, ReplayFile, Report, Shrinking, Stats, Strategy, Trace,
};
use serde_json::json;

use crate::output::Output;
use crate::table::Columns;
use crate::{CliError, SCHEMA_VERSION};

/// `explore`.
#[derive(Args, Debug)]
pub struct ExploreArgs {
    /// Scenario: a number of the museum, as in X05 (see --list), or two protocols, as in discard+log or discard+log:huge (see --pairs)
    #[arg(value_name = "SCENARIO", required_unless_present_any = ["list", "museum", "mutants", "pairs", "replay"])]
    pub scenario: Option<String>,
    /// Switch the defect on: the scenario's number again
    #[arg(long, value_name = "ID")]
    pub bug: Option<String>,
    /// How executions are chosen, as in pct:3; --list names the strategies
    #[arg(long, default_value = "portfolio", value_name = "STRATEGY")]
    pub strategy: String,
    /// Executions at most [default: 100000, with --pairs 1000 of each]
    #[arg(long, value_name = "N")]
    pub schedules: Option<u64>,
    /// Seed of everything random
    #[arg(long, default_value_t = 1, value_name = "SEED")]
    pub seed: u64,
    /// Threads; the result does not depend on them
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Architecture: x86, arm64 or power, where the scenario has a meaning on it (see --list); its own unless given
    #[arg(long, value_name = "ARCH", conflicts_with_all = ["list", "museum", "mutants", "replay"])]
    pub arch: Option<String>,
    /// Write executions as a trace of table writes and invalidations for checkers of break-before-make (Arm; see `lint`)
    #[arg(long, value_name = "FILE", requires = "scenario")]
    pub casemate: Option<PathBuf>,
    /// Memory order: sc, tso or weak; what the scenario needs unless given
    #[arg(long, value_name = "ORDER")]
    pub memory: Option<String>,
    /// How many compare-and-swaps may fail for no reason, as exclusive pairs do; not on x86
    #[arg(long, default_value_t = 0, value_name = "N", requires = "scenario")]
    pub store_failures: u32,
    /// Begin every execution as this replay file does, and go on at random
    #[arg(long = "continue", value_name = "FILE", requires = "scenario", conflicts_with = "strategy")]
    pub go_on: Option<PathBuf>,
    /// List the scenarios and the strategies
    #[arg(long, conflicts_with_all = ["museum", "replay"])]
    pub list: bool,
    /// Run every scenario with its defect, under several strategies and seeds, and without it
    #[arg(long, conflicts_with = "replay")]
    pub museum: bool,
    /// Run every scenario without its defect, but with host steps of one kind gone wrong: which mutations does nobody notice?
    #[arg(long, conflicts_with_all = ["list", "museum", "replay"])]
    pub mutants: bool,
    /// Run every two protocols as they are today against each other, beside a guest
    #[arg(long, conflicts_with_all = ["scenario", "list", "museum", "mutants", "replay", "bug", "save", "go_on", "store_failures", "casemate"])]
    pub pairs: bool,
    /// With --museum: only these numbers, separated by commas
    #[arg(long, value_name = "IDS", value_delimiter = ',', requires = "museum")]
    pub only: Vec<String>,
    /// With --museum: seeds of each strategy
    #[arg(long, default_value_t = 10, value_name = "N", requires = "museum")]
    pub seeds: u64,
    /// With --museum: executions after which a strategy gives a defect up
    #[arg(long, default_value_t = 20_000, value_name = "N", requires = "museum")]
    pub most: u64,
    /// With --museum: a table in Markdown, as docs/bug-museum.md
    #[arg(long, requires = "museum", conflicts_with = "json")]
    pub markdown: bool,
    /// Repeat a failure exactly, or stop at the first divergence
    #[arg(long, value_name = "FILE")]
    pub replay: Option<PathBuf>,
    /// Write a failure to a file for --replay
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    /// Leave a failure as it was found
    #[arg(long)]
    pub no_shrink: bool,
    /// Write JSON
    #[arg(long)]
    pub json: bool,
    /// Write to a file, which appears when it is complete
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Executions, unless told otherwise.
const SCHEDULES: u64 = 100_000;

/// Does what the arguments say.
pub fn run(args: &ExploreArgs) -> Result<(), CliError> {
    let Some(threads) = args.threads else { return run_here(args) };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.max(1)).build();
    let pool = pool.map_err(|error| CliError::argument(format!("--threads {threads}"), error))?;
    pool.install(|| run_here(args))
}

fn run_here(args: &ExploreArgs) -> Result<(), CliError> {
    if args.list {
        return list(args);
    }
    if args.museum {
        return tour::museum(args);
    }
    if args.mutants {
        return tour::mutants(args);
    }
    if args.pairs {
        return pairs::all(args);
    }
    match (&args.replay, &args.scenario) {
        (Some(file), _) => replay(args, file),
        (None, Some(name)) => explore(args, name),
        (None, None) => Err(CliError::argument("SCENARIO", "name one; --list shows them")),
    }
}

fn find(name: &str) -> Result<Exhibit, CliError> {
    exhibit(name)
        .ok_or_else(|| CliError::argument(format!("scenario {name}"), "there is none of this name; --list shows them"))
}

fn memory_of(name: &str) -> Result<MemoryOrder, CliError> {
    let all = [MemoryOrder::Sequential, MemoryOrder::StoreBuffer, MemoryOrder::Weak];
    let found = all.into_iter().find(|order| order.name() == name);
    found.ok_or_else(|| CliError::argument(format!("--memory {name}"), "use sc, tso or weak"))
}

fn architecture_of(name: &str) -> Result<Architecture, CliError> {
    name.parse().map_err(|error: UnknownArchitecture| CliError::argument(format!("--arch {name}"), error))
}

/// The architecture of a name, if the scenario has a meaning on it.
fn architecture(exhibit: &Exhibit, name: Option<&str>) -> Result<Architecture, CliError> {
    let arch = architecture_of(name.unwrap_or(exhibit.arch))?;
    let all = exhibit.architectures();
    if all.contains(&arch) {
        return Ok(arch);
    }
    let names = all.iter().map(|arch| arch.name()).collect::<Vec<_>>().join(", ");
    let what = format!("scenario {} means nothing there: what it shows exists on {names} only", exhibit.id);
    Err(CliError::argument(format!("--arch {arch}"), what))
}

/// The pair of a name, if it is one's: on x86 unless told otherwise.
fn pair(name: &str, arch: Option<&str>) -> Option<Result<Program, CliError>> {
    match arch.map_or(Ok(Architecture::X86), architecture_of) {
        Ok(arch) => pairs::named(name, arch),
        // Whose name it is says which architectures there are.
        Err(error) => pairs::named(name, Architecture::X86).map(|_| Err(error)),
    }
}

fn scenario(
    exhibit: &Exhibit,
    variant: Variant,
    arch: Architecture,
    memory: Option<&str>,
) -> Result<Box<dyn Explorable>, CliError> {
    let mut scenario = exhibit.scenario_on(arch, variant).unwrap_or_else(|| exhibit.scenario(variant));
    set_memory(scenario.as_mut(), memory)?;
    Ok(scenario)
}

fn set_memory(scenario: &mut dyn Explorable, memory: Option<&str>) -> Result<(), CliError> {
    if let Some(name) = memory {
        scenario.limits_mut().memory = memory_of(name)?;
    }
    Ok(())
}

fn explore(args: &ExploreArgs, name: &str) -> Result<(), CliError> {
    if let Some(program) = pair(name, args.arch.as_deref()) {
        return explore_pair(args, &program?);
    }
    let exhibit = find(name)?;
    let variant = match &args.bug {
        None => Variant::Fixed,
        Some(bug) if bug.eq_ignore_ascii_case(exhibit.id) => Variant::Broken,
        Some(bug) => {
            let what = format!("scenario {} has the defect {} only", exhibit.id, exhibit.id);
            return Err(CliError::argument(format!("--bug {bug}"), what));
        }
    };
    let arch = architecture(&exhibit, args.arch.as_deref())?;
    let mut scenario = scenario(&exhibit, variant, arch, args.memory.as_deref())?;
    let report = look(args, exhibit.id, arch, scenario.as_mut())?;
    let memory = scenario.limits_mut().memory;
    let file = report.failure.as_ref().map(|failure| ReplayFile {
        store_failures: args.store_failures,
        ..file_of(exhibit.id, variant, (arch.name() != exhibit.arch).then_some(arch), memory, failure)
    });
    conclude(args, &report, file.as_ref())
}

fn explore_pair(args: &ExploreArgs, program: &Program) -> Result<(), CliError> {
    if let Some(bug) = &args.bug {
        return Err(CliError::argument(
            format!("--bug {bug}"),
            "two protocols as they are today have no defect to switch on",
        ));
    }
    let mut scenario = program.scenario();
    set_memory(scenario.as_mut(), args.memory.as_deref())?;
    let report = look(args, &program.name(), program.arch, scenario.as_mut())?;
    let memory = scenario.limits_mut().memory;
    let file = report
        .failure
        .as_ref()
        .map(|failure| ReplayFile { store_failures: args.store_failures, ..pairs::file_of(program, memory, failure) });
    conclude(args, &report, file.as_ref())
}

/// Explores a scenario as the arguments say, and writes its executions for others if they say so.
fn look(args: &ExploreArgs, name: &str, arch: Architecture, scenario: &mut dyn Explorable) -> Result<Report, CliError> {
    allow_store_failures(name, arch, scenario, args.store_failures)?;
    let strategy = match &args.go_on {
        Some(path) => Strategy::Continue(read_replay(path)?.decisions),
        None => args.strategy.parse().map_err(|error| CliError::argument("--strategy", error))?,
    };
    let shrinking = if args.no_shrink { Shrinking::Off } else { Shrinking::Thorough };
    let schedules = args.schedules.unwrap_or(SCHEDULES);
    let report = scenario.explore(&strategy, Budget { schedules, seed: Seed(args.seed), shrinking });
    if let Some(path) = &args.casemate {
        casemate(scenario, arch, &report, args.seed, path)?;
    }
    Ok(report)
}

/// Saves a failure if the arguments say so, and reports.
fn conclude(args: &ExploreArgs, report: &Report, file: Option<&ReplayFile>) -> Result<(), CliError> {
    if let (Some(path), Some(file)) = (&args.save, file) {
        let mut output = Output::open(Some(path))?;
        output.write(&file.write())?;
        output.finish()?;
    }
    finish(args, report, file)
}

/// Compare-and-swaps that may fail for no reason, where they can.
fn allow_store_failures(
    name: &str,
    arch: Architecture,
    scenario: &mut dyn Explorable,
    most: u32,
) -> Result<(), CliError> {
    if most > 0 && arch == Architecture::X86 {
        let what = format!("scenario {name} is on x86, where a compare-and-swap fails only if the word is another");
        return Err(CliError::argument(format!("--store-failures {most}"), what));
    }
    scenario.limits_mut().store_failures = most;
    Ok(())
}

/// Executions at random that a trace file has.
const TRACED: u64 = 16;

/// Writes a failure, or else executions at random, for checkers of break-before-make.
fn casemate(
    scenario: &dyn Explorable,
    arch: Architecture,
    report: &Report,
    seed: u64,
    path: &Path,
) -> Result<(), CliError> {
    if arch != Architecture::Arm64 {
        return Err(CliError::argument(
            "--casemate",
            format!("the traces are of Arm's tables; this scenario is on {arch}"),
        ));
    }
    let traces: Vec<Trace> = match &report.failure {
        Some(failure) => vec![scenario.trace(&failure.decisions)],
        None => (0..TRACED).map(|number| scenario.trace_at_random(Seed(seed), number)).collect(),
    };
    let document = lint::casemate(&traces).map_err(|error| CliError::argument("--casemate", error))?;
    let mut output = Output::open(Some(path))?;
    output.write(&format!("{document:#}\n"))?;
    output.finish()
}

fn read_replay(path: &Path) -> Result<ReplayFile, CliError> {
    let name = path.display();
    let text = fs::read_to_string(path)
        .map_err(|error| CliError::input(format!("{name}: cannot read: {error}; name a file that exists")))?;
    ReplayFile::read(&text).map_err(|error| CliError::input(format!("{name}: {error}")))
}

/// A failure, to be repeated; `arch` where the scenario's name does not say it.
fn file_of(
    scenario: &str,
    variant: Variant,
    arch: Option<Architecture>,
    memory: MemoryOrder,
    failure: &Failure,
) -> ReplayFile {
    ReplayFile {
        scenario: scenario.to_owned(),
        variant: variant.name().to_owned(),
        memory: memory.name().to_owned(),
        arch: arch.map(|arch| arch.name().to_owned()),
        without: failure.without,
        store_failures: 0,
        model: MODEL_VERSION,
        invariant: failure.broken.invariant,
        decisions: failure.decisions.clone(),
        digest: failure.digest,
    }
}

fn finish(args: &ExploreArgs, report: &Report, file: Option<&ReplayFile>) -> Result<(), CliError> {
    let mut output = Output::open(args.output.as_deref())?;
    output.write(&if args.json { as_json(report, file) } else { as_text(report, file) })?;
    output.finish()?;
    match (&report.failure, report.unevaluated.as_slice()) {
        (None, []) => Ok(()),
        (None, never) => {
            Err(CliError::Check(format!("{} never evaluated: the verdict says nothing about it", names(never))))
        }
        (Some(failure), _) => Err(CliError::Check(failure.broken.to_string())),
    }
}

fn names(invariants: &[Invariant]) -> String {
    invariants.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn as_text(report: &Report, file: Option<&ReplayFile>) -> String {
    let stats = &report.stats;
    let evaluated: Vec<String> =
        stats.evaluations.evaluated().map(|(invariant, times)| format!("{invariant} {times}")).collect();
    let mut text = format!(
        "scenario {}: {}\n{} executions, {} steps, the longest {}; {} redundant, {} cut off\n{}evaluated: {}\n",
        report.scenario,
        report.verdict.name(),
        stats.executions,
        stats.steps,
        stats.longest,
        stats.redundant,
        stats.cut,
        distinct(stats),
        evaluated.join(", ")
    );
    if let Some(failure) = &report.failure {
        let (executions, preemptions) = (failure.executions, failure.preemptions);
        let found = format!("found after {executions} executions; {preemptions} preemptions, ");
        let choices = format!("{} choices out of the ordinary\n\n", failure.choices());
        text.extend([found, choices, failure.table()]);
    }
    if let Some(file) = file {
        text.extend(["\nTo repeat it, save this as a file for --replay:\n\n", &file.write()]);
    }
    text
}

/// What searches count.
fn distinct(stats: &Stats) -> String {
    match (stats.states, stats.endings) {
        (0, 0) => String::new(),
        (0, endings) => format!("{endings} distinct endings\n"),
        (states, 0) => format!("{states} distinct states\n"),
        (states, endings) => format!("{states} distinct states, {endings} distinct endings\n"),
    }
}

fn as_json(report: &Report, file: Option<&ReplayFile>) -> String {
    let stats = &report.stats;
    let evaluations: serde_json::Map<String, serde_json::Value> =
        stats.evaluations.evaluated().map(|(invariant, times)| (invariant.to_string(), times.into())).collect();
    let failure = report.failure.as_ref().map(|failure| {
        let steps: Vec<_> = failure
            .steps
            .iter()
            .map(|step| json!({ "step": step.number, "agent": step.agent.0, "what": step.what }))
            .collect();
        json!({
            "invariant": failure.broken.invariant.id(),
            "what": failure.broken.what,
            "step": failure.broken.step,
            "agent": failure.broken.agent.0,
            "executions": failure.executions,
            "preemptions": failure.preemptions,
            "choices": failure.choices(),
            "actors": failure.actors,
            "without": failure.without.iter().collect::<Vec<_>>(),
            "steps": steps,
            "replay": file.map(ReplayFile::write),
        })
    });
    let document = json!({
        "schema_version": SCHEMA_VERSION,
        "scenario": report.scenario,
        "verdict": report.verdict.name(),
        "executions": stats.executions,
        "steps": stats.steps,
        "longest": stats.longest,
        "redundant": stats.redundant,
        "cut": stats.cut,
        "states": stats.states,
        "endings": stats.endings,
        "digest": format!("{:016x}", stats.digest),
        "evaluations": evaluations,
        "unevaluated": report.unevaluated.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "failure": failure,
    });
    format!("{document:#}\n")
}

fn replay(args: &ExploreArgs, path: &Path) -> Result<(), CliError> {
    let name = path.display();
    let file = read_replay(path)?;
    let mut scenario = scenario_of(&file, path)?;
    let limits = scenario.limits_mut();
    (limits.without, limits.store_failures) = (file.without, file.store_failures);
    let version = if file.model == MODEL_VERSION {
        String::new()
    } else {
        format!("; the file is of model {}, this program of {MODEL_VERSION}", file.model)
    };
    let report = scenario
        .replay(&file.decisions)
        .map_err(|error| CliError::Check(format!("{name}: the replay diverges: {error}{version}")))?;
    let found = report.failure.as_ref().map(|failure| (failure.broken.invariant, failure.digest));
    if found != Some((file.invariant, file.digest)) {
        let what = match &report.failure {
            Some(failure) => format!("it ends otherwise: {}", failure.broken),
            None => format!("{} is not broken any more", file.invariant),
        };
        return Err(CliError::Check(format!("{name}: the replay diverges at its end: {what}{version}")));
    }
    finish(args, &report, None)
}

/// The scenario that a replay file is about.
fn scenario_of(file: &ReplayFile, path: &Path) -> Result<Box<dyn Explorable>, CliError> {
    let name = path.display();
    let variant: Variant =
        file.variant.parse().map_err(|error: UnknownVariant| CliError::input(format!("{name}: {error}")))?;
    if let Some(program) = pair(&file.scenario, file.arch.as_deref()) {
        if variant == Variant::Broken {
            let what = "two protocols as they are today have no defect to switch on; it is off";
            return Err(CliError::input(format!("{name}: bug {}: {what}", file.variant)));
        }
        let program = program.map_err(|error| match error {
            CliError::Argument { argument, what } => CliError::input(format!("{name}: {argument}: {what}")),
            other => other,
        })?;
        let mut scenario = program.scenario();
        set_memory(scenario.as_mut(), Some(&file.memory))?;
        return Ok(scenario);
    }
    let exhibit = exhibit(&file.scenario).ok_or_else(|| {
        CliError::input(format!("{name}: scenario {:?} is unknown; --list shows those there are", file.scenario))
    })?;
    let arch = architecture(&exhibit, file.arch.as_deref())?;
    scenario(&exhibit, variant, arch, Some(&file.memory))
}

fn list(args: &ExploreArgs) -> Result<(), CliError> {
    let mut output = Output::open(args.output.as_deref())?;
    let rows = exhibits();
    let breaks = |exhibit: &Exhibit| exhibit.breaks.iter().map(ToString::to_string).collect::<Vec<_>>();
    if args.json {
        let rows: Vec<_> = rows
            .iter()
            .map(|row| {
                let runs_on: Vec<_> = row.architectures().iter().map(|arch| arch.name()).collect();
                let (breaks, arch) = (breaks(row), row.arch);
                json!({ "id": row.id, "arch": arch, "runs_on": runs_on, "breaks": breaks, "title": row.title })
            })
            .collect();
        let strategies = Strategy::NAMED.map(|(name, what)| json!({ "name": name, "what": what }));
        let document = json!({ "schema_version": SCHEMA_VERSION, "scenarios": rows, "strategies": strategies });
        output.write(&format!("{document:#}\n"))?;
        return output.finish();
    }
    let mut columns = Columns::new(4, &["scenario", "architecture", "breaks", "defect"]);
    for row in &rows {
        // Its own first.
        let others = row.architectures().into_iter().map(Architecture::name).filter(|&name| name != row.arch);
        let runs_on: Vec<&str> = std::iter::once(row.arch).chain(others).collect();
        columns.row([row.id.to_owned(), runs_on.join(" "), breaks(row).join(" "), row.title.to_owned()]);
    }
    output.write(&columns.render())?;
    let mut strategies = Columns::new(2, &["strategy", "looks at"]);
    for (name, what) in Strategy::NAMED {
        strategies.row([name.to_owned(), what.to_owned()]);
    }
    output.write(&format!("\n{}", strategies.render()))?;
    output.finish()
}
