//! What each operation does in an exploration.

use mmu_core::{Bytes, Format, Hpa, HpaRange};

use super::decision::{Footprint, Kind};
use super::digest::mixed;
use super::ghost::Store;
use super::invariant::Invariant;
use super::lab::{Lab, NO_TIME, Pending};
use super::mutation::Mutated;
use super::traced::Happened;
use super::waiting::{Lock, What};
use crate::arch::Arch;
use crate::engine::{
    ActorState, AgeRun, AgeWrite, Apply, Atomicity, Blockable, DirtyOp, Fence, Frames, Handover, LockId, Op, Order,
    PageState, PrimaryOp, Reply, ReschedCheck, RunOp, SlotsOp, Upkeep, Var, Work, is_young,
};

pub(crate) const RCU_BIT: u64 = 1;
const PRIMARY_BIT: u64 = 1 << 1;
const SLOTS_BIT: u64 = 1 << 2;
pub(crate) const FLIGHT_BIT: u64 = 1 << 3;
const QUEUE_BIT: u64 = 1 << 4;
/// The VM's root; and what actors are about to do: every one of their steps reads it, those write it that depend on where others are.
const MISC_BIT: u64 = 1 << 5;
/// All vCPUs: who checks what they may use.
const VCPU_BITS: u64 = 0b11_1111 << 6;
/// Words and variables.
pub(crate) const WORD_BITS: u64 = u64::MAX << 24;

pub(crate) fn word_bit(at: Hpa) -> u64 {
    1 << (24 + (at.raw() >> 3).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_shr(32) % 40)
}
pub(crate) fn vcpu_bit(vcpu: usize) -> u64 {
    1 << (6 + vcpu % 6)
}
pub(crate) fn own_bit(actor: usize) -> u64 {
    1 << (12 + actor % 4)
}
fn lock_bit(lock: LockId) -> u64 {
    1 << (16 + lock.0 % 8)
}

#[allow(clippy::unnecessary_wraps)] // what operations that are done at once answer, beside those that wait
fn one(word: u64) -> Option<Reply> {
    Some(Reply::one(word))
}
pub(crate) const DONE: Option<Reply> = Some(Reply { a: 0, b: 0, c: 0 });

impl<A: Arch> Lab<A> {
    pub(crate) fn var(&self, var: Var) -> Hpa {
        self.vars + 8 * u64::from(var.0)
    }

    // ---- footprints ----

    pub(crate) fn footprint_of(&self, actor: usize, pending: Pending) -> Footprint {
        let Footprint { reads, writes } = self.footprint_alone(actor, pending);
        let (more, drains) = self.barrier_of(actor, pending);
        Footprint { reads: reads | MISC_BIT | drains, writes: writes | more | drains }
    }

    /// What a step touches beside its own words because it is a barrier: the order of full barriers under weak memory, and what waits in
    /// the store buffer that it drains.
    fn barrier_of(&self, actor: usize, pending: Pending) -> (u64, u64) {
        use super::MemoryOrder::{Sequential, StoreBuffer, Weak};
        let plain = matches!(
            pending,
            Pending::Op(Op::Read(_) | Op::ReadRun(..) | Op::Load(..) | Op::Write(..) | Op::Store(..))
        );
        match self.memory {
            Weak if !plain => (FLIGHT_BIT, 0),
            StoreBuffer if !plain && !self.hands[actor].buffer.is_empty() => (0, WORD_BITS | own_bit(actor)),
            Sequential | StoreBuffer | Weak => (0, 0),
        }
    }

