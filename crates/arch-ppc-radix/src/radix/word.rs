//! Fields of directory entries (PDE) and page table entries (PTE).
//!
//! ```text
//! IBM bit  0 1 2   3..6  7 ........ 51  52..54  55 56 57  58:59  60   61   62   63
//! PTE      V L SW0 rsvd  RPN            SW1..3  R  C  -   ATT    priv read r/w  exec
//!          0 1 2:3       4 ............................ 55        56:58  59 ...... 63
//! PDE      V L -         NLB (next level base, bits 8 and up)     -      NLS
//! ```

use std::fmt;

use mmu_core::{Hpa, PageSize};

/// V: the entry is valid.
pub(crate) const VALID: u64 = 1 << 63;
/// L: the entry is a leaf.
pub(crate) const LEAF: u64 = 1 << 62;
/// Real page number.
pub(crate) const RPN: u64 = 0x01ff_ffff_ffff_f000;
/// Width of a real address that [`RPN`] can hold.
pub(crate) const REAL_BITS: u8 = 57;
/// Next-level base.
pub(crate) const NLB: u64 = 0x0fff_ffff_ffff_ff00;
/// Next-level size: index bits of the next table.
pub(crate) const NLS: u64 = 0x1f;
/// R: referenced.
pub(crate) const REFERENCED: u64 = 1 << 8;
/// C: changed.
pub(crate) const CHANGED: u64 = 1 << 7;
/// ATT: storage attribute.
pub(crate) const ATT: u64 = 0x30;
/// EAA bit 0: privileged only (process-scoped trees).
pub(crate) const EAA_PRIVILEGED: u64 = 8;
/// EAA bit 1: loads.
pub(crate) const EAA_READ: u64 = 4;
/// EAA bit 2: loads and stores.
pub(crate) const EAA_READ_WRITE: u64 = 2;
/// EAA bit 3: fetches.
pub(crate) const EAA_EXECUTE: u64 = 1;
/// SW0. Linux: 0x2000000000000000, free.
pub(crate) const SW0: u64 = 1 << 61;
/// SW1. Linux uses it for device memory of user space; partition-scoped trees never have that, so that this format keeps "was
/// writable" there while write permission is taken away.
pub(crate) const SW1: u64 = 1 << 11;
/// SW2: Linux's "special".
pub(crate) const SW2: u64 = 1 << 10;
/// SW3: Linux's soft-dirty.
pub(crate) const SW3: u64 = 1 << 9;
/// All bits that are software's.
pub(crate) const SOFTWARE: u64 = SW0 | SW1 | SW2 | SW3;
/// Marks a non-present word as frozen: software owns every bit of an invalid entry (ISA 6.7.11).
pub(crate) const FROZEN: u64 = SW0 | SW1;
/// Marks a non-present word as owned; the owner is in bits 16 to 23.
pub(crate) const OWNED: u64 = SW0 | SW2;

/// Storage attribute (ATT, ISA 3.1 Book III figure "Storage control attributes").
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub enum Att {
    /// Ordinary memory: WIMG 0010.
    #[default]
    Normal,
    /// Strong access order (ISA 3.0; reserved in 3.1).
    StrongAccessOrder,
    /// Non-idempotent I/O: caching inhibited and guarded; nothing is fetched from it.
    NonIdempotentIo,
    /// Tolerant I/O: caching inhibited.
    TolerantIo,
}

impl Att {
    pub(crate) const fn of(raw: u64) -> Self {
        match raw & ATT {
            0 => Att::Normal,
            0x10 => Att::StrongAccessOrder,
            0x20 => Att::NonIdempotentIo,
            _ => Att::TolerantIo,
        }
    }
    pub(crate) const fn bits(self) -> u64 {
        match self {
            Att::Normal => 0,
            Att::StrongAccessOrder => 0x10,
            Att::NonIdempotentIo => 0x20,
            Att::TolerantIo => 0x30,
        }
    }
}

impl fmt::Display for Att {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Att::Normal => "normal",
            Att::StrongAccessOrder => "sao",
            Att::NonIdempotentIo => "ni_io",
            Att::TolerantIo => "tolerant_io",
        })
    }
}

/// What a radix leaf holds beyond the neutral fields.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct PteAttrs {
    /// Storage attribute.
    pub att: Att,
    /// Bits that are software's, in place (0x2000000000000000, 0x800, 0x400, 0x200).
    pub software: u64,
    /// Bits that hardware ignores, in place: reserved ones, and address bits below the page size. Software writes zero.
    pub ignored: u64,
}

/// Bits that a leaf covering `size` leaves without meaning.
pub(crate) const fn ignored_mask(size: PageSize) -> u64 {
    let reserved = !(VALID | LEAF | RPN | REFERENCED | CHANGED | ATT | SOFTWARE | 0xf);
    reserved | (RPN & (size.bytes() - 1))
}

/// First byte of the page that the leaf `raw` of this size maps.
#[inline]
pub(crate) const fn page(raw: u64, size: PageSize) -> Hpa {
    Hpa::new(raw & RPN & !(size.bytes() - 1))
}

/// The table that the directory entry `raw` points to. Hardware ignores base bits inside the table's size.
#[inline]
pub(crate) const fn next_table(raw: u64) -> Hpa {
    Hpa::new(raw & NLB & !((8 << (raw & NLS)) - 1))
}
