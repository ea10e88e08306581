//! The descent over prices: what counted events cost, with the counts given.
//!
//! Most prices concern few rows. Which ones is found by moving each price once; afterwards only those rows are predicted again.

use std::collections::{BTreeMap, BTreeSet};

use mmu_core::machine::Machine;

use super::constants::{PRICES, Price};
use super::work::{Row, predicted};
use crate::chase::Counts;
use crate::score::Band;

/// Sweeps over all prices at most.
const SWEEPS: u32 = 60;
/// Errors that are closer than this are the same.
const DIFFERENT: f64 = 1e-9;
/// A step is small enough at this share of a price.
const FINE: f64 = 0.004;
/// What a step must gain.
const GAIN: f64 = 1e-12;

/// A price that rows say.
struct Said {
    price: &'static Price,
    step: f64,
    /// The rows that it concerns.
    rows: Vec<usize>,
}

struct Descent<'a, 'b> {
    machine: &'b mut Machine,
    counts: &'b [Option<Counts>],
    rows: Vec<&'b Row<'a>>,
    /// What a row's error counts for: less in a band of many rows and of a wide goal.
    weights: Vec<f64>,
    errors: Vec<f64>,
}

/// Fits the prices to rows: the error that is left, and which prices the rows say.
pub(super) fn fit(machine: &mut Machine, counts: &[Option<Counts>], rows: &[&Row<'_>]) -> (f64, BTreeSet<usize>) {
    let rows: Vec<&Row<'_>> = rows.iter().copied().filter(|row| predicted(machine, counts, row).is_some()).collect();
    let mut bands: BTreeMap<Band, f64> = BTreeMap::new();
    for row in &rows {
        *bands.entry(row.band).or_default() += 1.0;
    }
    let weights = rows.iter().map(|row| 1.0 / (bands[&row.band] * row.band.goal())).collect();
    let mut descent = Descent { machine, counts, rows, weights, errors: Vec::new() };
    descent.errors = (0..descent.rows.len()).map(|row| descent.error(row)).collect();
    let mut said: BTreeMap<usize, Said> =
        PRICES.iter().enumerate().filter_map(|(number, price)| Some((number, descent.probe(price)?))).collect();
    for _ in 0..SWEEPS {
        let moved = said.values_mut().map(|said| descent.step(said)).filter(|&moved| moved).count();
        if moved == 0 {
            break;
        }
    }
    (descent.total(), said.into_keys().collect())
}

impl Descent<'_, '_> {
    fn error(&self, row: usize) -> f64 {
        let row = self.rows[row];
        let predicted = predicted(self.machine, self.counts, row).unwrap_or(row.measured.core_cycles_median);
        (predicted / row.measured.core_cycles_median - 1.0).abs()
    }

    fn total(&self) -> f64 {
        self.errors.iter().zip(&self.weights).map(|(error, weight)| error * weight).sum()
    }

    /// What the total changes by, with one price moved; the machine is as before afterwards.
    fn moved(&mut self, price: &Price, value: f64, rows: &[usize]) -> f64 {
        let before = (price.get)(self.machine).unwrap_or(price.start);
        (price.set)(self.machine, value.clamp(price.range.0, price.range.1));
        let change = rows.iter().map(|&row| (self.error(row) - self.errors[row]) * self.weights[row]).sum();
        (price.set)(self.machine, before);
        change
    }

    /// Moves a price up and down: `None` if no row notices.
    fn probe(&mut self, price: &'static Price) -> Option<Said> {
        let value = (price.get)(self.machine)?;
        let notices = |descent: &mut Self, row: usize| {
            let moves = [value * 1.5 + 1.0, value * 0.5];
            moves.iter().any(|&moved| descent.moved(price, moved, &[row]).abs() > DIFFERENT * descent.weights[row])
        };
        let noticed: Vec<usize> = (0..self.rows.len()).filter(|&row| notices(self, row)).collect();
        let first = self.rows[*noticed.first()?];
        // Several chases are limited by the scarcest of several things, events by the dearer of two: which one it is changes with the prices.
        let limited = |row: &Row<'_>| match &row.chase {
            Some((curve, _)) => curve.chains > 1,
            None => first.chase.is_none(),
        };
        let mut rows: BTreeSet<usize> = noticed.into_iter().collect();
        rows.extend((0..self.rows.len()).filter(|&row| limited(self.rows[row])));
        Some(Said { price, step: (value * 0.5).max(1.0), rows: rows.into_iter().collect() })
    }

    /// Steps the better way, or halves the step; `false` once it is fine enough.
    fn step(&mut self, said: &mut Said) -> bool {
        let Said { price, step, rows } = said;
        let value = (price.get)(self.machine).unwrap_or(price.start);
        if *step < (value * FINE).max(0.01) {
            return false;
        }
        let tried = [value + *step, value - *step];
        let changes = tried.map(|tried| self.moved(price, tried, rows));
        let better = usize::from(changes[1] < changes[0]);
        if changes[better] < -GAIN {
            (price.set)(self.machine, tried[better].clamp(price.range.0, price.range.1));
            for &row in rows.iter() {
                self.errors[row] = self.error(row);
            }
        } else {
            *step /= 2.0;
        }
        true
    }
}
