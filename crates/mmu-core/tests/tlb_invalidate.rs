//! What invalidations reach, and that TLBs behave like an obvious list of entries under any sequence of operations.

use std::collections::BTreeMap;

use mmu_core::assoc::{Index, Replacement, SetAssoc, Shape};
use mmu_core::tlb::*;
use mmu_core::walk::CachedTable;
use mmu_core::{Cycles, Geometry, Gpa, Gva, Hpa, Level, PageSize, Table};
use proptest::prelude::*;

const SIZES: [PageSize; 3] = [PageSize::SIZE_4K, PageSize::SIZE_16K, PageSize::SIZE_2M];

fn array(name: &str, entries: u32, ways: u32, coalesce: Option<Coalesce>) -> ArraySpec {
    ArraySpec {
        name: name.to_owned(),
        shape: Shape::new(entries, ways).unwrap(),
        ports: Port::ALL.to_vec(),
        sizes: SIZES.to_vec(),
        coalesce,
        larger: LargerPages::Fragment,
    }
}

fn spec(inclusion: Inclusion, coalesce: Option<Coalesce>, rules: TagRules) -> TlbSpec {
    TlbSpec {
        l1: vec![array("l1", 8, 2, None)],
        l2: vec![array("l2", 32, 4, coalesce)],
        inclusion,
        rules,
        l2_hit_extra: Cycles(7),
        l2_hit_extra_fetch: Cycles(9),
    }
}

fn tag(asid: u32, vmid: u16, root: u16) -> Tag {
    Tag { asid: Asid(asid), vmid: Vmid(vmid), root: RootId(root) }
}

fn page(output: u64) -> TlbEntry {
    TlbEntry::new(Hpa::new(output), PageSize::SIZE_4K, Perms::RW)
}

fn hit(tlb: &mut Tlb, tag: Tag, input: Input) -> bool {
    tlb.lookup(Port::Load, tag, input).entry().is_some()
}

#[test]
fn hot_types_stay_small() {
    assert!(size_of::<TlbKey>() <= 16);
    assert!(size_of::<TlbEntry>() <= 24);
    assert!(size_of::<Lookup>() <= 32);
    assert!(size_of::<Input>() <= 16);
    assert!(size_of::<Tag>() <= 8);
    assert!(size_of::<Invalidate>() <= 32);
}

/// One entry of each kind in VM 1 and VM 2, address spaces 5 and 6, then one invalidation: which are left?
fn survivors(rules: TagRules, what: Invalidate) -> Vec<&'static str> {
    let mut spec = spec(Inclusion::NonInclusive, None, rules);
    spec.l1[0].shape = Shape::new(8, 0).unwrap();
    spec.l2[0].shape = Shape::new(8, 8).unwrap();
    let mut tlb = Tlb::new(&spec, 0).unwrap();
    let va = Gva::new(0x7000);
    let linear = Input::Linear(va);
    let combined = Input::Combined(va);
    let gpa = Input::GuestPhysical(Gpa::new(0x7000));
    let cases = [
        ("linear 0/5", tag(5, 0, 0), linear, page(0x1000)),
        ("linear 0/6", tag(6, 0, 0), linear, page(0x2000)),
        ("combined 1/5", tag(5, 1, 11), combined, page(0x3000).through(Gpa::new(0x9000))),
        ("combined 1/6", tag(6, 1, 11), combined, page(0x4000).through(Gpa::new(0xa000))),
        ("global 1", tag(7, 1, 11), Input::Combined(Gva::new(0x8000)), page(0x5000).global()),
        ("combined 2/5", tag(5, 2, 12), combined, page(0x6000).through(Gpa::new(0x9000))),
        ("gpa 1", tag(0, 1, 11), gpa, page(0x7000)),
        ("gpa 2", tag(0, 2, 12), gpa, page(0x8000)),
    ];
    for (_, tag, input, entry) in cases {
        tlb.fill(Port::Load, tag, input, entry);
    }
    tlb.invalidate(what);
    cases.iter().filter(|(_, tag, input, _)| hit(&mut tlb, *tag, *input)).map(|case| case.0).collect()
}

const ALL: [&str; 8] =
    ["linear 0/5", "linear 0/6", "combined 1/5", "combined 1/6", "global 1", "combined 2/5", "gpa 1", "gpa 2"];

fn removed(rules: TagRules, what: Invalidate) -> Vec<&'static str> {
    let left = survivors(rules, what);
    ALL.into_iter().filter(|name| !left.contains(name)).collect()
}

