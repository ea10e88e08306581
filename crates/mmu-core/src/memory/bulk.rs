//! Runs: reading, filling and changing many consecutive words as one.

use super::error::TableFault;
use super::frame::{Body, Kind, PIECE_SHIFT, PIECE_WORDS, Piece, Uniform};
use super::overlay::Overlay;
use super::progression::{Line, Masks, Presence, Progression, Run};
use super::{Holding, TableMemory, write};
use crate::addr::Hpa;

/// Pieces that one [`TableMemory::run_at`] looks at, so that a caller who asks for everything and uses little pays microseconds
/// at most: 8 GiB of tables.
const RUN_PIECES: u64 = 4096;
/// Fewer words than this are written one by one.
const FEW: u64 = 9;

impl TableMemory {
    /// How far the words from `at` on are one progression, at most `max_words`: across frames and pieces as long as templates
    /// continue each other, up to the next exception in an overlay, by comparison within a dense frame. The words of a run are
    /// all present or all not. The run may end early (4096 pieces are looked at), never late; `len` is at least 1.
    ///
    /// Any two words are a progression, so runs of dense words can have steps without a meaning: callers who expect a step
    /// check it.
    ///
    /// # Errors
    /// As [`TableMemory::read`].
    pub fn run_at(&self, at: Hpa, max_words: u64) -> Result<Run, TableFault> {
        let w = self.word_index(at);
        let first = self.word_at(w).ok_or_else(|| self.fault(at))?;
        let single = Run { first, step: 0, len: 1 };
        if max_words <= 1 {
            return Ok(single);
        }
        Ok(match self.line_at(w) {
            Some(line) => Run { step: line.step(), len: self.present_run(line, w, max_words), ..single },
            None => self.dense_run(w, max_words).unwrap_or(single),
        })
    }

    /// The line that the word at `w` is on as a template's, if it is.
    fn line_at(&self, w: u64) -> Option<Line> {
        let piece = *self.pieces.get((w >> PIECE_SHIFT) as usize)?;
        match piece.kind {
            Kind::Uniform => Some(self.uniforms[piece.index as usize].0.line),
            Kind::Parted => self.halves(piece).map(|halves| halves.line_at(w & (PIECE_WORDS - 1)).0),
            Kind::Frames => match self.body(piece, piece.slot(w)) {
                Body::Template(line) => Some(line),
                Body::Overlay { index, line } => {
                    let offset = piece.offset(w);
                    (self.overlays[index as usize].next(offset) != Some(offset)).then_some(line)
                }
                _ => None,
            },
            _ => None,
        }
    }

    /// Words from `w` on that lie on `line` and are all present or all not.
    fn present_run(&self, line: Line, w: u64, max: u64) -> u64 {
        let len = self.line_run(line, w, max);
        let mask = self.present_mask;
        if line.presence(w, len, mask) != Presence::Mixed {
            return len;
        }
        let frame = self.pieces[(w >> PIECE_SHIFT) as usize].words();
        let here = len.min(frame - w % frame);
        let present = line.word(w) & mask != 0;
        (w..w + here).take_while(|&w| (line.word(w) & mask != 0) == present).count() as u64
    }

    /// Words from `w` on that templates put on `line`.
    fn line_run(&self, line: Line, start: u64, max: u64) -> u64 {
        let end = start.saturating_add(max).min(((start >> PIECE_SHIFT) + RUN_PIECES) << PIECE_SHIFT);
        let mut w = start;
        let mut known = super::frame::NONE;
        while w < end {
            let Some(&piece) = self.pieces.get((w >> PIECE_SHIFT) as usize) else { break };
            match piece.kind {
                Kind::Uniform if piece.index == known || self.uniforms[piece.index as usize].0.line == line => {
                    known = piece.index;
                    w = (w | (PIECE_WORDS - 1)) + 1;
                }
                Kind::Parted => match self.halves(piece).map(|halves| halves.line_at(w & (PIECE_WORDS - 1))) {
                    Some((own, stop)) if own == line => w = (w & !(PIECE_WORDS - 1)) + stop,
                    _ => break,
                },
                Kind::Frames => match self.body(piece, piece.slot(w)) {
                    Body::Template(own) if own == line => w = (w | (piece.words() - 1)) + 1,
                    Body::Overlay { index, line: own } if own == line => {
                        let frame = w & !(piece.words() - 1);
                        match self.overlays[index as usize].next(piece.offset(w)) {
                            Some(exception) => return (frame + exception).min(end) - start,
                            None => w = frame + piece.words(),
                        }
                    }
                    _ => break,
                },
                _ => break,
            }
        }
        w.min(end) - start
    }

