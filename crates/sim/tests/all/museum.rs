//! Defects of the kernel's past that timed runs can show, each beside the form that does not have it.
//!
//! Where two actors have to meet, one of them starts at many moments: the defect shows at one of them at least, the fixed form at none.

use std::cell::Cell;
use std::rc::Rc;

use crate::accessed::x86 as x86_with;
use crate::common::{arm64, power, small_vm, x86};
use arch_x86_ept::AccessedDirty;
use mmu_core::{AccessKind, ByteUnits, Bytes, Cycles, Format, Gpa, GpaRange, Gva, Hpa, HvaRange, Level, PageSize};
use mmu_sim::arch::Arch;
use mmu_sim::checker::Violation;
use mmu_sim::engine::{
    Blockable, ExitReason, GuestPaging, HostCounters, LockId, LockMode, Memslot, Sim, SlotFlags, SlotId, SlotsVersion,
    Stopped, Unmapping, Userfault, VcpuId, Vma, Watch,
};
use mmu_sim::experiment::vm::GUEST_MEMORY;
use mmu_sim::experiment::{Populate, VmSpec, build_without_threads};
use mmu_sim::protocols::coalesce::{CoalescePolicy, References};
use mmu_sim::protocols::collapse::{CollapsePolicy, CollapseRecheck, collapse_range};
use mmu_sim::protocols::dirty_log::vcpu::LoggedSlot;
use mmu_sim::protocols::dirty_log::{
    Breaks, DirtyLog, DirtyPolicy, LogKind, Manual, SplitWhen, disable, enable, get_dirty_log,
};
use mmu_sim::protocols::fault::{
    ExecMapping, FaultPolicy, Faults, LevelChoice, LoggedBy, PaOffset, PresentLeaf, RelaxFlush,
};
use mmu_sim::protocols::iter::{FlushOnYield, TdpIter, WalkRules, Yield, cond_resched};
use mmu_sim::protocols::nested::{RcClear, Shadow};
use mmu_sim::protocols::notifier::{Notifier, NotifierPolicy, SlotsGuard, range_end, range_start};
use mmu_sim::protocols::prefault::{DeletedSlot, pre_fault_memory};
use mmu_sim::protocols::roots::{ObsoleteTest, RootPolicy, Roots, Step};
use mmu_sim::protocols::slots::{Publication, SequenceBump, SlotPolicy, SlotUpdate, set_memory_region};
use mmu_sim::protocols::split::{Publish, SplitPolicy, eager_split};
use mmu_sim::protocols::vcpu::{self, Ran};
use mmu_sim::protocols::zap::{LinkedTable, TableFlush, TableZap, ZapPolicy, zap_sp};
use mmu_sim::rng::Seed;
use mmu_sim::workload::{GuestAccess, GuestWork, Mix, PatternSpec, Workload};

fn vm(memory: u64, vcpus: usize, page: PageSize, populate: Populate) -> VmSpec {
    VmSpec { page, populate, guest: GuestPaging::Flat, workload: Workload::Idle, ..small_vm(memory, vcpus, 0) }
}

fn list(addresses: impl IntoIterator<Item = u64>, kind: AccessKind) -> GuestWork {
    GuestWork::List(addresses.into_iter().map(|at| GuestAccess { gva: Gva::new(at), kind }).collect())
}

fn random(bytes: u64, accesses: u64, writes_percent: u32) -> GuestWork {
    let spec = PatternSpec { bytes, mix: Mix::Uniform, writes_percent, accesses };
    GuestWork::Pattern { spec, base: Gva::new(0), seed: Seed(5) }
}

fn end<A: Arch>(sim: &mut Sim<A>) -> Vec<Violation> {
    assert_eq!(sim.run(), Stopped::Finished);
    assert_eq!(sim.failure(), None);
    assert_eq!(sim.destroy(), Stopped::Finished);
    sim.world().violations().to_vec()
}

fn spawn<A: Arch>(sim: &mut Sim<A>, index: usize, policy: FaultPolicy, work: Vec<GuestWork>) {
    sim.spawn_vcpu(VcpuId(index), move |host| {
        Box::pin(async move {
            let mut faults = Faults::new(VcpuId(index), policy);
            for work in work {
                host.assign(VcpuId(index), work);
                if vcpu::run(&host, VcpuId(index), &mut faults).await == Ran::Failed {
                    break;
                }
            }
            faults.release(&host).await;
        })
    });
}

