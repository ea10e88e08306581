//! Table memory against a plain vector of words: any sequence of operations, several frame sizes, both ways of holding.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use mmu_core::image::{ByteOrder, RamRange};
use mmu_core::memory::{FrameError, Holding, Masks, Progression, Reuse, Stretch, TableFault, TableMemory};
use mmu_core::walk::Exchange;
use mmu_core::{Hpa, Level};
use proptest::prelude::*;

const BASE: u64 = 0x4000_0000;
/// Nine pieces and a bit of a tenth.
const BYTES: u64 = (9 << 21) + 0x8000;
const MASK: u64 = 0b111;

/// Frames as vectors.
#[derive(Default)]
struct Model {
    frames: BTreeMap<u64, ModelFrame>,
}

struct ModelFrame {
    words: Vec<u64>,
    level: Level,
    refs: u32,
}

impl Model {
    fn frame(&self, at: Hpa) -> Option<(u64, &ModelFrame)> {
        let (&start, frame) = self.frames.range(..=at.raw()).next_back()?;
        (at.raw() - start < 8 * frame.words.len() as u64).then_some((start, frame))
    }
    fn word(&self, at: Hpa) -> Option<u64> {
        let (start, frame) = self.frame(at)?;
        Some(frame.words[((at.raw() - start) / 8) as usize])
    }
    fn word_mut(&mut self, at: Hpa) -> Option<&mut u64> {
        let (&start, frame) = self.frames.range_mut(..=at.raw()).next_back()?;
        frame.words.get_mut(((at.raw() - start) / 8) as usize)
    }
    /// Whether `len` words from `at` on all exist.
    fn all(&self, at: Hpa, len: u64) -> bool {
        let end = at.raw() + 8 * len;
        let mut here = at;
        while here.raw() < end {
            match self.frame(here) {
                Some((start, frame)) => here = Hpa::new(start + 8 * frame.words.len() as u64),
                None => return false,
            }
        }
        true
    }
    fn present(frame: &ModelFrame) -> u64 {
        frame.words.iter().filter(|&&word| word & MASK != 0).count() as u64
    }
}

#[derive(Clone, Copy, Debug)]
struct Place {
    frame: prop::sample::Index,
    word: prop::sample::Index,
}

#[derive(Clone, Debug)]
enum Op {
    Alloc(u8, usize),
    Run(u8, usize, u64, Progression),
    Free(Place),
    FreeRun(Place, u64),
    Write(Place, u64),
    Flip(Place, u64),
    Cmpxchg(Place, u64, bool),
    Touch(Place, Vec<u16>),
    Sweep(Place, Progression),
    Fill(Place, u64, Progression),
    FillFrames(Place, u64, Progression),
    Map(Place, u64, Masks),
    MapFrames(Place, u64, Masks),
    /// Words from the start of a frame's piece on, in steps of these lengths: as a walk does that stops and goes on.
    Advance(Place, Vec<u32>, Progression),
    Get(Place),
    Put(Place),
}

