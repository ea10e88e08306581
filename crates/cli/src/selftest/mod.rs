//! `selftest NAME`: KVM's own tests by their names and options.
//!
//! One file per test holds its arguments (a struct with the kernel test's option letters) and turns them into options of
//! [`mmusim::sim::selftests`]; one line in [`Selftest`] and one in `run` make it a command. `report` writes what they found.

mod access_tracking;
mod block_transitions;
mod demand_paging;
mod dirty_log;
mod dirty_log_page_splitting;
mod dirty_log_perf;
mod max_guest_memory;
mod memslot_modification;
mod memslot_perf;
mod mmu_stress;
mod nx_huge_pages;
mod nx_huge_pages_perf;
mod page_table;
mod pre_fault;
mod report;
mod vm_options;

use clap::{ArgGroup, Args, Command, Subcommand};
use mmu_sweep::Record as Row;
use mmusim::sim::arch::Arch;
use mmusim::sim::selftests::{SelftestError, SelftestReport};
use mmusim::{Bytes, Platform};

use crate::CliError;
use crate::args::ArchName;
use crate::invocation::Invocation;
use crate::output::Output;
use crate::platform::{Formats, formats, machines};
use crate::record::{Record, Recorder};

/// `selftest`.
#[derive(Args, Debug)]
#[command(arg_required_else_help = true, subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
pub struct Selftests {
    /// List the tests, one a line
    #[arg(long, required = true)]
    list: bool,
    /// Which
    #[command(subcommand)]
    test: Option<Selftest>,
}

/// The tests.
#[derive(Subcommand, Debug)]
#[command(rename_all = "snake_case")]
pub enum Selftest {
    /// What tracking which pages are used costs the guest, and the host
    AccessTrackingPerfTest(access_tracking::Arguments),
    /// All vCPUs touch all pages of their regions for the first time
    DemandPagingTest(demand_paging::Arguments),
    /// What dirty logging costs vCPUs that write all of their memory
    DirtyLogPerfTest(dirty_log_perf::Arguments),
    /// The log says what was written, while a guest never stops writing
    DirtyLogTest(dirty_log::Arguments),
    /// No large page is left while writes are logged, and they come back afterwards (x86)
    DirtyLogPageSplittingTest(dirty_log_page_splitting::Arguments),
    /// All vCPUs create, split and rebuild the mappings of the same memory
    KvmPageTableTest(page_table::Arguments),
    /// vCPUs use their memory while a slot beside it comes and goes
    MemslotModificationStressTest(memslot_modification::Arguments),
    /// How fast memory in very many slots is mapped, unmapped, moved and used
    MemslotPerfTest(memslot_perf::Arguments),
    /// Memory is faulted in ahead of the guest while its slot is deleted and recreated
    PreFaultMemoryTest(pre_fault::Arguments),
    /// Pages become blocks and blocks become pages, and every run succeeds (arm64)
    #[command(name = "stage2_block_transitions")]
    Stage2BlockTransitions(block_transitions::Arguments),
    /// All memory is written, the roots are reset, all is written again, and taken apart
    MaxGuestMemoryTest(max_guest_memory::Arguments),
    /// The same, and writes to memory that becomes read-only
    MmuStressTest(mmu_stress::Arguments),
    /// Executing in a huge page splits it, recovery puts it back (x86)
    NxHugePagesTest(nx_huge_pages::Arguments),
    /// How long faults wait while split pages are recovered (x86)
    NxHugePagesPerfTest(nx_huge_pages_perf::Arguments),
}

/// Arguments of every test.
#[derive(Args, Debug)]
#[command(group = ArgGroup::new("as").args(["json", "csv"]))]
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
    /// Write CSV, one line per phase
    #[arg(long)]
    pub csv: bool,
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

/// Lists the tests, or runs one on the machines asked for.
pub(crate) fn run(selftests: &Selftests, invocation: &Invocation) -> Result<(), CliError> {
    match &selftests.test {
        Some(test) => {
            run_named(test, Some(invocation)).and_then(|(reports, common)| write(&reports, common, invocation))
        }
        None => list(),
    }
}

fn list() -> Result<(), CliError> {
    let mut output = Output::open(None)?;
    for test in Selftest::augment_subcommands(Command::new("selftest")).get_subcommands() {
        let about = test.get_about().map(ToString::to_string).unwrap_or_default();
        output.write(&format!("{:<32} {about}\n", test.get_name()))?;
    }
    output.finish()
}

fn run_named<'a>(
    test: &'a Selftest,
    invocation: Option<&Invocation>,
) -> Result<(Vec<SelftestReport>, &'a Common), CliError> {
    match test {
        Selftest::AccessTrackingPerfTest(test) => run_test(test, invocation),
        Selftest::DemandPagingTest(test) => run_test(test, invocation),
        Selftest::DirtyLogPerfTest(test) => run_test(test, invocation),
        Selftest::DirtyLogTest(test) => run_test(test, invocation),
        Selftest::DirtyLogPageSplittingTest(test) => run_test(test, invocation),
        Selftest::KvmPageTableTest(test) => run_test(test, invocation),
        Selftest::MemslotModificationStressTest(test) => run_test(test, invocation),
        Selftest::MemslotPerfTest(test) => run_test(test, invocation),
        Selftest::PreFaultMemoryTest(test) => run_test(test, invocation),
        Selftest::Stage2BlockTransitions(test) => run_test(test, invocation),
        Selftest::MaxGuestMemoryTest(test) => run_test(test, invocation),
        Selftest::MmuStressTest(test) => run_test(test, invocation),
        Selftest::NxHugePagesTest(test) => run_test(test, invocation),
        Selftest::NxHugePagesPerfTest(test) => run_test(test, invocation),
    }
}

/// The rows of a test as sweeps keep them: integers and text.
///
/// # Errors
/// As `selftest`; a check that does not hold is a row, not an error.
pub(crate) fn rows(selftests: &Selftests) -> Result<Vec<Row>, CliError> {
    let reports = match &selftests.test {
        Some(test) => run_named(test, None)?.0,
        None => return Err(CliError::argument("--list", "is no test")),
    };
    Ok(reports.iter().flat_map(report::records).collect())
}

/// Runs a test on every machine asked for.
fn run_test<'a>(
    test: &'a impl Test,
    invocation: Option<&Invocation>,
) -> Result<(Vec<SelftestReport>, &'a Common), CliError> {
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
        match report {
            Ok(report) => reports.push(report),
            Err(error) => {
                recorder.finish(invocation)?;
                return Err(error);
            }
        }
    }
    recorder.finish(invocation)?;
    Ok((reports, common))
}

/// Writes reports as they are asked for; a check that does not hold is an error.
fn write(reports: &[SelftestReport], common: &Common, invocation: &Invocation) -> Result<(), CliError> {
    let mut output = Output::open(common.output.as_deref())?;
    if common.json {
        output.write(&report::as_json(reports, invocation)?)?;
    } else if common.csv {
        output.write(&report::as_csv(reports)?)?;
    } else {
        for report in reports {
            output.write(&report::as_table(report))?;
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
