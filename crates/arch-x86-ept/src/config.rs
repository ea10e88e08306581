//! Building an [`Ept`]: every choice has a name, and what no processor accepts is refused.

use std::fmt;

use mmu_core::{Geometry, PageSize};
use serde::{Deserialize, Serialize};

use crate::bits::MAX_PHYS_BITS;
use crate::caps::{Capability, EptCapabilities};
use crate::ept::Ept;

/// Number of levels (EPTP bits 5:3 plus one).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WalkLength {
    /// PML4: 48-bit guest-physical addresses.
    #[default]
    Four,
    /// PML5: 57-bit walks, of which 52 bits can be used.
    Five,
}

impl WalkLength {
    /// As a number.
    pub const fn levels(self) -> usize {
        match self {
            WalkLength::Four => 4,
            WalkLength::Five => 5,
        }
    }
}

/// Accessed and dirty flags for EPT (EPTP bit 6).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessedDirty {
    /// Set by the processor, which then takes guest table reads for writes (SDM 28.3.5).
    #[default]
    On,
    /// Bits 8 and 9 are ignored.
    Off,
}

/// Execute-only translations.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExecuteOnly {
    /// Execute without read is legal.
    #[default]
    Supported,
    /// It is a misconfiguration.
    Unsupported,
}

/// Mode-based execute control ("XU", secondary control bit 22).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModeBasedExecute {
    /// Bit 2 says it for all fetches, bit 10 is ignored.
    #[default]
    Off,
    /// Bit 2 for supervisor-mode, bit 10 for user-mode linear addresses.
    On,
}

/// Which leaves above 4 KiB the processor has.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LargePages {
    /// None.
    None,
    /// 2 MiB only.
    Only2M,
    /// 1 GiB only. No processor is known to offer this; the capability register can say it.
    Only1G,
    /// Both.
    #[default]
    Both,
}

impl LargePages {
    /// Levels (0 = 4 KiB) at which leaves are legal.
    pub(crate) const fn leaf_levels(self) -> &'static [u8] {
        match self {
            LargePages::None => &[0],
            LargePages::Only2M => &[0, 1],
            LargePages::Only1G => &[0, 2],
            LargePages::Both => &[0, 1, 2],
        }
    }
}

/// The control "EPT-violation #VE" (SDM 25.5.7).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ViolationException {
    /// Every violation exits; bit 63 is ignored.
    #[default]
    Off,
    /// Violations whose deciding entry has bit 63 clear are convertible to #VE.
    On,
}

/// Advanced exit information: qualification bits 11:9 (SDM 27.2.1).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdvancedInfo {
    /// The bits read zero.
    #[default]
    Absent,
    /// The bits describe the guest's own page.
    Reported,
}

/// Memory type with which the processor reads the EPT structures (EPTP bits 2:0).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PagingMemoryType {
    /// 0: uncacheable; every walk reference goes to memory.
    Uncacheable,
    /// 6: write-back.
    #[default]
    WriteBack,
}

/// Which INVEPT types there are (SDM 30.3).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InveptSupport {
    /// Type 1: one EP4TA.
    #[default]
    SingleContext,
    /// Type 2 only: every flush hits all guests.
    AllContextOnly,
}

/// A configuration that no processor has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EptConfigError {
    /// The physical-address width must be 36 to 52 bits (CPUID 80000008H; SDM 4.1.4).
    MaxPhysAddr {
        /// The width asked for.
        bits: u32,
    },
    /// The processor lacks something that the configuration uses.
    Missing {
        /// What.
        capability: Capability,
    },
    /// The geometry cannot be built.
    Geometry,
}

impl fmt::Display for EptConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EptConfigError::MaxPhysAddr { bits } => {
                write!(f, "EPT: a physical-address width of {bits} bits; processors have 36 to {MAX_PHYS_BITS}")
            }
            EptConfigError::Missing { capability } => write!(f, "EPT: the processor has no {capability:?}"),
            EptConfigError::Geometry => f.write_str("EPT: no tree of this shape exists"),
        }
    }
}
impl std::error::Error for EptConfigError {}

/// Builder of [`Ept`]. Starts as a current server processor runs KVM: 4 levels, 46 bits, A/D on, all page sizes.
///
/// ```
/// use arch_x86_ept::{EptConfig, WalkLength};
/// let five = EptConfig::new().walk_length(WalkLength::Five).max_phys_addr(52).build()?;
/// assert!(EptConfig::new().max_phys_addr(53).build().is_err());
/// # Ok::<(), arch_x86_ept::EptConfigError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EptConfig {
    pub(crate) walk_length: WalkLength,
    pub(crate) max_phys_addr: u32,
    pub(crate) accessed_dirty: AccessedDirty,
    pub(crate) execute_only: ExecuteOnly,
    pub(crate) mode_based_execute: ModeBasedExecute,
    pub(crate) large_pages: LargePages,
    pub(crate) violation_exception: ViolationException,
    pub(crate) advanced_info: AdvancedInfo,
    pub(crate) paging_memory_type: PagingMemoryType,
    pub(crate) invept: InveptSupport,
}

impl Default for EptConfig {
    fn default() -> Self {
        Self {
            walk_length: WalkLength::default(),
            max_phys_addr: 46,
            accessed_dirty: AccessedDirty::default(),
            execute_only: ExecuteOnly::default(),
            mode_based_execute: ModeBasedExecute::default(),
            large_pages: LargePages::default(),
            violation_exception: ViolationException::default(),
            advanced_info: AdvancedInfo::default(),
            paging_memory_type: PagingMemoryType::default(),
            invept: InveptSupport::default(),
        }
    }
}

