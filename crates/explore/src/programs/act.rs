//! What a host actor can do, and where that means something.

use std::fmt;

use crate::museum::Architecture;

/// What a host actor can do: the protocols as Linux 6.6 to 6.18 have them.
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
    /// Accessed flags are cleared without a flush, and without a lock but on POWER.
    Age,
    /// Accessed flags are cleared under the lock, with a flush if one was set.
    AgeAndFlush,
    /// Pages are write-protected; the next write makes them writable again.
    WriteProtect,
    /// All that the memslot maps is unmapped: `kvm_mmu_zap_memslot` on x86 since 6.12, `kvm_arch_flush_shadow_memslot` elsewhere.
    FlushSlot,
    /// Dirty logging is switched on, the log read, and logging switched off.
    Log,
    /// The memslot is deleted and added again. On x86 all roots are replaced for it.
    DeleteSlot,
    /// The memslot gets other guest addresses, and its own ones back.
    MoveSlot,
    /// A cache of the first page's place is refreshed and used: `gfn_to_pfn_cache`.
    Cache,
    /// A vCPU runs a nested guest on the pages; the last one that does so takes the nested guest's tables down.
    Nest,
    /// A vCPU reads the pages. Where a table stands in the way of what the host has as one page, its fault coalesces.
    Coalesce,
    /// Huge pages are split before anybody writes.
    Split,
    /// Tables become huge pages in place, unless the log is on.
    Recover,
    /// All roots become invalid and are torn down: `kvm_mmu_zap_all_fast`.
    ZapRoots,
    /// A vCPU reads a page, leaves its root, looks one up and writes the page.
    SwitchRoot,
    /// A vCPU fetches from a page, which is split for it, and what was split is recovered: NX huge pages.
    RecoverNx,
    /// Pages are faulted in before the guest comes: `KVM_PRE_FAULT_MEMORY`.
    Prefault,
    /// The VM gets a hashed table and a radix tree again, unless a vCPU is in `KVM_RUN`: `KVM_PPC_CONFIGURE_V3_MMU`.
    SwitchTables,
}

/// Whose an act is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Actor {
    /// Any task's.
    Task,
    /// The thread's of a vCPU.
    Thread,
}

/// A row of the table of acts.
struct Row {
    name: &'static str,
    actor: Actor,
    on: &'static [Architecture],
}

const fn row(name: &'static str, actor: Actor, on: &'static [Architecture]) -> Row {
    Row { name, actor, on }
}

const ANY: &[Architecture] = &Architecture::ALL;
const X86: &[Architecture] = &[Architecture::X86];
const POWER: &[Architecture] = &[Architecture::Power];
const EAGER: &[Architecture] = &[Architecture::X86, Architecture::Arm64];

impl Act {
    /// All of them. [`Act::all_on`] has those that mean something on an architecture.
    pub const ALL: [Act; 23] = [
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
        Act::DeleteSlot,
        Act::MoveSlot,
        Act::Cache,
        Act::Nest,
        Act::Coalesce,
        Act::Split,
        Act::Recover,
        Act::ZapRoots,
        Act::SwitchRoot,
        Act::RecoverNx,
        Act::Prefault,
        Act::SwitchTables,
    ];

    const fn row(self) -> Row {
        use Actor::{Task, Thread};
        match self {
            Act::Discard => row("discard", Task, ANY),
            Act::Reap => row("reap", Task, ANY),
            Act::Migrate => row("migrate", Task, ANY),
            Act::Collapse => row("collapse", Task, ANY),
            Act::Copy => row("copy", Task, ANY),
            Act::Reclaim => row("reclaim", Task, ANY),
            Act::Age => row("age", Task, ANY),
            Act::AgeAndFlush => row("age-and-flush", Task, ANY),
            Act::WriteProtect => row("write-protect", Task, ANY),
            Act::FlushSlot => row("flush-slot", Task, ANY),
            Act::Log => row("log", Task, ANY),
            Act::DeleteSlot => row("delete-slot", Task, ANY),
            Act::MoveSlot => row("move-slot", Task, ANY),
            Act::Cache => row("cache", Task, ANY),
            Act::Nest => row("nest", Thread, ANY),
            Act::Coalesce => row("coalesce", Thread, ANY),
            // POWER's KVM splits nothing eagerly.
            Act::Split => row("split", Task, EAGER),
            // Where replacing a table needs a break, faults coalesce instead.
            Act::Recover => row("recover", Task, X86),
            // Elsewhere a VM has one root for its whole life.
            Act::ZapRoots => row("zap-roots", Task, X86),
            Act::SwitchRoot => row("switch-root", Thread, X86),
            // The erratum is one of x86.
            Act::RecoverNx => row("recover-nx", Thread, X86),
            // `KVM_CAP_PRE_FAULT_MEMORY` is x86's.
            Act::Prefault => row("prefault", Thread, X86),
            // Nobody else has hashed tables.
            Act::SwitchTables => row("switch-tables", Task, POWER),
        }
    }

    /// Its name, as in `flush-slot`.
    pub const fn name(self) -> &'static str {
        self.row().name
    }

    /// The act of a name.
    pub fn of_name(name: &str) -> Option<Act> {
        Act::ALL.into_iter().find(|act| act.name() == name)
    }

    /// Architectures on which it means something.
    pub const fn architectures(self) -> &'static [Architecture] {
        self.row().on
    }

    /// Acts that mean something on an architecture, in the order of [`Act::ALL`].
    pub fn all_on(arch: Architecture) -> Vec<Act> {
        Act::ALL.into_iter().filter(|act| act.architectures().contains(&arch)).collect()
    }

    /// Whether a vCPU of its own is needed for it.
    pub(super) const fn actor(self) -> Actor {
        self.row().actor
    }

    /// Whether it changes what the primary MMU has.
    pub(super) const fn is_change(self) -> bool {
        matches!(self, Act::Discard | Act::Reap | Act::Migrate | Act::Collapse | Act::Copy | Act::Reclaim)
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
