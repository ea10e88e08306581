//! Everything host actors share, and what each micro-operation does to it.

use mmu_core::memory::{Run, TableFault, TableMemory};
use mmu_core::{Cycles, Flush, Format, Gpa, Hpa, Level};

use super::actor::ActorState;
use super::costs::Costs;
use super::counters::HostCounters;
use super::flight::Flight;
use super::lock::{Granted, LockKind, LockStats, SimLock};
use super::op::{Blockable, Frames, LockId, Op, Reply, TableEntries, Var, WaitQueue, Wake, Work};
use super::pace::Memo;
use super::primary::{Handover, Memslots, PrimaryMmu, Unmapping};
use super::probe::Contents;
use super::rcu::{Rcu, RcuStats};
use super::upkeep::UpkeepState;
use super::vcpu::Vcpu;
use super::wait::WaitQueues;
use crate::arch::Arch;
use crate::checker::{Checker, Violation, Written};

/// What became of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Performed {
    /// Done; the actor's clock has moved.
    Done(Reply),
    /// The actor waits for somebody else; it will be resumed with an empty reply.
    Blocked,
}

/// Limits on how far an operation on a run may go by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Horizon {
    /// Nobody else does anything before this moment.
    pub(crate) until: Cycles,
    /// The same, grace periods left aside: they end without anybody noticing.
    pub(crate) others: Cycles,
}

/// Whether bulk work is done in bulk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Runs {
    /// As far as nothing else has to happen.
    #[default]
    Whole,
    /// Entry by entry: the same words, cycles and counters, slowly.
    Single,
}

/// The host and the VM.
#[derive(Debug)]
pub struct World<A: Arch> {
    pub(crate) arch: A,
    pub(crate) costs: Costs,
    pub(crate) tables: TableMemory,
    pub(crate) primary: PrimaryMmu,
    pub(crate) slots: Memslots,
    pub(crate) root: Hpa,
    pub(crate) root_generation: u16,
    pub(crate) locks: Vec<SimLock>,
    pub(crate) rcu: Rcu,
    pub(crate) vars: Vec<u64>,
    pub(crate) queues: WaitQueues,
    pub(crate) flights: Vec<Flight>,
    pub(crate) counters: HostCounters,
    pub(crate) checker: Checker,
    pub(super) upkeep: UpkeepState,
    pub(crate) runs: Runs,
    pub(crate) handover: Handover,
    /// What was written, by the checker's account.
    pub(crate) written: Written,
    /// Words that probes reach.
    pub(super) contents: Contents,
    /// Actors that may go on, with when.
    pub(crate) woken: Vec<Granted>,
    /// Somebody else's next moment may have come closer since this was last cleared.
    pub(crate) disturbed: bool,
    /// Time slices that were worked out before; no state, but what follows from costs and formats.
    pub(super) memo: Option<Box<Memo>>,
    /// Time slices that nobody went through, for who wants to know; no state either.
    pub(super) worked_out: u64,
    /// The clock of the vCPU that entered the guest last, until the host phase has seen it.
    pub(crate) entered: Option<Cycles>,
}

impl<A: Arch> World<A> {
    pub(crate) fn new(arch: A, costs: Costs, tables: TableMemory, primary: PrimaryMmu, root: Hpa) -> Self {
        let mut locks = vec![SimLock::new(LockKind::Spin); LockId::FIXED];
        locks[LockId::MMU.0 as usize] = SimLock::new(costs.mmu_lock);
        locks[LockId::NOTIFIER_SLOTS.0 as usize] = SimLock::new(LockKind::ReadWrite);
        Self {
            arch,
            costs,
            tables,
            primary,
            slots: Memslots::default(),
            root,
            root_generation: 0,
            locks,
            rcu: Rcu::default(),
            vars: vec![0; Var::FIXED],
            queues: WaitQueues::new(WaitQueue::FIXED),
            flights: Vec::new(),
            counters: HostCounters::default(),
            checker: Checker::default(),
            upkeep: UpkeepState::default(),
            runs: Runs::default(),
            handover: Handover::default(),
            written: Written::default(),
            contents: Contents::default(),
            woken: Vec::new(),
            disturbed: false,
            memo: None,
            worked_out: 0,
            entered: None,
        }
    }

