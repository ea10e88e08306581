//! Errors that tell the input, the place in it, what was expected and found, and the remedy.

use std::fmt;
use std::io;

use crate::{Access, Compression, TraceFormat};

/// Where in the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The file as a whole.
    File,
    /// Line of a text format, from 1.
    Line(u64),
    /// Byte after decompression, from 0.
    Byte(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File => Ok(()),
            Self::Line(line) => write!(f, "line {line}: "),
            Self::Byte(byte) => write!(f, "byte {byte}: "),
        }
    }
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// The operating system refused.
    Io {
        /// What was being done, such as `open`.
        action: &'static str,
        /// The kind of refusal.
        kind: io::ErrorKind,
        /// Its own words.
        message: String,
    },
    /// The compressed stream is damaged or cut.
    Compressed {
        /// Which compression.
        compression: Compression,
        /// The decoder's own words.
        message: String,
    },
    /// The input ends inside something.
    Truncated {
        /// What it ends in.
        field: &'static str,
        /// Bytes that it takes.
        expected: u64,
        /// Bytes that are there.
        found: u64,
    },
    /// A field holds something it must not.
    Field {
        /// Which field.
        field: &'static str,
        /// What may stand there.
        expected: String,
        /// What stands there.
        found: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A bound of [`Limits`](crate::Limits) was exceeded.
    Limit {
        /// Name of the field of `Limits`.
        limit: &'static str,
        /// Its value.
        max: u64,
    },
    /// The format can be told neither from the content nor from the name.
    UnknownFormat,
    /// The format can only be read.
    ReadOnly {
        /// The format asked for.
        format: TraceFormat,
    },
    /// The format has no room for this record.
    DoesNotFit {
        /// The format written.
        format: TraceFormat,
        /// The record.
        access: Access,
    },
}

impl Problem {
    pub(crate) fn field(field: &'static str, expected: &str, found: impl fmt::Display, remedy: &'static str) -> Self {
        Self::Field { field, expected: expected.to_owned(), found: found.to_string(), remedy }
    }

    /// What the user can do.
    pub const fn remedy(&self) -> &'static str {
        match self {
            Self::Io { .. } => "check the path, the permissions and the free space",
            Self::Compressed { .. } => "fetch or make the file again; the records before this point are sound",
            Self::Truncated { .. } => "the file is cut or of another format: make it again, or name the format",
            Self::Field { remedy, .. } => remedy,
            Self::Limit { .. } => "raise this limit if the file is trusted",
            Self::UnknownFormat => {
                "name the format: lackey, champsim, champsim-cloudsuite, packed or mmut (it is told from content, then from the extension)"
            }
            Self::ReadOnly { .. } => "write mmut, packed or lackey",
            Self::DoesNotFit { .. } => "write mmut, which holds every record",
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { action, message, .. } => write!(f, "cannot {action}: {message}"),
            Self::Compressed { compression, message } => write!(f, "damaged or cut {compression} data: {message}"),
            Self::Truncated { field, expected, found } => {
                write!(f, "the input ends inside the {field}: expected {expected} bytes, found {found}")
            }
            Self::Field { field, expected, found, .. } => write!(f, "{field}: expected {expected}, found {found}"),
            Self::Limit { limit, max } => write!(f, "more than the limit `{limit}` of {max}"),
            Self::UnknownFormat => f.write_str("cannot tell the trace format"),
            Self::ReadOnly { format } => write!(f, "the format {format} can be read but not written"),
            Self::DoesNotFit { format, access } => write!(f, "the record {access} does not fit the format {format}"),
        }
    }
}

/// A trace could not be read or written. `Display` gives input, place, problem and remedy on one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceError(Box<Inner>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Inner {
    input: String,
    place: Place,
    problem: Problem,
}

impl TraceError {
    pub(crate) fn new(place: Place, problem: Problem) -> Self {
        Self(Box::new(Inner { input: String::new(), place, problem }))
    }

    pub(crate) fn io(action: &'static str, error: &io::Error) -> Self {
        Self::new(Place::File, Problem::Io { action, kind: error.kind(), message: error.to_string() })
    }

    /// The same error, with the input's name.
    pub(crate) fn named(mut self, input: &str) -> Self {
        input.clone_into(&mut self.0.input);
        self
    }

    /// Name of the input or output.
    pub fn input(&self) -> &str {
        &self.0.input
    }

    /// Where in it.
    pub fn place(&self) -> Place {
        self.0.place
    }

    /// What is wrong there.
    pub fn problem(&self) -> &Problem {
        &self.0.problem
    }
}

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { input, place, problem } = &*self.0;
        write!(f, "{input}: {place}{problem}; {}", problem.remedy())
    }
}

impl std::error::Error for TraceError {}
