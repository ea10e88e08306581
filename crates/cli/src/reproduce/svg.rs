//! Plots: before and after over vCPUs, published and simulated.

use std::collections::BTreeMap;
use std::path::Path;

use mmu_report::svg::{Chart, Kind, Mark, Series};
use mmusim::sim::reproduce::Row;

use super::Reproduced;
use crate::CliError;
use crate::output::Output;

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
    let published =
        |n: usize| rows.iter().filter_map(|row| Some((x(row), row.published?[n].number()))).collect::<Vec<_>>();
    let series = |name: &str, colour, mark, points| Series { name: name.to_owned(), colour, mark, points };
    let all = [
        series("published, before", 1, Mark::Solid, published(0)),
        series("published, after", 0, Mark::Solid, published(1)),
        series("simulated, before", 1, Mark::Dashed, simulated(0)),
        series("simulated, after", 0, Mark::Dashed, simulated(1)),
    ];
    let chart = Chart {
        title: title.to_owned(),
        across: (if by_size { "memory, GiB" } else { "vCPUs" }.to_owned(), Kind::Binary),
        up: (rows.first().map_or("", |row| row.unit).to_owned(), Kind::Log),
        series: all.into_iter().filter(|series| !series.points.is_empty()).collect(),
        size: (640.0, 400.0),
    };
    chart.to_svg()
}
