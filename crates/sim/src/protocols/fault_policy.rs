//! How faults are handled: the choices of [`fault`](super::fault), each with the kernels that made it.

use mmu_core::{Denial, FaultClass, Format, PageSize};
use serde::{Deserialize, Serialize};

use super::coalesce::{CoalescePolicy, Freeing, Walkers};
use super::kvm::Kvm;
use super::notifier::RetryPolicy;
use super::split::LazySplit;
use crate::engine::{GuestFault, LockMode};

/// Whether the leaf is mended without the lock where that will do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FastPath {
    /// Every fault takes `mmu_lock`.
    None,
    /// `fast_page_fault`: inside an RCU section the leaf is read again, and W or A restored by one compare-and-swap.
    Lockless,
}

/// When the invalidation sequence is read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotTime {
    /// Before the host page is looked up.
    BeforeLookup,
    /// After it (G13, 13ec9308a857): an invalidation in between is missed.
    AfterLookup,
}

/// How large a page is mapped.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LevelChoice {
    /// The largest up to the policy's that the host backs by one page.
    Fixed,
    /// The same, and the smallest while dirty logging is on.
    ByBacking,
}

/// What happens to a table where a huge leaf would fit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TableInTheWay {
    /// The fault maps small pages below it.
    Keep,
    /// It is coalesced.
    Coalesce,
}

/// Whom a relaxed permission is announced to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RelaxFlush {
    /// The processor that faulted, where it needs to hear of it (a12ab1378a88, be097997a273).
    Local,
    /// The same, but only if this vCPU made the change (A17: who lost the race keeps the translation that faults).
    LocalIfChanged,
    /// All processors (up to 6.4; A21).
    Broadcast,
    /// As [`RelaxFlush::Local`], but who lost the race names a level that it does not know (A18): the invalidation finds nothing.
    LocalUnknownLevel,
}

/// Where a walk takes the host address of what it maps from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PaOffset {
    /// From the guest address (1f0f4a2ef7a5, 6.4).
    FromIpa,
    /// The callback that installs a block advances it, the walker advances the guest address (A16): if somebody has put a table in the block's place before
    /// the walker looks again, it descends and maps the page behind the block.
    AdvancedByCallback,
}

/// What happens to a leaf that allows more than this fault would map.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PresentLeaf {
    /// It keeps what it allows.
    Relaxed,
    /// It is replaced, without a flush (X41): processors that have cached it go on writing.
    Replaced,
    /// It is replaced and flushed (1a175082b190).
    ReplacedAndFlushed,
}

/// Whether pages may be executed from the start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExecMapping {
    /// They may: instruction caches are coherent (x86; Arm with `CTR_EL0.DIC`).
    Always,
    /// After the first fetch has faulted and the instruction cache was invalidated (Arm without DIC).
    OnFetch,
}

/// Where tables come from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TopUp {
    /// A cache that every fault tops up before it takes the lock.
    EveryFault,
    /// The same, but a permission fault that is no write under dirty logging leaves it as it is (arm64 up to 2026): if it has to split a block, the cache
    /// may be empty and the run of the vCPU fails.
    NotForPermission,
    /// Allocation without waiting under the lock; when it fails the lock is dropped, the cache topped up, and the fault tried again.
    UnderLock {
        /// Every how manyth fails; 0 for none.
        fails_every: u32,
    },
}

/// What happens upon a TLB conflict abort.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConflictAbort {
    /// The processor that met it invalidates the VM's translations of its own.
    LocalFlush,
    /// All processors do (A27: needless).
    BroadcastFlush,
    /// Nobody knows what to do (A27; every kernel that relies on break-before-make): the run of the vCPU fails.
    Unhandled,
}

/// Which lock a permission fault takes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PermissionLock {
    /// The one that all faults take.
    Same,
    /// The read lock, also when a block has to be split by stores that expect to be alone (f783ef1c0e82; A07).
    ReadAlways,
}

/// What a fault does with an entry that somebody has frozen or locked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FrozenEntries {
    /// It leaves it to its owner and tries again.
    #[default]
    LeftAlone,
    /// It stores over it (X13: what the warnings about old values in the non-atomic setter are for).
    Overwritten,
}

/// Where a page of a host mapping of this size is mapped.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FoldedLevels {
    /// At the level that has leaves of this size.
    #[default]
    Known,
    /// At the level that its name says, one higher where that level is folded (A05: with 64K pages and 42 bits PUD and PMD are of one size, and the
    /// walk looks for a level that it never comes to).
    ByName,
}

