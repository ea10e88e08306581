//! The primary MMU under a running guest: the notifier's contract, what is handed over, who retries, and what each variant breaks.

use std::cell::Cell;
use std::rc::Rc;

use crate::common::{arm64, power, x86};
use mmu_core::{AccessKind, Bytes, Cycles, Format, Gpa, Gva, Hva, HvaRange, Level, PageSize};
use mmu_sim::arch::Arch;
use mmu_sim::checker::Violation;
use mmu_sim::engine::{
    Blockable, ExitReason, Flag, GuestPaging, Handover, Host, LockKind, LockMode, PageState, Protection, Sim, Stopped,
    Unmapping, Userfault, Var, VcpuId, Vma, Watch, Work,
};
use mmu_sim::experiment::vm::GUEST_MEMORY;
use mmu_sim::experiment::{Platform, Populate, VmSpec, build_without_threads};
use mmu_sim::protocols::fault::{FaultPolicy, Faults};
use mmu_sim::protocols::notifier::{
    ChangePte, LockElision, NonBlocking, Notifier, NotifierPolicy, RangeMerge, RetryPolicy, RetryTest, SnapshotWidth,
    change_pte, range_end, range_start,
};
use mmu_sim::protocols::vcpu::Ran;
use mmu_sim::protocols::zap::ZapPolicy;
use mmu_sim::protocols::{primary, vcpu};
use mmu_sim::rng::Seed;
use mmu_sim::workload::{GuestAccess, GuestWork, Mix, PatternSpec, Workload};

macro_rules! everywhere {
    ($check:ident $(, $argument:expr)*) => {
        $check(&x86() $(, $argument)*);
        $check(&arm64() $(, $argument)*);
        $check(&power() $(, $argument)*);
    };
}

fn page_of<A: Arch>(platform: &Platform<A>) -> u64 {
    platform.arch.two().geometry().page_size(Level::LAST).bytes()
}

/// A guest of so many pages of the smallest size.
fn guest<A: Arch>(platform: &Platform<A>, pages: u64, vcpus: usize, populate: Populate) -> Sim<A> {
    let page = platform.arch.two().geometry().page_size(Level::LAST);
    let vm = VmSpec {
        memory: Bytes(pages * page.bytes()),
        vcpus,
        page,
        guest: GuestPaging::Flat,
        populate,
        workload: Workload::Idle,
        seed: Seed(3),
    };
    let mut sim = build_without_threads(platform, &vm).unwrap();
    sim.set_watch(Watch::Accesses);
    sim
}

/// `pages` pages of the guest from `page` on, as the host addresses them.
fn hvas(page_bytes: u64, page: u64, pages: u64) -> HvaRange {
    HvaRange::new(GUEST_MEMORY + page * page_bytes, Bytes(pages * page_bytes))
}

fn faults<A: Arch>(platform: &Platform<A>, retry: RetryPolicy) -> FaultPolicy {
    let page = platform.arch.two().geometry().page_size(Level::LAST);
    FaultPolicy { retry, ..FaultPolicy::new(LockMode::Read, page) }
}

/// A vCPU that writes these pages one after the other.
fn writes(page_bytes: u64, pages: impl IntoIterator<Item = u64>) -> GuestWork {
    let write = |page| GuestAccess { gva: Gva::new(page * page_bytes), kind: AccessKind::Write };
    GuestWork::List(pages.into_iter().map(write).collect())
}

fn spawn_vcpu<A: Arch>(sim: &mut Sim<A>, index: usize, work: GuestWork, policy: FaultPolicy) {
    sim.spawn_vcpu(VcpuId(index), |host| {
        Box::pin(async move {
            host.assign(VcpuId(index), work);
            vcpu::thread(host, VcpuId(index), policy).await;
        })
    });
}

fn run<A: Arch>(sim: &mut Sim<A>) -> Vec<Violation> {
    assert_eq!(sim.run(), Stopped::Finished);
    assert_eq!(sim.failure(), None);
    assert_eq!(sim.destroy(), Stopped::Finished);
    sim.world().violations().to_vec()
}

// ---- the contract ----

