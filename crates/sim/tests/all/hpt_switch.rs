//! POWER: switching between radix trees and hashed tables while agers run; recycled tables; aging by R.

use std::cell::RefCell;
use std::rc::Rc;

use arch_ppc_radix::{Radix, RcUpdate};
use mmu_core::memory::TableFault;
use mmu_core::{Bytes, Cycles, Gpa, GpaRange, Hpa, Level, PageSize};
use mmu_sim::arch::Arch2;
use mmu_sim::checker::Violation;
use mmu_sim::engine::{AgeRun, AgeWrite, GuestPaging, Host, LockId, LockMode, Sim, Stopped, Var};
use mmu_sim::experiment::{Populate, VmSpec, build_without_threads};
use mmu_sim::protocols::aging::{AgingPath, AgingPolicy};
use mmu_sim::protocols::hpt_switch::{
    Mode, PowerVm, Switch, SwitchError, TableMemory, Touch, age, configure, map_hashed, map_radix, release,
    touch_hashed,
};
use mmu_sim::protocols::iter::TdpIter;
use mmu_sim::protocols::young::Clear;
use mmu_sim::rng::Seed;
use mmu_sim::workload::Workload;

type Power = Arch2<Radix, Radix>;

const PAGE: u64 = 4096;
const PAGES: u64 = 1024;

fn guest() -> (Sim<Power>, PowerVm) {
    let vm = VmSpec {
        memory: Bytes(PAGES * PAGE),
        vcpus: 1,
        page: PageSize::SIZE_4K,
        guest: GuestPaging::Flat,
        populate: Populate::Mapped,
        workload: Workload::Idle,
        seed: Seed(7),
    };
    let mut sim = build_without_threads(&crate::accessed::power(RcUpdate::Hardware), &vm).unwrap();
    let power = PowerVm::new(&mut sim, 4);
    (sim, power)
}

fn range(first: u64, pages: u64) -> GpaRange {
    GpaRange::new(Gpa::new(first * PAGE), Bytes(pages * PAGE))
}

fn violations(sim: &mut Sim<Power>) -> Vec<Violation> {
    assert_eq!(sim.run(), Stopped::Finished);
    assert_eq!(sim.destroy(), Stopped::Finished);
    sim.world().violations().to_vec()
}

/// Runs one actor.
fn alone<T: 'static>(body: impl AsyncFnOnce(Host<Radix>, PowerVm) -> T + 'static) -> T {
    let (mut sim, power) = guest();
    let result = Rc::new(RefCell::new(None));
    let into = Rc::clone(&result);
    sim.spawn("one", Cycles(0), move |host| {
        Box::pin(async move {
            let value = body(host, power).await;
            *into.borrow_mut() = Some(value);
        })
    });
    assert_eq!(violations(&mut sim), []);
    result.take().unwrap()
}

