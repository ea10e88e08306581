//! Faults and memslot updates against invalidations.

use mmu_core::{Bytes, Cycles, Gpa, GpaRange, Hva, PageSize};
use mmu_sim::arch::Arch;
use mmu_sim::engine::{
    Bed, Blockable, ExitReason, LockKind, LockMode, Memslot, SlotFlags, SlotId, Unmapping, Var, Wake,
};
use mmu_sim::experiment::vm::GUEST_MEMORY;
use mmu_sim::explore::{Explorable, Invariant, Limits, Mutation, Scenario, SmallVm, read};
use mmu_sim::protocols::fault::{FaultPolicy, Faults, SlotSection, SnapshotTime};
use mmu_sim::protocols::notifier::{
    NonBlocking, Notifier, NotifierPolicy, PageLoop, Precheck, RangeMerge, RetryPolicy, RetryTest, SlotsGuard,
    SnapshotWidth, range_end, range_start,
};
use mmu_sim::protocols::prefault::{DeletedSlot, pre_fault_memory};
use mmu_sim::protocols::primary::{madvise_dontneed, oom_reap};
use mmu_sim::protocols::slots::{Publication, SequenceBump, SlotPolicy, SlotUpdate, set_memory_region};
use mmu_sim::protocols::vcpu;

use super::super::{Exhibit, Variant};
use super::{PAGE, at_most, gpas, hvas, plain, thread};

pub(super) const EXHIBITS: &[Exhibit] = &[
    Exhibit {
        id: "G01",
        title: "any invalidation in the process makes every fault wait",
        breaks: &[Invariant::P2],
        arch: "x86",
        build: any!(g01),
    },
    Exhibit {
        id: "G02",
        title: "a memslot appears between an invalidation's start and its end, which counts what was not counted",
        breaks: &[Invariant::R7],
        arch: "x86",
        build: any!(g02),
    },
    Exhibit {
        id: "G11",
        title: "an invalidation that must not block reschedules",
        breaks: &[Invariant::P5],
        arch: "x86",
        build: any!(g11),
    },
    Exhibit {
        id: "G13",
        title: "the sequence is read after the page was looked up",
        breaks: &[Invariant::O1],
        arch: "x86",
        build: any!(g13),
    },
    Exhibit {
        id: "H01",
        title: "of two invalidations the later replaces the earlier one's range",
        breaks: &[Invariant::O1],
        arch: "x86",
        build: any!(h01),
    },
    Exhibit {
        id: "X25",
        title: "the snapshot of the sequence is a signed int: after 2^31 invalidations every fault is stale",
        breaks: &[Invariant::P2],
        arch: "x86",
        build: any!(x25),
    },
    Exhibit {
        id: "X34",
        title: "pre-faulting loops on a memslot that is being deleted, whose deleter waits for it",
        breaks: &[Invariant::P4],
        arch: "x86",
        build: any!(x34),
    },
    Exhibit {
        id: "G03",
        title: "an rwsem keeps memslots from invalidations: who starts two waits behind the update that waits for him",
        breaks: &[Invariant::P4],
        arch: "x86",
        build: any!(g03),
    },
    Exhibit {
        id: "P01",
        title: "a memslot goes and faults under way are not told: one installs what it found before",
        breaks: &[Invariant::T8, Invariant::O1, Invariant::T1],
        arch: "power",
        build: any!(p01),
    },
    Exhibit {
        id: "P04",
        title: "a loop over the pages of a range unmaps the first one each time",
        breaks: &[Invariant::T1],
        arch: "power",
        build: any!(p04),
    },
    Exhibit {
        id: "X33",
        title: "a fault that can only try again takes the lock first",
        breaks: &[Invariant::P2],
        arch: "x86",
        build: any!(x33),
    },
];

/// Mutations that none of these scenarios notices, and why.
pub(super) const UNNOTICED: &[(Mutation, &str)] =
    &[(Mutation::RelaxedOrder, super::SLOTS), (Mutation::OmitFence, super::FENCES)];

/// One vCPU faults on a page that is being dropped.
fn fault_and_drop<A: Arch>(arch: A, name: &str, fault: FaultPolicy, notifier: NotifierPolicy) -> Scenario<A> {
    Scenario::new(name, arch, SmallVm::unmapped(2)).vcpu([read(0)], thread(fault)).actor("madvise", move |host| {
        Box::pin(async move {
            let notifier = Notifier::new(notifier);
            madvise_dontneed(&host, &notifier, hvas(0, 1)).await;
        })
    })
}

