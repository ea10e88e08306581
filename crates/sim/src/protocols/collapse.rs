//! Collapsing: where a table maps what one larger page could, after dirty logging has ended.
//!
//! Models `kvm_tdp_mmu_zap_collapsible_sptes` (5.12 to 6.12: the table is zapped, and the next fault maps the large page) and
//! `kvm_tdp_mmu_try_recover_huge_pages` (6.13: the table is replaced in place by the large leaf). Flush: up to 6.12 one for each table
//! (X35, 131072 of them for 256 GB); batched since, at yields and at the end, always before the RCU section ends, because tables were
//! unlinked. Where the format wants break-before-make (arm64, POWER) every replacement flushes by itself; KVM collapses there by faults
//! instead.
//!
//! Locking: the caller holds `mmu_lock` in the policy's mode and gets it back; yields drop it in between. Nothing is owed afterwards.
//! Frees the tables by RCU.

use mmu_core::{BreakRule, Entry, Format, GpaRange, Hpa, Leaf, Level, NotPresent, PageSize, Perms, WalkCaches};
use serde::{Deserialize, Serialize};

use super::iter::{FlushDebt, FlushOnYield, TdpIter, WalkRules, Yield, check_each, cond_resched, pass_over, skip_run};
use super::nx::Mitigation;
use super::split::{BreakBeforeMake, replace};
use super::zap::{TableFlush, ZapLock, ZapPolicy, is_table, remove_table};
use crate::engine::{Cmpxchg, Host};

/// What becomes of a table that could be one large page.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CollapseHow {
    /// Zapped: the next fault maps the large page.
    Zap,
    /// Replaced by the large leaf, made from the first small one that is present.
    RecoverInPlace,
}

/// When a collapse flushes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CollapseFlush {
    /// After every table (X35).
    Each,
    /// Before a yield and at the end.
    Batched,
    /// After every table, but only its first page (X38): where flushes are ranged the others stay cached.
    EachFirstPage,
}

/// Which entries are taken for collapsible.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CollapseTest {
    /// Table entries.
    Tables,
    /// Leaves, which have nothing below them to collapse: the walk never does anything (X10).
    Leaves,
}

/// Whether a table entry is still one when it is replaced.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CollapseRecheck {
    /// It is replaced only if it is the one that was looked at.
    SameEntry,
    /// It is read again and replaced whatever it is now (X36).
    None,
}

/// How tables are collapsed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CollapsePolicy {
    /// What becomes of a table.
    pub how: CollapseHow,
    /// When it is flushed.
    pub flush: CollapseFlush,
    /// How the caller holds `mmu_lock`.
    pub lock: ZapLock,
    /// When the walk yields.
    pub yielding: Yield,
    /// Which entries are looked at.
    pub test: CollapseTest,
    /// Whether they are looked at again.
    pub recheck: CollapseRecheck,
    /// Whether the VM's huge pages may be executable. Where they may not, a leaf made in place is not, whatever the small one was that it is made from
    /// (`make_huge_spte`); a fetch splits it again.
    #[serde(default)]
    pub mitigation: Mitigation,
}

impl CollapsePolicy {
    /// x86, Linux 5.14 to 6.12: zapped, one flush for each.
    pub const X86_5_14: CollapsePolicy = CollapsePolicy {
        how: CollapseHow::Zap,
        flush: CollapseFlush::Each,
        lock: ZapLock::Read,
        yielding: Yield::YieldedGfn,
        test: CollapseTest::Tables,
        recheck: CollapseRecheck::SameEntry,
        mitigation: Mitigation::Off,
    };
    /// Zapped, flushes batched: the third patch of the series that became 6.13 (20240823235648.3236880-1-dmatlack).
    pub const X86_BATCHED: CollapsePolicy = CollapsePolicy { flush: CollapseFlush::Batched, ..Self::X86_5_14 };
    /// x86, Linux 6.13: recovered in place, flushes batched.
    pub const X86_6_13: CollapsePolicy =
        CollapsePolicy { how: CollapseHow::RecoverInPlace, flush: CollapseFlush::Batched, ..Self::X86_5_14 };

    fn rules(&self) -> WalkRules {
        WalkRules { yielding: self.yielding, flush_on_yield: FlushOnYield::IfPending, lock: self.lock.mode() }
    }

    /// How the table below goes.
    fn teardown(&self) -> ZapPolicy {
        ZapPolicy { lock: self.lock, flush: TableFlush::DeferredRcu, ..ZapPolicy::V5_18 }
    }
}

/// What a collapse did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Collapsed {
    /// Tables that were zapped or replaced.
    pub tables: u64,
    /// Races lost to somebody who shares the lock.
    pub raced: u64,
}

/// What became of one table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum One {
    /// Gone; a leaf, or nothing, stands in its place.
    Collapsed(u64, FlushDebt),
    /// It maps nothing that a leaf could be made from.
    Nothing,
    /// Somebody was first.
    Raced,
}

/// Collapses what a range below `root` maps by pages smaller than the primary MMU does, up to `most`.
pub async fn collapse_range<F: Format>(
    host: &Host<F>,
    root: Hpa,
    range: GpaRange,
    most: PageSize,
    policy: &CollapsePolicy,
) -> Collapsed {
    let check = check_each(policy.yielding);
    let mut debt = FlushDebt::Clean;
    let mut done = Collapsed::default();
    host.rcu_read_lock().await;
    let mut iter = TdpIter::new(*host.format(), root, Level::LAST.up(), range.start, range.end());
    while iter.next(host).await {
        if cond_resched(host, &mut iter, policy.rules(), &mut debt).await {
            continue;
        }
        if !is_candidate(host, &iter, range, most, policy).await {
            // What the primary MMU has behind one table says nothing of the next one.
            if iter.is_present() && !iter.is_leaf() {
                iter.take(1);
            } else {
                skip_run(host, &mut iter, check).await;
            }
            continue;
        }
        match collapse(host, &iter, policy).await {
            One::Collapsed(word, owed) => {
                done.tables += 1;
                debt = debt.merge(owed);
                iter.replaced(word);
            }
            One::Nothing => iter.take(1),
            One::Raced => {
                done.raced += 1;
                iter.retry();
            }
        }
    }
    if debt == FlushDebt::Owed {
        host.flush_range(range, WalkCaches::Drop).await;
    }
    host.rcu_read_unlock().await;
    done
}

