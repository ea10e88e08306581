//! Commands of the program as points of a sweep.

use std::path::Path;

use clap::Parser;
use mmusim::Machine;
use mmusim::sim::MODEL_VERSION;

use mmu_sweep::{Datum, Experiment, Job, Record, Unfinished};

use crate::args::{Cli, Command, Compare};
use crate::{CliError, Colour, compare, run, selftest};

/// What sweeps can run: commands of this program whose result is a table.
pub(super) struct Commands;

/// Options that a point must not have: they say where results go or how fast they come, not what they are.
const REFUSED: [&str; 11] = [
    "output",
    "json",
    "csv",
    "threads",
    "events",
    "timeline",
    "events-limit",
    "checkpoint",
    "checkpoint-every",
    "resume",
    "spec",
];

/// Names as options are written.
fn option(name: &str) -> String {
    name.replace('_', "-")
}

/// The command line of a point. Arguments that name files are replaced by where those are.
pub(crate) fn words(command: &str, arguments: &Record, file: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut words = vec!["mmusim".to_owned()];
    words.extend(command.split_whitespace().map(str::to_owned));
    for (name, value) in arguments {
        let option = option(name);
        let option = if option.len() == 1 { format!("-{option}") } else { format!("--{option}") };
        match value {
            Datum::Flag(false) => {}
            Datum::Flag(true) => words.push(option),
            value => words.extend([option, file(name).unwrap_or_else(|| value.plain())]),
        }
    }
    words
}

pub(crate) fn parse(words: Vec<String>) -> Result<Command, String> {
    match Cli::try_parse_from(words) {
        Ok(cli) => Ok(cli.command),
        Err(error) => {
            let text = error.to_string();
            // The rest is usage, which the sweep's file has no lines for.
            Err(text.split("\n\nUsage").next().unwrap_or_default().trim_start_matches("error: ").trim().to_owned())
        }
    }
}

pub(crate) fn say(error: &CliError) -> String {
    let text = error.render(Colour::Plain).unwrap_or_default();
    text.trim_start_matches("error: ").to_owned()
}

/// Arguments that name files: traces, and machines that are not built in.
pub(crate) fn files(arguments: &Record) -> Vec<String> {
    let names_file = |(name, value): &(&String, &Datum)| match (name.as_str(), value) {
        ("trace", _) => true,
        ("machine", Datum::Text(machine)) => Machine::sheet(machine).is_none() && Path::new(machine).exists(),
        _ => false,
    };
    arguments.iter().filter(names_file).map(|(name, _)| name.clone()).collect()
}

impl Experiment for Commands {
    fn model(&self) -> u32 {
        MODEL_VERSION
    }

    fn check(&self, command: &str, arguments: &Record) -> Result<Vec<String>, String> {
        if let Some(name) = arguments.keys().find(|name| REFUSED.contains(&option(name).as_str())) {
            return Err(format!("{name}: the sweep sees to where results go and how they are computed; leave it out"));
        }
        match parse(words(command, arguments, |_| None))? {
            Command::Compare(Compare::Zap(args)) => {
                if args.trace.is_none() && args.workload.is_none() {
                    return Err("say `trace` or `workload`: the default depends on the directory".to_owned());
                }
                compare::check(&args).map_err(|error| say(&error))?;
            }
            Command::Run(args) => run::check(&args).map_err(|error| say(&error))?,
            Command::Selftest(_) => {}
            _ => return Err(format!("{command} cannot be swept; there are `compare zap`, `run` and `selftest NAME`")),
        }
        Ok(files(arguments))
    }

    fn run(&self, job: &Job<'_>, stop: &(dyn Fn() -> bool + Sync)) -> Result<Vec<Record>, Unfinished> {
        let file = |name: &str| job.files.get(name).map(|path| path.display().to_string());
        let command = parse(words(job.command, job.arguments, file)).map_err(Unfinished::Failed)?;
        let rows = match command {
            Command::Compare(Compare::Zap(args)) => compare::rows(&args),
            Command::Run(args) => match run::row(&args, &job.checkpoint, stop) {
                Ok(Some(row)) => Ok(vec![row]),
                Ok(None) => return Err(Unfinished::Stopped),
                Err(error) => Err(error),
            },
            Command::Selftest(test) => selftest::rows(&test),
            _ => Err(CliError::input(format!("{} cannot be swept", job.command))),
        };
        rows.map_err(|error| Unfinished::Failed(say(&error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(fields: &[(&str, Datum)]) -> Record {
        fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
    }

    #[test]
    fn points_are_command_lines() {
        let arguments = record(&[
            ("v", 2u64.into()),
            ("o", true.into()),
            ("l", false.into()),
            ("working_set", "1MiB".into()),
            ("trace", "a".into()),
        ]);
        let words = words("selftest x", &arguments, |name| (name == "trace").then(|| "/plan/a".to_owned()));
        let expected = ["mmusim", "selftest", "x", "-o", "--trace", "/plan/a", "-v", "2", "--working-set", "1MiB"];
        assert_eq!(words, expected);
    }

    #[test]
    fn points_are_checked_when_they_are_planned() {
        let zap = |fields: &[(&str, Datum)]| Commands.check("compare zap", &record(fields));
        let zipf = ("workload", Datum::from("zipf"));
        assert_eq!(zap(&[zipf.clone(), ("memory", "64MiB".into())]), Ok(vec![]));
        for (fields, word) in [
            (vec![("memory", Datum::from("64MiB"))], "trace"),
            (vec![zipf.clone(), ("threads", 1u64.into())], "leave it out"),
            (vec![zipf.clone(), ("events_limit", 1u64.into())], "leave it out"),
            (vec![zipf.clone(), ("vcpus", 0u64.into())], "vcpus"),
            (vec![zipf.clone(), ("machine", "no-such".into())], "no-such"),
            (vec![zipf.clone(), ("colour", "red".into())], "colour"),
            (vec![zipf, ("memory", "100".into())], "share of guest memory"),
        ] {
            let error = zap(&fields).unwrap_err();
            assert!(error.contains(word), "{fields:?}: {error}");
        }
        assert!(Commands.check("machine list", &Record::new()).unwrap_err().contains("cannot be swept"));
        assert_eq!(Commands.check("selftest demand_paging_test", &record(&[("v", 2u64.into())])), Ok(vec![]));
    }
}
