//! Aging of runs: looking at leaves, and clearing their accessed flag, as a walk over single entries would, at once.
//!
//! Unlike the operations of `bulk`, these are for walkers without the lock: the first entry is the caller's snapshot and is
//! replaced by a real atomic operation, which may find that somebody else was there; the others are read here, while nobody
//! else can act.

use mmu_core::memory::Masks;
use mmu_core::{Format, Level};

use super::actor::ActorState;
use super::alike::Holds;
use super::op::{AgeBelow, AgeRun, AgeWrite, Reply};
use super::world::{Horizon, Runs, World};
use crate::arch::Arch;
use crate::checker::Violation;

/// What an entry is to an aging walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Class {
    /// Nothing is mapped, or a table is.
    NoLeaf,
    Old,
    Young,
}

fn class_of<F: Format>(format: &F, level: Level, word: u64) -> Class {
    if !format.is_mapped(word) || !format.is_leaf(level, word) {
        Class::NoLeaf
    } else if is_young(format, word) {
        Class::Young
    } else {
        Class::Old
    }
}

/// Whether a leaf counts as accessed: by its flag, or by not being access-tracked where the format has none.
pub(crate) fn is_young<F: Format>(format: &F, leaf: u64) -> bool {
    match format.accessed_mask() {
        0 => format.mark_young(leaf).is_none(),
        flag => leaf & flag != 0,
    }
}

/// What making `leaf` old does to its bits, which is the same for all leaves of a progression of pages.
pub(super) fn make_old<F: Format>(format: &F, leaf: u64) -> Masks {
    let old = format.mark_old(leaf);
    Masks { keep: !(leaf & !old), set: old & !leaf }
}

impl<A: Arch> World<A> {
    /// Replies how many entries were done, whether the first one's compare-and-swap failed, and the first word as found.
    pub(super) fn age(&mut self, run: &AgeRun, actor: &mut ActorState, horizon: Horizon) -> Reply {
        let two = *self.arch.two();
        let class = class_of(&two, run.level, run.old);
        let (found, failed) = match (class, run.write) {
            (Class::Young, AgeWrite::And) => {
                actor.now += self.costs.atomic;
                let found = self.read(run.at, actor);
                self.store(run.at, found & !two.accessed_mask(), actor);
                (found, false)
            }
            (Class::Young, AgeWrite::Cmpxchg) => {
                actor.now += self.costs.atomic;
                let found = self.read(run.at, actor);
                if found == run.old {
                    self.store(run.at, two.mark_old(found), actor);
                }
                (found, found != run.old)
            }
            _ => (run.old, false),
        };
        let rest = if failed { 0 } else { self.age_rest(run, class, actor, horizon) };
        Reply { a: 1 + rest, b: u64::from(failed), c: found }
    }

    /// The entries after the first: as many as are of its kind and as a loop over single ones would get to before anybody else
    /// acts.
    fn age_rest(&mut self, run: &AgeRun, class: Class, actor: &mut ActorState, horizon: Horizon) -> u64 {
        if self.runs == Runs::Single || run.len <= 1 {
            return 0;
        }
        let (two, at) = (*self.arch.two(), run.at + 8);
        let page = two.geometry().page_size(run.level).bytes();
        let Ok(words) = self.tables.run_at(at, run.len - 1) else { return 0 };
        let like = class_of(&two, run.level, words.first) == class;
        // A step that is none of whole pages changes flags from word to word.
        let alike = if words.step.is_multiple_of(page) { words.len } else { 1 };
        if !like || class == Class::NoLeaf && two.is_mapped(words.first) {
            return 0;
        }
        let masks = match (class, run.write) {
            (Class::Young, AgeWrite::And) => Some(Masks::clear(two.accessed_mask())),
            (Class::Young, AgeWrite::Cmpxchg) => Some(make_old(&two, words.first)),
            _ => None,
        };
        // Each entry is read, and worked on, before the horizon.
        let (unit, last) = match masks {
            Some(_) => (self.costs.visit + self.costs.atomic, self.costs.visit),
            None => (self.costs.visit, mmu_core::Cycles::ZERO),
        };
        let room = horizon.until.since(actor.now + last).0.div_ceil(unit.0.max(1));
        let n = alike.min(room);
        if n == 0 {
            return 0;
        }
        if let Some(masks) = masks
            && let Err(fault) = self.tables.map_run(at, n, masks)
        {
            let moment = actor.now;
            self.checker.report(Violation::TableUse { at, fault, actor: Some(actor.id), moment });
        }
        self.counters.visits += n;
        actor.now += unit.times(n);
        n
    }

    /// Replies how many table entries were done (0: go down) and whether the leaves below were young.
    pub(super) fn age_below(&mut self, run: &AgeBelow, actor: &mut ActorState, horizon: Horizon) -> Reply {
        let none = Reply::default();
        let two = *self.arch.two();
        if self.runs == Runs::Single {
            return none;
        }
        let Some(below) = self.alike_below(run.at, 1, run.level) else { return none };
        let page = two.geometry().page_size(below.lowest().level).bytes();
        if below.holds != Holds::Leaves || !below.step.is_multiple_of(page) {
            return none;
        }
        let young = is_young(&two, below.word);
        let masks = match (young, run.write) {
            (true, AgeWrite::And) => Some(Masks::clear(two.accessed_mask())),
            (true, AgeWrite::Cmpxchg) => Some(make_old(&two, below.word)),
            _ => None,
        };
        let leaf = self.costs.visit + masks.map_or(mmu_core::Cycles::ZERO, |_| self.costs.atomic);
        // The table entry's own read, the read on the way down, what is below; the first entry has been read by the caller.
        let table = below.walk(self.costs.visit, self.costs.visit, leaf);
        let room = (horizon.until.since(actor.now) + self.costs.visit).0.saturating_sub(1) / table.0.max(1);
        // No more is looked at than can be done; the tables behind the first are as young as that one.
        let Some(below) = self.alike_below(run.at, run.len.min(room), run.level) else { return none };
        let (n, lowest) = (below.entries.min(room), below.lowest());
        if n == 0 {
            return none;
        }
        if let Some(masks) = masks
            && self.tables.map_run(lowest.first, n * lowest.words(), masks).is_err()
        {
            return none;
        }
        self.counters.visits += n * below.walk_visits() - 1;
        actor.now += table.times(n).since(self.costs.visit);
        Reply { a: n, b: u64::from(young), c: lowest.words() }
    }
}
