//! Looking at every present leaf below a stretch of leaf tables.

use std::hint::black_box;

use mmusim::core::memory::{Stretch, TableMemory};
use mmusim::{Gpa, Hpa};

use super::rivals::{arm, multiarch};
use super::rounds::{Rounds, Scatter};
use super::tree::{Backing, Tree};

/// Leaves of a gigabyte.
const PAGES: u64 = 1 << 18;
/// In sparse tables one page in so many is mapped.
const SPARSE: u64 = 128;

/// All cases of the group.
pub fn all(rounds: &mut Rounds) {
    for (name, backing) in [("dense, progressions", Backing::Contiguous), ("dense, words", Backing::Scattered)] {
        let tree = Tree::mapped(PAGES, backing);
        rounds.case("iterate", name, PAGES, || {
            black_box(sum(&tree, PAGES));
        });
        rounds.goal(&format!("iterate/{name}"), 1.0);
    }
    let mut scatter = Scatter(5);
    let sparse: Vec<(u64, u64)> = (0..PAGES / SPARSE)
        .map(|i| ((i * SPARSE + scatter.below(SPARSE)) << 12, scatter.below(1 << 27) << 12))
        .collect();
    let mut tree = Tree::new();
    for &(gpa, host) in &sparse {
        tree.map(Gpa::new(gpa), Hpa::new(host));
    }
    rounds.case("iterate", "sparse", PAGES / SPARSE, || {
        black_box(sum(&tree, PAGES));
    });
    rounds.goal("iterate/sparse", 30.0);
    rivals(rounds, "sparse", &sparse);
    let dense: Vec<(u64, u64)> = (0..PAGES).map(|page| (page << 12, scatter.below(1 << 27) << 12)).collect();
    rivals(rounds, "dense, words", &dense);
}

fn rivals(rounds: &mut Rounds, name: &str, pages: &[(u64, u64)]) {
    let leaves = pages.len() as u64;
    let mut tables = multiarch::Tables::new();
    for &(gpa, host) in pages {
        tables.map(gpa, host);
    }
    rounds.case("iterate", &format!("page_table_multiarch, {name}"), leaves, || {
        black_box(tables.sum());
    });
    let mut tables = arm::Tables::new();
    for &(gpa, host) in pages {
        tables.map(gpa, host);
    }
    rounds.case("iterate", &format!("aarch64-paging, {name}"), leaves, || {
        black_box(tables.sum(PAGES << 12));
    });
    for rival in ["page_table_multiarch", "aarch64-paging"] {
        rounds.ratio(&format!("iterate/{name}"), &format!("iterate/{rival}, {name}"));
    }
}

/// Adds up the first words and lengths of all present runs, and single words where runs are not known, and so looks at every
/// leaf.
fn sum(tree: &Tree, pages: u64) -> u64 {
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
