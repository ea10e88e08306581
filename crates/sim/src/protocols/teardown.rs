//! Freeing a subtree that nobody can reach any more.
//!
//! Models `kvm_pgtable_stage2_free_unlinked` and the unmap walk under an anchor before it: every entry is looked at, every counted one
//! puts a reference of its table, every table is freed when its last reference goes. Locking: none; the subtree is unreachable and flushed.
//! Flush: none is owed. Frees at once, children first.

use mmu_core::{Format, Hpa, Level};

use super::coalesce::one_table;
use crate::engine::{Apply, Atomicity, Host, ReschedCheck, RunOp, Work};

/// Walks the subtree of `table`, standing at `level`, and frees its tables.
pub async fn free_unlinked<F: Format>(host: &Host<F>, table: Hpa, level: Level) {
    let format = *host.format();
    let entries = format.geometry().entries(level) as u64;
    let mut index = 0;
    while index < entries {
        let at = table + 8 * index;
        let run = host.read_run(at, entries - index).await;
        let below = level.down().filter(|_| format.is_mapped(run.first) && !format.is_leaf(level, run.first));
        index += match below {
            Some(down) => {
                Box::pin(free_unlinked(host, format.next_table(level, run.first), down)).await;
                1
            }
            None => put_leaves(host, at, run.first, run.len).await,
        };
    }
    forget(host, table, level).await;
}

/// The last reference of a table is put.
pub async fn forget<F: Format>(host: &Host<F>, table: Hpa, level: Level) {
    host.free_tables(one_table(host.format(), table, level)).await;
}

/// Leaves put a reference each, empty entries none; the words stay as they are.
async fn put_leaves<F: Format>(host: &Host<F>, at: Hpa, first: u64, len: u64) -> u64 {
    let (apply, atomicity) = (Apply::Nothing, Atomicity::Plain);
    let work = host.format().is_mapped(first).then_some(Work::PutReference);
    host.run(RunOp { at, len, apply, atomicity, work, check: ReschedCheck::Never }).await
}
