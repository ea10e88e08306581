//! Where a run's wall time goes, phase by phase.

use std::time::{Duration, Instant};

use super::sim::Sim;
use crate::arch::Arch;

/// Wall time of a run by phase of its windows. It says something about the host that simulates, nothing about what is simulated.
#[derive(Clone, Copy, Debug, Default)]
pub struct PhaseTimes {
    /// vCPUs running guest code: the phase that threads share.
    pub vcpus: Duration,
    /// What vCPUs did in a window is applied: flags, acknowledgements, exits.
    pub applying: Duration,
    /// Host actors, and threads of vCPUs in the host.
    pub host: Duration,
}

/// Reads the clock at the end of each phase, if somebody asked for it.
#[derive(Default)]
pub(super) struct PhaseClock(Option<(Instant, PhaseTimes)>);

impl PhaseClock {
    /// Wall time since the last phase ended goes to this one.
    #[inline]
    pub(super) fn lap(&mut self, phase: fn(&mut PhaseTimes) -> &mut Duration) {
        if let Some((last, times)) = &mut self.0 {
            let now = Instant::now();
            *phase(times) += now - *last;
            *last = now;
        }
    }
}

impl<A: Arch> Sim<A> {
    /// Takes the wall time of phases from now on: three looks at the clock per window, no change of the result.
    pub fn time_phases(&mut self) {
        self.phases = PhaseClock(Some((Instant::now(), PhaseTimes::default())));
    }

    /// Wall time by phase, zero unless [`time_phases`](Self::time_phases) was called.
    pub fn phase_times(&self) -> PhaseTimes {
        self.phases.0.map(|(_, times)| times).unwrap_or_default()
    }
}
