//! Constants are found again from curves that a known machine makes, and a family that was left out is predicted from the others.

use arch_x86_ept::{Ept, EptConfig, LongMode, LongModeConfig};
use mmu_core::machine::Machine;
use mmu_predict::fit::{Fitted, cross_validate, fit};
use mmu_predict::predict_all;
use mmu_predict::score::{Mean, Measured};

fn formats() -> (LongMode, Ept) {
    let one = LongModeConfig::new().max_phys_addr(52).build().unwrap();
    (one, EptConfig::new().max_phys_addr(52).build().unwrap())
}

fn host() -> Machine {
    Machine::builtin("intel-granite-rapids-host").unwrap()
}

/// What a machine would measure if it were the model.
fn measured(machine: &Machine, points: &[(&str, u64)]) -> Vec<Measured> {
    let made = predict_all(machine, formats(), points, 1);
    let row = |(&(variant, n), point): (&(&str, u64), Result<mmu_predict::Prediction, _>)| {
        let point = point.unwrap();
        let bench = if variant.ends_with('t') { "shoot" } else { "chase" }.to_owned();
        let (variant, unit) = (variant.to_owned(), String::new());
        Measured { bench, variant, n, unit, ns_median: point.ns, core_cycles_median: point.cycles }
    };
    points.iter().zip(made).map(row).collect()
}

const POINTS: [(&str, u64); 14] = [
    ("dense4k", 64),
    ("dense4k", 256),
    ("dense4k", 1024),
    ("zero4k", 64),
    ("zero4k", 512),
    ("zero4k", 4096),
    ("packed64_4k", 256),
    ("packed64_4k", 4096),
    ("munmap_1t", 1),
    ("munmap_1t", 8),
    ("munmap_1t", 32),
    ("munmap_1t", 64),
    ("munmap_1t", 512),
    ("munmap_2t", 8),
];

fn value(constants: &[Fitted], place: &str) -> Option<f64> {
    let found = constants.iter().find(|fitted| fitted.place == place).unwrap_or_else(|| panic!("{place}"));
    found.value.as_ref().map(|value| value.parse().unwrap())
}

#[test]
fn constants_that_curves_say_are_found_again_whatever_the_sheet_has() {
    let machine = host();
    let rows = measured(&machine, &POINTS);
    // The sheet that the search is given is wrong in all that it is to find.
    let mut wrong = machine.clone();
    wrong.caches.levels[1].latency.0 = 30;
    wrong.translation.tlb.l2_hit_extra.0 = 20;
    wrong.software_ns.insert("unmap_page".to_owned(), 500.0);
    let found = fit(&wrong, formats(), &rows, 1).unwrap();
    assert_eq!(value(&found.constants, "cache.l1d.latency_cycles"), Some(5.0));
    assert_eq!(value(&found.constants, "cache.l2.latency_cycles"), Some(16.0));
    assert_eq!(value(&found.constants, "tlb.l2_hit_extra_cycles"), Some(7.0));
    assert_eq!(value(&found.constants, "walk.reference_cycles"), Some(6.0));
    let page = value(&found.constants, "software_ns.unmap_page").unwrap();
    assert!((page / machine.software_ns["unmap_page"] - 1.0).abs() < 0.05, "{page}");
    // Nothing here reaches memory or jumps, nor the third cache.
    assert!(found.constants.iter().any(|fitted| fitted.place == "cache.l3.kib" && fitted.value.is_none()));
    assert_eq!(value(&found.constants, "fetch.beyond_cycles"), None);
    assert_eq!(found.setting.machine.caches.levels[1].latency.0, 16);
}

#[test]
fn a_family_that_was_left_out_is_predicted_from_the_others_or_named_as_said_by_itself() {
    let rows = measured(&host(), &POINTS);
    let mut told = Vec::new();
    let cross = cross_validate(&host(), formats(), &rows, 1, |family| told.push(family.to_owned())).unwrap();
    assert!(told.iter().any(|step| step == "tlb.inclusion: exclusive"), "{told:?}");
    let of = |name: &str| cross.families.iter().find(|left| left.family == name).unwrap_or_else(|| panic!("{told:?}"));
    let error = |name: &str| Mean::of(of(name).points.iter()).unwrap().error;
    // Pages show the first-level hit, the second-level TLB and the second cache, and so do the others.
    assert!(error("pages, 4K") < 0.02, "{}", error("pages, 4K"));
    assert!(of("pages, 4K").unsaid.is_empty());
    // Only one frame walks here, and only two threads interrupt.
    assert!(of("one frame, 4K").unsaid.contains(&"walk.reference_cycles".to_owned()));
    assert!(of("shootdowns, another thread").unsaid.contains(&"cost.ipi_ack_ns".to_owned()));
    assert!(error("shootdowns, another thread") > 0.01, "what nothing else says cannot be right by itself");
    assert_eq!(cross.alone, 0);
    assert_eq!(cross.points.len(), POINTS.len());
}

#[test]
fn a_search_is_the_same_every_time() {
    let rows = measured(&host(), &POINTS[..6]);
    let [one, other] = [(); 2].map(|()| fit(&host(), formats(), &rows, 3).unwrap());
    assert_eq!(one, other);
}
