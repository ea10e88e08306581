//! Strategies over many executions, and what they report. The result is the same for any number of threads.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use rayon::prelude::*;

use super::choosers::{DepthFirst, Dice, Divergence, Follow, Pct, Random, Replay, Shared};
use super::decision::{Chooser, Decision, Kind};
use super::failure::Failure;
use super::invariant::{Broken, Evaluations, Invariant};
use super::lab::End;
use super::run::{Execution, Runner, verdict};
use super::scenario::{Limits, Scenario};
use super::shrink::shrink;
use crate::arch::Arch;
use crate::rng::Seed;

/// In which order executions are looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Strategy {
    /// All of them, depth first, without those that differ only in the order of steps that commute.
    Exhaustive,
    /// All with at most so many preemptions, fewest first.
    Bounded(u32),
    /// At random, everybody alike.
    Random,
    /// At random, but whoever runs mostly goes on.
    Sticky,
    /// Random priorities with so many moments, less one, at which they change.
    Pct(u32),
    /// These decisions, and then at random.
    Continue(Vec<Decision>),
    /// A slice of each, in turn: bounded, random, sticky, priorities.
    Portfolio,
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Strategy::Exhaustive => f.write_str("exhaustive"),
            Strategy::Bounded(bound) => write!(f, "bounded:{bound}"),
            Strategy::Random => f.write_str("random"),
            Strategy::Sticky => f.write_str("sticky"),
            Strategy::Pct(depth) => write!(f, "pct:{depth}"),
            Strategy::Continue(prefix) => write!(f, "continue after {}", prefix.len()),
            Strategy::Portfolio => f.write_str("portfolio"),
        }
    }
}

/// A name that is no strategy's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnknownStrategy(pub String);

impl fmt::Display for UnknownStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no strategy is named {:?}; use exhaustive, bounded:N, random, sticky, pct:DEPTH or portfolio",
            self.0
        )
    }
}
impl std::error::Error for UnknownStrategy {}

impl std::str::FromStr for Strategy {
    type Err = UnknownStrategy;

    fn from_str(text: &str) -> Result<Self, UnknownStrategy> {
        let (name, number) = text.split_once(':').map_or((text, None), |(name, number)| (name, Some(number)));
        let number = match number.map(str::parse) {
            None => None,
            Some(Ok(number)) => Some(number),
            Some(Err(_)) => return Err(UnknownStrategy(text.to_owned())),
        };
        Ok(match (name, number) {
            ("exhaustive", None) => Strategy::Exhaustive,
            ("bounded", number) => Strategy::Bounded(number.unwrap_or(2)),
            ("random", None) => Strategy::Random,
            ("sticky", None) => Strategy::Sticky,
            ("pct", number) => Strategy::Pct(number.unwrap_or(3)),
            ("portfolio", None) => Strategy::Portfolio,
            _ => return Err(UnknownStrategy(text.to_owned())),
        })
    }
}

/// How far a strategy goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Budget {
    /// Executions.
    pub schedules: u64,
    /// Seed of everything random.
    pub seed: Seed,
    /// Whether a failure is made as small as possible.
    pub shrinking: Shrinking,
}

/// Whether a failure is made as small as possible.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shrinking {
    /// It is.
    Thorough,
    /// It stays as it was found.
    Off,
}

impl Budget {
    /// So many executions of seed 1.
    pub const fn schedules(schedules: u64) -> Budget {
        Budget { schedules, seed: Seed(1), shrinking: Shrinking::Thorough }
    }
}

/// What an exploration says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// An invariant can be broken.
    Broken,
    /// Nothing was broken in any execution that there is, up to the order of steps that commute.
    Proved,
    /// Nothing was broken in the executions that were looked at.
    Passed,
}

impl Verdict {
    /// One word.
    pub const fn name(self) -> &'static str {
        match self {
            Verdict::Broken => "broken",
            Verdict::Proved => "proved",
            Verdict::Passed => "passed",
        }
    }
}

