//! Work on a run of n entries equals work on n single entries: same words, cycles, yields and counters.

use std::cell::RefCell;
use std::rc::Rc;

use crate::common::{small_vm, x86};
use mmu_core::{ByteUnits, Bytes, Cycles, Format, Gpa, GpaRange, PageSize};
use mmu_sim::arch::Arch;
use mmu_sim::engine::{ActorStats, HostCounters, LockId, Runs, Sim, Stopped, VcpuStats};
use mmu_sim::experiment::zap::{Target, strategies};
use mmu_sim::experiment::{Platform, VmSpec, build};
use mmu_sim::protocols::aging::AgingPolicy;
use mmu_sim::protocols::collapse::CollapsePolicy;
use mmu_sim::protocols::dirty_log::{
    DirtyLog, DirtyPages, DirtyPolicy, HarvestFlush, LogKind, Manual, SplitWhen, Tracking, clear_dirty_log, disable,
    enable, get_dirty_log,
};
use mmu_sim::protocols::iter::Yield;
use mmu_sim::protocols::reclaim::{Scan, Scanned, pass, scan};
use mmu_sim::protocols::split::SplitPolicy;
use mmu_sim::protocols::teardown::free_unlinked;
use mmu_sim::protocols::unmap::{UnmapFlush, UnmapPolicy, unmap_range};
use mmu_sim::protocols::young::{Convention, YoungBitmap};
use mmu_sim::protocols::zap::{ZapPolicy, zap_leafs};
use mmu_sim::protocols::{memslot, notifier};
use mmu_sim::workload::Workload;
use proptest::prelude::*;

/// Everything that must not depend on how runs are done.
#[derive(PartialEq, Debug)]
struct Outcome {
    tables: u128,
    host: HostCounters,
    zap: Vec<ActorStats>,
    guest: Vec<VcpuStats>,
    root: mmu_core::Hpa,
    violations: Vec<String>,
}

fn outcome<A: Arch>(sim: &mut Sim<A>) -> Outcome {
    let outcome = any_outcome(sim);
    assert_eq!(outcome.violations, Vec::<String>::new());
    outcome
}

/// The same of a policy that violates something, which it must do alike.
fn any_outcome<A: Arch>(sim: &mut Sim<A>) -> Outcome {
    assert_eq!(sim.run(), Stopped::Finished);
    let (tables, host) = (sim.world().tables().digest(), *sim.world().counters());
    assert_eq!(sim.destroy(), Stopped::Finished);
    Outcome {
        tables,
        host,
        zap: sim.actors().map(|(_, stats)| *stats).collect(),
        guest: sim.vcpu_stats(),
        root: sim.world().root(),
        violations: sim.world().violations().iter().map(ToString::to_string).collect(),
    }
}

fn zap<A: Arch>(
    platform: &Platform<A>,
    vm: &VmSpec,
    target: Target,
    policy: ZapPolicy,
    range: (u64, u64),
    runs: Runs,
) -> Outcome {
    let mut sim = build(platform, vm).unwrap();
    sim.set_runs(runs);
    sim.spawn("zap", Cycles(10_000), move |host| {
        Box::pin(async move {
            match target {
                Target::Range => notifier::invalidate_range(&host, bytes(range), &policy).await,
                Target::Root => memslot::zap_all_fast(&host, &policy).await.unwrap(),
            }
        })
    });
    if policy.yielding == Yield::RestartAdvances { any_outcome(&mut sim) } else { outcome(&mut sim) }
}

/// Every place for the question.
const YIELDS: [Yield; 5] =
    [Yield::Never, Yield::AfterWorkOnly, Yield::NoProgressRule, Yield::YieldedGfn, Yield::RestartAdvances];

