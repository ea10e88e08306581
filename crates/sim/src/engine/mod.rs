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
//! | `backing` | the primary MMU's pages |
//! | `cleanliness` | which of them were cleaned to the point of coherency |
//! | `processors` | host processors that several actors share |
//! | `release` | whether the page behind a leaf that goes is still there |
//! | `lock`, `wait`, `rcu`, `flight` | lock and wait queues, grace periods, flushes in the air |
//! | `tap` | recording of what passes between actors and the engine |
//! | `costs` | the machine's figures in cycles |

mod age;
mod backing;
mod bulk;
mod cleanliness;
mod costs;
mod flight;
mod guest;
mod host;
mod lock;
mod op;
mod processors;
mod rcu;
mod release;
mod sim;
mod stretches;
mod upkeep;
mod tap;
pub(crate) mod vcpu;
mod wait;
mod walk;
pub(crate) mod world;

pub(crate) use age::is_young;
pub use backing::{Backed, Backing};
pub use cleanliness::{Cleanliness, GuestCaches};
pub use costs::Costs;
pub use guest::{GuestError, GuestPaging, GuestShare, GuestTables};
pub use host::{AgeBelowDone, AgeDone, Cmpxchg, EntryRun, Host};
pub use lock::{LockKind, LockStats};
pub use op::*;
pub use rcu::RcuStats;
pub use upkeep::Upkeep;
pub use sim::{ActorFuture, Sim, Stopped, Threads};
pub use vcpu::{Exit, ExitReason, GuestFault, Vcpu, VcpuStats, Watch};
pub use world::{ActorStats, HostCounters, Runs, World};
