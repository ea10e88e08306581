//! The state of a running test.

use super::test::{Invalidation, Loc};

/// Everything that the future depends on.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct State {
    pub(crate) words: Vec<u64>,
    pub(crate) threads: Vec<Running>,
    /// Invalidations on their way, sorted.
    pub(crate) pending: Vec<Pending>,
}

/// An invalidation that `target` has not performed yet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Pending {
    pub(crate) issuer: u8,
    pub(crate) target: u8,
    pub(crate) what: Invalidation,
}

/// A processor and its thread.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Running {
    pub(crate) pc: u8,
    pub(crate) asid: u16,
    pub(crate) vmid: u16,
    pub(crate) regs: Vec<Option<u64>>,
    /// Operations that have faulted, one bit each.
    pub(crate) faults: u64,
    /// Stores that have not reached memory, oldest first.
    pub(crate) buffer: Vec<Buffered>,
    /// The word that an exclusive load has marked and nobody has written since.
    pub(crate) monitor: Option<Loc>,
    pub(crate) flight: Flight,
    /// What is cached, sorted.
    pub(crate) tlb: Vec<Cached>,
}

/// How far the current operation has come.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Flight {
    /// Not begun.
    None,
    /// Translated: it will access this word, whatever becomes of the entry.
    Translated(Loc),
    /// Defective hardware has read an entry and is going to write it; then it goes on to the page, or looks again.
    HalfUpdated { entry: Loc, old: u64, new: u64, page: Option<Loc> },
}

/// An element of a store buffer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Buffered {
    Store {
        loc: Loc,
        value: u64,
        release: bool,
    },
    /// Nothing behind it reaches memory before what is in front of it.
    Barrier,
}

/// What a TLB holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Cached {
    pub(crate) asid: u16,
    pub(crate) vmid: u16,
    pub(crate) what: Entry,
}

/// A cached entry or translation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Entry {
    /// A valid table pointer.
    Table(u8),
    /// A leaf entry of stage 1.
    Leaf { va: u8, word: u64 },
    /// An entry of stage 2; it has no ASID, which is 0 here.
    Second { page: u32, word: u64 },
    /// Both stages at once.
    Combined { va: u8, one: u64, two: u64 },
}

/// What a condition at the end is asked of.
pub(crate) trait Final {
    /// Every word of memory.
    fn words(&self) -> &[u64];
    /// The registers of a thread, and which of its operations have faulted, one bit each.
    fn thread(&self, number: usize) -> (&[Option<u64>], u64);
}

impl Final for State {
    fn words(&self) -> &[u64] {
        &self.words
    }
    fn thread(&self, number: usize) -> (&[Option<u64>], u64) {
        let running = &self.threads[number];
        (&running.regs, running.faults)
    }
}

impl State {
    /// Adds an invalidation in its place.
    pub(crate) fn send(&mut self, pending: Pending) {
        let at = self.pending.partition_point(|other| *other < pending);
        self.pending.insert(at, pending);
    }
}

impl Running {
    /// Caches something.
    pub(crate) fn cache(&mut self, entry: Cached) {
        let at = self.tlb.partition_point(|other| *other < entry);
        if self.tlb.get(at) != Some(&entry) {
            self.tlb.insert(at, entry);
        }
    }

    /// What a load of `loc` finds in the buffer.
    pub(crate) fn forwarded(&self, loc: Loc) -> Option<u64> {
        self.buffer.iter().rev().find_map(|buffered| match *buffered {
            Buffered::Store { loc: other, value, .. } if other == loc => Some(value),
            _ => None,
        })
    }

    /// Whether a store of the buffer may reach memory next.
    pub(crate) fn may_drain(&self, index: usize) -> bool {
        let Buffered::Store { loc, release, .. } = self.buffer[index] else { return false };
        self.buffer[..index].iter().all(|earlier| match *earlier {
            Buffered::Barrier => false,
            Buffered::Store { loc: other, .. } => other != loc && !release,
        })
    }
}
