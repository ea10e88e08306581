//! Visits of leaves among unlike ones: a table at once equals entry by entry, on every kind of accessed state.
//!
//! Guests touch pages at random and single pages are taken away, so that young, dirty, old and empty entries alternate.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use mmu_core::{Bytes, Cycles, Format, Gpa, GpaRange, Hva, PageSize};
use mmu_sim::arch::Arch;
use mmu_sim::engine::{ActorStats, Flag, GuestPaging, Host, HostCounters, LockId, PageState, Runs, Sim, Stopped};
use mmu_sim::experiment::zap::strategies;
use mmu_sim::experiment::{Platform, Populate, VmSpec, build};
use mmu_sim::protocols::aging::{Aged, AgingPolicy, clear_young};
use mmu_sim::protocols::iter::Yield;
use mmu_sim::protocols::memslot;
use mmu_sim::protocols::unmap::{UnmapPolicy, unmap_range};
use mmu_sim::protocols::zap::{AtomicZap, ZapPolicy, zap_leafs};
use mmu_sim::rng::Seed;
use mmu_sim::workload::{Mix, PatternSpec, Workload};
use proptest::prelude::*;

const PAGE: u64 = PageSize::SIZE_4K.bytes();
/// Two tables and a half on x86 and Arm.
const PAGES: u64 = 1280;
/// Every place for the question whether to reschedule.
const YIELDS: [Yield; 5] =
    [Yield::Never, Yield::AfterWorkOnly, Yield::NoProgressRule, Yield::YieldedGfn, Yield::RestartAdvances];

/// What is done after the guest has run.
#[derive(Clone, Debug)]
struct Case {
    accesses: u64,
    /// Pages that are taken away one by one, again and again while the guest runs.
    holes: u64,
    /// First page and pages that are aged.
    range: (u64, u64),
    aging: AgingPolicy,
    zap: ZapPolicy,
    end: End,
    /// Cycles of a time slice.
    slice: u64,
}

/// How all leaves go in the end.
#[derive(Clone, Copy, Debug)]
enum End {
    /// Zapped, up to the middle of the range that was aged and from there on.
    Leaves,
    /// Unmapped by a visitor, likewise.
    Visitor,
    /// With their root.
    Root,
}

/// Everything that must not depend on how leaves are visited.
#[derive(PartialEq, Debug)]
struct Outcome {
    tables: [u128; 3],
    host: HostCounters,
    actors: Vec<ActorStats>,
    aged: Vec<Aged>,
    /// A letter for what is known of each page.
    pages: String,
}

fn range(first: u64, pages: u64) -> GpaRange {
    GpaRange::new(Gpa::new(first * PAGE), Bytes(pages * PAGE))
}

/// Zaps leaves under the lock, so that the next access faults; their pages stay.
async fn take_away<F: Format>(host: &Host<F>, range: GpaRange, policy: &ZapPolicy) {
    host.lock(LockId::MMU, policy.lock.mode()).await;
    let root = host.root().await;
    let _flushed_below = zap_leafs(host, root, range, policy).await;
    host.flush_vm().await;
    host.unlock(LockId::MMU).await;
}

fn finish<A: Arch>(sim: &mut Sim<A>) -> u128 {
    assert_eq!(sim.run(), Stopped::Finished);
    assert_eq!(sim.failure(), None);
    sim.world().tables().digest()
}

fn outcome<A: Arch>(platform: &Platform<A>, case: &Case, runs: Runs) -> Outcome {
    let mut platform = platform.clone();
    platform.costs.tick_period = Cycles(case.slice);
    let pattern = PatternSpec { bytes: PAGES * PAGE, mix: Mix::Uniform, writes_percent: 30, accesses: case.accesses };
    let spec = VmSpec {
        memory: Bytes(PAGES * PAGE),
        vcpus: 2,
        page: PageSize::SIZE_4K,
        guest: GuestPaging::Flat,
        populate: Populate::Mapped,
        workload: Workload::Pattern(pattern),
        seed: Seed(3),
    };
    let mut sim = build(&platform, &spec).unwrap();
    sim.set_runs(runs);
    let (aged, hva) = (Rc::new(RefCell::new(Vec::new())), Rc::new(Cell::new(Hva::new(0))));
    let (into, slot) = (Rc::clone(&aged), Rc::clone(&hva));
    let Case { holes, aging, zap, end, .. } = *case;
    let (first, pages) = case.range;
    let touched = range(first, pages);
    // While the guest runs: all is aged, and single pages go.
    sim.spawn("holes", Cycles::ZERO, move |host| {
        Box::pin(async move {
            slot.set(host.slot_at(host.active_slots().await, Gpa::new(0)).await.expect("a slot").hva);
            clear_young(&host, range(0, PAGES), &aging).await;
            for i in 0..holes {
                take_away(&host, range(i * i * 7 % PAGES, 1), &zap).await;
                if i % 16 == 15 {
                    let found = clear_young(&host, touched, &aging).await;
                    into.borrow_mut().push(found);
                }
            }
        })
    });
    let while_running = finish(&mut sim);
    let into = Rc::clone(&aged);
    let now = sim.now();
    sim.spawn("age", now, move |host| {
        Box::pin(async move {
            for i in 0..holes {
                take_away(&host, range((i * i * 11 + 5) % PAGES, 1), &zap).await;
            }
            let found = clear_young(&host, touched, &aging).await;
            into.borrow_mut().push(found);
        })
    });
    let made_old = finish(&mut sim);
    let now = sim.now();
    let middle = first + pages / 2;
    sim.spawn("zap", now, move |host| {
        Box::pin(async move {
            for part in [range(0, middle), range(middle, PAGES - middle)] {
                match end {
                    End::Leaves => take_away(&host, part, &zap).await,
                    End::Visitor => unmap_range(&host, part, UnmapPolicy::V6_6).await,
                    End::Root => {}
                }
            }
            if let End::Root = end {
                memslot::zap_all_fast(&host, &zap).await.unwrap();
            }
        })
    });
    let zapped = finish(&mut sim);
    let world = sim.world();
    let primary = world.primary();
    let state = |page| match primary.lookup(hva.get() + page * PAGE).map(|at| primary.page_state(at)) {
        None => 'x',
        Some(PageState { accessed: Flag::Clear, dirty: Flag::Clear }) => '.',
        Some(PageState { accessed: Flag::Set, dirty: Flag::Clear }) => 'a',
        Some(PageState { accessed: Flag::Clear, dirty: Flag::Set }) => 'd',
        Some(PageState { accessed: Flag::Set, dirty: Flag::Set }) => 'b',
    };
    Outcome {
        tables: [while_running, made_old, zapped],
        host: *world.counters(),
        actors: sim.actors().map(|(_, stats)| *stats).collect(),
        pages: (0..PAGES).map(state).collect(),
        aged: aged.take(),
    }
}

