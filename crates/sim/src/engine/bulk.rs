//! Operations on runs: n entries at once, with the cycles, counters and stopping places of n single entries.
//!
//! The proof is a property test (`tests/runs.rs`): every strategy, done whole and entry by entry, leaves the same words,
//! clocks and counters.

use mmu_core::memory::{Masks, Progression};
use mmu_core::{Bytes, Cycles, Format, Hpa, HpaRange, Level};

use super::actor::ActorState;
use super::op::{Apply, Atomicity, Frames, RemoveSubtrees, ReschedCheck, RunBelow, RunOp, Work};
use super::primary::{Handover, PageState};
use super::vcpu::{Mode, Vcpu};
use super::world::{Horizon, Runs, World};
use crate::arch::Arch;
use crate::checker::Violation;

impl<A: Arch> World<A> {
    /// Cycles of an entry: reading it and asking whether to reschedule; and its work, which may write it.
    pub(super) fn entry_costs(
        &self,
        check: ReschedCheck,
        update: Option<Atomicity>,
        work: Option<Work>,
    ) -> (Cycles, Cycles) {
        let check = match check {
            ReschedCheck::EachEntry | ReschedCheck::BehindEach => self.costs.resched_check,
            ReschedCheck::Never => Cycles::ZERO,
        };
        let update = match update {
            None => Cycles::ZERO,
            Some(Atomicity::Plain) => self.costs.store,
            Some(Atomicity::Atomic | Atomicity::IfStill(_)) => self.costs.atomic,
        };
        (self.costs.visit + check, update + work.map_or(Cycles::ZERO, |work| self.cost_of(work)))
    }

    /// The same of an entry of a run after the first.
    fn run_costs(&self, run: &RunOp) -> (Cycles, Cycles) {
        let update = (run.apply != Apply::Nothing).then_some(run.atomicity);
        let (look, work) = self.entry_costs(run.check, update, run.work);
        // A private table is filled without a look at it.
        let fills = matches!(run.apply, Apply::Fill { .. });
        (if fills { Cycles::ZERO } else { look }, work)
    }

    /// How long after the work on an entry the loop has its answer whether to reschedule: it reads the next entry before it asks, or afterwards.
    fn answered(&self, check: ReschedCheck, overhead: Cycles) -> Cycles {
        match check {
            ReschedCheck::EachEntry => overhead,
            ReschedCheck::BehindEach => overhead.min(self.costs.resched_check),
            ReschedCheck::Never => Cycles::ZERO,
        }
    }

    /// How many entries of a run can be done before something else has to happen. The first entry was read by the caller, and checked if that comes first;
    /// entry j+1 is begun only if that happens before the horizon, and the rescheduling check in front of it must not find the time slice over or the lock
    /// contended.
    fn run_length(&self, run: &RunOp, actor: &ActorState, horizon: Horizon) -> u64 {
        let (overhead, work) = self.run_costs(run);
        let unit = overhead + work;
        if run.len <= 1 || unit == Cycles::ZERO {
            return run.len.max(1);
        }
        // Every operation of an entry begins before the horizon, the work after the read and the check.
        let mut limit = Cycles(horizon.until.0.saturating_sub(overhead.0));
        if run.check != ReschedCheck::Never {
            if self.locks.iter().any(|lock| lock.is_held_by(actor.id) && lock.is_contended()) {
                return 1;
            }
            // The answer must fall into this slice.
            let answered = self.answered(run.check, overhead);
            limit = limit.min(Cycles(self.slice_end(actor).0.saturating_sub(answered.0)));
        }
        // Entry j (from 0) begins at now + work + (j - 1) * unit and must begin before `limit`.
        let room = limit.0.saturating_sub((actor.now + work).0);
        (1 + room.div_ceil(unit.0)).min(run.len)
    }

