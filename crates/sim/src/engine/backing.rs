//! The primary MMU's side: which host page backs which guest page, and which host pages have been freed.

use std::collections::BTreeMap;

use mmu_core::{Bytes, Gpa, GpaRange, Hpa, HpaRange, PageSize};

use super::stretches::Stretches;

/// Backing pages of a guest. Freed pages are never handed out again, so a use after free cannot hide behind reuse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// guest-physical start -> (bytes, host-physical start)
    map: BTreeMap<u64, (u64, u64)>,
    freed: Stretches,
    next: u64,
    freed_bytes: u64,
}

impl Backing {
    /// Nothing backed; pages will come from `first` on.
    pub fn new(first: Hpa) -> Self {
        Self { map: BTreeMap::new(), freed: Stretches::default(), next: first.raw(), freed_bytes: 0 }
    }

    /// Backs `[start, start + bytes)` by consecutive host pages, aligned as the guest addresses are to `align`.
    pub fn populate(&mut self, start: Gpa, bytes: u64, align: PageSize) -> Hpa {
        let host = self.take(bytes, align);
        self.map.insert(start.raw(), (bytes, host));
        Hpa::new(host)
    }

    fn take(&mut self, bytes: u64, align: PageSize) -> u64 {
        let host = self.next.next_multiple_of(align.bytes());
        self.next = host + bytes;
        host
    }

    /// The host page of `size` that backs the guest page at `gpa`, allocated on first use. A page that is backed in part
    /// keeps what it has: the address is the backing of `gpa` itself.
    pub fn resolve(&mut self, gpa: Gpa, size: PageSize) -> (Hpa, Backed) {
        if let Some(host) = self.lookup(gpa) {
            return (host, Backed::Before);
        }
        let page = gpa.align_down(size);
        let free = self.map.range(page.raw()..page.raw().saturating_add(size.bytes())).next().is_none()
            && self.lookup(page).is_none();
        let (page, bytes) = if free { (page, size) } else { (gpa.align_down(PageSize::SIZE_4K), PageSize::SIZE_4K) };
        let host = self.take(bytes.bytes(), bytes);
        self.map.insert(page.raw(), (bytes.bytes(), host));
        (Hpa::new(host + (gpa.raw() - page.raw())), Backed::Now)
    }

    /// The host address behind `gpa`, if any.
    pub fn lookup(&self, gpa: Gpa) -> Option<Hpa> {
        let (&start, &(bytes, host)) = self.map.range(..=gpa.raw()).next_back()?;
        let offset = gpa.raw() - start;
        (offset < bytes).then(|| Hpa::new(host + offset))
    }

    /// The host stretches behind a range, as far as there are any.
    pub fn stretches(&self, range: GpaRange) -> Vec<HpaRange> {
        let (from, to) = (range.start.raw(), range.end().raw());
        let before = self.map.range(..from).next_back();
        let all = before.into_iter().chain(self.map.range(from..to));
        let cut = all.filter_map(|(&at, &(len, host))| {
            let (first, last) = (from.max(at), to.min(at + len));
            (first < last).then(|| HpaRange::new(Hpa::new(host + (first - at)), Bytes(last - first)))
        });
        cut.collect()
    }

    /// Whether `[gpa, gpa + size)` is backed by one aligned host page of that size.
    pub fn is_huge(&self, gpa: Gpa, size: PageSize) -> bool {
        let page = gpa.align_down(size);
        let Some((&start, &(bytes, host))) = self.map.range(..=page.raw()).next_back() else { return false };
        let offset = page.raw() - start;
        offset < bytes && bytes - offset >= size.bytes() && (host + offset).is_multiple_of(size.bytes())
    }

    /// The largest size up to `most` in which `gpa` is backed by one aligned stretch of host memory; 4 KiB where nothing is.
    pub fn largest_page(&self, gpa: Gpa, most: PageSize) -> PageSize {
        let sizes = (13..=most.shift()).rev().filter_map(PageSize::from_shift);
        sizes.into_iter().find(|&size| self.is_huge(gpa, size)).unwrap_or(PageSize::SIZE_4K)
    }

