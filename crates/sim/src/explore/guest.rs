//! vCPUs in guest mode: accesses, walks, and what translation caches may hold.
//!
//! Nobody fills a cache here. A processor may cache, at any moment, any valid entry and any translation, several versions of one at once,
//! and forget them again; so what it may use for an access is every path of entries that could be read one after another since the last
//! invalidation that would have removed it. The history of words (`words`) has them all, and an access chooses one of these paths, or walks memory as it is.
//! A walk that began before a write and ends after it is such a path too, so references of a walk need not be interleaved with
//! other steps: the choice covers it. This is the argument of the litmus model (`mmu-explore`), for histories instead of sets.
//!
//! What can be chosen, by the rules of page-table litmus tests: versions of entries since the last invalidation that
//! covers them; only present ones with their accessed flag set; later entries of a path no earlier than those above them; a pointer that was invalidated
//! serves only translations that were complete before. Stores through a version that is not dirty walk again, and where a
//! denied access does so too (x86) a cached denial is no choice. A walk sets flags by a compare-and-swap of the word as walked, in the same step.

use std::collections::VecDeque;
use std::hash::Hash;

use mmu_core::walk::{Bus, BusError, Exchange, Step, Translation, WalkCursor};
use mmu_core::{
    Access, AccessKind, Denial, FaultClass, FaultReport, Flush, FlushScope, Format, Gpa, Hpa, Level, PathPlace, Table,
    Verdict, Walk, WalkCaches,
};

use super::decision::{Agent, Footprint, Kind};
use super::digest::Mix;
use super::ghost::Store;
use super::invariant::Invariant;
use super::lab::{Lab, NO_TIME};
use super::limits::Hardware;
use super::memory::Sight;
use super::perform::{WORD_BITS, vcpu_bit};
use super::tags::Kept;
use super::waiting::{Request, What};
use super::words::{Life, Moment, Version};
use crate::arch::Arch;
use crate::engine::{Exit, ExitReason, GuestCaches, GuestFault};
use crate::workload::{GuestAccess, GuestStream, GuestWork};

/// A part of the address space whose translations were invalidated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Invalidated {
    start: u64,
    end: u64,
    at: Moment,
    tables: WalkCaches,
    /// Whether translations went as well, not pointers to tables alone.
    leaves: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Mode {
    Host,
    Guest,
}

/// A vCPU.
#[derive(Debug)]
pub(crate) struct Guest {
    mode: Mode,
    program: GuestStream,
    current: Option<GuestAccess>,
    /// Accesses that it has begun of its program.
    taken: u32,
    /// What its walks wrote, under weak memory.
    pub(crate) wrote: Sight,
    /// What its exit was, until its thread has seen it.
    pub(crate) exit: Option<Exit>,
    pub(crate) left: Exit,
    pub(crate) requests: Vec<Request>,
    pub(crate) owed: Option<Flush>,
    pub(crate) reload: bool,
    pub(crate) kicked: bool,
    pub(crate) modified: VecDeque<Gpa>,
    pub(crate) caches: GuestCaches,
    pub(crate) root: Hpa,
    generation: u16,
    /// What its translations are tagged with, where somebody loads tags.
    pub(crate) tag: Option<u16>,
    /// Whose guest runs on it next, by its tag.
    pub(crate) owner: Option<u16>,
    /// What it has cached under other tags.
    pub(crate) kept: Vec<Kept>,
    /// Its last fault is to be taken again.
    pub(crate) retried: bool,
    /// It has run guest code.
    entered: bool,
    /// Nothing older is cached.
    floor: Moment,
    invalidated: Vec<Invalidated>,
}

