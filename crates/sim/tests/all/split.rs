//! Splitting and collapsing on the three architectures: the same translations before and after, every invariant held.

use std::cell::RefCell;
use std::rc::Rc;

use crate::common::{arm64, power, small_vm, x86};
use mmu_core::memory::TableMemory;
use mmu_core::{ByteUnits, Bytes, Cycles, Entry, Format, Gpa, GpaRange, Hpa, Level, PageSize, Perms};
use mmu_sim::arch::Arch;
use mmu_sim::checker::Violation;
use mmu_sim::engine::{ActorStats, GuestPaging, HostCounters, LockId, ReschedCheck, Runs, Sim, Stopped};
use mmu_sim::experiment::{Platform, VmSpec, build};
use mmu_sim::protocols::collapse::{
    CollapseFlush, CollapsePolicy, CollapseRecheck, CollapseTest, Collapsed, collapse_range,
};
use mmu_sim::protocols::iter::{TdpIter, skip_run};
use mmu_sim::protocols::nx::Mitigation;
use mmu_sim::protocols::split::{
    BreakBeforeMake, LazilySplit, LazySplit, SplitError, SplitPolicy, SplitTables, Splits, eager_split, lazy_split,
};
use mmu_sim::protocols::zap::ZapLock;
use mmu_sim::workload::Workload;

/// Every leaf below a table: where, how large, to what.
fn leaves<F: Format>(
    format: &F,
    tables: &TableMemory,
    table: Hpa,
    level: Level,
    gpa: u64,
    into: &mut Vec<(u64, Level, u64)>,
) {
    let geometry = format.geometry();
    for index in 0..geometry.entries(level) as u64 {
        let word = tables.read(table + 8 * index).unwrap();
        let at = gpa + (index << geometry.shift(level));
        if !format.is_mapped(word) {
            continue;
        }
        if format.is_leaf(level, word) {
            into.push((at, level, format.output(level, word).raw()));
        } else {
            leaves(format, tables, format.next_table(level, word), level.down().unwrap(), at, into);
        }
    }
}

fn mapped<A: Arch>(sim: &Sim<A>, format: &A::Two) -> Vec<(u64, Level, u64)> {
    let world = sim.world();
    let mut found = Vec::new();
    leaves(format, world.tables(), world.root(), format.geometry().root(), 0, &mut found);
    found
}

/// Guest-physical to host-physical, by the smallest page.
fn translation<F: Format>(format: &F, leaves: &[(u64, Level, u64)]) -> Vec<(u64, u64)> {
    let granule = format.geometry().granule().bytes();
    leaves
        .iter()
        .flat_map(|&(gpa, level, output)| {
            let pages = format.geometry().page_size(level).bytes() / granule;
            (0..pages).map(move |i| (gpa + i * granule, output + i * granule))
        })
        .collect()
}

fn between((start, end): (u64, u64)) -> GpaRange {
    GpaRange::between(Gpa::new(start), Gpa::new(end))
}

type Job<F> = Box<dyn FnOnce(mmu_sim::engine::Host<F>) -> mmu_sim::engine::ActorFuture>;

struct Outcome {
    before: Vec<(u64, Level, u64)>,
    after: Vec<(u64, Level, u64)>,
    host: HostCounters,
    actors: Vec<ActorStats>,
    digest: u128,
}

/// Runs one job on a VM and checks that nothing was violated.
fn run<A: Arch>(platform: &Platform<A>, vm: &VmSpec, runs: Runs, job: Job<A::Two>) -> Outcome {
    let (outcome, violations) = run_any(platform, vm, runs, job);
    let violations: Vec<String> = violations.iter().map(ToString::to_string).collect();
    assert_eq!(violations, Vec::<String>::new());
    outcome
}

