//! The engine: time, parallel vCPUs, host actors and what they share.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `sim` | windows, the parallel phase, the host phase, actors in time order |
//! | `op` | micro-operations as values |
//! | `host` | the handle that protocol code awaits them on |
//! | `world`, `bulk` | what each operation does and costs; operations on runs |
//! | `vcpu`, `walk` | guest accesses, TLB look-ups, exits; walks |
//! | `guest` | the guest's own page tables, filled on first touch |
//! | `backing` | the primary MMU's pages |
//! | `lock`, `wait`, `rcu`, `flight` | lock and wait queues, grace periods, flushes in the air |
//! | `costs` | the machine's figures in cycles |

mod backing;
mod bulk;
mod costs;
mod flight;
mod guest;
mod host;
mod lock;
mod op;
mod rcu;
mod sim;
pub(crate) mod vcpu;
mod wait;
mod walk;
pub(crate) mod world;

pub use backing::{Backed, Backing};
pub use costs::Costs;
pub use guest::{GuestError, GuestPaging, GuestShare, GuestTables};
pub use host::{Cmpxchg, EntryRun, Host};
pub use lock::{LockKind, LockStats};
pub use op::*;
pub use rcu::RcuStats;
pub use sim::{ActorFuture, Sim, Stopped, Threads};
pub use vcpu::{Exit, ExitReason, GuestFault, Vcpu, VcpuStats, Watch};
pub use world::{ActorStats, HostCounters, Runs, World};
