//! `reproduce --json`: published measurements and the simulator's.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Section, details, facts, figure};
use crate::markup::Markup;
use crate::number::{bytes, signed_percent};
use crate::read::{Input, Kind, ReportError, Versions, document};
use crate::svg::{self, Chart, Mark, Panel, Panels, Series, Value};
use crate::table::{Cell, Table, Verdict};

#[derive(Deserialize)]
struct Document {
    versions: Option<Versions>,
    command: Option<String>,
    experiments: Vec<Experiment>,
}

#[derive(Deserialize)]
struct Experiment {
    id: String,
    title: String,
    command: String,
    source: String,
    machine: String,
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    what: String,
    unit: String,
    vcpus: u64,
    bytes: u64,
    scale: u64,
    published: Option<[Figure; 2]>,
    simulated: [f64; 2],
    published_ratio: Option<Figure>,
    simulated_ratio: Option<f64>,
    error: Option<f64>,
    within_a_quarter: Option<bool>,
    times: Vec<BTreeMap<String, f64>>,
}

/// A published figure: a number, or an object that says on which side of it.
#[derive(Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Figure {
    Is(f64),
    Below { below: f64 },
    Above { above: f64 },
}

impl Figure {
    fn number(self) -> f64 {
        match self {
            Figure::Is(number) | Figure::Below { below: number } | Figure::Above { above: number } => number,
        }
    }

    fn cell(self) -> Cell {
        match self {
            Figure::Is(number) => Cell::figure(number),
            Figure::Below { below } => Cell::text(format!("< {below}")),
            Figure::Above { above } => Cell::text(format!("> {above}")),
        }
    }
}

impl Row {
    fn verdict(&self) -> Verdict {
        match self.within_a_quarter {
            Some(true) => Verdict::Good,
            Some(false) => Verdict::Bad,
            None => Verdict::Open,
        }
    }
}

pub(super) fn section(input: &Input) -> Result<Section, ReportError> {
    let Document { versions, command, experiments } = document(input, Kind::Reproduce)?;
    let facts = facts(versions.as_ref(), None, experiments.iter().map(|experiment| experiment.machine.as_str()));
    let mut body = Markup::default();
    let judged: Vec<bool> =
        experiments.iter().flat_map(|experiment| &experiment.rows).filter_map(|row| row.within_a_quarter).collect();
    let within = judged.iter().filter(|within| **within).count();
    body.element("p", &[], |out| {
        out.format(format_args!(
            "Ratios of before to after a change of the kernel, as published and as simulated on a machine's sheet, where a D marks the costs that come from published totals like these: {within} of {} \
             are within a quarter of the published one, or on the right side where a bound was published. A scale above one means a run with so many times less memory, whose times are multiplied.",
            judged.len()
        ));
    });
    for experiment in &experiments {
        experiment.write(&mut body);
    }
    Ok(Section { title: "Published measurements, run again".to_owned(), command, facts, body })
}

impl Experiment {
    fn write(&self, out: &mut Markup) {
        out.leaf("h3", &[], &format!("{}: {}", self.id, self.title));
        out.element("p", &[], |out| {
            out.leaf("code", &[], &self.command);
            out.format(format_args!("; published in {}; simulated on {}", self.source, self.machine));
        });
        if self.rows.is_empty() {
            return;
        }
        self.table().write(out);
        figure(out, RATIOS, |out| self.ratios().write(out));
        self.charts(out);
        details(out, "Where the simulated time went", |out| self.times().write(out));
    }

    fn table(&self) -> Table {
        let mut table = Table::new([
            ("", ""),
            ("vCPUs", ""),
            ("memory", ""),
            ("scale", ""),
            ("published", "before"),
            ("published", "after"),
            ("simulated", "before"),
            ("simulated", "after"),
            ("published", "ratio"),
            ("simulated", "ratio"),
            ("error", "of the ratio"),
        ]);
        for row in &self.rows {
            let unit = if row.unit.is_empty() { String::new() } else { format!(" ({})", row.unit) };
            let optional = |value: Option<f64>| value.map_or(Cell::None, Cell::figure);
            let published = |value: Option<Figure>| value.map_or(Cell::None, Figure::cell);
            table.row([
                Cell::text(format!("{}{unit}", row.what)),
                Cell::Count(row.vcpus),
                Cell::Number(bytes(row.bytes)),
                Cell::Count(row.scale),
                published(row.published.map(|values| values[0])),
                published(row.published.map(|values| values[1])),
                Cell::figure(row.simulated[0]),
                Cell::figure(row.simulated[1]),
                published(row.published_ratio),
                optional(row.simulated_ratio),
                Cell::Error(row.error, row.verdict()),
            ]);
        }
        table
    }

