//! One TLB array: one or several page sizes in one set-associative structure.
//!
//! A look-up knows no page size, so an array that holds several is probed once per size - but only per size that has
//! entries, which counters tell. With coalescing the smallest pages are stored in aligned groups with a mask of valid
//! pages; a page joins its group's entry when its output continues the group's and everything else is equal, and
//! otherwise takes the entry over (Arm Cortex-A76 TRM 100798, L2 TLB format).

use super::entry::Stored;
use super::invalidate::{Select, Span};
use super::key::{Cut, GROUPED};
use super::spec::{ArrayError, ArraySpec, ArrayStats, Coalesce, LargerPages, MAX_SIZES};
use super::{CombinedByGpa, Input, Kind, Tag, TagRules, TlbEntry, TlbKey};
use crate::addr::{Gpa, PageSize};
use crate::assoc::{Inserted, Key, SetAssoc, Shape, Slot};

const NO_CLASS: u8 = u8::MAX;

/// One page size of an array.
#[derive(Clone, Copy, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Class {
    cut: Cut,
    page_shift: u32,
    /// Entries of this size.
    pub(super) count: u32,
}

impl Class {
    const fn key_shift(self) -> u32 {
        (self.cut.class() & !GROUPED) as u32
    }
    #[inline(always)]
    const fn is_grouped(self) -> bool {
        self.cut.class() & GROUPED != 0
    }
    /// Which page of its group an address lies in.
    const fn page_in_group(self, address: u64) -> u32 {
        (address >> self.page_shift) as u32 & ((1 << (self.key_shift() - self.page_shift)) - 1)
    }
}

/// What a look-up asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
enum Ask {
    /// Nothing: the array is empty.
    Nothing,
    /// One class, of single pages.
    One,
    /// Several classes, or groups.
    Each,
}

/// Whether an insertion must look for an equal entry first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Known {
    /// A look-up has just missed here.
    Absent,
    /// Unknown.
    Unknown,
}

/// One TLB array.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct TlbArray {
    name: String,
    pub(super) store: SetAssoc<TlbKey, Stored>,
    ask: Ask,
    /// The one class to ask for.
    pub(super) sole: Cut,
    /// Whether pages of that class go in without more ado.
    pub(super) plain: bool,
    pub(super) classes: [Class; MAX_SIZES],
    pub(super) class_count: u8,
    /// Bit `i`: class `i` has entries.
    pub(super) present: u8,
    /// Class that stores a page of this shift.
    #[serde(with = "super::saved::one")]
    by_shift: [u8; 64],
    rules: TagRules,
    /// Counters; those of hits follow from the store's.
    pub(super) stats: ArrayStats,
}

impl TlbArray {
    /// An empty array. The seed matters to random replacement only.
    pub fn new(spec: &ArraySpec, rules: TagRules, seed: u64) -> Result<Self, ArrayError> {
        spec.check()?;
        let mut sizes = spec.sizes.clone();
        sizes.sort_unstable();
        let mut classes = [Class::default(); MAX_SIZES];
        for (class, size) in classes.iter_mut().zip(&sizes) {
            *class = Class { cut: Cut::new(size.shift(), 0), page_shift: size.shift(), count: 0 };
        }
        if let Some(Coalesce { pages }) = spec.coalesce {
            classes[0].cut = Cut::new(classes[0].page_shift + pages.trailing_zeros(), GROUPED);
        }
        let by_shift = std::array::from_fn(|shift| {
            let class = sizes.iter().rposition(|size| size.shift() as usize <= shift);
            match class {
                Some(class) if sizes[class].shift() as usize == shift || spec.larger == LargerPages::Fragment => {
                    class as u8
                }
                _ => NO_CLASS,
            }
        });
        Ok(Self {
            name: spec.name.clone(),
            store: SetAssoc::stamped(spec.shape, seed),
            ask: Ask::Nothing,
            sole: Cut::default(),
            plain: false,
            classes,
            class_count: sizes.len() as u8,
            present: 0,
            by_shift,
            rules,
            stats: ArrayStats::default(),
        })
    }

