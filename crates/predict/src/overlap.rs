//! Several chases at once: what limits them.
//!
//! Independent misses overlap until something is busy all the time. For `k` chases an access takes the longest of
//!
//! * the latency of one chase, shared by `k`;
//! * the time that a walker is busy for it, shared by the walkers. A walk that waits for memory leaves its walker;
//! * the whole walk, shared by the walks that can be under way;
//! * the data that comes from beyond the first level, shared by the fill buffers;
//! * the instructions of the loop.

use mmu_core::machine::Machine;

use crate::chase::Counts;
use crate::curve::{Curve, Form};

/// Cycles of an access while `curve.chains` chases run, from what one chase alone shows.
pub(crate) fn cycles(machine: &Machine, curve: &Curve, counts: &Counts, alone: f64) -> f64 {
    if curve.chains <= 1 {
        return alone;
    }
    let per = |total: u64| total as f64 / counts.accesses.max(1) as f64;
    let memory = machine.caches.memory.0 as f64;
    let beyond = machine.caches.levels.len().min(counts.walk_served.len() - 1);
    let walks = per(counts.walks);
    let waiting = memory * per(counts.walk_served[beyond]);
    // The walker holds the load's place until its page is known and the load is made again.
    let load = alone - per(counts.walk_cycles) - memory * per(counts.data_served[beyond]);
    let busy = walks * load + per(counts.walk_cycles) - waiting;
    let filled = per(counts.data_cycles) - 5.0 * per(counts.data_served[0]);
    [
        alone / f64::from(curve.chains),
        busy / f64::from(machine.walk.walkers),
        per(counts.walk_cycles) / f64::from(machine.walk.in_flight),
        filled / f64::from(machine.caches.fill_buffers),
        loop_cycles(curve),
    ]
    .into_iter()
    .fold(0.0, f64::max)
}

/// What the benchmark's own loop takes for each access: three loads where a list says which page is next.
fn loop_cycles(curve: &Curve) -> f64 {
    match curve.form {
        Form::Zero | Form::Regions { .. } => 3.0,
        _ => 1.0,
    }
}
