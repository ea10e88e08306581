//! One file for each kind of document: its fields, its tables, its plots.

mod curve;
mod reproduce;
mod run;
mod score;
mod selftest;
mod sweep;
mod timeline;
mod zap;

use std::collections::BTreeMap;

use crate::markup::Markup;
use crate::number::words;
use crate::read::{Input, Kind, ReportError, Versions};
use crate::table::{Cell, Table};

/// What a page says of one document.
#[derive(Debug)]
pub(crate) struct Section {
    /// Its heading.
    pub(crate) title: String,
    /// The command line, where the document has it or all of its arguments.
    pub(crate) command: Option<String>,
    /// Versions, seed, machines.
    pub(crate) facts: Vec<String>,
    /// Tables and plots.
    pub(crate) body: Markup,
}

/// The section of an input.
///
/// # Errors
/// A document that is not as its command writes it.
pub(crate) fn read(kind: Kind, input: &Input) -> Result<Section, ReportError> {
    match kind {
        Kind::Zap => zap::section(input),
        Kind::Run => run::section(input),
        Kind::Selftest => selftest::section(input),
        Kind::Reproduce => reproduce::section(input),
        Kind::Curve => curve::section(input),
        Kind::Score => score::section(input),
        Kind::Sweep => sweep::section(input),
        Kind::Timeline => timeline::from_trace_events(input),
        Kind::Events => timeline::from_lines(input),
    }
}

/// What every result is of: versions, seed, machines.
fn facts<'a>(
    versions: Option<&Versions>,
    seed: Option<u64>,
    machines: impl IntoIterator<Item = &'a str>,
) -> Vec<String> {
    let mut facts = Vec::new();
    if let Some(Versions { mmusim, model }) = versions {
        facts.push(format!("mmusim {mmusim}, model version {model}"));
    }
    facts.extend(seed.map(|seed| format!("seed {seed}")));
    let mut names: Vec<&str> = Vec::new();
    for machine in machines {
        if !names.contains(&machine) {
            names.push(machine);
        }
    }
    match names.as_slice() {
        [] => {}
        [one] => facts.push(format!("machine {one}")),
        several => facts.push(format!("machines {}", several.join(", "))),
    }
    facts
}

/// Hertz as gigahertz.
fn gigahertz(clock_hz: u64) -> String {
    format!("{:.2} GHz", clock_hz as f64 / 1e9)
}

/// Names and what they are, side by side.
fn definitions(out: &mut Markup, pairs: &[(&str, String)]) {
    out.element("dl", &[], |out| {
        for (name, value) in pairs {
            out.leaf("dt", &[], name);
            out.leaf("dd", &[], value);
        }
    });
}

/// A plot with what it shows.
fn figure(out: &mut Markup, caption: &str, plot: impl FnOnce(&mut Markup)) {
    out.element("figure", &[], |out| {
        plot(out);
        out.leaf("figcaption", &[], caption);
    });
}

/// What can be opened for more.
fn details(out: &mut Markup, summary: &str, inside: impl FnOnce(&mut Markup)) {
    out.element("details", &[], |out| {
        out.leaf("summary", &[], summary);
        inside(out);
    });
}

/// Counters by name, of which only those are shown that are anything but zero somewhere.
fn counters(first: &str, rows: &[(String, &BTreeMap<String, u64>)], out: &mut Markup) {
    let mut names: Vec<&str> = Vec::new();
    for (_, counters) in rows {
        for (name, value) in *counters {
            if *value > 0 && !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
    }
    names.sort_unstable();
    let headings: Vec<String> = names.iter().map(|name| words(name)).collect();
    let units = names.iter().map(|name| counter_unit(name));
    let mut table = Table::new([(first, "")].into_iter().chain(headings.iter().map(String::as_str).zip(units)));
    for (name, counters) in rows {
        let values = names.iter().map(|name| counters.get(*name).map_or(Cell::None, |value| Cell::Count(*value)));
        table.row([Cell::text(name.as_str())].into_iter().chain(values));
    }
    table.write(out);
}

/// Unit of a counter of the engine, by its name.
fn counter_unit(name: &str) -> &'static str {
    match name {
        "flush_wait" | "longest_break" | "longest_fault" | "lock_wait" | "finished" | "started" => "cycles",
        name if name.starts_with("longest_") => "cycles",
        _ => "",
    }
}

/// How something is spread.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Deserialize)]
struct Spread {
    /// Mean.
    mean: u64,
    /// Median.
    p50: u64,
    /// 99th percentile.
    p99: u64,
    /// Greatest.
    max: u64,
}
