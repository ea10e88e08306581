//! Arm coalescing: a table becomes one block again, and a block a table, while vCPUs run.
//!
//! Dirty logging splits a block lazily: only the page that a guest writes is mapped small. After logging has stopped, the next fault on
//! the range wants the block back. Changing the size of a live mapping takes break-before-make on Arm and POWER: the entry is
//! invalid and flushed between the two values. While it is, every vCPU that touches the range faults and queues at `mmu_lock`.
//!
//! | value | models | in the invalid window | freed |
//! | --- | --- | --- | --- |
//! | [`V5_10`](CoalescePolicy::V5_10) | the "anchor" scheme of 5.10 to 5.13 | TLBI of the VMID, walk and free of the old subtree (A10) | at once |
//! | [`V5_14`](CoalescePolicy::V5_14) | 25aa28691bb9: maintenance moved from each fault to the mapper | the same, and cleaning the block | at once |
//! | [`RFC_2021`](CoalescePolicy::RFC_2021) | "install the block entry before unmapping the page mappings" (February and March 2021, dropped in v3) | TLBI of the VMID; no cleaning at all (A09) | at once |
//! | [`V6_2`](CoalescePolicy::V6_2) | 5c359cca1faf, c3119ae45dfb, af87fc03cfdf: parallel stage-2 faults | TLBI of the VMID, cleaning | by an RCU callback, which makes the walk |
//! | [`V6_6`](CoalescePolicy::V6_6) | range TLBI series, v9 | TLBI of the range, cleaning | the same |
//! | [`BBM_1`](CoalescePolicy::BBM_1), [`BBM_2`](CoalescePolicy::BBM_2) | TTRem series (January 2021, refused) | there is none | the same |
//! | [`X86`](CoalescePolicy::X86) | `tdp_mmu_map_handle_target_level`, 5.12 and later | there is none: one compare-and-swap, then the flush | by RCU, entries marked |
//! | [`POWER`](CoalescePolicy::POWER) | `kvmppc_create_pte`: cleared, walk cache flushed, freed, under the spin lock | flush, walk and free | at once |
//!
//! Locking: the caller holds `mmu_lock`, exclusively or ([`Walkers::Shared`]) beside other faults, and is inside an RCU section. Flush: made here;
//! nothing is owed afterwards. Cache maintenance is of a non-coherent guest ([`Uncached::NeedsClean`]) and made here unless the policy puts it
//! into the fault, before the lock.

use mmu_core::{
    BreakRule, Bytes, Flush, FlushScope, Format, Gpa, Hpa, HpaRange, Level, NotPresent, Reach, Uncached, WalkCaches,
};
use serde::{Deserialize, Serialize};

use super::teardown::{forget, free_unlinked};
use super::zap::{TableFlush, ZapPolicy, remove_table};
use crate::engine::{Cmpxchg, Frames, Host};

/// When the old subtree goes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Before the block is installed (up to 6.1; A10: faults storm while the subtree is walked).
    UnmapFirst,
    /// After.
    InstallFirst,
}

/// Who cleans the memory behind a block to the point of coherency.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CacheMaintenance {
    /// Every faulting vCPU, before it takes the lock and knows whether there is anything to map (up to 5.13; A11).
    PerFault,
    /// The one that installs the block, right before it does (25aa28691bb9, 5.14).
    InMapHandler,
    /// As [`CacheMaintenance::InMapHandler`], whatever is behind the block, device registers too (A12: the host takes a fault).
    InMapHandlerAnything,
    /// Nobody (RFC of 2021; A09: pages that were never mapped before hold old data for a guest with its caches off).
    Skipped,
    /// Nobody needs to: hardware forces write-back (`FEAT_S2FWB`) or is coherent anyway.
    NotNeeded,
}

/// What is invalidated when a table goes. Blocks and pages are invalidated by their own address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BlockFlush {
    /// The first page of the range alone (A02: translations of the other pages stand beside the block's).
    FirstPage,
    /// The whole VM (A22: the guest loses all its translations for each block).
    Vmid,
    /// The range of the table (6.6).
    Range,
}

