//! Constants fitted to measured curves by a search, and what such a fit says about curves that it has not seen.
//!
//! A sheet whose constants were chosen with every curve at hand proves little by agreeing with them. [`cross_validate`] leaves out one
//! [family](family::family) of rows after the other, fits the [constants] to the others from a neutral beginning, and predicts the
//! family that was left out. What is not fitted stays: what vendors have published (entries of first-level TLBs, sizes of inner caches), the
//! rules of walks, and the form of the model itself, which its authors chose with all curves in view; no search can take that back.
//!
//! The search is a descent along one constant at a time: for prices by steps that halve, for structures by trying every value. It is the same
//! every time. What it makes small is the mean error of each band over the band's goal, added up.

pub mod constants;
pub mod family;

use std::collections::{BTreeMap, BTreeSet};

use mmu_core::Format;
use mmu_core::machine::Machine;
use rayon::prelude::*;
use serde::Serialize;

use crate::chase::{Counts, Effort};
use crate::curve::Curve;
use crate::layout::{LayoutError, Surroundings};
use crate::prediction::{Prediction, cycles, placements};
use crate::score::{Band, Measured, Scored};
use crate::software;
use constants::{PRICES, Price, STRUCTURES, Setting, Spot};

/// A constant with the value that a search found.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Fitted {
    /// Its place in the sheet.
    pub place: String,
    /// The value; `None` where no row says it and the search left it at its beginning.
    pub value: Option<String>,
    /// What it is, and which rows say it.
    pub from: &'static str,
}

/// A fit.
#[derive(Clone, PartialEq, Debug)]
pub struct Fit {
    /// The machine, with what is fitted beside its sheet.
    pub setting: Setting,
    /// The constants.
    pub constants: Vec<Fitted>,
    structures: Vec<usize>,
}

impl Fit {
    /// A machine with constants that somebody else has found.
    pub fn of(machine: Machine, constants: Vec<Fitted>) -> Self {
        let structures = vec![0; STRUCTURES.len()];
        Self { setting: Setting { machine, around: Surroundings::default() }, constants, structures }
    }
}

/// One family, predicted by a fit to all others.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct LeftOut {
    /// The family.
    pub family: String,
    /// Its points, predicted from the others.
    pub points: Vec<Scored>,
    /// The constants of that fit.
    pub constants: Vec<Fitted>,
    /// Constants that this family alone says.
    pub unsaid: Vec<String>,
}

/// A cross-validation.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct CrossValidation {
    /// Constants fitted to all rows.
    pub constants: Vec<Fitted>,
    /// All rows, predicted by that fit.
    pub points: Vec<Scored>,
    /// Each family by a fit to the others.
    pub families: Vec<LeftOut>,
    /// Rows in no family: events that are a figure of their own.
    pub alone: usize,
}

/// Fits the constants to all rows that belong to a family.
///
/// # Errors
/// A curve whose tables cannot be built.
pub fn fit<F1: Format, F2: Format>(
    machine: &Machine,
    formats: (F1, F2),
    rows: &[Measured],
    seed: u64,
) -> Result<Fit, LayoutError> {
    let mut work = Work::new(machine, formats, rows, seed);
    let every: Vec<usize> = (0..work.rows.len()).collect();
    work.fit(&every)
}

/// Leaves out one family after the other; `progress` is told each one's name before its turn.
///
/// # Errors
/// A curve whose tables cannot be built.
pub fn cross_validate<F1: Format, F2: Format>(
    machine: &Machine,
    formats: (F1, F2),
    rows: &[Measured],
    seed: u64,
    mut progress: impl FnMut(&str),
) -> Result<CrossValidation, LayoutError> {
    let mut work = Work::new(machine, formats, rows, seed);
    progress("all rows");
    let every: Vec<usize> = (0..work.rows.len()).collect();
    let whole = work.fit(&every)?;
    let points = work.scored(&whole, &every)?;
    let mut families = Vec::new();
    for family in work.families() {
        progress(&family);
        let (mine, others): (Vec<usize>, Vec<usize>) = every.iter().partition(|&&row| work.rows[row].family == family);
        let fit = work.fit(&others)?;
        let said = |fit: &Fit| -> BTreeSet<String> {
            fit.constants.iter().filter(|fitted| fitted.value.is_some()).map(|fitted| fitted.place.clone()).collect()
        };
        let unsaid = said(&whole).difference(&said(&fit)).cloned().collect();
        let points = work.scored(&fit, &mine)?;
        families.push(LeftOut { family, points, constants: fit.constants, unsaid });
    }
    let alone = rows.len() - work.rows.len();
    Ok(CrossValidation { constants: whole.constants, points, families, alone })
}

