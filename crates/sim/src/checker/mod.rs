//! The checker's core: what must hold in every run, timed or exploring.
//!
//! A violation is a value with its place; it never stops the simulation by itself. Every invariant counts how often it was
//! evaluated, because a check that never ran proves nothing.

mod written;

use std::fmt;

use mmu_core::memory::{FrameError, TableFault};
use mmu_core::{Cycles, Gpa, Hpa};

use crate::arch::Arch;
use crate::engine::OffLimits;
use crate::engine::vcpu::Vcpu;

pub use written::Written;

/// Something that must never happen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Violation {
    /// T1: a vCPU access completed on a page that the primary MMU had freed, or was invalidating.
    UseAfterFree {
        /// Which vCPU.
        vcpu: usize,
        /// The address that the guest used.
        input: u64,
        /// The freed page.
        at: Hpa,
        /// When.
        moment: Cycles,
    },
    /// T1: a page was freed, or an invalidation's start returned, while a vCPU still holds a usable translation to it.
    StaleTranslation {
        /// Which vCPU.
        vcpu: usize,
        /// The freed page.
        at: Hpa,
        /// When it was freed.
        moment: Cycles,
    },
    /// B7: a guest with its caches off read a page that nobody had cleaned to the point of coherency: it saw old data.
    StaleData {
        /// Which vCPU.
        vcpu: usize,
        /// The address that the guest used.
        input: u64,
        /// The host page.
        at: Hpa,
        /// When.
        moment: Cycles,
    },
    /// T7: a look-up matched translations of different sizes and nobody dealt with the abort.
    TlbConflict {
        /// Which vCPU.
        vcpu: usize,
        /// The guest-physical address, where it is known.
        gpa: Gpa,
        /// When.
        moment: Cycles,
    },
    /// B1: a live entry was replaced without being invalid in between, although the architecture asks for it.
    MissingBreak {
        /// The entry.
        at: Hpa,
        /// Why.
        why: &'static str,
        /// Which actor.
        actor: usize,
        /// When.
        moment: Cycles,
    },
    /// A leaf's accessed and dirty state was handed to a page that the primary MMU had freed (X14, X15).
    ReleaseAfterFree {
        /// The freed page.
        at: Hpa,
        /// Which actor.
        actor: usize,
        /// When.
        moment: Cycles,
    },
    /// T5: a walk read a table that had been freed (or never was one).
    TableWalk {
        /// Which vCPU.
        vcpu: usize,
        /// The word.
        at: Hpa,
        /// What is wrong with it.
        fault: TableFault,
        /// When.
        moment: Cycles,
    },
    /// A host actor used a table word that is not there.
    TableUse {
        /// The word.
        at: Hpa,
        /// What is wrong with it.
        fault: TableFault,
        /// Which actor.
        actor: Option<usize>,
        /// When.
        moment: Cycles,
    },
    /// T1: the host reached a page through a mapping of its own that must not be used.
    HostUse {
        /// Which actor.
        actor: usize,
        /// The page.
        at: Hpa,
        /// Why not.
        why: OffLimits,
        /// When.
        moment: Cycles,
    },
    /// O2: a mapping outside the second stage (`gfn_to_pfn_cache`) is valid although its page is off limits.
    CachedPage {
        /// Which mapping.
        cache: u64,
        /// The page.
        at: Hpa,
        /// Why it is off limits.
        why: OffLimits,
        /// When.
        moment: Cycles,
    },
    /// R2: a page reference was put back that had not been taken.
    PagePut {
        /// Which actor.
        actor: usize,
        /// The page.
        at: Hpa,
        /// When.
        moment: Cycles,
    },
    /// R3: page references were left when the VM was torn down.
    PageLeak {
        /// On how many bytes.
        bytes: u64,
    },
    /// R7: a count of invalidations went below zero.
    InvalidateCount {
        /// Which actor.
        actor: usize,
        /// When.
        moment: Cycles,
    },
    /// P5: an actor that must not block gave the processor away.
    Blocked {
        /// Which actor.
        actor: usize,
        /// When.
        moment: Cycles,
    },
    /// P4: a version of the memslots was used that does not exist (any more).
    SlotsUse {
        /// Which actor.
        actor: usize,
        /// Which version.
        version: u64,
        /// When.
        moment: Cycles,
    },
    /// R2: tables were freed twice, or were none.
    TableFree {
        /// The frame.
        at: Hpa,
        /// What is wrong.
        fault: FrameError,
    },
    /// A2: a page was written while writes were logged, and never reported.
    DirtyLost {
        /// The page.
        gpa: Gpa,
        /// When everything should have been reported.
        moment: Cycles,
    },
    /// R3: tables were left when the VM was torn down.
    Leak {
        /// How many.
        tables: u64,
    },
    /// A lock was given back by somebody who did not hold it.
    UnbalancedLock {
        /// Which actor.
        actor: usize,
        /// When.
        at: Cycles,
    },
    /// An RCU section was left that had not been entered.
    UnbalancedRcu {
        /// Which actor.
        actor: usize,
        /// When.
        at: Cycles,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::UseAfterFree { vcpu, input, at, moment } => {
                write!(
                    f,
                    "T1: cycle {moment}: vCPU {vcpu} reached page {at}, taken back by the primary MMU, through address {input:#x}"
                )
            }
            Violation::StaleTranslation { vcpu, at, moment } => {
                write!(f, "T1: cycle {moment}: page {at} taken back while vCPU {vcpu} still holds a translation to it")
            }
            Violation::StaleData { vcpu, input, at, moment } => {
                write!(
                    f,
                    "B7: cycle {moment}: vCPU {vcpu} read old data at {at} through {input:#x}: the page was never cleaned"
                )
            }
            Violation::TlbConflict { vcpu, gpa, moment } => {
                write!(f, "T7: cycle {moment}: vCPU {vcpu} met translations of different sizes near {gpa}")
            }
            Violation::MissingBreak { at, why, actor, moment } => {
                write!(f, "B1: cycle {moment}: actor {actor} replaced {at} without break-before-make: {why}")
            }
            Violation::ReleaseAfterFree { at, actor, moment } => {
                write!(f, "T1: cycle {moment}: actor {actor} marked the freed page {at} accessed or dirty")
            }
            Violation::TableWalk { vcpu, at, fault, moment } => {
                write!(f, "T5: cycle {moment}: vCPU {vcpu} walked {at}: {fault}")
            }
            Violation::TableUse { at, fault, actor: Some(actor), moment } => {
                write!(f, "T5: cycle {moment}: actor {actor} used {at}: {fault}")
            }
            Violation::TableUse { at, fault, actor: None, moment } => write!(f, "T5: cycle {moment}: {at}: {fault}"),
            Violation::HostUse { actor, at, why, moment } => {
                write!(f, "T1: cycle {moment}: actor {actor} reached page {at}, which is {why}")
            }
            Violation::CachedPage { cache, at, why, moment } => {
                write!(f, "O2: cycle {moment}: cached mapping {cache} is valid, but its page {at} is {why}")
            }
            Violation::PagePut { actor, at, moment } => {
                write!(f, "R2: cycle {moment}: actor {actor} put page {at} back without holding it")
            }
            Violation::PageLeak { bytes } => write!(f, "R3: references to {bytes} bytes of pages were never put back"),
            Violation::InvalidateCount { actor, moment } => {
                write!(f, "R7: cycle {moment}: actor {actor} ended an invalidation that had not begun")
            }
            Violation::Blocked { actor, moment } => {
                write!(
                    f,
                    "P5: cycle {moment}: actor {actor} gave the processor away in an invalidation that must not block"
                )
            }
            Violation::SlotsUse { actor, version, moment } => {
                write!(f, "P4: cycle {moment}: actor {actor} used version {version} of the memslots, which is freed")
            }
            Violation::TableFree { at, fault } => write!(f, "R2: table {at} freed: {fault}"),
            Violation::DirtyLost { gpa, moment } => {
                write!(f, "A2: cycle {moment}: page {gpa} was written and no log has it")
            }
            Violation::Leak { tables } => write!(f, "R3: {tables} tables were never freed"),
            Violation::UnbalancedLock { actor, at } => {
                write!(f, "O3: cycle {at}: actor {actor} gave back a lock it does not hold")
            }
            Violation::UnbalancedRcu { actor, at } => {
                write!(f, "R1: cycle {at}: actor {actor} left an RCU section it was not in")
            }
        }
    }
}

