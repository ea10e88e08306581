//! Strategies over many executions, and what they report. The result is the same for any number of threads.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use super::choosers::{Divergence, Replay, Shared};
use super::decision::{Chooser, Decision};
use super::depth_first::Bound;
use super::failure::Failure;
use super::invariant::{Broken, Evaluations, Invariant};
use super::lab::End;
use super::limits::Limits;
use super::run::{Execution, Runner, verdict};
use super::scenario::{Cast, Scenario};
use super::search::States;
use super::shrink::shrink;
use super::traced::Trace;
use crate::arch::Arch;
use crate::rng::Seed;

/// In which order executions are looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Strategy {
    /// All of them, depth first, without those that differ only in the order of steps that commute, each up to the first state that was seen before.
    Exhaustive,
    /// The same without looking at states: every order of steps that do not commute.
    Stateless,
    /// All with at most so many preemptions, fewest first.
    Bounded(u32),
    /// All with at most so many delays, fewest first: actors take turns in the order of their numbers, each as long as it can go on, and a delay passes
    /// one over.
    Delays(u32),
    /// At random, everybody alike.
    Random,
    /// At random, everybody by the steps that are left: about uniform over interleavings.
    Uniform,
    /// At random, but whoever runs mostly goes on.
    Sticky,
    /// Random priorities with so many moments, less one, at which they change.
    Pct(u32),
    /// At random, mostly behind the beginning of an execution that came to new states.
    Coverage,
    /// These decisions, and then at random.
    Continue(Vec<Decision>),
    /// Few preemptions, then few delays, then a slice of each in turn: random, priorities, sticky, uniform.
    Portfolio,
}

impl Strategy {
    /// The strategies that have a name of their own, as [`str::parse`] reads it, with what each does. `Continue` needs an execution to
    /// go on from.
    pub const NAMED: [(&'static str, &'static str); 10] = [
        ("exhaustive", "all executions, each up to the first known state, one of each order of steps that commute"),
        ("stateless", "all executions, one of each order of steps that commute"),
        ("bounded:N", "all with at most N preemptions (2), fewest first"),
        ("delays:N", "all with at most N delays (2) of actors that take turns, fewest first"),
        ("random", "whoever can go on, at random"),
        ("uniform", "at random, weighted by the steps that everybody has left"),
        ("sticky", "at random, but whoever runs mostly goes on"),
        ("pct:DEPTH", "random priorities that change at DEPTH - 1 moments (3)"),
        ("coverage", "at random, from the middle of executions that came to new states"),
        ("portfolio", "few preemptions, few delays, then random, pct, sticky and uniform in turn"),
    ];
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Strategy::Exhaustive => f.write_str("exhaustive"),
            Strategy::Stateless => f.write_str("stateless"),
            Strategy::Bounded(bound) => write!(f, "bounded:{bound}"),
            Strategy::Delays(bound) => write!(f, "delays:{bound}"),
            Strategy::Random => f.write_str("random"),
            Strategy::Uniform => f.write_str("uniform"),
            Strategy::Sticky => f.write_str("sticky"),
            Strategy::Pct(depth) => write!(f, "pct:{depth}"),
            Strategy::Coverage => f.write_str("coverage"),
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
        let names = Strategy::NAMED.map(|(name, _)| name);
        write!(f, "no strategy is named {:?}; use one of {}", self.0, names.join(", "))
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
            ("stateless", None) => Strategy::Stateless,
            ("bounded", number) => Strategy::Bounded(number.unwrap_or(2)),
            ("delays", number) => Strategy::Delays(number.unwrap_or(2)),
            ("random", None) => Strategy::Random,
            ("uniform", None) => Strategy::Uniform,
            ("sticky", None) => Strategy::Sticky,
            ("pct", number) => Strategy::Pct(number.unwrap_or(3)),
            ("coverage", None) => Strategy::Coverage,
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
    /// Distinct states that executions came to where somebody had to be chosen; counted by `exhaustive` and `coverage`.
    pub states: u64,
    /// Distinct endings, by memory and by what every actor was told; counted by searches through all executions.
    pub endings: u64,
    /// What these endings amount to, in any order.
    pub endings_digest: u64,
}

