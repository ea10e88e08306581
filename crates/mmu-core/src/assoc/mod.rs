//! The set-associative structure under TLBs, paging-structure caches and the reference-latency cache.
//!
//! # Design
//!
//! One type, [`SetAssoc`], holds entries in three flat arrays: the words that decide most comparisons (tags), the rest of
//! the keys, and the values. A probe scans tags only; a set of eight is one cache line of the host. The replacement state lies apart, in a form chosen once from the
//! [`Shape`]:
//!
//! - *narrow* (up to 16 ways): the recency order of a set is one word of nibbles, updated without branches; the set
//!   is scanned;
//! - *wide* (more ways, so every large fully associative structure): linked recency lists, and chained buckets by
//!   tag, so that a probe of 256 ways costs about as much as one of 8;
//! - *skewed*: time stamps, because the candidates for a block are not a set.
//!
//! All three keep the order of fill even for policies that ignore it: emptied ways sink to its end, hence "empty
//! ways fill first" needs no search. Lookups allocate nothing.
//!
//! A [`Key`] says how a probe matches a stored key. Insertion compares by equality: inserting an equal key replaces
//! the value in place. Two keys that match one probe without being equal (a global and an address-space-specific
//! translation) may coexist, as in hardware; then the first in way order is found.
//!
//! # Not here
//!
//! Latencies, statistics, the meaning of keys: those belong to the owners. Random policies draw from the
//! structure's own generator, so results depend on the seed and the sequence of calls only.

mod index;
mod order;
mod replacement;
mod shape;

use std::fmt;

pub use index::Index;
use index::Indexer;
use order::{Chains, Lists, NONE, packed};
pub use replacement::Replacement;
use replacement::{SplitMix, nru, tree};
pub use shape::{Shape, ShapeError};

/// What a structure is searched by: a word that is compared first, and the rest.
pub trait Key: Copy + Eq {
    /// What the tag leaves out.
    type Rest: Copy + Eq + Default;
    /// Tag of an unused way. No probe may have it; inserting a key with it does nothing.
    const EMPTY: u64;
    /// A word equal in every two keys that match.
    fn tag(&self) -> u64;
    /// What the tag leaves out.
    fn rest(&self) -> Self::Rest;
    /// The key of these parts.
    fn join(tag: u64, rest: Self::Rest) -> Self;
    /// The block number from which the set is computed.
    fn number(&self) -> u64;
    /// Whether a probe with this key finds an entry stored under the same tag with this rest.
    fn accepts(&self, stored: Self::Rest) -> bool;
}

/// Plain block numbers, for caches without tags. `u64::MAX` is the empty key.
impl Key for u64 {
    type Rest = ();
    const EMPTY: u64 = u64::MAX;
    #[inline(always)]
    fn tag(&self) -> u64 {
        *self
    }
    #[inline(always)]
    fn rest(&self) {}
    #[inline(always)]
    fn join(tag: u64, (): ()) -> Self {
        tag
    }
    #[inline(always)]
    fn number(&self) -> u64 {
        *self
    }
    #[inline(always)]
    fn accepts(&self, (): ()) -> bool {
        true
    }
}

/// Place of an entry in the structure it came from, valid until the next insertion or removal there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Slot {
    set: u32,
    slot: u32,
}

/// Which of up to 16 tags equal this one, as bits.
// PERF: without early exit, because the way of a hit is random to the host's branch predictor.
#[inline(always)]
fn scan(tags: &[u64], tag: u64) -> u32 {
    #[inline(always)]
    fn bits<const N: usize>(tags: &[u64; N], tag: u64) -> u32 {
        let mut hits = 0;
        for (way, stored) in tags.iter().enumerate() {
            hits |= u32::from(*stored == tag) << way;
        }
        hits
    }
    if let Ok(four) = <&[u64; 4]>::try_from(tags) {
        return bits(four, tag);
    }
    if let Ok(twelve) = <&[u64; 12]>::try_from(tags) {
        return bits(twelve, tag);
    }
    tags.iter().rev().fold(0, |hits, &stored| hits << 1 | u32::from(stored == tag))
}

