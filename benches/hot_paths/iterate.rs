//! Looking at every present leaf below a stretch of leaf tables.

use std::hint::black_box;

use mmusim::{Gpa, Hpa};

use super::rounds::Rounds;
use super::scatter::Scatter;
use super::sum::sum;
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
}
