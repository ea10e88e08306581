//! NX huge pages: the kernel test's counts, batches that flush before they free, and recovery that leaves logged slots alone;
//! and walkers that yield to each other.

use std::cell::RefCell;
use std::rc::Rc;

use crate::common::{arm64, power, small_vm, x86};
use mmu_core::{AccessKind, ByteUnits, Bytes, Cycles, Gpa, GpaRange, Gva, PageSize};
use mmu_sim::arch::Arch;
use mmu_sim::checker::Violation;
use mmu_sim::engine::{GuestPaging, LockId, LockMode, Stopped, VcpuId};
use mmu_sim::experiment::{Platform, Populate, VmSpec, build, build_without_threads};
use mmu_sim::protocols::collapse::{CollapsePolicy, collapse_range};
use mmu_sim::protocols::fault::{FaultPolicy, Faults};
use mmu_sim::protocols::iter::Yield;
use mmu_sim::protocols::nx::{Mitigation, NxDebt, NxMemory, NxPages, NxPolicy, Recovered};
use mmu_sim::protocols::split::LazySplit;
use mmu_sim::protocols::vcpu::{self, Ran};
use mmu_sim::protocols::walkers::{Walked, write_protect};
use mmu_sim::protocols::zap::ZapLock;
use mmu_sim::selftests::nx_huge_pages::{self, RebootPermission};
use mmu_sim::selftests::{SelftestError, max_guest_memory, mmu_stress, nx_huge_pages_perf};
use mmu_sim::workload::{GuestAccess, GuestWork, Workload};

fn vm(memory: u64) -> VmSpec {
    let idle = small_vm(memory, 1, 0);
    VmSpec { workload: Workload::Idle, guest: GuestPaging::Flat, populate: Populate::ByFaults, ..idle }
}

/// A guest that writes and then executes each of `pages` huge pages; then one recovery, while the guest reads on.
fn recover(policy: NxPolicy, pages: u64, logged: Option<GpaRange>) -> (Recovered, Vec<Violation>, u64) {
    recover_split(policy, LazySplit::InPlace, pages, logged)
}

fn recover_split(
    policy: NxPolicy,
    split: LazySplit,
    pages: u64,
    logged: Option<GpaRange>,
) -> (Recovered, Vec<Violation>, u64) {
    let huge = PageSize::SIZE_2M;
    let mut sim = build_without_threads(&x86(), &VmSpec { page: huge, ..vm(pages * huge.bytes()) }).unwrap();
    let nx = NxPages::new(&mut sim, policy);
    if let Some(slot) = logged {
        nx.start_logging(slot);
    }
    let access = move |page: u64, kind| GuestAccess { gva: Gva::new(page * huge.bytes()), kind };
    let touch =
        (0..pages).flat_map(|page| [access(page, AccessKind::Write), access(page, AccessKind::Execute)]).collect();
    let pages_of_vm = nx.clone();
    let policy = FaultPolicy { split, ..FaultPolicy::new(LockMode::Read, huge) };
    sim.spawn_vcpu(VcpuId(0), move |host| {
        Box::pin(async move {
            let mut faults = Faults::with_hooks(VcpuId(0), policy, NxMemory(pages_of_vm));
            for work in [touch, (0..200_000).map(|i| access(i % pages, AccessKind::Read)).collect()] {
                host.assign(VcpuId(0), GuestWork::List(work));
                assert_eq!(vcpu::run(&host, VcpuId(0), &mut faults).await, Ran::Done);
            }
            faults.release(&host).await;
        })
    });
    let (recovery, splits) = (nx.clone(), Rc::new(RefCell::new(0)));
    let found = Rc::clone(&splits);
    sim.spawn("recovery", Cycles(2_500_000), move |host| {
        Box::pin(async move {
            *found.borrow_mut() = recovery.splits(&host).await;
            recovery.recover(&host).await;
        })
    });
    assert_eq!(sim.run(), Stopped::Finished);
    assert_eq!(sim.destroy(), Stopped::Finished);
    let splits = *splits.borrow();
    (nx.recovered(), sim.world().violations().to_vec(), splits)
}

