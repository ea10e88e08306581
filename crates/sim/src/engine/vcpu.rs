//! A vCPU: guest accesses through its own TLBs and walks, up to the end of a window or its first exit.
//!
//! In the parallel phase of a window a vCPU sees the tables as they were when the window began. It writes nothing: the
//! accessed and dirty flags that its walks set go into a log which the host phase applies.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use mmu_core::memory::TableMemory;
use mmu_core::tlb::{
    AsidScope, Input, Invalidate, LatencyCache, Lookup, Port, TableCaches, Tag, TlbEntry, TranslationCaches,
};
use mmu_core::{
    Access, AccessKind, Cycles, Denial, FaultClass, Flush, Format, Gpa, Gva, Hpa, Level, Overlap, Perms, Privilege,
    Purpose, Share, Uncached,
};

use super::cleanliness::{Cleanliness, GuestCaches};
use super::costs::Costs;
use super::flight::FlightId;
use super::guest::{GuestError, GuestTables};
use super::lock::ActorId;
use super::primary::PrimaryMmu;
use super::probe::Probing;
use super::requests::{Request, What};
use super::walk::FlagLog;
use crate::arch::Arch;
use crate::checker::Violation;
use crate::workload::{GuestAccess, GuestStream};

/// How a vCPU left the guest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
pub struct Exit {
    /// Why.
    pub reason: ExitReason,
    /// When.
    pub at: Cycles,
}

/// Why a vCPU left the guest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
pub enum ExitReason {
    /// A second-stage fault.
    Fault(GuestFault),
    /// The guest has done the work that it was given.
    Done,
    /// The host asked for it.
    Kicked,
    /// Its log of modified pages is full.
    LogFull,
}

impl ExitReason {
    /// One word for reports.
    pub const fn name(self) -> &'static str {
        match self {
            ExitReason::Fault(_) => "fault",
            ExitReason::Done => "done",
            ExitReason::Kicked => "kicked",
            ExitReason::LogFull => "log full",
        }
    }
}

/// A second-stage fault as the hypervisor gets it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
pub struct GuestFault {
    /// Where.
    pub gpa: Gpa,
    /// What was tried.
    pub access: AccessKind,
    /// What it means.
    pub class: FaultClass,
}

/// What a vCPU is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) enum Mode {
    /// Never entered.
    Fresh,
    /// Running guest code.
    Guest,
    /// Left the guest in this window; its thread goes on in the host phase.
    Exited,
    /// Its thread runs in the host.
    InHost,
    /// Its thread has ended.
    Finished,
}

/// Counters of one vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct VcpuStats {
    /// Accesses made.
    pub accesses: u64,
    /// First-level TLB hits.
    pub l1_hits: u64,
    /// Second-level TLB hits.
    pub l2_hits: u64,
    /// Walks.
    pub walks: u64,
    /// References made by walks, by stage.
    pub stage1_references: u64,
    /// References made by walks, second stage.
    pub stage2_references: u64,
    /// Accessed and dirty flags set by walks.
    pub flag_updates: u64,
    /// Faults handled inside the guest.
    pub guest_faults: u64,
    /// Second-stage faults.
    pub faults: u64,
    /// Look-ups that matched translations of different sizes: TLB conflict aborts.
    pub conflicts: u64,
    /// Flush requests served.
    pub flushes: u64,
    /// Cycles from a second-stage fault to the guest running again.
    pub fault_cycles: Cycles,
    /// The longest of these.
    pub longest_fault: Cycles,
    /// Cycles lost to interrupts and received broadcasts.
    pub interrupt_cycles: Cycles,
    /// Cycles spent in walks.
    pub walk_cycles: Cycles,
    /// When the workload was finished.
    pub finished: Cycles,
}

