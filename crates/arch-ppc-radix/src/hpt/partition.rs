//! The hashed table as the alternative to a partition's radix tree: what `mmu-core` asks of it.

use mmu_core::{EncodeError, Gpa, HashGroup, HashedPages, Hpa, PageSize};

use super::entry::{CHANGED, HptEntry, HptMapping, HptPage, Protection, REFERENCED, SECONDARY, VALID};
use super::hash::{Segment, VirtualAddress};
use crate::radix::{BasePage, Radix};

/// The segment of KVM's virtual real mode area (`VRMA_VSID`).
const REAL_MODE_AREA: u64 = 0x1ff_ffff;
/// Linux `HPTE_V_HVLOCK`: a software bit.
const HV_LOCK: u64 = 0x40;

fn page_of(radix: &Radix) -> HptPage {
    match radix.base_page() {
        BasePage::K4 => HptPage::K4,
        BasePage::K64 => HptPage::K64,
    }
}

fn address(gpa: Gpa) -> Result<VirtualAddress, EncodeError> {
    VirtualAddress::new(Segment::T1, REAL_MODE_AREA, gpa.raw()).map_err(|_| EncodeError::Address {
        address: Hpa::new(gpa.raw()),
        align: PageSize::SIZE_4K,
        bits: Segment::T1.shift(),
    })
}

const fn secondary(group: HashGroup) -> u64 {
    match group {
        HashGroup::Primary => 0,
        HashGroup::Secondary => SECONDARY,
    }
}

impl HashedPages for Radix {
    const GROUP_ENTRIES: u64 = 8;
    const HASHED_VALID: u64 = VALID;
    const HASHED_LOCK: u64 = HV_LOCK;
    const HASHED_REFERENCED: u64 = REFERENCED;
    const HASHED_CHANGED: u64 = CHANGED;

    fn hashed_group(&self, gpa: Gpa, group: HashGroup, groups: u64) -> Result<u64, EncodeError> {
        let hash = address(gpa)?.hash(page_of(self));
        Ok(match group {
            HashGroup::Primary => hash & (groups - 1),
            HashGroup::Secondary => !hash & (groups - 1),
        })
    }

    fn hashed_entry(&self, gpa: Gpa, output: Hpa, group: HashGroup) -> Result<[u64; 2], EncodeError> {
        let page = page_of(self);
        let mapping = HptMapping::new(output, page, Protection::AllReadWrite);
        if !mapping.is_legal() {
            return Err(EncodeError::Address { address: output, align: page.size(), bits: 57 });
        }
        let entry = HptEntry::new(address(gpa)?, &mapping, secondary(group));
        Ok([entry.first, entry.second])
    }

    fn hashed_matches(&self, [first, second]: [u64; 2], gpa: Gpa, group: HashGroup) -> bool {
        address(gpa).is_ok_and(|va| HptEntry { first, second }.matches(va, page_of(self), secondary(group)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_found_in_its_own_group_and_for_its_own_page_only() {
        let radix = Radix::partition(BasePage::K4);
        let gpa = Gpa::new(0x12_3456_7000);
        for group in [HashGroup::Primary, HashGroup::Secondary] {
            let words = radix.hashed_entry(gpa, Hpa::new(0x8000_0000), group).unwrap();
            assert!(radix.hashed_matches(words, gpa, group));
            assert!(radix.hashed_matches([words[0] | HV_LOCK, words[1] | REFERENCED], gpa, group));
            assert!(!radix.hashed_matches([words[0] & !VALID, words[1]], gpa, group));
            // 8 MiB on, the part of the address that the entry holds differs; nearer pages differ in their group.
            assert!(!radix.hashed_matches(words, gpa + (8 << 20), group));
            assert_ne!(
                radix.hashed_group(gpa, group, 2048).unwrap(),
                radix.hashed_group(gpa + 0x1000, group, 2048).unwrap()
            );
        }
        let groups = |group| radix.hashed_group(gpa, group, 2048).unwrap();
        assert_eq!(groups(HashGroup::Primary) ^ groups(HashGroup::Secondary), 2047);
        assert!(radix.hashed_group(Gpa::new(1 << 40), HashGroup::Primary, 2048).is_err());
    }
}
