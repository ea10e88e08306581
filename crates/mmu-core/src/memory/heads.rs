//! The short way to a word: one number for every 4 KiB of the pool.
//!
//! A walk reads a word through the directory of pieces, the frame's record and the words in some thirty instructions. The
//! head of a *unit* (512 words) skips all of that for frames of at least this size:
//!
//! | head | the unit's words are |
//! | --- | --- |
//! | below [`RECORD`] | the 512 plain words from this one on |
//! | from [`RECORD`] on | on the line of this record, a template |
//! | [`NONE`] | wherever the long way finds them, if anywhere |
//!
//! One look decides: a head that is no block of plain words lies beyond all of them, so the bounds check that Rust makes
//! anyway is the only test on the way. Heads are a hint that is never wrong, not the truth: units of smaller frames, of
//! pieces that are one template, of overlays, and those behind the first [`MOST`] have none.
//!
//! PERF: 11 instructions a word instead of 32. With the walk's own short way (`walk/cursor.rs`) a cached four-level walk went from
//! 70 ns to 11.4 ns over plain words and over templates, beside 7.5 ns by hand over arrays, at 92 instructions to 66.

use std::ops::Range;

use super::frame::{Body, Kind, PIECE_SHIFT};
use super::{TableMemory, arena};
use crate::addr::Hpa;
use crate::format::PathPlace;

/// Words of a unit, as a shift.
pub(super) const UNIT_SHIFT: u32 = 9;
pub(super) const UNIT_WORDS: u64 = 1 << UNIT_SHIFT;
/// The first head that names a record.
const RECORD: u64 = 1 << 63;
/// No head. An offset added to it must not make it another.
const NONE: u64 = !0 << UNIT_SHIFT;
/// Units that may have heads, those of the first 8 GiB of the pool: the leaf tables of 4 TiB, for 16 MiB of heads.
const MOST: usize = 1 << 21;

/// The item of the plain words that holds a word, by the head of its unit; behind all of them if that leads elsewhere.
#[inline(always)]
pub(super) const fn plain_item(head: u64, w: u64) -> usize {
    (head + (w & (UNIT_WORDS - 1))) as usize
}

/// Heads of the units from the pool's start on, as far as any were needed.
#[derive(Clone, Debug, Default)]
pub(super) struct Heads(Vec<u64>);

impl Heads {
    /// Sets the heads of `units` units, the later ones `stride` higher each.
    fn set(&mut self, first: u64, units: u64, head: u64, stride: u64) {
        let (first, end) = (first as usize, (first + units) as usize);
        if end > self.0.len() {
            if head == NONE || end > MOST {
                self.0.get_mut(first..).unwrap_or_default().fill(NONE);
                return;
            }
            let whole = end.next_multiple_of(1 << (PIECE_SHIFT - UNIT_SHIFT));
            let more = whole - self.0.len();
            arena::grow(&mut self.0, more);
            self.0.resize(whole, NONE);
        }
        let mut next = head;
        for unit in &mut self.0[first..end] {
            *unit = next;
            next = next.wrapping_add(stride);
        }
    }

    pub(super) fn footprint(&self) -> u64 {
        (self.0.capacity() * size_of::<u64>()) as u64
    }
}

impl TableMemory {
    /// Notes how the frame in a slot of a recorded piece is held now.
    pub(super) fn note_head(&mut self, p: usize, slot: u32) {
        let piece = self.pieces[p];
        let shift = u32::from(piece.shift);
        if shift < UNIT_SHIFT {
            return;
        }
        let (head, stride) = match self.record(p, slot).body {
            Body::Dense { index, .. } => return self.note_plain(p, slot, index),
            Body::Template(_) => (RECORD | u64::from(piece.index + slot), 0),
            Body::Overlay { .. } | Body::Never | Body::Freed { .. } => (NONE, 0),
        };
        self.heads.set(self.first_word(p, slot) >> UNIT_SHIFT, 1 << (shift - UNIT_SHIFT), head, stride);
    }

