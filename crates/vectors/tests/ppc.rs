//! The POWER sample, and files named in the environment.
#![cfg(feature = "ppc")]

use std::path::Path;

use mmu_vectors::{FileReport, Limits, check_file, check_reader};

fn assert_passes(report: &FileReport) {
    for found in &report.disagreements {
        eprintln!("{found:#?}");
    }
    eprintln!(
        "{}: {} agree, {} disagree, excepted {:?}",
        report.file, report.agreeing, report.disagreeing, report.excepted
    );
    assert!(report.passed(), "{}: {} of {} cases disagree", report.file, report.disagreeing, report.cases);
}

/// Every kind of access, interrupt, cause and quirk of the recorded files, about 400 cases.
#[test]
fn the_sample_agrees() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
    let mut cases = 0;
    for file in ["ppc-hwrc-sample.jsonl.xz", "ppc-rcint-sample.jsonl.xz"] {
        let report = check_file(&data.join(file), Limits::default()).unwrap();
        assert_passes(&report);
        assert!(!report.excepted.is_empty(), "the sample holds quirks");
        cases += report.cases;
    }
    assert_eq!(cases, 400);
}

/// A walker that answers differently must be noticed: with other registers the same images disagree.
#[test]
fn wrong_answers_are_noticed() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/ppc-rcint-sample.jsonl.xz");
    let mut text = String::new();
    let file = std::fs::File::open(data).unwrap();
    std::io::Read::read_to_string(&mut lzma_rust2::XzReader::new(file, true), &mut text).unwrap();
    let changed = text.replace(r#""rc_update":"interrupt""#, r#""rc_update":"hardware""#);
    let report = check_reader("changed", changed.as_bytes(), Limits::default()).unwrap();
    assert!(report.disagreeing > 10, "{} of {}", report.disagreeing, report.cases);
}

/// `MMUSIM_PPC_VECTORS` names more files, separated by colons.
#[test]
fn named_files_agree() {
    for file in std::env::var("MMUSIM_PPC_VECTORS").iter().flat_map(|files| files.split(':')) {
        assert_passes(&check_file(Path::new(file), Limits::default()).unwrap());
    }
}

#[test]
fn mistakes_in_a_file_are_named() {
    let image = |config: &str, case: &str| {
        format!(
            r#"{{"arch":"power-radix","emulator":"-","image":"i","memory":[],
            "config":{{"machine":"m","PVR":0,"PTCR":"0x10000","LPCR":0,"LPCR_UPRT":1,"LPCR_HR":1,"LPIDR":5,"PIDR":0,
            "AMR":0,"IAMR":0,"rc_update":"hardware"{config}}},"cases":[{case}]}}"#
        )
        .replace('\n', " ")
    };
    let access = r#""access":{"ea":"0x1000","kind":"r","mode":"hv","msr":{"SF":1,"HV":1,"PR":0,"DR":1,"IR":0}}"#;
    for (text, expected) in [
        (image(r#","TWIN":1"#, ""), "TWIN"),
        (image("", r#"{"access":{"ea":"zz"}}"#), "zz"),
        (image("", &format!(r#"{{{access},"result":{{}}}}"#)), "result: exactly one of"),
        (image("", &format!(r#"{{{access},"result":{{"pa":0}},"manual_difers":""}}"#)), "manual_difers"),
        (
            image("", &format!(r#"{{{access},"result":{{"fault":{{"interrupt":"DSI","to":"guest"}}}}}}"#)),
            "dsisr: missing",
        ),
    ] {
        let error = check_reader("file", text.as_bytes(), Limits::default()).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("line 1"), "{error}");
    }
}
