//! The translation as a resumable state machine: one reference a step.

use mmu_core::tlb::Perms;
use mmu_core::walk::{
    Bus, BusError, CachedTable, NestedCursor, NestedFault, Reference, Stage, Step, Translation, WalkCacheSet,
    WalkCursor,
};
use mmu_core::{Access, FaultClass, Gpa, Hpa, PageSize};

use super::interrupt::Interrupt;
use super::tables::{PartitionEntry, ProcessEntry};
use super::{EffectiveAccess, MsrMode, PowerMmu, Relocation};
use crate::radix::{Cause, Radix, RadixFault, RootWord};

/// Root-table entries that a processor has cached: the walk does not read them.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct KnownTables {
    /// The partition-table entry of the access's LPID.
    pub partition: Option<PartitionEntry>,
    /// The process-table entry of its PID.
    pub process: Option<ProcessEntry>,
}

/// What a step referred to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MmuReference {
    /// A partition-table entry: one quadword.
    PartitionTable {
        /// Where.
        at: Hpa,
        /// What it holds.
        entry: PartitionEntry,
    },
    /// A process-table entry.
    ProcessTable {
        /// Its guest real address.
        real: Gpa,
        /// Where that is.
        at: Hpa,
        /// What it holds.
        entry: ProcessEntry,
    },
    /// A table of a tree. The partition-scoped references made for the process table's address are of [`Stage::Two`] too.
    Tree(Reference),
}

/// One step of a translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MmuStep {
    /// Read one entry.
    Read(MmuReference),
    /// Set R or C in one entry.
    Update(Reference),
    /// An update found the entry changed since it was read; that tree's walk starts over.
    Restart(Reference),
    /// Finished.
    Done(MmuTranslation),
    /// Ended with an interrupt.
    Interrupt(Interrupt),
}

/// A finished translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MmuTranslation {
    /// The host real address of the access.
    pub output: Hpa,
    /// Size of the page that a TLB entry may cover: the smaller of both stages.
    pub size: PageSize,
    /// What both stages allow.
    pub perms: Perms,
    /// LPID that tags it.
    pub lpid: u32,
    /// PID that tags it; 0 without relocation.
    pub pid: u32,
}

/// What a partition-scoped walk outside the nested one is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Goal {
    /// The access is guest real.
    Output,
    /// The process-table entry will be read at the result.
    ProcessEntry,
    /// The root's entry would be read at the result, but the root has no supported size.
    BadRoot,
}

#[derive(Clone, Copy, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a walk never moves while it runs, and boxes would cost an allocation each"
)]
enum State {
    Begin,
    ReadPartitionEntry(Hpa),
    /// A partition-scoped walk is wanted: caches are asked first.
    LocatePartition(WalkCursor<Radix>, Goal),
    Partition(WalkCursor<Radix>, Goal),
    ReadProcessEntry {
        real: Gpa,
        at: Hpa,
    },
    LocateProcess(WalkCursor<Radix>),
    Process(WalkCursor<Radix>),
    Nested(NestedCursor<Radix, Radix>),
    Done(MmuTranslation),
    Interrupted(Interrupt),
}

/// A translation that can stop after every reference.
#[derive(Clone, Copy, Debug)]
pub struct MmuCursor {
    mmu: PowerMmu,
    access: EffectiveAccess,
    known: KnownTables,
    lpid: u32,
    pid: u32,
    state: State,
}

impl MmuCursor {
    pub(super) fn new(mmu: PowerMmu, access: EffectiveAccess, known: KnownTables) -> Self {
        Self { mmu, access, known, lpid: 0, pid: 0, state: State::Begin }
    }