    /// What the checker found, in the order it happened.
    pub fn violations(&self) -> &[Violation] {
        self.checker.violations()
    }
    /// What the host did.
    pub fn counters(&self) -> &HostCounters {
        &self.counters
    }
    /// Time that anybody spent waiting for any lock.
    pub fn lock_wait(&self) -> Cycles {
        self.locks.iter().map(|lock| lock.stats.wait).sum()
    }
    /// What one lock went through.
    pub fn lock_stats(&self, lock: LockId) -> LockStats {
        self.locks[lock.0 as usize].stats
    }
    /// Time slices of host actors that were worked out together instead of gone through one by one: nothing of what is simulated depends on it.
    pub fn worked_out(&self) -> u64 {
        self.worked_out
    }
    /// What RCU went through.
    pub fn rcu_stats(&self) -> RcuStats {
        self.rcu.stats
    }
    /// The second-stage tables.
    pub fn tables(&self) -> &TableMemory {
        &self.tables
    }
    /// The primary MMU.
    pub fn primary(&self) -> &PrimaryMmu {
        &self.primary
    }
    /// The memslots, all versions.
    pub fn slots(&self) -> &Memslots {
        &self.slots
    }
    /// What a shared variable holds.
    pub fn var(&self, var: Var) -> u64 {
        self.vars[var.0 as usize]
    }
    /// The VM's current root.
    pub fn root(&self) -> Hpa {
        self.root
    }

    /// Performs one operation at the actor's moment.
    #[inline]
    pub(crate) fn perform(
        &mut self,
        op: Op,
        actor: &mut ActorState,
        horizon: Horizon,
        vcpus: &mut [Vcpu<A>],
    ) -> Performed {
        let done = |word| Performed::Done(Reply::one(word));
        match op {
            Op::Read(at) => done(self.visit_word(at, actor)),
            Op::ReadRun(at, max, tables) => {
                self.visit(actor, 1);
                let alone = self.runs == Runs::Single || tables == TableEntries::Apart && self.is_table_entry(at);
                Performed::Done(self.read_run(at, if alone { 1 } else { max }, actor))
            }
            Op::Write(at, word, _) => {
                actor.now += self.costs.store;
                self.store(at, word, actor);
                done(0)
            }
            Op::Cmpxchg(at, old, new) => {
                actor.now += self.costs.atomic;
                let found = self.read(at, actor);
                if found == old {
                    self.store(at, new, actor);
                }
                done(found)
            }
            Op::Xchg(at, new) => {
                actor.now += self.costs.atomic;
                let found = self.read(at, actor);
                self.store(at, new, actor);
                done(found)
            }
            Op::FetchAnd(at, mask) => {
                actor.now += self.costs.atomic;
                let found = self.read(at, actor);
                self.store(at, found & mask, actor);
                done(found)
            }
            Op::FetchOr(at, mask) => {
                actor.now += self.costs.atomic;
                let found = self.read(at, actor);
                self.store(at, found | mask, actor);
                done(found)
            }
            Op::Run(run) => done(self.run(run, actor, horizon)),
            Op::RunBelow(run) => done(self.run_below(&run, actor, horizon)),
            Op::Age(run) => Performed::Done(self.age(&run, actor, horizon)),
            Op::AgeBelow(run) => Performed::Done(self.age_below(&run, actor, horizon)),
            Op::Rest(rest) => Performed::Done(self.rest_of_table(&rest, actor, horizon)),
            Op::RemoveSubtrees(remove) => done(self.remove_subtrees(&remove, actor, horizon, vcpus)),
            Op::Load(var, _) => {
                actor.now += self.costs.store;
                done(self.vars[var.0 as usize])
            }
            Op::Store(var, value, _) => {
                actor.now += self.costs.store;
                self.vars[var.0 as usize] = value;
                done(0)
            }
            Op::Add(var, delta) => {
                actor.now += self.costs.atomic;
                let value = self.vars[var.0 as usize].wrapping_add_signed(delta);
                self.vars[var.0 as usize] = value;
                if delta < 0 && value > i64::MAX as u64 && [Var::IN_PROGRESS, Var::ACTIVE_INVALIDATIONS].contains(&var)
                {
                    self.checker.report(Violation::InvalidateCount { actor: actor.id, moment: actor.now });
                }
                done(value)
            }
            Op::CmpxchgVar(var, old, new) => {
                actor.now += self.costs.atomic;
                let found = self.vars[var.0 as usize];
                if found == old {
                    self.vars[var.0 as usize] = new;
                }
                done(found)
            }
            Op::XchgVar(var, new) => {
                actor.now += self.costs.atomic;
                done(std::mem::replace(&mut self.vars[var.0 as usize], new))
            }
            Op::NeedResched(lock) => {
                actor.now += self.costs.resched_check;
                actor.breathe();
                done(self.should_give_way(lock, actor))
            }
            Op::Now => done(actor.now.0),
            Op::Root => done(self.root.raw()),
            Op::Slices(ask) => Performed::Done(self.slices(&ask, actor, horizon, vcpus)),
            _ => self.perform_rare(op, actor, vcpus),
        }
    }

