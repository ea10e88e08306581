//! `dirty_log_test`: does the log say exactly what a guest wrote that never stops writing?
//!
//! The kernel's test compares bits with the contents of pages. Here the checker keeps its own account of stores: a page that was written and is
//! in no log is a violation, and one that is in the log without having been written is counted.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use mmu_core::{ByteUnits, Bytes, Cycles, Gpa, GpaRange, Gva, PageSize};
use serde::{Deserialize, Serialize};

use super::dirty_bed::{Bed, Reader, Timed, check_rings, vm};
use super::{SelftestError, SelftestReport, finish, option_error, supported_page};
use crate::arch::Arch;
use crate::engine::{GuestPaging, VcpuId};
use crate::experiment::{Platform, Populate, VmSpec};
use crate::protocols::dirty_log::ring::{DirtyRing, RingOrder};
use crate::protocols::dirty_log::vcpu::{LoggedSlot, run as run_guest};
use crate::protocols::dirty_log::{DirtyPolicy, LogKind, Manual, disable, enable};
use crate::protocols::fault::{FaultPolicy, Faults};
use crate::rng::Seed;
use crate::workload::{GuestWork, Mix, PatternSpec};

/// `-M`: how the log is kept and read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogMode {
    /// Reading makes pages clean.
    #[default]
    DirtyLog,
    /// A call of its own does.
    ClearLog,
    /// Pages go through a ring.
    DirtyRing,
}

/// Options of the test.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// `-c`: entries of a dirty ring.
    pub ring_size: u64,
    /// `-i`: how often the log is read.
    pub iterations: u64,
    /// `-I`: milliseconds between two times.
    pub interval: u64,
    /// `-M`: how the log is kept and read.
    pub mode: LogMode,
    /// `-p`: where the memory lies, as a guest-physical offset.
    pub offset: Bytes,
    /// Guest memory; the kernel's test has 1 GiB.
    pub memory: Bytes,
    /// `-s`, ours: size of the pages that back the memory; `None` is the smallest that the second stage has.
    pub page: Option<PageSize>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ring_size: 65536,
            iterations: 32,
            interval: 10,
            mode: LogMode::DirtyLog,
            offset: Bytes(0),
            memory: Bytes(1.GiB()),
            page: None,
        }
    }
}

/// Random pages that the guest writes between two looks at whether it should stop (`TEST_PAGES_PER_LOOP`).
const PAGES_PER_LOOP: u64 = 1024;

