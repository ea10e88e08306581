//! `explore` from outside.

mod common;

use common::{Scratch, data, fails, mmusim, talk};
use mmusim::sim::MODEL_VERSION;
use mmusim::sim::explore::{Actors, Invariant, ReplayFile};

fn json(args: &[&str]) -> serde_json::Value {
    serde_json::from_str(&data(args)).unwrap()
}

#[test]
fn the_list_names_scenarios_where_they_run_and_strategies() {
    let text = data(&["explore", "--list"]);
    for word in ["X20", "x86 arm64 power", "exhaustive", "delays:N", "coverage", "portfolio"] {
        assert!(text.contains(word), "no {word}: {text}");
    }
    let list = json(&["explore", "--list", "--json"]);
    assert!(list["strategies"].as_array().unwrap().len() >= 10);
    let x26 = list["scenarios"].as_array().unwrap().iter().find(|row| row["id"] == "X26").unwrap();
    assert_eq!(x26["runs_on"], serde_json::json!(["x86"]));
}

#[test]
fn an_exhaustive_search_says_how_many_states_and_is_the_same_on_any_number_of_threads() {
    let run = |threads| json(&["explore", "A03", "--strategy", "exhaustive", "--threads", threads, "--json"]);
    let one = run("1");
    assert_eq!(one["verdict"], "proved");
    assert!(one["states"].as_u64().unwrap() > 0 && one["endings"].as_u64().unwrap() > 0, "{one}");
    assert_eq!(one, run("2"));
    assert_eq!(one, run("5"));
}

#[test]
fn architectures_are_chosen_where_that_means_something() {
    let text = data(&["explore", "G13", "--arch", "power", "--schedules", "200"]);
    assert!(text.contains("passed") || text.contains("proved"), "{text}");
    fails(&["explore", "X26", "--arch", "arm64"], 2, &["X26 means nothing there", "x86 only"]);
    fails(&["explore", "X26", "--arch", "vax"], 2, &["use x86, arm64 or power"]);
    fails(&["explore", "X20", "--store-failures", "1"], 2, &["x86", "only if the word is another"]);
    data(&["explore", "G13", "--arch", "arm64", "--store-failures", "2", "--schedules", "200"]);
}

#[test]
fn a_failure_on_another_architecture_is_saved_replayed_and_gone_on_from() {
    let scratch = Scratch::new("explore");
    let file = scratch.path("g13.replay");
    let found = mmusim(&["explore", "G13", "--bug", "G13", "--arch", "arm64", "--save", &file]);
    assert_eq!(found.status.code(), Some(1), "{}", talk(&found));
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("\narch arm64\n"), "{text}");
    let again = mmusim(&["explore", "--replay", &file]);
    assert_eq!(again.status.code(), Some(1), "{}", talk(&again));
    assert!(talk(&again).contains("O1") || talk(&again).contains("T1"), "{}", talk(&again));
    std::fs::write(&file, text.replace("arch arm64", "arch power")).unwrap();
    fails(&["explore", "--replay", &file], 2, &["checksum"]);
    let file = scratch.path("x20.replay");
    mmusim(&["explore", "X20", "--bug", "X20", "--save", &file]);
    let on = mmusim(&["explore", "X20", "--bug", "X20", "--continue", &file, "--schedules", "50"]);
    assert_eq!(on.status.code(), Some(1), "{}", talk(&on));
}

#[test]
fn arm_executions_are_written_as_traces_that_the_lint_accepts() {
    let scratch = Scratch::new("casemate");
    let file = scratch.path("a01.json");
    data(&["explore", "A01", "--schedules", "50", "--casemate", &file]);
    let verdict = data(&["lint", &file]);
    assert!(verdict.contains("A01 0") && !verdict.contains("DISAGREES"), "{verdict}");
    fails(&["explore", "X20", "--schedules", "5", "--casemate", &file], 2, &["Arm's tables", "x86"]);
}

#[test]
fn whatever_nobody_notices_has_a_reason() {
    let output = mmusim(&["explore", "--mutants", "--schedules", "300"]);
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", talk(&output));
    assert!(text.contains("why nobody notices") && !text.contains("NOT EXPLAINED"), "{text}");
}

#[test]
fn protocols_in_pairs_are_a_table_and_each_pair_has_a_name() {
    let text = data(&["explore", "--pairs", "--arch", "arm64", "--schedules", "3"]);
    assert!(text.contains("write-protect") && text.contains("passed") && !text.contains("x86"), "{text}");
    let all = json(&["explore", "--pairs", "--arch", "power", "--schedules", "3", "--json"]);
    let pairs = all["pairs"].as_array().unwrap();
    assert_eq!(pairs.len(), 2 * 17 * 18 / 2);
    assert!(pairs.iter().all(|pair| pair["verdict"] == "passed" && pair["arch"] == "power"), "{all}");
    let one = json(&["explore", "discard+log:huge", "--arch", "arm64", "--schedules", "20", "--json"]);
    assert_eq!((&one["scenario"], &one["verdict"]), (&"discard+log:huge".into(), &"passed".into()));
    fails(&["explore", "discard+log", "--bug", "X05"], 2, &["no defect to switch on"]);
    fails(&["explore", "discard+log", "--arch", "vax"], 2, &["use x86, arm64 or power"]);
    fails(&["explore", "age+zap-roots", "--arch", "power"], 2, &["zap-roots means nothing on power", "x86"]);
    fails(&["explore", "discard+nap"], 2, &["discard+nap", "\"nap\" is no act", "flush-slot"]);
    for (meaningless, value) in [
        ("--bug", "X05"),
        ("--save", "failure"),
        ("--continue", "failure"),
        ("--store-failures", "2"),
        ("--casemate", "trace"),
    ] {
        fails(&["explore", "--pairs", meaningless, value], 2, &["cannot be used with", meaningless]);
    }
}

#[test]
fn a_replay_file_of_a_pair_says_what_may_be_said_of_one() {
    let scratch = Scratch::new("pair-replay");
    let file = |variant: &str, scenario: &str| {
        let failure = ReplayFile {
            scenario: scenario.to_owned(),
            variant: variant.to_owned(),
            memory: "sc".to_owned(),
            arch: Some("arm64".to_owned()),
            without: Actors::NOBODY,
            store_failures: 0,
            model: MODEL_VERSION,
            invariant: Invariant::T1,
            decisions: Vec::new(),
            digest: 0,
        };
        let path = scratch.path("pair.replay");
        std::fs::write(&path, failure.write()).unwrap();
        path
    };
    for (variant, scenario, exit, told) in [
        ("on", "discard+log:huge", 2, "no defect to switch on"),
        ("perhaps", "discard+log:huge", 2, "on or off"),
        ("off", "discard+nap", 2, "no act"),
        ("off", "discard+log:huge", 1, "diverges"),
    ] {
        fails(&["explore", "--replay", &file(variant, scenario)], exit, &[told]);
    }
}
