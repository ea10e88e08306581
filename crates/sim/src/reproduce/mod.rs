//! Published measurements of the protocols, run again from sheets that were fixed beforehand.
//!
//! Each experiment is one of KVM's own tests with the options that the authors gave, once as the kernel was before their
//! change and once as after it. What is compared is the *ratio* of the two, which needs no cost to be right in absolute
//! terms, and its shape over vCPUs. Beside the ratio stand the simulated times of all threads for locks, flushes, cache
//! maintenance, walks and faults, so that a ratio can be traced to what made it.
//!
//! `published` holds the figures and their messages, `run` the experiments. Costs are never adjusted to a row here; what a sheet takes from published totals
//! like these (`split_child` from R8's) is marked D there.

mod figure;
mod published;
mod run;

use std::fmt;
use std::str::FromStr;

use mmu_core::Bytes;
use serde::Serialize;

pub use figure::Figure;
pub use published::{Experiment, Published, experiments};
pub use run::{Times, run};

/// The number of an experiment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
pub enum Id {
    /// Lockless aging.
    R1,
    /// Root zap in two passes.
    R2,
    /// Huge pages recovered in place after dirty logging.
    R3,
    /// Recovery of NX huge pages under the read lock.
    R4,
    /// Cache maintenance by the mapper; the block installed first.
    R5,
    /// Faults under the read lock.
    R6,
    /// One range invalidation for an unmap.
    R7,
    /// Eager page splitting.
    R8,
    /// Eager page splitting and sparse writes.
    R9,
}

impl Id {
    /// All of them.
    pub const ALL: [Id; 9] = [Id::R1, Id::R2, Id::R3, Id::R4, Id::R5, Id::R6, Id::R7, Id::R8, Id::R9];
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl FromStr for Id {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Id::ALL.into_iter().find(|id| id.to_string().eq_ignore_ascii_case(text));
        known.ok_or_else(|| format!("no experiment `{text}`; known are R1 to R9, and all"))
    }
}

/// One run of an experiment: the options that vary.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Case {
    /// vCPUs.
    pub vcpus: usize,
    /// Memory: of each vCPU, or of the guest where vCPUs share it.
    pub bytes: Bytes,
    /// The run is made with so many times less memory, and what grows with it multiplied.
    pub scale: u64,
}

/// What was measured, with both values.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Row {
    /// The experiment.
    pub id: Id,
    /// Options.
    pub case: Case,
    /// What it is.
    pub what: String,
    /// Its unit.
    pub unit: &'static str,
    /// Before and after, as published; `None` where nobody published this case.
    pub published: Option<[Figure; 2]>,
    /// Before and after, simulated.
    pub simulated: [f64; 2],
    /// Where the time of the whole runs went.
    pub times: [Times; 2],
}

impl Row {
    /// Before over after, published: a bound where one of them is.
    pub fn published_ratio(&self) -> Option<Figure> {
        self.published.and_then(|[before, after]| before.over(after))
    }

    /// Before over after, simulated.
    pub fn simulated_ratio(&self) -> f64 {
        self.simulated[0] / self.simulated[1]
    }

    /// The simulated ratio over the published one, less one; 0 on the right side of a bound.
    pub fn error(&self) -> Option<f64> {
        self.published_ratio().map(|ratio| ratio.error(self.simulated_ratio()))
    }

    /// Whether the ratio is within a quarter of the published one, or on the right side of a published bound.
    pub fn within(&self) -> Option<bool> {
        self.published_ratio().map(|ratio| ratio.agrees(self.simulated_ratio()))
    }
}
