//! What the fuzz targets check, as ordinary functions of bytes.
//!
//! `fuzz/` (a workspace of its own, nightly) feeds them what libFuzzer finds; `tests/corpus.rs` replays the committed corpora
//! on stable, with every `cargo test --workspace`. A failed check is a panic, as libFuzzer wants it.
//!
//! | target | input | checks |
//! | --- | --- | --- |
//! | `trace` | a trace of any format and compression | every byte string ends in records or an error, within the limits |
//! | `machine_toml` | a machine sheet | refused with a place, a message and a remedy, or accepted |
//! | `vectors` | JSON lines of recorded translations | refused with a message, or judged |
//! | `litmus` | a file of litmus tests or protocol traces | refused with a message, or run to a verdict within its limits |
//! | `decode_word` | words | decoding is total and agrees with every other question about the word |
//! | `walk_raw_tables` | memory of arbitrary words | walks of one and two stages end in a bounded number of steps |
//! | `tables_vs_dense` | operations on table memory | folding and word-by-word holding cannot be told apart |
//! | `mapper_vs_tables` | operations on a mapper | it leaves the words and counts that single stores to table memory leave |
//! | `tlb_vs_model` | operations on a TLB | a hit is the newest fill that no invalidation has covered |
//! | `protocol_schedule` | a mixture of protocols on a small VM, and a schedule | no invariant is broken |
//! | `matrix` | a permission matrix, or rules of break-before-make | refused with a message, or judged |
//! | `measurements` | measured latency curves | refused with the line, or read |
//! | `replay` | a replay file of the explorer | refused with the line, or written again byte by byte |
//! | `snapshot` | a snapshot | refused with a message, or inspected |
//! | `sweep_point` | a line of a sweep's plan | refused with a message, or written again byte by byte |
//! | `report` | a document for the HTML page | refused with a message, or a page without markup of its own |

mod bytes;
mod documents;
mod formats;
mod mapper;
mod parsers;
mod programs;
mod tables;
mod tlb;
mod walks;
mod words;

/// A check of one input.
pub type Check = fn(&[u8]);

/// The targets, by the name of their corpus and their file under `fuzz/fuzz_targets/`.
pub const TARGETS: [(&str, Check); 16] = [
    ("decode_word", words::decode_word),
    ("litmus", parsers::litmus),
    ("machine_toml", parsers::machine_toml),
    ("mapper_vs_tables", mapper::mapper_vs_tables),
    ("matrix", documents::matrix),
    ("measurements", documents::measurements),
    ("protocol_schedule", programs::protocol_schedule),
    ("replay", documents::replay),
    ("report", documents::report),
    ("snapshot", documents::snapshot),
    ("sweep_point", documents::sweep_point),
    ("tables_vs_dense", tables::tables_vs_dense),
    ("tlb_vs_model", tlb::tlb_vs_model),
    ("trace", parsers::trace),
    ("vectors", parsers::vectors),
    ("walk_raw_tables", walks::walk_raw_tables),
];

/// Runs one target on one input; says whether there is a target of this name.
///
/// # Panics
/// When the input breaks a promise that the target checks.
#[must_use = "a misspelt target checks nothing"]
pub fn run(target: &str, data: &[u8]) -> Found {
    match TARGETS.iter().find(|(name, _)| *name == target) {
        Some((_, check)) => {
            check(data);
            Found::Yes
        }
        None => Found::No,
    }
}

/// Whether a target exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// It does and has run.
    Yes,
    /// It does not.
    No,
}

fn explained(error: &dyn std::error::Error) {
    assert!(error.to_string().starts_with("fuzz"), "the error does not name its input: {error}");
}
