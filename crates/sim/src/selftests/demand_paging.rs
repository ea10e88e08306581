//! `demand_paging_test`: every vCPU touches all pages of its region for the first time.

use mmu_core::{ByteUnits, Bytes, Cycles, Format, Gva, Level, PageSize};
use serde::{Deserialize, Serialize};

use super::{Phase, SelftestError, SelftestReport, finish};
use crate::arch::Arch;
use crate::engine::{GuestPaging, LockMode, VcpuId};
use crate::experiment::{Platform, Populate, VmSpec, build_without_threads};
use crate::protocols::fault::FaultPolicy;
use crate::protocols::notifier::RetryPolicy;
use crate::protocols::vcpu;
use crate::rng::Seed;
use crate::workload::{GuestWork, Mix, PatternSpec, Workload};

/// Options of the test.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// `-v`: vCPUs.
    pub vcpus: usize,
    /// `-b`: bytes that each vCPU touches.
    pub bytes_per_vcpu: Bytes,
    /// `-s`: size of the pages that back the guest; `None` is the smallest that the second stage has.
    pub page: Option<PageSize>,
}

impl Default for Options {
    fn default() -> Self {
        Self { vcpus: 1, bytes_per_vcpu: Bytes(1.GiB()), page: None }
    }
}

/// Runs the test.
///
/// # Errors
/// A VM that cannot be built, or a run that goes wrong.
pub fn run<A: Arch>(platform: &Platform<A>, options: &Options) -> Result<SelftestReport, SelftestError> {
    let geometry = platform.arch.two().geometry();
    let page = options.page.unwrap_or(geometry.page_size(Level::LAST));
    let bytes = options.bytes_per_vcpu.0;
    let pages = bytes / page.bytes();
    let mut sim = build_without_threads(
        platform,
        &VmSpec {
            memory: Bytes(bytes * options.vcpus as u64),
            vcpus: options.vcpus,
            page,
            guest: GuestPaging::Flat,
            populate: Populate::ByFaults,
            workload: Workload::Idle,
            seed: Seed(0),
        },
    )?;
    let spec = PatternSpec { bytes, mix: Mix::Strided { stride: page.bytes() }, writes_percent: 100, accesses: pages };
    for index in 0..options.vcpus {
        let base = Gva::new(bytes * index as u64);
        let work = GuestWork::Pattern { spec: spec.clone(), base, seed: Seed(0) };
        let policy = FaultPolicy { lock: LockMode::Read, page, retry: RetryPolicy::V6_8 };
        sim.spawn_vcpu(VcpuId(index), |host| {
            Box::pin(async move {
                host.assign(VcpuId(index), work);
                vcpu::thread(host, VcpuId(index), policy).await;
            })
        });
    }
    let mut report = SelftestReport::new("demand_paging_test", platform);
    finish(&mut sim)?;
    let stats = sim.vcpu_stats();
    let cycles = stats.iter().map(|vcpu| vcpu.finished).max().unwrap_or(Cycles::ZERO);
    let host = *sim.world().counters();
    let touched: u64 = stats.iter().map(|vcpu| vcpu.accesses).sum();
    report.check(
        touched == pages * options.vcpus as u64,
        format!("each of {} pages is touched once: {touched}", pages * options.vcpus as u64),
    );
    report.figures.insert("pages per second".into(), touched as f64 / report.seconds(cycles));
    report.phases.push(Phase { name: "guest execution".into(), cycles, host });
    Ok(report)
}
