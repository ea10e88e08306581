//! KVM's tests of the fault path: what they assert holds, and the defects that they were written for are found.

use crate::common::{arm64, power, x86};
use mmu_core::{ByteUnits, Bytes, PageSize};
use mmu_sim::arch::Arch;
use mmu_sim::experiment::Platform;
use mmu_sim::protocols::fault::{ExecMapping, TopUp};
use mmu_sim::protocols::prefault::DeletedSlot;
use mmu_sim::selftests::demand_paging::{Regions, UserfaultMode};
use mmu_sim::selftests::{SelftestError, SelftestReport, block_transitions, demand_paging, page_table, pre_fault};

fn holds(report: &SelftestReport) {
    let failed: Vec<_> = report.failed().collect();
    assert!(failed.is_empty() && !report.checks.is_empty(), "{} on {}: {failed:?}", report.test, report.arch);
}

#[test]
fn page_table_test_creates_splits_and_rebuilds() {
    fn check<A: Arch>(platform: &Platform<A>) {
        for (page, vcpus) in [(None, 2), (Some(PageSize::SIZE_2M), 1), (Some(PageSize::SIZE_2M), 3)] {
            let options = page_table::Options { bytes: Bytes(8.MiB()), vcpus, page, ..page_table::Options::default() };
            let report = page_table::run(platform, &options).unwrap();
            holds(&report);
            let names: Vec<&str> = report.phases.iter().map(|phase| phase.name.as_str()).collect();
            assert_eq!(names, ["KVM_CREATE_MAPPINGS", "KVM_UPDATE_MAPPINGS", "KVM_ADJUST_MAPPINGS"]);
        }
    }
    check(&x86());
    check(&arm64());
    check(&power());
}

/// What the order and the maintenance of a rebuild were published for, on four 2 MiB blocks.
#[test]
fn the_published_effects_have_their_shape() {
    let platform = arm64();
    let options =
        page_table::Options { bytes: Bytes(8.MiB()), page: Some(PageSize::SIZE_2M), ..page_table::Options::default() };
    let report = page_table::run(&platform, &options).unwrap();
    let [create, update, adjust] = &report.phases[..] else { panic!("three phases") };
    assert_eq!((create.host.breaks, update.host.breaks, adjust.host.breaks), (0, 4, 4));
    // Four tables to split, none to create blocks, and the four are freed behind the grace period.
    assert_eq!(report.figures["TLB conflict aborts"] as u64, 0);
    // Per block: created, first write, half of its pages read, one fault to rebuild, and the guest's own table; and the guest's three tables above.
    assert_eq!(report.figures["second-stage faults"] as u64, 4 * (1 + 1 + 256 + 1 + 1) + 3);
}

#[test]
fn block_transitions_succeed_and_find_the_missing_top_up() {
    let platform = arm64();
    holds(&block_transitions::run(&platform, &block_transitions::Options::default()).unwrap());
    let defect = block_transitions::Options { top_up: TopUp::NotForPermission, ..Default::default() };
    let report = block_transitions::run(&platform, &defect).unwrap();
    assert!(report.failed().any(|check| check.what.contains("KVM_RUN")), "{:?}", report.checks);
    let coherent = block_transitions::Options { exec: ExecMapping::Always, ..Default::default() };
    for result in [block_transitions::run(&platform, &coherent), block_transitions::run(&x86(), &Default::default())] {
        assert!(matches!(result, Err(SelftestError::Architecture { .. })));
    }
}

#[test]
fn pre_fault_shrinks_or_fails_and_finds_the_loop() {
    fn check<A: Arch>(platform: &Platform<A>) {
        holds(&pre_fault::run(platform, &pre_fault::Options::default()).unwrap());
    }
    check(&x86());
    check(&arm64());
    check(&power());
    let defect = pre_fault::Options { deleted: DeletedSlot::Loops };
    let report = pre_fault::run(&x86(), &defect).unwrap();
    assert!(report.failed().any(|check| check.what.contains("interrupted")), "{:?}", report.checks);
}

#[test]
fn demand_paging_waits_for_its_handlers() {
    let platform = x86();
    let cycles = |options| {
        let report = demand_paging::run(&platform, &options).unwrap();
        holds(&report);
        report.phases[0].cycles
    };
    let base = demand_paging::Options { vcpus: 2, bytes_per_vcpu: Bytes(1.MiB()), ..demand_paging::Options::default() };
    let without = cycles(base.clone());
    for mode in [UserfaultMode::Missing, UserfaultMode::Minor] {
        let with = |delay_us| cycles(demand_paging::Options { userfault: Some(mode), delay_us, ..base.clone() });
        let (fast, slow) = (with(0), with(100));
        assert!(fast > without, "{mode:?}");
        // 256 pages, each a hundred microseconds later; the vCPUs wait side by side.
        let waited = (slow - fast).0 as f64 / platform.clock_hz as f64;
        assert!((0.0255..0.0270).contains(&waited), "{mode:?}: {waited}");
    }
    let overlapping = cycles(demand_paging::Options { regions: Regions::Overlapping, ..base.clone() });
    assert!(overlapping < without + without, "one region is touched twice, mapped once");
    let refused = demand_paging::run(&platform, &demand_paging::Options { delay_us: 5, ..base });
    assert!(matches!(refused, Err(SelftestError::Option { .. })));
}