/// How faults are handled.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultPolicy {
    /// How `mmu_lock` is held.
    pub lock: LockMode,
    /// How a permission fault holds it.
    pub permission_lock: PermissionLock,
    /// Size of the largest pages to map.
    pub page: PageSize,
    /// How the size of a page is chosen.
    pub level: LevelChoice,
    /// Whether there is a way without the lock.
    pub fast: FastPath,
    /// How stale pages are recognized; the notifier's test must be the same.
    pub retry: RetryPolicy,
    /// When the invalidation sequence is read.
    pub snapshot: SnapshotTime,
    /// How a huge leaf makes room for a small page; [`LazySplit::EmptyTable`] by the rules of `coalesce`.
    pub split: LazySplit,
    /// What happens to a table where a huge leaf would fit.
    pub tables: TableInTheWay,
    /// How tables and blocks are turned into each other, and who cleans memory.
    pub coalesce: CoalescePolicy,
    /// Whom a relaxed permission is announced to.
    pub relax: RelaxFlush,
    /// Where host addresses come from.
    pub offset: PaOffset,
    /// What happens to a leaf that allows more.
    pub present: PresentLeaf,
    /// Whether pages may be executed from the start.
    pub exec: ExecMapping,
    /// Where tables come from.
    pub top_up: TopUp,
    /// What happens upon a TLB conflict abort.
    pub conflict: ConflictAbort,
    /// What happens to entries that somebody has frozen.
    #[serde(default)]
    pub frozen: FrozenEntries,
    /// Where huge pages are mapped.
    #[serde(default)]
    pub folded: FoldedLevels,
    /// How long memslots stay as they are.
    #[serde(default)]
    pub slots: SlotSection,
}

/// How long a fault keeps memslots from being freed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SlotSection {
    /// As long as it is handled: its caller is in a section of `kvm->srcu`.
    #[default]
    Callers,
    /// While the slot is looked up (P01): an update does not wait for what is made of it.
    LookUp,
}

impl FaultPolicy {
    /// Faults that map pages of one size under `lock` and leave tables where they are.
    pub const fn new(lock: LockMode, page: PageSize) -> FaultPolicy {
        FaultPolicy {
            lock,
            permission_lock: PermissionLock::Same,
            page,
            level: LevelChoice::Fixed,
            fast: FastPath::None,
            retry: RetryPolicy::V6_8,
            snapshot: SnapshotTime::BeforeLookup,
            split: LazySplit::EmptyTable,
            tables: TableInTheWay::Keep,
            coalesce: CoalescePolicy::V6_6,
            relax: RelaxFlush::Local,
            offset: PaOffset::FromIpa,
            present: PresentLeaf::Relaxed,
            exec: ExecMapping::Always,
            top_up: TopUp::UnderLock { fails_every: 0 },
            conflict: ConflictAbort::Unhandled,
            frozen: FrozenEntries::LeftAlone,
            folded: FoldedLevels::Known,
            slots: SlotSection::Callers,
        }
    }

    /// What Linux 6.6 does on this format, with pages up to `page` as the host backs them.
    ///
    /// | | `mmu_lock` | a leaf that denies | source |
    /// | --- | --- | --- | --- |
    /// | x86 | for read | first without the lock | `fast_page_fault`, `direct_page_fault` (`arch/x86/kvm/mmu/mmu.c`) |
    /// | arm64 | for read | under it: cached denials stay | `user_mem_abort`, `handle_access_fault` (`arch/arm64/kvm/mmu.c`) |
    /// | POWER | a spin lock | under it | `kvmppc_book3s_radix_page_fault` takes it around `kvmppc_hv_handle_set_rc`, which sets R and C; what else is missing `kvmppc_create_pte` adds, under it too, where it also frees tables in the way at once (`arch/powerpc/kvm/book3s_64_mmu_radix.c`) |
    pub fn linux_6_6<F: Format>(format: &F, page: PageSize) -> FaultPolicy {
        // Entries of POWER could be locked as well, but its KVM does not.
        let power = Kvm::of::<F>() == Kvm::Power;
        let coalesce = if power { CoalescePolicy::POWER } else { CoalescePolicy::of(format) };
        let shared = coalesce.check(format, Walkers::Shared).is_ok();
        let lock = if shared { LockMode::Read } else { LockMode::Write };
        let fast = if format.denial() == Denial::WalksAgain && shared { FastPath::Lockless } else { FastPath::None };
        FaultPolicy {
            level: LevelChoice::ByBacking,
            fast,
            split: if coalesce.freeing == Freeing::MarkedRcu { LazySplit::InPlace } else { LazySplit::EmptyTable },
            tables: TableInTheWay::Coalesce,
            coalesce,
            top_up: TopUp::EveryFault,
            ..Self::new(lock, page)
        }
    }

    /// Who else walks while a fault does.
    pub const fn walkers(&self) -> Walkers {
        match self.lock {
            LockMode::Read => Walkers::Shared,
            LockMode::Write => Walkers::Exclusive,
        }
    }

    pub(super) fn lock_for(&self, fault: &GuestFault) -> LockMode {
        match self.permission_lock {
            PermissionLock::ReadAlways if fault.class == FaultClass::Permission => LockMode::Read,
            PermissionLock::ReadAlways | PermissionLock::Same => self.lock,
        }
    }
}
