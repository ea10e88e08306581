//! Zap protocols on a small x86 guest: exact figures, equal for any number of threads, with every invariant holding.

use crate::common::{small_vm, x86};
use mmu_core::{ByteUnits, Bytes, Cycles};
use mmu_sim::engine::Threads;
use mmu_sim::experiment::VmSpec;
use mmu_sim::experiment::zap::{Strategy, Target, ZapRequest, compare_zap, strategies};
use mmu_sim::protocols::iter::Yield;
use mmu_sim::protocols::zap::{Passes, TableFlush, ZapPolicy};
use mmu_sim::workload::Workload;

const REQUEST: ZapRequest = ZapRequest { range: Bytes(8 << 20), after: Cycles(200_000) };

#[test]
fn every_strategy_zaps_everything_and_violates_nothing() {
    let vm = small_vm(64.MiB(), 2, 20_000);
    let report = compare_zap(&x86(), &vm, REQUEST, &strategies(), Threads::One, || {}).unwrap();
    assert_eq!(report.rows.len(), strategies().len());
    for row in &report.rows {
        let leaves = match row.strategy.target {
            Target::Range => REQUEST.range.0 >> 12,
            Target::Root => vm.memory.0 >> 12,
        };
        let zapped = row.host.zapped_leaves;
        assert!(zapped >= leaves, "{}: {zapped} of {leaves} leaves zapped", row.strategy.name);
        assert!(row.entries_visited >= leaves, "{}", row.strategy.name);
    }
}

#[test]
fn reports_are_the_same_for_one_and_for_many_threads() {
    let vm = small_vm(64.MiB(), 4, 20_000);
    let run = |threads| compare_zap(&x86(), &vm, REQUEST, &strategies(), threads, || {}).unwrap();
    assert_eq!(run(Threads::One), run(Threads::Pool));
}

/// The closed form of a root zap without interference: every entry is read and exchanged, every leaf released.
#[test]
fn an_undisturbed_root_zap_costs_what_its_entries_cost() {
    let platform = x86();
    let vm = VmSpec { workload: Workload::Idle, ..small_vm(64.MiB(), 1, 0) };
    let policy = ZapPolicy { yielding: Yield::Never, flush: TableFlush::NoneUnreachable, ..ZapPolicy::V5_17 };
    let strategy = Strategy { name: "root", target: Target::Root, policy };
    let report = compare_zap(&platform, &vm, REQUEST, &[strategy], Threads::One, || {}).unwrap();
    let row = &report.rows[0];
    let (leaves, tables) = (64.MiB() >> 12, 32);
    assert_eq!(row.host.zapped_leaves, leaves);
    // 32 leaf tables, the tables of 1G and 512G entries above them, and the root itself.
    assert_eq!(row.host.zapped_tables, tables + 2 + 1);
    assert_eq!((row.remote_flushes, row.faults), (0, 0));
    let costs = &platform.costs;
    let leaf = costs.visit + costs.atomic + costs.release_leaf;
    let table = costs.visit + costs.atomic;
    let entries = leaf.times(leaves) + table.times(tables + 2);
    assert!(row.zap_cycles > entries);
    // What is left are empty entries, locks and one table: less than a thousandth.
    let rest = row.zap_cycles - entries;
    assert!(rest.0 < entries.0 / 1000 + 30_000, "{rest:?} on top of {entries:?}");
}

#[test]
fn passes_bound_the_longest_stretch_without_rescheduling() {
    let vm = VmSpec { workload: Workload::Idle, ..small_vm(4.GiB(), 1, 0) };
    let stretch = |passes| {
        let policy = ZapPolicy { passes, flush: TableFlush::NoneUnreachable, ..ZapPolicy::V5_17 };
        let strategy = Strategy { name: "root", target: Target::Root, policy };
        let report = compare_zap(&x86(), &vm, REQUEST, &[strategy], Threads::One, || {}).unwrap();
        (report.rows[0].longest_unscheduled, report.rows[0].zap_cycles)
    };
    let (one, whole) = stretch(Passes::One);
    let (gig, _) = stretch(Passes::GigThenRoot);
    let (leaf, _) = stretch(Passes::FourLevels);
    assert!(one.0 * 100 > whole.0 * 99, "one pass never breathes: {one:?} of {whole:?}");
    assert!((one.0 + gig.0 / 2) / gig.0 == 4, "one stretch per GiB: {gig:?} of {one:?}");
    assert!(leaf.0 < 20_000, "one leaf or one empty table at a time: {leaf:?}");
}
