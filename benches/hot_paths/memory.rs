//! Table memory by itself, by the form that frames are held in.

use std::hint::black_box;

use mmusim::core::image::RamRange;
use mmusim::core::memory::{Holding, Masks, Progression, TableMemory};
use mmusim::{ByteUnits, Hpa, Level};

use super::rounds::Rounds;
use super::scatter::Scatter;

/// Leaf tables of a gigabyte: 2 MiB, one piece.
const FRAMES: u64 = 512;
const WORDS: u64 = FRAMES * 512;
const PRESENT: u64 = 7;
const LEAVES: Progression = Progression::new(PRESENT, 4096);

/// All cases of the group.
pub fn all(rounds: &mut Rounds) {
    reads(rounds);
    updates(rounds);
    runs(rounds);
}

fn memory(holding: Holding) -> (TableMemory, Hpa) {
    let pool = RamRange { start: Hpa::new(1.TiB()), bytes: 1.TiB() };
    let mut memory = TableMemory::new(pool, PRESENT).expect("the pool is aligned").with_holding(holding);
    let first = memory.alloc_run(Level::LAST, 512, FRAMES, LEAVES).expect("room");
    (memory, first)
}

/// Words that are no progression.
fn words(holding: Holding) -> (TableMemory, Hpa) {
    let (mut memory, first) = memory(holding);
    let mut scatter = Scatter(1);
    for w in 0..WORDS {
        memory.write(first + 8 * w, scatter.below(1 << 30) << 12 | PRESENT).expect("a live table");
    }
    (memory, first)
}

/// A few accessed flags on every table.
fn touched() -> (TableMemory, Hpa) {
    let (mut memory, first) = memory(Holding::Folding);
    for w in (0..WORDS).step_by(100) {
        memory.fetch_or(first + 8 * w, 0x100).expect("a live table");
    }
    (memory, first)
}

fn reads(rounds: &mut Rounds) {
    let mut scatter = Scatter(2);
    let random: Vec<u64> = (0..16384).map(|_| scatter.below(WORDS)).collect();
    let plain: Vec<u64> = (0..WORDS).map(|_| scatter.below(u64::MAX)).collect();
    rounds.case("memory", "read random, plain vector", 16384, || {
        black_box(random.iter().fold(0, |sum, &w| sum ^ plain[w as usize]));
    });
    for (name, (memory, first)) in [
        ("template", memory(Holding::Folding)),
        ("overlay", touched()),
        ("words", words(Holding::Folding)),
        ("always dense", words(Holding::Dense)),
    ] {
        let read = |w: u64| memory.read(first + 8 * w).unwrap_or(0);
        rounds.case("memory", &format!("read random, {name}"), 16384, || {
            black_box(random.iter().fold(0, |sum, &w| sum ^ read(w)));
        });
        rounds.case("memory", &format!("read sequential, {name}"), WORDS, || {
            black_box((0..WORDS).fold(0, |sum, w| sum ^ read(w)));
        });
    }
}

fn updates(rounds: &mut Rounds) {
    let mut scatter = Scatter(3);
    let random: Vec<u64> = (0..16384).map(|_| scatter.below(WORDS)).collect();
    let (mut words, first) = words(Holding::Folding);
    let mut flip = 0;
    rounds.case("memory", "write, words", 16384, || {
        flip ^= 0x1000;
        for &w in &random {
            words.write(first + 8 * w, w << 20 ^ flip ^ w << 13).expect("a live table");
        }
    });
    rounds.case("memory", "cmpxchg, words", 16384, || {
        for &w in &random {
            let old = words.read(first + 8 * w).expect("a live table");
            black_box(words.cmpxchg(first + 8 * w, old, old ^ 0x100).expect("a live table"));
        }
    });
    let touch = |(memory, first): &mut (TableMemory, Hpa), step: usize| {
        (0..WORDS).step_by(step).for_each(|w| {
            memory.fetch_or(*first + 8 * w, 0x100).expect("a live table");
        });
    };
    let fresh = || memory(Holding::Folding);
    rounds.case_on("memory", "touch 1 leaf of 100, template", WORDS.div_ceil(100), fresh, |tree| touch(tree, 100));
    rounds.case_on("memory", "touch every leaf, template", WORDS, fresh, |tree| touch(tree, 1));
}

fn runs(rounds: &mut Rounds) {
    let tables = || (0..FRAMES).map(|n| n * 4096);
    for (name, (memory, first)) in [("template", memory(Holding::Folding)), ("words", words(Holding::Folding))] {
        rounds.case("memory", &format!("run_at of a table, {name}"), FRAMES, || {
            black_box(tables().map(|at| memory.run_at(first + at, 512).map_or(0, |run| run.len)).sum::<u64>());
        });
    }
    let zap = |(memory, first): &mut (TableMemory, Hpa), len: u64| {
        for w in (0..WORDS).step_by(len as usize) {
            memory.fill_run(*first + 8 * w, len, Progression::ZERO).expect("live tables");
        }
    };
    for (name, make) in [
        ("template", (|| memory(Holding::Folding)) as fn() -> _),
        ("overlay", touched),
        ("words", || words(Holding::Folding)),
    ] {
        rounds.case_on("memory", &format!("fill_run of 512 words, {name}"), FRAMES, make, |tree| zap(tree, 512));
        rounds.case_on("memory", &format!("fill_run of 1 GiB of leaves, {name}"), 1, make, |tree| zap(tree, WORDS));
        rounds.case_on("memory", &format!("map_run of 512 words, {name}"), FRAMES, make, |(memory, first)| {
            for at in tables() {
                memory.map_run(*first + at, 512, Masks::clear(2)).expect("live tables");
            }
        });
    }
}
