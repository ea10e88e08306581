//! `sweep submit`: the missing shards as a job array.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use mmu_sweep::Plan;
use mmu_sweep::slurm::{MAX_ARRAY_SIZE, Script};

use crate::CliError;
use crate::output::Output;

/// `sweep submit`.
#[derive(Args, Debug)]
pub struct SubmitArgs {
    /// Directory of the plan, on a file system that the nodes share
    #[arg(value_name = "DIR")]
    plan: PathBuf,
    /// Submit to Slurm as a job array
    #[arg(long, required = true)]
    slurm: bool,
    /// Write and show the batch file, and submit nothing
    #[arg(long)]
    dry_run: bool,
    /// Shards in all: a few minutes of work each [default: as submitted last, else one for each 100 points]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    shards: Option<u32>,
    /// Shards at a time [default: as many as Slurm has room for]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    concurrent: Option<u32>,
    /// Points at a time in a shard, a processor each
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    jobs: u32,
    /// Time limit of a shard, as Slurm writes it; 2 minutes before, nothing new is begun [default: the partition's]
    #[arg(long, value_name = "HH:MM:SS")]
    time: Option<String>,
    /// Partition [default: Slurm's]
    #[arg(long, value_name = "NAME")]
    partition: Option<String>,
}

const SHARDS: &str = "shards";

/// How many shards were submitted last.
pub(super) fn submitted(plan: &Plan) -> Option<u32> {
    fs::read_to_string(plan.directory().join(SHARDS)).ok()?.trim().parse().ok().filter(|&shards| shards > 0)
}

/// `sweep submit`.
pub(super) fn submit(args: &SubmitArgs) -> Result<(), CliError> {
    let plan = super::open(&args.plan)?;
    let status = mmu_sweep::status(&plan)?;
    let mut output = Output::open(None)?;
    if status.missing.is_empty() {
        output.write("every point has a result; nothing to submit\n")?;
        return output.finish();
    }
    let shards = args.shards.or_else(|| submitted(&plan)).unwrap_or_else(|| plan.points().len().div_ceil(100) as u32);
    let most = max_array_size();
    if shards > most {
        let what = format!("Slurm takes arrays of {most} at most here (MaxArraySize); give fewer");
        return Err(CliError::argument(format!("--shards {shards}"), what));
    }
    let absolute = |path: &Path| {
        fs::canonicalize(path).map_err(|why| CliError::input(format!("{}: {why}; nodes need it", path.display())))
    };
    let program = std::env::current_exe().map_err(|why| CliError::input(format!("where is this program? {why}")))?;
    let (directory, wanted) = (absolute(&args.plan)?, status.missing_shards(shards));
    let script = Script {
        program: &absolute(&program)?,
        plan: &directory,
        name: plan.name(),
        shards,
        wanted: &wanted,
        concurrent: args.concurrent,
        jobs: args.jobs,
        time: args.time.as_deref(),
        partition: args.partition.as_deref(),
    };
    let file = directory.join("submit.sbatch");
    for (path, text) in [(&file, script.text()), (&directory.join(SHARDS), format!("{shards}\n"))] {
        fs::write(path, text).map_err(|why| CliError::Write { to: path.display().to_string(), why })?;
    }
    output.write(&script.text())?;
    if args.dry_run {
        eprintln!("not submitted; `sbatch {}` does it", file.display());
        return output.finish();
    }
    let answer = Command::new("sbatch").arg(&file).output();
    let answer = answer.map_err(|why| CliError::input(format!("sbatch: {why}; run this where Slurm is installed")))?;
    if !answer.status.success() {
        return Err(CliError::input(format!("sbatch: {}", String::from_utf8_lossy(&answer.stderr).trim())));
    }
    eprint!("{}", String::from_utf8_lossy(&answer.stdout));
    output.finish()
}

/// What `scontrol` says, or Slurm's default.
fn max_array_size() -> u32 {
    let said = Command::new("scontrol").args(["show", "config"]).output().ok();
    let said = said.map(|answer| String::from_utf8_lossy(&answer.stdout).into_owned()).unwrap_or_default();
    let line = said.lines().find_map(|line| line.strip_prefix("MaxArraySize"));
    line.and_then(|rest| rest.trim_start_matches([' ', '=']).trim().parse().ok()).unwrap_or(MAX_ARRAY_SIZE)
}
