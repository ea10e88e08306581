//! 4 PiB of 4K leaves through the engine, on three formats: every zap strategy, aging, write protection, blocks made and split. Cycles are what formulas say; the
//! same work on 64 GiB is done entry by entry as well.
//!
//! Formulas know what a walk reads and asks, and what it does to each entry. What is left beside that, of locks and notifiers, does not depend on the
//! guest's size: it is the same at 64 GiB and at 4 PiB, to the cycle.

use std::cell::Cell;
use std::rc::Rc;

use crate::common::{arm64_52_bits, power_4k, small_vm, x86_five_levels};
use mmu_core::{
    ByteUnits, Bytes, Cycles, Delivery, Flush, FlushScope, Format, Gpa, GpaRange, Leaf, Level, NotPresent, Perms,
    Reach, WalkCaches,
};
use mmu_sim::arch::Arch;
use mmu_sim::engine::{
    ActorStats, Costs, GuestPaging, Host, HostCounters, LockId, LockKind, LockMode, LockStats, RcuStats, Runs, Sim,
    Stopped,
};
use mmu_sim::experiment::zap::{Strategy, Target, strategies};
use mmu_sim::experiment::{BuildError, Platform, Populate, VmSpec, build};
use mmu_sim::protocols::aging::{AgingPolicy, clear_young};
use mmu_sim::protocols::coalesce::{Changed, CoalescePolicy, EntryAt, Walkers, table_to_block};
use mmu_sim::protocols::dirty_log::{DirtyLog, DirtyPolicy, LogKind, SplitWhen, enable};
use mmu_sim::protocols::iter::{FlushOnYield, Yield};
use mmu_sim::protocols::split::{SplitPolicy, eager_split};
use mmu_sim::protocols::zap::{Passes, TableFlush, ZapLock};
use mmu_sim::protocols::{memslot, notifier};
use mmu_sim::workload::Workload;

/// Memory that tables may take.
const MOST: u64 = 100_000_000;
/// Memslots, at any size of the guest, where formulas are compared.
const SLOTS: u64 = 1024;
/// Where entries are done one by one: large enough for slots to have many time slices.
const FEW_SLOTS: u64 = 8;

/// Everything that a run leaves behind.
#[derive(PartialEq, Debug)]
struct Outcome {
    counters: HostCounters,
    finished: Cycles,
    actors: Vec<ActorStats>,
    lock: LockStats,
    rcu: RcuStats,
    tables: u128,
    frames: u64,
}

fn spec(memory: u64) -> VmSpec {
    spec_of(memory, SLOTS)
}

fn spec_of(memory: u64, slots: u64) -> VmSpec {
    let shared = Populate::Shared(Bytes(memory / slots));
    VmSpec { workload: Workload::Idle, guest: GuestPaging::Flat, populate: shared, ..small_vm(memory, 1, 0) }
}

fn end<A: Arch>(sim: &mut Sim<A>) -> Outcome {
    assert_eq!(sim.run(), Stopped::Finished);
    let world = sim.world();
    assert_eq!(world.violations(), []);
    let bytes = world.tables().footprint();
    assert!(bytes < MOST, "{bytes} bytes of tables");
    Outcome {
        counters: *world.counters(),
        finished: sim.actors().map(|(_, stats)| stats.finished).max().unwrap(),
        actors: sim.actors().map(|(_, stats)| *stats).collect(),
        lock: world.lock_stats(LockId::MMU),
        rcu: world.rcu_stats(),
        tables: world.tables().digest(),
        frames: world.tables().frames(),
    }
}

fn zap<A: Arch>(platform: &Platform<A>, memory: u64, strategy: Strategy) -> Outcome {
    zap_of(platform, memory, SLOTS, strategy, Runs::Whole).0
}

