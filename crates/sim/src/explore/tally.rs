//! What an execution amounts to in numbers, and what is held to a bound while it runs: waiting, statistics of pages.
//!
//! Explorations know no time, so latency is counted in steps: of one actor between breaking an entry and making it again, and of those who hold a
//! lock while somebody cannot have it. A wait ends when the lock is free, whether or not the waiter is chosen then: otherwise any
//! scenario would starve somebody.

use std::hash::Hash;

use mmu_core::{Format, Hpa, NotPresent};

use super::decision::Agent;
use super::digest::Mix;
use super::invariant::Invariant;
use super::lab::{Lab, Pending};
use super::limits::Statistics;
use super::scenario::Ended;
use super::words::Life;
use crate::arch::Arch;
use crate::engine::{LockId, Op, Var};

/// What is counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) vm_flushes: u64,
    pub(crate) needless_atomics: u64,
    longest_break: u64,
    locks_in_vain: u64,
    /// Leaves that there are, by what was installed and booked away.
    pub(crate) leaves: i64,
    /// Steps of each actor.
    steps: [u64; Agent::MOST_ACTORS],
    /// Entries that are broken: where, by whom, at which of his steps.
    broken: Vec<(Hpa, usize, u64)>,
}

impl Tally {
    /// Adds what the end, or a bound, depends on; steps of an actor follow from its answers.
    pub(crate) fn mix(&self, mix: &mut Mix) {
        (self.vm_flushes, self.needless_atomics, self.longest_break, self.locks_in_vain, self.leaves).hash(mix);
        mix.add_unordered(&self.broken);
    }
}

impl<A: Arch> Lab<A> {
    /// Executions begin.
    pub(crate) fn reset_tally(&mut self) {
        self.tally = Tally::default();
        if self.limits.statistics == Statistics::Booked {
            self.tally.leaves = self.leaves_present() as i64;
        }
    }

    pub(crate) fn ended(&self) -> Ended {
        let (counters, tally) = (&self.counters, &self.tally);
        Ended {
            retried_faults: counters.retried_faults,
            remote_flushes: counters.remote_flushes,
            zapped_leaves: counters.zapped_leaves,
            vm_flushes: tally.vm_flushes,
            tables_allocated: counters.tables_allocated,
            cleaned_bytes: counters.cleaned_bytes,
            needless_atomics: tally.needless_atomics,
            longest_break: tally.longest_break,
            locks_in_vain: tally.locks_in_vain,
        }
    }

    /// The acting actor makes a step.
    pub(crate) fn count_step(&mut self, op: &Op) {
        let me = self.me();
        if let Some(steps) = self.tally.steps.get_mut(me) {
            *steps += 1;
        }
        if let Op::Lock(LockId::MMU, _) = op
            && self.hands[me].vcpu.is_some()
            && self.words.peek(self.var(Var::IN_PROGRESS)) != 0
        {
            self.tally.locks_in_vain += 1;
        }
        self.check_waits(me, op);
    }

    /// P6: who waits for a lock does not wait for too many steps of who holds it.
    fn check_waits(&mut self, me: usize, op: &Op) {
        let Some(super::limits::Wait { steps: bound, of }) = self.limits.wait else { return };
        for number in 0..self.hands.len() {
            let Pending::Op(Op::Lock(lock, mode)) = self.hands[number].pending else { continue };
            if number == me || !of.include(self.hands[number].name) {
                continue;
            }
            let held = &self.locks[lock.0 as usize];
            let waited = match (self.admits(lock, mode), held.held_by(me)) {
                (true, _) => 0,
                (false, true) => self.hands[number].waited + self.steps_of(op),
                (false, false) => self.hands[number].waited,
            };
            self.hands[number].waited = waited;
            self.hold(Invariant::P6, waited <= bound, |lab| {
                let (waits, holds) = (lab.hands[number].name, lab.hands[me].name);
                format!("{waits} has waited for {waited} steps of those who hold its lock, {holds} last; {bound} are allowed")
            });
        }
        if let Op::Lock(..) = op
            && of.include(self.hands[me].name)
        {
            self.hold(Invariant::P6, self.hands[me].waited <= bound, |_| String::new());
            self.hands[me].waited = 0;
        }
    }

