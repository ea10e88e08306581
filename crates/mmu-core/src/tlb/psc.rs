//! Paging-structure caches: tables that a walk need not look for again.
//!
//! A cache per level; an entry says which table holds the entries of that level for a stretch of input addresses. Every
//! level is looked up, a hit updates that level's replacement state, and the deepest hit is used. The three kinds of
//! translation have entries of their own, told apart by the kind in the key; the structures may be shared, or second-stage
//! entries may have their own.

use serde::{Deserialize, Serialize};

use super::invalidate::Select;
use super::{Input, Invalidate, Kind, Perms, TableCaches, Tag, TagRules, TlbKey};
use crate::addr::{Hpa, Level};
use crate::assoc::{SetAssoc, Shape};
use crate::format::Table;
use crate::geometry::Geometry;
use crate::walk::CachedTable;

/// One level of paging-structure caches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PscLevelSpec {
    /// Level of the tables it remembers: level 0 for what x86 calls the PDE cache, whose hit leaves one reference.
    pub tables: Level,
    /// Its shape.
    pub shape: Shape,
}

/// Description of the paging-structure caches of a processor.
#[derive(Clone, PartialEq, Debug)]
pub struct PscSpec {
    /// Caches for tables of the first stage, and of the second if it has none of its own.
    pub levels: Vec<PscLevelSpec>,
    /// Caches of second-stage tables, when they are apart.
    pub guest_physical: Option<Vec<PscLevelSpec>>,
    /// What is compared.
    pub rules: TagRules,
}

/// Counters of the paging-structure caches.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct PscStats {
    /// Look-ups whose deepest hit was a table of this level.
    pub deepest: [u64; Level::MAX_LEVELS],
    /// Look-ups that hit nowhere.
    pub misses: u64,
    /// Tables put in, replacements included.
    pub fills: u64,
    /// Tables that had to leave.
    pub evictions: u64,
    /// Tables that invalidations removed.
    pub invalidations: u64,
}

/// A [`CachedTable`] less its level, in half the space and with a default for empty ways.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Cell {
    table: Hpa,
    host: Hpa,
    acc: u64,
    index_bits: u8,
    perms: Perms,
    has_host: bool,
}

impl Cell {
    fn pack(found: &CachedTable) -> Self {
        let (host, perms) = found.host.unwrap_or_default();
        Self {
            table: found.table.base,
            host,
            acc: found.acc,
            index_bits: found.table.index_bits as u8,
            perms,
            has_host: found.host.is_some(),
        }
    }
    fn unpack(self, level: Level) -> CachedTable {
        CachedTable {
            level,
            table: Table { base: self.table, index_bits: u32::from(self.index_bits) },
            host: self.has_host.then_some((self.host, self.perms)),
            acc: self.acc,
        }
    }
}

/// Caches by level of their tables.
type Levels = [Option<SetAssoc<TlbKey, Cell>>; Level::MAX_LEVELS];

/// The paging-structure caches of one hardware thread.
#[derive(Clone, Debug)]
pub struct PscSet {
    first: Levels,
    /// Second-stage caches when apart.
    second: Option<Levels>,
    /// Address bits below what a table of each level covers; first stage, then second. 64 means "not cacheable".
    shifts: [[u32; Level::MAX_LEVELS]; 2],
    rules: TagRules,
    stats: PscStats,
}

fn build(specs: &[PscLevelSpec], seed: u64) -> Levels {
    let mut levels = Levels::default();
    for spec in specs.iter().filter(|spec| spec.tables.index() < Level::MAX_LEVELS) {
        levels[spec.tables.index()] = Some(SetAssoc::new(spec.shape, seed ^ (spec.tables.index() as u64) << 40));
    }
    levels
}

/// Root tables are not cached: their address is in a register.
fn reach_of_tables(geometry: &Geometry) -> [u32; Level::MAX_LEVELS] {
    std::array::from_fn(
        |level| if level + 1 < geometry.levels() { geometry.shift(Level::new(level as u8).up()) } else { 64 },
    )
}

impl PscSet {
    /// Empty caches for trees of these two shapes: the first stage's and the second's.
    pub fn new(spec: &PscSpec, first: &Geometry, second: &Geometry, seed: u64) -> Self {
        Self {
            first: build(&spec.levels, seed),
            second: spec.guest_physical.as_ref().map(|levels| build(levels, !seed)),
            shifts: [reach_of_tables(first), reach_of_tables(second)],
            rules: spec.rules,
            stats: PscStats::default(),
        }
    }

    /// Counters since they were made.
    pub fn stats(&self) -> PscStats {
        self.stats
    }

    fn parts(&mut self, kind: Kind) -> (&mut Levels, [u32; Level::MAX_LEVELS], &mut PscStats) {
        let stage_two = kind == Kind::GuestPhysical;
        let levels = match &mut self.second {
            Some(second) if stage_two => second,
            _ => &mut self.first,
        };
        (levels, self.shifts[usize::from(stage_two)], &mut self.stats)
    }

    /// The deepest cached table on the path of an address. Looks every level up and counts a use in each that hits.
    pub fn deepest(&mut self, tag: Tag, input: Input) -> Option<CachedTable> {
        let context = self.rules.context(tag, input.kind());
        let (levels, shifts, stats) = self.parts(input.kind());
        let mut found = None;
        for (level, cache) in levels.iter_mut().enumerate() {
            let (Some(cache), true) = (cache, shifts[level] < 64) else { continue };
            let hit = cache.lookup(&TlbKey::new(input, shifts[level], 0, context)).copied();
            if let (None, Some(cell)) = (found, hit) {
                found = Some(cell.unpack(Level::new(level as u8)));
            }
        }
        match found {
            Some(table) => stats.deepest[table.level.index()] += 1,
            None => stats.misses += 1,
        }
        found
    }

    /// Remembers that the entries of `found.level` on the path of this address are in `found.table`. Does nothing
    /// where that level has no cache.
    pub fn fill(&mut self, tag: Tag, input: Input, found: &CachedTable) {
        let context = self.rules.context(tag, input.kind());
        let (levels, shifts, stats) = self.parts(input.kind());
        let level = found.level.index();
        let Some(Some(cache)) = levels.get_mut(level) else { return };
        if shifts[level] >= 64 {
            return;
        }
        stats.fills += 1;
        let inserted = cache.insert(TlbKey::new(input, shifts[level], 0, context), Cell::pack(found));
        stats.evictions += u64::from(matches!(inserted, crate::assoc::Inserted::Evicted(..)));
    }

    /// Removes the tables that the invalidation reaches and returns how many.
    pub fn invalidate(&mut self, what: Invalidate, tables: TableCaches) -> u64 {
        let Ok(select) = Select::new(what, self.rules) else { return 0 };
        let select = match tables {
            TableCaches::Kept => return 0,
            TableCaches::Dropped | TableCaches::Only => select,
            TableCaches::DroppedForContext => select.everywhere(),
        };
        let caches = self.first.iter_mut().chain(self.second.iter_mut().flatten()).flatten();
        let removed = caches.map(|cache| cache.retain(|key, _| !select.covers(key))).sum();
        self.stats.invalidations += removed;
        removed
    }
}