#[test]
fn hashed_pages_are_young_when_touched_and_old_when_cleared() {
    for policy in [AgingPolicy::V6_13, AgingPolicy::V6_15] {
        alone(async move |host, vm| {
            let (path, aged) = age(&host, &vm, range(0, PAGES), Clear::Clear, &policy, &Switch::AFTER).await.unwrap();
            assert_eq!((aged.leaves, aged.young), (PAGES, PAGES));
            assert_eq!(path, policy.path(host.format()));
            configure(&host, &vm, Mode::Hashed, &Switch::AFTER).await.unwrap();
            configure(&host, &vm, Mode::Hashed, &Switch::AFTER).await.unwrap();
            assert_eq!(vm.mode(&host).await, Mode::Hashed);
            assert!(!touch_hashed(&host, &vm, Gpa::new(0), Touch::Load).await.unwrap(), "nothing is mapped yet");
            for page in 0..PAGES {
                map_hashed(&host, &vm, Gpa::new(page * PAGE), Hpa::new((4 << 30) + page * PAGE)).await.unwrap();
            }
            let scan = async |clear| age(&host, &vm, range(0, PAGES), clear, &policy, &Switch::AFTER).await.unwrap();
            assert_eq!(scan(Clear::Clear).await.1.young, 0);
            for page in [3, 4, 700, 1023, 3] {
                assert!(touch_hashed(&host, &vm, Gpa::new(page * PAGE), Touch::Store).await.unwrap());
            }
            let (path, tested) = scan(Clear::Test).await;
            assert_eq!((path, tested.young, tested.made_old), (AgingPath::Locked, 4, 0), "hashed tables fall back");
            let (_, aged) = scan(Clear::Clear).await;
            assert_eq!((aged.leaves, aged.young, aged.made_old), (PAGES, 4, 4));
            assert_eq!(scan(Clear::Clear).await.1.young, 0);
            let wrong = map_radix(&host, &vm, Gpa::new(0), Hpa::new(4 << 30), Level::LAST, &Switch::AFTER).await;
            assert_eq!(wrong, Err(SwitchError::Mode { is: Mode::Hashed }));
            configure(&host, &vm, Mode::Radix, &Switch::AFTER).await.unwrap();
            assert_eq!(scan(Clear::Clear).await.1.leaves, 0, "the new tree is empty");
            let wrong = map_hashed(&host, &vm, Gpa::new(0), Hpa::new(4 << 30)).await;
            assert_eq!(wrong, Err(SwitchError::Mode { is: Mode::Radix }));
        });
    }
}

