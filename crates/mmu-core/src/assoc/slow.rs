//! Replacement beyond the narrow recency order: wide and skewed layouts, and policies other than LRU and FIFO.

use super::replacement::{MAX_MARKED_WAYS, nru, tree};
use super::{Key, Layout, NONE, Replacement, SetAssoc, Slot, holds, packed};

impl<K: Key, V: Copy + Default> SetAssoc<K, V> {
    #[inline(never)]
    pub(super) fn displace_elsewhere(&mut self, key: K, value: V) -> u64 {
        let slot = self.victim(key.number());
        self.place(slot, key, value)
    }

    /// Puts an entry into a slot and returns the tag it had.
    #[inline]
    pub(super) fn place(&mut self, slot: Slot, key: K, value: V) -> u64 {
        let cell = &mut self.cells[slot.slot() as usize];
        let old = std::mem::replace(&mut cell.tag, key.tag());
        cell.rest = key.rest();
        cell.value = value;
        if let Layout::Narrow = self.layout {
            let (row, way) = (&mut self.rows[slot.set() as usize], slot.slot() - slot.set() * self.shape.ways());
            row.set_print(way, key.tag());
        } else if let Layout::Wide(_, chains) = &mut self.layout {
            if old != K::EMPTY {
                chains.unlink(old, slot.slot());
            }
            chains.link(key.tag(), slot.slot());
        }
        self.bring_to_front(slot.set(), slot.slot());
        if self.shape.replacement().has_marks() {
            self.mark(slot.set(), slot.slot());
        }
        self.live += u32::from(old == K::EMPTY);
        old
    }

    #[inline(never)]
    pub(super) fn search_elsewhere(&self, key: K, accept: impl Fn(K::Rest) -> bool) -> Option<Slot> {
        let chains = match &self.layout {
            Layout::Narrow => return self.search_row(self.indexer.set(key.number()), &key, accept),
            Layout::Skewed(_) => return self.search_skewed(&key, accept),
            Layout::Wide(_, chains) => chains,
        };
        let tag = key.tag();
        let mut slot = chains.first(tag);
        while slot != NONE && !holds(&self.cells, slot, &key, &accept) {
            slot = chains.after(slot);
        }
        (slot != NONE).then(|| Slot::new(self.indexer.set(key.number()), slot))
    }

    fn search_skewed(&self, key: &K, accept: impl Fn(K::Rest) -> bool) -> Option<Slot> {
        let number = key.number();
        (0..self.shape.ways())
            .map(|way| self.slot_in_way(number, way))
            .find(|slot| holds(&self.cells, slot.slot(), key, &accept))
    }

    /// Where a block would lie in a way.
    #[inline]
    pub(super) fn slot_in_way(&self, number: u64, way: u32) -> Slot {
        let set = match self.layout {
            Layout::Skewed(_) => self.indexer.set_of_way(number, way),
            _ => self.indexer.set(number),
        };
        Slot::new(set, set * self.shape.ways() + way)
    }

    // PERF: places are passed as two words; as a struct they went through memory and cost a store-forwarding stall.
    #[inline(never)]
    pub(super) fn touch_elsewhere(&mut self, set: u32, slot: u32) {
        if self.shape.replacement().reorders_on_hit() {
            self.bring_to_front(set, slot);
        } else {
            self.mark(set, slot);
        }
    }

    fn bring_to_front(&mut self, set: u32, slot: u32) {
        let policy = self.shape.replacement();
        match &mut self.layout {
            Layout::Narrow => self.rows[set as usize].touch(slot - set * self.shape.ways()),
            Layout::Wide(lists, _) => lists.move_front(set, slot),
            Layout::Skewed(stamps) if policy != Replacement::Nru => {
                stamps.clock += 1;
                stamps.of[slot as usize] = stamps.clock;
            }
            Layout::Skewed(stamps) => stamps.of[slot as usize] = 1,
        }
    }

    /// Notes a use in the marks of tree-PLRU or NRU; other policies have none.
    fn mark(&mut self, set: u32, slot: u32) {
        let ways = self.shape.ways();
        let touch = match self.shape.replacement() {
            Replacement::TreePlru => tree::touch,
            Replacement::Nru => nru::touch,
            _ => return,
        };
        if let Layout::Skewed(stamps) = &mut self.layout {
            stamps.of[slot as usize] = 1;
        } else {
            let row = &mut self.rows[set as usize];
            row.marks = touch(row.marks, slot - set * ways, ways);
        }
    }

