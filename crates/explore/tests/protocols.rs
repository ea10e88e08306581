//! The protocol explorer itself: the same for any number of threads, repeatable, and it finds what small programs do wrong.

use arch_x86_ept::{EptConfig, LongModeConfig};
use mmu_explore::museum::{Variant, exhibit};
use mmu_sim::arch::Arch2;
use mmu_sim::engine::{Bed, Fence, LockId, LockMode, Wake};
use mmu_sim::explore::{
    Budget, Invariant, Kind, Limits, MemoryOrder, Report, Scenario, Shrinking, SmallVm, Strategy, Verdict,
};
use mmu_sim::rng::Seed;

type X86 = Arch2<arch_x86_ept::LongMode, arch_x86_ept::Ept>;

fn x86() -> X86 {
    let one = LongModeConfig::new().max_phys_addr(46).build().unwrap();
    Arch2 { name: "x86", one, two: EptConfig::new().max_phys_addr(46).build().unwrap() }
}

fn empty(name: &str) -> Scenario<X86> {
    Scenario::new(name, x86(), SmallVm::mapped(1))
}

fn on_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

fn explore(id: &str, variant: Variant, strategy: &Strategy, schedules: u64, seed: u64) -> Report {
    let budget = Budget { schedules, seed: Seed(seed), shrinking: Shrinking::Off };
    exhibit(id).unwrap().scenario(variant).explore(strategy, budget)
}

#[test]
fn the_report_is_the_same_for_any_number_of_threads() {
    for (id, variant) in [("G13", Variant::Broken), ("G13", Variant::Fixed), ("G05", Variant::Broken)] {
        for strategy in [Strategy::Random, Strategy::Pct(3), Strategy::Portfolio] {
            let report = |threads| on_threads(threads, || explore(id, variant, &strategy, 500, 7));
            let one = report(1);
            assert_eq!(one, report(2), "{id} {strategy}");
            assert_eq!(one, report(5), "{id} {strategy}");
        }
    }
}

#[test]
fn seeds_differ_and_each_is_the_same_again() {
    let digest = |seed| explore("X20", Variant::Fixed, &Strategy::Random, 50, seed).stats.digest;
    assert_eq!(digest(1), digest(1));
    assert_ne!(digest(1), digest(2));
}

#[test]
fn a_failure_is_repeated_exactly_and_any_change_is_noticed() {
    let exhibit = exhibit("X20").unwrap();
    let scenario = exhibit.scenario(Variant::Broken);
    let failure = scenario.explore(&Strategy::Portfolio, Budget::schedules(5000)).failure.unwrap();
    let again = scenario.replay(&failure.decisions).unwrap().failure.unwrap();
    assert_eq!((again.broken, again.digest, again.steps), (failure.broken, failure.digest, failure.steps));
    for end in 0..failure.decisions.len() {
        let diverged = scenario.replay(&failure.decisions[..end]).unwrap_err();
        assert_eq!(diverged.at, end);
    }
    let mut longer = failure.decisions.clone();
    longer.extend_from_slice(&failure.decisions[..1]);
    assert_eq!(scenario.replay(&longer).unwrap_err().at, failure.decisions.len());
    assert!(exhibit.scenario(Variant::Fixed).replay(&failure.decisions).is_err(), "another protocol, other decisions");
}

#[test]
fn shrinking_keeps_the_invariant_and_makes_nothing_larger() {
    let scenario = lost_update(4);
    let raw = scenario.explore(&Strategy::Random, Budget { shrinking: Shrinking::Off, ..Budget::schedules(100) });
    let small = scenario.explore(&Strategy::Random, Budget::schedules(100));
    let (raw, small) = (raw.failure.unwrap(), small.failure.unwrap());
    assert_eq!(raw.broken.invariant, small.broken.invariant);
    assert!(small.preemptions <= raw.preemptions && small.choices() <= raw.choices());
    assert_eq!(small.preemptions, 1, "{}", small.table());
    let table = small.table();
    assert!(table.contains("actor") && table.contains(&small.broken.to_string()), "{table}");
}

#[test]
fn a_deadlock_is_reported_with_who_waits_for_whom() {
    let scenario = empty("deadlock").setup(|build| {
        for (name, locks) in [("one", [LockId::MMU, LockId::SLOTS]), ("two", [LockId::SLOTS, LockId::MMU])] {
            build.spawn(name, move |host| {
                Box::pin(async move {
                    for lock in locks {
                        host.lock(lock, LockMode::Write).await;
                    }
                    for lock in locks {
                        host.unlock(lock).await;
                    }
                })
            });
        }
    });
    let report = scenario.explore(&Strategy::Exhaustive, Budget::schedules(1000));
    let failure = report.failure.unwrap();
    assert_eq!(failure.broken.invariant, Invariant::P4);
    assert!(failure.broken.what.contains("one waits for a lock of two"), "{}", failure.broken);
    assert_eq!(failure.preemptions, 1);
}

#[test]
fn a_wake_up_that_comes_too_early_is_found() {
    let sleeper = |prepared: bool| {
        empty("wake-up").setup(move |build| {
            let (ready, queue) = (build.new_var(0), build.new_wait_queue());
            build.spawn("sleeper", move |host| {
                Box::pin(async move {
                    if prepared {
                        host.prepare_to_wait(queue).await;
                    }
                    if host.load(ready).await != 0 {
                        return host.finish_wait(queue).await;
                    }
                    if !prepared {
                        host.prepare_to_wait(queue).await;
                    }
                    host.schedule(queue).await;
                })
            });
            build.spawn("waker", move |host| {
                Box::pin(async move {
                    host.store(ready, 1).await;
                    host.wake_up(queue, Wake::All).await;
                })
            });
        })
    };
    let explore = |prepared| sleeper(prepared).explore(&Strategy::Exhaustive, Budget::schedules(10_000));
    assert_eq!(explore(true).verdict, Verdict::Proved);
    assert_eq!(explore(false).failure.unwrap().broken.invariant, Invariant::P4);
}

