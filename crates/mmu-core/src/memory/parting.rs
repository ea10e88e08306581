//! Pieces without records: one template, or two with a border between them.
//!
//! ```text
//!   a walk clears a uniform piece and stops in the middle of a table     [ 0 0 0 0 0 0 | A A A A A A ]
//!   it goes on where it stopped: the border moves                        [ 0 0 0 0 0 0 0 0 0 0 | A A ]
//!   it reaches the end: uniform again                                    [ 0 0 0 0 0 0 0 0 0 0 0 0 0 ]
//! ```
//!
//! Whoever changes a range from front to back leaves such a piece behind wherever he stops: a zap that yields, a write protection that gives
//! its lock away, an aging that ran out of its batch. Records for that one border would be 16 KiB a piece, and the table in which the border
//! lies would be plain words. Two templates and a number are 12 bytes, and moving the border is one change of the directory.
//!
//! Whatever needs more than two lines, other references, or single words, breaks the piece into records as a uniform one is broken.

use super::TableMemory;
use super::frame::{Kind, NONE, PIECE_SHIFT, PIECE_WORDS, Piece, Record, Slab, Uniform};
use super::progression::Line;

/// Two templates of one piece: they differ in nothing but their line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Parting {
    /// The template of the words before the border.
    pub(super) below: u32,
    /// That of the words from the border on.
    pub(super) above: u32,
    /// The border, in words from the piece's first; inside the piece.
    pub(super) border: u32,
}

/// What a piece without records is made of: `below` up to `border`, `above` from there on. A uniform piece is all `above`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Halves {
    pub(super) below: Uniform,
    pub(super) above: Uniform,
    pub(super) border: u64,
}

impl Halves {
    /// The line of the word at this offset in the piece, and the first offset behind that line's words.
    #[inline]
    pub(super) fn line_at(&self, offset: u64) -> (Line, u64) {
        if offset < self.border { (self.below.line, self.border) } else { (self.above.line, PIECE_WORDS) }
    }
}

/// Up to so many lines come out of changing a part of two.
const MOST: usize = 4;

/// Lines by the offset at which each ends; neighbours differ.
struct Lines {
    lines: [(u64, Line); MOST],
    len: usize,
}

impl Lines {
    const NONE: Self = Self { lines: [(0, Line::ZERO); MOST], len: 0 };

    fn push(&mut self, end: u64, line: Line) {
        match self.lines[..self.len].last_mut() {
            Some(last) if last.1 == line => last.0 = end,
            _ => {
                self.lines[self.len] = (end, line);
                self.len += 1;
            }
        }
    }
}

impl TableMemory {
    /// What a piece is made of, if it has no records.
    #[inline]
    pub(super) fn halves(&self, piece: Piece) -> Option<Halves> {
        match piece.kind {
            Kind::Uniform => {
                let uniform = self.uniforms[piece.index as usize].0;
                Some(Halves { below: uniform, above: uniform, border: 0 })
            }
            Kind::Parted => {
                let Parting { below, above, border } = self.partings[piece.index as usize];
                let (below, above) = (self.uniforms[below as usize].0, self.uniforms[above as usize].0);
                Some(Halves { below, above, border: u64::from(border) })
            }
            Kind::Absent | Kind::Freed | Kind::Frames => None,
        }
    }

    /// Present words of one frame of a piece without records; `w` is its first.
    pub(super) fn live_in_halves(&self, halves: &Halves, w: u64, words: u64) -> u64 {
        let offset = w & (PIECE_WORDS - 1);
        let before = halves.border.clamp(offset, offset + words) - offset;
        halves.below.line.count_present(w, before, self.present_mask)
            + halves.above.line.count_present(w + before, words - before, self.present_mask)
    }

