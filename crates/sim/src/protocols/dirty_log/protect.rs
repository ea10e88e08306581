//! The walks that make writes noticeable: W or the dirty flag is taken out of leaves.
//!
//! Models `wrprot_gfn_range`, `clear_dirty_gfn_range` and `clear_dirty_pt_masked` (`arch/x86/kvm/mmu/tdp_mmu.c`), `stage2_wp_range` under
//! `stage2_apply_range` (arm64), `kvm_radix_test_clear_dirty` (POWER). Locking: the caller holds `mmu_lock` in the policy's mode. Flush: owed by
//! the caller, before anybody relies on later writes being noticed; a yield flushes what is pending. Frees nothing.

use mmu_core::{Flush, FlushScope, Format, Gpa, GpaRange, Hpa, Level, Reach, WalkCaches};
use serde::{Deserialize, Serialize};

use super::pages::DirtyPages;
use super::{Breaks, DirtyPolicy, HarvestFlush, LostRace, Tracking};
use crate::engine::{Apply, Atomicity, Host, LockId, LockMode, RunBelow, SliceWork};
use crate::protocols::iter::{
    FlushDebt, FlushOnYield, TdpIter, WalkRules, Yield, bulk, check_each, cond_resched, skip_run, slices,
};
use crate::protocols::zap::{ZapLock, is_table};

/// What a walk over leaves did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Protected {
    /// Leaves from which something was taken, of any size.
    pub leaves: u64,
    /// Races lost to somebody who shares the lock, or to hardware setting a flag.
    pub raced: u64,
}

/// The leaf after W or the dirty flag was taken; `None` when there is nothing to take.
///
/// The log of modified pages says which 4 KiB was written first, not which others: large pages lose W, so that the first write splits
/// them (`kvm_mmu_slot_remove_write_access(kvm, slot, PG_LEVEL_2M)`).
pub(super) fn untracked<F: Format>(format: &F, tracking: Tracking, level: Level, word: u64) -> Option<u64> {
    let protects = match tracking {
        Tracking::WriteProtect => true,
        Tracking::ModificationLog => level > Level::LAST,
        Tracking::Scan => false,
    };
    let new = match protects {
        true if format.is_writable(word) => format.write_protect(word),
        true => word,
        false => word & !format.dirty_mask(),
    };
    (new != word).then_some(new)
}

/// The same for every word of a run that differs from this one in its address only.
fn mask(old: u64, new: u64) -> Apply {
    Apply::Mask { and: !(old & !new), or: new & !old }
}

/// What one walk does, and what it has done.
pub(super) struct Walk<'a, F> {
    pub(super) host: &'a Host<F>,
    pub(super) policy: &'a DirtyPolicy,
    pub(super) lock: ZapLock,
    /// Whether it may give the lock away.
    pub(super) yielding: Yield,
    pub(super) debt: FlushDebt,
    pub(super) done: Protected,
    /// Pages whose leaves it changed, in pages of the smallest size from guest-physical 0 on, if somebody wants them.
    pub(super) found: Option<DirtyPages>,
}

impl<'a, F: Format> Walk<'a, F> {
    /// A walk under `lock`, which the caller holds.
    pub(super) fn new(host: &'a Host<F>, policy: &'a DirtyPolicy, lock: ZapLock, yielding: Yield) -> Self {
        Self { host, policy, lock, yielding, debt: FlushDebt::Clean, done: Protected::default(), found: None }
    }

    /// Goes over a slot in the way the policy breaks it up.
    pub(super) async fn slot(&mut self, root: Hpa, range: GpaRange) {
        let Breaks::Chunks(chunk) = self.policy.breaks else {
            return self.range(root, range).await;
        };
        let mut at = range.start;
        while at < range.end() {
            let next = (at.raw() / chunk.0 + 1).saturating_mul(chunk.0).min(range.end().raw());
            let piece = GpaRange::new(at, mmu_core::Bytes(next - at.raw()));
            self.range(root, piece).await;
            at = piece.end();
            if at < range.end() && self.host.need_resched(LockId::MMU).await {
                self.host.unlock(LockId::MMU).await;
                self.host.reschedule().await;
                self.host.lock(LockId::MMU, self.lock.mode()).await;
            }
        }
    }

    /// Goes over all leaves of a range.
    pub(super) async fn range(&mut self, root: Hpa, range: GpaRange) {
        let host = self.host;
        let rules =
            WalkRules { yielding: self.yielding, flush_on_yield: FlushOnYield::IfPending, lock: self.lock.mode() };
        host.rcu_read_lock().await;
        let mut iter = TdpIter::new(*host.format(), root, Level::LAST, range.start, range.end());
        while iter.next(host).await {
            if cond_resched(host, &mut iter, rules, &mut self.debt).await {
                self.slices(root, &mut iter, rules).await;
                continue;
            }
            if self.below(&mut iter).await {
                continue;
            }
            self.entry(&mut iter).await;
        }
        host.rcu_read_unlock().await;
    }

    /// Goes over the leaves of a word of a bitmap: page i of it only where bit i is set (`clear_dirty_pt_masked`).
    pub(super) async fn masked(&mut self, root: Hpa, range: GpaRange, bits: u64) {
        let host = self.host;
        let granule = host.format().geometry().granule();
        let start = range.start;
        host.rcu_read_lock().await;
        let mut iter = TdpIter::new(*host.format(), root, Level::LAST, start, range.end());
        while iter.next(host).await {
            if iter.level > Level::LAST {
                // A huge page holds every page of the word: the first dirty one decides, the split does the rest.
                self.huge(&mut iter).await;
                continue;
            }
            let bit = (iter.gpa - start) >> granule.shift();
            let left = bits >> bit;
            let wanted = left & 1 != 0;
            let alike = if wanted { left.trailing_ones() } else { left.trailing_zeros() };
            iter.len = iter.len.min(u64::from(alike));
            if wanted {
                self.entry(&mut iter).await;
            } else {
                skip_run(host, &mut iter, check_each(self.yielding)).await;
            }
        }
        host.rcu_read_unlock().await;
    }

