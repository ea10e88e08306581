//! Measures what a host's translation costs, as files that `mmusim predict --against` and `mmusim machine calibrate` read.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `sys` | everything unsafe: mappings, timer, chases, jumps, system calls |
//! | `clock` | ticks, nanoseconds, core cycles |
//! | `row` | samples and lines of the file |
//! | `curves` | families `chase`, `mlp`, `psc`, `itlb`: points of latency curves |
//! | `events` | families `core`, `vmexit`, `fault`, `shoot`, `atomic`, `clear`, `sched`, `membarrier` |
//! | `memory` | families `adbits`, `cmo`, `fresh` |
//! | `victim` | what other threads lose by shootdowns and barriers |
//!
//! Nothing needs privileges. Memory and time are bounded: a point whose memory exceeds the limit is left out and named. Samples of a
//! run are taken one after another on one CPU; every run makes its mappings anew, because where pages lie matters.

mod clock;
mod curves;
mod events;
mod memory;
mod row;
mod sys;
mod victim;

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
compile_error!(
    "hostbench measures Linux on x86-64 and aarch64; elsewhere build the workspace with `--exclude hostbench`"
);

pub use row::COLUMNS;

use std::fmt;
use std::io;

use clock::Clock;
use row::{Row, write_csv};

/// Families of benchmarks, in the order they run.
pub const FAMILIES: [&str; 15] = [
    "core",
    "vmexit",
    "chase",
    "psc",
    "mlp",
    "itlb",
    "fault",
    "adbits",
    "shoot",
    "atomic",
    "clear",
    "cmo",
    "sched",
    "membarrier",
    "fresh",
];

/// What is measured, and how long.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Families, of [`FAMILIES`].
    pub families: Vec<String>,
    /// Points of latency curves instead of each curve's own.
    pub points: Vec<u64>,
    /// Runs of each point, each with mappings of its own.
    pub runs: usize,
    /// Samples of each run.
    pub samples: usize,
    /// Bytes of memory that a point may take.
    pub memory: u64,
    /// The CPU that measures; the next allowed one takes the other side of what two threads do.
    pub cpu: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        let families = FAMILIES.map(str::to_owned).to_vec();
        Self { families, points: Vec::new(), runs: 3, samples: 5, memory: 1 << 30, cpu: None }
    }
}

/// Why nothing could be measured.
#[derive(Debug)]
pub enum BenchError {
    /// An option that cannot be used: what, and the remedy.
    Option(String),
    /// The system refuses: what was tried, and its answer.
    System(&'static str, io::Error),
}

impl fmt::Display for BenchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BenchError::Option(what) => f.write_str(what),
            BenchError::System(what, error) => {
                write!(f, "{what}: {error}; choose other --families, or run on Linux, x86-64 or aarch64")
            }
        }
    }
}
impl std::error::Error for BenchError {}

/// The host while it is measured.
struct Host<'a> {
    options: &'a Options,
    /// The CPU that measures, and another one if there is one.
    cpus: (usize, Option<usize>),
    clock: Clock,
    rows: Vec<Row>,
    say: &'a mut dyn FnMut(&str),
}

impl Host<'_> {
    /// Takes `runs` times `samples` samples of something that is made anew for each run; a sample is ticks per unit.
    fn measure<T>(
        &mut self,
        (bench, variant, n, unit): (&'static str, &str, u64, &'static str),
        mut make: impl FnMut(u64) -> Result<T, BenchError>,
        mut sample: impl FnMut(&mut T) -> Result<f64, BenchError>,
    ) -> Result<(), BenchError> {
        (self.say)(&format!("{bench} {variant} {n}"));
        let mut runs = Vec::with_capacity(self.options.runs);
        for run in 0..self.options.runs {
            let mut made = make(run as u64 + 1)?;
            let samples: Result<Vec<f64>, BenchError> = (0..self.options.samples).map(|_| sample(&mut made)).collect();
            runs.push(samples?);
        }
        self.rows.push(Row { bench, variant: variant.to_owned(), n, unit, runs });
        Ok(())
    }
}

/// Measures and returns the file's text; `say` hears which point is being measured.
///
/// # Errors
/// An option that cannot be used; a system that has no timer, no memory, no second page size to give.
pub fn record(options: &Options, say: &mut dyn FnMut(&str)) -> Result<String, BenchError> {
    if let Some(unknown) = options.families.iter().find(|family| !FAMILIES.contains(&family.as_str())) {
        return Err(BenchError::Option(format!("--families {unknown}: there are {}", FAMILIES.join(", "))));
    }
    if options.runs == 0 || options.samples == 0 {
        return Err(BenchError::Option("--runs and --samples: give one at least".to_owned()));
    }
    let allowed = sys::cpus().map_err(|error| BenchError::System("asking for CPUs", error))?;
    let first = match options.cpu {
        Some(cpu) if allowed.contains(&cpu) => cpu,
        Some(cpu) => return Err(BenchError::Option(format!("--cpu {cpu}: allowed are {allowed:?}"))),
        None => *allowed.last().ok_or_else(|| BenchError::Option("no CPU is allowed to this process".to_owned()))?,
    };
    let other = allowed.into_iter().rev().find(|cpu| *cpu != first);
    sys::pin(first).map_err(|error| BenchError::System("staying on a CPU", error))?;
    let clock = Clock::measure();
    let mut host = Host { options, cpus: (first, other), clock, rows: Vec::new(), say };
    for family in FAMILIES.iter().filter(|family| options.families.iter().any(|wanted| wanted == *family)) {
        match *family {
            "chase" => curves::chase(&mut host)?,
            "psc" => curves::psc(&mut host)?,
            "mlp" => curves::mlp(&mut host)?,
            "itlb" => curves::itlb(&mut host)?,
            "core" => events::core(&mut host)?,
            "vmexit" => events::vmexit(&mut host)?,
            "fault" => events::fault(&mut host)?,
            "shoot" => events::shoot(&mut host)?,
            "atomic" => events::atomic(&mut host)?,
            "clear" => events::clear(&mut host)?,
            "adbits" => memory::adbits(&mut host)?,
            "cmo" => memory::cmo(&mut host)?,
            "fresh" => memory::fresh(&mut host)?,
            "sched" => events::sched(&mut host)?,
            _ => events::membarrier(&mut host)?,
        }
    }
    Ok(write_csv(&host.rows, &host.clock))
}
