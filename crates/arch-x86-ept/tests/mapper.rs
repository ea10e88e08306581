//! What a mapper does where random operations seldom get: flags of pointers, large pages, refusals.

use arch_x86_ept::{AccessedDirty, Ept, EptAttrs, EptConfig};
use mmu_core::image::RamRange;
use mmu_core::mapper::{MapError, Mapper, PageKind};
use mmu_core::memory::{Stretch, TableFault, TableMemory};
use mmu_core::walk::walk;
use mmu_core::{Access, ByteUnits, EncodeError, Format, Hpa, Leaf, Level, PageSize, Perms};

const POOL: RamRange = RamRange { start: Hpa::new(1 << 30), bytes: 16 << 20 };

fn leaf() -> Leaf<EptAttrs> {
    Leaf { output: Hpa::new(0), perms: Perms::RWX.with(Perms::DIRTY), accessed: true, attrs: EptAttrs::default() }
}

fn mapper() -> (Mapper<Ept>, PageKind<Ept>) {
    let ept = EptConfig::new().accessed_dirty(AccessedDirty::On).build().unwrap();
    let kind = PageKind::new(&ept, Level::LAST, leaf()).unwrap();
    (Mapper::empty(ept, TableMemory::new(POOL, ept.present_mask()).unwrap()).unwrap(), kind)
}

/// The entry of `level` for an address: where it is and what it holds.
fn entry(ept: &Ept, root: Hpa, memory: &TableMemory, gpa: u64, level: Level) -> (Hpa, u64) {
    let (mut table, mut at) = (root, ept.geometry().root());
    loop {
        let place = table + 8 * ept.geometry().index(at, gpa) as u64;
        let raw = memory.read(place).unwrap();
        match at.down() {
            Some(down) if at > level => (table, at) = (ept.next_table(at, raw), down),
            _ => return (place, raw),
        }
    }
}

/// A pointer whose accessed flag is clear keeps walks from going by tables at hand, until one has set it.
#[test]
fn walks_set_the_flags_of_pointers_first() {
    for level in [1, 2, 3].map(Level::new) {
        let (mut mapper, kind) = mapper();
        let (ept, root) = (*mapper.format(), mapper.root());
        mapper.map(0x5000, Hpa::new(0x9000), &kind).unwrap();
        let (at, raw) = entry(&ept, root, mapper.memory(), 0x5000, level);
        mapper.memory().write(at, raw & !ept.accessed_mask()).unwrap();
        mapper.map(0x6000, Hpa::new(0xa000), &kind).unwrap();
        let mut plain = mapper.clone().into_memory();
        for gpa in [0x5123, 0x6456, 0x5789] {
            let expected = walk(&ept, root, gpa, Access::READ, &mut plain);
            assert_eq!(mapper.walk(gpa, Access::READ), expected, "{level}");
            assert_eq!(entry(&ept, root, &plain, gpa, level), (at, raw));
        }
        assert!(*mapper.memory() == plain, "{level}: other flags");
    }
}

/// The dirty flag of a leaf is set where the table is at hand, and counted like anything else.
#[test]
fn walks_set_the_flags_of_leaves_in_place() {
    let (mut mapper, _) = mapper();
    let (ept, root) = (*mapper.format(), mapper.root());
    let clean = Leaf { perms: Perms::RWX, accessed: false, ..leaf() };
    let kind = PageKind::new(&ept, Level::LAST, clean).unwrap();
    (0..100).for_each(|page| mapper.map(page << 12, Hpa::new((page * page) << 12), &kind).unwrap());
    let mut plain = mapper.clone().into_memory();
    for page in (0..100).step_by(3) {
        let access = if page % 2 == 0 { Access::READ } else { Access::WRITE };
        assert_eq!(mapper.walk(page << 12, access), walk(&ept, root, page << 12, access, &mut plain));
    }
    assert!(*mapper.memory() == plain);
}

