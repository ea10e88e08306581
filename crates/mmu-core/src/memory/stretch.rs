//! Present words, stretch by stretch: what somebody wants who looks at every leaf of a table.
//!
//! Frames held word by word carry a bit for each word that is not zero, so that sparse tables are searched 32 words at a time
//! (`count-never-scan`), and their words are lent as slices, so that dense tables are read at the speed of memory.

use std::ops::ControlFlow;

use super::error::TableFault;
use super::frame::{Body, PIECE_SHIFT};
use super::progression::Run;
use super::{MIN_SHIFT, TableMemory};
use crate::addr::Hpa;

/// What [`TableMemory::stretches`] delivers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stretch<'a> {
    /// Present words in arithmetic progression.
    Run(Run),
    /// Words of one frame, none of which is zero. They may be payloads that are not present, so callers look.
    Words(&'a [u64]),
}

/// The stretches of a range of words; see [`TableMemory::stretches`].
#[derive(Clone, Debug)]
pub struct Stretches<'a> {
    memory: &'a TableMemory,
    start: u64,
    w: u64,
    end: u64,
    /// Up to this word the frame is held word by word.
    plain_end: u64,
    /// Its word `w` is item `w + to_item`.
    to_item: u64,
}

/// Which words of dense blocks are not zero, 32 words in each number: as many numbers as the arena has units.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Occupied(Vec<u32>);

impl Occupied {
    /// Notes one word.
    #[inline]
    pub(super) fn note(&mut self, item: usize, word: u64) {
        let bit = 1 << (item & 31);
        if let Some(bits) = self.0.get_mut(item >> MIN_SHIFT) {
            *bits = *bits & !bit | if word == 0 { 0 } else { bit };
        }
    }

    /// Notes a whole block, of which `unit` is the first unit.
    pub(super) fn note_block(&mut self, unit: u32, words: &[u64]) {
        self.clear(unit, words.len());
        self.note_part(unit, words, 0, words.len());
    }

    /// Notes that a block of so many words holds nothing.
    pub(super) fn clear(&mut self, unit: u32, words: usize) {
        let (first, end) = (unit as usize, unit as usize + (words >> MIN_SHIFT));
        if self.0.len() < end {
            let more = end - self.0.len();
            super::arena::grow(&mut self.0, more);
            self.0.resize(end, 0);
        }
        self.0[first..end].fill(0);
    }

    /// Notes words `first..behind` of a block that has been noted before.
    pub(super) fn note_part(&mut self, unit: u32, words: &[u64], first: usize, behind: usize) {
        let units = first >> MIN_SHIFT..behind.div_ceil(1 << MIN_SHIFT);
        let words = words[units.start << MIN_SHIFT..units.end << MIN_SHIFT].chunks_exact(1 << MIN_SHIFT);
        for (bits, words) in self.0[unit as usize + units.start..].iter_mut().zip(words) {
            *bits = (0..).zip(words).fold(0, |bits, (i, &word)| bits | u32::from(word != 0) << i);
        }
    }

    /// How many of `most` words from `item` on are zero before the first that is not; with `flip` all ones, how many are not
    /// zero before the first that is.
    // PERF: what is left of one number, then whole ones, which in sparse tables is where the search goes.
    #[inline(always)]
    fn run(&self, item: u64, most: u64, flip: u32) -> u64 {
        let units = self.0.get((item >> MIN_SHIFT) as usize..).unwrap_or_default();
        let Some((&bits, units)) = units.split_first() else { return most };
        let rest = (bits ^ flip) >> (item & 31);
        if rest != 0 {
            return most.min(u64::from(rest.trailing_zeros()));
        }
        let here = 32 - (item & 31);
        let whole = most.saturating_sub(here).div_ceil(32) as usize;
        let units = units.get(..whole).unwrap_or(units);
        match units.iter().zip(0..).find(|&(&bits, _)| bits != flip) {
            Some((&bits, n)) => most.min(here + 32 * n + u64::from((bits ^ flip).trailing_zeros())),
            None => most,
        }
    }

    /// Zero words from `item` on, at most `most`.
    #[inline]
    pub(super) fn zeros(&self, item: u64, most: u64) -> u64 {
        self.run(item, most, 0)
    }

