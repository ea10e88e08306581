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

use std::cell::{RefCell, RefMut};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Waker};

use mmu_core::machine::SocketSpec;
use mmu_core::{Cycles, Hpa};
use rayon::prelude::*;

use super::actor::ActorState;
use super::crew::Crew;
use super::host::{Host, Stage};
use super::lock::{ActorId, Granted, LockKind};
use super::op::{Frames, LockId, Reply, Var, VcpuId, WaitQueue};
use super::phases::PhaseClock;
use super::primary::{Handover, Memslot, PrimaryMmu, SlotsVersion};
use super::probe::{FlagWrites, access_data};
use super::replies::Noted;
use super::tap::Tap;
use super::timed::{Parked, Timed};
use super::vcpu::{Mode, Vcpu, View, Watch};
use super::world::{Horizon, Runs, World};
use crate::arch::Arch;
use crate::checker::Violation;
use crate::events::Recorder;
use crate::protocols::vm;

/// A protocol running as an actor.
pub type ActorFuture = Pin<Box<dyn Future<Output = ()>>>;

/// Threads used for the parallel phase. The result does not depend on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Threads {
    /// One.
    #[default]
    One,
    /// The current rayon pool's.
    Pool,
    /// The current rayon pool's in every window, even where starting them costs more than it gains.
    Always,
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

pub(super) struct Slot {
    pub(super) name: &'static str,
    pub(super) future: Option<ActorFuture>,
    pub(super) state: ActorState,
    pub(super) reply: Reply,
    /// The vCPU that this actor is the thread of.
    pub(super) vcpu: Option<VcpuId>,
    pub(super) finished: bool,
}

/// One simulation.
pub struct Sim<A: Arch> {
    pub(super) stage: Rc<RefCell<Timed<A>>>,
    /// What records, in front of the stage.
    pub(super) tap: Option<Rc<RefCell<Tap<A>>>>,
    /// What notes answers, in front of the stage, if the simulation may be saved.
    pub(super) noted: Option<Rc<Noted<A>>>,
    format: A::Two,
    pub(super) actors: Vec<Slot>,
    /// Actors that can go on, by time and number.
    pub(super) ready: BinaryHeap<Reverse<(Cycles, ActorId)>>,
    pub(super) now: Cycles,
    pub(super) stretch: u64,
    threads: Threads,
    crew: Crew,
    /// vCPUs that run in the window, in the order of their numbers.
    due: Vec<usize>,
    watch: Watch,
    pub(super) flag_writes: FlagWrites,
    /// Entries that a defect writes later.
    late: Vec<(Hpa, u64)>,
    window: Cycles,
    pub(super) windows: u64,
    pub(super) phases: PhaseClock,
}

impl<A: Arch> fmt::Debug for Sim<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sim").field("now", &self.now).field("actors", &self.actors.len()).finish_non_exhaustive()
    }
}

/// Tells vCPUs whose cores run another vCPU's guest code in this window how fast they are. One that waits in the host, for a lock too, leaves the core to the other.
fn share_cores<A: Arch>(vcpus: &mut [Vcpu<A>], sockets: Option<SocketSpec>) {
    let Some((sockets, speed)) = sockets.and_then(|sockets| Some((sockets, sockets.shared_core_speed?))) else {
        return;
    };
    if vcpus.len() <= sockets.all_cores() {
        return;
    }
    for i in 0..vcpus.len() {
        let sibling = sockets.sibling(i).and_then(|sibling| vcpus.get(sibling));
        let both = sibling.is_some_and(|sibling| sibling.mode == Mode::Guest);
        vcpus[i].shared = both.then_some(speed);
    }
}

/// A window may grow to this many times its least length while the host is quiet.
const STRETCH: u64 = 64;

/// Cycles of an access that misses the TLBs: whoever runs in a window makes one at least.
const ACCESS_CYCLES: u64 = 300;
/// vCPU cycles in a window below which starting threads costs more than it gains.
const PARALLEL_CYCLES: u64 = 2000;

