//! The writer: records to a file of a writable format, compressed as its extension says.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use crate::compress::Sink;
use crate::formats::{lackey, mmut, packed};
use crate::{Access, Compression, MmutHeader, Place, Problem, TraceCounts, TraceError, TraceFormat};

/// What to write besides the records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// The format; `None` tells it from the output's extension.
    pub format: Option<TraceFormat>,
    /// Header of an `.mmut` trace; the other formats have none and drop it.
    pub header: MmutHeader,
}

/// Writes a trace. Call [`finish`](Self::finish): a file without its end marker is read as cut.
///
/// ```
/// use mmu_trace::{ReadOptions, TraceFormat, TraceReader, TraceWriter, WriteOptions, synthetic};
/// let path = std::env::temp_dir().join(format!("mmu-trace-doc-{}.mmut.zst", std::process::id()));
/// let mut writer = TraceWriter::create(&path, &WriteOptions::default())?;
/// writer.write(&synthetic::s1(1000).collect::<Vec<_>>())?;
/// assert_eq!(writer.finish()?.records(), 1000);
/// assert_eq!(TraceReader::open(&path, None)?.count(), 1000);
/// # std::fs::remove_file(&path).unwrap();
/// # Ok::<(), mmu_trace::TraceError>(())
/// ```
#[derive(Debug)]
pub struct TraceWriter {
    name: String,
    encoder: Encoder,
    sink: Sink,
    bytes: Vec<u8>,
    counts: TraceCounts,
}

#[derive(Debug)]
enum Encoder {
    Lackey,
    Packed,
    Mmut(mmut::Encoder),
}

impl TraceWriter {
    /// Creates or overwrites a file.
    ///
    /// # Errors
    /// The format cannot be told or written, or the file cannot be created.
    pub fn create(path: impl AsRef<Path>, options: &WriteOptions) -> Result<Self, TraceError> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let format = output_format(path, options).map_err(|error| error.named(&name))?;
        let file = File::create(path).map_err(|error| TraceError::io("create", &error).named(&name))?;
        let options = WriteOptions { format: Some(format), ..options.clone() };
        Self::to_writer(Box::new(file), &name, Compression::from_name(path), &options)
    }

    /// Writes to anything; `name` stands in errors, and its extension tells the format if `options` do not.
    ///
    /// # Errors
    /// The format cannot be told or written, or the output fails.
    pub fn to_writer(
        output: Box<dyn Write + Send>,
        name: &str,
        compression: Compression,
        options: &WriteOptions,
    ) -> Result<Self, TraceError> {
        let mut bytes = Vec::new();
        let encoder = match output_format(Path::new(name), options).map_err(|error| error.named(name))? {
            TraceFormat::Lackey => Encoder::Lackey,
            TraceFormat::Packed => Encoder::Packed,
            _ => Encoder::Mmut(mmut::Encoder::new(&options.header, &mut bytes)),
        };
        let sink = Sink::new(output, compression).map_err(|error| TraceError::io("write", &error).named(name))?;
        Ok(Self { name: name.to_owned(), encoder, sink, bytes, counts: TraceCounts::default() })
    }

    /// Appends records.
    ///
    /// # Errors
    /// A record does not fit the format (the records of the slice before it may have been written), or the output fails.
    pub fn write(&mut self, accesses: &[Access]) -> Result<(), TraceError> {
        for part in accesses.chunks(1 << 16) {
            match &mut self.encoder {
                Encoder::Lackey => lackey::encode(part, &mut self.bytes),
                Encoder::Packed => packed::encode(part, &mut self.bytes),
                Encoder::Mmut(encoder) => {
                    encoder.encode(part, &mut self.bytes);
                    Ok(())
                }
            }
            .map_err(|error| error.named(&self.name))?;
            self.flush_bytes()?;
            self.counts += TraceCounts::of(part);
        }
        Ok(())
    }

    /// Completes the file and says what is in it.
    ///
    /// # Errors
    /// The output fails, or the header declared another number of references.
    pub fn finish(mut self) -> Result<TraceCounts, TraceError> {
        if let Encoder::Mmut(encoder) = &mut self.encoder {
            encoder.finish(&mut self.bytes).map_err(|error| error.named(&self.name))?;
        }
        self.flush_bytes()?;
        self.sink.finish().map_err(|error| TraceError::io("write", &error).named(&self.name))?;
        Ok(self.counts)
    }

    fn flush_bytes(&mut self) -> Result<(), TraceError> {
        let result = self.sink.write_all(&self.bytes);
        self.bytes.clear();
        result.map_err(|error| TraceError::io("write", &error).named(&self.name))
    }
}

/// The format to write, given or told by the extension.
pub(crate) fn output_format(path: &Path, options: &WriteOptions) -> Result<TraceFormat, TraceError> {
    let format = options.format.or_else(|| TraceFormat::from_name(path));
    match format {
        Some(format @ (TraceFormat::Champsim | TraceFormat::ChampsimCloudsuite)) => {
            Err(TraceError::new(Place::File, Problem::ReadOnly { format }))
        }
        Some(format) => Ok(format),
        None => Err(TraceError::new(Place::File, Problem::UnknownFormat)),
    }
}