#[test]
fn recovery_takes_its_share_with_one_flush() {
    for base in [NxPolicy::v6_1(Cycles(1)), NxPolicy::v6_18(Cycles(1))] {
        for split in [LazySplit::InPlace, LazySplit::Zap] {
            let policy = NxPolicy { ratio: 4, ..base };
            let (recovered, violations, splits) = recover_split(policy, split, 10, None);
            assert_eq!((splits, violations), (10, vec![]), "{policy:?}");
            // A quarter of ten, rounded up.
            assert_eq!((recovered.zapped, recovered.flushes), (3, 1), "{policy:?}");
        }
    }
}

/// Pages that were split for a fetch become huge in place; the next fetch splits them again, because they are not executable.
#[test]
fn a_fetch_splits_what_was_collapsed_in_place() {
    const PAGES: u64 = 6;
    let huge = PageSize::SIZE_2M;
    let faults = |mitigation| {
        let mut sim = build_without_threads(&x86(), &VmSpec { page: huge, ..vm(PAGES * huge.bytes()) }).unwrap();
        let nx = NxPages::new(&mut sim, NxPolicy::v6_18(Cycles(1)));
        let access = move |page: u64, kind| GuestAccess { gva: Gva::new(page * huge.bytes()), kind };
        let all = move |kind| GuestWork::List((0..PAGES).map(|page| access(page, kind)).collect());
        // Until the collapse is over.
        let waits = GuestWork::List((0..400_000).map(|i| access(i % PAGES, AccessKind::Read)).collect());
        sim.spawn_vcpu(VcpuId(0), move |host| {
            Box::pin(async move {
                let policy = FaultPolicy::linux_6_6(host.format(), huge);
                let mut faults = Faults::with_hooks(VcpuId(0), policy, NxMemory(nx));
                for work in [all(AccessKind::Write), all(AccessKind::Execute), waits, all(AccessKind::Execute)] {
                    host.assign(VcpuId(0), work);
                    assert_eq!(vcpu::run(&host, VcpuId(0), &mut faults).await, Ran::Done);
                }
                faults.release(&host).await;
            })
        });
        sim.spawn("collapse", Cycles(1_500_000), move |host| {
            Box::pin(async move {
                let policy = CollapsePolicy { mitigation, ..CollapsePolicy::X86_6_13 };
                let range = GpaRange::new(Gpa::new(0), Bytes(PAGES * huge.bytes()));
                host.lock(LockId::MMU, policy.lock.mode()).await;
                let root = host.root().await;
                assert_eq!(collapse_range(&host, root, range, huge, &policy).await.tables, PAGES);
                host.unlock(LockId::MMU).await;
            })
        });
        assert_eq!(sim.run(), Stopped::Finished);
        let faults = sim.vcpu_stats()[0].faults;
        assert_eq!((sim.destroy(), sim.world().violations()), (Stopped::Finished, &[][..]));
        faults
    };
    assert_eq!(faults(Mitigation::On), faults(Mitigation::Off) + PAGES);
}

#[test]
fn a_debt_that_is_forgotten_is_never_paid() {
    let flushes = |debt| recover(NxPolicy { ratio: 1, debt, ..NxPolicy::v6_1(Cycles(1)) }, 6, None).0;
    assert_eq!(flushes(NxDebt::Merged).flushes, 1);
    assert_eq!(flushes(NxDebt::Forgotten), Recovered { zapped: 6, ..Recovered::default() }, "X06");
}

#[test]
fn pages_of_logged_slots_stay_split() {
    let slot = GpaRange::new(Gpa::new(0), Bytes(8.MiB()));
    let (recovered, violations, _) = recover(NxPolicy { ratio: 1, ..NxPolicy::v6_18(Cycles(1)) }, 6, Some(slot));
    assert_eq!((recovered.kept, recovered.zapped, violations), (4, 2, vec![]));
}

