//! Reports of selftests: tables for people, JSON, CSV.

use std::fmt::Write;

use mmu_sweep::{Datum, Record};
use mmusim::sim::MODEL_VERSION;
use mmusim::sim::selftests::{Check, Phase, SelftestReport};
use serde_json::json;

use crate::invocation::Invocation;
use crate::table::{Columns, compact};
use crate::{CliError, SCHEMA_VERSION};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// All reports as one document.
pub(super) fn as_json(reports: &[SelftestReport], invocation: &Invocation) -> Result<String, CliError> {
    let document = json!({
        "schema_version": SCHEMA_VERSION,
        "versions": { "mmusim": VERSION, "model": MODEL_VERSION },
        "experiment": "selftest",
        "command": invocation.to_string(),
        "reports": reports,
    });
    let text = serde_json::to_string_pretty(&document);
    text.map(|text| text + "\n").map_err(|error| CliError::Write { to: "JSON".to_owned(), why: error.into() })
}

const CSV_COLUMNS: [&str; 15] = [
    "schema_version",
    "mmusim_version",
    "model_version",
    "test",
    "arch",
    "machine",
    "clock_hz",
    "phase",
    "seconds",
    "cycles",
    "entries_visited",
    "remote_flushes",
    "ipis",
    "tables_allocated",
    "retried_faults",
];

/// One line per phase. Figures and assertions of a whole test are in the JSON only.
pub(super) fn as_csv(reports: &[SelftestReport]) -> Result<String, CliError> {
    let failed = |why: csv::Error| CliError::Write { to: "CSV".to_owned(), why: why.into() };
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(CSV_COLUMNS).map_err(failed)?;
    for report in reports {
        for phase in &report.phases {
            let host = &phase.host;
            let row: [String; CSV_COLUMNS.len()] = [
                SCHEMA_VERSION.to_string(),
                VERSION.to_owned(),
                MODEL_VERSION.to_string(),
                report.test.to_owned(),
                report.arch.to_owned(),
                report.machine.clone(),
                report.clock_hz.to_string(),
                phase.name.clone(),
                format!("{:.9}", report.seconds(phase.cycles)),
                phase.cycles.0.to_string(),
                host.visits.to_string(),
                host.remote_flushes.to_string(),
                host.ipis.to_string(),
                host.tables_allocated.to_string(),
                host.retried_faults.to_string(),
            ];
            writer.write_record(row).map_err(failed)?;
        }
    }
    let bytes = writer.into_inner().map_err(|error| failed(error.into_error().into()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A report as rows of a sweep: one per phase, per figure and per check. Figures are in millionths, because rows hold no fractions.
pub(super) fn records(report: &SelftestReport) -> Vec<Record> {
    let of = |fields: &[(&str, Datum)]| {
        let report = [("arch", Datum::from(report.arch)), ("machine", report.machine.as_str().into())];
        let all = report.iter().chain(fields);
        all.map(|(name, value)| ((*name).to_owned(), value.clone())).collect::<Record>()
    };
    let phase = |phase: &Phase| {
        let mut record = of(&[
            ("phase", phase.name.as_str().into()),
            ("cycles", phase.cycles.0.into()),
            ("clock_hz", report.clock_hz.into()),
        ]);
        let counters = serde_json::to_value(phase.host).unwrap_or_default();
        for (name, value) in counters.as_object().into_iter().flatten() {
            record.extend(value.as_u64().map(|value| (name.clone(), Datum::from(value))));
        }
        record
    };
    let figure = |(name, &value): (&String, &f64)| {
        of(&[("figure", name.as_str().into()), ("millionths", Datum::from((value * 1e6).round() as i64))])
    };
    let check = |check: &Check| of(&[("check", check.what.as_str().into()), ("held", check.held.into())]);
    let phases = report.phases.iter().map(phase);
    phases.chain(report.figures.iter().map(figure)).chain(report.checks.iter().map(check)).collect()
}

/// A report for people.
pub(super) fn as_table(report: &SelftestReport) -> String {
    let mut text = format!("{} on {} ({})\n", report.test, report.machine, report.arch);
    let headings = ["phase", "seconds", "cycles", "visits", "remote\nflushes", "tables\nallocated", "retried\nfaults"];
    let mut columns = Columns::new(1, &headings);
    for phase in &report.phases {
        columns.row([
            phase.name.clone(),
            format!("{:.6}", report.seconds(phase.cycles)),
            compact(phase.cycles.0),
            compact(phase.host.visits),
            compact(phase.host.remote_flushes),
            compact(phase.host.tables_allocated),
            compact(phase.host.retried_faults),
        ]);
    }
    text += &columns.render();
    let name_width = report.figures.keys().map(String::len).max().unwrap_or(0);
    let figures: Vec<(&String, String)> = report.figures.iter().map(|(name, &value)| (name, figure(value))).collect();
    let value_width = figures.iter().map(|(_, value)| value.len()).max().unwrap_or(0);
    for (name, value) in figures {
        let _ = writeln!(text, " {name:name_width$}  {value:>value_width$}");
    }
    for check in &report.checks {
        let _ = writeln!(text, "{}: {}", if check.held { "ok" } else { "FAILED" }, check.what);
    }
    text.push('\n');
    text
}

/// Whole numbers exactly, others with as many decimals as they need to be told apart.
fn figure(value: f64) -> String {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        return format!("{value:.0}");
    }
    match value.abs() {
        1000.0.. => format!("{value:.0}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.6}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_keep_what_they_say() {
        assert_eq!([figure(3.0), figure(0.001_5), figure(-2.5)], ["3", "0.001500", "-2.50"]);
    }
}
