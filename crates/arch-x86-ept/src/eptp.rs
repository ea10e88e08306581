//! The EPT pointer and the checks of VM entry (SDM 24.6.11 and 26.2.1.1).

use std::fmt;

use mmu_core::Hpa;

use crate::bits::ADDRESS;
use crate::caps::{Capability, EptCapabilities};
use crate::config::{AccessedDirty, EptConfig, EptConfigError, PagingMemoryType, WalkLength};
use crate::ept::Ept;

/// An EPT pointer, as the VMCS field holds it.
///
/// ```
/// use arch_x86_ept::{EptCapabilities, EptConfig, Eptp};
/// let skylake = EptCapabilities::from_msr(0xf0106334141);
/// let config = EptConfig::for_processor(skylake, 40);
/// let (ept, root) = Eptp::new(0x3fe7005e).enter(config, skylake)?;
/// assert_eq!((root.raw(), Eptp::of(&ept, root).value()), (0x3fe70000, 0x3fe7005e));
/// let error = Eptp::new(0x3fe7005d).enter(config, skylake).unwrap_err();
/// assert_eq!(error.vm_instruction_error(), 7);
/// # Ok::<(), arch_x86_ept::EptpError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Eptp(u64);

/// The rule that an EPT pointer breaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EptpRule {
    /// Bits 2:0: a memory type that the processor does not allow.
    MemoryType,
    /// Bits 5:3: a walk length that it does not have.
    WalkLength,
    /// Bit 6 without accessed and dirty flags.
    AccessedDirty,
    /// Bit 7 without supervisor shadow-stack control.
    SupervisorShadowStack,
    /// Bits 11:8, or bits at or above MAXPHYADDR.
    Reserved,
    /// The rest of the configuration cannot exist.
    Config(EptConfigError),
}

/// VM entry failed: "VM entry with invalid control field(s)".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EptpError {
    /// The pointer.
    pub eptp: Eptp,
    /// The broken rule.
    pub rule: EptpRule,
}

impl EptpError {
    /// The VM-instruction error number (SDM 30.4): 7.
    pub const fn vm_instruction_error(&self) -> u32 {
        7
    }
}

impl fmt::Display for EptpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EPTP {:#x}: VM entry fails (error 7), ", self.eptp.0)?;
        match self.rule {
            EptpRule::MemoryType => f.write_str("memory type in bits 2:0 is not allowed; use 6 or 0"),
            EptpRule::WalkLength => f.write_str("walk length in bits 5:3 is not supported; use 3 or 4"),
            EptpRule::AccessedDirty => f.write_str("bit 6 asks for accessed and dirty flags that do not exist"),
            EptpRule::SupervisorShadowStack => f.write_str("bit 7 asks for supervisor shadow stacks that do not exist"),
            EptpRule::Reserved => f.write_str("reserved bits are set"),
            EptpRule::Config(error) => error.fmt(f),
        }
    }
}
impl std::error::Error for EptpError {}

impl Eptp {
    /// The pointer with this value.
    pub const fn new(value: u64) -> Self {
        Self(value)
    }

    /// The pointer to the tree of `ept` at `root`.
    pub fn of(ept: &Ept, root: Hpa) -> Self {
        let config = ept.config();
        let memory_type = match config.paging_memory_type {
            PagingMemoryType::Uncacheable => 0,
            PagingMemoryType::WriteBack => 6,
        };
        let accessed_dirty = match config.accessed_dirty {
            AccessedDirty::On => 1 << 6,
            AccessedDirty::Off => 0,
        };
        Self(root.raw() & ADDRESS | accessed_dirty | (config.walk_length.levels() as u64 - 1) << 3 | memory_type)
    }

    /// The field's value.
    pub const fn value(self) -> u64 {
        self.0
    }

    /// The checks of VM entry: the format and root that the pointer selects on a processor with `caps`; `config` gives
    /// what is not in the pointer (MAXPHYADDR, mode-based execute, ...).
    ///
    /// # Errors
    /// The rule that fails the entry.
    pub fn enter(self, config: EptConfig, caps: EptCapabilities) -> Result<(Ept, Hpa), EptpError> {
        let fail = |rule| EptpError { eptp: self, rule };
        let memory_type = match self.0 & 7 {
            0 if caps.has(Capability::Uncacheable) => PagingMemoryType::Uncacheable,
            6 if caps.has(Capability::WriteBack) => PagingMemoryType::WriteBack,
            _ => return Err(fail(EptpRule::MemoryType)),
        };
        let walk_length = match self.0 >> 3 & 7 {
            3 if caps.has(Capability::WalkLength4) => WalkLength::Four,
            4 if caps.has(Capability::WalkLength5) => WalkLength::Five,
            _ => return Err(fail(EptpRule::WalkLength)),
        };
        let accessed_dirty = match self.0 >> 6 & 1 {
            0 => AccessedDirty::Off,
            _ if caps.has(Capability::AccessedDirty) => AccessedDirty::On,
            _ => return Err(fail(EptpRule::AccessedDirty)),
        };
        if self.0 >> 7 & 1 == 1 && !caps.has(Capability::SupervisorShadowStack) {
            return Err(fail(EptpRule::SupervisorShadowStack));
        }
        let ept = config
            .paging_memory_type(memory_type)
            .walk_length(walk_length)
            .accessed_dirty(accessed_dirty)
            .build()
            .map_err(|error| fail(EptpRule::Config(error)))?;
        let root = self.0 & ept.address_mask();
        if self.0 & !(root | 0xff) != 0 {
            return Err(fail(EptpRule::Reserved));
        }
        Ok((ept, Hpa::new(root)))
    }
}
