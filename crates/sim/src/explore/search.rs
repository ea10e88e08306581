//! Searches through all executions, on all threads.
//!
//! The tree of decisions is divided into branches, in depth-first order, and all of them are worked on side by side in rounds of so many
//! executions each. Between rounds branches that are done go, others are split, and what each has seen is told to those behind it. How the tree is divided
//! depends on the scenario alone, not on threads, so everything that is reported is the same for any number of them.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use rayon::prelude::*;

use super::by_digest::Digests;
use super::choosers::Shared;
use super::depth_first::{Bound, DepthFirst, Past, Seen, Visit};
use super::lab::End;
use super::run::Runner;
use super::scenario::Scenario;
use super::strategy::{Found, Stats};
use crate::arch::Arch;

/// Branches that are worked on side by side, at most.
const BRANCHES: usize = 16;
/// Executions of a branch in the first round, and in any.
const FIRST_ROUND: u64 = 16;
const ROUND: u64 = 1024;

/// Whether an execution is given up at a state that was seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum States {
    Ignored,
    Known,
}

/// What came of a search.
#[derive(Clone, Debug)]
pub(crate) struct Searched {
    found: Option<Found>,
    /// Nothing is left to look at.
    complete: bool,
    /// Something was left out for a bound.
    bounded: bool,
}

impl Searched {
    /// What was found, and whether everything was looked at.
    pub(crate) fn ended(self) -> (Option<Found>, bool) {
        (self.found, self.complete && !self.bounded)
    }
}

/// A part of the tree.
#[derive(Debug)]
struct Branch {
    search: DepthFirst,
    /// Its number among all that there ever were.
    number: u32,
    stats: Stats,
    found: Option<Found>,
    /// Endings of this round.
    endings: Vec<u64>,
}

/// All branches, in depth-first order, and what they have seen.
#[derive(Debug)]
struct Branches {
    open: Vec<Branch>,
    past: Arc<Past>,
    /// By number: the branch itself, or that behind it when it is done, which knows what was seen in it.
    heirs: Vec<Option<u32>>,
    /// States, each counted once.
    states: u64,
}

impl Branches {
    /// One branch, which is everything.
    fn new(search: DepthFirst) -> Self {
        let mut branches = Self { open: Vec::new(), past: Arc::default(), heirs: Vec::new(), states: 0 };
        branches.insert(0, search);
        branches
    }

    fn insert(&mut self, place: usize, search: DepthFirst) {
        let number = self.heirs.len() as u32;
        self.heirs.push(Some(number));
        let branch = Branch { search, number, stats: Stats::default(), found: None, endings: Vec::new() };
        self.open.insert(place, branch);
    }

    /// Tells those who will go on what was seen so far.
    fn tell(&mut self, working: usize) {
        self.order();
        for (place, branch) in self.open[..working].iter_mut().enumerate() {
            if let Some(seen) = &mut branch.search.seen {
                (seen.past, seen.place) = (self.past.clone(), place as u32);
            }
        }
    }

    /// Keeps what was seen in this round. Nobody looks at it meanwhile.
    fn settle(&mut self) {
        for branch in &mut self.open {
            branch.search.seen.iter_mut().for_each(|seen| seen.past = Arc::default());
        }
        let open = &self.open;
        let Past { known, places } = Arc::make_mut(&mut self.past);
        let new = known.par_iter_mut().enumerate().map(|(part, known)| {
            let mut new = 0;
            for branch in open {
                let Some(seen) = &branch.search.seen else { continue };
                let place = places.get(branch.number as usize);
                let mine = |other: &Visit| other.by == branch.number || places.get(other.by as usize) == place;
                for (state, visit) in seen.fresh.iter().filter(|&(state, _)| Past::part(state) == part) {
                    if let Some(known) = known.find_mut(state, mine) {
                        known.asleep &= visit.asleep;
                    } else {
                        new += u64::from(known.of(state).next().is_none());
                        known.add(state, Visit { by: branch.number, ..visit });
                    }
                }
            }
            new
        });
        self.states += new.sum::<u64>();
        self.open.iter_mut().filter_map(|branch| branch.search.seen.as_mut()).for_each(|seen| seen.fresh.clear());
    }

