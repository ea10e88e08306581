//! Timelines: a lane for each vCPU or actor, slices of time in it, nested ones inside.
//!
//! A run has hundreds of thousands of slices and an image a thousand columns. Slices of one kind that share a column become one
//! rectangle, as opaque as they cover the column, so that the image's size depends on its width and no short slice looks long; slices that
//! are wide enough to point at keep their title.

use std::collections::BTreeMap;

use super::{Kind, Scale, fit, image, label, line, path, rectangle};
use crate::markup::{Markup, coordinate};
use crate::number::seconds;

/// A stretch of time.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Slice {
    /// When it begins, in seconds.
    pub(crate) at: f64,
    /// How long it is, in seconds.
    pub(crate) took: f64,
    /// Slices that it lies in.
    pub(crate) depth: usize,
    /// Its class in the style sheet.
    pub(crate) class: &'static str,
    /// What is said when one points at it.
    pub(crate) title: String,
}

/// A lane.
#[derive(Clone, Debug)]
pub(crate) struct Lane {
    /// Whose it is.
    pub(crate) name: String,
    /// Its slices.
    pub(crate) slices: Vec<Slice>,
    /// Moments that are marked below it.
    pub(crate) moments: Vec<(f64, &'static str)>,
}

/// A timeline.
#[derive(Clone, Debug)]
pub(crate) struct Lanes {
    /// Name of the image.
    pub(crate) name: String,
    /// How long the run was, in seconds.
    pub(crate) end: f64,
    /// Its lanes.
    pub(crate) all: Vec<Lane>,
}

const WIDTH: f64 = 1080.0;
const NAMES: f64 = 170.0;
const LANE: f64 = 24.0;
const BAND: f64 = 15.0;
const TOP: f64 = 24.0;
/// Slices from this width on have a title of their own.
const WIDE: f64 = 2.5;

impl Lanes {
    /// Draws it.
    pub(crate) fn write(&self, out: &mut Markup) {
        let bottom = TOP + LANE * self.all.len() as f64;
        let scale = Scale::new(Kind::Span, [0.0, self.end], (NAMES, WIDTH - 10.0));
        image(out, (WIDTH, bottom + 4.0), &self.name, |out| {
            for (value, _) in scale.ticks() {
                if let Some(x) = scale.place(value) {
                    line(out, "grid", (x, TOP - 6.0), (x, bottom));
                    label(out, "tick", (x, TOP - 10.0), "middle", &seconds(value));
                }
            }
            for (index, lane) in self.all.iter().enumerate() {
                lane.write(out, &scale, TOP + LANE * index as f64);
            }
        });
    }
}

impl Lane {
    fn write(&self, out: &mut Markup, scale: &Scale, y: f64) {
        label(out, "", (0.0, y + 14.0), "start", &fit(&self.name, NAMES - 8.0));
        // Outer slices first, so that inner ones are drawn over them.
        let mut thin: BTreeMap<(usize, &str), Columns> = BTreeMap::new();
        let mut wide: Vec<(&Slice, f64, f64)> = Vec::new();
        for slice in &self.slices {
            let (Some(from), Some(to)) = (scale.place(slice.at), scale.place(slice.at + slice.took)) else { continue };
            if to - from >= WIDE {
                wide.push((slice, from, to));
            } else {
                thin.entry((slice.depth, slice.class)).or_default().add(from, to);
            }
        }
        wide.sort_by_key(|(slice, _, _)| slice.depth);
        let depths = self.slices.iter().map(|slice| slice.depth).max().map_or(0, |depth| depth + 1);
        for depth in 0..depths {
            let inset = inset(depth);
            for (slice, from, to) in wide.iter().filter(|(slice, _, _)| slice.depth == depth) {
                rectangle(out, slice.class, (*from, y + inset), (to - from, BAND + 2.0 - inset), Some(&slice.title));
            }
            for ((_, class), columns) in thin.range((depth, "")..(depth + 1, "")) {
                columns.draw(out, class, y + inset, BAND + 2.0 - inset);
            }
        }
        let mut marks: BTreeMap<&str, Columns> = BTreeMap::new();
        for (at, class) in &self.moments {
            if let Some(x) = scale.place(*at) {
                marks.entry(class).or_default().add(x, x);
            }
        }
        for (class, columns) in marks {
            columns.draw_plain(out, class, y + BAND + 3.0, 3.0);
        }
    }
}

/// Inner slices leave a strip of the outer one to be seen.
fn inset(depth: usize) -> f64 {
    (2.0 + 3.0 * depth as f64).min(11.0)
}

/// Time in columns of half a unit each: how much of every column is covered.
#[derive(Clone, PartialEq, Debug, Default)]
struct Columns(BTreeMap<i64, f64>);

impl Columns {
    /// Adds a stretch, given in units.
    fn add(&mut self, from: f64, to: f64) {
        let (from, to) = (from * 2.0, to * 2.0);
        let (first, last) = (from.floor() as i64, (to.ceil() as i64).max(from.floor() as i64 + 1));
        for column in first..last {
            let covered = to.min((column + 1) as f64) - from.max(column as f64);
            *self.0.entry(column).or_default() += covered;
        }
    }

