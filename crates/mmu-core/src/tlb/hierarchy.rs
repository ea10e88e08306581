//! Two levels of TLB arrays.
//!
//! The order of events is the one on which independent simulators agree to the count: a first-level miss looks up
//! the second level; a second-level hit fills the first; a walk fills the second level, then the first; a first-level hit
//! leaves the second alone; an eviction in one level leaves the other alone. [`Inclusion`] names the two other
//! disciplines.

use serde::{Deserialize, Serialize};

use super::array::Known;
use super::entry::Stored;
use super::invalidate::{Nothing, Select};
use super::{ArrayError, ArraySpec, ArrayStats, Input, Invalidate, Port, Tag, TagRules, TlbArray, TlbEntry, TlbKey};
use crate::addr::{Cycles, PageSize};
use crate::assoc::{Key, Missed, Slot};

/// How the contents of the two levels relate.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Inclusion {
    /// They do not.
    #[default]
    NonInclusive,
    /// What leaves the second level leaves the first as well.
    Inclusive,
    /// A translation is in one level: walks fill the first, what leaves it goes to the second, and a second-level
    /// hit moves back. Of loads and stores, that is: what instruction fetches bring is kept by both levels (calibration host: jumps begin to
    /// walk at the second level's size, loads one first level later).
    Exclusive,
}

/// Description of a hierarchy.
#[derive(Clone, PartialEq, Debug)]
pub struct TlbSpec {
    /// First-level arrays.
    pub l1: Vec<ArraySpec>,
    /// Second-level arrays; may be empty.
    pub l2: Vec<ArraySpec>,
    /// How the levels relate.
    pub inclusion: Inclusion,
    /// What is compared.
    pub rules: TagRules,
    /// Cycles a second-level hit costs a load or store, over a first-level hit.
    pub l2_hit_extra: Cycles,
    /// The same for an instruction fetch.
    pub l2_hit_extra_fetch: Cycles,
}

/// Where a look-up ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lookup {
    /// In the first level.
    L1(TlbEntry),
    /// In the second level, and the first has been filled.
    L2(TlbEntry),
    /// Nowhere: walk, then [`Tlb::fill`].
    Miss,
}

impl Lookup {
    /// The translation, wherever it was.
    #[inline]
    pub const fn entry(&self) -> Option<&TlbEntry> {
        match self {
            Lookup::L1(entry) | Lookup::L2(entry) => Some(entry),
            Lookup::Miss => None,
        }
    }
}

/// The arrays of one level, and which of them each port asks.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Arrays {
    pub(super) all: Vec<TlbArray>,
    routes: [Vec<u8>; 3],
    /// The array that stores the pages of a shift, by port.
    #[serde(with = "super::saved")]
    homes: [[u8; 64]; 3],
    /// Look-ups of a port that found nothing here.
    pub(super) missed: [u64; 3],
}

/// One array of a level of a [`Tlb`], to be looked at.
#[derive(Clone, Copy, Debug)]
pub struct LevelArray<'a> {
    array: &'a TlbArray,
    misses: u64,
}

impl LevelArray<'_> {
    /// Counters since it was made.
    pub fn stats(&self) -> ArrayStats {
        ArrayStats { misses: self.misses, ..self.array.stats() }
    }
}

impl std::ops::Deref for LevelArray<'_> {
    type Target = TlbArray;
    fn deref(&self) -> &TlbArray {
        self.array
    }
}

/// No array of the port stores such pages.
const NO_HOME: u8 = u8::MAX;

