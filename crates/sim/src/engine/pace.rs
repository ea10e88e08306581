//! How far a walk gets in its time slices, where all that it meets is alike: arithmetic, without a look at a table.
//!
//! A walk over alike entries does the same in each time slice: down from the root to where it stopped, entry by entry until an answer says that
//! the slice is over, locks and flushes until the next one begins. What a slice comes to depends on nothing but where it begins: the walk
//! reads more where a table ends, and more still where the table above ends with it. So slices that begin at the same place of a *block* (the
//! stretch that an entry two levels up covers) are the same up to that block's end, and each is worked out once ([`Memo`]). Petabytes are some
//! ten million blocks of a few thousand different kinds.
//!
//! Positions are numbers of *items*, the entries that the walk works on. Storey 0 are the items, storey 1 the entries above them, and so on up to
//! the root's entries. Times are cycles since the slice began.

use mmu_core::{Geometry, Level};

/// Where the loop around a walk asks whether to give way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Asks {
    /// Before each entry, of tables too, except where the walk has just stopped.
    Before,
    /// Behind the work on each item. The walk begins anew at the item that it has worked on last.
    Behind,
}

/// What the steps of a walk take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Pace {
    pub(super) asks: Asks,
    /// Reading an entry.
    pub(super) read: u64,
    /// Asking.
    pub(super) ask: u64,
    /// The work on an item.
    pub(super) work: u64,
    /// A time slice.
    pub(super) slice: u64,
    /// From the beginning of a slice until the walk starts over.
    pub(super) begin: u64,
    /// From the answer that the slice is over until the next one begins.
    pub(super) between: u64,
    /// Items below an entry of each storey, as a power of two.
    reach: [u32; Level::MAX_LEVELS],
    /// The root's storey.
    top: usize,
    /// Cycles and visits of an entry of each storey with all that is below.
    units: [(u64, u64); Level::MAX_LEVELS],
}

/// One time slice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct OneSlice {
    pub(super) items: u64,
    pub(super) visits: u64,
    /// When the last item was done.
    pub(super) worked: u64,
    /// When the answer before the last one came, or 0.
    pub(super) breathed: u64,
    /// When it was answered that the slice is over.
    pub(super) over: u64,
    /// The longest stretch between answers but the last one's.
    pub(super) longest: u64,
}

/// Consecutive time slices.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Total {
    pub(super) slices: u64,
    pub(super) items: u64,
    pub(super) visits: u64,
    pub(super) cycles: u64,
    /// The longest stretch between answers.
    pub(super) longest: u64,
    /// The latest answer that a slice is over.
    pub(super) latest: u64,
}

impl Total {
    fn and(self, other: Total) -> Total {
        Total {
            slices: self.slices + other.slices,
            items: self.items + other.items,
            visits: self.visits + other.visits,
            cycles: self.cycles + other.cycles,
            longest: self.longest.max(other.longest),
            latest: self.latest.max(other.latest),
        }
    }
}

/// Answers so far.
#[derive(Clone, Copy, Default)]
struct Breath {
    last: u64,
    longest: u64,
}

impl Breath {
    fn at(&mut self, now: u64) {
        self.longest = self.longest.max(now - self.last);
        self.last = now;
    }
}

impl OneSlice {
    fn ended(items: u64, visits: u64, worked: u64, breath: Breath, over: u64) -> Self {
        Self { items, visits, worked, breathed: breath.last, over, longest: breath.longest }
    }
}

impl Pace {
    /// A walk over items of `level`, with times that are set afterwards.
    pub(super) fn new(asks: Asks, geometry: &Geometry, level: Level, [read, ask, work]: [u64; 3]) -> Self {
        let top = geometry.root().index() - level.index();
        let (mut reach, mut units) = ([0; Level::MAX_LEVELS], [(0, 0); Level::MAX_LEVELS]);
        units[0] = (read + ask + work, 1);
        let look = if asks == Asks::Before { read + ask } else { read };
        for storey in 1..=top {
            let above = Level::new((level.index() + storey) as u8);
            reach[storey] = geometry.shift(above) - geometry.shift(level);
            let (cycles, visits) = units[storey - 1];
            let entries = 1 << (reach[storey] - reach[storey - 1]);
            units[storey] = (look + read + entries * cycles, 2 + entries * visits);
        }
        Self { asks, read, ask, work, slice: 0, begin: 0, between: 0, reach, top, units }
    }