// ---- x86 ----

/// A table goes away by a walk that yields in debt; a vCPU that has cached the way to it comes back `after` so many accesses. Grace periods are as
/// short as they can be.
fn yield_in_debt(flush_on_yield: FlushOnYield, after: usize) -> Vec<Violation> {
    let mut platform = x86();
    platform.costs.rcu_grace = Cycles(1);
    let memory = 8.MiB();
    let mut sim = build_without_threads(&platform, &vm(memory, 1, PageSize::SIZE_4K, Populate::Mapped)).unwrap();
    let elsewhere = std::iter::repeat_n(6.MiB(), after);
    let accesses = std::iter::once(2.MiB()).chain(elsewhere).chain((1..64).map(|n| 2.MiB() + n * 4096));
    spawn(&mut sim, 0, FaultPolicy::new(LockMode::Read, PageSize::SIZE_4K), vec![list(accesses, AccessKind::Read)]);
    sim.spawn("zap", Cycles(5_000), move |host| {
        Box::pin(async move {
            let (format, zap) = (*host.format(), ZapPolicy { flush: TableFlush::DeferredRcu, ..ZapPolicy::V5_17 });
            host.lock(LockId::MMU, LockMode::Write).await;
            host.rcu_read_lock().await;
            let gpa = Gpa::new(2.MiB());
            let (mut table, mut level) = (host.root().await, format.geometry().root());
            let page = loop {
                let sptep = table + 8 * format.geometry().index(level, gpa.raw()) as u64;
                let below = format.next_table(level, host.read(sptep).await);
                if level.index() == 1 {
                    break LinkedTable { sptep, level, gpa, table: below };
                }
                (table, level) = (below, level.down().unwrap());
            };
            let TableZap::Zapped(mut debt) = zap_sp(&host, page, &zap).await else { panic!("the table was there") };
            let root = host.root().await;
            let mut iter = TdpIter::new(format, root, Level::LAST, gpa, Gpa::new(memory));
            assert!(iter.next(&host).await);
            let rules = WalkRules { yielding: Yield::YieldedGfn, flush_on_yield, lock: LockMode::Write };
            assert!(cond_resched(&host, &mut iter, rules, &mut debt).await, "somebody waits for the lock");
            host.rcu_read_unlock().await;
            host.unlock(LockId::MMU).await;
        })
    });
    sim.spawn("waiter", Cycles(6_000), |host| {
        Box::pin(async move {
            host.lock(LockId::MMU, LockMode::Write).await;
            host.unlock(LockId::MMU).await;
        })
    });
    end(&mut sim)
}

#[test]
fn x20_a_yield_that_leaves_the_rcu_section_before_it_flushes_frees_tables_under_walks() {
    let moments = || (0..60_000).step_by(120);
    assert!(moments().all(|after| yield_in_debt(FlushOnYield::IfPending, after).is_empty()));
    let bad = |found: &Violation| matches!(found, Violation::TableWalk { .. });
    assert!(moments().any(|after| yield_in_debt(FlushOnYield::IfPendingAfterRcu, after).iter().any(bad)));
}

/// A fault sleeps for its page while the root is invalidated and zapped.
fn fault_beside_a_fast_zap(stale: ObsoleteTest) -> Vec<Violation> {
    let memory = Bytes(32.MiB());
    let mut sim = build_without_threads(&x86(), &vm(memory.0, 1, PageSize::SIZE_4K, Populate::ByFaults)).unwrap();
    let slot = sim.world().slots().at(SlotsVersion(0), Gpa::new(0)).unwrap();
    let fresh = HvaRange::new(GUEST_MEMORY + (1 << 30), memory);
    sim.add_slot(Memslot { hva: fresh.start, ..slot });
    sim.primary_mut().map(fresh, Vma { userfault: Userfault::Missing(Cycles(400_000)), ..Vma::default() });
    let roots = Roots::adopt(&mut sim, RootPolicy { stale, ..RootPolicy::R4 }, None);
    let steps = vec![Step::Run(list([0x5000], AccessKind::Write)), Step::ToggleWriteProtect];
    roots.spawn_vcpu(&mut sim, VcpuId(0), steps, FaultPolicy::new(LockMode::Read, PageSize::SIZE_4K));
    roots.spawn_task(&mut sim, "fast zap", Cycles(100_000), |host, roots| {
        Box::pin(async move { roots.zap_all_fast(&host).await })
    });
    roots.spawn_exit(&mut sim);
    assert_eq!(sim.run(), Stopped::Finished);
    assert_eq!(sim.destroy_with(|_| Box::pin(async {})), Stopped::Finished);
    sim.world().violations().to_vec()
}

