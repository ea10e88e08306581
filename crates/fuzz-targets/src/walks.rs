//! Walks over memory in which every word is arbitrary: loops, tables that contain themselves, pointers anywhere.

use std::collections::BTreeMap;

use mmu_core::walk::{Bus, BusError, Exchange, NestedCursor, NoCaches, Step, Translation, WalkCursor};
use mmu_core::{Access, FaultReport, Format, Gpa, Hpa, Level};

use crate::bytes::Bytes;
use crate::formats::{WithFormat, WithPair, one_format, pair};

/// A path has at most one read and one update a level; every start over follows an update that set one of two flags.
const ONE_STAGE_STEPS: u32 = (2 * Level::MAX_LEVELS as u32 + 1) * (2 * Level::MAX_LEVELS as u32 + 1);
/// Each first-stage reference costs a walk of the second stage, and two for its update.
const TWO_STAGE_STEPS: u32 = ONE_STAGE_STEPS * (3 * Level::MAX_LEVELS as u32 + 1);

/// First byte: configuration; then the access, input address and root, then words that repeat through all of memory.
pub(crate) fn walk_raw_tables(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let choice = bytes.u8();
    let how = bytes.u8();
    let kinds = [Access::READ, Access::WRITE, Access::EXECUTE, Access::GUEST_TABLE];
    let access = kinds[usize::from(how) % 4];
    let access = if how & 4 == 0 { access } else { access.user() };
    let (input, root) = (bytes.u64(), bytes.u64() & 0x000f_ffff_ffff_0000);
    let mut words = Vec::new();
    while !bytes.is_empty() && words.len() < 256 {
        words.push(bytes.u64());
    }
    let walk = RawWalk { input, root, access, memory: Memory::new(words) };
    if how & 8 == 0 { one_format(choice, walk) } else { pair(choice, walk) }
}

struct RawWalk {
    input: u64,
    root: u64,
    access: Access,
    memory: Memory,
}

impl WithFormat for RawWalk {
    fn with<F: Format>(mut self, format: F) {
        let mut cursor = WalkCursor::new(format, Hpa::new(self.root), self.input, self.access);
        for _ in 0..ONE_STAGE_STEPS {
            match cursor.step(&mut self.memory) {
                Step::Read(_) | Step::Update(_) | Step::Restart(_) => {}
                Step::Done(translation) => return translated(&translation, self.input),
                Step::Fault(fault) => {
                    let _ = fault.class();
                    assert!(!fault.to_string().is_empty());
                    return;
                }
            }
        }
        panic!("{}: no end after {ONE_STAGE_STEPS} steps", F::NAME);
    }
}

impl WithPair for RawWalk {
    fn with<F1: Format, F2: Format>(mut self, one: F1, two: F2) {
        let root = Gpa::new(self.root);
        let mut cursor = NestedCursor::new(one, root, two, Hpa::new(self.root), self.input, self.access);
        for _ in 0..TWO_STAGE_STEPS {
            match cursor.step(&mut self.memory, &mut NoCaches) {
                Step::Read(_) | Step::Update(_) | Step::Restart(_) => {}
                Step::Done(translation) => return translated(&translation, self.input),
                Step::Fault(fault) => {
                    assert!(!fault.to_string().is_empty());
                    return;
                }
            }
        }
        panic!("{} over {}: no end after {TWO_STAGE_STEPS} steps", F1::NAME, F2::NAME);
    }
}

fn translated(translation: &Translation, input: u64) {
    let inside = translation.size.bytes() - 1;
    assert_eq!(translation.output.raw() & inside, input & inside, "{translation:?} loses the offset");
}

/// The same few words everywhere below 2^48, so that any pointer leads to a table. What is written stays. Guest words
/// have a store of their own: a word that is an entry of both stages can be changed back and forth for ever.
struct Memory {
    words: Vec<u64>,
    written: BTreeMap<(Whose, u64), u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Whose {
    Host,
    Guest,
}

impl Memory {
    fn new(words: Vec<u64>) -> Self {
        Self { words, written: BTreeMap::new() }
    }

    fn word(&self, whose: Whose, at: Hpa) -> Result<u64, BusError> {
        if at.raw() >> 48 != 0 || self.words.is_empty() {
            return Err(BusError { at });
        }
        let repeated = self.words[(at.raw() / 8 % self.words.len() as u64) as usize];
        Ok(self.written.get(&(whose, at.raw())).copied().unwrap_or(repeated))
    }

    fn exchange(&mut self, whose: Whose, at: Hpa, old: u64, new: u64) -> Result<Exchange, BusError> {
        let found = self.word(whose, at)?;
        if found != old {
            return Ok(Exchange::Found(found));
        }
        self.written.insert((whose, at.raw()), new);
        Ok(Exchange::Done)
    }
}

impl Bus for Memory {
    fn read(&mut self, at: Hpa) -> Result<u64, BusError> {
        self.word(Whose::Host, at)
    }
    fn cmpxchg(&mut self, at: Hpa, old: u64, new: u64) -> Result<Exchange, BusError> {
        self.exchange(Whose::Host, at, old, new)
    }
    fn read_guest(&mut self, _: Gpa, at: Hpa) -> Result<u64, BusError> {
        self.word(Whose::Guest, at)
    }
    fn cmpxchg_guest(&mut self, _: Gpa, at: Hpa, old: u64, new: u64) -> Result<Exchange, BusError> {
        self.exchange(Whose::Guest, at, old, new)
    }
}