/// A zap, and how many of its time slices were worked out together.
fn zap_of<A: Arch>(platform: &Platform<A>, memory: u64, slots: u64, strategy: Strategy, runs: Runs) -> (Outcome, u64) {
    let mut sim = build(platform, &spec_of(memory, slots)).unwrap();
    sim.set_runs(runs);
    sim.spawn("zap", Cycles(0), move |host| {
        Box::pin(async move {
            match strategy.target {
                // The memory of one slot is that of all.
                Target::Range => {
                    let range = GpaRange::new(Gpa::new(0), Bytes(memory / slots));
                    notifier::invalidate_range(&host, range, &strategy.policy).await;
                }
                Target::Root => memslot::zap_all_fast(&host, &strategy.policy).await.unwrap(),
            }
        })
    });
    let outcome = end(&mut sim);
    let worked_out = sim.world().worked_out();
    (outcome, worked_out)
}

fn age<A: Arch>(platform: &Platform<A>, memory: u64, runs: Runs) -> Outcome {
    let mut sim = build(platform, &spec(memory)).unwrap();
    sim.set_runs(runs);
    sim.spawn("age", Cycles(0), move |host| {
        Box::pin(async move {
            let all = GpaRange::new(Gpa::new(0), Bytes(memory));
            let aged = clear_young(&host, all, &AgingPolicy::V6_15).await;
            assert_eq!((aged.leaves, aged.made_old), (memory >> 12, memory >> 12));
        })
    });
    end(&mut sim)
}

fn protect<A: Arch>(platform: &Platform<A>, memory: u64, runs: Runs) -> Outcome {
    let mut sim = build(platform, &spec(memory)).unwrap();
    sim.set_runs(runs);
    let policy = DirtyPolicy { split: SplitWhen::Lazily, ..DirtyPolicy::X86_WRITE_PROTECT };
    let all = GpaRange::new(Gpa::new(0), Bytes(memory));
    let log = DirtyLog::new(all, sim.new_var(0), platform.arch.two().geometry().granule(), LogKind::Rings);
    sim.spawn("log", Cycles(0), move |host| {
        Box::pin(async move {
            let enabled = enable(&host, &log, &policy).await.unwrap();
            assert_eq!(enabled.protected.leaves, memory >> 12);
        })
    });
    end(&mut sim)
}

// ---- formulas ----

/// What a guest's tables have.
struct Shape<F> {
    format: F,
    memory: u64,
}

impl<F: Format> Shape<F> {
    fn root(&self) -> usize {
        self.format.geometry().root().index()
    }

    /// Entries of a level that map something.
    fn used(&self, level: usize) -> u64 {
        self.memory.div_ceil(1 << self.format.geometry().shift(Level::new(level as u8)))
    }

    fn tables(&self, level: usize) -> u64 {
        if level == self.root() { 1 } else { self.used(level + 1) }
    }

    /// All entries of all tables of a level.
    fn entries(&self, level: usize) -> u64 {
        self.tables(level) * self.format.geometry().entries(Level::new(level as u8)) as u64
    }

    fn maps(&self, level: usize, gpa: u64) -> bool {
        gpa & !((1 << self.format.geometry().shift(Level::new(level as u8))) - 1) < self.memory
    }
}

/// A flush while nobody runs.
fn flush_cost<F: Format>(format: &F, costs: &Costs, flush: Flush) -> Cycles {
    let plan = format.flush_plan(flush);
    match plan.delivery {
        Delivery::Broadcast => {
            costs.broadcast_issue.times(plan.repeats) + costs.broadcast_barrier.max(costs.broadcast_latency)
        }
        Delivery::Interrupt => costs.invalidate_local,
        Delivery::LocalInstruction => costs.invalidate_local.times(plan.repeats),
    }
}

/// The flush behind a change of all leaves: of their range, which is everything where there are too many.
fn flush_behind<F: Format>(shape: &Shape<F>, costs: &Costs) -> Cycles {
    let scope = FlushScope::Range { start: Gpa::new(0), bytes: shape.memory, level: None };
    flush_cost(&shape.format, costs, Flush { scope, walk_caches: WalkCaches::Keep, reach: Reach::Everyone })
}

