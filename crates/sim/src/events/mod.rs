//! Events: what a run did, moment by moment, under the names of the kernel's tracepoints.
//!
//! Off by default: a simulation without a [`Collector`] holds no recorder, and an operation that could record asks for one
//! once. On, every actor and every vCPU has a [`Track`] of its own, and each [`Event`] carries the cycle it began at and, for a slice, how
//! long it took. Tracks are filled by the engine after the parallel phase, in the engine's own order, so a recording is the same bit
//! for bit for any number of threads.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `trace` | the events: kernel tracepoints by name and field, and the simulator's own |
//! | `recorder` | what the engine fills: tracks, open slices, the bound |
//! | `places` | which guest page a table word stands for |
//! | `json` | one line of JSON per event |
//! | `chrome` | the trace format of `chrome://tracing`, which Perfetto reads |
//!
//! # The bound
//!
//! A recording keeps at most [`Collector::LIMIT`] events, or as many as [`Collector::with_limit`] says. Further events are not kept but
//! counted: [`Recording::lost`] says how many, and [`Recording::lost_since`] from which cycle on; both writers write it.
//!
//! ```
//! use mmu_sim::events::{Collector, json};
//! let collector = Collector::new();
//! // Platform::recording(&collector) hands it to every simulation that is built on the platform.
//! let mut text = String::new();
//! for recording in collector.take() {
//!     json::write(&mut text, 0, &recording);
//! }
//! assert_eq!(text, "");
//! ```

pub mod chrome;
pub mod json;
mod places;
mod recorder;
mod trace;

pub(crate) use places::Places;
pub use recorder::{Collector, Recording};
pub(crate) use recorder::{Open, Recorder};
pub use trace::{Trace, Value};

use std::fmt;

use mmu_core::Cycles;

/// Whose timeline an event belongs to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Track {
    /// A vCPU, in the guest and in the host alike.
    Vcpu(u32),
    /// A host actor by number.
    Actor(u32),
    /// Grace periods.
    Rcu,
}

impl fmt::Display for Track {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Track::Vcpu(index) => write!(f, "vcpu {index}"),
            Track::Actor(number) => write!(f, "actor {number}"),
            Track::Rcu => f.write_str("rcu"),
        }
    }
}

/// How a slice ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// By itself.
    Properly,
    /// It was still open when the run ended, and is as long as the run was.
    WithTheRun,
}

/// Whether an event is an instant or a stretch of time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extent {
    /// An instant.
    Point,
    /// A slice.
    Slice {
        /// How long it took.
        took: Cycles,
        /// How it ended.
        ended: Ended,
    },
    /// An instant from which an arrow leads to the [`Extent::Arrives`] of the same number.
    Departs(u64),
    /// Where the arrow of this number ends.
    Arrives(u64),
}

/// Something that happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// When it happened or began.
    pub at: Cycles,
    /// Whose it is.
    pub track: Track,
    /// Instant or slice.
    pub extent: Extent,
    /// What happened.
    pub what: Trace,
}

impl Event {
    /// When it was over.
    pub fn end(&self) -> Cycles {
        match self.extent {
            Extent::Slice { took, .. } => self.at + took,
            Extent::Point | Extent::Departs(_) | Extent::Arrives(_) => self.at,
        }
    }
}
