//! Walks that zap, write-protect, yield and flush.

use mmu_core::{Bytes, PageSize};
use mmu_sim::arch::Arch;
use mmu_sim::engine::{LockId, LockMode};
use mmu_sim::experiment::Populate;
use mmu_sim::explore::{
    Explorable, Invariant, LeafState, Limits, Mutation, Scenario, SmallVm, Statistics, read, write,
};
use mmu_sim::protocols::iter::{FlushDebt, FlushOnYield, Yield};
use mmu_sim::protocols::memslot::zap_all_fast;
use mmu_sim::protocols::protect::write_protect_range;
use mmu_sim::protocols::walkers::write_protect;
use mmu_sim::protocols::zap::{
    AtomicZap, DetachedEntries, Passes, TableFlush, ZapLock, ZapPolicy, zap_leafs, zap_root,
};

use super::super::{Exhibit, Variant};
use super::{PAGE, TABLE, at_most, gpas, plain, thread};

pub(super) const EXHIBITS: &[Exhibit] = &[
    Exhibit {
        id: "X01",
        title: "a yield starts over at the entry just processed: two walkers undo each other's progress",
        breaks: &[Invariant::P1],
        arch: "x86",
        build: any!(x01),
    },
    Exhibit {
        id: "X02",
        title: "a walk asks for rescheduling only after it has changed an entry",
        breaks: &[Invariant::P3],
        arch: "x86",
        build: any!(x02),
    },
    Exhibit {
        id: "X03",
        title: "every yield flushes, with nothing pending",
        breaks: &[Invariant::N3],
        arch: "x86",
        build: any!(x03),
    },
    Exhibit {
        id: "X04",
        title: "after a restart the walk also advances, past an entry that nobody has looked at",
        breaks: &[Invariant::R3],
        arch: "x86",
        build: any!(x04),
    },
    Exhibit {
        id: "X17",
        title: "a root is zapped in one pass over its top entries, inside one RCU section",
        breaks: &[Invariant::P3],
        arch: "x86",
        // Where a gibibyte is an entry of the start table, one pass is as good as two.
        build: any!(x17 on X86, Power),
    },
    Exhibit {
        id: "X18",
        title: "a remote flush for every table page freed, below a root that nobody can reach",
        breaks: &[Invariant::N3],
        arch: "x86",
        build: any!(x18),
    },
    Exhibit {
        id: "X20",
        title: "a yield leaves its RCU section before the flush that it owes",
        breaks: &[Invariant::R1],
        arch: "x86",
        build: any!(x20),
    },
    Exhibit {
        id: "X26",
        title: "entries are changed by plain stores under the write lock, and lose what hardware sets",
        breaks: &[Invariant::D1],
        arch: "x86",
        // Elsewhere walks set no flags here.
        build: any!(x26 on X86),
    },
    Exhibit {
        id: "X32",
        title: "a root is zapped by gibibytes, inside which nobody can yield",
        breaks: &[Invariant::P3],
        arch: "x86",
        // As X17.
        build: any!(x32 on X86, Power),
    },
    Exhibit {
        id: "X12",
        title: "entries of an unlinked table are cleared: a walker inside installs a leaf that nobody takes away",
        breaks: &[Invariant::R3, Invariant::R4],
        arch: "x86",
        build: any!(x12),
    },
    Exhibit {
        id: "X27",
        title: "every leaf that may become writable is zapped by an atomic exchange, changed by others or not",
        breaks: &[Invariant::N3],
        arch: "x86",
        build: any!(x27),
    },
];

/// Mutations that none of these scenarios notices, and why.
pub(super) const UNNOTICED: &[(Mutation, &str)] = &[(Mutation::OmitFence, super::FENCES)];

/// A guest with a page in each of two tables.
fn two_tables<A: Arch>(arch: A, name: &str) -> Scenario<A> {
    let vm = SmallVm { memory: Bytes(2 * TABLE), page: PageSize::SIZE_4K, populate: Populate::Mapped };
    Scenario::new(name, arch, vm).pages([0, TABLE])
}

fn x01<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let yielding = variant.choose(Yield::NoProgressRule, Yield::YieldedGfn);
    let walker = move |host| -> mmu_sim::engine::ActorFuture {
        Box::pin(async move {
            write_protect(&host, gpas(0, 2), yielding, u32::MAX).await;
        })
    };
    let scenario = Scenario::new("X01", arch, SmallVm::mapped(2)).actor("first", walker).actor("second", walker);
    Box::new(scenario.limits(Limits { ticks: 0, livelock: Some(Invariant::P1), ..Limits::default() }))
}

/// A walk that zaps leaves of two tables with next to nothing in them.
fn sparse_zap<A: Arch>(arch: A, name: &str, policy: ZapPolicy) -> Scenario<A> {
    two_tables(arch, name).actor("zap", move |host| {
        Box::pin(async move {
            let root = host.root().await;
            host.lock(LockId::MMU, LockMode::Write).await;
            let range = gpas(1, 2 * TABLE / 4096 - 1);
            if zap_leafs(&host, root, range, &policy).await == FlushDebt::Owed {
                host.flush_vm().await;
            }
            host.unlock(LockId::MMU).await;
        })
    })
}

fn x02<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let yielding = variant.choose(Yield::AfterWorkOnly, Yield::YieldedGfn);
    let scenario = sparse_zap(arch, "X02", ZapPolicy { yielding, ..ZapPolicy::V5_17 });
    Box::new(scenario.limits(Limits { stretch: Some(64), ..Limits::default() }))
}

