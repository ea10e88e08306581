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

/// One table at hand, as much of it as changing a word takes.
// PERF: 16 bytes, so that a thousand tables leave room in the first-level cache.
#[derive(Clone, Copy, Debug)]
struct Way {
    /// The address bits above those that index the table.
    tag: u64,
    home: Home,
    /// Words were changed and are not counted yet.
    touched: bool,
}

/// What else is known of it: what walking by it takes, and where it holds something.
#[derive(Clone, Copy, Debug)]
#[repr(align(32))]
struct More {
    /// As of the way, if a walk leaves the pointers above as they are; `NONE` otherwise.
    tag: u64,
    home: Home,
    /// Attributes with which a walk comes by.
    acc: u64,
    lines: Lines,
}

/// A table as it is taken at hand and as it leaves.
#[derive(Clone, Copy, Debug)]
pub(super) struct AtHand {
    /// Where it is.
    pub(super) table: Hpa,
    /// Where its words are.
    pub(super) home: Home,
    /// Words were changed and are not counted yet.
    pub(super) touched: bool,
    /// Attributes with which a walk comes by, if it leaves the pointers above as they are.
    pub(super) acc: Option<u64>,
    /// Where it may hold words other than zero.
    pub(super) lines: Lines,
}

/// The tables of one level at hand.
#[derive(Clone, Debug)]
pub(super) struct Ways {
    /// Position of the lowest address bit above the index bits.
    cover: u32,
    near: Vec<Way>,
    /// As many.
    more: Vec<More>,
    /// And where those tables are.
    tables: Vec<Hpa>,
}

impl Ways {
    const EMPTY: Way = Way { tag: NONE, home: Home::NONE, touched: false };
    const NOTHING: More = More { tag: NONE, home: Home::NONE, acc: 0, lines: Lines::NONE };

    /// None at hand, of tables that translate the address bits below bit `cover`.
    pub(super) fn new(cover: u32) -> Self {
        // Who translates all 64 bits has one table, at hand twice at most.
        Self::sized(cover.min(63), FEWEST)
    }
    fn sized(cover: u32, places: usize) -> Self {
        let (near, more) = (vec![Self::EMPTY; places], vec![Self::NOTHING; places]);
        Self { cover, near, more, tables: vec![Hpa::new(0); places] }
    }

    #[inline(always)]
    fn tag(&self, input: u64) -> u64 {
        input >> self.cover
    }
    #[inline(always)]
    fn place(&self, tag: u64) -> usize {
        (tag ^ tag >> FOLD) as usize & (self.near.len() - 1)
    }

    /// The words of the table that translates `input`, if it is at hand.
    #[inline(always)]
    pub(super) fn find(&self, input: u64) -> Option<Home> {
        let tag = self.tag(input);
        self.near.get(self.place(tag)).filter(|way| way.tag == tag).map(|way| way.home)
    }
    /// The same, if a walk may come by, and the attributes with which it does.
    #[inline(always)]
    pub(super) fn find_walked(&self, input: u64) -> Option<(Home, u64)> {
        let tag = self.tag(input);
        self.more.get(self.place(tag)).filter(|more| more.tag == tag).map(|more| (more.home, more.acc))
    }
    /// Where the table is that translates `input`, and where it holds something, if it is at hand.
    pub(super) fn find_table(&self, input: u64) -> Option<(Hpa, Lines)> {
        self.find(input)?;
        let place = self.place(self.tag(input));
        Some((*self.tables.get(place)?, self.more.get(place)?.lines))
    }

    /// As [`Ways::find`], to change a word that is not zero.
    #[inline(always)]
    pub(super) fn touch(&mut self, input: u64) -> Option<Home> {
        let tag = self.tag(input);
        let place = self.place(tag);
        let way = self.near.get_mut(place).filter(|way| way.tag == tag)?;
        way.touched = true;
        Some(way.home)
    }
    /// As [`Ways::find`], to change a word in one of the lines.
    #[inline(always)]
    pub(super) fn touch_lines(&mut self, input: u64) -> Option<(Home, &mut Lines)> {
        let tag = self.tag(input);
        let place = self.place(tag);
        let way = self.near.get_mut(place).filter(|way| way.tag == tag)?;
        way.touched = true;
        Some((way.home, &mut self.more.get_mut(place)?.lines))
    }

    /// Takes a table at hand that is not, and says which one had to give way.
    pub(super) fn take(&mut self, input: u64, taken: AtHand) -> Option<AtHand> {
        let tag = self.tag(input);
        while self.near[self.place(tag)].tag != NONE && self.near.len() < MOST {
            self.double();
        }
        let place = self.place(tag);
        let gone = self.at(place);
        self.set(place, tag, taken);
        gone
    }

    /// The table in a place.
    fn at(&self, place: usize) -> Option<AtHand> {
        let (Way { tag, home, touched }, More { tag: walked, acc, lines, .. }) = (self.near[place], self.more[place]);
        let acc = (walked != NONE).then_some(acc);
        (tag != NONE).then_some(AtHand { table: self.tables[place], home, touched, acc, lines })
    }

    fn set(&mut self, place: usize, tag: u64, AtHand { table, home, touched, acc, lines }: AtHand) {
        self.near[place] = Way { tag, home, touched };
        let walked = if acc.is_some() { tag } else { NONE };
        self.more[place] = More { tag: walked, home, acc: acc.unwrap_or(0), lines };
        self.tables[place] = table;
    }

    /// Twice as many places: who was apart stays apart.
    fn double(&mut self) {
        let new = Self::sized(self.cover, 2 * self.near.len());
        let old = std::mem::replace(self, new);
        for (place, tag) in old.near.iter().map(|way| way.tag).enumerate() {
            if let Some(table) = old.at(place) {
                self.set(self.place(tag), tag, table);
            }
        }
    }

    /// Lets go of all tables, and says which.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = AtHand> {
        let old = std::mem::replace(self, Self::new(self.cover));
        (0..old.near.len()).filter_map(move |place| old.at(place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hot_types_stay_small() {
        assert_eq!((size_of::<Way>(), size_of::<More>()), (16, 32));
    }
}
