//! Coalescing: every order, maintenance, flush and level of `FEAT_BBM`, to the cycle and to the page that was never cleaned.

use std::cell::Cell;
use std::rc::Rc;

use crate::common::{power, small_vm, x86};
use arch_arm64_s2::{BbmLevel, Features, Stage1, Stage1Config, Stage2, Stage2Config};
use mmu_core::machine::Machine;
use mmu_core::{
    AccessKind, ByteUnits, Bytes, Cycles, Format, Gpa, GpaRange, Gva, Hpa, HpaRange, Leaf, Level, NotPresent, PageSize,
    Perms,
};
use mmu_sim::arch::{Arch, Arch2};
use mmu_sim::checker::Violation;
use mmu_sim::engine::{
    GuestCaches, GuestPaging, Host, HostAccess, HostCounters, LockId, LockMode, Reference, Sim, Stopped, VcpuId,
    VcpuStats, Watch,
};
use mmu_sim::experiment::{Platform, Populate, VmSpec, build, build_without_threads};
use mmu_sim::protocols::coalesce::{
    AfterReplace, BlockFlush, CacheMaintenance, Changed, CoalescePolicy, EntryAt, Freeing, Order, References, Resize,
    Walkers, block_to_table, table_to_block,
};
use mmu_sim::protocols::fault::{ConflictAbort, FaultPolicy, Faults, LevelChoice, LoggedBy, TableInTheWay};
use mmu_sim::protocols::protect::write_protect_range;
use mmu_sim::protocols::slots::{Faultin, faultin_pfn};
use mmu_sim::protocols::vcpu::{Ran, run};
use mmu_sim::workload::{GuestAccess, GuestWork, Workload};

type Arm = Arch2<Stage1, Stage2>;

const BLOCK: Level = Level::new(1);

/// Neoverse N1 with these features.
fn arm(bbm: BbmLevel, fwb: bool) -> Platform<Arm> {
    let features = Features { bbm, fwb, ..Features::default() };
    let one = Stage1Config::default().build().unwrap();
    let two = Stage2Config { features, ..Stage2Config::default() }.build().unwrap();
    Platform::new(Arch2 { name: "arm64", one, two }, &Machine::builtin("arm-neoverse-n1").unwrap())
}

fn idle(memory: u64, page: PageSize) -> VmSpec {
    VmSpec { page, guest: GuestPaging::Flat, workload: Workload::Idle, ..small_vm(memory, 1, 0) }
}

/// The entry of the first block of guest memory, whatever it is.
async fn first_block<F: Format>(host: &Host<F>) -> (EntryAt, u64) {
    let format = *host.format();
    let mut table = host.root().await;
    let mut level = format.geometry().root();
    while level > BLOCK {
        table = format.next_table(level, host.read(table).await);
        level = level.down().unwrap();
    }
    (EntryAt { ptep: table, level, gpa: Gpa::new(0) }, host.read(table).await)
}

fn block_word<F: Format>(format: &F, output: Hpa) -> u64 {
    let leaf = Leaf { output, perms: Perms::RWX.with(Perms::DIRTY), accessed: true, attrs: F::Attrs::default() };
    format.encode_leaf(BLOCK, &leaf).unwrap()
}

/// What is left after a protocol has run alone.
struct After {
    counters: HostCounters,
    /// The first block's word.
    word: u64,
    changed: Changed,
    violations: Vec<Violation>,
}

/// Coalesces the first block of an idle guest that is mapped by pages.
fn coalesce<A: Arch>(platform: &Platform<A>, policy: CoalescePolicy, walkers: Walkers) -> After {
    let granule = platform.arch.two().geometry().page_size(Level::LAST);
    alone(platform, granule, move |host, at, old| {
        Box::pin(async move {
            let first = host.format().next_table(at.level, old);
            let output = host.format().output(Level::LAST, host.read(first).await);
            let new = block_word(host.format(), output);
            table_to_block(&host, at, old, new, &policy, walkers).await
        })
    })
}

