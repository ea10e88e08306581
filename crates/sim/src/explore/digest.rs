//! A number for a state: executions that are in the same state have the same future, so a search looks at it once.
//!
//! A state is what its future depends on, and no more:
//!
//! | part | as |
//! | --- | --- |
//! | table words, variables, frames | values, and who wrote a word last |
//! | what translation caches may hold | writes of entries since the oldest moment that somebody may have cached, in order, with each vCPU's invalidations among them |
//! | actors | the history of the answers they got: an actor is a function of it |
//! | the primary MMU and memslots | the order of the operations on them |
//! | vCPUs, store buffers, locks, queues, grace periods | as they are |
//! | the checker's account | as it is |
//!
//! Writes of different entries of one level are brought into one order where nobody was invalidated in between: no walk uses two
//! entries of a level. Under weak memory the whole history counts.
//!
//! What actors share beside operations (Rust data behind an `Rc`) is a function of their answers *and* of the order in which they ran.
//! Unless a scenario says that there is nothing of the kind ([`Sharing::Operations`]), that order counts too.
//!
//! States are compared by 64 bits. In a search through a million of them the odds that any two are taken for one are about one to
//! forty million.

use std::hash::{Hash, Hasher};

use super::guest::Guest;
use super::lab::{Lab, Pending};
use super::limits::{Hardware, Sharing};
use super::memory::MemoryOrder;
use super::words::{Moment, Words, Write};
use crate::arch::Arch;
use mmu_core::{Format, Level};

const FIRST: u64 = 0x9e37_79b9_7f4a_7c15;
const SECOND: u64 = 0xd1b5_4a32_d192_ed03;

/// Two numbers as one: the product of both, folded.
#[inline]
pub(crate) fn mixed(one: u64, two: u64) -> u64 {
    let wide = u128::from(one ^ FIRST).wrapping_mul(u128::from(two ^ SECOND));
    wide as u64 ^ (wide >> 64) as u64
}

/// Mixes numbers one after another. It is a hasher too, for what derives [`Hash`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mix(u64);

impl Mix {
    pub(crate) const fn new() -> Self {
        Self(0x2545_f491_4f6c_dd1d)
    }
    #[inline]
    pub(crate) fn add(&mut self, word: u64) {
        self.0 = mixed(self.0, word);
    }
}

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.add(u64::from_le_bytes(word));
        }
        self.add(bytes.len() as u64);
    }
    fn write_u8(&mut self, n: u8) {
        self.add(n.into());
    }
    fn write_u16(&mut self, n: u16) {
        self.add(n.into());
    }
    fn write_u32(&mut self, n: u32) {
        self.add(n.into());
    }
    fn write_u64(&mut self, n: u64) {
        self.add(n);
    }
    fn write_usize(&mut self, n: usize) {
        self.add(n as u64);
    }
    fn write_isize(&mut self, n: isize) {
        self.add(n as u64);
    }
}

/// The digest of one value.
pub(crate) fn of(value: &impl Hash) -> u64 {
    let mut mix = Mix::new();
    value.hash(&mut mix);
    mix.finish()
}

/// Values whose order does not matter.
fn unordered<T: Hash>(values: impl IntoIterator<Item = T>) -> u64 {
    values.into_iter().fold(0, |sum: u64, value| sum.wrapping_add(of(&value)))
}

/// Writes of entries that somebody may still have cached what they replaced: the earliest first, with the moments they had.
struct Past(Vec<(Moment, Level, Write)>);

impl Past {
    fn since(words: &Words, oldest: Moment, root: Level) -> Self {
        let log = words.log().iter().enumerate().skip(oldest as usize);
        let entries = log.filter_map(|(moment, &write)| {
            let level = words.frame(words.address(write.at)).map(|frame| frame.level);
            let level = level.filter(|&level| level <= root && write.len > 0)?;
            Some((moment as Moment, level, write))
        });
        Self(entries.collect())
    }

    /// How many of the writes were before a moment.
    fn rank(&self, moment: Moment) -> u64 {
        self.0.partition_point(|&(at, ..)| at < moment) as u64
    }

    /// The writes, in an order that is the same for all that only differ by exchanging what nobody can tell apart. `marks` are the moments of
    /// invalidations: no write is moved over one.
    fn ordered(&self, marks: &[Moment]) -> Vec<Write> {
        let mut ordered: Vec<(Level, Write)> = Vec::with_capacity(self.0.len());
        let mut begin = 0;
        let mut last = 0;
        for &(moment, level, write) in &self.0 {
            if marks.iter().any(|&mark| last < mark && mark <= moment) {
                begin = ordered.len();
            }
            last = moment;
            let apart = |one: &Write| one.at + one.len <= write.at || write.at + write.len <= one.at;
            let mut place = ordered.len();
            while place > begin
                && ordered[place - 1].0 == level
                && apart(&ordered[place - 1].1)
                && ordered[place - 1].1.at > write.at
            {
                place -= 1;
            }
            ordered.insert(place, (level, write));
        }
        ordered.into_iter().map(|(_, write)| write).collect()
    }
}

impl<A: Arch> Lab<A> {
    /// The digest of the state that everything is in, between two steps.
    pub(crate) fn state(&self) -> u64 {
        let mut mix = Mix::new();
        mix.add(self.words.digest());
        for frame in self.words.frames() {
            let place = (frame.life as u64) << 32 | u64::from(frame.extra);
            for word in [place, frame.parent.raw(), frame.gpa] {
                mix.add(word);
            }
        }
        mix.add(self.words.authors());
        self.mix_caches(&mut mix);
        self.mix_actors(&mut mix);
        self.mix_waits(&mut mix);
        self.mix_account(&mut mix);
        mix.finish()
    }

