//! The ways in which one access may be translated.

use mmu_core::access::AccessKind;
use mmu_core::format::FaultClass;

use super::defect::Defect;
use super::model::Model;
use super::state::{Entry, State};
use super::test::{Layout, Loc};
use super::words::{Meaning, StageNumber};

/// What becomes of an access, or the next step on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Nothing but going on.
    Proceed,
    /// It accesses this word of the test's memory.
    Access(u16),
    /// It faults; the level of the entry that says so.
    Fault(FaultLevel),
    /// Hardware sets the access flag by one compare-and-swap, and looks again.
    SetAccessed {
        /// The entry.
        entry: u16,
        /// What it becomes.
        new: u64,
    },
    /// Hardware marks entries dirty by one compare-and-swap each, and the access goes to the word.
    SetDirty {
        /// The entries and what they become.
        entries: [Option<(u16, u64)>; 2],
        /// The word that is accessed.
        page: u16,
    },
    /// Defective hardware has read an entry, and will write it later.
    BeginUpdate {
        /// The entry.
        entry: u16,
        /// As it was read.
        old: u64,
        /// What will be written.
        new: u64,
        /// The word that is accessed afterwards, if the translation is kept.
        page: Option<u16>,
    },
    /// Defective hardware writes it.
    FinishUpdate(After),
    /// An exclusive store fails, for no reason that the program could see.
    FailExclusive,
}

/// What follows a defective update.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum After {
    /// The access, through the translation as it was read.
    Access,
    /// Another walk.
    Walk,
}

/// The level of an entry that faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultLevel {
    /// The table pointer.
    Two,
    /// The leaf entry, of either stage.
    Three,
}

/// One stage's part of a translation.
#[derive(Clone, Copy)]
struct Stage {
    number: StageNumber,
    word: u64,
    /// Where the entry stands.
    home: Option<Loc>,
    /// The same, if the word is the current one and a walk gets there.
    current: Option<Loc>,
    /// Defective hardware takes the word for accessed, which the entry in memory is not.
    pretends: bool,
}

/// What one stage makes of an access.
enum Part {
    Page(u32),
    Dirty { page: u32, update: Update },
}

/// An update that hardware makes before the access.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Update {
    entry: Loc,
    old: u64,
    new: u64,
}