impl<A: Arch> Sim<A> {
    pub(crate) fn new(world: World<A>) -> Self {
        let (window, format) = (world.costs.window(), *world.arch.two());
        let actor = ActorState::new(0, Cycles::ZERO);
        let horizon = Horizon { until: Cycles::ZERO, others: Cycles::ZERO };
        let timed = Timed { world, vcpus: Vec::new(), actor, horizon, parked: Parked::Event };
        Self {
            stage: Rc::new(RefCell::new(timed)),
            tap: None,
            noted: None,
            format,
            actors: Vec::new(),
            ready: BinaryHeap::new(),
            now: Cycles::ZERO,
            stretch: 1,
            threads: Threads::One,
            crew: Crew::default(),
            due: Vec::new(),
            watch: Watch::Walks,
            flag_writes: FlagWrites::CompareAndSwap,
            late: Vec::new(),
            window,
            windows: 0,
            phases: PhaseClock::default(),
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
        self.stage.borrow_mut().world.runs = runs;
    }
    /// Chooses what zapped entries tell the primary MMU.
    pub fn set_handover(&mut self, handover: Handover) {
        self.stage.borrow_mut().world.handover = handover;
    }
    /// The primary MMU, to be set up before the run.
    pub fn primary_mut(&mut self) -> RefMut<'_, PrimaryMmu> {
        RefMut::map(self.stage.borrow_mut(), |stage| &mut stage.world.primary)
    }
    /// Adds a memslot before the run.
    pub fn add_slot(&mut self, slot: Memslot) {
        let world = &mut self.stage.borrow_mut().world;
        let active = SlotsVersion(world.var(Var::MEMSLOTS));
        world.slots.put_now(active, slot);
    }
    /// Presets a shared variable before the run.
    pub fn set_var(&mut self, var: Var, value: u64) {
        self.stage.borrow_mut().world.vars[var.0 as usize] = value;
    }
    /// Sets the least window length; the default is [`Costs::window`](super::Costs::window).
    pub fn set_window(&mut self, window: Cycles) {
        self.window = window.max(Cycles(1));
    }

    /// Records from now on; the recording goes to the collector when the simulation is dropped. Before any actor is spawned.
    pub(crate) fn record(&mut self, recorder: Recorder) {
        for vcpu in &mut self.stage.borrow_mut().vcpus {
            vcpu.served = Some(Vec::new());
        }
        self.tap = Some(Rc::new(RefCell::new(Tap::new(self.stage.clone(), recorder))));
    }
    /// Names the recording, if there is one.
    pub fn name_recording(&mut self, name: &str) {
        if let Some(tap) = &self.tap {
            tap.borrow_mut().recorder().set_name(name);
        }
    }

    pub(crate) fn add_vcpu(&mut self, vcpu: Vcpu<A>) {
        self.stage.borrow_mut().vcpus.push(vcpu);
    }

    /// How many vCPUs the VM has.
    pub fn vcpus(&self) -> usize {
        self.stage.borrow().vcpus.len()
    }

    /// Allocates words of zeros in host memory before the run, or `None` when the table pool is exhausted.
    pub fn alloc_words(&mut self, words: u64) -> Option<Frames> {
        self.stage.borrow_mut().world.take_words(words)
    }

    /// Makes a shared variable before the run.
    pub fn new_var(&mut self, initial: u64) -> Var {
        let vars = &mut self.stage.borrow_mut().world.vars;
        vars.push(initial);
        Var(vars.len() as u32 - 1)
    }
    /// Makes a lock before the run.
    pub fn new_lock(&mut self, kind: LockKind) -> LockId {
        self.stage.borrow_mut().world.new_lock(kind)
    }
    /// Makes a wait queue before the run.
    pub fn new_wait_queue(&mut self) -> WaitQueue {
        self.stage.borrow_mut().world.queues.create()
    }

    /// Starts a protocol as an actor at `at`; returns its number.
    pub fn spawn(
        &mut self,
        name: &'static str,
        at: Cycles,
        start: impl FnOnce(Host<A::Two>) -> ActorFuture,
    ) -> ActorId {
        let id = self.add_actor(name, at, start, None);
        self.ready.push(Reverse((at, id)));
        id
    }

    /// Starts the thread of a vCPU now. It runs up to its first wait, in general
    /// [`vcpu_run`](Host::vcpu_run), so that vCPUs begin in the guest.
    pub fn spawn_vcpu(&mut self, vcpu: VcpuId, start: impl FnOnce(Host<A::Two>) -> ActorFuture) -> ActorId {
        let now = self.now;
        let id = self.add_actor("vcpu", now, start, Some(vcpu));
        self.run_actor(id, now, now);
        id
    }

    fn add_actor(
        &mut self,
        name: &'static str,
        at: Cycles,
        start: impl FnOnce(Host<A::Two>) -> ActorFuture,
        vcpu: Option<VcpuId>,
    ) -> ActorId {
        let id = self.actors.len();
        if let Some(tap) = &self.tap {
            tap.borrow_mut().recorder().actor(id, name, vcpu.map(|vcpu| vcpu.0));
        }
        let stage: Rc<dyn Stage> = match (&self.tap, &self.noted) {
            (Some(tap), _) => tap.clone(),
            (None, Some(noted)) => noted.clone(),
            (None, None) => self.stage.clone(),
        };
        let future = start(Host::new(stage, self.format));
        let state = ActorState::new(id, at);
        self.actors.push(Slot { name, future: Some(future), state, reply: Reply::default(), vcpu, finished: false });
        id
    }