fn place() -> impl Strategy<Value = Place> {
    (any::<prop::sample::Index>(), any::<prop::sample::Index>()).prop_map(|(frame, word)| Place { frame, word })
}
fn words() -> impl Strategy<Value = usize> {
    prop_oneof![Just(32usize), Just(512), Just(512), Just(8192), Just(16384), Just(1 << 18)]
}
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0u64), Just(0x5a0), (0u64..1 << 30).prop_map(|page| page << 12 | 7), any::<u64>()]
}
fn progression() -> impl Strategy<Value = Progression> {
    prop_oneof![
        3 => Just(Progression::ZERO),
        4 => (0u64..1 << 30, 0u64..4096).prop_map(|(page, flags)| Progression::new(page << 12 | flags, 4096)),
        1 => word().prop_map(Progression::constant),
        1 => (any::<u64>(), any::<u64>()).prop_map(|(first, step)| Progression::new(first, step)),
        1 => (0u64..8, 0u64..8).prop_map(|(first, step)| Progression::new(first, step.wrapping_neg())),
    ]
}
fn masks() -> impl Strategy<Value = Masks> {
    prop_oneof![
        Just(Masks::clear(0x100)),
        Just(Masks::set(0x300)),
        Just(Masks::clear(7)),
        Just(Masks { keep: !2, set: 1 << 60 }),
        (any::<u64>(), any::<u64>()).prop_map(|(keep, set)| Masks { keep, set }),
    ]
}
fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => (0u8..5, words()).prop_map(|(level, words)| Op::Alloc(level, words)),
        2 => (0u8..5, words(), 1u64..1100, progression()).prop_map(|(level, words, n, fill)| Op::Run(level, words, n, fill)),
        1 => place().prop_map(Op::Free),
        1 => (place(), 1u64..600).prop_map(|(place, n)| Op::FreeRun(place, n)),
        3 => (place(), word()).prop_map(|(place, word)| Op::Write(place, word)),
        3 => (place(), 0u64..0x400).prop_map(|(place, bits)| Op::Flip(place, bits)),
        2 => (place(), word(), any::<bool>()).prop_map(|(place, new, hit)| Op::Cmpxchg(place, new, hit)),
        2 => (place(), prop::collection::vec(any::<u16>(), 1..30)).prop_map(|(place, at)| Op::Touch(place, at)),
        1 => (place(), progression()).prop_map(|(place, fill)| Op::Sweep(place, fill)),
        2 => (place(), 1u64..3000, progression()).prop_map(|(place, n, fill)| Op::Fill(place, n, fill)),
        2 => (place(), 1u64..1100, progression()).prop_map(|(place, n, fill)| Op::FillFrames(place, n, fill)),
        2 => (place(), 1u64..3000, masks()).prop_map(|(place, n, masks)| Op::Map(place, n, masks)),
        2 => (place(), 1u64..1100, masks()).prop_map(|(place, n, masks)| Op::MapFrames(place, n, masks)),
        2 => (place(), prop::collection::vec(1u32..1 << 15, 1..5), progression()).prop_map(|(place, steps, fill)| Op::Advance(place, steps, fill)),
        1 => place().prop_map(Op::Get),
        1 => place().prop_map(Op::Put),
    ]
}

struct Pair {
    memory: TableMemory,
    model: Model,
}

impl Pair {
    fn new(holding: Holding, reuse: Reuse) -> Self {
        let pool = RamRange { start: Hpa::new(BASE), bytes: BYTES };
        let memory = TableMemory::new(pool, MASK).unwrap().with_holding(holding).with_reuse(reuse);
        Self { memory, model: Model::default() }
    }

    /// Start and words of a live frame, and the address of a word in it.
    fn pick(&self, place: Place) -> Option<(Hpa, u64, Hpa)> {
        let n = self.model.frames.len();
        let (&start, frame) = self.model.frames.iter().nth(place.frame.index(n.max(1)))?;
        let words = frame.words.len();
        Some((Hpa::new(start), words as u64, Hpa::new(start + 8 * place.word.index(words) as u64)))
    }

    fn add(&mut self, start: Hpa, level: u8, words: usize, frames: u64, fill: Progression) {
        for k in 0..frames {
            let first = k * words as u64;
            let content = (first..first + words as u64).map(|i| fill.word(i)).collect();
            let frame = ModelFrame { words: content, level: Level::new(level), refs: 1 };
            assert_eq!(start.raw() % (8 * words as u64), 0, "aligned to its size");
            assert!(self.model.frames.insert(start.raw() + 8 * first, frame).is_none());
        }
        self.model.frames.range(..start.raw()).next_back().inspect(|(before, frame)| {
            assert!(*before + 8 * frame.words.len() as u64 <= start.raw(), "frames overlap");
        });
    }

    fn map(&mut self, at: Hpa, len: u64, masks: Masks) {
        let result = self.memory.map_run(at, len, masks);
        if !self.model.all(at, len) {
            assert!(result.is_err());
            return;
        }
        let mut changed = 0;
        for i in 0..len {
            let word = self.model.word_mut(at + 8 * i).unwrap();
            let new = if *word & MASK == 0 { *word } else { masks.apply(*word) };
            changed += u64::from(new != *word);
            *word = new;
        }
        assert_eq!(result, Ok(changed));
    }