    fn footprint_alone(&self, actor: usize, pending: Pending) -> Footprint {
        let read = |bits| Footprint { reads: bits, writes: 0 };
        let write = |bits| Footprint { reads: 0, writes: bits };
        let own = own_bit(actor);
        let buffered = |bits| if self.memory == super::MemoryOrder::StoreBuffer { write(own) } else { write(bits) };
        let op = match pending {
            Pending::Op(op) => op,
            Pending::Guest(vcpu) => return write(vcpu_bit(vcpu.0)),
            Pending::Flight(_) => return read(FLIGHT_BIT),
            Pending::Grace(_) => return read(RCU_BIT),
            Pending::Asleep | Pending::Awake => return read(QUEUE_BIT),
            Pending::Nothing => return Footprint::NONE,
        };
        match op {
            Op::Read(at) => read(word_bit(at)),
            Op::ReadRun(at, ..) if self.words.read(at).is_ok_and(|word| self.format.is_mapped(word)) => {
                read(word_bit(at))
            }
            Op::ReadRun(..) => read(WORD_BITS),
            Op::Load(var, _) => read(word_bit(self.var(var))),
            Op::Write(at, ..) => buffered(word_bit(at)),
            Op::Store(var, ..) => buffered(word_bit(self.var(var))),
            Op::Cmpxchg(at, ..) | Op::Xchg(at, _) | Op::FetchAnd(at, _) | Op::FetchOr(at, _) => write(word_bit(at)),
            Op::Add(var, _) | Op::CmpxchgVar(var, ..) | Op::XchgVar(var, _) => write(word_bit(self.var(var))),
            Op::Age(run) => write(word_bit(run.at)),
            Op::Run(run) if run.apply == Apply::Nothing => read(word_bit(run.at)),
            Op::Run(run) if run.len == 1 => {
                Footprint { reads: 0, writes: word_bit(run.at) | if run.work.is_some() { PRIMARY_BIT } else { 0 } }
            }
            // It flushes too.
            Op::Unlock(_) if self.hands[actor].late_flush.is_some() => Footprint::ALL,
            // Readers queue behind a writer that waits.
            Op::Lock(LockId::NOTIFIER_SLOTS, _) => write(lock_bit(LockId::NOTIFIER_SLOTS) | MISC_BIT),
            Op::Lock(lock, _) => write(lock_bit(lock)),
            Op::Unlock(lock) => Footprint { reads: WORD_BITS | VCPU_BITS, writes: lock_bit(lock) },
            // The answer depends on who has come to want the lock.
            Op::NeedResched(lock) => Footprint { reads: lock_bit(lock), writes: MISC_BIT },
            Op::RcuLock | Op::RcuUnlock => write(RCU_BIT),
            Op::PrepareToWait(_) | Op::FinishWait(_) | Op::Schedule(_) | Op::WakeUp(..) => write(QUEUE_BIT),
            Op::Primary(PrimaryOp::Fault(..) | PrimaryOp::Dereference(_)) | Op::HostMapping(..) => {
                Footprint { reads: SLOTS_BIT, writes: PRIMARY_BIT }
            }
            Op::Primary(PrimaryOp::Whole(_)) => read(PRIMARY_BIT),
            Op::Primary(_) | Op::DropPages(_) => {
                Footprint { reads: WORD_BITS | VCPU_BITS | SLOTS_BIT, writes: PRIMARY_BIT }
            }
            Op::Slots(_) => write(SLOTS_BIT),
            Op::Root => read(MISC_BIT),
            // From then on it is looked at what the vCPU may use.
            Op::VcpuRun(vcpu) => Footprint { reads: WORD_BITS, writes: vcpu_bit(vcpu.0) },
            Op::Alloc(_) => Footprint::NONE,
            // Who lets others go first is not chosen before somebody has made a step: which one that is matters.
            _ => Footprint::ALL,
        }
    }

    // ---- what nobody else can tell ----