    /// Runs until everybody has finished.
    pub fn run(&mut self) -> Stopped {
        loop {
            if let Some(stopped) = self.turn() {
                return stopped;
            }
        }
    }

    /// Runs one window, or the host alone until a vCPU enters the guest. Says so when nothing is left to happen.
    pub fn turn(&mut self) -> Option<Stopped> {
        let running = self.guests_run();
        let Some(end) = self.window_end(running) else { return Some(self.stopped()) };
        if running {
            self.run_vcpus(end);
            self.phases.lap(|times| &mut times.vcpus);
            self.collect();
            self.phases.lap(|times| &mut times.applying);
        }
        let end = self.run_host(end, running);
        for (at, word) in self.late.drain(..) {
            let _ = self.stage.borrow_mut().world.tables.write(at, word);
        }
        self.phases.lap(|times| &mut times.host);
        if running {
            self.now = end;
        }
        None
    }

    fn guests_run(&self) -> bool {
        self.stage.borrow().vcpus.iter().any(|vcpu| vcpu.mode == Mode::Guest)
    }

    /// When the next window ends, or `None` when nothing is left to happen.
    fn window_end(&mut self, running: bool) -> Option<Cycles> {
        let next = self.next_event();
        if !running {
            return next.map(|_| Cycles::NEVER);
        }
        let slowest = {
            let vcpus = &self.stage.borrow().vcpus;
            vcpus.iter().filter(|vcpu| vcpu.mode == Mode::Guest).map(|vcpu| vcpu.clock).min()
        };
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
        match (actor, self.stage.borrow().world.rcu.next()) {
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
        let Timed { world, vcpus, .. } = &mut *self.stage.borrow_mut();
        let view = View {
            tables: &world.tables,
            primary: &world.primary,
            pages: &world.upkeep.pages,
            costs: &world.costs,
            watch: self.watch,
            stores_count: world.written.is_on(),
        };
        share_cores(vcpus, world.costs.sockets);
        let is_due = |vcpu: &Vcpu<A>| vcpu.mode == Mode::Guest && vcpu.clock < end;
        self.due.clear();
        let mut work = 0u64;
        for vcpu in vcpus.iter().filter(|vcpu| is_due(vcpu)) {
            self.due.push(vcpu.index);
            work = work.saturating_add(end.since(vcpu.clock).0.max(ACCESS_CYCLES));
        }
        let worth = work >= PARALLEL_CYCLES || self.threads == Threads::Always;
        if self.threads != Threads::One && worth {
            let mut due: Vec<_> = vcpus.iter_mut().filter(|vcpu| is_due(vcpu)).collect();
            self.crew.call();
            due.par_iter_mut().for_each(|vcpu| vcpu.run(view, end));
            self.crew.wait();
        } else {
            for &i in &self.due {
                vcpus[i].run(view, end);
            }
        }
    }

    /// Applies what the vCPUs did in the window, in the order of their numbers.
    fn collect(&mut self) {
        {
            let Timed { world, vcpus, .. } = &mut *self.stage.borrow_mut();
            let mut tap = self.tap.as_ref().map(|tap| tap.borrow_mut());
            let mut landed = false;
            for &i in &self.due {
                let Some(vcpu) = vcpus.get_mut(i) else { continue };
                landed |= vcpu.probing.has_landed();
                if !vcpu.log.is_empty() {
                    for (at, old, new) in vcpu.log.drain() {
                        if let Some(tap) = &mut tap {
                            tap.flags(i, at, new, vcpu.clock);
                        }
                        if self.flag_writes == FlagWrites::LateStore {
                            self.late.push((at, new));
                            continue;
                        }
                        // Walks change flags only, and nobody but other walks has written since they read the word.
                        if let Err(fault) = world.tables.change(at, old, new) {
                            let moment = vcpu.clock;
                            world.checker.report(Violation::TableWalk { vcpu: i, at, fault, moment });
                        }
                    }
                }
                if !vcpu.stores.pages.is_empty() {
                    for gpa in std::mem::take(&mut vcpu.stores.pages) {
                        world.written.wrote(gpa);
                    }
                }
                for violation in vcpu.violations.drain(..) {
                    world.checker.report(violation);
                }
                if let Some(tap) = &mut tap {
                    vcpu.served.iter_mut().flat_map(|served| served.drain(..)).for_each(|served| tap.served(i, served));
                }
                for (flight, at) in vcpu.acks.drain(..) {
                    if let Some(tap) = &mut tap {
                        tap.acknowledged(world.sender(flight), i, at);
                    }
                    world.acknowledge(flight, at);
                }
                if vcpu.mode == Mode::Exited {
                    vcpu.mode = Mode::InHost;
                    world.woken.extend(vcpu.thread.map(|actor| Granted { actor, at: vcpu.clock }));
                }
            }
            if landed {
                access_data(&mut world.contents, vcpus);
            }
        }
        self.wake();
    }

    // ---- the host phase ----

    fn wake(&mut self) {
        let woken = std::mem::take(&mut self.stage.borrow_mut().world.woken);
        for granted in woken {
            let slot = &mut self.actors[granted.actor];
            slot.state.resume(granted.at);
            slot.reply = Reply::default();
            self.ready.push(Reverse((slot.state.now, granted.actor)));
        }
    }

    /// Runs the host up to the end of the window, which is returned: it may have come closer.
    fn run_host(&mut self, mut end: Cycles, running: bool) -> Cycles {
        self.stage.borrow_mut().world.entered = None;
        loop {
            let Some(next) = self.next_event() else { return end };
            if next >= end {
                return end;
            }
            let grace = self.stage.borrow().world.rcu.next();
            if grace == Some(next) && self.ready.peek().is_none_or(|&Reverse((at, _))| at >= next) {
                self.end_grace_periods(next);
                continue;
            }
            let Some(Reverse((at, id))) = self.ready.pop() else { return end };
            self.now = self.now.max(at);
            self.run_actor(id, at, end);
            // A vCPU that entered the guest must run before the host goes on past its clock: what the host frees later must not be what it still uses.
            let entered = self.stage.borrow_mut().world.entered.take();
            match entered {
                Some(_) if !running => return end,
                Some(clock) => end = end.min(clock).max(self.now),
                None => {}
            }
        }
    }

    fn end_grace_periods(&mut self, now: Cycles) {
        let world = &mut self.stage.borrow_mut().world;
        let expired = world.rcu.expire(now);
        if let Some(tap) = &self.tap {
            let tables = expired.frames.iter().map(|frames| frames.count).sum();
            tap.borrow_mut().grace_period(now, tables, expired.wake.len() as u64);
        }
        for frames in expired.frames {
            world.free(frames);
        }
        for subtree in expired.subtrees {
            world.free_subtree(subtree, now);
        }
        for actor in expired.wake {
            let state = &mut self.actors[actor].state;
            state.resume(now);
            self.ready.push(Reverse((state.now, actor)));
        }
    }

    /// Polls one actor until it waits, finishes, or somebody else is due.
    fn run_actor(&mut self, id: ActorId, at: Cycles, end: Cycles) {
        let until = end.min(self.next_event().unwrap_or(Cycles::NEVER));
        let others = end.min(self.ready.peek().map_or(Cycles::NEVER, |&Reverse((at, _))| at));
        let Some(mut future) = self.actors[id].future.take() else { return };
        if let Some(noted) = &self.noted {
            noted.poll(id);
        }
        {
            let stage = &mut *self.stage.borrow_mut();
            stage.actor = self.actors[id].state.clone();
            stage.actor.now = at;
            stage.horizon = Horizon { until, others };
            stage.parked = Parked::Turn(self.actors[id].reply);
        }
        let ready = future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
        let parked = {
            let stage = &mut *self.stage.borrow_mut();
            std::mem::swap(&mut self.actors[id].state, &mut stage.actor);
            stage.parked
        };
        if ready {
            self.finish(id);
        } else {
            self.actors[id].future = Some(future);
            if let Parked::Turn(reply) = parked {
                self.actors[id].reply = reply;
                self.ready.push(Reverse((self.actors[id].state.now, id)));
            }
        }
        self.wake();
    }

    fn finish(&mut self, id: ActorId) {
        let slot = &mut self.actors[id];
        slot.finished = true;
        slot.state.finish();
        if let Some(tap) = &self.tap {
            tap.borrow_mut().finished(id, slot.state.now);
        }
        if let Some(vcpu) = slot.vcpu {
            self.stage.borrow_mut().vcpus[vcpu.0].mode = Mode::Finished;
        }
    }

    /// Ends the VM: tears its tables down and reports as a violation whatever is left of them. Every vCPU has finished by
    /// then.
    pub fn destroy(&mut self) -> Stopped {
        self.destroy_with(|host| Box::pin(async move { vm::destroy(&host).await }))
    }

    /// As [`destroy`](Self::destroy), with a teardown of one's own: of a VM that has other roots than its current one.
    pub fn destroy_with(&mut self, start: impl FnOnce(Host<A::Two>) -> ActorFuture) -> Stopped {
        let at = self.now;
        self.spawn("destroy", at, start);
        let stopped = self.run();
        let world = &mut self.stage.borrow_mut().world;
        let tables = world.tables.frames();
        if tables > 0 {
            world.checker.report(Violation::Leak { tables });
        }
        let held = world.primary.held_bytes().0;
        if held > 0 {
            world.checker.report(Violation::PageLeak { bytes: held });
        }
        stopped
    }
}
