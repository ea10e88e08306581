//! Exploration: the protocol functions of [`protocols`](crate::protocols), run adversarially.
//!
//! A timed run sees one order of events. Here the order is a stream of decisions that somebody makes - a random generator, a search through all
//! of them, a file - and every step is held to the invariants. Nothing costs time; there are only states. The protocols are the same
//! functions: they perform operations on a [`Host`](crate::engine::Host), and behind it stands a laboratory instead of the timed world.
//!
//! ```text
//!  Scenario --build--> actors (the protocols' futures), vCPUs with a list of accesses
//!      |                   | Op
//!      v                   v
//!  Strategy --Chooser--> Lab: who makes the next step? --> perform | guest access | arrival at a vCPU | grace period
//!      ^                   |                                  |
//!      |                   | every write, release, unlock     v
//!      |                   '--------------------------> ghost: which invariant is broken?
//!      '--- trail of decisions <--- Failure: shrunk, as a table, as a file
//! ```
//!
//! | file | what it holds |
//! | --- | --- |
//! | `scenario`, `limits` | what a user writes: a small VM, vCPUs, actors; what bounds it |
//! | `decision` | decisions, agents, what steps touch; the trait of choosers |
//! | `choosers`, `depth_first` | ways to decide |
//! | `strategy`, `search`, `sample` | many executions, all or at random; reports |
//! | `digest` | what a state is, and when two are the same |
//! | `lab`, `perform`, `waiting`, `memory_ops`, `run` | the stage that actors perform on; what operations do; one execution |
//! | `words`, `memory` | tables with the history of each word; what loads may return |
//! | `guest` | vCPUs: walks, and what translation caches may hold |
//! | `ghost`, `sizes`, `endings`, `promises`, `tags`, `tally`, `invariant` | the checker: tables and pages, what protocols announce, tags, bounds; the invariants by name |
//! | `mutation` | steps of the host gone wrong, to test the checks |
//! | `traced` | executions for others to judge |
//! | `shrink`, `failure`, `file`, `render` | failures: made small, as tables, as files, in words |
//!
//! **What is decided**: who is next (an actor's operation, a guest's access, the arrival of a flush or a kick at a vCPU, the end of a grace period, the draining of a
//! store buffer; a lock goes to whoever is chosen of those that wait); which version of an entry a walk uses; whether an actor is told to
//! give way; whether an allocation fails; which value a weak load returns; whether the store of an exclusive pair fails.
//!
//! **What is not**: spurious fills of translation caches need no decisions (`guest` says why); an operation on a stretch of entries that map nothing is one step;
//! whoever spins, gives the processor away or takes a fault again does not go on before somebody else has made a step, if anybody can.
//! The guest runs without paging of its own: by-IPA invalidation of combined entries and exclusive pairs are the affair of the litmus
//! model in `mmu-explore`.

mod by_digest;
mod choosers;
mod deciding;
mod decision;
mod depth_first;
mod digest;
mod endings;
mod failure;
mod file;
mod ghost;
mod guest;
mod invariant;
mod lab;
mod limits;
mod memory;
mod memory_ops;
mod mutation;
mod perform;
mod promises;
mod render;
mod run;
mod sample;
mod scenario;
mod search;
mod shrink;
mod sizes;
mod strategy;
mod tags;
mod tally;
mod traced;
mod waiting;
mod words;

pub use choosers::Divergence;
pub use decision::{Actors, Agent, Chooser, Decision, Footprint, Kind, Point, Who, agents, nth};
pub use failure::Failure;
pub use file::{ReplayError, ReplayFile};
pub use invariant::{Broken, Evaluations, Invariant, UnknownInvariant};
pub use lab::Step;
pub use limits::{Hardware, Leaks, Limits, Sharing, Statistics, Wait, Waiters};
pub use memory::MemoryOrder;
pub use mutation::Mutation;
pub use scenario::{Build, Cast, Ended, LeafState, Scenario, SmallVm, access, read, write};
pub use strategy::{Budget, Explorable, Report, Shrinking, Stats, Strategy, UnknownStrategy, Verdict};
pub use traced::{Happened, Trace};