impl Guest {
    pub(crate) fn new(root: Hpa, program: Vec<GuestAccess>) -> Self {
        Self {
            mode: Mode::Host,
            program: GuestStream::List(program.into_iter()),
            current: None,
            taken: 0,
            wrote: Sight::default(),
            exit: None,
            left: Exit { reason: ExitReason::Done, at: NO_TIME },
            requests: Vec::new(),
            owed: None,
            reload: false,
            kicked: false,
            modified: VecDeque::new(),
            caches: GuestCaches::On,
            root,
            generation: 0,
            tag: None,
            owner: None,
            kept: Vec::new(),
            retried: false,
            entered: false,
            floor: 0,
            invalidated: Vec::new(),
        }
    }

    /// Whether it runs guest code.
    pub(crate) fn runs(&self) -> bool {
        self.mode == Mode::Guest && self.exit.is_none()
    }

    /// Whether it has run guest code, and may have cached something.
    pub(crate) fn has_run(&self) -> bool {
        self.entered
    }

    pub(crate) fn enter(&mut self, now: Moment) {
        if !std::mem::replace(&mut self.entered, true) {
            self.floor = now;
        }
        self.mode = Mode::Guest;
    }

    pub(crate) fn assign(&mut self, work: GuestWork, number: u64) {
        self.program = work.stream(number);
        self.current = None;
        self.taken = 0;
    }

    /// Leaves the guest; its thread finds out why.
    pub(crate) fn exit_with(&mut self, reason: ExitReason) {
        self.mode = Mode::Host;
        self.exit = Some(Exit { reason, at: NO_TIME });
    }

    pub(crate) fn skip(&mut self) {
        self.current = None;
    }

    pub(crate) fn footprint(number: usize) -> Footprint {
        // Flags that it sets and the ghost's account of stores order it against everything that touches tables.
        Footprint { reads: WORD_BITS, writes: vcpu_bit(number) | WORD_BITS }
    }

    /// Moments that divide what it may have cached from what it has not.
    pub(crate) fn marks(&self) -> impl Iterator<Item = Moment> + '_ {
        let floor = self.entered.then_some(self.floor);
        let invalidated = self.invalidated.iter().map(|part| part.at);
        floor.into_iter().chain(invalidated).chain(self.kept.iter().map(|kept| kept.floor))
    }

    /// Adds what its future depends on; `rank` makes moments comparable between executions.
    pub(crate) fn mix(&self, mix: &mut Mix, rank: impl Fn(Moment) -> u64) {
        (self.mode, self.taken, self.current.is_some(), self.exit, self.left).hash(mix);
        (&self.requests, self.owed, self.reload, self.kicked, &self.modified, self.caches).hash(mix);
        (self.root, self.generation, self.tag, self.owner, self.retried, self.entered, &self.wrote).hash(mix);
        mix.add(if self.entered { rank(self.floor) } else { 0 });
        for part in &self.invalidated {
            (part.start, part.end, rank(part.at), part.tables, part.leaves).hash(mix);
        }
        for kept in &self.kept {
            (kept.tag, kept.root, rank(kept.floor)).hash(mix);
        }
    }

    pub(crate) fn load_root(&mut self, root: Hpa, generation: u16, now: Moment) {
        self.root = root;
        self.generation = generation;
        self.reload = false;
        self.invalidate(Flush::EVERYTHING, now);
    }

    /// Takes note of what was asked while it is out of the guest. However many flushes, the entry makes one.
    pub(crate) fn note(&mut self, what: What) {
        match what {
            What::Flush(covers) => {
                self.owed = Some(match self.owed {
                    Some(owed) if owed != covers => Flush::EVERYTHING,
                    _ => covers,
                });
            }
            What::Reload => self.reload = true,
            What::Leave => self.kicked = true,
        }
    }

    /// What is cached of a range goes.
    pub(crate) fn invalidate(&mut self, flush: Flush, now: Moment) {
        match flush.scope {
            FlushScope::Vm => {
                self.invalidate_current(now);
                self.kept.clear();
            }
            FlushScope::Range { start, bytes, .. } => {
                let (start, end) = (start.raw(), start.raw().saturating_add(bytes));
                let tables = flush.walk_caches;
                self.invalidated.push(Invalidated { start, end, at: now, tables, leaves: true });
            }
        }
    }

    /// What is cached under the tag that is loaded goes.
    pub(crate) fn invalidate_current(&mut self, now: Moment) {
        self.floor = now;
        self.invalidated.clear();
    }

    /// What is cached of tables goes; translations stay.
    pub(crate) fn invalidate_tables(&mut self, now: Moment) {
        self.kept.clear();
        let tables = WalkCaches::Drop;
        self.invalidated.push(Invalidated { start: 0, end: u64::MAX, at: now, tables, leaves: false });
    }

    /// What is cached under the tag that is loaded stays behind.
    pub(crate) fn put_aside(&mut self) {
        if let Some(tag) = self.tag.take() {
            self.kept.retain(|kept| (kept.tag, kept.root) != (tag, self.root));
            self.kept.push(Kept { tag, root: self.root, floor: self.floor });
        }
    }

    /// This root under this tag, with what is still cached under it.
    pub(crate) fn take_up(&mut self, root: Hpa, tag: u16, now: Moment) {
        let known = self.kept.iter().find(|kept| (kept.tag, kept.root) == (tag, root));
        // Ranges that were invalidated meanwhile are forgotten: that it may have more is on the safe side.
        self.invalidate_current(known.map_or(now, |kept| kept.floor));
        (self.root, self.tag, self.entered) = (root, Some(tag), true);
    }

    /// Nothing that is older is cached of entries of this level on the way to `gpa`: of a leaf, and of a pointer to a table.
    fn floors(&self, gpa: u64, covers: u64) -> (Moment, Moment) {
        let (mut leaf, mut table) = (self.floor, self.floor);
        let from = gpa & !(covers - 1);
        for part in &self.invalidated {
            // A leaf goes when the range touches what it maps.
            if part.start < from.saturating_add(covers) && from < part.end {
                if part.leaves {
                    leaf = leaf.max(part.at);
                }
                if part.tables == WalkCaches::Drop {
                    table = table.max(part.at);
                }
            }
        }
        (leaf, table)
    }
}

