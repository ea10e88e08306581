//! The walk in one call and the walk in steps: the same answer and the same memory, whatever the tables hold and however they
//! are held.

use arch_x86_ept::{AccessedDirty, EptConfig, WalkLength};
use mmu_core::image::{MemoryImage, RamRange};
use mmu_core::memory::{Holding, Progression, TableMemory};
use mmu_core::walk::{WalkCursor, walk};
use mmu_core::{Access, Hpa, Level};
use proptest::prelude::*;

/// Words that look like entries pointing back into a few tables, and words that look like anything.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        (0u64..4, 0u64..0x1000, any::<bool>())
            .prop_map(|(table, low, large)| { (1 + table) << 12 | low & 0xf77 | u64::from(large) << 7 | 1 }),
        (0u64..4).prop_map(|table| (1 + table) << 12 | 7),
        any::<u64>(),
    ]
}

const POOL: u64 = 1 << 30;

/// Words as a hypervisor writes them and words that look like anything, pointing into a few tables or nowhere.
fn table_word() -> impl Strategy<Value = u64> {
    let target =
        prop_oneof![8 => (0u64..5).prop_map(|table| POOL + (table << 12)), 1 => Just(0x5000), 1 => Just(1 << 52)];
    let low = prop_oneof![Just(0x107u64), Just(0x337), Just(0x7), Just(0x37), Just(0x3b7), Just(0), 0u64..4096];
    (target, low, any::<u64>())
        .prop_map(|(target, low, high)| target | low | if high & 3 == 0 { high << 52 } else { 0 })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn in_one_call_as_in_steps(
        words in prop::collection::vec((0u64..4, 0u64..512, word()), 1..60),
        indices in prop::array::uniform4(0usize..60),
        offset in 0u64..4096,
        which in 0usize..4,
    ) {
        let ept = EptConfig::new().build().unwrap();
        let root = Hpa::new(0x1000);
        let mut image = MemoryImage::everywhere();
        for &(table, index, word) in &words {
            image.set(Hpa::new((1 + table) << 12 | index << 3), word).unwrap();
        }
        // An address whose indices hit words that were set.
        let input = indices.iter().enumerate().fold(offset, |input, (level, &pick)| {
            input | words[pick % words.len()].1 << (12 + 9 * level)
        });
        let access = [Access::READ, Access::WRITE, Access::EXECUTE, Access::GUEST_TABLE][which];
        let mut stepped = image.clone();
        let steps = WalkCursor::new(ept, root, input, access).run(&mut stepped);
        let at_once = walk(&ept, root, input, access, &mut image);
        prop_assert_eq!(at_once, steps);
        prop_assert_eq!(image, stepped);
    }

    /// Over table memory, where the walk first looks around: tables as templates, with exceptions, and word by word.
    #[test]
    fn over_table_memory_as_in_steps(
        words in prop::collection::vec((0u64..5, 0u64..512, table_word()), 1..60),
        fills in prop::array::uniform5(prop::option::of(table_word())),
        indices in prop::array::uniform4(0usize..60),
        offset in 0u64..4096,
        (which, user, flags, five) in (0usize..4, any::<bool>(), any::<bool>(), any::<bool>()),
        (holding, level) in (prop_oneof![Just(Holding::Folding), Just(Holding::Dense)], 0u8..4),
    ) {
        let flags = if flags { AccessedDirty::On } else { AccessedDirty::Off };
        let length = if five { WalkLength::Five } else { WalkLength::Four };
        let ept = EptConfig::new().accessed_dirty(flags).walk_length(length).build().unwrap();
        let pool = RamRange { start: Hpa::new(POOL), bytes: 1 << 21 };
        let mut memory = TableMemory::new(pool, 7).unwrap().with_holding(holding);
        for (table, fill) in fills.iter().enumerate() {
            // Tables of upper levels are held as others are.
            let level = Level::new(if table % 2 == 0 { level } else { 0 });
            let at = memory.alloc(level, 512).unwrap();
            if let Some(first) = *fill {
                memory.fill_run(at, 512, Progression::new(first, 4096)).unwrap();
            }
        }
        for &(table, index, word) in &words {
            memory.write(Hpa::new(POOL + (table << 12) + (index << 3)), word).unwrap();
        }
        let input = indices.iter().enumerate().fold(offset, |input, (level, &pick)| {
            input | words[pick % words.len()].1 << (12 + 9 * level)
        });
        let access = [Access::READ, Access::WRITE, Access::EXECUTE, Access::GUEST_TABLE][which];
        let access = if user { access.user() } else { access };
        let mut stepped = memory.clone();
        let root = Hpa::new(POOL);
        // The second walk finds what the first one set, so that it has nothing to set.
        for _ in 0..2 {
            let steps = WalkCursor::new(ept, root, input, access).run(&mut stepped);
            let at_once = walk(&ept, root, input, access, &mut memory);
            prop_assert_eq!(at_once, steps);
            prop_assert_eq!(walk(&ept, root, input, access, &mut &stepped), at_once);
            prop_assert!(memory == stepped);
        }
    }
}
