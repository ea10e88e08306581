//! The reports of `compare zap` as tables, JSON and CSV.

use std::fmt::Write;

use mmu_sweep::{Datum, Record};
use mmusim::{Bytes, Cycles, GuestPaging, Target, Workload, ZapReport, ZapRow};
use serde_json::{Value, json};

use super::plan::Plan;
use crate::args::CompareZap;
use crate::invocation::Invocation;
use crate::table::{Columns, compact};
use crate::{CliError, SCHEMA_VERSION};
use mmusim::sim::MODEL_VERSION;

const VERSION: &str = env!("CARGO_PKG_VERSION");

const HEADINGS: [&str; 13] = [
    "strategy",
    "zap\ncycles",
    "\nms",
    "lost\nmean",
    "per vCPU\np50",
    "(cycles)\np99",
    "\nmax",
    "\nfaults",
    "remote\nflushes",
    "entries\nvisited",
    "longest\nno resched",
    "longest\nRCU",
    "lock\nwait",
];

/// One architecture's table under what was run.
pub(super) fn as_table(plan: &Plan, report: &ZapReport) -> String {
    let mut columns = Columns::new(1, &HEADINGS);
    let mut target = None;
    for row in &report.rows {
        if target != Some(row.strategy.target) {
            target = Some(row.strategy.target);
            columns.row([match row.strategy.target {
                Target::Range => format!("range of {}", plan.request.range),
                Target::Root => "whole root".to_owned(),
            }]);
        }
        columns.row(table_row(row, report.clock_hz));
    }
    format!("{}{}\n", heading(plan, report), columns.render())
}

fn table_row(row: &ZapRow, clock_hz: u64) -> [String; 13] {
    let Cycles(zap) = row.zap_cycles;
    let lost = row.lost_cycles;
    let name = row.strategy.name;
    // The line above says what is zapped.
    let name = name.split_once(", ").map_or(name, |(_, how)| how);
    [
        format!("  {name}"),
        compact(zap),
        format!("{:.3}", zap as f64 * 1e3 / clock_hz.max(1) as f64),
        compact(lost.mean),
        compact(lost.p50),
        compact(lost.p99),
        compact(lost.max),
        compact(row.faults),
        compact(row.remote_flushes),
        compact(row.entries_visited),
        compact(row.longest_unscheduled.0),
        compact(row.longest_rcu.0),
        compact(row.lock_wait.0),
    ]
}

/// What was run, in a few lines: enough to run it again.
fn heading(plan: &Plan, report: &ZapReport) -> String {
    let vm = &plan.vm;
    let (first, second) = plan.levels();
    let guest = match vm.guest {
        GuestPaging::Flat => "no tables of its own".to_owned(),
        GuestPaging::FirstTouch(page) | GuestPaging::Premapped(page) => {
            format!("{first} levels of its own, pages of {page}")
        }
    };
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{} on {} at {:.2} GHz", report.arch, report.machine, report.clock_hz as f64 / 1e9);
    let _ = writeln!(
        text,
        "  guest     {} in pages of {}, {second} levels; {} vCPUs; {guest}",
        vm.memory, vm.page, vm.vcpus
    );
    let _ = writeln!(text, "  workload  {}; seed {}", describe(&vm.workload), vm.seed.0);
    let _ = writeln!(
        text,
        "  time      zap after {} cycles of warm-up; without it a vCPU needs {} cycles (mean)",
        compact(plan.request.after.0),
        compact(report.baseline.mean)
    );
    text
}

fn describe(workload: &Workload) -> String {
    match workload {
        Workload::Idle => "idle".to_owned(),
        Workload::Trace(trace) => format!("{} accesses of {} per vCPU", trace.accesses, trace.path.display()),
        Workload::Pattern(pattern) => format!(
            "{} accesses per vCPU to {}, {}, {} % stores",
            pattern.accesses,
            Bytes(pattern.bytes),
            kind(workload),
            pattern.writes_percent
        ),
    }
}

/// The workload's name as the command line has it.
fn kind(workload: &Workload) -> &'static str {
    use mmusim::Mix;
    match workload {
        Workload::Idle => "idle",
        Workload::Trace(_) => "trace",
        Workload::Pattern(pattern) => match pattern.mix {
            Mix::Sequential => "sequential",
            Mix::Strided { .. } => "strided",
            Mix::Uniform => "uniform",
            Mix::Zipf { .. } => "zipf",
            Mix::PointerChase => "chase",
        },
    }
}

fn accesses(workload: &Workload) -> u64 {
    match workload {
        Workload::Idle => 0,
        Workload::Trace(trace) => trace.accesses,
        Workload::Pattern(pattern) => pattern.accesses,
    }
}

fn guest_page(guest: GuestPaging) -> Option<u64> {
    match guest {
        GuestPaging::Flat => None,
        GuestPaging::FirstTouch(page) | GuestPaging::Premapped(page) => Some(page.bytes()),
    }
}

/// Everything that the result depends on; threads are not among it.
fn configuration(plan: &Plan) -> Value {
    let vm = &plan.vm;
    let (first, second) = plan.levels();
    let workload = match &vm.workload {
        Workload::Idle => json!({ "kind": "idle" }),
        Workload::Trace(trace) => json!({ "kind": "trace", "file": trace.path.display().to_string() }),
        Workload::Pattern(pattern) => json!({
            "kind": kind(&vm.workload),
            "working_set_bytes": pattern.bytes,
            "mix": pattern.mix,
            "writes_percent": pattern.writes_percent,
        }),
    };
    json!({
        "machine": plan.machine.name,
        "first_levels": first,
        "second_levels": second,
        "memory_bytes": vm.memory.0,
        "vcpus": vm.vcpus,
        "page_bytes": vm.page.bytes(),
        "guest_page_bytes": guest_page(vm.guest),
        "workload": workload,
        "accesses_per_vcpu": accesses(&vm.workload),
        "range_bytes": plan.request.range.0,
        "warm_up_cycles": plan.request.after,
        "seed": vm.seed,
    })
}

