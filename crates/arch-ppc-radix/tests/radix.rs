//! Words, transitions, flushes and walks of one tree.

use arch_ppc_radix::{
    Att, BasePage, Cause, FetchDenied, Keys, PteAttrs, Radix, RadixError, RcUpdate, RootWord, Scope, Tlbi, TlbiAp,
    TlbiForm, TlbiRic, TlbiSelect, Why,
};
use mmu_core::image::MemoryImage;
use mmu_core::tlb::Perms;
use mmu_core::walk::walk;
use mmu_core::{
    Access, BreakRule, Delivery, EncodeError, Entry, FaultClass, FaultReport, Flush, FlushScope, Format, Gpa, Hpa,
    Leaf, Level, Malformed, NotPresent, PageSize, Reach, WalkCaches,
};
use proptest::prelude::*;

const ROOT: Hpa = Hpa::new(0x10_0000);

fn radix() -> impl Strategy<Value = Radix> {
    let base = prop_oneof![Just(BasePage::K4), Just(BasePage::K64)];
    let rc = prop_oneof![Just(RcUpdate::Hardware), Just(RcUpdate::Interrupt)];
    (base, rc, any::<bool>(), any::<[u64; 2]>()).prop_map(|(base, rc, partition, [amr, iamr])| {
        let radix = if partition { Radix::partition(base) } else { Radix::process(base) };
        radix.with_rc(rc).with_keys(Keys::new(amr, iamr))
    })
}

/// Words that are often nearly legal.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        any::<u64>().prop_map(|raw| raw | 3 << 62),
        any::<u64>().prop_map(|raw| raw & 0x0fff_ffff_ffff_ff00 | 1 << 63 | 9),
        any::<u64>().prop_map(|raw| raw & 0x0fff_ffff_ffff_ff00 | 1 << 63 | 5),
    ]
}

proptest! {
    #[test]
    fn words_survive_decode_and_encode(radix in radix(), raw in word(), level in 0u8..4) {
        let level = Level::new(level);
        match radix.decode(level, raw) {
            Entry::NotPresent(entry) => prop_assert_eq!(radix.encode_not_present(entry).unwrap(), raw),
            Entry::Table(table) => {
                prop_assert_eq!(radix.next_table(level, raw), table.base);
                if table.index_bits == radix.geometry().index_bits(level.down().unwrap()) {
                    let again = radix.encode_table(level, table.base).unwrap();
                    prop_assert_eq!(radix.decode(level, again), Entry::Table(table));
                }
            }
            Entry::Leaf(leaf) => {
                let again = radix.encode_leaf(level, &leaf).unwrap();
                prop_assert_eq!(radix.decode(level, again), Entry::Leaf(leaf));
                // Only the spelling of the access authority may differ: stores imply loads.
                prop_assert_eq!((again ^ raw) & !0xc, 0);
            }
            Entry::Malformed(_) => prop_assert!(raw >> 63 == 1),
        }
    }

    #[test]
    fn permissions_round_trip_or_are_refused(radix in radix(), bits in 0u8..0x80) {
        let perms = Perms::from_bits(bits);
        let leaf = Leaf { output: Hpa::new(0), perms, accessed: false, attrs: PteAttrs::default() };
        match radix.encode_leaf(Level::LAST, &leaf) {
            Ok(raw) => prop_assert_eq!(radix.decode(Level::LAST, raw), Entry::Leaf(leaf)),
            Err(error) => prop_assert_eq!(error, EncodeError::Perms { perms }),
        }
    }

    #[test]
    fn transitions_touch_what_they_name(radix in radix(), raw in any::<u64>()) {
        let raw = raw | 3 << 62;
        let protected = radix.write_protect(raw);
        prop_assert!(!radix.is_writable(protected));
        prop_assert_eq!(protected & !0x806, raw & !0x806);
        match radix.restore_write(protected) {
            Some(restored) => prop_assert!(radix.is_writable(restored) && restored & 0x80 != 0 && restored & 0x800 == 0),
            None => prop_assert!(!radix.is_writable(raw)),
        }
        let old = radix.mark_old(raw);
        prop_assert_eq!(radix.mark_young(old), Some(raw | 0x100));
        prop_assert_eq!(radix.mark_young(raw | 0x100), None);
    }

    /// A whole tree over any legal mix of last-level tables: the walk lands in the page, whatever the format's base page.
    #[test]
    fn walks_follow_the_trees_own_sizes(radix in radix(), input in 0u64..1 << 52, small: bool, level in 0u8..3) {
        let bits = if small { 9 } else { 5 };
        let mut image = MemoryImage::everywhere();
        let mut table = ROOT.raw();
        for above in (level + 1..4).rev() {
            let shift = [0, 21, 30, 39][above as usize];
            let nls = if above == 1 { bits } else { 9 };
            let next = ROOT.raw() + 0x10_0000 * u64::from(above);
            let slot = table + (input >> shift & 0x1fff & if above == 3 { 0x1fff } else { 0x1ff }) * 8;
            image.set(Hpa::new(slot), 1 << 63 | next | nls).unwrap();
            table = next;
        }
        let shift = if level == 0 { 21 - bits } else { [0, 21, 30][level as usize] };
        let mask = if level == 0 { (1 << bits) - 1 } else { 0x1ff };
        image.set(Hpa::new(table + (input >> shift & mask) * 8), 3 << 62 | 0x7 << 40 | 0x18f).unwrap();
        let found = walk(&radix.with_keys(Keys::default()), ROOT, input, Access::WRITE, &mut image).unwrap();
        prop_assert_eq!(found.output.raw(), 0x7 << 40 | input & ((1 << shift) - 1));
        prop_assert_eq!(u64::from(found.size.shift()), shift);
    }
}

