//! What stands in front of the payload: little endian, by hand, and checked before anything is decoded.
//!
//! ```text
//! offset  bytes
//!      0      8  "MMUSNAP\0"
//!      8      2  version of the envelope
//!     10      2  codec
//!     12      4  flags: bit 0, the payload is compressed with zstd
//!     16      4  version of the model
//!     20      8  fingerprint of the layout: XXH3-64 of `layout.txt`
//!     28     16  XXH3-128 of the configuration's text
//!     44      8  simulated time in cycles
//!     52      8  bytes of the payload
//!     60      8  XXH3-64 of the payload
//!     68         the payload: configuration and time once more, then the state
//! ```
//!
//! The configuration's hash and the time are there for who looks at many files; both are checked against the payload.

use mmu_core::Cycles;
use xxhash_rust::xxh3::xxh3_64;

use super::codec::{Bincode1Fixint, Codec};
use super::{SnapshotError, layout_fingerprint};
use crate::MODEL_VERSION;

const MAGIC: &[u8; 8] = b"MMUSNAP\0";
const VERSION: u16 = 1;
const COMPRESSED: u32 = 1;
pub(super) const LEN: usize = 68;

/// The envelope's fields beyond those that have one legal value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Envelope {
    pub(super) config: u128,
    pub(super) time: Cycles,
}

/// Puts a payload into its envelope.
pub(super) fn seal(envelope: Envelope, payload: &[u8]) -> Result<Vec<u8>, SnapshotError> {
    let packed = zstd::bulk::compress(payload, 1).map_err(|error| SnapshotError::Corrupt(error.to_string()))?;
    let mut bytes = Vec::with_capacity(LEN + packed.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&Bincode1Fixint::ID.to_le_bytes());
    bytes.extend_from_slice(&COMPRESSED.to_le_bytes());
    bytes.extend_from_slice(&MODEL_VERSION.to_le_bytes());
    bytes.extend_from_slice(&layout_fingerprint().to_le_bytes());
    bytes.extend_from_slice(&envelope.config.to_le_bytes());
    bytes.extend_from_slice(&envelope.time.0.to_le_bytes());
    bytes.extend_from_slice(&(packed.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&xxh3_64(&packed).to_le_bytes());
    bytes.extend_from_slice(&packed);
    Ok(bytes)
}

/// Takes `N` bytes at an offset.
fn field<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], SnapshotError> {
    let cut = || SnapshotError::Truncated { found: bytes.len() as u64, expected: LEN as u64 };
    bytes.get(at..at + N).and_then(|field| field.try_into().ok()).ok_or_else(cut)
}

/// Checks an envelope; returns it and the packed payload.
pub(super) fn open(bytes: &[u8]) -> Result<(Envelope, &[u8]), SnapshotError> {
    let known = bytes.len().min(MAGIC.len());
    if bytes.is_empty() || bytes[..known] != MAGIC[..known] {
        return Err(SnapshotError::NotASnapshot);
    }
    let version = u16::from_le_bytes(field(bytes, 8)?);
    if version != VERSION {
        return Err(SnapshotError::Version { version, known: VERSION });
    }
    let codec = u16::from_le_bytes(field(bytes, 10)?);
    if codec != Bincode1Fixint::ID {
        return Err(SnapshotError::Codec(codec));
    }
    let flags = u32::from_le_bytes(field(bytes, 12)?);
    if flags != COMPRESSED {
        return Err(SnapshotError::Flags(flags));
    }
    let model = u32::from_le_bytes(field(bytes, 16)?);
    if model != MODEL_VERSION {
        return Err(SnapshotError::Model { theirs: model, ours: MODEL_VERSION });
    }
    if u64::from_le_bytes(field(bytes, 20)?) != layout_fingerprint() {
        return Err(SnapshotError::Layout);
    }
    let config = u128::from_le_bytes(field(bytes, 28)?);
    let time = Cycles(u64::from_le_bytes(field(bytes, 44)?));
    let len = u64::from_le_bytes(field(bytes, 52)?);
    let check = u64::from_le_bytes(field(bytes, 60)?);
    let payload = &bytes[LEN..];
    if (payload.len() as u64) < len {
        let expected = len.saturating_add(LEN as u64);
        return Err(SnapshotError::Truncated { found: bytes.len() as u64, expected });
    }
    if payload.len() as u64 > len {
        return Err(SnapshotError::Corrupt(format!("{} bytes behind its end", payload.len() as u64 - len)));
    }
    if xxh3_64(payload) != check {
        return Err(SnapshotError::Corrupt("its checksum is another".to_owned()));
    }
    Ok((Envelope { config, time }, payload))
}
