//! Uses of wide structures that take entries out and put others in all the time, as the second level of exclusive TLBs: each walks its
//! chain once.

use super::{Cell, Key, Layout, NONE, OnHit, Replacement, SetAssoc};

/// What [`SetAssoc::take`] took out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Taken<K, V> {
    /// Key of the entry that a look-up would have found.
    pub key: K,
    /// Its value.
    pub value: V,
    /// Entries taken out: this one, and others that the key finds.
    pub entries: u32,
}

/// What [`SetAssoc::put`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Put {
    /// Replaced the value under an equal key.
    Replaced,
    /// Filled the place of what had this tag: [`Key::EMPTY`] if nothing was there.
    Placed(u64),
}

impl<K: Key, V: Copy + Default> SetAssoc<K, V> {
    /// Takes out what a probe with this key finds, all of it. Counts no use.
    #[inline]
    pub fn take(&mut self, key: &K) -> Option<Taken<K, V>> {
        let Layout::Wide(lists, chains) = &mut self.layout else { return self.take_elsewhere(key) };
        if self.shape.replacement().has_marks() {
            return self.take_elsewhere(key);
        }
        let (cells, set_shift) = (&mut self.cells, self.set_shift);
        let mut taken: Option<Taken<K, V>> = None;
        chains.unlink_where(key.tag(), |slot| {
            let cell = cells.get_mut(slot as usize).filter(|cell| cell.tag == key.tag() && key.accepts(cell.rest));
            let Some(cell) = cell else { return false };
            let first = Taken { key: K::join(cell.tag, cell.rest), value: cell.value, entries: 0 };
            taken.get_or_insert(first).entries += 1;
            cell.tag = K::EMPTY;
            lists.move_back(slot >> set_shift, slot);
            true
        });
        self.live -= taken.as_ref()?.entries;
        taken
    }

    /// [`use_of`](Self::use_of) followed by [`take`](Self::take).
    #[inline]
    pub fn use_and_take(&mut self, key: &K) -> Option<Taken<K, V>> {
        if self.shape.replacement().has_marks() {
            self.use_of(key)?;
            return self.take(key);
        }
        // Whether it was used last does not matter any more.
        let taken = self.take(key)?;
        self.stamps.tick();
        Some(taken)
    }

    #[inline(never)]
    fn take_elsewhere(&mut self, key: &K) -> Option<Taken<K, V>> {
        let slot = self.find(key)?;
        let mut taken = Taken { key: self.key(slot), value: *self.value(slot), entries: 0 };
        let mut next = Some(slot);
        while let Some(slot) = next {
            self.remove(slot);
            taken.entries += 1;
            next = self.find(key);
        }
        Some(taken)
    }

    /// [`replace`](Self::replace), or else [`displace`](Self::displace).
    #[inline]
    pub fn put(&mut self, key: K, value: V) -> Put {
        let in_order = matches!(self.shape.replacement(), Replacement::Lru | Replacement::Fifo);
        let Layout::Wide(lists, chains) = &mut self.layout else { return self.put_elsewhere(key, value) };
        if !in_order {
            return self.put_elsewhere(key, value);
        }
        let (tag, rest) = (key.tag(), key.rest());
        let bucket = chains.bucket(tag);
        let mut slot = chains.first_of(bucket);
        while slot != NONE {
            match self.cells.get_mut(slot as usize) {
                Some(cell) if cell.tag == tag && cell.rest == rest => {
                    cell.value = value;
                    self.stamps.tick();
                    if self.on_hit == OnHit::List {
                        lists.move_front(slot >> self.set_shift, slot);
                    }
                    return Put::Replaced;
                }
                _ => slot = chains.after(slot),
            }
        }
        let slot = lists.last_to_front(self.indexer.set(key.number()));
        self.stamps.tick();
        let old = std::mem::replace(&mut self.cells[slot as usize], Cell { tag, rest, value }).tag;
        if old == K::EMPTY {
            self.live += 1;
        } else {
            chains.unlink(old, slot);
        }
        chains.link_at(bucket, slot);
        Put::Placed(old)
    }

    #[inline(never)]
    fn put_elsewhere(&mut self, key: K, value: V) -> Put {
        if self.replace(&key, value) { Put::Replaced } else { Put::Placed(self.displace(key, value)) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Index, Shape};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The short ways leave what the plain ones do, order of eviction included.
        #[test]
        fn taking_and_putting_are_what_they_stand_for(
            ways in prop::sample::select(vec![4u32, 32]),
            policy in prop::sample::select(vec![Replacement::Lru, Replacement::Fifo, Replacement::Nru, Replacement::TreePlru]),
            steps in prop::collection::vec((0u64..90, 0u8..4), 0..200),
        ) {
            let shape = Shape::new(2 * ways, ways).unwrap().replaced_by(policy).unwrap().indexed_by(Index::Hashed).unwrap();
            let (mut short, mut plain) = (SetAssoc::<u64, u64>::new(shape, 1), SetAssoc::<u64, u64>::new(shape, 1));
            for (step, (key, what)) in (0u64..).zip(steps) {
                match what {
                    0 => {
                        let used = plain.use_of(&key);
                        let value = used.map(|slot| *plain.value(slot));
                        if let Some(slot) = used {
                            plain.remove(slot);
                        }
                        prop_assert_eq!(short.use_and_take(&key).map(|taken| taken.value), value);
                    }
                    1 => {
                        let taken = short.take(&key);
                        prop_assert_eq!(taken.map_or(0, |taken| u64::from(taken.entries)), plain.invalidate(&key));
                    }
                    _ => {
                        let placed = if plain.replace(&key, step) { Put::Replaced } else { Put::Placed(plain.displace(key, step)) };
                        prop_assert_eq!(short.put(key, step), placed);
                    }
                }
                prop_assert_eq!(short.iter().collect::<Vec<_>>(), plain.iter().collect::<Vec<_>>());
                prop_assert_eq!((short.len(), short.uses()), (plain.len(), plain.uses()));
            }
        }
    }
}
