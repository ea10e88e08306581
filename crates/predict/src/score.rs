//! Predictions against a file of measurements.
//!
//! The file has the columns `bench`, `variant`, `n`, `unit`, `ns_median` and `core_cycles_median`, others besides; a row is a
//! point. Points of latency curves are judged in bands by the number of pages that they touch, since each band is another part
//! of the machine: TLBs (A), the second-level TLB's end and walks that caches serve (B), tables in outer caches (C), tables and
//! data in memory (D).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::curve::Curve;
use crate::prediction::Prediction;

/// A measured point.
#[derive(Clone, PartialEq, Debug, Deserialize, Serialize)]
pub struct Measured {
    /// Family of the benchmark.
    pub bench: String,
    /// Name of the curve or event.
    pub variant: String,
    /// The point.
    pub n: u64,
    /// What one of is measured.
    pub unit: String,
    /// Median in nanoseconds.
    pub ns_median: f64,
    /// Median in core cycles.
    pub core_cycles_median: f64,
}

/// A file that is none of measurements.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadError {
    line: u64,
    what: String,
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "line {}: ", self.line)?;
        }
        write!(
            f,
            "{}; a file of measurements has a heading and the columns bench, variant, n, unit, ns_median and core_cycles_median",
            self.what
        )
    }
}
impl std::error::Error for ReadError {}

/// Reads a file of measurements.
///
/// # Errors
/// The first line that is no measured point, or a file without any.
pub fn read(text: &str) -> Result<Vec<Measured>, ReadError> {
    let mut reader = csv::ReaderBuilder::new().comment(Some(b'#')).trim(csv::Trim::All).from_reader(text.as_bytes());
    let mut rows = Vec::new();
    for row in reader.deserialize::<Measured>() {
        let row = row.map_err(|error| ReadError {
            line: error.position().map_or(0, csv::Position::line),
            what: match error.kind() {
                csv::ErrorKind::Deserialize { err, .. } => err.to_string(),
                _ => error.to_string(),
            },
        })?;
        if !(row.core_cycles_median.is_finite() && row.ns_median.is_finite() && row.core_cycles_median >= 0.0) {
            return Err(ReadError {
                line: reader_line(rows.len()),
                what: format!("{} of {} is no duration", row.core_cycles_median, row.variant),
            });
        }
        rows.push(row);
    }
    if rows.is_empty() {
        return Err(ReadError { line: 0, what: "there is no measured point".to_owned() });
    }
    Ok(rows)
}

fn reader_line(rows: usize) -> u64 {
    rows as u64 + 2
}

/// Which part of a machine a point shows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub enum Band {
    /// At most 1,024 pages.
    A,
    /// 1,025 to 8,192.
    B,
    /// 8,193 to 65,536.
    C,
    /// More.
    D,
    /// Not a latency curve.
    Events,
}

impl Band {
    /// All of them.
    pub const ALL: [Band; 5] = [Band::A, Band::B, Band::C, Band::D, Band::Events];

    /// The band of a point of a curve, or of an event.
    pub fn of(curve: Option<&Curve>, n: u64) -> Self {
        match curve.map(|curve| curve.pages(n)) {
            None => Band::Events,
            Some(0..=1024) => Band::A,
            Some(1025..=8192) => Band::B,
            Some(8193..=65_536) => Band::C,
            Some(_) => Band::D,
        }
    }

    /// The largest mean error that is aimed at.
    pub const fn goal(self) -> f64 {
        match self {
            Band::A => 0.02,
            Band::B => 0.05,
            Band::C | Band::D | Band::Events => 0.20,
        }
    }
}

/// A measured point with its prediction.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Scored {
    /// What was measured.
    pub measured: Measured,
    /// What was predicted.
    pub predicted: Prediction,
    /// Its band.
    pub band: Band,
    /// Predicted over measured, less one.
    pub error: f64,
}

impl Scored {
    /// Puts both together.
    pub fn new(measured: Measured, predicted: Prediction) -> Self {
        let curve = measured.variant.parse::<Curve>().ok();
        let band = Band::of(curve.as_ref(), measured.n);
        let error =
            if measured.core_cycles_median > 0.0 { predicted.cycles / measured.core_cycles_median - 1.0 } else { 0.0 };
        Self { measured, predicted, band, error }
    }
}

/// Mean absolute error of some points.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Mean {
    /// Points.
    pub points: usize,
    /// Their mean absolute error as a share of the measured value.
    pub error: f64,
    /// The largest of them.
    pub worst: f64,
}

impl Mean {
    /// Of these points; `None` without any.
    pub fn of<'a>(points: impl Iterator<Item = &'a Scored>) -> Option<Self> {
        let errors: Vec<f64> = points.map(|point| point.error.abs()).collect();
        let worst = errors.iter().copied().fold(0.0, f64::max);
        let points = errors.len();
        (points > 0).then(|| Self { points, error: errors.iter().sum::<f64>() / points as f64, worst })
    }
}

/// A knee: where a curve leaves a plateau.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Knee {
    /// The curve.
    pub curve: String,
    /// Number of the rise, from one on.
    pub rise: usize,
    /// Where the measured curve is half-way up.
    pub measured: f64,
    /// Where the predicted one is.
    pub predicted: f64,
}

impl Knee {
    /// Predicted over measured, less one.
    pub fn error(&self) -> f64 {
        self.predicted / self.measured - 1.0
    }
}

/// A rise has at least this factor.
const RISE: f64 = 1.3;

