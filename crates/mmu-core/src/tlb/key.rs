//! Tags and keys: whose translation an entry is, and the one function that says so.
//!
//! Before you work on this file read Intel SDM vol. 3 section 29.4 (VPID, PCID, EP4TA), Arm ARM D8.16 (ASID, VMID) and
//! Power ISA book III section 6.10 (LPID, PID).
//!
//! A key is two words. The first holds the page's base address; its twelve low bits, which are free because no page is
//! smaller than 4 KiB, hold the page shift, the kind and the coalescing flag. The second is the context: ASID (31 bits),
//! global flag, VMID and stage-2 root side by side. A match is then two xors and two masks.

use serde::{Deserialize, Serialize};

use crate::addr::{Gpa, Gva, PageSize};
use crate::assoc::Key;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($int:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $int);
    };
}

id!(
    /// Address space of a first stage: x86 PCID, Arm ASID, POWER PID.
    Asid(u32)
);
id!(
    /// Virtual machine: x86 VPID, Arm VMID, POWER LPID. 0 is the host by convention of all three.
    Vmid(u16)
);
id!(
    /// Stands for one second-stage root (x86: the EP4TA part of the EPT pointer). Whoever hands out the numbers must
    /// not give one to a second root while entries of the first may be cached.
    RootId(u16)
);

/// Whose translations a vCPU uses and makes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Tag {
    /// Current address space.
    pub asid: Asid,
    /// Current virtual machine.
    pub vmid: Vmid,
    /// Current second-stage root.
    pub root: RootId,
}

/// What a cached translation was derived from (Intel SDM vol. 3, 29.4.1; the other architectures have the same three).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Kind {
    /// First stage only: virtual to physical of the host, or of a guest without second stage.
    Linear = 0,
    /// Second stage only.
    GuestPhysical = 1,
    /// Both stages at once.
    Combined = 2,
}

/// The address to be translated, with the kind of translation wanted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Input {
    /// Through the first stage only.
    Linear(Gva),
    /// Through the second stage only (guest paging off, or a first-stage walk's own reference).
    GuestPhysical(Gpa),
    /// Through both.
    Combined(Gva),
}

impl Input {
    /// The kind of translation.
    #[inline(always)]
    pub const fn kind(self) -> Kind {
        match self {
            Input::Linear(_) => Kind::Linear,
            Input::GuestPhysical(_) => Kind::GuestPhysical,
            Input::Combined(_) => Kind::Combined,
        }
    }
    /// The address as a number.
    #[inline(always)]
    pub const fn raw(self) -> u64 {
        match self {
            Input::Linear(gva) | Input::Combined(gva) => gva.raw(),
            Input::GuestPhysical(gpa) => gpa.raw(),
        }
    }
    /// An address of this kind.
    pub const fn of(kind: Kind, raw: u64) -> Self {
        match kind {
            Kind::Linear => Input::Linear(Gva::new(raw)),
            Kind::GuestPhysical => Input::GuestPhysical(Gpa::new(raw)),
            Kind::Combined => Input::Combined(Gva::new(raw)),
        }
    }
}

/// What tags second-stage results.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage2Tag {
    /// The VMID or LPID (Arm, POWER).
    #[default]
    Vmid,
    /// The root pointer, besides the VPID for combined results (x86: EP4TA).
    Root,
}

/// Whether combined entries remember the guest-physical page they came through.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CombinedByGpa {
    /// They do not: invalidation by guest-physical address leaves them (what all three architectures allow).
    #[default]
    Unknown,
    /// They do, and are invalidated with it.
    Stored,
}

/// Which parts of a [`Tag`] the hardware compares, by kind of translation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
pub struct TagRules {
    masks: [u64; 3],
    /// Whether combined entries are reached by guest-physical invalidation.
    pub combined_by_gpa: CombinedByGpa,
}

const VMID_SHIFT: u32 = 32;
const ROOT_SHIFT: u32 = 48;
pub(super) const ASID_MASK: u64 = (1 << GLOBAL_SHIFT) - 1;
const GLOBAL_SHIFT: u32 = 31;
const GLOBAL: u64 = 1 << GLOBAL_SHIFT;
pub(super) const VMID_MASK: u64 = 0xffff << VMID_SHIFT;
pub(super) const ROOT_MASK: u64 = 0xffff << ROOT_SHIFT;

impl TagRules {
    /// Tags of these widths; numbers are cut to the width as the hardware cuts them, so that aliases collide. 0 bits
    /// mean that the part is not compared at all and software must flush. ASIDs have up to 31 bits, VMIDs up to 16;
    /// larger widths count as that.
    pub fn new(asid_bits: u32, vmid_bits: u32, stage2: Stage2Tag) -> Self {
        let asid = (1u64 << asid_bits.min(GLOBAL_SHIFT)) - 1;
        let vmid = ((1u64 << vmid_bits.min(16)) - 1) << VMID_SHIFT;
        let (guest_physical, combined) = match stage2 {
            Stage2Tag::Vmid => (vmid, asid | vmid),
            Stage2Tag::Root => (ROOT_MASK, asid | vmid | ROOT_MASK),
        };
        Self { masks: [asid | vmid, guest_physical, combined], combined_by_gpa: CombinedByGpa::Unknown }
    }

    /// The same rules with another answer to guest-physical invalidation.
    pub const fn with_combined_by_gpa(self, combined_by_gpa: CombinedByGpa) -> Self {
        Self { combined_by_gpa, ..self }
    }

    #[inline(always)]
    pub(super) const fn mask(&self, kind: Kind) -> u64 {
        self.masks[kind as usize]
    }

