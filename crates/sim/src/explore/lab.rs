//! The laboratory: what operations act on while somebody decides the order. The exploring counterpart of the timed world.
//!
//! It is a [`Stage`] for the same actors. Before an operation that others can tell happens, the actor has to be chosen for it; what is chosen
//! instead and needs no actor (a guest's access, an arriving interrupt, a grace period) is done on the spot, so that an actor goes on
//! without being polled again unless another actor's turn has come.

use std::cell::RefCell;

use mmu_core::{Cycles, Flush, Hpa, Level};

use super::deciding::Made;
use super::decision::{Agent, Chooser, Decision, Footprint};
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
    Blockable, Exit, HostCounters, LockId, LockKind, Memslots, Op, PrimaryMmu, Reply, Stage, Var, VcpuId, WaitQueue,
    WaitQueues,
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
    pub(crate) scratch: super::endings::Scratch,
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
    pub(super) made: Vec<Made>,
    pub(super) repeated: Option<u64>,
    pub(super) footprints: Box<[Footprint; 64]>,
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
            scratch: super::endings::Scratch::default(),
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

/// The moment of everything: explorations know no time.
pub(crate) const NO_TIME: Cycles = Cycles::ZERO;
