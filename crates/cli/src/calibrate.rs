//! `machine calibrate`: a sheet with the figures that measurements say directly.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;
use mmusim::predict::calibrate::{Calibration, calibrate, searched};
use mmusim::predict::fit::fit;
use mmusim::predict::score::{Measured, read};
use mmusim::{Machine, MachineError};

use crate::CliError;
use crate::args::EXIT_CODES;
use crate::machine::sheet;
use crate::output::Output;
use crate::platform::{Formats, formats};
use crate::predict::MEMORY;

/// `machine calibrate`.
#[derive(Args, Debug)]
#[command(after_help = EXIT_CODES)]
pub struct MachineCalibrate {
    /// Measurements, as `hostbench` writes them
    #[arg(long, value_name = "FILE.csv")]
    pub from: PathBuf,
    /// The sheet to begin with: one of the same or the most similar core
    #[arg(long, value_name = "NAME|FILE.toml")]
    pub base: String,
    /// Search as well for what no plateau says: memory, costs of walks, the second-level TLB, paging-structure caches, shares of caches; takes
    /// minutes
    #[arg(long)]
    pub search: bool,
    /// Write the sheet to a file, which appears when it is complete [default: standard output]
    #[arg(long, short, value_name = "FILE.toml")]
    pub output: Option<PathBuf>,
}

/// `machine calibrate`. The sheet is data; which figures were set and which were left goes to standard error.
///
/// # Errors
/// A file that cannot be read or is something else; measurements that make no valid sheet.
pub(crate) fn run(args: &MachineCalibrate) -> Result<(), CliError> {
    let file = args.from.display().to_string();
    let text = std::fs::read_to_string(&args.from).map_err(|error| {
        CliError::argument(format!("--from {file}"), format!("cannot read: {error}; name a file that hostbench wrote"))
    })?;
    let rows = read(&text).map_err(|error| CliError::input(format!("{file}: {error}")))?;
    let (base, sheet) = sheet(&format!("--base {}", args.base), &args.base)?;
    let made = calibrate(&sheet, &rows).map_err(|what| CliError::input(format!("{base} with {file}: {what}")))?;
    let made = if args.search { search(made, &rows)? } else { made };
    let mut output = Output::open(args.output.as_deref())?;
    output.write(&made.text)?;
    output.finish()?;
    eprint!("{}", told(&made));
    Ok(())
}

/// Fits the calibrated sheet's other constants to the rows.
fn search(made: Calibration, rows: &[Measured]) -> Result<Calibration, CliError> {
    let told =
        |errors: Vec<MachineError>| CliError::input(errors.first().map_or_else(String::new, ToString::to_string));
    let machine = Machine::from_toml(&made.text).map_err(told)?;
    let found = match &formats(&machine, MEMORY)? {
        Formats::X86(pair) => fit(&machine, (pair.one, pair.two), rows, 1),
        Formats::Arm64(pair) => fit(&machine, (pair.one, pair.two), rows, 1),
        Formats::Power(pair) => fit(&machine, (pair.one, pair.two), rows, 1),
    };
    let found = found.map_err(|error| CliError::input(format!("{}: {error}", machine.name)))?;
    searched(made, &found).map_err(CliError::input)
}

fn told(made: &Calibration) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    for figure in &made.set {
        let what = if figure.was == figure.now {
            format!("as it was, {}", figure.was)
        } else {
            format!("{} -> {}", figure.was, figure.now)
        };
        let _ = writeln!(text, "set   {}: {what} ({})", figure.place, figure.from);
    }
    for left in &made.left {
        let _ = writeln!(text, "left  {}: {}", left.place, left.why);
    }
    text
}
