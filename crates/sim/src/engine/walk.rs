//! A vCPU's walks: the walk cursors on the tables of a window, metered.

use std::collections::BTreeMap;

use mmu_core::memory::{TableFault, TableMemory};
use mmu_core::tlb::{Kind, LatencyCache};
use mmu_core::walk::{
    Bus, BusError, CachedTable, Exchange, NestedCursor, NestedFault, Stage, Step, Translation, WalkCacheSet, WalkCursor,
};
use mmu_core::{Access, AccessKind, Cycles, FaultReport, Format, Gpa, Gva, Hpa};

use super::costs::Costs;
use super::guest::GuestTables;
use super::vcpu::{GuestFault, Outcome, Vcpu, View, Watch};
use crate::arch::Arch;
use crate::checker::Violation;

/// Flags set by walks of this window: address to the word as the window began, and as this vCPU would read it.
#[derive(Clone, Debug, Default)]
pub(crate) struct FlagLog(BTreeMap<u64, (u64, u64)>);

impl FlagLog {
    /// Takes the logged words by address, each as it was and as it is.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = (Hpa, u64, u64)> + use<> {
        std::mem::take(&mut self.0).into_iter().map(|(at, (old, new))| (Hpa::new(at), old, new))
    }
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Memory as one vCPU's walker sees it in a window.
struct WindowBus<'a, F> {
    tables: &'a TableMemory,
    log: &'a mut FlagLog,
    guest: Option<&'a mut GuestTables<F>>,
    broken: Option<(Hpa, TableFault)>,
    /// The dirty flag, while pages that become dirty are logged; else 0.
    dirty: u64,
    /// The last exchange made its entry dirty.
    dirtied: bool,
}

impl<F: Format> Bus for WindowBus<'_, F> {
    #[inline]
    fn read(&mut self, at: Hpa) -> Result<u64, BusError> {
        if !self.log.0.is_empty()
            && let Some(&(_, word)) = self.log.0.get(&at.raw())
        {
            return Ok(word);
        }
        self.tables.read(at).map_err(|fault| {
            self.broken = Some((at, fault));
            BusError { at }
        })
    }

    fn cmpxchg(&mut self, at: Hpa, old: u64, new: u64) -> Result<Exchange, BusError> {
        let found = self.read(at)?;
        if found != old {
            return Ok(Exchange::Found(found));
        }
        self.dirtied = !old & new & self.dirty != 0;
        self.log.0.entry(at.raw()).or_insert((old, new)).1 = new;
        Ok(Exchange::Done)
    }

    #[inline]
    fn read_guest(&mut self, gpa: Gpa, at: Hpa) -> Result<u64, BusError> {
        match &self.guest {
            Some(guest) if guest.is_shared() => self.read(at),
            Some(guest) => guest.read(gpa).ok_or(BusError { at }),
            None => Err(BusError { at }),
        }
    }

    fn cmpxchg_guest(&mut self, gpa: Gpa, at: Hpa, old: u64, new: u64) -> Result<Exchange, BusError> {
        if self.guest.as_ref().is_some_and(|guest| guest.is_shared()) {
            return self.cmpxchg(at, old, new);
        }
        let found = self.read_guest(gpa, at)?;
        if found != old {
            return Ok(Exchange::Found(found));
        }
        if let Some(guest) = &mut self.guest {
            guest.write(gpa, new);
        }
        Ok(Exchange::Done)
    }
}

impl<A: Arch> Vcpu<A> {
    pub(super) fn walk_nested(&mut self, gva: Gva, access: Access, view: View<'_>) -> Result<Translation, Outcome> {
        let dirty = self.logged_flag();
        let Self { arch, guest, caches, memory, log, tag, root, modified, stores, .. } = self;
        let Some(guest) = guest.as_mut() else { return Err(Outcome::GuestFault(None)) };
        let mut cursor = NestedCursor::new(*arch.one(), guest.root(), *arch.two(), *root, fold(arch, gva), access);
        // Which page a translation is of has to be noted where only the guest's tables tell.
        let notes = view.watch == Watch::Writes && guest.translate_premapped(gva).is_none();
        let mut bus = WindowBus { tables: view.tables, log, guest: Some(guest), broken: None, dirty, dirtied: false };
        let mut cached = caches.for_walk(*tag, Kind::Combined);
        let mut meter = Meter::new(view.costs, memory);
        let end = loop {
            match cursor.step(&mut bus, &mut cached) {
                Step::Read(reference) => meter.read(reference.stage, reference.at),
                Step::Update(_) | Step::Restart(_) => {
                    meter.update();
                    if std::mem::take(&mut bus.dirtied) {
                        modified.pages.push_back(page_of(cursor.translating()));
                    }
                }
                Step::Done(translation) => break Ok(translation),
                Step::Fault(NestedFault::One(fault)) => break Err(Outcome::GuestFault(fault.level())),
                Step::Fault(NestedFault::Two { fault, gpa, table }) => {
                    // A walk's own reference is a read of the guest's table, or a write where it sets flags there.
                    let access = if table.is_some() { AccessKind::Read } else { access.kind };
                    break Err(Outcome::Fault(GuestFault { gpa, access, class: fault.class() }));
                }
            }
        };
        if notes && let (Ok(found), Some(mapped)) = (&end, cursor.first_stage()) {
            let gpa = Gpa::new(mapped.output.raw() + (gva.raw() & (mapped.size.bytes() - 1)));
            stores.guest_pages.insert(Hpa::new(found.output.raw() & !0xfff), page_of(gpa));
        }
        let (meter, broken) = (meter.spent, bus.broken);
        self.charge(meter, broken);
        end
    }

