//! What is known about frames and the pool: counters and records, never scans.

use super::error::{FrameError, TableFault};
use super::frame::{Body, FrameForm, FrameInfo, Kind, PIECE_SHIFT, PIECE_WORDS, Piece, Uniform};
use super::{TableMemory, frame};
use crate::addr::{Hpa, Level};

/// How many live frames are held in which form.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Forms {
    /// On a progression.
    pub template: u64,
    /// A progression with exceptions.
    pub overlay: u64,
    /// Word by word.
    pub dense: u64,
}

impl TableMemory {
    /// The live frame that holds `at`.
    ///
    /// # Errors
    /// As [`TableMemory::read`], like everything asked about one frame.
    pub fn frame(&self, at: Hpa) -> Result<FrameInfo, TableFault> {
        let w = self.word_index(at);
        let found = self.pieces.get((w >> PIECE_SHIFT) as usize).and_then(|&piece| self.frame_in(piece, w));
        found.ok_or_else(|| self.fault(at))
    }

    fn frame_in(&self, piece: Piece, w: u64) -> Option<FrameInfo> {
        let (p, slot, words) = ((w >> PIECE_SHIFT) as usize, piece.slot(w), piece.words());
        let start = self.address(w & !(words - 1));
        let (level, refs, live, form) = match piece.kind {
            Kind::Absent | Kind::Freed => return None,
            Kind::Uniform | Kind::Parted => {
                let halves = self.halves(piece)?;
                let Uniform { refs, level, .. } = halves.above;
                let live = self.live_in_halves(&halves, w & !(words - 1), words);
                (level, refs, live, FrameForm::Template)
            }
            Kind::Frames => {
                let record = self.record(p, slot);
                let form = match record.body {
                    Body::Never | Body::Freed { .. } => return None,
                    Body::Template(_) => FrameForm::Template,
                    Body::Overlay { .. } => FrameForm::Overlay,
                    Body::Dense { .. } => FrameForm::Dense,
                };
                (record.level(), record.refs, self.live_in(p, slot), form)
            }
        };
        Some(FrameInfo { start, words, level: Level::new(level), live, refs, form })
    }

    /// Present words of the frame that holds `at`. Constant time.
    ///
    /// # Errors
    /// As [`TableMemory::frame`].
    pub fn live(&self, at: Hpa) -> Result<u64, TableFault> {
        Ok(self.frame(at)?.live)
    }
    /// References to the frame that holds `at`.
    ///
    /// # Errors
    /// As [`TableMemory::frame`].
    pub fn refs(&self, at: Hpa) -> Result<u32, TableFault> {
        Ok(self.frame(at)?.refs)
    }
    /// The level that the frame that holds `at` was allocated for.
    ///
    /// # Errors
    /// As [`TableMemory::frame`].
    pub fn level(&self, at: Hpa) -> Result<Level, TableFault> {
        Ok(self.frame(at)?.level)
    }
    /// Words of the frame that holds `at`.
    ///
    /// # Errors
    /// As [`TableMemory::frame`].
    pub fn words(&self, at: Hpa) -> Result<u64, TableFault> {
        Ok(self.frame(at)?.words)
    }

    /// Takes another reference to the frame that holds `at` and returns the new count.
    ///
    /// # Errors
    /// No live frame there, or a count past 32 bits.
    pub fn get_ref(&mut self, at: Hpa) -> Result<u32, FrameError> {
        self.change_refs(at, |refs| refs.checked_add(1))
    }
    /// Drops a reference to the frame that holds `at` and returns the new count. Nothing is freed at zero: when that may
    /// happen is what protocols differ in.
    ///
    /// # Errors
    /// No live frame there, or no reference left to drop.
    pub fn put_ref(&mut self, at: Hpa) -> Result<u32, FrameError> {
        self.change_refs(at, |refs| refs.checked_sub(1))
    }

    fn change_refs(&mut self, at: Hpa, change: impl FnOnce(u32) -> Option<u32>) -> Result<u32, FrameError> {
        let info = self.frame(at)?;
        let refs = change(info.refs).ok_or(FrameError::References { at: info.start, refs: info.refs })?;
        let w = self.word_index(at);
        let p = (w >> PIECE_SHIFT) as usize;
        if self.pieces[p].is_template() {
            self.break_piece(p);
        }
        let slot = self.pieces[p].slot(w);
        let record = self.record(p, slot);
        self.replace(p, slot, record.with_refs(refs));
        Ok(refs)
    }

