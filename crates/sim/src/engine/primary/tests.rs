//! The primary MMU by stretches against one that keeps every page by itself.

use std::collections::{BTreeMap, BTreeSet};

use mmu_core::{Bytes, Hpa, HpaRange, Hva, HvaRange, PageSize};
use proptest::prelude::*;

use super::*;

const PAGE: u64 = 4096;
/// Huge pages of four, so that a test meets their edges often.
const HUGE: u64 = 4;
const PAGES: u64 = 64;

fn huge() -> PageSize {
    PageSize::from_shift(14).unwrap()
}

fn range(page: u64, pages: u64) -> HvaRange {
    HvaRange::new(Hva::new(page * PAGE), Bytes(pages * PAGE))
}

/// Base pages, then transparent huge pages, then hugetlbfs.
fn mm() -> PrimaryMmu {
    let mut mm = PrimaryMmu::new(Hpa::new(1 << 30), PageSize::SIZE_4K);
    let vma = |backing| Vma { backing, ..Vma::default() };
    mm.map(range(0, 24), vma(BackingKind::Small));
    mm.map(range(24, 24), vma(BackingKind::Thp(huge())));
    mm.map(range(48, 16), vma(BackingKind::Hugetlb(huge())));
    mm
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Slow {
    Present(u64),
    Swapped,
}

/// One entry per page.
#[derive(Default)]
struct Model {
    ptes: BTreeMap<u64, Slow>,
    refs: BTreeMap<u64, u64>,
    orphans: BTreeSet<u64>,
    freed: BTreeSet<u64>,
    accessed: BTreeSet<u64>,
    dirty: BTreeSet<u64>,
}

impl Model {
    /// Pages of hugetlbfs go whole or not at all.
    fn whole(page: u64, pages: u64) -> std::ops::Range<u64> {
        let (mut from, mut to) = (page, page + pages);
        if from >= 48 {
            from = from.next_multiple_of(HUGE);
        }
        if to > 48 {
            to -= to % HUGE;
        }
        from..to.max(from)
    }

    fn drop_host(&mut self, host: u64) {
        if self.refs.contains_key(&host) {
            self.orphans.insert(host);
        } else {
            self.free(host);
        }
    }

    fn free(&mut self, host: u64) {
        self.accessed.remove(&host);
        self.dirty.remove(&host);
        assert!(self.freed.insert(host), "freed once");
    }

    fn unmap(&mut self, page: u64, pages: u64, how: Unmapping) {
        for page in Self::whole(page, pages) {
            let old = match how {
                Unmapping::Discard => self.ptes.remove(&page),
                Unmapping::Swap if self.ptes.contains_key(&page) => self.ptes.insert(page, Slow::Swapped),
                Unmapping::Swap => None,
            };
            if let Some(Slow::Present(host)) = old {
                self.drop_host(host);
            }
        }
    }

    /// A page that came from the real one, where the model expects a new one.
    fn adopt(&mut self, page: u64, host: u64) {
        let known = self.ptes.values().any(|&slow| slow == Slow::Present(host)) || self.orphans.contains(&host);
        assert!(!known && !self.freed.contains(&host), "a new page is nobody's");
        self.ptes.insert(page, Slow::Present(host));
    }
}

fn host_of(mm: &PrimaryMmu, page: u64) -> Option<u64> {
    mm.lookup(Hva::new(page * PAGE)).map(Hpa::raw)
}

fn fault(mm: &mut PrimaryMmu, model: &mut Model, page: u64) {
    let before = model.ptes.get(&page).copied();
    let found = mm.fault(Hva::new(page * PAGE), HostAccess::Write).unwrap();
    match (before, found) {
        (Some(Slow::Present(host)), Fault::Page { host: got, backed, .. }) => {
            assert_eq!((host, Backed::Before), (got, backed));
        }
        (Some(Slow::Swapped), Fault::Swapped(_)) => {
            mm.bring(Hva::new(page * PAGE));
            let block = page / HUGE * HUGE;
            let rest_free = (block..block + HUGE).all(|other| other == page || !model.ptes.contains_key(&other));
            let filled = if page >= 24 && rest_free { block..block + HUGE } else { page..page + 1 };
            for page in filled {
                model.adopt(page, host_of(mm, page).unwrap());
            }
        }
        (None, Fault::Page { backed: Backed::Now, .. }) => {
            let block = page / HUGE * HUGE;
            let fits = page >= 24 && (block..block + HUGE).all(|other| !model.ptes.contains_key(&other));
            for page in if fits { block..block + HUGE } else { page..page + 1 } {
                model.adopt(page, host_of(mm, page).unwrap());
            }
        }
        (before, found) => panic!("page {page}: {before:?} but {found:?}"),
    }
}

fn migrate(mm: &mut PrimaryMmu, model: &mut Model, page: u64, pages: u64, how: Migration) {
    mm.move_begin(range(page, pages));
    let whole = Model::whole(page, pages);
    let present: Vec<u64> = whole.filter(|page| matches!(model.ptes.get(page), Some(Slow::Present(_)))).collect();
    assert!(present.iter().all(|&page| host_of(mm, page).is_none()), "nobody finds a page on its way");
    let (_, freed) = mm.move_finish(range(page, pages), how);
    let mut gone = BTreeSet::new();
    for &page in &present {
        let Some(Slow::Present(old)) = model.ptes.get(&page).copied() else { continue };
        let new = host_of(mm, page).unwrap();
        if new == old {
            continue;
        }
        for set in [&mut model.accessed, &mut model.dirty] {
            if set.contains(&old) {
                set.insert(new);
            }
        }
        model.adopt(page, new);
        model.drop_host(old);
        gone.insert(old);
    }
    if how == Migration::Collapse && !gone.is_empty() {
        for page in page..page + pages {
            if !present.contains(&page) {
                let new = host_of(mm, page).expect("holes are filled");
                model.ptes.remove(&page);
                model.adopt(page, new);
            }
        }
    }
    assert_eq!(freed.iter().map(|range| range.bytes.0).sum::<u64>(), gone.len() as u64 * PAGE);
}

fn compare(mm: &PrimaryMmu, model: &Model) {
    for page in 0..PAGES {
        let hva = Hva::new(page * PAGE);
        match model.ptes.get(&page) {
            Some(&Slow::Present(host)) => {
                assert_eq!(host_of(mm, page), Some(host), "page {page}");
                let state = PageState {
                    accessed: model.accessed.contains(&host).into(),
                    dirty: model.dirty.contains(&host).into(),
                };
                assert_eq!(mm.page_state(Hpa::new(host)), state, "page {page}");
                assert_eq!(mm.off_limits(Hpa::new(host)), None);
                let (size, _) = mm.mapping(hva).unwrap();
                let block = hva.align_down(size).raw() / PAGE;
                let alike = (0..size.bytes() / PAGE)
                    .all(|i| host_of(mm, block + i) == Some(host - (page - block) * PAGE + i * PAGE));
                assert!(alike, "a page of {size} at {hva} is one stretch");
            }
            Some(Slow::Swapped) => assert!(mm.is_swapped(hva)),
            None => assert_eq!((host_of(mm, page), mm.is_swapped(hva)), (None, false)),
        }
    }
    for &host in &model.freed {
        assert_eq!(mm.off_limits(Hpa::new(host)), Some(OffLimits::Freed));
    }
    assert_eq!(mm.freed_bytes(), Bytes(model.freed.len() as u64 * PAGE));
    assert_eq!(mm.held_bytes(), Bytes(model.refs.len() as u64 * PAGE));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn agrees_with_a_page_by_page_model(ops in prop::collection::vec((0u8..10, 0u64..PAGES, 1u64..12), 1..60)) {
        let (mut mm, mut model) = (mm(), Model::default());
        for (what, page, pages) in ops {
            let pages = pages.min(PAGES - page);
            let host = host_of(&mm, page);
            match (what, host) {
                (0..=2, _) => fault(&mut mm, &mut model, page),
                (3, _) => {
                    mm.unmap(range(page, pages), Unmapping::Discard);
                    model.unmap(page, pages, Unmapping::Discard);
                }
                (4, _) => {
                    mm.unmap(range(page, pages), Unmapping::Swap);
                    model.unmap(page, pages, Unmapping::Swap);
                }
                (5, _) => migrate(&mut mm, &mut model, page, pages, Migration::Each),
                (6, _) if (24..48).contains(&page) => {
                    migrate(&mut mm, &mut model, page / HUGE * HUGE, HUGE, Migration::Collapse);
                }
                (7, Some(host)) => {
                    let state = PageState { accessed: Flag::Set, dirty: (pages % 2 == 0).into() };
                    prop_assert_eq!(mm.pages.mark(host, PAGE, state), None);
                    model.accessed.insert(host);
                    if pages % 2 == 0 {
                        model.dirty.insert(host);
                    }
                }
                (8, Some(host)) => {
                    mm.pages.get(HpaRange::new(Hpa::new(host), Bytes(PAGE)));
                    *model.refs.entry(host).or_default() += 1;
                }
                (9, _) => {
                    let held = model.refs.keys().nth(page as usize % model.refs.len().max(1)).copied();
                    let Some(host) = held else { continue };
                    let freed = mm.pages.put(HpaRange::new(Hpa::new(host), Bytes(PAGE))).unwrap();
                    let left = model.refs[&host] - 1;
                    if left > 0 {
                        model.refs.insert(host, left);
                    } else {
                        model.refs.remove(&host);
                    }
                    let goes = left == 0 && model.orphans.remove(&host);
                    prop_assert_eq!(freed.len(), usize::from(goes));
                    if goes {
                        model.free(host);
                    }
                }
                _ => continue,
            }
            compare(&mm, &model);
        }
    }
}

#[test]
fn a_terabyte_stays_a_handful_of_stretches() {
    let mut mm = PrimaryMmu::new(Hpa::new(1 << 32), PageSize::SIZE_4K);
    let all = HvaRange::new(Hva::new(1 << 46), Bytes(1 << 40));
    mm.map(all, Vma::default());
    let host = mm.populate(all, PageSize::SIZE_1G, PageSize::SIZE_4K);
    let dirty = PageState { accessed: Flag::Set, dirty: Flag::Set };
    assert_eq!(mm.pages.mark(host.raw(), 1 << 40, dirty), None);
    assert_eq!(mm.used_bytes(all), (Bytes(1 << 40), Bytes(1 << 40)));
    let hole = HvaRange::new(all.start + (1 << 30), Bytes(1 << 20));
    let done = mm.unmap(hole, Unmapping::Discard);
    assert_eq!((done.entries, done.dirty, done.freed.len()), (256, 1 << 20, 1));
    assert_eq!(mm.stretches(), 2);
    assert_eq!(mm.used_bytes(all), (Bytes((1 << 40) - (1 << 20)), Bytes((1 << 40) - (1 << 20))));
}

#[test]
fn protection_is_lost_at_once_and_given_back_by_a_fault() {
    let mut mm = mm();
    let at = Hva::new(26 * PAGE);
    assert!(matches!(mm.fault(at, HostAccess::Write), Ok(Fault::Page { backed: Backed::Now, .. })));
    assert_eq!(mm.mapping(at), Some((huge(), Protection::ReadWrite)));
    assert_eq!(mm.protect(range(24, 24), Protection::Read), 1, "one huge entry");
    assert_eq!(mm.mapping(at), Some((huge(), Protection::Read)));
    assert_eq!(mm.fault(at, HostAccess::Write), Err(HvaError::Protection(at)));
    mm.protect(range(24, 24), Protection::ReadWrite);
    assert_eq!(mm.mapping(at), Some((huge(), Protection::Read)), "not before somebody writes");
    assert!(mm.fault(at, HostAccess::Write).is_ok());
    assert_eq!(mm.mapping(at), Some((huge(), Protection::ReadWrite)));
    assert_eq!(mm.fault(Hva::new(200 * PAGE), HostAccess::Read), Err(HvaError::NoVma(Hva::new(200 * PAGE))));
}

#[test]
fn a_user_fault_waits_for_its_handler() {
    let mut mm = mm();
    let delay = Cycles(5000);
    mm.map(range(0, 4), Vma { userfault: Userfault::Missing(delay), ..Vma::default() });
    assert_eq!(mm.fault(Hva::new(PAGE), HostAccess::Read), Ok(Fault::User(delay)));
    assert_eq!(mm.bring(Hva::new(PAGE)), Some(PageSize::SIZE_4K));
    assert_eq!(mm.bring(Hva::new(PAGE)), None, "the second handler finds it there");
    assert!(matches!(mm.fault(Hva::new(PAGE), HostAccess::Read), Ok(Fault::Page { backed: Backed::Before, .. })));
}

#[test]
fn a_scan_keeps_what_was_used_once() {
    let mut mm = mm();
    for page in 0..4 {
        assert!(mm.fault(Hva::new(page * PAGE), HostAccess::Write).is_ok());
    }
    let used = host_of(&mm, 2).unwrap();
    mm.pages.mark(used, PAGE, PageState { accessed: Flag::Set, dirty: Flag::Clear });
    assert_eq!(mm.rescan(range(0, 4)), Rescan::Old(range(0, 2)));
    assert_eq!(mm.rescan(range(2, 2)), Rescan::Used(range(2, 1)));
    assert_eq!(mm.rescan(range(2, 2)), Rescan::Old(range(2, 2)), "the flag is gone");
    assert_eq!(mm.rescan(range(30, 2)), Rescan::Done);
}
