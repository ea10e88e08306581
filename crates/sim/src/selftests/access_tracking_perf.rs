//! `access_tracking_perf_test`: what it costs guests that the host tracks which of their pages are used, and the host to find out.
//!
//! Every vCPU populates its region, writes it, reads it; then its pages are marked idle, it writes them, they are marked idle
//! again, and it reads them.
//!
//! * By default a page is marked through the idle page bitmap: each vCPU's thread walks its own pages, one `clear_young` per page that is not
//!   idle, two per page that was.
//! * With [`Tracking::LruGen`] (`-l`, proposed with v4 of lockless aging, `20240529180510.2295118-1-jthoughton`) the main thread ages the whole
//!   guest, page by page, as a generation's page-table walk does.
//! * With [`When::WhileFaulting`] (`-p`) it does so over and over while the vCPUs populate their regions: how fast can pages be aged while
//!   faults need the same lock, and what do the faults lose. The guest has what a pass per page costs locked and lockless in the published
//!   numbers of that thread.
//!
//! As in the kernel, aging does not flush: pages that stay in TLBs all along look idle. Regions must be many times what TLBs hold, or the test
//! fails. `-m` has no counterpart (the machine says what a guest looks like), nor has `-r` (there are no cgroups).

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use mmu_core::{ByteUnits, Bytes, Cycles, Format, Gpa, GpaRange, Gva, Level, PageSize};
use serde::{Deserialize, Serialize};

use super::phases::Phases;
use super::{Phase, SelftestError, SelftestReport, finish};
use crate::arch::Arch;
use crate::engine::{GuestPaging, Host, HostCounters, LockMode, Sim, VcpuId};
use crate::experiment::{Platform, Populate, VmSpec, build_without_threads};
use crate::protocols::aging::{AgingPolicy, clear_young};
use crate::protocols::fault::FaultPolicy;
use crate::protocols::reclaim::{Scan, Scanned, scan};
use crate::protocols::vcpu;
use crate::protocols::young::{Convention, YoungBitmap};
use crate::rng::Seed;
use crate::workload::{GuestWork, Mix, PatternSpec, Workload};

/// How pages are marked idle.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tracking {
    /// The idle page bitmap, by each vCPU's own thread.
    #[default]
    IdleBitmap,
    /// `-l`: a pass of the multi-generational LRU, by the main thread.
    LruGen,
}

/// When the multi-generational LRU ages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum When {
    /// Between the phases.
    #[default]
    BetweenPhases,
    /// `-p`: all the time while vCPUs populate their regions, and between the phases.
    WhileFaulting,
}

/// Where the vCPUs' regions lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overlap {
    /// Side by side.
    #[default]
    Apart,
    /// `-o`: every vCPU touches all of them.
    Overlapping,
}

/// Whether aging takes `mmu_lock`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aging {
    /// As Linux up to 6.14, and Arm and POWER to this day.
    Locked,
    /// As Linux 6.15 on x86.
    #[default]
    Lockless,
}

impl Aging {
    /// The protocol's policy.
    pub const fn policy(self) -> AgingPolicy {
        match self {
            Aging::Locked => AgingPolicy::V6_13,
            Aging::Lockless => AgingPolicy::V6_15,
        }
    }
}

impl fmt::Display for Aging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Aging::Locked => "locked",
            Aging::Lockless => "lockless",
        })
    }
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
    /// `-o`: whether regions overlap.
    pub overlap: Overlap,
    /// `-l`: how pages are marked idle.
    pub tracking: Tracking,
    /// `-p`: when they are.
    pub when: When,
    /// How the hypervisor ages.
    pub aging: Aging,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            vcpus: 1,
            bytes_per_vcpu: Bytes(1.GiB()),
            page: None,
            overlap: Overlap::Apart,
            tracking: Tracking::IdleBitmap,
            when: When::BetweenPhases,
            aging: Aging::Lockless,
        }
    }
}

/// What the vCPUs do in one iteration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// Touch every page, so many in a hundred accesses being writes.
    Touch { writes_percent: u32 },
    /// Mark their own pages idle.
    MarkIdle,
}

const WRITE: Step = Step::Touch { writes_percent: 100 };
const READ: Step = Step::Touch { writes_percent: 0 };

/// The iterations as the kernel test names them.
const SCRIPT: [(&str, Step); 7] = [
    ("populating memory", WRITE),
    ("writing to populated memory", WRITE),
    ("reading from populated memory", READ),
    ("mark memory idle", Step::MarkIdle),
    ("writing to idle memory", WRITE),
    ("mark memory idle", Step::MarkIdle),
    ("reading from idle memory", READ),
];