    fn fill(&mut self, at: Hpa, len: u64, fill: Progression) {
        let result = self.memory.fill_run(at, len, fill);
        assert_eq!(result.is_ok(), self.model.all(at, len));
        if result.is_ok() {
            for i in 0..len {
                *self.model.word_mut(at + 8 * i).unwrap() = fill.word(i);
            }
        }
    }

    fn write(&mut self, at: Hpa, word: u64) {
        let old = self.memory.xchg(at, word).unwrap();
        assert_eq!(old, std::mem::replace(self.model.word_mut(at).unwrap(), word));
    }

    fn apply(&mut self, op: &Op) {
        match op {
            &Op::Alloc(level, words) => {
                if let Ok(start) = self.memory.alloc(Level::new(level), words) {
                    self.add(start, level, words, 1, Progression::ZERO);
                }
            }
            &Op::Run(level, words, frames, fill) => {
                let frames = frames.min((3 << 18) / words as u64);
                if let Ok(start) = self.memory.alloc_run(Level::new(level), words, frames, fill) {
                    self.add(start, level, words, frames, fill);
                }
            }
            other => self.apply_to_frame(other),
        }
    }

    fn apply_to_frame(&mut self, op: &Op) {
        let place = match op {
            Op::Free(place) | Op::FreeRun(place, _) | Op::Write(place, _) | Op::Flip(place, _) => *place,
            Op::Cmpxchg(place, ..) | Op::Touch(place, _) | Op::Sweep(place, _) | Op::Fill(place, ..) => *place,
            Op::FillFrames(place, ..) | Op::Map(place, ..) | Op::MapFrames(place, ..) => *place,
            Op::Advance(place, ..) => *place,
            Op::Get(place) | Op::Put(place) => *place,
            Op::Alloc(..) | Op::Run(..) => return,
        };
        let Some((start, words, at)) = self.pick(place) else { return };
        match op {
            Op::Free(_) => self.free_run(start, words, 1),
            &Op::FreeRun(_, n) => self.free_run(start, words, n),
            &Op::Write(_, word) => self.write(at, word),
            &Op::Flip(_, bits) => {
                let old = self.model.word(at).unwrap();
                assert_eq!(self.memory.fetch_or(at, bits), Ok(old));
                assert_eq!(self.memory.fetch_and(at, !bits), Ok(old | bits));
                *self.model.word_mut(at).unwrap() = old & !bits;
            }
            &Op::Cmpxchg(_, new, hit) => {
                let old = self.model.word(at).unwrap();
                let expected = if hit { old } else { old ^ 0x40 };
                let outcome = self.memory.cmpxchg(at, expected, new).unwrap();
                assert_eq!(outcome, if hit { Exchange::Done } else { Exchange::Found(old) });
                if hit {
                    *self.model.word_mut(at).unwrap() = new;
                }
            }
            Op::Touch(_, at) => {
                for &i in at {
                    let at = start + 8 * (u64::from(i) % words);
                    let word = self.model.word(at).unwrap();
                    self.write(at, word | 0x100);
                }
            }
            &Op::Sweep(_, fill) => {
                for i in 0..words.min(8192) {
                    self.write(start + 8 * i, fill.word(i));
                }
                if words <= 8192 && self.memory.forms().dense != self.memory.frames() {
                    let info = self.memory.frame(start).unwrap();
                    assert_eq!(info.form, mmu_core::memory::FrameForm::Template, "a uniform frame folds back");
                }
            }
            &Op::Fill(_, n, fill) => self.fill(at, n, fill),
            &Op::FillFrames(_, n, fill) => self.fill(start, n.min((3 << 18) / words) * words, fill),
            &Op::Map(_, n, masks) => self.map(at, n, masks),
            &Op::MapFrames(_, n, masks) => self.map(start, n.min((3 << 18) / words) * words, masks),
            Op::Advance(_, steps, fill) => {
                let first = Hpa::new(start.raw() & !((1 << 21) - 1));
                let mut at = first;
                for &n in steps {
                    // As one progression, cut where the walk stopped.
                    let fill = Progression::new(fill.word((at - first) / 8), fill.step);
                    self.fill(at, n.into(), fill);
                    at += 8 * u64::from(n);
                }
            }
            Op::Get(_) | Op::Put(_) => {
                let refs = &mut self.model.frames.get_mut(&start.raw()).unwrap().refs;
                if matches!(op, Op::Get(_)) {
                    *refs += 1;
                    assert_eq!(self.memory.get_ref(at), Ok(*refs));
                } else if *refs == 0 {
                    assert_eq!(self.memory.put_ref(at), Err(FrameError::References { at: start, refs: 0 }));
                } else {
                    *refs -= 1;
                    assert_eq!(self.memory.put_ref(at), Ok(*refs));
                }
            }
            Op::Alloc(..) | Op::Run(..) => {}
        }
    }

