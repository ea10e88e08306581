//! Engine, vCPUs, hypervisor protocols, checker and workloads of the mmusim simulator.

pub mod arch;
pub mod checker;
pub mod engine;
pub mod events;
pub mod experiment;
pub mod explore;
pub mod protocols;
pub mod reproduce;
pub mod rng;
pub mod selftests;
pub mod snapshot;
pub mod tlb_replay;
pub mod workload;

/// Rises whenever any statistic of an unchanged experiment may change; results carry it. The CHANGELOG says what changed.
pub const MODEL_VERSION: u32 = 2;
