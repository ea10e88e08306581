//! Walkers that share a lock and yield to each other: does everybody get on?
//!
//! Models the write-protecting walk of the TDP MMU (`wrprot_gfn_range`) from its first form (5.10) to the one after "Allow parallel MMU
//! operations with TDP MMU" (v2, February 2021): seed 0. In the first form a walk looked at the lock only *after* it had changed an
//! entry, and started over at that very entry; the entry was present, so it was changed again. Two such walkers give each other the
//! lock for ever (X01). The fixed walk asks first, at most once for each last-level frame, and starts over at the first frame it has not
//! visited.
//!
//! Locking: `mmu_lock` for write, as then. Flush: one at the end, and before every yield that has something pending (X03: every yield).
//! Frees nothing.

use mmu_core::{Format, Gpa, GpaRange, Level};
use serde::{Deserialize, Serialize};

use super::iter::{FlushDebt, FlushOnYield, TdpIter, WalkRules, Yield, cond_resched, skip_run};
use crate::engine::{Host, LockId, LockMode, ReschedCheck};

/// How a walk ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Walked {
    /// At the end of its range.
    Through {
        /// Leaves that it wrote, each time counted.
        writes: u64,
    },
    /// It gave up: so many yields in a row had brought it nowhere.
    NoProgress {
        /// Where it stood.
        at: Gpa,
        /// Yields without a frame that it had not visited before.
        yields: u32,
        /// Leaves that it wrote, each time counted.
        writes: u64,
    },
}

/// Write-protects every leaf of a range below the VM's root, and gives up after `patience` yields in a row without progress, which the
/// kernel's walk would not. Takes `mmu_lock`.
pub async fn write_protect<F: Format>(host: &Host<F>, range: GpaRange, yielding: Yield, patience: u32) -> Walked {
    let rules = WalkRules { yielding, flush_on_yield: FlushOnYield::IfPending, lock: LockMode::Write };
    let late = yielding == Yield::AfterWorkOnly;
    let (mut debt, mut writes) = (FlushDebt::Clean, 0);
    host.lock(LockId::MMU, LockMode::Write).await;
    host.rcu_read_lock().await;
    let root = host.root().await;
    let mut iter = TdpIter::new(*host.format(), root, Level::LAST, range.start, range.end());
    let mut outcome = None;
    while outcome.is_none() && iter.next(host).await {
        if !late && cond_resched(host, &mut iter, rules, &mut debt).await {
            outcome = gave_up(&iter, patience, writes);
            continue;
        }
        if !iter.is_leaf() {
            skip_run(host, &mut iter, ReschedCheck::Never).await;
            continue;
        }
        iter.take(1);
        let protected = host.format().write_protect(iter.old);
        // The first form wrote whatever it found; since then an entry that is protected already is left alone.
        if late || protected != iter.old {
            host.write(iter.sptep, protected).await;
            writes += 1;
            debt = FlushDebt::Owed;
        }
        if late && cond_resched(host, &mut iter, rules, &mut debt).await {
            outcome = gave_up(&iter, patience, writes);
        }
    }
    if debt == FlushDebt::Owed {
        host.flush_vm().await;
    }
    host.rcu_read_unlock().await;
    host.unlock(LockId::MMU).await;
    outcome.unwrap_or(Walked::Through { writes })
}

/// After a yield: whether the walk has yielded too often without getting anywhere.
fn gave_up<F: Format>(iter: &TdpIter<F>, patience: u32, writes: u64) -> Option<Walked> {
    let yields = iter.stalled();
    (yields >= patience).then_some(Walked::NoProgress { at: iter.gpa, yields, writes })
}
