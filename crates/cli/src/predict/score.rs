//! `predict --against`: how far predictions are from a file of measurements.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use mmusim::Machine;
use mmusim::predict::score::{Band, Knee, Mean, OrderScore, Scored, knees, order, read};
use serde_json::json;

use super::leave_out::percent;
use super::report::write_csv;
use super::{PredictArgs, points_of};
use crate::invocation::Invocation;
use crate::table::Columns;
use crate::{CliError, SCHEMA_VERSION};

/// Everything that is said about one file.
pub(crate) struct Scores {
    /// Points with their predictions, in the order of the file.
    pub(crate) points: Vec<Scored>,
    /// Rows that nobody can predict, with the reason.
    pub(crate) skipped: Vec<(String, String)>,
    /// Knees of all curves.
    pub(crate) knees: Vec<Knee>,
    /// Order of curves.
    pub(crate) order: OrderScore,
}

/// Predicts every point of a file of measurements.
pub(crate) fn scores(machine: &Machine, text: &str, file: &str, seed: u64) -> Result<Scores, CliError> {
    let rows = read(text).map_err(|error| CliError::input(format!("{file}: {error}")))?;
    let wanted: Vec<(&str, u64)> = rows.iter().map(|row| (row.variant.as_str(), row.n)).collect();
    let predicted = points_of(machine, &wanted, seed)?;
    let (mut points, mut skipped) = (Vec::new(), BTreeMap::new());
    for (row, predicted) in rows.iter().zip(predicted) {
        match predicted {
            Ok(predicted) => points.push(Scored::new(row.clone(), predicted)),
            Err(why) => drop(skipped.entry(row.variant.clone()).or_insert_with(|| why.to_string())),
        }
    }
    let knees = curves(&points).values().flat_map(|points| knees(points)).collect();
    Ok(Scores { knees, order: order(&points), points, skipped: skipped.into_iter().collect() })
}

/// Points of latency curves by curve.
fn curves(points: &[Scored]) -> BTreeMap<&str, Vec<&Scored>> {
    let mut curves: BTreeMap<&str, Vec<&Scored>> = BTreeMap::new();
    for point in points.iter().filter(|point| point.band != Band::Events) {
        curves.entry(&point.measured.variant).or_default().push(point);
    }
    curves
}

impl Scores {
    /// Mean errors of a band.
    pub(crate) fn band(&self, band: Band) -> Option<Mean> {
        Mean::of(self.points.iter().filter(|point| point.band == band))
    }

    /// Mean absolute error of the knees.
    pub(crate) fn knee_error(&self) -> Option<f64> {
        let sum: f64 = self.knees.iter().map(|knee| knee.error().abs()).sum();
        (!self.knees.is_empty()).then(|| sum / self.knees.len() as f64)
    }

    /// Curves and families of events with the mean error of each.
    pub(crate) fn by_curve(&self) -> Vec<(String, Band, Mean)> {
        let mut groups: BTreeMap<(String, Band), Vec<&Scored>> = BTreeMap::new();
        for point in &self.points {
            let name = match point.band {
                Band::Events => point.measured.bench.clone(),
                _ => point.measured.variant.clone(),
            };
            groups.entry((name, point.band)).or_default().push(point);
        }
        let mean =
            |((name, band), points): ((String, Band), Vec<&Scored>)| Some((name, band, Mean::of(points.into_iter())?));
        groups.into_iter().filter_map(mean).collect()
    }
}

pub(super) fn text(
    args: &PredictArgs,
    machine: &Machine,
    file: &Path,
    invocation: &Invocation,
) -> Result<String, CliError> {
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file).map_err(|error| {
        CliError::argument(
            format!("--against {name}"),
            format!("cannot read: {error}; name a CSV file of measurements"),
        )
    })?;
    if args.leave_out {
        let rows = read(&text).map_err(|error| CliError::input(format!("{name}: {error}")))?;
        return super::leave_out::text(args, machine, file, &rows, invocation);
    }
    let scores = scores(machine, &text, &name, args.seed)?;
    match (args.json, args.csv) {
        (true, _) => Ok(json(machine, &scores, args.seed, file, invocation)),
        (_, true) => csv(&scores),
        _ => Ok(tables(machine, &scores)),
    }
}

