//! `nx_huge_pages_perf_test` (proposed 2025): how long vCPUs wait in faults while split pages are recovered.
//!
//! x86 only. One half of guest memory has been executed in, so that it is split into small pages; while the recovery thread takes
//! pages back, a vCPU writes to pages of the other half that nothing maps yet. What counts is the longest fault.

use mmu_core::{AccessKind, ByteUnits, Bytes, Cycles, Gva, PageSize};
use serde::{Deserialize, Serialize};

use super::nx_huge_pages::{milliseconds, require_x86};
use super::phases::Phases;
use super::{Phase, SelftestError, SelftestReport, finish};
use crate::arch::Arch;
use crate::engine::{GuestPaging, LockMode, VcpuId};
use crate::experiment::{Platform, Populate, VmSpec, build_without_threads};
use crate::protocols::fault::{FaultPolicy, Faults};
use crate::protocols::nx::{NxMemory, NxPages, NxPolicy};
use crate::protocols::split::LazySplit;
use crate::protocols::vcpu;
use crate::protocols::zap::ZapLock;
use crate::rng::Seed;
use crate::workload::{GuestAccess, GuestWork, Mix, PatternSpec, Workload};

/// Options of the test.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// `-b`: bytes of guest memory, half executed in and half written to.
    pub bytes: Bytes,
    /// `-s`: largest page that the guest is backed by.
    pub page: PageSize,
    /// `nx_huge_pages_recovery_period_ms`
    pub period_ms: u64,
    /// `nx_huge_pages_recovery_ratio`
    pub ratio: u32,
    /// How recovery holds `mmu_lock`; compared by the published figures.
    pub lock: ZapLock,
}

impl Default for Options {
    fn default() -> Self {
        Self { bytes: Bytes(16.GiB()), page: PageSize::SIZE_1G, period_ms: 100, ratio: 4, lock: ZapLock::Read }
    }
}

/// Runs the test.
///
/// # Errors
/// On other architectures than x86; a VM that cannot be built, or a run that goes wrong.
pub fn run<A: Arch>(platform: &Platform<A>, options: &Options) -> Result<SelftestReport, SelftestError> {
    require_x86(platform)?;
    let half = options.bytes.0 / 2;
    if half == 0 || !half.is_multiple_of(PageSize::SIZE_2M.bytes()) {
        let (option, what) = ("-b".to_owned(), "half of it must be a multiple of 2 MiB".to_owned());
        return Err(SelftestError::Option { option, what });
    }
    let spec = VmSpec {
        memory: options.bytes,
        vcpus: 2,
        page: options.page,
        guest: GuestPaging::Flat,
        populate: Populate::ByFaults,
        workload: Workload::Idle,
        seed: Seed(0),
    };
    let mut sim = build_without_threads(platform, &spec)?;
    let period = milliseconds(platform, options.period_ms);
    let nx = NxPages::new(&mut sim, NxPolicy { ratio: options.ratio, lock: options.lock, ..NxPolicy::v6_1(period) });
    let phases = Phases::new(&mut sim);
    // Execute once in each 2M page of the lower half.
    let fetches = (0..half / PageSize::SIZE_2M.bytes())
        .map(|i| GuestAccess { gva: Gva::new(i * PageSize::SIZE_2M.bytes()), kind: AccessKind::Execute })
        .collect();
    let stride = PageSize::SIZE_4K.bytes();
    let writes =
        PatternSpec { bytes: half, mix: Mix::Strided { stride }, writes_percent: 100, accesses: half / stride };
    let works = [GuestWork::List(fetches), GuestWork::Pattern { spec: writes, base: Gva::new(half), seed: Seed(0) }];
    for (index, work) in works.into_iter().enumerate() {
        let nx = nx.clone();
        let most = if index == 0 { options.page } else { PageSize::SIZE_4K };
        let policy = FaultPolicy { split: LazySplit::InPlace, ..FaultPolicy::new(LockMode::Read, most) };
        sim.spawn_vcpu(VcpuId(index), move |host| {
            Box::pin(async move {
                let mut faults = Faults::with_hooks(VcpuId(index), policy, NxMemory(nx));
                let begin = index as u64 + 1;
                for iteration in 1..=2 {
                    phases.wait_for(&host, iteration).await;
                    if iteration == begin {
                        host.assign(VcpuId(index), work.clone());
                        // A failed run leaves accesses undone, which the test asserts.
                        let _ = vcpu::run(&host, VcpuId(index), &mut faults).await;
                    }
                    phases.done(&host).await;
                }
                faults.release(&host).await;
            })
        });
    }
    let (recovery, times) = (nx.clone(), std::rc::Rc::new(std::cell::RefCell::new([Cycles::ZERO; 2])));
    let taken = std::rc::Rc::clone(&times);
    sim.spawn("main", Cycles::ZERO, move |host| {
        Box::pin(async move {
            let execute = phases.run(&host).await;
            let begun = host.now().await;
            phases.start(&host).await;
            // Until the writer is through; a period is slept in full.
            while host.load_acquire(phases.pending()).await != 0 {
                host.sleep(period).await;
                recovery.recover(&host).await;
            }
            phases.finished(&host).await;
            *taken.borrow_mut() = [execute, host.now().await.since(begun)];
        })
    });
    finish(&mut sim)?;
    let mut report = SelftestReport::new("nx_huge_pages_perf_test", platform);
    let stats = sim.vcpu_stats();
    let recovered = nx.recovered();
    report.check(recovered.zapped > 0, format!("pages were recovered meanwhile: {}", recovered.zapped));
    report.check(
        stats[1].accesses == half / stride,
        format!("every page was written once: {} of {}", stats[1].accesses, half / stride),
    );
    report.figures.insert("max fault latency (cycles)".into(), stats[1].longest_fault.0 as f64);
    super::factors(&mut report, &sim);
    report.figures.insert("pages recovered".into(), recovered.zapped as f64);
    report.figures.insert("flushes of recovery".into(), recovered.flushes as f64);
    let host = *sim.world().counters();
    let [execute, write] = *times.borrow();
    report.phases.push(Phase { name: "execute".into(), cycles: execute, host: Default::default() });
    report.phases.push(Phase { name: "write".into(), cycles: write, host });
    Ok(report)
}
