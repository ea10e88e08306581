//! Ways to decide: at random, by priorities, as before. `depth_first` has the way through all of them.

use super::decision::{Agent, Chooser, Decision, Kind, Point, agents, nth};

/// A small fast generator: the stream of an execution is a function of seed and number.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64, number: u64) -> Self {
        let mut dice = Self(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        dice.throw();
        dice
    }

    /// Sixty-four bits (SplitMix64; Steele, Lea, Flood 2014).
    fn throw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ bits >> 31
    }

    /// A number below `n`, which is small.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((self.throw() >> 32).wrapping_mul(n as u64) >> 32) as usize
    }

    /// One of several alternatives, of which the first is the ordinary one.
    fn pick(&mut self, kind: Kind, of: usize) -> usize {
        let ordinary = match kind {
            Kind::Alloc => 7,
            Kind::Exclusive => 3,
            Kind::Run | Kind::Version | Kind::Resched | Kind::Load => 1,
        };
        if self.below(ordinary + 1) < ordinary { 0 } else { self.below(of) }
    }
}

/// Anybody may be next.
#[derive(Clone, Debug)]
pub(crate) struct Random {
    pub(crate) dice: Dice,
    /// Whoever runs goes on so many times out of eight.
    pub(crate) stays: usize,
}

impl Chooser for Random {
    fn run(&mut self, point: Point<'_>) -> Option<Agent> {
        if self.stays > 0
            && let Some(current) = point.current
            && self.dice.below(8) < self.stays
        {
            return Some(current);
        }
        nth(point.enabled, self.dice.below(point.enabled.count_ones() as usize))
    }
    fn pick(&mut self, kind: Kind, of: usize) -> Option<usize> {
        Some(self.dice.pick(kind, of))
    }
}

/// Priorities that change at a few moments (Burckhardt, Kothari, Musuvathi, Nagarakatte 2010): a defect of depth d is found with a
/// probability of at least 1/(n k^(d-1)).
#[derive(Clone, Debug)]
pub(crate) struct Pct {
    dice: Dice,
    priorities: [u16; 64],
    /// Steps at which whoever is about to run is put last.
    changes: Vec<u64>,
    step: u64,
    lowest: u16,
}

impl Pct {
    pub(crate) fn new(mut dice: Dice, depth: u32, steps: u64) -> Self {
        let mut priorities = [0; 64];
        for priority in &mut priorities {
            *priority = 1000 + dice.below(1 << 14) as u16;
        }
        let changes = (1..depth).map(|_| dice.below(steps.max(1) as usize) as u64).collect();
        Self { dice, priorities, changes, step: 0, lowest: 999 }
    }

    fn first(&self, set: u64) -> Option<Agent> {
        agents(set).max_by_key(|agent| (self.priorities[agent.0 as usize], agent.0))
    }
}

impl Chooser for Pct {
    fn run(&mut self, point: Point<'_>) -> Option<Agent> {
        self.step += 1;
        if self.changes.contains(&self.step)
            && let Some(first) = self.first(point.enabled)
        {
            self.priorities[first.0 as usize] = self.lowest;
            self.lowest -= 1;
        }
        self.first(point.enabled)
    }
    fn pick(&mut self, kind: Kind, of: usize) -> Option<usize> {
        Some(self.dice.pick(kind, of))
    }
    fn only(&mut self, _point: Point<'_>) -> Option<()> {
        self.step += 1;
        Some(())
    }
}

/// Anybody may be next, each with the share of the steps that it has left: close to uniform over the interleavings of a fixed number of steps,
/// where choosing among actors favours those with few steps (uniform random walks; Yuan, Yang, Gu 2018, section 4; Zhao, Wolff, Mathur, Roychoudhury 2025).
/// How many steps each has left is what earlier executions had, so it is uniform as far as executions resemble each other.
#[derive(Clone, Debug)]
pub(crate) struct Uniform {
    dice: Dice,
    left: [u32; 64],
}

impl Uniform {
    /// `steps` is how many steps each agent is expected to make.
    pub(crate) fn new(dice: Dice, steps: &[u32; 64]) -> Self {
        Self { dice, left: *steps }
    }

    fn made(&mut self, agent: Agent) {
        let left = &mut self.left[agent.0 as usize];
        *left = left.saturating_sub(1);
    }
}

impl Chooser for Uniform {
    fn run(&mut self, point: Point<'_>) -> Option<Agent> {
        // Who has more steps than expected has at least one left.
        let weight = |agent: Agent| self.left[agent.0 as usize].max(1) as usize;
        let mut at = self.dice.clone().below(agents(point.enabled).map(weight).sum());
        let chosen = agents(point.enabled).find(|&agent| {
            let weight = weight(agent);
            let found = at < weight;
            at = at.wrapping_sub(weight);
            found
        });
        self.dice.throw();
        if let Some(agent) = chosen {
            self.made(agent);
        }
        chosen
    }
    fn pick(&mut self, kind: Kind, of: usize) -> Option<usize> {
        Some(self.dice.pick(kind, of))
    }
    fn only(&mut self, point: Point<'_>) -> Option<()> {
        agents(point.enabled).for_each(|agent| self.made(agent));
        Some(())
    }
}

/// At random, counting whose steps an execution has.
#[derive(Clone, Debug)]
pub(crate) struct Counting {
    random: Random,
    pub(crate) steps: [u32; 64],
}

impl Counting {
    pub(crate) fn new(dice: Dice) -> Self {
        Self { random: Random { dice, stays: 0 }, steps: [0; 64] }
    }
}