/// Giving `mmu_lock` back: a reader takes itself off a count, whoever has it alone stores.
fn unlock(costs: &Costs, lock: ZapLock) -> Cycles {
    if (costs.mmu_lock, lock) == (LockKind::ReadWrite, ZapLock::Read) { costs.lock_local } else { costs.unlock }
}

/// A walk over all leaves of `walks` ranges that makes so many visits and yields so often: each entry is read, and asked about where the walk asks; those of
/// tables are read again on the way down. Where it has yielded it comes down from the root again: 1 + 2 levels visits instead of the two for each level
/// that it had still to go, and asks no more on the way.
fn leaf_walk<F: Format>(
    shape: &Shape<F>,
    walks: u64,
    costs: &Costs,
    done: &HostCounters,
    asks: Yield,
    leaf: Cycles,
    (flushes, lock): (bool, ZapLock),
) -> Cycles {
    let one = Shape { format: shape.format, memory: shape.memory / walks };
    let (leaves, above) = (shape.used(0), walks * (1..=shape.root()).map(|level| one.used(level)).sum::<u64>());
    let (yields, down) = (done.reschedules, 1 + 2 * shape.root() as u64);
    let (whole, visits) = (leaves + 2 * above + yields * down, done.visits);
    // Levels that the walk had still to go, all yields together.
    let saved = (whole - visits) / 2;
    assert_eq!(whole - visits, 2 * saved, "visits come in twos");
    assert!(saved < yields.max(1), "{saved} levels in {yields} yields: nearly all are at leaves");
    let asked = match asks {
        Yield::Never => 0,
        Yield::AfterWorkOnly => leaves,
        _ => leaves + above - saved,
    };
    let flush = if flushes { flush_cost(&shape.format, costs, Flush::EVERYTHING) } else { Cycles::ZERO };
    let each = flush + unlock(costs, lock) + costs.reschedule + costs.lock_local;
    costs.visit.times(visits) + costs.resched_check.times(asked) + leaf.times(leaves) + each.times(yields)
}

/// What it costs to tear the table below an entry of `level` down, where tables of level `emptied` have lost what they held.
fn teardown<F: Format>(
    shape: &Shape<F>,
    costs: &Costs,
    level: usize,
    emptied: Option<usize>,
    strategy: &Strategy,
) -> Cycles {
    let marks = strategy.policy.lock == ZapLock::Read && shape.format.encode_not_present(NotPresent::Frozen).is_ok();
    let flushes = strategy.policy.flush == TableFlush::PerTablePage;
    let flush = if flushes { flush_cost(&shape.format, costs, Flush::EVERYTHING) } else { Cycles::ZERO };
    let table = level - 1;
    let entry = match table {
        _ if emptied == Some(table) && marks => costs.atomic,
        _ if emptied == Some(table) => Cycles::ZERO,
        0 => costs.atomic + costs.release_leaf,
        _ => costs.atomic + teardown(shape, costs, table, emptied, strategy),
    };
    let entries = shape.format.geometry().entries(Level::new(table as u8)) as u64;
    (costs.visit + entry).times(entries) + flush
}

/// The loop of a pass over a root, entry by entry of the levels that it visits.
struct Pass<'a, F> {
    shape: &'a Shape<F>,
    costs: &'a Costs,
    strategy: &'a Strategy,
    now: Cycles,
    slice: Cycles,
    owed: bool,
}

