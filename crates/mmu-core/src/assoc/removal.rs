//! Taking entries out.

use super::{Key, Layout, NONE, SetAssoc, Slot};

impl<K: Key, V: Copy + Default> SetAssoc<K, V> {
    /// Removes the entry at a place, if there is one.
    #[inline]
    pub fn remove(&mut self, slot: Slot) {
        if let Some(tag) = self.cells.get(slot.index()).map(|cell| cell.tag).filter(|&tag| tag != K::EMPTY) {
            self.drop_slot(tag, slot.index() as u32);
        }
    }

    /// Removes what a probe with this key finds, all of it, and returns how many entries that were.
    pub fn invalidate(&mut self, key: &K) -> u64 {
        self.retain_tagged(key, |stored, _| !key.accepts(stored.rest()))
    }

    /// Keeps the entries for which `keep` says so (it may change their values) and returns how many went.
    /// Looks at every entry.
    pub fn retain(&mut self, mut keep: impl FnMut(&K, &mut V) -> bool) -> u64 {
        if self.live == 0 {
            return 0;
        }
        let before = self.live;
        for slot in 0..self.cells.len() as u32 {
            self.keep_or_drop(slot, &mut keep);
        }
        u64::from(before - self.live)
    }

    /// [`retain`](Self::retain) restricted to entries with this key's [`Key::tag`]: looks at one set only.
    pub fn retain_tagged(&mut self, key: &K, mut keep: impl FnMut(&K, &mut V) -> bool) -> u64 {
        if self.live == 0 {
            return 0;
        }
        let (before, tag) = (self.live, key.tag());
        let mut keep = |stored: &K, value: &mut V| stored.tag() != tag || keep(stored, value);
        if let Layout::Narrow = &self.layout {
            let first = self.indexer.set(key.number()) << self.set_shift;
            for slot in first..first + self.shape.ways() {
                self.keep_or_drop(slot, &mut keep);
            }
        } else {
            let mut slot = self.chains().map_or(NONE, |chains| chains.first(tag));
            while slot != NONE {
                let after = self.chains().map_or(NONE, |chains| chains.after(slot));
                self.keep_or_drop(slot, &mut keep);
                slot = after;
            }
        }
        u64::from(before - self.live)
    }

    /// Empties the structure and returns how many entries it held. Replacement state of emptied ways does not matter.
    pub fn clear(&mut self) -> u64 {
        self.retain(|_, _| false)
    }

    #[inline]
    fn keep_or_drop(&mut self, slot: u32, keep: &mut impl FnMut(&K, &mut V) -> bool) {
        let cell = &mut self.cells[slot as usize];
        let tag = cell.tag;
        if tag != K::EMPTY && !keep(&K::join(tag, cell.rest), &mut cell.value) {
            self.drop_slot(tag, slot);
        }
    }
}
