//! TLBI operands bit for bit, and ranges that are covered exactly.

use arch_arm64_s2::{
    AddressOperand, ArmLevel, BaseUnit, Features, Granule, Piece, RangeOperand, RangePolicy, Space, Stage2Config, Tlbi,
};
use mmu_core::format::{Delivery, Flush, FlushScope, Format, Reach, WalkCaches};
use mmu_core::{ByteUnits, Gpa, Level};
use proptest::prelude::*;

fn range(start: u64, bytes: u64, level: Option<Level>) -> Flush {
    Flush {
        scope: FlushScope::Range { start: Gpa::new(start), bytes, level },
        walk_caches: WalkCaches::Keep,
        reach: Reach::Everyone,
    }
}

fn stage2(range: bool, ttl: bool) -> arch_arm64_s2::Stage2 {
    let features = Features { tlbi_range: range, ttl, ..Features::default() };
    Stage2Config { features, ..Default::default() }.build().unwrap()
}

#[test]
fn operands_are_the_manuals_bits() {
    let one = AddressOperand { address: Gpa::new(0x12_3456_7000), hint: ArmLevel::new(2).map(|l| (Granule::K4, l)) };
    assert_eq!(one.encode(Space::Ipa), 0x6 << 44 | 0x123_4567);
    let operand = RangeOperand {
        base: Gpa::new(0x4000_0000),
        granule: Granule::K4,
        unit: BaseUnit::Granule,
        scale: 3,
        num: 31,
        hint: ArmLevel::new(3),
    };
    assert_eq!(operand.encode(Space::Ipa), 1 << 46 | 3 << 44 | 31 << 39 | 3 << 37 | 0x4_0000);
    assert_eq!(operand.bytes(), 8.GiB());
    assert_eq!(operand.encode(Space::Va { asid: 7 }) >> 48, 7);
    // The reserved granule names nothing.
    assert_eq!(RangeOperand::decode(0, BaseUnit::Granule), None);
}

#[test]
fn instructions_print_as_in_a_listing() {
    let plan = stage2(true, true).flush_plan(range(0x4000_0000, 2.MiB(), Some(Level::new(1))));
    assert_eq!(plan.instruction.to_string(), "TLBI IPAS2LE1IS 0x40000000, level 2");
    assert_eq!((plan.repeats, plan.delivery), (1, Delivery::Broadcast));
    assert_eq!(plan.instruction.completion().map(|tlbi| tlbi.to_string()).as_deref(), Some("TLBI VMALLE1IS"));
    let plan = stage2(true, true).flush_plan(range(0x4000_0000, 64.MiB(), None));
    assert_eq!(plan.instruction.to_string(), "TLBI RIPAS2LE1IS 0x40000000, 16384 x 4K (SCALE 2, NUM 7)");
    let local = Flush { reach: Reach::Local, walk_caches: WalkCaches::Drop, ..range(0, 4.KiB(), None) };
    let plan = stage2(true, true).flush_plan(local);
    assert_eq!(
        (plan.instruction.to_string().as_str(), plan.delivery),
        ("TLBI IPAS2E1 0x0", Delivery::LocalInstruction)
    );
    let everything = Flush { scope: FlushScope::Vm, ..local };
    assert_eq!(stage2(true, true).flush_plan(everything).instruction.to_string(), "TLBI VMALLS12E1");
    assert_eq!(Tlbi::Alle1(Reach::Everyone).to_string(), "TLBI ALLE1IS");
}

/// Eight GiB and more: one operand says 8 GiB at most, so a longer range takes several.
#[test]
fn long_ranges_take_several_instructions() {
    let plan = stage2(true, false).flush_plan(range(0, 8.GiB(), None));
    assert_eq!(plan.repeats, 1);
    let plan = stage2(true, false).flush_plan(range(0, 8.GiB() + 4.KiB(), None));
    assert_eq!(plan.repeats, 2);
    let plan = stage2(true, false).flush_plan(range(0, 100.GiB(), None));
    assert_eq!(plan.repeats, 12 + 1);
}

