//! Plans, shards and merges of a toy experiment, with everything that goes wrong on shared file systems.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use mmu_sweep::spec::{Notation, Spec};
use mmu_sweep::{
    Datum, Event, Experiment, Job, Plan, Record, RunOptions, Shard, SweepError, Unfinished, merge, run, status,
};
use proptest::prelude::*;

/// Squares, and a broken one that never gives the same twice.
#[derive(Default)]
struct Squares {
    runs: AtomicUsize,
    drift: AtomicU32,
}

impl Experiment for Squares {
    fn model(&self) -> u32 {
        7
    }
    fn check(&self, command: &str, arguments: &Record) -> Result<Vec<String>, String> {
        match command {
            "square" => Ok(arguments.keys().filter(|name| *name == "file").cloned().collect()),
            _ => Err(format!("no command {command}; there is square")),
        }
    }
    fn run(&self, job: &Job<'_>, _: &(dyn Fn() -> bool + Sync)) -> Result<Vec<Record>, Unfinished> {
        self.runs.fetch_add(1, Ordering::Relaxed);
        let Some(Datum::Natural(x)) = job.arguments.get("x") else { return Err(Unfinished::Failed("no x".into())) };
        let file = job.files.get("file").map(|path| fs::read_to_string(path).unwrap());
        let drift = u64::from(self.drift.load(Ordering::Relaxed));
        let row = |i: u64| {
            let mut row = Record::from([("i".into(), i.into()), ("y".into(), (x * x + drift).into())]);
            row.extend(file.clone().map(|text| ("text".to_owned(), text.into())));
            row
        };
        Ok((0..=x % 3).map(row).collect())
    }
}

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        // Tests run side by side, and several may want the same reference.
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let n = MADE.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("mmu-sweep-{name}-{}-{n}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}
impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn spec(last: u32) -> Spec {
    let text = format!(
        "schema = 1\nname = \"squares\"\n[[experiment]]\ncommand = \"square\"\nover.x = {{ from = 0, to = {last} }}\n"
    );
    Spec::parse("squares.toml", &text, Notation::Toml).unwrap()
}

fn planned(directory: &Path, last: u32) -> Plan {
    Plan::create(directory, "squares.toml", &spec(last), &Squares::default()).unwrap().0
}

fn options(shard: Shard, short: Duration) -> RunOptions {
    RunOptions { shard, jobs: NonZeroUsize::new(2).unwrap(), time_limit: None, short }
}

const IN_FILES: Duration = Duration::ZERO;
const IN_SEGMENTS: Duration = Duration::from_secs(3600);

fn run_all(plan: &Plan, experiment: &Squares, shard: Shard, short: Duration) -> mmu_sweep::Ran {
    run(plan, experiment, &options(shard, short), &|| false, &|_| {}).unwrap()
}

fn merged(plan: &Plan) -> Result<String, SweepError> {
    let mut text = String::new();
    merge(plan, |point, row| {
        writeln!(text, "{} {}", point.id, mmu_sweep::datum::record_json(&row)).unwrap();
        Ok::<_, SweepError>(())
    })?;
    Ok(text)
}

fn reference(last: u32) -> String {
    let scratch = Scratch::new(&format!("reference-{last}"));
    let plan = planned(&scratch.0, last);
    run_all(&plan, &Squares::default(), Shard::ALL, IN_FILES);
    merged(&plan).unwrap()
}

#[test]
fn any_number_of_shards_in_any_order_gives_the_same_bytes() {
    let expected = reference(29);
    assert_eq!(expected.lines().count(), 60);
    for (of, short) in [(1, IN_SEGMENTS), (3, IN_FILES), (7, IN_SEGMENTS), (40, IN_FILES)] {
        let scratch = Scratch::new(&format!("shards-{of}"));
        let plan = planned(&scratch.0, 29);
        for index in (0..of).rev() {
            run_all(&plan, &Squares::default(), Shard::new(index, of).unwrap(), short);
        }
        assert_eq!(merged(&plan).unwrap(), expected, "{of} shards");
        assert_eq!(merged(&Plan::open(&scratch.0, 7).unwrap()).unwrap(), expected);
    }
}

#[test]
fn what_has_a_result_is_not_run_again_whatever_the_shards() {
    let scratch = Scratch::new("reuse");
    let plan = planned(&scratch.0, 19);
    let experiment = Squares::default();
    run_all(&plan, &experiment, Shard::new(1, 3).unwrap(), IN_FILES);
    run_all(&plan, &experiment, Shard::new(0, 2).unwrap(), IN_SEGMENTS);
    let ran = run_all(&plan, &experiment, Shard::ALL, IN_SEGMENTS);
    assert_eq!((ran.ran + ran.reused, ran.left), (20, 0));
    assert_eq!(experiment.runs.load(Ordering::Relaxed), 20, "each point once");
}

#[test]
fn a_plan_that_misses_points_says_which() {
    let scratch = Scratch::new("missing");
    let plan = planned(&scratch.0, 9);
    run_all(&plan, &Squares::default(), Shard::new(0, 2).unwrap(), IN_FILES);
    let Err(SweepError::Incomplete { missing, of: 10 }) = merged(&plan) else { panic!("it is incomplete") };
    assert_eq!(missing, [1, 3, 5, 7, 9]);
    let status = status(&plan).unwrap();
    assert_eq!((status.done(), status.missing_shards(4)), (5, vec![1, 3]));
}

#[test]
fn time_and_signals_stop_between_points() {
    let scratch = Scratch::new("stop");
    let plan = planned(&scratch.0, 9);
    let done = AtomicUsize::new(0);
    let tell = |event: Event| {
        if let Event::Done(_) = event {
            done.fetch_add(1, Ordering::Relaxed);
        }
    };
    let options = RunOptions { jobs: NonZeroUsize::MIN, ..options(Shard::ALL, IN_FILES) };
    let stop = || done.load(Ordering::Relaxed) >= 4;
    let ran = run(&plan, &Squares::default(), &options, &stop, &tell).unwrap();
    assert_eq!((ran.ran, ran.left), (4, 6));
    let limited = RunOptions { time_limit: Some(Duration::ZERO), ..options };
    let ran = run(&plan, &Squares::default(), &limited, &|| false, &|_| {}).unwrap();
    assert_eq!((ran.ran, ran.reused, ran.left), (0, 4, 6));
}

#[test]
fn two_results_of_one_point_stop_the_merge() {
    for short in [IN_FILES, IN_SEGMENTS] {
        let scratch = Scratch::new(&format!("drift-{}", short.as_secs()));
        let plan = planned(&scratch.0, 4);
        let experiment = Squares::default();
        run_all(&plan, &experiment, Shard::ALL, short);
        // Another attempt that does not see these results, as on the far side of a split network.
        let results = scratch.0.join("results");
        let aside = scratch.0.join("aside");
        fs::rename(&results, &aside).unwrap();
        fs::create_dir(&results).unwrap();
        experiment.drift.store(1, Ordering::Relaxed);
        run_all(&plan, &experiment, Shard::ALL, IN_SEGMENTS);
        for entry in fs::read_dir(&aside).unwrap() {
            let entry = entry.unwrap();
            fs::rename(entry.path(), results.join(entry.file_name())).unwrap();
        }
        let error = merged(&plan).unwrap_err();
        assert!(error.to_string().contains("nondeterminism at point"), "{error}");
        assert_eq!(status(&plan).unwrap().conflicts.len(), 5);
    }
}

#[test]
fn a_second_attempt_never_replaces_a_different_result() {
    let scratch = Scratch::new("evidence");
    let plan = planned(&scratch.0, 0);
    let id = plan.points()[0].id;
    let store = mmu_sweep::store::Store::new(plan.directory());
    store.commit(id, &mmu_sweep::store::result_json(id, 7, &[])).unwrap();
    store.commit(id, &mmu_sweep::store::result_json(id, 7, &[])).unwrap();
    assert_eq!(fs::read_dir(scratch.0.join("results")).unwrap().count(), 1, "the same bytes are kept once");
    store.commit(id, &mmu_sweep::store::result_json(id, 7, &[Record::new()])).unwrap();
    assert!(matches!(merged(&plan), Err(SweepError::Nondeterminism { .. })));
}

#[test]
fn duplicates_of_the_same_bytes_are_counted_and_merged_once() {
    let (scratch, expected) = (Scratch::new("twice"), reference(9));
    let plan = planned(&scratch.0, 9);
    for point in plan.points() {
        let mut store = mmu_sweep::store::Store::new(plan.directory());
        let x = point.arguments["x"].plain().parse::<u64>().unwrap();
        let row = |i: u64| Record::from([("i".into(), i.into()), ("y".into(), (x * x).into())]);
        let rows: Vec<Record> = (0..=x % 3).map(row).collect();
        let result = mmu_sweep::store::result_json(point.id, 7, &rows);
        store.commit(point.id, &result).unwrap();
        store.append(point.id, &result).unwrap();
    }
    assert_eq!(merged(&plan).unwrap(), expected);
    assert_eq!(status(&plan).unwrap().duplicates, 10);
}

#[test]
fn failed_points_are_told_and_tried_again() {
    let scratch = Scratch::new("failed");
    let text = "schema = 1\nname = \"f\"\n[[experiment]]\ncommand = \"square\"\nover.y = [1, 2]\n";
    let spec = Spec::parse("f.toml", text, Notation::Toml).unwrap();
    let (plan, _) = Plan::create(&scratch.0, "f.toml", &spec, &Squares::default()).unwrap();
    for _ in 0..2 {
        let ran = run_all(&plan, &Squares::default(), Shard::ALL, IN_FILES);
        assert_eq!((ran.ran, ran.failed.len(), ran.left), (0, 2, 0));
    }
    let status = status(&plan).unwrap();
    assert_eq!(status.failed.values().collect::<BTreeSet<_>>(), BTreeSet::from([&"no x".to_owned()]));
    assert_eq!(status.missing, [0, 1]);
}

#[test]
fn plans_are_found_again_and_not_overwritten() {
    let scratch = Scratch::new("again");
    let plan = planned(&scratch.0, 5);
    run_all(&plan, &Squares::default(), Shard::ALL, IN_FILES);
    let (again, planned) = Plan::create(&scratch.0, "s", &spec(5), &Squares::default()).unwrap();
    assert!(planned.found && again == plan && status(&again).unwrap().missing.is_empty());
    let error = Plan::create(&scratch.0, "s", &spec(6), &Squares::default()).unwrap_err().to_string();
    assert!(error.contains("another plan"), "{error}");
    for (model, word) in [(8, "plan again"), (7, "")] {
        assert_eq!(Plan::open(&scratch.0, model).map_err(|e| e.to_string().contains(word)).is_ok(), model == 7);
    }
    let list = scratch.0.join("points.jsonl");
    let text = fs::read_to_string(&list).unwrap();
    fs::write(&list, text.replacen("\"x\":3", "\"x\":9", 1)).unwrap();
    let error = Plan::open(&scratch.0, 7).unwrap_err().to_string();
    assert!(error.contains("not the list that was planned"), "{error}");
    assert!(Plan::open(&scratch.0.join("nowhere"), 7).unwrap_err().to_string().contains("holds no plan"));
}

#[test]
fn files_go_with_the_plan_and_count_by_their_content() {
    let scratch = Scratch::new("files");
    let (file, one, two) = (scratch.0.join("in.txt"), scratch.0.join("one"), scratch.0.join("two"));
    let plan = |directory: &Path| {
        let text = format!(
            "schema = 1\nname = \"f\"\n[[experiment]]\ncommand = \"square\"\nwith = {{ x = 1, file = '{}' }}\n",
            file.display()
        );
        let spec = Spec::parse("f.toml", &text, Notation::Toml).unwrap();
        Plan::create(directory, "f.toml", &spec, &Squares::default())
    };
    assert!(plan(&one).unwrap_err().to_string().contains("cannot read"));
    fs::write(&file, "first").unwrap();
    let first = plan(&one).unwrap().0;
    fs::write(&file, "second").unwrap();
    let second = plan(&two).unwrap().0;
    assert_ne!(first.points()[0].id, second.points()[0].id);
    // The original is not looked at any more.
    run_all(&first, &Squares::default(), Shard::ALL, IN_FILES);
    assert!(merged(&first).unwrap().contains("\"text\":\"first\""));
    let copy = fs::read_dir(two.join("inputs")).unwrap().next().unwrap().unwrap().path();
    fs::write(copy, "third").unwrap();
    let error = run(&second, &Squares::default(), &options(Shard::ALL, IN_FILES), &|| false, &|_| {}).unwrap_err();
    assert!(error.to_string().contains("not the file that was planned"), "{error}");
}

#[test]
fn a_point_that_cannot_be_run_is_refused_with_its_arguments() {
    let scratch = Scratch::new("refused");
    let text = "schema = 1\nname = \"f\"\n[[experiment]]\ncommand = \"cube\"\nwith = { x = 3 }\n";
    let spec = Spec::parse("f.toml", text, Notation::Toml).unwrap();
    let error = Plan::create(&scratch.0, "f.toml", &spec, &Squares::default()).unwrap_err().to_string();
    assert!(error.contains("cube {\"x\":3}") && error.contains("there is square"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Whatever happens to the bytes of results, a run afterwards and a merge give what an undisturbed sweep gives.
    #[test]
    fn damage_is_found_and_mended(
        short in prop_oneof![Just(IN_FILES), Just(IN_SEGMENTS)],
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<Option<u8>>()), 1..6),
    ) {
        let scratch = Scratch::new("damage");
        let plan = planned(&scratch.0, 9);
        run_all(&plan, &Squares::default(), Shard::ALL, short);
        let mut files: Vec<PathBuf> =
            fs::read_dir(scratch.0.join("results")).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        for (file, at, with) in damage {
            let path = &files[file.index(files.len())];
            let mut bytes = fs::read(path).unwrap();
            if bytes.is_empty() {
                continue;
            }
            let at = at.index(bytes.len());
            match with {
                None => bytes.truncate(at),
                Some(flip) => bytes[at] ^= flip.max(1),
            }
            fs::write(path, bytes).unwrap();
        }
        run_all(&plan, &Squares::default(), Shard::new(1, 2).unwrap(), short);
        run_all(&plan, &Squares::default(), Shard::new(0, 2).unwrap(), short);
        prop_assert!(status(&plan).unwrap().missing.is_empty());
        prop_assert_eq!(merged(&plan).unwrap(), reference(9));
    }
}
