//! What each paging-structure cache spares a two-stage walk, to the reference.
//!
//! With `n` guest and `m` host levels a cold walk makes `n m + n + m` references. A cached guest table of level `l` (0 holds
//! the leaves) comes with its host address: the walk starts at its entry, `l + 1` guest entries are left, and all but the
//! first of them, as well as the data, are translated by the second stage. A cached host table of level `l` leaves `l + 1`
//! references of each second-stage walk that finds it.

mod common;

use arch_x86_ept::{EptConfig, LongModeConfig, WalkLength};
use common::{CR3, EPT_ROOT, GVA, Machine};
use mmu_core::assoc::Shape;
use mmu_core::machine;
use mmu_core::tlb::{Globals, Invalidate, Kind, PscLevelSpec, TableCaches, Tag, TranslationCaches, Vmid};
use mmu_core::walk::{NestedCursor, Step};
use mmu_core::{Access, Format, Level, PageSize};

fn guest(first: WalkLength, second: WalkLength) -> Machine {
    let one = LongModeConfig::new().walk_length(first).build().unwrap();
    let two = EptConfig::new().walk_length(second).build().unwrap();
    Machine::new(one, two, PageSize::SIZE_4K).with_page(PageSize::SIZE_4K)
}

/// Caches for tables of these levels of the guest's tree and of the host's, and none else.
fn caches(machine: &Machine, first: &[u8], second: &[u8]) -> TranslationCaches {
    let mut sheet = machine::Machine::builtin("intel-granite-rapids-host").unwrap();
    let levels = |levels: &[u8]| {
        let level = |&level: &u8| PscLevelSpec { tables: Level::new(level), shape: Shape::new(16, 0).unwrap() };
        levels.iter().map(level).collect()
    };
    sheet.translation.psc.levels = levels(first);
    sheet.translation.psc.guest_physical = Some(levels(second));
    sheet.translation.nested = None;
    sheet.translation_caches(machine.guest.geometry(), machine.ept.geometry(), 0).unwrap()
}

fn tag(vmid: u16) -> Tag {
    Tag { vmid: Vmid(vmid), ..Tag::default() }
}

/// References of one walk.
fn references(machine: &mut Machine, caches: &mut TranslationCaches, tag: Tag) -> usize {
    let mut cursor = NestedCursor::new(machine.guest, CR3, machine.ept, EPT_ROOT, GVA, Access::READ);
    let mut cached = caches.for_walk(tag, Kind::Combined);
    let mut count = 0;
    loop {
        match cursor.step(&mut machine.image, &mut cached) {
            Step::Read(_) => count += 1,
            Step::Update(_) => {}
            Step::Restart(reference) => panic!("nobody else is there: {reference:?}"),
            Step::Done(_) => return count,
            Step::Fault(fault) => panic!("{fault}"),
        }
    }
}

/// References of a warm walk when the guest's tables of `first` and the host's of `second` are cached.
fn warm(lengths: (WalkLength, WalkLength), first: &[u8], second: &[u8]) -> (usize, usize) {
    let mut machine = guest(lengths.0, lengths.1);
    // Flags are set by a first walk; only entries that have them are remembered.
    let mut scratch = caches(&machine, &[], &[]);
    references(&mut machine, &mut scratch, tag(1));
    let mut caches = caches(&machine, first, second);
    let cold = references(&mut machine, &mut caches, tag(1));
    (cold, references(&mut machine, &mut caches, tag(1)))
}

const LENGTHS: [(WalkLength, usize); 2] = [(WalkLength::Four, 4), (WalkLength::Five, 5)];

#[test]
fn a_cached_guest_table_spares_what_lies_above_it() {
    for (first, n) in LENGTHS {
        for (second, m) in LENGTHS {
            let whole = n * m + n + m;
            assert_eq!(warm((first, second), &[], &[]), (whole, whole));
            for level in 0..n as u8 - 1 {
                let left = usize::from(level) + 1;
                // `left` guest entries; the first is found without the second stage, the data is not.
                let wanted = left + left * m;
                assert_eq!(warm((first, second), &[level], &[]), (whole, wanted), "{n} over {m}, level {level}");
            }
        }
    }
}

#[test]
fn the_deepest_cached_table_decides() {
    let four = (WalkLength::Four, WalkLength::Four);
    for (levels, wanted) in [(&[0, 1, 2][..], 5), (&[1, 2], 10), (&[2], 15), (&[0, 2], 5), (&[], 24)] {
        assert_eq!(warm(four, levels, &[]).1, wanted, "{levels:?}");
    }
}

#[test]
fn a_cached_host_table_shortens_every_second_stage_walk() {
    for (second, m) in LENGTHS {
        for level in 0..m as u8 - 1 {
            let left = usize::from(level) + 1;
            // Four guest entries, and five second-stage walks.
            let got = warm((WalkLength::Four, second), &[], &[level]).1;
            // The data lies in another 2 MiB and 1 GiB than the tables, and is cached all the same once it was walked.
            assert_eq!(got, 4 + 5 * left, "over {m}, level {level}");
        }
        // All there is: the guest's leaf and the host's.
        let all: Vec<u8> = (0..m as u8 - 1).collect();
        assert_eq!(warm((WalkLength::Four, second), &[0, 1, 2], &all).1, 2);
    }
}

/// Walks until nothing changes, then invalidates, and counts the next walk under `vmid`.
fn after(what: Invalidate, tables: TableCaches, vmid: u16) -> usize {
    let mut machine = guest(WalkLength::Four, WalkLength::Four);
    let mut caches = caches(&machine, &[0, 1, 2], &[0, 1, 2]);
    for vmid in [1, 1, 1, 2, 2] {
        references(&mut machine, &mut caches, tag(vmid));
    }
    caches.invalidate(what, tables);
    references(&mut machine, &mut caches, tag(vmid))
}

#[test]
fn tables_belong_to_one_virtual_machine_processor_and_to_a_root() {
    let mut machine = guest(WalkLength::Four, WalkLength::Four);
    let mut caches = caches(&machine, &[0, 1, 2], &[0, 1, 2]);
    for _ in 0..3 {
        references(&mut machine, &mut caches, tag(1));
    }
    assert_eq!(references(&mut machine, &mut caches, tag(1)), 2);
    // Another VPID under the same EPT root: guest-physical tables are shared, combined ones are not.
    let other = references(&mut machine, &mut caches, tag(2));
    assert_eq!(other, 4 + 5, "four guest entries, and the host's leaf for each and for the data");
    assert_eq!(references(&mut machine, &mut caches, tag(2)), 2);
    assert_eq!(references(&mut machine, &mut caches, tag(1)), 2, "nobody lost anything");
}

#[test]
fn invalidations_reach_as_far_as_they_say() {
    // The host's tables of the first four walks are the same three; the data's differ below the root's.
    let refilled = 4 + (4 + 1 + 1 + 1) + 3;
    assert_eq!(after(Invalidate::All, TableCaches::Dropped, 1), refilled);
    assert_eq!(after(Invalidate::All, TableCaches::Kept, 1), 2);
    let one = Invalidate::Vmid { vmid: Vmid(1), globals: Globals::Dropped };
    assert_eq!((after(one, TableCaches::Dropped, 1), after(one, TableCaches::Dropped, 2)), (4 + 5, 2));
}
