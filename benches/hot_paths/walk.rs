//! Walks of random addresses: tables that fit the host's second-level cache, and tables that do not.

use std::hint::black_box;

use mmusim::core::walk::walk;
use mmusim::{Access, ByteUnits};

use super::rounds::Rounds;
use super::scatter::Scatter;
use super::tree::{Backing, HandWritten, Tree};

const ADDRESSES: u64 = 8192;

/// All cases of the group.
pub fn all(rounds: &mut Rounds) {
    for (size, guest) in [("cached", 256.MiB()), ("16G", 16.GiB())] {
        let mut scatter = Scatter(7);
        let addresses: Vec<u64> = (0..ADDRESSES).map(|_| scatter.below(guest)).collect();
        let words = Tree::mapped(guest >> 12, Backing::Scattered);
        let by_hand = HandWritten::copy(&words);
        rounds.case("walk", &format!("hand-written, {size}"), ADDRESSES, || {
            let sum = addresses.iter().filter_map(|&gpa| by_hand.walk(gpa)).fold(0, |sum, (at, _)| sum ^ at);
            black_box(sum);
        });
        generic(rounds, &format!("words, {size}"), &words, &addresses);
        let runs = Tree::mapped(guest >> 12, Backing::Contiguous);
        generic(rounds, &format!("progressions, {size}"), &runs, &addresses);
        for case in ["words", "progressions"] {
            rounds.ratio(&format!("walk/{case}, {size}"), &format!("walk/hand-written, {size}"));
        }
    }
}

fn generic(rounds: &mut Rounds, name: &str, tree: &Tree, addresses: &[u64]) {
    let mut bus = &tree.memory;
    rounds.case("walk", name, ADDRESSES, || {
        let sum = addresses.iter().fold(0, |sum, &gpa| {
            let found = walk(&tree.ept, tree.root, gpa, Access::READ, &mut bus);
            sum ^ found.map_or(0, |found| found.output.raw())
        });
        black_box(sum);
    });
}
