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

use mmu_core::Hpa;

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

/// For words, by address: the version of this moment, or a later one, is what can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Sight(Vec<(u64, Moment)>);

impl Sight {
    fn of(&self, at: Hpa) -> Moment {
        self.0.iter().find(|&&(word, _)| word == at.raw()).map_or(0, |&(_, moment)| moment)
    }
    fn see(&mut self, at: Hpa, moment: Moment) {
        match self.0.iter_mut().find(|(word, _)| *word == at.raw()) {
            Some((_, seen)) => *seen = moment.max(*seen),
            None => self.0.push((at.raw(), moment)),
        }
    }
    fn join(&mut self, other: &Sight) {
        for &(word, moment) in &other.0 {
            self.see(Hpa::new(word), moment);
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
    /// When that barrier was.
    pub(crate) barrier: Moment,
}

impl View {
    pub(crate) fn join(&mut self, other: &View) {
        self.seen.join(&other.seen);
    }
}

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
        let since = self.hands[me].view.seen.of(at).max(self.start);
        let (mut versions, mut found) = ([Version::default(); MOST_VERSIONS], 0);
        self.words.versions(at, since, |version| {
            if found < MOST_VERSIONS {
                versions[found] = version;
                found += 1;
            }
        });
        let version = versions[self.pick(Kind::Load, found)];
        let carried = self.ghost.carried.get((version.from as usize).wrapping_sub(1)).cloned().unwrap_or_default();
        let view = &mut self.hands[me].view;
        view.seen.see(at, version.from);
        view.acquired.join(&carried);
        if order == Order::Synchronizing {
            view.seen.join(&carried);
        }
        version.word
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

    /// After a write of the acting actor: what it carries.
    pub(crate) fn publish(&mut self, at: Hpa, order: Order) {
        if !self.weak() {
            return;
        }
        let (me, moment) = (self.me(), self.words.now());
        let mut carried = match self.hands.get_mut(me) {
            Some(hand) => {
                hand.view.seen.see(at, moment);
                if order == Order::Synchronizing { hand.view.seen.clone() } else { hand.view.released.clone() }
            }
            None => Sight::default(),
        };
        carried.see(at, moment);
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
            view.seen.join(&sc_view.seen);
            sc_view.seen = view.seen.clone();
        }
        if matches!(fence, Fence::Write | Fence::Full) {
            view.released = view.seen.clone();
            view.barrier = moment;
        }
    }

    /// Takes over what was seen by whoever gave a lock back, or woke the actor.
    pub(crate) fn join_view(&mut self, actor: usize, other: &View) {
        if self.weak() {
            self.hands[actor].view.seen.join(&other.seen);
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