    /// The operations that are not the inside of a loop.
    #[inline(never)]
    fn perform_rare(&mut self, op: Op, actor: &mut ActorState, vcpus: &mut [Vcpu<A>]) -> Performed {
        let done = |word| Performed::Done(Reply::one(word));
        if actor.blockable == Blockable::No && op.gives_way() {
            self.checker.report(Violation::Blocked { actor: actor.id, moment: actor.now });
        }
        match op {
            Op::Alloc(level) => self.alloc(level, actor),
            Op::Live(at) => {
                actor.now += self.costs.visit;
                match self.tables.live(at) {
                    Ok(entries) => done(entries),
                    Err(fault) => {
                        let (actor, moment) = (Some(actor.id), actor.now);
                        self.checker.report(Violation::TableUse { at, fault, actor, moment });
                        done(0)
                    }
                }
            }
            Op::Free(frames) => {
                actor.now += self.costs.free_table.times(frames.count);
                self.free(frames);
                done(0)
            }
            Op::CallRcu(frames) => {
                self.disturbed = true;
                self.counters.zapped_tables += frames.count;
                self.rcu.retire(frames, actor.now, self.costs.rcu_grace);
                done(0)
            }
            Op::SynchronizeRcu => {
                self.rcu.synchronize(actor.id, actor.now, self.costs.rcu_grace);
                actor.breathe();
                actor.asleep = true;
                Performed::Blocked
            }
            Op::RcuLock => {
                self.rcu.lock(actor.id, actor.now);
                actor.rcu_since = Some(actor.now);
                done(0)
            }
            Op::RcuUnlock => {
                self.disturbed = true;
                if !self.rcu.unlock(actor.id, actor.now) {
                    self.checker.report(Violation::UnbalancedRcu { actor: actor.id, at: actor.now });
                }
                if let Some(since) = actor.rcu_since.take() {
                    actor.stats.longest_rcu = actor.stats.longest_rcu.max(actor.now.since(since));
                }
                done(0)
            }
            Op::Lock(lock, mode) => {
                let granted = self.locks[lock.0 as usize].acquire(actor.id, mode, actor.now, self.costs.lock());
                if let Some(at) = granted {
                    actor.stats.lock_wait += at.since(actor.now + self.costs.lock_local);
                    actor.now = at;
                    done(0)
                } else {
                    actor.waiting_since = Some(actor.now);
                    Performed::Blocked
                }
            }
            Op::Unlock(lock) => self.unlock(lock, actor),
            Op::Reschedule => self.reschedule(actor),
            Op::Occupy(processor) => {
                Self::occupy(processor, actor);
                done(0)
            }
            Op::Vacate => self.vacate(actor),
            Op::Flush(flush) => self.flush(flush, actor, vcpus),
            Op::ReloadRoots => self.launch(actor, vcpus, |id, at, vcpu| vcpu.request_reload(id, at)),
            Op::KickAll => self.launch(actor, vcpus, |id, at, vcpu| vcpu.request_exit(id, at)),
            Op::VcpuRun(vcpu) => self.enter_guest(vcpu, actor, vcpus),
            Op::LoadRoot(vcpu, root, generation) => {
                actor.now += self.costs.store;
                actor.now += self.costs.invalidate_local;
                vcpus[vcpu.0].load_root(root, generation);
                vcpus[vcpu.0].flush_here(Flush::EVERYTHING);
                done(0)
            }
            Op::Fence(_) => {
                actor.now += self.costs.store;
                done(0)
            }
            Op::NewVar(initial) => {
                self.vars.push(initial);
                done(self.vars.len() as u64 - 1)
            }
            Op::NewLock(kind) => done(u64::from(self.new_lock(kind).0)),
            Op::NewWaitQueue => done(u64::from(self.queues.create().0)),
            Op::PrepareToWait(queue) => {
                actor.now += self.costs.atomic;
                self.queues.prepare(queue, actor.id);
                done(0)
            }
            Op::FinishWait(queue) => {
                actor.now += self.costs.atomic;
                self.queues.leave(queue, actor.id);
                done(0)
            }
            Op::Schedule(queue) => {
                actor.breathe();
                if self.queues.sleep(queue, actor.id) {
                    actor.asleep = true;
                    Performed::Blocked
                } else {
                    done(0)
                }
            }
            Op::WakeUp(queue, whom) => {
                actor.now += self.costs.atomic;
                self.wake_queue(queue, whom, actor.now);
                done(0)
            }
            Op::Primary(op) => Performed::Done(self.perform_primary(op, actor, vcpus)),
            Op::Slots(op) => Performed::Done(self.perform_slots(op, actor)),
            Op::MayBlock(blockable) => {
                actor.blockable = blockable;
                done(0)
            }
            Op::Dirty(op) => Performed::Done(self.dirty(op, actor, vcpus)),
            Op::Spend(Work::MmapLock) => {
                actor.now = self.upkeep.mmap_lock.fetch(actor.id, actor.now, self.costs.lock());
                done(0)
            }
            Op::Spend(Work::PageStats) => {
                actor.now =
                    self.upkeep.page_stats.fetch(actor.id, actor.now, self.costs.lock()) + self.costs.lock_local;
                done(0)
            }
            Op::Spend(work) => {
                actor.now += self.cost_of(work);
                done(0)
            }
            Op::Sleep(cycles) => {
                actor.breathe();
                actor.now += cycles;
                actor.scheduled = actor.now;
                done(0)
            }
            Op::SleepUntil(moment) => {
                actor.breathe();
                actor.now = actor.now.max(moment);
                actor.scheduled = actor.now;
                done(0)
            }
            Op::HostMapping(gpa, most) => {
                // A walk of the host's own tables, four levels of them.
                actor.now += self.costs.visit.times(4);
                done(u64::from(self.host_mapping(Gpa::new(gpa), most).shift()))
            }
            Op::DropPages(range) => {
                for hvas in self.guest_hvas(range) {
                    let unmapped = self.primary.unmap(hvas, Unmapping::Discard);
                    self.freed(&unmapped.freed, actor.now, vcpus);
                }
                done(0)
            }
            Op::SetRoot(root) => {
                self.root = root;
                self.root_generation = self.root_generation.wrapping_add(1);
                done(0)
            }
            Op::Upkeep(upkeep) => Performed::Done(self.keep_up(upkeep, actor, vcpus)),
            Op::CountSpurious => {
                self.counters.spurious_faults += 1;
                done(0)
            }
            Op::CountRetry => {
                self.counters.retried_faults += 1;
                done(0)
            }
            // Loop operations were handled by `perform`.
            _ => done(0),
        }
    }

