//! Addresses, frame numbers, levels and page sizes as types.
//!
//! Everything that crosses a public function of this project carries its unit in its type
//! (house rule `units-in-types`): a guest-physical address cannot be passed where a host-physical
//! one is wanted, and a frame number cannot be mistaken for an address.
//!
//! ```
//! use mmu_core::{ByteUnits, Gpa, PageSize};
//! let gpa = Gpa::new(3.GiB() + 0x123);
//! assert_eq!(gpa.frame(PageSize::SIZE_4K.shift()).index(), 0xc0000);
//! assert_eq!(gpa.align_down(PageSize::SIZE_2M), Gpa::new(3.GiB()));
//! assert_eq!(PageSize::SIZE_2M.to_string(), "2M");
//! ```

use std::fmt;
use std::ops::{Add, AddAssign, Sub};

use serde::{Deserialize, Serialize};

macro_rules! address {
    ($(#[$doc:meta])* $name:ident, $frame:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Wraps a byte address.
            pub const fn new(bytes: u64) -> Self {
                Self(bytes)
            }
            /// The byte address as a number.
            pub const fn raw(self) -> u64 {
                self.0
            }
            /// Number of the frame of `1 << shift` bytes that holds this address.
            pub const fn frame(self, shift: u32) -> $frame {
                $frame::new(self.0 >> shift)
            }
            /// The first address of the page of this size that holds this address.
            pub const fn align_down(self, size: PageSize) -> Self {
                Self(self.0 & !(size.bytes() - 1))
            }
            /// Offset of this address inside its page of this size, in bytes.
            pub const fn offset_in(self, size: PageSize) -> u64 {
                self.0 & (size.bytes() - 1)
            }
            /// Whether the address is a multiple of the page size.
            pub const fn is_aligned(self, size: PageSize) -> bool {
                self.offset_in(size) == 0
            }
            /// The address `bytes` further on, or `None` past 2^64.
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }
        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
        impl Add<u64> for $name {
            type Output = Self;
            fn add(self, bytes: u64) -> Self {
                Self(self.0.wrapping_add(bytes))
            }
        }
        impl AddAssign<u64> for $name {
            fn add_assign(&mut self, bytes: u64) {
                self.0 = self.0.wrapping_add(bytes);
            }
        }
        impl Sub for $name {
            type Output = u64;
            /// Distance in bytes; wraps when `other` lies above `self`.
            fn sub(self, other: Self) -> u64 {
                self.0.wrapping_sub(other.0)
            }
        }
    };
}