    /// Performs an operation that commutes with everything others do.
    pub(crate) fn perform_local(&mut self, op: Op) -> Option<Reply> {
        if matches!(op, Op::Fence(_))
            && let Mutated::Performed(done) = self.mutated(op)
        {
            return done;
        }
        match op {
            Op::Spend(Work::Relax) | Op::Sleep(_) | Op::SleepUntil(_) => None,
            Op::Spend(work) => {
                self.tally.leaves -= i64::from(work == Work::ReleaseLeaf);
                DONE
            }
            Op::CountSpurious => DONE,
            Op::Now => one(0),
            Op::Fence(Fence::Full) if self.memory != super::MemoryOrder::Sequential => None,
            Op::Fence(fence) => {
                self.fence(fence);
                DONE
            }
            Op::MayBlock(blockable) => {
                let me = self.me();
                self.hands[me].blockable = blockable;
                DONE
            }
            Op::NewVar(initial) => {
                let var = self.new_var(initial);
                one(u64::from(var.0))
            }
            Op::NewLock(kind) => {
                self.locks.push(Lock { kind, ..Lock::default() });
                one(self.locks.len() as u64 - 1)
            }
            Op::NewWaitQueue => one(u64::from(self.queues.create().0)),
            Op::Primary(op @ (PrimaryOp::WindowBegin(_) | PrimaryOp::WindowEnd(_) | PrimaryOp::Cached(..))) => {
                Some(self.primary(op))
            }
            Op::Slots(op) if !matches!(op, SlotsOp::Free(_)) => Some(self.slots(op)),
            Op::Dirty(op) if !matches!(op, DirtyOp::PopModified(_)) => Some(self.dirty(op)),
            Op::Upkeep(Upkeep::Announce(what)) => {
                self.announce(what);
                DONE
            }
            Op::Upkeep(Upkeep::InvalidateFetched(_) | Upkeep::CountBreak(_) | Upkeep::UserExit | Upkeep::RunFailed) => {
                DONE
            }
            Op::RunBelow(_) | Op::AgeBelow(_) | Op::Rest(_) | Op::RemoveSubtrees(_) | Op::Slices(_) => DONE,
            _ => None,
        }
    }

    pub(crate) fn new_var(&mut self, initial: u64) -> Var {
        let var = Var(self.vars_made);
        self.vars_made += 1;
        if initial != 0 {
            let at = self.var(var);
            self.words.write(at, 1, initial, u8::MAX);
            self.births.push((at, self.words.now()));
        }
        var
    }

    // ---- steps ----

