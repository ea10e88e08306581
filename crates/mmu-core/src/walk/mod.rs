//! The hardware walker: one engine for all formats, one reference at a time.
//!
//! [`WalkCursor`] walks one stage, [`NestedCursor`] two. `step()` makes exactly one reference to memory (a read, or
//! the compare-and-swap that sets accessed and dirty flags) and says which, so that the timed engine can charge it and
//! the explorer can run somebody else in between. Formats decide what an entry means ([`Format::entry`](crate::Format::entry)); this module
//! owns order, addresses, the path that is updated, and the re-walk when an update finds a changed word.
//!
//! Deliberately not here: TLB look-up (the vCPU's), latency (the engine's), control registers (the format's value).

mod cursor;
mod nested;

pub(crate) use cursor::translation;
pub use cursor::{Step, WalkCursor, walk};
pub use nested::{CachedTable, NestedCursor, NestedFault, NestedStep, NoCaches, WalkCacheSet};

use std::fmt;

use crate::addr::{Gpa, Hpa, Level, PageSize};
use crate::memory::TableMemory;
use crate::tlb::Perms;

/// Which stage of translation a reference belongs to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Stage {
    /// Guest-virtual to guest-physical.
    One,
    /// Guest-physical to host-physical.
    Two,
}

/// Memory as a walker sees it.
pub trait Bus {
    /// Reads the table word at `at`.
    ///
    /// # Errors
    /// When nothing answers there.
    fn read(&mut self, at: Hpa) -> Result<u64, BusError>;
    /// The table memory that answers all of [`Bus::read`], where there is one and nobody can tell whether a word was read twice:
    /// a walk may then look around in it before it makes its references.
    #[inline]
    fn memory(&self) -> Option<&TableMemory> {
        None
    }
    /// Replaces the word at `at` by `new` if it still is `old`.
    ///
    /// # Errors
    /// When nothing answers there.
    fn cmpxchg(&mut self, at: Hpa, old: u64, new: u64) -> Result<Exchange, BusError>;
    /// Reads the first-stage table word at `gpa`, which the second stage put at `at`.
    ///
    /// # Errors
    /// When nothing answers there.
    fn read_guest(&mut self, _gpa: Gpa, at: Hpa) -> Result<u64, BusError> {
        self.read(at)
    }
    /// Like [`Bus::cmpxchg`] for a first-stage word.
    ///
    /// # Errors
    /// When nothing answers there.
    fn cmpxchg_guest(&mut self, _gpa: Gpa, at: Hpa, old: u64, new: u64) -> Result<Exchange, BusError> {
        self.cmpxchg(at, old, new)
    }
}

/// Outcome of a compare-and-swap.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Exchange {
    /// The word was as expected and now is the new one.
    Done,
    /// The word was something else and stays so.
    Found(u64),
}

/// No memory at this address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BusError {
    /// The address.
    pub at: Hpa,
}

impl fmt::Display for BusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no memory at {}", self.at)
    }
}
impl std::error::Error for BusError {}

/// A finished walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// The output address of the access.
    pub output: Hpa,
    /// Size of the page it lies in: what a TLB entry may cover.
    pub size: PageSize,
    /// What the translation allows from now on.
    pub perms: Perms,
    /// Level of the leaf.
    pub level: Level,
    /// The leaf's word after the walk's update.
    pub raw: u64,
}

impl Translation {
    /// First byte of the page.
    pub const fn page(&self) -> Hpa {
        self.output.align_down(self.size)
    }
}

/// One reference to a table word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reference {
    /// Stage whose table it is.
    pub stage: Stage,
    /// Level of the entry.
    pub level: Level,
    /// Where the word is in host-physical memory.
    pub at: Hpa,
    /// The word read (or the word an update wrote).
    pub raw: u64,
}
