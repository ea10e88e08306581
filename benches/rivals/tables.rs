//! What all of them can do, ours and the hand-written arrays included.

use mmusim::core::mapper::{Mapper, PageKind};
use mmusim::core::memory::Stretch;
use mmusim::core::walk::walk;
use mmusim::x86::Ept;
use mmusim::{Access, Format, Gpa, Hpa, Level};

use super::crates::{arm, generic, multiarch, x86};
use super::sum::sum;
use super::tree::{HandWritten, Tree, leaf};

/// First-to-last-level tables of one address space.
pub trait Tables {
    /// How it is called in the table.
    const NAME: &'static str;

    /// Only a root.
    fn new() -> Self;
    /// Maps a 4K page, with the tables it needs.
    fn map(&mut self, gpa: u64, host: u64);
    /// Where an address goes.
    fn walk(&mut self, gpa: u64) -> u64;
    /// Looks at every leaf of the first `pages` pages; `None`: there is no way to.
    fn iterate(&mut self, pages: u64) -> Option<u64>;
    /// Takes the permission to write from a mapped page.
    fn protect(&mut self, gpa: u64);
    /// Unmaps a mapped page; tables stay.
    fn unmap(&mut self, gpa: u64);
    /// Ends with everything counted; `None`: nothing was put off.
    fn close(&mut self) -> Option<()> {
        None
    }
}

/// mmusim's mapper, which has the tables to itself.
pub struct Ours {
    mapper: Mapper<Ept>,
    kind: PageKind<Ept>,
}

impl Tables for Ours {
    const NAME: &'static str = "mmusim";

    fn new() -> Self {
        let Tree { ept, memory, root } = Tree::new();
        Self {
            mapper: Mapper::new(ept, memory, root),
            kind: PageKind::new(&ept, Level::LAST, leaf(Hpa::new(0))).expect("a legal leaf"),
        }
    }
    #[inline(always)]
    fn map(&mut self, gpa: u64, host: u64) {
        self.mapper.map(gpa, Hpa::new(host), &self.kind).expect("not mapped before");
    }
    fn walk(&mut self, gpa: u64) -> u64 {
        self.mapper.walk(gpa, Access::READ).map_or(0, |found| found.output.raw())
    }
    fn iterate(&mut self, pages: u64) -> Option<u64> {
        let mask = self.mapper.format().present_mask();
        let mut sum = 0;
        self.mapper.each_leaf(0..pages << 12, |_, _, stretch| {
            sum ^= match stretch {
                Stretch::Run(run) => (0..run.len).fold(0, |sum, i| sum ^ run.word(i)),
                Stretch::Words(words) => words.iter().filter(|&&word| word & mask != 0).fold(0, |sum, word| sum ^ word),
            };
        });
        Some(sum)
    }
    #[inline(always)]
    fn protect(&mut self, gpa: u64) {
        self.mapper.change(gpa, Ept::write_protect).expect("mapped");
    }
    #[inline(always)]
    fn unmap(&mut self, gpa: u64) {
        self.mapper.unmap(gpa).expect("mapped");
    }
    fn close(&mut self) -> Option<()> {
        self.mapper.close();
        Some(())
    }
}

/// mmusim's table memory without it: every store is counted at once, and each page comes down from the root.
pub struct Shared(Tree);

impl Shared {
    fn leaf(&self, gpa: u64) -> Hpa {
        self.0.leaf_table(Gpa::new(gpa)) + 8 * (gpa >> 12 & 511)
    }
}

impl Tables for Shared {
    const NAME: &'static str = "mmusim, TableMemory";

    fn new() -> Self {
        Self(Tree::new())
    }
    #[inline(always)]
    fn map(&mut self, gpa: u64, host: u64) {
        self.0.map(Gpa::new(gpa), Hpa::new(host));
    }
    fn walk(&mut self, gpa: u64) -> u64 {
        let found = walk(&self.0.ept, self.0.root, gpa, Access::READ, &mut &self.0.memory);
        found.map_or(0, |found| found.output.raw())
    }
    fn iterate(&mut self, pages: u64) -> Option<u64> {
        Some(sum(&self.0, pages))
    }
    #[inline(always)]
    fn protect(&mut self, gpa: u64) {
        let at = self.leaf(gpa);
        let word = self.0.memory.read(at).expect("a live table");
        self.0.memory.write(at, self.0.ept.write_protect(word)).expect("a live table");
    }
    #[inline(always)]
    fn unmap(&mut self, gpa: u64) {
        let at = self.leaf(gpa);
        self.0.memory.write(at, 0).expect("a live table");
    }
}

/// The arrays and masks that one would write for this one format by hand: the limit.
pub struct ByHand(HandWritten);

impl Tables for ByHand {
    const NAME: &'static str = "by hand";

    fn new() -> Self {
        Self(HandWritten::new())
    }
    #[inline(always)]
    fn map(&mut self, gpa: u64, host: u64) {
        self.0.map(gpa, host);
    }
    fn walk(&mut self, gpa: u64) -> u64 {
        self.0.walk(gpa).map_or(0, |(host, _)| host)
    }
    fn iterate(&mut self, pages: u64) -> Option<u64> {
        Some(self.0.sum(pages))
    }
    #[inline(always)]
    fn protect(&mut self, gpa: u64) {
        *self.0.leaf(gpa) &= !2;
    }
    #[inline(always)]
    fn unmap(&mut self, gpa: u64) {
        *self.0.leaf(gpa) = 0;
    }
}

macro_rules! rival {
    ($name:literal, $tables:ty, $iterate:expr) => {
        impl Tables for $tables {
            const NAME: &'static str = $name;

            fn new() -> Self {
                <$tables>::new()
            }
            #[inline(always)]
            fn map(&mut self, gpa: u64, host: u64) {
                self.map(gpa, host);
            }
            fn walk(&mut self, gpa: u64) -> u64 {
                <$tables>::walk(self, gpa)
            }
            fn iterate(&mut self, pages: u64) -> Option<u64> {
                let iterate: fn(&Self, u64) -> Option<u64> = $iterate;
                iterate(self, pages)
            }
            #[inline(always)]
            fn protect(&mut self, gpa: u64) {
                self.protect(gpa);
            }
            #[inline(always)]
            fn unmap(&mut self, gpa: u64) {
                self.unmap(gpa);
            }
        }
    };
}

rival!("x86_64", x86::Tables, |_, _| None);
rival!("page_table_multiarch", multiarch::Tables, |tables, _| Some(tables.sum()));
rival!("page-table-generic", generic::Tables, |tables, _| Some(tables.sum()));
rival!("aarch64-paging", arm::Tables, |tables, pages| Some(tables.sum(pages << 12)));
