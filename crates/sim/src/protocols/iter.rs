//! `tdp_iter`: a resumable pre-order walk of a second-stage tree, delivering runs of entries.
//!
//! Models `arch/x86/kvm/mmu/tdp_iter.c` (Linux 5.12 and later). The iterator is a plain struct with a snapshot of the
//! current entries; the next ones are down, else side, else up. Its progress is measured in last-level frames:
//! `next_last_level_gfn` is the first frame not visited yet, and a walk yields at most once per such frame, which is
//! what keeps two contending walkers from undoing each other's progress (seed thread, January 2021).
//!
//! A run is a stretch of consecutive entries of one table whose words are in arithmetic progression. Working on a run
//! of n entries costs, yields and counts exactly like n single entries.
//!
//! Locking: the caller's `mmu_lock` in whatever mode, and an RCU section that must not be left while the iterator holds a table;
//! [`cond_resched`] gives both up and starts over from the root. Flush: the caller's; [`cond_resched`] pays what is owed before it gives way.
//! Frees nothing.

use mmu_core::{Flush, Format, Gpa, Hpa, Level};

use crate::engine::{
    Apply, Atomicity, EachLeaf, GiveWay, Host, LockId, LockMode, ReschedCheck, RestDone, RestOfTable, RunOp, SliceWork,
    Slices, Work,
};

/// When a walk gives the processor away.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Yield {
    /// Never.
    Never,
    /// Only after an entry was changed (up to 5.11; X02: sparse tables never yield).
    AfterWorkOnly,
    /// First thing in the loop, starting over at the entry just processed (X01: two walkers livelock).
    NoProgressRule,
    /// First thing in the loop, at most once per last-level frame (`yielded_gfn`).
    YieldedGfn,
    /// As [`Yield::YieldedGfn`], but the step after a restart also advances, past an entry that nobody has looked at (up to
    /// 5.15; X04, fixed by 3a0f64de479c).
    RestartAdvances,
}

/// Whether a yield flushes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlushOnYield {
    /// Every time (X03: needless flushes).
    Always,
    /// Only when something was zapped since the last flush.
    IfPending,
    /// Only when something was zapped, but after the RCU section has ended: unlinked tables can be freed while a processor still
    /// caches them (up to 5.17; X20, fixed by bd29677952fa).
    IfPendingAfterRcu,
}

/// Whether a flush is owed for what has been zapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "zapped entries are usable by vCPUs until they are flushed"]
pub enum FlushDebt {
    /// Nothing to flush.
    Clean,
    /// Zapped since the last flush.
    Owed,
}

impl FlushDebt {
    /// Both debts together.
    pub fn merge(self, other: FlushDebt) -> FlushDebt {
        if self == FlushDebt::Owed { self } else { other }
    }
}

/// The walk's state. `old` is the word read at `sptep`, the first of `len` entries in progression.
#[derive(Clone, Copy, Debug)]
pub struct TdpIter<F> {
    format: F,
    min_level: Level,
    end: Gpa,
    /// Start of the first last-level frame that has not been visited.
    next_last_level: Gpa,
    /// Value of `next_last_level` when the walk last yielded.
    yielded_at: Option<Gpa>,
    /// The walk has yielded since it moved last: tables may have gone.
    yielded: bool,
    /// After the restart the walk takes a step too (X04).
    advances: bool,
    /// The current entry is to be read again: a race for it was lost.
    again: bool,
    /// Yields since the walk reached a frame that it had not visited before.
    stalled: u32,
    /// Table per level.
    path: [Hpa; Level::MAX_LEVELS],
    /// Level of the current entry.
    pub level: Level,
    /// First guest-physical byte that the current entry covers.
    pub gpa: Gpa,
    /// Where the current entry is.
    pub sptep: Hpa,
    /// Its word as read.
    pub old: u64,
    /// Entries of this run, the current one included.
    pub len: u64,
    started: bool,
    /// What lies below the current entry has been visited.
    below_done: bool,
}

impl<F: Format> TdpIter<F> {
    /// A walk of `[start, end)` below `root`, visiting entries down to `min_level`.
    pub fn new(format: F, root: Hpa, min_level: Level, start: Gpa, end: Gpa) -> Self {
        let geometry = format.geometry();
        let root_level = geometry.root();
        let mut path = [Hpa::new(0); Level::MAX_LEVELS];
        path[root_level.index()] = root;
        let end = Gpa::new(end.raw().min(geometry.input_bytes()));
        let start = start.align_down(geometry.granule());
        Self {
            format,
            min_level,
            end,
            next_last_level: start,
            yielded_at: None,
            yielded: false,
            advances: false,
            again: false,
            stalled: 0,
            path,
            level: root_level,
            gpa: start.align_down(geometry.page_size(root_level)),
            sptep: Hpa::new(0),
            old: 0,
            len: 1,
            started: false,
            below_done: false,
        }
    }

