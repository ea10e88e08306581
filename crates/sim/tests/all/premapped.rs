//! Guests whose tables map everything from the start, and what their walks and first touches cost the host.

use crate::common::{arm64, power, x86};
use mmu_core::{ByteUnits, Bytes, Cycles, Format, Gpa, Gva, PageSize};
use mmu_sim::arch::Arch;
use mmu_sim::engine::{GuestError, GuestTables, HostCounters, Premapped, TEST_MEMORY};
use mmu_sim::experiment::Platform;
use mmu_sim::protocols::collapse::CollapsePolicy;
use mmu_sim::selftests::dirty_log_perf::{self, Disabling};
use mmu_sim::selftests::{SelftestReport, page_table};

/// Where the tables map an address to, by a walk like any other.
fn walk<F: Format>(format: &F, tables: &GuestTables<F>, gva: Gva) -> Option<Gpa> {
    let geometry = format.geometry();
    let (mut table, mut level) = (tables.root(), geometry.root());
    loop {
        let word = tables.read(table + 8 * geometry.index(level, gva.raw()) as u64).expect("a word of a table");
        if !format.is_mapped(word) {
            return None;
        }
        if format.is_leaf(level, word) {
            let offset = gva.raw() & (geometry.page_size(level).bytes() - 1);
            return Some(Gpa::new(format.output(level, word).raw() + offset));
        }
        table = Gpa::new(format.next_table(level, word).raw());
        level = level.down()?;
    }
}

fn maps_everything<A: Arch>(platform: &Platform<A>) {
    let one = *platform.arch.one();
    let granule = one.geometry().granule();
    let bytes = 5.GiB() + 3 * granule.bytes();
    let tables = Premapped::new(one, Bytes(bytes), granule).unwrap();
    assert!(tables.slot().start.raw() >= bytes, "behind guest memory");
    let guest = GuestTables::premapped(one, tables.clone());
    let last = bytes - granule.bytes();
    for offset in [0, granule.bytes(), 2.MiB(), 1.GiB() - granule.bytes(), 1.GiB(), 4.GiB() + 123_456, last, bytes - 1]
    {
        assert_eq!(
            walk(&one, &guest, TEST_MEMORY + offset),
            Some(Gpa::new(offset)),
            "{}: {offset:#x}",
            platform.machine
        );
    }
    for outside in [TEST_MEMORY.raw() - 1, TEST_MEMORY.raw() + bytes, 0] {
        assert_eq!(walk(&one, &guest, Gva::new(outside)), None, "{}: {outside:#x}", platform.machine);
    }
    assert_eq!(guest.read(Gpa::new(last)), None, "no table there");
    let odd = PageSize::from_shift(17).unwrap();
    assert!(matches!(Premapped::new(one, Bytes(bytes), odd), Err(GuestError::Encode(_))));
    let much = Bytes(one.geometry().input_bytes());
    assert!(matches!(Premapped::new(one, much, granule), Err(GuestError::AddressWidth { .. })));
}

#[test]
fn tables_map_all_memory_and_nothing_else() {
    maps_everything(&x86());
    maps_everything(&arm64());
    maps_everything(&power());
}

/// 256 GiB in pages of 4K from 3 GiB on: 512 entries a table.
#[test]
fn a_guest_of_the_published_size_has_as_many_tables_as_the_librarys() {
    let tables = Premapped::new(*x86().arch.one(), Bytes(256.GiB()), PageSize::SIZE_4K).unwrap();
    assert_eq!(tables.tables(), 131_072 + 256 + 1 + 1);
    assert_eq!(tables.upper_tables(), 256 + 1 + 1);
    let bytes = (131_072 + 256 + 1 + 1) * 4096;
    assert!((bytes..bytes + 65_536).contains(&tables.slot().bytes.0), "as many pages");
}

fn figure(report: &SelftestReport, name: &str) -> u64 {
    report.figures[name] as u64
}

