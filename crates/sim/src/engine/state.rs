//! The state of a whole simulation at the end of a window, to be written and read.
//!
//! What the experiment's specification says (formats, costs, shapes of caches, threads, what is watched) is not state: a fresh
//! simulation of the same experiment has it. Everything else is. Fields are listed in a fixed order; `snapshot/layout.txt` has it
//! in words, and a change of it is another version there.

use std::cmp::Reverse;
use std::rc::Rc;
use std::task::{Context, Waker};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use mmu_core::memory::TableMemory;
use mmu_core::tlb::{LatencyCache, Tag, TranslationCaches};
use mmu_core::{Cycles, Flush, Gpa, Hpa};

use super::actor::ActorState;
use super::cleanliness::GuestCaches;
use super::counters::HostCounters;
use super::flight::Flight;
use super::lock::{ActorId, SimLock};
use super::op::Reply;
use super::primary::{Memslots, PrimaryMmu};
use super::rcu::Rcu;
use super::replies::{Noted, ReplyLog};
use super::requests::Request;
use super::sim::{Sim, Slot};
use super::upkeep::UpkeepState;
use super::vcpu::{Exit, Mode, Modified, Stores, Vcpu, VcpuStats};
use super::wait::WaitQueues;
use super::world::World;
use crate::arch::Arch;
use crate::checker::{Checker, Written};
use crate::workload::{GuestAccess, ReplayError, StreamState};

/// The simulation's own.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SimState {
    pub(super) now: Cycles,
    pub(super) stretch: u64,
    pub(super) windows: u64,
    pub(super) ready: Vec<(Cycles, ActorId)>,
    pub(super) actors: Vec<(ActorState, Reply, Finished)>,
}

/// Whether an actor has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum Finished {
    Yes,
    No,
}

/// The host and the VM, read.
#[derive(Debug, Deserialize)]
pub(crate) struct WorldState {
    vm: (TableMemory, PrimaryMmu, Memslots, Hpa, u16),
    host: (Vec<SimLock>, Rcu, Vec<u64>, WaitQueues, Vec<Flight>),
    books: (HostCounters, Checker, UpkeepState, Written),
}

/// The host and the VM, to be written: field by field what [`WorldState`] reads.
#[derive(Serialize)]
pub(crate) struct WorldView<'a> {
    vm: (&'a TableMemory, &'a PrimaryMmu, &'a Memslots, &'a Hpa, u16),
    host: (&'a Vec<SimLock>, &'a Rcu, &'a Vec<u64>, &'a WaitQueues, &'a Vec<Flight>),
    books: (&'a HostCounters, &'a Checker, &'a UpkeepState, &'a Written),
}

impl<A: Arch> World<A> {
    pub(super) fn view(&self) -> WorldView<'_> {
        // In full, so that a new field does not compile until somebody has said whether it is state.
        let World {
            // The specification's.
            arch: _,
            costs: _,
            runs: _,
            handover: _,
            tables,
            primary,
            slots,
            root,
            root_generation,
            locks,
            rcu,
            vars,
            queues,
            flights,
            counters,
            checker,
            upkeep,
            written,
            // Of judges, which keep nothing.
            contents: _,
            // Nothing at the end of a window.
            woken: _,
            disturbed: _,
            memo: _,
            worked_out: _,
            entered: _,
        } = self;
        WorldView {
            vm: (tables, primary, slots, root, *root_generation),
            host: (locks, rcu, vars, queues, flights),
            books: (counters, checker, upkeep, written),
        }
    }

    pub(super) fn set(&mut self, state: WorldState) {
        let WorldState { vm, host, books } = state;
        (self.tables, self.primary, self.slots, self.root, self.root_generation) = vm;
        (self.locks, self.rcu, self.vars, self.queues, self.flights) = host;
        (self.counters, self.checker, self.upkeep, self.written) = books;
        self.tables.relearn_short_ways();
        (self.woken, self.disturbed, self.entered) = (Vec::new(), false, None);
    }
}

/// A vCPU, read.
#[derive(Debug, Deserialize)]
pub(crate) struct VcpuState {
    run: (Cycles, Mode, Option<ActorId>, Exit, Hpa, Tag),
    caches: (TranslationCaches, LatencyCache),
    guest: (StreamState, Option<GuestWords>, VcpuStats, Option<GuestAccess>),
    memory: (GuestCaches, bool, Modified, Stores),
    host: (bool, bool, Option<Flush>, Vec<Request>),
}

