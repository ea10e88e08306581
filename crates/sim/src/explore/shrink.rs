//! Making a failure small: the fewest preemptions, then the fewest choices out of the ordinary, then the fewest steps; always the same
//! invariant.
//!
//! Ordinary is that whoever runs goes on, that walks read memory as it is, that nobody is told to give way and nothing fails. Choices are made
//! ordinary in blocks, from all of them down to single ones, as long as that helps.

use super::choosers::Follow;
use super::decision::{Decision, Kind};
use super::failure::Failure;
use super::invariant::Invariant;
use super::run::{Execution, Runner, verdict};
use super::scenario::Scenario;
use crate::arch::Arch;

/// Executions that shrinking may take.
const MOST_TRIES: u32 = 3000;

/// What is to become small, in this order.
type Size = (u64, usize, u64);

fn size(execution: &Execution, trail: &[Decision]) -> Size {
    let odd = trail.iter().filter(|decision| decision.kind != Kind::Run && decision.chosen != 0).count();
    (execution.preemptions, odd, execution.steps)
}

/// The smallest execution found that breaks the same invariant.
pub(crate) fn shrink<A: Arch>(
    scenario: &Scenario<A>,
    invariant: Invariant,
    trail: Vec<Decision>,
    executions: u64,
) -> Failure {
    let mut runner = Runner::new(scenario);
    let mut best = trail.clone();
    let mut tries = 0;
    let mut try_one = |runner: &mut Runner<'_, A>, script: Vec<Option<Decision>>| {
        tries += 1;
        let execution = runner.execute(Box::new(Follow::new(script, None)));
        let broken = verdict(&execution, scenario.limits.livelock, true);
        let same = broken.is_some_and(|broken| broken.invariant == invariant);
        (same.then(|| (size(&execution, &runner.trail()), runner.trail())), tries < MOST_TRIES)
    };
    let (first, _) = try_one(&mut runner, best.iter().copied().map(Some).collect());
    let Some((mut least, _)) = first else {
        return Failure::of(&mut runner, trail, invariant, executions);
    };
    let mut block = best.len().max(1);
    'blocks: while block > 0 {
        let mut start = 0;
        let mut helped = false;
        while start < best.len() {
            let script: Vec<Option<Decision>> = best
                .iter()
                .enumerate()
                .map(|(n, &decision)| (!(start..start + block).contains(&n)).then_some(decision))
                .collect();
            let (smaller, goes_on) = try_one(&mut runner, script);
            if let Some((found, trail)) = smaller
                && found < least
            {
                (least, best, helped) = (found, trail, true);
            } else {
                start += block;
            }
            if !goes_on {
                break 'blocks;
            }
        }
        if !helped || block > 1 {
            block /= 2;
        }
    }
    Failure::of(&mut runner, best, invariant, executions)
}
