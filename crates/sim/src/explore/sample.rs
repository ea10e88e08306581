//! Executions at random: each is a function of seed and number, so they are looked at in pieces on all threads, and added up in order.

use std::ops::Range;

use rayon::prelude::*;

use super::by_digest::Digests;
use super::choosers::{Counting, Dice, Follow, Noting, Pct, Random, Shared, Uniform};
use super::decision::{Chooser, Decision};
use super::depth_first::Bound;
use super::run::{Execution, Runner};
use super::scenario::Scenario;
use super::strategy::{Budget, Found, Stats, Strategy};
use crate::arch::Arch;
use crate::rng::Seed;

/// Executions of one piece of work, up to the first that broke something.
#[derive(Clone, Debug, Default)]
struct Slice {
    stats: Stats,
    found: Option<Found>,
}

/// Executions in one piece of work, and pieces that are done at once.
const CHUNK: u64 = 64;
const CHUNKS: u64 = 64;
/// Into so many parts pieces are divided, at most: each has its own laboratory.
const PARTS: usize = 8;

/// How many steps executions have.
#[derive(Clone, Debug)]
struct Length {
    steps: u64,
    of: [u32; 64],
}

/// Executions that lengths are estimated by.
const ESTIMATED: u64 = 4;

impl<A: Arch> Scenario<A> {
    fn chooser(strategy: &Strategy, seed: Seed, number: u64, length: &Length) -> (Box<dyn Chooser>, bool) {
        let dice = Dice::new(seed.0, number);
        match strategy {
            Strategy::Sticky => (Box::new(Random { dice, stays: 6 }), true),
            Strategy::Pct(depth) => (Box::new(Pct::new(dice, *depth, length.steps)), false),
            Strategy::Uniform => (Box::new(Uniform::new(dice, &length.of)), true),
            Strategy::Continue(prefix) => {
                let script = prefix.iter().copied().map(Some).collect();
                (Box::new(Follow::new(script, Some(Random { dice, stays: 4 }))), true)
            }
            _ => (Box::new(Random { dice, stays: 0 }), true),
        }
    }

    /// Executions `from` to `to` of a sampling strategy.
    fn slice(
        &self,
        runner: &mut Runner<'_, A>,
        strategy: &Strategy,
        seed: Seed,
        numbers: Range<u64>,
        length: &Length,
    ) -> Slice {
        let mut slice = Slice::default();
        for number in numbers {
            let (chooser, fair) = Self::chooser(strategy, seed, number, length);
            let execution = runner.execute(chooser);
            slice.stats.add(&execution);
            slice.found = self.found(&execution, fair, runner);
            if slice.found.is_some() {
                break;
            }
        }
        slice.stats.evaluations = runner.take_evaluations();
        slice
    }

    fn found(&self, execution: &Execution, fair: bool, runner: &Runner<'_, A>) -> Option<Found> {
        let broken = self.judge(execution, fair)?;
        Some(Found { broken, trail: runner.trail() })
    }

    /// How many steps executions have, by a few of them: the mean, rounded up.
    fn length(&self, seed: Seed) -> Length {
        let mut runner = Runner::new(self);
        let mut length = Length { steps: 0, of: [0; 64] };
        for number in 0..ESTIMATED {
            let counting = Counting::new(Dice::new(seed.0, u64::MAX - number));
            let shared = std::rc::Rc::new(std::cell::RefCell::new(counting));
            length.steps += runner.execute(Box::new(Shared(shared.clone()))).steps;
            let counted = &shared.borrow().steps;
            length.of.iter_mut().zip(counted).for_each(|(sum, &steps)| *sum += steps);
        }
        length.steps = length.steps.div_ceil(ESTIMATED);
        length.of = length.of.map(|sum| sum.div_ceil(ESTIMATED as u32));
        length
    }

