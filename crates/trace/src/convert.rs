//! From one format to another, whole or a window of it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::writer::output_format;
use crate::{
    Access, MmutHeader, ReadOptions, TraceCounts, TraceError, TraceFormat, TraceReader, TraceWriter, WriteOptions,
};

/// Which records to keep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Selection {
    /// All.
    #[default]
    All,
    /// Loads, stores and modifies.
    Data,
    /// Instruction fetches.
    Fetches,
}

impl Selection {
    /// Whether the record is kept.
    pub const fn keeps(self, access: &Access) -> bool {
        match self {
            Self::All => true,
            Self::Data => access.kind.is_data(),
            Self::Fetches => !access.kind.is_data(),
        }
    }
}

/// What [`convert`] shall do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConvertOptions {
    /// How to read the input.
    pub read: ReadOptions,
    /// Format of the output; `None` tells it from the extension.
    pub format: Option<TraceFormat>,
    /// Header of an `.mmut` output; `None` keeps that of an `.mmut` input (without its count of references if only
    /// a part is kept).
    pub header: Option<MmutHeader>,
    /// Records of the input to leave out at the start.
    pub skip: u64,
    /// Records of the input to look at after that; `None` for all.
    pub take: Option<u64>,
    /// Which of those to keep.
    pub select: Selection,
}

impl ConvertOptions {
    fn keeps_everything(&self) -> bool {
        self.skip == 0 && self.take.is_none() && self.select == Selection::All
    }
}

/// Converts `input` to `output`, compressed as the output's extension says, and returns what was written.
///
/// The output appears under its name only when it is complete (it is written beside it as `NAME.partial` first), so a
/// failure leaves an older file alone and input and output may be the same file.
///
/// # Errors
/// The input is damaged, the output's format is not writable or cannot hold a record, or the disk refuses.
pub fn convert(
    input: impl AsRef<Path>,
    output: impl AsRef<Path>,
    options: &ConvertOptions,
) -> Result<TraceCounts, TraceError> {
    let output = output.as_ref();
    let mut reader = TraceReader::open_with(input, &options.read)?;
    let mut write = WriteOptions { format: options.format, header: header(&reader, options) };
    let name = output.display().to_string();
    write.format = Some(output_format(output, &write).map_err(|error| error.named(&name))?);
    let partial = partial(output);
    let result = copy(&mut reader, &partial, output, &write, options);
    if result.is_err() {
        // Best effort: the error at hand says more than a failure to clean up after it.
        let _ = fs::remove_file(&partial);
    }
    result
}

fn header(reader: &TraceReader, options: &ConvertOptions) -> MmutHeader {
    let inherited = || {
        let mut header = reader.header().cloned().unwrap_or_default();
        header.references = header.references.filter(|_| options.keeps_everything());
        header
    };
    options.header.clone().unwrap_or_else(inherited)
}

fn partial(output: &Path) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

fn copy(
    reader: &mut TraceReader,
    partial: &Path,
    output: &Path,
    write: &WriteOptions,
    options: &ConvertOptions,
) -> Result<TraceCounts, TraceError> {
    let name = output.display().to_string();
    let failed = |action| move |error: std::io::Error| TraceError::io(action, &error);
    let file = fs::File::create(partial).map_err(failed("create")).map_err(|error| error.named(&name))?;
    let compression = crate::Compression::from_name(output);
    let mut writer = TraceWriter::to_writer(Box::new(file), &name, compression, write)?;
    let mut window = Window { skip: options.skip, take: options.take.unwrap_or(u64::MAX) };
    let mut batch = Vec::new();
    while let Some(wanted) = window.wanted() {
        batch.clear();
        if reader.fill(&mut batch, wanted)? == 0 {
            break;
        }
        if window.passes(batch.len()) {
            batch.retain(|access| options.select.keeps(access));
            writer.write(&batch)?;
        }
    }
    let counts = writer.finish()?;
    fs::rename(partial, output).map_err(failed("rename")).map_err(|error| error.named(&name))?;
    Ok(counts)
}

/// Records still to skip, then still to take.
struct Window {
    skip: u64,
    take: u64,
}

impl Window {
    /// How many records to ask for next, `None` when the window is used up. A batch is all skipped or all taken.
    fn wanted(&self) -> Option<usize> {
        const BATCH: u64 = 1 << 14;
        match (self.skip, self.take) {
            (0, 0) => None,
            (0, take) => Some(take.min(BATCH) as usize),
            (skip, _) => Some(skip.min(BATCH) as usize),
        }
    }

    /// Notes a batch; whether it is inside the window.
    fn passes(&mut self, records: usize) -> bool {
        let records = records as u64;
        if self.skip > 0 {
            self.skip = self.skip.saturating_sub(records);
            return false;
        }
        self.take = self.take.saturating_sub(records);
        true
    }
}
