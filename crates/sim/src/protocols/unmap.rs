//! Unmapping a range with a visitor, and freeing tables that become empty.
//!
//! Models `kvm_pgtable_stage2_unmap` and `stage2_apply_range` of Linux 6.6: leaves are cleared and invalidated one by one,
//! or all at once by a range invalidation after the walk; a table that is left without entries is unlinked and freed.
//! Locking: `mmu_lock` for write, given up between chunks (5994bc9e05c2, 6.1; A08 is one chunk for everything). Emptiness comes from the
//! table's count of present entries, never from a scan.
//!
//! Flush: each entry as it goes, or the range before the lock is given up; nothing is owed. Frees: tables that become empty, after a grace period
//! ([`EmptyTable`] has the other ways).

use mmu_core::{Bytes, Flush, FlushScope, Format, Gpa, GpaRange, PageSize, Reach, WalkCaches};

use serde::{Deserialize, Serialize};

use super::iter::pass_over;
use super::visit::{Visit, VisitContext, Visited, Visitor, WalkEnd, WalkFlags, walk};
use super::vm::NO_TABLES;
use crate::engine::{
    Apply, Atomicity, EachLeaf, Frames, Host, LockId, LockMode, ReschedCheck, RestOfTable, RunOp, Work,
};

/// When unmapped leaves are invalidated.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnmapFlush {
    /// Each after it was cleared.
    EachEntry,
    /// All by one range invalidation per chunk (needs FEAT_TLBIRANGE and FWB on Arm; v9 of the range series, 6.6).
    Range,
}

/// When a table that has become empty is freed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EmptyTable {
    /// After a grace period.
    #[default]
    AfterGrace,
    /// At once (A26): right as long as every walker holds `mmu_lock`.
    AtOnce,
    /// With the VM: until then it is there for what is mapped below it next (POWER).
    Kept,
}

/// Where a walk begins, goes and ends that was asked for addresses inside pages and blocks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WalkBounds {
    /// At whole entries.
    #[default]
    Rounded,
    /// Its steps are not rounded to entries (A03).
    StepsUnaligned,
    /// Its end is not where the range's is (A04).
    EndFromRoundedStart,
}

impl WalkBounds {
    fn flags(self) -> WalkFlags {
        match self {
            WalkBounds::Rounded => WalkFlags::empty(),
            WalkBounds::StepsUnaligned => WalkFlags::STEPS_UNALIGNED,
            WalkBounds::EndFromRoundedStart => WalkFlags::END_FROM_ROUNDED_START,
        }
    }
}

/// How a range is unmapped.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnmapPolicy {
    /// Invalidation.
    pub flush: UnmapFlush,
    /// Distance between two chances to reschedule; the lock is given up there when somebody wants it.
    pub chunk: Bytes,
    /// Tables that become empty.
    #[serde(default)]
    pub empty: EmptyTable,
    /// How the walk rounds.
    #[serde(default)]
    pub bounds: WalkBounds,
}

impl UnmapPolicy {
    /// Linux 6.6 with range invalidation, in chunks of the largest block.
    pub const V6_6: UnmapPolicy = UnmapPolicy {
        flush: UnmapFlush::Range,
        chunk: Bytes(PageSize::SIZE_1G.bytes()),
        empty: EmptyTable::AfterGrace,
        bounds: WalkBounds::Rounded,
    };
    /// POWER (`kvmppc_radix_flush_memslot`, `kvmppc_unmap_pte`, `arch/powerpc/kvm/book3s_64_mmu_radix.c`, Linux 6.6): page by page, each with its `tlbie`, all
    /// of it in one section of `mmu_lock`; tables stay.
    pub const POWER: UnmapPolicy = UnmapPolicy {
        flush: UnmapFlush::EachEntry,
        chunk: Bytes(u64::MAX),
        empty: EmptyTable::Kept,
        bounds: WalkBounds::Rounded,
    };
}

struct Unmap {
    flush: UnmapFlush,
    empty: EmptyTable,
}

impl<F: Format> Visitor<F> for Unmap {
    async fn visit(&mut self, host: &Host<F>, context: VisitContext) -> Visited {
        if !host.format().is_mapped(context.old) {
            return Visited::Continue(pass_over(host, context.ptep, context.len).await);
        }
        match context.visit {
            Visit::Leaf => Visited::Continue(self.clear_leaves(host, context).await),
            Visit::TablePost => {
                free_if_empty(host, context, self.empty).await;
                Visited::Continue(1)
            }
            Visit::TablePre => Visited::Continue(1),
        }
    }
}