    /// The highest storey at which an entry begins with item `p`.
    fn storey(&self, p: u64) -> usize {
        let zeros = p.trailing_zeros();
        (1..=self.top).take_while(|&storey| self.reach[storey] <= zeros).count()
    }

    /// Entries of a storey from item `p` on that are in one table and end by `end`.
    fn ahead(&self, storey: usize, p: u64, end: u64) -> u64 {
        let all = (end - p) >> self.reach[storey];
        if storey == self.top {
            return all;
        }
        let entries = 1 << (self.reach[storey + 1] - self.reach[storey]);
        all.min(entries - ((p >> self.reach[storey]) & (entries - 1)))
    }

    /// Items that a slice has at most.
    pub(super) fn most(&self) -> u64 {
        self.slice / self.units[0].0.max(1) + 2
    }

    /// How long a slice takes at most, with all that follows it.
    pub(super) fn longest(&self) -> u64 {
        let levels = self.top as u64 + 2;
        self.begin + self.slice + self.between + 2 * self.units[0].0 + levels * (4 * self.read + self.ask)
    }

    /// The slice of a walk that stopped before item `start`; `None` where it is not over before item `end`, which nobody has looked at.
    pub(super) fn one(&self, start: u64, end: u64) -> Option<OneSlice> {
        let (read, ask, work) = (self.read, self.ask, self.work);
        // Down to where it stopped: each entry above is read again on the way.
        let down = 1 + 2 * self.top as u64;
        let (mut now, mut visits, mut p) = (self.begin + down * read, down, start);
        if self.asks == Asks::Before {
            // Nothing is asked up to the first item.
            now += work;
            p += 1;
        }
        let (mut breath, mut worked) = (Breath::default(), now);
        loop {
            if p >= end {
                return None;
            }
            let mut storey = self.storey(p);
            let n = loop {
                let (cycles, _) = self.units[storey];
                // The last answer must not be that the slice is over.
                let asked = if self.asks == Asks::Before { now - work } else { now };
                let room = self.slice.saturating_sub(asked + 1) / cycles;
                let n = self.ahead(storey, p, end).min(room);
                if n > 0 || storey == 0 {
                    break n;
                }
                now += read;
                if self.asks == Asks::Before {
                    now += ask;
                    if now >= self.slice {
                        return Some(OneSlice::ended(p - start, visits + 1, worked, breath, now));
                    }
                    breath.at(now);
                }
                now += read;
                visits += 2;
                storey -= 1;
            };
            if n == 0 {
                let (items, worked, over) = match self.asks {
                    Asks::Before => (p - start, worked, now + read + ask),
                    Asks::Behind => (p + 1 - start, now + read + work, now + read + work + ask),
                };
                return (start + items < end).then(|| OneSlice::ended(items, visits + 1, worked, breath, over));
            }
            self.breathe(&mut breath, storey, n, now);
            let (cycles, entries) = self.units[storey];
            now += n * cycles;
            worked = if self.asks == Asks::Before { now } else { now - ask };
            visits += n * entries;
            p += n << self.reach[storey];
        }
    }

    /// The answers of `n` whole entries of a storey from `now` on.
    fn breathe(&self, breath: &mut Breath, storey: usize, n: u64, now: u64) {
        let (unit, more) = (self.units[0].0, n > 1 || storey > 0);
        let end = now + n * self.units[storey].0;
        match self.asks {
            Asks::Before => {
                breath.at(now + self.read + self.ask);
                let down = if storey > 0 { 2 * self.read + self.ask } else { 0 };
                breath.longest = breath.longest.max(if more { unit.max(down) } else { 0 });
                breath.last = end - self.work;
            }
            Asks::Behind => {
                breath.at(now + 2 * self.read * storey as u64 + unit);
                // Where tables end inside, the walk goes up and down again.
                let ups = if n > 1 { storey } else { storey.saturating_sub(1) } as u64;
                breath.longest = breath.longest.max(if more { unit + 2 * self.read * ups } else { 0 });
                breath.last = end;
            }
        }
    }

