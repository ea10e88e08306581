//! Break-before-make, by the rule of Arm's memory model (`aarch64bbm.cat`) and of Arm ARM D8.17.

use arch_arm64_s2::{BbmLevel, Features, Hcr, PageContents, S2Attrs, S2Memory, Shareability, Stage2, Stage2Config};
use mmu_core::format::{BreakRule, Format, Leaf};
use mmu_core::tlb::Perms;
use mmu_core::{Hpa, Level};

fn stage2(bbm: BbmLevel) -> Stage2 {
    let features = Features { bbm, ..Features::default() };
    let (vtcr, _) = Stage2Config { features, ..Default::default() }.registers().unwrap();
    // Without FWB every memory type has its own encoding.
    Stage2::new(vtcr, Hcr::new(1), features).unwrap()
}

fn leaf(output: u64, perms: Perms) -> Leaf<S2Attrs> {
    Leaf { output: Hpa::new(output), perms, accessed: true, attrs: S2Attrs::default() }
}

const BLOCK: Level = Level::new(1);
const WRITABLE: Perms = Perms::from_bits(Perms::RW.bits() | Perms::DIRTY.bits());

#[test]
fn attributes_and_outputs_of_live_leaves() {
    let stage2 = stage2(BbmLevel::Level0);
    let word = |leaf: Leaf<S2Attrs>| stage2.encode_leaf(BLOCK, &leaf).unwrap();
    let (x, y) = (0x20_0000, 0x40_0000);
    let old = |leaf: Leaf<S2Attrs>| word(Leaf { accessed: false, ..leaf });
    let attrs = |attrs| word(Leaf { attrs, ..leaf(x, WRITABLE) });
    let (ro, rw) = (|output| leaf(output, Perms::R), |output| leaf(output, WRITABLE));
    let memory = |memory| attrs(S2Attrs { memory, ..S2Attrs::default() });
    let shared = |shareability| attrs(S2Attrs { shareability, ..S2Attrs::default() });
    use PageContents::{MayDiffer, Same};
    for (what, from, to, contents, needed) in [
        ("output, read-only, contents differ", word(ro(x)), word(ro(y)), MayDiffer, true),
        ("output, read-only, same contents", word(ro(x)), word(ro(y)), Same, false),
        ("output, new writable", word(ro(x)), word(rw(y)), Same, true),
        ("output, old writable", word(rw(x)), word(ro(y)), Same, true),
        ("output, both writable", word(rw(x)), word(rw(y)), MayDiffer, true),
        ("output, old one with AF=0", old(rw(x)), word(rw(y)), MayDiffer, false),
        ("output, new one with AF=0", word(rw(x)), old(rw(y)), MayDiffer, false),
        ("write permission taken", word(rw(x)), word(ro(x)), MayDiffer, false),
        ("write permission given", word(ro(x)), word(rw(x)), MayDiffer, false),
        ("young to old", word(rw(x)), old(rw(x)), MayDiffer, false),
        ("old to young", old(rw(x)), word(rw(x)), MayDiffer, false),
        ("DBM", word(rw(x)), word(rw(x)) | 1 << 51, MayDiffer, false),
        ("software bits", word(rw(x)), word(rw(x)) | 0xf << 55, MayDiffer, false),
        ("broken", word(rw(x)), 0, MayDiffer, false),
        ("made", 0, word(rw(x)), MayDiffer, false),
        ("owner annotated", word(rw(x)), 1 << 2, MayDiffer, false),
        ("locked", word(rw(x)), 1 << 10, MayDiffer, false),
        ("rewritten", word(rw(x)), word(rw(x)), MayDiffer, false),
        ("device", word(rw(x)), memory(S2Memory::DeviceNGnRnE), MayDiffer, true),
        ("non-cacheable", word(rw(x)), memory(S2Memory::NonCacheable), MayDiffer, true),
        ("non-shareable", word(rw(x)), shared(Shareability::Non), MayDiffer, true),
    ] {
        let rule = stage2.break_rule_for(BLOCK, from, to, contents);
        assert_eq!(matches!(rule, BreakRule::Needed(_)), needed, "{what}: {rule:?}");
    }
}

#[test]
fn sizes_by_level_of_support() {
    use BbmLevel::{Level0, Level1, Level2};
    let relaxed = |rule: BreakRule| matches!(rule, BreakRule::Relaxed(_));
    for (bbm, not_table, wanted) in [
        (Level0, false, false),
        (Level0, true, false),
        (Level1, false, false),
        (Level1, true, true),
        (Level2, false, true),
        (Level2, true, true),
    ] {
        let stage2 = stage2(bbm);
        let attrs = S2Attrs { not_table, ..S2Attrs::default() };
        let block = stage2.encode_leaf(BLOCK, &Leaf { attrs, ..leaf(0x20_0000, WRITABLE) }).unwrap();
        let table = stage2.encode_table(BLOCK, Hpa::new(0x5000)).unwrap();
        for (old, new) in [(block, table), (table, block), (block, block | 1 << 52), (block | 1 << 52, block)] {
            let rule = stage2.break_rule(BLOCK, old, new);
            assert_eq!(relaxed(rule), wanted, "{bbm:?}, nT {not_table}: {rule:?}");
            assert!(rule != BreakRule::NotNeeded);
        }
        // Another table is never written over a live one.
        let other = stage2.encode_table(BLOCK, Hpa::new(0x6000)).unwrap();
        assert!(matches!(stage2.break_rule(BLOCK, table, other), BreakRule::Needed(_)));
    }
}