/// A translation that a vCPU may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Cached {
    pub(crate) gpa: Gpa,
    pub(crate) page: Hpa,
    pub(crate) level: Level,
    pub(crate) at: Hpa,
    pub(crate) word: u64,
    /// It is what memory says now.
    pub(crate) current: bool,
    /// What it answers to the access, if that is not allowed.
    pub(crate) denied: Option<FaultClass>,
}

impl Cached {
    /// Where an address inside goes.
    pub(crate) fn output(&self, gpa: u64, size: u64) -> Hpa {
        Hpa::new(self.page.raw() + (gpa & (size - 1)))
    }
}

/// A way through the tables, as far as it has been followed.
#[derive(Clone, Copy, Debug)]
struct Path {
    level: Level,
    table: Table,
    acc: u64,
    /// Later entries are no older than those above them.
    since: Moment,
    /// Nor younger than the invalidation that removed a pointer which they were reached by.
    until: Moment,
    current: bool,
}

/// Memory as a walk reads it now.
struct Live<'a, A: Arch> {
    lab: &'a mut Lab<A>,
    vcpu: usize,
    gpa: u64,
    broken: Option<Hpa>,
}

impl<A: Arch> Bus for Live<'_, A> {
    fn read(&mut self, at: Hpa) -> Result<u64, BusError> {
        self.lab.words.read(at).map_err(|_| {
            self.broken = Some(at);
            BusError { at }
        })
    }

    fn cmpxchg(&mut self, at: Hpa, old: u64, new: u64) -> Result<Exchange, BusError> {
        let found = self.lab.words.peek(at);
        let lab = &mut *self.lab;
        lab.hold(Invariant::D2, old & lab.format.present_mask() != 0, |_| {
            format!("hardware set flags in the entry {old:#x} at {at}, which maps nothing")
        });
        if found != old {
            return Ok(Exchange::Found(found));
        }
        if lab.modification_log > 0 && !old & new & lab.format.dirty_mask() != 0 {
            lab.guests[self.vcpu].modified.push_back(Gpa::new(self.gpa & !0xfff));
        }
        lab.commit(at, 1, new, 0, Store::Hardware);
        Ok(Exchange::Done)
    }
}