/// A row that belongs to a family.
struct Row<'a> {
    measured: &'a Measured,
    family: String,
    band: Band,
    /// The curve and the number of its chase; `None` for events.
    chase: Option<(Curve, usize)>,
}

struct Work<'a, F1: Format, F2: Format> {
    /// The sheet with every constant at its beginning.
    neutral: Setting,
    formats: (F1, F2),
    rows: Vec<Row<'a>>,
    chases: Vec<(Curve, u64)>,
    seed: u64,
    /// Counts of every chase by structures, as far as they were run.
    counted: BTreeMap<(Vec<usize>, Run), Vec<Option<Counts>>>,
}

/// Sweeps over all prices at most.
const SWEEPS: u32 = 60;
/// Rounds over all structures at most.
const ROUNDS: u32 = 2;
/// Errors that are closer than this are the same.
const DIFFERENT: f64 = 1e-9;
/// A step is small enough at this share of a price.
const FINE: f64 = 0.004;
/// How a chase is run while structures are tried, and when they have been chosen.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Run {
    /// In one place, a third as long, and only as far as [`FARTHEST`].
    Tried,
    /// In two places.
    Chosen,
}

/// The largest point that is run while structures are tried: beyond it everything misses everything.
const FARTHEST: u64 = 1 << 20;

impl<'a, F1: Format, F2: Format> Work<'a, F1, F2> {
    fn new(machine: &Machine, formats: (F1, F2), rows: &'a [Measured], seed: u64) -> Self {
        let mut neutral = Setting { machine: machine.clone(), around: Surroundings::default() };
        for price in PRICES {
            if (price.get)(&neutral.machine).is_some() {
                (price.set)(&mut neutral.machine, price.start);
            }
        }
        let mut chases = BTreeSet::new();
        let known = rows.iter().filter_map(|measured| Some((measured, family::family(measured)?)));
        let known: Vec<_> = known.filter(|(measured, _)| is_known(machine, measured)).collect();
        for (measured, _) in &known {
            if let Ok(curve) = measured.variant.parse::<Curve>() {
                chases.insert((curve.alone(), measured.n));
            }
        }
        let chases: Vec<(Curve, u64)> = chases.into_iter().collect();
        let row = |(measured, family): (&'a Measured, String)| {
            let curve = measured.variant.parse::<Curve>().ok();
            let place = |curve: Curve| chases.binary_search(&(curve.alone(), measured.n)).ok();
            let chase = curve.and_then(|curve| Some((curve, place(curve)?)));
            Row { measured, family, band: Band::of(curve.as_ref(), measured.n), chase }
        };
        let rows = known.into_iter().map(row).collect();
        Self { neutral, formats, rows, chases, seed, counted: BTreeMap::new() }
    }

    fn families(&self) -> BTreeSet<String> {
        self.rows.iter().map(|row| row.family.clone()).collect()
    }

    /// The neutral machine with these structures.
    fn with(&self, structures: &[usize]) -> Setting {
        let mut setting = self.neutral.clone();
        for (structure, &value) in STRUCTURES.iter().zip(structures) {
            (structure.values[value].1)(&mut setting);
        }
        setting
    }

    /// Runs every chase on these structures, unless that has been done.
    fn run(&mut self, structures: &[usize], how: Run) -> Result<(), LayoutError> {
        let key = (structures.to_vec(), how);
        if self.counted.contains_key(&key) {
            return Ok(());
        }
        let setting = self.with(structures);
        let effort = match how {
            Run::Tried => (1, Effort::Third),
            Run::Chosen => (2, Effort::Whole),
        };
        let run = |&(curve, n): &(Curve, u64)| {
            if how == Run::Tried && curve.pages(n) > FARTHEST {
                return Ok(None);
            }
            placements(&setting.machine, self.formats, setting.around, (&curve, n), effort, self.seed).map(Some)
        };
        let counts: Result<Vec<Option<Counts>>, LayoutError> = self.chases.par_iter().map(run).collect();
        self.counted.insert(key, counts?);
        Ok(())
    }

