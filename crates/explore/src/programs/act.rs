//! What a host actor can do.

use std::fmt;

use mmu_core::{Bytes, Format, GpaRange, PageSize};
use mmu_sim::engine::{Host, LockId, LockMode};
use mmu_sim::protocols::aging::{AgingPolicy, clear_flush_young, clear_young};
use mmu_sim::protocols::dirty_log::{DirtyLog, DirtyPolicy, disable, enable, get_dirty_log};
use mmu_sim::protocols::iter::FlushDebt;
use mmu_sim::protocols::notifier::{ChangePte, Notifier};
use mmu_sim::protocols::primary::{collapse, copy_on_write, madvise_dontneed, migrate, oom_reap, reclaim};
use mmu_sim::protocols::protect::write_protect_range;
use mmu_sim::protocols::unmap::{UnmapPolicy, unmap_range};
use mmu_sim::protocols::zap::{ZapLock, ZapPolicy, zap_leafs};

use super::Step;
use crate::museum::Architecture;

/// What a host actor can do: the protocols as Linux 6.6 to 6.15 have them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Act {
    /// `MADV_DONTNEED`: pages are freed.
    Discard,
    /// The same by the OOM reaper, which must not block.
    Reap,
    /// Pages move to others.
    Migrate,
    /// khugepaged makes one huge page of all.
    Collapse,
    /// The first page is copied, and the copy takes its place.
    Copy,
    /// Pages that look unused go to swap.
    Reclaim,
    /// Accessed flags are cleared, without a lock and without a flush.
    Age,
    /// Accessed flags are cleared under the lock, with a flush if one was set.
    AgeAndFlush,
    /// Pages are write-protected; the next write makes them writable again.
    WriteProtect,
    /// All that the memslot maps is unmapped: `kvm_mmu_zap_memslot` on x86 since 6.12, `kvm_arch_flush_shadow_memslot` elsewhere.
    FlushSlot,
    /// Dirty logging is switched on, the log read, and logging switched off.
    Log,
}

impl Act {
    /// All of them.
    pub const ALL: [Act; 11] = [
        Act::Discard,
        Act::Reap,
        Act::Migrate,
        Act::Collapse,
        Act::Copy,
        Act::Reclaim,
        Act::Age,
        Act::AgeAndFlush,
        Act::WriteProtect,
        Act::FlushSlot,
        Act::Log,
    ];

    /// Its name, as in `flush-slot`.
    pub const fn name(self) -> &'static str {
        match self {
            Act::Discard => "discard",
            Act::Reap => "reap",
            Act::Migrate => "migrate",
            Act::Collapse => "collapse",
            Act::Copy => "copy",
            Act::Reclaim => "reclaim",
            Act::Age => "age",
            Act::AgeAndFlush => "age-and-flush",
            Act::WriteProtect => "write-protect",
            Act::FlushSlot => "flush-slot",
            Act::Log => "log",
        }
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What acts are done with.
pub(super) struct Bench {
    pub(super) arch: Architecture,
    pub(super) notifier: Notifier,
    /// What keeps changes of the primary MMU apart, as its own locks do (`mmap_lock`, page locks).
    pub(super) changes: LockId,
    pub(super) log: DirtyLog,
    pub(super) dirty: DirtyPolicy,
    /// The largest page that the host has.
    pub(super) largest: PageSize,
}

impl Bench {
    pub(super) async fn perform<F: Format>(&self, host: &Host<F>, step: Step) {
        let Self { arch, notifier, changes, log, dirty, largest } = self;
        let is_change =
            matches!(step.act, Act::Discard | Act::Reap | Act::Migrate | Act::Collapse | Act::Copy | Act::Reclaim);
        if is_change {
            host.lock(*changes, LockMode::Write).await;
        }
        match step.act {
            Act::Discard => {
                madvise_dontneed(host, notifier, step.pages.hvas()).await;
            }
            Act::Reap => {
                oom_reap(host, notifier, step.pages.hvas()).await;
            }
            Act::Migrate => {
                migrate(host, notifier, step.pages.hvas()).await;
            }
            Act::Collapse => {
                collapse(host, notifier, step.pages.hvas()).await;
            }
            Act::Copy => copy_on_write(host, notifier, step.pages.hvas().start, ChangePte::Ignore).await,
            Act::Reclaim => {
                reclaim(host, notifier, step.pages.hvas(), Bytes(32 * super::pages::PAGE)).await;
            }
            Act::Age => {
                clear_young(host, step.pages.gpas(), &AgingPolicy::V6_15).await;
            }
            Act::AgeAndFlush => {
                clear_flush_young(host, step.pages.gpas(), &AgingPolicy::V6_12).await;
            }
            Act::WriteProtect => write_protect_range(host, step.pages.gpas()).await,
            Act::FlushSlot => match arch {
                Architecture::X86 => zap_slot(host, log.slot).await,
                Architecture::Arm64 | Architecture::Power => unmap_range(host, log.slot, UnmapPolicy::V6_6).await,
            },
            // Whoever finds logging on leaves it to him who switched it on.
            Act::Log => {
                if enable(host, log, dirty).await.is_ok() {
                    let _ = get_dirty_log(host, log, dirty).await;
                    let _ = disable(host, log, dirty, *largest).await;
                }
            }
        }
        if is_change {
            host.unlock(*changes).await;
        }
    }
}

async fn zap_slot<F: Format>(host: &Host<F>, slot: GpaRange) {
    host.lock(LockId::MMU, LockMode::Write).await;
    let root = host.root().await;
    let policy = ZapPolicy { lock: ZapLock::Write, ..ZapPolicy::V6_9 };
    if zap_leafs(host, root, slot, &policy).await == FlushDebt::Owed {
        host.flush_vm().await;
    }
    host.unlock(LockId::MMU).await;
}
