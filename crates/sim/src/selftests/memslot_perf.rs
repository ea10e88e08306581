//! `memslot_perf_test`: how fast memory in very many memslots is mapped, unmapped, moved and used.
//!
//! | test | what one iteration does |
//! | --- | --- |
//! | `map` | the guest writes one half of 32 MiB page by page while the host unmaps the other half, then the other way round |
//! | `unmap` | the guest writes one page of each half of 128 MiB, the host unmaps that half page by page |
//! | `unmap chunked` | the same, 2 MiB at a time |
//! | `move active area` | the last slot moves away and back while the guest writes an area that ends inside it; the guest meets MMIO |
//! | `move inactive area` | the same with an area that ends before it; the guest does not notice |
//! | `RW` | host and guest write all of 512 MiB in turn, and look at what the other one wrote |
//!
//! Each sub-test builds its VM anew: 512 MiB from guest-physical 256 MiB on, in as many slots as there may be, each with host memory of its own. What the
//! kernel's test checks by contents is checked by identity here: the page that the host finds is the page that the guest's entry maps. A guest that waits
//! for the host has left (it spins in guest mode in the kernel's test). `-l` may be a fraction.

use std::cell::RefCell;
use std::rc::Rc;

use mmu_core::{ByteUnits, Bytes, Cycles, Format, Gpa, GpaRange, Gva, Hva, HvaRange};
use serde::{Deserialize, Serialize};

pub use super::memslot_modification::SlotQuirk;
use super::phases::Phases;
use super::{Phase, SelftestError, SelftestReport, finish, option_error, supported_page};
use crate::arch::Arch;
use crate::engine::{
    ExitReason, Faulted, GuestPaging, Host, HostAccess, HostCounters, Memslot, Reference, SlotFlags, SlotId, Var,
    VcpuId, Vma,
};
use crate::experiment::vm::GUEST_MEMORY;
use crate::experiment::{Platform, Populate, VmSpec, build_without_threads};
use crate::protocols::fault::{FaultPolicy, Faults, PfRet};
use crate::protocols::fault_fast::lockless_leaf;
use crate::protocols::notifier::{Notifier, NotifierPolicy};
use crate::protocols::primary;
use crate::protocols::slots::{SlotPolicy, SlotUpdate, set_memory_region};
use crate::rng::Seed;
use crate::workload::{GuestWork, Mix, PatternSpec, Workload};

/// The sub-tests in the kernel's order; their numbers are those of `-f` and `-e`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SubTest {
    /// 0
    Map,
    /// 1
    Unmap,
    /// 2
    UnmapChunked,
    /// 3
    MoveActive,
    /// 4
    MoveInactive,
    /// 5
    ReadWrite,
}

impl SubTest {
    /// All of them.
    pub const ALL: [SubTest; 6] = [
        SubTest::Map,
        SubTest::Unmap,
        SubTest::UnmapChunked,
        SubTest::MoveActive,
        SubTest::MoveInactive,
        SubTest::ReadWrite,
    ];

    /// The kernel's name.
    pub const fn name(self) -> &'static str {
        match self {
            SubTest::Map => "map",
            SubTest::Unmap => "unmap",
            SubTest::UnmapChunked => "unmap chunked",
            SubTest::MoveActive => "move active area",
            SubTest::MoveInactive => "move inactive area",
            SubTest::ReadWrite => "RW",
        }
    }
}

/// What the host looks at after the guest has written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Checks {
    /// The first and the last page.
    #[default]
    Ends,
    /// `-d`: every page.
    EveryPage,
}

/// Options of the test.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// `-s`: slots at most; `None` (-1) is as many as there may be.
    pub slots: Option<u16>,
    /// `-f`: number of the first sub-test.
    pub first: usize,
    /// `-e`: number of the last one.
    pub last: usize,
    /// `-l`: simulated seconds that a sub-test lasts; the iteration that is under way is finished.
    pub seconds: f64,
    /// `-r`: runs of each.
    pub runs: u32,
    /// `-d`: what is looked at.
    pub checks: Checks,
    /// `-q`: what moving a slot zaps on x86.
    pub quirk: SlotQuirk,
}

impl Default for Options {
    fn default() -> Self {
        let last = SubTest::ALL.len() - 1;
        Self { slots: None, first: 0, last, seconds: 5.0, runs: 1, checks: Checks::Ends, quirk: SlotQuirk::ZapAll }
    }
}

