//! Reclaim: who calls the aging notifiers, how often, and for how many pages.
//!
//! | scan | models | notifier calls |
//! | --- | --- | --- |
//! | [`Scan::Rmap`] | `folio_referenced_one` on each page of a list (the two-list LRU, idle page tracking) | `clear_flush_young` per page |
//! | [`Scan::LookAround`] | `lru_gen_look_around` with the seed's bitmap: a young page's neighbours are aged with it | one per old page, one more per young one |
//! | [`Scan::Walk`] | the page-table walk of a generation (`lru_gen` `run_aging`, as 6.13 consults KVM in it) | one `test_clear_young` per batch |
//!
//! Locking and flush are those of the notifiers; a scan holds nothing between calls and can be preempted there. Of the primary MMU's own side a
//! call costs what is around it ([`Work::NotifierCall`]); its accessed flags, its page-table lock and its lists are not modelled: all pages of the range
//! are candidates, in order of address.
//!
//! Frees nothing: what is found old is freed by [`primary::reclaim`](super::primary::reclaim).

use mmu_core::{Bytes, Cycles, Format, Gpa, GpaRange};
use serde::{Deserialize, Serialize};

use super::aging::{Aged, AgingPolicy, clear_flush_young, clear_young, page_at, test_clear_young};
use super::young::{Clear, Convention, YoungBitmap};
use crate::engine::{Host, LockId, Var, Work};

/// How a scan gets at pages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scan {
    /// One page at a time.
    Rmap,
    /// One page at a time; around a young one so many pages at once (`MIN_LRU_BATCH`, 64), which are no candidates any more.
    LookAround {
        /// Pages of a window.
        pages: u64,
    },
    /// All pages, so many per call.
    Walk {
        /// Pages of a call.
        batch: u64,
    },
}

/// `MIN_LRU_BATCH` on 64-bit processors.
pub const LOOK_AROUND: Scan = Scan::LookAround { pages: 64 };

/// What one scan did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Scanned {
    /// Pages that the scan has dealt with.
    pub pages: u64,
    /// Notifier calls.
    pub calls: u64,
    /// What those did.
    pub aged: Aged,
    /// How long it took.
    pub time: Cycles,
}

impl Scanned {
    /// Both scans together.
    pub fn merge(&mut self, other: &Scanned) {
        self.pages += other.pages;
        self.calls += other.calls;
        self.aged.merge(&other.aged);
        self.time += other.time;
    }
}

/// Scans the pages of `young`'s range once, sets the bits of those that were young, and makes them old. Ends early when `until` is given
/// and has become zero.
pub async fn scan<F: Format>(
    host: &Host<F>,
    young: &mut YoungBitmap,
    scan: Scan,
    policy: &AgingPolicy,
    until: Option<Var>,
) -> Scanned {
    let begun = host.now().await;
    let range = young.range();
    let page = host.format().geometry().granule().bytes();
    let mut scanned = Scanned::default();
    let mut at = range.start;
    let mut asked = 0;
    while at < range.end() {
        // The question costs a load: it is asked now and then.
        if let Some(until) = until
            && scanned.pages >= asked
        {
            asked = scanned.pages + ASK_EVERY;
            if host.load(until).await == 0 {
                break;
            }
        }
        let next = match scan {
            Scan::Rmap => one(host, at, young, policy, &mut scanned).await,
            Scan::LookAround { pages } => look_around(host, at, pages.max(1), young, policy, &mut scanned).await,
            Scan::Walk { batch } => walk(host, at, batch.max(1) * page, young, policy, &mut scanned).await,
        };
        scanned.pages += (next.min(range.end()) - at).div_ceil(page);
        at = next;
        // `cond_resched` of reclaim; its own locks are its own business.
        if host.need_resched(LockId::SLOTS).await {
            host.reschedule().await;
        }
    }
    scanned.time = host.now().await.since(begun);
    scanned
}

/// Pages between two looks at whether the scan should end.
const ASK_EVERY: u64 = 64;

/// One page by `clear_flush_young`.
async fn one<F: Format>(
    host: &Host<F>,
    at: Gpa,
    young: &mut YoungBitmap,
    policy: &AgingPolicy,
    scanned: &mut Scanned,
) -> Gpa {
    let range = page_at(host.format(), at);
    let aged = clear_flush_young(host, range, policy).await;
    called(host, &aged).await;
    scanned.calls += 1;
    scanned.aged.merge(&aged);
    if aged.young > 0 {
        young.set(range.start);
    }
    range.end()
}

/// One page, and if it is young the window of `pages` around it, inside the range.
async fn look_around<F: Format>(
    host: &Host<F>,
    at: Gpa,
    pages: u64,
    young: &mut YoungBitmap,
    policy: &AgingPolicy,
    scanned: &mut Scanned,
) -> Gpa {
    let page = young.page().bytes();
    let before = scanned.aged.young;
    let next = one(host, at, young, policy, scanned).await;
    if scanned.aged.young == before {
        return next;
    }
    // Centred; what lies before has been dealt with.
    let start = Gpa::new(at.raw().saturating_sub(pages / 2 * page)).max(young.range().start);
    let window = GpaRange::between(start, (start + pages * page).min(young.range().end()));
    batch(host, window, young, policy, scanned).await;
    window.end().max(next)
}

/// The next `bytes`, by one call.
async fn walk<F: Format>(
    host: &Host<F>,
    at: Gpa,
    bytes: u64,
    young: &mut YoungBitmap,
    policy: &AgingPolicy,
    scanned: &mut Scanned,
) -> Gpa {
    let range = GpaRange::new(at, Bytes(bytes)).intersection(young.range());
    let Some(range) = range else { return at + bytes };
    batch(host, range, young, policy, scanned).await;
    range.end()
}

/// `test_clear_young` of a window, all of which is asked about.
async fn batch<F: Format>(
    host: &Host<F>,
    window: GpaRange,
    young: &mut YoungBitmap,
    policy: &AgingPolicy,
    scanned: &mut Scanned,
) {
    let mut asked = YoungBitmap::asking_for_all(window, young.page(), Convention::V1);
    let (_, aged) = test_clear_young(host, &mut asked, Clear::Clear, policy).await;
    called(host, &aged).await;
    scanned.calls += 1;
    scanned.aged.merge(&aged);
    if aged.young > 0 {
        young.join_zeroes(&asked);
    }
}

/// The primary MMU's share of a call. It makes one for pages that it maps only, which are taken to be those that the guest has.
async fn called<F: Format>(host: &Host<F>, aged: &Aged) {
    if aged.leaves > 0 {
        host.spend(Work::NotifierCall).await;
    }
}

/// One pass over a whole range in a single call, without telling which pages were young: what a generation's walk costs when nothing
/// asks for more, at the speed of runs.
pub async fn pass<F: Format>(host: &Host<F>, range: GpaRange, policy: &AgingPolicy) -> Scanned {
    let begun = host.now().await;
    let aged = clear_young(host, range, policy).await;
    let page = host.format().geometry().granule().bytes();
    Scanned { pages: range.bytes.0.div_ceil(page), calls: 1, aged, time: host.now().await.since(begun) }
}
