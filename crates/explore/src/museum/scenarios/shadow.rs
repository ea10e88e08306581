//! Nested guests: shadow tables and their chains, write tracking of their tables.

use std::cell::Cell;
use std::rc::Rc;

use mmu_core::{Bytes, Format, Gpa};
use mmu_sim::engine::{Bed, Host, LockId, Var, Wake};
use mmu_sim::explore::{Explorable, Invariant, LeafState, Leaks, Limits, Mutation, Scenario, SmallVm, read, write};
use mmu_sim::protocols::aging::{AgingPath, AgingPolicy};
use mmu_sim::protocols::fault::{FastPath, FaultHooks, FaultPolicy, Faults, WriteTracking};
use mmu_sim::protocols::iter::{FlushDebt, Yield};
use mmu_sim::protocols::nested::{
    ChainLock, NestedAging, RcClear, RcTarget, RmapAging, Shadow, ShadowLock, ShadowPolicy, age,
};
use mmu_sim::protocols::notifier::{begin, end};
use mmu_sim::protocols::protect::{ReadOnlyLeaf, write_track};
use mmu_sim::protocols::vcpu;
use mmu_sim::protocols::young::Clear;
use mmu_sim::protocols::zap::{ZapLock, ZapPolicy, zap_leafs};
use mmu_sim::workload::GuestWork;

use super::super::formats::{power, power_with_flags, x86};
use super::super::{Exhibit, Make, Variant};
use super::{PAGE, at_most, gpas, plain, unless};

pub(super) const EXHIBITS: &[Exhibit] = &[
    Exhibit {
        id: "P02",
        title: "the dirty state is cleared while a nested fault has it copied, and comes back with the fault",
        breaks: &[Invariant::D1],
        arch: "power",
        build: Make::Own(p02),
    },
    Exhibit {
        id: "P03",
        title: "a nested fault sets its bits in the tables of the guest above",
        breaks: &[Invariant::P2],
        arch: "power",
        build: Make::Own(p03),
    },
    Exhibit {
        id: "X28",
        title: "write tracking leaves leaves alone that are read-only for the log, and a fault makes them writable",
        breaks: &[Invariant::T2],
        arch: "x86",
        build: Make::Own(x28),
    },
    Exhibit {
        id: "X29",
        title: "nested faults share the lock, and the list that they take chain entries from",
        breaks: &[Invariant::T1, Invariant::T5],
        arch: "x86",
        build: Make::Own(x29),
    },
    Exhibit {
        id: "X44",
        title: "a VM that ever ran a nested guest is aged under the lock for ever",
        breaks: &[Invariant::N3],
        arch: "x86",
        build: Make::Own(x44),
    },
    Exhibit {
        id: "X45",
        title: "who has a chain locked can lose the processor, and others spin",
        breaks: &[Invariant::P6],
        arch: "x86",
        build: Make::Own(x45),
    },
];

/// Mutations that none of these scenarios notices, and why.
pub(super) const UNNOTICED: &[(Mutation, &str)] = &[
    (
        Mutation::RelaxedOrder,
        "chains change under mmu_lock; who walks one with its own lock alone ages what is there, and may miss what has just come",
    ),
    // L1's entry is looked at under mmu_lock, too.
    (Mutation::OmitFence, super::FENCES),
];

/// Shadow tables are left at the end: the nested guest does not go.
const LIMITS: Limits = Limits { leaks: Leaks::Ignored, ..Limits::DEFAULT };

const fn same(l2: Gpa) -> Gpa {
    l2
}

/// Two pages of the nested guest are one of the guest above.
const fn halved(l2: Gpa) -> Gpa {
    Gpa::new((l2.raw() / 2) & !(PAGE - 1))
}

/// Runs a nested guest's vCPU; a page that cannot be mapped ends it, and the checker has the rest.
async fn run<F: Format>(host: &Host<F>, shadow: &Shadow, id: mmu_sim::engine::VcpuId) {
    let _ = shadow.thread(host, id, 1).await;
}

/// Somebody is done.
async fn tell<F: Format>(host: &Host<F>, done: Var, waiting: mmu_sim::engine::WaitQueue) {
    host.add(done, 1).await;
    host.wake_up(waiting, Wake::All).await;
}