impl Arrays {
    fn new(specs: &[ArraySpec], rules: TagRules, seed: u64) -> Result<Self, ArrayError> {
        let arrays = specs.iter().zip(0..).map(|(spec, n): (_, u64)| TlbArray::new(spec, rules, seed ^ (n << 32)));
        let arrays = arrays.collect::<Result<Vec<_>, _>>()?;
        let route = |port| {
            let all = specs.iter().zip(0..NO_HOME);
            all.filter(|(spec, _)| spec.ports.contains(&port)).map(|(_, n)| n).collect::<Vec<_>>()
        };
        let routes = Port::ALL.map(route);
        let homes = std::array::from_fn(|port| std::array::from_fn(|shift| home(&arrays, &routes[port], shift as u32)));
        Ok(Self { all: arrays, routes, homes, missed: [0; 3] })
    }

    /// The arrays that a port asks.
    fn of(&self, port: Port) -> impl Iterator<Item = &TlbArray> + '_ {
        self.routes[port as usize].iter().filter_map(|&n| self.all.get(n as usize))
    }

    /// Asks the arrays of a port; counts a hit, or a miss of the port.
    // PERF: a counter for each array would be several to count in most look-ups that miss.
    #[inline(always)]
    fn find(&mut self, port: Port, input: Input, context: u64) -> Option<(u8, Slot, Stored)> {
        for &n in &self.routes[port as usize] {
            let Some(array) = self.all.get_mut(n as usize) else { continue };
            if let Some((slot, entry)) = array.find(input, context) {
                return Some((n, slot, entry));
            }
        }
        self.missed[port as usize] += 1;
        None
    }

    /// The arrays with their counters.
    fn view(&self) -> Vec<LevelArray<'_>> {
        let misses = |n: u8| {
            let ports = self.routes.iter().zip(self.missed).filter(|(route, _)| route.contains(&n));
            ports.map(|(_, missed)| missed).sum()
        };
        self.all.iter().zip(0..NO_HOME).map(|(array, n)| LevelArray { array, misses: misses(n) }).collect()
    }

    /// The one array of a port that is not empty, if it holds pages of one size; with their shift.
    fn sole(&self, port: Port) -> Option<(u8, u32)> {
        let mut full = self.routes[port as usize].iter().filter(|&&n| !self.all[n as usize].is_empty());
        let (&n, None) = (full.next()?, full.next()) else { return None };
        Some((n, self.all[n as usize].sole_shift()?))
    }

    /// The array that stores a page of this size.
    #[inline(always)]
    fn home(&mut self, port: Port, shift: u32) -> Option<&mut TlbArray> {
        self.all.get_mut(self.homes[port as usize][shift as usize & 63] as usize)
    }

    /// The same if all it holds are pages of this size, as which they are stored.
    #[inline(always)]
    pub(super) fn sole_home(&mut self, port: Port, shift: u32) -> Option<&mut TlbArray> {
        self.home(port, shift).filter(|array| array.sole_shift() == Some(shift))
    }

    #[inline]
    pub(super) fn put(&mut self, port: Port, input: Input, context: u64, entry: TlbEntry, known: Known) -> Put {
        match self.home(port, entry.size.shift()) {
            Some(array) => Put::Stored(array.put(input, context, entry, known)),
            None => Put::NoPlace,
        }
    }

    /// [`put`](Self::put) when nobody asks what became of it. Says whether an array got its first page of a size or lost its
    /// last.
    #[inline(always)]
    fn put_quietly(&mut self, port: Port, input: Input, context: u64, shift: u32, entry: Stored, known: Known) -> bool {
        let Some(array) = self.home(port, shift) else { return false };
        let before = array.present();
        array.put_quietly(input, context, shift, entry, known);
        array.present() != before
    }

    fn invalidate(&mut self, select: &Select) -> u64 {
        self.all.iter_mut().map(|array| array.invalidate(select)).sum()
    }

    pub(super) fn take(&mut self, port: Port, input: Input, context: u64) {
        for &array in &self.routes[port as usize] {
            self.all[array as usize].take(input, context);
        }
    }
}

