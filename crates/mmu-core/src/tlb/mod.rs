//! Translation caches: TLBs, paging-structure caches, nested TLB, and the reference-latency cache beside them.
//!
//! # Design
//!
//! Everything here stands on one structure ([`crate::assoc::SetAssoc`]), one key ([`TlbKey`]) and one function that
//! decides whose entry it is, so that a look-up can never find what an invalidation misses. Three things are cached,
//! each with its own tags and its own rules of invalidation ([`Kind`]): *linear* results (first stage only),
//! *guest-physical* ones (second stage only) and *combined* ones. Entries say nothing about architectures; formats put
//! their words into [`Perms`] and their instructions into [`Invalidate`].
//!
//! * [`Tlb`]: two levels of [`TlbArray`]s from the machine description;
//! * [`PscSet`]: tables by level, so that walks start deep;
//! * [`TranslationCaches`]: both, with the nested TLB, as one hardware thread has them;
//! * [`LatencyCache`]: what a reference costs, by residency.
//!
//! # Not here
//!
//! Permission checks (the caller's, on the entry: a denied access and a clean page under a store are its business),
//! walks ([`crate::walk`]), time. Spurious fills are the explorer's: it calls [`Tlb::fill`] whenever it likes. An array
//! holds one version of a page per key; an explorer that needs several stale versions of one address keeps them
//! itself, or uses one set of caches per version.

mod array;
mod caches;
mod entry;
mod exclusive;
mod hierarchy;
mod invalidate;
mod key;
mod latency;
mod perms;
mod psc;
mod saved;
mod sole;
mod spec;

pub use array::TlbArray;
pub use caches::{CachesSpec, Removed, TranslationCaches, WalkCaches};
pub use entry::{Reach, TlbEntry};
pub use hierarchy::{Inclusion, LevelArray, Lookup, Tlb, TlbSpec};
pub use invalidate::{AsidScope, Globals, Invalidate, TableCaches};
pub use key::{Asid, CombinedByGpa, Input, Kind, RootId, Stage2Tag, Tag, TagRules, TlbKey, Vmid};
pub use latency::{CacheLevelSpec, CacheSpec, Fill, LatencyCache, Served, ServedBy};
pub use perms::Perms;
pub use psc::{PscLevelSpec, PscSet, PscSpec, PscStats};
pub use spec::{ArrayError, ArraySpec, ArrayStats, Coalesce, LargerPages, Port};
