//! Samples, and the file's lines.

use crate::clock::Clock;

/// Columns of the file, in their order.
pub const COLUMNS: [&str; 13] = [
    "bench",
    "variant",
    "n",
    "unit",
    "runs",
    "reps",
    "tsc_median",
    "tsc_min",
    "tsc_run_lo",
    "tsc_run_hi",
    "spread_pct",
    "ns_median",
    "core_cycles_median",
];

/// All samples of a point, in ticks per unit.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Row {
    /// Family.
    pub(crate) bench: &'static str,
    /// Curve or event.
    pub(crate) variant: String,
    /// The point.
    pub(crate) n: u64,
    /// What one of is measured.
    pub(crate) unit: &'static str,
    /// Samples of each run.
    pub(crate) runs: Vec<Vec<f64>>,
}

impl Row {
    /// The cells of the row's line.
    fn cells(&self, clock: &Clock) -> [String; COLUMNS.len()] {
        let all: Vec<f64> = self.runs.iter().flatten().copied().collect();
        let medians: Vec<f64> = self.runs.iter().map(|run| median(run)).collect();
        let middle = median(&all);
        let least = |values: &[f64]| values.iter().copied().fold(f64::INFINITY, f64::min);
        let (low, high) = (least(&medians), medians.iter().copied().fold(0.0, f64::max));
        let spread = if middle > 0.0 { 100.0 * (high - low) / middle } else { 0.0 };
        [
            self.bench.to_owned(),
            self.variant.clone(),
            self.n.to_string(),
            self.unit.to_owned(),
            self.runs.len().to_string(),
            all.len().to_string(),
            format!("{middle:.2}"),
            format!("{:.2}", least(&all)),
            format!("{low:.2}"),
            format!("{high:.2}"),
            format!("{spread:.1}"),
            format!("{:.3}", middle / clock.per_ns),
            format!("{:.2}", middle / clock.per_cycle),
        ]
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

/// The file. Names hold no comma, so that nothing needs quotes.
pub(crate) fn write_csv(rows: &[Row], clock: &Clock) -> String {
    let mut text = COLUMNS.join(",") + "\n";
    for row in rows {
        text += &row.cells(clock).join(",");
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_medians_of_all_samples_and_the_spread_of_runs() {
        let runs = vec![vec![10.0, 12.0, 11.0], vec![20.0, 22.0, 21.0], vec![14.0, 15.0, 99.0]];
        let row = Row { bench: "chase", variant: "dense4k".to_owned(), n: 8, unit: "per_load", runs };
        let text = write_csv(&[row], &Clock { per_ns: 2.0, per_cycle: 0.5 });
        assert_eq!(text.lines().nth(1), Some("chase,dense4k,8,per_load,3,9,15.00,10.00,11.00,21.00,66.7,7.500,30.00"));
    }
}
