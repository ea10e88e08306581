//! Aging: what is reported young is what was touched, less what TLBs hide; every policy on every architecture.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use crate::accessed::{arm64, power, x86};
use arch_arm64_s2::HardwareUpdates;
use arch_ppc_radix::RcUpdate;
use arch_x86_ept::AccessedDirty;
use mmu_core::{ByteUnits, Bytes, Cycles, Format, Gpa, GpaRange, Gva, Level, PageSize};
use mmu_sim::arch::Arch;
use mmu_sim::engine::{GuestPaging, LockMode, Sim, Stopped, VcpuId, VcpuStats};
use mmu_sim::experiment::{Platform, Populate, VmSpec, build_without_threads};
use mmu_sim::protocols::aging::{self, AgingPath, AgingPolicy, YoungFlush};
use mmu_sim::protocols::fault::FaultPolicy;
use mmu_sim::protocols::reclaim::{LOOK_AROUND, Scan, Scanned, scan};
use mmu_sim::protocols::vcpu;
use mmu_sim::protocols::young::{Clear, Convention, YoungBitmap};
use mmu_sim::rng::Seed;
use mmu_sim::selftests::phases::Phases;
use mmu_sim::workload::{GuestAccess, GuestWork, Workload};

const PAGE: u64 = 4096;

/// A mapped guest of so many pages that does nothing by itself.
fn guest<A: Arch>(platform: &Platform<A>, pages: u64, page: PageSize) -> Sim<A> {
    let vm = VmSpec {
        memory: Bytes(pages * PAGE),
        vcpus: 1,
        page,
        guest: GuestPaging::Flat,
        populate: Populate::Mapped,
        workload: Workload::Idle,
        seed: Seed(7),
    };
    build_without_threads(platform, &vm).unwrap()
}

fn touches(pages: &[u64]) -> GuestWork {
    let read = |&page: &u64| GuestAccess { gva: Gva::new(page * PAGE), kind: mmu_core::AccessKind::Read };
    GuestWork::List(pages.iter().map(read).collect())
}

/// What one round of touching and scanning found.
#[derive(Clone, Debug)]
struct Round {
    young: BTreeSet<u64>,
    scanned: Scanned,
}

/// Scans once to start with, then touches each list of pages and scans after it.
fn rounds<A: Arch>(
    platform: &Platform<A>,
    pages: u64,
    lists: Vec<Vec<u64>>,
    how: Scan,
    policy: AgingPolicy,
) -> (Vec<Round>, VcpuStats) {
    let mut sim = guest(platform, pages, PageSize::SIZE_4K);
    let phases = Phases::new(&mut sim);
    let (count, vcpu) = (lists.len(), VcpuId(0));
    sim.spawn_vcpu(vcpu, |host| {
        Box::pin(async move {
            let faults = FaultPolicy::new(LockMode::Read, PageSize::SIZE_4K);
            for (i, list) in lists.into_iter().enumerate() {
                phases.wait_for(&host, i as u64 + 1).await;
                host.assign(vcpu, touches(&list));
                vcpu::thread(host.clone(), vcpu, faults).await;
                phases.done(&host).await;
            }
        })
    });
    let found = Rc::new(RefCell::new(Vec::new()));
    let into = Rc::clone(&found);
    sim.spawn("scan", Cycles(0), move |host| {
        Box::pin(async move {
            for i in 0..=count {
                if i > 0 {
                    phases.run(&host).await;
                }
                let all = GpaRange::new(Gpa::new(0), Bytes(pages * PAGE));
                let mut young = YoungBitmap::new(all, PageSize::SIZE_4K, Convention::V2);
                let scanned = scan(&host, &mut young, how, &policy, None).await;
                let young = young.set_pages().map(|gpa| gpa.raw() / PAGE).collect();
                into.borrow_mut().push(Round { young, scanned });
            }
        })
    });
    finish(&mut sim);
    let stats = sim.vcpu_stats()[0];
    (found.take(), stats)
}

fn finish<A: Arch>(sim: &mut Sim<A>) {
    assert_eq!(sim.run(), Stopped::Finished);
    assert_eq!(sim.destroy(), Stopped::Finished);
    let violations: Vec<String> = sim.world().violations().iter().map(ToString::to_string).collect();
    assert_eq!(violations, Vec::<String>::new());
}

const SCANS: [Scan; 5] =
    [Scan::Rmap, LOOK_AROUND, Scan::LookAround { pages: 7 }, Scan::Walk { batch: 1 }, Scan::Walk { batch: 600 }];
const POLICIES: [AgingPolicy; 4] = [AgingPolicy::V6_12, AgingPolicy::V6_13, AgingPolicy::V6_15, AgingPolicy::YU_V2];