/// Cached translations that one access may choose from, at most.
const MOST_CACHED: usize = 6;

impl<A: Arch> Lab<A> {
    /// A walk of memory as it is.
    fn walk(&mut self, vcpu: usize, gpa: u64, access: Access) -> Result<Translation, FaultClass> {
        let mut cursor = WalkCursor::new(self.format, self.guests[vcpu].root, gpa, access);
        let mut bus = Live { lab: self, vcpu, gpa, broken: None };
        let result = loop {
            match cursor.step(&mut bus) {
                Step::Read(_) | Step::Update(_) | Step::Restart(_) => {}
                Step::Done(translation) => break Ok(translation),
                Step::Fault(fault) => break Err(fault.class()),
            }
        };
        let broken = bus.broken;
        self.hold(Invariant::T5, broken.is_none(), |_| {
            format!("vCPU {vcpu} walked into the freed table at {}", broken.unwrap_or_default())
        });
        result
    }

    /// Cached translations that an access may use instead of a walk.
    fn cached(&self, vcpu: usize, gpa: u64, access: Access) -> ([Option<Cached>; MOST_CACHED], usize) {
        let (mut found, mut count) = ([None; MOST_CACHED], 0);
        let denials = self.format.denial() == Denial::FaultsFromTlb;
        let mut add = |cached: Cached| {
            let known = found.iter().flatten().any(|known: &Cached| {
                (known.page, known.level, known.denied) == (cached.page, cached.level, cached.denied)
            });
            if !cached.current && (cached.denied.is_none() || denials) && !known && count < MOST_CACHED {
                found[count] = Some(cached);
                count += 1;
            }
        };
        self.reach(vcpu, gpa, access, |_| {}, &mut add);
        (found, count)
    }

    /// One access of the guest, or its exit.
    pub(crate) fn guest_step(&mut self, vcpu: usize) {
        let guest = &mut self.guests[vcpu];
        if guest.current.is_none() {
            guest.current = guest.program.next();
            guest.taken += u32::from(guest.current.is_some());
        }
        let Some(GuestAccess { gva, kind }) = guest.current else {
            self.note(|_| "leaves the guest: its work is done".to_owned());
            return self.leave(vcpu, ExitReason::Done);
        };
        let (gpa, access) = (gva.raw(), Access { kind, ..Access::READ });
        if self.conflicts(vcpu, gpa) {
            self.note(|_| format!("{} {gpa:#x}: translations of different sizes", name_of(kind)));
            let fault = GuestFault { gpa: Gpa::new(gpa), access: kind, class: FaultClass::TlbConflict };
            return self.leave(vcpu, ExitReason::Fault(fault));
        }
        let (cached, count) = self.cached(vcpu, gpa, access);
        let chosen = self.pick(Kind::Version, 1 + count).checked_sub(1).and_then(|chosen| cached[chosen]);
        if let Some(cached) = &chosen {
            self.check_provenance(vcpu, cached);
        }
        let size = |level| self.format.geometry().page_size(level).bytes();
        let (result, stale) = match chosen {
            None => {
                let found = self.walk(vcpu, gpa, access).map(|found| found.output);
                if let Ok(output) = found {
                    self.check_walk(vcpu, gpa, output);
                }
                (found, false)
            }
            Some(Cached { denied: Some(class), .. }) => (Err(class), true),
            Some(cached) => (Ok(cached.output(gpa, size(cached.level))), true),
        };
        if self.end.is_some() {
            return;
        }
        let through = if stale { " through an entry that is gone" } else { "" };
        match result {
            Ok(output) => {
                self.guests[vcpu].current = None;
                self.note(|_| format!("{} {gpa:#x} -> {output}{through}", name_of(kind)));
                self.accessed(vcpu, gpa, kind, output, stale);
            }
            Err(class) => {
                self.note(|_| format!("{} {gpa:#x} faults{through}: {class:?}", name_of(kind)));
                let fault = GuestFault { gpa: Gpa::new(gpa), access: kind, class };
                self.leave(vcpu, ExitReason::Fault(fault));
            }
        }
    }

