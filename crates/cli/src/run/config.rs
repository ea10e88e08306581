//! What a run's result depends on, as text: kept in snapshots, and enough to set the run up again.
//!
//! An object of the options by name and of the hashes of the files they name. Threads and files to write are not among it.

use std::fs;
use std::path::Path;

use clap::ValueEnum;
use mmu_sweep::datum::{Datum, Record, record_from_json, record_json};
use mmu_sweep::point::content_hash;
use mmusim::{Bytes, GuestPaging};

use super::RunArgs;
use crate::CliError;
use crate::args::{Command, GuestPage};
use crate::sweep::experiment::{files, parse as parse_words, words};

fn name_of<T: ValueEnum>(value: &T) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

fn arguments(args: &RunArgs) -> Record {
    let zap = &args.zap;
    let bytes = |bytes: Bytes| Some(Datum::from(bytes.0.to_string()));
    let guest_page = |page: &GuestPage| match page.0 {
        GuestPaging::Flat => Datum::from("flat"),
        GuestPaging::FirstTouch(size) | GuestPaging::Premapped(size) => Datum::from(size.to_string()),
    };
    let all = [
        ("strategy", Some(Datum::from(args.strategy.as_str()))),
        ("arch", zap.arch.first().map(|arch| name_of(arch).into())),
        ("machine", zap.machine.as_deref().map(Datum::from)),
        ("memory", bytes(zap.memory)),
        ("vcpus", Some(u64::from(zap.vcpus).into())),
        ("page_size", zap.page_size.map(|size| size.to_string().into())),
        ("guest_page", zap.guest_page.as_ref().map(guest_page)),
        ("trace", zap.trace.as_ref().map(|path| path.display().to_string().into())),
        ("workload", zap.workload.as_ref().map(|workload| name_of(workload).into())),
        ("working_set", bytes(zap.working_set)),
        ("writes", Some(u64::from(zap.writes).into())),
        ("stride", bytes(zap.stride)),
        ("accesses", Some(zap.accesses.into())),
        ("range", zap.range.and_then(bytes)),
        ("warm_up", Some(zap.warm_up.into())),
        ("seed", Some(zap.seed.into())),
    ];
    all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

/// The text of a run's configuration.
///
/// # Errors
/// A file that cannot be read.
pub(super) fn text(args: &RunArgs) -> Result<String, CliError> {
    let arguments = arguments(args);
    let mut hashes = Record::new();
    for name in files(&arguments) {
        let path = arguments.get(&name).map(Datum::plain).unwrap_or_default();
        let content = fs::read(&path)
            .map_err(|why| CliError::argument(format!("--{name} {path}"), format!("cannot read: {why}")))?;
        hashes.insert(name, content_hash(&content).into());
    }
    Ok(format!("{{\"arguments\":{},\"files\":{}}}", record_json(&arguments), record_json(&hashes)))
}

/// The arguments that a configuration's text says.
///
/// # Errors
/// What is none.
pub(super) fn parse(text: &str) -> Result<RunArgs, String> {
    let json: serde_json::Value = serde_json::from_str(text).map_err(|error| format!("its configuration: {error}"))?;
    let arguments = record_from_json(json.get("arguments").ok_or("its configuration has no arguments")?)?;
    from_record(&arguments)
}

fn from_record(arguments: &Record) -> Result<RunArgs, String> {
    match parse_words(words("run", arguments, |_| None))? {
        Command::Run(args) => Ok(args),
        _ => Err("its configuration is no run's".to_owned()),
    }
}

/// The arguments of `--spec FILE`; what the command line says about threads and files to write stays.
///
/// # Errors
/// A file that cannot be read, or says what no option does.
pub(super) fn from_spec(args: &RunArgs, file: &Path) -> Result<RunArgs, CliError> {
    let place = format!("--spec {}", file.display());
    let refused = |what: String| CliError::argument(&place, what);
    let text = fs::read_to_string(file).map_err(|why| refused(format!("cannot read: {why}")))?;
    let arguments = mmu_sweep::spec::options(&text).map_err(refused)?;
    let mut spec = from_record(&arguments).map_err(refused)?;
    if spec.spec.is_some() || spec.resume.is_some() {
        return Err(refused("a spec says what is run; give spec and resume on the command line".to_owned()));
    }
    spec.checkpoint = args.checkpoint.clone().or(spec.checkpoint);
    spec.checkpoint_every = args.checkpoint_every.or(spec.checkpoint_every);
    spec.zap.threads = args.zap.threads.or(spec.zap.threads);
    spec.zap.output = args.zap.output.clone().or(spec.zap.output);
    spec.zap.json |= args.zap.json;
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_sets_the_same_run_up_again() {
        let words = "mmusim run --arch power --memory 96MiB --vcpus 3 --page-size 64K --guest-page 64K --workload strided \
                     --working-set 1MiB --writes 5 --stride 128 --accesses 9 --range 64K --warm-up 11 --seed 12 --strategy none";
        let Ok(Command::Run(args)) = parse_words(words.split_whitespace().map(str::to_owned).collect()) else {
            panic!("these are arguments")
        };
        let config = text(&args).unwrap();
        let again = parse(&config).unwrap();
        assert_eq!(text(&again).unwrap(), config);
        assert_eq!(format!("{:?}", plan_of(&again)), format!("{:?}", plan_of(&args)));
        assert!(parse("{}").unwrap_err().contains("no arguments"));
    }

    fn plan_of(args: &RunArgs) -> mmusim::VmSpec {
        super::super::plan(args).unwrap().0.vm
    }
}