impl EptConfig {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// What a processor with these capabilities and this physical-address width offers at its best: the longest walk is
    /// *not* chosen, accessed and dirty flags are.
    pub fn for_processor(caps: EptCapabilities, max_phys_addr: u32) -> Self {
        let large = match (caps.has(Capability::Pages2M), caps.has(Capability::Pages1G)) {
            (false, false) => LargePages::None,
            (true, false) => LargePages::Only2M,
            (false, true) => LargePages::Only1G,
            (true, true) => LargePages::Both,
        };
        let either = |capability| caps.has(capability);
        Self {
            walk_length: if either(Capability::WalkLength4) { WalkLength::Four } else { WalkLength::Five },
            max_phys_addr,
            accessed_dirty: if either(Capability::AccessedDirty) { AccessedDirty::On } else { AccessedDirty::Off },
            execute_only: if either(Capability::ExecuteOnly) {
                ExecuteOnly::Supported
            } else {
                ExecuteOnly::Unsupported
            },
            mode_based_execute: ModeBasedExecute::Off,
            large_pages: large,
            violation_exception: ViolationException::Off,
            advanced_info: if either(Capability::AdvancedInfo) { AdvancedInfo::Reported } else { AdvancedInfo::Absent },
            paging_memory_type: if either(Capability::WriteBack) {
                PagingMemoryType::WriteBack
            } else {
                PagingMemoryType::Uncacheable
            },
            invept: if either(Capability::InveptSingleContext) {
                InveptSupport::SingleContext
            } else {
                InveptSupport::AllContextOnly
            },
        }
    }

    /// Number of levels.
    pub fn walk_length(self, walk_length: WalkLength) -> Self {
        Self { walk_length, ..self }
    }
    /// Width of physical addresses in bits (MAXPHYADDR), 36 to 52.
    pub fn max_phys_addr(self, bits: u32) -> Self {
        Self { max_phys_addr: bits, ..self }
    }
    /// Accessed and dirty flags.
    pub fn accessed_dirty(self, accessed_dirty: AccessedDirty) -> Self {
        Self { accessed_dirty, ..self }
    }
    /// Execute-only translations.
    pub fn execute_only(self, execute_only: ExecuteOnly) -> Self {
        Self { execute_only, ..self }
    }
    /// Mode-based execute control.
    pub fn mode_based_execute(self, mode_based_execute: ModeBasedExecute) -> Self {
        Self { mode_based_execute, ..self }
    }
    /// Leaves above 4 KiB.
    pub fn large_pages(self, large_pages: LargePages) -> Self {
        Self { large_pages, ..self }
    }
    /// The "EPT-violation #VE" control.
    pub fn violation_exception(self, violation_exception: ViolationException) -> Self {
        Self { violation_exception, ..self }
    }
    /// Advanced exit information.
    pub fn advanced_info(self, advanced_info: AdvancedInfo) -> Self {
        Self { advanced_info, ..self }
    }
    /// Memory type of the EPT structures.
    pub fn paging_memory_type(self, paging_memory_type: PagingMemoryType) -> Self {
        Self { paging_memory_type, ..self }
    }
    /// INVEPT types.
    pub fn invept(self, invept: InveptSupport) -> Self {
        Self { invept, ..self }
    }

    /// The format.
    ///
    /// # Errors
    /// A physical-address width outside 36 to 52.
    pub fn build(self) -> Result<Ept, EptConfigError> {
        if !(36..=MAX_PHYS_BITS).contains(&self.max_phys_addr) {
            return Err(EptConfigError::MaxPhysAddr { bits: self.max_phys_addr });
        }
        let bits = &[9u8; 5][..self.walk_length.levels()];
        let geometry =
            Geometry::uniform(PageSize::SIZE_4K, bits, self.max_phys_addr as u8, self.large_pages.leaf_levels())
                .map_err(|_| EptConfigError::Geometry)?;
        Ok(Ept::from_parts(self, geometry))
    }

    /// The same, refused when a processor with `caps` cannot run it.
    ///
    /// # Errors
    /// As [`EptConfig::build`], and the first missing capability.
    pub fn build_for(self, caps: EptCapabilities) -> Result<Ept, EptConfigError> {
        let needed = [
            (self.walk_length == WalkLength::Four, Capability::WalkLength4),
            (self.walk_length == WalkLength::Five, Capability::WalkLength5),
            (self.accessed_dirty == AccessedDirty::On, Capability::AccessedDirty),
            (self.execute_only == ExecuteOnly::Supported, Capability::ExecuteOnly),
            (matches!(self.large_pages, LargePages::Only2M | LargePages::Both), Capability::Pages2M),
            (matches!(self.large_pages, LargePages::Only1G | LargePages::Both), Capability::Pages1G),
            (self.advanced_info == AdvancedInfo::Reported, Capability::AdvancedInfo),
            (self.paging_memory_type == PagingMemoryType::WriteBack, Capability::WriteBack),
            (self.paging_memory_type == PagingMemoryType::Uncacheable, Capability::Uncacheable),
            (self.invept == InveptSupport::SingleContext, Capability::InveptSingleContext),
            (self.invept == InveptSupport::AllContextOnly, Capability::InveptAllContext),
        ];
        match needed.into_iter().find(|&(used, capability)| used && !caps.has(capability)) {
            Some((_, capability)) => Err(EptConfigError::Missing { capability }),
            None => self.build(),
        }
    }
}