/// The array of a route that stores pages of this shift in the largest pieces, the first of several.
fn home(arrays: &[TlbArray], route: &[u8], shift: u32) -> u8 {
    let Some(size) = PageSize::from_shift(shift) else { return NO_HOME };
    let stored = route.iter().filter_map(|&n| arrays[n as usize].stored_shift(size).map(|shift| (shift, n)));
    stored.rev().max_by_key(|&(shift, _)| shift).map_or(NO_HOME, |(_, n)| n)
}

/// Where a page was found in the first level the last time it was asked for.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(32))]
struct Hint {
    /// Page of 4K with kind and port in the low bits; 0 bits there mean "empty", because ports count from one here.
    page: u64,
    /// Tag of the key. The rest of the key is the context of whoever asks: global entries get no hint.
    tag: u64,
    slot: Slot,
    array: u8,
}

/// Number of hints: the entries of the largest first levels.
const HINTS: usize = 256;

impl Hint {
    #[inline(always)]
    fn page(port: Port, input: Input) -> u64 {
        input.raw() & !0xfff | (input.kind() as u64) << 2 | (port as u64 + 1)
    }
    /// Pages that share a hint share a set in most first levels.
    #[inline(always)]
    fn index(page: u64) -> usize {
        (page >> 12) as usize % HINTS
    }
}

/// Number of guesses where in the second level a page is: the entries of the largest.
const GUESSES: usize = 2048;

#[inline(always)]
fn guess_of(key: &TlbKey) -> usize {
    key.number() as usize % GUESSES
}

/// What became of a translation offered to a level.
pub(super) enum Put {
    Stored(Option<(TlbKey, TlbEntry)>),
    NoPlace,
}

impl Put {
    fn evicted(self) -> Option<(TlbKey, TlbEntry)> {
        match self {
            Put::Stored(evicted) => evicted,
            Put::NoPlace => None,
        }
    }
}

/// The TLBs of one vCPU's hardware thread.
///
/// ```
/// use mmu_core::machine::Machine;
/// use mmu_core::tlb::{Input, Lookup, Perms, Port, Tag, Tlb, TlbEntry};
/// use mmu_core::{Gva, Hpa, PageSize};
/// let machine = Machine::builtin("arm-neoverse-n1").unwrap();
/// let mut tlb = Tlb::new(&machine.translation.tlb, 0)?;
/// let (tag, va) = (Tag::default(), Input::Combined(Gva::new(0x5000)));
/// assert_eq!(tlb.lookup(Port::Load, tag, va), Lookup::Miss);
/// tlb.fill(Port::Load, tag, va, TlbEntry::new(Hpa::new(0x9000), PageSize::SIZE_4K, Perms::RW));
/// assert!(matches!(tlb.lookup(Port::Load, tag, va), Lookup::L1(entry) if entry.output == Hpa::new(0x9000)));
/// # Ok::<(), mmu_core::tlb::ArrayError>(())
/// ```
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Tlb {
    pub(super) l1: Arrays,
    pub(super) l2: Arrays,
    pub(super) inclusion: Inclusion,
    rules: TagRules,
    l2_hit_extra: [Cycles; 3],
    // PERF: spares most first-level hits the search. A hint is checked against the array before it is believed, and
    // counts and orders are those of the search.
    #[serde(skip, default = "no_hints")]
    hints: Box<[Hint; HINTS]>,
    /// What the last search found.
    // PERF: results of the search go this way, so that those of a hint stay in the host's registers.
    #[serde(skip)]
    pub(super) found: Stored,
    // PERF: spares most second-level hits the search. They are checked as hints are.
    #[serde(skip, default = "no_guesses")]
    guesses: Box<[Slot; GUESSES]>,
    /// By port, where there is one. Worked out after fills and invalidations that may have changed it.
    // PERF: spares second-level hits, which have most to do, a quarter of their work.
    #[serde(skip, default = "no_pairs")]
    pairs: [Pair; 3],
    /// Whether `pairs` are to be worked out.
    #[serde(skip, default = "to_be_worked_out")]
    stale: bool,
}