macro_rules! frame {
    ($(#[$doc:meta])* $name:ident, $addr:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Wraps a frame number.
            pub const fn new(index: u64) -> Self {
                Self(index)
            }
            /// The frame number.
            pub const fn index(self) -> u64 {
                self.0
            }
            /// First byte of the frame when frames are `1 << shift` bytes.
            pub const fn address(self, shift: u32) -> $addr {
                $addr::new(self.0 << shift)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }
        impl Add<u64> for $name {
            type Output = Self;
            fn add(self, frames: u64) -> Self {
                Self(self.0.wrapping_add(frames))
            }
        }
        impl AddAssign<u64> for $name {
            fn add_assign(&mut self, frames: u64) {
                self.0 = self.0.wrapping_add(frames);
            }
        }
        impl Sub for $name {
            type Output = u64;
            /// Distance in frames; wraps when `other` lies above `self`.
            fn sub(self, other: Self) -> u64 {
                self.0.wrapping_sub(other.0)
            }
        }
    };
}

address!(
    /// Guest-virtual address: what guest software uses.
    Gva, Gvn
);
address!(
    /// Guest-physical address (Arm: IPA; POWER: guest real address): the input of the second stage.
    Gpa, Gfn
);
address!(
    /// Host-virtual address: what the process that owns the guest (its VMM) uses, and what memslots point to.
    Hva, Hvn
);
address!(
    /// Host-physical address: the output of the second stage, and where tables live.
    Hpa, Pfn
);
frame!(
    /// Guest-virtual page number.
    Gvn, Gva
);
frame!(
    /// Guest frame number: a [`Gpa`] without its page offset.
    Gfn, Gpa
);
frame!(
    /// Host-virtual page number.
    Hvn, Hva
);
frame!(
    /// Host page frame number: an [`Hpa`] without its page offset.
    Pfn, Hpa
);

/// Level of a table or entry. 0 is the last level (the smallest page of the granule) and numbers grow toward the root.
///
/// Architectures number their levels differently (Arm the other way round); a format converts at its edge and its
/// `Display` types print the architecture's own number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Level(u8);

impl Level {
    /// The last level, whose leaves are the smallest pages.
    pub const LAST: Level = Level(0);
    /// More levels than any architecture has; sizes arrays indexed by level.
    pub const MAX_LEVELS: usize = 6;

    /// Wraps a level counted from the last one.
    pub const fn new(level: u8) -> Self {
        Self(level)
    }
    /// Levels above the last one.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
    /// One level nearer to the leaves, or `None` at the last level.
    pub const fn down(self) -> Option<Self> {
        match self.0.checked_sub(1) {
            Some(level) => Some(Self(level)),
            None => None,
        }
    }
    /// One level nearer to the root.
    pub const fn up(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
impl fmt::Debug for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Level({})", self.0)
    }
}

/// Size of a page, block or huge page: a power of two of bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PageSize(u8);

impl PageSize {
    /// 4 KiB.
    pub const SIZE_4K: PageSize = PageSize(12);
    /// 16 KiB.
    pub const SIZE_16K: PageSize = PageSize(14);
    /// 64 KiB.
    pub const SIZE_64K: PageSize = PageSize(16);
    /// 2 MiB.
    pub const SIZE_2M: PageSize = PageSize(21);
    /// 32 MiB.
    pub const SIZE_32M: PageSize = PageSize(25);
    /// 512 MiB.
    pub const SIZE_512M: PageSize = PageSize(29);
    /// 1 GiB.
    pub const SIZE_1G: PageSize = PageSize(30);

    /// The size of `1 << shift` bytes, or `None` when `shift` is 64 or more.
    pub const fn from_shift(shift: u32) -> Option<Self> {
        if shift < 64 { Some(Self(shift as u8)) } else { None }
    }
    /// Base-two logarithm of the size in bytes.
    pub const fn shift(self) -> u32 {
        self.0 as u32
    }
    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        1 << self.0
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, shift) = match self.0 {
            0..10 => ("", 0),
            10..20 => ("K", 10),
            20..30 => ("M", 20),
            30..40 => ("G", 30),
            40..50 => ("T", 40),
            50..60 => ("P", 50),
            _ => ("E", 60),
        };
        write!(f, "{}{unit}", 1u64 << (self.0 - shift))
    }
}
impl fmt::Debug for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageSize({self})")
    }
}
impl From<PageSize> for String {
    fn from(size: PageSize) -> String {
        size.to_string()
    }
}
impl TryFrom<String> for PageSize {
    type Error = ParseSizeError;
    fn try_from(text: String) -> Result<Self, ParseSizeError> {
        text.parse()
    }
}
impl std::str::FromStr for PageSize {
    type Err = ParseSizeError;
    /// Reads `4K`, `2M`, `1G`, `64KiB`: a power of two of bytes.
    fn from_str(text: &str) -> Result<Self, ParseSizeError> {
        let Bytes(bytes) = text.parse()?;
        if bytes.is_power_of_two() {
            Ok(Self(bytes.trailing_zeros() as u8))
        } else {
            Err(ParseSizeError { text: text.to_owned(), why: "a page size is a power of two" })
        }
    }
}

/// A number of bytes that reads and prints with binary units: `4K`, `1TiB`, `96M`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bytes(pub u64);

/// A size that could not be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParseSizeError {
    text: String,
    why: &'static str,
}

impl fmt::Display for ParseSizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "size `{}`: {}; write for example 4K, 2M, 1GiB or 64TiB", self.text, self.why)
    }
}
impl std::error::Error for ParseSizeError {}

impl From<PageSize> for Bytes {
    fn from(size: PageSize) -> Bytes {
        Bytes(size.bytes())
    }
}

impl std::str::FromStr for Bytes {
    type Err = ParseSizeError;
    fn from_str(text: &str) -> Result<Self, ParseSizeError> {
        let fail = |why| ParseSizeError { text: text.to_owned(), why };
        let trimmed = text.trim();
        let digits = trimmed.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = trimmed[..digits].parse().map_err(|_| fail("expected a whole number first"))?;
        let shift = match trimmed[digits..].trim() {
            "" | "B" => 0,
            "K" | "k" | "KiB" => 10,
            "M" | "m" | "MiB" => 20,
            "G" | "g" | "GiB" => 30,
            "T" | "t" | "TiB" => 40,
            "P" | "p" | "PiB" => 50,
            _ => return Err(fail("unknown unit (K, M, G, T, P and KiB.. PiB are known)")),
        };
        number.checked_mul(1 << shift).map(Bytes).ok_or_else(|| fail("larger than 2^64 bytes"))
    }
}
impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
        let unit = if self.0 == 0 { 0 } else { (self.0.trailing_zeros() as usize / 10).min(5) };
        write!(f, "{}{}", self.0 >> (10 * unit), UNITS[unit])
    }
}
impl From<Bytes> for String {
    fn from(bytes: Bytes) -> String {
        bytes.to_string()
    }
}
impl TryFrom<String> for Bytes {
    type Error = ParseSizeError;
    fn try_from(text: String) -> Result<Self, ParseSizeError> {
        text.parse()
    }
}

/// Byte counts spelled with their unit: `4.KiB()`, `1.TiB()`.
#[allow(non_snake_case)]
pub trait ByteUnits {
    /// 2^10 bytes.
    fn KiB(self) -> u64;
    /// 2^20 bytes.
    fn MiB(self) -> u64;
    /// 2^30 bytes.
    fn GiB(self) -> u64;
    /// 2^40 bytes.
    fn TiB(self) -> u64;
    /// 2^50 bytes.
    fn PiB(self) -> u64;
}

