//! Allocating and freeing frames.

use super::error::{AllocError, FrameError};
use super::frame::{Body, Kind, MAX_SHIFT, MIN_SHIFT, NONE, PIECE_SHIFT, PIECE_WORDS, Piece, Record, Slab, Uniform};
use super::progression::{Line, Progression};
use super::{Holding, Reuse, TableMemory, arena};
use crate::addr::{Hpa, Level};

/// Records a fresh slab starts with, as a shift.
const FIRST_RECORDS: u32 = 3;

impl TableMemory {
    /// A zeroed frame of `words` words with one reference, aligned to its size.
    ///
    /// # Errors
    /// A size that is no power of two from 32 to 262,144 words, a level that does not exist, or a full pool.
    pub fn alloc(&mut self, level: Level, words: usize) -> Result<Hpa, AllocError> {
        let (p, slot) = self.take_frame(level, words)?;
        self.install(p, slot, level, Line::ZERO);
        Ok(self.address(self.first_word(p, slot)))
    }

    /// `frames` consecutive frames of `words` words with one reference each, filled by `fill` without a break. Whole 2 MiB
    /// pieces cost nothing but their directory entry, so terabytes take milliseconds.
    ///
    /// # Errors
    /// As [`TableMemory::alloc`], or no frames at all; nothing is allocated then.
    pub fn alloc_run(&mut self, level: Level, words: usize, frames: u64, fill: Progression) -> Result<Hpa, AllocError> {
        let shift = check(level, words)?;
        let out = AllocError::OutOfFrames { frames, words, pool_bytes: self.bytes };
        if frames == 0 {
            return Err(out);
        }
        let per_piece = 1u64 << (PIECE_SHIFT - shift as u32);
        let p = match self.roomy_for(shift, frames) {
            Some(p) => p,
            None => self.take_pieces(frames.div_ceil(per_piece), frames.checked_mul(words as u64).ok_or(out)?, out)?,
        };
        let first_slot = match self.pieces[p].kind {
            Kind::Frames => self.slabs[self.pieces[p].slab as usize].bump,
            _ => 0,
        };
        let start = p as u64 * PIECE_WORDS + (u64::from(first_slot) << shift);
        let line = Line::through(start, fill);
        let whole =
            if self.pieces[p].kind == Kind::Frames || self.holding == Holding::Dense { 0 } else { frames / per_piece };
        self.fill_pieces(p, whole as usize, Uniform { line, refs: 1, level: level.index() as u8, shift });
        self.frames[level.index()] += whole * per_piece;
        let mut left = frames - whole * per_piece;
        let mut p = p + whole as usize;
        while left > 0 {
            if self.pieces[p].kind != Kind::Frames {
                self.make_slab(p, shift);
            }
            let here = left.min(per_piece);
            self.frames[level.index()] += here;
            for _ in 0..here {
                let slot = self.bump_slot(p);
                self.install(p, slot, level, line);
            }
            left -= here;
            p += 1;
        }
        Ok(self.address(start))
    }

    /// Frees the frame that starts at `at`, whatever its references.
    ///
    /// # Errors
    /// No live frame there (a double free is told apart) or an address inside one.
    pub fn free(&mut self, at: Hpa) -> Result<(), FrameError> {
        let w = self.frame_start(at)?;
        self.free_slot((w >> PIECE_SHIFT) as usize, w);
        Ok(())
    }

    /// Frees `frames` consecutive frames of one size, the first at `at`.
    ///
    /// # Errors
    /// As [`TableMemory::free`] for any of them, or when their size changes; nothing is freed then.
    pub fn free_run(&mut self, at: Hpa, frames: u64) -> Result<(), FrameError> {
        if frames == 0 {
            return Ok(());
        }
        let start = self.frame_start(at)?;
        let words = self.pieces[(start >> PIECE_SHIFT) as usize].words();
        let end = start.saturating_add(frames.saturating_mul(words));
        self.check_live(start, end)?;
        for p in start >> PIECE_SHIFT..=(end - 1) >> PIECE_SHIFT {
            if self.pieces[p as usize].words() != words {
                return Err(FrameError::SizeChange { at: self.address(p * PIECE_WORDS) });
            }
        }
        let mut w = start;
        while w < end {
            let p = (w >> PIECE_SHIFT) as usize;
            if w.is_multiple_of(PIECE_WORDS) && end - w >= PIECE_WORDS && self.pieces[p].is_template() {
                self.free_uniform(p);
                w += PIECE_WORDS;
            } else if self.pieces[p].slots() == 1 {
                self.free_slot(p, w);
                w += words;
            } else {
                if self.pieces[p].is_template() {
                    self.break_piece(p);
                }
                let stop = end.min((w | (PIECE_WORDS - 1)) + 1);
                let slot = self.pieces[p].slot(w);
                self.free_slots(p, slot..slot + ((stop - w) / words) as u32);
                w = stop;
            }
        }
        Ok(())
    }

