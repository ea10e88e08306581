//! `selftest NAME --json`: phases, figures and checks of KVM's own tests.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Section, counters, details, facts, figure, gigahertz};
use crate::markup::Markup;
use crate::read::{Input, Kind, ReportError, Versions, document};
use crate::svg::{self, Panel, Panels, Value};
use crate::table::{Cell, Table, Verdict};

#[derive(Deserialize)]
struct Document {
    versions: Versions,
    command: Option<String>,
    reports: Vec<Report>,
}

#[derive(Deserialize)]
struct Report {
    test: String,
    arch: String,
    machine: String,
    clock_hz: u64,
    phases: Vec<Phase>,
    checks: Vec<Check>,
    figures: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
struct Phase {
    name: String,
    cycles: u64,
    host: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
struct Check {
    what: String,
    held: bool,
}

/// More phases than these are in the table only.
const MOST_BARS: usize = 60;

pub(super) fn section(input: &Input) -> Result<Section, ReportError> {
    let Document { versions, command, reports } = document(input, Kind::Selftest)?;
    let facts = facts(Some(&versions), None, reports.iter().map(|report| report.machine.as_str()));
    let mut body = Markup::default();
    for report in &reports {
        report.write(&mut body);
    }
    let title = reports.first().map_or_else(|| "KVM's tests".to_owned(), |report| report.test.clone());
    Ok(Section { title, command, facts, body })
}

impl Report {
    fn seconds(&self, cycles: u64) -> f64 {
        cycles as f64 / self.clock_hz.max(1) as f64
    }

    fn write(&self, out: &mut Markup) {
        out.leaf("h3", &[], &format!("{} on {} at {}", self.arch, self.machine, gigahertz(self.clock_hz)));
        if !self.phases.is_empty() {
            self.phases(out);
        }
        if !self.figures.is_empty() {
            let mut table = Table::new([("figure", ""), ("value", "")]);
            for (name, value) in &self.figures {
                table.row([Cell::text(name.as_str()), Cell::figure(*value)]);
            }
            table.write(out);
        }
        if !self.checks.is_empty() {
            let mut table = Table::new([("check", ""), ("", "")]);
            for check in &self.checks {
                let verdict = if check.held {
                    Cell::Verdict("held", Verdict::Good)
                } else {
                    Cell::Verdict("FAILED", Verdict::Bad)
                };
                table.row([Cell::text(check.what.as_str()), verdict]);
            }
            table.write(out);
        }
    }

    fn phases(&self, out: &mut Markup) {
        if self.phases.len() <= MOST_BARS {
            figure(out, "Simulated time of each phase.", |out| self.panels().write(out));
        }
        let mut table = Table::new([
            ("phase", ""),
            ("time", "s"),
            ("time", "cycles"),
            ("visits", ""),
            ("remote flushes", ""),
            ("tables allocated", ""),
            ("retried faults", ""),
        ]);
        for phase in &self.phases {
            let counts = ["visits", "remote_flushes", "tables_allocated", "retried_faults"];
            let counts = counts.map(|name| phase.host.get(name).map_or(Cell::None, |value| Cell::Count(*value)));
            let time = Cell::Number(format!("{:.6}", self.seconds(phase.cycles)));
            table.row([Cell::text(phase.name.as_str()), time, Cell::Count(phase.cycles)].into_iter().chain(counts));
        }
        table.write(out);
        details(out, "All counters of the host", |out| {
            let rows: Vec<_> = self.phases.iter().map(|phase| (phase.name.clone(), &phase.host)).collect();
            counters("phase", &rows, out);
        });
    }

    fn panels(&self) -> Panels {
        let milliseconds = self.phases.iter().map(|phase| Value::Bar(self.seconds(phase.cycles) * 1e3)).collect();
        Panels {
            name: format!("{} on {}", self.test, self.arch),
            rows: self.phases.iter().map(|phase| (phase.name.clone(), None)).collect(),
            across: vec![Panel {
                title: "Time",
                unit: "ms",
                kind: svg::Kind::Linear,
                mark: None,
                values: milliseconds,
            }],
        }
    }
}
