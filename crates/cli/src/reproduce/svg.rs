//! Plots: before and after over vCPUs, published and simulated.

use std::collections::BTreeMap;
use std::path::Path;

use mmusim::sim::reproduce::Row;

use super::Reproduced;
use crate::CliError;
use crate::output::Output;
use crate::plot::{Line, draw};

/// Writes one file for each figure.
pub(super) fn write(directory: &Path, all: &[Reproduced<'_>]) -> Result<(), CliError> {
    write_plots("--svg", directory, all.iter().flat_map(plots))
}

/// Writes plots by name.
pub(crate) fn write_plots(
    option: &str,
    directory: &Path,
    plots: impl IntoIterator<Item = (String, String)>,
) -> Result<(), CliError> {
    std::fs::create_dir_all(directory).map_err(|error| {
        let what = format!("cannot create: {error}; name a directory that can be written");
        CliError::argument(format!("{option} {}", directory.display()), what)
    })?;
    for (name, svg) in plots {
        let mut output = Output::named(option, &directory.join(name))?;
        output.write(&svg)?;
        output.finish()?;
    }
    Ok(())
}

/// The plots of one experiment, with the names of their files.
pub(crate) fn plots((experiment, machine, rows): &Reproduced<'_>) -> Vec<(String, String)> {
    let mut figures: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        figures.entry(&row.what).or_default().push(row);
    }
    let plot = |(what, rows): (&str, Vec<&Row>)| {
        let name = format!("{}-{}.svg", experiment.id.to_string().to_lowercase(), what.replace([' ', ','], "-"));
        (name, plot(&format!("{}: {what}, {machine}", experiment.id), &rows))
    };
    figures.into_iter().map(plot).collect()
}

fn plot(title: &str, rows: &[&Row]) -> String {
    let by_size = rows.windows(2).all(|pair| pair[0].case.vcpus == pair[1].case.vcpus) && rows.len() > 1;
    let x = |row: &Row| if by_size { row.case.bytes.0 as f64 / (1u64 << 30) as f64 } else { row.case.vcpus as f64 };
    let simulated = |n: usize| rows.iter().map(|row| (x(row), row.simulated[n])).collect::<Vec<_>>();
    let published = |n: usize| rows.iter().filter_map(|row| Some((x(row), row.published?[n]))).collect::<Vec<_>>();
    let line = |name: &str, colour, dashes, points| Line { name: name.to_owned(), colour, dashes, points };
    let lines = [
        line("published, before", "#b2182b", "", published(0)),
        line("published, after", "#2166ac", "", published(1)),
        line("simulated, before", "#b2182b", "6 4", simulated(0)),
        line("simulated, after", "#2166ac", "6 4", simulated(1)),
    ];
    let unit = rows.first().map_or("", |row| row.unit);
    draw(title, if by_size { "memory (GiB)" } else { "vCPUs" }, unit, &lines)
}
