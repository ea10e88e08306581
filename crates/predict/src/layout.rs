//! The memory under a curve: a guest's own tables in guest-physical memory, and the hypervisor's tables that map it.
//!
//! Both are real words that the walkers read. What a benchmark cannot choose is chosen here as a machine that has run for a
//! while does it: the guest's small frames come from its allocator scattered, huge ones whole; the host's frames lie
//! anywhere; the hypervisor's own tables one after the other.

use std::fmt;

use mmu_core::image::RamRange;
use mmu_core::memory::{Progression, TableMemory};
use mmu_core::walk::{Bus, BusError, Exchange};
use mmu_core::{ByteUnits, EncodeError, Format, Gpa, Hpa, Leaf, Level, PageSize, Perms};

use crate::order::scatter;

/// A curve that a machine's tables cannot hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LayoutError {
    /// The guest has no pages of this size.
    GuestPage {
        /// Asked for.
        page: PageSize,
        /// What there is.
        legal: Vec<PageSize>,
    },
    /// The second stage has none of the size that the sheet says.
    HostPage(PageSize),
    /// The tables do not fit.
    Tables(String),
    /// A word cannot be written.
    Encode(EncodeError),
}

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GuestPage { page, legal } => {
                let legal: Vec<String> = legal.iter().map(ToString::to_string).collect();
                write!(f, "the guest has no pages of {page}; choose a curve with pages of {}", legal.join(", "))
            }
            Self::HostPage(page) => {
                write!(f, "the second stage has no pages of {page}; correct host_page in the sheet")
            }
            Self::Tables(why) => f.write_str(why),
            Self::Encode(error) => error.fmt(f),
        }
    }
}
impl std::error::Error for LayoutError {}

impl From<EncodeError> for LayoutError {
    fn from(error: EncodeError) -> Self {
        Self::Encode(error)
    }
}

/// Words of a 4 KiB piece.
const WORDS: usize = 512;

/// The guest's memory as far as tables lie in it, in pieces of 4 KiB.
#[derive(Debug, Default)]
struct GuestWords {
    /// Piece of a frame, from one on; 0 where there is none.
    pieces: Vec<u32>,
    words: Vec<[u64; WORDS]>,
}

impl GuestWords {
    #[inline]
    fn read(&self, gpa: u64) -> Option<u64> {
        let piece = *self.pieces.get((gpa >> 12) as usize)?;
        self.words.get((piece as usize).checked_sub(1)?).map(|words| words[(gpa as usize & 0xfff) / 8])
    }

    fn slot(&mut self, gpa: u64) -> &mut u64 {
        let frame = (gpa >> 12) as usize;
        if self.pieces.len() <= frame {
            self.pieces.resize(frame + 1, 0);
        }
        if self.pieces[frame] == 0 {
            self.words.push([0; WORDS]);
            self.pieces[frame] = self.words.len() as u32;
        }
        &mut self.words[self.pieces[frame] as usize - 1][(gpa as usize & 0xfff) / 8]
    }
}

/// Bytes of a block in which the guest's allocator keeps what it cannot move, tables above all (Linux: a pageblock is as
/// large as a huge page, `include/linux/pageblock-flags.h`).
const PAGEBLOCK: u64 = 2 << 20;

/// What a benchmark finds around it and cannot choose: the guest's memory after it has run for a while.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Surroundings {
    /// Bytes of small frames that the guest has had in use, among which those of a benchmark lie scattered.
    pub used: u64,
    /// Logarithm of how many frames of a pageblock of tables there are for each that a benchmark gets; the others are somebody else's.
    pub spread: u32,
}

impl Default for Surroundings {
    /// D: with 4 GiB in use the second stage's tables take the room in the caches that `dense4k` shows from 2,560 to 16,384 pages; a quarter
    /// of a block is what `pde_2M` shows from 1,024 regions on.
    fn default() -> Self {
        Self { used: 4 << 30, spread: 2 }
    }
}

/// Where the guest's frames come from.
#[derive(Clone, Copy, Debug)]
struct Frames {
    /// Smallest frame.
    unit: PageSize,
    /// Bits of the number of units in the zone of small frames; the zone of huge ones is as large and follows.
    bits: u32,
    /// Small frames handed out.
    small: u64,
    /// Frames handed out to tables.
    tables: u64,
    /// Bytes of huge frames handed out.
    huge: u64,
    spread: u32,
    seed: u64,
}

impl Frames {
    /// A frame of the smallest size, away from the last one.
    fn small(&mut self) -> Gpa {
        self.small += 1;
        // The lower half of the zone; the upper one holds tables.
        Gpa::new(scatter(self.small, self.bits - 1, self.seed) << self.unit.shift())
    }

