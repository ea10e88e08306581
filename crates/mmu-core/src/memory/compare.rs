//! Equality, and words as bytes.

use super::error::TableFault;
use super::frame::{Kind, PIECE_WORDS};
use super::{TableMemory, digest};
use crate::addr::Hpa;
use crate::image::{ByteOrder, RamRange};

/// A byte image that does not fit the frames it is meant for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ImportError {
    /// Part of it has no live frame.
    Fault(TableFault),
    /// Its length is no multiple of eight.
    Length {
        /// Bytes given.
        bytes: usize,
    },
}

impl From<TableFault> for ImportError {
    fn from(fault: TableFault) -> Self {
        ImportError::Fault(fault)
    }
}
impl std::fmt::Display for ImportError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ImportError::Fault(fault) => write!(f, "{fault}; allocate frames for all of the image first"),
            ImportError::Length { bytes } => write!(f, "image of {bytes} bytes: words are 8 bytes, so pad it"),
        }
    }
}
impl std::error::Error for ImportError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ImportError::Fault(fault) => Some(fault),
            ImportError::Length { .. } => None,
        }
    }
}

impl TableMemory {
    /// The words of `range` as bytes in the architecture's order. A part of a word at the end of the range is left out.
    ///
    /// # Errors
    /// As [`TableMemory::read`] for the first word that has no live frame.
    pub fn export(&self, range: RamRange, order: ByteOrder) -> Result<Vec<u8>, TableFault> {
        let len = range.bytes / 8;
        if len == 0 {
            return Ok(Vec::new());
        }
        let start = self.live_range(range.start, len)?;
        Ok((start..start + len).filter_map(|w| self.word_at(w)).flat_map(|word| order.bytes(word)).collect())
    }

    /// Sets the words from `base` on, which lie in live frames, to what `bytes` are in the architecture's order.
    ///
    /// # Errors
    /// Part of a word at the end, or a part without live frames; nothing is written then.
    pub fn import(&mut self, base: Hpa, bytes: &[u8], order: ByteOrder) -> Result<(), ImportError> {
        let (words, rest) = bytes.as_chunks::<8>();
        if !rest.is_empty() {
            return Err(ImportError::Length { bytes: bytes.len() });
        }
        if !words.is_empty() {
            self.live_range(base, words.len() as u64)?;
        }
        for (i, &word) in (0u64..).zip(words) {
            self.write(base + 8 * i, order.word(word))?;
        }
        Ok(())
    }

    /// A hash of all live frames (place, size, level, references) and their words. Equal memories have equal digests however
    /// they hold their words and whatever they went through; costs what templates, exceptions and dense words cost, not what
    /// words cost. Freed frames leave no trace in it.
    pub fn digest(&self) -> u128 {
        digest::of(self)
    }

    fn equal_words(&self, other: &Self, mut w: u64, end: u64) -> bool {
        while w < end {
            let at = self.address(w);
            let (Ok(a), Ok(b)) = (self.run_at(at, end - w), other.run_at(at, end - w)) else { return false };
            let len = a.len.min(b.len);
            if a.first != b.first || (len > 1 && a.step != b.step) {
                return false;
            }
            w += len;
        }
        true
    }

    /// Whether both are the same template in this piece, which settles it at once.
    fn same_template(&self, other: &Self, p: usize) -> bool {
        let uniform = |memory: &Self| {
            let piece = memory.pieces.get(p).filter(|piece| piece.kind == Kind::Uniform)?;
            Some(memory.uniforms[piece.index as usize].0)
        };
        uniform(self).is_some_and(|own| uniform(other) == Some(own))
    }

    fn equal_piece(&self, other: &Self, p: usize) -> bool {
        if self.same_template(other, p) {
            return true;
        }
        let frames = |memory: &Self| memory.frames_of_piece(p).collect::<Vec<_>>();
        let (own, theirs) = (frames(self), frames(other));
        own.len() == theirs.len()
            && own.iter().zip(&theirs).all(|(a, b)| {
                let key = |info: &super::FrameInfo| (info.start, info.words, info.level, info.refs, info.live);
                let start = self.word_index(a.start);
                key(a) == key(b) && self.equal_words(other, start, start + a.words)
            })
    }

    fn frames_of_piece(&self, p: usize) -> impl Iterator<Item = super::FrameInfo> + '_ {
        let start = p as u64 * PIECE_WORDS;
        let (words, slots) = self.piece_of(start).map_or((1, 0), |piece| match piece.kind {
            Kind::Absent | Kind::Freed => (1, 0),
            Kind::Frames => (piece.words(), 1 << piece.log),
            Kind::Uniform | Kind::Parted => (piece.words(), u64::from(piece.slots())),
        });
        (0..slots).filter_map(move |slot| self.frame(self.address(start + slot * words)).ok())
    }
}

/// Same pool and present mask, same live frames (place, size, level, references), same words: not how they are held, and not
/// what was freed.
impl PartialEq for TableMemory {
    fn eq(&self, other: &Self) -> bool {
        let key = |memory: &Self| (memory.base, memory.bytes, memory.present_mask, memory.frames);
        key(self) == key(other) && (0..self.pieces.len().max(other.pieces.len())).all(|p| self.equal_piece(other, p))
    }
}
impl Eq for TableMemory {}
