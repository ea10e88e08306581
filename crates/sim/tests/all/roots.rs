//! Life cycles of roots: every one of them ends clean, costs what history says, and shows its bugs when asked to.

use std::cell::Cell;
use std::rc::Rc;

use crate::common::{arm64, power, small_vm, x86};
use mmu_core::{ByteUnits, Bytes, Cycles, Format, Gpa, GpaRange, Gva, Hpa, PageSize};
use mmu_sim::arch::Arch;
use mmu_sim::checker::Violation;
use mmu_sim::engine::{
    ActorFuture, GuestPaging, Host, HostCounters, LockId, LockMode, Sim, Stopped, VcpuId, VcpuStats,
};
use mmu_sim::experiment::{Platform, VmSpec, build_without_threads};
use mmu_sim::protocols::fault::FaultPolicy;
use mmu_sim::protocols::iter::{FlushDebt, Yield};
use mmu_sim::protocols::notifier;
use mmu_sim::protocols::roots::{
    AddressSpace, DebtScope, LastPut, LifeCycle, RootPolicy, Roots, Step, UnmapRoots, WalkerPut, ZapGift,
};
use mmu_sim::protocols::workqueue::{Binding, ProcessorId, WorkerPriority, Workqueue, WorkqueueSpec};
use mmu_sim::protocols::zap::{Passes, ZapPolicy};
use mmu_sim::rng::Seed;
use mmu_sim::workload::{GuestWork, Mix, PatternSpec, Workload};

const CYCLES: [(&str, RootPolicy); 4] =
    [("R1", RootPolicy::R1), ("R2", RootPolicy::R2), ("R3", RootPolicy::R3), ("R4", RootPolicy::R4)];

/// A VM whose vCPUs load their roots by themselves, and what happened to it.
struct Vm<A: Arch> {
    sim: Sim<A>,
    roots: Roots<A::Two>,
    queue: Option<Workqueue<A::Two>>,
    page: PageSize,
}

struct Ended {
    violations: Vec<Violation>,
    warnings: u32,
    host: HostCounters,
    vcpus: Vec<VcpuStats>,
    longest_unscheduled: Vec<(&'static str, Cycles)>,
}

impl<A: Arch> Vm<A> {
    fn new(platform: &Platform<A>, vm: &VmSpec, policy: RootPolicy, workers: WorkqueueSpec) -> Self {
        let mut sim = build_without_threads(platform, vm).unwrap();
        let queue = (policy.life == LifeCycle::WorkerZaps).then(|| Workqueue::start(&mut sim, workers));
        let roots = Roots::adopt(&mut sim, policy, queue.clone());
        Self { sim, roots, queue, page: vm.page }
    }

    fn vcpu(&mut self, index: usize, steps: Vec<Step>) {
        let policy = FaultPolicy::new(LockMode::Read, self.page);
        self.roots.spawn_vcpu(&mut self.sim, VcpuId(index), steps, policy);
    }

    fn task(
        &mut self,
        name: &'static str,
        at: u64,
        task: impl FnOnce(Host<A::Two>, Roots<A::Two>) -> ActorFuture + 'static,
    ) {
        self.roots.spawn_task(&mut self.sim, name, Cycles(at), task);
    }

    fn fast_zap(&mut self, at: u64) {
        self.task("fast zap", at, |host, roots| Box::pin(async move { roots.zap_all_fast(&host).await }));
    }

    fn drop_range(&mut self, at: u64, start: u64, bytes: u64) {
        let range = GpaRange::new(Gpa::new(start), Bytes(bytes));
        self.task("notifier", at, move |host, roots| {
            Box::pin(async move { roots.invalidate_range(&host, range).await })
        });
    }

    /// Takes and drops the write lock again and again, so that whoever may yield does.
    fn contend(&mut self, at: u64, times: u64, pause: u64) {
        self.task("contender", at, move |host, _| {
            Box::pin(async move {
                for _ in 0..times {
                    host.lock(LockId::MMU, LockMode::Write).await;
                    host.unlock(LockId::MMU).await;
                    host.sleep(Cycles(pause)).await;
                }
            })
        });
    }

