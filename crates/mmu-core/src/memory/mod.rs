//! Table memory: real 64-bit words at every host-physical address of a table pool, yet terabytes of tables fit.
//!
//! ```text
//!   pool, in pieces of 2 MiB      0      1      2      3      4   ...
//!   directory, 12 bytes each    [ T ]  [ T ]  [ T ]  [ F ]  [ - ]
//!                                 \______|______/      |
//!                                 one template:        |
//!                          word w = origin + w * step  |
//!                                                      v
//!                          records, 32 bytes a frame: [t][t][o][t][d][x] ...
//!                                                      |     |     |  '-- freed: reading it is a use after free
//!                          its own origin and step ----'     |     '----- dense: index of its words
//!                                                            '----------- overlay: origin, step and index of
//!                                                                         48 bytes that hold up to 15 exceptions
//! ```
//!
//! **Why progressions.** The leaves of a guest backed by contiguous memory, the pointers to tables allocated one after the
//! other, and empty tables are arithmetic progressions. Anchored at the pool's start (`origin + w * step`), neighbours that
//! continue each other are simply *equal*, so a template covers any number of pieces, and punching a hole into terabytes
//! changes one directory entry and splits nothing. 4 PiB of 4 KiB leaves, 8 TiB of tables, are 48 MiB of directory.
//!
//! **Why a directory.** A hardware walk reads a word in at most three dependent loads (directory, record, word), two for
//! whole templates and, by the heads of the first 8 GiB (`heads.rs`), for dense frames of 4 KiB and more; there is no tree and
//! no hashing on the way. Tables of the third level and above, which every walk reads and of which there are few, never
//! become overlays.
//!
//! **Borders.** Somebody who changes a range from front to back and stops leaves two templates in one piece, with the border as a number
//! (`parting.rs`): stopping in the middle of a table costs 12 bytes, and going on moves the border.
//!
//! **Copying and folding back.** Any other write that leaves the progression turns its piece's template into records (16 KiB
//! for 4 KiB frames), its frame into an overlay, and when fifteen exceptions or two different values do not do, into plain
//! words. The way back is found by counters, never by a scan (`count-never-scan`):
//!  * an overlay counts its exceptions; none left, it is a template again;
//!  * a dense frame counts its *bends*, inner words that are not the mean of their neighbours (`w[i-1] - 2w[i] + w[i+1] != 0`).
//!    A write changes at most three of them, and a frame without bends is exactly a frame that is one progression: the old
//!    one restored, a new one, or all zero;
//!  * a piece counts its *links*, neighbouring template frames of equal line, level and references. A change of one frame
//!    changes at most two; a piece with all links is one template again.
//!
//! Plain words carry a bit each that says whether they are zero (`stretch.rs`), so that sparse tables are searched quickly.
//! Present words are counted the same way for overlays and dense frames, and derived for templates.
//!
//! **Frames.** Each piece holds frames of one size, like a slab, so frames are aligned to their size and an address finds
//! its record with shifts. The lowest piece with room serves first, in it the slot freed last (as the kernel's page allocator
//! would, so that a use after free is met soon), then the next fresh one. A pool needs a piece for each size in use.
//! Freed frames are remembered: touching one is [`TableFault::Freed`] until it is reused, and with [`Reuse::Quarantine`]
//! it never is.
//!
//! Deliberately not here: formats (only a present mask is known), byte order (words are values except in
//! [`TableMemory::export`] and [`TableMemory::import`]), latency, locking.
//!
//! ```
//! use mmu_core::memory::{Progression, TableMemory};
//! use mmu_core::image::RamRange;
//! use mmu_core::{ByteUnits, Hpa, Level};
//!
//! let pool = RamRange { start: Hpa::new(1.TiB()), bytes: 16.TiB() };
//! let mut memory = TableMemory::new(pool, 0b111)?;
//! // The leaf tables of a 4 PiB guest: 2^31 frames, 2^40 words.
//! let leaves = memory.alloc_run(Level::LAST, 512, 1 << 31, Progression::new(0b111, 4096))?;
//! assert_eq!(memory.read(leaves + 8 * 1_000_000)?, 1_000_000 * 4096 + 0b111);
//! memory.fetch_or(leaves + 8 * 1_000_000, 0x100)?;
//! assert_eq!(memory.live(leaves + 8 * 1_000_000)?, 512);
//! assert!(memory.footprint() < 100.MiB());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod alloc;
mod arena;
mod batch;
mod bulk;
mod compare;
mod digest;
mod error;
mod fold;
mod frame;
mod heads;
mod info;
mod loose;
mod overlay;
mod parting;
mod progression;
mod stretch;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::addr::{Hpa, Level};
use crate::image::RamRange;
use crate::walk::{Bus, BusError, Exchange};

pub use compare::ImportError;
pub use error::{AllocError, FrameError, PoolError, TableFault};
pub use frame::{FrameForm, FrameInfo};
pub use info::Forms;
pub(crate) use loose::{Home, Lines, NoFrame};
pub use progression::{Masks, Progression, Run};
pub use stretch::{Stretch, Stretches};