    /// Changes the lines of words `start..end` in a piece without records, if two templates are enough for the piece afterwards; how many
    /// words are on another line now. `None`: nothing was done, the piece has records or needs them. `new` is asked with a line, a word
    /// index and a number of words, and may refuse.
    pub(super) fn recut(
        &mut self,
        p: usize,
        start: u64,
        end: u64,
        new: impl Fn(Line, u64, u64) -> Option<Line>,
    ) -> Option<u64> {
        let piece = self.pieces[p];
        let halves = self.halves(piece)?;
        let first = start & !(PIECE_WORDS - 1);
        let (from, to) = (start - first, end - first);
        let (mut lines, mut changed, mut offset) = (Lines::NONE, 0, 0);
        while offset < PIECE_WORDS {
            let (line, mut stop) = halves.line_at(offset);
            if offset < from {
                stop = stop.min(from);
            } else if offset < to {
                stop = stop.min(to);
            }
            let inside = (from..to).contains(&offset);
            let line_now = if inside { new(line, first + offset, stop - offset)? } else { line };
            if line_now != line {
                changed += stop - offset;
            }
            if lines.len == MOST {
                return None;
            }
            lines.push(stop, line_now);
            offset = stop;
        }
        let parts = &lines.lines[..lines.len];
        if changed > 0 {
            match *parts {
                [(_, line)] => self.make_halves(p, halves.above, line, None),
                [(border, below), (_, above)] => self.make_halves(p, halves.above, above, Some((border, below))),
                _ => return None,
            }
        }
        Some(changed)
    }

    /// Makes a piece without records one template, or two; `like` says the rest of both.
    fn make_halves(&mut self, p: usize, like: Uniform, line: Line, below: Option<(u64, Line)>) {
        let old = self.pieces[p];
        let above = self.intern(Uniform { line, ..like }, 1);
        let (kind, index) = match below {
            None => (Kind::Uniform, above),
            Some((border, line)) => {
                let below = self.intern(Uniform { line, ..like }, 1);
                (Kind::Parted, self.add_parting(Parting { below, above, border: border as u32 }))
            }
        };
        self.drop_templates(old);
        self.pieces[p] = Piece { index, kind, ..old };
    }

    fn add_parting(&mut self, parting: Parting) -> u32 {
        if let Some(index) = self.free_partings.pop() {
            self.partings[index as usize] = parting;
            return index;
        }
        super::arena::grow(&mut self.partings, 1);
        self.partings.push(parting);
        self.partings.len() as u32 - 1
    }

    /// A piece without records does not use its templates any more.
    pub(super) fn drop_templates(&mut self, piece: Piece) {
        match piece.kind {
            Kind::Uniform => self.release_uniform(piece.index, 1),
            Kind::Parted => {
                let Parting { below, above, .. } = self.partings[piece.index as usize];
                self.release_uniform(below, 1);
                self.release_uniform(above, 1);
                self.free_partings.push(piece.index);
            }
            Kind::Absent | Kind::Freed | Kind::Frames => {}
        }
    }

