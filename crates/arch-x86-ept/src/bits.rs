//! Bit positions of EPT entries (SDM 28.3.2, tables "Format of an EPT ... Entry").

/// Read.
pub(crate) const R: u64 = 1;
/// Write.
pub(crate) const W: u64 = 1 << 1;
/// Execute; with mode-based execute control: for supervisor-mode linear addresses.
pub(crate) const X: u64 = 1 << 2;
/// Position of the memory type of a leaf.
pub(crate) const MEMORY_TYPE_SHIFT: u32 = 3;
/// Ignore the guest's PAT (leaf).
pub(crate) const IGNORE_PAT: u64 = 1 << 6;
/// Maps a large page.
pub(crate) const LARGE: u64 = 1 << 7;
/// Accessed (any level, only with EPTP bit 6).
pub(crate) const A: u64 = 1 << 8;
/// Dirty (leaf, only with EPTP bit 6).
pub(crate) const D: u64 = 1 << 9;
/// Execute for user-mode linear addresses (only with mode-based execute control).
pub(crate) const XU: u64 = 1 << 10;
/// The ignored low bit that no feature uses.
pub(crate) const IGNORED_11: u64 = 1 << 11;
/// Ignored or feature bits above the address: 57 verify guest paging, 58 paging-write access, 60 supervisor shadow
/// stack, 61 sub-page write permissions. None of these features is modelled, so that all are ignored.
pub(crate) const IGNORED_HIGH: u64 = 0x7ff << 52;
/// Suppress #VE.
pub(crate) const SUPPRESS_VE: u64 = 1 << 63;
/// Reserved in an entry that points to a table (bit 7 is looked at apart).
pub(crate) const TABLE_RESERVED: u64 = 0xf << 3;
/// Widest physical address of the architecture.
pub(crate) const MAX_PHYS_BITS: u32 = 52;
/// All address bits.
pub(crate) const ADDRESS: u64 = (1 << MAX_PHYS_BITS) - (1 << 12);
