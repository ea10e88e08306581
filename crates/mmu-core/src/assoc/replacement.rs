//! Which entry leaves when a set is full.

use serde::{Deserialize, Serialize};

/// Replacement policy of a set-associative structure. Empty ways are always filled first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Replacement {
    /// True least recently used, updated on hit and on fill.
    #[default]
    Lru,
    /// One bit per node of a binary tree over the ways, pointing away from the last use. At most 64 ways; with a
    /// number of ways that is no power of two the missing leaves are never chosen.
    TreePlru,
    /// Not recently used: one bit per way, all but the newest cleared when the last one would be set; the lowest
    /// clear way leaves. At most 64 ways.
    Nru,
    /// First in, first out: hits do not count.
    Fifo,
    /// Uniform, from the structure's own seeded generator.
    Random,
    /// Uniform among the less recently used half of the ways.
    RandomHalf,
}

impl Replacement {
    /// Whether a hit moves the entry to the front of the recency order.
    #[inline]
    pub(super) const fn reorders_on_hit(self) -> bool {
        matches!(self, Replacement::Lru | Replacement::RandomHalf)
    }

    /// Whether the policy keeps one word of marks per set.
    pub(super) const fn has_marks(self) -> bool {
        matches!(self, Replacement::TreePlru | Replacement::Nru)
    }
}

/// Most ways a word of marks can hold.
pub(super) const MAX_MARKED_WAYS: u32 = 64;

/// Tree-PLRU: node 1 is the root, node `n` has the children `2n` and `2n + 1`; a set bit points right.
pub(super) mod tree {
    /// The tree after a use of `way`: every node on its path points to the other side.
    #[inline]
    pub(in super::super) fn touch(bits: u64, way: u32, ways: u32) -> u64 {
        let depth = ways.next_power_of_two().trailing_zeros();
        let (mut bits, mut node) = (bits, 1);
        for level in (0..depth).rev() {
            let right = way >> level & 1;
            bits = if right == 1 { bits & !(1 << node) } else { bits | 1 << node };
            node = 2 * node + right;
        }
        bits
    }

    /// The way the tree points at.
    #[inline]
    pub(in super::super) fn victim(bits: u64, ways: u32) -> u32 {
        let depth = ways.next_power_of_two().trailing_zeros();
        let (mut node, mut way) = (1, 0);
        for level in (0..depth).rev() {
            let middle = way + (1 << level);
            let right = (bits >> node) as u32 & 1 & u32::from(middle < ways);
            way += right << level;
            node = 2 * node + right;
        }
        way
    }
}

/// NRU: bit `w` set means way `w` was used lately.
pub(super) mod nru {
    #[inline]
    pub(in super::super) fn touch(bits: u64, way: u32, ways: u32) -> u64 {
        let marked = bits | 1 << way;
        if marked.count_ones() == ways { 1 << way } else { marked }
    }

    #[inline]
    pub(in super::super) fn victim(bits: u64, ways: u32) -> u32 {
        let way = bits.trailing_ones();
        if way < ways { way } else { 0 }
    }
}

/// `SplitMix64` (Steele, Lea, Flood, OOPSLA 2014): one word of state, any seed.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct SplitMix(pub u64);

impl SplitMix {
    /// A number below `bound`; the bias is below `bound / 2^32`.
    #[inline]
    pub(super) fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let a = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let b = (a ^ (a >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((b >> 32) * u64::from(bound)) >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tree_never_points_at_the_way_just_used() {
        for ways in 2..=64 {
            let mut bits = 0;
            for step in 0..200u32 {
                let way = step.wrapping_mul(2_654_435_761) % ways;
                bits = tree::touch(bits, way, ways);
                let victim = tree::victim(bits, ways);
                assert!(victim < ways && (victim != way || ways == 1), "{ways} ways, used {way}");
            }
        }
    }

    #[test]
    fn tree_of_four_ways_matches_the_textbook() {
        let bits = [0, 1, 2, 3].iter().fold(0, |bits, &way| tree::touch(bits, way, 4));
        assert_eq!(tree::victim(bits, 4), 0);
        assert_eq!(tree::victim(tree::touch(bits, 0, 4), 4), 2);
    }

    #[test]
    fn nru_forgets_all_but_the_newest() {
        let bits = [0, 1, 3].iter().fold(0, |bits, &way| nru::touch(bits, way, 4));
        assert_eq!(nru::victim(bits, 4), 2);
        let bits = nru::touch(bits, 2, 4);
        assert_eq!((bits, nru::victim(bits, 4)), (0b100, 0));
        assert_eq!(nru::victim(nru::touch(0, 0, 1), 1), 0);
    }
}