/// Runs one job on a VM.
fn run_any<A: Arch>(platform: &Platform<A>, vm: &VmSpec, runs: Runs, job: Job<A::Two>) -> (Outcome, Vec<Violation>) {
    let mut sim = build(platform, vm).unwrap();
    sim.set_runs(runs);
    let before = mapped(&sim, platform.arch.two());
    sim.spawn("job", Cycles(10_000), job);
    assert_eq!(sim.run(), Stopped::Finished);
    let after = mapped(&sim, platform.arch.two());
    let (host, digest) = (*sim.world().counters(), sim.world().tables().digest());
    assert_eq!(sim.destroy(), Stopped::Finished);
    let violations = sim.world().violations().to_vec();
    let actors = sim.actors().map(|(_, stats)| *stats).collect();
    (Outcome { before, after, host, actors, digest }, violations)
}

fn split_job<F: Format>(
    range: (u64, u64),
    to: PageSize,
    policy: SplitPolicy,
    result: Rc<RefCell<Option<Result<Splits, SplitError>>>>,
) -> Job<F> {
    Box::new(move |host| {
        Box::pin(async move {
            host.lock(LockId::MMU, policy.lock.mode()).await;
            let root = host.root().await;
            let done = eager_split(&host, root, between(range), to, &policy).await;
            host.unlock(LockId::MMU).await;
            *result.borrow_mut() = Some(done);
        })
    })
}

fn split<A: Arch>(
    platform: &Platform<A>,
    vm: &VmSpec,
    range: (u64, u64),
    to: PageSize,
    policy: SplitPolicy,
    runs: Runs,
) -> (Outcome, Splits) {
    let result = Rc::new(RefCell::new(None));
    let outcome = run(platform, vm, runs, split_job(range, to, policy, Rc::clone(&result)));
    let done = result.borrow_mut().take().unwrap().unwrap();
    (outcome, done)
}

fn huge_vm(memory: u64, page: PageSize) -> VmSpec {
    VmSpec { workload: Workload::Idle, page, guest: GuestPaging::Flat, ..small_vm(memory, 1, 0) }
}

/// Splitting keeps every translation, makes nothing larger than asked for inside the range, leaves the rest alone, and costs the same
/// entry by entry.
fn splits_well<A: Arch>(platform: &Platform<A>, page: PageSize, to: PageSize, policies: &[SplitPolicy]) {
    let format = *platform.arch.two();
    let (memory, goal) = (8 * page.bytes(), format.geometry().level_of(to).unwrap());
    let vm = huge_vm(memory, page);
    let range = (2 * page.bytes(), 5 * page.bytes());
    for policy in policies {
        let (whole, done) = split(platform, &vm, range, to, *policy, Runs::Whole);
        assert_eq!(translation(&format, &whole.before), translation(&format, &whole.after), "{policy:?}");
        for &(gpa, level, _) in &whole.after {
            let inside = (range.0..range.1).contains(&gpa);
            assert_eq!(level == goal, inside, "{gpa:#x} at {level:?}: {policy:?}");
        }
        assert_eq!(done.raced, 0);
        let (single, same) = split(platform, &vm, range, to, *policy, Runs::Single);
        assert_eq!((done, &whole.actors, whole.digest), (same, &single.actors, single.digest), "{policy:?}");
        let flushes = if platform.arch.name() == "x86" { 0 } else { done.leaves };
        assert_eq!((whole.host.remote_flushes, single.host), (flushes, whole.host), "{policy:?}");
    }
}

#[test]
fn x86_splits_without_a_flush() {
    let policy = SplitPolicy::X86_5_18;
    let failing = SplitPolicy { tables: SplitTables::NoWait { fails_every: 2 }, ..policy };
    let exclusive = SplitPolicy { lock: ZapLock::Write, ..policy };
    let chunks = SplitPolicy { tables: SplitTables::TopUp { chunk: Bytes(2.MiB()) }, ..exclusive };
    splits_well(&x86(), PageSize::SIZE_2M, PageSize::SIZE_4K, &[policy, failing, exclusive, chunks]);
    splits_well(&x86(), PageSize::SIZE_1G, PageSize::SIZE_2M, &[policy, failing]);
    splits_well(&x86(), PageSize::SIZE_1G, PageSize::SIZE_4K, &[policy]);
}