    /// Frees what backs `[start, start + bytes)`; the host stretches that are free now.
    pub fn drop_range(&mut self, start: Gpa, bytes: u64) -> Vec<(Hpa, u64)> {
        let (from, to) = (start.raw(), start.raw().saturating_add(bytes));
        let mut hit: Vec<u64> = self.map.range(from..to).map(|(&at, _)| at).collect();
        if let Some((&before, &(len, _))) = self.map.range(..from).next_back()
            && before + len > from
        {
            hit.insert(0, before);
        }
        let mut freed = Vec::new();
        for at in hit {
            let Some((len, host)) = self.map.remove(&at) else { continue };
            let (cut_from, cut_to) = (from.max(at), to.min(at + len));
            if cut_from > at {
                self.map.insert(at, (cut_from - at, host));
            }
            if at + len > cut_to {
                self.map.insert(cut_to, (at + len - cut_to, host + (cut_to - at)));
            }
            let stretch = (host + (cut_from - at), cut_to - cut_from);
            self.freed.insert(stretch.0, stretch.1);
            self.freed_bytes += stretch.1;
            freed.push((Hpa::new(stretch.0), stretch.1));
        }
        freed
    }

    /// The first freed address in `bytes` bytes of host memory from `host` on.
    pub fn first_freed(&self, host: Hpa, bytes: u64) -> Option<Hpa> {
        self.freed.first_in(host.raw(), bytes).map(Hpa::new)
    }

    /// Whether this host page was freed.
    pub fn is_freed(&self, host: Hpa) -> bool {
        self.freed.contains(host.raw())
    }

    /// Bytes freed so far.
    pub fn freed_bytes(&self) -> u64 {
        self.freed_bytes
    }
}

/// Whether a page had been backed before it was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backed {
    /// It had.
    Before,
    /// It has been allocated, and zeroed, just now.
    Now,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn dropped_pages_come_back_elsewhere() {
        let mut backing = Backing::new(Hpa::new(0x1000_0000));
        backing.populate(Gpa::new(0), 1 << 30, PageSize::SIZE_1G);
        let before = backing.lookup(Gpa::new(0x20_1000)).unwrap();
        let freed = backing.drop_range(Gpa::new(0x20_0000), 0x20_0000);
        assert_eq!(freed.iter().map(|&(_, bytes)| bytes).sum::<u64>(), 0x20_0000);
        assert!(backing.is_freed(before));
        let (after, backed) = backing.resolve(Gpa::new(0x20_1000), PageSize::SIZE_4K);
        assert_ne!((after, backed), (before, Backed::Before));
        assert!(!backing.is_freed(after));
        assert!(backing.is_huge(Gpa::new(0x40_0000), PageSize::SIZE_2M));
        assert!(!backing.is_huge(Gpa::new(0x20_0000), PageSize::SIZE_2M));
    }

    proptest! {
        #[test]
        fn agrees_with_a_page_by_page_model(ops in prop::collection::vec((any::<bool>(), 0u64..64, 1u64..16), 1..60)) {
            let mut backing = Backing::new(Hpa::new(1 << 30));
            let mut model: BTreeMap<u64, u64> = BTreeMap::new();
            let mut freed = std::collections::BTreeSet::new();
            for (resolve, page, count) in ops {
                if resolve {
                    let (host, _) = backing.resolve(Gpa::new(page << 12), PageSize::SIZE_4K);
                    let known = *model.entry(page).or_insert(host.raw());
                    prop_assert_eq!(known, host.raw());
                    prop_assert!(!freed.contains(&known));
                } else {
                    backing.drop_range(Gpa::new(page << 12), count << 12);
                    for gone in page..page + count {
                        freed.extend(model.remove(&gone));
                    }
                }
                for page in 0..80 {
                    let known = model.get(&page).copied().map(Hpa::new);
                    prop_assert_eq!(backing.lookup(Gpa::new(page << 12)), known);
                }
                prop_assert!(freed.iter().all(|&host| backing.is_freed(Hpa::new(host))));
            }
        }
    }
}
