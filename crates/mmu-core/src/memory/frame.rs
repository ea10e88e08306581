//! How pieces of the pool and frames are recorded.

use super::error::TableFault;
use super::progression::Line;
use crate::addr::{Hpa, Level};

/// Words of a piece, as a shift: 2 MiB.
pub(super) const PIECE_SHIFT: u32 = 18;
pub(super) const PIECE_WORDS: u64 = 1 << PIECE_SHIFT;
/// Smallest frame, as a shift of words: POWER's 256-byte leaf tables.
pub(super) const MIN_SHIFT: u32 = 5;
/// Largest frame: 2 MiB, room for sixteen concatenated 64 KiB tables.
pub(super) const MAX_SHIFT: u32 = PIECE_SHIFT;
/// No record, no slot.
pub(super) const NONE: u32 = u32::MAX;

/// What a 2 MiB piece of the pool holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub(super) enum Kind {
    /// Nothing yet.
    Absent,
    /// Every frame of it was freed.
    Freed,
    /// Live frames of one size, level and reference count on one line: `index` is the template's.
    Uniform,
    /// The same on one line up to a border and on another behind it: `index` is the parting's.
    Parted,
    /// Frames one by one: `index` is the block of records.
    Frames,
}

/// One piece's entry of the directory, the first load of every access.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Piece {
    pub(super) index: u32,
    /// The slab of `Frames`.
    pub(super) slab: u32,
    pub(super) kind: Kind,
    /// Words of a frame, as a shift.
    pub(super) shift: u8,
    /// Records of `Frames`, as a shift: slots beyond were never used.
    pub(super) log: u8,
    /// What unused slots were before: `Freed` when the piece was used and freed once.
    pub(super) past: Past,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub(super) enum Past {
    Fresh,
    Freed,
}

impl Piece {
    pub(super) const ABSENT: Self =
        Self { index: NONE, slab: NONE, kind: Kind::Absent, shift: 0, log: 0, past: Past::Fresh };

    /// Whether it is made of templates alone, without records.
    #[inline]
    pub(super) const fn is_template(self) -> bool {
        matches!(self.kind, Kind::Uniform | Kind::Parted)
    }
    /// Frames that fit in a piece.
    pub(super) const fn slots(self) -> u32 {
        1 << (PIECE_SHIFT - self.shift as u32)
    }
    pub(super) const fn words(self) -> u64 {
        1 << self.shift
    }
    #[inline]
    pub(super) const fn slot(self, w: u64) -> u32 {
        ((w & (PIECE_WORDS - 1)) >> self.shift) as u32
    }
    #[inline]
    pub(super) const fn offset(self, w: u64) -> u64 {
        w & (self.words() - 1)
    }
}

/// The template of a piece: what all its frames have in common. Interned, so equal pieces have equal indices.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Uniform {
    pub(super) line: Line,
    pub(super) refs: u32,
    pub(super) level: u8,
    pub(super) shift: u8,
}

/// How a frame's words are held.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub(super) enum Body {
    Never,
    /// Freed; `next` in the slab's list of free slots.
    Freed {
        next: u32,
    },
    Template(Line),
    Overlay {
        index: u32,
        line: Line,
    },
    Dense {
        index: u32,
        /// Inner words that are not the mean of their neighbours; none means one progression again.
        bends: u32,
    },
}

/// A frame in a piece that is not uniform.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Record {
    pub(super) body: Body,
    pub(super) refs: u32,
    tally: u32,
}

impl Record {
    pub(super) const NEVER: Self = Self { body: Body::Never, refs: 0, tally: 0 };

    pub(super) const fn new(body: Body, level: u8, refs: u32) -> Self {
        Self { body, refs, tally: (level as u32) << 24 }
    }
    /// A live frame on a line.
    pub(super) const fn template(line: Line, level: u8, refs: u32) -> Self {
        Self::new(Body::Template(line), level, refs)
    }
    pub(super) const fn level(self) -> u8 {
        (self.tally >> 24) as u8
    }
    /// Present words; counted for overlays and dense frames only, templates derive theirs.
    pub(super) const fn live(self) -> u64 {
        (self.tally & 0xff_ffff) as u64
    }
    pub(super) const fn with_live(self, live: u64) -> Self {
        Self { tally: self.tally & !0xff_ffff | live as u32, ..self }
    }
    /// A word that was present, or was not, is now, or is not.
    #[inline]
    pub(super) const fn count(&mut self, was: bool, is: bool) {
        self.tally = self.tally + is as u32 - was as u32;
    }
    pub(super) const fn with_refs(self, refs: u32) -> Self {
        Self { refs, ..self }
    }
    pub(super) const fn with_body(self, body: Body) -> Self {
        Self { body, ..self }
    }
    pub(super) const fn is_live(self) -> bool {
        !matches!(self.body, Body::Never | Body::Freed { .. })
    }
    /// Whether the frame behind this one continues its template.
    #[inline]
    pub(super) fn continues_in(&self, next: &Record) -> bool {
        match (&self.body, &next.body) {
            (Body::Template(line), Body::Template(other)) => {
                line == other && self.refs == next.refs && self.level() == next.level()
            }
            _ => false,
        }
    }
    /// What this frame would contribute to a uniform piece.
    pub(super) const fn uniform(self, shift: u8) -> Option<Uniform> {
        match self.body {
            Body::Template(line) => Some(Uniform { line, refs: self.refs, level: self.level(), shift }),
            _ => None,
        }
    }
}

/// Book-keeping of a piece whose frames are recorded one by one.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Slab {
    /// Live frames.
    pub(super) used: u32,
    /// Slots ever used.
    pub(super) bump: u32,
    /// Slots inside the pool.
    pub(super) slots: u32,
    /// First slot of the free list.
    pub(super) free: u32,
    /// Neighbouring frames on one line with equal level and references; all of them linked means uniform again.
    pub(super) links: u32,
    /// Dense frames' home: a block of words for the whole piece, or `NONE`.
    pub(super) home: u32,
}

impl Slab {
    pub(super) const fn has_room(self) -> bool {
        self.free != NONE || self.bump < self.slots
    }
}

/// How a frame is held; readers of words cannot tell.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FrameForm {
    /// On a progression; on two that meet at one word, where somebody who changes a range has stopped.
    Template,
    /// A progression with a few exceptions.
    Overlay,
    /// Word by word.
    Dense,
}

/// What is known of a live frame.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FrameInfo {
    /// Its first byte.
    pub start: Hpa,
    /// Its words.
    pub words: u64,
    /// The level it was allocated for.
    pub level: Level,
    /// Its present words.
    pub live: u64,
    /// Its references.
    pub refs: u32,
    /// How it is held.
    pub form: FrameForm,
}

/// Picks the fault for a slot without a live frame.
pub(super) const fn dead(body: Body, past: Past, at: Hpa) -> TableFault {
    match (body, past) {
        (Body::Freed { .. }, _) | (_, Past::Freed) => TableFault::Freed { at },
        _ => TableFault::Unmapped { at },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hot_types_stay_small() {
        assert_eq!(size_of::<Piece>(), 12);
        assert_eq!(size_of::<Record>(), 32);
        assert_eq!(size_of::<Uniform>(), 24);
    }
}
