//! The set-associative structure under TLBs, paging-structure caches and the reference-latency cache.
//!
//! # Design
//!
//! One type, [`SetAssoc`], holds its entries as cells of tag, rest of the key and value, set after set. The replacement
//! state lies apart, in a form chosen once from the [`Shape`]:
//!
//! - *narrow* (up to 16 ways): one byte of every tag of a set lies in a row, so that a probe reads half a cache line of
//!   the host and then the one cell that hits. Recency is one word of nibbles in the row, updated without branches; or,
//!   under LRU and [if wanted](SetAssoc::stamped), a time stamp of every way, which makes a use one write and a fill
//!   a search for the lowest;
//! - *wide* (more ways, so every large fully associative structure): linked recency lists, and chained buckets by
//!   tag, so that a probe of 256 ways costs about as much as one of 8;
//! - *skewed*: time stamps, because the candidates for a block are not a set, and chained buckets.
//!
//! All keep the order of fill even for policies that ignore it: emptied ways sink to its end, hence "empty ways fill
//! first" needs no search. Lookups allocate nothing. The cells of a set are as many as the next power of two of its
//! ways; those past the last way stay empty.
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
mod removal;
mod replacement;
mod row;
mod shape;
mod slow;
mod wide;

use std::fmt;

pub use index::Index;
use index::Indexer;
use order::{Chains, Lists, NONE, Stamps, packed};
pub use replacement::Replacement;
use replacement::{SplitMix, nru};
use row::Row;
pub use shape::{Shape, ShapeError};
pub use wide::{Put, Taken};

/// What a structure is searched by: a word that is compared first, and the rest.
pub trait Key: Copy + Eq {
    /// What the tag leaves out.
    type Rest: Copy + Eq + Default;
    /// Tag of an unused way. No probe may have it; inserting a key with it does nothing.
    const EMPTY: u64;
    /// A word equal in every two keys that match, of which [`Key::number`] is a function.
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
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Slot(u32);

impl Slot {
    #[inline(always)]
    fn new(slot: u32) -> Self {
        Self(slot)
    }
    #[inline(always)]
    fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where a look-up in a [swift](SetAssoc::is_swift) structure found nothing, valid until the next insertion or removal there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Missed {
    set: u32,
    print: u8,
}

/// One way: what it holds.
#[derive(Clone, Copy, serde::Serialize, serde::Deserialize)]
struct Cell<R, V> {
    tag: u64,
    rest: R,
    value: V,
}

/// How a probe goes.
#[derive(Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
enum Probe {
    /// Through the row of the set that a mask gives, of up to eight ways.
    Eight,
    /// Through the row of the set that a mask gives, of up to sixteen ways.
    Sixteen,
    /// Some other way.
    Else,
}

/// How the recency of narrow sets is to be kept.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Recency {
    Order,
    Stamps,
}

/// What a hit does to the replacement state.
#[derive(Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
enum OnHit {
    /// Gives the way a new time stamp.
    Stamp,
    /// Moves the way to the front of a narrow set's order.
    Order,
    /// Moves the way to the front of a wide set's list.
    List,
    /// Something else, or nothing.
    Else,
    /// Sets the way's mark in a narrow set, if it has none.
    Mark,
}

/// Whose way a new entry takes.
#[derive(Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
enum OnFill {
    /// That with the oldest stamp of a narrow set.
    Oldest,
    /// That of the last in a narrow set's order.
    Last,
    /// Another.
    Else,
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
#[derive(Clone, serde::Serialize, serde::Deserialize)]
#[serde(bound(
    serialize = "K::Rest: serde::Serialize, V: serde::Serialize",
    deserialize = "K::Rest: serde::Deserialize<'de>, V: serde::Deserialize<'de>"
))]
pub struct SetAssoc<K: Key, V> {
    cells: Vec<Cell<K::Rest, V>>,
    /// One per set; skewed structures do not use theirs.
    rows: Vec<Row>,
    indexer: Indexer,
    shape: Shape,
    probe: Probe,
    // PERF: whether `on_hit` is a stamp, in a place of its own, so that this is asked first.
    stamps_hits: bool,
    on_hit: OnHit,
    on_fill: OnFill,
    live: u32,
    /// Cells of a set: `1 << set_shift`.
    stride: u32,
    set_shift: u32,
    /// How rows keep the prints.
    interleaved: u32,
    /// Bits of a narrow set's order.
    order_mask: u64,
    /// Recency of stamped narrow and of skewed structures; counts uses in all.
    stamps: Stamps,
    layout: Layout,
    random: SplitMix,
}

