//! Replays translation vectors recorded from real emulators through the public walkers.
//!
//! A vector file is JSON lines (plain or xz): one table image per line with its configuration and many cases; a case
//! is one access and the emulator's answer. Every case starts from the image's memory with empty TLBs. Where emulator and
//! manual differ, the file says so (`manual_differs`, `other`); such a case is *excepted* by the rule that names the quirk, never by
//! its number, and every rule is a [`Quirk`] listed in the report.

mod json;
mod report;
mod run;

mod arm64;
mod matrix;
mod matrix_arm64;
mod matrix_ppc;
mod matrix_x86;
mod ppc;
mod x86;

pub use matrix::{check_matrix, check_matrix_file};
pub use matrix_arm64::{check_arm64_matrix, check_bbm_rules};
pub use matrix_ppc::check_power_matrix;
pub use matrix_x86::check_ept_matrix;
pub use report::{Disagreement, FileReport, Quirk};
pub use run::{Limits, VectorError, check_file, check_reader};
