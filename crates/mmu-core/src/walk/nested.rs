//! The two-stage walk: every first-stage reference goes through the second stage.
//!
//! With an n-level first stage over an m-level second one and nothing cached a walk makes (n + 1)(m + 1) - 1 reads, n of
//! them of guest entries: 24 for 4 over 4.

use std::fmt;

use super::cursor::entry_at;
use super::{Bus, Exchange, Reference, Stage, Step, Translation, WalkCursor};
use crate::access::{Access, AccessKind, Purpose};
use crate::addr::{Gpa, Hpa, Level};
use crate::format::{Format, GuestUpdates, Mapped, PathPlace, Table, UpdateTime, Verdict, Walk};
use crate::tlb::Perms;

/// Caches that let a walk skip references. Every method defaults to "nothing cached".
pub trait WalkCacheSet {
    /// The deepest cached table for `input` of `stage`: the walk goes on there.
    fn deepest(&mut self, _stage: Stage, _input: u64) -> Option<CachedTable> {
        None
    }
    /// Remembers that the entries of `found.level` for `input` live in `found.table`.
    fn fill(&mut self, _stage: Stage, _input: u64, _found: CachedTable) {}
    /// A cached second-stage translation of `gpa` that a first-stage walk may use.
    fn guest_physical(&mut self, _gpa: Gpa) -> Option<Translation> {
        None
    }
    /// Remembers a second-stage translation made for a first-stage walk.
    fn fill_guest_physical(&mut self, _gpa: Gpa, _translation: &Translation) {}
}

/// A table remembered by a paging-structure cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CachedTable {
    /// Level of the entries in it.
    pub level: Level,
    /// The table in its stage's output space.
    pub table: Table,
    /// For a first-stage table: where the second stage put it, with what that allows (a *combined* entry); `None` for a
    /// *linear* one, whose reads still go through the second stage.
    pub host: Option<(Hpa, Perms)>,
    /// Attributes accumulated above it.
    pub acc: u64,
}

/// No caches at all: every reference is made.
#[derive(Clone, Copy, Default, Debug)]
pub struct NoCaches;

impl WalkCacheSet for NoCaches {}

/// A fault of either stage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NestedFault<F1, F2> {
    /// The guest's own.
    One(F1),
    /// The hypervisor's.
    Two {
        /// The second stage's report.
        fault: F2,
        /// The guest-physical address that the second stage could not translate.
        gpa: Gpa,
        /// Level of the first-stage entry at `gpa`, or `None` when `gpa` is the access itself.
        table: Option<Level>,
    },
}

impl<F1: fmt::Display, F2: fmt::Display> fmt::Display for NestedFault<F1, F2> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NestedFault::One(fault) => write!(f, "first stage: {fault}"),
            NestedFault::Two { fault, gpa, table: None } => write!(f, "second stage at {gpa}: {fault}"),
            NestedFault::Two { fault, gpa, table: Some(level) } => {
                write!(f, "second stage at {gpa}, holding a first-stage entry of level {level}: {fault}")
            }
        }
    }
}

/// One step of a nested walk.
pub type NestedStep<F1, F2> = Step<NestedFault<F1, F2>>;

/// A first-stage entry on the path, with where its word really is.
#[derive(Clone, Copy, Debug)]
struct OnPath {
    gpa: Gpa,
    at: Hpa,
    host: Perms,
    raw: u64,
    level: Level,
}

/// What the running second-stage walk is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Goal {
    /// The first-stage entry of this level will be read at the result.
    ReadEntry { level: Level, table: Table, acc: u64, gpa: Gpa },
    /// Path entry `index` will be updated at the result.
    UpdateEntry { index: u8 },
    /// The result is the access itself.
    Output,
}

#[derive(Clone, Copy, Debug)]
enum State<F1, F2> {
    Begin,
    /// Look for the next first-stage entry.
    Locate {
        level: Level,
        table: Table,
        acc: u64,
        host: Option<(Hpa, Perms)>,
    },
    /// The first-stage entry's word is at `at`.
    ReadEntry {
        level: Level,
        acc: u64,
        gpa: Gpa,
        at: Hpa,
        host: Perms,
    },
    /// A second-stage walk is running.
    Two(Goal),
    /// First-stage flags from path entry `next` on.
    Update {
        next: u8,
    },
    /// The first-stage word at path entry `index` may be written.
    Write {
        index: u8,
    },
    Done(Translation),
    Fault(NestedFault<F1, F2>),
}

