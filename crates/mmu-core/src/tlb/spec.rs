//! Descriptions of TLB arrays, and their counters.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::addr::PageSize;
use crate::assoc::Shape;

/// Most page sizes of one array.
pub(super) const MAX_SIZES: usize = 8;

/// Who asks a TLB.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Port {
    /// Loads.
    Load = 0,
    /// Stores.
    Store = 1,
    /// Instruction fetches.
    Fetch = 2,
}

impl Port {
    /// All of them.
    pub const ALL: [Port; 3] = [Port::Load, Port::Store, Port::Fetch];
}

/// What an array does with a page larger than any size it holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LargerPages {
    /// Stores the part around the access, of the largest size it holds (AMD calls this smashing).
    #[default]
    Fragment,
    /// Does not store it.
    Skip,
}

/// Hardware coalescing of pages that continue each other.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Coalesce {
    /// Pages in an aligned group: 2, 4 or 8.
    pub pages: u8,
}

/// Description of one array.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ArraySpec {
    /// Name in statistics.
    pub name: String,
    /// Sets, ways, index and replacement.
    pub shape: Shape,
    /// Who asks it.
    pub ports: Vec<Port>,
    /// Page sizes it holds.
    pub sizes: Vec<PageSize>,
    /// Coalescing of the smallest of those sizes.
    pub coalesce: Option<Coalesce>,
    /// What happens to larger pages.
    pub larger: LargerPages,
}

/// A description of which no array can be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ArrayError {
    /// No page size, or more than eight.
    Sizes,
    /// A size below 4 KiB.
    TooSmall(PageSize),
    /// A size that is listed twice.
    Twice(PageSize),
    /// A group that is not 2, 4 or 8 pages.
    Group(u8),
    /// Nobody asks it.
    Ports,
}

impl ArrayError {
    /// What to write instead.
    pub const fn help(self) -> &'static str {
        match self {
            Self::Sizes => "list one to eight page sizes, for example sizes = [\"4K\", \"2M\"]",
            Self::TooSmall(_) => "the smallest page is 4K",
            Self::Twice(_) => "list every size once",
            Self::Group(_) => "groups have 2, 4 or 8 pages; without coalescing leave the key out",
            Self::Ports => "list who asks it, for example ports = [\"load\", \"store\"]",
        }
    }
}

impl fmt::Display for ArrayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sizes => write!(f, "a TLB array holds one to eight page sizes"),
            Self::TooSmall(size) => write!(f, "no TLB holds pages of {size}"),
            Self::Twice(size) => write!(f, "page size {size} is listed twice"),
            Self::Group(pages) => write!(f, "{pages} pages cannot be coalesced"),
            Self::Ports => write!(f, "nobody asks this array"),
        }
    }
}
impl std::error::Error for ArrayError {}

impl ArraySpec {
    /// The first reason why no array can be made of this.
    pub fn check(&self) -> Result<(), ArrayError> {
        if self.ports.is_empty() {
            return Err(ArrayError::Ports);
        }
        if self.sizes.is_empty() || self.sizes.len() > MAX_SIZES {
            return Err(ArrayError::Sizes);
        }
        if let Some(&size) = self.sizes.iter().find(|&&size| size < PageSize::SIZE_4K) {
            return Err(ArrayError::TooSmall(size));
        }
        if let Some(&size) = self.sizes.iter().find(|&size| self.sizes.iter().filter(|&s| s == size).count() > 1) {
            return Err(ArrayError::Twice(size));
        }
        match self.coalesce {
            Some(Coalesce { pages }) if !matches!(pages, 2 | 4 | 8) => Err(ArrayError::Group(pages)),
            _ => Ok(()),
        }
    }
}

/// Counters of one array.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct ArrayStats {
    /// Look-ups answered here.
    pub hits: u64,
    /// Look-ups that asked this array's level and found nothing in any of its arrays.
    pub misses: u64,
    /// Translations put in, replacements of a present one included.
    pub fills: u64,
    /// Translations that had to leave for another.
    pub evictions: u64,
    /// Entries that an invalidation removed or, if coalesced, cut.
    pub invalidations: u64,
}