    /// Draws neighbours of the same shade as one rectangle: the less of its time is covered, the fainter a column is.
    fn draw(&self, out: &mut Markup, class: &str, y: f64, height: f64) {
        let mut shades: [Vec<(i64, i64)>; SHADES] = Default::default();
        for (column, covered) in &self.0 {
            let shade = ((covered * SHADES as f64).round() as usize).clamp(1, SHADES) - 1;
            match shades[shade].last_mut() {
                Some((_, end)) if *end == *column => *end += 1,
                _ => shades[shade].push((*column, column + 1)),
            }
        }
        for (shade, stretches) in shades.iter().enumerate().filter(|(_, stretches)| !stretches.is_empty()) {
            path(out, &format!("{class} o{}", shade + 1), &rectangles(stretches, y, height));
        }
    }

    /// Draws them alike: moments cover no time.
    fn draw_plain(&self, out: &mut Markup, class: &str, y: f64, height: f64) {
        let stretches: Vec<(i64, i64)> = self.0.keys().map(|column| (*column, column + 1)).collect();
        path(out, class, &rectangles(&stretches, y, height));
    }
}

/// Shades that the style sheet has.
const SHADES: usize = 4;

fn rectangles(stretches: &[(i64, i64)], y: f64, height: f64) -> String {
    let (y, height) = (coordinate(y), coordinate(height));
    let rectangle = |(from, to): &(i64, i64)| {
        let [x, width] = [*from as f64 / 2.0, (to - from) as f64 / 2.0].map(coordinate);
        format!("M{x},{y}h{width}v{height}h-{width}z")
    };
    stretches.iter().map(rectangle).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_does_not_grow_with_the_slices() {
        let slice = |n: usize| Slice { at: n as f64 * 1e-6, took: 4e-7, depth: 0, class: "host", title: String::new() };
        let lane = |count: usize| Lane {
            name: "vcpu 0".to_owned(),
            slices: (0..count).map(slice).collect(),
            moments: Vec::new(),
        };
        let size = |count: usize| {
            let mut out = Markup::default();
            Lanes { name: "n".to_owned(), end: count as f64 * 1e-6, all: vec![lane(count)] }.write(&mut out);
            out.into_text().len()
        };
        assert!(size(100_000) < 60_000, "{}", size(100_000));
    }

    #[test]
    fn neighbours_become_one_and_little_time_is_faint() {
        let mut columns = Columns::default();
        for (from, to) in [(10.0, 10.5), (10.5, 11.0), (20.0, 20.05), (5.0, 5.2), (5.25, 5.3)] {
            columns.add(from, to);
        }
        let mut out = Markup::default();
        columns.draw(&mut out, "wait", 1.0, 2.0);
        let text = out.into_text();
        assert!(text.contains("<path class=\"wait o4\" d=\"M10,1h1v2h-1z\">"), "{text}");
        assert!(text.contains("<path class=\"wait o1\" d=\"M20,1h0.5v2h-0.5z\">"), "{text}");
        assert!(text.contains("<path class=\"wait o2\" d=\"M5,1h0.5v2h-0.5z\">"), "half of the time: {text}");
    }

    #[test]
    fn wide_slices_say_what_they_are_and_inner_ones_lie_on_them() {
        let slice = |at, took, depth, title: &str| Slice { at, took, depth, class: "guest", title: title.to_owned() };
        let lane = Lane {
            name: "v".to_owned(),
            slices: vec![slice(0.2, 0.5, 1, "inner"), slice(0.0, 1.0, 0, "outer")],
            moments: vec![(0.5, "ipi")],
        };
        let mut out = Markup::default();
        Lanes { name: "n".to_owned(), end: 1.0, all: vec![lane] }.write(&mut out);
        let text = out.into_text();
        assert!(text.find("outer").unwrap() < text.find("inner").unwrap(), "{text}");
        assert!(text.contains("class=\"ipi\""));
    }
}