    fn fit(&mut self, rows: &[usize]) -> Result<Fit, LayoutError> {
        let (curves, events): (Vec<usize>, Vec<usize>) = rows.iter().partition(|&&row| self.rows[row].chase.is_some());
        let (structures, mut machine, told) = self.fit_structures(&curves)?;
        // Events cost what the sheet says; no run changes them.
        let (_, by_events) = self.fit_prices(&mut machine, &[], &events);
        self.run(&structures, Run::Chosen)?;
        let counts = &self.counted[&(structures.clone(), Run::Chosen)];
        let (_, by_curves) = self.fit_prices(&mut machine, counts, &curves);
        let around = self.with(&structures).around;
        let mut constants: Vec<Fitted> = STRUCTURES
            .iter()
            .zip(&structures)
            .enumerate()
            .map(|(number, (structure, &value))| Fitted {
                place: place(&machine, structure.spot),
                value: told.contains(&number).then(|| structure.values[value].0.to_owned()),
                from: structure.from,
            })
            .collect();
        for (number, price) in PRICES.iter().enumerate() {
            let Some(value) = (price.get)(&machine) else { continue };
            let said = by_curves.contains(&number) || by_events.contains(&number);
            let value = said.then(|| format!("{value:.2}"));
            constants.push(Fitted { place: place(&machine, price.spot), value, from: price.from });
        }
        Ok(Fit { setting: Setting { machine, around }, constants, structures })
    }

    /// Tries every value of every structure, the others as they are, until none is better. Which structures the rows say comes last.
    fn fit_structures(&mut self, rows: &[usize]) -> Result<(Vec<usize>, Machine, BTreeSet<usize>), LayoutError> {
        let mut told = BTreeSet::new();
        let mut best = vec![0; STRUCTURES.len()];
        let mut machine = self.with(&best).machine;
        if rows.is_empty() {
            return Ok((best, machine, told));
        }
        let mut least = f64::INFINITY;
        for _ in 0..ROUNDS {
            let before = least;
            for number in 0..STRUCTURES.len() {
                for value in 0..STRUCTURES[number].values.len() {
                    let mut tried = best.clone();
                    tried[number] = value;
                    if tried == best && least.is_finite() {
                        continue;
                    }
                    self.run(&tried, Run::Tried)?;
                    let mut with = self.with(&tried).machine;
                    copy_prices(&machine, &mut with);
                    let (error, _) = self.fit_prices(&mut with, &self.counted[&(tried.clone(), Run::Tried)], rows);
                    if self.differ(rows, &tried, &best) {
                        told.insert(number);
                    }
                    if error < least {
                        (least, best, machine) = (error, tried, with);
                    }
                }
            }
            if least >= before {
                break;
            }
        }
        Ok((best, machine, told))
    }

    /// Whether anything happens otherwise on these rows with other structures.
    fn differ(&self, rows: &[usize], one: &[usize], other: &[usize]) -> bool {
        let counts = |structures: &[usize]| self.counted.get(&(structures.to_vec(), Run::Tried));
        let (Some(one), Some(other)) = (counts(one), counts(other)) else { return false };
        let chases = rows.iter().filter_map(|&row| self.rows[row].chase);
        chases.into_iter().any(|(_, chase)| one.get(chase) != other.get(chase))
    }

