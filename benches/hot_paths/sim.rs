//! The whole machine: a terabyte zapped, host actors' micro-operations, a recorded trace.

use std::path::Path;

use mmusim::sim::engine::{Sim, Stopped};
use mmusim::sim::experiment::build;
use mmusim::sim::experiment::zap::Target;
use mmusim::sim::protocols::aging::{AgingPolicy, clear_young};
use mmusim::sim::protocols::notifier;
use mmusim::trace::TraceReader;
use mmusim::{
    Arch, ByteUnits, Bytes, Cycles, Gpa, GpaRange, GuestPaging, Machine, Mix, PageSize, PatternSpec, Platform,
    Populate, ReadOptions, Seed, Threads, TraceSpec, VmSpec, Workload, arch, strategies,
};

use super::rounds::Rounds;

const TRACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/traces/sqlite3.mmut.zst");
/// References replayed: the start-up and most of the queries.
const REFERENCES: u64 = 4_000_000;
const MICRO_OPERATIONS: u64 = 1 << 20;

/// All cases of the group.
pub fn all(rounds: &mut Rounds) {
    let machine = Machine::builtin("intel-granite-rapids-host").expect("a machine of ours");
    let platform = Platform::new(arch::x86(&machine, Bytes(1.TiB())).expect("its own architecture"), &machine);
    zaps(rounds, &platform);
    micro_operations(rounds, &platform);
    visits(rounds, &platform);
    busy(rounds, &platform);
    traces(rounds, &platform);
}

fn vm(memory: u64, vcpus: usize, guest: GuestPaging, workload: Workload) -> VmSpec {
    VmSpec {
        memory: Bytes(memory),
        vcpus,
        page: PageSize::SIZE_4K,
        guest,
        populate: Populate::Mapped,
        workload,
        seed: Seed(1),
    }
}

fn finish<A: Arch>(sim: &mut Sim<A>) {
    assert_eq!(sim.run(), Stopped::Finished);
    assert_eq!(sim.failure(), None);
}

/// One operation is the whole zap of a terabyte of 4K pages.
fn zaps<A: Arch>(rounds: &mut Rounds, platform: &Platform<A>) {
    let idle = vm(1.TiB(), 8, GuestPaging::Flat, Workload::Idle);
    let all = strategies();
    for (name, target) in [("zap 1 TiB, range", Target::Range), ("zap 1 TiB, root", Target::Root)] {
        let strategy = all.iter().rposition(|strategy| strategy.target == target).expect("both targets are there");
        let make = || {
            let mut sim = build(platform, &idle).expect("a legal machine");
            super::zap::spawn(&mut sim, 1.TiB(), strategy);
            sim
        };
        rounds.case_on("sim", name, 1, make, finish);
        rounds.goal(&format!("sim/{name}"), 50e6);
    }
}

fn micro_operations<A: Arch>(rounds: &mut Rounds, platform: &Platform<A>) {
    let small = vm(16.MiB(), 1, GuestPaging::Flat, Workload::Idle);
    let make = || {
        let mut sim = build(platform, &small).expect("a legal machine");
        sim.spawn("reader", Cycles::ZERO, |host| {
            Box::pin(async move {
                let root = host.root().await;
                let mut sum = 0u64;
                for i in 0..MICRO_OPERATIONS {
                    sum ^= host.read(root + 8 * (i % 512)).await;
                }
                std::hint::black_box(sum);
            })
        });
        sim
    };
    rounds.case_on("sim", "micro-operation", MICRO_OPERATIONS, make, finish);
    rounds.goal("sim/micro-operation", 10.0);
}

