//! `predict --against FILE --leave-out`: families of curves predicted by constants that were fitted to the others.

use std::fmt::Write;
use std::path::Path;

use mmusim::Machine;
use mmusim::predict::fit::{CrossValidation, Fitted, LeftOut, cross_validate};
use mmusim::predict::score::{Band, Mean, Measured, Scored};
use serde_json::json;

use super::{MEMORY, PredictArgs, report::write_csv};
use crate::invocation::Invocation;
use crate::platform::{Formats, formats};
use crate::table::Columns;
use crate::{CliError, SCHEMA_VERSION};

/// Leaves out one family of rows after the other.
pub(crate) fn cross(machine: &Machine, rows: &[Measured], seed: u64) -> Result<CrossValidation, CliError> {
    let progress = |family: &str| eprintln!("fitting: {family}");
    let made = match &formats(machine, MEMORY)? {
        Formats::X86(pair) => cross_validate(machine, (pair.one, pair.two), rows, seed, progress),
        Formats::Arm64(pair) => cross_validate(machine, (pair.one, pair.two), rows, seed, progress),
        Formats::Power(pair) => cross_validate(machine, (pair.one, pair.two), rows, seed, progress),
    };
    made.map_err(|error| CliError::input(format!("{}: {error}", machine.name)))
}

/// All points that were predicted without their own family.
pub(crate) fn unseen(cross: &CrossValidation) -> impl Iterator<Item = &Scored> {
    cross.families.iter().flat_map(|family| &family.points)
}

/// Mean error of the points of a band.
pub(crate) fn in_band<'a>(points: impl Iterator<Item = &'a Scored>, band: Band) -> Option<Mean> {
    Mean::of(points.filter(|point| point.band == band))
}

pub(super) fn text(
    args: &PredictArgs,
    machine: &Machine,
    file: &Path,
    rows: &[Measured],
    invocation: &Invocation,
) -> Result<String, CliError> {
    let cross = cross(machine, rows, args.seed)?;
    match (args.json, args.csv) {
        (true, _) => Ok(as_json(args, machine, file, &cross, invocation)),
        (_, true) => csv(&cross),
        _ => Ok(tables(machine, &cross)),
    }
}

pub(crate) fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

/// The family's points as the fit to everything has them.
fn seen<'a>(cross: &'a CrossValidation, family: &'a LeftOut) -> impl Iterator<Item = &'a Scored> {
    let mine = |point: &&Scored| family.points.iter().any(|left| left.measured == point.measured);
    cross.points.iter().filter(mine)
}

fn mean(points: Option<Mean>) -> String {
    points.map_or_else(|| "-".to_owned(), |mean| percent(mean.error))
}

/// Rows of the table of families: name, points, error of the fit to everything, error of the fit to the others, what nothing else says.
pub(crate) fn families(cross: &CrossValidation) -> Vec<[String; 5]> {
    let row = |family: &LeftOut| {
        let unsaid = if family.unsaid.is_empty() { "-".to_owned() } else { family.unsaid.join(", ") };
        let (with, without) = (Mean::of(seen(cross, family)), Mean::of(family.points.iter()));
        [family.family.clone(), family.points.len().to_string(), mean(with), mean(without), unsaid]
    };
    cross.families.iter().map(row).collect()
}

/// Rows of the table of constants: place, value of the fit to everything, the values of the others, what says it.
pub(crate) fn constants(cross: &CrossValidation) -> Vec<[String; 4]> {
    let value = |fitted: &Fitted| fitted.value.clone().unwrap_or_else(|| "-".to_owned());
    let others = |place: &str| {
        let of = |family: &LeftOut| family.constants.iter().find(|fitted| fitted.place == place).map(value);
        let mut values: Vec<String> = cross.families.iter().filter_map(of).collect();
        values.sort_by(|a, b| match (a.parse::<f64>(), b.parse::<f64>()) {
            (Ok(a), Ok(b)) => a.total_cmp(&b),
            _ => a.cmp(b),
        });
        values.dedup();
        match (values.first(), values.last()) {
            (Some(first), Some(last)) if first != last && first.parse::<f64>().is_ok() => format!("{first} to {last}"),
            _ => values.join(", "),
        }
    };
    let row = |fitted: &Fitted| [fitted.place.clone(), value(fitted), others(&fitted.place), fitted.from.to_owned()];
    cross.constants.iter().map(row).collect()
}

fn tables(machine: &Machine, cross: &CrossValidation) -> String {
    let mut bands = Columns::new(1, &["band", "points", "fitted to all", "left out", "goal"]);
    for band in Band::ALL {
        let Some(without) = in_band(unseen(cross), band) else { continue };
        let goal = if band == Band::Events { "-".to_owned() } else { percent(band.goal()) };
        let with = mean(in_band(cross.points.iter(), band));
        bands.row([format!("{band:?}"), without.points.to_string(), with, percent(without.error), goal]);
    }
    let mut columns = Columns::new(1, &["family", "points", "fitted to all", "left out", "said by nothing else"]);
    for row in families(cross) {
        columns.row(row);
    }
    let mut fitted = Columns::new(2, &["constant", "fitted to all", "with one family left out", "said by"]);
    for row in constants(cross) {
        fitted.row(row);
    }
    let mut text =
        format!("machine {}\n\n{}\n{}\n{}\n", machine.name, bands.render(), columns.render(), fitted.render());
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{} rows are figures of their own, which nothing else says", cross.alone);
    text
}

fn as_json(
    args: &PredictArgs,
    machine: &Machine,
    file: &Path,
    cross: &CrossValidation,
    invocation: &Invocation,
) -> String {
    let bands: serde_json::Map<String, serde_json::Value> = Band::ALL
        .iter()
        .filter_map(|&band| {
            let with = in_band(cross.points.iter(), band)?;
            Some((format!("{band:?}"), json!({ "fitted_to_all": with, "left_out": in_band(unseen(cross), band) })))
        })
        .collect();
    let document = json!({
        "schema_version": SCHEMA_VERSION,
        "versions": crate::output::versions(),
        "experiment": "predict --leave-out",
        "command": invocation.to_string(),
        "seed": args.seed,
        "against": file.file_name().map(|name| name.to_string_lossy()),
        "machine": machine.name,
        "bands": bands,
        "cross_validation": cross,
    });
    format!("{document:#}\n")
}

fn csv(cross: &CrossValidation) -> Result<String, CliError> {
    let headings = ["family", "curve", "n", "band", "measured_core_cycles", "left_out_core_cycles", "error"];
    let mut rows = vec![headings.map(str::to_owned).to_vec()];
    for family in &cross.families {
        rows.extend(family.points.iter().map(|point| {
            vec![
                family.family.clone(),
                point.measured.variant.clone(),
                point.measured.n.to_string(),
                format!("{:?}", point.band),
                format!("{:.3}", point.measured.core_cycles_median),
                format!("{:.3}", point.predicted.cycles),
                format!("{:.5}", point.error),
            ]
        }));
    }
    write_csv(rows)
}
