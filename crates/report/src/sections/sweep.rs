//! `sweep merge`: rows of many experiments, over the arguments that tell them apart.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::Value as Json;

use super::{Section, details, facts, figure};
use crate::markup::Markup;
use crate::number::words;
use crate::read::{Input, Kind, ReportError, lines};
use crate::svg::{self, COLOURS, Chart, Mark, Series};
use crate::table::{Cell, Table};

/// A line.
#[derive(Deserialize)]
struct Line {
    arguments: BTreeMap<String, Json>,
    command: String,
    model_version: u64,
    row: BTreeMap<String, Json>,
}

/// What a command's rows are plotted by, the most telling first, with the axis.
const FIGURES: [(&str, &str); 8] = [
    ("zap_cycles", "zap, cycles"),
    ("lost_p99_cycles", "lost per vCPU, p99, cycles"),
    ("longest_unscheduled_cycles", "longest without reschedule, cycles"),
    ("lock_wait_cycles", "lock wait, cycles"),
    ("spread_p99", "vCPUs finish, p99, cycles"),
    ("lock_wait", "lock wait, cycles"),
    ("cycles", "cycles"),
    ("millionths", "millionths"),
];

/// Columns of a row that name what it is about, beside the arguments.
const NAMES: [&str; 5] = ["arch", "strategy", "phase", "figure", "check"];

/// Lines in a chart that one can still tell apart.
const MOST_SERIES: usize = 12;
/// Rows in the table.
const MOST_ROWS: usize = 400;

pub(super) fn section(input: &Input) -> Result<Section, ReportError> {
    let mut rows: Vec<Line> = Vec::new();
    lines(input, Kind::Sweep, |_, line: Line| {
        rows.push(line);
        Ok(())
    })?;
    let machines: Vec<String> =
        rows.iter().filter_map(|line| line.row.get("machine")?.as_str().map(str::to_owned)).collect();
    let mut facts = facts(None, None, machines.iter().map(String::as_str));
    let models: BTreeSet<u64> = rows.iter().map(|line| line.model_version).collect();
    facts.insert(0, format!("model version {}", join(models.iter())));
    facts.push(format!("{} rows", rows.len()));
    let mut commands: BTreeMap<&str, Vec<&Line>> = BTreeMap::new();
    for line in &rows {
        commands.entry(&line.command).or_default().push(line);
    }
    let mut body = Markup::default();
    for (command, lines) in commands {
        Group::new(command, &lines).write(&mut body);
    }
    Ok(Section { title: "Sweep".to_owned(), command: None, facts, body })
}

fn join(items: impl Iterator<Item = impl ToString>) -> String {
    items.map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

fn plain(value: &Json) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// All rows of one command.
struct Group<'a> {
    command: &'a str,
    lines: &'a [&'a Line],
    /// Arguments that have one value everywhere.
    same: Vec<(&'a str, String)>,
    /// Arguments with several numbers, without seeds.
    numbers: Vec<&'a str>,
    /// Arguments and columns with several words.
    words: Vec<&'a str>,
    /// How many seeds there are.
    seeds: usize,
}

