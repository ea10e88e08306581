//! The EPT tree that most cases work on.

// Each bench uses a part of it.
#![allow(dead_code)]

use arch_x86_ept::{Ept, EptAttrs, EptConfig};
use mmu_core::image::RamRange;
use mmu_core::memory::TableMemory;
use mmu_core::walk::walk;
use mmu_core::{Access, ByteUnits, Format, Gpa, Hpa, Leaf, Level, PageSize, Perms};

use super::scatter::Scatter;

/// First byte of the table pool.
pub const POOL: u64 = 1 << 40;
const WORDS: usize = 512;

/// Where guest pages lie in host memory.
#[derive(Clone, Copy)]
pub enum Backing {
    /// In one piece, so leaf tables are progressions.
    Contiguous,
    /// Anywhere, so leaf tables are plain words.
    Scattered,
}

/// A leaf as all are.
pub fn leaf(output: Hpa) -> Leaf<EptAttrs> {
    Leaf { output, perms: Perms::RWX.with(Perms::DIRTY), accessed: true, attrs: EptAttrs::default() }
}

/// Four levels of EPT tables over a guest of 4K pages.
pub struct Tree {
    /// The format.
    pub ept: Ept,
    /// The words.
    pub memory: TableMemory,
    /// The root table.
    pub root: Hpa,
}

impl Tree {
    /// Only a root.
    pub fn new() -> Self {
        let ept = EptConfig::new().max_phys_addr(52).build().expect("four levels exist");
        let pool = RamRange { start: Hpa::new(POOL), bytes: 1.TiB() };
        let mut memory = TableMemory::new(pool, ept.present_mask()).expect("the pool is aligned");
        let root = memory.alloc(ept.geometry().root(), WORDS).expect("the pool is empty");
        Self { ept, memory, root }
    }

    /// The first `pages` pages mapped, and every accessed flag set by a walk.
    pub fn mapped(pages: u64, backing: Backing) -> Self {
        let mut tree = Self::new();
        let mut scatter = Scatter(1);
        for page in 0..pages {
            let host = match backing {
                Backing::Contiguous => page,
                Backing::Scattered => scatter.below(1 << 27),
            };
            tree.map(Gpa::new(page << 12), Hpa::new(host << 12));
            if page % 512 == 0 {
                let Tree { ept, memory, root } = &mut tree;
                walk(ept, *root, page << 12, Access::READ, memory).expect("the page was just mapped");
            }
        }
        tree
    }

    /// Maps one page as a hypervisor would: down from the root, allocating what is missing.
    pub fn map(&mut self, gpa: Gpa, host: Hpa) {
        let geometry = *self.ept.geometry();
        let (mut table, mut level) = (self.root, geometry.root());
        while level > Level::LAST {
            let at = table + 8 * (gpa.raw() >> geometry.shift(level) & 511);
            let word = self.memory.read(at).expect("a live table");
            table = if self.ept.is_mapped(word) { self.ept.next_table(level, word) } else { self.grow(at, level) };
            level = level.down().expect("above the last level");
        }
        let word = self.ept.encode_leaf(Level::LAST, &leaf(host)).expect("a legal leaf");
        self.memory.write(table + 8 * (gpa.raw() >> 12 & 511), word).expect("a live table");
    }

    fn grow(&mut self, at: Hpa, level: Level) -> Hpa {
        let table = self.memory.alloc(level.down().expect("above the last level"), WORDS).expect("room");
        let word = self.ept.encode_table(level, table).expect("an aligned table");
        self.memory.write(at, word).expect("a live table");
        table
    }

    /// The table that holds the leaf of `gpa`.
    #[inline]
    pub fn leaf_table(&self, gpa: Gpa) -> Hpa {
        let geometry = self.ept.geometry();
        let mut table = self.root;
        for level in [Level::new(3), Level::new(2), Level::new(1)] {
            let at = table + 8 * (gpa.raw() >> geometry.shift(level) & 511);
            table = self.ept.next_table(level, self.memory.read(at).expect("a live table"));
        }
        table
    }
}

/// The same words as plain arrays, and the walk that one would write for this one format by hand.
pub struct HandWritten {
    tables: Vec<[u64; WORDS]>,
    root: usize,
}

const ADDRESS: u64 = 0xf_ffff_ffff_f000;

impl HandWritten {
    /// Only a root.
    pub fn new() -> Self {
        Self { tables: vec![[0; WORDS]], root: 0 }
    }

    /// Maps one page, with the tables it needs.
    pub fn map(&mut self, gpa: u64, host: u64) {
        let mut table = self.root;
        for shift in [39, 30, 21] {
            let index = (gpa >> shift & 511) as usize;
            if self.tables[table][index] == 0 {
                self.tables[table][index] = (POOL + ((self.tables.len() as u64) << 12)) | 7;
                self.tables.push([0; WORDS]);
            }
            table = Self::below(self.tables[table][index]);
        }
        self.tables[table][(gpa >> 12 & 511) as usize] = host | 0x307;
    }

    /// The entry that maps a page in a table that is there.
    #[inline]
    pub fn leaf(&mut self, gpa: u64) -> &mut u64 {
        let table = [39, 30, 21]
            .iter()
            .fold(self.root, |table, shift| Self::below(self.tables[table][(gpa >> shift & 511) as usize]));
        &mut self.tables[table][(gpa >> 12 & 511) as usize]
    }

    /// Adds up all present leaves of the first `pages` pages.
    pub fn sum(&self, pages: u64) -> u64 {
        let leaf_tables = (0..pages).step_by(WORDS).map(|page| {
            let gpa = page << 12;
            let table = [39, 30, 21].iter().try_fold(self.root, |table, shift| {
                let word = self.tables[table][(gpa >> shift & 511) as usize];
                (word != 0).then(|| Self::below(word))
            });
            table.map_or(&[][..], |table| &self.tables[table][..])
        });
        leaf_tables.flatten().filter(|&&word| word & 7 != 0).fold(0, |sum, word| sum ^ word)
    }

    #[inline]
    const fn below(word: u64) -> usize {
        (((word & ADDRESS) - POOL) >> 12) as usize
    }

    /// Copies a tree word by word.
    pub fn copy(tree: &Tree) -> Self {
        let words = |start: Hpa| std::array::from_fn(|i| tree.memory.read(start + 8 * i as u64).expect("a live table"));
        let tables = tree.memory.live_frames().map(|frame| words(frame.start)).collect();
        Self { tables, root: ((tree.root.raw() - POOL) >> 12) as usize }
    }

    /// Where `gpa` goes, and the size of its page.
    #[inline]
    pub fn walk(&self, gpa: u64) -> Option<(u64, PageSize)> {
        let mut table = self.root;
        for shift in [39, 30, 21] {
            let word = self.tables[table][(gpa >> shift & 511) as usize];
            if word & 7 == 0 || word & 0x80 != 0 {
                return None;
            }
            table = (((word & ADDRESS) - POOL) >> 12) as usize;
        }
        let word = self.tables[table][(gpa >> 12 & 511) as usize];
        (word & 1 != 0).then_some((word & ADDRESS | gpa & 0xfff, PageSize::SIZE_4K))
    }
}