impl VcpuStats {
    /// Both together: counters and cycles add up, longest and latest figures are the larger ones.
    pub fn merge(self, other: &VcpuStats) -> VcpuStats {
        VcpuStats {
            accesses: self.accesses + other.accesses,
            l1_hits: self.l1_hits + other.l1_hits,
            l2_hits: self.l2_hits + other.l2_hits,
            walks: self.walks + other.walks,
            stage1_references: self.stage1_references + other.stage1_references,
            stage2_references: self.stage2_references + other.stage2_references,
            flag_updates: self.flag_updates + other.flag_updates,
            guest_faults: self.guest_faults + other.guest_faults,
            faults: self.faults + other.faults,
            conflicts: self.conflicts + other.conflicts,
            flushes: self.flushes + other.flushes,
            fault_cycles: self.fault_cycles + other.fault_cycles,
            longest_fault: self.longest_fault.max(other.longest_fault),
            interrupt_cycles: self.interrupt_cycles + other.interrupt_cycles,
            walk_cycles: self.walk_cycles + other.walk_cycles,
            finished: self.finished.max(other.finished),
        }
    }
}

/// An interruption of guest code, for who records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Served {
    /// When the guest stopped.
    pub(super) from: Cycles,
    /// When the request was served.
    pub(super) to: Cycles,
    /// What was asked for.
    pub(super) request: &'static str,
}

/// What all vCPUs of a window look at.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) tables: &'a TableMemory,
    pub(crate) primary: &'a PrimaryMmu,
    pub(crate) pages: &'a Cleanliness,
    pub(crate) costs: &'a Costs,
    /// Whether each access is checked against freed pages.
    pub(crate) watch: Watch,
    /// Whether the checker wants to know which pages are written now, where they are watched.
    pub(crate) stores_count: bool,
}

/// How closely vCPU accesses are watched.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Watch {
    /// Walks only.
    #[default]
    Walks,
    /// Every access.
    Accesses,
    /// Every access, and which pages are written.
    Writes,
}

/// A processor's log of modified pages.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Modified {
    /// Entries of the buffer; 0 while nothing is logged.
    pub(super) capacity: u64,
    /// What it holds, oldest first. A walk that is under way when it becomes full ends first.
    pub(super) pages: VecDeque<Gpa>,
}

impl Modified {
    fn is_full(&self) -> bool {
        self.capacity != 0 && self.pages.len() as u64 >= self.capacity
    }
}

/// Which pages guest code writes, if somebody wants to know.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Stores {
    /// Pages written in this window.
    pub(super) pages: BTreeSet<Gpa>,
    /// Guest page of each host page of 4 KiB that a walk of both stages has found: what hits the TLB says only the latter.
    pub(super) guest_pages: BTreeMap<Hpa, Gpa>,
}

/// One vCPU.
#[derive(Debug)]
pub struct Vcpu<A: Arch> {
    pub(crate) arch: A,
    pub(crate) index: usize,
    pub(crate) clock: Cycles,
    pub(crate) mode: Mode,
    /// The actor that enters it.
    pub(crate) thread: Option<ActorId>,
    /// How it left the guest last.
    pub(crate) exit: Exit,
    pub(crate) root: Hpa,
    pub(crate) tag: Tag,
    pub(crate) caches: TranslationCaches,
    pub(crate) memory: LatencyCache,
    pub(crate) stream: GuestStream,
    pub(crate) guest: Option<GuestTables<A::One>>,
    pub(crate) stats: VcpuStats,
    pub(crate) violations: Vec<Violation>,
    pub(crate) error: Option<GuestError>,
    pub(crate) acks: Vec<(FlightId, Cycles)>,
    pub(crate) log: FlagLog,
    /// Whether the guest runs with its data caches on.
    pub(crate) guest_caches: GuestCaches,
    /// Translations of different sizes for one address may be cached here.
    pub(super) overlapped: bool,
    /// How fast it runs guest code in this window, if its core runs another vCPU too.
    pub(crate) shared: Option<Share>,
    /// Interruptions of this window, if somebody records.
    pub(super) served: Option<Vec<Served>>,
    pub(super) modified: Modified,
    pub(super) stores: Stores,
    pub(super) reload: bool,
    /// Asked to leave while it was out: the next entry is turned back.
    pub(crate) kicked: bool,
    /// Flush asked for while out of the guest, to be made before it is entered.
    pub(super) owed: Option<Flush>,
    pub(super) requests: VecDeque<Request>,
    pub(super) current: Option<GuestAccess>,
    pub(super) probing: Probing,
}

