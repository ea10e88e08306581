//! From values to places on an axis.

use crate::number::{compact, figure};

/// How values are laid out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Evenly from zero to a round number.
    Linear,
    /// Evenly from zero to the greatest.
    Span,
    /// Evenly from the least to the greatest, zero wherever it falls.
    Free,
    /// By powers of ten; values at or below zero have no place.
    Log,
    /// By powers of two, for sizes and processors.
    Binary,
}

/// An axis: its values and how many units of the image it takes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Scale {
    kind: Kind,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Scale {
    /// An axis from `from` to `to` that has a place for each value.
    pub(crate) fn new(kind: Kind, values: impl IntoIterator<Item = f64>, (from, to): (f64, f64)) -> Self {
        let usable = |value: &f64| value.is_finite() && (!matches!(kind, Kind::Log | Kind::Binary) || *value > 0.0);
        let range = values.into_iter().filter(usable).fold(None, |range, value| match range {
            None => Some((value, value)),
            Some((low, high)) => Some((value.min(low), value.max(high))),
        });
        let (low, high) = range.unwrap_or((1.0, 1.0));
        let (low, high) = match kind {
            Kind::Linear => (low.min(0.0), if high > 0.0 { nice(high) } else { 1.0 }),
            Kind::Span => (0.0, if high > 0.0 { high } else { 1.0 }),
            Kind::Free if low < high => (low - 0.04 * (high - low), high + 0.04 * (high - low)),
            Kind::Free => (low - 1.0, high + 1.0),
            // A little room on both sides, and never less than a decade, which would show noise as differences.
            Kind::Log => widened(low / 1.15, high * 1.15, 8.0),
            Kind::Binary if low < high => (low, high),
            Kind::Binary => (low / 2.0, high * 2.0),
        };
        Self { kind, low, high, from, to }
    }

    /// Where a value lies; `None` for one without a place.
    pub(crate) fn place(&self, value: f64) -> Option<f64> {
        if !value.is_finite() {
            return None;
        }
        let share = match self.kind {
            Kind::Linear | Kind::Span | Kind::Free => (value - self.low) / (self.high - self.low),
            Kind::Log | Kind::Binary if value <= 0.0 => return None,
            Kind::Log | Kind::Binary => (value / self.low).ln() / (self.high / self.low).ln(),
        };
        Some(self.from + share.clamp(-0.01, 1.01) * (self.to - self.from))
    }

    /// Values that are written beside the axis.
    pub(crate) fn ticks(&self) -> Vec<(f64, String)> {
        let values = match self.kind {
            Kind::Linear | Kind::Span | Kind::Free => self.even_ticks(),
            Kind::Log => self.decades(),
            Kind::Binary => self.octaves(),
        };
        let text = if self.kind == Kind::Binary { binary_tick } else { tick };
        values.into_iter().map(|value| (value, text(value))).collect()
    }

    fn even_ticks(&self) -> Vec<f64> {
        let wanted = ((self.to - self.from).abs() / 70.0).clamp(2.0, 8.0);
        let step = nice((self.high - self.low) / wanted);
        let first = (self.low / step).ceil() as i64;
        let last = (self.high / step + 1e-9).floor() as i64;
        (first..=last).map(|n| n as f64 * step).collect()
    }

    fn decades(&self) -> Vec<f64> {
        let (first, last) = (self.low.log10().floor() as i32, self.high.log10().ceil() as i32);
        let inside = |value: &f64| *value >= self.low * 0.999 && *value <= self.high * 1.001;
        let room = ((self.to - self.from).abs() / 38.0).max(2.0);
        let of = |parts: &[f64]| -> Vec<f64> {
            let all = (first..=last).flat_map(|decade| parts.iter().map(move |part| part * 10f64.powi(decade)));
            all.filter(inside).collect()
        };
        for parts in [&[1.0, 2.0, 5.0][..], &[1.0, 3.0], &[1.0]] {
            let values = of(parts);
            if values.len() as f64 <= room {
                return values;
            }
        }
        let every = (f64::from(last - first) / room).ceil().max(1.0) as usize;
        of(&[1.0]).into_iter().step_by(every).collect()
    }

    fn octaves(&self) -> Vec<f64> {
        let (first, last) = (self.low.log2().ceil() as i32, (self.high.log2() + 1e-9).floor() as i32);
        let room = ((self.to - self.from).abs() / 38.0).max(2.0);
        let every = (f64::from(last - first + 1) / room).ceil().max(1.0) as usize;
        (first..=last).step_by(every).map(|power| 2f64.powi(power)).collect()
    }
}

