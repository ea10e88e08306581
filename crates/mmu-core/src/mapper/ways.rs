//! The tables of one level that a mapper has at hand, by the addresses that they translate.

use crate::addr::Hpa;
use crate::memory::{Home, Lines};

/// Tables at hand, at first and at most.
const FEWEST: usize = 16;
const MOST: usize = 4096;
/// Tags that differ in higher bits only should not meet: those bits are folded onto the lower ones, which leaves neighbours apart.
const FOLD: u32 = 9;
/// No table's tag: as many bits are never translated by tables of two entries and more.
const NONE: u64 = u64::MAX;

/// One table at hand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    /// The address bits above those that index the table.
    pub(super) tag: u64,
    /// Its words.
    pub(super) home: Home,
    /// Words were changed and are not counted yet.
    pub(super) touched: bool,
    /// A walk comes by with attributes `acc` and leaves the pointers above as they are.
    pub(super) walkable: bool,
    /// Attributes that a walk accumulates above the table.
    pub(super) acc: u64,
    /// Where it may hold words other than zero.
    pub(super) lines: Lines,
}

/// The tables of one level at hand.
#[derive(Clone, Debug)]
pub(super) struct Ways {
    /// Position of the lowest address bit above the index bits.
    cover: u32,
    ways: Vec<Way>,
    /// Where those tables are.
    tables: Vec<Hpa>,
}

impl Ways {
    const EMPTY: Way = Way { tag: NONE, home: Home::NONE, touched: false, walkable: false, acc: 0, lines: Lines::NONE };

    /// None at hand, of tables that translate the address bits below bit `cover`.
    pub(super) fn new(cover: u32) -> Self {
        // Who translates all 64 bits has one table, at hand twice at most.
        Self { cover: cover.min(63), ways: vec![Self::EMPTY; FEWEST], tables: vec![Hpa::new(0); FEWEST] }
    }

    #[inline(always)]
    fn tag(&self, input: u64) -> u64 {
        input >> self.cover
    }
    #[inline(always)]
    fn place(&self, tag: u64) -> usize {
        (tag ^ tag >> FOLD) as usize & (self.ways.len() - 1)
    }

    /// The table that translates `input`, if it is at hand.
    #[inline(always)]
    pub(super) fn find(&self, input: u64) -> Option<&Way> {
        let tag = self.tag(input);
        self.ways.get(self.place(tag)).filter(|way| way.tag == tag)
    }
    /// The same, to be changed.
    #[inline(always)]
    pub(super) fn find_mut(&mut self, input: u64) -> Option<&mut Way> {
        let tag = self.tag(input);
        let place = self.place(tag);
        self.ways.get_mut(place).filter(|way| way.tag == tag)
    }
    /// Its address, if it is at hand.
    pub(super) fn table(&self, input: u64) -> Option<Hpa> {
        self.find(input).map(|way| self.tables[self.place(way.tag)])
    }

    /// Takes a table at hand, and says which one had to give way.
    pub(super) fn take(&mut self, input: u64, table: Hpa, way: Way) -> Option<(Way, Hpa)> {
        let tag = self.tag(input);
        while self.ways[self.place(tag)].tag != NONE && self.ways.len() < MOST {
            self.double();
        }
        let place = self.place(tag);
        let old = std::mem::replace(&mut self.ways[place], Way { tag, ..way });
        let old_table = std::mem::replace(&mut self.tables[place], table);
        (old.tag != NONE).then_some((old, old_table))
    }

    /// Twice as many places: who was apart stays apart.
    fn double(&mut self) {
        let places = 2 * self.ways.len();
        let ways = std::mem::replace(&mut self.ways, vec![Self::EMPTY; places]);
        let tables = std::mem::replace(&mut self.tables, vec![Hpa::new(0); places]);
        for (way, table) in ways.into_iter().zip(tables).filter(|(way, _)| way.tag != NONE) {
            let place = self.place(way.tag);
            self.ways[place] = way;
            self.tables[place] = table;
        }
    }

    /// Lets go of all tables, and says which.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = (Way, Hpa)> {
        let Self { ways, tables, .. } = std::mem::replace(self, Self::new(self.cover));
        ways.into_iter().zip(tables).filter(|(way, _)| way.tag != NONE)
    }
}
