//! What an architecture says about its page tables: the one trait behind every format crate.
//!
//! A format is a small `Copy` value (granule, levels, feature bits) whose constructor refuses what the architecture
//! refuses, so that an illegal configuration cannot be built. It answers three kinds of question:
//!
//! * *words*: [`Format::decode`] turns any 64-bit pattern into an [`Entry`]; `encode_*` turn what is legal into words;
//! * *software*: pure old-word to new-word transitions (clear the accessed flag, write-protect, ...), the markers that
//!   lock an entry, which flush is owed and whether break-before-make is;
//! * *hardware*: [`Format::begin`], [`Format::entry`] and [`Format::updated`] are the walk's pseudo-code, one decision per
//!   table reference; [`crate::walk`] owns the loop. They return the architecture's own fault report.
//!
//! A stage is formatted by one value; what its tables point to is called *output* here: host-physical addresses for the
//! second stage, guest-physical ones (carried in the same type) for the first.

use std::error::Error;
use std::fmt;

use crate::access::Access;
use crate::addr::{Gpa, Hpa, Level, PageSize};
use crate::geometry::Geometry;
use crate::tlb::Perms;

/// A decoded table word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry<A> {
    /// The walk ends here with a translation fault. The payload is software's.
    NotPresent(NotPresent),
    /// Points to a table one level down.
    Table(Table),
    /// Maps a page, block or huge page.
    Leaf(Leaf<A>),
    /// Present, but breaks a rule of the architecture (reserved bit, illegal combination, leaf where none may stand).
    Malformed(Malformed),
}

/// A word that maps nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotPresent {
    /// All bits clear.
    Empty,
    /// Locked by a walker that is changing it (KVM x86: FROZEN, earlier REMOVED; KVM arm64: LOCKED).
    Frozen,
    /// Owned by somebody else without being mapped (KVM arm64 owner annotation).
    Owner(u8),
    /// Any other payload.
    Other(u64),
}

/// A table pointer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Table {
    /// Where the next table starts, in the stage's output space.
    pub base: Hpa,
    /// Number of address bits that index it.
    pub index_bits: u32,
}

/// A leaf in neutral terms; `A` holds what only its architecture knows (memory type, shareability, software bits).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf<A> {
    /// First byte of the page it maps, in the stage's output space.
    pub output: Hpa,
    /// Accesses it allows, with [`Perms::DIRTY`] when a store needs no dirty update.
    pub perms: Perms,
    /// The accessed flag (EPT A, Arm AF, POWER R); true where the format has none.
    pub accessed: bool,
    /// What else the architecture keeps in the word.
    pub attrs: A,
}

/// Which rule a present word breaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Malformed {
    /// A reserved bit is set.
    Reserved {
        /// The offending bits.
        bits: u64,
    },
    /// Permissions that the architecture does not allow together.
    Permissions,
    /// A memory type with no meaning.
    MemoryType,
    /// A leaf at a level that has none.
    LeafLevel,
    /// An output address wider than the configured size, or misaligned for its level.
    Address,
    /// A next-level table size that does not fit the tree (POWER radix NLS).
    TableSize,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Malformed::Reserved { bits } => write!(f, "reserved bits {bits:#x} set"),
            Malformed::Permissions => f.write_str("illegal permission combination"),
            Malformed::MemoryType => f.write_str("illegal memory type"),
            Malformed::LeafLevel => f.write_str("leaf at a level that has none"),
            Malformed::Address => f.write_str("output address out of range or misaligned"),
            Malformed::TableSize => f.write_str("next-level table size does not fit"),
        }
    }
}