#[test]
fn arm64_breaks_before_it_makes() {
    splits_well(&arm64(), PageSize::SIZE_2M, PageSize::SIZE_4K, &[SplitPolicy::ARM64_6_5, SplitPolicy::X86_5_18]);
    let gig = SplitPolicy { tables: SplitTables::TopUp { chunk: Bytes(1.GiB()) }, ..SplitPolicy::ARM64_6_5 };
    splits_well(&arm64(), PageSize::SIZE_1G, PageSize::SIZE_2M, &[gig]);
}

#[test]
fn power_splits_by_its_own_rule() {
    splits_well(&power(), PageSize::SIZE_2M, PageSize::SIZE_64K, &[SplitPolicy::ARM64_6_5, SplitPolicy::X86_5_18]);
}

#[test]
fn a_failed_allocation_costs_the_lock_and_nothing_else() {
    let failing = SplitPolicy { tables: SplitTables::NoWait { fails_every: 3 }, ..SplitPolicy::X86_5_18 };
    let vm = huge_vm(64.MiB(), PageSize::SIZE_2M);
    let (_, done) = split(&x86(), &vm, (0, 64.MiB()), PageSize::SIZE_4K, failing, Runs::Whole);
    // 32 leaves; each third attempt without waiting fails, and the table that reclaim found is the next one.
    assert_eq!((done.leaves, done.reclaims), (32, 10));
}

#[test]
fn a_skipped_break_is_no_flush_on_arm64_and_is_reported() {
    let policy = SplitPolicy { breaking: BreakBeforeMake::Skipped, ..SplitPolicy::ARM64_6_5 };
    let vm = huge_vm(16.MiB(), PageSize::SIZE_2M);
    let job = split_job((0, 16.MiB()), PageSize::SIZE_4K, policy, Rc::default());
    let (outcome, violations) = run_any(&arm64(), &vm, Runs::Whole, job);
    assert_eq!(outcome.host.remote_flushes, 0);
    let missing = violations.iter().filter(|found| matches!(found, Violation::MissingBreak { .. })).count();
    assert_eq!((missing, violations.len()), (8, 8), "A27: {violations:?}");
}

#[test]
fn sizes_that_do_not_exist_are_refused() {
    let result = Rc::new(RefCell::new(None));
    let vm = huge_vm(16.MiB(), PageSize::SIZE_2M);
    let job = split_job((0, 16.MiB()), PageSize::SIZE_64K, SplitPolicy::X86_5_18, Rc::clone(&result));
    run(&x86(), &vm, Runs::Whole, job);
    assert_eq!(*result.borrow(), Some(Err(SplitError::PageSize { to: PageSize::SIZE_64K })));
    let policy = SplitPolicy { tables: SplitTables::TopUp { chunk: Bytes(3.MiB()) }, ..SplitPolicy::ARM64_6_5 };
    run(&arm64(), &vm, Runs::Whole, split_job((0, 16.MiB()), PageSize::SIZE_4K, policy, Rc::clone(&result)));
    assert_eq!(*result.borrow(), Some(Err(SplitError::Chunk { chunk: Bytes(3.MiB()) })));
}

fn collapse<A: Arch>(
    platform: &Platform<A>,
    vm: &VmSpec,
    range: (u64, u64),
    base: PageSize,
    policy: CollapsePolicy,
    runs: Runs,
) -> (Outcome, Collapsed) {
    // The host has large pages; they are mapped small, as after dirty logging.
    let (most, all) = (vm.page, GpaRange::new(Gpa::new(0), vm.memory));
    let split = SplitPolicy { lock: policy.lock, ..SplitPolicy::X86_5_18 };
    let result = Rc::new(RefCell::new(Collapsed::default()));
    let found = Rc::clone(&result);
    let job: Job<A::Two> = Box::new(move |host| {
        Box::pin(async move {
            host.lock(LockId::MMU, policy.lock.mode()).await;
            let root = host.root().await;
            eager_split(&host, root, all, base, &split).await.unwrap();
            let done = collapse_range(&host, root, between(range), most, &policy).await;
            host.unlock(LockId::MMU).await;
            *found.borrow_mut() = done;
        })
    });
    let outcome = run(platform, vm, runs, job);
    let done = *result.borrow();
    (outcome, done)
}

