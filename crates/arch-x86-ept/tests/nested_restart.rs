//! Somebody changes a word between the walker's read and its compare-and-swap: the walker starts over, loses no change,
//! resurrects nothing, and ends with what the tables then say.

mod common;

use std::collections::BTreeMap;

use arch_x86_ept::{AccessedDirty, EptConfig, LongModeConfig};
use common::{BACKING, Machine};
use mmu_core::image::MemoryImage;
use mmu_core::walk::{Bus, BusError, Exchange, NoCaches, Step};
use mmu_core::{Access, AccessKind, Gpa, Hpa, PageSize};
use proptest::prelude::*;

const GUEST_FLAGS: u64 = 3 << 5;
const EPT_FLAGS: u64 = 3 << 8;

/// What the other actor does to the word.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Change {
    Clear,
    WriteProtect,
    SoftwareBit,
    OtherPage,
    SetAccessed,
    ReservedBit,
}

impl Change {
    fn apply(self, word: u64, guest: bool) -> u64 {
        match self {
            Change::Clear => 0,
            Change::WriteProtect => word & !2,
            Change::SoftwareBit => word ^ 1 << 52,
            Change::OtherPage => word ^ 1 << 30,
            Change::SetAccessed => word | if guest { 1 << 5 } else { 1 << 8 },
            Change::ReservedBit => word | 1 << 50,
        }
    }
}

/// Memory in which the n-th compare-and-swap finds a word that changed just before.
struct Racing {
    image: MemoryImage,
    changes: BTreeMap<usize, Change>,
    swaps: usize,
    /// What the other actor wrote, in order.
    written: Vec<(Hpa, u64)>,
}

impl Racing {
    fn swap(&mut self, at: Hpa, old: u64, new: u64, guest: bool) -> Result<Exchange, BusError> {
        if let Some(change) = self.changes.get(&self.swaps) {
            let word = change.apply(self.image.get(at), guest);
            if word != self.image.get(at) {
                self.image.set(at, word).unwrap();
                self.written.push((at, word));
            }
        }
        self.swaps += 1;
        self.image.cmpxchg(at, old, new)
    }
}

impl Bus for Racing {
    fn read(&mut self, at: Hpa) -> Result<u64, BusError> {
        self.image.read(at)
    }
    fn cmpxchg(&mut self, at: Hpa, old: u64, new: u64) -> Result<Exchange, BusError> {
        self.swap(at, old, new, false)
    }
    fn cmpxchg_guest(&mut self, _gpa: Gpa, at: Hpa, old: u64, new: u64) -> Result<Exchange, BusError> {
        self.swap(at, old, new, true)
    }
}

const CHANGES: [Change; 6] = [
    Change::Clear,
    Change::WriteProtect,
    Change::SoftwareBit,
    Change::OtherPage,
    Change::SetAccessed,
    Change::ReservedBit,
];

const ACCESSES: [Access; 4] =
    [Access::READ, Access::WRITE, Access::EXECUTE, Access { kind: AccessKind::ReadWrite, ..Access::READ }];

/// Walks while `changes` happen, holds the end against the final tables, and tells how often the walk started over.
fn race(
    changes: BTreeMap<usize, Change>,
    access: Access,
    page: PageSize,
    host_page: PageSize,
    ad: AccessedDirty,
) -> Result<usize, TestCaseError> {
    let ept = EptConfig::new().accessed_dirty(ad).build().unwrap();
    let machine = Machine::new(LongModeConfig::new().build().unwrap(), ept, host_page).with_page(page);
    let before = machine.image.clone();
    let mut bus = Racing { image: before.clone(), changes, swaps: 0, written: Vec::new() };
    let mut cursor = machine.cursor(access);
    let mut restarts = 0;
    let answer = loop {
        match cursor.step(&mut bus, &mut NoCaches) {
            Step::Read(_) | Step::Update(_) => {}
            Step::Restart(_) => restarts += 1,
            Step::Done(found) => break Ok(found),
            Step::Fault(fault) => break Err(fault),
        }
    };
    prop_assert_eq!(restarts, bus.written.len(), "every change is noticed, nothing else restarts");

    let mut fresh = machine.clone();
    fresh.image = bus.image.clone();
    prop_assert_eq!(fresh.access(access), answer);
    if answer.is_ok() {
        prop_assert_eq!(&fresh.image, &bus.image, "a successful walk leaves nothing to update");
    }

    // Beyond what the other actor wrote only flags were set, and only in present words.
    let mut expected = before;
    for &(at, word) in &bus.written {
        expected.set(at, word).unwrap();
    }
    for (at, word) in bus.image.words() {
        let flags = if at.raw() >= BACKING { GUEST_FLAGS } else { EPT_FLAGS };
        let old = expected.get(at);
        prop_assert_ne!(old, 0, "resurrected at {}", at);
        prop_assert_eq!(word & !flags, old & !flags, "at {}", at);
        prop_assert_eq!(word & old, old, "a flag was lost at {}", at);
    }
    for (at, _) in expected.words() {
        prop_assert_ne!(bus.image.get(at), 0, "lost at {}", at);
    }
    Ok(restarts)
}

const PAGES: [PageSize; 3] = [PageSize::SIZE_4K, PageSize::SIZE_2M, PageSize::SIZE_1G];

/// One change at every compare-and-swap that a walk makes.
#[test]
fn every_single_race_is_survived() {
    let mut races = 0;
    for ad in [AccessedDirty::On, AccessedDirty::Off] {
        for access in ACCESSES {
            for page in PAGES {
                for host_page in PAGES {
                    for (swap, change) in (0..40).flat_map(|swap| CHANGES.map(|change| (swap, change))) {
                        let changes = BTreeMap::from([(swap, change)]);
                        let result = race(changes, access, page, host_page, ad);
                        races += result.unwrap_or_else(|error| {
                            panic!("{change:?} at swap {swap}, {access}, {page} on {host_page}, {ad:?}: {error}")
                        });
                    }
                }
            }
        }
    }
    assert!(races > 2000, "{races} races took place");
}

proptest! {
    #[test]
    fn several_races_are_survived(
        changes in prop::collection::btree_map(0..30usize, prop::sample::select(&CHANGES[..]), 0..5),
        access in prop::sample::select(&ACCESSES[..]),
        page in prop::sample::select(&PAGES[..]),
        host_page in prop::sample::select(&PAGES[..]),
        flags: bool,
    ) {
        race(changes, access, page, host_page, if flags { AccessedDirty::On } else { AccessedDirty::Off })?;
    }
}
