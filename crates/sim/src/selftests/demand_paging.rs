//! `demand_paging_test`: every vCPU touches all pages of its region for the first time.
//!
//! With a user-space fault handler behind the memory (`-u`), one handler thread per vCPU provides the pages, after a delay (`-d`).

use std::cell::Cell;
use std::rc::Rc;

use mmu_core::{ByteUnits, Bytes, Cycles, Gpa, Gva, HvaRange, PageSize};
use serde::{Deserialize, Serialize};

use super::phases::Phases;
use super::{Phase, SelftestError, SelftestReport, finish, option_error, supported_page};
use crate::arch::Arch;
use crate::engine::{GuestPaging, Memslot, Sim, SlotsVersion, Userfault, VcpuId, Vma};
use crate::experiment::{Platform, Populate, VmSpec, build_without_threads};
use crate::protocols::fault::{FaultPolicy, Faults, LevelChoice};
use crate::protocols::vcpu::run as run_guest;
use crate::rng::Seed;
use crate::workload::{GuestWork, Mix, PatternSpec, Workload};

/// What a user-space handler provides.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UserfaultMode {
    /// Pages that are not there: it copies them (`UFFDIO_COPY`).
    Missing,
    /// Pages that are in the page cache and not mapped: it maps them (`UFFDIO_CONTINUE`).
    Minor,
}

/// Where the vCPUs' regions lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Regions {
    /// Side by side.
    #[default]
    Partitioned,
    /// One for all.
    Overlapping,
}

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
    /// `-u`: what a user-space handler provides.
    pub userfault: Option<UserfaultMode>,
    /// `-d`: microseconds that the handler waits before it provides a page.
    pub delay_us: u64,
    /// `-o`: whether the vCPUs' regions overlap.
    pub regions: Regions,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            vcpus: 1,
            bytes_per_vcpu: Bytes(1.GiB()),
            page: None,
            userfault: None,
            delay_us: 0,
            regions: Regions::Partitioned,
        }
    }
}

/// Runs the test.
///
/// # Errors
/// Options that do not fit together, a VM that cannot be built, or a run that goes wrong.
pub fn run<A: Arch>(platform: &Platform<A>, options: &Options) -> Result<SelftestReport, SelftestError> {
    let page = supported_page(platform, options.page)?;
    if options.delay_us > 0 && options.userfault.is_none() {
        return Err(option_error("-d", "a delay needs a handler: choose MISSING or MINOR with -u".to_owned()));
    }
    let bytes = options.bytes_per_vcpu.0;
    let pages = bytes / page.bytes();
    let share = |index: usize| if options.regions == Regions::Partitioned { bytes * index as u64 } else { 0 };
    let memory = share(options.vcpus.saturating_sub(1)) + bytes;
    let spec = VmSpec {
        memory: Bytes(memory),
        vcpus: options.vcpus,
        page,
        guest: GuestPaging::Flat,
        populate: Populate::ByFaults,
        workload: Workload::Idle,
        seed: Seed(0),
    };
    let mut sim = build_without_threads(platform, &spec)?;
    let delay = Cycles((u128::from(options.delay_us) * u128::from(platform.clock_hz) / 1_000_000) as u64);
    let policy = FaultPolicy { level: LevelChoice::Fixed, ..FaultPolicy::linux_6_6(platform.arch.two(), page) };
    if let Some(mode) = options.userfault {
        let userfault = match mode {
            UserfaultMode::Missing => Userfault::Missing(delay),
            UserfaultMode::Minor => Userfault::Minor(delay),
        };
        register(&mut sim, Bytes(memory), userfault)?;
    }
    let phases = Phases::new(&mut sim);
    let touch = PatternSpec { bytes, mix: Mix::Strided { stride: page.bytes() }, writes_percent: 100, accesses: pages };
    for index in 0..options.vcpus {
        let work = GuestWork::Pattern { spec: touch.clone(), base: Gva::new(share(index)), seed: Seed(0) };
        let vcpu = VcpuId(index);
        sim.spawn_vcpu(vcpu, move |host| {
            Box::pin(async move {
                let mut faults = Faults::new(vcpu, policy);
                phases.wait_for(&host, 1).await;
                host.assign(vcpu, work);
                // A failed run leaves accesses undone, which the test asserts.
                let _ = run_guest(&host, vcpu, &mut faults).await;
                phases.done(&host).await;
                faults.release(&host).await;
            })
        });
    }
    let taken = Rc::new(Cell::new(Cycles::ZERO));
    let slot = Rc::clone(&taken);
    sim.spawn("main", Cycles::ZERO, move |host| Box::pin(async move { slot.set(phases.run(&host).await) }));
    let mut report = SelftestReport::new("demand_paging_test", platform);
    finish(&mut sim)?;
    let (cycles, host) = (taken.get(), *sim.world().counters());
    let touched: u64 = sim.vcpu_stats().iter().map(|vcpu| vcpu.accesses).sum();
    let wanted = pages * options.vcpus as u64;
    report.check(touched == wanted, format!("each vCPU touches each page of its region: {touched} of {wanted}"));
    report.figures.insert("pages per second".into(), touched as f64 / report.seconds(cycles));
    report.phases.push(Phase { name: "guest execution".into(), cycles, host });
    Ok(report)
}

/// Gives the guest fresh memory of the same kind, for which a handler in user space is registered (`uffd_setup_demand_paging`).
fn register<A: Arch>(sim: &mut Sim<A>, bytes: Bytes, userfault: Userfault) -> Result<(), SelftestError> {
    let slot = sim.world().slots().at(SlotsVersion(0), Gpa::new(0));
    let slot = slot.ok_or_else(|| option_error("-u", "the guest has no memory slot".to_owned()))?;
    let old = HvaRange::new(slot.to_hva(Gpa::new(0)), bytes);
    let vma = sim.world().primary().vma(old.start).unwrap_or_default();
    let fresh = HvaRange::new(old.end(), bytes);
    sim.add_slot(Memslot { hva: fresh.start, ..slot });
    sim.primary_mut().map(fresh, Vma { userfault, ..vma });
    Ok(())
}
