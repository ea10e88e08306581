//! Shape of a translation tree: how many levels, which address bits index which table, where leaves may stand.

use std::fmt;

use crate::addr::{Level, PageSize};

/// The shape of one tree, checked when it is built so that nothing later has to.
///
/// ```
/// use mmu_core::{Geometry, Level, PageSize};
/// let ept = Geometry::uniform(PageSize::SIZE_4K, &[9, 9, 9, 9], 52, &[0, 1, 2]).unwrap();
/// assert_eq!(ept.root(), Level::new(3));
/// assert_eq!(ept.page_size(Level::new(1)), PageSize::SIZE_2M);
/// assert_eq!(ept.index(Level::new(3), 0x7f_ffff_ffff), 0);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    levels: u8,
    leaf_levels: u8,
    output_bits: u8,
    index_bits: [u8; Level::MAX_LEVELS],
    shifts: [u8; Level::MAX_LEVELS + 1],
}

/// A shape that no tree can have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GeometryError(String);

impl fmt::Display for GeometryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "geometry: {}", self.0)
    }
}
impl std::error::Error for GeometryError {}

impl Geometry {
    /// A tree whose level-`l` tables are indexed by `index_bits[l]` address bits (level 0, the last level, first).
    /// `output_bits` is the width of its output addresses; `leaf_levels` lists the levels at which leaves are legal.
    ///
    /// # Errors
    /// More than six levels, no levels, an index of 0 or more than 24 bits, more than 64 bits in all, or a leaf level
    /// that does not exist.
    pub fn uniform(
        page: PageSize,
        index_bits: &[u8],
        output_bits: u8,
        leaf_levels: &[u8],
    ) -> Result<Self, GeometryError> {
        if index_bits.is_empty() || index_bits.len() > Level::MAX_LEVELS {
            return Err(GeometryError(format!("{} levels; 1 to {} are possible", index_bits.len(), Level::MAX_LEVELS)));
        }
        let mut geometry = Self {
            levels: index_bits.len() as u8,
            leaf_levels: 0,
            output_bits,
            index_bits: [0; Level::MAX_LEVELS],
            shifts: [page.shift() as u8; Level::MAX_LEVELS + 1],
        };
        for (level, &bits) in index_bits.iter().enumerate() {
            if bits == 0 || bits > 24 {
                return Err(GeometryError(format!("level {level} has {bits} index bits; 1 to 24 are possible")));
            }
            geometry.index_bits[level] = bits;
            for shift in &mut geometry.shifts[level + 1..] {
                *shift = shift.saturating_add(bits);
            }
        }
        if geometry.input_bits() > 64 {
            return Err(GeometryError(format!("{} input bits; 64 are possible", geometry.input_bits())));
        }
        for &level in leaf_levels {
            if level >= geometry.levels {
                return Err(GeometryError(format!(
                    "leaves at level {level} of a tree with {} levels",
                    geometry.levels
                )));
            }
            geometry.leaf_levels |= 1 << level;
        }
        Ok(geometry)
    }

    /// Number of levels.
    pub const fn levels(&self) -> usize {
        self.levels as usize
    }
    /// Level of the root table.
    pub const fn root(&self) -> Level {
        Level::new(self.levels - 1)
    }
    /// Width of an input address in bits.
    pub const fn input_bits(&self) -> u32 {
        self.shifts[self.levels as usize] as u32
    }
    /// Width of an output address in bits.
    pub const fn output_bits(&self) -> u32 {
        self.output_bits as u32
    }
    /// Number of input bytes, saturating at `u64::MAX` for a 64-bit input.
    pub const fn input_bytes(&self) -> u64 {
        match 1u64.checked_shl(self.input_bits()) {
            Some(bytes) => bytes,
            None => u64::MAX,
        }
    }
    /// Address bits that index a table of this level.
    pub const fn index_bits(&self, level: Level) -> u32 {
        self.index_bits[level.index()] as u32
    }
    /// Entries in a table of this level.
    pub const fn entries(&self, level: Level) -> usize {
        1 << self.index_bits[level.index()]
    }
    /// Bytes of a table of this level.
    pub const fn table_bytes(&self, level: Level) -> u64 {
        8 << self.index_bits[level.index()]
    }
    /// Position of the lowest address bit that indexes a table of this level.
    pub const fn shift(&self, level: Level) -> u32 {
        self.shifts[level.index()] as u32
    }
    /// What one entry of this level covers, which is also the size of a leaf there.
    pub const fn page_size(&self, level: Level) -> PageSize {
        match PageSize::from_shift(self.shifts[level.index()] as u32) {
            Some(size) => size,
            // A 64-bit shift needs seven levels of nine bits; `uniform` admits six.
            None => PageSize::SIZE_4K,
        }
    }
    /// The smallest page.
    pub const fn granule(&self) -> PageSize {
        self.page_size(Level::LAST)
    }
    /// Index of `input` in its table of this level.
    #[inline]
    pub const fn index(&self, level: Level, input: u64) -> usize {
        let bits = self.index_bits[level.index()] as u32;
        ((input >> self.shifts[level.index()]) & ((1 << bits) - 1)) as usize
    }
    /// Whether a leaf may stand at this level.
    pub const fn has_leaves_at(&self, level: Level) -> bool {
        level.index() < 8 && self.leaf_levels >> level.index() & 1 == 1
    }
    /// The level whose leaves have this size, if leaves are legal there.
    pub fn level_of(&self, size: PageSize) -> Option<Level> {
        (0..self.levels).map(Level::new).find(|&level| self.has_leaves_at(level) && self.page_size(level) == size)
    }
    /// The sizes of legal leaves, smallest first.
    pub fn page_sizes(&self) -> impl Iterator<Item = PageSize> + '_ {
        (0..self.levels).map(Level::new).filter(|&level| self.has_leaves_at(level)).map(|level| self.page_size(level))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn radix_64k_covers_52_bits() {
        let radix = Geometry::uniform(PageSize::SIZE_64K, &[5, 9, 9, 13], 53, &[0, 1, 2]).unwrap();
        assert_eq!(radix.input_bits(), 52);
        assert_eq!(radix.entries(radix.root()), 8192);
        assert_eq!(radix.table_bytes(Level::LAST), 256);
        let sizes: Vec<_> = radix.page_sizes().map(|size| size.to_string()).collect();
        assert_eq!(sizes, ["64K", "2M", "1G"]);
    }

    #[test]
    fn impossible_shapes_are_refused() {
        for (bits, leaves) in [(&[][..], &[][..]), (&[9, 0], &[0]), (&[9], &[1]), (&[24, 24, 24], &[0]), (&[25], &[0])]
        {
            assert!(Geometry::uniform(PageSize::SIZE_4K, bits, 48, leaves).is_err(), "{bits:?}");
        }
    }
}