    /// What an execution has come to: memory, and what every actor was told. It does not depend on the order of steps that commute.
    pub(crate) fn outcome(&self) -> u64 {
        let mut mix = Mix::new();
        mix.add(self.words.digest());
        for hand in &self.hands {
            mix.add(hand.answers);
            mix.add(hand.finished.into());
        }
        mix.add(self.broken.as_ref().map_or(0, |broken| broken.invariant as u64 + 1));
        mix.finish()
    }

    /// What vCPUs are about to do, and what they may have cached.
    fn mix_caches(&self, mix: &mut Mix) {
        if self.memory == MemoryOrder::Weak {
            for write in self.words.log() {
                (write.at, write.len, write.new, write.agent).hash(mix);
            }
            for guest in &self.guests {
                guest.mix(mix, u64::from);
            }
            return;
        }
        let mut marks: Vec<Moment> = self.guests.iter().flat_map(Guest::marks).collect();
        if self.limits.hardware == Hardware::KeepsInvalidated {
            marks.push(self.start);
        }
        let past = match marks.iter().min() {
            Some(&oldest) => Past::since(&self.words, oldest, self.format.geometry().root()),
            None => Past(Vec::new()),
        };
        for write in past.ordered(&marks) {
            (write.at, write.len, write.old, write.new).hash(mix);
        }
        for guest in &self.guests {
            guest.mix(mix, |moment| past.rank(moment));
        }
    }

    fn mix_actors(&self, mix: &mut Mix) {
        for hand in &self.hands {
            mix.add(hand.answers);
            mix.add(hand.waited << 1 | u64::from(hand.finished));
            match hand.pending {
                // Which one follows from the answers.
                Pending::Op(_) => mix.add(1),
                Pending::Flight(left) => (2, left).hash(mix),
                Pending::Grace(number) => {
                    (3, self.graces.iter().position(|grace| grace.number == number)).hash(mix);
                }
                Pending::Asleep => mix.add(4),
                Pending::Awake => mix.add(5),
                Pending::Guest(vcpu) => (6, vcpu.0).hash(mix),
                Pending::Nothing => mix.add(7),
            }
            hand.buffer.hash(mix);
            self.mix_view(mix, &hand.view);
        }
        if self.limits.sharing == Sharing::Memory {
            mix.add(self.turns);
        }
    }

    fn mix_view(&self, mix: &mut Mix, view: &impl Hash) {
        if self.memory == MemoryOrder::Weak {
            view.hash(mix);
        }
    }

    fn mix_waits(&self, mix: &mut Mix) {
        for lock in &self.locks {
            mix.add(lock.writer.map_or(0, |writer| u64::from(writer) + 1));
            mix.add(unordered(&lock.readers));
            self.mix_view(mix, &lock.view);
        }
        self.queues.hash(mix);
        for grace in &self.graces {
            (grace.waits_for, &grace.frames, grace.subtree).hash(mix);
        }
        self.mix_view(mix, &self.sc_view);
        self.mix_view(mix, &self.rcu_view);
        (self.root, self.generation, self.vars_made, self.yielded).hash(mix);
        (self.ticks, self.failures, self.store_failures, self.modification_log).hash(mix);
        mix.add(self.order);
    }

    fn mix_account(&self, mix: &mut Mix) {
        self.counters.hash(mix);
        self.ghost.mix(mix);
        self.promises.mix(mix);
        self.tally.mix(mix);
    }
}

impl Mix {
    /// Adds values whose order does not matter.
    pub(crate) fn add_unordered<T: Hash>(&mut self, values: impl IntoIterator<Item = T>) {
        self.add(unordered(values));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mmu_core::Hpa;

    #[test]
    fn numbers_are_told_apart_by_value_and_by_order() {
        let digest = |words: &[u64]| {
            let mut mix = Mix::new();
            for &word in words {
                mix.add(word);
            }
            mix.finish()
        };
        assert_ne!(digest(&[1, 2]), digest(&[2, 1]));
        assert_ne!(digest(&[0]), digest(&[0, 0]));
        assert_eq!(unordered([1_u64, 2, 3]), unordered([3_u64, 1, 2]));
        let many: std::collections::BTreeSet<u64> = (0..100_000).map(|n| digest(&[n])).collect();
        assert_eq!(many.len(), 100_000);
    }

    #[test]
    fn writes_of_one_level_are_exchanged_but_not_over_an_invalidation() {
        let mut words = Words::new(Hpa::new(1 << 36), 1);
        let (top, low) = (words.alloc(Level::new(1), 512), words.alloc(Level::LAST, 512));
        let write = |words: &mut Words, at: Hpa| words.write(at, 1, 0x11, 0);
        let order = |first: [Hpa; 2], mark: Option<Moment>| {
            let mut words = words.clone();
            for at in first {
                write(&mut words, at);
            }
            let past = Past::since(&words, 0, Level::new(3));
            past.ordered(&mark.into_iter().collect::<Vec<_>>())
        };
        let places = |writes: Vec<Write>| writes.iter().map(|write| write.at).collect::<Vec<_>>();
        assert_eq!(places(order([low, low + 8], None)), places(order([low + 8, low], None)));
        assert_ne!(places(order([low, low + 8], Some(1))), places(order([low + 8, low], Some(1))));
        assert_ne!(places(order([top, low], None)), places(order([low, top], None)), "a walk may use both");
    }
}
