//! Guest workloads: what a vCPU accesses, as a stream that depends on (workload, seed, vCPU) only.

mod pattern;
mod replay;

pub use pattern::{Mix, Pattern, PatternSpec};
pub use replay::{Replay, ReplayError, ReplayState, TraceSpec};

use mmu_core::{AccessKind, Gva};

use serde::{Deserialize, Serialize};

use crate::rng::Seed;

/// One guest access.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct GuestAccess {
    /// Guest-virtual address.
    pub gva: Gva,
    /// Load, store or fetch.
    pub kind: AccessKind,
}

/// What the guest does, for all vCPUs.
#[derive(Clone, PartialEq, Debug)]
pub enum Workload {
    /// A synthetic pattern.
    Pattern(PatternSpec),
    /// A recorded trace, replayed by every vCPU in an address space of its own.
    Trace(TraceSpec),
    /// Nothing: the vCPUs are idle.
    Idle,
}

/// Work for one vCPU in a phase of its life.
#[derive(Clone, PartialEq, Debug)]
pub enum GuestWork {
    /// A synthetic pattern over guest memory from `base` on.
    Pattern {
        /// What is touched, how.
        spec: PatternSpec,
        /// Where it begins.
        base: Gva,
        /// Seed of its random choices.
        seed: Seed,
    },
    /// These accesses.
    List(Vec<GuestAccess>),
    /// Nothing: the vCPU leaves the guest at once.
    Idle,
}

impl GuestWork {
    pub(crate) fn stream(self, vcpu: u64) -> GuestStream {
        match self {
            GuestWork::Pattern { spec, base, seed } => {
                GuestStream::Pattern(Box::new(Pattern::new(&spec, base, seed, vcpu)))
            }
            GuestWork::List(accesses) => GuestStream::List(accesses.into_iter()),
            GuestWork::Idle => GuestStream::Idle,
        }
    }
}

/// One vCPU's stream of accesses.
#[derive(Debug)]
pub enum GuestStream {
    /// These accesses.
    List(std::vec::IntoIter<GuestAccess>),
    /// A synthetic pattern.
    Pattern(Box<Pattern>),
    /// A trace being read.
    Trace(Box<Replay>),
    /// Nothing.
    Idle,
}

/// How far a stream has come.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum StreamState {
    /// These accesses are left.
    List(Vec<GuestAccess>),
    /// The pattern with all it remembers.
    Pattern(Box<Pattern>),
    /// A place in the trace of the specification.
    Trace(ReplayState),
    /// Nothing.
    Idle,
}

impl GuestStream {
    pub(crate) fn state(&self) -> StreamState {
        match self {
            GuestStream::List(accesses) => StreamState::List(accesses.as_slice().to_vec()),
            GuestStream::Pattern(pattern) => StreamState::Pattern(pattern.clone()),
            GuestStream::Trace(replay) => StreamState::Trace(replay.state()),
            GuestStream::Idle => StreamState::Idle,
        }
    }

    /// Goes to where a stream of the same specification was.
    pub(crate) fn set(&mut self, state: StreamState) -> Result<(), ReplayError> {
        match (state, &mut *self) {
            (StreamState::Trace(state), GuestStream::Trace(replay)) => replay.set(state)?,
            (StreamState::Trace(_), _) => return Err(ReplayError::NoTrace),
            (StreamState::List(left), stream) => *stream = GuestStream::List(left.into_iter()),
            (StreamState::Pattern(pattern), stream) => *stream = GuestStream::Pattern(pattern),
            (StreamState::Idle, stream) => *stream = GuestStream::Idle,
        }
        Ok(())
    }

    /// Why the stream ended before its time, if it did.
    pub fn error(&self) -> Option<&ReplayError> {
        match self {
            GuestStream::Trace(replay) => replay.error(),
            GuestStream::List(_) | GuestStream::Pattern(_) | GuestStream::Idle => None,
        }
    }
}

impl Iterator for GuestStream {
    type Item = GuestAccess;

    #[inline]
    fn next(&mut self) -> Option<GuestAccess> {
        match self {
            GuestStream::List(accesses) => accesses.next(),
            GuestStream::Pattern(pattern) => pattern.next(),
            GuestStream::Trace(replay) => replay.next(),
            GuestStream::Idle => None,
        }
    }
}
