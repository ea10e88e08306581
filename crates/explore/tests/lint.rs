//! The lint: recorded traces with verdicts, and each step of the sequence left out.

use mmu_explore::lint::{
    BarrierReach, EntryAt, Event, Judged, Limits, Lint, Owed, Regime, Rule, TlbiKind, casemate, judge_file,
};
use mmu_explore::museum::{Architecture, Exhibit, Variant, exhibits};
use mmu_sim::explore::{Budget, Strategy, Trace};
use mmu_sim::rng::Seed;

#[test]
fn the_recorded_traces_agree() {
    let traces = include_bytes!("../data/casemate-traces.json.xz");
    let judged = judge_file("casemate-traces.json.xz", &traces[..], &Limits::default()).unwrap();
    let wrong: Vec<_> = judged.iter().filter(|trace| !trace.agrees).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(judged.len(), 23);
    assert_eq!(judged.iter().filter(|trace| trace.expected == "ok").count(), 10);
}

const ROOT: u64 = 0x100;
const TABLE: u64 = 0x101;
const OTHER: u64 = 0x102;
/// A leaf entry of the last level but two, which maps from page 0.
const LEAF: EntryAt = EntryAt { table: TABLE, index: 0 };
const BLOCK: u64 = 0x4000_0000 | 1 | 1 << 6 | 1 << 7 | 0xf << 2 | 3 << 8 | 1 << 10;
const FULL: Event = Event::Barrier { reach: BarrierReach::Full };
const STORES: Event = Event::Barrier { reach: BarrierReach::Stores };
const LESS: Event = Event::Barrier { reach: BarrierReach::Less };
const BY_IPA: Event = Event::Invalidate { kind: TlbiKind::Stage2Page { page: 0 } };
const ALL_STAGE_1: Event = Event::Invalidate { kind: TlbiKind::Stage1 };
const BOTH: Event = Event::Invalidate { kind: TlbiKind::BothStages };
const BREAK: Event = Event::Write { at: LEAF, word: 0 };
const MAKE: Event = Event::Write { at: LEAF, word: BLOCK + 0x4000_0000 };

/// A live tree, its lock held by thread 0: the root links a table, whose first entry is a block.
fn live() -> Lint {
    let mut lint = Lint::new().unwrap();
    let before = [
        Event::NewTable { table: ROOT },
        Event::NewTable { table: TABLE },
        Event::NewTable { table: OTHER },
        Event::RootLock { root: ROOT, lock: 1 },
        Event::Write { at: EntryAt { table: ROOT, index: 0 }, word: TABLE << 12 | 3 },
        Event::Write { at: LEAF, word: BLOCK },
        Event::Activate { regime: Regime::Stage2, root: ROOT, id: 5 },
        Event::Lock { lock: 1 },
    ];
    for event in before {
        assert_eq!(lint.event(0, event), None, "{event:?}");
    }
    lint
}

/// The rule that the last of some events breaks; the others must break none.
fn last(events: &[(u32, Event)]) -> Option<Rule> {
    let mut lint = live();
    let (last, before) = events.split_last().unwrap();
    for (thread, event) in before {
        assert_eq!(lint.event(*thread, *event), None, "{event:?}");
    }
    lint.event(last.0, last.1).map(|violation| violation.rule)
}

fn of(events: &[Event]) -> Option<Rule> {
    last(&events.iter().map(|event| (0, *event)).collect::<Vec<_>>())
}

#[test]
fn the_whole_sequence_is_fine_and_every_step_of_it_is_needed() {
    let page = [BREAK, FULL, BY_IPA, FULL, ALL_STAGE_1, FULL, MAKE];
    let whole = [BREAK, FULL, BOTH, FULL, MAKE];
    for sequence in [&page[..], &whole[..]] {
        assert_eq!(of(sequence), None);
        for left_out in 1..sequence.len() - 1 {
            let mut less = sequence.to_vec();
            less.remove(left_out);
            assert_eq!(of(&less), Some(Rule::MakeBeforeClean), "without step {left_out}");
        }
    }
    assert_eq!(of(&[MAKE]), Some(Rule::ValidToValidWithoutBreak));
}

