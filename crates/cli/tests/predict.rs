//! `mmusim predict` from outside.

mod common;

use common::{Scratch, data, fails};
use serde_json::Value;

#[test]
fn a_curve_is_written_as_table_json_and_csv() {
    let args = ["predict", "--curve", "dense4k", "--points", "8,256"];
    let table = data(&args);
    let starts = |line: &str| line.split_whitespace().take(3).eq(["dense4k", "256", "12.00"]);
    assert!(table.lines().any(starts), "{table}");
    let json: Value = serde_json::from_str(&data(&[&args[..], &["--json"]].concat())).unwrap();
    assert_eq!(json["points"][1]["cycles"], 12.0);
    assert_eq!(json["points"][1]["events"]["l1_tlb_misses"], 1.0);
    let csv = data(&[&args[..], &["--csv"]].concat());
    assert!(csv.starts_with("curve,n,core_cycles,ns,") && csv.lines().count() == 3, "{csv}");
}

#[test]
fn every_machine_predicts() {
    for machine in ["arm-neoverse-n1", "ibm-power9", "amd-zen3", "arm-cortex-a72"] {
        let small: Value = serde_json::from_str(&data(&[
            "predict",
            "--machine",
            machine,
            "--curve",
            "dense4k",
            "--points",
            "4096",
            "--json",
        ]))
        .unwrap();
        assert!(small["points"][0]["cycles"].as_f64().unwrap() > 10.0, "{machine}: {small}");
    }
}

#[test]
fn predictions_are_scored_and_rows_that_nobody_knows_are_named() {
    let scratch = Scratch::new("predict");
    let file = scratch.path("measured.csv");
    let rows = "bench,variant,n,unit,ns_median,core_cycles_median\nchase,dense4k,8,per_load,1.28,5\nchase,dense4k,256,per_load,\
                3.1,10\nmagic,wand,1,per_wave,1,1\n";
    std::fs::write(&file, rows).unwrap();
    let text = data(&["predict", "--against", &file]);
    assert!(text.contains("A: at most 1,024 pages        2      10.00 %   20.00 %   2.00 %"), "{text}");
    assert!(text.contains("not predicted: wand"));
    let json: Value = serde_json::from_str(&data(&["predict", "--against", &file, "--json"])).unwrap();
    assert_eq!(json["bands"]["A"]["points"], 2);
    assert_eq!(json["not_predicted"][0]["curve"], "wand");
}

#[test]
fn bad_input_is_refused() {
    fails(&["predict"], 2, &["--curve", "--against"]);
    fails(&["predict", "--curve", "dense4k"], 2, &["--points"]);
    fails(&["predict", "--curve", "dance4k", "--points", "8"], 2, &["--curve dance4k", "known are"]);
    fails(&["predict", "--curve", "dense4k", "--points", "0"], 2, &["0"]);
    fails(&["predict", "--curve", "dense4k", "--points", "99999999999"], 2, &["--points", "points go from 1 to"]);
    fails(&["predict", "--against", "no-such-file.csv"], 2, &["cannot read", "no-such-file.csv"]);
    fails(&["predict", "--against", "README.md"], 2, &["README.md", "columns"]);
    fails(&["predict", "--machine", "pdp11", "--curve", "dense4k", "--points", "8"], 2, &["pdp11"]);
}

/// Points of predicted curves, as a file of measurements.
fn measured(curves: &[(&str, &str)]) -> String {
    let mut text = "bench,variant,n,unit,ns_median,core_cycles_median\n".to_owned();
    for (curve, points) in curves {
        let csv = data(&["predict", "--curve", curve, "--points", points, "--csv"]);
        for line in csv.lines().skip(1) {
            let cells: Vec<&str> = line.split(',').collect();
            text += &["chase", cells[0], cells[1], "per_load", cells[3], cells[2]].join(",");
            text.push('\n');
        }
    }
    text
}

#[test]
fn a_machine_calibrated_by_its_own_curves_is_the_same_machine() {
    let scratch = Scratch::new("calibrate");
    let [csv, toml] = ["own.csv", "own.toml"].map(|name| scratch.path(name));
    let curves = [("zero4k", "8,16,32,48,64,96,104,192,256,384"), ("packed64_thp", "8,64,256,2048,8192")];
    std::fs::write(&csv, measured(&curves)).unwrap();
    let args = ["machine", "calibrate", "--from", &csv, "--base", "intel-granite-rapids-host", "--output", &toml];
    let output = common::mmusim(&args);
    let said = common::talk(&output);
    assert!(output.status.success() && output.stdout.is_empty(), "{said}");
    for wanted in [
        "set   clock_ghz: 3.9 -> 3.90",
        "set   cache.l1d.latency_cycles: as it was, 5",
        "set   cache.l2.latency_cycles: as it was, 16",
        "set   tlb.l2_hit_extra_cycles: as it was, 7",
        "set   tlb.l1d-4k.entries: as it was, 96",
        "left  cost.guest_fault_ns: anon4k_first_write was not measured",
        "left  tlb.l2: ",
    ] {
        assert!(said.contains(wanted), "no {wanted:?} in {said}");
    }
    let point =
        |machine: &str| data(&["predict", "--machine", machine, "--curve", "dense4k", "--points", "512", "--csv"]);
    assert_eq!(point(&toml), point("intel-granite-rapids-host"));
    fails(&["machine", "calibrate", "--from", &toml, "--base", "ibm-power9"], 2, &["own.toml", "file of measurements"]);
    fails(&["machine", "calibrate", "--from", &csv, "--base", "ibm-power99"], 2, &["--base ibm-power99"]);
}

#[test]
fn families_are_left_out_one_after_the_other() {
    let scratch = Scratch::new("leave-out");
    let [csv, toml] = ["own.csv", "own.toml"].map(|name| scratch.path(name));
    let curves = [("zero4k", "8,48,256,2048"), ("packed64_thp", "8,256,2048"), ("munmap_1t", "1,33,64,512")];
    std::fs::write(&csv, measured(&curves).replace("chase,munmap", "shoot,munmap")).unwrap();
    let json: Value = serde_json::from_str(&data(&["predict", "--against", &csv, "--leave-out", "--json"])).unwrap();
    let families: Vec<&str> = json["cross_validation"]["families"]
        .as_array()
        .unwrap()
        .iter()
        .map(|family| family["family"].as_str().unwrap())
        .collect();
    assert_eq!(
        families,
        ["lines 64 bytes apart, 2M", "one frame, 4K", "shootdowns, all at once", "shootdowns, page by page"]
    );
    assert_eq!(json["bands"]["A"]["left_out"]["points"], 6);
    let table = data(&["predict", "--against", &csv, "--leave-out"]);
    assert!(table.contains("walk.reference_cycles") && table.contains("said by nothing else"), "{table}");
    let args =
        ["machine", "calibrate", "--search", "--from", &csv, "--base", "intel-granite-rapids-host", "--output", &toml];
    let output = common::mmusim(&args);
    let said = common::talk(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("set   walk.reference_cycles: ") && said.contains("(found by search"), "{said}");
    assert!(said.contains("left  fetch.beyond_cycles: no row says it"), "{said}");
    assert!(said.contains("left  cache.l3.kib: no row says it"), "{said}");
    assert!(data(&["machine", "check", &toml]).contains("fine"));
    fails(
        &["predict", "--curve", "dense4k", "--points", "8", "--leave-out"],
        2,
        &["--leave-out", "cannot be used with"],
    );
}
