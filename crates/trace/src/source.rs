//! A window on the decompressed input: formats look at bytes in place and say how many they used.

use std::fmt;
use std::io::{self, Read};

use crate::{Compression, Limits, Place, Problem, TraceError};

/// Bytes read at once: large enough to make a call cheap, small enough for a core's second-level cache.
const WINDOW: usize = 256 << 10;

/// The buffered input. A failure is kept, so that the bytes before it are used up first and the reader under it,
/// which may be in any state then, is never called again.
pub(crate) struct Source {
    input: Box<dyn Read + Send>,
    compression: Compression,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Offset in the decompressed stream of `buffer[start]`.
    offset: u64,
    max_bytes: u64,
    ended: bool,
    failure: Option<TraceError>,
}

impl Source {
    pub(crate) fn new(input: Box<dyn Read + Send>, limits: &Limits) -> Result<Self, TraceError> {
        let (compression, input) = crate::compress::decoder(input, limits).map_err(|e| TraceError::io("read", &e))?;
        Ok(Self {
            input,
            compression,
            buffer: Vec::new(),
            start: 0,
            end: 0,
            offset: 0,
            max_bytes: limits.decompressed_bytes,
            ended: false,
            failure: None,
        })
    }

    pub(crate) fn compression(&self) -> Compression {
        self.compression
    }

    /// The bytes at hand.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Offset in the decompressed stream of the first of [`Self::bytes`].
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Drops the first `count` bytes, which were used.
    pub(crate) fn consume(&mut self, count: usize) {
        let count = count.min(self.end - self.start);
        self.start += count;
        self.offset += count as u64;
    }

    /// Reads until `wanted` bytes are at hand or the input is over; returns how many are at hand.
    pub(crate) fn want(&mut self, wanted: usize) -> usize {
        while self.end - self.start < wanted && !self.ended {
            self.make_room(wanted);
            self.read_some();
        }
        self.end - self.start
    }

    /// The input is over although `unit` bytes of `field` were wanted: that is an end, a failure or a cut.
    pub(crate) fn over(&self, field: &'static str, unit: usize) -> Result<(), TraceError> {
        self.failure()?;
        match self.bytes().len() {
            0 => Ok(()),
            found => Err(TraceError::new(
                Place::Byte(self.offset),
                Problem::Truncated { field, expected: unit as u64, found: found as u64 },
            )),
        }
    }

    /// The failure that ended the input, if one did.
    pub(crate) fn failure(&self) -> Result<(), TraceError> {
        self.failure.clone().map_or(Ok(()), Err)
    }

    fn make_room(&mut self, wanted: usize) {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let size = wanted.max(WINDOW);
        if self.buffer.len() < size {
            self.buffer.resize(size, 0);
        }
    }

    fn read_some(&mut self) {
        let at = self.offset + (self.end - self.start) as u64;
        // One byte past the limit tells "exactly at the limit" from "more than that".
        let allowed = (self.max_bytes - at).saturating_add(1).min(self.buffer.len() as u64) as usize;
        let stop = self.buffer.len().min(self.end.saturating_add(allowed));
        match self.input.read(&mut self.buffer[self.end..stop]) {
            Ok(0) => self.ended = true,
            Ok(count) => {
                self.end += count;
                if at + count as u64 > self.max_bytes {
                    self.end -= 1;
                    let limit = Problem::Limit { limit: "decompressed_bytes", max: self.max_bytes };
                    self.fail(TraceError::new(Place::Byte(self.max_bytes), limit));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                let problem = match self.compression {
                    Compression::Plain => {
                        Problem::Io { action: "read", kind: error.kind(), message: error.to_string() }
                    }
                    compression => Problem::Compressed { compression, message: error.to_string() },
                };
                self.fail(TraceError::new(Place::Byte(at), problem));
            }
        }
    }

    fn fail(&mut self, error: TraceError) {
        self.ended = true;
        self.failure = Some(error);
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source")
            .field("compression", &self.compression)
            .field("offset", &self.offset)
            .finish_non_exhaustive()
    }
}
