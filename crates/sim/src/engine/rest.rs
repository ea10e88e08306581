//! The rest of a table: entries as they come, treated as the loop around a walk would treat one after the other.
//!
//! Operations of `bulk` and `age` take entries that are alike. Where a guest has touched every second page no two are for long, and
//! asking for each of them costs more than treating it. Here one look at the words tells how far the loop would get before anybody
//! else acts; then the words are written, and what is known of their pages is handed over, all at once.
//!
//! Stopping early is always right: the caller goes on entry by entry. So whatever is not plain (tables, payloads of entries that map nothing,
//! pages that are free already) is left to him.

use std::ops::ControlFlow;

use mmu_core::memory::{Masks, Progression};
use mmu_core::{Cycles, Format, Hpa, Level};

use super::actor::ActorState;
use super::age::{is_young, make_old};
use super::op::{AgeWrite, Atomicity, EachLeaf, Reply, ReschedCheck, RestOfTable, Work};
use super::primary::{Known, Marked};
use super::world::{Horizon, Runs, World};
use crate::arch::Arch;

/// What an entry is to the loop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Entry {
    /// Maps nothing.
    Passed,
    /// A leaf that stays as it is.
    Seen,
    /// A leaf that is worked on.
    Worked,
}

/// How far a loop gets.
#[derive(Clone, Copy, Debug)]
struct Survey {
    entries: u64,
    leaves: u64,
    worked: u64,
    /// The entry it ends with.
    last: Entry,
    /// When it is done.
    end: Cycles,
}

/// How a young leaf is made old, by the same change for all of a table.
#[derive(Clone, Copy, Debug)]
struct Aging<F> {
    format: F,
    level: Level,
    write: AgeWrite,
    /// Whether masks leave old leaves as they are: they do not change what hardware does not see, nor what has its flag cleared.
    harmless: bool,
    masks: Option<Masks>,
}

impl<F: Format> Aging<F> {
    fn new(format: F, level: Level, write: AgeWrite) -> Self {
        let flag = format.accessed_mask();
        let masks = (flag != 0 && write != AgeWrite::Nothing).then(|| Masks::clear(flag));
        Self { format, level, write, harmless: flag != 0 || write == AgeWrite::Nothing, masks }
    }

    /// What a word is; `None`: changing all words alike would not do what the loop does to this one.
    #[inline]
    fn entry(&mut self, word: u64) -> Option<Entry> {
        let format = &self.format;
        let visible = word & format.present_mask() != 0;
        if !format.is_mapped(word) {
            return (!visible).then_some(Entry::Passed);
        }
        if !format.is_leaf(self.level, word) {
            return None;
        }
        if !is_young(format, word) {
            return (self.harmless || !visible).then_some(Entry::Seen);
        }
        let alike = match self.write {
            AgeWrite::Nothing | AgeWrite::And => true,
            AgeWrite::Cmpxchg => {
                let masks = *self.masks.get_or_insert_with(|| make_old(format, word));
                masks.apply(word) == format.mark_old(word)
            }
        };
        alike.then_some(Entry::Worked)
    }
}

impl<A: Arch> World<A> {
    /// Replies how many entries were done (0: go on entry by entry), the leaves among them, and how many of those were worked on: young ones,
    /// or all.
    #[inline(never)]
    pub(super) fn rest_of_table(&mut self, rest: &RestOfTable, actor: &mut ActorState, horizon: Horizon) -> Reply {
        if self.runs == Runs::Single {
            return Reply::default();
        }
        let Some(limit) = self.undisturbed_until(rest.check, actor, horizon) else { return Reply::default() };
        let done = match rest.leaf {
            EachLeaf::Age(write) => self.age_leaves(rest, write, actor.now, limit),
            EachLeaf::Release { word, .. } => self.release_leaves(rest, word, actor.now, limit),
        };
        let Some(done) = done.filter(|done| done.entries > 0) else { return Reply::default() };
        self.counters.visits += done.entries;
        self.note_checks(rest, &done, actor);
        Reply { a: done.entries, b: done.leaves, c: done.worked }
    }

