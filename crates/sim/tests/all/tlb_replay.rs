//! Replays against published counts, and against a second program that shares no code with ours: move-to-front vectors,
//! slow and obvious.

use mmu_core::assoc::{Replacement, Shape};
use mmu_core::tlb::Inclusion;
use mmu_core::{Gva, PageSize};
use mmu_sim::rng::Seed;
use mmu_sim::tlb_replay::{
    Crossing, Fetches, FirstNumber, LevelCounts, TlbReplay, TlbReplayCounts, TlbReplayError, TlbReplaySpec, TreeLevels,
    Walker, shape_from_text,
};
use mmu_trace::{Access, AccessKind, synthetic};
use proptest::prelude::*;

fn shape(text: &str) -> Shape {
    shape_from_text(text, FirstNumber::Entries).unwrap()
}

/// The paging-structure caches of the published counts, PDE first.
fn pscs(count: usize) -> Vec<Shape> {
    ["4x8", "2x4", "1x4", "1x2"][..count].iter().map(|text| shape_from_text(text, FirstNumber::Sets).unwrap()).collect()
}

fn spec(l1: &str, l2: &str) -> TlbReplaySpec {
    TlbReplaySpec::new(shape(l1), Some(shape(l2)))
}

fn replay(spec: &TlbReplaySpec, accesses: &[Access]) -> TlbReplayCounts {
    let mut replay = TlbReplay::new(spec).unwrap();
    // In uneven pieces, which must not matter.
    for piece in accesses.chunks(977) {
        replay.feed(piece);
    }
    replay.counts()
}

fn s1(records: u64) -> Vec<Access> {
    synthetic::s1(records).collect()
}

fn four(counts: &TlbReplayCounts) -> [u64; 4] {
    let (l1, l2) = (counts.l1(), counts.l2.unwrap());
    [l1.hits, l1.misses, l2.hits, l2.misses]
}

/// Counts on which a move-to-front model, an ordered-dictionary model, DynamoRIO's drcachesim and ChampSim agree.
#[test]
fn s1_through_64_by_4_over_1536_by_12() {
    for (records, counts) in [
        (1_000, [499, 501, 55, 446]),
        (10_000, [5_065, 4_935, 1_315, 3_620]),
        (100_000, [50_579, 49_421, 15_219, 34_202]),
        (1_000_000, [504_460, 495_540, 155_878, 339_662]),
    ] {
        let got = replay(&spec("64x4:lru", "1536x12:lru"), &s1(records));
        assert_eq!(four(&got), counts, "{records} records");
        assert_eq!((got.references, got.walks, got.pte_reads), (records, counts[3], 4 * counts[3]));
    }
}

#[test]
fn s1_through_other_geometries() {
    for (l1, l2, page, records, counts) in [
        ("64x64", "2048x8", PageSize::SIZE_4K, 1_000, [508, 492, 47, 445]),
        ("64xfull", "256sx8", PageSize::SIZE_4K, 100_000, [51_953, 48_047, 15_817, 32_230]),
        ("32x4", "1024x8", PageSize::SIZE_2M, 100_000, [97_065, 2_935, 2_770, 165]),
    ] {
        let got = replay(&TlbReplaySpec { page, ..spec(l1, l2) }, &s1(records));
        assert_eq!(four(&got), counts, "{l1} over {l2}");
    }
}

/// Reads of walks on which the same models agree, ChampSim's own walker by its own rule.
#[test]
fn s1_with_paging_structure_caches() {
    for (records, deepest, reads) in [
        (1_000, [1, 401, 43, 1], [494, 495, 940]),
        (10_000, [1, 3_307, 311, 1], [3_936, 3_937, 7_556]),
        (100_000, [1, 31_366, 2_834, 1], [37_041, 37_042, 71_243]),
    ] {
        let accesses = s1(records);
        let base = spec("64x4", "1536x12");
        let four = replay(&TlbReplaySpec { psc: pscs(3), ..base.clone() }, &accesses);
        assert_eq!([four.psc_none, four.psc_deepest[0], four.psc_deepest[1], four.psc_deepest[2]], deepest);
        let five = TlbReplaySpec { psc: pscs(4), levels: TreeLevels::Five, ..base };
        let champsim = TlbReplaySpec { walker: Walker::ReadsHitAgain, ..five.clone() };
        let got = [four.pte_reads, replay(&five, &accesses).pte_reads, replay(&champsim, &accesses).pte_reads];
        assert_eq!(got, reads, "{records} records");
    }
}