#[test]
fn without_ranges_many_pages_flush_everything() {
    let most = 512 * 4.KiB();
    let plan = stage2(false, true).flush_plan(range(0, most, None));
    assert_eq!(plan.repeats, 512);
    let plan = stage2(false, true).flush_plan(range(0, most + 4.KiB(), None));
    assert_eq!((plan.instruction, plan.repeats), (Tlbi::Vmalls12e1(Reach::Everyone), 1));
    assert_eq!(plan.covers.scope, FlushScope::Vm);
    // With the level known, an instruction covers a block.
    let plan = stage2(false, true).flush_plan(range(0, 1.GiB(), Some(Level::new(1))));
    assert_eq!(plan.repeats, 512);
    // An unlinked table hides pages of any size: the level of the changed entry is no hint.
    let unlinked = Flush { walk_caches: WalkCaches::Drop, ..range(0, 2.MiB(), Some(Level::new(1))) };
    assert_eq!(stage2(false, true).flush_plan(unlinked).repeats, 512);
}

fn policies() -> impl Strategy<Value = RangePolicy> {
    let unit = prop_oneof![Just(None), Just(Some(BaseUnit::Granule)), Just(Some(BaseUnit::Kib64))];
    let granule = prop_oneof![Just(Granule::K4), Just(Granule::K16), Just(Granule::K64)];
    (unit, granule, any::<bool>(), 0u8..3, any::<bool>()).prop_map(|(range_unit, granule, hinted, up, _)| {
        let level = Level::new(up);
        let stride = 1 << granule.level_shift(if hinted { level } else { Level::LAST });
        let hint = Some(ArmLevel::of(level)).filter(|&l| hinted && AddressOperand::can_hint(l));
        RangePolicy { granule, range_unit, hint, stride }
    })
}

proptest! {
    /// The pieces follow each other without gap or overlap, survive their encoding, respect alignment, and are counted
    /// without being made.
    #[test]
    fn pieces_cover_exactly_what_is_asked(
        policy in policies(),
        start in 0u64..1 << 40,
        strides in 0u64..5000,
        far in prop_oneof![4 => Just(0u64), 1 => 0u64..1 << 34],
    ) {
        // Within the IPA space.
        let strides = strides % ((1 << 47) / policy.stride);
        let bytes = strides * policy.stride + if policy.range_unit.is_some() && policy.stride < 1 << 30 { far } else { 0 };
        let pieces = policy.cut(Gpa::new(start), bytes);
        let begin = start / policy.stride * policy.stride;
        let end = if bytes == 0 { begin } else { (start + bytes).div_ceil(policy.stride) * policy.stride };
        let mut at = begin;
        let mut count = 0;
        for piece in pieces.clone() {
            count += 1;
            match piece {
                Piece::One(operand) => {
                    let back = AddressOperand::decode(operand.encode(Space::Ipa), Space::Ipa);
                    prop_assert_eq!(back, operand);
                    prop_assert_eq!(operand.address.raw(), at);
                    at += policy.stride;
                }
                Piece::Range(operand) => {
                    let unit = policy.range_unit.unwrap();
                    let back = RangeOperand::decode(operand.encode(Space::Ipa), unit);
                    prop_assert_eq!(back, Some(operand));
                    prop_assert_eq!(operand.base.raw(), at);
                    prop_assert_eq!(at % (1 << unit.shift(policy.granule)), 0);
                    // A hint is true for whole leaves only.
                    prop_assert_eq!((at % policy.stride, operand.bytes() % policy.stride), (0, 0));
                    at += operand.bytes();
                }
            }
        }
        prop_assert_eq!(at, end);
        prop_assert_eq!(pieces.count_left(), count);
        if policy.range_unit.is_some() && policy.stride <= 1 << 37 {
            // At most fifteen lone pages up to a 64K boundary, three shorter ranges and a last page.
            let longest = RangeOperand::MAX_PAGES << policy.granule.shift();
            prop_assert!(count <= (end - begin) / longest + 15 + 4 + 1, "{} pieces", count);
        }
    }

    /// Any register value decodes to an operand that encodes to the same bits, reserved ones apart.
    #[test]
    fn operands_of_any_bits_come_back(raw: u64, wide: bool) {
        let unit = if wide { BaseUnit::Kib64 } else { BaseUnit::Granule };
        if let Some(operand) = RangeOperand::decode(raw, unit) {
            prop_assert_eq!(operand.encode(Space::Va { asid: (raw >> 48) as u16 }), raw);
        }
        let operand = AddressOperand::decode(raw, Space::Ipa);
        prop_assert_eq!(AddressOperand::decode(operand.encode(Space::Ipa), Space::Ipa), operand);
    }
}