/// How one access went.
pub(super) enum Outcome {
    /// It goes to this address.
    Done(Hpa),
    /// With the level of the entry that says so.
    GuestFault(Option<Level>),
    Fault(GuestFault),
    /// The access is done, and the log of modified pages is full.
    LogFull(Hpa),
}

impl<A: Arch> Vcpu<A> {
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn new(
        arch: A,
        index: usize,
        root: Hpa,
        tag: Tag,
        caches: TranslationCaches,
        memory: LatencyCache,
        stream: GuestStream,
        guest: Option<GuestTables<A::One>>,
    ) -> Self {
        Self {
            arch,
            index,
            clock: Cycles::ZERO,
            mode: Mode::Fresh,
            thread: None,
            exit: Exit { reason: ExitReason::Done, at: Cycles::ZERO },
            root,
            tag,
            caches,
            memory,
            stream,
            guest,
            stats: VcpuStats::default(),
            violations: Vec::new(),
            error: None,
            acks: Vec::new(),
            log: FlagLog::default(),
            guest_caches: GuestCaches::On,
            overlapped: false,
            shared: None,
            served: None,
            modified: Modified::default(),
            stores: Stores::default(),
            reload: false,
            kicked: false,
            owed: None,
            requests: VecDeque::new(),
            current: None,
            probing: Probing::default(),
        }
    }

    /// New work, in place of what is left of the old.
    pub(crate) fn assign(&mut self, stream: GuestStream) {
        (self.stream, self.current) = (stream, None);
    }

    // ---- the parallel phase ----

    /// Runs guest code to `end` or the first exit.
    pub(crate) fn run(&mut self, view: View<'_>, end: Cycles) {
        while self.mode == Mode::Guest && self.clock < end {
            if let Some(&request) = self.requests.front()
                && request.at <= self.clock
            {
                self.requests.pop_front();
                self.interrupted(request, view.costs);
                continue;
            }
            if let Some(probe) = self.probing.asked() {
                self.run_probe(probe, view);
                continue;
            }
            let limit = self.requests.front().map_or(end, |request| request.at.min(end));
            self.run_guest(view, limit);
        }
    }

    fn interrupted(&mut self, request: Request, costs: &Costs) {
        let before = self.clock;
        self.clock += if request.flight.is_some() { costs.ipi_victim } else { costs.broadcast_victim };
        self.serve(request, costs);
        self.stats.interrupt_cycles += self.clock.since(before);
        if let Some(served) = &mut self.served {
            served.push(Served { from: before, to: self.clock, request: request.what.name() });
        }
        if self.reload || request.what == What::Leave {
            self.leave(ExitReason::Kicked, costs);
        }
    }

    pub(super) fn leave(&mut self, reason: ExitReason, costs: &Costs) {
        self.exit = Exit { reason, at: self.clock };
        self.clock += costs.exit;
        self.mode = Mode::Exited;
        // Interrupts on their way reach the processor in the host: answered there, made good before the guest is entered again.
        for request in std::mem::take(&mut self.requests) {
            if matches!(request.what, What::Invalidate(..)) {
                self.requests.push_back(request);
                continue;
            }
            self.note(request.what);
            if let Some(flight) = request.flight {
                self.acks.push((flight, self.clock.max(request.at)));
            }
        }
    }

    /// The hot loop.
    fn run_guest(&mut self, view: View<'_>, limit: Cycles) {
        while self.clock < limit {
            let Some(access) = self.current.take().or_else(|| self.stream.next()) else {
                self.stats.finished = self.clock;
                self.leave(ExitReason::Done, view.costs);
                return;
            };
            let (before, walks, flags) = (self.clock, self.stats.walks, self.stats.flag_updates);
            // Traces are of user mode.
            let outcome = self.access(&access, Privilege::User, view);
            if let Outcome::Done(at) | Outcome::LogFull(at) = outcome {
                self.stats.accesses += 1;
                let at_once = match (self.stats.walks != walks, self.stats.flag_updates != flags) {
                    (_, true) => 1,
                    (true, false) => view.costs.walk.in_flight,
                    (false, false) => view.costs.fill_buffers,
                };
                self.reference(at, at_once, view.costs);
            }
            if let Some(speed) = self.shared {
                self.clock = before + speed.stretches(self.clock.since(before));
            }
            match outcome {
                Outcome::Done(_) => {}
                Outcome::GuestFault(_) => {
                    self.current = Some(access);
                    if let Err(error) = self.guest_fault(access.gva, view.costs) {
                        // The guest is at its end; whoever runs the simulation asks for the error.
                        self.error = Some(error);
                        self.stream = GuestStream::Idle;
                        self.current = None;
                    }
                }
                Outcome::LogFull(_) => {
                    self.leave(ExitReason::LogFull, view.costs);
                    return;
                }
                Outcome::Fault(fault) => {
                    self.current = Some(access);
                    self.stats.faults += 1;
                    self.forget_faulting(access.gva, fault.gpa);
                    self.leave(ExitReason::Fault(fault), view.costs);
                    return;
                }
            }
        }
    }

