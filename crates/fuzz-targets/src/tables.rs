//! Table memory that folds frames against table memory that holds every word.

use mmu_core::image::RamRange;
use mmu_core::memory::{Holding, Masks, Progression, Reuse, TableMemory};
use mmu_core::{Hpa, Level};

use crate::bytes::Bytes;

const BASE: u64 = 0x4000_0000;
/// Two pieces: allocation fails now and then, and holding every word stays cheap.
const BYTES: u64 = 2 << 21;
const PRESENT: u64 = 0b111;
const WORDS: [usize; 4] = [32, 512, 8192, 16384];
const OPERATIONS: usize = 32;

/// First byte: what freed frames are for; then operations.
pub(crate) fn tables_vs_dense(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let reuse = if bytes.u8() & 1 == 0 { Reuse::LastFreedFirst } else { Reuse::Quarantine };
    let new = |holding| {
        let pool = RamRange { start: Hpa::new(BASE), bytes: BYTES };
        TableMemory::new(pool, PRESENT).expect("a legal pool").with_holding(holding).with_reuse(reuse)
    };
    let mut both = [new(Holding::Folding), new(Holding::Dense)];
    for _ in 0..OPERATIONS {
        if bytes.is_empty() {
            break;
        }
        operation(&mut bytes, &mut both);
    }
    let [folding, dense] = both;
    assert!(folding.live_frames().eq_by_place(dense.live_frames()));
    assert!(folding == dense, "the same operations left different words");
    assert_eq!(folding.digest(), dense.digest());
}

/// One operation on both; their answers must be equal, errors included.
fn operation(bytes: &mut Bytes<'_>, both: &mut [TableMemory; 2]) {
    let op = bytes.u8();
    let at = place(bytes);
    match op % 12 {
        0 => {
            let (level, words) = (Level::new(op / 12 % 5), WORDS[usize::from(bytes.u8()) % 4]);
            same(both, |memory| memory.alloc(level, words));
        }
        1 => {
            let (level, words) = (Level::new(op / 12 % 5), WORDS[usize::from(bytes.u8()) % 4]);
            let (frames, fill) = (u64::from(bytes.u16() % 600), progression(bytes));
            same(both, |memory| memory.alloc_run(level, words, frames, fill));
        }
        2 => same(both, |memory| memory.free(at)),
        3 => {
            let frames = u64::from(bytes.u8());
            same(both, |memory| memory.free_run(at, frames));
        }
        4 => {
            let word = bytes.u64();
            same(both, |memory| memory.xchg(at, word));
        }
        5 => {
            let (old, new) = (bytes.u64(), bytes.u64());
            same(both, |memory| memory.cmpxchg(at, old, new));
        }
        6 => {
            let bits = bytes.u64();
            same(both, |memory| memory.fetch_and(at, bits));
        }
        7 => {
            let bits = bytes.u64();
            same(both, |memory| memory.fetch_or(at, bits));
        }
        8 => {
            let (len, fill) = (u64::from(bytes.u16()), progression(bytes));
            same(both, |memory| memory.fill_run(at, len, fill));
        }
        9 => {
            let (len, masks) = (u64::from(bytes.u16()), Masks { keep: bytes.u64(), set: bytes.u64() });
            same(both, |memory| memory.map_run(at, len, masks));
        }
        10 => same(both, |memory| memory.get_ref(at)),
        _ => {
            same(both, |memory| memory.put_ref(at));
            same(both, |memory| memory.read(at));
            same(both, |memory| memory.live(at));
        }
    }
}

fn same<T: PartialEq + std::fmt::Debug>(both: &mut [TableMemory; 2], act: impl Fn(&mut TableMemory) -> T) {
    let [folding, dense] = both;
    assert_eq!(act(folding), act(dense), "folding left, dense right");
}

/// Mostly a word of the pool; a few are misaligned or outside.
fn place(bytes: &mut Bytes<'_>) -> Hpa {
    let raw = u64::from(bytes.u16()) | u64::from(bytes.u8()) << 16;
    let stray = if raw >> 22 == 3 { raw & 7 } else { 0 };
    Hpa::new(BASE + (raw & 0x3f_ffff & !7) + stray)
}

fn progression(bytes: &mut Bytes<'_>) -> Progression {
    match bytes.u8() % 3 {
        0 => Progression::ZERO,
        1 => Progression::new(u64::from(bytes.u16()) << 12 | 7, 4096),
        _ => Progression::new(bytes.u64(), bytes.u64()),
    }
}

/// Frames are equal in everything but how they are held.
trait EqByPlace: Iterator {
    fn eq_by_place(self, other: impl Iterator<Item = Self::Item>) -> bool;
}

impl<I: Iterator<Item = mmu_core::memory::FrameInfo>> EqByPlace for I {
    fn eq_by_place(self, other: impl Iterator<Item = Self::Item>) -> bool {
        let plain = |info: mmu_core::memory::FrameInfo| (info.start, info.words, info.level, info.refs, info.live);
        self.map(plain).eq(other.map(plain))
    }
}
