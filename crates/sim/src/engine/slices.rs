//! Time slices of a walk that are alike, done at once.
//!
//! A walk that yields comes to its locks, flushes and RCU sections a hundred million times in petabytes, and to the same entries in between. While
//! nobody else has anything to do, all of that is arithmetic (`pace`): this carries it out, so that clocks, counters and words are those of one slice
//! after the other. The last slices are gone through with the operations that the protocol itself would ask for, so that locks, RCU and
//! the actor are left as those leave them; whatever is retired before is free by then.
//!
//! Stopping early is always right: the caller goes on slice by slice.

use mmu_core::memory::{Masks, Progression};
use mmu_core::{Cycles, Format, Hpa, Level};

use super::actor::ActorState;
use super::alike::Alike;
use super::op::{Apply, Blockable, LockId, Op, RemoveSubtrees, Reply, ReschedCheck, SliceWork, Slices, Work};
use super::pace::{Asks, Memo, OneSlice, Pace, Total};
use super::vcpu::{Mode, Vcpu};
use super::world::{Horizon, Performed, Runs, World};
use crate::arch::Arch;

/// Fewer slices than this are not worth looking at tables for.
const FEW: u64 = 8;

/// Stretches of leaves that are put together.
const STRETCHES: usize = 4;

/// The entries that slices work on.
#[derive(Clone, Copy, Debug)]
struct Region {
    /// The first one.
    at: Hpa,
    /// Its number among the entries of its level.
    first: u64,
    len: u64,
    /// What lies below, where they are tables.
    below: Option<Alike>,
}

impl Region {
    /// The removal of all of its subtrees.
    fn removal(&self, ask: &Slices) -> Option<RemoveSubtrees> {
        let SliceWork::Subtrees { unlinked, marker } = ask.work else { return None };
        let (at, len, level, check) = (self.at, self.len, ask.level, ask.check);
        Some(RemoveSubtrees { at, len, level, unlinked, marker, check, flush: None })
    }
}

/// A walk through a region.
#[derive(Clone, Copy, Debug)]
struct Course {
    ask: Slices,
    region: Region,
    pace: Pace,
    horizon: Horizon,
}

impl<A: Arch> World<A> {
    /// Replies how many entries were worked on (0: go on slice by slice), after which the walk has just yielded again.
    #[inline(never)]
    pub(super) fn slices(
        &mut self,
        ask: &Slices,
        actor: &mut ActorState,
        horizon: Horizon,
        vcpus: &mut [Vcpu<A>],
    ) -> Reply {
        let none = Reply::default();
        if self.runs == Runs::Single || !self.leaves_alone(ask, actor, vcpus) {
            return none;
        }
        let left = (ask.end - ask.start) >> self.arch.two().geometry().shift(ask.level);
        let least = self.costs.visit.0 + self.least_work(ask).0;
        if left.saturating_mul(least) < FEW * self.costs.tick_period.0 {
            return none;
        }
        let Some(region) = self.region(ask, left) else { return none };
        let Some(pace) = self.pace(ask, &region) else { return none };
        let course = Course { ask: *ask, region, pace, horizon };
        let Some(done) = self.pass(&course, actor, vcpus) else { return none };
        self.disturbed = true;
        Reply::one(done)
    }

    /// Whether the actor has just started over, and nobody but time takes anything away from it.
    fn leaves_alone(&self, ask: &Slices, actor: &ActorState, vcpus: &[Vcpu<A>]) -> bool {
        let started = actor.scheduled == actor.slice && actor.now == actor.slice + self.costs.lock_local;
        started
            && actor.blockable == Blockable::Yes
            && actor.processor.is_none()
            && self.locks[LockId::MMU.0 as usize].is_only(actor.id)
            && self.rcu.is_only(actor.id)
            && self.upkeep.extra_references == 0
            && !vcpus.iter().any(|vcpu| vcpu.mode == Mode::Guest)
            && !ask.flush.is_some_and(|flush| self.waits_for_interconnect(flush, actor.now))
    }

    /// Less than what an entry takes.
    fn least_work(&self, ask: &Slices) -> Cycles {
        match ask.work {
            SliceWork::Leaves { work: Some(work), .. } => self.cost_of(work),
            SliceWork::Leaves { .. } => Cycles::ZERO,
            SliceWork::Subtrees { .. } => {
                let below = ask.level.down().unwrap_or(ask.level);
                self.costs.visit.times(self.arch.two().geometry().entries(below) as u64)
            }
        }
    }

