//! The laboratory: what operations act on while somebody decides the order. The exploring counterpart of the timed world.
//!
//! It is a [`Stage`] for the same actors. Before an operation that others can tell happens, the actor has to be chosen for it; what is chosen
//! instead and needs no actor (a guest's access, an arriving interrupt, a grace period) is done on the spot, so that an actor goes on
//! without being polled again unless another actor's turn has come.

use std::cell::RefCell;

use mmu_core::{Cycles, Flush, Hpa, Level};

use super::decision::{Agent, Chooser, Decision, Footprint, Kind, Point, Who, agents};
use super::digest::mixed;
use super::ghost::Ghost;
use super::guest::Guest;
use super::invariant::{Broken, Evaluations, Invariant};
use super::memory::{MemoryOrder, Sight, View};
use super::mutation::{Disordered, Imagined};
use super::promises::Promises;
use super::tally::Tally;
use super::waiting::Lock;
use super::words::Words;
use crate::arch::Arch;
use crate::engine::world::World;
use crate::engine::{
    Blockable, Exit, HostCounters, LockId, LockKind, LockMode, Memslots, Op, PrimaryMmu, Reply, Stage, Var, VcpuId,
    WaitQueue, WaitQueues,
};
use crate::workload::GuestWork;

/// What an actor waits to do.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Pending {
    /// This operation, when it is chosen.
    Op(Op),
    /// So many vCPUs have not answered yet.
    Flight(u32),
    /// The end of this grace period.
    Grace(u64),
    /// A wake-up.
    Asleep,
    Awake,
    /// Its vCPU to leave the guest.
    Guest(VcpuId),
    /// Nothing: it has just begun, is running, or has finished.
    Nothing,
}

/// What is kept of a host actor.
#[derive(Clone, Debug)]
pub(crate) struct Hand {
    pub(crate) name: &'static str,
    pub(crate) pending: Pending,
    pub(crate) finished: bool,
    pub(crate) vcpu: Option<VcpuId>,
    pub(crate) blockable: Blockable,
    pub(crate) processor: Option<LockId>,
    pub(crate) rcu_depth: u32,
    /// Entries visited since it could have rescheduled last.
    pub(crate) stretch: u64,
    /// Steps of those who hold the lock that it waits for.
    pub(crate) waited: u64,
    /// A flush that was put off ([`Mutation::LateFlush`](super::Mutation)).
    pub(crate) late_flush: Option<Flush>,
    /// The invalidation sequence as it was seen last without a lock ([`Mutation::StaleRecheck`](super::Mutation)).
    pub(crate) sequence_seen: u64,
    /// Stores that have not reached memory (TSO).
    pub(crate) buffer: Vec<(Hpa, u64)>,
    /// What it has seen (weak memory).
    pub(crate) view: View,
    /// The history of the answers it got.
    pub(crate) answers: u64,
    /// The invalidation that it waits for.
    pub(crate) flushing: Option<Flush>,
    pub(crate) imagined: Imagined,
}

impl Hand {
    pub(crate) fn new(name: &'static str, vcpu: Option<VcpuId>) -> Self {
        Self {
            name,
            pending: Pending::Nothing,
            finished: false,
            vcpu,
            blockable: Blockable::Yes,
            processor: None,
            rcu_depth: 0,
            stretch: 0,
            waited: 0,
            late_flush: None,
            sequence_seen: 0,
            buffer: Vec::new(),
            view: View::default(),
            answers: 0,
            flushing: None,
            imagined: Imagined::default(),
        }
    }

    /// The actor is told something.
    pub(crate) fn told(&mut self, reply: Reply) {
        self.answers = mixed(mixed(self.answers, reply.a), mixed(reply.b, reply.c));
    }
}

/// A grace period that has not ended: its callbacks, and the readers it waits for.
#[derive(Clone, Debug)]
pub(crate) struct Grace {
    pub(crate) number: u64,
    pub(crate) waits_for: u64,
    pub(crate) frames: Vec<Hpa>,
    pub(crate) subtree: Option<(Hpa, Level)>,
}

/// Why an execution came to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// Everybody has finished.
    Finished,
    /// An invariant was broken.
    Broken,
    /// Too many steps.
    Cut,
    /// The chooser did not want to see the rest.
    Abandoned,
}

/// What happened, step by step, when somebody wants to know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// Its number.
    pub number: u64,
    /// Who made it.
    pub agent: Agent,
    /// What it was.
    pub what: String,
}

/// A step of an execution, for the next one to repeat.
#[derive(Clone, Copy, Debug)]
struct Made {
    agent: Agent,
    /// How many could have made it.
    of: u8,
    preempts: bool,
}