    pub(super) fn walk_flat(&mut self, gpa: Gpa, access: Access, view: View<'_>) -> Result<Translation, Outcome> {
        let dirty = self.logged_flag();
        let Self { arch, caches, memory, log, tag, root, modified, .. } = self;
        let mut cursor = WalkCursor::new(*arch.two(), *root, gpa.raw(), access);
        let mut cached = caches.for_walk(*tag, Kind::Combined);
        if let Some(found) = cached.deepest(Stage::Two, gpa.raw()) {
            cursor = cursor.resume_at(found.level, found.table, found.acc);
        }
        let mut bus =
            WindowBus::<A::One> { tables: view.tables, log, guest: None, broken: None, dirty, dirtied: false };
        let mut meter = Meter::new(view.costs, memory);
        let end = loop {
            match cursor.step(&mut bus) {
                Step::Read(reference) => {
                    meter.read(Stage::Two, reference.at);
                    if let Some((level, table, acc)) = cursor.position()
                        && cursor.is_settled()
                    {
                        let found = CachedTable { level, table, host: None, acc };
                        cached.fill(Stage::Two, gpa.raw(), found);
                    }
                }
                Step::Update(_) | Step::Restart(_) => {
                    meter.update();
                    if std::mem::take(&mut bus.dirtied) {
                        modified.pages.push_back(page_of(gpa));
                    }
                }
                Step::Done(translation) => break Ok(translation),
                Step::Fault(fault) => break Err(fault.class()),
            }
        };
        let (meter, broken) = (meter.spent, bus.broken);
        self.charge(meter, broken);
        end.map_err(|class| Outcome::Fault(GuestFault { gpa, access: access.kind, class }))
    }

    /// The dirty flag of the second stage, while this vCPU logs pages that get it; else 0.
    fn logged_flag(&self) -> u64 {
        if self.modified.capacity == 0 { 0 } else { self.arch.two().dirty_mask() }
    }

    fn charge(&mut self, spent: Spent, broken: Option<(Hpa, TableFault)>) {
        self.clock += spent.cycles;
        self.stats.stage1_references += spent.stage1;
        self.stats.stage2_references += spent.stage2;
        self.stats.flag_updates += spent.updates;
        if let Some((at, fault)) = broken {
            self.violations.push(Violation::TableWalk { vcpu: self.index, at, fault, moment: self.clock });
        }
    }
}

/// First byte of the 4 KiB page of an address.
fn page_of(gpa: Gpa) -> Gpa {
    Gpa::new(gpa.raw() & !0xfff)
}

/// A guest-virtual address cut to what the first stage's tables index.
fn fold<A: Arch>(arch: &A, gva: Gva) -> u64 {
    gva.raw() & (arch.one().geometry().input_bytes() - 1)
}

/// What one walk spent.
#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    cycles: Cycles,
    stage1: u64,
    stage2: u64,
    updates: u64,
}

/// Adds up a walk's references.
struct Meter<'a> {
    costs: &'a Costs,
    memory: &'a mut LatencyCache,
    spent: Spent,
}

impl<'a> Meter<'a> {
    fn new(costs: &'a Costs, memory: &'a mut LatencyCache) -> Self {
        Self { costs, memory, spent: Spent::default() }
    }

    fn read(&mut self, stage: Stage, at: Hpa) {
        self.spent.cycles += self.costs.walk.reference(self.memory.access(at).latency);
        match stage {
            Stage::One => self.spent.stage1 += 1,
            Stage::Two => self.spent.stage2 += 1,
        }
    }

    fn update(&mut self) {
        self.spent.cycles += self.costs.assist;
        self.spent.updates += 1;
    }
}
