//! `compare zap`: what each way of zapping and flushing costs the host and the running vCPUs.
//!
//! Every strategy meets the same guest: the vCPUs' accesses depend on the workload and the seed alone. A run without any zap
//! is the baseline; what a vCPU loses is how much later it finishes the same accesses.

use mmu_core::{Bytes, Cycles, Gpa, GpaRange, Hpa};
use serde::Serialize;

use super::platform::Platform;
use super::vm::{BuildError, VmSpec, build_without_threads};
use crate::arch::Arch;
use crate::engine::{HostCounters, LockMode, Sim, Stopped, Threads, VcpuId, VcpuStats, Watch};
use crate::protocols::fault::FaultPolicy;
use crate::protocols::iter::{FlushOnYield, Yield};
use crate::protocols::notifier::{Precheck, RetryPolicy};
use crate::protocols::zap::{Passes, TableFlush, ZapLock, ZapPolicy};
use crate::protocols::{memslot, notifier, vcpu};

/// What the host zaps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// The leaves of a range, around the primary MMU freeing its pages.
    Range,
    /// The whole root, as when a memslot is deleted.
    Root,
}

/// One way of zapping.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Strategy {
    /// Short name.
    pub name: &'static str,
    /// What is zapped.
    pub target: Target,
    /// How.
    pub policy: ZapPolicy,
}

/// The strategies that `compare zap` runs, in the order of history.
pub fn strategies() -> Vec<Strategy> {
    let range = |name, policy| Strategy { name, target: Target::Range, policy };
    let root = |name, policy| Strategy { name, target: Target::Root, policy };
    let v5_17 = ZapPolicy::V5_17;
    let v5_18 = ZapPolicy::V5_18;
    vec![
        range("range, never yields", ZapPolicy { yielding: Yield::Never, ..v5_17 }),
        range(
            "range, yields after work, always flushes (5.11)",
            ZapPolicy { yielding: Yield::AfterWorkOnly, flush_on_yield: FlushOnYield::Always, ..v5_17 },
        ),
        range("range, yields first, flushes if pending (5.12)", v5_17),
        root("root, no yield, flush per table", ZapPolicy { yielding: Yield::Never, ..v5_17 }),
        root("root, one pass, flush per table (5.17)", v5_17),
        root("root, one pass, flush behind RCU", ZapPolicy { flush: TableFlush::DeferredRcu, ..v5_17 }),
        root(
            "root, 1G then root, flush behind RCU",
            ZapPolicy { flush: TableFlush::DeferredRcu, passes: Passes::GigThenRoot, ..v5_17 },
        ),
        root(
            "root, 1G then root, no flush, write lock",
            ZapPolicy { flush: TableFlush::NoneUnreachable, passes: Passes::GigThenRoot, ..v5_17 },
        ),
        root("root, 1G then root, no flush, read lock (5.18)", v5_18),
        root("root, 4K-2M-1G-root, no flush, read lock (6.9)", ZapPolicy { lock: ZapLock::Read, ..ZapPolicy::V6_9 }),
    ]
}

/// When and what to zap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ZapRequest {
    /// Length of the range from guest-physical 0, for strategies that zap one.
    pub range: Bytes,
    /// Warm-up before the zap starts.
    pub after: Cycles,
}

/// Spread of a figure over vCPUs.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Spread {
    /// Arithmetic mean, rounded down.
    pub mean: u64,
    /// Median: the smallest value that at least half do not exceed.
    pub p50: u64,
    /// The same for 99 in a hundred.
    pub p99: u64,
    /// Largest.
    pub max: u64,
}

impl Spread {
    /// Of these values.
    pub fn of(mut values: Vec<u64>) -> Self {
        values.sort_unstable();
        let rank = |hundredths: usize| {
            let index = (values.len() * hundredths).div_ceil(100).saturating_sub(1);
            values.get(index).copied().unwrap_or(0)
        };
        let sum: u128 = values.iter().map(|&value| u128::from(value)).sum();
        let mean = (sum / values.len().max(1) as u128) as u64;
        Self { mean, p50: rank(50), p99: rank(99), max: values.last().copied().unwrap_or(0) }
    }
}

