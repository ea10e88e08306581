//! Host pages: who owns them, what is known of their use, and when they are free.
//!
//! A page is owned by its mapping and by references (`get_page`). It is free when the mapping is gone and the last reference was put
//! back. Its accessed and dirty state is what zapped second-stage entries hand over.

use mmu_core::{Hpa, HpaRange, PageSize};

use super::spans::{Span, Spans};

/// Whether freed pages are handed out again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub enum PageReuse {
    /// Never: a use after free cannot hide behind reuse.
    #[default]
    Quarantine,
    /// The page freed last goes out first, as from a per-processor list.
    Lifo,
}

/// What an entry that went away knew about its page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PageState {
    /// Read or written since the flag was cleared last.
    pub accessed: Flag,
    /// Written since then.
    pub dirty: Flag,
}

/// What entries that went away knew about consecutive pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Known {
    pub(crate) start: u64,
    pub(crate) len: u64,
    pub(crate) state: PageState,
}

/// Whether pages' states were taken over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Marked {
    All,
    /// State of one of them came too late, and none was.
    None,
}

/// What a zapped second-stage entry tells the primary MMU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Handover {
    /// Accessed and dirty state (up to Linux 6.12).
    #[default]
    AccessedAndDirty,
    /// Dirty state only (66bc627e7fee, 6.13; X46: idle tracking takes zapped pages for idle).
    Dirty,
}

/// A flag of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Flag {
    /// Not set.
    #[default]
    Clear,
    /// Set.
    Set,
}