    /// Branches that are done go; those behind them know what was seen there.
    fn retire(&mut self) {
        for n in (0..self.open.len()).rev() {
            if self.open[n].search.complete {
                let behind = self.open.get(n + 1).map(|next| next.number);
                let gone = self.open.remove(n);
                self.heirs[gone.number as usize] = behind;
            }
        }
    }

    /// Splits branches, in order, until there are enough.
    fn divide(&mut self) {
        let mut n = 0;
        while n < self.open.len() && self.open.len() < BRANCHES {
            match self.open[n].search.split() {
                Some(last) => {
                    self.insert(n + 1, last);
                    n += 2;
                }
                None => n += 1,
            }
        }
    }

    /// Who knows what a branch has seen; nobody, when it is done and none was behind it.
    fn heir(&self, number: u32) -> Option<u32> {
        let next = self.heirs[number as usize]?;
        if next == number { Some(number) } else { self.heir(next) }
    }

    /// Puts everybody in his place, those who are done in their heirs'.
    fn order(&mut self) {
        let mut places = vec![u32::MAX; self.heirs.len()];
        for (place, branch) in (0..).zip(&self.open) {
            places[branch.number as usize] = place;
        }
        for number in 0..self.heirs.len() {
            let heir = self.heir(number as u32);
            self.heirs[number] = heir;
            places[number] = heir.map_or(u32::MAX, |heir| places[heir as usize]);
        }
        Arc::make_mut(&mut self.past).places = places;
    }
}

impl<A: Arch> Scenario<A> {
    /// Everything within the bound, up to so many executions.
    pub(crate) fn search(&self, bound: Bound, states: States, schedules: u64, stats: &mut Stats) -> Searched {
        let seen = (states == States::Known).then(Seen::default);
        let mut branches = Branches::new(DepthFirst::new(bound, seen));
        let (mut done, mut round, mut bounded) = (0, FIRST_ROUND, false);
        let mut endings = Digests::default();
        let mut found = None;
        while found.is_none() && done < schedules && !branches.open.is_empty() {
            let most = round.min((schedules - done).div_ceil(branches.open.len() as u64));
            let working = branches.open.len().min(((schedules - done) / most).max(1) as usize);
            branches.tell(working);
            branches.open[..working].par_iter_mut().for_each(|branch| self.work_on(branch, most));
            for branch in &mut branches.open[..working] {
                done += branch.stats.executions;
                stats.merge(&std::mem::take(&mut branch.stats));
                for ending in branch.endings.drain(..) {
                    if endings.insert(ending) {
                        stats.endings += 1;
                        stats.endings_digest ^= ending;
                    }
                }
                bounded |= branch.search.bounded;
                found = branch.found.take();
                if found.is_some() {
                    break;
                }
            }
            branches.settle();
            branches.retire();
            branches.divide();
            round = (2 * round).min(ROUND);
        }
        stats.states += branches.states;
        Searched { found, complete: branches.open.is_empty(), bounded }
    }

    /// So many executions of a branch, at most.
    fn work_on(&self, branch: &mut Branch, most: u64) {
        let mut runner = Runner::with_states(self);
        let empty = DepthFirst::new(Bound::None, None);
        let shared = Rc::new(RefCell::new(std::mem::replace(&mut branch.search, empty)));
        while branch.found.is_none() && branch.stats.executions < most {
            let execution = runner.execute(Box::new(Shared(shared.clone())));
            branch.stats.add(&execution);
            if execution.end != End::Abandoned {
                branch.endings.push(execution.outcome);
            }
            // Where nobody had a choice who is next, nobody was treated unfairly.
            let fair = execution.end == End::Cut && runner.is_forced();
            if let Some(broken) = self.judge(&execution, fair) {
                branch.found = Some(Found { broken, trail: runner.trail() });
            }
            if !shared.borrow_mut().advance() {
                break;
            }
        }
        branch.stats.evaluations = runner.take_evaluations();
        std::mem::swap(&mut branch.search, &mut shared.borrow_mut());
    }

