//! Pages from documents of every kind: what is in them, and that nothing else is.

use mmu_report::{Input, page};

fn input(name: &str, text: &str) -> Input {
    Input { name: name.to_owned(), text: text.to_owned() }
}

fn made(text: &str) -> String {
    page("", &[input("in.json", text)]).unwrap()
}

/// What every page must be: whole, one document, loading nothing, running nothing.
fn is_sound(html: &str) {
    assert!(html.starts_with("<!DOCTYPE html>") && html.ends_with("</html>\n"), "{html}");
    for forbidden in [
        "<script",
        "http://",
        "https://",
        "url(",
        "@import",
        "<link",
        "<img",
        "onload",
        "src=",
        "NaN",
        "inf\"",
        "undefined",
    ] {
        assert!(!html.contains(forbidden), "{forbidden} in {html}");
    }
    assert_eq!(html.matches("prefers-color-scheme: dark").count(), 1);
    balanced(html);
}

/// Every element that is opened is closed, in order.
fn balanced(html: &str) {
    let mut open: Vec<&str> = Vec::new();
    for part in html.split('<').skip(1) {
        let tag = part.split('>').next().unwrap();
        if tag.starts_with("!DOCTYPE") || tag.starts_with("meta") {
            continue;
        }
        match tag.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name), "</{name}>"),
            None => open.push(tag.split(' ').next().unwrap()),
        }
    }
    assert!(open.is_empty(), "{open:?} are left open");
}

fn zap(name: &str, machine: &str) -> String {
    let row = |name: &str, target: &str, cycles: u64| {
        format!(
            r#"{{"strategy": {{"name": "{name}", "target": "{target}"}}, "zap_cycles": {cycles}, "lost_cycles": {{"mean": 5, "p50": 4, "p99": 8, "max": 90000}},
                "faults": 3, "remote_flushes": 1, "entries_visited": 12345, "longest_unscheduled": 42000, "longest_rcu": 7, "lock_wait": 0,
                "host": {{"ipis": 17, "breaks": 0}}, "guest": {{"walks": 99}}}}"#
        )
    };
    format!(
        r#"{{"schema_version": 1, "experiment": "compare zap", "versions": {{"mmusim": "9.8.7", "model": 2}}, "seed": 41,
            "command": "mmusim compare zap --arch x86 --json", "runs": [{{"configuration": {{"second_levels": 4, "first_levels": 4, "memory_bytes": 67108864,
            "vcpus": 4, "page_bytes": 4096, "guest_page_bytes": 4096, "workload": {{"kind": "trace", "file": "a.mmut"}}, "accesses_per_vcpu": 100,
            "range_bytes": 2097152, "warm_up_cycles": 1000}}, "report": {{"arch": "x86", "machine": "{machine}", "clock_hz": 3900000000,
            "baseline": {{"mean": 1, "p50": 1, "p99": 1, "max": 1}}, "rows": [{}, {}, {}]}}}}]}}"#,
        row(name, "range", 18_163_042),
        row("root, one pass", "root", 72_970_000),
        row("root, none", "root", 0),
    )
}

#[test]
fn strategies_are_bars_and_rows_under_what_was_run() {
    let html = made(&zap("range, never yields", "some-machine"));
    is_sound(&html);
    for wanted in [
        "mmusim compare zap --arch x86 --json",
        "mmusim 9.8.7, model version 2 · seed 41 · machine some-machine",
        "x86 on some-machine at 3.90 GHz",
        "64 MiB in pages of 4 KiB, 4 levels; 4 vCPUs; 4 levels of its own, pages of 4 KiB",
        "100 accesses of a.mmut per vCPU",
        "range of 2 MiB",
        "whole root",
        "<td class=\"n\" title=\"18 163 042\">18.16M</td>",
        "never yields: Lost per vCPU: p50 4, p99 8, max 90.00k",
        "<td class=\"n\">17</td>",
    ] {
        assert!(html.contains(wanted), "no {wanted:?} in {html}");
    }
    assert_eq!(html.matches("class=\"bar\"").count(), 3, "a bar for each strategy");
    assert!(!html.contains("breaks"), "a counter that is zero everywhere is left out");
}

