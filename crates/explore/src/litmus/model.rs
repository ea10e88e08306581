//! The operational model: processors with TLBs and store buffers over one memory, as a [`System`] to explore.
//!
//! The rules (numbers as in the literature that this crate is judged by):
//!
//! 1. any processor may cache any valid translation or table pointer at any moment, and
//! 2. several versions of one address at once (both: `tlb.rs`);
//! 3. an invalidation is on its way to each target until that performs it; only the issuer's DSB waits;
//! 4. a target performs it when none of its translated stores is on its way to memory;
//! 5. invalid entries and those with a clear access flag are not cached, those that deny the access are;
//! 6. hardware sets flags by one compare-and-swap of the entry as walked. It is one step here: a failed one walks again, which is
//!    the same as having walked later;
//! 7. invalidation by intermediate address leaves what holds stage 1;
//! 8. an exclusive store succeeds only at the very word that the exclusive load has marked.
//!
//! A load translates and reads in one step. Nothing is lost by that: it could have been translated earlier only by an entry that
//! was cached then, which stays until the next invalidation, and that waits for the load. The same goes for a store with
//! sequentially consistent memory, except after a dirty update, which is seen before the store.

use mmu_core::access::AccessKind;

use super::defect::Defect;
use super::state::{Buffered, Final, Flight, Pending, Running, State};
use super::test::{
    BarrierKind, Change, Condition, Invalidation, Loc, OnFault, OpKind, Ordered, Place, Scope, Selector, Test, TlbiBy,
    TlbiOp, Value,
};
use super::translate::{After, FaultLevel, Outcome};
use crate::explorer::System;

/// How stores reach memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemoryOrder {
    /// At once.
    SequentiallyConsistent,
    /// Late and out of order, as far as barriers and addresses allow.
    StoreBuffer,
}

/// A test in a memory order, perhaps with a defect.
#[derive(Clone, Copy, Debug)]
pub struct Model<'a> {
    pub(crate) test: &'a Test,
    memory: MemoryOrder,
    defect: Option<Defect>,
}

/// One thing that happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// A thread's next operation, or a part of it.
    Step {
        /// The thread.
        thread: u8,
        /// What becomes of it.
        outcome: Outcome,
    },
    /// A buffered store reaches memory.
    Drain {
        /// The thread.
        thread: u8,
        /// Its place in the buffer.
        index: u8,
    },
    /// A target performs an invalidation.
    Perform {
        /// Its place among those on their way.
        index: u16,
        /// The target.
        target: u8,
    },
}

impl<'a> Model<'a> {
    /// A test as it is to be run.
    pub fn new(test: &'a Test, memory: MemoryOrder, defect: Option<Defect>) -> Self {
        Self { test, memory, defect }
    }

    pub(crate) fn is(&self, defect: Defect) -> bool {
        self.defect == Some(defect)
    }

    fn op(&self, state: &State, t: usize) -> Option<OpKind> {
        self.test.threads[t].ops.get(usize::from(state.threads[t].pc)).map(|op| op.kind)
    }

    /// Whether every thread has come to its end.
    pub(crate) fn finished(&self, state: &State) -> bool {
        (0..state.threads.len()).all(|t| self.op(state, t).is_none() && state.threads[t].buffer.is_empty())
            && state.pending.is_empty()
    }

    /// Whether the condition that is looked for holds.
    pub(crate) fn wanted(&self, state: &State) -> bool {
        holds(self.test, &self.test.wanted, state)
    }

    // ---- what can happen ----

    fn outcomes(&self, state: &State, t: usize, op: &OpKind, out: &mut Vec<Outcome>) {
        let running = &state.threads[t];
        if !self.ready(state, t, op) {
            return;
        }
        match (running.flight, op.place()) {
            (_, None) => out.push(Outcome::Proceed),
            (Flight::HalfUpdated { page, .. }, _) => {
                out.push(Outcome::FinishUpdate(After::Walk));
                if page.is_some() {
                    out.push(Outcome::FinishUpdate(After::Access));
                }
            }
            (Flight::Translated(loc), _) | (Flight::None, Some(Place::Word(loc))) => out.push(Outcome::Access(loc)),
            (Flight::None, Some(Place::Virtual(va))) => self.translate(state, t, va, access_kind(op), out),
        }
        out.retain(|outcome| Self::possible(running, op, outcome));
        if let OpKind::Stx { .. } = op {
            let stores = |outcome: &Outcome| match *outcome {
                Outcome::Access(loc) | Outcome::SetDirty { page: loc, .. } => running.monitor == Some(loc),
                _ => false,
            };
            if out.iter().any(stores) {
                out.push(Outcome::FailExclusive);
            }
        }
    }