    /// Turns a piece without records into one with them.
    pub(super) fn break_piece(&mut self, p: usize) {
        let piece = self.pieces[p];
        let Some(Halves { below, above, border }) = self.halves(piece) else { return };
        self.drop_templates(piece);
        let log = PIECE_SHIFT - piece.shift as u32;
        let (slots, below_slots) = (piece.slots(), (border >> piece.shift) as u32);
        let record = |uniform: Uniform| Record::template(uniform.line, uniform.level, uniform.refs);
        let index = self.records.take(log, record(above));
        self.records.slice_mut(index, log)[..below_slots as usize].fill(record(below));
        let links = slots - 1 - u32::from(below_slots > 0);
        let slab = self.add_slab(Slab { used: slots, bump: slots, slots, free: NONE, links, home: NONE });
        self.pieces[p] = Piece { index, slab, kind: Kind::Frames, log: log as u8, ..piece };
        self.note_templates(p);
        let within = piece.offset(border);
        if within > 0 {
            // The frame in which the border lies. It is on neither line as a whole, so the piece stays recorded.
            let start = self.first_word(p, below_slots);
            self.fill_part(p, below_slots, start, start + within, below.line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Masks, Progression};
    use super::*;
    use crate::image::RamRange;
    use crate::{ByteUnits, Hpa, Level};

    const LEAVES: Progression = Progression::new(7, 4096);

    fn memory() -> (TableMemory, Hpa) {
        let pool = RamRange { start: Hpa::new(1.TiB()), bytes: 1.GiB() };
        let mut memory = TableMemory::new(pool, 7).unwrap();
        let first = memory.alloc_run(Level::LAST, 512, 4 * 512, LEAVES).unwrap();
        (memory, first)
    }

    #[test]
    fn a_parting_is_small() {
        assert_eq!(size_of::<Parting>(), 12);
    }

    /// However a walk stops and goes on, nothing becomes plain words and no piece has records.
    #[test]
    fn a_walk_that_stops_anywhere_needs_no_records() {
        for stride in [1u64, 7, 511, 512, 513, 70_001, PIECE_WORDS - 1] {
            let (mut memory, first) = memory();
            let (before, words) = (memory.footprint(), 4 * PIECE_WORDS);
            let from = words - 3000 * stride.min(200);
            memory.fill_run(first, from, Progression::ZERO).unwrap();
            let mut w = from;
            while w < words {
                let n = stride.min(words - w);
                memory.fill_run(first + 8 * w, n, Progression::ZERO).unwrap();
                assert_eq!(memory.read(first + 8 * (w + n - 1)), Ok(0));
                if w + n < words {
                    assert_eq!(memory.read(first + 8 * (w + n)), Ok(LEAVES.word(w + n)));
                    let table = first + 8 * ((w + n) / 512 * 512);
                    assert_eq!(memory.live(table), Ok(512 - (w + n) % 512), "{table}");
                }
                w += n;
            }
            assert_eq!((memory.forms().dense, memory.forms().overlay), (0, 0), "steps of {stride}");
            assert!(
                memory.footprint() < before + 4096,
                "steps of {stride}: {} bytes more",
                memory.footprint() - before
            );
            assert!(memory.pieces.iter().all(|piece| piece.kind == Kind::Uniform), "steps of {stride}");
            assert_eq!(memory.uniforms.iter().map(|(_, users)| users).sum::<u32>(), 4);
        }
    }

    #[test]
    fn masks_move_the_border_too() {
        let (mut memory, first) = memory();
        assert_eq!(memory.map_run(first, 1000, Masks::clear(2)), Ok(1000));
        assert_eq!(memory.map_run(first, 1500, Masks::clear(2)), Ok(500));
        assert_eq!(memory.pieces[0].kind, Kind::Parted);
        assert_eq!(memory.read(first + 8 * 1499), Ok(LEAVES.word(1499) & !2));
        assert_eq!(memory.read(first + 8 * 1500), Ok(LEAVES.word(1500)));
        assert_eq!(memory.map_run(first, PIECE_WORDS, Masks::clear(2)), Ok(PIECE_WORDS - 1500));
        assert_eq!(memory.pieces[0].kind, Kind::Uniform);
    }

    #[test]
    fn a_third_line_needs_records_and_one_word_too() {
        let (mut memory, first) = memory();
        memory.fill_run(first, 1000, Progression::ZERO).unwrap();
        let parted = memory.clone();
        memory.fill_run(first + 8 * 700, 600, Progression::constant(0x5a0)).unwrap();
        let words =
            |memory: &TableMemory| [0, 699, 700, 999, 1000, 1299, 1300].map(|w| memory.read(first + 8 * w).unwrap());
        assert_eq!(words(&memory), [0, 0, 0x5a0, 0x5a0, 0x5a0, 0x5a0, LEAVES.word(1300)]);
        assert_eq!(memory.pieces[0].kind, Kind::Frames);
        let mut memory = parted;
        assert_eq!(memory.xchg(first + 8 * 999, 9), Ok(0));
        assert_eq!(words(&memory), [0, 0, 0, 9, LEAVES.word(1000), LEAVES.word(1299), LEAVES.word(1300)]);
        assert_eq!(memory.pieces[0].kind, Kind::Frames);
        assert!(memory.partings.len() == memory.free_partings.len());
    }

    #[test]
    fn a_parted_piece_is_freed_as_one_and_in_parts() {
        for (from, frames) in [(0, 512), (0, 2), (3, 4), (1, 511)] {
            let (mut memory, first) = memory();
            memory.fill_run(first, 1000, Progression::ZERO).unwrap();
            memory.free_run(first + 4096 * from, frames).unwrap();
            assert_eq!(memory.frames(), 4 * 512 - frames);
            for table in 0..512 {
                let at = first + 4096 * table + 8 * 500;
                let word = 512 * table + 500;
                let live = if word < 1000 { 0 } else { LEAVES.word(word) };
                let freed = (from..from + frames).contains(&table);
                assert_eq!(memory.read(at).ok(), (!freed).then_some(live), "table {table}");
            }
        }
    }
}
