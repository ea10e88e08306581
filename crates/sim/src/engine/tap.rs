//! Recording: a stage in front of the timed one, which watches what passes.
//!
//! The actors of a recorded simulation hand their operations to a [`Tap`], which hands them on to the [`Timed`] stage and notes what
//! they did. An unrecorded simulation has no tap, so recording costs it nothing, not even a question per operation. A table word is
//! read before and after an operation; what happened to it needs no knowledge of the operation.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use mmu_core::{AccessKind, Cycles, Delivery, FaultClass, Flush, FlushScope, Format, Gpa, Hpa, PageSize, WalkCaches};

use super::counters::HostCounters;
use super::host::Stage;
use super::lock::ActorId;
use super::op::{EachLeaf, LockId, LockMode, Op, Reply, VcpuId};
use super::probe::{Probe, Probed};
use super::timed::{Parked, Timed};
use super::vcpu::{Exit, ExitReason, GuestFault, Served};
use crate::arch::Arch;
use crate::events::{Open, Places, Recorder, Trace, Track};
use crate::workload::GuestWork;

/// What an actor waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pending {
    Lock(LockId, LockMode),
    /// The end of what is open under this name.
    End(Open),
    Guest(VcpuId),
}

/// A table word before an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Before {
    at: Hpa,
    word: u64,
    /// Words that one unit of the operation's answer stands for; `None`: one word in all.
    each: Option<u64>,
}

pub(super) struct Tap<A: Arch> {
    timed: Rc<RefCell<Timed<A>>>,
    format: A::Two,
    recorder: Recorder,
    places: Places,
    pending: BTreeMap<ActorId, Pending>,
}

impl<A: Arch> Stage for RefCell<Tap<A>> {
    fn perform(&self, op: Op) -> Option<Reply> {
        self.borrow_mut().perform(op)
    }

    fn reply(&self) -> Reply {
        self.borrow().timed.borrow().reply()
    }

    fn resumed(&self) {
        self.borrow_mut().resumed();
    }

    fn exit(&self, vcpu: VcpuId) -> Exit {
        self.borrow().timed.exit(vcpu)
    }

    fn counters(&self) -> HostCounters {
        self.borrow().timed.counters()
    }

    fn assign(&self, vcpu: VcpuId, work: GuestWork) {
        self.borrow().timed.assign(vcpu, work);
    }

    fn ask(&self, vcpu: VcpuId, probe: Probe) {
        self.borrow().timed.ask(vcpu, probe);
    }

    fn probed(&self, vcpu: VcpuId) -> Option<Probed> {
        self.borrow().timed.probed(vcpu)
    }

    fn is_recorded(&self) -> bool {
        true
    }

    fn record(&self, what: Trace) {
        self.borrow_mut().record(what);
    }
}

impl<A: Arch> Tap<A> {
    fn perform(&mut self, op: Op) -> Option<Reply> {
        // Each of these flushes, each leaf unlike the one before it, each level of tables, each yield is an event of its own: one by one.
        let one_by_one = match op {
            Op::RemoveSubtrees(remove) => remove.flush.is_some() || remove.level.index() > 1,
            Op::RunBelow(run) => run.level.index() > 1,
            Op::Slices(_) => true,
            Op::Rest(rest) => matches!(rest.leaf, EachLeaf::Release { .. }),
            _ => false,
        };
        if one_by_one {
            return Some(Reply::default());
        }
        let before = self.look(&op);
        let (id, start) = self.actor();
        let answer = self.timed.borrow_mut().perform(op);
        let now = self.actor().1;
        let parked = self.timed.borrow().parked;
        let reply = match (answer, parked) {
            (Some(reply), _) | (None, Parked::Turn(reply)) => Some(reply),
            (None, Parked::Event) => None,
        };
        if let Some(reply) = reply {
            for before in before.into_iter().flatten() {
                self.changed(id, now, before, reply.a);
            }
            self.did(&op, id, start, now, reply);
        } else {
            self.waits(&op, id, start);
        }
        answer
    }

    fn resumed(&mut self) {
        let (id, now) = self.actor();
        let track = self.recorder.track(id);
        match self.pending.remove(&id) {
            None => {}
            Some(Pending::Lock(lock, mode)) => {
                self.recorder.end(track, Open::LockWait(lock.0), now);
                self.holds(track, lock, mode, now);
            }
            Some(Pending::End(open)) => self.recorder.end(track, open, now),
            Some(Pending::Guest(vcpu)) => self.left(track, vcpu),
        }
    }

