//! From a block number to a set.

use serde::{Deserialize, Serialize};

/// How a set-associative structure picks the set of a block number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Index {
    /// The block number modulo the number of sets: its low bits, when that is a power of two.
    #[default]
    Modulo,
    /// The low bits xor-ed with the bits next above them. This is what second-level TLBs of several Intel cores
    /// do (Gras et al., "Translation Leak-aside Buffer", USENIX Security 2018, calls it XOR-7 at 128 sets).
    XorFold,
    /// A hash of the whole block number, the same for all ways: blocks side by side fall on sets as if by chance.
    Hashed,
    /// Every way has a hash of its own, so that blocks which collide in one way rarely collide in another
    /// (Seznec, "A case for two-way skewed-associative caches", ISCA 1993).
    Skewed,
}

/// The index function of one shape, with its constants worked out.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Indexer {
    rule: Rule,
    sets: u32,
    mask: u32,
}

#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
enum Rule {
    Mask,
    Remainder,
    Fold(u32),
    Hashed,
    Skewed,
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
const MIX: u64 = 0xbf58_476d_1ce4_e5b9;

impl Indexer {
    pub(super) fn new(index: Index, sets: u32) -> Self {
        let rule = match index {
            Index::Modulo if sets.is_power_of_two() => Rule::Mask,
            Index::Modulo => Rule::Remainder,
            Index::XorFold => Rule::Fold(sets.next_power_of_two().trailing_zeros().max(1)),
            Index::Hashed => Rule::Hashed,
            Index::Skewed => Rule::Skewed,
        };
        Self { rule, sets, mask: sets - 1 }
    }

    /// The set of a block in a structure whose ways all share one index function.
    #[inline(always)]
    pub(super) fn set(&self, number: u64) -> u32 {
        match self.rule {
            Rule::Mask => self.set_by_mask(number),
            Rule::Remainder => (number % u64::from(self.sets)) as u32,
            Rule::Fold(bits) => self.reduce((number ^ (number >> bits)) & ((1 << bits) - 1)),
            Rule::Hashed | Rule::Skewed => self.set_of_way(number, 0),
        }
    }

    /// Whether [`set_by_mask`](Self::set_by_mask) gives the set.
    pub(super) fn is_mask(&self) -> bool {
        matches!(self.rule, Rule::Mask)
    }

    /// The set of a block under a modulo index and a power of two of sets.
    #[inline(always)]
    pub(super) fn set_by_mask(&self, number: u64) -> u32 {
        number as u32 & self.mask
    }

    /// The set of a block in one way of a skewed structure.
    #[inline]
    pub(super) fn set_of_way(&self, number: u64, way: u32) -> u32 {
        // Two rounds: after one, blocks at a small distance would stay neighbours in every way.
        let first = (number ^ GOLDEN.wrapping_mul(u64::from(way) + 1)).wrapping_mul(MIX);
        let second = (first ^ (first >> 29)).wrapping_mul(GOLDEN);
        (((second >> 32) * u64::from(self.sets)) >> 32) as u32
    }

    #[inline]
    fn reduce(&self, folded: u64) -> u32 {
        // Below twice the number of sets by construction.
        let folded = folded as u32;
        if folded >= self.sets { folded - self.sets } else { folded }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_stays_below_the_number_of_sets() {
        for index in [Index::Modulo, Index::XorFold, Index::Hashed, Index::Skewed] {
            for sets in [1, 2, 3, 16, 100, 128] {
                let indexer = Indexer::new(index, sets);
                for number in (0..4000).chain([u64::MAX, 1 << 52]) {
                    assert!(indexer.set(number) < sets);
                    assert!(indexer.set_of_way(number, 7) < sets);
                }
            }
        }
    }

    #[test]
    fn fold_is_the_published_xor_7() {
        let indexer = Indexer::new(Index::XorFold, 128);
        assert_eq!(indexer.set(0b101_0000000), 0b101);
        assert_eq!(indexer.set(0b101_0000111), 0b010);
    }

    #[test]
    fn skewed_ways_separate_what_one_way_joins() {
        let indexer = Indexer::new(Index::Skewed, 64);
        let together: Vec<u64> = (0..20_000).filter(|&n| indexer.set_of_way(n, 0) == 5).collect();
        let again = together.iter().filter(|&&n| indexer.set_of_way(n, 1) == 5).count();
        assert!(together.len() > 200 && again < together.len() / 16, "{again} of {}", together.len());
    }
}
