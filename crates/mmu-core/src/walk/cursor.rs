//! The one-stage walk as a resumable state machine.

use super::{Bus, Exchange, Reference, Stage, Translation};
use crate::access::Access;
use crate::addr::{Hpa, Level};
use crate::format::{Format, Mapped, PathPlace, Settled, Table, Verdict, Walk};
use crate::memory::TableMemory;

/// One step of a walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step<F> {
    /// Read one entry.
    Read(Reference),
    /// Set flags in one entry of the path.
    Update(Reference),
    /// An update found the entry changed since it was read; the walk starts over.
    Restart(Reference),
    /// Finished.
    Done(Translation),
    /// Ended with a fault.
    Fault(F),
}

/// An entry on the path from the root.
#[derive(Clone, Copy, Debug)]
struct OnPath {
    at: Hpa,
    raw: u64,
    level: Level,
}

#[derive(Clone, Copy, Debug)]
enum State<F> {
    Begin,
    Read { level: Level, table: Table, acc: u64 },
    Update { next: u8, mapped: Mapped },
    Done(Translation),
    Fault(F),
}

/// A walk of one stage that can stop after every reference.
///
/// See the crate's front page for an example of a whole walk; this is the form for callers who interleave.
#[derive(Clone, Copy, Debug)]
pub struct WalkCursor<F: Format> {
    format: F,
    root: Hpa,
    walk: Walk,
    stage: Stage,
    state: State<F::Fault>,
    path: [OnPath; Level::MAX_LEVELS],
    path_len: u8,
}

impl<F: Format> WalkCursor<F> {
    /// A walk of `input` through the second-stage tree at `root`.
    #[inline]
    pub fn new(format: F, root: Hpa, input: u64, access: Access) -> Self {
        Self {
            format,
            root,
            walk: Walk { input, access },
            stage: Stage::Two,
            state: State::Begin,
            path: [OnPath { at: Hpa::new(0), raw: 0, level: Level::LAST }; Level::MAX_LEVELS],
            path_len: 0,
        }
    }

    /// The same walk, reported as belonging to `stage`.
    #[inline]
    pub fn of_stage(mut self, stage: Stage) -> Self {
        self.stage = stage;
        self
    }

    /// Starts at a table found in a paging-structure cache: `table` is the one that `level` entries live in, `acc` the
    /// attributes accumulated above it.
    #[inline]
    pub fn resume_at(mut self, level: Level, table: Table, acc: u64) -> Self {
        self.state = State::Read { level, table, acc };
        self
    }

    /// The address and access being walked.
    pub fn walk(&self) -> &Walk {
        &self.walk
    }

    /// The table that the next read goes to, with its level and the attributes accumulated above it; `None` before the
    /// first step and after the last read. Paging-structure caches are filled from here.
    #[inline]
    pub fn position(&self) -> Option<(Level, Table, u64)> {
        match self.state {
            State::Read { level, table, acc } => Some((level, table, acc)),
            _ => None,
        }
    }

    /// Whether the tables found so far may be remembered: no entry on the path still waits for its accessed flag (a
    /// processor caches only entries whose flag is set; Intel SDM vol. 3, 4.10.3.1).
    #[inline]
    pub fn is_settled(&self) -> bool {
        let path = &self.path[..self.path_len as usize];
        path.iter().all(|entry| self.format.updated(&self.walk, entry.level, entry.raw, PathPlace::Table) == entry.raw)
    }