async fn everything_at_once<F: Format>(host: Host<F>, notifier: Notifier<F>, page: u64) {
    for round in 0..3 {
        primary::madvise_dontneed(&host, &notifier, hvas(page, 3 + round, 20)).await;
        primary::mprotect(&host, &notifier, hvas(page, 10, 20), Protection::Read).await;
        host.sleep(Cycles(20_000)).await;
        primary::mprotect(&host, &notifier, hvas(page, 10, 20), Protection::ReadWrite).await;
        primary::migrate(&host, &notifier, hvas(page, 30, 20)).await;
        primary::collapse(&host, &notifier, hvas(page, 32, 16)).await;
        primary::copy_on_write(&host, &notifier, GUEST_MEMORY + 5 * page, ChangePte::Replace).await;
        primary::reclaim(&host, &notifier, hvas(page, 0, 64), Bytes(4 * page)).await;
        primary::oom_reap(&host, &notifier, hvas(page, 50, 14)).await;
        host.sleep(Cycles(50_000)).await;
    }
}

fn keeps_the_contract<A: Arch>(platform: &Platform<A>, notifier: NotifierPolicy, retry: RetryPolicy) {
    let page = page_of(platform);
    for populate in [Populate::Mapped, Populate::ByFaults] {
        let mut sim = guest(platform, 64, 3, populate);
        for index in 0..3 {
            let spec = PatternSpec { bytes: 64 * page, mix: Mix::Uniform, writes_percent: 50, accesses: 40_000 };
            let work = GuestWork::Pattern { spec, base: Gva::new(0), seed: Seed(index as u64) };
            let policy = faults(platform, retry);
            sim.spawn_vcpu(VcpuId(index), |host| {
                Box::pin(async move {
                    host.assign(VcpuId(index), work);
                    let mut handler = Faults::new(VcpuId(index), policy);
                    // A write meets mprotect(PROT_READ): KVM_RUN returns EFAULT, and user space tries again.
                    while vcpu::run(&host, VcpuId(index), &mut handler).await == Ran::Failed {
                        host.sleep(Cycles(1000)).await;
                    }
                    handler.release(&host).await;
                })
            });
        }
        let notifier = Notifier::new(notifier);
        sim.spawn("primary", Cycles(5_000), move |host| Box::pin(everything_at_once(host, notifier, page)));
        assert_eq!(run(&mut sim), [], "{} {populate:?}", platform.arch.name());
        let world = sim.world();
        assert_eq!([Var::IN_PROGRESS, Var::ACTIVE_INVALIDATIONS].map(|var| world.var(var)), [0, 0]);
        assert!(world.primary().freed_bytes() >= Bytes(3 * 30 * page));
        assert!(sim.vcpu_stats().iter().all(|vcpu| vcpu.accesses == 40_000 && vcpu.faults > 0));
    }
}

#[test]
fn no_change_of_the_primary_mmu_lets_anybody_reach_an_old_page() {
    everywhere!(keeps_the_contract, NotifierPolicy::V6_8, RetryPolicy::V6_8);
    everywhere!(keeps_the_contract, NotifierPolicy::V5_15, RetryPolicy::V5_12);
    let v5_11 = NotifierPolicy { test: RetryTest::Sequence, ..NotifierPolicy::V5_12 };
    everywhere!(keeps_the_contract, v5_11, RetryPolicy::V5_11);
}

// ---- accessed and dirty state ----

fn hands_over<A: Arch>(platform: &Platform<A>, handover: Handover, accessed: u64) {
    let page = page_of(platform);
    let mut sim = guest(platform, 32, 1, Populate::ByFaults);
    sim.set_handover(handover);
    spawn_vcpu(&mut sim, 0, writes(page, [1, 4, 5, 6, 20, 31, 2, 9]), faults(platform, RetryPolicy::V6_8));
    let notifier = Notifier::new(NotifierPolicy::V6_8);
    sim.spawn("mprotect", Cycles(50_000_000), move |host| {
        Box::pin(async move { primary::mprotect(&host, &notifier, hvas(page, 0, 32), Protection::Read).await })
    });
    assert_eq!(sim.run(), Stopped::Finished);
    let used = sim.world().primary().used_bytes(hvas(page, 0, 32));
    assert_eq!(used, (Bytes(accessed * page), Bytes(8 * page)), "{}", platform.arch.name());
    assert_eq!(sim.world().counters().zapped_leaves, 8);
}

#[test]
fn zapped_entries_hand_their_state_over() {
    everywhere!(hands_over, Handover::AccessedAndDirty, 8);
    everywhere!(hands_over, Handover::Dirty, 0);
}