    /// The way to fill for this block: an empty one if there is one, else the policy's choice.
    #[inline]
    pub(super) fn victim(&mut self, number: u64) -> Slot {
        if let Layout::Skewed(_) = self.layout {
            return self.skewed_victim(number);
        }
        let set = self.indexer.set(number);
        let ways = self.shape.ways();
        let at = |slot| Slot::new(set, slot);
        let last = self.nth_last(set, 0);
        if self.cells[last as usize].tag == K::EMPTY {
            return at(last);
        }
        at(match self.shape.replacement() {
            Replacement::Lru | Replacement::Fifo => last,
            Replacement::Random => set * ways + self.random.below(ways),
            Replacement::RandomHalf => {
                let steps = self.random.below((ways / 2).max(1));
                self.nth_last(set, steps)
            }
            Replacement::TreePlru => set * ways + tree::victim(self.rows[set as usize].marks, ways),
            Replacement::Nru => set * ways + nru::victim(self.rows[set as usize].marks, ways),
        })
    }

    /// The slot `steps` before the end of a set's order.
    #[inline]
    fn nth_last(&self, set: u32, steps: u32) -> u32 {
        let ways = self.shape.ways();
        match &self.layout {
            Layout::Narrow => set * ways + packed::at(self.rows[set as usize].order, ways - 1 - steps),
            Layout::Wide(lists, _) => lists.nth_last(set, steps),
            Layout::Skewed(_) => set * ways,
        }
    }

    fn skewed_victim(&mut self, number: u64) -> Slot {
        let ways = self.shape.ways();
        let mut candidates = [(0, Slot::default()); MAX_MARKED_WAYS as usize];
        let candidates = &mut candidates[..ways as usize];
        for (way, candidate) in candidates.iter_mut().enumerate() {
            let slot = self.slot_in_way(number, way as u32);
            if self.cells[slot.slot() as usize].tag == K::EMPTY {
                return slot;
            }
            *candidate = (self.stamp(slot), slot);
        }
        match self.shape.replacement() {
            Replacement::Random => candidates[self.random.below(ways) as usize].1,
            Replacement::RandomHalf => {
                candidates.sort_unstable_by_key(|candidate| candidate.0);
                candidates[self.random.below((ways / 2).max(1)) as usize].1
            }
            Replacement::Nru => self.skewed_nru_victim(candidates),
            _ => candidates.iter().min_by_key(|candidate| candidate.0).map_or(candidates[0].1, |oldest| oldest.1),
        }
    }

    /// The first candidate without a mark; when all have one, all lose it.
    fn skewed_nru_victim(&mut self, candidates: &[(u64, Slot)]) -> Slot {
        if let Some(unused) = candidates.iter().find(|candidate| candidate.0 == 0) {
            return unused.1;
        }
        if let Layout::Skewed(stamps) = &mut self.layout {
            for (_, slot) in candidates {
                stamps.of[slot.slot() as usize] = 0;
            }
        }
        candidates[0].1
    }

    fn stamp(&self, slot: Slot) -> u64 {
        match &self.layout {
            Layout::Skewed(stamps) => stamps.of[slot.slot() as usize],
            _ => 0,
        }
    }

    pub(super) fn drop_slot(&mut self, tag: u64, slot: u32) {
        self.cells[slot as usize].tag = K::EMPTY;
        self.live -= 1;
        let ways = self.shape.ways();
        let (set, way) = (slot / ways, slot % ways);
        match &mut self.layout {
            Layout::Narrow => {
                let order = &mut self.rows[set as usize].order;
                *order = packed::to_back(*order, way, ways);
            }
            Layout::Wide(lists, chains) => {
                lists.move_back(set, slot);
                chains.unlink(tag, slot);
            }
            Layout::Skewed(stamps) => stamps.of[slot as usize] = 0,
        }
        if self.shape.replacement() == Replacement::Nru {
            self.rows[set as usize].marks &= !(1 << way);
        }
    }
}
