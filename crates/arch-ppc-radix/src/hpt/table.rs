//! The table: groups, search, insertion, invalidation.

use std::fmt;

use mmu_core::tlb::Perms;
use mmu_core::walk::{Bus, BusError, Exchange};
use mmu_core::{Access, AccessKind, Hpa};

use super::entry::{CHANGED, HptEntry, HptMapping, HptPage, LOCK, REFERENCED, SECONDARY, VALID};
use super::hash::VirtualAddress;
use crate::radix::Cause;

/// Number of an entry in its table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Slot(u64);

impl Slot {
    /// The number, counted from the table's start.
    pub const fn index(self) -> u64 {
        self.0
    }
    /// Its group.
    pub const fn group(self) -> u64 {
        self.0 / ENTRIES
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "entry {} of group {:#x}", self.0 % ENTRIES, self.group())
    }
}

/// Why a table operation failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HptError {
    /// Tables have 2^18 to 2^46 bytes (HTABSIZE 0 to 28).
    Order {
        /// The size asked for, as a power of two.
        order: u32,
    },
    /// A table is aligned to its size.
    Misaligned {
        /// The base asked for.
        base: Hpa,
    },
    /// The real page is misaligned for its size or beyond 2^57.
    Output {
        /// The page asked for.
        output: Hpa,
    },
    /// Both groups are full: invalidate an entry of either and try again.
    Full {
        /// Primary group.
        primary: u64,
        /// Secondary group.
        secondary: u64,
    },
    /// The address is mapped already: invalidate it first.
    Mapped {
        /// By which entry.
        slot: Slot,
    },
    /// The table lies outside memory.
    Bus(BusError),
}

impl fmt::Display for HptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HptError::Order { order } => write!(f, "a hashed table of 2^{order} bytes: use 2^18 to 2^46"),
            HptError::Misaligned { base } => write!(f, "hashed table at {base}: align it to its size, below 2^60"),
            HptError::Output { output } => write!(f, "real page {output}: align it to its size, below 2^57"),
            HptError::Full { primary, secondary } => {
                write!(f, "groups {primary:#x} and {secondary:#x} are full: invalidate an entry of either")
            }
            HptError::Mapped { slot } => write!(f, "mapped already by {slot}: invalidate it first"),
            HptError::Bus(error) => write!(f, "hashed table: {error}"),
        }
    }
}
impl std::error::Error for HptError {}

impl From<BusError> for HptError {
    fn from(error: BusError) -> Self {
        HptError::Bus(error)
    }
}

/// What stopped a translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HptWhy {
    /// Neither group holds the page.
    NoEntry,
    /// PP forbids the access.
    Protection,
    /// A fetch from a no-execute page.
    NoExecute,
    /// The table lies outside memory.
    Bus(BusError),
}

/// A failed translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HptFault {
    /// What is wrong.
    pub why: HptWhy,
    /// DSISR, or the cause bits of SRR1.
    pub cause: Cause,
}

impl fmt::Display for HptFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.why {
            HptWhy::Bus(error) => write!(f, "hashed table: {error}"),
            _ => write!(f, "hashed translation: cause {}", self.cause),
        }
    }
}
impl std::error::Error for HptFault {}

/// A translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HptTranslation {
    /// The real address of the access.
    pub output: Hpa,
    /// Where the entry is.
    pub slot: Slot,
    /// The entry with R and C as the access left them.
    pub entry: HptEntry,
}

/// An entry taken out: its page must be flushed, and its C counts as a write to the page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "TLBs may hold the translation until a tlbie of this page completes"]
pub struct Removed {
    /// Where it was.
    pub slot: Slot,
    /// What it was, with the final R and C.
    pub entry: HptEntry,
}

/// Entries in a group.
const ENTRIES: u64 = 8;

/// A hashed page table in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HashedTable {
    base: Hpa,
    order: u32,
}

impl HashedTable {
    /// Smallest and largest size, as powers of two.
    pub const ORDERS: std::ops::RangeInclusive<u32> = 18..=46;

    /// The table of 2^`order` bytes at `base`.
    ///
    /// # Errors
    /// [`HptError::Order`], [`HptError::Misaligned`].
    pub fn new(base: Hpa, order: u32) -> Result<Self, HptError> {
        if !Self::ORDERS.contains(&order) {
            return Err(HptError::Order { order });
        }
        if base.raw() & ((1 << order) - 1) != 0 || base.raw() >> 60 != 0 {
            return Err(HptError::Misaligned { base });
        }
        Ok(Self { base, order })
    }

    /// Number of groups.
    pub const fn groups(&self) -> u64 {
        1 << (self.order - 7)
    }

    /// The first doubleword of a partition-table entry that names this table: HTABORG and HTABSIZE, HR clear.
    pub const fn partition_word(&self) -> u64 {
        self.base.raw() | (self.order - 18) as u64
    }

    /// Address of an entry.
    pub fn address(&self, slot: Slot) -> Hpa {
        self.base + slot.0 * 16
    }

    /// The groups that may hold `va`: primary with H clear, secondary with H set.
    fn candidates(&self, va: VirtualAddress, page: HptPage) -> [(u64, u64); 2] {
        let hash = va.hash(page);
        let mask = self.groups() - 1;
        [(hash & mask, 0), (!hash & mask, SECONDARY)]
    }

    fn read<B: Bus + ?Sized>(&self, bus: &mut B, slot: Slot) -> Result<HptEntry, BusError> {
        let at = self.address(slot);
        Ok(HptEntry { first: bus.read(at)?, second: bus.read(at + 8)? })
    }