#[test]
fn each_word_reaches_what_it_says() {
    let arm = TagRules::new(16, 16, Stage2Tag::Vmid);
    let vmid = Vmid(1);
    let va = Gva::new(0x7fff);
    let one = AsidScope::One(Asid(5));
    let any = AsidScope::Any;
    let (start, bytes) = (Gva::new(0x7000), 0x2000);
    for (what, gone) in [
        (Invalidate::Page { vmid, asid: one, va }, vec!["combined 1/5"]),
        (Invalidate::Page { vmid, asid: any, va }, vec!["combined 1/5", "combined 1/6"]),
        (Invalidate::Page { vmid: Vmid(0), asid: one, va }, vec!["linear 0/5"]),
        (Invalidate::Page { vmid, asid: one, va: Gva::new(0x8000) }, vec!["global 1"]),
        (Invalidate::Range { vmid, asid: one, start, bytes }, vec!["combined 1/5", "global 1"]),
        (Invalidate::Range { vmid, asid: any, start, bytes: 0 }, vec![]),
        (Invalidate::Asid { vmid, asid: Asid(5), globals: Globals::Kept }, vec!["combined 1/5"]),
        (Invalidate::Asid { vmid, asid: Asid(5), globals: Globals::Dropped }, vec!["combined 1/5", "global 1"]),
        (Invalidate::Vmid { vmid, globals: Globals::Kept }, vec!["combined 1/5", "combined 1/6"]),
        (Invalidate::Vmid { vmid, globals: Globals::Dropped }, vec!["combined 1/5", "combined 1/6", "global 1"]),
        (Invalidate::VmidBothStages { vmid }, vec!["combined 1/5", "combined 1/6", "global 1", "gpa 1"]),
        (Invalidate::GuestPhysical { vmid, start: Gpa::new(0x7000), bytes: 1 }, vec!["gpa 1"]),
        (Invalidate::GuestPhysical { vmid, start: Gpa::new(0x9000), bytes: u64::MAX }, vec![]),
        (Invalidate::All, ALL.to_vec()),
    ] {
        assert_eq!(removed(arm, what), gone, "{what:?}");
    }
    let x86 = TagRules::new(12, 16, Stage2Tag::Root);
    let root = Invalidate::Root { root: RootId(11) };
    assert_eq!(removed(x86, root), ["combined 1/5", "combined 1/6", "global 1", "gpa 1"]);
    let stored = arm.with_combined_by_gpa(CombinedByGpa::Stored);
    let by_gpa = Invalidate::GuestPhysical { vmid, start: Gpa::new(0x9000), bytes: 0x1000 };
    assert_eq!(removed(stored, by_gpa), ["combined 1/5"]);
}

#[test]
fn numbers_are_cut_to_the_tag_width() {
    let rules = TagRules::new(12, 0, Stage2Tag::Vmid);
    let mut tlb = Tlb::new(&spec(Inclusion::NonInclusive, None, rules), 0).unwrap();
    let input = Input::Combined(Gva::new(0x1000));
    tlb.fill(Port::Load, tag(0x1005, 3, 0), input, page(0x9000));
    assert!(hit(&mut tlb, tag(0x2005, 4, 0), input));
    assert!(!hit(&mut tlb, tag(0x2006, 4, 0), input));
    tlb.invalidate(Invalidate::Page { vmid: Vmid(9), asid: AsidScope::One(Asid(0x3005)), va: Gva::new(0x1000) });
    assert!(!hit(&mut tlb, tag(0x1005, 3, 0), input));
}

#[test]
fn a_refill_replaces_the_entry() {
    let mut tlb = Tlb::new(&spec(Inclusion::NonInclusive, None, TagRules::default()), 0).unwrap();
    let input = Input::Linear(Gva::new(0x1234));
    tlb.fill(Port::Store, Tag::default(), input, page(0x9000));
    tlb.fill(Port::Store, Tag::default(), input, page(0x9000).with_perms(Perms::RW | Perms::DIRTY));
    let Lookup::L1(entry) = tlb.lookup(Port::Store, Tag::default(), input) else { panic!() };
    assert!(entry.perms.contains(Perms::DIRTY));
    assert_eq!(entry.translate(input), Hpa::new(0x9234));
    assert_eq!((tlb.l1()[0].len(), tlb.l2()[0].len()), (1, 1));
}