#[test]
fn x23_a_fault_into_an_invalid_root_leaks_tables() {
    assert_eq!(fault_beside_a_fast_zap(ObsoleteTest::Tested), []);
    let found = fault_beside_a_fast_zap(ObsoleteTest::Ignored);
    assert!(found.iter().any(|found| matches!(found, Violation::Leak { .. })), "{found:?}");
}

/// Two collapses of the same tables, sharing the lock.
fn two_collapses(recheck: CollapseRecheck, delay: u64) -> Vec<Violation> {
    let huge = PageSize::SIZE_2M;
    let mut platform = x86();
    // Reading takes long: each finds the table before the other one replaces it.
    platform.costs.visit = Cycles(100);
    let mut sim = build_without_threads(&platform, &vm(8 * huge.bytes(), 1, huge, Populate::Mapped)).unwrap();
    spawn(&mut sim, 0, FaultPolicy::new(LockMode::Read, huge), vec![]);
    let all = GpaRange::new(Gpa::new(0), Bytes(8 * huge.bytes()));
    sim.spawn("split", Cycles(0), move |host| {
        Box::pin(async move {
            host.lock(LockId::MMU, LockMode::Read).await;
            let root = host.root().await;
            eager_split(&host, root, all, PageSize::SIZE_4K, &SplitPolicy::X86_5_18).await.unwrap();
            host.unlock(LockId::MMU).await;
        })
    });
    let policy = CollapsePolicy { recheck, ..CollapsePolicy::X86_6_13 };
    for start in [20_000_000, 20_000_000 + delay] {
        sim.spawn("collapse", Cycles(start), move |host| {
            Box::pin(async move {
                host.lock(LockId::MMU, LockMode::Read).await;
                let root = host.root().await;
                collapse_range(&host, root, all, huge, &policy).await;
                host.unlock(LockId::MMU).await;
            })
        });
    }
    end(&mut sim)
}

#[test]
fn x36_a_collapse_that_does_not_look_again_tears_down_what_is_no_table() {
    let bad = |recheck| (0..1_000).step_by(25).filter(|&delay| !two_collapses(recheck, delay).is_empty()).count();
    assert_eq!(bad(CollapseRecheck::SameEntry), 0);
    assert!(bad(CollapseRecheck::None) > 0);
}

/// A page is prefaulted for reading while it is logged and written: pages that the log has lost.
fn prefault_of_a_written_page(present: PresentLeaf) -> Vec<Violation> {
    let platform = x86();
    let page = PageSize::SIZE_4K;
    let mut sim = build_without_threads(&platform, &vm(1.MiB(), 2, page, Populate::Mapped)).unwrap();
    sim.set_watch(Watch::Writes);
    let log = DirtyLog::new(GpaRange::new(Gpa::new(0), Bytes(1.MiB())), sim.new_var(0), page, LogKind::Bitmap);
    let slot = LoggedSlot::new(log);
    let stage = sim.new_var(0);
    let policy = FaultPolicy { present, ..FaultPolicy::linux_6_6(platform.arch.two(), page) };
    sim.spawn_vcpu(VcpuId(0), move |host| {
        Box::pin(async move {
            let mut faults = Faults::with_hooks(VcpuId(0), policy, slot);
            for turn in [1, 3] {
                while host.load_acquire(stage).await != turn {
                    host.sleep(Cycles(500)).await;
                }
                host.assign(VcpuId(0), list([0x5000], AccessKind::Write));
                assert_eq!(
                    mmu_sim::protocols::dirty_log::vcpu::run(&host, VcpuId(0), &slot, &mut faults).await,
                    Ran::Done
                );
                host.store_release(stage, turn + 1).await;
            }
            faults.release(&host).await;
        })
    });
    sim.spawn_vcpu(VcpuId(1), |_| Box::pin(async {}));
    let log_policy = DirtyPolicy { split: SplitWhen::Lazily, collapse: None, ..DirtyPolicy::X86_WRITE_PROTECT };
    assert_eq!(log_policy.manual, Manual::Off);
    sim.spawn("user space", Cycles(0), move |host| {
        Box::pin(async move {
            let turn = async |n| {
                host.store_release(stage, n).await;
                while host.load_acquire(stage).await != n + 1 {
                    host.sleep(Cycles(500)).await;
                }
            };
            enable(&host, &log, &log_policy).await.unwrap();
            turn(1).await;
            let mut ahead = Faults::with_hooks(VcpuId(1), policy, slot);
            let range = GpaRange::new(Gpa::new(0x5000), Bytes(4096));
            let done = pre_fault_memory(&host, &mut ahead, range, DeletedSlot::Again).await;
            assert_eq!(done.result, Ok(()));
            ahead.release(&host).await;
            // The page is reported and clean; the harvest finds nothing to protect and owes no flush.
            get_dirty_log(&host, &log, &log_policy).await.unwrap();
            turn(3).await;
            get_dirty_log(&host, &log, &log_policy).await.unwrap();
            host.dirty_log_settled().await;
            disable(&host, &log, &log_policy, page).await.unwrap();
        })
    });
    end(&mut sim)
}