#[test]
fn names_in_documents_cannot_become_markup() {
    let hostile = "<script>alert(1)</script> onload=";
    let html = page("<b>&", &[input("<i>.json", &zap(hostile, "\\\"><img src=x>"))]).unwrap();
    for forbidden in ["<script", "<img", "<b>", "<i>"] {
        assert!(!html.contains(forbidden), "{forbidden} in {html}");
    }
    balanced(&html);
    assert!(html.contains("&lt;script&gt;alert(1)&lt;/script&gt;") && html.contains("<title>&lt;b&gt;&amp;</title>"));
    assert!(html.contains("&quot;&gt;&lt;img src=x&gt;"));
}

const RUN: &str = r#"{"schema_version": 1, "experiment": "run", "versions": {"mmusim": "0.1.0", "model": 2},
    "configuration": {"arguments": {"arch": "x86", "seed": 7, "strategy": "(6.9)"}, "files": {}},
    "report": {"arch": "x86", "machine": "m", "clock_hz": 1000000000, "strategy": "root, all", "windows": 12, "finished": [5000, 7000],
    "spread": {"mean": 6000, "p50": 5000, "p99": 7000, "max": 7000}, "zap": {"started": 100, "finished": 2000100, "longest_unscheduled": 9,
    "longest_rcu": 8, "lock_wait": 7}, "lock_wait": 0, "host": {"visits": 3}, "guest": {"walks": 1, "conflicts": 0}}}"#;

#[test]
fn a_run_has_its_command_line_from_its_configuration() {
    let html = made(RUN);
    is_sound(&html);
    assert!(html.contains("mmusim run --arch x86 --seed 7 --strategy &#39;(6.9)&#39; --json"), "{html}");
    assert!(html.contains("2.000M cycles (2.00 ms), begun at 100 cycles (100 ns)"), "{html}");
    assert_eq!(html.matches("class=\"bar\"").count(), 2, "a bar for each vCPU");
}

#[test]
fn a_failed_check_of_a_test_stands_out() {
    let html = made(
        r#"{"schema_version": 1, "experiment": "selftest", "versions": {"mmusim": "0.1.0", "model": 2}, "command": "mmusim selftest t",
        "reports": [{"test": "demand_paging_test", "arch": "arm64", "machine": "m", "clock_hz": 2000000000,
        "phases": [{"name": "populate", "cycles": 4000000, "host": {"visits": 5, "remote_flushes": 0}}],
        "checks": [{"what": "all is mapped", "held": true}, {"what": "nothing is lost: 3 pages", "held": false}], "figures": {"pages/s": 12.5}}]}"#,
    );
    is_sound(&html);
    assert!(html.contains("<td class=\"bad\">FAILED</td>") && html.contains("<td class=\"good\">held</td>"), "{html}");
    assert!(html.contains("<td class=\"n\">0.002000</td>") && html.contains("<td class=\"n\">12.50</td>"), "{html}");
}

#[test]
fn reproductions_show_ratios_and_say_how_many_are_near() {
    let row = |vcpus: u32, near: &str| {
        format!(
            r#"{{"what": "unmap", "unit": "s", "vcpus": {vcpus}, "bytes": 1073741824, "scale": 4, "published": [8.0, 2.0], "simulated": [9.0, 3.0],
                "published_ratio": 4.0, "simulated_ratio": 3.0, "error": -0.25, "within_a_quarter": {near},
                "times": [{{"locks": 1.0, "faults": 0.0}}, {{"locks": 0.5, "faults": 0.0}}]}}"#
        )
    };
    let html = made(&format!(
        r#"{{"schema_version": 1, "experiment": "reproduce", "experiments": [{{"id": "R7", "title": "t", "command": "test -b 1G", "source": "a thread",
            "machine": "m", "rows": [{}, {}]}}]}}"#,
        row(1, "true"),
        row(8, "false")
    ));
    is_sound(&html);
    assert!(html.contains("1 of 2 are within a quarter"), "{html}");
    assert!(html.contains("n good") && html.contains("n bad") && html.contains("-25.0 %"));
    assert!(html.contains("unmap: 8 vCPUs, 1 GiB: Ratio, before to after: published 4, simulated 3"), "{html}");
    assert!(html.contains("simulated, before") && html.contains("published, after"), "a chart over vCPUs");
}

