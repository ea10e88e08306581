//! The formats by name, and telling which one a file is in.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use crate::formats::{champsim, lackey, mmut, packed};

/// Bytes at the start of the content that detection looks at.
pub(crate) const SAMPLE: usize = 64 * 96;

/// A trace format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceFormat {
    /// Text of Valgrind's Lackey, see [`formats::lackey`](crate::formats::lackey).
    Lackey,
    /// ChampSim's 64-byte records, see [`formats::champsim`](crate::formats::champsim).
    Champsim,
    /// ChampSim's 96-byte CloudSuite records.
    ChampsimCloudsuite,
    /// One word per record, see [`formats::packed`](crate::formats::packed).
    Packed,
    /// Our own, see [`formats::mmut`](crate::formats::mmut).
    Mmut,
}

impl TraceFormat {
    /// All formats.
    pub const ALL: [Self; 5] = [Self::Lackey, Self::Champsim, Self::ChampsimCloudsuite, Self::Packed, Self::Mmut];

    /// The name used on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lackey => "lackey",
            Self::Champsim => "champsim",
            Self::ChampsimCloudsuite => "champsim-cloudsuite",
            Self::Packed => "packed",
            Self::Mmut => "mmut",
        }
    }

    /// Tells by the extension, with `.gz`, `.xz` or `.zst` taken off first.
    pub fn from_name(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let stem = ["gz", "xz", "zst"].iter().find_map(|z| name.strip_suffix(z)?.strip_suffix('.')).unwrap_or(name);
        match Path::new(stem).extension()?.to_str()? {
            "lackey" => Some(Self::Lackey),
            "champsim" | "champsimtrace" => Some(Self::Champsim),
            "cloudsuite" => Some(Self::ChampsimCloudsuite),
            "packed" => Some(Self::Packed),
            "mmut" => Some(Self::Mmut),
            _ => None,
        }
    }

    /// Tells by the first bytes of the content and, where that leaves doubt, by the name.
    pub(crate) fn detect(sample: &[u8], path: &Path) -> Option<Self> {
        if mmut::looks_like(sample) {
            return Some(Self::Mmut);
        }
        if lackey::looks_like(sample) {
            return Some(Self::Lackey);
        }
        if let Some(format) = Self::from_name(path) {
            return Some(format);
        }
        // Binary records without a magic number: accepted only if exactly one format finds all of them plausible.
        let candidates = [
            (Self::Champsim, champsim::looks_like(sample, champsim::Layout::Standard)),
            (Self::ChampsimCloudsuite, champsim::looks_like(sample, champsim::Layout::CloudSuite)),
            (Self::Packed, packed::looks_like(sample)),
        ];
        let mut plausible = candidates.iter().filter(|(_, plausible)| *plausible);
        match (plausible.next(), plausible.next()) {
            (Some((format, _)), None) => Some(*format),
            _ => None,
        }
    }
}

impl fmt::Display for TraceFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for TraceFormat {
    type Err = String;

    /// Reads a name as given by [`TraceFormat::name`].
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|format| format.name() == name).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|format| format.name()).collect();
            format!("unknown trace format `{name}`; expected one of {}", names.join(", "))
        })
    }
}