/// One document for all architectures.
pub(super) fn as_json(
    args: &CompareZap,
    runs: &[(Plan, ZapReport)],
    invocation: &Invocation,
) -> Result<String, CliError> {
    let runs: Vec<Value> =
        runs.iter().map(|(plan, report)| json!({ "configuration": configuration(plan), "report": report })).collect();
    let document = json!({
        "schema_version": SCHEMA_VERSION,
        "versions": { "mmusim": VERSION, "model": MODEL_VERSION },
        "experiment": "compare zap",
        "command": invocation.to_string(),
        "seed": args.seed,
        "runs": runs,
    });
    let text = serde_json::to_string_pretty(&document);
    text.map(|text| text + "\n").map_err(|error| CliError::Write { to: "JSON".to_owned(), why: error.into() })
}

const CSV_COLUMNS: [&str; 39] = [
    "schema_version",
    "mmusim_version",
    "model_version",
    "arch",
    "machine",
    "clock_hz",
    "seed",
    "cfg_memory_bytes",
    "cfg_vcpus",
    "cfg_page_bytes",
    "cfg_guest_page_bytes",
    "cfg_workload",
    "cfg_accesses_per_vcpu",
    "cfg_range_bytes",
    "cfg_warm_up_cycles",
    "strategy",
    "target",
    "zap_cycles",
    "zap_ns",
    "baseline_mean_cycles",
    "lost_mean_cycles",
    "lost_p50_cycles",
    "lost_p99_cycles",
    "lost_max_cycles",
    "faults",
    "remote_flushes",
    "entries_visited",
    "longest_unscheduled_cycles",
    "longest_rcu_cycles",
    "lock_wait_cycles",
    "zapped_leaves",
    "zapped_tables",
    "ipis",
    "broadcasts",
    "flush_wait_cycles",
    "tables_freed",
    "accesses",
    "walks",
    "walk_cycles",
];

/// One line per architecture and strategy.
pub(super) fn as_csv(runs: &[(Plan, ZapReport)]) -> Result<String, CliError> {
    let failed = |why: csv::Error| CliError::Write { to: "CSV".to_owned(), why: why.into() };
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(CSV_COLUMNS).map_err(failed)?;
    for (plan, report) in runs {
        for row in &report.rows {
            writer.write_record(csv_row(plan, report, row)).map_err(failed)?;
        }
    }
    let bytes = writer.into_inner().map_err(|error| failed(error.into_error().into()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Columns that say where a row comes from, which a sweep says better, or where a file lies.
const NOT_IN_RECORDS: [&str; 4] = ["schema_version", "mmusim_version", "model_version", "cfg_workload"];

/// One record per strategy.
pub(super) fn records(plan: &Plan, report: &ZapReport) -> Vec<Record> {
    let record = |row: &ZapRow| {
        let cells = CSV_COLUMNS.into_iter().zip(csv_row(plan, report, row));
        let kept = cells.filter(|(name, cell)| !NOT_IN_RECORDS.contains(name) && !cell.is_empty());
        kept.map(|(name, cell)| (name.to_owned(), cell.parse::<u64>().map_or_else(|_| cell.into(), Datum::from)))
            .collect()
    };
    report.rows.iter().map(record).collect()
}

fn csv_row(plan: &Plan, report: &ZapReport, row: &ZapRow) -> [String; CSV_COLUMNS.len()] {
    let vm = &plan.vm;
    let workload = match &vm.workload {
        Workload::Trace(trace) => trace.path.display().to_string(),
        other => kind(other).to_owned(),
    };
    let target = match row.strategy.target {
        Target::Range => "range",
        Target::Root => "root",
    };
    let zap_ns = u128::from(row.zap_cycles.0) * 1_000_000_000 / u128::from(report.clock_hz.max(1));
    [
        SCHEMA_VERSION.to_string(),
        VERSION.to_owned(),
        MODEL_VERSION.to_string(),
        report.arch.to_owned(),
        report.machine.clone(),
        report.clock_hz.to_string(),
        vm.seed.0.to_string(),
        vm.memory.0.to_string(),
        vm.vcpus.to_string(),
        vm.page.bytes().to_string(),
        guest_page(vm.guest).map_or_else(String::new, |bytes| bytes.to_string()),
        workload,
        accesses(&vm.workload).to_string(),
        plan.request.range.0.to_string(),
        plan.request.after.to_string(),
        row.strategy.name.to_owned(),
        target.to_owned(),
        row.zap_cycles.to_string(),
        zap_ns.to_string(),
        report.baseline.mean.to_string(),
        row.lost_cycles.mean.to_string(),
        row.lost_cycles.p50.to_string(),
        row.lost_cycles.p99.to_string(),
        row.lost_cycles.max.to_string(),
        row.faults.to_string(),
        row.remote_flushes.to_string(),
        row.entries_visited.to_string(),
        row.longest_unscheduled.to_string(),
        row.longest_rcu.to_string(),
        row.lock_wait.to_string(),
        row.host.zapped_leaves.to_string(),
        row.host.zapped_tables.to_string(),
        row.host.ipis.to_string(),
        row.host.broadcasts.to_string(),
        row.host.flush_wait.to_string(),
        row.host.tables_freed.to_string(),
        row.guest.accesses.to_string(),
        row.guest.walks.to_string(),
        row.guest.walk_cycles.to_string(),
    ]
}
