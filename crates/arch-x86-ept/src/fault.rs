//! EPT violations and misconfigurations as the processor reports them (SDM 27.2.1 and 28.3.3).

use std::fmt;

use mmu_core::tlb::Perms;
use mmu_core::{FaultClass, FaultReport, Gpa, Level, Malformed, Mapped};

/// Basic exit reason (SDM appendix C).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u16)]
pub enum ExitReason {
    /// 48.
    EptViolation = 48,
    /// 49.
    EptMisconfiguration = 49,
}

impl ExitReason {
    /// The architecture's number.
    pub const fn number(self) -> u16 {
        self as u16
    }
}

/// Exit qualification of an EPT violation (SDM table "Exit Qualification for EPT Violations").
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Qualification(u64);

impl Qualification {
    /// The access was a data read.
    pub const READ: Qualification = Qualification(1);
    /// The access was a data write.
    pub const WRITE: Qualification = Qualification(1 << 1);
    /// The access was an instruction fetch.
    pub const FETCH: Qualification = Qualification(1 << 2);
    /// The guest-physical address was readable: AND of bit 0 over the entries walked.
    pub const READABLE: Qualification = Qualification(1 << 3);
    /// It was writable.
    pub const WRITABLE: Qualification = Qualification(1 << 4);
    /// It was executable (with mode-based control: from supervisor-mode linear addresses).
    pub const EXECUTABLE: Qualification = Qualification(1 << 5);
    /// It was executable from user-mode linear addresses; zero without mode-based control.
    pub const USER_EXECUTABLE: Qualification = Qualification(1 << 6);
    /// The guest-linear-address field is valid.
    pub const LINEAR_VALID: Qualification = Qualification(1 << 7);
    /// The access is the translation of a linear address, not of a guest table entry.
    pub const FINAL: Qualification = Qualification(1 << 8);
    /// Advanced information: the linear address is a user-mode one.
    pub const USER_LINEAR: Qualification = Qualification(1 << 9);
    /// Advanced information: the guest's page is writable.
    pub const GUEST_WRITABLE: Qualification = Qualification(1 << 10);
    /// Advanced information: the guest's page is execute-disabled.
    pub const GUEST_NO_EXECUTE: Qualification = Qualification(1 << 11);

    /// The field with these bits.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
    /// The field's value.
    pub const fn bits(self) -> u64 {
        self.0
    }
    /// The union.
    #[must_use]
    pub const fn with(self, other: Qualification) -> Self {
        Self(self.0 | other.0)
    }
    /// Whether every bit of `other` is there.
    pub const fn contains(self, other: Qualification) -> bool {
        self.0 & other.0 == other.0
    }
}

impl fmt::Debug for Qualification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Qualification({:#x})", self.0)
    }
}
impl fmt::Display for Qualification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Which entry state made a violation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ViolationCause {
    /// A walked entry was not present.
    NotPresent,
    /// The path forbids the access.
    Permission,
    /// The guest-physical address is wider than the walk (bits above 47 with four levels).
    Width,
}

/// How a violation is delivered.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ViolationDelivery {
    /// VM exit.
    Exit,
    /// Convertible: #VE when the guest can take it (SDM 25.5.7.1; the information area must be ready).
    Convertible,
}

/// An EPT violation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Violation {
    /// The exit qualification.
    pub qualification: Qualification,
    /// What made it.
    pub cause: ViolationCause,
    /// Exit or #VE.
    pub delivery: ViolationDelivery,
}

/// What stopped the walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EptReason {
    /// Exit 48.
    Violation(Violation),
    /// Exit 49. The architecture does not report the broken rule; it is kept for people.
    Misconfiguration(Malformed),
    /// A table lies outside memory. Processors define no fault; what answers on real boards is all ones, whose reserved
    /// bits make a misconfiguration, so that is the exit given.
    External,
}

/// The fault report of EPT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EptFault {
    /// The guest-physical-address field.
    pub gpa: Gpa,
    /// Level of the deciding entry, counted from 0 at the last.
    pub level: Level,
    /// What stopped the walk.
    pub reason: EptReason,
}

impl EptFault {
    /// The basic exit reason.
    pub const fn exit_reason(&self) -> ExitReason {
        match self.reason {
            EptReason::Violation(_) => ExitReason::EptViolation,
            EptReason::Misconfiguration(_) | EptReason::External => ExitReason::EptMisconfiguration,
        }
    }

    /// The exit qualification; `None` for exit 49, where it is undefined.
    pub const fn qualification(&self) -> Option<Qualification> {
        match self.reason {
            EptReason::Violation(violation) => Some(violation.qualification),
            EptReason::Misconfiguration(_) | EptReason::External => None,
        }
    }

    /// Completes advanced exit information with the guest's own page, which only a nested walk knows
    /// ([`mmu_core::walk::NestedCursor::first_stage`]). Does nothing to a fault whose qualification has bit 8 clear.
    ///
    /// Call it only with [`crate::AdvancedInfo::Reported`]; without that capability bits 11:9 read zero.
    #[must_use]
    pub fn with_guest_page(mut self, page: &Mapped) -> Self {
        if let EptReason::Violation(violation) = &mut self.reason {
            let field = &mut violation.qualification;
            if field.contains(Qualification::FINAL) {
                if page.perms.intersects(Perms::W) {
                    *field = field.with(Qualification::GUEST_WRITABLE);
                }
                if !page.perms.intersects(Perms::X) {
                    *field = field.with(Qualification::GUEST_NO_EXECUTE);
                }
            }
        }
        self
    }
}

impl std::error::Error for EptFault {}

impl FaultReport for EptFault {
    fn class(&self) -> FaultClass {
        match self.reason {
            EptReason::Violation(violation) => match violation.cause {
                ViolationCause::NotPresent => FaultClass::NotPresent,
                ViolationCause::Permission => FaultClass::Permission,
                ViolationCause::Width => FaultClass::AddressSize,
            },
            EptReason::Misconfiguration(_) => FaultClass::Malformed,
            EptReason::External => FaultClass::External,
        }
    }
    fn level(&self) -> Option<Level> {
        Some(self.level)
    }
}

impl fmt::Display for EptFault {
    /// Levels as the manual counts them: 1 is the last.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = self.level.index() + 1;
        match self.reason {
            EptReason::Violation(violation) => {
                let exit = match violation.delivery {
                    ViolationDelivery::Exit => "exit 48",
                    ViolationDelivery::Convertible => "convertible to #VE",
                };
                write!(f, "EPT violation ({exit}) at {}, qualification {}: ", self.gpa, violation.qualification)?;
                match violation.cause {
                    ViolationCause::NotPresent => write!(f, "no entry at level {level}"),
                    ViolationCause::Permission => write!(f, "forbidden, leaf at level {level}"),
                    ViolationCause::Width => f.write_str("the address is wider than the walk"),
                }
            }
            EptReason::Misconfiguration(why) => {
                write!(f, "EPT misconfiguration (exit 49) at {}: {why}, entry at level {level}", self.gpa)
            }
            EptReason::External => {
                write!(f, "EPT misconfiguration (exit 49) at {}: level {level} table outside memory", self.gpa)
            }
        }
    }
}
