//! Core of the mmusim simulator: formats, walkers, table memory, TLBs and cost sheets. Imports nothing of ours.

pub mod access;
pub mod addr;
pub mod assoc;
pub mod conformance;
pub mod format;
pub mod geometry;
pub mod hashed;
pub mod image;
pub mod machine;
pub mod mapper;
pub mod memory;
pub mod range;
pub mod tlb;
pub mod walk;

pub use access::*;
pub use addr::*;
pub use format::*;
pub use geometry::*;
pub use hashed::*;
pub use range::*;
pub use tlb::Perms;
