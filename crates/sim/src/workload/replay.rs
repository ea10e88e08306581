//! Replay of recorded traces.

use std::path::PathBuf;

use mmu_core::AccessKind;
use serde::{Deserialize, Serialize};

use mmu_trace::{Access, AccessKind as TraceKind, ReadOptions, TraceError, TraceReader};

use super::GuestAccess;

/// A trace as a workload.
#[derive(Clone, PartialEq, Debug)]
pub struct TraceSpec {
    /// The file.
    pub path: PathBuf,
    /// How to read it.
    pub options: ReadOptions,
    /// Accesses per vCPU; the trace starts over when it is shorter.
    pub accesses: u64,
}

/// Why a replay ended before its time.
#[derive(Debug)]
pub enum ReplayError {
    /// The trace cannot be read on.
    Trace(TraceError),
    /// The trace holds nothing that can be replayed.
    Empty(PathBuf),
    /// A place in a trace was saved, and this trace has no such place.
    Shorter(PathBuf),
    /// A place in a trace was saved, and the workload is none.
    NoTrace,
}

impl std::fmt::Display for ReplayError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ReplayError::Trace(error) => error.fmt(f),
            ReplayError::Empty(path) => {
                write!(f, "{}: the trace holds no accesses; record it again or name another", path.display())
            }
            ReplayError::Shorter(path) => {
                write!(f, "{}: shorter than the trace that was replayed; restore the file", path.display())
            }
            ReplayError::NoTrace => f.write_str("the saved vCPU replayed a trace, this workload is none"),
        }
    }
}

impl std::error::Error for ReplayError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ReplayError::Trace(error) => Some(error),
            ReplayError::Empty(_) | ReplayError::Shorter(_) | ReplayError::NoTrace => None,
        }
    }
}

/// Records read at a time.
const BATCH: usize = 4096;

/// One vCPU's place in a trace.
#[derive(Debug)]
pub struct Replay {
    spec: TraceSpec,
    reader: TraceReader,
    /// Records taken from the reader since the trace was opened last.
    taken: u64,
    batch: Vec<Access>,
    at: usize,
    left: u64,
    pending: Option<GuestAccess>,
    read_any: bool,
    error: Option<ReplayError>,
}

/// A place in a trace.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReplayState {
    left: u64,
    /// Records of this pass that were used.
    record: u64,
    pending: Option<GuestAccess>,
    read_any: bool,
}

impl Replay {
    /// Opens the trace.
    ///
    /// # Errors
    /// When it cannot be opened or is of no known format.
    pub fn new(spec: &TraceSpec) -> Result<Self, ReplayError> {
        let reader = TraceReader::open_with(&spec.path, &spec.options).map_err(ReplayError::Trace)?;
        Ok(Self {
            left: spec.accesses,
            spec: spec.clone(),
            reader,
            taken: 0,
            batch: Vec::with_capacity(BATCH),
            at: 0,
            pending: None,
            read_any: false,
            error: None,
        })
    }

    /// Why it ended before its time, if it did.
    pub fn error(&self) -> Option<&ReplayError> {
        self.error.as_ref()
    }

    pub(crate) fn state(&self) -> ReplayState {
        let ahead = self.batch.len() - self.at;
        ReplayState {
            left: self.left,
            record: self.taken - ahead as u64,
            pending: self.pending,
            read_any: self.read_any,
        }
    }

    /// Goes to a place in the trace from its start.
    pub(crate) fn set(&mut self, state: ReplayState) -> Result<(), ReplayError> {
        let mut fresh = Self::new(&self.spec)?;
        while fresh.taken < state.record {
            fresh.batch.clear();
            match fresh.reader.fill(&mut fresh.batch, BATCH).map_err(ReplayError::Trace)? {
                0 => return Err(ReplayError::Shorter(self.spec.path.clone())),
                records => fresh.taken += records as u64,
            }
        }
        // Batches are as they were when the trace was read before, so the place is in this one.
        fresh.at = fresh.batch.len() - (fresh.taken - state.record) as usize;
        (fresh.left, fresh.pending, fresh.read_any) = (state.left, state.pending, state.read_any);
        *self = fresh;
        Ok(())
    }

    /// Reads the next batch, from the start again after the end.
    fn refill(&mut self) -> bool {
        self.at = 0;
        self.batch.clear();
        for _ in 0..2 {
            match self.reader.fill(&mut self.batch, BATCH) {
                Ok(0) if !self.read_any => {
                    self.error = Some(ReplayError::Empty(self.spec.path.clone()));
                    return false;
                }
                Ok(0) => match TraceReader::open_with(&self.spec.path, &self.spec.options) {
                    Ok(reader) => (self.reader, self.taken) = (reader, 0),
                    Err(error) => {
                        self.error = Some(ReplayError::Trace(error));
                        return false;
                    }
                },
                Ok(records) => {
                    self.taken += records as u64;
                    self.read_any = true;
                    return true;
                }
                // Records before the damage were delivered with an earlier batch or are in this one.
                Err(error) => {
                    self.error = Some(ReplayError::Trace(error));
                    return !self.batch.is_empty();
                }
            }
        }
        false
    }
}

impl Iterator for Replay {
    type Item = GuestAccess;

    /// The next access. A modify is a load, then a store.
    #[inline]
    fn next(&mut self) -> Option<GuestAccess> {
        self.left = self.left.checked_sub(1)?;
        if let Some(store) = self.pending.take() {
            return Some(store);
        }
        if self.at == self.batch.len() && !self.refill() {
            self.left = 0;
            return None;
        }
        let access = self.batch[self.at];
        self.at += 1;
        let kind = match access.kind {
            TraceKind::Fetch => AccessKind::Execute,
            TraceKind::Load => AccessKind::Read,
            TraceKind::Store => AccessKind::Write,
            TraceKind::Modify => {
                self.pending = Some(GuestAccess { gva: access.va, kind: AccessKind::Write });
                AccessKind::Read
            }
        };
        Some(GuestAccess { gva: access.va, kind })
    }
}
