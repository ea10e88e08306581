//! `kvm_page_table_test`: all vCPUs create, split and rebuild the mappings of the same memory.
//!
//! CREATE maps it by the pages that back it; dirty logging starts; UPDATE writes, so that blocks are split; logging stops; ADJUST reads every page, so
//! that the blocks come back ("TLB conflict abort could occur here", says the kernel's test).

use mmu_core::{AccessKind, ByteUnits, Bytes, Cycles, Format, Gpa, GpaRange, Level, PageSize};
use serde::{Deserialize, Serialize};

use super::phases::Phases;
use super::{Phase, SelftestError, SelftestReport, finish, guest_address, guest_paging, option_error, supported_page};
use crate::arch::Arch;
use crate::engine::{Host, LockMode, Var, VcpuId};
use crate::experiment::{Platform, Populate, VmSpec, build_without_threads};
use crate::protocols::coalesce::CoalescePolicy;
use crate::protocols::fault::{ConflictAbort, FaultPolicy, Faults, LoggedBy, Logging};
use crate::protocols::protect::write_protect_range;
use crate::protocols::vcpu::{Ran, run as run_guest};
use crate::rng::Seed;
use crate::workload::{GuestAccess, GuestWork, Mix, PatternSpec, Workload};

/// Options of the test.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// `-p`: where the memory lies, as a guest-physical offset.
    pub offset: Bytes,
    /// `-b`: bytes of memory, shared by all vCPUs.
    pub bytes: Bytes,
    /// `-v`: vCPUs.
    pub vcpus: usize,
    /// `-s`: size of the pages that back the memory; `None` is the smallest that the second stage has.
    pub page: Option<PageSize>,
    /// How blocks are coalesced; `None` is what Linux 6.6 does on the architecture.
    pub coalesce: Option<CoalescePolicy>,
    /// How faults hold `mmu_lock`; `None` is what Linux 6.6 does on the architecture.
    pub lock: Option<LockMode>,
}

impl Default for Options {
    fn default() -> Self {
        Self { offset: Bytes(0), bytes: Bytes(1.GiB()), vcpus: 1, page: None, coalesce: None, lock: None }
    }
}

/// The three timed stages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Create,
    Update,
    Adjust,
}

impl Stage {
    const ALL: [Stage; 3] = [Stage::Create, Stage::Update, Stage::Adjust];

    const fn name(self) -> &'static str {
        match self {
            Stage::Create => "KVM_CREATE_MAPPINGS",
            Stage::Update => "KVM_UPDATE_MAPPINGS",
            Stage::Adjust => "KVM_ADJUST_MAPPINGS",
        }
    }
}

/// What every vCPU's thread knows of the test.
#[derive(Clone, Copy, Debug)]
struct Plan {
    base: u64,
    bytes: u64,
    /// Size of the guest's own pages: the smallest.
    guest: u64,
    /// Size of the pages that back the memory.
    backing: u64,
}

impl Plan {
    /// `n` accesses, `stride` bytes apart, from `offset` on.
    fn stride(&self, offset: u64, stride: u64, n: u64, kind: AccessKind) -> GuestWork {
        let writes_percent = if kind == AccessKind::Write { 100 } else { 0 };
        let spec =
            PatternSpec { bytes: (n * stride).max(4096), mix: Mix::Strided { stride }, writes_percent, accesses: n };
        GuestWork::Pattern { spec, base: guest_address(Gpa::new(self.base + offset)), seed: Seed(0) }
    }

    /// What a vCPU does in a stage: stretches of work, one after the other.
    fn stretch(&self, stage: Stage, vcpu: usize, n: u64) -> Option<GuestWork> {
        let Plan { base, bytes, guest, backing } = *self;
        let blocks = bytes / backing;
        match stage {
            Stage::Create => {
                let kind = if vcpu.is_multiple_of(2) { AccessKind::Write } else { AccessKind::Read };
                (n == 0).then(|| self.stride(0, backing, blocks, kind))
            }
            Stage::Update if backing == guest => {
                (n == 0).then(|| self.stride(0, guest, bytes / guest, AccessKind::Write))
            }
            // The first page of each block is written, the upper half read: the table that takes the block's place is partly populated.
            Stage::Update => {
                let (block, part) = (n / 2, n % 2);
                let start = block * backing;
                let first = GuestAccess { gva: guest_address(Gpa::new(base + start)), kind: AccessKind::Write };
                let half = backing / guest / 2 * guest;
                (block < blocks).then(|| match part {
                    0 => GuestWork::List(vec![first]),
                    _ => self.stride(start + half, guest, (backing - half) / guest, AccessKind::Read),
                })
            }
            Stage::Adjust => (n == 0).then(|| self.stride(0, guest, bytes / guest, AccessKind::Read)),
        }
    }

    /// Accesses of one vCPU in the whole test.
    fn accesses(&self) -> u64 {
        let Plan { bytes, guest, backing, .. } = *self;
        let blocks = bytes / backing;
        let per_block = backing / guest - backing / guest / 2 + 1;
        let update = if backing == guest { bytes / guest } else { blocks * per_block };
        blocks + update + bytes / guest
    }
}