fn agree<A: Arch>(platform: &Platform<A>, case: &Case) {
    assert_eq!(outcome(platform, case, Runs::Whole), outcome(platform, case, Runs::Single), "{case:?}");
}

#[test]
fn all_of_a_touched_guest() {
    for (aging, accesses) in [(AgingPolicy::V6_15, 900), (AgingPolicy::YU_V2, 500), (AgingPolicy::V6_12, 3000)] {
        let zap = ZapPolicy { atomic: AtomicZap::Always, ..strategies()[0].policy };
        let case = Case { accesses, holes: 60, range: (0, PAGES), aging, zap, end: End::Leaves, slice: 30_000 };
        everywhere!(agree, &case);
        for (end, which) in [(End::Visitor, 0), (End::Root, 4), (End::Root, 9)] {
            let zap = strategies()[which].policy;
            everywhere!(agree, &Case { zap, end, ..case.clone() });
        }
    }
}

/// Holes beside each other are passed one by one as well: a visitor counted them for one entry.
#[test]
fn a_visitor_passes_over_holes_beside_each_other() {
    let (aging, zap) = (AgingPolicy::V6_12, ZapPolicy { yielding: Yield::Never, ..ZapPolicy::V5_17 });
    let case = Case { accesses: 0, holes: 33, range: (254, 1026), aging, zap, end: End::Visitor, slice: 1000 };
    everywhere!(agree, &case);
}

#[test]
fn a_table_is_visited_at_once() {
    let zap = strategies()[0].policy;
    let case = Case {
        accesses: 900,
        holes: 30,
        range: (200, 1000),
        aging: AgingPolicy::V6_15,
        zap,
        end: End::Leaves,
        slice: 1 << 40,
    };
    let platform = crate::common::x86();
    let found = outcome(&platform, &case, Runs::Whole);
    let aged = found.aged.last().unwrap();
    assert!((900..1000).contains(&aged.leaves) && (200..800).contains(&aged.young), "{aged:?}");
    // All were mapped dirty.
    for state in ['d', 'b'] {
        let pages = found.pages.chars().filter(|page| *page == state).count();
        assert!(pages > 60, "{pages} pages are {state}: {}", found.pages);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_range_any_slice(
        accesses in 0u64..4_000,
        holes in 0u64..80,
        first in 0u64..PAGES,
        pages in 1u64..PAGES,
        slice in 1_000u64..200_000,
        (aging, which, atomic, yielding) in (0usize..4, 0usize..10, 0usize..3, 0usize..10),
        (on, end) in (0usize..3, 0usize..4),
    ) {
        let aging =
            [AgingPolicy::V6_12, AgingPolicy::V6_15, AgingPolicy::YU_V2, AgingPolicy::X42][aging];
        let atomic = [AtomicZap::Always, AtomicZap::Volatile, AtomicZap::MmuWritable][atomic];
        let zap = ZapPolicy { atomic, ..strategies()[which].policy };
        // Its own, or any.
        let yielding = YIELDS.get(yielding).copied().unwrap_or(zap.yielding);
        let zap = ZapPolicy { yielding, ..zap };
        let end = [End::Leaves, End::Leaves, End::Visitor, End::Root][end];
        let case = Case { accesses, holes, range: (first, pages.min(PAGES - first)), aging, zap, end, slice };
        match on {
            0 => agree(&crate::common::x86(), &case),
            1 => agree(&crate::accessed::x86(arch_x86_ept::AccessedDirty::Off), &case),
            _ => agree(&crate::common::arm64(), &case),
        }
    }
}
