//! Core of the mmusim simulator.
pub mod addr;
pub use addr::*;
