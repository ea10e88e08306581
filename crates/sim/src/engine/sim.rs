//! The simulation: windows, parallel vCPUs, host actors in time order.
//!
//! # Time
//!
//! Simulated time advances in windows. In a window every vCPU that runs guest code executes, in parallel, on the tables
//! as they were when the window began, up to its first exit; then the host phase applies the flags that walks have set and
//! runs host actors in order of time up to the window's end. So all guest accesses of a window come before all host
//! writes of that window: a legal order with a skew below the window's length, which is at most the smallest latency
//! between processors. Nothing is shared mutably in the parallel phase, and everything after it goes in a fixed order (time, then
//! number), so a run is the same bit for bit for any number of threads.
//!
//! While nothing happens in the host, windows grow; while no vCPU runs, there is no window at all and actors run from event to
//! event.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Waker};

use mmu_core::Cycles;
use rayon::prelude::*;

use super::host::{Host, Mailbox};
use super::lock::ActorId;
use super::op::Reply;
use super::vcpu::{Exit, Mode, Vcpu, VcpuStats, View, Watch};
use super::world::{ActorState, ActorStats, Horizon, Performed, Runs, World};
use crate::arch::Arch;
use crate::checker::Violation;
use crate::protocols::vm;

/// A protocol running as an actor.
pub type ActorFuture = Pin<Box<dyn Future<Output = ()>>>;

/// What runs when a vCPU leaves the guest.
pub type ExitHandler<F> = Rc<dyn Fn(Host<F>, VcpuExit) -> ActorFuture>;

/// What an exit handler is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VcpuExit {
    /// Which vCPU.
    pub vcpu: usize,
    /// Why it left.
    pub exit: Exit,
}

/// Threads used for the parallel phase. The result does not depend on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Threads {
    /// One.
    #[default]
    One,
    /// The current rayon pool's.
    Pool,
}

/// Why a run stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stopped {
    /// Every actor and every vCPU has finished.
    Finished,
    /// Nobody can go on although somebody has not finished.
    Deadlock {
        /// When.
        at: Cycles,
        /// Actors that wait for ever.
        actors: usize,
    },
}

struct Slot {
    name: &'static str,
    future: Option<ActorFuture>,
    state: ActorState,
    reply: Reply,
    /// The vCPU that this actor handles an exit of.
    serves: Option<usize>,
    finished: bool,
}

/// One simulation.
pub struct Sim<A: Arch> {
    pub(crate) world: World<A>,
    pub(crate) vcpus: Vec<Vcpu<A>>,
    actors: Vec<Slot>,
    /// Actors that can go on, by time and number.
    ready: BinaryHeap<Reverse<(Cycles, ActorId)>>,
    mailbox: Rc<Mailbox>,
    handler: ExitHandler<A::Two>,
    now: Cycles,
    stretch: u64,
    threads: Threads,
    watch: Watch,
    window: Cycles,
    windows: u64,
}

impl<A: Arch> fmt::Debug for Sim<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sim").field("now", &self.now).field("vcpus", &self.vcpus.len()).finish_non_exhaustive()
    }
}

/// A window may grow to this many times its least length while the host is quiet.
const STRETCH: u64 = 64;

/// vCPU cycles in a window below which starting threads costs more than it gains.
const PARALLEL_CYCLES: u64 = 40_000;

impl<A: Arch> Sim<A> {
    pub(crate) fn new(world: World<A>, handler: ExitHandler<A::Two>) -> Self {
        let window = world.costs.window();
        Self {
            world,
            vcpus: Vec::new(),
            actors: Vec::new(),
            ready: BinaryHeap::new(),
            mailbox: Rc::new(Mailbox::default()),
            handler,
            now: Cycles::ZERO,
            stretch: 1,
            threads: Threads::One,
            watch: Watch::Walks,
            window,
            windows: 0,
        }
    }

    /// Chooses threads for the parallel phase.
    pub fn set_threads(&mut self, threads: Threads) {
        self.threads = threads;
    }
    /// Chooses how closely vCPU accesses are watched.
    pub fn set_watch(&mut self, watch: Watch) {
        self.watch = watch;
    }
    /// Chooses whether bulk work is done in bulk; the result does not depend on it.
    pub fn set_runs(&mut self, runs: Runs) {
        self.world.runs = runs;
    }
    /// Sets the least window length; the default is the machine's smallest latency between processors.
    pub fn set_window(&mut self, window: Cycles) {
        self.window = window.max(Cycles(1));
    }

    pub(crate) fn add_vcpu(&mut self, vcpu: Vcpu<A>) {
        self.vcpus.push(vcpu);
    }

    /// Starts a protocol as an actor at `at`; returns its number.
    pub fn spawn(
        &mut self,
        name: &'static str,
        at: Cycles,
        start: impl FnOnce(Host<A::Two>) -> ActorFuture,
    ) -> ActorId {
        let future = start(self.host());
        self.add_actor(name, at, future, None)
    }

    fn host(&self) -> Host<A::Two> {
        Host::new(Rc::clone(&self.mailbox), *self.world.arch.two())
    }