    /// A frame for what stays where it is, tables above all: near the last one as far as a block goes.
    fn table(&mut self) -> Gpa {
        let frames = (PAGEBLOCK / self.unit.bytes()).max(1).trailing_zeros();
        let spread = self.spread.min(frames);
        let own = frames - spread;
        let (block, within) = (self.tables >> own, self.tables & ((1 << own) - 1));
        self.tables += 1;
        let bits = self.bits - 1;
        let frame = scatter(block, bits.saturating_sub(frames), self.seed) << frames | within << spread;
        Gpa::new((1 << bits | frame) << self.unit.shift())
    }

    /// A huge frame or a large table; those of one size lie scattered among themselves.
    fn huge(&mut self, bytes: u64) -> Gpa {
        let start = self.huge.next_multiple_of(bytes);
        self.huge = start + bytes;
        let (zone, shift) = (self.bits + self.unit.shift(), bytes.trailing_zeros());
        let place = match zone.checked_sub(shift) {
            Some(bits) if bits < 40 => scatter(start >> shift, bits, self.seed),
            _ => 0,
        };
        Gpa::new((1 << zone) + (place << shift))
    }
}

/// Tables of both stages, and the memory that they are in.
#[derive(Debug)]
pub(crate) struct Layout<F1: Format, F2: Format> {
    pub(crate) one: F1,
    pub(crate) two: F2,
    pub(crate) guest_root: Gpa,
    pub(crate) host_root: Hpa,
    guest: GuestWords,
    host: TableMemory,
    frames: Frames,
    /// Pieces of the frame that small tables are being cut from.
    pieces: (u64, u64),
    leaf: Level,
    first_leaves: Hpa,
    host_bits: u32,
    host_page: PageSize,
    seed: u64,
}

impl<F1: Format, F2: Format> Layout<F1, F2> {
    /// A guest with room for so many bytes of small frames and as many of huge ones, mapped by host pages of `host_page`.
    pub(crate) fn new(
        (one, two): (F1, F2),
        bytes: u64,
        host_page: PageSize,
        around: Surroundings,
        seed: u64,
    ) -> Result<Self, LayoutError> {
        let unit = one.geometry().granule();
        let half = bytes.next_power_of_two().max(host_page.bytes()).max(64.MiB());
        let bits = (half / unit.bytes()).trailing_zeros();
        let frames = Frames { unit, bits, small: 0, tables: 0, huge: 0, spread: around.spread, seed };
        let leaf = two.geometry().level_of(host_page).ok_or(LayoutError::HostPage(host_page))?;
        let pool = RamRange { start: Hpa::new(16.TiB()), bytes: (half / 64).max(1.GiB()).next_power_of_two() };
        let tables = |error: &dyn fmt::Display| LayoutError::Tables(error.to_string());
        let mut host = TableMemory::new(pool, two.present_mask()).map_err(|error| tables(&error))?;
        let (first_leaves, host_root) = second_stage(&mut host, &two, leaf, (2 * half) >> host_page.shift())?;
        let mut layout = Self {
            one,
            two,
            guest_root: Gpa::new(0),
            host_root,
            guest: GuestWords::default(),
            host,
            frames,
            pieces: (0, 0),
            leaf,
            first_leaves,
            host_bits: (2 * half / host_page.bytes()).trailing_zeros(),
            host_page,
            seed,
        };
        layout.guest_root = layout.guest_table(one.geometry().root())?;
        Ok(layout)
    }

    /// Takes a frame of guest memory of this size.
    pub(crate) fn frame(&mut self, page: PageSize) -> Result<Gpa, LayoutError> {
        let gpa = if page <= self.frames.unit { self.frames.small() } else { self.frames.huge(page.bytes()) };
        self.back(gpa, page.bytes())?;
        Ok(gpa)
    }

    /// Takes the frame after the last one taken this way: code is written in one go.
    pub(crate) fn next_frame(&mut self, page: PageSize) -> Result<Gpa, LayoutError> {
        let gpa = if page <= self.frames.unit { self.frames.table() } else { self.frames.huge(page.bytes()) };
        self.back(gpa, page.bytes())?;
        Ok(gpa)
    }

    /// Maps the guest's page around a virtual address to a frame.
    pub(crate) fn map(&mut self, gva: u64, page: PageSize, frame: Gpa) -> Result<(), LayoutError> {
        let geometry = *self.one.geometry();
        let Some(leaf) = geometry.level_of(page) else {
            return Err(LayoutError::GuestPage { page, legal: geometry.page_sizes().collect() });
        };
        let (mut table, mut level) = (self.guest_root.raw(), geometry.root());
        while level > leaf {
            let Some(down) = level.down() else { break };
            let at = table + 8 * geometry.index(level, gva) as u64;
            let raw = *self.guest.slot(at);
            table = if raw & self.one.present_mask() != 0 {
                self.one.next_table(level, raw).raw()
            } else {
                let child = self.guest_table(down)?.raw();
                *self.guest.slot(at) = self.one.encode_table(level, Hpa::new(child))?;
                child
            };
            level = down;
        }
        let word = leaf_word(&self.one, leaf, Hpa::new(frame.raw()))?;
        *self.guest.slot(table + 8 * geometry.index(leaf, gva) as u64) = word;
        Ok(())
    }

