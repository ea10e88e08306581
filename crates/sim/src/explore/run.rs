//! One execution of a scenario.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Waker};

use super::decision::{Actors, Agent, Chooser, Decision, Kind};
use super::invariant::{Broken, Evaluations, Invariant};
use super::lab::{End, Lab, Pending, Step};
use super::limits::Leaks;
use super::scenario::{Build, Scenario};
use super::traced::Noted;
use crate::arch::Arch;
use crate::engine::ActorFuture;

/// Executes a scenario again and again, one execution at a time.
pub(crate) struct Runner<'s, A: Arch> {
    scenario: &'s Scenario<A>,
    lab: Rc<RefCell<Lab<A>>>,
}

/// What became of an execution.
#[derive(Clone, Debug)]
pub(crate) struct Execution {
    pub(crate) end: End,
    pub(crate) steps: u64,
    pub(crate) preemptions: u64,
    pub(crate) broken: Option<Broken>,
    /// Whether it was a step that broke it, or what there was when all had finished.
    pub(crate) when: When,
    /// What the tables, the variables and the actors' ends amount to, by the order of steps.
    pub(crate) digest: u64,
    /// Memory in the end and what every actor was told, where states are kept: the same for any order of steps that commute.
    pub(crate) outcome: u64,
}

/// When something was broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum When {
    /// By a step: whoever had not come so far is not to blame.
    Step,
    /// When nobody went on: everybody should have done his part.
    End,
}

impl<'s, A: Arch> Runner<'s, A> {
    pub(crate) fn new(scenario: &'s Scenario<A>) -> Self {
        Self { scenario, lab: Rc::new(RefCell::new(scenario.build())) }
    }

    /// The same, with states for choosers that want them.
    pub(crate) fn with_states(scenario: &'s Scenario<A>) -> Self {
        let runner = Self::new(scenario);
        runner.lab.borrow_mut().words.keep_digest();
        runner
    }

    /// From now on these actors do nothing.
    pub(crate) fn leave_out(&mut self, actors: Actors) {
        self.lab.borrow_mut().limits.without = actors;
    }
    /// Actors that do nothing.
    pub(crate) fn without(&self) -> Actors {
        self.lab.borrow().limits.without
    }

    /// Evaluations since this was last asked.
    pub(crate) fn take_evaluations(&mut self) -> Evaluations {
        std::mem::take(&mut self.lab.borrow_mut().evaluations)
    }

    /// Whether nobody could choose who was next in the last execution.
    pub(crate) fn is_forced(&self) -> bool {
        self.lab.borrow().trail.iter().all(|decision| decision.kind != Kind::Run)
    }

    /// Decisions of the last execution.
    pub(crate) fn trail(&self) -> Vec<Decision> {
        self.lab.borrow().trail.clone()
    }

    /// Names of host actors, of the last execution.
    pub(crate) fn names(&self) -> Vec<String> {
        let lab = self.lab.borrow();
        let name = |hand: &super::lab::Hand| match hand.vcpu {
            Some(vcpu) => format!("vcpu {} (host)", vcpu.0),
            None => hand.name.to_owned(),
        };
        lab.hands.iter().map(name).collect()
    }

    /// Executes once more, with every step written down.
    pub(crate) fn record(&mut self, chooser: Box<dyn Chooser>) -> (Execution, Vec<Step>) {
        self.lab.borrow_mut().record = Some(Vec::new());
        let execution = self.execute(chooser);
        let steps = self.lab.borrow_mut().record.take().unwrap_or_default();
        (execution, steps)
    }

    /// Executes once more, for others to judge.
    pub(crate) fn trace(&mut self, chooser: Box<dyn Chooser>) -> (Execution, Noted) {
        self.lab.borrow_mut().traced = Some(Noted::default());
        let execution = self.execute(chooser);
        let events = self.lab.borrow_mut().traced.take().unwrap_or_default();
        (execution, events)
    }

