//! KVM's own tests as workloads: the same names, options, phases and assertions, on simulated machines.
//!
//! One file each: `Options` named after the test's options, and `run`. What a kernel test asserts is a [`Check`] of the report; what it
//! prints in seconds is a [`Phase`].
//!
//! | file | test |
//! | --- | --- |
//! | `access_tracking_perf` | `access_tracking_perf_test` |
//! | `demand_paging` | `demand_paging_test` |
//! | `dirty_log` | `dirty_log_test` |
//! | `dirty_log_perf` | `dirty_log_perf_test` |
//! | `dirty_log_page_splitting` | `dirty_log_page_splitting_test` |
//! | `memslot_modification` | `memslot_modification_stress_test` |
//! | `memslot_perf` | `memslot_perf_test` |
//! | `page_table` | `kvm_page_table_test` |
//! | `pre_fault` | `pre_fault_memory_test` |
//! | `block_transitions` | `stage2_block_transitions` |
//! | `max_guest_memory` | `max_guest_memory_test` |
//! | `mmu_stress` | `mmu_stress_test` |
//! | `nx_huge_pages` | `nx_huge_pages_test` |
//! | `nx_huge_pages_perf` | `nx_huge_pages_perf_test` |
//!
//! `phases` is what tests with several phases have in common: vCPU threads that wait for the main thread and the other way round.

pub mod access_tracking_perf;
pub mod block_transitions;
pub mod demand_paging;
mod dirty_bed;
pub mod dirty_log;
pub mod dirty_log_page_splitting;
pub mod dirty_log_perf;
pub mod max_guest_memory;
pub mod memslot_modification;
pub mod memslot_perf;
pub mod mmu_stress;
pub mod nx_huge_pages;
pub mod nx_huge_pages_perf;
pub mod page_table;
pub mod phases;
pub mod pre_fault;

use std::collections::BTreeMap;
use std::fmt;

use mmu_core::{Cycles, Format, Gpa, Gva, Level, PageSize};
use serde::Serialize;

use crate::arch::Arch;
use crate::checker::Violation;
use crate::engine::{GuestPaging, HostCounters, Sim, Stopped, TEST_MEMORY};
use crate::experiment::{BuildError, Platform};

/// What a test did and found.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct SelftestReport {
    /// Name of the test, as KVM has it.
    pub test: &'static str,
    /// The architecture.
    pub arch: &'static str,
    /// Name of the machine.
    pub machine: String,
    /// Its clock in hertz.
    pub clock_hz: u64,
    /// The phases in order.
    pub phases: Vec<Phase>,
    /// What the test asserts.
    pub checks: Vec<Check>,
    /// Figures of the whole test beyond the phases: name (with its unit) and value.
    pub figures: BTreeMap<String, f64>,
}

/// A stretch of a test that is timed by itself.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Phase {
    /// What happens in it.
    pub name: String,
    /// How long it took.
    pub cycles: Cycles,
    /// What the host did in it.
    pub host: HostCounters,
}

/// One assertion of a test.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Check {
    /// What should hold, with the figures that decide it.
    pub what: String,
    /// Whether it does.
    pub held: bool,
}

impl SelftestReport {
    /// A report without phases yet.
    pub fn new<A: Arch>(test: &'static str, platform: &Platform<A>) -> Self {
        Self {
            test,
            arch: platform.arch.name(),
            machine: platform.machine.clone(),
            clock_hz: platform.clock_hz,
            phases: Vec::new(),
            checks: Vec::new(),
            figures: BTreeMap::new(),
        }
    }

    /// Simulated seconds of so many cycles on this machine.
    pub fn seconds(&self, cycles: Cycles) -> f64 {
        cycles.0 as f64 / self.clock_hz as f64
    }

    /// Adds an assertion.
    pub(super) fn check(&mut self, held: bool, what: impl Into<String>) {
        self.checks.push(Check { what: what.into(), held });
    }

    /// The assertions that do not hold.
    pub fn failed(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| !check.held)
    }
}

