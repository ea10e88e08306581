//! What the life cycles of roots differ in, as values.

use serde::{Deserialize, Serialize};

use crate::protocols::zap::{Passes, TableFlush, ZapLock, ZapPolicy};

/// Who keeps a root alive, and who tears it down.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LifeCycle {
    /// R1: the vCPUs that use it; the last one to put it zaps it there and then.
    LastUserZaps,
    /// R2: the vCPUs that use it; the last put makes it invalid and gives it to a worker.
    WorkerZaps,
    /// R3, R4: the TDP MMU itself, until it is invalidated; whoever invalidates it zaps it and puts that reference.
    InvalidatorZaps,
}

/// Whether the zap by the last put gives the processor away (R1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LastPut {
    /// Never: with no references left the root is invisible to the notifier, which must not run meanwhile (X16: 485 s at 32 TB).
    Unbroken,
    /// It does (X15): a notifier finishes while entries for its pages still exist.
    Yields,
}

/// Whose reference the walker of invalid roots puts after a fast zap (R2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ZapGift {
    /// A work item puts the reference that was given to it, nobody else does (v4 of the overhaul).
    Owned,
    /// The walker puts one for every invalid root it meets, those of `put_root`'s own work items included (v3; X19).
    EveryInvalidRoot,
}

/// Which roots the notifier unmaps from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnmapRoots {
    /// All: an invalid one may still be in the hands of a zapper that has yielded.
    All,
    /// Valid ones only (X14).
    ValidOnly,
}

/// What readers (holders of `mmu_lock` for read) do with invalid roots.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReaderRoots {
    /// They take no references on them (614f6970aa70).
    SkipInvalid,
    /// They do (X40).
    Any,
}

/// How a walk over roots gives its reference back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WalkerPut {
    /// As everybody does: the last one starts the teardown.
    PutRoot,
    /// By a decrement that never frees (X09: the root leaks when the vCPUs left it meanwhile).
    DecrementOnly,
}

/// How far a walk over several roots carries a flush that it owes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DebtScope {
    /// Over all roots: a yield in the second one flushes for the first one too (a835429cda91).
    Carried,
    /// Each root's debt is its own until the end (X05).
    PerRoot,
}

/// Whether a fault looks at the root it is about to install into.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ObsoleteTest {
    /// It gives up when the root is invalid (a955cad84cda).
    Tested,
    /// It installs all the same (X23: the tables leak).
    Ignored,
    /// It looks at the root's own page only (X24, fixed by 18c841e1f411): a root without one is taken for valid, though a request to reload is pending.
    OwnPage,
}

/// Whether roots have a page of their own that says whether they are valid.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootPage {
    /// They have.
    #[default]
    Own,
    /// They are tables allocated apart (`pae_root`, `pml4_root`): only a pending request tells that one is obsolete.
    None,
}

/// Whether leaves zapped below an invalid root owe a flush.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InvalidRootFlush {
    /// They do (up to 6.8; X37): nobody can use that root any more.
    #[default]
    Owed,
    /// They do not (fcdffe97f80e, 6.9): whoever leaves the root flushes.
    NotOwed,
}

/// A life cycle with everything that history changed about it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootPolicy {
    /// Who keeps a root alive.
    pub life: LifeCycle,
    /// Zap by the last put.
    pub last_put: LastPut,
    /// Whose reference is put after a fast zap.
    pub gift: ZapGift,
    /// Roots that the notifier unmaps from.
    pub unmap: UnmapRoots,
    /// Readers and invalid roots.
    pub readers: ReaderRoots,
    /// How walks put references.
    pub walker_put: WalkerPut,
    /// How far a debt is carried.
    pub debt: DebtScope,
    /// Faults and invalid roots.
    pub stale: ObsoleteTest,
    /// How `mmu_lock` is held to find, make and leave a root.
    pub root_lock: ZapLock,
    /// How invalid roots are zapped.
    pub zap: ZapPolicy,
    /// What tells whether a root is valid.
    #[serde(default)]
    pub page: RootPage,
    /// Flushes for invalid roots.
    #[serde(default)]
    pub invalid_flush: InvalidRootFlush,
}

impl RootPolicy {
    /// R1, Linux 5.12 to 5.17.
    pub const R1: RootPolicy = RootPolicy {
        life: LifeCycle::LastUserZaps,
        last_put: LastPut::Unbroken,
        gift: ZapGift::Owned,
        unmap: UnmapRoots::All,
        readers: ReaderRoots::Any,
        walker_put: WalkerPut::PutRoot,
        debt: DebtScope::Carried,
        stale: ObsoleteTest::Tested,
        root_lock: ZapLock::Write,
        zap: ZapPolicy { lock: ZapLock::Read, ..ZapPolicy::V5_17 },
        page: RootPage::Own,
        invalid_flush: InvalidRootFlush::Owed,
    };
    /// R2, Linux 5.18 to 6.4.
    pub const R2: RootPolicy = RootPolicy {
        life: LifeCycle::WorkerZaps,
        readers: ReaderRoots::SkipInvalid,
        zap: ZapPolicy { flush: TableFlush::NoneUnreachable, passes: Passes::GigThenRoot, ..Self::R1.zap },
        ..Self::R1
    };
    /// R3, Linux 6.4/6.5 to 6.8.
    pub const R3: RootPolicy = RootPolicy { life: LifeCycle::InvalidatorZaps, ..Self::R2 };
    /// R4, Linux 6.9 and later.
    pub const R4: RootPolicy =
        RootPolicy { root_lock: ZapLock::Read, zap: ZapPolicy { lock: ZapLock::Read, ..ZapPolicy::V6_9 }, ..Self::R3 };

    /// How the last put zaps, which holds the lock in this mode.
    pub(super) fn last_zap(&self, held: ZapLock) -> ZapPolicy {
        use crate::protocols::iter::Yield;
        let yielding = match self.last_put {
            LastPut::Unbroken => Yield::Never,
            LastPut::Yields => Yield::YieldedGfn,
        };
        ZapPolicy { lock: held, yielding, ..self.zap }
    }
}
