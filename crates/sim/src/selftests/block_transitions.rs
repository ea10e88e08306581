//! `stage2_block_transitions` (arm64, 2026): pages become a block and blocks become pages, and every `KVM_RUN` succeeds.
//!
//! 1. A page is written while dirty logging is on, the log is read, logging stops; the next write brings the 2 MiB block back.
//! 2. Sixteen blocks are read, so that they are mapped without execute permission; logging starts; a fetch in each has to split its block, which takes
//!    a table: the memory cache must be topped up for permission faults as well.
//!
//! The kernel's test is skipped where instruction caches are coherent (`CTR_EL0.DIC`): blocks are executable from the start there.

use mmu_core::{AccessKind, Bytes, Cycles, Format, Gpa, GpaRange, Gva, Level, PageSize};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::rc::Rc;

use super::{Phase, SelftestError, SelftestReport, finish};
use crate::arch::Arch;
use crate::engine::{GuestPaging, Host, HostCounters, Var, VcpuId};
use crate::experiment::{Platform, Populate, VmSpec, build_without_threads};
use crate::protocols::fault::{ExecMapping, FaultPolicy, Faults, LoggedBy, TopUp};
use crate::protocols::fault_fast::lockless_leaf;
use crate::protocols::protect::write_protect_range;
use crate::protocols::vcpu::{Ran, run as run_guest};
use crate::rng::Seed;
use crate::workload::{GuestAccess, GuestWork, Workload};

/// What the kernel's test has no letters for: the machine and the kernel it runs on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Whether instruction caches are coherent; the test is skipped where they are.
    pub exec: ExecMapping,
    /// When memory caches are topped up; [`TopUp::NotForPermission`] is the defect that the test found.
    pub top_up: TopUp,
}

impl Default for Options {
    fn default() -> Self {
        Self { exec: ExecMapping::OnFetch, top_up: TopUp::EveryFault }
    }
}

/// Blocks of the second part.
const BLOCKS: u64 = 16;

/// What the vCPU's thread found.
#[derive(Debug, Default)]
struct Found {
    ran: Vec<Ran>,
    /// Sizes by which the tested addresses are mapped after each part.
    collapsed: Option<PageSize>,
    split: Vec<Option<PageSize>>,
    phases: Vec<(&'static str, Cycles, HostCounters)>,
}

/// Runs the test.
///
/// # Errors
/// Another architecture than arm64, coherent instruction caches, or a run that goes wrong.
pub fn run<A: Arch>(platform: &Platform<A>, options: &Options) -> Result<SelftestReport, SelftestError> {
    let arch = platform.arch.name();
    if arch != "arm64" {
        let what = "execute permission follows instruction cache maintenance on arm64 only; run it there".to_owned();
        return Err(SelftestError::Architecture { arch, what });
    }
    if options.exec == ExecMapping::Always {
        let what =
            "skipped: instruction caches are coherent (DIC), nothing is mapped without execute permission".to_owned();
        return Err(SelftestError::Architecture { arch, what });
    }
    let geometry = *platform.arch.two().geometry();
    let blocks = (1..geometry.levels() as u8).map(Level::new).find(|&level| geometry.has_leaves_at(level));
    let page = geometry.page_size(blocks.unwrap_or(Level::LAST));
    let policy =
        FaultPolicy { exec: options.exec, top_up: options.top_up, ..FaultPolicy::linux_6_6(platform.arch.two(), page) };
    let spec = VmSpec {
        memory: Bytes(page.bytes() * (1 + BLOCKS)),
        vcpus: 1,
        page,
        guest: GuestPaging::Flat,
        populate: Populate::ByFaults,
        workload: Workload::Idle,
        seed: Seed(0),
    };
    let mut sim = build_without_threads(platform, &spec)?;
    let logging = sim.new_var(0);
    let found = Rc::new(RefCell::new(Found::default()));
    let slot = Rc::clone(&found);
    sim.spawn_vcpu(VcpuId(0), move |host| {
        Box::pin(async move {
            let mut test = Test { faults: Faults::with_hooks(VcpuId(0), policy, LoggedBy(logging)), logging, page };
            let mut result = Found::default();
            test.collapse(&host, &mut result).await;
            test.split(&host, &mut result).await;
            test.faults.release(&host).await;
            *slot.borrow_mut() = result;
        })
    });
    finish(&mut sim)?;
    let found = found.take();
    let mut report = SelftestReport::new("stage2_block_transitions", platform);
    for (name, cycles, host) in found.phases {
        report.phases.push(Phase { name: name.to_owned(), cycles, host });
    }
    let failed = found.ran.iter().filter(|&&ran| ran == Ran::Failed).count();
    report.check(failed == 0, format!("every KVM_RUN succeeds: {failed} of {} failed", found.ran.len()));
    report.check(found.collapsed == Some(page), format!("the page is part of a block of {page} after logging"));
    let small = found.split.iter().filter(|&&size| size == Some(geometry.granule())).count() as u64;
    report.check(small == BLOCKS, format!("{small} of {BLOCKS} blocks were split by a fetch"));
    Ok(report)
}

struct Test {
    faults: Faults<LoggedBy>,
    logging: Var,
    page: PageSize,
}

impl Test {
    async fn access<F: Format>(&mut self, host: &Host<F>, at: u64, kind: AccessKind, into: &mut Found) {
        host.assign(VcpuId(0), GuestWork::List(vec![GuestAccess { gva: Gva::new(at), kind }]));
        into.ran.push(run_guest(host, VcpuId(0), &mut self.faults).await);
    }

    async fn collapse<F: Format>(&mut self, host: &Host<F>, into: &mut Found) {
        let (begun, before) = (host.now().await, host.counters());
        host.store_release(self.logging, 1).await;
        self.access(host, 0, AccessKind::Write, into).await;
        // GET_DIRTY_LOG: what was written is write-protected again.
        write_protect_range(host, GpaRange::new(Gpa::new(0), Bytes(self.page.bytes()))).await;
        host.store_release(self.logging, 0).await;
        self.access(host, 0, AccessKind::Write, into).await;
        into.collapsed = mapped_by(host, 0).await;
        into.phases.push(("collapse", host.now().await.since(begun), host.counters().since(&before)));
    }

    async fn split<F: Format>(&mut self, host: &Host<F>, into: &mut Found) {
        let (begun, before) = (host.now().await, host.counters());
        let starts: Vec<u64> = (1..=BLOCKS).map(|block| block * self.page.bytes()).collect();
        for &start in &starts {
            self.access(host, start, AccessKind::Read, into).await;
        }
        host.store_release(self.logging, 1).await;
        let range = GpaRange::new(Gpa::new(self.page.bytes()), Bytes(BLOCKS * self.page.bytes()));
        write_protect_range(host, range).await;
        for &start in &starts {
            self.access(host, start, AccessKind::Execute, into).await;
            into.split.push(mapped_by(host, start).await);
        }
        into.phases.push(("split", host.now().await.since(begun), host.counters().since(&before)));
    }
}

/// Size of the leaf that maps an address.
async fn mapped_by<F: Format>(host: &Host<F>, at: u64) -> Option<PageSize> {
    host.rcu_read_lock().await;
    let root = host.root().await;
    let leaf = lockless_leaf(host, root, Gpa::new(at)).await;
    host.rcu_read_unlock().await;
    leaf.map(|(_, level, _)| host.format().geometry().page_size(level))
}