/// A two-stage walk that can stop after every reference.
#[derive(Clone, Copy, Debug)]
pub struct NestedCursor<F1: Format, F2: Format> {
    one: F1,
    two: F2,
    root: Hpa,
    host_root: Hpa,
    walk: Walk,
    state: State<F1::Fault, F2::Fault>,
    inner: WalkCursor<F2>,
    path: [OnPath; Level::MAX_LEVELS],
    path_len: u8,
    mapped: Option<Mapped>,
    host: Option<Translation>,
}

impl<F1: Format, F2: Format> NestedCursor<F1, F2> {
    /// A walk of `input` through the first-stage tree at guest-physical `root`, itself translated by the second-stage
    /// tree at `host_root`.
    pub fn new(one: F1, root: Gpa, two: F2, host_root: Hpa, input: u64, access: Access) -> Self {
        let empty = OnPath { gpa: Gpa::new(0), at: Hpa::new(0), host: Perms::NONE, raw: 0, level: Level::LAST };
        Self {
            one,
            two,
            root: Hpa::new(root.raw()),
            host_root,
            walk: Walk { input, access },
            state: State::Begin,
            inner: WalkCursor::new(two, host_root, 0, access),
            path: [empty; Level::MAX_LEVELS],
            path_len: 0,
            mapped: None,
            host: None,
        }
    }

    /// The first-stage result once it is known: the guest-physical page and what the guest's tables allow.
    pub fn first_stage(&self) -> Option<Mapped> {
        self.mapped
    }

    /// The second-stage translation of the access itself once it is known.
    pub fn second_stage(&self) -> Option<&Translation> {
        self.host.as_ref()
    }

    /// The guest-physical address that the second stage translates at the moment, or translated last.
    pub fn translating(&self) -> Gpa {
        Gpa::new(self.inner.walk().input)
    }

