//! Nested guests: what either guest touched is found through tables and chains, and unmapping reaches both.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use crate::accessed::x86;
use arch_x86_ept::AccessedDirty;
use mmu_core::{AccessKind, Bytes, Cycles, Gpa, GpaRange, Gva, HvaRange, PageSize};
use mmu_sim::arch::Arch;
use mmu_sim::checker::Violation;
use mmu_sim::engine::{Blockable, GuestPaging, Host, LockMode, Sim, Stopped, VcpuId};
use mmu_sim::experiment::vm::GUEST_MEMORY;
use mmu_sim::experiment::{Platform, Populate, VmSpec, build_without_threads};
use mmu_sim::protocols::aging::{Aged, AgingPath, AgingPolicy};
use mmu_sim::protocols::fault::FaultPolicy;
use mmu_sim::protocols::nested::{ChainLock, NestedAging, RmapAging, Shadow, age};
use mmu_sim::protocols::notifier::{Notifier, NotifierPolicy};
use mmu_sim::protocols::young::Clear;
use mmu_sim::protocols::{notifier, vcpu};
use mmu_sim::rng::Seed;
use mmu_sim::selftests::phases::Phases;
use mmu_sim::workload::{GuestAccess, GuestWork, Mix, PatternSpec, Workload};

const PAGE: u64 = 4096;
/// Pages of L1.
const PAGES: u64 = 512;

/// Two stretches of L2 lie on the same L1 pages.
fn folded(l2: Gpa) -> Gpa {
    Gpa::new(l2.raw() % (PAGES * PAGE))
}

fn guest<A: Arch>(platform: &Platform<A>) -> (Sim<A>, Shadow) {
    let vm = VmSpec {
        memory: Bytes(PAGES * PAGE),
        vcpus: 2,
        page: PageSize::SIZE_4K,
        guest: GuestPaging::Flat,
        populate: Populate::Mapped,
        workload: Workload::Idle,
        seed: Seed(7),
    };
    let mut sim = build_without_threads(platform, &vm).unwrap();
    let shadow = Shadow::new(&mut sim, platform.arch.two(), Bytes(PAGES * PAGE), 2 * PAGES, folded);
    (sim, shadow)
}

fn touches(pages: &[u64]) -> GuestWork {
    let read = |&page: &u64| GuestAccess { gva: Gva::new(page * PAGE), kind: AccessKind::Read };
    GuestWork::List(pages.iter().map(read).collect())
}

fn page(page: u64) -> GpaRange {
    GpaRange::new(Gpa::new(page * PAGE), Bytes(PAGE))
}

fn all() -> GpaRange {
    GpaRange::new(Gpa::new(0), Bytes(PAGES * PAGE))
}

fn violations<A: Arch>(sim: &mut Sim<A>) -> Vec<Violation> {
    assert_eq!(sim.run(), Stopped::Finished);
    assert_eq!(sim.destroy(), Stopped::Finished);
    sim.world().violations().to_vec()
}

/// L1's vCPU touches a list of pages per round, L2's another.
fn spawn_guests<A: Arch>(sim: &mut Sim<A>, shadow: Shadow, phases: Phases, l1: Vec<Vec<u64>>, l2: Vec<Vec<u64>>) {
    sim.spawn_vcpu(VcpuId(0), |host| {
        Box::pin(async move {
            let faults = FaultPolicy::new(LockMode::Read, PageSize::SIZE_4K);
            for (i, list) in l1.into_iter().enumerate() {
                phases.wait_for(&host, i as u64 + 1).await;
                host.assign(VcpuId(0), touches(&list));
                vcpu::thread(host.clone(), VcpuId(0), faults).await;
                phases.done(&host).await;
            }
        })
    });
    sim.spawn_vcpu(VcpuId(1), |host| {
        Box::pin(async move {
            for (i, list) in l2.into_iter().enumerate() {
                phases.wait_for(&host, i as u64 + 1).await;
                host.assign(VcpuId(1), touches(&list));
                shadow.thread(&host, VcpuId(1), 9).await.unwrap();
                phases.done(&host).await;
            }
        })
    });
}

/// Scans page by page: which are young, by which ways, and all that was done.
async fn scan<F: mmu_core::Format>(
    host: &Host<F>,
    shadow: &Shadow,
    policy: &NestedAging,
) -> (BTreeSet<u64>, BTreeSet<AgingPath>, Aged) {
    let (mut young, mut paths, mut total) = (BTreeSet::new(), BTreeSet::new(), Aged::default());
    for i in 0..PAGES {
        let (_, tested) = age(host, shadow, page(i), Clear::Test, policy).await;
        let (path, aged) = age(host, shadow, page(i), Clear::Clear, policy).await;
        assert_eq!(tested.young > 0, aged.young > 0, "testing and clearing agree on page {i}");
        if aged.young > 0 {
            young.insert(i);
        }
        paths.insert(path);
        total.merge(&aged);
    }
    (young, paths, total)
}

