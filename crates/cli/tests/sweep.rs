//! Sweeps from the command line, shards killed while they run.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Scratch, data, fails, mmusim, root, talk};

const SWEEP: &str = r#"
    schema = 1
    name = "kills"

    [[experiment]]
    command = "compare zap"
    with = { memory = "16MiB", arch = "x86", workload = "zipf", working_set = "1MiB", accesses = 4000, vcpus = 2 }
    over.seed = { from = 1, to = 8 }

    [[experiment]]
    command = "selftest demand_paging_test"
    with = { arch = "arm64", b = "1MiB" }
    over.v = [1, 2]
    over.o = [true, false]
"#;
const POINTS: usize = 12;

fn planned(scratch: &Scratch, name: &str) -> String {
    let (file, plan) = (scratch.path("sweep.toml"), scratch.path(name));
    fs::write(&file, SWEEP).unwrap();
    assert!(data(&["sweep", "plan", &file, "-o", &plan, "--try", "0"]).starts_with("12 points in "));
    plan
}

fn merged(plan: &str) -> String {
    data(&["sweep", "merge", plan])
}

fn shard(plan: &str, index: usize, of: usize, short: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_mmusim"))
        .args(["sweep", "run", plan, "--shard", &format!("{index}/{of}"), "--jobs", "1", "--short", short])
        .current_dir(root())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn shards_that_are_killed_lose_and_repeat_nothing() {
    let scratch = Scratch::new("sweep-kills");
    let whole = planned(&scratch, "whole");
    let begun = Instant::now();
    assert_eq!(mmusim(&["sweep", "run", &whole]).status.code(), Some(0));
    let expected = merged(&whole);
    // Long enough to do something, short enough to be killed in the middle of it.
    let slice = (begun.elapsed() / 10).clamp(Duration::from_millis(5), Duration::from_millis(500));

    let plan = planned(&scratch, "killed");
    let (mut kills, mut round) = (0, 0u32);
    loop {
        let short = if round.is_multiple_of(2) { "0s" } else { "1h" };
        // Two of three shards, and one of them twice at the same time, as after a split of the network.
        let mut shards: Vec<Child> = [0, 1, 2, round as usize % 3].map(|index| shard(&plan, index, 3, short)).into();
        std::thread::sleep(slice * (1 + round % 4));
        for shard in &mut shards {
            // Those that have ended have nothing to kill.
            if shard.try_wait().unwrap().is_none() {
                shard.kill().unwrap();
                kills += 1;
            }
            shard.wait().unwrap();
        }
        round += 1;
        if mmusim(&["sweep", "merge", &plan, "--output", &scratch.path("early")]).status.code() == Some(0) {
            break;
        }
        assert!(round < 400, "{}", data(&["sweep", "status", &plan]));
        assert!(!fs::exists(scratch.path("early")).unwrap(), "half a merge is no merge");
    }
    assert!(kills > 0, "nothing was killed");
    assert_eq!(merged(&plan), expected);

    let rows: Vec<&str> = expected.lines().collect();
    let zaps = rows.iter().filter(|row| row.contains("\"strategy\"")).count();
    assert_eq!(zaps, 8 * 10, "ten strategies of each point, once");
    let ids: BTreeSet<&str> =
        rows.iter().map(|row| row.split("\"id\":\"").nth(1).unwrap().split('"').next().unwrap()).collect();
    assert_eq!(ids.len(), POINTS);
    let status = data(&["sweep", "status", &plan]);
    assert!(status.starts_with("kills: 12 of 12 points done") && !status.contains("corrupt"), "{status}");
}

#[test]
fn an_incomplete_sweep_says_what_is_missing_and_how_to_go_on() {
    let scratch = Scratch::new("sweep-missing");
    let plan = planned(&scratch, "plan");
    let ran = mmusim(&["sweep", "run", &plan, "--shard", "1/4"]);
    assert!(talk(&ran).contains("shard 1/4: ran 3, reused 0, failed 0, left 0"), "{}", talk(&ran));
    fails(&["sweep", "merge", &plan], 3, &["9 of 12 points have no result", "missing: {\"arguments\":"]);
    let status = data(&["sweep", "status", &plan, "--shards", "4"]);
    assert!(status.contains("3 of 12 points done, 9 missing") && status.ends_with("--array=0,2-3\n"), "{status}");

    let script = data(&["sweep", "submit", &plan, "--slurm", "--dry-run", "--shards", "4", "--concurrent", "2"]);
    assert!(script.contains("#SBATCH --array=0,2-3%2\n") && script.contains("$SLURM_ARRAY_TASK_ID/4"), "{script}");
    assert_eq!(fs::read_to_string(format!("{plan}/submit.sbatch")).unwrap(), script);
    // From now on that is the number of shards.
    assert!(data(&["sweep", "status", &plan]).ends_with("--array=0,2-3\n"));

    fails(&["sweep", "run", &plan, "--time-limit", "0s"], 75, &["9 points are left"]);
    assert_eq!(mmusim(&["sweep", "run", &plan, "--jobs", "2"]).status.code(), Some(0));
    assert!(data(&["sweep", "submit", &plan, "--slurm"]).contains("nothing to submit"));

    let csv = data(&["sweep", "merge", &plan, "--csv"]);
    let heading = csv.lines().next().unwrap();
    assert!(heading.starts_with("model_version,id,command,arg_accesses,"), "{heading}");
    assert_eq!(csv.lines().count(), merged(&plan).lines().count() + 1);

    // A result that the disk has damaged is run again.
    let results = format!("{plan}/results");
    let segment = fs::read_dir(results)
        .unwrap()
        .map(|file| file.unwrap().path())
        .max_by_key(|path| fs::metadata(path).unwrap().len());
    let segment = segment.unwrap();
    let damaged = fs::read_to_string(&segment).unwrap().replacen("cycles\":", "cycles\":1", 1);
    fs::write(&segment, damaged).unwrap();
    assert!(data(&["sweep", "status", &plan]).contains("1 missing, 1 corrupt"));
    fails(&["sweep", "merge", &plan], 3, &["1 of 12"]);
    assert!(talk(&mmusim(&["sweep", "run", &plan])).contains("ran 1, reused 11"));
    assert_eq!(csv, data(&["sweep", "merge", &plan, "--csv"]));
}

#[cfg(unix)]
#[test]
fn a_signal_ends_a_shard_between_points() {
    let scratch = Scratch::new("sweep-signal");
    let plan = planned(&scratch, "plan");
    let mut child = shard(&plan, 0, 1, "0s");
    let begun = Instant::now();
    // It watches signals once it has begun to leave results.
    while fs::read_dir(format!("{plan}/results")).unwrap().count() == 0 && begun.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-USR1", &pid]).status().unwrap().success());
    let code = child.wait().unwrap().code();
    let status = data(&["sweep", "status", &plan, "--json"]);
    let complete = status.contains("\"done\": 12");
    assert_eq!(code, Some(if complete { 0 } else { 75 }), "{status}");
    assert!(status.contains("\"corrupt\": []") && status.contains("\"orphans\": 0"), "{status}");
}

#[test]
fn what_cannot_be_swept_is_refused_with_its_place() {
    let scratch = Scratch::new("sweep-refused");
    let (file, plan) = (scratch.path("bad.toml"), scratch.path("plan"));
    let refuse = |from: &str, to: &str, words: &[&str]| {
        assert!(SWEEP.contains(from));
        fs::write(&file, SWEEP.replacen(from, to, 1)).unwrap();
        fails(&["sweep", "plan", &file, "-o", &plan], 2, words);
    };
    refuse("vcpus = 2", "vcpus = 0", &["bad.toml: compare zap {", "vcpus"]);
    refuse("workload = \"zipf\"", "json = true", &["json", "leave it out"]);
    refuse("schema = 1", "schema = 1\ncolour = 2", &["bad.toml", "line 3", "colour"]);
    refuse("demand_paging_test", "no_such_test", &["no_such_test"]);
    fails(&["sweep", "run", &plan], 2, &["holds no plan"]);
    fails(&["sweep", "run", &plan, "--shard", "3/3"], 2, &["count from 0 to 2"]);
    fails(&["sweep", "plan", &scratch.path("none.toml"), "-o", &plan], 2, &["cannot read"]);
}
