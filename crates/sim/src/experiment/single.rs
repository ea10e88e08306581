//! One run of `compare zap`, window by window, that can be saved and continued.

use mmu_core::Cycles;
use serde::Serialize;

use super::platform::Platform;
use super::vm::{VmSpec, build_without_threads};
use super::zap::{Finished, RunError, Spread, Strategy, Target, ZapRequest, finish, people};
use crate::arch::Arch;
use crate::engine::{ActorStats, HostCounters, Sim, Stopped, Threads, VcpuStats};
use crate::snapshot::{Snapshot, SnapshotError};

/// A VM under one strategy, or under none.
#[derive(Debug)]
pub struct ZapRun<A: Arch> {
    sim: Sim<A>,
    strategy: Option<Strategy>,
    root: mmu_core::Hpa,
}

/// What a run came to. Cycles are simulated.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct RunReport {
    /// Name of the architecture.
    pub arch: &'static str,
    /// Name of the machine.
    pub machine: String,
    /// Clock in hertz.
    pub clock_hz: u64,
    /// The strategy, if there was one.
    pub strategy: Option<&'static str>,
    /// Windows of the run.
    pub windows: u64,
    /// When each vCPU finished.
    pub finished: Vec<Cycles>,
    /// The same over vCPUs.
    pub spread: Spread,
    /// What the zap did.
    pub zap: ActorStats,
    /// Time spent waiting for locks.
    pub lock_wait: Cycles,
    /// Host counters.
    pub host: HostCounters,
    /// vCPU counters, summed.
    pub guest: VcpuStats,
}

impl<A: Arch> ZapRun<A> {
    /// Sets the run up. Threads matter to how fast it goes only.
    ///
    /// # Errors
    /// The VM cannot be built.
    pub fn new(
        platform: &Platform<A>,
        vm: &VmSpec,
        request: ZapRequest,
        strategy: Option<Strategy>,
        threads: Threads,
    ) -> Result<Self, RunError> {
        let mut sim = build_without_threads(platform, vm).map_err(RunError::Build)?;
        sim.keep_notes();
        let root = people(&mut sim, vm, request, strategy, threads);
        sim.begin_notes();
        Ok(Self { sim, strategy, root })
    }

    /// Goes to where a run of the same experiment was saved, before the first turn.
    ///
    /// # Errors
    /// The snapshot is of another experiment.
    pub fn resume(&mut self, snapshot: &Snapshot) -> Result<(), SnapshotError> {
        snapshot.restore(&mut self.sim)
    }

    /// Runs one window; false when the run is over.
    ///
    /// # Errors
    /// A deadlock.
    pub fn turn(&mut self) -> Result<bool, RunError> {
        match self.sim.turn() {
            None => Ok(true),
            Some(Stopped::Finished) => Ok(false),
            Some(Stopped::Deadlock { at, actors }) => Err(RunError::Deadlock { at, actors }),
        }
    }

    /// The run as a snapshot; `config` says how to set up the same one again.
    ///
    /// # Errors
    /// A run that has gone wrong.
    pub fn save(&self, config: &str) -> Result<Vec<u8>, SnapshotError> {
        Snapshot::save(&self.sim, config)
    }

    /// The simulation.
    pub fn sim(&self) -> &Sim<A> {
        &self.sim
    }

    /// Runs to the end, ends the VM, and adds up what was done.
    ///
    /// # Errors
    /// A vCPU that could not go on, a deadlock, a violated invariant.
    pub fn finish(mut self, platform: &Platform<A>) -> Result<RunReport, RunError> {
        while self.turn()? {}
        let moved = self.sim.world().root() != self.root;
        if self.strategy.is_some_and(|strategy| strategy.target == Target::Root) && !moved {
            return Err(RunError::Guest("no table is left for a new root; give the guest less memory".to_owned()));
        }
        let windows = self.sim.windows();
        let Finished { per_vcpu, guest, host, lock_wait, zap } = finish(&mut self.sim)?;
        Ok(RunReport {
            arch: platform.arch.name(),
            machine: platform.machine.clone(),
            clock_hz: platform.clock_hz,
            strategy: self.strategy.map(|strategy| strategy.name),
            windows,
            spread: Spread::of(per_vcpu.iter().map(|cycles| cycles.0).collect()),
            finished: per_vcpu,
            zap,
            lock_wait,
            host,
            guest,
        })
    }
}