/// Figures of an exploration.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Executions.
    pub executions: u64,
    /// Steps of all of them.
    pub steps: u64,
    /// The longest one's.
    pub longest: u64,
    /// Executions given up because their rest was known.
    pub redundant: u64,
    /// Executions that had too many steps.
    pub cut: u64,
    /// How often each invariant was evaluated.
    pub evaluations: Evaluations,
    /// What all executions amount to: equal explorations have equal digests.
    pub digest: u64,
}

impl Stats {
    fn add(&mut self, execution: &Execution) {
        self.executions += 1;
        self.steps += execution.steps;
        self.longest = self.longest.max(execution.steps);
        self.redundant += u64::from(execution.end == End::Abandoned);
        self.cut += u64::from(execution.end == End::Cut);
        self.digest = self.digest.rotate_left(5) ^ execution.digest;
    }
    fn merge(&mut self, other: &Stats) {
        self.executions += other.executions;
        self.steps += other.steps;
        self.longest = self.longest.max(other.longest);
        self.redundant += other.redundant;
        self.cut += other.cut;
        self.evaluations.merge(&other.evaluations);
        self.digest = self.digest.rotate_left(5) ^ other.digest;
    }
}

/// What came of an exploration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// The scenario.
    pub scenario: String,
    /// What it says.
    pub verdict: Verdict,
    /// Figures.
    pub stats: Stats,
    /// The failure, if there was one.
    pub failure: Option<Failure>,
    /// Invariants that the scenario declares and that no execution evaluated: about these the verdict says nothing.
    pub unevaluated: Vec<Invariant>,
}

impl Report {
    /// Nothing was broken, and everything that the scenario declares was looked at.
    pub fn is_sound(&self) -> bool {
        self.failure.is_none() && self.unevaluated.is_empty()
    }
}

/// An execution that broke something, as it was found.
#[derive(Clone, Debug)]
struct Found {
    broken: Broken,
    trail: Vec<Decision>,
}

/// Executions of one piece of work, up to the first that broke something.
#[derive(Clone, Debug, Default)]
struct Slice {
    stats: Stats,
    found: Option<Found>,
}

/// Executions in one piece of work, and pieces that are done at once.
const CHUNK: u64 = 64;
const CHUNKS: u64 = 16;

impl<A: Arch> Scenario<A> {
    /// Looks at executions until one breaks an invariant, none is left or the budget is used up.
    ///
    /// Uses the threads of the current rayon pool. The report does not depend on how many there are.
    pub fn explore(&self, strategy: &Strategy, budget: Budget) -> Report {
        let mut stats = Stats::default();
        let (found, complete) = match strategy {
            Strategy::Exhaustive => self.depth_first(&mut DepthFirst::new(None), budget.schedules, &mut stats),
            Strategy::Bounded(most) => self.bounded(*most, budget.schedules, &mut stats),
            Strategy::Portfolio => self.portfolio(budget, &mut stats),
            sampled => (self.sample(sampled, budget, &mut stats), false),
        };
        let verdict = match (&found, complete) {
            (Some(_), _) => Verdict::Broken,
            (None, true) if stats.cut == 0 => Verdict::Proved,
            _ => Verdict::Passed,
        };
        let failure = found.map(|Found { broken, trail }| match budget.shrinking {
            Shrinking::Thorough => shrink(self, broken.invariant, trail, stats.executions),
            Shrinking::Off => Failure::of(&mut Runner::new(self), trail, broken.invariant, stats.executions),
        });
        Report { scenario: self.name.clone(), verdict, stats, failure, unevaluated: self.unevaluated(&stats) }
    }

    fn unevaluated(&self, stats: &Stats) -> Vec<Invariant> {
        self.declared.iter().copied().filter(|&invariant| stats.evaluations.of(invariant) == 0).collect()
    }

