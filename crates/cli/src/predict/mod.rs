//! `predict`: latency curves of two-stage translation from a machine's sheet, and their score against measurements.

mod leave_out;
mod report;
mod score;

use std::path::PathBuf;

use clap::{ArgGroup, Args};
use mmusim::predict::{PredictError, Prediction, predict_all};
use mmusim::{Bytes, Machine};

use crate::CliError;
use crate::args::EXIT_CODES;
use crate::invocation::Invocation;
use crate::machine::load;
use crate::output::Output;
use crate::platform::{Formats, formats};

pub(crate) use leave_out::{constants, cross, families, in_band, percent, unseen};
pub(crate) use report::write_csv;
pub(crate) use score::{Scores, scores};

/// Guest-physical memory that the second stage is made for: more than any point takes.
pub(crate) const MEMORY: Bytes = Bytes(1 << 40);

/// `predict`.
#[derive(Args, Debug)]
#[command(after_help = EXIT_CODES, group = ArgGroup::new("what").required(true).args(["curve", "against"]))]
#[command(group = ArgGroup::new("predict_as").args(["json", "csv"]))]
pub struct PredictArgs {
    /// A built-in machine or a sheet of one's own
    #[arg(long, value_name = "NAME|FILE.toml", default_value = "intel-granite-rapids-host")]
    pub machine: String,
    /// The curve: dense4k, zero4k, packed64_4k, packed64_thp, dense_thp, pde_2M_T4096, pdpte_1G_T4096, jmp_4k, .. (with _k4: four
    /// chases at once), or an event (mprotect_rw_to_r_2t, dontneed_victim_lost, cpuid_loop, ..)
    #[arg(long, value_name = "NAME", requires = "points")]
    pub curve: Option<String>,
    /// Points of the curve: pages, cache lines, regions or jumps
    #[arg(long, value_name = "N,..", value_delimiter = ',', value_parser = clap::value_parser!(u64).range(1..))]
    pub points: Vec<u64>,
    /// Score predictions against a file of measurements
    #[arg(long, value_name = "FILE.csv", conflicts_with_all = ["curve", "points"])]
    pub against: Option<PathBuf>,
    /// Leave out one family of rows after the other, fit the sheet's constants to the rest from a neutral beginning, and score the family
    /// left out; takes a quarter of an hour
    #[arg(long, requires = "against", conflicts_with_all = ["curve", "points"])]
    pub leave_out: bool,
    /// Chooses the placement of memory and the order of accesses
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Write JSON
    #[arg(long)]
    pub json: bool,
    /// Write CSV
    #[arg(long)]
    pub csv: bool,
    /// Write to a file, which appears when it is complete
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// `predict`.
pub(crate) fn run(args: &PredictArgs, invocation: &Invocation) -> Result<(), CliError> {
    let machine = load(&args.machine)?;
    let text = match (&args.against, &args.curve) {
        (Some(file), _) => score::text(args, &machine, file, invocation)?,
        (None, Some(curve)) => curve_text(args, &machine, curve, invocation)?,
        (None, None) => return Err(CliError::argument("--curve", "name a curve, or a file with --against")),
    };
    let mut output = Output::open(args.output.as_deref())?;
    output.write(&text)?;
    output.finish()
}

fn curve_text(args: &PredictArgs, machine: &Machine, curve: &str, invocation: &Invocation) -> Result<String, CliError> {
    let points: Vec<(&str, u64)> = args.points.iter().map(|&n| (curve, n)).collect();
    let made: Result<Vec<Prediction>, _> = points_of(machine, &points, args.seed)?.into_iter().collect();
    let made = made.map_err(|error| {
        let argument = match &error {
            PredictError::Curve(_) => format!("--curve {curve}"),
            PredictError::Point { .. } => "--points".to_owned(),
            PredictError::Layout(_) | PredictError::Figure(_) => format!("--machine {}", args.machine),
        };
        CliError::argument(argument, error)
    })?;
    match (args.json, args.csv) {
        (true, _) => Ok(report::json(machine, &made, args.seed, invocation)),
        (_, true) => report::csv(machine, &made),
        _ => Ok(report::table(machine, &made)),
    }
}

/// Predicts points, several at a time; the order of answers is theirs.
fn points_of(
    machine: &Machine,
    points: &[(&str, u64)],
    seed: u64,
) -> Result<Vec<Result<Prediction, PredictError>>, CliError> {
    let formats = formats(machine, MEMORY)?;
    Ok(match &formats {
        Formats::X86(pair) => predict_all(machine, (pair.one, pair.two), points, seed),
        Formats::Arm64(pair) => predict_all(machine, (pair.one, pair.two), points, seed),
        Formats::Power(pair) => predict_all(machine, (pair.one, pair.two), points, seed),
    })
}
