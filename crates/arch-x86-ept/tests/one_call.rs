//! The walk in one call and the walk in steps: the same answer and the same memory, whatever the tables hold.

use arch_x86_ept::EptConfig;
use mmu_core::image::MemoryImage;
use mmu_core::walk::{WalkCursor, walk};
use mmu_core::{Access, Hpa};
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
        let at_once = walk(ept, root, input, access, &mut image);
        prop_assert_eq!(at_once, steps);
        prop_assert_eq!(image, stepped);
    }
}