/// The knees of one curve: measured stretches that rise by more than a third, and where the predicted curve crosses the same
/// height.
pub fn knees(points: &[&Scored]) -> Vec<Knee> {
    let mut points = points.to_vec();
    points.sort_by_key(|point| point.measured.n);
    let measured: Vec<(f64, f64)> =
        points.iter().map(|p| (p.measured.n as f64, p.measured.core_cycles_median)).collect();
    let predicted: Vec<(f64, f64)> = points.iter().map(|p| (p.measured.n as f64, p.predicted.cycles)).collect();
    let mut found = Vec::new();
    let mut start = 0;
    while start + 1 < measured.len() {
        // A rise goes on while each step adds a twentieth at least.
        let mut end = start;
        while end + 1 < measured.len() && measured[end + 1].1 > measured[end].1 * 1.05 {
            end += 1;
        }
        let (low, high) = (measured[start].1, measured[end].1);
        if end > start && high > low * RISE {
            let half = f64::midpoint(low, high);
            if let (Some(at), Some(theirs)) = (crossing(&measured, half, start), crossing(&predicted, half, 0)) {
                let curve = points[start].measured.variant.clone();
                found.push(Knee { curve, rise: found.len() + 1, measured: at, predicted: theirs });
            }
        }
        start = end.max(start + 1);
    }
    found
}

/// Where a curve first crosses a height, between points by the logarithm of `n`.
fn crossing(curve: &[(f64, f64)], height: f64, from: usize) -> Option<f64> {
    curve[from..].windows(2).find(|pair| pair[0].1 <= height && pair[1].1 > height).map(|pair| {
        let share = (height - pair[0].1) / (pair[1].1 - pair[0].1);
        (pair[0].0.ln() + share * (pair[1].0.ln() - pair[0].0.ln())).exp()
    })
}

/// How many pairs of curves stand in the measured order, of those that the measurement tells apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct OrderScore {
    /// Pairs at the same point that are more than a tenth apart.
    pub pairs: usize,
    /// Those whose prediction has them the same way round.
    pub right: usize,
}

/// Compares the order of curves of one family at each point that they share.
pub fn order(points: &[Scored]) -> OrderScore {
    let mut score = OrderScore::default();
    for (index, a) in points.iter().enumerate() {
        for b in &points[index + 1..] {
            let comparable = a.measured.bench == b.measured.bench && a.measured.n == b.measured.n;
            let (x, y) = (a.measured.core_cycles_median, b.measured.core_cycles_median);
            if !comparable || a.band == Band::Events || b.band == Band::Events || (x - y).abs() <= 0.1 * x.min(y) {
                continue;
            }
            score.pairs += 1;
            score.right += usize::from((x < y) == (a.predicted.cycles < b.predicted.cycles));
        }
    }
    score
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(variant: &str, n: u64, measured: f64, predicted: f64) -> Scored {
        let measured = Measured {
            bench: "chase".to_owned(),
            variant: variant.to_owned(),
            n,
            unit: "per_load".to_owned(),
            ns_median: measured / 4.0,
            core_cycles_median: measured,
        };
        let cycles = predicted;
        Scored::new(measured, Prediction { curve: variant.to_owned(), n, cycles, ns: cycles / 4.0, events: None })
    }

    #[test]
    fn bands_are_by_pages() {
        let band = |name: &str, n| Band::of(name.parse().ok().as_ref(), n);
        assert_eq!(band("dense4k", 1024), Band::A);
        assert_eq!(band("packed64_4k", 1025), Band::A);
        assert_eq!(band("zero4k", 1025), Band::B);
        assert_eq!(band("pde_2M_T16384", 8), Band::C);
        assert_eq!(band("dense4k", 65_537), Band::D);
        assert_eq!(band("munmap_1t", 4), Band::Events);
    }

    #[test]
    fn knees_are_found_where_curves_rise_half_way() {
        let heights = [(64, 5.0, 5.0), (96, 5.0, 5.0), (128, 12.0, 5.0), (192, 12.0, 12.0), (256, 12.0, 12.0)];
        let points: Vec<Scored> = heights.iter().map(|&(n, m, p)| point("dense4k", n, m, p)).collect();
        let knees = knees(&points.iter().collect::<Vec<_>>());
        assert_eq!(knees.len(), 1);
        assert!((knees[0].measured - 110.85).abs() < 0.1 && (knees[0].predicted - 156.8).abs() < 0.1, "{knees:?}");
        assert!((knees[0].error() - 0.414).abs() < 0.01);
    }

    #[test]
    fn errors_and_order_are_counted() {
        let points =
            [point("dense4k", 64, 10.0, 11.0), point("zero4k", 64, 20.0, 8.0), point("dense4k", 96, 10.0, 10.0)];
        let mean = Mean::of(points.iter()).unwrap();
        assert_eq!(mean.points, 3);
        assert!((mean.error - 0.7 / 3.0).abs() < 1e-12 && (mean.worst - 0.6).abs() < 1e-12);
        assert_eq!(order(&points), OrderScore { pairs: 1, right: 0 });
        assert_eq!(Mean::of([].iter()), None);
    }

    #[test]
    fn files_are_read_and_wrong_ones_refused_with_the_line() {
        let head = "bench,variant,n,unit,runs,ns_median,core_cycles_median\n";
        let rows = read(&format!("{head}chase,dense4k,8,per_load,8,1.281,5.00\n")).unwrap();
        assert_eq!((rows.len(), rows[0].core_cycles_median), (1, 5.0));
        let message = |text: &str| read(text).unwrap_err().to_string();
        assert!(message(&format!("{head}chase,dense4k,x,per_load,8,1.281,5.00\n")).starts_with("line 2: "));
        assert!(message(head).contains("no measured point"));
        assert!(message("a,b\n1,2\n").contains("columns bench, variant"));
        assert!(message(&format!("{head}chase,dense4k,8,per_load,8,1.281,NaN\n")).contains("no duration"));
    }
}
