//! Frames whose words somebody changes without telling, and counts when he is done.
//!
//! Every store to table memory keeps a count of present words, one of bends and the bits of `Occupied` true. Whoever has the memory to
//! himself and changes word after word need not pay for that each time: he takes frames *loose*, changes their plain words in place, and
//! [settles](TableMemory::settle) each frame in one pass over its words. Readers of words see loose frames as they are; what is counted of
//! one is wrong until it is settled, and no other store may reach it, so this stays inside the crate ([`crate::mapper`] is who does it).

use std::ops::Range;

use super::error::{AllocError, TableFault};
use super::frame::{Body, Kind, MIN_SHIFT, PIECE_SHIFT, Piece, Record};
use super::{Holding, TableMemory, write};
use crate::addr::{Hpa, Level};

/// Where the plain words of a frame begin among all plain words, in units of 32 words. It stays true while the frame is loose: only
/// settling moves it elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Home(u32);

impl Home {
    /// Of no frame.
    pub(crate) const NONE: Self = Self(u32::MAX);

    /// Number of the frame's word `index` among all plain words.
    #[inline(always)]
    pub(crate) const fn item(self, index: u64) -> usize {
        ((self.0 as usize) << MIN_SHIFT) + index as usize
    }
    /// The frame's number, for sets of frames: no two frames that are held word by word have one number.
    pub(crate) const fn number(self) -> usize {
        self.0 as usize
    }
}

/// Which lines of 64 bytes of a frame may hold words other than zero: a bit for each line, over again for each 512 words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Lines(u64);

/// Words of a line, as a shift.
const LINE_SHIFT: u32 = 3;

impl Lines {
    /// None.
    pub(crate) const NONE: Self = Self(0);

    /// Word `index` may hold something.
    #[inline(always)]
    pub(crate) const fn add(&mut self, index: u64) {
        self.0 |= 1u64.rotate_left((index >> LINE_SHIFT) as u32);
    }

    /// The stretches of words, of those from `first` to the one before `behind`, that may hold something: at least a line apart but for their
    /// ends.
    #[inline]
    pub(crate) fn stretches(self, first: u64, behind: u64) -> impl Iterator<Item = Range<u64>> {
        let (mut line, end) = (first >> LINE_SHIFT, behind.div_ceil(1 << LINE_SHIFT));
        std::iter::from_fn(move || {
            let ahead = self.0.rotate_right(line as u32);
            let start = line + u64::from(ahead.trailing_zeros());
            if ahead == 0 || start >= end {
                return None;
            }
            let full = !self.0.rotate_right(start as u32);
            line = if full == 0 { end } else { end.min(start + u64::from(full.trailing_zeros())) };
            Some((start << LINE_SHIFT).max(first)..(line << LINE_SHIFT).min(behind))
        })
    }
}

/// Why a table is no frame to be taken loose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NoFrame {
    /// Nothing lives there.
    Dead(TableFault),
    /// The frame there starts before, or is too small.
    Other {
        /// Its first byte.
        start: Hpa,
        /// Its words.
        words: u64,
    },
}

impl TableMemory {
    /// Where the words of the table of `words` words at `at` are, if it begins a frame that is held word by word.
    pub(crate) fn home(&self, at: Hpa, words: u64) -> Option<Home> {
        let (w, piece) = self.own_frame(at, words).ok()?;
        match piece.kind {
            Kind::Frames => match self.body(piece, piece.slot(w)) {
                Body::Dense { index, .. } => Some(Home(index)),
                _ => None,
            },
            _ => None,
        }
    }

    /// Holds the table word by word, and says where.
    pub(crate) fn loosen(&mut self, at: Hpa, words: u64) -> Result<Home, NoFrame> {
        let (w, piece) = self.own_frame(at, words)?;
        let p = (w >> PIECE_SHIFT) as usize;
        if piece.is_template() {
            self.break_piece(p);
        }
        let slot = self.pieces[p].slot(w);
        self.make_dense(p, slot);
        match self.record(p, slot).body {
            Body::Dense { index, .. } => Ok(Home(index)),
            _ => Err(NoFrame::Dead(self.fault(at))),
        }
    }

    /// A zeroed frame as of [`TableMemory::alloc`], held word by word.
    // PERF: not a template first, which would be written, counted and linked to its neighbours for nothing. A frame held word by word is
    // linked to nobody, so nobody else's record is looked at either.
    pub(crate) fn alloc_loose(&mut self, level: Level, words: usize) -> Result<(Hpa, Home), AllocError> {
        let (p, slot) = self.take_frame(level, words)?;
        let index = self.take_plain(p, slot);
        let records = self.pieces[p].index;
        *self.records.item_mut(records, slot as usize) =
            Record::new(Body::Dense { index, bends: 0 }, level.index() as u8, 1);
        self.note_plain(p, slot, index);
        Ok((self.address(self.first_word(p, slot)), Home(index)))
    }

    /// All plain words.
    #[inline(always)]
    pub(crate) fn plain(&self) -> &[u64] {
        self.dense.all()
    }
    /// All plain words, those of loose frames to be changed.
    #[inline(always)]
    pub(crate) fn plain_mut(&mut self) -> &mut [u64] {
        self.dense.all_mut()
    }

