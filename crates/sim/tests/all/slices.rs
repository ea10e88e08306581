//! Time slices that are alike are done together: words, clocks and counters of everybody are those of one slice after the other, and of one entry after
//! the other.

use crate::common::{arm64, power, small_vm, x86};
use mmu_core::{ByteUnits, Bytes, Cycles, Format, Gpa, GpaRange, Level};
use mmu_sim::arch::Arch;
use mmu_sim::engine::{
    ActorStats, GuestPaging, HostCounters, LockId, LockMode, LockStats, RcuStats, Runs, Sim, Stopped,
};
use mmu_sim::experiment::zap::{Strategy, Target, strategies};
use mmu_sim::experiment::{Platform, VmSpec, build};
use mmu_sim::protocols::dirty_log::{DirtyLog, DirtyPolicy, LogKind, SplitWhen, Tracking, enable};
use mmu_sim::protocols::{memslot, notifier};
use mmu_sim::workload::Workload;
use proptest::prelude::*;

/// Everything that must not depend on how it is done.
#[derive(PartialEq, Debug)]
struct Outcome {
    tables: u128,
    frames: u64,
    host: HostCounters,
    actors: Vec<ActorStats>,
    lock: LockStats,
    rcu: RcuStats,
}

/// What a run has come to, and how many of its slices were worked out together.
fn end<A: Arch>(mut sim: Sim<A>) -> (Outcome, u64) {
    assert_eq!(sim.run(), Stopped::Finished);
    let world = sim.world();
    assert_eq!(world.violations(), []);
    let outcome = Outcome {
        tables: world.tables().digest(),
        frames: world.tables().frames(),
        host: *world.counters(),
        actors: sim.actors().map(|(_, stats)| *stats).collect(),
        lock: world.lock_stats(LockId::MMU),
        rcu: world.rcu_stats(),
    };
    (outcome, world.worked_out())
}

fn idle<A: Arch>(platform: &Platform<A>, memory: u64, runs: Runs) -> Sim<A> {
    let page = platform.arch.two().geometry().page_size(Level::LAST);
    let vm = VmSpec { workload: Workload::Idle, guest: GuestPaging::Flat, page, ..small_vm(memory, 1, 0) };
    let mut sim = build(platform, &vm).unwrap();
    sim.set_runs(runs);
    sim
}

fn zap<A: Arch>(
    platform: &Platform<A>,
    memory: u64,
    range: GpaRange,
    strategy: Strategy,
    runs: Runs,
) -> (Outcome, u64) {
    let mut sim = idle(platform, memory, runs);
    sim.spawn("zap", Cycles(10_000), move |host| {
        Box::pin(async move {
            match strategy.target {
                Target::Range => notifier::invalidate_range(&host, range, &strategy.policy).await,
                Target::Root => memslot::zap_all_fast(&host, &strategy.policy).await.unwrap(),
            }
        })
    });
    end(sim)
}

/// Write-protects a slot, or takes its dirty flags.
fn log<A: Arch>(platform: &Platform<A>, memory: u64, slot: GpaRange, tracking: Tracking, runs: Runs) -> (Outcome, u64) {
    let mut sim = idle(platform, memory, runs);
    let page = platform.arch.two().geometry().page_size(Level::LAST);
    let policy = DirtyPolicy { tracking, split: SplitWhen::Lazily, ..DirtyPolicy::X86_WRITE_PROTECT };
    let log = DirtyLog::new(slot, sim.new_var(0), page, LogKind::Bitmap);
    sim.spawn("log", Cycles(10_000), move |host| {
        Box::pin(async move {
            let done = enable(&host, &log, &policy).await.unwrap();
            assert_eq!(done.protected.leaves, slot.bytes.0.div_ceil(page.bytes()));
        })
    });
    end(sim)
}

/// Time slices and grace periods of a platform, short enough for small guests to have many.
fn hurried<A: Arch>(platform: &Platform<A>, slice: u64, grace: u64) -> Platform<A> {
    let mut platform = platform.clone();
    (platform.costs.tick_period, platform.costs.rcu_grace) = (Cycles(slice), Cycles(grace));
    platform
}

