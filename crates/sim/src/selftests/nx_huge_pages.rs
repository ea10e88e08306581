//! `nx_huge_pages_test`: executing in a huge page splits it, and recovery puts it back.
//!
//! x86 only: the erratum that the mitigation is for is Intel's. One vCPU, three huge pages; between two accesses the test reads
//! how many 2M leaves there are and how many pages are split.

use std::cell::RefCell;
use std::rc::Rc;

use mmu_core::{AccessKind, ByteUnits, Bytes, Cycles, Format, Gpa, GpaRange, Gva, PageSize};
use serde::{Deserialize, Serialize};

use super::{Phase, SelftestError, SelftestReport, finish};
use crate::arch::Arch;
use crate::engine::{GuestPaging, Host, LockMode, VcpuId};
use crate::experiment::{Platform, Populate, VmSpec, build_without_threads};
use crate::protocols::census;
use crate::protocols::fault::{FaultPolicy, Faults};
use crate::protocols::nx::{Mitigation, NxMemory, NxPages, NxPolicy};
use crate::protocols::split::LazySplit;
use crate::protocols::vcpu;
use crate::rng::Seed;
use crate::workload::{GuestAccess, GuestWork, Workload};

/// Options of the test.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// `-p`: `nx_huge_pages_recovery_period_ms`, in milliseconds. The ratio is 1 as the kernel test's script sets it.
    pub period_ms: u64,
    /// `-r`: whether the process may reboot the host, which is what switching the mitigation off for a VM asks for. With it the test
    /// is run a second time, without the mitigation.
    pub reboot: RebootPermission,
}

/// Whether the process may reboot the host (`CAP_SYS_BOOT`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RebootPermission {
    /// It may.
    Granted,
    /// It may not.
    Denied,
}

impl Default for Options {
    fn default() -> Self {
        Self { period_ms: 100, reboot: RebootPermission::Denied }
    }
}

/// 2M leaves and splits after each of the seven steps.
type Counts = [(u64, u64); 7];

const STEPS: [&str; 7] = [
    "read page 1",
    "read page 2",
    "execute page 1",
    "execute page 3",
    "read page 1 again",
    "five periods later",
    "read page 3",
];
const WITH: Counts = [(1, 0), (2, 0), (1, 1), (1, 2), (1, 2), (1, 0), (2, 0)];
const WITHOUT: Counts = [(1, 0), (2, 0), (2, 0), (3, 0), (3, 0), (3, 0), (3, 0)];

/// Runs the test.
///
/// # Errors
/// On other architectures than x86; a VM that cannot be built, or a run that goes wrong.
pub fn run<A: Arch>(platform: &Platform<A>, options: &Options) -> Result<SelftestReport, SelftestError> {
    require_x86(platform)?;
    let mut report = SelftestReport::new("nx_huge_pages_test", platform);
    pass(platform, options, Mitigation::On, &WITH, &mut report)?;
    if options.reboot == RebootPermission::Granted {
        pass(platform, options, Mitigation::Off, &WITHOUT, &mut report)?;
    }
    Ok(report)
}

/// NX huge pages are x86's.
pub(super) fn require_x86<A: Arch>(platform: &Platform<A>) -> Result<(), SelftestError> {
    if platform.arch.name() == "x86" {
        return Ok(());
    }
    let what = "NX huge pages work around an erratum of x86 processors; use --arch x86".to_owned();
    Err(SelftestError::Architecture { arch: platform.arch.name(), what })
}

/// Cycles of so many milliseconds on this machine.
pub(super) fn milliseconds<A: Arch>(platform: &Platform<A>, ms: u64) -> Cycles {
    Cycles(platform.clock_hz / 1000 * ms)
}

fn pass<A: Arch>(
    platform: &Platform<A>,
    options: &Options,
    mitigation: Mitigation,
    expected: &Counts,
    report: &mut SelftestReport,
) -> Result<(), SelftestError> {
    let page = PageSize::SIZE_2M;
    let spec = VmSpec {
        memory: Bytes(3 * page.bytes()),
        vcpus: 1,
        page,
        guest: GuestPaging::Flat,
        populate: Populate::ByFaults,
        workload: Workload::Idle,
        seed: Seed(0),
    };
    let mut sim = build_without_threads(platform, &spec)?;
    let period = milliseconds(platform, options.period_ms);
    let nx = NxPages::new(&mut sim, NxPolicy { ratio: 1, mitigation, ..NxPolicy::v6_18(period) });
    let recovery = nx.clone();
    sim.spawn("recovery", Cycles::ZERO, move |host| Box::pin(async move { recovery.recovery_thread(&host, 6).await }));
    let found = Rc::new(RefCell::new(Vec::new()));
    let (counts, pages) = (Rc::clone(&found), nx.clone());
    let policy = FaultPolicy { split: LazySplit::InPlace, ..FaultPolicy::new(LockMode::Read, page) };
    sim.spawn_vcpu(VcpuId(0), move |host| {
        Box::pin(async move {
            let mut faults = Faults::with_hooks(VcpuId(0), policy, NxMemory(pages.clone()));
            for step in 0..STEPS.len() {
                let (page, kind) = match step {
                    0 | 4 => (0, AccessKind::Read),
                    1 => (1, AccessKind::Read),
                    2 => (0, AccessKind::Execute),
                    3 => (2, AccessKind::Execute),
                    5 => {
                        host.sleep(period.times(5)).await;
                        observe(&host, &pages, &counts).await;
                        continue;
                    }
                    _ => (2, AccessKind::Read),
                };
                let gva = Gva::new(page * PageSize::SIZE_2M.bytes());
                host.assign(VcpuId(0), GuestWork::List(vec![GuestAccess { gva, kind }]));
                // A failed run leaves the page unmapped, which the counts show.
                let _ = vcpu::run(&host, VcpuId(0), &mut faults).await;
                observe(&host, &pages, &counts).await;
            }
            faults.release(&host).await;
        })
    });
    finish(&mut sim)?;
    let name = if mitigation == Mitigation::On { "with the mitigation" } else { "without the mitigation" };
    let cycles = sim.vcpu_stats().iter().map(|vcpu| vcpu.finished).max().unwrap_or(Cycles::ZERO);
    report.phases.push(Phase { name: name.into(), cycles, host: *sim.world().counters() });
    for (i, step) in STEPS.iter().enumerate() {
        let (got, want) = (found.borrow().get(i).copied().unwrap_or_default(), expected[i]);
        report.check(
            got == want,
            format!("{step}, {name}: {} huge pages of {}, {} splits of {}", got.0, want.0, got.1, want.1),
        );
    }
    Ok(())
}

async fn observe<F: Format>(host: &Host<F>, nx: &NxPages, into: &Rc<RefCell<Vec<(u64, u64)>>>) {
    let root = host.root().await;
    let all = GpaRange::new(Gpa::new(0), Bytes(6.MiB()));
    let census = census::count(host, root, all).await;
    let splits = nx.splits(host).await;
    into.borrow_mut().push((census.pages(host.format(), PageSize::SIZE_2M), splits));
}
