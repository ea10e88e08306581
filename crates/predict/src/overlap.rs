//! Several chases at once: what limits them.
//!
//! Independent misses overlap until something is busy all the time. For `k` chases an access takes the longest of
//!
//! * the latency of one chase, shared by `k`;
//! * the time that a walker is busy for it, shared by the walkers. A walk that waits for memory leaves its walker;
//! * the whole walk, shared by the walks that can be under way;
//! * the lines that come from beyond the first level, those of walks among them, shared by the fill buffers;
//! * the instructions of the loop.
//!
//! Memory answers a lone request later than one of several: interconnect and memory controller save power while there is one at a time. The
//! sheet's figure `memory_overlapped` is the latency from three chases on; two are half-way there.

use mmu_core::machine::Machine;

use crate::chase::Counts;
use crate::curve::{Curve, Form};
use crate::price::Price;

/// Chases from which on memory is as fast as it gets.
const BUSY: u32 = 3;

/// Cycles of an access while `curve.chains` chases run, from what one chase alone shows.
pub(crate) fn cycles(machine: &Machine, curve: &Curve, counts: &Counts, price: &Price) -> f64 {
    let alone = price.alone();
    if curve.chains <= 1 {
        return alone;
    }
    let per = |total: u64| total as f64 / counts.accesses.max(1) as f64;
    let memory = machine.caches.memory.0 as f64;
    let beyond = machine.caches.levels.len().min(counts.walk_served.len() - 1);
    let (walk_waits, data_waits) = (per(counts.walk_served[beyond]), per(counts.data_served[beyond]));
    let spared = memory - latency(machine, curve.chains);
    let (walk, data) = (price.walk - spared * walk_waits, price.data - spared * data_waits);
    // The walker holds the load's place until its page is known and the load is made again.
    let load = alone - price.walk - memory * data_waits;
    let busy = per(counts.walks) * load + price.walk - memory * walk_waits;
    let near = machine.caches.levels.first().map_or(0.0, |level| level.latency.0 as f64);
    let filled = walk + data - near * (per(counts.walk_served[0]) + per(counts.data_served[0]));
    [
        (alone - spared * (walk_waits + data_waits)) / f64::from(curve.chains),
        busy / f64::from(machine.walk.walkers),
        walk / f64::from(machine.walk.in_flight),
        filled / f64::from(machine.caches.fill_buffers),
        loop_cycles(curve),
    ]
    .into_iter()
    .fold(0.0, f64::max)
}

/// Cycles until memory answers while so many chases ask.
fn latency(machine: &Machine, chains: u32) -> f64 {
    let lone = machine.caches.memory.0 as f64;
    let Some(&overlapped) = machine.software_ns.get("memory_overlapped") else { return lone };
    let share = f64::from(chains.min(BUSY) - 1) / f64::from(BUSY - 1);
    lone + share * (overlapped * machine.clock.ghz() - lone)
}

/// What the benchmark's own loop takes for each access: three loads where a list says which page is next.
fn loop_cycles(curve: &Curve) -> f64 {
    match curve.form {
        Form::Zero | Form::Regions { .. } => 3.0,
        _ => 1.0,
    }
}
