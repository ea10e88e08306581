//! Dirty logging.

use mmu_core::{Bytes, Gpa, GpaRange, PageSize};
use mmu_sim::arch::Arch;
use mmu_sim::engine::{Bed, LockMode, Wake};
use mmu_sim::experiment::Populate;
use mmu_sim::explore::{
    Explorable, Invariant, LeafState, Leaks, Limits, MemoryOrder, Mutation, Scenario, SmallVm, write,
};
use mmu_sim::protocols::dirty_log::ring::{Collector, DirtyRing, RingOrder};
use mmu_sim::protocols::dirty_log::vcpu::{LoggedSlot, run};
use mmu_sim::protocols::dirty_log::{
    DirtyLog, DirtyPolicy, HarvestFlush, LogKind, LostRace, SplitWhen, Tracking, enable, get_dirty_log,
};
use mmu_sim::protocols::fault::{FaultPolicy, Faults};

use mmu_sim::protocols;

use super::super::formats::{arm, x86};
use super::super::{Exhibit, Make, Variant};
use super::gpas;

pub(super) const EXHIBITS: &[Exhibit] = &[
    Exhibit {
        id: "A19",
        title: "a range invalidation covers 1 GiB of the 8 that were asked for",
        breaks: &[Invariant::D4],
        arch: "arm64",
        build: Make::Own(a19),
    },
    Exhibit {
        id: "A28",
        title: "an entry that somebody changed meanwhile is not made clean, and nobody tries again",
        breaks: &[Invariant::D3, Invariant::D4],
        arch: "x86",
        build: Make::Own(a28),
    },
    Exhibit {
        id: "G12",
        title: "an entry of the dirty ring is published by plain stores",
        breaks: &[Invariant::N2],
        arch: "arm64",
        build: any!(g12 on Arm64, Power),
    },
];

/// Mutations that none of these scenarios notices, and why.
pub(super) const UNNOTICED: &[(Mutation, &str)] = &[(
    Mutation::OmitLock,
    "logging and faults change entries by compare-and-swap; the lock keeps tables from going meanwhile, and none goes here",
)];

/// Logging begins on a slot of 2 GiB while a guest uses the second half.
fn a19(variant: Variant) -> Box<dyn Explorable> {
    let policy =
        DirtyPolicy { flush: variant.choose(HarvestFlush::ShortRange, HarvestFlush::Slot), ..DirtyPolicy::ARM64 };
    let far = 3 << 29;
    let vm = SmallVm { memory: Bytes(2 << 30), page: PageSize::SIZE_4K, populate: Populate::Mapped };
    let scenario = Scenario::new("A19", arm(), vm).pages([far]).setup(move |build| {
        let bitmap = build.new_var(0);
        let slot = GpaRange::new(Gpa::new(0), Bytes(2 << 30));
        let log = DirtyLog::new(slot, bitmap, PageSize::SIZE_4K, LogKind::Rings);
        let vcpu = build.add_vcpu(vec![write(far)]);
        let fault = FaultPolicy::new(LockMode::Read, PageSize::SIZE_4K);
        build.spawn_thread(vcpu, move |host| Box::pin(protocols::vcpu::thread(host, vcpu, fault)));
        build.spawn("start logging", move |host| {
            Box::pin(async move {
                let _ = enable(&host, &log, &policy).await;
            })
        });
    });
    Box::new(scenario.limits(Limits { leaks: Leaks::Ignored, ..Limits::default() }))
}

/// Logging begins, sharing the lock, while a vCPU writes for the first time.
fn a28(variant: Variant) -> Box<dyn Explorable> {
    let race = variant.choose(LostRace::Ignore, LostRace::Retry);
    let policy = DirtyPolicy { race, split: SplitWhen::Lazily, ..DirtyPolicy::X86_WRITE_PROTECT };
    let scenario = Scenario::new("A28", x86(), SmallVm::mapped(1)).state(LeafState::Untouched).setup(move |build| {
        let bitmap = build.new_var(0);
        let log = DirtyLog::new(gpas(0, 1), bitmap, PageSize::SIZE_4K, LogKind::Bitmap);
        let slot = LoggedSlot::new(log);
        let vcpu = build.add_vcpu(vec![write(0), write(0)]);
        let done = build.new_var(0);
        let waiting = build.new_wait_queue();
        build.spawn_thread(vcpu, move |host| {
            Box::pin(async move {
                let policy = FaultPolicy::new(LockMode::Read, PageSize::SIZE_4K);
                let mut faults = Faults::with_hooks(vcpu, policy, slot);
                let _ = run(&host, vcpu, &slot, &mut faults).await;
                faults.release(&host).await;
                host.store_release(done, 1).await;
                host.wake_up(waiting, Wake::All).await;
            })
        });
        build.spawn("user space", move |host| {
            Box::pin(async move {
                let _ = enable(&host, &log, &policy).await;
                super::wait_for(&host, done, waiting).await;
                let _ = get_dirty_log(&host, &log, &policy).await;
                host.dirty_log_settled().await;
            })
        });
    });
    Box::new(scenario.limits(Limits { leaks: Leaks::Ignored, ..Limits::default() }))
}

/// A vCPU pushes the second page into its ring; user space reads the ring meanwhile.
fn g12<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let order = variant.choose(RingOrder::Relaxed, RingOrder::ReleaseAcquire);
    let scenario = Scenario::new("G12", arch, SmallVm::mapped(2)).state(LeafState::Protected).setup(move |build| {
        let vcpu = build.add_vcpu(vec![write(4096)]);
        let (bitmap, full) = (build.new_var(1), build.new_wait_queue());
        let Some(rings) = DirtyRing::create(build, 128, Tracking::WriteProtect, order, full) else { return };
        let ring = rings[0];
        let log = DirtyLog::new(gpas(0, 2), bitmap, PageSize::SIZE_4K, LogKind::Rings);
        let slot = LoggedSlot { ring: Some(ring), ..LoggedSlot::new(log) };
        build.spawn_thread(vcpu, move |host| {
            Box::pin(async move {
                let policy = FaultPolicy::new(LockMode::Read, PageSize::SIZE_4K);
                let mut faults = Faults::with_hooks(vcpu, policy, slot);
                let _ = run(&host, vcpu, &slot, &mut faults).await;
                faults.release(&host).await;
            })
        });
        let wrong = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
        let found = wrong.clone();
        build.spawn("collector", move |host| {
            Box::pin(async move {
                let mut collector = Collector::new(ring);
                for _ in 0..2 {
                    let pages = collector.collect(&host).await;
                    found.borrow_mut().extend(pages.into_iter().map(|page| page.offset).filter(|&page| page != 1));
                }
            })
        });
        build.finally(Invariant::N2, move |_| match wrong.borrow().first() {
            None => Ok(()),
            Some(page) => Err(format!("the ring says page {page}, which nobody has written")),
        });
    });
    let limits = Limits { memory: MemoryOrder::Weak, leaks: Leaks::Ignored, ..Limits::default() };
    Box::new(scenario.limits(limits))
}
