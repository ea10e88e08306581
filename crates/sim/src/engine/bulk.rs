//! Operations on runs: n entries at once, with the cycles, counters and stopping places of n single entries.
//!
//! The proof is a property test (`tests/runs.rs`): every strategy, done whole and entry by entry, leaves the same words,
//! clocks and counters.

use mmu_core::memory::{Masks, Progression, TableFault};
use mmu_core::{Bytes, Cycles, Format, Hpa, HpaRange};

use super::actor::ActorState;
use super::alike::{Alike, Holds, Storey};
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
    pub(super) fn hand_over(&mut self, at: Hpa, len: u64, actor: &ActorState) {
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
        // All of it ends before the limit: so does every read, check and piece of work. No more is looked at than can be done.
        let Some(limit) = self.undisturbed_until(run.check, actor, horizon) else { return 0 };
        let most = self.full_walk(run.level, overhead, leaf);
        let room = (limit.since(actor.now) + overhead).0.saturating_sub(1) / most.0.max(1);
        let len = run.len.min(if limit == Cycles::NEVER { u64::MAX } else { room });
        if len == 0 {
            return 0;
        }
        let Some(below) = self.alike_below(run.at, len, run.level).filter(|below| below.holds == Holds::Leaves) else {
            return 0;
        };
        let (n, lowest) = (below.entries.min(len), below.lowest());
        let (first, leaves) = (lowest.first, n * lowest.words());
        if run.work == Some(Work::ReleaseLeaf) {
            self.hand_over(first, leaves, actor);
        }
        let done = match run.apply {
            Apply::Nothing => Ok(()),
            Apply::Set(word) => self.tables.fill_run(first, leaves, Progression::constant(word)),
            Apply::Mask { and, or } => self.tables.map_run(first, leaves, Masks { keep: and, set: or }).map(drop),
            // A fill has no entries to go down to.
            Apply::Fill { .. } => return 0,
        };
        if done.is_err() {
            return 0;
        }
        self.counters.visits += n * below.walk_visits() - 1;
        if run.work == Some(Work::ReleaseLeaf) {
            self.counters.zapped_leaves += leaves;
        }
        let start = actor.now;
        // Its own read and check are the caller's.
        actor.now += below.walk(overhead, self.costs.visit, leaf).times(n).since(overhead);
        if run.check == ReschedCheck::EachEntry {
            // The first entry below is checked after it was read, which is after the one above it was read again.
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

    /// The subtrees below table entries, torn down as the loop over single entries would: each entry of each table is visited and
    /// replaced, each leaf's state released, each table retired through RCU. Replies how many table entries that was.
    pub(super) fn remove_subtrees(
        &mut self,
        remove: &RemoveSubtrees,
        actor: &mut ActorState,
        horizon: Horizon,
        vcpus: &mut [Vcpu<A>],
    ) -> u64 {
        if self.runs == Runs::Single {
            return 0;
        }
        let Some(one) = self.alike_below(remove.at, 1, remove.level) else { return 0 };
        let flush = match remove.flush {
            None => Cycles::ZERO,
            // Somebody who runs guest code has to answer, each time at his own moment.
            Some(_) if vcpus.iter().any(|vcpu| vcpu.mode == Mode::Guest) => return 0,
            Some(flush) if self.waits_for_interconnect(flush, actor.now) => return 0,
            Some(flush) => self.unanswered_flush_cost(flush),
        };
        let (overhead, work) = self.removal_costs(remove, &one, flush);
        let unit = overhead + work;
        let Some(limit) = self.undisturbed_until(remove.check, actor, horizon) else { return 0 };
        // The first table entry has been read and checked by the caller; all of the rest ends before the limit. No more is looked at
        // than can be done.
        let room = (limit.since(actor.now) + overhead).0.saturating_sub(1) / unit.0.max(1);
        let len = remove.len.min(room);
        if len == 0 {
            return 0;
        }
        let Some(below) = self.alike_below(remove.at, len, remove.level) else { return 0 };
        let n = below.entries.min(len);
        if self.unlink_alike(remove, &below, n, actor).is_err() {
            return 0;
        }
        self.counters.visits += n * below.teardown_visits() - 1;
        if let Some(flush) = remove.flush {
            self.count_unanswered_flushes(flush, n * below.tables(), vcpus);
        }
        let start = actor.now;
        actor.now += unit.times(n).since(overhead);
        if remove.check == ReschedCheck::EachEntry && n > 1 {
            let first = (start + unit).since(actor.scheduled);
            actor.checked(first, unit, work);
        }
        for frames in self.frames_below(&below, n) {
            self.counters.zapped_tables += frames.count;
            self.rcu.retire(frames, actor.now, self.costs.rcu_grace);
        }
        n
    }

    /// The words of `n` alike subtrees and of the entries above them are replaced, and what leaves know handed over.
    pub(super) fn unlink_alike(
        &mut self,
        remove: &RemoveSubtrees,
        below: &Alike,
        n: u64,
        actor: &ActorState,
    ) -> Result<(), TableFault> {
        let lowest = below.lowest();
        if below.holds == Holds::Leaves {
            self.hand_over(lowest.first, n * lowest.words(), actor);
            self.counters.zapped_leaves += n * lowest.words();
        }
        self.tables.fill_run(remove.at, n, Progression::constant(remove.unlinked))?;
        let links = below.storeys().len() - 1;
        let kept = below.replaced(remove) == Replaced::Kept;
        for storey in &below.storeys()[..links + usize::from(!kept)] {
            self.tables.fill_run(storey.first, n * storey.words(), Progression::constant(remove.marker))?;
        }
        Ok(())
    }

    /// The tables of `n` alike subtrees, the lowest first, as a teardown retires them.
    pub(super) fn frames_below(&self, below: &Alike, n: u64) -> impl Iterator<Item = Frames> + use<A> {
        let (below, geometry) = (*below, *self.arch.two().geometry());
        (0..below.storeys().len()).rev().map(move |i| {
            let Storey { first, level, tables, .. } = below.storeys()[i];
            Frames { first, count: n * tables, level, bytes: geometry.table_bytes(level) }
        })
    }

    /// One table entry - reading it and asking to reschedule, then the rest - and what lies below it, where each table's end costs `flush`.
    pub(super) fn removal_costs(&self, remove: &RemoveSubtrees, below: &Alike, flush: Cycles) -> (Cycles, Cycles) {
        let (look, unlink) = self.entry_costs(remove.check, Some(Atomicity::Atomic), None);
        let link = self.costs.visit + self.costs.atomic;
        let entry = match (below.holds, below.replaced(remove)) {
            // Leaves have accessed and dirty state that hardware may still write: always exchanged atomically.
            (Holds::Leaves, _) => link + self.costs.release_leaf,
            (Holds::Nothing, Replaced::ByMarker) => link,
            (Holds::Nothing, Replaced::Kept) => self.costs.visit,
        };
        (look, unlink + below.teardown(entry, link, flush))
    }
}

/// What happens to the words of a table that is torn down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Replaced {
    Kept,
    ByMarker,
}

impl Alike {
    /// Entries that map nothing are left alone unless a walker might still install something there.
    fn replaced(&self, remove: &RemoveSubtrees) -> Replaced {
        match (self.holds, remove.marker) {
            (Holds::Nothing, 0) => Replaced::Kept,
            _ => Replaced::ByMarker,
        }
    }
}
