//! Memslot updates: what they wait for, what they take away, what is left; under running vCPUs, on every architecture.

use std::cell::RefCell;
use std::rc::Rc;

use crate::common::{arm64, power, x86};
use mmu_core::{AccessKind, Bytes, Cycles, Format, Gpa, GpaRange, Gva, Hva, HvaRange, Level};
use mmu_sim::arch::Arch;
use mmu_sim::checker::Violation;
use mmu_sim::engine::{
    Blockable, GuestPaging, HostAccess, LockMode, Memslot, Reference, Sim, SlotFlags, SlotId, SlotsVersion, Stopped,
    Var, VcpuId, Vma, Watch,
};
use mmu_sim::experiment::vm::GUEST_MEMORY;
use mmu_sim::experiment::{Platform, Populate, VmSpec, build_without_threads};
use mmu_sim::protocols::fault::{FaultPolicy, Faults};
use mmu_sim::protocols::notifier::{Notifier, NotifierPolicy, range_end, range_start};
use mmu_sim::protocols::slots::{
    Faultin, Publication, SlotError, SlotPolicy, SlotUpdate, faultin_pfn, set_memory_region,
};
use mmu_sim::protocols::vcpu::{self, Ran};
use mmu_sim::rng::Seed;
use mmu_sim::selftests::memslot_modification::{Options, SlotQuirk, run as stress};
use mmu_sim::workload::{GuestAccess, GuestWork, Workload};

macro_rules! everywhere {
    ($check:ident $(, $argument:expr)*) => {
        $check(&x86() $(, $argument)*);
        $check(&arm64() $(, $argument)*);
        $check(&power() $(, $argument)*);
    };
}

fn guest<A: Arch>(platform: &Platform<A>, pages: u64) -> (Sim<A>, u64) {
    let page = platform.arch.two().geometry().page_size(Level::LAST);
    let vm = VmSpec {
        memory: Bytes(pages * page.bytes()),
        vcpus: 1,
        page,
        guest: GuestPaging::Flat,
        populate: Populate::ByFaults,
        workload: Workload::Idle,
        seed: Seed(1),
    };
    let mut sim = build_without_threads(platform, &vm).unwrap();
    sim.set_watch(Watch::Accesses);
    (sim, page.bytes())
}

fn slot(id: u16, gpa: u64, bytes: u64, hva: Hva) -> Memslot {
    let gpa = GpaRange::new(Gpa::new(gpa), Bytes(bytes));
    Memslot { id: SlotId(id), gpa, hva, flags: SlotFlags::empty() }
}

fn end<A: Arch>(sim: &mut Sim<A>) -> Vec<Violation> {
    assert_eq!(sim.run(), Stopped::Finished);
    assert_eq!(sim.destroy(), Stopped::Finished);
    sim.world().violations().to_vec()
}

fn adds_and_moves<A: Arch>(platform: &Platform<A>) {
    let (mut sim, page) = guest(platform, 16);
    let memory = 16 * page;
    let fresh = GUEST_MEMORY + (1 << 30);
    sim.primary_mut().map(HvaRange::new(fresh, Bytes(memory)), Vma::default());
    let policy = SlotPolicy::linux_6_6(platform.arch.two());
    let name = platform.arch.name();
    sim.spawn("main", Cycles(0), move |host| {
        Box::pin(async move {
            let added = slot(1, memory, memory, fresh);
            assert_eq!(set_memory_region(&host, SlotUpdate::Create(added), &policy).await, Ok(()), "{name}");
            let clash = slot(2, 2 * memory - page, page, fresh);
            let taken = set_memory_region(&host, SlotUpdate::Create(clash), &policy).await;
            assert_eq!(taken, Err(SlotError::Exists { slot: SlotId(2), by: SlotId(1) }), "{name}");
            let onto = set_memory_region(&host, SlotUpdate::Move(added, Gpa::new(page)), &policy).await;
            assert_eq!(onto, Err(SlotError::Exists { slot: SlotId(1), by: SlotId(0) }), "{name}");
            assert_eq!(
                set_memory_region(&host, SlotUpdate::Move(added, Gpa::new(4 * memory)), &policy).await,
                Ok(()),
                "{name}"
            );
            let section = host.srcu_read_lock().await;
            let old = faultin_pfn(&host, Gpa::new(memory), HostAccess::Write, Reference::None).await;
            assert_eq!(old, Faultin::NoSlot, "{name}");
            let there = Gpa::new(4 * memory + 3 * page);
            let found = faultin_pfn(&host, there, HostAccess::Write, Reference::None).await;
            assert!(matches!(found, Faultin::Page { hva, .. } if hva == fresh + 3 * page), "{name}: {found:?}");
            host.srcu_read_unlock(section).await;
            let log = SlotUpdate::Flags(
                Memslot { gpa: GpaRange::new(Gpa::new(4 * memory), Bytes(memory)), ..added },
                SlotFlags::LOG_DIRTY,
            );
            assert_eq!(set_memory_region(&host, log, &policy).await, Ok(()), "{name}");
        })
    });
    assert_eq!(end(&mut sim), [], "{name}");
    let world = sim.world();
    let active = SlotsVersion(world.var(Var::MEMSLOTS));
    assert_eq!(world.slots().slot(active, SlotId(1)).unwrap().flags, SlotFlags::LOG_DIRTY);
    // Create one, move two (invalid first), flags one.
    assert_eq!((world.slots().generation(active), world.slots().versions()), (Some(4), 1));
}