/// Leaves are zapped by somebody who does nothing else: no wait of his hides how long he goes without asking.
fn zap_alone(yielding: Yield, slice: u64, range: (u64, u64), runs: Runs) -> Outcome {
    let mut platform = x86();
    platform.costs.tick_period = Cycles(slice);
    let vm = VmSpec { workload: Workload::Idle, ..small_vm(8.MiB(), 1, 0) };
    let mut sim = build(&platform, &vm).unwrap();
    sim.set_runs(runs);
    sim.spawn("zap", Cycles(10_000), move |host| {
        Box::pin(async move {
            let policy = ZapPolicy { yielding, ..ZapPolicy::V5_17 };
            host.lock(LockId::MMU, policy.lock.mode()).await;
            let root = host.root().await;
            // Nobody has a translation of an idle guest.
            let _owed = zap_leafs(&host, root, bytes(range), &policy).await;
            host.unlock(LockId::MMU).await;
        })
    });
    outcome(&mut sim)
}

/// A walk that asks behind its work asks before it reads the next entry, one that asks first does so afterwards.
#[test]
fn the_longest_stretch_ends_where_the_loop_asks() {
    for yielding in YIELDS {
        for (pages, slice) in [(1, 1 << 40), (2, 1 << 40), (3, 1 << 40), (700, 1 << 40), (700, 20_000)] {
            let run = |runs| zap_alone(yielding, slice, (100 << 12, pages << 12), runs);
            assert_eq!(run(Runs::Whole), run(Runs::Single), "{yielding:?}, {pages} pages, {slice}");
        }
    }
    // It asks for the first time right after the first leaf has gone, be it alone or one of many.
    let longest = |pages: u64| {
        let zap = zap_alone(Yield::AfterWorkOnly, 1 << 40, (0, pages << 12), Runs::Whole).zap;
        zap[0].longest_unscheduled
    };
    assert_eq!(longest(1), longest(512));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_stretch(
        start in 0u64..1_500,
        pages in 1u64..1_500,
        slice in prop_oneof![1_000u64..60_000, Just(1 << 40)],
        which in 0usize..5,
    ) {
        let range = (start << 12, (pages << 12).min(8.MiB() - (start << 12)));
        let run = |runs| zap_alone(YIELDS[which], slice, range, runs);
        prop_assert_eq!(run(Runs::Whole), run(Runs::Single));
    }
}

fn bytes((start, bytes): (u64, u64)) -> GpaRange {
    GpaRange::new(Gpa::new(start), Bytes(bytes))
}

/// Unmaps a range through the visitor.
fn unmap<A: Arch>(platform: &Platform<A>, vm: &VmSpec, policy: UnmapPolicy, range: (u64, u64), runs: Runs) -> Outcome {
    let mut sim = build(platform, vm).unwrap();
    sim.set_runs(runs);
    sim.spawn("unmap", Cycles(10_000), move |host| {
        Box::pin(async move { unmap_range(&host, bytes(range), policy).await })
    });
    outcome(&mut sim)
}

#[test]
fn unmapping_frees_empty_tables_and_keeps_the_rest() {
    let platform = x86();
    let vm = VmSpec { workload: Workload::Idle, ..small_vm(24.MiB(), 1, 0) };
    for flush in [UnmapFlush::EachEntry, UnmapFlush::Range] {
        let policy = UnmapPolicy { flush, chunk: Bytes(2.MiB()), ..UnmapPolicy::V6_6 };
        // From the middle of one table to the middle of another, with two whole ones between.
        let run = |runs| unmap(&platform, &vm, policy, (3.MiB(), 6.MiB()), runs);
        let whole = run(Runs::Whole);
        assert_eq!(whole.host.zapped_leaves, 6.MiB() >> 12);
        let before_the_end = whole.host.zapped_tables;
        assert_eq!(before_the_end, 2, "tables of 4-6M and 6-8M are empty");
        assert_eq!(whole, run(Runs::Single));
    }
}

#[test]
fn every_strategy_on_an_idle_guest() {
    let platform = x86();
    let vm = VmSpec { workload: Workload::Idle, ..small_vm(24.MiB(), 2, 0) };
    for strategy in strategies() {
        let run = |runs| zap(&platform, &vm, strategy.target, strategy.policy, (1.MiB(), 7.MiB()), runs);
        assert_eq!(run(Runs::Whole), run(Runs::Single), "{}", strategy.name);
    }
}

