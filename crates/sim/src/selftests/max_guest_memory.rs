//! `max_guest_memory_test`: a guest as large as it gets, written to, reset, written to again, and taken apart.
//!
//! Every vCPU writes 8 bytes in each page of its share; then all of them toggle CR0.WP (x86), so that a KVM which destroys roots with
//! their last user has to build everything again; then they write once more. In the end every second memslot is deleted, half of the
//! backing is unmapped, and the process exits with the rest. [`mmu_stress`](super::mmu_stress) goes on from here.

use std::cell::RefCell;
use std::rc::Rc;

use mmu_core::{AccessKind, ByteUnits, Bytes, Cycles, Format, Gpa, GpaRange, Gva, Level, PageSize, WalkCaches};
use serde::{Deserialize, Serialize};

use super::phases::Phases;
use super::{Phase, SelftestError, SelftestReport};
use crate::arch::Arch;
use crate::engine::{ExitReason, GuestPaging, Host, LockId, LockMode, Sim, Stopped, Var, VcpuId};
use crate::experiment::{Platform, Populate, VmSpec, build_without_threads};
use crate::protocols::fault::FaultPolicy;
use crate::protocols::iter::FlushDebt;
use crate::protocols::notifier;
use crate::protocols::roots::{LifeCycle, RootPolicy, RootedVcpu, Roots};
use crate::protocols::workqueue::{Workqueue, WorkqueueSpec};
use crate::rng::Seed;
use crate::workload::{GuestAccess, GuestWork, Mix, PatternSpec, Workload};

/// Options of the test.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// `-c`: vCPUs. The kernel test takes three quarters of the host's processors; the default here is three.
    pub vcpus: usize,
    /// `-m`: guest memory.
    pub memory: Bytes,
    /// `-s`: size of a memslot.
    pub slot: Bytes,
    /// `-H` asks for huge pages; `None` is the smallest page that the second stage has.
    pub page: Option<PageSize>,
    /// Life cycle of roots.
    pub roots: RootPolicy,
}

impl Default for Options {
    fn default() -> Self {
        Self { vcpus: 3, memory: Bytes(128.GiB()), slot: Bytes(2.GiB()), page: None, roots: RootPolicy::R4 }
    }
}

/// How far the test goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stages {
    /// Run, reset, run.
    Three,
    /// And read, protect, write.
    Five,
}

/// Runs the test.
///
/// # Errors
/// Options that do not fit each other, a VM that cannot be built, or a run that goes wrong.
pub fn run<A: Arch>(platform: &Platform<A>, options: &Options) -> Result<SelftestReport, SelftestError> {
    run_stages("max_guest_memory_test", platform, options, Stages::Three)
}

/// Guest memory may be written.
const WRITABLE: u64 = 0;
/// The primary MMU maps it read-only; KVM may still map it otherwise.
const READ_ONLY: u64 = 1;
/// `mprotect` has returned: nobody may write any more.
const LANDED: u64 = 2;

/// What one vCPU works on.
#[derive(Clone, Copy, Debug)]
struct Share {
    vcpu: VcpuId,
    base: u64,
    pages: u64,
    stride: u64,
}