type Work<F> = Box<dyn FnOnce(Host<F>, EntryAt, u64) -> std::pin::Pin<Box<dyn Future<Output = Changed>>>>;

fn alone<A: Arch>(
    platform: &Platform<A>,
    page: PageSize,
    work: impl FnOnce(Host<A::Two>, EntryAt, u64) -> std::pin::Pin<Box<dyn Future<Output = Changed>>> + 'static,
) -> After {
    let work: Work<A::Two> = Box::new(work);
    let block = platform.arch.two().geometry().page_size(BLOCK).bytes();
    let mut sim = build(platform, &idle(4 * block, page)).unwrap();
    let found = Rc::new(Cell::new((0, Changed::Raced)));
    let slot = Rc::clone(&found);
    sim.spawn("coalesce", Cycles(1000), move |host| {
        Box::pin(async move {
            host.lock(LockId::MMU, LockMode::Write).await;
            host.rcu_read_lock().await;
            let (at, old) = first_block(&host).await;
            let changed = work(host.clone(), at, old).await;
            slot.set((host.read(at.ptep).await, changed));
            host.rcu_read_unlock().await;
            host.unlock(LockId::MMU).await;
        })
    });
    assert_eq!(sim.run(), Stopped::Finished);
    let counters = *sim.world().counters();
    assert_eq!(sim.destroy(), Stopped::Finished);
    let (word, changed) = found.get();
    let violations = sim.world().violations().to_vec();
    After { counters, word, changed, violations }
}

#[test]
fn the_invalid_window_is_what_its_parts_cost() {
    let platform = arm(BbmLevel::Level0, false);
    let costs = &platform.costs;
    let window = |policy| {
        let after = coalesce(&platform, policy, Walkers::Exclusive);
        assert_eq!((after.changed, after.counters.breaks), (Changed::Done, 1));
        assert_eq!(after.violations, []);
        assert!(platform.arch.two().is_leaf(BLOCK, after.word));
        after.counters.longest_break
    };
    let flush = costs.broadcast_issue + costs.broadcast_barrier;
    let least = costs.store + flush + costs.store;
    let walk = (costs.visit + costs.atomic).times(512) + costs.free_table;
    let clean = costs.clean_4k.times(512);
    assert_eq!(window(CoalescePolicy::RFC_2021), least);
    assert_eq!(window(CoalescePolicy::V5_10), least + walk);
    assert_eq!(window(CoalescePolicy::V5_14), least + walk + clean);
    assert_eq!(window(CoalescePolicy::V6_2), least + clean);
    // The order alone is worth a sixteenth of the maintenance that the RFC left out.
    assert_eq!((walk, clean), (Cycles(32_556), Cycles(537_600)));
}

#[test]
fn every_fixed_form_frees_the_old_table_once() {
    let none = |order, freeing| CoalescePolicy { order, freeing, ..CoalescePolicy::V6_6 };
    let platform = arm(BbmLevel::Level2, true);
    for policy in [
        none(Order::UnmapFirst, Freeing::Immediate),
        none(Order::InstallFirst, Freeing::Immediate),
        none(Order::UnmapFirst, Freeing::RcuCallback),
        none(Order::InstallFirst, Freeing::RcuCallback),
        none(Order::InstallFirst, Freeing::MarkedRcu),
        CoalescePolicy::BBM_1,
        CoalescePolicy::BBM_2,
    ] {
        let walkers = if policy.freeing == Freeing::Immediate {
            [Walkers::Exclusive; 2]
        } else {
            [Walkers::Exclusive, Walkers::Shared]
        };
        for walkers in walkers {
            policy.check(platform.arch.two(), walkers).unwrap();
            let after = coalesce(&platform, policy, walkers);
            assert_eq!((after.changed, after.violations), (Changed::Done, vec![]), "{policy:?}");
            // The mark of FEAT_BBM level 1 is gone at the end.
            assert_eq!(after.word, block_word(platform.arch.two(), platform.arch.two().output(BLOCK, after.word)));
        }
    }
}

