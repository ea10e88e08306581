//! `selftest NAME`: KVM's own tests by their names and options.
//!
//! One file per test holds its arguments (a struct with the kernel test's option letters) and turns them into options of
//! [`mmusim::sim::selftests`]; one line in [`Selftest`] and one in [`run`] make it a command.

mod access_tracking;
mod block_transitions;
mod demand_paging;
mod page_table;
mod pre_fault;

use std::fmt::Write;

use clap::{Args, Subcommand};
use mmusim::sim::arch::Arch;
use mmusim::sim::selftests::{SelftestError, SelftestReport};
use mmusim::{Bytes, Platform};

use crate::CliError;
use crate::args::ArchName;
use crate::output::Output;
use crate::platform::{Formats, formats, machines};
use crate::record::{Record, Recorder};
use crate::table::{Columns, compact};

/// The tests.
#[derive(Subcommand, Debug)]
#[command(rename_all = "snake_case")]
pub enum Selftest {
    /// What tracking which pages are used costs the guest, and the host
    AccessTrackingPerfTest(access_tracking::Arguments),
    /// All vCPUs touch all pages of their regions for the first time
    DemandPagingTest(demand_paging::Arguments),
    /// All vCPUs create, split and rebuild the mappings of the same memory
    KvmPageTableTest(page_table::Arguments),
    /// Memory is faulted in ahead of the guest while its slot is deleted and recreated
    PreFaultMemoryTest(pre_fault::Arguments),
    /// Pages become blocks and blocks become pages, and every run succeeds (arm64)
    #[command(name = "stage2_block_transitions")]
    Stage2BlockTransitions(block_transitions::Arguments),
}

/// Arguments of every test.
#[derive(Args, Debug)]
pub struct Common {
    /// Architectures to run on, in this order [default: all, or that of --machine]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "LIST")]
    pub arch: Vec<ArchName>,
    /// A built-in machine or a sheet of one's own [default: one machine per architecture]
    #[arg(long, value_name = "NAME|FILE.toml")]
    pub machine: Option<String>,
    /// Write JSON
    #[arg(long)]
    pub json: bool,
    /// Write to a file instead of standard output
    #[arg(long, value_name = "FILE")]
    pub output: Option<std::path::PathBuf>,
    /// What to record
    #[command(flatten)]
    pub record: Record,
}

/// One test with its arguments.
pub(crate) trait Test {
    /// What every test is told.
    fn common(&self) -> &Common;
    /// Guest memory that it needs, so that the tables have enough levels.
    fn memory(&self) -> Bytes;
    /// Runs it on one machine.
    fn run<A: Arch>(&self, platform: &Platform<A>) -> Result<SelftestReport, SelftestError>;
}

/// Runs a test on the machines asked for.
pub(crate) fn run(test: &Selftest) -> Result<(), CliError> {
    match test {
        Selftest::AccessTrackingPerfTest(test) => run_test(test),
        Selftest::DemandPagingTest(test) => run_test(test),
        Selftest::KvmPageTableTest(test) => run_test(test),
        Selftest::PreFaultMemoryTest(test) => run_test(test),
        Selftest::Stage2BlockTransitions(test) => run_test(test),
    }
}

fn run_test(test: &impl Test) -> Result<(), CliError> {
    let common = test.common();
    let mut reports = Vec::new();
    let mut recorder = Recorder::open(&common.record)?;
    for machine in machines(common.machine.as_deref(), &common.arch)? {
        let report = match formats(&machine, test.memory())? {
            Formats::X86(arch) => test.run(&recorder.on(Platform::new(arch, &machine))),
            Formats::Arm64(arch) => test.run(&recorder.on(Platform::new(arch, &machine))),
            Formats::Power(arch) => test.run(&recorder.on(Platform::new(arch, &machine))),
        };
        if let Err(error @ SelftestError::Architecture { .. }) = &report
            && common.arch.is_empty()
            && common.machine.is_none()
        {
            // Nobody asked for this architecture by name.
            eprintln!("skipped: {error}");
            continue;
        }
        let report = report.map_err(refused);
        // What led to a failure is worth looking at.
        recorder.drain(&report.as_ref().map_or_else(|_| machine.name.clone(), title))?;
        reports.push(report?);
    }
    recorder.finish()?;
    let mut output = Output::open(common.output.as_deref())?;
    if common.json {
        let text = serde_json::to_string_pretty(&reports).map_err(CliError::input)?;
        output.write(&format!("{text}\n"))?;
    } else {
        for report in &reports {
            output.write(&draw(report))?;
        }
    }
    output.finish()?;
    let failed: Vec<String> = reports
        .iter()
        .flat_map(|report| report.failed().map(|check| format!("{} on {}: {}", report.test, report.arch, check.what)))
        .collect();
    if failed.is_empty() { Ok(()) } else { Err(CliError::Check(failed.join("\n"))) }
}

fn title(report: &SelftestReport) -> String {
    format!("{} on {}", report.test, report.arch)
}

fn refused(error: SelftestError) -> CliError {
    match error {
        SelftestError::Option { option, what } => CliError::argument(option, what),
        SelftestError::Build(_) | SelftestError::Architecture { .. } => CliError::input(error),
        SelftestError::Deadlock(_) | SelftestError::Guest(_) | SelftestError::Violations(_) => {
            CliError::Check(error.to_string())
        }
    }
}

fn draw(report: &SelftestReport) -> String {
    let mut text = format!("{} on {} ({})\n", report.test, report.machine, report.arch);
    let mut columns = Columns::new(
        1,
        &["phase", "seconds", "cycles", "visits", "remote\nflushes", "tables\nallocated", "retried\nfaults"],
    );
    for phase in &report.phases {
        columns.row([
            phase.name.clone(),
            format!("{:.6}", report.seconds(phase.cycles)),
            compact(phase.cycles.0),
            compact(phase.host.visits),
            compact(phase.host.remote_flushes),
            compact(phase.host.tables_allocated),
            compact(phase.host.retried_faults),
        ]);
    }
    text += &columns.render();
    for (name, value) in &report.figures {
        let _ = writeln!(text, "{name}: {value:.3}");
    }
    for check in &report.checks {
        let _ = writeln!(text, "{}: {}", if check.held { "ok" } else { "FAILED" }, check.what);
    }
    text.push('\n');
    text
}
