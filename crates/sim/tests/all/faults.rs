//! Fault handlers: what each policy does, and what each historical defect does wrong.

use std::cell::Cell;
use std::rc::Rc;

use crate::common::{arm64, power, small_vm, x86};
use arch_arm64_s2::{Stage1, Stage1Config, Stage2, Stage2Config};
use mmu_core::{AccessKind, ByteUnits, Bytes, Cycles, Format, Gpa, GpaRange, Gva, Level, PageSize};
use mmu_sim::arch::{Arch, Arch2};
use mmu_sim::checker::Violation;
use mmu_sim::engine::{
    Apply, Atomicity, GuestPaging, Host, HostCounters, LockId, LockMode, ReschedCheck, Sim, Stopped, Threads, Var,
    VcpuId, VcpuStats,
};
use mmu_sim::experiment::{Platform, Populate, VmSpec, build_without_threads};
use mmu_sim::protocols::aging::{AgingPolicy, clear_flush_young};
use mmu_sim::protocols::fault::{
    ExecMapping, FastPath, FaultHooks, FaultPolicy, Faults, LevelChoice, LoggedBy, PermissionLock, RelaxFlush,
    SlotState, TopUp,
};
use mmu_sim::protocols::iter::{TdpIter, bulk, skip_run};
use mmu_sim::protocols::vcpu::{Ran, run};
use mmu_sim::workload::{GuestAccess, GuestWork, Workload};

fn vm(memory: u64, vcpus: usize, page: PageSize, populate: Populate) -> VmSpec {
    VmSpec { page, populate, guest: GuestPaging::Flat, workload: Workload::Idle, ..small_vm(memory, vcpus, 0) }
}

fn list(pages: impl IntoIterator<Item = u64>, page: PageSize, kind: AccessKind) -> GuestWork {
    let access = |n| GuestAccess { gva: Gva::new(n * page.bytes()), kind };
    GuestWork::List(pages.into_iter().map(access).collect())
}

/// How a run ended.
struct Ended {
    counters: HostCounters,
    stats: Vec<VcpuStats>,
    violations: Vec<Violation>,
    ran: Vec<Ran>,
    /// Times `mmu_lock` was taken.
    locked: u64,
}

/// Runs each vCPU through its stretches of work; logging is on throughout when `logged`.
fn guest<A: Arch>(
    platform: &Platform<A>,
    vm: &VmSpec,
    policy: FaultPolicy,
    logged: u64,
    work: Vec<Vec<GuestWork>>,
    spawn: impl FnOnce(&mut Sim<A>, Var),
) -> Ended {
    let mut sim = build_without_threads(platform, vm).unwrap();
    let logging = sim.new_var(logged);
    let ran = Rc::new(Cell::new(Vec::new()));
    for (index, stretches) in work.into_iter().enumerate() {
        let (vcpu, slot) = (VcpuId(index), Rc::clone(&ran));
        sim.spawn_vcpu(vcpu, move |host| {
            Box::pin(async move {
                let mut faults = Faults::with_hooks(vcpu, policy, LoggedBy(logging));
                for work in stretches {
                    host.assign(vcpu, work);
                    let ended = run(&host, vcpu, &mut faults).await;
                    let mut all = slot.take();
                    all.push(ended);
                    slot.set(all);
                }
                faults.release(&host).await;
            })
        });
    }
    spawn(&mut sim, logging);
    assert_eq!(sim.run(), Stopped::Finished);
    let (stats, counters) = (sim.vcpu_stats(), *sim.world().counters());
    let locked = sim.world().lock_stats(LockId::MMU).acquisitions;
    assert_eq!(sim.destroy(), Stopped::Finished);
    let violations = sim.world().violations().to_vec();
    Ended { counters, stats, violations, ran: ran.take(), locked }
}

fn nothing<A: Arch>(_: &mut Sim<A>, _: Var) {}