    /// Cycles of an entry: reading it and asking whether to reschedule, and the work on a leaf.
    fn rest_costs(&self, rest: &RestOfTable) -> (Cycles, Cycles) {
        let (update, work) = match rest.leaf {
            EachLeaf::Age(AgeWrite::Nothing) => (None, None),
            EachLeaf::Age(AgeWrite::And | AgeWrite::Cmpxchg) => (Some(Atomicity::Atomic), None),
            EachLeaf::Release { atomicity, .. } => (Some(atomicity), Some(Work::ReleaseLeaf)),
        };
        self.entry_costs(rest.check, update, work)
    }

    /// Goes over the entries from `start` on, as long as they are something and their work would begin before `limit`.
    #[inline]
    fn survey(
        &self,
        rest: &RestOfTable,
        start: Cycles,
        limit: Cycles,
        mut entry: impl FnMut(u64) -> Option<Entry>,
    ) -> Option<Survey> {
        let (look, work) = self.rest_costs(rest);
        let mut seen = Survey { entries: 0, leaves: 0, worked: 0, last: Entry::Passed, end: start };
        let entries = self.tables.each_word(rest.at, rest.len, |word| {
            let looked = seen.end + look;
            if looked >= limit {
                return ControlFlow::Break(());
            }
            let Some(entry) = entry(word) else { return ControlFlow::Break(()) };
            let worked = entry == Entry::Worked;
            seen.leaves += u64::from(entry != Entry::Passed);
            seen.worked += u64::from(worked);
            seen.end = if worked { looked + work } else { looked };
            seen.last = entry;
            ControlFlow::Continue(())
        });
        Some(Survey { entries: entries.ok()?, ..seen })
    }

    /// Young leaves become old, where that is asked for.
    fn age_leaves(&mut self, rest: &RestOfTable, write: AgeWrite, start: Cycles, limit: Cycles) -> Option<Survey> {
        let mut aging = Aging::new(*self.arch.two(), rest.level, write);
        let seen = self.survey(rest, start, limit, |word| aging.entry(word))?;
        if let Some(masks) = aging.masks
            && seen.worked > 0
        {
            self.tables.map_run(rest.at, seen.entries, masks).ok()?;
        }
        Some(seen)
    }

    /// Leaves are replaced by `word`, and their pages take over what they knew.
    fn release_leaves(&mut self, rest: &RestOfTable, word: u64, start: Cycles, limit: Cycles) -> Option<Survey> {
        let (two, level) = (*self.arch.two(), rest.level);
        let seen = self.survey(rest, start, limit, |old| match old {
            0 => (word == 0).then_some(Entry::Passed),
            _ => (two.is_mapped(old) && two.is_leaf(level, old)).then_some(Entry::Worked),
        })?;
        if seen.worked > 0 {
            let known = self.known_by_leaves(rest.at, seen.entries, level);
            if self.mark_known(&known) == Marked::None {
                return None;
            }
            self.tables.fill_run(rest.at, seen.entries, Progression::constant(word)).ok()?;
            self.counters.zapped_leaves += seen.worked;
        }
        Some(seen)
    }

    /// What `len` entries that are leaves or zero know of their pages, by stretches.
    fn known_by_leaves(&self, at: Hpa, len: u64, level: Level) -> Vec<Known> {
        let two = *self.arch.two();
        let page = two.geometry().page_size(level).bytes();
        let mut known: Vec<Known> = Vec::with_capacity(len.min(512) as usize);
        let looked = self.tables.each_word(at, len, |word| {
            if word != 0 {
                let (start, state) = (two.output(level, word).raw(), self.known_by(word));
                match known.last_mut() {
                    Some(last) if last.start + last.len == start && last.state == state => last.len += page,
                    _ => known.push(Known { start, len: page, state }),
                }
            }
            ControlFlow::Continue(())
        });
        // Whoever calls has seen all of these words.
        looked.map_or_else(|_| Vec::new(), |_| known)
    }

    /// The actor has gone over the entries, asking before each where the loop asks.
    fn note_checks(&self, rest: &RestOfTable, done: &Survey, actor: &mut ActorState) {
        let (look, work) = self.rest_costs(rest);
        let start = actor.now;
        actor.now = done.end;
        if rest.check == ReschedCheck::EachEntry {
            let last_works = done.last == Entry::Worked;
            let apart = match (done.entries, done.worked - u64::from(last_works)) {
                (1, _) => Cycles::ZERO,
                (_, 0) => look,
                _ => look + work,
            };
            let first = (start + look).since(actor.scheduled);
            actor.checked(first, apart, if last_works { work } else { Cycles::ZERO });
        }
    }
}
