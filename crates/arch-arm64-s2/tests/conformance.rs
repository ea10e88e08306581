//! Every legal configuration keeps the promises of `Format`.

use arch_arm64_s2::{
    ArmLevel, Features, Granule, GranuleSupport, HardwareUpdates, Stage1Config, Stage2, Stage2Config, StartLevel,
};
use mmu_core::conformance::{Effort, check, check_with};
use mmu_core::{Format, Level};

const UPDATES: [HardwareUpdates; 3] =
    [HardwareUpdates::None, HardwareUpdates::Accessed, HardwareUpdates::AccessedAndDirty];

/// Every second stage that `features` allow, by trying all widths, start levels and granules.
fn legal(features: Features) -> Vec<(Stage2Config, Stage2)> {
    let mut found = Vec::new();
    for granule in Granule::ALL {
        for ipa_bits in 16..=52 {
            for start in (-1..=3).filter_map(ArmLevel::new).map(StartLevel::At) {
                // Flags do not interact with the shape: take them in turn.
                let updates = UPDATES[found.len() % 3];
                let config = Stage2Config { granule, ipa_bits, start, updates, features, ..Default::default() };
                found.extend(config.build().ok().map(|stage2| (config, stage2)));
            }
        }
    }
    found
}

#[test]
fn every_legal_second_stage_conforms() {
    let without = Features { xnx: false, fwb: false, ..Features::MAX };
    let mut configurations = 0;
    for features in [Features::default(), Features::MAX, without, Features { pa_bits: 44, ..without }] {
        for (config, stage2) in legal(features) {
            configurations += 1;
            let effort = Effort { words: 2_000, addresses: 2, seed: configurations };
            if let Err(broken) = check_with(&stage2, effort) {
                panic!("{config:?}: {broken}");
            }
        }
    }
    assert!(configurations > 300, "only {configurations} configurations are legal");
}

#[test]
fn chosen_second_stages_conform_at_full_effort() {
    for (granule, ipa_bits, updates, features) in [
        (Granule::K4, 40, HardwareUpdates::None, Features::default()),
        (Granule::K4, 52, HardwareUpdates::AccessedAndDirty, Features::MAX),
        (Granule::K16, 52, HardwareUpdates::AccessedAndDirty, Features::MAX),
        (Granule::K64, 52, HardwareUpdates::Accessed, Features::MAX),
    ] {
        let stage2 = Stage2Config { granule, ipa_bits, updates, features, ..Default::default() }.build().unwrap();
        let report = check(&stage2).unwrap_or_else(|broken| panic!("{broken}"));
        assert!(report.words.iter().all(|&count| count > 0), "{report:?}");
        // All words of a leaf are legal, so every decoded one can be written again.
        assert_eq!(report.not_encodable, 0, "{report:?}");
    }
}

#[test]
fn every_first_stage_conforms() {
    let mut configurations = 0;
    for features in [Features::default(), Features::MAX] {
        for granule in Granule::ALL {
            for va_bits in 16..=52 {
                let updates = UPDATES[configurations % 3];
                let config = Stage1Config { granule, va_bits, updates, features, ..Default::default() };
                let Ok(stage1) = config.build() else { continue };
                configurations += 1;
                if let Err(broken) = check_with(&stage1, Effort { words: 2_000, addresses: 2, seed: 1 }) {
                    panic!("{config:?}: {broken}");
                }
            }
        }
    }
    assert!(configurations > 150, "only {configurations}");
}

/// Start levels and widths by the table of the manual (Arm ARM D8.2.7): IPA bits that each start level of each granule
/// resolves, from one entry pair up to sixteen concatenated tables.
#[test]
fn widths_and_start_levels_are_the_manuals() {
    type Rows = &'static [(i8, u32, u32)];
    let table: [(Granule, Rows); 3] = [
        (Granule::K4, &[(-1, 49, 52), (0, 40, 52), (1, 31, 43), (2, 22, 34), (3, 16, 25)]),
        (Granule::K16, &[(0, 48, 52), (1, 37, 51), (2, 26, 40), (3, 16, 29)]),
        (Granule::K64, &[(1, 43, 52), (2, 30, 46), (3, 17, 33)]),
    ];
    for (granule, rows) in table {
        for level in (-1..=3).filter_map(ArmLevel::new) {
            for ipa_bits in 16..=52 {
                let row = rows.iter().find(|row| row.0 == level.number());
                let wanted = row.is_some_and(|&(_, least, most)| (least..=most).contains(&ipa_bits));
                let start = StartLevel::At(level);
                let config = Stage2Config { granule, ipa_bits, start, features: Features::MAX, ..Default::default() };
                let built = config.build();
                assert_eq!(built.is_ok(), wanted, "{granule} from level {level}, {ipa_bits} bits: {built:?}");
                if let Ok(stage2) = built {
                    assert_eq!(stage2.geometry().input_bits(), ipa_bits);
                    assert_eq!(stage2.geometry().root(), level.level());
                }
            }
        }
    }
}

#[test]
fn blocks_stand_where_the_manual_allows() {
    let leaves = |granule, ipa_bits, features| {
        let stage2 = Stage2Config { granule, ipa_bits, features, ..Default::default() }.build().unwrap();
        stage2.geometry().page_sizes().map(|size| size.to_string()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(leaves(Granule::K4, 48, Features::default()), "4K 2M 1G");
    assert_eq!(leaves(Granule::K4, 48, Features::MAX), "4K 2M 1G 512G");
    assert_eq!(leaves(Granule::K16, 48, Features::default()), "16K 32M");
    assert_eq!(leaves(Granule::K16, 48, Features::MAX), "16K 32M 64G");
    assert_eq!(leaves(Granule::K64, 48, Features::default()), "64K 512M");
    assert_eq!(leaves(Granule::K64, 48, Features::MAX), "64K 512M 4T");
}

#[test]
fn illegal_configurations_say_why() {
    let base = Stage2Config::default();
    let small = Features { pa_bits: 40, ttst: false, ..Features::default() };
    let at = |level| StartLevel::At(ArmLevel::new(level).unwrap());
    for (config, field) in [
        (Stage2Config { ipa_bits: 53, ..base }, "ipa_bits"),
        (Stage2Config { ipa_bits: 49, ..base }, "T0SZ"),
        (Stage2Config { ipa_bits: 41, features: small, ..base }, "T0SZ"),
        (Stage2Config { ipa_bits: 24, features: small, ..base }, "T0SZ"),
        (Stage2Config { start: at(2), ..base }, "T0SZ"),
        (Stage2Config { start: at(0), features: small, ..base }, "SL0"),
        (Stage2Config { start: at(3), ipa_bits: 25, features: small, ..base }, "SL0"),
        (Stage2Config { start: at(-1), granule: Granule::K64, ..base }, "start"),
        (
            Stage2Config {
                updates: HardwareUpdates::AccessedAndDirty,
                features: Features { updates: HardwareUpdates::Accessed, ..small },
                ..base
            },
            "HA",
        ),
        (Stage2Config { features: Features { granule_4k: GranuleSupport::Absent, ..small }, ..base }, "TG0"),
        (Stage2Config { features: Features { pa_bits: 39, ..small }, ..base }, "pa_bits"),
    ] {
        let error = config.build().expect_err("illegal").to_string();
        assert!(error.starts_with(field), "{config:?}: {error}");
    }
}

/// The sizes of hot types: cursors hold a format by value.
#[test]
fn sizes_stay_small() {
    assert!(size_of::<Stage2>() <= 64, "{}", size_of::<Stage2>());
    assert_eq!(Level::new(2), ArmLevel::new(1).unwrap().level());
}
