//! The other commands from outside.

mod common;

use common::{Scratch, data, fails, mmusim, talk};

#[test]
fn help_lists_commands_and_exit_codes() {
    for args in [
        &["--help"][..],
        &["compare", "zap", "--help"],
        &["check-vectors", "--help"],
        &["trace", "info", "--help"],
        &["tlb", "--help"],
    ] {
        let help = data(args);
        assert!(help.contains("Exit codes:") && help.contains("2  bad usage or bad input"), "{args:?}: {help}");
    }
    assert!(data(&["--version"]).starts_with("mmusim "));
    let nothing = mmusim(&[]);
    assert_eq!((nothing.status.code(), nothing.stdout.len()), (Some(2), 0));
    fails(&["compare", "zip"], 2, &["zip"]);
    fails(&["--nonsense"], 2, &["--nonsense"]);
}

#[test]
fn the_recorded_vectors_agree() {
    let files = ["crates/vectors/data/x86-ept.jsonl.xz", "crates/vectors/data/arm64-sample.jsonl.xz"];
    let text = data(&["check-vectors", files[0], files[1]]);
    assert!(text.contains(files[0]) && text.contains("disagreeing"), "{text}");
    let json: serde_json::Value = serde_json::from_str(&data(&["check-vectors", "--json", files[0]])).unwrap();
    assert_eq!(json["passed"], true);
    let file = &json["files"][0];
    assert_eq!(file["cases"], file["agreeing"]);
}

#[test]
fn a_wrong_answer_is_found_and_explained() {
    let scratch = Scratch::new("vectors");
    let file = scratch.path("wrong.jsonl");
    // One guest-physical page that is not mapped at all, recorded as if it were.
    let image = concat!(
        r#"{"arch":"x86-ept","image":"i0","config":{"MAXPHYADDR":40,"IA32_VMX_EPT_VPID_CAP":"0xf0106334141","EPTP":"0x101e"},"#,
        r#""memory":[],"cases":[{"access":{"gpa":"0x1000","kind":"r","via":"load"},"result":{"pa":"0x5000"}}]}"#
    );
    std::fs::write(&file, image).unwrap();
    let output = mmusim(&["check-vectors", &file]);
    let said = talk(&output);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}{said}");
    assert!(text.contains("expected") && text.contains("got"), "{text}");
    assert!(said.contains("1 cases disagree"), "{said}");
}

#[test]
fn files_that_hold_no_vectors_are_bad_input() {
    let scratch = Scratch::new("novectors");
    let file = scratch.path("bad.jsonl");
    std::fs::write(&file, "{\"arch\":\"vax\"}\n").unwrap();
    let output = mmusim(&["check-vectors", &file, "gone.jsonl"]);
    let said = talk(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("bad.jsonl: line 1: unknown arch `vax`") && said.contains("gone.jsonl"), "{said}");
}

