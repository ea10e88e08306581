//! Memslots: which host-virtual addresses stand for which guest-physical ones.
//!
//! As in the kernel there is one active set, found through a pointer (the variable [`Var::MEMSLOTS`](crate::engine::Var::MEMSLOTS) holds the
//! version). A set that has been published never changes: an update makes the next version, publishes it, waits for SRCU readers and frees
//! the old one. Use of a freed version is a violation.

use std::collections::BTreeMap;

use bitflags::bitflags;
use mmu_core::{Gpa, GpaRange, Hva, HvaRange};

bitflags! {
    /// Flags of a memslot.
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, serde::Serialize, serde::Deserialize)]
    pub struct SlotFlags: u16 {
        /// `KVM_MEM_LOG_DIRTY_PAGES`
        const LOG_DIRTY = 1;
        /// `KVM_MEM_READONLY`
        const READONLY = 1 << 1;
        /// `KVM_MEMSLOT_INVALID`: about to be deleted or moved; faults on it try again.
        const INVALID = 1 << 2;
    }
}

/// Number of a memslot, user space's choice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
pub struct SlotId(pub u16);

/// A memslot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Memslot {
    /// Its number.
    pub id: SlotId,
    /// Guest addresses.
    pub gpa: GpaRange,
    /// Where they begin in the process that owns the guest.
    pub hva: Hva,
    /// Flags.
    pub flags: SlotFlags,
}

impl Memslot {
    /// Host addresses.
    pub fn hva_range(&self) -> HvaRange {
        HvaRange::new(self.hva, self.gpa.bytes)
    }
    /// The host address of a guest address inside.
    pub fn to_hva(&self, gpa: Gpa) -> Hva {
        self.hva + (gpa - self.gpa.start)
    }
    /// The guest addresses of those host addresses that are inside.
    pub fn to_gpa(&self, range: HvaRange) -> Option<GpaRange> {
        let both = self.hva_range().intersection(range)?;
        Some(GpaRange::new(self.gpa.start + (both.start - self.hva), both.bytes))
    }
}

/// A change from one version of the memslots to the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub enum SlotChange {
    /// Adds a memslot, or replaces the one of the same number.
    Put(Memslot),
    /// Takes one away.
    Remove(SlotId),
}

/// A version of the memslots: what the kernel's pointer points to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SlotsVersion(pub u64);

#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
struct Set {
    generation: u64,
    slots: BTreeMap<SlotId, Memslot>,
    by_gpa: BTreeMap<u64, SlotId>,
    by_hva: BTreeMap<(u64, SlotId), u64>,
    /// The longest slot: bounds how far before a range one that overlaps it can begin.
    longest: u64,
}

impl Set {
    fn take(&mut self, id: SlotId) {
        if let Some(old) = self.slots.remove(&id) {
            self.by_gpa.remove(&old.gpa.start.raw());
            self.by_hva.remove(&(old.hva.raw(), id));
        }
    }

    fn change(&mut self, change: SlotChange) {
        match change {
            SlotChange::Put(slot) => self.put(slot),
            SlotChange::Remove(id) => self.take(id),
        }
        self.generation += 1;
    }

    fn put(&mut self, slot: Memslot) {
        self.take(slot.id);
        self.by_gpa.insert(slot.gpa.start.raw(), slot.id);
        self.by_hva.insert((slot.hva.raw(), slot.id), slot.gpa.bytes.0);
        self.longest = self.longest.max(slot.gpa.bytes.0);
        self.slots.insert(slot.id, slot);
    }
}

/// A freed version that lacks one change to be equal to a living one: an update works on it instead of copying everything, as the kernel's two
/// sets take turns.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
struct Spare {
    set: Set,
    lacks: SlotChange,
    equals: u64,
}

/// All versions that exist.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Memslots {
    sets: BTreeMap<u64, Set>,
    next: u64,
    /// The last derivation: from which version, by what, to which.
    derived: Option<(u64, SlotChange, u64)>,
    spare: Option<Spare>,
}

impl Default for Memslots {
    fn default() -> Self {
        Self { sets: BTreeMap::from([(0, Set::default())]), next: 1, derived: None, spare: None }
    }
}

impl Memslots {
    /// Adds a memslot to a version before the run begins.
    pub(crate) fn put_now(&mut self, version: SlotsVersion, slot: Memslot) {
        self.spare = None;
        if let Some(set) = self.sets.get_mut(&version.0) {
            set.put(slot);
        }
    }

    /// The next version and generation; `None` when there is no such version to start from.
    pub(crate) fn derive(&mut self, from: SlotsVersion, change: SlotChange) -> Option<SlotsVersion> {
        let current = self.sets.get(&from.0)?;
        let mut set = match self.spare.take() {
            Some(Spare { mut set, lacks, equals }) if equals == from.0 => {
                set.change(lacks);
                set
            }
            _ => current.clone(),
        };
        set.change(change);
        let version = self.next;
        self.next += 1;
        self.sets.insert(version, set);
        self.derived = Some((from.0, change, version));
        Some(SlotsVersion(version))
    }

    /// Frees a version; false when there is none.
    pub(crate) fn free(&mut self, version: SlotsVersion) -> bool {
        let Some(set) = self.sets.remove(&version.0) else { return false };
        if let Some((from, lacks, equals)) = self.derived
            && from == version.0
        {
            self.spare = Some(Spare { set, lacks, equals });
        }
        true
    }