    pub(super) fn run(&mut self, run: RunOp, actor: &mut ActorState, horizon: Horizon) -> u64 {
        if let Atomicity::IfStill(old) = run.atomicity
            && self.tables.read(run.at).is_ok_and(|word| word != old)
        {
            actor.now += self.costs.atomic;
            return 0;
        }
        let fills = matches!(run.apply, Apply::Fill { .. });
        let n = if fills && self.runs == Runs::Single { 1 } else { self.run_length(&run, actor, horizon) };
        let (overhead, work) = self.run_costs(&run);
        if run.work == Some(Work::ReleaseLeaf) {
            self.hand_over(run.at, n, actor);
        }
        let outcome = match run.apply {
            Apply::Nothing => Ok(()),
            Apply::Set(word) => self.tables.fill_run(run.at, n, Progression::constant(word)),
            Apply::Fill { first, step } => self.tables.fill_run(run.at, n, Progression { first, step }),
            Apply::Mask { and, or } => self.tables.map_run(run.at, n, Masks { keep: and, set: or }).map(drop),
        };
        if let Err(fault) = outcome {
            let (at, moment) = (run.at, actor.now);
            self.checker.report(Violation::TableUse { at, fault, actor: Some(actor.id), moment });
        }
        self.counters.visits += if fills { 0 } else { n - 1 };
        if run.work == Some(Work::ReleaseLeaf) {
            self.counters.zapped_leaves += n;
        }
        let start = actor.now;
        actor.now += work.times(n) + overhead.times(n - 1);
        if run.check != ReschedCheck::Never && n > 1 {
            let longest = if n > 2 { overhead + work } else { Cycles::ZERO };
            let answered = self.answered(run.check, overhead);
            let first = (start + work + answered).since(actor.scheduled);
            actor.checked(first, longest, overhead.since(answered) + work);
        }
        n
    }

    /// Leaves are about to go: what they know of their pages is handed over. `len` entries from `at` on, as many stretches as
    /// there are runs.
    fn hand_over(&mut self, at: Hpa, len: u64, actor: &ActorState) {
        let two = *self.arch.two();
        let Ok(level) = self.tables.level(at) else { return };
        let page = two.geometry().page_size(level).bytes();
        let mut done = 0;
        while done < len {
            let Ok(run) = self.tables.run_at(at + 8 * done, len - done) else { return };
            done += run.len.max(1);
            if !two.is_mapped(run.first) || !two.is_leaf(level, run.first) {
                continue;
            }
            // Pages follow each other as words do; words that do not step by a page are looked at one by one.
            let (pages, repeats) = if run.step == page { (run.len, 1) } else { (1, run.len) };
            for i in 0..repeats {
                let word = run.first.wrapping_add(run.step.wrapping_mul(i));
                let range = HpaRange::new(two.output(level, word), Bytes(pages * page));
                self.mark_pages(range, self.known_by(word), actor);
            }
        }
    }

    /// What a leaf knows of its page. Where hardware keeps no dirty state, being writable stands for it.
    pub(super) fn known_by(&self, word: u64) -> PageState {
        let two = self.arch.two();
        let dirty = match two.dirty_mask() {
            0 => two.is_writable(word),
            mask => word & mask != 0,
        };
        let accessed = self.handover == Handover::AccessedAndDirty && two.mark_young(word).is_none();
        PageState { accessed: accessed.into(), dirty: dirty.into() }
    }

    /// How many of `len` table entries from `at` on point to consecutive last-level tables whose words are all in one
    /// progression, where the first word is and what it says.
    pub(super) fn uniform_tables(&self, at: Hpa, len: u64, level: Level) -> Option<UniformTables> {
        let two = self.arch.two();
        let leaf_level = level.down()?;
        let (entries, bytes) = (two.geometry().entries(leaf_level) as u64, two.geometry().table_bytes(leaf_level));
        let parents = self.tables.run_at(at, len).ok()?;
        let tables = if parents.len > 1 && parents.step == bytes { parents.len } else { 1 };
        let first = two.next_table(level, parents.first);
        let words = self.tables.run_at(first, entries * tables).ok()?;
        let holds = match (two.is_mapped(words.first), two.is_leaf(leaf_level, words.first)) {
            (true, true) => Holds::Leaves,
            (true, false) => return None,
            (false, _) => Holds::Nothing,
        };
        let (tables, word, step) = (words.len / entries, words.first, words.step);
        Some(UniformTables { first, tables, entries, word, step, holds })
    }