    /// Words that are not zero from `item` on, at most `most`.
    #[inline]
    fn others(&self, item: u64, most: u64) -> u64 {
        self.run(item, most, !0)
    }

    pub(super) fn footprint(&self) -> u64 {
        (self.0.capacity() * size_of::<u32>()) as u64
    }
}

impl TableMemory {
    /// The present ones of `len` words from `at` on, in order and each once: how many words behind `at` a stretch begins, and the
    /// stretch. What is not present is skipped, without looking at each word of it where it is zero.
    ///
    /// # Errors
    /// As [`TableMemory::read`] for the first word that has no live frame.
    pub fn stretches(&self, at: Hpa, len: u64) -> Result<Stretches<'_>, TableFault> {
        let start = if len == 0 { 0 } else { self.live_range(at, len)? };
        Ok(Stretches { memory: self, start, w: start, end: start + len, plain_end: start, to_item: 0 })
    }

    /// Hands the `len` words from `at` on to `look`, in order, until it breaks; replies how many it has seen before that. Frames held word
    /// by word are read as slices.
    ///
    /// # Errors
    /// As [`TableMemory::read`] for the first word that has no live frame; `look` has seen none then.
    #[inline]
    pub fn each_word(
        &self,
        at: Hpa,
        len: u64,
        mut look: impl FnMut(u64) -> ControlFlow<()>,
    ) -> Result<u64, TableFault> {
        if len == 0 {
            return Ok(0);
        }
        let start = self.live_range(at, len)?;
        let (mut w, end) = (start, start + len);
        while w < end {
            let (len, stopped) = if let Some(words) = self.plain_words(w, end) {
                (words.len() as u64, words.iter().position(|&word| look(word).is_break()))
            } else {
                let run = self.run_at(self.address(w), end - w)?;
                (run.len, (0..run.len).position(|i| look(run.word(i)).is_break()))
            };
            if let Some(n) = stopped {
                return Ok(w - start + n as u64);
            }
            w += len;
        }
        Ok(len)
    }

    /// The words from `w` on, at most up to `end`, of a frame held word by word.
    pub(super) fn plain_words(&self, w: u64, end: u64) -> Option<&[u64]> {
        let (item, stop) = self.plain_frame(w)?;
        self.dense.all().get(item as usize..(item + stop.min(end) - w) as usize)
    }

    /// Item number of word `w` in a frame held word by word, and the first word behind that frame.
    fn plain_frame(&self, w: u64) -> Option<(u64, u64)> {
        let piece = *self.pieces.get((w >> PIECE_SHIFT) as usize)?;
        if piece.kind != super::Kind::Frames {
            return None;
        }
        let Body::Dense { index, .. } = self.body(piece, piece.slot(w)) else { return None };
        Some(((u64::from(index) << MIN_SHIFT) + piece.offset(w), (w | (piece.words() - 1)) + 1))
    }
}

impl<'a> Stretches<'a> {
    /// The next stretch of a frame held word by word; `None` when the rest of it is zero.
    #[inline]
    fn plain(&mut self) -> Option<(u64, Stretch<'a>)> {
        let memory = self.memory;
        let stop = self.plain_end.min(self.end);
        let item = self.w.wrapping_add(self.to_item);
        let zeros = memory.occupied.zeros(item, stop - self.w);
        self.w += zeros;
        if self.w >= stop {
            return None;
        }
        let first = item + zeros;
        let len = memory.occupied.others(first, stop - self.w).max(1);
        let words = memory.dense.all().get(first as usize..(first + len) as usize)?;
        let offset = self.w - self.start;
        self.w += len;
        Some((offset, Stretch::Words(words)))
    }
}

impl<'a> Iterator for Stretches<'a> {
    type Item = (u64, Stretch<'a>);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        while self.w < self.end {
            if self.w < self.plain_end {
                if let Some(found) = self.plain() {
                    return Some(found);
                }
                continue;
            }
            if let Some((item, end)) = self.memory.plain_frame(self.w) {
                (self.plain_end, self.to_item) = (end, item.wrapping_sub(self.w));
                continue;
            }
            let run = self.memory.run_at(self.memory.address(self.w), self.end - self.w).ok()?;
            let offset = self.w - self.start;
            self.w += run.len;
            if run.first & self.memory.present_mask != 0 {
                return Some((offset, Stretch::Run(run)));
            }
        }
        None
    }
}