fn no_pairs() -> [Pair; 3] {
    [Pair::NONE; 3]
}

fn to_be_worked_out() -> bool {
    true
}

fn no_hints() -> Box<[Hint; HINTS]> {
    Box::new([Hint::default(); HINTS])
}

fn no_guesses() -> Box<[Slot; GUESSES]> {
    Box::new([Slot::default(); GUESSES])
}

/// The arrays that answer a port while all its translations are of one size.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair {
    pub(super) l1: u8,
    pub(super) l2: u8,
}

impl Pair {
    /// There is none.
    const NONE: Pair = Pair { l1: NO_HOME, l2: NO_HOME };
}

/// Where a search ended; the entry is in [`Tlb::found`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Searched {
    L1,
    L2,
    Nowhere,
}

impl Tlb {
    /// Empty TLBs. The seed matters to random replacement only.
    pub fn new(spec: &TlbSpec, seed: u64) -> Result<Self, ArrayError> {
        Ok(Self {
            l1: Arrays::new(&spec.l1, spec.rules, seed)?,
            l2: Arrays::new(&spec.l2, spec.rules, !seed)?,
            inclusion: spec.inclusion,
            rules: spec.rules,
            l2_hit_extra: [spec.l2_hit_extra, spec.l2_hit_extra, spec.l2_hit_extra_fetch],
            hints: no_hints(),
            found: Stored::default(),
            guesses: no_guesses(),
            pairs: [Pair::NONE; 3],
            stale: false,
        })
    }

    /// What is compared.
    pub fn rules(&self) -> TagRules {
        self.rules
    }

    /// Cycles a second-level hit costs this port, over a first-level hit.
    #[inline]
    pub fn l2_hit_extra(&self, port: Port) -> Cycles {
        self.l2_hit_extra[port as usize]
    }

    /// Looks an address up. The caller checks permissions on the entry; when they do not suffice (a store without
    /// [`super::Perms::DIRTY`]) it walks, and [`fill`](Self::fill) replaces the entry.
    #[inline(always)]
    pub fn lookup(&mut self, port: Port, tag: Tag, input: Input) -> Lookup {
        let context = self.rules.context(tag, input.kind());
        let page = Hint::page(port, input);
        let hint = &self.hints[Hint::index(page)];
        if hint.page == page {
            let (array, key) = (self.l1.all.get_mut(hint.array as usize), TlbKey::join(hint.tag, context));
            if let Some(entry) = array.and_then(|array| array.find_again(hint.slot, &key)) {
                return Lookup::L1(entry.unpack());
            }
        }
        let (pair, excludes) = (self.pairs[port as usize], self.excludes(port));
        let (l1, l2) = (self.l1.all.get_mut(pair.l1 as usize), self.l2.all.get_mut(pair.l2 as usize));
        let (Some(l1), Some(l2)) = (l1, l2) else {
            return match self.search(port, input, context) {
                Searched::L1 => Lookup::L1(self.found.unpack()),
                Searched::L2 => Lookup::L2(self.found.unpack()),
                Searched::Nowhere => Lookup::Miss,
            };
        };
        let key = l1.sole_key(input, context);
        let missed = match l1.use_or_miss(&key) {
            Ok(slot) => {
                self.hinted(port, input, pair.l1, slot);
                return Lookup::L1(self.found.unpack());
            }
            Err(missed) => missed,
        };
        self.l1.missed[port as usize] += 1;
        if excludes {
            return match self.second_exclusive(port, pair, missed, &key) {
                Searched::L2 => Lookup::L2(self.found.unpack()),
                _ => Lookup::Miss,
            };
        }
        let guess = &mut self.guesses[guess_of(&key)];
        if let Some(entry) = l2.find_again(*guess, &key) {
            l1.put_missed(missed, &key, entry);
            return Lookup::L2(entry.unpack());
        }
        match self.search_second(port, pair, missed, &key) {
            Searched::L2 => Lookup::L2(self.found.unpack()),
            _ => Lookup::Miss,
        }
    }