    /// T3: a cached translation was in the tables since it was invalidated last.
    fn check_provenance(&mut self, vcpu: usize, cached: &Cached) {
        let size = self.format.geometry().page_size(cached.level).bytes();
        let (floor, _) = self.guests[vcpu].floors(cached.gpa.raw(), size);
        let mut real = false;
        self.words.versions(cached.at, floor, |version| real |= version.word == cached.word && version.to >= floor);
        self.hold(Invariant::T3, real, |_| {
            format!(
                "vCPU {vcpu} translates {} by {:#x} of {}, which was not there since it was invalidated last",
                cached.gpa, cached.word, cached.at
            )
        });
    }

    /// T3: a walk finds what the tables say, as software reads them.
    fn check_walk(&mut self, vcpu: usize, gpa: u64, output: Hpa) {
        let said = self.mapped_below(self.guests[vcpu].root, gpa);
        self.hold(Invariant::T3, said == Some(output), |_| {
            let said = said.map_or_else(|| "nothing".to_owned(), |page| page.to_string());
            format!("vCPU {vcpu} walked to {output} for {gpa:#x}, where the tables say {said}")
        });
    }

    fn accessed(&mut self, vcpu: usize, gpa: u64, kind: AccessKind, output: Hpa, stale: bool) {
        let why = self.world.primary.off_limits(output);
        self.hold(Invariant::T1, why.is_none(), |_| {
            let why = why.map_or_else(String::new, |why| why.to_string());
            let how = if stale { "a cached translation" } else { "its entry" };
            format!("vCPU {vcpu} reached {output} through {how} of {gpa:#x}; the page is {why}")
        });
        if kind.writes() {
            self.check_tracked_store(vcpu, gpa);
            self.ghost.written.wrote(Gpa::new(gpa & !0xfff));
        }
        self.check_data(vcpu, gpa, output);
    }

    /// P2: a fault that was dealt with does not come back from a cached denial.
    pub(crate) fn check_relaxed(&mut self, vcpu: usize) {
        let ExitReason::Fault(fault) = self.guests[vcpu].left.reason else { return };
        if std::mem::take(&mut self.guests[vcpu].retried) || fault.class != FaultClass::Permission {
            return;
        }
        let access = Access { kind: fault.access, ..Access::READ };
        let (mut denied, mut allowed) = (None, false);
        self.reach(
            vcpu,
            fault.gpa.raw(),
            access,
            |_| {},
            |cached| match (cached.current, cached.denied) {
                (true, None) => allowed = true,
                (false, Some(_)) => denied = Some(cached),
                _ => {}
            },
        );
        let comes_back = self.format.denial() == Denial::FaultsFromTlb && allowed && denied.is_some();
        self.hold(Invariant::P2, !comes_back, |_| {
            let word = denied.map_or(0, |cached| cached.word);
            format!(
                "vCPU {vcpu} faults on {} again and again: it still has {word:#x} cached, which denies the access",
                fault.gpa
            )
        });
    }

    // ---- what may be cached ----

    /// Whether an access may match cached translations of different sizes, where that ends in an abort.
    fn conflicts(&self, vcpu: usize, gpa: u64) -> bool {
        if self.format.overlap() != mmu_core::Overlap::Conflict {
            return false;
        }
        let (mut levels, accessed) = (0_u32, self.format.accessed_mask());
        self.reach(
            vcpu,
            gpa,
            Access::READ,
            |_| {},
            |cached| {
                if accessed == 0 || cached.word & accessed != 0 {
                    levels |= 1 << cached.level.index();
                }
            },
        );
        levels.count_ones() > 1
    }

