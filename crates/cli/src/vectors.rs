//! `check-vectors` and `check-matrix`: recorded translations and tables of rules against the walkers.

use std::fmt::Write;
use std::path::Path;

use mmusim::vectors::{FileReport, Limits, Quirk, VectorError, check_file, check_matrix_file};
use serde_json::json;

use crate::args::JudgedFiles;
use crate::output::Output;
use crate::progress::Progress;
use crate::table::Columns;
use crate::{CliError, SCHEMA_VERSION};

/// `check-vectors`
pub fn check(args: &JudgedFiles) -> Result<(), CliError> {
    check_each(args, check_file, "name a vector file of JSON lines, plain or xz")
}

/// `check-matrix`
pub fn check_matrix(args: &JudgedFiles) -> Result<(), CliError> {
    check_each(args, check_matrix_file, "name a permission matrix or table of rules, JSON or xz")
}

/// Checks every file, reports on those that could be read, then fails for the others.
fn check_each(
    args: &JudgedFiles,
    check: impl Fn(&Path, Limits) -> Result<FileReport, VectorError>,
    remedy: &str,
) -> Result<(), CliError> {
    let mut output = Output::open(args.output.as_deref())?;
    let progress = Progress::new(args.files.len() as u64);
    let (mut reports, mut failed) = (Vec::new(), Vec::new());
    for file in &args.files {
        progress.say(file.display().to_string());
        match check(file, Limits::default()) {
            Ok(report) => reports.push(report),
            Err(error) => failed.push(CliError::input(format!("{error}; {remedy}"))),
        }
        progress.step();
    }
    drop(progress);
    output.write(&if args.json { as_json(&reports) } else { as_text(&reports) })?;
    output.finish()?;
    let disagreeing: u64 = reports.iter().map(|report| report.disagreeing).sum();
    if disagreeing > 0 {
        failed.push(CliError::Check(format!("{disagreeing} cases disagree with the recorded answers")));
    }
    if failed.is_empty() { Ok(()) } else { Err(CliError::Several(failed)) }
}

fn as_json(reports: &[FileReport]) -> String {
    let passed = reports.iter().all(FileReport::passed);
    let document = json!({ "schema_version": SCHEMA_VERSION, "passed": passed, "files": reports });
    format!("{document:#}\n")
}

fn excepted(report: &FileReport) -> u64 {
    report.excepted.iter().map(|(_, count)| count).sum()
}

fn as_text(reports: &[FileReport]) -> String {
    let mut columns = Columns::new(1, &["file", "images", "cases", "agreeing", "disagreeing", "excepted"]);
    for report in reports {
        let numbers = [report.images, report.cases, report.agreeing, report.disagreeing, excepted(report)];
        columns.row(std::iter::once(report.file.clone()).chain(numbers.map(|number| number.to_string())));
    }
    let mut text = columns.render();
    // Writing to a string cannot fail.
    for (quirk, count) in rules(reports) {
        let _ = writeln!(text, "excepted by {}: {count} cases\n    {}", quirk.name, quirk.why);
    }
    for report in reports {
        for case in &report.disagreements {
            let _ = writeln!(
                text,
                "{}, line {}, image {}, case {}: {}\n    expected {}\n    got      {}",
                report.file, case.line, case.image, case.case, case.access, case.expected, case.got
            );
        }
        let more = report.disagreeing - report.disagreements.len() as u64;
        if more > 0 {
            let _ = writeln!(text, "{}: {more} more disagreements", report.file);
        }
    }
    text
}

/// Every rule with its cases in all files.
fn rules(reports: &[FileReport]) -> Vec<(Quirk, u64)> {
    let mut rules: Vec<(Quirk, u64)> = Vec::new();
    for &(quirk, count) in reports.iter().flat_map(|report| &report.excepted) {
        match rules.iter_mut().find(|(known, _)| *known == quirk) {
            Some((_, sum)) => *sum += count,
            None => rules.push((quirk, count)),
        }
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;
    use mmusim::vectors::Disagreement;

    #[test]
    fn a_disagreement_is_explained_and_the_rest_is_counted() {
        let case = Disagreement {
            image: "i7".to_owned(),
            line: 3,
            case: 12,
            access: "read 0x1000".to_owned(),
            expected: "pa 0x2000".to_owned(),
            got: "fault".to_owned(),
        };
        let quirk = Quirk { name: "q", why: "the manual says otherwise" };
        let report = FileReport {
            file: "f.jsonl".to_owned(),
            images: 1,
            cases: 10,
            agreeing: 1,
            disagreeing: 7,
            excepted: vec![(quirk, 2)],
            disagreements: vec![case],
        };
        let text = as_text(&[report.clone(), report.clone()]);
        assert!(text.contains("excepted by q: 4 cases"), "{text}");
        assert!(text.contains("f.jsonl, line 3, image i7, case 12: read 0x1000\n    expected pa 0x2000\n"), "{text}");
        assert!(text.contains("6 more disagreements"), "{text}");
        assert!(as_json(&[report]).contains("\"passed\": false"));
    }
}