/// Recovery in place keeps every translation; a zap leaves a hole for each table; what is partly covered stays.
fn collapses_well<A: Arch>(platform: &Platform<A>, base: PageSize, to: PageSize) {
    let format = *platform.arch.two();
    let vm = huge_vm(8 * to.bytes(), to);
    let split_flushes = if platform.arch.name() == "x86" { 0 } else { 8 };
    // The first table is covered in part only.
    let range = (to.bytes() / 2, 5 * to.bytes());
    for recover in [CollapsePolicy::X86_6_13, CollapsePolicy { flush: CollapseFlush::Each, ..CollapsePolicy::X86_6_13 }]
    {
        let (whole, done) = collapse(platform, &vm, range, base, recover, Runs::Whole);
        assert_eq!(done, Collapsed { tables: 4, raced: 0 });
        assert_eq!(translation(&format, &whole.before), translation(&format, &whole.after));
        let huge = whole.after.iter().filter(|(_, level, _)| format.geometry().page_size(*level) == to).count();
        assert_eq!(huge, 4);
        let batched = recover.flush == CollapseFlush::Batched && platform.arch.name() == "x86";
        assert_eq!(whole.host.remote_flushes, split_flushes + if batched { 1 } else { 4 });
        let (single, _) = collapse(platform, &vm, range, base, recover, Runs::Single);
        assert_eq!((&whole.actors, whole.host, whole.digest), (&single.actors, single.host, single.digest));
    }
    let (zapped, done) = collapse(platform, &vm, range, base, CollapsePolicy::X86_5_14, Runs::Whole);
    assert_eq!((done.tables, zapped.host.remote_flushes), (4, split_flushes + 4));
    assert_eq!(zapped.after.len() as u64, 4 * (to.bytes() / base.bytes()));
    let (single, _) = collapse(platform, &vm, range, base, CollapsePolicy::X86_5_14, Runs::Single);
    assert_eq!((&zapped.actors, zapped.host, zapped.digest), (&single.actors, single.host, single.digest));
}

#[test]
fn every_architecture_collapses() {
    collapses_well(&x86(), PageSize::SIZE_4K, PageSize::SIZE_2M);
    collapses_well(&arm64(), PageSize::SIZE_4K, PageSize::SIZE_2M);
    collapses_well(&power(), PageSize::SIZE_64K, PageSize::SIZE_2M);
    collapses_well(&x86(), PageSize::SIZE_2M, PageSize::SIZE_1G);
}

/// Small leaves may be executable under the mitigation of NX huge pages; the huge one that takes their place must not.
#[test]
fn a_huge_page_made_in_place_is_executable_only_without_the_mitigation() {
    let all = (0, 16.MiB());
    let huge_leaves = |mitigation| {
        let found = Rc::new(RefCell::new(Vec::new()));
        let into = Rc::clone(&found);
        let policy = CollapsePolicy { mitigation, ..CollapsePolicy::X86_6_13 };
        let job: Job<arch_x86_ept::Ept> = Box::new(move |host| {
            Box::pin(async move {
                let lock = policy.lock.mode();
                let root = host.root().await;
                host.lock(LockId::MMU, lock).await;
                let split = SplitPolicy { lock: policy.lock, ..SplitPolicy::X86_5_18 };
                eager_split(&host, root, between(all), PageSize::SIZE_4K, &split).await.unwrap();
                let done = collapse_range(&host, root, between(all), PageSize::SIZE_2M, &policy).await;
                assert_eq!(done, Collapsed { tables: 8, raced: 0 });
                host.rcu_read_lock().await;
                let mut iter = TdpIter::new(*host.format(), root, Level::LAST.up(), Gpa::new(0), Gpa::new(all.1));
                while iter.next(&host).await {
                    if let Entry::Leaf(leaf) = host.format().decode(iter.level, iter.old) {
                        into.borrow_mut().push((iter.len, leaf.perms.without(Perms::DIRTY)));
                    }
                    skip_run(&host, &mut iter, ReschedCheck::Never).await;
                }
                host.rcu_read_unlock().await;
                host.unlock(LockId::MMU).await;
            })
        });
        run(&x86(), &huge_vm(16.MiB(), PageSize::SIZE_2M), Runs::Whole, job);
        found.take()
    };
    assert_eq!(huge_leaves(Mitigation::Off), [(8, Perms::RWX)]);
    assert_eq!(huge_leaves(Mitigation::On), [(8, Perms::RW)]);
}