#[test]
fn x41_a_leaf_that_loses_write_access_without_a_flush_is_written_unseen() {
    assert_eq!(prefault_of_a_written_page(PresentLeaf::Relaxed), []);
    assert_eq!(prefault_of_a_written_page(PresentLeaf::ReplacedAndFlushed), []);
    let found = prefault_of_a_written_page(PresentLeaf::Replaced);
    assert!(matches!(found.as_slice(), [Violation::DirtyLost { .. }]), "{found:?}");
}

/// Faults of a guest whose huge pages are split while it reads.
fn faults_while_splitting(publish: Publish) -> u64 {
    let huge = PageSize::SIZE_2M;
    let memory = 8.GiB();
    let mut sim = build_without_threads(&x86(), &vm(memory, 1, huge, Populate::Mapped)).unwrap();
    spawn(&mut sim, 0, FaultPolicy::new(LockMode::Read, huge), vec![random(memory, 400_000, 0)]);
    let policy = SplitPolicy { publish, ..SplitPolicy::X86_5_18 };
    sim.spawn("split", Cycles(1_000), move |host| {
        Box::pin(async move {
            host.lock(LockId::MMU, LockMode::Read).await;
            let root = host.root().await;
            let all = GpaRange::new(Gpa::new(0), Bytes(memory));
            eager_split(&host, root, all, PageSize::SIZE_4K, &policy).await.unwrap();
            host.unlock(LockId::MMU).await;
        })
    });
    assert_eq!(end(&mut sim), []);
    sim.vcpu_stats()[0].faults
}

#[test]
fn x47_a_table_that_is_linked_before_it_is_filled_has_holes() {
    assert_eq!(faults_while_splitting(Publish::FillThenLink), 0);
    assert!(faults_while_splitting(Publish::LinkThenFill) > 0);
}

// ---- common code ----

/// A task starts a second invalidation inside its first one; meanwhile a memslot is added.
fn nested_invalidations(slots: SlotsGuard, publication: Publication) -> Stopped {
    let mut sim = build_without_threads(&x86(), &vm(1.MiB(), 1, PageSize::SIZE_4K, Populate::Mapped)).unwrap();
    spawn(&mut sim, 0, FaultPolicy::new(LockMode::Read, PageSize::SIZE_4K), vec![]);
    let fresh = GUEST_MEMORY + (1 << 30);
    sim.primary_mut().map(HvaRange::new(fresh, Bytes(4096)), Vma::default());
    let notifier = Notifier::new(NotifierPolicy { slots, ..NotifierPolicy::V6_8 });
    sim.spawn("mremap", Cycles(0), move |host| {
        Box::pin(async move {
            let page = |n: u64| HvaRange::new(GUEST_MEMORY + n * 4096, Bytes(4096));
            let outer = range_start(&host, &notifier, page(3), Blockable::Yes).await;
            host.sleep(Cycles(100_000)).await;
            let inner = range_start(&host, &notifier, page(9), Blockable::Yes).await;
            range_end(&host, &notifier, inner).await;
            range_end(&host, &notifier, outer).await;
        })
    });
    sim.spawn("slots", Cycles(50_000), move |host| {
        Box::pin(async move {
            let gpa = GpaRange::new(Gpa::new(1 << 30), Bytes(4096));
            let slot = Memslot { id: SlotId(1), gpa, hva: fresh, flags: SlotFlags::empty() };
            let policy = SlotPolicy { publication, ..SlotPolicy::X86_LEAFS };
            set_memory_region(&host, SlotUpdate::Create(slot), &policy).await.unwrap();
        })
    });
    let stopped = sim.run();
    assert_eq!(sim.world().violations(), []);
    stopped
}

