//! Who makes the next step, and the other decisions of an execution.

use super::decision::{Agent, Chooser, Decision, Footprint, Kind, Point, Who, agents};
use super::guest::Guest;
use super::invariant::Invariant;
use super::lab::{End, Hand, Lab, Pending};
use crate::arch::Arch;
use crate::engine::{LockId, LockMode, Op};

/// A step of an execution, for the next one to repeat.
#[derive(Clone, Copy, Debug)]
pub(super) struct Made {
    agent: Agent,
    /// How many could have made it.
    of: u8,
    preempts: bool,
}

impl<A: Arch> Lab<A> {
    /// An execution begins, and this chooser decides.
    pub(crate) fn begin(&mut self, chooser: Box<dyn Chooser>) {
        self.repeated = chooser.repeats().map(|steps| steps.min(self.made.len() as u64));
        self.made.truncate(self.repeated.unwrap_or(0) as usize);
        self.chooser = Some(chooser);
    }

    /// One of several alternatives; the first when the execution is over anyway.
    pub(crate) fn pick(&mut self, kind: Kind, of: usize) -> usize {
        if of <= 1 || self.end.is_some() {
            return 0;
        }
        let picked = self.chooser.as_mut().and_then(|chooser| chooser.pick(kind, of));
        let Some(chosen) = picked else {
            self.end = Some(End::Abandoned);
            return 0;
        };
        self.trail.push(Decision { kind, of: of as u16, chosen: chosen as u16 });
        chosen
    }

    fn can_go_on(&self, hand: &Hand) -> bool {
        match hand.pending {
            Pending::Op(Op::Lock(lock, mode)) => self.admits(lock, mode),
            Pending::Op(_) | Pending::Awake => true,
            Pending::Flight(waiting) => waiting == 0,
            Pending::Grace(number) => self.graces.iter().all(|grace| grace.number != number),
            Pending::Asleep | Pending::Nothing => false,
            Pending::Guest(vcpu) => self.guests[vcpu.0].exit.is_some(),
        }
    }

    /// Whether a lock can be had. A semaphore is fair: readers queue behind a writer that waits.
    pub(crate) fn admits(&self, lock: LockId, mode: LockMode) -> bool {
        let queued = |hand: &Hand| hand.pending == Pending::Op(Op::Lock(lock, LockMode::Write));
        let behind = lock == LockId::NOTIFIER_SLOTS && mode == LockMode::Read && self.hands.iter().any(queued);
        self.locks[lock.0 as usize].admits(mode) && !behind
    }

    /// Who can make a step.
    fn enabled(&self) -> u64 {
        let mut set = 0;
        for (number, hand) in self.hands.iter().enumerate() {
            if self.can_go_on(hand) {
                set |= Agent::actor(number).bit();
            }
            if !hand.buffer.is_empty() {
                set |= Agent::buffer(number).bit();
            }
        }
        for (number, guest) in self.guests.iter().enumerate() {
            if guest.runs() {
                set |= Agent::guest(number).bit();
            }
            if !guest.requests.is_empty() {
                set |= Agent::arrival(number).bit();
            }
        }
        if self.graces.iter().any(|grace| grace.waits_for == 0) {
            set |= Agent::RCU.bit();
        }
        set
    }

    fn footprint(&self, agent: Agent) -> Footprint {
        match agent.who() {
            Who::Actor(number) => self.footprint_of(number, self.hands[number].pending),
            Who::Buffer(number) => self.hands[number].buffer.first().map_or(Footprint::NONE, |&(at, _)| {
                let word = super::perform::word_bit(at);
                Footprint { reads: 0, writes: word | super::perform::own_bit(number) }
            }),
            Who::Guest(vcpu) => Guest::footprint(vcpu),
            Who::Arrival(vcpu) => Footprint {
                reads: super::perform::WORD_BITS,
                writes: super::perform::vcpu_bit(vcpu) | super::perform::FLIGHT_BIT,
            },
            Who::Rcu => Footprint { reads: super::perform::WORD_BITS, writes: super::perform::RCU_BIT },
        }
    }

