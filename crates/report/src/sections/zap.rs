//! `compare zap --json`: strategies of zapping, side by side.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value as Json;

use super::{Section, Spread, counters, definitions, details, facts, figure, gigahertz};
use crate::markup::Markup;
use crate::number::{bytes, compact, seconds};
use crate::read::{Input, Kind, ReportError, Versions, document};
use crate::svg::{self, Panel, Panels, Value};
use crate::table::{Cell, Table};

#[derive(Deserialize)]
struct Document {
    versions: Versions,
    command: Option<String>,
    seed: u64,
    runs: Vec<Run>,
}

#[derive(Deserialize)]
struct Run {
    configuration: Configuration,
    report: Report,
}

#[derive(Deserialize)]
struct Configuration {
    second_levels: u64,
    first_levels: u64,
    memory_bytes: u64,
    vcpus: u64,
    page_bytes: u64,
    guest_page_bytes: Option<u64>,
    workload: BTreeMap<String, Json>,
    accesses_per_vcpu: u64,
    range_bytes: u64,
    warm_up_cycles: u64,
}

#[derive(Deserialize)]
struct Report {
    arch: String,
    machine: String,
    clock_hz: u64,
    baseline: Spread,
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    strategy: Strategy,
    zap_cycles: u64,
    lost_cycles: Spread,
    faults: u64,
    remote_flushes: u64,
    entries_visited: u64,
    longest_unscheduled: u64,
    longest_rcu: u64,
    lock_wait: u64,
    #[serde(default)]
    host: BTreeMap<String, u64>,
    #[serde(default)]
    guest: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
struct Strategy {
    name: String,
    target: String,
}

impl Strategy {
    /// Without what the line above says: what is zapped.
    fn short(&self) -> &str {
        self.name.split_once(", ").map_or(self.name.as_str(), |(_, how)| how)
    }

    fn is_range(&self) -> bool {
        self.target.eq_ignore_ascii_case("range")
    }
}

pub(super) fn section(input: &Input) -> Result<Section, ReportError> {
    let Document { versions, command, seed, runs } = document(input, Kind::Zap)?;
    let facts = facts(Some(&versions), Some(seed), runs.iter().map(|run| run.report.machine.as_str()));
    let mut body = Markup::default();
    body.leaf("p", &[], INTRODUCTION);
    for run in &runs {
        run.write(&mut body);
    }
    Ok(Section { title: "Zap strategies under running vCPUs".to_owned(), command, facts, body })
}

const INTRODUCTION: &str = "The same guest, workload and seed under each strategy. Lost: cycles by which vCPUs finish later than in a run without a zap. \
                            Longest without reschedule and longest RCU: the longest stretch in which the zapping thread offered no chance to reschedule, \
                            and the longest RCU read-side section.";

impl Run {
    fn write(&self, out: &mut Markup) {
        let Report { arch, machine, clock_hz, .. } = &self.report;
        out.leaf("h3", &[], &format!("{arch} on {machine} at {}", gigahertz(*clock_hz)));
        self.describe(out);
        figure(out, CAPTION, |out| self.panels().write(out));
        self.table().write(out);
        let names = |row: &Row| row.strategy.name.clone();
        details(out, "All counters of the host", |out| {
            let rows: Vec<_> = self.report.rows.iter().map(|row| (names(row), &row.host)).collect();
            counters("strategy", &rows, out);
        });
        details(out, "All counters of the vCPUs, summed", |out| {
            let rows: Vec<_> = self.report.rows.iter().map(|row| (names(row), &row.guest)).collect();
            counters("strategy", &rows, out);
        });
    }

    fn describe(&self, out: &mut Markup) {
        let configuration = &self.configuration;
        let own = configuration.guest_page_bytes.map_or_else(
            || "no tables of its own".to_owned(),
            |page| format!("{} levels of its own, pages of {}", configuration.first_levels, bytes(page)),
        );
        let guest = format!(
            "{} in pages of {}, {} levels; {} vCPUs; {own}",
            bytes(configuration.memory_bytes),
            bytes(configuration.page_bytes),
            configuration.second_levels,
            configuration.vcpus
        );
        let time = format!(
            "zap after {} cycles of warm-up; without it a vCPU needs {} cycles (mean), {}",
            compact(configuration.warm_up_cycles as f64),
            compact(self.report.baseline.mean as f64),
            seconds(self.report.baseline.mean as f64 / self.report.clock_hz.max(1) as f64)
        );
        definitions(out, &[("guest", guest), ("workload", configuration.workload()), ("time", time)]);
    }

