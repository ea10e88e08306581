//! The engine: time, parallel vCPUs, host actors and what they share.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `sim` | windows, the parallel phase, the host phase, actors in time order |
//! | `op` | micro-operations as values |
//! | `host` | the handle that protocol code awaits them on |
//! | `world`, `bulk`, `upkeep`, `age` | what each operation does and costs; operations on runs; aging |
//! | `vcpu`, `walk` | guest accesses, TLB look-ups, exits; walks |
//! | `guest` | the guest's own page tables, filled on first touch |
//! | `primary` | the primary MMU: mappings, host pages, memslots, and their operations |
//! | `cleanliness` | which host pages were cleaned to the point of coherency |
//! | `processors` | host processors that several actors share |
//! | `dirty` | bitmaps and the processor's log of modified pages |
//! | `lock`, `wait`, `rcu`, `flight` | lock and wait queues, grace periods, flushes in the air |
//! | `srcu` | sleepable RCU out of variables |
//! | `tap` | recording of what passes between actors and the engine |
//! | `costs` | the machine's figures in cycles |

mod age;
mod bulk;
mod cleanliness;
mod costs;
mod dirty;
mod flight;
mod guest;
mod host;
mod lock;
mod op;
mod primary;
mod processors;
mod rcu;
mod sim;
mod stretches;
mod upkeep;
mod tap;
mod srcu;
pub(crate) mod vcpu;
mod wait;
mod walk;
pub(crate) mod world;

pub(crate) use age::is_young;
pub use cleanliness::{Cleanliness, GuestCaches};
pub use costs::Costs;
pub(crate) use dirty::words_at;
pub use dirty::{DirtyOp, MODIFICATION_LOG_ENTRIES};
pub use guest::{GuestError, GuestPaging, GuestShare, GuestTables};
pub use host::{AgeBelowDone, AgeDone, Cmpxchg, EntryRun, Host};
pub use lock::{LockKind, LockStats};
pub use op::*;
pub use primary::*;
pub use rcu::RcuStats;
pub use upkeep::Upkeep;
pub use sim::{ActorFuture, Sim, Stopped, Threads};
pub use srcu::SrcuIndex;
pub use vcpu::{Exit, ExitReason, GuestFault, Vcpu, VcpuStats, Watch};
pub use world::{ActorStats, HostCounters, Runs, World};
