//! Replacement beyond the narrow recency order: wide and skewed layouts, and policies other than LRU and FIFO.

use super::replacement::{MAX_MARKED_WAYS, nru, tree};
use super::{Chains, Key, Layout, NONE, OnHit, Replacement, SetAssoc, Slot, holds, packed};

impl<K: Key, V: Copy + Default> SetAssoc<K, V> {
    #[inline(never)]
    pub(super) fn displace_elsewhere(&mut self, key: K, value: V) -> u64 {
        let slot = self.victim(key.number());
        self.place(slot, key, value)
    }

    /// Puts an entry into a slot and returns the tag it had.
    #[inline]
    pub(super) fn place(&mut self, slot: Slot, key: K, value: V) -> u64 {
        let cell = &mut self.cells[slot.index()];
        let old = std::mem::replace(&mut cell.tag, key.tag());
        cell.rest = key.rest();
        cell.value = value;
        let index = slot.index() as u32;
        if let Layout::Wide(_, chains) | Layout::Skewed(chains) = &mut self.layout {
            if old != K::EMPTY {
                chains.unlink(old, index);
            }
            chains.link(key.tag(), index);
        } else {
            let (set, way) = self.set_and_way(index);
            self.rows[set as usize].set_print(way, self.interleaved, key.tag());
        }
        let now = self.stamps.tick();
        self.bring_to_front(index, now);
        if self.shape.replacement().has_marks() {
            self.mark(index);
        }
        self.live += u32::from(old == K::EMPTY);
        old
    }

    /// The set and the way of a slot.
    #[inline(always)]
    pub(super) fn set_and_way(&self, slot: u32) -> (u32, u32) {
        (slot >> self.set_shift, slot & ((1 << self.set_shift) - 1))
    }

    /// The chains of wide and skewed structures.
    #[inline(always)]
    pub(super) fn chains(&self) -> Option<&Chains> {
        match &self.layout {
            Layout::Narrow => None,
            Layout::Wide(_, chains) | Layout::Skewed(chains) => Some(chains),
        }
    }

    #[inline(never)]
    pub(super) fn search_elsewhere(&self, key: K, accept: impl Fn(K::Rest) -> bool) -> Option<Slot> {
        let Some(chains) = self.chains() else {
            return self.search_row(self.indexer.set(key.number()), &key, accept);
        };
        let tag = key.tag();
        let mut slot = chains.first(tag);
        while slot != NONE && !holds(&self.cells, slot, &key, &accept) {
            slot = chains.after(slot);
        }
        if slot == NONE {
            return None;
        }
        Some(Slot::new(if let Layout::Skewed(_) = self.layout { self.lowest_way(slot, &key, accept) } else { slot }))
    }

    /// Of this match and those after it in its chain the one in the lowest way.
    #[inline]
    fn lowest_way(&self, first: u32, key: &K, accept: impl Fn(K::Rest) -> bool) -> u32 {
        let after = |slot| self.chains().map_or(NONE, |chains| chains.after(slot));
        let (mut lowest, mut slot) = (first, after(first));
        while slot != NONE {
            if holds(&self.cells, slot, key, &accept) && self.set_and_way(slot).1 < self.set_and_way(lowest).1 {
                lowest = slot;
            }
            slot = after(slot);
        }
        lowest
    }

    /// What [`touch`](Self::touch) does in wide structures, and for policies that keep marks.
    #[inline(never)]
    pub(super) fn touch_elsewhere(&mut self, slot: u32) {
        match &mut self.layout {
            Layout::Wide(lists, _) if self.on_hit == OnHit::List => lists.move_front(slot >> self.set_shift, slot),
            _ => self.mark(slot),
        }
    }

    /// Makes a slot the newest of its set; `now` is for those who keep stamps.
    fn bring_to_front(&mut self, slot: u32, now: u64) {
        let (set, way) = self.set_and_way(slot);
        match &mut self.layout {
            Layout::Narrow if self.stamps.is_kept() => self.stamps.set(slot as usize, now),
            Layout::Narrow => self.rows[set as usize].touch(way),
            Layout::Wide(lists, _) => lists.move_front(set, slot),
            Layout::Skewed(_) if self.shape.replacement() == Replacement::Nru => self.stamps.set(slot as usize, 1),
            Layout::Skewed(_) => self.stamps.set(slot as usize, now),
        }
    }

