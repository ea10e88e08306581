//! The software bits of Linux KVM's second-stage entries (SPTEs) on Intel, and its transitions as pure functions.
//!
//! Facts of Linux 6.6, `arch/x86/kvm/mmu/spte.h` and `spte.c` (the frozen marker was called REMOVED there and until
//! 6.12; since 6.10 KVM adds bit 63, suppress #VE, to every non-present word, which is not modelled). Where the bits are:
//!
//! ```text
//!  63   62 .. 59  58           57             56:54          53:52     51 .. 12   11           10 .. 3   2:0
//!  #VE  -         MMU-writable host-writable  saved X,-,R    A/D type  address    MMU-present  hardware  XWR
//! ```
//!
//! * A word is *shadow-present* by bit 11, not by its permissions: an access-tracked entry is unmapped for the processor and
//!   mapped for KVM; an MMIO entry is the other way round.
//! * *Host-writable*: the host's own mapping allows writes. *MMU-writable*: KVM may set W without its lock, because W was
//!   only taken away to log writes. MMU-writable implies host-writable, and W implies MMU-writable.
//! * *A/D type*: 0 the flags are used, 1 the tree has none (access tracking by permissions), 2 write protection only.
//! * *MMIO*: permissions W and X without R, a misconfiguration that exits fast; holds the guest frame and 19 bits of the
//!   memslot generation.
//!
//! KVM does not use mode-based execute control. With it, bit 10 is a permission: its access tracking is saved in bit
//! 55, which KVM leaves free, and the frozen marker loses bit 10. Hosts that need the L1TF inversion of non-present
//! words are not modelled.

use std::fmt;

use mmu_core::{Gfn, Level};

use crate::bits::{A, ADDRESS, D, LARGE, R, W, X, XU};

/// The entry is valid in KVM's eyes (`SPTE_MMU_PRESENT_MASK`).
pub const MMU_PRESENT: u64 = 1 << 11;
/// The A/D type field (`SPTE_TDP_AD_MASK`).
pub const AD_TYPE: u64 = 3 << 52;
/// A/D type of a tree without flags (`SPTE_TDP_AD_DISABLED_MASK`).
pub const AD_DISABLED: u64 = 1 << 52;
/// A/D type of entries whose dirty state is kept by write protection although flags exist (`SPTE_TDP_AD_WRPROT_ONLY_MASK`).
pub const AD_WRPROT_ONLY: u64 = 2 << 52;
/// The host allows writes to the page (`EPT_SPTE_HOST_WRITABLE`).
pub const HOST_WRITABLE: u64 = 1 << 57;
/// W may be set without the lock (`EPT_SPTE_MMU_WRITABLE`).
pub const MMU_WRITABLE: u64 = 1 << 58;
/// Where the permissions of an access-tracked entry are kept (`SHADOW_ACC_TRACK_SAVED_BITS_SHIFT`).
pub const SAVED_SHIFT: u32 = 54;
/// The kept permissions: R and X in KVM, bit 55 for our user-execute.
pub const SAVED: u64 = 7 << SAVED_SHIFT;
/// Locked by a walker that changes it (`REMOVED_SPTE`, later `FROZEN_SPTE`).
pub const FROZEN: u64 = 0x5a0;
/// Permission bits that make an MMIO entry (`VMX_EPT_MISCONFIG_WX_VALUE`).
pub const MMIO: u64 = W | X;

const SAVED_USER_EXECUTE: u64 = 1 << 55;
const GENERATION_LOW: u64 = 0xff << 3;
const GENERATION_HIGH: u64 = 0x7ff << 52;

/// The memslot generation as far as an MMIO entry holds it: 19 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct MmioGeneration(u32);

impl MmioGeneration {
    /// Number of bits kept: 0-7 in entry bits 3-10, 8-18 in entry bits 52-62.
    pub const BITS: u32 = 19;