fn x03<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let flush_on_yield = variant.choose(FlushOnYield::Always, FlushOnYield::IfPending);
    let policy = ZapPolicy { flush_on_yield, ..ZapPolicy::V5_17 };
    Box::new(sparse_zap(arch, "X03", policy).setup(|build| {
        build.finally(Invariant::N3, |ended| {
            at_most(ended.zapped_leaves, ended.remote_flushes, "flushes, more than leaves were zapped")
        });
    }))
}

/// A fast zap of all: a new root, the old one torn down behind it.
fn fast_zap<A: Arch>(arch: A, name: &str, policy: ZapPolicy) -> Scenario<A> {
    two_tables(arch, name).actor("zap", move |host| {
        Box::pin(async move {
            zap_all_fast(&host, &policy).await;
        })
    })
}

fn x04<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let yielding = variant.choose(Yield::RestartAdvances, Yield::YieldedGfn);
    let policy = ZapPolicy { yielding, passes: Passes::One, ..ZapPolicy::V5_18 };
    Box::new(fast_zap(arch, "X04", policy).vcpu([read(0)], thread(plain())))
}

fn x17<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let passes = variant.choose(Passes::One, Passes::GigThenRoot);
    let gib = 1 << 30;
    let vm = SmallVm { memory: Bytes(2 * gib), page: PageSize::SIZE_4K, populate: Populate::Mapped };
    let scenario = Scenario::new("X17", arch, vm).pages([0, gib]).actor("zap", move |host| {
        Box::pin(async move {
            zap_all_fast(&host, &ZapPolicy { passes, ..ZapPolicy::V5_18 }).await;
        })
    });
    // What one gibibyte has here is two tables of entries.
    Box::new(scenario.limits(Limits { stretch: Some(1100), ..Limits::default() }))
}

fn x18<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let flush = variant.choose(TableFlush::PerTablePage, TableFlush::NoneUnreachable);
    Box::new(fast_zap(arch, "X18", ZapPolicy { flush, ..ZapPolicy::V5_18 }).setup(|build| {
        build
            .finally(Invariant::N3, |ended| at_most(0, ended.remote_flushes, "flushes of a root that no vCPU can use"));
    }))
}

fn x20<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let policy = ZapPolicy {
        flush: TableFlush::DeferredRcu,
        flush_on_yield: variant.choose(FlushOnYield::IfPendingAfterRcu, FlushOnYield::IfPending),
        passes: Passes::FourLevels,
        lock: ZapLock::Write,
        ..ZapPolicy::V5_18
    };
    let scenario = two_tables(arch, "X20").vcpu([read(0)], thread(plain())).actor("zap", move |host| {
        Box::pin(async move {
            let root = host.root().await;
            host.lock(LockId::MMU, LockMode::Write).await;
            zap_root(&host, root, &policy).await;
            host.unlock(LockId::MMU).await;
        })
    });
    Box::new(scenario.limits(Limits { ticks: 2, ..Limits::default() }))
}

fn x26<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let scenario = Scenario::new("X26", arch, SmallVm::mapped(1)).state(LeafState::Untouched);
    Box::new(scenario.vcpu([write(0)], thread(plain())).actor("write-protect", move |host| {
        Box::pin(async move {
            match variant {
                Variant::Broken => drop(write_protect(&host, gpas(0, 1), Yield::YieldedGfn, u32::MAX).await),
                Variant::Fixed => write_protect_range(&host, gpas(0, 1)).await,
            }
        })
    }))
}

fn x32<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let passes = variant.choose(Passes::GigThenRoot, Passes::FourLevels);
    let scenario = fast_zap(arch, "X32", ZapPolicy { passes, ..ZapPolicy::V6_9 });
    // One table of entries may be torn down at a stretch.
    Box::new(scenario.limits(Limits { stretch: Some(600), ..Limits::default() }))
}

/// A fault on a page whose table is zapped by somebody who shares the lock.
fn x12<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let detached = variant.choose(DetachedEntries::Cleared, DetachedEntries::Frozen);
    let policy = ZapPolicy { detached, flush: TableFlush::DeferredRcu, ..ZapPolicy::V5_18 };
    let scenario = Scenario::new("X12", arch, SmallVm::mapped(2)).pages([0]).vcpu([read(PAGE)], thread(plain()));
    let scenario = scenario.actor("zap", move |host| {
        Box::pin(async move {
            let root = host.root().await;
            host.lock(LockId::MMU, LockMode::Read).await;
            zap_root(&host, root, &policy).await;
            host.unlock(LockId::MMU).await;
        })
    });
    Box::new(scenario.limits(Limits { statistics: Statistics::Booked, ..Limits::default() }))
}

/// Two leaves that the guest has written: nothing can happen to them under the write lock.
fn x27<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let atomic = variant.choose(AtomicZap::MmuWritable, AtomicZap::Volatile);
    let policy = ZapPolicy { atomic, lock: ZapLock::Write, ..ZapPolicy::V6_9 };
    let scenario = Scenario::new("X27", arch, SmallVm::mapped(2)).vcpu([read(0)], thread(plain()));
    let scenario = scenario.actor("zap", move |host| {
        Box::pin(async move {
            let root = host.root().await;
            host.lock(LockId::MMU, LockMode::Write).await;
            if zap_leafs(&host, root, gpas(0, 2), &policy).await == FlushDebt::Owed {
                host.flush_vm().await;
            }
            host.unlock(LockId::MMU).await;
        })
    });
    Box::new(scenario.setup(|build| {
        build.finally(Invariant::N3, |ended| {
            at_most(0, ended.needless_atomics, "atomic exchanges of leaves that nobody else could have changed")
        });
    }))
}
