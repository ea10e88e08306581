//! Tables taken in advance, so that nobody allocates under `mmu_lock`.
//!
//! Models `kvm_mmu_memory_cache`: filled before the lock is taken, where allocating may sleep and reclaim; emptied by the walk under the lock. A cache
//! belongs to one vCPU's thread (plain data, nobody else sees it). Frees what is left when the vCPU goes.
//!
//! Locking: none; filled without `mmu_lock`, emptied under it. Flush: none owed, its tables were never linked.

use mmu_core::{Format, Hpa, Level};

use super::coalesce::one_table;
use crate::engine::Host;

/// Unused tables of one vCPU, at most one for each level below the root.
#[derive(Clone, Debug, Default)]
pub struct MemoryCache {
    tables: [Option<Hpa>; Level::MAX_LEVELS],
    /// Allocations without waiting so far.
    nowait: u32,
}

/// No table was left in the pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoMemory;

impl MemoryCache {
    /// `kvm_mmu_topup_memory_cache`: one table for every level that a walk can miss.
    ///
    /// # Errors
    /// When the pool is exhausted.
    pub async fn top_up<F: Format>(&mut self, host: &Host<F>) -> Result<(), NoMemory> {
        for level in (0..host.format().geometry().root().index() as u8).map(Level::new) {
            if self.tables[level.index()].is_none() {
                self.tables[level.index()] = Some(host.alloc_table(level).await.ok_or(NoMemory)?);
            }
        }
        Ok(())
    }

    /// A table of this level, if there is one.
    pub fn take(&mut self, level: Level) -> Option<Hpa> {
        self.tables.get_mut(level.index())?.take()
    }

    /// A table of this level, allocated under the lock without waiting where the cache has none. Every `fails_every`th such allocation fails;
    /// 0 for none.
    pub async fn take_nowait<F: Format>(&mut self, host: &Host<F>, level: Level, fails_every: u32) -> Option<Hpa> {
        if let Some(table) = self.take(level) {
            return Some(table);
        }
        self.nowait += 1;
        if fails_every != 0 && self.nowait.is_multiple_of(fails_every) {
            return None;
        }
        host.alloc_table(level).await
    }

    /// Gives back a table that was never linked.
    pub async fn give_back<F: Format>(&mut self, host: &Host<F>, level: Level, table: Hpa) {
        match self.tables.get_mut(level.index()) {
            Some(place @ None) => *place = Some(table),
            _ => host.free_tables(one_table(host.format(), table, level)).await,
        }
    }

    /// `kvm_mmu_free_memory_cache`
    pub async fn release<F: Format>(&mut self, host: &Host<F>) {
        for level in (0..Level::MAX_LEVELS as u8).map(Level::new) {
            if let Some(table) = self.take(level) {
                host.free_tables(one_table(host.format(), table, level)).await;
            }
        }
    }
}