impl From<bool> for Flag {
    fn from(set: bool) -> Flag {
        if set { Flag::Set } else { Flag::Clear }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct HostPages {
    next: u64,
    reuse: PageReuse,
    /// Freed and not handed out again.
    freed: Spans<()>,
    /// Freed stretches, the latest last; only with reuse.
    free_list: Vec<(u64, u64)>,
    freed_bytes: u64,
    /// References beyond the mapping's own.
    refs: Spans<u64>,
    /// Without a mapping, kept by references.
    orphans: Spans<()>,
    accessed: Spans<()>,
    dirty: Spans<()>,
}

impl HostPages {
    pub(crate) fn new(first: Hpa) -> Self {
        Self { next: first.raw(), ..Self::default() }
    }

    pub(crate) fn set_reuse(&mut self, reuse: PageReuse) {
        self.reuse = reuse;
    }

    // ---- allocation ----

    /// Consecutive pages of `bytes` bytes, aligned.
    pub(crate) fn alloc(&mut self, bytes: u64, align: PageSize) -> u64 {
        if let Some(host) = self.recycle(bytes, align) {
            return host;
        }
        let host = self.next.next_multiple_of(align.bytes());
        self.next = host + bytes;
        host
    }

    fn recycle(&mut self, bytes: u64, align: PageSize) -> Option<u64> {
        let fits = |&(start, len): &(u64, u64)| start.is_multiple_of(align.bytes()) && len >= bytes;
        let found = self.free_list.iter().rposition(fits)?;
        let (start, len) = self.free_list[found];
        match len - bytes {
            0 => drop(self.free_list.remove(found)),
            left => self.free_list[found] = (start + bytes, left),
        }
        self.freed.remove(start, bytes);
        Some(start)
    }

    /// The mapping of these pages is gone. What is free now, for want of references.
    pub(crate) fn unmapped(&mut self, start: u64, len: u64) -> Vec<HpaRange> {
        self.orphans.set(start, len, ());
        self.free_orphans(start, len)
    }

    /// `get_page`
    pub(crate) fn get(&mut self, range: HpaRange) {
        self.refs.count(range.start.raw(), range.bytes.0, 1);
    }

    /// `put_page`: what is free now, or `None` when somebody puts back what was not taken.
    pub(crate) fn put(&mut self, range: HpaRange) -> Option<Vec<HpaRange>> {
        let (start, len) = (range.start.raw(), range.bytes.0);
        if !self.refs.covers(start, len) {
            return None;
        }
        self.refs.count(start, len, -1);
        Some(self.free_orphans(start, len))
    }

    /// References to a page beyond its mapping's own.
    pub(crate) fn references(&self, at: u64) -> u64 {
        self.refs.get(at).unwrap_or(0)
    }

    /// Whether somebody holds a reference to any of these pages.
    pub(crate) fn is_held(&self, start: u64, len: u64) -> bool {
        !self.refs.is_free(start, len)
    }

    /// The stretches of these pages that somebody holds.
    pub(crate) fn held_parts(&self, start: u64, len: u64) -> Vec<Span<u64>> {
        self.refs.parts(start, len).collect()
    }

    /// Bytes on which anybody holds a reference.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.refs.parts(0, u64::MAX).map(|span| span.len).sum()
    }

    fn free_orphans(&mut self, start: u64, len: u64) -> Vec<HpaRange> {
        let mut freed = Vec::new();
        for orphan in self.orphans.parts(start, len).collect::<Vec<_>>() {
            let mut at = orphan.start;
            let held: Vec<_> = self.refs.parts(orphan.start, orphan.len).map(|span| (span.start, span.end())).collect();
            for (from, to) in held.into_iter().chain([(orphan.end(), orphan.end())]) {
                if from > at {
                    freed.push(super::hpa_range(at, from - at));
                }
                at = to;
            }
        }
        for range in &freed {
            self.free(range.start.raw(), range.bytes.0);
        }
        freed
    }

    fn free(&mut self, start: u64, len: u64) {
        self.orphans.remove(start, len);
        self.accessed.remove(start, len);
        self.dirty.remove(start, len);
        self.freed.set(start, len, ());
        self.freed_bytes += len;
        if self.reuse == PageReuse::Lifo {
            self.free_list.push((start, len));
        }
    }

    pub(crate) fn is_freed(&self, at: u64) -> bool {
        self.freed.get(at).is_some()
    }

    pub(crate) fn freed_in(&self, start: u64, len: u64) -> Option<u64> {
        self.freed.parts(start, len).next().map(|span| span.start)
    }

    pub(crate) fn freed_bytes(&self) -> u64 {
        self.freed_bytes
    }

    // ---- state ----

    /// Takes over what an entry knew. The first freed page among them, if any: state must not come that late.
    pub(crate) fn mark(&mut self, start: u64, len: u64, state: PageState) -> Option<u64> {
        let late = self.freed_in(start, len);
        if late.is_none() {
            for (set, flag) in [(&mut self.accessed, state.accessed), (&mut self.dirty, state.dirty)] {
                if flag == Flag::Set {
                    set.cover(start, len);
                }
            }
        }
        late
    }

    /// Takes over what many entries knew, unless one of their pages is free.
    pub(crate) fn mark_all(&mut self, known: &[Known]) -> Marked {
        let mut stretches = consecutive(known);
        if stretches.any(|pages| self.freed_in(pages[0].start, bytes_of(pages)).is_some()) {
            return Marked::None;
        }
        for pages in consecutive(known) {
            let (start, len) = (pages[0].start, bytes_of(pages));
            self.accessed.cover_all(start, len, with(pages, |state| state.accessed));
            self.dirty.cover_all(start, len, with(pages, |state| state.dirty));
        }
        Marked::All
    }

    /// What is known of a page.
    pub(crate) fn state(&self, at: u64) -> PageState {
        PageState { accessed: self.accessed.get(at).is_some().into(), dirty: self.dirty.get(at).is_some().into() }
    }

    /// Clears the accessed flag; bytes that had it.
    pub(crate) fn take_accessed(&mut self, start: u64, len: u64) -> u64 {
        self.accessed.remove(start, len).iter().map(|span| span.len).sum()
    }

    pub(crate) fn dirty_bytes(&self, start: u64, len: u64) -> u64 {
        self.dirty.bytes_in(start, len)
    }

    pub(crate) fn accessed_bytes(&self, start: u64, len: u64) -> u64 {
        self.accessed.bytes_in(start, len)
    }

    /// Where the accessed flag is next set from `start` on.
    pub(crate) fn next_accessed(&self, start: u64, len: u64) -> Option<(u64, u64)> {
        self.accessed.parts(start, len).next().map(|span| (span.start, span.len))
    }

    /// The copy of a page knows what the page knew.
    pub(crate) fn copy_state(&mut self, from: u64, to: u64, len: u64) {
        for set in [&mut self.accessed, &mut self.dirty] {
            for span in set.parts(from, len).collect::<Vec<_>>() {
                set.set(to + (span.start - from), span.len, ());
            }
        }
    }
}

/// Stretches of consecutive pages.
fn consecutive(known: &[Known]) -> impl Iterator<Item = &[Known]> {
    known.chunk_by(|one, next| one.start + one.len == next.start)
}

fn bytes_of(pages: &[Known]) -> u64 {
    pages.iter().map(|known| known.len).sum()
}

/// Where consecutive pages have a flag.
fn with(pages: &[Known], flag: impl Fn(PageState) -> Flag + Copy) -> impl Iterator<Item = (u64, u64)> {
    let alike = pages.chunk_by(move |one, next| flag(one.state) == flag(next.state));
    alike.filter(move |pages| flag(pages[0].state) == Flag::Set).map(|pages| (pages[0].start, bytes_of(pages)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mmu_core::Bytes;

    const PAGE: u64 = 0x1000;

    fn range(start: u64, len: u64) -> HpaRange {
        HpaRange::new(Hpa::new(start), Bytes(len))
    }

    #[test]
    fn a_referenced_page_outlives_its_mapping() {
        let mut pages = HostPages::new(Hpa::new(0));
        let host = pages.alloc(4 * PAGE, PageSize::SIZE_4K);
        pages.get(range(host + PAGE, PAGE));
        assert_eq!(pages.unmapped(host, 4 * PAGE), [range(host, PAGE), range(host + 2 * PAGE, 2 * PAGE)]);
        assert!(!pages.is_freed(host + PAGE));
        assert_eq!(pages.put(range(host + PAGE, PAGE)), Some(vec![range(host + PAGE, PAGE)]));
        assert_eq!(pages.put(range(host + PAGE, PAGE)), None, "put back twice");
        assert_eq!(pages.freed_bytes(), 4 * PAGE);
    }

    #[test]
    fn quarantine_never_and_lifo_at_once() {
        for (reuse, again) in [(PageReuse::Quarantine, false), (PageReuse::Lifo, true)] {
            let mut pages = HostPages::new(Hpa::new(0));
            pages.set_reuse(reuse);
            let first = pages.alloc(PAGE, PageSize::SIZE_4K);
            pages.unmapped(first, PAGE);
            assert!(pages.is_freed(first));
            assert_eq!(pages.alloc(PAGE, PageSize::SIZE_4K) == first, again);
            assert_eq!(pages.is_freed(first), !again);
        }
    }

    #[test]
    fn state_is_kept_and_must_not_come_late() {
        let mut pages = HostPages::new(Hpa::new(0));
        let host = pages.alloc(2 * PAGE, PageSize::SIZE_4K);
        let dirty = PageState { accessed: Flag::Clear, dirty: Flag::Set };
        assert_eq!(pages.mark(host, PAGE, dirty), None);
        assert_eq!((pages.state(host), pages.state(host + PAGE)), (dirty, PageState::default()));
        pages.unmapped(host, PAGE);
        assert_eq!(pages.mark(host, 2 * PAGE, dirty), Some(host));
        assert_eq!(pages.state(host + PAGE), PageState::default(), "late state is not half taken");
    }

    #[test]
    fn many_states_at_once_are_each_one_by_one() {
        let known = |page: u64, state: u64| {
            let flag = |bit: u64| Flag::from(state >> bit & 1 != 0);
            let state = PageState { accessed: flag(0), dirty: flag(1) };
            Known { start: page * PAGE, len: PAGE, state }
        };
        // Two stretches of pages, the second one in front of the first, in all states and after some were marked.
        let pages: Vec<Known> = (500..600).chain(20..150).map(|page| known(page, page * page / 3 % 4)).collect();
        for before in [vec![], vec![known(33, 3), known(149, 1), known(599, 2), known(600, 3)]] {
            let (mut all, mut each) = (HostPages::default(), HostPages::default());
            for Known { start, len, state } in before {
                all.mark(start, len, state);
                each.mark(start, len, state);
            }
            assert_eq!(all.mark_all(&pages), Marked::All);
            for &Known { start, len, state } in &pages {
                assert_eq!(each.mark(start, len, state), None);
            }
            assert_eq!(all, each);
            all.unmapped(70 * PAGE, PAGE);
            let kept = all.clone();
            assert_eq!((all.mark_all(&pages), all == kept), (Marked::None, true), "a page is free");
        }
    }
}
