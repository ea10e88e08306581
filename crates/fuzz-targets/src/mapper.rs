//! A mapper against the same pages mapped by hand, down from the root, in table memory that counts every store.

use std::collections::BTreeMap;

use mmu_core::image::RamRange;
use mmu_core::mapper::{MapError, Mapper, PageKind};
use mmu_core::memory::{Holding, Masks, Progression, Stretch, TableMemory};
use mmu_core::walk::walk;
use mmu_core::{Access, Entry, Format, Hpa, Leaf, Level, NotPresent, Perms};

use crate::bytes::Bytes;
use crate::formats::{WithFormat, one_format};

const BASE: u64 = 0x4000_0000;
/// Two pieces or eight: allocation fails now and then.
const BYTES: [u64; 2] = [2 << 21, 8 << 21];
const OPERATIONS: usize = 96;

/// First byte: configuration, second: how the memory holds frames and how large it is; then operations.
pub(crate) fn mapper_vs_tables(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let (choice, how) = (bytes.u8(), bytes.u8());
    one_format(choice, Operations { how, bytes });
}

struct Operations<'a> {
    how: u8,
    bytes: Bytes<'a>,
}

impl WithFormat for Operations<'_> {
    fn with<F: Format>(mut self, format: F) {
        let Some(mut both) = Both::new(format, self.how) else { return };
        for _ in 0..OPERATIONS {
            if self.bytes.is_empty() {
                break;
            }
            both.operation(&mut self.bytes);
        }
        both.same();
    }
}

/// A mapper, and what it must be like.
struct Both<F: Format> {
    format: F,
    root: Hpa,
    mapper: Mapper<F>,
    tables: TableMemory,
    /// By level.
    kinds: BTreeMap<Level, (Leaf<F::Attrs>, PageKind<F>)>,
    /// Addresses that were mapped once.
    known: Vec<u64>,
}

/// Where a descent ends.
struct End {
    at: Hpa,
    level: Level,
    raw: u64,
}

impl<F: Format> Both<F> {
    /// `None`: the format has no such root or no such leaf.
    fn new(format: F, how: u8) -> Option<Self> {
        let holding = if how & 1 == 0 { Holding::Folding } else { Holding::Dense };
        let pool = RamRange { start: Hpa::new(BASE), bytes: BYTES[usize::from(how >> 1 & 1)] };
        let mut tables = TableMemory::new(pool, format.present_mask()).expect("a legal pool").with_holding(holding);
        let root = tables.alloc(format.geometry().root(), frame_words(&format, format.geometry().root())).ok()?;
        let mapper = Mapper::new(format, tables.clone(), root);
        let kinds = (0..format.geometry().levels()).filter_map(|level| {
            let level = Level::new(level as u8);
            let leaf = leaf(&format, level, how)?;
            Some((level, (leaf, PageKind::new(&format, level, leaf).ok()?)))
        });
        Some(Self { format, root, mapper, tables, kinds: kinds.collect(), known: Vec::new() })
    }

    fn operation(&mut self, bytes: &mut Bytes<'_>) {
        let op = bytes.u8();
        let input = self.input(bytes);
        match op % 16 {
            0..=4 => self.map(input, bytes, op),
            5 | 6 => {
                let new: fn(&F, u64) -> u64 = if op & 16 == 0 { F::write_protect } else { F::mark_old };
                let expected = self.change(input, new);
                assert_eq!(self.mapper.change(input, new), expected);
            }
            7 | 8 => {
                let expected = self.change(input, |_, _| 0);
                assert_eq!(self.mapper.unmap(input), expected);
            }
            9..=11 => self.walk(input, op),
            12 => self.look(input, bytes),
            13 => self.same(),
            14 => self.meddle(input, bytes),
            _ => match op >> 4 & 1 {
                0 => self.mapper.close(),
                // The same tables under a mapper that has none at hand.
                _ => self.mapper = Mapper::new(self.format, self.mapper.memory().clone(), self.root),
            },
        }
    }