    /// Performs an operation of the acting actor. `None`: it waits.
    pub(crate) fn execute(&mut self, op: Op) -> Option<Reply> {
        let me = self.me();
        self.note(|_| super::render::operation(&op));
        self.measure(&op);
        self.count_step(&op);
        if self.hands[me].blockable == Blockable::No {
            let blocks = op.gives_way();
            self.hold(Invariant::P5, !blocks, |lab| format!("{} must not block and does", lab.hands[me].name));
        }
        if let Mutated::Performed(done) = self.mutated(op) {
            return done;
        }
        match op {
            Op::Read(at) => one(self.read_word(at)),
            Op::ReadRun(at, most, _) => {
                let word = self.read_word(at);
                let len = if self.format.is_mapped(word) { 1 } else { self.words.alike(at, most.max(1)) };
                Some(Reply { a: word, b: 0, c: if self.words.peek(at) == word { len } else { 1 } })
            }
            Op::Write(at, word, order) => {
                if self.is_word(at) {
                    self.store_plainly(at, word, order);
                }
                DONE
            }
            Op::Cmpxchg(at, old, new) => self.compare_exchange(at, old, new),
            Op::Xchg(at, new) => self.exchange(at, |_| Some(new)),
            Op::FetchAnd(at, mask) => self.exchange(at, |found| Some(found & mask)),
            Op::FetchOr(at, mask) => self.exchange(at, |found| Some(found | mask)),
            Op::Run(run) => one(self.run(run)),
            Op::Age(run) => Some(self.age(run)),
            Op::Load(var, order) => one(self.load(self.var(var), order)),
            Op::Store(var, value, order) => {
                self.store_plainly(self.var(var), value, order);
                DONE
            }
            Op::Add(var, delta) => {
                let at = self.var(var);
                let found = self.exchange(at, |found| Some(found.wrapping_add_signed(delta)))?;
                let value = found.a.wrapping_add_signed(delta);
                if [Var::IN_PROGRESS, Var::ACTIVE_INVALIDATIONS].contains(&var) {
                    self.hold(Invariant::R7, i64::try_from(value).is_ok(), |_| {
                        "an invalidation ended that had not begun".to_owned()
                    });
                }
                one(value)
            }
            Op::CmpxchgVar(var, old, new) => self.compare_exchange(self.var(var), old, new),
            Op::XchgVar(var, new) => self.exchange(self.var(var), |_| Some(new)),
            Op::Alloc(level) => Some(self.alloc(level)),
            Op::Live(at) => {
                self.is_word(at);
                one(self.words.frame(at).map_or(0, |frame| u64::from(frame.live)))
            }
            Op::Free(frames) => {
                for table in tables(frames) {
                    self.release(table);
                }
                DONE
            }
            Op::CallRcu(frames) => {
                let tables: Vec<Hpa> = tables(frames).collect();
                for &table in &tables {
                    self.retire(table);
                }
                self.start_grace(tables, None);
                DONE
            }
            Op::SynchronizeRcu => {
                self.fence(Fence::Full);
                let number = self.start_grace(Vec::new(), None);
                self.wait(Pending::Grace(number))
            }
            Op::RcuLock => {
                if self.hands[me].rcu_depth == 0 {
                    self.ghost.forget(self.acting);
                }
                let view = self.rcu_view.clone();
                self.join_view(me, &view);
                self.hands[me].rcu_depth += 1;
                DONE
            }
            Op::RcuUnlock => {
                let depth = self.hands[me].rcu_depth;
                self.hold(Invariant::R1, depth > 0, |_| "an RCU section is left that was not entered".to_owned());
                self.hands[me].rcu_depth = depth.saturating_sub(1);
                if depth == 1 {
                    for grace in &mut self.graces {
                        grace.waits_for &= !super::Agent::actor(me).bit();
                    }
                }
                DONE
            }
            Op::Lock(lock, mode) => {
                self.drain(me);
                self.take_lock(me, lock, mode);
                DONE
            }
            Op::Unlock(lock) => {
                self.drain(me);
                self.give_lock(me, lock);
                DONE
            }
            Op::NeedResched(lock) => one(self.need_resched(me, lock)),
            Op::Reschedule => self.reschedule(me),
            Op::Occupy(processor) => {
                self.hands[me].processor = Some(processor);
                DONE
            }
            Op::Vacate => {
                if let Some(processor) = self.hands[me].processor.take() {
                    self.give_lock(me, processor);
                }
                DONE
            }
            Op::Flush(flush) => self.flush(flush),
            Op::ReloadRoots => self.ask_everybody(|_| What::Reload),
            Op::KickAll => self.ask_everybody(|_| What::Leave),
            Op::VcpuRun(vcpu) => self.enter_guest(vcpu),
            Op::LoadRoot(vcpu, root, generation) => {
                let now = self.words.tick();
                self.guests[vcpu.0].load_root(root, generation, now);
                DONE
            }
            Op::Fence(fence) => {
                self.fence(fence);
                DONE
            }
            Op::PrepareToWait(queue) => {
                self.fence(Fence::Full);
                self.queues.prepare(queue, me);
                DONE
            }
            Op::FinishWait(queue) => {
                self.queues.leave(queue, me);
                DONE
            }
            Op::Schedule(queue) => {
                if self.queues.sleep(queue, me) {
                    self.wait(Pending::Asleep)
                } else {
                    DONE
                }
            }
            Op::WakeUp(queue, whom) => {
                self.fence(Fence::Full);
                self.wake(queue, whom);
                DONE
            }
            Op::Spend(_) | Op::Sleep(_) | Op::SleepUntil(_) => {
                self.give_others_a_turn(me);
                DONE
            }
            Op::CountRetry => {
                self.counters.retried_faults += 1;
                if let Some(vcpu) = self.hands[me].vcpu {
                    self.guests[vcpu.0].retried = true;
                }
                self.give_others_a_turn(me);
                DONE
            }
            Op::HostMapping(gpa, most) => {
                one(u64::from(self.world.host_mapping(mmu_core::Gpa::new(gpa), most).shift()))
            }
            Op::DropPages(range) => {
                for hvas in self.world.guest_hvas(range) {
                    self.primary(PrimaryOp::Unmap(hvas, crate::engine::Unmapping::Discard));
                }
                DONE
            }
            Op::SetRoot(root) => {
                self.root_replaced(self.root, root);
                self.root = root;
                self.generation = self.generation.wrapping_add(1);
                self.happened(Happened::Root { root, generation: self.generation });
                DONE
            }
            Op::Root => one(self.root.raw()),
            Op::Primary(op) => Some(self.primary(op)),
            Op::Slots(op) => Some(self.slots(op)),
            Op::Dirty(op) => Some(self.dirty(op)),
            Op::Upkeep(Upkeep::Tagged(op)) => self.tagged(op),
            Op::Upkeep(op) => Some(self.upkeep(op)),
            _ => DONE,
        }
    }

