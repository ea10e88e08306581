//! Writing single words, and the way from template over overlay to dense.

use super::frame::{Body, PIECE_SHIFT};
use super::heads::plain_item;
use super::overlay::{self, Overlay};
use super::progression::Line;
use super::{Holding, TableFault, TableMemory};
use crate::addr::Hpa;
use crate::walk::Exchange;

impl TableMemory {
    /// Sets the word at `at`.
    ///
    /// # Errors
    /// As [`TableMemory::read`], like all operations on one word.
    #[inline]
    pub fn write(&mut self, at: Hpa, word: u64) -> Result<(), TableFault> {
        self.update(at, |_| word).map(drop)
    }

    /// Sets the word at `at` and returns what it was.
    ///
    /// # Errors
    /// As [`TableMemory::read`].
    #[inline]
    pub fn xchg(&mut self, at: Hpa, word: u64) -> Result<u64, TableFault> {
        self.update(at, |_| word)
    }

    /// Sets the word at `at` to `new` if it is `old`.
    ///
    /// # Errors
    /// As [`TableMemory::read`].
    #[inline]
    pub fn cmpxchg(&mut self, at: Hpa, old: u64, new: u64) -> Result<Exchange, TableFault> {
        let found = self.update(at, |word| if word == old { new } else { word })?;
        Ok(if found == old { Exchange::Done } else { Exchange::Found(found) })
    }

    /// Keeps only `bits` of the word at `at` and returns what it was.
    ///
    /// # Errors
    /// As [`TableMemory::read`].
    #[inline]
    pub fn fetch_and(&mut self, at: Hpa, bits: u64) -> Result<u64, TableFault> {
        self.update(at, |word| word & bits)
    }

    /// Sets `bits` in the word at `at` and returns what it was.
    ///
    /// # Errors
    /// As [`TableMemory::read`].
    #[inline]
    pub fn fetch_or(&mut self, at: Hpa, bits: u64) -> Result<u64, TableFault> {
        self.update(at, |word| word | bits)
    }

    /// Atomically changes the bits in which two words differ to what they are in `new`; returns the old word.
    ///
    /// # Errors
    /// As [`TableMemory::read`].
    #[inline]
    pub fn change(&mut self, at: Hpa, old: u64, new: u64) -> Result<u64, TableFault> {
        self.update(at, |word| word & !(old & !new) | new & !old)
    }

    #[inline]
    fn update(&mut self, at: Hpa, change: impl FnOnce(u64) -> u64) -> Result<u64, TableFault> {
        let w = self.word_index(at);
        // PERF: most stores go to plain words, which the head of their unit leads to; it is looked at once.
        let head = self.head_of(w);
        let item = plain_item(head, w);
        if let Some(&old) = self.dense.get(item) {
            let new = change(old);
            if new != old {
                self.put_plain(w, item, old, new);
            }
            return Ok(old);
        }
        let Some(old) = self.recorded_word(head, w).or_else(|| self.word_in_piece(w)) else {
            return Err(self.fault(at));
        };
        let new = change(old);
        if new != old {
            self.put(w, old, new);
        }
        Ok(old)
    }

    /// Replaces `old`, the word at index `w` of a live frame, by a different one.
    pub(super) fn put(&mut self, w: u64, old: u64, new: u64) {
        let p = (w >> PIECE_SHIFT) as usize;
        if self.pieces[p].is_template() {
            self.break_piece(p);
        }
        let piece = self.pieces[p];
        let (slot, offset) = (piece.slot(w), piece.offset(w));
        match self.records.item(piece.index, slot as usize).body {
            Body::Dense { index, .. } => {
                self.put_plain(w, ((index as usize) << super::MIN_SHIFT) + offset as usize, old, new);
            }
            Body::Template(_) if self.takes_overlay(p, slot) => {
                self.open_overlay(p, slot);
                self.put_overlay(p, w, old, new);
            }
            Body::Overlay { .. } => self.put_overlay(p, w, old, new),
            _ => {
                self.make_dense(p, slot);
                self.put(w, old, new);
            }
        }
    }

    /// The same in a frame held word by word: the word is item `item` of all.
    #[inline]
    fn put_plain(&mut self, w: u64, item: usize, old: u64, new: u64) {
        let p = (w >> PIECE_SHIFT) as usize;
        let piece = self.pieces[p];
        let (slot, offset) = (piece.slot(w), piece.offset(w) as usize);
        self.occupied.note(item, new);
        let folds = self.holding == Holding::Folding;
        let words = self.dense.items_mut(item - offset, piece.words() as usize);
        let (before, after) = match offset.checked_sub(2).and_then(|first| words.get(first..first + 5)) {
            _ if !folds => (0, 0),
            // PERF: one check of bounds for all five.
            Some(&[first, left, _, right, last]) => {
                let bends = |word: u64| {
                    let steps = [
                        left.wrapping_sub(first),
                        word.wrapping_sub(left),
                        right.wrapping_sub(word),
                        last.wrapping_sub(right),
                    ];
                    u32::from(steps[0] != steps[1]) + u32::from(steps[1] != steps[2]) + u32::from(steps[2] != steps[3])
                };
                (bends(old), bends(new))
            }
            _ => {
                let before = bends_near(words, offset);
                words[offset] = new;
                (before, bends_near(words, offset))
            }
        };
        words[offset] = new;
        let mask = self.present_mask;
        let record = self.records.item_mut(piece.index, slot as usize);
        record.count(old & mask != 0, new & mask != 0);
        if let Body::Dense { bends, .. } = &mut record.body
            && folds
        {
            *bends = *bends + after - before;
            if *bends == 0 {
                self.fold_dense(p, slot);
            }
        }
    }

