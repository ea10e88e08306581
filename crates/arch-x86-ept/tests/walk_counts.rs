//! The textbook numbers of walk references: (n + 1)(m + 1) - 1 reads for n guest and m host levels.

mod common;

use arch_x86_ept::{AccessedDirty, EptConfig, LongModeConfig, WalkLength};
use common::{BACKING, EPT_ROOT, GVA, Machine, PAGE};
use mmu_core::walk::{NestedCursor, NoCaches, Stage, Step, WalkCursor};
use mmu_core::{Access, Hpa, PageSize};

fn machine(guest: WalkLength, host: WalkLength, ad: AccessedDirty, page: PageSize, host_page: PageSize) -> Machine {
    let guest = LongModeConfig::new().walk_length(guest).build().unwrap();
    let ept = EptConfig::new().walk_length(host).accessed_dirty(ad).build().unwrap();
    Machine::new(guest, ept, host_page).with_page(page)
}

/// Reads of first-stage and second-stage entries.
fn reads(machine: &mut Machine, access: Access) -> (usize, usize) {
    let mut cursor: NestedCursor<_, _> = machine.cursor(access);
    let (mut one, mut two) = (0, 0);
    loop {
        match cursor.step(&mut machine.image, &mut NoCaches) {
            Step::Read(reference) if reference.stage == Stage::One => one += 1,
            Step::Read(_) => two += 1,
            Step::Update(_) => {}
            Step::Restart(reference) => panic!("nobody else is there: {reference:?}"),
            Step::Done(found) => {
                let offset = GVA & (found.size.bytes() - 1);
                assert_eq!(found.output.raw() & (found.size.bytes() - 1), offset);
                return (one, two);
            }
            Step::Fault(fault) => panic!("{fault}"),
        }
    }
}

#[test]
fn nested_walks_make_the_textbook_references() {
    use PageSize as S;
    use WalkLength::{Five, Four};
    for (guest, host, page, host_page, one, total) in [
        (Four, Four, S::SIZE_4K, S::SIZE_4K, 4, 24),
        (Four, Five, S::SIZE_4K, S::SIZE_4K, 4, 29),
        (Five, Four, S::SIZE_4K, S::SIZE_4K, 5, 29),
        (Five, Five, S::SIZE_4K, S::SIZE_4K, 5, 35),
        (Four, Four, S::SIZE_2M, S::SIZE_4K, 3, 19),
        (Four, Four, S::SIZE_4K, S::SIZE_2M, 4, 19),
        (Four, Four, S::SIZE_2M, S::SIZE_2M, 3, 15),
        (Four, Four, S::SIZE_1G, S::SIZE_1G, 2, 8),
    ] {
        for ad in [AccessedDirty::On, AccessedDirty::Off] {
            for access in [Access::READ, Access::WRITE, Access::EXECUTE] {
                let mut machine = machine(guest, host, ad, page, host_page);
                let (first, second) = reads(&mut machine, access);
                let name = format!("{guest:?} over {host:?}, {page} on {host_page}, {ad:?}, {access}");
                assert_eq!((first, first + second), (one, total), "{name}");
                // A second walk has nothing to update and reads the same.
                let before = machine.image.clone();
                assert_eq!(reads(&mut machine, access), (first, second), "{name}");
                assert_eq!(machine.image, before, "{name}");
            }
        }
    }
}

#[test]
fn one_stage_alone_reads_its_levels() {
    for (length, wanted) in [(WalkLength::Four, 4), (WalkLength::Five, 5)] {
        let mut machine = machine(length, length, AccessedDirty::On, PageSize::SIZE_4K, PageSize::SIZE_4K);
        let gpa = PAGE + (GVA & 0xfff);
        let mut cursor = WalkCursor::new(machine.ept, EPT_ROOT, gpa.raw(), Access::READ);
        let mut count = 0;
        let found = loop {
            match cursor.step(&mut machine.image) {
                Step::Read(_) => count += 1,
                Step::Done(found) => break found,
                Step::Fault(fault) => panic!("{fault}"),
                Step::Update(_) | Step::Restart(_) => {}
            }
        };
        assert_eq!((count, found.output), (wanted, Hpa::new(BACKING + gpa.raw())));
    }
}

#[test]
fn the_smaller_page_bounds_what_a_tlb_may_keep() {
    for (page, host_page) in [
        (PageSize::SIZE_4K, PageSize::SIZE_2M),
        (PageSize::SIZE_2M, PageSize::SIZE_4K),
        (PageSize::SIZE_2M, PageSize::SIZE_1G),
    ] {
        let mut machine = machine(WalkLength::Four, WalkLength::Four, AccessedDirty::On, page, host_page);
        assert_eq!(machine.access(Access::READ).unwrap().size, page.min(host_page));
    }
}