#[test]
fn each_page_faults_once_on_every_architecture() {
    fn check<A: Arch>(platform: &Platform<A>) {
        let page = platform.arch.two().geometry().page_size(Level::LAST);
        let policy = FaultPolicy { level: LevelChoice::Fixed, ..FaultPolicy::linux_6_6(platform.arch.two(), page) };
        let vm = vm(4.MiB(), 1, page, Populate::ByFaults);
        let ended = guest(platform, &vm, policy, 0, vec![vec![list(0..32, page, AccessKind::Write)]], nothing);
        assert_eq!(ended.violations, []);
        assert_eq!((ended.stats[0].faults, ended.counters.spurious_faults, ended.counters.retried_faults), (32, 0, 0));
        // A table for each level below the root; what was topped up after the last use is given back.
        let levels = platform.arch.two().geometry().root().index() as u64;
        let tables = ended.counters.tables_allocated;
        assert_eq!(tables, 2 * levels, "{}", platform.arch.name());
        assert_eq!(ended.counters.tables_freed, levels);
    }
    check(&x86());
    check(&arm64());
    check(&power());
}

#[test]
fn the_size_follows_the_backing_and_the_log() {
    let platform = arm64();
    let policy = FaultPolicy { level: LevelChoice::ByBacking, ..FaultPolicy::new(LockMode::Read, PageSize::SIZE_2M) };
    let vm = vm(8.MiB(), 1, PageSize::SIZE_2M, Populate::ByFaults);
    let faults = |logged| {
        let work = vec![vec![list(0..1024, PageSize::SIZE_4K, AccessKind::Write)]];
        guest(&platform, &vm, policy, logged, work, nothing).stats[0].faults
    };
    assert_eq!((faults(0), faults(1)), (2, 1024));
}

/// Write-protects everything that is mapped, as dirty logging does.
async fn write_protect<F: Format>(host: &Host<F>, bytes: u64) {
    host.lock(LockId::MMU, LockMode::Write).await;
    host.rcu_read_lock().await;
    let root = host.root().await;
    let range = GpaRange::new(Gpa::new(0), Bytes(bytes));
    let mut iter = TdpIter::new(*host.format(), root, Level::LAST, range.start, range.end());
    while iter.next(host).await {
        if iter.is_leaf() {
            let word = host.format().write_protect(iter.old);
            let (and, or) = (word | !iter.old, word & !iter.old);
            bulk(host, &mut iter, Apply::Mask { and, or }, Atomicity::Atomic, None, ReschedCheck::Never).await;
        } else {
            skip_run(host, &mut iter, ReschedCheck::Never).await;
        }
    }
    host.flush_vm().await;
    host.rcu_read_unlock().await;
    host.unlock(LockId::MMU).await;
}

#[test]
fn the_fast_path_needs_no_lock() {
    let platform = x86();
    let vm = vm(2.MiB(), 1, PageSize::SIZE_4K, Populate::Mapped);
    const HELD: u64 = 50_000_000;
    let finished = |fast| {
        let policy = FaultPolicy { fast, ..FaultPolicy::new(LockMode::Read, PageSize::SIZE_4K) };
        let waits = GuestWork::List(vec![GuestAccess { gva: Gva::new(0), kind: AccessKind::Read }; 400_000]);
        let work = vec![vec![waits, list(0..64, PageSize::SIZE_4K, AccessKind::Write)]];
        let ended = guest(&platform, &vm, policy, 1, work, |sim, _| {
            sim.spawn("log", Cycles(1000), |host| {
                Box::pin(async move {
                    write_protect(&host, 2.MiB()).await;
                    host.lock(LockId::MMU, LockMode::Write).await;
                    host.sleep_until(Cycles(HELD)).await;
                    host.unlock(LockId::MMU).await;
                })
            });
        });
        assert_eq!((ended.violations, ended.stats[0].faults), (vec![], 64));
        ended.stats[0].finished
    };
    assert!(finished(FastPath::Lockless).0 < HELD / 2);
    assert!(finished(FastPath::None).0 > HELD);
}