#[test]
fn descriptions_that_cannot_be_are_told() {
    let base = spec("64x4", "1536x12");
    let refused = |spec: TlbReplaySpec| TlbReplay::new(&spec).unwrap_err();
    let small: PageSize = "1K".parse().unwrap();
    assert!(matches!(refused(TlbReplaySpec { page: small, ..base.clone() }), TlbReplayError::Array(_)));
    let large: PageSize = "512G".parse().unwrap();
    assert!(refused(TlbReplaySpec { page: large, ..base.clone() }).to_string().contains("up to 1G"));
    let many = refused(TlbReplaySpec { psc: pscs(4), ..base });
    assert!(many.to_string().contains("at most 3"), "{many}");
}

#[test]
fn random_replacement_follows_the_seed() {
    let random = |seed| {
        let base = spec("64x4:random", "1536x12:random");
        replay(&TlbReplaySpec { seed: Seed(seed), ..base }, &s1(20_000))
    };
    assert_eq!(random(1), random(1));
    assert_ne!(four(&random(1)), four(&random(2)));
    // Worse than LRU on a trace with a hot set, but not by much.
    let lru = replay(&spec("64x4", "1536x12"), &s1(20_000)).l1().hits;
    let hits = random(1).l1().hits;
    assert!(hits < lru && hits > lru / 2, "{hits} of {lru}");
}

#[test]
fn disciplines_of_the_levels_differ() {
    let counts = |inclusion| {
        let base = spec("64x4", "96x4");
        four(&replay(&TlbReplaySpec { inclusion, ..base }, &s1(20_000)))
    };
    let [plain, inclusive, exclusive] =
        [Inclusion::NonInclusive, Inclusion::Inclusive, Inclusion::Exclusive].map(counts);
    // What the second level takes away costs first-level hits; what it does not hold twice saves walks.
    assert!(inclusive[0] <= plain[0], "{inclusive:?} {plain:?}");
    assert_eq!(exclusive[0], plain[0]);
    assert!(exclusive[3] < plain[3], "{exclusive:?} {plain:?}");
}

/// One structure of the second program: newest first.
struct Plain {
    sets: Vec<Vec<u64>>,
    ways: usize,
    fifo: bool,
    counts: LevelCounts,
}

impl Plain {
    fn new(sets: u32, ways: u32, fifo: bool) -> Self {
        Self { sets: vec![Vec::new(); sets as usize], ways: ways as usize, fifo, counts: LevelCounts::default() }
    }
    fn set(&mut self, number: u64) -> &mut Vec<u64> {
        let index = number % self.sets.len() as u64;
        &mut self.sets[index as usize]
    }
    fn ask(&mut self, number: u64) -> bool {
        let fifo = self.fifo;
        let set = self.set(number);
        let at = set.iter().position(|&held| held == number);
        if let (Some(at), false) = (at, fifo) {
            set.remove(at);
            set.insert(0, number);
        }
        if at.is_some() {
            self.counts.hits += 1;
        } else {
            self.counts.misses += 1;
        }
        at.is_some()
    }
    fn fill(&mut self, number: u64) {
        let ways = self.ways;
        let set = self.set(number);
        set.insert(0, number);
        set.truncate(ways);
    }
}

/// The second program: all by page numbers.
struct Second {
    data: Plain,
    fetch: Plain,
    l2: Option<Plain>,
    pscs: Vec<Plain>,
    levels: u32,
    reads: u64,
    walks: u64,
}

impl Second {
    fn look_up(&mut self, fetch: bool, va: u64, page_shift: u32) {
        let page = va >> page_shift;
        let l1 = if fetch { &mut self.fetch } else { &mut self.data };
        if l1.ask(page) {
            return;
        }
        if !self.l2.as_mut().is_some_and(|l2| l2.ask(page)) {
            self.walk(va, page_shift);
            if let Some(l2) = &mut self.l2 {
                l2.fill(page);
            }
        }
        if fetch { self.fetch.fill(page) } else { self.data.fill(page) }
    }

    /// Entries are numbered from 1, those of 4 KiB pages. The cache in place `i` holds entries of level `i + 2`.
    fn walk(&mut self, va: u64, page_shift: u32) {
        self.walks += 1;
        let number = |level: u32| va >> (12 + 9 * (level - 1));
        let leaf = (page_shift - 12) / 9 + 1;
        let mut known = self.levels + 1;
        for (level, cache) in (2..).zip(&mut self.pscs) {
            if cache.ask(number(level)) {
                known = known.min(level);
            }
        }
        for level in leaf..known {
            self.reads += 1;
            if level > leaf
                && let Some(cache) = self.pscs.get_mut(level as usize - 2)
            {
                cache.fill(number(level));
            }
        }
    }