    /// A leaf above the last level, or an entry that maps nothing.
    async fn huge(&mut self, iter: &mut TdpIter<F>) {
        if iter.is_leaf() {
            self.entry(iter).await;
        } else if !iter.is_present() {
            skip_run(self.host, iter, check_each(self.yielding)).await;
        }
    }

    /// Goes through the time slices at once that the walk has left, where its leaves are alike.
    async fn slices(&mut self, root: Hpa, iter: &mut TdpIter<F>, rules: WalkRules) {
        if self.goes_one_by_one() {
            return;
        }
        let (format, gpa) = (*self.host.format(), iter.resumes_at());
        let top = format.geometry().root();
        let entry = self.host.peek(root + 8 * format.geometry().index(top, gpa.raw()) as u64).await;
        let (level, first) = self.first_below(top, entry, gpa).await;
        if level > Level::LAST || !format.is_mapped(first) {
            return;
        }
        let new = untracked(&format, self.policy.tracking, level, first);
        let (apply, owed) = new.map_or((Apply::Nothing, FlushDebt::Clean), |new| (mask(first, new), FlushDebt::Owed));
        let work = SliceWork::Leaves { apply, atomicity: Atomicity::Atomic, work: None };
        let n = slices(self.host, iter, rules, check_each(self.yielding), work, owed).await;
        if n > 0 && new.is_some() {
            self.done.leaves += n;
            if let Some(found) = &mut self.found {
                found.push(gpa.raw() >> format.geometry().granule().shift(), n);
            }
        }
    }

    /// The first leaf below an entry, or what is there instead, without a look at it that costs anything.
    async fn first_below(&self, mut level: Level, mut word: u64, gpa: Gpa) -> (Level, u64) {
        let (host, format) = (self.host, *self.host.format());
        while is_table(&format, level, word)
            && let Some(down) = level.down()
        {
            let index = format.geometry().index(down, gpa.raw()) as u64;
            word = host.peek(format.next_table(level, word) + 8 * index).await;
            level = down;
        }
        (level, word)
    }

    /// The leaves of whole tables, and of those below, at once where they are alike.
    async fn below(&mut self, iter: &mut TdpIter<F>) -> bool {
        let (host, format) = (self.host, *self.host.format());
        let len = iter.tables_ahead();
        if len == 0 || self.goes_one_by_one() {
            return false;
        }
        let (level, first) = self.first_below(iter.level, iter.old, iter.gpa).await;
        if !format.is_mapped(first) {
            return false;
        }
        let new = untracked(&format, self.policy.tracking, level, first);
        let apply = new.map_or(Apply::Nothing, |new| mask(first, new));
        let check = check_each(self.yielding);
        let run = RunBelow { at: iter.sptep, len, level: iter.level, apply, work: None, check };
        let tables = host.run_below(run).await;
        if tables == 0 {
            return false;
        }
        if new.is_some() {
            let geometry = format.geometry();
            let of = |size: u32| tables << (geometry.shift(iter.level) - size);
            self.changed(iter, of(geometry.shift(level)), of(geometry.granule().shift())).await;
        }
        iter.skip_below(tables);
        true
    }

    /// The current run of entries.
    async fn entry(&mut self, iter: &mut TdpIter<F>) {
        let (host, format) = (self.host, *self.host.format());
        let check = check_each(self.yielding);
        let new = if iter.is_leaf() { untracked(&format, self.policy.tracking, iter.level, iter.old) } else { None };
        let Some(new) = new else {
            return skip_run(host, iter, check).await;
        };
        if self.goes_one_by_one() {
            iter.len = 1;
        }
        let pages = |n: u64| n << (format.geometry().shift(iter.level) - format.geometry().granule().shift());
        let atomicity = match self.lock.mode() {
            LockMode::Read => Atomicity::IfStill(iter.old),
            LockMode::Write => Atomicity::Atomic,
        };
        let first = *iter;
        let most = pages(1);
        let n = bulk(host, iter, mask(first.old, new), atomicity, None, check).await;
        if n > 0 {
            return self.changed(&first, n, n * most).await;
        }
        self.done.raced += 1;
        if self.policy.race == LostRace::Retry {
            iter.retry();
        }
    }

    /// Whether something happens between one entry and the next.
    fn goes_one_by_one(&self) -> bool {
        self.policy.flush == HarvestFlush::EachEntry
    }

    /// Something was taken from `leaves` leaves, which hold `pages` pages.
    async fn changed(&mut self, first: &TdpIter<F>, leaves: u64, pages: u64) {
        if self.policy.flush == HarvestFlush::EachEntry {
            let bytes = self.host.format().geometry().page_size(first.level).bytes();
            let scope = FlushScope::Range { start: first.gpa, bytes, level: Some(first.level) };
            self.host.flush(Flush { scope, walk_caches: WalkCaches::Keep, reach: Reach::Everyone }).await;
        } else {
            self.debt = FlushDebt::Owed;
        }
        self.done.leaves += leaves;
        if let Some(found) = &mut self.found {
            found.push(first.gpa.raw() >> self.host.format().geometry().granule().shift(), pages);
        }
    }
}
