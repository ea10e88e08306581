//! Hashed page tables: what is mapped is found, and nothing else.

use arch_ppc_radix::Cause;
use arch_ppc_radix::hpt::{HashedTable, HptError, HptMapping, HptPage, HptWhy, Protection, Segment, VirtualAddress};
use mmu_core::image::MemoryImage;
use mmu_core::tlb::Perms;
use mmu_core::{Access, Hpa};
use proptest::prelude::*;

const BASE: Hpa = Hpa::new(0x100_0000);

fn page() -> impl Strategy<Value = HptPage> {
    prop_oneof![Just(HptPage::K4), Just(HptPage::K64), Just(HptPage::M16)]
}

fn address() -> impl Strategy<Value = VirtualAddress> {
    prop_oneof![
        (0..1u64 << 40, 0..1u64 << 28).prop_map(|(vsid, offset)| (Segment::M256, vsid, offset)),
        (0..1u64 << 28, 0..1u64 << 40).prop_map(|(vsid, offset)| (Segment::T1, vsid, offset)),
        // Neighbours, which collide in groups and abbreviated numbers.
        (0..4u64, 0..1u64 << 25).prop_map(|(vsid, offset)| (Segment::M256, vsid, offset)),
    ]
    .prop_map(|(segment, vsid, offset)| VirtualAddress::new(segment, vsid, offset).unwrap())
}

fn same_page(a: VirtualAddress, b: VirtualAddress, page: HptPage) -> bool {
    (a.segment(), a.vsid(), a.offset() >> page.shift()) == (b.segment(), b.vsid(), b.offset() >> page.shift())
}

proptest! {
    /// Map, look up, invalidate, against a plain list.
    #[test]
    fn what_is_mapped_is_found(
        page in page(),
        addresses in prop::collection::vec((address(), 0..1u64 << 20), 1..60),
        gone in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let mut image = MemoryImage::everywhere();
        let table = HashedTable::new(BASE, 18).unwrap();
        let mut mapped: Vec<(VirtualAddress, Hpa)> = Vec::new();
        for &(va, frame) in &addresses {
            let output = Hpa::new(frame << page.shift());
            let known = mapped.iter().any(|&(other, _)| same_page(other, va, page));
            match table.insert(&mut image, va, HptMapping::new(output, page, Protection::AllReadWrite)) {
                Ok(_) => { prop_assert!(!known); mapped.push((va, output)); }
                Err(HptError::Mapped { .. }) => prop_assert!(known),
                Err(HptError::Full { .. }) => prop_assert!(!known),
                Err(other) => prop_assert!(false, "{}", other),
            }
        }
        for index in gone {
            if mapped.is_empty() { break; }
            let (va, output) = mapped.swap_remove(index.index(mapped.len()));
            let removed = table.invalidate(&mut image, va, page).unwrap().unwrap();
            prop_assert_eq!(removed.entry.output(page), output);
            prop_assert!(table.invalidate(&mut image, va, page).unwrap().is_none());
            prop_assert_eq!(table.translate(&mut image, va, page, &Access::READ).unwrap_err().why, HptWhy::NoEntry);
        }
        for &(va, output) in &mapped {
            let found = table.translate(&mut image, va, page, &Access::READ).unwrap();
            prop_assert_eq!(found.output, output + (va.offset() & (page.size().bytes() - 1)));
            prop_assert!(found.entry.referenced() && !found.entry.changed());
        }
        let in_use = image.words().filter(|&(at, word)| at.raw() & 8 == 0 && word & 1 == 1).count();
        prop_assert_eq!(in_use, mapped.len());
    }
}

#[test]
fn sizes_and_places_are_checked() {
    for order in [17, 47] {
        assert_eq!(HashedTable::new(Hpa::new(0), order), Err(HptError::Order { order }));
    }
    assert_eq!(HashedTable::new(Hpa::new(1 << 17), 18), Err(HptError::Misaligned { base: Hpa::new(1 << 17) }));
    let largest = HashedTable::new(Hpa::new(1 << 46), 46).unwrap();
    assert_eq!(largest.groups(), 1 << 39);
    assert_eq!(largest.partition_word(), 1 << 46 | 0x1c);
    assert!(VirtualAddress::new(Segment::T1, 1 << 28, 0).is_err());
    assert!(VirtualAddress::new(Segment::M256, 0, 1 << 28).is_err());
    let va = VirtualAddress::new(Segment::M256, 1, 0).unwrap();
    let odd = HptMapping::new(Hpa::new(0x1000), HptPage::K64, Protection::AllRead);
    let table = HashedTable::new(BASE, 18).unwrap();
    assert!(matches!(table.insert(&mut MemoryImage::everywhere(), va, odd), Err(HptError::Output { .. })));
}