    /// Whether barriers and orderings let the operation begin.
    fn ready(&self, state: &State, t: usize, op: &OpKind) -> bool {
        let buffer = &state.threads[t].buffer;
        let Ordered { acquire, release } = op.ordered();
        let releasing = |buffered: &Buffered| matches!(buffered, Buffered::Store { release: true, .. });
        if acquire && buffer.iter().any(releasing)
            || release && !matches!(op, OpKind::Write { .. }) && !buffer.is_empty()
        {
            return false;
        }
        match op {
            OpKind::Dsb(kind) => {
                let waits = !self.is(Defect::DsbDoesNotWaitTlbi);
                (*kind == BarrierKind::Loads || buffer.is_empty())
                    && !(waits && state.pending.iter().any(|pending| usize::from(pending.issuer) == t))
            }
            OpKind::Dmb(BarrierKind::Full) => buffer.is_empty(),
            _ => true,
        }
    }

    /// Whether the store buffer lets an access happen now.
    fn possible(running: &Running, op: &OpKind, outcome: &Outcome) -> bool {
        let barrier = running.buffer.contains(&Buffered::Barrier);
        match *outcome {
            Outcome::Access(loc) => match op {
                OpKind::Read { .. } | OpKind::Write { .. } => true,
                OpKind::Ldx { .. } => running.forwarded(loc).is_none(),
                _ => !barrier && running.forwarded(loc).is_none(),
            },
            Outcome::SetDirty { page, .. } => {
                !barrier && (matches!(op, OpKind::Write { .. }) || running.forwarded(page).is_none())
            }
            Outcome::SetAccessed { .. } | Outcome::BeginUpdate { .. } | Outcome::FinishUpdate(_) => !barrier,
            Outcome::Proceed | Outcome::Fault(_) | Outcome::FailExclusive => true,
        }
    }

    /// Whether a target may perform an invalidation: nothing translated before is still on its way.
    fn performs(&self, running: &Running) -> bool {
        let stores = |buffered: &Buffered| matches!(buffered, Buffered::Store { .. });
        self.is(Defect::TlbiIgnoresInflightStores)
            || running.flight == Flight::None && !running.buffer.iter().any(stores)
    }

    // ---- what happens ----

    fn step(&self, state: &mut State, t: usize, outcome: Outcome) {
        let Some(op) = self.op(state, t) else { return };
        match outcome {
            Outcome::Proceed => {
                self.proceed(state, t, &op);
                self.advance(state, t);
            }
            Outcome::Access(loc) => self.access(state, t, &op, loc),
            Outcome::Fault(level) => self.fault(state, t, level),
            Outcome::SetAccessed { entry, new } => self.write(state, t, entry, new),
            Outcome::SetDirty { entries, page } => {
                if Self::changes(state, t, &op, page) {
                    for (entry, new) in entries.into_iter().flatten() {
                        self.write(state, t, entry, new);
                    }
                }
                if matches!(op, OpKind::Write { .. }) {
                    state.threads[t].flight = Flight::Translated(page);
                } else {
                    self.access(state, t, &op, page);
                }
            }
            Outcome::BeginUpdate { entry, old, new, page } => {
                state.threads[t].flight = Flight::HalfUpdated { entry, old, new, page };
            }
            Outcome::FinishUpdate(after) => self.finish_update(state, t, after),
            Outcome::FailExclusive => {
                Self::set_status(state, t, &op, 1);
                self.advance(state, t);
            }
        }
    }

    /// Whether the access is going to store: a compare-and-swap or an exclusive store may find that it does not.
    fn changes(state: &State, t: usize, op: &OpKind, page: Loc) -> bool {
        match *op {
            OpKind::Cas { expect, .. } => state.words[usize::from(page)] == value(&state.threads[t], expect),
            OpKind::Stx { .. } => state.threads[t].monitor == Some(page),
            _ => true,
        }
    }

