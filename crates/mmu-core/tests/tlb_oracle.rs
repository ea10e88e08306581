//! Exact counts on the synthetic trace S1, on which independent TLB and walk simulators agree.
//! A difference of one is a bug, or a definition read differently.

use mmu_core::assoc::Shape;
use mmu_core::tlb::{
    ArraySpec, Inclusion, Input, LargerPages, Lookup, Perms, Port, PscLevelSpec, PscSet, PscSpec, Tag, TagRules, Tlb,
    TlbEntry, TlbSpec,
};
use mmu_core::walk::CachedTable;
use mmu_core::{Cycles, Geometry, Gva, Hpa, Level, PageSize, Table};

/// The data addresses of S1.
fn s1(records: u64) -> impl Iterator<Item = Gva> {
    let mut x = 88172645463325252u64;
    (0..records).map(move |i| {
        x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let r = x >> 33;
        let page = match r & 7 {
            0..=3 => (i >> 6) & 63,
            4..=5 => 0x1000 + ((r >> 3) & (r >> 14) & 0x7ff),
            6 => 0x10000 + ((r >> 3) & 0x3fff),
            _ => 0x100000 + (i & 0xffff),
        };
        Gva::new(0x5500_0000_0000 + (page << 12) + ((r >> 15) & 0xff8))
    })
}

#[test]
fn s1_starts_as_published() {
    let words =
        [0x5500_0000_0dd0, 0x5500_0000_03c0, 0x5500_0000_0068, 0x5500_0000_05b0, 0x5500_0000_0fe0, 0x5500_0000_0598];
    assert!(s1(6).map(Gva::raw).eq(words));
}

fn array(entries: u32, ways: u32, size: PageSize) -> ArraySpec {
    ArraySpec {
        name: format!("{entries}/{ways}"),
        shape: Shape::new(entries, ways).unwrap(),
        ports: Port::ALL.to_vec(),
        sizes: vec![size],
        coalesce: None,
        larger: LargerPages::Fragment,
    }
}

fn tlb(l1: (u32, u32), l2: (u32, u32), size: PageSize) -> Tlb {
    let spec = TlbSpec {
        l1: vec![array(l1.0, l1.1, size)],
        l2: vec![array(l2.0, l2.1, size)],
        inclusion: Inclusion::NonInclusive,
        rules: TagRules::default(),
        l2_hit_extra: Cycles(7),
        l2_hit_extra_fetch: Cycles(7),
    };
    Tlb::new(&spec, 0).unwrap()
}

/// Runs S1 and calls `walk` for every second-level miss.
fn run(tlb: &mut Tlb, size: PageSize, records: u64, mut walk: impl FnMut(Input)) -> [u64; 4] {
    let mut counts = [0; 4];
    for va in s1(records) {
        let input = Input::Linear(va);
        match tlb.lookup(Port::Load, Tag::default(), input) {
            Lookup::L1(_) => counts[0] += 1,
            Lookup::L2(_) => counts[2] += 1,
            Lookup::Miss => {
                counts[3] += 1;
                walk(input);
                let entry = TlbEntry::new(Hpa::new(va.raw()), size, Perms::RWX);
                tlb.fill(Port::Load, Tag::default(), input, entry);
            }
        }
    }
    counts[1] = counts[2] + counts[3];
    let [l1, l2] = [tlb.l1()[0].stats(), tlb.l2()[0].stats()];
    assert_eq!([l1.hits, l1.misses, l2.hits, l2.misses], counts);
    assert_eq!((l1.fills, l2.fills), (counts[1], counts[3]));
    assert_eq!(l2.evictions, counts[3] - tlb.l2()[0].len() as u64);
    counts
}

#[test]
fn main_geometry() {
    for (records, counts) in [
        (1_000, [499, 501, 55, 446]),
        (10_000, [5_065, 4_935, 1_315, 3_620]),
        (100_000, [50_579, 49_421, 15_219, 34_202]),
        (1_000_000, [504_460, 495_540, 155_878, 339_662]),
    ] {
        let mut tlb = tlb((64, 4), (1536, 12), PageSize::SIZE_4K);
        assert_eq!(run(&mut tlb, PageSize::SIZE_4K, records, |_| ()), counts, "{records} records");
    }
}

#[test]
fn other_geometries() {
    for (l1, l2, size, records, counts) in [
        ((64, 64), (2048, 8), PageSize::SIZE_4K, 1_000, [508, 492, 47, 445]),
        ((64, 64), (2048, 8), PageSize::SIZE_4K, 100_000, [51_953, 48_047, 15_817, 32_230]),
        ((32, 4), (1024, 8), PageSize::SIZE_2M, 100_000, [97_065, 2_935, 2_770, 165]),
    ] {
        assert_eq!(run(&mut tlb(l1, l2, size), size, records, |_| ()), counts, "{l1:?} {l2:?}");
    }
}

/// Shape of the paging-structure caches: level of the table, entries, ways.
const PSC: [(u8, u32, u32); 4] = [(0, 32, 8), (1, 8, 4), (2, 4, 4), (3, 2, 2)];

fn psc(levels: usize) -> PscSet {
    let tree = Geometry::uniform(PageSize::SIZE_4K, &[9; 5][..levels], 52, &[0, 1, 2]).unwrap();
    let level = |&(table, entries, ways): &(u8, u32, u32)| PscLevelSpec {
        tables: Level::new(table),
        shape: Shape::new(entries, ways).unwrap(),
    };
    let levels = PSC.iter().map(level).collect();
    PscSet::new(&PscSpec { levels, guest_physical: None, rules: TagRules::default() }, &tree, &tree, 0)
}

/// References of all walks of S1.
fn walk_references(levels: usize, records: u64) -> (u64, [u64; 4]) {
    let (mut psc, tag) = (psc(levels), Tag::default());
    let mut reads = 0;
    run(&mut tlb((64, 4), (1536, 12), PageSize::SIZE_4K), PageSize::SIZE_4K, records, |input| {
        let start = psc.deepest(tag, input).map_or(levels - 1, |found| found.level.index());
        reads += start as u64 + 1;
        for level in 0..start {
            let table = Table { base: Hpa::new(0x1000), index_bits: 9 };
            psc.fill(tag, input, &CachedTable { level: Level::new(level as u8), table, host: None, acc: 0 });
        }
    });
    let stats = psc.stats();
    (reads, [stats.misses, stats.deepest[0], stats.deepest[1], stats.deepest[2]])
}

#[test]
fn walk_references_with_paging_structure_caches() {
    for (records, deepest, four, five) in [
        (1_000, [1, 401, 43, 1], 494, 495),
        (10_000, [1, 3_307, 311, 1], 3_936, 3_937),
        (100_000, [1, 31_366, 2_834, 1], 37_041, 37_042),
    ] {
        assert_eq!(walk_references(4, records), (four, deepest), "{records} records");
        assert_eq!(walk_references(5, records), (five, deepest), "{records} records");
    }
}