    fn record(&mut self, mut what: Trace) {
        let (id, now) = self.actor();
        let track = self.recorder.track(id);
        // What the protocol does not know.
        match (&mut what, track) {
            (Trace::FastPageFault { vcpu_id, .. }, Track::Vcpu(index)) => *vcpu_id = index,
            (Trace::KvmMmuZapAllFast { mmu_valid_gen, mmu_used_pages }, _) => {
                let timed = self.timed.borrow();
                *mmu_valid_gen = u64::from(timed.world.root_generation);
                *mmu_used_pages = timed.world.tables.frames();
            }
            _ => {}
        }
        self.recorder.point(track, now, what);
    }
}

impl<A: Arch> Tap<A> {
    pub(super) fn new(timed: Rc<RefCell<Timed<A>>>, recorder: Recorder) -> Self {
        let format = *timed.borrow().world.arch.two();
        let mut tap = Self { timed, format, recorder, places: Places::default(), pending: BTreeMap::new() };
        let root = tap.timed.borrow().world.root;
        tap.learn(root);
        tap
    }

    pub(super) fn recorder(&mut self) -> &mut Recorder {
        &mut self.recorder
    }

    fn actor(&self) -> (ActorId, Cycles) {
        let timed = self.timed.borrow();
        (timed.actor.id, timed.actor.now)
    }

    fn learn(&mut self, root: Hpa) {
        let timed = self.timed.borrow();
        let level = self.format.geometry().root();
        self.places.learn(&self.format, &timed.world.tables, root, 1, level, Gpa::new(0));
    }

    // ---- table words ----

    /// The words that an operation may change.
    fn look(&self, op: &Op) -> [Option<Before>; 2] {
        let one = |at| [self.before(at, None), None];
        match *op {
            Op::Write(at, ..) | Op::Cmpxchg(at, ..) | Op::Xchg(at, _) | Op::FetchAnd(at, _) | Op::FetchOr(at, _) => {
                one(at)
            }
            Op::Run(run) => [self.before(run.at, Some(1)), None],
            Op::RunBelow(run) => [None, self.below(run.at, run.level)],
            Op::RemoveSubtrees(remove) => [self.before(remove.at, Some(1)), self.below(remove.at, remove.level)],
            _ => [None, None],
        }
    }

    fn before(&self, at: Hpa, each: Option<u64>) -> Option<Before> {
        let word = self.timed.borrow().world.tables.read(at).ok()?;
        Some(Before { at, word, each })
    }

    /// The first word below a table entry.
    fn below(&self, at: Hpa, level: mmu_core::Level) -> Option<Before> {
        let word = self.timed.borrow().world.tables.read(at).ok()?;
        let entries = self.format.geometry().entries(level.down()?) as u64;
        let is_table = self.format.is_mapped(word) && !self.format.is_leaf(level, word);
        if is_table { self.before(self.format.next_table(level, word), Some(entries)) } else { None }
    }

    fn changed(&mut self, id: ActorId, now: Cycles, before: Before, answer: u64) {
        let Before { at, word: old, each } = before;
        let timed = self.timed.borrow();
        let Ok(new) = timed.world.tables.read(at) else { return };
        let count = each.map_or(1, |each| each * answer);
        let Some((gpa, level)) = self.places.of(&self.format, at) else { return };
        if old == new || count == 0 {
            return;
        }
        for i in 0..count {
            let at = at + 8 * i;
            let Ok(word) = timed.world.tables.read(at) else { break };
            if !self.format.is_mapped(word) || self.format.is_leaf(level, word) {
                break;
            }
            self.places.linked(&self.format, &timed.world.tables, at, word);
        }
        let shared = u32::from(!timed.world.locks[LockId::MMU.0 as usize].is_held_alone_by(id));
        drop(timed);
        let what = match A::Two::NAME {
            "arm64-stage2" => {
                let level = 3 - level.index() as i32;
                Trace::KvmS2PteChanged { ipa: gpa.raw(), old, new, level, shared, count }
            }
            "power-radix" => {
                let shift = self.format.geometry().shift(level);
                Trace::RadixPteChanged { gpa: gpa.raw(), old, new, shift, count }
            }
            _ => {
                let (gfn, level) = (gpa.raw() >> 12, 1 + level.index() as u32);
                Trace::KvmTdpMmuSpteChanged { gfn, old_spte: old, new_spte: new, level, as_id: 0, count }
            }
        };
        self.recorder.point(self.recorder.track(id), now, what);
    }

    // ---- operations ----