fn young_is_what_was_touched<A: Arch>(platform: &Platform<A>) {
    // Pages of one round are not touched in the next: no TLB can hide them.
    let lists = vec![vec![3, 4, 5, 700, 1023, 512], vec![0, 511, 600, 601, 64], vec![]];
    for policy in POLICIES {
        for how in SCANS {
            let (rounds, _) = rounds(platform, 1024, lists.clone(), how, policy);
            assert_eq!(rounds[0].young.len(), 1024, "populated young");
            for (round, list) in rounds[1..].iter().zip(&lists) {
                assert_eq!(round.young, list.iter().copied().collect(), "{} {policy:?} {how:?}", platform.arch.name());
                let aged = round.scanned.aged;
                // Pages around a young one may be looked at twice.
                assert!(aged.leaves >= 1024 && aged.young == list.len() as u64, "{aged:?}");
                assert_eq!((aged.made_old, aged.lost), (aged.young, 0));
                assert_eq!(round.scanned.pages, 1024);
            }
        }
    }
}

#[test]
fn young_is_what_was_touched_on_every_architecture() {
    everywhere!(young_is_what_was_touched);
}

#[test]
fn a_scan_makes_as_many_calls_as_its_kind() {
    let lists = vec![vec![100, 101, 900]];
    let calls = |how| rounds(&x86(AccessedDirty::On), 1024, lists.clone(), how, AgingPolicy::V6_13).0[1].scanned.calls;
    assert_eq!(calls(Scan::Rmap), 1024);
    assert_eq!(calls(Scan::Walk { batch: 64 }), 16);
    // Each young page that is met ages 64 pages by one more call, of which 31 lie ahead and are met no more.
    assert_eq!(calls(LOOK_AROUND), 1024 + 2 - 2 * 31);
}

/// P11: what stays in the TLB is touched again without anybody noticing.
fn tlbs_hide<A: Arch>(platform: &Platform<A>) {
    let hot: Vec<u64> = (10..20).collect();
    let found = |policy| {
        let lists = vec![hot.clone(), hot.clone(), hot.clone()];
        let (rounds, stats) = rounds(platform, 1024, lists, Scan::Rmap, policy);
        let young: Vec<usize> = rounds[1..].iter().map(|round| round.young.len()).collect();
        assert!(rounds[1..].iter().all(|round| round.young.iter().all(|page| hot.contains(page))), "none is invented");
        (young, stats.flushes)
    };
    assert_eq!(found(AgingPolicy::V6_13).0, [10, 0, 0], "the TLB holds them since the first round");
    assert_eq!(found(AgingPolicy::V6_15), found(AgingPolicy::V6_13));
    let (young, flushes) = found(AgingPolicy::V6_12);
    assert_eq!(young, [10, 10, 10], "flushed when found young");
    assert!(flushes > 0);
}

#[test]
fn without_a_flush_tlbs_hide_accesses_and_never_invent_any() {
    everywhere!(tlbs_hide);
}

/// How often the guest faults because it may not set the flag itself.
fn faults<A: Arch>(platform: &Platform<A>) -> u64 {
    let (_, stats) = rounds(platform, 1024, vec![(0..100).collect()], Scan::Walk { batch: 1024 }, AgingPolicy::V6_15);
    stats.faults
}

#[test]
fn a_leaf_made_old_faults_where_hardware_does_not_set_the_flag() {
    assert_eq!(faults(&x86(AccessedDirty::On)), 0);
    assert_eq!(faults(&x86(AccessedDirty::Off)), 100);
    assert_eq!(faults(&arm64(HardwareUpdates::None)), 100);
    assert_eq!(faults(&arm64(HardwareUpdates::Accessed)), 0);
    assert_eq!(faults(&power(RcUpdate::Interrupt)), 100);
    assert_eq!(faults(&power(RcUpdate::Hardware)), 0);
}

/// The word of a leaf before aging, after it, and after the fault path.
fn restored<A: Arch>(platform: &Platform<A>) {
    let two = *platform.arch.two();
    for dirty in [mmu_core::Perms::DIRTY, mmu_core::Perms::NONE] {
        let perms = mmu_core::Perms::RWX.with(dirty);
        let output = mmu_core::Hpa::new(0x1234_5000);
        let leaf = mmu_core::Leaf { output, perms, accessed: true, attrs: Default::default() };
        let Ok(word) = two.encode_leaf(Level::LAST, &leaf) else { continue };
        let old = two.mark_old(word);
        assert!(aging::is_young(&two, word) && !aging::is_young(&two, old));
        assert_eq!(two.mark_old(old), old);
        let young = aging::restore_access(&two, old);
        assert!(aging::is_young(&two, young));
        assert_eq!(aging::restore_access(&two, young), young);
        assert_eq!(two.output(Level::LAST, young), output);
        let writable = two.restore_write(young).unwrap_or(young);
        assert!(two.is_writable(writable), "a fault can give the write permission back as well");
    }
}

