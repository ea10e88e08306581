//! `predict --against FILE --json`: predictions beside measurements.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Section, details, facts, figure};
use crate::markup::Markup;
use crate::number::percent;
use crate::read::{Input, Kind, ReportError, Versions, document};
use crate::svg::{self, Chart, Mark, Panel, Panels, Series, Value};
use crate::table::{Cell, Table, Verdict};

#[derive(Deserialize)]
struct Document {
    versions: Option<Versions>,
    command: Option<String>,
    seed: Option<u64>,
    against: Option<String>,
    machine: String,
    bands: BTreeMap<String, Mean>,
    curves: Vec<OfCurve>,
    knees: Vec<Knee>,
    knee_error: Option<f64>,
    order: Order,
    points: Vec<Point>,
    not_predicted: Vec<NotPredicted>,
}

#[derive(Clone, Copy, Deserialize)]
struct Mean {
    points: u64,
    error: f64,
    worst: f64,
    goal: Option<f64>,
}

#[derive(Deserialize)]
struct OfCurve {
    curve: String,
    band: String,
    mean: Mean,
}

#[derive(Deserialize)]
struct Knee {
    curve: String,
    rise: u64,
    measured: f64,
    predicted: f64,
}

#[derive(Deserialize)]
struct Order {
    pairs: u64,
    right: u64,
}

#[derive(Deserialize)]
struct Point {
    measured: Measured,
    predicted: Predicted,
    band: String,
    error: f64,
}

#[derive(Deserialize)]
struct Measured {
    bench: String,
    variant: String,
    n: u64,
    unit: String,
    core_cycles_median: f64,
}

#[derive(Deserialize)]
struct Predicted {
    cycles: f64,
}

#[derive(Deserialize)]
struct NotPredicted {
    curve: String,
    why: String,
}

/// Points that are no latency curve's.
const EVENTS: &str = "Events";

fn band_name(band: &str) -> String {
    match band {
        "A" => "A: at most 1,024 pages".to_owned(),
        "B" => "B: to 8,192 pages".to_owned(),
        "C" => "C: to 65,536 pages".to_owned(),
        "D" => "D: more pages".to_owned(),
        EVENTS => "events".to_owned(),
        other => other.to_owned(),
    }
}

pub(super) fn section(input: &Input) -> Result<Section, ReportError> {
    let score: Document = document(input, Kind::Score)?;
    let mut facts = facts(score.versions.as_ref(), score.seed, [score.machine.as_str()]);
    facts.extend(score.against.as_ref().map(|file| format!("measured: {file}")));
    let mut body = Markup::default();
    score.bands(&mut body);
    score.curves(&mut body);
    score.events(&mut body);
    score.knees(&mut body);
    score.left_out(&mut body);
    Ok(Section { title: "Predicted and measured latency".to_owned(), command: score.command, facts, body })
}

impl Document {
    fn bands(&self, out: &mut Markup) {
        out.leaf("h3", &[], "Error by band");
        out.element("p", &[], |out| {
            out.format(format_args!(
                "Mean absolute error of core cycles per access against the median of measured runs. Order of curves: {} of {} pairs as measured.",
                self.order.right, self.order.pairs
            ));
        });
        let mut table = Table::new([("band", ""), ("points", ""), ("mean error", ""), ("goal", ""), ("worst", "")]);
        for (band, mean) in &self.bands {
            let goal = mean.goal.filter(|_| band != EVENTS);
            let verdict =
                goal.map_or(Verdict::Open, |goal| if mean.error <= goal { Verdict::Good } else { Verdict::Bad });
            let error = Cell::Judged(percent(mean.error), verdict);
            let goal = goal.map_or(Cell::None, |goal| Cell::Number(percent(goal)));
            table.row([
                Cell::text(band_name(band)),
                Cell::Count(mean.points),
                error,
                goal,
                Cell::Number(percent(mean.worst)),
            ]);
        }
        table.write(out);
        let values = |mean: &Mean| match mean.goal {
            Some(goal) => Value::Goal(100.0 * mean.error, 100.0 * goal),
            None => Value::Bar(100.0 * mean.error),
        };
        let bands: Vec<(&String, &Mean)> = self.bands.iter().filter(|(band, _)| *band != EVENTS).collect();
        let panels = Panels {
            name: "Error by band".to_owned(),
            rows: bands.iter().map(|(band, _)| (band_name(band), None)).collect(),
            across: vec![Panel {
                title: "Mean absolute error",
                unit: "%",
                kind: svg::Kind::Linear,
                mark: None,
                values: bands.iter().map(|(_, mean)| values(mean)).collect(),
            }],
        };
        figure(out, "Bar: mean absolute error; upright mark: the goal.", |out| panels.write(out));
        figure(out, "Error of every point of the latency curves by its n. Above zero: predicted too slow.", |out| {
            self.errors().write(out);
        });
    }

