//! Faults of either stage, and how they show in `ESR_EL2`, `HPFAR_EL2` and `PAR_EL1`.
//!
//! Before you work on this file read Arm ARM D24.2.39 (`ESR_EL2`, ISS encoding of instruction and data aborts).

use std::fmt;

use mmu_core::access::{Access, AccessKind, Purpose};
use mmu_core::format::{FaultClass, FaultReport, Walk};
use mmu_core::walk::Stage;
use mmu_core::{Gpa, Level};

use crate::granule::ArmLevel;

/// What went wrong.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FaultKind {
    /// An address wider than the configured output size.
    AddressSize,
    /// An invalid descriptor, an input out of range, or an illegal start level.
    Translation,
    /// AF is clear and hardware does not set it.
    AccessFlag,
    /// The mapping forbids the access.
    Permission,
    /// A table lies outside memory.
    ExternalOnWalk,
    /// Two TLB entries match (raised by a TLB, never by a walk).
    TlbConflict,
}

impl FaultKind {
    /// The six-bit fault status code with its level (Arm ARM, `ESR_ELx` ISS, `DFSC`).
    pub const fn status(self, level: ArmLevel) -> u8 {
        let (base, minus_one) = match self {
            FaultKind::AddressSize => (0b000000, 0b101001),
            FaultKind::Translation => (0b000100, 0b101011),
            FaultKind::AccessFlag => (0b001000, 0b001000),
            FaultKind::Permission => (0b001100, 0b001100),
            FaultKind::ExternalOnWalk => (0b010100, 0b010011),
            FaultKind::TlbConflict => return 0b110000,
        };
        if level.number() < 0 { minus_one } else { base | level.number() as u8 }
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FaultKind::AddressSize => "address size fault",
            FaultKind::Translation => "translation fault",
            FaultKind::AccessFlag => "access flag fault",
            FaultKind::Permission => "permission fault",
            FaultKind::ExternalOnWalk => "external abort on table walk",
            FaultKind::TlbConflict => "TLB conflict abort",
        })
    }
}

/// A fault of a walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ArmFault {
    /// The stage whose tables are to blame.
    pub stage: Stage,
    /// What went wrong.
    pub kind: FaultKind,
    /// At which level.
    pub level: ArmLevel,
    /// The input address of that stage: virtual for stage 1, intermediate physical for stage 2.
    pub input: u64,
    /// The access that stage was asked for.
    pub access: Access,
}

impl ArmFault {
    pub(crate) fn new(stage: Stage, kind: FaultKind, level: Level, walk: &Walk) -> Self {
        Self { stage, kind, level: ArmLevel::of(level), input: walk.input, access: walk.access }
    }
    /// A fault before the first table: reported at level 0.
    pub(crate) fn before_walk(stage: Stage, kind: FaultKind, walk: &Walk) -> Self {
        Self::new(stage, kind, Level::new(3), walk)
    }

    /// Fault status code.
    pub const fn status(&self) -> u8 {
        self.kind.status(self.level)
    }
    /// `ESR.S1PTW`: a stage-2 fault on a stage-1 walk.
    pub fn on_stage1_walk(&self) -> bool {
        self.stage == Stage::Two && self.access.purpose == Purpose::GuestTable
    }
    /// `ESR.WnR`. An atomic that may not read reports a read.
    pub const fn write_not_read(&self) -> bool {
        self.access.kind.writes()
    }
    /// `ESR_EL2` of the abort taken from EL1 or EL0 for an access of kind `cause`, without the fields that describe the
    /// instruction (ISV, SAS, SSE, SRT, SF, AR).
    pub fn esr(&self, cause: AccessKind) -> u64 {
        const INSTRUCTION_ABORT: u64 = 0x20 << 26;
        const DATA_ABORT: u64 = 0x24 << 26;
        const INSTRUCTION_LENGTH_32: u64 = 1 << 25;
        let class = if cause == AccessKind::Execute { INSTRUCTION_ABORT } else { DATA_ABORT };
        class | INSTRUCTION_LENGTH_32 | self.iss()
    }
    /// The part of the syndrome that belongs to the translation: WnR, S1PTW and the status code.
    pub fn iss(&self) -> u64 {
        u64::from(self.write_not_read()) << 6 | u64::from(self.on_stage1_walk()) << 7 | u64::from(self.status())
    }
    /// `HPFAR_EL2`, which holds bits 51:12 of the faulting IPA; `None` where the architecture leaves it unknown (a
    /// permission fault that is not on a stage-1 walk, an external abort, a stage-1 fault).
    pub fn hpfar(&self) -> Option<u64> {
        let known = match self.kind {
            FaultKind::AddressSize | FaultKind::Translation | FaultKind::AccessFlag => true,
            FaultKind::Permission => self.on_stage1_walk(),
            FaultKind::ExternalOnWalk | FaultKind::TlbConflict => false,
        };
        (known && self.stage == Stage::Two).then_some(self.input >> 12 << 4 & 0xfff_ffff_fff0)
    }
    /// The faulting IPA of a stage-2 fault.
    pub fn ipa(&self) -> Option<Gpa> {
        (self.stage == Stage::Two).then_some(Gpa::new(self.input))
    }
    /// `PAR_EL1` after an `AT` instruction that ended this way (Arm ARM D24.2.140, F=1).
    pub fn par(&self) -> u64 {
        const RES1: u64 = 1 << 11;
        let stage2 = u64::from(self.stage == Stage::Two) << 9;
        RES1 | stage2 | u64::from(self.on_stage1_walk()) << 8 | u64::from(self.status()) << 1 | 1
    }
}

impl FaultReport for ArmFault {
    fn class(&self) -> FaultClass {
        match self.kind {
            FaultKind::AddressSize => FaultClass::AddressSize,
            FaultKind::Translation => FaultClass::NotPresent,
            FaultKind::AccessFlag => FaultClass::AccessFlag,
            FaultKind::Permission => FaultClass::Permission,
            FaultKind::ExternalOnWalk => FaultClass::External,
            FaultKind::TlbConflict => FaultClass::TlbConflict,
        }
    }
    fn level(&self) -> Option<Level> {
        (self.kind != FaultKind::TlbConflict).then_some(self.level.level())
    }
}

impl fmt::Display for ArmFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = match self.stage {
            Stage::One => 1,
            Stage::Two => 2,
        };
        write!(f, "stage {stage} {}, level {} (FSC {:#04x})", self.kind, self.level, self.status())?;
        write!(f, " at {:#x}, {}", self.input, self.access)
    }
}
