//! `compare zap`: from arguments to plans, from plans to reports.
//!
//! Everything that can be wrong with the arguments is found before the first run: a plan is complete, and its guest has
//! been built once.

pub(crate) mod plan;
mod report;

use mmu_sweep::Record;
use rayon::{ThreadPool, ThreadPoolBuilder};

use mmusim::sim::arch::Arch;
use mmusim::{Platform, RunError, Threads, ZapReport, compare_zap, strategies};

use crate::CliError;
use crate::args::CompareZap;
use crate::invocation::Invocation;
use crate::output::Output;
use crate::platform::Formats;
use crate::progress::Progress;
use crate::record::Recorder;
use plan::Plan;

/// `compare zap`.
pub(crate) fn zap(args: &CompareZap, invocation: &Invocation) -> Result<(), CliError> {
    let plans = plan::plans(args)?;
    let mut output = Output::open(args.output.as_deref())?;
    let mut recorder = Recorder::open(&args.record)?;
    let workers = Workers::new(args.threads)?;
    // One run without a zap, then one for each strategy.
    let progress = Progress::new((plans.len() * (1 + strategies().len())) as u64);
    let mut runs = Vec::with_capacity(plans.len());
    for plan in plans {
        let report = workers.run(&plan, &progress, &mut recorder)?;
        if !args.json && !args.csv {
            let text = report::as_table(&plan, &report);
            progress.aside(|| output.write(&text))?;
        }
        runs.push((plan, report));
    }
    drop(progress);
    if args.json {
        output.write(&report::as_json(args, &runs, invocation)?)?;
    } else if args.csv {
        output.write(&report::as_csv(&runs)?)?;
    }
    recorder.finish(Some(invocation))?;
    output.finish()
}

/// What is wrong with arguments, if anything is.
///
/// # Errors
/// What `compare zap` would say before the first run.
pub(crate) fn check(args: &CompareZap) -> Result<(), CliError> {
    plan::plans(args).map(drop)
}

/// The rows of a comparison as sweeps keep them: integers and text, and nothing about where files lie.
///
/// # Errors
/// As `compare zap`.
pub(crate) fn rows(args: &CompareZap) -> Result<Vec<Record>, CliError> {
    let mut rows = Vec::new();
    for plan in plan::plans(args)? {
        // Sweeps run points side by side; threads inside one would only wait for each other.
        let report = Workers(None).run(&plan, &Progress::hidden(), &mut Recorder::default())?;
        rows.extend(report::records(&plan, &report));
    }
    Ok(rows)
}

/// The threads that simulate vCPUs.
pub(crate) struct Workers(Option<ThreadPool>);

impl Workers {
    pub(crate) fn new(threads: Option<u32>) -> Result<Self, CliError> {
        if threads == Some(1) {
            return Ok(Self(None));
        }
        // Zero means one thread per processor.
        let threads = threads.unwrap_or(0);
        let pool = ThreadPoolBuilder::new().num_threads(threads as usize).build();
        let pool = pool.map_err(|error| {
            CliError::argument(format!("--threads {threads}"), format!("cannot start threads: {error}; use fewer"))
        })?;
        Ok(Self(Some(pool)))
    }

    /// Does something with these threads at hand.
    pub(crate) fn with<T: Send>(&self, work: impl FnOnce(Threads) -> T + Send) -> T {
        match &self.0 {
            None => work(Threads::One),
            Some(pool) => pool.install(|| work(Threads::Pool)),
        }
    }

    fn run(&self, plan: &Plan, progress: &Progress, recorder: &mut Recorder) -> Result<ZapReport, CliError> {
        match plan.formats {
            Formats::X86(arch) => self.run_on(arch, plan, progress, recorder),
            Formats::Arm64(arch) => self.run_on(arch, plan, progress, recorder),
            Formats::Power(arch) => self.run_on(arch, plan, progress, recorder),
        }
    }

    fn run_on<A: Arch>(
        &self,
        arch: A,
        plan: &Plan,
        progress: &Progress,
        recorder: &mut Recorder,
    ) -> Result<ZapReport, CliError> {
        let platform = recorder.on(Platform::new(arch, &plan.machine));
        let strategies = strategies();
        let mut done = 0;
        let mut recorded = Ok(());
        let mut step = || {
            progress.step();
            if recorded.is_ok() {
                recorded = recorder.drain(arch.name());
            }
            let what = strategies.get(done).map_or("", |strategy| strategy.name);
            progress.say(format!("{}: {what}", arch.name()));
            done += 1;
        };
        progress.say(format!("{}: without a zap", arch.name()));
        let result = match &self.0 {
            None => compare_zap(&platform, &plan.vm, plan.request, &strategies, Threads::One, step),
            Some(pool) => {
                pool.install(|| compare_zap(&platform, &plan.vm, plan.request, &strategies, Threads::Pool, &mut step))
            }
        };
        recorded?;
        result.map_err(|error| failure(plan, &error))
    }
}

/// Guests that cannot go on were given too little or damaged input; anything else is a finding.
pub(crate) fn failure(plan: &Plan, error: &RunError) -> CliError {
    let place = format!("{} on {}", plan.arch_name(), plan.machine.name);
    match error {
        RunError::Build(error) => plan::refused(plan, error),
        RunError::Guest(why) => CliError::Input(format!("{place}: {why}")),
        RunError::Deadlock { .. } => CliError::Check(format!("{place}, seed {}: {error}", plan.vm.seed.0)),
        RunError::Violations(all) => {
            let listed = all.join("\n  ");
            CliError::Check(format!("{place}, seed {}: {} invariants violated:\n  {listed}", plan.vm.seed.0, all.len()))
        }
    }
}
