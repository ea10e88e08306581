//! The command line as documents keep it, so that whoever reads one can make it again.

use std::ffi::OsString;
use std::fmt;

/// Options, each with a value, that a result does not depend on: the same result is the same document, however many threads
/// made it and wherever it was written.
const LEFT_OUT: [&str; 6] = ["--threads", "--output", "-o", "--events", "--timeline", "--svg"];

/// A command line that makes the same result, as a shell takes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Invocation(String);

impl Invocation {
    /// Of the program's arguments, its own name first.
    pub(crate) fn new(args: &[OsString]) -> Self {
        let mut text = "mmusim".to_owned();
        let mut words = args.iter().skip(1).map(|word| word.to_string_lossy());
        while let Some(word) = words.next() {
            if LEFT_OUT.contains(&&*word) {
                words.next();
            } else if !LEFT_OUT.iter().any(|option| joined(&word, option)) {
                text.push(' ');
                text += &quoted(&word);
            }
        }
        Self(text)
    }
}

impl fmt::Display for Invocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a word is an option with its value: `--threads=4`, `-oFILE`.
fn joined(word: &str, option: &str) -> bool {
    word.strip_prefix(option)
        .is_some_and(|rest| if option.starts_with("--") { rest.starts_with('=') } else { !rest.is_empty() })
}

/// A word as a shell wants it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./=:,+%@".contains(c);
    let is_plain = !word.is_empty() && word.chars().all(plain);
    if is_plain { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_result_does_not_depend_on_is_left_out() {
        let words = [
            "/usr/bin/mmusim",
            "run",
            "--threads",
            "4",
            "-oX",
            "--output=y",
            "--strategy",
            "it's (6.9)",
            "-o",
            "a b",
            "--json",
            "-v",
            "",
        ];
        let invocation = Invocation::new(&words.map(OsString::from));
        assert_eq!(invocation.to_string(), "mmusim run --strategy 'it'\\''s (6.9)' --json -v ''");
    }
}
