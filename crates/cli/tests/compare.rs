//! `mmusim compare zap` from outside.

mod common;

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use common::{Scratch, data, fails, mmusim, root, talk};

/// Options of a guest small enough for tests.
const SMALL: [&str; 10] =
    ["compare", "zap", "--memory", "8MiB", "--vcpus", "2", "--accesses", "2000", "--warm-up", "5000"];

fn small(more: &[&'static str]) -> Vec<&'static str> {
    SMALL.iter().chain(more).copied().collect()
}

#[test]
fn one_table_per_architecture_under_what_was_run() {
    let text = data(&small(&[]));
    for word in [
        "x86 on intel-granite-rapids-host at 3.90 GHz",
        "arm64 on arm-neoverse-n1",
        "power on ibm-power9",
        "8MiB in pages of 4K, 4 levels; 2 vCPUs",
        "8MiB in pages of 64K",
        "2000 accesses of traces/sqlite3.mmut.zst per vCPU; seed 1",
        "zap after 5000 cycles of warm-up",
        "range of 2MiB",
        "whole root",
    ] {
        assert!(text.contains(word), "no {word:?} in\n{text}");
    }
    assert_eq!(text.matches("never yields").count(), 3, "{text}");
}

#[test]
fn json_holds_versions_seed_configuration_and_every_row() {
    let json: serde_json::Value = serde_json::from_str(&data(&small(&["--json", "--seed", "7"]))).unwrap();
    assert_eq!((&json["schema_version"], &json["seed"]), (&1.into(), &7.into()));
    assert!(json["versions"]["mmusim"].is_string());
    let runs = json["runs"].as_array().unwrap();
    assert_eq!(
        runs.iter().map(|run| run["report"]["arch"].as_str().unwrap()).collect::<Vec<_>>(),
        ["x86", "arm64", "power"]
    );
    for run in runs {
        assert_eq!(run["configuration"]["memory_bytes"], 8 << 20);
        assert_eq!(run["configuration"]["workload"]["file"], "traces/sqlite3.mmut.zst");
        let rows = run["report"]["rows"].as_array().unwrap();
        assert_eq!(rows.len(), mmusim::strategies().len());
        for row in rows {
            assert!(row["zap_cycles"].as_u64().unwrap() > 0, "{row}");
            assert!(row["entries_visited"].as_u64().unwrap() > 0, "{row}");
        }
    }
}

#[test]
fn csv_has_named_columns_with_units_and_a_line_per_strategy() {
    let csv = data(&small(&["--csv", "--arch", "arm64", "--workload", "uniform", "--working-set", "1MiB"]));
    let mut lines = csv.lines();
    let columns: Vec<&str> = lines.next().unwrap().split(',').collect();
    for wanted in
        ["schema_version", "arch", "seed", "cfg_memory_bytes", "zap_cycles", "lost_p99_cycles", "lock_wait_cycles"]
    {
        assert!(columns.contains(&wanted), "{columns:?}");
    }
    assert!(columns.iter().all(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')));
    assert_eq!(lines.clone().count(), mmusim::strategies().len());
    assert!(lines.all(|line| line.contains(",arm64,arm-neoverse-n1,")));
}

#[test]
fn the_same_bytes_for_any_number_of_threads() {
    let with = |threads| data(&small(&["--json", "--threads", threads]));
    assert_eq!(with("1"), with("2"));
    let other_seed =
        data(&small(&["--csv", "--arch", "x86", "--workload", "zipf", "--working-set", "1MiB", "--seed", "2"]));
    let seed = data(&small(&["--csv", "--arch", "x86", "--workload", "zipf", "--working-set", "1MiB", "--seed", "3"]));
    assert_ne!(seed, other_seed);
}

#[test]
fn every_synthetic_workload_runs() {
    for kind in ["sequential", "strided", "uniform", "zipf", "chase", "idle"] {
        let mut args = small(&["--arch", "power", "--csv", "--working-set", "1MiB", "--workload"]);
        args.push(kind);
        assert!(data(&args).contains(kind), "{kind}");
    }
    let flat = data(&small(&["--arch", "x86", "--guest-page", "flat", "--working-set", "1MiB", "--range", "4MiB"]));
    assert!(flat.contains("no tables of its own") && flat.contains("zipf"), "{flat}");
}

#[test]
fn a_report_can_go_to_a_file() {
    let scratch = Scratch::new("output");
    let file = scratch.path("report.json");
    let output = mmusim(&[&small(&["--arch", "x86", "--json", "--output"])[..], &[&file]].concat());
    assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0), "{}", talk(&output));
    serde_json::from_str::<serde_json::Value>(&std::fs::read_to_string(file).unwrap()).unwrap();
    assert_eq!(std::fs::read_dir(&scratch.0).unwrap().count(), 1);
}

#[test]
fn silence_where_there_is_no_terminal_but_a_note_about_a_missing_trace() {
    assert_eq!(talk(&mmusim(&small(&["--arch", "x86"]))), "");
    let scratch = Scratch::new("elsewhere");
    let mut elsewhere = Command::new(env!("CARGO_BIN_EXE_mmusim"));
    let args = small(&["--arch", "x86", "--working-set", "1MiB"]);
    let output = elsewhere.args(args).current_dir(&scratch.0).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(talk(&output).starts_with("note: no traces/sqlite3.mmut.zst here"), "{}", talk(&output));
}

#[test]
fn bad_arguments_name_themselves_and_the_remedy() {
    let cases: [(&[&str], &[&str]); 18] = [
        (&["--vcpus", "0"], &["--vcpus", "1..=4096"]),
        (&["--memory", "5000"], &["--memory 5000B", "multiple of the page size 4K"]),
        (&["--memory", "0"], &["--memory", "multiple"]),
        (&["--memory", "lots"], &["--memory", "lots", "1GiB"]),
        (&["--memory", "8191PiB"], &["--memory", "use less memory"]),
        (&["--arch", "x86", "--range", "64MiB", "--memory", "8MiB"], &["--range 64MiB", "8MiB", "zap less"]),
        (&["--range", "0"], &["--range", "positive multiple of the page size"]),
        (&["--arch", "x86", "--range", "1000"], &["--range 1000B", "4K"]),
        (&["--machine", "intel-granit-rapids-host"], &["--machine intel-granit", "did you mean", "arm-neoverse-n1"]),
        (&["--machine", "gone.toml"], &["gone.toml", "cannot read"]),
        (&["--machine", "ibm-power9", "--arch", "x86"], &["--arch", "leave --arch out"]),
        (&["--arch", "vax"], &["vax", "x86", "arm64", "power"]),
        (&["--page-size", "3K"], &["--page-size", "power of two"]),
        (&["--page-size", "16K", "--arch", "x86"], &["--page-size 16K", "choose one of 4K, 2M, 1G"]),
        (&["--guest-page", "16K", "--arch", "x86"], &["--guest-page 16K", "choose one of"]),
        (&["--trace", "gone.mmut"], &["gone.mmut", "check the path"]),
        (&["--guest-page", "flat", "--trace", "traces/sqlite3.mmut.zst"], &["--guest-page flat", "virtual addresses"]),
        (&["--memory", "8MiB", "--workload", "zipf", "--working-set", "1GiB"], &["--working-set 1GiB", "2MiB"]),
    ];
    for (case, words) in cases {
        fails(&[&["compare", "zap"], case].concat(), 2, words);
    }
    fails(&["compare", "zap", "--json", "--csv"], 2, &["cannot be used with"]);
    fails(
        &["compare", "zap", "--output", "no/such/dir/x", "--arch", "x86"],
        2,
        &["--output no/such/dir/x", "directory"],
    );
}

#[test]
fn a_guest_without_room_for_its_trace_is_told_so() {
    let args = ["compare", "zap", "--arch", "power", "--memory", "8MiB", "--vcpus", "4", "--accesses", "4000000"];
    fails(&args, 2, &["used up", "give the guest more memory"]);
}

#[test]
fn a_cut_trace_names_file_and_place() {
    let scratch = Scratch::new("cut");
    let whole = std::fs::read(root().join("traces/sqlite3.mmut.zst")).unwrap();
    let cut = scratch.path("cut.mmut.zst");
    std::fs::write(&cut, &whole[..whole.len() / 100]).unwrap();
    let args = ["compare", "zap", "--arch", "x86", "--memory", "64MiB", "--accesses", "1000000", "--trace", &cut];
    fails(&args, 2, &["cut.mmut.zst", "byte", "damaged or cut zst data"]);
}

#[test]
fn defects_of_a_sheet_are_drawn_under_their_line() {
    let scratch = Scratch::new("sheet");
    let file = scratch.path("mine.toml");
    let sheet = mmusim::Machine::sheet("arm-neoverse-n1").unwrap().replace("granule = \"4K\"", "granule = \"5K\"");
    std::fs::write(&file, sheet).unwrap();
    for args in [&["compare", "zap", "--machine", &file][..], &["machine", "check", &file]] {
        fails(args, 2, &["mine.toml:", "granule = \"5K\"", "^^^^", "help: "]);
    }
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_mmusim"))
        .args(small(&[]))
        .current_dir(root())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::with_capacity(64, child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("x86 on "), "{line}");
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!((child.wait().unwrap().code(), said.as_str()), (Some(0), ""));
}
