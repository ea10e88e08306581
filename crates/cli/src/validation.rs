//! `validation`: one report of what the simulator predicts and what was measured.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;
use mmusim::predict::score::{Band, OrderScore};
use mmusim::sim::reproduce::{Row, experiments};

use crate::CliError;
use crate::args::EXIT_CODES;
use crate::machine::load;
use crate::output::Output;
use crate::predict::scores;
use crate::reproduce::{markdown, rows};

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
    /// Leave the published measurements out
    #[arg(long)]
    pub no_reproductions: bool,
    /// A date to write on the report; without one the report is the same on every day
    #[arg(long, value_name = "DATE")]
    pub date: Option<String>,
    /// Write to a file, which appears when it is complete
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// References of cold walks, as the tests of the formats have them.
const WALKS: &str = "\
| first stage | second stage | references of a cold walk | held by |
| --- | --- | ---: | --- |
| x86-64, 4 levels | EPT, 4 levels | 24 | `arch-x86-ept/tests/walk_counts.rs` |
| x86-64, 4 levels | EPT, 5 levels | 29 | `arch-x86-ept/tests/walk_counts.rs` |
| x86-64, 5 levels | EPT, 5 levels | 35 | `arch-x86-ept/tests/walk_counts.rs` |
| Arm, 4 levels | stage 2, 3 levels | 19 | `arch-arm64-s2/tests/walks.rs` |
| POWER radix, 4 levels | radix, 4 levels | 24, and 6 for partition and process table | `arch-ppc-radix/tests/mmu.rs` |

What each paging-structure cache spares is held to the reference by `arch-x86-ept/tests/psc_counts.rs`; tags and the reach of
invalidations by `mmu-core/tests/tlb_invalidate.rs`, coalesced groups among them.
";

/// `validation`.
pub fn run(args: &ValidationArgs) -> Result<(), CliError> {
    let mut text = String::from("# Validation\n\nWritten by `mmusim validation`; do not edit.\n");
    // Writing to a string cannot fail.
    if let Some(date) = &args.date {
        let _ = writeln!(text, "\nDate: {date}.");
    }
    let _ = write!(text, "\n## Walks\n\n{WALKS}");
    if args.against.is_some() {
        text.push_str(&curves(args)?);
    }
    if !args.no_reproductions {
        text.push_str(&published()?);
    }
    let mut output = Output::open(args.output.as_deref())?;
    output.write(&text)?;
    output.finish()
}

fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

fn curves(args: &ValidationArgs) -> Result<String, CliError> {
    let Some(file) = &args.against else { return Ok(String::new()) };
    let machine = load(&args.machine)?;
    let name = file.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let measured = std::fs::read_to_string(file).map_err(|error| {
        CliError::argument(format!("--against {}", file.display()), format!("cannot read: {error}; name a CSV file"))
    })?;
    let scores = scores(&machine, &measured, &name, 1)?;
    let mut text = format!(
        "\n## Latency curves\n\n`mmusim predict --machine {} --against {name}`: mean absolute error of core cycles per access against the \
         median of measured runs.\n\n| band | points | mean error | worst | goal |\n| --- | ---: | ---: | ---: | ---: |\n",
        machine.name
    );
    for band in Band::ALL {
        if let Some(mean) = scores.band(band) {
            let goal = if band == Band::Events { "-".to_owned() } else { percent(band.goal()) };
            let _ = writeln!(
                text,
                "| {band:?} | {} | {} | {} | {goal} |",
                mean.points,
                percent(mean.error),
                percent(mean.worst)
            );
        }
    }
    if let Some(error) = scores.knee_error() {
        let _ = writeln!(text, "\nKnees: {} off on average of {}.", percent(error), scores.knees.len());
    }
    let OrderScore { pairs, right } = scores.order;
    let _ = writeln!(text, "Order of curves: {right} of {pairs} pairs as measured.\n");
    text.push_str("| curve or family | band | points | mean error | worst |\n| --- | --- | ---: | ---: | ---: |\n");
    for (name, band, mean) in scores.by_curve() {
        let _ = writeln!(
            text,
            "| {name} | {band:?} | {} | {} | {} |",
            mean.points,
            percent(mean.error),
            percent(mean.worst)
        );
    }
    text.push_str("\n| knee of | measured n | predicted n | error |\n| --- | ---: | ---: | ---: |\n");
    for knee in &scores.knees {
        let _ = writeln!(
            text,
            "| {} | {:.0} | {:.0} | {} |",
            knee.curve,
            knee.measured,
            knee.predicted,
            percent(knee.error())
        );
    }
    Ok(text)
}

fn published() -> Result<String, CliError> {
    let all = experiments();
    let mut made = Vec::new();
    for experiment in &all {
        let machine = load(experiment.machine)?;
        made.push((experiment, machine.name.clone(), rows(&machine, experiment, &experiment.cases())?));
    }
    let published = || made.iter().flat_map(|(_, _, rows)| rows).filter_map(Row::within);
    let (all, within) = (published().count(), published().filter(|&within| within).count());
    Ok(format!(
        "\n## Published measurements\n\n`mmusim reproduce all`: before and after a change of the kernel, as published and as simulated on a \
         sheet that was not fitted to them. {within} of {all} ratios are within a quarter of the published one. A scale above one means \
         a run with so many times less memory, whose times are multiplied.\n\n{}",
        markdown(&made)
    ))
}
