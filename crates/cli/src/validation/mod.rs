//! `validation`: one report of what the simulator predicts and what was measured.

mod curves;
mod walks;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use mmusim::predict::score::read;
use mmusim::sim::reproduce::{Row, experiments};

use crate::CliError;
use crate::args::EXIT_CODES;
use crate::machine::load;
use crate::output::Output;
use crate::predict::scores;
use crate::reproduce::{Reproduced, markdown, plots, rows, write_plots};

/// `validation`.
#[derive(Args, Debug)]
#[command(after_help = EXIT_CODES)]
pub struct ValidationArgs {
    /// Measured curves to score predictions against
    #[arg(long, value_name = "FILE.csv")]
    pub against: Option<PathBuf>,
    /// The machine that they were measured on
    #[arg(long, value_name = "NAME|FILE.toml", default_value = "intel-granite-rapids-host")]
    pub machine: String,
    /// Predict each family of curves from the others as well; takes a quarter of an hour
    #[arg(long, requires = "against")]
    pub leave_out: bool,
    /// Leave the published measurements out
    #[arg(long)]
    pub no_reproductions: bool,
    /// Run the published measurements with so many times less memory, instead of each one's own
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub scale: Option<u64>,
    /// Plots go to this directory, and the report shows them
    #[arg(long, value_name = "DIR")]
    pub svg: Option<PathBuf>,
    /// A date to write on the report; without one the report is the same on every day
    #[arg(long, value_name = "DATE")]
    pub date: Option<String>,
    /// Write to a file, which appears when it is complete
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// What is held by tests alone.
const HELD: &str = "\
What each paging-structure cache spares is held to the reference by `arch-x86-ept/tests/psc_counts.rs`; POWER's partition and process tables \
(six references more) by `arch-ppc-radix/tests/mmu.rs`; tags and the reach of invalidations by `mmu-core/tests/tlb_invalidate.rs`, coalesced \
groups among them; counts of TLBs on random traces against a second program by `sim/tests/all/tlb_replay.rs`.
";

/// `validation`.
pub fn run(args: &ValidationArgs) -> Result<(), CliError> {
    let mut text = String::from("# Validation\n\nWritten by `mmusim validation`; do not edit.\n");
    // Writing to a string cannot fail.
    if let Some(date) = &args.date {
        let _ = writeln!(text, "\nDate: {date}.");
    }
    let _ = write!(text, "\n## Cold walks\n\n{}\n{HELD}", walks::walks()?);
    let _ = write!(text, "\n## TLBs as other simulators count them\n\n{}", walks::tlbs()?);
    if let Some(file) = &args.against {
        text.push_str(&measured(args, file)?);
    }
    if !args.no_reproductions {
        text.push_str(&published(args)?);
    }
    let mut output = Output::open(args.output.as_deref())?;
    output.write(&text)?;
    output.finish()
}

fn measured(args: &ValidationArgs, file: &Path) -> Result<String, CliError> {
    let machine = load(&args.machine)?;
    let name = file.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let measured = std::fs::read_to_string(file).map_err(|error| {
        CliError::argument(format!("--against {}", file.display()), format!("cannot read: {error}; name a CSV file"))
    })?;
    let scored = scores(&machine, &measured, &name, 1)?;
    let mut text = format!("\n## Latency curves\n\n{}", curves::scores(&machine, &name, &scored));
    text.push_str(&shown(args, curves::plots(&machine, &scored.points))?);
    if args.leave_out {
        let rows = read(&measured).map_err(|error| CliError::input(format!("{name}: {error}")))?;
        let _ =
            write!(text, "\n## Families predicted from the others\n\n{}", curves::left_out(&machine, &name, &rows)?);
    }
    Ok(text)
}

/// Writes plots and links them; nothing without a directory.
fn shown(args: &ValidationArgs, plots: Vec<(String, String)>) -> Result<String, CliError> {
    let Some(directory) = &args.svg else { return Ok(String::new()) };
    let beside = args.output.as_deref().and_then(Path::parent);
    let from = beside.and_then(|beside| directory.strip_prefix(beside).ok()).unwrap_or(directory);
    let mut text = String::new();
    for (name, _) in &plots {
        let title = name.trim_end_matches(".svg").replace('-', " ");
        let _ = writeln!(text, "\n![{title}]({})", from.join(name).display());
    }
    write_plots("--svg", directory, plots)?;
    Ok(text)
}

fn published(args: &ValidationArgs) -> Result<String, CliError> {
    let mut all = experiments();
    for experiment in &mut all {
        experiment.scale = args.scale.unwrap_or(experiment.scale);
    }
    let mut made: Vec<Reproduced<'_>> = Vec::new();
    for experiment in &all {
        eprintln!("reproducing: {}", experiment.id);
        let machine = load(experiment.machine)?;
        made.push((experiment, machine.name.clone(), rows(&machine, experiment, &experiment.cases())?));
    }
    let published = || made.iter().flat_map(|(_, _, rows)| rows).filter_map(Row::within);
    let (all, within) = (published().count(), published().filter(|&within| within).count());
    let plots = made.iter().flat_map(plots).collect();
    Ok(format!(
        "\n## Published measurements\n\n`mmusim reproduce all`: before and after a change of the kernel, as published and as simulated on a \
         machine's sheet, where a D marks the costs that come from published totals like these. {within} of {all} ratios are within a quarter of the published one, or on the right side where a bound was published. A scale above one means \
         a run with so many times less memory, whose times are multiplied.\n\n{}\n{}{}",
        markdown(&made),
        limits(&made),
        shown(args, plots)?
    ))
}

/// What the simulation of an experiment is known not to have.
fn limits(made: &[Reproduced<'_>]) -> String {
    let known =
        made.iter().filter_map(|(experiment, _, _)| Some(format!("- {}: {}\n", experiment.id, experiment.limits?)));
    let known: String = known.collect();
    if known.is_empty() { known } else { format!("What is not explained:\n\n{known}") }
}
