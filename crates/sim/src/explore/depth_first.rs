//! Every execution, depth first, as a tree of decisions that can be split.
//!
//! What is left out, and why nothing is lost:
//!
//! - *Sleep sets* (Godefroid 1996): an agent whose step was tried at an earlier turn, and commutes with every step since, need not make it here:
//!   the execution would differ from a known one in the order of steps that commute only.
//! - *States* ([`Lab::state`](super::lab::Lab)): an execution that comes to a state which was seen is given up there. Where the earlier
//!   visit had agents asleep that are awake now, only these are tried.
//! - A *bound* on preemptions (Musuvathi, Qadeer 2007) or on delays (Emmi, Qadeer, Rakamarić 2011) leaves executions out for good. Neither of the two
//!   above is used with it: what they refer to may have been beyond the bound.
//!
//! Both refer to what comes earlier in depth-first order: a known state to an earlier visit, a sleeping agent to an earlier turn. So among
//! all executions to an end that is reached at all, the first in that order is never left out: whatever would give it up refers to one that is
//! earlier still. Searches may be split and run side by side as long as each refers only to what comes before it in the order: a
//! [split](DepthFirst::split) hands over what comes last, and [`Seen`] knows the states of searches before it, not of those behind.

use std::sync::Arc;

use super::by_digest::ByDigest;
use super::decision::{Agent, Chooser, Footprint, Kind, Point, agents};

/// What a search leaves out for good.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Bound {
    /// Nothing.
    None,
    /// Executions with more preemptions.
    Preemptions(u32),
    /// Executions with more delays: whoever would be next, by who ran last, is passed over.
    Delays(u32),
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
    /// Preemptions or delays before.
    spent: u32,
    /// Who ran before.
    last: u8,
    /// Steps before, where somebody is chosen to run.
    step: u64,
}

impl Turn {
    /// Whether there is something to try here beside what is chosen.
    fn is_open(&self) -> bool {
        if self.kind == Kind::Run { self.left != 0 } else { u64::from(self.chosen) + 1 < self.left }
    }

    /// The next alternative.
    fn turn(&mut self) {
        if self.kind == Kind::Run {
            self.tried |= 1 << self.chosen;
            self.chosen = self.left.trailing_zeros() as u16;
            self.left &= self.left - 1;
        } else {
            self.chosen += 1;
        }
    }

    /// Leaves everything but what is chosen to somebody else.
    fn close(&mut self) {
        self.left = if self.kind == Kind::Run { 0 } else { u64::from(self.chosen) + 1 };
    }
}

/// A state as somebody came to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Visit {
    /// Agents that were asleep whenever it was visited.
    pub(crate) asleep: u64,
    /// The search that visited it.
    pub(crate) by: u32,
}

/// States that searches came to.
pub(crate) type Known = ByDigest<Visit>;

/// What searches had come to when they were stopped last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Past {
    /// In parts, by [`Past::part`], which can be added to side by side.
    pub(crate) known: [Known; Past::PARTS],
    /// Where each search stands in the order of all of them.
    pub(crate) places: Vec<u32>,
}

impl Past {
    const PARTS: usize = 16;

    /// Which part a state belongs to: the high bits say, the low ones say where in it.
    pub(crate) const fn part(state: u64) -> usize {
        (state >> (64 - Self::PARTS.ilog2())) as usize
    }

    /// Who was asleep at a state whenever it was visited by the search at this place, or by those before it.
    fn asleep(&self, state: u64, place: u32) -> Option<u64> {
        let known = self.known[Self::part(state)].of(state);
        let before = known.filter(|visit| self.places[visit.by as usize] <= place);
        before.map(|visit| visit.asleep).reduce(|one, two| one & two)
    }
}

/// States that need not be looked at again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// What this search and others have seen until they were stopped last, and its place.
    pub(crate) past: Arc<Past>,
    pub(crate) place: u32,
    /// What it has seen since then.
    pub(crate) fresh: Known,
}

impl Seen {
    /// Notes a visit with these agents asleep, and says which agents are to be tried: `None`, all that are awake.
    fn visit(&mut self, state: u64, asleep: u64) -> Option<u64> {
        let past = self.past.asleep(state, self.place);
        let fresh = self.fresh.find_mut(state, |_| true);
        let known = past.into_iter().chain(fresh.as_ref().map(|visit| visit.asleep)).reduce(|one, two| one & two);
        let asleep_always = asleep & known.unwrap_or(u64::MAX);
        match fresh {
            Some(visit) => visit.asleep = asleep_always,
            None => self.fresh.add(state, Visit { asleep: asleep_always, by: 0 }),
        }
        known.map(|known| known & !asleep)
    }
}

/// A search through all executions, or through a part of them.
#[derive(Clone, Debug)]
pub(crate) struct DepthFirst {
    path: Vec<Turn>,
    depth: usize,
    /// Turns up to the last one at which somebody is chosen to run.
    known_to: usize,
    /// Agents asleep at the current place.
    asleep: u64,
    spent: u32,
    last: Agent,
    bound: Bound,
    pub(crate) seen: Option<Seen>,
    pub(crate) complete: bool,
    /// Something was left out for the bound.
    pub(crate) bounded: bool,
}

