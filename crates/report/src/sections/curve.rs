//! `predict --curve NAME --json`: a predicted curve with the events behind its points.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::{Section, facts, figure};
use crate::markup::Markup;
use crate::read::{Input, Kind, ReportError, Versions, document};
use crate::svg::{self, Chart, Mark, Series};
use crate::table::{Cell, Table};

#[derive(Deserialize)]
struct Document {
    versions: Option<Versions>,
    command: Option<String>,
    seed: Option<u64>,
    machine: String,
    clock_ghz: f64,
    points: Vec<Point>,
}

#[derive(Deserialize)]
struct Point {
    curve: String,
    n: u64,
    cycles: f64,
    ns: f64,
    events: Option<Events>,
}

#[derive(Deserialize)]
struct Events {
    l1_tlb_misses: f64,
    l2_tlb_misses: f64,
    stage1_references: f64,
    stage2_references: f64,
    walk_references: BTreeMap<String, f64>,
    l2_tlb_cycles: f64,
    walk_cycles: f64,
    data_cycles: f64,
    jump_cycles: f64,
}

/// A column of cycles: its name and where it stands.
type Part = (&'static str, fn(&Events) -> f64);

/// What the cycles of an access are made of.
const PARTS: [Part; 4] = [
    ("data", |events| events.data_cycles),
    ("second-level TLB", |events| events.l2_tlb_cycles),
    ("walks", |events| events.walk_cycles),
    ("jumps", |events| events.jump_cycles),
];

pub(super) fn section(input: &Input) -> Result<Section, ReportError> {
    let Document { versions, command, seed, machine, clock_ghz, points } = document(input, Kind::Curve)?;
    let mut facts = facts(versions.as_ref(), seed, [machine.as_str()]);
    facts.push(format!("{clock_ghz:.2} GHz"));
    let mut curves: BTreeMap<&str, Vec<&Point>> = BTreeMap::new();
    for point in &points {
        curves.entry(&point.curve).or_default().push(point);
    }
    let mut body = Markup::default();
    for (name, points) in &curves {
        out_curve(&mut body, name, points);
    }
    let names: Vec<&str> = curves.keys().copied().collect();
    Ok(Section { title: format!("Predicted latency: {}", names.join(", ")), command, facts, body })
}

fn out_curve(out: &mut Markup, name: &str, points: &[&Point]) {
    out.leaf("h3", &[], name);
    if points.len() > 1 {
        let caption = "Core cycles of one access, and what they are made of, by the point's n (pages, cache lines, regions or jumps), logarithmic across.";
        figure(out, caption, |out| chart(name, points).write(out));
    }
    table(points).write(out);
}

fn chart(name: &str, points: &[&Point]) -> Chart {
    let mut series = vec![Series {
        name: "cycles per access".to_owned(),
        colour: 0,
        mark: Mark::Solid,
        points: points.iter().map(|point| (point.n as f64, point.cycles)).collect(),
    }];
    for (index, (part, cycles)) in PARTS.into_iter().enumerate() {
        let points: Vec<(f64, f64)> =
            points.iter().filter_map(|point| Some((point.n as f64, cycles(point.events.as_ref()?)))).collect();
        if points.iter().any(|(_, cycles)| *cycles > 0.0) {
            series.push(Series { name: part.to_owned(), colour: index + 1, mark: Mark::Dashed, points });
        }
    }
    Chart {
        title: name.to_owned(),
        across: ("n".to_owned(), svg::Kind::Binary),
        up: ("cycles per access".to_owned(), svg::Kind::Linear),
        series,
        size: (820.0, 320.0),
    }
}

fn table(points: &[&Point]) -> Table {
    let events = || points.iter().filter_map(|point| point.events.as_ref());
    let servers: BTreeSet<&String> = events().flat_map(|events| events.walk_references.keys()).collect();
    let fixed = [
        ("n", ""),
        ("cycles", "per access"),
        ("time", "ns"),
        ("L1 TLB misses", "per access"),
        ("L2 TLB misses", "per access"),
        ("guest references", "per access"),
        ("host references", "per access"),
    ];
    let by_server = servers.iter().map(|server| (server.as_str(), "walk references"));
    let mut table = Table::new(fixed.into_iter().chain(by_server).chain([("walks", "cycles"), ("data", "cycles")]));
    for point in points {
        let number = |value: Option<f64>| value.map_or(Cell::None, |value| Cell::Number(format!("{value:.3}")));
        let of = |value: fn(&Events) -> f64| number(point.events.as_ref().map(value));
        let mut cells = vec![
            Cell::Count(point.n),
            Cell::Number(format!("{:.2}", point.cycles)),
            Cell::Number(format!("{:.3}", point.ns)),
        ];
        cells.extend([
            of(|e| e.l1_tlb_misses),
            of(|e| e.l2_tlb_misses),
            of(|e| e.stage1_references),
            of(|e| e.stage2_references),
        ]);
        cells.extend(servers.iter().map(|server| {
            number(point.events.as_ref().map(|events| events.walk_references.get(*server).copied().unwrap_or(0.0)))
        }));
        cells.extend([of(|e| e.walk_cycles), of(|e| e.data_cycles)]);
        table.row(cells);
    }
    table
}