    // ---- the pool ----

    /// Live frames of a level.
    pub fn frames_at(&self, level: Level) -> u64 {
        self.frames.get(level.index()).copied().unwrap_or(0)
    }
    /// Live frames.
    pub fn frames(&self) -> u64 {
        self.frames.iter().sum()
    }
    /// Live frames by form.
    pub fn forms(&self) -> Forms {
        let overlay = (self.overlays.len() - self.free_overlays.len()) as u64;
        Forms { template: self.frames() - overlay - self.dense_frames, overlay, dense: self.dense_frames }
    }
    /// Bytes of host memory that the pool takes, room for growth included.
    pub fn footprint(&self) -> u64 {
        fn held<T>(items: &Vec<T>) -> u64 {
            (items.capacity() * size_of::<T>()) as u64
        }
        let trees = self.uniform_ids.len() * 2 * size_of::<(Uniform, u32)>()
            + self.roomy.iter().map(|set| set.len() * 2 * size_of::<u32>()).sum::<usize>();
        held(&self.pieces)
            + held(&self.uniforms)
            + held(&self.free_uniforms)
            + held(&self.partings)
            + held(&self.free_partings)
            + self.records.footprint()
            + self.dense.footprint()
            + self.heads.footprint()
            + self.occupied.footprint()
            + held(&self.overlays)
            + held(&self.free_overlays)
            + held(&self.slabs)
            + held(&self.free_slabs)
            + self.free_pieces.footprint()
            + (trees + size_of::<Self>()) as u64
    }

    /// The live frames by address, one at a time. Meant for checks on small pools: terabytes have billions.
    pub fn live_frames(&self) -> impl Iterator<Item = FrameInfo> + '_ {
        (0u64..).zip(&self.pieces).flat_map(move |(p, &piece)| {
            let slots = match piece.kind {
                Kind::Absent | Kind::Freed => 0,
                Kind::Uniform | Kind::Parted => piece.slots(),
                Kind::Frames => 1 << piece.log,
            };
            (0..u64::from(slots)).filter_map(move |slot| self.frame_in(piece, p * PIECE_WORDS + (slot << piece.shift)))
        })
    }

    /// Checks that all words from index `start` to `end` belong to live frames.
    pub(super) fn check_live(&self, start: u64, end: u64) -> Result<(), TableFault> {
        let mut w = start;
        while w < end {
            let Some(&piece) = self.pieces.get((w >> PIECE_SHIFT) as usize) else {
                return Err(self.fault(self.address(w)));
            };
            let stop = end.min((w | (PIECE_WORDS - 1)) + 1);
            let all = match piece.kind {
                Kind::Uniform | Kind::Parted => true,
                Kind::Frames => self.slabs[piece.slab as usize].used == piece.slots(),
                Kind::Absent | Kind::Freed => false,
            };
            if !all {
                self.check_slots(piece, w, stop)?;
            }
            w = stop;
        }
        Ok(())
    }

    fn check_slots(&self, piece: Piece, start: u64, end: u64) -> Result<(), TableFault> {
        if piece.kind != Kind::Frames {
            return Err(self.fault(self.address(start)));
        }
        for slot in piece.slot(start)..=piece.slot(end - 1) {
            let body = self.body(piece, slot);
            if matches!(body, Body::Never | Body::Freed { .. }) {
                let first = (start & !(PIECE_WORDS - 1)) + (u64::from(slot) << piece.shift);
                return Err(match self.fault(self.address(first.max(start))) {
                    fault @ TableFault::OutsidePool { .. } => fault,
                    fault => frame::dead(body, piece.past, fault.at()),
                });
            }
        }
        Ok(())
    }

    /// Word index of the first of `len` words at `at`, all of which are live.
    pub(super) fn live_range(&self, at: Hpa, len: u64) -> Result<u64, TableFault> {
        let w = self.word_index(at);
        if self.word_at(w).is_none() {
            return Err(self.fault(at));
        }
        // A live word's frame is live, and mostly that is all.
        if let Some(piece) = self.piece_of(w)
            && len <= piece.words() - piece.offset(w)
        {
            return Ok(w);
        }
        // The directory ends far below 2^61 words, so a saturated end faults there.
        let end = w.saturating_add(len).min((self.pieces.len() as u64 + 1) << PIECE_SHIFT);
        self.check_live(w, end)?;
        Ok(w)
    }
}
