//! How dirty logging is done: the kernel's choices and its bugs, as values.

use std::fmt;

use mmu_core::{Bytes, Format, PageSize};
use serde::{Deserialize, Serialize};

use crate::protocols::collapse::CollapsePolicy;
use crate::protocols::iter::Yield;
use crate::protocols::kvm::Kvm;
use crate::protocols::split::{SplitError, SplitPolicy};
use crate::protocols::zap::ZapLock;

/// How writes are noticed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tracking {
    /// Leaves lose W: the first write faults, and the fault sets the bit.
    WriteProtect,
    /// Leaves lose the dirty flag: the walk that sets it again writes the page into the processor's log (PML), whose content becomes bits at
    /// every exit. x86 with accessed and dirty flags.
    ModificationLog,
    /// Leaves lose the dirty flag, and a harvest looks at every leaf (POWER's C; Arm with `FEAT_HAFDBS`, RFC "Use DBM for dirty logging").
    Scan,
}

/// When large pages are split.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SplitWhen {
    /// By the first write to each.
    Lazily,
    /// All when logging is enabled, or with [`Initially::AllSet`] when their pages are cleared (`eager_page_split`, on by default).
    Eagerly(SplitPolicy),
}

/// Who makes pages clean again (`KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Manual {
    /// Getting the log does.
    Off,
    /// Clearing the log does, for the pages it names.
    On,
}

/// What logging begins with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Initially {
    /// Clean pages, made so by a walk over the whole slot.
    Clean,
    /// Dirty pages, all of them, and no walk (`KVM_DIRTY_LOG_INITIALLY_SET`).
    AllSet,
}

/// Where the enabling walk may give way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Breaks {
    /// Before each entry (x86).
    EachEntry(Yield),
    /// Between stretches of this size (arm64: up to 6.0 the size of a root entry, A08; since 5994bc9e05c2 the largest block).
    Chunks(Bytes),
}

/// What is done about an entry that somebody changed between its being read and replaced.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LostRace {
    /// It is read again.
    Retry,
    /// It is left as it is: perhaps still writable (A28).
    Ignore,
}

/// What is flushed after pages were made clean.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HarvestFlush {
    /// The slot, once.
    Slot,
    /// Each entry by itself, under `mmu_lock` (POWER: `kvmppc_radix_tlbie_page`).
    EachEntry,
    /// At most 1 GiB of it, as an encoding of range invalidations did that asked for 8 (A19, fixed by e3ba51ab24fd).
    ShortRange,
}

/// How dirty logging is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirtyPolicy {
    /// How writes are noticed.
    pub tracking: Tracking,
    /// When large pages are split.
    pub split: SplitWhen,
    /// Who makes pages clean again.
    pub manual: Manual,
    /// What logging begins with.
    pub initially: Initially,
    /// How the enabling walk holds `mmu_lock`.
    pub lock: ZapLock,
    /// Where it may give way.
    pub breaks: Breaks,
    /// Entries that somebody else changed.
    pub race: LostRace,
    /// What is flushed after pages were made clean.
    pub flush: HarvestFlush,
    /// What becomes of small pages when logging ends.
    pub collapse: Option<CollapsePolicy>,
}

impl DirtyPolicy {
    /// x86, Linux 6.6 without page-modification logging.
    pub const X86_WRITE_PROTECT: DirtyPolicy = DirtyPolicy {
        tracking: Tracking::WriteProtect,
        split: SplitWhen::Eagerly(SplitPolicy::X86_5_18),
        manual: Manual::Off,
        initially: Initially::Clean,
        lock: ZapLock::Read,
        breaks: Breaks::EachEntry(Yield::YieldedGfn),
        race: LostRace::Retry,
        flush: HarvestFlush::Slot,
        collapse: Some(CollapsePolicy::X86_5_14),
    };
    /// x86, Linux 6.6 with it.
    pub const X86_PML: DirtyPolicy = DirtyPolicy { tracking: Tracking::ModificationLog, ..Self::X86_WRITE_PROTECT };
    /// arm64, Linux 6.6, whose default splits lazily and whose faults coalesce.
    pub const ARM64: DirtyPolicy = DirtyPolicy {
        split: SplitWhen::Lazily,
        lock: ZapLock::Write,
        breaks: Breaks::Chunks(Bytes(PageSize::SIZE_1G.bytes())),
        collapse: None,
        ..Self::X86_WRITE_PROTECT
    };
    /// POWER radix, Linux 6.6: C is scanned and each page flushed.
    pub const POWER: DirtyPolicy =
        DirtyPolicy { tracking: Tracking::Scan, flush: HarvestFlush::EachEntry, ..Self::ARM64 };

    /// What Linux 6.6 does on this format: x86 logs modifications where it can, POWER scans, all others write-protect.
    pub fn linux_6_6<F: Format>(format: &F) -> DirtyPolicy {
        let choices = match Kvm::of::<F>() {
            Kvm::X86 => [Self::X86_PML, Self::X86_WRITE_PROTECT],
            Kvm::Power => [Self::POWER, DirtyPolicy { tracking: Tracking::WriteProtect, ..Self::POWER }],
            Kvm::Arm64 | Kvm::None => [Self::ARM64; 2],
        };
        if choices[0].check(format).is_ok() { choices[0] } else { choices[1] }
    }

    /// Whether a format can do this.
    ///
    /// # Errors
    /// A way of noticing writes that it has not.
    pub fn check<F: Format>(&self, format: &F) -> Result<(), DirtyError> {
        let tracked = format.dirty_mask() != 0 && format.hardware_dirty();
        match self.tracking {
            Tracking::WriteProtect => Ok(()),
            Tracking::ModificationLog if tracked && F::LOGS_MODIFICATIONS => Ok(()),
            Tracking::Scan if tracked => Ok(()),
            Tracking::ModificationLog | Tracking::Scan => {
                Err(DirtyError::NoDirtyFlag { format: F::NAME, tracking: self.tracking })
            }
        }
    }

    pub(super) fn yielding(&self) -> Yield {
        match self.breaks {
            Breaks::EachEntry(yielding) => yielding,
            Breaks::Chunks(_) => Yield::Never,
        }
    }
}

/// Why logging cannot be switched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DirtyError {
    /// The processor sets no dirty flag that this tracking could look at.
    NoDirtyFlag {
        /// The second stage's format.
        format: &'static str,
        /// What was asked for.
        tracking: Tracking,
    },
    /// No memory is left for the bitmap.
    NoMemory {
        /// Words asked for.
        words: u64,
    },
    /// Logging is on already.
    AlreadyOn,
    /// Logging is off, or its pages are in rings.
    Off,
    /// Large pages could not be split.
    Split(SplitError),
}

impl fmt::Display for DirtyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DirtyError::NoDirtyFlag { format, tracking } => {
                write!(f, "{format} as configured has no dirty flag for {tracking:?}; track writes by write-protection")
            }
            DirtyError::NoMemory { words } => {
                write!(f, "no memory is left for a bitmap of {words} words; give the VM a larger table pool")
            }
            DirtyError::AlreadyOn => f.write_str("dirty logging of this slot is on already; disable it first"),
            DirtyError::Off => f.write_str(
                "there is no bitmap: dirty logging of this slot is off, enable it first; or it uses rings, reset them",
            ),
            DirtyError::Split(error) => error.fmt(f),
        }
    }
}
impl std::error::Error for DirtyError {}