    fn add_actor(&mut self, name: &'static str, at: Cycles, future: ActorFuture, serves: Option<usize>) -> ActorId {
        let free = self.actors.iter().position(|slot| slot.finished && slot.serves.is_some() && slot.serves == serves);
        let id = free.unwrap_or(self.actors.len());
        let state = ActorState::new(id, at);
        let slot = Slot { name, future: Some(future), state, reply: Reply::default(), serves, finished: false };
        match free {
            Some(id) => self.actors[id] = slot,
            None => self.actors.push(slot),
        }
        self.ready.push(Reverse((at, id)));
        id
    }

    /// Runs until everybody has finished.
    pub fn run(&mut self) -> Stopped {
        loop {
            let running = self.vcpus.iter().any(|vcpu| vcpu.mode == Mode::Guest);
            let Some(end) = self.window_end(running) else { return self.stopped() };
            if running {
                self.run_vcpus(end);
                self.collect();
            }
            self.run_host(end, running);
            if running {
                self.now = end;
            }
        }
    }

    /// When the next window ends, or `None` when nothing is left to happen.
    fn window_end(&mut self, running: bool) -> Option<Cycles> {
        let next = self.next_event();
        if !running {
            return next.map(|_| Cycles::NEVER);
        }
        let slowest = self.vcpus.iter().filter(|vcpu| vcpu.mode == Mode::Guest).map(|vcpu| vcpu.clock).min();
        let start = self.now.max(slowest.unwrap_or(self.now).min(next.unwrap_or(Cycles::NEVER)));
        // Quiet hosts make long windows: nobody is there to be late for.
        let busy = next.is_some_and(|next| next <= start + self.window.times(2));
        self.stretch = if busy { 1 } else { (self.stretch * 2).min(STRETCH) };
        let end = start + self.window.times(self.stretch);
        Some(match next {
            Some(next) if next > start + self.window => end.min(next),
            _ => end,
        })
    }

    fn next_event(&self) -> Option<Cycles> {
        let actor = self.ready.peek().map(|&Reverse((at, _))| at);
        match (actor, self.world.rcu.next()) {
            (Some(actor), Some(rcu)) => Some(actor.min(rcu)),
            (one, other) => one.or(other),
        }
    }

    fn stopped(&self) -> Stopped {
        let stuck = self.actors.iter().filter(|slot| !slot.finished).count();
        if stuck == 0 { Stopped::Finished } else { Stopped::Deadlock { at: self.now, actors: stuck } }
    }

    // ---- the parallel phase ----

    fn run_vcpus(&mut self, end: Cycles) {
        self.windows += 1;
        let view = View {
            tables: &self.world.tables,
            backing: &self.world.backing,
            costs: &self.world.costs,
            watch: self.watch,
        };
        let work: u64 = self
            .vcpus
            .iter()
            .filter(|vcpu| vcpu.mode == Mode::Guest)
            .map(|vcpu| end.since(vcpu.clock).0)
            .fold(0, u64::saturating_add);
        if self.threads == Threads::Pool && work >= PARALLEL_CYCLES {
            self.vcpus.par_iter_mut().for_each(|vcpu| vcpu.run(view, end));
        } else {
            for vcpu in &mut self.vcpus {
                vcpu.run(view, end);
            }
        }
    }

    /// Applies what the vCPUs did in the window, in the order of their numbers.
    fn collect(&mut self) {
        for i in 0..self.vcpus.len() {
            let vcpu = &mut self.vcpus[i];
            if !vcpu.log.is_empty() {
                for (at, word) in vcpu.log.drain() {
                    // Walks only ever set flags, and nobody else has written since they read the word.
                    if let Err(fault) = self.world.tables.fetch_or(at, word) {
                        let moment = vcpu.clock;
                        self.world.checker.report(Violation::TableWalk { vcpu: i, at, fault, moment });
                    }
                }
            }
            for violation in vcpu.violations.drain(..) {
                self.world.checker.report(violation);
            }
            for (flight, at) in vcpu.acks.drain(..) {
                self.world.acknowledge(flight, at);
            }
            if let Mode::Exited(exit) = vcpu.mode {
                vcpu.mode = Mode::InHost;
                let at = vcpu.clock;
                let future = (self.handler)(self.host(), VcpuExit { vcpu: i, exit });
                self.add_actor("vcpu", at, future, Some(i));
            }
        }
        self.wake();
    }

    // ---- the host phase ----

    fn wake(&mut self) {
        for granted in std::mem::take(&mut self.world.woken) {
            self.actors[granted.actor].state.resume(granted.at);
            self.actors[granted.actor].reply = Reply::default();
            self.ready.push(Reverse((granted.at, granted.actor)));
        }
    }

