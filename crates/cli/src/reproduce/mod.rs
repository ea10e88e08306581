//! `reproduce`: published measurements run again, ratio beside ratio.

mod report;
mod svg;

use std::path::PathBuf;

use clap::{ArgGroup, Args};
use mmusim::sim::reproduce::{Case, Experiment, Id, Row, experiments, run as run_case};
use mmusim::sim::selftests::SelftestError;
use mmusim::{Bytes, Machine, Platform};
use rayon::prelude::*;

use crate::CliError;
use crate::args::EXIT_CODES;
use crate::invocation::Invocation;
use crate::machine::load;
use crate::output::Output;
use crate::platform::{Formats, formats};

pub(crate) use report::markdown;
pub(crate) use svg::{plots, write_plots};

/// `reproduce`.
#[derive(Args, Debug)]
#[command(after_help = EXIT_CODES, group = ArgGroup::new("reproduce_as").args(["json", "csv"]))]
pub struct ReproduceArgs {
    /// Which: R1 to R9, all, or LIST for what there is
    #[arg(value_name = "LIST|all|R1..", required = true)]
    pub which: Vec<String>,
    /// vCPUs instead of the published numbers
    #[arg(long, short = 'v', value_name = "N,..", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub vcpus: Vec<u32>,
    /// Memory instead of the published one: of each vCPU, or of the guest where vCPUs share it
    #[arg(long, short = 'b', value_name = "SIZE")]
    pub size: Option<Bytes>,
    /// Run with so many times less memory and multiply what grows with it; 1 is the published size [default: so that a row takes
    /// seconds]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub scale: Option<u64>,
    /// A built-in machine or a sheet of one's own instead of the experiment's
    #[arg(long, value_name = "NAME|FILE.toml")]
    pub machine: Option<String>,
    /// Write plots into this directory, one SVG for each figure
    #[arg(long, value_name = "DIR")]
    pub svg: Option<PathBuf>,
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

/// `reproduce`.
pub(crate) fn run(args: &ReproduceArgs, invocation: &Invocation) -> Result<(), CliError> {
    if args.which.iter().any(|which| which.eq_ignore_ascii_case("list")) {
        let mut output = Output::open(args.output.as_deref())?;
        output.write(&report::list(&experiments()))?;
        return output.finish();
    }
    let chosen = chosen(&args.which)?;
    let mut all = Vec::new();
    for experiment in &chosen {
        let machine = load(args.machine.as_deref().unwrap_or(experiment.machine))?;
        let rows = rows(&machine, experiment, &cases(args, experiment))?;
        all.push((experiment, machine.name, rows));
    }
    if let Some(directory) = &args.svg {
        svg::write(directory, &all)?;
    }
    let text = match (args.json, args.csv) {
        (true, _) => report::json(&all, invocation),
        (_, true) => report::csv(&all)?,
        _ => report::tables(&all),
    };
    let mut output = Output::open(args.output.as_deref())?;
    output.write(&text)?;
    output.finish()
}

/// An experiment, the machine it ran on, and what came out.
pub(crate) type Reproduced<'a> = (&'a Experiment, String, Vec<Row>);

/// The experiments that are named.
fn chosen(which: &[String]) -> Result<Vec<Experiment>, CliError> {
    let all = experiments();
    if which.iter().any(|which| which.eq_ignore_ascii_case("all")) {
        return Ok(all);
    }
    let ids: Result<Vec<Id>, String> = which.iter().flat_map(|which| which.split(',')).map(str::parse).collect();
    let ids = ids.map_err(|what| CliError::argument(which.join(" "), what))?;
    Ok(all.into_iter().filter(|experiment| ids.contains(&experiment.id)).collect())
}

/// The published cases, or what the options make of them.
fn cases(args: &ReproduceArgs, experiment: &Experiment) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for case in experiment.cases() {
        let vcpus: Vec<usize> = match args.vcpus.as_slice() {
            [] => vec![case.vcpus],
            given => given.iter().map(|&n| n as usize).collect(),
        };
        for vcpus in vcpus {
            let bytes = args.size.unwrap_or(case.bytes);
            let case = Case { vcpus, bytes, scale: args.scale.unwrap_or(experiment.scale) };
            if !cases.contains(&case) {
                cases.push(case);
            }
        }
    }
    cases
}

/// Runs the cases, several at a time; rows are in their order.
pub(crate) fn rows(machine: &Machine, experiment: &Experiment, cases: &[Case]) -> Result<Vec<Row>, CliError> {
    let run = |case: &Case| {
        let vcpus = case.vcpus as u64;
        let formats = formats(machine, Bytes(case.bytes.0.saturating_mul(vcpus)))?;
        let rows = match formats {
            Formats::X86(arch) => run_case(&Platform::new(arch, machine), experiment, *case),
            Formats::Arm64(arch) => run_case(&Platform::new(arch, machine), experiment, *case),
            Formats::Power(arch) => run_case(&Platform::new(arch, machine), experiment, *case),
        };
        rows.map_err(|error| match error {
            SelftestError::Option { option, what } => CliError::argument(option, what),
            SelftestError::Build(_) | SelftestError::Architecture { .. } => {
                CliError::input(format!("{} on {}: {error}", experiment.id, machine.name))
            }
            other => CliError::Check(format!("{} on {}: {other}", experiment.id, machine.name)),
        })
    };
    let rows: Result<Vec<Vec<Row>>, CliError> = cases.par_iter().map(run).collect();
    Ok(rows?.into_iter().flatten().collect())
}
