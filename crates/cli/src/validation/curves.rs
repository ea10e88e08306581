//! Sections about latency curves: scores, plots, and families left out of the fit.

use std::collections::BTreeMap;
use std::fmt::Write;

use mmu_report::svg::{COLOURS, Chart, Kind, Mark, Series};
use mmusim::Machine;
use mmusim::predict::score::{Band, Measured, OrderScore, Scored};

use crate::CliError;
use crate::predict::{Scores, constants, cross, families, in_band, percent, unseen};

/// The scores of a sheet against a file of that name.
pub(super) fn scores(machine: &Machine, name: &str, scores: &Scores) -> String {
    let mut text = format!(
        "`mmusim predict --machine {} --against {name}`: mean absolute error of core cycles per access against the median of measured runs.\n\n\
         | band | points | mean error | worst | goal |\n| --- | ---: | ---: | ---: | ---: |\n",
        machine.name
    );
    // Writing to a string cannot fail.
    for band in Band::ALL {
        if let Some(mean) = scores.band(band) {
            let (error, worst) = (percent(mean.error), percent(mean.worst));
            let _ = writeln!(text, "| {band:?} | {} | {error} | {worst} | {} |", mean.points, goal(band));
        }
    }
    if let Some(error) = scores.knee_error() {
        let _ = writeln!(
            text,
            "\nKnees: {} off on average of {}; goal {}.",
            percent(error),
            scores.knees.len(),
            percent(0.1)
        );
    }
    let OrderScore { pairs, right } = scores.order;
    let _ = writeln!(text, "Order of curves: {right} of {pairs} pairs as measured.\n");
    text.push_str("| curve or family | band | points | mean error | worst |\n| --- | --- | ---: | ---: | ---: |\n");
    for (name, band, mean) in scores.by_curve() {
        let (error, worst) = (percent(mean.error), percent(mean.worst));
        let _ = writeln!(text, "| {name} | {band:?} | {} | {error} | {worst} |", mean.points);
    }
    text.push_str("\n| knee of | measured n | predicted n | error |\n| --- | ---: | ---: | ---: |\n");
    for knee in &scores.knees {
        let error = percent(knee.error());
        let _ = writeln!(text, "| {} | {:.0} | {:.0} | {error} |", knee.curve, knee.measured, knee.predicted);
    }
    text
}

fn goal(band: Band) -> String {
    if band == Band::Events { "-".to_owned() } else { percent(band.goal()) }
}

/// A plot for each family of the file: what was measured and what is predicted, curve by curve.
pub(super) fn plots(machine: &Machine, points: &[Scored]) -> Vec<(String, String)> {
    let mut benches: BTreeMap<&str, BTreeMap<&str, Vec<&Scored>>> = BTreeMap::new();
    for point in points.iter().filter(|point| point.band != Band::Events) {
        benches.entry(&point.measured.bench).or_default().entry(&point.measured.variant).or_default().push(point);
    }
    let plot = |(bench, curves): (&str, BTreeMap<&str, Vec<&Scored>>)| {
        let curves = curves.into_iter().filter(|(_, points)| points.len() > 1).take(COLOURS);
        let chart = Chart {
            title: format!("{bench}, {}: measured, and predicted (dashed)", machine.name),
            across: ("n".to_owned(), Kind::Binary),
            up: ("core cycles per access".to_owned(), Kind::Log),
            series: curves.enumerate().flat_map(|(n, (name, points))| series(name, n, &points)).collect(),
            size: (760.0, 420.0),
        };
        (format!("curves-{bench}.svg"), chart.to_svg())
    };
    benches.into_iter().map(plot).collect()
}

fn series(name: &str, colour: usize, points: &[&Scored]) -> [Series; 2] {
    let mut points = points.to_vec();
    points.sort_by_key(|point| point.measured.n);
    let series = |name: String, mark, of: &dyn Fn(&Scored) -> f64| Series {
        name,
        colour,
        mark,
        points: points.iter().map(|point| (point.measured.n as f64, of(point))).collect(),
    };
    [
        series(name.to_owned(), Mark::Solid, &|point| point.measured.core_cycles_median),
        series(format!("{name}, predicted"), Mark::Dashed, &|point| point.predicted.cycles),
    ]
}

/// Families predicted without having been fitted to.
pub(super) fn left_out(machine: &Machine, name: &str, rows: &[Measured]) -> Result<String, CliError> {
    let cross = cross(machine, rows, 1)?;
    let mut text = format!(
        "`mmusim predict --machine {} --against {name} --leave-out`: the constants below are searched for from a beginning that knows no \
         measurement, once with all rows and once without each family, which is then predicted.\n\n\
         | band | points | fitted to all | left out | goal |\n| --- | ---: | ---: | ---: | ---: |\n",
        machine.name
    );
    for band in Band::ALL {
        let (Some(with), Some(without)) = (in_band(cross.points.iter(), band), in_band(unseen(&cross), band)) else {
            continue;
        };
        let (with, error) = (percent(with.error), percent(without.error));
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| {band:?} | {} | {with} | {error} | {} |", without.points, goal(band));
    }
    text.push_str(
        "\n| family | points | fitted to all | left out | said by nothing else |\n| --- | ---: | ---: | ---: | --- |\n",
    );
    for row in families(&cross) {
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
    text.push_str("\n| constant | fitted to all | with one family left out | said by |\n| --- | --- | --- | --- |\n");
    for row in constants(&cross) {
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
    let _ = writeln!(text, "\n{} rows are figures of their own, which nothing else says.", cross.alone);
    Ok(text)
}