    /// Name in statistics.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Counters since it was made. In a [`super::Tlb`], whose look-ups ask whole levels, [`super::Tlb::l1`] and
    /// [`super::Tlb::l2`] know the misses besides.
    // PERF: every fill is one use of the store and every other use is a hit, so that a hit counts once.
    pub fn stats(&self) -> ArrayStats {
        ArrayStats { hits: self.store.uses() - self.stats.fills, ..self.stats }
    }
    /// Entries held; a coalesced group is one.
    pub fn len(&self) -> usize {
        self.store.len()
    }
    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.store.is_empty()
    }
    /// Its shape.
    pub fn shape(&self) -> Shape {
        self.store.shape()
    }

    /// Entries with their keys, a group as its parts.
    pub fn entries(&self) -> impl Iterator<Item = (TlbKey, TlbEntry)> + '_ {
        self.store.iter().flat_map(move |(key, entry)| {
            let entry = entry.unpack();
            (0..8).filter(move |index| entry.valid >> index & 1 == 1).map(move |index| {
                (key, if key.is_grouped() { self.page_of_group(entry, index, key.kind()) } else { entry })
            })
        })
    }

    /// Looks an address up and counts a use of what it finds.
    pub fn lookup(&mut self, tag: Tag, input: Input) -> Option<TlbEntry> {
        let found = self.find(input, self.rules.context(tag, input.kind()));
        self.stats.misses += u64::from(found.is_none());
        found.map(|(_, entry)| entry.unpack())
    }

    /// Looks an address up without any trace.
    pub fn peek(&self, tag: Tag, input: Input) -> Option<TlbEntry> {
        let context = self.rules.context(tag, input.kind());
        self.probe(input, context).map(|slot| self.entry_at(slot, input).unpack())
    }

    /// How many translations of different sizes match an address, without any trace.
    pub fn matches(&self, tag: Tag, input: Input) -> usize {
        let context = self.rules.context(tag, input.kind());
        self.matching(input, context).count()
    }

    /// Whether a translation of another size than `size` stands here for any part of the page of that size around an address. Larger ones
    /// are asked for, smaller ones looked for among all entries where there are any.
    pub fn overlaps(&self, tag: Tag, input: Input, size: PageSize) -> bool {
        let Some(own) = self.stored_shift(size) else { return false };
        let context = self.rules.context(tag, input.kind());
        let others = || {
            self.classes.iter().zip(0u8..).filter(|(class, n)| self.present >> n & 1 == 1 && class.page_shift != own)
        };
        if others().all(|(class, _)| class.page_shift > own) {
            return self.matching(input, context).any(|class| class.page_shift != own);
        }
        let (first, last) = (input.raw() >> own << own, input.raw() | ((1 << own) - 1));
        self.store.iter().any(|(key, entry)| {
            let meets = key.kind() == input.kind() && key.input().raw() <= last && first <= key.last();
            meets && entry.shift() != own && key.belongs(context, self.rules.mask(input.kind()))
        })
    }

    /// The size classes whose entries match an address.
    fn matching(&self, input: Input, context: u64) -> impl Iterator<Item = &Class> + '_ {
        let present = self.present;
        let classes =
            self.classes.iter().enumerate().filter(move |(n, _)| present >> n & 1 == 1).map(|(_, class)| class);
        classes.filter(move |class| {
            self.store.find(&class.cut.key(input, context)).is_some_and(|slot| {
                let valid = self.store.value(slot).valid();
                !class.is_grouped() || valid >> class.page_in_group(input.raw()) & 1 == 1
            })
        })
    }

    /// Puts a translation in; an entry with the same key is replaced, so one array never holds two versions of one
    /// page under one tag.
    pub fn fill(&mut self, tag: Tag, input: Input, entry: TlbEntry) {
        let _ = self.put(input, self.rules.context(tag, input.kind()), entry, Known::Unknown);
    }

    /// [`lookup`](Self::lookup) with the context worked out, without counting a miss. Also tells where.
    #[inline(always)]
    pub(super) fn find(&mut self, input: Input, context: u64) -> Option<(Slot, Stored)> {
        match self.ask {
            Ask::Nothing => None,
            Ask::One => {
                let slot = self.store.use_of(&self.sole.key(input, context))?;
                Some((slot, *self.store.value(slot)))
            }
            Ask::Each => self.find_each(input, context),
        }
    }

    #[inline(never)]
    fn find_each(&mut self, input: Input, context: u64) -> Option<(Slot, Stored)> {
        let slot = self.probe(input, context)?;
        self.store.touch(slot);
        Some((slot, self.entry_at(slot, input)))
    }

    /// [`find`](Self::find) of what an earlier one found, if it still is there.
    #[inline(always)]
    pub(super) fn find_again(&mut self, slot: Slot, key: &TlbKey) -> Option<Stored> {
        self.store.use_again(slot, key)
    }

    /// The translation of an address that was found at a place.
    fn entry_at(&self, slot: Slot, input: Input) -> Stored {
        let entry = *self.store.value(slot);
        if !self.store.key(slot).is_grouped() {
            return entry;
        }
        Stored::pack(&self.page_of_group(entry.unpack(), self.classes[0].page_in_group(input.raw()), input.kind()))
    }

    /// The shift of the page of an entry that was found here.
    // PERF: mostly known before the entry has come from memory, so that what depends on it need not wait.
    #[inline(always)]
    pub(super) fn page_shift(&self, entry: Stored) -> u32 {
        if self.ask == Ask::One { self.sole.class() as u32 } else { entry.shift() }
    }

    /// What is at a place, with its key.
    pub(super) fn contents(&self, slot: Slot) -> (TlbKey, Stored) {
        (self.store.key(slot), *self.store.value(slot))
    }

    /// The key of what was found at a place.
    #[inline]
    pub(super) fn key(&self, slot: Slot) -> TlbKey {
        self.store.key(slot)
    }

    fn probe(&self, input: Input, context: u64) -> Option<Slot> {
        let present = self.present;
        let classes = self.classes.iter().enumerate().filter(|(n, _)| present >> n & 1 == 1).map(|(_, class)| class);
        classes.filter_map(|class| self.store.find(&class.cut.key(input, context)).map(|slot| (class, slot))).find_map(
            |(class, slot)| {
                let valid = self.store.value(slot).valid();
                (!class.is_grouped() || valid >> class.page_in_group(input.raw()) & 1 == 1).then_some(slot)
            },
        )
    }

    /// Works out what look-ups ask for, after the set of classes with entries has changed.
    pub(super) fn prepare(&mut self) {
        let class = &self.classes[self.present.trailing_zeros() as usize % MAX_SIZES];
        self.sole = class.cut;
        self.plain = self.present.is_power_of_two()
            && !class.is_grouped()
            && self.rules.combined_by_gpa == CombinedByGpa::Unknown;
        self.ask = match self.present.count_ones() {
            0 => Ask::Nothing,
            1 if !class.is_grouped() => Ask::One,
            _ => Ask::Each,
        };
    }

    /// Guest-physical entries have their address in the key; linear ones have none.
    #[inline]
    fn stores_gpa(&self, kind: Kind) -> bool {
        kind == Kind::Combined && self.rules.combined_by_gpa == CombinedByGpa::Stored
    }

    fn page_of_group(&self, group: TlbEntry, index: u32, kind: Kind) -> TlbEntry {
        let page = group.group_page(index);
        if self.stores_gpa(kind) { page } else { TlbEntry { gpa: Gpa::new(0), ..page } }
    }

    /// The shift of the pages as which a page of this size would be stored.
    #[inline(always)]
    pub(super) fn stored_shift(&self, size: PageSize) -> Option<u32> {
        let class = self.by_shift[size.shift() as usize & 63];
        (class != NO_CLASS).then(|| self.classes[class as usize].page_shift)
    }

    /// [`fill`](Self::fill) with the context worked out; returns the entry that had to leave.
    #[inline(always)]
    pub(super) fn put(
        &mut self,
        input: Input,
        context: u64,
        entry: TlbEntry,
        known: Known,
    ) -> Option<(TlbKey, TlbEntry)> {
        let index = self.by_shift[entry.size.shift() as usize & 63];
        if index == NO_CLASS {
            return None;
        }
        let class = self.classes[index as usize];
        let mut entry = entry;
        if entry.size.shift() != class.page_shift {
            entry = entry.fragment(input.raw(), PageSize::from_shift(class.page_shift)?);
        }
        if !self.stores_gpa(input.kind()) {
            entry.gpa = Gpa::new(0);
        }
        self.stats.fills += 1;
        let key = class.cut.key(input, context).with_reach(entry.reach);
        let inserted = if class.is_grouped() {
            self.join_group(key, class.page_in_group(input.raw()), entry)
        } else if known == Known::Absent {
            self.store.insert_absent(key, Stored::pack(&entry))
        } else {
            self.store.insert(key, Stored::pack(&entry))
        };
        self.account(index as usize, inserted)
    }

    /// [`put`](Self::put) when nobody asks what has to leave; `shift` is that of the entry's page.
    #[inline(always)]
    pub(super) fn put_quietly(&mut self, input: Input, context: u64, shift: u32, entry: Stored, known: Known) {
        if !(self.plain && self.sole.class() == u64::from(shift)) {
            return self.put_page(input, context, entry, known);
        }
        let key = self.sole.key(input, context);
        let (key, entry) = (key.with_reach(entry.reach()), entry.without_gpa());
        if known == Known::Absent || !self.replace_sole(&key, entry) {
            self.put_sole(&key, entry);
        }
    }

    /// Which of its page sizes have entries, as bits.
    #[inline(always)]
    pub(super) fn present(&self) -> u8 {
        self.present
    }

    #[inline(never)]
    fn put_page(&mut self, input: Input, context: u64, entry: Stored, known: Known) {
        let index = self.by_shift[entry.shift() as usize];
        let cut = self.classes[index as usize % MAX_SIZES].cut;
        // Fragments, groups and guest-physical addresses are the general path's.
        if index == NO_CLASS || cut.class() != u64::from(entry.shift()) || self.stores_gpa(input.kind()) {
            let _ = self.put(input, context, entry.unpack(), known);
            return;
        }
        self.stats.fills += 1;
        let key = cut.key(input, context).with_reach(entry.reach());
        let entry = entry.without_gpa();
        if known == Known::Unknown && self.store.replace(&key, entry) {
            return;
        }
        let old = self.store.displace(key, entry);
        self.stats.evictions += u64::from(old != TlbKey::EMPTY);
        let old = TlbKey::class_of(old);
        if old != cut.class() {
            self.exchange(index as usize, old);
        }
    }

    /// One entry more of a class, and one less of the class of what left (0 if nothing did).
    #[inline(never)]
    fn exchange(&mut self, class: usize, old: u64) {
        let present = self.present;
        self.classes[class].count += 1;
        self.present |= 1 << class;
        Self::forget_in(&mut self.classes[..self.class_count as usize], &mut self.present, old);
        if self.present != present {
            self.prepare();
        }
    }

    #[inline]
    fn account(&mut self, class: usize, inserted: Inserted<TlbKey, Stored>) -> Option<(TlbKey, TlbEntry)> {
        match inserted {
            Inserted::Replaced(_) => None,
            Inserted::Filled => {
                self.exchange(class, 0);
                None
            }
            Inserted::Evicted(key, entry) => {
                self.stats.evictions += 1;
                self.exchange(class, key.class());
                Some((key, entry.unpack()))
            }
        }
    }

    /// One entry less of a class.
    pub(super) fn forget_in(classes: &mut [Class], present: &mut u8, key_class: u64) {
        if let Some(index) = classes.iter().position(|class| class.cut.class() == key_class) {
            classes[index].count -= 1;
            if classes[index].count == 0 {
                *present &= !(1 << index);
            }
        }
    }

    /// Adds page `index` to the entry of its group, or takes the entry over when the page does not continue it.
    fn join_group(&mut self, key: TlbKey, index: u32, entry: TlbEntry) -> Inserted<TlbKey, Stored> {
        let mut group = entry.group_base(index, 1 << index);
        if !self.stores_gpa(key.kind()) {
            group.gpa = Gpa::new(0);
        }
        if let Some(slot) = self.store.find(&key) {
            let present = self.store.value(slot).unpack();
            if (TlbEntry { valid: group.valid, ..present }) == group {
                group.valid |= present.valid;
            }
        }
        self.store.insert(key, Stored::pack(&group))
    }

    /// Takes out what look-ups of this address and context find here, because it moves to another level.
    pub(super) fn take(&mut self, input: Input, context: u64) {
        match self.ask {
            Ask::Nothing => return,
            Ask::One => return self.take_sole(input, context),
            Ask::Each => {}
        }
        let key = TlbKey::new(input, self.classes[0].page_shift, 0, context);
        let counted = self.stats.invalidations;
        self.invalidate(&Select::block(&key, self.rules));
        self.stats.invalidations = counted;
    }

    /// Removes what the selection reaches and returns how many entries that touched.
    pub(super) fn invalidate(&mut self, select: &Select) -> u64 {
        if self.present == 0 {
            return 0;
        }
        let before = self.stats.invalidations;
        match select.input_span() {
            Some(span) if self.is_short(span) => self.invalidate_pages(select, span),
            _ => {
                let Self { store, classes, present, stats, class_count, .. } = self;
                let classes = &mut classes[..*class_count as usize];
                store.retain(|key, entry| strike(select, key, entry, stats, classes, present));
            }
        }
        self.prepare();
        self.stats.invalidations - before
    }

    /// Whether probing a span block by block is cheaper than looking at every entry.
    fn is_short(&self, span: Span) -> bool {
        let smallest = self.classes[0].key_shift();
        let further_blocks = (span.last >> smallest) - (span.first >> smallest);
        further_blocks < u64::from(self.shape().entries() / 64).max(1)
    }

    fn invalidate_pages(&mut self, select: &Select, span: Span) {
        let Self { store, classes, present, stats, class_count, .. } = self;
        let classes = &mut classes[..*class_count as usize];
        for index in 0..classes.len() {
            let class = classes[index];
            if class.count == 0 {
                continue;
            }
            for block in span.first >> class.key_shift()..=span.last >> class.key_shift() {
                for kind in select.kinds() {
                    let input = Input::of(kind, block << class.key_shift());
                    let key = class.cut.key(input, 0);
                    store.retain_tagged(&key, |key, entry| strike(select, key, entry, stats, classes, present));
                }
            }
        }
    }
}

/// Applies an invalidation to one entry; false when nothing of it is left.
#[inline]
fn strike(
    select: &Select,
    key: &TlbKey,
    stored: &mut Stored,
    stats: &mut ArrayStats,
    classes: &mut [Class],
    present: &mut u8,
) -> bool {
    let mut entry = stored.unpack();
    let kept = select.survivors(key, &entry);
    if kept == entry.valid {
        return true;
    }
    stats.invalidations += 1;
    entry.valid = kept;
    *stored = Stored::pack(&entry);
    if kept == 0 {
        TlbArray::forget_in(classes, present, key.class());
    }
    kept != 0
}