    fn ratios(&self) -> Panels {
        let name = |row: &Row| {
            let case = format!("{} vCPUs, {}", row.vcpus, bytes(row.bytes));
            (format!("{}: {case}", row.what), None)
        };
        let values = |row: &Row| match row.simulated_ratio {
            Some(simulated) => Value::Pair(row.published_ratio.map(Figure::number), simulated),
            None => Value::None,
        };
        let ratio = Panel {
            title: "Ratio, before to after",
            unit: "",
            kind: svg::Kind::Log,
            mark: Some(1.0),
            values: self.rows.iter().map(values).collect(),
        };
        Panels { name: format!("{}: ratios", self.id), rows: self.rows.iter().map(name).collect(), across: vec![ratio] }
    }

    /// A chart for each figure that was measured at several numbers of vCPUs or sizes.
    fn charts(&self, out: &mut Markup) {
        let mut figures: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
        for row in &self.rows {
            figures.entry(&row.what).or_default().push(row);
        }
        let charts: Vec<Chart> = figures.values().filter(|rows| rows.len() > 1).map(|rows| chart(rows)).collect();
        if charts.is_empty() {
            return;
        }
        out.element("div", &[("class", "grid2")], |out| charts.iter().for_each(|chart| chart.write(out)));
    }

    fn times(&self) -> Table {
        let mut names: Vec<&str> = Vec::new();
        for time in self.rows.iter().flat_map(|row| &row.times) {
            names.extend(time.iter().filter(|(_, value)| **value > 0.0).map(|(name, _)| name.as_str()));
        }
        names.sort_unstable();
        names.dedup();
        let headings =
            [("", ""), ("vCPUs", ""), ("", "")].into_iter().chain(names.iter().map(|name| (*name, "s, all threads")));
        let mut table = Table::new(headings);
        for row in &self.rows {
            for (which, time) in ["before", "after"].into_iter().zip(&row.times) {
                let values = names.iter().map(|name| time.get(*name).map_or(Cell::None, |value| Cell::figure(*value)));
                table.row(
                    [Cell::text(row.what.as_str()), Cell::Count(row.vcpus), Cell::text(which)]
                        .into_iter()
                        .chain(values),
                );
            }
        }
        table
    }
}

const RATIOS: &str = "Ring: published; dot: simulated; one means that the change did nothing. Logarithmic.";

fn chart(rows: &[&Row]) -> Chart {
    let by_size = rows.windows(2).all(|pair| pair[0].vcpus == pair[1].vcpus);
    let x = |row: &Row| if by_size { row.bytes as f64 / (1u64 << 30) as f64 } else { row.vcpus as f64 };
    let simulated = |which: usize| rows.iter().map(|row| (x(row), row.simulated[which])).collect();
    let published =
        |which: usize| rows.iter().filter_map(|row| Some((x(row), row.published?[which].number()))).collect();
    let series = |name: &str, colour, mark, points| Series { name: name.to_owned(), colour, mark, points };
    let all = vec![
        series("published, before", 1, Mark::Dashed, published(0)),
        series("published, after", 0, Mark::Dashed, published(1)),
        series("simulated, before", 1, Mark::Solid, simulated(0)),
        series("simulated, after", 0, Mark::Solid, simulated(1)),
    ];
    let error = rows
        .iter()
        .filter_map(|row| row.error)
        .map(f64::abs)
        .fold(None, |worst: Option<f64>, error| Some(worst.map_or(error, |worst| worst.max(error))));
    let worst = error.map_or_else(String::new, |error| {
        format!(", worst ratio {} off", signed_percent(error).trim_start_matches('+'))
    });
    Chart {
        title: format!("{}{worst}", rows[0].what),
        across: (if by_size { "memory, GiB" } else { "vCPUs" }.to_owned(), svg::Kind::Binary),
        up: (if rows[0].unit.is_empty() { "value" } else { &rows[0].unit }.to_owned(), svg::Kind::Log),
        series: all.into_iter().filter(|series| !series.points.is_empty()).collect(),
        size: (520.0, 290.0),
    }
}