fn reclaims<A: Arch>(platform: &Platform<A>) {
    let page = page_of(platform);
    let mut sim = guest(platform, 16, 1, Populate::ByFaults);
    spawn_vcpu(&mut sim, 0, writes(page, 0..6), faults(platform, RetryPolicy::V6_8));
    let notifier = Notifier::new(NotifierPolicy::V6_8);
    let done = Rc::new(Cell::new([primary::Reclaimed::default(); 2]));
    let out = done.clone();
    sim.spawn("reclaim", Cycles(50_000_000), move |host| {
        Box::pin(async move {
            // The guest's use reaches the primary MMU by a zap; the first scan then keeps what was used.
            primary::mprotect(&host, &notifier, hvas(page, 0, 6), Protection::ReadWrite).await;
            let first = primary::reclaim(&host, &notifier, hvas(page, 0, 16), Bytes(4 * page)).await;
            let second = primary::reclaim(&host, &notifier, hvas(page, 0, 16), Bytes(4 * page)).await;
            out.set([first, second]);
        })
    });
    assert_eq!(run(&mut sim), []);
    let [first, second] = done.get();
    assert_eq!((first.kept, first.freed, first.invalidations), (Bytes(6 * page), Bytes(10 * page), 3));
    assert_eq!((second.kept, second.freed, second.invalidations), (Bytes(0), Bytes(6 * page), 2));
    assert!(sim.world().primary().is_swapped(GUEST_MEMORY + 3 * page));
}

#[test]
fn reclaim_keeps_what_was_used_and_swaps_the_rest() {
    everywhere!(reclaims);
}

#[test]
fn state_that_comes_after_the_page_is_free_is_a_violation() {
    let platform = x86();
    let mut sim = guest(&platform, 4, 1, Populate::Mapped);
    sim.spawn("late", Cycles(0), |host| {
        Box::pin(async move {
            // Freed with no notifier at all; the teardown hands the state of its leaves over to pages that are gone.
            host.unmap_pages(hvas(4096, 0, 2), Unmapping::Discard).await;
        })
    });
    let late = run(&mut sim).iter().filter(|violation| matches!(violation, Violation::ReleaseAfterFree { .. })).count();
    assert_eq!(late, 1, "four leaves are one stretch");
}

// ---- who retries ----

/// Faults of one vCPU while an invalidation elsewhere is held open: how many had to be taken again.
fn retries_beside<A: Arch>(platform: &Platform<A>, notifier: NotifierPolicy, retry: RetryPolicy) -> u64 {
    let page = page_of(platform);
    let mut sim = guest(platform, 64, 1, Populate::ByFaults);
    spawn_vcpu(&mut sim, 0, writes(page, 40..50), faults(platform, retry));
    let notifier = Notifier::new(notifier);
    sim.spawn("invalidator", Cycles(0), move |host| {
        Box::pin(async move {
            let open = range_start(&host, &notifier, hvas(page, 0, 20), Blockable::Yes).await;
            host.sleep(Cycles(2_000_000)).await;
            range_end(&host, &notifier, open).await;
        })
    });
    assert_eq!(run(&mut sim), []);
    sim.world().counters().retried_faults
}

fn only_the_range_counts<A: Arch>(platform: &Platform<A>) {
    let v5_11 = NotifierPolicy { test: RetryTest::Sequence, ..NotifierPolicy::V5_12 };
    let name = platform.arch.name();
    // G01: any invalidation in the process.
    assert!(retries_beside(platform, v5_11, RetryPolicy::V5_11) > 20, "{name}");
    assert_eq!(retries_beside(platform, NotifierPolicy::V5_12, RetryPolicy::V5_12), 0, "{name}");
    assert_eq!(retries_beside(platform, NotifierPolicy::V6_8, RetryPolicy::V6_8), 0, "{name}");
}

#[test]
fn a_fault_outside_the_range_goes_through() {
    everywhere!(only_the_range_counts);
}

#[test]
fn a_fault_inside_the_range_waits_for_the_end() {
    let platform = x86();
    for (notifier, retry) in [(NotifierPolicy::V5_12, RetryPolicy::V5_12), (NotifierPolicy::V6_8, RetryPolicy::V6_8)] {
        let mut sim = guest(&platform, 64, 1, Populate::ByFaults);
        spawn_vcpu(&mut sim, 0, writes(4096, [5]), faults(&platform, retry));
        let notifier = Notifier::new(notifier);
        sim.spawn("invalidator", Cycles(0), move |host| {
            Box::pin(async move {
                let open = range_start(&host, &notifier, hvas(4096, 0, 20), Blockable::Yes).await;
                host.sleep(Cycles(500_000)).await;
                range_end(&host, &notifier, open).await;
            })
        });
        assert_eq!(run(&mut sim), []);
        let finished = sim.vcpu_stats()[0].finished;
        assert!((Cycles(500_000)..Cycles(530_000)).contains(&finished), "{finished}");
        assert!(sim.world().counters().retried_faults > 5);
    }
}

