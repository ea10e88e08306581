//! Walks through paging-structure caches: fewer references, the same answers and the same flags.

mod common;

use std::collections::BTreeMap;

use arch_x86_ept::{AccessedDirty, EptConfig, LongModeAttrs, LongModeConfig, WalkLength};
use common::{CR3, EPT_ROOT, GVA, Machine, PAGE};
use mmu_core::tlb::Perms;
use mmu_core::walk::{CachedTable, NestedCursor, NoCaches, Stage, Step, Translation, WalkCacheSet};
use mmu_core::{Access, Gpa, Hpa, Leaf, Level, PageSize};
use proptest::prelude::*;

/// What a cache of unbounded size would hold.
#[derive(Default)]
struct Everything {
    tables: BTreeMap<(Stage, Level, u64), CachedTable>,
    guest_physical: BTreeMap<u64, Translation>,
}

/// The input bits that select the table in which entries of `level` live.
fn tag(level: Level, input: u64) -> u64 {
    input >> (12 + 9 * (level.index() as u32 + 1)).min(63)
}

impl WalkCacheSet for Everything {
    fn deepest(&mut self, stage: Stage, input: u64) -> Option<CachedTable> {
        (0..5).map(Level::new).find_map(|level| self.tables.get(&(stage, level, tag(level, input))).copied())
    }
    fn fill(&mut self, stage: Stage, input: u64, found: CachedTable) {
        self.tables.insert((stage, found.level, tag(found.level, input)), found);
    }
    fn guest_physical(&mut self, gpa: Gpa) -> Option<Translation> {
        self.guest_physical.get(&(gpa.raw() >> 12)).copied()
    }
    fn fill_guest_physical(&mut self, gpa: Gpa, translation: &Translation) {
        self.guest_physical.insert(gpa.raw() >> 12, *translation);
    }
}

fn walk<C: WalkCacheSet>(machine: &mut Machine, gva: u64, access: Access, caches: &mut C) -> (Translation, usize) {
    let mut cursor = NestedCursor::new(machine.guest, CR3, machine.ept, EPT_ROOT, gva, access);
    let mut reads = 0;
    loop {
        match cursor.step(&mut machine.image, caches) {
            Step::Read(_) => reads += 1,
            Step::Update(_) => {}
            Step::Restart(reference) => panic!("nobody else is there: {reference:?}"),
            Step::Done(found) => return (found, reads),
            Step::Fault(fault) => panic!("{fault}"),
        }
    }
}

fn machine(guest: WalkLength, host: WalkLength, host_page: PageSize, ad: AccessedDirty) -> Machine {
    let guest = LongModeConfig::new().walk_length(guest).build().unwrap();
    let ept = EptConfig::new().walk_length(host).accessed_dirty(ad).build().unwrap();
    Machine::new(guest, ept, host_page)
}

#[test]
fn a_warm_walk_reads_two_entries() {
    for length in [WalkLength::Four, WalkLength::Five] {
        for (page, host_page) in [
            (PageSize::SIZE_4K, PageSize::SIZE_4K),
            (PageSize::SIZE_2M, PageSize::SIZE_4K),
            (PageSize::SIZE_2M, PageSize::SIZE_2M),
        ] {
            let mut machine = machine(length, length, host_page, AccessedDirty::On).with_page(page);
            let mut caches = Everything::default();
            // The first walk sets accessed flags, and only entries that have them are remembered: by the second.
            let (cold, many) = walk(&mut machine, GVA, Access::READ, &mut caches);
            walk(&mut machine, GVA, Access::READ, &mut caches);
            let (warm, few) = walk(&mut machine, GVA, Access::READ, &mut caches);
            assert_eq!((cold, few), (warm, 2), "the guest's leaf and the host's leaf");
            assert!(many > few);
        }
    }
}

proptest! {
    /// Pages in few and in many tables; every walk succeeds, because a walk that faults may fill caches and set no flags.
    #[test]
    fn caches_change_no_answer_and_no_flag(
        pages in prop::collection::vec((0..3u64, 0..3u64, 0..4u64), 1..12),
        visits in prop::collection::vec((any::<prop::sample::Index>(), 0..3usize), 1..40),
        five: bool,
        large_host: bool,
        flags: bool,
    ) {
        let length = if five { WalkLength::Five } else { WalkLength::Four };
        let host_page = if large_host { PageSize::SIZE_2M } else { PageSize::SIZE_4K };
        let ad = if flags { AccessedDirty::On } else { AccessedDirty::Off };
        let mut plain = machine(length, WalkLength::Four, host_page, ad);
        let gva = |(upper, middle, lower): (u64, u64, u64)| upper << 39 | middle << 21 | lower << 12;
        for (i, &page) in pages.iter().enumerate() {
            let gpa = PAGE + 0x1000 * i as u64;
            plain.back(gpa);
            let leaf = Leaf {
                output: Hpa::new(gpa.raw()),
                perms: Perms::RWX,
                accessed: false,
                attrs: LongModeAttrs::default(),
            };
            plain.map_guest(gva(page), leaf, PageSize::SIZE_4K);
        }
        let mut cached = plain.clone();
        let mut caches = Everything::default();
        for (visit, kind) in visits {
            let input = gva(pages[visit.index(pages.len())]) + 8;
            let access = [Access::READ, Access::WRITE, Access::EXECUTE][kind];
            let (wanted, most) = walk(&mut plain, input, access, &mut NoCaches);
            let (found, reads) = walk(&mut cached, input, access, &mut caches);
            prop_assert_eq!(wanted, found);
            prop_assert!(reads <= most);
            prop_assert_eq!(&plain.image, &cached.image);
        }
    }
}