    fn end(mut self) -> Ended {
        self.roots.spawn_exit(&mut self.sim);
        assert_eq!(self.sim.run(), Stopped::Finished);
        let host = *self.sim.world().counters();
        assert_eq!(self.sim.destroy_with(|_| Box::pin(async {})), Stopped::Finished);
        assert_eq!(self.sim.failure(), None);
        let longest = self.sim.actors().map(|(name, stats)| (name, stats.longest_unscheduled)).collect();
        Ended {
            violations: self.sim.world().violations().to_vec(),
            warnings: self.roots.warnings(),
            host,
            vcpus: self.sim.vcpu_stats(),
            longest_unscheduled: longest,
        }
    }
}

impl Ended {
    fn clean(&self) {
        let found: Vec<String> = self.violations.iter().map(ToString::to_string).collect();
        assert_eq!((found, self.warnings), (vec![], 0));
    }

    fn faults(&self) -> u64 {
        self.vcpus.iter().map(|vcpu| vcpu.faults).sum()
    }
}

fn vm(memory: u64, vcpus: usize) -> VmSpec {
    VmSpec { workload: Workload::Idle, guest: GuestPaging::Flat, ..small_vm(memory, vcpus, 0) }
}

/// One write to each of `pages` pages from `start` on.
fn touch(start: u64, pages: u64, page: PageSize) -> Step {
    let stride = page.bytes();
    let spec =
        PatternSpec { bytes: pages * stride, mix: Mix::Strided { stride }, writes_percent: 100, accesses: pages };
    Step::Run(GuestWork::Pattern { spec, base: Gva::new(start), seed: Seed(1) })
}

/// Busy vCPUs, fast zaps, invalidations and context switches at once.
fn everything<A: Arch>(platform: &Platform<A>, page: PageSize, policy: RootPolicy) -> Ended {
    let spec = VmSpec { page, ..vm(64.MiB(), 3) };
    let mut vm = Vm::new(platform, &spec, policy, WorkqueueSpec::KVM_5_18);
    let pages = 8.MiB() / page.bytes();
    for index in 0..3 {
        let mut steps = Vec::new();
        for round in 0..4 {
            steps.push(touch(16.MiB() * index as u64 + 2.MiB() * round, pages, page));
            steps.push(if round == 2 { Step::Enter(AddressSpace::SMM) } else { Step::ToggleWriteProtect });
        }
        steps.push(touch(0, pages, page));
        vm.vcpu(index, steps);
    }
    for zap in 0..3 {
        vm.fast_zap(200_000 + zap * 1_500_000);
    }
    for invalidation in 0..6 {
        vm.drop_range(150_000 + invalidation * 700_000, 5.MiB() * invalidation, 6.MiB());
    }
    vm.end()
}

#[test]
fn every_life_cycle_is_clean_on_every_architecture() {
    for (name, policy) in CYCLES {
        let ended = everything(&x86(), PageSize::SIZE_4K, policy);
        ended.clean();
        assert!(ended.host.zapped_leaves > 16_000, "{name}: {:?}", ended.host);
        everything(&arm64(), PageSize::SIZE_4K, policy).clean();
        everything(&power(), PageSize::SIZE_64K, policy).clean();
    }
}

#[test]
fn a_guest_that_toggles_write_protection_rebuilds_its_tables_unless_roots_are_kept() {
    let toggles = |policy| {
        let mut vm = Vm::new(&x86(), &vm(16.MiB(), 1), policy, WorkqueueSpec::KVM_5_18);
        let mut steps = Vec::new();
        for _ in 0..5 {
            steps.extend([touch(0, 1024, PageSize::SIZE_4K), Step::ToggleWriteProtect]);
        }
        vm.vcpu(0, steps);
        let ended = vm.end();
        ended.clean();
        ended.faults()
    };
    // The guest begins mapped; what a toggle destroys is faulted in again (X22).
    assert_eq!(toggles(RootPolicy::R1), 4 * 1024);
    assert_eq!(toggles(RootPolicy::R2), 4 * 1024);
    assert_eq!(toggles(RootPolicy::R3), 0);
    assert_eq!(toggles(RootPolicy::R4), 0);
}

#[test]
fn two_vcpus_on_one_root_keep_it_alive_for_each_other() {
    for (name, policy) in CYCLES {
        let mut vm = Vm::new(&x86(), &vm(16.MiB(), 2), policy, WorkqueueSpec::KVM_5_18);
        let round = || [touch(0, 1024, PageSize::SIZE_4K), Step::ToggleWriteProtect];
        vm.vcpu(0, [round(), round()].concat());
        vm.vcpu(1, vec![touch(8.MiB(), 2048, PageSize::SIZE_4K), touch(8.MiB(), 2048, PageSize::SIZE_4K)]);
        let ended = vm.end();
        ended.clean();
        assert_eq!(ended.faults(), 0, "{name}");
    }
}

#[test]
fn the_last_put_of_the_first_life_cycle_never_breathes() {
    let stretch = |memory, policy| {
        let mut vm = Vm::new(&x86(), &vm(memory, 1), policy, WorkqueueSpec::KVM_5_18);
        vm.vcpu(0, vec![touch(0, 16, PageSize::SIZE_4K)]);
        let threads = |vm: &Vm<_>| vm.sim.threads()[&VcpuId(0)].longest_unscheduled;
        vm.roots.spawn_exit(&mut vm.sim);
        assert_eq!(vm.sim.run(), Stopped::Finished);
        threads(&vm)
    };
    let (one, four) = (stretch(1.GiB(), RootPolicy::R1), stretch(4.GiB(), RootPolicy::R1));
    assert!(four.0 > 3 * one.0 && four.0 < 5 * one.0, "X16: grows with memory: {one:?}, {four:?}");
    assert!(stretch(4.GiB(), RootPolicy::R2).0 < one.0 / 100, "somebody else zaps");
}

/// A fast zap that yields to a notifier, which has pages freed that the zapper has still to visit.
fn notifier_meets_invalid_root(policy: RootPolicy) -> Ended {
    let mut vm = Vm::new(&x86(), &vm(256.MiB(), 1), policy, WorkqueueSpec::KVM_5_18);
    vm.vcpu(0, vec![touch(0, 16, PageSize::SIZE_4K)]);
    vm.fast_zap(100_000);
    vm.drop_range(400_000, 192.MiB(), 32.MiB());
    vm.end()
}

#[test]
fn a_notifier_that_skips_invalid_roots_frees_pages_under_a_zapper() {
    // Passes that can yield inside a gibibyte, so that a small guest will do.
    let zap = ZapPolicy { passes: Passes::FourLevels, ..RootPolicy::R2.zap };
    for fixed in [RootPolicy { zap, ..RootPolicy::R2 }, RootPolicy { zap, ..RootPolicy::R3 }, RootPolicy::R4] {
        notifier_meets_invalid_root(fixed).clean();
        let ended = notifier_meets_invalid_root(RootPolicy { unmap: UnmapRoots::ValidOnly, ..fixed });
        assert!(
            ended.violations.iter().any(|found| matches!(found, Violation::ReleaseAfterFree { .. })),
            "X14 with {:?}: {:?}",
            fixed.life,
            ended.violations
        );
    }
}

#[test]
fn a_zap_without_references_that_yields_lets_the_notifier_pass() {
    let run = |last_put| {
        let zap = ZapPolicy { passes: Passes::FourLevels, ..RootPolicy::R1.zap };
        let policy = RootPolicy { last_put, zap, ..RootPolicy::R1 };
        let mut vm = Vm::new(&x86(), &vm(256.MiB(), 1), policy, WorkqueueSpec::KVM_5_18);
        vm.vcpu(0, vec![touch(0, 16, PageSize::SIZE_4K), Step::ToggleWriteProtect]);
        vm.drop_range(400_000, 192.MiB(), 32.MiB());
        vm.end()
    };
    run(LastPut::Unbroken).clean();
    let ended = run(LastPut::Yields);
    assert!(
        ended.violations.iter().any(|found| matches!(found, Violation::ReleaseAfterFree { .. })),
        "X15: {:?}",
        ended.violations
    );
}

#[test]
fn a_walker_that_gives_back_what_others_were_given_frees_a_root_twice() {
    let run = |gift| {
        let policy = RootPolicy { gift, ..RootPolicy::R2 };
        let mut vm = Vm::new(&x86(), &vm(1.GiB(), 2), policy, WorkqueueSpec::KVM_5_18);
        // vCPU 0 and 1 leave the first root, whose worker is at it when the fast zap walks the list.
        for index in 0..2 {
            vm.vcpu(
                index,
                vec![touch(0, 16, PageSize::SIZE_4K), Step::ToggleWriteProtect, touch(0, 64, PageSize::SIZE_4K)],
            );
        }
        vm.contend(50_000, 200, 100_000);
        vm.fast_zap(400_000);
        vm.end()
    };
    run(ZapGift::Owned).clean();
    let ended = run(ZapGift::EveryInvalidRoot);
    assert!(ended.warnings > 0 || !ended.violations.is_empty(), "X19");
}

#[test]
fn a_walk_that_only_decrements_leaks_the_root_its_users_left() {
    let run = |walker_put| {
        let policy = RootPolicy { walker_put, ..RootPolicy::R2 };
        let mut vm = Vm::new(&x86(), &vm(256.MiB(), 1), policy, WorkqueueSpec::KVM_5_18);
        vm.vcpu(0, vec![touch(0, 4096, PageSize::SIZE_4K)]);
        // The walk holds its reference, and yields the lock, while the vCPU leaves the root for good.
        vm.drop_range(5_000, 32.MiB(), 192.MiB());
        vm.end()
    };
    run(WalkerPut::PutRoot).clean();
    let ended = run(WalkerPut::DecrementOnly);
    assert!(matches!(ended.violations[..], [Violation::Leak { .. }]), "X09: {:?}", ended.violations);
}

#[test]
fn a_restart_that_advances_leaks_what_it_stepped_over() {
    let run = |yielding| {
        let zap = ZapPolicy { passes: Passes::One, yielding, ..RootPolicy::R3.zap };
        let spec = vm(64.MiB(), 1);
        let mut vm = Vm::new(&x86(), &spec, RootPolicy { zap, ..RootPolicy::R3 }, WorkqueueSpec::KVM_5_18);
        vm.vcpu(0, vec![touch(0, 16, PageSize::SIZE_4K)]);
        vm.fast_zap(100_000);
        vm.contend(50_000, 2_000, 1);
        vm.end()
    };
    run(Yield::YieldedGfn).clean();
    let ended = run(Yield::RestartAdvances);
    assert!(matches!(ended.violations[..], [Violation::Leak { .. }]), "X04: {:?}", ended.violations);
}

/// Where the leaf for `gpa` stands below a root.
async fn leaf_entry<F: Format>(host: &Host<F>, root: Hpa, gpa: Gpa) -> Hpa {
    let (format, mut table) = (*host.format(), root);
    let geometry = format.geometry();
    let mut level = geometry.root();
    loop {
        let at = table + 8 * geometry.index(level, gpa.raw()) as u64;
        let Some(down) = level.down() else { return at };
        (table, level) = (format.next_table(level, host.read(at).await), down);
    }
}

#[test]
fn a_debt_is_carried_from_root_to_root() {
    let memory = 64.MiB();
    let range = GpaRange::new(Gpa::new(0), Bytes(memory));
    let run = |debt| {
        let policy = RootPolicy { debt, ..RootPolicy::R3 };
        let mut vm = Vm::new(&x86(), &vm(memory, 1), policy, WorkqueueSpec::KVM_5_18);
        // The second root has a page in each table, and holes where the walk may yield before it zaps anything.
        let sparse =
            PatternSpec { bytes: memory, mix: Mix::Strided { stride: 2.MiB() }, writes_percent: 100, accesses: 32 };
        let sparse = GuestWork::Pattern { spec: sparse, base: Gva::new(2.MiB() - 4.KiB()), seed: Seed(1) };
        // Then sixteen pages below the first root that stay in the TLB, without a fault that would contend for the lock.
        let cached = PatternSpec { bytes: 64.KiB(), mix: Mix::Uniform, writes_percent: 0, accesses: 4_000_000 };
        let cached = GuestWork::Pattern { spec: cached, base: Gva::new(0), seed: Seed(1) };
        let to = Step::Enter;
        vm.vcpu(0, vec![to(AddressSpace::SMM), Step::Run(sparse), to(AddressSpace::NORMAL), Step::Run(cached)]);
        let first = vm.roots.snapshot()[0].table;
        vm.task("unmap", 5_000_000, move |host, roots| {
            Box::pin(async move {
                assert_eq!(roots.snapshot().len(), 2);
                notifier::begin(&host, range).await;
                assert_eq!(roots.unmap_gfn_range(&host, range).await, FlushDebt::Owed);
                host.flush_vm().await;
                host.unlock(LockId::MMU).await;
                notifier::end(&host).await;
            })
        });
        // Whoever gets the lock finds what was zapped before it was dropped flushed, and frees the pages.
        vm.task("other", 4_900_000, move |host, _| {
            Box::pin(async move {
                let last = leaf_entry(&host, first, Gpa::new(memory - 4096)).await;
                while host.read(last).await != 0 {
                    host.sleep(Cycles(1_000)).await;
                }
                host.lock(LockId::MMU, LockMode::Write).await;
                host.drop_pages(GpaRange::new(Gpa::new(0), Bytes(64.KiB()))).await;
                host.unlock(LockId::MMU).await;
            })
        });
        vm.end()
    };
    run(DebtScope::Carried).clean();
    let ended = run(DebtScope::PerRoot);
    assert!(
        ended.violations.iter().any(|found| matches!(found, Violation::StaleTranslation { .. })),
        "X05: {:?}",
        ended.violations
    );
}

/// The longest wait for a processor of a task that wakes every millisecond, while memslots are deleted.
fn audio(spec: WorkqueueSpec, on: u32) -> Cycles {
    let policy = RootPolicy::R2;
    let mut vm = Vm::new(&x86(), &vm(2.GiB(), 1), policy, spec);
    vm.vcpu(0, vec![touch(0, 16, PageSize::SIZE_4K)]);
    let processor = vm.queue.as_ref().unwrap().processor(ProcessorId(on));
    let worst = Rc::new(Cell::new(Cycles::ZERO));
    let found = Rc::clone(&worst);
    vm.task("audio", 0, move |host, _| {
        Box::pin(async move {
            for beat in 1..60u64 {
                let due = Cycles(beat * 3_900_000);
                host.sleep_until(due).await;
                host.lock(processor, LockMode::Write).await;
                let waited = host.now().await.since(due);
                found.set(found.get().max(waited));
                host.spend(mmu_sim::engine::Work::Exactly(Cycles(100_000))).await;
                host.unlock(processor).await;
            }
        })
    });
    vm.fast_zap(1_000_000);
    vm.end().clean();
    worst.get()
}

#[test]
fn unbound_workers_take_processors_that_nobody_gave_them() {
    let spec = |binding, priority| WorkqueueSpec { binding, priority, processors: 2 };
    let bound = spec(Binding::Bound, WorkerPriority::Normal);
    // Work is queued from processor 0. Bound workers leave the other one alone.
    assert!(audio(bound, 1) < Cycles(10_000));
    // A gibibyte is zapped without a break: whoever shares the processor waits for it (X21).
    assert!(audio(bound, 0) > Cycles(10_000_000));
    let high = spec(Binding::Bound, WorkerPriority::High);
    assert!(audio(high, 0) >= audio(bound, 0));
    // The first item goes to processor 0, whoever queued it.
    assert!(audio(spec(Binding::Unbound, WorkerPriority::Normal), 0) > Cycles(10_000_000));
}

#[test]
fn fast_zaps_wait_less_for_the_finer_passes() {
    let stretch = |policy| {
        let mut vm = Vm::new(&x86(), &vm(4.GiB(), 1), policy, WorkqueueSpec::KVM_5_18);
        vm.vcpu(0, vec![touch(0, 16, PageSize::SIZE_4K)]);
        vm.fast_zap(100_000);
        let ended = vm.end();
        ended.clean();
        ended.longest_unscheduled.iter().find(|(name, _)| *name == "fast zap").unwrap().1
    };
    let (gigs, fine) = (stretch(RootPolicy::R3), stretch(RootPolicy::R4));
    assert!(gigs.0 > 100 * fine.0, "{gigs:?} against {fine:?}");
}