    /// Leaf work below table entries, in the order of a walk over single entries: each table entry is read, checked, read again
    /// on the way down; each leaf is read, checked and worked on.
    pub(super) fn run_below(&mut self, run: &RunBelow, actor: &mut ActorState, horizon: Horizon) -> u64 {
        if self.runs == Runs::Single {
            return 0;
        }
        let leaf_run = RunOp {
            at: run.at,
            len: 1,
            apply: run.apply,
            atomicity: Atomicity::Atomic,
            work: run.work,
            check: run.check,
        };
        let (overhead, work) = self.run_costs(&leaf_run);
        let leaf = overhead + work;
        // Its own read and check, then the read on the way down.
        let table = overhead + self.costs.visit + leaf.times(self.leaf_entries());
        // All of it ends before the limit: so does every read, check and piece of work.
        let Some(limit) = self.undisturbed_until(run.check, actor, horizon) else { return 0 };
        let room = (limit.since(actor.now) + overhead).0.saturating_sub(1) / table.0.max(1);
        // No more is looked at than can be done.
        let len = run.len.min(if limit == Cycles::NEVER { u64::MAX } else { room });
        if len == 0 {
            return 0;
        }
        let Some(UniformTables { first, tables, entries, holds: Holds::Leaves, .. }) =
            self.uniform_tables(run.at, len, run.level)
        else {
            return 0;
        };
        let n = tables.min(len);
        if n == 0 {
            return 0;
        }
        let spent = table.times(n).since(overhead);
        if run.work == Some(Work::ReleaseLeaf) {
            self.hand_over(first, n * entries, actor);
        }
        let done = match run.apply {
            Apply::Nothing => Ok(()),
            Apply::Set(word) => self.tables.fill_run(first, n * entries, Progression::constant(word)),
            Apply::Mask { and, or } => self.tables.map_run(first, n * entries, Masks { keep: and, set: or }).map(drop),
            // A fill has no entries to go down to.
            Apply::Fill { .. } => return 0,
        };
        if done.is_err() {
            return 0;
        }
        self.counters.visits += n * (2 + entries) - 1;
        if run.work == Some(Work::ReleaseLeaf) {
            self.counters.zapped_leaves += n * entries;
        }
        let start = actor.now;
        actor.now += spent;
        if run.check == ReschedCheck::EachEntry {
            // The first leaf is checked after it was read, which is after its table entry was read again.
            let first = (start + self.costs.visit + overhead).since(actor.scheduled);
            actor.checked(first, leaf, work);
        }
        n
    }

    /// Until when a loop under locks that asks first, if it asks, runs without being asked to give way; `None`: it is being asked already, or asks behind its
    /// work.
    pub(super) fn undisturbed_until(
        &self,
        check: ReschedCheck,
        actor: &ActorState,
        horizon: Horizon,
    ) -> Option<Cycles> {
        match check {
            ReschedCheck::Never => return Some(horizon.until),
            ReschedCheck::BehindEach => return None,
            ReschedCheck::EachEntry => {}
        }
        let contended = self.locks.iter().any(|lock| lock.is_held_by(actor.id) && lock.is_contended());
        (!contended).then(|| horizon.until.min(self.slice_end(actor)))
    }

    /// Entries of a last-level table.
    fn leaf_entries(&self) -> u64 {
        self.arch.two().geometry().entries(Level::LAST) as u64
    }