    /// An operation is done: it took from `start` to `now`.
    fn did(&mut self, op: &Op, id: ActorId, start: Cycles, now: Cycles, reply: Reply) {
        let track = self.recorder.track(id);
        match *op {
            Op::Lock(lock, mode) => {
                if now > start + self.timed.borrow().world.costs.lock_local {
                    self.recorder.slice(track, start, now, wait(lock, mode));
                }
                self.holds(track, lock, mode, now);
            }
            Op::Unlock(lock) => self.recorder.end(track, Open::LockHeld(lock.0), now),
            Op::RcuLock => self.recorder.begin(track, Open::Rcu, now, Trace::RcuRead {}),
            Op::RcuUnlock => self.recorder.end(track, Open::Rcu, now),
            Op::CallRcu(frames) => {
                let what = Trace::CallRcu { tables: frames.count, first: frames.first.raw() };
                self.recorder.point(track, now, what);
            }
            Op::RemoveSubtrees(remove) if reply.a > 0 => {
                let what = Trace::CallRcu { tables: reply.a, first: remove.at.raw() };
                self.recorder.point(track, now, what);
            }
            Op::Flush(flush) => {
                let what = self.flush(track, start, flush);
                self.recorder.slice(track, start, now, what);
            }
            Op::ReloadRoots => self.recorder.slice(track, start, now, Trace::Kick { request: "reload" }),
            Op::KickAll => self.recorder.slice(track, start, now, Trace::Kick { request: "leave" }),
            Op::Reschedule => self.recorder.slice(track, start, now, Trace::Rescheduled {}),
            Op::Sleep(_) | Op::SleepUntil(_) if now > start => self.recorder.slice(track, start, now, Trace::Sleeps {}),
            Op::DropPages(range) => {
                let what = Trace::PagesDropped { start: range.start.raw(), bytes: range.bytes.0 };
                self.recorder.point(track, now, what);
            }
            Op::SetRoot(root) | Op::LoadRoot(_, root, _) => self.learn(root),
            _ => {}
        }
    }

    /// An operation has begun for whose end the actor waits.
    fn waits(&mut self, op: &Op, id: ActorId, start: Cycles) {
        let track = self.recorder.track(id);
        let (open, what) = match *op {
            Op::Lock(lock, mode) => {
                self.recorder.begin(track, Open::LockWait(lock.0), start, wait(lock, mode));
                self.pending.insert(id, Pending::Lock(lock, mode));
                return;
            }
            Op::VcpuRun(vcpu) => {
                self.enters(track, vcpu);
                self.pending.insert(id, Pending::Guest(vcpu));
                return;
            }
            Op::Flush(flush) => (Open::Remote, self.flush(track, start, flush)),
            Op::ReloadRoots => (Open::Remote, Trace::Kick { request: "reload" }),
            Op::KickAll => (Open::Remote, Trace::Kick { request: "leave" }),
            Op::SynchronizeRcu => (Open::Synchronize, Trace::SynchronizeRcu {}),
            Op::Schedule(queue) => (Open::Waits, Trace::Waits { queue: queue.0 }),
            _ => return,
        };
        self.recorder.begin(track, open, start, what);
        self.pending.insert(id, Pending::End(open));
    }

    fn holds(&mut self, track: Track, lock: LockId, mode: LockMode, now: Cycles) {
        let what = Trace::LockHeld { lock: lock_name(lock), number: lock.0, mode: mode_name(mode) };
        self.recorder.begin(track, Open::LockHeld(lock.0), now, what);
    }

    /// A flush as a slice; on POWER its instructions too.
    fn flush(&mut self, track: Track, at: Cycles, flush: Flush) -> Trace {
        let plan = self.format.flush_plan(flush);
        let (scope, start, bytes) = match plan.covers.scope {
            FlushScope::Vm => ("vm", 0, 0),
            FlushScope::Range { start, bytes, .. } => ("range", start.raw(), bytes),
        };
        if A::Two::NAME == "power-radix" {
            self.recorder.point(track, at, tlbie(&plan.covers, plan.delivery, plan.repeats));
        }
        let delivery = match plan.delivery {
            Delivery::LocalInstruction => "local",
            Delivery::Interrupt => "interrupt",
            Delivery::Broadcast => "broadcast",
        };
        let walk_caches = match plan.covers.walk_caches {
            WalkCaches::Keep => "kept",
            WalkCaches::Drop => "dropped",
        };
        Trace::Flush { scope, start, bytes, delivery, repeats: plan.repeats, walk_caches }
    }