    /// Within bounds from 0 to `most`, one after another.
    pub(crate) fn bounded(
        &self,
        bound: impl Fn(u32) -> Bound,
        most: u32,
        schedules: u64,
        stats: &mut Stats,
    ) -> (Option<Found>, bool) {
        let mut left = schedules;
        for least in 0..=most {
            let before = stats.executions;
            let endings = (stats.endings, stats.endings_digest);
            let searched = self.search(bound(least), States::Ignored, left, stats);
            // The last one has seen what those before it have.
            stats.endings -= endings.0;
            stats.endings_digest ^= endings.1;
            left -= (stats.executions - before).min(left);
            if searched.found.is_some() || (searched.complete && !searched.bounded) || left == 0 {
                return searched.ended();
            }
        }
        (None, false)
    }
}

#[cfg(test)]
mod tests {
    use arch_x86_ept::{EptConfig, LongMode, LongModeConfig};

    use super::*;
    use crate::arch::Arch2;
    use crate::engine::{Bed, Cmpxchg, Host, Var};
    use crate::explore::decision::{Agent, Chooser, Kind, Point};
    use crate::explore::{Limits, Sharing, SmallVm};

    type X86 = Arch2<LongMode, arch_x86_ept::Ept>;

    async fn set_bit<F: Copy>(host: Host<F>, word: Var, bit: u64) {
        let mut old = host.load(word).await;
        while let Cmpxchg::Failed(found) = host.cmpxchg_var(word, old, old | 1 << bit).await {
            old = found;
        }
    }

    /// Three that set a bit each, where a compare-and-swap may fail for no reason twice.
    fn scenario() -> Scenario<X86> {
        let one = LongModeConfig::new().max_phys_addr(46).build().unwrap();
        let arch = Arch2 { name: "x86", one, two: EptConfig::new().max_phys_addr(46).build().unwrap() };
        let limits = Limits { sharing: Sharing::Operations, store_failures: 2, ..Limits::default() };
        Scenario::new("bits", arch, SmallVm::unmapped(1)).limits(limits).setup(|build| {
            let word = build.new_var(0);
            for bit in 0..3 {
                build.spawn("actor", move |host| Box::pin(set_bit(host, word, bit)));
            }
        })
    }

    /// Decides as a search does, and has it asked for every step.
    struct Anew(Shared<DepthFirst>);

    impl Chooser for Anew {
        fn run(&mut self, point: Point<'_>) -> Option<Agent> {
            self.0.run(point)
        }
        fn pick(&mut self, kind: Kind, of: usize) -> Option<usize> {
            self.0.pick(kind, of)
        }
        fn only(&mut self, point: Point<'_>) -> Option<()> {
            self.0.only(point)
        }
        fn wants_footprints(&self, step: u64) -> bool {
            self.0.wants_footprints(step)
        }
        fn wants_state(&self) -> bool {
            self.0.wants_state()
        }
    }

    #[test]
    fn steps_that_are_repeated_are_the_steps_that_would_be_decided() {
        let scenario = scenario();
        let executions = |bound, states, anew: bool| {
            let mut runner = Runner::with_states(&scenario);
            let seen = (states == States::Known).then(Seen::default);
            let shared = Rc::new(RefCell::new(DepthFirst::new(bound, seen)));
            let mut executions = Vec::new();
            loop {
                let chooser = Shared(shared.clone());
                let done = runner.execute(if anew { Box::new(Anew(chooser)) } else { Box::new(chooser) });
                executions.push((done.end, done.steps, done.preemptions, done.digest, done.outcome, runner.trail()));
                if !shared.borrow_mut().advance() {
                    return executions;
                }
            }
        };
        for (bound, states) in [
            (Bound::None, States::Known),
            (Bound::None, States::Ignored),
            (Bound::Preemptions(2), States::Ignored),
            (Bound::Delays(3), States::Ignored),
        ] {
            let repeated = executions(bound, states, false);
            assert!(repeated.len() > 100, "{bound:?} {states:?}: {}", repeated.len());
            assert!(repeated.iter().any(|(.., trail)| trail.iter().any(|made| made.kind == Kind::Exclusive)));
            assert_eq!(repeated, executions(bound, states, true), "{bound:?} {states:?}");
        }
    }
}