/// Runs the test.
///
/// # Errors
/// Options that do not fit together, a VM that cannot be built, or a run that goes wrong; a page that no log has is a violation.
pub fn run<A: Arch>(platform: &Platform<A>, options: &Options) -> Result<SelftestReport, SelftestError> {
    let page = supported_page(platform, options.page)?;
    if options.memory.0 < 1.MiB() || !options.memory.0.is_multiple_of(page.bytes()) {
        return Err(option_error("memory", format!("give 1MiB at least, in whole pages of {page}")));
    }
    let manual = if options.mode == LogMode::ClearLog { Manual::On } else { Manual::Off };
    let policy = DirtyPolicy { manual, ..DirtyPolicy::linux_6_6(platform.arch.two()) };
    let kind = if options.mode == LogMode::DirtyRing { LogKind::Rings } else { LogKind::Bitmap };
    if kind == LogKind::Rings {
        check_rings(&policy, "choose another -M")?;
    }
    if !options.offset.0.is_multiple_of(page.bytes()) {
        return Err(option_error("-p", format!("give a multiple of the backing page, {page}")));
    }
    let tested = GpaRange::new(Gpa::new(options.offset.0), options.memory);
    let all = Bytes(options.offset.0.saturating_add(options.memory.0));
    // Its rings are read while the vCPU goes on, which the kernel's test stops: with walks of the guest's own tables a store would come later behind its fault than the
    // check below allows for.
    let spec = VmSpec { guest: GuestPaging::Flat, populate: Populate::ByFaults, ..vm(platform, all, 1, page) };
    let mut bed = Bed::in_slots(platform, &spec, kind, tested, 1)?;
    let rings = match kind {
        LogKind::Bitmap => Vec::new(),
        LogKind::Rings => {
            let full = bed.sim.new_wait_queue();
            let order = RingOrder::ReleaseAcquire;
            DirtyRing::create(&mut bed.sim, options.ring_size, policy.tracking, order, full).ok_or_else(|| {
                option_error("-c", "give a power of two above the reserved entries: 64, and 512 more with PML".into())
            })?
        }
    };
    let stop = bed.sim.new_var(0);
    let (log, ring, memory, phases) = (bed.log, rings.first().copied(), options.memory.0, bed.phases);
    let base = Gva::new(options.offset.0);
    let faults = FaultPolicy::linux_6_6(platform.arch.two(), page);
    let vcpu = VcpuId(0);
    bed.sim.spawn_vcpu(vcpu, |host| {
        Box::pin(async move {
            let slot = LoggedSlot { ring, ..LoggedSlot::new(log) };
            let mut handler = Faults::with_hooks(vcpu, faults, slot);
            phases.wait_for(&host, 1).await;
            let mut turn = 0;
            while host.load_acquire(stop).await == 0 {
                let (mix, writes_percent, accesses) = (Mix::Uniform, 100, PAGES_PER_LOOP);
                let spec = PatternSpec { bytes: memory, mix, writes_percent, accesses };
                host.assign(vcpu, GuestWork::Pattern { spec, base, seed: Seed(turn) });
                let _ = run_guest(&host, vcpu, &slot, &mut handler).await;
                turn += 1;
            }
            phases.done(&host).await;
            handler.release(&host).await;
        })
    });
    let timed = Timed::default();
    let (main, found) = (timed.clone(), Rc::new(RefCell::new(Vec::new())));
    let reads = Rc::new(Cell::new(0));
    let (out, reads_of, options_of) = (Rc::clone(&found), Rc::clone(&reads), options.clone());
    let pause = Cycles(options.interval.saturating_mul(platform.clock_hz / 1000));
    bed.sim.spawn("main", Cycles::ZERO, move |host| {
        Box::pin(async move {
            let _ = main.phase(&host, "enable dirty logging".into(), enable(&host, &log, &policy)).await;
            let mut reader = Reader::new(log, policy, &rings);
            phases.start(&host).await;
            for n in 1..=options_of.iterations {
                // A ring fills up while nobody looks: its vCPU waits until it is read.
                host.sleep(pause).await;
                let pages = main.phase(&host, format!("iteration {n}"), reader.read(&host)).await;
                out.borrow_mut().push(pages);
            }
            host.store_release(stop, 1).await;
            reader.until_stopped(&host, phases.pending()).await;
            reader.read(&host).await;
            reads_of.set(reader.reads);
            host.dirty_log_settled().await;
            let _ = disable(&host, &log, &policy, page).await;
            for ring in rings {
                ring.release(&host).await;
            }
        })
    });
    finish(&mut bed.sim)?;
    let mut report = SelftestReport::new("dirty_log_test", platform);
    timed.report(&mut report, &["iteration"]);
    let found = found.take();
    report.check(found.iter().all(|&pages| pages > 0), format!("every iteration finds dirty pages: {found:?}"));
    let world = bed.sim.world();
    let (reported, needless) = (world.written().reported_pages(), world.written().needless_pages());
    let per_leaf = bed.log.page.bytes() >> 12;
    // Between a fault and the store that is tried again a page may be in the log already: once for each time the log is read.
    let allowed = reads.get() * per_leaf + reported / per_leaf * (per_leaf - 1);
    report.check(needless <= allowed, format!("no page is reported that was not written: {needless} of {reported}"));
    report.figures.insert("units of 4K reported".into(), reported as f64);
    Ok(report)
}
