//! Strategies: each finds what it should, searches leave out nothing, and all say the same for any number of threads.

use std::cell::Cell;
use std::rc::Rc;

use arch_x86_ept::{EptConfig, LongModeConfig};
use mmu_explore::museum::{Variant, exhibit};
use mmu_sim::arch::Arch2;
use mmu_sim::engine::{Bed, Cmpxchg, LockId, LockMode};
use mmu_sim::explore::{
    Actors, Budget, Explorable, Invariant, Kind, Limits, MemoryOrder, Report, Scenario, Sharing, Shrinking, SmallVm,
    Strategy, Verdict, read, write,
};
use mmu_sim::protocols::fault::FaultPolicy;
use mmu_sim::protocols::vcpu;
use mmu_sim::rng::Seed;

type X86 = Arch2<arch_x86_ept::LongMode, arch_x86_ept::Ept>;

fn x86() -> X86 {
    let one = LongModeConfig::new().max_phys_addr(46).build().unwrap();
    Arch2 { name: "x86", one, two: EptConfig::new().max_phys_addr(46).build().unwrap() }
}

fn empty(name: &str) -> Scenario<X86> {
    let limits = Limits { sharing: Sharing::Operations, ..Limits::default() };
    Scenario::new(name, x86(), SmallVm::mapped(1)).limits(limits)
}

fn raw(schedules: u64) -> Budget {
    Budget { schedules, seed: Seed(3), shrinking: Shrinking::Off }
}

fn on_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

/// Actors that add one to a variable so many times, by a load and a store.
fn lost_update(actors: u64, rounds: u64) -> Scenario<X86> {
    empty("lost update").setup(move |build| {
        let var = build.new_var(0);
        let most = Rc::new(Cell::new(0));
        for _ in 0..actors {
            let most = most.clone();
            build.spawn("actor", move |host| {
                Box::pin(async move {
                    for _ in 0..rounds {
                        let value = host.load(var).await;
                        host.store(var, value + 1).await;
                        most.set(most.get().max(value + 1));
                    }
                })
            });
        }
        let all = actors * rounds;
        build.finally(Invariant::N2, move |_| if most.get() < all { Err("lost".to_owned()) } else { Ok(()) });
    })
}

/// Actors that take a lock, add to a variable and give the lock back.
fn locked_update(actors: usize, rounds: usize) -> Scenario<X86> {
    empty("locked update").setup(move |build| {
        let var = build.new_var(0);
        for _ in 0..actors {
            build.spawn("actor", move |host| {
                Box::pin(async move {
                    for _ in 0..rounds {
                        host.lock(LockId::MMU, LockMode::Write).await;
                        let value = host.load(var).await;
                        host.store(var, value + 1).await;
                        host.unlock(LockId::MMU).await;
                    }
                })
            });
        }
    })
}

/// Actors that take a lock, look at a variable that nobody changes, and give the lock back.
fn locked_look(actors: usize) -> Scenario<X86> {
    empty("locked look").setup(move |build| {
        let var = build.new_var(0);
        for _ in 0..actors {
            build.spawn("actor", move |host| {
                Box::pin(async move {
                    host.lock(LockId::MMU, LockMode::Write).await;
                    host.load(var).await;
                    host.unlock(LockId::MMU).await;
                })
            });
        }
    })
}

/// A guest and somebody who takes their page away, and flushes.
fn zap_beside_guests() -> Scenario<X86> {
    let limits = Limits { sharing: Sharing::Operations, ticks: 0, ..Limits::default() };
    let thread = |host, id| -> mmu_sim::engine::ActorFuture {
        Box::pin(vcpu::thread(host, id, FaultPolicy::new(LockMode::Read, mmu_core::PageSize::SIZE_4K)))
    };
    let scenario = Scenario::new("zap", x86(), SmallVm::mapped(1)).limits(limits);
    scenario.vcpu([read(0), write(0)], thread).actor("zap", |host| {
        Box::pin(async move {
            host.lock(LockId::MMU, LockMode::Write).await;
            host.flush_vm().await;
            host.unlock(LockId::MMU).await;
        })
    })
}