/// Collects violations.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Checker {
    #[serde(skip)]
    violations: Vec<Violation>,
    suppressed: u64,
    evaluated: u64,
}

impl Checker {
    /// Violations kept with their details; more are only counted.
    const KEPT: usize = 64;

    pub(crate) fn report(&mut self, violation: Violation) {
        if self.violations.len() < Self::KEPT {
            self.violations.push(violation);
        } else {
            self.suppressed += 1;
        }
    }

    /// Pages were freed: no vCPU may hold a translation that it could still use to reach them.
    pub(crate) fn pages_freed<A: Arch>(&mut self, host: Hpa, bytes: u64, moment: Cycles, vcpus: &[Vcpu<A>]) {
        self.evaluated += 1;
        for vcpu in vcpus {
            if let Some(at) = vcpu.usable_translation(host, bytes) {
                self.report(Violation::StaleTranslation { vcpu: vcpu.index, at, moment });
            }
        }
    }

    /// Takes what was found.
    pub(crate) fn take(&mut self) -> Vec<Violation> {
        std::mem::take(&mut self.violations)
    }

    /// What was found, in the order it happened.
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }
    /// Violations beyond those kept.
    pub fn suppressed(&self) -> u64 {
        self.suppressed
    }
    /// How often page frees were checked against the vCPUs' TLBs.
    pub fn evaluated(&self) -> u64 {
        self.evaluated
    }
}