/// An invalidation of another page that does not end before the guest has got its own.
fn g01<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let test = variant.choose(RetryTest::Sequence, RetryTest::GfnRange);
    let fault = FaultPolicy { retry: RetryPolicy { test, ..RetryPolicy::V6_8 }, ..plain() };
    let scenario = Scenario::new("G01", arch, SmallVm::unmapped(2)).setup(move |build| {
        let (done, waiting) = (build.new_var(0), build.new_wait_queue());
        let id = build.add_vcpu(vec![read(0)]);
        build.spawn_thread(id, move |host| {
            Box::pin(async move {
                vcpu::thread(host.clone(), id, fault).await;
                host.store_release(done, 1).await;
                host.wake_up(waiting, Wake::All).await;
            })
        });
        build.spawn("preempted madvise", move |host| {
            Box::pin(async move {
                let notifier = Notifier::new(NotifierPolicy::V6_8);
                let invalidation = range_start(&host, &notifier, hvas(1, 1), Blockable::Yes).await;
                super::wait_for(&host, done, waiting).await;
                range_end(&host, &notifier, invalidation).await;
            })
        });
    });
    Box::new(scenario.limits(Limits { steps: 1500, livelock: Some(Invariant::P2), ..Limits::default() }))
}

/// The second page of memory is in no memslot at first.
fn g02<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let publication = variant.choose(Publication::AtOnce, Publication::Blocked);
    let policy = SlotPolicy { publication, ..SlotPolicy::X86 };
    let slot = Memslot {
        id: SlotId(1),
        gpa: GpaRange::new(Gpa::new(PAGE), Bytes(PAGE)),
        hva: Hva::new(GUEST_MEMORY.raw() + PAGE),
        flags: SlotFlags::empty(),
    };
    let scenario = Scenario::new("G02", arch, SmallVm::unmapped(2)).slot(Bytes(PAGE));
    let scenario = scenario.actor("madvise", |host| {
        Box::pin(async move {
            madvise_dontneed(&host, &Notifier::new(NotifierPolicy::V6_8), hvas(1, 1)).await;
        })
    });
    Box::new(scenario.actor("add memslot", move |host| {
        Box::pin(async move {
            let _ = set_memory_region(&host, SlotUpdate::Create(slot), &policy).await;
        })
    }))
}

fn g11<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let nonblocking = variant.choose(NonBlocking::Ignored, NonBlocking::Respected);
    let policy = NotifierPolicy { nonblocking, ..NotifierPolicy::V6_8 };
    Box::new(Scenario::new("G11", arch, SmallVm::mapped(2)).actor("oom reaper", move |host| {
        Box::pin(async move {
            oom_reap(&host, &Notifier::new(policy), hvas(0, 2)).await;
        })
    }))
}

fn g13<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let snapshot = variant.choose(SnapshotTime::AfterLookup, SnapshotTime::BeforeLookup);
    Box::new(fault_and_drop(arch, "G13", FaultPolicy { snapshot, ..plain() }, NotifierPolicy::V6_8))
}

/// Two invalidations at once; the guest faults in the range of the first.
fn h01<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let merge = variant.choose(RangeMerge::Replace, RangeMerge::Hull);
    let notifier = NotifierPolicy { merge, ..NotifierPolicy::V6_8 };
    Box::new(fault_and_drop(arch, "H01", plain(), notifier).actor("another madvise", move |host| {
        Box::pin(async move {
            madvise_dontneed(&host, &Notifier::new(notifier), hvas(1, 1)).await;
        })
    }))
}

fn x25<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let snapshot = variant.choose(SnapshotWidth::SignedInt, SnapshotWidth::Full);
    let fault = FaultPolicy { retry: RetryPolicy { snapshot, ..RetryPolicy::V6_8 }, ..plain() };
    let scenario = fault_and_drop(arch, "X25", fault, NotifierPolicy::V6_8);
    let scenario = scenario.setup(|build| build.set_var(Var::INVALIDATE_SEQ, 0x8002_dc25));
    Box::new(scenario.limits(Limits { steps: 1500, livelock: Some(Invariant::P2), ..Limits::default() }))
}

fn x34<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let deleted = variant.choose(DeletedSlot::Loops, DeletedSlot::Again);
    let slot = Memslot {
        id: SlotId(0),
        gpa: GpaRange::new(Gpa::new(0), Bytes(2 * PAGE)),
        hva: GUEST_MEMORY,
        flags: SlotFlags::empty(),
    };
    let scenario = Scenario::new("X34", arch, SmallVm::unmapped(2)).vcpu([], move |host, id| {
        Box::pin(async move {
            let hooks = SlotHooks;
            let mut faults = Faults::with_hooks(id, plain(), hooks);
            let _ = pre_fault_memory(&host, &mut faults, gpas(0, 1), deleted).await;
            faults.release(&host).await;
            host.sleep(Cycles(1)).await;
        })
    });
    let scenario = scenario.actor("delete memslot", move |host| {
        Box::pin(async move {
            let _ = set_memory_region(&host, SlotUpdate::Delete(slot), &SlotPolicy::X86).await;
        })
    });
    Box::new(scenario.limits(Limits { steps: 1500, livelock: Some(Invariant::P4), ..Limits::default() }))
}

