//! Where a run's wall time goes, phase by phase. The clock is the caller's: a simulation has none but its own.

use core::time::Duration;

use super::sim::Sim;
use crate::arch::Arch;

/// Time of a run by phase of its windows, as the caller's clock has it. It says something about the host that simulates, nothing about what is simulated.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PhaseTimes {
    /// vCPUs running guest code: the phase that threads share.
    pub vcpus: Duration,
    /// What vCPUs did in a window is applied: flags, acknowledgements, exits.
    pub applying: Duration,
    /// Host actors, and threads of vCPUs in the host.
    pub host: Duration,
}

/// Reads the clock at the end of each phase, if there is one.
#[derive(Default)]
pub(super) struct PhaseClock(Option<Running>);

struct Running {
    clock: fn() -> Duration,
    last: Duration,
    times: PhaseTimes,
}

impl PhaseClock {
    /// Time since the last phase ended goes to this one.
    #[inline]
    pub(super) fn lap(&mut self, phase: fn(&mut PhaseTimes) -> &mut Duration) {
        if let Some(Running { clock, last, times }) = &mut self.0 {
            let now = clock();
            *phase(times) += now.saturating_sub(*last);
            *last = now;
        }
    }
}

impl<A: Arch> Sim<A> {
    /// Times phases from now on by `clock`, which never goes back: three looks at it per window, no change of the result.
    pub fn time_phases(&mut self, clock: fn() -> Duration) {
        self.phases = PhaseClock(Some(Running { clock, last: clock(), times: PhaseTimes::default() }));
    }

    /// Time by phase, zero unless [`time_phases`](Self::time_phases) was called.
    pub fn phase_times(&self) -> PhaseTimes {
        self.phases.0.as_ref().map(|running| running.times).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// A second a look.
    fn looks() -> Duration {
        static LOOKS: AtomicU64 = AtomicU64::new(0);
        Duration::from_secs(LOOKS.fetch_add(1, Ordering::Relaxed))
    }

    #[test]
    fn each_lap_goes_to_its_phase() {
        let (mut clock, second) = (PhaseClock::default(), Duration::from_secs(1));
        clock.lap(|times| &mut times.host);
        assert!(clock.0.is_none(), "nobody asked");
        clock.0 = Some(Running { clock: looks, last: looks(), times: PhaseTimes::default() });
        clock.lap(|times| &mut times.vcpus);
        clock.lap(|times| &mut times.applying);
        clock.lap(|times| &mut times.host);
        clock.lap(|times| &mut times.host);
        assert_eq!(clock.0.unwrap().times, PhaseTimes { vcpus: second, applying: second, host: 2 * second });
    }
}
