//! Ticks of the timer, nanoseconds and core cycles.

use std::time::{Duration, Instant};

use crate::sys;

/// How the timer's ticks relate to time and to core cycles.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Clock {
    /// Ticks in a nanosecond.
    pub(crate) per_ns: f64,
    /// Ticks in a core cycle, while the core runs as fast as it did when this was measured.
    pub(crate) per_cycle: f64,
}

/// Dependent operations in one measurement of the core's clock.
const OPERATIONS: u64 = 300_000;

impl Clock {
    /// Against the system's clock, and against operations whose cycles are known.
    pub(crate) fn measure() -> Self {
        let (start, from) = (Instant::now(), sys::ticks());
        // Busy, so that the core has its full clock before it is measured.
        while start.elapsed() < Duration::from_millis(50) {
            sys::dependent_operations(1000);
        }
        let ticks = sys::ticks().wrapping_sub(from);
        let per_ns = ticks as f64 / start.elapsed().as_nanos() as f64;
        let mut cycles: Vec<f64> = (0..15).map(|_| ticks_per_cycle()).collect();
        cycles.sort_by(f64::total_cmp);
        Self { per_ns, per_cycle: cycles[cycles.len() / 2] }
    }
}

/// Ticks of one core cycle.
pub(crate) fn ticks_per_cycle() -> f64 {
    let from = sys::ticks();
    sys::dependent_operations(OPERATIONS);
    sys::ticks().wrapping_sub(from) as f64 / (OPERATIONS * sys::CYCLES_OF_OPERATION) as f64
}

/// Ticks of one of `units` that something does.
pub(crate) fn timed(units: u64, work: impl FnOnce()) -> f64 {
    let from = sys::ticks();
    work();
    sys::ticks().wrapping_sub(from) as f64 / units.max(1) as f64
}