#[test]
fn g03_an_rwsem_between_slots_and_invalidations_deadlocks() {
    assert_eq!(nested_invalidations(SlotsGuard::Count, Publication::Blocked), Stopped::Finished);
    let stopped = nested_invalidations(SlotsGuard::Rwsem, Publication::Rwsem);
    assert!(matches!(stopped, Stopped::Deadlock { actors: 2, .. }), "{stopped:?}");
}

// ---- arm64 ----

fn longest_protect(chunk: Bytes) -> Cycles {
    let memory = 1.TiB();
    let mut sim = build_without_threads(&arm64(), &vm(memory, 1, PageSize::SIZE_4K, Populate::Mapped)).unwrap();
    spawn(&mut sim, 0, FaultPolicy::new(LockMode::Read, PageSize::SIZE_4K), vec![]);
    let slot = GpaRange::new(Gpa::new(0), Bytes(memory));
    let log = DirtyLog::new(slot, sim.new_var(0), PageSize::SIZE_4K, LogKind::Bitmap);
    sim.spawn("log", Cycles(0), move |host| {
        Box::pin(async move {
            let policy = DirtyPolicy { breaks: Breaks::Chunks(chunk), ..DirtyPolicy::ARM64 };
            enable(&host, &log, &policy).await.unwrap();
            disable(&host, &log, &policy, PageSize::SIZE_4K).await.unwrap();
        })
    });
    assert_eq!(end(&mut sim), []);
    sim.actors().find(|(name, _)| *name == "log").unwrap().1.longest_unscheduled
}

#[test]
fn a08_a_walk_that_asks_once_for_each_root_entry_keeps_its_processor() {
    let (entry, block) = (longest_protect(Bytes(512.GiB())), longest_protect(Bytes(1.GiB())));
    assert_eq!((entry, block), (Cycles(8_497_298_397), Cycles(54_950_889)));
    // Seconds, where the kernel's watchdog bites after twenty of them with 48 vCPUs in the way.
    assert!(entry.0 > arm64().clock_hz, "{entry}");
}

/// One vCPU maps a block where the other one, which sees dirty logging, wants pages: leaves that map the wrong host page.
fn block_beside_pages(offset: PaOffset, delay: u64) -> u64 {
    let (mut platform, huge) = (arm64(), PageSize::SIZE_2M);
    // The walker that has installed its block is slow to look again; the other one is quick.
    platform.costs.store = Cycles(2_000);
    (platform.costs.broadcast_issue, platform.costs.broadcast_barrier) = (Cycles(1), Cycles(1));
    platform.costs.broadcast_latency = Cycles(1);
    let memory = 2 * huge.bytes();
    let mut sim = build_without_threads(&platform, &vm(memory, 2, huge, Populate::ByFaults)).unwrap();
    let host_page = sim.world().primary().lookup(GUEST_MEMORY).unwrap();
    for (index, logged) in [0, 1].into_iter().enumerate() {
        let logging = sim.new_var(logged);
        // Blocks are not executable before a fetch, so that a fetch while logging is on has to split them.
        let (level, exec) = (LevelChoice::ByBacking, ExecMapping::OnFetch);
        let policy = FaultPolicy { offset, level, exec, ..FaultPolicy::new(LockMode::Read, huge) };
        let kind = [AccessKind::Write, AccessKind::Execute][index];
        sim.spawn_vcpu(VcpuId(index), move |host| {
            Box::pin(async move {
                host.sleep(Cycles(20_000 + delay * index as u64)).await;
                let mut faults = Faults::with_hooks(VcpuId(index), policy, LoggedBy(logging));
                host.assign(VcpuId(index), list([0x7000 * (1 + index as u64)], kind));
                let _ = vcpu::run(&host, VcpuId(index), &mut faults).await;
                faults.release(&host).await;
            })
        });
    }
    assert_eq!(sim.run(), Stopped::Finished);
    let world = sim.world();
    let mut wrong = 0;
    leaves(platform.arch.two(), world.tables(), world.root(), &mut |gpa, output| {
        wrong += u64::from(output != host_page.raw() + gpa);
    });
    wrong
}

