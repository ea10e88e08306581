//! Many seeds of many tests.

use std::collections::BTreeSet;

use mmu_sim::engine::Threads;
use mmu_sim::rng::Seed;
use rayon::prelude::*;
use serde::Serialize;

use super::super::defect::Defect;
use super::super::judge::Ending;
use super::super::test::{Test, Use};
use super::{TimedError, TimedMachine, execute};

/// What many executions of one test have come to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Timed {
    /// The test.
    pub id: String,
    /// What must be done with it.
    #[serde(rename = "use")]
    pub usage: Use,
    /// Why it was not run.
    pub inexpressible: Option<String>,
    /// What went wrong: a machine that cannot be built, or threads that wait for ever.
    pub error: Option<String>,
    /// Executions, one for each seed.
    pub executions: u64,
    /// Executions with the outcome that is looked for; of `forall`, with another than it says.
    pub seen: u64,
    /// The first seed of those.
    pub seed: Option<u64>,
    /// How many different endings there were.
    pub endings: usize,
    /// Simulated cycles of all executions.
    pub cycles: u64,
}

impl Timed {
    /// Whether it was seen to do what it must not. What may be observed need not be.
    pub fn fails(&self) -> bool {
        let forbidden = matches!(self.usage, Use::MustNotObserve | Use::MustAlwaysHold);
        self.error.is_some() || forbidden && self.seen > 0
    }

    /// Whether it was run.
    pub fn ran(&self) -> bool {
        self.inexpressible.is_none() && self.error.is_none()
    }
}

/// Executes every test with the seeds from 0 on, on the threads of the current rayon pool. The result does not depend on their number.
///
/// # Errors
/// When the machine cannot be described.
pub fn time_all(tests: &[Test], seeds: u64, defect: Option<Defect>) -> Result<Vec<Timed>, TimedError> {
    let machine = TimedMachine::new().map_err(TimedError::Setup)?;
    // One thread is no pool: nothing of it is left in what is tested then.
    let threads = if rayon::current_num_threads() == 1 { Threads::One } else { Threads::Always };
    Ok(tests.par_iter().map(|test| time(test, seeds, threads, &machine, defect)).collect())
}

fn time(test: &Test, seeds: u64, threads: Threads, machine: &TimedMachine, defect: Option<Defect>) -> Timed {
    let executions: Vec<_> =
        (0..seeds).into_par_iter().map(|seed| execute(test, Seed(seed), threads, machine, defect)).collect();
    let mut timed = Timed {
        id: test.id().to_owned(),
        usage: test.usage(),
        inexpressible: None,
        error: None,
        executions: 0,
        seen: 0,
        seed: None,
        endings: 0,
        cycles: 0,
    };
    let mut endings: BTreeSet<Ending> = BTreeSet::new();
    for (seed, executed) in (0..).zip(executions) {
        match executed {
            Ok(executed) => {
                timed.executions += 1;
                timed.cycles += executed.took.0;
                timed.seen += u64::from(executed.wanted);
                if executed.wanted && timed.seed.is_none() {
                    timed.seed = Some(seed);
                }
                endings.insert(executed.ending);
            }
            Err(TimedError::Inexpressible(why)) => timed.inexpressible = Some(why.to_owned()),
            Err(error) => timed.error = timed.error.or(Some(format!("seed {seed}: {error}"))),
        }
    }
    timed.endings = endings.len();
    timed
}

/// What became of a class of tests.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct TimedClass {
    /// The class.
    #[serde(rename = "use")]
    pub usage: Use,
    /// Its tests.
    pub tests: usize,
    /// Those that were run.
    pub run: usize,
    /// Executions of those.
    pub executions: u64,
    /// Tests whose outcome was seen.
    pub seen: usize,
    /// Tests that fail.
    pub failing: usize,
}

/// The classes that occur, in their order.
pub fn timed_summary<'a>(tests: impl IntoIterator<Item = &'a Timed>) -> Vec<TimedClass> {
    let mut classes = Use::ALL.map(|usage| TimedClass { usage, tests: 0, run: 0, executions: 0, seen: 0, failing: 0 });
    for test in tests {
        if let Some(class) = classes.iter_mut().find(|class| class.usage == test.usage) {
            class.tests += 1;
            class.run += usize::from(test.ran());
            class.executions += test.executions;
            class.seen += usize::from(test.seen > 0);
            class.failing += usize::from(test.fails());
        }
    }
    classes.into_iter().filter(|class| class.tests > 0).collect()
}
