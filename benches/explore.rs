//! Exploration: executions and steps per second, with the checker on.
//!
//! `cargo bench --bench explore`; criterion reports executions per second, and the line before each figure says how many steps one has.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mmusim::explore::museum::{Variant, exhibit};
use mmusim::sim::engine::{Bed, Cmpxchg, Host};
use mmusim::sim::explore::{Budget, Scenario, Shrinking, SmallVm, Strategy};
use mmusim::{Bytes, Machine, Seed, arch};

const SCHEDULES: u64 = 2_000;

fn budget() -> Budget {
    Budget { schedules: SCHEDULES, seed: Seed(1), shrinking: Shrinking::Off }
}

fn museum(c: &mut Criterion) {
    let mut group = c.benchmark_group("explore");
    group.throughput(Throughput::Elements(SCHEDULES)).sample_size(10);
    for id in ["X20", "G13", "G09", "X05", "A02"] {
        let Some(exhibit) = exhibit(id) else { continue };
        let scenario = exhibit.scenario(Variant::Fixed);
        let stats = scenario.explore(&Strategy::Random, budget()).stats;
        println!("{id}: {} steps per execution", stats.steps / stats.executions.max(1));
        group.bench_function(id, |bencher| bencher.iter(|| scenario.explore(&Strategy::Random, budget())));
    }
    group.finish();
}

/// The program that shuttle and loom are measured with: each thread sets its bit in one entry by a compare-and-swap loop, then counts a flush.
async fn set_bit<F: Copy>(host: Host<F>, entry: mmusim::sim::engine::Var, flushes: mmusim::sim::engine::Var, bit: u64) {
    let mut old = host.load(entry).await;
    while let Cmpxchg::Failed(found) = host.cmpxchg_var(entry, old, old | 1 << bit).await {
        old = found;
    }
    host.add(flushes, 1).await;
}

fn anchor(c: &mut Criterion) {
    let Ok(machine) = Machine::builtin("intel-granite-rapids-host") else { return };
    let Ok(x86) = arch::x86(&machine, Bytes(1 << 30)) else { return };
    let mut group = c.benchmark_group("explore/cmpxchg and flush");
    group.throughput(Throughput::Elements(SCHEDULES)).sample_size(10);
    for threads in [2, 4] {
        let scenario = Scenario::new("anchor", x86, SmallVm::unmapped(1)).setup(move |build| {
            let (entry, flushes) = (build.new_var(0), build.new_var(0));
            for bit in 0..threads {
                build.spawn("thread", move |host| Box::pin(set_bit(host, entry, flushes, bit)));
            }
        });
        for strategy in [Strategy::Random, Strategy::Pct(3)] {
            let name = format!("{strategy}, {threads} threads");
            group.bench_function(name, |bencher| bencher.iter(|| scenario.explore(&strategy, budget())));
        }
    }
    group.finish();
}

criterion_group!(benches, museum, anchor);
criterion_main!(benches);
