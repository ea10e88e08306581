//! Fault reports of one tree and the cause bits of DSISR, HDSISR, SRR1 and HSRR1.

use std::fmt;
use std::ops::BitOr;

use mmu_core::{Access, AccessKind, FaultClass, FaultReport, Level, Purpose};

use super::config::Scope;

/// Cause bits, at the same places in DSISR, HDSISR, SRR1 and HSRR1 (ISA 3.1 Book III 7.5.3, 7.5.5, 7.5.16, 7.5.17).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Cause(u32);

impl Cause {
    /// No valid translation.
    pub const NO_ENTRY: Cause = Cause(0x4000_0000);
    /// No-execute or guarded (fetches).
    pub const NO_EXECUTE: Cause = Cause(0x1000_0000);
    /// Not permitted.
    pub const PROTECTION: Cause = Cause(0x0800_0000);
    /// The access is a store.
    pub const STORE: Cause = Cause(0x0200_0000);
    /// Unsupported radix tree configuration.
    pub const BAD_CONFIG: Cause = Cause(0x0008_0000);
    /// R or C must be set by software.
    pub const RC_UPDATE: Cause = Cause(0x0004_0000);
    /// Met while translating the address of a process table or of a process-scoped directory or page table.
    pub const TABLE: Cause = Cause(0x0002_0000);
    /// Bits of SRR1 and HSRR1 that belong to the translation; the others are the MSR's.
    pub const IN_SRR1: Cause = Cause(0x5c0e_0000);

    /// The set with this bit pattern.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }
    /// The bit pattern.
    pub const fn bits(self) -> u32 {
        self.0
    }
    /// Whether every bit of `other` is there.
    pub const fn contains(self, other: Cause) -> bool {
        self.0 & other.0 == other.0
    }
    /// The union.
    pub const fn with(self, other: Cause) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOr for Cause {
    type Output = Cause;
    fn bitor(self, other: Cause) -> Cause {
        self.with(other)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [(Cause, &str); 7] = [
            (Cause::NO_ENTRY, "no translation"),
            (Cause::NO_EXECUTE, "no-execute or guarded"),
            (Cause::PROTECTION, "protection"),
            (Cause::STORE, "store"),
            (Cause::BAD_CONFIG, "bad radix configuration"),
            (Cause::RC_UPDATE, "R/C update"),
            (Cause::TABLE, "on a process-scoped table"),
        ];
        write!(f, "{:#010x}", self.0)?;
        for (bit, name) in NAMES {
            if self.contains(bit) {
                write!(f, ", {name}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cause({self})")
    }
}

/// What stopped the walk of one tree.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Why {
    /// An invalid entry, or an input address that the tree does not cover.
    NoEntry,
    /// The EAA or a key forbids the access.
    Protection,
    /// A fetch without execute permission or from guarded storage.
    NoExecute,
    /// A size field that the processor does not support, or a directory entry at the last level.
    BadConfig,
    /// R is clear and software sets it.
    Reference,
    /// R is set, C is clear, the access stores, and software sets C.
    Change,
    /// Effective address bits 2:11 are set: a segment interrupt, not a storage interrupt.
    Segment,
    /// No memory answers where the table should be (a machine check).
    Bus,
}

/// A fault of one tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RadixFault {
    /// The tree's scope.
    pub scope: Scope,
    /// What is wrong.
    pub why: Why,
    /// The access being translated.
    pub access: Access,
    /// Level of the entry, where there is one.
    pub level: Option<Level>,
}

impl RadixFault {
    /// The cause bits that the storage interrupt of this fault reports.
    ///
    /// A fault on a process-scoped table has [`Cause::TABLE`], except R/C updates: the interrupt handler finds their page through ASDR
    /// either way, and QEMU reports the plain cause.
    pub fn cause(&self) -> Cause {
        let mut cause = match self.why {
            Why::NoEntry => Cause::NO_ENTRY,
            Why::Protection => Cause::PROTECTION,
            Why::NoExecute => Cause::NO_EXECUTE,
            Why::BadConfig => Cause::BAD_CONFIG,
            Why::Reference | Why::Change => Cause::RC_UPDATE,
            Why::Segment | Why::Bus => Cause::default(),
        };
        let update = matches!(self.why, Why::Reference | Why::Change);
        if self.access.purpose == Purpose::GuestTable && !update {
            cause = cause | Cause::TABLE;
        }
        if self.access.kind.writes() && !matches!(self.why, Why::Segment | Why::Bus) {
            cause = cause | Cause::STORE;
        }
        cause
    }
    /// Whether it is reported as an instruction storage (or segment) interrupt.
    pub fn on_fetch(&self) -> bool {
        self.access.kind == AccessKind::Execute
    }
}

impl FaultReport for RadixFault {
    fn class(&self) -> FaultClass {
        match self.why {
            Why::NoEntry => FaultClass::NotPresent,
            Why::Protection | Why::NoExecute => FaultClass::Permission,
            Why::BadConfig => FaultClass::Malformed,
            Why::Reference => FaultClass::AccessFlag,
            Why::Change => FaultClass::DirtyFlag,
            Why::Segment => FaultClass::AddressSize,
            Why::Bus => FaultClass::External,
        }
    }
    fn level(&self) -> Option<Level> {
        self.level
    }
}

impl fmt::Display for RadixFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scope = match self.scope {
            Scope::Partition => "partition-scoped",
            Scope::Process(_) => "process-scoped",
        };
        let register = if self.on_fetch() { "SRR1" } else { "DSISR" };
        match self.why {
            Why::Segment => write!(f, "{scope} {}: effective address bits 2:11 set", self.access),
            Why::Bus => write!(f, "{scope} {}: no memory at the table", self.access),
            _ => write!(f, "{scope} {}: {register} {}", self.access, self.cause()),
        }?;
        match self.level {
            // The manuals count from the root.
            Some(level) => write!(f, " (level {} from the root)", 4 - level.index().min(3)),
            None => Ok(()),
        }
    }
}