/// The nested guest reads a page that is dirty for the guest above, while its dirty state is taken.
fn p02(variant: Variant) -> Box<dyn Explorable> {
    let how = variant.choose(RcClear::Silent, RcClear::BumpsSequence);
    let arch = power_with_flags();
    let scenario = Scenario::new("P02", arch, SmallVm::mapped(1)).setup(move |build| {
        let shadow = Shadow::new(build, &arch.two, Bytes(PAGE), 4, same);
        let (done, waiting) = (build.new_var(0), build.new_wait_queue());
        let id = build.add_vcpu(vec![read(0)]);
        build.spawn_thread(id, move |host| {
            Box::pin(async move {
                run(&host, &shadow, id).await;
                tell(&host, done, waiting).await;
            })
        });
        let wrong = Rc::new(Cell::new(false));
        let found = wrong.clone();
        build.spawn("dirty log", move |host| {
            Box::pin(async move {
                shadow.test_clear_dirty(&host, gpas(0, 1), how).await;
                super::wait_for(&host, done, waiting).await;
                // The guest has only read since.
                found.set(shadow.dirty_state(&host, Gpa::new(0)).await == [Some(true), Some(false)]);
            })
        });
        build.finally(Invariant::D1, move |_| {
            unless(wrong.get(), "the shadow entry is dirty again: the next write through it goes unnoticed")
        });
    });
    Box::new(scenario.limits(LIMITS))
}

/// The nested guest reads, its dirty state is cleared, and it writes.
fn p03(variant: Variant) -> Box<dyn Explorable> {
    let policy = ShadowPolicy { rc: variant.choose(RcTarget::OfL1, RcTarget::Nested), ..ShadowPolicy::RIGHT };
    let arch = power();
    let scenario = Scenario::new("P03", arch, SmallVm::mapped(1)).setup(move |build| {
        let shadow = Shadow::new(build, &arch.two, Bytes(PAGE), 4, same).handled_by(policy);
        let id = build.add_vcpu(vec![read(0)]);
        build.spawn_thread(id, move |host| {
            Box::pin(async move {
                run(&host, &shadow, id).await;
                shadow.test_clear_dirty(&host, gpas(0, 1), RcClear::BumpsSequence).await;
                host.assign(id, GuestWork::List(vec![write(0)]));
                run(&host, &shadow, id).await;
            })
        });
    });
    Box::new(scenario.limits(Limits { steps: 1500, livelock: Some(Invariant::P2), ..LIMITS }))
}

/// Writes are tracked while a variable is not 0.
#[derive(Clone, Copy, Debug)]
struct TrackedBy(Var);

impl<F: Format> FaultHooks<F> for TrackedBy {
    async fn write_tracking(&self, host: &Host<F>, _gpa: Gpa) -> WriteTracking {
        if host.load_acquire(self.0).await == 0 { WriteTracking::Off } else { WriteTracking::On }
    }
}

/// A page that is read-only for the dirty log becomes a table of a nested guest, while the guest writes it.
fn x28(variant: Variant) -> Box<dyn Explorable> {
    let read_only = variant.choose(ReadOnlyLeaf::Skipped, ReadOnlyLeaf::Forgets);
    let fault = FaultPolicy { fast: FastPath::Lockless, ..plain() };
    let scenario = Scenario::new("X28", x86(), SmallVm::mapped(1)).state(LeafState::Protected);
    Box::new(scenario.setup(move |build| {
        let tracking = build.new_var(0);
        let id = build.add_vcpu(vec![write(0)]);
        build.spawn_thread(id, move |host| {
            Box::pin(async move {
                let mut faults = Faults::with_hooks(id, fault, TrackedBy(tracking));
                let _ = vcpu::run(&host, id, &mut faults).await;
                faults.release(&host).await;
            })
        });
        build.spawn("nested tables", move |host| {
            Box::pin(async move {
                host.store_release(tracking, 1).await;
                write_track(&host, Gpa::new(0), read_only).await;
            })
        });
    }))
}

