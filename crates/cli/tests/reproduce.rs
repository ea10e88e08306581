//! `mmusim reproduce` and `mmusim validation` from outside.

mod common;

use common::{Scratch, data, fails};
use serde_json::Value;

#[test]
fn the_experiments_are_listed() {
    let text = data(&["reproduce", "LIST"]);
    for id in ["R1", "R5", "R9"] {
        assert!(text.contains(id), "{text}");
    }
}

#[test]
fn a_reproduction_says_both_ratios_and_where_the_time_went() {
    let scratch = Scratch::new("reproduce");
    let plots = scratch.path("plots");
    let text = data(&["reproduce", "R7", "--scale", "64", "--json", "--svg", &plots]);
    let json: Value = serde_json::from_str(&text).unwrap();
    let rows = json["experiments"][0]["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    for row in rows {
        let published = row["published_ratio"].as_f64().unwrap();
        let simulated = row["simulated_ratio"].as_f64().unwrap();
        assert!(published > 4.0 && simulated > 1.5, "{row}");
        assert!(row["times"][0]["flushes"].as_f64().unwrap() > row["times"][1]["flushes"].as_f64().unwrap(), "{row}");
    }
    let svg = std::fs::read_to_string(format!("{plots}/r7-unmap.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("simulated, after"));
}

#[test]
fn cases_nobody_published_are_run_too() {
    let args = ["reproduce", "r9", "--vcpus", "2", "--size", "16MiB", "--scale", "1", "--csv"];
    let csv = data(&args);
    assert_eq!(csv.lines().count(), 2, "{csv}");
    assert!(csv.lines().nth(1).unwrap().starts_with("R9,arm-neoverse-n1,dirty memory,s,2,16777216,1,,,"), "{csv}");
    assert_eq!(data(&args), csv);
}

#[test]
fn a_report_without_reproductions_is_the_same_every_day() {
    let text = data(&["validation", "--no-reproductions"]);
    assert!(
        text.contains(
            "| intel-granite-rapids-host | 4 levels | 5 levels | 4K over 4K | 29, 4 of the guest's | 29 | equal |"
        ),
        "{text}"
    );
    assert!(text.contains("| 64x4 | 1536x12 | 4K | 100000 | 50579, 49421 | 15219, 34202 |"), "{text}");
    assert!(!text.contains("different") && !text.contains("Date:"), "{text}");
    assert!(data(&["validation", "--no-reproductions", "--date", "2026-01-01"]).contains("Date: 2026-01-01."));
}

#[test]
fn a_report_shows_curves_and_their_plots() {
    let scratch = Scratch::new("validation");
    let [csv, report, plots] = ["own.csv", "report.md", "plots"].map(|name| scratch.path(name));
    let rows = "bench,variant,n,unit,ns_median,core_cycles_median\nchase,dense4k,8,per_load,1.28,5\nchase,dense4k,64,per_load,1.28,5\n\
                chase,dense4k,256,per_load,3.1,10\n";
    std::fs::write(&csv, rows).unwrap();
    data(&["validation", "--no-reproductions", "--against", &csv, "--svg", &plots, "--output", &report]);
    let text = std::fs::read_to_string(&report).unwrap();
    assert!(text.contains("| A | 3 | 6.67 % | 20.00 % | 2.00 % |"), "{text}");
    assert!(text.contains("![curves chase](plots/curves-chase.svg)"), "{text}");
    let svg = std::fs::read_to_string(format!("{plots}/curves-chase.svg")).unwrap();
    assert!(svg.contains("dense4k, predicted"), "{svg}");
    fails(&["validation", "--leave-out"], 2, &["--against"]);
}

#[test]
fn bad_input_is_refused() {
    fails(&["reproduce"], 2, &["LIST"]);
    fails(&["reproduce", "R10"], 2, &["R10", "known are R1 to R9"]);
    fails(&["reproduce", "R4", "--machine", "arm-neoverse-n1"], 2, &["R4", "arm64"]);
    fails(&["validation", "--against", "nowhere.csv"], 2, &["nowhere.csv", "cannot read"]);
}
