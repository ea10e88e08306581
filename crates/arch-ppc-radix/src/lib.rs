//! POWER radix translation (Power ISA 3.0/3.1, Book III chapter 6) and hashed page tables.
//!
//! * [`Radix`] is the format of one tree, partition-scoped (guest real to host real) or process-scoped (effective to
//!   guest real), and plugs into the walkers of `mmu-core`.
//! * [`PowerMmu`] is what a thread does with an address: quadrants, partition and process tables, one or two trees,
//!   and the interrupt that a failure becomes.
//! * [`hpt`] holds hashed page tables: insert, look up, invalidate.
//!
//! Table words are *values* here; in memory they are big-endian ([`BYTE_ORDER`]). Levels count from 0 at the last one; the
//! manuals count from the root.
//!
//! ```
//! use arch_ppc_radix::{BasePage, Radix};
//! use mmu_core::{Access, Format, Hpa, Leaf, Level, walk::walk, image::MemoryImage, tlb::Perms};
//!
//! let radix = Radix::partition(BasePage::K4);
//! let mut image = MemoryImage::everywhere();
//! let root = Hpa::new(0x10_0000);
//! let leaf = Leaf { output: Hpa::new(0x4000_0000), perms: Perms::RWX, accessed: false, attrs: Default::default() };
//! // A 1 GiB page hangs directly below the root.
//! image.set(root, radix.encode_table(Level::new(3), Hpa::new(0x20_0000)).unwrap()).unwrap();
//! image.set(Hpa::new(0x20_0000), radix.encode_leaf(Level::new(2), &leaf).unwrap()).unwrap();
//! let found = walk(&radix, root, 0x1234, Access::WRITE, &mut image).unwrap();
//! assert_eq!(found.output, Hpa::new(0x4000_1234));
//! // The walk set R and C.
//! assert_eq!(image.get(Hpa::new(0x20_0000)) & 0x180, 0x180);
//! ```

pub mod hpt;
mod mmu;
mod radix;

pub use mmu::{
    EffectiveAccess, Interrupt, InterruptKind, KnownTables, MmuCursor, MmuReference, MmuStep, MmuTranslation, MsrMode,
    PartitionEntry, PowerMmu, ProcessEntry, PtcrError, Relocation, Target,
};
pub use radix::{
    Att, BasePage, Cause, FetchDenied, Keys, PteAttrs, Radix, RadixError, RadixFault, RcUpdate, RootWord, Scope, Tlbi,
    TlbiAp, TlbiForm, TlbiRic, TlbiSelect, Why, invalidation_sequence,
};

use mmu_core::image::ByteOrder;

/// Byte order of table words in memory (ISA 3.1 Book III 6.7.10: tables are big-endian whatever the thread's mode).
pub const BYTE_ORDER: ByteOrder = ByteOrder::Big;