const RMAPS: [RmapAging; 5] = [
    RmapAging::ExcludedIfEverNested,
    RmapAging::ExcludedWhileShadowed,
    RmapAging::UnderMmuLock,
    RmapAging::V6_15,
    RmapAging::ChainLock(ChainLock::PreemptionOn),
];

fn both_guests_count<A: Arch>(platform: &Platform<A>) {
    for rmap in RMAPS {
        for tdp in [AgingPolicy::V6_13, AgingPolicy::V6_15] {
            let policy = NestedAging { tdp, rmap };
            let (mut sim, shadow) = guest(platform);
            let phases = Phases::new(&mut sim);
            // L2 reaches L1 page 7 at two addresses, and 20 where L1 itself touches it.
            let (l1, l2) = (vec![vec![1, 2, 20], vec![300]], vec![vec![7, 7 + PAGES, 20, 100], vec![301, 302 + PAGES]]);
            spawn_guests(&mut sim, shadow, phases, l1, l2);
            sim.spawn("age", Cycles(0), move |host| {
                Box::pin(async move {
                    let (young, _, _) = scan(&host, &shadow, &policy).await;
                    assert_eq!(young.len() as u64, PAGES, "populated young");
                    phases.run(&host).await;
                    let (young, paths, total) = scan(&host, &shadow, &policy).await;
                    assert_eq!(young, BTreeSet::from([1, 2, 7, 20, 100]));
                    // Page 7 twice and page 20 in both trees.
                    assert_eq!((total.young, total.made_old), (7, 7));
                    assert_eq!(total.leaves, PAGES + 4);
                    let lockless =
                        tdp == AgingPolicy::V6_15 && matches!(rmap, RmapAging::UnderMmuLock | RmapAging::ChainLock(_));
                    assert_eq!(paths, BTreeSet::from([if lockless { AgingPath::Lockless } else { AgingPath::Locked }]));
                    phases.run(&host).await;
                    assert_eq!(scan(&host, &shadow, &policy).await.0, BTreeSet::from([300, 301, 302]));
                    shadow.release(&host).await;
                    assert_eq!(host.load(shadow.pages()).await, 0);
                    // X44: it is over, and only one policy does not notice.
                    let (path, aged) = age(&host, &shadow, all(), Clear::Clear, &policy).await;
                    let fast = tdp == AgingPolicy::V6_15 && rmap != RmapAging::ExcludedIfEverNested;
                    assert_eq!((path == AgingPath::Lockless, aged.leaves), (fast, PAGES), "{policy:?}");
                })
            });
            assert_eq!(violations(&mut sim), [], "{} {policy:?}", platform.arch.name());
        }
    }
}

#[test]
fn what_either_guest_touched_is_young() {
    everywhere!(both_guests_count);
}

/// How the pages of a range go while L2 runs on them.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Unmapping {
    Both,
    /// Without the chains: L2 keeps its translations.
    L1Only,
}

fn unmapped_under_l2<A: Arch>(platform: &Platform<A>, unmapping: Unmapping, rmap: RmapAging) -> Vec<Violation> {
    let (mut sim, shadow) = guest(platform);
    let spec = PatternSpec { bytes: 2 * PAGES * PAGE, mix: Mix::Uniform, writes_percent: 50, accesses: 30_000 };
    sim.spawn_vcpu(VcpuId(1), |host| {
        Box::pin(async move {
            host.assign(VcpuId(1), GuestWork::Pattern { spec, base: Gva::new(0), seed: Seed(3) });
            shadow.thread(&host, VcpuId(1), 9).await.unwrap();
        })
    });
    let policy = NestedAging { tdp: AgingPolicy::V6_15, rmap };
    sim.spawn("age", Cycles(50_000), move |host| {
        Box::pin(async move {
            for _ in 0..20 {
                age(&host, &shadow, all(), Clear::Clear, &policy).await;
                host.sleep(Cycles(50_000)).await;
            }
        })
    });
    sim.spawn("unmap", Cycles(400_000), move |host| {
        Box::pin(async move {
            let kvm = Notifier::new(NotifierPolicy::V6_8);
            for i in 0..40 {
                let range = GpaRange::new(Gpa::new(i * 12 * PAGE), Bytes(10 * PAGE));
                let hvas = HvaRange::new(GUEST_MEMORY + range.start.raw(), range.bytes);
                let chains = async || {
                    if unmapping == Unmapping::Both {
                        shadow.unmap(&host, range).await;
                    }
                };
                let open = notifier::range_start_and(&host, &kvm, hvas, Blockable::Yes, chains).await;
                host.drop_pages(range).await;
                notifier::range_end(&host, &kvm, open).await;
                host.sleep(Cycles(100_000)).await;
            }
        })
    });
    assert_eq!(sim.run(), Stopped::Finished);
    sim.spawn("release", sim.now(), move |host| Box::pin(async move { shadow.release(&host).await }));
    violations(&mut sim)
}