#[test]
fn what_the_probes_of_another_checker_found() {
    use Rule::{MakeBeforeClean, ValidToValidWithoutBreak};
    let write = |word| Event::Write { at: LEAF, word };
    let accessed = 1 << 10;
    let other_page = Event::Invalidate { kind: TlbiKind::Stage2Page { page: 1 << 18 } };
    let probes: [(&str, Option<Rule>, &[Event]); 15] = [
        ("output address, AF=1", Some(ValidToValidWithoutBreak), &[write(BLOCK + 0x4000_0000)]),
        ("output address, new AF=0", None, &[write((BLOCK + 0x4000_0000) & !accessed)]),
        ("permission only", None, &[write(BLOCK & !(1 << 7))]),
        ("software bits only", None, &[write(BLOCK | 1 << 55)]),
        ("memory type", Some(ValidToValidWithoutBreak), &[write(BLOCK & !(0xf << 2))]),
        ("block to table", Some(ValidToValidWithoutBreak), &[write(OTHER << 12 | 3)]),
        ("young to old", None, &[write(BLOCK & !accessed)]),
        ("identical", None, &[write(BLOCK)]),
        ("never valid", None, &[Event::Write { at: EntryAt { table: TABLE, index: 9 }, word: BLOCK }]),
        ("vmalle1 only", Some(MakeBeforeClean), &[BREAK, FULL, ALL_STAGE_1, FULL, MAKE]),
        ("no middle DSB", Some(MakeBeforeClean), &[BREAK, FULL, BY_IPA, ALL_STAGE_1, FULL, MAKE]),
        ("wrong IPA", Some(MakeBeforeClean), &[BREAK, FULL, other_page, FULL, ALL_STAGE_1, FULL, MAKE]),
        ("first DSB ishst", None, &[BREAK, STORES, BOTH, FULL, MAKE]),
        ("final DSB nsh", Some(MakeBeforeClean), &[BREAK, FULL, BOTH, LESS, MAKE]),
        (
            "not broadcast",
            Some(MakeBeforeClean),
            &[BREAK, FULL, Event::Invalidate { kind: TlbiKind::Other }, FULL, MAKE],
        ),
    ];
    for (name, expected, events) in probes {
        assert_eq!(of(events), expected, "{name}");
    }
}

#[test]
fn another_thread_may_invalidate_once_the_store_is_complete() {
    let enter = Event::Activate { regime: Regime::Stage2, root: ROOT, id: 5 };
    let handed_over = [(0, BREAK), (0, FULL), (1, enter), (1, BOTH), (1, FULL), (0, MAKE)];
    assert_eq!(last(&handed_over), None);
    let too_early = [(0, BREAK), (1, enter), (1, FULL), (1, BOTH), (1, FULL), (0, MAKE)];
    assert_eq!(last(&too_early), Some(Rule::MakeBeforeClean), "the writer's DSB is missing");
    let wrong_guest = Event::Activate { regime: Regime::Stage2, root: OTHER, id: 6 };
    let elsewhere = [(0, BREAK), (0, FULL), (1, wrong_guest), (1, BOTH), (1, FULL), (0, MAKE)];
    assert_eq!(last(&elsewhere), Some(Rule::MakeBeforeClean));
}

#[test]
fn what_is_owed_is_told() {
    let mut lint = live();
    assert_eq!(lint.owed().count(), 0);
    let steps = [
        (BREAK, Some(Owed::Barrier { writer: 0 })),
        (FULL, Some(Owed::Invalidation)),
        (BY_IPA, Some(Owed::Stage2Barrier { issuer: 0 })),
        (FULL, Some(Owed::Stage1Invalidation)),
        (ALL_STAGE_1, Some(Owed::LastBarrier { issuer: 0 })),
        (FULL, None),
    ];
    for (event, owed) in steps {
        lint.event(0, event);
        assert_eq!(lint.owed().next(), owed.map(|owed| (LEAF, owed)), "{event:?}");
    }
}

#[test]
fn a_table_goes_when_nothing_leads_to_it() {
    let unlink = Event::Write { at: EntryAt { table: ROOT, index: 0 }, word: 0 };
    let free = Event::Release { table: TABLE };
    assert_eq!(of(&[free]), Some(Rule::ReleaseUncleanTable), "linked");
    assert_eq!(of(&[unlink, FULL, free]), Some(Rule::ReleaseUncleanTable), "cached");
    assert_eq!(of(&[unlink, FULL, BOTH, FULL, free]), None);
    // By address one leaf is gone; the table's other entries are not.
    assert_eq!(of(&[unlink, FULL, BY_IPA, FULL, ALL_STAGE_1, FULL, free]), Some(Rule::ReleaseUncleanTable));
    let relink = Event::Write { at: EntryAt { table: ROOT, index: 7 }, word: TABLE << 12 | 3 };
    assert_eq!(of(&[unlink, FULL, relink]), Some(Rule::PageUsedInTwoTables));
    assert_eq!(of(&[unlink, FULL, BOTH, FULL, relink]), None);
}