#[test]
fn the_fault_path_puts_back_what_aging_took() {
    everywhere!(restored);
}

/// Runs one actor on an idle guest of 1024 small pages.
fn alone<A: Arch, T: 'static>(
    platform: &Platform<A>,
    page: PageSize,
    body: impl AsyncFnOnce(mmu_sim::engine::Host<A::Two>) -> T + 'static,
) -> T {
    let mut sim = guest(platform, 1024, page);
    let result = Rc::new(RefCell::new(None));
    let into = Rc::clone(&result);
    sim.spawn("one", Cycles(0), move |host| {
        Box::pin(async move {
            let value = body(host).await;
            *into.borrow_mut() = Some(value);
        })
    });
    finish(&mut sim);
    result.take().unwrap()
}

fn conventions<A: Arch>(platform: &Platform<A>) {
    let whole = GpaRange::new(Gpa::new(0), Bytes(1024 * PAGE));
    let part = GpaRange::new(Gpa::new(100 * PAGE), Bytes(200 * PAGE));
    alone(platform, PageSize::SIZE_4K, async move |host| {
        let policy = AgingPolicy::V6_15;
        let page = PageSize::SIZE_4K;
        // v2 tests first and then clears what it is told to.
        let mut map = YoungBitmap::new(part, page, Convention::V2);
        let (path, aged) = aging::test_clear_young(&host, &mut map, Clear::Test, &policy).await;
        assert_eq!((path, aged.young, aged.made_old, map.ones()), (AgingPath::Lockless, 200, 0, 200));
        let mut some = YoungBitmap::new(part, page, Convention::V2);
        for i in (100..300).step_by(3) {
            some.set(Gpa::new(i * PAGE));
        }
        let (_, aged) = aging::test_clear_young(&host, &mut some, Clear::Clear, &policy).await;
        assert_eq!((aged.young, aged.made_old, some.ones()), (200, 67, 67));
        // v1 flips what is young and clears where it found a one.
        let mut map = YoungBitmap::new(whole, page, Convention::V1);
        map.set(Gpa::new(0));
        map.set(Gpa::new(100 * PAGE));
        let (_, aged) = aging::test_clear_young(&host, &mut map, Clear::Clear, &policy).await;
        assert_eq!((aged.young, aged.made_old), (1024 - 67, 1), "page 100 is old already");
        assert!(!map.get(Gpa::new(0)) && map.get(Gpa::new(100 * PAGE)) && map.get(Gpa::new(101 * PAGE)));
        // Testing stops at the first young page.
        let tested = aging::test_young(&host, whole, &policy).await;
        assert_eq!((tested.young, tested.leaves, tested.made_old), (1, 2, 0));
        let cleared = aging::clear_young(&host, whole, &policy).await;
        assert_eq!((cleared.young, cleared.made_old), (1024 - 68, 1024 - 68));
        assert_eq!(aging::test_young(&host, whole, &policy).await.young, 0);
    });
}

#[test]
fn bitmaps_of_both_series_on_every_architecture() {
    everywhere!(conventions);
}

fn huge<A: Arch>(platform: &Platform<A>) {
    alone(platform, PageSize::SIZE_2M, async move |host| {
        let whole = GpaRange::new(Gpa::new(0), Bytes(1024 * PAGE));
        let policy = AgingPolicy::V6_15;
        let mut map = YoungBitmap::new(whole, PageSize::SIZE_4K, Convention::V2);
        map.set(Gpa::new(512 * PAGE));
        let (_, aged) = aging::test_clear_young(&host, &mut map, Clear::Clear, &policy).await;
        assert_eq!((aged.leaves, aged.young, aged.made_old), (2, 2, 1));
        let mut map = YoungBitmap::new(whole, PageSize::SIZE_4K, Convention::V2);
        let (_, aged) = aging::test_clear_young(&host, &mut map, Clear::Test, &policy).await;
        assert_eq!((aged.young, map.ones()), (1, 512));
    });
}

#[test]
fn a_huge_leaf_is_young_with_all_its_pages() {
    everywhere!(huge);
}

#[test]
fn the_seed_takes_the_fast_path_only_where_hardware_sets_the_flag() {
    let path = |platform: &Platform<_>| AgingPolicy::YU_V2.path(Arch::two(&platform.arch));
    assert_eq!(path(&x86(AccessedDirty::On)), AgingPath::Lockless);
    assert_eq!(AgingPolicy::YU_V2.path(x86(AccessedDirty::Off).arch.two()), AgingPath::Locked);
    assert_eq!(AgingPolicy::YU_V2.path(arm64(HardwareUpdates::None).arch.two()), AgingPath::Locked);
    assert_eq!(AgingPolicy::YU_V2.path(power(RcUpdate::Hardware).arch.two()), AgingPath::Lockless);
    assert_eq!(AgingPolicy::V6_15.path(x86(AccessedDirty::Off).arch.two()), AgingPath::Lockless);
}