    /// Every translation of `gpa` that a vCPU may use now for an access, and every table that it may walk into on the way.
    pub(crate) fn reach(
        &self,
        vcpu: usize,
        gpa: u64,
        access: Access,
        mut table: impl FnMut(Hpa),
        mut leaf: impl FnMut(Cached),
    ) {
        let format = &self.format;
        let walk = Walk { input: gpa, access };
        let guest = &self.guests[vcpu];
        let forgetful = self.limits.hardware == Hardware::KeepsInvalidated;
        let floor = if forgetful { self.start } else { guest.floor };
        let Ok(begin) = format.begin(guest.root, &walk) else { return };
        let (level, root, acc) = (begin.level, begin.table, begin.acc);
        let first = Path { level, table: root, acc, since: floor, until: Moment::MAX, current: true };
        let (mut open, mut count) = ([first; 2 * Level::MAX_LEVELS], 1);
        while count > 0 {
            count -= 1;
            let Path { level, table: at, acc, since, until, current } = open[count];
            let entry = at.base + 8 * format.entry_index(level, at, gpa);
            if until == Moment::MAX {
                table(at.base);
                if self.words.frame(entry).is_none_or(|frame| frame.life == Life::Freed) {
                    continue;
                }
            }
            let (leaf_floor, table_floor) =
                if forgetful { (floor, floor) } else { guest.floors(gpa, format.geometry().page_size(level).bytes()) };
            self.words.versions(entry, since, |version| {
                let Version { word, from, to } = version;
                if word & format.present_mask() == 0 || from > until || to < since {
                    return;
                }
                let current = current && to == self.words.now();
                let place = if format.is_leaf(level, word) { PathPlace::Leaf } else { PathPlace::Table };
                let cacheable = format.may_be_cached(level, word) && format.updated(&walk, level, word, place) == word;
                if !current && !cacheable {
                    return;
                }
                let mut acc = acc;
                let (page, size, denied) = match (format.entry(&walk, level, word, &mut acc), level.down()) {
                    (Verdict::Table(next), Some(down)) => {
                        // A pointer that was invalidated serves only what was reached by it before.
                        let until = if to < table_floor { until.min(table_floor - 1) } else { until };
                        let current = current && until == Moment::MAX;
                        let path = Path { level: down, table: next, acc, since: since.max(from), until, current };
                        if let Some(place) = open.get_mut(count) {
                            *place = path;
                            count += 1;
                        }
                        return;
                    }
                    (Verdict::Leaf(mapped), _) => (mapped.output, mapped.size.bytes(), None),
                    (Verdict::Fault(fault), _) if fault.class() == FaultClass::Permission => {
                        (format.output(level, word), format.geometry().page_size(level).bytes(), Some(fault.class()))
                    }
                    _ => return,
                };
                let since = since.max(leaf_floor);
                if current || (to >= since && since <= until) {
                    let page = Hpa::new(page.raw() & !(size - 1));
                    leaf(Cached { gpa: Gpa::new(gpa), page, level, at: entry, word, current, denied });
                }
            });
        }
    }

    /// vCPUs that may use what they have cached without anything coming first.
    pub(crate) fn exposed(&self) -> impl Iterator<Item = usize> + use<A> {
        let exposed =
            (0..self.guests.len()).filter(|&vcpu| self.is_exposed(vcpu)).fold(0_u64, |set, vcpu| set | 1 << vcpu);
        (0..Agent::MOST_VCPUS).filter(move |vcpu| exposed >> vcpu & 1 != 0)
    }

    /// Only guest code uses what is cached. A vCPU that is out of the guest is found out when it runs again.
    fn is_exposed(&self, vcpu: usize) -> bool {
        self.guests[vcpu].runs()
    }
}

const fn name_of(kind: AccessKind) -> &'static str {
    match kind {
        AccessKind::Read => "reads",
        AccessKind::Write => "writes",
        AccessKind::Execute => "fetches",
        AccessKind::ReadWrite => "exchanges",
    }
}
