//! Engine, vCPUs, hypervisor protocols, checker and workloads of the mmusim simulator.

pub mod arch;
pub mod checker;
pub mod engine;
pub mod experiment;
pub mod protocols;
pub mod rng;
pub mod workload;