    /// The entries from where the walk stopped on, as far as all tables above them and everything below is alike.
    #[inline(never)]
    fn region(&self, ask: &Slices, left: u64) -> Option<Region> {
        let two = self.arch.two();
        let geometry = two.geometry();
        let shift = geometry.shift(ask.level);
        if !ask.start.is_aligned(geometry.page_size(ask.level)) {
            return None;
        }
        // Behind the entry that has been worked on last.
        let first = (ask.start.raw() >> shift) + u64::from(ask.check == ReschedCheck::BehindEach);
        let gpa = first << shift;
        let index = |level: Level| geometry.index(level, gpa) as u64;
        let mut level = geometry.root();
        let mut at = ask.root + 8 * index(level);
        let mut ahead = (geometry.entries(level) as u64).checked_sub(index(level))?;
        while level > ask.level {
            let links = self.tables.run_at(at, ahead).ok()?;
            if !two.is_mapped(links.first) || two.is_leaf(level, links.first) {
                return None;
            }
            let down = level.down()?;
            let follow = if links.len > 1 && links.step == geometry.table_bytes(down) { links.len } else { 1 };
            at = two.next_table(level, links.first) + 8 * index(down);
            ahead = follow * geometry.entries(down) as u64 - index(down);
            level = down;
        }
        let most = ahead.min(left);
        if let SliceWork::Subtrees { .. } = ask.work {
            let below = self.alike_below(at, most, level)?;
            return Some(Region { at, first, len: below.entries.min(most), below: Some(below) });
        }
        let len = self.alike_leaves(at, most, level)?;
        Some(Region { at, first, len, below: None })
    }

    /// How many of `most` words from `at` on are leaves whose pages follow each other. Some stretches are looked at: the table in which a walk stopped may
    /// be held another way than those behind it.
    fn alike_leaves(&self, at: Hpa, most: u64, level: Level) -> Option<u64> {
        let two = self.arch.two();
        let page = two.geometry().page_size(level).bytes();
        let word = self.tables.read(at).ok()?;
        if !two.is_mapped(word) || !two.is_leaf(level, word) {
            return None;
        }
        let mut len = 0;
        for _ in 0..STRETCHES {
            let run = self.tables.run_at(at + 8 * len, most - len).ok()?;
            if run.first != word.wrapping_add(page.wrapping_mul(len)) || (run.len > 1 && run.step != page) {
                break;
            }
            len += run.len;
            if len == most {
                break;
            }
        }
        Some(len)
    }

    /// What the steps of this walk take; `None`: nothing.
    fn pace(&self, ask: &Slices, region: &Region) -> Option<Pace> {
        let work = match (ask.work, &region.below) {
            (SliceWork::Leaves { apply, atomicity, work }, _) => {
                self.entry_costs(ask.check, (apply != Apply::Nothing).then_some(atomicity), work).1
            }
            (SliceWork::Subtrees { .. }, Some(below)) => {
                self.removal_costs(&region.removal(ask)?, below, Cycles::ZERO).1
            }
            (SliceWork::Subtrees { .. }, None) => return None,
        };
        let asks = if ask.check == ReschedCheck::BehindEach { Asks::Behind } else { Asks::Before };
        let costs = [self.costs.visit, self.costs.resched_check, work].map(|cycles| cycles.0);
        let flush = ask.flush.map_or(Cycles::ZERO, |flush| self.unanswered_flush_cost(flush));
        let mut pace = Pace::new(asks, self.arch.two().geometry(), ask.level, costs);
        pace.slice = self.costs.tick_period.0;
        pace.begin = self.costs.lock_local.0;
        let unlock = self.locks[LockId::MMU.0 as usize].giving_back(self.costs.lock());
        pace.between = (flush + unlock + self.costs.reschedule).0;
        (work > Cycles::ZERO).then_some(pace)
    }

    /// Goes through the slices of a region; how many of its entries that was.
    fn pass(&mut self, course: &Course, actor: &mut ActorState, vcpus: &mut [Vcpu<A>]) -> Option<u64> {
        let Course { region, pace, .. } = course;
        // Whatever is retired before the last of these is free behind them.
        let kept = region.below.map_or(1, |_| self.costs.rcu_grace.0.div_ceil(pace.slice.max(1)) + 2);
        let (end, room) = (region.first + region.len, course.horizon.others.since(actor.now).0);
        let limit = end.saturating_sub((kept + 1) * pace.most());
        let cycles = room.saturating_sub(kept * pace.longest());
        let mut memo = self.memo.take().filter(|memo| memo.is_of(pace)).unwrap_or_else(|| Box::new(Memo::new(*pace)));
        let total = memo.slices(region.first, limit, end, cycles);
        self.memo = Some(memo);
        if total.slices == 0 {
            return None;
        }
        self.book(course, &total, actor, vcpus);
        let mut done = total.items;
        let until = Cycles(actor.now.0.saturating_add(room - total.cycles));
        for _ in 0..kept {
            let Some(one) = pace.one(region.first + done, end) else { break };
            if actor.now + Cycles(pace.longest()) > until {
                break;
            }
            self.go_through(course, &one, done, actor, vcpus);
            done += one.items;
        }
        self.apply(course, done, actor);
        if let Some(below) = &region.below {
            for frames in self.frames_below(below, total.items) {
                self.counters.zapped_tables += frames.count;
                self.rcu.pass_frames(frames.count);
                self.free(frames);
            }
        }
        for frames in self.rcu.expire(actor.now).frames {
            self.free(frames);
        }
        Some(done)
    }