#[test]
fn references_that_do_not_balance_leak_or_free_twice() {
    let platform = arm(BbmLevel::Level0, true);
    let forgets = CoalescePolicy { references: References::ForgetsLast, ..CoalescePolicy::V6_2 };
    assert_eq!(coalesce(&platform, forgets, Walkers::Shared).violations, [Violation::Leak { tables: 1 }]);

    // A race for a block is lost; the caller gives the table back, as it must.
    let lose = |references| {
        let policy = CoalescePolicy { references, ..CoalescePolicy::V6_2 };
        alone(&platform, PageSize::SIZE_2M, move |host, at, old| {
            Box::pin(async move {
                let table = host.alloc_table(Level::LAST).await.unwrap();
                let changed = block_to_table(&host, at, old ^ 1 << 55, table, &policy, Walkers::Shared).await;
                let frames = mmu_sim::engine::Frames { first: table, count: 1, level: Level::LAST, bytes: 4096 };
                host.free_tables(frames).await;
                changed
            })
        })
    };
    let exact = lose(References::Exact);
    assert_eq!((exact.changed, exact.violations), (Changed::Raced, vec![]));
    let twice = lose(References::PutTwice);
    assert!(matches!(twice.violations[..], [Violation::TableFree { .. }]), "{:?}", twice.violations);
}

#[test]
fn policies_that_a_format_gives_no_meaning_say_so() {
    let (x86, power) = (x86(), power());
    let (plain, level1, level2) =
        (arm(BbmLevel::Level0, false), arm(BbmLevel::Level1, true), arm(BbmLevel::Level2, true));
    let two = |platform: &Platform<Arm>| platform.arch.two;
    for (policy, platform) in [
        (CoalescePolicy::BBM_1, two(&plain)),
        (CoalescePolicy::BBM_2, two(&plain)),
        (CoalescePolicy::BBM_2, two(&level1)),
        (CoalescePolicy { maintenance: CacheMaintenance::NotNeeded, ..CoalescePolicy::V6_6 }, two(&plain)),
    ] {
        let error = policy.check(&platform, Walkers::Shared).unwrap_err();
        assert!(error.to_string().contains("; "), "what and remedy: {error}");
    }
    CoalescePolicy::BBM_1.check(&two(&level1), Walkers::Shared).unwrap();
    CoalescePolicy::BBM_2.check(&two(&level2), Walkers::Shared).unwrap();
    CoalescePolicy::X86.check(x86.arch.two(), Walkers::Shared).unwrap();
    assert!(CoalescePolicy::BBM_1.check(x86.arch.two(), Walkers::Shared).is_err());
    CoalescePolicy::POWER.check(power.arch.two(), Walkers::Exclusive).unwrap();
    assert!(CoalescePolicy::POWER.check(power.arch.two(), Walkers::Shared).is_err());
    assert!(CoalescePolicy::X86.check(power.arch.two(), Walkers::Exclusive).is_err());
    assert_eq!(CoalescePolicy::of(x86.arch.two()), CoalescePolicy::X86);
    assert_eq!(CoalescePolicy::of(&two(&plain)), CoalescePolicy::V6_6);
}

#[test]
fn x86_replaces_in_place_and_power_breaks_first() {
    let after = coalesce(&x86(), CoalescePolicy::X86, Walkers::Shared);
    assert_eq!((after.changed, after.counters.breaks, after.violations), (Changed::Done, 0, vec![]));
    let power = power();
    let policy = CoalescePolicy::of(power.arch.two());
    let walkers =
        if policy.check(power.arch.two(), Walkers::Shared).is_ok() { Walkers::Shared } else { Walkers::Exclusive };
    let after = coalesce(&power, policy, walkers);
    assert_eq!((after.changed, after.counters.breaks, after.violations), (Changed::Done, 1, vec![]));
}

