//! Looking at every present leaf of a tree.

use mmu_core::memory::{Stretch, TableMemory};
use mmu_core::{Gpa, Hpa};

use super::tree::Tree;

/// Adds up the first words and lengths of all present runs, and single words where runs are not known, and so looks at every
/// leaf.
pub fn sum(tree: &Tree, pages: u64) -> u64 {
    let mut sum = 0;
    let mut page = 0;
    while page < pages {
        let table = tree.leaf_table(Gpa::new(page << 12));
        let len = (pages - page).min(512);
        sum ^= sum_table(&tree.memory, table, len, tree.memory.present_mask());
        page += len;
    }
    sum
}

fn sum_table(memory: &TableMemory, table: Hpa, words: u64, mask: u64) -> u64 {
    let Ok(stretches) = memory.stretches(table, words) else { return 0 };
    stretches.fold(0, |sum, (_, stretch)| match stretch {
        Stretch::Run(run) => sum ^ (run.first + run.len),
        Stretch::Words(words) => words.iter().filter(|&&word| word & mask != 0).fold(sum, |sum, word| sum ^ (word + 1)),
    })
}
