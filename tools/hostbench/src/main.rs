//! The program `hostbench`; what it measures is in the library part.

use std::fs;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use hostbench::{FAMILIES, Options, record};

/// Measure this host's TLBs, page walks, faults and shootdowns; a minute or two, no privileges.
///
/// The file is what `mmusim predict --against FILE` scores and `mmusim machine calibrate --from FILE` fits a sheet to. Leave the machine alone
/// meanwhile.
#[derive(Parser, Debug)]
#[command(name = "hostbench", version)]
struct Arguments {
    /// Families to measure [default: all: core, vmexit, chase, psc, mlp, itlb, fault, adbits, shoot, atomic, clear, cmo, sched, membarrier, fresh]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    families: Vec<String>,
    /// Points of latency curves (pages, cache lines, regions, jumps) instead of each curve's own
    #[arg(long, value_name = "N,..", value_delimiter = ',', value_parser = clap::value_parser!(u64).range(1..))]
    points: Vec<u64>,
    /// Runs of each point, each with mappings of its own
    #[arg(long, value_name = "N", default_value_t = 3)]
    runs: usize,
    /// Samples of each run
    #[arg(long, value_name = "N", default_value_t = 5)]
    samples: usize,
    /// Memory that a point may take, in MiB; larger points are left out
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    memory_limit: u64,
    /// The CPU that measures [default: the last that is allowed]
    #[arg(long, value_name = "N")]
    cpu: Option<usize>,
    /// Write to a file, which appears when it is complete [default: standard output]
    #[arg(long, short, value_name = "FILE.csv")]
    output: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), String> {
    let families =
        if arguments.families.is_empty() { FAMILIES.map(str::to_owned).to_vec() } else { arguments.families.clone() };
    let options = Options {
        families,
        points: arguments.points.clone(),
        runs: arguments.runs,
        samples: arguments.samples,
        memory: arguments.memory_limit.saturating_mul(1 << 20),
        cpu: arguments.cpu,
    };
    let terminal = std::io::stderr().is_terminal();
    let mut last = String::new();
    let text = record(&options, &mut |point| {
        // One line that changes on a terminal; elsewhere a line for each curve.
        if terminal {
            eprint!("\r\x1b[K{point}");
        } else {
            let curve = point.rsplit_once(' ').map_or(point, |(curve, _)| curve);
            if curve != last {
                eprintln!("{curve}");
                curve.clone_into(&mut last);
            }
        }
    })
    .map_err(|error| error.to_string())?;
    if terminal {
        eprintln!("\r\x1b[K");
    }
    match &arguments.output {
        Some(path) => {
            let partial = path.with_extension(format!("partial-{}", std::process::id()));
            let written = fs::write(&partial, text).and_then(|()| fs::rename(&partial, path));
            written.map_err(|error| format!("--output {}: {error}; name a file that can be written", path.display()))
        }
        None => std::io::stdout().write_all(text.as_bytes()).map_err(|error| format!("standard output: {error}")),
    }
}
