//! `mmu_stress_test`: [`max_guest_memory`](super::max_guest_memory) under its newer name, with two more stages.
//!
//! After the second run all vCPUs read their pages; then they write while `mprotect` makes the memory read-only under them, and every page
//! must be refused (EFAULT) once that has landed; then the memory is writable again, and they write once more.

use super::max_guest_memory::{Options, Stages, run_stages};
use super::{SelftestError, SelftestReport};
use crate::arch::Arch;
use crate::experiment::Platform;

/// Runs the test; its options are those of [`max_guest_memory`](super::max_guest_memory).
///
/// # Errors
/// Options that do not fit each other, a VM that cannot be built, or a run that goes wrong.
pub fn run<A: Arch>(platform: &Platform<A>, options: &Options) -> Result<SelftestReport, SelftestError> {
    run_stages("mmu_stress_test", platform, options, Stages::Five)
}