/// What marking found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Tally {
    /// Pages that should have been accessed since they were marked.
    expected: u64,
    /// Those of them that look idle.
    still_idle: u64,
    /// Pages without a mapping.
    no_pfn: u64,
}

/// What the main thread takes down.
#[derive(Clone, Debug, Default)]
struct Notes {
    phases: Vec<(String, Cycles, HostCounters)>,
    tally: Tally,
    /// Aging passes between the phases.
    passes: Scanned,
    /// Aging while vCPUs fault.
    parallel: Scanned,
}

/// One run's layout.
#[derive(Clone, Copy, Debug)]
struct Layout {
    page: PageSize,
    bytes: u64,
    vcpus: usize,
    overlap: Overlap,
}

impl Layout {
    fn memory(&self) -> GpaRange {
        GpaRange::new(Gpa::new(0), Bytes(self.bytes * self.vcpus as u64))
    }
    fn region(&self, index: usize) -> GpaRange {
        match self.overlap {
            Overlap::Apart => GpaRange::new(Gpa::new(self.bytes * index as u64), Bytes(self.bytes)),
            Overlap::Overlapping => self.memory(),
        }
    }
    fn touch(&self, index: usize, writes_percent: u32) -> GuestWork {
        let region = self.region(index);
        let (page, bytes) = (self.page.bytes(), region.bytes.0);
        let mix = Mix::Strided { stride: page };
        let spec = PatternSpec { bytes, mix, writes_percent, accesses: bytes / page };
        GuestWork::Pattern { spec, base: Gva::new(region.start.raw()), seed: Seed(0) }
    }
    fn pages(&self) -> u64 {
        self.memory().bytes.0 / self.page.bytes()
    }
}

/// Runs the test.
///
/// # Errors
/// Options that do not go together, a VM that cannot be built, or a run that goes wrong.
pub fn run<A: Arch>(platform: &Platform<A>, options: &Options) -> Result<SelftestReport, SelftestError> {
    if options.when == When::WhileFaulting && options.tracking != Tracking::LruGen {
        let what = "only the multi-generational LRU ages while vCPUs fault: give -l as well".into();
        return Err(SelftestError::Option { option: "-p".into(), what });
    }
    let page = options.page.unwrap_or(platform.arch.two().geometry().page_size(Level::LAST));
    let layout = Layout { page, bytes: options.bytes_per_vcpu.0, vcpus: options.vcpus, overlap: options.overlap };
    let spec = VmSpec {
        memory: layout.memory().bytes,
        vcpus: options.vcpus,
        page,
        guest: GuestPaging::Flat,
        populate: Populate::Untouched,
        workload: Workload::Idle,
        seed: Seed(0),
    };
    let mut sim = build_without_threads(platform, &spec)?;
    let phases = Phases::new(&mut sim);
    let notes = Rc::new(RefCell::new(Notes::default()));
    for index in 0..options.vcpus {
        spawn_vcpu(&mut sim, index, layout, options, phases, Rc::clone(&notes));
    }
    let (into, options) = (Rc::clone(&notes), options.clone());
    sim.spawn("main", Cycles::ZERO, {
        let options = options.clone();
        move |host| Box::pin(async move { main_thread(&host, phases, layout, &options, &into).await })
    });
    finish(&mut sim)?;
    let waits = sim.threads().values().map(|stats| stats.lock_wait).sum();
    let longest = sim.vcpu_stats().iter().map(|stats| stats.longest_fault).max().unwrap_or_default();
    let notes = notes.take();
    let mut report = report(platform, &options, layout, notes, [waits, longest]);
    super::factors(&mut report, &sim);
    Ok(report)
}

/// The thread of one vCPU, over all iterations that concern it.
fn spawn_vcpu<A: Arch>(
    sim: &mut Sim<A>,
    index: usize,
    layout: Layout,
    options: &Options,
    phases: Phases,
    notes: Rc<RefCell<Notes>>,
) {
    let (vcpu, tracking, policy) = (VcpuId(index), options.tracking, options.aging.policy());
    let faults = FaultPolicy::new(LockMode::Read, layout.page);
    sim.spawn_vcpu(vcpu, move |host| {
        Box::pin(async move {
            let mut idle = YoungBitmap::new(layout.region(index), layout.page, Convention::V2);
            let mine = |step: &&(&str, Step)| step.1 != Step::MarkIdle || tracking == Tracking::IdleBitmap;
            for (i, (_, step)) in SCRIPT.iter().filter(mine).enumerate() {
                phases.wait_for(&host, i as u64 + 1).await;
                match *step {
                    Step::Touch { writes_percent } => {
                        host.assign(vcpu, layout.touch(index, writes_percent));
                        vcpu::thread(host.clone(), vcpu, faults).await;
                    }
                    // Where regions overlap one thread marks them.
                    Step::MarkIdle if layout.overlap == Overlap::Apart || index == 0 => {
                        let tally = mark_idle(&host, &mut idle, &policy).await;
                        let total = &mut notes.borrow_mut().tally;
                        total.expected += tally.expected;
                        total.still_idle += tally.still_idle;
                        total.no_pfn += tally.no_pfn;
                    }
                    Step::MarkIdle => {}
                }
                phases.done(&host).await;
            }
        })
    });
}