/// What an insertion did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inserted<K, V> {
    /// An empty way was filled.
    Filled,
    /// An equal key was there; this is its old value.
    Replaced(V),
    /// The set was full; this entry left it.
    Evicted(K, V),
}

/// A set-associative array from keys to values. See the [module](self) for its design.
///
/// ```
/// use mmu_core::assoc::{Shape, Inserted, SetAssoc};
/// let mut cache: SetAssoc<u64, &str> = SetAssoc::new(Shape::new(4, 2)?, 0);
/// cache.insert(2, "two");
/// cache.insert(4, "four");
/// assert_eq!(cache.lookup(&2), Some(&"two"));
/// assert_eq!(cache.insert(6, "six"), Inserted::Evicted(4, "four"));
/// # Ok::<(), mmu_core::assoc::ShapeError>(())
/// ```
#[derive(Clone)]
pub struct SetAssoc<K: Key, V> {
    tags: Vec<u64>,
    rests: Vec<K::Rest>,
    values: Vec<V>,
    /// Whether the layout is the narrow one, asked on every probe.
    narrow: bool,
    /// Recency order per set of a narrow structure.
    orders: Vec<u64>,
    layout: Layout,
    /// Tree-PLRU or NRU bits per set; empty for other policies.
    marks: Vec<u64>,
    indexer: Indexer,
    shape: Shape,
    live: u32,
    random: SplitMix,
}

#[derive(Clone)]
enum Layout {
    Narrow,
    Wide(Lists, Chains),
    Skewed(Stamps),
}

/// Last use (LRU) or fill (FIFO) of every slot; for NRU 1 or 0.
#[derive(Clone)]
struct Stamps {
    of: Vec<u64>,
    clock: u64,
}

impl<K: Key, V: Copy + Default> SetAssoc<K, V> {
    /// An empty structure. The seed matters to random policies only.
    pub fn new(shape: Shape, seed: u64) -> Self {
        let (sets, ways, entries) = (shape.sets(), shape.ways(), shape.entries());
        let layout = if shape.index() == Index::Skewed {
            Layout::Skewed(Stamps { of: vec![0; entries as usize], clock: 0 })
        } else if shape.is_narrow() {
            Layout::Narrow
        } else {
            Layout::Wide(Lists::new(sets, ways), Chains::new(entries))
        };
        let narrow = matches!(layout, Layout::Narrow);
        let marked = shape.replacement().has_marks();
        Self {
            tags: vec![K::EMPTY; entries as usize],
            rests: vec![K::Rest::default(); entries as usize],
            values: vec![V::default(); entries as usize],
            narrow,
            orders: if narrow { vec![packed::initial(ways); sets as usize] } else { Vec::new() },
            layout,
            marks: vec![0; if marked { sets as usize } else { 0 }],
            indexer: Indexer::new(shape.index(), sets),
            shape,
            live: 0,
            random: SplitMix(seed),
        }
    }

    /// Its shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }
    /// Number of entries held.
    pub fn len(&self) -> usize {
        self.live as usize
    }
    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// Finds an entry and counts this as a use of it.
    #[inline(always)]
    pub fn lookup(&mut self, key: &K) -> Option<&V> {
        let slot = self.find(key)?;
        self.touch(slot);
        Some(self.value(slot))
    }

    /// Finds an entry without counting a use.
    #[inline]
    pub fn peek(&self, key: &K) -> Option<&V> {
        self.find(key).map(|slot| self.value(slot))
    }

    /// Finds the place of an entry without counting a use.
    #[inline(always)]
    pub fn find(&self, key: &K) -> Option<Slot> {
        self.search(key, |rest| key.accepts(rest))
    }

    /// The value at a place.
    #[inline(always)]
    pub fn value(&self, slot: Slot) -> &V {
        &self.values[slot.slot as usize]
    }
    /// The key at a place; one with the tag [`Key::EMPTY`] if nothing is there.
    #[inline]
    pub fn key(&self, slot: Slot) -> K {
        K::join(self.tags[slot.slot as usize], self.rests[slot.slot as usize])
    }

