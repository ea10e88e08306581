//! The guest's own side: its page tables, filled on first touch, private to one vCPU.
//!
//! Each vCPU runs one address space. Guest-physical pages come from the vCPU's share of memory in order of first touch;
//! the shares are interleaved page by page, so that a zapped range touches everybody. What a vCPU touches depends on its own
//! accesses only, so nothing here is shared in the parallel phase.
//!
//! A guest whose tables all vCPUs share has them in table memory, and only their root here ([`GuestTables::shared`]); or they never change
//! and are computed ([`Premapped`]).

use mmu_core::{ByteUnits, EncodeError, Format, Gpa, Gva, Hpa, Leaf, Level, PageSize, Perms};
use serde::{Deserialize, Serialize};

use super::premapped::{Premapped, TEST_MEMORY};

/// How guest-virtual addresses become guest-physical ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestPaging {
    /// The guest runs without translation: accesses are guest-physical.
    Flat,
    /// The guest's tables map pages of this size where they are first touched.
    FirstTouch(PageSize),
    /// The guest's tables map all of its memory from the start by pages of this size, from [`TEST_MEMORY`](super::TEST_MEMORY) on, as the library of KVM's
    /// selftests builds them ([`Premapped`]). They lie in a slot of small pages of their own, behind guest memory.
    Premapped(PageSize),
}

/// Where one vCPU's guest-physical pages lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestShare {
    /// Which vCPU.
    pub index: u64,
    /// Of how many.
    pub of: u64,
    /// Guest memory in bytes.
    pub memory: u64,
}

/// Why a guest could not map a page.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GuestError {
    /// The share is used up.
    OutOfMemory {
        /// Bytes mapped when it happened.
        mapped: u64,
    },
    /// Its format refused the entry.
    Encode(EncodeError),
    /// Its tables map what they map from the start, and not this.
    NotMapped(Gva),
    /// The address has more bits than the first stage translates.
    AddressWidth {
        /// The address.
        gva: Gva,
        /// The width in bits.
        bits: u32,
    },
}

impl std::fmt::Display for GuestError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            GuestError::OutOfMemory { mapped } => write!(
                f,
                "a vCPU's share of guest memory is used up after {} MiB; give the guest more memory or use fewer vCPUs",
                mapped >> 20
            ),
            GuestError::Encode(error) => write!(f, "guest page table: {error}"),
            GuestError::NotMapped(gva) => {
                write!(f, "the guest's tables map its memory from {TEST_MEMORY} on, not {gva}")
            }
            GuestError::AddressWidth { gva, bits } => {
                write!(f, "guest address {gva} does not fit the {bits} bits that the guest's tables translate")
            }
        }
    }
}
impl std::error::Error for GuestError {}

/// The guest tables of one vCPU: words in guest-physical memory.
#[derive(Clone, Debug)]
pub struct GuestTables<F> {
    format: F,
    share: GuestShare,
    page: PageSize,
    /// Start of the area that holds this vCPU's tables.
    base: Gpa,
    /// Its size in bytes.
    area: u64,
    words: Vec<u64>,
    root: Gpa,
    pages: u64,
    shared: bool,
    /// Tables that are there from the start, instead of the words.
    premapped: Option<Premapped<F>>,
}

impl<F: Format> GuestTables<F> {
    /// Empty tables for pages of `page` bytes.
    ///
    /// # Errors
    /// A page size that the format has no leaf for, or a share too small for the tables.
    pub fn new(format: F, share: GuestShare, page: PageSize) -> Result<Self, GuestError> {
        let geometry = format.geometry();
        if geometry.level_of(page).is_none() {
            return Err(GuestError::Encode(EncodeError::LeafLevel { level: Level::LAST }));
        }
        // A table entry is eight bytes for every page: 1/256 covers last-level and upper tables with room.
        let root_bytes = geometry.table_bytes(geometry.root());
        let area = (share.memory / share.of / 256).max(2 * root_bytes + 64.KiB()).next_multiple_of(root_bytes);
        // Tables lie at the top, so that pages start at 0 and a zapped range from there on touches everybody.
        let below = area * (share.of - share.index);
        if below >= share.memory {
            return Err(GuestError::OutOfMemory { mapped: 0 });
        }
        let base = Gpa::new((share.memory - below) / root_bytes * root_bytes);
        let mut tables = Self { base, area, root: base, shared: false, ..Self::without_words(format, share, page) };
        tables.root = tables.alloc(geometry.root())?;
        Ok(tables)
    }

    /// Tables that others fill: the words are host memory behind the second stage, the root is at `root`.
    pub fn shared(format: F, root: Gpa) -> Self {
        let share = GuestShare { index: 0, of: 1, memory: 0 };
        let page = format.geometry().page_size(Level::LAST);
        Self { base: root, root, shared: true, ..Self::without_words(format, share, page) }
    }

    /// Tables that map everything from the start, and never change.
    pub fn premapped(format: F, tables: Premapped<F>) -> Self {
        let share = GuestShare { index: 0, of: 1, memory: 0 };
        let (root, page) = (tables.root(), tables.page());
        Self { root, premapped: Some(tables), ..Self::without_words(format, share, page) }
    }