    /// The subtrees below uniform table entries, torn down as the loop over single entries would: each entry of each table is
    /// visited and replaced, each leaf's state released, each table retired through RCU. Replies how many table entries that was.
    pub(super) fn remove_subtrees(
        &mut self,
        remove: &RemoveSubtrees,
        actor: &mut ActorState,
        horizon: Horizon,
        vcpus: &mut [Vcpu<A>],
    ) -> u64 {
        let Some(leaf_level) = remove.level.down() else { return 0 };
        if self.runs == Runs::Single {
            return 0;
        }
        let Some(one) = self.uniform_tables(remove.at, 1, remove.level) else { return 0 };
        let (overhead, work) = self.removal_costs(remove, &one);
        let work = match remove.flush {
            None => work,
            // Somebody who runs guest code has to answer, each time at his own moment.
            Some(_) if vcpus.iter().any(|vcpu| vcpu.mode == Mode::Guest) => return 0,
            Some(flush) if self.waits_for_interconnect(flush, actor.now) => return 0,
            Some(flush) => work + self.unanswered_flush_cost(flush),
        };
        let unit = overhead + work;
        let Some(limit) = self.undisturbed_until(remove.check, actor, horizon) else { return 0 };
        // The first table entry has been read and checked by the caller; all of the rest ends before the limit. No more is looked at
        // than can be done.
        let room = (limit.since(actor.now) + overhead).0.saturating_sub(1) / unit.0.max(1);
        let len = remove.len.min(room);
        if len == 0 {
            return 0;
        }
        let Some(below) = self.uniform_tables(remove.at, len, remove.level) else { return 0 };
        let n = below.tables.min(len);
        if n == 0 {
            return 0;
        }
        if below.holds == Holds::Leaves {
            self.hand_over(below.first, below.entries * n, actor);
        }
        let (parent, child) = (Progression::constant(remove.unlinked), Progression::constant(remove.marker));
        let filled = self.tables.fill_run(remove.at, n, parent).and_then(|()| match below.replaced(remove) {
            Replaced::Kept => Ok(()),
            Replaced::ByMarker => self.tables.fill_run(below.first, below.entries * n, child),
        });
        if filled.is_err() {
            return 0;
        }
        self.counters.visits += n * (1 + below.entries) - 1;
        if below.holds == Holds::Leaves {
            self.counters.zapped_leaves += n * below.entries;
        }
        self.counters.zapped_tables += n;
        if let Some(flush) = remove.flush {
            self.count_unanswered_flushes(flush, n, vcpus);
        }
        let start = actor.now;
        actor.now += unit.times(n).since(overhead);
        if remove.check == ReschedCheck::EachEntry && n > 1 {
            let first = (start + unit).since(actor.scheduled);
            actor.checked(first, unit, work);
        }
        let bytes = self.arch.two().geometry().table_bytes(leaf_level);
        let frames = Frames { first: below.first, count: n, level: leaf_level, bytes };
        self.rcu.retire(frames, actor.now, self.costs.rcu_grace);
        n
    }

    /// One table entry - reading it and asking to reschedule, then the rest - and what lies below it.
    fn removal_costs(&self, remove: &RemoveSubtrees, below: &UniformTables) -> (Cycles, Cycles) {
        let (look, unlink) = self.entry_costs(remove.check, Some(Atomicity::Atomic), None);
        let entry = match (below.holds, below.replaced(remove)) {
            // Leaves have accessed and dirty state that hardware may still write: always exchanged atomically.
            (Holds::Leaves, _) => self.costs.visit + self.costs.atomic + self.costs.release_leaf,
            (Holds::Nothing, Replaced::ByMarker) => self.costs.visit + self.costs.atomic,
            (Holds::Nothing, Replaced::Kept) => self.costs.visit,
        };
        (look, unlink + entry.times(below.entries))
    }
}

/// Consecutive last-level tables whose words are all alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct UniformTables {
    /// First word of the first table.
    pub(super) first: Hpa,
    /// How many tables.
    pub(super) tables: u64,
    /// Entries of each.
    pub(super) entries: u64,
    /// The first word.
    pub(super) word: u64,
    /// What each word adds to the one before it.
    pub(super) step: u64,
    pub(super) holds: Holds,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Holds {
    Leaves,
    Nothing,
}

/// What happens to the words of a table that is torn down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Replaced {
    Kept,
    ByMarker,
}

impl UniformTables {
    /// Entries that map nothing are left alone unless a walker might still install something there.
    fn replaced(&self, remove: &RemoveSubtrees) -> Replaced {
        match (self.holds, remove.marker) {
            (Holds::Nothing, 0) => Replaced::Kept,
            _ => Replaced::ByMarker,
        }
    }
}
