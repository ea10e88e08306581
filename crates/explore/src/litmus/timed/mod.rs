//! Litmus tests in the timed engine: not every order of steps, but the caches, walks and invalidations that experiments run on.
//!
//! Each thread of a test is a host actor with a vCPU of its own. Accesses through translation are [probes](mmu_sim::engine::Probe) of that
//! vCPU, through its TLBs and walk caches and both stages of Arm's formats; entries are words of table memory, written and read by
//! micro-operations; a TLBI is on its way to every vCPU, and a DSB waits until all have done it. The virtual machine has second-stage
//! tables in any case: where a test has no stage 2 they map every page to itself.
//!
//! A seed decides when threads start, how long they pause between operations, what is cached before they start, what their processors
//! fetch ahead, and who comes first where two things happen at once. The result is the same for any number of threads of the host.
//!
//! An execution here is one of the [`Model`](super::Model)'s with sequentially consistent memory: operations have a total order, that of the
//! engine's phases. What may not be observed must not be observed here; what may be need not be.
//!
//! # What it cannot express
//!
//! [`inexpressible`] says why; such tests are counted and listed, never passed. Anything else is run:
//!
//! | operation | in the engine |
//! | --- | --- |
//! | `write`, `read`, `cas`, `rmw`, `ldx`, `stx` of `pte1`, `pte2`, `pte1_level2` | micro-operations on words of table memory; an exclusive store fails when anybody has written the word |
//! | the same of `va` | a probe: translation or fault, then the data access |
//! | `tlbi` | one invalidation of these caches, broadcast or on the own processor |
//! | `dsb` | waits for the thread's own invalidations; accesses are complete already |
//! | `dmb`, `isb`, `context_sync`, `ctrl_dep`, `nop` | time passes: every access is complete before the next operation |
//! | `set_context` | tags of the thread's accesses from then on |

mod bed;
mod report;
mod thread;

use std::cell::RefCell;
use std::rc::Rc;

use mmu_core::Cycles;
use mmu_core::machine::Machine;
use mmu_sim::arch::Arch2;
use mmu_sim::engine::{FlagWrites, Stopped, Threads};
use mmu_sim::rng::{Rng, Seed};

pub use report::{Timed, TimedClass, time_all, timed_summary};

use super::defect::Defect;
use super::judge::Ending;
use super::model::holds;
use super::test::{Change, OpKind, Place, Test, Value};
use super::words::Managed;
use arch_arm64_s2::{Stage1, Stage2};
use bed::Bed;
use thread::Shared;

/// The formats that tests run on.
type Arm = Arch2<Stage1, Stage2>;

/// The streams of random numbers of an execution; those of threads follow.
mod streams {
    pub(super) const ORDER: u64 = 0;
    pub(super) const THREADS: u64 = 1;
}

/// The machine that tests run on: described once, for all executions.
#[derive(Clone, Debug)]
pub struct TimedMachine {
    machine: Machine,
}

impl TimedMachine {
    /// An Arm server whose caches are small, so that an execution takes microseconds to set up: no test has more than a few pages.
    ///
    /// # Errors
    /// Says what is wrong if the built-in sheet cannot be read.
    pub fn new() -> Result<Self, String> {
        let mut machine = Machine::builtin("arm-neoverse-n1")
            .map_err(|errors| errors.first().map_or_else(|| "no such machine".to_owned(), ToString::to_string))?;
        // One level of data caches holds all tables of a test.
        machine.caches.levels.truncate(1);
        Ok(Self { machine })
    }
}

/// How an execution ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Executed {
    /// Memory, registers and faults.
    pub ending: Ending,
    /// Whether the condition holds that the test looks for: the outcome of `exists`, the failure of `forall`.
    pub wanted: bool,
    /// Simulated time that it took.
    pub took: Cycles,
}

/// Why a test, or an execution of it, is none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TimedError {
    /// The engine has no such thing: why.
    Inexpressible(&'static str),
    /// The machine or its formats refuse: what they say.
    Setup(String),
    /// Threads wait for ever, which is a defect of the engine.
    Deadlock,
}