    fn judge(&self, execution: &Execution, fair: bool) -> Option<Broken> {
        verdict(execution, self.limits.livelock, fair)
    }

    // ---- depth first ----

    fn depth_first(&self, search: &mut DepthFirst, most: u64, stats: &mut Stats) -> (Option<Found>, bool) {
        let shared = Rc::new(RefCell::new(std::mem::replace(search, DepthFirst::new(None))));
        let mut runner = Runner::new(self);
        let mut found = None;
        let before = stats.executions;
        while found.is_none() && stats.executions - before < most {
            let execution = runner.execute(Box::new(Shared(shared.clone())));
            stats.add(&execution);
            // Where nobody had a choice who is next, nobody was treated unfairly.
            let trail = runner.trail();
            let fair = trail.iter().all(|decision| decision.kind != Kind::Run);
            if let Some(broken) = self.judge(&execution, fair) {
                found = Some(Found { broken, trail });
            }
            if !shared.borrow_mut().advance() {
                break;
            }
        }
        stats.evaluations.merge(&runner.take_evaluations());
        std::mem::swap(search, &mut shared.borrow_mut());
        (found, search.complete)
    }

    fn bounded(&self, most: u32, schedules: u64, stats: &mut Stats) -> (Option<Found>, bool) {
        let mut left = schedules;
        for bound in 0..=most {
            let mut search = DepthFirst::new(Some(bound));
            let before = stats.executions;
            let (found, complete) = self.depth_first(&mut search, left, stats);
            left -= stats.executions - before;
            if found.is_some() || (complete && !search.bounded) || left == 0 {
                return (found, complete && !search.bounded);
            }
        }
        (None, false)
    }

    // ---- samples ----

    fn chooser(strategy: &Strategy, seed: Seed, number: u64, steps: u64) -> (Box<dyn Chooser>, bool) {
        let dice = Dice::new(seed.0, number);
        match strategy {
            Strategy::Sticky => (Box::new(Random { dice, stays: 6 }), true),
            Strategy::Pct(depth) => (Box::new(Pct::new(dice, *depth, steps)), false),
            Strategy::Continue(prefix) => {
                let script = prefix.iter().copied().map(Some).collect();
                (Box::new(Follow::new(script, Some(Random { dice, stays: 4 }))), true)
            }
            _ => (Box::new(Random { dice, stays: 0 }), true),
        }
    }

    /// Executions `from` to `to` of a sampling strategy.
    fn slice(&self, strategy: &Strategy, seed: Seed, from: u64, to: u64, steps: u64) -> Slice {
        let mut runner = Runner::new(self);
        let mut slice = Slice::default();
        for number in from..to {
            let (chooser, fair) = Self::chooser(strategy, seed, number, steps);
            let execution = runner.execute(chooser);
            slice.stats.add(&execution);
            if let Some(broken) = self.judge(&execution, fair) {
                slice.found = Some(Found { broken, trail: runner.trail() });
                break;
            }
        }
        slice.stats.evaluations = runner.take_evaluations();
        slice
    }

    /// How many steps an execution has, by one of them.
    fn length(&self, seed: Seed) -> u64 {
        let dice = Dice::new(seed.0, u64::MAX);
        Runner::new(self).execute(Box::new(Random { dice, stays: 0 })).steps
    }

    fn sample(&self, strategy: &Strategy, budget: Budget, stats: &mut Stats) -> Option<Found> {
        let steps = self.length(budget.seed);
        let mut next = 0;
        let mut chunks = 1;
        while next < budget.schedules {
            let starts: Vec<u64> = (next..budget.schedules).step_by(CHUNK as usize).take(chunks as usize).collect();
            next += CHUNK * chunks;
            let work = |&from: &u64| {
                let to = (from + CHUNK).min(budget.schedules);
                self.slice(strategy, budget.seed, from, to, steps)
            };
            if let Some(found) = first(starts.par_iter().map(work).collect(), stats) {
                return Some(found);
            }
            chunks = (2 * chunks).min(CHUNKS);
        }
        None
    }

