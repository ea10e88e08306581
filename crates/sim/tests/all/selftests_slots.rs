//! `memslot_perf_test`, and dirty logging of memory in several memslots.

use crate::common::{arm64, power, x86};
use mmu_core::{Bytes, Format, Level};
use mmu_sim::arch::Arch;
use mmu_sim::experiment::Platform;
use mmu_sim::protocols::dirty_log::{Manual, Tracking};
use mmu_sim::selftests::memslot_perf::{Checks, Options, SlotQuirk, SubTest, run};
use mmu_sim::selftests::{SelftestReport, dirty_log_perf};

fn holds(report: &SelftestReport) {
    let failed: Vec<_> = report.failed().collect();
    assert!(failed.is_empty() && !report.checks.is_empty(), "{} on {}: {failed:?}", report.test, report.arch);
}

/// A few slots and one iteration of each sub-test.
const QUICK: Options = Options {
    slots: Some(64),
    first: 0,
    last: SubTest::ALL.len() - 1,
    seconds: 0.0,
    runs: 1,
    checks: Checks::Ends,
    quirk: SlotQuirk::ZapAll,
};

fn every_sub_test<A: Arch>(platform: &Platform<A>) {
    let report = run(platform, &QUICK).unwrap();
    holds(&report);
    let names: Vec<&str> = report.phases.iter().map(|phase| phase.name.as_str()).collect();
    assert_eq!(names, ["map", "unmap", "unmap chunked", "move active area", "move inactive area", "RW"]);
    assert!(names.iter().all(|name| report.figures[&format!("{name}: iterations")] >= 1.0));
    // Page by page takes longer than 2 MiB at a time.
    let average = |name: &str| report.figures[&format!("{name}: average per iteration (s)")];
    assert!(average("unmap") > average("unmap chunked"), "{}", report.arch);
}

#[test]
fn memslot_perf_test_runs_on_every_architecture() {
    every_sub_test(&x86());
    every_sub_test(&arm64());
    every_sub_test(&power());
}

#[test]
fn its_options_are_the_kernels() {
    let options = Options::default();
    assert_eq!((options.slots, options.first, options.last, options.runs), (None, 0, 5, 1));
    assert!((options.seconds - 5.0).abs() < f64::EPSILON);
    // Every page is looked at; leaves alone go when a slot moves; the best of two runs counts.
    let some = Options { last: 0, checks: Checks::EveryPage, runs: 2, ..QUICK };
    let report = run(&x86(), &some).unwrap();
    holds(&report);
    assert!(report.checks.iter().any(|check| check.what.contains("8192 pages")), "{:?}", report.checks);
    holds(&run(&x86(), &Options { first: 3, last: 4, quirk: SlotQuirk::LeafsOnly, ..QUICK }).unwrap());
    for (wrong, says) in [
        (Options { slots: Some(1), ..QUICK }, "-s: at least two"),
        (Options { first: 3, last: 2, ..QUICK }, "-f: "),
        (Options { first: 3, slots: Some(MOST), ..QUICK }, ""),
    ] {
        match run(&x86(), &wrong) {
            Err(error) => assert!(error.to_string().starts_with(says), "{error}"),
            Ok(report) => {
                assert!(says.is_empty());
                holds(&report);
            }
        }
    }
}

/// So many that slots have four pages, and the last one what is left over.
const MOST: u16 = mmu_sim::selftests::memslot_perf::MOST_SLOTS;

fn logs_in_slots<A: Arch>(platform: &Platform<A>) {
    let page = platform.arch.two().geometry().page_size(Level::LAST).bytes();
    let report = |slots, manual, ring: Option<u64>| {
        let defaults = dirty_log_perf::Options::default();
        let bytes_per_vcpu = Bytes(64 * page);
        let tracking = ring.map(|_| Tracking::WriteProtect);
        let options = dirty_log_perf::Options { bytes_per_vcpu, vcpus: 2, slots, manual, ring, tracking, ..defaults };
        let report = dirty_log_perf::run(platform, &options).unwrap();
        holds(&report);
        report
    };
    for (manual, ring) in [(Manual::On, None), (Manual::Off, None), (Manual::Off, Some(1024))] {
        let (one, four) = (report(1, manual, ring), report(4, manual, ring));
        let reported = |report: &SelftestReport| report.figures["units of 4K reported"];
        assert!((reported(&one) - reported(&four)).abs() < f64::EPSILON, "{manual:?}, {ring:?} on {}", one.arch);
        assert!(four.phases[1].cycles > one.phases[1].cycles, "four memslot updates take longer than one");
    }
}

#[test]
fn dirty_log_perf_test_logs_memory_in_several_slots() {
    logs_in_slots(&x86());
    logs_in_slots(&arm64());
    logs_in_slots(&power());
    let scanned = dirty_log_perf::Options { ring: Some(1024), bytes_per_vcpu: Bytes(64 << 16), ..Default::default() };
    assert!(dirty_log_perf::run(&power(), &scanned).unwrap_err().to_string().starts_with("dirty ring: "));
    let odd = dirty_log_perf::Options { slots: 3, bytes_per_vcpu: Bytes(64 << 12), ..Default::default() };
    assert!(dirty_log_perf::run(&x86(), &odd).unwrap_err().to_string().starts_with("-x: "));
}