fn every_strategy<A: Arch>(platform: &Platform<A>, memory: u64, slice: u64) {
    let all = GpaRange::new(Gpa::new(0), Bytes(memory));
    let platform = hurried(platform, slice, 2 * slice + 77);
    for (i, strategy) in strategies().into_iter().enumerate() {
        let (whole, worked_out) = zap(&platform, memory, all, strategy, Runs::Whole);
        let (single, none) = zap(&platform, memory, all, strategy, Runs::Single);
        assert_eq!((&whole, none), (&single, 0), "{}", strategy.name);
        // Leaves of a range and of the first of four passes; the others have too few entries to yield at.
        if [1, 2, 9].contains(&i) {
            let yields = whole.host.reschedules;
            assert!(worked_out > yields / 4 && worked_out < yields, "{}: {worked_out} of {yields}", strategy.name);
        }
    }
}

#[test]
fn zaps_of_every_strategy_on_every_format() {
    every_strategy(&x86(), 48.MiB(), 50_000);
    every_strategy(&arm64(), 48.MiB(), 90_000);
    every_strategy(&power(), 1.GiB(), 40_000);
}

/// Somebody else takes the lock now and then, at moments that have nothing to do with slices, and gives it back a while later.
fn beside_others(strategy: Strategy, slice: u64, every: u64, runs: Runs) -> (Outcome, u64) {
    let mut sim = idle(&hurried(&x86(), slice, slice), 48.MiB(), runs);
    sim.spawn("zap", Cycles(10_000), move |host| {
        Box::pin(async move {
            match strategy.target {
                Target::Range => {
                    let all = GpaRange::new(Gpa::new(0), Bytes(48.MiB()));
                    notifier::invalidate_range(&host, all, &strategy.policy).await;
                }
                Target::Root => memslot::zap_all_fast(&host, &strategy.policy).await.unwrap(),
            }
        })
    });
    sim.spawn("other", Cycles(0), move |host| {
        Box::pin(async move {
            for _ in 0..4 {
                host.sleep(Cycles(every)).await;
                host.lock(LockId::MMU, LockMode::Write).await;
                host.sleep(Cycles(every / 7)).await;
                host.unlock(LockId::MMU).await;
            }
        })
    });
    end(sim)
}

#[test]
fn zaps_beside_somebody_who_takes_the_lock() {
    let mut worked_out = 0;
    for strategy in strategies() {
        for every in [120_001, 700_003, 1_500_007] {
            let (whole, together) = beside_others(strategy, 9_000, every, Runs::Whole);
            worked_out += together;
            assert_eq!(whole, beside_others(strategy, 9_000, every, Runs::Single).0, "{} {every}", strategy.name);
        }
    }
    assert!(worked_out > 1000, "{worked_out}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn zaps_of_any_range(
        which in 0usize..10,
        arch in 0usize..3,
        start in 0u64..3_000,
        pages in 1u64..16_000,
        slice in 2_000u64..150_000,
        grace in 1u64..600_000,
    ) {
        let (strategy, run) = (strategies()[which], [Runs::Whole, Runs::Single]);
        fn both<A: Arch>(platform: &Platform<A>, memory: u64, pages: (u64, u64), run: [Runs; 2], strategy: Strategy) -> [Outcome; 2] {
            let page = platform.arch.two().geometry().page_size(Level::LAST).bytes();
            let start = pages.0 * page;
            let range = GpaRange::new(Gpa::new(start), Bytes((pages.1 * page).min(memory - start)));
            run.map(|runs| zap(platform, memory, range, strategy, runs).0)
        }
        let [whole, single] = match arch {
            0 => both(&hurried(&x86(), slice, grace), 64.MiB(), (start, pages), run, strategy),
            1 => both(&hurried(&arm64(), slice, grace), 64.MiB(), (start, pages), run, strategy),
            _ => both(&hurried(&power(), slice, grace), 1.GiB(), (start, pages), run, strategy),
        };
        prop_assert_eq!(whole, single);
    }

    #[test]
    fn logs_of_any_range(start in 0u64..3_000, pages in 1u64..16_000, slice in 1_000u64..60_000, protect: bool) {
        let start = start << 12;
        let slot = GpaRange::new(Gpa::new(start), Bytes((pages << 12).min(64.MiB() - start)));
        let tracking = if protect { Tracking::WriteProtect } else { Tracking::ModificationLog };
        let run = |runs| log(&hurried(&x86(), slice, slice), 64.MiB(), slot, tracking, runs).0;
        prop_assert_eq!(run(Runs::Whole), run(Runs::Single));
    }
}