    /// Notes a use in the marks of tree-PLRU or NRU; other policies have none.
    fn mark(&mut self, slot: u32) {
        let touch = match self.shape.replacement() {
            Replacement::TreePlru => tree::touch,
            Replacement::Nru => nru::touch,
            _ => return,
        };
        if let Layout::Skewed(_) = &self.layout {
            self.stamps.set(slot as usize, 1);
        } else {
            let (set, way) = self.set_and_way(slot);
            let row = &mut self.rows[set as usize];
            row.marks = touch(row.marks, way, self.shape.ways());
        }
    }

    /// The way to fill for this block: an empty one if there is one, else the policy's choice.
    #[inline]
    pub(super) fn victim(&mut self, number: u64) -> Slot {
        if let Layout::Skewed(_) = self.layout {
            return self.skewed_victim(number);
        }
        let set = self.indexer.set(number);
        let (first, ways) = (set << self.set_shift, self.shape.ways());
        let last = self.nth_last(set, 0);
        if self.cells[last as usize].tag == K::EMPTY {
            return Slot::new(last);
        }
        Slot::new(match self.shape.replacement() {
            Replacement::Lru | Replacement::Fifo => last,
            Replacement::Random => first + self.random.below(ways),
            Replacement::RandomHalf => {
                let steps = self.random.below((ways / 2).max(1));
                self.nth_last(set, steps)
            }
            Replacement::TreePlru => first + tree::victim(self.rows[set as usize].marks, ways),
            Replacement::Nru => first + nru::victim(self.rows[set as usize].marks, ways),
        })
    }

    /// The slot `steps` before the end of a set's order. Stamped structures are only asked for the last.
    #[inline]
    fn nth_last(&self, set: u32, steps: u32) -> u32 {
        let first = set << self.set_shift;
        match &self.layout {
            Layout::Narrow if self.stamps.is_kept() => first + self.stamps.oldest(set, self.set_shift),
            Layout::Narrow => first + packed::at(self.rows[set as usize].order, self.shape.ways() - 1 - steps),
            Layout::Wide(lists, _) => lists.nth_last(set, steps),
            Layout::Skewed(_) => first,
        }
    }

    fn skewed_victim(&mut self, number: u64) -> Slot {
        let ways = self.shape.ways();
        let mut candidates = [(0, Slot::default()); MAX_MARKED_WAYS as usize];
        let candidates = &mut candidates[..ways as usize];
        for (way, candidate) in (0..).zip(candidates.iter_mut()) {
            let slot = Slot::new((self.indexer.set_of_way(number, way) << self.set_shift) + way);
            if self.cells[slot.index()].tag == K::EMPTY {
                return slot;
            }
            *candidate = (self.stamps.at(slot.index()), slot);
        }
        match self.shape.replacement() {
            Replacement::Random => candidates[self.random.below(ways) as usize].1,
            Replacement::RandomHalf => {
                let steps = self.random.below((ways / 2).max(1)) as usize;
                candidates.select_nth_unstable_by_key(steps, |candidate| candidate.0).1.1
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
        for (_, slot) in candidates {
            self.stamps.set(slot.index(), 0);
        }
        candidates[0].1
    }

    pub(super) fn drop_slot(&mut self, tag: u64, slot: u32) {
        self.cells[slot as usize].tag = K::EMPTY;
        self.live -= 1;
        let (set, way) = self.set_and_way(slot);
        match &mut self.layout {
            Layout::Narrow if self.stamps.is_kept() => self.stamps.empty(slot as usize),
            Layout::Narrow => {
                let order = &mut self.rows[set as usize].order;
                *order = packed::to_back(*order, way, self.shape.ways());
            }
            Layout::Wide(lists, chains) => {
                lists.move_back(set, slot);
                chains.unlink(tag, slot);
            }
            Layout::Skewed(chains) => {
                self.stamps.set(slot as usize, 0);
                chains.unlink(tag, slot);
            }
        }
        if self.shape.replacement() == Replacement::Nru {
            self.rows[set as usize].marks &= !(1 << way);
        }
    }
}
