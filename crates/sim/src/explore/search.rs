//! Searches through all executions, on all threads.
//!
//! The tree of decisions is divided into branches, in depth-first order, and all of them are worked on side by side in rounds of so many
//! executions each. Between rounds branches that are done go, others are split, and what each has seen is told to those behind it. How the tree is divided
//! depends on the scenario alone, not on threads, so everything that is reported is the same for any number of them.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use rayon::prelude::*;

use super::choosers::Shared;
use super::depth_first::{Bound, DepthFirst, Known, Seen};
use super::digest::Digests;
use super::lab::End;
use super::run::Runner;
use super::scenario::Scenario;
use super::strategy::{Found, Stats};
use crate::arch::Arch;

/// Branches that are worked on side by side, at most.
const BRANCHES: usize = 16;
/// Executions of a branch in the first round, and in any.
const FIRST_ROUND: u64 = 16;
const ROUND: u64 = 1024;

/// Whether an execution is given up at a state that was seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum States {
    Ignored,
    Known,
}

/// What came of a search.
#[derive(Clone, Debug)]
pub(crate) struct Searched {
    found: Option<Found>,
    /// Nothing is left to look at.
    complete: bool,
    /// Something was left out for a bound.
    bounded: bool,
}

impl Searched {
    /// What was found, and whether everything was looked at.
    pub(crate) fn ended(self) -> (Option<Found>, bool) {
        (self.found, self.complete && !self.bounded)
    }
}

/// A part of the tree.
#[derive(Debug)]
struct Branch {
    search: DepthFirst,
    /// States that were seen in it, up to this round.
    known: Arc<Known>,
    stats: Stats,
    found: Option<Found>,
    /// Endings of this round.
    endings: Vec<u64>,
}

impl Branch {
    fn new(search: DepthFirst) -> Self {
        Self { search, known: Arc::default(), stats: Stats::default(), found: None, endings: Vec::new() }
    }

    /// Keeps what was seen in this round. Nobody looks at it meanwhile.
    fn settle(&mut self) {
        if let Some(seen) = &mut self.search.seen {
            let fresh = std::mem::take(&mut seen.fresh);
            learn(Arc::make_mut(&mut self.known), fresh);
        }
    }
}

fn learn(known: &mut Known, more: Known) {
    if known.is_empty() {
        *known = more;
        return;
    }
    for (state, asleep) in more {
        known.entry(state).and_modify(|known| *known &= asleep).or_insert(asleep);
    }
}

impl<A: Arch> Scenario<A> {
    /// Everything within the bound, up to so many executions.
    pub(crate) fn search(&self, bound: Bound, states: States, schedules: u64, stats: &mut Stats) -> Searched {
        let seen = (states == States::Known).then(Seen::default);
        let mut branches = vec![Branch::new(DepthFirst::new(bound, seen))];
        let (mut done, mut round, mut bounded) = (0, FIRST_ROUND, false);
        let mut endings = Digests::default();
        // What was seen in branches that are done and have none behind them.
        let mut finished = Known::default();
        let mut found = None;
        while found.is_none() && done < schedules && !branches.is_empty() {
            let most = round.min((schedules - done).div_ceil(branches.len() as u64));
            let working = branches.len().min(((schedules - done) / most).max(1) as usize);
            for n in 0..working {
                let known = branches[..=n].iter().map(|branch| branch.known.clone());
                let known = known.filter(|known| !known.is_empty()).collect();
                if let Some(seen) = &mut branches[n].search.seen {
                    seen.before = known;
                }
            }
            branches[..working].par_iter_mut().for_each(|branch| self.work_on(branch, most));
            for branch in &mut branches[..working] {
                done += branch.stats.executions;
                stats.merge(&std::mem::take(&mut branch.stats));
                endings.extend(branch.endings.drain(..));
                bounded |= branch.search.bounded;
                found = branch.found.take();
                if found.is_some() {
                    break;
                }
            }
            branches.iter_mut().filter_map(|branch| branch.search.seen.as_mut()).for_each(|seen| seen.before.clear());
            branches.iter_mut().for_each(Branch::settle);
            retire(&mut branches, &mut finished);
            divide(&mut branches);
            round = (2 * round).min(ROUND);
        }
        let complete = branches.is_empty();
        for branch in branches {
            learn(&mut finished, Arc::unwrap_or_clone(branch.known));
        }
        stats.states += finished.len() as u64;
        stats.endings += endings.len() as u64;
        stats.endings_digest ^= endings.iter().fold(0, |sum, &ending| sum ^ ending);
        Searched { found, complete, bounded }
    }

    /// So many executions of a branch, at most.
    fn work_on(&self, branch: &mut Branch, most: u64) {
        let mut runner = Runner::with_states(self);
        let empty = DepthFirst::new(Bound::None, None);
        let shared = Rc::new(RefCell::new(std::mem::replace(&mut branch.search, empty)));
        while branch.found.is_none() && branch.stats.executions < most {
            let execution = runner.execute(Box::new(Shared(shared.clone())));
            branch.stats.add(&execution);
            if execution.end != End::Abandoned {
                branch.endings.push(execution.outcome);
            }
            // Where nobody had a choice who is next, nobody was treated unfairly.
            let fair = execution.end == End::Cut && runner.is_forced();
            if let Some(broken) = self.judge(&execution, fair) {
                branch.found = Some(Found { broken, trail: runner.trail() });
            }
            if !shared.borrow_mut().advance() {
                break;
            }
        }
        branch.stats.evaluations = runner.take_evaluations();
        std::mem::swap(&mut branch.search, &mut shared.borrow_mut());
    }

    /// Within bounds from 0 to `most`, one after another.
    pub(crate) fn bounded(
        &self,
        bound: impl Fn(u32) -> Bound,
        most: u32,
        schedules: u64,
        stats: &mut Stats,
    ) -> (Option<Found>, bool) {
        let mut left = schedules;
        for least in 0..=most {
            let before = stats.executions;
            let endings = (stats.endings, stats.endings_digest);
            let searched = self.search(bound(least), States::Ignored, left, stats);
            // The last one has seen what those before it have.
            stats.endings -= endings.0;
            stats.endings_digest ^= endings.1;
            left -= (stats.executions - before).min(left);
            if searched.found.is_some() || (searched.complete && !searched.bounded) || left == 0 {
                return searched.ended();
            }
        }
        (None, false)
    }
}

/// Branches that are done go; those behind them know what was seen there.
fn retire(branches: &mut Vec<Branch>, finished: &mut Known) {
    let mut n = 0;
    while n < branches.len() {
        if !branches[n].search.complete {
            n += 1;
            continue;
        }
        let known = Arc::unwrap_or_clone(branches.remove(n).known);
        match branches.get_mut(n) {
            Some(next) => learn(Arc::make_mut(&mut next.known), known),
            None => learn(finished, known),
        }
    }
}

/// Splits branches, in order, until there are enough.
fn divide(branches: &mut Vec<Branch>) {
    let mut n = 0;
    while n < branches.len() && branches.len() < BRANCHES {
        match branches[n].search.split() {
            Some(last) => {
                branches.insert(n + 1, Branch::new(last));
                n += 2;
            }
            None => n += 1,
        }
    }
}
