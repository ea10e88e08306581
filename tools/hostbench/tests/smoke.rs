//! A small recording ends soon and is what the predictor reads. No test here looks at how long anything took.

use hostbench::{COLUMNS, FAMILIES, Options, record};
use mmu_predict::score::read;

fn small(families: &[&str]) -> Options {
    let families = families.iter().map(|family| (*family).to_owned()).collect();
    Options { families, points: vec![8, 64], runs: 1, samples: 2, memory: 64 << 20, cpu: None }
}

#[test]
fn what_is_recorded_is_what_the_predictor_reads() {
    let mut said = Vec::new();
    let text = record(&small(&["core", "chase", "psc", "itlb"]), &mut |point| said.push(point.to_owned())).unwrap();
    assert_eq!(text.lines().next().unwrap(), COLUMNS.join(","));
    let rows = read(&text).unwrap();
    for (curve, points) in [
        ("packed64_thp", 2),
        ("packed64_4k", 2),
        ("dense4k", 2),
        ("zero4k", 2),
        ("jmp_4k", 2),
        ("jmp_packed", 2),
        ("pde_2M_T4096", 2),
    ] {
        assert_eq!(rows.iter().filter(|row| row.variant == curve).count(), points, "{curve} in\n{text}");
    }
    assert!(rows.iter().all(|row| row.core_cycles_median > 0.0 && row.ns_median > 0.0), "{text}");
    assert!(said.iter().any(|point| point == "chase dense4k 64"), "{said:?}");
}

#[test]
fn curves_have_names_that_the_predictor_knows() {
    let text = record(&small(&["chase", "psc", "mlp", "itlb"]), &mut |_| {}).unwrap();
    for row in read(&text).unwrap() {
        assert!(row.variant.parse::<mmu_predict::Curve>().is_ok(), "{}", row.variant);
    }
}

#[test]
fn events_are_recorded_without_privileges() {
    let text = record(&small(&["fault", "atomic", "clear", "sched"]), &mut |_| {}).unwrap();
    let rows = read(&text).unwrap();
    for event in ["anon4k_first_write", "zeropage_first_read", "xadd_local", "repstosb_4k_L1hot", "sched_yield_alone"] {
        assert!(rows.iter().any(|row| row.variant == event), "{event} in\n{text}");
    }
}

#[test]
fn what_cannot_be_is_refused_with_a_remedy() {
    let error = |options: &Options| record(options, &mut |_| {}).unwrap_err().to_string();
    let unknown = error(&small(&["chess"]));
    assert!(
        unknown.contains("--families chess") && FAMILIES.iter().all(|family| unknown.contains(family)),
        "{unknown}"
    );
    assert!(error(&Options { runs: 0, ..small(&["core"]) }).contains("--runs"));
    assert!(error(&Options { cpu: Some(1 << 20), ..small(&["core"]) }).contains("--cpu"));
    let mut said = String::new();
    let large = Options { points: vec![65_536], memory: 1 << 20, ..small(&["chase"]) };
    let text = record(&large, &mut |point| said += point).unwrap();
    assert!(said.contains("dense4k 65536: left out") && said.contains("--memory-limit"), "{said}");
    assert!(!text.contains("dense4k"), "{text}");
}