/// The laboratory.
pub(crate) struct Lab<A: Arch> {
    pub(crate) format: A::Two,
    /// The primary MMU and the memslots; its tables are not used.
    pub(crate) world: World<A>,
    initial: (PrimaryMmu, Memslots, Hpa),
    pub(crate) touched_primary: bool,
    pub(crate) touched_slots: bool,
    pub(crate) words: Words,
    pub(crate) vars: Hpa,
    pub(crate) vars_made: u32,
    /// Variables with an initial value, and when they got it.
    pub(crate) births: Vec<(Hpa, super::words::Moment)>,
    pub(crate) guests: Vec<Guest>,
    pub(crate) hands: Vec<Hand>,
    pub(crate) locks: Vec<Lock>,
    pub(crate) queues: WaitQueues,
    pub(crate) graces: Vec<Grace>,
    pub(crate) grace_number: u64,
    pub(crate) root: Hpa,
    pub(crate) generation: u16,
    pub(crate) counters: HostCounters,
    pub(crate) memory: MemoryOrder,
    pub(crate) sc_view: Sight,
    /// What was seen when grace periods began: read sections that begin later, and are not waited for, see it too.
    pub(crate) rcu_view: Sight,
    /// When actors began: nobody sees what was before.
    pub(crate) start: super::words::Moment,
    pub(crate) ghost: Ghost,
    pub(crate) promises: Promises,
    pub(crate) tally: Tally,
    pub(crate) evaluations: Evaluations,
    pub(crate) limits: super::limits::Limits,
    pub(crate) ticks: u32,
    pub(crate) failures: u32,
    pub(crate) store_failures: u32,
    /// The order of what was done to the primary MMU and to memslots.
    pub(crate) order: u64,
    /// The order in which actors ran.
    pub(crate) turns: u64,
    /// Modification logs are on.
    pub(crate) modification_log: u64,
    // ---- deciding ----
    pub(crate) chooser: Option<Box<dyn Chooser>>,
    pub(crate) trail: Vec<Decision>,
    pub(crate) preemptions: u64,
    /// The steps of this execution if the chooser repeats executions: up to `repeated` those of the last one.
    made: Vec<Made>,
    repeated: Option<u64>,
    footprints: Box<[Footprint; 64]>,
    pub(crate) yielded: u64,
    pub(crate) acting: Agent,
    pub(crate) next: Option<Agent>,
    pub(crate) steps: u64,
    pub(crate) starting: bool,
    pub(crate) reply: Reply,
    pub(crate) end: Option<End>,
    /// Nobody could make a step any more.
    pub(crate) nobody_left: bool,
    pub(crate) broken: Option<Broken>,
    pub(crate) imagined: Disordered,
    pub(crate) record: Option<Vec<Step>>,
    pub(crate) traced: Option<super::traced::Noted>,
}

/// Variables that a scenario may have.
const MOST_VARS: usize = 1024;

impl<A: Arch> Lab<A> {
    /// A laboratory with the VM as it is in `world` and `words`; `words` has been filled but not settled.
    pub(crate) fn new(world: World<A>, mut words: Words, root: Hpa, limits: super::limits::Limits) -> Self {
        let vars = words.alloc(super::words::WORDS, MOST_VARS);
        words.settle();
        let initial = (world.primary.clone(), world.slots.clone(), root);
        Self {
            format: *world.arch.two(),
            initial,
            touched_primary: false,
            touched_slots: false,
            words,
            vars,
            vars_made: Var::FIXED as u32,
            births: Vec::new(),
            guests: Vec::new(),
            hands: Vec::new(),
            locks: Vec::new(),
            queues: WaitQueues::new(WaitQueue::FIXED),
            graces: Vec::new(),
            grace_number: 0,
            root,
            generation: 0,
            counters: HostCounters::default(),
            memory: limits.memory,
            sc_view: Sight::default(),
            rcu_view: Sight::default(),
            start: 0,
            ghost: Ghost::default(),
            promises: Promises::default(),
            tally: Tally::default(),
            evaluations: Evaluations::default(),
            limits,
            ticks: limits.ticks,
            failures: limits.allocation_failures,
            store_failures: limits.store_failures,
            order: 0,
            turns: 0,
            modification_log: 0,
            chooser: None,
            trail: Vec::new(),
            preemptions: 0,
            made: Vec::new(),
            repeated: None,
            footprints: Box::new([Footprint::NONE; 64]),
            yielded: 0,
            acting: Agent::actor(0),
            next: None,
            steps: 0,
            starting: false,
            reply: Reply::default(),
            end: None,
            nobody_left: false,
            broken: None,
            imagined: Disordered::default(),
            record: None,
            traced: None,
            world,
        }
    }

