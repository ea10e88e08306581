//! What can go wrong with a sweep.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::point::PointId;

/// Why a sweep cannot go on.
#[derive(Debug)]
pub enum SweepError {
    /// A sweep's file says something that cannot be planned.
    Spec {
        /// The file, or the place in it.
        place: String,
        /// What is wrong, and the remedy.
        what: String,
    },
    /// A file or directory of the plan cannot be read or written.
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        why: std::io::Error,
    },
    /// A plan's directory is not what it should be.
    Plan {
        /// The directory or file.
        path: PathBuf,
        /// What is wrong, and the remedy.
        what: String,
    },
    /// Points without a result.
    Incomplete {
        /// Which, by their places in the plan.
        missing: Vec<usize>,
        /// Points of the plan.
        of: usize,
    },
    /// A point that was run twice gave two results.
    Nondeterminism {
        /// Which.
        id: PointId,
        /// The files that disagree.
        files: [PathBuf; 2],
    },
}

impl SweepError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |why| SweepError::Io { path, why }
    }
    pub(crate) fn plan(path: &Path, what: impl Into<String>) -> Self {
        SweepError::Plan { path: path.to_owned(), what: what.into() }
    }
    pub(crate) fn spec(place: impl Into<String>, what: impl Into<String>) -> Self {
        SweepError::Spec { place: place.into(), what: what.into() }
    }
}

impl fmt::Display for SweepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SweepError::Spec { place, what } => write!(f, "{place}: {what}"),
            SweepError::Io { path, why } => write!(f, "{}: {why}", path.display()),
            SweepError::Plan { path, what } => write!(f, "{}: {what}", path.display()),
            SweepError::Incomplete { missing, of } => {
                write!(f, "{} of {of} points have no result; run their shards again", missing.len())
            }
            SweepError::Nondeterminism { id, files: [one, other] } => write!(
                f,
                "nondeterminism at point {id}: {} and {} differ; the same point must give the same bytes, so one of the machines or \
                 programs cannot be trusted",
                one.display(),
                other.display()
            ),
        }
    }
}

impl std::error::Error for SweepError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            SweepError::Io { why, .. } => Some(why),
            _ => None,
        }
    }
}