/// Every leaf of the first gigabytes: its guest-physical and its host address.
fn leaves<F: Format>(format: &F, tables: &mmu_core::memory::TableMemory, root: Hpa, tell: &mut dyn FnMut(u64, u64)) {
    let geometry = *format.geometry();
    let mut stack = vec![(root, geometry.root(), 0u64)];
    while let Some((table, level, base)) = stack.pop() {
        for index in 0..geometry.entries(level) as u64 {
            let word = tables.read(table + 8 * index).unwrap();
            let gpa = base + (index << geometry.shift(level));
            match format.is_mapped(word) {
                true if format.is_leaf(level, word) => tell(gpa, format.output(level, word).raw()),
                true => stack.push((format.next_table(level, word), level.down().unwrap_or(Level::LAST), gpa)),
                false => {}
            }
        }
    }
}

#[test]
fn a16_an_offset_that_is_advanced_twice_over_maps_the_wrong_page() {
    let wrong = |offset| (0..120_000).step_by(700).map(|delay| block_beside_pages(offset, delay)).sum::<u64>();
    assert_eq!(wrong(PaOffset::FromIpa), 0);
    assert!(wrong(PaOffset::AdvancedByCallback) > 0);
}

#[test]
fn a18_an_invalidation_for_another_level_finds_nothing() {
    let platform = arm64();
    let faults = |relax| {
        let mut sim = build_without_threads(&platform, &vm(2.MiB(), 2, PageSize::SIZE_4K, Populate::ByFaults)).unwrap();
        let logging = sim.new_var(1);
        let policy = FaultPolicy { relax, ..FaultPolicy::new(LockMode::Read, PageSize::SIZE_4K) };
        for index in 0..2 {
            sim.spawn_vcpu(VcpuId(index), move |host| {
                Box::pin(async move {
                    let mut faults = Faults::with_hooks(VcpuId(index), policy, LoggedBy(logging));
                    for kind in [AccessKind::Read, AccessKind::Write] {
                        host.assign(VcpuId(index), list([0], kind));
                        assert_eq!(vcpu::run(&host, VcpuId(index), &mut faults).await, Ran::Done);
                    }
                    faults.release(&host).await;
                })
            });
        }
        // Somebody else's flush at last lets the loser go on.
        sim.spawn("rescue", Cycles(3_000_000), |host| Box::pin(async move { host.flush_vm().await }));
        assert_eq!(end(&mut sim), []);
        sim.vcpu_stats().iter().map(|vcpu| vcpu.faults).max().unwrap()
    };
    assert!(faults(RelaxFlush::Local) <= 4);
    assert!(faults(RelaxFlush::LocalUnknownLevel) > 20, "the fault comes back until somebody else flushes");
}

/// Eight vCPUs fault in the same pages at once, on an empty tree.
fn races_for_tables(references: References) -> (Vec<Violation>, HostCounters) {
    let mut sim = build_without_threads(&arm64(), &vm(64.MiB(), 8, PageSize::SIZE_4K, Populate::ByFaults)).unwrap();
    for index in 0..8 {
        let coalesce = CoalescePolicy { references, ..CoalescePolicy::V6_6 };
        let policy = FaultPolicy { coalesce, ..FaultPolicy::new(LockMode::Read, PageSize::SIZE_4K) };
        spawn(&mut sim, index, policy, vec![list((0..32).map(|n| n * 2.MiB()), AccessKind::Write)]);
    }
    let found = end(&mut sim);
    let counters = *sim.world().counters();
    (found, counters)
}

#[test]
fn a30_a_table_that_lost_its_race_is_given_back() {
    let (found, counters) = races_for_tables(References::Exact);
    assert_eq!(found, []);
    assert!(counters.retried_faults > 0, "nobody raced");
    let (found, _) = races_for_tables(References::ForgetsLoser);
    assert!(matches!(found.as_slice(), [Violation::Leak { .. }]), "{found:?}");
}

// ---- POWER ----

