//! `tlb`: a trace through TLBs and paging-structure caches alone.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use mmusim::core::assoc::Shape;
use mmusim::core::tlb::Inclusion;
use mmusim::sim::tlb_replay::{
    Crossing, Fetches, FirstNumber, LevelCounts, ShapeTextError, TlbReplay, TlbReplayCounts, TlbReplayError,
    TlbReplaySpec, TreeLevels, Walker, shape_from_text, shape_to_text,
};
use mmusim::trace::TraceFormat;
use mmusim::{PageSize, ReadOptions, Seed, TraceReader};
use serde_json::{Value, json};

use crate::args::EXIT_CODES;
use crate::output::Output;
use crate::table::Columns;
use crate::{CliError, SCHEMA_VERSION};

/// Records replayed at once.
const BATCH: usize = 1 << 14;

/// `tlb`.
#[derive(Args, Debug)]
#[command(after_help = EXIT_CODES)]
pub struct TlbArgs {
    /// The trace
    #[arg(long, value_name = "FILE")]
    pub trace: PathBuf,
    /// Its format [default: told from the content, then from the name]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<TraceFormat>,
    /// First level: entries and ways (64x4, 64xfull) or sets and ways (16sx4), then :lru, :fifo, :tree-plru, :nru, :random or
    /// :random-half, then :modulo, :xor-fold or :skewed
    #[arg(long, value_name = "GEOMETRY", default_value = "64x4:lru", value_parser = tlb_shape)]
    pub l1: Shape,
    /// Second level, or `none`
    #[arg(long, value_name = "GEOMETRY", default_value = "1536x12:lru", value_parser = optional_shape)]
    pub l2: OptionalShape,
    /// Size of all pages
    #[arg(long, value_name = "SIZE", default_value = "4K")]
    pub page_size: PageSize,
    /// Look up every page that a reference touches, not only that of its first byte
    #[arg(long)]
    pub split: bool,
    /// Replay instruction fetches too, through a first level of their own with the geometry of --l1
    #[arg(long)]
    pub fetches: bool,
    /// How the levels relate
    #[arg(long, value_enum, value_name = "HOW", default_value = "non-inclusive")]
    pub inclusion: InclusionName,
    /// Paging-structure caches, sets and ways of each, from the last level's tables up (PDE, PDPTE, PML4E, PML5E): 4x8,2x4,1x4
    #[arg(long, value_name = "GEOMETRY,...", value_delimiter = ',', value_parser = psc_shape)]
    pub psc: Vec<Shape>,
    /// Levels of the page tables
    #[arg(long, value_name = "4|5", default_value = "4", value_parser = clap::value_parser!(u8).range(4..=5))]
    pub levels: u8,
    /// What a hit in a paging-structure cache spares a walk
    #[arg(long, value_enum, value_name = "WHOSE", default_value = "architectural")]
    pub walker: WalkerName,
    /// Records to leave out at the start
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub skip: u64,
    /// Records to replay after that [default: all]
    #[arg(long, value_name = "N")]
    pub take: Option<u64>,
    /// Seed of random replacement
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Write JSON
    #[arg(long)]
    pub json: bool,
    /// Write to a file, which appears when it is complete
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// How the levels relate, as an argument.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum InclusionName {
    /// They do not: what DynamoRIO and ChampSim do.
    NonInclusive,
    /// What leaves the second level leaves the first.
    Inclusive,
    /// A translation is in one level only.
    Exclusive,
}

/// Whose page walks, as an argument.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum WalkerName {
    /// The entry that hit and all above it are not read.
    Architectural,
    /// The entry that hit is read again.
    Champsim,
}

/// A geometry or `none`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OptionalShape(pub Option<Shape>);

fn tlb_shape(text: &str) -> Result<Shape, ShapeTextError> {
    shape_from_text(text, FirstNumber::Entries)
}

fn psc_shape(text: &str) -> Result<Shape, ShapeTextError> {
    shape_from_text(text, FirstNumber::Sets)
}

fn optional_shape(text: &str) -> Result<OptionalShape, String> {
    if text == "none" {
        return Ok(OptionalShape(None));
    }
    tlb_shape(text).map(|shape| OptionalShape(Some(shape))).map_err(|error| format!("{error}; or none"))
}

