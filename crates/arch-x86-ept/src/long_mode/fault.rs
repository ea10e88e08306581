//! Page faults of the guest (SDM 4.7) and its own invalidation instructions (SDM 4.10.4).

use std::fmt;

use mmu_core::{FaultClass, FaultReport, Level};

/// Error code of a page fault.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct PageFaultCode(u32);

impl PageFaultCode {
    /// P: the translation was present; the access was not allowed.
    pub const PRESENT: PageFaultCode = PageFaultCode(1);
    /// W/R: the access was a store.
    pub const WRITE: PageFaultCode = PageFaultCode(1 << 1);
    /// U/S: it was made in user mode.
    pub const USER: PageFaultCode = PageFaultCode(1 << 2);
    /// RSVD: a reserved bit was set.
    pub const RESERVED: PageFaultCode = PageFaultCode(1 << 3);
    /// I/D: it was a fetch, and NXE or SMEP is on.
    pub const FETCH: PageFaultCode = PageFaultCode(1 << 4);

    /// The value pushed on the stack.
    pub const fn bits(self) -> u32 {
        self.0
    }
    /// The union.
    #[must_use]
    pub const fn with(self, other: PageFaultCode) -> Self {
        Self(self.0 | other.0)
    }
    /// Whether every bit of `other` is there.
    pub const fn contains(self, other: PageFaultCode) -> bool {
        self.0 & other.0 == other.0
    }
}
impl fmt::Debug for PageFaultCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageFaultCode({:#x})", self.0)
    }
}
impl fmt::Display for PageFaultCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// What stops a first-stage walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LongModeFault {
    /// #PF.
    PageFault {
        /// CR2.
        linear: u64,
        /// The error code.
        code: PageFaultCode,
        /// Level of the deciding entry.
        level: Level,
    },
    /// #GP (or #SS): the linear address is not canonical.
    NonCanonical {
        /// The address.
        linear: u64,
    },
    /// A table lies outside memory. The architecture defines no fault for it.
    External {
        /// The address being translated.
        linear: u64,
        /// Level of the entry.
        level: Level,
    },
}

impl std::error::Error for LongModeFault {}

impl FaultReport for LongModeFault {
    fn class(&self) -> FaultClass {
        match self {
            LongModeFault::PageFault { code, .. } if code.contains(PageFaultCode::RESERVED) => FaultClass::Malformed,
            LongModeFault::PageFault { code, .. } if code.contains(PageFaultCode::PRESENT) => FaultClass::Permission,
            LongModeFault::PageFault { .. } => FaultClass::NotPresent,
            LongModeFault::NonCanonical { .. } => FaultClass::AddressSize,
            LongModeFault::External { .. } => FaultClass::External,
        }
    }
    fn level(&self) -> Option<Level> {
        match *self {
            LongModeFault::PageFault { level, .. } | LongModeFault::External { level, .. } => Some(level),
            LongModeFault::NonCanonical { .. } => None,
        }
    }
}

impl fmt::Display for LongModeFault {
    /// Levels as the manual counts them: 1 is the last.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LongModeFault::PageFault { linear, code, level } => {
                write!(f, "#PF at {linear:#x}, error code {code}, entry at level {}", level.index() + 1)
            }
            LongModeFault::NonCanonical { linear } => write!(f, "#GP: {linear:#x} is not canonical"),
            LongModeFault::External { linear, level } => {
                write!(f, "level {} table of {linear:#x} outside memory", level.index() + 1)
            }
        }
    }
}

/// The guest's invalidation instructions.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum GuestTlbi {
    /// INVLPG: one page of the current PCID, globals included.
    Invlpg,
    /// INVPCID type 0: one page of one PCID.
    InvpcidAddress,
    /// INVPCID type 1 (what a move to CR3 does): all of one PCID but globals.
    InvpcidSingleContext,
    /// INVPCID type 2: everything.
    InvpcidAllGlobal,
    /// INVPCID type 3: everything but globals.
    InvpcidAllContext,
}

impl fmt::Display for GuestTlbi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            GuestTlbi::Invlpg => "INVLPG",
            GuestTlbi::InvpcidAddress => "INVPCID individual-address",
            GuestTlbi::InvpcidSingleContext => "INVPCID single-context",
            GuestTlbi::InvpcidAllGlobal => "INVPCID all-context including globals",
            GuestTlbi::InvpcidAllContext => "INVPCID all-context",
        })
    }
}
