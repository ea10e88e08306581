//! The primary MMU: the address space of the process that owns the guest, and the host pages behind it.
//!
//! Memslots say which host-virtual addresses stand for guest memory; mappings (VMAs) say what may be done there and what backs it; the
//! process's page table says which host page is there now. Everything is kept by stretches, so a terabyte mapped at once is one entry,
//! and an operation costs as many entries as it meets.
//!
//! What may be going on around a change is the notifier's affair (`protocols::notifier`); this is the change itself. The checker asks
//! here which pages nobody may reach: those that are free, and those between the return of an invalidation's start and its end.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `spans` | the interval map |
//! | `vma` | mappings, page-table entries |
//! | `pages` | ownership, accessed and dirty state, reuse |
//! | `slots` | memslots in versions |
//! | `limits` | what nobody may reach |
//! | `op` | the operations that actors ask for, and their costs |

mod limits;
mod op;
mod pages;
mod slots;
mod spans;
#[cfg(test)]
mod tests;
mod vma;

use mmu_core::{Bytes, Cycles, Hpa, HpaRange, Hva, HvaRange, PageSize};

use limits::Limits;
pub use limits::OffLimits;
pub use op::{Faulted, Migration, Moved, PrimaryOp, Reference, Rescan, Resolved, SlotPiece, SlotsOp, Unmapping};
pub use pages::{Flag, Handover, PageReuse, PageState};
pub(crate) use pages::{HostPages, Known, Marked};
pub use slots::{Memslot, Memslots, SlotChange, SlotFlags, SlotId, SlotsVersion};
use spans::{Span, Spans};
use vma::Pte;
pub use vma::{BackingKind, HostAccess, HvaError, Protection, Userfault, Vma};

pub(crate) fn hpa_range(start: u64, len: u64) -> HpaRange {
    HpaRange::new(Hpa::new(start), Bytes(len))
}

/// Whether a page had been there before it was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backed {
    /// It had.
    Before,
    /// It has been allocated, and zeroed, just now.
    Now,
}

/// Whether somebody holds references to pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Held {
    Yes,
    No,
}

/// What a fault of the process finds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    Page {
        host: u64,
        size: PageSize,
        protection: Protection,
        backed: Backed,
    },
    /// A migration entry.
    Moving,
    /// The page must be read from swap first, which takes so long.
    Swapped(Cycles),
    /// A handler in user space decides.
    User(Cycles),
}

/// What an unmapping did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unmapped {
    /// Pages that are free now.
    pub(crate) freed: Vec<HpaRange>,
    /// Page-table entries cleared.
    pub(crate) entries: u64,
    /// Bytes that were dirty.
    pub(crate) dirty: u64,
}

/// The primary MMU of one process.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct PrimaryMmu {
    base: PageSize,
    vmas: Spans<Vma>,
    ptes: Spans<Pte>,
    pages: HostPages,
    limits: Limits,
    swap_in: Cycles,
}

impl PrimaryMmu {
    /// An empty address space with base pages of `base`; host pages come from `first` on.
    pub fn new(first: Hpa, base: PageSize) -> Self {
        Self {
            base,
            vmas: Spans::default(),
            ptes: Spans::default(),
            pages: HostPages::new(first),
            limits: Limits::default(),
            swap_in: Self::SWAP_IN,
        }
    }

    /// How long a page takes from swap unless told otherwise: some 40 microseconds of a fast disk at 2.5 GHz. A guess; no sheet has it.
    pub const SWAP_IN: Cycles = Cycles(100_000);

    /// Sets how long a page takes from swap.
    pub fn set_swap_latency(&mut self, latency: Cycles) {
        self.swap_in = latency;
    }

    /// Size of base pages.
    pub fn base_page(&self) -> PageSize {
        self.base
    }

    /// Chooses whether freed pages are handed out again.
    pub fn set_reuse(&mut self, reuse: PageReuse) {
        self.pages.set_reuse(reuse);
    }

    // ---- mappings ----

    /// `mmap`: a mapping over whatever was there. Nothing is backed yet.
    pub fn map(&mut self, range: HvaRange, vma: Vma) {
        self.vmas.set(range.start.raw(), range.bytes.0, vma);
    }