    fn guest_table(&mut self, level: Level) -> Result<Gpa, LayoutError> {
        let (bytes, unit) = (self.one.geometry().table_bytes(level).max(4096), self.frames.unit.bytes());
        if bytes > unit {
            let gpa = self.frames.huge(bytes);
            self.back(gpa, bytes)?;
            return Ok(gpa);
        }
        if self.pieces.1 < bytes {
            let frame = self.frames.table();
            self.back(frame, unit)?;
            self.pieces = (frame.raw(), unit);
        }
        let gpa = self.pieces.0;
        self.pieces = (gpa + bytes, self.pieces.1 - bytes);
        Ok(Gpa::new(gpa))
    }

    /// Gives guest memory its host pages.
    fn back(&mut self, gpa: Gpa, bytes: u64) -> Result<(), LayoutError> {
        let shift = self.host_page.shift();
        for page in gpa.raw() >> shift..=(gpa.raw() + bytes - 1) >> shift {
            let output = Hpa::new(scatter(page, self.host_bits, !self.seed) << shift);
            let word = leaf_word(&self.two, self.leaf, output)?;
            let written = self.host.write(self.first_leaves + 8 * page, word);
            written.map_err(|error| LayoutError::Tables(error.to_string()))?;
        }
        Ok(())
    }
}

/// Empty tables of the second stage for so many leaves: the first leaf table and the root.
fn second_stage<F: Format>(
    host: &mut TableMemory,
    two: &F,
    leaf: Level,
    leaves: u64,
) -> Result<(Hpa, Hpa), LayoutError> {
    let geometry = *two.geometry();
    let mut tables = |level: Level, entries: u64, fill: Progression| {
        let frames = entries.div_ceil(geometry.entries(level) as u64).max(1);
        let failed = |error: &dyn fmt::Display| LayoutError::Tables(error.to_string());
        let empty = Progression { first: 0, step: 0 };
        let words = geometry.entries(level).max(32);
        let first = host.alloc_run(level, words, frames, empty).map_err(|error| failed(&error))?;
        if fill != empty {
            host.fill_run(first, entries, fill).map_err(|error| failed(&error))?;
        }
        Ok::<_, LayoutError>((first, frames))
    };
    let (leaf_tables, mut frames) = tables(leaf, leaves, Progression { first: 0, step: 0 })?;
    let (mut first, mut level) = (leaf_tables, leaf);
    while level < geometry.root() {
        let step = geometry.table_bytes(level);
        level = level.up();
        let fill = Progression { first: two.encode_table(level, first)?, step };
        (first, frames) = tables(level, frames, fill)?;
    }
    Ok((leaf_tables, first))
}

/// A leaf that lets everybody do everything; not every format has that (Arm: who may write may not execute at EL1).
fn leaf_word<F: Format>(format: &F, level: Level, output: Hpa) -> Result<u64, LayoutError> {
    let encode = |perms: Perms| {
        let leaf = Leaf { output, perms: perms.with(Perms::DIRTY), accessed: true, attrs: F::Attrs::default() };
        format.encode_leaf(level, &leaf)
    };
    Ok(encode(Perms::RWX).or_else(|_| encode(Perms::RWX.without(Perms::EXEC)))?)
}

impl<F1: Format, F2: Format> Bus for Layout<F1, F2> {
    #[inline]
    fn read(&mut self, at: Hpa) -> Result<u64, BusError> {
        self.host.read(at).map_err(|_| BusError { at })
    }

    fn cmpxchg(&mut self, at: Hpa, old: u64, new: u64) -> Result<Exchange, BusError> {
        self.host.cmpxchg(at, old, new).map_err(|_| BusError { at })
    }

    #[inline]
    fn read_guest(&mut self, gpa: Gpa, at: Hpa) -> Result<u64, BusError> {
        self.guest.read(gpa.raw()).ok_or(BusError { at })
    }

    fn cmpxchg_guest(&mut self, gpa: Gpa, at: Hpa, old: u64, new: u64) -> Result<Exchange, BusError> {
        let found = self.read_guest(gpa, at)?;
        if found != old {
            return Ok(Exchange::Found(found));
        }
        *self.guest.slot(gpa.raw()) = new;
        Ok(Exchange::Done)
    }
}
