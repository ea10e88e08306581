//! The POWER sample, and files named in the environment.

use std::path::Path;

use mmu_vectors::{FileReport, Limits, check_file, check_power_matrix, check_reader};

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

fn unpacked(name: &str) -> String {
    let file = std::fs::File::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("data").join(name)).unwrap();
    std::io::read_to_string(lzma_rust2::XzReader::new(file, true)).unwrap()
}

/// 192 partition-scoped and 96 process-scoped rows, entry layout, causes and walk failures.
#[test]
fn the_permission_matrix_agrees() {
    let text = unpacked("ppc-radix-matrix.json.xz");
    let report = check_power_matrix("matrix", &text).unwrap();
    assert_passes(&report);
    assert_eq!(report.cases, 192 + 96 + 16 + 7 + 4);
}

/// Every changed row is noticed, and what is no matrix is refused.
#[test]
fn a_changed_matrix_disagrees() {
    let text = unpacked("ppc-radix-matrix.json.xz");
    for (old, new, expected) in [
        (r#"[1,"normal","fetch","allowed",0,"R"]"#, r#"[1,"normal","fetch","allowed",0,"R|C"]"#, 1),
        (r#"[0,1,"load","fault",134217728]"#, r#"[0,1,"load","allowed",0]"#, 1),
        (r#""eaa_priv":8"#, r#""eaa_priv":16"#, 1),
        (r#""cause":524288"#, r#""cause":262144"#, 1),
        (r#""NOPTE":1073741824"#, r#""NOPTE":1"#, 1),
    ] {
        let changed = text.replacen(old, new, 1);
        assert_ne!(changed, text, "{old}");
        assert_eq!(check_power_matrix("matrix", &changed).unwrap().disagreeing, expected, "{old}");
    }
    for (old, new, what) in [
        (r#""rc_set"]"#, r#""rc"]"#, "partition_scoped.columns"),
        (r#""partition_scoped":192"#, r#""partition_scoped":193"#, "counts.partition_scoped"),
        (r#""name":"store""#, r#""name":"sore""#, "`sore`"),
        (r#"[1,"normal","#, r#"[16,"normal","#, "eaa: 16"),
        (r#""title""#, r#""tile""#, "tile"),
    ] {
        let error = check_power_matrix("matrix", &text.replacen(old, new, 1)).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
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
    let text = unpacked("ppc-rcint-sample.jsonl.xz");
    let changed = text.replace(r#""rc_update":"interrupt""#, r#""rc_update":"hardware""#);
    let report = check_reader("changed", changed.as_bytes(), Limits::default()).unwrap();
    assert!(report.disagreeing > 10, "{} of {}", report.disagreeing, report.cases);
}

/// Tagged cases are held to the tag; where its text is not understood, to the rule that their circumstances fall under.
#[test]
fn tags_are_held_to() {
    for (file, tag) in [("ppc-hwrc-sample.jsonl.xz", "model update {"), ("ppc-rcint-sample.jsonl.xz", "model cause 0x")]
    {
        let text = unpacked(file);
        let known = check_reader(file, text.as_bytes(), Limits::default()).unwrap();
        let vague = check_reader(file, text.replace("model ", "manual: ").as_bytes(), Limits::default()).unwrap();
        assert_eq!((vague.disagreeing, &vague.excepted), (0, &known.excepted));
        let with_false_tags = if tag.ends_with('{') {
            text.replace(tag, "model update {'0x8': '0x1', ").replace(", }", "}")
        } else {
            let mut parts = text.split(tag);
            let first = parts.next().unwrap().to_owned();
            parts.fold(first, |done, part| done + tag + "1" + &part[part.find('"').unwrap()..])
        };
        let report = check_reader(file, with_false_tags.as_bytes(), Limits::default()).unwrap();
        let tagged = text.matches(tag).count() as u64;
        assert!(tagged > 0);
        assert_eq!(report.disagreeing, tagged, "{file}");
    }
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
        (image("", r#"{"access":{"ea":"zz"}}"#), "near field `ea`: `zz` is not"),
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