    fn dense_run(&self, w: u64, max: u64) -> Option<Run> {
        let piece = self.pieces[(w >> PIECE_SHIFT) as usize];
        let Body::Dense { index, .. } = self.body(piece, piece.slot(w)) else { return None };
        let words = &self.dense.slice(index, piece.shift as u32)[piece.offset(w) as usize..];
        let words = &words[..words.len().min(max as usize)];
        if words.first() == Some(&0) {
            let item = (u64::from(index) << super::MIN_SHIFT) + piece.offset(w);
            return Some(Run { first: 0, step: 0, len: self.occupied.zeros(item, words.len() as u64) });
        }
        let present = |word: &u64| word & self.present_mask != 0;
        let (first, second) = (words.first()?, words.get(1)?);
        if present(first) != present(second) {
            return None;
        }
        let progression = Progression::new(*first, second.wrapping_sub(*first));
        // Asked of all words there are, before looking at them: presence that changes often must not cost a look at the rest each time.
        let len = match Line::through(w, progression).presence(w, words.len() as u64, self.present_mask) {
            Presence::Mixed => {
                let goes_on =
                    |&(&word, i): &(&u64, u64)| word == progression.word(i) && present(&word) == present(first);
                words.iter().zip(0..).take_while(goes_on).count() as u64
            }
            Presence::All | Presence::None => progression.prefix(words),
        };
        Some(Run { first: progression.first, step: progression.step, len })
    }

    /// Writes `len` consecutive words, across frames. Whole pieces, and the front or the back of one, change their directory entry only,
    /// whole frames their record; another part of a frame is copied.
    ///
    /// # Errors
    /// As [`TableMemory::read`] for the first word that has no live frame; nothing is written then.
    pub fn fill_run(&mut self, at: Hpa, len: u64, fill: Progression) -> Result<(), TableFault> {
        if len == 0 {
            return Ok(());
        }
        let start = self.live_range(at, len)?;
        let line = Line::through(start, fill);
        let end = start + len;
        let mut w = start;
        let mut memo = None;
        while w < end {
            let p = (w >> PIECE_SHIFT) as usize;
            let stop = end.min((w | (PIECE_WORDS - 1)) + 1);
            if stop - w == PIECE_WORDS && self.fill_piece(p, line, &mut memo) {
                w = stop;
                continue;
            }
            if self.recut(p, w, stop, |_, _, _| Some(line)).is_none() {
                self.fill_frames(p, w, stop, line);
            }
            // Templates may have gone, and their numbers may come back with another meaning.
            memo = None;
            w = stop;
        }
        Ok(())
    }

    /// Makes a whole piece uniform on `line` if it can be. `memo` holds the last change of template, as runs have few.
    fn fill_piece(&mut self, p: usize, line: Line, memo: &mut Option<(u32, u32)>) -> bool {
        let piece = self.pieces[p];
        match piece.kind {
            Kind::Uniform => {
                let known = memo.filter(|&(old, _)| old == piece.index).map(|(_, new)| new);
                let new = match known {
                    Some(new) => {
                        self.uniforms[new as usize].1 += 1;
                        new
                    }
                    None => self.intern(Uniform { line, ..self.uniforms[piece.index as usize].0 }, 1),
                };
                *memo = Some((piece.index, new));
                self.pieces[p].index = new;
                self.release_uniform(piece.index, 1);
                if self.uniforms[piece.index as usize].1 == 0 {
                    // The old index may come back with another meaning.
                    *memo = None;
                }
                true
            }
            _ => false,
        }
    }

    fn fill_frames(&mut self, p: usize, start: u64, end: u64, line: Line) {
        if self.holding == Holding::Dense {
            return self.fill_words(p, start, end, line);
        }
        if self.line_run(line, start, end - start) == end - start {
            return;
        }
        let words = self.pieces[p].words();
        let (from, to) = (start.next_multiple_of(words), end / words * words);
        if from >= to {
            return self.fill_words(p, start, end, line);
        }
        self.fill_words(p, start, from, line);
        // The words before may have made the piece uniform.
        if self.pieces[p].is_template() {
            self.break_piece(p);
        }
        let slot = self.pieces[p].slot(from);
        self.make_templates(p, slot..slot + ((to - from) / words) as u32, line);
        self.fill_words(p, to, end, line);
    }