    pub(crate) fn sample(&self, strategy: &Strategy, budget: Budget, stats: &mut Stats) -> Option<Found> {
        let length = self.length(budget.seed);
        let mut next = 0;
        let mut chunks = 1;
        while next < budget.schedules {
            let starts: Vec<u64> = (next..budget.schedules).step_by(CHUNK as usize).take(chunks as usize).collect();
            next += CHUNK * chunks;
            let work = |runner: &mut Runner<'_, A>, &from: &u64| {
                self.slice(runner, strategy, budget.seed, from..(from + CHUNK).min(budget.schedules), &length)
            };
            let parts = starts.par_iter().with_min_len(starts.len().div_ceil(PARTS));
            if let Some(found) = first(parts.map_init(|| Runner::new(self), work).collect(), stats) {
                return Some(found);
            }
            chunks = (2 * chunks).min(CHUNKS);
        }
        None
    }

    pub(crate) fn portfolio(&self, budget: Budget, stats: &mut Stats) -> (Option<Found>, bool) {
        // Few preemptions suffice for most defects: an eighth of the budget looks at those executions one after another, half as many at few delays.
        let share = (budget.schedules / 8).min(2000);
        for (bound, share) in [(Bound::Preemptions as fn(u32) -> Bound, share), (Bound::Delays, share / 2)] {
            let (found, complete) = self.bounded(bound, 2, share, stats);
            if found.is_some() || complete {
                return (found, complete);
            }
        }
        let length = self.length(budget.seed);
        let sampled = [Strategy::Random, Strategy::Pct(3), Strategy::Sticky, Strategy::Uniform, Strategy::Pct(2)];
        let (mut round, mut chunks) = (0, 1);
        while stats.executions < budget.schedules {
            let left = budget.schedules - stats.executions;
            let size = CHUNK.min(left.div_ceil(sampled.len() as u64));
            chunks = chunks.min((left / (CHUNK * sampled.len() as u64)).max(1));
            let work: Vec<(usize, u64)> =
                (round..round + chunks).flat_map(|round| (0..sampled.len()).map(move |n| (n, round))).collect();
            let parts = work.par_iter().with_min_len(work.len().div_ceil(PARTS));
            let slices = parts.map_init(
                || Runner::new(self),
                |runner, &(n, round)| {
                    let seed = Seed(budget.seed.0.wrapping_add(n as u64));
                    self.slice(runner, &sampled[n], seed, round * CHUNK..round * CHUNK + size, &length)
                },
            );
            if let Some(found) = first(slices.collect(), stats) {
                return (Some(found), false);
            }
            round += chunks;
            chunks = (2 * chunks).min(CHUNKS / 4);
        }
        (None, false)
    }

    // ---- guided by coverage ----

    /// Executions that go on from the middle of ones that came to new states. What is known does not change within a round, so it does
    /// not matter who makes its executions.
    pub(crate) fn covering(&self, budget: Budget, stats: &mut Stats) -> Option<Found> {
        let (mut corpus, mut known): (Vec<Vec<Decision>>, Digests) = Default::default();
        let (mut next, mut chunks) = (0, 1);
        let mut found = None;
        while next < budget.schedules && found.is_none() {
            let starts: Vec<u64> = (next..budget.schedules).step_by(CHUNK as usize).take(chunks as usize).collect();
            next += CHUNK * chunks;
            let work = |&from: &u64| {
                let numbers = from..(from + CHUNK).min(budget.schedules);
                self.covered(numbers, budget.seed, &corpus, &known)
            };
            let slices: Vec<Covered> = starts.par_iter().map(work).collect();
            for Covered { slice, new } in slices {
                for (trail, states) in new {
                    let new = states.into_iter().filter(|&state| known.insert(state)).count();
                    if new > 0 {
                        corpus.push(trail);
                    }
                }
                stats.merge(&slice.stats);
                if slice.found.is_some() {
                    found = slice.found;
                    break;
                }
            }
            let old = corpus.len().saturating_sub(CORPUS);
            corpus.drain(..old);
            chunks = (2 * chunks).min(CHUNKS);
        }
        stats.states += known.len() as u64;
        found
    }

    fn covered(&self, numbers: Range<u64>, seed: Seed, corpus: &[Vec<Decision>], known: &Digests) -> Covered {
        let mut runner = Runner::with_states(self);
        let mut covered = Covered::default();
        for number in numbers {
            let mut dice = Dice::new(seed.0, number);
            // One in four begins afresh.
            let script = if corpus.is_empty() || dice.below(4) == 0 {
                Vec::new()
            } else {
                let trail = &corpus[dice.below(corpus.len())];
                trail[..dice.below(trail.len() + 1)].iter().copied().map(Some).collect()
            };
            let stays = 3 * dice.below(3);
            let inner = Follow::new(script, Some(Random { dice, stays }));
            let noting = std::rc::Rc::new(std::cell::RefCell::new(Noting { inner, states: Vec::new() }));
            let execution = runner.execute(Box::new(Shared(noting.clone())));
            covered.slice.stats.add(&execution);
            let mut states = std::mem::take(&mut noting.borrow_mut().states);
            states.retain(|&state| !known.contains(state));
            if !states.is_empty() {
                covered.new.push((runner.trail(), states));
            }
            covered.slice.found = self.found(&execution, true, &runner);
            if covered.slice.found.is_some() {
                break;
            }
        }
        covered.slice.stats.evaluations = runner.take_evaluations();
        covered
    }
}

/// Executions that are gone on from, at most: the latest ones.
const CORPUS: usize = 512;

/// What a piece of work came to.
#[derive(Clone, Debug, Default)]
struct Covered {
    slice: Slice,
    /// Executions with the states that were unknown before the round.
    new: Vec<(Vec<Decision>, Vec<u64>)>,
}

/// Adds slices up, in order, as far as the first that found something.
fn first(slices: Vec<Slice>, stats: &mut Stats) -> Option<Found> {
    for slice in slices {
        stats.merge(&slice.stats);
        if slice.found.is_some() {
            return slice.found;
        }
    }
    None
}
