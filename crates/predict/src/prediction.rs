//! A predicted point with the events behind it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use mmu_core::Format;
use mmu_core::machine::Machine;
use rayon::prelude::*;
use serde::Serialize;

use crate::chase::{self, Counts, Effort};
use crate::curve::{Curve, CurveError};
use crate::layout::{LayoutError, Surroundings};
use crate::price::Price;
use crate::{overlap, software};

/// What happens on one access, on average.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Events {
    /// Accesses that miss the first-level TLB.
    pub l1_tlb_misses: f64,
    /// Accesses that miss the second level too, and walk.
    pub l2_tlb_misses: f64,
    /// References of walks to the guest's tables.
    pub stage1_references: f64,
    /// References of walks to the hypervisor's tables.
    pub stage2_references: f64,
    /// References of walks by the cache that serves them.
    pub walk_references: BTreeMap<String, f64>,
    /// References to the data likewise.
    pub data_references: BTreeMap<String, f64>,
    /// Cycles of second-level TLB look-ups.
    pub l2_tlb_cycles: f64,
    /// Cycles of walks.
    pub walk_cycles: f64,
    /// Cycles of the data.
    pub data_cycles: f64,
    /// Cycles of following jumps.
    pub jump_cycles: f64,
}

/// One predicted point.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Prediction {
    /// Name of the curve or event.
    pub curve: String,
    /// The point.
    pub n: u64,
    /// Core cycles of an access, or of the event.
    pub cycles: f64,
    /// The same in nanoseconds.
    pub ns: f64,
    /// What the cycles are made of; `None` for events that are figures of the sheet.
    pub events: Option<Events>,
}

/// Why a point cannot be predicted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PredictError {
    /// No curve and no event has this name.
    Curve(CurveError),
    /// The point is out of range.
    Point {
        /// The curve.
        curve: String,
        /// The point.
        n: u64,
        /// The largest there is.
        most: u64,
    },
    /// The tables cannot be built.
    Layout(LayoutError),
    /// A figure of the sheet that nobody knows.
    Figure(String),
}

impl fmt::Display for PredictError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Curve(error) => error.fmt(f),
            Self::Point { curve, n, most } => write!(f, "{curve} has no point {n}; points go from 1 to {most}"),
            Self::Layout(error) => error.fmt(f),
            Self::Figure(name) => {
                let known: Vec<&str> = software::FIGURES.iter().map(|(name, _)| *name).collect();
                write!(f, "[software_ns] has no figure `{name}`; known are {}", known.join(", "))
            }
        }
    }
}
impl std::error::Error for PredictError {}

impl From<LayoutError> for PredictError {
    fn from(error: LayoutError) -> Self {
        Self::Layout(error)
    }
}

/// Accesses that placements are averaged over, and the most of them: a benchmark runs several times, and each process lies
/// elsewhere.
const ACCESSES: u64 = 16_384;
const PLACEMENTS: u64 = 8;

/// Predicts one point of a curve, or the cost of an event, on a machine whose guests and hypervisors use these formats.
/// The same seed gives the same answer.
///
/// # Errors
/// A name that nobody knows, a point out of range, or formats without the page sizes of the curve.
pub fn predict<F1: Format, F2: Format>(
    machine: &Machine,
    formats: (F1, F2),
    name: &str,
    n: u64,
    seed: u64,
) -> Result<Prediction, PredictError> {
    // One point has one answer.
    let unknown = || Err(PredictError::Point { curve: name.to_owned(), n, most: 0 });
    predict_all(machine, formats, &[(name, n)], seed).pop().unwrap_or_else(unknown)
}

