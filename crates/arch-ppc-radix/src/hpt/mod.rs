//! Hashed page tables (ISA 3.0 Book III 5.7.9): one table for a whole partition, found by hash instead of by tree.
//!
//! A virtual address names a segment (VSID) and an offset. Its hash selects a group of eight entries (PTEG); the complement of
//! the hash selects a second one. An entry may be in either group; when both are full, software must evict.
//!
//! ```text
//! IBM bit   0 ... 11  12 ........ 56  57..59  60    61  62  63
//! first     reserved  AVPN            SW      lock  L   H   V
//!           0    1  2:3     4:5  6  7 ..... 43  44 .. 51  52..54   55 56 57..60  61  62:63
//! second    PP0  -  key hi  B    -  RPN         RPN | LP  key low  R  C  WIMG    N   PP
//! ```
//!
//! What is here: map, look up with R and C, invalidate, over any [`Bus`](mmu_core::walk::Bus). Not here: SLBs (callers
//! name the segment), keys, and pages whose actual size differs from the segment's base size.
//!
//! ```
//! use arch_ppc_radix::hpt::{HashedTable, HptMapping, HptPage, Protection, Segment, VirtualAddress};
//! use mmu_core::{Access, Hpa, image::MemoryImage};
//! let mut image = MemoryImage::everywhere();
//! let table = HashedTable::new(Hpa::new(0x100_0000), 18).unwrap();
//! let va = VirtualAddress::new(Segment::M256, 0x1234, 0x567_8000).unwrap();
//! table.insert(&mut image, va, HptMapping::new(Hpa::new(0x5000), HptPage::K4, Protection::AllReadWrite)).unwrap();
//! let found = table.translate(&mut image, va, HptPage::K4, &Access::WRITE).unwrap();
//! assert_eq!(found.output, Hpa::new(0x5000));
//! assert!(found.entry.changed());
//! ```

mod entry;
mod hash;
mod partition;
mod table;

pub use entry::{HptEntry, HptMapping, HptPage, Protection};
pub use hash::{AddressError, Segment, VirtualAddress};
pub use table::{HashedTable, HptError, HptFault, HptTranslation, HptWhy, Removed, Slot};