/// Why a test could not be run to its end.
#[derive(Debug)]
pub enum SelftestError {
    /// The VM cannot be built.
    Build(BuildError),
    /// An option that the test or the architecture has no use for.
    Option {
        /// The option and its value.
        option: String,
        /// What is wrong, and the remedy.
        what: String,
    },
    /// The test has no meaning on this architecture.
    Architecture {
        /// Where it was asked for.
        arch: &'static str,
        /// Why not, and where it has.
        what: String,
    },
    /// Everybody waits for somebody.
    Deadlock(Stopped),
    /// A vCPU could not go on.
    Guest(String),
    /// An invariant was violated.
    Violations(Vec<Violation>),
}

impl fmt::Display for SelftestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SelftestError::Build(error) => error.fmt(f),
            SelftestError::Option { option, what } => write!(f, "{option}: {what}"),
            SelftestError::Architecture { arch, what } => write!(f, "not on {arch}: {what}"),
            SelftestError::Deadlock(stopped) => write!(f, "the test hangs: {stopped:?}"),
            SelftestError::Guest(what) => f.write_str(what),
            SelftestError::Violations(found) => {
                write!(f, "{} violations, the first: {:?}", found.len(), found.first())
            }
        }
    }
}
impl std::error::Error for SelftestError {}

impl From<BuildError> for SelftestError {
    fn from(error: BuildError) -> Self {
        SelftestError::Build(error)
    }
}

/// Where the time of a whole run went, all threads and vCPUs together, as figures named `time of ..`: what a reproduction sets side by side.
fn factors<A: Arch>(report: &mut SelftestReport, sim: &Sim<A>) {
    let vcpus = sim.vcpu_stats();
    let waits: Cycles = sim.threads().values().map(|stats| stats.lock_wait).sum();
    let host = *sim.world().counters();
    let clean = sim.world().costs.clean_4k.0 * (host.cleaned_bytes >> 12);
    for (name, cycles) in [
        ("time of locks (s)", waits),
        ("time of flushes (s)", host.flush_wait),
        ("time of maintenance (s)", Cycles(clean)),
        ("time of walks (s)", vcpus.iter().map(|vcpu| vcpu.walk_cycles).sum()),
        ("time of faults (s)", vcpus.iter().map(|vcpu| vcpu.fault_cycles).sum()),
    ] {
        let seconds = report.seconds(cycles);
        report.figures.insert(name.into(), seconds);
    }
}

/// The guest's own paging in the tests: pages of the guest mode, which are the smallest, mapped before the first vCPU runs.
pub(super) fn guest_paging<A: Arch>(platform: &Platform<A>) -> GuestPaging {
    GuestPaging::Premapped(platform.arch.one().geometry().granule())
}

/// Where such a guest sees a page of its memory.
pub(super) fn guest_address(gpa: Gpa) -> Gva {
    TEST_MEMORY + gpa.raw()
}

/// Runs a test's simulation to its end, tears the VM down, and turns whatever went wrong into an error.
///
/// # Errors
/// A deadlock, a guest that could not go on, a violated invariant.
pub fn finish<A: Arch>(sim: &mut Sim<A>) -> Result<(), SelftestError> {
    let stopped = sim.run();
    if let Some(what) = sim.failure() {
        return Err(SelftestError::Guest(what));
    }
    for stopped in [stopped, sim.destroy()] {
        if stopped != Stopped::Finished {
            return Err(SelftestError::Deadlock(stopped));
        }
    }
    let world = sim.world();
    match world.violations() {
        [] => Ok(()),
        found => Err(SelftestError::Violations(found.to_vec())),
    }
}

/// The page size of an option, or the smallest that the second stage has.
///
/// # Errors
/// A size that the second stage has no leaves of.
pub(crate) fn supported_page<A: Arch>(
    platform: &Platform<A>,
    page: Option<PageSize>,
) -> Result<PageSize, SelftestError> {
    let geometry = platform.arch.two().geometry();
    let page = page.unwrap_or(geometry.page_size(Level::LAST));
    if geometry.level_of(page).is_some() {
        return Ok(page);
    }
    let sizes: Vec<String> = geometry.page_sizes().map(|size| size.to_string()).collect();
    Err(option_error("-s", format!("the second stage has no pages of {page}; choose one of {}", sizes.join(", "))))
}

/// An option that cannot be used.
pub(crate) fn option_error(option: &str, what: String) -> SelftestError {
    SelftestError::Option { option: option.to_owned(), what }
}
