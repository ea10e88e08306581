//! Memory orders: what a load may return, and when a store is seen.
//!
//! | order | loads | stores |
//! | --- | --- | --- |
//! | sequentially consistent | what is there | at once |
//! | store buffers (x86) | the own buffer first | when the buffer drains: a decision; atomic operations, locks and full barriers wait for it |
//! | weak (Arm, POWER) | any version that nothing seen so far makes too old: a decision | at once, but others may go on reading older ones |
//!
//! The weak order keeps views: for each word the oldest version that an actor may still read. A release store, or any store after a
//! write barrier, carries the view of its writer; an acquire load, or any load before a read barrier, takes it over. So missing barriers
//! are found, on both sides. Loads are never delayed beyond later stores of the same actor (no load buffering), and all agree on the order of writes.
//!
//! What orders without a barrier, as the kernel's memory model has it (`tools/memory-model/Documentation/explanation.txt`):
//!
//! - a lock hands over what all who held it have seen, readers side by side too;
//! - atomic read-modify-writes are full barriers, and read the last version, with what that carries;
//! - entering a guest is a full barrier; a vCPU's thread has seen what its walks wrote, and so has whoever waits for its answer;
//! - an *address dependency*: what is read through an entry that points to a table is no older than what was written before the entry
//!   ([`Order::Dependent`]; table words are read in no other way);
//! - whoever can name a variable that an actor makes sees what it was made with: it was found by a pointer;
//! - a store is seen by all in the end: an actor finds an older version of a word a few times only.

use mmu_core::{Format, Hpa};

use super::decision::Kind;
use super::invariant::Invariant;
use super::lab::Lab;
use super::words::{Moment, Version};
use crate::arch::Arch;
use crate::engine::{Fence, Order};

/// Which orders of memory accesses can be seen.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryOrder {
    /// The order of steps.
    #[default]
    Sequential,
    /// Total store order: a buffer for each actor.
    StoreBuffer,
    /// Acquire, release, relaxed and fences.
    Weak,
}

impl MemoryOrder {
    /// As the command line names it.
    pub const fn name(self) -> &'static str {
        match self {
            MemoryOrder::Sequential => "sc",
            MemoryOrder::StoreBuffer => "tso",
            MemoryOrder::Weak => "weak",
        }
    }
}

/// For runs of words, by address and length: the version of this moment, or a later one, is what can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Sight(Vec<(u64, u64, Moment)>);

impl Sight {
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
    fn of(&self, at: Hpa) -> Moment {
        let covers = |&&(first, len, _): &&(u64, u64, Moment)| at.raw().wrapping_sub(first) < 8 * len;
        self.0.iter().filter(covers).map(|&(.., moment)| moment).max().unwrap_or(0)
    }
    fn see(&mut self, at: Hpa, moment: Moment) {
        self.see_run(at, 1, moment);
    }
    fn see_run(&mut self, at: Hpa, len: u64, moment: Moment) {
        match self.0.iter_mut().find(|&&mut (first, many, _)| (first, many) == (at.raw(), len)) {
            Some((.., seen)) => *seen = moment.max(*seen),
            None => self.0.push((at.raw(), len, moment)),
        }
    }
    pub(crate) fn join(&mut self, other: &Sight) {
        for &(first, len, moment) in &other.0 {
            self.see_run(Hpa::new(first), len, moment);
        }
    }
}

/// What an actor has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct View {
    pub(crate) seen: Sight,
    /// What it will have seen after the next read barrier.
    pub(crate) acquired: Sight,
    /// What its stores carry since the last write barrier.
    pub(crate) released: Sight,
    /// What was written before the entries that it has followed to tables.
    pub(crate) followed: Sight,
    /// How often it has found an older version, by word.
    outdated: Vec<(u64, u8)>,
    /// When that barrier was.
    pub(crate) barrier: Moment,
}

impl View {
    /// Whether it has found older versions of the word as often as it can.
    fn is_patient_no_more(&self, at: Hpa) -> bool {
        self.outdated.iter().any(|&(word, times)| word == at.raw() && times >= MOST_OUTDATED)
    }

    /// It found an older version.
    fn waits_for(&mut self, at: Hpa) {
        match self.outdated.iter_mut().find(|(word, _)| *word == at.raw()) {
            Some((_, times)) => *times += 1,
            None => self.outdated.push((at.raw(), 1)),
        }
    }
}

/// Times an actor finds an older version of one word, at most.
const MOST_OUTDATED: u8 = 4;

/// Versions of a word that a load may choose from, at most.
const MOST_VERSIONS: usize = 4;

impl<A: Arch> Lab<A> {
    fn weak(&self) -> bool {
        self.memory == MemoryOrder::Weak
    }

    /// A load by the acting actor.
    pub(crate) fn load(&mut self, at: Hpa, order: Order) -> u64 {
        let me = self.me();
        self.imagine_read(at);
        if let Some(&(_, buffered)) = self.hands[me].buffer.iter().rev().find(|(word, _)| *word == at) {
            return buffered;
        }
        if !self.weak() {
            return self.words.peek(at);
        }
        let view = &self.hands[me].view;
        let followed = if order == Order::Dependent { view.followed.of(at) } else { 0 };
        let born = self.births.iter().find(|(var, _)| *var == at).map_or(0, |&(_, moment)| moment);
        let since = view.seen.of(at).max(followed).max(born).max(self.start);
        let most = if view.is_patient_no_more(at) { 1 } else { MOST_VERSIONS };
        let (mut versions, mut found) = ([Version::default(); MOST_VERSIONS], 0);
        self.words.versions(at, since, |version| {
            if found < most {
                versions[found] = version;
                found += 1;
            }
        });
        let chosen = self.pick(Kind::Load, found);
        let version = versions[chosen];
        if chosen > 0 {
            self.hands[me].view.waits_for(at);
        }
        self.has_read(at, version, order);
        version.word
    }