/// Why something could not be written as a table word.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EncodeError {
    /// No leaf may stand at this level; the sizes that may are listed.
    LeafLevel {
        /// The level asked for.
        level: Level,
    },
    /// The address is misaligned or too wide.
    Address {
        /// The address asked for.
        address: Hpa,
        /// The alignment it needs.
        align: PageSize,
        /// The width it must fit, in bits.
        bits: u32,
    },
    /// These permissions cannot be expressed.
    Perms {
        /// The permissions asked for.
        perms: Perms,
    },
    /// An attribute the configuration does not have.
    Attribute {
        /// Which, and what to do about it.
        what: &'static str,
    },
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EncodeError::LeafLevel { level } => write!(f, "no leaf may stand at level {level}; use a legal page size"),
            EncodeError::Address { address, align, bits } => {
                write!(f, "address {address} must be aligned to {align} and fit {bits} bits")
            }
            EncodeError::Perms { perms } => write!(f, "permissions {perms} cannot be expressed in this configuration"),
            EncodeError::Attribute { what } => f.write_str(what),
        }
    }
}
impl Error for EncodeError {}

/// What a fault means to software that does not care about the architecture's encoding.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
pub enum FaultClass {
    /// Nothing is mapped there.
    NotPresent,
    /// A mapping exists and forbids the access.
    Permission,
    /// The accessed flag is clear and hardware does not set it.
    AccessFlag,
    /// The dirty state must be set by software (POWER with R/C interrupts).
    DirtyFlag,
    /// A table word or a control register breaks the architecture's rules.
    Malformed,
    /// An address is wider than configured.
    AddressSize,
    /// A table lies outside memory.
    External,
    /// Several cached translations of different sizes match (Arm's TLB conflict abort).
    TlbConflict,
}

/// The architecture's own fault report.
pub trait FaultReport: Copy + Eq + fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// Its meaning in neutral terms.
    fn class(&self) -> FaultClass;
    /// The level of the entry that faulted, where there is one.
    fn level(&self) -> Option<Level>;
}

/// Where a walk begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Begin {
    /// Level of the first table.
    pub level: Level,
    /// The first table.
    pub table: Table,
    /// Start value of the accumulated attributes (each format gives its bits a meaning).
    pub acc: u64,
}

/// One access on its way through one stage: what every hook may look at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Walk {
    /// The input address (guest-virtual for stage 1, guest-physical for stage 2).
    pub input: u64,
    /// The access.
    pub access: Access,
}

/// What a walk does after it read one entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict<F> {
    /// Read the next table.
    Table(Table),
    /// The entry maps the input and allows the access.
    Leaf(Mapped),
    /// The walk ends with a fault.
    Fault(F),
}

/// What [`Format::settled`] says of one entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Settled {
    /// Read the next table; the pointer stays as it is.
    Table(Table),
    /// The entry maps the input and allows the access, and stays as it is.
    Leaf(Mapped),
    /// Anything else: a flag to be set, a fault, or a word that needs more than a glance.
    Unsettled,
}

/// A leaf that allowed an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapped {
    /// First byte of the page in the stage's output space.
    pub output: Hpa,
    /// Size of the page that a TLB may keep (larger than the entry's with a contiguous hint is never reported here).
    pub size: PageSize,
    /// What the whole path allows, with [`Perms::DIRTY`] as it is *after* the updates of this walk.
    pub perms: Perms,
}

/// How a walk sets accessed and dirty flags relative to the next stage's walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UpdateTime {
    /// As soon as this stage's own checks pass (x86, Arm).
    BeforeNextStage,
    /// Only when the output was translated by the next stage too (POWER radix).
    AfterNextStage,
}

/// What a first stage's flag updates ask of the stage below.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuestUpdates {
    /// The word's page must be writable, and becomes dirty (x86, Arm).
    NeedWrite,
    /// The translation made for the read serves the update too; nothing is checked or marked again (POWER radix).
    ReadSuffices,
}

/// Pages a flush must cover.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
pub enum FlushScope {
    /// The leaves that translate `bytes` bytes from `start`.
    Range {
        /// First guest-physical byte.
        start: Gpa,
        /// Length in bytes.
        bytes: u64,
        /// Level of the changed entries where all are of one level (a hint some instructions take).
        level: Option<Level>,
    },
    /// Everything of this virtual machine.
    Vm,
}