    fn feed(&mut self, access: &Access, page_shift: u32, split: bool, fetches: bool) {
        let (first, bytes) = (access.va.raw(), u64::from(access.size).max(1));
        let fetch = access.kind == AccessKind::Fetch;
        if fetch && !fetches {
            return;
        }
        for _ in 0..if access.kind == AccessKind::Modify { 2 } else { 1 } {
            self.look_up(fetch, first, page_shift);
            let mut next = ((first >> page_shift) + 1) << page_shift;
            while split && next < first + bytes {
                self.look_up(fetch, next, page_shift);
                next += 1 << page_shift;
            }
        }
    }
}

#[derive(Clone, Debug)]
struct Case {
    l1: (u32, u32),
    l2: Option<(u32, u32)>,
    fifo: (bool, bool),
    page_shift: u32,
    split: bool,
    fetches: bool,
    pscs: Vec<(u32, u32)>,
    five: bool,
}

fn cases() -> impl Strategy<Value = Case> {
    let tlb = || (prop_oneof![1u32..9, Just(16), Just(13)], prop_oneof![1u32..9, 9u32..40]);
    let policies = (any::<bool>(), any::<bool>());
    let shifts = prop::sample::select(vec![12u32, 16, 21, 30]);
    let pscs = prop::collection::vec((1u32..5, 1u32..9), 0..5);
    (tlb(), prop::option::of(tlb()), policies, shifts, any::<[bool; 3]>(), pscs).prop_map(
        |(l1, l2, fifo, page_shift, [split, fetches, five], mut pscs)| {
            let five = five || pscs.len() > 3;
            pscs.truncate(if five { 4 } else { 3 });
            Case { l1, l2, fifo, page_shift, split, fetches, pscs, five }
        },
    )
}

/// Hot pages, a stream and far jumps, sizes that cross pages of 4K, all kinds.
fn accesses() -> impl Strategy<Value = Vec<Access>> {
    let address = prop_oneof![
        4 => (0u64..60, 0u64..4096).prop_map(|(page, offset)| page << 12 | offset),
        2 => (0u64..400).prop_map(|page| 0x4000_0000 + (page << 12) + 0xffa),
        1 => (0u64..12, 0u64..12, 0u64..12).prop_map(|(a, b, c)| a << 39 | b << 30 | c << 21),
        1 => any::<u64>().prop_map(|any| any >> 8),
    ];
    let access = (0u8..4, address, prop_oneof![Just(8u16), 0u16..20, Just(9000)]);
    let access = access.prop_map(|(kind, va, size)| Access::new(AccessKind::from_code(kind), Gva::new(va), size));
    prop::collection::vec(access, 0..1500)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn both_programs_count_the_same(case in cases(), accesses in accesses()) {
        let shape = |(sets, ways): (u32, u32), fifo: bool| {
            let policy = if fifo { Replacement::Fifo } else { Replacement::Lru };
            Shape::new(sets * ways, ways).unwrap().replaced_by(policy).unwrap()
        };
        let spec = TlbReplaySpec {
            page: PageSize::from_shift(case.page_shift).unwrap(),
            crossing: if case.split { Crossing::Split } else { Crossing::FirstByte },
            fetches: if case.fetches { Fetches::Replayed } else { Fetches::LeftOut },
            psc: case.pscs.iter().map(|&psc| shape(psc, false)).collect(),
            levels: if case.five { TreeLevels::Five } else { TreeLevels::Four },
            ..TlbReplaySpec::new(shape(case.l1, case.fifo.0), case.l2.map(|l2| shape(l2, case.fifo.1)))
        };
        let got = replay(&spec, &accesses);

        let plain = |(sets, ways), fifo| Plain::new(sets, ways, fifo);
        let mut second = Second {
            data: plain(case.l1, case.fifo.0),
            fetch: plain(case.l1, case.fifo.0),
            l2: case.l2.map(|l2| plain(l2, case.fifo.1)),
            pscs: case.pscs.iter().map(|&psc| plain(psc, false)).collect(),
            levels: if case.five { 5 } else { 4 },
            reads: 0,
            walks: 0,
        };
        for access in &accesses {
            second.feed(access, case.page_shift, case.split, case.fetches);
        }
        prop_assert_eq!(got.l1_data, second.data.counts);
        prop_assert_eq!(got.l1_fetch, case.fetches.then_some(second.fetch.counts));
        prop_assert_eq!(got.l2, second.l2.map(|l2| l2.counts));
        prop_assert_eq!((got.walks, got.pte_reads), (second.walks, second.reads));
    }
}
