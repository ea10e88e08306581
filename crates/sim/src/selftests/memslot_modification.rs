//! `memslot_modification_stress_test`: vCPUs use their memory while the host adds and deletes a slot that has nothing to do with it.
//!
//! On x86 each deletion zaps the whole root, so that every page is faulted in again; with [`SlotQuirk::LeafsOnly`] (`-q`) and on the other
//! architectures nobody notices. The dummy slot of one page lies above the vCPUs' memory, which begins at guest-physical 0 here (below it in
//! the kernel's test). `-m` has no counterpart: the machine says what a guest looks like.

use std::cell::Cell;
use std::rc::Rc;

use mmu_core::{ByteUnits, Bytes, Cycles, Format, Gpa, GpaRange, Gva, HvaRange, Level, PageSize};
use serde::{Deserialize, Serialize};

use super::demand_paging::Regions;
use super::{Phase, SelftestError, SelftestReport, finish, supported_page};
use crate::arch::Arch;
use crate::engine::{GuestPaging, Memslot, SlotFlags, SlotId, SlotsVersion, Var, VcpuId, Vma};
use crate::experiment::vm::GUEST_MEMORY;
use crate::experiment::{Platform, Populate, VmSpec, build_without_threads};
use crate::protocols::fault::{FaultPolicy, Faults};
use crate::protocols::slots::{SlotPolicy, SlotUpdate, set_memory_region};
use crate::protocols::vcpu::run as run_guest;
use crate::rng::Seed;
use crate::workload::{GuestWork, Mix, PatternSpec, Workload};

/// What deleting a slot takes away on x86.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SlotQuirk {
    /// Everything (`KVM_X86_QUIRK_SLOT_ZAP_ALL`).
    #[default]
    ZapAll,
    /// `-q`: the slot's leaves only.
    LeafsOnly,
}

/// Options of the test.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// `-d`: microseconds between two modifications.
    pub delay_us: u64,
    /// `-b`: bytes that each vCPU uses.
    pub bytes_per_vcpu: Bytes,
    /// `-v`: vCPUs.
    pub vcpus: usize,
    /// `-o`: whether the vCPUs' regions overlap.
    pub regions: Regions,
    /// `-i`: additions and deletions.
    pub iterations: u64,
    /// `-q`: what a deletion zaps on x86.
    pub quirk: SlotQuirk,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            delay_us: 0,
            bytes_per_vcpu: Bytes(1.GiB()),
            vcpus: 1,
            regions: Regions::Partitioned,
            iterations: 10,
            quirk: SlotQuirk::ZapAll,
        }
    }
}

/// The kernel test's `DUMMY_MEMSLOT_INDEX`.
const DUMMY: SlotId = SlotId(7);