    /// P3: how far the actor goes without an opportunity to reschedule.
    pub(crate) fn measure(&mut self, op: &Op) {
        let Some(bound) = self.limits.stretch else { return };
        let me = self.me();
        let stretch = &mut self.hands[me].stretch;
        match op {
            Op::ReadRun(..) | Op::Read(_) => *stretch += 1,
            Op::Run(run) if run.check == ReschedCheck::Never => *stretch += run.len - 1,
            Op::Run(_) | Op::NeedResched(_) | Op::Lock(..) => *stretch = 0,
            op if op.gives_way() => *stretch = 0,
            _ => {}
        }
        let gone = *stretch;
        self.hold(Invariant::P3, gone <= bound, |lab| {
            format!(
                "{} has visited {gone} entries without asking whether to reschedule; {bound} are allowed",
                lab.hands[me].name
            )
        });
    }

    /// The acting actor does something whose order with others' matters.
    pub(crate) fn in_order(&mut self) {
        let who = self.hands.get(self.me()).map_or(0, |hand| hand.answers);
        self.order = mixed(self.order, mixed(who, u64::from(self.acting.0)));
    }

    pub(crate) fn wait(&mut self, pending: Pending) -> Option<Reply> {
        let me = self.me();
        self.hands[me].pending = pending;
        None
    }

    /// What the actor waited for has come.
    pub(crate) fn wait_is_over(&mut self, actor: usize, waited: Pending) {
        if let Pending::Guest(vcpu) = waited
            && let Some(exit) = self.guests[vcpu.0].exit.take()
        {
            self.guests[vcpu.0].left = exit;
            self.hands[actor].view.seen.join(&self.guests[vcpu.0].wrote);
            self.hands[actor].answers = mixed(self.hands[actor].answers, super::digest::of(&exit));
        }
        if matches!(waited, Pending::Flight(_)) {
            self.flush_ends(actor);
            self.check_invalidated(actor);
        }
        if matches!(waited, Pending::Awake | Pending::Flight(_) | Pending::Grace(_))
            && self.memory == super::MemoryOrder::Weak
        {
            let view = self.sc_view.clone();
            self.join_view(actor, &view);
        }
    }

    // ---- table words ----

    pub(crate) fn is_word(&mut self, at: Hpa) -> bool {
        let found = self.words.read(at);
        self.hold(Invariant::T5, found.is_ok(), |_| match found {
            Err(super::words::NoWord::Freed) => format!("a table word at {at} is used after its frame was freed"),
            _ => format!("{at} is no table word"),
        });
        found.is_ok()
    }

    /// A table word: its address comes from the entry above it.
    pub(crate) fn read_word(&mut self, at: Hpa) -> u64 {
        if !self.is_word(at) {
            return 0;
        }
        let word = self.load(at, Order::Dependent);
        self.ghost.saw(self.acting, at, word);
        word
    }

    /// An atomic read-modify-write; replies what was found.
    pub(crate) fn exchange(&mut self, at: Hpa, new: impl FnOnce(u64) -> Option<u64>) -> Option<Reply> {
        self.fence(Fence::Full);
        if !self.is_word(at) {
            return one(0);
        }
        let found = self.words.peek(at);
        self.has_read_last(at);
        self.ghost.saw(self.acting, at, found);
        if let Some(new) = new(found) {
            self.commit(at, 1, new, 0, Store::Atomic);
        }
        self.fence(Fence::Full);
        one(found)
    }

    /// A compare-and-swap; the second number of the reply tells that it failed although the word is what was expected.
    fn compare_exchange(&mut self, at: Hpa, old: u64, new: u64) -> Option<Reply> {
        let failed = self.store_fails(at, old);
        let found = self.exchange(at, |found| (found == old && !failed).then_some(new))?;
        Some(Reply { b: failed.into(), ..found })
    }

