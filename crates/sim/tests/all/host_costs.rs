//! What the host pays beyond instructions: lines that move, lines that nobody has, memory mapped page by page, grace periods. Each is charged where the kernel
//! pays it, and nowhere else.

use std::cell::RefCell;
use std::rc::Rc;

use crate::common::{arm64, power_4k, small_vm, x86};
use mmu_core::machine::Machine;
use mmu_core::{
    AccessKind, ByteUnits, Bytes, Cycles, FaultClass, Flush, FlushScope, Format, Gpa, GpaRange, PageSize, Reach,
    WalkCaches,
};
use mmu_sim::arch::Arch;
use mmu_sim::engine::{Costs, GuestFault, GuestPaging, Host, HostAccess, LockId, LockMode, Reference, Stopped, VcpuId};
use mmu_sim::experiment::vm::GUEST_MEMORY;
use mmu_sim::experiment::{Platform, Populate, VmSpec, build_without_threads};
use mmu_sim::protocols::aging::{AgingPolicy, test_clear_young};
use mmu_sim::protocols::fault::{FaultPolicy, Faults, LoggedBy, PfRet};
use mmu_sim::protocols::primary::hva_to_pfn;
use mmu_sim::protocols::reclaim::{Scan, scan};
use mmu_sim::protocols::split::LazySplit;
use mmu_sim::protocols::young::{Clear, Convention, YoungBitmap};
use mmu_sim::selftests::dirty_log_perf::{self, Options};
use mmu_sim::workload::Workload;

fn vm(populate: Populate) -> VmSpec {
    VmSpec { populate, guest: GuestPaging::Flat, workload: Workload::Idle, ..small_vm(8.MiB(), 1, 0) }
}

type Took = Rc<RefCell<Vec<(u64, u64)>>>;

/// Starts an actor that times pieces of its work; each takes down its number and its cycles.
macro_rules! actor {
    ($sim:expr, $took:expr, $at:expr, $number:expr, |$host:ident| $($work:expr),+) => {{
        let took: Took = Rc::clone(&$took);
        $sim.spawn("actor", Cycles($at), move |$host| {
            Box::pin(async move {
                $(
                    let begun = $host.now().await;
                    $work;
                    let cycles = $host.now().await.since(begun).0;
                    took.borrow_mut().push(($number, cycles));
                )+
            })
        });
    }};
}

async fn look<F: Format>(host: &Host<F>, page: u64) {
    hva_to_pfn(host, GUEST_MEMORY + page * 4096, HostAccess::Write, Reference::None).await.unwrap();
}

#[test]
fn a_first_touch_moves_the_line_of_mmap_lock_and_a_page_that_is_there_does_not() {
    let platform = x86();
    let costs = platform.costs.clone();
    let mut sim = build_without_threads(&platform, &vm(Populate::Untouched)).unwrap();
    let took = Took::default();
    // Nobody had the line; the other's processor had it; it is here already, and not needed.
    actor!(sim, took, 0, 0, |host| look(&host, 0).await);
    actor!(sim, took, 1_000_000, 1, |host| look(&host, 1).await, look(&host, 2).await, look(&host, 2).await);
    assert_eq!(sim.run(), Stopped::Finished);
    let (there, brought) = (costs.visit.0, costs.visit.0 + costs.clear_4k.0);
    let expected = [(0, brought), (1, brought + costs.lock_handoff.0), (1, brought), (1, there)];
    assert_eq!(*took.borrow(), expected);
}

#[test]
fn first_touches_of_many_threads_wait_for_the_line_three_times_each() {
    const THREADS: u64 = 16;
    let platform = x86();
    let handoff = platform.costs.lock_handoff.0;
    let mut sim = build_without_threads(&platform, &vm(Populate::Untouched)).unwrap();
    let took = Took::default();
    for n in 0..THREADS {
        actor!(sim, took, 0, n, |host| for i in 0..16 {
            look(&host, 16 * n + i).await;
        });
    }
    assert_eq!(sim.run(), Stopped::Finished);
    let longest = took.borrow().iter().map(|&(_, cycles)| cycles).max().unwrap();
    // All of 256 touches take three turns of the line, the first of which moves it nowhere; little else is not overlapped.
    let least = (3 * 256 - 1) * handoff;
    assert!((least..least + least / 10).contains(&longest), "{longest} against {least}");
}