#[test]
fn slots_are_added_moved_and_flagged_and_refused_where_one_is() {
    everywhere!(adds_and_moves);
}

fn deletes_under_a_vcpu<A: Arch>(platform: &Platform<A>) {
    let (mut sim, page) = guest(platform, 16);
    let other = GUEST_MEMORY + (1 << 30);
    sim.primary_mut().map(HvaRange::new(other, Bytes(16 * page)), Vma::default());
    sim.add_slot(slot(1, 16 * page, 16 * page, other));
    let (faults, policy) = (
        FaultPolicy::new(LockMode::Read, platform.arch.two().geometry().granule()),
        SlotPolicy::linux_6_6(platform.arch.two()),
    );
    // The vCPU uses both slots, then only the first: the second goes meanwhile.
    let write = |page_number: u64| GuestAccess { gva: Gva::new(page_number * page), kind: AccessKind::Write };
    let (both, first) = ((0..32).map(write).collect(), (0..20_000).map(|i| write(i % 16)).collect());
    let used = sim.new_var(0);
    sim.spawn_vcpu(VcpuId(0), |host| {
        Box::pin(async move {
            let mut handler = Faults::new(VcpuId(0), faults);
            host.assign(VcpuId(0), GuestWork::List(both));
            assert_eq!(vcpu::run(&host, VcpuId(0), &mut handler).await, Ran::Done);
            host.store_release(used, 1).await;
            host.assign(VcpuId(0), GuestWork::List(first));
            assert_eq!(vcpu::run(&host, VcpuId(0), &mut handler).await, Ran::Done);
            handler.release(&host).await;
        })
    });
    sim.spawn("main", Cycles(0), move |host| {
        Box::pin(async move {
            while host.load_acquire(used).await == 0 {
                host.sleep(Cycles(1000)).await;
            }
            let gone = slot(1, 16 * page, 16 * page, other);
            set_memory_region(&host, SlotUpdate::Delete(gone), &policy).await.unwrap();
            host.unmap_pages(gone.hva_range(), mmu_sim::engine::Unmapping::Discard).await;
        })
    });
    assert_eq!(end(&mut sim), [], "{}", platform.arch.name());
    assert_eq!(sim.vcpu_stats()[0].accesses, 32 + 20_000);
    assert_eq!(sim.world().primary().freed_bytes(), Bytes(16 * page), "nobody reached the pages of the slot that went");
}

#[test]
fn a_deleted_slot_is_out_of_reach_before_its_memory_goes() {
    everywhere!(deletes_under_a_vcpu);
}

/// A slot of two pages is deleted that a vCPU has used: tables freed by then, and invalidations of all processors.
fn deleted<A: Arch>(platform: &Platform<A>) -> (u64, u64) {
    let (mut sim, page) = guest(platform, 2);
    let faults = FaultPolicy::linux_6_6(platform.arch.two(), platform.arch.two().geometry().page_size(Level::LAST));
    let policy = SlotPolicy::linux_6_6(platform.arch.two());
    let counted = Rc::new(RefCell::new((0, 0)));
    let into = Rc::clone(&counted);
    sim.spawn_vcpu(VcpuId(0), move |host| {
        Box::pin(async move {
            let mut handler = Faults::new(VcpuId(0), faults);
            let accesses = (0..2).map(|n| GuestAccess { gva: Gva::new(n * page), kind: AccessKind::Write });
            host.assign(VcpuId(0), GuestWork::List(accesses.collect()));
            assert_eq!(vcpu::run(&host, VcpuId(0), &mut handler).await, Ran::Done);
            handler.release(&host).await;
            let before = host.counters();
            let gone = slot(0, 0, 2 * page, GUEST_MEMORY);
            set_memory_region(&host, SlotUpdate::Delete(gone), &policy).await.unwrap();
            host.synchronize_rcu().await;
            let after = host.counters();
            let freed = after.tables_freed - before.tables_freed;
            *into.borrow_mut() = (freed, after.remote_flushes - before.remote_flushes);
        })
    });
    assert_eq!(end(&mut sim), [], "{}", platform.arch.name());
    Rc::unwrap_or_clone(counted).into_inner()
}

/// POWER's KVM invalidates page by page and keeps the tables; Arm's frees those that become empty, each with an invalidation.
#[test]
fn tables_of_a_deleted_slot_go_or_stay_as_in_each_kvm() {
    let levels = |geometry: &mmu_core::Geometry| geometry.root().index() as u64;
    let arm = arm64();
    let below_root = levels(arm.arch.two().geometry());
    assert_eq!(deleted(&arm), (below_root, below_root + 1));
    assert_eq!(deleted(&power()), (0, 2));
}

