//! What nobody may reach: pages under invalidation, and who says that it maps them.
//!
//! This is the checker's knowledge, not the kernel's: protocols announce what they do, and nothing they do depends on it.

use std::collections::BTreeMap;

use mmu_core::{Hpa, HpaRange};

/// Why nobody may reach a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OffLimits {
    /// It is free.
    Freed,
    /// An invalidation's start has returned, and its end has not come.
    Invalidating,
    /// There is no page: the mapping is valid and empty.
    Empty,
    /// It is another page than the one at the address it was cached for.
    Misplaced,
}

impl std::fmt::Display for OffLimits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            OffLimits::Freed => "free",
            OffLimits::Invalidating => "between the start and the end of an invalidation",
            OffLimits::Empty => "no page at all",
            OffLimits::Misplaced => "not the page of its address",
        })
    }
}

#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct Limits {
    /// Invalidations whose start has returned, by number.
    windows: BTreeMap<u64, Vec<HpaRange>>,
    next: u64,
    /// Mappings outside the second stage that are valid, by number.
    cached: BTreeMap<u64, HpaRange>,
}

impl Limits {
    pub(crate) fn begin(&mut self, pages: Vec<HpaRange>) -> u64 {
        self.next += 1;
        self.windows.insert(self.next, pages);
        self.next
    }

    pub(crate) fn end(&mut self, window: u64) {
        self.windows.remove(&window);
    }

    pub(crate) fn invalidating(&self, at: Hpa) -> Option<OffLimits> {
        let inside = self.windows.values().flatten().any(|range| range.contains(at));
        inside.then_some(OffLimits::Invalidating)
    }

    /// A mapping outside the second stage became valid, or is valid no more.
    pub(crate) fn cache(&mut self, id: u64, page: Option<HpaRange>) {
        match page {
            Some(page) => drop(self.cached.insert(id, page)),
            None => drop(self.cached.remove(&id)),
        }
    }

    /// Valid mappings outside the second stage of any of these pages.
    pub(crate) fn cached_in(&self, pages: HpaRange) -> impl Iterator<Item = (u64, Hpa)> + '_ {
        let hit = move |(&id, page): (&u64, &HpaRange)| page.intersection(pages).map(|both| (id, both.start));
        self.cached.iter().filter_map(hit)
    }
}