#[test]
fn a_curve_and_a_score_show_every_point() {
    let curve = r#"{"schema_version": 1, "experiment": "predict", "machine": "m", "clock_ghz": 3.9, "seed": 1, "points": [
        {"curve": "dense4k", "n": 8, "cycles": 5.0, "ns": 1.2, "events": {"l1_tlb_misses": 0.0, "l2_tlb_misses": 0.0, "stage1_references": 0.0,
         "stage2_references": 0.0, "walk_references": {"l2": 0.5}, "l2_tlb_cycles": 0.0, "walk_cycles": 0.0, "data_cycles": 5.0, "jump_cycles": 0.0}},
        {"curve": "dense4k", "n": 64, "cycles": 12.0, "ns": 3.1, "events": null}]}"#;
    let html = made(curve);
    is_sound(&html);
    assert!(html.contains("cycles per access: 12 at 64") && html.contains("walk references"), "{html}");

    let point = |n: u32, cycles: f64| {
        format!(
            r#"{{"measured": {{"bench": "chase", "variant": "dense4k", "n": {n}, "unit": "per_load", "ns_median": 1.0, "core_cycles_median": 5.0}},
                "predicted": {{"curve": "dense4k", "n": {n}, "cycles": {cycles}, "ns": 1.0, "events": null}}, "band": "A", "error": {}}}"#,
            cycles / 5.0 - 1.0
        )
    };
    let score = format!(
        r#"{{"schema_version": 1, "experiment": "predict", "machine": "m", "against": "mine.csv", "bands": {{"A": {{"points": 3, "error": 0.1, "worst": 0.2, "goal": 0.02}}}},
            "curves": [{{"curve": "dense4k", "band": "A", "mean": {{"points": 3, "error": 0.1, "worst": 0.2}}}}], "knees": [], "knee_error": null,
            "order": {{"pairs": 4, "right": 3}}, "points": [{}, {}, {}], "not_predicted": [{{"curve": "wand", "why": "no such"}}]}}"#,
        point(8, 5.0),
        point(16, 5.5),
        point(32, 6.0)
    );
    let html = made(&score);
    is_sound(&html);
    for wanted in [
        "A: at most 1,024 pages",
        "3 of 4 pairs",
        "<td class=\"n bad\">10.0 %</td>",
        "predicted: 5.500 at 16",
        "wand",
        "measured: mine.csv",
    ] {
        assert!(html.contains(wanted), "no {wanted:?} in {html}");
    }
}

#[test]
fn sweeps_are_lines_over_what_differs_and_medians_over_seeds() {
    let line = |(vcpus, seed, cycles): (u32, u32, u32)| {
        format!(
            "{{\"arguments\":{{\"memory\":\"64MiB\",\"seed\":{seed},\"vcpus\":{vcpus}}},\"command\":\"compare zap\",\"id\":\"x\",\"model_version\":2,\
             \"row\":{{\"arch\":\"x86\",\"machine\":\"m\",\"strategy\":\"s\",\"zap_cycles\":{cycles}}},\"schema_version\":1}}\n"
        )
    };
    let text = [(1, 1, 10), (1, 2, 30), (4, 1, 100), (4, 2, 300)].map(line).concat();
    let html = made(&text);
    is_sound(&html);
    assert!(html.contains("medians of 2 seeds") && html.contains("memory 64MiB"), "{html}");
    assert!(html.contains(": 20 at 1") && html.contains(": 200 at 4"), "{html}");
    let error = page("", &[input("s.jsonl", &format!("{text}{{\"row\": 3}}\n"))]).unwrap_err().to_string();
    assert!(error.starts_with("s.jsonl: line 5: "), "{error}");
}

const EVENTS: &str = r#"{"run":0,"name":"x86: zap","arch":"x86","machine":"m","clock_hz":1000000000,"events":3,"lost":4,"lost_since":5,"end":900}
{"run":0,"at":0,"track":"vcpu 0","event":"sim_guest","took":400,"fields":{"vcpu_id":0}}
{"run":0,"at":100,"track":"vcpu 0","event":"sim_interrupted","took":50,"fields":{}}
{"run":0,"at":120,"track":"vcpu 0","event":"kvm_page_fault","fields":{"gpa":"0x1000"}}
{"run":0,"at":50,"track":"actor 0","event":"sim_lock_held","took":850,"unfinished":true,"fields":{"lock":"mmu_lock"}}
"#;