/// One vCPU tries so many times; whether it got its page.
fn attempts(width: SnapshotWidth, seq: u64) -> (u64, u64) {
    let platform = x86();
    let mut sim = guest(&platform, 8, 1, Populate::ByFaults);
    sim.set_var(Var::INVALIDATE_SEQ, seq);
    let policy = faults(&platform, RetryPolicy { snapshot: width, ..RetryPolicy::V5_12 });
    sim.spawn_vcpu(VcpuId(0), |host| {
        Box::pin(async move {
            host.assign(VcpuId(0), writes(4096, [3]));
            let mut faults = Faults::new(VcpuId(0), policy);
            for _ in 0..20 {
                match host.vcpu_run(VcpuId(0)).await.reason {
                    ExitReason::Fault(fault) => drop(faults.handle(&host, fault).await),
                    _ => return,
                }
            }
        })
    });
    assert_eq!(sim.run(), Stopped::Finished);
    (sim.vcpu_stats()[0].accesses, sim.world().counters().retried_faults)
}

#[test]
fn x25_a_snapshot_in_an_int_hangs_the_vcpu_after_two_billion_invalidations() {
    assert_eq!(attempts(SnapshotWidth::Full, 0x8002_dc25), (1, 0));
    assert_eq!(attempts(SnapshotWidth::SignedInt, 0x7fff_ffff), (1, 0));
    assert_eq!(attempts(SnapshotWidth::SignedInt, 0x8002_dc25), (0, 20));
}

/// An invalidation while vCPUs hammer at its range: how often it flushed, and how long it took.
fn under_fire(retry: RetryPolicy) -> (u64, Cycles) {
    let platform = x86();
    let mut sim = guest(&platform, 4096, 4, Populate::Mapped);
    for index in 0..4 {
        let policy = faults(&platform, retry);
        sim.spawn_vcpu(VcpuId(index), |host| {
            Box::pin(async move {
                host.sleep(Cycles(100_000)).await;
                host.assign(VcpuId(index), writes(4096, [index as u64]));
                vcpu::thread(host, VcpuId(index), policy).await;
            })
        });
    }
    let notifier = Notifier::new(NotifierPolicy::V6_8);
    sim.spawn("invalidator", Cycles(0), move |host| {
        Box::pin(async move {
            primary::madvise_dontneed(&host, &notifier, hvas(4096, 0, 4096)).await;
        })
    });
    assert_eq!(run(&mut sim), []);
    let took = sim.actors().map(|(_, stats)| stats.finished.since(stats.started)).next().unwrap();
    (sim.world().counters().remote_flushes, took)
}

#[test]
fn x33_looking_before_the_lock_spares_the_invalidator() {
    let (flushes, took) = under_fire(RetryPolicy::V6_8);
    let (more, longer) = under_fire(RetryPolicy { test: RetryTest::GfnRange, ..RetryPolicy::V5_12 });
    // Each time that it makes way for a fault which can only retry, it flushes what it has zapped so far.
    assert!(
        more >= 2 * flushes && longer > took,
        "{more} flushes, {longer} cycles without; {flushes}, {took} with the look"
    );
}

// ---- locks, counts, blocking ----

fn elides<A: Arch>(platform: &Platform<A>, elision: LockElision, sequence: u64) {
    let mut sim = guest(platform, 8, 1, Populate::Mapped);
    let notifier = Notifier::new(NotifierPolicy { elision, ..NotifierPolicy::V6_8 });
    let page = page_of(platform);
    sim.spawn("elsewhere", Cycles(0), move |host| {
        Box::pin(async move {
            let elsewhere = HvaRange::new(Hva::new(0x10_0000), Bytes(page));
            primary::madvise_dontneed(&host, &notifier, elsewhere).await;
        })
    });
    assert_eq!(run(&mut sim), []);
    assert_eq!(sim.world().var(Var::INVALIDATE_SEQ), sequence);
}

#[test]
fn no_slot_no_lock_since_5_15() {
    everywhere!(elides, LockElision::NoOverlap, 0);
    everywhere!(elides, LockElision::Never, 1);
}

