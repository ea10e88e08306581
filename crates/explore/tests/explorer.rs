//! The explorer on a system small enough to count by hand.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use mmu_explore::explorer::{Bounds, Diverged, Exploration, Extent, Reduction, System, explore, replay};

/// Threads that each take some private steps, then add their number to a shared word, not atomically.
struct Adders {
    threads: usize,
    private: u8,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    shared: usize,
    /// Steps taken, and what was loaded.
    threads: Vec<(u8, usize)>,
}

impl System for Adders {
    type State = State;
    type Decision = usize;

    fn initial(&self) -> State {
        State { shared: 0, threads: vec![(0, 0); self.threads] }
    }
    fn decisions(&self, state: &State, out: &mut Vec<usize>) {
        out.extend((0..self.threads).filter(|&t| state.threads[t].0 < self.private + 2));
    }
    fn apply(&self, state: &mut State, &t: &usize) {
        let step = state.threads[t].0;
        if step == self.private {
            state.threads[t].1 = state.shared;
        } else if step == self.private + 1 {
            state.shared = state.threads[t].1 + t + 1;
            state.threads[t].1 = 0;
        }
        state.threads[t].0 += 1;
    }
    fn ample(&self, state: &State, decisions: &[usize]) -> Option<usize> {
        decisions.iter().position(|&t| state.threads[t].0 < self.private)
    }
}

fn endings(system: &Adders, reduction: Reduction, bounds: Bounds) -> (BTreeSet<usize>, Exploration) {
    let mut found = BTreeSet::new();
    let explored = explore(system, reduction, bounds, |state, trail| {
        found.insert(state.shared);
        assert_eq!(replay(system, &trail.path()).unwrap().1, *state, "a path leads where it was found");
        ControlFlow::Continue(())
    });
    (found, explored)
}

#[test]
fn all_endings_are_found_with_and_without_reduction() {
    let system = Adders { threads: 3, private: 3 };
    let (all, full) = endings(&system, Reduction::None, Bounds::default());
    let (same, reduced) = endings(&system, Reduction::Ample, Bounds::default());
    // Any non-empty sum of threads whose additions were not lost.
    assert_eq!(all, BTreeSet::from([1, 2, 3, 4, 5, 6]));
    assert_eq!(same, all);
    assert_eq!((full.extent, reduced.extent), (Extent::Exhaustive, Extent::Exhaustive));
    assert_eq!(full.stats.finals, reduced.stats.finals);
    assert!(reduced.stats.states * 3 < full.stats.states, "{reduced:?} {full:?}");
    assert_eq!((full.stats.reduced, full.stats.left_out), (0, 0));
    assert!(reduced.stats.left_out > 0);
    assert_eq!((full.stats.deepest, reduced.stats.deepest), (15, 15));
}

#[test]
fn a_single_thread_has_one_run() {
    let (found, explored) = endings(&Adders { threads: 1, private: 2 }, Reduction::None, Bounds::default());
    assert_eq!(found, BTreeSet::from([1]));
    let stats = explored.stats;
    assert_eq!((stats.states, stats.transitions, stats.finals, stats.deepest), (5, 4, 1, 4));
}

#[test]
fn bounds_cut_and_say_so() {
    let system = Adders { threads: 3, private: 3 };
    let cut = |bounds| endings(&system, Reduction::None, bounds).1;
    let by_states = cut(Bounds { states: 10, ..Bounds::default() });
    assert_eq!((by_states.extent, by_states.stats.states), (Extent::CutByStates, 10));
    let by_transitions = cut(Bounds { transitions: 7, ..Bounds::default() });
    assert_eq!((by_transitions.extent, by_transitions.stats.transitions), (Extent::CutByTransitions, 7));
    let by_depth = cut(Bounds { depth: 4, ..Bounds::default() });
    assert_eq!((by_depth.extent, by_depth.stats.finals), (Extent::CutByDepth, 0));
    let exact = cut(Bounds { depth: 15, ..Bounds::default() });
    assert_eq!(exact.extent, Extent::Exhaustive, "final states may stand at the bound");
}

#[test]
fn a_visitor_may_stop() {
    let system = Adders { threads: 2, private: 0 };
    let mut visited = 0;
    let explored = explore(&system, Reduction::None, Bounds::default(), |_, _| {
        visited += 1;
        ControlFlow::Break(())
    });
    assert_eq!((visited, explored.extent), (1, Extent::Stopped));
}

#[test]
fn a_path_that_does_not_fit_is_told_at_its_step() {
    let system = Adders { threads: 2, private: 0 };
    assert_eq!(replay(&system, &[0, 0, 1]), Err(Diverged { step: 2, wanted: 1, possible: 1 }));
    assert_eq!(replay(&system, &[0, 0, 0, 0, 0]), Err(Diverged { step: 4, wanted: 0, possible: 0 }));
    assert_eq!(replay(&system, &[1, 1]).unwrap().0, [1, 1]);
}
