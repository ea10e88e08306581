//! The interrupts a translation ends with.

use std::fmt;

use mmu_core::{AccessKind, FaultClass, Gpa, Gva};

use super::{EffectiveAccess, MsrMode};
use crate::radix::{Cause, RadixFault, Why};

/// Which interrupt.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum InterruptKind {
    /// DSI: DSISR and DAR.
    DataStorage,
    /// ISI: SRR0 and SRR1.
    InstructionStorage,
    /// DSegI: DAR.
    DataSegment,
    /// ISegI: SRR0.
    InstructionSegment,
    /// HDSI: HDSISR, HDAR and ASDR.
    HypervisorDataStorage,
    /// HISI: HSRR0, HSRR1 and ASDR.
    HypervisorInstructionStorage,
    /// Machine check: a table lies where no memory answers.
    MachineCheck,
}

impl fmt::Display for InterruptKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            InterruptKind::DataStorage => "DSI",
            InterruptKind::InstructionStorage => "ISI",
            InterruptKind::DataSegment => "DSegI",
            InterruptKind::InstructionSegment => "ISegI",
            InterruptKind::HypervisorDataStorage => "HDSI",
            InterruptKind::HypervisorInstructionStorage => "HISI",
            InterruptKind::MachineCheck => "machine check",
        })
    }
}

/// Who gets it (LPCR as KVM sets it: storage interrupts of a guest stay in the guest, hypervisor ones do not).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Target {
    /// The interrupted guest.
    Guest,
    /// The hypervisor.
    Hypervisor,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Target::Guest => "guest",
            Target::Hypervisor => "hypervisor",
        })
    }
}

/// An interrupt with what its registers hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interrupt {
    /// Which.
    pub kind: InterruptKind,
    /// Who gets it.
    pub to: Target,
    /// DSISR or HDSISR; of SRR1 or HSRR1 the bits of [`Cause::IN_SRR1`]. Empty for segment interrupts.
    pub cause: Cause,
    /// DAR, HDAR, SRR0 or HSRR0: the effective address.
    pub address: Gva,
    /// ASDR, for HDSI and HISI: the guest real address that could not be translated (bits 12 and up count), or the effective
    /// address where no partition is known.
    pub asdr: Option<Gpa>,
    /// Its meaning in neutral terms.
    pub class: FaultClass,
}

const fn storage_target(access: &EffectiveAccess) -> Target {
    match access.mode {
        MsrMode::Guest => Target::Guest,
        MsrMode::Hypervisor => Target::Hypervisor,
    }
}

const fn is_fetch(access: &EffectiveAccess) -> bool {
    matches!(access.access.kind, AccessKind::Execute)
}

impl Interrupt {
    /// The store bit of the *program's* access: a fault on a table of the walk reports it as well (ISA 3.1 Book III 7.5.16).
    fn with_store(cause: Cause, access: &EffectiveAccess) -> Cause {
        if access.access.kind.writes() { cause | Cause::STORE } else { cause }
    }

    pub(super) fn segment(access: &EffectiveAccess) -> Self {
        let kind = if is_fetch(access) { InterruptKind::InstructionSegment } else { InterruptKind::DataSegment };
        Self {
            kind,
            to: storage_target(access),
            cause: Cause::default(),
            address: access.address,
            asdr: None,
            class: FaultClass::AddressSize,
        }
    }

    /// A storage interrupt for the software that owns the process-scoped tree.
    pub(super) fn storage(access: &EffectiveAccess, cause: Cause, class: FaultClass) -> Self {
        let kind = if is_fetch(access) { InterruptKind::InstructionStorage } else { InterruptKind::DataStorage };
        let cause = Self::with_store(cause, access);
        Self { kind, to: storage_target(access), cause, address: access.address, asdr: None, class }
    }

    /// A storage interrupt for the hypervisor about the guest real address `real`.
    pub(super) fn hypervisor(access: &EffectiveAccess, cause: Cause, class: FaultClass, real: Gpa) -> Self {
        let kind = if is_fetch(access) {
            InterruptKind::HypervisorInstructionStorage
        } else {
            InterruptKind::HypervisorDataStorage
        };
        let cause = Self::with_store(cause, access);
        Self { kind, to: Target::Hypervisor, cause, address: access.address, asdr: Some(real), class }
    }

    pub(super) fn machine_check(access: &EffectiveAccess) -> Self {
        Self {
            kind: InterruptKind::MachineCheck,
            to: Target::Hypervisor,
            cause: Cause::default(),
            address: access.address,
            asdr: None,
            class: FaultClass::External,
        }
    }

    /// The interrupt of a process-scoped fault.
    pub(super) fn of_process(access: &EffectiveAccess, fault: &RadixFault) -> Self {
        use mmu_core::FaultReport;
        match fault.why {
            Why::Segment => Self::segment(access),
            Why::Bus => Self::machine_check(access),
            _ => Self::storage(access, fault.cause(), fault.class()),
        }
    }

    /// The interrupt of a partition-scoped fault at `real` in the partition `lpid`.
    pub(super) fn of_partition(access: &EffectiveAccess, fault: &RadixFault, real: Gpa, lpid: u32) -> Self {
        use mmu_core::FaultReport;
        match fault.why {
            Why::Bus => Self::machine_check(access),
            // Setting R and C in the tree of LPID 0 is the business of the operating system that runs there: an
            // ordinary storage interrupt (ISA 3.1 Book III 7.5.3 and 7.5.5).
            Why::Reference | Why::Change if lpid == 0 => Self::storage(access, fault.cause(), fault.class()),
            _ => Self::hypervisor(access, fault.cause(), fault.class(), real),
        }
    }
}

impl fmt::Display for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to the {} at {}, cause {}", self.kind, self.to, self.address, self.cause)?;
        match self.asdr {
            Some(asdr) => write!(f, ", ASDR {asdr}"),
            None => Ok(()),
        }
    }
}
