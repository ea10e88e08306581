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