/// What is behind an address, by the active memslots.
#[derive(Clone, Copy, Debug)]
struct SlotHooks;

impl<F: mmu_core::Format> mmu_sim::protocols::fault::FaultHooks<F> for SlotHooks {
    async fn slot(&self, host: &mmu_sim::engine::Host<F>, gpa: Gpa) -> mmu_sim::protocols::fault::SlotState {
        use mmu_sim::protocols::fault::SlotState;
        let slots = host.active_slots().await;
        match host.slot_at(slots, gpa).await {
            Some(slot) if slot.flags.contains(SlotFlags::INVALID) => SlotState::Invalid,
            Some(_) => SlotState::Memory,
            None => SlotState::None,
        }
    }
}

/// One task invalidates two ranges, one inside the other, while a memslot is added.
fn g03<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let (guard, publication) =
        variant.choose((SlotsGuard::Rwsem, Publication::Rwsem), (SlotsGuard::Count, Publication::Blocked));
    let policy = NotifierPolicy { slots: guard, ..NotifierPolicy::V6_8 };
    let slot = Memslot {
        id: SlotId(1),
        gpa: GpaRange::new(Gpa::new(PAGE), Bytes(PAGE)),
        hva: Hva::new(GUEST_MEMORY.raw() + PAGE),
        flags: SlotFlags::empty(),
    };
    let scenario = Scenario::new("G03", arch, SmallVm::unmapped(2)).slot(Bytes(PAGE));
    let scenario = scenario.actor("two invalidations", move |host| {
        Box::pin(async move {
            let notifier = Notifier::new(policy);
            let outer = range_start(&host, &notifier, hvas(0, 1), Blockable::Yes).await;
            let inner = range_start(&host, &notifier, hvas(1, 1), Blockable::Yes).await;
            range_end(&host, &notifier, inner).await;
            range_end(&host, &notifier, outer).await;
        })
    });
    Box::new(scenario.actor("add memslot", move |host| {
        Box::pin(async move {
            let _ = set_memory_region(&host, SlotUpdate::Create(slot), &SlotPolicy { publication, ..SlotPolicy::X86 })
                .await;
        })
    }))
}

/// A fault that is in a section of SRCU only while it looks the slot up, and a memslot that is deleted meanwhile.
fn p01<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let bump = variant.choose(SequenceBump::None, SequenceBump::UnderLock);
    let slot = Memslot {
        id: SlotId(0),
        gpa: GpaRange::new(Gpa::new(0), Bytes(PAGE)),
        hva: GUEST_MEMORY,
        flags: SlotFlags::empty(),
    };
    let fault = FaultPolicy { slots: SlotSection::LookUp, ..FaultPolicy::new(LockMode::Write, PageSize::SIZE_4K) };
    let scenario = Scenario::new("P01", arch, SmallVm::unmapped(1)).vcpu([read(0)], move |host, id| {
        Box::pin(async move {
            let mut faults = Faults::new(id, fault);
            while let ExitReason::Fault(fault) = host.vcpu_run(id).await.reason {
                let _ = faults.handle(&host, fault).await;
            }
            faults.release(&host).await;
        })
    });
    let scenario = scenario.actor("delete memslot", move |host| {
        Box::pin(async move {
            let policy = SlotPolicy { bump, ..SlotPolicy::UNMAP };
            let _ = set_memory_region(&host, SlotUpdate::Delete(slot), &policy).await;
            // Nobody maps it any more: user space gives the memory back.
            host.unmap_pages(slot.hva_range(), Unmapping::Discard).await;
        })
    });
    Box::new(scenario.limits(Limits { mmu_lock: LockKind::Spin, ..Limits::default() }))
}

fn p04<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let pages = variant.choose(PageLoop::FirstEachTime, PageLoop::Each);
    let policy = NotifierPolicy { pages, ..NotifierPolicy::V6_8 };
    let fault = FaultPolicy::new(LockMode::Write, PageSize::SIZE_4K);
    let scenario = Scenario::new("P04", arch, SmallVm::mapped(2)).vcpu([read(PAGE)], thread(fault));
    let scenario = scenario.actor("madvise", move |host| {
        Box::pin(async move {
            madvise_dontneed(&host, &Notifier::new(policy), hvas(0, 2)).await;
        })
    });
    Box::new(scenario.limits(Limits { mmu_lock: LockKind::Spin, ..Limits::default() }))
}

/// A page is invalidated once: once may a fault find that out under the lock only.
fn x33<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let precheck = variant.choose(Precheck::None, Precheck::Lockless);
    let fault = FaultPolicy { retry: RetryPolicy { precheck, ..RetryPolicy::V6_8 }, ..plain() };
    Box::new(fault_and_drop(arch, "X33", fault, NotifierPolicy::V6_8).setup(|build| {
        build.finally(Invariant::P2, |ended| {
            at_most(1, ended.locks_in_vain, "times the lock was taken for a fault that could only be tried again")
        });
    }))
}