/// Whether cached table pointers must go as well: they must when a table was unlinked.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
pub enum WalkCaches {
    /// Only leaves changed.
    Keep,
    /// A table pointer changed.
    Drop,
}

/// Who must invalidate.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
pub enum Reach {
    /// The calling processor only.
    Local,
    /// Every processor that may hold the translations.
    Everyone,
}

/// A request to invalidate cached translations.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
pub struct Flush {
    /// Which translations.
    pub scope: FlushScope,
    /// Cached table pointers too?
    pub walk_caches: WalkCaches,
    /// On which processors.
    pub reach: Reach,
}

impl Flush {
    /// Everything cached for a VM, on every processor: `kvm_flush_remote_tlbs`.
    pub const EVERYTHING: Self = Self { scope: FlushScope::Vm, walk_caches: WalkCaches::Drop, reach: Reach::Everyone };
}

/// How invalidations reach other processors.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Delivery {
    /// The instruction acts on the processor that executes it.
    LocalInstruction,
    /// Interrupt every running vCPU, which then invalidates for itself (x86 kick + INVEPT).
    Interrupt,
    /// One instruction acts on all processors; a barrier waits for completion (Arm TLBI IS, POWER tlbie).
    Broadcast,
}

/// The instructions that carry out a [`Flush`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlushPlan<T> {
    /// The invalidating instruction.
    pub instruction: T,
    /// How many of them.
    pub repeats: u64,
    /// How they reach other processors.
    pub delivery: Delivery,
    /// What they really invalidate: at least what was asked for.
    pub covers: Flush,
}

/// Whether replacing one word by another needs break-before-make.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BreakRule {
    /// The new word may be written over the old one.
    NotNeeded,
    /// The entry must be invalid and flushed in between.
    Needed(&'static str),
    /// It may be written over, but a TLB conflict abort can follow and must be handled (Arm FEAT_BBM level 2), or the entry may
    /// translate either way until the flush (level 1 with nT).
    Relaxed(&'static str),
}

/// What a processor does with cached translations of different sizes for one address, which appear when the size of a mapping
/// changes without break-before-make.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Overlap {
    /// Any of them is used until the flush (x86; POWER leaves the choice undefined).
    #[default]
    Tolerated,
    /// A look-up that matches two of them ends in an abort (Arm ARM D8.17.2, TLB conflict abort).
    Conflict,
}

/// What a processor does when a cached translation forbids the access.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Denial {
    /// It walks the tables again, so that a permission given in memory is seen without a flush (Intel SDM vol. 3, 29.4.3.1: an EPT
    /// violation invalidates the translations that caused it).
    #[default]
    WalksAgain,
    /// It reports the fault from the cached translation, which stays (Arm ARM D8.16.1; Linux be097997a273: without an invalidation the
    /// fault comes back for ever).
    FaultsFromTlb,
}

/// Whether a guest that accesses memory around the data caches sees what was written through them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Uncached {
    /// It does: hardware keeps memory types coherent, or the second stage forces them (Arm FEAT_S2FWB).
    #[default]
    Coherent,
    /// Only what was cleaned to the point of coherency (Arm: a guest before it turns its MMU and caches on).
    NeedsClean,
}