fn host(report: &SelftestReport, name: &str) -> HostCounters {
    report.phases.iter().find(|phase| phase.name == name).unwrap().host
}

/// 2 MiB pages of each vCPU.
const PAGES: u64 = 8;

fn logged(vcpus: usize, disabling: Disabling, collapse: CollapsePolicy) -> SelftestReport {
    let options = dirty_log_perf::Options {
        vcpus,
        bytes_per_vcpu: Bytes(PAGES * 2.MiB()),
        page: Some(PageSize::SIZE_2M),
        disabling,
        collapse: Some(collapse),
        ..Default::default()
    };
    let report = dirty_log_perf::run(&x86(), &options).unwrap();
    assert_eq!(report.failed().count(), 0, "{:?}", report.checks);
    report
}

/// Each page, the table of the guest that maps its small pages, and one table of each level above.
#[test]
fn every_page_and_every_table_of_the_guest_is_one_fault() {
    let report = logged(1, Disabling::Idle, CollapsePolicy::X86_5_14);
    assert_eq!(figure(&report, "second-stage faults"), PAGES + PAGES + 3);
    let several = logged(2, Disabling::Idle, CollapsePolicy::X86_5_14);
    let lost = host(&several, "populate memory").spurious_faults;
    assert!(lost > 0, "both begin at the same upper tables");
    assert_eq!(figure(&several, "second-stage faults"), 4 * PAGES + 3 + lost);
}

/// vCPUs write pass after pass while the log is disabled. Each page that is zapped is faulted on again, unless its last writer has passed it; a page that is
/// recovered in place is not, though its table is flushed much later.
#[test]
fn writers_fault_on_what_is_zapped_under_them_and_not_on_what_is_recovered() {
    let vcpus = 8;
    let pages = vcpus as u64 * PAGES;
    let first = 2 * pages + 3;
    let run = |collapse| {
        let report = logged(vcpus, Disabling::Running, collapse);
        let passes = figure(&report, "passes of all vCPUs from disabling on");
        assert!(passes >= 2 * vcpus as u64, "{passes} passes");
        let races =
            report.phases.iter().map(|phase| phase.host.spurious_faults + phase.host.retried_faults).sum::<u64>();
        (report.clone(), figure(&report, "second-stage faults") - races)
    };
    let (zapped, faults) = run(CollapsePolicy::X86_5_14);
    assert!((first + pages - 1..=first + pages).contains(&faults), "{faults} of {}", first + pages);
    assert_eq!(host(&zapped, "disable dirty logging").remote_flushes, pages);
    let (batched, faults) = run(CollapsePolicy::X86_BATCHED);
    assert!((first + pages - 1..=first + pages).contains(&faults), "{faults} of {}", first + pages);
    assert_eq!(host(&batched, "disable dirty logging").remote_flushes, 1);
    let (recovered, faults) = run(CollapsePolicy::X86_6_13);
    assert_eq!(faults, first);
    // A walk that had begun in the table that is gone finds it empty once: the fault makes it forget the table.
    let spurious = recovered.phases.iter().skip(1).map(|phase| phase.host.spurious_faults).sum::<u64>();
    assert!(spurious <= pages, "{spurious} spurious faults");
}

/// Who touches a page first clears it, and the others wait.
#[test]
fn a_page_is_cleared_once_whoever_comes() {
    for vcpus in [1, 4] {
        let platform = arm64();
        let options = page_table::Options {
            bytes: Bytes(8.MiB()),
            vcpus,
            page: Some(PageSize::SIZE_2M),
            ..page_table::Options::default()
        };
        let report = page_table::run(&platform, &options).unwrap();
        let create = report.phases[0].cycles;
        let clears = platform.costs.clear_4k.times(4 * 512);
        assert!(create > clears, "{vcpus}: {create:?}");
        assert!(create < clears + Cycles(200_000), "{vcpus}: {create:?}");
    }
}
