//! The committed corpora of `fuzz/` on stable: every input that ever mattered, with every `cargo test --workspace`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use mmu_fuzz_targets::{Found, TARGETS, run};

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

fn replay_corpus(target: &str) {
    let directory = fuzz().join("corpus").join(target);
    let mut inputs: Vec<PathBuf> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "{} is empty", directory.display());
    for input in inputs {
        // Shown only when the test fails: the last line names the input that failed.
        println!("{}", input.display());
        assert_eq!(run(target, &fs::read(&input).unwrap()), Found::Yes);
    }
}

macro_rules! replayed {
    ($($target:ident)*) => {
        $(
            #[test]
            fn $target() {
                replay_corpus(stringify!($target));
            }
        )*

        #[test]
        fn every_target_is_replayed_and_fuzzed() {
            let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
            assert_eq!(BTreeSet::from([$(stringify!($target).to_owned()),*]), targets, "tests/corpus.rs lists others");
            assert_eq!(names(&fuzz().join("corpus")), targets, "fuzz/corpus holds others");
            assert_eq!(names(&fuzz().join("fuzz_targets")), targets, "fuzz/fuzz_targets holds others");
        }
    };
}

replayed! {
    decode_word litmus machine_toml mapper_vs_tables matrix measurements protocol_schedule replay report snapshot sweep_point tables_vs_dense tlb_vs_model trace
    vectors walk_raw_tables
}

#[test]
fn a_misspelt_target_is_noticed() {
    assert_eq!(run("tables", &[]), Found::No);
}

#[test]
fn every_target_takes_nothing_and_every_single_byte() {
    for (_, check) in TARGETS {
        check(&[]);
        (0..=u8::MAX).for_each(|byte| check(&[byte]));
    }
}
