//! What can go wrong, how it is told, and the exit code of it.

use std::fmt;
use std::process::ExitCode;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use mmusim::MachineError;

use crate::Colour;

/// How the program ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// Everything was done.
    Fine = 0,
    /// The work was done and found something wrong: vectors that disagree, a violated invariant, a deadlock.
    CheckFailed = 1,
    /// The command line, a file or a machine sheet is not what it should be.
    BadInput = 2,
    /// The work could not be finished: the results could not be written.
    Incomplete = 3,
    /// Stopped on request before the end; the same command goes on (`EX_TEMPFAIL`).
    Stopped = 75,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// Why a command did not end well.
#[derive(Debug)]
pub enum CliError {
    /// An argument that cannot be used.
    Argument {
        /// The argument as it can be written, with its value.
        argument: String,
        /// What is wrong with it, and the remedy.
        what: String,
    },
    /// A file that cannot be used; the text names it, the place in it, and the remedy.
    Input(String),
    /// A machine sheet with defects.
    Sheet {
        /// Name of the file.
        file: String,
        /// Its text.
        text: String,
        /// What is wrong with it.
        errors: Vec<MachineError>,
    },
    /// Several files failed; each has its own error.
    Several(Vec<CliError>),
    /// The work was done and found something wrong.
    Check(String),
    /// Results are not all there.
    Incomplete(String),
    /// Stopped on request; the same command goes on.
    Stopped(String),
    /// Results could not be written.
    Write {
        /// Where to.
        to: String,
        /// What the system says.
        why: std::io::Error,
    },
    /// Nobody reads the output any more.
    ClosedPipe,
}

impl CliError {
    /// An argument that cannot be used.
    pub fn argument(argument: impl Into<String>, what: impl fmt::Display) -> Self {
        CliError::Argument { argument: argument.into(), what: what.to_string() }
    }

    /// A file that cannot be used.
    pub fn input(what: impl fmt::Display) -> Self {
        CliError::Input(what.to_string())
    }

    /// The program's exit code. Of several failures the one that says most about the input counts.
    pub fn exit(&self) -> Exit {
        match self {
            CliError::Argument { .. } | CliError::Input(_) | CliError::Sheet { .. } => Exit::BadInput,
            CliError::Several(errors) if errors.iter().any(|error| error.exit() == Exit::BadInput) => Exit::BadInput,
            CliError::Several(errors) => errors.first().map_or(Exit::CheckFailed, CliError::exit),
            CliError::Check(_) => Exit::CheckFailed,
            CliError::Write { .. } | CliError::Incomplete(_) => Exit::Incomplete,
            CliError::Stopped(_) => Exit::Stopped,
            CliError::ClosedPipe => Exit::Fine,
        }
    }

    /// What standard error is told; `None` for nothing.
    pub fn render(&self, colour: Colour) -> Option<String> {
        match self {
            CliError::Argument { argument, what } => Some(format!("error: {argument}: {what}")),
            CliError::Input(what) | CliError::Check(what) | CliError::Incomplete(what) => {
                Some(format!("error: {what}"))
            }
            CliError::Stopped(what) => Some(format!("stopped: {what}")),
            CliError::Sheet { file, text, errors } => Some(draw(file, text, errors, colour)),
            CliError::Several(errors) => {
                Some(errors.iter().filter_map(|error| error.render(colour)).collect::<Vec<_>>().join("\n"))
            }
            CliError::Write { to, why } => {
                Some(format!("error: {to}: cannot write: {why}; make room or write elsewhere with --output FILE"))
            }
            CliError::ClosedPipe => None,
        }
    }
}

/// Draws the defects of a sheet under the lines they are in.
fn draw(file: &str, text: &str, errors: &[MachineError], colour: Colour) -> String {
    let groups: Vec<_> = errors
        .iter()
        .map(|error| {
            let start = error.span.start.min(text.len());
            let end = error.span.end.clamp(start, text.len());
            let snippet = Snippet::source(text).path(file).annotation(AnnotationKind::Primary.span(start..end));
            let title = Level::ERROR.primary_title(error.message.as_str());
            title.element(snippet).element(Level::HELP.message(error.help.as_str()))
        })
        .collect();
    let renderer = match colour {
        Colour::Styled => Renderer::styled(),
        Colour::Plain => Renderer::plain(),
    };
    renderer.render(&groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(span: std::ops::Range<usize>) -> MachineError {
        MachineError { span, message: "96 sets".to_owned(), help: "give a power of two".to_owned() }
    }

    #[test]
    fn defects_are_underlined_where_they_are() {
        let drawn = draw("b.toml", "a = 1\nsets = 96\n", &[error(13..15)], Colour::Plain);
        assert!(drawn.contains("error: 96 sets") && drawn.contains("b.toml:2:8"), "{drawn}");
        assert!(drawn.contains("2 | sets = 96") && drawn.contains("       ^^"), "{drawn}");
        assert!(drawn.contains("help: give a power of two"), "{drawn}");
    }

    #[test]
    fn any_place_can_be_drawn() {
        for text in ["", "x", "ä = 1\n\n"] {
            for span in [0..0, 0..text.len(), text.len()..text.len(), 5..900] {
                assert!(!draw("f.toml", text, &[error(span)], Colour::Plain).is_empty());
            }
        }
    }

    #[test]
    fn bad_input_outweighs_a_failed_check() {
        let several = CliError::Several(vec![CliError::Check("1".into()), CliError::input("2")]);
        assert_eq!(several.exit(), Exit::BadInput);
        assert_eq!(several.render(Colour::Plain).unwrap(), "error: 1\nerror: 2");
        assert_eq!((CliError::ClosedPipe.exit(), CliError::ClosedPipe.render(Colour::Plain)), (Exit::Fine, None));
    }
}
