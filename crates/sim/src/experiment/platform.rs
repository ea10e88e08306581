//! A machine as one architecture's engine uses it: formats, caches and costs.

use mmu_core::machine::Machine;
use mmu_core::tlb::{CacheSpec, CachesSpec};

use crate::arch::Arch;
use crate::engine::Costs;
use crate::events::Collector;

/// Everything about the hardware of one run.
#[derive(Clone, PartialEq, Debug)]
pub struct Platform<A: Arch> {
    /// Name of the machine.
    pub machine: String,
    /// The formats.
    pub arch: A,
    /// TLBs, paging-structure caches, nested TLB.
    pub caches: CachesSpec,
    /// Caches that walk references go through.
    pub memory: CacheSpec,
    /// Event costs.
    pub costs: Costs,
    /// Clock in hertz.
    pub clock_hz: u64,
    /// Where simulations that are built on it put their recordings, if anybody records.
    pub events: Option<Collector>,
}

impl<A: Arch> Platform<A> {
    /// The formats of `arch` on a described machine.
    pub fn new(arch: A, machine: &Machine) -> Self {
        Self {
            machine: machine.name.clone(),
            arch,
            caches: machine.translation.clone(),
            memory: machine.caches.clone(),
            costs: Costs::of(machine),
            clock_hz: (machine.clock.ghz() * 1e9) as u64,
            events: None,
        }
    }

    /// The same platform, every simulation of which is recorded.
    #[must_use]
    pub fn recording(self, collector: &Collector) -> Self {
        Self { events: Some(collector.clone()), ..self }
    }
}