    /// Chooses who makes the next step, and makes it as long as that needs no actor but `me`. True: `me` is to go on.
    pub(crate) fn decide(&mut self, me: Option<usize>) -> bool {
        loop {
            if self.end.is_some() {
                self.next = None;
                return false;
            }
            let chosen = if self.repeated.is_some_and(|steps| self.steps < steps) {
                let made = self.made[self.steps as usize];
                self.chosen(made);
                made.agent
            } else {
                let all = self.enabled();
                let others = all & !self.yielded;
                let Some(chosen) = self.choose(if others == 0 { all } else { others }) else { return false };
                chosen
            };
            self.steps += 1;
            self.yielded = 0;
            self.acting = chosen;
            if self.steps > self.limits.steps {
                self.end = Some(End::Cut);
                continue;
            }
            match chosen.who() {
                Who::Actor(number) if Some(number) == me => return true,
                Who::Actor(_) => {
                    self.next = Some(chosen);
                    return false;
                }
                Who::Buffer(number) => self.drain_one(number),
                Who::Guest(vcpu) => self.guest_step(vcpu),
                Who::Arrival(vcpu) => self.arrive(vcpu),
                Who::Rcu => self.end_grace(),
            }
        }
    }

    fn choose(&mut self, set: u64) -> Option<Agent> {
        if set == 0 {
            self.next = None;
            self.everybody_waits();
            return None;
        }
        let current = Some(self.acting).filter(|acting| set & acting.bit() != 0);
        if self.chooser.as_ref().is_some_and(|chooser| chooser.wants_footprints(self.steps)) {
            for agent in agents(set) {
                self.footprints[agent.0 as usize] = self.footprint(agent);
            }
        }
        let wanted = !set.is_power_of_two() && self.chooser.as_ref().is_some_and(|chooser| chooser.wants_state());
        let state = wanted.then(|| self.state());
        let point = Point { enabled: set, current, footprints: &self.footprints, state, step: self.steps };
        let Some(chooser) = self.chooser.as_mut() else { return agents(set).next() };
        let chosen = if set.is_power_of_two() {
            chooser.only(point).and_then(|()| agents(set).next())
        } else {
            chooser.run(point)
        };
        let Some(chosen) = chosen.filter(|chosen| set & chosen.bit() != 0) else {
            self.end = Some(End::Abandoned);
            self.next = None;
            return None;
        };
        let preempts = current.is_some_and(|current| current != chosen);
        let made = Made { agent: chosen, of: set.count_ones() as u8, preempts };
        if self.repeated.is_some() {
            self.made.push(made);
        }
        self.chosen(made);
        Some(chosen)
    }

    /// Notes who makes the next step.
    fn chosen(&mut self, made: Made) {
        if made.of > 1 {
            let Made { agent, of, preempts } = made;
            self.trail.push(Decision { kind: Kind::Run, of: of.into(), chosen: agent.0.into() });
            self.preemptions += u64::from(preempts);
        }
    }

    /// Nobody can make a step: the end, or a deadlock.
    fn everybody_waits(&mut self) {
        self.nobody_left = true;
        let waiting: Vec<usize> = (0..self.hands.len()).filter(|&number| !self.hands[number].finished).collect();
        self.hold(Invariant::P4, waiting.is_empty(), |lab| {
            let who = waiting.iter().map(|&number| format!("{} {}", lab.hands[number].name, lab.waits_for(number)));
            format!("nobody can go on: {}", who.collect::<Vec<_>>().join("; "))
        });
        self.end.get_or_insert(End::Finished);
    }

    fn waits_for(&self, number: usize) -> String {
        match self.hands[number].pending {
            Pending::Op(Op::Lock(lock, _)) => {
                let lock = &self.locks[lock.0 as usize];
                let holders = lock.writer.iter().chain(&lock.readers).map(|&holder| self.hands[holder as usize].name);
                format!("waits for a lock of {}", holders.collect::<Vec<_>>().join(", "))
            }
            Pending::Flight(left) => format!("waits for {left} vCPUs to answer"),
            Pending::Grace(_) => "waits for a grace period".to_owned(),
            Pending::Asleep => "sleeps until it is woken".to_owned(),
            Pending::Guest(vcpu) => format!("waits for vCPU {} to leave the guest", vcpu.0),
            Pending::Op(_) | Pending::Awake | Pending::Nothing => "could go on".to_owned(),
        }
    }

    /// The actor lets others go first: it spins, or has given the processor away.
    pub(crate) fn give_others_a_turn(&mut self, actor: usize) {
        self.yielded |= Agent::actor(actor).bit();
    }
}