fn tables(machine: &Machine, scores: &Scores) -> String {
    let mut bands = Columns::new(1, &["band", "points", "mean error", "worst", "goal"]);
    for band in Band::ALL {
        if let Some(mean) = scores.band(band) {
            let goal = if band == Band::Events { "-".to_owned() } else { percent(band.goal()) };
            let name = match band {
                Band::A => "A: at most 1,024 pages",
                Band::B => "B: to 8,192",
                Band::C => "C: to 65,536",
                Band::D => "D: beyond",
                Band::Events => "events",
            };
            bands.row([name.to_owned(), mean.points.to_string(), percent(mean.error), percent(mean.worst), goal]);
        }
    }
    let mut curves = Columns::new(2, &["curve or family", "band", "points", "mean error", "worst"]);
    for (name, band, mean) in scores.by_curve() {
        curves.row([name, format!("{band:?}"), mean.points.to_string(), percent(mean.error), percent(mean.worst)]);
    }
    let mut knees = Columns::new(1, &["knee of", "rise", "measured n", "predicted n", "error"]);
    for knee in &scores.knees {
        let (measured, predicted) = (format!("{:.0}", knee.measured), format!("{:.0}", knee.predicted));
        knees.row([knee.curve.clone(), knee.rise.to_string(), measured, predicted, percent(knee.error())]);
    }
    let mut text = format!("machine {}\n\n{}\n{}\n{}\n", machine.name, bands.render(), curves.render(), knees.render());
    // Writing to a string cannot fail.
    if let Some(error) = scores.knee_error() {
        let _ = writeln!(text, "knees: {} off on average; goal {}", percent(error), percent(0.10));
    }
    let OrderScore { pairs, right } = scores.order;
    let _ = writeln!(text, "order of curves: {right} of {pairs} pairs as measured");
    for (name, why) in &scores.skipped {
        let _ = writeln!(text, "not predicted: {name}: {}", why.split(';').next().unwrap_or(why));
    }
    text
}

fn json(machine: &Machine, scores: &Scores, seed: u64, file: &Path, invocation: &Invocation) -> String {
    let bands: BTreeMap<String, _> = Band::ALL
        .iter()
        .filter_map(|&band| {
            let Mean { points, error, worst } = scores.band(band)?;
            let goal = (band != Band::Events).then(|| band.goal());
            Some((format!("{band:?}"), json!({ "points": points, "error": error, "worst": worst, "goal": goal })))
        })
        .collect();
    let curves: Vec<_> = scores.by_curve();
    let curves: Vec<_> =
        curves.iter().map(|(curve, band, mean)| json!({ "curve": curve, "band": band, "mean": mean })).collect();
    let document = json!({
        "schema_version": SCHEMA_VERSION,
        "versions": crate::output::versions(),
        "experiment": "predict",
        "command": invocation.to_string(),
        "seed": seed,
        "against": file.file_name().map(|name| name.to_string_lossy()),
        "machine": machine.name,
        "bands": bands,
        "curves": curves,
        "knees": scores.knees,
        "knee_error": scores.knee_error(),
        "order": scores.order,
        "points": scores.points,
        "not_predicted": scores.skipped.iter().map(|(name, why)| json!({ "curve": name, "why": why })).collect::<Vec<_>>(),
    });
    format!("{document:#}\n")
}

fn csv(scores: &Scores) -> Result<String, CliError> {
    let headings = ["bench", "variant", "n", "band", "measured_cycles", "predicted_cycles", "error"];
    let mut rows = vec![headings.map(str::to_owned).to_vec()];
    rows.extend(scores.points.iter().map(|point| {
        let Scored { measured, predicted, band, error } = point;
        let (x, y) = (format!("{:.2}", measured.core_cycles_median), format!("{:.2}", predicted.cycles));
        let (n, error) = (measured.n.to_string(), format!("{error:.5}"));
        vec![measured.bench.clone(), measured.variant.clone(), n, format!("{band:?}"), x, y, error]
    }));
    write_csv(rows)
}