/// `KVM_USER_MEM_SLOTS` of x86 without the slot of the test's own code.
pub const MOST_SLOTS: u16 = 32_763;
/// Guest memory that the test needs, the place that slots move to included.
pub const GUEST_BYTES: u64 = 2 << 30;

const AREA: Gpa = Gpa::new(256 << 20);
const SIZE: u64 = 512 << 20;
const EXTRA: u64 = 64 << 10;
const MAP_SIZE: u64 = 32 << 20;
const UNMAP_SIZE: u64 = 128 << 20;
const CHUNK: u64 = 2 << 20;
const MOVE_SIZE: u64 = 3 * (64 << 10);
const DESTINATION: Gpa = Gpa::new(AREA.raw() + SIZE + (16 << 20));
const VCPU: VcpuId = VcpuId(0);

/// Where everything is.
#[derive(Clone, Copy, Debug)]
struct Bed {
    page: u64,
    slots: u16,
    pages_per_slot: u64,
    pages: u64,
    quirk: SlotQuirk,
}

impl Bed {
    fn new(page: u64, cap: Option<u16>, quirk: SlotQuirk) -> Result<Self, SelftestError> {
        let pages = (SIZE + EXTRA) / page;
        let slots = cap.unwrap_or(MOST_SLOTS).min(MOST_SLOTS).min(pages.min(u64::from(u16::MAX)) as u16);
        if slots < 2 {
            return Err(option_error("-s", "at least two slots are needed: one moves, one stays".to_owned()));
        }
        Ok(Self { page, slots, pages_per_slot: pages / u64::from(slots), pages, quirk })
    }

    /// Number `i` of the slots; the last one has what division leaves over.
    fn slot(&self, i: u16) -> Memslot {
        let first = self.pages_per_slot * u64::from(i);
        let pages = if i + 1 == self.slots { self.pages - first } else { self.pages_per_slot };
        let gpa = GpaRange::new(AREA + first * self.page, Bytes(pages * self.page));
        // A page between two slots keeps their mappings apart.
        let hva = HvaRange::new(GUEST_MEMORY, Bytes(AREA.raw())).end() + (first + u64::from(i) + 1) * self.page;
        Memslot { id: SlotId(1 + i), gpa, hva, flags: SlotFlags::empty() }
    }

    fn last(&self) -> Memslot {
        self.slot(self.slots - 1)
    }

    /// The slot of a guest address.
    fn slot_of(&self, gpa: Gpa) -> Memslot {
        let i = (gpa - AREA) / self.page / self.pages_per_slot;
        self.slot(i.min(u64::from(self.slots) - 1) as u16)
    }

    fn hva(&self, gpa: Gpa) -> Hva {
        let slot = self.slot_of(gpa);
        slot.hva + (gpa - slot.gpa.start)
    }

    /// Where the area under test begins.
    fn test() -> Gpa {
        AREA + EXTRA
    }

    /// The area that the guest writes while the last slot moves.
    fn move_area(&self, test: SubTest) -> GpaRange {
        let before = if test == SubTest::MoveActive { MOVE_SIZE / 2 } else { MOVE_SIZE };
        GpaRange::new(Gpa::new(self.last().gpa.start.raw() - before), Bytes(MOVE_SIZE))
    }

    /// One write to each page of a range.
    fn writes(&self, range: GpaRange) -> GuestWork {
        let mix = Mix::Strided { stride: self.page };
        let accesses = range.bytes.0 / self.page;
        let spec = PatternSpec { bytes: range.bytes.0, mix, writes_percent: 100, accesses };
        GuestWork::Pattern { spec, base: Gva::new(range.start.raw()), seed: Seed(0) }
    }

    /// What the guest writes in its `n`th turn, the first being 1.
    fn turn(&self, test: SubTest, n: u64) -> GpaRange {
        let second = n.is_multiple_of(2);
        let half = |size: u64| GpaRange::new(Self::test() + if second { size / 2 } else { 0 }, Bytes(size / 2));
        match test {
            SubTest::Map => half(MAP_SIZE),
            SubTest::Unmap | SubTest::UnmapChunked => GpaRange::new(half(UNMAP_SIZE).start, Bytes(self.page)),
            SubTest::ReadWrite => {
                GpaRange::new(Self::test() + if second { self.page / 2 } else { 0 }, Bytes(SIZE - EXTRA))
            }
            SubTest::MoveActive | SubTest::MoveInactive => self.move_area(test),
        }
    }