    /// Whether this very key is (still) at a place.
    #[inline(always)]
    pub fn is_at(&self, slot: Slot, key: &K) -> bool {
        let at = slot.slot as usize;
        self.tags.get(at) == Some(&key.tag()) && self.rests.get(at) == Some(&key.rest())
    }

    /// The value at a place, to be changed.
    #[inline]
    pub fn value_mut(&mut self, slot: Slot) -> &mut V {
        &mut self.values[slot.slot as usize]
    }

    /// Counts a use of the entry at a place.
    #[inline(always)]
    pub fn touch(&mut self, slot: Slot) {
        if !self.shape.replacement().reorders_on_hit() {
            self.mark(slot.set, slot.slot);
        } else if self.narrow {
            self.reorder(slot.set, slot.slot);
        } else {
            self.bring_to_front(slot.set, slot.slot);
        }
    }

    /// Puts an entry in, replacing the value under an equal key or else, in a full set, the policy's victim.
    /// Counts as a use of the entry.
    #[inline]
    pub fn insert(&mut self, key: K, value: V) -> Inserted<K, V> {
        if key.tag() == K::EMPTY {
            return Inserted::Filled;
        }
        match self.search(&key, |rest| rest == key.rest()) {
            Some(slot) => {
                self.touch(slot);
                Inserted::Replaced(std::mem::replace(self.value_mut(slot), value))
            }
            None => self.insert_absent(key, value),
        }
    }

    /// [`insert`](Self::insert) for a key that is known not to be there, without the search.
    #[inline]
    pub fn insert_absent(&mut self, key: K, value: V) -> Inserted<K, V> {
        let slot = self.victim(key.number());
        let (rest, old_value) = (self.rests[slot.slot as usize], self.values[slot.slot as usize]);
        let tag = self.place(slot, key, value);
        if tag == K::EMPTY { Inserted::Filled } else { Inserted::Evicted(K::join(tag, rest), old_value) }
    }

    /// [`insert_absent`](Self::insert_absent) for callers who only ask for the tag of what left ([`Key::EMPTY`] if nothing did).
    #[inline(always)]
    pub fn displace(&mut self, key: K, value: V) -> u64 {
        let in_order = matches!(self.shape.replacement(), Replacement::Lru | Replacement::Fifo);
        if !(self.narrow && in_order) {
            return self.displace_elsewhere(key, value);
        }
        // PERF: the common case of `victim` and `place` together: whatever is last in order is overwritten.
        let ways = self.shape.ways();
        let set = self.indexer.set(key.number());
        let order = &mut self.orders[set as usize];
        let way = packed::at(*order, ways - 1);
        *order = packed::last_to_front(*order, way, ways);
        let at = (set * ways + way) as usize;
        self.rests[at] = key.rest();
        self.values[at] = value;
        let old = std::mem::replace(&mut self.tags[at], key.tag());
        self.live += u32::from(old == K::EMPTY);
        old
    }

    #[inline(never)]
    fn displace_elsewhere(&mut self, key: K, value: V) -> u64 {
        let slot = self.victim(key.number());
        self.place(slot, key, value)
    }

