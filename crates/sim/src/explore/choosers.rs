//! Ways to decide: at random, by priorities, all of them, as before.

use super::decision::{Agent, Chooser, Decision, Footprint, Kind, Point, agents, nth};

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
    fn only(&mut self, _point: Point<'_>) {
        self.step += 1;
    }
}

/// A place where the search can turn.
#[derive(Clone, Debug)]
struct Turn {
    kind: Kind,
    chosen: u16,
    /// Agents still to be tried, or how many alternatives there are.
    left: u64,
    /// Agents whose steps from here lead to nothing new.
    asleep: u64,
    /// Agents tried here, the chosen one excepted.
    tried: u64,
    preemptions: u32,
}

/// Every execution, depth first; without those that differ from a seen one only in the order of steps that commute (sleep sets,
/// Godefroid 1996), or with a bound on preemptions (Musuvathi, Qadeer 2007).
#[derive(Clone, Debug)]
pub(crate) struct DepthFirst {
    path: Vec<Turn>,
    depth: usize,
    /// Agents asleep at the current place.
    asleep: u64,
    preemptions: u32,
    bound: Option<u32>,
    pub(crate) complete: bool,
    /// Something was left out for the bound.
    pub(crate) bounded: bool,
}

impl DepthFirst {
    pub(crate) fn new(bound: Option<u32>) -> Self {
        Self { path: Vec::new(), depth: 0, asleep: 0, preemptions: 0, bound, complete: false, bounded: false }
    }

    /// Sets up the next execution; false when there is none.
    pub(crate) fn advance(&mut self) -> bool {
        self.depth = 0;
        self.asleep = 0;
        self.preemptions = 0;
        while let Some(turn) = self.path.last_mut() {
            if turn.kind == Kind::Run {
                turn.tried |= 1 << turn.chosen;
                if turn.left != 0 {
                    turn.chosen = turn.left.trailing_zeros() as u16;
                    turn.left &= turn.left - 1;
                    return true;
                }
            } else if u64::from(turn.chosen) + 1 < turn.left {
                turn.chosen += 1;
                return true;
            }
            self.path.pop();
        }
        self.complete = true;
        false
    }

    /// Who is asleep after this step: whoever was, and commutes with it.
    fn step(&mut self, agent: Agent, asleep: u64, footprints: &[Footprint; 64]) {
        let mine = footprints[agent.0 as usize];
        let commute = |other: &Agent| !footprints[other.0 as usize].conflicts(mine);
        self.asleep = agents(asleep & !agent.bit()).filter(commute).fold(0, |set, agent| set | agent.bit());
    }
}

impl Chooser for DepthFirst {
    fn run(&mut self, point: Point<'_>) -> Option<Agent> {
        if self.depth == self.path.len() {
            let asleep = if self.bound.is_none() { self.asleep & point.enabled } else { 0 };
            let mut left = point.enabled & !asleep;
            if let (Some(bound), Some(current)) = (self.bound, point.current)
                && self.preemptions >= bound
            {
                self.bounded |= left != current.bit();
                left = current.bit();
            }
            let first = point.current.filter(|current| left & current.bit() != 0).or(agents(left).next())?;
            left &= !first.bit();
            let (kind, chosen, preemptions) = (Kind::Run, u16::from(first.0), self.preemptions);
            self.path.push(Turn { kind, chosen, left, asleep, tried: 0, preemptions });
        }
        let turn = &self.path[self.depth];
        let agent = Agent(turn.chosen as u8);
        let asleep = turn.asleep | turn.tried;
        self.preemptions = turn.preemptions + u32::from(point.current.is_some_and(|current| current != agent));
        self.depth += 1;
        if self.bound.is_none() {
            self.step(agent, asleep, point.footprints);
        }
        Some(agent)
    }

    fn pick(&mut self, kind: Kind, of: usize) -> Option<usize> {
        if self.depth == self.path.len() {
            let preemptions = self.preemptions;
            self.path.push(Turn { kind, chosen: 0, left: of as u64, asleep: 0, tried: 0, preemptions });
        }
        let chosen = self.path[self.depth].chosen;
        self.depth += 1;
        Some(chosen as usize)
    }

    fn only(&mut self, point: Point<'_>) {
        if self.bound.is_none()
            && let Some(agent) = agents(point.enabled).next()
        {
            let asleep = self.asleep;
            self.step(agent, asleep, point.footprints);
        }
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
    fn only(&mut self, point: Point<'_>) {
        self.0.borrow_mut().only(point);
    }
}
