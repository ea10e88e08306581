//! Mixtures of protocols that are right by themselves: in pairs, and any that proptest comes to.

use mmu_core::AccessKind;
use mmu_explore::museum::Architecture;
use mmu_explore::programs::{Act, Backing, PAGES, Program, Schedule, Step, Touch, memory_orders, pair_named, pairs};
use mmu_sim::explore::{Budget, MemoryOrder, Mutation, Shrinking, Strategy, Verdict};
use proptest::collection::vec;
use proptest::prelude::{Just, ProptestConfig, any, prop_assert, prop_oneof, proptest};
use proptest::strategy::Strategy as Any;

#[test]
fn no_two_protocols_break_each_other() {
    let all = pairs(&Architecture::ALL, None, &Strategy::Portfolio, Budget::schedules(60));
    assert_eq!(all.len(), 3 * 2 * Act::ALL.len() * (Act::ALL.len() + 1) / 2);
    let broken = all.iter().filter_map(|pair| Some((pair, pair.report.failure.as_ref()?)));
    let broken: Vec<String> = broken.map(|(pair, failure)| format!("{}{}", pair.program, failure.table())).collect();
    assert!(broken.is_empty(), "{} of {}\n{}", broken.len(), all.len(), broken.join("\n"));
}

#[test]
fn a_pair_with_a_step_gone_wrong_is_noticed() {
    for (arch, mutation, breaks) in [
        (Architecture::X86, Mutation::OmitFlush, ["T1", "T3", "T4"]),
        (Architecture::Arm64, Mutation::OmitFlush, ["T1", "T3", "T4"]),
        (Architecture::Power, Mutation::OmitFlush, ["T1", "T3", "T4"]),
    ] {
        let mut scenario = Program::pair(Act::Discard, Act::Age, arch).scenario();
        scenario.limits_mut().mutation = Some(mutation);
        let failure =
            scenario.explore(&Strategy::Portfolio, Budget::schedules(200)).failure.expect("a flush is missing");
        assert!(breaks.contains(&failure.broken.invariant.id()), "{arch}: {}", failure.table());
    }
}

#[test]
fn names_of_pairs_are_read_and_refused() {
    assert_eq!(pair_named("discard+flush-slot"), Some((Act::Discard, Act::FlushSlot)));
    for wrong in ["discard", "discard+", "discard+nap", "discard+age+age"] {
        assert_eq!(pair_named(wrong), None, "{wrong}");
    }
}

#[test]
fn bytes_decide_programs_and_schedules() {
    let (program, rest) = Program::from_bytes(&[]);
    let mild = Step { act: Act::Discard, first: 0, pages: 1 };
    assert_eq!(
        (program.arch, program.guests.len(), program.actors, rest),
        (Architecture::X86, 1, vec![vec![mild]], &[][..])
    );
    // Arm, huge pages, a store buffer; one guest with one write to page 3; two actors.
    let (program, rest) = Program::from_bytes(&[1, 1, 1, 0, 0, 1, 3, 1, 0, 6, 2, 1, 1, 9, 0, 0, 10, 1, 3, 77]);
    assert_eq!(
        (program.arch, program.backing, program.memory),
        (Architecture::Arm64, Backing::Huge, MemoryOrder::StoreBuffer)
    );
    assert_eq!(program.guests, [[Touch { kind: AccessKind::Write, page: 3 }]]);
    assert_eq!(program.name(), "age+flush-slot,log");
    assert_eq!(rest, [77]);
    let execute = |schedule: &[u8]| program.scenario().execute(Box::new(Schedule::new(schedule)));
    let [one, same, other] = [&[5, 9, 200, 3][..], &[5, 9, 200, 3], &[6, 0, 1, 1, 1, 1]].map(execute);
    assert_eq!(one, same);
    assert_ne!(one.stats.digest, other.stats.digest);
    assert_eq!((one.verdict, one.stats.executions, one.stats.cut), (Verdict::Passed, 1, 0));
    assert!(one.stats.evaluations.evaluated().count() > 0);
}

fn touches() -> impl Any<Value = Vec<Touch>> {
    let kind = prop_oneof![Just(AccessKind::Read), Just(AccessKind::Write)];
    vec((kind, 0..PAGES).prop_map(|(kind, page)| Touch { kind, page }), 1..4)
}

fn steps() -> impl Any<Value = Vec<Step>> {
    let step = (proptest::sample::select(&Act::ALL[..]), 0..PAGES, 1..=PAGES);
    vec(step.prop_map(|(act, first, pages)| Step { act, first, pages }), 1..4)
}

fn programs() -> impl Any<Value = Program> {
    let arch = proptest::sample::select(&Architecture::ALL[..]);
    let backing = prop_oneof![Just(Backing::Small), Just(Backing::Huge)];
    let all = (arch, backing, any::<usize>(), vec(touches(), 1..3), vec(steps(), 1..4));
    all.prop_map(|(arch, backing, order, guests, actors)| {
        let orders = memory_orders(arch);
        Program { arch, backing, memory: orders[order % orders.len()], guests, actors }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 4096, ..ProptestConfig::default() })]

    /// Any program under any schedule; a failure is shrunk to the fewest acts, accesses and decisions that show it.
    #[test]
    fn nothing_breaks_any_invariant(program in programs(), schedule in vec(any::<u8>(), 0..400)) {
        let report = program.scenario().execute(Box::new(Schedule::new(&schedule)));
        prop_assert!(report.failure.is_none(), "{program}{}", report.failure.unwrap().table());
        let random = Budget { shrinking: Shrinking::Off, ..Budget::schedules(8) };
        let report = program.scenario().explore(&Strategy::Random, random);
        prop_assert!(report.failure.is_none(), "{program}{}", report.failure.unwrap().table());
    }
}