#[test]
fn both_forms_of_a_recording_make_the_same_lanes() {
    let lines = made(EVENTS);
    is_sound(&lines);
    for wanted in [
        "x86 on m at 1.00 GHz",
        "4 events were not kept",
        "sim_lock_held: 850 ns from 50.0 ns on, until the run ended",
        "lock mmu_lock",
    ] {
        assert!(lines.contains(wanted), "no {wanted:?} in {lines}");
    }
    let trace = r#"{"traceEvents":[
        {"ph":"M","name":"process_name","pid":1,"tid":0,"args":{"name":"x86: zap: vCPUs (4 events from cycle 5 on were not kept)"}},
        {"ph":"M","name":"process_name","pid":2,"tid":0,"args":{"name":"x86: zap: host actors"}},
        {"ph":"M","name":"thread_name","pid":1,"tid":1,"args":{"name":"vcpu 0"}},
        {"ph":"X","cat":"slice","pid":1,"tid":1,"ts":0.0,"dur":0.4,"name":"sim_guest","args":{"vcpu_id":0}},
        {"ph":"X","cat":"slice","pid":1,"tid":1,"ts":0.1,"dur":0.05,"name":"sim_interrupted","args":{}},
        {"ph":"i","cat":"event","pid":1,"tid":1,"ts":0.12,"s":"t","name":"kvm_page_fault","args":{}},
        {"ph":"M","name":"thread_name","pid":2,"tid":1,"args":{"name":"zap"}},
        {"ph":"M","name":"thread_name","pid":2,"tid":2,"args":{"name":"zap, overlapping 1"}},
        {"ph":"X","cat":"slice","pid":2,"tid":2,"ts":0.05,"dur":0.85,"cname":"terrible","name":"sim_lock_held","args":{"lock":"mmu_lock"}}
        ],"displayTimeUnit":"ns","otherData":{"command":"mmusim compare zap --seed 3"}}"#;
    let trace = made(trace);
    is_sound(&trace);
    assert!(
        trace.contains("mmusim compare zap --seed 3") && trace.contains("4 events from cycle 5 on were not kept"),
        "{trace}"
    );
    for class in ["class=\"guest\"", "class=\"interrupted\"", "class=\"held\"", "class=\"host\""] {
        assert_eq!(lines.matches(class).count(), trace.matches(class).count(), "{class}");
    }
    assert!(!trace.contains("overlapping"), "one lane for each actor");
}

#[test]
fn several_documents_are_sections_with_links() {
    let html = page("All of it", &[input("a.json", RUN), input("b.jsonl", EVENTS)]).unwrap();
    is_sound(&html);
    assert!(
        html.contains("<h1>All of it</h1>")
            && html.contains("<a href=\"#s2\">Events</a>")
            && html.contains("<section id=\"s2\">"),
        "{html}"
    );
    assert_eq!(html, page("All of it", &[input("a.json", RUN), input("b.jsonl", EVENTS)]).unwrap());
}

#[test]
fn damaged_documents_are_refused_with_file_line_and_remedy() {
    let cases = [
        (RUN.replace("\"windows\": 12", "\"windows\": \"many\""), "line 3"),
        (RUN.replace("\"windows\": 12,", ""), "missing field `windows`"),
        (RUN[..RUN.len() - 9].to_owned(), "no JSON"),
        (EVENTS.replace("\"at\":100", "\"at\":-1"), "line 3"),
        (EVENTS.replace("{\"run\":0,\"at\":50", "{\"run\":7,\"at\":50"), "line 5: an event of run 7"),
        ("{\"traceEvents\":[]}".to_owned(), "no event"),
        ("{\"traceEvents\":[{\"ph\":\"M\"}]}".to_owned(), "missing field `name`"),
    ];
    for (text, wanted) in cases {
        let error = page("", &[input("ok.json", RUN), input("bad.json", &text)]).unwrap_err().to_string();
        assert!(error.starts_with("bad.json: ") && error.contains(wanted) && error.contains("`mmusim "), "{error}");
    }
}
