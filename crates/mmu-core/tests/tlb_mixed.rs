//! A hierarchy of several arrays, ports and page sizes against the same arrays put together by hand, so that no short cut of
//! the hierarchy (hints, pairs of arrays) changes what is found, where, and what leaves.

use mmu_core::assoc::Shape;
use mmu_core::tlb::{
    ArraySpec, Inclusion, Input, Invalidate, LargerPages, LevelArray, Lookup, Perms, Port, Tag, TagRules, Tlb,
    TlbArray, TlbEntry, TlbSpec,
};
use mmu_core::{Cycles, Gva, Hpa, PageSize};
use proptest::prelude::*;

const SIZES: [PageSize; 3] = [PageSize::SIZE_4K, PageSize::SIZE_2M, PageSize::SIZE_1G];

fn array(name: &str, (entries, ways): (u32, u32), ports: &[Port], sizes: &[PageSize]) -> ArraySpec {
    ArraySpec {
        name: name.to_owned(),
        shape: Shape::new(entries, ways).unwrap(),
        ports: ports.to_vec(),
        sizes: sizes.to_vec(),
        coalesce: None,
        larger: LargerPages::Skip,
    }
}

fn levels() -> [Vec<ArraySpec>; 2] {
    let (data, load) = ([Port::Load, Port::Store], [Port::Load]);
    [
        vec![
            array("load", (8, 2), &load, &SIZES[..1]),
            array("store", (4, 4), &[Port::Store], &SIZES[..1]),
            array("large", (4, 0), &data, &SIZES[1..]),
            array("fetch", (24, 0), &[Port::Fetch], &SIZES),
        ],
        vec![
            array("first", (24, 12), &[Port::Load, Port::Fetch], &SIZES[..2]),
            array("second", (16, 4), &[Port::Load, Port::Store], &SIZES),
        ],
    ]
}

/// The arrays of one level by hand.
struct Level(Vec<(ArraySpec, TlbArray)>);