    fn finish_update(&self, state: &mut State, t: usize, after: After) {
        let Flight::HalfUpdated { entry, old, new, page } = state.threads[t].flight else { return };
        let merged = state.words[usize::from(entry)] & !(old & !new) | new & !old;
        let blind = self.is(Defect::HwAfTwoStep) || self.is(Defect::HwDirtyTwoStep);
        self.write(state, t, entry, if blind { new } else { merged });
        state.threads[t].flight = match (after, page) {
            (After::Access, Some(page)) => Flight::Translated(page),
            _ => Flight::None,
        };
    }

    fn proceed(&self, state: &mut State, t: usize, op: &OpKind) {
        match *op {
            OpKind::Mov { reg, value: from } => {
                let word = value(&state.threads[t], from);
                state.threads[t].regs[usize::from(reg)] = Some(word);
            }
            OpKind::SetContext { asid, vmid } => {
                let running = &mut state.threads[t];
                running.asid = asid.unwrap_or(running.asid);
                running.vmid = vmid.unwrap_or(running.vmid);
                self.fill(state, t);
            }
            OpKind::Dmb(BarrierKind::Stores) => {
                let buffer = &mut state.threads[t].buffer;
                if buffer.last().is_some_and(|last| *last != Buffered::Barrier) {
                    buffer.push(Buffered::Barrier);
                }
            }
            OpKind::Tlbi(tlbi) => self.send(state, t, &tlbi),
            _ => {}
        }
    }

    fn send(&self, state: &mut State, t: usize, tlbi: &TlbiOp) {
        let asid = tlbi.asid.unwrap_or(state.threads[t].asid);
        let selector = match tlbi.by {
            TlbiBy::Va(va) => Selector::Virtual { va, asid },
            TlbiBy::Ipa(page) => Selector::Intermediate(page),
            TlbiBy::Asid => Selector::Asid(asid),
            TlbiBy::Vmid => Selector::Vmid,
        };
        let vmid = tlbi.vmid.unwrap_or(state.threads[t].vmid);
        let what = Invalidation { stages: tlbi.stages, selector, vmid };
        for target in 0..state.threads.len() {
            if target == t || tlbi.scope == Scope::Broadcast && !self.is(Defect::BroadcastIsLocal) {
                state.send(Pending { issuer: t as u8, target: target as u8, what });
            }
        }
    }

    fn access(&self, state: &mut State, t: usize, op: &OpKind, loc: Loc) {
        let translated = matches!(op.place(), Some(Place::Virtual(_)));
        let old = state.words[usize::from(loc)];
        match *op {
            OpKind::Read { reg, .. } => {
                let running = &mut state.threads[t];
                running.regs[usize::from(reg)] = Some(running.forwarded(loc).unwrap_or(old));
            }
            OpKind::Ldx { reg, .. } => {
                let running = &mut state.threads[t];
                running.regs[usize::from(reg)] = Some(old);
                running.monitor = Some(loc);
            }
            OpKind::Write { value: from, ordered, .. } => {
                let word = value(&state.threads[t], from);
                if self.memory == MemoryOrder::StoreBuffer {
                    state.threads[t].buffer.push(Buffered::Store { loc, value: word, release: ordered.release });
                } else if translated
                    && self.is(Defect::TlbiIgnoresInflightStores)
                    && state.threads[t].flight == Flight::None
                {
                    // Only here does it matter that a store is translated before it happens.
                    state.threads[t].flight = Flight::Translated(loc);
                    return;
                } else {
                    self.write(state, t, loc, word);
                }
            }
            OpKind::Cas { expect, value: from, reg, .. } => {
                let (equal, word) = (old == value(&state.threads[t], expect), value(&state.threads[t], from));
                set(&mut state.threads[t], reg, old);
                if equal {
                    self.write(state, t, loc, word);
                }
            }
            OpKind::Rmw { change, reg, .. } => {
                let word = changed(&state.threads[t], change, old);
                set(&mut state.threads[t], reg, old);
                self.write(state, t, loc, word);
            }
            OpKind::Stx { value: from, .. } => {
                let word = value(&state.threads[t], from);
                let stores = state.threads[t].monitor == Some(loc);
                if stores {
                    self.write(state, t, loc, word);
                }
                Self::set_status(state, t, op, u64::from(!stores));
            }
            _ => {}
        }
        self.advance(state, t);
    }

