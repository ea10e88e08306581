//! What counted events cost: the sheet's latencies, on average over the accesses of a point.

use mmu_core::Cycles;
use mmu_core::machine::Machine;

use crate::chase::{Counts, SERVERS};
use crate::curve::{Curve, Form};

/// Cycles of an access by cause.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(crate) struct Price {
    /// The chase itself.
    pub(crate) own: f64,
    /// Look-ups of the second-level TLB.
    pub(crate) l2_tlb: f64,
    /// Walks.
    pub(crate) walk: f64,
    /// The data.
    pub(crate) data: f64,
    /// Following jumps.
    pub(crate) jumps: f64,
}

impl Price {
    /// Of these counts on a machine.
    pub(crate) fn of(machine: &Machine, curve: &Curve, counts: &Counts) -> Self {
        let per = |total: f64| total / counts.accesses.max(1) as f64;
        let extra = if curve.fetches() {
            machine.translation.tlb.l2_hit_extra_fetch
        } else {
            machine.translation.tlb.l2_hit_extra
        };
        let served = |served: &[u64; SERVERS], cost: &dyn Fn(Cycles) -> Cycles| {
            let each = served.iter().enumerate();
            each.map(|(server, &count)| count as f64 * cost(latency(machine, server)).0 as f64).sum::<f64>()
        };
        let references = served(&counts.walk_served, &|latency| machine.walk.reference(latency));
        Self {
            own: own_cycles(curve),
            l2_tlb: per(counts.l1_misses as f64 * extra.0 as f64),
            walk: per(counts.walks as f64 * machine.walk.fixed.0 as f64 + references),
            data: per(served(&counts.data_served, &|latency| latency)),
            jumps: per(jumps(machine, counts)),
        }
    }

    /// All of it.
    pub(crate) fn alone(&self) -> f64 {
        self.own + self.l2_tlb + self.walk + self.data + self.jumps
    }
}

/// Latency of the cache of this number, or of memory behind the last.
fn latency(machine: &Machine, server: usize) -> Cycles {
    machine.caches.levels.get(server).map_or(machine.caches.memory, |level| level.latency)
}

fn jumps(machine: &Machine, counts: &Counts) -> f64 {
    // A machine whose front end is not described follows a jump in each cycle.
    let cycles = |place: usize| {
        machine.fetch.as_ref().map_or(1.0, |fetch| fetch.levels.get(place).map_or(fetch.beyond, |level| level.cycles))
    };
    counts.jumps.iter().enumerate().map(|(place, &count)| count as f64 * cycles(place)).sum()
}

/// Cycles of the chase itself besides its loads: where pages hold nothing, the next address is worked out from the list.
fn own_cycles(curve: &Curve) -> f64 {
    match curve.form {
        Form::Zero | Form::Regions { .. } => 2.0,
        _ => 0.0,
    }
}
