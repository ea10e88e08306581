//! Simulations that are saved and continued are the simulations that were never interrupted, bit for bit.

use std::path::Path;

use crate::common::{arm64, power, small_vm, x86};
use mmu_core::{ByteUnits, Bytes, Cycles, PageSize};
use mmu_sim::arch::Arch;
use mmu_sim::engine::{GuestPaging, Threads};
use mmu_sim::experiment::zap::{Strategy, ZapRequest, strategies};
use mmu_sim::experiment::{Platform, Populate, RunReport, VmSpec, ZapRun, build};
use mmu_sim::snapshot::{Snapshot, SnapshotError};
use mmu_sim::workload::{Mix, PatternSpec, TraceSpec, Workload};

const REQUEST: ZapRequest = ZapRequest { range: Bytes(8 << 20), after: Cycles(100_000) };

fn strategy(name: &str) -> Strategy {
    strategies().into_iter().find(|strategy| strategy.name.contains(name)).unwrap()
}

fn start<A: Arch>(platform: &Platform<A>, vm: &VmSpec, strategy: Option<Strategy>) -> ZapRun<A> {
    ZapRun::new(platform, vm, REQUEST, strategy, Threads::One).unwrap()
}

/// Runs to the end, with a snapshot before the first window and after every so many.
fn uninterrupted<A: Arch>(
    platform: &Platform<A>,
    vm: &VmSpec,
    strategy: Option<Strategy>,
    every: u64,
) -> (Vec<Vec<u8>>, RunReport) {
    let mut run = start(platform, vm, strategy);
    let mut saved = vec![run.save("first").unwrap()];
    let mut turns = 0;
    while run.turn().unwrap() {
        turns += 1;
        if turns % every == 0 {
            saved.push(run.save("first").unwrap());
        }
    }
    (saved, run.finish(platform).unwrap())
}

/// From snapshots all over the run on, everything is as it was: the next snapshot by its bytes, and the report.
fn continues_from_everywhere<A: Arch>(platform: &Platform<A>, vm: &VmSpec, strategy: Option<Strategy>, every: u64) {
    let (saved, expected) = uninterrupted(platform, vm, strategy, every);
    assert!(saved.len() > 3, "{} snapshots are no test", saved.len());
    let some = (saved.len() / 5).max(1);
    for (i, bytes) in saved.iter().enumerate().step_by(some) {
        let mut run = start(platform, vm, strategy);
        run.resume(&Snapshot::load(bytes).unwrap()).unwrap();
        assert!(run.save("first").unwrap() == *bytes, "snapshot {i} comes back");
        let mut turns = 0;
        while turns < every && run.turn().unwrap() {
            turns += 1;
        }
        if let (Some(next), true) = (saved.get(i + 1), turns == every) {
            assert!(run.save("first").unwrap() == *next, "snapshot {} after {i}", i + 1);
        }
        assert_eq!(run.finish(platform).unwrap(), expected, "from snapshot {i}");
    }
}

#[test]
fn runs_continue_under_zaps_on_every_architecture() {
    let vm = small_vm(64.MiB(), 2, 6_000);
    let range = strategy("range, yields first");
    let root = strategy("(6.9)");
    continues_from_everywhere(&x86(), &vm, Some(range), 250);
    continues_from_everywhere(&x86(), &vm, Some(root), 250);
    continues_from_everywhere(&arm64(), &vm, Some(root), 250);
    let guest = GuestPaging::FirstTouch(PageSize::SIZE_64K);
    let power_vm = VmSpec { page: PageSize::SIZE_64K, guest, ..small_vm(64.MiB(), 2, 60_000) };
    continues_from_everywhere(&power(), &power_vm, Some(root), 4);
}

#[test]
fn runs_continue_in_the_middle_of_faults() {
    let pattern =
        PatternSpec { bytes: 1.MiB(), mix: Mix::Zipf { hundredths: 99 }, writes_percent: 30, accesses: 4_000 };
    let vm = VmSpec { populate: Populate::ByFaults, workload: Workload::Pattern(pattern), ..small_vm(64.MiB(), 3, 0) };
    continues_from_everywhere(&x86(), &vm, None, 200);
    let flat = VmSpec { guest: GuestPaging::Flat, ..vm };
    continues_from_everywhere(&arm64(), &flat, Some(strategy("(5.18)")), 300);
}

