//! What turns values into bytes and back. Nothing else names the crate that does it.

use bincode::Options;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::SnapshotError;
use crate::engine::{Sink, Source};

/// A way of writing values. Sealed: the number of each is in the envelope for ever.
pub(crate) trait Codec {
    /// Its number.
    const ID: u16;
    /// Appends a value.
    fn write(value: &impl Serialize, to: &mut Vec<u8>) -> Result<(), String>;
    /// Takes a value from the front.
    fn read<T: DeserializeOwned>(from: &mut &[u8]) -> Result<T, String>;
}

/// bincode 1.3 with integers of fixed length, little endian.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Bincode1Fixint;

impl Codec for Bincode1Fixint {
    const ID: u16 = 1;

    fn write(value: &impl Serialize, to: &mut Vec<u8>) -> Result<(), String> {
        options().serialize_into(to, value).map_err(|error| error.to_string())
    }

    fn read<T: DeserializeOwned>(from: &mut &[u8]) -> Result<T, String> {
        let limit = from.len() as u64;
        options().with_limit(limit).deserialize_from(from).map_err(|error| error.to_string())
    }
}

/// What follows a value is another value; whether something is left at the end is asked there.
fn options() -> impl Options {
    bincode::DefaultOptions::new().with_fixint_encoding().allow_trailing_bytes()
}

/// A payload being written.
pub(super) struct Writer(pub(super) Vec<u8>);

impl Sink for Writer {
    type Error = SnapshotError;

    fn put(&mut self, part: &impl Serialize) -> Result<(), SnapshotError> {
        Bincode1Fixint::write(part, &mut self.0).map_err(SnapshotError::Corrupt)
    }
}

/// A payload being read.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl Source for Reader<'_> {
    type Error = SnapshotError;

    fn take<T: DeserializeOwned>(&mut self) -> Result<T, SnapshotError> {
        Bincode1Fixint::read(&mut self.0).map_err(SnapshotError::Corrupt)
    }
}
