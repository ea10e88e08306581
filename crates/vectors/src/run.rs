//! Reading a file line by line and handing each image to its architecture.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use serde::Deserialize;

use crate::report::FileReport;

/// Bounds on what a reader accepts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Longest line in bytes.
    pub line_bytes: u64,
    /// Most images in a file.
    pub images: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { line_bytes: 64 << 20, images: 1 << 20 }
    }
}

/// A vector file that cannot be read.
#[derive(Debug)]
pub enum VectorError {
    /// The file cannot be opened or read.
    Io {
        /// Which file.
        file: String,
        /// What the system says.
        source: io::Error,
    },
    /// A line is not what the format says.
    Line {
        /// Which file.
        file: String,
        /// Which line, from 1.
        line: usize,
        /// What is wrong and what would be right.
        what: String,
    },
}

impl fmt::Display for VectorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VectorError::Io { file, source } => write!(f, "{file}: {source}"),
            VectorError::Line { file, line, what } => write!(f, "{file}: line {line}: {what}"),
        }
    }
}

impl std::error::Error for VectorError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            VectorError::Io { source, .. } => Some(source),
            VectorError::Line { .. } => None,
        }
    }
}

/// Where an image stands, for reports.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// Line of the file, from 1.
    pub(crate) line: usize,
}

/// Checks every case of a file (plain or xz-compressed, told by content).
///
/// # Errors
/// When the file cannot be read or is not of the format. Disagreements are not errors.
pub fn check_file(path: &Path, limits: Limits) -> Result<FileReport, VectorError> {
    let name = path.display().to_string();
    let io = |source| VectorError::Io { file: name.clone(), source };
    let file = File::open(path).map_err(io)?;
    check_reader(&name, file, limits)
}

/// Checks every case of a stream called `name`.
///
/// # Errors
/// As [`check_file`].
pub fn check_reader(name: &str, reader: impl Read, limits: Limits) -> Result<FileReport, VectorError> {
    const XZ_MAGIC: &[u8] = b"\xfd7zXZ\0";
    let io = |source| VectorError::Io { file: name.to_owned(), source };
    let mut reader = BufReader::new(reader);
    let head = reader.fill_buf().map_err(io)?;
    if head.starts_with(XZ_MAGIC) {
        check_lines(name, BufReader::new(lzma_rust2::XzReader::new(reader, true)), limits)
    } else {
        check_lines(name, reader, limits)
    }
}

fn check_lines(name: &str, mut reader: impl BufRead, limits: Limits) -> Result<FileReport, VectorError> {
    let mut report = FileReport { file: name.to_owned(), ..FileReport::default() };
    let mut text = String::new();
    for line in 1.. {
        let fail = |what: String| VectorError::Line { file: name.to_owned(), line, what };
        text.clear();
        let read = (&mut reader).take(limits.line_bytes).read_line(&mut text);
        let read = read.map_err(|source| fail(format!("{source}; the file may be truncated: fetch it again")))?;
        if read == 0 {
            break;
        }
        if read as u64 == limits.line_bytes {
            return Err(fail(format!("longer than {} bytes; raise the limit or split the image", limits.line_bytes)));
        }
        if text.trim().is_empty() {
            continue;
        }
        if report.images == limits.images {
            return Err(fail(format!("more than {} images; raise the limit or split the file", limits.images)));
        }
        report.images += 1;
        check_image(&text, Place { line }, &mut report).map_err(fail)?;
    }
    Ok(report)
}

/// The one field that is looked at before an architecture is chosen.
#[derive(Deserialize)]
struct Header {
    arch: String,
}

fn check_image(text: &str, place: Place, report: &mut FileReport) -> Result<(), String> {
    let header: Header = serde_json::from_str(text).map_err(|error| error.to_string())?;
    match header.arch.as_str() {
        "x86-ept" => crate::x86::check_image(text, place, report),
        "arm64-stage2" => crate::arm64::check_image(text, place, report),
        "power-radix" => crate::ppc::check_image(text, place, report),
        other => Err(format!("unknown arch `{other}`; x86-ept, arm64-stage2 and power-radix are known")),
    }
}
