//! Running a shard on the cores of one machine.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::SweepError;
use crate::plan::Plan;
use crate::point::{Point, PointId};
use crate::store::{Store, result_json};
use crate::{Experiment, Job, Unfinished};

/// A share of a plan: the points whose place is `index` modulo `of`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shard {
    index: u32,
    of: u32,
}

impl Shard {
    /// All points.
    pub const ALL: Shard = Shard { index: 0, of: 1 };

    /// Shard `index` of `of`, counted from 0.
    ///
    /// # Errors
    /// There is no such shard.
    pub fn new(index: u32, of: u32) -> Result<Self, String> {
        if index < of {
            Ok(Self { index, of })
        } else {
            Err(format!("there is no shard {index} of {of}; they count from 0 to {}", of.saturating_sub(1)))
        }
    }

    /// Whether the point at this place belongs to it.
    pub fn has(self, place: usize) -> bool {
        place % self.of as usize == self.index as usize
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/').and_then(|(index, of)| Some((index.parse().ok()?, of.parse().ok()?)));
        let (index, of) = numbers.ok_or_else(|| format!("{text:?} is no shard; write I/N, with I from 0 to N-1"))?;
        Self::new(index, of)
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

/// How a shard is run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RunOptions {
    /// Which points.
    pub shard: Shard,
    /// Points at a time.
    pub jobs: NonZeroUsize,
    /// No point is begun after this long.
    pub time_limit: Option<Duration>,
    /// Points that take less share a file.
    pub short: Duration,
}

/// What happens during a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// So many points of the shard are to be run, so many have results.
    Begins {
        /// Without a result.
        to_run: usize,
        /// With one.
        reused: usize,
    },
    /// A point is done.
    Done(PointId),
    /// A point failed: why.
    Failed(PointId, String),
}

/// What a run did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ran {
    /// Points run.
    pub ran: usize,
    /// Points that had a result.
    pub reused: usize,
    /// Points that failed, and why.
    pub failed: BTreeMap<PointId, String>,
    /// Points left because there was no time.
    pub left: usize,
}

/// Runs the points of a shard that have no valid result. `stop` is asked before each point, and by long ones.
///
/// # Errors
/// The plan's directory cannot be read or written. Points that fail are in the answer.
pub fn run(
    plan: &Plan,
    experiment: &dyn Experiment,
    options: &RunOptions,
    stop: &(dyn Fn() -> bool + Sync),
    tell: &(dyn Fn(Event) + Sync),
) -> Result<Ran, SweepError> {
    let begun = Instant::now();
    let points: Vec<&Point> = (0..).zip(plan.points()).filter(|(i, _)| options.shard.has(*i)).map(|(_, p)| p).collect();
    let mut store = Store::new(plan.directory());
    let done = store.done(&points.iter().map(|point| point.id).collect::<BTreeSet<_>>())?;
    let todo: Vec<&Point> = points.iter().copied().filter(|point| !done.contains(&point.id)).collect();
    tell(Event::Begins { to_run: todo.len(), reused: done.len() });
    // Every machine that shares the plan finds the files whole, or says so before it computes for hours.
    if let Some(point) = todo.first() {
        plan.files(point)?;
    }
    let stop = || stop() || options.time_limit.is_some_and(|limit| begun.elapsed() >= limit);
    let worker = Worker {
        plan,
        experiment,
        short: options.short,
        stop: &stop,
        tell,
        next: AtomicUsize::new(0),
        shared: Mutex::new(Shared { ran: Ran { reused: done.len(), ..Ran::default() }, error: None }),
        store: Mutex::new(&mut store),
    };
    thread::scope(|scope| {
        for _ in 0..options.jobs.get().min(todo.len()) {
            scope.spawn(|| worker.work(&todo));
        }
    });
    let Shared { mut ran, error } = worker.shared.into_inner().unwrap_or_else(PoisonError::into_inner);
    store.sync()?;
    if let Some(error) = error {
        return Err(error);
    }
    ran.left = todo.len() - ran.ran - ran.failed.len();
    Ok(ran)
}

struct Shared {
    ran: Ran,
    error: Option<SweepError>,
}

struct Worker<'a> {
    plan: &'a Plan,
    experiment: &'a dyn Experiment,
    short: Duration,
    stop: &'a (dyn Fn() -> bool + Sync),
    tell: &'a (dyn Fn(Event) + Sync),
    next: AtomicUsize,
    shared: Mutex<Shared>,
    store: Mutex<&'a mut Store>,
}

impl Worker<'_> {
    fn work(&self, todo: &[&Point]) {
        while !(self.stop)() && self.shared().error.is_none() {
            let Some(point) = todo.get(self.next.fetch_add(1, Ordering::Relaxed)) else { return };
            match self.run(point) {
                Ok(Ok(())) => {
                    self.shared().ran.ran += 1;
                    (self.tell)(Event::Done(point.id));
                }
                Ok(Err(Unfinished::Stopped)) => return,
                Ok(Err(Unfinished::Failed(why))) => {
                    self.shared().ran.failed.insert(point.id, why.clone());
                    (self.tell)(Event::Failed(point.id, why));
                }
                Err(error) => self.shared().error = Some(error),
            }
        }
    }

    fn shared(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, point: &Point) -> Result<Result<(), Unfinished>, SweepError> {
        let checkpoint = self.plan.directory().join("checkpoints").join(point.id.to_string());
        let files = self.plan.files(point)?;
        let job = Job { command: &point.command, arguments: &point.arguments, files, checkpoint };
        let begun = Instant::now();
        let rows = self.experiment.run(&job, self.stop);
        let took = begun.elapsed();
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = match rows {
            Ok(rows) => rows,
            Err(Unfinished::Failed(why)) => {
                store.fail(point.id, &why)?;
                return Ok(Err(Unfinished::Failed(why)));
            }
            Err(stopped) => return Ok(Err(stopped)),
        };
        let result = result_json(point.id, self.plan.model(), &rows);
        if took < self.short {
            store.append(point.id, &result)?;
        } else {
            store.commit(point.id, &result)?;
        }
        // There is none in general.
        let _ = fs::remove_file(&job.checkpoint);
        Ok(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_part_the_points() {
        for of in 1..7 {
            for place in 0..50 {
                let owners = (0..of).filter(|&index| Shard::new(index, of).unwrap().has(place)).count();
                assert_eq!(owners, 1);
            }
        }
        assert_eq!("2/3".parse::<Shard>().unwrap().to_string(), "2/3");
        for text in ["3/3", "1", "a/2", "1/0", "-1/2", "/"] {
            assert!(text.parse::<Shard>().is_err(), "{text}");
        }
    }
}