    /// Searches the second level of a pair for what the first has missed, and remembers the place.
    #[inline(never)]
    fn search_second(&mut self, port: Port, pair: Pair, missed: Missed, key: &TlbKey) -> Searched {
        let (l1, l2) = (&mut self.l1.all[pair.l1 as usize], &mut self.l2.all[pair.l2 as usize]);
        let Some(slot) = l2.use_sole(key) else {
            self.l2.missed[port as usize] += 1;
            return Searched::Nowhere;
        };
        self.guesses[guess_of(key)] = slot;
        let (key, entry) = l2.contents(slot);
        l1.put_missed(missed, &key, entry);
        self.found = entry;
        Searched::L2
    }

    /// What the first level has at a place; later look-ups of the page are told.
    #[inline(never)]
    fn hinted(&mut self, port: Port, input: Input, array: u8, slot: Slot) {
        let (key, entry) = self.l1.all[array as usize].contents(slot);
        self.found = entry;
        self.hint(port, input, slot, array, &key);
    }

    /// Remembers where the first level has a page.
    #[inline(always)]
    fn hint(&mut self, port: Port, input: Input, slot: Slot, array: u8, key: &TlbKey) {
        // What lies in a group is not the entry itself.
        if !key.is_global() && !key.is_grouped() {
            let page = Hint::page(port, input);
            self.hints[Hint::index(page)] = Hint { page, tag: key.tag(), slot, array };
        }
    }

    /// Notes that an array may have got its first page of a size or lost its last.
    #[cold]
    pub(super) fn unpair(&mut self) {
        self.pairs = [Pair::NONE; 3];
        self.stale = true;
    }

    /// The pair of a port as things are: every other array it asks is empty, and what the second level holds goes to the
    /// first unchanged.
    fn pair(&self, port: Port) -> Option<Pair> {
        let (l1, shift) = self.l1.sole(port)?;
        let (l2, second_shift) = self.l2.sole(port)?;
        let home = self.l1.homes[port as usize].get(shift as usize).copied();
        let swift = self.l1.all[l1 as usize].is_swift();
        (swift && shift == second_shift && home == Some(l1)).then_some(Pair { l1, l2 })
    }

    #[inline(never)]
    fn search(&mut self, port: Port, input: Input, context: u64) -> Searched {
        if self.stale {
            self.stale = false;
            self.pairs = Port::ALL.map(|port| self.pair(port).unwrap_or(Pair::NONE));
        }
        if let Some((array, slot, entry)) = self.l1.find(port, input, context) {
            self.found = entry;
            let key = self.l1.all[array as usize].key(slot);
            self.hint(port, input, slot, array, &key);
            return Searched::L1;
        }
        let Some((array, slot, entry)) = self.l2.find(port, input, context) else { return Searched::Nowhere };
        self.found = entry;
        if self.excludes(port) {
            self.move_up(port, input, context, (array, slot));
        } else {
            let shift = self.l2.all.get(array as usize).map_or(0, |array| array.page_shift(entry));
            if self.l1.put_quietly(port, input, context, shift, entry, Known::Absent) {
                self.unpair();
            }
        }
        Searched::L2
    }

    /// Puts the result of a walk in. An entry with the same page, tag and reach is replaced; one that differs in reach
    /// (global or not) or size stays beside it until it is invalidated, as hardware allows.
    pub fn fill(&mut self, port: Port, tag: Tag, input: Input, entry: TlbEntry) {
        self.fill_known(port, tag, input, entry, Known::Unknown);
    }

    /// The same after a look-up of this address by this port under this tag has missed and nothing has been filled since:
    /// what is known to be absent is not looked for again.
    pub fn fill_missed(&mut self, port: Port, tag: Tag, input: Input, entry: TlbEntry) {
        self.fill_known(port, tag, input, entry, Known::Absent);
    }