fn proved(scenario: &dyn Explorable, strategy: &Strategy) -> Report {
    let report = scenario.explore(strategy, raw(400_000));
    assert_eq!(report.verdict, Verdict::Proved, "{strategy}: {:?}", report.stats);
    report
}

#[test]
fn searches_reach_the_same_endings_with_states_and_without_and_with_no_reduction_at_all() {
    let scenarios: [(&str, Box<dyn Explorable>); 3] = [
        ("locked", Box::new(locked_update(3, 1))),
        ("guests", Box::new(zap_beside_guests())),
        ("wide", Box::new(locked_update(2, 2))),
    ];
    for (name, scenario) in scenarios {
        let all = proved(scenario.as_ref(), &Strategy::Bounded(u32::MAX));
        let stateless = proved(scenario.as_ref(), &Strategy::Stateless);
        let states = proved(scenario.as_ref(), &Strategy::Exhaustive);
        let endings = |report: &Report| (report.stats.endings, report.stats.endings_digest);
        assert_eq!(endings(&stateless), endings(&all), "{name}: {:?}\n{:?}", stateless.stats, all.stats);
        assert_eq!(endings(&states), endings(&all), "{name}: {:?}\n{:?}", states.stats, all.stats);
        let steps = [all.stats.steps, stateless.stats.steps, states.stats.steps];
        assert!(steps.is_sorted_by(|more, less| more >= less), "{name}: {steps:?}");
        assert!(states.stats.states > 0 && stateless.stats.states == 0);
    }
}

#[test]
fn known_states_spare_what_reduction_does_not() {
    let scenario = locked_look(5);
    let (stateless, states) = (proved(&scenario, &Strategy::Stateless), proved(&scenario, &Strategy::Exhaustive));
    assert_eq!(
        (stateless.stats.executions, stateless.stats.endings),
        (120, 1),
        "every order in which the lock is taken"
    );
    // In which order the lock was taken nobody can tell: what counts is who is done.
    assert_eq!(states.stats.endings, 1);
    assert!(states.stats.executions < 120 && states.stats.states <= 32, "{:?}", states.stats);
    // Unless actors may have told each other beside operations.
    let mut scenario = locked_look(5);
    scenario.limits_mut().sharing = Sharing::Memory;
    assert_eq!(proved(&scenario, &Strategy::Exhaustive).stats.executions, 120);
}

#[test]
fn what_actors_share_beside_operations_keeps_states_apart() {
    // Both end with the same answers; who was last stands in a cell that no operation shows.
    let scenario = {
        let limits = Limits { sharing: Sharing::Memory, ..Limits::default() };
        empty("cell").limits(limits).setup(|build| {
            let last = Rc::new(Cell::new(0));
            for number in 1..=2 {
                let last = last.clone();
                build.spawn("actor", move |host| {
                    Box::pin(async move {
                        host.lock(LockId::MMU, LockMode::Write).await;
                        last.set(number);
                        host.unlock(LockId::MMU).await;
                    })
                });
            }
            build.spawn("third", |host| Box::pin(async move { host.lock(LockId::SLOTS, LockMode::Write).await }));
            build.finally(
                Invariant::N2,
                move |_| if last.get() == 1 { Err("the first was last".to_owned()) } else { Ok(()) },
            );
        })
    };
    let with = scenario.explore(&Strategy::Exhaustive, raw(10_000));
    assert_eq!(with.failure.unwrap().broken.invariant, Invariant::N2);
}

#[test]
fn every_strategy_finds_a_lost_update_and_says_the_same_on_any_number_of_threads() {
    let scenario = lost_update(3, 2);
    let strategies = [
        Strategy::Exhaustive,
        Strategy::Stateless,
        Strategy::Bounded(2),
        Strategy::Delays(2),
        Strategy::Random,
        Strategy::Uniform,
        Strategy::Sticky,
        Strategy::Pct(3),
        Strategy::Coverage,
        Strategy::Portfolio,
    ];
    for strategy in strategies {
        let report = |threads| on_threads(threads, || scenario.explore(&strategy, raw(5_000)));
        let one = report(1);
        assert_eq!(one.verdict, Verdict::Broken, "{strategy}");
        assert_eq!(one, report(2), "{strategy}");
        assert_eq!(one, report(7), "{strategy}");
        assert_eq!(strategy.to_string().parse(), Ok(strategy));
    }
}

