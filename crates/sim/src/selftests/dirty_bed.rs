//! What the dirty logging tests have in common: a VM with a log over all of its memory, vCPU threads that go through phases, and a main thread
//! that times each.

use std::cell::RefCell;
use std::rc::Rc;

use mmu_core::{Bytes, Cycles, Format, Gpa, GpaRange, Hpa, Level, PageSize};

use super::phases::Phases;
use super::{Phase, SelftestError, SelftestReport, guest_paging, option_error};
use crate::arch::Arch;
use crate::engine::{Apply, Host, ReschedCheck, RunBelow, Sim, Var, VcpuId, Watch};
use crate::experiment::{Platform, Populate, VmSpec, build_without_threads};
use crate::protocols::dirty_log::ring::{Collector, DirtyRing, reset_dirty_rings};
use crate::protocols::dirty_log::vcpu::{LoggedSlot, run};
use crate::protocols::dirty_log::{DirtyLog, DirtyPolicy, LogKind, Manual, Tracking, clear_dirty_log, get_dirty_log};
use crate::protocols::fault::{FaultPolicy, Faults};
use crate::protocols::iter::{TdpIter, skip_run};
use crate::protocols::nested::Shadow;
use crate::protocols::vcpu::Ran;
use crate::rng::Seed;
use crate::workload::{GuestWork, Workload};

/// A simulation with a dirty log, before its main thread is spawned.
pub(super) struct Bed<A: Arch> {
    pub(super) sim: Sim<A>,
    /// The first slot.
    pub(super) log: DirtyLog,
    pub(super) slots: u64,
    pub(super) phases: Phases,
}

/// A vCPU's thread of a test.
#[derive(Clone, Copy, Debug)]
pub(super) struct Thread {
    pub(super) vcpu: VcpuId,
    pub(super) policy: FaultPolicy,
    /// Where the pages that it writes are logged, if not in the bitmap.
    pub(super) ring: Option<DirtyRing>,
    /// The tree that it runs on, if it runs a nested guest.
    pub(super) shadow: Option<Shadow>,
    /// The work of its last phase, if it is done over and over.
    pub(super) repeats: Option<Repeats>,
}

/// Work that is done over and over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Repeats {
    /// In this phase, which is the last.
    pub(super) phase: u64,
    /// Until this is set, and the pass that is under way then is complete.
    pub(super) until: Var,
}

impl Thread {
    pub(super) const fn new(vcpu: VcpuId, policy: FaultPolicy) -> Self {
        Self { vcpu, policy, ring: None, shadow: None, repeats: None }
    }
}

/// A VM of `memory` whose host backs it by pages of `page` when they are first touched, with nothing mapped.
pub(super) fn vm<A: Arch>(platform: &Platform<A>, memory: Bytes, vcpus: usize, page: PageSize) -> VmSpec {
    VmSpec {
        memory,
        vcpus,
        page,
        guest: guest_paging(platform),
        populate: Populate::Untouched,
        workload: Workload::Idle,
        seed: Seed(0),
    }
}

impl<A: Arch> Bed<A> {
    pub(super) fn new(platform: &Platform<A>, spec: &VmSpec, kind: LogKind) -> Result<Self, SelftestError> {
        Self::in_slots(platform, spec, kind, GpaRange::new(Gpa::new(0), spec.memory), 1)
    }

    /// With the `tested` part of its memory in so many slots of equal size, which divide it.
    pub(super) fn in_slots(
        platform: &Platform<A>,
        spec: &VmSpec,
        kind: LogKind,
        tested: GpaRange,
        slots: u64,
    ) -> Result<Self, SelftestError> {
        let mut sim = build_without_threads(platform, spec)?;
        sim.set_watch(Watch::Writes);
        let page = platform.arch.two().geometry().page_size(Level::LAST);
        let first = GpaRange::new(tested.start, Bytes(tested.bytes.0 / slots));
        let log = DirtyLog::new(first, sim.new_var(0), page, kind);
        for _ in 1..slots {
            sim.new_var(0);
        }
        let phases = Phases::new(&mut sim);
        Ok(Self { sim, log, slots, phases })
    }

    /// Spawns the thread of a vCPU: `work` says what it does in each phase, from 1 on; `None` is the end.
    pub(super) fn vcpu(&mut self, thread: Thread, work: impl Fn(u64) -> Option<GuestWork> + 'static) {
        let Thread { vcpu, policy, ring, shadow, repeats } = thread;
        let (log, slots, phases) = (self.log, self.slots, self.phases);
        self.sim.spawn_vcpu(vcpu, move |host| {
            Box::pin(async move {
                let slot = LoggedSlot { log, slots, ring };
                let mut faults = Faults::with_hooks(vcpu, policy, slot);
                let entered = match shadow {
                    Some(shadow) => shadow.enter(&host, vcpu, NESTED_GENERATION).await.is_ok(),
                    None => true,
                };
                let mut phase = 1;
                while let Some(work) = work(phase) {
                    phases.wait_for(&host, phase).await;
                    loop {
                        host.assign(vcpu, work.clone());
                        let ran = match shadow {
                            _ if !entered => Ran::Failed,
                            Some(shadow) => shadow.run_logged(&host, vcpu, &slot).await,
                            None => run(&host, vcpu, &slot, &mut faults).await,
                        };
                        // A failed run is counted, and asserted at the end.
                        let again = match repeats {
                            Some(Repeats { phase: last, until }) => {
                                phase == last && ran == Ran::Done && host.load_acquire(until).await == 0
                            }
                            None => false,
                        };
                        if !again {
                            break;
                        }
                    }
                    phases.done(&host).await;
                    phase += 1;
                }
                faults.release(&host).await;
            })
        });
    }
}