#[test]
fn large_pages_stand_where_tables_do_not() {
    let (mut mapper, small) = mapper();
    let ept = *mapper.format();
    let large = PageKind::new(&ept, Level::new(1), leaf()).unwrap();
    mapper.map(4.MiB(), Hpa::new(1.GiB()), &large).unwrap();
    mapper.map(8.MiB() + 0x3000, Hpa::new(0x7000), &small).unwrap();
    let found = mapper.walk(4.MiB() + 0x1_2345, Access::WRITE).unwrap();
    assert_eq!((found.output, found.size), (Hpa::new(1.GiB() + 0x1_2345), PageSize::SIZE_2M));
    let in_the_way = |error| matches!(error, Err(MapError::Mapped { level, .. }) if level == Level::new(1));
    assert!(in_the_way(mapper.map(4.MiB() + 0x5000, Hpa::new(0), &small)));
    assert!(in_the_way(mapper.map(8.MiB(), Hpa::new(2.MiB()), &large)));
    let mut seen = Vec::new();
    mapper.each_leaf(0..1.GiB(), |level, gpa, stretch| {
        let words: Vec<u64> = match stretch {
            Stretch::Run(run) => (0..run.len).map(|i| run.word(i)).collect(),
            Stretch::Words(words) => words.to_vec(),
        };
        let pages = (0..).zip(words).filter(|(_, word)| ept.is_mapped(*word));
        seen.extend(pages.map(|(i, word)| (level, gpa + (i << ept.geometry().shift(level)), ept.output(level, word))));
    });
    let (one, last) = (Level::new(1), Level::LAST);
    assert_eq!(seen, [(one, 4.MiB(), Hpa::new(1.GiB())), (last, 8.MiB() + 0x3000, Hpa::new(0x7000))]);
    let old = mapper.change(5.MiB(), Ept::write_protect).unwrap();
    assert_eq!(mapper.leaf(5.MiB()), Some((one, ept.write_protect(old))));
    assert!(mapper.walk(5.MiB(), Access::WRITE).is_err());
    assert_eq!(mapper.unmap(6.MiB() - 1), Ok(ept.write_protect(old)));
    assert_eq!(mapper.leaf(5.MiB()), None);
    mapper.map(5.MiB(), Hpa::new(0x1000), &small).unwrap();
}

#[test]
fn refusals_name_the_place_and_change_nothing() {
    let (mut mapper, kind) = mapper();
    mapper.map(0x5000, Hpa::new(0x9000), &kind).unwrap();
    let before = mapper.memory().digest();
    let (place, wide) = (0x5000, 1 << 48);
    let (_, raw) = mapper.leaf(place).unwrap();
    let refusals = [
        (mapper.map(place, Hpa::new(0), &kind), MapError::Mapped { input: place, level: Level::LAST, raw }),
        (mapper.map(wide, Hpa::new(0), &kind), MapError::Beyond { input: wide, bits: 48 }),
        (mapper.unmap(0x6000).map(drop), MapError::NotMapped { input: 0x6000, level: Level::LAST }),
        (mapper.unmap(1 << 40).map(drop), MapError::NotMapped { input: 1 << 40, level: Level::new(3) }),
    ];
    for (result, expected) in refusals {
        assert_eq!(result, Err(expected.clone()));
        assert!(expected.to_string().contains("0x"), "{expected}");
    }
    let misaligned = mapper.map(0x7000, Hpa::new(0x123), &kind);
    assert!(matches!(misaligned, Err(MapError::Encode(EncodeError::Address { .. }))), "{misaligned:?}");
    assert_eq!(mapper.memory().digest(), before);
}

#[test]
fn tables_that_are_gone_are_told_from_those_inside_others() {
    let (mut mapper, kind) = mapper();
    let (ept, root) = (*mapper.format(), mapper.root());
    mapper.map(0x5000, Hpa::new(0x9000), &kind).unwrap();
    let (at, raw) = entry(&ept, root, mapper.memory(), 0x5000, Level::new(1));
    let table = ept.next_table(Level::new(1), raw);
    mapper.memory().free(table).unwrap();
    let fault = TableFault::Freed { at: table };
    let gone = MapError::Table { input: 0x6000, level: Level::LAST, fault };
    assert_eq!(mapper.map(0x6000, Hpa::new(0), &kind), Err(gone));
    assert_eq!((mapper.leaf(0x5000), mapper.walk(0x5000, Access::READ).is_err()), (None, true));
    // Two tables in one frame: the second one has no frame of its own.
    let frame = mapper.memory().alloc(Level::LAST, 1024).unwrap();
    let second = ept.encode_table(Level::new(1), frame + 4096).unwrap();
    mapper.memory().write(at, second).unwrap();
    let inside = MapError::Frame { table: frame + 4096, start: frame, words: 1024, needed: 512 };
    assert_eq!(mapper.map(0x6000, Hpa::new(0), &kind), Err(inside));
}