    /// The context word that entries of this kind carry under this tag.
    #[inline(always)]
    pub(super) const fn context(&self, tag: Tag, kind: Kind) -> u64 {
        // No mask has the bit of the global flag, so the ASID needs no cut of its own.
        wide_word(tag) & self.mask(kind)
    }
}

impl Default for TagRules {
    /// 16-bit ASIDs and VMIDs, second stage tagged by VMID.
    fn default() -> Self {
        Self::new(16, 16, Stage2Tag::Vmid)
    }
}

pub(super) const fn context_word(tag: Tag) -> u64 {
    wide_word(tag) & !GLOBAL
}

/// The parts of a tag side by side, with whatever the ASID has in the place of the global flag.
#[inline(always)]
const fn wide_word(tag: Tag) -> u64 {
    tag.asid.0 as u64 | (tag.vmid.0 as u64) << VMID_SHIFT | (tag.root.0 as u64) << ROOT_SHIFT
}

/// Key of a translation or paging-structure-cache entry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct TlbKey {
    page: u64,
    context: u64,
}

const SHIFT_MASK: u64 = 0x3f;
const KIND_SHIFT: u32 = 6;
/// Set in the low bits of keys that stand for an aligned group of pages.
pub(super) const GROUPED: u64 = 1 << 9;
const META: u64 = 0xfff;

/// Cuts addresses to the keys of one block size, with the masks worked out.
#[derive(Clone, Copy, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Cut {
    mask: u64,
    /// Shift and flags.
    class: u64,
}

impl Cut {
    /// Blocks of `1 << shift` bytes; `flags` may hold [`GROUPED`].
    pub(super) const fn new(shift: u32, flags: u64) -> Self {
        Self { mask: u64::MAX << shift & !META, class: shift as u64 | flags }
    }
    /// [`TlbKey::class`] of its keys.
    #[inline(always)]
    pub(super) const fn class(self) -> u64 {
        self.class
    }
    /// Key of the block around an address.
    #[inline(always)]
    pub(super) const fn key(self, input: Input, context: u64) -> TlbKey {
        TlbKey { page: input.raw() & self.mask | self.class | (input.kind() as u64) << KIND_SHIFT, context }
    }
}

impl TlbKey {
    /// Key of the block of `1 << shift` bytes around an address; `flags` may hold [`GROUPED`].
    #[inline(always)]
    pub(super) const fn new(input: Input, shift: u32, flags: u64, context: u64) -> Self {
        let low = shift as u64 | (input.kind() as u64) << KIND_SHIFT | flags;
        Self { page: (input.raw() >> shift << shift) & !META | low, context }
    }

    /// The same key found by every address space.
    #[inline(always)]
    pub(super) const fn with_reach(self, reach: super::Reach) -> Self {
        match reach {
            super::Reach::AddressSpace => self,
            super::Reach::Global => Self { context: self.context | GLOBAL, ..self },
        }
    }

    /// What kind of translation this is.
    pub const fn kind(&self) -> Kind {
        match self.page >> KIND_SHIFT & 3 {
            0 => Kind::Linear,
            1 => Kind::GuestPhysical,
            _ => Kind::Combined,
        }
    }
    /// First input address covered, with its kind.
    pub const fn input(&self) -> Input {
        Input::of(self.kind(), self.page & !META)
    }
    /// Size of the block covered; for a coalesced entry that of the group.
    pub const fn block(&self) -> PageSize {
        match PageSize::from_shift((self.page & SHIFT_MASK) as u32) {
            Some(size) => size,
            None => PageSize::SIZE_4K,
        }
    }
    /// Whether every address space finds it.
    pub const fn is_global(&self) -> bool {
        self.context & GLOBAL != 0
    }
    pub(super) const fn is_grouped(&self) -> bool {
        self.page & GROUPED != 0
    }
    /// Shift and flags: which size class of its array the entry belongs to.
    pub(super) const fn class(&self) -> u64 {
        Self::class_of(self.page)
    }
    /// [`class`](Self::class) of the key with this tag.
    pub(super) const fn class_of(tag: u64) -> u64 {
        tag & (SHIFT_MASK | GROUPED)
    }
    pub(super) const fn context(&self) -> u64 {
        self.context & !GLOBAL
    }
    /// Last input address covered.
    pub(super) const fn last(&self) -> u64 {
        (self.page & !META) + (self.block().bytes() - 1)
    }

    /// Whether this stored key belongs to the wanted context, of which only the masked bits are compared. Global
    /// entries belong to every address space. Look-up and invalidation both ask here.
    #[inline(always)]
    pub(super) const fn belongs(&self, wanted: u64, mask: u64) -> bool {
        let any_asid = 0u64.wrapping_sub((self.context & GLOBAL) >> GLOBAL_SHIFT) & ASID_MASK;
        (self.context ^ wanted) & mask & !(any_asid | GLOBAL) == 0
    }
}

impl Key for TlbKey {
    type Rest = u64;
    /// No block has a shift of 0.
    const EMPTY: u64 = 0;

    #[inline(always)]
    fn tag(&self) -> u64 {
        self.page
    }
    #[inline(always)]
    fn rest(&self) -> u64 {
        self.context
    }
    #[inline(always)]
    fn join(page: u64, context: u64) -> Self {
        Self { page, context }
    }
    #[inline(always)]
    fn number(&self) -> u64 {
        self.page >> (self.page & SHIFT_MASK)
    }
    #[inline(always)]
    fn accepts(&self, stored: u64) -> bool {
        Self { context: stored, ..*self }.belongs(self.context, u64::MAX)
    }
}
