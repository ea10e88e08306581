//! Runs that are saved, stopped, damaged and continued.

mod common;

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Scratch, data, fails, mmusim, root, talk};

const RUN: [&str; 13] = [
    "run",
    "--arch",
    "x86",
    "--memory",
    "64MiB",
    "--vcpus",
    "2",
    "--workload",
    "zipf",
    "--strategy",
    "(6.9)",
    "--json",
    "--accesses",
];

fn args<'a>(accesses: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    RUN.iter().copied().chain([accesses]).chain(more.iter().copied()).collect()
}

#[test]
fn a_run_goes_on_from_its_checkpoint_with_any_number_of_threads() {
    let scratch = Scratch::new("run-resume");
    let file = scratch.path("run.snap");
    let whole = data(&args("20000", &["--threads", "1"]));
    assert_eq!(data(&args("20000", &["--checkpoint", &file, "--checkpoint-every", "1000"])), whole);
    for threads in ["1", "2"] {
        assert_eq!(data(&["run", "--resume", &file, "--json", "--threads", threads]), whole);
    }
    assert!(whole.contains("\"windows\"") && whole.contains("root, 4K-2M-1G-root"), "{whole}");
    // No option of the run is taken from the command line that resumes it.
    assert_eq!(data(&["run", "--resume", &file, "--json", "--seed", "7"]), whole);

    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(&file, &bytes).unwrap();
    fails(&["run", "--resume", &file], 2, &["damaged", "checksum"]);
    fs::write(&file, &bytes[..middle]).unwrap();
    fails(&["run", "--resume", &file], 2, &["cut after", "older snapshot"]);
    fs::write(&file, "seed = 1").unwrap();
    fails(&["run", "--resume", &file], 2, &["not a snapshot"]);
}

#[cfg(unix)]
#[test]
fn a_signal_saves_the_run() {
    let scratch = Scratch::new("run-signal");
    let file = scratch.path("run.snap");
    let whole = data(&args("400000", &[]));
    let mut child = Command::new(env!("CARGO_BIN_EXE_mmusim"))
        .args(args("400000", &["--checkpoint", &file, "--checkpoint-every", "20"]))
        .current_dir(root())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while !fs::exists(&file).unwrap() && begun.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let code = child.wait().unwrap().code();
    assert!([Some(75), Some(0)].contains(&code), "{code:?}");
    assert_eq!(data(&["run", "--resume", &file, "--json"]), whole);
}

#[test]
fn a_run_can_be_a_file() {
    let scratch = Scratch::new("run-spec");
    let file = scratch.path("run.toml");
    let spec =
        "arch = \"x86\"\nmemory = \"64MiB\"\nvcpus = 2\nworkload = \"zipf\"\naccesses = 5000\nstrategy = \"(6.9)\"\n";
    fs::write(&file, spec).unwrap();
    assert_eq!(data(&["run", "--spec", &file, "--json"]), data(&args("5000", &[])));
    assert!(data(&["run", "--spec", &file]).contains("vCPUs finish after"));
    for (from, to, word) in [("vcpus", "vcpu", "vcpu"), ("x86", "arm", "arm"), ("(6.9)", "flush", "choose one of")] {
        fs::write(&file, spec.replacen(from, to, 1)).unwrap();
        fails(&["run", "--spec", &file], 2, &[word]);
    }
    fails(&["run", "--arch", "x86"], 2, &["--trace FILE or --workload KIND"]);
    fails(&["run", "--workload", "zipf"], 2, &["name one architecture"]);
    fails(&["run", "--arch", "x86", "--workload", "idle", "--events", "x"], 2, &["compare zap"]);
}

#[test]
fn long_points_of_a_sweep_go_on_where_time_ran_out() {
    let scratch = Scratch::new("run-sweep");
    let file = scratch.path("sweep.toml");
    let sweep = "schema = 1\nname = \"long\"\n[[experiment]]\ncommand = \"run\"\n\
        with = { arch = \"x86\", memory = \"64MiB\", workload = \"zipf\", accesses = 300000, strategy = \"(6.9)\" }\n\
        over.vcpus = [1, 2]\n";
    fs::write(&file, sweep).unwrap();
    let (whole, cut) = (scratch.path("whole"), scratch.path("cut"));
    for plan in [&whole, &cut] {
        data(&["sweep", "plan", &file, "-o", plan, "--try", "0"]);
    }
    let begun = Instant::now();
    assert_eq!(mmusim(&["sweep", "run", &whole, "--jobs", "1"]).status.code(), Some(0));
    let slice = format!("{}ms", (begun.elapsed() / 5).as_millis().max(1));
    let mut rounds = 0;
    let mut left_something = false;
    while mmusim(&["sweep", "run", &cut, "--jobs", "1", "--time-limit", &slice]).status.code() == Some(75) {
        rounds += 1;
        left_something |= fs::read_dir(format!("{cut}/checkpoints")).unwrap().count() > 0;
        assert!(rounds < 200, "{}", talk(&mmusim(&["sweep", "status", &cut])));
    }
    assert!(rounds > 0 && left_something, "{rounds} rounds: the points were too short");
    assert_eq!(data(&["sweep", "merge", &cut]), data(&["sweep", "merge", &whole]));
    assert_eq!(
        fs::read_dir(format!("{cut}/checkpoints")).unwrap().count(),
        0,
        "nothing is left of points that are done"
    );
}
