//! Experiments: a machine, a VM, what the host does, and the report.

pub mod gpc;
pub mod platform;
pub mod single;
pub mod vm;
pub mod zap;

pub use platform::Platform;
pub use single::{RunReport, ZapRun};
pub use vm::{BuildError, Populate, VmSpec, build, build_without_threads};