    /// Backs a range by consecutive host pages aligned to `align`, mapped by entries of `size`, before the run begins.
    pub fn populate(&mut self, range: HvaRange, align: PageSize, size: PageSize) -> Hpa {
        let host = self.pages.alloc(range.bytes.0, align);
        let pte = Pte::Present { host, size, protection: Protection::ReadWrite };
        self.ptes.set(range.start.raw(), range.bytes.0, pte);
        Hpa::new(host)
    }

    /// The mapping at an address, if any.
    pub fn vma(&self, at: Hva) -> Option<Vma> {
        self.vmas.get(at.raw())
    }

    /// `mprotect`: entries lose what the mapping loses; what it gains they get by the next fault. Page-table entries touched.
    pub(crate) fn protect(&mut self, range: HvaRange, protection: Protection) -> u64 {
        let (start, len) = (range.start.raw(), range.bytes.0);
        self.vmas.update(start, len, |part| Some(Vma { protection, ..part.value }));
        let entries = self.entries_in(start, len);
        self.ptes.update(start, len, |part| {
            Some(match part.value {
                Pte::Present { host, size, protection: had } => {
                    Pte::Present { host, size, protection: had.min(protection) }
                }
                other => other,
            })
        });
        entries
    }

    // ---- faults ----

    /// A fault of the process at an address: finds the page, or allocates it.
    ///
    /// # Errors
    /// When nothing is mapped there, or the mapping forbids the access.
    pub(crate) fn fault(&mut self, at: Hva, access: HostAccess) -> Result<Fault, HvaError> {
        let vma = self.vma(at).ok_or(HvaError::NoVma(at))?;
        if !vma.protection.allows(access) {
            return Err(HvaError::Protection(at));
        }
        match self.ptes.get(at.raw()) {
            Some(Pte::Present { host, size, protection }) => {
                let protection = if protection.allows(access) { protection } else { self.allow(at, size, vma) };
                Ok(Fault::Page { host, size: self.usable_size(at), protection, backed: Backed::Before })
            }
            Some(Pte::Moving { .. }) => Ok(Fault::Moving),
            Some(Pte::Swapped) => Ok(Fault::Swapped(self.swap_in)),
            None => match vma.userfault.delay() {
                Some(delay) => Ok(Fault::User(delay)),
                None => Ok(self.allocate(at, vma)),
            },
        }
    }

    /// The whole entry allows what its mapping allows.
    fn allow(&mut self, at: Hva, size: PageSize, vma: Vma) -> Protection {
        let page = at.align_down(size).raw();
        self.ptes.update(page, size.bytes(), |part| {
            Some(match part.value {
                Pte::Present { host, size, .. } => Pte::Present { host, size, protection: vma.protection },
                other => other,
            })
        });
        vma.protection
    }

    /// The largest page, up to the entries' size, by which an address may be mapped: all of it is one stretch, and host and process
    /// addresses run alike that far.
    fn usable_size(&self, at: Hva) -> PageSize {
        let Some(span) = self.ptes.around(at.raw()) else { return self.base };
        let Pte::Present { host, size, .. } = span.value else { return self.base };
        let fits = |size: &PageSize| {
            let block = at.align_down(*size).raw();
            block >= span.start
                && block + size.bytes() <= span.end()
                && (span.start ^ host).is_multiple_of(size.bytes())
        };
        let sizes = (self.base.shift()..=size.shift()).rev().filter_map(PageSize::from_shift);
        sizes.into_iter().find(fits).unwrap_or(self.base)
    }

    /// Allocates the page for an address that has none: as large as the mapping wants, where it fits.
    pub(crate) fn allocate(&mut self, at: Hva, vma: Vma) -> Fault {
        let wanted = match vma.backing {
            BackingKind::Small => self.base,
            BackingKind::Thp(size) | BackingKind::Hugetlb(size) => size,
        };
        let page = at.align_down(wanted).raw();
        let whole =
            self.vmas.parts(page, wanted.bytes()).filter(|part| part.value == vma).map(|part| part.len).sum::<u64>();
        let fits = wanted.bytes() == whole && self.ptes.is_free(page, wanted.bytes());
        let size = if fits { wanted } else { self.base };
        let page = at.align_down(size);
        let host = self.pages.alloc(size.bytes(), size);
        let protection = vma.protection;
        self.ptes.set(page.raw(), size.bytes(), Pte::Present { host, size, protection });
        Fault::Page { host: host + (at - page), size, protection, backed: Backed::Now }
    }