    /// Back to where executions begin: nobody there, nothing happened.
    pub(crate) fn reset(&mut self) {
        self.words.reset();
        if std::mem::take(&mut self.touched_primary) {
            self.world.primary.clone_from(&self.initial.0);
        }
        if std::mem::take(&mut self.touched_slots) {
            self.world.slots.clone_from(&self.initial.1);
            self.world.vars[Var::MEMSLOTS.0 as usize] = 0;
        }
        self.root = self.initial.2;
        self.generation = 0;
        self.vars_made = Var::FIXED as u32;
        self.births.clear();
        self.guests.clear();
        self.hands.clear();
        self.locks.resize(LockId::FIXED, Lock::default());
        self.locks.iter_mut().for_each(Lock::reset);
        self.locks[LockId::MMU.0 as usize].kind = self.limits.mmu_lock;
        self.locks[LockId::NOTIFIER_SLOTS.0 as usize].kind = LockKind::ReadWrite;
        self.queues.reset(WaitQueue::FIXED);
        self.graces.clear();
        self.grace_number = 0;
        self.counters = HostCounters::default();
        self.sc_view.clear();
        self.rcu_view.clear();
        self.ghost.reset();
        self.promises.reset();
        self.reset_tally();
        self.ticks = self.limits.ticks;
        self.failures = self.limits.allocation_failures;
        self.store_failures = self.limits.store_failures;
        (self.order, self.turns) = (0, 0);
        self.modification_log = 0;
        self.trail.clear();
        self.preemptions = 0;
        self.yielded = 0;
        self.next = None;
        self.steps = 0;
        self.end = None;
        self.nobody_left = false;
        self.imagined.clear();
        self.broken = None;
    }

    // ---- what is broken ----

    pub(crate) fn broken(&mut self, invariant: Invariant, what: String) {
        if self.broken.is_none() {
            self.broken = Some(Broken { invariant, agent: self.acting, step: self.steps, what });
        }
        self.end.get_or_insert(End::Broken);
    }

    /// Evaluates an invariant.
    pub(crate) fn hold(&mut self, invariant: Invariant, holds: bool, what: impl FnOnce(&Self) -> String) {
        self.evaluations.count(invariant);
        if !holds {
            let what = what(self);
            self.broken(invariant, what);
        }
    }

    // ---- deciding ----

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

    /// The number of the acting actor.
    pub(crate) fn me(&self) -> usize {
        self.acting.0 as usize
    }

    pub(crate) fn note(&mut self, what: impl FnOnce(&Self) -> String) {
        if self.record.is_some() {
            let what = what(self);
            let step = Step { number: self.steps, agent: self.acting, what };
            self.record.iter_mut().for_each(|record| record.push(step.clone()));
        }
    }

    /// The actor that was chosen makes its step; true when it can be polled.
    pub(crate) fn resume(&mut self, actor: usize) -> bool {
        self.acting = Agent::actor(actor);
        self.turns = mixed(self.turns, actor as u64 + 1);
        let reply = match std::mem::replace(&mut self.hands[actor].pending, Pending::Nothing) {
            Pending::Op(op) => self.execute(op),
            waited => {
                self.wait_is_over(actor, waited);
                Some(Reply::default())
            }
        };
        if let Some(reply) = reply {
            self.hands[actor].told(reply);
            self.reply = reply;
        }
        reply.is_some()
    }
}

impl<A: Arch> Lab<A> {
    /// An operation of the actor that is being polled.
    fn ask(&mut self, op: Op) -> Option<Reply> {
        let me = self.me();
        if self.end.is_some() {
            return None;
        }
        if let Some(reply) = self.perform_local(op) {
            self.hands[me].told(reply);
            return Some(reply);
        }
        self.hands[me].pending = Pending::Op(op);
        if self.starting {
            return None;
        }
        while self.decide(Some(me)) {
            if self.resume(me) {
                return Some(self.reply);
            }
        }
        None
    }
}

impl<A: Arch> Stage for RefCell<Lab<A>> {
    fn perform(&self, op: Op) -> Option<Reply> {
        self.borrow_mut().ask(op)
    }

    fn reply(&self) -> Reply {
        self.borrow().reply
    }

    fn exit(&self, vcpu: VcpuId) -> Exit {
        self.borrow().guests[vcpu.0].left
    }

    fn counters(&self) -> HostCounters {
        self.borrow().counters
    }

    fn assign(&self, vcpu: VcpuId, work: GuestWork) {
        self.borrow_mut().guests[vcpu.0].assign(work, vcpu.0 as u64);
    }
}

/// A flush of everything.
pub(crate) const EVERYTHING: Flush = Flush {
    scope: mmu_core::FlushScope::Vm,
    walk_caches: mmu_core::WalkCaches::Drop,
    reach: mmu_core::Reach::Everyone,
};

/// The moment of everything: explorations know no time.
pub(crate) const NO_TIME: Cycles = Cycles::ZERO;
