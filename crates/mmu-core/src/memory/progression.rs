//! Arithmetic progressions of words: what templates are made of.

/// Consecutive words: word `i` is `first + i * step`, wrapping at 64 bits.
///
/// A stretch of 4 KiB leaves over contiguous memory steps by 4096, one of table pointers by the size of the tables below,
/// an empty stretch by nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Progression {
    /// Word 0.
    pub first: u64,
    /// What each word adds to the one before it.
    pub step: u64,
}

impl Progression {
    /// All words zero.
    pub const ZERO: Self = Self::constant(0);

    /// A progression of this first word and step.
    pub const fn new(first: u64, step: u64) -> Self {
        Self { first, step }
    }
    /// The same word everywhere.
    pub const fn constant(word: u64) -> Self {
        Self { first: word, step: 0 }
    }
    /// Word `i`.
    pub const fn word(self, i: u64) -> u64 {
        self.first.wrapping_add(i.wrapping_mul(self.step))
    }
    /// How many of `words` it goes on for, from the first one on.
    // PERF: eight at a time and no question in between.
    pub(super) fn prefix(self, words: &[u64]) -> u64 {
        const MANY: usize = 8;
        let differ = |from: usize, words: &[u64]| {
            (from as u64..).zip(words).fold(0, |differ, (i, &word)| differ | (word ^ self.word(i)))
        };
        let whole =
            words.chunks_exact(MANY).zip((0..).step_by(MANY)).take_while(|(chunk, i)| differ(*i, chunk) == 0).count();
        let rest = words.iter().zip(0..).skip(whole * MANY).take_while(|&(&word, i)| word == self.word(i)).count();
        (whole * MANY + rest) as u64
    }
}

/// What [`run_at`](super::TableMemory::run_at) found: `len` consecutive words in arithmetic progression, all of them
/// present or none.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Run {
    /// The word asked for.
    pub first: u64,
    /// What each word adds to the one before it; without meaning when `len` is 1.
    pub step: u64,
    /// Words in the run, at least 1.
    pub len: u64,
}

impl Run {
    /// Word `i` of the run.
    pub const fn word(self, i: u64) -> u64 {
        Progression::new(self.first, self.step).word(i)
    }
}

/// A progression anchored at the pool's first word, so that two neighbours continue each other exactly when they are equal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Line {
    origin: u64,
    step: u64,
}

/// Whether the words of a stretch are present.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Presence {
    All,
    None,
    /// Presence changes along the stretch, or cheap reasoning cannot exclude it.
    Mixed,
}

impl Line {
    pub(super) const ZERO: Self = Self { origin: 0, step: 0 };

    /// The line whose words from word index `w` on are `progression`.
    pub(super) const fn through(w: u64, progression: Progression) -> Self {
        let Progression { first, step } = progression;
        Self { origin: first.wrapping_sub(w.wrapping_mul(step)), step }
    }
    pub(super) const fn step(self) -> u64 {
        self.step
    }
    #[inline]
    pub(super) const fn word(self, w: u64) -> u64 {
        self.origin.wrapping_add(w.wrapping_mul(self.step))
    }

    /// Bits that all `len` words from `w` on have in common.
    ///
    /// Bits below the step's lowest one never change. Above, a stretch that does not wrap is monotone, so whatever
    /// its first and last words share in front is shared by all between.
    pub(super) const fn constant_bits(self, w: u64, len: u64) -> u64 {
        if self.step == 0 || len <= 1 {
            return !0;
        }
        let low = (1 << self.step.trailing_zeros()) - 1;
        match self.monotone_last(w, len) {
            Some(last) => low | !(u64::MAX >> (self.word(w) ^ last).leading_zeros()),
            None => low,
        }
    }

    /// The last word, if the stretch gets there without wrapping, upward or downward.
    const fn monotone_last(self, w: u64, len: u64) -> Option<u64> {
        let first = self.word(w);
        if let Some(rise) = self.step.checked_mul(len - 1)
            && let Some(last) = first.checked_add(rise)
        {
            return Some(last);
        }
        match self.step.wrapping_neg().checked_mul(len - 1) {
            Some(fall) => first.checked_sub(fall),
            None => None,
        }
    }

