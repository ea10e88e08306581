//! Verdicts.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use rayon::prelude::*;
use serde::Serialize;

use super::defect::Defect;
use super::model::{MemoryOrder, Model, TestState};
use super::read::Limits;
use super::test::{Test, Use};
use crate::explorer::{Exploration, Extent, Reduction, Stats, explore, replay};

/// What an exploration of one test in one memory order has found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Found {
    /// Whether the outcome was reached; of `forall`, whether an execution fails it.
    pub reached: bool,
    /// How much was seen.
    pub extent: Extent,
    /// What it cost.
    pub stats: Stats,
    /// The way there: the number of each decision, for [`explain`].
    pub path: Option<Vec<u32>>,
    /// Whether some execution got stuck, which none should.
    pub stuck: bool,
}

impl Found {
    /// Whether it is certain that the outcome is not reached.
    pub fn excluded(&self) -> bool {
        !self.reached && self.extent == Extent::Exhaustive && !self.stuck
    }
}

/// A test's judgement.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Judgement {
    /// The test.
    pub id: String,
    /// What must be done with it.
    #[serde(rename = "use")]
    pub usage: Use,
    /// With sequentially consistent memory.
    pub sequential: Found,
    /// With store buffers.
    pub store_buffer: Found,
    /// Whether that is what must be; `None` for a test that nobody is judged by.
    pub agreement: Option<bool>,
    /// Whether another model, as far as the file quotes one, has found the same.
    pub same_as_other_model: Option<bool>,
}

impl Judgement {
    /// Whether nothing speaks against the model.
    pub fn agrees(&self) -> bool {
        self.agreement != Some(false)
    }
}

/// Explores a test in one memory order, up to the first execution with its outcome.
pub fn run(test: &Test, memory: MemoryOrder, defect: Option<Defect>, limits: &Limits) -> Found {
    let model = Model::new(test, memory, defect);
    let (mut path, mut stuck) = (None, false);
    let explored = explore(&model, Reduction::Ample, limits.bounds, |state, trail| {
        stuck |= !model.finished(&state.0);
        if model.wanted(&state.0) {
            path = Some(trail.path());
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    });
    Found { reached: path.is_some(), extent: explored.extent, stats: explored.stats, path, stuck }
}

/// Runs a test in both memory orders and compares with what must be.
pub fn judge(test: &Test, defect: Option<Defect>, limits: &Limits) -> Judgement {
    let sequential = run(test, MemoryOrder::SequentiallyConsistent, defect, limits);
    let store_buffer = run(test, MemoryOrder::StoreBuffer, defect, limits);
    let agreement = match test.usage {
        Use::MustNotObserve | Use::MustAlwaysHold => Some(sequential.excluded() && store_buffer.excluded()),
        // A late store may look like a stale translation, which is what such a test is about.
        Use::MustBeAbleToObserve => Some(sequential.reached),
        Use::ObservableOnlyWithStoreBuffer => Some(sequential.excluded() && store_buffer.reached),
        _ => None,
    };
    let said = [(test.research.sequential, &sequential), (test.research.store_buffer, &store_buffer)];
    let compared: Vec<bool> = said.iter().filter_map(|(said, found)| said.map(|said| said == found.reached)).collect();
    let same_as_other_model = (!compared.is_empty()).then(|| compared.into_iter().all(|same| same));
    Judgement { id: test.id.clone(), usage: test.usage, sequential, store_buffer, agreement, same_as_other_model }
}

/// Judges many tests, in parallel; the result does not depend on the number of threads.
pub fn judge_all(tests: &[Test], defect: Option<Defect>, limits: &Limits) -> Vec<Judgement> {
    tests.par_iter().map(|test| judge(test, defect, limits)).collect()
}

/// How an execution can end.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ending {
    /// Every word of memory: leaf entries, table pointers, entries of stage 2, pages.
    pub words: Vec<u64>,
    /// The registers of each thread, and which of its operations have faulted, one bit each.
    pub threads: Vec<(Vec<Option<u64>>, u64)>,
}

/// All ways in which a test can end, and how much of it was seen.
pub fn endings(
    test: &Test,
    memory: MemoryOrder,
    defect: Option<Defect>,
    reduction: Reduction,
    limits: &Limits,
) -> (BTreeSet<Ending>, Exploration) {
    let model = Model::new(test, memory, defect);
    let mut endings = BTreeSet::new();
    let explored = explore(&model, reduction, limits.bounds, |TestState(state), _| {
        let threads = state.threads.iter().map(|running| (running.regs.clone(), running.faults)).collect();
        endings.insert(Ending { words: state.words.clone(), threads });
        ControlFlow::Continue(())
    });
    (endings, explored)
}

/// Each step of a path, for people.
///
/// # Errors
/// When the path is not one of this test in this memory order.
pub fn explain(
    test: &Test,
    memory: MemoryOrder,
    defect: Option<Defect>,
    path: &[u32],
) -> Result<Vec<String>, crate::explorer::Diverged> {
    let model = Model::new(test, memory, defect);
    let (decisions, _) = replay(&model, path)?;
    Ok(decisions.iter().map(|decision| model.describe(decision)).collect())
}

/// How many tests of a class agree.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct ClassCount {
    /// The class.
    #[serde(rename = "use")]
    pub usage: Use,
    /// Its tests.
    pub tests: usize,
    /// Those whose outcome was reached with sequentially consistent memory.
    pub reached_sequential: usize,
    /// Those whose outcome was reached with store buffers.
    pub reached_store_buffer: usize,
    /// Those that agree; informational ones count here.
    pub agreeing: usize,
    /// Those that do not.
    pub disagreeing: usize,
}

/// The classes that occur, in their order.
pub fn summary<'a>(judgements: impl IntoIterator<Item = &'a Judgement>) -> Vec<ClassCount> {
    let mut classes = Use::ALL.map(|usage| ClassCount {
        usage,
        tests: 0,
        reached_sequential: 0,
        reached_store_buffer: 0,
        agreeing: 0,
        disagreeing: 0,
    });
    for judgement in judgements {
        if let Some(class) = classes.iter_mut().find(|class| class.usage == judgement.usage) {
            class.tests += 1;
            class.reached_sequential += usize::from(judgement.sequential.reached);
            class.reached_store_buffer += usize::from(judgement.store_buffer.reached);
            class.agreeing += usize::from(judgement.agrees());
            class.disagreeing += usize::from(!judgement.agrees());
        }
    }
    classes.into_iter().filter(|class| class.tests > 0).collect()
}
