//! Making a failure small: the fewest preemptions, then the fewest choices out of the ordinary, then the fewest steps, then the fewest actors;
//! always the same invariant.
//!
//! Ordinary is that whoever runs goes on, that walks read memory as it is, that nobody is told to give way and nothing fails. Choices are made
//! ordinary in blocks, from all of them down to single ones, as long as that helps. Whole actors are left out where what was broken was broken
//! by a step; what is judged when all have finished (leaks, lost wake-ups, balances) takes everybody's part for granted, and would be broken by whoever is
//! missing.

use super::choosers::{Dice, Follow, Random};
use super::decision::{Agent, Decision, Kind};
use super::failure::Failure;
use super::invariant::Invariant;
use super::run::{Execution, Runner, When, verdict};
use super::scenario::Scenario;
use super::strategy::Found;
use crate::arch::Arch;

/// Executions that shrinking may take.
const MOST_TRIES: u32 = 3000;
/// Random executions that look for the failure without an actor, when the known decisions do not lead there.
const SEARCHED: u64 = 48;

/// What is to become small, in this order.
type Size = (u64, usize, u64);

fn size(execution: &Execution, trail: &[Decision]) -> Size {
    let odd = trail.iter().filter(|decision| decision.kind != Kind::Run && decision.chosen != 0).count();
    (execution.preemptions, odd, execution.steps)
}

struct Shrinker<'s, A: Arch> {
    scenario: &'s Scenario<A>,
    runner: Runner<'s, A>,
    invariant: Invariant,
    tries: u32,
}

/// A failing execution.
struct Small {
    size: Size,
    trail: Vec<Decision>,
    when: When,
}

impl<A: Arch> Shrinker<'_, A> {
    fn may_try(&self) -> bool {
        self.tries < MOST_TRIES
    }

    /// What comes of these decisions, if it is the same failure.
    fn try_one(&mut self, script: Vec<Option<Decision>>, then: Option<Random>) -> Option<Small> {
        self.tries += 1;
        let execution = self.runner.execute(Box::new(Follow::new(script, then)));
        let broken = verdict(&execution, self.scenario.limits.livelock, true)?;
        let trail = self.runner.trail();
        (broken.invariant == self.invariant).then(|| Small {
            size: size(&execution, &trail),
            trail,
            when: execution.when,
        })
    }

    /// Makes choices ordinary.
    fn straighten(&mut self, best: &mut Small) {
        let mut block = best.trail.len().max(1);
        while block > 0 {
            let mut start = 0;
            let mut helped = false;
            while start < best.trail.len() && self.may_try() {
                let kept = |n: usize| !(start..start + block).contains(&n);
                let script = best.trail.iter().enumerate().map(|(n, &decision)| kept(n).then_some(decision)).collect();
                match self.try_one(script, None).filter(|found| found.size < best.size) {
                    Some(found) => (*best, helped) = (found, true),
                    None => start += block,
                }
            }
            if !self.may_try() {
                break;
            }
            if !helped || block > 1 {
                block /= 2;
            }
        }
    }

    /// Leaves out actors that the failure does not need.
    fn dismiss(&mut self, best: &mut Small, actors: usize) {
        for actor in 0..actors {
            let before = self.runner.without();
            if best.when == When::End || before.contains(actor) || !self.may_try() {
                continue;
            }
            self.runner.leave_out(before.with(actor));
            match self.without(best, actor) {
                Some(found) => *best = found,
                None => self.runner.leave_out(before),
            }
        }
    }

    /// The same failure without an actor that has just been left out.
    fn without(&mut self, best: &Small, actor: usize) -> Option<Small> {
        let gone = [Agent::actor(actor), Agent::buffer(actor)];
        let his = |decision: &Decision| {
            decision.kind == Kind::Run && gone.iter().any(|agent| u16::from(agent.0) == decision.chosen)
        };
        let others = best.trail.iter().filter(|decision| !his(decision)).copied().map(Some).collect();
        let found =
            self.try_one(others, None).or_else(|| self.try_one(best.trail.iter().copied().map(Some).collect(), None));
        found
            .or_else(|| {
                (0..SEARCHED).find_map(|number| {
                    let dice = Dice::new(1, number);
                    self.try_one(Vec::new(), Some(Random { dice, stays: 3 * (number as usize % 3) }))
                })
            })
            .filter(|found| found.when == When::Step)
    }
}

/// The smallest execution found that breaks the same invariant.
pub(crate) fn shrink<A: Arch>(scenario: &Scenario<A>, found: Found, executions: u64) -> Failure {
    let invariant = found.broken.invariant;
    let mut shrinker = Shrinker { scenario, runner: Runner::new(scenario), invariant, tries: 0 };
    let Some(mut best) = shrinker.try_one(found.trail.iter().copied().map(Some).collect(), None) else {
        return Failure::of(&mut shrinker.runner, found.trail, invariant, executions);
    };
    shrinker.straighten(&mut best);
    let before = shrinker.runner.without();
    let actors = shrinker.runner.names().len();
    shrinker.dismiss(&mut best, actors);
    if shrinker.runner.without() != before {
        shrinker.straighten(&mut best);
    }
    Failure::of(&mut shrinker.runner, best.trail, invariant, executions)
}
