//! Geometries as text: `64x4:lru`.

use std::fmt;

use mmu_core::assoc::{Index, Replacement, Shape, ShapeError};

/// What the first number of a geometry counts where the text does not say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FirstNumber {
    /// Entries of the whole structure, as data sheets of TLBs do.
    Entries,
    /// Sets.
    Sets,
}

const POLICIES: [(&str, Replacement); 6] = [
    ("lru", Replacement::Lru),
    ("fifo", Replacement::Fifo),
    ("tree-plru", Replacement::TreePlru),
    ("nru", Replacement::Nru),
    ("random", Replacement::Random),
    ("random-half", Replacement::RandomHalf),
];

const INDICES: [(&str, Index); 3] =
    [("modulo", Index::Modulo), ("xor-fold", Index::XorFold), ("skewed", Index::Skewed)];

/// A text that is no geometry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ShapeTextError {
    /// The numbers cannot be read.
    Numbers {
        /// That part of the text.
        text: String,
    },
    /// No such replacement policy.
    Policy {
        /// What stands in its place.
        text: String,
    },
    /// No such index function.
    Index {
        /// What stands in its place.
        text: String,
    },
    /// Something follows the index function.
    Rest {
        /// What that is.
        text: String,
    },
    /// The numbers, or the policy with them, make no structure.
    Shape(ShapeError),
}

impl fmt::Display for ShapeTextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |of: &mut dyn Iterator<Item = &'static str>| of.collect::<Vec<_>>().join(", ");
        match self {
            Self::Numbers { text } => write!(
                f,
                "`{text}` is no geometry: write two numbers, 64x4 (64 entries of 4 ways), 16sx4 (16 sets of 4 ways) or \
                 64xfull, then :POLICY"
            ),
            Self::Policy { text } => {
                let known = names(&mut POLICIES.iter().map(|policy| policy.0));
                write!(f, "unknown replacement policy `{text}`: write one of {known}")
            }
            Self::Index { text } => {
                let known = names(&mut INDICES.iter().map(|index| index.0));
                write!(f, "unknown index function `{text}`: write one of {known}")
            }
            Self::Rest { text } => write!(f, "`:{text}` follows a whole geometry: leave it out"),
            Self::Shape(error) => write!(f, "{error}: {}", error.help()),
        }
    }
}
impl std::error::Error for ShapeTextError {}

/// Reads `NUMBERxWAYS`, then optionally `:POLICY` and `:INDEX`. The number may end with `e` or `s` (entries or sets), the
/// ways with `w`; `full` instead of the ways means fully associative. LRU and modulo are understood.
///
/// ```
/// use mmu_sim::tlb_replay::{FirstNumber, shape_from_text};
/// let entries = shape_from_text("64x4:fifo", FirstNumber::Entries)?;
/// assert_eq!((entries.sets(), entries.ways()), (16, 4));
/// let sets = shape_from_text("64x4", FirstNumber::Sets)?;
/// assert_eq!((sets.sets(), sets.ways()), (64, 4));
/// assert_eq!(shape_from_text("16sx4:fifo", FirstNumber::Entries), Ok(entries));
/// assert!(shape_from_text("64x5", FirstNumber::Entries).unwrap_err().to_string().contains("ways = 4"));
/// # Ok::<(), mmu_sim::tlb_replay::ShapeTextError>(())
/// ```
///
/// # Errors
/// The text is of another form, or no structure can have that shape.
pub fn shape_from_text(text: &str, first: FirstNumber) -> Result<Shape, ShapeTextError> {
    let mut parts = text.splitn(4, ':');
    let numbers = parts.next().unwrap_or_default();
    let (count, ways, first) =
        read_numbers(numbers, first).ok_or_else(|| ShapeTextError::Numbers { text: numbers.to_owned() })?;
    let named = |name: Option<&str>| name.map(str::to_owned);
    let policy = match named(parts.next()) {
        Some(text) => lookup(&POLICIES, &text).ok_or(ShapeTextError::Policy { text })?,
        None => Replacement::Lru,
    };
    let index = match named(parts.next()) {
        Some(text) => lookup(&INDICES, &text).ok_or(ShapeTextError::Index { text })?,
        None => Index::Modulo,
    };
    if let Some(text) = named(parts.next()) {
        return Err(ShapeTextError::Rest { text });
    }
    let entries = match first {
        FirstNumber::Entries => count,
        // Too many are refused by the shape.
        FirstNumber::Sets => count.saturating_mul(ways.max(1)),
    };
    let shape = Shape::new(entries, ways).and_then(|shape| shape.replaced_by(policy)).map_err(ShapeTextError::Shape)?;
    shape.indexed_by(index).map_err(ShapeTextError::Shape)
}

