//! Plots as SVG: within a page, from which they take their colours, or as a file of their own.
//!
//! ```
//! use mmu_report::svg::{Chart, Kind, Mark, Series};
//! let series = Series { name: "zap".to_owned(), colour: 0, mark: Mark::Solid, points: vec![(1.0, 12.0), (8.0, 90.0)] };
//! let chart = Chart {
//!     title: "Zap beside busy vCPUs".to_owned(),
//!     across: ("vCPUs".to_owned(), Kind::Binary),
//!     up: ("ms".to_owned(), Kind::Log),
//!     series: vec![series],
//!     size: (640.0, 400.0),
//! };
//! assert!(chart.to_svg().starts_with("<svg xmlns="));
//! ```

mod lanes;
mod lines;
mod panels;
mod scale;

pub(crate) use lanes::{Lane, Lanes, Slice};
pub use lines::{Chart, Mark, Series};
pub(crate) use panels::{Panel, Panels, Value};
pub use scale::Kind;
pub(crate) use scale::Scale;

use crate::markup::{Markup, coordinate};

/// The colours of plots, and how their parts are drawn.
pub(crate) const STYLE: &str = include_str!("style.css");

/// Colours of series that the style sheet has; further ones begin again.
pub const COLOURS: usize = 8;

/// A small square of a class, for a legend.
pub(crate) fn key(out: &mut Markup, class: &str) {
    image(out, (11.0, 11.0), "", |out| rectangle(out, class, (0.0, 0.0), (11.0, 11.0), None));
}

/// A place or an extent.
type Point = (f64, f64);

fn line(out: &mut Markup, class: &str, from: Point, to: Point) {
    let [x1, y1, x2, y2] = [from.0, from.1, to.0, to.1].map(coordinate);
    out.shape("line", &[("class", class), ("x1", &x1), ("y1", &y1), ("x2", &x2), ("y2", &y2)], None);
}

fn rectangle(out: &mut Markup, class: &str, at: Point, size: Point, title: Option<&str>) {
    let [x, y, width, height] = [at.0, at.1, size.0.max(0.0), size.1.max(0.0)].map(coordinate);
    let attributes = [("class", class), ("x", &*x), ("y", &y), ("width", &width), ("height", &height)];
    out.shape("rect", &attributes, title);
}

fn circle(out: &mut Markup, class: &str, at: Point, radius: f64, title: Option<&str>) {
    let [x, y, r] = [at.0, at.1, radius].map(coordinate);
    out.shape("circle", &[("class", class), ("cx", &x), ("cy", &y), ("r", &r)], title);
}

fn path(out: &mut Markup, class: &str, data: &str) {
    out.shape("path", &[("class", class), ("d", data)], None);
}

/// Text by its anchor: `start`, `middle` or `end`.
fn label(out: &mut Markup, class: &str, at: Point, anchor: &str, text: &str) {
    let [x, y] = [at.0, at.1].map(coordinate);
    out.leaf("text", &[("class", class), ("x", &x), ("y", &y), ("text-anchor", anchor)], text);
}

/// An image of this size, with a name for those who do not see it.
fn image(out: &mut Markup, (width, height): Point, name: &str, inside: impl FnOnce(&mut Markup)) {
    let view = format!("0 0 {} {}", coordinate(width), coordinate(height));
    let [width, height] = [width, height].map(coordinate);
    let attributes =
        [("viewBox", &*view), ("width", &width), ("height", &height), ("role", "img"), ("aria-label", name)];
    out.element("svg", &attributes, inside);
}

/// A file that is nothing but an image, with a margin around it.
fn file(out: &mut Markup, (width, height): Point, name: &str, inside: impl FnOnce(&mut Markup)) {
    let (x, y, width, height) = (-12.0, -8.0, width + 24.0, height + 16.0);
    let view = [x, y, width, height].map(coordinate).join(" ");
    let attributes =
        [("xmlns", "http://www.w3.org/2000/svg"), ("viewBox", &*view), ("role", "img"), ("aria-label", name)];
    out.element("svg", &attributes, |out| {
        out.element("style", &[], |out| out.constant(STYLE));
        rectangle(out, "paper", (x, y), (width, height), None);
        inside(out);
    });
}

/// About how wide a text is, at the size that the style sheet gives to labels.
fn text_width(text: &str) -> f64 {
    6.3 * text.chars().count() as f64
}

/// A text that takes no more room than this, with an ellipsis where it was cut.
fn fit(text: &str, width: f64) -> String {
    let most = (width / 6.3).floor() as usize;
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}
