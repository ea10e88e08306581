//! Pieces of the file format that all architectures share.

use mmu_core::Hpa;
use mmu_core::image::{ImageError, MemoryImage, RamRange};
use serde::{Deserialize, Deserializer, de};

/// A number written as `"0x..."`, as decimal text or as a JSON number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Num(pub(crate) u64);

impl<'de> Deserialize<'de> for Num {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Num;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number, or text such as \"0x1f\"")
            }
            fn visit_u64<E: de::Error>(self, n: u64) -> Result<Num, E> {
                Ok(Num(n))
            }
            fn visit_i64<E: de::Error>(self, n: i64) -> Result<Num, E> {
                Ok(Num(n as u64))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Num, E> {
                let parsed = match text.strip_prefix("0x") {
                    Some(hex) => u64::from_str_radix(hex, 16),
                    None => text.parse(),
                };
                parsed.map(Num).map_err(|_| E::custom(format!("`{text}` is not a 64-bit number")))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// Reads one line; an error names the field it happened at or after.
pub(crate) fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| match last_key(text, error.column()) {
        Some(key) => format!("near field `{key}`: {error}"),
        None => error.to_string(),
    })
}

/// The last object key that ends before byte `column` of a line.
fn last_key(text: &str, column: usize) -> Option<&str> {
    let before = text.get(..column.min(text.len()))?;
    let end = before.rfind("\":")?;
    let start = before[..end].rfind('"')?;
    Some(&before[start + 1..end])
}

/// `[[pa, value], ...]`
pub(crate) type Words = Vec<(Num, Num)>;

/// Builds the memory of an image.
pub(crate) fn memory(words: &Words, ram: Option<&[(Num, Num)]>) -> Result<MemoryImage, ImageError> {
    let mut image = match ram {
        Some(ranges) => {
            MemoryImage::new(ranges.iter().map(|&(start, bytes)| RamRange { start: Hpa::new(start.0), bytes: bytes.0 }))
        }
        None => MemoryImage::everywhere(),
    };
    for &(at, word) in words {
        image.set(Hpa::new(at.0), word.0)?;
    }
    Ok(image)
}

/// The words that differ between two images: `(address, value after)`, by address.
pub(crate) fn changes(before: &MemoryImage, after: &MemoryImage) -> Vec<(u64, u64)> {
    let mut changed: Vec<(u64, u64)> = after
        .words()
        .filter(|&(at, word)| before.get(at) != word)
        .map(|(at, word)| (at.raw(), word))
        .chain(before.words().filter(|&(at, _)| after.get(at) == 0).map(|(at, _)| (at.raw(), 0)))
        .collect();
    changed.sort_unstable();
    changed
}

/// The recorded changes in the form of [`changes`].
pub(crate) fn recorded_changes(memory_after: Option<&Words>) -> Vec<(u64, u64)> {
    let mut words: Vec<(u64, u64)> = memory_after.into_iter().flatten().map(|&(at, word)| (at.0, word.0)).collect();
    words.sort_unstable();
    words
}
