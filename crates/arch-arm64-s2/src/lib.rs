//! Arm translation for the mmusim simulator: the second stage ([`Stage2`]) and the EL1&0 first stage ([`Stage1`]) of
//! VMSAv8-64, with every granule, concatenated start tables, 52-bit addresses, hardware access flags and dirty state,
//! memory types, faults with their syndromes, TLBI instructions bit for bit, and break-before-make.
//!
//! ```
//! use arch_arm64_s2::{Granule, Stage2Config};
//! use mmu_core::image::MemoryImage;
//! use mmu_core::tlb::Perms;
//! use mmu_core::walk::walk;
//! use mmu_core::{Access, Format, Hpa, Leaf, Level};
//!
//! let stage2 = Stage2Config { granule: Granule::K4, ipa_bits: 39, ..Default::default() }.build()?;
//! let mut memory = MemoryImage::everywhere();
//! // A 1 GiB block in the first entry of the start table.
//! let leaf = Leaf { output: Hpa::new(3 << 30), perms: Perms::R, accessed: true, attrs: Default::default() };
//! memory.set(Hpa::new(0x8000), stage2.encode_leaf(Level::new(2), &leaf)?)?;
//!
//! let found = walk(&stage2, Hpa::new(0x8000), 0x1234, Access::READ, &mut memory);
//! assert_eq!(found.map(|t| t.output), Ok(Hpa::new((3 << 30) + 0x1234)));
//! let fault = walk(&stage2, Hpa::new(0x8000), 0x1234, Access::WRITE, &mut memory).unwrap_err();
//! assert_eq!(fault.status(), 0x0d, "permission fault, level 1");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Left out, on purpose: `FEAT_D128` and permission indirection (`FEAT_S2PIE`), the Secure state, AArch32.

mod bbm;
mod config;
mod fault;
mod features;
mod flush;
mod granule;
mod layout;
mod memory_type;
mod registers;
mod stage1;
mod stage2;
mod tlbi;

pub use bbm::PageContents;
pub use config::{ConfigError, Stage2Config, StartLevel};
pub use fault::{ArmFault, FaultKind};
pub use features::{BbmLevel, Features, GranuleSupport, HardwareUpdates, IdRegisters};
pub use flush::{Piece, Pieces, RangePolicy};
pub use granule::{ArmLevel, Granule};
pub use memory_type::{MemoryAttributes, S2Memory, Shareability, TypeControl};
pub use registers::{Hcr, Vtcr, Vttbr};
pub use stage1::{S1Attrs, Stage1, Stage1Config, UpperHalf};
pub use stage2::{S2Attrs, Stage2};
pub use tlbi::{AddressOperand, BaseUnit, Entries, RangeOperand, Space, Tlbi};
