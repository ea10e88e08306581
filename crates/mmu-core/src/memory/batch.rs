//! Many frames of one recorded piece, changed as one: the work of a frame is its record, links are counted once.

use std::ops::Range;

use super::frame::{Body, PIECE_WORDS, Record};
use super::progression::{Line, Masks};
use super::{Reuse, TableMemory};

impl TableMemory {
    /// Puts live frames on a line.
    pub(super) fn make_templates(&mut self, p: usize, slots: Range<u32>, line: Line) {
        self.drop_bodies(p, slots.clone());
        self.replace_all(p, slots, |record| record.with_body(Body::Template(line)));
    }

    /// Frees live frames; the piece is recorded.
    pub(super) fn free_slots(&mut self, p: usize, slots: Range<u32>) {
        let piece = self.pieces[p];
        let mut next = self.slabs[piece.slab as usize].free;
        for record in &self.records.slice(piece.index, piece.log as u32)[bounds(&slots)] {
            self.frames[record.level() as usize] -= 1;
        }
        self.drop_bodies(p, slots.clone());
        let all = self.records.slice_mut(piece.index, piece.log as u32);
        // Freed frames are linked to nothing, so what links they had are gone and none come.
        let near = slots.start.saturating_sub(1)..(slots.end + 1).min(1 << piece.log);
        let gone = all[bounds(&near)].windows(2).filter(|pair| pair[0].continues_in(&pair[1])).count() as u32;
        for (slot, record) in slots.clone().zip(&mut all[bounds(&slots)]) {
            *record = Record::new(Body::Freed { next }, 0, 0);
            if self.reuse == Reuse::LastFreedFirst {
                next = slot;
            }
        }
        self.drop_heads_of(p, &slots);
        let slab = &mut self.slabs[piece.slab as usize];
        slab.links -= gone;
        slab.free = next;
        slab.used -= slots.len() as u32;
        self.note_free(p);
    }

    fn drop_bodies(&mut self, p: usize, slots: Range<u32>) {
        let piece = self.pieces[p];
        let records = &self.records.slice(piece.index, piece.log as u32)[bounds(&slots)];
        if records.iter().all(|record| matches!(record.body, Body::Template(_))) {
            return;
        }
        for slot in slots {
            self.drop_body(self.pieces[p], self.record(p, slot).body);
        }
    }

    /// Replaces a record, as [`Self::replace_all`] does.
    pub(super) fn replace(&mut self, p: usize, slot: u32, record: Record) {
        self.replace_all(p, slot..slot + 1, |_| record);
    }

    /// Replaces the records of consecutive slots, keeps the count of links, and folds the piece when it has become uniform.
    fn replace_all(&mut self, p: usize, slots: Range<u32>, mut change: impl FnMut(Record) -> Record) {
        let piece = self.pieces[p];
        // The neighbours of the slots are linked to them.
        let near = slots.start.saturating_sub(1)..(slots.end + 1).min(1 << piece.log);
        let records = &mut self.records.slice_mut(piece.index, piece.log as u32)[bounds(&near)];
        let (mut before, mut after, mut heads) = (0, 0, false);
        let mut left: Option<(Record, Record)> = None;
        for (slot, record) in near.zip(records) {
            let old = *record;
            if slots.contains(&slot) {
                *record = change(old);
                // The head of a template is its record, whatever the line.
                heads |= !matches!((old.body, record.body), (Body::Template(_), Body::Template(_)));
            }
            if let Some((left_old, left_new)) = &left {
                before += u32::from(left_old.continues_in(&old));
                after += u32::from(left_new.continues_in(record));
            }
            left = Some((old, *record));
        }
        if heads {
            slots.for_each(|slot| self.note_head(p, slot));
        }
        let slab = &mut self.slabs[piece.slab as usize];
        slab.links = slab.links + after - before;
        if after > before || piece.slots() == 1 {
            self.fold_piece(p);
        }
    }

    /// Applies masks to words of a recorded piece: frames that are one line together, together.
    pub(super) fn map_frames(&mut self, p: usize, start: u64, end: u64, masks: Masks) -> u64 {
        let (mut w, mut changed) = (start, 0);
        while w < end {
            if self.pieces[p].is_template() {
                self.break_piece(p);
            }
            let piece = self.pieces[p];
            let alike = self.frames_alike(p, w, end);
            if let Some((line, words)) = alike
                && let Some(new) = line.masked(w, words, masks, self.present_mask)
            {
                if new != line {
                    let slot = piece.slot(w);
                    self.make_templates(p, slot..slot + (words >> piece.shift) as u32, new);
                    changed += words;
                }
                w += words;
                continue;
            }
            let stop = end.min((w | (piece.words() - 1)) + 1);
            changed += self.map_frame(p, piece.slot(w), w, stop, masks);
            w = stop;
        }
        changed
    }

    /// The line of the template that the frame at `w` is, and the words of whole frames from there on that are on it too.
    fn frames_alike(&self, p: usize, w: u64, end: u64) -> Option<(Line, u64)> {
        let piece = self.pieces[p];
        if piece.offset(w) != 0 {
            return None;
        }
        let slot = piece.slot(w);
        let Body::Template(line) = self.record(p, slot).body else { return None };
        let most = ((end.min((w | (PIECE_WORDS - 1)) + 1) - w) >> piece.shift) as u32;
        let alike = (0..most).take_while(|n| self.record(p, slot + n).body == Body::Template(line)).count() as u64;
        (alike > 0).then_some((line, alike << piece.shift))
    }
}

const fn bounds(slots: &Range<u32>) -> Range<usize> {
    slots.start as usize..slots.end as usize
}
