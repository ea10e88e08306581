//! EPT vectors: the committed sample, files named by `MMU_VECTORS_X86` (paths separated by colons), malformed lines; and
//! the permission matrix, in small and the file named by `MMU_MATRIX_X86`.

use std::path::Path;

use mmu_vectors::{FileReport, Limits, VectorError, check_ept_matrix, check_file, check_reader};

fn assert_passes(report: &FileReport) {
    assert!(report.passed(), "{report:#?}");
    assert_eq!(report.cases, report.agreeing + report.excepted.iter().map(|(_, n)| n).sum::<u64>());
}

#[test]
fn the_sample_agrees() {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/x86-ept.jsonl.xz");
    let report = check_file(&sample, Limits::default()).unwrap();
    assert_passes(&report);
    assert!(report.cases > 300, "{} cases", report.cases);
    assert_eq!(report.excepted, []);
}

#[test]
fn files_from_the_environment_agree() {
    let Ok(list) = std::env::var("MMU_VECTORS_X86") else { return };
    for file in list.split(':') {
        let report = check_file(Path::new(file), Limits::default()).unwrap();
        println!("{file}: {} cases, {} agree, excepted {:?}", report.cases, report.agreeing, report.excepted);
        assert_passes(&report);
    }
}

/// One small legal image; `{...}` marks what the tests below change.
const LEGAL: &str = r#"{"arch":"x86-ept","emulator":"none","image":"one","config":{"MAXPHYADDR":40,
"IA32_VMX_EPT_VPID_CAP":"0xf0106334141","EPTP":"0x105e","EPTP_memtype":6,"EPTP_walk_length_minus_1":3,"EPTP_ad":1},
"memory":[["0x1000","0x2007"],["0x2000","0x2000000000b7"]],
"cases":[{"access":{"gpa":"0x10","kind":"r","via":"load"},"result":{"fault":{"exit_reason":49,"guest_physical_address":"0x10"}}}]}"#;

fn check(text: &str) -> Result<FileReport, VectorError> {
    check_reader("test", text.replace('\n', " ").as_bytes(), Limits::default())
}