    /// The entry that maps `va` as a page of this size: the primary group is searched first. At most 16 entries are read.
    ///
    /// # Errors
    /// When the table lies outside memory.
    pub fn lookup<B: Bus + ?Sized>(
        &self,
        bus: &mut B,
        va: VirtualAddress,
        page: HptPage,
    ) -> Result<Option<(Slot, HptEntry)>, BusError> {
        for (group, secondary) in self.candidates(va, page) {
            for slot in slots(group) {
                let entry = self.read(bus, slot)?;
                if entry.matches(va, page, secondary) {
                    return Ok(Some((slot, entry)));
                }
            }
        }
        Ok(None)
    }

    /// Maps the page of `va` in the first free entry of the primary, then of the secondary group.
    ///
    /// # Errors
    /// An illegal real page, an address that is mapped already, both groups full, or no memory.
    pub fn insert<B: Bus + ?Sized>(
        &self,
        bus: &mut B,
        va: VirtualAddress,
        mapping: HptMapping,
    ) -> Result<Slot, HptError> {
        if !mapping.is_legal() {
            return Err(HptError::Output { output: mapping.output });
        }
        if let Some((slot, _)) = self.lookup(bus, va, mapping.page)? {
            return Err(HptError::Mapped { slot });
        }
        let candidates = self.candidates(va, mapping.page);
        for (group, secondary) in candidates {
            let entry = HptEntry::new(va, &mapping, secondary);
            for slot in slots(group) {
                if self.claim(bus, slot, entry)? {
                    return Ok(slot);
                }
            }
        }
        Err(HptError::Full { primary: candidates[0].0, secondary: candidates[1].0 })
    }

    /// Writes `entry` if the slot is free: lock, second word, then the first with V (Linux `native_hpte_insert`), so that
    /// hardware never sees half an entry.
    fn claim<B: Bus + ?Sized>(&self, bus: &mut B, slot: Slot, entry: HptEntry) -> Result<bool, BusError> {
        let at = self.address(slot);
        let found = bus.read(at)?;
        if found & (VALID | LOCK) != 0 || bus.cmpxchg(at, found, LOCK)? != Exchange::Done {
            return Ok(false);
        }
        let old = bus.read(at + 8)?;
        bus.cmpxchg(at + 8, old, entry.second)?;
        bus.cmpxchg(at, LOCK, entry.first)?;
        Ok(true)
    }

    /// Takes out the mapping of `va` and returns it, or `None` when there is none.
    ///
    /// # Errors
    /// When the table lies outside memory.
    pub fn invalidate<B: Bus + ?Sized>(
        &self,
        bus: &mut B,
        va: VirtualAddress,
        page: HptPage,
    ) -> Result<Option<Removed>, BusError> {
        while let Some((slot, entry)) = self.lookup(bus, va, page)? {
            let at = self.address(slot);
            if bus.cmpxchg(at, entry.first, 0)? == Exchange::Done {
                // R and C may have been set until V went.
                let second = bus.read(at + 8)?;
                return Ok(Some(Removed { slot, entry: HptEntry { second, ..entry } }));
            }
        }
        Ok(None)
    }

    /// What hardware does with an access: search, check, set R and, for a store, C.
    ///
    /// # Errors
    /// No entry, or one that forbids the access.
    pub fn translate<B: Bus + ?Sized>(
        &self,
        bus: &mut B,
        va: VirtualAddress,
        page: HptPage,
        access: &Access,
    ) -> Result<HptTranslation, HptFault> {
        let fault = |why| HptFault { why, cause: cause(why, *access) };
        let bus_fault = |error| fault(HptWhy::Bus(error));
        loop {
            let Some((slot, entry)) = self.lookup(bus, va, page).map_err(bus_fault)? else {
                return Err(fault(HptWhy::NoEntry));
            };
            check(&entry, *access).map_err(fault)?;
            let second = entry.second | REFERENCED | if access.kind.writes() { CHANGED } else { 0 };
            let changed = second != entry.second;
            if changed {
                let exchange = bus.cmpxchg(self.address(slot) + 8, entry.second, second).map_err(bus_fault)?;
                if exchange != Exchange::Done {
                    continue;
                }
            }
            let output = entry.output(page) + (va.offset() & ((1 << page.shift()) - 1));
            return Ok(HptTranslation { output, slot, entry: HptEntry { second, ..entry } });
        }
    }
}

fn slots(group: u64) -> impl Iterator<Item = Slot> {
    (0..ENTRIES).map(move |i| Slot(group * ENTRIES + i))
}

fn check(entry: &HptEntry, access: Access) -> Result<(), HptWhy> {
    let fetch = access.kind == AccessKind::Execute;
    if fetch && entry.no_execute() {
        return Err(HptWhy::NoExecute);
    }
    let needed = Perms::needed_by(&access).without(Perms::DIRTY);
    if entry.perms().contains(needed) { Ok(()) } else { Err(HptWhy::Protection) }
}

fn cause(why: HptWhy, access: Access) -> Cause {
    let cause = match why {
        HptWhy::NoEntry => Cause::NO_ENTRY,
        HptWhy::Protection => Cause::PROTECTION,
        HptWhy::NoExecute => Cause::NO_EXECUTE,
        HptWhy::Bus(_) => return Cause::default(),
    };
    if access.kind.writes() { cause | Cause::STORE } else { cause }
}