use arena::{Blocks, Ranges};
use frame::{Body, Kind, MAX_SHIFT, MIN_SHIFT, PIECE_SHIFT, Piece, Record, Slab, Uniform};
use heads::Heads;
use overlay::Overlay;
use parting::Parting;
use stretch::Occupied;

/// What happens to freed frames.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, serde::Serialize, serde::Deserialize)]
pub enum Reuse {
    /// They are allocated again, the one freed last first.
    #[default]
    LastFreedFirst,
    /// They never are, so that every later touch is seen as a use after free.
    Quarantine,
}

/// How frames are held.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, serde::Serialize, serde::Deserialize)]
pub enum Holding {
    /// In the smallest form that fits, folding back when words become uniform.
    #[default]
    Folding,
    /// Word by word, always: eight bytes a word in whole 2 MiB pieces, the shortest way to a word, and the reference that
    /// folding is tested against.
    Dense,
}

/// A pool of table frames. See the [module](self) for how it holds them.
///
/// Addresses are host-physical; a *word* is the raw 64-bit value, whatever its byte order in memory. All operations on one
/// word take constant time except the first write to a whole template and a change between forms, which touch one
/// piece's records or one frame.
#[derive(Clone, serde::Serialize, serde::Deserialize)]
pub struct TableMemory {
    base: u64,
    bytes: u64,
    present_mask: u64,
    reuse: Reuse,
    holding: Holding,
    pieces: Vec<Piece>,
    uniforms: Vec<(Uniform, u32)>,
    uniform_ids: BTreeMap<Uniform, u32>,
    free_uniforms: Vec<u32>,
    partings: Vec<Parting>,
    free_partings: Vec<u32>,
    records: Blocks<Record, 0>,
    dense: Blocks<u64, MIN_SHIFT>,
    #[serde(skip)]
    heads: Heads,
    occupied: Occupied,
    overlays: Vec<Overlay>,
    free_overlays: Vec<u32>,
    slabs: Vec<Slab>,
    free_slabs: Vec<u32>,
    /// Pieces with room, by frame size.
    roomy: [BTreeSet<u32>; (MAX_SHIFT - MIN_SHIFT + 1) as usize],
    free_pieces: Ranges,
    frames: [u64; Level::MAX_LEVELS],
    dense_frames: u64,
}

impl TableMemory {
    /// Words of the smallest frame.
    pub const FEWEST_WORDS: usize = 1 << MIN_SHIFT;

    /// An empty pool. A word is present exactly when `word & present_mask != 0`.
    ///
    /// # Errors
    /// A pool that does not start at a multiple of 2 MiB, is longer than 8 PiB, or wraps.
    pub fn new(pool: RamRange, present_mask: u64) -> Result<Self, PoolError> {
        const PIECE_BYTES: u64 = 8 << PIECE_SHIFT;
        let RamRange { start, bytes } = pool;
        if !start.raw().is_multiple_of(PIECE_BYTES) {
            return Err(PoolError::Misaligned { start });
        }
        if bytes.div_ceil(PIECE_BYTES) >= 1 << 32 || start.checked_add(bytes).is_none() {
            return Err(PoolError::TooLong { bytes });
        }
        Ok(Self {
            base: start.raw(),
            bytes: bytes & !7,
            present_mask,
            reuse: Reuse::default(),
            holding: Holding::default(),
            pieces: Vec::new(),
            uniforms: Vec::new(),
            uniform_ids: BTreeMap::new(),
            free_uniforms: Vec::new(),
            partings: Vec::new(),
            free_partings: Vec::new(),
            records: Blocks::new(),
            dense: Blocks::new(),
            heads: Heads::default(),
            occupied: Occupied::default(),
            overlays: Vec::new(),
            free_overlays: Vec::new(),
            slabs: Vec::new(),
            free_slabs: Vec::new(),
            roomy: std::array::from_fn(|_| BTreeSet::new()),
            free_pieces: Ranges::default(),
            frames: [0; Level::MAX_LEVELS],
            dense_frames: 0,
        })
    }

    /// The same, empty, with another rule for freed frames.
    pub fn with_reuse(self, reuse: Reuse) -> Self {
        Self { reuse, ..self.emptied() }
    }
    /// The same, empty, with frames held another way.
    pub fn with_holding(self, holding: Holding) -> Self {
        Self { holding, ..self.emptied() }
    }

    /// An equal pool without frames. The rules are chosen before anything is allocated.
    fn emptied(self) -> Self {
        let Self { base, bytes, present_mask, reuse, holding, .. } = self;
        let pool = RamRange { start: Hpa::new(base), bytes };
        match Self::new(pool, present_mask) {
            Ok(fresh) => Self { reuse, holding, ..fresh },
            // A pool that was accepted once is accepted again.
            Err(_) => self,
        }
    }

    /// The pool.
    pub const fn pool(&self) -> RamRange {
        RamRange { start: Hpa::new(self.base), bytes: self.bytes }
    }
    /// The bits of which a present word has at least one.
    pub const fn present_mask(&self) -> u64 {
        self.present_mask
    }