    fn free_run(&mut self, start: Hpa, words: u64, n: u64) {
        let starts: Vec<u64> = (0..n).map(|k| start.raw() + 8 * words * k).collect();
        let alike = |at: &u64| self.model.frames.get(at).is_some_and(|frame| frame.words.len() as u64 == words);
        let legal = starts.iter().all(alike);
        assert_eq!(self.memory.free_run(start, n).is_ok(), legal);
        if legal {
            for at in starts {
                self.model.frames.remove(&at);
                assert_eq!(self.memory.read(Hpa::new(at)), Err(TableFault::Freed { at: Hpa::new(at) }));
            }
            assert!(matches!(self.memory.free(start), Err(FrameError::NoFrame(TableFault::Freed { .. }))));
        }
    }

    /// Everything is as the model says, word by word.
    fn check(&self) {
        let mut listed = self.memory.live_frames();
        for (&start, frame) in &self.model.frames {
            let at = Hpa::new(start);
            let info = self.memory.frame(at).unwrap();
            assert_eq!((info.start, info.words), (at, frame.words.len() as u64));
            assert_eq!((info.level, info.refs, info.live), (frame.level, frame.refs, Model::present(frame)));
            assert_eq!(listed.next(), Some(info));
            for (i, &word) in (0u64..).zip(&frame.words) {
                assert_eq!(self.memory.read(at + 8 * i), Ok(word), "word {i} of {at}");
            }
            self.check_runs(at, frame);
            self.check_stretches(at, frame);
        }
        assert_eq!(listed.next(), None);
        for level in 0..6 {
            let n = self.model.frames.values().filter(|frame| frame.level.index() == level).count();
            assert_eq!(self.memory.frames_at(Level::new(level as u8)), n as u64);
        }
    }

    /// Stretches from a few words of the frame on are its present words.
    fn check_stretches(&self, at: Hpa, frame: &ModelFrame) {
        for from in [0, 1, 31, frame.words.len() / 2 + 3] {
            let words = frame.words.get(from..frame.words.len() - from % 2).unwrap_or_default();
            let start = at + 8 * from as u64;
            let mut found = Vec::new();
            for (offset, stretch) in self.memory.stretches(start, words.len() as u64).unwrap() {
                let all: Vec<u64> = match stretch {
                    Stretch::Run(run) => (0..run.len).map(|i| run.word(i)).collect(),
                    Stretch::Words(words) => words.to_vec(),
                };
                found.extend((offset..).zip(all).filter(|(_, word)| word & MASK != 0));
            }
            let expected = (0u64..).zip(words.iter().copied()).filter(|(_, word)| word & MASK != 0);
            assert_eq!(found, expected.collect::<Vec<_>>(), "from {start}");
            self.check_each_word(start, words);
        }
    }

    /// Each word is seen once, up to where the look breaks off.
    fn check_each_word(&self, start: Hpa, words: &[u64]) {
        for most in [0, 1, words.len() / 3, words.len()] {
            let mut seen = Vec::new();
            let looked = self.memory.each_word(start, words.len() as u64, |word| {
                if seen.len() == most {
                    return ControlFlow::Break(());
                }
                seen.push(word);
                ControlFlow::Continue(())
            });
            let most = most.min(words.len());
            assert_eq!((looked, seen.as_slice()), (Ok(most as u64), &words[..most]), "from {start}");
        }
    }