/// How a live entry gets another size.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resize {
    /// Broken, flushed, made.
    BreakBeforeMake,
    /// Replaced at once by an entry with the nT mark, flushed, unmarked (`FEAT_BBM` level 1).
    Marked,
    /// Replaced at once, then flushed; conflict aborts in between are the fault handler's (`FEAT_BBM` level 2; x86).
    InPlace,
    /// As [`Resize::InPlace`], on processors that do not allow it (A27).
    Unchecked,
}

/// How tables are freed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Freeing {
    /// At once, walked by whoever coalesces.
    Immediate,
    /// After a grace period; the callback makes the walk.
    RcuCallback,
    /// After a grace period; whoever coalesces marks every entry, so that a walker inside installs nothing (x86).
    MarkedRcu,
}

/// How references to tables are counted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum References {
    /// One for each counted entry, one for the holder.
    Exact,
    /// One more each time a valid leaf is updated: the table is never freed (A01).
    ExtraPerUpdate,
    /// The last one is forgotten when an unlinked table is torn down: one table leaks with each block (A13).
    ForgetsLast,
    /// The last one is put again by the caller when a race is lost: the table is freed twice (A14).
    PutTwice,
    /// The one of a table that lost the race for its place is never put (A30: the fourth version of the series that made faults parallel).
    ForgetsLoser,
}

/// What a walk does after it replaced a table that it was about to enter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AfterReplace {
    /// Reads the entry again (a9f0e3d5a089).
    Reload,
    /// Goes on in the table that it saved before (A15: freed already, where freeing does not wait).
    FollowSaved,
}

/// Who else may be walking.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Walkers {
    /// Nobody: `mmu_lock` is held exclusively, entries are stored.
    Exclusive,
    /// Other faults: entries are compared and swapped.
    Shared,
}

/// How tables and blocks are turned into each other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoalescePolicy {
    /// When the old subtree goes.
    pub order: Order,
    /// Who cleans.
    pub maintenance: CacheMaintenance,
    /// What is invalidated.
    pub flush: BlockFlush,
    /// How a live entry gets another size.
    pub resize: Resize,
    /// How tables are freed.
    pub freeing: Freeing,
    /// How references are counted.
    pub references: References,
    /// What the walk does afterwards.
    pub after: AfterReplace,
}

impl CoalescePolicy {
    /// Linux 5.10 to 5.13.
    pub const V5_10: CoalescePolicy = CoalescePolicy {
        order: Order::UnmapFirst,
        maintenance: CacheMaintenance::PerFault,
        flush: BlockFlush::Vmid,
        resize: Resize::BreakBeforeMake,
        freeing: Freeing::Immediate,
        references: References::Exact,
        after: AfterReplace::Reload,
    };
    /// Linux 5.14 to 6.1.
    pub const V5_14: CoalescePolicy = CoalescePolicy { maintenance: CacheMaintenance::InMapHandler, ..Self::V5_10 };
    /// The RFC of February 2021.
    pub const RFC_2021: CoalescePolicy =
        CoalescePolicy { order: Order::InstallFirst, maintenance: CacheMaintenance::Skipped, ..Self::V5_10 };
    /// Linux 6.2 to 6.5.
    pub const V6_2: CoalescePolicy =
        CoalescePolicy { order: Order::InstallFirst, freeing: Freeing::RcuCallback, ..Self::V5_14 };
    /// Linux 6.6.
    pub const V6_6: CoalescePolicy = CoalescePolicy { flush: BlockFlush::Range, ..Self::V6_2 };
    /// With `FEAT_BBM` level 1.
    pub const BBM_1: CoalescePolicy = CoalescePolicy { resize: Resize::Marked, ..Self::V6_6 };
    /// With `FEAT_BBM` level 2.
    pub const BBM_2: CoalescePolicy = CoalescePolicy { resize: Resize::InPlace, ..Self::V6_6 };
    /// x86.
    pub const X86: CoalescePolicy = CoalescePolicy {
        maintenance: CacheMaintenance::NotNeeded,
        resize: Resize::InPlace,
        freeing: Freeing::MarkedRcu,
        ..Self::V6_6
    };
    /// POWER.
    pub const POWER: CoalescePolicy =
        CoalescePolicy { maintenance: CacheMaintenance::NotNeeded, flush: BlockFlush::Range, ..Self::V5_10 };