    /// One execution.
    pub(crate) fn execute(&mut self, chooser: Box<dyn Chooser>) -> Execution {
        {
            let mut lab = self.lab.borrow_mut();
            lab.reset();
            lab.begin(chooser);
        }
        let mut build = Build {
            lab: &self.lab,
            futures: Vec::new(),
            finally: Vec::new(),
            roots: Vec::new(),
            late_roots: Vec::new(),
        };
        for part in &self.scenario.parts {
            part(&mut build);
        }
        let Build { futures, finally, mut roots, late_roots, .. } = build;
        self.run(futures);
        let mut lab = self.lab.borrow_mut();
        lab.chooser = None;
        if let Some(invariant) = self.scenario.limits.livelock {
            lab.evaluations.count(invariant);
        }
        let when = if lab.end == Some(End::Broken) && !lab.nobody_left { When::Step } else { When::End };
        if lab.end == Some(End::Finished) {
            let ended = lab.ended();
            for (invariant, check) in finally {
                let found = check(&ended);
                lab.hold(invariant, found.is_ok(), |_| found.err().unwrap_or_default());
            }
            lab.check_statistics();
            roots.extend(late_roots.into_iter().flat_map(|tables| tables()));
            match self.scenario.limits.leaks {
                Leaks::Reported => {
                    roots.push(lab.root);
                    lab.check_leaks(&roots);
                }
                Leaks::OfTheVm => lab.check_leaks(&roots),
                Leaks::Ignored => {}
            }
            if lab.broken.is_some() {
                lab.end = Some(End::Broken);
            }
        }
        lab.count_imagined();
        let (digest, outcome) = (lab.digest(), lab.outcome());
        Execution {
            end: lab.end.unwrap_or(End::Finished),
            steps: lab.steps,
            preemptions: lab.preemptions,
            broken: lab.broken.clone(),
            when,
            digest,
            outcome,
        }
    }

    fn run(&self, futures: Vec<ActorFuture>) {
        let mut futures: Vec<Option<ActorFuture>> = futures.into_iter().map(Some).collect();
        self.lab.borrow_mut().starting = true;
        for number in 0..futures.len() {
            self.lab.borrow_mut().acting = Agent::actor(number);
            self.poll(&mut futures, number);
        }
        {
            let mut lab = self.lab.borrow_mut();
            lab.starting = false;
            lab.start = lab.words.now();
            lab.begin_trace();
            lab.acting = Agent::RCU;
            lab.decide(None);
        }
        loop {
            let number = {
                let mut lab = self.lab.borrow_mut();
                let Some(next) = lab.next.take() else { break };
                let number = next.0 as usize;
                let mut goes_on = lab.resume(number);
                while !goes_on && lab.decide(Some(number)) {
                    goes_on = lab.resume(number);
                }
                if !goes_on {
                    continue;
                }
                number
            };
            self.poll(&mut futures, number);
        }
    }

    fn poll(&self, futures: &mut [Option<ActorFuture>], number: usize) {
        let Some(future) = futures[number].as_mut() else { return };
        let ready = future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
        if !ready {
            return;
        }
        futures[number] = None;
        let mut lab = self.lab.borrow_mut();
        lab.hands[number].finished = true;
        lab.hands[number].pending = Pending::Nothing;
        if !lab.starting && lab.end.is_none() {
            lab.decide(None);
        }
    }
}

impl<A: Arch> Lab<A> {
    /// A number for what everything amounts to.
    fn digest(&self) -> u64 {
        let mut digest = 0xcbf2_9ce4_8422_2325_u64;
        let mut mix = |word: u64| digest = (digest ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
        for write in self.words.log() {
            mix(u64::from(write.at));
            mix(write.new);
            mix(u64::from(write.agent));
        }
        mix(self.steps);
        mix(self.root.raw());
        for hand in &self.hands {
            mix(u64::from(hand.finished));
        }
        mix(self.broken.as_ref().map_or(0, |broken| broken.invariant as u64 + 1));
        digest
    }
}

/// The invariant that an execution broke, or would have if it had been allowed to go on.
pub(crate) fn verdict(execution: &Execution, livelock: Option<Invariant>, fair: bool) -> Option<Broken> {
    if let Some(broken) = &execution.broken {
        return Some(broken.clone());
    }
    match (execution.end, livelock) {
        (End::Cut, Some(invariant)) if fair => Some(Broken {
            invariant,
            agent: Agent::RCU,
            step: execution.steps,
            what: format!("not over after {} steps of a fair order", execution.steps),
        }),
        _ => None,
    }
}