#[test]
fn matrices_are_checked_by_their_sections() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../vectors/data/ppc-radix-matrix.json.xz");
    let json: serde_json::Value = serde_json::from_str(&data(&["check-matrix", "--json", file])).unwrap();
    assert_eq!((&json["passed"], &json["files"][0]["agreeing"]), (&true.into(), &315.into()));
    let output = mmusim(&["check-matrix", "gone.json"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn traces_are_summed_up_and_converted() {
    let scratch = Scratch::new("traces");
    let part = scratch.path("part.mmut.gz");
    let output = mmusim(&["trace", "convert", "--skip", "1000", "--take", "5000", "traces/sqlite3.mmut.zst", &part]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0), "{}", talk(&output));
    assert!(talk(&output).contains("5000 records"));
    let text = data(&["trace", "info", &part]);
    assert!(text.contains("mmut (gz)") && text.contains("records      5000"), "{text}");
    let json: serde_json::Value = serde_json::from_str(&data(&["trace", "info", &part, "--json"])).unwrap();
    assert_eq!((&json["records"], &json["format"]), (&5000.into(), &"mmut".into()));

    let stores = scratch.path("data.lackey");
    assert_eq!(mmusim(&["trace", "convert", &part, &stores, "--select", "data"]).status.code(), Some(0));
    let json: serde_json::Value = serde_json::from_str(&data(&["trace", "info", &stores, "--json"])).unwrap();
    assert_eq!(json["fetches"], 0);
}

#[test]
fn traces_that_cannot_be_read_or_written_are_bad_input() {
    let scratch = Scratch::new("badtraces");
    let file = scratch.path("noise");
    std::fs::write(&file, "noise\n").unwrap();
    fails(&["trace", "info", &file], 2, &["noise", "name the format"]);
    fails(&["trace", "info", "gone.mmut"], 2, &["gone.mmut", "check the path"]);
    fails(&["trace", "info", "traces/sqlite3.mmut.zst", "--from", "vax"], 2, &["vax", "lackey"]);
    fails(
        &["trace", "convert", "traces/sqlite3.mmut.zst", &scratch.path("x.champsim")],
        2,
        &["can be read but not written"],
    );
    assert_eq!(std::fs::read_dir(&scratch.0).unwrap().count(), 1, "a failed conversion leaves nothing");
}

#[test]
fn machines_are_listed_shown_and_checked() {
    let list = data(&["machine", "list"]);
    let json: serde_json::Value = serde_json::from_str(&data(&["machine", "list", "--json"])).unwrap();
    for (name, machine) in mmusim::Machine::names().zip(json["machines"].as_array().unwrap()) {
        assert!(list.contains(name), "{list}");
        assert_eq!(machine["name"], name);
        assert_eq!(data(&["machine", "show", name]), mmusim::Machine::sheet(name).unwrap());
    }
    assert!(data(&["machine", "check", "machines/ibm-power9.toml"]).contains("fine: ibm-power9, power"));
    fails(&["machine", "show", "vax"], 2, &["known are", "arm-neoverse-n1"]);
}

#[test]
fn every_defect_of_every_sheet_is_shown() {
    let scratch = Scratch::new("sheets");
    let (one, two) = (scratch.path("one.toml"), scratch.path("two.toml"));
    let sheet = mmusim::Machine::sheet("ibm-power9").unwrap();
    std::fs::write(
        &one,
        sheet.replace("clock_ghz = 3.8", "clock_ghz = 380").replace("line_bytes = 128", "line_bytes = 100"),
    )
    .unwrap();
    std::fs::write(&two, "name = ").unwrap();
    let words = ["one.toml:", "clock_ghz = 380", "line_bytes = 100", "two.toml:1:", "gone.toml: cannot read"];
    fails(&["machine", "check", &one, &two, "gone.toml"], 2, &words);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_incomplete_run() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_mmusim"));
    let output = command.args(["machine", "list"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", talk(&output));
    assert!(talk(&output).contains("cannot write"));
}

#[test]
fn litmus_tests_run_in_the_timed_engine() {
    let files = ["crates/explore/data/curated.json.xz", "crates/explore/data/own.json"];
    let on = |threads| data(&["litmus", "--timed", "--seeds", "5", "--threads", threads, "--json", files[0], files[1]]);
    let text = on("1");
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&json["passed"], &json["violations"], &json["seeds"]), (&true.into(), &0.into(), &5.into()));
    assert_eq!(json["files"][0]["tests"].as_array().unwrap().len(), 65);
    assert_eq!(json["files"][1]["classes"][0]["executions"], 15);
    assert_eq!(on("4"), text);
    let table = data(&["litmus", "--timed", "--seeds", "2", files[1]]);
    assert!(table.contains("ASID-switch") && table.contains("holds"), "{table}");
    fails(&["litmus", "--seeds", "5", files[1]], 2, &["--timed"]);
    fails(&["litmus", "--timed", "--seeds", "0", files[1]], 2, &["--seeds"]);
}

/// What the engine does is called forbidden: the program says which test, which seed, and ends with 1.
#[test]
fn a_forbidden_outcome_in_the_timed_engine_is_reported_with_its_seed() {
    let scratch = Scratch::new("timed-litmus");
    let file = scratch.path("wrong.json");
    let test = r#"{"tests": [{"id": "stale", "use": "must_not_observe",
        "init": {"memory": {"p": 7}, "stage1": {"x": {"map": "p"}}},
        "threads": [{"privilege": "el1", "on_fault": "stop", "ops": [
            {"op": "write", "to": {"pte1": "x"}, "value": {"valid": 0}},
            {"op": "read", "from": {"va": "x"}, "reg": "r0"}]}],
        "final": {"quantifier": "exists", "condition": ["reg", 0, "r0", 7]}}]}"#;
    std::fs::write(&file, test).unwrap();
    let output = mmusim(&["litmus", "--timed", "--seeds", "20", &file]);
    assert_eq!(output.status.code(), Some(1), "{}", talk(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("FAILS") && text.contains("first with seed"), "{text}");
}