    fn fill_words(&mut self, p: usize, start: u64, end: u64, line: Line) {
        self.for_frames(p, start, end, |memory, slot, w, stop| memory.fill_part(p, slot, w, stop, line));
    }

    /// Puts words of one frame in a recorded piece on a line: what happens where a walk stops in the middle of a table.
    // PERF: what is counted of the words outside, and of the line, need not be counted again.
    pub(super) fn fill_part(&mut self, p: usize, slot: u32, start: u64, end: u64, line: Line) {
        if end - start < FEW {
            return self.rewrite(p, slot, start, end, |w, _| line.word(w));
        }
        self.make_dense(p, slot);
        let (piece, record, mask) = (self.pieces[p], self.record(p, slot), self.present_mask);
        let Body::Dense { index, bends } = record.body else { return };
        let words = self.dense.slice_mut(index, piece.shift as u32);
        let (first, behind) = (piece.offset(start) as usize, (piece.offset(start) + end - start) as usize);
        let before = write::bends_in(words, first, behind);
        let part = &mut words[first..behind];
        let gone = part.iter().filter(|&&word| word & mask != 0).count() as u64;
        for (w, word) in (start..end).zip(part) {
            *word = line.word(w);
        }
        self.occupied.note_part(index, words, first, behind);
        let live = record.live() - gone + line.count_present(start, end - start, mask);
        let bends = match self.holding {
            Holding::Dense => bends,
            // On a line there are none.
            Holding::Folding => bends - before + write::bends_near(words, first) + write::bends_near(words, behind - 1),
        };
        self.replace(p, slot, record.with_body(Body::Dense { index, bends }).with_live(live));
        if bends == 0 && self.holding == Holding::Folding {
            self.fold_dense(p, slot);
        }
    }

    /// Calls `change` with slot, first and last word index of every stretch of one frame; the piece is recorded by then.
    fn for_frames(&mut self, p: usize, start: u64, end: u64, mut change: impl FnMut(&mut Self, u32, u64, u64)) {
        let mut w = start;
        while w < end {
            if self.pieces[p].is_template() {
                self.break_piece(p);
            }
            let piece = self.pieces[p];
            let stop = end.min((w | (piece.words() - 1)) + 1);
            change(self, piece.slot(w), w, stop);
            w = stop;
        }
    }

    /// Changes words of one frame in a recorded piece.
    fn rewrite(&mut self, p: usize, slot: u32, start: u64, end: u64, new: impl Fn(u64, u64) -> u64) {
        if end - start < FEW {
            for w in start..end {
                if let Some(old) = self.word_at(w)
                    && new(w, old) != old
                {
                    self.put(w, old, new(w, old));
                }
            }
            return;
        }
        self.make_dense(p, slot);
        let (piece, record, mask) = (self.pieces[p], self.record(p, slot), self.present_mask);
        let Body::Dense { index, bends } = record.body else { return };
        let words = self.dense.slice_mut(index, piece.shift as u32);
        let (first, behind) = (piece.offset(start) as usize, (piece.offset(start) + end - start) as usize);
        let before = write::bends_in(words, first, behind);
        let (mut gone, mut come) = (0, 0);
        for (w, word) in (start..end).zip(&mut words[first..behind]) {
            gone += u64::from(*word & mask != 0);
            *word = new(w, *word);
            come += u64::from(*word & mask != 0);
        }
        self.occupied.note_part(index, words, first, behind);
        let bends = match self.holding {
            Holding::Dense => bends,
            Holding::Folding => bends - before + write::bends_in(words, first, behind),
        };
        let live = record.live() - gone + come;
        self.replace(p, slot, record.with_body(Body::Dense { index, bends }).with_live(live));
        if bends == 0 && self.holding == Holding::Folding {
            self.fold_dense(p, slot);
        }
    }