    /// Whether the current entry is present.
    pub fn is_present(&self) -> bool {
        self.format.is_mapped(self.old)
    }

    /// Whether the current entry maps a page.
    pub fn is_leaf(&self) -> bool {
        self.is_present() && self.format.is_leaf(self.level, self.old)
    }

    /// Bytes that the current run covers.
    pub fn run_bytes(&self) -> u64 {
        self.len << self.format.geometry().shift(self.level)
    }

    /// Yields in a row without a frame that had not been visited before: a walk under the progress rule never has one.
    pub fn stalled(&self) -> u32 {
        self.stalled
    }

    /// Where the walk goes on after a yield: the first frame that has not been visited.
    pub(super) fn resumes_at(&self) -> Gpa {
        self.next_last_level
    }

    /// A race for the current entry was lost: the next step reads it again instead of moving on (the kernel's `goto retry`).
    pub fn retry(&mut self) {
        self.again = true;
    }

    /// The current entry has been replaced by `word`, which the walk descends into if it is a table.
    pub fn replaced(&mut self, word: u64) {
        self.take(1);
        self.old = word;
    }

    /// The caller gave lock and RCU section away on its own account: the next step starts over at the frame not visited yet.
    pub fn restart_next(&mut self) {
        self.yielded = true;
    }

    /// Moves to the next entries; false at the end of the range.
    pub async fn next(&mut self, host: &Host<F>) -> bool {
        if std::mem::take(&mut self.again) && !self.yielded {
            self.read(host).await;
            return true;
        }
        if !self.started || self.yielded {
            self.started = true;
            let found = self.restart(host).await;
            if !found || !std::mem::take(&mut self.advances) {
                return found;
            }
            // Past one entry, however many are like it.
            self.len = 1;
        }
        if self.try_step_down(host).await {
            return true;
        }
        loop {
            if self.try_step_side(host).await {
                return true;
            }
            if self.level >= self.format.geometry().root() || self.past_end() {
                return false;
            }
            self.level = self.level.up();
            self.gpa = self.gpa.align_down(self.format.geometry().page_size(self.level));
            self.len = 1;
        }
    }

    /// Starts over from the root at the first frame that has not been visited: every table but the root may have gone.
    async fn restart(&mut self, host: &Host<F>) -> bool {
        self.yielded = false;
        let geometry = *self.format.geometry();
        self.level = geometry.root();
        self.gpa = self.next_last_level.align_down(geometry.page_size(self.level));
        if self.next_last_level >= self.end {
            return false;
        }
        self.read(host).await;
        true
    }

    /// Reads the current entry and how far its run goes inside its table and the range.
    async fn read(&mut self, host: &Host<F>) {
        let geometry = *self.format.geometry();
        let index = geometry.index(self.level, self.gpa.raw()) as u64;
        self.sptep = self.path[self.level.index()] + 8 * index;
        let page = geometry.page_size(self.level);
        let in_table = geometry.entries(self.level) as u64 - index;
        let in_range = self.end.raw().saturating_sub(self.gpa.raw()).div_ceil(page.bytes());
        // A partly covered entry is the range's business alone.
        let whole = self.gpa.raw() >= self.next_last_level.align_down(geometry.granule()).raw();
        let max = if whole { in_table.min(in_range).max(1) } else { 1 };
        let run = if self.level > self.min_level {
            host.read_leaf_run(self.sptep, max).await
        } else {
            host.read_run(self.sptep, max).await
        };
        self.old = run.first;
        // Two words are always a progression: leaves are alike only if nothing but their address differs.
        let leaf = self.format.is_mapped(run.first) && self.format.is_leaf(self.level, run.first);
        let alike = !leaf || run.step == page.bytes();
        self.len = if alike && !self.descends(run.first) { run.len } else { 1 };
        self.next_last_level = Gpa::new(self.next_last_level.raw().max(self.gpa.raw()));
    }

    /// Whether the walk goes below this entry.
    fn descends(&self, word: u64) -> bool {
        self.level > self.min_level && self.format.is_mapped(word) && !self.format.is_leaf(self.level, word)
    }

    async fn try_step_down(&mut self, host: &Host<F>) -> bool {
        if std::mem::take(&mut self.below_done) || !self.descends(self.old) {
            return false;
        }
        // Re-read, so that a table that was unlinked meanwhile is never entered.
        self.old = host.read(self.sptep).await;
        if !self.descends(self.old) {
            return false;
        }
        let geometry = *self.format.geometry();
        let child = self.format.next_table(self.level, self.old);
        let Some(down) = self.level.down() else { return false };
        self.level = down;
        self.path[down.index()] = child;
        self.gpa = self.next_last_level.align_down(geometry.page_size(down));
        self.read(host).await;
        true
    }

