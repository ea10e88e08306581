//! Executions as others may judge them: what happened to table words, and which invalidations were asked for and completed, in order.
//!
//! A trace says nothing of what the checker thinks. `mmu-explore` writes traces of Arm scenarios for checkers of break-before-make.

use mmu_core::{Flush, Format, Hpa, Level};

use super::choosers::{Dice, Follow, Random};
use super::decision::{Agent, Decision, Who};
use super::invariant::Broken;
use super::lab::Lab;
use super::run::Runner;
use super::scenario::Scenario;
use super::words::Life;
use crate::arch::Arch;
use crate::rng::Seed;

/// Something that happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Happened {
    /// An empty table is there.
    NewTable {
        /// Where.
        table: Hpa,
        /// How many words.
        words: u64,
        /// Of entries of this level.
        level: Level,
    },
    /// Consecutive words of a table are written: `word`, then each more by `step`.
    Write {
        /// The table.
        table: Hpa,
        /// The first word's place in it.
        index: u64,
        /// How many.
        len: u64,
        /// The first word.
        word: u64,
        /// What each has more than the one before.
        step: u64,
    },
    /// An invalidation that reaches every processor begins: what it covers.
    FlushBegins(Flush),
    /// Every processor has made it.
    FlushEnds(Flush),
    /// A table is free.
    Free {
        /// Which.
        table: Hpa,
    },
    /// vCPUs load this root from now on.
    Root {
        /// Its table.
        root: Hpa,
        /// How many roots the VM had before.
        generation: u16,
    },
}

/// What happened, by whom, and how much of it tells how everything was at the beginning.
pub(crate) type Noted = (Vec<(u32, Happened)>, usize);

/// An execution.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trace {
    /// The scenario.
    pub scenario: String,
    /// What happened, and by whom: actors by number, then vCPUs.
    pub events: Vec<(u32, Happened)>,
    /// So many of them, the first, tell what tables there were at the beginning.
    pub before: usize,
    /// What was broken.
    pub broken: Option<Broken>,
}

impl<A: Arch> Scenario<A> {
    /// The execution of these decisions, and then of whoever goes on.
    pub fn trace(&self, decisions: &[Decision]) -> Trace {
        let script = decisions.iter().copied().map(Some).collect();
        self.traced(Follow::new(script, None))
    }

    /// An execution at random.
    pub fn trace_at_random(&self, seed: Seed, number: u64) -> Trace {
        let dice = Dice::new(seed.0, number);
        self.traced(Follow::new(Vec::new(), Some(Random { dice, stays: 3 })))
    }

    fn traced(&self, chooser: Follow) -> Trace {
        let mut runner = Runner::new(self);
        let (execution, (events, before)) = runner.trace(Box::new(chooser));
        Trace { scenario: self.name().to_owned(), events, before, broken: execution.broken }
    }
}

impl<A: Arch> Lab<A> {
    /// Begins to note what happens, if somebody wants to know: with the tables as they are.
    pub(crate) fn begin_trace(&mut self) {
        if self.traced.is_none() {
            return;
        }
        let top = self.format.geometry().root();
        let mut events = vec![(0, Happened::Root { root: self.root, generation: 0 })];
        for frame in self.words.frames().iter().filter(|frame| frame.level <= top && frame.life != Life::Freed) {
            let (table, words, level) = (frame.first, u64::from(frame.words), frame.level);
            events.push((0, Happened::NewTable { table, words, level }));
        }
        for frame in self.words.frames().iter().filter(|frame| frame.level <= top && frame.life != Life::Freed) {
            for index in 0..u64::from(frame.words) {
                let word = self.words.peek(frame.first + 8 * index);
                if word != 0 {
                    events.push((0, Happened::Write { table: frame.first, index, len: 1, word, step: 0 }));
                }
            }
        }
        let before = events.len();
        self.traced = Some((events, before));
    }

    /// Notes something that the acting agent does.
    pub(crate) fn happened(&mut self, what: Happened) {
        let actors = self.hands.len();
        let Some((events, _)) = &mut self.traced else { return };
        let who = match self.acting.who() {
            Who::Actor(actor) | Who::Buffer(actor) => actor,
            Who::Guest(vcpu) | Who::Arrival(vcpu) => actors + vcpu,
            Who::Rcu => usize::from(Agent::RCU.0),
        };
        events.push((who as u32, what));
    }

    /// Words of a frame are about to be written.
    pub(crate) fn writing(&mut self, at: Hpa, len: u64, word: u64, step: u64) {
        if self.traced.is_none() {
            return;
        }
        let top = self.format.geometry().root();
        let Some(frame) = self.words.frame(at).filter(|frame| frame.level <= top) else { return };
        let (table, index) = (frame.first, (at.raw() - frame.first.raw()) / 8);
        self.happened(Happened::Write { table, index, len, word, step });
    }

    /// The invalidation that an actor waited for has been made everywhere.
    pub(crate) fn flush_ends(&mut self, actor: usize) {
        if let Some(flush) = self.hands[actor].flushing.take() {
            self.happened(Happened::FlushEnds(flush));
        }
    }
}
