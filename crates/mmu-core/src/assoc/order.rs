//! Recency orders of the ways of a set.
//!
//! Every form holds a permutation: the way at position 0 was used (or filled) last, the way at the end is the next victim.
//! Emptied ways are moved to the end, so the last way is empty exactly when the set has an empty way: finding one
//! never looks at the cells.

/// A permutation of up to 16 ways in one word: nibble `i` is the way at position `i`.
pub(super) mod packed {
    const ONES: u64 = 0x1111_1111_1111_1111;
    const HIGHS: u64 = 0x8888_8888_8888_8888;
    /// Ways one word can order.
    pub(in super::super) const MAX_WAYS: u32 = 16;

    /// All ways empty; way 0 is filled first.
    pub(in super::super) fn initial(ways: u32) -> u64 {
        (0..ways).fold(0, |order, position| order | u64::from(ways - 1 - position) << (4 * position))
    }

    /// All ones from the lowest nibble up to the one that holds a way.
    #[inline(always)]
    fn up_to(order: u64, way: u32) -> u64 {
        let difference = order ^ ONES.wrapping_mul(u64::from(way));
        // The lowest flagged nibble of this is the lowest zero nibble; nibbles past the last way lie above it.
        let zero = difference.wrapping_sub(ONES) & !difference & HIGHS;
        zero ^ zero.wrapping_sub(1)
    }

    /// The order after `way` was used.
    // PERF: no variable shift, each of which is three operations on x86-64 hosts without BMI2.
    #[inline(always)]
    pub(in super::super) fn to_front(order: u64, way: u32) -> u64 {
        order ^ (order ^ (order << 4 | u64::from(way))) & up_to(order, way)
    }

    /// The order after `way` was emptied.
    #[inline(always)]
    pub(in super::super) fn to_back(order: u64, way: u32, ways: u32) -> u64 {
        let newer = up_to(order, way) >> 4;
        let last = 4 * (ways - 1);
        order & newer | (order >> 4) & !newer & ((1 << last) - 1) | u64::from(way) << last
    }

    /// The bits of a word that order this many ways.
    pub(in super::super) fn mask(ways: u32) -> u64 {
        u64::MAX >> (64 - 4 * ways.clamp(1, MAX_WAYS))
    }

    /// The order after the last way was used, as when a victim is refilled. The mask is [`mask`] of the ways.
    #[inline(always)]
    pub(in super::super) fn last_to_front(order: u64, way: u32, mask: u64) -> u64 {
        (order << 4 | u64::from(way)) & mask
    }

    /// The way at a position.
    #[inline(always)]
    pub(in super::super) fn at(order: u64, position: u32) -> u32 {
        (order >> (4 * position)) as u32 & 0xf
    }
}

/// Time stamps of slots. The lowest of a set is the way at the end.
///
/// Emptied ways get stamps below all others, the lower the later, as if they were moved to the end.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Stamps {
    of: Vec<u64>,
    /// The newest stamp: counts up from the middle of all numbers.
    now: u64,
    /// The stamp of the way emptied last: counts down from there.
    emptied: u64,
}

/// Above this stamps are of uses, below it of ways that were emptied.
const MIDDLE: u64 = 1 << 62;

impl Stamps {
    /// For slots that only their owner compares; all are 0.
    pub(super) fn unset(slots: u32) -> Self {
        Self { of: vec![0; slots as usize], now: MIDDLE, emptied: MIDDLE }
    }

    /// Slots of a set of up to 16 ways: 4, 8 or 16, so that the search for the lowest is a straight line.
    pub(super) fn stride(ways: u32) -> u32 {
        ways.next_power_of_two().max(4)
    }

    /// Sets of empty ways, of which way 0 is filled first. Ways that do not exist never are.
    pub(super) fn of_sets(sets: u32, ways: u32) -> Self {
        let emptied = MIDDLE - u64::from(ways);
        let stamp = |way| if way < ways { emptied + u64::from(way) } else { u64::MAX };
        let set = (0..Self::stride(ways)).map(stamp);
        Self { of: (0..sets).flat_map(|_| set.clone()).collect(), now: MIDDLE, emptied }
    }

