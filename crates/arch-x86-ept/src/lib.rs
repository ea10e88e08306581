//! x86: the extended page tables of VMX ([`Ept`], second stage) and the guest's own paging ([`LongMode`], first stage).
//!
//! Before working on this crate read sections 28.3 (EPT), 25.5.7 (#VE), 27.2.1 (exit qualifications) and 4 (paging) of
//! the *Intel 64 and IA-32 Architectures Software Developer's Manual*, volume 3 ("SDM"). Section numbers here are those
//! of the edition in which chapter 28 is "VMX Support for Address Translation" (077). The software bits follow Linux KVM
//! ([`kvm`]).
//!
//! Both formats are small `Copy` values made by a builder that refuses what the processor refuses:
//!
//! ```
//! use arch_x86_ept::{AccessedDirty, EptAttrs, EptConfig};
//! use mmu_core::image::MemoryImage;
//! use mmu_core::walk::walk;
//! use mmu_core::tlb::Perms;
//! use mmu_core::{Access, Format, Hpa, Leaf, Level};
//!
//! let ept = EptConfig::new().accessed_dirty(AccessedDirty::On).build()?;
//! let mut memory = MemoryImage::everywhere();
//! // 1 GiB at guest-physical 0: one PML4 entry, one PDPT leaf.
//! let leaf = Leaf { output: Hpa::new(1 << 30), perms: Perms::RWX, accessed: false, attrs: EptAttrs::default() };
//! memory.set(Hpa::new(0x1000), ept.encode_table(Level::new(3), Hpa::new(0x2000))?)?;
//! memory.set(Hpa::new(0x2000), ept.encode_leaf(Level::new(2), &leaf)?)?;
//! let found = walk(&ept, Hpa::new(0x1000), 0x1234, Access::WRITE, &mut memory)?;
//! assert_eq!(found.output, Hpa::new((1 << 30) + 0x1234));
//! assert_eq!(memory.get(Hpa::new(0x2000)) & (3 << 8), 3 << 8, "accessed and dirty");
//! let fault = walk(&ept, Hpa::new(0x1000), 1 << 40, Access::READ, &mut memory).unwrap_err();
//! assert_eq!(fault.to_string(), "EPT violation (exit 48) at 0x10000000000, qualification 0x181: no entry at level 4");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod attrs;
mod bits;
mod caps;
mod config;
mod ept;
mod eptp;
mod fault;
mod flush;
pub mod kvm;
mod long_mode;

pub use attrs::{EptAttrs, IgnorePat, MemoryType, SuppressVe};
pub use caps::{Capability, EptCapabilities};
pub use config::{
    AccessedDirty, AdvancedInfo, EptConfig, EptConfigError, ExecuteOnly, InveptSupport, LargePages, ModeBasedExecute,
    PagingMemoryType, ViolationException, WalkLength,
};
pub use ept::Ept;
pub use eptp::{Eptp, EptpError, EptpRule};
pub use fault::{EptFault, EptReason, ExitReason, Qualification, Violation, ViolationCause, ViolationDelivery};
pub use flush::InvTlbi;
pub use long_mode::{
    GuestTlbi, LongMode, LongModeAttrs, LongModeConfig, LongModeConfigError, LongModeFault, NoExecute, PageFaultCode,
    Smap, Smep, WriteProtect,
};
