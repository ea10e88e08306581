//! Rows with a name each, and panels beside each other that show something of every row: bars, spreads, dots.

use super::{Kind, Point, Scale, circle, fit, image, label, line, rectangle, text_width};
use crate::markup::Markup;
use crate::number::compact;

/// What a panel shows of one row.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// A bar from zero, with its figure.
    Bar(f64),
    /// A dot with its figure.
    Dot(f64),
    /// A bar, and a mark that it should not pass.
    Goal(f64, f64),
    /// How something is spread: median, 99th percentile, greatest.
    Spread {
        /// Median.
        p50: f64,
        /// 99th percentile.
        p99: f64,
        /// Greatest.
        max: f64,
    },
    /// Published and simulated.
    Pair(Option<f64>, f64),
    /// Nothing.
    None,
}

impl Value {
    fn values(&self) -> Vec<f64> {
        match *self {
            Value::Bar(value) | Value::Dot(value) => vec![value],
            Value::Goal(value, goal) => vec![value, goal],
            Value::Spread { p50, p99, max } => vec![p50, p99, max],
            Value::Pair(published, simulated) => published.into_iter().chain([simulated]).collect(),
            Value::None => Vec::new(),
        }
    }
}

/// A panel: one thing about every row.
#[derive(Clone, Debug)]
pub(crate) struct Panel {
    /// What it shows.
    pub(crate) title: &'static str,
    /// Unit of its axis.
    pub(crate) unit: &'static str,
    /// Its axis.
    pub(crate) kind: Kind,
    /// A value that is marked across all rows.
    pub(crate) mark: Option<f64>,
    /// One for each row.
    pub(crate) values: Vec<Value>,
}

/// Rows and their panels.
#[derive(Clone, Debug)]
pub(crate) struct Panels {
    /// Name of the image.
    pub(crate) name: String,
    /// Rows: their names, and the group that begins with a row.
    pub(crate) rows: Vec<(String, Option<String>)>,
    /// Panels from left to right.
    pub(crate) across: Vec<Panel>,
}

const WIDTH: f64 = 1080.0;
const ROW: f64 = 19.0;
const GROUP: f64 = 22.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 6.0;
const GAP: f64 = 26.0;
/// Room for a figure behind the longest bar.
const FIGURE: f64 = 52.0;

impl Panels {
    /// Draws them.
    pub(crate) fn write(&self, out: &mut Markup) {
        let longest = self.rows.iter().map(|(name, _)| text_width(name) + 10.0).fold(80.0, f64::max).min(350.0);
        let groups = self.rows.iter().filter(|(_, group)| group.is_some()).count();
        let bottom = TOP + ROW * self.rows.len() as f64 + GROUP * groups as f64;
        let count = self.across.len().max(1) as f64;
        let width = ((WIDTH - longest) / count - GAP).max(60.0);
        image(out, (WIDTH, bottom + BOTTOM), &self.name, |out| {
            let places = self.names(out, longest);
            for (index, panel) in self.across.iter().enumerate() {
                let left = longest + GAP / 2.0 + index as f64 * (width + GAP);
                panel.write(out, (left, left + width), bottom, &places, &self.rows);
            }
        });
    }

    /// Writes the names and says where the rows are.
    fn names(&self, out: &mut Markup, width: f64) -> Vec<f64> {
        let mut y = TOP;
        let mut places = Vec::with_capacity(self.rows.len());
        for (name, group) in &self.rows {
            if let Some(group) = group {
                label(out, "strong", (0.0, y + GROUP - 7.0), "start", group);
                y += GROUP;
            }
            label(out, "", (8.0, y + 14.0), "start", &fit(name, width));
            places.push(y);
            y += ROW;
        }
        places
    }
}

impl Panel {
    fn write(
        &self,
        out: &mut Markup,
        (left, right): Point,
        bottom: f64,
        places: &[f64],
        rows: &[(String, Option<String>)],
    ) {
        let figures = self.values.iter().any(|value| !matches!(value, Value::Pair(..) | Value::None));
        let room = if figures { FIGURE } else { 8.0 };
        let values = self.values.iter().flat_map(Value::values).chain(self.mark);
        let scale = Scale::new(self.kind, values, (left, right - room));
        let unit = if self.unit.is_empty() { String::new() } else { format!(", {}", self.unit) };
        label(out, "strong", (left, 14.0), "start", &fit(&format!("{}{unit}", self.title), right - left + GAP));
        for (value, text) in scale.ticks() {
            if let Some(x) = scale.place(value) {
                line(out, "grid", (x, TOP - 8.0), (x, bottom));
                label(out, "tick", (x, TOP - 13.0), "middle", &text);
            }
        }
        if let Some(x) = self.mark.and_then(|mark| scale.place(mark)) {
            line(out, "mark", (x, TOP - 8.0), (x, bottom));
        }
        for ((value, y), (name, _)) in self.values.iter().zip(places).zip(rows) {
            draw(out, value, &scale, (left, *y), &format!("{name}: {}", self.title));
        }
    }
}