    /// The word at `at`. At most three dependent loads.
    ///
    /// # Errors
    /// No live frame there, a misaligned address, or one outside the pool.
    #[inline]
    pub fn read(&self, at: Hpa) -> Result<u64, TableFault> {
        let w = self.word_index(at);
        match self.word_at(w) {
            Some(word) => Ok(word),
            None => Err(self.fault(at)),
        }
    }

    /// Word index of an address in the pool. Rotating puts a misaligned address's low bits on top, so the directory's bound
    /// check catches it together with addresses outside the pool.
    #[inline]
    const fn word_index(&self, at: Hpa) -> u64 {
        at.raw().wrapping_sub(self.base).rotate_right(3)
    }
    const fn address(&self, w: u64) -> Hpa {
        Hpa::new(self.base + 8 * w)
    }

    #[inline(always)]
    fn word_at(&self, w: u64) -> Option<u64> {
        match self.unit_word(w >> heads::UNIT_SHIFT, w & (heads::UNIT_WORDS - 1)) {
            Some(word) => Some(word),
            None => self.word_in_piece(w),
        }
    }

    /// The long way.
    #[cold]
    #[inline(never)]
    fn word_in_piece(&self, w: u64) -> Option<u64> {
        let piece = self.pieces.get((w >> PIECE_SHIFT) as usize)?;
        match piece.kind {
            Kind::Uniform => Some(self.uniforms[piece.index as usize].0.line.word(w)),
            Kind::Parted => self.halves(*piece).map(|halves| halves.line_at(w & (frame::PIECE_WORDS - 1)).0.word(w)),
            Kind::Frames => self.word_in_frame(*piece, w),
            Kind::Absent | Kind::Freed => None,
        }
    }

    #[inline]
    fn word_in_frame(&self, piece: Piece, w: u64) -> Option<u64> {
        let slot = piece.slot(w);
        if slot >> piece.log != 0 {
            return None;
        }
        match self.records.item(piece.index, slot as usize).body {
            Body::Dense { index, .. } => Some(*self.dense.item(index, piece.offset(w) as usize)),
            Body::Template(line) => Some(line.word(w)),
            Body::Overlay { index, line } => Some(self.overlays[index as usize].word(piece.offset(w), line.word(w))),
            Body::Never | Body::Freed { .. } => None,
        }
    }

    /// Why there is no word at `at`.
    #[cold]
    fn fault(&self, at: Hpa) -> TableFault {
        if at.raw() & 7 != 0 {
            return TableFault::Misaligned { at };
        }
        if at.raw().wrapping_sub(self.base) >= self.bytes {
            return TableFault::OutsidePool { at };
        }
        let w = self.word_index(at);
        let Some(&piece) = self.pieces.get((w >> PIECE_SHIFT) as usize) else {
            return TableFault::Unmapped { at };
        };
        match piece.kind {
            Kind::Freed => TableFault::Freed { at },
            Kind::Frames => frame::dead(self.body(piece, piece.slot(w)), piece.past, at),
            _ => TableFault::Unmapped { at },
        }
    }

    /// How the frame in a slot of a recorded piece is held.
    fn body(&self, piece: Piece, slot: u32) -> Body {
        if slot >> piece.log == 0 { self.records.item(piece.index, slot as usize).body } else { Body::Never }
    }
}

impl fmt::Debug for TableMemory {
    /// A summary: a pool of terabytes has no useful listing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TableMemory")
            .field("pool", &self.pool())
            .field("present_mask", &format_args!("{:#x}", self.present_mask))
            .field("frames", &self.frames)
            .field("forms", &self.forms())
            .field("footprint", &self.footprint())
            .finish_non_exhaustive()
    }
}

impl From<TableFault> for BusError {
    fn from(fault: TableFault) -> Self {
        BusError { at: fault.at() }
    }
}

impl Bus for TableMemory {
    #[inline]
    fn read(&mut self, at: Hpa) -> Result<u64, BusError> {
        Ok(TableMemory::read(self, at)?)
    }
    #[inline]
    fn memory(&self) -> Option<&TableMemory> {
        Some(self)
    }
    #[inline]
    fn cmpxchg(&mut self, at: Hpa, old: u64, new: u64) -> Result<Exchange, BusError> {
        Ok(TableMemory::cmpxchg(self, at, old, new)?)
    }
}

/// A read-only view, for vCPUs that run in parallel. It takes no stores: a compare-and-swap that would change a word is
/// refused as an address where nothing answers; one that would not change it, or finds another word, is answered.
impl Bus for &TableMemory {
    #[inline]
    fn read(&mut self, at: Hpa) -> Result<u64, BusError> {
        Ok(TableMemory::read(self, at)?)
    }
    #[inline]
    fn memory(&self) -> Option<&TableMemory> {
        Some(self)
    }
    #[inline]
    fn cmpxchg(&mut self, at: Hpa, old: u64, new: u64) -> Result<Exchange, BusError> {
        match TableMemory::read(self, at)? {
            found if found != old => Ok(Exchange::Found(found)),
            _ if old == new => Ok(Exchange::Done),
            _ => Err(BusError { at }),
        }
    }
}
