//! vCPUs in guest mode: accesses, walks, and what translation caches may hold.
//!
//! Nobody fills a cache here. A processor may cache, at any moment, any valid entry and any translation, several versions of one at once,
//! and forget them again; so what it may use for an access is every path of entries that could be read one after another since the last
//! invalidation that would have removed it. The history of words (`words`) has them all, and an access chooses, reference by
//! reference, which version of the entry it uses. A walk that began before a write and ends after it is such a path too, so references of a
//! walk need not be interleaved with other steps: the choice covers it. This is the argument of the litmus model (`mmu-explore`), for
//! histories instead of sets.
//!
//! What can be chosen, by the rules of page-table litmus tests: the versions of each entry since the last invalidation that
//! covers it; only present ones with their accessed flag set, unless it is the one in memory now; later entries of a path no earlier than
//! those above them. Stores through a version that is not dirty walk again. Flags are set by a compare-and-swap of the word
//! as walked, which takes place with the read.

use std::collections::VecDeque;

use mmu_core::walk::{Bus, BusError, Exchange, Step, Translation, WalkCursor};
use mmu_core::{
    Access, AccessKind, Denial, FaultReport, Flush, FlushScope, Format, Gpa, Hpa, Level, PathPlace, Verdict, Walk,
    WalkCaches,
};

use super::decision::{Footprint, Kind};
use super::ghost::Store;
use super::invariant::Invariant;
use super::lab::{EVERYTHING, Lab, NO_TIME};
use super::perform::{WORD_BITS, vcpu_bit};
use super::words::{Life, Moment, Version};
use crate::arch::Arch;
use crate::engine::{Exit, ExitReason, GuestCaches, GuestFault};
use crate::workload::{GuestAccess, GuestStream, GuestWork};

/// Something asked of a vCPU that runs guest code.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Request {
    pub(crate) what: What,
    pub(crate) asked_by: usize,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum What {
    Flush(Flush),
    Reload,
    Leave,
}

impl What {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            What::Flush(_) => "flush",
            What::Reload => "reload of the root",
            What::Leave => "kick",
        }
    }
}