    /// Whether there are any.
    #[inline(always)]
    pub(super) fn is_kept(&self) -> bool {
        !self.of.is_empty()
    }
    /// How often [`tick`](Self::tick) was called.
    #[inline(always)]
    pub(super) fn uses(&self) -> u64 {
        self.now - MIDDLE
    }
    /// The next stamp.
    #[inline(always)]
    pub(super) fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }
    /// The stamp of a slot.
    #[inline(always)]
    pub(super) fn at(&self, slot: usize) -> u64 {
        self.of.get(slot).copied().unwrap_or_default()
    }
    /// Gives a slot a stamp.
    #[inline(always)]
    pub(super) fn set(&mut self, slot: usize, stamp: u64) {
        if let Some(of) = self.of.get_mut(slot) {
            *of = stamp;
        }
    }
    /// Notes that a slot was emptied.
    #[inline]
    pub(super) fn empty(&mut self, slot: usize) {
        self.emptied -= 1;
        self.set(slot, self.emptied);
    }

    /// The way at the end of the order of a set of `1 << shift` slots.
    #[inline]
    pub(super) fn oldest(&self, set: u32, shift: u32) -> u32 {
        let first = (set as usize) << shift;
        let set = self.of.get(first..first + (1 << shift)).unwrap_or_default();
        (0..).zip(set).min_by_key(|&(_, stamp)| stamp).map_or(0, |(way, _)| way)
    }

    /// The same for a number of ways, and gives it a stamp.
    #[inline(always)]
    pub(super) fn renew_oldest(&mut self, set: u32, ways: u32, stamp: u64) -> u32 {
        match ways {
            ..=4 => self.renew_oldest_of::<4>(set, stamp),
            5..=8 => self.renew_oldest_of::<8>(set, stamp),
            _ => self.renew_oldest_of::<16>(set, stamp),
        }
    }

    /// The same for sets of up to eight ways.
    #[inline(always)]
    pub(super) fn renew_oldest_of_eight(&mut self, set: u32, shift: u32, stamp: u64) -> u32 {
        if shift == 2 { self.renew_oldest_of::<4>(set, stamp) } else { self.renew_oldest_of::<8>(set, stamp) }
    }

    // PERF: straight lines of compares and conditional moves.
    #[inline(always)]
    fn renew_oldest_of<const WAYS: usize>(&mut self, set: u32, stamp: u64) -> u32 {
        let Some(set) = self.of.as_chunks_mut::<WAYS>().0.get_mut(set as usize) else { return 0 };
        let (mut oldest, mut way) = (set[0], 0);
        for (other, &of) in set.iter().enumerate().skip(1) {
            way = if of < oldest { other } else { way };
            oldest = oldest.min(of);
        }
        set[way % WAYS] = stamp;
        way as u32
    }
}

/// Circular lists, one per set, for any number of ways. Slots are numbered across sets, a power of two to each.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Lists {
    heads: Vec<u32>,
    links: Vec<Link>,
}

/// The neighbours of a slot.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
struct Link {
    next: u32,
    prev: u32,
}

impl Lists {
    /// Sets of `stride` slots, of which the first `ways` are ways.
    pub(super) fn new(sets: u32, ways: u32, stride: u32) -> Self {
        let ring = |slot: u32, step: u32| slot / stride * stride + (slot % stride + step) % ways;
        // Backwards, so that way 0 is last and filled first.
        let link = |slot| Link { next: ring(slot, ways - 1), prev: ring(slot, 1) };
        Self {
            heads: (0..sets).map(|set| set * stride + ways - 1).collect(),
            links: (0..sets * stride).map(link).collect(),
        }
    }

    /// The slot `steps` before the end of the order.
    #[inline(always)]
    pub(super) fn nth_last(&self, set: u32, steps: u32) -> u32 {
        let mut slot = self.links[self.heads[set as usize] as usize].prev;
        for _ in 0..steps {
            slot = self.links[slot as usize].prev;
        }
        slot
    }

    /// Makes the slot at the end of the order the first, and tells which it is.
    #[inline(always)]
    pub(super) fn last_to_front(&mut self, set: u32) -> u32 {
        let head = &mut self.heads[set as usize];
        *head = self.links[*head as usize].prev;
        *head
    }

    #[inline(always)]
    pub(super) fn move_front(&mut self, set: u32, slot: u32) {
        if self.heads[set as usize] != slot {
            self.place_last(set, slot);
            self.heads[set as usize] = slot;
        }
    }

    #[inline(always)]
    pub(super) fn move_back(&mut self, set: u32, slot: u32) {
        if self.heads[set as usize] == slot {
            self.heads[set as usize] = self.links[slot as usize].next;
        } else {
            self.place_last(set, slot);
        }
    }

    /// Moves a slot that is not the head to the end of its ring.
    #[inline(always)]
    fn place_last(&mut self, set: u32, slot: u32) {
        let head = self.heads[set as usize];
        let last = self.links[head as usize].prev;
        if last == slot {
            return;
        }
        let Link { next, prev } = self.links[slot as usize];
        self.links[prev as usize].next = next;
        self.links[next as usize].prev = prev;
        self.links[last as usize].next = slot;
        self.links[slot as usize] = Link { next: head, prev: last };
        self.links[head as usize].prev = slot;
    }
}

/// Slots by tag, so that wide sets are not scanned: chained buckets over all sets.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Chains {
    heads: Vec<u32>,
    next: Vec<u32>,
    shift: u32,
}

/// End of a chain.
pub(super) const NONE: u32 = u32::MAX;

impl Chains {
    /// For so many entries, in slots of numbers below `slots`.
    pub(super) fn new(entries: u32, slots: u32) -> Self {
        let buckets = (2 * entries as usize).next_power_of_two();
        Self { heads: vec![NONE; buckets], next: vec![NONE; slots as usize], shift: 64 - buckets.trailing_zeros() }
    }

