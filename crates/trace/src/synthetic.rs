//! Traces by formula, the same on every machine.

use mmu_core::Gva;

use crate::{Access, AccessKind};

/// The first `n` records of S1: a slowly moving hot set, a skewed set, a uniform set and a stream, mixed by a linear
/// congruential generator (Knuth's MMIX constants); loads and stores of 8 bytes, aligned.
///
/// Independent TLB models (DynamoRIO's, ChampSim's, two reference ones) agree on its exact hit counts, which makes it a
/// yardstick: with a 64-entry 4-way and a 1536-entry 12-way LRU TLB, the first 10,000 records give 5,065 first-level and
/// 1,315 second-level hits. The first 20,000,000 records touch 83,797 distinct pages; written as `packed` they
/// have the SHA-256 `401fe8315b09d004d4156df2daea820261bd33bf4181ff654742d73c27aa5b95`.
///
/// ```
/// let first = mmu_trace::synthetic::s1(1).next().unwrap();
/// assert_eq!(first.to_string(), "S 0x550000000dd0,8");
/// ```
pub fn s1(n: u64) -> S1 {
    S1 { state: 88172645463325252, index: 0, end: n }
}

/// Iterator of [`s1`].
#[derive(Clone, Debug)]
pub struct S1 {
    state: u64,
    index: u64,
    end: u64,
}

impl Iterator for S1 {
    type Item = Access;

    fn next(&mut self) -> Option<Access> {
        if self.index == self.end {
            return None;
        }
        self.state = self.state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let (i, r) = (self.index, self.state >> 33);
        self.index += 1;
        let page = match r & 7 {
            0..=3 => i >> 6 & 63,
            4..=5 => 0x1000 + (r >> 3 & r >> 14 & 0x7ff),
            6 => 0x10000 + (r >> 3 & 0x3fff),
            _ => 0x100000 + (i & 0xffff),
        };
        let va = 0x5500_0000_0000 + (page << 12) + (r >> 15 & 0xff8);
        let kind = if r >> 30 & 1 == 1 { AccessKind::Store } else { AccessKind::Load };
        Some(Access::new(kind, Gva::new(va), 8))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = usize::try_from(self.end - self.index).unwrap_or(usize::MAX);
        (left, Some(left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::packed::pack;

    #[test]
    fn first_words_of_s1() {
        let words: Vec<_> = s1(6).filter_map(pack).collect();
        let expected = [
            0x8800550000000dd0,
            0x48005500000003c0,
            0x4800550000000068,
            0x48005500000005b0,
            0x4800550000000fe0,
            0x4800550000000598,
        ];
        assert_eq!(words, expected);
    }
}