/// An invalidation that must not block, on a processor that somebody else waits for.
fn reaps(nonblocking: NonBlocking) -> Vec<Violation> {
    let platform = x86();
    let mut sim = guest(&platform, 4096, 1, Populate::Mapped);
    let processor = sim.new_lock(LockKind::Spin);
    let notifier = Notifier::new(NotifierPolicy { nonblocking, zap: ZapPolicy::V5_17, ..NotifierPolicy::V6_8 });
    sim.spawn("reaper", Cycles(0), move |host| {
        Box::pin(async move {
            host.occupy(processor).await;
            primary::oom_reap(&host, &notifier, hvas(4096, 0, 4096)).await;
            host.vacate().await;
        })
    });
    sim.spawn("task", Cycles(5_000), move |host| {
        Box::pin(async move {
            host.occupy(processor).await;
            host.vacate().await;
        })
    });
    run(&mut sim)
}

#[test]
fn g11_the_oom_reaper_is_not_made_to_wait() {
    assert_eq!(reaps(NonBlocking::Respected), []);
    let found = reaps(NonBlocking::Ignored);
    assert!(matches!(found.as_slice(), [Violation::Blocked { .. }, ..]), "{found:?}");
}

/// Two invalidations at once, and a fault in the first one's range.
fn merges(merge: RangeMerge) -> Vec<Violation> {
    let platform = x86();
    let mut sim = guest(&platform, 64, 1, Populate::Mapped);
    let notifier = Notifier::new(NotifierPolicy { merge, ..NotifierPolicy::V5_15 });
    for (at, first, hold) in [(0, 0, 400_000), (20_000, 32, 300_000)] {
        let notifier = notifier.clone();
        sim.spawn("invalidator", Cycles(at), move |host| {
            Box::pin(async move {
                let range = hvas(4096, first, 8);
                let open = range_start(&host, &notifier, range, Blockable::Yes).await;
                host.sleep(Cycles(hold)).await;
                host.unmap_pages(range, Unmapping::Discard).await;
                range_end(&host, &notifier, open).await;
            })
        });
    }
    let policy = faults(&platform, RetryPolicy::V5_12);
    sim.spawn_vcpu(VcpuId(0), |host| {
        Box::pin(async move {
            host.sleep(Cycles(100_000)).await;
            host.assign(VcpuId(0), writes(4096, [3, 3]));
            vcpu::thread(host, VcpuId(0), policy).await;
        })
    });
    run(&mut sim)
}

#[test]
fn a_range_in_progress_must_cover_all_invalidations() {
    assert_eq!(merges(RangeMerge::Hull), []);
    let found = merges(RangeMerge::Replace);
    assert!(found.iter().any(|violation| matches!(violation, Violation::UseAfterFree { .. })), "{found:?}");
}

// ---- change_pte, waiting faults ----

fn changes<A: Arch>(platform: &Platform<A>) {
    let page = page_of(platform);
    let changed = Rc::new(Cell::new([true; 3]));
    let mut sim = guest(platform, 8, 1, Populate::Mapped);
    let out = changed.clone();
    sim.spawn("ksm", Cycles(0), move |host| {
        Box::pin(async move {
            let at = GUEST_MEMORY + 2 * page;
            let notifier = Notifier::new(NotifierPolicy::V6_8);
            let open = range_start(&host, &notifier, hvas(page, 2, 1), Blockable::Yes).await;
            let new = host.replace_page(at, Protection::Read).await.unwrap();
            let inside = change_pte(&host, at, new, ChangePte::Replace).await;
            range_end(&host, &notifier, open).await;
            // As it was meant, long ago: without start and end. The old page is still there.
            let (alone, ignored) = (
                change_pte(&host, GUEST_MEMORY + 3 * page, new, ChangePte::Replace).await,
                change_pte(&host, GUEST_MEMORY + 4 * page, new, ChangePte::Ignore).await,
            );
            out.set([inside, alone, ignored]);
        })
    });
    assert_eq!(sim.run(), Stopped::Finished);
    assert_eq!(changed.get(), [false, true, false], "{}", platform.arch.name());
    let state = PageState { accessed: Flag::Set, dirty: Flag::Set };
    let lookup = |page: u64, bytes: u64| sim.world().primary().lookup(GUEST_MEMORY + page * bytes);
    let old = lookup(3, page).unwrap();
    assert_eq!(sim.world().primary().page_state(old), state, "the leaf that went told what it knew");
}

#[test]
fn change_pte_finds_nothing_to_change_inside_an_invalidation() {
    everywhere!(changes);
}