/// One architecture's second (or first) stage, configured.
///
/// Levels count from 0 at the last level. All functions are pure; `raw` is any 64-bit pattern, as a value (byte order is
/// the memory image's business).
pub trait Format: Copy + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// Attributes of a leaf beyond the neutral ones. `Default` is ordinary cacheable memory.
    type Attrs: Copy + Eq + Default + fmt::Debug + Send + Sync;
    /// The fault report.
    type Fault: FaultReport;
    /// The invalidation instructions.
    type Tlbi: Copy + Eq + fmt::Debug + fmt::Display + Send + Sync;

    /// Short name of the architecture and stage, for reports: `x86-ept`.
    const NAME: &'static str;
    /// When accessed and dirty flags are set relative to the next stage.
    const UPDATE_TIME: UpdateTime;
    /// What it asks of a first stage's walk that sets flags in a table which this stage translates.
    const GUEST_UPDATES: GuestUpdates = GuestUpdates::NeedWrite;

    /// Whether processors can log the pages that a walk of this stage makes dirty (Intel SDM vol. 3, 29.3.6, page-modification logging).
    const LOGS_MODIFICATIONS: bool = false;

    // ---- shape ----

    /// The tree's shape as software builds it.
    fn geometry(&self) -> &Geometry;

    // ---- words ----

    /// What `raw` is at `level`. Total: every pattern has an answer.
    fn decode(&self, level: Level, raw: u64) -> Entry<Self::Attrs>;
    /// The word of a leaf.
    ///
    /// # Errors
    /// When the leaf cannot be expressed legally; what is returned otherwise decodes to `leaf` again.
    fn encode_leaf(&self, level: Level, leaf: &Leaf<Self::Attrs>) -> Result<u64, EncodeError>;
    /// The word of a pointer, standing at `level`, to the table of the level below.
    ///
    /// # Errors
    /// At the last level, or when `base` is misaligned or too wide.
    fn encode_table(&self, level: Level, base: Hpa) -> Result<u64, EncodeError>;
    /// The word of a non-present entry.
    ///
    /// # Errors
    /// When the payload would make the entry present or does not fit.
    fn encode_not_present(&self, entry: NotPresent) -> Result<u64, EncodeError>;

    // ---- software's pure transitions ----

    /// A word is present exactly when `raw & present_mask() != 0`.
    fn present_mask(&self) -> u64;
    /// Whether software holds `raw` for a mapping. Hardware presence, unless the format keeps mappings that hardware
    /// must not see (KVM on EPT without accessed flags: access-tracked entries) or markers that it does see (KVM's
    /// MMIO entries).
    fn is_mapped(&self, raw: u64) -> bool {
        raw & self.present_mask() != 0
    }
    /// Whether a *present* word at `level` is a leaf (cheap, no legality check).
    fn is_leaf(&self, level: Level, raw: u64) -> bool;
    /// Output address bits of a present leaf (cheap, no legality check).
    fn output(&self, level: Level, raw: u64) -> Hpa;
    /// Next table of a present table word (cheap, no legality check).
    fn next_table(&self, level: Level, raw: u64) -> Hpa;
    /// How many leaves of `level` from `output` on have words in arithmetic progression with step `page_size(level)`; formats
    /// that split the address field stop at the split.
    fn progression(&self, _level: Level, _output: Hpa) -> u64 {
        u64::MAX
    }
    /// The bit that is set in a young leaf (A, AF, R), or 0 when this configuration has none.
    fn accessed_mask(&self) -> u64;
    /// The bit that is set in a dirty leaf (D, C; Arm with DBM: S2AP write), or 0 when this configuration tracks no dirty state,
    /// or marks it by a bit that is *clear* (Arm stage 1, bit 2 of AP).
    fn dirty_mask(&self) -> u64;
    /// Whether hardware sets the accessed flag (else a clear flag faults, or there is none).
    fn hardware_accessed(&self) -> bool;
    /// Whether hardware sets the dirty state.
    fn hardware_dirty(&self) -> bool;
    /// Whether stores may go through this present leaf, perhaps after a hardware dirty update.
    fn is_writable(&self, raw: u64) -> bool;
    /// The leaf without write permission, remembering for [`Format::restore_write`] that it had it.
    fn write_protect(&self, raw: u64) -> u64;
    /// The leaf writable again and dirty, if [`Format::write_protect`] had taken it away.
    fn restore_write(&self, raw: u64) -> Option<u64>;
    /// The leaf marked old where there is no accessed flag: permissions are saved aside so that the next access faults.
    /// Formats with a flag clear it.
    fn mark_old(&self, raw: u64) -> u64;
    /// The leaf made young again after [`Format::mark_old`], or `None` when it is young already.
    fn mark_young(&self, raw: u64) -> Option<u64>;

    // ---- flushing ----

    /// The instructions for a flush.
    fn flush_plan(&self, flush: Flush) -> FlushPlan<Self::Tlbi>;
    /// Whether replacing `old` by `new` at `level` needs break-before-make.
    fn break_rule(&self, level: Level, old: u64, new: u64) -> BreakRule;
    /// The leaf with the mark that lets hardware which supports it change the size of the mapping in place (Arm: nT of FEAT_BBM level 1); `None` where
    /// there is no such mark at this level.
    fn mark_resizing(&self, _level: Level, _raw: u64) -> Option<u64> {
        None
    }
    /// Whether hardware may cache this present leaf. A leaf marked by [`Format::mark_resizing`] is translated by a walk each time, so that it
    /// never stands beside translations of another size.
    fn may_be_cached(&self, _level: Level, _raw: u64) -> bool {
        true
    }
    /// What cached translations of different sizes for one address lead to.
    fn overlap(&self) -> Overlap {
        Overlap::Tolerated
    }
    /// What a cached translation that forbids the access leads to.
    fn denial(&self) -> Denial {
        Denial::WalksAgain
    }
    /// Whether accesses around the data caches see what was written through them.
    fn uncached(&self) -> Uncached {
        Uncached::Coherent
    }

    // ---- the hardware walk ----

    /// Where the walk of `walk.input` begins in the tree at `root`, or the fault that stops it before any reference.
    fn begin(&self, root: Hpa, walk: &Walk) -> Result<Begin, Self::Fault>;
    /// Index of the entry for `input` in `table`, whose entries are of `level`. Formats in which the tree itself tells table
    /// sizes (POWER radix) say how they differ from the geometry.
    #[inline]
    fn entry_index(&self, level: Level, table: Table, input: u64) -> u64 {
        input >> self.geometry().shift(level) & ((1 << table.index_bits) - 1)
    }
    /// What the walk does after reading `raw` at `level`. `acc` carries attributes from the levels above.
    fn entry(&self, walk: &Walk, level: Level, raw: u64, acc: &mut u64) -> Verdict<Self::Fault>;
    /// The word that the walk leaves behind at `level` of its successful path (`leaf`: the path's last entry); equal to
    /// `raw` when nothing is to be updated.
    fn updated(&self, walk: &Walk, level: Level, raw: u64, place: PathPlace) -> u64;
    /// The short answer to `raw` at `level`, for the words that walks meet most: what [`Format::entry`] decides, if it is no fault
    /// and [`Format::updated`] leaves the word as it is. A format may give up on any word, and one that can tell ordinary words by
    /// a mask makes [`crate::walk::walk`] several times as fast. `acc` becomes what `entry` makes of it; with
    /// [`Settled::Unsettled`] it may too, if `entry` makes the same of that again. [`crate::conformance`] checks all of it.
    #[inline]
    fn settled(&self, walk: &Walk, level: Level, raw: u64, acc: &mut u64) -> Settled {
        let before = *acc;
        let settled = match self.entry(walk, level, raw, acc) {
            Verdict::Table(table) if self.updated(walk, level, raw, PathPlace::Table) == raw => Settled::Table(table),
            Verdict::Leaf(mapped) if self.updated(walk, level, raw, PathPlace::Leaf) == raw => Settled::Leaf(mapped),
            _ => Settled::Unsettled,
        };
        if settled == Settled::Unsettled {
            *acc = before;
        }
        settled
    }
    /// The fault for a table word that lies outside memory.
    fn bus_fault(&self, walk: &Walk, level: Level) -> Self::Fault;
}

/// Where on its path an entry stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PathPlace {
    /// A table pointer.
    Table,
    /// The leaf.
    Leaf,
}