/// One operation is one leaf that a protocol visits, where no neighbours are alike for long: a vCPU has touched half of the pages at random.
fn visits<A: Arch>(rounds: &mut Rounds, platform: &Platform<A>) {
    const LEAVES: u64 = 1 << 16;
    let (mix, bytes) = (Mix::Uniform, LEAVES << 12);
    let pattern = PatternSpec { bytes, mix, writes_percent: 30, accesses: LEAVES * 7 / 10 };
    let spec = vm(bytes, 1, GuestPaging::Flat, Workload::Pattern(pattern));
    let all = GpaRange::new(Gpa::new(0), Bytes(bytes));
    let touched = || {
        let mut sim = build(platform, &spec).expect("a legal machine");
        // Nothing is young when the vCPU begins.
        sim.spawn("age", Cycles::ZERO, move |host| {
            Box::pin(async move {
                clear_young(&host, all, &AgingPolicy::V6_15).await;
            })
        });
        finish(&mut sim);
        sim
    };
    let age = || {
        let mut sim = touched();
        let now = sim.now();
        sim.spawn("age", now, move |host| {
            Box::pin(async move {
                let young = clear_young(&host, all, &AgingPolicy::V6_15).await;
                std::hint::black_box(young);
            })
        });
        sim
    };
    rounds.case_on("sim", "visit, aging", LEAVES, age, finish);
    rounds.goal("sim/visit, aging", 50.0);
    let zap = || {
        let mut sim = touched();
        let now = sim.now();
        sim.spawn("zap", now, move |host| {
            Box::pin(async move { notifier::invalidate_range(&host, all, &strategies()[0].policy).await })
        });
        sim
    };
    rounds.case_on("sim", "visit, zap", LEAVES, zap, finish);
    rounds.goal("sim/visit, zap", 50.0);
}

/// One operation is one simulated cycle of one of eight vCPUs that touch a terabyte at random while the host takes ranges away.
fn busy<A: Arch>(rounds: &mut Rounds, platform: &Platform<A>) {
    let pattern = PatternSpec { bytes: 128.GiB(), mix: Mix::Uniform, writes_percent: 30, accesses: 40_000 };
    let spec = vm(1.TiB(), 8, GuestPaging::Flat, Workload::Pattern(pattern));
    let make = || {
        let mut sim = build(platform, &spec).expect("a legal machine");
        sim.set_threads(Threads::Pool);
        sim.spawn("notifier", Cycles(10_000), |host| {
            Box::pin(async move {
                let policy = strategies()[0].policy;
                for step in 0..64 {
                    let range = GpaRange::new(Gpa::new(step * 8.GiB()), Bytes(2.MiB()));
                    notifier::invalidate_range(&host, range, &policy).await;
                }
            })
        });
        sim
    };
    let mut sim = make();
    finish(&mut sim);
    let cycles = sim.vcpu_stats().iter().map(|vcpu| vcpu.finished.0).sum();
    rounds.case_on("sim", "busy vCPU cycle", cycles, make, finish);
    rounds.goal("sim/busy vCPU cycle", 10.0);
}

fn traces<A: Arch>(rounds: &mut Rounds, platform: &Platform<A>) {
    let mut batch = Vec::new();
    rounds.case("sim", "trace decoding", REFERENCES, || {
        let mut reader = TraceReader::open_with(Path::new(TRACE), &ReadOptions::default()).expect("the shipped trace");
        let mut read = 0;
        while read < REFERENCES {
            batch.clear();
            read += reader.fill(&mut batch, 4096).expect("the shipped trace") as u64;
        }
    });
    let replay = TraceSpec { path: TRACE.into(), options: ReadOptions::default(), accesses: REFERENCES };
    for (name, guest) in [
        ("trace replay, nested", GuestPaging::FirstTouch(PageSize::SIZE_4K)),
        ("trace replay, 2M", GuestPaging::FirstTouch(PageSize::SIZE_2M)),
    ] {
        let one = vm(1.GiB(), 1, guest, Workload::Trace(replay.clone()));
        rounds.case_on("sim", name, REFERENCES, || build(platform, &one).expect("a legal machine"), finish);
        rounds.goal(&format!("sim/{name}"), 50.0);
    }
}