#[test]
fn large_pages_fragment_or_are_skipped() {
    let mut spec = spec(Inclusion::NonInclusive, None, TagRules::default());
    spec.l1[0].larger = LargerPages::Skip;
    let mut tlb = Tlb::new(&spec, 0).unwrap();
    let giant = TlbEntry::new(Hpa::new(1 << 40), PageSize::SIZE_1G, Perms::RW);
    let input = Input::Linear(Gva::new(0x4060_1234));
    tlb.fill(Port::Load, Tag::default(), input, giant);
    assert!(tlb.l1()[0].is_empty());
    let Lookup::L2(entry) = tlb.lookup(Port::Load, Tag::default(), input) else { panic!() };
    assert_eq!((entry.size, entry.translate(input)), (PageSize::SIZE_2M, Hpa::new((1 << 40) + 0x60_1234)));
    assert!(!hit(&mut tlb, Tag::default(), Input::Linear(Gva::new(0x4080_0000))));
}

#[test]
fn coalesced_groups_share_an_entry_and_lose_single_pages() {
    let group = Some(Coalesce { pages: 4 });
    let mut l2 = TlbArray::new(&array("l2", 32, 4, group), TagRules::default(), 0).unwrap();
    let at = |n: u64| Input::Combined(Gva::new(0x10_0000 + n * 0x1000));
    let any = Tag::default();
    for n in [0, 1, 3] {
        l2.fill(any, at(n), page(0x80_0000 + n * 0x1000));
    }
    assert_eq!(l2.len(), 1);
    assert_eq!(l2.lookup(any, at(3)).unwrap().output, Hpa::new(0x80_3000));
    assert!(l2.lookup(any, at(2)).is_none());
    let mut tlb = Tlb::new(&spec(Inclusion::NonInclusive, group, TagRules::default()), 0).unwrap();
    for n in 0..4 {
        tlb.fill(Port::Load, any, at(n), page(0x80_0000 + n * 0x1000));
    }
    let one = Invalidate::Page { vmid: Vmid(0), asid: AsidScope::Any, va: Gva::new(0x10_1000) };
    assert_eq!(tlb.invalidate(one), 2);
    assert!([0, 2, 3].iter().all(|&n| hit(&mut tlb, any, at(n))) && !hit(&mut tlb, any, at(1)));
    tlb.fill(Port::Load, any, at(1), page(0x70_0000));
    assert_eq!(tlb.l2()[0].entries().count(), 1, "a page that does not continue the group takes the entry over");
}

fn tree() -> Geometry {
    Geometry::uniform(PageSize::SIZE_4K, &[9; 4], 52, &[0, 1, 2]).unwrap()
}

fn table(level: u8) -> CachedTable {
    let table = Table { base: Hpa::new(0x1000), index_bits: 9 };
    CachedTable { level: Level::new(level), table, host: Some((Hpa::new(0x5000), Perms::RW)), acc: 3 }
}

#[test]
fn table_caches_go_by_their_own_rule() {
    let level = |tables| PscLevelSpec { tables: Level::new(tables), shape: Shape::new(8, 0).unwrap() };
    let psc = PscSpec { levels: vec![level(0), level(1)], guest_physical: None, rules: TagRules::default() };
    let nested = Some(array("nested", 8, 0, None));
    let spec = CachesSpec { tlb: spec(Inclusion::NonInclusive, None, TagRules::default()), psc, nested };
    let vm = tag(5, 1, 0);
    let (va, far, gpa) =
        (Input::Combined(Gva::new(0x1000)), Input::Combined(Gva::new(1 << 30)), Input::GuestPhysical(Gpa::new(0x1000)));
    let page_of_va = Invalidate::Page { vmid: Vmid(1), asid: AsidScope::One(Asid(5)), va: Gva::new(0x1000) };
    let ipa = Invalidate::GuestPhysical { vmid: Vmid(1), start: Gpa::new(0), bytes: 0x1000_0000 };
    for (what, tables, removed, left) in [
        (page_of_va, TableCaches::Kept, (2, 0, 0), [true, true, true]),
        (page_of_va, TableCaches::Dropped, (2, 0, 1), [false, true, true]),
        (page_of_va, TableCaches::DroppedForContext, (2, 0, 2), [false, false, true]),
        (page_of_va, TableCaches::Only, (0, 0, 1), [false, true, true]),
        (ipa, TableCaches::Dropped, (0, 1, 1), [true, true, false]),
    ] {
        let mut caches = TranslationCaches::new(&spec, &tree(), &tree(), 0).unwrap();
        caches.tlb.fill(Port::Load, vm, va, page(0x9000));
        caches.nested.as_mut().unwrap().fill(vm, gpa, page(0x9000));
        for input in [va, far, gpa] {
            caches.psc.fill(vm, input, &table(0));
        }
        let got = caches.invalidate(what, tables);
        assert_eq!((got.translations, got.nested, got.tables), removed, "{what:?} {tables:?}");
        let found = [va, far, gpa].map(|input| caches.psc.deepest(vm, input) == Some(table(0)));
        assert_eq!(found, left, "{what:?} {tables:?}");
    }
}

