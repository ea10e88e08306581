//! `mmusim report` from outside: every command's document makes a page.

mod common;

use common::{Scratch, data, fails, mmusim};

/// Runs a command that writes a document into a file, and makes a page of it.
fn page_of(scratch: &Scratch, name: &str, args: &[&str]) -> String {
    let file = scratch.path(name);
    std::fs::write(&file, data(args)).unwrap();
    data(&["report", &file])
}

#[test]
fn a_comparison_and_its_recordings_are_one_page_that_loads_nothing() {
    let scratch = Scratch::new("report-zap");
    let [json, timeline, events, html] = ["z.json", "t.json", "e.jsonl", "z.html"].map(|name| scratch.path(name));
    let args = [
        "compare",
        "zap",
        "--arch",
        "x86",
        "--memory",
        "8MiB",
        "--vcpus",
        "2",
        "--accesses",
        "2000",
        "--warm-up",
        "5000",
        "--json",
        "--threads",
        "1",
        "--output",
        &json,
        "--timeline",
        &timeline,
        "--events",
        &events,
    ];
    assert_eq!(data(&args), "");
    assert_eq!(data(&["report", &json, &timeline, &events, "--title", "Zaps", "--output", &html]), "");
    let page = std::fs::read_to_string(&html).unwrap();
    let command = "mmusim compare zap --arch x86 --memory 8MiB --vcpus 2 --accesses 2000 --warm-up 5000 --json</pre>";
    assert_eq!(page.matches(command).count(), 2, "the comparison and its timeline say how they were made");
    for wanted in [
        "<h1>Zaps</h1>",
        "z.json",
        "seed 1",
        "intel-granite-rapids-host",
        "4K-2M-1G-root, no flush, read lock (6.9)",
        "vcpu 1",
    ] {
        assert!(page.contains(wanted), "no {wanted:?}");
    }
    let bars = mmusim::strategies().len();
    assert_eq!(page.matches("class=\"bar\"").count(), bars);
    for forbidden in ["<script", "http://", "https://", scratch.0.to_str().unwrap()] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
}

#[test]
fn every_other_document_makes_a_page() {
    let scratch = Scratch::new("report-all");
    let of = |name: &str, args: &[&str], wanted: &[&str]| {
        let page = page_of(&scratch, name, args);
        for wanted in wanted {
            assert!(page.contains(wanted), "{args:?}: no {wanted:?} in {page}");
        }
    };
    let run = [
        "run",
        "--arch",
        "power",
        "--workload",
        "uniform",
        "--memory",
        "8MiB",
        "--working-set",
        "1MiB",
        "--accesses",
        "500",
        "--json",
    ];
    of("run.json", &run, &["mmusim run --accesses 500 --arch power", "ibm-power9", "When each vCPU finished"]);
    let test = ["selftest", "demand_paging_test", "--arch", "arm64", "-b", "1MiB", "-v", "2", "--json"];
    of(
        "selftest.json",
        &test,
        &[
            "demand_paging_test",
            "mmusim selftest demand_paging_test --arch arm64 -b 1MiB -v 2 --json",
            "Simulated time of each phase",
        ],
    );
    of(
        "reproduce.json",
        &["reproduce", "R7", "--scale", "64", "--json"],
        &["mmusim reproduce R7 --scale 64 --json", "Ratio, before to after"],
    );
    of(
        "curve.json",
        &["predict", "--curve", "dense4k", "--points", "8,256", "--json"],
        &["cycles per access: 12 at 256", "seed 1"],
    );
    let measured = scratch.path("measured.csv");
    let rows = "bench,variant,n,unit,ns_median,core_cycles_median\nchase,dense4k,8,per_load,1.28,5\nchase,dense4k,256,per_load,3.1,10\n";
    std::fs::write(&measured, rows).unwrap();
    of(
        "score.json",
        &["predict", "--against", &measured, "--json"],
        &["Error by band", "measured: measured.csv", "<td class=\"n\">2.0 %</td>"],
    );
}

#[test]
fn a_merged_sweep_makes_a_page() {
    let scratch = Scratch::new("report-sweep");
    let [spec, plan, merged] = ["s.toml", "plan", "m.jsonl"].map(|name| scratch.path(name));
    let text = "schema = 1\nname = \"s\"\n[[experiment]]\ncommand = \"compare zap\"\n\
                with = { arch = \"x86\", memory = \"8MiB\", workload = \"uniform\", working_set = \"1MiB\", accesses = 500 }\nover.vcpus = [1, 2]\n";
    std::fs::write(&spec, text).unwrap();
    for args in [
        &["sweep", "plan", &spec, "-o", &plan][..],
        &["sweep", "run", &plan],
        &["sweep", "merge", &plan, "-o", &merged],
    ] {
        let output = mmusim(args);
        assert!(output.status.success(), "{args:?}: {}", common::talk(&output));
    }
    let page = data(&["report", &merged]);
    assert!(page.contains("mmusim compare zap") && page.contains("never yields") && page.contains("20 rows"), "{page}");
}

#[test]
fn files_that_are_none_are_refused_by_name() {
    let scratch = Scratch::new("report-bad");
    let [none, text, binary] = ["none.json", "text.json", "binary.json"].map(|name| scratch.path(name));
    std::fs::write(&text, "{\"experiment\": \"lunch\"}").unwrap();
    std::fs::write(&binary, [0xff, 0xfe]).unwrap();
    fails(&["report", &none], 2, &["none.json: cannot read", "--json"]);
    fails(&["report", &text], 2, &["text.json: ", "`mmusim compare zap --json`"]);
    fails(&["report", &binary], 2, &["binary.json: byte 0 is no UTF-8", "--json"]);
    fails(&["report"], 2, &["FILE.json"]);
}