#[test]
fn marking_a_page_of_another_stretch_dirty_finds_two_lines_cold() {
    fn check<A: Arch>(platform: &Platform<A>, machine: &str) {
        let memory = Machine::builtin(machine).unwrap().caches.memory.0;
        assert_eq!(platform.costs.cold_line.0, memory);
        let mut sim = build_without_threads(platform, &vm(Populate::ByFaults)).unwrap();
        let took = Took::default();
        let logging = sim.new_var(0);
        let policy = FaultPolicy::new(LockMode::Read, PageSize::SIZE_4K);
        let mut faults = Faults::with_hooks(VcpuId(0), policy, LoggedBy(logging));
        let slot = Rc::clone(&took);
        sim.spawn("faults", Cycles(0), move |host| {
            Box::pin(async move {
                let fault =
                    |gpa| GuestFault { gpa: Gpa::new(gpa), access: AccessKind::Write, class: FaultClass::NotPresent };
                // Tables first, while nothing is logged.
                for gpa in [0x5000, 0x20_5000, 0x60_5000] {
                    assert_eq!(faults.handle(&host, fault(gpa)).await, PfRet::Fixed);
                }
                for gpa in [0x20_7000, 0x60_7000, 0x7000] {
                    assert_eq!(faults.handle(&host, fault(gpa)).await, PfRet::Fixed);
                    let begun = host.now().await;
                    assert_eq!(faults.handle(&host, fault(gpa + 0x1000)).await, PfRet::Fixed);
                    let cycles = host.now().await.since(begun).0;
                    slot.borrow_mut().push((0, cycles));
                }
                host.store_release(logging, 1).await;
                for gpa in [0, 0x1000, 0x1f_f000, 0x20_0000, 0x20_1000, 0x60_0000, 0x2000] {
                    let begun = host.now().await;
                    assert_eq!(faults.handle(&host, fault(gpa)).await, PfRet::Fixed);
                    let cycles = host.now().await.since(begun).0;
                    slot.borrow_mut().push((1, cycles));
                }
                faults.release(&host).await;
            })
        });
        assert_eq!(sim.run(), Stopped::Finished);
        let took = took.borrow();
        let of = |logged| took.iter().filter(move |&&(kind, _)| kind == logged).map(|&(_, cycles)| cycles);
        let near = of(1).nth(1).unwrap();
        let cold: Vec<u64> = of(1).map(|cycles| cycles - near).collect();
        assert_eq!(cold, [2 * memory, 0, 0, 2 * memory, 0, 2 * memory, 2 * memory], "{}", platform.arch.name());
        // Without a log nothing is marked, and stretches make no difference.
        assert_eq!(of(0).collect::<Vec<_>>(), [near; 3]);
    }
    check(&x86(), "intel-granite-rapids-host");
    check(&arm64(), "arm-neoverse-n1");
}

#[test]
fn who_has_a_lock_alone_gives_it_back_with_a_store() {
    fn check<A: Arch>(platform: &Platform<A>, reader: Cycles) {
        let mut sim = build_without_threads(platform, &vm(Populate::Mapped)).unwrap();
        let took = Took::default();
        actor!(
            sim,
            took,
            0,
            0,
            |host| host.lock(LockId::MMU, LockMode::Write).await,
            host.unlock(LockId::MMU).await,
            host.lock(LockId::MMU, LockMode::Read).await,
            host.unlock(LockId::MMU).await
        );
        assert_eq!(sim.run(), Stopped::Finished);
        let costs = &platform.costs;
        assert_eq!(
            took.borrow().iter().map(|took| took.1).collect::<Vec<_>>(),
            [costs.lock_local, costs.unlock, costs.lock_local, reader].map(|cycles| cycles.0)
        );
    }
    check(&x86(), x86().costs.lock_local);
    // A spin lock has no readers.
    check(&power_4k(), power_4k().costs.unlock);
}

#[test]
fn pages_that_x86_maps_are_counted_in_a_line_that_moves() {
    fn check<A: Arch>(platform: &Platform<A>, lines: u64) {
        let mut sim = build_without_threads(platform, &vm(Populate::ByFaults)).unwrap();
        let took = Took::default();
        for thread in 0..2 {
            let slot = Rc::clone(&took);
            let mut faults = Faults::new(VcpuId(0), FaultPolicy::new(LockMode::Read, PageSize::SIZE_4K));
            sim.spawn("faults", Cycles(1_000_000 * thread), move |host| {
                Box::pin(async move {
                    for page in 8 * thread..8 * thread + 3 {
                        let gpa = Gpa::new(page << 12);
                        let fault = GuestFault { gpa, access: AccessKind::Write, class: FaultClass::NotPresent };
                        let begun = host.now().await;
                        assert_eq!(faults.handle(&host, fault).await, PfRet::Fixed);
                        let cycles = host.now().await.since(begun).0;
                        slot.borrow_mut().push((thread, cycles));
                    }
                    faults.release(&host).await;
                })
            });
        }
        assert_eq!(sim.run(), Stopped::Finished);
        // The other thread's first fault finds the tables there, and the lines at the first thread's processor.
        let second: Vec<u64> = took.borrow().iter().filter(|took| took.0 == 1).map(|took| took.1).collect();
        assert_eq!(second[1], second[2]);
        assert_eq!(second[0] - second[1], lines * platform.costs.lock_handoff.0, "{}", platform.arch.name());
    }
    check(&x86(), 2);
    check(&arm64(), 1);
}

