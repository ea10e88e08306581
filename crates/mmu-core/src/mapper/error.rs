//! Why a mapper refuses something.

use std::error::Error;
use std::fmt;

use crate::addr::{Hpa, Level};
use crate::format::EncodeError;
use crate::memory::{AllocError, TableFault};

/// What a [`Mapper`](super::Mapper) refuses; nothing that was mapped has changed then.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MapError {
    /// The address has more bits than the format translates.
    Beyond {
        /// The address.
        input: u64,
        /// Bits that are translated.
        bits: u32,
    },
    /// Something is mapped there: a leaf, or a table where a larger page was to go.
    Mapped {
        /// The address.
        input: u64,
        /// Level of the entry in the way.
        level: Level,
        /// Its word.
        raw: u64,
    },
    /// Nothing is mapped there.
    NotMapped {
        /// The address.
        input: u64,
        /// Level of the entry that maps nothing.
        level: Level,
    },
    /// The format cannot express the page, or the pointer to a table of this pool.
    Encode(EncodeError),
    /// No room for another table.
    Alloc(AllocError),
    /// An entry points to a table where no frame is.
    Table {
        /// The address.
        input: u64,
        /// Level of the table's entries.
        level: Level,
        /// What is there.
        fault: TableFault,
    },
    /// An entry points to a table that does not begin a frame with room for it.
    Frame {
        /// The table.
        table: Hpa,
        /// The frame that it lies in.
        start: Hpa,
        /// Words of that frame.
        words: u64,
        /// Words of a table.
        needed: u64,
    },
}

impl From<EncodeError> for MapError {
    fn from(error: EncodeError) -> Self {
        MapError::Encode(error)
    }
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MapError::Beyond { input, bits } => {
                write!(f, "address {input:#x}: this format translates {bits} bits; configure it wider")
            }
            MapError::Mapped { input, level, raw } => {
                write!(f, "address {input:#x}: its entry of level {level} is {raw:#x} already; unmap that first")
            }
            MapError::NotMapped { input, level } => {
                write!(f, "address {input:#x}: its entry of level {level} maps nothing; map a page first")
            }
            MapError::Encode(error) => write!(f, "{error}"),
            MapError::Alloc(error) => write!(f, "{error}"),
            MapError::Table { input, level, fault } => {
                write!(
                    f,
                    "address {input:#x}: its table of level {level} is gone: {fault}; unlink tables before freeing them"
                )
            }
            MapError::Frame { table, start, words, needed } => write!(
                f,
                "the table at {table} lies in a frame of {words} words at {start}: allocate each table as a frame of {needed} words of its own"
            ),
        }
    }
}
impl Error for MapError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            MapError::Encode(error) => Some(error),
            MapError::Alloc(error) => Some(error),
            MapError::Table { fault, .. } => Some(fault),
            _ => None,
        }
    }
}