    /// Whether the sub-test can be run with these slots.
    fn check(&self, test: SubTest) -> Result<(), SelftestError> {
        if test != SubTest::MoveActive || self.last().gpa.bytes.0 >= MOVE_SIZE / 2 {
            return Ok(());
        }
        let most = (self.pages * self.page / (MOVE_SIZE / 2)).min(u64::from(MOST_SLOTS));
        let what =
            format!("the last of {} slots is too small for \"{}\"; {most} slots always do", self.slots, test.name());
        Err(option_error("-s", what))
    }
}

/// What a run of one sub-test takes down.
#[derive(Clone, Debug, Default)]
struct Notes {
    setup: Cycles,
    took: Cycles,
    host: HostCounters,
    iterations: u64,
    refused: u64,
    /// Pages looked at, and those that were not what the guest wrote.
    looked: u64,
    strange: u64,
    /// Accesses to addresses without a slot: inside the slot that moves, and elsewhere.
    mmio: u64,
    mmio_elsewhere: u64,
}

/// Runs the test.
///
/// # Errors
/// Options that do not fit together, a VM that cannot be built, or a run that goes wrong.
pub fn run<A: Arch>(platform: &Platform<A>, options: &Options) -> Result<SelftestReport, SelftestError> {
    let tests = SubTest::ALL.get(options.first..=options.last).filter(|tests| !tests.is_empty());
    let Some(tests) = tests else {
        let what = format!("sub-tests are numbered 0 to {}, and -f is not above -e", SubTest::ALL.len() - 1);
        return Err(option_error("-f", what));
    };
    let page = supported_page(platform, None)?.bytes();
    let bed = Bed::new(page, options.slots, options.quirk)?;
    let mut report = SelftestReport::new("memslot_perf_test", platform);
    report.figures.insert("memslots".into(), f64::from(bed.slots));
    let mut best_setup = Cycles::NEVER;
    for &test in tests {
        bed.check(test)?;
        let mut best: Option<Notes> = None;
        for _ in 0..options.runs.max(1) {
            let notes = run_one(platform, bed, test, options)?;
            best_setup = best_setup.min(notes.setup);
            let average = |notes: &Notes| notes.took.0 / notes.iterations.max(1);
            if best.as_ref().is_none_or(|best| average(&notes) < average(best)) {
                best = Some(notes);
            }
        }
        tell(&mut report, test, &best.unwrap_or_default());
    }
    let setup = report.seconds(best_setup);
    report.figures.insert("best slot set-up time (s)".into(), setup);
    Ok(report)
}

fn tell(report: &mut SelftestReport, test: SubTest, notes: &Notes) {
    let name = test.name();
    report.phases.push(Phase { name: name.to_owned(), cycles: notes.took, host: notes.host });
    let average = report.seconds(notes.took) / notes.iterations.max(1) as f64;
    report.figures.insert(format!("{name}: iterations"), notes.iterations as f64);
    report.figures.insert(format!("{name}: average per iteration (s)"), average);
    report.check(notes.refused == 0, format!("{name}: no update of a memslot is refused: {}", notes.refused));
    match test {
        SubTest::MoveActive => report.check(
            notes.mmio_elsewhere == 0,
            format!(
                "{name}: {} accesses met no slot, {} of them outside of the one that moves",
                notes.mmio, notes.mmio_elsewhere
            ),
        ),
        SubTest::MoveInactive => {
            let missed = notes.mmio + notes.mmio_elsewhere;
            report.check(missed == 0, format!("{name}: every access meets its slot: {missed} did not"));
        }
        _ => report.check(
            notes.looked > 0 && notes.strange == 0,
            format!("{name}: {} pages are what the guest wrote: {} are not", notes.looked, notes.strange),
        ),
    }
}