#[test]
fn a_reserved_address_bit_is_a_misconfiguration() {
    assert_passes(&check(LEGAL).unwrap());
    let wide = LEGAL.replace(r#""MAXPHYADDR":40"#, r#""MAXPHYADDR":46"#);
    let report = check(&wide).unwrap();
    assert_eq!(report.disagreeing, 1);
    let explained = &report.disagreements[0];
    assert!(explained.got.contains("level 3 at 0x2000 = 0x2000000000b7"), "{explained:?}");
}

#[test]
fn malformed_lines_name_what_is_wrong() {
    for (from, to, says) in [
        (r#""image":"one""#, r#""image":"one","colour":1"#, "unknown field `colour`"),
        (r#""MAXPHYADDR":40"#, r#""MAXPHYADDR":40,"PKU":1"#, "unknown field `PKU`"),
        (r#""via":"load""#, r#""via":"prefetch""#, "unknown variant `prefetch`"),
        (r#""via":"load""#, r#""via":"store""#, "kind Read does not go with Store"),
        (r#""MAXPHYADDR":40"#, r#""MAXPHYADDR":60"#, "a physical-address width of 60 bits"),
        (r#""MAXPHYADDR":40,"#, "", "missing field `MAXPHYADDR`"),
        (r#""EPTP_ad":1"#, r#""EPTP_ad":0"#, "`EPTP_ad` is not what EPTP"),
        (r#""0x2007""#, r#""0xzz""#, "`0xzz` is not a 64-bit number"),
        (r#"["0x1000","#, r#"["0x1001","#, "8-byte aligned"),
        (r#"{"exit_reason":49,"#, "{", "exactly one of `exit_reason` and `vm_entry_failure`"),
        (r#""fault":{"#, r#""pa":1,"fault":{"#, "exactly one of `pa`"),
        ("x86-ept", "m68k", "unknown arch `m68k`"),
        ("}]}", "", "EOF"),
    ] {
        let text = LEGAL.replacen(from, to, 1);
        assert_ne!(text, LEGAL, "{from} is not in the image");
        let message = check(&text).unwrap_err().to_string();
        assert!(message.starts_with("test: line 1: ") && message.contains(says), "{message}");
    }
}

#[test]
fn truncated_and_flipped_images_never_panic() {
    let text = LEGAL.replace('\n', " ");
    for end in 0..text.len() {
        let _ = check(&text[..end]);
    }
    let mut bytes = text.into_bytes();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            bytes[at] ^= 1 << bit;
            let _ = check_reader("test", &bytes[..], Limits::default());
            bytes[at] ^= 1 << bit;
        }
    }
}

#[test]
fn a_failing_entry_is_error_7() {
    let text = LEGAL.replace("0x105e", "0x105d").replace(r#""EPTP_memtype":6"#, r#""EPTP_memtype":5"#).replace(
        r#"{"exit_reason":49,"guest_physical_address":"0x10"}"#,
        r#"{"vm_entry_failure":1,"vm_instruction_error":7}"#,
    );
    assert_passes(&check(&text).unwrap());
}

#[test]
fn five_levels_are_walked_when_the_processor_has_them() {
    let text = LEGAL
        .replace("0xf0106334141", "0xf01063341c1")
        .replace("0x105e", "0x1026")
        .replace(r#""EPTP_walk_length_minus_1":3,"EPTP_ad":1"#, r#""EPTP_walk_length_minus_1":4,"EPTP_ad":0"#)
        .replace(
            r#"[["0x1000","0x2007"],["0x2000","0x2000000000b7"]]"#,
            r#"[["0x1000","0x2007"],["0x2000","0x3007"],["0x3000","0x4007"],["0x4000","0x5007"],["0x5000","0x6037"]]"#,
        )
        .replace(r#"{"fault":{"exit_reason":49,"guest_physical_address":"0x10"}}"#, r#"{"pa":"0x6010"}"#);
    assert_passes(&check(&text).unwrap());
}

/// A matrix of one row a section.
const MATRIX: &str = r#"{"rows":[{"features":{"mbec":false,"exec_only":true},"level":2,"large_page":true,"entry_perm":"r---",
"other_levels_perm":"rwx-","access":"write","outcome":"violation","exit_qualification":394}],
"compact_matrix":[{"mbec":true,"exec_only":false,"perm":"---u","access":"exec","outcome":"misconfig"}],
"reserved_bits":[{"rule":"wide","level":1,"large_page":[false],"bits":"MAXPHYADDR..51","present_outcome":"misconfig"}],
"ignored_bits":{"bits_always":[11],"bits_without_mbec":[10],"levels":[1,2],"accesses":["read"],"outcome":"allowed"},
"leaf_memtype_xwr":{"columns":["exec_only","memtype","xwr","outcome"],"rows":[[false,2,1,"misconfig"],[false,0,1,"translates"]]},
"guest_page_walk":{"rows":[{"ept_ad_enabled":true,"ept_perm_of_page_holding_guest_pte":"r--","guest_pte_ad":"AD",
"access":"read","outcome":"violation","exit_qualification":139}]}}"#;

#[test]
fn a_matrix_is_walked_row_by_row() {
    let report = check_ept_matrix("test", MATRIX).unwrap();
    assert!(report.passed(), "{report:#?}");
    let wrong = check_ept_matrix("test", &MATRIX.replace("394", "395")).unwrap();
    assert!(!wrong.passed() && wrong.disagreements[0].got.contains("Some(394)"), "{wrong:#?}");
    for (from, to, says) in [
        (r#""entry_perm":"r---""#, r#""entry_perm":"q---""#, "`q` is none of"),
        (r#""level":2,"large_page":true"#, r#""level":9,"large_page":true"#, "no such entry: level 9"),
        ("MAXPHYADDR..51", "somewhere", "`somewhere` are not known"),
        (r#""AD""#, r#""DA""#, "`DA` is none of"),
        (
            r#""access":"read","outcome":"violation""#,
            r#""access":"jump","outcome":"violation""#,
            "unknown variant `jump`",
        ),
    ] {
        let message = check_ept_matrix("test", &MATRIX.replacen(from, to, 1)).unwrap_err().to_string();
        assert!(message.contains(says), "{message}");
    }
}

#[test]
fn the_matrix_from_the_environment_agrees() {
    let Ok(file) = std::env::var("MMU_MATRIX_X86") else { return };
    let report = check_ept_matrix(&file, &std::fs::read_to_string(&file).unwrap()).unwrap();
    println!("{file}: {} walks, {} agree, excepted {:?}", report.cases, report.agreeing, report.excepted);
    assert!(report.passed(), "{report:#?}");
}
