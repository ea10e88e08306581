//! Mixtures of protocols that are right by themselves: in pairs, and any that proptest comes to.

use std::fs;
use std::path::Path;

use mmu_core::AccessKind;
use mmu_explore::museum::Architecture;
use mmu_explore::programs::{
    Act, Backing, NameError, PAGES, Page, Pages, Program, Schedule, Step, Touch, memory_orders, pairs,
};
use mmu_sim::explore::{Budget, MemoryOrder, Mutation, ReplayFile, Shrinking, Strategy, Verdict};
use proptest::collection::vec;
use proptest::prelude::{Just, ProptestConfig, any, prop_assert, prop_oneof, proptest};
use proptest::strategy::Strategy as Any;

#[test]
fn no_two_protocols_break_each_other() {
    let all = pairs(&Architecture::ALL, None, &Strategy::Portfolio, Budget::schedules(30));
    // 22 acts mean something on x86, 17 on Arm, 17 on POWER; each pair once, with small pages and with huge ones.
    assert_eq!(all.len(), 2 * (22 * 23 + 17 * 18 + 17 * 18) / 2);
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
    let arch = Architecture::Arm64;
    for name in ["discard+flush-slot", "log+age:huge"] {
        let program = Program::named(name, arch).unwrap();
        assert_eq!(
            (program.name(), program.scenario().execute(Box::new(nothing())).scenario),
            (name.to_owned(), name.to_owned())
        );
    }
    let small = Program::pair(Act::Discard, Act::FlushSlot, arch);
    assert_eq!(Program::named("discard+flush-slot", arch), Ok(small.clone()));
    assert_eq!(Program::named("discard+flush-slot:huge", arch), Ok(Program { backing: Backing::Huge, ..small }));
    assert_eq!(Program::named("discard", arch), Err(NameError::NoPair));
    for (wrong, name) in
        [("discard+", ""), ("discard+nap", "nap"), ("discard+age+age", "age+age"), ("age+log:small", "log:small")]
    {
        let error = Program::named(wrong, arch).unwrap_err();
        assert_eq!(error, NameError::NoAct { name: name.to_owned() }, "{wrong}");
        assert!(error.to_string().contains("flush-slot"), "the remedy is a list: {error}");
    }
    let nowhere = Program::named("zap-roots+age", arch).unwrap_err();
    assert_eq!(nowhere.to_string(), "zap-roots means nothing on arm64; it does on x86");
}

/// Every schedule under which a mixture of fixed protocols has broken an invariant breaks none any more: not as far as it goes, nor however it goes on.
/// docs/protocols.md says of each whose fault it was.
#[test]
fn schedules_that_were_findings_break_nothing_any_more() {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mixtures");
    let mut files: Vec<_> = fs::read_dir(kept).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert_eq!(files.len(), 15);
    for path in files {
        let file = ReplayFile::read(&fs::read_to_string(&path).unwrap()).unwrap();
        let program = Program::named(&file.scenario, file.arch.unwrap().parse().unwrap()).unwrap();
        let mut scenario = program.scenario();
        let orders = [MemoryOrder::Sequential, MemoryOrder::StoreBuffer, MemoryOrder::Weak];
        scenario.limits_mut().memory = orders.into_iter().find(|order| order.name() == file.memory).unwrap();
        scenario.limits_mut().without = file.without;
        let report = scenario.explore(&Strategy::Continue(file.decisions), Budget::schedules(40));
        assert_eq!((report.verdict, report.stats.executions), (Verdict::Passed, 40), "{}: {report:?}", path.display());
    }
}

#[test]
fn acts_that_mean_nothing_are_left_out() {
    let alone = Program {
        actors: vec![vec![Step { act: Act::Age, pages: Pages::ALL }], vec![]],
        ..Program::named("age+log", Architecture::Arm64).unwrap()
    };
    let beside = Program::pair(Act::Age, Act::RecoverNx, Architecture::Arm64);
    let [alone, beside] = [alone, beside].map(|program| program.scenario().execute(Box::new(nothing())).stats);
    assert_eq!(alone, beside);
}

/// What a run of stores has filled is seen by who takes the lock afterwards, not its first word alone: the discard found pages of the new table unmapped.
#[test]
fn a_table_filled_by_a_run_is_seen_whole_under_weak_memory() {
    let program =
        Program { memory: MemoryOrder::Weak, ..Program::named("discard+split:huge", Architecture::Arm64).unwrap() };
    let report = program.scenario().explore(&Strategy::Sticky, Budget::schedules(40));
    assert_eq!(report.verdict, Verdict::Passed, "{}", report.failure.unwrap().table());
    // The discard meets the block in some executions and the table in others.
    assert!(report.stats.longest > 1000, "{:?}", report.stats);
}

/// A schedule in which everybody who can go on does so in turn.
fn nothing() -> Schedule {
    Schedule::new(&[])
}

#[test]
fn pages_are_always_some_of_the_few() {
    for (first, many, shown) in [(0, 0, "0+1"), (1, 2, "1+2"), (3, 4, "3+1"), (2, u8::MAX, "2+2"), (6, 1, "2+1")] {
        assert_eq!(Pages::from(Page::nth(first), many).to_string(), shown);
    }
    assert_eq!(Pages::from(Page::nth(0), PAGES), Pages::ALL);
    assert_eq!(Pages::ALL.gpas().bytes.0, u64::from(PAGES) << 12);
}

#[test]
fn bytes_decide_programs_and_schedules() {
    let (program, rest) = Program::from_bytes(&[]);
    let mild = Step { act: Act::Discard, pages: Pages::from(Page::nth(0), 1) };
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
    assert_eq!(program.guests, [[Touch { kind: AccessKind::Write, page: Page::nth(3) }]]);
    assert_eq!(program.name(), "age+flush-slot,log:huge");
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
    let page = proptest::sample::select(&Page::ALL[..]);
    vec((kind, page).prop_map(|(kind, page)| Touch { kind, page }), 1..4)
}

/// The number of an act among those of the architecture, and its pages.
fn steps() -> impl Any<Value = Vec<(usize, Pages)>> {
    let pages = (proptest::sample::select(&Page::ALL[..]), 1..=PAGES);
    vec((any::<usize>(), pages.prop_map(|(first, many)| Pages::from(first, many))), 1..4)
}

fn programs() -> impl Any<Value = Program> {
    let arch = proptest::sample::select(&Architecture::ALL[..]);
    let backing = prop_oneof![Just(Backing::Small), Just(Backing::Huge)];
    let all = (arch, backing, any::<usize>(), vec(touches(), 1..3), vec(steps(), 1..4));
    all.prop_map(|(arch, backing, order, guests, actors)| {
        let (orders, acts) = (memory_orders(arch), Act::all_on(arch));
        let step = |(act, pages): (usize, Pages)| Step { act: acts[act % acts.len()], pages };
        let actors = actors.into_iter().map(|steps| steps.into_iter().map(step).collect()).collect();
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
