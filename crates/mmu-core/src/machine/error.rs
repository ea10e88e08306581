//! Errors of machine descriptions: what is wrong, where, and what to write instead.

use std::fmt;
use std::ops::Range;

/// One defect of a machine description.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MachineError {
    /// Bytes of the source it concerns.
    pub span: Range<usize>,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub help: String,
}

impl MachineError {
    /// Line and column, both from 1, of the place in the source the error was made from.
    pub fn line_column(&self, source: &str) -> (usize, usize) {
        let before = source.get(..self.span.start).unwrap_or(source);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }
}

impl fmt::Display for MachineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.message, self.help)
    }
}
impl std::error::Error for MachineError {}

/// The known name nearest to a mistyped one, if one is near.
pub(super) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let scored = known.map(|name| (distance(word, name), name));
    scored.filter(|&(d, name)| d <= 1 + name.len() / 3).min().map(|(_, name)| name)
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_typing_errors_only() {
        let known = ["ipi_ack", "vm_exit"];
        assert_eq!(nearest("ipi_akc", known.into_iter()), Some("ipi_ack"));
        assert_eq!(nearest("moonlight", known.into_iter()), None);
    }

    #[test]
    fn places_count_from_one() {
        let error = MachineError { span: 4..5, message: String::new(), help: String::new() };
        assert_eq!(error.line_column("a\nbcd"), (2, 3));
    }
}