/// What guest tables hold: words, root, pages mapped.
pub(super) type GuestWords = (Vec<u64>, Gpa, u64);
type WordsView<'a> = (&'a Vec<u64>, Gpa, u64);

/// A vCPU, to be written: field by field what [`VcpuState`] reads.
#[derive(Serialize)]
pub(crate) struct VcpuView<'a> {
    run: (Cycles, Mode, Option<ActorId>, Exit, Hpa, Tag),
    caches: (&'a TranslationCaches, &'a LatencyCache),
    guest: (StreamState, Option<WordsView<'a>>, &'a VcpuStats, Option<GuestAccess>),
    memory: (GuestCaches, bool, &'a Modified, &'a Stores),
    host: (bool, bool, Option<Flush>, Vec<Request>),
}

impl<A: Arch> Vcpu<A> {
    pub(super) fn view(&self) -> VcpuView<'_> {
        let Vcpu {
            // The specification's.
            arch: _,
            index: _,
            clock,
            mode,
            thread,
            exit,
            root,
            tag,
            caches,
            memory,
            stream,
            guest,
            stats,
            guest_caches,
            overlapped,
            modified,
            stores,
            reload,
            kicked,
            owed,
            requests,
            current,
            // Each window says it anew.
            shared: _,
            // Of judges, which keep nothing.
            probing: _,
            // Nothing at the end of a window, in a run that has not failed and that nobody records.
            violations: _,
            error: _,
            acks: _,
            log: _,
            served: _,
        } = self;
        VcpuView {
            run: (*clock, *mode, *thread, *exit, *root, *tag),
            caches: (caches, memory),
            guest: (stream.state(), guest.as_ref().map(super::GuestTables::view), stats, *current),
            memory: (*guest_caches, *overlapped, modified, stores),
            host: (*reload, *kicked, *owed, requests.iter().copied().collect()),
        }
    }

    /// Whether the state fits the specification that this vCPU was built by.
    pub(super) fn takes(&self, state: &VcpuState) -> bool {
        self.guest.is_some() == state.guest.1.is_some()
    }

    pub(super) fn set(&mut self, state: VcpuState) -> Result<(), ReplayError> {
        let VcpuState { run, caches, guest, memory, host } = state;
        (self.clock, self.mode, self.thread, self.exit, self.root, self.tag) = run;
        (self.caches, self.memory) = caches;
        let (stream, words, stats, current) = guest;
        self.stream.set(stream)?;
        if let (Some(tables), Some(words)) = (&mut self.guest, words) {
            tables.set(words);
        }
        (self.stats, self.current) = (stats, current);
        (self.guest_caches, self.overlapped, self.modified, self.stores) = memory;
        let requests;
        (self.reload, self.kicked, self.owed, requests) = host;
        self.requests = requests.into();
        Ok(())
    }
}

/// Where parts go, in order.
pub(crate) trait Sink {
    /// What refuses.
    type Error;
    /// The next part.
    fn put(&mut self, part: &impl Serialize) -> Result<(), Self::Error>;
}

/// Where parts come from, in the order in which they were written.
pub(crate) trait Source {
    /// What is wrong with them.
    type Error;
    /// The next part.
    fn take<T: DeserializeOwned>(&mut self) -> Result<T, Self::Error>;
}

/// Why a state cannot be taken over.
#[derive(Debug)]
pub(crate) enum Misfit<E> {
    /// The parts cannot be read.
    Source(E),
    /// They are of another experiment: what differs.
    Other(String),
    /// A trace cannot be read up to where it was.
    Replay(ReplayError),
}

impl<A: Arch> Sim<A> {
    /// Notes what actors are answered, so that the simulation can be saved. Before any actor is spawned.
    pub(crate) fn keep_notes(&mut self) {
        if self.tap.is_some() {
            // What a recording has seen is no state; a recorded simulation is not saved.
            return;
        }
        self.noted = Some(Rc::new(Noted::new(self.stage.clone())));
    }