    fn put_overlay(&mut self, p: usize, w: u64, old: u64, new: u64) {
        let piece = self.pieces[p];
        let (slot, offset) = (piece.slot(w), piece.offset(w));
        let records = piece.index;
        let record = *self.records.item(records, slot as usize);
        let Body::Overlay { index, line } = record.body else { return };
        let overlay = &mut self.overlays[index as usize];
        if overlay.set(offset, line.word(w), new).is_err() {
            self.make_dense(p, slot);
            return self.put(w, old, new);
        }
        if overlay.is_empty() {
            self.free_overlays.push(index);
            return self.replace(p, slot, record.with_body(Body::Template(line)));
        }
        let mask = self.present_mask;
        self.records.item_mut(records, slot as usize).count(old & mask != 0, new & mask != 0);
    }

    /// Whether a template frame takes exceptions before it becomes plain words. Frames from the third level on do not: there are
    /// few of them, every walk reads them, and plain words are read fastest.
    fn takes_overlay(&self, p: usize, slot: u32) -> bool {
        const LEVELS: u8 = 2;
        self.pieces[p].words() <= overlay::MAX_WORDS && self.record(p, slot).level() < LEVELS
    }

    /// Puts an overlay without exceptions on a template frame.
    fn open_overlay(&mut self, p: usize, slot: u32) {
        let record = self.record(p, slot);
        let Body::Template(line) = record.body else { return };
        let index = self.free_overlays.pop().unwrap_or_else(|| {
            super::arena::grow(&mut self.overlays, 1);
            self.overlays.push(Overlay::EMPTY);
            self.overlays.len() as u32 - 1
        });
        self.overlays[index as usize] = Overlay::EMPTY;
        let live = self.live_in(p, slot);
        self.replace(p, slot, record.with_body(Body::Overlay { index, line }).with_live(live));
    }

    /// Turns a template or overlay frame into plain words.
    pub(super) fn make_dense(&mut self, p: usize, slot: u32) {
        let record = self.record(p, slot);
        let piece = self.pieces[p];
        let (line, overlay) = match record.body {
            Body::Template(line) => (line, None),
            Body::Overlay { line, index } => (line, Some(index)),
            _ => return,
        };
        let start = self.first_word(p, slot);
        let live = self.live_in(p, slot);
        let index = self.take_plain(p, slot);
        let words = self.dense.slice_mut(index, piece.shift as u32);
        if line != Line::ZERO {
            for (w, word) in (start..).zip(words.iter_mut()) {
                *word = line.word(w);
            }
        }
        if let Some(overlay) = overlay {
            let exceptions = self.overlays[overlay as usize];
            for i in exceptions.indices() {
                words[i as usize] = exceptions.word(i, line.word(start + i));
            }
            self.free_overlays.push(overlay);
        }
        self.occupied.note_block(index, words);
        let bends = if overlay.is_some() { bends(words) } else { 0 };
        self.replace(p, slot, record.with_body(Body::Dense { index, bends }).with_live(live));
    }

    /// Plain words for a frame that has none, zero all of them: their unit among all.
    pub(super) fn take_plain(&mut self, p: usize, slot: u32) -> u32 {
        let piece = self.pieces[p];
        let shift = piece.shift as u32;
        self.dense_frames += 1;
        let home = self.slabs[piece.slab as usize].home;
        if home == super::frame::NONE {
            return self.dense.take_zeroed(shift);
        }
        let index = home + (slot << (shift - super::MIN_SHIFT));
        self.dense.slice_mut(index, shift).fill(0);
        index
    }
}

/// Whether word `i` has two neighbours and is not their mean.
#[inline]
fn is_bend(words: &[u64], i: usize) -> bool {
    match (words.get(i.wrapping_sub(1)), words.get(i), words.get(i.wrapping_add(1))) {
        (Some(a), Some(b), Some(c)) => b.wrapping_sub(*a) != c.wrapping_sub(*b),
        _ => false,
    }
}

/// Bends that depend on word `i`.
#[inline]
pub(super) fn bends_near(words: &[u64], i: usize) -> u32 {
    u32::from(is_bend(words, i.wrapping_sub(1))) + u32::from(is_bend(words, i)) + u32::from(is_bend(words, i + 1))
}

/// Bends that depend on words `first..behind`.
pub(super) fn bends_in(words: &[u64], first: usize, behind: usize) -> u32 {
    bends(&words[first.saturating_sub(2)..(behind + 2).min(words.len())])
}

/// Bends of a whole frame.
pub(super) fn bends(words: &[u64]) -> u32 {
    words.windows(3).filter(|w| w[1].wrapping_sub(w[0]) != w[2].wrapping_sub(w[1])).count() as u32
}