#[test]
fn what_is_not_found_is_the_same_on_any_number_of_threads_too() {
    let scenario = locked_update(3, 2);
    for strategy in [Strategy::Exhaustive, Strategy::Stateless, Strategy::Delays(2), Strategy::Coverage] {
        // Some of these budgets end the search in its middle.
        for schedules in [7, 500, 3_000] {
            let report = |threads| on_threads(threads, || scenario.explore(&strategy, raw(schedules)));
            let one = report(1);
            assert!(one.failure.is_none() && one.stats.executions <= schedules, "{strategy}: {:?}", one.stats);
            assert_eq!(one, report(2), "{strategy} {schedules}");
            assert_eq!(one, report(5), "{strategy} {schedules}");
        }
    }
}

#[test]
fn names_are_read_and_unknown_ones_are_told_what_there_is() {
    for (name, what) in Strategy::NAMED {
        let plain = name.split(':').next().unwrap();
        assert!(plain.parse::<Strategy>().is_ok() && !what.is_empty(), "{name}");
    }
    assert_eq!("delays".parse(), Ok(Strategy::Delays(2)));
    assert_eq!("delays:5".parse(), Ok(Strategy::Delays(5)));
    for wrong in ["depth", "random:3", "delays:x", "exhaustive:1", ""] {
        let error = wrong.parse::<Strategy>().unwrap_err().to_string();
        assert!(error.contains("coverage") && error.contains("pct:DEPTH"), "{error}");
    }
}

/// How often each of several orders comes out, over so many executions.
fn orders(strategy: &Strategy, long: u64) -> [f64; 2] {
    // One actor with one step, one with many: the first comes somewhere among the steps of the second.
    let executions = 4_000;
    let (early, late) = (
        std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0)),
        std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0)),
    );
    let (first, last) = (early.clone(), late.clone());
    let scenario = empty("orders").setup(move |build| {
        let (var, place) = (build.new_var(0), Rc::new(Cell::new(0)));
        let found = place.clone();
        build.spawn("short", move |host| Box::pin(async move { place.set(host.load(var).await) }));
        build.spawn("long", move |host| {
            Box::pin(async move {
                for n in 1..=long {
                    host.store(var, n).await;
                }
            })
        });
        let (first, last) = (first.clone(), last.clone());
        build.finally(Invariant::N2, move |_| {
            let count = if found.get() <= long / 2 { &first } else { &last };
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Ok(())
        });
    });
    assert_eq!(scenario.explore(strategy, raw(executions)).verdict, Verdict::Passed);
    [early, late].map(|count| count.load(std::sync::atomic::Ordering::Relaxed) as f64 / executions as f64)
}

#[test]
fn the_uniform_walk_spreads_a_short_actor_over_a_long_one() {
    let [early, late] = orders(&Strategy::Random, 40);
    assert!(early > 0.99, "at random the short one is nearly always first: {early} {late}");
    let [early, late] = orders(&Strategy::Uniform, 40);
    assert!((0.4..0.6).contains(&early) && (0.4..0.6).contains(&late), "{early} {late}");
}

#[test]
fn coverage_comes_to_more_states_than_chance() {
    let scenario = locked_update(4, 3);
    let covered = scenario.explore(&Strategy::Coverage, raw(1_000)).stats;
    assert!(covered.states > 500, "{covered:?}");
    let again = scenario.explore(&Strategy::Coverage, raw(1_000)).stats;
    assert_eq!(covered, again);
    let fewer = scenario.explore(&Strategy::Coverage, raw(200)).stats;
    assert!(fewer.states < covered.states);
}

