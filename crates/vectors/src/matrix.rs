//! Permission matrices and rule tables: one JSON document each, told apart by their sections.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::report::FileReport;
use crate::run::{Limits, VectorError};
use crate::{check_arm64_matrix, check_bbm_rules, check_ept_matrix, check_power_matrix};

/// A section that only one kind of document has.
#[derive(Deserialize)]
struct Sections {
    compact_matrix: Option<IgnoredAny>,
    partition_scoped: Option<IgnoredAny>,
    af_dirty: Option<IgnoredAny>,
    rule: Option<IgnoredAny>,
}

/// Checks a permission matrix (EPT, Arm stage 2, POWER radix) or a table of break-before-make rules, plain or
/// xz-compressed, against decoding, permission and walkers.
///
/// # Errors
/// When the file cannot be read, is longer than a line may be, or is none of the four. Disagreements are not errors.
pub fn check_matrix_file(path: &Path, limits: Limits) -> Result<FileReport, VectorError> {
    let name = path.display().to_string();
    let io = |source| VectorError::Io { file: name.clone(), source };
    let mut input = BufReader::new(File::open(path).map_err(io)?);
    let packed = input.fill_buf().map_err(io)?.starts_with(&[0xfd, b'7', b'z', b'X', b'Z']);
    let text = if packed { limited(lzma_rust2::XzReader::new(input, true), limits) } else { limited(input, limits) };
    check_matrix(&name, &text.map_err(io)?)
}

fn limited(input: impl Read, limits: Limits) -> io::Result<String> {
    let mut text = String::new();
    input.take(limits.line_bytes + 1).read_to_string(&mut text)?;
    if text.len() as u64 > limits.line_bytes {
        let what = format!("longer than {} bytes, which no matrix is", limits.line_bytes);
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    Ok(text)
}

/// Like [`check_matrix_file`], of a text; `name` stands for it in errors.
///
/// # Errors
/// When it is none of the four documents.
pub fn check_matrix(name: &str, text: &str) -> Result<FileReport, VectorError> {
    let fail = |line, what| VectorError::Line { file: name.to_owned(), line, what };
    let sections: Sections = serde_json::from_str(text).map_err(|error| fail(error.line(), error.to_string()))?;
    match sections {
        Sections { compact_matrix: Some(_), .. } => check_ept_matrix(name, text),
        Sections { af_dirty: Some(_), .. } => check_arm64_matrix(name, text),
        Sections { partition_scoped: Some(_), .. } => check_power_matrix(name, text),
        Sections { rule: Some(_), .. } => check_bbm_rules(name, text),
        _ => Err(fail(
            1,
            "no section of a known matrix; expected compact_matrix (EPT), af_dirty (Arm stage 2), partition_scoped (POWER radix) \
             or rule (break-before-make)"
                .to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_of_no_known_kind_is_told_what_there_is() {
        let error = check_matrix("m.json", "{\"title\": \"x\"}").unwrap_err().to_string();
        assert!(error.starts_with("m.json: line 1: no section") && error.contains("partition_scoped"), "{error}");
        let error = check_matrix("m.json", "{\n\"title\": ").unwrap_err().to_string();
        assert!(error.starts_with("m.json: line 2: EOF"), "{error}");
    }

    #[test]
    fn the_shipped_matrices_are_told_apart() {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
        for (file, cases) in
            [("arm64-bbm-rules.json.xz", 21), ("arm64-s2-matrix.json.xz", 346), ("ppc-radix-matrix.json.xz", 315)]
        {
            let report = check_matrix_file(&data.join(file), Limits::default()).unwrap();
            assert_eq!((report.cases, report.disagreeing), (cases, 0), "{file}");
        }
        let short = Limits { line_bytes: 100, ..Limits::default() };
        let error = check_matrix_file(&data.join("arm64-bbm-rules.json.xz"), short).unwrap_err().to_string();
        assert!(error.contains("longer than 100 bytes"), "{error}");
    }
}
