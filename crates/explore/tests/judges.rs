//! The litmus files that others have judged: every gating verdict, and which test catches which defect.

use std::collections::BTreeSet;

use mmu_explore::litmus::{Defect, Judgement, Limits, MemoryOrder, Test, Use, explain, judge_all, read, summary};
use serde_json::Value;

const CURATED: &[u8] = include_bytes!("../data/curated.json.xz");
const REMS: &[u8] = include_bytes!("../data/vmsa-rems.json.xz");
const OWN: &[u8] = include_bytes!("../data/own.json");

fn tests() -> Vec<Test> {
    let limits = Limits::default();
    let mut tests = read("curated.json.xz", CURATED, &limits).unwrap();
    tests.extend(read("vmsa-rems.json.xz", REMS, &limits).unwrap());
    tests
}

fn disagreeing(judgements: &[Judgement]) -> Vec<&Judgement> {
    judgements.iter().filter(|judgement| !judgement.agrees()).collect()
}

#[test]
fn every_gating_verdict_is_met_and_the_other_model_found_the_same() {
    let (tests, limits) = (tests(), Limits::default());
    let judgements = judge_all(&tests, None, &limits);
    for (test, judgement) in tests.iter().zip(&judgements) {
        if judgement.agrees() && judgement.same_as_other_model != Some(false) {
            continue;
        }
        for (memory, found) in [
            (MemoryOrder::SequentiallyConsistent, &judgement.sequential),
            (MemoryOrder::StoreBuffer, &judgement.store_buffer),
        ] {
            println!(
                "{} {} {memory:?}: reached {} {:?} {:?}",
                judgement.id, judgement.usage, found.reached, found.extent, found.stats
            );
            for line in found.path.iter().flat_map(|path| explain(test, memory, None, path).unwrap()) {
                println!("    {line}");
            }
        }
    }
    for class in summary(&judgements) {
        println!("{class:?}");
    }
    let runs = || judgements.iter().flat_map(|judgement| [&judgement.sequential, &judgement.store_buffer]);
    let states: u64 = runs().map(|found| found.stats.states).sum();
    let most = runs().map(|found| found.stats.states).max();
    println!("{states} states, {most:?} in the largest");
    let ids = |judgements: Vec<&Judgement>| judgements.iter().map(|j| j.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(disagreeing(&judgements)), Vec::<String>::new());
    let other: Vec<_> = judgements.iter().filter(|j| j.same_as_other_model == Some(false)).collect();
    assert_eq!(ids(other), Vec::<String>::new(), "another model found something else");
    let counts: Vec<_> = summary(&judgements).iter().map(|class| (class.usage, class.tests)).collect();
    assert_eq!(
        counts,
        [
            (Use::MustNotObserve, 153),
            (Use::MustAlwaysHold, 7),
            (Use::MustBeAbleToObserve, 41),
            (Use::ObservableOnlyWithStoreBuffer, 10),
            (Use::NeedsWeakerOrdering, 20),
            (Use::Disputed, 1),
            (Use::NoReferenceVerdict, 14),
        ]
    );
}

/// Test and defect, of every `kills_mutants` of a file.
fn said(bytes: &[u8]) -> BTreeSet<(String, String)> {
    let mut text = String::new();
    std::io::Read::read_to_string(&mut lzma_rust2::XzReader::new(bytes, true), &mut text).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    let mut said = BTreeSet::new();
    for test in document["tests"].as_array().unwrap() {
        let id = test["id"].as_str().unwrap();
        for defect in test["kills_mutants"].as_array().unwrap() {
            said.insert((defect.as_str().unwrap().to_owned(), id.to_owned()));
        }
    }
    said
}

/// Tests of which a defect makes the verdict wrong.
fn caught(tests: &[Test], defect: Defect) -> BTreeSet<String> {
    let judgements = judge_all(tests, Some(defect), &Limits::default());
    disagreeing(&judgements).iter().map(|judgement| judgement.id.clone()).collect()
}

#[test]
fn each_defect_is_caught_by_the_tests_that_are_known_to_catch_it() {
    let tests = tests();
    let said: BTreeSet<_> = said(CURATED).into_iter().chain(said(REMS)).collect();
    let known: BTreeSet<_> = said.iter().map(|(defect, _)| defect.as_str()).collect();
    assert!(known.iter().all(|name| Defect::from_name(name).is_some()), "{known:?}");
    let mut missing = Vec::new();
    for (name, defect) in Defect::ALL {
        let expected: BTreeSet<_> = said.iter().filter(|(of, _)| of == name).map(|(_, test)| test.clone()).collect();
        let caught = caught(&tests, defect);
        println!(
            "{name}: {} caught, {} known, more: {:?}",
            caught.len(),
            expected.len(),
            caught.difference(&expected).collect::<Vec<_>>()
        );
        missing.extend(expected.difference(&caught).map(|test| format!("{name}: {test}")));
    }
    assert_eq!(missing, Vec::<String>::new());
}

#[test]
fn our_own_tests_catch_what_no_other_does() {
    let tests = read("own.json", OWN, &Limits::default()).unwrap();
    assert_eq!(disagreeing(&judge_all(&tests, None, &Limits::default())), Vec::<&Judgement>::new());
    let wanted = [
        ("A-bit-write-back", Defect::HwAfTwoStep),
        ("ASID-switch", Defect::TlbIgnoresAsid),
        ("VMID-switch", Defect::TlbIgnoresVmid),
    ];
    for (name, defect) in Defect::ALL {
        let expected: BTreeSet<String> =
            wanted.iter().filter(|(_, of)| *of == defect).map(|(test, _)| (*test).to_owned()).collect();
        assert_eq!(caught(&tests, defect), expected, "{name}");
    }
}

#[test]
fn reduction_loses_no_ending_and_threads_change_nothing() {
    use mmu_explore::explorer::{Bounds, Extent, Reduction};
    use mmu_explore::litmus::endings;

    let tests = tests();
    let bounds = Bounds { states: 20_000, ..Bounds::default() };
    let limits = Limits { bounds, ..Limits::default() };
    let (mut compared, mut full_states, mut reduced_states) = (0, 0, 0);
    // Each test in one memory order and with one defect or none, taken in turn.
    let defects: Vec<_> = std::iter::once(None).chain(Defect::ALL.map(|(_, defect)| Some(defect))).collect();
    for (number, test) in tests.iter().enumerate() {
        for (memory, defect) in [
            (MemoryOrder::SequentiallyConsistent, None),
            (MemoryOrder::StoreBuffer, None),
            (MemoryOrder::SequentiallyConsistent, defects[number % defects.len()]),
        ] {
            let (all, full) = endings(test, memory, defect, Reduction::None, &limits);
            if full.extent != Extent::Exhaustive {
                continue;
            }
            let (same, reduced) = endings(test, memory, defect, Reduction::Ample, &limits);
            assert_eq!(all, same, "{} {memory:?} {defect:?}", test.id());
            assert_eq!(reduced.extent, Extent::Exhaustive);
            compared += 1;
            full_states += full.stats.states;
            reduced_states += reduced.stats.states;
        }
    }
    println!("{compared} explorations compared, {full_states} states, {reduced_states} with reduction");
    assert!(compared > tests.len() * 2, "{compared} of {} were small enough", tests.len() * 3);
    assert!(reduced_states * 2 < full_states);

    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| judge_all(&tests, None, &Limits::default()))
    };
    assert_eq!(on(1), on(4));
}