    /// Every point's error.
    fn errors(&self) -> Chart {
        let mut bands: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
        for point in self.points.iter().filter(|point| point.band != EVENTS) {
            bands.entry(&point.band).or_default().push((point.measured.n as f64, 100.0 * point.error));
        }
        let series = bands.into_iter().enumerate();
        let series =
            series.map(|(n, (band, points))| Series { name: band_name(band), colour: n, mark: Mark::Dots, points });
        Chart {
            title: "Error of each point".to_owned(),
            across: ("n".to_owned(), svg::Kind::Binary),
            up: ("%".to_owned(), svg::Kind::Free),
            series: series.collect(),
            size: (1080.0, 300.0),
        }
    }

    /// Points by curve; those of events by family.
    fn groups(&self, events: bool) -> BTreeMap<&str, Vec<&Point>> {
        let mut groups: BTreeMap<&str, Vec<&Point>> = BTreeMap::new();
        for point in self.points.iter().filter(|point| (point.band == EVENTS) == events) {
            let name = if events { &point.measured.bench } else { &point.measured.variant };
            groups.entry(name).or_default().push(point);
        }
        groups
    }

    fn curves(&self, out: &mut Markup) {
        out.leaf("h3", &[], "Curves");
        let charts: Vec<Chart> = self
            .groups(false)
            .into_iter()
            .filter(|(_, points)| points.len() > 2)
            .map(|(name, points)| chart(name, &points))
            .collect();
        out.element("div", &[("class", "grid2")], |out| charts.iter().for_each(|chart| chart.write(out)));
        let mut table =
            Table::new([("curve or family", ""), ("band", ""), ("points", ""), ("mean error", ""), ("worst", "")]);
        for OfCurve { curve, band, mean } in &self.curves {
            let errors = [mean.error, mean.worst].map(|share| Cell::Number(percent(share)));
            table.row(
                [Cell::Code(curve.clone()), Cell::text(band.as_str()), Cell::Count(mean.points)]
                    .into_iter()
                    .chain(errors),
            );
        }
        details(out, "Mean error of each curve in each band", |out| table.write(out));
    }

    fn events(&self, out: &mut Markup) {
        let groups = self.groups(true);
        if groups.is_empty() {
            return;
        }
        let mut table = Table::new([
            ("event", ""),
            ("n", ""),
            ("unit", ""),
            ("measured", "cycles"),
            ("predicted", "cycles"),
            ("error", ""),
        ]);
        for (family, points) in groups {
            table.group(family);
            for point in points {
                let Measured { variant, n, unit, core_cycles_median, .. } = &point.measured;
                let cycles = [*core_cycles_median, point.predicted.cycles].map(Cell::figure);
                let names = [Cell::Code(variant.clone()), Cell::Count(*n), Cell::text(unit.replace('_', " "))];
                table.row(names.into_iter().chain(cycles).chain([Cell::Error(Some(point.error), Verdict::Open)]));
            }
        }
        details(out, "Events: faults, flushes, clears, handing over", |out| table.write(out));
    }

    fn knees(&self, out: &mut Markup) {
        if self.knees.is_empty() {
            return;
        }
        out.leaf("h3", &[], "Knees");
        out.element("p", &[], |out| {
            let mean = self.knee_error.map_or_else(|| "–".to_owned(), percent);
            out.format(format_args!(
                "Where a curve is half-way up from one plateau to the next: {mean} off on average of {}.",
                self.knees.len()
            ));
        });
        let mut table = Table::new([("curve", ""), ("rise", ""), ("measured", "n"), ("predicted", "n"), ("error", "")]);
        for Knee { curve, rise, measured, predicted } in &self.knees {
            let error = if *measured > 0.0 { Some(predicted / measured - 1.0) } else { None };
            let places = [*measured, *predicted].map(|n| Cell::Number(format!("{n:.0}")));
            table.row(
                [Cell::Code(curve.clone()), Cell::Count(*rise)]
                    .into_iter()
                    .chain(places)
                    .chain([Cell::Error(error, Verdict::Open)]),
            );
        }
        table.write(out);
    }

    fn left_out(&self, out: &mut Markup) {
        if self.not_predicted.is_empty() {
            return;
        }
        let mut table = Table::new([("not predicted", ""), ("why", "")]);
        for NotPredicted { curve, why } in &self.not_predicted {
            table.row([Cell::Code(curve.clone()), Cell::text(why.split(';').next().unwrap_or(why))]);
        }
        details(out, "What is not predicted", |out| table.write(out));
    }
}

fn chart(name: &str, points: &[&Point]) -> Chart {
    let series = |name: &str, colour, mark, cycles: fn(&Point) -> f64| {
        let points = points.iter().map(|point| (point.measured.n as f64, cycles(point))).collect();
        Series { name: name.to_owned(), colour, mark, points }
    };
    let mean = points.iter().map(|point| point.error.abs()).sum::<f64>() / points.len().max(1) as f64;
    Chart {
        title: format!("{name}: {} off on average", percent(mean)),
        across: ("n".to_owned(), svg::Kind::Binary),
        up: ("core cycles per access".to_owned(), svg::Kind::Log),
        series: vec![
            series("measured", 7, Mark::Solid, |point| point.measured.core_cycles_median),
            series("predicted", 0, Mark::Dashed, |point| point.predicted.cycles),
        ],
        size: (520.0, 260.0),
    }
}
