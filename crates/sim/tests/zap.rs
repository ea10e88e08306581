//! Zap protocols on a small x86 guest: exact figures, equal for any number of threads, with every invariant holding.

mod common;

use common::{small_vm, x86};
use mmu_core::{ByteUnits, Cycles};
use mmu_sim::engine::Threads;
use mmu_sim::experiment::zap::{Target, ZapRequest, compare_zap, strategies};

const REQUEST: ZapRequest = ZapRequest { range: 8 << 20, after: Cycles(200_000) };

#[test]
fn every_strategy_zaps_everything_and_violates_nothing() {
    let vm = small_vm(64.MiB(), 2, 20_000);
    let report = compare_zap(&x86(), &vm, REQUEST, &strategies(), Threads::One, || {}).unwrap();
    assert_eq!(report.rows.len(), strategies().len());
    for row in &report.rows {
        let leaves = match row.strategy.target {
            Target::Range => REQUEST.range >> 12,
            Target::Root => vm.memory >> 12,
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
