//! Litmus tests in the timed engine: nothing forbidden is seen, permitted races go both ways, and it can fail.

use std::collections::BTreeSet;

use mmu_explore::explorer::{Extent, Reduction};
use mmu_explore::litmus::timed::{TIMED_DEFECTS, Timed, TimedMachine, execute, inexpressible, time_all, timed_summary};
use mmu_explore::litmus::{Defect, Limits, MemoryOrder, Test, Use, endings, read};
use mmu_sim::engine::Threads;
use mmu_sim::rng::Seed;
use rayon::prelude::*;

const CURATED: &[u8] = include_bytes!("../data/curated.json.xz");
const REMS: &[u8] = include_bytes!("../data/vmsa-rems.json.xz");
const OWN: &[u8] = include_bytes!("../data/own.json");

fn tests() -> Vec<Test> {
    let limits = Limits::default();
    let files = [("curated.json.xz", CURATED), ("vmsa-rems.json.xz", REMS), ("own.json", OWN)];
    files.into_iter().flat_map(|(name, bytes)| read(name, bytes, &limits).unwrap()).collect()
}

fn on(threads: usize, tests: &[Test], seeds: u64, defect: Option<Defect>) -> Vec<Timed> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| time_all(tests, seeds, defect).unwrap())
}

fn failing(timed: &[Timed]) -> Vec<&Timed> {
    timed.iter().filter(|test| test.fails()).collect()
}

#[test]
fn nothing_forbidden_is_seen_on_any_number_of_threads() {
    let tests = tests();
    let one = on(1, &tests, 20, None);
    for class in timed_summary(&one) {
        println!("{class:?}");
    }
    assert_eq!(failing(&one), Vec::<&Timed>::new());
    assert!(one.iter().all(|test| test.ran() && test.executions == 20), "all of these tests can be expressed");
    for threads in [2, 4] {
        assert_eq!(one, on(threads, &tests, 20, None), "{threads} threads");
    }
    // It would prove nothing if every race went one way.
    assert!(one.iter().filter(|test| test.endings > 1).count() > 100);
}

/// What is not seen is rare here, or needs a processor that walks although a translation is cached, or one that faults by a cached translation of both
/// stages: these ones walk again to see which stage forbids the access.
#[test]
fn permitted_outcomes_are_seen() {
    let permitted: Vec<Test> = tests().into_iter().filter(|test| test.usage() == Use::MustBeAbleToObserve).collect();
    let timed = on(2, &permitted, 1000, None);
    let unseen: Vec<_> = timed.iter().filter(|test| test.seen == 0).map(|test| &test.id).collect();
    println!("not seen: {unseen:?}");
    assert_eq!(timed.len(), 41);
    assert!(unseen.len() <= 13, "{unseen:?}");
}

/// Everything that happens here happens in the model too: all tests, whatever anybody says about their outcomes.
#[test]
fn every_ending_is_one_of_the_models() {
    let (tests, limits, machine) = (tests(), Limits::default(), TimedMachine::new().unwrap());
    let strange: Vec<String> = tests
        .par_iter()
        .filter_map(|test| {
            let (known, explored) = endings(test, MemoryOrder::SequentiallyConsistent, None, Reduction::Ample, &limits);
            assert_eq!(explored.extent, Extent::Exhaustive, "{}", test.id());
            let execute = |seed| execute(test, Seed(seed), Threads::One, &machine, None).unwrap();
            let found = (0..20).find(|&seed| !known.contains(&execute(seed).ending));
            found.map(|seed| format!("{}, seed {seed}: {:x?}", test.id(), execute(seed).ending))
        })
        .collect();
    assert_eq!(strange, Vec::<String>::new());
}

#[test]
fn defects_are_seen() {
    let forbids = |test: &Test| matches!(test.usage(), Use::MustNotObserve | Use::MustAlwaysHold);
    let tests: Vec<Test> = tests().into_iter().filter(forbids).collect();
    let mut silent = BTreeSet::new();
    for defect in TIMED_DEFECTS {
        let timed = on(2, &tests, 40, Some(defect));
        let failing = failing(&timed);
        println!("{defect}: {} tests fail", failing.len());
        for test in &failing {
            println!("    {} {} of {}, first seed {:?}", test.id, test.seen, test.executions, test.seed);
        }
        if failing.is_empty() {
            silent.insert(defect);
        }
    }
    assert_eq!(silent, BTreeSet::new(), "nobody notices these");
}

#[test]
fn what_the_engine_cannot_express_is_said() {
    let text = r#"{"tests": [{"id": "dirty alone", "use": "must_not_observe",
        "init": {"memory": {"p": 0}, "stage1": {"x": {"map": "p", "af": AF, "db": 0, "dbm": 1}}},
        "threads": [{"privilege": "el1", "hw_dirty": true, "on_fault": "stop", "ops": [
            {"op": "write", "to": {"va": "x"}, "value": 1}]}],
        "final": {"quantifier": "exists", "condition": ["pte", "x", {"map": "p", "af": AF, "db": 0, "dbm": 1}]}}]}"#;
    let test = |flag| read("text", text.replace("AF", flag).as_bytes(), &Limits::default()).unwrap().remove(0);
    let (old, young) = (test("0"), test("1"));
    assert!(inexpressible(&old).unwrap().contains("HD needs HA"));
    assert_eq!(inexpressible(&young), None);
    let timed = on(1, &[old, young], 5, None);
    assert_eq!(timed.iter().map(Timed::ran).collect::<Vec<_>>(), [false, true]);
    assert_eq!(timed.iter().map(|test| test.executions).collect::<Vec<_>>(), [0, 5]);
    assert_eq!(failing(&timed), Vec::<&Timed>::new());
}