/// `mark_vcpu_memory_idle`: reading a page's bit clears its accessed flags and, if one was set, the bit; writing it clears them again and
/// sets the bit.
async fn mark_idle<F: Format>(host: &Host<F>, idle: &mut YoungBitmap, policy: &AgingPolicy) -> Tally {
    let (range, page) = (idle.range(), idle.page());
    let mut tally = Tally::default();
    let mut gpa = range.start;
    while gpa < range.end() {
        let here = GpaRange::new(gpa, page.into());
        gpa = here.end();
        if idle.get(here.start) {
            tally.expected += 1;
            if clear_young(host, here, policy).await.young == 0 {
                tally.still_idle += 1;
                continue;
            }
        }
        if clear_young(host, here, policy).await.leaves == 0 {
            tally.no_pfn += 1;
            continue;
        }
        idle.set(here.start);
    }
    tally
}

async fn main_thread<F: Format>(
    host: &Host<F>,
    phases: Phases,
    layout: Layout,
    options: &Options,
    notes: &Rc<RefCell<Notes>>,
) {
    for (i, (name, step)) in SCRIPT.iter().enumerate() {
        let (begun, before) = (host.now().await, host.counters());
        if *step == Step::MarkIdle && options.tracking == Tracking::LruGen {
            let scanned = pass(host, layout, options, None).await;
            let mut notes = notes.borrow_mut();
            // The first pass comes after several phases, the others after one that touched everything.
            notes.tally.expected += layout.pages();
            notes.tally.still_idle += layout.pages().saturating_sub(scanned.aged.young);
            notes.tally.no_pfn += layout.pages().saturating_sub(scanned.aged.leaves);
            notes.passes.merge(&scanned);
        } else if i == 0 && options.when == When::WhileFaulting {
            phases.start(host).await;
            while host.load(phases.pending()).await != 0 {
                let scanned = pass(host, layout, options, Some(phases)).await;
                notes.borrow_mut().parallel.merge(&scanned);
            }
            phases.finished(host).await;
        } else {
            phases.run(host).await;
        }
        let took = host.now().await.since(begun);
        notes.borrow_mut().phases.push(((*name).to_owned(), took, host.counters().since(&before)));
    }
}

/// One pass of the multi-generational LRU over the guest; it ends early when the vCPUs are done.
async fn pass<F: Format>(host: &Host<F>, layout: Layout, options: &Options, until: Option<Phases>) -> Scanned {
    let granule = host.format().geometry().granule();
    let mut young = YoungBitmap::new(layout.memory(), granule, Convention::V2);
    let how = Scan::Walk { batch: layout.page.bytes() / granule.bytes() };
    scan(host, &mut young, how, &options.aging.policy(), until.map(|phases| phases.pending())).await
}

fn report<A: Arch>(
    platform: &Platform<A>,
    options: &Options,
    layout: Layout,
    notes: Notes,
    [waits, longest]: [Cycles; 2],
) -> SelftestReport {
    let mut report = SelftestReport::new("access_tracking_perf_test", platform);
    for (name, cycles, host) in notes.phases {
        report.phases.push(Phase { name, cycles, host });
    }
    let Tally { expected, still_idle, no_pfn } = notes.tally;
    report.check(
        no_pfn * 100 < layout.pages(),
        format!("less than 1 % of {} pages have no frame: {no_pfn}", layout.pages()),
    );
    report.check(
        still_idle * 10 < expected,
        format!(
            "at least 90 % of {expected} accessed pages are found accessed: {still_idle} look idle, hidden by TLBs"
        ),
    );
    let us = |report: &SelftestReport, cycles| report.seconds(cycles) * 1e6;
    let figures = [("mmu_lock wait of all vCPUs (us)", waits), ("longest fault (us)", longest)];
    for (name, cycles) in figures {
        let value = us(&report, cycles);
        report.figures.insert(name.into(), value);
    }
    for (name, scanned) in [("between phases", &notes.passes), ("while faulting", &notes.parallel)] {
        if scanned.pages == 0 {
            continue;
        }
        let per_page = us(&report, scanned.time) * 1e3 / scanned.pages as f64;
        let held = us(&report, scanned.aged.held) * 1e3 / scanned.pages as f64;
        let pass = per_page * (layout.memory().bytes.0 / platform.arch.two().geometry().granule().bytes()) as f64 / 1e9;
        report.figures.insert(format!("aging {name}, {} (ns per page)", options.aging), per_page);
        report.figures.insert(format!("aging {name}, {} (mmu_lock held, ns per page)", options.aging), held);
        report.figures.insert(format!("aging {name}, {} (s per pass)", options.aging), pass);
    }
    report
}