impl<'a> Group<'a> {
    fn new(command: &'a str, lines: &'a [&'a Line]) -> Self {
        let mut values: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        let mut numeric: BTreeMap<&str, bool> = BTreeMap::new();
        for line in lines {
            let named = line.row.iter().filter(|(name, _)| NAMES.contains(&name.as_str()));
            for (name, value) in line.arguments.iter().chain(named) {
                values.entry(name).or_default().insert(plain(value));
                *numeric.entry(name).or_insert(true) &= number(value).is_some();
            }
        }
        let mut group = Group { command, lines, same: Vec::new(), numbers: Vec::new(), words: Vec::new(), seeds: 1 };
        for (name, values) in &values {
            match (*name, values.len()) {
                ("seed", several) => group.seeds = several,
                (name, 1) => group.same.push((name, values.iter().next().cloned().unwrap_or_default())),
                (name, _) if numeric.get(name) == Some(&true) => group.numbers.push(name),
                (name, _) => group.words.push(name),
            }
        }
        group
    }

    fn write(&self, out: &mut Markup) {
        out.leaf("h3", &[], &format!("mmusim {}", self.command));
        let same: Vec<String> = self.same.iter().map(|(name, value)| format!("{} {value}", words(name))).collect();
        out.element("p", &[], |out| {
            out.format(format_args!("{} rows", self.lines.len()));
            if self.seeds > 1 {
                out.format(format_args!("; medians of {} seeds", self.seeds));
            }
            if !same.is_empty() {
                out.format(format_args!("; the same in all: {}", same.join(", ")));
            }
            out.text(".");
        });
        let figures: Vec<(&str, &str)> = FIGURES
            .into_iter()
            .filter(|(name, _)| self.lines.iter().any(|line| line.row.contains_key(*name)))
            .take(3)
            .collect();
        for (name, axis) in &figures {
            self.plots(out, name, axis);
        }
        let names: Vec<&str> = figures.iter().map(|(name, _)| *name).collect();
        details(out, "All rows, medians over seeds", |out| self.table(&names, out));
    }

    /// What tells a row's line in a chart from others, and its chart from others.
    fn place(&self, line: &Line, across: &str) -> (String, String) {
        let (mut chart, mut series) = (Vec::new(), Vec::new());
        // The architecture makes charts of their own: sheets differ by more than anything else.
        for name in self.words.iter().chain(&self.numbers).filter(|name| **name != across) {
            let Some(value) = line.row.get(*name).or_else(|| line.arguments.get(*name)) else { continue };
            let text = plain(value);
            match *name {
                "arch" | "machine" => chart.push(text),
                "strategy" | "phase" | "figure" => series.push(text),
                name => series.push(format!("{} {text}", words(name))),
            }
        }
        (chart.join(", "), series.join(", "))
    }

    fn plots(&self, out: &mut Markup, name: &str, axis: &str) {
        let Some(across) = self.numbers.first().copied() else { return };
        let mut charts: BTreeMap<String, BTreeMap<String, BTreeMap<u64, Vec<f64>>>> = BTreeMap::new();
        for line in self.lines {
            let (Some(x), Some(y)) =
                (line.arguments.get(across).and_then(number), line.row.get(name).and_then(Json::as_f64))
            else {
                continue;
            };
            let (chart, series) = self.place(line, across);
            charts.entry(chart).or_default().entry(series).or_default().entry(x.to_bits()).or_default().push(y);
        }
        let mut left_out = 0;
        let made: Vec<Chart> = charts
            .into_iter()
            .map(|(title, series)| {
                left_out += series.len().saturating_sub(MOST_SERIES);
                let series = series.into_iter().take(MOST_SERIES).enumerate().map(|(n, (name, points))| Series {
                    name,
                    colour: n,
                    mark: if n < COLOURS { Mark::Solid } else { Mark::Dashed },
                    points: points.into_iter().map(|(x, values)| (f64::from_bits(x), median(values))).collect(),
                });
                let series: Vec<Series> = series.collect();
                // Nothing has a place on a logarithmic axis where it is zero.
                let zero = series.iter().flat_map(|series| &series.points).any(|(_, y)| *y <= 0.0);
                Chart {
                    title: if title.is_empty() { self.command.to_owned() } else { title },
                    across: (words(across), svg::Kind::Binary),
                    up: (axis.to_owned(), if zero { svg::Kind::Linear } else { svg::Kind::Log }),
                    series,
                    size: (1080.0, 280.0),
                }
            })
            .collect();
        let more = if left_out > 0 { format!(" {left_out} more lines are in the table only.") } else { String::new() };
        figure(out, &format!("Logarithmic, but from zero where something is zero.{more}"), |out| {
            for chart in &made {
                chart.write(out);
            }
        });
    }

    fn table(&self, figures: &[&str], out: &mut Markup) {
        let keys: Vec<&str> = self.words.iter().chain(&self.numbers).copied().collect();
        let mut groups: BTreeMap<Vec<Key>, BTreeMap<&str, Vec<f64>>> = BTreeMap::new();
        for line in self.lines {
            let key =
                keys.iter().map(|name| Key::of(line.row.get(*name).or_else(|| line.arguments.get(*name)))).collect();
            let values = groups.entry(key).or_default();
            for name in figures {
                values.entry(name).or_default().extend(line.row.get(*name).and_then(Json::as_f64));
            }
        }
        let headings: Vec<String> = keys.iter().chain(figures).map(|name| words(name)).collect();
        let mut table = Table::new(headings.iter().map(|name| (name.as_str(), "")));
        for (key, values) in groups.iter().take(MOST_ROWS) {
            let names = key.iter().map(Key::cell);
            let figures = figures.iter().map(|name| match values.get(name) {
                Some(values) if !values.is_empty() => Cell::Count(median(values.clone()) as u64),
                _ => Cell::None,
            });
            table.row(names.chain(figures));
        }
        table.write(out);
        if groups.len() > MOST_ROWS {
            out.element("p", &[], |out| {
                out.format(format_args!("The first {MOST_ROWS} of {}; `sweep merge --csv` has all.", groups.len()));
            });
        }
    }
}

/// A value that rows are sorted by: numbers as numbers.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Missing,
    Number(u64),
    Word(String),
}

impl Key {
    fn of(value: Option<&Json>) -> Self {
        match value {
            None => Key::Missing,
            Some(value) => value.as_u64().map_or_else(|| Key::Word(plain(value)), Key::Number),
        }
    }

    fn cell(&self) -> Cell {
        match self {
            Key::Missing => Cell::None,
            Key::Number(number) => Cell::Number(number.to_string()),
            Key::Word(word) => Cell::text(word.as_str()),
        }
    }
}

/// A number, or a size with its unit.
fn number(value: &Json) -> Option<f64> {
    if let Some(number) = value.as_f64() {
        return Some(number);
    }
    let text = value.as_str()?;
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(at);
    let shift = match unit {
        "" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        "P" | "PiB" => 50,
        _ => return None,
    };
    Some(digits.parse::<f64>().ok()? * (1u64 << shift) as f64)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_numbers_and_words_are_not() {
        let of = |text: &str| number(&serde_json::from_str(text).unwrap());
        assert_eq!(
            (of("3"), of("\"64MiB\""), of("\"2M\""), of("\"x86\"")),
            (Some(3.0), Some(67_108_864.0), Some(2_097_152.0), None)
        );
    }

    #[test]
    fn medians_of_even_and_odd_numbers() {
        assert_eq!((median(vec![3.0, 1.0, 2.0]), median(vec![4.0, 1.0])), (2.0, 2.5));
        assert!(median(Vec::new()).is_nan());
    }
}