impl Chooser for Counting {
    fn run(&mut self, point: Point<'_>) -> Option<Agent> {
        let chosen = self.random.run(point);
        if let Some(agent) = chosen {
            self.steps[agent.0 as usize] += 1;
        }
        chosen
    }
    fn pick(&mut self, kind: Kind, of: usize) -> Option<usize> {
        self.random.pick(kind, of)
    }
    fn only(&mut self, point: Point<'_>) -> Option<()> {
        agents(point.enabled).for_each(|agent| self.steps[agent.0 as usize] += 1);
        Some(())
    }
}

/// Notes the states that an execution goes through.
#[derive(Clone, Debug)]
pub(crate) struct Noting<C> {
    pub(crate) inner: C,
    pub(crate) states: Vec<u64>,
}

impl<C: Chooser> Chooser for Noting<C> {
    fn run(&mut self, point: Point<'_>) -> Option<Agent> {
        self.states.extend(point.state);
        self.inner.run(point)
    }
    fn pick(&mut self, kind: Kind, of: usize) -> Option<usize> {
        self.inner.pick(kind, of)
    }
    fn only(&mut self, point: Point<'_>) -> Option<()> {
        self.inner.only(point)
    }
    fn wants_state(&self) -> bool {
        true
    }
}

/// Where a replay left its script.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Divergence {
    /// At which decision, from 0.
    pub at: usize,
    /// What the script has there, if it goes that far.
    pub wanted: Option<Decision>,
    /// What was asked instead.
    pub asked: String,
}

impl std::fmt::Display for Divergence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.wanted {
            Some(wanted) => {
                write!(f, "decision {}: the file has {wanted}, the execution asks for {}", self.at, self.asked)
            }
            None => write!(f, "decision {}: the file ends, the execution asks for {}", self.at, self.asked),
        }
    }
}
impl std::error::Error for Divergence {}

/// Exactly as before, or not at all.
#[derive(Clone, Debug)]
pub(crate) struct Replay {
    script: Vec<Decision>,
    pub(crate) at: usize,
    pub(crate) diverged: Option<Divergence>,
}

impl Replay {
    pub(crate) fn new(script: Vec<Decision>) -> Self {
        Self { script, at: 0, diverged: None }
    }

    fn next(&mut self, kind: Kind, of: usize, possible: impl Fn(u16) -> bool) -> Option<u16> {
        let wanted = self.script.get(self.at).copied();
        if let Some(decision) = wanted
            && decision.kind == kind
            && usize::from(decision.of) == of
            && possible(decision.chosen)
        {
            self.at += 1;
            return Some(decision.chosen);
        }
        self.diverged = Some(Divergence { at: self.at, wanted, asked: format!("{kind:?} of {of}") });
        None
    }
}

impl Chooser for Replay {
    fn run(&mut self, point: Point<'_>) -> Option<Agent> {
        let of = point.enabled.count_ones() as usize;
        self.next(Kind::Run, of, |chosen| chosen < 64 && point.enabled >> chosen & 1 != 0)
            .map(|agent| Agent(agent as u8))
    }
    fn pick(&mut self, kind: Kind, of: usize) -> Option<usize> {
        self.next(kind, of, |chosen| usize::from(chosen) < of).map(usize::from)
    }
}

/// As before as far as that goes, and then whoever runs goes on; what does not fit is passed over.
#[derive(Clone, Debug)]
pub(crate) struct Follow {
    script: Vec<Option<Decision>>,
    at: usize,
    /// What decides when the script has ended.
    then: Option<Random>,
}

impl Follow {
    /// `None` is a decision left to the rule.
    pub(crate) fn new(script: Vec<Option<Decision>>, then: Option<Random>) -> Self {
        Self { script, at: 0, then }
    }

    fn next(&mut self, kind: Kind) -> Said {
        let Some(&decision) = self.script.get(self.at) else { return Said::NothingMore };
        self.at += 1;
        let fits = decision.filter(|decision| decision.kind == kind);
        fits.map_or(Said::Ordinary, |decision| Said::Chosen(decision.chosen))
    }
}

/// What a script has for a decision.
enum Said {
    Chosen(u16),
    /// The rule decides.
    Ordinary,
    NothingMore,
}

impl Chooser for Follow {
    fn run(&mut self, point: Point<'_>) -> Option<Agent> {
        match (self.next(Kind::Run), &mut self.then) {
            (Said::NothingMore, Some(then)) => then.run(point),
            (Said::Chosen(chosen), _) if point.enabled >> (chosen & 63) & 1 != 0 => Some(Agent(chosen as u8)),
            _ => point.current.or(agents(point.enabled).next()),
        }
    }
    fn pick(&mut self, kind: Kind, of: usize) -> Option<usize> {
        match (self.next(kind), &mut self.then) {
            (Said::NothingMore, Some(then)) => then.pick(kind, of),
            (Said::Chosen(chosen), _) if usize::from(chosen) < of => Some(chosen.into()),
            _ => Some(0),
        }
    }
}

/// A chooser that is looked at after the execution.
pub(crate) struct Shared<C>(pub(crate) std::rc::Rc<std::cell::RefCell<C>>);

impl<C: Chooser> Chooser for Shared<C> {
    fn run(&mut self, point: Point<'_>) -> Option<Agent> {
        self.0.borrow_mut().run(point)
    }
    fn pick(&mut self, kind: Kind, of: usize) -> Option<usize> {
        self.0.borrow_mut().pick(kind, of)
    }
    fn only(&mut self, point: Point<'_>) -> Option<()> {
        self.0.borrow_mut().only(point)
    }
    fn repeats(&self) -> Option<u64> {
        self.0.borrow().repeats()
    }
    fn wants_footprints(&self, step: u64) -> bool {
        self.0.borrow().wants_footprints(step)
    }
    fn wants_state(&self) -> bool {
        self.0.borrow().wants_state()
    }
}
