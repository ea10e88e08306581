//! How the cost of a step grows with those who make steps, and with how many an execution has.

use mmusim::sim::engine::{Bed, Sim, Var};
use mmusim::sim::explore::{Budget, Scenario, Shrinking, SmallVm, Strategy};
use mmusim::{Arch, Bytes, Cycles, Machine, Seed, arch};

use super::cases::{Measured, finish, timed};

/// Steps of all actors together.
const STEPS: u64 = 1 << 20;

/// Host actors that run at the same time, each with a counter of its own: micro-operations.
pub fn actors<A: Arch>(mut sim: Sim<A>, actors: u64) -> Measured {
    for actor in 0..actors {
        let count = sim.new_var(0);
        sim.spawn("actor", Cycles(actor), move |host| {
            Box::pin(async move {
                for _ in 0..STEPS / actors {
                    host.add(count, 1).await;
                }
            })
        });
    }
    timed(|| {
        finish(&mut sim);
        STEPS
    })
}

/// Executions of two threads, so many steps each, in random order, checked: steps.
pub fn depth(steps: u64) -> Measured {
    let machine = Machine::builtin("intel-granite-rapids-host").expect("a machine of ours");
    let x86 = arch::x86(&machine, Bytes(1 << 30)).expect("its own architecture");
    let scenario = Scenario::new("depth", x86, SmallVm::unmapped(1)).setup(move |build| {
        let shared: Var = build.new_var(0);
        for _ in 0..2 {
            build.spawn("thread", move |host| {
                Box::pin(async move {
                    for _ in 0..steps {
                        host.add(shared, 1).await;
                    }
                })
            });
        }
    });
    let budget = Budget { schedules: STEPS / (2 * steps), seed: Seed(1), shrinking: Shrinking::Off };
    timed(|| scenario.explore(&Strategy::Random, budget).stats.steps)
}