    async fn try_step_side(&mut self, host: &Host<F>) -> bool {
        let geometry = *self.format.geometry();
        let page = geometry.page_size(self.level);
        let next = Gpa::new(self.gpa.raw().saturating_add(self.len << page.shift()));
        let last_of_table = geometry.index(self.level, next.raw()) == 0;
        self.next_last_level = Gpa::new(self.next_last_level.raw().max(next.raw()));
        if last_of_table || next >= self.end {
            self.gpa = Gpa::new(next.raw() - 1);
            return false;
        }
        self.gpa = next;
        self.read(host).await;
        true
    }

    /// Table entries from the current one on whose whole stretch is still to be visited: what [`Host::run_below`] may be asked to do at once. None where the
    /// walk has just yielded: the first leaf behind that is not asked whether to yield again, which is a walk over single entries.
    pub fn tables_ahead(&self) -> u64 {
        let geometry = self.format.geometry();
        let begins = self.next_last_level == self.gpa && self.yielded_at != Some(self.gpa);
        if !begins || !self.descends(self.old) {
            return 0;
        }
        let page = geometry.page_size(self.level);
        let in_table = (geometry.entries(self.level) - geometry.index(self.level, self.gpa.raw())) as u64;
        in_table.min((self.end - self.gpa) / page.bytes())
    }

    /// What lies below the first `n` table entries from here has been dealt with: the walk goes on behind them.
    pub fn skip_below(&mut self, n: u64) {
        let page = self.format.geometry().page_size(self.level);
        self.gpa += (n - 1) << page.shift();
        self.sptep += 8 * (n - 1);
        self.next_last_level = self.gpa + page.bytes();
        self.below_done = true;
    }

    /// Entries of this table behind the current run whose addresses the walk is to visit.
    fn entries_behind(&self) -> u64 {
        let geometry = self.format.geometry();
        let page = geometry.page_size(self.level).bytes();
        let index = geometry.index(self.level, self.gpa.raw()) as u64 + self.len;
        let in_range = self.end.raw().saturating_sub(self.gpa.raw() + self.len * page).div_ceil(page);
        (geometry.entries(self.level) as u64).saturating_sub(index).min(in_range)
    }

    /// The first `n` entries behind the current run have been dealt with too: the walk stands on the last of them.
    fn skip_behind(&mut self, n: u64) {
        self.len += n;
        self.take(self.len);
    }

    fn past_end(&self) -> bool {
        self.next_last_level >= self.end
    }

    /// The first `n` entries of the run have been dealt with: the walk stands on the last of them, where a walk over
    /// single entries would.
    pub fn take(&mut self, n: u64) {
        let last = n.clamp(1, self.len) - 1;
        self.gpa += last << self.format.geometry().shift(self.level);
        self.sptep += 8 * last;
        self.len = 1;
        self.next_last_level = self.next_last_level.max(self.gpa);
    }
}

/// The rules of one walk: what it may do between entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WalkRules {
    /// When it yields.
    pub yielding: Yield,
    /// Whether yielding flushes.
    pub flush_on_yield: FlushOnYield,
    /// How `mmu_lock` is held.
    pub lock: LockMode,
}

/// `tdp_mmu_iter_cond_resched`: gives the lock and the processor away when somebody wants them; true when it did, and then
/// the caller continues its loop. What was owed is flushed before the RCU section ends.
pub async fn cond_resched<F: Format>(
    host: &Host<F>,
    iter: &mut TdpIter<F>,
    rules: WalkRules,
    debt: &mut FlushDebt,
) -> bool {
    match rules.yielding {
        Yield::Never => return false,
        Yield::YieldedGfn | Yield::RestartAdvances if iter.yielded_at == Some(iter.next_last_level) => return false,
        Yield::YieldedGfn | Yield::RestartAdvances | Yield::NoProgressRule | Yield::AfterWorkOnly => {}
    }
    let wanted = host.give_way(LockId::MMU).await;
    if wanted == GiveWay::No {
        return false;
    }
    let flush = rules.flush_on_yield == FlushOnYield::Always || *debt == FlushDebt::Owed;
    let late = rules.flush_on_yield == FlushOnYield::IfPendingAfterRcu;
    if flush && !late {
        host.flush_vm().await;
    }
    host.rcu_read_unlock().await;
    if flush && late {
        host.flush_vm().await;
    }
    *debt = FlushDebt::Clean;
    host.unlock(LockId::MMU).await;
    // `cond_resched_rwlock_*`: the processor is given away only if that is due, not for the lock's sake.
    match wanted {
        GiveWay::Processor => host.reschedule().await,
        GiveWay::Lock | GiveWay::No => host.spend(Work::Relax).await,
    }
    host.lock(LockId::MMU, rules.lock).await;
    host.rcu_read_lock().await;
    iter.stalled = if iter.yielded_at == Some(iter.next_last_level) { iter.stalled + 1 } else { 0 };
    iter.yielded_at = Some(iter.next_last_level);
    iter.yielded = true;
    iter.advances = rules.yielding == Yield::RestartAdvances;
    true
}

