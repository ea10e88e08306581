//! Latency of memory references by residency: a small model of the data caches.
//!
//! Walk latency is where the cycles of translation are, and it depends on which cache holds the table's line. Lines are host-physical,
//! so that tables and data of all stages share the caches as they do in hardware. Every level that misses is filled, and
//! evictions in one level leave the others alone, unless a level says that it holds [victims](Fill::Victims). Write-back traffic and
//! coherence are not modelled.

use serde::{Deserialize, Serialize};

use crate::addr::{Cycles, Hpa};
use crate::assoc::{Inserted, SetAssoc, Shape};

/// What a level of cache holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fill {
    /// Every line that a reference missed in it.
    #[default]
    Misses,
    /// What the level before evicts; a line that is found moves back there. Third levels of Intel servers since Skylake-SP and of AMD's Zen
    /// are like that (Intel optimization manual, Skylake server: "non-inclusive", filled by second-level victims).
    Victims,
}

/// One level of cache.
#[derive(Clone, PartialEq, Debug)]
pub struct CacheLevelSpec {
    /// Name in statistics.
    pub name: String,
    /// Lines and ways.
    pub shape: Shape,
    /// Load-to-use latency of a hit.
    pub latency: Cycles,
    /// What it holds; the first level holds misses whatever this says.
    pub fill: Fill,
}

/// Description of the caches on the way of a reference.
#[derive(Clone, PartialEq, Debug)]
pub struct CacheSpec {
    /// Bytes of a line: a power of two.
    pub line_bytes: u64,
    /// Levels, nearest first.
    pub levels: Vec<CacheLevelSpec>,
    /// Latency of memory.
    pub memory: Cycles,
    /// Lines that may be on their way from beyond the first level at the same time.
    pub fill_buffers: u32,
}

/// Where a reference was served.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum ServedBy {
    /// The cache of this number, 0 being the nearest.
    Cache(u8),
    /// Memory.
    Memory,
}

/// One reference.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Served {
    /// By whom.
    pub by: ServedBy,
    /// Its latency.
    pub latency: Cycles,
}

#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
struct CacheLevel {
    lines: SetAssoc<u64, ()>,
    latency: Cycles,
    fill: Fill,
    hits: u64,
}

/// The caches seen by one vCPU.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct LatencyCache {
    line_shift: u32,
    levels: Vec<CacheLevel>,
    /// Whether any level holds victims.
    victims: bool,
    memory: Cycles,
    memory_references: u64,
    /// The line of the last reference, which the first level has; using it again changes no order in any level.
    last: u64,
}

/// A line that no address is in.
const NO_LINE: u64 = u64::MAX;

impl LatencyCache {
    /// Empty caches. The seed matters to random replacement only.
    pub fn new(spec: &CacheSpec, seed: u64) -> Self {
        let level = |level: &CacheLevelSpec| CacheLevel {
            lines: SetAssoc::new(level.shape, seed),
            latency: level.latency,
            fill: level.fill,
            hits: 0,
        };
        let mut levels: Vec<CacheLevel> = spec.levels.iter().map(level).collect();
        if let Some(first) = levels.first_mut() {
            first.fill = Fill::Misses;
        }
        Self {
            line_shift: spec.line_bytes.max(1).trailing_zeros(),
            victims: levels.iter().any(|level| level.fill == Fill::Victims),
            levels,
            memory: spec.memory,
            memory_references: 0,
            last: NO_LINE,
        }
    }

    /// Makes one reference: says who served it, and fills the levels that missed.
    #[inline]
    pub fn access(&mut self, at: Hpa) -> Served {
        let line = at.raw() >> self.line_shift;
        // PERF: programs and walks go on in a line more often than not.
        if line == self.last
            && let Some(first) = self.levels.first_mut()
        {
            first.hits += 1;
            return Served { by: ServedBy::Cache(0), latency: first.latency };
        }
        self.last = line;
        if self.victims {
            return self.access_with_victims(line);
        }
        for (n, level) in self.levels.iter_mut().enumerate() {
            if level.lines.lookup(&line).is_some() {
                level.hits += 1;
                return Served { by: ServedBy::Cache(n as u8), latency: level.latency };
            }
            level.lines.displace(line, ());
        }
        self.memory_references += 1;
        Served { by: ServedBy::Memory, latency: self.memory }
    }

    /// The same where a level holds what the one before evicts.
    fn access_with_victims(&mut self, line: u64) -> Served {
        let found = self.levels.iter_mut().position(|level| level.lines.lookup(&line).is_some());
        let reached = found.unwrap_or(self.levels.len());
        let served = if let Some(level) = self.levels.get_mut(reached) {
            level.hits += 1;
            if level.fill == Fill::Victims {
                level.lines.invalidate(&line);
            }
            Served { by: ServedBy::Cache(reached as u8), latency: level.latency }
        } else {
            self.memory_references += 1;
            Served { by: ServedBy::Memory, latency: self.memory }
        };
        for missed in 0..reached {
            if self.levels[missed].fill == Fill::Misses {
                self.fill(missed, line);
            }
        }
        served
    }