    /// Notes that the frame in a slot is held word by word, from this unit of all plain words on.
    pub(super) fn note_plain(&mut self, p: usize, slot: u32, index: u32) {
        let shift = u32::from(self.pieces[p].shift);
        if shift >= UNIT_SHIFT {
            let (first, units) = (self.first_word(p, slot) >> UNIT_SHIFT, 1 << (shift - UNIT_SHIFT));
            self.heads.set(first, units, u64::from(index) << super::MIN_SHIFT, UNIT_WORDS);
        }
    }

    /// Notes anew how all frames of a recorded piece are held, templates all of them.
    pub(super) fn note_templates(&mut self, p: usize) {
        let piece = self.pieces[p];
        if u32::from(piece.shift) == UNIT_SHIFT {
            let (first, head) = (self.first_word(p, 0) >> UNIT_SHIFT, RECORD | u64::from(piece.index));
            return self.heads.set(first, u64::from(piece.slots()), head, 1);
        }
        self.note_heads(p);
    }

    /// Notes anew how all frames of a recorded piece are held.
    pub(super) fn note_heads(&mut self, p: usize) {
        for slot in 0..1 << self.pieces[p].log {
            self.note_head(p, slot);
        }
    }

    /// Learns all heads, as after reading a memory that was written without them. They save time and nothing else.
    pub fn relearn_short_ways(&mut self) {
        for p in 0..self.pieces.len() {
            if self.pieces[p].kind == Kind::Frames {
                self.note_heads(p);
            }
        }
    }

    /// Forgets the heads of frames that are freed.
    pub(super) fn drop_heads_of(&mut self, p: usize, slots: &Range<u32>) {
        let shift = u32::from(self.pieces[p].shift);
        if shift >= UNIT_SHIFT {
            let units = (slots.len() as u64) << (shift - UNIT_SHIFT);
            self.heads.set(self.first_word(p, slots.start) >> UNIT_SHIFT, units, NONE, 0);
        }
    }

    /// Forgets the heads of a piece that has no records any more.
    pub(super) fn drop_heads(&mut self, p: usize) {
        let units = 1u64 << (PIECE_SHIFT - UNIT_SHIFT);
        self.heads.set(p as u64 * units, units, NONE, 0);
    }

    /// Word `offset` (below 512) of a unit, if its head leads there.
    #[inline(always)]
    pub(super) fn unit_word(&self, unit: u64, offset: u64) -> Option<u64> {
        let short = self.short_way();
        let &head = short.heads.get(unit as usize)?;
        match short.plain.get((head + offset) as usize) {
            Some(&word) => Some(word),
            None => self.recorded_word(head, unit << UNIT_SHIFT | offset),
        }
    }

    /// The head of the unit of a word.
    #[inline(always)]
    pub(super) fn head_of(&self, w: u64) -> u64 {
        self.heads.0.get((w >> UNIT_SHIFT) as usize).copied().unwrap_or(NONE)
    }

    /// The word on the line of the record that a head names.
    #[inline(always)]
    pub(super) fn recorded_word(&self, head: u64, w: u64) -> Option<u64> {
        // The mark of a record is cut off.
        match self.records.get(head as u32 as usize)?.body {
            Body::Template(line) => Some(line.word(w)),
            _ => None,
        }
    }

    /// What a walk keeps at hand.
    #[inline(always)]
    pub(crate) fn short_way(&self) -> ShortWay<'_> {
        ShortWay { memory: self, heads: &self.heads.0, plain: self.dense.all() }
    }

    #[cold]
    #[inline(never)]
    fn entry_in_piece(&self, unit: u64, index: u64) -> Option<u64> {
        let table = unit.rotate_left(3 + UNIT_SHIFT).wrapping_add(self.base);
        self.word_in_piece(self.word_index(Hpa::new(table) + 8 * index))
    }
}

/// The short way of one memory, its parts side by side: what a walk reads four times it need not find four times.
#[derive(Clone, Copy)]
pub(crate) struct ShortWay<'a> {
    memory: &'a TableMemory,
    heads: &'a [u64],
    plain: &'a [u64],
}