    /// The lines of the settled frame at `at` that hold something.
    pub(crate) fn lines(&self, at: Hpa, home: Home) -> Lines {
        let mut lines = Lines::NONE;
        let words = self.piece_of(self.word_index(at)).map_or(0, Piece::words);
        let empty = |first: u64| self.occupied.zeros(home.item(first) as u64, 1 << LINE_SHIFT) == 1 << LINE_SHIFT;
        (0..words).step_by(1 << LINE_SHIFT).filter(|&first| !empty(first)).for_each(|first| lines.add(first));
        lines
    }

    /// Counts a frame that was loose anew, and folds it if its words are one progression. Words outside `lines` are zero.
    pub(crate) fn settle(&mut self, at: Hpa, lines: Lines) {
        let w = self.word_index(at);
        let p = (w >> PIECE_SHIFT) as usize;
        let Some(&piece) = self.pieces.get(p) else { return };
        let slot = piece.slot(w);
        let Body::Dense { index, .. } = self.body(piece, slot) else { return };
        let (words, mask) = (self.dense.slice(index, piece.shift as u32), self.present_mask);
        let folds = self.holding == Holding::Folding;
        let (mut live, mut bends) = (0, 0);
        self.occupied.clear(index, words.len());
        // A bend is about three words, and stretches are further apart.
        for stretch in lines.stretches(0, piece.words()) {
            let (first, behind) = (stretch.start as usize, stretch.end as usize);
            live += words[first..behind].iter().map(|&word| u64::from(word & mask != 0)).sum::<u64>();
            bends += if folds { write::bends_in(words, first, behind) } else { 0 };
            self.occupied.note_part(index, words, first, behind);
        }
        let record = self.records.item_mut(piece.index, slot as usize);
        *record = record.with_body(Body::Dense { index, bends }).with_live(live);
        if folds && bends == 0 {
            self.fold_dense(p, slot);
        }
    }

    /// Word index and piece of the live frame that starts at `at` and has room for `words` words.
    fn own_frame(&self, at: Hpa, words: u64) -> Result<(u64, Piece), NoFrame> {
        let w = self.word_index(at);
        let piece =
            self.piece_of(w).filter(|_| self.word_at(w).is_some()).ok_or_else(|| NoFrame::Dead(self.fault(at)))?;
        if piece.offset(w) != 0 || piece.words() < words {
            return Err(NoFrame::Other { start: self.address(w - piece.offset(w)), words: piece.words() });
        }
        Ok((w, piece))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::RamRange;
    use crate::memory::{FrameForm, Progression};
    use proptest::prelude::*;

    fn memory() -> TableMemory {
        TableMemory::new(RamRange { start: Hpa::new(1 << 30), bytes: 8 << 20 }, 7).unwrap()
    }

    #[test]
    fn settling_counts_and_folds() {
        let mut memory = memory();
        let (at, home) = memory.alloc_loose(Level::LAST, 512).unwrap();
        let mut lines = Lines::NONE;
        for i in [0, 7, 300, 511] {
            memory.plain_mut()[home.item(i)] = (i * i) << 12 | 7;
            lines.add(i);
        }
        memory.settle(at, lines);
        assert_eq!((memory.live(at), memory.frame(at).unwrap().form), (Ok(4), FrameForm::Dense));
        assert_eq!(memory.lines(at, home), lines);
        for i in 0..512 {
            memory.plain_mut()[home.item(i)] = i << 12 | 7;
            lines.add(i);
        }
        memory.settle(at, lines);
        assert_eq!((memory.live(at), memory.frame(at).unwrap().form), (Ok(512), FrameForm::Template));
        assert_eq!(memory.read(at + 8 * 100), Ok(100 << 12 | 7));
        assert_eq!(memory.home(at, 512), None);
    }

    #[test]
    fn only_whole_frames_come_loose() {
        let mut memory = memory();
        let at = memory.alloc_run(Level::LAST, 512, 2, Progression::new(7, 4096)).unwrap();
        assert_eq!(memory.loosen(at + 8, 512), Err(NoFrame::Other { start: at, words: 512 }));
        assert_eq!(memory.loosen(at, 1024), Err(NoFrame::Other { start: at, words: 512 }));
        let outside = at + 2 * 4096;
        assert_eq!(memory.loosen(outside, 512), Err(NoFrame::Dead(TableFault::Unmapped { at: outside })));
        let home = memory.loosen(at, 2).unwrap();
        assert_eq!((memory.home(at, 512), memory.plain()[home.item(9)]), (Some(home), 9 * 4096 + 7));
        assert_eq!(memory.lines(at, home), Lines(!0));
    }

    proptest! {
        #[test]
        fn stretches_hold_what_was_added(added in prop::collection::btree_set(0u64..2048, 0..40), first in 0u64..2048, len in 0u64..2048) {
            let (mut lines, behind) = (Lines::NONE, (first + len).min(2048));
            for &index in &added {
                lines.add(index);
            }
            let stretches: Vec<_> = lines.stretches(first, behind).collect();
            let held = |index: u64| added.iter().any(|other| (other >> LINE_SHIFT) % 64 == (index >> LINE_SHIFT) % 64);
            let expected: Vec<u64> = (first..behind).filter(|&index| held(index)).collect();
            prop_assert_eq!(stretches.iter().cloned().flatten().collect::<Vec<_>>(), expected);
            prop_assert!(stretches.windows(2).all(|pair| pair[0].end + 8 <= pair[1].start.next_multiple_of(8)));
        }
    }
}