/// What one strategy cost. Cycles are simulated.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct ZapRow {
    /// The strategy.
    pub strategy: Strategy,
    /// From the start of the zap to its end.
    pub zap_cycles: Cycles,
    /// How much later each vCPU finished the same accesses than without a zap.
    pub lost_cycles: Spread,
    /// Second-stage faults more than without a zap, all vCPUs.
    pub faults: u64,
    /// Remote flushes more than without a zap.
    pub remote_flushes: u64,
    /// Table entries that the host looked at.
    pub entries_visited: u64,
    /// Longest stretch of the zap without a chance to reschedule.
    pub longest_unscheduled: Cycles,
    /// Longest RCU read section of the zap.
    pub longest_rcu: Cycles,
    /// Time spent waiting for locks, by the zap and by faulting vCPUs.
    pub lock_wait: Cycles,
    /// Host counters of the run.
    pub host: HostCounters,
    /// vCPU counters of the run, summed.
    pub guest: VcpuStats,
}

/// All strategies on one platform.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct ZapReport {
    /// Name of the architecture.
    pub arch: &'static str,
    /// Name of the machine.
    pub machine: String,
    /// Clock in hertz.
    pub clock_hz: u64,
    /// When the vCPUs finished without a zap.
    pub baseline: Spread,
    /// One row per strategy.
    pub rows: Vec<ZapRow>,
}

/// Why an experiment did not end as it should.
#[derive(Debug)]
pub enum RunError {
    /// The VM could not be built.
    Build(BuildError),
    /// A vCPU could not go on.
    Guest(String),
    /// Actors wait for each other.
    Deadlock {
        /// When.
        at: Cycles,
        /// How many.
        actors: usize,
    },
    /// An invariant was violated; each is described.
    Violations(Vec<String>),
}

impl std::fmt::Display for RunError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RunError::Build(error) => error.fmt(f),
            RunError::Guest(why) => f.write_str(why),
            RunError::Deadlock { at, actors } => {
                write!(f, "deadlock at cycle {at}: {actors} host actors wait for ever")
            }
            RunError::Violations(violations) => {
                write!(f, "{} invariants violated, the first: {}", violations.len(), violations[0])
            }
        }
    }
}
impl std::error::Error for RunError {}

/// One finished run.
pub(super) struct Finished {
    pub(super) per_vcpu: Vec<Cycles>,
    pub(super) guest: VcpuStats,
    pub(super) host: HostCounters,
    pub(super) lock_wait: Cycles,
    pub(super) zap: crate::engine::ActorStats,
}

/// Compares strategies on one platform. `progress` is called after each run.
///
/// # Errors
/// When the VM cannot be built, a vCPU cannot go on, or an invariant is violated.
pub fn compare_zap<A: Arch>(
    platform: &Platform<A>,
    vm: &VmSpec,
    request: ZapRequest,
    strategies: &[Strategy],
    threads: Threads,
    mut progress: impl FnMut(),
) -> Result<ZapReport, RunError> {
    let baseline = run(platform, vm, request, None, threads)?;
    progress();
    let mut rows = Vec::with_capacity(strategies.len());
    for &strategy in strategies {
        let with = run(platform, vm, request, Some(strategy), threads)?;
        rows.push(row(strategy, &baseline, &with));
        progress();
    }
    let finished = baseline.per_vcpu.iter().map(|cycles| cycles.0).collect();
    Ok(ZapReport {
        arch: platform.arch.name(),
        machine: platform.machine.clone(),
        clock_hz: platform.clock_hz,
        baseline: Spread::of(finished),
        rows,
    })
}

