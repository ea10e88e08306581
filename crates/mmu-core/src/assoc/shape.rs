//! Shapes of set-associative structures; an impossible one cannot be built.

use std::fmt;

use super::replacement::MAX_MARKED_WAYS;
use super::row::MAX_WAYS;
use super::{Index, Replacement};

/// Entries one structure may hold: far above any TLB, and enough for the lines of a 1 GiB cache.
const MAX_ENTRIES: u32 = 1 << 24;

/// Sets, ways, index function and replacement of a set-associative structure.
///
/// ```
/// use mmu_core::assoc::{Shape, Replacement};
/// let dtlb = Shape::new(64, 4)?.replaced_by(Replacement::TreePlru)?;
/// assert_eq!((dtlb.sets(), dtlb.ways()), (16, 4));
/// assert!(Shape::new(64, 5).is_err());
/// # Ok::<(), mmu_core::assoc::ShapeError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
pub struct Shape {
    sets: u32,
    ways: u32,
    index: Index,
    replacement: Replacement,
}

impl Shape {
    /// `entries` entries in sets of `ways`; 0 ways mean fully associative. Modulo index, true LRU.
    pub fn new(entries: u32, ways: u32) -> Result<Self, ShapeError> {
        if entries == 0 {
            return Err(ShapeError::Empty);
        }
        if entries > MAX_ENTRIES {
            return Err(ShapeError::TooLarge { entries });
        }
        let ways = if ways == 0 { entries } else { ways };
        if !entries.is_multiple_of(ways) {
            return Err(ShapeError::Uneven { entries, ways });
        }
        Ok(Self { sets: entries / ways, ways, index: Index::Modulo, replacement: Replacement::Lru })
    }

    /// The same shape with another index function.
    pub fn indexed_by(self, index: Index) -> Result<Self, ShapeError> {
        Self { index, ..self }.checked()
    }

    /// The same shape with another replacement policy.
    pub fn replaced_by(self, replacement: Replacement) -> Result<Self, ShapeError> {
        Self { replacement, ..self }.checked()
    }

    fn checked(self) -> Result<Self, ShapeError> {
        let skewed = self.index == Index::Skewed;
        if skewed && self.replacement == Replacement::TreePlru {
            return Err(ShapeError::SkewedTree);
        }
        if (skewed || self.replacement.has_marks()) && self.ways > MAX_MARKED_WAYS {
            return Err(ShapeError::TooWide { ways: self.ways });
        }
        Ok(self)
    }

    /// Number of sets.
    pub const fn sets(self) -> u32 {
        self.sets
    }
    /// Ways of each set.
    pub const fn ways(self) -> u32 {
        self.ways
    }
    /// Sets times ways.
    pub const fn entries(self) -> u32 {
        self.sets * self.ways
    }
    /// The index function.
    pub const fn index(self) -> Index {
        self.index
    }
    /// The replacement policy.
    pub const fn replacement(self) -> Replacement {
        self.replacement
    }
    /// Whether one word orders a set, so that it is scanned and not chained.
    pub(super) const fn is_narrow(self) -> bool {
        self.ways <= MAX_WAYS
    }
}

/// A shape no structure can have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ShapeError {
    /// No entries at all.
    Empty,
    /// More entries than the simulator holds.
    TooLarge {
        /// Entries asked for.
        entries: u32,
    },
    /// The ways do not divide the entries.
    Uneven {
        /// Entries asked for.
        entries: u32,
        /// Ways asked for.
        ways: u32,
    },
    /// Tree-PLRU needs sets that stay together; a skewed structure has none.
    SkewedTree,
    /// Tree-PLRU, NRU and skewing work up to 64 ways.
    TooWide {
        /// Ways asked for.
        ways: u32,
    },
}

impl ShapeError {
    /// What to write instead.
    pub fn help(self) -> String {
        match self {
            Self::Empty => "give at least one entry, or leave the structure out".to_owned(),
            Self::TooLarge { .. } => format!("give at most {MAX_ENTRIES} entries"),
            Self::Uneven { entries, ways } => {
                let near = (1..=entries).filter(|w| entries % w == 0).min_by_key(|w| w.abs_diff(ways)).unwrap_or(1);
                let below = entries - entries % ways;
                if below == 0 {
                    format!("use ways = 0 (fully associative), or ways = {near}")
                } else {
                    format!("use ways = {near}, or entries = {below} or {}", below.saturating_add(ways))
                }
            }
            Self::SkewedTree => "use replacement = \"lru\", \"nru\", \"random\" or \"random-half\"".to_owned(),
            Self::TooWide { .. } => {
                "use replacement = \"lru\", \"fifo\" or \"random\" with index = \"modulo\"".to_owned()
            }
        }
    }
}

impl fmt::Display for ShapeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "a structure of 0 entries"),
            Self::TooLarge { entries } => write!(f, "{entries} entries are more than can be simulated"),
            Self::Uneven { entries, ways } => write!(f, "{entries} entries cannot be cut into sets of {ways} ways"),
            Self::SkewedTree => write!(f, "tree-PLRU cannot order the ways of a skewed structure"),
            Self::TooWide { ways } => {
                write!(f, "{ways} ways are too many for tree-PLRU, NRU or skewing (limit {MAX_MARKED_WAYS})")
            }
        }
    }
}
impl std::error::Error for ShapeError {}
