//! Plots as SVG: lines through points, both axes logarithmic.

use std::fmt::Write;

/// One line.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Line {
    /// Its name in the legend.
    pub(crate) name: String,
    /// Its colour.
    pub(crate) colour: &'static str,
    /// Its dashes, as SVG has them; empty for a whole line.
    pub(crate) dashes: &'static str,
    /// Its points; those that are not above zero are left out.
    pub(crate) points: Vec<(f64, f64)>,
}

/// Colours that can be told apart.
pub(crate) const COLOURS: [&str; 8] =
    ["#b2182b", "#2166ac", "#1b7837", "#762a83", "#e08214", "#35978f", "#666666", "#8c510a"];

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 50.0;

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

/// Draws lines over `across`, in `unit`.
pub(crate) fn draw(title: &str, across: &str, unit: &str, lines: &[Line]) -> String {
    let points = || lines.iter().flat_map(|line| line.points.iter().copied());
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
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    // Writing to a string cannot fail.
    for decade in y0..=y1 {
        let y = py(10f64.powi(decade));
        let _ = writeln!(svg, "<line x1=\"{LEFT}\" x2=\"{right:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>");
        let (x, y) = (LEFT - 6.0, y + 4.0);
        let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"end\">1e{decade}</text>");
    }
    for decade in x0..=x1 {
        let (x, value) = (px(10f64.powi(decade)), 10f64.powi(decade));
        let _ = writeln!(svg, "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom}\" stroke=\"#ddd\"/>");
        let y = bottom + 18.0;
        let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{value}</text>");
    }
    let (middle, below) = (f64::midpoint(LEFT, right), HEIGHT - 10.0);
    let _ = writeln!(svg, "<text x=\"{middle:.1}\" y=\"{below:.1}\" text-anchor=\"middle\">{across}</text>");
    let _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"{:.1}\" text-anchor=\"end\">{unit}</text>", TOP - 8.0);
    for (n, line) in lines.iter().enumerate() {
        let Line { name, colour, dashes, .. } = line;
        let seen = line.points.iter().filter(|(x, y)| *x > 0.0 && *y > 0.0);
        let path: Vec<(String, String)> =
            seen.map(|&(x, y)| (format!("{:.1}", px(x)), format!("{:.1}", py(y)))).collect();
        let points: Vec<String> = path.iter().map(|(x, y)| format!("{x},{y}")).collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"{dashes}\"/>",
            points.join(" ")
        );
        for (x, y) in &path {
            let _ = writeln!(svg, "<circle cx=\"{x}\" cy=\"{y}\" r=\"2.5\" fill=\"{colour}\"/>");
        }
        let (x, y) = (right + 10.0, TOP + 20.0 * n as f64);
        let _ = writeln!(
            svg,
            "<line x1=\"{x}\" x2=\"{}\" y1=\"{y}\" y2=\"{y}\" stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"{dashes}\"/>",
            x + 24.0
        );
        let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>", x + 29.0, y + 4.0, escape(name));
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
        let points = vec![(1.0, 1.0), (0.0, 5.0), (100.0, 10.0)];
        let line = Line { name: "a<b".to_owned(), colour: "#000000", dashes: "", points };
        let svg = draw("R0: <x>", "vCPUs", "s", &[line]);
        assert!(svg.contains("points=\"80.0,350.0 490.0,50.0\""), "{svg}");
        assert!(svg.contains("R0: &lt;x&gt;") && svg.contains("a&lt;b") && svg.ends_with("</svg>\n"));
    }
}
