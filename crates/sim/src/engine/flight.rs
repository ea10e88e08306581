//! Requests that are on their way to several vCPUs at once.

use mmu_core::Cycles;

use super::lock::ActorId;

/// A flush or kick under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Flight {
    /// Who waits for it.
    pub(crate) actor: ActorId,
    /// When it was sent.
    pub(crate) started: Cycles,
    /// vCPUs that have not answered.
    pub(crate) waiting: u64,
    /// The latest answer so far.
    pub(crate) last: Cycles,
}

/// Number of a flight.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct FlightId(pub(crate) usize);
