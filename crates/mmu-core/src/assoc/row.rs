//! What a probe of a narrow set reads, side by side: recency order, marks, and one byte of every tag.
//!
//! ```text
//! byte 0         8         16                    32
//!      | order   | marks   | print of way 0..15   |      half a cache line of the host
//! ```
//!
//! A *print* is a byte hashed from the tag. Eight of them are compared at once in an ordinary register; a way whose print
//! agrees is then compared in full, so a print decides nothing. One probe in 256 ways looks at a cell in vain.
//!
//! Of sets of more than eight ways the even ones are in the first word and the odd ones in the second, so that the flags of
//! both words fit one, in the order of the ways.

use super::order::packed;

/// Most ways of a narrow set.
pub(super) const MAX_WAYS: u32 = packed::MAX_WAYS;
/// Ways of which one word holds the prints.
pub(super) const WORD_WAYS: u32 = 8;

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// One set.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
#[repr(C, align(32))]
pub(super) struct Row {
    /// Recency order ([`packed`]).
    pub(super) order: u64,
    /// Tree-PLRU or NRU bits.
    pub(super) marks: u64,
    prints: [[u8; WORD_WAYS as usize]; 2],
}

/// The byte kept of a tag.
#[inline(always)]
pub(super) fn print(tag: u64) -> u8 {
    (tag.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

/// The high bit of every byte of `word` that equals the byte repeated in `wanted`, and of some others above the first
/// such byte.
#[inline(always)]
fn equal_bytes(word: [u8; 8], wanted: u64) -> u64 {
    let difference = u64::from_le_bytes(word) ^ wanted;
    difference.wrapping_sub(ONES) & !difference & HIGHS
}

impl Row {
    /// A set of empty ways, of which way 0 is filled first.
    pub(super) fn new(ways: u32) -> Self {
        let order = if ways <= MAX_WAYS { packed::initial(ways) } else { 0 };
        Self { order, marks: 0, prints: Default::default() }
    }

    /// The first way of up to eight whose print is this one and that passes `check`.
    // PERF: no exit before a print agrees, because the way of a hit is random to the host's branch predictor.
    #[inline(always)]
    pub(super) fn find_in_eight(&self, print: u8, check: impl Fn(u32) -> bool) -> Option<u32> {
        let [low, _] = self.prints;
        let mut flags = equal_bytes(low, u64::from(print).wrapping_mul(ONES));
        while flags != 0 {
            let way = flags.trailing_zeros() / 8;
            if check(way) {
                return Some(way);
            }
            flags &= flags - 1;
        }
        None
    }

    /// The first way of more than eight whose print is this one and that passes `check`.
    #[inline(always)]
    pub(super) fn find(&self, print: u8, check: impl Fn(u32) -> bool) -> Option<u32> {
        let wanted = u64::from(print).wrapping_mul(ONES);
        let [even, odd] = self.prints;
        let mut flags = equal_bytes(even, wanted) >> 7 | equal_bytes(odd, wanted) >> 3;
        while flags != 0 {
            let way = flags.trailing_zeros() / 4;
            if check(way) {
                return Some(way);
            }
            flags &= flags - 1;
        }
        None
    }

    /// Notes which tag a way holds now. `interleaved`: 1 in sets of more than eight ways, else 0.
    #[inline(always)]
    pub(super) fn set_print(&mut self, way: u32, interleaved: u32, tag: u64) {
        self.prints[(way & interleaved) as usize % 2][(way >> interleaved) as usize % WORD_WAYS as usize] = print(tag);
    }

    /// The same in a set of up to eight ways, of a tag with this print.
    #[inline(always)]
    pub(super) fn set_print_of_eight(&mut self, way: u32, print: u8) {
        self.prints[0][way as usize % WORD_WAYS as usize] = print;
    }

    /// Notes a use of a way.
    #[inline(always)]
    pub(super) fn touch(&mut self, way: u32) {
        self.order = packed::to_front(self.order, way);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_row_is_half_a_cache_line() {
        assert_eq!(size_of::<Row>(), 32);
    }

    proptest! {
        #[test]
        fn both_searches_find_the_first_way_that_checks(
            tags in prop::array::uniform16(0u64..40),
            wanted in 0u64..40,
            from in 0u32..16,
        ) {
            let (mut eight, mut sixteen) = (Row::new(8), Row::new(16));
            for (way, &tag) in (0..).zip(&tags) {
                sixteen.set_print(way, 1, tag);
                if way < 8 {
                    eight.set_print(way, 0, tag);
                }
            }
            let check = |way: u32| way >= from && tags[way as usize] == wanted;
            let first = (0..16).find(|&way| check(way));
            prop_assert_eq!(sixteen.find(print(wanted), check), first);
            prop_assert_eq!(eight.find_in_eight(print(wanted), check), first.filter(|&way| way < 8));
        }
    }
}