/// Two nested vCPUs fault, each on two pages that are one to the guest above; then those pages go.
fn x29(variant: Variant) -> Box<dyn Explorable> {
    let lock = variant.choose(ShadowLock::Read, ShadowLock::Write);
    let arch = x86();
    let scenario = Scenario::new("X29", arch, SmallVm::mapped(4)).setup(move |build| {
        let policy = ShadowPolicy { lock, ..ShadowPolicy::RIGHT };
        let shadow = Shadow::new(build, &arch.two, Bytes(2 * PAGE), 8, halved).handled_by(policy);
        for first in [0, 2 * PAGE] {
            let id = build.add_vcpu(vec![read(first), read(first + PAGE), read(first)]);
            build.spawn_thread(id, move |host| Box::pin(async move { run(&host, &shadow, id).await }));
        }
        build.spawn("madvise", move |host| {
            Box::pin(async move {
                let root = host.root().await;
                begin(&host, gpas(0, 2)).await;
                let zap = ZapPolicy { lock: ZapLock::Write, yielding: Yield::Never, ..ZapPolicy::V6_9 };
                if zap_leafs(&host, root, gpas(0, 2), &zap).await == FlushDebt::Owed {
                    host.flush_vm().await;
                }
                host.unlock(LockId::MMU).await;
                shadow.unmap(&host, gpas(0, 2)).await;
                host.drop_pages(gpas(0, 2)).await;
                end(&host).await;
            })
        });
    });
    Box::new(scenario.limits(LIMITS))
}

/// A nested guest has run and is gone; then the VM is aged.
fn x44(variant: Variant) -> Box<dyn Explorable> {
    let rmap = variant.choose(RmapAging::ExcludedIfEverNested, RmapAging::ExcludedWhileShadowed);
    let policy = NestedAging { tdp: AgingPolicy::V6_15, rmap };
    let arch = x86();
    Box::new(Scenario::new("X44", arch, SmallVm::mapped(1)).setup(move |build| {
        let shadow = Shadow::new(build, &arch.two, Bytes(PAGE), 4, same);
        let id = build.add_vcpu(vec![read(0)]);
        let locked = Rc::new(Cell::new(0));
        let seen = locked.clone();
        build.spawn_thread(id, move |host| {
            Box::pin(async move {
                run(&host, &shadow, id).await;
                shadow.release(&host).await;
                let (path, _) = age(&host, &shadow, gpas(0, 1), Clear::Clear, &policy).await;
                seen.set(u64::from(path == AgingPath::Locked));
            })
        });
        build.finally(Invariant::N3, move |_| {
            at_most(0, locked.get(), "walks under mmu_lock for shadow tables that there are not")
        });
    }))
}

/// A chain is aged while the page that it is of goes.
fn x45(variant: Variant) -> Box<dyn Explorable> {
    let lock = variant.choose(ChainLock::PreemptionOn, ChainLock::PreemptionOff);
    let policy = NestedAging { tdp: AgingPolicy::V6_15, rmap: RmapAging::ChainLock(lock) };
    let arch = x86();
    let scenario = Scenario::new("X45", arch, SmallVm::mapped(1)).setup(move |build| {
        let shadow = Shadow::new(build, &arch.two, Bytes(PAGE), 4, same);
        let (done, waiting) = (build.new_var(0), build.new_wait_queue());
        let id = build.add_vcpu(vec![read(0)]);
        let preempted = Rc::new(Cell::new(0));
        let seen = preempted.clone();
        build.spawn_thread(id, move |host| {
            Box::pin(async move {
                run(&host, &shadow, id).await;
                tell(&host, done, waiting).await;
                let _ = age(&host, &shadow, gpas(0, 1), Clear::Clear, &policy).await;
                seen.set(host.load(shadow.preempted()).await);
            })
        });
        build.spawn("unmap", move |host| {
            Box::pin(async move {
                super::wait_for(&host, done, waiting).await;
                shadow.unmap(&host, gpas(0, 1)).await;
            })
        });
        build.finally(Invariant::P6, move |_| {
            at_most(0, preempted.get(), "times the processor was given away with a chain locked that others spin for")
        });
    });
    Box::new(scenario.limits(LIMITS))
}