impl<F: Format> Pass<'_, F> {
    fn flush(&mut self) {
        if std::mem::take(&mut self.owed) {
            self.now += flush_cost(&self.shape.format, self.costs, Flush::EVERYTHING);
        }
    }

    fn asks_and_yields(&mut self) -> bool {
        self.now += self.costs.resched_check;
        if self.now < self.slice + self.costs.tick_period {
            return false;
        }
        self.flush();
        self.now += unlock(self.costs, self.strategy.policy.lock) + self.costs.reschedule;
        self.slice = self.now;
        self.now += self.costs.lock_local;
        true
    }

    fn run(&mut self, goal: usize, work: Cycles) {
        let geometry = *self.shape.format.geometry();
        let shift = |level: usize| geometry.shift(Level::new(level as u8));
        let (root, end) = (self.shape.root(), geometry.input_bytes());
        let (mut gpa, mut level, mut yielded) = (0, root, None);
        self.now += self.costs.visit;
        loop {
            let yields = self.strategy.policy.yielding != Yield::Never;
            if yields && yielded != Some(gpa) && self.asks_and_yields() {
                (yielded, level) = (Some(gpa), root);
                self.now += self.costs.visit;
                continue;
            }
            if self.shape.maps(level, gpa) {
                if level > goal {
                    level -= 1;
                    self.now += self.costs.visit.times(2);
                    continue;
                }
                self.now += self.costs.atomic + work;
                self.owed |= self.strategy.policy.flush == TableFlush::DeferredRcu;
            }
            gpa = ((gpa >> shift(level)) + 1) << shift(level);
            while gpa < end && level < root && geometry.index(Level::new(level as u8), gpa) == 0 {
                level += 1;
            }
            if gpa >= end {
                return self.flush();
            }
            self.now += self.costs.visit;
        }
    }
}

/// When a zap of a root in one pass, or in passes over gibibytes and the root, ends.
fn root_zap<F: Format>(shape: &Shape<F>, costs: &Costs, strategy: &Strategy) -> Cycles {
    let start = costs.lock_local.times(3) + costs.unlock + costs.alloc_table;
    let mut pass = Pass { shape, costs, strategy, now: start, slice: Cycles::ZERO, owed: false };
    let root = shape.root();
    let emptied = (strategy.policy.passes == Passes::GigThenRoot).then_some(2);
    if let Some(gig) = emptied {
        pass.run(gig, teardown(shape, costs, gig, None, strategy));
    }
    pass.run(root, teardown(shape, costs, root, emptied, strategy));
    pass.now + unlock(costs, strategy.policy.lock) + costs.unlock
}

/// Four passes have too many entries for a loop. What is left of their cycles when all reads and all work are taken away is questions; yields spare a few of
/// those, and some visits for each.
fn four_passes<F: Format>(shape: &Shape<F>, costs: &Costs, done: &Outcome, strategy: &Strategy) {
    let root = shape.root();
    let goals = [0, 1, 2, root];
    let (mut work, mut asks, mut visits) = (Cycles::ZERO, 0, 0);
    for (pass, goal) in goals.into_iter().enumerate() {
        let below = match pass {
            0 => costs.release_leaf,
            _ => teardown(shape, costs, goal, Some(goals[pass - 1]), strategy),
        };
        // The visits of what is below are counted as all others are.
        let torn = if pass == 0 { 0 } else { (goals[pass - 1]..goal).map(|level| shape.entries(level)).sum() };
        work += (costs.atomic + below).times(shape.used(goal)).since(costs.visit.times(torn));
        asks += (goal..=root).map(|level| shape.entries(level)).sum::<u64>();
        visits += torn + (goal..=root).map(|level| shape.entries(level)).sum::<u64>();
        visits += (goal + 1..=root).map(|level| shape.used(level)).sum::<u64>();
    }
    let (counters, yields) = (&done.counters, done.counters.reschedules);
    let unlock = unlock(costs, strategy.policy.lock);
    work += (unlock + costs.reschedule + costs.lock_local).times(yields) + costs.visit.times(counters.visits);
    let beside = costs.lock_local.times(3) + costs.unlock.times(2) + unlock + costs.alloc_table;
    let asked = done.finished.0 - (work + beside).0;
    assert_eq!(asked % costs.resched_check.0, 0, "{asked} cycles of questions");
    let saved = asks - asked / costs.resched_check.0;
    let down = counters.visits + 2 * saved - visits;
    assert!(saved < yields, "{saved} questions saved by {yields} yields");
    assert!((yields..=yields * (1 + 2 * root as u64)).contains(&down), "{down} visits after {yields} yields");
}

// ---- 4 PiB ----