    /// Swap or a user-space handler has brought the page of this address; nothing happens when somebody else was faster.
    pub(crate) fn bring(&mut self, at: Hva) -> Option<PageSize> {
        let vma = self.vma(at)?;
        if self.ptes.get(at.raw()) == Some(Pte::Swapped) {
            let page = at.align_down(self.base).raw();
            self.ptes.remove(page, self.base.bytes());
        }
        if self.ptes.get(at.raw()).is_some() {
            return None;
        }
        match self.allocate(at, vma) {
            Fault::Page { size, .. } => Some(size),
            Fault::Moving | Fault::Swapped(_) | Fault::User(_) => None,
        }
    }

    // ---- taking pages away ----

    /// A range, with the rest of the huge pages that it covers in part.
    pub(crate) fn whole_mappings(&self, range: HvaRange) -> HvaRange {
        let huge = |at: Hva| match self.usable_size(at) {
            size if size > self.base => size.bytes(),
            _ => 1,
        };
        let (start, end) = (range.start.raw(), range.end().raw());
        let start = start - start % huge(range.start);
        let end = end.next_multiple_of(huge(Hva::new(end.saturating_sub(1))));
        HvaRange::between(Hva::new(start), Hva::new(end))
    }

    /// A range without the pages of hugetlbfs that it covers in part.
    fn whole_pages(&self, range: HvaRange) -> HvaRange {
        let hugetlb = |at: Hva| match self.vma(at).map(|vma| vma.backing) {
            Some(BackingKind::Hugetlb(size)) => size.bytes(),
            _ => 1,
        };
        let start = range.start.raw().next_multiple_of(hugetlb(range.start));
        let end = range.end().raw();
        let end = end - end % hugetlb(Hva::new(end.saturating_sub(1)));
        HvaRange::between(Hva::new(start), Hva::new(end))
    }

    /// Takes the entries of a range away. Their pages go to swap, or nowhere.
    pub(crate) fn unmap(&mut self, range: HvaRange, how: Unmapping) -> Unmapped {
        let range = self.whole_pages(range);
        let mut done = Unmapped { entries: self.entries_in(range.start.raw(), range.bytes.0), ..Unmapped::default() };
        for part in self.ptes.remove(range.start.raw(), range.bytes.0) {
            let (Pte::Present { host, .. } | Pte::Moving { host, .. }) = part.value else {
                // What was in swap stays there, or goes with the mapping.
                self.keep_swapped(part, how);
                continue;
            };
            done.dirty += self.pages.dirty_bytes(host, part.len);
            done.freed.extend(self.pages.unmapped(host, part.len));
            self.keep_swapped(part, how);
        }
        done
    }

    fn keep_swapped(&mut self, part: Span<Pte>, how: Unmapping) {
        if how == Unmapping::Swap {
            self.ptes.set(part.start, part.len, Pte::Swapped);
        }
    }

    /// Page-table entries of mapped pages in a range.
    fn entries_in(&self, start: u64, len: u64) -> u64 {
        let entries = self.ptes.parts(start, len).map(|part| match part.value {
            Pte::Present { size, .. } | Pte::Moving { size, .. } => part.len.div_ceil(size.bytes()),
            Pte::Swapped => 0,
        });
        entries.sum()
    }

    // ---- moving pages ----

    /// Migration entries for the pages of a range: from now on nobody finds them. Bytes on their way.
    pub(crate) fn move_begin(&mut self, range: HvaRange) -> u64 {
        let range = self.whole_pages(range);
        let mut bytes = 0;
        for part in self.ptes.parts(range.start.raw(), range.bytes.0).collect::<Vec<_>>() {
            if let Pte::Present { host, size, .. } = part.value {
                self.ptes.set(part.start, part.len, Pte::Moving { host, size });
                bytes += part.len;
            }
        }
        bytes
    }

