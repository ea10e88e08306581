//! Page by page: mapping, protecting, unmapping and walking single pages of one address space.
//!
//! [`TableMemory`] keeps its counts true with every store, and whoever stores comes down from the root each time. A [`Mapper`] has the
//! memory to itself, so it need not: it keeps the tables that it came by *at hand*, as the kernel's iterators hold a pointer to the table
//! they are in, and counts the words that it changed when it [closes](Mapper::close). A page costs one look at the tables at hand and one
//! word, whatever the format.
//!
//! ```text
//!   address    [ tag                 | index | in the page ]
//!                |                       |
//!   at hand    [ tag, home, acc, .. ]    |         one list for each level; a miss asks the level above
//!                     |                  |
//!   plain words      [ 0 1 2 3 ... index ... ]     of TableMemory, in place
//! ```
//!
//! | what happens | to a table |
//! | --- | --- |
//! | a page in it is mapped, changed or unmapped | is held word by word and at hand; what is counted of it waits |
//! | it gives way to another one, or the mapper closes | counted in one pass; folded if its words are one progression |
//! | it is read | stays as it is; at hand if it is held word by word |
//!
//! Tables come with the first page in them and stay when the last one goes: freeing them is the business of whoever has the memory
//! afterwards. So is changing runs of pages: [`TableMemory::fill_run`] and [`TableMemory::map_run`] change terabytes at once.
//!
//! Addresses are those below [`Geometry::input_bytes`](crate::Geometry::input_bytes); a walk takes what walks take, sign extension and all.
//! Not here: freeing, runs, flushes (what [`Mapper::change`] and [`Mapper::unmap`] return may be cached until somebody flushes it), threads,
//! and trees that contain themselves, in which a leaf of one table is a pointer of another.
//!
//! PERF: 2 to 4 ns a page in tables that are there, where storing to [`TableMemory`] and coming down from the root took 17 to 45; sparse
//! pages, every fourth of which needs a table, are mapped in 0.1 us instead of 0.3 (`cargo bench --bench rivals`).
//! The example `page_by_page` of the facade does all of it.

mod error;
mod kind;
mod look;
mod ways;

pub use error::MapError;
pub use kind::PageKind;

use crate::access::Access;
use crate::addr::{Hpa, Level};
use crate::format::{Format, Settled, Table, Walk};
use crate::memory::{AllocError, Home, Lines, NoFrame, TableMemory};
use crate::walk::{Translation, translation};
use ways::{AtHand, Ways};

/// An address space whose pages are mapped, changed and looked at one by one. See the [module](self).
#[derive(Clone, Debug)]
pub struct Mapper<F: Format> {
    format: F,
    memory: TableMemory,
    root: Hpa,
    /// Tables at hand, by level.
    levels: [Ways; Level::MAX_LEVELS],
    /// A bit for each unit of plain words at which a table at hand begins: no frame is at hand twice.
    taken: Vec<u64>,
}

/// What is to become of a table that is not at hand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Need {
    /// It is read, so one that is held in a smaller form stays so.
    Read,
    /// Its words are changed.
    Change,
    /// The same, and where there is none it is made.
    Grow,
}

/// Why a table is not at hand.
#[derive(Debug)]
enum Miss {
    /// It is only read, and it or one above is held in a smaller form.
    Folded,
    /// The entry that should point to it, or to one above, does not.
    NoTable { level: Level, raw: u64 },
    /// It cannot be.
    Refused(MapError),
}

/// A table that is found below a pointer.
struct Below {
    table: Hpa,
    /// Where its words are, if it was made just now.
    made: Option<Home>,
    /// The attributes with which a walk comes by, if it leaves all pointers above as they are.
    acc: Option<u64>,
}

impl<F: Format> Mapper<F> {
    /// A mapper of the tree at `root`, a table of `memory`.
    pub fn new(format: F, memory: TableMemory, root: Hpa) -> Self {
        let geometry = format.geometry();
        let levels = std::array::from_fn(|level| match Level::new(level as u8) {
            level if level < geometry.root() => Ways::new(geometry.shift(level.up())),
            _ => Ways::new(geometry.input_bits()),
        });
        Self { format, memory, root, levels, taken: Vec::new() }
    }