/// The list every structure is compared with: newest first.
#[derive(Default)]
struct Model(Vec<(u64, u32)>);

impl Model {
    fn insert(&mut self, key: u64, value: u32, sets: u64, ways: usize, lru: bool) -> Option<(u64, u32)> {
        if let Some(at) = self.0.iter().position(|entry| entry.0 == key) {
            let moved = if lru { self.0.remove(at) } else { self.0[at] };
            if lru {
                self.0.insert(0, (moved.0, value));
            } else {
                self.0[at].1 = value;
            }
            return None;
        }
        let in_set: Vec<usize> = (0..self.0.len()).filter(|&at| self.0[at].0 % sets == key % sets).collect();
        let evicted = (in_set.len() == ways).then(|| self.0.remove(in_set[ways - 1]));
        self.0.insert(0, (key, value));
        evicted
    }

    fn lookup(&mut self, key: u64, lru: bool) -> Option<u32> {
        let at = self.0.iter().position(|entry| entry.0 == key)?;
        let entry = self.0[at];
        if lru {
            self.0.remove(at);
            self.0.insert(0, entry);
        }
        Some(entry.1)
    }
}

/// Page, ASID and VMID.
type PageOfTag = (u64, u32, u16);
/// Whether an invalidation reaches a page.
type Reaches = Box<dyn Fn(&PageOfTag) -> bool>;

const POLICIES: [Replacement; 6] = [
    Replacement::Lru,
    Replacement::Fifo,
    Replacement::TreePlru,
    Replacement::Nru,
    Replacement::Random,
    Replacement::RandomHalf,
];

