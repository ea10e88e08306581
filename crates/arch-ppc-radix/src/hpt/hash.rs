//! Virtual addresses and their hash.

use std::fmt;

use super::entry::HptPage;

/// Segment size (B field).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Segment {
    /// 256 MiB.
    M256,
    /// 1 TiB.
    T1,
}

impl Segment {
    /// Base-two logarithm of the size.
    pub const fn shift(self) -> u32 {
        match self {
            Segment::M256 => 28,
            Segment::T1 => 40,
        }
    }
    /// Width of a VSID: virtual addresses have 68 bits.
    pub const fn vsid_bits(self) -> u32 {
        68 - self.shift()
    }
}

/// A virtual address: segment and offset.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VirtualAddress {
    large: u8,
    vsid: u64,
    offset: u64,
}

/// A virtual address that does not exist.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AddressError {
    /// The segment size.
    pub segment: Segment,
    /// The segment asked for.
    pub vsid: u64,
    /// The offset asked for.
    pub offset: u64,
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bits, shift) = (self.segment.vsid_bits(), self.segment.shift());
        write!(f, "VSID {:#x} offset {:#x}: a VSID has {bits} bits, an offset {shift}", self.vsid, self.offset)
    }
}
impl std::error::Error for AddressError {}

/// Bits of a hash.
const HASH_MASK: u64 = (1 << 39) - 1;

impl VirtualAddress {
    /// Byte `offset` of segment `vsid`.
    ///
    /// # Errors
    /// A VSID or offset too wide for the segment size.
    pub const fn new(segment: Segment, vsid: u64, offset: u64) -> Result<Self, AddressError> {
        if vsid >> segment.vsid_bits() != 0 || offset >> segment.shift() != 0 {
            return Err(AddressError { segment, vsid, offset });
        }
        let large = match segment {
            Segment::M256 => 0,
            Segment::T1 => 1,
        };
        Ok(Self { large, vsid, offset })
    }
    /// The segment size.
    pub const fn segment(self) -> Segment {
        if self.large == 0 { Segment::M256 } else { Segment::T1 }
    }
    /// The segment.
    pub const fn vsid(self) -> u64 {
        self.vsid
    }
    /// The byte in it.
    pub const fn offset(self) -> u64 {
        self.offset
    }
    /// The primary hash for pages of this base size (ISA 3.0 Book III 5.7.9.3): VSID xor page number, and for 1T segments
    /// the VSID shifted by 25 xored in as well. The secondary hash is its complement.
    pub const fn hash(self, page: HptPage) -> u64 {
        let index = self.offset >> page.shift();
        let hash = match self.segment() {
            Segment::M256 => self.vsid ^ index,
            Segment::T1 => self.vsid ^ (self.vsid << 25) ^ index,
        };
        hash & HASH_MASK
    }
    /// Abbreviated virtual page number: address bits from 2^23 up, less those inside the page.
    pub(super) const fn avpn(self, page: HptPage) -> u64 {
        let whole = self.vsid << (self.segment().shift() - 23) | self.offset >> 23;
        match page {
            HptPage::K4 | HptPage::K64 => whole,
            HptPage::M16 => whole & !1,
        }
    }
}