    fn map(&mut self, input: u64, bytes: &mut Bytes<'_>, op: u8) {
        let Some((&level, (leaf, kind))) = self.kinds.iter().nth(usize::from(op >> 4) % 4 % self.kinds.len().max(1))
        else {
            return;
        };
        let size = self.format.geometry().page_size(level).bytes();
        // Contiguous as often as not, misaligned or too wide now and then.
        let output = match bytes.u8() {
            choice @ 0..=7 => bytes.u64() >> (8 * choice),
            choice @ 8..=23 => bytes.u64() >> (2 * choice) & !(size - 1),
            choice if choice & 1 == 0 => (input & !(size - 1)) & 0xff_ffff_ffff,
            _ => u64::from(bytes.u16()) * size,
        };
        let word = self.format.encode_leaf(level, &Leaf { output: Hpa::new(output), ..*leaf });
        assert_eq!(kind.word(&self.format, Hpa::new(output)), word);
        let mapped = self.mapper.map(input, Hpa::new(output), kind);
        let expected = word.map_err(MapError::from).and_then(|word| self.map_by_hand(input, level, word));
        assert_eq!(mapped, expected);
        if mapped.is_ok() {
            self.known.push(input);
        }
    }

    /// Down from the root, with the tables that are missing.
    fn map_by_hand(&mut self, input: u64, last: Level, word: u64) -> Result<(), MapError> {
        loop {
            let end = self.descend(input, last)?;
            if self.format.is_mapped(end.raw) {
                return Err(MapError::Mapped { input, level: end.level, raw: end.raw });
            }
            if end.level == last {
                self.tables.write(end.at, word).expect("a live table");
                return Ok(());
            }
            let below = end.level.down().expect("above the last level");
            let words = frame_words(&self.format, below);
            let table = self.tables.alloc(below, words).map_err(MapError::Alloc)?;
            let pointer = self.format.encode_table(end.level, table).expect("an aligned table in a small pool");
            self.tables.write(end.at, pointer).expect("a live table");
        }
    }

    /// To the entry of level `last`, or to the one above that is no pointer.
    fn descend(&self, input: u64, last: Level) -> Result<End, MapError> {
        let geometry = self.format.geometry();
        if input >> geometry.input_bits().min(63) != 0 {
            return Err(MapError::Beyond { input, bits: geometry.input_bits() });
        }
        let (mut table, mut level) = (self.root, geometry.root());
        loop {
            let at = table + 8 * geometry.index(level, input) as u64;
            let raw = self.tables.read(at).expect("tables are not freed while they are linked");
            if level == last || !self.format.is_mapped(raw) || self.format.is_leaf(level, raw) {
                return Ok(End { at, level, raw });
            }
            table = self.format.next_table(level, raw);
            level = level.down().expect("a pointer at the last level is a leaf");
        }
    }

    fn change(&mut self, input: u64, change: impl FnOnce(&F, u64) -> u64) -> Result<u64, MapError> {
        let End { at, level, raw } = self.descend(input, Level::LAST)?;
        if !self.format.is_mapped(raw) {
            return Err(MapError::NotMapped { input, level });
        }
        self.tables.write(at, change(&self.format, raw)).expect("a live table");
        Ok(raw)
    }

    fn walk(&mut self, input: u64, op: u8) {
        let kinds = [Access::READ, Access::WRITE, Access::EXECUTE, Access::GUEST_TABLE];
        let access = kinds[usize::from(op >> 4) & 3];
        let access = if op & 0x40 == 0 { access } else { access.user() };
        let found = self.mapper.walk(input, access);
        assert_eq!(found, walk(&self.format, self.root, input, access, &mut self.tables), "{access} of {input:#x}");
        let leaf = self.descend(input, Level::LAST).ok().filter(|end| self.format.is_mapped(end.raw));
        assert_eq!(self.mapper.leaf(input), leaf.map(|end| (end.level, end.raw)));
    }

