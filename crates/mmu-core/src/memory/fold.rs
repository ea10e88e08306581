//! Changing what a piece or frame is held as: breaking templates up and folding them together again.

use super::frame::{Body, Kind, NONE, PIECE_SHIFT, PIECE_WORDS, Past, Piece, Record, Slab, Uniform};
use super::progression::{Line, Progression};
use super::{Holding, TableMemory, arena};

impl TableMemory {
    // ---- templates of whole pieces ----

    /// The index of a template; `pieces` more pieces use it.
    pub(super) fn intern(&mut self, uniform: Uniform, pieces: u32) -> u32 {
        if let Some(&id) = self.uniform_ids.get(&uniform) {
            self.uniforms[id as usize].1 += pieces;
            return id;
        }
        let id = self.free_uniforms.pop().unwrap_or(self.uniforms.len() as u32);
        if id as usize == self.uniforms.len() {
            self.uniforms.push((uniform, pieces));
        } else {
            self.uniforms[id as usize] = (uniform, pieces);
        }
        self.uniform_ids.insert(uniform, id);
        id
    }

    /// `pieces` fewer pieces use a template.
    pub(super) fn release_uniform(&mut self, id: u32, pieces: u32) {
        let (uniform, users) = &mut self.uniforms[id as usize];
        *users -= pieces;
        if *users == 0 {
            self.uniform_ids.remove(uniform);
            self.free_uniforms.push(id);
        }
    }

    /// Turns a recorded piece into a uniform one if every frame is linked to the next.
    pub(super) fn fold_piece(&mut self, p: usize) {
        let piece = self.pieces[p];
        let linked = self.slabs[piece.slab as usize].links == piece.slots() - 1;
        if !linked || piece.kind != Kind::Frames || self.holding == Holding::Dense {
            return;
        }
        // With one slot there is no link to tell; with more this is certain.
        if let Some(uniform) = self.record(p, 0).uniform(piece.shift) {
            self.make_uniform(p, uniform);
        }
    }

    /// Drops a piece's records in favour of a template.
    pub(super) fn make_uniform(&mut self, p: usize, uniform: Uniform) {
        self.drop_records(p);
        let index = self.intern(uniform, 1);
        self.pieces[p] = Piece { index, slab: NONE, kind: Kind::Uniform, log: 0, ..self.pieces[p] };
    }

    /// Gives a recorded piece's records, slab and home back; bodies must be gone.
    pub(super) fn drop_records(&mut self, p: usize) {
        let piece = self.pieces[p];
        let slab = self.slabs[piece.slab as usize];
        self.records.give(piece.index, piece.log as u32);
        if slab.home != NONE {
            self.dense.give(slab.home, PIECE_SHIFT);
        }
        self.free_slabs.push(piece.slab);
        self.drop_heads(p);
    }

    pub(super) fn add_slab(&mut self, slab: Slab) -> u32 {
        if let Some(index) = self.free_slabs.pop() {
            self.slabs[index as usize] = slab;
            return index;
        }
        arena::grow(&mut self.slabs, 1);
        self.slabs.push(slab);
        self.slabs.len() as u32 - 1
    }

    // ---- frames of recorded pieces ----

    pub(super) fn record(&self, p: usize, slot: u32) -> Record {
        let piece = self.pieces[p];
        if slot >> piece.log == 0 { *self.records.item(piece.index, slot as usize) } else { Record::NEVER }
    }

    /// Word index of a slot's first word.
    pub(super) fn first_word(&self, p: usize, slot: u32) -> u64 {
        (p as u64) * PIECE_WORDS + ((slot as u64) << self.pieces[p].shift)
    }

    /// Present words of a live frame in a recorded piece.
    pub(super) fn live_in(&self, p: usize, slot: u32) -> u64 {
        let record = self.record(p, slot);
        match record.body {
            Body::Template(line) => {
                line.count_present(self.first_word(p, slot), self.pieces[p].words(), self.present_mask)
            }
            _ => record.live(),
        }
    }

    /// Gives back what a frame's body holds.
    pub(super) fn drop_body(&mut self, piece: Piece, body: Body) {
        match body {
            Body::Overlay { index, .. } => self.free_overlays.push(index),
            Body::Dense { index, .. } => {
                self.dense_frames -= 1;
                if self.slabs[piece.slab as usize].home == NONE {
                    self.dense.give(index, piece.shift as u32);
                }
            }
            _ => {}
        }
    }

    /// Puts a live frame on a line.
    pub(super) fn make_template(&mut self, p: usize, slot: u32, line: Line) {
        let record = self.record(p, slot);
        if record.body == Body::Template(line) {
            return;
        }
        self.drop_body(self.pieces[p], record.body);
        self.replace(p, slot, record.with_body(Body::Template(line)));
    }

    /// Turns a dense frame without bends into a template.
    pub(super) fn fold_dense(&mut self, p: usize, slot: u32) {
        let Body::Dense { index, .. } = self.record(p, slot).body else { return };
        let words = self.dense.slice(index, self.pieces[p].shift as u32);
        let progression = Progression::new(words[0], words[1].wrapping_sub(words[0]));
        self.make_template(p, slot, Line::through(self.first_word(p, slot), progression));
    }

    /// What a piece that was never used, or was freed, looks like when frames of a new size move in.
    pub(super) fn vacant(&self, p: usize, shift: u8) -> Piece {
        let past = match self.pieces[p] {
            Piece { kind: Kind::Freed, .. } | Piece { past: Past::Freed, .. } => Past::Freed,
            _ => Past::Fresh,
        };
        Piece { shift, past, ..Piece::ABSENT }
    }
}