    fn set_status(state: &mut State, t: usize, op: &OpKind, word: u64) {
        if let OpKind::Stx { status, .. } = *op {
            set(&mut state.threads[t], status, word);
            state.threads[t].monitor = None;
        }
    }

    fn fault(&self, state: &mut State, t: usize, level: FaultLevel) {
        let running = &mut state.threads[t];
        running.faults |= 1 << running.pc;
        let assignments = match &self.test.threads[t].on_fault {
            OnFault::Stop => {
                running.pc = self.test.threads[t].ops.len() as u8;
                running.monitor = None;
                return self.fill(state, t);
            }
            OnFault::Set(assignments) => assignments,
            OnFault::ByLevel { level2, .. } if level == FaultLevel::Two => level2,
            OnFault::ByLevel { level3, .. } => level3,
        };
        for &(reg, word) in assignments {
            running.regs[usize::from(reg)] = Some(word);
        }
        self.advance(state, t);
    }

    /// A word of memory changes: others lose their marks on it, and TLBs see a new entry.
    fn write(&self, state: &mut State, t: usize, loc: Loc, word: u64) {
        state.words[usize::from(loc)] = word;
        for (other, running) in state.threads.iter_mut().enumerate() {
            if other != t && running.monitor == Some(loc) {
                running.monitor = None;
            }
        }
        if self.test.layout.is_entry(loc) {
            (0..state.threads.len()).for_each(|t| self.fill(state, t));
        }
    }

    /// On to the next operation.
    fn advance(&self, state: &mut State, t: usize) {
        let needs = &self.test.threads[t].needs;
        let running = &mut state.threads[t];
        running.flight = Flight::None;
        running.pc += 1;
        let pc = usize::from(running.pc);
        if pc == self.test.threads[t].ops.len() {
            running.monitor = None;
        }
        if needs[pc] != needs[pc - 1] {
            self.fill(state, t);
        }
    }

    fn drain(&self, state: &mut State, t: usize, index: usize) {
        let buffer = &mut state.threads[t].buffer;
        let Buffered::Store { loc, value, .. } = buffer.remove(index) else { return };
        // A barrier with nothing in front of it has done its work, and two are as good as one.
        let mut last = Buffered::Barrier;
        buffer.retain(|buffered| {
            let keep = !(last == Buffered::Barrier && *buffered == Buffered::Barrier);
            last = *buffered;
            keep
        });
        if buffer.last() == Some(&Buffered::Barrier) && buffer.len() == 1 {
            buffer.clear();
        }
        self.write(state, t, loc, value);
    }
}