    /// The kept part of a memslot generation.
    pub const fn of(generation: u64) -> Self {
        Self((generation & ((1 << Self::BITS) - 1)) as u32)
    }
    /// As a number.
    pub const fn number(self) -> u32 {
        self.0
    }
}

/// A second-stage word with KVM's accessors. Any pattern is representable; transitions that do not apply return the
/// word unchanged, or `None` where the caller must know.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Spte {
    raw: u64,
    /// R, W, X, and XU with mode-based execute control.
    permission: u64,
}

impl Spte {
    pub(crate) const fn new(raw: u64, permission: u64) -> Self {
        Self { raw, permission }
    }

    /// A word of a tree as KVM configures it (without mode-based execute control).
    pub const fn from_raw(raw: u64) -> Self {
        Self::new(raw, R | W | X)
    }
    /// The word.
    pub const fn raw(self) -> u64 {
        self.raw
    }
    const fn to(self, raw: u64) -> Self {
        Self { raw, ..self }
    }

    /// `is_shadow_present_pte`.
    pub const fn is_shadow_present(self) -> bool {
        self.raw & MMU_PRESENT != 0
    }
    pub(crate) const fn frozen(self) -> u64 {
        FROZEN & !(self.permission & XU)
    }
    /// `is_removed_spte` / `is_frozen_spte`.
    pub const fn is_frozen(self) -> bool {
        self.raw == self.frozen()
    }
    /// `is_large_pte`.
    pub const fn is_large(self) -> bool {
        self.raw & LARGE != 0
    }
    /// `is_last_spte`: whether a shadow-present word at `level` is a leaf.
    pub fn is_last(self, level: Level) -> bool {
        level == Level::LAST || self.is_large()
    }
    /// `spte_ad_enabled`: whether A and D mean what hardware says.
    pub const fn ad_enabled(self) -> bool {
        self.raw & AD_TYPE != AD_DISABLED
    }
    /// `spte_ad_need_write_protect`: whether dirty logging must take W away instead of clearing D.
    pub const fn needs_write_protect(self) -> bool {
        self.raw & AD_TYPE != 0
    }
    /// `is_writable_pte`.
    pub const fn is_writable(self) -> bool {
        self.raw & W != 0
    }
    /// `is_mmu_writable_spte`: W may be set without the lock.
    pub const fn is_mmu_writable(self) -> bool {
        self.raw & MMU_WRITABLE != 0
    }
    /// Whether the word obeys `check_spte_writable_invariants`: MMU-writable needs host-writable, W needs MMU-writable.
    pub const fn keeps_writable_invariants(self) -> bool {
        if self.is_mmu_writable() { self.raw & HOST_WRITABLE != 0 } else { !self.is_writable() }
    }
    /// Marked old aside: unmapped for hardware, its permissions kept. KVM's `is_access_track_spte`, which is asked only of
    /// shadow-present words of type [`AD_DISABLED`].
    pub const fn is_access_tracked(self) -> bool {
        self.raw & self.permission == 0 && self.is_shadow_present() && self.raw & SAVED != 0
    }
    /// `is_accessed_spte`.
    pub const fn is_accessed(self) -> bool {
        if self.ad_enabled() { self.raw & A != 0 } else { self.raw & self.permission != 0 }
    }
    /// `is_dirty_spte`.
    pub const fn is_dirty(self) -> bool {
        if self.ad_enabled() { self.raw & D != 0 } else { self.is_writable() }
    }
    /// `spte_has_volatile_bits`: whether somebody without the lock (hardware, or the fast fault path) may change the word, so
    /// that it must be replaced atomically.
    pub const fn has_volatile_bits(self) -> bool {
        let lockless = !self.is_writable() && self.is_mmu_writable();
        let tracked = !self.ad_enabled() && self.raw & self.permission == 0;
        let flags = self.ad_enabled() && (self.raw & A == 0 || self.is_writable() && self.raw & D == 0);
        lockless || tracked || flags
    }