impl ShortWay<'_> {
    /// Entry `index` of a table, if the short way leads to it: the table is a multiple of 4 KiB, the index below 512. Pointers
    /// are expected as plain words, leaves as plain words or a template.
    #[inline(always)]
    pub(crate) fn entry(self, table: Hpa, index: u64, place: PathPlace) -> Option<u64> {
        let unit = self.unit(table);
        if index >= UNIT_WORDS {
            return None;
        }
        let &head = self.heads.get(unit as usize)?;
        match self.plain.get((head + index) as usize) {
            Some(&word) => Some(word),
            None if place == PathPlace::Leaf => self.memory.recorded_word(head, unit << UNIT_SHIFT | index),
            None => None,
        }
    }

    /// Entry `index` of a table, if there is one.
    #[inline(always)]
    pub(crate) fn entry_long(self, table: Hpa, index: u64) -> Option<u64> {
        // Not by the table's address, which would have to be kept beside the unit.
        self.memory.entry_in_piece(self.unit(table), index)
    }

    /// As in `word_index`, a table that is not aligned becomes a unit that does not exist.
    #[inline(always)]
    fn unit(self, table: Hpa) -> u64 {
        table.raw().wrapping_sub(self.memory.base).rotate_right(3 + UNIT_SHIFT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;
    use crate::image::RamRange;
    use crate::memory::{Holding, Progression};

    /// Frames of all sizes and forms, some freed.
    fn memory(holding: Holding) -> TableMemory {
        let pool = RamRange { start: Hpa::new(1 << 40), bytes: 64 << 20 };
        let mut memory = TableMemory::new(pool, 7).unwrap().with_holding(holding);
        let leaves = Progression::new(7, 4096);
        for (words, frames) in [(32, 70), (512, 3), (512, 700), (1024, 5), (8192, 3), (1 << 18, 2)] {
            let at = memory.alloc_run(Level::LAST, words, frames, leaves).unwrap();
            let bytes = 8 * words as u64;
            memory.fetch_or(at + 8 * 31, 0x100).unwrap();
            for i in 0..20 {
                memory.write(at + bytes + 8 * (i % words as u64), 7 | (i * i) << 12).unwrap();
            }
            if frames > 2 {
                memory.free(at + 2 * bytes).unwrap();
            }
        }
        memory
    }

    #[test]
    fn the_short_way_leads_where_the_long_one_does() {
        for holding in [Holding::Folding, Holding::Dense] {
            let memory = memory(holding);
            let (short, pool) = (memory.short_way(), memory.pool());
            let (mut found, mut dead) = (0, 0);
            for table in (0..pool.bytes + (1 << 21)).step_by(256 * 7) {
                let table = pool.start + table;
                for index in [0, 1, 31, 32, 100, 511, 512, 700] {
                    let expected = memory.read(table + 8 * index).ok();
                    for place in [PathPlace::Table, PathPlace::Leaf] {
                        let word = short.entry(table, index, place);
                        assert!(word.is_none() || word == expected, "{table} {index} {place:?}");
                        found += u64::from(word.is_some());
                    }
                    assert_eq!(short.entry_long(table, index), expected, "{table} {index}");
                    dead += u64::from(expected.is_none());
                }
            }
            assert!(found > 1000 && dead > 1000, "{found} on the short way, {dead} nowhere");
            let start = pool.start;
            for table in [start + 4, Hpa::new(start.raw() - 4096), Hpa::new(0), Hpa::new(u64::MAX - 4095)] {
                assert_eq!(
                    (short.entry(table, 0, PathPlace::Leaf), short.entry_long(table, 0)),
                    (None, None),
                    "{table}"
                );
            }
        }
    }

    #[test]
    fn heads_end_where_they_would_cost_too_much() {
        let pool = RamRange { start: Hpa::new(1 << 40), bytes: 1 << 40 };
        let mut memory = TableMemory::new(pool, 7).unwrap();
        let frames = 2 * MOST as u64;
        let first = memory.alloc_run(Level::LAST, 512, frames, Progression::new(7, 4096)).unwrap();
        let last = first + 4096 * (frames - 1);
        for i in 0..20 {
            memory.write(last + 8 * i, 7 | (i * i) << 12).unwrap();
        }
        assert_eq!(memory.heads.footprint(), 0);
        assert_eq!(memory.short_way().entry(last, 3, PathPlace::Leaf), None);
        assert_eq!(memory.short_way().entry_long(last, 3), Some(7 | 9 << 12));
    }
}
