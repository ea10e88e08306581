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

/// What else is known of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct More {
    /// Where it is.
    pub(super) table: Hpa,
    /// Attributes with which a walk comes by, if it leaves the pointers above as they are.
    pub(super) acc: Option<u64>,
    /// Where it may hold words other than zero.
    pub(super) lines: Lines,
}

/// A table that gives way, or all of them do.
pub(super) struct Gone {
    pub(super) home: Home,
    pub(super) touched: bool,
    pub(super) more: More,
}

/// The tables of one level at hand.
#[derive(Clone, Debug)]
pub(super) struct Ways {
    /// Position of the lowest address bit above the index bits.
    cover: u32,
    ways: Vec<Way>,
    /// As many.
    more: Vec<More>,
}

impl Ways {
    const EMPTY: Way = Way { tag: NONE, home: Home::NONE, touched: false };
    const NOTHING: More = More { table: Hpa::new(0), acc: None, lines: Lines::NONE };

    /// None at hand, of tables that translate the address bits below bit `cover`.
    pub(super) fn new(cover: u32) -> Self {
        // Who translates all 64 bits has one table, at hand twice at most.
        Self { cover: cover.min(63), ways: vec![Self::EMPTY; FEWEST], more: vec![Self::NOTHING; FEWEST] }
    }

    #[inline(always)]
    fn tag(&self, input: u64) -> u64 {
        input >> self.cover
    }
    #[inline(always)]
    fn place(&self, tag: u64) -> usize {
        (tag ^ tag >> FOLD) as usize & (self.ways.len() - 1)
    }

    /// The words of the table that translates `input`, if it is at hand.
    #[inline(always)]
    pub(super) fn find(&self, input: u64) -> Option<Home> {
        let tag = self.tag(input);
        self.ways.get(self.place(tag)).filter(|way| way.tag == tag).map(|way| way.home)
    }
    /// The same, and what else is known of it.
    #[inline(always)]
    pub(super) fn find_more(&self, input: u64) -> Option<(Home, &More)> {
        let tag = self.tag(input);
        let place = self.place(tag);
        let way = self.ways.get(place).filter(|way| way.tag == tag)?;
        Some((way.home, self.more.get(place)?))
    }

    /// The same, to change a word that is not zero.
    #[inline(always)]
    pub(super) fn touch(&mut self, input: u64) -> Option<Home> {
        let tag = self.tag(input);
        let place = self.place(tag);
        let way = self.ways.get_mut(place).filter(|way| way.tag == tag)?;
        way.touched = true;
        Some(way.home)
    }
    /// Notes that the word of this index of a table at hand may be other than zero.
    #[inline(always)]
    pub(super) fn note(&mut self, input: u64, index: u64) {
        let place = self.place(self.tag(input));
        if let Some(more) = self.more.get_mut(place) {
            more.lines.add(index);
        }
    }

    /// Takes a table at hand that is not, and says which one had to give way.
    pub(super) fn take(&mut self, input: u64, home: Home, touched: bool, more: More) -> Option<Gone> {
        let tag = self.tag(input);
        while self.ways[self.place(tag)].tag != NONE && self.ways.len() < MOST {
            self.double();
        }
        let place = self.place(tag);
        let gone = gone(self.ways[place], self.more[place]);
        self.ways[place] = Way { tag, home, touched };
        self.more[place] = more;
        gone
    }

    /// Twice as many places: who was apart stays apart.
    fn double(&mut self) {
        let places = 2 * self.ways.len();
        let ways = std::mem::replace(&mut self.ways, vec![Self::EMPTY; places]);
        let more = std::mem::replace(&mut self.more, vec![Self::NOTHING; places]);
        for (way, more) in ways.into_iter().zip(more).filter(|(way, _)| way.tag != NONE) {
            let place = self.place(way.tag);
            self.ways[place] = way;
            self.more[place] = more;
        }
    }

    /// Lets go of all tables, and says which.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Gone> {
        let Self { ways, more, .. } = std::mem::replace(self, Self::new(self.cover));
        ways.into_iter().zip(more).filter_map(|(way, more)| gone(way, more))
    }
}

fn gone(way: Way, more: More) -> Option<Gone> {
    let Way { tag, home, touched } = way;
    (tag != NONE).then_some(Gone { home, touched, more })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_is_16_bytes() {
        assert_eq!(size_of::<Way>(), 16);
    }
}