    /// Versions that exist: one, except during updates.
    pub fn versions(&self) -> usize {
        self.sets.len()
    }

    /// The generation of a version; `None` when it does not exist.
    pub fn generation(&self, version: SlotsVersion) -> Option<u64> {
        self.sets.get(&version.0).map(|set| set.generation)
    }

    /// The slot of a number.
    pub fn slot(&self, version: SlotsVersion, id: SlotId) -> Option<Memslot> {
        self.sets.get(&version.0)?.slots.get(&id).copied()
    }

    /// The slot of a guest address.
    pub fn at(&self, version: SlotsVersion, gpa: Gpa) -> Option<Memslot> {
        let set = self.sets.get(&version.0)?;
        let (_, id) = set.by_gpa.range(..=gpa.raw()).next_back()?;
        set.slots.get(id).copied().filter(|slot| slot.gpa.contains(gpa))
    }

    /// The first slot after `after` (in order of host address) that overlaps these host addresses.
    pub fn overlapping(&self, version: SlotsVersion, range: HvaRange, after: Option<SlotId>) -> Option<Memslot> {
        let set = self.sets.get(&version.0)?;
        let earliest = (range.start.raw().saturating_sub(set.longest), SlotId(0));
        let from = match after.and_then(|id| set.slots.get(&id)) {
            Some(slot) => (slot.hva.raw(), slot.id),
            None => earliest,
        };
        let to = (range.end().raw(), SlotId(0));
        if from >= to {
            return None;
        }
        let candidates = set.by_hva.range(from..to);
        let hit = candidates
            .filter(|&(&(hva, id), &bytes)| (after.is_none() || (hva, id) > from) && hva + bytes > range.start.raw());
        hit.map(|(&(_, id), _)| id).next().and_then(|id| set.slots.get(&id).copied())
    }

    /// A slot other than `except` that shares guest addresses with a range.
    pub fn overlapping_gpa(&self, version: SlotsVersion, range: GpaRange, except: Option<SlotId>) -> Option<SlotId> {
        let set = self.sets.get(&version.0)?;
        let mut before = set.by_gpa.range(..range.end().raw()).rev().map(|(_, id)| *id);
        before.find(|&id| Some(id) != except).filter(|id| set.slots[id].gpa.overlaps(range))
    }

    /// Whether a version exists.
    pub fn exists(&self, version: SlotsVersion) -> bool {
        self.sets.contains_key(&version.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mmu_core::Bytes;

    fn slot(id: u16, gpa: u64, bytes: u64, hva: u64) -> Memslot {
        let gpa = GpaRange::new(Gpa::new(gpa), Bytes(bytes));
        Memslot { id: SlotId(id), gpa, hva: Hva::new(hva), flags: SlotFlags::empty() }
    }

    #[test]
    fn slots_are_found_by_both_addresses_even_when_they_share_memory() {
        let mut slots = Memslots::default();
        let first = SlotsVersion(0);
        for slot in [slot(1, 0, 0x4000, 0x10000), slot(2, 0x8000, 0x1000, 0x11000), slot(3, 0x9000, 0x1000, 0x20000)] {
            slots.put_now(first, slot);
        }
        assert_eq!(slots.at(first, Gpa::new(0x3fff)).map(|slot| slot.id), Some(SlotId(1)));
        assert_eq!(slots.at(first, Gpa::new(0x4000)), None);
        let found = |start: u64, bytes: u64| {
            let range = HvaRange::new(Hva::new(start), Bytes(bytes));
            let mut found = Vec::new();
            while let Some(slot) = slots.overlapping(first, range, found.last().copied()) {
                found.push(slot.id);
            }
            found
        };
        assert_eq!(found(0x11800, 0x100), [SlotId(1), SlotId(2)]);
        assert_eq!(found(0x13fff, 0xc002), [SlotId(1), SlotId(3)]);
        assert_eq!(found(0x14000, 0x100), []);
    }

    #[test]
    fn a_published_version_never_changes() {
        let mut slots = Memslots::default();
        let first = SlotsVersion(0);
        let second = slots.derive(first, SlotChange::Put(slot(7, 0, 0x1000, 0x5000))).unwrap();
        let third = slots.derive(second, SlotChange::Remove(SlotId(1))).unwrap();
        assert_eq!(
            (slots.at(first, Gpa::new(0)), slots.at(third, Gpa::new(0)).map(|slot| slot.id)),
            (None, Some(SlotId(7)))
        );
        assert_eq!((slots.generation(second), slots.generation(third)), (Some(1), Some(2)));
        assert!(slots.free(first) && !slots.free(first));
        // What an update makes of a freed version is the same.
        assert!(slots.free(second));
        let fourth = slots.derive(third, SlotChange::Put(slot(8, 0x1000, 0x1000, 0x7000))).unwrap();
        assert_eq!(slots.at(fourth, Gpa::new(0)).map(|slot| slot.id), Some(SlotId(7)));
        assert_eq!(slots.at(fourth, Gpa::new(0x1000)).map(|slot| slot.id), Some(SlotId(8)));
        assert_eq!((slots.at(third, Gpa::new(0x1000)), slots.generation(fourth)), (None, Some(3)));
        assert_eq!(slots.derive(first, SlotChange::Remove(SlotId(7))), None);
    }
}
