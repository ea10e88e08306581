//! Predicted points as a table, JSON and CSV.

use mmusim::Machine;
use mmusim::predict::{Events, Prediction};
use serde_json::json;

use crate::invocation::Invocation;
use crate::table::Columns;
use crate::{CliError, SCHEMA_VERSION};

/// Who serves references, nearest first.
fn servers(machine: &Machine) -> Vec<String> {
    machine.caches.levels.iter().map(|level| level.name.clone()).chain(["memory".to_owned()]).collect()
}

pub(super) fn table(machine: &Machine, points: &[Prediction]) -> String {
    let mut headings: Vec<String> =
        ["curve", "n", "cycles", "ns", "L1 TLB\nmisses", "L2 TLB\nmisses", "guest\nrefs", "host\nrefs"]
            .map(str::to_owned)
            .to_vec();
    headings.extend(servers(machine).iter().map(|server| format!("walk refs\n{server}")));
    headings.extend(["walk\ncycles", "data\ncycles"].map(str::to_owned));
    let mut columns = Columns::new(1, &headings.iter().map(String::as_str).collect::<Vec<_>>());
    for point in points {
        let mut row = vec![point.curve.clone(), point.n.to_string(), fixed(point.cycles, 2), fixed(point.ns, 3)];
        row.extend(numbers(machine, point.events.as_ref()).into_iter().map(|number| match number {
            Some(number) => fixed(number, 3),
            None => "-".to_owned(),
        }));
        columns.row(row);
    }
    columns.render()
}

fn fixed(number: f64, decimals: usize) -> String {
    format!("{number:.decimals$}")
}

/// The events of a point, in the order of the columns.
fn numbers(machine: &Machine, events: Option<&Events>) -> Vec<Option<f64>> {
    let servers = servers(machine);
    let Some(events) = events else { return vec![None; servers.len() + 6] };
    let mut numbers =
        vec![events.l1_tlb_misses, events.l2_tlb_misses, events.stage1_references, events.stage2_references];
    numbers.extend(servers.iter().map(|server| events.walk_references.get(server).copied().unwrap_or(0.0)));
    numbers.extend([events.walk_cycles, events.data_cycles]);
    numbers.into_iter().map(Some).collect()
}

pub(super) fn json(machine: &Machine, points: &[Prediction], seed: u64, invocation: &Invocation) -> String {
    let document = json!({
        "schema_version": SCHEMA_VERSION,
        "versions": crate::output::versions(),
        "experiment": "predict",
        "command": invocation.to_string(),
        "seed": seed,
        "machine": machine.name,
        "clock_ghz": machine.clock.ghz(),
        "points": points,
    });
    format!("{document:#}\n")
}

pub(super) fn csv(machine: &Machine, points: &[Prediction]) -> Result<String, CliError> {
    let mut headings: Vec<String> =
        ["curve", "n", "core_cycles", "ns", "l1_tlb_misses", "l2_tlb_misses", "stage1_references"]
            .map(str::to_owned)
            .to_vec();
    headings.push("stage2_references".to_owned());
    headings.extend(servers(machine).iter().map(|server| format!("walk_references_{server}")));
    headings.extend(["walk_cycles", "data_cycles"].map(str::to_owned));
    let mut rows = vec![headings];
    for point in points {
        let mut row = vec![point.curve.clone(), point.n.to_string(), fixed(point.cycles, 3), fixed(point.ns, 4)];
        let number = |number: Option<f64>| number.map_or_else(String::new, |number| fixed(number, 5));
        row.extend(numbers(machine, point.events.as_ref()).into_iter().map(number));
        rows.push(row);
    }
    write_csv(rows)
}

pub(crate) fn write_csv(rows: Vec<Vec<String>>) -> Result<String, CliError> {
    let failed = |why: std::io::Error| CliError::Write { to: "CSV".to_owned(), why };
    let mut writer = csv::Writer::from_writer(Vec::new());
    for row in rows {
        writer.write_record(row).map_err(|error| failed(error.into()))?;
    }
    let bytes = writer.into_inner().map_err(|error| failed(error.into_error()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