    // ---- vCPUs ----

    fn enters(&mut self, track: Track, vcpu: VcpuId) {
        let clock = self.timed.borrow().vcpus[vcpu.0].clock;
        let vcpu_id = vcpu.0 as u32;
        self.recorder.end(track, Open::InHost, clock);
        self.recorder.point(track, clock, Trace::KvmEntry { vcpu_id });
        self.recorder.begin(track, Open::Guest, clock, Trace::Guest { vcpu_id });
    }

    fn left(&mut self, track: Track, vcpu: VcpuId) {
        let Exit { reason, at } = self.timed.exit(vcpu);
        let vcpu_id = vcpu.0 as u32;
        let exit_reason = reason.name();
        self.recorder.end(track, Open::Guest, at);
        self.recorder.point(track, at, Trace::KvmExit { vcpu_id, exit_reason });
        let mut gpa = 0;
        if let ExitReason::Fault(fault) = reason {
            gpa = fault.gpa.raw();
            self.fault(track, vcpu_id, at, fault);
        }
        self.recorder.begin(track, Open::InHost, at, Trace::InHost { vcpu_id, exit_reason, gpa });
    }

    fn fault(&mut self, track: Track, vcpu_id: u32, at: Cycles, fault: GuestFault) {
        let gpa = fault.gpa.raw();
        match A::Two::NAME {
            "arm64-stage2" => {
                let hsr = esr(&fault, self.missing_level(fault.gpa));
                self.recorder.point(track, at, Trace::KvmGuestFault { hsr, ipa: gpa });
                if fault.class == FaultClass::AccessFlag {
                    self.recorder.point(track, at, Trace::KvmAccessFault { ipa: gpa });
                }
            }
            "power-radix" => {
                let what = Trace::RadixPageFault { vcpu_id, gpa, hdsisr: hdsisr(&fault) };
                self.recorder.point(track, at, what);
            }
            _ => {
                let what = Trace::KvmPageFault { vcpu_id, fault_address: gpa, error_code: fault.error_code() };
                self.recorder.point(track, at, what);
            }
        }
    }

    /// Architectural level (3 is the last) of the entry at which a walk of the current root ends.
    fn missing_level(&self, gpa: Gpa) -> u64 {
        let timed = self.timed.borrow();
        let geometry = self.format.geometry();
        let (mut table, mut level) = (timed.world.root, geometry.root());
        while let Ok(word) = timed.world.tables.read(table + 8 * geometry.index(level, gpa.raw()) as u64)
            && self.format.is_mapped(word)
            && !self.format.is_leaf(level, word)
            && let Some(down) = level.down()
        {
            (table, level) = (self.format.next_table(level, word), down);
        }
        3 - (level.index() as u64).min(3)
    }

    // ---- what the engine tells ----

    /// A vCPU answers an interrupt.
    pub(super) fn acknowledged(&mut self, sender: Option<(ActorId, Cycles)>, vcpu: usize, at: Cycles) {
        let Some((actor, sent)) = sender else { return };
        let from = (self.recorder.track(actor), sent, Trace::Ipi { to: vcpu as u32 });
        // Just inside the slice in which it was served, which ends at this moment.
        let to = (Track::Vcpu(vcpu as u32), Cycles(at.0.saturating_sub(1)), Trace::IpiDone { after: at.since(sent) });
        self.recorder.arrow(from, to);
    }

    /// A vCPU was interrupted.
    pub(super) fn served(&mut self, vcpu: usize, served: Served) {
        let Served { from, to, request } = served;
        self.recorder.slice(Track::Vcpu(vcpu as u32), from, to, Trace::Interrupted { request });
    }

    /// A walk of a vCPU set flags.
    pub(super) fn flags(&mut self, vcpu: usize, at: Hpa, word: u64, now: Cycles) {
        let gpa = self.places.of(&self.format, at).map_or(u64::MAX, |(gpa, _)| gpa.raw());
        self.recorder.point(Track::Vcpu(vcpu as u32), now, Trace::HardwareFlags { gpa, word });
    }

    /// A grace period is over.
    pub(super) fn grace_period(&mut self, now: Cycles, tables: u64, woken: u64) {
        self.recorder.point(Track::Rcu, now, Trace::GracePeriod { tables, woken });
    }

    /// An actor has ended.
    pub(super) fn finished(&mut self, id: ActorId, now: Cycles) {
        self.recorder.end(self.recorder.track(id), Open::InHost, now);
    }
}

