//! What is counted. A round does `operations` operations, and nothing in it is random.

use std::hint::black_box;

use arch_x86_ept::{EptConfig, LongModeConfig};
use mmu_core::machine::Machine;
use mmu_core::tlb::{Input, Lookup, Port, Tag, Tlb, TlbEntry};
use mmu_core::walk::walk;
use mmu_core::{Access, ByteUnits, Bytes, Cycles, Format, Gpa, GpaRange, Gva, Hpa, PageSize, Perms};
use mmu_sim::arch::{Arch, Arch2};
use mmu_sim::engine::{GuestPaging, Host, Sim, Stopped};
use mmu_sim::experiment::zap::strategies;
use mmu_sim::experiment::{Platform, Populate, VmSpec, build};
use mmu_sim::protocols::aging::{AgingPolicy, clear_young};
use mmu_sim::protocols::notifier;
use mmu_sim::rng::Seed;
use mmu_sim::workload::{Mix, PatternSpec, Workload};

use super::scatter::Scatter;
use super::sum::sum;
use super::tree::{Backing, Tree};

/// One thing that is counted.
pub struct Case {
    /// Its name.
    pub name: &'static str,
    /// What one operation is.
    pub unit: &'static str,
    /// Operations of a round.
    pub operations: u64,
    /// Few rounds and many: what is counted is the difference.
    pub rounds: [u64; 2],
    /// Sets up and runs this many rounds.
    pub run: fn(u64),
}

/// All cases.
pub const ALL: [Case; 19] = [
    Case { name: "walk, plain words", unit: "a four-level walk", operations: WALKS, rounds: [1, 5], run: walk_words },
    Case { name: "walk, templates", unit: "a four-level walk", operations: WALKS, rounds: [1, 5], run: walk_templates },
    Case { name: "TLB, first-level hit", unit: "a look-up", operations: LOOKUPS, rounds: [1, 5], run: |n| tlb(16, n) },
    Case {
        name: "TLB, second-level hit",
        unit: "a look-up",
        operations: LOOKUPS,
        rounds: [1, 5],
        run: |n| tlb(1024, n),
    },
    Case { name: "TLB, miss", unit: "a look-up", operations: LOOKUPS, rounds: [1, 5], run: |n| tlb(LOOKUPS, n) },
    Case {
        name: "TLB, miss and fill",
        unit: "a look-up and a fill",
        operations: LOOKUPS,
        rounds: [1, 5],
        run: tlb_fill,
    },
    Case {
        name: "iterate, progressions",
        unit: "a leaf",
        operations: PAGES,
        rounds: [1, 5],
        run: |n| iterate(Backing::Contiguous, n),
    },
    Case {
        name: "iterate, plain words",
        unit: "a leaf",
        operations: PAGES,
        rounds: [1, 5],
        run: |n| iterate(Backing::Scattered, n),
    },
    Case { name: "iterate, sparse", unit: "a leaf", operations: PAGES / SPARSE, rounds: [1, 9], run: iterate_sparse },
    Case {
        name: "micro-operation, read",
        unit: "an operation of a host actor",
        operations: MICRO,
        rounds: [1, 5],
        run: micro_read,
    },
    Case {
        name: "micro-operation, fetch_and",
        unit: "an operation of a host actor",
        operations: MICRO,
        rounds: [1, 5],
        run: micro_and,
    },
    Case {
        name: "visit, aging",
        unit: "a leaf among unlike ones",
        operations: LEAVES,
        rounds: [4, 36],
        run: visit_aging,
    },
    Case { name: "visit, zap", unit: "a leaf among unlike ones", operations: LEAVES, rounds: [4, 36], run: visit_zap },
    Case {
        name: "window",
        unit: "a window with one vCPU that runs one access",
        operations: WINDOWS,
        rounds: [1, 5],
        run: window,
    },
    Case {
        name: "guest access, hit",
        unit: "an access",
        operations: ACCESSES,
        rounds: [2, 6],
        run: |n| guest(16 << 12, n),
    },
    Case {
        name: "guest access, nested walk",
        unit: "an access",
        operations: ACCESSES,
        rounds: [20, 24],
        run: |n| guest(64 << 20, n),
    },
    Case { name: "zap, range (5.12)", unit: "a GiB of 4K pages", operations: 1, rounds: [8, 40], run: |n| zap(2, n) },
    Case {
        name: "zap, root, flush per table (5.17)",
        unit: "a GiB of 4K pages",
        operations: 1,
        rounds: [8, 40],
        run: |n| zap(4, n),
    },
    Case {
        name: "zap, root, four passes (6.9)",
        unit: "a GiB of 4K pages",
        operations: 1,
        rounds: [8, 40],
        run: |n| zap(9, n),
    },
];