    fn without_words(format: F, share: GuestShare, page: PageSize) -> Self {
        let (base, root, words) = (Gpa::new(0), Gpa::new(0), Vec::new());
        Self { format, share, page, base, area: 0, words, root, pages: 0, shared: false, premapped: None }
    }

    /// Where tables that are there from the start map an address to; `None` for other tables.
    #[inline]
    pub(super) fn translate_premapped(&self, gva: Gva) -> Option<Gpa> {
        self.premapped.as_ref()?.translate(gva)
    }

    /// Whether its words are host memory.
    #[inline]
    pub fn is_shared(&self) -> bool {
        self.shared
    }

    /// What changes in a run.
    pub(super) fn view(&self) -> (&Vec<u64>, Gpa, u64) {
        (&self.words, self.root, self.pages)
    }
    pub(super) fn set(&mut self, (words, root, pages): super::state::GuestWords) {
        (self.words, self.root, self.pages) = (words, root, pages);
    }

    /// Guest-physical address of the root table.
    pub fn root(&self) -> Gpa {
        self.root
    }
    /// Pages mapped so far.
    pub fn pages(&self) -> u64 {
        self.pages
    }
    /// Size of the pages it maps.
    pub fn page_size(&self) -> PageSize {
        self.page
    }

    /// The word at `gpa`, or `None` outside the table area.
    #[inline]
    pub fn read(&self, gpa: Gpa) -> Option<u64> {
        if let Some(tables) = &self.premapped {
            return tables.read(gpa);
        }
        let offset = gpa.raw().wrapping_sub(self.base.raw());
        if offset >= self.area {
            return None;
        }
        Some(self.words.get(offset as usize / 8).copied().unwrap_or(0))
    }

    /// Replaces the word at `gpa`.
    #[inline]
    pub fn write(&mut self, gpa: Gpa, word: u64) {
        if let Some(tables) = &mut self.premapped {
            return tables.write(gpa, word);
        }
        let offset = gpa.raw().wrapping_sub(self.base.raw());
        if let Some(slot) = self.words.get_mut(offset as usize / 8) {
            *slot = word;
        }
    }

    /// Maps the page around `gva` to the next free guest page and returns that.
    ///
    /// # Errors
    /// When the share is used up, or the address is too wide.
    pub fn map(&mut self, gva: Gva) -> Result<Gpa, GuestError> {
        if self.premapped.is_some() {
            return Err(GuestError::NotMapped(gva));
        }
        let geometry = *self.format.geometry();
        let canonical = gva.raw() & (geometry.input_bytes() - 1);
        let bits = geometry.input_bits();
        // Upper halves (kernel addresses) fold onto their low bits; anything between is no address at all.
        let top = gva.raw() >> (bits - 1);
        if top != 0 && top != 1 && top != u64::MAX >> (bits - 1) {
            return Err(GuestError::AddressWidth { gva, bits });
        }
        let leaf_level = geometry.level_of(self.page).unwrap_or(Level::LAST);
        let mut table = self.root;
        let mut level = geometry.root();
        while level > leaf_level {
            let at = table + 8 * geometry.index(level, canonical) as u64;
            let raw = self.read(at).unwrap_or(0);
            let Some(down) = level.down() else { break };
            table = if raw & self.format.present_mask() != 0 {
                Gpa::new(self.format.next_table(level, raw).raw())
            } else {
                let child = self.alloc(down)?;
                let word = self.format.encode_table(level, Hpa::new(child.raw())).map_err(GuestError::Encode)?;
                self.write(at, word);
                child
            };
            level = down;
        }
        let page = self.next_page()?;
        let leaf = |perms: Perms| Leaf {
            output: Hpa::new(page.raw()),
            perms: perms.with(Perms::DIRTY),
            accessed: true,
            attrs: F::Attrs::default(),
        };
        // A user page. Not every format can let the supervisor execute what users write (Arm: it implies PXN).
        let encode = |perms| self.format.encode_leaf(leaf_level, &leaf(perms));
        let word = encode(Perms::RWX).or_else(|_| encode(Perms::RWX.without(Perms::EXEC)));
        let word = word.map_err(GuestError::Encode)?;
        self.write(table + 8 * geometry.index(leaf_level, canonical) as u64, word);
        Ok(page)
    }

    fn alloc(&mut self, level: Level) -> Result<Gpa, GuestError> {
        let bytes = self.format.geometry().table_bytes(level);
        let start = (self.words.len() as u64 * 8).next_multiple_of(bytes);
        if start + bytes > self.area {
            return Err(GuestError::OutOfMemory { mapped: self.pages * self.page.bytes() });
        }
        self.words.resize(((start + bytes) / 8) as usize, 0);
        Ok(self.base + start)
    }

    fn next_page(&mut self) -> Result<Gpa, GuestError> {
        let number = self.pages * self.share.of + self.share.index;
        let start = number * self.page.bytes();
        // One table's alignment is lost at the most.
        let tables = (self.area + self.format.geometry().table_bytes(self.format.geometry().root())) * self.share.of;
        if start + self.page.bytes() + tables > self.share.memory {
            return Err(GuestError::OutOfMemory { mapped: self.pages * self.page.bytes() });
        }
        self.pages += 1;
        Ok(Gpa::new(start))
    }
}