    /// W taken away to log writes. A word that had it stays MMU-writable, so that [`Spte::restore_write`] can undo it.
    #[must_use]
    pub const fn write_protect(self) -> Self {
        if self.is_writable() { self.to(self.raw & !W | HOST_WRITABLE | MMU_WRITABLE) } else { self }
    }
    /// W given back by the fast fault path (`fast_page_fault`): only where [`Spte::is_mmu_writable`] and R allow it.
    pub const fn restore_write(self) -> Option<Self> {
        if self.is_writable() || !self.is_mmu_writable() || self.raw & R == 0 {
            return None;
        }
        Some(self.to(self.raw | W))
    }
    /// Marked old where there is no accessed flag (`mark_spte_for_access_track`): R and X are saved, W is left to
    /// [`Spte::restore_write`], because such entries are dirty-tracked by W as well.
    #[must_use]
    pub const fn mark_access_tracked(self) -> Self {
        if self.raw & self.permission == 0 {
            return self;
        }
        let writable = self.write_protect().raw;
        let user = if self.raw & self.permission & XU != 0 { SAVED_USER_EXECUTE } else { 0 };
        let saved = (writable & (R | X)) << SAVED_SHIFT | user;
        self.to(writable & !(self.permission | SAVED) | saved | MMU_PRESENT)
    }
    /// Young again (`restore_acc_track_spte`): R and X are back; `None` when the word is not access-tracked.
    pub const fn restore_access_tracked(self) -> Option<Self> {
        if !self.is_access_tracked() {
            return None;
        }
        let user = if self.raw & SAVED_USER_EXECUTE != 0 { XU & self.permission } else { 0 };
        let kept = self.raw >> SAVED_SHIFT & (R | X) | user;
        if kept == 0 {
            return None;
        }
        Some(self.to(self.raw & !SAVED | kept))
    }

    /// An MMIO entry (`make_mmio_spte`): the frame of a guest page without memory, valid for this memslot generation.
    pub const fn mmio(gfn: Gfn, generation: MmioGeneration) -> Self {
        let generation = generation.0 as u64;
        let low = generation << 3 & GENERATION_LOW;
        let high = generation >> 8 << 52 & GENERATION_HIGH;
        Self::from_raw(MMIO | low | high | gfn.address(12).raw() & ADDRESS)
    }
    /// `is_mmio_spte`.
    pub const fn is_mmio(self) -> bool {
        self.raw & (R | W | X) == MMIO
    }
    /// The frame of an MMIO entry (`get_mmio_spte_gfn`).
    pub const fn mmio_gfn(self) -> Option<Gfn> {
        if self.is_mmio() { Some(Gfn::new((self.raw & ADDRESS) >> 12)) } else { None }
    }
    /// The generation of an MMIO entry (`get_mmio_spte_generation`): stale when it is not the memslots' own.
    pub const fn mmio_generation(self) -> Option<MmioGeneration> {
        if !self.is_mmio() {
            return None;
        }
        let low = (self.raw & GENERATION_LOW) >> 3;
        let high = (self.raw & GENERATION_HIGH) >> 52 << 8;
        Some(MmioGeneration((low | high) as u32))
    }
}

impl fmt::Display for Spte {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_frozen() {
            return f.write_str("FROZEN");
        }
        if let (Some(gfn), Some(generation)) = (self.mmio_gfn(), self.mmio_generation()) {
            return write!(f, "MMIO gfn {gfn} generation {}", generation.0);
        }
        let letter = |bit, c| if self.raw & bit != 0 { c } else { '-' };
        write!(
            f,
            "{:#x} {}{}{} {}{} {}{}",
            self.raw,
            letter(R, 'r'),
            letter(W, 'w'),
            letter(X, 'x'),
            letter(A, 'a'),
            letter(D, 'd'),
            letter(HOST_WRITABLE, 'h'),
            letter(MMU_WRITABLE, 'm')
        )
    }
}
impl fmt::Debug for Spte {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Spte({:#x})", self.raw)
    }
}
