//! A point of a curve, simulated: its accesses go through the TLBs, misses walk both stages over real tables, and every
//! reference of a walk, like the data itself, goes through the caches by host-physical address.
//!
//! A chase goes round in a fixed random order, so that a point is in its steady state after the first rounds. Points that
//! exceed every cache are measured on a stretch of a round: nothing is met twice in it anyway.

use mmu_core::assoc::SetAssoc;
use mmu_core::machine::Machine;
use mmu_core::tlb::{Input, Kind, LatencyCache, Lookup, Port, ServedBy, Tag, TlbEntry, TranslationCaches, Vmid};
use mmu_core::walk::{NestedCursor, Stage, Step};
use mmu_core::{Access, AccessKind, Format, Gpa, Gva, Hpa, PageSize, Privilege, Purpose};

use crate::curve::{Curve, Form};
use crate::layout::{Layout, LayoutError, Surroundings};
use crate::order::{Order, scatter};

/// Most cache levels, memory among them.
pub const SERVERS: usize = 6;
/// Most places where the front end finds a jump, beyond them among them.
pub const JUMPS: usize = 8;

/// What happened in a measured stretch. What it costs is worked out afterwards, so that a latency can change without a new run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Accesses of the chase.
    pub accesses: u64,
    /// Those that missed the first-level TLB.
    pub l1_misses: u64,
    /// Those that missed the second level too, and walked.
    pub walks: u64,
    /// References of walks to the guest's tables.
    pub stage1: u64,
    /// References of walks to the hypervisor's tables.
    pub stage2: u64,
    /// References of walks by who served them: caches from the nearest on, memory last.
    pub walk_served: [u64; SERVERS],
    /// References to data likewise.
    pub data_served: [u64; SERVERS],
    /// Jumps by the place where the front end found them, nearest first, those found nowhere last.
    pub jumps: [u64; JUMPS],
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.accesses += other.accesses;
        self.l1_misses += other.l1_misses;
        self.walks += other.walks;
        self.stage1 += other.stage1;
        self.stage2 += other.stage2;
        for (jumps, more) in self.jumps.iter_mut().zip(other.jumps) {
            *jumps += more;
        }
        for server in 0..SERVERS {
            self.walk_served[server] += other.walk_served[server];
            self.data_served[server] += other.data_served[server];
        }
    }
}

/// First address of the data; the lower half of 47 bits, on a boundary of every level.
const DATA: u64 = 0x1000_0000_0000;
/// First address of the list that says which page is next, in curves whose pages hold nothing.
const LIST: u64 = 0x0800_0000_0000;

/// How long points beyond [`MEASURED`] are run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Effort {
    /// As long as an answer takes.
    Whole,
    /// A third of that, to compare machines with each other.
    Third,
}

impl Effort {
    const fn of(self, steps: u64) -> u64 {
        match self {
            Effort::Whole => steps,
            Effort::Third => steps / 3,
        }
    }
}

/// How long a point is run.
const WARM_UP: u64 = 350_000;
const LONGEST_WARM_UP: u64 = 600_000;
const MEASURED: u64 = 100_000;
/// Small points are run for so many accesses at least.
const LEAST: u64 = 20_000;

struct Run<F1: Format, F2: Format> {
    layout: Layout<F1, F2>,
    caches: TranslationCaches,
    memory: LatencyCache,
    servers: usize,
    port: Port,
    tag: Tag,
    jumps: Vec<SetAssoc<u64, ()>>,
    counts: Counts,
}

/// Runs one point.
pub(crate) fn run<F1: Format, F2: Format>(
    machine: &Machine,
    formats: (F1, F2),
    around: Surroundings,
    (curve, n): (&Curve, u64),
    effort: Effort,
    seed: u64,
) -> Result<Counts, LayoutError> {
    let (mut run, place) = Run::new(machine, formats, around, curve, n, seed)?;
    let order = Order::new(place.points(), seed);
    let round = place.points();
    let (warm_up, measured) = if round <= MEASURED {
        let rounds = |least: u64| round * least.div_ceil(round);
        (rounds(LEAST.max(2 * round)), rounds(LEAST))
    } else {
        (effort.of(WARM_UP.max((round + round / 4).min(LONGEST_WARM_UP))), effort.of(MEASURED))
    };
    for step in 0..warm_up {
        run.step(&place, &order, step)?;
    }
    run.counts = Counts::default();
    for step in warm_up..warm_up + measured {
        run.step(&place, &order, step)?;
    }
    Ok(run.counts)
}

/// The first walk of all, with nothing in any cache.
pub(crate) fn cold_walk<F1: Format, F2: Format>(
    machine: &Machine,
    formats: (F1, F2),
    curve: &Curve,
) -> Result<Counts, LayoutError> {
    let (mut run, place) = Run::new(machine, formats, Surroundings::default(), curve, 1, 0)?;
    run.walk(place.address(0))?;
    Ok(run.counts)
}