/// A fault sleeps for its page while the page's memslot is deleted and its memory freed. The thread is in no section of SRCU.
fn fault_beside_a_delete(bump: SequenceBump) -> Vec<Violation> {
    let platform = power();
    let page = platform.arch.two().geometry().page_size(Level::LAST);
    let mut sim = build_without_threads(&platform, &vm(4 * page.bytes(), 1, page, Populate::ByFaults)).unwrap();
    sim.set_watch(Watch::Accesses);
    let gpa = GpaRange::new(Gpa::new(64 * page.bytes()), page.into());
    let slot = Memslot { id: SlotId(1), gpa, hva: GUEST_MEMORY + (1 << 30), flags: SlotFlags::empty() };
    let delayed = Vma { userfault: Userfault::Missing(Cycles(400_000)), ..Vma::default() };
    sim.primary_mut().map(slot.hva_range(), delayed);
    sim.add_slot(slot);
    let policy = FaultPolicy::linux_6_6(platform.arch.two(), page);
    let handled = sim.new_var(0);
    sim.spawn_vcpu(VcpuId(0), move |host| {
        Box::pin(async move {
            let mut faults = Faults::new(VcpuId(0), policy);
            host.assign(VcpuId(0), list(std::iter::repeat_n(gpa.start.raw(), 60_000), AccessKind::Write));
            loop {
                match host.vcpu_run(VcpuId(0)).await.reason {
                    ExitReason::Fault(fault) => {
                        let _ = faults.handle(&host, fault).await;
                        host.store_release(handled, 1).await;
                    }
                    ExitReason::Kicked | ExitReason::LogFull => {}
                    ExitReason::Done => break,
                }
            }
            faults.release(&host).await;
        })
    });
    sim.spawn("delete", Cycles(50_000), move |host| {
        Box::pin(async move {
            let policy = SlotPolicy { bump, ..SlotPolicy::UNMAP };
            set_memory_region(&host, SlotUpdate::Delete(slot), &policy).await.unwrap();
            while host.load_acquire(handled).await == 0 {
                host.sleep(Cycles(2_000)).await;
            }
            host.unmap_pages(slot.hva_range(), Unmapping::Discard).await;
        })
    });
    end(&mut sim)
}

#[test]
fn p01_a_fault_that_read_the_old_slot_maps_it_after_its_flush() {
    assert_eq!(fault_beside_a_delete(SequenceBump::UnderLock), []);
    let found = fault_beside_a_delete(SequenceBump::None);
    assert!(!found.is_empty(), "the page of a deleted slot is reachable, and nobody noticed");
}

/// L2 reads a page whose dirty bit is taken away at the same time: whether its shadow entry is dirty although L1's is not.
fn nested_fault_beside_a_harvest(how: RcClear, delay: u64) -> bool {
    let platform = x86_with(AccessedDirty::On);
    let mut sim = build_without_threads(&platform, &vm(1.MiB(), 1, PageSize::SIZE_4K, Populate::Mapped)).unwrap();
    let shadow = Shadow::new(&mut sim, platform.arch.two(), Bytes(1.MiB()), 512, |l2| l2);
    let left = Rc::new(Cell::new([None; 2]));
    let out = Rc::clone(&left);
    sim.spawn_vcpu(VcpuId(0), move |host| {
        Box::pin(async move {
            host.sleep(Cycles(10_000)).await;
            host.assign(VcpuId(0), list([0x9000], AccessKind::Read));
            shadow.thread(&host, VcpuId(0), 1).await.unwrap();
            host.sleep(Cycles(200_000)).await;
            out.set(shadow.dirty_state(&host, Gpa::new(0x9000)).await);
            shadow.release(&host).await;
        })
    });
    sim.spawn("harvest", Cycles(10_000 + delay), move |host| {
        Box::pin(async move {
            let page = GpaRange::new(Gpa::new(0x9000), Bytes(4096));
            assert_eq!(shadow.test_clear_dirty(&host, page, how).await, 1);
        })
    });
    assert_eq!(end(&mut sim), []);
    left.get() == [Some(true), Some(false)]
}

#[test]
fn p02_a_nested_fault_does_not_keep_what_was_cleared() {
    let kept = |how| (0..40_000).step_by(40).filter(|&delay| nested_fault_beside_a_harvest(how, delay)).count();
    assert_eq!(kept(RcClear::BumpsSequence), 0);
    assert!(kept(RcClear::Silent) > 0);
}
