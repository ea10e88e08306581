//! Exhaustive depth-first search over the states of a [`System`].
//!
//! A system is a set of actors whose every choice is a numbered decision. The search visits each distinct state once: states are
//! compared in full, the hash only finds them, so no collision can hide a state. A path is the list of the decisions' numbers
//! from the initial state; [`replay`] repeats it or says at which step it no longer fits.
//!
//! # Reduction
//!
//! [`System::ample`] may name one decision of a state that is taken alone. All final states (those without decisions) are still
//! found if the system promises, for a named decision `d` in state `s`, one of the two:
//!
//! - *Persistence*: whatever other decisions are taken from `s` on, as long as `d` is not among them, `d` stays possible and
//!   commutes with each of them. A run from `s` to a final state contains `d` (it stays possible, so the run could not end without
//!   it), and `d` can be moved to its front. This is a persistent set of one element (Godefroid 1996, chapter 4), which
//!   preserves every final state also where the state graph has cycles.
//! - *Domination*: every final state that can be reached from `s` can be reached from `d(s)`.
//!
//! Only final states are preserved. Whoever checks something in the states between takes [`Reduction::None`], or names only decisions
//! that what is checked cannot see.
//!
//! # Determinism
//!
//! A search runs on one thread, in the order in which the system lists its decisions; it depends on nothing else. Many searches
//! run in parallel as independent values.

use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::ops::ControlFlow;

use serde::Serialize;

/// Something with states, between which decisions lead.
pub trait System {
    /// A state. Equal states must have the same future.
    type State: Clone + Eq + Hash;
    /// A decision.
    type Decision: Clone + fmt::Debug;

    /// Where every run begins.
    fn initial(&self) -> Self::State;
    /// Adds what can happen in `state` to `out`, in an order that depends on the state alone. Nothing: the state is final.
    fn decisions(&self, state: &Self::State, out: &mut Vec<Self::Decision>);
    /// Makes one of [`System::decisions`] happen.
    fn apply(&self, state: &mut Self::State, decision: &Self::Decision);
    /// The place in `decisions` of one that may be taken alone; see the [module](self) for what is promised by it.
    fn ample(&self, _state: &Self::State, _decisions: &[Self::Decision]) -> Option<usize> {
        None
    }
}

/// Whether [`System::ample`] is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reduction {
    /// No: every interleaving.
    None,
    /// Yes: every final state.
    Ample,
}

/// Where a search gives up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// Most distinct states.
    pub states: u64,
    /// Most decisions taken.
    pub transitions: u64,
    /// Most decisions from the initial state to any other.
    pub depth: usize,
}

impl Default for Bounds {
    /// Ten million states, a hundred million decisions, ten thousand deep.
    fn default() -> Self {
        Self { states: 10_000_000, transitions: 100_000_000, depth: 10_000 }
    }
}

/// How much of the system a search has seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Extent {
    /// All of it.
    Exhaustive,
    /// The visitor had enough.
    Stopped,
    /// [`Bounds::states`] was reached.
    CutByStates,
    /// [`Bounds::transitions`] was reached.
    CutByTransitions,
    /// Some states lie deeper than [`Bounds::depth`] and were left out.
    CutByDepth,
}

/// What a search has cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Stats {
    /// Distinct states.
    pub states: u64,
    /// Decisions taken, also those that led to a known state.
    pub transitions: u64,
    /// Distinct final states.
    pub finals: u64,
    /// States in which one decision was taken alone.
    pub reduced: u64,
    /// Decisions that were left out there.
    pub left_out: u64,
    /// Longest path, in decisions.
    pub deepest: u64,
}

impl Stats {
    /// Adds another search's counts; the longest path is that of either.
    pub fn add(&mut self, other: &Stats) {
        self.states += other.states;
        self.transitions += other.transitions;
        self.finals += other.finals;
        self.reduced += other.reduced;
        self.left_out += other.left_out;
        self.deepest = self.deepest.max(other.deepest);
    }
}

/// The outcome of a search.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exploration {
    /// How much was seen.
    pub extent: Extent,
    /// What it cost.
    pub stats: Stats,
}

/// The way from the initial state to the one that is visited.
#[derive(Debug)]
pub struct Trail<'a, S: System> {
    frames: &'a [Frame<S>],
}

impl<S: System> Trail<'_, S> {
    /// The number of each decision among those of its state: what [`replay`] takes.
    pub fn path(&self) -> Vec<u32> {
        self.frames.iter().map(|frame| frame.taken as u32).collect()
    }
}

/// A state on the way, and which of its decisions is being followed.
struct Frame<S: System> {
    state: S::State,
    decisions: Vec<S::Decision>,
    /// The decision that is being followed.
    taken: usize,
    /// The one to follow next.
    next: usize,
    /// One past the last one to follow.
    end: usize,
}

impl<S: System> fmt::Debug for Frame<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {:?}", self.taken, self.decisions)
    }
}

