//! What the pages of one mapping have in common.

use crate::addr::{Hpa, Level};
use crate::format::{EncodeError, Format, Leaf};

/// Level, permissions, flags and attributes of pages, encoded once: the word of each page is a sum, as far as the format's words are one
/// progression.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct PageKind<F: Format> {
    level: Level,
    leaf: Leaf<F::Attrs>,
    /// The word of the page whose output address is 0.
    word: u64,
    /// Output addresses below this one are added to it,
    reach: u64,
    /// and have none of these bits.
    inside: u64,
}

impl<F: Format> PageKind<F> {
    /// Pages of `level` that are like `leaf` in everything but the output address, which is left out of account.
    ///
    /// # Errors
    /// What the format cannot express, as [`Format::encode_leaf`].
    pub fn new(format: &F, level: Level, leaf: Leaf<F::Attrs>) -> Result<Self, EncodeError> {
        let leaf = Leaf { output: Hpa::new(0), ..leaf };
        let word = format.encode_leaf(level, &leaf)?;
        let size = format.geometry().page_size(level).bytes();
        let most = format.progression(level, leaf.output).saturating_mul(size);
        // A progression does not say where addresses end: the last page in reach does.
        let is_sum = |output: u64| {
            let encoded = format.encode_leaf(level, &Leaf { output: Hpa::new(output), ..leaf });
            encoded.is_ok_and(|encoded| encoded == word.wrapping_add(output))
        };
        let reaches = (size.trailing_zeros()..u64::BITS).rev().map(|bit| 1 << bit);
        let reach = reaches.filter(|&reach| reach <= most).find(|&reach| is_sum(reach - size)).unwrap_or(0);
        Ok(Self { level, leaf, word, reach, inside: size - 1 })
    }

    /// The level at which these pages stand.
    #[inline]
    pub const fn level(&self) -> Level {
        self.level
    }

    /// The word that maps the page at `output`: what [`Format::encode_leaf`] says.
    ///
    /// # Errors
    /// An address that is not aligned to the page, or too wide.
    #[inline]
    pub fn word(&self, format: &F, output: Hpa) -> Result<u64, EncodeError> {
        match self.sum(output) {
            Some(word) => Ok(word),
            None => format.encode_leaf(self.level, &Leaf { output, ..self.leaf }),
        }
    }

    #[inline(always)]
    fn sum(&self, output: Hpa) -> Option<u64> {
        (output.raw() & self.inside == 0 && output.raw() < self.reach).then(|| self.word.wrapping_add(output.raw()))
    }

    /// The word, if it is a sum and these are pages of the last level.
    #[inline(always)]
    pub(super) fn small(&self, output: Hpa) -> Option<u64> {
        self.sum(output).filter(|_| self.level == Level::LAST)
    }
}