/// Hashes by hand: ISA 3.0 Book III 5.7.9.3.
#[test]
fn hashes_are_the_manuals() {
    let small = VirtualAddress::new(Segment::M256, 0xabcdef, 0x123_4567).unwrap();
    assert_eq!(small.hash(HptPage::K4), 0xabcdef ^ 0x1234);
    assert_eq!(small.hash(HptPage::K64), 0xabcdef ^ 0x123);
    assert_eq!(small.hash(HptPage::M16), 0xabcdef ^ 1);
    let large = VirtualAddress::new(Segment::T1, 0x12345, 0xab_cdef_1234).unwrap();
    assert_eq!(large.hash(HptPage::K4), (0x12345 ^ (0x12345 << 25) ^ 0xabc_def1) & ((1 << 39) - 1));
}

/// Sixteen pages of one hash fill both groups; the seventeenth is refused until one goes.
#[test]
fn full_groups_are_an_error() {
    let mut image = MemoryImage::everywhere();
    let table = HashedTable::new(BASE, 18).unwrap();
    let groups = table.groups();
    // Same low hash bits: VSIDs that differ above the 11 bits that select the group.
    let va = |i: u64| VirtualAddress::new(Segment::M256, i * groups, 0).unwrap();
    let mapping = |i: u64| HptMapping::new(Hpa::new(i << 12), HptPage::K4, Protection::AllReadWrite);
    let slots: Vec<_> = (0..16).map(|i| table.insert(&mut image, va(i), mapping(i)).unwrap()).collect();
    assert!(slots[..8].iter().all(|slot| slot.group() == 0));
    assert!(slots[8..].iter().all(|slot| slot.group() == groups - 1));
    let full = table.insert(&mut image, va(16), mapping(16)).unwrap_err();
    assert_eq!(full, HptError::Full { primary: 0, secondary: groups - 1 });
    assert!(full.to_string().contains("invalidate an entry"));
    let removed = table.invalidate(&mut image, va(11), HptPage::K4).unwrap().unwrap();
    assert_eq!(removed.slot, slots[11]);
    assert_eq!(table.insert(&mut image, va(16), mapping(16)).unwrap(), slots[11]);
    assert_eq!(table.translate(&mut image, va(16), HptPage::K4, &Access::READ).unwrap().output, Hpa::new(16 << 12));
}

#[test]
fn protection_and_rc_follow_the_access() {
    let mut image = MemoryImage::everywhere();
    let table = HashedTable::new(BASE, 18).unwrap();
    let user = Access::WRITE.user();
    for (i, (protection, perms)) in [
        (Protection::PrivilegedReadWrite, Perms::READ | Perms::WRITE),
        (Protection::UserRead, Perms::R | Perms::WRITE),
        (Protection::AllReadWrite, Perms::RW),
        (Protection::AllRead, Perms::R),
        (Protection::PrivilegedRead, Perms::READ),
    ]
    .into_iter()
    .enumerate()
    {
        let va = VirtualAddress::new(Segment::T1, 7, (i as u64) << 12).unwrap();
        let mapping =
            HptMapping { no_execute: true, ..HptMapping::new(Hpa::new((i as u64) << 12), HptPage::K4, protection) };
        table.insert(&mut image, va, mapping).unwrap();
        let store = table.translate(&mut image, va, HptPage::K4, &user);
        if perms.contains(Perms::USER_WRITE) {
            assert!(store.unwrap().entry.changed());
        } else {
            assert_eq!(store.unwrap_err().cause, Cause::PROTECTION | Cause::STORE);
            let (_, entry) = table.lookup(&mut image, va, HptPage::K4).unwrap().unwrap();
            assert!(!entry.referenced(), "a refused access sets nothing");
            assert_eq!(entry.perms(), perms);
        }
        let fetch = table.translate(&mut image, va, HptPage::K4, &Access::EXECUTE).unwrap_err();
        assert_eq!(fetch.why, HptWhy::NoExecute);
    }
}