impl Model<'_> {
    /// Adds the ways in which thread `t` may access virtual page `va`.
    pub(crate) fn translate(&self, state: &State, t: usize, va: u8, kind: AccessKind, out: &mut Vec<Outcome>) {
        let Layout { virtuals, tables, .. } = &self.test.layout;
        let (running, page) = (&state.threads[t], &virtuals[usize::from(va)]);
        let pointer = page.table.map(|table| state.words[usize::from(tables[usize::from(table)].loc)]);
        if pointer.is_some_and(|pointer| !self.test.words.present(pointer)) {
            add(out, Outcome::Fault(FaultLevel::Two));
        }
        let now = state.words[usize::from(page.leaf)];
        let reached = self.reached(&state.words, running, va);
        let one = |word: u64| {
            // The table as it was in the beginning, which hides a clear flag.
            let pretends = self.is(Defect::StaleWalkSnapshot) && word != now && word == self.test.words.accessed(now);
            let current = (reached && (word == now || pretends)).then_some(page.leaf);
            Stage { number: StageNumber::One, word, home: Some(page.leaf), current, pretends }
        };
        if reached {
            self.first(state, t, one(now), kind, out);
        }
        for cached in running.tlb.iter().filter(|cached| self.tagged(running, cached)) {
            match cached.what {
                Entry::Leaf { va: other, word } if other == va && !(reached && word == now) => {
                    self.first(state, t, one(word), kind, out);
                }
                Entry::Combined { va: other, one: first, two } if other == va => {
                    self.both(state, t, one(first), two, kind, out);
                }
                _ => {}
            }
        }
    }

    /// A leaf entry, then every entry of stage 2 that may follow.
    fn first(&self, state: &State, t: usize, one: Stage, kind: AccessKind, out: &mut Vec<Outcome>) {
        let mut parts = Vec::new();
        self.stage(t, one, kind, &mut parts, out);
        for part in parts {
            let (Part::Page(page) | Part::Dirty { page, .. }) = part;
            if self.test.layout.second.is_none() {
                self.arrive(&part, &Part::Page(page), out);
                continue;
            }
            let running = &state.threads[t];
            let now = self.test.layout.second_entry(page).map_or(0, |loc| state.words[usize::from(loc)]);
            self.second(state, t, &part, now, kind, out);
            for cached in running.tlb.iter().filter(|cached| self.tagged(running, cached)) {
                if let Entry::Second { page: other, word } = cached.what
                    && other == page
                    && word != now
                {
                    self.second(state, t, &part, word, kind, out);
                }
            }
        }
    }

    /// A cached translation through both stages.
    fn both(&self, state: &State, t: usize, one: Stage, two: u64, kind: AccessKind, out: &mut Vec<Outcome>) {
        let mut parts = Vec::new();
        self.stage(t, one, kind, &mut parts, out);
        for part in parts {
            self.second(state, t, &part, two, kind, out);
        }
    }

    fn second(&self, state: &State, t: usize, one: &Part, word: u64, kind: AccessKind, out: &mut Vec<Outcome>) {
        let (Part::Page(page) | Part::Dirty { page, .. }) = *one;
        let entry = self.test.layout.second_entry(page);
        let current = match entry {
            Some(loc) if state.words[usize::from(loc)] == word => Some(loc),
            _ => None,
        };
        let mut parts = Vec::new();
        self.stage(
            t,
            Stage { number: StageNumber::Two, word, home: entry, current, pretends: false },
            kind,
            &mut parts,
            out,
        );
        for two in parts {
            self.arrive(one, &two, out);
        }
    }

    /// What one entry makes of the access: pages go to `parts`, everything else is an outcome.
    fn stage(&self, t: usize, stage: Stage, kind: AccessKind, parts: &mut Vec<Part>, out: &mut Vec<Outcome>) {
        let (words, thread) = (&self.test.words, &self.test.threads[t]);
        let Stage { number, word, home, current, pretends } = stage;
        let means = |word| words.meaning(number, word, kind, thread.privilege, thread.managed);
        let mut meaning = means(word);
        if self.is(Defect::Db0Writable) && kind.writes() && meaning == Meaning::Fault(FaultClass::Permission) {
            meaning = means(words.dirtied(number, word));
        }
        let as_if_accessed = match meaning {
            Meaning::Access { .. } => self.is(Defect::HwAfNeverWritten) || self.is(Defect::TlbCachesAf0),
            Meaning::Fault(FaultClass::AccessFlag) => self.is(Defect::Af0NotFaulting) || self.is(Defect::TlbCachesAf0),
            _ => false,
        };
        if as_if_accessed && let Some(page) = words.page(number, word) {
            parts.push(Part::Page(page));
            // A look-up may still miss the entry that should not be cached.
            if !self.is(Defect::TlbCachesAf0) {
                return;
            }
        }
        if self.is(Defect::NoPermissionCheck) && meaning == Meaning::Fault(FaultClass::Permission) {
            parts.extend(words.page(number, word).map(Part::Page));
            return;
        }
        match (meaning, current) {
            (Meaning::Page(page), _) => parts.push(Part::Page(page)),
            (Meaning::Dirty { page, left }, Some(entry)) => {
                let dirty = |new| Part::Dirty { page, update: Update { entry, old: word, new } };
                let unaccessed = pretends || !words.is_accessed(word);
                let alone = unaccessed && (pretends || self.is(Defect::HwAfNeverWritten));
                if alone || unaccessed && self.is(Defect::TlbCachesAf0) {
                    parts.push(dirty(words.unaccessed(left)));
                }
                if !alone {
                    parts.push(dirty(left));
                }
            }
            // A cached clean entry is read again, which is the walk's own way.
            (Meaning::Dirty { page, left }, None) => {
                if self.is(Defect::HwDirtyBlind)
                    && let Some(entry) = home
                {
                    parts.push(Part::Dirty { page, update: Update { entry, old: word, new: left } });
                }
            }
            (Meaning::Access { left }, Some(entry)) => {
                let torn = self.is(Defect::HwAfOrUnchecked) || self.is(Defect::HwAfTwoStep);
                add(
                    out,
                    if torn {
                        Outcome::BeginUpdate { entry, old: word, new: left, page: None }
                    } else {
                        Outcome::SetAccessed { entry, new: left }
                    },
                );
            }
            (Meaning::Access { .. }, None) => {}
            (Meaning::Fault(_), _) => add(out, Outcome::Fault(FaultLevel::Three)),
        }
    }

    /// Both stages agree on a page.
    fn arrive(&self, one: &Part, two: &Part, out: &mut Vec<Outcome>) {
        let update = |part: &Part| match *part {
            Part::Dirty { update, .. } => Some(update),
            Part::Page(_) => None,
        };
        let (Part::Page(page) | Part::Dirty { page, .. }) = *two;
        let Some(word) = self.test.layout.page_word(page) else {
            return add(out, Outcome::Fault(FaultLevel::Three));
        };
        let updates = [update(one), update(two)];
        let torn = self.is(Defect::HwDirtyOrUnchecked) || self.is(Defect::HwDirtyTwoStep);
        add(
            out,
            match updates.iter().flatten().next() {
                None => Outcome::Access(word),
                Some(&Update { entry, old, new }) if torn => Outcome::BeginUpdate { entry, old, new, page: Some(word) },
                Some(_) => Outcome::SetDirty { entries: updates.map(|u| u.map(|u| (u.entry, u.new))), page: word },
            },
        );
    }
}

/// Adds what is not there yet.
fn add(out: &mut Vec<Outcome>, outcome: Outcome) {
    if !out.contains(&outcome) {
        out.push(outcome);
    }
}
