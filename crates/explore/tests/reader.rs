//! What stands in a file, and what must not.

use mmu_explore::litmus::{Limits, judge, read, read_each};

const SMALL: &str = r#"{"tests": [{"id": "t", "use": "must_not_observe",
 "init": {"memory": {"p": 1}, "stage1": {"x": {"map": "p", "af": 0}}, "stage1_level2": {"l": {"valid": 1, "covers": ["x"]}}},
 "threads": [{"privilege": "el1", "hw_af": true, "on_fault": {"r1": 3}, "ops": [
   {"op": "ldx", "from": {"va": "x"}, "reg": "r0", "label": "L"},
   {"op": "stx", "to": {"va": "x"}, "value": {"reg": "r0"}, "status": "r2"},
   {"op": "rmw", "kind": "clear_bits", "bit": "valid", "loc": {"pte1": "x"}, "reg": "r3"},
   {"op": "dsb", "kind": "st"}, {"op": "tlbi", "stage": 1, "scope": "local", "by": "va", "target": "x"}, {"op": "dsb"},
   {"op": "read", "from": {"va": "x"}, "reg": "r1"}]}],
 "final": {"quantifier": "exists", "condition": ["and", ["reg", 0, "r1", 1], ["not", ["fault", 0, "L", "x"]]]}}]}"#;

#[test]
fn the_sample_is_read_and_agrees() {
    let tests = read("small.json", SMALL.as_bytes(), &Limits::default()).unwrap();
    let judgement = judge(&tests[0], None, &Limits::default());
    assert_eq!(judgement.agreement, Some(true), "{judgement:?}");
    assert!(judgement.sequential.stats.finals > 1, "{judgement:?}");
}

/// Reads and runs whatever it is; that it returns is what is tested.
fn survive(bytes: &[u8]) {
    let limits = Limits::default();
    match read_each("f", bytes, &limits) {
        Ok(tests) => {
            for test in tests {
                match test {
                    Ok(test) => assert!(!judge(&test, None, &limits).sequential.stuck),
                    Err(error) => assert!(error.to_string().starts_with("f, test "), "{error}"),
                }
            }
        }
        Err(error) => assert!(error.to_string().starts_with('f'), "{error}"),
    }
}

#[test]
fn every_truncation_is_an_error_and_every_flipped_bit_is_survived() {
    for length in 0..SMALL.len() {
        assert!(read("f", &SMALL.as_bytes()[..length], &Limits::default()).is_err(), "{length} bytes");
    }
    let mut bytes = SMALL.as_bytes().to_vec();
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        survive(&bytes);
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

/// The error of the sample with one text replaced.
fn error(old: &str, new: &str) -> String {
    assert!(SMALL.contains(old), "{old}");
    let text = SMALL.replacen(old, new, 1);
    read("small.json", text.as_bytes(), &Limits::default()).map(|_| ()).unwrap_err().to_string()
}

#[test]
fn errors_name_file_test_field_and_remedy() {
    let cases = [
        ("must_not_observe", "must", "small.json, test t, field use: `must`: unknown; known: must_not_observe, "),
        ("\"af\": 0", "\"af\": 2", "small.json, test t, field init.stage1.x.af: 2 where 0 or 1"),
        ("\"map\": \"p\"", "\"mpa\": \"p\"", "small.json, test t, field init.stage1.x.mpa: unknown; known here: map, "),
        ("\"op\": \"ldx\"", "\"op\": \"jump\"", "small.json, test t, field threads[0].ops[0].op: `jump`: unknown"),
        (
            "\"kind\": \"st\"",
            "\"kind\": \"sx\"",
            "small.json, test t, field threads[0].ops[3].kind: `sx`: unknown; known: full, st, ld",
        ),
        ("\"stage\": 1,", "\"stage\": 3,", "small.json, test t, field threads[0].ops[4].stage: 1, 2 or 12"),
        (
            "\"by\": \"va\"",
            "\"by\": \"ipa\"",
            "small.json, test t, field threads[0].ops[4].by: stage 1 is invalidated by",
        ),
        ("\"reg\": \"r1\"", "\"reg\": 1", "small.json, test t, field threads[0].ops[6].reg: 1 where a text"),
        (
            "{\"pte1\": \"x\"}",
            "{\"pte2\": \"p\"}",
            "small.json, test t, field threads[0].ops[2].loc.pte2: `p`: init.stage2 has no such",
        ),
        (
            "\"exists\"",
            "\"often\"",
            "small.json, test t, field final.quantifier: `often`: unknown; known: exists, forall",
        ),
        ("[\"reg\", 0,", "[\"reg\", 1,", "small.json, test t, field final.condition.and.reg: 1: there are 1 threads"),
        (
            "\"L\", \"x\"",
            "\"M\", \"x\"",
            "small.json, test t, field final.condition.and.not.fault: `M`: no operation of thread 0",
        ),
        ("\"threads\"", "\"thread\"", "small.json, test t, field threads: missing"),
        ("\"tests\"", "\"test\"", "small.json, field tests: missing"),
    ];
    for (old, new, begins) in cases {
        let error = error(old, new);
        assert!(error.starts_with(begins), "{error}\n  instead of\n{begins}");
    }
}

#[test]
fn a_broken_test_does_not_spoil_the_others() {
    let good = SMALL.trim_start_matches("{\"tests\": [").trim_end_matches("]}");
    let text = format!("{{\"tests\": [{good}, {{\"id\": \"bad\"}}, {good}]}}");
    let tests = read_each("f", text.as_bytes(), &Limits::default()).unwrap();
    assert_eq!(tests.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
}

#[test]
fn limits_are_kept() {
    let read = |limits: Limits| read("f", SMALL.as_bytes(), &limits).map(|_| ()).unwrap_err().to_string();
    let all = Limits::default();
    assert!(read(Limits { bytes: 100, ..all }).contains("longer than 100 bytes"));
    assert!(read(Limits { tests: 0, ..all }).contains("limit 0"));
    assert!(read(Limits { threads: 0, ..all }).contains("1 threads, limit 0"));
    assert!(read(Limits { ops: 3, ..all }).contains("7 operations, limit 3"));
    assert!(read(Limits { pages: 0, ..all }).contains("more than 0 pages"));
    assert!(read(Limits { condition: 2, ..all }).contains("more than 2 nodes"));
    assert!(read(Limits { name: 1, ..all }).contains("longer than 1 bytes"));
    let nested = SMALL.replace("[\"and\"", &format!("{}[\"and\"", "[\"not\", ".repeat(60)));
    let nested = nested.replace("\"x\"]]]}", &format!("\"x\"]]]{}}}", "]".repeat(60)));
    assert!(super_deep(&nested).contains("deeper than"), "{}", super_deep(&nested));
}

fn super_deep(text: &str) -> String {
    read("f", text.as_bytes(), &Limits::default()).map(|_| ()).unwrap_err().to_string()
}