#[test]
fn the_last_debt_is_not_the_only_one() {
    // The last page of the batch is of a logged slot and owes nothing: X08 forgets the five before it.
    let slot = GpaRange::new(Gpa::new(10.MiB()), Bytes(2.MiB()));
    let flushes = |debt| recover(NxPolicy { ratio: 1, debt, ..NxPolicy::v6_18(Cycles(1)) }, 6, Some(slot)).0.flushes;
    assert_eq!((flushes(NxDebt::Merged), flushes(NxDebt::LastOnly)), (1, 0));
}

#[test]
fn the_kernel_test_counts_the_same() {
    let options = nx_huge_pages::Options { period_ms: 1, reboot: RebootPermission::Granted };
    let report = nx_huge_pages::run(&x86(), &options).unwrap();
    let failed: Vec<_> = report.failed().collect();
    assert_eq!((report.checks.len(), failed.len()), (14, 0), "{failed:?}");
    assert!(matches!(nx_huge_pages::run(&arm64(), &options), Err(SelftestError::Architecture { .. })));
}

#[test]
fn faults_wait_less_for_a_recovery_that_shares_the_lock() {
    let longest = |lock| {
        let (bytes, page, defaults) = (Bytes(256.MiB()), PageSize::SIZE_2M, nx_huge_pages_perf::Options::default());
        let options = nx_huge_pages_perf::Options { bytes, page, period_ms: 1, lock, ..defaults };
        let report = nx_huge_pages_perf::run(&x86(), &options).unwrap();
        assert_eq!(report.failed().count(), 0, "{report:?}");
        report.figures["max fault latency (cycles)"]
    };
    let (write, read) = (longest(ZapLock::Write), longest(ZapLock::Read));
    assert!(write > read, "R4: {write} against {read}");
}

fn survives<A: Arch>(platform: &Platform<A>) {
    let options = max_guest_memory::Options {
        memory: Bytes(64.MiB()),
        slot: Bytes(16.MiB()),
        ..max_guest_memory::Options::default()
    };
    let report = max_guest_memory::run(platform, &options).unwrap();
    assert_eq!((report.failed().count(), report.phases.len()), (0, 4), "{report:?}");
    let report = mmu_stress::run(platform, &options).unwrap();
    assert_eq!((report.failed().count(), report.phases.len()), (0, 7), "{report:?}");
}

#[test]
fn guests_survive_being_written_reset_protected_and_taken_apart() {
    survives(&x86());
    survives(&arm64());
    survives(&power());
}

#[test]
fn slots_that_do_not_fit_are_refused() {
    let options = max_guest_memory::Options { memory: Bytes(3.GiB()), ..max_guest_memory::Options::default() };
    let error = max_guest_memory::run(&x86(), &options).unwrap_err().to_string();
    assert_eq!(error, "-s: guest memory must be a multiple of the slot size");
}

fn walkers(yielding: Yield) -> Vec<Walked> {
    let mut sim = build(&x86(), &VmSpec { populate: Populate::Mapped, ..vm(8.MiB()) }).unwrap();
    let ended = Rc::new(RefCell::new(Vec::new()));
    for start in [Cycles(1_000), Cycles(1_500)] {
        let ended = Rc::clone(&ended);
        sim.spawn("walker", start, move |host| {
            Box::pin(async move {
                let range = GpaRange::new(Gpa::new(0), Bytes(8.MiB()));
                let walked = write_protect(&host, range, yielding, 500).await;
                ended.borrow_mut().push(walked);
            })
        });
    }
    assert_eq!(sim.run(), Stopped::Finished);
    ended.take()
}

#[test]
fn walkers_that_start_over_at_the_entry_just_written_livelock() {
    for yielding in [Yield::AfterWorkOnly, Yield::NoProgressRule] {
        let first = walkers(yielding)[0];
        assert!(matches!(first, Walked::NoProgress { yields: 500, .. }), "X01, {yielding:?}: {first:?}");
    }
    let writes = walkers(Yield::YieldedGfn).into_iter().map(|walked| match walked {
        Walked::Through { writes } => writes,
        stuck @ Walked::NoProgress { .. } => panic!("{stuck:?}"),
    });
    assert_eq!(writes.sum::<u64>(), 2048, "every leaf is written once, by one or the other");
}