    /// Books slices that nobody has to go through: what they leave behind but words.
    fn book(&mut self, course: &Course, total: &Total, actor: &mut ActorState, vcpus: &mut [Vcpu<A>]) {
        let Course { ask, pace, .. } = course;
        let flush = ask.flush.map_or(Cycles::ZERO, |flush| self.unanswered_flush_cost(flush));
        if let Some(flush) = ask.flush {
            self.count_unanswered_flushes(flush, total.slices, vcpus);
        }
        self.worked_out += total.slices;
        self.counters.visits += total.visits;
        self.counters.reschedules += total.slices;
        self.locks[LockId::MMU.0 as usize].stats.acquisitions += total.slices;
        let stats = &mut actor.stats;
        stats.longest_unscheduled = stats.longest_unscheduled.max(Cycles(total.longest));
        let section = Cycles(total.latest - pace.begin) + flush;
        stats.longest_rcu = stats.longest_rcu.max(section);
        actor.now += Cycles(total.cycles);
        actor.slice = Cycles(actor.now.0 - pace.begin);
        actor.scheduled = actor.slice;
        actor.rcu_since = Some(actor.now);
        self.rcu.pass_sections(actor.now, total.slices, section);
    }

    /// One slice, by the operations that the protocol asks for between the entries.
    fn go_through(
        &mut self,
        course: &Course,
        one: &OneSlice,
        done: u64,
        actor: &mut ActorState,
        vcpus: &mut [Vcpu<A>],
    ) {
        let Course { ask, region, pace, horizon } = course;
        let start = actor.slice;
        self.counters.visits += one.visits;
        if let Some(below) = &region.below {
            let (skipped, worked, grace) =
                (below.behind(done, self.arch.two().geometry()), start + Cycles(one.worked), self.costs.rcu_grace);
            for frames in self.frames_below(&skipped, one.items) {
                self.counters.zapped_tables += frames.count;
                self.rcu.retire(frames, worked, grace);
            }
        }
        actor.stats.longest_unscheduled = actor.stats.longest_unscheduled.max(Cycles(one.longest));
        actor.scheduled = start + Cycles(one.breathed);
        actor.now = start + Cycles(one.over - pace.ask);
        let yields = [
            Some(Op::NeedResched(LockId::MMU)),
            ask.flush.map(Op::Flush),
            Some(Op::RcuUnlock),
            Some(Op::Unlock(LockId::MMU)),
            Some(Op::Reschedule),
            Some(Op::Lock(LockId::MMU, ask.lock)),
            Some(Op::RcuLock),
        ];
        for op in yields.into_iter().flatten() {
            let performed = self.perform(op, actor, *horizon, vcpus);
            debug_assert!(matches!(performed, Performed::Done(_)), "{op:?} waits for somebody");
        }
    }

    /// What becomes of the first `done` entries of the region, and of what is below.
    fn apply(&mut self, course: &Course, done: u64, actor: &ActorState) {
        let Course { ask, region, .. } = course;
        let applied = match (ask.work, &region.below, region.removal(ask)) {
            (SliceWork::Leaves { apply, work, .. }, ..) => {
                if work == Some(Work::ReleaseLeaf) {
                    self.hand_over(region.at, done, actor);
                    self.counters.zapped_leaves += done;
                }
                match apply {
                    Apply::Set(word) => self.tables.fill_run(region.at, done, Progression::constant(word)),
                    Apply::Mask { and, or } => {
                        self.tables.map_run(region.at, done, Masks { keep: and, set: or }).map(drop)
                    }
                    Apply::Nothing | Apply::Fill { .. } => Ok(()),
                }
            }
            (SliceWork::Subtrees { .. }, Some(below), Some(remove)) => {
                // The entries themselves are the walk's.
                self.counters.visits += done * (below.teardown_visits() - 1);
                self.unlink_alike(&remove, below, done, actor)
            }
            (SliceWork::Subtrees { .. }, ..) => Ok(()),
        };
        debug_assert_eq!(applied, Ok(()), "what was read before is there");
    }
}