fn row(strategy: Strategy, baseline: &Finished, with: &Finished) -> ZapRow {
    let lost = with.per_vcpu.iter().zip(&baseline.per_vcpu).map(|(with, without)| with.since(*without).0);
    ZapRow {
        strategy,
        zap_cycles: with.zap.finished.since(with.zap.started),
        lost_cycles: Spread::of(lost.collect()),
        faults: with.guest.faults.saturating_sub(baseline.guest.faults),
        remote_flushes: with.host.remote_flushes.saturating_sub(baseline.host.remote_flushes),
        entries_visited: with.host.visits,
        longest_unscheduled: with.zap.longest_unscheduled,
        longest_rcu: with.zap.longest_rcu,
        lock_wait: with.lock_wait,
        host: with.host,
        guest: with.guest,
    }
}

fn run<A: Arch>(
    platform: &Platform<A>,
    vm: &VmSpec,
    request: ZapRequest,
    strategy: Option<Strategy>,
    threads: Threads,
) -> Result<Finished, RunError> {
    let mut sim = build_without_threads(platform, vm).map_err(RunError::Build)?;
    sim.name_recording(strategy.map_or("without a zap", |strategy| strategy.name));
    let root = people(&mut sim, vm, request, strategy, threads);
    if let Stopped::Deadlock { at, actors } = sim.run() {
        return Err(RunError::Deadlock { at, actors });
    }
    if strategy.is_some_and(|strategy| strategy.target == Target::Root) && sim.world().root() == root {
        return Err(RunError::Guest("no table is left for a new root; give the guest less memory".to_owned()));
    }
    finish(&mut sim)
}

/// Gives a VM that was built the threads of its vCPUs, and the zap if there is one; the root that it has by then.
///
/// Up to 6.7, as most of the strategies are, a fault looks for invalidations under the lock only: that is who wants the zap to
/// yield.
pub(super) fn people<A: Arch>(
    sim: &mut Sim<A>,
    vm: &VmSpec,
    request: ZapRequest,
    strategy: Option<Strategy>,
    threads: Threads,
) -> Hpa {
    let retry = RetryPolicy { precheck: Precheck::None, ..RetryPolicy::V6_8 };
    let faults = FaultPolicy { retry, ..FaultPolicy::new(LockMode::Read, vm.page) };
    for vcpu in (0..vm.vcpus).map(VcpuId) {
        sim.spawn_vcpu(vcpu, |host| Box::pin(vcpu::thread(host, vcpu, faults)));
    }
    sim.set_threads(threads);
    sim.set_watch(Watch::Accesses);
    let root = sim.world().root();
    if let Some(strategy) = strategy {
        spawn(sim, request, strategy);
    }
    root
}

fn spawn<A: Arch>(sim: &mut Sim<A>, request: ZapRequest, strategy: Strategy) {
    let range = GpaRange::new(Gpa::new(0), request.range);
    sim.spawn("zap", request.after, move |host| {
        Box::pin(async move {
            match strategy.target {
                Target::Range => notifier::invalidate_range(&host, range, &strategy.policy).await,
                Target::Root => {
                    // Out of tables the root stays what it was, which `run` reports.
                    let _ = memslot::zap_all_fast(&host, &strategy.policy).await;
                }
            }
        })
    });
}

/// Checks that the run ended well and adds up what it did.
pub(super) fn finish<A: Arch>(sim: &mut Sim<A>) -> Result<Finished, RunError> {
    if let Some(why) = sim.failure() {
        return Err(RunError::Guest(why));
    }
    // What the experiment did is counted before the VM goes.
    let (host, lock_wait) = (*sim.world().counters(), sim.world().lock_wait());
    let zap = sim.actors().find(|(name, _)| *name == "zap").map(|(_, stats)| *stats).unwrap_or_default();
    if let Stopped::Deadlock { at, actors } = sim.destroy() {
        return Err(RunError::Deadlock { at, actors });
    }
    let violations: Vec<String> = sim.world().violations().iter().map(ToString::to_string).collect();
    if !violations.is_empty() {
        return Err(RunError::Violations(violations));
    }
    Ok(Finished {
        per_vcpu: sim.vcpu_stats().iter().map(|stats| stats.finished).collect(),
        guest: sim.vcpu_stats().iter().fold(VcpuStats::default(), VcpuStats::merge),
        host,
        lock_wait,
        zap,
    })
}