impl ByteUnits for u64 {
    fn KiB(self) -> u64 {
        self << 10
    }
    fn MiB(self) -> u64 {
        self << 20
    }
    fn GiB(self) -> u64 {
        self << 30
    }
    fn TiB(self) -> u64 {
        self << 40
    }
    fn PiB(self) -> u64 {
        self << 50
    }
}

/// Simulated processor cycles: a duration, or a moment counted from the start of a run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Cycles(pub u64);

impl Cycles {
    /// No time at all.
    pub const ZERO: Cycles = Cycles(0);
    /// A moment that never comes.
    pub const NEVER: Cycles = Cycles(u64::MAX);

    /// The difference, or zero when `earlier` is later.
    pub const fn since(self, earlier: Cycles) -> Cycles {
        Cycles(self.0.saturating_sub(earlier.0))
    }
    /// The sum, stopping at [`Cycles::NEVER`].
    pub const fn after(self, more: Cycles) -> Cycles {
        Cycles(self.0.saturating_add(more.0))
    }
    /// This duration `n` times over, stopping at [`Cycles::NEVER`].
    pub const fn times(self, n: u64) -> Cycles {
        Cycles(self.0.saturating_mul(n))
    }
}
impl Add for Cycles {
    type Output = Cycles;
    fn add(self, other: Cycles) -> Cycles {
        self.after(other)
    }
}
impl AddAssign for Cycles {
    fn add_assign(&mut self, other: Cycles) {
        *self = self.after(other);
    }
}
impl Sub for Cycles {
    type Output = Cycles;
    fn sub(self, other: Cycles) -> Cycles {
        self.since(other)
    }
}
impl std::iter::Sum for Cycles {
    fn sum<I: Iterator<Item = Cycles>>(iter: I) -> Cycles {
        iter.fold(Cycles::ZERO, Add::add)
    }
}
impl fmt::Display for Cycles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}
impl fmt::Debug for Cycles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cyc", self.0)
    }
}

/// A part of a whole, in thousandths: at most all of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Share(u16);

impl Share {
    /// `share` of one; all of it beyond, and nothing below zero.
    pub fn of_one(share: f64) -> Self {
        Self((share.clamp(0.0, 1.0) * 1000.0).round() as u16)
    }

    /// This part of a duration.
    pub fn of(self, whole: Cycles) -> Cycles {
        Cycles((u128::from(whole.0) * u128::from(self.0) / 1000) as u64)
    }

    /// How long somebody takes who has this share of what he would do `alone` in.
    pub fn stretches(self, alone: Cycles) -> Cycles {
        let longer = u128::from(alone.0) * 1000 / u128::from(self.0.max(1));
        Cycles(u64::try_from(longer).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_read_back_as_printed() {
        for (text, shift) in [("4K", 12), ("64K", 16), ("2M", 21), ("32M", 25), ("1G", 30), ("512G", 39)] {
            let size: PageSize = text.parse().unwrap();
            assert_eq!((size.shift(), size.to_string()), (shift, text.to_owned()));
        }
        assert_eq!("1TiB".parse::<Bytes>().unwrap().0, 1.TiB());
    }

    #[test]
    fn a_share_is_a_part_of_a_duration() {
        assert_eq!(Share::of_one(0.47).of(Cycles(1000)), Cycles(470));
        assert_eq!(Share::of_one(3.0).of(Cycles(u64::MAX)), Cycles(u64::MAX));
        assert_eq!(Share::of_one(f64::NAN).of(Cycles(5)), Cycles(0));
        assert_eq!(Share::default().of(Cycles(9)), Cycles(0));
        assert_eq!(Share::of_one(0.5).stretches(Cycles(7)), Cycles(14));
        assert_eq!(Share::of_one(1.0).stretches(Cycles::NEVER), Cycles::NEVER);
        assert_eq!(Share::default().stretches(Cycles::NEVER), Cycles::NEVER);
    }

    #[test]
    fn bad_sizes_are_named() {
        for text in ["", "K", "3K", "4X", "99999999999P", "-4K", "4 K K"] {
            let message = text.parse::<PageSize>().unwrap_err().to_string();
            assert!(message.contains(&format!("`{text}`")), "{message}");
        }
    }

    proptest! {
        #[test]
        fn bytes_round_trip(n: u64) {
            prop_assert_eq!(Bytes(n).to_string().parse::<Bytes>().unwrap(), Bytes(n));
        }

        #[test]
        fn frame_and_offset_rebuild_the_address(raw: u64, shift in 12u32..30) {
            let size = PageSize::from_shift(shift).unwrap();
            let gpa = Gpa::new(raw);
            prop_assert_eq!(gpa.frame(shift).address(shift) + gpa.offset_in(size), gpa);
        }
    }
}
