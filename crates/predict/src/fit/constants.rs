//! The constants of a sheet that are fitted to curves: what each is, which rows say it, where a search begins and among which values.
//!
//! A search begins at figures that are public or neutral, never at the sheet's, which know every row. *Prices* are latencies and costs: they
//! change what counted events cost. *Structures* change which events there are, and take a new run of every point.

use mmu_core::assoc::{Index, Replacement, Shape};
use mmu_core::machine::Machine;
use mmu_core::{Cycles, Level};

use mmu_core::tlb::Inclusion;

use crate::curve::{Curve, Form};
use crate::layout::Surroundings;

/// A machine with what is fitted beside its sheet.
#[derive(Clone, PartialEq, Debug)]
pub struct Setting {
    /// The machine.
    pub machine: Machine,
    /// The guest's memory around a benchmark.
    pub around: Surroundings,
}

/// Where a constant stands: section and key of a sheet, and the name of the inline table between them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Spot {
    /// Section.
    pub section: &'static str,
    /// Name of the inline table, by its number.
    pub table: Option<usize>,
    /// Key.
    pub key: &'static str,
}

impl std::fmt::Display for Spot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.", self.section)?;
        if let Some(table) = self.table {
            write!(f, "{table}.")?;
        }
        f.write_str(self.key)
    }
}

/// A latency or a cost.
#[derive(Debug)]
pub struct Price {
    /// Its place.
    pub spot: Spot,
    /// What it is, and which rows say it.
    pub from: &'static str,
    /// Where the search begins.
    pub start: f64,
    /// The smallest and the largest that make sense.
    pub range: (f64, f64),
    /// Reads it.
    pub get: fn(&Machine) -> Option<f64>,
    /// Sets it.
    pub set: fn(&mut Machine, f64),
}