/// A part of the address space whose translations were invalidated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Invalidated {
    start: u64,
    end: u64,
    at: Moment,
    tables: WalkCaches,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
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
            entered: false,
            floor: 0,
            invalidated: Vec::new(),
        }
    }

    /// Whether it runs guest code.
    pub(crate) fn runs(&self) -> bool {
        self.mode == Mode::Guest && self.exit.is_none()
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
    }

    /// Leaves the guest; its thread finds out why.
    pub(crate) fn exit_with(&mut self, reason: ExitReason) {
        self.mode = Mode::Host;
        self.exit = Some(Exit { reason, at: NO_TIME });
    }

    pub(crate) fn skip(&mut self) {
        self.current = None;
    }

    pub(crate) fn footprint(&self, number: usize) -> Footprint {
        // Flags that it sets and the ghost's account of stores order it against everything that touches tables.
        Footprint { reads: WORD_BITS, writes: vcpu_bit(number) | WORD_BITS }
    }

    pub(crate) fn load_root(&mut self, root: Hpa, generation: u16, now: Moment) {
        self.root = root;
        self.generation = generation;
        self.reload = false;
        self.invalidate(EVERYTHING, now);
    }

    /// Takes note of what was asked while it is out of the guest. However many flushes, the entry makes one.
    pub(crate) fn note(&mut self, what: What) {
        match what {
            What::Flush(covers) => {
                self.owed = Some(match self.owed {
                    Some(owed) if owed != covers => EVERYTHING,
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
                self.floor = now;
                self.invalidated.clear();
            }
            FlushScope::Range { start, bytes, .. } => {
                let (start, end) = (start.raw(), start.raw().saturating_add(bytes));
                self.invalidated.push(Invalidated { start, end, at: now, tables: flush.walk_caches });
            }
        }
    }

    /// Nothing that is older is cached of entries of this level on the way to `gpa`: of a leaf, and of a pointer to a table.
    fn floors(&self, gpa: u64, covers: u64) -> (Moment, Moment) {
        let (mut leaf, mut table) = (self.floor, self.floor);
        let from = gpa & !(covers - 1);
        for part in &self.invalidated {
            // A leaf goes when the range touches what it maps.
            if part.start < from.saturating_add(covers) && from < part.end {
                leaf = leaf.max(part.at);
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
}

/// Versions of an entry, the one in memory first.
#[derive(Clone, Copy, Debug, Default)]
struct Usable {
    versions: [Version; 6],
    len: usize,
}

impl Usable {
    fn push(&mut self, version: Version) {
        if let Some(place) = self.versions.get_mut(self.len) {
            *place = version;
            self.len += 1;
        }
    }
    fn as_slice(&self) -> &[Version] {
        &self.versions[..self.len]
    }
}

/// Memory as one walk sees it: every read is a choice among versions.
struct Choosing<'a, A: Arch> {
    lab: &'a mut Lab<A>,
    vcpu: usize,
    walk: Walk,
    level: Level,
    /// Later entries are no older than those above them.
    since: Moment,
    /// An entry was used that memory does not hold any more.
    stale: bool,
    choose: bool,
    broken: Option<Hpa>,
}

impl<A: Arch> Bus for Choosing<'_, A> {
    fn read(&mut self, at: Hpa) -> Result<u64, BusError> {
        let level = self.lab.words.frame(at).map_or(self.level, |frame| frame.level);
        let freed = self.lab.words.frame(at).is_none_or(|frame| frame.life == Life::Freed);
        if freed {
            self.broken = Some(at);
            return Err(BusError { at });
        }
        if !self.choose {
            return Ok(self.lab.words.peek(at));
        }
        let found = self.lab.usable(self.vcpu, &self.walk, level, at, self.since);
        let chosen = found.versions[self.lab.pick(Kind::Version, found.len)];
        self.since = self.since.max(chosen.from);
        self.stale |= chosen.to != self.lab.words.now();
        Ok(chosen.word)
    }

    fn cmpxchg(&mut self, at: Hpa, old: u64, new: u64) -> Result<Exchange, BusError> {
        let found = self.lab.words.peek(at);
        let lab = &mut *self.lab;
        lab.hold(Invariant::D2, old & lab.format.present_mask() != 0 || found != old, |_| {
            format!("hardware set flags in the entry {old:#x} at {at}, which maps nothing")
        });
        if found != old {
            return Ok(Exchange::Found(found));
        }
        let dirty = lab.format.dirty_mask();
        if lab.modification_log > 0 && !old & new & dirty != 0 {
            let page = Gpa::new(self.walk.input & !0xfff);
            lab.guests[self.vcpu].modified.push_back(page);
        }
        lab.commit(at, 1, new, 0, Store::Hardware);
        Ok(Exchange::Done)
    }
}

impl<A: Arch> Lab<A> {
    /// Versions of an entry that a vCPU may use, the one in memory first.
    fn usable(&self, vcpu: usize, walk: &Walk, level: Level, at: Hpa, since: Moment) -> Usable {
        let format = &self.format;
        let covers = format.geometry().page_size(level.min(format.geometry().root())).bytes();
        let (leaf_floor, table_floor) = self.guests[vcpu].floors(walk.input, covers);
        let mut found = Usable::default();
        let oldest = since.max(leaf_floor.min(table_floor));
        self.words.versions(at, oldest, |version| {
            if found.len == 0 {
                found.push(version);
                return;
            }
            let word = version.word;
            if !format.is_mapped(word) || word & format.present_mask() == 0 {
                return;
            }
            let leaf = format.is_leaf(level, word);
            let (floor, place) = if leaf { (leaf_floor, PathPlace::Leaf) } else { (table_floor, PathPlace::Table) };
            let cached = version.to >= since.max(floor)
                && format.may_be_cached(level, word)
                && format.updated(walk, level, word, place) == word;
            if cached && found.as_slice().iter().all(|known| known.word != word) {
                found.push(version);
            }
        });
        found
    }

    fn walk(
        &mut self,
        vcpu: usize,
        gpa: u64,
        access: Access,
        choose: bool,
    ) -> (Result<Translation, mmu_core::FaultClass>, bool) {
        let root = self.guests[vcpu].root;
        let format = self.format;
        let mut cursor = WalkCursor::new(format, root, gpa, access);
        let walk = Walk { input: gpa, access };
        let mut bus = Choosing {
            lab: self,
            vcpu,
            walk,
            level: format.geometry().root(),
            since: 0,
            stale: false,
            choose,
            broken: None,
        };
        let result = loop {
            match cursor.step(&mut bus) {
                Step::Read(_) | Step::Update(_) => {}
                Step::Restart(_) => {
                    // The entry had changed: from here on memory is read as it is.
                    (bus.choose, bus.since, bus.stale) = (false, 0, false);
                }
                Step::Done(translation) => break Ok(translation),
                Step::Fault(fault) => break Err(fault.class()),
            }
        };
        let (broken, stale) = (bus.broken, bus.stale);
        if let Some(at) = broken {
            self.hold(Invariant::T5, false, |_| format!("vCPU {vcpu} walked into the freed table at {at}"));
        } else {
            self.evaluations.count(Invariant::T5);
        }
        (result, stale)
    }

    /// One access of the guest, or its exit.
    pub(crate) fn guest_step(&mut self, vcpu: usize) {
        let guest = &mut self.guests[vcpu];
        if guest.current.is_none() {
            guest.current = guest.program.next();
        }
        let Some(GuestAccess { gva, kind }) = guest.current else {
            self.note(|_| "leaves the guest: its work is done".to_owned());
            return self.leave(vcpu, ExitReason::Done);
        };
        let (gpa, access) = (gva.raw(), Access { kind, ..Access::READ });
        if self.conflicts(vcpu, gpa) {
            self.note(|_| format!("{} {gpa:#x}: translations of different sizes", name_of(kind)));
            let fault = GuestFault { gpa: Gpa::new(gpa), access: kind, class: mmu_core::FaultClass::TlbConflict };
            return self.leave(vcpu, ExitReason::Fault(fault));
        }
        let (mut result, mut stale) = self.walk(vcpu, gpa, access, true);
        if result.is_err() && stale && self.format.denial() == Denial::WalksAgain && self.end.is_none() {
            (result, stale) = self.walk(vcpu, gpa, access, false);
        }
        if self.end.is_some() {
            return;
        }
        match result {
            Ok(found) => {
                self.guests[vcpu].current = None;
                self.note(|_| {
                    let through = if stale { " through an entry that is gone" } else { "" };
                    format!("{} {gpa:#x} -> {}{through}", name_of(kind), found.output)
                });
                self.accessed(vcpu, gpa, kind, found, stale);
            }
            Err(class) => {
                self.note(|_| format!("{} {gpa:#x} faults: {class:?}", name_of(kind)));
                let fault = GuestFault { gpa: Gpa::new(gpa), access: kind, class };
                self.leave(vcpu, ExitReason::Fault(fault));
            }
        }
    }

    fn accessed(&mut self, vcpu: usize, gpa: u64, kind: AccessKind, found: Translation, stale: bool) {
        let why = self.world.primary.off_limits(found.output);
        self.hold(Invariant::T1, why.is_none(), |_| {
            let why = why.map_or_else(String::new, |why| why.to_string());
            let how = if stale { "a cached translation" } else { "its entry" };
            format!("vCPU {vcpu} reached {} through {how} of {gpa:#x}; the page is {why}", found.output)
        });
        if kind.writes() {
            self.ghost.written.wrote(Gpa::new(gpa & !0xfff));
        }
        self.check_data(vcpu, gpa, found.output);
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
            |_| {},
            |cached| {
                if accessed == 0 || cached.word & accessed != 0 {
                    levels |= 1 << cached.level.index();
                }
            },
        );
        levels.count_ones() > 1
    }

    /// Every translation of `gpa` that a vCPU may use now, and every table on the way.
    pub(crate) fn reach(&self, vcpu: usize, gpa: u64, mut table: impl FnMut(Hpa), mut leaf: impl FnMut(Cached)) {
        let walk = Walk { input: gpa, access: Access::READ };
        let root = self.guests[vcpu].root;
        let Ok(begin) = self.format.begin(root, &walk) else { return };
        // A path each: level, table, accumulated attributes, and how old later entries may be.
        let mut paths = vec![(begin.level, begin.table, begin.acc, 0, true)];
        while let Some((level, at, acc, since, current)) = paths.pop() {
            table(at.base);
            let entry = at.base + 8 * self.format.entry_index(level, at, gpa);
            let gone = self.words.frame(entry).is_none_or(|frame| frame.life == Life::Freed);
            if gone {
                continue;
            }
            for &version in self.usable(vcpu, &walk, level, entry, since).as_slice() {
                let (mut acc, word) = (acc, version.word);
                let current = current && version.to == self.words.now();
                match (self.format.entry(&walk, level, word, &mut acc), level.down()) {
                    (Verdict::Table(next), Some(down)) => {
                        paths.push((down, next, acc, since.max(version.from), current));
                    }
                    (Verdict::Leaf(mapped), _) => {
                        let page = Hpa::new(mapped.output.raw() & !(mapped.size.bytes() - 1));
                        leaf(Cached { gpa: Gpa::new(gpa), page, level, at: entry, word, current });
                    }
                    _ => {}
                }
            }
        }
    }

    /// vCPUs that may use what they have cached without anything coming first.
    pub(crate) fn exposed(&self) -> impl Iterator<Item = usize> + use<A> {
        let exposed: Vec<usize> = (0..self.guests.len()).filter(|&vcpu| self.is_exposed(vcpu)).collect();
        exposed.into_iter()
    }

    /// A vCPU out of the guest keeps what it has cached unless its next entry flushes it.
    fn is_exposed(&self, vcpu: usize) -> bool {
        let guest = &self.guests[vcpu];
        guest.entered && (guest.runs() || guest.owed.is_none() && !guest.reload && !self.is_done(vcpu))
    }

    fn is_done(&self, vcpu: usize) -> bool {
        self.hands.iter().any(|hand| hand.vcpu.is_some_and(|of| of.0 == vcpu) && hand.finished)
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
