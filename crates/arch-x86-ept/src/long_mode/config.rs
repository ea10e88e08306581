//! Building a [`LongMode`].

use std::fmt;

use mmu_core::{Geometry, PageSize};
use serde::{Deserialize, Serialize};

use super::LongMode;
use crate::config::{LargePages, WalkLength};

/// CR0.WP.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WriteProtect {
    /// Supervisor stores obey R/W.
    #[default]
    On,
    /// Supervisor stores go anywhere.
    Off,
}

/// IA32_EFER.NXE.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoExecute {
    /// Bit 63 forbids execution.
    #[default]
    On,
    /// Bit 63 is reserved.
    Off,
}

/// CR4.SMEP.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Smep {
    /// The supervisor may execute user pages.
    #[default]
    Off,
    /// It may not.
    On,
}

/// CR4.SMAP with EFLAGS.AC clear.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Smap {
    /// The supervisor may load and store user pages.
    #[default]
    Off,
    /// It may not.
    On,
}

/// Attributes of a guest leaf.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LongModeAttrs {
    /// Index into IA32_PAT: PAT, PCD, PWT as a number of 0 to 7. 0 is write-back after reset.
    pub pat_index: u8,
    /// G: survives a change of CR3 when CR4.PGE is set.
    pub global: bool,
    /// Bits 11:9 and 62:52, in place.
    pub software: u64,
}

/// A configuration that no processor has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LongModeConfigError {
    /// The physical-address width must be 36 to 52 bits (SDM 4.1.4).
    MaxPhysAddr {
        /// The width asked for.
        bits: u32,
    },
    /// 2 MiB pages are part of IA-32e paging; only 1 GiB pages are optional (SDM 4.1.4, Page1GB).
    LargePages,
    /// The geometry cannot be built.
    Geometry,
}

impl fmt::Display for LongModeConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LongModeConfigError::MaxPhysAddr { bits } => {
                write!(f, "long mode: a physical-address width of {bits} bits; processors have 36 to 52")
            }
            LongModeConfigError::LargePages => {
                f.write_str("long mode: every processor has 2 MiB pages; choose `only2_m` or `both`")
            }
            LongModeConfigError::Geometry => f.write_str("long mode: no tree of this shape exists"),
        }
    }
}
impl std::error::Error for LongModeConfigError {}

/// Builder of [`LongMode`]: starts with 4 levels, 46 bits, all page sizes, WP and NXE on, SMEP and SMAP off.
///
/// ```
/// use arch_x86_ept::{LongModeConfig, WalkLength};
/// let guest = LongModeConfig::new().walk_length(WalkLength::Five).build()?;
/// # Ok::<(), arch_x86_ept::LongModeConfigError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LongModeConfig {
    pub(super) walk_length: WalkLength,
    pub(super) max_phys_addr: u32,
    pub(super) large_pages: LargePages,
    pub(super) write_protect: WriteProtect,
    pub(super) no_execute: NoExecute,
    pub(super) smep: Smep,
    pub(super) smap: Smap,
}

impl Default for LongModeConfig {
    fn default() -> Self {
        Self {
            walk_length: WalkLength::default(),
            max_phys_addr: 46,
            large_pages: LargePages::default(),
            write_protect: WriteProtect::default(),
            no_execute: NoExecute::default(),
            smep: Smep::default(),
            smap: Smap::default(),
        }
    }
}

impl LongModeConfig {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }
    /// Number of levels (CR4.LA57).
    pub fn walk_length(self, walk_length: WalkLength) -> Self {
        Self { walk_length, ..self }
    }
    /// The guest's physical-address width in bits, 36 to 52.
    pub fn max_phys_addr(self, bits: u32) -> Self {
        Self { max_phys_addr: bits, ..self }
    }
    /// Leaves above 4 KiB: 2 MiB alone, or both.
    pub fn large_pages(self, large_pages: LargePages) -> Self {
        Self { large_pages, ..self }
    }
    /// CR0.WP.
    pub fn write_protect(self, write_protect: WriteProtect) -> Self {
        Self { write_protect, ..self }
    }
    /// IA32_EFER.NXE.
    pub fn no_execute(self, no_execute: NoExecute) -> Self {
        Self { no_execute, ..self }
    }
    /// CR4.SMEP.
    pub fn smep(self, smep: Smep) -> Self {
        Self { smep, ..self }
    }
    /// CR4.SMAP.
    pub fn smap(self, smap: Smap) -> Self {
        Self { smap, ..self }
    }

    /// The format.
    ///
    /// # Errors
    /// A physical-address width outside 36 to 52, or no 2 MiB pages.
    pub fn build(self) -> Result<LongMode, LongModeConfigError> {
        if !(36..=52).contains(&self.max_phys_addr) {
            return Err(LongModeConfigError::MaxPhysAddr { bits: self.max_phys_addr });
        }
        if !matches!(self.large_pages, LargePages::Only2M | LargePages::Both) {
            return Err(LongModeConfigError::LargePages);
        }
        let bits = &[9u8; 5][..self.walk_length.levels()];
        let geometry =
            Geometry::uniform(PageSize::SIZE_4K, bits, self.max_phys_addr as u8, self.large_pages.leaf_levels())
                .map_err(|_| LongModeConfigError::Geometry)?;
        Ok(LongMode::from_parts(self, geometry))
    }
}
