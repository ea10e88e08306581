//! `report`: one HTML page from the documents that other commands wrote.

use std::path::{Path, PathBuf};

use clap::Args;
use mmu_report::{Input, page};

use crate::CliError;
use crate::args::EXIT_CODES;
use crate::output::Output;

const AFTER_HELP: &str = "\
Files are told apart by what they hold:
  compare zap --json        strategies side by side: bars of cycles, lost time of vCPUs (p50, p99, max), stalls
  run --json                one run
  selftest NAME --json      phases, figures and checks
  reproduce ID --json       published and simulated ratios
  predict --curve .. --json a latency curve; with --against, errors by band, every curve, knees
  sweep merge -o FILE       medians over seeds, by the arguments that differ
  --timeline, --events FILE lanes of vCPUs and host actors, and where the time went

  mmusim compare zap --arch x86 --json --output zap.json --timeline zap-timeline.json
  mmusim report zap.json zap-timeline.json --output zap.html

The page loads nothing and runs no script; it follows the reader's preference for light or dark.";

/// `report`.
#[derive(Args, Debug)]
#[command(after_help = format!("{AFTER_HELP}\n\n{EXIT_CODES}"))]
pub struct ReportArgs {
    /// Documents that other commands wrote: JSON, or lines of JSON
    #[arg(value_name = "FILE.json", required = true)]
    pub files: Vec<PathBuf>,
    /// Heading of the page [default: what its only document is about]
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub title: String,
    /// Write to a file, which appears when it is complete
    #[arg(long, short, value_name = "FILE.html")]
    pub output: Option<PathBuf>,
}

/// `report`.
///
/// # Errors
/// A file that cannot be read, or that no page can be made of; the page cannot be written.
pub(crate) fn run(args: &ReportArgs) -> Result<(), CliError> {
    let inputs: Result<Vec<Input>, CliError> = args.files.iter().map(|file| input(file)).collect();
    let html = page(&args.title, &inputs?).map_err(CliError::input)?;
    let mut output = Output::open(args.output.as_deref())?;
    output.write(&html)?;
    output.finish()
}

/// A file under its own name: where it lies is nobody's business who reads the page.
fn input(file: &Path) -> Result<Input, CliError> {
    let place = file.display();
    let bytes = std::fs::read(file).map_err(|error| {
        CliError::input(format!("{place}: cannot read: {error}; name a file that a command wrote with --json"))
    })?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        CliError::input(format!("{place}: byte {at} is no UTF-8 text; name a file that a command wrote with --json"))
    })?;
    let name = file.file_name().map_or_else(|| place.to_string(), |name| name.to_string_lossy().into_owned());
    Ok(Input { name, text })
}