    /// All leaves of a range, in order.
    fn look(&mut self, from: u64, bytes: &mut Bytes<'_>) {
        let geometry = *self.format.geometry();
        let pages = u64::from(bytes.u16());
        let to = from.saturating_add(pages << geometry.shift(Level::LAST)).min(geometry.input_bytes());
        let (format, page) = (self.format, geometry.shift(Level::LAST));
        let mut found = Vec::new();
        self.mapper.each_leaf(from..to, |level, input, stretch| {
            let words: Vec<u64> = match stretch {
                Stretch::Run(run) => (0..run.len).map(|i| run.word(i)).collect(),
                Stretch::Words(words) => words.to_vec(),
            };
            assert!(!words.is_empty());
            let inputs = (0..).map(|i| input + (i << geometry.shift(level)));
            found.extend(
                inputs.zip(words).filter(|&(_, word)| format.is_mapped(word)).map(|(at, word)| (level, at, word)),
            );
        });
        let (mut expected, mut input) = (Vec::new(), from >> page << page);
        while input < to {
            let Ok(end) = self.descend(input, Level::LAST) else { break };
            let shift = geometry.shift(end.level);
            if self.format.is_mapped(end.raw) {
                expected.push((end.level, input >> shift << shift, end.raw));
            }
            input = ((input >> shift) + 1) << shift;
        }
        assert_eq!(found, expected, "{from:#x} to {to:#x}");
    }

    /// What others do to the memory in between: all entries of a table at once, a table that is unlinked and freed, one that two entries
    /// point to, a pointer that walks do not leave as it is or that allows less, and words that map nothing.
    fn meddle(&mut self, input: u64, bytes: &mut Bytes<'_>) {
        let choice = bytes.u8();
        let level = Level::new(choice >> 4 & 1);
        let (Ok(end), Ok(above)) = (self.descend(input, level), self.descend(input, level.up())) else { return };
        let entries = self.format.geometry().entries(level) as u64;
        if level >= self.format.geometry().root() || end.level != level {
            return;
        }
        let table = self.format.next_table(above.level, above.raw);
        let shared = self.pointers_to(table) > 1;
        match choice % 6 {
            0 if level == Level::LAST => {
                let first = self.kinds.get(&level).map(|(leaf, _)| self.format.encode_leaf(level, leaf));
                let first = first.and_then(Result::ok).unwrap_or(0);
                let fill = Progression::new(first, self.format.geometry().page_size(level).bytes());
                self.each(|memory| memory.fill_run(table, entries, fill).expect("a live table"));
            }
            1 if level == Level::LAST => {
                let masks = Masks::clear(self.format.accessed_mask());
                self.each(|memory| {
                    memory.map_run(table, entries, masks).expect("a live table");
                });
            }
            2 if level == Level::LAST && !shared => self.each(|memory| {
                memory.write(above.at, 0).expect("a live table");
                memory.free(table).expect("a table");
            }),
            3 if level == Level::LAST => {
                let other = self.input(bytes);
                if let Ok(twin) = self.descend(other, level.up())
                    && twin.level == above.level
                    && !self.format.is_mapped(twin.raw)
                {
                    self.each(|memory| memory.write(twin.at, above.raw).expect("a live table"));
                }
            }
            4 => {
                let accessed = self.format.accessed_mask();
                let less =
                    if choice & 0x80 == 0 { above.raw & !accessed } else { self.format.write_protect(above.raw) };
                let points = self.format.is_mapped(less) && !self.format.is_leaf(above.level, less);
                if points && self.format.next_table(above.level, less) == table {
                    self.each(|memory| memory.write(above.at, less).expect("a live table"));
                }
            }
            _ => {
                let marker = self.format.encode_not_present(NotPresent::Frozen).unwrap_or(0);
                if !self.format.is_mapped(end.raw) {
                    self.each(|memory| memory.write(end.at, marker).expect("a live table"));
                }
            }
        }
    }

