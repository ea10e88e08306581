//! The two words of an entry.

use mmu_core::tlb::Perms;
use mmu_core::{Hpa, PageSize};

use super::hash::{Segment, VirtualAddress};

/// V: the entry is valid.
pub(super) const VALID: u64 = 1;
/// H: the entry is in its secondary group.
pub(super) const SECONDARY: u64 = 2;
/// L: the page is larger than 4 KiB.
pub(super) const LARGE: u64 = 4;
/// Software's lock (Linux `HPTE_V_LOCK`).
pub(super) const LOCK: u64 = 8;
pub(super) const AVPN_SHIFT: u32 = 7;
/// R: referenced.
pub(super) const REFERENCED: u64 = 1 << 8;
/// C: changed.
pub(super) const CHANGED: u64 = 1 << 7;
/// M: memory coherence required, which all of memory is (WIMG = 0010).
const COHERENT: u64 = 1 << 4;
const NO_EXECUTE: u64 = 1 << 2;
const PP0: u64 = 1 << 63;
const PP: u64 = 3;
const RPN: u64 = 0x01ff_ffff_ffff_f000;
const SEGMENT_SHIFT: u32 = 58;
const LP_SHIFT: u32 = 12;
/// The LP field. Its bits that address the page (the upper four of a 64K page's) are part of the page number.
const fn lp_mask(page: HptPage) -> u64 {
    (0xff << LP_SHIFT) & ((1 << page.shift()) - 1)
}

/// Base page size of a segment; pages here have that size.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum HptPage {
    /// 4 KiB.
    K4,
    /// 64 KiB.
    K64,
    /// 16 MiB.
    M16,
}

impl HptPage {
    /// Base-two logarithm of the size.
    pub const fn shift(self) -> u32 {
        match self {
            HptPage::K4 => 12,
            HptPage::K64 => 16,
            HptPage::M16 => 24,
        }
    }
    /// The size.
    pub const fn size(self) -> PageSize {
        match PageSize::from_shift(self.shift()) {
            Some(size) => size,
            None => PageSize::SIZE_4K,
        }
    }
    /// L and the LP field (encodings of POWER7 to POWER10): both name the page size.
    const fn encoding(self) -> (u64, u64) {
        match self {
            HptPage::K4 => (0, 0),
            HptPage::K64 => (LARGE, 1 << LP_SHIFT),
            HptPage::M16 => (LARGE, 0),
        }
    }
}

/// Who may do what (PP with storage key 0 for privileged and 1 for problem state, as Linux sets up its segments).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Protection {
    /// 000: privileged read and write.
    PrivilegedReadWrite,
    /// 001: privileged read and write, problem state read.
    UserRead,
    /// 010: everybody reads and writes.
    AllReadWrite,
    /// 011: everybody reads.
    AllRead,
    /// 110: privileged read.
    PrivilegedRead,
}

impl Protection {
    const fn bits(self) -> u64 {
        match self {
            Protection::PrivilegedReadWrite => 0,
            Protection::UserRead => 1,
            Protection::AllReadWrite => 2,
            Protection::AllRead => 3,
            Protection::PrivilegedRead => PP0 | 2,
        }
    }
    const fn data(raw: u64) -> Perms {
        match (raw & PP0 != 0, raw & PP) {
            (false, 0) => Perms::READ.with(Perms::WRITE),
            (false, 1) => Perms::R.with(Perms::WRITE),
            (false, 2) => Perms::RW,
            (false, _) => Perms::R,
            (true, 2) => Perms::READ,
            // The other patterns with PP0 are reserved.
            (true, _) => Perms::NONE,
        }
    }
}

/// What to map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HptMapping {
    /// First byte of the real page.
    pub output: Hpa,
    /// Its size.
    pub page: HptPage,
    /// Who may do what.
    pub protection: Protection,
    /// Whether nothing may be fetched from it (N).
    pub no_execute: bool,
}

impl HptMapping {
    /// An executable mapping.
    pub const fn new(output: Hpa, page: HptPage, protection: Protection) -> Self {
        Self { output, page, protection, no_execute: false }
    }
    /// Whether the real page is aligned and within reach.
    pub(super) fn is_legal(&self) -> bool {
        self.output.is_aligned(self.page.size()) && self.output.raw() & !RPN == 0
    }
}

/// An entry: the raw words; any pattern is possible.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct HptEntry {
    /// First doubleword.
    pub first: u64,
    /// Second doubleword.
    pub second: u64,
}

impl HptEntry {
    pub(super) const fn new(va: VirtualAddress, mapping: &HptMapping, secondary: u64) -> Self {
        let (large, lp) = mapping.page.encoding();
        let segment = match va.segment() {
            Segment::M256 => 0,
            Segment::T1 => 1 << SEGMENT_SHIFT,
        };
        let no_execute = if mapping.no_execute { NO_EXECUTE } else { 0 };
        Self {
            first: va.avpn(mapping.page) << AVPN_SHIFT | large | secondary | VALID,
            second: mapping.output.raw() | lp | segment | COHERENT | no_execute | mapping.protection.bits(),
        }
    }
    /// Whether this valid entry, in a group of the given hash (`secondary` is 0 or H), translates `va`.
    pub(super) const fn matches(&self, va: VirtualAddress, page: HptPage, secondary: u64) -> bool {
        let (large, lp) = page.encoding();
        let segment = match va.segment() {
            Segment::M256 => 0,
            Segment::T1 => 1,
        };
        let wanted = va.avpn(page) << AVPN_SHIFT | large | secondary | VALID;
        let lp_matches = self.second & lp_mask(page) == lp;
        self.first & !(0x78) == wanted && self.second >> SEGMENT_SHIFT & 3 == segment && lp_matches
    }
    /// Whether it is valid.
    pub const fn is_valid(&self) -> bool {
        self.first & VALID != 0
    }
    /// R.
    pub const fn referenced(&self) -> bool {
        self.second & REFERENCED != 0
    }
    /// C.
    pub const fn changed(&self) -> bool {
        self.second & CHANGED != 0
    }
    /// First byte of the page it maps, as a page of this size.
    pub const fn output(&self, page: HptPage) -> Hpa {
        Hpa::new(self.second & RPN & !((1 << page.shift()) - 1))
    }
    /// What it allows, with [`Perms::DIRTY`] when C is set. Who may load may fetch, unless N is set.
    pub const fn perms(&self) -> Perms {
        let data = Protection::data(self.second);
        let mut perms = data;
        if self.second & NO_EXECUTE == 0 {
            if data.contains(Perms::READ) {
                perms = perms.with(Perms::EXEC);
            }
            if data.contains(Perms::USER_READ) {
                perms = perms.with(Perms::USER_EXEC);
            }
        }
        if self.changed() { perms.with(Perms::DIRTY) } else { perms }
    }
    /// Whether N is set.
    pub const fn no_execute(&self) -> bool {
        self.second & NO_EXECUTE != 0
    }
}
