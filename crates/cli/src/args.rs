//! The command line.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use mmusim::trace::{Selection, TraceFormat};
use mmusim::{Bytes, GuestPaging, PageSize};

pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  everything was done (also when the reader of a pipe had enough)
  1  a check failed: vectors disagree, an invariant is violated, a deadlock
  2  bad usage or bad input: an argument, a file, a machine sheet
  3  incomplete: the results could not be written, or a sweep's are not all there
  75 stopped before the end, by a signal or a time limit: run the same again to go on

Standard output carries data only. Colour and progress appear on a terminal only; NO_COLOR turns colour off.";

/// A cycle-level simulator of second-stage page tables: x86 EPT, Arm stage 2, POWER radix, and the hypervisor's side.
#[derive(Parser, Debug)]
#[command(name = "mmusim", version, after_help = EXIT_CODES, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Compare ways of doing the same on running guests
    #[command(subcommand)]
    Compare(Compare),
    /// Run one of KVM's own tests on simulated machines
    #[command(after_help = EXIT_CODES)]
    Selftest(crate::selftest::Selftests),
    /// Replay translations that emulators recorded through the walkers
    CheckVectors(JudgedFiles),
    /// Check permission matrices and break-before-make rules against formats and walkers
    CheckMatrix(JudgedFiles),
    /// Run protocols adversarially: every order of steps is a decision, every step is held to the invariants
    #[command(after_help = EXIT_CODES)]
    Explore(crate::explore::ExploreArgs),
    /// Run page-table litmus tests on an exhaustive model of entries, TLBs and invalidations, or in the timed engine
    #[command(after_help = EXIT_CODES)]
    Litmus(crate::litmus::LitmusArgs),
    /// Replay traces of table updates through the protocol lint: break, DSB, TLBI, DSB, make
    #[command(after_help = EXIT_CODES)]
    Lint(JudgedFiles),
    /// Memory traces: what is in them, and from one format to another
    #[command(subcommand)]
    Trace(Trace),
    /// Replay a trace through TLBs alone and count hits, misses and page walks
    Tlb(crate::tlb::TlbArgs),
    /// Run one zap strategy, or none, under running guests; save the run and go on later
    #[command(after_help = EXIT_CODES)]
    Run(crate::run::RunArgs),
    /// Many experiments, on one machine or many: plans, shards that may be killed, merges
    #[command(subcommand)]
    Sweep(crate::sweep::Sweep),
    /// Run published measurements again and compare their ratios
    Reproduce(crate::reproduce::ReproduceArgs),
    /// Make one HTML page of what other commands wrote: tables, plots, timelines
    Report(crate::report::ReportArgs),
    /// Write the report of predictions and reproductions with their errors
    Validation(crate::validation::ValidationArgs),
    /// Predict latency curves of two-stage translation, or score predictions against measurements
    Predict(crate::predict::PredictArgs),
    /// Machine sheets: which there are, what they say, whether they are right
    #[command(subcommand)]
    Machine(Machine),
}

/// What is compared.
#[derive(Subcommand, Debug)]
pub enum Compare {
    /// Zap a range and a whole root under every flush strategy while vCPUs run
    #[command(after_help = EXIT_CODES)]
    Zap(CompareZap),
}

/// An architecture.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum ArchName {
    /// Long mode over EPT.
    X86,
    /// Stage 1 over stage 2.
    Arm64,
    /// Radix over radix.
    Power,
}

/// `compare zap`.
#[derive(Args, Debug)]
#[command(group = ArgGroup::new("as").args(["json", "csv"]))]
pub struct CompareZap {
    /// Architectures to run on, in this order [default: all, or that of --machine]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "LIST")]
    pub arch: Vec<ArchName>,
    /// A built-in machine or a sheet of one's own [default: one machine per architecture]
    #[arg(long, value_name = "NAME|FILE.toml")]
    pub machine: Option<String>,
    /// Guest memory
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    pub memory: Bytes,
    /// Virtual CPUs
    #[arg(long, value_name = "N", default_value = "4", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub vcpus: u32,
    /// Size of second-stage leaves [default: as the machine's sheet says]
    #[arg(long, value_name = "SIZE")]
    pub page_size: Option<PageSize>,
    /// Size of the guest's own pages, or `flat` for a guest without translation [default: the machine's granule]
    #[arg(long, value_name = "SIZE|flat")]
    pub guest_page: Option<GuestPage>,
    /// A recorded trace that every vCPU replays [default: traces/sqlite3.mmut.zst, if it is there]
    #[arg(long, value_name = "FILE", conflicts_with = "workload")]
    pub trace: Option<PathBuf>,
    /// A synthetic workload instead of a trace
    #[arg(long, value_enum, value_name = "KIND")]
    pub workload: Option<WorkloadName>,
    /// Memory that each vCPU touches, of a synthetic workload
    #[arg(long, value_name = "SIZE", default_value = "16MiB")]
    pub working_set: Bytes,
    /// Stores among a hundred accesses, of a synthetic workload
    #[arg(long, value_name = "PERCENT", default_value = "30", value_parser = clap::value_parser!(u32).range(0..=100))]
    pub writes: u32,
    /// Distance between the accesses of the strided workload
    #[arg(long, value_name = "SIZE", default_value = "4160")]
    pub stride: Bytes,
    /// Accesses of each vCPU; a shorter trace starts over
    #[arg(long, value_name = "N", default_value_t = DEFAULT_ACCESSES, value_parser = clap::value_parser!(u64).range(1..))]
    pub accesses: u64,
    /// Zapped range, from guest-physical 0 on [default: a quarter of the guest, 256MiB at most]
    #[arg(long, value_name = "SIZE")]
    pub range: Option<Bytes>,
    /// Cycles that the guest runs before the zap
    #[arg(long, value_name = "CYCLES", default_value_t = DEFAULT_WARM_UP)]
    pub warm_up: u64,
    /// Seed of everything random
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Threads that simulate vCPUs; the result is the same for any number [default: one per processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: Option<u32>,
    /// Write JSON
    #[arg(long)]
    pub json: bool,
    /// Write CSV, one line per strategy
    #[arg(long)]
    pub csv: bool,
    /// Write to a file, which appears when it is complete
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// What to record
    #[command(flatten)]
    pub record: crate::record::Record,
}

const DEFAULT_ACCESSES: u64 = 500_000;
const DEFAULT_WARM_UP: u64 = 1_000_000;

/// Kind of a synthetic workload.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum WorkloadName {
    /// Line after line.
    Sequential,
    /// Every --stride bytes.
    Strided,
    /// Anywhere.
    Uniform,
    /// Few pages often, many seldom (exponent 0.99).
    Zipf,
    /// Page after page in random order, each access depending on the one before.
    Chase,
    /// Nothing.
    Idle,
}

