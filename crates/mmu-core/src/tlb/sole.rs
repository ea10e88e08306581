//! Arrays all of whose entries are pages of one size: what most look-ups and fills meet, without the questions of the general way.

use super::array::TlbArray;
use super::entry::Stored;
use super::spec::MAX_SIZES;
use super::{Input, TlbKey};
use crate::assoc::{Inserted, Key, Missed, Put, Slot};

impl TlbArray {
    /// The shift of its pages, if all are of one size and it needs no more of them than their translation.
    pub(super) fn sole_shift(&self) -> Option<u32> {
        self.plain.then_some(self.sole.class() as u32)
    }
    /// Whether [`use_or_miss`](Self::use_or_miss) and [`put_missed`](Self::put_missed) work here.
    pub(super) fn is_swift(&self) -> bool {
        self.store.is_swift()
    }

    /// The key of an address among pages of [`sole_shift`](Self::sole_shift).
    #[inline(always)]
    pub(super) fn sole_key(&self, input: Input, context: u64) -> TlbKey {
        self.sole.key(input, context)
    }

    /// Where such a key is found; counts a use.
    #[inline(always)]
    pub(super) fn use_sole(&mut self, key: &TlbKey) -> Option<Slot> {
        self.store.use_of(key)
    }

    /// The same in a swift array; where nothing is found, says where that was.
    #[inline(always)]
    pub(super) fn use_or_miss(&mut self, key: &TlbKey) -> Result<Slot, Missed> {
        self.store.use_or_miss(key)
    }

    /// Puts an entry of that size in under such a key, which has its reach and was missed there.
    #[inline(always)]
    pub(super) fn put_missed(&mut self, at: Missed, key: &TlbKey, entry: Stored) {
        let old = self.store.displace_at(at, *key, entry);
        self.count_put(old);
    }

    /// The same; returns what has to leave.
    #[inline(always)]
    pub(super) fn exchange_missed(&mut self, at: Missed, key: &TlbKey, entry: Stored) -> Option<(TlbKey, Stored)> {
        let evicted = self.store.exchange_at(at, *key, entry);
        self.count_put(evicted.map_or(TlbKey::EMPTY, |(key, _)| key.tag()));
        evicted
    }

    /// Replaces the page under such a key, which has its reach, if it is here; says whether it was.
    #[inline(always)]
    pub(super) fn replace_sole(&mut self, key: &TlbKey, entry: Stored) -> bool {
        let replaced = self.store.replace(key, entry);
        self.stats.fills += u64::from(replaced);
        replaced
    }

    /// Puts a page in under such a key, which has its reach and is not here; returns what has to leave.
    #[inline]
    pub(super) fn put_absent_sole(&mut self, key: TlbKey, entry: Stored) -> Option<(TlbKey, Stored)> {
        self.stats.fills += 1;
        if let Inserted::Evicted(key, entry) = self.store.insert_absent(key, entry) {
            self.stats.evictions += 1;
            return Some((key, entry));
        }
        self.count_filled();
        None
    }

    /// Puts a page in under such a key, whether it is here or not.
    #[inline]
    pub(super) fn put_under(&mut self, key: &TlbKey, entry: Stored) {
        match self.store.put(*key, entry) {
            Put::Replaced => self.stats.fills += 1,
            Put::Placed(old) => self.count_put(old),
        }
    }

    #[inline(always)]
    pub(super) fn put_sole(&mut self, key: &TlbKey, entry: Stored) {
        let old = self.store.displace(*key, entry);
        self.count_put(old);
    }

    /// Counts an entry of the one size that is there, in the place of what had this tag.
    #[inline(always)]
    fn count_put(&mut self, old: u64) {
        self.stats.fills += 1;
        if old == TlbKey::EMPTY {
            self.count_filled();
        } else {
            self.stats.evictions += 1;
        }
    }

    #[cold]
    fn count_filled(&mut self) {
        self.classes[self.present.trailing_zeros() as usize % MAX_SIZES].count += 1;
    }

    /// Takes out what such a key finds, all of it, as one use; returns what a look-up would have found.
    #[inline]
    pub(super) fn take_used(&mut self, key: &TlbKey) -> Option<(TlbKey, Stored)> {
        let taken = self.store.use_and_take(key)?;
        self.count_taken(taken.entries);
        Some((taken.key, taken.value))
    }

    /// [`take`](Self::take) where all entries are of one size and none is a group.
    // PERF: what an invalidation asks beside the key is not asked here.
    pub(super) fn take_sole(&mut self, input: Input, context: u64) {
        if let Some(taken) = self.store.take(&self.sole.key(input, context)) {
            self.count_taken(taken.entries);
        }
    }

    /// Entries of the one size that are gone: one in general; a global and a specific one may both answer to one key.
    #[inline(always)]
    fn count_taken(&mut self, entries: u32) {
        let class = self.present.trailing_zeros() as usize % MAX_SIZES;
        self.classes[class].count -= entries;
        if self.classes[class].count == 0 {
            self.present = 0;
            self.prepare();
        }
    }
}