    /// What suits a format best: in place where it may be, with break-before-make elsewhere.
    pub fn of<F: Format>(format: &F) -> CoalescePolicy {
        let needs_clean = format.uncached() == Uncached::NeedsClean;
        let maintenance = if needs_clean { CacheMaintenance::InMapHandler } else { CacheMaintenance::NotNeeded };
        let locks = format.encode_not_present(NotPresent::Frozen).is_ok();
        let base = match (can(format, Resize::InPlace), locks) {
            (true, _) if format.overlap() == mmu_core::Overlap::Tolerated => Self::X86,
            (_, true) => Self::V6_6,
            (_, false) => Self::POWER,
        };
        CoalescePolicy { maintenance, ..base }
    }

    /// Whether this policy means something on a format.
    ///
    /// # Errors
    /// The first thing that the format does not have, and what to choose instead.
    pub fn check<F: Format>(&self, format: &F, walkers: Walkers) -> Result<(), CoalesceError> {
        let refuse = |what, remedy| Err(CoalesceError { format: F::NAME, what, remedy });
        if self.maintenance == CacheMaintenance::NotNeeded && format.uncached() == Uncached::NeedsClean {
            return refuse(
                "guests with their caches off see uncleaned memory",
                "clean in the map handler, or use FEAT_S2FWB",
            );
        }
        match self.resize {
            Resize::Marked if !can(format, Resize::Marked) => {
                return refuse("there is no nT mark", "use break-before-make, or a processor with FEAT_BBM level 1");
            }
            Resize::InPlace if !can(format, Resize::InPlace) => {
                return refuse(
                    "live mappings must not change their size in place",
                    "use break-before-make, or a processor with FEAT_BBM level 2",
                );
            }
            _ => {}
        }
        if walkers == Walkers::Shared && format.encode_not_present(NotPresent::Frozen).is_err() {
            return refuse("no entry can be locked", "hold mmu_lock exclusively");
        }
        if walkers == Walkers::Shared && self.freeing == Freeing::Immediate {
            return refuse("another walker may be inside a table that is freed at once", "free by RCU");
        }
        Ok(())
    }
}

/// Whether a format lets a table become a leaf this way, judged by the smallest block.
fn can<F: Format>(format: &F, resize: Resize) -> bool {
    let geometry = format.geometry();
    let mut levels = (1..geometry.levels() as u8).map(Level::new);
    let Some(level) = levels.find(|&level| geometry.has_leaves_at(level)) else { return false };
    let zero = Hpa::new(0);
    let leaf = mmu_core::Leaf {
        output: zero,
        perms: mmu_core::Perms::RWX.with(mmu_core::Perms::DIRTY),
        accessed: true,
        attrs: F::Attrs::default(),
    };
    let (Ok(leaf), Ok(table)) = (format.encode_leaf(level, &leaf), format.encode_table(level, zero)) else {
        return false;
    };
    let new = if resize == Resize::Marked { format.mark_resizing(level, leaf) } else { Some(leaf) };
    new.is_some_and(|new| !matches!(format.break_rule(level, table, new), BreakRule::Needed(_)))
}

/// A policy that a format gives no meaning.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CoalesceError {
    /// The format.
    pub format: &'static str,
    /// What it lacks.
    pub what: &'static str,
    /// What to choose instead.
    pub remedy: &'static str,
}

impl std::fmt::Display for CoalesceError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "coalescing on {}: {}; {}", self.format, self.what, self.remedy)
    }
}
impl std::error::Error for CoalesceError {}

/// Where an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryAt {
    /// Its word.
    pub ptep: Hpa,
    /// Its level.
    pub level: Level,
    /// First guest-physical byte that it covers.
    pub gpa: Gpa,
}

/// What became of an attempt to change a live entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a lost race changed nothing: the guest tries again"]
pub enum Changed {
    /// The new entry is in place.
    Done,
    /// Somebody else changed the entry first (`-EAGAIN`).
    Raced,
}

/// `dcache_clean_inval_poc` of the memory behind a new mapping, where the machine is not coherent for guests with their caches off.
pub async fn clean_block<F: Format>(host: &Host<F>, block: HpaRange) {
    if host.format().uncached() == Uncached::NeedsClean {
        host.clean(block).await;
    }
}