    /// The experiment is set up: from here on the simulation can be saved, or brought to where it was saved.
    pub(crate) fn begin_notes(&mut self) {
        if let Some(noted) = &self.noted {
            noted.begin();
        }
    }

    /// Bytes that the notes take; `None` when none are kept.
    pub fn noted_bytes(&self) -> Option<u64> {
        self.noted.as_ref()?.with_log(ReplyLog::len)
    }

    /// Writes the state at the end of a window; `None` when no notes are kept.
    pub(crate) fn write_state<S: Sink>(&self, sink: &mut S) -> Option<Result<(), S::Error>> {
        self.noted.as_ref()?.with_log(|log| {
            let mut ready: Vec<(Cycles, ActorId)> = self.ready.iter().map(|&Reverse(ready)| ready).collect();
            ready.sort_unstable();
            let finished = |finished| if finished { Finished::Yes } else { Finished::No };
            let actors = self.actors.iter().map(|slot| (slot.state.clone(), slot.reply, finished(slot.finished)));
            let (now, stretch, windows) = (self.now, self.stretch, self.windows);
            sink.put(&SimState { now, stretch, windows, ready, actors: actors.collect() })?;
            let stage = self.stage.borrow();
            sink.put(&stage.world.view())?;
            sink.put(&(stage.vcpus.len() as u64))?;
            for vcpu in &stage.vcpus {
                sink.put(&vcpu.view())?;
            }
            sink.put(log)
        })
    }

    /// Goes to where a simulation of the same experiment was. This one has been set up and has not run.
    pub(crate) fn read_state<S: Source>(&mut self, source: &mut S) -> Result<(), Misfit<S::Error>> {
        let sim: SimState = source.take().map_err(Misfit::Source)?;
        let world: WorldState = source.take().map_err(Misfit::Source)?;
        let count: u64 = source.take().map_err(Misfit::Source)?;
        let (actors, vcpus) = (self.actors.len(), self.vcpus());
        if sim.actors.len() != actors || count != vcpus as u64 {
            let what = format!("{} actors and {count} vCPUs where there are {actors} and {vcpus}", sim.actors.len());
            return Err(Misfit::Other(what));
        }
        let states =
            (0..vcpus).map(|_| source.take()).collect::<Result<Vec<VcpuState>, _>>().map_err(Misfit::Source)?;
        let log: ReplyLog = source.take().map_err(Misfit::Source)?;
        if self.stage.borrow().vcpus.iter().zip(&states).any(|(vcpu, state)| !vcpu.takes(state)) {
            return Err(Misfit::Other(
                "guests with tables of their own where there are none, or the reverse".to_owned(),
            ));
        }
        self.bring_actors(log, &sim)?;
        let stage = &mut *self.stage.borrow_mut();
        stage.world.set(world);
        for (vcpu, state) in stage.vcpus.iter_mut().zip(states) {
            vcpu.set(state).map_err(Misfit::Replay)?;
        }
        for (slot, (state, reply, finished)) in self.actors.iter_mut().zip(sim.actors) {
            (slot.state, slot.reply, slot.finished) = (state, reply, finished == Finished::Yes);
        }
        self.ready = sim.ready.into_iter().map(Reverse).collect();
        (self.now, self.stretch, self.windows) = (sim.now, sim.stretch, sim.windows);
        Ok(())
    }

    /// Brings fresh actors to where they stood, by the answers that they got then.
    fn bring_actors<E>(&mut self, log: ReplyLog, sim: &SimState) -> Result<(), Misfit<E>> {
        let astray = || Misfit::Other("its actors ask for other things than they did then".to_owned());
        let noted = self.noted.clone().ok_or_else(|| Misfit::Other("it is not set up to be loaded".to_owned()))?;
        noted.read(log);
        while let Some(id) = noted.next_poll() {
            let future = self.actors.get_mut(id).and_then(|slot| slot.future.as_mut()).ok_or_else(astray)?;
            if future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
                self.actors[id].future = None;
            }
        }
        let ended = |(slot, (_, _, finished)): (&Slot, &(ActorState, Reply, Finished))| {
            slot.future.is_none() == (*finished == Finished::Yes)
        };
        let whole = noted.finish_reading();
        if whole && self.actors.iter().zip(&sim.actors).all(ended) { Ok(()) } else { Err(astray()) }
    }
}