#[test]
fn every_strategy_with_busy_vcpus_and_short_time_slices() {
    let mut platform = x86();
    platform.costs.tick_period = Cycles(50_000);
    let vm = small_vm(24.MiB(), 2, 5_000);
    for strategy in strategies() {
        let run = |runs| zap(&platform, &vm, strategy.target, strategy.policy, (0, 8.MiB()), runs);
        assert_eq!(run(Runs::Whole), run(Runs::Single), "{}", strategy.name);
    }
}

/// Ages a range once per policy while vCPUs run, and tells what each pass found beside everything else.
fn age<A: Arch>(
    platform: &Platform<A>,
    vm: &VmSpec,
    range: GpaRange,
    batch: u64,
    runs: Runs,
) -> (Outcome, Vec<Scanned>) {
    let mut sim = build(platform, vm).unwrap();
    sim.set_runs(runs);
    let found = Rc::new(RefCell::new(Vec::new()));
    let into = Rc::clone(&found);
    sim.spawn("age", Cycles(10_000), move |host| {
        Box::pin(async move {
            for policy in [AgingPolicy::V6_12, AgingPolicy::V6_15, AgingPolicy::YU_V2, AgingPolicy::X42] {
                let mut young = YoungBitmap::new(range, PageSize::SIZE_4K, Convention::V2);
                let batches = scan(&host, &mut young, Scan::Walk { batch }, &policy, None).await;
                let whole = pass(&host, range, &policy).await;
                into.borrow_mut().extend([batches, whole]);
            }
        })
    });
    let outcome = outcome(&mut sim);
    (outcome, found.take())
}