/// A leaf that denies is mended without the lock on x86 alone: Arm takes it, and so does POWER, for R and C (`kvmppc_hv_handle_set_rc`) as for W.
#[test]
fn what_was_taken_from_a_leaf_comes_back_under_the_lock_but_on_x86() {
    /// How often 32 faults take the lock.
    fn locked<A: Arch>(platform: &Platform<A>, taken: Taken) -> u64 {
        let page = platform.arch.two().geometry().page_size(Level::LAST);
        let vm = vm(64 * page.bytes(), 1, page, Populate::Mapped);
        let policy = FaultPolicy::linux_6_6(platform.arch.two(), page);
        let elsewhere = GuestAccess { gva: Gva::new(40 * page.bytes()), kind: AccessKind::Read };
        let waits = GuestWork::List(vec![elsewhere; 400_000]);
        let work = vec![vec![waits, list(0..32, page, AccessKind::Write)]];
        let ended = guest(platform, &vm, policy, 1, work, |sim, _| {
            sim.spawn("take", Cycles(1000), move |host| {
                Box::pin(async move {
                    let range = GpaRange::new(Gpa::new(0), Bytes(32 * page.bytes()));
                    match taken {
                        Taken::Write => write_protect(&host, range.bytes.0).await,
                        Taken::Reference => drop(clear_flush_young(&host, range, &AgingPolicy::V6_12).await),
                    }
                })
            });
        });
        assert_eq!((ended.violations, ended.stats[0].faults), (vec![], 32), "{}", platform.arch.name());
        // Whoever takes it away does so once.
        ended.locked - 1
    }
    assert_eq!(locked(&x86(), Taken::Write), 0);
    assert_eq!(locked(&crate::accessed::x86(arch_x86_ept::AccessedDirty::Off), Taken::Reference), 0);
    assert_eq!(locked(&arm64(), Taken::Write), 32);
    assert_eq!(locked(&power(), Taken::Write), 32);
    assert_eq!(locked(&crate::accessed::power(arch_ppc_radix::RcUpdate::Interrupt), Taken::Reference), 32);
}

#[derive(Clone, Copy)]
enum Taken {
    Write,
    Reference,
}

/// A17: two vCPUs hold the same read-only translation and write at once. The one that loses the race must drop its translation too.
#[test]
fn the_loser_of_a_relax_race_flushes_as_well() {
    let platform = arm64();
    let vm = vm(2.MiB(), 2, PageSize::SIZE_4K, Populate::ByFaults);
    let run = |relax| {
        let policy = FaultPolicy { relax, ..FaultPolicy::new(LockMode::Read, PageSize::SIZE_4K) };
        // Mapped read-only by reads while logging is on, cached by both, then written by both.
        let page =
            || vec![list([0], PageSize::SIZE_4K, AccessKind::Read), list([0], PageSize::SIZE_4K, AccessKind::Write)];
        guest(&platform, &vm, policy, 1, vec![page(), page()], |sim, _| {
            // Somebody else's flush at last lets the loser go on.
            sim.spawn("rescue", Cycles(3_000_000), |host| Box::pin(async move { host.flush_vm().await }));
        })
    };
    let most = |ended: &Ended| ended.stats.iter().map(|stats| stats.faults).max().unwrap();
    let (local, broadcast, lost) =
        (run(RelaxFlush::Local), run(RelaxFlush::Broadcast), run(RelaxFlush::LocalIfChanged));
    for ended in [&local, &broadcast, &lost] {
        assert_eq!(ended.violations, []);
    }
    assert!(most(&local) <= 4, "{}", most(&local));
    assert!(most(&lost) > 20, "without a flush the fault comes back until somebody else flushes: {}", most(&lost));
    // A21: a broadcast for each relaxed permission, where a local invalidation does.
    assert!(broadcast.counters.broadcasts > local.counters.broadcasts);
}

/// A07: two vCPUs write different pages of one block while logging is on; each splits it by stores that expect to be alone.
#[test]
fn splitting_under_the_read_lock_loses_a_table() {
    let platform = arm64();
    let vm = vm(2.MiB(), 2, PageSize::SIZE_2M, Populate::ByFaults);
    let run = |permission_lock| {
        let policy = FaultPolicy {
            permission_lock,
            level: LevelChoice::ByBacking,
            ..FaultPolicy::new(LockMode::Write, PageSize::SIZE_2M)
        };
        let pages = |n| {
            vec![
                list([n; 50_000], PageSize::SIZE_4K, AccessKind::Read),
                list([n], PageSize::SIZE_4K, AccessKind::Write),
            ]
        };
        guest(&platform, &vm, policy, 0, vec![pages(0), pages(1)], |sim, logging| {
            sim.spawn("log", Cycles(100_000), move |host| {
                Box::pin(async move {
                    host.store_release(logging, 1).await;
                    write_protect(&host, 2.MiB()).await;
                })
            });
        })
    };
    let same = run(PermissionLock::Same);
    assert_eq!((same.violations, same.ran), (vec![], vec![Ran::Done; 4]));
    let read = run(PermissionLock::ReadAlways);
    assert!(!read.violations.is_empty(), "two splits of one block under the read lock went unnoticed");
}

