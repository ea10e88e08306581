//! The program `mmusim`: experiments, vector checks, traces and machine sheets from the command line.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `args` | the command line |
//! | `compare` | `compare zap`: from arguments to plans, runs and their report |
//! | `selftest` | KVM's own tests by name |
//! | `explore` | protocols run adversarially, the bug museum |
//! | `predict` | latency curves from a sheet, and their score against measurements |
//! | `reproduce` | published measurements run again, their ratios, their plots |
//! | `calibrate` | a sheet from measurements |
//! | `validation` | both in one report |
//! | `report` | a page of HTML from what commands wrote |
//! | `vectors`, `litmus`, `timed`, `trace`, `tlb`, `machine` | the other commands |
//! | `run`, `signals` | one run that can be saved and continued; being asked to stop |
//! | `sweep` | plans, shards and merges of many experiments |
//! | `invocation` | the command line as documents keep it |
//! | `platform`, `record` | which machines a command runs on, and what it records |
//! | `table`, `output`, `progress` | tables for people, where data goes, where talk goes |
//! | `error` | what can go wrong, and the exit code of it |
//!
//! Standard output carries data and nothing else; progress, notes and errors go to standard error. A reader that closes the
//! pipe has enough: the program stops at once and reports success.

pub mod args;
mod calibrate;
mod compare;
mod error;
pub mod explore;
mod invocation;
pub mod litmus;
mod machine;
mod output;
mod platform;
pub mod predict;
mod progress;
pub mod record;
pub mod report;
pub mod reproduce;
pub mod run;
pub mod selftest;
mod signals;
pub mod sweep;
mod table;
mod timed;
pub mod tlb;
mod trace;
pub mod validation;
mod vectors;

use std::ffi::OsString;
use std::io::IsTerminal;

use clap::Parser;

pub use error::{CliError, Exit};

use args::{Cli, Command, Compare};
use invocation::Invocation;

/// Version of the layout of JSON and CSV output. It rises when a field is renamed, removed or changes its meaning.
pub const SCHEMA_VERSION: u32 = 1;

/// Runs one command line, the program's name first, and says how it ended.
pub fn run(args: impl IntoIterator<Item = OsString>) -> Exit {
    let args: Vec<OsString> = args.into_iter().collect();
    let invocation = Invocation::new(&args);
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help that nobody reads to its end is no failure.
            let _ = error.print();
            return if error.use_stderr() { Exit::BadInput } else { Exit::Fine };
        }
    };
    match dispatch(&cli.command, &invocation) {
        Ok(()) => Exit::Fine,
        Err(error) => {
            if let Some(text) = error.render(colour()) {
                eprintln!("{text}");
            }
            error.exit()
        }
    }
}

fn dispatch(command: &Command, invocation: &Invocation) -> Result<(), CliError> {
    match command {
        Command::Compare(Compare::Zap(args)) => compare::zap(args, invocation),
        Command::Selftest(test) => selftest::run(test, invocation),
        Command::CheckVectors(args) => vectors::check(args),
        Command::CheckMatrix(args) => vectors::check_matrix(args),
        Command::Explore(args) => explore::run(args),
        Command::Litmus(args) => litmus::run(args),
        Command::Lint(args) => litmus::lint(args),
        Command::Trace(args::Trace::Info(args)) => trace::info(args),
        Command::Trace(args::Trace::Convert(args)) => trace::convert(args),
        Command::Tlb(args) => tlb::replay(args),
        Command::Run(args) => run::run(args),
        Command::Sweep(sweep) => sweep::run(sweep),
        Command::Reproduce(args) => reproduce::run(args, invocation),
        Command::Report(args) => report::run(args),
        Command::Validation(args) => validation::run(args),
        Command::Predict(args) => predict::run(args, invocation),
        Command::Machine(args::Machine::List(args)) => machine::list(args),
        Command::Machine(args::Machine::Show(args)) => machine::show(args),
        Command::Machine(args::Machine::Check(args)) => machine::check(args),
        Command::Machine(args::Machine::Calibrate(args)) => calibrate::run(args),
    }
}

/// Whether errors are drawn in colour.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Colour {
    /// Yes.
    Styled,
    /// No.
    Plain,
}

/// Colour only on a terminal that shows it, and never against `NO_COLOR` (<https://no-color.org>).
fn colour() -> Colour {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    if std::io::stderr().is_terminal() && !set("NO_COLOR") && !dumb { Colour::Styled } else { Colour::Plain }
}
