//! A memory image: table words at host-physical addresses, read from or written as bytes in the architecture's order.
//!
//! This is the plain form used for recorded vectors, fuzzing and import/export; simulations keep their tables in
//! [`crate::memory`].

use std::collections::BTreeMap;
use std::fmt;

use crate::addr::Hpa;
use crate::walk::{Bus, BusError, Exchange};

/// Byte order of table words in memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ByteOrder {
    /// x86 and Arm.
    Little,
    /// POWER radix.
    Big,
}

impl ByteOrder {
    /// The word that these eight bytes hold.
    pub const fn word(self, bytes: [u8; 8]) -> u64 {
        match self {
            ByteOrder::Little => u64::from_le_bytes(bytes),
            ByteOrder::Big => u64::from_be_bytes(bytes),
        }
    }
    /// The bytes that hold `word`.
    pub const fn bytes(self, word: u64) -> [u8; 8] {
        match self {
            ByteOrder::Little => word.to_le_bytes(),
            ByteOrder::Big => word.to_be_bytes(),
        }
    }
}

/// A stretch of RAM.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RamRange {
    /// First byte.
    pub start: Hpa,
    /// Length in bytes.
    pub bytes: u64,
}

impl RamRange {
    const fn holds_word(&self, at: Hpa) -> bool {
        let offset = at.raw().wrapping_sub(self.start.raw());
        at.raw() >= self.start.raw() && offset < self.bytes && self.bytes - offset >= 8
    }
}

/// Sparse words over declared RAM; words never written read as zero.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MemoryImage {
    words: BTreeMap<u64, u64>,
    ram: Vec<RamRange>,
}

/// A word that cannot be part of an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ImageError {
    /// A table word is eight-byte aligned.
    Misaligned {
        /// Where.
        at: Hpa,
    },
    /// The word lies outside the declared RAM.
    OutsideRam {
        /// Where.
        at: Hpa,
    },
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImageError::Misaligned { at } => write!(f, "word at {at}: table words are 8-byte aligned"),
            ImageError::OutsideRam { at } => {
                write!(f, "word at {at}: outside RAM; declare a RAM range that holds it or move the table")
            }
        }
    }
}
impl std::error::Error for ImageError {}

impl MemoryImage {
    /// An empty image over these stretches of RAM.
    pub fn new(ram: impl IntoIterator<Item = RamRange>) -> Self {
        Self { words: BTreeMap::new(), ram: ram.into_iter().collect() }
    }

    /// An empty image in which every address is RAM.
    pub fn everywhere() -> Self {
        Self::new([RamRange { start: Hpa::new(0), bytes: u64::MAX }])
    }

    /// Sets a word.
    ///
    /// # Errors
    /// A misaligned address, or one outside RAM.
    pub fn set(&mut self, at: Hpa, word: u64) -> Result<(), ImageError> {
        if at.raw() & 7 != 0 {
            return Err(ImageError::Misaligned { at });
        }
        if !self.is_ram(at) {
            return Err(ImageError::OutsideRam { at });
        }
        self.put(at, word);
        Ok(())
    }

    /// The word at `at`; zero where nothing was written.
    pub fn get(&self, at: Hpa) -> u64 {
        self.words.get(&at.raw()).copied().unwrap_or(0)
    }

    /// The words that are not zero, by address.
    pub fn words(&self) -> impl Iterator<Item = (Hpa, u64)> + '_ {
        self.words.iter().map(|(&at, &word)| (Hpa::new(at), word))
    }

    /// Reads whole words from bytes in the given order, the first at `base`.
    ///
    /// # Errors
    /// As [`MemoryImage::set`]. Trailing bytes that make no word are refused as misaligned.
    pub fn load(&mut self, base: Hpa, bytes: &[u8], order: ByteOrder) -> Result<(), ImageError> {
        let (words, rest) = bytes.as_chunks::<8>();
        for (i, &word) in words.iter().enumerate() {
            let at = base.checked_add(8 * i as u64).ok_or(ImageError::OutsideRam { at: base })?;
            self.set(at, order.word(word))?;
        }
        if rest.is_empty() { Ok(()) } else { Err(ImageError::Misaligned { at: base + bytes.len() as u64 }) }
    }

    /// `words` words from `base` on as bytes in the given order.
    pub fn bytes(&self, base: Hpa, words: usize, order: ByteOrder) -> Vec<u8> {
        (0..words as u64).flat_map(|i| order.bytes(self.get(base + 8 * i))).collect()
    }

    fn is_ram(&self, at: Hpa) -> bool {
        self.ram.iter().any(|range| range.holds_word(at))
    }

    fn put(&mut self, at: Hpa, word: u64) {
        if word == 0 {
            self.words.remove(&at.raw());
        } else {
            self.words.insert(at.raw(), word);
        }
    }
}

impl Bus for MemoryImage {
    fn read(&mut self, at: Hpa) -> Result<u64, BusError> {
        if self.is_ram(at) { Ok(self.get(at)) } else { Err(BusError { at }) }
    }

    fn cmpxchg(&mut self, at: Hpa, old: u64, new: u64) -> Result<Exchange, BusError> {
        let found = self.read(at)?;
        if found == old {
            self.put(at, new);
            Ok(Exchange::Done)
        } else {
            Ok(Exchange::Found(found))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn words_outside_ram_are_named() {
        let mut image = MemoryImage::new([RamRange { start: Hpa::new(0x1000), bytes: 0x1000 }]);
        assert_eq!(image.set(Hpa::new(0x2000), 1), Err(ImageError::OutsideRam { at: Hpa::new(0x2000) }));
        assert_eq!(image.set(Hpa::new(0x1004), 1), Err(ImageError::Misaligned { at: Hpa::new(0x1004) }));
        assert_eq!(image.read(Hpa::new(0xff8)), Err(BusError { at: Hpa::new(0xff8) }));
        assert_eq!(image.read(Hpa::new(0x1ff8)), Ok(0));
    }

    proptest! {
        #[test]
        fn bytes_come_back_in_either_order(words in prop::collection::vec(any::<u64>(), 0..40), big: bool) {
            let order = if big { ByteOrder::Big } else { ByteOrder::Little };
            let bytes: Vec<u8> = words.iter().flat_map(|&word| order.bytes(word)).collect();
            let mut image = MemoryImage::everywhere();
            image.load(Hpa::new(0x4000), &bytes, order).unwrap();
            prop_assert_eq!(image.bytes(Hpa::new(0x4000), words.len(), order), bytes);
        }
    }
}