    /// Makes one reference, or reports the end; after the end it repeats its answer.
    pub fn step<B: Bus + ?Sized, C: WalkCacheSet + ?Sized>(&mut self, bus: &mut B, caches: &mut C) -> MmuStep {
        loop {
            let step = match &mut self.state {
                State::Begin => self.begin(),
                State::ReadPartitionEntry(at) => {
                    let at = *at;
                    Some(self.read_partition_entry(bus, at))
                }
                State::LocatePartition(walk, goal) => {
                    let (walk, goal) = (*walk, *goal);
                    self.locate_partition(caches, &walk, goal)
                }
                State::Partition(walk, goal) => {
                    let (step, goal, real) = (walk.step(bus), *goal, Gpa::new(walk.walk().input));
                    remember(caches, Stage::Two, walk, &step);
                    self.after_partition(caches, step, goal, real)
                }
                State::ReadProcessEntry { real, at } => {
                    let (real, at) = (*real, *at);
                    Some(self.read_process_entry(bus, real, at))
                }
                State::LocateProcess(walk) => {
                    let walk = resume(caches, Stage::One, walk);
                    self.state = State::Process(walk);
                    None
                }
                State::Process(walk) => {
                    let step = walk.step(bus);
                    remember(caches, Stage::One, walk, &step);
                    self.after_process(step)
                }
                State::Nested(walk) => {
                    let step = walk.step(bus, caches);
                    self.after_nested(step)
                }
                State::Done(translation) => Some(MmuStep::Done(*translation)),
                State::Interrupted(interrupt) => Some(MmuStep::Interrupt(*interrupt)),
            };
            if let Some(step) = step {
                return step;
            }
        }
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// The interrupt it ends with.
    pub fn run<B: Bus + ?Sized, C: WalkCacheSet + ?Sized>(
        mut self,
        bus: &mut B,
        caches: &mut C,
    ) -> Result<MmuTranslation, Interrupt> {
        loop {
            match self.step(bus, caches) {
                MmuStep::Done(translation) => return Ok(translation),
                MmuStep::Interrupt(interrupt) => return Err(interrupt),
                MmuStep::Read(_) | MmuStep::Update(_) | MmuStep::Restart(_) => {}
            }
        }
    }

    /// Checks the address, then looks for the partition.
    fn begin(&mut self) -> Option<MmuStep> {
        if (self.access.mode, self.access.relocation) == (MsrMode::Hypervisor, Relocation::Off) {
            return Some(self.host_real());
        }
        let Some((lpid, pid)) = self.mmu.qualify(&self.access) else {
            return Some(self.interrupt(Interrupt::segment(&self.access)));
        };
        (self.lpid, self.pid) = match self.access.relocation {
            Relocation::On => (lpid, pid),
            Relocation::Off => (lpid, 0),
        };
        match (self.known.partition, self.mmu.table.entry(lpid)) {
            (Some(entry), _) => self.with_partition(entry),
            (None, Some(at)) => {
                self.state = State::ReadPartitionEntry(at);
                None
            }
            (None, None) => Some(self.no_partition()),
        }
    }

    /// The hypervisor's real mode: the address is the real address, less its top four bits (ISA 3.1 Book III 6.7.3).
    fn host_real(&mut self) -> MmuStep {
        let output = Hpa::new(self.access.address.raw() & !(0xf << 60));
        let perms = Perms::RWX.with(Perms::DIRTY);
        self.done(MmuTranslation { output, size: PageSize::SIZE_1G, perms, lpid: 0, pid: 0 })
    }

    fn read_partition_entry<B: Bus + ?Sized>(&mut self, bus: &mut B, at: Hpa) -> MmuStep {
        let words = bus.read(at).and_then(|first| Ok::<_, BusError>((first, bus.read(at + 8)?)));
        let Ok((first, process_table)) = words else {
            return self.interrupt(Interrupt::machine_check(&self.access));
        };
        let entry = PartitionEntry { tree: RootWord::new(first), process_table };
        // An interrupt that the entry causes is reported by the next step.
        let _ = self.with_partition(entry);
        MmuStep::Read(MmuReference::PartitionTable { at, entry })
    }

    /// No partition-table entry, or none that can be used: the hypervisor hears of it, with the effective address in ASDR.
    fn no_partition(&mut self) -> MmuStep {
        let real = Gpa::new(self.access.address.raw());
        let access = &self.access;
        self.interrupt(Interrupt::hypervisor(access, Cause::BAD_CONFIG, FaultClass::Malformed, real))
    }

    fn with_partition(&mut self, entry: PartitionEntry) -> Option<MmuStep> {
        if !entry.is_usable() || (self.lpid == 0 && self.access.mode == MsrMode::Guest) {
            return Some(self.no_partition());
        }
        self.known.partition = Some(entry);
        if self.access.relocation == Relocation::Off {
            let real = Gpa::new(self.access.address.raw() & !(3 << 62));
            return self.start_partition(entry, real, self.access.access, Goal::Output);
        }
        if let Some(process) = self.known.process {
            return self.with_process(entry, process);
        }
        let Some(real) = entry.process_entry(self.pid) else {
            let access = &self.access;
            return Some(self.interrupt(Interrupt::storage(access, Cause::NO_ENTRY, FaultClass::NotPresent)));
        };
        self.start_partition(entry, real, Access::GUEST_TABLE, Goal::ProcessEntry)
    }

    fn start_partition(&mut self, entry: PartitionEntry, real: Gpa, access: Access, goal: Goal) -> Option<MmuStep> {
        let format = self.mmu.partition_format();
        if entry.tree.check().is_err() {
            return Some(self.bad_partition_root(access, real));
        }
        self.state = State::LocatePartition(WalkCursor::new(format, entry.tree.root(), real.raw(), access), goal);
        None
    }

    fn locate_partition<C: WalkCacheSet + ?Sized>(
        &mut self,
        caches: &mut C,
        walk: &WalkCursor<Radix>,
        goal: Goal,
    ) -> Option<MmuStep> {
        let real = Gpa::new(walk.walk().input);
        if goal != Goal::Output
            && let Some(found) = caches.guest_physical(real)
        {
            return self.reached(goal, real, found.page() + real.offset_in(found.size));
        }
        self.state = State::Partition(resume(caches, Stage::Two, walk), goal);
        None
    }

    /// A table's guest real address `real` is at `at`.
    fn reached(&mut self, goal: Goal, real: Gpa, at: Hpa) -> Option<MmuStep> {
        if goal == Goal::BadRoot {
            return Some(self.bad_process_root());
        }
        self.state = State::ReadProcessEntry { real, at };
        None
    }

    fn bad_partition_root(&mut self, access: Access, real: Gpa) -> MmuStep {
        let why = crate::radix::Why::BadConfig;
        let fault = RadixFault { scope: crate::radix::Scope::Partition, why, access, level: None };
        self.interrupt(Interrupt::of_partition(&self.access, &fault, real, self.lpid))
    }

    fn after_partition<C: WalkCacheSet + ?Sized>(
        &mut self,
        caches: &mut C,
        step: Step<RadixFault>,
        goal: Goal,
        real: Gpa,
    ) -> Option<MmuStep> {
        match step {
            Step::Done(found) if goal == Goal::Output => Some(self.done(self.tagged(found))),
            Step::Done(found) => {
                caches.fill_guest_physical(real, &found);
                self.reached(goal, real, found.output)
            }
            Step::Fault(fault) => Some(self.interrupt(Interrupt::of_partition(&self.access, &fault, real, self.lpid))),
            other => in_tree(&other),
        }
    }

    fn read_process_entry<B: Bus + ?Sized>(&mut self, bus: &mut B, real: Gpa, at: Hpa) -> MmuStep {
        let Ok(word) = bus.read_guest(real, at) else {
            return self.interrupt(Interrupt::machine_check(&self.access));
        };
        let entry = ProcessEntry { tree: RootWord::new(word) };
        if let Some(partition) = self.known.partition {
            let _ = self.with_process(partition, entry);
        }
        MmuStep::Read(MmuReference::ProcessTable { real, at, entry })
    }

    fn with_process(&mut self, partition: PartitionEntry, process: ProcessEntry) -> Option<MmuStep> {
        self.known.process = Some(process);
        let (one, two) = (self.mmu.process_format(), self.mmu.partition_format());
        let (input, access) = (self.access.address.raw(), self.access.access);
        let root = process.tree.root();
        match (self.lpid, process.tree.check()) {
            (0, Ok(())) => {
                let walk = WalkCursor::new(one, root, input, access).of_stage(Stage::One);
                self.state = State::LocateProcess(walk);
            }
            (0, Err(_)) => return Some(self.bad_process_root()),
            (_, Err(_)) => {
                // The address of the root's entry is formed and translated before the size is refused.
                let real = Gpa::new(process.tree.first_entry(input & ((1 << Radix::TREE_BITS) - 1)).raw());
                return self.start_partition(partition, real, Access::GUEST_TABLE, Goal::BadRoot);
            }
            (_, Ok(())) if partition.tree.check().is_err() => {
                let real = Gpa::new(process.tree.first_entry(input & ((1 << Radix::TREE_BITS) - 1)).raw());
                return Some(self.bad_partition_root(Access::GUEST_TABLE, real));
            }
            (_, Ok(())) => {
                let nested = NestedCursor::new(one, Gpa::new(root.raw()), two, partition.tree.root(), input, access);
                self.state = State::Nested(nested);
            }
        }
        None
    }

    fn bad_process_root(&mut self) -> MmuStep {
        let access = &self.access;
        self.interrupt(Interrupt::storage(access, Cause::BAD_CONFIG, FaultClass::Malformed))
    }

    fn after_process(&mut self, step: Step<RadixFault>) -> Option<MmuStep> {
        Some(match step {
            Step::Done(found) => self.done(self.tagged(found)),
            Step::Fault(fault) => self.interrupt(Interrupt::of_process(&self.access, &fault)),
            other => return in_tree(&other),
        })
    }

    fn after_nested(&mut self, step: Step<NestedFault<RadixFault, RadixFault>>) -> Option<MmuStep> {
        Some(match step {
            Step::Done(found) => self.done(self.tagged(found)),
            Step::Fault(NestedFault::One(fault)) => self.interrupt(Interrupt::of_process(&self.access, &fault)),
            Step::Fault(NestedFault::Two { fault, gpa, .. }) => {
                self.interrupt(Interrupt::of_partition(&self.access, &fault, gpa, self.lpid))
            }
            other => return in_tree(&other),
        })
    }

    fn tagged(&self, found: Translation) -> MmuTranslation {
        let Translation { output, size, perms, .. } = found;
        MmuTranslation { output, size, perms, lpid: self.lpid, pid: self.pid }
    }
    fn done(&mut self, translation: MmuTranslation) -> MmuStep {
        self.state = State::Done(translation);
        MmuStep::Done(translation)
    }
    fn interrupt(&mut self, interrupt: Interrupt) -> MmuStep {
        self.state = State::Interrupted(interrupt);
        MmuStep::Interrupt(interrupt)
    }
}

/// The walk, begun at the deepest table that is cached.
fn resume<C: WalkCacheSet + ?Sized>(caches: &mut C, stage: Stage, walk: &WalkCursor<Radix>) -> WalkCursor<Radix> {
    match caches.deepest(stage, walk.walk().input) {
        Some(found) => walk.resume_at(found.level, found.table, found.acc),
        None => *walk,
    }
}

/// Fills the page walk cache with the table that a walk has just found.
fn remember<C: WalkCacheSet + ?Sized>(caches: &mut C, stage: Stage, walk: &WalkCursor<Radix>, step: &Step<RadixFault>) {
    if let (Step::Read(_), Some((level, table, acc))) = (step, walk.position()) {
        caches.fill(stage, walk.walk().input, CachedTable { level, table, host: None, acc });
    }
}

/// A step of a tree's walk that goes on; the callers take ends apart first.
fn in_tree<F>(step: &Step<F>) -> Option<MmuStep> {
    match *step {
        Step::Read(reference) => Some(MmuStep::Read(MmuReference::Tree(reference))),
        Step::Update(reference) => Some(MmuStep::Update(reference)),
        Step::Restart(reference) => Some(MmuStep::Restart(reference)),
        Step::Done(_) | Step::Fault(_) => None,
    }
}