    #[inline(always)]
    fn fill_known(&mut self, port: Port, tag: Tag, input: Input, entry: TlbEntry, known: Known) {
        let context = self.rules.context(tag, input.kind());
        if self.inclusion != Inclusion::NonInclusive {
            return self.fill_related(port, input, context, entry, known);
        }
        let (shift, entry) = (entry.size.shift(), Stored::pack(&entry));
        let second = self.l2.put_quietly(port, input, context, shift, entry, known);
        let first = self.l1.put_quietly(port, input, context, shift, entry, known);
        if first || second {
            self.unpair();
        }
    }

    #[inline(never)]
    fn fill_related(&mut self, port: Port, input: Input, context: u64, entry: TlbEntry, known: Known) {
        if self.excludes(port) {
            return self.fill_exclusive(port, input, context, entry, known);
        }
        let shift = entry.size.shift();
        let sizes = |arrays: &mut Arrays| arrays.home(port, shift).map(|array| array.present());
        let before = sizes(&mut self.l2);
        let evicted = self.l2.put(port, input, context, entry, Known::Unknown).evicted();
        let second = sizes(&mut self.l2) != before;
        let inclusive = self.inclusion == Inclusion::Inclusive;
        if let Some((key, _)) = evicted.filter(|_| inclusive) {
            self.l1.invalidate(&Select::block(&key, self.rules));
        }
        let first = self.l1.put_quietly(port, input, context, shift, Stored::pack(&entry), Known::Unknown);
        if first || second || inclusive {
            self.unpair();
        }
    }

    /// Removes what the invalidation reaches from both levels and returns how many entries that were. Entries of upper-level
    /// tables are the [`super::PscSet`]'s.
    pub fn invalidate(&mut self, what: Invalidate) -> u64 {
        self.unpair();
        match Select::new(what, self.rules) {
            Ok(select) => self.l1.invalidate(&select) + self.l2.invalidate(&select),
            Err(Nothing) => 0,
        }
    }

    /// Whether a look-up of this address would match translations of different sizes in one array: what Arm reports as a TLB
    /// conflict. Leaves no trace.
    pub fn conflicts(&self, port: Port, tag: Tag, input: Input) -> bool {
        let matches = |arrays: &Arrays| arrays.of(port).map(|array| array.matches(tag, input)).max().unwrap_or(0);
        match matches(&self.l1) {
            // The second level is asked when the first has nothing.
            0 => matches(&self.l2) > 1,
            first => first > 1,
        }
    }

    /// Whether some array holds a translation of another size for any part of the page of `size` around an address: the ground on
    /// which [`conflicts`](Self::conflicts) grow.
    pub fn overlaps(&self, port: Port, tag: Tag, input: Input, size: PageSize) -> bool {
        let overlap = |arrays: &Arrays| arrays.of(port).any(|array| array.overlaps(tag, input, size));
        overlap(&self.l1) || overlap(&self.l2)
    }

    /// Every translation of either level that a look-up under this tag can find.
    pub fn reachable(&self, tag: Tag) -> impl Iterator<Item = TlbEntry> + '_ {
        self.l1.all.iter().chain(&self.l2.all).flat_map(TlbArray::entries).filter_map(move |(key, entry)| {
            let wanted = self.rules.context(tag, key.kind());
            key.belongs(wanted, self.rules.mask(key.kind())).then_some(entry)
        })
    }

    /// First-level arrays.
    pub fn l1(&self) -> Vec<LevelArray<'_>> {
        self.l1.view()
    }
    /// Second-level arrays.
    pub fn l2(&self) -> Vec<LevelArray<'_>> {
        self.l2.view()
    }
    /// Counters of every array by name, first level first.
    pub fn stats(&self) -> impl Iterator<Item = (&str, ArrayStats)> {
        self.l1.view().into_iter().chain(self.l2.view()).map(|view| (view.array.name(), view.stats()))
    }
}