    /// How many entries of the level above the last one point to a table.
    fn pointers_to(&self, table: Hpa) -> usize {
        let level = Level::new(1);
        let frames = self.tables.live_frames().filter(|frame| frame.level == level);
        let words = frames.flat_map(|frame| (0..frame.words).map(move |i| frame.start + 8 * i));
        let points = |raw: &u64| {
            self.format.is_mapped(*raw)
                && !self.format.is_leaf(level, *raw)
                && self.format.next_table(level, *raw) == table
        };
        words.filter_map(|at| self.tables.read(at).ok()).filter(points).count()
    }

    fn each(&mut self, mut act: impl FnMut(&mut TableMemory)) {
        act(self.mapper.memory());
        act(&mut self.tables);
    }

    /// Same frames, words and counts.
    fn same(&mut self) {
        let Self { mapper, tables, .. } = self;
        let memory = mapper.memory();
        assert!(memory == tables, "the same pages left different words");
        assert_eq!(memory.digest(), tables.digest());
        for frame in tables.live_frames() {
            assert_eq!(memory.live(frame.start), Ok(frame.live), "present words of the table at {}", frame.start);
            let (ours, theirs) = (present(memory, frame.start, frame.words), present(tables, frame.start, frame.words));
            assert_eq!(ours, theirs, "stretches of the table at {}", frame.start);
        }
    }

    /// A page that was mapped before, as often as not; else some near each other in regions that meet in one table, in neighbours, or far apart.
    fn input(&self, bytes: &mut Bytes<'_>) -> u64 {
        let geometry = self.format.geometry();
        let (page, choice) = (u64::from(bytes.u16()), bytes.u8());
        if page >> 15 == 1 && !self.known.is_empty() {
            return self.known[page as usize % self.known.len()] ^ u64::from(choice);
        }
        let region = match choice & 7 {
            0..=2 => 0,
            3 => u64::from(choice >> 3) << geometry.shift(Level::new(1)),
            4 => u64::from(choice >> 3) << geometry.shift(Level::new(2)),
            // Tables that want the same place, however many there are.
            5 | 6 => u64::from(choice >> 3) << (geometry.shift(Level::new(1)) + 21).min(63),
            _ => geometry.input_bytes() >> (choice >> 3 & 1),
        };
        (region | (page & 0xfff) << geometry.shift(Level::LAST)) | page >> 12
    }
}

/// Present words by their index.
fn present(memory: &TableMemory, at: Hpa, words: u64) -> Vec<(u64, u64)> {
    let mut all = Vec::new();
    for (offset, stretch) in memory.stretches(at, words).expect("a live table") {
        match stretch {
            Stretch::Run(run) => all.extend((0..run.len).map(|i| (offset + i, run.word(i)))),
            Stretch::Words(words) => all.extend((offset..).zip(words.iter().copied())),
        }
    }
    all.retain(|&(_, word)| word & memory.present_mask() != 0);
    all
}

/// A leaf of this level, if the format has one.
fn leaf<F: Format>(format: &F, level: Level, how: u8) -> Option<Leaf<F::Attrs>> {
    let perms = [Perms::RWX, Perms::R.with(Perms::W), Perms::R.with(Perms::X), Perms::R];
    let accessed = how & 4 == 0;
    let all = [Perms::DIRTY, Perms::NONE].into_iter().flat_map(|dirty| perms.map(|perms| perms.with(dirty)));
    let leaves = all.flat_map(|perms| [accessed, !accessed].map(|accessed| (perms, accessed)));
    let skipped = usize::from(how >> 3 & 7);
    let legal = leaves.filter_map(|(perms, accessed)| {
        let leaf = Leaf { output: Hpa::new(0), perms, accessed, attrs: F::Attrs::default() };
        let word = format.encode_leaf(level, &leaf).ok()?;
        matches!(format.decode(level, word), Entry::Leaf(_)).then_some(leaf)
    });
    let legal: Vec<_> = legal.collect();
    legal.get(skipped % legal.len().max(1)).copied()
}

fn frame_words<F: Format>(format: &F, level: Level) -> usize {
    format.geometry().entries(level).max(TableMemory::FEWEST_WORDS)
}
