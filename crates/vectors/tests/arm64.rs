//! The Arm sample, and files that are not what they claim.

use std::io::Read;
use std::path::Path;

use mmu_vectors::{FileReport, Limits, VectorError, check_arm64_matrix, check_bbm_rules, check_file, check_reader};

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/arm64-sample.jsonl.xz");

fn check(path: &Path) -> FileReport {
    match check_file(path, Limits::default()) {
        Ok(report) => report,
        Err(error) => panic!("{error}"),
    }
}

fn unpacked(path: &str) -> String {
    let file = std::fs::File::open(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let mut text = String::new();
    lzma_rust2::XzReader::new(file, true).read_to_string(&mut text).expect("the file is xz text");
    text
}

fn sample_text() -> String {
    unpacked(SAMPLE)
}

fn check_text(text: &str) -> Result<FileReport, VectorError> {
    check_reader("text", text.as_bytes(), Limits::default())
}

#[test]
fn the_sample_passes() {
    let report = check(Path::new(SAMPLE));
    assert!(report.passed(), "{report:#?}");
    assert!(report.cases >= 500, "{report:#?}");
    let excepted: u64 = report.excepted.iter().map(|(_, count)| count).sum();
    assert_eq!(report.agreeing + excepted, report.cases);
    assert!(excepted > 0 && excepted * 20 < report.cases, "few exceptions, each by its rule: {:?}", report.excepted);
    assert!(report.excepted.iter().all(|(quirk, _)| quirk.why.contains("Arm ARM")), "{:?}", report.excepted);
}

/// Whole files can be checked by naming them: `ARM64_VECTORS=a.jsonl.xz:b.jsonl.xz cargo test -p mmu-vectors --test arm64`.
#[test]
fn named_files_pass() {
    for path in std::env::var_os("ARM64_VECTORS").iter().flat_map(std::env::split_paths) {
        let report = check(&path);
        println!("{report:#?}");
        assert!(report.passed());
    }
}

/// A judge that agrees with everything would be worthless: each kind of recorded answer, changed, must be noticed.
#[test]
fn changed_answers_are_noticed() {
    let text = sample_text();
    for (from, to) in [
        ("\"pa\":\"0x", "\"pa\":\"0x1"),
        ("\"par_attr\":\"0xff\"", "\"par_attr\":\"0x44\""),
        ("\"par_sh\":3", "\"par_sh\":2"),
        ("\"par_sh\":2", "\"par_sh\":0"),
        ("\"level\":3,\"fsc\":7", "\"level\":2,\"fsc\":6"),
        ("\"type\":\"permission\"", "\"type\":\"translation\""),
        ("\"type\":\"access_flag\"", "\"type\":\"permission\""),
        ("\"hpfar_el2\":\"0x", "\"hpfar_el2\":\"0x7"),
        ("\"esr_el2\":\"0x93", "\"esr_el2\":\"0x83"),
        ("\"far_el2\":\"0x", "\"far_el2\":\"0x7"),
        ("\"wnr\":1", "\"wnr\":0"),
        ("\"par_el1\":\"0xa", "\"par_el1\":\"0x8"),
        ("\"memory_after\":[[\"0x", "\"memory_after\":[[\"0x1"),
        ("model ('fault', 'address_size', 1)", "model ('fault', 'address_size', 2)"),
    ] {
        assert!(text.contains(from), "the sample has no {from}");
        let report = check_text(&text.replace(from, to)).unwrap_or_else(|error| panic!("{from}: {error}"));
        assert!(!report.passed(), "{from} -> {to} went unnoticed");
        let told = report.disagreements.first().expect("one is explained");
        assert!(told.got.contains("level") && !told.expected.is_empty() && told.line > 0, "{told:?}");
    }
}

#[test]
fn what_is_not_of_the_format_is_named() {
    let text = sample_text();
    let line = text.lines().next().expect("one image");
    for (from, to, name) in [
        ("\"via\":\"", "\"via\":\"un", "unknown variant"),
        ("\"ipa\":", "\"gpa\":", "gpa"),
        ("\"result\":{", "\"result\":{\"surprise\":1,", "surprise"),
        ("\"T0SZ\":", "\"T0SZ\":9,\"T1SZ\":", "T1SZ"),
        ("\"SL0\":", "\"SL0\":7,\"IRGN0\":0,\"X\":", "X"),
        ("\"VM\":1", "\"VM\":0", "HCR_EL2.VM"),
        ("\"granule\":\"", "\"granule\":\"1", "granule"),
        ("\"kind\":\"r\"", "\"kind\":\"x\"", "access.kind"),
        ("\"privileged\":true", "\"privileged\":false", "access.privileged"),
        ("\"memory\":[[\"0x", "\"memory\":[[\"0y", "64-bit number"),
        ("\"ID_AA64MMFR0_EL1\":", "\"ID\":", "ID"),
    ] {
        assert!(line.contains(from), "the first image has no {from}");
        let error = check_text(&line.replacen(from, to, 1)).expect_err(from).to_string();
        assert!(error.contains(name) && error.contains("line 1"), "{from} -> {to}: {error}");
    }
}

const MATRIX: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/arm64-s2-matrix.json.xz");
const BBM_RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/arm64-bbm-rules.json.xz");

#[test]
fn the_matrix_agrees() {
    let report = check_arm64_matrix("matrix", &unpacked(MATRIX)).unwrap_or_else(|error| panic!("{error}"));
    assert!(report.passed(), "{report:#?}");
    assert_eq!(report.agreeing, 128 + 144 + 48 + 24);
    assert_eq!(report.cases, report.agreeing + 2, "two codes are not of walks");
}

#[test]
fn the_break_before_make_rules_agree() {
    let report = check_bbm_rules("rules", &unpacked(BBM_RULES)).unwrap_or_else(|error| panic!("{error}"));
    assert!(report.passed(), "{report:#?}");
    assert_eq!((report.cases, report.agreeing), (21, 21));
}

#[test]
fn changed_matrices_disagree() {
    // The layout of the file does not matter.
    let value: serde_json::Value = serde_json::from_str(&unpacked(MATRIX)).unwrap();
    let text = value.to_string();
    for (from, to) in [
        (r#"[true,0,3,"exec_el1","allowed"]"#, r#"[true,0,3,"exec_el1","permission"]"#),
        (r#"[false,1,0,"write","permission"]"#, r#"[false,1,0,"write","allowed"]"#),
        (r#"[1,1,1,1,1,"write","allowed",{"S2AP1":1}]"#, r#"[1,1,1,1,1,"write","allowed",{}]"#),
        (r#"[0,0,0,0,0,"read","access_flag",{}]"#, r#"[0,0,0,0,0,"read","permission",{}]"#),
        (r#"["4K",1,1,"block"]"#, r#"["4K",1,1,"table"]"#),
        (r#""-1":41"#, r#""-1":37"#),
    ] {
        assert!(text.contains(from), "the matrix has no {from}");
        let report = check_arm64_matrix("matrix", &text.replacen(from, to, 1)).unwrap();
        assert_eq!(report.disagreeing, 1, "{from} -> {to}: {report:#?}");
    }
    for (from, to, name) in [
        (r#""permission":128"#, r#""permission":127"#, "counts.permission"),
        (r#""tlb_conflict""#, r#""tlb_conflicts""#, "tlb_conflicts"),
        (r#"["4K",1,1,"block"]"#, r#"["8K",1,1,"block"]"#, "8K"),
        (r#""S2AP1":1"#, r#""S2AP2":1"#, "S2AP2"),
    ] {
        let error = check_arm64_matrix("matrix", &text.replacen(from, to, 1)).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
    let text = unpacked(BBM_RULES).replace("\"requires_bbm\": true", "\"requires_bbm\": false");
    assert!(!check_bbm_rules("rules", &text).unwrap().passed());
}
