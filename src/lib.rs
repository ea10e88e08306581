//! A cycle-level simulator of second-stage page tables - x86 EPT, Arm stage 2, POWER radix - with the hypervisor's side:
//! what does a protocol cost the vCPUs that run on the tables, and is it right?
//!
//! This crate holds nothing of its own but [`arch`], which turns a described machine into formats. What it re-exports:
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`core`] | the trait of formats, addresses, table memory, walkers, TLBs, machine descriptions |
//! | [`x86`], [`arm64`], [`power`] | the formats, bit by bit |
//! | [`sim`] | the engine, host protocols, checker, workloads, experiments |
//! | [`trace`] | readers and writers of memory traces |
//! | [`vectors`] | replaying translations that emulators recorded |
//! | [`predict`] | latency curves from a machine's sheet |
//! | [`explore`] | exhaustive exploration, page-table litmus tests, the protocol lint |
//!
//! The names that most programs need are at the root.
//!
//! ```
//! use mmusim::{ByteUnits, Bytes, Cycles, GuestPaging, Machine, PageSize, Platform, Populate, Seed, Threads, VmSpec};
//! use mmusim::{Workload, ZapRequest, arch, compare_zap, strategies};
//!
//! let machine = Machine::builtin("intel-granite-rapids-host").map_err(|errors| errors[0].clone())?;
//! let memory = Bytes(16.MiB());
//! let platform = Platform::new(arch::x86(&machine, memory)?, &machine);
//! let vm = VmSpec {
//!     memory,
//!     vcpus: 2,
//!     page: PageSize::SIZE_4K,
//!     guest: GuestPaging::Flat,
//!     populate: Populate::Mapped,
//!     workload: Workload::Idle,
//!     seed: Seed(1),
//! };
//! let request = ZapRequest { range: memory, after: Cycles(1000) };
//! let report = compare_zap(&platform, &vm, request, &strategies(), Threads::One, || {})?;
//! assert!(report.rows.iter().all(|row| row.zap_cycles > Cycles::ZERO));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod arch;

/// The README's example is a doctest.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

/// So is the protocol that CONTRIBUTING shows.
#[cfg(doctest)]
#[doc = include_str!("../CONTRIBUTING.md")]
mod contributing {}

pub use arch_arm64_s2 as arm64;
pub use arch_ppc_radix as power;
pub use arch_x86_ept as x86;
pub use mmu_core as core;
pub use mmu_explore as explore;
pub use mmu_predict as predict;
pub use mmu_sim as sim;
pub use mmu_trace as trace;
pub use mmu_vectors as vectors;

pub use mmu_core::machine::{Machine, MachineError};
pub use mmu_core::{
    Access, AccessKind, AddrRange, ByteUnits, Bytes, Cycles, Format, Geometry, Gfn, Gpa, GpaRange, Gva, Hpa, HpaRange,
    Hva, HvaRange, Level, PageSize, Perms, Pfn,
};
pub use mmu_sim::arch::{Arch, Arch2};
pub use mmu_sim::engine::{GuestPaging, Threads};
pub use mmu_sim::experiment::zap::{
    RunError, Spread, Strategy, Target, ZapReport, ZapRequest, ZapRow, compare_zap, strategies,
};
pub use mmu_sim::experiment::{BuildError, Platform, Populate, VmSpec};
pub use mmu_sim::rng::Seed;
pub use mmu_sim::workload::{Mix, PatternSpec, TraceSpec, Workload};
pub use mmu_trace::{ReadOptions, TraceError, TraceReader};