    fn run_host(&mut self, end: Cycles, running: bool) {
        loop {
            let Some(next) = self.next_event() else { return };
            if next >= end {
                return;
            }
            if self.world.rcu.next() == Some(next) && self.ready.peek().is_none_or(|&Reverse((at, _))| at >= next) {
                self.end_grace_periods(next);
                continue;
            }
            let Some(Reverse((at, id))) = self.ready.pop() else { return };
            self.now = self.now.max(at);
            self.run_actor(id, at, end);
            // A vCPU that entered the guest must run before the host goes on past the window.
            if !running && self.vcpus.iter().any(|vcpu| vcpu.mode == Mode::Guest) {
                return;
            }
        }
    }

    fn end_grace_periods(&mut self, now: Cycles) {
        let expired = self.world.rcu.expire(now);
        for frames in expired.frames {
            self.world.free(frames);
        }
        for actor in expired.wake {
            self.actors[actor].state.resume(now);
            self.ready.push(Reverse((now, actor)));
        }
    }

    /// Polls one actor until it waits, finishes, or somebody else is due.
    fn run_actor(&mut self, id: ActorId, at: Cycles, end: Cycles) {
        let Some(mut future) = self.actors[id].future.take() else { return };
        let mut context = Context::from_waker(Waker::noop());
        self.actors[id].state.now = at;
        self.mailbox.reply.set(self.actors[id].reply);
        let mut horizon = Horizon { until: end.min(self.next_event().unwrap_or(Cycles::NEVER)) };
        loop {
            if future.as_mut().poll(&mut context).is_ready() {
                self.finish(id);
                return;
            }
            let Some(op) = self.mailbox.op.take() else {
                // A future that waits for something that is no operation can never be resumed.
                self.actors[id].future = Some(future);
                return;
            };
            let state = &mut self.actors[id].state;
            let performed = self.world.perform(op, state, horizon, &mut self.vcpus);
            let now = state.now;
            if !self.world.woken.is_empty() {
                self.wake();
                horizon.until = end.min(self.next_event().unwrap_or(Cycles::NEVER));
            } else if self.world.rcu.next().is_some_and(|ripe| ripe < horizon.until) {
                horizon.until = end.min(self.next_event().unwrap_or(Cycles::NEVER));
            }
            match performed {
                Performed::Done(reply) if now < horizon.until => self.mailbox.reply.set(reply),
                Performed::Done(reply) => {
                    self.actors[id].reply = reply;
                    self.actors[id].future = Some(future);
                    self.ready.push(Reverse((now, id)));
                    return;
                }
                Performed::Blocked => {
                    self.actors[id].reply = Reply::default();
                    self.actors[id].future = Some(future);
                    return;
                }
            }
        }
    }

    fn finish(&mut self, id: ActorId) {
        let slot = &mut self.actors[id];
        slot.finished = true;
        slot.state.finish();
        let now = slot.state.now;
        if let Some(vcpu) = slot.serves {
            self.enter_guest(vcpu, now);
        }
    }

    /// The exit has been handled: back into the guest, with whatever was asked for meanwhile.
    fn enter_guest(&mut self, index: usize, now: Cycles) {
        let World { costs, root, root_generation, .. } = &self.world;
        let vcpu = &mut self.vcpus[index];
        let left = vcpu.clock;
        vcpu.clock = now + costs.entry;
        if vcpu.wants_reload() {
            vcpu.load_root(*root, *root_generation);
        }
        vcpu.enter(costs);
        vcpu.account_exit(left, costs);
    }

    /// Ends the VM: tears its tables down and reports as a violation whatever is left of them. Every vCPU has finished by
    /// then.
    pub fn destroy(&mut self) -> Stopped {
        let at = self.now;
        self.spawn("destroy", at, |host| Box::pin(async move { vm::destroy(&host).await }));
        let stopped = self.run();
        let tables = self.world.tables.frames();
        if tables > 0 {
            self.world.checker.report(Violation::Leak { tables });
        }
        stopped
    }

    // ---- results ----

    /// Statistics of every actor that was spawned by the user, by name.
    pub fn actors(&self) -> impl Iterator<Item = (&'static str, &ActorStats)> {
        self.actors.iter().filter(|slot| slot.serves.is_none()).map(|slot| (slot.name, &slot.state.stats))
    }

    /// Statistics summed over the exit handlers of all vCPUs: the longest figures of any.
    pub fn handlers(&self) -> BTreeMap<usize, ActorStats> {
        self.actors.iter().filter_map(|slot| Some((slot.serves?, slot.state.stats))).collect()
    }

    /// Statistics of each vCPU.
    pub fn vcpu_stats(&self) -> impl Iterator<Item = &VcpuStats> {
        self.vcpus.iter().map(|vcpu| &vcpu.stats)
    }

    /// Why a vCPU could not go on, if one could not.
    pub fn failure(&self) -> Option<String> {
        self.vcpus.iter().find_map(|vcpu| {
            let guest = vcpu.error.as_ref().map(ToString::to_string);
            let why = guest.or_else(|| vcpu.stream.error().map(ToString::to_string))?;
            Some(format!("vCPU {}: {why}", vcpu.index))
        })
    }

    /// Windows run so far.
    pub fn windows(&self) -> u64 {
        self.windows
    }

    /// The host and the VM.
    pub fn world(&self) -> &World<A> {
        &self.world
    }
}