    /// The pages that are on their way arrive: as new pages of the same sizes, or as one of `Migration::Collapse`'s. Pages that
    /// somebody holds a reference to stay where they were; nothing becomes one page where a page was faulted in meanwhile, which the range's
    /// invalidation knew nothing of (khugepaged holds `mmap_lock`, so that there is none).
    pub(crate) fn move_finish(&mut self, range: HvaRange, how: Migration) -> (Moved, Vec<HpaRange>) {
        let (start, len) = (range.start.raw(), range.bytes.0);
        let moving: Vec<Span<Pte>> =
            self.ptes.parts(start, len).filter(|part| matches!(part.value, Pte::Moving { .. })).collect();
        let held = moving
            .iter()
            .any(|part| matches!(part.value, Pte::Moving { host, .. } if self.pages.is_held(host, part.len)));
        let came = self.ptes.parts(start, len).any(|part| matches!(part.value, Pte::Present { .. }));
        let mut moved = Moved::default();
        let mut freed = Vec::new();
        let huge = match how {
            Migration::Collapse if !held && !came && !moving.is_empty() => {
                Some(self.pages.alloc(len, self.size_of(len)))
            }
            _ => None,
        };
        if let Some(host) = huge {
            let protection = self.vma(range.start).unwrap_or_default().protection;
            self.ptes.remove(start, len);
            self.ptes.set(start, len, Pte::Present { host, size: self.size_of(len), protection });
        }
        for (part, keeps) in moving.into_iter().flat_map(|part| self.by_holders(part)).collect::<Vec<_>>() {
            let Pte::Moving { host, size } = part.value else { continue };
            if keeps == Held::Yes || (how == Migration::Collapse && huge.is_none()) {
                self.arrive(part, host, size);
                moved.failed.0 += part.len;
                continue;
            }
            let to = match huge {
                Some(huge) => huge + (part.start - start),
                None => self.pages.alloc(part.len, size),
            };
            self.pages.copy_state(host, to, part.len);
            if huge.is_none() {
                self.arrive(part, to, size);
            }
            freed.extend(self.pages.unmapped(host, part.len));
            moved.moved.0 += part.len;
        }
        (moved, freed)
    }

    /// Cuts a stretch where pages that somebody holds begin and end; a huge page is held as a whole.
    fn by_holders(&self, part: Span<Pte>) -> Vec<(Span<Pte>, Held)> {
        let (Pte::Present { host, size, .. } | Pte::Moving { host, size }) = part.value else { return Vec::new() };
        let (mut cut, mut at) = (Vec::new(), part.start);
        let mut push = |at: &mut u64, to: u64, held| {
            cut.extend(part.clip(*at, to).map(|piece| (piece, held)));
            *at = to.max(*at);
        };
        for held in self.pages.held_parts(host, part.len) {
            let here = |host_at: u64| part.start + (host_at - host);
            push(&mut at, here(held.start) & !(size.bytes() - 1), Held::No);
            push(&mut at, here(held.end()).next_multiple_of(size.bytes()).min(part.end()), Held::Yes);
        }
        push(&mut at, part.end(), Held::No);
        cut
    }

    fn arrive(&mut self, part: Span<Pte>, host: u64, size: PageSize) {
        let protection = self.vma(Hva::new(part.start)).unwrap_or_default().protection;
        self.ptes.set(part.start, part.len, Pte::Present { host, size, protection });
    }

    /// The size of a huge page of so many bytes, or of base pages where that is no size.
    fn size_of(&self, len: u64) -> PageSize {
        let size = len.is_power_of_two().then(|| PageSize::from_shift(len.trailing_zeros())).flatten();
        size.unwrap_or(self.base)
    }

    /// Another page takes the place of one (copy on write, or a page merged by KSM): the new page, and what is free now.
    pub(crate) fn replace(&mut self, at: Hva, protection: Protection) -> Option<(Hpa, Vec<HpaRange>)> {
        let page = HvaRange::new(at.align_down(self.base), self.base.into());
        let Some(Pte::Present { host: old, .. }) = self.ptes.get(page.start.raw()) else { return None };
        let new = self.pages.alloc(self.base.bytes(), self.base);
        self.pages.copy_state(old, new, self.base.bytes());
        self.ptes.set(page.start.raw(), self.base.bytes(), Pte::Present { host: new, size: self.base, protection });
        Some((Hpa::new(new), self.pages.unmapped(old, self.base.bytes())))
    }

    // ---- reclaim ----