/// Goes through many time slices of a walk that has just yielded, where they are alike and nobody else has anything to do: each does `work` to as many
/// entries as it gets to, and owes `owed` for them at its end. The walk has just yielded again when this returns. How many entries.
pub async fn slices<F: Format>(
    host: &Host<F>,
    iter: &mut TdpIter<F>,
    rules: WalkRules,
    check: ReschedCheck,
    work: SliceWork,
    owed: FlushDebt,
) -> u64 {
    // A loop that asks first gets past an entry in each slice by the rule of progress alone.
    match (check, rules.yielding) {
        (ReschedCheck::EachEntry, Yield::YieldedGfn) | (ReschedCheck::BehindEach, Yield::AfterWorkOnly) => {}
        _ => return 0,
    }
    let flush = match (rules.flush_on_yield, owed) {
        (FlushOnYield::IfPending | FlushOnYield::IfPendingAfterRcu, FlushDebt::Clean) => None,
        (FlushOnYield::Always, _) | (FlushOnYield::IfPending, FlushDebt::Owed) => Some(Flush::EVERYTHING),
        (FlushOnYield::IfPendingAfterRcu, FlushDebt::Owed) => return 0,
    };
    let root = iter.path[iter.format.geometry().root().index()];
    let (start, end, level, lock) = (iter.next_last_level, iter.end, iter.min_level, rules.lock);
    let n = host.slices(Slices { root, start, end, level, work, check, flush, lock }).await;
    if n > 0 {
        iter.next_last_level += n << iter.format.geometry().shift(level);
        iter.yielded_at = Some(iter.next_last_level);
    }
    n
}

/// Whether a loop that begins with [`cond_resched`] asks before each entry of a run.
pub fn check_each(yielding: Yield) -> ReschedCheck {
    match yielding {
        Yield::Never => ReschedCheck::Never,
        Yield::AfterWorkOnly | Yield::NoProgressRule | Yield::YieldedGfn | Yield::RestartAdvances => {
            ReschedCheck::EachEntry
        }
    }
}

/// Moves on over the current run without touching it.
pub async fn skip_run<F: Format>(host: &Host<F>, iter: &mut TdpIter<F>, check: ReschedCheck) {
    bulk(host, iter, Apply::Nothing, Atomicity::Plain, None, check).await;
}

/// Passes over entries that need no work, the first of which has been read; how many, as far as nothing else has to happen first. For loops without an
/// iterator.
pub(super) async fn pass_over<F: Format>(host: &Host<F>, at: Hpa, len: u64) -> u64 {
    if len == 1 {
        return 1;
    }
    let (apply, atomicity) = (Apply::Nothing, Atomicity::Plain);
    host.run(RunOp { at, len, apply, atomicity, work: None, check: ReschedCheck::Never }).await
}

/// Deals with the entries behind the current one, up to the end of its table or of the range and as far as nothing else has to happen first, as
/// the loop would deal with them one by one: leaves are worked on, entries that map nothing passed over.
pub async fn rest_of_table<F: Format>(
    host: &Host<F>,
    iter: &mut TdpIter<F>,
    leaf: EachLeaf,
    check: ReschedCheck,
) -> RestDone {
    let (at, len) = (iter.sptep + 8 * iter.len, iter.entries_behind());
    if len == 0 {
        return RestDone::default();
    }
    let done = host.rest_of_table(RestOfTable { at, len, level: iter.level, leaf, check }).await;
    iter.skip_behind(done.entries);
    done
}

/// Does the same to each entry of the current run, as far as nothing else has to happen first; the rest stays for the next
/// step.
pub async fn bulk<F: Format>(
    host: &Host<F>,
    iter: &mut TdpIter<F>,
    apply: Apply,
    atomicity: Atomicity,
    work: Option<Work>,
    check: ReschedCheck,
) -> u64 {
    if iter.len == 1 && apply == Apply::Nothing {
        return 1;
    }
    let run = RunOp { at: iter.sptep, len: iter.len, apply, atomicity, work, check };
    let n = host.run(run).await;
    iter.take(n);
    n
}