    /// What a slice adds to others.
    fn total(&self, one: &OneSlice) -> Total {
        Total {
            slices: 1,
            items: one.items,
            visits: one.visits,
            cycles: one.over + self.between,
            longest: one.longest.max(one.over - one.breathed),
            latest: one.over,
        }
    }
}

/// Blocks that have been worked out, by where in them the first slice begins.
#[derive(Clone, Debug)]
pub(super) struct Memo {
    pace: Pace,
    /// The storey of blocks, 0: there are none.
    storey: usize,
    /// Place of what is known, plus one.
    places: Vec<u32>,
    known: Vec<Total>,
}

/// Blocks of more items than this are not told apart.
const MOST_ITEMS: u32 = 20;

impl Memo {
    pub(super) fn new(pace: Pace) -> Self {
        let storey = (0..=pace.top.min(2)).rev().find(|&storey| pace.reach[storey] <= MOST_ITEMS).unwrap_or(0);
        let places = if storey == 0 { Vec::new() } else { vec![0; 1 << pace.reach[storey]] };
        Self { pace, storey, places, known: Vec::new() }
    }

    /// Whether it is about this walk.
    pub(super) fn is_of(&self, pace: &Pace) -> bool {
        self.pace == *pace
    }

    /// The slices of a walk that stopped before item `start`, as long as they begin before item `limit` and end within `cycles`; their items
    /// are all before `end`.
    pub(super) fn slices(&mut self, start: u64, limit: u64, end: u64, cycles: u64) -> Total {
        let mut done = Total::default();
        while start + done.items < limit && done.cycles < cycles {
            let p = start + done.items;
            if let Some(block) = self.block(p)
                && p + block.items <= limit
                && p + block.items < end
                && done.cycles + block.cycles <= cycles
            {
                done = done.and(block);
                continue;
            }
            let mut block = Total::default();
            while block.items == 0 || p >> self.reach() == (p + block.items) >> self.reach() {
                let one = self.pace.one(p + block.items, end).map(|one| self.pace.total(&one));
                let Some(one) = one.filter(|one| done.cycles + block.cycles + one.cycles <= cycles) else {
                    return done.and(block);
                };
                block = block.and(one);
                if p + block.items >= limit {
                    return done.and(block);
                }
            }
            self.learn(p, block);
            done = done.and(block);
        }
        done
    }

    fn reach(&self) -> u32 {
        self.pace.reach[self.storey]
    }

    /// Where a walk that stopped before item `p` stands in its block, if what follows up to the next block is the same wherever the block is: no table
    /// above the blocks' storey ends there.
    fn place(&self, p: u64) -> Option<usize> {
        let (next, storey) = ((p >> self.reach()) + 1, self.storey);
        let r = p & ((1 << self.reach()) - 1);
        let plain = storey > 0 && self.pace.storey(next << self.reach()) == storey;
        // A walk that begins anew in the block before crosses into this one.
        (plain && (r > 0 || self.pace.asks == Asks::Before)).then_some(r as usize)
    }

    fn block(&self, p: u64) -> Option<Total> {
        let known = (*self.places.get(self.place(p)?)?).checked_sub(1)?;
        self.known.get(known as usize).copied()
    }

    /// Keeps what slices from `p` on up to the next block have come to.
    fn learn(&mut self, p: u64, block: Total) {
        if let Some(place) = self.place(p)
            && (p + block.items) >> self.reach() == (p >> self.reach()) + 1
        {
            self.known.push(block);
            self.places[place] = self.known.len() as u32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mmu_core::PageSize;
    use proptest::prelude::*;

    /// A walk entry by entry: the loop that [`Pace::one`] sums up.
    struct Walker<'a> {
        pace: &'a Pace,
        now: u64,
        visits: u64,
        breath: Breath,
    }

    impl Walker<'_> {
        fn read(&mut self) {
            self.now += self.pace.read;
            self.visits += 1;
        }

        /// Whether the slice is over.
        fn ask(&mut self) -> bool {
            self.now += self.pace.ask;
            let over = self.now >= self.pace.slice;
            if !over {
                self.breath.at(self.now);
            }
            over
        }
    }