/// The guest's own translation, as an argument.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestPage(pub GuestPaging);

impl FromStr for GuestPage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "flat" {
            return Ok(Self(GuestPaging::Flat));
        }
        let size: PageSize = text.parse().map_err(|error| format!("{error}, or flat"))?;
        Ok(Self(GuestPaging::FirstTouch(size)))
    }
}

/// `check-vectors`, `check-matrix`, `litmus` and `lint`: files against the models or, with `litmus --timed`, against the engine.
#[derive(Args, Debug)]
#[command(after_help = EXIT_CODES)]
pub struct JudgedFiles {
    /// Files to judge: JSON, or JSON lines for vectors; plain or xz
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Write JSON
    #[arg(long)]
    pub json: bool,
    /// Write to a file, which appears when it is complete
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// `trace ...`.
#[derive(Subcommand, Debug)]
pub enum Trace {
    /// Say what is in a trace
    #[command(after_help = EXIT_CODES)]
    Info(TraceInfo),
    /// Write a trace in another format, or a window of it; the extensions say format and compression
    #[command(after_help = EXIT_CODES)]
    Convert(TraceConvert),
}

/// `trace info`.
#[derive(Args, Debug)]
pub struct TraceInfo {
    /// The trace
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Its format [default: told from the content, then from the name]
    #[arg(long, value_name = "FORMAT")]
    pub from: Option<TraceFormat>,
    /// Write JSON
    #[arg(long)]
    pub json: bool,
}

/// `trace convert`.
#[derive(Args, Debug)]
pub struct TraceConvert {
    /// The trace
    #[arg(value_name = "IN")]
    pub input: PathBuf,
    /// The file to write, which appears when it is complete
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
    /// Format of IN [default: told from the content, then from the name]
    #[arg(long, value_name = "FORMAT")]
    pub from: Option<TraceFormat>,
    /// Format of OUT [default: told from the name]
    #[arg(long, value_name = "FORMAT")]
    pub to: Option<TraceFormat>,
    /// Records to leave out at the start
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub skip: u64,
    /// Records to look at after that [default: all]
    #[arg(long, value_name = "N")]
    pub take: Option<u64>,
    /// Which of those to keep
    #[arg(long, value_enum, value_name = "WHICH", default_value = "all")]
    pub select: Select,
}

/// Which records are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Select {
    /// All.
    All,
    /// Loads, stores and modifies.
    Data,
    /// Instruction fetches.
    Fetches,
}

impl From<Select> for Selection {
    fn from(select: Select) -> Self {
        match select {
            Select::All => Selection::All,
            Select::Data => Selection::Data,
            Select::Fetches => Selection::Fetches,
        }
    }
}

/// `machine ...`.
#[derive(Subcommand, Debug)]
pub enum Machine {
    /// List the built-in machines
    #[command(after_help = EXIT_CODES)]
    List(MachineList),
    /// Print a sheet, every figure with its source
    #[command(after_help = EXIT_CODES)]
    Show(MachineShow),
    /// Check sheets and show every defect under its line
    #[command(after_help = EXIT_CODES)]
    Check(MachineCheck),
    /// Set the figures of a sheet that measurements say directly: clock, latencies at plateaus, reach at the first knee, events
    Calibrate(crate::calibrate::MachineCalibrate),
}

/// `machine list`.
#[derive(Args, Debug)]
pub struct MachineList {
    /// Write JSON
    #[arg(long)]
    pub json: bool,
}

/// `machine show`.
#[derive(Args, Debug)]
pub struct MachineShow {
    /// A built-in machine or a sheet of one's own
    #[arg(value_name = "NAME|FILE.toml")]
    pub name: String,
}

/// `machine check`.
#[derive(Args, Debug)]
pub struct MachineCheck {
    /// The sheets
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn guest_pages_read() {
        assert_eq!("flat".parse(), Ok(GuestPage(GuestPaging::Flat)));
        assert_eq!("2M".parse(), Ok(GuestPage(GuestPaging::FirstTouch(PageSize::SIZE_2M))));
        assert!("3K".parse::<GuestPage>().unwrap_err().contains("or flat"));
    }
}