#[test]
fn every_configuration_keeps_the_promises_of_a_format() {
    for base in [BasePage::K4, BasePage::K64] {
        for rc in [RcUpdate::Hardware, RcUpdate::Interrupt] {
            for radix in [Radix::partition(base), Radix::process(base)] {
                if let Err(broken) = mmu_core::conformance::check(&radix.with_rc(rc)) {
                    panic!("{base:?} {rc:?} {:?}: {broken}", radix.scope());
                }
            }
        }
    }
}

#[test]
fn configurations_are_checked() {
    assert_eq!(
        Radix::new(Scope::Partition, 48, 13, BasePage::K4),
        Err(RadixError::Unsupported { tree_bits: 48, root_bits: 13 })
    );
    assert_eq!(Radix::new(Scope::Partition, 52, 13, BasePage::K4), Ok(Radix::partition(BasePage::K4)));
    let word = RootWord::of(Hpa::new(0xf324_0000)).unwrap();
    // As QEMU's and Linux's process tables spell it.
    assert_eq!(word.raw(), 0x4000_0000_f324_00ad);
    assert_eq!((word.tree_bits(), word.root_bits(), word.root()), (52, 13, Hpa::new(0xf324_0000)));
    assert!(RootWord::of(Hpa::new(0x8000)).unwrap_err().to_string().contains("64K"));
    let k64 = Radix::partition(BasePage::K64);
    assert_eq!(k64.geometry().table_bytes(Level::LAST), 256);
    assert_eq!(k64.geometry().input_bits(), 52);
}

#[test]
fn markers_and_illegal_words() {
    let radix = Radix::partition(BasePage::K4);
    let frozen = radix.encode_not_present(NotPresent::Frozen).unwrap();
    let owner = radix.encode_not_present(NotPresent::Owner(0xa5)).unwrap();
    assert_eq!(radix.decode(Level::LAST, owner), Entry::NotPresent(NotPresent::Owner(0xa5)));
    assert_eq!((frozen | owner) & radix.present_mask(), 0);
    assert!(radix.encode_not_present(NotPresent::Other(1 << 63)).is_err());
    assert!(radix.encode_not_present(NotPresent::Other(frozen)).is_err());
    assert_eq!(radix.decode(Level::new(3), 3 << 62), Entry::Malformed(Malformed::LeafLevel));
    assert_eq!(radix.decode(Level::LAST, 1 << 63 | 9), Entry::Malformed(Malformed::TableSize));
    assert_eq!(radix.decode(Level::new(2), 1 << 63 | 5), Entry::Malformed(Malformed::TableSize));
    assert!(radix.encode_table(Level::LAST, Hpa::new(0)).is_err());
    assert!(radix.encode_table(Level::new(1), Hpa::new(0x800)).is_err());
    assert!(radix.encode_table(Level::new(4), Hpa::new(0)).is_err());
}