#[test]
fn a_scan_pays_for_sections_of_srcu_around_its_calls() {
    let platform = x86();
    let costs = platform.costs.clone();
    let scanned = |call: bool| {
        let mut sim = build_without_threads(&platform, &vm(Populate::Mapped)).unwrap();
        let took = Took::default();
        let range = GpaRange::new(Gpa::new(0), Bytes(64 << 12));
        actor!(sim, took, 0, 0, |host| if call {
            let mut young = YoungBitmap::new(range, PageSize::SIZE_4K, Convention::V2);
            assert_eq!(scan(&host, &mut young, Scan::Walk { batch: 64 }, &AgingPolicy::V6_15, None).await.calls, 1);
        } else {
            let mut asked = YoungBitmap::asking_for_all(range, PageSize::SIZE_4K, Convention::V1);
            test_clear_young(&host, &mut asked, Clear::Clear, &AgingPolicy::V6_15).await;
        });
        assert_eq!(sim.run(), Stopped::Finished);
        took.take()[0].1
    };
    let around = costs.visit + costs.lock_local.times(4) + costs.resched_check;
    assert_eq!(scanned(true) - scanned(false), around.0);
}

#[test]
fn a_bitmap_is_mapped_page_by_page_and_a_grace_period_takes_what_the_sheet_says() {
    let platform = x86();
    let costs = platform.costs.clone();
    let machine = Machine::builtin("intel-granite-rapids-host").unwrap();
    assert_eq!(costs.vmalloc_page, machine.costs.vmalloc_page + machine.costs.page_clear_4k);
    let mut sim = build_without_threads(&platform, &vm(Populate::Mapped)).unwrap();
    let took = Took::default();
    actor!(sim, took, 0, 0, |host| { host.alloc_words(3 * 512 + 1).await.unwrap() }, host.synchronize_srcu().await);
    assert_eq!(sim.run(), Stopped::Finished);
    assert_eq!(took.borrow()[0].1, 4 * costs.vmalloc_page.0);
    let grace = took.borrow()[1].1 - machine.costs.rcu_expedited.0;
    assert!(grace < 2000, "variables and barriers besides: {grace}");
}

#[test]
fn a_local_invalidation_of_arm_looks_for_combined_entries() {
    let platform = arm64();
    let sheet = Machine::builtin("arm-neoverse-n1").unwrap().costs;
    assert_eq!(
        (platform.costs.invalidate_local, platform.costs.broadcast_victim),
        (sheet.tlbi_combined, sheet.tlbi_local)
    );
    let mut sim = build_without_threads(&platform, &vm(Populate::Mapped)).unwrap();
    let took = Took::default();
    let scope = FlushScope::Range { start: Gpa::new(0), bytes: 4096, level: None };
    let flush = Flush { scope, walk_caches: WalkCaches::Keep, reach: Reach::Local };
    actor!(sim, took, 0, 0, |host| host.flush(flush).await);
    assert_eq!(sim.run(), Stopped::Finished);
    assert_eq!(*took.borrow(), [(0, sheet.tlbi_combined.0)]);
}

#[test]
fn an_eager_split_and_the_walk_behind_it_add_up_to_the_published_total() {
    // 1.547 s for 96 GiB in pages of 4 KiB (a3fe5dbda0a4): each is filled, then looked at, asked for and made clean.
    let published = 1.547e9 / (96.0 * 262_144.0);
    let machine = Machine::builtin("intel-skylake-sp").unwrap();
    let costs = Costs::of(&machine);
    let child = costs.split_child + costs.store;
    let clean = costs.visit + costs.resched_check + costs.atomic;
    let whole = (child + clean).0 as f64 + costs.alloc_table.0 as f64 / 512.0;
    let ns = whole / machine.clock.ghz();
    assert!((ns / published - 1.0).abs() < 0.02, "{ns} for {published} ns");
}

#[test]
fn a_fault_that_clears_a_huge_page_leaves_its_small_pages_to_faults_under_the_lock() {
    let platform = x86();
    let run = |lazily| {
        let options = Options {
            vcpus: 4,
            bytes_per_vcpu: Bytes(2.MiB()),
            iterations: 1,
            page: Some(PageSize::SIZE_2M),
            manual: mmu_sim::protocols::dirty_log::Manual::Off,
            split: Some(mmu_sim::protocols::dirty_log::SplitWhen::Lazily),
            lazily: Some(lazily),
            ..Options::default()
        };
        let report = dirty_log_perf::run(&platform, &options).unwrap();
        assert_eq!(report.failed().count(), 0, "{report:?}");
        [report.figures["second-stage faults"], report.figures["time of locks (s)"]]
    };
    let [zapped, in_place] = [LazySplit::Zap, LazySplit::InPlace].map(run);
    // Four to populate, and a table of the guest's on each of four levels for each vCPU; then each page of 4 KiB, whose table was empty or whose entry was
    // write-protected.
    let faults = 4.0 + 4.0 * 4.0 + 2048.0;
    assert_eq!((zapped[0], in_place[0]), (faults, faults));
    assert!(zapped[1] > 20.0 * in_place[1], "the latter are mended without the lock: {zapped:?} {in_place:?}");
}