#[test]
fn runs_continue_in_the_middle_of_a_trace() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../traces/sqlite3.mmut.zst");
    let trace = TraceSpec { path, options: mmu_trace::ReadOptions::default(), accesses: 30_000 };
    let vm = VmSpec { workload: Workload::Trace(trace), ..small_vm(256.MiB(), 2, 0) };
    continues_from_everywhere(&x86(), &vm, Some(strategy("(5.18)")), 20);
}

fn sample() -> Vec<u8> {
    let mut run = start(&x86(), &small_vm(64.MiB(), 1, 2_000), Some(strategy("(6.9)")));
    for _ in 0..100 {
        run.turn().unwrap();
    }
    run.save("memory = \"64MiB\"").unwrap()
}

#[test]
fn a_snapshot_says_what_it_is() {
    let bytes = sample();
    let info = Snapshot::inspect(&bytes).unwrap();
    assert_eq!((info.config.as_str(), info.file_bytes), ("memory = \"64MiB\"", bytes.len() as u64));
    assert!(info.time > Cycles(0) && info.state_bytes > info.file_bytes);
}

#[test]
fn every_cut_and_every_flipped_bit_is_an_error_with_a_name() {
    let bytes = sample();
    for len in 0..bytes.len() {
        let error = Snapshot::load(&bytes[..len]).unwrap_err();
        let named = match error {
            SnapshotError::NotASnapshot => len == 0,
            SnapshotError::Truncated { found, .. } => found == len as u64,
            _ => false,
        };
        assert!(named, "cut after {len}: {error}");
    }
    let mut damaged = bytes.clone();
    // All of the envelope, and of the payload what time allows: its bits are alike to a checksum.
    let bits = (0..68 * 8).chain((68 * 8..bytes.len() * 8).step_by(61));
    for bit in bits {
        damaged[bit / 8] ^= 1 << (bit % 8);
        let error = Snapshot::load(&damaged).unwrap_err();
        let named = match bit / 8 {
            0..8 => matches!(error, SnapshotError::NotASnapshot),
            8..10 => matches!(error, SnapshotError::Version { .. }),
            10..12 => matches!(error, SnapshotError::Codec(_)),
            12..16 => matches!(error, SnapshotError::Flags(_)),
            16..20 => matches!(error, SnapshotError::Model { .. }),
            20..28 => matches!(error, SnapshotError::Layout),
            52..60 => matches!(error, SnapshotError::Truncated { .. } | SnapshotError::Corrupt(_)),
            _ => matches!(error, SnapshotError::Corrupt(_)),
        };
        assert!(named, "bit {bit}: {error}");
        damaged[bit / 8] ^= 1 << (bit % 8);
    }
    damaged.push(0);
    assert!(matches!(Snapshot::load(&damaged), Err(SnapshotError::Corrupt(_))));
}

#[test]
fn another_experiment_is_refused() {
    let snapshot = Snapshot::load(&sample()).unwrap();
    let refused = |vm: &VmSpec, strategy: Option<Strategy>| {
        let error = start(&x86(), vm, strategy).resume(&snapshot).unwrap_err();
        assert!(matches!(error, SnapshotError::OtherExperiment(_)), "{error}");
    };
    let vm = small_vm(64.MiB(), 1, 2_000);
    refused(&small_vm(64.MiB(), 2, 2_000), Some(strategy("(6.9)")));
    refused(&vm, None);
    refused(&VmSpec { guest: GuestPaging::Flat, ..vm.clone() }, Some(strategy("(6.9)")));
    let mut plain = build(&x86(), &vm).unwrap();
    assert!(matches!(Snapshot::save(&plain, ""), Err(SnapshotError::NotKept)));
    assert!(snapshot.restore(&mut plain).is_err());
}

#[test]
fn templates_stay_templates() {
    let size = |memory: u64| {
        let vm = VmSpec { workload: Workload::Idle, ..small_vm(memory, 1, 0) };
        let saved = start(&x86(), &vm, None).save("").unwrap();
        (saved.len(), Snapshot::inspect(&saved).unwrap().state_bytes)
    };
    let ((small, small_state), (large, large_state)) = (size(1.GiB()), size(1.TiB()));
    // Two gigabytes of tables are a directory of 1024 pieces more.
    assert!(large < small + 2_000, "{large} bytes of a terabyte, {small} of a gigabyte");
    assert!(large_state < small_state + 20_000, "{large_state}, {small_state}");
}