/// A fetch from a page that was mapped without execute permission has to split its block while logging is on: it needs a table.
#[test]
fn a_permission_fault_needs_its_tables_too() {
    let platform = arm64();
    let vm = vm(4.MiB(), 1, PageSize::SIZE_2M, Populate::ByFaults);
    let run = |top_up| {
        let policy = FaultPolicy {
            top_up,
            exec: ExecMapping::OnFetch,
            level: LevelChoice::ByBacking,
            ..FaultPolicy::new(LockMode::Read, PageSize::SIZE_2M)
        };
        let fetch = |page| list([page], PageSize::SIZE_4K, AccessKind::Execute);
        let read =
            list([0, 512].into_iter().chain(std::iter::repeat_n(0, 50_000)), PageSize::SIZE_4K, AccessKind::Read);
        guest(&platform, &vm, policy, 0, vec![vec![read, fetch(1), fetch(513)]], |sim, logging| {
            // The blocks are mapped by then, and nothing has been fetched.
            sim.spawn("log", Cycles(150_000), move |host| {
                Box::pin(async move { host.store_release(logging, 1).await })
            });
        })
    };
    let fixed = run(TopUp::EveryFault);
    assert_eq!((fixed.violations, fixed.ran), (vec![], vec![Ran::Done; 3]));
    let defect = run(TopUp::NotForPermission);
    assert!(defect.ran.contains(&Ran::Failed) && defect.counters.failed_runs > 0, "{:?}", defect.ran);
    // Allocation under the lock that always fails costs another round, no more.
    let nowait = run(TopUp::UnderLock { fails_every: 1 });
    assert_eq!((nowait.violations, nowait.ran), (vec![], vec![Ran::Done; 3]));
}

/// Memory up to a bound, nothing behind it.
#[derive(Clone, Copy)]
struct UpTo(u64);

impl<F: Format> FaultHooks<F> for UpTo {
    async fn slot(&self, _: &Host<F>, gpa: Gpa) -> SlotState {
        if gpa.raw() < self.0 { SlotState::Memory } else { SlotState::None }
    }
}

#[test]
fn what_is_no_memory_is_emulated() {
    let platform = x86();
    let mut sim = build_without_threads(&platform, &vm(2.MiB(), 1, PageSize::SIZE_4K, Populate::ByFaults)).unwrap();
    let vcpu = VcpuId(0);
    sim.spawn_vcpu(vcpu, move |host| {
        Box::pin(async move {
            let policy = FaultPolicy::new(LockMode::Read, PageSize::SIZE_4K);
            let mut faults = Faults::with_hooks(vcpu, policy, UpTo(1.MiB()));
            host.assign(vcpu, list([0, 300, 1, 301], PageSize::SIZE_4K, AccessKind::Read));
            assert_eq!(run(&host, vcpu, &mut faults).await, Ran::Done);
            faults.release(&host).await;
        })
    });
    assert_eq!(sim.run(), Stopped::Finished);
    assert_eq!((sim.vcpu_stats()[0].accesses, sim.vcpu_stats()[0].faults), (4, 4));
    assert_eq!(sim.destroy(), Stopped::Finished);
    assert_eq!(sim.world().violations(), []);
}

#[test]
fn faults_are_the_same_for_one_and_for_many_threads() {
    let one = Stage1Config::default().build().unwrap();
    let two = Stage2Config::default().build().unwrap();
    let machine = mmu_core::machine::Machine::builtin("arm-neoverse-n1").unwrap();
    let platform: Platform<Arch2<Stage1, Stage2>> = Platform::new(Arch2 { name: "arm64", one, two }, &machine);
    let vm = vm(8.MiB(), 4, PageSize::SIZE_4K, Populate::ByFaults);
    let policy = FaultPolicy::linux_6_6(&two, PageSize::SIZE_4K);
    let figures = |threads| {
        let work =
            (0..4).map(|n| vec![list((n * 200)..(n * 200 + 600), PageSize::SIZE_4K, AccessKind::Write)]).collect();
        let ended = guest(&platform, &vm, policy, 0, work, |sim, _| sim.set_threads(threads));
        assert_eq!(ended.violations, []);
        (ended.counters, ended.stats)
    };
    assert_eq!(figures(Threads::One), figures(Threads::Pool));
}