/// Runs the test.
///
/// # Errors
/// A VM that cannot be built, or a run that goes wrong.
pub fn run<A: Arch>(platform: &Platform<A>, options: &Options) -> Result<SelftestReport, SelftestError> {
    let page = supported_page(platform, None)?;
    let bytes = options.bytes_per_vcpu.0;
    let share = |index: usize| if options.regions == Regions::Partitioned { bytes * index as u64 } else { 0 };
    let memory = Bytes(share(options.vcpus.saturating_sub(1)) + bytes);
    let spec = VmSpec {
        memory,
        vcpus: options.vcpus,
        page,
        guest: GuestPaging::Flat,
        populate: Populate::ByFaults,
        workload: Workload::Idle,
        seed: Seed(0),
    };
    let mut sim = build_without_threads(platform, &spec)?;
    let dummy = dummy_slot(memory, platform.arch.two().geometry().page_size(Level::LAST));
    sim.primary_mut().map(dummy.hva_range(), Vma::default());
    let stop = sim.new_var(0);
    let passes = sim.new_var(0);
    let faults = FaultPolicy::linux_6_6(platform.arch.two(), page);
    let touch = PatternSpec {
        bytes,
        mix: Mix::Strided { stride: page.bytes() },
        writes_percent: 100,
        accesses: bytes / page.bytes(),
    };
    for index in 0..options.vcpus {
        let work = GuestWork::Pattern { spec: touch.clone(), base: Gva::new(share(index)), seed: Seed(0) };
        spawn_worker(&mut sim, VcpuId(index), work, faults, (stop, passes));
    }
    let policy = match options.quirk {
        SlotQuirk::ZapAll => SlotPolicy::linux_6_6(platform.arch.two()),
        SlotQuirk::LeafsOnly => SlotPolicy::X86_LEAFS,
    };
    let delay = Cycles((u128::from(options.delay_us) * u128::from(platform.clock_hz) / 1_000_000) as u64);
    let done = Rc::new(Cell::new((0, Cycles::ZERO)));
    let (out, iterations) = (Rc::clone(&done), options.iterations);
    sim.spawn("main", Cycles::ZERO, move |host| {
        Box::pin(async move {
            let mut modified = 0;
            for _ in 0..iterations {
                host.sleep(delay).await;
                let added = set_memory_region(&host, SlotUpdate::Create(dummy), &policy).await.is_ok();
                let deleted = set_memory_region(&host, SlotUpdate::Delete(dummy), &policy).await.is_ok();
                modified += u64::from(added && deleted);
            }
            out.set((modified, host.now().await));
            host.store(stop, 1).await;
        })
    });
    let mut report = SelftestReport::new("memslot_modification_stress_test", platform);
    finish(&mut sim)?;
    let ((modified, cycles), world) = (done.get(), sim.world());
    report.check(
        modified == options.iterations,
        format!("each of {} additions and deletions succeeds: {modified}", options.iterations),
    );
    let active = SlotsVersion(world.var(Var::MEMSLOTS));
    let left = (world.slots().slot(active, SlotId(0)).is_some(), world.slots().slot(active, DUMMY).is_none());
    report.check(left == (true, true), "the guest's slot is left and the dummy is not");
    report.check(
        world.slots().versions() == 1,
        format!("one version of the slots is left: {}", world.slots().versions()),
    );
    let passed = world.var(passes);
    report
        .check(passed >= options.vcpus as u64, format!("every vCPU writes its memory once at least: {passed} passes"));
    let stats = sim.vcpu_stats();
    let pages: u64 = memory.0 / page.bytes();
    let faulted: u64 = stats.iter().map(|vcpu| vcpu.faults).sum();
    report.figures.insert("faults per page".into(), faulted as f64 / pages as f64);
    report.figures.insert("passes".into(), passed as f64);
    report.phases.push(Phase { name: "modifications".into(), cycles, host: *world.counters() });
    Ok(report)
}

/// A slot of one page above the guest's memory.
fn dummy_slot(memory: Bytes, page: PageSize) -> Memslot {
    let gpa = GpaRange::new(Gpa::new(memory.0), page.into());
    let hva = HvaRange::new(GUEST_MEMORY, memory).end() + 1.GiB();
    Memslot { id: DUMMY, gpa, hva, flags: SlotFlags::empty() }
}

/// A vCPU that does its work again and again until it is told to stop.
fn spawn_worker<A: Arch>(
    sim: &mut crate::engine::Sim<A>,
    vcpu: VcpuId,
    work: GuestWork,
    policy: FaultPolicy,
    (stop, passes): (Var, Var),
) {
    sim.spawn_vcpu(vcpu, move |host| {
        Box::pin(async move {
            let mut faults = Faults::new(vcpu, policy);
            loop {
                host.assign(vcpu, work.clone());
                if run_guest(&host, vcpu, &mut faults).await != crate::protocols::vcpu::Ran::Done {
                    break;
                }
                host.add(passes, 1).await;
                if host.load_acquire(stop).await != 0 {
                    break;
                }
            }
            faults.release(&host).await;
        })
    });
}
