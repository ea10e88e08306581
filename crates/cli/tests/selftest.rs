//! `mmusim selftest`: the list, reports in every form, exit codes, recordings.

mod common;

use common::{Scratch, data, fails};
use serde_json::Value;

const TEST: [&str; 8] = ["selftest", "dirty_log_perf_test", "-b", "2MiB", "-v", "2", "-i", "1"];

#[test]
fn the_list_names_the_kernels_tests() {
    let out = data(&["selftest", "--list"]);
    for name in ["demand_paging_test", "dirty_log_perf_test", "dirty_log_test", "dirty_log_page_splitting_test"] {
        assert!(out.lines().any(|line| line.split_whitespace().next() == Some(name)), "{name} in {out}");
    }
}

#[test]
fn a_test_prints_its_phases_and_assertions() {
    let out = data(&TEST);
    for arch in ["x86", "arm64", "power"] {
        assert!(out.contains(&format!("({arch})")), "{arch} in {out}");
    }
    assert!(out.contains("enable dirty logging") && out.contains("ok: every access"), "{out}");
}

#[test]
fn json_and_csv_say_the_same() {
    let document: Value = serde_json::from_str(&data(&[&TEST[..], &["--json"]].concat())).unwrap();
    let csv = data(&[&TEST[..], &["--csv"]].concat());
    let reports = document["reports"].as_array().unwrap();
    let phases: usize = reports.iter().map(|report| report["phases"].as_array().unwrap().len()).sum();
    assert_eq!((reports.len(), csv.lines().count()), (3, 1 + phases));
    let cycles = reports[0]["phases"][0]["cycles"].to_string();
    assert!(csv.lines().nth(1).unwrap().contains(&format!(",{cycles},")), "{cycles} in {csv}");
}

#[test]
fn arguments_that_make_no_sense_are_refused() {
    let perf = ["selftest", "dirty_log_perf_test", "-b", "2MiB"];
    fails(&[&perf[..], &["--arch", "arm64", "--tracking", "pml"]].concat(), 2, &["--tracking", "arm64"]);
    fails(&[&perf[..], &["--json", "--csv"]].concat(), 2, &["--csv"]);
    fails(&[&perf[..], &["--arch", "arm64", "-n"]].concat(), 2, &["arm64", "-n"]);
    fails(&[&perf[..], &["-p", "1000"]].concat(), 2, &["-p"]);
    fails(&["selftest", "dirty_log_page_splitting_test", "-b", "2MiB", "--arch", "arm64"], 2, &["arm64"]);
    fails(&["selftest", "dirty_log_test", "-M", "dirty-ring", "-c", "100", "-b", "2MiB"], 2, &["-c"]);
    fails(&["selftest", "no_such_test"], 2, &["no_such_test"]);
    fails(&["selftest"], 2, &["--list"]);
}

#[test]
fn a_run_can_be_recorded() {
    let scratch = Scratch::new("recorded");
    let (events, timeline) = (scratch.path("events.jsonl"), scratch.path("timeline.json"));
    data(&[&TEST[..], &["--arch", "x86", "--events", &events, "--timeline", &timeline]].concat());
    let lines = std::fs::read_to_string(&events).unwrap();
    assert!(lines.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
    let names = [
        "kvm_page_fault",
        "kvm_tdp_mmu_spte_changed",
        "kvm_mmu_spte_requested",
        "kvm_entry",
        "kvm_exit",
        "sim_lock_held",
    ];
    for name in names {
        assert!(lines.contains(&format!("\"event\":\"{name}\"")), "no {name}");
    }
    let document: Value = serde_json::from_str(&std::fs::read_to_string(&timeline).unwrap()).unwrap();
    assert!(document["traceEvents"].as_array().unwrap().len() > 100);
}