/// Predicts several points, each chase once however many run at the same time; answers are in the order of the points.
///
/// Takes the processors that the caller's thread pool has.
pub fn predict_all<F1: Format, F2: Format>(
    machine: &Machine,
    formats: (F1, F2),
    points: &[(&str, u64)],
    seed: u64,
) -> Vec<Result<Prediction, PredictError>> {
    let known = |figure: &String| software::FIGURES.iter().any(|(name, _)| name == figure);
    if let Some(unknown) = machine.software_ns.keys().find(|figure| !known(figure)) {
        return points.iter().map(|_| Err(PredictError::Figure(unknown.clone()))).collect();
    }
    let asked: Vec<_> = points.iter().map(|&(name, n)| asked(machine, name, n)).collect();
    let chase = |(asked, &(_, n)): (&Result<Asked, PredictError>, &(&str, u64))| match asked {
        Ok(Asked::Chase(curve)) => Some((curve.alone(), n)),
        Ok(Asked::Event(_)) | Err(_) => None,
    };
    let chases: Vec<(Curve, u64)> =
        asked.iter().zip(points).filter_map(chase).collect::<BTreeSet<_>>().into_iter().collect();
    let around = Surroundings::default();
    let run = |(curve, n): &(Curve, u64)| {
        placements(machine, formats, around, (curve, *n), (PLACEMENTS, Effort::Whole), seed)
    };
    let counted: BTreeMap<_, _> = chases.iter().copied().zip(chases.par_iter().map(run).collect::<Vec<_>>()).collect();
    let answer = |(asked, &(name, n)): (Result<Asked, PredictError>, &(&str, u64))| match asked? {
        Asked::Event(prediction) => Ok(prediction),
        Asked::Chase(curve) => {
            let counts = counted.get(&(curve.alone(), n)).cloned().unwrap_or_else(|| Ok(Counts::default()))?;
            Ok(point(machine, name, &curve, n, &counts))
        }
    };
    asked.into_iter().zip(points).map(answer).collect()
}

/// References of a walk for a page of this curve on a machine without caches of translations: to the guest's tables, and to the hypervisor's.
///
/// # Errors
/// Formats without the page sizes of the curve.
pub fn cold_walk<F1: Format, F2: Format>(
    machine: &Machine,
    formats: (F1, F2),
    curve: &Curve,
) -> Result<(u64, u64), PredictError> {
    let mut bare = machine.clone();
    bare.translation.nested = None;
    bare.translation.psc.levels.clear();
    bare.translation.psc.guest_physical = None;
    let counts = chase::cold_walk(&bare, formats, curve)?;
    Ok((counts.stage1, counts.stage2))
}

/// What a point asks for.
enum Asked {
    /// A chase.
    Chase(Curve),
    /// The cost of an event.
    Event(Prediction),
}

fn asked(machine: &Machine, name: &str, n: u64) -> Result<Asked, PredictError> {
    let curve: Curve = match name.parse() {
        Ok(curve) => curve,
        Err(error) => {
            let ns = software::nanoseconds(machine, name, n).ok_or(PredictError::Curve(error))?;
            let cycles = ns * machine.clock.ghz();
            return Ok(Asked::Event(Prediction { curve: name.to_owned(), n, cycles, ns, events: None }));
        }
    };
    if !(1..=curve.largest()).contains(&n) {
        return Err(PredictError::Point { curve: name.to_owned(), n, most: curve.largest() });
    }
    Ok(Asked::Chase(curve))
}

/// One chase in several places, at most so many.
pub(crate) fn placements<F1: Format, F2: Format>(
    machine: &Machine,
    formats: (F1, F2),
    around: Surroundings,
    chase: (&Curve, u64),
    (most, effort): (u64, Effort),
    seed: u64,
) -> Result<Counts, LayoutError> {
    let mut counts = Counts::default();
    for placement in 0..(ACCESSES / chase.1.max(1)).clamp(1, most) {
        counts += chase::run(machine, formats, around, chase, effort, seed.wrapping_add(placement))?;
    }
    Ok(counts)
}

fn point(machine: &Machine, name: &str, curve: &Curve, n: u64, counts: &Counts) -> Prediction {
    let price = Price::of(machine, curve, counts);
    let cycles = overlap::cycles(machine, curve, counts, &price);
    let events = Some(events(machine, counts, &price));
    Prediction { curve: name.to_owned(), n, cycles, ns: cycles / machine.clock.ghz(), events }
}

/// Core cycles of an access whose counts are known.
pub(crate) fn cycles(machine: &Machine, curve: &Curve, counts: &Counts) -> f64 {
    overlap::cycles(machine, curve, counts, &Price::of(machine, curve, counts))
}

fn events(machine: &Machine, counts: &Counts, price: &Price) -> Events {
    let accesses = counts.accesses.max(1) as f64;
    let per = |total: u64| total as f64 / accesses;
    let names = machine.caches.levels.iter().map(|level| level.name.as_str()).chain(["memory"]);
    let by = |served: &[u64]| names.clone().zip(served).map(|(name, &count)| (name.to_owned(), per(count))).collect();
    Events {
        l1_tlb_misses: per(counts.l1_misses),
        l2_tlb_misses: per(counts.walks),
        stage1_references: per(counts.stage1),
        stage2_references: per(counts.stage2),
        walk_references: by(&counts.walk_served),
        data_references: by(&counts.data_served),
        l2_tlb_cycles: price.l2_tlb,
        walk_cycles: price.walk,
        data_cycles: price.data,
        jump_cycles: price.jumps,
    }
}