fn unmapping_reaches_l2<A: Arch>(platform: &Platform<A>) {
    for rmap in RMAPS {
        assert_eq!(unmapped_under_l2(platform, Unmapping::Both, rmap), [], "{} {rmap:?}", platform.arch.name());
    }
    let found = unmapped_under_l2(platform, Unmapping::L1Only, RmapAging::V6_15);
    assert!(
        found.iter().any(|violation| matches!(
            violation,
            Violation::StaleTranslation { vcpu: 1, .. } | Violation::UseAfterFree { vcpu: 1, .. }
        )),
        "{found:?}"
    );
}

#[test]
fn unmapping_an_l1_page_takes_it_from_l2_while_agers_run() {
    everywhere!(unmapping_reaches_l2);
}

#[test]
fn used_up_chain_entries_cost_shadow_leaves_and_no_more() {
    let platform = x86(AccessedDirty::On);
    let (mut sim, _) = guest(&platform);
    // Every page is mapped twice, with entries for a hundred doubled chains.
    let shadow = Shadow::new(&mut sim, platform.arch.two(), Bytes(PAGES * PAGE), 200, folded);
    sim.spawn_vcpu(VcpuId(1), |host| {
        Box::pin(async move {
            let pages: Vec<u64> = (0..2 * PAGES).collect();
            host.assign(VcpuId(1), touches(&pages));
            shadow.thread(&host, VcpuId(1), 9).await.unwrap();
            shadow.release(&host).await;
        })
    });
    assert_eq!(violations(&mut sim), []);
    assert!(sim.vcpu_stats()[1].faults >= 2 * PAGES);
}

/// How long a notifier waits for the chain of one page while that is aged, and how often it looks at the lock.
fn unmap_beside_ager(kind: ChainLock) -> (Cycles, u64) {
    let mut platform = x86(AccessedDirty::On);
    // A short time slice, so that who can be preempted is.
    platform.costs.tick_period = Cycles(10_000);
    let (mut sim, _) = guest(&platform);
    let mapped = sim.new_var(0);
    // All of L2 lies on one page of L1.
    let nesting = |l2: Gpa| Gpa::new(l2.raw() % PAGE);
    let shadow = Shadow::new(&mut sim, platform.arch.two(), Bytes(PAGES * PAGE), 1_000, nesting);
    sim.spawn_vcpu(VcpuId(1), |host| {
        Box::pin(async move {
            let pages: Vec<u64> = (0..500).collect();
            host.assign(VcpuId(1), touches(&pages));
            shadow.thread(&host, VcpuId(1), 9).await.unwrap();
            host.store(mapped, 1).await;
        })
    });
    let policy = NestedAging { tdp: AgingPolicy::V6_15, rmap: RmapAging::ChainLock(kind) };
    sim.spawn("age", Cycles(0), move |host| {
        Box::pin(async move {
            while host.load(mapped).await == 0 {
                host.sleep(Cycles(1_000)).await;
            }
            let (_, aged) = age(&host, &shadow, page(0), Clear::Clear, &policy).await;
            assert_eq!(aged.made_old, 501);
        })
    });
    let result = Rc::new(RefCell::new((Cycles(0), 0)));
    let into = Rc::clone(&result);
    sim.spawn("unmap", Cycles(0), move |host| {
        Box::pin(async move {
            while host.load(mapped).await == 0 {
                host.sleep(Cycles(1_000)).await;
            }
            host.sleep(Cycles(5_000)).await;
            let begun = host.now().await;
            shadow.unmap(&host, page(0)).await;
            let took = host.now().await.since(begun);
            *into.borrow_mut() = (took, host.load(shadow.spins()).await);
            shadow.release(&host).await;
        })
    });
    assert_eq!(violations(&mut sim), []);
    result.take()
}

#[test]
fn a_preempted_holder_of_a_chain_keeps_the_notifier_spinning() {
    let (off, looks) = unmap_beside_ager(ChainLock::PreemptionOff);
    let (on, _) = unmap_beside_ager(ChainLock::PreemptionOn);
    assert!(looks > 0, "they meet at the chain");
    // X45: the ager is away ten times and more with the lock held.
    let away = x86(AccessedDirty::On).costs.reschedule.times(5);
    assert!(on >= off + away, "{on} against {off}");
}
