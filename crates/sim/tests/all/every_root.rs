//! Aging and dirty logging of a VM with several roots: system-management mode has one of its own, and invalid ones are on their way out.

use std::cell::RefCell;
use std::rc::Rc;

use crate::common::{small_vm, x86};
use mmu_core::{ByteUnits, Bytes, Cycles, Gpa, GpaRange, Gva, PageSize};
use mmu_sim::engine::{GuestPaging, Host, LockId, LockMode, Stopped, VcpuId};
use mmu_sim::experiment::{Populate, VmSpec, build_without_threads};
use mmu_sim::protocols::aging::{
    AgingPolicy, clear_flush_young_in, clear_young_in, test_clear_young_in, test_young_in,
};
use mmu_sim::protocols::dirty_log::{
    DirtyLog, DirtyPolicy, Initially, LogKind, Manual, SplitWhen, Tracking, clear_dirty_log_in, disable_in, enable_in,
    get_dirty_log_in,
};
use mmu_sim::protocols::fault::FaultPolicy;
use mmu_sim::protocols::roots::{AddressSpace, ReaderRoots, RootPolicy, Roots, Step, UnmapRoots, VmRoots};
use mmu_sim::protocols::split::{SplitPolicy, eager_split};
use mmu_sim::protocols::young::{Clear, Convention, YoungBitmap};
use mmu_sim::rng::Seed;
use mmu_sim::workload::{GuestWork, Mix, PatternSpec, Workload};

const PAGE: u64 = 4096;

fn touch(first: u64, pages: u64) -> Step {
    let spec =
        PatternSpec { bytes: pages * PAGE, mix: Mix::Strided { stride: PAGE }, writes_percent: 100, accesses: pages };
    Step::Run(GuestWork::Pattern { spec, base: Gva::new(first * PAGE), seed: Seed(1) })
}

fn pages(first: u64, pages: u64) -> GpaRange {
    GpaRange::new(Gpa::new(first * PAGE), Bytes(pages * PAGE))
}

fn spec(page: PageSize) -> VmSpec {
    let idle = small_vm(16.MiB(), 1, 0);
    VmSpec { page, workload: Workload::Idle, guest: GuestPaging::Flat, populate: Populate::ByFaults, ..idle }
}

/// Pages 0 to 7 are touched in ordinary memory, 4 to 11 in system-management mode; then somebody looks.
fn two_roots<R: 'static>(
    look: impl AsyncFnOnce(Host<arch_x86_ept::Ept>, VmRoots<arch_x86_ept::Ept>) -> R + 'static,
) -> R {
    let mut sim = build_without_threads(&x86(), &spec(PageSize::SIZE_4K)).unwrap();
    let roots = Roots::adopt(&mut sim, RootPolicy::R4, None);
    let steps = vec![touch(0, 8), Step::Enter(AddressSpace::SMM), touch(4, 8)];
    roots.spawn_vcpu(&mut sim, VcpuId(0), steps, FaultPolicy::new(LockMode::Read, PageSize::SIZE_4K));
    let found = Rc::new(RefCell::new(None));
    let out = Rc::clone(&found);
    roots.spawn_task(&mut sim, "look", Cycles(1_000_000), move |host, roots| {
        Box::pin(async move {
            let seen = look(host, VmRoots::List(roots)).await;
            *out.borrow_mut() = Some(seen);
        })
    });
    roots.spawn_exit(&mut sim);
    assert_eq!(sim.run(), Stopped::Finished);
    assert_eq!(sim.destroy_with(|_| Box::pin(async {})), Stopped::Finished);
    assert_eq!(sim.world().violations(), []);
    found.take().unwrap()
}

#[test]
fn aging_looks_into_every_root() {
    for policy in [AgingPolicy::V6_12, AgingPolicy::V6_15] {
        let found = two_roots(async move |host, roots| {
            let all = pages(0, 16);
            let current = test_young_in(&host, &VmRoots::Current, pages(8, 4), &policy).await.young;
            let in_smm_only = test_young_in(&host, &roots, pages(8, 4), &policy).await.young;
            let first = clear_young_in(&host, &roots, all, &policy).await;
            let again = clear_flush_young_in(&host, &roots, all, &policy).await;
            (current, in_smm_only, first.leaves, first.young, again.young)
        });
        assert_eq!(found, (0, 1, 16, 16, 0), "{policy:?}");
    }
}

