//! The reader: one decoder behind a uniform interface, in batches or one by one.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::format::SAMPLE;
use crate::formats::{Decoder, UNIT};
use crate::source::Source;
use crate::{Access, Compression, Limits, MmutHeader, Place, Problem, TraceError, TraceFormat};

/// Records decoded at once into the reader's own queue; at least [`UNIT`].
const BATCH: usize = 4096;
const _: () = assert!(BATCH >= UNIT);

/// How to read a trace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// The format; `None` tells it from the content, then from the extension.
    pub format: Option<TraceFormat>,
    /// What to spend at most.
    pub limits: Limits,
}

/// Reads a trace as a stream; memory does not grow with the file.
///
/// [`fill`](Self::fill) is the fast way. As an iterator it gives `Result<Access, TraceError>` and ends after the first
/// error. Records before an error are always delivered first.
#[derive(Debug)]
pub struct TraceReader {
    name: String,
    format: TraceFormat,
    source: Source,
    decoder: Decoder,
    /// Decoded and not yet delivered: `queue[next..]`.
    queue: Vec<Access>,
    next: usize,
    decoded: u64,
    max_records: u64,
    end: Option<End>,
}

#[derive(Debug)]
enum End {
    Clean,
    Failed(TraceError),
    /// The iterator has reported the failure.
    Reported(TraceError),
}

impl TraceReader {
    /// Opens a file; `format` overrides detection.
    ///
    /// # Errors
    /// The file cannot be opened, its format cannot be told, or its header is damaged.
    pub fn open(path: impl AsRef<Path>, format: Option<TraceFormat>) -> Result<Self, TraceError> {
        Self::open_with(path, &ReadOptions { format, ..ReadOptions::default() })
    }

    /// Opens a file with limits of one's own; errors as for [`open`](Self::open).
    pub fn open_with(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Self, TraceError> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let file = File::open(path).map_err(|error| TraceError::io("open", &error).named(&name))?;
        Self::build(Box::new(file), path, options).map_err(|error| error.named(&name))
    }

    /// Reads from anything; `name` stands in errors, and its extension helps detection.
    ///
    /// # Errors
    /// As for [`open`](Self::open). Never panics, whatever the bytes.
    pub fn from_reader(
        input: impl Read + Send + 'static,
        name: &str,
        options: &ReadOptions,
    ) -> Result<Self, TraceError> {
        Self::build(Box::new(input), Path::new(name), options).map_err(|error| error.named(name))
    }

    fn build(input: Box<dyn Read + Send>, path: &Path, options: &ReadOptions) -> Result<Self, TraceError> {
        let mut source = Source::new(input, &options.limits)?;
        let format = match options.format {
            Some(format) => format,
            None => detect(&mut source, path)?,
        };
        let decoder = Decoder::new(format, &mut source, &options.limits)?;
        Ok(Self {
            name: path.display().to_string(),
            format,
            source,
            decoder,
            queue: Vec::new(),
            next: 0,
            decoded: 0,
            max_records: options.limits.records,
            end: None,
        })
    }

    /// The format, given or found.
    pub fn format(&self) -> TraceFormat {
        self.format
    }

    /// The compression found.
    pub fn compression(&self) -> Compression {
        self.source.compression()
    }

    /// The header, of an `.mmut` trace.
    pub fn header(&self) -> Option<&MmutHeader> {
        match &self.decoder {
            Decoder::Mmut(decoder) => Some(decoder.header()),
            _ => None,
        }
    }

    /// Bytes of decompressed input used so far.
    pub fn bytes_read(&self) -> u64 {
        self.source.offset()
    }

    /// Appends up to `max` records to `out` and says how many: fewer only at the end or ahead of an error, and zero
    /// (for `max` above zero) only at the end. Fastest with `max` of a few thousand or more.
    ///
    /// # Errors
    /// The input is damaged, cut, or above a limit, right after the last record delivered; asking again gives
    /// the same error.
    pub fn fill(&mut self, out: &mut Vec<Access>, max: usize) -> Result<usize, TraceError> {
        let start = out.len();
        while out.len() - start < max {
            let wanted = max - (out.len() - start);
            if self.next < self.queue.len() {
                let stop = self.queue.len().min(self.next + wanted);
                out.extend_from_slice(&self.queue[self.next..stop]);
                self.next = stop;
            } else if self.end.is_some() {
                break;
            } else if wanted >= BATCH {
                self.decode(out, wanted);
            } else {
                self.refill();
            }
        }
        match &self.end {
            Some(End::Failed(error) | End::Reported(error)) if out.len() == start && max > 0 => Err(error.clone()),
            _ => Ok(out.len() - start),
        }
    }

    fn refill(&mut self) {
        let mut queue = std::mem::take(&mut self.queue);
        queue.clear();
        self.next = 0;
        self.decode(&mut queue, BATCH);
        self.queue = queue;
    }

    /// Lets the decoder append up to `room` records, and notes the end.
    fn decode(&mut self, out: &mut Vec<Access>, room: usize) {
        let start = out.len();
        let result = self.decoder.decode(&mut self.source, out, room);
        let count = out.len() - start;
        self.decoded += count as u64;
        if let Some(excess) = self.decoded.checked_sub(self.max_records).filter(|excess| *excess > 0) {
            out.truncate(out.len() - excess as usize);
            let limit = Problem::Limit { limit: "records", max: self.max_records };
            self.end = Some(End::Failed(TraceError::new(Place::Byte(self.source.offset()), limit).named(&self.name)));
        } else if let Err(error) = result {
            self.end = Some(End::Failed(error.named(&self.name)));
        } else if count == 0 {
            self.end = Some(End::Clean);
        }
    }
}

impl Iterator for TraceReader {
    type Item = Result<Access, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next == self.queue.len() {
            if self.end.is_none() {
                self.refill();
            }
            if self.next == self.queue.len() {
                return match self.end.take() {
                    Some(End::Failed(error)) => {
                        self.end = Some(End::Reported(error.clone()));
                        Some(Err(error))
                    }
                    other => {
                        self.end = other;
                        None
                    }
                };
            }
        }
        let access = self.queue[self.next];
        self.next += 1;
        Some(Ok(access))
    }
}

fn detect(source: &mut Source, path: &Path) -> Result<TraceFormat, TraceError> {
    source.want(SAMPLE);
    let sample = &source.bytes()[..source.bytes().len().min(SAMPLE)];
    if let Some(format) = TraceFormat::detect(sample, path) {
        return Ok(format);
    }
    // A damaged compressed stream explains an unreadable start better than "unknown format".
    if source.bytes().len() < SAMPLE {
        source.failure()?;
    }
    Err(TraceError::new(Place::File, Problem::UnknownFormat))
}