/// Replaces the table that `old` points to by the leaf `new`.
pub async fn table_to_block<F: Format>(
    host: &Host<F>,
    at: EntryAt,
    old: u64,
    new: u64,
    policy: &CoalescePolicy,
    walkers: Walkers,
) -> Changed {
    match policy.resize {
        Resize::BreakBeforeMake => break_table(host, at, old, new, policy, walkers).await,
        Resize::Marked => mark_table(host, at, old, new, policy).await,
        Resize::InPlace | Resize::Unchecked => replace_table(host, at, old, new, policy).await,
    }
}

/// The way through an invalid entry.
async fn break_table<F: Format>(
    host: &Host<F>,
    at: EntryAt,
    old: u64,
    new: u64,
    policy: &CoalescePolicy,
    walkers: Walkers,
) -> Changed {
    let broken = host.now().await;
    if try_break(host, at, old, policy, walkers).await == Changed::Raced {
        return Changed::Raced;
    }
    if policy.order == Order::UnmapFirst {
        tear_down(host, at, old, policy).await;
    }
    maintain(host, at, new, policy).await;
    make(host, at, new).await;
    host.count_break(host.now().await.since(broken)).await;
    if policy.order == Order::InstallFirst {
        tear_down(host, at, old, policy).await;
    }
    Changed::Done
}

/// `FEAT_BBM` level 1: while the mark stands, hardware walks for the block instead of caching it.
async fn mark_table<F: Format>(host: &Host<F>, at: EntryAt, old: u64, new: u64, policy: &CoalescePolicy) -> Changed {
    let Some(marked) = host.format().mark_resizing(at.level, new) else { return Changed::Raced };
    maintain(host, at, new, policy).await;
    if host.cmpxchg(at.ptep, old, marked).await != Cmpxchg::Done {
        return Changed::Raced;
    }
    invalidate(host, at, old, policy.flush).await;
    // Nobody touches a marked block; a fault on it finds the access allowed.
    let unmarked = host.cmpxchg(at.ptep, marked, new).await;
    tear_down(host, at, old, policy).await;
    if unmarked == Cmpxchg::Done { Changed::Done } else { Changed::Raced }
}

/// In place: both sizes may be cached until the flush is complete.
async fn replace_table<F: Format>(host: &Host<F>, at: EntryAt, old: u64, new: u64, policy: &CoalescePolicy) -> Changed {
    maintain(host, at, new, policy).await;
    if host.cmpxchg(at.ptep, old, new).await != Cmpxchg::Done {
        return Changed::Raced;
    }
    if policy.freeing == Freeing::MarkedRcu {
        // x86 tears down first: the grace period cannot end before this RCU section, and the flush is made inside it.
        tear_down(host, at, old, policy).await;
        invalidate(host, at, old, policy.flush).await;
    } else {
        invalidate(host, at, old, policy.flush).await;
        tear_down(host, at, old, policy).await;
    }
    Changed::Done
}

/// Replaces the block `old` by `table`, which is of the level below and empty or filled. The table stays the caller's when a race is lost.
pub async fn block_to_table<F: Format>(
    host: &Host<F>,
    at: EntryAt,
    old: u64,
    table: Hpa,
    policy: &CoalescePolicy,
    walkers: Walkers,
) -> Changed {
    let Ok(link) = host.format().encode_table(at.level, table) else { return Changed::Raced };
    match policy.resize {
        Resize::BreakBeforeMake => {
            let broken = host.now().await;
            if try_break(host, at, old, policy, walkers).await == Changed::Raced {
                return lost_table(host, at, table, policy).await;
            }
            make(host, at, link).await;
            host.count_break(host.now().await.since(broken)).await;
            Changed::Done
        }
        Resize::Marked => {
            let Some(marked) = host.format().mark_resizing(at.level, old) else { return Changed::Raced };
            if host.cmpxchg(at.ptep, old, marked).await != Cmpxchg::Done {
                return lost_table(host, at, table, policy).await;
            }
            // What was cached without the mark goes before the table can be found beside it.
            invalidate(host, at, old, policy.flush).await;
            replace_block(host, at, marked, link, table, policy).await
        }
        Resize::InPlace | Resize::Unchecked => replace_block(host, at, old, link, table, policy).await,
    }
}