fn lookup<T: Copy>(table: &[(&str, T)], name: &str) -> Option<T> {
    table.iter().find(|entry| entry.0 == name).map(|entry| entry.1)
}

/// The number, the ways (0 for all) and what the number counts.
fn read_numbers(text: &str, first: FirstNumber) -> Option<(u32, u32, FirstNumber)> {
    let (count, ways) = text.split_once('x')?;
    let (count, first) = match (count.strip_suffix('e'), count.strip_suffix('s')) {
        (Some(count), _) => (count, FirstNumber::Entries),
        (_, Some(count)) => (count, FirstNumber::Sets),
        _ => (count, first),
    };
    if ways == "full" {
        // One set of so many ways, or so many sets of one way each that are searched together: the same.
        return Some((number(count)?, 0, FirstNumber::Entries));
    }
    let ways = number(ways.strip_suffix('w').unwrap_or(ways))?;
    // 0 ways would be read as "all".
    (ways > 0).then_some((number(count)?, ways, first))
}

/// Digits only: the standard reader would take a sign.
fn number(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// A shape as [`shape_from_text`] reads it, with the number of entries first.
pub fn shape_to_text(shape: Shape) -> String {
    let name = |wanted: Replacement| POLICIES.iter().find(|policy| policy.1 == wanted).map_or("", |policy| policy.0);
    let index = match INDICES.iter().find(|index| index.1 == shape.index()) {
        Some((name, index)) if *index != Index::Modulo => format!(":{name}"),
        _ => String::new(),
    };
    format!("{}ex{}:{}{index}", shape.entries(), shape.ways(), name(shape.replacement()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Shape, ShapeTextError> {
        shape_from_text(text, FirstNumber::Entries)
    }

    #[test]
    fn all_forms_are_read_and_written_back() {
        for (text, sets, ways) in
            [("64x4", 16, 4), ("64ex4w:lru", 16, 4), ("3sx5:nru", 3, 5), ("1536x12:random", 128, 12), ("7xfull", 1, 7)]
        {
            let shape = read(text).unwrap();
            assert_eq!((shape.sets(), shape.ways()), (sets, ways), "{text}");
            assert_eq!(shape_from_text(&shape_to_text(shape), FirstNumber::Sets), Ok(shape), "{text}");
        }
        for (policy, _) in POLICIES {
            for (index, _) in INDICES {
                if let Ok(shape) = read(&format!("32x4:{policy}:{index}")) {
                    assert_eq!(read(&shape_to_text(shape)), Ok(shape));
                } else {
                    assert_eq!((policy, index), ("tree-plru", "skewed"));
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_is_told_with_the_remedy() {
        for (text, words) in [
            ("", "no geometry"),
            ("64", "64x4"),
            ("x", "no geometry"),
            ("+64x4", "no geometry"),
            ("64x0", "64xfull"),
            ("0x4", "0 entries"),
            ("64x5", "ways = 4"),
            ("64x4:plru", "tree-plru"),
            ("64x4:lru:hash", "xor-fold"),
            ("64x4:lru:modulo:1", "leave it out"),
            ("99999999x1", "at most"),
            ("128x128:nru", "limit 64"),
            ("4294967295sx4294967295", "more than can be simulated"),
        ] {
            let said = read(text).unwrap_err().to_string();
            assert!(said.contains(words), "{text}: {said}");
        }
    }
}