fn tick(value: f64) -> String {
    let text = if value.abs() >= 10_000.0 { compact(value) } else { figure(value) };
    // `1.000M` is `1M` on an axis.
    let (digits, suffix) = match text.find(|c: char| c.is_ascii_alphabetic()) {
        Some(at) if !text.contains('e') => text.split_at(at),
        _ => (text.as_str(), ""),
    };
    if digits.contains('.') && !text.contains('e') {
        return format!("{}{suffix}", digits.trim_end_matches('0').trim_end_matches('.'));
    }
    text
}

/// Powers of two with their own suffixes: 32768 is `32Ki`.
fn binary_tick(value: f64) -> String {
    let (mut scaled, mut suffix) = (value, "");
    for next in ["Ki", "Mi", "Gi", "Ti"] {
        if scaled < 1024.0 || value < 10_000.0 {
            break;
        }
        scaled /= 1024.0;
        suffix = next;
    }
    format!("{}{suffix}", figure(scaled))
}

/// At least this factor between both ends.
fn widened(low: f64, high: f64, factor: f64) -> (f64, f64) {
    let missing = (factor / (high / low)).max(1.0).sqrt();
    (low / missing, high * missing)
}

/// The next of 1, 2, 2.5, 4, 5, 8 times a power of ten that is not below.
fn nice(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    let step = [1.0, 2.0, 2.5, 4.0, 5.0, 8.0, 10.0].into_iter().find(|step| value / power <= step * (1.0 + 1e-9));
    step.unwrap_or(10.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_their_places() {
        let scale = Scale::new(Kind::Linear, [3.0, 95.0], (0.0, 200.0));
        assert_eq!((scale.place(0.0), scale.place(50.0), scale.place(f64::NAN)), (Some(0.0), Some(100.0), None));
        let scale = Scale::new(Kind::Binary, [1.0, 64.0, 0.0], (0.0, 60.0));
        assert_eq!((scale.place(8.0).map(f64::round), scale.place(0.0)), (Some(30.0), None));
        let scale = Scale::new(Kind::Log, [0.0, -1.0], (0.0, 10.0));
        assert!(scale.place(1.0).is_some_and(f64::is_finite), "no value at all still makes an axis");
    }

    #[test]
    fn ticks_are_round_and_lie_on_the_axis() {
        let texts = |kind, values: [f64; 2]| -> Vec<String> {
            Scale::new(kind, values, (0.0, 250.0)).ticks().into_iter().map(|(_, text)| text).collect()
        };
        assert_eq!(texts(Kind::Linear, [0.0, 95e6]), ["0", "40M", "80M"]);
        assert_eq!(texts(Kind::Log, [42_000.0, 72e6]), ["100k", "300k", "1M", "3M", "10M", "30M"]);
        assert_eq!(texts(Kind::Binary, [1.0, 16.0]), ["1", "2", "4", "8", "16"]);
        assert_eq!([8192.0, 32_768.0, 4_194_304.0].map(binary_tick), ["8192", "32Ki", "4Mi"]);
        let free = Scale::new(Kind::Free, [-0.2, 0.3], (0.0, 250.0)).ticks();
        assert!(free.iter().any(|(value, _)| *value == 0.0), "{free:?}");
    }
}
