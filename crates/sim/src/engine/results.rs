//! What a simulation has come to, for whoever reports it.

use std::cell::Ref;
use std::collections::BTreeMap;

use mmu_core::Cycles;

use super::actor::ActorStats;
use super::op::VcpuId;
use super::sim::Sim;
use super::vcpu::VcpuStats;
use super::world::World;
use crate::arch::Arch;

impl<A: Arch> Sim<A> {
    /// Statistics of every actor that was spawned by the user, by name.
    pub fn actors(&self) -> impl Iterator<Item = (&'static str, &ActorStats)> {
        self.actors.iter().filter(|slot| slot.vcpu.is_none()).map(|slot| (slot.name, &slot.state.stats))
    }

    /// Statistics of the threads of all vCPUs, in the host.
    pub fn threads(&self) -> BTreeMap<VcpuId, ActorStats> {
        self.actors.iter().filter_map(|slot| Some((slot.vcpu?, slot.state.stats))).collect()
    }

    /// Statistics of each vCPU.
    pub fn vcpu_stats(&self) -> Vec<VcpuStats> {
        self.stage.borrow().vcpus.iter().map(|vcpu| vcpu.stats).collect()
    }

    /// Why a vCPU could not go on, if one could not.
    pub fn failure(&self) -> Option<String> {
        self.stage.borrow().vcpus.iter().find_map(|vcpu| {
            let guest = vcpu.error.as_ref().map(ToString::to_string);
            let why = guest.or_else(|| vcpu.stream.error().map(ToString::to_string))?;
            Some(format!("vCPU {}: {why}", vcpu.index))
        })
    }

    /// Windows run so far.
    pub fn windows(&self) -> u64 {
        self.windows
    }

    /// The moment that the simulation has reached.
    pub fn now(&self) -> Cycles {
        self.now
    }

    /// The host and the VM.
    pub fn world(&self) -> Ref<'_, World<A>> {
        Ref::map(self.stage.borrow(), |stage| &stage.world)
    }
}
