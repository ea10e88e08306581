//! Flat arenas of power-of-two blocks, and ranges of free pieces.
//!
//! One `Vec` per kind of thing keeps the hot path at one load per indirection: an index, not a pointer to a box that
//! holds a pointer. Blocks freed are reused for the same size, last freed first.

use std::collections::BTreeMap;

/// Blocks of `1 << log` items. An index counts units of `1 << UNIT` items, so that 32 bits reach far.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Blocks<T, const UNIT: u32> {
    items: Vec<T>,
    free: Vec<Vec<u32>>,
}

impl<T: Copy, const UNIT: u32> Blocks<T, UNIT> {
    pub(super) const fn new() -> Self {
        Self { items: Vec::new(), free: Vec::new() }
    }

    /// A block of `1 << log` items (at least a unit), each `item`.
    pub(super) fn take(&mut self, log: u32, item: T) -> u32 {
        if let Some(index) = self.free.get_mut(log as usize).and_then(Vec::pop) {
            self.slice_mut(index, log).fill(item);
            return index;
        }
        let start = self.items.len();
        grow(&mut self.items, 1 << log);
        self.items.resize(start + (1 << log), item);
        (start >> UNIT) as u32
    }

    pub(super) fn give(&mut self, index: u32, log: u32) {
        let log = log as usize;
        if self.free.len() <= log {
            self.free.resize(log + 1, Vec::new());
        }
        self.free[log].push(index);
    }

    /// All items, those of blocks that were given back too.
    #[inline(always)]
    pub(super) fn all(&self) -> &[T] {
        &self.items
    }
    /// All items, to be changed.
    #[inline(always)]
    pub(super) fn all_mut(&mut self) -> &mut [T] {
        &mut self.items
    }
    /// An item by its number among all items.
    #[inline(always)]
    pub(super) fn get(&self, item: usize) -> Option<&T> {
        self.items.get(item)
    }
    #[inline]
    pub(super) fn item(&self, index: u32, i: usize) -> &T {
        &self.items[((index as usize) << UNIT) + i]
    }
    #[inline]
    pub(super) fn item_mut(&mut self, index: u32, i: usize) -> &mut T {
        &mut self.items[((index as usize) << UNIT) + i]
    }
    /// Items by the number of the first among all.
    #[inline]
    pub(super) fn items_mut(&mut self, first: usize, items: usize) -> &mut [T] {
        &mut self.items[first..first + items]
    }
    pub(super) fn slice(&self, index: u32, log: u32) -> &[T] {
        &self.items[(index as usize) << UNIT..][..1 << log]
    }
    pub(super) fn slice_mut(&mut self, index: u32, log: u32) -> &mut [T] {
        &mut self.items[(index as usize) << UNIT..][..1 << log]
    }

    /// Host bytes held.
    pub(super) fn footprint(&self) -> u64 {
        let lists: usize = self.free.iter().map(|list| list.capacity() * size_of::<u32>()).sum();
        (self.items.capacity() * size_of::<T>() + lists) as u64
    }
}

impl<const UNIT: u32> Blocks<u64, UNIT> {
    /// A block of `1 << log` words (at least a unit), zero all of them.
    // PERF: copied from zeros at hand, which is half of what writing one word after the other takes.
    pub(super) fn take_zeroed(&mut self, log: u32) -> u32 {
        const ZEROS: [u64; 512] = [0; 512];
        if self.free.get(log as usize).is_some_and(|free| !free.is_empty()) {
            return self.take(log, 0);
        }
        let start = self.items.len();
        let mut left = 1usize << log;
        grow(&mut self.items, left);
        while left > 0 {
            let some = left.min(ZEROS.len());
            self.items.extend_from_slice(&ZEROS[..some]);
            left -= some;
        }
        (start >> UNIT) as u32
    }
}

/// Makes room for `more` items: doubling while small, by an eighth when room that may never be used would be megabytes.
pub(super) fn grow<T>(items: &mut Vec<T>, more: usize) {
    const DOUBLING: usize = 4 << 20;
    if items.capacity() - items.len() < more {
        let len = items.len();
        let slack = if len * size_of::<T>() < DOUBLING { len } else { len / 8 };
        items.reserve_exact(more.max(slack));
    }
}

/// A set of piece numbers kept as disjoint, non-adjacent ranges.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Ranges {
    /// Start and length.
    ranges: BTreeMap<u32, u32>,
}

impl Ranges {
    pub(super) fn insert(&mut self, mut start: u32, mut len: u32) {
        if let Some((&before, &n)) = self.ranges.range(..start).next_back()
            && before + n == start
        {
            self.ranges.remove(&before);
            (start, len) = (before, n + len);
        }
        if let Some(n) = self.ranges.remove(&(start + len)) {
            len += n;
        }
        self.ranges.insert(start, len);
    }

    /// Takes the lowest `len` consecutive numbers.
    pub(super) fn take(&mut self, len: u32) -> Option<u32> {
        let (&start, &n) = self.ranges.iter().find(|&(_, &n)| n >= len)?;
        self.ranges.remove(&start);
        if n > len {
            self.ranges.insert(start + len, n - len);
        }
        Some(start)
    }

    pub(super) fn footprint(&self) -> u64 {
        // A B-tree node is at least half full.
        (self.ranges.len() * 2 * size_of::<(u32, u32)>()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_neighbours_join() {
        let mut ranges = Ranges::default();
        for start in [4, 0, 8, 2, 6] {
            ranges.insert(start, 2);
        }
        assert_eq!(ranges.ranges.len(), 1);
        assert_eq!((ranges.take(11), ranges.take(3), ranges.take(7), ranges.take(1)), (None, Some(0), Some(3), None));
    }

    #[test]
    fn blocks_come_back() {
        let mut blocks = Blocks::<u64, 5>::new();
        let (a, b) = (blocks.take(5, 1), blocks.take(9, 2));
        assert_eq!((*blocks.item(b, 511), blocks.slice(a, 5)), (2, &[1; 32][..]));
        blocks.give(a, 5);
        assert_eq!(blocks.take(5, 3), a);
        assert_eq!(blocks.slice(a, 5), &[3; 32]);
    }
}
