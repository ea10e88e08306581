//! A few exceptions on top of a template frame, in 48 bytes.
//!
//! Exceptions of real page tables repeat: the same accessed or dirty bit set in several entries, the same marker frozen
//! into several, or zero. So an exception is two bytes, a word index and a code; the code names one of two shared
//! values, each either a difference to the template's word (flags) or a whole word (markers), both differences together (accessed,
//! dirty, accessed and dirty), or stands for zero.

/// Frames of more words have no overlays: an index must fit in 13 bits.
pub(super) const MAX_WORDS: u64 = 1 << INDEX_BITS;
/// Exceptions that fit.
pub(super) const MAX_EXCEPTIONS: usize = 15;

const INDEX_BITS: u32 = 13;
const VALUES: usize = 2;
/// Code of a word that differs by both values.
const BOTH: u16 = VALUES as u16;
/// Code of the word zero; it needs no value.
const ZERO: u16 = 7;
/// A difference of at most this many bits is taken for a change of flags, which other words are likely to share.
const FLAG_BITS: u32 = 4;

#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Overlay {
    values: [u64; VALUES],
    entries: [u16; MAX_EXCEPTIONS],
    len: u8,
    /// Bit `v`: value `v` is a difference, not a word.
    differences: u8,
}

/// No room for another exception: the frame must become dense.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Full;

impl Overlay {
    pub(super) const EMPTY: Self = Self { values: [0; VALUES], entries: [0; MAX_EXCEPTIONS], len: 0, differences: 0 };

    pub(super) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The word at `index`, whose template word is `base`.
    #[inline]
    pub(super) fn word(&self, index: u64, base: u64) -> u64 {
        match self.find(index) {
            Some(i) => self.value(self.entries[i], base),
            None => base,
        }
    }

    /// Makes the word at `index` be `word`; `base` is the template's.
    pub(super) fn set(&mut self, index: u64, base: u64, word: u64) -> Result<(), Full> {
        let before = *self;
        if let Some(i) = self.find(index) {
            self.len -= 1;
            self.entries[i] = self.entries[self.len as usize];
        }
        if word == base {
            return Ok(());
        }
        let code = self.code(base, word);
        if let Some(code) = code
            && (self.len as usize) < MAX_EXCEPTIONS
        {
            self.entries[self.len as usize] = code << INDEX_BITS | index as u16;
            self.len += 1;
            return Ok(());
        }
        *self = before;
        Err(Full)
    }

    /// Indices of the exceptions, in no order.
    pub(super) fn indices(&self) -> impl Iterator<Item = u64> + '_ {
        self.live().iter().map(|&entry| index_of(entry))
    }

    /// The first exception at or after `index`.
    pub(super) fn next(&self, index: u64) -> Option<u64> {
        self.indices().filter(|&i| i >= index).min()
    }

    fn live(&self) -> &[u16] {
        &self.entries[..self.len as usize]
    }

    #[inline]
    fn find(&self, index: u64) -> Option<usize> {
        self.live().iter().position(|&entry| index_of(entry) == index)
    }

    fn value(&self, entry: u16, base: u64) -> u64 {
        let code = entry >> INDEX_BITS;
        if code == ZERO {
            0
        } else if code == BOTH {
            base ^ self.values[0] ^ self.values[1]
        } else if self.is_difference(code) {
            base ^ self.values[code as usize]
        } else {
            self.values[code as usize]
        }
    }

    const fn is_difference(&self, code: u16) -> bool {
        self.differences >> code & 1 == 1
    }

    /// A code for `word`: zero's, one in use that yields it, or an unused one set to it.
    fn code(&mut self, base: u64, word: u64) -> Option<u16> {
        if word == 0 {
            return Some(ZERO);
        }
        let known = (0..=BOTH).find(|&code| self.is_known(code) && self.value(code << INDEX_BITS, base) == word);
        known.or_else(|| {
            let code = (0..BOTH).find(|&code| !self.is_used(code))?;
            let difference = base ^ word;
            let as_difference = difference.count_ones() <= FLAG_BITS;
            self.values[code as usize] = if as_difference { difference } else { word };
            self.differences = self.differences & !(1 << code) | u8::from(as_difference) << code;
            Some(code)
        })
    }

    /// Whether a code means something now.
    fn is_known(&self, code: u16) -> bool {
        match code {
            BOTH => (0..BOTH).all(|value| self.is_used(value) && self.is_difference(value)),
            value => self.is_used(value),
        }
    }

    /// Whether an exception needs a value.
    fn is_used(&self, value: u16) -> bool {
        self.live().iter().map(|&entry| entry >> INDEX_BITS).any(|code| code == value || code == BOTH)
    }
}

const fn index_of(entry: u16) -> u64 {
    entry as u64 & (MAX_WORDS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn an_overlay_is_48_bytes() {
        assert_eq!(size_of::<Overlay>(), 48);
    }

    #[test]
    fn accessed_and_dirty_flags_share_values() {
        let mut overlay = Overlay::EMPTY;
        for i in 0..MAX_EXCEPTIONS as u64 {
            let base = (i << 12) | 7;
            overlay.set(i, base, base | [0x100, 0x300, 0x200][i as usize % 3]).unwrap();
        }
        assert_eq!(overlay.set(100, 7, 0), Err(Full));
    }

    proptest! {
        #[test]
        fn reads_what_was_set(
            ops in prop::collection::vec((0u64..20, prop_oneof![Just(0u64), Just(0x5a0), 0u64..1000, any::<u64>()]), 0..60),
        ) {
            let base = |index: u64| 0x8000_0007 + 4096 * index;
            let mut overlay = Overlay::EMPTY;
            let mut model = BTreeMap::new();
            for (index, word) in ops {
                let word = if word < 1000 && word != 0 && word != 0x5a0 { base(index) ^ (word & 3) << 8 } else { word };
                if overlay.set(index, base(index), word).is_ok() {
                    if word == base(index) { model.remove(&index); } else { model.insert(index, word); }
                }
                for index in 0..20 {
                    let expected = model.get(&index).copied().unwrap_or(base(index));
                    prop_assert_eq!(overlay.word(index, base(index)), expected);
                    prop_assert_eq!(overlay.next(index), model.range(index..).next().map(|(&index, _)| index));
                }
                prop_assert_eq!(overlay.is_empty(), model.is_empty());
            }
        }
    }
}