#[test]
fn a_failure_is_gone_on_from() {
    let exhibit = exhibit("X20").unwrap();
    let scenario = exhibit.scenario(Variant::Broken);
    let failure = scenario.explore(&Strategy::Portfolio, Budget::schedules(5_000)).failure.unwrap();
    let most = failure.decisions.len() * 3 / 4;
    let prefix = failure.decisions[..most].to_vec();
    let mut scenario = exhibit.scenario(Variant::Broken);
    scenario.limits_mut().without = failure.without;
    let report = scenario.explore(&Strategy::Continue(prefix.clone()), raw(2_000));
    let again = report.failure.expect("the rest is found again");
    assert_eq!(again.decisions[..most], prefix[..]);
}

// ---- compare-and-swaps that fail for no reason ----

/// Who takes a failed compare-and-swap for somebody else's success, and who looks.
fn set_once(trusting: bool, store_failures: u32) -> Report {
    let scenario = empty("set once").setup(move |build| {
        let var = build.new_var(0);
        build.spawn("setter", move |host| {
            Box::pin(async move {
                loop {
                    match host.cmpxchg_var(var, 0, 1).await {
                        Cmpxchg::Done => break,
                        Cmpxchg::Failed(_) if trusting => break,
                        Cmpxchg::Failed(found) if found != 0 => break,
                        Cmpxchg::Failed(_) => {}
                    }
                }
            })
        });
        build.spawn("reader", move |host| {
            Box::pin(async move {
                host.load(var).await;
            })
        });
    });
    let limits = Limits { store_failures, sharing: Sharing::Operations, ..Limits::default() };
    scenario.limits(limits).explore(&Strategy::Exhaustive, raw(10_000))
}

#[test]
fn an_exclusive_store_may_fail_where_that_is_allowed_and_only_so_often() {
    let kinds = |report: &Report| report.stats.endings;
    // With a trusting setter the word stays what it was, which is another ending.
    assert!(kinds(&set_once(true, 1)) > kinds(&set_once(true, 0)));
    for store_failures in 0..4 {
        assert_eq!(set_once(false, store_failures).verdict, Verdict::Proved, "{store_failures}");
    }
}

#[test]
fn a_failed_exclusive_store_is_a_decision_that_is_replayed() {
    let scenario = |store_failures| {
        let limits = Limits { store_failures, ..Limits::default() };
        empty("lost").limits(limits).setup(|build| {
            let var = build.new_var(0);
            let done = Rc::new(Cell::new(true));
            let told = done.clone();
            build.spawn("setter", move |host| {
                Box::pin(async move {
                    told.set(host.cmpxchg_var(var, 0, 1).await == Cmpxchg::Done);
                })
            });
            build.finally(
                Invariant::D6,
                move |_| if done.get() { Ok(()) } else { Err("nobody tried again".to_owned()) },
            );
        })
    };
    assert_eq!(scenario(0).explore(&Strategy::Exhaustive, raw(100)).verdict, Verdict::Proved);
    let failure = scenario(1).explore(&Strategy::Exhaustive, raw(100)).failure.unwrap();
    assert!(failure.decisions.iter().any(|decision| decision.kind == Kind::Exclusive && decision.chosen == 1));
    assert_eq!(scenario(1).replay(&failure.decisions).unwrap().failure.unwrap().digest, failure.digest);
    assert!(scenario(0).replay(&failure.decisions).is_err());
}

#[test]
fn what_was_fixed_takes_failing_exclusive_stores_too() {
    let mut tried = 0;
    for exhibit in mmu_explore::museum::exhibits().into_iter().filter(|exhibit| exhibit.arch != "x86") {
        let mut scenario = exhibit.scenario(Variant::Fixed);
        scenario.limits_mut().store_failures = 2;
        let report = scenario.explore(&Strategy::Portfolio, raw(300));
        let table = report.failure.map(|failure| failure.table()).unwrap_or_default();
        assert!(table.is_empty(), "{}: {table}", exhibit.id);
        tried += 1;
    }
    assert!(tried > 20, "{tried}");
}

// ---- actors that a failure does not need ----

