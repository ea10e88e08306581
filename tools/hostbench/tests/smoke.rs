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
fn flags_lines_and_first_touches_are_recorded_by_names_that_the_predictor_knows() {
    let text = record(&small(&["adbits", "cmo", "fresh"]), &mut |_| {}).unwrap();
    let rows = read(&text).unwrap();
    let machine = mmu_core::machine::Machine::builtin("intel-granite-rapids-host").unwrap();
    for row in rows.iter().filter(|row| row.bench != "fresh") {
        let known = mmu_predict::software::nanoseconds(&machine, &row.variant, row.n);
        assert!(known.is_some(), "{} in\n{text}", row.variant);
    }
    for (event, n) in [("load_after_cold_A0", 512), ("store_AD1", 32), ("clflush_dirty_per_line", 256)] {
        assert!(rows.iter().any(|row| (row.variant.as_str(), row.n) == (event, n)), "{event} in\n{text}");
    }
    let at = |name: &str| rows.iter().find(|row| row.variant == name).unwrap_or_else(|| panic!("{name} in\n{text}"));
    assert!(at("pass0_p05").ns_median <= at("pass0_p50").ns_median, "{text}");
    assert!(at("pass1_p95").ns_median <= at("pass1_p99").ns_median, "{text}");
    assert!(at("pass0_mean_below_30us").n <= at("pass0_p50").n, "{text}");
}

#[test]
fn a_victim_notices_that_others_call() {
    let mut said = String::new();
    let text = record(&small(&["shoot", "membarrier"]), &mut |point| said += point).unwrap();
    let rows = read(&text).unwrap();
    assert!(rows.iter().any(|row| row.variant == "munmap_1t" && row.n == 33), "{text}");
    // One CPU has nobody to interrupt.
    if !said.contains("there is one CPU") {
        for victim in ["dontneed_victim_lost", "dontneed_victim_gaps_x1000"] {
            assert_eq!(rows.iter().filter(|row| row.variant == victim).count(), 9, "{victim} in\n{text}");
        }
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