impl System for Model<'_> {
    type State = TestState;
    type Decision = Decision;

    fn initial(&self) -> TestState {
        let threads = self.test.threads.iter().map(|thread| Running {
            pc: 0,
            asid: thread.asid,
            vmid: thread.vmid,
            regs: thread.regs.clone(),
            faults: 0,
            buffer: Vec::new(),
            monitor: None,
            flight: Flight::None,
            tlb: Vec::new(),
        });
        let mut state =
            State { words: self.test.layout.initial.clone(), threads: threads.collect(), pending: Vec::new() };
        (0..state.threads.len()).for_each(|t| self.fill(&mut state, t));
        TestState(state)
    }

    fn decisions(&self, TestState(state): &TestState, out: &mut Vec<Decision>) {
        let mut outcomes = Vec::new();
        for (t, running) in state.threads.iter().enumerate() {
            if let Some(op) = self.op(state, t) {
                outcomes.clear();
                self.outcomes(state, t, &op, &mut outcomes);
                out.extend(outcomes.iter().map(|&outcome| Decision::Step { thread: t as u8, outcome }));
            }
            let drains = (0..running.buffer.len()).filter(|&index| running.may_drain(index));
            out.extend(drains.map(|index| Decision::Drain { thread: t as u8, index: index as u8 }));
        }
        for (index, pending) in state.pending.iter().enumerate() {
            if self.performs(&state.threads[usize::from(pending.target)]) {
                out.push(Decision::Perform { index: index as u16, target: pending.target });
            }
        }
    }

    fn apply(&self, TestState(state): &mut TestState, decision: &Decision) {
        match *decision {
            Decision::Step { thread, outcome } => self.step(state, usize::from(thread), outcome),
            Decision::Drain { thread, index } => self.drain(state, usize::from(thread), usize::from(index)),
            Decision::Perform { index, target } => {
                let pending = state.pending.remove(usize::from(index));
                self.invalidate(state, usize::from(target), &pending.what);
            }
        }
    }

    /// Two kinds of decisions are taken alone.
    ///
    /// *Persistent*: an operation that touches nothing but its thread's registers, place and barriers, and a DSB or DMB that may
    /// go on (whatever it waited for, nobody else brings it back), and sending an invalidation (which nobody's step can see
    /// before somebody performs it).
    ///
    /// *Dominating*: performing an invalidation that leaves the target's TLB as it is. Performing it later can only remove more,
    /// a fuller TLB can do all that an emptier one can, and the DSB waits less.
    fn ample(&self, TestState(state): &TestState, decisions: &[Decision]) -> Option<usize> {
        decisions.iter().position(|decision| match *decision {
            Decision::Step { thread, outcome: Outcome::Proceed } => {
                !matches!(self.op(state, usize::from(thread)), Some(OpKind::SetContext { .. }))
            }
            Decision::Step { .. } | Decision::Drain { .. } => false,
            Decision::Perform { index, target } => {
                let target = usize::from(target);
                if state.threads[target].tlb.is_empty() {
                    return true;
                }
                let mut after = state.clone();
                self.invalidate(&mut after, target, &state.pending[usize::from(index)].what);
                after.threads[target].tlb == state.threads[target].tlb
            }
        })
    }
}

/// A state of the model.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TestState(pub(crate) State);

/// Whether a condition holds at the end of an execution of a test.
pub(crate) fn holds(test: &Test, condition: &Condition, last: &impl Final) -> bool {
    let reg = |thread: u8, reg: Option<u8>| {
        reg.and_then(|reg| last.thread(usize::from(thread)).0.get(usize::from(reg)).copied().flatten())
    };
    match condition {
        Condition::And(parts) => parts.iter().all(|part| holds(test, part, last)),
        Condition::Or(parts) => parts.iter().any(|part| holds(test, part, last)),
        Condition::Not(inner) => !holds(test, inner, last),
        Condition::Reg { thread, reg: number, value } => reg(*thread, *number) == Some(*value),
        Condition::RegEntry { thread, reg: number, entry } => {
            reg(*thread, *number).is_some_and(|word| entry.matches(&test.words, word))
        }
        Condition::Word { loc, value } => last.words()[usize::from(*loc)] == *value,
        Condition::Entry { loc, entry } => entry.matches(&test.words, last.words()[usize::from(*loc)]),
        Condition::Fault { thread, ops } => last.thread(usize::from(*thread)).1 & ops != 0,
    }
}

fn access_kind(op: &OpKind) -> AccessKind {
    match op {
        OpKind::Write { .. } | OpKind::Stx { .. } => AccessKind::Write,
        OpKind::Cas { .. } | OpKind::Rmw { .. } => AccessKind::ReadWrite,
        _ => AccessKind::Read,
    }
}

/// A register that was never set reads as 0.
fn value(running: &Running, value: Value) -> u64 {
    match value {
        Value::Word(word) => word,
        Value::Reg(reg) => running.regs[usize::from(reg)].unwrap_or(0),
    }
}

fn set(running: &mut Running, reg: Option<u8>, word: u64) {
    if let Some(reg) = reg {
        running.regs[usize::from(reg)] = Some(word);
    }
}

fn changed(running: &Running, change: Change, old: u64) -> u64 {
    match change {
        Change::Swap(word) => value(running, word),
        Change::Add(word) => old.wrapping_add(value(running, word)),
        Change::SetBits(word) => old | value(running, word),
        Change::ClearBits(word) => old & !value(running, word),
        Change::Exactly { clear, set } => old & !clear | set,
    }
}