    /// Applies `masks` to the *present* ones of `len` consecutive words and returns how many words changed: ageing, write
    /// protection, clearing of dirty flags. Other words are software's payload and stay. Templates stay templates when the
    /// touched bits are constant along them, as flags are.
    ///
    /// # Errors
    /// As [`TableMemory::read`] for the first word that has no live frame; nothing is changed then.
    pub fn map_run(&mut self, at: Hpa, len: u64, masks: Masks) -> Result<u64, TableFault> {
        if len == 0 {
            return Ok(0);
        }
        let start = self.live_range(at, len)?;
        let (end, mut w, mut changed) = (start + len, start, 0);
        let mut memo = None;
        while w < end {
            let p = (w >> PIECE_SHIFT) as usize;
            let stop = end.min((w | (PIECE_WORDS - 1)) + 1);
            changed += self.map_piece(p, w, stop, masks, &mut memo);
            w = stop;
        }
        Ok(changed)
    }

    fn map_piece(&mut self, p: usize, start: u64, end: u64, masks: Masks, memo: &mut Option<(u32, u32)>) -> u64 {
        let piece = self.pieces[p];
        if piece.kind == Kind::Uniform {
            let line = self.uniforms[piece.index as usize].0.line;
            match line.masked(start, end - start, masks, self.present_mask) {
                Some(same) if same == line => return 0,
                Some(new) if end - start == PIECE_WORDS => {
                    // What one piece's words make of the masks is not what the next one's do: the memo is good for one line.
                    if memo.is_some_and(|(_, id)| self.uniforms[id as usize].0.line != new) {
                        *memo = None;
                    }
                    self.fill_piece(p, new, memo);
                    return PIECE_WORDS;
                }
                _ => {}
            }
        }
        // Templates may go, and their numbers may come back with another meaning.
        *memo = None;
        let mask = self.present_mask;
        match self.recut(p, start, end, |line, w, len| line.masked(w, len, masks, mask)) {
            Some(changed) => changed,
            None => self.map_frames(p, start, end, masks),
        }
    }

    pub(super) fn map_frame(&mut self, p: usize, slot: u32, start: u64, end: u64, masks: Masks) -> u64 {
        let piece = self.pieces[p];
        let mask = self.present_mask;
        let new_word = |word: u64| if word & mask == 0 { word } else { masks.apply(word) };
        let whole = end - start == piece.words();
        match self.record(p, slot).body {
            Body::Template(line) => match line.masked(start, end - start, masks, mask) {
                Some(new) if new == line => return 0,
                Some(new) if whole => {
                    self.make_template(p, slot, new);
                    return end - start;
                }
                _ => {}
            },
            Body::Overlay { line, index } => {
                if let Some(new) = line.masked(start, end - start, masks, mask)
                    && (whole || new == line)
                {
                    let overlay = self.overlays[index as usize];
                    return self.map_overlay(p, slot, [start, end], (line, new), &overlay, new_word);
                }
            }
            _ => {}
        }
        let changed = match self.plain_words(start, end) {
            Some(words) => words.iter().filter(|&&word| new_word(word) != word).count(),
            None => (start..end).filter_map(|w| self.word_at(w)).filter(|&word| new_word(word) != word).count(),
        };
        if changed > 0 {
            self.rewrite(p, slot, start, end, |_, word| new_word(word));
        }
        changed as u64
    }

    /// Moves an overlay frame, or none of its template words, to a new line and changes the exceptions in `range`.
    fn map_overlay(
        &mut self,
        p: usize,
        slot: u32,
        [start, end]: [u64; 2],
        (line, new_line): (Line, Line),
        overlay: &Overlay,
        new_word: impl Fn(u64) -> u64,
    ) -> u64 {
        let frame = self.first_word(p, slot);
        let old: Vec<(u64, u64)> =
            overlay.indices().map(|i| (frame + i, overlay.word(i, line.word(frame + i)))).collect();
        let inside = |w: &u64| (start..end).contains(w);
        let count = old.iter().filter(|(w, word)| inside(w) && new_word(*word) != *word).count() as u64;
        let mut changed = count;
        if new_line != line {
            changed += end - start - old.len() as u64;
            self.make_template(p, slot, new_line);
        }
        for (w, word) in old {
            let new = if inside(&w) { new_word(word) } else { word };
            // The piece may have become uniform in between, so the word is looked up again.
            if let Some(now) = self.word_at(w)
                && now != new
            {
                self.put(w, now, new);
            }
        }
        changed
    }

    /// The piece that holds word `w`.
    pub(super) fn piece_of(&self, w: u64) -> Option<Piece> {
        self.pieces.get((w >> PIECE_SHIFT) as usize).copied()
    }
}
