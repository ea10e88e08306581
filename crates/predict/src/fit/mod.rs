//! Constants fitted to measured curves by a search, and what such a fit says about curves that it has not seen.
//!
//! A sheet whose constants were chosen with every curve at hand proves little by agreeing with them. [`cross_validate`] leaves out one
//! [family](family::family) of rows after the other, fits the [constants] to the others from a neutral beginning, and predicts the
//! family that was left out. What is not fitted stays: what vendors have published (entries of first-level TLBs, sizes of inner caches), the
//! rules of walks, and the form of the model itself, which its authors chose with all curves in view; no search can take that back.
//!
//! The search is a descent along one constant at a time: for prices by steps that halve, for structures by trying every value until none of them
//! is better. It is the same every time. What it makes small is the mean error of each band over the band's goal, added up.
//!
//! A chase is run once for each combination of the structures that it can notice ([`constants::Structure::noticed`]), whatever rows are left
//! out; all fits go through the structures in step, so that what several of them ask for is run once and together. While structures are tried,
//! long curves have every second point, and none beyond a million pages is run: there everything misses everything.

pub mod constants;
pub mod family;
mod prices;
mod work;

use std::collections::BTreeSet;

use mmu_core::Format;
use mmu_core::machine::Machine;
use serde::Serialize;

use crate::layout::{LayoutError, Surroundings};
use crate::score::{Measured, Scored};
use constants::{STRUCTURES, Setting};
use work::Work;

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
    let fits = work.fit(&[every], &mut |_| {})?;
    // One set of rows has one fit.
    fits.into_iter().next().ok_or_else(|| LayoutError::Tables("no rows to fit to".to_owned()))
}

/// Leaves out one family after the other; `progress` is told what is being tried and fitted.
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
    let every: Vec<usize> = (0..work.rows.len()).collect();
    let families: Vec<String> = work.families().into_iter().collect();
    let without = |family: &String| every.iter().copied().filter(|&row| work.rows[row].family != *family).collect();
    let subsets: Vec<Vec<usize>> = std::iter::once(every.clone()).chain(families.iter().map(without)).collect();
    let mut fits = work.fit(&subsets, &mut progress)?.into_iter();
    let whole = fits.next().ok_or_else(|| LayoutError::Tables("no rows to fit to".to_owned()))?;
    let points = work.scored(&whole, &every);
    let left_out = |(family, fit): (String, Fit)| {
        let mine: Vec<usize> = every.iter().copied().filter(|&row| work.rows[row].family == family).collect();
        let unsaid = said(&whole).difference(&said(&fit)).cloned().collect();
        LeftOut { points: work.scored(&fit, &mine), family, constants: fit.constants, unsaid }
    };
    let families = families.into_iter().zip(fits).map(left_out).collect();
    let alone = rows.len() - work.rows.len();
    Ok(CrossValidation { constants: whole.constants, points, families, alone })
}

/// Places of the constants that a fit's rows say.
fn said(fit: &Fit) -> BTreeSet<String> {
    fit.constants.iter().filter(|fitted| fitted.value.is_some()).map(|fitted| fitted.place.clone()).collect()
}