    fn portfolio(&self, budget: Budget, stats: &mut Stats) -> (Option<Found>, bool) {
        let steps = self.length(budget.seed);
        let sampled = [Strategy::Random, Strategy::Pct(3), Strategy::Sticky, Strategy::Pct(2)];
        // Few preemptions suffice for most defects: an eighth of the budget looks at those executions one after another.
        let (found, complete) = self.bounded(2, (budget.schedules / 8).min(2000), stats);
        if found.is_some() || complete {
            return (found, complete);
        }
        let (mut round, mut chunks) = (0, 1);
        while stats.executions < budget.schedules {
            let left = budget.schedules - stats.executions;
            let size = CHUNK.min(left.div_ceil(sampled.len() as u64)).max(1);
            let work: Vec<(usize, u64)> =
                (round..round + chunks).flat_map(|round| (0..sampled.len()).map(move |n| (n, round))).collect();
            let slices = work.par_iter().map(|&(n, round)| {
                let seed = Seed(budget.seed.0.wrapping_add(n as u64));
                self.slice(&sampled[n], seed, round * CHUNK, round * CHUNK + size, steps)
            });
            if let Some(found) = first(slices.collect(), stats) {
                return (Some(found), false);
            }
            round += chunks;
            chunks = (2 * chunks).min(CHUNKS / 4).min((left / (CHUNK * sampled.len() as u64)).max(1));
        }
        (None, false)
    }

    // ---- once more ----

    /// Executes these decisions again, exactly.
    ///
    /// # Errors
    /// At the first decision that the execution does not ask for.
    pub fn replay(&self, decisions: &[Decision]) -> Result<Report, Divergence> {
        let mut runner = Runner::new(self);
        let replay = Rc::new(RefCell::new(Replay::new(decisions.to_vec())));
        let execution = runner.execute(Box::new(Shared(replay.clone())));
        let mut stats = Stats::default();
        stats.add(&execution);
        stats.evaluations = runner.take_evaluations();
        if let Some(diverged) = replay.borrow().diverged.clone() {
            return Err(diverged);
        }
        let at = replay.borrow().at;
        if let Some(&extra) = decisions.get(at) {
            return Err(Divergence { at, wanted: Some(extra), asked: "nothing more".to_owned() });
        }
        let failure = self
            .judge(&execution, true)
            .map(|broken| Failure::of(&mut Runner::new(self), decisions.to_vec(), broken.invariant, 1));
        let verdict = if failure.is_some() { Verdict::Broken } else { Verdict::Passed };
        let unevaluated = self.unevaluated(&stats);
        Ok(Report { scenario: self.name.clone(), verdict, stats, failure, unevaluated })
    }
}

/// A scenario of any architecture.
pub trait Explorable: Send + Sync {
    /// See [`Scenario::explore`].
    fn explore(&self, strategy: &Strategy, budget: Budget) -> Report;
    /// See [`Scenario::replay`].
    ///
    /// # Errors
    /// At the first decision that the execution does not ask for.
    fn replay(&self, decisions: &[Decision]) -> Result<Report, Divergence>;
    /// What bounds it.
    fn limits_mut(&mut self) -> &mut Limits;
    /// See [`Scenario::declares`].
    fn declare(&mut self, invariants: &[Invariant]);
}

impl<A: Arch> Explorable for Scenario<A> {
    fn explore(&self, strategy: &Strategy, budget: Budget) -> Report {
        Scenario::explore(self, strategy, budget)
    }
    fn replay(&self, decisions: &[Decision]) -> Result<Report, Divergence> {
        Scenario::replay(self, decisions)
    }
    fn limits_mut(&mut self) -> &mut Limits {
        Scenario::limits_mut(self)
    }
    fn declare(&mut self, invariants: &[Invariant]) {
        Scenario::declare(self, invariants);
    }
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