fn run_one<A: Arch>(
    platform: &Platform<A>,
    bed: Bed,
    test: SubTest,
    options: &Options,
) -> Result<Notes, SelftestError> {
    let page = supported_page(platform, None)?;
    let spec = VmSpec {
        // The slot of the test's own code and page tables.
        memory: Bytes(16.MiB()),
        vcpus: 1,
        page,
        guest: GuestPaging::Flat,
        populate: Populate::ByFaults,
        workload: Workload::Idle,
        seed: Seed(0),
    };
    let mut sim = build_without_threads(platform, &spec)?;
    for slot in (0..bed.slots).map(|i| bed.slot(i)) {
        sim.primary_mut().map(slot.hva_range(), Vma::default());
    }
    let (phases, stop) = (Phases::new(&mut sim), sim.new_var(0));
    let notes = Rc::new(RefCell::new(Notes::default()));
    let policy = FaultPolicy::linux_6_6(platform.arch.two(), page);
    let theirs = Rc::clone(&notes);
    sim.spawn_vcpu(VCPU, move |host| {
        Box::pin(async move {
            let mut faults = Faults::new(VCPU, policy);
            match test {
                SubTest::MoveActive | SubTest::MoveInactive => {
                    phases.wait_for(&host, 1).await;
                    while host.load_acquire(stop).await == 0 {
                        host.assign(VCPU, bed.writes(bed.move_area(test)));
                        run_guest(&host, &mut faults, bed, &theirs).await;
                    }
                    phases.done(&host).await;
                }
                _ => take_turns(&host, &mut faults, bed, test, (phases, stop), &theirs).await,
            }
            faults.release(&host).await;
        })
    });
    let length = Cycles((options.seconds.max(0.0) * platform.clock_hz as f64) as u64);
    let (into, checks) = (Rc::clone(&notes), options.checks);
    sim.spawn("main", Cycles::ZERO, move |host| {
        Box::pin(async move {
            let main = Main { bed, test, checks, phases, stop, notes: into };
            main.run(&host, length).await;
        })
    });
    finish(&mut sim)?;
    Ok(notes.take())
}

/// The guest's side of all tests in which it takes turns with the host.
async fn take_turns<F: Format>(
    host: &Host<F>,
    faults: &mut Faults<crate::protocols::fault::PlainMemory>,
    bed: Bed,
    test: SubTest,
    (phases, stop): (Phases, Var),
    notes: &Rc<RefCell<Notes>>,
) {
    for n in 1.. {
        phases.wait_for(host, n).await;
        let stopped = host.load_acquire(stop).await != 0;
        if !stopped {
            host.assign(VCPU, bed.writes(bed.turn(test, n)));
            run_guest(host, faults, bed, notes).await;
        }
        phases.done(host).await;
        if stopped {
            break;
        }
    }
}

/// Runs the vCPU until its work is done; accesses without a slot are taken down.
async fn run_guest<F: Format>(
    host: &Host<F>,
    faults: &mut Faults<crate::protocols::fault::PlainMemory>,
    bed: Bed,
    notes: &Rc<RefCell<Notes>>,
) {
    loop {
        match host.vcpu_run(VCPU).await.reason {
            ExitReason::Fault(fault) => {
                let section = host.srcu_read_lock().await;
                let ret = faults.handle(host, fault).await;
                host.srcu_read_unlock(section).await;
                if ret == PfRet::Emulate {
                    let moves = bed.last().gpa.contains(fault.gpa);
                    let notes = &mut notes.borrow_mut();
                    notes.mmio += u64::from(moves);
                    notes.mmio_elsewhere += u64::from(!moves);
                }
            }
            ExitReason::Kicked | ExitReason::LogFull => {}
            ExitReason::Done => return,
        }
    }
}

/// The main thread.
struct Main {
    bed: Bed,
    test: SubTest,
    checks: Checks,
    phases: Phases,
    stop: Var,
    notes: Rc<RefCell<Notes>>,
}

impl Main {
    async fn run<F: Format>(&self, host: &Host<F>, length: Cycles) {
        let begun = host.now().await;
        for slot in (0..self.bed.slots).map(|i| self.bed.slot(i)) {
            self.update(host, SlotUpdate::Create(slot)).await;
        }
        let (set_up, before) = (host.now().await, host.counters());
        self.notes.borrow_mut().setup = set_up.since(begun);
        let moves = matches!(self.test, SubTest::MoveActive | SubTest::MoveInactive);
        if moves {
            self.phases.start(host).await;
        }
        let mut iterations = 0;
        while iterations == 0 || host.now().await.since(set_up) < length {
            self.iteration(host).await;
            iterations += 1;
        }
        let took = host.now().await.since(set_up);
        host.store_release(self.stop, 1).await;
        if !moves {
            self.phases.start(host).await;
        }
        self.phases.finished(host).await;
        let mut notes = self.notes.borrow_mut();
        (notes.took, notes.iterations, notes.host) = (took, iterations, host.counters().since(&before));
    }

    async fn iteration<F: Format>(&self, host: &Host<F>) {
        match self.test {
            SubTest::Map => self.map(host).await,
            SubTest::Unmap => self.unmap(host, self.bed.page).await,
            SubTest::UnmapChunked => self.unmap(host, CHUNK).await,
            SubTest::MoveActive | SubTest::MoveInactive => self.move_there_and_back(host).await,
            SubTest::ReadWrite => self.read_and_write(host).await,
        }
    }