impl DepthFirst {
    pub(crate) fn new(bound: Bound, seen: Option<Seen>) -> Self {
        Self {
            path: Vec::new(),
            depth: 0,
            known_to: 0,
            asleep: 0,
            spent: 0,
            last: Agent::actor(0),
            bound,
            seen,
            complete: false,
            bounded: false,
        }
    }

    /// Sets up the next execution; false when there is none.
    pub(crate) fn advance(&mut self) -> bool {
        self.rewind();
        while let Some(turn) = self.path.last_mut() {
            if turn.is_open() {
                turn.turn();
                self.find_known();
                return true;
            }
            self.path.pop();
        }
        self.complete = true;
        false
    }

    fn find_known(&mut self) {
        self.known_to = self.path.iter().rposition(|turn| turn.kind == Kind::Run).map_or(0, |last| last + 1);
    }

    fn rewind(&mut self) {
        (self.depth, self.asleep, self.spent, self.last) = (0, 0, 0, Agent::actor(0));
    }

    /// Hands over what would be looked at last: the alternatives of the first open turn. Only between executions.
    pub(crate) fn split(&mut self) -> Option<DepthFirst> {
        let first = self.path.iter().position(Turn::is_open)?;
        let mut other = Self::new(self.bound, self.seen.as_ref().map(|_| Seen::default()));
        other.path = self.path[..=first].to_vec();
        other.path[first].turn();
        other.find_known();
        self.path[first].close();
        Some(other)
    }

    /// Whether there is a turn ahead that was come to before: who is asleep then is written there.
    fn is_known(&self) -> bool {
        self.depth < self.known_to
    }

    /// Who is asleep after this step: whoever was, and commutes with it.
    fn step(&mut self, agent: Agent, asleep: u64, footprints: &[Footprint; 64]) {
        let mine = footprints[agent.0 as usize];
        let commute = |other: &Agent| !footprints[other.0 as usize].conflicts(mine);
        self.asleep = agents(asleep & !agent.bit()).filter(commute).fold(0, |set, agent| set | agent.bit());
    }

    /// How many preemptions or delays it takes to choose somebody.
    fn price(&self, point: &Point<'_>, agent: Agent) -> u32 {
        match self.bound {
            Bound::None => 0,
            Bound::Preemptions(_) => u32::from(point.current.is_some_and(|current| current != agent)),
            Bound::Delays(_) => {
                // Whoever ran last goes on, then it is the next one's turn, and round again.
                let from = u32::from(self.last.0);
                let turned = point.enabled.rotate_right(from);
                let place = (u32::from(agent.0) + 64 - from) % 64;
                (turned & ((1_u64 << place) - 1)).count_ones()
            }
        }
    }

    /// Who can be chosen here: not asleep, within the bound, and not known.
    fn candidates(&mut self, point: &Point<'_>) -> (u64, u64) {
        let most = match self.bound {
            Bound::None => {
                let asleep = self.asleep & point.enabled;
                let left = point.enabled & !asleep;
                let fresh = match (&mut self.seen, point.state) {
                    (Some(seen), Some(state)) => seen.visit(state, asleep),
                    _ => None,
                };
                // Who was tried on an earlier visit is asleep on this one.
                return fresh.map_or((left, asleep), |fresh| (left & fresh, point.enabled & !(left & fresh)));
            }
            Bound::Preemptions(most) | Bound::Delays(most) => most,
        };
        let cheap = |agent: &Agent| self.spent + self.price(point, *agent) <= most;
        let left = agents(point.enabled).filter(cheap).fold(0, |set, agent| set | agent.bit());
        self.bounded |= left != point.enabled;
        (left, 0)
    }

    fn new_turn(&mut self, point: &Point<'_>) -> Option<()> {
        let (mut left, asleep) = self.candidates(point);
        let ordinary = agents(left).min_by_key(|&agent| (self.price(point, agent), agent));
        let first = point.current.filter(|current| left & current.bit() != 0).or(ordinary)?;
        left &= !first.bit();
        let (kind, chosen, spent, last) = (Kind::Run, u16::from(first.0), self.spent, self.last.0);
        self.path.push(Turn { kind, chosen, left, asleep, tried: 0, spent, last, step: point.step });
        self.known_to = self.path.len();
        Some(())
    }
}

impl Chooser for DepthFirst {
    fn run(&mut self, point: Point<'_>) -> Option<Agent> {
        // Nobody was asked at turns that were repeated.
        while self.path.get(self.depth).is_some_and(|turn| turn.step < point.step) {
            self.depth += 1;
        }
        if self.depth == self.path.len() {
            self.new_turn(&point)?;
        }
        let turn = &self.path[self.depth];
        let agent = Agent(turn.chosen as u8);
        let asleep = turn.asleep | turn.tried;
        (self.spent, self.last) = (turn.spent, Agent(turn.last));
        self.spent += self.price(&point, agent);
        self.last = agent;
        self.depth += 1;
        if self.bound == Bound::None && !self.is_known() {
            self.step(agent, asleep, point.footprints);
        }
        Some(agent)
    }

