//! Lines over an axis: curves, series over a parameter.

use super::{COLOURS, Kind, Point, Scale, circle, file, fit, image, label, line, path, text_width};
use crate::markup::{Markup, coordinate};

/// How a series is drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mark {
    /// A line with a dot at each point.
    Solid,
    /// A dashed line with a ring at each point.
    Dashed,
    /// Dots alone.
    Dots,
}

/// One line.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its name.
    pub name: String,
    /// Its colour by number: there are [`COLOURS`], then they begin again.
    pub colour: usize,
    /// How it is drawn.
    pub mark: Mark,
    /// Its points.
    pub points: Vec<(f64, f64)>,
}

/// A plot.
#[derive(Clone, Debug)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// The axis across: name with unit, and kind.
    pub across: (String, Kind),
    /// The axis up.
    pub up: (String, Kind),
    /// Its lines.
    pub series: Vec<Series>,
    /// Size in units of the image, which are pixels where the window has room.
    pub size: (f64, f64),
}

const LEFT: f64 = 56.0;
const TOP: f64 = 46.0;
const BOTTOM: f64 = 42.0;

impl Chart {
    /// An SVG file of its own, with its style, on the reader's paper: white, or dark where the reader wants it so.
    pub fn to_svg(&self) -> String {
        let mut out = Markup::default();
        file(&mut out, self.size, &self.title, |out| self.draw(out));
        out.into_text()
    }

    /// Draws it within a page that has the style.
    pub(crate) fn write(&self, out: &mut Markup) {
        image(out, self.size, &self.title, |out| self.draw(out));
    }

    fn draw(&self, out: &mut Markup) {
        let (width, height) = self.size;
        let legend = self.legend_width();
        let points = || self.series.iter().flat_map(|series| series.points.iter().copied());
        let x = Scale::new(self.across.1, points().map(|(x, _)| x), (LEFT, width - legend - 10.0));
        let y = Scale::new(self.up.1, points().map(|(_, y)| y), (height - BOTTOM, TOP));
        label(out, "strong", (0.0, 14.0), "start", &fit(&self.title, width));
        label(out, "tick", (0.0, 32.0), "start", &self.up.0);
        label(out, "tick", (f64::midpoint(LEFT, width - legend), height - 6.0), "middle", &self.across.0);
        self.grid(out, &x, &y, width - legend - 10.0);
        for series in &self.series {
            series.write(out, &x, &y);
        }
        if legend > 0.0 {
            self.legend(out, width - legend);
        }
    }

    /// One line needs no legend: the title says what it is.
    fn legend_width(&self) -> f64 {
        if self.series.len() < 2 {
            return 0.0;
        }
        let longest = self.series.iter().map(|series| text_width(&series.name)).fold(0.0, f64::max);
        (longest + 40.0).min(self.size.0 * 0.45)
    }

    fn grid(&self, out: &mut Markup, x: &Scale, y: &Scale, right: f64) {
        let bottom = self.size.1 - BOTTOM;
        for (value, text) in y.ticks() {
            if let Some(at) = y.place(value) {
                line(out, if value == 0.0 { "mark" } else { "grid" }, (LEFT, at), (right, at));
                label(out, "tick", (LEFT - 6.0, at + 4.0), "end", &text);
            }
        }
        for (value, text) in x.ticks() {
            if let Some(at) = x.place(value) {
                line(out, "grid", (at, TOP), (at, bottom));
                label(out, "tick", (at, bottom + 16.0), "middle", &text);
            }
        }
    }

    fn legend(&self, out: &mut Markup, left: f64) {
        for (index, series) in self.series.iter().enumerate() {
            let y = TOP + 8.0 + 18.0 * index as f64;
            let line = [(left + 2.0, y), (left + 24.0, y)];
            series.draw(out, &line.map(|point| (point, String::new())), false);
            label(out, "", (left + 30.0, y + 4.0), "start", &fit(&series.name, self.size.0 - left - 30.0));
        }
    }
}

impl Series {
    fn write(&self, out: &mut Markup, x: &Scale, y: &Scale) {
        let places: Vec<(Point, String)> = self
            .points
            .iter()
            .filter_map(|&(a, b)| {
                let title = format!("{}: {} at {}", self.name, crate::number::compact(b), crate::number::compact(a));
                Some(((x.place(a)?, y.place(b)?), title))
            })
            .collect();
        self.draw(out, &places, true);
    }

    fn draw(&self, out: &mut Markup, places: &[(Point, String)], titled: bool) {
        let colour = format!("c{}", self.colour % COLOURS);
        if self.mark != Mark::Dots {
            let kind = if self.mark == Mark::Dashed { "line dashed" } else { "line" };
            let mut data = String::new();
            for (index, ((x, y), _)) in places.iter().enumerate() {
                data.push(if index == 0 { 'M' } else { 'L' });
                data.extend([&*coordinate(*x), ",", &coordinate(*y)]);
            }
            path(out, &format!("{colour} {kind}"), &data);
        }
        let (class, radius) = match self.mark {
            Mark::Solid => ("point", 2.6),
            Mark::Dashed => ("hollow", 2.6),
            Mark::Dots => ("point faint", 2.2),
        };
        // A legend shows the middle of its line only.
        let shown = if titled { places } else { &places[..places.len().min(1)] };
        for ((x, y), title) in shown {
            let x = if titled { *x } else { *x + 11.0 };
            circle(out, &format!("{colour} {class}"), (x, *y), radius, titled.then_some(title.as_str()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_where_the_axes_say() {
        let series =
            |name: &str, mark| Series { name: name.to_owned(), colour: 0, mark, points: vec![(1.0, 0.0), (4.0, 10.0)] };
        let chart = Chart {
            title: "t<".to_owned(),
            across: ("vCPUs".to_owned(), Kind::Binary),
            up: ("cycles".to_owned(), Kind::Linear),
            series: vec![series("one", Mark::Solid), series("two", Mark::Dashed)],
            size: (400.0, 300.0),
        };
        let mut out = Markup::default();
        chart.write(&mut out);
        let text = out.into_text();
        assert!(text.contains("t&lt;") && text.contains("two: 10 at 4"), "{text}");
        let (left, bottom) = (LEFT, 300.0 - BOTTOM);
        assert!(text.contains(&format!("M{left},{bottom}L")), "{text}");
        assert_eq!(text.matches(" line dashed").count(), 2, "the line and its legend");
        let file = chart.to_svg();
        assert!(file.starts_with("<svg xmlns=") && file.contains("svg .dashed {") && file.ends_with("</svg>\n"));
        assert!(file.contains(&format!("M{left},{bottom}L")) && file.contains("t&lt;"), "{file}");
    }
}