    /// Wakes sleepers of a queue at `now`.
    pub(super) fn wake_queue(&mut self, queue: WaitQueue, whom: Wake, now: Cycles) {
        let at = now + self.costs.ipi_latency;
        self.woken.extend(self.queues.wake(queue, whom).into_iter().map(|actor| Granted { actor, at }));
        self.disturbed = true;
    }

    // ---- table words ----

    #[inline]
    pub(super) fn visit(&mut self, actor: &mut ActorState, entries: u64) {
        self.counters.visits += entries;
        actor.now += self.costs.visit.times(entries);
    }

    /// Reads one entry and is charged for looking at it.
    #[inline]
    pub(super) fn visit_word(&mut self, at: Hpa, actor: &mut ActorState) -> u64 {
        self.visit(actor, 1);
        self.read(at, actor)
    }

    #[inline]
    pub(super) fn read(&mut self, at: Hpa, actor: &ActorState) -> u64 {
        match self.tables.read(at) {
            Ok(word) => word,
            Err(fault) => self.unreadable(at, fault, actor),
        }
    }

    #[cold]
    #[inline(never)]
    fn unreadable(&mut self, at: Hpa, fault: TableFault, actor: &ActorState) -> u64 {
        self.checker.report(Violation::TableUse { at, fault, actor: Some(actor.id), moment: actor.now });
        0
    }

    fn read_run(&mut self, at: Hpa, max: u64, actor: &ActorState) -> Reply {
        match self.tables.run_at(at, max) {
            Ok(run) => {
                let len = if run.step == 0 || run.len == 1 { run.len } else { self.alike(at, &run) };
                Reply { a: run.first, b: run.step, c: len }
            }
            Err(fault) => Reply { a: self.unreadable(at, fault, actor), b: 0, c: 1 },
        }
    }