fn zaps_of_four_pebibytes<A: Arch>(platform: &Platform<A>) {
    let (costs, memory) = (&platform.costs, 4.PiB());
    let shape = |memory| Shape { format: *platform.arch.two(), memory };
    for strategy in strategies() {
        let done = zap(platform, memory, strategy);
        let what = strategy.name;
        assert_eq!(done.counters.zapped_leaves, memory >> 12, "{what}");
        let slices = done.finished.0 / costs.tick_period.0;
        assert!(done.counters.reschedules <= slices, "{what}: {} yields", done.counters.reschedules);
        match (strategy.target, strategy.policy.passes) {
            (Target::Range, _) => {
                let policy = &strategy.policy;
                let beside = |memory, done: &Outcome| {
                    let shape = shape(memory);
                    let (leaf, flushes) =
                        (costs.atomic + costs.release_leaf, policy.flush_on_yield != FlushOnYield::IfPendingAfterRcu);
                    let walk =
                        leaf_walk(&shape, SLOTS, costs, &done.counters, policy.yielding, leaf, (flushes, policy.lock));
                    done.finished.0
                        - (walk + flush_behind(&shape, costs)).0
                        - costs.page_release.times((memory / SLOTS) >> 12).0
                };
                let small = zap(platform, 64.GiB(), strategy);
                assert_eq!(beside(memory, &done), beside(64.GiB(), &small), "{what}");
            }
            (Target::Root, Passes::FourLevels) => four_passes(&shape(memory), costs, &done, &strategy),
            (Target::Root, Passes::One | Passes::GigThenRoot) => {
                assert_eq!(done.finished, root_zap(&shape(memory), costs, &strategy), "{what}");
            }
        }
        if strategy.target == Target::Root {
            let tables = (0..=shape(memory).root()).map(|level| shape(memory).tables(level)).sum::<u64>();
            assert_eq!((done.counters.tables_freed, done.frames), (tables, 1), "{what}: all but the new root");
        }
    }
}

#[test]
fn zaps_of_ept() {
    zaps_of_four_pebibytes(&x86_five_levels());
}

#[test]
fn zaps_of_arm_stage_two() {
    zaps_of_four_pebibytes(&arm64_52_bits());
}

#[test]
fn zaps_of_power_radix() {
    zaps_of_four_pebibytes(&power_4k());
}

fn aged_and_protected<A: Arch>(platform: &Platform<A>) {
    let costs = &platform.costs;
    let beside = |memory| {
        let shape = Shape { format: *platform.arch.two(), memory };
        let (aged, protected) = (age(platform, memory, Runs::Whole), protect(platform, memory, Runs::Whole));
        let aging = leaf_walk(&shape, 1, costs, &aged.counters, Yield::Never, costs.atomic, (false, ZapLock::Read));
        let protection = leaf_walk(
            &shape,
            1,
            costs,
            &protected.counters,
            Yield::YieldedGfn,
            costs.atomic,
            (true, DirtyPolicy::X86_WRITE_PROTECT.lock),
        );
        let protection = protection + flush_behind(&shape, costs);
        [aged.finished.0 - aging.0, protected.finished.0 - protection.0]
    };
    assert_eq!(beside(4.PiB()), beside(64.GiB()));
}

#[test]
fn aging_and_write_protection_cost_what_their_entries_cost() {
    aged_and_protected(&x86_five_levels());
    aged_and_protected(&arm64_52_bits());
    aged_and_protected(&power_4k());
}

// ---- samples ----

const SAMPLES: u64 = 300;

/// Where the samples are: an odd multiplier visits different blocks.
fn samples(memory: u64) -> impl Iterator<Item = Gpa> {
    (0..SAMPLES).map(move |i| Gpa::new((i * 0x9e37_79b1 % (memory >> 21)) << 21))
}

/// The entry of the second level that covers an address.
async fn block_at<F: Format>(host: &Host<F>, gpa: Gpa) -> EntryAt {
    let (format, index) = (*host.format(), |level| host.format().geometry().index(level, gpa.raw()) as u64);
    let (mut level, mut table) = (format.geometry().root(), host.root().await);
    while level > Level::new(1) {
        table = format.next_table(level, host.peek(table + 8 * index(level)).await);
        level = level.down().unwrap();
    }
    EntryAt { ptep: table + 8 * index(level), level, gpa }
}