    /// Makes one reference, or reports the end; after the end it repeats its answer.
    pub fn step<B: Bus + ?Sized, C: WalkCacheSet + ?Sized>(
        &mut self,
        bus: &mut B,
        caches: &mut C,
    ) -> NestedStep<F1::Fault, F2::Fault> {
        loop {
            let step = match self.state {
                State::Begin => self.begin(caches),
                State::Locate { level, table, acc, host } => self.locate(caches, level, table, acc, host),
                State::ReadEntry { .. } => self.read_entry(bus, caches),
                State::Two(goal) => self.step_two(bus, caches, goal),
                State::Update { next } => self.next_update(caches, next),
                State::Write { index } => Some(self.write(bus, index)),
                State::Done(translation) => Some(Step::Done(translation)),
                State::Fault(fault) => Some(Step::Fault(fault)),
            };
            if let Some(step) = step {
                return step;
            }
        }
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// The fault of the stage that stopped it.
    pub fn run<B: Bus + ?Sized, C: WalkCacheSet + ?Sized>(
        mut self,
        bus: &mut B,
        caches: &mut C,
    ) -> Result<Translation, NestedFault<F1::Fault, F2::Fault>> {
        loop {
            match self.step(bus, caches) {
                Step::Read(_) | Step::Update(_) | Step::Restart(_) => {}
                Step::Done(translation) => return Ok(translation),
                Step::Fault(fault) => return Err(fault),
            }
        }
    }

    fn begin<C: WalkCacheSet + ?Sized>(&mut self, caches: &mut C) -> Option<NestedStep<F1::Fault, F2::Fault>> {
        self.path_len = 0;
        self.mapped = None;
        self.host = None;
        // The architecture's own checks of the input come before any cache is asked.
        let begin = match self.one.begin(self.root, &self.walk) {
            Ok(begin) => begin,
            Err(fault) => return Some(self.fault(NestedFault::One(fault))),
        };
        self.state = match caches.deepest(Stage::One, self.walk.input) {
            Some(found) => State::Locate { level: found.level, table: found.table, acc: found.acc, host: found.host },
            None => State::Locate { level: begin.level, table: begin.table, acc: begin.acc, host: None },
        };
        None
    }

    fn locate<C: WalkCacheSet + ?Sized>(
        &mut self,
        caches: &mut C,
        level: Level,
        table: Table,
        acc: u64,
        host: Option<(Hpa, Perms)>,
    ) -> Option<NestedStep<F1::Fault, F2::Fault>> {
        let gpa = Gpa::new(entry_at(&self.one, level, table, self.walk.input).raw());
        if let Some((base, perms)) = host {
            let at = base + (gpa.raw() - table.base.raw());
            self.state = State::ReadEntry { level, acc, gpa, at, host: perms };
        } else if let Some(found) = caches.guest_physical(gpa) {
            let at = found.page() + gpa.offset_in(found.size);
            self.state = State::ReadEntry { level, acc, gpa, at, host: found.perms };
        } else {
            self.start_two(
                caches,
                gpa,
                self.table_access(AccessKind::Read),
                Goal::ReadEntry { level, table, acc, gpa },
            );
        }
        None
    }

    fn read_entry<B: Bus + ?Sized, C: WalkCacheSet + ?Sized>(
        &mut self,
        bus: &mut B,
        caches: &mut C,
    ) -> Option<NestedStep<F1::Fault, F2::Fault>> {
        let State::ReadEntry { level, mut acc, gpa, at, host } = self.state else { return None };
        let Ok(raw) = bus.read_guest(gpa, at) else {
            return Some(self.fault(NestedFault::One(self.one.bus_fault(&self.walk, level))));
        };
        if let Some(slot) = self.path.get_mut(self.path_len as usize) {
            *slot = OnPath { gpa, at, host, raw, level };
            self.path_len += 1;
        }
        self.state = match self.one.entry(&self.walk, level, raw, &mut acc) {
            Verdict::Table(next) => match level.down() {
                Some(down) => {
                    if self.is_settled() {
                        let found = CachedTable { level: down, table: next, host: None, acc };
                        caches.fill(Stage::One, self.walk.input, found);
                    }
                    State::Locate { level: down, table: next, acc, host: None }
                }
                None => State::Fault(NestedFault::One(self.one.bus_fault(&self.walk, level))),
            },
            Verdict::Leaf(mapped) => {
                self.mapped = Some(mapped);
                match F1::UPDATE_TIME {
                    UpdateTime::BeforeNextStage => State::Update { next: 0 },
                    UpdateTime::AfterNextStage => {
                        self.start_output(caches, mapped);
                        self.state
                    }
                }
            }
            Verdict::Fault(fault) => State::Fault(NestedFault::One(fault)),
        };
        Some(Step::Read(Reference { stage: Stage::One, level, at, raw }))
    }

    fn step_two<B: Bus + ?Sized, C: WalkCacheSet + ?Sized>(
        &mut self,
        bus: &mut B,
        caches: &mut C,
        goal: Goal,
    ) -> Option<NestedStep<F1::Fault, F2::Fault>> {
        match self.inner.step(bus) {
            Step::Read(reference) => {
                if let Some((level, table, acc)) = self.inner.position()
                    && self.inner.is_settled()
                {
                    let found = CachedTable { level, table, host: None, acc };
                    caches.fill(Stage::Two, self.inner.walk().input, found);
                }
                Some(Step::Read(reference))
            }
            Step::Update(reference) => Some(Step::Update(reference)),
            Step::Restart(reference) => Some(Step::Restart(reference)),
            Step::Done(translation) => self.finish_two(caches, goal, translation),
            Step::Fault(fault) => {
                let gpa = Gpa::new(self.inner.walk().input);
                let table = match goal {
                    Goal::ReadEntry { level, .. } => Some(level),
                    Goal::UpdateEntry { index } => Some(self.path[index as usize].level),
                    Goal::Output => None,
                };
                Some(self.fault(NestedFault::Two { fault, gpa, table }))
            }
        }
    }

    fn finish_two<C: WalkCacheSet + ?Sized>(
        &mut self,
        caches: &mut C,
        goal: Goal,
        found: Translation,
    ) -> Option<NestedStep<F1::Fault, F2::Fault>> {
        match goal {
            Goal::ReadEntry { level, table, acc, gpa } => {
                caches.fill_guest_physical(gpa, &found);
                // A combined entry must not reach past the host page that holds the table's start.
                let offset = gpa.raw() - table.base.raw();
                let start = Gpa::new(table.base.raw());
                let within = start.offset_in(found.size) + (8 << table.index_bits) <= found.size.bytes();
                if within && self.is_settled() {
                    let host = Some((Hpa::new(found.output.raw() - offset), found.perms));
                    caches.fill(Stage::One, self.walk.input, CachedTable { level, table, host, acc });
                }
                self.state = State::ReadEntry { level, acc, gpa, at: found.output, host: found.perms };
            }
            Goal::UpdateEntry { index } => {
                self.path[index as usize].at = found.output;
                self.path[index as usize].host = found.perms;
                self.state = State::Write { index };
            }
            Goal::Output => {
                self.host = Some(found);
                self.state = match F1::UPDATE_TIME {
                    UpdateTime::BeforeNextStage => self.combine(),
                    UpdateTime::AfterNextStage => State::Update { next: 0 },
                };
            }
        }
        None
    }

    /// Finds the next first-stage entry whose flags must change; updating it needs write permission in the second stage
    /// where that stage says so.
    fn next_update<C: WalkCacheSet + ?Sized>(
        &mut self,
        caches: &mut C,
        next: u8,
    ) -> Option<NestedStep<F1::Fault, F2::Fault>> {
        for index in next..self.path_len {
            let entry = self.path[index as usize];
            if self.updated(index) == entry.raw {
                continue;
            }
            let granted = F2::GUEST_UPDATES == GuestUpdates::ReadSuffices
                || entry.host.contains(Perms::needed_by(&self.table_access(AccessKind::Write)));
            if granted {
                self.state = State::Write { index };
            } else {
                self.start_two(caches, entry.gpa, self.table_access(AccessKind::Write), Goal::UpdateEntry { index });
            }
            return None;
        }
        match (F1::UPDATE_TIME, self.mapped) {
            (UpdateTime::BeforeNextStage, Some(mapped)) => self.start_output(caches, mapped),
            _ => self.state = self.combine(),
        }
        None
    }

    fn write<B: Bus + ?Sized>(&mut self, bus: &mut B, index: u8) -> NestedStep<F1::Fault, F2::Fault> {
        let OnPath { gpa, at, raw, level, .. } = self.path[index as usize];
        let new = self.updated(index);
        let reference = |raw| Reference { stage: Stage::One, level, at, raw };
        match bus.cmpxchg_guest(gpa, at, raw, new) {
            Ok(Exchange::Done) => {
                self.path[index as usize].raw = new;
                self.state = State::Update { next: index + 1 };
                Step::Update(reference(new))
            }
            Ok(Exchange::Found(raw)) => {
                self.state = State::Begin;
                Step::Restart(reference(raw))
            }
            Err(_) => self.fault(NestedFault::One(self.one.bus_fault(&self.walk, level))),
        }
    }

    /// Whether no first-stage table entry on the path still waits for its accessed flag.
    fn is_settled(&self) -> bool {
        let path = &self.path[..self.path_len as usize];
        path.iter().all(|entry| self.one.updated(&self.walk, entry.level, entry.raw, PathPlace::Table) == entry.raw)
    }

    fn updated(&self, index: u8) -> u64 {
        let OnPath { raw, level, .. } = self.path[index as usize];
        let place = if index + 1 == self.path_len { PathPlace::Leaf } else { PathPlace::Table };
        self.one.updated(&self.walk, level, raw, place)
    }

    fn table_access(&self, kind: AccessKind) -> Access {
        Access { kind, purpose: Purpose::GuestTable, privilege: self.walk.access.privilege }
    }

    fn start_output<C: WalkCacheSet + ?Sized>(&mut self, caches: &mut C, mapped: Mapped) {
        let gpa = Gpa::new(mapped.output.raw() + (self.walk.input & (mapped.size.bytes() - 1)));
        self.start_two(caches, gpa, self.walk.access, Goal::Output);
    }

    fn start_two<C: WalkCacheSet + ?Sized>(&mut self, caches: &mut C, gpa: Gpa, access: Access, goal: Goal) {
        self.inner = WalkCursor::new(self.two, self.host_root, gpa.raw(), access);
        if let Some(found) = caches.deepest(Stage::Two, gpa.raw()) {
            self.inner = self.inner.resume_at(found.level, found.table, found.acc);
        }
        self.state = State::Two(goal);
    }

    /// The whole translation: the smaller page, what both stages allow.
    fn combine(&self) -> State<F1::Fault, F2::Fault> {
        match (self.mapped, self.host) {
            (Some(one), Some(two)) => State::Done(Translation {
                output: two.output,
                size: one.size.min(two.size),
                perms: one.perms & two.perms,
                level: two.level,
                raw: two.raw,
            }),
            _ => State::Begin,
        }
    }

    fn fault(&mut self, fault: NestedFault<F1::Fault, F2::Fault>) -> NestedStep<F1::Fault, F2::Fault> {
        self.state = State::Fault(fault);
        Step::Fault(fault)
    }
}