    /// Word index of the live frame that starts at `at`.
    fn frame_start(&self, at: Hpa) -> Result<u64, FrameError> {
        let info = self.frame(at)?;
        if info.start == at { Ok(self.word_index(at)) } else { Err(FrameError::NotStart { at, start: info.start }) }
    }

    // ---- pieces ----

    /// The first piece that has `frames` fresh slots side by side.
    fn roomy_for(&self, shift: u8, frames: u64) -> Option<usize> {
        // Fresh slots are at the end of a slab; the last piece opened is the one most likely to have them.
        let &p = self.roomy[class(shift)].last()?;
        let slab = self.slabs[self.pieces[p as usize].slab as usize];
        (u64::from(slab.slots - slab.bump) >= frames).then_some(p as usize)
    }

    /// Takes the lowest `n` free consecutive pieces that hold `words` words.
    fn take_pieces(&mut self, n: u64, words: u64, out: AllocError) -> Result<usize, AllocError> {
        let n = u32::try_from(n).map_err(|_| out)?;
        let pool = self.bytes / 8;
        if let Some(p) = self.free_pieces.take(n) {
            let p = p as usize;
            if p as u64 * PIECE_WORDS + words <= pool {
                return Ok(p);
            }
            self.free_pieces.insert(p as u32, n);
        }
        let p = self.pieces.len();
        if p as u64 * PIECE_WORDS + words > pool {
            return Err(out);
        }
        arena::grow(&mut self.pieces, n as usize);
        self.pieces.resize(p + n as usize, Piece::ABSENT);
        Ok(p)
    }

    fn fill_pieces(&mut self, p: usize, n: usize, uniform: Uniform) {
        if n > 0 {
            let index = self.intern(uniform, n as u32);
            for p in p..p + n {
                self.pieces[p] = Piece { index, kind: Kind::Uniform, ..self.vacant(p, uniform.shift) };
            }
        }
    }

    fn open_slab(&mut self, frames: u64, words: usize, shift: u8) -> Result<usize, AllocError> {
        let out = AllocError::OutOfFrames { frames, words, pool_bytes: self.bytes };
        let p = self.take_pieces(1, words as u64, out)?;
        self.make_slab(p, shift);
        Ok(p)
    }

    /// Makes an unused piece ready for single frames.
    fn make_slab(&mut self, p: usize, shift: u8) {
        let piece = self.vacant(p, shift);
        let inside = (self.bytes / 8 - p as u64 * PIECE_WORDS) >> shift;
        let slots = inside.min(u64::from(piece.slots())) as u32;
        let log = FIRST_RECORDS.min(PIECE_SHIFT - shift as u32);
        let index = self.records.take(log, Record::NEVER);
        let home = if self.holding == Holding::Dense { self.dense.take(PIECE_SHIFT, 0) } else { NONE };
        let slab = self.add_slab(Slab { used: 0, bump: 0, slots, free: NONE, links: 0, home });
        self.pieces[p] = Piece { index, slab, kind: Kind::Frames, log: log as u8, ..piece };
        self.roomy[class(shift)].insert(p as u32);
    }

    // ---- slots ----

    /// Piece and slot of one more frame; nothing is in it yet.
    pub(super) fn take_frame(&mut self, level: Level, words: usize) -> Result<(usize, u32), AllocError> {
        let shift = check(level, words)?;
        let p = match self.roomy[class(shift)].first() {
            Some(&p) => p as usize,
            None => self.open_slab(1, words, shift)?,
        };
        self.frames[level.index()] += 1;
        Ok((p, self.take_slot(p)))
    }

