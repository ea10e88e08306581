//! The engine: time, parallel vCPUs, host actors and what they share.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `sim` | windows, the parallel phase, the host phase, actors in time order |
//! | `op` | micro-operations as values |
//! | `bed` | what shared state is made on before a run |
//! | `host` | the handle that protocol code awaits them on |
//! | `world`, `bulk`, `alike`, `upkeep`, `age`, `rest` | what each operation does and costs; operations on runs, on subtrees; aging; entries of all kinds |
//! | `slices`, `pace` | many time slices of a walk at once; how far a walk gets in each |
//! | `reach` | how the host reaches vCPUs: flushes, kicks, entering the guest |
//! | `vcpu`, `walk`, `requests` | guest accesses, TLB look-ups, exits; walks; what the host asks of a vCPU |
//! | `actor`, `counters` | what is kept of an actor; what the host counts |
//! | `guest` | the guest's own page tables, filled on first touch |
//! | `primary` | the primary MMU: mappings, host pages, memslots, and their operations |
//! | `cleanliness` | which host pages were cleaned to the point of coherency |
//! | `processors` | host processors that several actors share |
//! | `dirty` | bitmaps and the processor's log of modified pages |
//! | `lock`, `wait`, `rcu`, `flight` | lock and wait queues, grace periods, flushes in the air |
//! | `srcu` | sleepable RCU out of variables |
//! | `tap` | recording of what passes between actors and the engine |
//! | `probe` | accesses whose data counts, for judges |
//! | `results` | what a simulation has come to |
//! | `phases` | where the wall time of a run goes |
//! | `replies`, `state` | what actors were answered; the state of everything, to be written and read |
//! | `costs` | the machine's figures in cycles |

mod actor;
mod age;
mod alike;
mod bed;
mod bulk;
mod cleanliness;
mod costs;
mod counters;
mod crew;
mod dirty;
mod flight;
mod guest;
mod host;
mod lock;
mod op;
mod pace;
mod phases;
mod premapped;
mod primary;
mod probe;
mod processors;
mod rcu;
mod reach;
mod replies;
mod requests;
mod rest;
mod results;
mod sim;
mod slices;
mod srcu;
mod state;
mod stretches;
mod tap;
mod timed;
mod upkeep;
pub(crate) mod vcpu;
mod wait;
mod walk;
pub(crate) mod world;

pub(crate) use actor::ActorState;
pub use actor::ActorStats;
pub(crate) use age::is_young;
pub use bed::Bed;
pub use cleanliness::{Cleanliness, GuestCaches};
pub use costs::Costs;
pub use counters::HostCounters;
pub(crate) use dirty::words_at;
pub use dirty::{DirtyOp, MODIFICATION_LOG_ENTRIES};
pub use guest::{GuestError, GuestPaging, GuestShare, GuestTables};
pub(crate) use host::Stage;
pub use host::{AgeBelowDone, AgeDone, Cmpxchg, EntryRun, GiveWay, Host, RestDone};
pub use lock::{LockKind, LockStats};
pub use op::*;
pub use phases::PhaseTimes;
pub use premapped::{Premapped, TEST_MEMORY};
pub use primary::*;
pub use probe::{Content, Data, FlagWrites, Probe, Probed};
pub use rcu::RcuStats;
pub use sim::{ActorFuture, Sim, Stopped, Threads};
pub use srcu::SrcuIndex;
pub(crate) use state::{Misfit, Sink, Source};
pub use upkeep::{Announced, OwnCaches, Tagged, Upkeep};
pub use vcpu::{Exit, ExitReason, GuestFault, Vcpu, VcpuStats, Watch};
pub(crate) use wait::WaitQueues;
pub use world::{Runs, World};