    /// Runs from the frame's start, and from the middle of it, say what the words are.
    fn check_runs(&self, at: Hpa, frame: &ModelFrame) {
        let words = frame.words.len() as u64;
        let (mut i, mut steps) = (0, 0);
        while i < words && steps < 40 {
            let run = self.memory.run_at(at + 8 * i, 3 * words).unwrap();
            assert!((1..=3 * words).contains(&run.len));
            for k in 0..run.len.min(words - i + 100) {
                let word = self.model.word(at + 8 * (i + k)).expect("a run stays in live frames");
                assert_eq!(run.word(k), word);
                assert_eq!(word & MASK != 0, run.first & MASK != 0);
            }
            i += run.len;
            steps += 1;
        }
    }
}

/// A memory of its own history with the same frames and words.
fn rebuilt(pair: &Pair) -> Pair {
    let mut other = Pair::new(Holding::Dense, Reuse::LastFreedFirst);
    other.memory = pair.memory.clone();
    for (&start, frame) in &pair.model.frames {
        let at = Hpa::new(start);
        // There and back through another form.
        for i in (0..frame.words.len() as u64).step_by(31).take(40) {
            other.memory.write(at + 8 * i, 0x1234_5678_0000 ^ i.wrapping_mul(0x9e37_79b9)).unwrap();
        }
        for (i, &word) in (0u64..).zip(&frame.words) {
            other.memory.write(at + 8 * i, word).unwrap();
        }
    }
    other
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn equals_plain_words(ops in prop::collection::vec(op(), 1..40), dense: bool, quarantine: bool) {
        let holding = if dense { Holding::Dense } else { Holding::Folding };
        let reuse = if quarantine { Reuse::Quarantine } else { Reuse::LastFreedFirst };
        let mut pair = Pair::new(holding, reuse);
        for op in &ops {
            pair.apply(op);
        }
        pair.check();
        let mut other = rebuilt(&pair);
        prop_assert_eq!(other.memory.digest(), pair.memory.digest());
        prop_assert!(other.memory == pair.memory);
        if let Some(&start) = pair.model.frames.keys().next_back() {
            other.memory.fetch_or(Hpa::new(start), 1 << 63).unwrap();
            other.memory.fetch_and(Hpa::new(start), !0 ^ (1 << 5)).unwrap();
            let same = pair.model.word(Hpa::new(start)) == Some(other.memory.read(Hpa::new(start)).unwrap());
            prop_assert_eq!(other.memory == pair.memory, same);
            prop_assert_eq!(other.memory.digest() == pair.memory.digest(), same);
        }
    }

    #[test]
    fn dense_and_folding_go_the_same_way(ops in prop::collection::vec(op(), 1..30)) {
        let mut folding = Pair::new(Holding::Folding, Reuse::LastFreedFirst);
        let mut dense = Pair::new(Holding::Dense, Reuse::LastFreedFirst);
        for op in &ops {
            folding.apply(op);
            dense.apply(op);
        }
        prop_assert!(folding.memory == dense.memory);
        prop_assert_eq!(folding.memory.digest(), dense.memory.digest());
    }

    #[test]
    fn bytes_go_out_and_in(words in prop::collection::vec(word(), 1..600), big: bool) {
        let order = if big { ByteOrder::Big } else { ByteOrder::Little };
        let mut pair = Pair::new(Holding::Folding, Reuse::LastFreedFirst);
        let at = pair.memory.alloc_run(Level::LAST, 512, 2, Progression::ZERO).unwrap() + 8 * 100;
        let bytes: Vec<u8> = words.iter().flat_map(|&word| order.bytes(word)).collect();
        pair.memory.import(at, &bytes, order).unwrap();
        prop_assert_eq!(pair.memory.export(RamRange { start: at, bytes: bytes.len() as u64 }, order).unwrap(), bytes);
    }
}