#[test]
fn broken_files_are_told_with_their_place() {
    let fails = |text: &str| judge_file("f.json", text.as_bytes(), &Limits::default()).unwrap_err().to_string();
    assert!(fails("{").starts_with("f.json: not JSON"));
    assert!(fails("{}").contains("no list `tests`"));
    let step = |op: &str| fails(&format!(r#"{{"tests": [{{"id": "a", "expected": "ok", "ops": [["isb"], {op}]}}]}}"#));
    for op in [
        r#"["jump"]"#,
        r#"["write", ["A", 512], {"raw": 1}]"#,
        r#"["write", ["A", 1], {"odd": 1}]"#,
        r#"["dsb", "x"]"#,
        "7",
    ] {
        assert!(step(op).starts_with("f.json, trace a, step 1: "), "{}", step(op));
    }
    let unknown = r#"{"tests": [{"id": "a", "expected": "bad luck", "ops": []}]}"#;
    assert!(fails(unknown).contains("make_before_clean"), "{}", fails(unknown));
}

// ---- executions of ours ----

/// What the lint says to executions of a scenario, written as traces and read again; or why they cannot be written.
fn exported(exhibit: &Exhibit) -> Result<Vec<Judged>, String> {
    let scenario = exhibit.scenario_on(Architecture::Arm64, Variant::Fixed).unwrap();
    let traces: Vec<Trace> = (0..4).map(|number| scenario.trace_at_random(Seed(1), number)).collect();
    let document = casemate(&traces).map_err(|error| error.to_string())?.to_string();
    judge_file("ours", document.as_bytes(), &Limits::default()).map_err(|error| error.to_string())
}

#[test]
fn executions_of_arm_scenarios_pass_as_traces() {
    let on_arm: Vec<Exhibit> =
        exhibits().into_iter().filter(|exhibit| exhibit.architectures().contains(&Architecture::Arm64)).collect();
    let (mut written, mut wrong, mut unsaid) = (0, Vec::new(), Vec::new());
    for exhibit in &on_arm {
        match exported(exhibit) {
            Ok(traces) => {
                written += traces.len();
                wrong.extend(traces.into_iter().filter(|trace| !trace.agrees));
            }
            Err(why) => unsaid.push(why),
        }
    }
    let mut rows: Vec<&str> = wrong.iter().filter_map(|trace| trace.id.split(' ').next()).collect();
    rows.dedup();
    assert_eq!(rows, REJECTED, "{wrong:#?}");
    assert!(written > 200 && unsaid.is_empty(), "{written}: {unsaid:#?}");
}

/// Rows whose fixed form the lint does not accept. A23: a VM that has ended gives its tables back without a flush, as nobody has its VMID any
/// more. X04, X18, X34: so does a root that every vCPU has left. X12: x86 may map again what it has not flushed yet; on Arm that is make
/// before break.
const REJECTED: [&str; 5] = ["A23", "X04", "X12", "X18", "X34"];

fn broken_trace(id: &str) -> Trace {
    let exhibit = exhibits().into_iter().find(|exhibit| exhibit.id == id).unwrap();
    let scenario = exhibit.scenario(Variant::Broken);
    let report = scenario.explore(&Strategy::Portfolio, Budget::schedules(2_000));
    scenario.trace(&report.failure.unwrap().decisions)
}

#[test]
fn what_is_broken_is_broken_in_the_trace_too_if_traces_can_show_it() {
    let text = casemate(&[broken_trace("A27")]).unwrap().to_string();
    let judged = judge_file("ours", text.as_bytes(), &Limits::default()).unwrap();
    assert_eq!(judged[0].expected, "valid_to_valid_without_break");
    assert!(judged[0].agrees, "{judged:?}");
    // A flush of the first page only: who reaches how far is not in these traces.
    let error = casemate(&[broken_trace("A02")]).unwrap_err();
    assert!(error.to_string().contains("which traces of table writes do not show"), "{error}");
}