/// Runs the test.
///
/// # Errors
/// Options that do not fit together, a VM that cannot be built, or a run that goes wrong.
pub fn run<A: Arch>(platform: &Platform<A>, options: &Options) -> Result<SelftestReport, SelftestError> {
    let geometry = *platform.arch.two().geometry();
    let guest = geometry.page_size(Level::LAST);
    let page = supported_page(platform, options.page)?;
    let (offset, bytes) = (options.offset.0, options.bytes.0);
    if bytes == 0 || !bytes.is_multiple_of(page.bytes()) || !offset.is_multiple_of(page.bytes()) {
        return Err(option_error("-b, -p", format!("memory and offset must be multiples of the backing page, {page}")));
    }
    let mut policy =
        FaultPolicy { conflict: ConflictAbort::LocalFlush, ..FaultPolicy::linux_6_6(platform.arch.two(), page) };
    policy.lock = options.lock.unwrap_or(policy.lock);
    if let Some(coalesce) = options.coalesce {
        coalesce
            .check(platform.arch.two(), policy.walkers())
            .map_err(|error| option_error("coalesce", error.to_string()))?;
        policy.coalesce = coalesce;
    }
    let spec = VmSpec {
        memory: Bytes(offset + bytes),
        vcpus: options.vcpus,
        page,
        guest: guest_paging(platform),
        populate: Populate::Untouched,
        workload: Workload::Idle,
        seed: Seed(0),
    };
    let mut sim = build_without_threads(platform, &spec)?;
    let plan = Plan { base: offset, bytes, guest: guest.bytes(), backing: page.bytes() };
    let logging = sim.new_var(0);
    let phases = Phases::new(&mut sim);
    for vcpu in (0..options.vcpus).map(VcpuId) {
        sim.spawn_vcpu(vcpu, move |host| Box::pin(vcpu_thread(host, vcpu, policy, logging, phases, plan)));
    }
    let timed = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    let slot = std::rc::Rc::clone(&timed);
    sim.spawn("main", Cycles::ZERO, move |host| {
        Box::pin(async move {
            for stage in Stage::ALL {
                let range = GpaRange::new(Gpa::new(plan.base), Bytes(plan.bytes));
                let wanted = if stage == Stage::Update { Logging::On } else { Logging::Off };
                set_logging(&host, logging, wanted, range).await;
                let before = host.counters();
                let cycles = phases.run(&host).await;
                slot.borrow_mut().push((stage, cycles, host.counters().since(&before)));
            }
        })
    });
    finish(&mut sim)?;
    let mut report = SelftestReport::new("kvm_page_table_test", platform);
    for (stage, cycles, host) in timed.take() {
        report.phases.push(Phase { name: stage.name().to_owned(), cycles, host });
    }
    let stats = sim.vcpu_stats();
    let accesses: u64 = stats.iter().map(|vcpu| vcpu.accesses).sum();
    let wanted = plan.accesses() * options.vcpus as u64;
    report.check(accesses == wanted, format!("every access of every stage completes: {accesses} of {wanted}"));
    let failed = sim.world().counters().failed_runs;
    report.check(failed == 0, format!("every KVM_RUN succeeds: {failed} failed"));
    super::factors(&mut report, &sim);
    report.figures.insert("TLB conflict aborts".into(), stats.iter().map(|vcpu| vcpu.conflicts).sum::<u64>() as f64);
    report.figures.insert("second-stage faults".into(), stats.iter().map(|vcpu| vcpu.faults).sum::<u64>() as f64);
    Ok(report)
}

/// `vm_mem_region_set_flags` with `KVM_MEM_LOG_DIRTY_PAGES` or without: what is mapped is write-protected when logging starts.
async fn set_logging<F: Format>(host: &Host<F>, logging: Var, wanted: Logging, range: GpaRange) {
    let was = host.load(logging).await;
    host.store_release(logging, u64::from(wanted == Logging::On)).await;
    if wanted == Logging::On && was == 0 {
        write_protect_range(host, range).await;
    }
}

async fn vcpu_thread<F: Format>(
    host: Host<F>,
    vcpu: VcpuId,
    policy: FaultPolicy,
    logging: Var,
    phases: Phases,
    plan: Plan,
) {
    let mut faults = Faults::with_hooks(vcpu, policy, LoggedBy(logging));
    for (n, stage) in (1..).zip(Stage::ALL) {
        phases.wait_for(&host, n).await;
        let mut part = 0;
        while let Some(work) = plan.stretch(stage, vcpu.0, part) {
            host.assign(vcpu, work);
            // A failed run is counted, and asserted at the end.
            if run_guest(&host, vcpu, &mut faults).await == Ran::Failed {
                break;
            }
            part += 1;
        }
        phases.done(&host).await;
    }
    faults.release(&host).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stages_make_the_accesses_that_they_announce() {
        for (guest, backing) in [(4096, 4096), (4096, 2 << 20), (65536, 2 << 20)] {
            let plan = Plan { base: 0, bytes: 8 << 20, guest, backing };
            let count = |work: GuestWork| work.stream(0).count() as u64;
            let parts = |stage| (0..).map_while(|n| plan.stretch(stage, 0, n)).map(count).sum::<u64>();
            assert_eq!(Stage::ALL.map(parts).iter().sum::<u64>(), plan.accesses());
        }
    }
}