fn draw(out: &mut Markup, value: &Value, scale: &Scale, (left, y): Point, what: &str) {
    let middle = y + ROW / 2.0;
    let figure =
        |out: &mut Markup, x: f64, value: f64| label(out, "figure", (x, middle + 4.0), "start", &compact(value));
    match *value {
        Value::Bar(value) | Value::Goal(value, _) => {
            let Some(x) = scale.place(value) else { return };
            let zero = scale.place(0.0).unwrap_or(left);
            rectangle(
                out,
                "bar",
                (zero.min(x), y + 4.0),
                ((x - zero).abs().max(1.0), ROW - 8.0),
                Some(&format!("{what}: {}", compact(value))),
            );
            figure(out, x.max(zero) + 5.0, value);
        }
        Value::Dot(value) => {
            // A value of zero has no place on a logarithmic axis: it is written at its foot.
            let Some(x) = scale.place(value) else { return figure(out, left + 2.0, value) };
            line(out, "stem", (left, middle), (x, middle));
            circle(out, "dot", (x, middle), 3.5, Some(&format!("{what}: {}", compact(value))));
            figure(out, x + 7.0, value);
        }
        Value::Spread { p50, p99, max } => spread(out, scale, [p50, p99, max], (left, y), what),
        Value::Pair(published, simulated) => pair(out, scale, (published, simulated), middle, what),
        Value::None => {}
    }
    if let Value::Goal(_, goal) = *value
        && let Some(x) = scale.place(goal)
    {
        line(out, "goal", (x, y + 2.0), (x, y + ROW - 2.0));
    }
}

fn spread(out: &mut Markup, scale: &Scale, [p50, p99, max]: [f64; 3], (left, y): Point, what: &str) {
    let middle = y + ROW / 2.0;
    if max <= 0.0 {
        return label(out, "figure", (left + 2.0, middle + 4.0), "start", "0");
    }
    let [from, tail, to] = [p50, p99, max].map(|value| scale.place(value).unwrap_or(left));
    let title = format!("{what}: p50 {}, p99 {}, max {}", compact(p50), compact(p99), compact(max));
    line(out, "range", (from, middle), (to.max(from), middle));
    line(out, "p99", (tail, y + 4.0), (tail, y + ROW - 4.0));
    circle(out, "dot", (from, middle), 3.5, Some(&title));
    circle(out, "ring", (to, middle), 3.5, Some(&title));
    label(out, "figure", (to + 7.0, middle + 4.0), "start", &compact(max));
}

fn pair(out: &mut Markup, scale: &Scale, (published, simulated): (Option<f64>, f64), middle: f64, what: &str) {
    let [theirs, ours] = [published, Some(simulated)].map(|value| value.and_then(|value| scale.place(value)));
    if let (Some(a), Some(b)) = (theirs, ours) {
        line(out, "range", (a, middle), (b, middle));
    }
    let title = published.map_or_else(
        || format!("{what}: simulated {}", compact(simulated)),
        |published| format!("{what}: published {}, simulated {}", compact(published), compact(simulated)),
    );
    if let Some(x) = theirs {
        circle(out, "ring", (x, middle), 4.5, Some(&title));
    }
    if let Some(x) = ours {
        circle(out, "dot", (x, middle), 3.5, Some(&title));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_in_every_panel() {
        let rows = vec![("a<b".to_owned(), Some("group".to_owned())), ("c".to_owned(), None)];
        let bars = Panel {
            title: "zap",
            unit: "cycles",
            kind: Kind::Linear,
            mark: None,
            values: vec![Value::Bar(5e7), Value::Bar(1e8)],
        };
        let spreads = vec![Value::Spread { p50: 1.0, p99: 2.0, max: 4.0 }, Value::None];
        let spread = Panel { title: "lost", unit: "cycles", kind: Kind::Log, mark: Some(2.0), values: spreads };
        let mut out = Markup::default();
        Panels { name: "n".to_owned(), rows, across: vec![bars, spread] }.write(&mut out);
        let text = out.into_text();
        assert!(text.contains("a&lt;b") && !text.contains("a<b"), "{text}");
        assert_eq!(text.matches("class=\"bar\"").count(), 2);
        assert_eq!((text.matches("class=\"p99\"").count(), text.matches("class=\"mark\"").count()), (1, 1));
        assert!(text.contains("a&lt;b: lost: p50 1, p99 2, max 4"), "{text}");
    }
}