#[test]
fn actors_that_a_failure_does_not_need_are_left_out() {
    // Two that break an entry's flags, and two that have nothing to do with it.
    let scenario = || {
        empty("bystanders").setup(|build| {
            let var = build.new_var(0);
            for _ in 0..2 {
                build.spawn("bystander", move |host| {
                    Box::pin(async move {
                        for _ in 0..4 {
                            host.add(var, 1).await;
                        }
                    })
                });
            }
            build.spawn("careless", |host| {
                Box::pin(async move {
                    let root = host.root().await;
                    host.write(root, 0).await;
                })
            });
        })
    };
    let failure = scenario().explore(&Strategy::Random, Budget::schedules(1_000)).failure.unwrap();
    assert_eq!(failure.broken.invariant, Invariant::O3);
    assert_eq!(failure.without, Actors::NOBODY.with(0).with(1), "{}", failure.table());
    assert!(failure.table().contains("left out: bystander, bystander"), "{}", failure.table());
    let mut again = scenario();
    again.limits_mut().without = failure.without;
    assert_eq!(again.replay(&failure.decisions).unwrap().failure.unwrap().digest, failure.digest);
}

#[test]
fn nobody_is_left_out_of_what_is_judged_at_the_end() {
    let failure = lost_update(3, 1).explore(&Strategy::Random, Budget::schedules(1_000)).failure.unwrap();
    assert_eq!(failure.without, Actors::NOBODY);
    let waits = empty("deadlock").setup(|build| {
        let queue = build.new_wait_queue();
        build.spawn("sleeper", move |host| {
            Box::pin(async move {
                host.prepare_to_wait(queue).await;
                host.schedule(queue).await;
            })
        });
        build.spawn("other", |host| Box::pin(async move { host.lock(LockId::MMU, LockMode::Write).await }));
    });
    let failure = waits.explore(&Strategy::Random, Budget::schedules(100)).failure.unwrap();
    assert_eq!((failure.broken.invariant, failure.without), (Invariant::P4, Actors::NOBODY));
}

#[test]
fn weak_memory_is_searched_with_states_too() {
    let scenario = || {
        let limits = Limits { memory: MemoryOrder::Weak, sharing: Sharing::Operations, ..Limits::default() };
        lost_update(2, 1).limits(limits)
    };
    let (states, stateless) =
        (scenario().explore(&Strategy::Exhaustive, raw(10_000)), scenario().explore(&Strategy::Stateless, raw(10_000)));
    assert_eq!(states.verdict, stateless.verdict);
}

#[test]
fn the_museum_ends_the_same_however_it_is_searched() {
    use rayon::prelude::*;
    let exhibits = mmu_explore::museum::exhibits();
    let compared: Vec<(&str, u64, u64)> = exhibits
        .par_iter()
        .filter_map(|exhibit| {
            let report = |strategy: &Strategy| exhibit.scenario(Variant::Fixed).explore(strategy, raw(400));
            let (all, stateless) = (report(&Strategy::Bounded(u32::MAX)), report(&Strategy::Stateless));
            let states = report(&Strategy::Exhaustive);
            for report in [&all, &stateless, &states] {
                assert!(report.failure.is_none(), "{}", exhibit.id);
            }
            let verdicts = [&all, &stateless, &states].map(|report| report.verdict);
            let endings = |report: &Report| (report.stats.endings, report.stats.endings_digest);
            if verdicts[1] == Verdict::Proved {
                assert_eq!(verdicts[2], Verdict::Proved, "{}: states spare executions", exhibit.id);
                assert_eq!(endings(&states), endings(&stateless), "{}", exhibit.id);
                assert!(states.stats.executions <= stateless.stats.executions, "{}", exhibit.id);
            }
            if verdicts[0] == Verdict::Proved {
                assert_eq!(endings(&stateless), endings(&all), "{}: {:?} {:?}", exhibit.id, stateless.stats, all.stats);
            }
            let done = verdicts[1] == Verdict::Proved;
            done.then_some((exhibit.id, stateless.stats.executions, states.stats.executions))
        })
        .collect();
    assert!(compared.len() > 25, "{compared:?}");
    assert!(compared.iter().any(|&(_, stateless, states)| 2 * states <= stateless), "{compared:?}");
}