    pub(super) const fn presence(self, w: u64, len: u64, present_mask: u64) -> Presence {
        let constant = self.constant_bits(w, len);
        let first = self.word(w);
        if first & present_mask & constant != 0 {
            Presence::All
        } else if present_mask & !constant == 0 {
            Presence::None
        } else {
            Presence::Mixed
        }
    }

    /// Present words among `len` from `w` on. Constant time wherever presence is constant, which it is for leaves and
    /// table pointers of every format (present bits lie outside the stepping address field); else it looks at each word.
    pub(super) fn count_present(self, w: u64, len: u64, present_mask: u64) -> u64 {
        match self.presence(w, len, present_mask) {
            Presence::All => len,
            Presence::None => 0,
            Presence::Mixed => (w..w + len).filter(|&w| self.word(w) & present_mask != 0).count() as u64,
        }
    }

    /// The line after `masks` was applied to the present words of the stretch, or `None` when the result is no line.
    ///
    /// When the touched bits are constant along the stretch, the change adds the same number to every word.
    pub(super) const fn masked(self, w: u64, len: u64, masks: Masks, present_mask: u64) -> Option<Self> {
        match self.presence(w, len, present_mask) {
            Presence::None => Some(self),
            Presence::All if masks.touched() & !self.constant_bits(w, len) == 0 => {
                let first = self.word(w);
                let change = masks.apply(first).wrapping_sub(first);
                Some(Self { origin: self.origin.wrapping_add(change), step: self.step })
            }
            _ => None,
        }
    }
}

/// A change of flag bits: `word & keep | set`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Masks {
    /// Bits that survive.
    pub keep: u64,
    /// Bits that are set afterwards.
    pub set: u64,
}

impl Masks {
    /// Clears these bits.
    pub const fn clear(bits: u64) -> Self {
        Self { keep: !bits, set: 0 }
    }
    /// Sets these bits.
    pub const fn set(bits: u64) -> Self {
        Self { keep: !0, set: bits }
    }
    /// The changed word.
    pub const fn apply(self, word: u64) -> u64 {
        word & self.keep | self.set
    }
    const fn touched(self) -> u64 {
        !self.keep | self.set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn word() -> impl Strategy<Value = u64> {
        prop_oneof![
            any::<u64>(),
            0u64..8,
            (0u32..64).prop_map(|bit| 1 << bit),
            (0u32..64).prop_map(|bit| u64::MAX << bit)
        ]
    }

    proptest! {
        #[test]
        fn constant_bits_are_constant(first in word(), step in word(), w in 0u64..1 << 40, len in 1u64..600) {
            let line = Line::through(w, Progression::new(first, step));
            let constant = line.constant_bits(w, len);
            for i in 0..len {
                prop_assert_eq!(line.word(w + i), Progression::new(first, step).word(i));
                prop_assert_eq!((line.word(w + i) ^ first) & constant, 0);
            }
        }

        #[test]
        fn masked_line_is_the_masked_words(
            first in word(), step in word(), keep in word(), set in word(), mask in word(), len in 1u64..600,
        ) {
            let line = Line::through(77, Progression::new(first, step));
            let masks = Masks { keep, set };
            if let Some(masked) = line.masked(77, len, masks, mask) {
                for w in 77..77 + len {
                    let old = line.word(w);
                    let new = if old & mask == 0 { old } else { masks.apply(old) };
                    prop_assert_eq!(masked.word(w), new);
                }
            }
        }

        #[test]
        fn leaves_stay_lines(address in 0u64..1 << 40, len in 1u64..1 << 30, flags in 0u64..4096) {
            let line = Line::through(0, Progression::new(address << 12 | flags | 7, 4096));
            prop_assert!(line.masked(0, len, Masks::clear(0x302), 7).is_some());
            prop_assert_eq!(line.count_present(0, len, 7), len);
        }
    }
}