/// What is measured.
#[derive(Debug, Default)]
struct Measured {
    phases: Vec<(&'static str, Cycles)>,
    refused: u64,
}

pub(super) fn run_stages<A: Arch>(
    test: &'static str,
    platform: &Platform<A>,
    options: &Options,
    stages: Stages,
) -> Result<SelftestReport, SelftestError> {
    let page = options.page.unwrap_or(platform.arch.two().geometry().page_size(Level::LAST));
    let pages = check(options, page)?;
    let spec = VmSpec {
        memory: options.memory,
        vcpus: options.vcpus,
        page,
        guest: GuestPaging::Flat,
        populate: Populate::ByFaults,
        workload: Workload::Idle,
        seed: Seed(0),
    };
    let mut sim = build_without_threads(platform, &spec)?;
    let policy = options.roots;
    let queue = (policy.life == LifeCycle::WorkerZaps).then(|| Workqueue::start(&mut sim, WorkqueueSpec::KVM_5_18));
    let roots = Roots::adopt(&mut sim, policy, queue);
    let phases = Phases::new(&mut sim);
    let protected = sim.new_var(0);
    let measured = Rc::new(RefCell::new(Measured::default()));
    let toggles = platform.arch.name() == "x86";
    for index in 0..options.vcpus {
        let (first, last) =
            (pages * index as u64 / options.vcpus as u64, pages * (index as u64 + 1) / options.vcpus as u64);
        let share =
            Share { vcpu: VcpuId(index), base: first * page.bytes(), pages: last - first, stride: page.bytes() };
        let rooted = RootedVcpu::new(roots.clone(), share.vcpu, FaultPolicy::new(LockMode::Read, page));
        let measured = Rc::clone(&measured);
        roots.spawn_vcpu_task(&mut sim, share.vcpu, move |host| {
            Box::pin(guest(host, rooted, share, phases, stages, toggles, protected, measured))
        });
    }
    let (memory, slot, taken) = (options.memory, options.slot, Rc::clone(&measured));
    roots.spawn_task(&mut sim, "main", Cycles::ZERO, move |host, roots| {
        Box::pin(async move {
            let main = Main { phases, roots, protected, memory, slot, taken };
            main.run(&host, stages).await;
        })
    });
    roots.spawn_exit(&mut sim);
    end(&mut sim)?;
    Ok(report(test, platform, &sim, &measured.borrow(), pages, stages))
}

/// How many pages the guest has.
fn check(options: &Options, page: PageSize) -> Result<u64, SelftestError> {
    let wrong = |option: &str, what: &str| SelftestError::Option { option: option.to_owned(), what: what.to_owned() };
    if options.vcpus == 0 {
        return Err(wrong("-c", "the guest needs a vCPU"));
    }
    if options.slot.0 == 0 || !options.memory.0.is_multiple_of(options.slot.0) {
        return Err(wrong("-s", "guest memory must be a multiple of the slot size"));
    }
    if !options.slot.0.is_multiple_of(page.bytes()) {
        return Err(wrong("-s", "a slot must hold whole pages"));
    }
    Ok(options.memory.0 / page.bytes())
}

fn report<A: Arch>(
    test: &'static str,
    platform: &Platform<A>,
    sim: &Sim<A>,
    measured: &Measured,
    pages: u64,
    stages: Stages,
) -> SelftestReport {
    let mut report = SelftestReport::new(test, platform);
    let host = *sim.world().counters();
    let last = measured.phases.len().saturating_sub(1);
    for (i, &(name, cycles)) in measured.phases.iter().enumerate() {
        // Counters are of the whole test: they stand beside its last phase.
        let host = if i == last { host } else { Default::default() };
        report.phases.push(Phase { name: name.to_owned(), cycles, host });
    }
    let touched: u64 = sim.vcpu_stats().iter().map(|vcpu| vcpu.accesses).sum();
    let passes = if stages == Stages::Three { 2 } else { 4 };
    report.check(touched >= passes * pages, format!("{touched} accesses, at least {passes} to each of {pages} pages"));
    if stages == Stages::Five {
        let refused = measured.refused;
        report.check(refused == pages, format!("writes to {refused} of {pages} read-only pages were refused (EFAULT)"));
    }
    report
}

/// Runs the simulation to its end; the VM is torn down by then.
fn end<A: Arch>(sim: &mut Sim<A>) -> Result<(), SelftestError> {
    let stopped = sim.run();
    if let Some(what) = sim.failure() {
        return Err(SelftestError::Guest(what));
    }
    for stopped in [stopped, sim.destroy_with(|_| Box::pin(async {}))] {
        if stopped != Stopped::Finished {
            return Err(SelftestError::Deadlock(stopped));
        }
    }
    match sim.world().violations() {
        [] => Ok(()),
        found => Err(SelftestError::Violations(found.to_vec())),
    }
}

/// The thread of one vCPU.
#[allow(clippy::too_many_arguments)]
async fn guest<F: Format>(
    host: Host<F>,
    mut rooted: RootedVcpu<F>,
    share: Share,
    phases: Phases,
    stages: Stages,
    toggles: bool,
    protected: Var,
    measured: Rc<RefCell<Measured>>,
) {
    let count = if stages == Stages::Three { 3 } else { 6 };
    for iteration in 1..=count {
        phases.wait_for(&host, iteration).await;
        match iteration {
            2 if toggles => rooted.leave(&host).await,
            2 => {}
            5 => {
                let refused = write_until_refused(&host, &mut rooted, share, protected).await;
                measured.borrow_mut().refused += refused;
            }
            _ => {
                host.assign(share.vcpu, share.work(if iteration == 4 { 0 } else { 100 }));
                rooted.run(&host).await;
            }
        }
        phases.done(&host).await;
    }
    rooted.release(&host).await;
}

impl Share {
    /// One access to each page.
    fn work(&self, writes_percent: u32) -> GuestWork {
        let Share { base, pages, stride, .. } = *self;
        let spec = PatternSpec {
            bytes: pages * stride,
            mix: Mix::Strided { stride },
            writes_percent: writes_percent as _,
            accesses: pages,
        };
        GuestWork::Pattern { spec, base: Gva::new(base), seed: Seed(0) }
    }
}

/// Writes all pages again and again, until a pass that began with memory read-only has been refused what it was; how often.
async fn write_until_refused<F: Format>(
    host: &Host<F>,
    rooted: &mut RootedVcpu<F>,
    share: Share,
    protected: Var,
) -> u64 {
    loop {
        let read_only = host.load_acquire(protected).await == LANDED;
        let mut refused = 0;
        for page in 0..share.pages {
            let gva = Gva::new(share.base + page * share.stride);
            host.assign(share.vcpu, GuestWork::List(vec![GuestAccess { gva, kind: AccessKind::Write }]));
            loop {
                match rooted.run_once(host).await {
                    // The run of the vCPU returns EFAULT; the test makes the guest go on behind the store.
                    Some(ExitReason::Fault(_)) if host.load_acquire(protected).await != WRITABLE => {
                        refused += 1;
                        break;
                    }
                    // What could not be fixed is taken again; a run that failed is counted.
                    Some(ExitReason::Fault(fault)) => {
                        rooted.handle(host, fault).await;
                    }
                    Some(ExitReason::Kicked | ExitReason::LogFull) => {}
                    Some(ExitReason::Done) | None => break,
                }
            }
        }
        if read_only {
            return refused;
        }
    }
}

/// The main thread.
struct Main<F> {
    phases: Phases,
    roots: Roots<F>,
    protected: Var,
    memory: Bytes,
    slot: Bytes,
    taken: Rc<RefCell<Measured>>,
}

impl<F: Format> Main<F> {
    async fn run(&self, host: &Host<F>, stages: Stages) {
        for name in ["run1", "reset", "run2"] {
            let cycles = self.phases.run(host).await;
            self.take(name, cycles);
        }
        if stages == Stages::Five {
            let cycles = self.phases.run(host).await;
            self.take("read", cycles);
            let begun = host.now().await;
            self.phases.start(host).await;
            self.protect(host).await;
            self.phases.finished(host).await;
            self.take("ro", host.now().await.since(begun));
            host.store_release(self.protected, WRITABLE).await;
            let cycles = self.phases.run(host).await;
            self.take("rw", cycles);
        }
        let begun = host.now().await;
        for _ in (0..self.memory.0 / self.slot.0).step_by(2) {
            // x86 zaps everything for each slot that goes; nothing is left after the first.
            self.roots.zap_all_fast(host).await;
        }
        self.roots.invalidate_range(host, GpaRange::new(Gpa::new(0), Bytes(self.memory.0 / 2))).await;
        self.take("delete and unmap", host.now().await.since(begun));
    }

    fn take(&self, name: &'static str, cycles: Cycles) {
        self.taken.borrow_mut().phases.push((name, cycles));
    }

    /// `mprotect(PROT_READ)`: the mapping is read-only first, then what KVM has of it goes. The pages stay.
    async fn protect(&self, host: &Host<F>) {
        let all = GpaRange::new(Gpa::new(0), self.memory);
        host.store_release(self.protected, READ_ONLY).await;
        notifier::begin(host, all).await;
        if self.roots.unmap_gfn_range(host, all).await == FlushDebt::Owed {
            host.flush_range(all, WalkCaches::Keep).await;
        }
        host.unlock(LockId::MMU).await;
        notifier::end(host).await;
        host.store_release(self.protected, LANDED).await;
    }
}