    /// Fits the prices to rows: the error that is left, and which prices the rows say.
    fn fit_prices(&self, machine: &mut Machine, counts: &[Option<Counts>], rows: &[usize]) -> (f64, BTreeSet<usize>) {
        let mut least = self.error(machine, counts, rows);
        let mut steps: BTreeMap<usize, f64> = BTreeMap::new();
        for (number, price) in PRICES.iter().enumerate() {
            let Some(value) = (price.get)(machine) else { continue };
            let moved = [value * 1.5 + 1.0, value * 0.5].map(|moved| self.moved(machine, price, moved, counts, rows));
            if moved.iter().any(|&error| (error - least).abs() > DIFFERENT) {
                steps.insert(number, (value * 0.5).max(1.0));
            }
        }
        let said = steps.keys().copied().collect();
        for _ in 0..SWEEPS {
            for (&number, step) in &mut steps {
                let price = &PRICES[number];
                let value = (price.get)(machine).unwrap_or(price.start);
                if *step < (value * FINE).max(0.01) {
                    continue;
                }
                let tried = [value + *step, value - *step];
                let errors = tried.map(|tried| self.moved(machine, price, tried, counts, rows));
                let better = usize::from(errors[1] < errors[0]);
                if errors[better] < least - 1e-12 {
                    (price.set)(machine, tried[better].clamp(price.range.0, price.range.1));
                    least = errors[better];
                } else {
                    *step /= 2.0;
                }
            }
        }
        (least, said)
    }

    /// The error with one price moved; the machine is as before afterwards.
    fn moved(
        &self,
        machine: &mut Machine,
        price: &Price,
        value: f64,
        counts: &[Option<Counts>],
        rows: &[usize],
    ) -> f64 {
        let before = (price.get)(machine).unwrap_or(price.start);
        (price.set)(machine, value.clamp(price.range.0, price.range.1));
        let error = self.error(machine, counts, rows);
        (price.set)(machine, before);
        error
    }

    fn error(&self, machine: &Machine, counts: &[Option<Counts>], rows: &[usize]) -> f64 {
        let mut bands: BTreeMap<Band, (f64, f64)> = BTreeMap::new();
        for row in rows.iter().map(|&row| &self.rows[row]) {
            let Some(predicted) = predicted(machine, counts, row) else { continue };
            let (sum, number) = bands.entry(row.band).or_default();
            *sum += (predicted / row.measured.core_cycles_median - 1.0).abs();
            *number += 1.0;
        }
        bands.iter().map(|(band, (sum, number))| sum / number / band.goal()).sum()
    }

    /// Rows with what a fit predicts.
    fn scored(&mut self, fit: &Fit, rows: &[usize]) -> Result<Vec<Scored>, LayoutError> {
        self.run(&fit.structures, Run::Chosen)?;
        let counts = &self.counted[&(fit.structures.clone(), Run::Chosen)];
        let machine = &fit.setting.machine;
        let scored = |&row: &usize| {
            let row = &self.rows[row];
            let cycles = predicted(machine, counts, row)?;
            let (curve, n, ns) = (row.measured.variant.clone(), row.measured.n, cycles / machine.clock.ghz());
            Some(Scored::new(row.measured.clone(), Prediction { curve, n, cycles, ns, events: None }))
        };
        Ok(rows.iter().filter_map(scored).collect())
    }
}

/// Whether a row can be predicted and judged at all.
fn is_known(machine: &Machine, measured: &Measured) -> bool {
    measured.core_cycles_median > 0.0
        && match measured.variant.parse::<Curve>() {
            Ok(curve) => (1..=curve.largest()).contains(&measured.n),
            Err(_) => software::nanoseconds(machine, &measured.variant, measured.n).is_some(),
        }
}

fn predicted(machine: &Machine, counts: &[Option<Counts>], row: &Row<'_>) -> Option<f64> {
    match &row.chase {
        Some((curve, chase)) => Some(cycles(machine, curve, counts.get(*chase)?.as_ref()?)),
        None => Some(software::nanoseconds(machine, &row.measured.variant, row.measured.n)? * machine.clock.ghz()),
    }
}

fn copy_prices(from: &Machine, to: &mut Machine) {
    for price in PRICES {
        if let Some(value) = (price.get)(from) {
            (price.set)(to, value);
        }
    }
}

/// A place with the name that the sheet has for a table.
fn place(machine: &Machine, spot: Spot) -> String {
    let name = |table: usize| match spot.section {
        "cache" => machine.caches.levels.get(table).map(|level| level.name.clone()),
        "fetch" => machine.fetch.as_ref()?.levels.get(table).map(|level| level.name.clone()),
        _ => None,
    };
    match spot.table.and_then(name) {
        Some(name) => format!("{}.{name}.{}", spot.section, spot.key),
        None => spot.to_string(),
    }
}