    /// Puts a line into a level that does not have it; what leaves goes on to levels of victims behind.
    fn fill(&mut self, number: usize, line: u64) {
        let (mut number, mut line) = (number, line);
        while let Some(level) = self.levels.get_mut(number) {
            let Inserted::Evicted(out, ()) = level.lines.insert(line, ()) else { return };
            (number, line) = (number + 1, out);
            if self.levels.get(number).is_none_or(|next| next.fill != Fill::Victims) {
                return;
            }
        }
    }

    /// Forgets the lines of a stretch of memory (cache maintenance), looking each line up; returns how many were held,
    /// level by level.
    pub fn evict(&mut self, start: Hpa, bytes: u64) -> u64 {
        self.last = NO_LINE;
        let Some(last) = bytes.checked_sub(1).map(|more| start.raw().saturating_add(more)) else { return 0 };
        let lines = start.raw() >> self.line_shift..=last >> self.line_shift;
        lines.map(|line| self.levels.iter_mut().map(|level| level.lines.invalidate(&line)).sum::<u64>()).sum()
    }

    /// Hits by level, then references served by memory.
    pub fn references(&self) -> impl Iterator<Item = (ServedBy, u64)> + '_ {
        let caches = self.levels.iter().enumerate().map(|(n, level)| (ServedBy::Cache(n as u8), level.hits));
        caches.chain([(ServedBy::Memory, self.memory_references)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assoc::Replacement;

    fn small() -> LatencyCache {
        let level = |name: &str, lines, latency| CacheLevelSpec {
            name: name.to_owned(),
            shape: Shape::new(lines, 2).unwrap(),
            latency: Cycles(latency),
            fill: Fill::Misses,
        };
        let levels = vec![level("l1", 2, 5), level("l2", 4, 16)];
        LatencyCache::new(&CacheSpec { line_bytes: 64, levels, memory: Cycles(600), fill_buffers: 10 }, 0)
    }

    #[test]
    fn residency_decides_the_latency() {
        let mut cache = small();
        let latencies: Vec<u64> =
            [0, 8, 128, 256, 0, 64, 0].iter().map(|&at| cache.access(Hpa::new(at)).latency.0).collect();
        assert_eq!(latencies, [600, 5, 600, 600, 600, 600, 5]);
        assert_eq!(cache.access(Hpa::new(256)).by, ServedBy::Cache(1));
        let counts: Vec<u64> = cache.references().map(|(_, count)| count).collect();
        assert_eq!(counts, [2, 1, 5]);
    }

    #[test]
    fn a_level_of_victims_adds_its_room_to_the_level_before() {
        let level = |name: &str, lines, latency, fill| CacheLevelSpec {
            name: name.to_owned(),
            shape: Shape::new(lines, 0).unwrap(),
            latency: Cycles(latency),
            fill,
        };
        let round = |fill| {
            let levels =
                vec![level("l1", 1, 5, Fill::Victims), level("l2", 4, 16, Fill::Misses), level("l3", 4, 60, fill)];
            let mut cache =
                LatencyCache::new(&CacheSpec { line_bytes: 64, levels, memory: Cycles(600), fill_buffers: 10 }, 0);
            for line in (0..8).chain(0..8) {
                cache.access(Hpa::new(64 * line));
            }
            cache.references().map(|(_, count)| count).collect::<Vec<_>>()
        };
        // Eight lines in turn: four and four hold them all together, not each for itself.
        assert_eq!(round(Fill::Victims), [0, 0, 8, 8]);
        assert_eq!(round(Fill::Misses), [0, 0, 0, 16]);
    }

    #[test]
    fn a_line_used_again_at_once_changes_nothing_else() {
        use Replacement::{Fifo, Lru, Nru, Random, RandomHalf, TreePlru};
        for replacement in [Lru, TreePlru, Nru, Fifo, Random, RandomHalf] {
            let level = |lines, latency| CacheLevelSpec {
                name: String::new(),
                shape: Shape::new(lines, 4).unwrap().replaced_by(replacement).unwrap(),
                latency: Cycles(latency),
                fill: Fill::Misses,
            };
            let spec = CacheSpec {
                line_bytes: 64,
                levels: vec![level(8, 5), level(16, 16)],
                memory: Cycles(600),
                fill_buffers: 10,
            };
            let (mut once, mut often) = (LatencyCache::new(&spec, 7), LatencyCache::new(&spec, 7));
            for i in 0..2_000_u64 {
                let at = Hpa::new(64 * (i * i * 31 % 23));
                assert_eq!(once.access(at), often.access(at), "{replacement:?}");
                for _ in 0..i % 3 {
                    assert_eq!(often.access(at + 8).by, ServedBy::Cache(0));
                }
            }
        }
    }

    #[test]
    fn evicted_lines_are_gone() {
        let mut cache = small();
        cache.access(Hpa::new(0));
        assert_eq!(cache.evict(Hpa::new(60), 8), 2);
        assert_eq!(cache.evict(Hpa::new(0), 0), 0);
        assert_eq!(cache.access(Hpa::new(0)).by, ServedBy::Memory);
    }
}