#[test]
fn faults_report_causes() {
    let radix = Radix::partition(BasePage::K4).with_rc(RcUpdate::Interrupt);
    let mut image = MemoryImage::everywhere();
    let fault = walk(&radix, ROOT, 0, Access::WRITE, &mut image).unwrap_err();
    assert_eq!((fault.cause(), fault.class()), (Cause::NO_ENTRY | Cause::STORE, FaultClass::NotPresent));
    assert_eq!(fault.level(), Some(Level::new(3)));
    let shown = fault.to_string();
    assert!(shown.contains("DSISR 0x42000000, no translation, store (level 1 from the root)"), "{shown}");
    let fault = walk(&radix, ROOT, 1 << 52, Access::READ, &mut image).unwrap_err();
    assert_eq!(fault.level(), None);

    for (word, access, why) in [
        (0x104, Access::WRITE, Why::Protection),
        (0x104, Access::EXECUTE, Why::NoExecute),
        (0x127, Access::EXECUTE, Why::NoExecute),
        (0x006, Access::READ, Why::Reference),
        (0x106, Access::WRITE, Why::Change),
        (0x104, Access::GUEST_TABLE, Why::Bus),
    ] {
        let expected = if why == Why::Bus { Ok(()) } else { Err(why) };
        assert_eq!(radix.permit(3 << 62 | word, &access), expected, "{word:#x}");
    }
    let lenient = radix.with_fetch_denied(FetchDenied::Protection);
    assert_eq!(lenient.permit(3 << 62 | 0x104, &Access::EXECUTE), Err(Why::Protection));
    assert_eq!(lenient.permit(3 << 62 | 0x127, &Access::EXECUTE), Err(Why::NoExecute));

    // Keys bind privileged accesses to pages of problem state, and nobody else.
    let keyed = Radix::process(BasePage::K4).with_keys(Keys::new(1 << 63, 0));
    assert_eq!(keyed.permit(3 << 62 | 0x186, &Access::WRITE), Err(Why::Protection));
    assert_eq!(keyed.permit(3 << 62 | 0x186, &Access::WRITE.user()), Ok(()));
    assert_eq!(keyed.permit(3 << 62 | 0x18e, &Access::WRITE), Ok(()));
    assert_eq!(keyed.permit(3 << 62 | 0x18e, &Access::WRITE.user()), Err(Why::Protection));
}

#[test]
fn a_bad_table_size_is_refused_after_one_more_translation() {
    let radix = Radix::partition(BasePage::K4);
    for nls in [0, 5, 8, 31] {
        let mut image = MemoryImage::everywhere();
        image.set(ROOT, 1 << 63 | 0x20_0000 | nls).unwrap();
        let fault = walk(&radix, ROOT, 0x1000, Access::READ, &mut image).unwrap_err();
        assert_eq!(fault.cause(), Cause::BAD_CONFIG, "{nls}");
    }
}

fn flush(scope: FlushScope, walk_caches: WalkCaches, reach: Reach) -> Flush {
    Flush { scope, walk_caches, reach }
}

fn range(start: u64, bytes: u64, level: Option<u8>) -> FlushScope {
    FlushScope::Range { start: Gpa::new(start), bytes, level: level.map(Level::new) }
}