#[test]
fn skipping_the_break_is_noticed() {
    let policy = CoalescePolicy { resize: Resize::Unchecked, ..CoalescePolicy::V6_6 };
    let after = coalesce(&arm(BbmLevel::Level0, true), policy, Walkers::Shared);
    assert!(matches!(after.violations[..], [Violation::MissingBreak { .. }]), "{:?}", after.violations);
    assert_eq!(coalesce(&arm(BbmLevel::Level2, true), policy, Walkers::Shared).violations, []);
}

// ---- a guest around it ----

fn access(page: u64, kind: AccessKind) -> GuestAccess {
    GuestAccess { gva: Gva::new(page << 12), kind }
}

/// What a guest saw.
struct Seen {
    ran: Vec<Ran>,
    stats: VcpuStats,
    counters: HostCounters,
    violations: Vec<Violation>,
}

/// One vCPU, its caches off, on memory that is backed by large pages: it writes `logged` while logging is on, and touches `then` afterwards.
fn log_and_coalesce(platform: &Platform<Arm>, policy: FaultPolicy, logged: &[u64], then: &[u64]) -> Seen {
    log_and_touch(platform, policy, logged, (then, AccessKind::Read))
}

fn log_and_touch(
    platform: &Platform<Arm>,
    policy: FaultPolicy,
    logged: &[u64],
    (then, kind): (&[u64], AccessKind),
) -> Seen {
    let vm = VmSpec { populate: Populate::ByFaults, ..idle(16.MiB(), PageSize::SIZE_2M) };
    let mut sim: Sim<Arm> = build_without_threads(platform, &vm).unwrap();
    sim.set_watch(Watch::Accesses);
    let logging = sim.new_var(1);
    let list = |pages: &[u64], kind| GuestWork::List(pages.iter().map(|&page| access(page, kind)).collect());
    let (logged, then) = (list(logged, AccessKind::Write), list(then, kind));
    let ran = Rc::new(Cell::new(Vec::new()));
    let slot = Rc::clone(&ran);
    let vcpu = VcpuId(0);
    sim.spawn_vcpu(vcpu, move |host| {
        Box::pin(async move {
            let mut faults = Faults::with_hooks(vcpu, policy, LoggedBy(logging));
            host.set_guest_caches(vcpu, GuestCaches::Off).await;
            host.assign(vcpu, logged);
            let first = run(&host, vcpu, &mut faults).await;
            if kind == AccessKind::Write {
                // The log is read for the last time: what was written is write-protected again.
                write_protect_range(&host, GpaRange::new(Gpa::new(0), Bytes(16.MiB()))).await;
            }
            host.store_release(logging, 0).await;
            host.assign(vcpu, then);
            let second = run(&host, vcpu, &mut faults).await;
            faults.release(&host).await;
            slot.set(vec![first, second]);
        })
    });
    assert_eq!(sim.run(), Stopped::Finished);
    let (stats, counters) = (sim.vcpu_stats()[0], *sim.world().counters());
    assert_eq!(sim.destroy(), Stopped::Finished);
    let violations = sim.world().violations().to_vec();
    Seen { ran: ran.take(), stats, counters, violations }
}

fn faults(coalesce: CoalescePolicy, lock: LockMode) -> FaultPolicy {
    FaultPolicy {
        level: LevelChoice::ByBacking,
        tables: TableInTheWay::Coalesce,
        coalesce,
        ..FaultPolicy::new(lock, PageSize::SIZE_2M)
    }
}