    /// Puts an entry into a slot and returns the tag it had.
    #[inline]
    fn place(&mut self, slot: Slot, key: K, value: V) -> u64 {
        let at = slot.slot as usize;
        let old = std::mem::replace(&mut self.tags[at], key.tag());
        self.rests[at] = key.rest();
        self.values[at] = value;
        if let Layout::Wide(_, chains) = &mut self.layout {
            if old != K::EMPTY {
                chains.unlink(old, slot.slot);
            }
            chains.link(key.tag(), slot.slot);
        }
        if self.narrow {
            self.reorder(slot.set, slot.slot);
        } else {
            self.bring_to_front(slot.set, slot.slot);
        }
        if self.shape.replacement().has_marks() {
            self.mark(slot.set, slot.slot);
        }
        self.live += u32::from(old == K::EMPTY);
        old
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
        for slot in 0..self.shape.entries() {
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
        if let Layout::Wide(_, chains) = &self.layout {
            let mut slot = chains.first(tag);
            while slot != NONE {
                let Layout::Wide(_, chains) = &self.layout else { break };
                let after = chains.after(slot);
                self.keep_or_drop(slot, &mut keep);
                slot = after;
            }
        } else {
            for way in 0..self.shape.ways() {
                self.keep_or_drop(self.slot_in_way(key.number(), way).slot, &mut keep);
            }
        }
        u64::from(before - self.live)
    }

    /// Empties the structure and returns how many entries it held. Replacement state of emptied ways does not matter.
    pub fn clear(&mut self) -> u64 {
        self.retain(|_, _| false)
    }

    /// All entries, set by set.
    pub fn iter(&self) -> impl Iterator<Item = (K, &V)> {
        let entries = self.tags.iter().zip(&self.rests).zip(&self.values);
        entries.filter(|((tag, _), _)| **tag != K::EMPTY).map(|((&tag, &rest), value)| (K::join(tag, rest), value))
    }

    #[inline(always)]
    fn search(&self, key: &K, accept: impl Fn(K::Rest) -> bool) -> Option<Slot> {
        if !self.narrow {
            return self.search_elsewhere(key, accept);
        }
        let ways = self.shape.ways();
        let set = self.indexer.set(key.number());
        let first = set * ways;
        let mut hits = scan(&self.tags[first as usize..(first + ways) as usize], key.tag());
        while hits != 0 {
            let slot = first + hits.trailing_zeros();
            if accept(self.rests[slot as usize]) {
                return Some(Slot { set, slot });
            }
            hits &= hits - 1;
        }
        None
    }

    #[inline(never)]
    fn search_elsewhere(&self, key: &K, accept: impl Fn(K::Rest) -> bool) -> Option<Slot> {
        let Layout::Wide(_, chains) = &self.layout else { return self.search_skewed(key, accept) };
        let tag = key.tag();
        let mut slot = chains.first(tag);
        while slot != NONE && !(self.tags[slot as usize] == tag && accept(self.rests[slot as usize])) {
            slot = chains.after(slot);
        }
        (slot != NONE).then(|| Slot { set: self.indexer.set(key.number()), slot })
    }

    fn search_skewed(&self, key: &K, accept: impl Fn(K::Rest) -> bool) -> Option<Slot> {
        let (tag, number) = (key.tag(), key.number());
        (0..self.shape.ways())
            .map(|way| self.slot_in_way(number, way))
            .find(|slot| self.tags[slot.slot as usize] == tag && accept(self.rests[slot.slot as usize]))
    }

    /// Where a block would lie in a way.
    #[inline]
    fn slot_in_way(&self, number: u64, way: u32) -> Slot {
        let set = match self.layout {
            Layout::Skewed(_) => self.indexer.set_of_way(number, way),
            _ => self.indexer.set(number),
        };
        Slot { set, slot: set * self.shape.ways() + way }
    }

    // PERF: places are passed as two words; as a struct they went through memory and cost a store-forwarding stall.
    #[inline(always)]
    fn reorder(&mut self, set: u32, slot: u32) {
        let order = &mut self.orders[set as usize];
        *order = packed::to_front(*order, slot - set * self.shape.ways());
    }

    fn bring_to_front(&mut self, set: u32, slot: u32) {
        let policy = self.shape.replacement();
        match &mut self.layout {
            Layout::Narrow => self.reorder(set, slot),
            Layout::Wide(lists, _) => lists.move_front(set, slot),
            Layout::Skewed(stamps) if policy != Replacement::Nru => {
                stamps.clock += 1;
                stamps.of[slot as usize] = stamps.clock;
            }
            Layout::Skewed(stamps) => stamps.of[slot as usize] = 1,
        }
    }

    /// Notes a use in the marks of tree-PLRU or NRU.
    fn mark(&mut self, set: u32, slot: u32) {
        let ways = self.shape.ways();
        let policy = self.shape.replacement();
        if let (Replacement::Nru, Layout::Skewed(stamps)) = (policy, &mut self.layout) {
            stamps.of[slot as usize] = 1;
        } else if let Some(bits) = self.marks.get_mut(set as usize) {
            let touch = if policy == Replacement::TreePlru { tree::touch } else { nru::touch };
            *bits = touch(*bits, slot - set * ways, ways);
        }
    }

    /// The way to fill for this block: an empty one if there is one, else the policy's choice.
    #[inline]
    fn victim(&mut self, number: u64) -> Slot {
        if let Layout::Skewed(_) = self.layout {
            return self.skewed_victim(number);
        }
        let set = self.indexer.set(number);
        let ways = self.shape.ways();
        let at = |slot| Slot { set, slot };
        let last = self.nth_last(set, 0);
        if self.tags[last as usize] == K::EMPTY {
            return at(last);
        }
        at(match self.shape.replacement() {
            Replacement::Lru | Replacement::Fifo => last,
            Replacement::Random => set * ways + self.random.below(ways),
            Replacement::RandomHalf => {
                let steps = self.random.below((ways / 2).max(1));
                self.nth_last(set, steps)
            }
            Replacement::TreePlru => set * ways + tree::victim(self.marks[set as usize], ways),
            Replacement::Nru => set * ways + nru::victim(self.marks[set as usize], ways),
        })
    }

    /// The slot `steps` before the end of a set's order.
    #[inline]
    fn nth_last(&self, set: u32, steps: u32) -> u32 {
        let ways = self.shape.ways();
        match &self.layout {
            Layout::Narrow => set * ways + packed::at(self.orders[set as usize], ways - 1 - steps),
            Layout::Wide(lists, _) => lists.nth_last(set, steps),
            Layout::Skewed(_) => set * ways,
        }
    }

    fn skewed_victim(&mut self, number: u64) -> Slot {
        let ways = self.shape.ways();
        let mut candidates = [(0, Slot { set: 0, slot: 0 }); replacement::MAX_MARKED_WAYS as usize];
        let candidates = &mut candidates[..ways as usize];
        for (way, candidate) in candidates.iter_mut().enumerate() {
            let slot = self.slot_in_way(number, way as u32);
            if self.tags[slot.slot as usize] == K::EMPTY {
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
                stamps.of[slot.slot as usize] = 0;
            }
        }
        candidates[0].1
    }

    fn stamp(&self, slot: Slot) -> u64 {
        match &self.layout {
            Layout::Skewed(stamps) => stamps.of[slot.slot as usize],
            _ => 0,
        }
    }

    #[inline]
    fn keep_or_drop(&mut self, slot: u32, keep: &mut impl FnMut(&K, &mut V) -> bool) {
        let tag = self.tags[slot as usize];
        if tag != K::EMPTY && !keep(&K::join(tag, self.rests[slot as usize]), &mut self.values[slot as usize]) {
            self.drop_slot(tag, slot);
        }
    }

    fn drop_slot(&mut self, tag: u64, slot: u32) {
        self.tags[slot as usize] = K::EMPTY;
        self.live -= 1;
        let ways = self.shape.ways();
        let (set, way) = (slot / ways, slot % ways);
        match &mut self.layout {
            Layout::Narrow => {
                let order = &mut self.orders[set as usize];
                *order = packed::to_back(*order, way, ways);
            }
            Layout::Wide(lists, chains) => {
                lists.move_back(set, slot);
                chains.unlink(tag, slot);
            }
            Layout::Skewed(stamps) => stamps.of[slot as usize] = 0,
        }
        if self.shape.replacement() == Replacement::Nru && !self.marks.is_empty() {
            self.marks[set as usize] &= !(1 << way);
        }
    }
}

impl<K: Key, V> fmt::Debug for SetAssoc<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SetAssoc").field("shape", &self.shape).field("live", &self.live).finish_non_exhaustive()
    }
}