/// Whether the current entry stands for a whole large page of the primary MMU inside the range.
async fn is_candidate<F: Format>(
    host: &Host<F>,
    iter: &TdpIter<F>,
    range: GpaRange,
    most: PageSize,
    policy: &CollapsePolicy,
) -> bool {
    let geometry = host.format().geometry();
    let page = geometry.page_size(iter.level);
    let wanted = match policy.test {
        CollapseTest::Tables => iter.is_present() && !iter.is_leaf(),
        // Nothing hangs below a leaf that a larger page could stand for.
        CollapseTest::Leaves => false,
    };
    let inside = iter.gpa >= range.start && GpaRange::new(iter.gpa, page.into()).end() <= range.end();
    if !wanted || !inside || page > most || !geometry.has_leaves_at(iter.level) {
        return false;
    }
    host.host_mapping(iter.gpa, most).await >= page
}

async fn collapse<F: Format>(host: &Host<F>, iter: &TdpIter<F>, policy: &CollapsePolicy) -> One {
    match policy.how {
        CollapseHow::Zap => zap(host, iter, policy).await,
        CollapseHow::RecoverInPlace => recover(host, iter, policy).await,
    }
}

/// `tdp_mmu_zap_spte_atomic`: frozen, torn down, flushed, cleared; or cleared, torn down, and the flush left to the caller.
async fn zap<F: Format>(host: &Host<F>, iter: &TdpIter<F>, policy: &CollapsePolicy) -> One {
    let format = *host.format();
    let table = format.next_table(iter.level, iter.old);
    let each = policy.flush != CollapseFlush::Batched;
    let marker = if each { format.encode_not_present(NotPresent::Frozen).unwrap_or(0) } else { 0 };
    if host.cmpxchg(iter.sptep, iter.old, marker).await != Cmpxchg::Done {
        return One::Raced;
    }
    remove_table(host, table, iter.level, &policy.teardown()).await;
    if !each {
        return One::Collapsed(0, FlushDebt::Owed);
    }
    host.flush_range(flushed(host, iter, policy), WalkCaches::Drop).await;
    host.write(iter.sptep, 0).await;
    One::Collapsed(0, FlushDebt::Clean)
}

/// `recover_huge_pages_range` for one table.
async fn recover<F: Format>(host: &Host<F>, iter: &TdpIter<F>, policy: &CollapsePolicy) -> One {
    let format = *host.format();
    let mut table = format.next_table(iter.level, iter.old);
    let Some(leaf) = first_leaf(host, table, iter.level).await else { return One::Nothing };
    let page = format.geometry().page_size(iter.level);
    let perms = if policy.mitigation == Mitigation::On { leaf.perms.without(Perms::X) } else { leaf.perms };
    let huge = Leaf { output: leaf.output.align_down(page), perms, ..leaf };
    let Ok(word) = format.encode_leaf(iter.level, &huge) else { return One::Nothing };
    let mut old = iter.old;
    if policy.recheck == CollapseRecheck::None {
        old = host.read(iter.sptep).await;
        table = format.next_table(iter.level, old);
    }
    let breaks = matches!(format.break_rule(iter.level, old, word), BreakRule::Needed(_));
    if !replace(host, iter.sptep, iter.level, iter.gpa, old, word, BreakBeforeMake::AsRequired).await {
        return One::Raced;
    }
    if policy.recheck == CollapseRecheck::None || is_table(&format, iter.level, old) {
        remove_table(host, table, iter.level, &policy.teardown()).await;
    }
    if breaks {
        return One::Collapsed(word, FlushDebt::Clean);
    }
    if policy.flush == CollapseFlush::Batched {
        return One::Collapsed(word, FlushDebt::Owed);
    }
    host.flush_range(flushed(host, iter, policy), WalkCaches::Drop).await;
    One::Collapsed(word, FlushDebt::Clean)
}

/// What is flushed for one table.
fn flushed<F: Format>(host: &Host<F>, iter: &TdpIter<F>, policy: &CollapsePolicy) -> GpaRange {
    let geometry = host.format().geometry();
    let whole = geometry.page_size(iter.level);
    let size = if policy.flush == CollapseFlush::EachFirstPage { geometry.granule() } else { whole };
    GpaRange::new(iter.gpa, size.into())
}

/// The first leaf below a table that hangs below an entry of `parent` level.
async fn first_leaf<F: Format>(host: &Host<F>, table: Hpa, parent: Level) -> Option<Leaf<F::Attrs>> {
    let format = *host.format();
    let level = parent.down()?;
    let entries = format.geometry().entries(level) as u64;
    let mut index = 0;
    while index < entries {
        let run = host.read_run(table + 8 * index, entries - index).await;
        if is_table(&format, level, run.first) {
            let below = Box::pin(first_leaf(host, format.next_table(level, run.first), level)).await;
            if below.is_some() {
                return below;
            }
            index += 1;
        } else if let Entry::Leaf(leaf) = format.decode(level, run.first) {
            return Some(leaf);
        } else {
            index += pass_over(host, table + 8 * index, run.len).await;
        }
    }
    None
}