impl Unmap {
    async fn clear_leaves<F: Format>(&self, host: &Host<F>, context: VisitContext) -> u64 {
        let len = match self.flush {
            UnmapFlush::EachEntry => 1,
            UnmapFlush::Range => context.len,
        };
        let run = RunOp {
            at: context.ptep,
            len,
            apply: Apply::Set(0),
            atomicity: Atomicity::Plain,
            work: Some(Work::ReleaseLeaf),
            check: ReschedCheck::Never,
        };
        let mut done = host.run(run).await;
        if self.flush == UnmapFlush::Range && context.len + context.ahead > done {
            let rest = RestOfTable {
                at: context.ptep + 8 * done,
                len: context.len + context.ahead - done,
                level: context.level,
                leaf: EachLeaf::Release { word: 0, atomicity: Atomicity::Plain },
                check: ReschedCheck::Never,
            };
            done += host.rest_of_table(rest).await.entries;
        }
        if self.flush == UnmapFlush::EachEntry {
            let bytes = host.format().geometry().page_size(context.level).bytes();
            let scope = FlushScope::Range { start: context.addr, bytes, level: Some(context.level) };
            host.flush(Flush { scope, walk_caches: WalkCaches::Keep, reach: Reach::Everyone }).await;
        }
        done
    }
}

/// Unlinks and frees the table below an entry when nothing is left in it.
async fn free_if_empty<F: Format>(host: &Host<F>, context: VisitContext, when: EmptyTable) {
    let format = *host.format();
    let Some(level) = context.level.down() else { return };
    let table = format.next_table(context.level, context.old);
    if when == EmptyTable::Kept || host.live_entries(table).await != 0 {
        return;
    }
    host.write(context.ptep, 0).await;
    let page = format.geometry().page_size(context.level);
    // Walk caches may hold the table: they go before it does.
    host.flush_range(GpaRange::new(context.addr.align_down(page), page.into()), WalkCaches::Drop).await;
    let bytes = format.geometry().table_bytes(level);
    let frames = Frames { first: table, count: 1, level, bytes };
    if when == EmptyTable::AtOnce {
        host.free_tables(frames).await;
    } else {
        host.call_rcu(frames).await;
    }
}

/// When the second stage of a nested guest is unmapped that another one is to use.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recycling {
    /// While the vCPU is being loaded, which must not block: all of it under `mmu_lock` (A29).
    InLoad,
    /// Before the vCPU enters the guest, by request: the lock is given up in between (c268f204f7c5).
    OnRequest,
}

/// `get_s2_mmu_nested`: the tables of a nested guest that has not run for longest are emptied for another one.
pub async fn recycle<F: Format>(host: &Host<F>, range: GpaRange, when: Recycling, policy: UnmapPolicy) {
    let chunk = match when {
        Recycling::InLoad => Bytes(u64::MAX),
        Recycling::OnRequest => policy.chunk,
    };
    unmap_range(host, range, UnmapPolicy { chunk, ..policy }).await;
}

/// Unmaps a range of the VM's current root. Takes and gives back `mmu_lock`; nothing is owed afterwards.
pub async fn unmap_range<F: Format>(host: &Host<F>, range: GpaRange, policy: UnmapPolicy) {
    let (mut at, end) = (range.start, range.end());
    host.lock(LockId::MMU, LockMode::Write).await;
    while at < end {
        let next = Gpa::new((at.raw() / policy.chunk.0 + 1).saturating_mul(policy.chunk.0)).min(end);
        let root = host.root().await;
        if root == NO_TABLES {
            break;
        }
        let flags = WalkFlags::LEAF | WalkFlags::TABLE_POST | policy.bounds.flags();
        let mut unmap = Unmap { flush: policy.flush, empty: policy.empty };
        // Alone under the write lock: no race can be lost.
        let WalkEnd::Complete = walk(host, root, at, next, flags, &mut unmap).await else { break };
        if policy.flush == UnmapFlush::Range {
            host.flush_range(GpaRange::between(at, next), WalkCaches::Keep).await;
        }
        at = next;
        if at < end && host.need_resched(LockId::MMU).await {
            host.unlock(LockId::MMU).await;
            host.reschedule().await;
            host.lock(LockId::MMU, LockMode::Write).await;
        }
    }
    host.unlock(LockId::MMU).await;
}