    /// The acting actor has read this version.
    fn has_read(&mut self, at: Hpa, version: Version, order: Order) {
        let me = self.me();
        let link = order == Order::Dependent && self.is_link(at, version.word);
        let carried = self.ghost.carried.get((version.from as usize).wrapping_sub(1));
        let view = &mut self.hands[me].view;
        view.seen.see(at, version.from);
        let Some(carried) = carried else { return };
        view.acquired.join(carried);
        if link {
            view.followed.join(carried);
        }
        if order == Order::Synchronizing {
            view.seen.join(carried);
        }
    }

    /// The acting actor has read the last version, by an atomic read-modify-write.
    pub(crate) fn has_read_last(&mut self, at: Hpa) {
        if !self.weak() || self.hands.get(self.me()).is_none() {
            return;
        }
        let mut last = None;
        self.words.versions(at, self.start, |version| last = last.or(Some(version)));
        if let Some(version) = last {
            self.has_read(at, version, Order::Synchronizing);
        }
    }

    /// Whether a table word points to a table.
    fn is_link(&self, at: Hpa, word: u64) -> bool {
        let format = &self.format;
        let entry = |frame: &super::words::Frame| {
            frame.level <= format.geometry().root() && format.is_mapped(word) && !format.is_leaf(frame.level, word)
        };
        self.words.frame(at).is_some_and(entry)
    }

    /// A store by the acting actor that it does not wait for.
    pub(crate) fn store_plainly(&mut self, at: Hpa, word: u64, order: Order) {
        let me = self.me();
        if self.memory == MemoryOrder::StoreBuffer {
            self.hands[me].buffer.push((at, word));
            return;
        }
        self.commit(at, 1, word, 0, super::ghost::Store::Plain(order));
    }

    /// After a write of the acting actor, to one word or a run: what it carries.
    pub(crate) fn publish(&mut self, at: Hpa, len: u64, order: Order) {
        if !self.weak() {
            return;
        }
        let (me, moment) = (self.me(), self.words.now());
        if let super::decision::Who::Guest(vcpu) = self.acting.who() {
            self.guests[vcpu].wrote.see_run(at, len, moment);
        }
        let mut carried = match self.hands.get_mut(me) {
            Some(hand) => {
                hand.view.seen.see_run(at, len, moment);
                if order == Order::Synchronizing { hand.view.seen.clone() } else { hand.view.released.clone() }
            }
            None => Sight::default(),
        };
        carried.see_run(at, len, moment);
        self.ghost.carried.resize(moment as usize, Sight::default());
        self.ghost.carried[moment as usize - 1] = carried;
    }

    /// The oldest store of an actor's buffer reaches memory.
    pub(crate) fn drain_one(&mut self, actor: usize) {
        let (at, word) = self.hands[actor].buffer.remove(0);
        self.acting = super::Agent::actor(actor);
        self.note(|_| format!("store of {word:#x} to {at} reaches memory"));
        self.commit(at, 1, word, 0, super::ghost::Store::Plain(Order::Synchronizing));
    }

    /// Everything in an actor's buffer reaches memory.
    pub(crate) fn drain(&mut self, actor: usize) {
        while !self.hands[actor].buffer.is_empty() {
            self.drain_one(actor);
        }
    }

    /// A barrier of the acting actor.
    pub(crate) fn fence(&mut self, fence: Fence) {
        let me = self.me();
        if fence == Fence::Full {
            self.drain(me);
        }
        if !self.weak() {
            return;
        }
        let moment = self.words.now();
        let Self { hands, sc_view, .. } = self;
        let view = &mut hands[me].view;
        if matches!(fence, Fence::Read | Fence::Full) {
            let acquired = std::mem::take(&mut view.acquired);
            view.seen.join(&acquired);
            view.acquired = acquired;
        }
        if fence == Fence::Full {
            view.seen.join(sc_view);
            sc_view.clone_from(&view.seen);
        }
        if matches!(fence, Fence::Write | Fence::Full) {
            view.released = view.seen.clone();
            view.barrier = moment;
        }
    }

    /// Takes over what was seen by whoever gave a lock back, or woke the actor.
    pub(crate) fn join_view(&mut self, actor: usize, other: &Sight) {
        if self.weak() {
            self.hands[actor].view.seen.join(other);
        }
    }

    /// B4: what an entry points to is complete, and seen to be, before the entry is.
    pub(crate) fn check_publication(&mut self, table: Hpa, order: Order) {
        let (me, weak) = (self.acting.0, self.weak());
        let barrier = self.hands.get(self.me()).map_or(0, |hand| hand.view.barrier);
        let Some(frame) = self.words.frame(table).copied() else { return };
        let log = self.words.log();
        let late = log
            .iter()
            .enumerate()
            .skip(barrier as usize)
            .any(|(_, write)| write.agent == me && frame.contains(self.words.address(write.at)));
        let ordered = !weak || order == Order::Synchronizing || !late;
        self.hold(Invariant::B4, ordered, |_| {
            format!("table {table} is linked by a store that nothing orders behind the stores that filled it")
        });
    }
}
