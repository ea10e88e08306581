//! A guest's tables that map all of its memory from the start, as the library of KVM's selftests builds them.
//!
//! `virt_map` of `lib/kvm_util.c` maps the test's memory page by page from the guest-virtual address 0xc0000000 on, before the first vCPU runs
//! (`memstress_create_vm`, `kvm_page_table_test`), by pages of the guest mode: the smallest. The tables come from slot 0, which is anonymous memory of
//! small pages (`MADV_NOHUGEPAGE`), one page each: a guest of 256 GiB has 131,072 tables of the last level, and each costs a second-stage fault when a walk meets it
//! first. All vCPUs share them.
//!
//! What they hold is a function of the address, so they take no memory here. Two things differ from the library: tables of a level lie together
//! instead of in the order of their making, behind the tested memory instead of before it; and pages are accessed and dirty from the start, as the first pass
//! over memory leaves them, where the library sets neither on x86. Entries that point to tables get their flags from walks, of each vCPU for itself.

use std::collections::BTreeMap;

use mmu_core::{Bytes, EncodeError, Format, Gpa, GpaRange, Gva, Hpa, Leaf, Level, PageSize, Perms};

use super::guest::GuestError;

/// Where tests see their memory (`DEFAULT_GUEST_TEST_MEM`).
pub const TEST_MEMORY: Gva = Gva::new(0xc000_0000);

/// The tables of one level.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    base: Gpa,
    /// Which part of the virtual address space the first one covers, in units of what a table covers.
    first: u64,
    count: u64,
}

/// Tables that map guest-physical memory from 0 on at [`TEST_MEMORY`].
#[derive(Clone, Debug)]
pub struct Premapped<F> {
    format: F,
    memory: u64,
    leaf: Level,
    /// From the level of leaves on.
    levels: Vec<Stretch>,
    slot: GpaRange,
    /// Entries of tables as walks have left them: accessed.
    walked: BTreeMap<Gpa, u64>,
}

impl<F: Format> Premapped<F> {
    /// Tables for `memory` in pages of `page`, in guest-physical memory behind it.
    ///
    /// # Errors
    /// A page size that the format has no leaf for, or more memory than it translates.
    pub fn new(format: F, memory: Bytes, page: PageSize) -> Result<Self, GuestError> {
        let geometry = format.geometry();
        let leaf = geometry.level_of(page).ok_or(GuestError::Encode(EncodeError::LeafLevel { level: Level::LAST }))?;
        let last = Gva::new(TEST_MEMORY.raw().saturating_add(memory.0.max(1)) - 1);
        // The upper half is the kernel's.
        if last.raw() >= geometry.input_bytes() / 2 {
            return Err(GuestError::AddressWidth { gva: last, bits: geometry.input_bits() });
        }
        // No table of the second stage but the upper ones maps tested memory and this slot, as in the kernel's tests.
        let start = Gpa::new(memory.0.next_multiple_of(PageSize::SIZE_1G.bytes()));
        let mut end = start.raw();
        let mut levels = Vec::new();
        for level in (leaf.index()..geometry.levels()).map(|level| Level::new(level as u8)) {
            let covers = geometry.shift(level) + geometry.index_bits(level);
            let first = TEST_MEMORY.raw() >> covers;
            let count = (last.raw() >> covers) - first + 1;
            let base = end.next_multiple_of(geometry.table_bytes(level));
            levels.push(Stretch { base: Gpa::new(base), first, count });
            end = base + count * geometry.table_bytes(level);
        }
        let end = end.next_multiple_of(PageSize::SIZE_64K.bytes());
        Ok(Self {
            format,
            memory: memory.0,
            leaf,
            levels,
            walked: BTreeMap::new(),
            slot: GpaRange::new(start, Bytes(end - start.raw())),
        })
    }

    /// The slot that holds the tables.
    pub fn slot(&self) -> GpaRange {
        self.slot
    }

    /// How many tables there are.
    pub fn tables(&self) -> u64 {
        self.levels.iter().map(|stretch| stretch.count).sum()
    }

    /// How many of them point to tables.
    pub fn upper_tables(&self) -> u64 {
        self.levels.iter().skip(1).map(|stretch| stretch.count).sum()
    }

    /// Guest-physical address of the root table.
    pub(super) fn root(&self) -> Gpa {
        self.levels.last().map_or(self.slot.start, |stretch| stretch.base)
    }

    /// Size of the pages that it maps.
    pub(super) fn page(&self) -> PageSize {
        self.format.geometry().page_size(self.leaf)
    }

    /// Where the tables map an address to.
    pub(super) fn translate(&self, gva: Gva) -> Option<Gpa> {
        let offset = gva.raw().wrapping_sub(TEST_MEMORY.raw());
        (offset < self.memory).then_some(Gpa::new(offset))
    }

    /// The word at `gpa`, or `None` outside the slot.
    pub(super) fn read(&self, gpa: Gpa) -> Option<u64> {
        if gpa < self.slot.start || gpa >= self.slot.end() {
            return None;
        }
        if let Some(&word) = self.walked.get(&gpa) {
            return Some(word);
        }
        let (index, stretch) = self.levels.iter().enumerate().rfind(|(_, stretch)| stretch.base <= gpa)?;
        let level = Level::new((self.leaf.index() + index) as u8);
        let geometry = self.format.geometry();
        let (bytes, offset) = (geometry.table_bytes(level), gpa.raw() - stretch.base.raw());
        let (number, entry) = (offset / bytes, offset % bytes / 8);
        if number >= stretch.count {
            return Some(0);
        }
        // What the entry covers, in units of its size.
        let covered = (stretch.first + number) * geometry.entries(level) as u64 + entry;
        let word = match index.checked_sub(1).and_then(|below| self.levels.get(below)) {
            None => self.leaf(Gva::new(covered << geometry.shift(level))),
            Some(below) => {
                let child = covered.wrapping_sub(below.first);
                let distance = child.wrapping_mul(geometry.table_bytes(level.down()?));
                let table = Hpa::new(below.base.raw().wrapping_add(distance));
                (child < below.count).then(|| self.format.encode_table(level, table).ok()).flatten()
            }
        };
        Some(word.unwrap_or(0))
    }

    /// A walk has set flags of an entry.
    pub(super) fn write(&mut self, gpa: Gpa, word: u64) {
        self.walked.insert(gpa, word);
    }

    /// A page of the user, as [`GuestTables`](super::GuestTables) makes them.
    fn leaf(&self, gva: Gva) -> Option<u64> {
        let output = Hpa::new(self.translate(gva)?.raw());
        let encode = |perms: Perms| {
            let leaf = Leaf { output, perms: perms.with(Perms::DIRTY), accessed: true, attrs: F::Attrs::default() };
            self.format.encode_leaf(self.leaf, &leaf).ok()
        };
        encode(Perms::RWX).or_else(|| encode(Perms::RWX.without(Perms::EXEC)))
    }
}