    fn naive(pace: &Pace, start: u64, end: u64) -> Option<OneSlice> {
        let mut walker = Walker { pace, now: pace.begin, visits: 0, breath: Breath::default() };
        walker.read();
        for _ in 0..pace.top {
            walker.read();
            walker.read();
        }
        let mut p = start;
        if pace.asks == Asks::Before {
            walker.now += pace.work;
            p += 1;
        }
        let mut worked = walker.now;
        loop {
            if p >= end {
                return None;
            }
            for storey in (0..=pace.storey(p)).rev() {
                walker.read();
                if pace.asks == Asks::Before && walker.ask() {
                    return Some(OneSlice::ended(p - start, walker.visits, worked, walker.breath, walker.now));
                }
                if storey > 0 {
                    walker.read();
                }
            }
            walker.now += pace.work;
            worked = walker.now;
            p += 1;
            if pace.asks == Asks::Behind && walker.ask() {
                return (p < end).then(|| OneSlice::ended(p - start, walker.visits, worked, walker.breath, walker.now));
            }
        }
    }

    /// Items below tables of few entries; above them as many levels as `top`.
    fn pace(asks: Asks, top: usize, costs: [u64; 3], slice: u64) -> Pace {
        let bits = [2, 2, 1, 3, 2];
        let geometry = Geometry::uniform(PageSize::SIZE_4K, &bits[..=top], 52, &[0]).unwrap();
        Pace { slice, begin: 5, between: 11, ..Pace::new(asks, &geometry, Level::LAST, costs) }
    }

    fn any_pace() -> impl Strategy<Value = Pace> {
        let costs = (0u64..4, 0u64..3, 1u64..9).prop_map(|(read, ask, work)| [read, ask, work]);
        (prop_oneof![Just(Asks::Before), Just(Asks::Behind)], 0usize..5, costs, 1u64..300)
            .prop_map(|(asks, top, costs, slice)| pace(asks, top, costs, slice))
    }

    proptest! {
        #[test]
        fn a_slice_is_its_entries(pace in any_pace(), start in 0u64..900, len in 1u64..200) {
            let end = start + len;
            prop_assert_eq!(pace.one(start, end), naive(&pace, start, end));
            if let Some(one) = pace.one(start, end) {
                prop_assert!(one.items <= pace.most() && one.over + pace.between <= pace.longest());
            }
        }

        #[test]
        fn blocks_are_their_slices(pace in any_pace(), start in 1u64..50, len in 1u64..2_000, cycles in 0u64..20_000) {
            let end = start + len;
            let mut memo = Memo::new(pace);
            // What is known from the first walk is used by the second.
            for limit in [end, end - len / 3] {
                let done = memo.slices(start, limit, end, cycles);
                let mut slices = Total::default();
                while start + slices.items < limit
                    && let Some(one) = naive(&pace, start + slices.items, end).map(|one| pace.total(&one))
                    && slices.cycles < cycles && slices.cycles + one.cycles <= cycles
                {
                    slices = slices.and(one);
                }
                prop_assert_eq!(done, slices);
            }
        }
    }

    #[test]
    fn what_is_known_is_not_worked_out_again() {
        let pace = pace(Asks::Before, 4, [1, 1, 7], 50);
        let mut memo = Memo::new(pace);
        let (start, end) = (3, 1 << 9);
        let first = memo.slices(start, end, end, u64::MAX);
        let known = memo.known.len();
        assert!(known > 0 && known as u64 <= pace.most(), "{known} kinds of blocks in {} slices", first.slices);
        assert_eq!((memo.slices(start, end, end, u64::MAX), memo.known.len()), (first, known));
    }
}