#[test]
fn a_collapse_that_looks_at_leaves_does_nothing() {
    let policy = CollapsePolicy { test: CollapseTest::Leaves, ..CollapsePolicy::X86_5_14 };
    let vm = huge_vm(16.MiB(), PageSize::SIZE_2M);
    let (outcome, done) = collapse(&x86(), &vm, (0, 16.MiB()), PageSize::SIZE_4K, policy, Runs::Whole);
    assert_eq!((done.tables, outcome.after.len()), (0, 8 * 512));
}

#[test]
fn a_collapse_without_recheck_is_the_same_while_nobody_interferes() {
    let policy = CollapsePolicy { recheck: CollapseRecheck::None, ..CollapsePolicy::X86_6_13 };
    let vm = huge_vm(16.MiB(), PageSize::SIZE_2M);
    let (_, done) = collapse(&x86(), &vm, (0, 16.MiB()), PageSize::SIZE_4K, policy, Runs::Whole);
    assert_eq!(done, Collapsed { tables: 8, raced: 0 });
}

/// One huge leaf dealt with by a fault: what stands in its place, and how many flushes that took.
fn lazily<A: Arch>(platform: &Platform<A>, how: LazySplit) -> (LazilySplit, usize, u64) {
    let vm = huge_vm(16.MiB(), PageSize::SIZE_2M);
    let result = Rc::new(RefCell::new(None));
    let found = Rc::clone(&result);
    let job: Job<A::Two> = Box::new(move |host| {
        Box::pin(async move {
            host.lock(LockId::MMU, ZapLock::Read.mode()).await;
            host.rcu_read_lock().await;
            let format = *host.format();
            let geometry = format.geometry();
            let (mut level, mut table) = (geometry.root(), host.root().await);
            let gpa = Gpa::new(6.MiB());
            let (at, old) = loop {
                let at = table + 8 * geometry.index(level, gpa.raw()) as u64;
                let word = host.read(at).await;
                if format.is_leaf(level, word) {
                    break (at, word);
                }
                (table, level) = (format.next_table(level, word), level.down().unwrap());
            };
            let done = lazy_split(&host, at, level, gpa, old, how).await;
            host.rcu_read_unlock().await;
            host.unlock(LockId::MMU).await;
            *found.borrow_mut() = Some(done);
        })
    });
    let outcome = run(platform, &vm, Runs::Whole, job);
    let done = result.borrow_mut().take().unwrap();
    (done, outcome.after.len(), outcome.host.remote_flushes)
}

#[test]
fn faults_split_lazily() {
    for how in [LazySplit::Zap, LazySplit::ClearThenFlush] {
        assert_eq!(lazily(&x86(), how), (LazilySplit::Cleared, 7, 1));
        assert_eq!(lazily(&power(), how), (LazilySplit::Cleared, 7, 1));
    }
    let (done, leaves, flushes) = lazily(&x86(), LazySplit::InPlace);
    assert!(matches!(done, LazilySplit::Linked(_)));
    assert_eq!((leaves, flushes), (7 + 512, 0));
    let (done, leaves, flushes) = lazily(&arm64(), LazySplit::EmptyTable);
    assert!(matches!(done, LazilySplit::Linked(_)));
    assert_eq!((leaves, flushes), (7, 1));
}