    /// What an operation counts for who waits: an entry is one step.
    fn steps_of(&self, op: &Op) -> u64 {
        match op {
            // Mappings are done one by one.
            Op::Run(run) if !self.format.is_mapped(self.words.peek(run.at)) => run.len,
            Op::Lock(..) => 0,
            _ => 1,
        }
    }

    /// A word of an entry becomes another one.
    pub(crate) fn count_write(&mut self, at: Hpa, len: u64, old: u64, new: u64) {
        let format = self.format;
        let Some(frame) = self.words.frame(at).copied() else { return };
        let leaf = |word: u64| format.is_mapped(word) && format.is_leaf(frame.level, word);
        match (leaf(old), leaf(new)) {
            (false, true) => self.tally.leaves += len as i64,
            // A table that says the same takes its place: its leaves were counted when they were filled.
            (true, false) if format.is_mapped(new) => self.tally.leaves -= len as i64,
            _ => {}
        }
        let Ok(frozen) = format.encode_not_present(NotPresent::Frozen) else { return };
        let me = self.me();
        let Some(&now) = self.tally.steps.get(me) else { return };
        if new == frozen && format.is_mapped(old) && frame.life == Life::Linked {
            self.tally.broken.push((at, me, now));
        } else if old == frozen {
            let since =
                self.tally.broken.iter().find(|(place, who, _)| (*place, *who) == (at, me)).map(|entry| entry.2);
            self.tally.broken.retain(|(place, ..)| *place != at);
            if let Some(since) = since.filter(|_| format.is_mapped(new)) {
                self.tally.longest_break = self.tally.longest_break.max(now - since);
            }
        }
    }

    /// An atomic update of an entry that needed none: the actor is alone, and neither hardware nor a fault without a lock has anything to change.
    pub(crate) fn count_atomic(&mut self, at: Hpa, word: u64) {
        let format = self.format;
        let Some(frame) = self.words.frame(at).copied() else { return };
        let alone = self.locks[LockId::MMU.0 as usize].writer == Some(self.me() as u8);
        if !alone || !format.is_mapped(word) || !format.is_leaf(frame.level, word) {
            return;
        }
        let tracked = format.hardware_dirty() && format.dirty_mask() != 0;
        let dirties = tracked && format.is_writable(word) && word & format.dirty_mask() == 0;
        let mended = !format.is_writable(word) && format.restore_write(word).is_some();
        let volatile = format.mark_young(word).is_some() || dirties || mended;
        self.tally.needless_atomics += u64::from(!volatile);
    }

    fn leaves_present(&self) -> u64 {
        let (format, root) = (&self.format, self.format.geometry().root());
        let frames = self.words.frames().iter().filter(|frame| frame.level <= root && frame.live > 0);
        let lives = frames.filter(|frame| matches!(frame.life, Life::Private | Life::Linked));
        let leaves = |frame: &super::words::Frame| {
            let words = (0..u64::from(frame.words)).map(|index| self.words.peek(frame.first + 8 * index));
            words.filter(|&word| format.is_mapped(word) && format.is_leaf(frame.level, word)).count() as u64
        };
        lives.map(leaves).sum()
    }

    /// N1: what was installed and booked away is what is there.
    pub(crate) fn check_statistics(&mut self) {
        if self.limits.statistics == Statistics::Loose {
            return;
        }
        let (there, booked) = (self.leaves_present() as i64, self.tally.leaves);
        self.hold(Invariant::N1, there == booked, |_| {
            format!("by the statistics {booked} leaves are mapped, and the tables hold {there}")
        });
    }
}