impl Level {
    fn new(specs: Vec<ArraySpec>) -> Self {
        let made = |spec: ArraySpec| {
            let array = TlbArray::new(&spec, TagRules::default(), 0).unwrap();
            (spec, array)
        };
        Self(specs.into_iter().map(made).collect())
    }
    fn of(&mut self, port: Port) -> impl Iterator<Item = &mut (ArraySpec, TlbArray)> {
        self.0.iter_mut().filter(move |(spec, _)| spec.ports.contains(&port))
    }
    fn lookup(&mut self, port: Port, input: Input) -> Option<TlbEntry> {
        let hit = self.of(port).find(|(_, array)| array.peek(Tag::default(), input).is_some());
        hit.and_then(|(_, array)| array.lookup(Tag::default(), input))
    }
    fn fill(&mut self, port: Port, input: Input, entry: TlbEntry) {
        if let Some((_, array)) = self.of(port).find(|(spec, _)| spec.sizes.contains(&entry.size)) {
            array.fill(Tag::default(), input, entry);
        }
    }
    fn agrees(&self, arrays: &[LevelArray<'_>]) -> bool {
        let kept = |array: &TlbArray| {
            let mut entries: Vec<String> = array.entries().map(|entry| format!("{entry:?}")).collect();
            entries.sort();
            entries
        };
        self.0.iter().zip(arrays).all(|((_, by_hand), array)| kept(by_hand) == kept(array))
    }
}

/// Which port, which size (each in addresses of its own), which page.
fn access() -> impl Strategy<Value = (usize, usize, u64)> {
    (0usize..3, prop::sample::select(vec![0, 0, 0, 0, 0, 0, 1, 1, 2]), 0u64..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn short_cuts_change_nothing(
        rounds in prop::collection::vec((prop::collection::vec(access(), 1..120), 0usize..4), 1..5),
    ) {
        let [l1, l2] = levels();
        let spec = TlbSpec {
            l1,
            l2,
            inclusion: Inclusion::NonInclusive,
            rules: TagRules::default(),
            l2_hit_extra: Cycles(7),
            l2_hit_extra_fetch: Cycles(7),
        };
        let mut tlb = Tlb::new(&spec, 0).unwrap();
        let mut by_hand = levels().map(Level::new);
        for (accesses, most) in rounds {
            // Some rounds use small pages only, where pairs of arrays answer.
            for (port, size, page) in accesses.into_iter().map(|(port, size, page)| (port, size.min(most), page)) {
                let (port, page_size) = (Port::ALL[port], SIZES[size]);
                let input = Input::Combined(Gva::new((size as u64) << 44 | page << page_size.shift() | 0x8));
                let [first, second] = &mut by_hand;
                let entry = TlbEntry::new(Hpa::new(page << 40), page_size, Perms::RW);
                let expected = if let Some(entry) = first.lookup(port, input) {
                    Lookup::L1(entry)
                } else if let Some(entry) = second.lookup(port, input) {
                    first.fill(port, input, entry);
                    Lookup::L2(entry)
                } else {
                    second.fill(port, input, entry);
                    first.fill(port, input, entry);
                    Lookup::Miss
                };
                let found = tlb.lookup(port, Tag::default(), input);
                prop_assert_eq!(found, expected);
                if found == Lookup::Miss {
                    if page % 2 == 0 {
                        tlb.fill(port, Tag::default(), input, entry);
                    } else {
                        tlb.fill_missed(port, Tag::default(), input, entry);
                    }
                }
                prop_assert!(first.agrees(&tlb.l1()) && second.agrees(&tlb.l2()));
            }
            tlb.invalidate(Invalidate::All);
            by_hand = levels().map(Level::new);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Under exclusion nothing that data ports bring is in two levels, what was filled is found at once, and every array finds all it holds:
    /// its sizes are counted right whatever moved.
    #[test]
    fn exclusive_levels_stay_whole(accesses in prop::collection::vec(access(), 1..300), loads: bool) {
        let [l1, l2] = levels();
        let (inclusion, rules) = (Inclusion::Exclusive, TagRules::default());
        let spec = TlbSpec { l1, l2, inclusion, rules, l2_hit_extra: Cycles(7), l2_hit_extra_fetch: Cycles(7) };
        let mut tlb = Tlb::new(&spec, 0).unwrap();
        let ports = if loads { &Port::ALL[..1] } else { &Port::ALL[..] };
        for (port, size, page) in accesses {
            let (port, page_size) = (ports[port % ports.len()], SIZES[size]);
            let input = Input::Combined(Gva::new((size as u64) << 44 | page << page_size.shift() | 0x8));
            let entry = TlbEntry::new(Hpa::new(page << 40), page_size, Perms::RW);
            match tlb.lookup(port, Tag::default(), input) {
                Lookup::Miss if page % 2 == 0 => tlb.fill(port, Tag::default(), input, entry),
                Lookup::Miss => tlb.fill_missed(port, Tag::default(), input, entry),
                Lookup::L1(found) | Lookup::L2(found) => prop_assert_eq!(found, entry),
            }
            let again = tlb.lookup(port, Tag::default(), input);
            prop_assert!(again.entry() == Some(&entry), "{:?} of {:?}", again, input);
            let mut held = Vec::new();
            for array in tlb.l1().iter().chain(&tlb.l2()) {
                for (key, entry) in array.entries() {
                    prop_assert_eq!(array.peek(Tag::default(), key.input()), Some(entry), "{}", array.name());
                    held.push(key.input().raw());
                }
            }
            // Loads and stores have first levels of their own for small pages.
            if loads {
                let all = held.len();
                held.sort_unstable();
                held.dedup();
                prop_assert_eq!(held.len(), all, "in one level each");
            }
        }
    }
}

/// Translations of two sizes for one address stand side by side until one is invalidated; a look-up that matches both is a conflict.
#[test]
fn sizes_that_overlap_are_found() {
    let [l1, l2] = levels();
    let spec = TlbSpec {
        l1,
        l2,
        inclusion: Inclusion::NonInclusive,
        rules: TagRules::default(),
        l2_hit_extra: Cycles(5),
        l2_hit_extra_fetch: Cycles(5),
    };
    let mut tlb = Tlb::new(&spec, 0).unwrap();
    let tag = Tag::default();
    let at = |address: u64| Input::GuestPhysical(mmu_core::Gpa::new(address));
    let small = |address: u64| TlbEntry::new(Hpa::new(address), PageSize::SIZE_4K, Perms::RW);
    let huge = TlbEntry::new(Hpa::new(0x20_0000), PageSize::SIZE_2M, Perms::RW);
    // The arrays that fetches ask hold pages of several sizes.
    tlb.fill(Port::Fetch, tag, at(0x20_3000), small(0x20_3000));
    assert!(!tlb.overlaps(Port::Fetch, tag, at(0x20_3000), PageSize::SIZE_4K));
    assert!(!tlb.conflicts(Port::Fetch, tag, at(0x20_3000)));
    // Inside the block, not beside it, and of its own kind only.
    assert!(tlb.overlaps(Port::Fetch, tag, at(0x20_0000), PageSize::SIZE_2M));
    assert!(!tlb.overlaps(Port::Fetch, tag, at(0x40_0000), PageSize::SIZE_2M));
    assert!(!tlb.overlaps(Port::Fetch, tag, Input::Combined(Gva::new(0x20_0000)), PageSize::SIZE_2M));
    tlb.fill(Port::Fetch, tag, at(0x20_0000), huge);
    assert!(tlb.overlaps(Port::Fetch, tag, at(0x20_5000), PageSize::SIZE_4K), "a page below a block");
    assert!(tlb.conflicts(Port::Fetch, tag, at(0x20_3000)));
    assert!(!tlb.conflicts(Port::Fetch, tag, at(0x20_5000)), "the block alone translates this page");
    let vmid = mmu_core::tlb::Vmid(0);
    tlb.invalidate(Invalidate::GuestPhysical { vmid, start: mmu_core::Gpa::new(0x20_3000), bytes: 4096 });
    assert!(!tlb.conflicts(Port::Fetch, tag, at(0x20_3000)), "the page, and the block around it, are gone");
}
