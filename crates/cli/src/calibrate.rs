//! `machine calibrate`: a sheet with the figures that measurements say directly.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;
use mmusim::predict::calibrate::{Calibration, calibrate};
use mmusim::predict::score::read;

use crate::CliError;
use crate::args::EXIT_CODES;
use crate::machine::sheet;
use crate::output::Output;

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
    let mut output = Output::open(args.output.as_deref())?;
    output.write(&made.text)?;
    output.finish()?;
    eprint!("{}", told(&made));
    Ok(())
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