// ---- over many vCPU counts ----

/// What one point of a sweep measured.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Point {
    /// vCPUs.
    pub vcpus: usize,
    /// How pages were aged.
    pub aging: Aging,
    /// Aging of one page, in nanoseconds.
    pub ns_per_page: f64,
    /// How long `mmu_lock` was held for it.
    pub held_ns_per_page: f64,
    /// Populating all memory, in seconds.
    pub populate: f64,
    /// The longest fault of any vCPU, in microseconds.
    pub longest_fault_us: f64,
    /// Time that all vCPUs together waited for `mmu_lock`, in microseconds.
    pub wait_us: f64,
}

/// Runs the test for several numbers of vCPUs, locked and lockless each, and checks the shape that was published for `-p -l` (x86, 4K pages:
/// locked 31 ns per page with one vCPU, 108 with 8, 518 with 32; lockless 28, 30, 30): the lockless pass takes at most twice as long per
/// page with up to 32 vCPUs as with one, the locked one at least four times.
///
/// # Errors
/// As [`run`].
pub fn sweep<A: Arch>(
    platform: &Platform<A>,
    options: &Options,
    vcpus: &[usize],
) -> Result<(SelftestReport, Vec<Point>), SelftestError> {
    let mut all = SelftestReport::new("access_tracking_perf_test", platform);
    let mut points = Vec::new();
    for &vcpus in vcpus {
        for aging in [Aging::Locked, Aging::Lockless] {
            let one = run(platform, &Options { vcpus, aging, ..options.clone() })?;
            let name = format!("{vcpus} vCPUs, {aging}");
            for phase in &one.phases {
                all.phases.push(Phase { name: format!("{name}: {}", phase.name), ..phase.clone() });
            }
            for check in &one.checks {
                all.check(check.held, format!("{name}: {}", check.what));
            }
            let figure = |what: &str| one.figures.iter().find(|(name, _)| name.contains(what)).map_or(0.0, |(_, v)| *v);
            let when = match options.when {
                When::WhileFaulting => "while faulting",
                When::BetweenPhases => "between phases",
            };
            let ns_per_page = figure(&format!("{when}, {aging} (ns per page"));
            all.figures.insert(format!("{vcpus:3} vCPUs, {aging} (ns per page)"), ns_per_page);
            let populate = one.phases.first().map_or(0.0, |phase| one.seconds(phase.cycles));
            points.push(Point {
                vcpus,
                aging,
                ns_per_page,
                held_ns_per_page: figure(&format!("{when}, {aging} (mmu_lock held")),
                populate,
                longest_fault_us: figure("longest fault"),
                wait_us: figure("mmu_lock wait"),
            });
        }
    }
    if options.when == When::WhileFaulting {
        check_shape(&mut all, &points);
    }
    Ok((all, points))
}

/// Whether the points have the published shape, as far as they reach.
fn check_shape(report: &mut SelftestReport, points: &[Point]) {
    let at =
        |vcpus, aging| points.iter().find(|point| (point.vcpus, point.aging) == (vcpus, aging)).map(|p| p.ns_per_page);
    for (aging, holds) in [(Aging::Lockless, at_most_twice as fn(f64) -> bool), (Aging::Locked, four_times)] {
        if let (Some(one), Some(many)) = (at(1, aging), at(32, aging)) {
            let growth = many / one;
            let what =
                format!("{aging} aging of a page takes {one:.0} ns with 1 vCPU, {many:.0} with 32: {growth:.2} times");
            report.check(holds(growth), what);
        }
    }
}

fn at_most_twice(growth: f64) -> bool {
    growth <= 2.0
}
fn four_times(growth: f64) -> bool {
    growth >= 4.0
}