    /// One step of a reclaim scan of `range`: the first pages that are mapped and not held are old and may go, or were used, lose
    /// the flag and stay.
    pub(crate) fn rescan(&mut self, range: HvaRange) -> Rescan {
        let (start, len) = (range.start.raw(), range.bytes.0);
        let mapped = self.ptes.parts(start, len).filter(|part| matches!(part.value, Pte::Present { .. }));
        let mut free = mapped.flat_map(|part| self.by_holders(part)).filter(|(_, held)| *held == Held::No);
        let Some((part, Pte::Present { host, .. })) = free.next().map(|(part, _)| (part, part.value)) else {
            return Rescan::Done;
        };
        let used = self.pages.next_accessed(host, part.len);
        let here = |offset: u64, len: u64| HvaRange::new(Hva::new(part.start + offset), Bytes(len));
        match used {
            Some((at, len)) if at == host => {
                self.pages.take_accessed(host, len);
                Rescan::Used(here(0, len))
            }
            Some((at, _)) => Rescan::Old(here(0, at - host)),
            None => Rescan::Old(here(0, part.len)),
        }
    }

    // ---- looking ----

    /// The host address behind `at`, if it is mapped now.
    pub fn lookup(&self, at: Hva) -> Option<Hpa> {
        match self.ptes.get(at.raw()) {
            Some(Pte::Present { host, .. }) => Some(Hpa::new(host)),
            _ => None,
        }
    }

    /// The largest page by which `at` may be mapped, and what its entry allows.
    pub fn mapping(&self, at: Hva) -> Option<(PageSize, Protection)> {
        match self.ptes.get(at.raw()) {
            Some(Pte::Present { protection, .. }) => Some((self.usable_size(at), protection)),
            _ => None,
        }
    }

    /// Whether the page of `at` is in swap.
    pub fn is_swapped(&self, at: Hva) -> bool {
        self.ptes.get(at.raw()) == Some(Pte::Swapped)
    }

    /// What is known of a host page.
    pub fn page_state(&self, at: Hpa) -> PageState {
        self.pages.state(at.raw())
    }

    /// References to a host page beyond its mapping's.
    pub fn references(&self, at: Hpa) -> u64 {
        self.pages.references(at.raw())
    }

    /// Bytes on which anybody holds a reference; none may be left at the end of a VM.
    pub fn held_bytes(&self) -> Bytes {
        Bytes(self.pages.held_bytes())
    }

    /// Dirty and accessed bytes among the pages that a range maps now.
    pub fn used_bytes(&self, range: HvaRange) -> (Bytes, Bytes) {
        let (mut accessed, mut dirty) = (0, 0);
        for part in self.ptes.parts(range.start.raw(), range.bytes.0) {
            if let Pte::Present { host, .. } = part.value {
                accessed += self.pages.accessed_bytes(host, part.len);
                dirty += self.pages.dirty_bytes(host, part.len);
            }
        }
        (Bytes(accessed), Bytes(dirty))
    }

    /// Bytes freed so far.
    pub fn freed_bytes(&self) -> Bytes {
        Bytes(self.pages.freed_bytes())
    }

    /// Stretches kept for the page table: what operations cost.
    pub fn stretches(&self) -> usize {
        self.ptes.len()
    }

    /// Why nobody may reach this host page now, if that is so.
    pub fn off_limits(&self, at: Hpa) -> Option<OffLimits> {
        if self.pages.is_freed(at.raw()) { Some(OffLimits::Freed) } else { self.limits.invalidating(at) }
    }

    /// Whether another page than this one is mapped at an address.
    pub(crate) fn misplaced(&self, at: Hva, page: Hpa) -> Option<OffLimits> {
        self.lookup(at).is_some_and(|there| there != page).then_some(OffLimits::Misplaced)
    }

    /// The host pages that a range maps now.
    pub(crate) fn host_pages(&self, range: HvaRange) -> Vec<HpaRange> {
        let parts = self.ptes.parts(range.start.raw(), range.bytes.0);
        let pages = parts.filter_map(|part| match part.value {
            Pte::Present { host, .. } | Pte::Moving { host, .. } => Some(hpa_range(host, part.len)),
            Pte::Swapped => None,
        });
        pages.collect()
    }
}
