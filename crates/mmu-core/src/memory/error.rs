//! Why table memory refuses something.

use std::error::Error;
use std::fmt;

use crate::addr::{Hpa, Level};

/// Nothing to read or write at an address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TableFault {
    /// No frame was ever allocated there.
    Unmapped {
        /// Where.
        at: Hpa,
    },
    /// The frame there was freed: a use after free.
    Freed {
        /// Where.
        at: Hpa,
    },
    /// Outside the pool.
    OutsidePool {
        /// Where.
        at: Hpa,
    },
    /// Table words are eight-byte aligned.
    Misaligned {
        /// Where.
        at: Hpa,
    },
}

impl TableFault {
    /// The address that faulted.
    pub const fn at(self) -> Hpa {
        match self {
            TableFault::Unmapped { at }
            | TableFault::Freed { at }
            | TableFault::OutsidePool { at }
            | TableFault::Misaligned { at } => at,
        }
    }
}

impl fmt::Display for TableFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TableFault::Unmapped { at } => write!(f, "table word at {at}: no frame was allocated there"),
            TableFault::Freed { at } => write!(f, "table word at {at}: its frame was freed"),
            TableFault::OutsidePool { at } => write!(f, "table word at {at}: outside the table pool"),
            TableFault::Misaligned { at } => write!(f, "table word at {at}: table words are 8-byte aligned"),
        }
    }
}
impl Error for TableFault {}

/// Frames that cannot be allocated.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum AllocError {
    /// A frame is a power of two of 32 to 262,144 words (256 bytes to 2 MiB).
    FrameSize {
        /// The words asked for.
        words: usize,
    },
    /// Deeper than any architecture's tables.
    Level {
        /// The level asked for.
        level: Level,
    },
    /// The pool is used up.
    OutOfFrames {
        /// Consecutive frames asked for.
        frames: u64,
        /// Words of each.
        words: usize,
        /// Bytes of the whole pool.
        pool_bytes: u64,
    },
}

impl fmt::Display for AllocError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AllocError::FrameSize { words } => {
                write!(f, "table frame of {words} words: use a power of two from 32 to 262144")
            }
            AllocError::Level { level } => {
                write!(f, "table frame of level {level}: levels are below {}", Level::MAX_LEVELS)
            }
            AllocError::OutOfFrames { frames, words, pool_bytes } => write!(
                f,
                "no room for {frames} consecutive table frames of {words} words in a pool of {pool_bytes} bytes; \
                 enlarge the pool (each frame size takes 2 MiB pieces of it)"
            ),
        }
    }
}
impl Error for AllocError {}

/// A frame operation that its caller must not have asked for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FrameError {
    /// No live frame there; [`TableFault::Freed`] means a double free.
    NoFrame(TableFault),
    /// The address is inside a frame; frames are freed by their first byte.
    NotStart {
        /// The address given.
        at: Hpa,
        /// First byte of the frame that holds it.
        start: Hpa,
    },
    /// The run of frames continues with frames of another size.
    SizeChange {
        /// First frame of another size.
        at: Hpa,
    },
    /// More references dropped than were taken, or more taken than 32 bits count.
    References {
        /// First byte of the frame.
        at: Hpa,
        /// References it has.
        refs: u32,
    },
}

impl From<TableFault> for FrameError {
    fn from(fault: TableFault) -> Self {
        FrameError::NoFrame(fault)
    }
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameError::NoFrame(fault @ TableFault::Freed { .. }) => write!(f, "{fault} (double free?)"),
            FrameError::NoFrame(fault) => write!(f, "{fault}"),
            FrameError::NotStart { at, start } => write!(f, "{at} is inside the table frame at {start}; free that"),
            FrameError::SizeChange { at } => {
                write!(f, "the table frame at {at} has another size; end the run before it")
            }
            FrameError::References { at, refs } => {
                write!(f, "table frame at {at} has {refs} references; gets and puts do not balance")
            }
        }
    }
}
impl Error for FrameError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            FrameError::NoFrame(fault) => Some(fault),
            _ => None,
        }
    }
}

/// A pool that table memory cannot manage.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PoolError {
    /// The pool must start at a multiple of 2 MiB.
    Misaligned {
        /// Its start.
        start: Hpa,
    },
    /// Longer than 8 PiB, or past the end of the address space.
    TooLong {
        /// Its length in bytes.
        bytes: u64,
    },
}

impl fmt::Display for PoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PoolError::Misaligned { start } => write!(f, "table pool at {start}: start it at a multiple of 2 MiB"),
            PoolError::TooLong { bytes } => {
                write!(f, "table pool of {bytes} bytes: at most 8 PiB, and inside the 64-bit address space")
            }
        }
    }
}
impl Error for PoolError {}
