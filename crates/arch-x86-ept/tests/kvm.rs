//! KVM's transitions, exhaustively over the bits that they look at.

use arch_x86_ept::kvm::{
    AD_DISABLED, FROZEN, HOST_WRITABLE, MMU_PRESENT, MMU_WRITABLE, MmioGeneration, SAVED, SAVED_SHIFT, Spte,
};
use arch_x86_ept::{AccessedDirty, EptConfig, ModeBasedExecute};
use mmu_core::{Entry, Format, Gfn, Level, Malformed, NotPresent};

const R: u64 = 1;
const W: u64 = 2;
const X: u64 = 4;
const PFN: u64 = 0x12_3456_7000;

/// Every pattern of the bits that the transitions read or write, over one frame number.
fn words() -> impl Iterator<Item = Spte> {
    const BITS: [u32; 13] = [0, 1, 2, 8, 9, 11, 52, 53, 54, 55, 56, 57, 58];
    (0..1u64 << BITS.len()).map(|pattern| {
        let bits = BITS.iter().enumerate().filter(|(i, _)| pattern >> i & 1 == 1);
        Spte::from_raw(bits.fold(PFN, |word, (_, bit)| word | 1 << bit))
    })
}

#[test]
fn write_protection_comes_back() {
    for spte in words() {
        let protected = spte.write_protect();
        assert!(!protected.is_writable());
        assert_eq!(protected.write_protect(), protected);
        if !spte.is_writable() {
            assert_eq!(protected, spte);
            continue;
        }
        assert_eq!(protected.raw(), spte.raw() & !W | HOST_WRITABLE | MMU_WRITABLE);
        let restored = protected.restore_write();
        assert_eq!(restored.is_some(), spte.raw() & R != 0, "{spte}");
        if let Some(restored) = restored {
            assert_eq!(restored.raw(), spte.raw() | HOST_WRITABLE | MMU_WRITABLE);
        }
    }
}

#[test]
fn transitions_keep_the_writable_invariants() {
    for spte in words().filter(|spte| spte.keeps_writable_invariants()) {
        let next = [Some(spte.write_protect()), spte.restore_write(), Some(spte.mark_access_tracked())];
        for next in next.into_iter().flatten().chain(spte.restore_access_tracked()) {
            assert!(next.keeps_writable_invariants(), "{spte} -> {next}");
        }
    }
}

#[test]
fn access_tracking_saves_read_and_execute() {
    for spte in words() {
        let old = spte.mark_access_tracked();
        assert_eq!(old.raw() & (R | W | X), 0, "unmapped for hardware");
        assert_eq!(old.mark_access_tracked(), old);
        if spte.raw() & (R | W | X) == 0 {
            assert_eq!(old, spte);
            continue;
        }
        assert_eq!(old.raw() >> SAVED_SHIFT & (R | X), spte.raw() & (R | X));
        assert!(old.is_shadow_present());
        let Some(young) = old.restore_access_tracked() else {
            assert_eq!(spte.raw() & (R | X), 0, "only a bare W, itself a misconfiguration, is lost");
            continue;
        };
        assert_eq!(young.raw() & (R | W | X), spte.raw() & (R | X));
        assert_eq!(young.raw() & SAVED, 0);
        assert!(!young.is_access_tracked());
        if spte.raw() & (R | W) == R | W {
            assert_eq!(young.restore_write().map(|spte| spte.raw() & (R | W | X)), Some(spte.raw() & (R | W | X)));
        }
    }
}

#[test]
fn only_tracked_words_are_restored() {
    for spte in words() {
        let kept = spte.raw() >> SAVED_SHIFT & (R | X) != 0;
        assert_eq!(spte.restore_access_tracked().is_some(), spte.is_access_tracked() && kept, "{spte}");
    }
}

#[test]
fn accessed_dirty_and_volatile_follow_the_type() {
    for spte in words().filter(|spte| spte.is_shadow_present()) {
        let tracked = spte.raw() & (R | W | X) == 0;
        if spte.ad_enabled() {
            assert_eq!(spte.is_accessed(), spte.raw() >> 8 & 1 == 1);
            assert_eq!(spte.is_dirty(), spte.raw() >> 9 & 1 == 1);
            let settled = spte.is_accessed() && (spte.is_dirty() || !spte.is_writable());
            let lockless = !spte.is_writable() && spte.is_mmu_writable();
            assert_eq!(spte.has_volatile_bits(), !settled || lockless);
        } else {
            assert_eq!(spte.raw() & AD_DISABLED, AD_DISABLED);
            assert_eq!(spte.is_accessed(), !tracked);
            assert_eq!(spte.is_dirty(), spte.is_writable());
            assert_eq!(spte.has_volatile_bits(), tracked || !spte.is_writable() && spte.is_mmu_writable());
        }
    }
}

#[test]
fn mmio_entries_hold_frame_and_generation() {
    let ept = EptConfig::new().max_phys_addr(52).build().unwrap();
    for generation in (0..1 << MmioGeneration::BITS).step_by(7).chain([(1 << MmioGeneration::BITS) - 1]) {
        let generation = MmioGeneration::of(generation);
        for gfn in [0, 1, 0xfee00, (1 << 40) - 1].map(Gfn::new) {
            let spte = Spte::mmio(gfn, generation);
            assert_eq!((spte.mmio_gfn(), spte.mmio_generation()), (Some(gfn), Some(generation)));
            assert!(!spte.is_shadow_present() && !spte.is_frozen());
            assert_eq!(ept.decode(Level::LAST, spte.raw()), Entry::Malformed(Malformed::Permissions));
            assert!(!ept.is_mapped(spte.raw()), "KVM sees no mapping");
        }
    }
    assert_eq!(MmioGeneration::of(1 << 19), MmioGeneration::default(), "generations wrap at 19 bits");
    assert_eq!(Spte::from_raw(R | W | X).mmio_generation(), None);
}

#[test]
fn the_frozen_marker_is_nothing_else() {
    let frozen = Spte::from_raw(FROZEN);
    assert!(frozen.is_frozen() && !frozen.is_shadow_present() && !frozen.is_mmio() && !frozen.is_access_tracked());
    for mode in [ModeBasedExecute::Off, ModeBasedExecute::On] {
        let ept = EptConfig::new().mode_based_execute(mode).build().unwrap();
        let word = ept.encode_not_present(NotPresent::Frozen).unwrap();
        assert_eq!(word, if mode == ModeBasedExecute::Off { 0x5a0 } else { 0x1a0 });
        assert_eq!(ept.decode(Level::new(2), word), Entry::NotPresent(NotPresent::Frozen));
    }
}

#[test]
fn without_flags_aging_goes_through_the_saved_bits() {
    for mode in [ModeBasedExecute::Off, ModeBasedExecute::On] {
        let ept = EptConfig::new().accessed_dirty(AccessedDirty::Off).mode_based_execute(mode).build().unwrap();
        for permission in [R, R | X, R | W, R | W | X, R | W | X | 1 << 10, R | 1 << 10] {
            let raw = PFN | permission | 6 << 3 | MMU_PRESENT;
            let old = ept.mark_old(raw);
            assert!(matches!(ept.decode(Level::LAST, old), Entry::NotPresent(_)) && ept.is_mapped(old));
            let young = ept.mark_young(old).unwrap();
            let whole = ept.restore_write(young).unwrap_or(young);
            assert_eq!(whole & ept.present_mask(), raw & ept.present_mask(), "{mode:?} {permission:#x}");
        }
    }
}