    fn is_table_entry(&self, at: Hpa) -> bool {
        let (two, word, level) = (self.arch.two(), self.tables.read(at), self.tables.level(at));
        matches!((word, level), (Ok(word), Ok(level)) if two.is_mapped(word) && !two.is_leaf(level, word))
    }

    /// How many words of a progression are of one kind. Any two words are a progression: a leaf and a table beside it, too.
    fn alike(&self, at: Hpa, run: &Run) -> u64 {
        let two = self.arch.two();
        let Ok(level) = self.tables.level(at) else { return 1 };
        let step = match (two.is_mapped(run.first), level.down()) {
            (false, _) => return 1,
            (true, Some(down)) if !two.is_leaf(level, run.first) => two.geometry().table_bytes(down),
            (true, _) => two.geometry().page_size(level).bytes(),
        };
        if run.step == step { run.len } else { 1 }
    }

    #[inline]
    pub(super) fn store(&mut self, at: Hpa, word: u64, actor: &ActorState) {
        if word & self.tables.present_mask() != 0 {
            self.check_break(at, word, actor);
        }
        if let Err(fault) = self.tables.write(at, word) {
            self.checker.report(Violation::TableUse { at, fault, actor: Some(actor.id), moment: actor.now });
        }
    }

    fn alloc(&mut self, level: Level, actor: &mut ActorState) -> Performed {
        actor.now += self.costs.alloc_table;
        let words = table_words(self.arch.two(), level);
        Performed::Done(match self.tables.alloc(level, words) {
            Ok(at) => {
                self.counters.tables_allocated += 1;
                Reply::one(at.raw())
            }
            Err(_) => Reply { a: 0, b: 1, c: 0 },
        })
    }

    pub(crate) fn free(&mut self, frames: Frames) {
        if self.upkeep.extra_references > 0 {
            return self.put_tables(frames);
        }
        self.counters.tables_freed += frames.count;
        if let Err(fault) = self.tables.free_run(frames.first, frames.count) {
            self.checker.report(Violation::TableFree { at: frames.first, fault });
        }
    }

    pub(super) fn unlock(&mut self, lock: LockId, actor: &mut ActorState) -> Performed {
        let costs = self.costs.lock();
        match self.locks[lock.0 as usize].release(actor.id, actor.now, costs, &mut self.woken) {
            Some(at) => actor.now = at,
            None => self.checker.report(Violation::UnbalancedLock { actor: actor.id, at: actor.now }),
        }
        self.disturbed |= !self.woken.is_empty();
        Performed::Done(Reply::default())
    }

    pub(crate) fn new_lock(&mut self, kind: LockKind) -> LockId {
        self.locks.push(SimLock::new(kind));
        LockId(self.locks.len() as u32 - 1)
    }

    // ---- time ----

    pub(super) fn slice_end(&self, actor: &ActorState) -> Cycles {
        actor.slice + self.costs.tick_period
    }

    pub(super) fn slice_is_over(&self, actor: &ActorState) -> bool {
        actor.now >= self.slice_end(actor)
    }

    pub(super) fn cost_of(&self, work: Work) -> Cycles {
        match work {
            Work::Fault => self.costs.fault_fixed,
            Work::ReleaseLeaf => self.costs.release_leaf,
            Work::PutReference => self.costs.atomic,
            Work::ClearPage(size) => self.costs.clear_4k.times(size.bytes() >> 12),
            Work::Dispatch => self.costs.work_dispatch,
            Work::ZeroPages(pages) => Cycles(self.costs.vmalloc_page.0.saturating_mul(pages)),
            Work::SplitChild => self.costs.split_child,
            // A line that nobody takes away; whoever spends it gets the line moved.
            Work::MmapLock | Work::PageStats => self.costs.lock_local,
            // A full barrier takes as long as a locked operation.
            Work::NotifierCall => self.costs.visit + self.costs.lock_local.times(4),
            Work::GracePeriod => self.costs.rcu_expedited,
            Work::ColdLines(lines) => self.costs.cold_line.times(lines),
            Work::Relax => self.costs.lock_handoff,
            Work::Exactly(cycles) => cycles,
        }
    }
}

/// Words of the frame that holds a table of this level: short start tables (Arm) fill the smallest frame.
pub(crate) fn table_words<F: Format>(format: &F, level: Level) -> usize {
    format.geometry().entries(level).max(32)
}
