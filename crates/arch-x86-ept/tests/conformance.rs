//! Every configuration worth telling apart passes the kit.

use arch_x86_ept::{
    AccessedDirty, EptConfig, ExecuteOnly, InveptSupport, LargePages, LongModeConfig, ModeBasedExecute, NoExecute,
    Smap, Smep, WalkLength, WriteProtect,
};
use mmu_core::conformance::{Effort, check_with};

const EFFORT: Effort = Effort { words: 4_000, addresses: 2, seed: 1 };

#[test]
fn ept_conforms_in_every_configuration() {
    for walk_length in [WalkLength::Four, WalkLength::Five] {
        for accessed_dirty in [AccessedDirty::On, AccessedDirty::Off] {
            for mode_based in [ModeBasedExecute::On, ModeBasedExecute::Off] {
                for (bits, large, execute_only, invept) in [
                    (36, LargePages::None, ExecuteOnly::Unsupported, InveptSupport::AllContextOnly),
                    (46, LargePages::Only2M, ExecuteOnly::Supported, InveptSupport::SingleContext),
                    (52, LargePages::Both, ExecuteOnly::Supported, InveptSupport::SingleContext),
                ] {
                    let ept = EptConfig::new()
                        .walk_length(walk_length)
                        .accessed_dirty(accessed_dirty)
                        .mode_based_execute(mode_based)
                        .max_phys_addr(bits)
                        .large_pages(large)
                        .execute_only(execute_only)
                        .invept(invept)
                        .build()
                        .unwrap();
                    let report = check_with(&ept, EFFORT).unwrap_or_else(|broken| panic!("{ept:?}\n{broken}"));
                    assert!(report.leaves > 0 && report.words.iter().all(|&n| n > 0), "{report:?}");
                    assert_eq!(report.not_encodable, 0, "{report:?}");
                }
            }
        }
    }
}

#[test]
fn long_mode_conforms_in_every_configuration() {
    for walk_length in [WalkLength::Four, WalkLength::Five] {
        for (bits, large) in [(36, LargePages::Only2M), (46, LargePages::Both), (52, LargePages::Both)] {
            for (wp, nx, smep, smap) in [
                (WriteProtect::On, NoExecute::On, Smep::Off, Smap::Off),
                (WriteProtect::Off, NoExecute::Off, Smep::On, Smap::On),
            ] {
                let guest = LongModeConfig::new()
                    .walk_length(walk_length)
                    .max_phys_addr(bits)
                    .large_pages(large)
                    .write_protect(wp)
                    .no_execute(nx)
                    .smep(smep)
                    .smap(smap)
                    .build()
                    .unwrap();
                let report = check_with(&guest, EFFORT).unwrap_or_else(|broken| panic!("{guest:?}\n{broken}"));
                assert_eq!(report.not_encodable, 0, "{report:?}");
            }
        }
    }
}