    /// The chain that slots with a tag are in.
    #[inline(always)]
    pub(super) fn bucket(&self, tag: u64) -> usize {
        // The low bits of a tag are nearly constant (page size, kind): fold before the multiplication.
        ((tag ^ (tag >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift) as usize
    }

    /// First slot that may hold the tag, or [`NONE`].
    #[inline(always)]
    pub(super) fn first(&self, tag: u64) -> u32 {
        self.first_of(self.bucket(tag))
    }

    /// First slot of a chain, or [`NONE`].
    #[inline(always)]
    pub(super) fn first_of(&self, bucket: usize) -> u32 {
        self.heads[bucket]
    }

    /// The slot after this one, or [`NONE`].
    #[inline(always)]
    pub(super) fn after(&self, slot: u32) -> u32 {
        self.next[slot as usize]
    }

    #[inline(always)]
    pub(super) fn link(&mut self, tag: u64, slot: u32) {
        self.link_at(self.bucket(tag), slot);
    }

    /// Puts a slot into a chain.
    #[inline(always)]
    pub(super) fn link_at(&mut self, bucket: usize, slot: u32) {
        self.next[slot as usize] = self.heads[bucket];
        self.heads[bucket] = slot;
    }

    /// Takes out of the chain of a tag the slots for which `goes` says so.
    #[inline(always)]
    pub(super) fn unlink_where(&mut self, tag: u64, mut goes: impl FnMut(u32) -> bool) {
        let bucket = self.bucket(tag);
        let (mut before, mut slot) = (NONE, self.heads[bucket]);
        while slot != NONE {
            let after = self.next[slot as usize];
            if !goes(slot) {
                before = slot;
            } else if before == NONE {
                self.heads[bucket] = after;
            } else {
                self.next[before as usize] = after;
            }
            slot = after;
        }
    }

    #[inline(always)]
    pub(super) fn unlink(&mut self, tag: u64, slot: u32) {
        let bucket = self.bucket(tag);
        let after = self.next[slot as usize];
        if self.heads[bucket] == slot {
            self.heads[bucket] = after;
            return;
        }
        let mut at = self.heads[bucket];
        while at != NONE && self.next[at as usize] != slot {
            at = self.next[at as usize];
        }
        if at != NONE {
            self.next[at as usize] = after;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The plain form both orders are checked against.
    fn replay(ways: u32, moves: &[(u32, bool)]) -> Vec<u32> {
        let mut order: Vec<u32> = (0..ways).rev().collect();
        for &(way, front) in moves {
            let way = way % ways;
            order.retain(|&w| w != way);
            order.insert(if front { 0 } else { order.len() }, way);
        }
        order
    }

    proptest! {
        #[test]
        fn packed_order_is_a_move_to_front_list(ways in 1u32..=16, moves in prop::collection::vec((0u32..16, any::<bool>()), 0..40)) {
            let mut order = packed::initial(ways);
            for &(way, front) in &moves {
                let way = way % ways;
                if front && packed::at(order, ways - 1) == way {
                    prop_assert_eq!(packed::last_to_front(order, way, packed::mask(ways)), packed::to_front(order, way));
                }
                order = if front { packed::to_front(order, way) } else { packed::to_back(order, way, ways) };
            }
            let unpacked: Vec<u32> = (0..ways).map(|position| packed::at(order, position)).collect();
            prop_assert_eq!(unpacked, replay(ways, &moves));
        }

        #[test]
        fn stamps_are_a_move_to_front_list(ways in 1u32..=16, moves in prop::collection::vec((0u32..16, 0u8..3), 0..40)) {
            let stride = Stamps::stride(ways);
            let shift = stride.trailing_zeros();
            let mut stamps = Stamps::of_sets(3, ways);
            let mut done = Vec::new();
            for &(way, what) in &moves {
                let mut way = way % ways;
                let slot = (stride + way) as usize;
                match what {
                    0 => { let now = stamps.tick(); stamps.set(slot, now) }
                    1 => stamps.empty(slot),
                    _ => {
                        let last = stamps.oldest(1, shift);
                        let now = stamps.tick();
                        way = stamps.renew_oldest(1, ways, now);
                        prop_assert_eq!(way, last);
                    }
                }
                done.push((way, what != 1));
                prop_assert_eq!(Some(stamps.oldest(1, shift)), replay(ways, &done).last().copied());
            }
            prop_assert_eq!(stamps.oldest(0, shift), 0);
            prop_assert_eq!(stamps.uses(), moves.iter().filter(|step| step.1 != 1).count() as u64);
        }

        #[test]
        fn lists_are_move_to_front_lists(ways in 1u32..=70, moves in prop::collection::vec((0u32..70, any::<bool>()), 0..60)) {
            let stride = ways.next_power_of_two();
            let mut lists = Lists::new(3, ways, stride);
            for &(way, front) in &moves {
                let slot = stride + way % ways;
                if front { lists.move_front(1, slot) } else { lists.move_back(1, slot) }
            }
            let order: Vec<u32> = (0..ways).rev().map(|steps| lists.nth_last(1, steps) - stride).collect();
            prop_assert_eq!(order, replay(ways, &moves));
            prop_assert_eq!(lists.nth_last(0, 0), 0);
        }
    }
}