/// What a point touches, and where it lies.
#[derive(Clone, Copy, Debug)]
struct Place {
    curve: Curve,
    n: u64,
    data: u64,
}

/// Where the lines of points lie that are `stride` bytes apart: those of 64 pages in turn in 64 sets, in another order for each 64, so that
/// pages that lie side by side do not share the sets of larger caches.
fn apart(x: u64, stride: u64) -> u64 {
    let turn = (x / 64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58;
    x * stride + if stride.is_multiple_of(4096) { ((x % 64) ^ turn) * 64 } else { 0 }
}

/// Where the data begins: somewhere in the lower half of 47 bits, as far down as its span needs it, on a boundary of its regions.
fn begin(curve: &Curve, n: u64, seed: u64) -> u64 {
    let region = match curve.form {
        Form::Regions { region_shift, .. } => region_shift.max(30),
        _ => 30,
    };
    let span = match curve.form {
        // Whole gigabytes, so that an address space is enough for all of them wherever they begin.
        Form::Regions { .. } => n << region,
        _ => curve.span(n),
    };
    let room = (1u64 << 47).saturating_sub(DATA.saturating_add(span).saturating_add(1 << region)).max(1);
    DATA + (((scatter(seed, 16, 5) << 30) % room) >> region << region)
}

impl Place {
    fn new(curve: &Curve, n: u64, seed: u64) -> Self {
        Self { curve: *curve, n, data: begin(curve, n, seed) }
    }

    /// Accesses of one round.
    fn points(&self) -> u64 {
        match self.curve.form {
            Form::Regions { total, .. } => total / self.n.max(1) * self.n,
            _ => self.n,
        }
    }

    /// Bytes of an item of the list: the number of a page, or its address.
    fn item(&self) -> u64 {
        if self.curve.form == Form::Zero { 4 } else { 8 }
    }

    fn is_one_frame(&self) -> bool {
        matches!(self.curve.form, Form::Zero | Form::Regions { .. })
    }

    /// Bytes of memory that it takes, tables included.
    fn bytes(&self, around: Surroundings) -> u64 {
        let data = match self.curve.form {
            Form::Packed { stride } | Form::Jumps { stride } => (self.n.saturating_mul(stride) >> 12).max(1),
            _ if self.is_one_frame() => 1,
            _ => self.n,
        };
        // A table of each of two levels for each page is the most that there can be.
        let tables = match self.curve.form {
            Form::Regions { .. } => 4 * self.n,
            _ => self.curve.pages(self.n) / 128 + 64,
        };
        // A guest has memory that the benchmark does not use.
        ((data + tables) << 12).max(around.used) * 2
    }

    /// The address that is touched by visiting point `x`.
    fn address(&self, x: u64) -> u64 {
        match self.curve.form {
            Form::Packed { stride } | Form::Jumps { stride } => self.data + apart(x, stride),
            Form::Dense => self.data + apart(x, 4096),
            Form::Zero => self.data + (x << self.curve.page.shift()),
            Form::Regions { region_shift, .. } => {
                let (region, k) = (x % self.n, x / self.n);
                let each = (self.points() / self.n).max(1);
                let slots = 1u64 << (region_shift - 12);
                // Evenly spaced, in every region from another page on.
                let turn = region.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
                let page = (k * (slots / each).max(1) + turn) % slots;
                self.data + (region << region_shift) + (page << 12)
            }
        }
    }

    /// Builds the tables.
    fn map<F1: Format, F2: Format>(&self, layout: &mut Layout<F1, F2>) -> Result<(), LayoutError> {
        let page = self.curve.page.max(layout.one.geometry().granule());
        if self.is_one_frame() {
            let frame = layout.frame(page)?;
            for x in 0..self.points() {
                layout.map(self.address(x) & !(page.bytes() - 1), page, frame)?;
            }
            return self.map_run(layout, LIST, self.points() * self.item(), layout.one.geometry().granule());
        }
        let bytes = self.address(self.points() - 1) - self.data + 64;
        self.map_run(layout, self.data, bytes, page)
    }

    fn map_run<F1: Format, F2: Format>(
        &self,
        layout: &mut Layout<F1, F2>,
        start: u64,
        bytes: u64,
        page: PageSize,
    ) -> Result<(), LayoutError> {
        for n in 0..bytes.div_ceil(page.bytes()) {
            let frame = if self.curve.fetches() { layout.next_frame(page)? } else { layout.frame(page)? };
            layout.map(start + (n << page.shift()), page, frame)?;
        }
        Ok(())
    }
}

impl<F1: Format, F2: Format> Run<F1, F2> {
    fn new(
        machine: &Machine,
        formats: (F1, F2),
        around: Surroundings,
        curve: &Curve,
        n: u64,
        seed: u64,
    ) -> Result<(Self, Place), LayoutError> {
        let place = Place::new(curve, n, seed);
        let host_page = curve.host_page.unwrap_or(machine.stages.host_page);
        let mut layout = Layout::new(formats, place.bytes(around), host_page, around, seed)?;
        place.map(&mut layout)?;
        let (one, two) = (layout.one.geometry(), layout.two.geometry());
        let caches = machine.translation_caches(one, two, seed);
        let caches = caches.map_err(|error| LayoutError::Tables(error.to_string()))?;
        let fetch = machine.fetch.as_ref();
        let run = Self {
            caches,
            layout,
            memory: machine.latency_cache(seed),
            servers: machine.caches.levels.len(),
            port: if curve.fetches() { Port::Fetch } else { Port::Load },
            tag: Tag { vmid: Vmid(1), ..Tag::default() },
            jumps: fetch.map_or_else(Vec::new, |fetch| {
                fetch.levels.iter().map(|level| SetAssoc::new(level.shape, seed)).collect()
            }),
            counts: Counts::default(),
        };
        Ok((run, place))
    }

    fn step(&mut self, place: &Place, order: &Order, step: u64) -> Result<(), LayoutError> {
        if place.is_one_frame() {
            self.next_in_list(place, step % place.points())?;
        }
        let gva = place.address(order.at(step));
        self.counts.accesses += 1;
        let at = match self.caches.tlb.lookup(self.port, self.tag, input(gva)) {
            Lookup::L1(entry) => entry.translate(input(gva)),
            Lookup::L2(entry) => {
                self.counts.l1_misses += 1;
                entry.translate(input(gva))
            }
            Lookup::Miss => {
                self.counts.l1_misses += 1;
                self.counts.walks += 1;
                self.walk(gva)?
            }
        };
        // Instructions come from a cache of their own, ahead of time.
        if self.port == Port::Fetch {
            let place = self.jump(gva >> 6);
            self.counts.jumps[place.min(JUMPS - 1)] += 1;
        }
        if self.port == Port::Load {
            let served = self.memory.access(at);
            self.counts.data_served[self.server(served.by)] += 1;
        }
        Ok(())
    }

    /// Follows the jump in a line of code; returns the number of the place where it was found.
    fn jump(&mut self, line: u64) -> usize {
        let mut found = self.jumps.len();
        for (number, level) in self.jumps.iter_mut().enumerate().rev() {
            if level.lookup(&line).is_some() {
                found = number;
            } else {
                level.displace(line, ());
            }
        }
        found
    }

    /// The list is read in order, so that its latency is hidden; it takes room all the same.
    fn next_in_list(&mut self, place: &Place, item: u64) -> Result<(), LayoutError> {
        let gva = LIST + item * place.item();
        let at = match self.caches.tlb.lookup(Port::Load, self.tag, input(gva)) {
            Lookup::L1(entry) | Lookup::L2(entry) => entry.translate(input(gva)),
            Lookup::Miss => {
                let before = self.counts;
                let at = self.walk(gva)?;
                self.counts = before;
                at
            }
        };
        if gva.is_multiple_of(64) {
            self.memory.access(at);
        }
        Ok(())
    }

    fn walk(&mut self, gva: u64) -> Result<Hpa, LayoutError> {
        let kind = if self.port == Port::Fetch { AccessKind::Execute } else { AccessKind::Read };
        let access = Access { kind, purpose: Purpose::Data, privilege: Privilege::User };
        let layout = &mut self.layout;
        let (one, two) = (layout.one, layout.two);
        let mut cursor = NestedCursor::new(one, layout.guest_root, two, layout.host_root, gva, access);
        let mut cached = self.caches.for_walk(self.tag, Kind::Combined);
        let found = loop {
            match cursor.step(layout, &mut cached) {
                Step::Read(reference) => {
                    let served = self.memory.access(reference.at);
                    let server = match served.by {
                        ServedBy::Cache(n) => n as usize,
                        ServedBy::Memory => self.servers,
                    };
                    self.counts.walk_served[server.min(SERVERS - 1)] += 1;
                    match reference.stage {
                        Stage::One => self.counts.stage1 += 1,
                        Stage::Two => self.counts.stage2 += 1,
                    }
                }
                // Flags are set in the first round.
                Step::Update(_) | Step::Restart(_) => {}
                Step::Done(found) => break found,
                Step::Fault(fault) => {
                    return Err(LayoutError::Tables(format!("{gva:#x} is not mapped: {fault:?}")));
                }
            }
        };
        let gpa = cursor.first_stage().map_or(0, |mapped| mapped.output.raw() | gva & (mapped.size.bytes() - 1));
        let entry = TlbEntry::new(found.page(), found.size, found.perms).through(Gpa::new(gpa));
        self.caches.tlb.fill(self.port, self.tag, input(gva), entry);
        Ok(found.output)
    }

    fn server(&self, by: ServedBy) -> usize {
        match by {
            ServedBy::Cache(n) => (n as usize).min(SERVERS - 1),
            ServedBy::Memory => self.servers.min(SERVERS - 1),
        }
    }
}

fn input(gva: u64) -> Input {
    Input::Combined(Gva::new(gva))
}