/// The tag of translations of the nested guest, apart from those of L1.
const NESTED_GENERATION: u16 = 1;

/// Phases as the main thread times them.
#[derive(Clone, Debug, Default)]
pub(super) struct Timed(Rc<RefCell<Vec<Phase>>>);

impl Timed {
    /// Times `work` as a phase.
    pub(super) async fn phase<F: Format, T>(&self, host: &Host<F>, name: String, work: impl Future<Output = T>) -> T {
        let (begun, before) = (host.now().await, host.counters());
        let result = work.await;
        let cycles = host.now().await.since(begun);
        self.0.borrow_mut().push(Phase { name, cycles, host: host.counters().since(&before) });
        result
    }

    /// Moves the phases into a report, with the average of those whose name begins like each of `average`.
    pub(super) fn report(&self, report: &mut SelftestReport, average: &[&str]) {
        report.phases = self.0.take();
        for prefix in average {
            let times: Vec<Cycles> =
                report.phases.iter().filter(|phase| phase.name.starts_with(prefix)).map(|phase| phase.cycles).collect();
            if let Some(count) = u64::try_from(times.len()).ok().filter(|&count| count > 0) {
                let sum: Cycles = times.into_iter().sum();
                report.figures.insert(format!("{prefix}, average seconds"), report.seconds(sum) / count as f64);
            }
        }
    }
}

/// Leaves by level, as the VM statistics `pages_4k`, `pages_2m`, `pages_1g` have them.
pub(super) async fn count_leaves<F: Format>(host: &Host<F>, root: Hpa, range: GpaRange) -> [u64; Level::MAX_LEVELS] {
    let mut leaves = [0; Level::MAX_LEVELS];
    let geometry = *host.format().geometry();
    let mut iter = TdpIter::new(*host.format(), root, Level::LAST, range.start, range.end());
    while iter.next(host).await {
        // Tables further up may have large pages below them.
        let ahead = if iter.level.index() == 1 { iter.tables_ahead() } else { 0 };
        if ahead > 0 {
            let check = ReschedCheck::Never;
            let (at, level, apply) = (iter.sptep, iter.level, Apply::Nothing);
            let tables = host.run_below(RunBelow { at, len: ahead, level, apply, work: None, check }).await;
            if tables > 0 {
                leaves[0] += tables * geometry.entries(Level::LAST) as u64;
                iter.skip_below(tables);
                continue;
            }
        }
        if iter.is_leaf() {
            leaves[iter.level.index()] += iter.len;
        }
        skip_run(host, &mut iter, ReschedCheck::Never).await;
    }
    leaves
}

/// Pages that a scan finds dirty are in no ring: KVM has none on POWER.
pub(super) fn check_rings(policy: &DirtyPolicy, remedy: &str) -> Result<(), SelftestError> {
    if policy.tracking == Tracking::Scan {
        let what =
            format!("dirty flags are scanned for here, which fills no dirty ring (KVM_CAP_DIRTY_LOG_RING): {remedy}");
        return Err(option_error("dirty ring", what));
    }
    Ok(())
}

/// Who reads the log.
pub(super) struct Reader {
    log: DirtyLog,
    policy: DirtyPolicy,
    rings: Vec<DirtyRing>,
    collectors: Vec<Collector>,
    /// How often it has read.
    pub(super) reads: u64,
}

impl Reader {
    pub(super) fn new(log: DirtyLog, policy: DirtyPolicy, rings: &[DirtyRing]) -> Self {
        let collectors = rings.iter().copied().map(Collector::new).collect();
        Self { log, policy, rings: rings.to_vec(), collectors, reads: 0 }
    }

    /// Reads the log once and makes its pages clean; how many they were.
    pub(super) async fn read<F: Format>(&mut self, host: &Host<F>) -> u64 {
        self.reads += 1;
        if self.log.kind == LogKind::Rings {
            for collector in &mut self.collectors {
                collector.collect(host).await;
            }
            return reset_dirty_rings(host, &self.log, &self.policy, &self.rings).await;
        }
        let dirty = get_dirty_log(host, &self.log, &self.policy).await.unwrap_or_default();
        if self.policy.manual == Manual::On {
            let _ = clear_dirty_log(host, &self.log, &self.policy, (0, self.log.pages()), &dirty).await;
        }
        dirty.count()
    }

    /// Waits for the guest, which may be waiting for a ring.
    pub(super) async fn until_stopped<F: Format>(&mut self, host: &Host<F>, pending: Var) {
        while host.load_acquire(pending).await != 0 {
            self.read(host).await;
            host.sleep(Cycles(100_000)).await;
        }
    }
}