/// An ager of one page against somebody who keeps changing its entry.
fn contended(policy: AgingPolicy) -> aging::Aged {
    let platform = x86(AccessedDirty::Off);
    let mut sim = guest(&platform, 1024, PageSize::SIZE_4K);
    let two = *platform.arch.two();
    let total = Rc::new(RefCell::new(aging::Aged::default()));
    let into = Rc::clone(&total);
    sim.spawn("age", Cycles(0), move |host| {
        Box::pin(async move {
            for _ in 0..2_000 {
                let aged = aging::clear_young(&host, GpaRange::new(Gpa::new(0), Bytes(PAGE)), &policy).await;
                into.borrow_mut().merge(&aged);
            }
        })
    });
    sim.spawn("touch", Cycles(0), move |host| {
        Box::pin(async move {
            // Where page 0's leaf is: down the first entry of each table.
            let mut at = host.root().await;
            for level in (1..two.geometry().levels() as u8).rev().map(Level::new) {
                at = two.next_table(level, host.read(at).await);
            }
            for _ in 0..2_000 {
                // A fault makes it young; dirty logging takes the write permission and a fault gives it back.
                let word = host.read(at).await;
                let young = aging::restore_access(&two, word);
                let toggled = if two.is_writable(young) {
                    two.write_protect(young)
                } else {
                    two.restore_write(young).unwrap_or(young)
                };
                let _ = host.cmpxchg(at, word, toggled).await;
            }
        })
    });
    finish(&mut sim);
    total.take()
}

#[test]
fn a_lost_compare_and_swap_leaves_the_page_young_or_misleads() {
    let fixed = contended(AgingPolicy { update: aging::AgeUpdate::Cmpxchg, ..AgingPolicy::V6_15 });
    assert!(fixed.lost > 0, "{fixed:?}");
    assert_eq!(fixed.made_old, fixed.young - fixed.lost, "what was lost stays young");
    assert_eq!(fixed.retries, 0);
    let x43 = contended(AgingPolicy::X43);
    assert!(x43.lost > 0);
    assert_eq!(x43.made_old, x43.young, "it claims what it has not done");
    let x42 = contended(AgingPolicy::X42);
    assert!(x42.retries > 0 && x42.lost >= x42.retries, "{x42:?}");
}

#[test]
fn the_lock_is_held_by_the_locked_policies_only() {
    for (policy, locked) in [(AgingPolicy::V6_12, true), (AgingPolicy::V6_13, true), (AgingPolicy::V6_15, false)] {
        let (rounds, _) = rounds(&x86(AccessedDirty::On), 1024, vec![], Scan::Walk { batch: 1024 }, policy);
        let aged = rounds[0].scanned.aged;
        assert_eq!(aged.held > Cycles(0), locked, "{policy:?}");
        assert_eq!(aged.held, aged.longest_hold);
    }
    assert_eq!(AgingPolicy::V6_13.flush, YoungFlush::Elided);
}

#[test]
fn a_terabyte_is_aged_at_the_speed_of_runs() {
    let platform = x86(AccessedDirty::On);
    let pages = 1.TiB() / PAGE;
    let mut sim = guest(&platform, pages, PageSize::SIZE_4K);
    let aged = Rc::new(RefCell::new(aging::Aged::default()));
    let into = Rc::clone(&aged);
    sim.spawn("age", Cycles(0), move |host| {
        Box::pin(async move {
            let all = GpaRange::new(Gpa::new(0), Bytes(pages * PAGE));
            let clear = aging::clear_young(&host, all, &AgingPolicy::V6_15).await;
            assert_eq!(aging::test_young(&host, all, &AgingPolicy::V6_15).await.young, 0);
            *into.borrow_mut() = clear;
        })
    });
    assert_eq!(sim.run(), Stopped::Finished);
    let aged = *aged.borrow();
    assert_eq!((aged.leaves, aged.young, aged.made_old), (pages, pages, pages));
    // Every leaf was visited twice and cleared once, and nothing was skipped for speed.
    let (visits, costs) = (sim.world().counters().visits, &platform.costs);
    let (_, stats) = sim.actors().next().unwrap();
    let least = costs.visit.times(visits) + costs.atomic.times(pages);
    assert!(visits >= 2 * pages && stats.finished >= least, "{visits} visits in {}", stats.finished);
}