#[test]
fn flushes_become_tlbie() {
    let radix = Radix::partition(BasePage::K64);
    let plan = radix.flush_plan(flush(range(0x1_2345, 0x2_0000, Some(0)), WalkCaches::Keep, Reach::Everyone));
    assert_eq!((plan.repeats, plan.delivery), (3, Delivery::Broadcast));
    assert_eq!(plan.instruction.to_string(), "tlbie RIC=0 PRS=0 R=1 IS=0 AP=5 (64K)");
    assert_eq!(plan.covers.scope, range(0x1_0000, 0x3_0000, Some(0)));

    let big = radix.flush_plan(flush(range(0, 40 << 21, Some(1)), WalkCaches::Keep, Reach::Everyone));
    assert_eq!((big.instruction.to_string().as_str(), big.repeats), ("tlbie RIC=0 PRS=0 R=1 IS=2", 1));
    assert_eq!(big.covers.scope, FlushScope::Vm);
    let local = radix.flush_plan(flush(range(0, 40 << 21, Some(1)), WalkCaches::Keep, Reach::Local));
    assert_eq!((local.instruction.to_string().as_str(), local.repeats), ("tlbiel RIC=0 PRS=0 R=1 IS=0 AP=1 (2M)", 40));
    let tables = radix.flush_plan(flush(range(0, 0x1000, Some(0)), WalkCaches::Drop, Reach::Everyone));
    assert!(tables.instruction.drops_walk_cache() && tables.instruction.drops_tlb());
    // The cached size is unknown: AP cannot name it.
    let unknown = radix.flush_plan(flush(range(0, 0x1000, None), WalkCaches::Keep, Reach::Everyone));
    assert_eq!(unknown.covers.scope, FlushScope::Vm);
    let process = Radix::process(BasePage::K4).flush_plan(flush(FlushScope::Vm, WalkCaches::Keep, Reach::Local));
    assert_eq!((process.instruction.to_string().as_str(), process.repeats), ("tlbiel RIC=0 PRS=1 R=1 IS=1", 128));
    // An end beyond 2^64 is not a page count.
    let huge = radix.flush_plan(flush(range(u64::MAX, u64::MAX, Some(0)), WalkCaches::Keep, Reach::Everyone));
    assert_eq!(huge.covers.scope, FlushScope::Vm);
}

#[test]
fn caches_go_by_their_own_rules() {
    let tlbie = |ric| Tlbi::Tlbie { form: TlbiForm::Broadcast, ric, prs: 0, select: TlbiSelect::Page(TlbiAp::K4) };
    let drops = |tlbi: Tlbi| (tlbi.drops_tlb(), tlbi.drops_erat(), tlbi.drops_walk_cache(), tlbi.drops_root_tables());
    assert_eq!(drops(tlbie(TlbiRic::Tlb)), (true, true, false, false));
    assert_eq!(drops(tlbie(TlbiRic::WalkCache)), (false, false, true, false));
    assert_eq!(drops(tlbie(TlbiRic::All)), (true, true, true, true));
    assert_eq!(drops(Tlbi::Slbia { ih: 7 }), (false, true, false, false));
    assert_eq!(TlbiAp::of(PageSize::SIZE_1G), Some(TlbiAp::G1));
    assert_eq!(TlbiAp::of(PageSize::SIZE_16K), None);
}

#[test]
fn valid_entries_change_in_place_only_in_flags() {
    let radix = Radix::partition(BasePage::K4);
    let leaf = |output: u64, perms, att| {
        let leaf =
            Leaf { output: Hpa::new(output), perms, accessed: true, attrs: PteAttrs { att, ..Default::default() } };
        radix.encode_leaf(Level::new(1), &leaf).unwrap()
    };
    let old = leaf(0, Perms::RWX, Att::Normal);
    let table = radix.encode_table(Level::new(1), Hpa::new(0x4000)).unwrap();
    let rule = |old, new| radix.break_rule(Level::new(1), old, new);
    for new in [0, old, old & !0x180, leaf(0, Perms::R, Att::Normal)] {
        assert_eq!(rule(old, new), BreakRule::NotNeeded);
        assert_eq!(rule(0, new), BreakRule::NotNeeded);
    }
    for new in [table, leaf(0x20_0000, Perms::RWX, Att::Normal), leaf(0, Perms::RWX, Att::TolerantIo)] {
        assert!(matches!(rule(old, new), BreakRule::Needed(_)), "{new:#x}");
    }
    assert!(matches!(rule(table, table + 0x1000), BreakRule::Needed(_)));
}