async fn replace_block<F: Format>(
    host: &Host<F>,
    at: EntryAt,
    old: u64,
    link: u64,
    table: Hpa,
    policy: &CoalescePolicy,
) -> Changed {
    if host.cmpxchg(at.ptep, old, link).await != Cmpxchg::Done {
        return lost_table(host, at, table, policy).await;
    }
    invalidate(host, at, old, policy.flush).await;
    Changed::Done
}

/// The race for a block was lost; the caller frees the table that it had built. One put too many frees it here already.
async fn lost_table<F: Format>(host: &Host<F>, at: EntryAt, table: Hpa, policy: &CoalescePolicy) -> Changed {
    if policy.references == References::PutTwice
        && let Some(level) = at.level.down()
    {
        forget(host, table, level).await;
    }
    Changed::Raced
}

/// `stage2_try_break_pte`: from here on the entry maps nothing, and no translation that came from it is cached.
pub async fn try_break<F: Format>(
    host: &Host<F>,
    at: EntryAt,
    old: u64,
    policy: &CoalescePolicy,
    walkers: Walkers,
) -> Changed {
    let locked = host.format().encode_not_present(NotPresent::Frozen).unwrap_or(0);
    match walkers {
        Walkers::Exclusive => host.write(at.ptep, locked).await,
        Walkers::Shared => {
            if host.cmpxchg(at.ptep, old, locked).await != Cmpxchg::Done {
                return Changed::Raced;
            }
        }
    }
    if host.format().is_mapped(old) {
        invalidate(host, at, old, policy.flush).await;
    }
    Changed::Done
}

/// `stage2_make_pte`: everything that was written before is visible before the entry is.
pub async fn make<F: Format>(host: &Host<F>, at: EntryAt, new: u64) {
    host.write_release(at.ptep, new).await;
}

/// Drops the translations of an entry that was replaced.
async fn invalidate<F: Format>(host: &Host<F>, at: EntryAt, old: u64, flush: BlockFlush) {
    let geometry = *host.format().geometry();
    let bytes = geometry.page_size(at.level).bytes();
    let (scope, walk_caches) = if host.format().is_leaf(at.level, old) {
        (FlushScope::Range { start: at.gpa, bytes, level: Some(at.level) }, WalkCaches::Keep)
    } else {
        let range = |bytes| FlushScope::Range { start: at.gpa, bytes, level: None };
        let scope = match flush {
            BlockFlush::FirstPage => range(geometry.granule().bytes()),
            BlockFlush::Vmid => FlushScope::Vm,
            BlockFlush::Range => range(bytes),
        };
        (scope, WalkCaches::Drop)
    };
    host.flush(Flush { scope, walk_caches, reach: Reach::Everyone }).await;
}

/// Cache maintenance in the map handler.
async fn maintain<F: Format>(host: &Host<F>, at: EntryAt, new: u64, policy: &CoalescePolicy) {
    if matches!(policy.maintenance, CacheMaintenance::InMapHandler | CacheMaintenance::InMapHandlerAnything) {
        let bytes = Bytes(host.format().geometry().page_size(at.level).bytes());
        clean_block(host, HpaRange::new(host.format().output(at.level, new), bytes)).await;
    }
}

/// The subtree below a table entry that has been replaced.
async fn tear_down<F: Format>(host: &Host<F>, at: EntryAt, old: u64, policy: &CoalescePolicy) {
    let Some(level) = at.level.down() else { return };
    let child = host.format().next_table(at.level, old);
    if policy.references == References::ForgetsLast {
        host.get_table(child).await;
    }
    match policy.freeing {
        Freeing::Immediate => free_unlinked(host, child, level).await,
        Freeing::RcuCallback => host.call_rcu_subtree(child, level).await,
        Freeing::MarkedRcu => {
            let marks = ZapPolicy { flush: TableFlush::DeferredRcu, ..ZapPolicy::V5_18 };
            remove_table(host, child, at.level, &marks).await;
        }
    }
}

/// A table that was never linked.
pub(super) fn one_table<F: Format>(format: &F, table: Hpa, level: Level) -> Frames {
    Frames { first: table, count: 1, level, bytes: format.geometry().table_bytes(level) }
}
