//! What is there, what is missing, and everything together.

use std::collections::{BTreeMap, BTreeSet};

use crate::datum::Record;
use crate::error::SweepError;
use crate::plan::Plan;
use crate::point::{Point, PointId};
use crate::store::{self, Found, Place};

/// How far a sweep is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Status {
    /// Points of the plan.
    pub points: usize,
    /// Places of the points without a valid result.
    pub missing: Vec<usize>,
    /// Why some of them failed.
    pub failed: BTreeMap<PointId, String>,
    /// Damaged files and lines.
    pub corrupt: Vec<String>,
    /// Results beyond the first of their point, all of the same bytes.
    pub duplicates: usize,
    /// Points with two different results.
    pub conflicts: Vec<PointId>,
    /// Files that killed attempts have left.
    pub orphans: usize,
    /// Results of points that the plan does not have.
    pub strangers: usize,
}

impl Status {
    /// Points with a result.
    pub fn done(&self) -> usize {
        self.points - self.missing.len()
    }

    /// The shards of `of` that have missing points.
    pub fn missing_shards(&self, of: u32) -> Vec<u32> {
        let shards: BTreeSet<u32> = self.missing.iter().map(|place| (place % of.max(1) as usize) as u32).collect();
        shards.into_iter().collect()
    }
}

/// Asks the directory how far a sweep is.
///
/// # Errors
/// It cannot be read.
pub fn status(plan: &Plan) -> Result<Status, SweepError> {
    let Found { results, corrupt, failed, orphans } = store::scan(plan.directory())?;
    let known: BTreeSet<PointId> = plan.points().iter().map(|point| point.id).collect();
    let missing = (0..).zip(plan.points()).filter(|(_, point)| !results.contains_key(&point.id)).map(|(i, _)| i);
    let ours = || results.iter().filter(|(id, _)| known.contains(id));
    Ok(Status {
        points: plan.points().len(),
        missing: missing.collect(),
        failed: failed.into_iter().filter(|(id, _)| known.contains(id)).collect(),
        corrupt,
        duplicates: ours().filter(|(_, places)| one_result(places)).map(|(_, places)| places.len() - 1).sum(),
        conflicts: ours().filter(|(_, places)| !one_result(places)).map(|(id, _)| *id).collect(),
        orphans,
        strangers: results.keys().filter(|id| !known.contains(id)).count(),
    })
}

fn one_result(places: &[Place]) -> bool {
    places.windows(2).all(|pair| pair[0].hash == pair[1].hash)
}

/// Hands every row of every point to `sink`, in the order of the plan. The same for any number of shards, in any order, on any machines.
///
/// # Errors
/// Points are missing, or have two different results; nothing has been handed out then. Or what `sink` or the file system says.
pub fn merge<E: From<SweepError>>(plan: &Plan, mut sink: impl FnMut(&Point, Record) -> Result<(), E>) -> Result<(), E> {
    let found = store::scan(plan.directory())?;
    let mut missing = Vec::new();
    for (place, point) in (0..).zip(plan.points()) {
        let Some(places) = found.results.get(&point.id) else {
            missing.push(place);
            continue;
        };
        if let Some(pair) = places.windows(2).find(|pair| pair[0].hash != pair[1].hash) {
            let files = [pair[0].path.clone(), pair[1].path.clone()];
            return Err(SweepError::Nondeterminism { id: point.id, files }.into());
        }
    }
    if !missing.is_empty() {
        return Err(SweepError::Incomplete { missing, of: plan.points().len() }.into());
    }
    for point in plan.points() {
        let Some(place) = found.results.get(&point.id).and_then(|places| places.first()) else { continue };
        let result = store::read(place)?;
        let rows = store::rows(&result).map_err(|what| SweepError::plan(&place.path, what))?;
        for row in rows {
            sink(point, row)?;
        }
    }
    Ok(())
}
