//! Sweeps: many experiments on many machines, with one result whatever happened on the way.
//!
//! A *plan* is a directory with data: points in an order, each complete and canonical, named by the hash of its content. A *shard* is
//! `I/N`: the points whose place in the plan is `I` modulo `N`. Whatever starts shards (a shell loop, GNU parallel, a Slurm array, an
//! indexed job of Kubernetes) supplies `I` and `N` and nothing else; the directory is all that they share. Shards may be killed, lost,
//! started twice, or started with another `N`: a point is done when its result is valid, and not before.
//!
//! | rule | where |
//! | --- | --- |
//! | a plan is data; the same point has the same name everywhere | [`spec`], [`point`], [`plan`] |
//! | only the point influences its result: no host, time, thread count or `N` | [`Experiment::run`] is given nothing else |
//! | results appear by one atomic step, and carry a checksum | [`store`] |
//! | short points share a file per attempt; a torn last line is dropped | [`store`] |
//! | a point that was run twice must have given the same bytes | [`mod@merge`] |
//! | merges are in the plan's order, of integers and text | [`mod@merge`], [`datum`] |
//! | schedulers lie about lost jobs, so the directory is asked | [`merge::status`] |
//!
//! The crate knows nothing about simulations: [`Experiment`] turns a point into rows.

pub mod datum;
mod error;
pub mod merge;
pub mod plan;
pub mod point;
pub mod run;
pub mod slurm;
pub mod spec;
pub mod store;

use std::collections::BTreeMap;
use std::path::PathBuf;

pub use datum::{Datum, Record};
pub use error::SweepError;
pub use merge::{Status, merge, status};
pub use plan::Plan;
pub use point::{Point, PointId};
pub use run::{Event, Ran, RunOptions, Shard, run};

/// Version of the layout of plans and results. Another layout gives other point names.
pub const SCHEMA_VERSION: u32 = 1;

/// What a point is asked to do.
#[derive(Debug)]
pub struct Job<'a> {
    /// The command, as the plan has it.
    pub command: &'a str,
    /// Its arguments.
    pub arguments: &'a Record,
    /// Where the files are that arguments name; the text of such an argument must not enter the result.
    pub files: BTreeMap<String, PathBuf>,
    /// A file for what a stopped point wants to find when it is run again. It is removed when the point is done.
    pub checkpoint: PathBuf,
}

/// Why a point has no result.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unfinished {
    /// It was asked to stop.
    Stopped,
    /// It cannot be done: why, with the remedy.
    Failed(String),
}

/// What turns points into rows.
pub trait Experiment: Sync {
    /// Version of what results depend on besides the point. Results of one version are never mixed with another's.
    fn model(&self) -> u32;

    /// Looks at a point without running it: which of its arguments name files.
    ///
    /// # Errors
    /// What is wrong with it, and the remedy.
    fn check(&self, command: &str, arguments: &Record) -> Result<Vec<String>, String>;

    /// Runs a point. The rows must depend on the job alone, bit for bit. `stop` says when there is no time left; a long point may
    /// look now and then, leave a checkpoint and return [`Unfinished::Stopped`].
    ///
    /// # Errors
    /// Why there is no result.
    fn run(&self, job: &Job<'_>, stop: &(dyn Fn() -> bool + Sync)) -> Result<Vec<Record>, Unfinished>;
}