/// A value of a structure: its name, and what sets it.
pub type Value = (&'static str, fn(&mut Setting));

/// A property of a structure.
#[derive(Debug)]
pub struct Structure {
    /// Its place.
    pub spot: Spot,
    /// What it is, and which rows say it.
    pub from: &'static str,
    /// Whether a point of a curve can notice it. Where nothing is displaced, ways and replacement do not show.
    pub noticed: fn(&Curve, u64) -> bool,
    /// Its values by name, the first being where the search begins.
    pub values: &'static [Value],
}

const fn spot(section: &'static str, key: &'static str) -> Spot {
    Spot { section, table: None, key }
}

const fn inner(section: &'static str, table: usize, key: &'static str) -> Spot {
    Spot { section, table: Some(table), key }
}

fn latency(machine: &Machine, level: usize) -> Option<f64> {
    machine.caches.levels.get(level).map(|level| level.latency.0 as f64)
}

fn set_latency(machine: &mut Machine, level: usize, cycles: f64) {
    if let Some(level) = machine.caches.levels.get_mut(level) {
        level.latency = whole(cycles);
    }
}

fn whole(cycles: f64) -> Cycles {
    Cycles(cycles.round().max(0.0) as u64)
}

fn jump(machine: &Machine, level: usize) -> Option<f64> {
    Some(machine.fetch.as_ref()?.levels.get(level)?.cycles)
}

fn set_jump(machine: &mut Machine, level: usize, cycles: f64) {
    if let Some(level) = machine.fetch.as_mut().and_then(|fetch| fetch.levels.get_mut(level)) {
        level.cycles = cycles;
    }
}

macro_rules! cache {
    ($level:literal, $start:literal, $range:expr, $from:literal) => {
        Price {
            spot: inner("cache", $level, "latency_cycles"),
            from: $from,
            start: $start,
            range: $range,
            get: |machine| latency(machine, $level),
            set: |machine, value| set_latency(machine, $level, value),
        }
    };
}

macro_rules! jump {
    ($level:literal, $from:literal) => {
        Price {
            spot: inner("fetch", $level, "cycles"),
            from: $from,
            start: 1.0,
            range: (0.1, 100.0),
            get: |machine| jump(machine, $level),
            set: |machine, value| set_jump(machine, $level, value),
        }
    };
}

macro_rules! software {
    ($name:literal, $start:literal, $from:literal) => {
        Price {
            spot: spot("software_ns", $name),
            from: $from,
            start: $start,
            range: (0.1, 100_000.0),
            get: |machine| machine.software_ns.get($name).copied(),
            set: |machine, value| {
                if let Some(figure) = machine.software_ns.get_mut($name) {
                    *figure = value;
                }
            },
        }
    };
}

macro_rules! cost {
    ($field:ident, $name:literal, $start:literal, $from:literal) => {
        Price {
            spot: spot("cost", $name),
            from: $from,
            start: $start,
            range: (0.1, 100_000.0),
            get: |machine| Some(machine.clock.nanoseconds(machine.costs.$field)),
            set: |machine, value| machine.costs.$field = machine.clock.cycles(value),
        }
    };
}

/// Latencies and costs.
pub const PRICES: &[Price] = &[
    cache!(0, 4.0, (1.0, 20.0), "first cache: any chase that it holds"),
    cache!(1, 14.0, (5.0, 100.0), "second cache: lines side by side, pages"),
    cache!(2, 75.0, (20.0, 600.0), "third cache: everything beyond 2 MiB"),
    Price {
        spot: spot("cache", "memory"),
        from: "memory: a chase at a time beyond the third cache",
        start: 400.0,
        range: (100.0, 3000.0),
        get: |machine| Some(machine.caches.memory.0 as f64),
        set: |machine, value| machine.caches.memory = whole(value),
    },
    Price {
        spot: spot("tlb", "l2_hit_extra_cycles"),
        from: "second-level TLB: pages and one frame from 104 to 1,536",
        start: 7.0,
        range: (1.0, 60.0),
        get: |machine| Some(machine.translation.tlb.l2_hit_extra.0 as f64),
        set: |machine, value| machine.translation.tlb.l2_hit_extra = whole(value),
    },
    Price {
        spot: spot("tlb", "l2_hit_extra_fetch_cycles"),
        from: "the same for fetches: jumps from page to page",
        start: 7.0,
        range: (1.0, 60.0),
        get: |machine| Some(machine.translation.tlb.l2_hit_extra_fetch.0 as f64),
        set: |machine, value| machine.translation.tlb.l2_hit_extra_fetch = whole(value),
    },
    Price {
        spot: spot("walk", "reference_cycles"),
        from: "a reference of a walk besides its latency: every walk",
        start: 0.0,
        range: (0.0, 40.0),
        get: |machine| Some(machine.walk.per_reference.0 as f64),
        set: |machine, value| machine.walk.per_reference = whole(value),
    },
    Price {
        spot: spot("walk", "in_flight"),
        from: "walks under way: several chases through one frame",
        start: 4.0,
        range: (1.0, 64.0),
        get: |machine| Some(f64::from(machine.walk.in_flight)),
        set: |machine, value| machine.walk.in_flight = value.round().max(1.0) as u32,
    },
    Price {
        spot: spot("cache", "fill_buffers"),
        from: "lines under way: several chases through pages",
        start: 16.0,
        range: (1.0, 128.0),
        get: |machine| Some(f64::from(machine.caches.fill_buffers)),
        set: |machine, value| machine.caches.fill_buffers = value.round().max(1.0) as u32,
    },
    software!("memory_overlapped", 100.0, "memory under several chases: those that reach it"),
    jump!(0, "loops of jumps, up to 8"),
    jump!(1, "jumps up to 128"),
    jump!(2, "jumps up to 256"),
    jump!(3, "jumps up to 1,024"),
    jump!(4, "jumps up to 8,192"),
    Price {
        spot: spot("fetch", "beyond_cycles"),
        from: "jumps beyond",
        start: 15.0,
        range: (1.0, 200.0),
        get: |machine| machine.fetch.as_ref().map(|fetch| fetch.beyond),
        set: |machine, value| {
            if let Some(fetch) = &mut machine.fetch {
                fetch.beyond = value;
            }
        },
    },
    software!("range_flush", 100.0, "a flush page by page: shootdowns of few pages"),
    software!("full_flush", 100.0, "a flush at once: shootdowns of many"),
    cost!(local_invalidate_page, "local_invalidate_page_ns", 140.0, "one page: slope of shootdowns up to 33"),
    software!("protect_page", 20.0, "slope of mprotect beyond 33"),
    software!("unprotect_page", 20.0, "slope of mprotect beyond 33"),
    software!("discard_page", 20.0, "slope of madvise beyond 33"),
    software!("unmap_page", 20.0, "slope of munmap beyond 33"),
    software!("protect_fixed", 300.0, "mprotect of one page"),
    software!("unprotect_fixed", 300.0, "mprotect of one page"),
    software!("discard_fixed", 300.0, "madvise of one page"),
    software!("unmap_fixed", 300.0, "munmap of one page"),
    software!("membarrier", 100.0, "barriers"),
    cost!(ipi_ack, "ipi_ack_ns", 1000.0, "calls with another thread less calls alone; barriers"),
    cost!(victim_fixed, "victim_fixed_ns", 1000.0, "the victim's losses"),
    cost!(victim_per_page, "victim_per_page_ns", 140.0, "slope of the victim's losses"),
    cost!(local_invalidate_all, "local_invalidate_all_ns", 300.0, "the victim's losses beyond 33 pages"),
    software!("interrupted", 1000.0, "barriers: what the victim loses"),
];

/// Half of what the fewest ways of a first-level TLB hold side by side; a list of what comes next takes a few more.
const FEW_PAGES: u64 = 32;
/// A quarter of the second level's entries.
const SOME_PAGES: u64 = 512;
/// Half of the fewest entries for directories, in bytes that they reach.
const SHORT: u64 = 8 << 21;
/// An eighth of the lines of the smallest third cache.
const SOME_LINES: u64 = 16_384;

fn is_spread(curve: &Curve) -> bool {
    matches!(curve.form, Form::Regions { .. })
}

fn leaves_first_tlb(curve: &Curve, n: u64) -> bool {
    is_spread(curve) || curve.pages(n) > FEW_PAGES
}

fn fills_tlb(curve: &Curve, n: u64) -> bool {
    is_spread(curve) || curve.pages(n) > SOME_PAGES
}

fn leaves_directories(curve: &Curve, n: u64) -> bool {
    is_spread(curve) || curve.span(n) > SHORT
}

/// Each page has a line of the second stage's tables, and shares one of the guest's.
fn fills_third_cache(curve: &Curve, n: u64) -> bool {
    let data = match curve.form {
        Form::Packed { .. } | Form::Jumps { .. } | Form::Dense => n,
        Form::Zero | Form::Regions { .. } => 0,
    };
    let tables = if is_spread(curve) { 3 * curve.pages(n) + 4 * n } else { 2 * curve.pages(n) };
    data.saturating_add(tables) > SOME_LINES
}

fn tlb(setting: &mut Setting, ways: u32, index: Index) {
    if let Some(array) = setting.machine.translation.tlb.l2.first_mut()
        && let Ok(shape) = Shape::new(array.shape.entries(), ways).and_then(|shape| shape.indexed_by(index))
    {
        array.shape = shape;
    }
}

fn directories(setting: &mut Setting, entries: u32) {
    let level = setting.machine.translation.psc.levels.iter_mut().find(|level| level.tables == Level::new(0));
    if let (Some(level), Ok(shape)) = (level, Shape::new(entries, 0)) {
        level.shape = shape;
    }
}

fn outer(setting: &mut Setting, kib: u32) {
    let line = setting.machine.caches.line_bytes.max(1) as u32;
    reshape(setting, 2, |shape| {
        Shape::new(kib * (1024 / line), shape.ways()).and_then(|made| made.replaced_by(shape.replacement()))
    });
}

fn replaced(setting: &mut Setting, level: usize, replacement: Replacement) {
    reshape(setting, level, |shape| shape.replaced_by(replacement));
}

fn reshape(setting: &mut Setting, level: usize, make: impl Fn(Shape) -> Result<Shape, mmu_core::assoc::ShapeError>) {
    if let Some(level) = setting.machine.caches.levels.get_mut(level)
        && let Ok(shape) = make(level.shape).and_then(|shape| shape.indexed_by(level.shape.index()))
    {
        level.shape = shape;
    }
}

/// Properties of structures. What a vendor has published (entries of first-level TLBs, sizes of the inner caches) is none of them.
pub const STRUCTURES: &[Structure] = &[
    Structure {
        spot: inner("tlb", 0, "l2 organisation"),
        from: "pages and one frame from 1,280 to 3,072",
        noticed: fills_tlb,
        values: &[
            ("16 ways", |setting| tlb(setting, 16, Index::Modulo)),
            ("16 ways, hashed", |setting| tlb(setting, 16, Index::Hashed)),
            ("32 ways, hashed", |setting| tlb(setting, 32, Index::Hashed)),
        ],
    },
    Structure {
        spot: spot("tlb", "inclusion"),
        from: "where walks begin: pages, one frame, jumps",
        noticed: leaves_first_tlb,
        values: &[
            ("non-inclusive", |setting| setting.machine.translation.tlb.inclusion = Inclusion::NonInclusive),
            ("exclusive", |setting| setting.machine.translation.tlb.inclusion = Inclusion::Exclusive),
        ],
    },
    Structure {
        spot: inner("psc", 0, "entries"),
        from: "directories: regions of 2 MiB, pages and one frame beyond",
        noticed: leaves_directories,
        values: &[
            ("16", |setting| directories(setting, 16)),
            ("32", |setting| directories(setting, 32)),
            ("64", |setting| directories(setting, 64)),
        ],
    },
    Structure {
        spot: inner("cache", 2, "kib"),
        from: "the share of the third cache: whatever leaves it",
        noticed: fills_third_cache,
        values: &[
            ("32768", |setting| outer(setting, 32_768)),
            ("16384", |setting| outer(setting, 16_384)),
            ("8192", |setting| outer(setting, 8192)),
        ],
    },
    Structure {
        spot: inner("cache", 2, "replacement"),
        from: "how the third cache is left",
        noticed: fills_third_cache,
        values: &[
            ("lru", |setting| replaced(setting, 2, Replacement::Lru)),
            ("nru", |setting| replaced(setting, 2, Replacement::Nru)),
        ],
    },
    Structure {
        spot: spot("surroundings", "used"),
        from: "memory that the guest has had in use: pages from 2,560 to 16,384",
        noticed: leaves_first_tlb,
        values: &[
            ("1 GiB", |setting| setting.around.used = 1 << 30),
            ("4 GiB", |setting| setting.around.used = 4 << 30),
            ("8 GiB", |setting| setting.around.used = 8 << 30),
        ],
    },
    Structure {
        spot: spot("surroundings", "spread"),
        from: "frames of tables that are somebody else's: regions of 2 MiB",
        noticed: leaves_first_tlb,
        values: &[
            ("0", |setting| setting.around.spread = 0),
            ("2", |setting| setting.around.spread = 2),
            ("3", |setting| setting.around.spread = 3),
        ],
    },
];

#[cfg(test)]
mod tests {
    use arch_x86_ept::{Ept, EptConfig, LongMode, LongModeConfig};

    use super::*;
    use crate::chase::{Counts, Effort};
    use crate::prediction::placements;

    fn counts(setting: &Setting, curve: &Curve, n: u64) -> Counts {
        let one: LongMode = LongModeConfig::new().max_phys_addr(52).build().unwrap();
        let two: Ept = EptConfig::new().max_phys_addr(52).build().unwrap();
        placements(&setting.machine, (one, two), setting.around, (curve, n), (1, Effort::Whole), 1).unwrap()
    }

    /// What a search spares itself would have told it nothing.
    #[test]
    fn structures_that_a_point_does_not_notice_change_nothing_there() {
        let machine = Machine::builtin("intel-granite-rapids-host").unwrap();
        let neutral = Setting { machine, around: Surroundings::default() };
        let points = [
            ("dense4k", 32),
            ("dense4k", 512),
            ("dense4k", 5461),
            ("zero4k", 4096),
            ("packed64_4k", 15_872),
            ("packed64_thp", 2048),
            ("jmp_4k", 512),
            ("pde_2M_T1024", 16),
        ];
        for (name, n) in points {
            let curve: Curve = name.parse().unwrap();
            for structure in STRUCTURES.iter().filter(|structure| !(structure.noticed)(&curve, n)) {
                let of = |value: &Value| {
                    let mut setting = neutral.clone();
                    value.1(&mut setting);
                    counts(&setting, &curve, n)
                };
                let first = of(&structure.values[0]);
                for value in &structure.values[1..] {
                    assert_eq!(of(value), first, "{name} {n}: {} {}", structure.spot, value.0);
                }
            }
        }
        let dense: Curve = "dense4k".parse().unwrap();
        let noticed = |n| STRUCTURES.iter().filter(|structure| (structure.noticed)(&dense, n)).count();
        assert_eq!((noticed(32), noticed(64), noticed(65_536)), (0, 3, STRUCTURES.len()));
    }
}