    /// An address space in which nothing is mapped: its root is allocated.
    ///
    /// # Errors
    /// A pool without room for it.
    pub fn empty(format: F, mut memory: TableMemory) -> Result<Self, AllocError> {
        let level = format.geometry().root();
        let root = memory.alloc(level, frame_words(&format, level))?;
        Ok(Self::new(format, memory, root))
    }

    /// The format.
    pub const fn format(&self) -> &F {
        &self.format
    }
    /// The root table.
    pub const fn root(&self) -> Hpa {
        self.root
    }

    /// The memory with everything in it counted, for whatever one likes. The mapper comes by its tables anew afterwards.
    pub fn memory(&mut self) -> &mut TableMemory {
        self.close();
        &mut self.memory
    }
    /// The memory with everything in it counted.
    pub fn into_memory(mut self) -> TableMemory {
        self.close();
        self.memory
    }

    /// Counts what was changed, and lets go of all tables. Takes time in proportion to the tables at hand.
    pub fn close(&mut self) {
        for table in self.levels.iter_mut().flat_map(Ways::drain).filter(|table| table.touched) {
            self.memory.settle(table.table, table.lines);
        }
        self.taken.clear();
    }

    /// Maps the page at `input` to `output`, with the tables it needs. An entry that maps nothing is replaced, whatever it holds.
    ///
    /// # Errors
    /// Something is mapped there, the format cannot express the page, the address is too wide, or the pool is full.
    // PERF: what is usual inline and without an error in sight; anything else begins anew.
    #[inline]
    pub fn map(&mut self, input: u64, output: Hpa, kind: &PageKind<F>) -> Result<(), MapError> {
        if let Some(word) = kind.small(output)
            && self.put(Level::LAST, input, word)
        {
            return Ok(());
        }
        self.map_anew(input, output, kind)
    }

    #[cold]
    #[inline(never)]
    fn map_anew(&mut self, input: u64, output: Hpa, kind: &PageKind<F>) -> Result<(), MapError> {
        let (level, word) = (kind.level(), kind.word(&self.format, output)?);
        self.reach(level, input, Need::Grow).map_err(|miss| self.error(input, miss))?;
        if self.put(level, input, word) {
            return Ok(());
        }
        Err(MapError::Mapped { input, level, raw: self.word(level, input).unwrap_or(0) })
    }

    /// Puts a word into an entry that maps nothing, of a table at hand.
    #[inline(always)]
    fn put(&mut self, level: Level, input: u64, word: u64) -> bool {
        let index = self.index(level, input);
        if let Some((home, lines)) = self.levels[level.index()].touch_lines(input)
            && let Some(entry) = self.memory.plain_mut().get_mut(home.item(index))
            && !self.format.is_mapped(*entry)
        {
            *entry = word;
            lines.add(index);
            return true;
        }
        false
    }

    /// Changes the word of the leaf that maps `input`, at whatever level it stands, and returns what it was: write protection, ageing,
    /// another page. What the word becomes is not checked.
    ///
    /// # Errors
    /// Nothing is mapped there.
    #[inline]
    pub fn change(&mut self, input: u64, change: impl FnOnce(&F, u64) -> u64) -> Result<u64, MapError> {
        let index = self.index(Level::LAST, input);
        if let Some(home) = self.levels[Level::LAST.index()].touch(input)
            && let Some(entry) = self.memory.plain_mut().get_mut(home.item(index))
            && self.format.is_mapped(*entry)
        {
            let raw = *entry;
            // Its line is known to hold something: the word that it was.
            *entry = change(&self.format, raw);
            return Ok(raw);
        }
        self.change_anew(input, change)
    }

    #[cold]
    #[inline(never)]
    fn change_anew(&mut self, input: u64, change: impl FnOnce(&F, u64) -> u64) -> Result<u64, MapError> {
        let mut level = Level::LAST;
        match self.reach(level, input, Need::Change) {
            Err(Miss::NoTable { level: large, raw }) if self.format.is_mapped(raw) => level = large,
            reached => reached.map_err(|miss| self.error(input, miss))?,
        }
        let raw = self.word(level, input).filter(|&raw| self.format.is_mapped(raw));
        let raw = raw.ok_or(MapError::NotMapped { input, level })?;
        let new = change(&self.format, raw);
        self.set(level, input, new);
        Ok(raw)
    }

