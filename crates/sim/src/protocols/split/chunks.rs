//! The eager split of arm64: by chunks under the write lock, with a cache of tables that is topped up in between.
//!
//! Models `kvm_mmu_split_huge_pages` and `kvm_pgtable_stage2_split` (Linux 6.5). Locking: `mmu_lock` for write, given up between chunks and for
//! top-ups. Flush: break-before-make for each block, nothing is owed afterwards. Frees: tables of the cache that were not used.

use mmu_core::{Bytes, Format, Gpa, GpaRange, Hpa, Level};

use super::{Linked, SplitError, SplitPolicy, Splits, Target, give_back, split_leaf};
use crate::engine::{Host, LockId, ReschedCheck};
use crate::protocols::iter::{TdpIter, skip_run};

/// Tables taken before the lock was, by level.
#[derive(Default)]
struct TableCache(Vec<(Level, Hpa)>);

impl TableCache {
    /// How many tables of this level it holds.
    fn count(&self, level: Level) -> u64 {
        self.0.iter().filter(|&&(of, _)| of == level).count() as u64
    }

    /// Fills up to this many; false when the pool is exhausted.
    async fn top_up<F: Format>(&mut self, host: &Host<F>, level: Level, most: u64) -> bool {
        while self.count(level) < most {
            match host.alloc_table(level).await {
                Some(table) => self.0.push((level, table)),
                None => return false,
            }
        }
        true
    }

    fn take(&mut self, level: Level) -> Option<Hpa> {
        let i = self.0.iter().rposition(|&(of, _)| of == level)?;
        Some(self.0.remove(i).1)
    }

    async fn release<F: Format>(self, host: &Host<F>) {
        for (level, table) in self.0 {
            give_back(host, table, level).await;
        }
    }
}

/// Tables of each level that splitting `chunk` bytes down to `goal` can take. Of a block that is larger than the chunk one level goes at a time.
fn tables_for<F: Format>(format: &F, goal: Level, chunk: Bytes) -> Vec<(Level, u64)> {
    let geometry = format.geometry();
    let levels = (goal.index() as u8 + 1..geometry.levels() as u8).map(Level::new);
    let blocks = levels.filter(|&level| geometry.has_leaves_at(level));
    blocks.filter_map(|level| Some((level.down()?, (chunk.0 >> geometry.shift(level)).max(1)))).collect()
}

/// `kvm_mmu_split_huge_pages`
pub(super) async fn split_chunks<F: Format>(
    host: &Host<F>,
    range: Target,
    chunk: Bytes,
    policy: &SplitPolicy,
    done: &mut Splits,
) -> Result<(), SplitError> {
    let (start, end) = (range.range.start, range.range.end());
    let need = tables_for(host.format(), range.goal, chunk);
    let mut cache = TableCache::default();
    let mut at = start;
    let mut outcome = Ok(());
    while at < end {
        let short = need.iter().any(|&(level, most)| cache.count(level) < most);
        if short || host.need_resched(LockId::MMU).await {
            done.top_ups += u64::from(short);
            host.unlock(LockId::MMU).await;
            host.reschedule().await;
            let mut filled = true;
            for &(level, most) in &need {
                filled &= cache.top_up(host, level, most).await;
            }
            host.lock(LockId::MMU, policy.lock.mode()).await;
            if !filled {
                outcome = Err(SplitError::NoTables { at, done: *done });
                break;
            }
        }
        let next = Gpa::new((at.raw() / chunk.0 + 1).saturating_mul(chunk.0)).min(end);
        split_chunk(host, Target { range: GpaRange::between(at, next), ..range }, policy, &mut cache, done).await;
        at = next;
    }
    cache.release(host).await;
    outcome
}

/// `kvm_pgtable_stage2_split` over one chunk. A block larger than the cache allows is split by one level only.
async fn split_chunk<F: Format>(
    host: &Host<F>,
    range: Target,
    policy: &SplitPolicy,
    cache: &mut TableCache,
    done: &mut Splits,
) {
    let Target { root, range, goal } = range;
    host.rcu_read_lock().await;
    let mut iter = TdpIter::new(*host.format(), root, goal.up(), range.start, range.end());
    while iter.next(host).await {
        let child = iter.level.down().filter(|_| iter.is_leaf() && iter.level > goal);
        let Some((child, table)) = child.and_then(|child| Some((child, cache.take(child)?))) else {
            skip_run(host, &mut iter, ReschedCheck::Never).await;
            continue;
        };
        match split_leaf(host, iter.sptep, iter.level, iter.gpa, iter.old, table, policy).await {
            Linked::Table(word) => {
                done.leaves += 1;
                iter.replaced(word);
            }
            lost => {
                done.raced += u64::from(lost == Linked::Raced);
                cache.0.push((child, table));
                iter.retry();
                if lost == Linked::Unsplittable {
                    break;
                }
            }
        }
    }
    host.rcu_read_unlock().await;
}
