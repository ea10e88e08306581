//! Plots: before and after over vCPUs, published and simulated, both axes logarithmic.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use mmusim::sim::reproduce::Row;

use super::Reproduced;
use crate::CliError;
use crate::output::Output;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 50.0;

/// One line: its name, colour, dashes and points.
type Line = (&'static str, &'static str, &'static str, Vec<(f64, f64)>);

/// Writes one file for each figure that has more than one number of vCPUs or sizes.
pub(super) fn write(directory: &Path, all: &[Reproduced<'_>]) -> Result<(), CliError> {
    std::fs::create_dir_all(directory).map_err(|error| {
        let what = format!("cannot create: {error}; name a directory that can be written");
        CliError::argument(format!("--svg {}", directory.display()), what)
    })?;
    for (experiment, machine, rows) in all {
        let mut figures: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
        for row in rows {
            figures.entry(&row.what).or_default().push(row);
        }
        for (what, rows) in figures {
            let name = format!("{}-{}.svg", experiment.id.to_string().to_lowercase(), what.replace([' ', ','], "-"));
            let mut output = Output::named("--svg", &directory.join(name))?;
            output.write(&plot(&format!("{}: {what}, {machine}", experiment.id), &rows))?;
            output.finish()?;
        }
    }
    Ok(())
}

fn plot(title: &str, rows: &[&Row]) -> String {
    let by_size = rows.windows(2).all(|pair| pair[0].case.vcpus == pair[1].case.vcpus) && rows.len() > 1;
    let x = |row: &Row| if by_size { row.case.bytes.0 as f64 / (1u64 << 30) as f64 } else { row.case.vcpus as f64 };
    let simulated = |n: usize| rows.iter().map(|row| (x(row), row.simulated[n])).collect::<Vec<_>>();
    let published = |n: usize| rows.iter().filter_map(|row| Some((x(row), row.published?[n]))).collect::<Vec<_>>();
    let lines: [Line; 4] = [
        ("published, before", "#b2182b", "", published(0)),
        ("published, after", "#2166ac", "", published(1)),
        ("simulated, before", "#b2182b", "6 4", simulated(0)),
        ("simulated, after", "#2166ac", "6 4", simulated(1)),
    ];
    let unit = rows.first().map_or("", |row| row.unit);
    draw(title, if by_size { "memory (GiB)" } else { "vCPUs" }, unit, &lines)
}

/// The range of some values on a logarithmic axis, whole powers of ten.
fn decades(values: impl Iterator<Item = f64>) -> (i32, i32) {
    let (low, high) = values
        .filter(|&value| value > 0.0)
        .fold((f64::INFINITY, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
    if high <= 0.0 {
        return (0, 1);
    }
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    (first, last.max(first + 1))
}

fn draw(title: &str, across: &str, unit: &str, lines: &[Line]) -> String {
    let points = || lines.iter().flat_map(|line| line.3.iter().copied());
    let (x0, x1) = decades(points().map(|(x, _)| x));
    let (y0, y1) = decades(points().map(|(_, y)| y));
    let share = |value: f64, (low, high): (i32, i32)| (value.log10() - f64::from(low)) / f64::from(high - low);
    let px = |x: f64| LEFT + share(x, (x0, x1)) * (WIDTH - LEFT - RIGHT);
    let py = |y: f64| HEIGHT - BOTTOM - share(y, (y0, y1)) * (HEIGHT - TOP - BOTTOM);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"{LEFT}\" y=\"25\" font-size=\"15\">{}</text>\n",
        escape(title)
    );
    // Writing to a string cannot fail.
    for decade in y0..=y1 {
        let y = py(10f64.powi(decade));
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>",
            WIDTH - RIGHT
        );
        let _ =
            writeln!(svg, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">1e{decade}</text>", LEFT - 6.0, y + 4.0);
    }
    for decade in x0..=x1 {
        let x = px(10f64.powi(decade));
        let (top, bottom) = (TOP, HEIGHT - BOTTOM);
        let _ = writeln!(svg, "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top}\" y2=\"{bottom}\" stroke=\"#ddd\"/>");
        let _ = writeln!(
            svg,
            "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            bottom + 18.0,
            10f64.powi(decade)
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{across}</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 10.0
    );
    let _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"{:.1}\" text-anchor=\"end\">{unit}</text>", TOP - 8.0);
    for (n, (name, colour, dashes, points)) in lines.iter().enumerate() {
        let path: Vec<String> = points
            .iter()
            .filter(|(x, y)| *x > 0.0 && *y > 0.0)
            .map(|&(x, y)| format!("{:.1},{:.1}", px(x), py(y)))
            .collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"{dashes}\"/>",
            path.join(" ")
        );
        for point in &path {
            let (x, y) = point.split_once(',').unwrap_or(("0", "0"));
            let _ = writeln!(svg, "<circle cx=\"{x}\" cy=\"{y}\" r=\"3\" fill=\"{colour}\"/>");
        }
        let y = TOP + 20.0 * n as f64;
        let (x, end) = (WIDTH - RIGHT + 10.0, WIDTH - RIGHT + 34.0);
        let _ = writeln!(
            svg,
            "<line x1=\"{x}\" x2=\"{end}\" y1=\"{y}\" y2=\"{y}\" stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"{dashes}\"/>"
        );
        let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{:.1}\">{name}</text>", end + 5.0, y + 4.0);
    }
    svg.push_str("</svg>\n");
    svg
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_cover_all_points() {
        assert_eq!(decades([1.0, 112.0].into_iter()), (0, 3));
        assert_eq!(decades([0.5].into_iter()), (-1, 0));
        assert_eq!(decades([0.0].into_iter()), (0, 1));
    }

    #[test]
    fn points_are_drawn_where_they_belong() {
        let line: Line = ("a", "#000000", "", vec![(1.0, 1.0), (100.0, 10.0)]);
        let svg = draw("R0: <x>", "vCPUs", "s", &[line]);
        assert!(svg.contains("points=\"80.0,350.0 490.0,50.0\""), "{svg}");
        assert!(svg.contains("R0: &lt;x&gt;") && svg.ends_with("</svg>\n"));
    }
}
