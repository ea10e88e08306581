//! Splitting by a fault: one huge leaf is in the way of a smaller page.
//!
//! Models `tdp_mmu_map_handle_target_level` of Linux 5.12 and `tdp_mmu_split_huge_page` of 6.1. Locking: the fault's `mmu_lock`, shared will do, and its RCU
//! section. Flush: the leaf's range, where the leaf is cleared or the architecture wants it; nothing is owed. Frees: a table that lost its race.

use mmu_core::{Format, Gpa, GpaRange, Hpa, Level, NotPresent, WalkCaches};
use serde::{Deserialize, Serialize};

use super::{BreakBeforeMake, Linked, SplitPolicy, give_back, replace, split_leaf};
use crate::engine::{Cmpxchg, Host, Work};

/// How a fault that wants a smaller page deals with a huge leaf in its way.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LazySplit {
    /// Frozen, flushed, cleared (x86 5.12 to 6.0, A4.4; POWER under its spin lock): the fault then links an empty table.
    Zap,
    /// Cleared, then flushed (X11, fixed by 08f07c800e9d): somebody installs another page while the old one is still cached.
    ClearThenFlush,
    /// Replaced by a full table (x86 6.1).
    InPlace,
    /// Broken and replaced by an empty table, which the fault fills by one page (arm64).
    EmptyTable,
}

/// What is in place of the huge leaf.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "the walk goes on by what it found"]
pub enum LazilySplit {
    /// A table, linked by this word.
    Linked(u64),
    /// Nothing.
    Cleared,
    /// The entry was changed by somebody else: the fault is tried again.
    Raced,
    /// No table was left: the fault is tried again with a topped-up cache.
    NoTable,
}

/// Gets a huge leaf out of a fault's way. Caller holds `mmu_lock` (shared will do) and is inside an RCU section. Nothing is owed
/// afterwards.
pub async fn lazy_split<F: Format>(
    host: &Host<F>,
    at: Hpa,
    level: Level,
    gpa: Gpa,
    old: u64,
    how: LazySplit,
) -> LazilySplit {
    let page = host.format().geometry().page_size(level);
    let gpa = gpa.align_down(page);
    match how {
        LazySplit::Zap | LazySplit::ClearThenFlush => {
            let frozen = host.format().encode_not_present(NotPresent::Frozen).unwrap_or(0);
            let marker = if how == LazySplit::Zap { frozen } else { 0 };
            if host.cmpxchg(at, old, marker).await != Cmpxchg::Done {
                return LazilySplit::Raced;
            }
            host.flush_range(GpaRange::new(gpa, page.into()), WalkCaches::Keep).await;
            if marker != 0 {
                host.write(at, 0).await;
            }
            host.spend(Work::ReleaseLeaf).await;
            LazilySplit::Cleared
        }
        LazySplit::InPlace | LazySplit::EmptyTable => link_table(host, at, level, gpa, old, how).await,
    }
}

async fn link_table<F: Format>(
    host: &Host<F>,
    at: Hpa,
    level: Level,
    gpa: Gpa,
    old: u64,
    how: LazySplit,
) -> LazilySplit {
    let Some(child) = level.down() else { return LazilySplit::Raced };
    let Some(table) = host.alloc_table(child).await else { return LazilySplit::NoTable };
    let linked = if how == LazySplit::InPlace {
        split_leaf(host, at, level, gpa, old, table, &SplitPolicy::X86_5_18).await
    } else {
        match host.format().encode_table(level, table) {
            Ok(link) if replace(host, at, level, gpa, old, link, BreakBeforeMake::AsRequired).await => {
                Linked::Table(link)
            }
            _ => Linked::Raced,
        }
    };
    match linked {
        Linked::Table(word) => LazilySplit::Linked(word),
        Linked::Raced | Linked::Unsplittable => {
            give_back(host, table, child).await;
            LazilySplit::Raced
        }
    }
}