fn waits_for_user_space<A: Arch>(platform: &Platform<A>) {
    let page = page_of(platform);
    let delay = Cycles(300_000);
    for userfault in [Userfault::Missing(delay), Userfault::Minor(delay)] {
        let mut sim = guest(platform, 8, 1, Populate::ByFaults);
        let elsewhere = HvaRange::new(GUEST_MEMORY, Bytes(8 * page));
        let slot = sim.world().slots().at(mmu_sim::engine::SlotsVersion(0), Gpa::new(0)).unwrap();
        // The guest's memory anew, with nothing behind it.
        sim.add_slot(mmu_sim::engine::Memslot { hva: elsewhere.end(), ..slot });
        let fresh = HvaRange::new(elsewhere.end(), elsewhere.bytes);
        sim.primary_mut().map(fresh, Vma { userfault, ..Vma::default() });
        spawn_vcpu(&mut sim, 0, writes(page, [1, 1, 2]), faults(platform, RetryPolicy::V6_8));
        assert_eq!(run(&mut sim), []);
        let stats = sim.vcpu_stats()[0];
        assert!(stats.longest_fault >= delay && stats.faults == 2, "{}", platform.arch.name());
        assert!((Cycles(600_000)..Cycles(700_000)).contains(&stats.finished), "{}", stats.finished);
    }
}

#[test]
fn a_fault_waits_for_its_handler_in_user_space() {
    everywhere!(waits_for_user_space);
}

#[test]
fn a_fault_waits_for_a_page_that_moves() {
    let platform = x86();
    let mut sim = guest(&platform, 8, 1, Populate::Mapped);
    let notifier = Notifier::new(NotifierPolicy::V6_8);
    sim.spawn("migrate", Cycles(0), move |host| {
        Box::pin(async move {
            let open = range_start(&host, &notifier, hvas(4096, 0, 8), Blockable::Yes).await;
            host.begin_move(hvas(4096, 0, 8)).await;
            range_end(&host, &notifier, open).await;
            host.spend(Work::Exactly(Cycles(400_000))).await;
            let moved = host.finish_move(hvas(4096, 0, 8), mmu_sim::engine::Migration::Each).await;
            assert_eq!((moved.moved, moved.failed), (Bytes(8 * 4096), Bytes(0)));
        })
    });
    let policy = faults(&platform, RetryPolicy::V6_8);
    sim.spawn_vcpu(VcpuId(0), |host| {
        Box::pin(async move {
            host.sleep(Cycles(50_000)).await;
            host.assign(VcpuId(0), writes(4096, [3]));
            vcpu::thread(host, VcpuId(0), policy).await;
        })
    });
    assert_eq!(run(&mut sim), []);
    let finished = sim.vcpu_stats()[0].finished;
    assert!(finished > Cycles(400_000), "{finished}");
    assert_eq!(sim.world().counters().retried_faults, 0, "it slept, it did not spin");
    assert_eq!(PageSize::SIZE_4K.bytes(), page_of(&platform));
}

/// The process may only read its memory: a guest that reads goes on, one that writes is told.
fn read_only<A: Arch>(platform: &Platform<A>) {
    let page = page_of(platform);
    let name = platform.arch.name();
    let mut sim = guest(platform, 8, 1, Populate::ByFaults);
    let policy = faults(platform, RetryPolicy::V6_8);
    sim.spawn_vcpu(VcpuId(0), |host| {
        Box::pin(async move {
            let notifier = Notifier::new(NotifierPolicy::V6_8);
            primary::mprotect(&host, &notifier, hvas(page, 0, 8), Protection::Read).await;
            let mut handler = Faults::new(VcpuId(0), policy);
            let access = |kind| GuestWork::List(vec![GuestAccess { gva: Gva::new(3 * page), kind }]);
            host.assign(VcpuId(0), access(AccessKind::Read));
            assert_eq!(vcpu::run(&host, VcpuId(0), &mut handler).await, Ran::Done, "{name}");
            host.assign(VcpuId(0), access(AccessKind::Write));
            assert_eq!(vcpu::run(&host, VcpuId(0), &mut handler).await, Ran::Failed, "{name}");
            primary::mprotect(&host, &notifier, hvas(page, 0, 8), Protection::ReadWrite).await;
            assert_eq!(vcpu::run(&host, VcpuId(0), &mut handler).await, Ran::Done, "{name}");
            handler.release(&host).await;
        })
    });
    assert_eq!(run(&mut sim), [], "{name}");
    assert_eq!(sim.world().counters().failed_runs, 1, "{name}");
}

#[test]
fn a_page_that_the_process_may_only_read_is_mapped_read_only() {
    everywhere!(read_only);
}