#[test]
fn aging_with_busy_vcpus() {
    let platform = x86();
    // Young and old pages mixed, set by walks while the ager is under way; and uniform tables behind them.
    for (accesses, batch) in [(0, 64), (20_000, 1), (20_000, 64), (20_000, 5_000)] {
        let vm = small_vm(24.MiB(), 2, accesses);
        let range = GpaRange::new(Gpa::new(0), Bytes(24.MiB()));
        let run = |runs| age(&platform, &vm, range, batch, runs);
        let whole = run(Runs::Whole);
        assert_eq!(whole, run(Runs::Single), "batch {batch}");
        assert!(whole.1.iter().all(|scanned| scanned.pages == 6_144 && scanned.aged.leaves == 6_144));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn aging_any_range(start in 0u64..6_000, pages in 1u64..6_000, batch in 1u64..700, accesses in 0u64..4_000) {
        let platform = x86();
        let vm = small_vm(24.MiB(), 2, accesses);
        let bytes = Bytes((pages << 12).min(vm.memory.0 - (start << 12)));
        let range = GpaRange::new(Gpa::new(start << 12), bytes);
        let run = |runs| age(&platform, &vm, range, batch, runs);
        prop_assert_eq!(run(Runs::Whole), run(Runs::Single));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_range_any_slice(
        start in 0u64..6_000,
        pages in 1u64..6_000,
        slice in 1_000u64..200_000,
        which in 0usize..10,
        yielding in 0usize..10,
        huge: bool,
    ) {
        let mut platform = x86();
        platform.costs.tick_period = Cycles(slice);
        let page = if huge { PageSize::SIZE_2M } else { PageSize::SIZE_4K };
        let vm = VmSpec { workload: Workload::Idle, page, ..small_vm(32.MiB(), 1, 0) };
        let strategy = strategies()[which];
        // Its own, or any.
        let yielding = YIELDS.get(yielding).copied().unwrap_or(strategy.policy.yielding);
        let policy = ZapPolicy { yielding, ..strategy.policy };
        let range = (start << 12, (pages << 12).min(vm.memory.0 - (start << 12)));
        let run = |runs| zap(&platform, &vm, strategy.target, policy, range, runs);
        prop_assert_eq!(run(Runs::Whole), run(Runs::Single));
    }
}

/// Switches logging on over part of a slot whose pages are of one size, marks a stretch dirty, and reads and clears the log.
fn log_dirty(
    vm: &VmSpec,
    slice: u64,
    policy: DirtyPolicy,
    (start, pages): (u64, u64),
    (first, count): (u64, u64),
    runs: Runs,
) -> (Outcome, Vec<DirtyPages>) {
    let mut platform = x86();
    platform.costs.tick_period = Cycles(slice);
    let mut sim = build(&platform, vm).unwrap();
    sim.set_runs(runs);
    let slot = GpaRange::new(Gpa::new(start << 12), Bytes(pages << 12));
    let log = DirtyLog::new(slot, sim.new_var(0), PageSize::SIZE_4K, LogKind::Bitmap);
    let got = Rc::new(RefCell::new(Vec::new()));
    let out = Rc::clone(&got);
    sim.spawn("log", Cycles(10_000), move |host| {
        Box::pin(async move {
            enable(&host, &log, &policy).await.unwrap();
            for page in first..(first + count).min(pages) {
                let gpa = slot.start + (page << 12);
                mmu_sim::protocols::dirty_log::mark_page_dirty(&host, &log, gpa).await;
            }
            for _ in 0..2 {
                let dirty = get_dirty_log(&host, &log, &policy).await.unwrap();
                if policy.manual == Manual::On {
                    let cleared = clear_dirty_log(&host, &log, &policy, (first / 2, count), &dirty).await.unwrap();
                    out.borrow_mut().push(cleared);
                }
                out.borrow_mut().push(dirty);
            }
            disable(&host, &log, &policy, PageSize::SIZE_2M).await.unwrap();
        })
    });
    let outcome = outcome(&mut sim);
    (outcome, got.take())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_dirty_log(
        start in 0u64..3_000,
        pages in 1u64..5_000,
        dirty in (0u64..5_000, 0u64..400),
        slice in 1_000u64..200_000,
        which in 0usize..3,
        manual: bool,
        each: bool,
        huge: bool,
        busy: bool,
        collapse in 0usize..3,
        eager: bool,
    ) {
        let page = if huge { PageSize::SIZE_2M } else { PageSize::SIZE_4K };
        let accesses = if busy { 3_000 } else { 0 };
        let vm = VmSpec { page, ..small_vm(32.MiB(), 1, accesses) };
        let policy = DirtyPolicy {
            tracking: [Tracking::WriteProtect, Tracking::ModificationLog, Tracking::Scan][which],
            manual: if manual { Manual::On } else { Manual::Off },
            flush: if each { HarvestFlush::EachEntry } else { HarvestFlush::Slot },
            split: if eager { SplitWhen::Eagerly(SplitPolicy::X86_5_18) } else { SplitWhen::Lazily },
            collapse: [None, Some(CollapsePolicy::X86_5_14), Some(CollapsePolicy::X86_6_13)][collapse],
            ..DirtyPolicy::X86_PML
        };
        let run = |runs| log_dirty(&vm, slice, policy, (start, pages), dirty, runs);
        prop_assert_eq!(run(Runs::Whole), run(Runs::Single));
    }
}

/// A terabyte of small pages is write-protected, read and cleared at the speed of runs.
#[test]
fn a_terabyte_is_logged_in_no_time() {
    let vm = VmSpec { workload: Workload::Idle, ..small_vm(1.TiB(), 1, 0) };
    for tracking in [Tracking::WriteProtect, Tracking::ModificationLog, Tracking::Scan] {
        let policy = DirtyPolicy { tracking, split: SplitWhen::Lazily, collapse: None, ..DirtyPolicy::X86_PML };
        let mut sim = build(&x86(), &vm).unwrap();
        let slot = GpaRange::new(Gpa::new(0), Bytes(1.TiB()));
        let log = DirtyLog::new(slot, sim.new_var(0), PageSize::SIZE_4K, LogKind::Bitmap);
        let protected = Rc::new(RefCell::new(0));
        let out = Rc::clone(&protected);
        sim.spawn("log", Cycles(0), move |host| {
            Box::pin(async move {
                let policy = DirtyPolicy { initially: mmu_sim::protocols::dirty_log::Initially::Clean, ..policy };
                *out.borrow_mut() = enable(&host, &log, &policy).await.unwrap().protected.leaves;
                assert_eq!(get_dirty_log(&host, &log, &policy).await.unwrap().count(), 0);
                disable(&host, &log, &policy, PageSize::SIZE_4K).await.unwrap();
                // Again, with all pages dirty to begin with: one run of them.
                let policy = DirtyPolicy {
                    initially: mmu_sim::protocols::dirty_log::Initially::AllSet,
                    manual: Manual::On,
                    ..policy
                };
                enable(&host, &log, &policy).await.unwrap();
                let dirty = get_dirty_log(&host, &log, &policy).await.unwrap();
                if policy.tracking != Tracking::Scan {
                    assert_eq!(dirty.runs(), [(0, 1.TiB() >> 12)]);
                }
                clear_dirty_log(&host, &log, &policy, (0, log.pages()), &dirty).await.unwrap();
                disable(&host, &log, &policy, PageSize::SIZE_4K).await.unwrap();
            })
        });
        outcome(&mut sim);
        assert_eq!(*protected.borrow(), 1.TiB() >> 12, "{tracking:?}");
    }
}

/// A block where a fully populated table was, in the order of 5.10: the walk through the old table is a run.
#[test]
fn tearing_a_table_down_costs_what_its_entries_cost() {
    let platform = x86();
    let vm = VmSpec { workload: Workload::Idle, ..small_vm(24.MiB(), 1, 0) };
    let run = |runs| {
        let mut sim = build(&platform, &vm).unwrap();
        sim.set_runs(runs);
        sim.spawn("tear down", Cycles(10_000), move |host| {
            Box::pin(async move {
                let format = *host.format();
                let mut table = host.root().await;
                let mut level = format.geometry().root();
                // Down to the table above the last one of the first gigabyte.
                while level.index() > 2 {
                    table = format.next_table(level, host.read(table).await);
                    level = level.down().unwrap();
                }
                let word = host.xchg(table, 0).await;
                host.flush_vm().await;
                free_unlinked(&host, format.next_table(level, word), level.down().unwrap()).await;
            })
        });
        outcome(&mut sim)
    };
    let whole = run(Runs::Whole);
    assert_eq!(whole, run(Runs::Single));
    assert_eq!(whole.host.tables_freed, 12 + 1, "twelve tables of pages and the one above them");
}

/// Time slices that end in front of a table: its first leaf is not asked again whether to yield.
#[test]
fn a_slice_that_ends_in_front_of_a_table() {
    let strategy = strategies()[9];
    for slice in [144_339, 158_299] {
        let mut platform = x86();
        platform.costs.tick_period = Cycles(slice);
        let vm = VmSpec { workload: Workload::Idle, page: PageSize::SIZE_4K, ..small_vm(32.MiB(), 1, 0) };
        let run = |runs| zap(&platform, &vm, strategy.target, strategy.policy, (0, 4096), runs);
        assert_eq!(run(Runs::Whole), run(Runs::Single), "{slice}");
    }
}

/// The old place for the question behind work, in the loop over roots, where it is asked first and nothing makes the walk get on.
#[test]
fn a_root_zapped_in_passes_with_a_question_that_stops_it() {
    for slice in [700, 1_000, 3_000] {
        let mut platform = x86();
        platform.costs.tick_period = Cycles(slice);
        let vm = VmSpec { workload: Workload::Idle, ..small_vm(32.MiB(), 1, 0) };
        let policy = ZapPolicy { yielding: Yield::AfterWorkOnly, ..strategies()[9].policy };
        let run = |runs| zap(&platform, &vm, Target::Root, policy, (0, 0), runs);
        assert_eq!(run(Runs::Whole), run(Runs::Single), "{slice}");
    }
}