    /// The line that an access reads or writes, from the cache that has it. What that takes beyond the first cache's latency overlaps with that of so many
    /// accesses: as many as there are fill buffers behind a hit in the TLB, as many as walks can be under way behind a walk. A walk that sets a flag does so by
    /// an assist, which waits for all before it.
    #[inline]
    fn reference(&mut self, at: Hpa, at_once: u32, costs: &Costs) {
        let beyond = self.memory.access(at).latency.since(costs.access);
        self.clock += Cycles(beyond.0 / u64::from(at_once.max(1)));
    }

    /// What a second-stage fault invalidates by itself where a denied access walks again (EPT violations, Intel SDM vol. 3, 29.4.3.1): what is cached for the
    /// guest-physical address, tables included, and for the virtual address that it came from. Else a walk could begin in a table that has been replaced for as
    /// long as the host puts a flush off, and fault again and again.
    fn forget_faulting(&mut self, gva: Gva, gpa: Gpa) {
        if self.arch.two().denial() != Denial::WalksAgain {
            return;
        }
        let Tag { vmid, asid, .. } = self.tag;
        self.caches.invalidate(Invalidate::GuestPhysical { vmid, start: gpa, bytes: 1 }, TableCaches::Dropped);
        if self.guest.is_some() {
            let asid = AsidScope::One(asid);
            self.caches.invalidate(Invalidate::Page { vmid, asid, va: gva }, TableCaches::Dropped);
        }
    }

    fn guest_fault(&mut self, gva: Gva, costs: &Costs) -> Result<(), GuestError> {
        self.stats.guest_faults += 1;
        self.clock += costs.guest_fault;
        if let Some(guest) = &mut self.guest {
            guest.map(gva)?;
        }
        Ok(())
    }

    // PERF: inlined into the hot loop, where nobody asks for the address and the privilege is a constant.
    #[inline(always)]
    pub(super) fn access(&mut self, access: &GuestAccess, privilege: Privilege, view: View<'_>) -> Outcome {
        let what = Access { kind: access.kind, privilege, purpose: Purpose::Data };
        let input = match &self.guest {
            Some(_) => Input::Combined(access.gva),
            None => Input::GuestPhysical(Gpa::new(access.gva.raw())),
        };
        let port = match access.kind {
            AccessKind::Read => Port::Load,
            AccessKind::Write | AccessKind::ReadWrite => Port::Store,
            AccessKind::Execute => Port::Fetch,
        };
        let need = Perms::needed_by(&what);
        self.clock += view.costs.access;
        if self.overlapped && self.caches.tlb.conflicts(port, self.tag, input) {
            return self.conflict(input, access.kind);
        }
        match self.caches.tlb.lookup(port, self.tag, input) {
            Lookup::L1(entry) if entry.perms.contains(need) => {
                self.stats.l1_hits += 1;
                self.watch(view, &entry, input, access.kind);
                return Outcome::Done(entry.translate(input));
            }
            Lookup::L2(entry) if entry.perms.contains(need) => {
                self.stats.l2_hits += 1;
                self.clock += self.caches.tlb.l2_hit_extra(port);
                self.watch(view, &entry, input, access.kind);
                return Outcome::Done(entry.translate(input));
            }
            Lookup::L1(entry) | Lookup::L2(entry) => {
                if let Some(fault) = self.denied(&entry, input, need, access.kind) {
                    return Outcome::Fault(fault);
                }
            }
            Lookup::Miss => {}
        }
        self.walk(port, input, what, view)
    }