    fn pick(&mut self, kind: Kind, of: usize) -> Option<usize> {
        while self.path.get(self.depth).is_some_and(|turn| turn.kind == Kind::Run) {
            self.depth += 1;
        }
        if self.depth == self.path.len() {
            let (spent, last) = (self.spent, self.last.0);
            self.path.push(Turn { kind, chosen: 0, left: of as u64, asleep: 0, tried: 0, spent, last, step: 0 });
        }
        let chosen = self.path[self.depth].chosen;
        self.depth += 1;
        Some(chosen as usize)
    }

    fn only(&mut self, point: Point<'_>) -> Option<()> {
        let agent = agents(point.enabled).next()?;
        self.last = agent;
        if self.is_known() {
            return Some(());
        }
        if self.asleep & agent.bit() != 0 {
            return None;
        }
        if self.bound == Bound::None {
            let asleep = self.asleep;
            self.step(agent, asleep, point.footprints);
        }
        Some(())
    }

    fn repeats(&self) -> Option<u64> {
        // Who is asleep behind the last turn depends on the steps from there on, so they are chosen anew.
        Some(self.known_to.checked_sub(1).map_or(0, |last| self.path[last].step))
    }

    fn wants_footprints(&self, step: u64) -> bool {
        self.bound == Bound::None && self.repeats().is_some_and(|repeated| step >= repeated)
    }

    fn wants_state(&self) -> bool {
        self.seen.is_some() && self.depth == self.path.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything that a search over three agents with two steps each chooses, whoever is not done being able to go on.
    fn orders(mut searches: Vec<DepthFirst>, footprint: Footprint, split: impl Fn(usize) -> bool) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        let mut at = 0;
        let mut executions = 0;
        while at < searches.len() {
            let search = &mut searches[at];
            let (mut left, mut order) = ([2, 2, 2], Vec::new());
            let footprints = [footprint; 64];
            loop {
                let enabled = (0..3).filter(|&n| left[n] > 0).fold(0, |set, n| set | 1_u64 << n);
                let current = order.last().map(|&last| Agent(last)).filter(|last| enabled & last.bit() != 0);
                let point = Point { enabled, current, footprints: &footprints, state: None, step: order.len() as u64 };
                let chosen = match enabled.count_ones() {
                    0 => break found.push(order),
                    1 => match search.only(point) {
                        Some(()) => Agent(enabled.trailing_zeros() as u8),
                        None => break,
                    },
                    _ => match search.run(point) {
                        Some(chosen) => chosen,
                        None => break,
                    },
                };
                left[chosen.0 as usize] -= 1;
                order.push(chosen.0);
            }
            executions += 1;
            let goes_on = search.advance();
            if goes_on && split(executions) {
                if let Some(other) = search.split() {
                    searches.insert(at + 1, other);
                }
            } else if !goes_on {
                at += 1;
            }
        }
        found
    }

    #[test]
    fn every_order_is_looked_at_once_and_splitting_changes_nothing() {
        let all = || vec![DepthFirst::new(Bound::None, None)];
        let whole = orders(all(), Footprint::ALL, |_| false);
        let distinct: std::collections::BTreeSet<_> = whole.iter().collect();
        assert_eq!((whole.len(), distinct.len()), (90, 90), "6! / 2!^3");
        for every in 1..5 {
            assert_eq!(orders(all(), Footprint::ALL, |n| n % every == 0), whole, "split at every {every}");
        }
        assert_eq!(orders(all(), Footprint::NONE, |_| false).len(), 1, "all orders are alike");
    }

    #[test]
    fn bounds_leave_out_what_is_beyond_them() {
        let count = |bound| orders(vec![DepthFirst::new(bound, None)], Footprint::ALL, |_| false);
        let switches = |order: &[u8]| {
            // Leaving somebody who could go on: who has made one step of two.
            let half_done = |n: usize| !order[..n - 1].contains(&order[n - 1]);
            (1..order.len()).filter(|&n| order[n] != order[n - 1] && half_done(n)).count()
        };
        let all = count(Bound::None);
        for most in 0..4 {
            let expected = all.iter().filter(|order| switches(order) <= most).count();
            assert_eq!(count(Bound::Preemptions(most as u32)).len(), expected, "{most} preemptions");
        }
        assert_eq!(count(Bound::Delays(0)), [[0, 0, 1, 1, 2, 2]], "nobody is passed over");
        let delayed: Vec<usize> = (0..6).map(|most| count(Bound::Delays(most)).len()).collect();
        assert!(delayed.is_sorted() && delayed[1] > 1 && delayed[1] <= 6, "{delayed:?}");
        assert_eq!(count(Bound::Delays(30)).len(), 90);
    }
}