const WALKS: u64 = 1024;
const LOOKUPS: u64 = 8192;
/// Leaves of 128 MiB.
const PAGES: u64 = 1 << 15;
/// In sparse tables one page in so many is mapped.
const SPARSE: u64 = 128;
const MICRO: u64 = 4096;
/// Leaves of a table.
const LEAVES: u64 = 512;
/// Tables whose leaves a vCPU has touched, however many of them are visited.
const TOUCHED: u64 = 40;
const WINDOWS: u64 = 1000;
const ACCESSES: u64 = 2000;

fn walks(backing: Backing, rounds: u64) {
    let tree = Tree::mapped(PAGES / 4, backing);
    let mut scatter = Scatter(7);
    let addresses: Vec<u64> = (0..WALKS).map(|_| scatter.below((PAGES / 4) << 12)).collect();
    let mut bus = &tree.memory;
    for _ in 0..rounds {
        black_box(addresses.iter().fold(0, |sum, &gpa| {
            let found = walk(&tree.ept, tree.root, gpa, Access::READ, &mut bus);
            sum ^ found.map_or(0, |found| found.output.raw())
        }));
    }
}

fn walk_words(rounds: u64) {
    walks(Backing::Scattered, rounds);
}

fn walk_templates(rounds: u64) {
    walks(Backing::Contiguous, rounds);
}

fn machine() -> Machine {
    Machine::builtin("intel-granite-rapids-host").expect("a machine of ours")
}

fn input(page: u64) -> Input {
    Input::Combined(Gva::new(0x7f00_0000_0000 + (page << 12)))
}

fn entry(page: u64) -> TlbEntry {
    TlbEntry::new(Hpa::new(page << 20), PageSize::SIZE_4K, Perms::RW)
}

/// Round and round through `pages` pages: few stay in the first level, a thousand leave it before their turn comes, more hit nothing, as
/// nothing is filled.
fn tlb(pages: u64, rounds: u64) {
    let mut tlb = Tlb::new(&machine().translation.tlb, 1).expect("a checked machine");
    for page in 0..pages.min(1024) {
        tlb.fill(Port::Load, Tag::default(), input(page), entry(page));
    }
    let skip = if pages > 1024 { 1024 } else { 0 };
    let mut sum = 0;
    for i in 0..rounds * LOOKUPS {
        match tlb.lookup(Port::Load, Tag::default(), input(skip + i % pages)) {
            Lookup::L1(entry) | Lookup::L2(entry) => sum ^= entry.output.raw(),
            Lookup::Miss => sum += 1,
        }
    }
    black_box(sum);
}

fn tlb_fill(rounds: u64) {
    let mut tlb = Tlb::new(&machine().translation.tlb, 1).expect("a checked machine");
    for i in 0..rounds * LOOKUPS {
        let page = i % LOOKUPS;
        if tlb.lookup(Port::Load, Tag::default(), input(page)) == Lookup::Miss {
            tlb.fill(Port::Load, Tag::default(), input(page), entry(page));
        }
    }
    black_box(&tlb);
}

fn iterate(backing: Backing, rounds: u64) {
    let tree = Tree::mapped(PAGES, backing);
    for _ in 0..rounds {
        black_box(sum(&tree, PAGES));
    }
}

fn iterate_sparse(rounds: u64) {
    let (mut tree, mut scatter) = (Tree::new(), Scatter(5));
    for i in 0..PAGES / SPARSE {
        let gpa = (i * SPARSE + scatter.below(SPARSE)) << 12;
        tree.map(Gpa::new(gpa), Hpa::new(scatter.below(1 << 27) << 12));
    }
    for _ in 0..rounds {
        black_box(sum(&tree, PAGES));
    }
}

fn spec(memory: u64, vcpus: usize, guest: GuestPaging, workload: Workload) -> VmSpec {
    let (memory, page, populate) = (Bytes(memory), PageSize::SIZE_4K, Populate::Mapped);
    VmSpec { memory, vcpus, page, guest, populate, workload, seed: Seed(1) }
}