impl Stats {
    pub(crate) fn add(&mut self, execution: &Execution) {
        self.executions += 1;
        self.steps += execution.steps;
        self.longest = self.longest.max(execution.steps);
        self.redundant += u64::from(execution.end == End::Abandoned);
        self.cut += u64::from(execution.end == End::Cut);
        self.digest = self.digest.rotate_left(5) ^ execution.digest;
    }
    pub(crate) fn merge(&mut self, other: &Stats) {
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
pub(crate) struct Found {
    pub(crate) broken: Broken,
    pub(crate) trail: Vec<Decision>,
}

impl<A: Arch> Scenario<A> {
    /// Looks at executions until one breaks an invariant, none is left or the budget is used up.
    ///
    /// Uses the threads of the current rayon pool. The report does not depend on how many there are.
    pub fn explore(&self, strategy: &Strategy, budget: Budget) -> Report {
        let mut stats = Stats::default();
        let (found, complete) = match strategy {
            Strategy::Exhaustive => self.search(Bound::None, States::Known, budget.schedules, &mut stats).ended(),
            Strategy::Stateless => self.search(Bound::None, States::Ignored, budget.schedules, &mut stats).ended(),
            Strategy::Bounded(most) => self.bounded(Bound::Preemptions, *most, budget.schedules, &mut stats),
            Strategy::Delays(most) => self.bounded(Bound::Delays, *most, budget.schedules, &mut stats),
            Strategy::Portfolio => self.portfolio(budget, &mut stats),
            Strategy::Coverage => (self.covering(budget, &mut stats), false),
            sampled => (self.sample(sampled, budget, &mut stats), false),
        };
        let verdict = match (&found, complete) {
            (Some(_), _) => Verdict::Broken,
            (None, true) if stats.cut == 0 => Verdict::Proved,
            _ => Verdict::Passed,
        };
        let failure = found.map(|found| match budget.shrinking {
            Shrinking::Thorough => shrink(self, found, stats.executions),
            Shrinking::Off => {
                Failure::of(&mut Runner::new(self), found.trail, found.broken.invariant, stats.executions)
            }
        });
        Report { scenario: self.name.clone(), verdict, stats, failure, unevaluated: self.unevaluated(&stats) }
    }

    fn unevaluated(&self, stats: &Stats) -> Vec<Invariant> {
        self.declared.iter().copied().filter(|&invariant| stats.evaluations.of(invariant) == 0).collect()
    }

    pub(crate) fn judge(&self, execution: &Execution, fair: bool) -> Option<Broken> {
        verdict(execution, self.limits.livelock, fair)
    }

    // ---- one execution ----

    /// One execution, decided by a chooser of your own.
    pub fn execute(&self, chooser: Box<dyn Chooser>) -> Report {
        let mut runner = Runner::new(self);
        let execution = runner.execute(chooser);
        self.report(&mut runner, &execution, false)
    }

    /// Executes these decisions again, exactly.
    ///
    /// # Errors
    /// At the first decision that the execution does not ask for.
    pub fn replay(&self, decisions: &[Decision]) -> Result<Report, Divergence> {
        let mut runner = Runner::new(self);
        let replay = Rc::new(RefCell::new(Replay::new(decisions.to_vec())));
        let execution = runner.execute(Box::new(Shared(replay.clone())));
        if let Some(diverged) = replay.borrow().diverged.clone() {
            return Err(diverged);
        }
        let at = replay.borrow().at;
        if let Some(&extra) = decisions.get(at) {
            return Err(Divergence { at, wanted: Some(extra), asked: "nothing more".to_owned() });
        }
        Ok(self.report(&mut runner, &execution, true))
    }

    /// What an execution says by itself; `fair` if it could only be cut short because somebody goes round in circles.
    fn report(&self, runner: &mut Runner<'_, A>, execution: &Execution, fair: bool) -> Report {
        let mut stats = Stats::default();
        stats.add(execution);
        stats.evaluations = runner.take_evaluations();
        let decisions = runner.trail();
        let failure = self
            .judge(execution, fair)
            .map(|broken| Failure::of(&mut Runner::new(self), decisions, broken.invariant, 1));
        let verdict = if failure.is_some() { Verdict::Broken } else { Verdict::Passed };
        let unevaluated = self.unevaluated(&stats);
        Report { scenario: self.name.clone(), verdict, stats, failure, unevaluated }
    }
}

/// A scenario of any architecture.
pub trait Explorable: Send + Sync {
    /// See [`Scenario::explore`].
    fn explore(&self, strategy: &Strategy, budget: Budget) -> Report;
    /// See [`Scenario::execute`].
    fn execute(&self, chooser: Box<dyn Chooser>) -> Report;
    /// See [`Scenario::replay`].
    ///
    /// # Errors
    /// At the first decision that the execution does not ask for.
    fn replay(&self, decisions: &[Decision]) -> Result<Report, Divergence>;
    /// See [`Scenario::trace`].
    fn trace(&self, decisions: &[Decision]) -> Trace;
    /// See [`Scenario::trace_at_random`].
    fn trace_at_random(&self, seed: Seed, number: u64) -> Trace;
    /// See [`Scenario::cast`].
    fn cast(&self) -> Cast;
    /// What bounds it.
    fn limits_mut(&mut self) -> &mut Limits;
    /// See [`Scenario::declares`].
    fn declare(&mut self, invariants: &[Invariant]);
}

impl<A: Arch> Explorable for Scenario<A> {
    fn explore(&self, strategy: &Strategy, budget: Budget) -> Report {
        Scenario::explore(self, strategy, budget)
    }
    fn execute(&self, chooser: Box<dyn Chooser>) -> Report {
        Scenario::execute(self, chooser)
    }
    fn replay(&self, decisions: &[Decision]) -> Result<Report, Divergence> {
        Scenario::replay(self, decisions)
    }
    fn trace(&self, decisions: &[Decision]) -> Trace {
        Scenario::trace(self, decisions)
    }
    fn trace_at_random(&self, seed: Seed, number: u64) -> Trace {
        Scenario::trace_at_random(self, seed, number)
    }
    fn cast(&self) -> Cast {
        Scenario::cast(self)
    }
    fn limits_mut(&mut self) -> &mut Limits {
        Scenario::limits_mut(self)
    }
    fn declare(&mut self, invariants: &[Invariant]) {
        Scenario::declare(self, invariants);
    }
}