    /// Translations of different sizes match: the access ends in an abort, and somebody has to invalidate them.
    #[cold]
    fn conflict(&mut self, input: Input, access: AccessKind) -> Outcome {
        self.stats.conflicts += 1;
        // The fault address register holds no guest-physical address for what went through the first stage.
        let gpa = if let Input::GuestPhysical(gpa) = input { gpa } else { Gpa::new(0) };
        Outcome::Fault(GuestFault { gpa, access, class: FaultClass::TlbConflict })
    }

    /// The fault that a cached translation leads to by itself. What went through both stages is walked again to see which of them
    /// forbids the access; a store that only lacks the dirty state is walked for it.
    #[cold]
    fn denied(&self, entry: &TlbEntry, input: Input, need: Perms, access: AccessKind) -> Option<GuestFault> {
        let Input::GuestPhysical(gpa) = input else { return None };
        let denied = !entry.perms.contains(need.without(Perms::DIRTY));
        (denied && self.arch.two().denial() == Denial::FaultsFromTlb).then_some(GuestFault {
            gpa,
            access,
            class: FaultClass::Permission,
        })
    }

    #[inline]
    fn watch(&mut self, view: View<'_>, entry: &TlbEntry, input: Input, access: AccessKind) {
        if view.watch != Watch::Walks || self.guest_caches == GuestCaches::Off {
            self.check_page(view, entry.translate(input), input);
            self.note_store(view, entry.translate(input), input, access);
        }
    }

    /// Notes a store for the checker's account of written pages.
    fn note_store(&mut self, view: View<'_>, at: Hpa, input: Input, access: AccessKind) {
        if view.watch != Watch::Writes
            || !view.stores_count
            || !matches!(access, AccessKind::Write | AccessKind::ReadWrite)
        {
            return;
        }
        let page = |raw: u64| raw & !0xfff;
        let gpa = match input {
            Input::GuestPhysical(gpa) => Some(Gpa::new(page(gpa.raw()))),
            Input::Combined(gva) | Input::Linear(gva) => {
                match self.guest.as_ref().and_then(|guest| guest.translate_premapped(gva)) {
                    Some(gpa) => Some(Gpa::new(page(gpa.raw()))),
                    None => self.stores.guest_pages.get(&Hpa::new(page(at.raw()))).copied(),
                }
            }
        };
        self.stores.pages.extend(gpa);
    }

    fn check_page(&mut self, view: View<'_>, at: Hpa, input: Input) {
        if view.primary.off_limits(at).is_some() {
            self.violations.push(Violation::UseAfterFree {
                vcpu: self.index,
                input: input.raw(),
                at,
                moment: self.clock,
            });
        }
        let around = self.guest_caches == GuestCaches::Off && self.arch.two().uncached() == Uncached::NeedsClean;
        if around && !view.pages.is_clean(at) {
            let (vcpu, input, moment) = (self.index, input.raw(), self.clock);
            self.violations.push(Violation::StaleData { vcpu, input, at, moment });
        }
    }

    fn walk(&mut self, port: Port, input: Input, access: Access, view: View<'_>) -> Outcome {
        self.stats.walks += 1;
        let before = self.clock;
        self.clock += view.costs.walk.fixed;
        let outcome = match input {
            Input::Combined(gva) | Input::Linear(gva) => self.walk_nested(gva, access, view),
            Input::GuestPhysical(gpa) => self.walk_flat(gpa, access, view),
        };
        self.stats.walk_cycles += self.clock.since(before);
        match outcome {
            Ok(found) => {
                if self.arch.two().may_be_cached(found.level, found.raw) {
                    let entry = TlbEntry::new(found.page(), found.size, found.perms);
                    if !self.overlapped && self.arch.two().overlap() == Overlap::Conflict {
                        self.overlapped = self.caches.tlb.overlaps(port, self.tag, input, found.size);
                    }
                    self.caches.tlb.fill(port, self.tag, input, entry);
                }
                self.check_page(view, found.output, input);
                self.note_store(view, found.output, input, access.kind);
                if self.modified.is_full() { Outcome::LogFull(found.output) } else { Outcome::Done(found.output) }
            }
            Err(outcome) => outcome,
        }
    }
}
