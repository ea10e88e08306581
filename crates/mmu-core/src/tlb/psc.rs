//! Paging-structure caches: tables that a walk need not look for again.
//!
//! A cache per level; an entry says which table holds the entries of that level for a stretch of input addresses. Every
//! level is looked up, a hit updates that level's replacement state, and the deepest hit is used. The three kinds of
//! translation have entries of their own, told apart by the kind in the key; the structures may be shared, or second-stage
//! entries may have their own.

use serde::{Deserialize, Serialize};

use super::invalidate::Select;
use super::key::Cut;
use super::{Input, Invalidate, Kind, Perms, TableCaches, Tag, TagRules, TlbKey};
use crate::addr::{Hpa, Level};
use crate::assoc::{Key, SetAssoc, Shape, Slot};
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

/// A [`CachedTable`] less its level, in words that are copied whole and with a default for empty ways.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
struct Cell {
    table: Hpa,
    host: Hpa,
    acc: u64,
    /// From the low end, a byte each: bits of the index, permissions, whether there is a host address.
    meta: u64,
}

impl Cell {
    fn pack(found: &CachedTable) -> Self {
        let (host, perms) = found.host.unwrap_or_default();
        let meta = u64::from(found.table.index_bits as u8)
            | u64::from(perms.bits()) << 8
            | u64::from(found.host.is_some()) << 16;
        Self { table: found.table.base, host, acc: found.acc, meta }
    }
    #[inline]
    fn unpack(&self, level: Level) -> CachedTable {
        let host = (self.host, Perms::from_bits((self.meta >> 8) as u8));
        CachedTable {
            level,
            table: Table { base: self.table, index_bits: self.meta as u32 & 0xff },
            host: (self.meta >> 16 != 0).then_some(host),
            acc: self.acc,
        }
    }
}

/// The cache of one level's tables.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
struct LevelCache {
    level: Level,
    /// What a table of this level covers, in the first stage and in the second; `None` where that is a root table.
    cuts: [Option<Cut>; 2],
    store: SetAssoc<TlbKey, Cell>,
}

/// The paging-structure caches of one hardware thread.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct PscSet {
    /// By level, deepest tables first.
    first: Vec<LevelCache>,
    /// Second-stage caches when apart.
    second: Option<Vec<LevelCache>>,
    rules: TagRules,
    stats: PscStats,
}

fn build(specs: &[PscLevelSpec], stages: [&Geometry; 2], seed: u64) -> Vec<LevelCache> {
    let cache = |spec: &PscLevelSpec| {
        let level = spec.tables;
        let seed = seed ^ (level.index() as u64) << 40;
        LevelCache { level, cuts: stages.map(|tree| cut(tree, level)), store: SetAssoc::stamped(spec.shape, seed) }
    };
    let mut levels: Vec<LevelCache> = Vec::new();
    for spec in specs.iter().filter(|spec| spec.tables.index() < Level::MAX_LEVELS) {
        levels.retain(|other| other.level != spec.tables);
        levels.push(cache(spec));
    }
    levels.sort_by_key(|cache| cache.level.index());
    levels
}

/// What a table of a level covers. Root tables are not cached: their address is in a register.
fn cut(tree: &Geometry, level: Level) -> Option<Cut> {
    (level.index() + 1 < tree.levels()).then(|| Cut::new(tree.shift(level.up()), 0))
}

impl LevelCache {
    /// Looks the table of an address up and counts a use of it.
    #[inline(always)]
    fn use_of(&mut self, stage: usize, input: Input, context: u64) -> Option<Slot> {
        let cut = self.cuts[stage]?;
        self.store.use_of(&cut.key(input, context))
    }
}

impl PscSet {
    /// Empty caches for trees of these two shapes: the first stage's and the second's.
    pub fn new(spec: &PscSpec, first: &Geometry, second: &Geometry, seed: u64) -> Self {
        let stages = [first, second];
        Self {
            first: build(&spec.levels, stages, seed),
            second: spec.guest_physical.as_ref().map(|levels| build(levels, stages, !seed)),
            rules: spec.rules,
            stats: PscStats::default(),
        }
    }

    /// Counters since they were made.
    pub fn stats(&self) -> PscStats {
        self.stats
    }

    /// The caches that serve a kind of translation, and the number of its stage.
    #[inline]
    fn parts(&mut self, kind: Kind) -> (&mut [LevelCache], usize, &mut PscStats) {
        let stage_two = kind == Kind::GuestPhysical;
        let levels = match &mut self.second {
            Some(second) if stage_two => second,
            _ => &mut self.first,
        };
        (levels, usize::from(stage_two), &mut self.stats)
    }

    /// The deepest cached table on the path of an address. Looks every level up and counts a use in each that hits.
    pub fn deepest(&mut self, tag: Tag, input: Input) -> Option<CachedTable> {
        let context = self.rules.context(tag, input.kind());
        let (levels, stage, stats) = self.parts(input.kind());
        let mut found = None;
        for cache in levels {
            let slot = cache.use_of(stage, input, context);
            if let (None, Some(slot)) = (&found, slot) {
                found = Some(cache.store.value(slot).unpack(cache.level));
            }
        }
        match &found {
            Some(table) => stats.deepest[table.level.index()] += 1,
            None => stats.misses += 1,
        }
        found
    }

    /// Remembers that the entries of `found.level` on the path of this address are in `found.table`. Does nothing
    /// where that level has no cache.
    pub fn fill(&mut self, tag: Tag, input: Input, found: &CachedTable) {
        let context = self.rules.context(tag, input.kind());
        let (levels, stage, stats) = self.parts(input.kind());
        let Some(cache) = levels.iter_mut().find(|cache| cache.level == found.level) else { return };
        let Some(cut) = cache.cuts[stage] else { return };
        stats.fills += 1;
        let (key, cell) = (cut.key(input, context), Cell::pack(found));
        if !cache.store.replace(&key, cell) {
            stats.evictions += u64::from(cache.store.displace(key, cell) != TlbKey::EMPTY);
        }
    }

    /// Removes the tables that the invalidation reaches and returns how many.
    pub fn invalidate(&mut self, what: Invalidate, tables: TableCaches) -> u64 {
        let Ok(select) = Select::new(what, self.rules) else { return 0 };
        let select = match tables {
            TableCaches::Kept => return 0,
            TableCaches::Dropped | TableCaches::Only => select,
            TableCaches::DroppedForContext => select.everywhere(),
        };
        let caches = self.first.iter_mut().chain(self.second.iter_mut().flatten());
        let removed = caches.map(|cache| cache.store.retain(|key, _| !select.covers(key))).sum();
        self.stats.invalidations += removed;
        removed
    }
}