proptest! {
    /// LRU and FIFO against the list, entry by entry; narrow and wide sets, any number of sets.
    #[test]
    fn assoc_equals_the_list(
        stamped in any::<bool>(), sets in 1u32..6, ways in prop_oneof![1u32..=16, 17u32..40], lru: bool,
        ops in prop::collection::vec((0u8..8, 0u64..150), 0..400),
    ) {
        let policy = if lru { Replacement::Lru } else { Replacement::Fifo };
        let shape = Shape::new(sets * ways, ways).unwrap().replaced_by(policy).unwrap();
        let made = if stamped { SetAssoc::<u64, u32>::stamped(shape, 1) } else { SetAssoc::new(shape, 1) };
        let (mut assoc, mut model) = (made, Model::default());
        for (step, &(op, key)) in ops.iter().enumerate() {
            match op {
                0..=2 => prop_assert_eq!(assoc.lookup(&key).copied(), model.lookup(key, lru)),
                3 => prop_assert_eq!(assoc.peek(&key).is_some(), model.0.iter().any(|entry| entry.0 == key)),
                4..=5 => {
                    let evicted = match assoc.insert(key, step as u32) {
                        mmu_core::assoc::Inserted::Evicted(key, value) => Some((key, value)),
                        _ => None,
                    };
                    prop_assert_eq!(evicted, model.insert(key, step as u32, u64::from(sets), ways as usize, lru));
                }
                6 => {
                    let before = model.0.len();
                    model.0.retain(|entry| entry.0 != key);
                    prop_assert_eq!(assoc.invalidate(&key), (before - model.0.len()) as u64);
                }
                _ => {
                    let before = model.0.len();
                    model.0.retain(|entry| entry.0 % 7 != key % 7);
                    prop_assert_eq!(assoc.retain(|stored, _| stored % 7 != key % 7), (before - model.0.len()) as u64);
                }
            }
            prop_assert_eq!(assoc.len(), model.0.len());
        }
        let mut left: Vec<(u64, u32)> = assoc.iter().map(|(key, &value)| (key, value)).collect();
        left.sort_unstable();
        model.0.sort_unstable();
        prop_assert_eq!(left, model.0);
    }

    /// Whatever the policy: what was put in last is there, nothing comes back, sets never lose entries while they have room.
    #[test]
    fn every_policy_keeps_the_contract(
        policy in prop::sample::select(&POLICIES[..]), ways in 1u32..24, index in 0u8..3,
        ops in prop::collection::vec((0u8..4, 0u64..90), 0..300),
    ) {
        let index = [Index::Modulo, Index::XorFold, Index::Skewed][index as usize];
        let shape = Shape::new(4 * ways, ways).unwrap().replaced_by(policy).unwrap();
        let Ok(shape) = shape.indexed_by(index) else { return Ok(()) };
        let mut assoc = SetAssoc::<u64, u64>::new(shape, 7);
        // The other way to keep recency makes no difference to be seen.
        let mut twin = SetAssoc::stamped(shape, 7);
        for &(op, key) in &ops {
            if op == 0 {
                prop_assert_eq!(assoc.invalidate(&key), twin.invalidate(&key));
                prop_assert!(assoc.peek(&key).is_none());
            } else if op == 1 {
                prop_assert_eq!(assoc.lookup(&key), twin.lookup(&key));
            } else {
                let before = assoc.len();
                let inserted = assoc.insert(key, key + 1);
                prop_assert_eq!(inserted, twin.insert(key, key + 1));
                prop_assert_eq!(assoc.peek(&key), Some(&(key + 1)));
                if let mmu_core::assoc::Inserted::Evicted(gone, _) = inserted {
                    prop_assert!(assoc.peek(&gone).is_none() && gone != key && assoc.len() == before);
                }
            }
            prop_assert_eq!(assoc.len(), assoc.iter().count());
        }
        assoc.clear();
        prop_assert!(assoc.is_empty() && ops.iter().all(|(_, key)| assoc.peek(key).is_none()));
    }

    /// Two levels against two lists: every look-up ends at the same level, and the counters agree. Under exclusion a page moves between them.
    #[test]
    fn hierarchy_equals_two_lists(
        lru: bool, wide: bool, exclusive: bool,
        ops in prop::collection::vec((0u8..20, 0u64..60, 0u32..2, 0u16..2), 0..600),
    ) {
        let policy = if lru { Replacement::Lru } else { Replacement::Fifo };
        let inclusion = if exclusive { Inclusion::Exclusive } else { Inclusion::NonInclusive };
        let mut spec = spec(inclusion, None, TagRules::default());
        let (ways1, ways2) = if wide { (18, 20) } else { (2, 4) };
        spec.l1[0].shape = Shape::new(2 * ways1, ways1).unwrap().replaced_by(policy).unwrap();
        spec.l2[0].shape = Shape::new(8 * ways2, ways2).unwrap().replaced_by(policy).unwrap();
        let mut tlb = Tlb::new(&spec, 0).unwrap();
        let (mut l1, mut l2) = (Model::default(), Model::default());
        let mut counts = [0u64; 4];
        for &(op, n, asid, vmid) in &ops {
            let context = u64::from(asid) << 40 | u64::from(vmid) << 50;
            let key = context | n;
            let input = Input::Combined(Gva::new(n << 12));
            if op == 0 {
                let what = Invalidate::Page { vmid: Vmid(vmid), asid: AsidScope::One(Asid(asid)), va: Gva::new(n << 12) };
                let before = l1.0.len() + l2.0.len();
                l1.0.retain(|entry| entry.0 != key);
                l2.0.retain(|entry| entry.0 != key);
                prop_assert_eq!(tlb.invalidate(what), (before - l1.0.len() - l2.0.len()) as u64);
                continue;
            }
            if op == 1 {
                tlb.invalidate(Invalidate::Asid { vmid: Vmid(vmid), asid: Asid(asid), globals: Globals::Kept });
                l1.0.retain(|entry| entry.0 >> 40 != key >> 40);
                l2.0.retain(|entry| entry.0 >> 40 != key >> 40);
                continue;
            }
            let level = match tlb.lookup(Port::Load, tag(asid, vmid, 0), input) {
                Lookup::L1(_) => 1,
                Lookup::L2(_) => 2,
                Lookup::Miss => 0,
            };
            let expected = if l1.lookup(key, lru).is_some() { 1 } else if l2.lookup(key, lru).is_some() { 2 } else { 0 };
            prop_assert_eq!(level, expected);
            counts[0] += u64::from(level == 1);
            counts[1] += u64::from(level != 1);
            counts[2] += u64::from(level == 2);
            counts[3] += u64::from(level == 0);
            if level == 0 {
                if n % 3 == 0 {
                    tlb.fill(Port::Load, tag(asid, vmid, 0), input, page(n << 12));
                } else {
                    tlb.fill_missed(Port::Load, tag(asid, vmid, 0), input, page(n << 12));
                }
            }
            if exclusive {
                l2.0.retain(|entry| entry.0 != key);
            } else if level == 0 {
                l2.insert(key, 0, 8, ways2 as usize, lru);
            }
            if level != 1 {
                let evicted = l1.insert(key, 0, 2, ways1 as usize, lru);
                if let Some((gone, _)) = evicted.filter(|_| exclusive) {
                    l2.insert(gone, 0, 8, ways2 as usize, lru);
                }
            }
        }
        let [one, two] = [tlb.l1()[0].stats(), tlb.l2()[0].stats()];
        prop_assert_eq!([one.hits, one.misses, two.hits, two.misses], counts);
        prop_assert_eq!((tlb.l1()[0].len(), tlb.l2()[0].len()), (l1.0.len(), l2.0.len()));
    }

    /// Nothing an invalidation covers is ever found again, nothing else goes, and every hit is the newest fill.
    #[test]
    fn hierarchies_never_return_what_was_invalidated(
        inclusion in prop::sample::select(&[Inclusion::NonInclusive, Inclusion::Inclusive, Inclusion::Exclusive][..]),
        coalesce: bool,
        ops in prop::collection::vec((0u8..6, 0u64..40, 0u32..3, 0u16..2, 0usize..3), 0..200),
    ) {
        let group = coalesce.then_some(Coalesce { pages: 4 });
        let mut tlb = Tlb::new(&spec(inclusion, group, TagRules::default()), 3).unwrap();
        // Newest translation of each page and tag; a page has one size throughout.
        let mut newest: BTreeMap<PageOfTag, TlbEntry> = BTreeMap::new();
        let size_of_page = |n: u64| SIZES[(n % 3) as usize];
        for (step, &(op, n, asid, vmid, scope)) in ops.iter().enumerate() {
            let size = size_of_page(n);
            // 4K pages lie side by side, so that some coalesce.
            let va = Gva::new(match size {
                PageSize::SIZE_4K => n / 3 * 0x1000,
                PageSize::SIZE_16K => (1 << 38) + n / 3 * 0x4000,
                _ => (1 << 40) + n / 3 * 0x20_0000,
            });
            let input = Input::Combined(va);
            let key = (n, asid, vmid);
            match op {
                0 | 1 => {
                    let output = Hpa::new((1 << 44) + ((step as u64 % 3) << 36) + (va.raw() & 0xffff_ffff));
                    let entry = TlbEntry::new(output, size, Perms::RW);
                    tlb.fill(Port::Load, tag(asid, vmid, 0), input, entry);
                    newest.insert(key, entry);
                }
                2..=4 => {
                    let found = tlb.lookup(Port::Load, tag(asid, vmid, 0), input);
                    if let Some(entry) = found.entry() {
                        prop_assert_eq!(newest.get(&key), Some(entry), "step {}", step);
                        let again = tlb.lookup(Port::Load, tag(asid, vmid, 0), input);
                        prop_assert!(matches!(again, Lookup::L1(_)), "step {}: {:?}", step, again);
                    }
                }
                _ => {
                    let vm = Vmid(vmid);
                    let held: Vec<_> = newest.keys().copied().collect();
                    let (what, gone): (_, Reaches) = match scope {
                        0 => (Invalidate::Page { vmid: vm, asid: AsidScope::One(Asid(asid)), va }, Box::new(move |k| *k == key)),
                        1 => (Invalidate::Asid { vmid: vm, asid: Asid(asid), globals: Globals::Kept }, Box::new(move |k| (k.1, k.2) == (asid, vmid))),
                        _ => (Invalidate::VmidBothStages { vmid: vm }, Box::new(move |k| k.2 == vmid)),
                    };
                    tlb.invalidate(what);
                    for k in held.iter().filter(|k| gone(k)) {
                        newest.remove(k);
                    }
                }
            }
            for array in tlb.l1().iter().chain(&tlb.l2()) {
                prop_assert!(array.entries().count() >= array.len());
            }
        }
        tlb.invalidate(Invalidate::All);
        prop_assert!(tlb.l1()[0].is_empty() && tlb.l2()[0].is_empty());
    }
}