    /// Makes the word of the leaf that maps `input` zero and returns what it was. Its table stays.
    ///
    /// # Errors
    /// Nothing is mapped there.
    #[inline]
    pub fn unmap(&mut self, input: u64) -> Result<u64, MapError> {
        self.change(input, |_, _| 0)
    }

    /// Walks `input` as [`walk`](crate::walk::walk) does, flags included.
    ///
    /// # Errors
    /// The architecture's fault.
    // PERF: a call would hand the translation back through memory.
    #[inline(always)]
    pub fn walk(&mut self, input: u64, access: Access) -> Result<Translation, F::Fault> {
        let walk = Walk { input, access };
        match self.glance(&walk) {
            Some(found) => Ok(found),
            None => self.walk_anew(&walk),
        }
    }

    /// A walk that leaves all words as they are, by a table at hand.
    #[inline(always)]
    fn glance(&self, walk: &Walk) -> Option<Translation> {
        let (home, mut acc) = self.levels[Level::LAST.index()].find_walked(walk.input)?;
        let &raw = self.memory.plain().get(home.item(self.index(Level::LAST, walk.input)))?;
        match self.format.settled(walk, Level::LAST, raw, &mut acc) {
            Settled::Leaf(mapped) => Some(translation(walk, &mapped, Level::LAST, raw)),
            _ => None,
        }
    }

    // ---- tables at hand ----

    /// Index of the entry for `input` in its table of this level.
    #[inline(always)]
    fn index(&self, level: Level, input: u64) -> u64 {
        self.format.entry_index(level, self.table(level, Hpa::new(0)), input)
    }

    fn table(&self, level: Level, base: Hpa) -> Table {
        Table { base, index_bits: self.format.geometry().index_bits(level) }
    }

    /// The word of the entry for `input` in a table at hand.
    fn word(&self, level: Level, input: u64) -> Option<u64> {
        let home = self.levels[level.index()].find(input)?;
        self.memory.plain().get(home.item(self.index(level, input))).copied()
    }
    /// Sets it.
    fn set(&mut self, level: Level, input: u64, word: u64) {
        let index = self.index(level, input);
        if let Some((home, lines)) = self.levels[level.index()].touch_lines(input)
            && let Some(entry) = self.memory.plain_mut().get_mut(home.item(index))
        {
            *entry = word;
            lines.add(index);
        }
    }

    /// Has the table of this level that translates `input` at hand.
    fn reach(&mut self, level: Level, input: u64, need: Need) -> Result<(), Miss> {
        match self.levels[level.index()].find(input) {
            Some(_) => Ok(()),
            None => self.learn(level, input, need),
        }
    }

    /// Takes a table at hand.
    #[cold]
    #[inline(never)]
    fn learn(&mut self, level: Level, input: u64, need: Need) -> Result<(), Miss> {
        let Below { table, made, acc } = self.below(level, input, need)?;
        let words = self.format.geometry().entries(level) as u64;
        let mut home = match made {
            Some(home) => home,
            None => self.home(table, words, level, input, need)?,
        };
        if self.is_taken(home) {
            // Two pointers lead to one table: it is at hand for another address, which must let go of it.
            self.close();
            home = self.home(table, words, level, input, need)?;
        }
        let lines = if made.is_some() { Lines::NONE } else { self.memory.lines(table, home) };
        let taken = AtHand { table, home, touched: made.is_some(), acc, lines };
        if let Some(gone) = self.levels[level.index()].take(input, taken) {
            self.set_taken(gone.home, false);
            if gone.touched {
                self.memory.settle(gone.table, gone.lines);
            }
        }
        self.set_taken(home, true);
        Ok(())
    }