/// Visits every final state of `system` once, with the way to it, until `visit` breaks off or a bound is reached.
pub fn explore<S: System>(
    system: &S,
    reduction: Reduction,
    bounds: Bounds,
    mut visit: impl FnMut(&S::State, &Trail<'_, S>) -> ControlFlow<()>,
) -> Exploration {
    let mut search =
        Search { system, reduction, stats: Stats::default(), known: HashSet::default(), frames: Vec::new() };
    let mut extent = Extent::Exhaustive;
    let first = system.initial();
    search.known.insert(first.clone());
    search.stats.states = 1;
    let mut arrived = Some(first);
    loop {
        if let Some(state) = arrived.take() {
            let frame = search.enter(state);
            if frame.end == 0 {
                search.stats.finals += 1;
                if visit(&frame.state, &Trail { frames: &search.frames }).is_break() {
                    extent = Extent::Stopped;
                    break;
                }
            } else if search.frames.len() == bounds.depth {
                extent = Extent::CutByDepth;
            } else {
                search.frames.push(frame);
                search.stats.deepest = search.stats.deepest.max(search.frames.len() as u64);
            }
        }
        let Some(frame) = search.frames.last_mut() else { break };
        if frame.next == frame.end {
            search.frames.pop();
            continue;
        }
        if search.stats.transitions == bounds.transitions {
            extent = Extent::CutByTransitions;
            break;
        }
        frame.taken = frame.next;
        frame.next += 1;
        search.stats.transitions += 1;
        let mut state = frame.state.clone();
        system.apply(&mut state, &frame.decisions[frame.taken]);
        if search.known.contains(&state) {
            continue;
        }
        if search.stats.states == bounds.states {
            extent = Extent::CutByStates;
            break;
        }
        search.stats.states += 1;
        search.known.insert(state.clone());
        arrived = Some(state);
    }
    Exploration { extent, stats: search.stats }
}

struct Search<'a, S: System> {
    system: &'a S,
    reduction: Reduction,
    stats: Stats,
    known: HashSet<S::State, BuildHasherDefault<WordHasher>>,
    frames: Vec<Frame<S>>,
}

impl<S: System> Search<'_, S> {
    fn enter(&mut self, state: S::State) -> Frame<S> {
        let mut decisions = Vec::new();
        self.system.decisions(&state, &mut decisions);
        let alone = match self.reduction {
            Reduction::Ample if decisions.len() > 1 => self.system.ample(&state, &decisions),
            _ => None,
        };
        let (next, end) = match alone {
            Some(one) => {
                self.stats.reduced += 1;
                self.stats.left_out += decisions.len() as u64 - 1;
                (one, one + 1)
            }
            None => (0, decisions.len()),
        };
        Frame { state, decisions, taken: next, next, end }
    }
}

/// A path that does not fit the system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Diverged {
    /// The step at which it stops fitting, from 0.
    pub step: usize,
    /// The decision that the path asks for.
    pub wanted: u32,
    /// How many decisions there are.
    pub possible: usize,
}

impl fmt::Display for Diverged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { step, wanted, possible } = self;
        write!(
            f,
            "step {step}: decision {wanted} of {possible}; the path was recorded with another test, model or version"
        )
    }
}
impl std::error::Error for Diverged {}

/// Follows `path` from the initial state. Returns each decision taken and the state at the end.
///
/// # Errors
/// At the first step for which there is no such decision.
pub fn replay<S: System>(system: &S, path: &[u32]) -> Result<(Vec<S::Decision>, S::State), Diverged> {
    let mut state = system.initial();
    let (mut taken, mut decisions) = (Vec::new(), Vec::new());
    for (step, &wanted) in path.iter().enumerate() {
        decisions.clear();
        system.decisions(&state, &mut decisions);
        let Some(decision) = decisions.get(wanted as usize) else {
            return Err(Diverged { step, wanted, possible: decisions.len() });
        };
        system.apply(&mut state, decision);
        taken.push(decision.clone());
    }
    Ok((taken, state))
}

/// Hashes words by rotating and multiplying: fast, the same on every run, not for keys that an adversary chooses. A
/// collision costs a comparison, nothing else.
#[derive(Clone, Copy, Debug, Default)]
pub struct WordHasher(u64);

impl WordHasher {
    /// An odd number with bits all over: the fraction of the golden ratio.
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

    fn word(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(26) ^ word).wrapping_mul(Self::FACTOR);
    }
}

impl Hasher for WordHasher {
    fn finish(&self) -> u64 {
        // The best mixed bits are the upper ones; tables look at both ends.
        self.0 ^ self.0 >> 32
    }
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.word(u64::from_le_bytes(word));
        }
    }
    fn write_u8(&mut self, value: u8) {
        self.word(u64::from(value));
    }
    fn write_u16(&mut self, value: u16) {
        self.word(u64::from(value));
    }
    fn write_u32(&mut self, value: u32) {
        self.word(u64::from(value));
    }
    fn write_u64(&mut self, value: u64) {
        self.word(value);
    }
    fn write_usize(&mut self, value: usize) {
        self.word(value as u64);
    }
    fn write_isize(&mut self, value: isize) {
        self.word(value as u64);
    }
}
