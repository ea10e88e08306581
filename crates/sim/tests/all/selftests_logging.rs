//! `dirty_log_perf_test` and `dirty_log_test`: nested vCPUs, vCPUs that keep their own pace, memory at an offset.

use crate::common::{arm64, power, x86};
use mmu_core::{ByteUnits, Bytes, Format, Level};
use mmu_sim::arch::Arch;
use mmu_sim::experiment::Platform;
use mmu_sim::protocols::dirty_log::{Manual, Tracking};
use mmu_sim::selftests::dirty_log::LogMode;
use mmu_sim::selftests::dirty_log_perf::{Disabling, Guest, Options, Pace, run};
use mmu_sim::selftests::{SelftestError, SelftestReport, dirty_log};

/// Pages of each of two vCPUs.
const PAGES: u64 = 64;

fn options<A: Arch>(platform: &Platform<A>) -> Options {
    let page = platform.arch.two().geometry().page_size(Level::LAST).bytes();
    Options { vcpus: 2, bytes_per_vcpu: Bytes(PAGES * page), ..Options::default() }
}

fn holding(report: Result<SelftestReport, SelftestError>) -> SelftestReport {
    let report = report.unwrap();
    let failed: Vec<_> = report.failed().collect();
    assert!(failed.is_empty() && !report.checks.is_empty(), "{} on {}: {failed:?}", report.test, report.arch);
    report
}

fn figure(report: &SelftestReport, name: &str) -> u64 {
    report.figures[name] as u64
}

fn phase(report: &SelftestReport, name: &str) -> u64 {
    report.phases.iter().find(|phase| phase.name == name).unwrap().cycles.0
}

/// What L2 writes is in the log, found by one fault for each page and clearing; PML would not have needed them.
#[test]
fn what_a_nested_guest_writes_is_logged() {
    let platform = x86();
    for (manual, faulting_iterations) in [(Manual::On, 1), (Manual::Off, 2)] {
        let direct = Options { manual, ..options(&platform) };
        let nested = Options { guest: Guest::Nested, ..direct.clone() };
        let (direct, nested) = (holding(run(&platform, &direct)), holding(run(&platform, &nested)));
        assert_eq!(figure(&nested, "units of 4K reported"), figure(&direct, "units of 4K reported"), "{manual:?}");
        let faults = figure(&nested, "second-stage faults");
        assert!(faults >= 2 * PAGES * (1 + faulting_iterations), "{manual:?}: {faults} faults");
        assert!(faults > figure(&direct, "second-stage faults"), "{manual:?}");
    }
}

#[test]
fn nested_vcpus_are_for_x86_and_write_protection() {
    let says = |error: Result<SelftestReport, SelftestError>| error.unwrap_err().to_string();
    let nested = Options { guest: Guest::Nested, ..options(&x86()) };
    assert!(says(run(&x86(), &Options { ring: Some(1024), ..nested.clone() })).starts_with("-n: "));
    let pml = Options { tracking: Some(Tracking::ModificationLog), ..nested.clone() };
    assert!(says(run(&x86(), &pml)).starts_with("-n: "));
    assert!(says(run(&arm64(), &nested)).contains("arm64"));
    let error = says(run(&power(), &Options { guest: Guest::Nested, ..options(&power()) }));
    assert!(error.contains("not on power"), "{error}");
}

fn own_pace<A: Arch>(platform: &Platform<A>) {
    for disabling in [Disabling::Idle, Disabling::Running] {
        let options = Options { pace: Pace::Independent, disabling, ..options(platform) };
        let page = options.bytes_per_vcpu.0 / PAGES;
        let hasty = holding(run(platform, &options));
        assert!(hasty.phases.iter().all(|phase| !phase.name.ends_with("dirty memory")), "{disabling:?}");
        // Sixteen pages a call, a millisecond apart: vCPUs write all that time.
        let waiting = Options { clear_chunk: Some(Bytes(16 * page)), clear_wait: 1, ..options };
        let waiting = holding(run(platform, &waiting));
        let calls = 2 * PAGES / 16;
        assert!(phase(&waiting, "iteration 1 clear log") >= calls * platform.clock_hz / 1000, "{}", waiting.arch);
        let written = |report: &SelftestReport| figure(report, "accesses while the log was on");
        assert!(written(&waiting) > 2 * written(&hasty), "{}: {disabling:?}", waiting.arch);
    }
    let ring = Options { pace: Pace::Independent, ring: Some(1024), ..options(platform) };
    assert!(run(platform, &ring).unwrap_err().to_string().starts_with("-j: "));
}

#[test]
fn vcpus_write_at_their_own_pace_while_the_log_is_read() {
    own_pace(&x86());
    own_pace(&arm64());
    own_pace(&power());
}

fn at_an_offset<A: Arch>(platform: &Platform<A>) {
    let options = options(platform);
    let low = holding(run(platform, &options));
    let high = holding(run(platform, &Options { offset: Bytes(1.GiB()), ..options.clone() }));
    for name in ["units of 4K reported", "units of 4K reported and not written", "second-stage faults"] {
        assert_eq!(figure(&low, name), figure(&high, name), "{name} on {}", low.arch);
    }
    assert!(run(platform, &Options { offset: Bytes(512), ..options }).unwrap_err().to_string().starts_with("-p: "));
    let test = dirty_log::Options { memory: Bytes(16.MiB()), iterations: 2, interval: 1, ..Default::default() };
    holding(dirty_log::run(platform, &dirty_log::Options { offset: Bytes(2.GiB()), ..test.clone() }));
    let odd = dirty_log::Options { offset: Bytes(512), ..test };
    assert!(dirty_log::run(platform, &odd).unwrap_err().to_string().starts_with("-p: "));
}

#[test]
fn the_memory_may_lie_at_an_offset() {
    at_an_offset(&x86());
    at_an_offset(&arm64());
    at_an_offset(&power());
}

fn in_every_mode<A: Arch>(platform: &Platform<A>) {
    for mode in [LogMode::DirtyLog, LogMode::ClearLog, LogMode::DirtyRing] {
        let test =
            dirty_log::Options { memory: Bytes(16.MiB()), iterations: 2, interval: 1, mode, ..Default::default() };
        let result = dirty_log::run(platform, &test);
        if mode == LogMode::DirtyRing && platform.arch.name() == "power" {
            assert!(result.unwrap_err().to_string().starts_with("dirty ring: "), "no ring is filled by a scan");
        } else {
            holding(result);
        }
    }
}

#[test]
fn dirty_log_test_runs_in_every_mode() {
    in_every_mode(&x86());
    in_every_mode(&arm64());
    in_every_mode(&power());
}