    /// The table of this level: the root, or what the level above points to.
    fn below(&mut self, level: Level, input: u64, need: Need) -> Result<Below, Miss> {
        if level == self.format.geometry().root() {
            let bits = self.format.geometry().input_bits();
            if input.checked_shr(bits).is_some_and(|beyond| beyond != 0) {
                return Err(Miss::Refused(MapError::Beyond { input, bits }));
            }
            return Ok(Below { table: self.root, made: None, acc: self.acc_at_root(input) });
        }
        let up = level.up();
        self.reach(up, input, need)?;
        let above = self.levels[up.index()].find_walked(input).map(|(_, acc)| acc);
        let mut raw = self.word(up, input).unwrap_or(0);
        let mut made = None;
        if !self.format.is_mapped(raw) && need == Need::Grow {
            let (pointer, home) = self.grow(level).map_err(Miss::Refused)?;
            self.set(up, input, pointer);
            (raw, made) = (pointer, Some(home));
        } else if !self.format.is_mapped(raw) || self.format.is_leaf(up, raw) {
            return Err(Miss::NoTable { level: up, raw });
        }
        let table = self.format.next_table(up, raw);
        Ok(Below { table, made, acc: above.and_then(|acc| self.acc_below(level, table, input, raw, acc)) })
    }

    /// Makes a table, and the word that points to it.
    fn grow(&mut self, level: Level) -> Result<(u64, Home), MapError> {
        let words = frame_words(&self.format, level);
        let (table, home) = self.memory.alloc_loose(level, words).map_err(MapError::Alloc)?;
        match self.format.encode_table(level.up(), table) {
            Ok(raw) => Ok((raw, home)),
            Err(error) => {
                // It was allocated a moment ago, so it is there to be freed.
                let _ = self.memory.free(table);
                Err(error.into())
            }
        }
    }

    /// Where the words of a table are.
    fn home(&mut self, table: Hpa, words: u64, level: Level, input: u64, need: Need) -> Result<Home, Miss> {
        if need == Need::Read {
            return self.memory.home(table, words).ok_or(Miss::Folded);
        }
        self.memory.loosen(table, words).map_err(|why| {
            Miss::Refused(match why {
                NoFrame::Dead(fault) => MapError::Table { input, level, fault },
                NoFrame::Other { start, words: found } => MapError::Frame { table, start, words: found, needed: words },
            })
        })
    }

    /// Attributes of a walk at the root, if it begins there as the geometry says.
    fn acc_at_root(&self, input: u64) -> Option<u64> {
        let root = self.format.geometry().root();
        let begin = self.format.begin(self.root, &Walk { input, access: Access::READ }).ok()?;
        (begin.level == root && begin.table == self.table(root, self.root)).then_some(begin.acc)
    }

    /// Attributes of a walk at the table to which `raw` points, if it leaves that pointer as it is.
    fn acc_below(&self, level: Level, table: Hpa, input: u64, raw: u64, mut acc: u64) -> Option<u64> {
        let walk = Walk { input, access: Access::READ };
        let settled = self.format.settled(&walk, level.up(), raw, &mut acc);
        (settled == Settled::Table(self.table(level, table))).then_some(acc)
    }

    fn is_taken(&self, home: Home) -> bool {
        self.taken.get(home.number() >> 6).is_some_and(|bits| bits >> (home.number() & 63) & 1 == 1)
    }
    fn set_taken(&mut self, home: Home, taken: bool) {
        let (word, bit) = (home.number() >> 6, 1 << (home.number() & 63));
        if self.taken.len() <= word {
            self.taken.resize(word + 1, 0);
        }
        self.taken[word] = self.taken[word] & !bit | if taken { bit } else { 0 };
    }

    #[cold]
    fn error(&self, input: u64, miss: Miss) -> MapError {
        match miss {
            Miss::Refused(error) => error,
            Miss::NoTable { level, raw } if self.format.is_mapped(raw) => MapError::Mapped { input, level, raw },
            Miss::NoTable { level, .. } => MapError::NotMapped { input, level },
            // Only readers leave tables as they are.
            Miss::Folded => MapError::NotMapped { input, level: Level::LAST },
        }
    }
}

/// Words of the frame that holds a table: small ones share none.
fn frame_words<F: Format>(format: &F, level: Level) -> usize {
    format.geometry().entries(level).max(TableMemory::FEWEST_WORDS)
}