fn spec(args: &TlbArgs) -> TlbReplaySpec {
    TlbReplaySpec {
        inclusion: match args.inclusion {
            InclusionName::NonInclusive => Inclusion::NonInclusive,
            InclusionName::Inclusive => Inclusion::Inclusive,
            InclusionName::Exclusive => Inclusion::Exclusive,
        },
        page: args.page_size,
        crossing: if args.split { Crossing::Split } else { Crossing::FirstByte },
        fetches: if args.fetches { Fetches::Replayed } else { Fetches::LeftOut },
        psc: args.psc.clone(),
        levels: if args.levels == 5 { TreeLevels::Five } else { TreeLevels::Four },
        walker: match args.walker {
            WalkerName::Architectural => Walker::Architectural,
            WalkerName::Champsim => Walker::ReadsHitAgain,
        },
        seed: Seed(args.seed),
        ..TlbReplaySpec::new(args.l1, args.l2.0)
    }
}

fn refused(error: &TlbReplayError, args: &TlbArgs) -> CliError {
    let argument = match error {
        TlbReplayError::Array(_) | TlbReplayError::PageTooLarge { .. } => format!("--page-size {}", args.page_size),
        TlbReplayError::TooManyPscs { .. } => "--psc".to_owned(),
    };
    CliError::argument(argument, error)
}

/// `tlb`.
pub fn replay(args: &TlbArgs) -> Result<(), CliError> {
    let mut replay = TlbReplay::new(&spec(args)).map_err(|error| refused(&error, args))?;
    let reading = ReadOptions { format: args.format, ..ReadOptions::default() };
    let mut reader = TraceReader::open_with(&args.trace, &reading).map_err(CliError::input)?;
    let mut output = Output::open(args.output.as_deref())?;
    let records = feed(&mut replay, &mut reader, args)?;
    let counts = replay.counts();
    let text = if args.json {
        format!("{:#}\n", document(args, &reader, records, &counts))
    } else {
        table(args, records, &counts)
    };
    output.write(&text)?;
    output.finish()
}

/// Replays the wanted window of the trace and says how many records that were.
fn feed(replay: &mut TlbReplay, reader: &mut TraceReader, args: &TlbArgs) -> Result<u64, CliError> {
    let (mut skip, mut left, mut records) = (args.skip, args.take.unwrap_or(u64::MAX), 0);
    let mut batch = Vec::with_capacity(BATCH);
    while left > 0 {
        batch.clear();
        // Not more than wanted: what lies behind the window may be damaged.
        let room = left.saturating_add(skip).min(BATCH as u64) as usize;
        if reader.fill(&mut batch, room).map_err(CliError::input)? == 0 {
            break;
        }
        let skipped = skip.min(batch.len() as u64);
        skip -= skipped;
        let wanted = &batch[skipped as usize..];
        replay.feed(wanted);
        left -= wanted.len() as u64;
        records += wanted.len() as u64;
    }
    Ok(records)
}

fn document(args: &TlbArgs, reader: &TraceReader, records: u64, counts: &TlbReplayCounts) -> Value {
    let level = |counts: LevelCounts| json!({ "hits": counts.hits, "misses": counts.misses });
    json!({
        "schema_version": SCHEMA_VERSION,
        "trace": args.trace.display().to_string(),
        "format": reader.format().name(),
        "geometry": {
            "l1": shape_to_text(args.l1),
            "l2": args.l2.0.map(shape_to_text),
            "psc": args.psc.iter().copied().map(shape_to_text).collect::<Vec<_>>(),
            "page_bytes": args.page_size.bytes(),
            "levels": args.levels,
        },
        "records": records,
        "references": counts.references,
        "lookups": counts.l1().hits + counts.l1().misses,
        "l1": level(counts.l1()),
        "l1_data": level(counts.l1_data),
        "l1_fetch": counts.l1_fetch.map(level),
        "l2": counts.l2.map(level),
        "walks": counts.walks,
        "pte_reads": counts.pte_reads,
        "psc": { "none": counts.psc_none, "deepest": counts.psc_deepest },
    })
}

fn table(args: &TlbArgs, records: u64, counts: &TlbReplayCounts) -> String {
    let mut columns = Columns::new(2, &["level", "geometry", "hits", "misses", "misses, %"]);
    let mut row = |name: &str, shape: Shape, counts: LevelCounts| {
        let share = 100.0 * counts.misses as f64 / (counts.hits + counts.misses).max(1) as f64;
        let [hits, misses] = [counts.hits, counts.misses].map(|count| count.to_string());
        columns.row([name.to_owned(), shape_to_text(shape), hits, misses, format!("{share:.3}")]);
    };
    row("L1 data", args.l1, counts.l1_data);
    if let Some(fetch) = counts.l1_fetch {
        row("L1 fetch", args.l1, fetch);
    }
    if let (Some(shape), Some(l2)) = (args.l2.0, counts.l2) {
        row("L2", shape, l2);
    }
    format!(
        "{} records, {} references, pages of {}\n{}{} walks, {} page-table reads\n",
        records,
        counts.references,
        args.page_size,
        columns.render(),
        counts.walks,
        counts.pte_reads
    )
}