/// The counter-example that the RFC of 2021 was dropped for: one page is mapped while logging is on; the block that replaces its table maps 511 pages that
/// nobody ever cleaned.
#[test]
fn a_partly_populated_table_shows_old_data_exactly_where_maintenance_is_skipped() {
    let platform = arm(BbmLevel::Level0, false);
    let all: Vec<u64> = (0..512).collect();
    let run = |policy: CoalescePolicy, logged: &[u64]| {
        let lock = if policy.freeing == Freeing::Immediate { LockMode::Write } else { LockMode::Read };
        log_and_coalesce(&platform, faults(policy, lock), logged, &all)
    };
    for policy in [CoalescePolicy::V5_10, CoalescePolicy::V5_14, CoalescePolicy::V6_2, CoalescePolicy::V6_6] {
        let seen = run(policy, &[0]);
        assert_eq!((seen.ran, seen.violations), (vec![Ran::Done; 2], vec![]), "{policy:?}");
    }
    // Fully populated, every page was cleaned when it was mapped small: skipping is redundant.
    let seen =
        log_and_touch(&platform, faults(CoalescePolicy::RFC_2021, LockMode::Write), &all, (&all, AccessKind::Write));
    assert_eq!((seen.violations, seen.counters.breaks), (vec![], 1));
    // Page 1 faults; it and every page but 0 hold old data.
    let seen = run(CoalescePolicy::RFC_2021, &[0]);
    let stale: Vec<u64> = seen
        .violations
        .iter()
        .map(|violation| match violation {
            Violation::StaleData { input, .. } => input >> 12,
            other => panic!("{other}"),
        })
        .collect();
    assert_eq!(stale[..8], [1, 2, 3, 4, 5, 6, 7, 8]);
    // With FEAT_S2FWB there is nothing to clean and nothing to see.
    let policy = CoalescePolicy { maintenance: CacheMaintenance::NotNeeded, ..CoalescePolicy::RFC_2021 };
    let seen = log_and_coalesce(&arm(BbmLevel::Level0, true), faults(policy, LockMode::Write), &[0], &all);
    assert_eq!((seen.violations, seen.counters.cleaned_bytes), (vec![], 0));
}

#[test]
fn maintenance_is_made_once_by_the_mapper_and_for_every_fault_before() {
    let platform = arm(BbmLevel::Level0, false);
    let cleaned =
        |policy, lock| log_and_coalesce(&platform, faults(policy, lock), &[0, 1], &[2, 3]).counters.cleaned_bytes;
    // Two pages, then the block that holds them.
    assert_eq!(cleaned(CoalescePolicy::V6_6, LockMode::Read), 2 * 4.KiB() + 2.MiB());
    assert_eq!(cleaned(CoalescePolicy::V5_10, LockMode::Write), 2 * 4.KiB() + 2.MiB());
}

/// A02: the block is installed with the translations of the pages still cached.
#[test]
fn one_page_flushed_leaves_conflicts_behind() {
    let platform = arm(BbmLevel::Level0, true);
    let coalesce = CoalescePolicy { flush: BlockFlush::FirstPage, ..CoalescePolicy::V6_2 };
    let logged: Vec<u64> = (0..8).collect();
    // Page 9 faults and brings the block; pages 1 to 7 are cached both ways.
    let run = |policy: FaultPolicy| log_and_coalesce(&platform, policy, &logged, &[9, 0, 3, 4]);
    let policy = faults(coalesce, LockMode::Read);

    let seen = run(FaultPolicy { conflict: ConflictAbort::Unhandled, ..policy });
    assert_eq!(seen.ran, [Ran::Done, Ran::Failed]);
    assert_eq!((seen.stats.conflicts, seen.counters.failed_runs), (1, 1));
    assert!(matches!(seen.violations[..], [Violation::TlbConflict { vcpu: 0, gpa, .. }] if gpa == Gpa::new(0x3000)));

    // A flush of the whole VM on the processor that met it suffices, and is needed once.
    let seen = run(FaultPolicy { conflict: ConflictAbort::LocalFlush, ..policy });
    assert_eq!((seen.ran, seen.violations, seen.stats.conflicts), (vec![Ran::Done; 2], vec![], 1));
    let remote = seen.counters.remote_flushes;
    let seen = run(FaultPolicy { conflict: ConflictAbort::BroadcastFlush, ..policy });
    assert_eq!((seen.violations, seen.counters.remote_flushes), (vec![], remote + 1));

    for flush in [BlockFlush::Vmid, BlockFlush::Range] {
        let fixed = faults(CoalescePolicy { flush, ..CoalescePolicy::V6_2 }, LockMode::Read);
        let seen = run(fixed);
        assert_eq!((seen.stats.conflicts, seen.violations), (0, vec![]), "{flush:?}");
    }
}