impl std::fmt::Display for TimedError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            TimedError::Inexpressible(why) => write!(f, "cannot be run in the timed engine: {why}"),
            TimedError::Setup(what) => write!(f, "cannot be set up: {what}"),
            TimedError::Deadlock => f.write_str("threads wait for ever; report this with the seed"),
        }
    }
}
impl std::error::Error for TimedError {}

/// The defects of the [model](super::Model) that this can have too: each is made where the engine does it right.
pub const TIMED_DEFECTS: [Defect; 9] = [
    Defect::BroadcastIsLocal,
    Defect::DsbDoesNotWaitTlbi,
    Defect::HwAfTwoStep,
    Defect::HwDirtyTwoStep,
    Defect::TlbIgnoresAsid,
    Defect::TlbIgnoresVmid,
    Defect::TlbiIpaMissesStage2,
    Defect::TlbiMissesWalkCache,
    Defect::TlbiNoop,
];

/// Why the timed engine cannot express a test, if that is so.
pub fn inexpressible(test: &Test) -> Option<&'static str> {
    let half = |managed: Managed| managed.dirty && !managed.accessed;
    if test.threads.iter().any(|thread| half(thread.managed)) && makes_unaccessed(test) {
        return Some(
            "hardware that keeps the dirty state keeps the access flag too (VTCR_EL2.HD needs HA), and an entry is not accessed",
        );
    }
    None
}

/// Whether an entry of the test may be without its access flag at any time.
fn makes_unaccessed(test: &Test) -> bool {
    let unaccessed = |word: u64| test.words.present(word) && !test.words.is_accessed(word);
    let writes = |value: Value| match value {
        Value::Word(word) => unaccessed(word),
        // What it holds is known at run time only.
        Value::Reg(_) => true,
    };
    let entries = usize::from(test.layout.entries);
    let tables: Vec<u16> = test.layout.tables.iter().map(|table| table.loc).collect();
    let initial = (0..).zip(&test.layout.initial[..entries]);
    let ops = test.threads.iter().flat_map(|thread| &thread.ops);
    let written = |op: &OpKind| match *op {
        OpKind::Write { to: Place::Word(loc), value, .. }
        | OpKind::Stx { to: Place::Word(loc), value, .. }
        | OpKind::Cas { at: Place::Word(loc), value, .. }
        | OpKind::Rmw { at: Place::Word(loc), change: Change::Swap(value), .. } => {
            !tables.contains(&loc) && writes(value)
        }
        OpKind::Rmw { at: Place::Word(_), .. } => true,
        _ => false,
    };
    initial.filter(|(loc, _)| !tables.contains(loc)).any(|(_, &word)| unaccessed(word))
        || ops.into_iter().any(|op| written(&op.kind))
}

/// Runs one execution of a test. `threads` says who simulates the vCPUs and changes nothing in the result.
///
/// # Errors
/// When the engine cannot express the test, or cannot be set up.
pub fn execute(
    test: &Test,
    seed: Seed,
    threads: Threads,
    machine: &TimedMachine,
    defect: Option<Defect>,
) -> Result<Executed, TimedError> {
    if let Some(why) = inexpressible(test) {
        return Err(TimedError::Inexpressible(why));
    }
    // Who comes first where two things happen at once: the lower number does.
    let mut order: Vec<usize> = (0..test.threads.len()).collect();
    Rng::stream(seed, streams::ORDER).shuffle(&mut order);
    let mut bed = Bed::new(test, seed, &order, machine)?;
    bed.sim.set_threads(threads);
    if matches!(defect, Some(Defect::HwAfTwoStep | Defect::HwDirtyTwoStep)) {
        bed.sim.set_flag_writes(FlagWrites::LateStore);
    }
    let shared = Rc::new(RefCell::new(Shared::new(test)));
    for (vcpu, &number) in order.iter().enumerate() {
        let rng = Rng::stream(seed, streams::THREADS + number as u64);
        thread::spawn(&mut bed, test, number, vcpu, rng, defect, &shared);
    }
    if bed.sim.run() != Stopped::Finished {
        return Err(TimedError::Deadlock);
    }
    let ending = shared.borrow().ending(bed.words(test));
    let wanted = holds(test, &test.wanted, &ending);
    Ok(Executed { ending, wanted, took: shared.borrow().last })
}