/// Blocks where tables were, here and there, and tables again: the same translations, for as many cycles as in any other guest of this shape.
fn coalesced_and_split<A: Arch>(platform: &Platform<A>, memory: u64, runs: Runs) -> Outcome {
    let mut sim = build(platform, &spec(memory)).unwrap();
    sim.set_runs(runs);
    let tables = sim.world().tables().frames();
    let done = Rc::new(Cell::new(0));
    let count = Rc::clone(&done);
    sim.spawn("coalesce and split", Cycles(0), move |host| {
        Box::pin(async move {
            let format = *host.format();
            let policy = CoalescePolicy::of(&format);
            let split = SplitPolicy { lock: ZapLock::Write, ..SplitPolicy::X86_5_18 };
            for gpa in samples(memory) {
                host.lock(LockId::MMU, LockMode::Write).await;
                host.rcu_read_lock().await;
                let at = block_at(&host, gpa).await;
                let old = host.peek(at.ptep).await;
                let page = host.peek(format.next_table(at.level, old)).await;
                let perms = Perms::RWX.with(Perms::DIRTY);
                let leaf =
                    Leaf { output: format.output(Level::LAST, page), perms, accessed: true, attrs: F::<A>::default() };
                let new = format.encode_leaf(at.level, &leaf).unwrap();
                assert_eq!(table_to_block(&host, at, old, new, &policy, Walkers::Exclusive).await, Changed::Done);
                assert!(format.is_leaf(at.level, host.peek(at.ptep).await), "{gpa} is a block");
                host.rcu_read_unlock().await;
                let (root, range) = (host.root().await, GpaRange::new(gpa, Bytes(2.MiB())));
                let splits = eager_split(&host, root, range, format.geometry().granule(), &split).await.unwrap();
                assert_eq!(splits.leaves, 1);
                host.unlock(LockId::MMU).await;
                let table = format.next_table(at.level, host.peek(at.ptep).await);
                for i in [0, 1, 511] {
                    let output = format.output(Level::LAST, host.peek(table + 8 * i).await);
                    assert_eq!(output, leaf.output + (i << 12), "{gpa} + {i} pages");
                }
                count.set(count.get() + 1);
            }
        })
    });
    let outcome = end(&mut sim);
    assert_eq!((done.get(), outcome.frames), (SAMPLES, tables), "one table for each that went");
    outcome
}

type F<A> = <<A as Arch>::Two as Format>::Attrs;

fn samples_cost_the_same_everywhere<A: Arch>(platform: &Platform<A>) {
    let small = coalesced_and_split(platform, 64.GiB(), Runs::Whole);
    let large = coalesced_and_split(platform, 4.PiB(), Runs::Whole);
    assert_eq!((large.finished, large.counters), (small.finished, small.counters));
    assert_eq!(small, coalesced_and_split(platform, 64.GiB(), Runs::Single));
}

#[test]
fn blocks_here_and_there_cost_the_same_everywhere() {
    samples_cost_the_same_everywhere(&x86_five_levels());
    samples_cost_the_same_everywhere(&arm64_52_bits());
    samples_cost_the_same_everywhere(&power_4k());
}

// ---- entry by entry ----

#[test]
fn slots_that_share_memory_are_cut_from_the_guest() {
    let wrong = |shared: u64| {
        let vm = VmSpec { populate: Populate::Shared(Bytes(shared)), ..spec(1.GiB()) };
        matches!(build(&x86_five_levels(), &vm).map(|_| ()), Err(BuildError::Shared { .. }))
    };
    assert!(wrong(0) && wrong(3.MiB()) && wrong(2.GiB()) && wrong(2048) && wrong(4096));
    assert!(!wrong(1.MiB()) && !wrong(1.GiB()));
}