/// A simulation of an EPT guest.
fn sim(spec: &VmSpec) -> Sim<impl Arch + use<>> {
    let one = LongModeConfig::new().max_phys_addr(52).build().expect("a legal format");
    let two = EptConfig::new().max_phys_addr(52).build().expect("a legal format");
    let platform = Platform::new(Arch2 { name: "x86", one, two }, &machine());
    build(&platform, spec).expect("a legal machine")
}

fn finish<A: Arch>(mut sim: Sim<A>) {
    assert_eq!(sim.run(), Stopped::Finished);
    assert_eq!(sim.failure(), None);
}

fn micro_read(rounds: u64) {
    let mut sim = sim(&spec(16.MiB(), 1, GuestPaging::Flat, Workload::Idle));
    sim.spawn("reader", Cycles::ZERO, move |host| {
        Box::pin(async move {
            let root = host.root().await;
            let mut sum = 0;
            for i in 0..rounds * MICRO {
                sum ^= host.read(root + 8 * (i % 512)).await;
            }
            black_box(sum);
        })
    });
    finish(sim);
}

fn micro_and(rounds: u64) {
    let mut sim = sim(&spec(16.MiB(), 1, GuestPaging::Flat, Workload::Idle));
    sim.spawn("writer", Cycles::ZERO, move |host| {
        Box::pin(async move {
            let root = host.root().await;
            let mut sum = 0;
            for i in 0..rounds * MICRO {
                sum ^= host.fetch_and(root + 8 * (i % 512), !0).await;
            }
            black_box(sum);
        })
    });
    finish(sim);
}

/// A simulation whose vCPU has touched half of the leaves at random, so that no neighbours are alike for long.
fn touched() -> Sim<impl Arch> {
    let bytes = (TOUCHED * LEAVES) << 12;
    let accesses = TOUCHED * LEAVES * 7 / 10;
    let pattern = PatternSpec { bytes, mix: Mix::Uniform, writes_percent: 30, accesses };
    let mut sim = sim(&spec(bytes, 1, GuestPaging::Flat, Workload::Pattern(pattern)));
    // Nothing is young when the vCPU begins.
    sim.spawn("age", Cycles::ZERO, move |host| Box::pin(async move { age(&host, TOUCHED).await }));
    assert_eq!(sim.run(), Stopped::Finished);
    sim
}

/// The leaves of so many tables.
fn leaves(tables: u64) -> GpaRange {
    GpaRange::new(Gpa::new(0), Bytes((tables * LEAVES) << 12))
}

async fn age<F: Format>(host: &Host<F>, tables: u64) {
    black_box(clear_young(host, leaves(tables), &AgingPolicy::V6_15).await);
}

fn visit_aging(rounds: u64) {
    let mut sim = touched();
    let now = sim.now();
    sim.spawn("age", now, move |host| Box::pin(async move { age(&host, rounds).await }));
    finish(sim);
}

fn visit_zap(rounds: u64) {
    let mut sim = touched();
    let now = sim.now();
    let policy = strategies()[0].policy;
    sim.spawn("zap", now, move |host| {
        Box::pin(async move { notifier::invalidate_range(&host, leaves(rounds), &policy).await })
    });
    finish(sim);
}

/// Windows of one cycle, which quiet hosts stretch: an access is longer than any of them.
fn window(rounds: u64) {
    let pattern = PatternSpec { bytes: 16 << 12, mix: Mix::Sequential, writes_percent: 0, accesses: 1 << 40 };
    let mut sim = sim(&spec(16.MiB(), 1, GuestPaging::Flat, Workload::Pattern(pattern)));
    sim.set_window(Cycles(1));
    for _ in 0..rounds * WINDOWS {
        assert_eq!(sim.turn(), None);
    }
}

/// One vCPU over `bytes` of its memory, through tables of its own.
fn guest(bytes: u64, rounds: u64) {
    let accesses = rounds * ACCESSES;
    let mix = if bytes > 1 << 20 { Mix::Uniform } else { Mix::Sequential };
    let pattern = PatternSpec { bytes, mix, writes_percent: 30, accesses };
    let paging = GuestPaging::FirstTouch(PageSize::SIZE_4K);
    finish(sim(&spec(256.MiB(), 1, paging, Workload::Pattern(pattern))));
}

/// One of the strategies of `compare zap` over so many GiB while nobody runs.
fn zap(strategy: usize, gib: u64) {
    let memory = gib.GiB();
    let mut sim = sim(&spec(memory, 8, GuestPaging::Flat, Workload::Idle));
    super::zap::spawn(&mut sim, memory, strategy);
    finish(sim);
}