/// A15: the walk goes on into the table that it has just had freed.
#[test]
fn following_a_saved_table_is_a_use_after_free_where_freeing_does_not_wait() {
    let run = |after, freeing| {
        let coalesce = CoalescePolicy { after, freeing, ..CoalescePolicy::V5_14 };
        log_and_coalesce(&arm(BbmLevel::Level0, true), faults(coalesce, LockMode::Write), &[0], &[1])
    };
    assert_eq!(run(AfterReplace::Reload, Freeing::Immediate).violations, []);
    let used = run(AfterReplace::FollowSaved, Freeing::Immediate).violations;
    assert!(matches!(used.first(), Some(Violation::TableUse { .. })), "{used:?}");
}

#[test]
fn feat_bbm_has_no_window() {
    for (level, coalesce) in [(BbmLevel::Level1, CoalescePolicy::BBM_1), (BbmLevel::Level2, CoalescePolicy::BBM_2)] {
        let policy = FaultPolicy { conflict: ConflictAbort::LocalFlush, ..faults(coalesce, LockMode::Read) };
        let seen = log_and_coalesce(&arm(level, true), policy, &[0, 600, 601], &[1, 700, 3]);
        assert_eq!((seen.ran, seen.violations), (vec![Ran::Done; 2], vec![]));
        assert_eq!(seen.counters.breaks, 0);
    }
}

#[test]
fn cleaning_makes_data_visible_and_writing_hides_it_again() {
    let platform = arm(BbmLevel::Level0, false);
    let mut sim = build_without_threads(&platform, &idle(4.MiB(), PageSize::SIZE_4K)).unwrap();
    let vcpu = VcpuId(0);
    sim.spawn_vcpu(vcpu, move |host| {
        Box::pin(async move {
            let mut faults = Faults::new(vcpu, FaultPolicy::new(LockMode::Read, PageSize::SIZE_4K));
            host.set_guest_caches(vcpu, GuestCaches::Off).await;
            // A monitor loads an image into three pages of a guest that was mapped, and so cleaned, before.
            host.host_writes(GpaRange::new(Gpa::new(0x1000), Bytes(0x3000))).await;
            let pages = (0..6).map(|page| access(page, AccessKind::Read)).collect();
            host.assign(vcpu, GuestWork::List(pages));
            assert_eq!(run(&host, vcpu, &mut faults).await, Ran::Done);
            let section = host.srcu_read_lock().await;
            let found = faultin_pfn(&host, Gpa::new(0x2000), HostAccess::Read, Reference::None).await;
            host.srcu_read_unlock(section).await;
            let Faultin::Page { page, .. } = found else { panic!("{found:?}") };
            host.clean(HpaRange::new(page.host, Bytes(0x2000))).await;
            host.assign(vcpu, GuestWork::List((0..6).map(|page| access(page, AccessKind::Read)).collect()));
            assert_eq!(run(&host, vcpu, &mut faults).await, Ran::Done);
            faults.release(&host).await;
        })
    });
    assert_eq!(sim.run(), Stopped::Finished);
    let world = sim.world();
    let stale = world.violations().iter().map(|violation| match violation {
        Violation::StaleData { input, .. } => input >> 12,
        other => panic!("{other}"),
    });
    assert_eq!(stale.collect::<Vec<_>>(), [1, 2, 3, 1]);
    assert!(platform.arch.two().encode_not_present(NotPresent::Frozen).is_ok());
}