/// The same zap at once and entry by entry; how many slices were worked out.
fn entries_and_slices<A: Arch>(platform: &Platform<A>, memory: u64, slots: u64, strategy: Strategy) -> u64 {
    let [(whole, worked_out), (single, none)] =
        [Runs::Whole, Runs::Single].map(|runs| zap_of(platform, memory, slots, strategy, runs));
    assert_eq!((whole, 0), (single, none), "{}", strategy.name);
    worked_out
}

/// Every strategy on 64 GiB, with time slices and grace periods that are a part of a machine's: as many of them as in larger guests.
fn entry_by_entry<A: Arch>(platform: &Platform<A>, memory: u64) {
    let mut platform = platform.clone();
    let part = |whole: Cycles| Cycles((u128::from(whole.0) * u128::from(memory) / u128::from(64.GiB())) as u64);
    platform.costs.tick_period = part(platform.costs.tick_period);
    platform.costs.rcu_grace = part(platform.costs.rcu_grace);
    for (i, strategy) in strategies().into_iter().enumerate() {
        let worked_out = entries_and_slices(&platform, memory, FEW_SLOTS, strategy);
        // Those that yield at leaves.
        assert_eq!(worked_out > 0, [1, 2, 9].contains(&i), "{}: {worked_out}", strategy.name);
    }
    assert_eq!(age(&platform, memory, Runs::Whole), age(&platform, memory, Runs::Single));
    assert_eq!(protect(&platform, memory, Runs::Whole), protect(&platform, memory, Runs::Single));
}

#[test]
fn two_gibibytes_entry_by_entry() {
    entry_by_entry(&x86_five_levels(), 2.GiB());
    entry_by_entry(&arm64_52_bits(), 2.GiB());
    entry_by_entry(&power_4k(), 2.GiB());
}

#[test]
#[ignore = "minutes: cargo test -p mmu-sim --test all entry_by_entry -- --ignored"]
fn ept_of_64_gibibytes_entry_by_entry() {
    entry_by_entry(&x86_five_levels(), 64.GiB());
}

#[test]
#[ignore = "minutes: cargo test -p mmu-sim --test all entry_by_entry -- --ignored"]
fn arm_stage_two_of_64_gibibytes_entry_by_entry() {
    entry_by_entry(&arm64_52_bits(), 64.GiB());
}

#[test]
#[ignore = "minutes: cargo test -p mmu-sim --test all entry_by_entry -- --ignored"]
fn power_radix_of_64_gibibytes_entry_by_entry() {
    entry_by_entry(&power_4k(), 64.GiB());
}

/// Each strategy on one of the formats, with the machine's own time slices; those that yield at leaves come to many.
fn every_third_strategy<A: Arch>(platform: &Platform<A>, first: usize) {
    for (i, strategy) in strategies().into_iter().enumerate().skip(first).step_by(3) {
        let worked_out = entries_and_slices(platform, 64.GiB(), FEW_SLOTS, strategy);
        assert_eq!(worked_out > 0, [1, 2, 9].contains(&i), "{}: {worked_out}", strategy.name);
    }
}

#[test]
fn strategies_on_ept_with_64_gibibytes() {
    every_third_strategy(&x86_five_levels(), 0);
}

#[test]
fn strategies_on_power_with_64_gibibytes() {
    every_third_strategy(&power_4k(), 1);
}

#[test]
fn strategies_on_arm_with_64_gibibytes() {
    every_third_strategy(&arm64_52_bits(), 2);
}

/// Slices of one gibibyte each, torn down with all tables that are below.
#[test]
fn gibibytes_at_once_and_entry_by_entry() {
    let mut platform = x86_five_levels();
    (platform.costs.tick_period, platform.costs.rcu_grace) = (Cycles(3000), Cycles(3000));
    for strategy in strategies().into_iter().filter(|strategy| strategy.policy.passes == Passes::GigThenRoot) {
        assert!(entries_and_slices(&platform, 16.GiB(), 1, strategy) > 0, "{}", strategy.name);
    }
}
