//! Reproductions as tables, JSON, CSV and Markdown.

use std::fmt::Write;

use mmusim::sim::reproduce::{Experiment, Figure, Row};
use serde_json::json;

use super::Reproduced;
use crate::invocation::Invocation;
use crate::table::Columns;
use crate::{CliError, SCHEMA_VERSION};

pub(super) fn list(experiments: &[Experiment]) -> String {
    let mut columns =
        Columns::new(5, &["", "what changed", "test and options", "published in", "machine", "default\nscale"]);
    for experiment in experiments {
        columns.row([
            experiment.id.to_string(),
            experiment.title.to_owned(),
            experiment.command.to_owned(),
            experiment.source.to_owned(),
            experiment.machine.to_owned(),
            experiment.scale.to_string(),
        ]);
    }
    columns.render()
}

/// Four significant digits.
fn figure(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        1e5.. => format!("{value:.0}"),
        100.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.3}"),
        0.001.. => format!("{value:.5}"),
        _ => format!("{value:.2e}"),
    }
}

fn percent(share: f64) -> String {
    format!("{:+.0} %", 100.0 * share)
}

pub(super) fn tables(all: &[Reproduced<'_>]) -> String {
    let mut text = String::new();
    for (experiment, machine, rows) in all {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{}: {}\n{}; published in {}; simulated on {machine}",
            experiment.id, experiment.title, experiment.command, experiment.source
        );
        let headings = [
            "",
            "vCPUs",
            "memory",
            "scale",
            "published\nbefore",
            "published\nafter",
            "simulated\nbefore",
            "simulated\nafter",
            "published\nratio",
            "simulated\nratio",
            "error",
        ];
        let mut columns = Columns::new(1, &headings);
        for row in rows {
            columns.row(cells(row));
        }
        let _ = write!(text, "{}", columns.render());
        let mut times = Columns::new(
            1,
            &["seconds of all threads", "vCPUs", "", "locks", "flushes", "maintenance", "walks", "faults"],
        );
        for row in rows {
            for (which, time) in ["before", "after"].iter().zip(row.times) {
                let mut cells = vec![row.what.clone(), row.case.vcpus.to_string(), (*which).to_owned()];
                cells.extend([time.locks, time.flushes, time.maintenance, time.walks, time.faults].map(figure));
                times.row(cells);
            }
        }
        let _ = writeln!(text, "{}", times.render());
        if let Some(limits) = experiment.limits {
            let _ = writeln!(text, "Not explained: {limits}\n");
        }
    }
    text
}

fn cells(row: &Row) -> Vec<String> {
    let unit = if row.unit.is_empty() { String::new() } else { format!(" ({})", row.unit) };
    let dash = || "-".to_owned();
    let published = |n: usize| row.published.map_or_else(dash, |values| values[n].text(figure));
    let error = match (row.published_ratio(), row.error()) {
        (Some(Figure::Is(_)), Some(error)) => percent(error),
        (Some(_), Some(0.0)) => "met".to_owned(),
        (_, error) => error.map_or_else(dash, percent),
    };
    vec![
        format!("{}{unit}", row.what),
        row.case.vcpus.to_string(),
        row.case.bytes.to_string(),
        row.case.scale.to_string(),
        published(0),
        published(1),
        figure(row.simulated[0]),
        figure(row.simulated[1]),
        row.published_ratio().map_or_else(dash, |ratio| ratio.text(figure)),
        figure(row.simulated_ratio()),
        error,
    ]
}

pub(super) fn json(all: &[Reproduced<'_>], invocation: &Invocation) -> String {
    let experiments: Vec<_> = all
        .iter()
        .map(|(experiment, machine, rows)| {
            let rows: Vec<_> = rows
                .iter()
                .map(|row| {
                    json!({
                        "what": row.what, "unit": row.unit, "vcpus": row.case.vcpus, "bytes": row.case.bytes.0,
                        "scale": row.case.scale, "published": row.published, "simulated": row.simulated,
                        "published_ratio": row.published_ratio(), "simulated_ratio": row.simulated_ratio(),
                        "error": row.error(), "within_a_quarter": row.within(), "times": row.times,
                    })
                })
                .collect();
            json!({
                "id": experiment.id, "title": experiment.title, "command": experiment.command,
                "source": experiment.source, "machine": machine, "limits": experiment.limits, "rows": rows,
            })
        })
        .collect();
    let document = json!({
        "schema_version": SCHEMA_VERSION,
        "versions": crate::output::versions(),
        "experiment": "reproduce",
        "command": invocation.to_string(),
        "experiments": experiments,
    });
    format!("{document:#}\n")
}

pub(super) fn csv(all: &[Reproduced<'_>]) -> Result<String, CliError> {
    let headings = "id,machine,what,unit,vcpus,bytes,scale,published_before,published_after,simulated_before,simulated_after,\
                    published_ratio,simulated_ratio,error";
    let mut rows = vec![headings.split(',').map(str::to_owned).collect::<Vec<_>>()];
    let number = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
    let published = |value: Option<Figure>| value.map_or_else(String::new, |value| value.to_string());
    for (experiment, machine, made) in all {
        rows.extend(made.iter().map(|row| {
            let mut cells = vec![experiment.id.to_string(), machine.clone(), row.what.clone(), row.unit.to_owned()];
            cells.extend([row.case.vcpus as u64, row.case.bytes.0, row.case.scale].map(|value| value.to_string()));
            cells.extend([0, 1].map(|n| published(row.published.map(|values| values[n]))));
            cells.extend(row.simulated.map(|value| value.to_string()));
            cells.extend([published(row.published_ratio()), row.simulated_ratio().to_string(), number(row.error())]);
            cells
        }));
    }
    crate::predict::write_csv(rows)
}

/// A section of a Markdown report.
pub(crate) fn markdown(all: &[Reproduced<'_>]) -> String {
    let mut text = String::from(
        "| | what | vCPUs | memory | scale | published | simulated | published ratio | simulated ratio | error |\n\
         | --- | --- | ---: | ---: | ---: | --- | --- | ---: | ---: | ---: |\n",
    );
    for (experiment, _, rows) in all {
        for row in rows.iter().filter(|row| row.published.is_some()) {
            let cells = cells(row);
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} -> {} | {} -> {} | {} | {} | {} |",
                experiment.id,
                cells[0],
                cells[1],
                cells[2],
                cells[3],
                cells[4],
                cells[5],
                cells[6],
                cells[7],
                cells[8],
                cells[9],
                cells[10]
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_keep_their_digits() {
        let texts = [0.0, 131_072.0, 104.56, 3.7, 0.00824, 0.00001].map(figure);
        assert_eq!(texts, ["0", "131072", "104.6", "3.700", "0.00824", "1.00e-5"]);
    }
}