#[test]
fn a_page_that_is_young_in_two_roots_is_young_once() {
    for convention in [Convention::V1, Convention::V2] {
        let found = two_roots(async move |host, roots| {
            let (range, page) = (pages(0, 16), PageSize::SIZE_4K);
            let mut bitmap = match convention {
                Convention::V1 => YoungBitmap::asking_for_all(range, page, convention),
                Convention::V2 => YoungBitmap::new(range, page, convention),
            };
            test_clear_young_in(&host, &roots, &mut bitmap, Clear::Test, &AgingPolicy::V6_15).await;
            let young: Vec<u64> = bitmap.set_pages().map(|gpa| gpa.raw() / PAGE).collect();
            young
        });
        let expected: Vec<u64> = match convention {
            // A bit that flipped to 0 was young.
            Convention::V1 => (12..16).collect(),
            Convention::V2 => (0..12).collect(),
        };
        assert_eq!(found, expected, "{convention:?}");
    }
}

#[test]
fn dirty_logging_protects_and_harvests_every_root() {
    for tracking in [Tracking::WriteProtect, Tracking::Scan] {
        for all_roots in [true, false] {
            let policy = DirtyPolicy {
                tracking,
                manual: Manual::On,
                initially: Initially::Clean,
                split: SplitWhen::Lazily,
                collapse: None,
                ..DirtyPolicy::X86_WRITE_PROTECT
            };
            let found = two_roots(async move |host, list| {
                let roots = if all_roots { list } else { VmRoots::Current };
                let log = DirtyLog::new(pages(0, 4096), host.new_var(0).await, PageSize::SIZE_4K, LogKind::Bitmap);
                let protected = enable_in(&host, &roots, &log, &policy).await.unwrap().protected.leaves;
                let dirty = get_dirty_log_in(&host, &roots, &log, &policy).await.unwrap();
                clear_dirty_log_in(&host, &roots, &log, &policy, (0, 4096), &dirty).await.unwrap();
                disable_in(&host, &roots, &log, &policy, PageSize::SIZE_2M).await.unwrap();
                protected
            });
            assert_eq!(found, if all_roots { 16 } else { 8 }, "{tracking:?}");
        }
    }
}

/// How many huge pages an eager split finds in a root that is invalid, by a walk that shares the lock.
fn splits_of_an_invalid_root(which: UnmapRoots, readers: ReaderRoots) -> u64 {
    let memory = 16.MiB();
    let vm = VmSpec { populate: Populate::Mapped, ..spec(PageSize::SIZE_2M) };
    let mut sim = build_without_threads(&x86(), &vm).unwrap();
    let roots = Roots::adopt(&mut sim, RootPolicy { readers, ..RootPolicy::R4 }, None);
    let invalid = roots.snapshot()[0].invalid;
    sim.set_var(invalid, 1);
    let splits = Rc::new(RefCell::new(0));
    let out = Rc::clone(&splits);
    roots.spawn_task(&mut sim, "log", Cycles(0), move |host, list| {
        Box::pin(async move {
            let split = SplitPolicy { roots: which, ..SplitPolicy::X86_5_18 };
            let slot = GpaRange::new(Gpa::new(0), Bytes(memory));
            let (mut next, roots) = (None, VmRoots::List(list));
            host.lock(LockId::MMU, LockMode::Read).await;
            loop {
                next = roots.next_yield_safe(&host, next, split.roots, split.lock).await;
                let Some(root) = next else { break };
                let done = eager_split(&host, root.table, slot, PageSize::SIZE_4K, &split).await;
                *out.borrow_mut() += done.unwrap().leaves;
            }
            host.unlock(LockId::MMU).await;
        })
    });
    assert_eq!(sim.run(), Stopped::Finished);
    splits.take()
}

#[test]
fn x39_x40_splits_stay_out_of_invalid_roots() {
    assert_eq!(splits_of_an_invalid_root(UnmapRoots::ValidOnly, ReaderRoots::Any), 0);
    // X39 alone: the splitter does not look, but a reader gets no reference on an invalid root.
    assert_eq!(splits_of_an_invalid_root(UnmapRoots::All, ReaderRoots::SkipInvalid), 0);
    // X39 on a kernel with X40: tables are made for a tree that nobody uses.
    assert_eq!(splits_of_an_invalid_root(UnmapRoots::All, ReaderRoots::Any), 8);
}