#[test]
fn full_groups_and_running_vcpus_are_refused() {
    alone(async |host, vm| {
        assert!(vm.vcpu_enters(&host).await);
        let busy = configure(&host, &vm, Mode::Hashed, &Switch::AFTER).await;
        assert_eq!(busy, Err(SwitchError::Busy { running: 1 }));
        assert_eq!(vm.mode(&host).await, Mode::Radix);
        vm.vcpu_left(&host).await;
        configure(&host, &vm, Mode::Hashed, &Switch::AFTER).await.unwrap();
        // 16384 entries: a page that finds its two groups full comes before twice as many.
        let mut mapped = 0;
        let full = loop {
            match map_hashed(&host, &vm, Gpa::new(mapped * PAGE), Hpa::new((4 << 30) + mapped * PAGE)).await {
                Ok(()) => mapped += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(full, SwitchError::Full { gpa: Gpa::new(mapped * PAGE) });
        assert!((8 * 2048..=16 * 2048).contains(&mapped), "{mapped}");
        configure(&host, &vm, Mode::Radix, &Switch::AFTER).await.unwrap();
    });
}

/// Back and forth while somebody ages.
fn switching(policy: AgingPolicy, switch: Switch) -> Vec<Violation> {
    let (mut sim, vm) = guest();
    let over = sim.new_var(0);
    sim.spawn("age", Cycles(0), move |host| {
        Box::pin(async move {
            while host.load(over).await == 0 {
                age(&host, &vm, range(0, PAGES), Clear::Clear, &policy, &switch).await.unwrap();
            }
        })
    });
    sim.spawn("switch", Cycles(77_777), move |host| {
        Box::pin(async move {
            for _ in 0..4 {
                configure(&host, &vm, Mode::Hashed, &switch).await.unwrap();
                configure(&host, &vm, Mode::Radix, &switch).await.unwrap();
                for page in 0..64 {
                    let output = Hpa::new((4 << 30) + page * PAGE);
                    map_radix(&host, &vm, Gpa::new(page * PAGE), output, Level::LAST, &switch).await.unwrap();
                }
            }
            host.store(over, 1).await;
        })
    });
    violations(&mut sim)
}

fn is_use_after_free(violation: &Violation) -> bool {
    matches!(violation, Violation::TableUse { fault: TableFault::Freed { .. }, .. })
}

#[test]
fn p08_a_tree_is_freed_under_a_lockless_ager() {
    let found = switching(AgingPolicy::YU_V2, Switch::BEFORE);
    assert!(!found.is_empty() && found.iter().all(is_use_after_free), "{found:?}");
    assert_eq!(switching(AgingPolicy::YU_V2, Switch::AFTER), []);
    assert_eq!(switching(AgingPolicy::V6_13, Switch::BEFORE), [], "under the lock the old order is right");
}

/// How the preempted ager is protected.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Protected {
    ByRcu,
    ByLock,
}

/// Ages the first 2 MiB page by page, and is preempted in the middle of its section after it has set `inside`.
async fn preempted_ager(host: &Host<Radix>, protected: Protected, inside: Var) {
    match protected {
        Protected::ByRcu => host.rcu_read_lock().await,
        Protected::ByLock => host.lock(LockId::MMU, LockMode::Write).await,
    }
    let root = host.root().await;
    let mut iter = TdpIter::new(*host.format(), root, Level::LAST, Gpa::new(0), Gpa::new(512 * PAGE));
    let mut leaves = 0;
    while iter.next(host).await {
        if !iter.is_leaf() {
            continue;
        }
        if leaves == 8 {
            host.store(inside, 1).await;
            host.sleep(Cycles(4_000_000)).await;
        }
        let run = AgeRun { at: iter.sptep, len: 1, level: iter.level, old: iter.old, write: AgeWrite::Cmpxchg };
        leaves += host.age(run).await.entries;
        iter.take(1);
    }
    match protected {
        Protected::ByRcu => host.rcu_read_unlock().await,
        Protected::ByLock => host.unlock(LockId::MMU).await,
    }
    host.store(inside, 2).await;
}

/// A 2 MiB leaf takes the place of 512 pages while somebody ages these, and their table may come back for other pages. What went
/// wrong; other pages that were made old; tables that came back.
fn replacing(protected: Protected, switch: Switch) -> (Vec<Violation>, u64, u64) {
    let (mut sim, vm) = guest();
    let inside = sim.new_var(0);
    sim.spawn("age", Cycles(0), move |host| Box::pin(async move { preempted_ager(&host, protected, inside).await }));
    let result = Rc::new(RefCell::new((0, 0)));
    let into = Rc::clone(&result);
    sim.spawn("replace", Cycles(0), move |host| {
        Box::pin(async move {
            while host.load(inside).await == 0 {
                host.sleep(Cycles(1_000)).await;
            }
            map_radix(&host, &vm, Gpa::new(0), Hpa::new(4 << 30), Level::new(1), &switch).await.unwrap();
            let others = GpaRange::new(Gpa::new(16 << 20), Bytes(512 * PAGE));
            for page in 0..512 {
                let gpa = others.start + page * PAGE;
                map_radix(&host, &vm, gpa, Hpa::new((8 << 30) + gpa.raw()), Level::LAST, &switch).await.unwrap();
            }
            while host.load(inside).await != 2 {
                host.sleep(Cycles(1_000)).await;
            }
            let (_, aged) = age(&host, &vm, others, Clear::Clear, &AgingPolicy::V6_13, &switch).await.unwrap();
            assert_eq!(aged.leaves, 512);
            *into.borrow_mut() = (512 - aged.young, host.load(vm.recycled()).await);
            release(&host, &vm).await;
        })
    });
    let found = violations(&mut sim);
    let (lost, recycled) = result.take();
    (found, lost, recycled)
}

#[test]
fn p10_a_replaced_table_is_reused_under_a_lockless_ager() {
    let (found, ..) = replacing(Protected::ByRcu, Switch { tables: TableMemory::AnyUse, ..Switch::AFTER });
    assert!(!found.is_empty() && found.iter().all(is_use_after_free), "{found:?}");
    // Harmless, but real: the ager clears flags of pages that it was not asked about. Eight are behind it, and the next one's word
    // is not what it had read.
    assert_eq!(replacing(Protected::ByRcu, Switch::AFTER), (vec![], 512 - 9, 1));
    let after = Switch { tables: TableMemory::AfterGrace, ..Switch::AFTER };
    assert_eq!(replacing(Protected::ByRcu, after), (vec![], 0, 0));
    // Under the lock freeing at once is right.
    assert_eq!(replacing(Protected::ByLock, Switch::BEFORE), (vec![], 0, 0));
}