    /// A slot for one more frame: the one freed last, else a fresh one.
    fn take_slot(&mut self, p: usize) -> u32 {
        let piece = self.pieces[p];
        let slot = self.slabs[piece.slab as usize].free;
        if slot == NONE {
            return self.bump_slot(p);
        }
        let Body::Freed { next } = self.body(piece, slot) else { return self.bump_slot(p) };
        self.slabs[piece.slab as usize].free = next;
        self.note_use(p);
        slot
    }

    /// The next slot that was never used.
    fn bump_slot(&mut self, p: usize) -> u32 {
        let piece = self.pieces[p];
        let slot = self.slabs[piece.slab as usize].bump;
        if slot >> piece.log != 0 {
            self.double_records(p);
        }
        self.slabs[piece.slab as usize].bump += 1;
        self.note_use(p);
        slot
    }

    fn note_use(&mut self, p: usize) {
        let piece = self.pieces[p];
        let slab = &mut self.slabs[piece.slab as usize];
        slab.used += 1;
        if !slab.has_room() {
            self.roomy[class(piece.shift)].remove(&(p as u32));
        }
    }

    fn double_records(&mut self, p: usize) {
        let piece = self.pieces[p];
        let log = piece.log as u32;
        let index = self.records.take(log + 1, Record::NEVER);
        for i in 0..1usize << log {
            *self.records.item_mut(index, i) = *self.records.item(piece.index, i);
        }
        self.records.give(piece.index, log);
        self.pieces[p] = Piece { index, log: piece.log + 1, ..piece };
        self.note_heads(p);
    }

    fn install(&mut self, p: usize, slot: u32, level: Level, line: Line) {
        self.replace(p, slot, Record::new(Body::Template(line), level.index() as u8, 1));
        if self.holding == Holding::Dense {
            self.make_dense(p, slot);
        }
    }

    /// Frees the live frame whose first word is `w`.
    fn free_slot(&mut self, p: usize, w: u64) {
        match self.pieces[p].kind {
            Kind::Uniform | Kind::Parted if self.pieces[p].slots() == 1 => return self.free_uniform(p),
            Kind::Uniform | Kind::Parted => self.break_piece(p),
            _ => {}
        }
        let slot = self.pieces[p].slot(w);
        self.free_slots(p, slot..slot + 1);
    }

    /// Frames of a recorded piece were freed.
    pub(super) fn note_free(&mut self, p: usize) {
        let piece = self.pieces[p];
        let slab = self.slabs[piece.slab as usize];
        if slab.used == 0 && slab.bump == slab.slots {
            self.roomy[class(piece.shift)].remove(&(p as u32));
            self.drop_records(p);
            self.retire(p);
        } else if slab.has_room() {
            self.roomy[class(piece.shift)].insert(p as u32);
        }
    }

    /// Frees all frames of a piece without records.
    fn free_uniform(&mut self, p: usize) {
        let piece = self.pieces[p];
        let Some(halves) = self.halves(piece) else { return };
        self.frames[halves.above.level as usize] -= u64::from(piece.slots());
        self.drop_templates(piece);
        self.retire(p);
    }

    /// Notes that every frame of a piece was freed.
    fn retire(&mut self, p: usize) {
        let piece = self.pieces[p];
        self.pieces[p] = Piece { index: NONE, slab: NONE, kind: Kind::Freed, log: 0, ..piece };
        if self.reuse == Reuse::LastFreedFirst {
            self.free_pieces.insert(p as u32, 1);
        }
    }
}

/// Words of a frame as a shift.
fn check(level: Level, words: usize) -> Result<u8, AllocError> {
    let shift = words.checked_ilog2().filter(|shift| (MIN_SHIFT..=MAX_SHIFT).contains(shift));
    let shift = shift.filter(|_| words.is_power_of_two()).ok_or(AllocError::FrameSize { words })?;
    if level.index() < Level::MAX_LEVELS { Ok(shift as u8) } else { Err(AllocError::Level { level }) }
}

const fn class(shift: u8) -> usize {
    shift as usize - MIN_SHIFT as usize
}