/// A slot is added between the start and the end of an invalidation of its memory: when, and what the checker says.
fn added_in_between(publication: Publication) -> (Vec<&'static str>, Vec<Violation>) {
    let platform = x86();
    let (mut sim, page) = guest(&platform, 16);
    let fresh = GUEST_MEMORY + (1 << 30);
    sim.primary_mut().map(HvaRange::new(fresh, Bytes(page)), Vma::default());
    let order = Rc::new(RefCell::new(Vec::new()));
    let (ends, adds) = (order.clone(), order.clone());
    sim.spawn("invalidator", Cycles(0), move |host| {
        Box::pin(async move {
            let notifier = Notifier::new(NotifierPolicy::V5_15);
            let open = range_start(&host, &notifier, HvaRange::new(fresh, Bytes(page)), Blockable::Yes).await;
            host.sleep(Cycles(300_000)).await;
            ends.borrow_mut().push("end");
            range_end(&host, &notifier, open).await;
        })
    });
    sim.spawn("main", Cycles(50_000), move |host| {
        Box::pin(async move {
            let policy = SlotPolicy { publication, ..SlotPolicy::X86_LEAFS };
            set_memory_region(&host, SlotUpdate::Create(slot(1, 1 << 20, page, fresh)), &policy).await.unwrap();
            adds.borrow_mut().push("added");
        })
    });
    let found = end(&mut sim);
    let order = order.borrow().clone();
    (order, found)
}

#[test]
fn g02_an_update_waits_until_no_invalidation_is_active() {
    assert_eq!(added_in_between(Publication::Blocked), (vec!["end", "added"], vec![]));
    let (order, found) = added_in_between(Publication::AtOnce);
    assert_eq!(order, ["added", "end"]);
    assert!(matches!(found.as_slice(), [Violation::InvalidateCount { .. }]), "{found:?}");
}

#[test]
fn an_update_waits_for_readers_and_a_freed_version_is_not_used() {
    let platform = x86();
    let (mut sim, page) = guest(&platform, 16);
    let grace = platform.costs.rcu_expedited;
    let fresh = GUEST_MEMORY + (1 << 30);
    sim.spawn("reader", Cycles(0), |host| {
        Box::pin(async move {
            let section = host.srcu_read_lock().await;
            let slots = host.active_slots().await;
            host.sleep(Cycles(500_000)).await;
            assert!(host.slot_at(slots, Gpa::new(0)).await.is_some(), "the version of the section lives as long");
            host.srcu_read_unlock(section).await;
            host.sleep(Cycles(100_000)).await;
            // Outside the section it does not.
            assert_eq!(host.slot_at(slots, Gpa::new(0)).await, None);
        })
    });
    sim.spawn("main", Cycles(10_000), move |host| {
        Box::pin(async move {
            let update = SlotUpdate::Create(slot(1, 1 << 20, page, fresh));
            set_memory_region(&host, update, &SlotPolicy::X86_LEAFS).await.unwrap();
            assert!(host.now().await >= Cycles(500_000), "the grace period lasts as long as the reader");
            // Grace periods without readers take what they take at least, and both indices work.
            for _ in 0..3 {
                let before = host.now().await;
                host.synchronize_srcu().await;
                let took = host.now().await.since(before);
                assert!(took >= grace && took.since(grace) < Cycles(10_000), "{took}");
            }
        })
    });
    let found = end(&mut sim);
    assert!(matches!(found.as_slice(), [Violation::SlotsUse { .. }]), "{found:?}");
}

/// Faults of three vCPUs with 64 pages each.
fn stresses<A: Arch>(platform: &Platform<A>, quirk: SlotQuirk) -> u64 {
    let page = platform.arch.two().geometry().granule().bytes();
    let options = Options {
        bytes_per_vcpu: Bytes(64 * page),
        vcpus: 3,
        delay_us: 20,
        iterations: 6,
        quirk,
        ..Options::default()
    };
    let report = stress(platform, &options).unwrap();
    assert_eq!(report.failed().count(), 0, "{report:?}");
    assert_eq!(report.checks.len(), 4);
    (report.figures["faults per page"] * 192.0).round() as u64
}

#[test]
fn memslot_modification_stress_test_refaults_everything_on_x86_alone() {
    // One for each page, unless all of the VM is zapped: then as often as the guest gets through its pages between two updates, which wait for a grace period.
    let faults = [
        stresses(&x86(), SlotQuirk::ZapAll),
        stresses(&x86(), SlotQuirk::LeafsOnly),
        stresses(&arm64(), SlotQuirk::ZapAll),
        stresses(&power(), SlotQuirk::ZapAll),
    ];
    assert_eq!(faults, [961, 192, 192, 192]);
}
