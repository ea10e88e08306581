//! Latency of memory references by residency: a small model of the data caches.
//!
//! Walk latency is where the cycles of translation are, and it depends on which cache holds the table's line. Lines are host-physical,
//! so that tables and data of all stages share the caches as they do in hardware. Every level that misses is filled;
//! evictions in one level leave the others alone. Write-back traffic and coherence are not modelled.

use serde::{Deserialize, Serialize};

use crate::addr::{Cycles, Hpa};
use crate::assoc::{SetAssoc, Shape};

/// One level of cache.
#[derive(Clone, PartialEq, Debug)]
pub struct CacheLevelSpec {
    /// Name in statistics.
    pub name: String,
    /// Lines and ways.
    pub shape: Shape,
    /// Load-to-use latency of a hit.
    pub latency: Cycles,
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
    hits: u64,
}

/// The caches seen by one vCPU.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct LatencyCache {
    line_shift: u32,
    levels: Vec<CacheLevel>,
    memory: Cycles,
    memory_references: u64,
}

impl LatencyCache {
    /// Empty caches. The seed matters to random replacement only.
    pub fn new(spec: &CacheSpec, seed: u64) -> Self {
        let level = |level: &CacheLevelSpec| CacheLevel {
            lines: SetAssoc::new(level.shape, seed),
            latency: level.latency,
            hits: 0,
        };
        Self {
            line_shift: spec.line_bytes.max(1).trailing_zeros(),
            levels: spec.levels.iter().map(level).collect(),
            memory: spec.memory,
            memory_references: 0,
        }
    }

    /// Makes one reference: says who served it, and fills the levels that missed.
    #[inline]
    pub fn access(&mut self, at: Hpa) -> Served {
        let line = at.raw() >> self.line_shift;
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

    /// Forgets the lines of a stretch of memory (cache maintenance), looking each line up; returns how many were held,
    /// level by level.
    pub fn evict(&mut self, start: Hpa, bytes: u64) -> u64 {
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

    fn small() -> LatencyCache {
        let level = |name: &str, lines, latency| CacheLevelSpec {
            name: name.to_owned(),
            shape: Shape::new(lines, 2).unwrap(),
            latency: Cycles(latency),
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
    fn evicted_lines_are_gone() {
        let mut cache = small();
        cache.access(Hpa::new(0));
        assert_eq!(cache.evict(Hpa::new(60), 8), 2);
        assert_eq!(cache.evict(Hpa::new(0), 0), 0);
        assert_eq!(cache.access(Hpa::new(0)).by, ServedBy::Memory);
    }
}