    /// Makes one reference, or reports the end; after the end it repeats its answer.
    #[inline]
    pub fn step<B: Bus + ?Sized>(&mut self, bus: &mut B) -> Step<F::Fault> {
        loop {
            match self.state {
                State::Begin => self.begin(),
                State::Read { level, table, acc } => return self.read(bus, level, table, acc),
                State::Update { next, mapped } => {
                    if let Some(step) = self.update(bus, next, mapped) {
                        return step;
                    }
                }
                State::Done(translation) => return Step::Done(translation),
                State::Fault(fault) => return Step::Fault(fault),
            }
        }
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// The architecture's fault.
    #[inline]
    pub fn run<B: Bus + ?Sized>(mut self, bus: &mut B) -> Result<Translation, F::Fault> {
        loop {
            match self.step(bus) {
                Step::Read(_) | Step::Update(_) | Step::Restart(_) => {}
                Step::Done(translation) => return Ok(translation),
                Step::Fault(fault) => return Err(fault),
            }
        }
    }

    #[inline]
    fn begin(&mut self) {
        self.path_len = 0;
        self.state = match self.format.begin(self.root, &self.walk) {
            Ok(begin) => State::Read { level: begin.level, table: begin.table, acc: begin.acc },
            Err(fault) => State::Fault(fault),
        };
    }

    #[inline]
    fn read<B: Bus + ?Sized>(&mut self, bus: &mut B, level: Level, table: Table, mut acc: u64) -> Step<F::Fault> {
        let at = entry_at(&self.format, level, table, self.walk.input);
        let Ok(raw) = bus.read(at) else {
            let fault = self.format.bus_fault(&self.walk, level);
            self.state = State::Fault(fault);
            return Step::Fault(fault);
        };
        self.push(OnPath { at, raw, level });
        self.state = match self.format.entry(&self.walk, level, raw, &mut acc) {
            Verdict::Table(next) => match level.down() {
                Some(down) => State::Read { level: down, table: next, acc },
                None => State::Fault(self.format.bus_fault(&self.walk, level)),
            },
            Verdict::Leaf(mapped) => State::Update { next: 0, mapped },
            Verdict::Fault(fault) => State::Fault(fault),
        };
        Step::Read(Reference { stage: self.stage, level, at, raw })
    }

    #[inline]
    fn push(&mut self, entry: OnPath) {
        let len = self.path_len as usize;
        if let Some(slot) = self.path.get_mut(len) {
            *slot = entry;
            self.path_len += 1;
        }
    }

    /// Sets flags in the first entry from `next` on that needs it; `None` when the state moved on without a reference.
    #[inline]
    fn update<B: Bus + ?Sized>(&mut self, bus: &mut B, next: u8, mapped: Mapped) -> Option<Step<F::Fault>> {
        for i in next as usize..self.path_len as usize {
            let OnPath { at, raw, level } = self.path[i];
            let place = if i + 1 == self.path_len as usize { PathPlace::Leaf } else { PathPlace::Table };
            let new = self.format.updated(&self.walk, level, raw, place);
            if new == raw {
                continue;
            }
            return Some(match bus.cmpxchg(at, raw, new) {
                Ok(Exchange::Done) => {
                    self.path[i].raw = new;
                    self.state = State::Update { next: i as u8 + 1, mapped };
                    Step::Update(Reference { stage: self.stage, level, at, raw: new })
                }
                Ok(Exchange::Found(raw)) => {
                    self.state = State::Begin;
                    Step::Restart(Reference { stage: self.stage, level, at, raw })
                }
                Err(_) => {
                    let fault = self.format.bus_fault(&self.walk, level);
                    self.state = State::Fault(fault);
                    Step::Fault(fault)
                }
            });
        }
        let leaf = self.path[(self.path_len as usize).saturating_sub(1)];
        self.state = State::Done(translation(&self.walk, &mapped, leaf.level, leaf.raw));
        None
    }
}

/// Address of the entry for `input` in `table`, whose entries are of `level`.
#[inline]
pub(super) fn entry_at<F: Format>(format: &F, level: Level, table: Table, input: u64) -> Hpa {
    table.base + format.entry_index(level, table, input) * 8
}

/// Walks `input` through the tree at `root`, flags included, in one call: what [`WalkCursor::run`] does, without the
/// bookkeeping of a walk that can stop.
///
/// # Errors
/// The architecture's fault.
#[inline]
pub fn walk<F: Format, B: Bus + ?Sized>(
    format: &F,
    root: Hpa,
    input: u64,
    access: Access,
    bus: &mut B,
) -> Result<Translation, F::Fault> {
    match bus.memory().and_then(|memory| settled_walk(format, root, &Walk { input, access }, memory)) {
        Some(found) => Ok(found),
        None => whole_walk(format, root, input, access, bus),
    }
}

/// A walk that meets only words which it leaves as they are; `None` when it meets another one, or a fault: nothing has happened
/// then, and the walk is made again from the start.
#[inline(always)]
fn settled_walk<F: Format>(format: &F, root: Hpa, walk: &Walk, memory: &TableMemory) -> Option<Translation> {
    let mut at = format.begin(root, walk).ok()?;
    let short = memory.short_way();
    // PERF: a copy of the step for each level of the usual trees, so that the level is a constant in it and formats' shifts and
    // masks are too.
    macro_rules! step {
        ($level:expr) => {
            let index = format.entry_index($level, at.table, walk.input);
            let expected = if $level == Level::LAST { PathPlace::Leaf } else { PathPlace::Table };
            let raw = match short.entry(at.table.base, index, expected) {
                Some(raw) => raw,
                None => short.entry_long(at.table.base, index)?,
            };
            match format.settled(walk, $level, raw, &mut at.acc) {
                Settled::Table(Table { base, index_bits }) => {
                    at.level = $level.down()?;
                    at.table.base = base;
                    at.table.index_bits = index_bits;
                }
                Settled::Leaf(mapped) => return Some(translation(walk, &mapped, $level, raw)),
                Settled::Unsettled => return None,
            }
        };
    }
    if at.level == Level::new(4) {
        step!(Level::new(4));
    }
    if at.level == Level::new(3) {
        step!(Level::new(3));
    }
    if at.level != Level::new(2) {
        return None;
    }
    step!(Level::new(2));
    step!(Level::new(1));
    loop {
        // Ends: there is no level below.
        step!(Level::LAST);
    }
}

/// Any walk.
#[inline(never)]
fn whole_walk<F: Format, B: Bus + ?Sized>(
    format: &F,
    root: Hpa,
    input: u64,
    access: Access,
    bus: &mut B,
) -> Result<Translation, F::Fault> {
    let walk = Walk { input, access };
    loop {
        if let Some(end) = attempt(format, root, &walk, bus) {
            return end;
        }
    }
}

/// One pass from the root; `None` when an entry had changed by the time its flags were to be set.
fn attempt<F: Format, B: Bus + ?Sized>(
    format: &F,
    root: Hpa,
    walk: &Walk,
    bus: &mut B,
) -> Option<Result<Translation, F::Fault>> {
    let mut at = match format.begin(root, walk) {
        Ok(begin) => begin,
        Err(fault) => return Some(Err(fault)),
    };
    let mut path = [(Hpa::new(0), 0); Level::MAX_LEVELS];
    let top = at.level;
    let mapped = loop {
        let place = entry_at(format, at.level, at.table, walk.input);
        let Ok(raw) = bus.read(place) else { return Some(Err(format.bus_fault(walk, at.level))) };
        if let Some(slot) = path.get_mut(at.level.index()) {
            *slot = (place, raw);
        }
        match (format.entry(walk, at.level, raw, &mut at.acc), at.level.down()) {
            (Verdict::Leaf(mapped), _) => break mapped,
            (Verdict::Table(table), Some(down)) => {
                at.table = table;
                at.level = down;
            }
            (Verdict::Table(_), None) => return Some(Err(format.bus_fault(walk, at.level))),
            (Verdict::Fault(fault), _) => return Some(Err(fault)),
        }
    };
    let leaf = at.level;
    let on_path = path.iter_mut().enumerate().take(top.index() + 1).skip(leaf.index());
    for (index, (place, raw)) in on_path.rev() {
        let level = Level::new(index as u8);
        let new = format.updated(walk, level, *raw, if level == leaf { PathPlace::Leaf } else { PathPlace::Table });
        if new != *raw {
            match bus.cmpxchg(*place, *raw, new) {
                Ok(Exchange::Done) => *raw = new,
                Ok(Exchange::Found(_)) => return None,
                Err(_) => return Some(Err(format.bus_fault(walk, level))),
            }
        }
    }
    let raw = path.get(leaf.index()).map_or(0, |&(_, raw)| raw);
    Some(Ok(translation(walk, &mapped, leaf, raw)))
}

/// The end of a walk at a leaf of `level` that reads `raw` by now.
#[inline]
pub(crate) fn translation(walk: &Walk, mapped: &Mapped, level: Level, raw: u64) -> Translation {
    let &Mapped { output, size, perms } = mapped;
    Translation { output: output + (walk.input & (size.bytes() - 1)), size, perms, level, raw }
}
