//! Compressions around a trace: told apart by magic bytes when reading, by the file's extension when writing.

use std::fmt;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use lzma_rust2::{XzOptions, XzReader, XzWriter};

use crate::Limits;

/// How the bytes of a trace are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    Plain,
    /// gzip, several members allowed.
    Gz,
    /// xz, several streams allowed.
    Xz,
    /// Zstandard, several frames allowed.
    Zst,
}

impl Compression {
    /// Tells by the first bytes of a file (RFC 1952, the xz file format 1.1, RFC 8878).
    pub const fn detect(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gz,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zst,
            _ => Self::Plain,
        }
    }

    /// Tells by the last extension of an output's name.
    pub fn from_name(path: &Path) -> Self {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("gz") => Self::Gz,
            Some("xz") => Self::Xz,
            Some("zst") => Self::Zst,
            _ => Self::Plain,
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Plain => "plain",
            Self::Gz => "gz",
            Self::Xz => "xz",
            Self::Zst => "zst",
        })
    }
}

/// Puts the right decoder around `input`, after peeking at its first bytes.
pub(crate) fn decoder(
    mut input: Box<dyn Read + Send>,
    limits: &Limits,
) -> io::Result<(Compression, Box<dyn Read + Send>)> {
    let mut head = Vec::with_capacity(6);
    input.by_ref().take(6).read_to_end(&mut head)?;
    let compression = Compression::detect(&head);
    let whole = io::Cursor::new(head).chain(input);
    Ok((
        compression,
        match compression {
            Compression::Plain => Box::new(whole),
            Compression::Gz => Box::new(MultiGzDecoder::new(whole)),
            Compression::Xz => {
                let buffered = BufReader::with_capacity(1 << 16, whole);
                Box::new(XzReader::new_mem_limit(buffered, true, limits.xz_memory_kib))
            }
            // The library's own window limit of 128 MiB stands.
            Compression::Zst => Box::new(zstd::stream::read::Decoder::new(whole)?),
        },
    ))
}

type Output = BufWriter<Box<dyn Write + Send>>;

/// An output with its compression; nothing is complete before [`Sink::finish`].
pub(crate) enum Sink {
    Plain(Output),
    Gz(GzEncoder<Output>),
    Xz(Box<XzWriter<Output>>),
    Zst(zstd::stream::write::Encoder<'static, Output>),
}

impl Sink {
    /// Levels favour size: a trace is written once and read often.
    pub(crate) fn new(output: Box<dyn Write + Send>, compression: Compression) -> io::Result<Self> {
        let output = BufWriter::with_capacity(1 << 16, output);
        Ok(match compression {
            Compression::Plain => Self::Plain(output),
            Compression::Gz => Self::Gz(GzEncoder::new(output, flate2::Compression::best())),
            Compression::Xz => Self::Xz(Box::new(XzWriter::new(output, XzOptions::with_preset(6))?)),
            Compression::Zst => Self::Zst(zstd::stream::write::Encoder::new(output, 19)?),
        })
    }

    pub(crate) fn finish(self) -> io::Result<()> {
        match self {
            Self::Plain(output) => Ok(output),
            Self::Gz(encoder) => encoder.finish(),
            Self::Xz(encoder) => encoder.finish(),
            Self::Zst(encoder) => encoder.finish(),
        }?
        .flush()
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(output) => output.write(bytes),
            Self::Gz(encoder) => encoder.write(bytes),
            Self::Xz(encoder) => encoder.write(bytes),
            Self::Zst(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(output) => output.flush(),
            Self::Gz(encoder) => encoder.flush(),
            Self::Xz(encoder) => encoder.flush(),
            Self::Zst(encoder) => encoder.flush(),
        }
    }
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sink")
    }
}
