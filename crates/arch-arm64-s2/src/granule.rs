//! Translation granules, and the architecture's own level numbers.

use std::fmt;

use mmu_core::{Level, PageSize};

/// Translation granule: the size of the smallest page and of a full table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Granule {
    /// 4 KiB: 9 bits a level.
    K4,
    /// 16 KiB: 11 bits a level.
    K16,
    /// 64 KiB: 13 bits a level.
    K64,
}

impl Granule {
    /// All of them, smallest first.
    pub const ALL: [Granule; 3] = [Granule::K4, Granule::K16, Granule::K64];

    /// Base-two logarithm of the page size.
    pub const fn shift(self) -> u32 {
        match self {
            Granule::K4 => 12,
            Granule::K16 => 14,
            Granule::K64 => 16,
        }
    }
    /// Address bits that a full table resolves.
    pub const fn stride(self) -> u32 {
        self.shift() - 3
    }
    /// The page size.
    pub const fn page(self) -> PageSize {
        match self {
            Granule::K4 => PageSize::SIZE_4K,
            Granule::K16 => PageSize::SIZE_16K,
            Granule::K64 => PageSize::SIZE_64K,
        }
    }
    /// Lowest address bit that indexes a table of this level.
    pub const fn level_shift(self, level: Level) -> u32 {
        self.shift() + self.stride() * level.index() as u32
    }
    /// The `TG` field of range invalidations and of `TTL` (Arm ARM C5.5, `TLBI RIPAS2E1IS`): 1, 2, 3 for 4K, 16K, 64K.
    pub const fn tlbi_tg(self) -> u64 {
        match self {
            Granule::K4 => 1,
            Granule::K16 => 2,
            Granule::K64 => 3,
        }
    }
    /// The granule of a `TG` field of an invalidation; `None` for 0.
    pub const fn from_tlbi_tg(tg: u64) -> Option<Self> {
        match tg {
            1 => Some(Granule::K4),
            2 => Some(Granule::K16),
            3 => Some(Granule::K64),
            _ => None,
        }
    }
}

impl fmt::Display for Granule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.page(), f)
    }
}

/// A level as the Arm manual numbers it: 3 is the last, -1 the first of a five-level walk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ArmLevel(i8);

impl ArmLevel {
    /// The last level.
    pub const LAST: ArmLevel = ArmLevel(3);

    /// Level `number`, or `None` outside -1..=3.
    pub const fn new(number: i8) -> Option<Self> {
        if number >= -1 && number <= 3 { Some(Self(number)) } else { None }
    }
    /// The architecture's number of one of our levels (levels above -1 do not exist and saturate).
    pub const fn of(level: Level) -> Self {
        let up = level.index();
        Self(if up > 4 { -1 } else { 3 - up as i8 })
    }
    /// Our level, counted from the last.
    pub const fn level(self) -> Level {
        Level::new((3 - self.0) as u8)
    }
    /// The number.
    pub const fn number(self) -> i8 {
        self.0
    }
}

impl fmt::Display for ArmLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
