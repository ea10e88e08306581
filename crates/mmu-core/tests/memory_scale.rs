//! Table memory at the scale it is made for: petabytes mapped, write-protected, aged, zapped and freed within a host that has
//! a thousandth of the tables' size. Counts are exact; nothing here looks at time.

use mmu_core::image::RamRange;
use mmu_core::memory::{FrameForm, Masks, Progression, TableFault, TableMemory};
use mmu_core::{ByteUnits, Hpa, Level};

const PRESENT: u64 = 7;
const WRITABLE: u64 = 2;
const ACCESSED: u64 = 0x100;
const LEAVES: Progression = Progression::new(PRESENT | ACCESSED, 4096);
const WORDS: u64 = 512;

fn pool(bytes: u64) -> TableMemory {
    TableMemory::new(RamRange { start: Hpa::new(1.TiB()), bytes }, PRESENT).unwrap()
}

/// Numbers without a pattern (splitmix64).
fn scattered(i: u64) -> u64 {
    let z = i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[test]
fn four_pebibytes_of_small_pages_stay_below_a_hundred_megabytes() {
    let mut memory = pool(16.TiB());
    let frames = 4.PiB() >> 21;
    let words = frames * WORDS;
    let first = memory.alloc_run(Level::LAST, 512, frames, LEAVES).unwrap();
    let [below, middle, last] = [words / 2 - 1, words / 2, words - 1].map(|w| first + 8 * w);
    let small = |memory: &TableMemory, what: &str| {
        let bytes = memory.footprint();
        assert!(bytes < 100_000_000, "{what}: {bytes} bytes");
    };
    assert_eq!((memory.frames(), memory.frames_at(Level::LAST)), (frames, frames));
    assert_eq!(memory.read(last), Ok(LEAVES.word(words - 1)));
    small(&memory, "mapped");

    // Write protection: every word changes once, then none does.
    assert_eq!(memory.map_run(first, words, Masks::clear(WRITABLE)), Ok(words));
    assert_eq!(memory.map_run(first, words, Masks::clear(WRITABLE)), Ok(0));
    assert_eq!(memory.read(middle), Ok(LEAVES.word(words / 2) & !WRITABLE));
    small(&memory, "write-protected");

    // Ageing finds all of them young, then the few that were touched since.
    assert_eq!(memory.map_run(first, words, Masks::clear(ACCESSED)), Ok(words));
    for at in [first, middle, last] {
        assert_eq!(memory.fetch_or(at, ACCESSED).unwrap() & ACCESSED, 0);
        assert_eq!(memory.frame(at).unwrap().form, FrameForm::Overlay);
        assert_eq!(memory.live(at), Ok(WORDS));
    }
    assert_eq!(memory.map_run(first, words, Masks::clear(ACCESSED)), Ok(3));
    assert_eq!(memory.forms().template, frames);
    small(&memory, "aged");

    // One half is zapped: words read as zero on one side of the border, as leaves on the other.
    let old = LEAVES.first & !(WRITABLE | ACCESSED);
    memory.fill_run(first, words / 2, Progression::ZERO).unwrap();
    assert_eq!(memory.read(below), Ok(0));
    assert_eq!(memory.read(middle), Ok(old + 4096 * (words / 2)));
    assert_eq!((memory.live(below), memory.live(middle)), (Ok(0), Ok(WORDS)));
    memory.fill_run(middle, words / 2, Progression::ZERO).unwrap();
    assert_eq!((memory.read(last), memory.frames()), (Ok(0), frames));
    small(&memory, "zapped");

    memory.free_run(first, frames).unwrap();
    assert_eq!((memory.frames(), memory.forms().template), (0, 0));
    assert_eq!(memory.read(middle), Err(TableFault::Freed { at: middle }));
    small(&memory, "freed");
}

#[test]
fn petabytes_come_and_go_without_leaving_anything_behind() {
    let mut memory = pool(16.TiB());
    let frames = 4.PiB() >> 21;
    let mut most = 0;
    for round in 0..4u64 {
        let fill = Progression::new(PRESENT + (round << 12), 4096);
        let first = memory.alloc_run(Level::LAST, 512, frames, fill).unwrap();
        assert_eq!(memory.read(first), Ok(fill.first), "round {round}");
        memory.free_run(first, frames).unwrap();
        if round == 0 {
            most = memory.footprint();
        }
        assert!(memory.footprint() <= most, "round {round}: {} after {most} bytes", memory.footprint());
    }
}

#[test]
fn a_terabyte_with_every_hundredth_page_touched_takes_a_fraction_of_its_tables() {
    let mut memory = pool(4.GiB());
    let pages = 1.TiB() >> 12;
    let idle = LEAVES.first & !ACCESSED;
    let first = memory.alloc_run(Level::LAST, 512, pages / WORDS, Progression::new(idle, 4096)).unwrap();
    let mut touched = 0u64;
    for i in 0..pages / 100 {
        let at = first + 8 * (scattered(i) % pages);
        touched += u64::from(memory.fetch_or(at, ACCESSED).unwrap() & ACCESSED == 0);
    }
    // The tables alone are 2 GiB; 64 TiB touched like this are to take less than 3 GiB.
    let bytes = memory.footprint();
    assert!(bytes < 3.GiB() / 64, "{bytes} bytes for a terabyte, {:?}", memory.forms());
    assert_eq!(memory.frames(), pages / WORDS);

    // Ageing finds exactly those, and leaves progressions behind.
    assert_eq!(memory.map_run(first, pages, Masks::clear(ACCESSED)), Ok(touched));
    assert_eq!(memory.forms().template, pages / WORDS);
    assert_eq!(memory.map_run(first, pages, Masks::clear(ACCESSED)), Ok(0));
}
