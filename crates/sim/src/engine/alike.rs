//! Subtrees that are alike: tables that follow each other, level by level, all words of a level in one progression.
//!
//! That is what a guest's tables are before anybody has done anything to them, and what is left of them behind a walk that does the same
//! everywhere. What such a walk costs below one entry is the same below the next, so a whole subtree is as much work as a leaf.

use mmu_core::{Cycles, Format, Geometry, Hpa, Level};

use super::world::World;
use crate::arch::Arch;

/// The tables of one level below some entries, one after the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Storey {
    /// First word of the first table.
    pub(super) first: Hpa,
    /// Their level.
    pub(super) level: Level,
    /// Tables below each of the entries.
    pub(super) tables: u64,
    /// Entries of each table.
    pub(super) entries: u64,
}

impl Storey {
    /// Words below each of the entries.
    pub(super) fn words(&self) -> u64 {
        self.tables * self.entries
    }
}

/// What lies below consecutive table entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Alike {
    /// How many entries, counted from the first, have alike subtrees.
    pub(super) entries: u64,
    storeys: [Storey; Level::MAX_LEVELS],
    depth: usize,
    /// The first word of the lowest level.
    pub(super) word: u64,
    /// What each word there adds to the one before it.
    pub(super) step: u64,
    pub(super) holds: Holds,
}

/// What the lowest tables hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Holds {
    Leaves,
    Nothing,
}

impl Alike {
    /// From the tables right below the entries down.
    pub(super) fn storeys(&self) -> &[Storey] {
        &self.storeys[..self.depth]
    }

    /// The tables without tables below them.
    pub(super) fn lowest(&self) -> Storey {
        self.storeys[self.depth - 1]
    }

    /// The same behind the first `n` entries.
    pub(super) fn behind(&self, n: u64, geometry: &Geometry) -> Alike {
        let mut rest = *self;
        rest.entries = self.entries.saturating_sub(n);
        for storey in &mut rest.storeys[..self.depth] {
            storey.first += n * storey.tables * geometry.table_bytes(storey.level);
        }
        rest.word = self.word.wrapping_add(self.step.wrapping_mul(n * self.lowest().words()));
        rest
    }

    /// Tables below each of the entries, of all levels.
    pub(super) fn tables(&self) -> u64 {
        self.storeys().iter().map(|storey| storey.tables).sum()
    }

    /// Adds up from the leaves to one entry of the top: what each entry of a table comes to, together, is what `entry` makes of it one level up.
    fn fold<T>(&self, leaf: T, entry: impl Fn(T, u64) -> T) -> T {
        self.storeys().iter().rev().fold(leaf, |below, storey| entry(below, storey.entries))
    }

    /// What a walk costs that looks at everything and goes below: `look` for each entry, another read on the way down, `leaf` for each leaf.
    pub(super) fn walk(&self, look: Cycles, read: Cycles, leaf: Cycles) -> Cycles {
        self.fold(leaf, |below, entries| look + read + below.times(entries))
    }

    /// Entries that it visits.
    pub(super) fn walk_visits(&self) -> u64 {
        self.fold(1, |below, entries| 2 + below * entries)
    }

    /// What tearing a table down costs, and all below it: `leaf` for each entry of the lowest, `link` for each entry above, `end` for each table.
    pub(super) fn teardown(&self, leaf: Cycles, link: Cycles, end: Cycles) -> Cycles {
        let lowest = leaf.times(self.lowest().entries) + end;
        self.storeys[..self.depth - 1]
            .iter()
            .rev()
            .fold(lowest, |below, storey| (link + below).times(storey.entries) + end)
    }

    /// Entries that it visits, the one above included.
    pub(super) fn teardown_visits(&self) -> u64 {
        self.fold(1, |below, entries| 1 + below * entries)
    }
}

impl<A: Arch> World<A> {
    /// How many of `len` table entries from `at` on have alike subtrees, and what those are; `None` where not even the first has.
    #[inline(never)]
    pub(super) fn alike_below(&self, at: Hpa, len: u64, level: Level) -> Option<Alike> {
        let two = self.arch.two();
        let geometry = two.geometry();
        let mut above = level;
        let mut links = self.tables.run_at(at, len).ok()?;
        let mut alike = Alike {
            entries: 0,
            storeys: [Storey::default(); Level::MAX_LEVELS],
            depth: 0,
            word: 0,
            step: 0,
            holds: Holds::Nothing,
        };
        // Tables of a storey below each entry of the top.
        let mut tables = 1;
        loop {
            let level = above.down()?;
            let entries = geometry.entries(level) as u64;
            let follow = if links.len > 1 && links.step == geometry.table_bytes(level) { links.len } else { 1 };
            let first = two.next_table(above, links.first);
            let words = self.tables.run_at(first, entries * tables * (follow / tables)).ok()?;
            alike.entries = words.len / (entries * tables);
            alike.storeys[alike.depth] = Storey { first, level, tables, entries };
            alike.depth += 1;
            let (mapped, leaf) = (two.is_mapped(words.first), two.is_leaf(level, words.first));
            if alike.entries == 0 || !mapped || leaf {
                (alike.word, alike.step) = (words.first, words.step);
                alike.holds = if mapped { Holds::Leaves } else { Holds::Nothing };
                return (alike.entries > 0).then_some(alike);
            }
            tables *= entries;
            (above, links) = (level, words);
        }
    }

    /// [`Alike::walk`] of a tree with leaves in its last level only, below an entry of `level`.
    pub(super) fn full_walk(&self, level: Level, look: Cycles, leaf: Cycles) -> Cycles {
        let geometry = self.arch.two().geometry();
        let below = (0..level.index() as u8).map(|level| geometry.entries(Level::new(level)) as u64);
        below.fold(leaf, |below, entries| look + self.costs.visit + below.times(entries))
    }
}