fn lock_name(lock: LockId) -> &'static str {
    match lock {
        LockId::MMU => "mmu_lock",
        LockId::SLOTS => "slots_lock",
        LockId::INVALIDATE => "mn_invalidate_lock",
        _ => "lock",
    }
}

fn mode_name(mode: LockMode) -> &'static str {
    match mode {
        LockMode::Read => "read",
        LockMode::Write => "write",
    }
}

fn wait(lock: LockId, mode: LockMode) -> Trace {
    Trace::LockWait { lock: lock_name(lock), number: lock.0, mode: mode_name(mode) }
}

impl GuestFault {
    /// `PFERR_PRESENT`, `PFERR_WRITE` and `PFERR_FETCH` of the fault (`arch/x86/include/asm/kvm_host.h`), for tracepoints that have them.
    pub(crate) fn error_code(&self) -> u64 {
        let present = u64::from(self.class == FaultClass::Permission);
        let access = match self.access {
            AccessKind::Read => 0,
            AccessKind::Write | AccessKind::ReadWrite => 1 << 1,
            AccessKind::Execute => 1 << 4,
        };
        present | access
    }
}

/// `ESR_EL2` of an abort from a lower exception level (Arm ARM D24.2.40): EC, IL, WnR, fault status code with the level.
fn esr(fault: &GuestFault, level: u64) -> u64 {
    let class = if fault.access == AccessKind::Execute { 0x20 } else { 0x24 };
    let write = u64::from(matches!(fault.access, AccessKind::Write | AccessKind::ReadWrite));
    let status = match fault.class {
        FaultClass::AddressSize => 0b00_0000,
        FaultClass::AccessFlag => 0b00_1000,
        FaultClass::Permission | FaultClass::DirtyFlag => 0b00_1100,
        FaultClass::External => 0b01_0000,
        FaultClass::NotPresent | FaultClass::Malformed => 0b00_0100,
        FaultClass::TlbConflict => 0b11_0000,
    };
    let level = if fault.class == FaultClass::TlbConflict { 0 } else { level };
    class << 26 | 1 << 25 | write << 6 | status | level
}

/// `HDSISR` (`arch/powerpc/include/asm/reg.h`): no translation, protection, store, R or C to be set.
fn hdsisr(fault: &GuestFault) -> u64 {
    let cause = match fault.class {
        FaultClass::Permission => 0x0800_0000,
        FaultClass::AccessFlag | FaultClass::DirtyFlag => 0x0004_0000,
        // POWER reports two matching entries as a machine check.
        FaultClass::NotPresent
        | FaultClass::Malformed
        | FaultClass::AddressSize
        | FaultClass::External
        | FaultClass::TlbConflict => 0x4000_0000,
    };
    let store = u64::from(matches!(fault.access, AccessKind::Write | AccessKind::ReadWrite)) * 0x0200_0000;
    cause | store
}

/// An invalidation of one partition (ISA 3.1 Book III 6.9.3.3): RB holds IS, or the page with its AP; RS the LPID.
fn tlbie(covers: &Flush, delivery: Delivery, count: u64) -> Trace {
    let rb = match covers.scope {
        FlushScope::Vm => 2 << 10,
        FlushScope::Range { start, level, .. } => {
            let ap = match level.map(mmu_core::Level::index) {
                Some(1) => PageSize::SIZE_2M,
                Some(2) => PageSize::SIZE_1G,
                _ => PageSize::SIZE_4K,
            };
            let ap = if ap == PageSize::SIZE_2M { 1 } else { u64::from(ap == PageSize::SIZE_1G) * 2 };
            start.raw() & !0xfff | ap << 5
        }
    };
    let ric = if covers.walk_caches == WalkCaches::Drop { 2 } else { 0 };
    let local = u32::from(delivery == Delivery::LocalInstruction);
    Trace::Tlbie { lpid: 1, local, rb, rs: 1, ric, prs: 0, r: 1, count }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_reported_in_each_architectures_own_words() {
        let fault = |access, class| GuestFault { gpa: Gpa::new(0), access, class };
        let write = fault(AccessKind::Write, FaultClass::Permission);
        assert_eq!(write.error_code(), 0b11);
        assert_eq!(fault(AccessKind::Execute, FaultClass::NotPresent).error_code(), 0b1_0000);
        assert_eq!(esr(&write, 3), 0x9200_004f);
        assert_eq!(esr(&fault(AccessKind::Execute, FaultClass::NotPresent), 2), 0x8200_0006);
        assert_eq!(hdsisr(&write), 0x0a00_0000);
    }
}