/// A value and a flag that says it is there; the reader must not see the flag without the value.
fn message_passing(memory: MemoryOrder, barriers: bool) -> Report {
    let scenario = empty("message passing").setup(move |build| {
        let (value, flag) = (build.new_var(0), build.new_var(0));
        let missed = std::rc::Rc::new(std::cell::Cell::new(false));
        let seen = missed.clone();
        build.spawn("writer", move |host| {
            Box::pin(async move {
                host.store(value, 1).await;
                if barriers {
                    host.fence(Fence::Write).await;
                }
                host.store(flag, 1).await;
            })
        });
        build.spawn("reader", move |host| {
            Box::pin(async move {
                if host.load(flag).await == 1 {
                    if barriers {
                        host.fence(Fence::Read).await;
                    }
                    seen.set(host.load(value).await == 0);
                }
            })
        });
        build.finally(Invariant::B4, move |_| if missed.get() { Err("no value".to_owned()) } else { Ok(()) });
    });
    scenario.limits(Limits { memory, ..Limits::default() }).explore(&Strategy::Exhaustive, Budget::schedules(10_000))
}

#[test]
fn a_missing_barrier_is_found_where_memory_is_weak_and_only_there() {
    for memory in [MemoryOrder::Sequential, MemoryOrder::StoreBuffer] {
        assert_eq!(message_passing(memory, false).verdict, Verdict::Proved, "{memory:?}");
    }
    assert_eq!(message_passing(MemoryOrder::Weak, false).failure.unwrap().broken.invariant, Invariant::B4);
    assert_eq!(message_passing(MemoryOrder::Weak, true).verdict, Verdict::Proved);
}

/// Both store to one variable and load the other: with store buffers both may miss the other's store.
fn store_buffering(memory: MemoryOrder, barrier: bool) -> Verdict {
    let scenario = empty("store buffering").setup(move |build| {
        let vars = [build.new_var(0), build.new_var(0)];
        let missed = std::rc::Rc::new(std::cell::Cell::new(0));
        for (mine, other) in [(0, 1), (1, 0)] {
            let missed = missed.clone();
            build.spawn("actor", move |host| {
                Box::pin(async move {
                    host.store(vars[mine], 1).await;
                    if barrier {
                        host.fence(Fence::Full).await;
                    }
                    let seen = host.load(vars[other]).await;
                    missed.set(missed.get() + u32::from(seen == 0));
                })
            });
        }
        build.finally(Invariant::B2, move |_| if missed.get() == 2 { Err("both missed".to_owned()) } else { Ok(()) });
    });
    scenario
        .limits(Limits { memory, ..Limits::default() })
        .explore(&Strategy::Exhaustive, Budget::schedules(10_000))
        .verdict
}

#[test]
fn store_buffers_reorder_a_store_and_a_later_load_unless_a_barrier_stands_between() {
    assert_eq!(store_buffering(MemoryOrder::Sequential, false), Verdict::Proved);
    for memory in [MemoryOrder::StoreBuffer, MemoryOrder::Weak] {
        assert_eq!(store_buffering(memory, false), Verdict::Broken, "{memory:?}");
        assert_eq!(store_buffering(memory, true), Verdict::Proved, "{memory:?}");
    }
}

#[test]
fn reduction_leaves_one_order_of_steps_that_commute() {
    let independent = |actors: u64| {
        let scenario = empty("independent").setup(move |build| {
            for _ in 0..actors {
                let var = build.new_var(0);
                build.spawn("actor", move |host| {
                    Box::pin(async move {
                        for _ in 0..3 {
                            host.add(var, 1).await;
                        }
                    })
                });
            }
        });
        scenario.explore(&Strategy::Exhaustive, Budget::schedules(100_000))
    };
    let report = independent(3);
    assert_eq!(report.verdict, Verdict::Proved);
    // 1680 interleavings without it.
    assert!(report.stats.executions < 40, "{:?}", report.stats);
}

/// Actors that add one to a variable by a load and a store.
fn lost_update(actors: u64) -> Scenario<X86> {
    empty("lost update").setup(move |build| {
        let var = build.new_var(0);
        let most = std::rc::Rc::new(std::cell::Cell::new(0));
        for _ in 0..actors {
            let most = most.clone();
            build.spawn("actor", move |host| {
                Box::pin(async move {
                    let value = host.load(var).await;
                    host.store(var, value + 1).await;
                    most.set(most.get().max(value + 1));
                })
            });
        }
        build.finally(Invariant::N2, move |_| if most.get() < actors { Err("lost".to_owned()) } else { Ok(()) });
    })
}

#[test]
fn a_lost_update_needs_one_preemption() {
    let scenario = lost_update(2);
    for strategy in [Strategy::Exhaustive, Strategy::Bounded(1), Strategy::Random, Strategy::Pct(2)] {
        let failure = scenario.explore(&strategy, Budget::schedules(1000)).failure.unwrap();
        assert_eq!(failure.preemptions, 1, "{strategy}");
        assert!(failure.decisions.iter().all(|decision| decision.kind == Kind::Run));
    }
    let bounded = scenario.explore(&Strategy::Bounded(0), Budget::schedules(1000));
    assert_eq!(bounded.verdict, Verdict::Passed, "without a preemption nothing is lost, and that proves nothing");
}