    async fn update<F: Format>(&self, host: &Host<F>, update: SlotUpdate) {
        let policy = match self.bed.quirk {
            SlotQuirk::ZapAll => SlotPolicy::linux_6_6(host.format()),
            SlotQuirk::LeafsOnly => SlotPolicy::X86_LEAFS,
        };
        let refused = set_memory_region(host, update, &policy).await.is_err();
        self.notes.borrow_mut().refused += u64::from(refused);
    }

    /// `test_memslot_map_loop`: each half is unmapped while the guest writes the other one.
    async fn map<F: Format>(&self, host: &Host<F>) {
        let halves = [1, 2].map(|n| self.bed.turn(self.test, n));
        for (mine, unmapped) in [(halves[0], halves[1]), (halves[1], halves[0])] {
            self.phases.start(host).await;
            self.do_unmap(host, unmapped).await;
            self.phases.finished(host).await;
            self.look_at(host, mine).await;
        }
    }

    /// `test_memslot_unmap_loop_common`: one page of each half is written, the half unmapped in chunks.
    async fn unmap<F: Format>(&self, host: &Host<F>, chunk: u64) {
        for n in [1, 2] {
            self.phases.run(host).await;
            let mine = self.bed.turn(self.test, n);
            self.look_at(host, mine).await;
            for offset in (0..UNMAP_SIZE / 2).step_by(chunk as usize) {
                self.do_unmap(host, GpaRange::new(mine.start + offset, Bytes(chunk))).await;
            }
        }
    }

    async fn move_there_and_back<F: Format>(&self, host: &Host<F>) {
        let here = self.bed.last();
        let there = Memslot { gpa: GpaRange::new(DESTINATION, here.gpa.bytes), ..here };
        self.update(host, SlotUpdate::Move(here, DESTINATION)).await;
        self.update(host, SlotUpdate::Move(there, here.gpa.start)).await;
    }

    /// `test_memslot_rw_loop`
    async fn read_and_write<F: Format>(&self, host: &Host<F>) {
        let all = self.bed.turn(self.test, 1);
        for page in self.pages(all) {
            host.try_fault(self.bed.hva(page), HostAccess::Write, Reference::None).await;
        }
        self.phases.run(host).await;
        for page in self.pages(all) {
            self.look_at_page(host, page).await;
        }
        self.phases.run(host).await;
    }

    fn pages(&self, range: GpaRange) -> impl Iterator<Item = Gpa> + use<> {
        let (start, page) = (range.start, self.bed.page);
        (0..range.bytes.0 / page).map(move |i| start + i * page)
    }

    /// `madvise(MADV_DONTNEED)`, slot by slot.
    async fn do_unmap<F: Format>(&self, host: &Host<F>, range: GpaRange) {
        let notifier = Notifier::new(NotifierPolicy::V6_8);
        let mut at = range.start;
        while at < range.end() {
            let end = self.bed.slot_of(at).gpa.end().min(range.end());
            let hvas = HvaRange::new(self.bed.hva(at), Bytes(end - at));
            primary::madvise_dontneed(host, &notifier, hvas).await;
            at = end;
        }
    }

    /// `test_memslot_map_unmap_check` of what the guest has just written.
    async fn look_at<F: Format>(&self, host: &Host<F>, range: GpaRange) {
        let last = range.end().raw() - self.bed.page;
        match self.checks {
            Checks::Ends => {
                for page in [range.start, Gpa::new(last)] {
                    self.look_at_page(host, page).await;
                }
            }
            Checks::EveryPage => {
                for page in self.pages(range) {
                    self.look_at_page(host, page).await;
                }
            }
        }
    }

    /// Whether the host finds the page that the guest has written.
    async fn look_at_page<F: Format>(&self, host: &Host<F>, gpa: Gpa) {
        let host_page = host.try_fault(self.bed.hva(gpa), HostAccess::Read, Reference::None).await;
        host.rcu_read_lock().await;
        let root = host.root().await;
        let leaf = lockless_leaf(host, root, gpa).await;
        host.rcu_read_unlock().await;
        let format = host.format();
        let guest_page =
            leaf.map(|(_, level, word)| format.output(level, word) + gpa.offset_in(format.geometry().page_size(level)));
        let same = matches!((host_page, guest_page), (Faulted::Page(mine), Some(theirs)) if mine.host == theirs);
        let mut notes = self.notes.borrow_mut();
        notes.looked += 1;
        notes.strange += u64::from(!same);
    }
}