    /// What a row's group is called.
    fn target(&self, row: &Row) -> String {
        if row.strategy.is_range() {
            format!("range of {}", bytes(self.configuration.range_bytes))
        } else {
            "whole root".to_owned()
        }
    }

    /// Rows with the group that begins with each.
    fn grouped(&self) -> Vec<(&Row, Option<String>)> {
        let rows = &self.report.rows;
        let begins = |index: usize| index == 0 || rows[index].strategy.target != rows[index - 1].strategy.target;
        rows.iter().enumerate().map(|(index, row)| (row, begins(index).then(|| self.target(row)))).collect()
    }

    fn panels(&self) -> Panels {
        let rows = &self.report.rows;
        let of = |value: fn(&Row) -> Value| rows.iter().map(value).collect();
        let spread = |row: &Row| {
            let [p50, p99, max] =
                [row.lost_cycles.p50, row.lost_cycles.p99, row.lost_cycles.max].map(|cycles| cycles as f64);
            Value::Spread { p50, p99, max }
        };
        let panel = |title, kind, values| Panel { title, unit: "cycles", kind, mark: None, values };
        Panels {
            name: format!("Strategies on {}", self.report.arch),
            rows: self.grouped().into_iter().map(|(row, group)| (row.strategy.short().to_owned(), group)).collect(),
            across: vec![
                panel("Zap", svg::Kind::Linear, of(|row| Value::Bar(row.zap_cycles as f64))),
                panel("Lost per vCPU", svg::Kind::Log, of(spread)),
                panel("No reschedule", svg::Kind::Log, of(|row| Value::Dot(row.longest_unscheduled as f64))),
                panel("Longest RCU", svg::Kind::Log, of(|row| Value::Dot(row.longest_rcu as f64))),
            ],
        }
    }

    fn table(&self) -> Table {
        let mut table = Table::new([
            ("strategy", ""),
            ("zap", "cycles"),
            ("zap", "ms"),
            ("lost, mean", "cycles"),
            ("p50", "cycles"),
            ("p99", "cycles"),
            ("max", "cycles"),
            ("faults", ""),
            ("remote flushes", ""),
            ("entries visited", ""),
            ("no reschedule", "cycles"),
            ("RCU", "cycles"),
            ("lock wait", "cycles"),
        ]);
        for (row, group) in self.grouped() {
            if let Some(group) = group {
                table.group(group);
            }
            let ms = row.zap_cycles as f64 * 1e3 / self.report.clock_hz.max(1) as f64;
            let lost = row.lost_cycles;
            let before =
                [Cell::text(row.strategy.short()), Cell::Count(row.zap_cycles), Cell::Number(format!("{ms:.3}"))];
            let after = [
                lost.mean,
                lost.p50,
                lost.p99,
                lost.max,
                row.faults,
                row.remote_flushes,
                row.entries_visited,
                row.longest_unscheduled,
                row.longest_rcu,
                row.lock_wait,
            ];
            table.row(before.into_iter().chain(after.map(Cell::Count)));
        }
        table
    }
}

const CAPTION: &str = "Zap: simulated cycles from its first to its last operation. Lost per vCPU, logarithmic: dot p50, bar p99, ring and figure the greatest. \
                       No reschedule and longest RCU, logarithmic.";

impl Configuration {
    fn workload(&self) -> String {
        let text = |name: &str| self.workload.get(name).and_then(Json::as_str);
        let number = |name: &str| self.workload.get(name).and_then(Json::as_u64);
        match (text("kind").unwrap_or("unknown"), text("file")) {
            ("idle", _) => "idle".to_owned(),
            (_, Some(file)) => format!("{} accesses of {file} per vCPU", self.accesses_per_vcpu),
            (kind, None) => format!(
                "{} accesses per vCPU to {}, {kind}, {} % stores",
                self.accesses_per_vcpu,
                bytes(number("working_set_bytes").unwrap_or(0)),
                number("writes_percent").unwrap_or(0)
            ),
        }
    }
}
