//! How many instructions the hot paths take, beside the committed figures: what a quiet machine is not needed for.
//!
//! ```text
//! cargo bench -p mmu-sim --bench instructions                        counts all cases under valgrind, fails where one grew
//! cargo bench -p mmu-sim --bench instructions -- tlb                 only cases whose name contains "tlb"
//! cargo bench -p mmu-sim --bench instructions -- --bless "REASON"    writes the figures down; the reason goes to CHANGELOG.md too
//! cargo bench -p mmu-sim --bench instructions -- --test              every case once, without counting
//! ```
//!
//! # How it counts
//!
//! Each case is run twice under `valgrind --tool=callgrind`, with few rounds and with more, in a process of its own. The difference, divided
//! by the operations it has more, is free of set-up, of the loader and of the allocator's first pages. Nothing in a case is random or depends
//! on time, so two runs on one machine differ by less than a thousandth.
//!
//! # When it fails
//!
//! A case that takes more than 3 % more than `baseline.toml` says fails. Compilers differ more than that: with another compiler than the
//! baseline's the limit is 15 %, and the remedy is to write the baseline anew. A case that takes 3 % less is shown and does not fail; write
//! the figures down, so that what was won is kept. The reason of the last change must be in CHANGELOG.md.

mod baseline;
mod cases;
#[path = "../shared/scatter.rs"]
mod scatter;
#[path = "../shared/sum.rs"]
mod sum;
#[path = "../shared/tree.rs"]
mod tree;
mod valgrind;
#[path = "../shared/zap.rs"]
mod zap;

use std::process::ExitCode;

use baseline::{Baseline, Verdict};
use cases::{ALL, Case};

/// What the arguments ask for.
enum Asked {
    /// Counting, of cases whose name contains this.
    Count(String),
    /// Writing the baseline, for this reason.
    Bless(String),
    /// Each case once.
    Once,
    /// One case, this many rounds: what runs under valgrind.
    Case(String, u64),
}

fn asked() -> Result<Asked, String> {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let Some(first) = args.next() else { return Ok(Asked::Count(String::new())) };
    match first.as_str() {
        "--test" => Ok(Asked::Once),
        "--bless" => {
            let reason = args.next().filter(|reason| !reason.trim().is_empty());
            reason.map(Asked::Bless).ok_or_else(|| "--bless needs the reason why the figures change".into())
        }
        "--case" => match (args.next(), args.next().map(|rounds| rounds.parse())) {
            (Some(name), Some(Ok(rounds))) => Ok(Asked::Case(name, rounds)),
            _ => Err("--case needs a name and a number of rounds".into()),
        },
        option if option.starts_with('-') => {
            Err(format!("{option}: not known; see the head of benches/instructions/main.rs"))
        }
        filter => Ok(Asked::Count(filter.into())),
    }
}

fn main() -> ExitCode {
    let done = asked().and_then(|asked| match asked {
        Asked::Case(name, rounds) => {
            let case = ALL.iter().find(|case| case.name == name).ok_or_else(|| format!("{name}: no such case"))?;
            (case.run)(rounds);
            Ok(())
        }
        Asked::Once => {
            for case in ALL {
                (case.run)(1);
            }
            Ok(())
        }
        Asked::Count(filter) => count(&filter),
        Asked::Bless(reason) => bless(reason),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("instructions: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Instructions of one operation of a case.
fn measure(case: &Case) -> Result<f64, String> {
    let [few, many] = case.rounds;
    let counted = |rounds| valgrind::instructions(case.name, rounds);
    let more = counted(many)?.saturating_sub(counted(few)?);
    Ok(more as f64 / ((many - few) * case.operations) as f64)
}

fn count(filter: &str) -> Result<(), String> {
    let baseline = Baseline::read()?;
    let compiler = valgrind::compiler()?;
    let limit = baseline.limit(&compiler);
    if compiler != baseline.compiler {
        println!("baseline: {}, here: {compiler}; a case may grow by {:.0} %", baseline.compiler, 100.0 * limit);
    }
    println!("{:<34} {:>14} {:>14} {:>8}  instructions of", "case", "baseline", "now", "change");
    let mut grown = Vec::new();
    for case in ALL.iter().filter(|case| case.name.contains(filter)) {
        let now = measure(case)?;
        let (verdict, change) = baseline.judge(case.name, now, limit);
        let before = baseline.of(case.name).map_or("-".into(), |before| format!("{before:.2}"));
        println!("{:<34} {before:>14} {now:>14.2} {change:>8}  {}{}", case.name, case.unit, verdict.mark());
        if verdict != Verdict::Kept && verdict != Verdict::Fell {
            grown.push(case.name);
        }
    }
    if grown.is_empty() {
        return baseline.check_reason();
    }
    let names = grown.join(", ");
    Err(format!(
        "more instructions than benches/instructions/baseline.toml says: {names}. Find what they do more; if it is worth it, \
         cargo bench -p mmu-sim --bench instructions -- --bless \"REASON\", and the reason in CHANGELOG.md"
    ))
}

fn bless(reason: String) -> Result<(), String> {
    let mut figures = Vec::new();
    for case in &ALL {
        let now = measure(case)?;
        println!("{:<34} {now:>14.2}  instructions of {}", case.name, case.unit);
        figures.push((case.name.to_owned(), now));
    }
    let baseline = Baseline { compiler: valgrind::compiler()?, reason, figures };
    baseline.write()?;
    baseline.check_reason()
}