    /// Whether the store of an exclusive pair fails for no reason that software knows (Arm DDI 0487, B2.12; Power ISA, book II, 4.6.2).
    fn store_fails(&mut self, at: Hpa, old: u64) -> bool {
        let can = self.store_failures > 0 && self.words.read(at) == Ok(old);
        let fails = can && self.pick(Kind::Exclusive, 2) == 1;
        self.store_failures -= u32::from(fails);
        fails
    }

    /// Work on a run: what maps nothing goes at once, a mapping alone.
    pub(crate) fn run(&mut self, run: RunOp) -> u64 {
        if !self.is_word(run.at) {
            return run.len;
        }
        if run.atomicity != Atomicity::Plain {
            self.fence(Fence::Full);
            self.has_read_last(run.at);
        }
        let word = self.words.peek(run.at);
        if let Atomicity::IfStill(old) = run.atomicity
            && word != old
        {
            self.ghost.saw(self.acting, run.at, word);
            return 0;
        }
        if matches!(run.atomicity, Atomicity::IfStill(_)) && self.store_fails(run.at, word) {
            self.ghost.saw(self.acting, run.at, word);
            return 0;
        }
        if let Apply::Fill { first, step } = run.apply {
            self.commit(run.at, run.len, first, step, Store::Plain(Order::Relaxed));
            return run.len;
        }
        let n = if self.format.is_mapped(word) { 1 } else { self.words.alike(run.at, run.len) };
        if run.work == Some(Work::ReleaseLeaf) {
            self.hand_over(run.at, word);
            self.counters.zapped_leaves += 1;
            self.tally.leaves -= 1;
        }
        let new = match run.apply {
            Apply::Nothing | Apply::Fill { .. } => return n,
            Apply::Set(new) => new,
            Apply::Mask { and, or } => word & and | or,
        };
        let store = if run.atomicity == Atomicity::Plain { Store::Plain(Order::Relaxed) } else { Store::Atomic };
        if store == Store::Atomic {
            self.ghost.saw(self.acting, run.at, word);
            self.count_atomic(run.at, word);
        }
        if new != word {
            self.commit(run.at, n, new, 0, store);
        }
        if store == Store::Atomic {
            self.fence(Fence::Full);
        }
        n
    }

    /// A leaf goes: what it knows of its page is handed over.
    pub(crate) fn hand_over(&mut self, at: Hpa, word: u64) {
        let Some(level) = self.words.frame(at).map(|frame| frame.level) else { return };
        let format = self.format;
        if level > format.geometry().root() || !format.is_mapped(word) || !format.is_leaf(level, word) {
            return;
        }
        let dirty = match format.dirty_mask() {
            0 => format.is_writable(word),
            mask => word & mask != 0,
        };
        let accessed = self.limits.handover == Handover::AccessedAndDirty && format.mark_young(word).is_none();
        let page = HpaRange::new(format.output(level, word), Bytes(format.geometry().page_size(level).bytes()));
        let state = PageState { accessed: accessed.into(), dirty: dirty.into() };
        self.touched_primary = true;
        self.in_order();
        self.world.mark_pages(page, state, &ActorState::new(self.me(), NO_TIME));
        self.collect_reports();
    }

    pub(crate) fn age(&mut self, run: AgeRun) -> Reply {
        let format = self.format;
        let leaf = format.is_mapped(run.old) && format.is_leaf(run.level, run.old);
        let young = leaf && is_young(&format, run.old);
        let (found, failed) = match (young, run.write) {
            (true, AgeWrite::And) => {
                let found = self.exchange(run.at, |found| Some(found & !format.accessed_mask()));
                (found.map_or(0, |reply| reply.a), false)
            }
            (true, AgeWrite::Cmpxchg) => {
                let failed = self.store_fails(run.at, run.old);
                let found =
                    self.exchange(run.at, |found| (found == run.old && !failed).then(|| format.mark_old(found)));
                let found = found.map_or(0, |reply| reply.a);
                (found, failed || found != run.old)
            }
            _ => (run.old, false),
        };
        Reply { a: 1, b: u64::from(failed), c: found }
    }
}

fn tables(frames: Frames) -> impl Iterator<Item = Hpa> {
    (0..frames.count).map(move |n| frames.first + n * frames.bytes)
}
