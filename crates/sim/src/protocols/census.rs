//! How many leaves of which size a tree holds: the statistics `pages_4k`, `pages_2m` and `pages_1g` that KVM's tests read.
//!
//! KVM counts at every change (`kvm_update_page_stats`); here they are counted on request by a walk over runs, since templates map
//! terabytes that nobody has installed one by one. Takes RCU only; exact while nobody changes the tree.
//!
//! Locking: none; an RCU section around the walk. Flush: none owed. Frees nothing.

use mmu_core::{Format, GpaRange, Hpa, Level, PageSize};

use super::iter::{TdpIter, bulk};
use crate::engine::{Apply, Atomicity, Host, ReschedCheck};

/// Leaves by level.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Census([u64; Level::MAX_LEVELS]);

impl Census {
    /// Leaves of this size; none where the format has no such leaves.
    pub fn pages<F: Format>(&self, format: &F, size: PageSize) -> u64 {
        format.geometry().level_of(size).map_or(0, |level| self.0[level.index()])
    }
}

/// Counts the leaves of a range below `root`.
pub async fn count<F: Format>(host: &Host<F>, root: Hpa, range: GpaRange) -> Census {
    let mut census = Census::default();
    host.rcu_read_lock().await;
    let mut iter = TdpIter::new(*host.format(), root, Level::LAST, range.start, range.end());
    while iter.next(host).await {
        let (leaf, level) = (iter.is_leaf(), iter.level);
        // A run may be cut short where something else has to happen first; the rest comes as a run of its own.
        let passed = bulk(host, &mut iter, Apply::Nothing, Atomicity::Plain, None, ReschedCheck::Never).await;
        if leaf {
            census.0[level.index()] += passed;
        }
    }
    host.rcu_read_unlock().await;
    census
}
