//! Operations that nobody has chosen, on a mapper of every format.

use mmu_fuzz_targets::{Found, run};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn a_mapper_leaves_what_single_stores_leave(format: u8, how: u8, operations in prop::collection::vec(any::<u8>(), 0..700)) {
        let input: Vec<u8> = [format, how].into_iter().chain(operations).collect();
        prop_assert_eq!(run("mapper_vs_tables", &input), Found::Yes);
    }
}