#[derive(Clone, serde::Serialize, serde::Deserialize)]
enum Layout {
    Narrow,
    Wide(Lists, Chains),
    Skewed(Chains),
}

impl<K: Key, V: Copy + Default> SetAssoc<K, V> {
    /// An empty structure. The seed matters to random policies only.
    pub fn new(shape: Shape, seed: u64) -> Self {
        Self::with_recency(shape, seed, Recency::Order)
    }

    /// The same, to the outside, with time stamps where it can have them: for small structures that are used far more
    /// often than filled.
    pub fn stamped(shape: Shape, seed: u64) -> Self {
        Self::with_recency(shape, seed, Recency::Stamps)
    }

    fn with_recency(shape: Shape, seed: u64, wanted: Recency) -> Self {
        let (sets, ways, policy) = (shape.sets(), shape.ways(), shape.replacement());
        let skewed = shape.index() == Index::Skewed;
        let narrow = shape.is_narrow() && !skewed;
        let stamped = narrow && policy == Replacement::Lru && wanted == Recency::Stamps;
        let stride = if stamped { Stamps::stride(ways) } else { ways.next_power_of_two() };
        let cells = sets * stride;
        let layout = match (skewed, narrow) {
            (true, _) => Layout::Skewed(Chains::new(shape.entries(), cells)),
            (_, true) => Layout::Narrow,
            _ => Layout::Wide(Lists::new(sets, ways, stride), Chains::new(shape.entries(), cells)),
        };
        let indexer = Indexer::new(shape.index(), sets);
        let on_hit = match policy.reorders_on_hit() {
            true if stamped || skewed => OnHit::Stamp,
            true if narrow => OnHit::Order,
            true => OnHit::List,
            false if narrow && policy == Replacement::Nru => OnHit::Mark,
            false => OnHit::Else,
        };
        let in_order = matches!(policy, Replacement::Lru | Replacement::Fifo);
        Self {
            cells: vec![Cell { tag: K::EMPTY, rest: K::Rest::default(), value: V::default() }; cells as usize],
            rows: vec![Row::new(ways); sets as usize],
            indexer,
            shape,
            probe: match ways {
                _ if !(narrow && indexer.is_mask()) => Probe::Else,
                ..=row::WORD_WAYS => Probe::Eight,
                _ => Probe::Sixteen,
            },
            interleaved: u32::from(ways > row::WORD_WAYS),
            stamps_hits: on_hit == OnHit::Stamp,
            on_hit,
            on_fill: match narrow && in_order {
                true if stamped => OnFill::Oldest,
                true => OnFill::Last,
                false => OnFill::Else,
            },
            live: 0,
            stride,
            set_shift: stride.trailing_zeros(),
            order_mask: packed::mask(ways),
            stamps: match (stamped, skewed) {
                (true, _) => Stamps::of_sets(sets, ways),
                (_, true) => Stamps::unset(cells),
                _ => Stamps::unset(0),
            },
            layout,
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

    /// Number of uses counted since it was made: look-ups that found something, touches and insertions.
    #[inline]
    pub fn uses(&self) -> u64 {
        self.stamps.uses()
    }

    /// Finds an entry and counts this as a use of it.
    #[inline(always)]
    pub fn lookup(&mut self, key: &K) -> Option<&V> {
        let slot = self.use_of(key)?;
        self.cells.get(slot.index()).map(|cell| &cell.value)
    }

    /// Finds the place of an entry and counts this as a use of it.
    #[inline(always)]
    pub fn use_of(&mut self, key: &K) -> Option<Slot> {
        if self.on_hit == OnHit::Order && self.probe != Probe::Else {
            return self.use_in_order(key);
        }
        let slot = self.find(key)?;
        self.touch(slot);
        Some(slot)
    }

    // PERF: search and use together, because set and way are at hand between them.
    #[inline(always)]
    fn use_in_order(&mut self, key: &K) -> Option<Slot> {
        let set = self.indexer.set_by_mask(key.number());
        let row = self.rows.get_mut(set as usize)?;
        let first = set * self.stride;
        let check = |way| holds(&self.cells, first + way, key, |rest| key.accepts(rest));
        let way = match self.probe {
            Probe::Eight => row.find_in_eight(row::print(key.tag()), check)?,
            _ => row.find(row::print(key.tag()), check)?,
        };
        row.touch(way);
        self.stamps.tick();
        Some(Slot::new(first + way))
    }

    /// The value at a place where this very key was found, if it (still) is there; counts a use of it.
    #[inline(always)]
    pub fn use_again(&mut self, slot: Slot, key: &K) -> Option<V> {
        let cell = self.cells.get(slot.index())?;
        if cell.tag != key.tag() || cell.rest != key.rest() {
            return None;
        }
        let value = cell.value;
        self.touch(slot);
        Some(value)
    }

    /// Whether [`use_or_miss`](Self::use_or_miss) and [`displace_at`](Self::displace_at) work here: at most eight ways, LRU,
    /// and a power of two of sets with a modulo index.
    pub fn is_swift(&self) -> bool {
        self.probe == Probe::Eight && self.on_fill == OnFill::Oldest
    }

    /// [`use_of`](Self::use_of) in a swift structure; where nothing is found, says where that was.
    // PERF: without the questions of the general way, and the fill that follows a miss need not search again.
    #[inline(always)]
    pub fn use_or_miss(&mut self, key: &K) -> Result<Slot, Missed> {
        let (set, print) = (self.indexer.set_by_mask(key.number()), row::print(key.tag()));
        let first = set * self.stride;
        let check = |way| holds(&self.cells, first + way, key, |rest| key.accepts(rest));
        let way = self.rows.get(set as usize).and_then(|row| row.find_in_eight(print, check));
        let slot = Slot::new(first + way.ok_or(Missed { set, print })?);
        let now = self.stamps.tick();
        self.stamps.set(slot.index(), now);
        Ok(slot)
    }

    /// [`displace`](Self::displace) in a swift structure, for the key that was missed.
    #[inline(always)]
    pub fn displace_at(&mut self, at: Missed, key: K, value: V) -> u64 {
        let now = self.stamps.tick();
        let way = self.stamps.renew_oldest_of_eight(at.set, self.set_shift, now);
        let Some(row) = self.rows.get_mut(at.set as usize) else { return K::EMPTY };
        row.set_print_of_eight(way, at.print);
        self.overwrite((at.set * self.stride) + way, key, value)
    }

    /// The same for callers who ask what had to leave.
    #[inline(always)]
    pub fn exchange_at(&mut self, at: Missed, key: K, value: V) -> Option<(K, V)> {
        let now = self.stamps.tick();
        let way = self.stamps.renew_oldest_of_eight(at.set, self.set_shift, now);
        self.rows.get_mut(at.set as usize)?.set_print_of_eight(way, at.print);
        let cell = self.cells.get_mut(((at.set * self.stride) + way) as usize)?;
        let old = std::mem::replace(cell, Cell { tag: key.tag(), rest: key.rest(), value });
        if old.tag == K::EMPTY {
            self.live += 1;
            return None;
        }
        Some((K::join(old.tag, old.rest), old.value))
    }

    #[inline(always)]
    fn overwrite(&mut self, slot: u32, key: K, value: V) -> u64 {
        let Some(cell) = self.cells.get_mut(slot as usize) else { return K::EMPTY };
        let old = cell.tag;
        *cell = Cell { tag: key.tag(), rest: key.rest(), value };
        if old == K::EMPTY {
            self.live += 1;
        }
        old
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
        &self.cells[slot.index()].value
    }
    /// The key at a place; one with the tag [`Key::EMPTY`] if nothing is there.
    #[inline]
    pub fn key(&self, slot: Slot) -> K {
        let cell = &self.cells[slot.index()];
        K::join(cell.tag, cell.rest)
    }

    /// The value at a place, to be changed.
    #[inline]
    pub fn value_mut(&mut self, slot: Slot) -> &mut V {
        &mut self.cells[slot.index()].value
    }

    /// Counts a use of the entry at a place.
    #[inline(always)]
    pub fn touch(&mut self, slot: Slot) {
        let now = self.stamps.tick();
        if self.stamps_hits {
            self.stamps.set(slot.index(), now);
        } else if self.on_hit == OnHit::Order {
            let (set, way) = self.set_and_way(slot.index() as u32);
            if let Some(row) = self.rows.get_mut(set as usize) {
                row.touch(way);
            }
        } else if self.on_hit == OnHit::Mark {
            let (set, way) = self.set_and_way(slot.index() as u32);
            // A way that has its mark is no news: never have all of them one.
            if let Some(row) = self.rows.get_mut(set as usize).filter(|row| row.marks >> way & 1 == 0) {
                row.marks = nru::touch(row.marks, way, self.shape.ways());
            }
        } else {
            self.touch_elsewhere(slot.index() as u32);
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

    /// Replaces the value under this very key, if it is there, and counts that as a use. Says whether it was there.
    #[inline(always)]
    pub fn replace(&mut self, key: &K, value: V) -> bool {
        let Some(slot) = self.search(key, |rest| rest == key.rest()) else { return false };
        self.touch(slot);
        *self.value_mut(slot) = value;
        true
    }

    /// [`insert`](Self::insert) for a key that is known not to be there, without the search.
    #[inline]
    pub fn insert_absent(&mut self, key: K, value: V) -> Inserted<K, V> {
        let slot = self.victim(key.number());
        let Cell { rest, value: old, .. } = self.cells[slot.index()];
        let tag = self.place(slot, key, value);
        if tag == K::EMPTY { Inserted::Filled } else { Inserted::Evicted(K::join(tag, rest), old) }
    }

    /// [`insert_absent`](Self::insert_absent) for callers who only ask for the tag of what left ([`Key::EMPTY`] if nothing did).
    #[inline(always)]
    pub fn displace(&mut self, key: K, value: V) -> u64 {
        if self.on_fill == OnFill::Else {
            return self.displace_elsewhere(key, value);
        }
        // PERF: the common case of `victim` and `place` together: whatever is last in order is overwritten.
        let number = key.number();
        let masked = self.probe != Probe::Else;
        let set = if masked { self.indexer.set_by_mask(number) } else { self.indexer.set(number) };
        let Some(row) = self.rows.get_mut(set as usize) else { return K::EMPTY };
        let now = self.stamps.tick();
        let way = if self.on_fill == OnFill::Oldest {
            self.stamps.renew_oldest(set, self.shape.ways(), now)
        } else {
            let way = packed::at(row.order, self.shape.ways() - 1);
            row.order = packed::last_to_front(row.order, way, self.order_mask);
            way
        };
        row.set_print(way, self.interleaved, key.tag());
        self.overwrite(set * self.stride + way, key, value)
    }

    /// All entries, set by set.
    pub fn iter(&self) -> impl Iterator<Item = (K, &V)> {
        let full = self.cells.iter().filter(|cell| cell.tag != K::EMPTY);
        full.map(|cell| (K::join(cell.tag, cell.rest), &cell.value))
    }

    #[inline(always)]
    fn search(&self, key: &K, accept: impl Fn(K::Rest) -> bool) -> Option<Slot> {
        if self.probe == Probe::Else {
            return self.search_elsewhere(*key, accept);
        }
        self.search_row(self.indexer.set_by_mask(key.number()), key, accept)
    }

    /// Searches one set of a narrow structure.
    #[inline(always)]
    fn search_row(&self, set: u32, key: &K, accept: impl Fn(K::Rest) -> bool) -> Option<Slot> {
        let first = set * self.stride;
        let row = self.rows.get(set as usize)?;
        let check = |way| holds(&self.cells, first + way, key, &accept);
        let way = match self.interleaved {
            0 => row.find_in_eight(row::print(key.tag()), check)?,
            _ => row.find(row::print(key.tag()), check)?,
        };
        Some(Slot::new(first + way))
    }
}

/// Whether a cell holds the tag of a key and a rest that is accepted.
// A print may agree past the last way of a set; the cell there is another set's and has another tag.
#[inline(always)]
fn holds<K: Key, V>(cells: &[Cell<K::Rest, V>], slot: u32, key: &K, accept: impl Fn(K::Rest) -> bool) -> bool {
    cells.get(slot as usize).is_some_and(|cell| cell.tag == key.tag() && accept(cell.rest))
}

impl<K: Key, V> fmt::Debug for SetAssoc<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SetAssoc").field("shape", &self.shape).field("live", &self.live).finish_non_exhaustive()
    }
}
