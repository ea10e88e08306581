//! What is measured.

use std::fmt;
use std::hint::black_box;
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use mmusim::arm64::{Features, GranuleSupport, Stage2Config};
use mmusim::core::image::RamRange;
use mmusim::core::memory::{Masks, Progression, TableMemory};
use mmusim::core::{Format, Leaf};
use mmusim::power::{BasePage, Radix};
use mmusim::sim::engine::{Sim, Stopped};
use mmusim::sim::experiment::build;
use mmusim::sim::protocols::aging::{AgingPolicy, clear_young};
use mmusim::sim::protocols::dirty_log::{DirtyLog, DirtyPolicy, LogKind, Tracking, disable, enable, get_dirty_log};
use mmusim::sim::protocols::notifier;
use mmusim::x86::{EptConfig, WalkLength};
use mmusim::{
    Arch, ByteUnits, Bytes, Cycles, Gpa, GpaRange, GuestPaging, Hpa, Level, Machine, Mix, PageSize, PatternSpec, Perms,
    Platform, Populate, Seed, Threads, VmSpec, Workload, arch, strategies,
};

use super::scatter::Scatter;
use super::{growth, petabytes, touched};

/// Formats that hold 4 PiB.
pub const FORMATS: [&str; 3] = ["ept", "arm64", "radix"];
/// What is done with them.
pub const WORK: [&str; 6] = ["build", "age", "protect", "zap", "steps", "free"];
/// What the host does while vCPUs run.
pub const HOSTS: [&str; 4] = ["none", "zap", "age", "log"];
/// Zap strategies by number.
pub const STRATEGIES: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
/// Zaps by name and number among the strategies.
pub const ZAPS: [(&str, usize); 4] =
    [("range, never yields", 0), ("range, 5.12", 2), ("flush per table, 5.17", 4), ("four passes, 6.9", 9)];

/// One thing that is measured.
#[derive(Clone, Copy)]
pub enum Case {
    /// 4 PiB in table memory.
    Tables { format: &'static str, work: &'static str },
    /// 4 PiB, or so much memory, through the engine: a piece of work, or the number of a zap strategy.
    Engine { format: &'static str, memory: u64, work: &'static str },
    /// One page in a hundred of so much memory is touched.
    Touched { memory: u64 },
    /// A zap of everything.
    Zap { memory: u64, strategy: usize },
    /// Random accesses to a terabyte.
    Busy { vcpus: usize, host: &'static str, threads: usize },
    /// Host actors beside each other.
    Actors { actors: u64 },
    /// Explored executions of two threads with so many steps each.
    Depth { steps: u64 },
    /// vCPUs and a zapping host after the same pages, in windows of at least so many cycles.
    Contended { window: u64 },
    /// Plain words cleared.
    Words { ours: &'static str },
}

/// What a case came to.
#[derive(Clone, Copy)]
pub struct Measured {
    pub seconds: f64,
    /// Simulated vCPU cycles, or words.
    pub cycles: u64,
    /// Of a run of the engine, seconds in which vCPUs ran, their doings were applied, and the host ran.
    pub phases: [f64; 3],
    /// Of a run of the engine.
    pub windows: u64,
}

impl Measured {
    /// Cycles a second.
    pub fn rate(self) -> f64 {
        self.cycles as f64 / self.seconds
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seconds, cycles, phases: [vcpus, applying, host], windows } = self;
        write!(f, "{seconds} {cycles} {vcpus} {applying} {host} {windows}")
    }
}

impl FromStr for Measured {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let float = |text: &str| text.parse::<f64>().map_err(|_| format!("{text}: no seconds"));
        let number = |text: &str| text.parse::<u64>().map_err(|_| format!("{text}: no number"));
        let [seconds, cycles, vcpus, applying, host, windows] = *text.split(' ').collect::<Vec<_>>() else {
            return Err(format!("{text}: six figures"));
        };
        let phases = [float(vcpus)?, float(applying)?, float(host)?];
        Ok(Self { seconds: float(seconds)?, cycles: number(cycles)?, phases, windows: number(windows)? })
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Case::Tables { format, work } => write!(f, "tables {format} {work}"),
            Case::Engine { format, memory, work } => write!(f, "engine {format} {memory} {work}"),
            Case::Touched { memory } => write!(f, "touched {memory}"),
            Case::Zap { memory, strategy } => write!(f, "zap {memory} {strategy}"),
            Case::Busy { vcpus, host, threads } => write!(f, "busy {vcpus} {host} {threads}"),
            Case::Actors { actors } => write!(f, "actors {actors}"),
            Case::Depth { steps } => write!(f, "depth {steps}"),
            Case::Contended { window } => write!(f, "contended {window}"),
            Case::Words { ours } => write!(f, "words {ours}"),
        }
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = |wanted: &str, of: &[&'static str]| {
            of.iter().copied().find(|&name| name == wanted).ok_or_else(|| format!("{wanted}: not known"))
        };
        let number = |text: &str| text.parse::<u64>().map_err(|_| format!("{text}: no number"));
        Ok(match *text.split(' ').collect::<Vec<_>>() {
            ["tables", format, work] => Case::Tables { format: name(format, &FORMATS)?, work: name(work, &WORK)? },
            ["engine", format, memory, work] => {
                let (format, memory) = (name(format, &FORMATS)?, number(memory)?);
                let work = name(work, &petabytes::WORK).or_else(|_| name(work, &STRATEGIES))?;
                Case::Engine { format, memory, work }
            }
            ["touched", memory] => Case::Touched { memory: number(memory)? },
            ["zap", memory, strategy] => Case::Zap { memory: number(memory)?, strategy: number(strategy)? as usize },
            ["busy", vcpus, host, threads] => Case::Busy {
                vcpus: number(vcpus)? as usize,
                host: name(host, &HOSTS)?,
                threads: number(threads)? as usize,
            },
            ["actors", actors] => Case::Actors { actors: number(actors)?.max(1) },
            ["depth", steps] => Case::Depth { steps: number(steps)?.max(1) },
            ["contended", window] => Case::Contended { window: number(window)? },
            ["words", ours] => Case::Words { ours: name(ours, &["vector", "tables"])? },
            _ => return Err(format!("{text}: no case")),
        })
    }
}

/// One small case of each sort.
pub fn smallest() -> Vec<Case> {
    let mut all: Vec<Case> = FORMATS.map(|format| Case::Tables { format, work: "steps" }).into();
    for format in FORMATS {
        let works = petabytes::WORK.into_iter().chain(STRATEGIES);
        all.extend(works.map(|work| Case::Engine { format, memory: 4.GiB(), work }));
    }
    all.push(Case::Touched { memory: 1.GiB() });
    all.push(Case::Zap { memory: 1.GiB(), strategy: 9 });
    all.extend(HOSTS.map(|host| Case::Busy { vcpus: 1, host, threads: 1 }));
    all.extend([Case::Actors { actors: 512 }, Case::Depth { steps: 1000 }]);
    all.push(Case::Contended { window: 3200 });
    all.push(Case::Words { ours: "tables" });
    all
}

impl Case {
    /// Does it.
    pub fn run(self) -> Measured {
        match self {
            Case::Tables { format, work } => tables(format, work),
            Case::Engine { format, memory, work } => petabytes::run(format, memory, work),
            Case::Touched { memory } => touched::run(memory),
            Case::Zap { memory, strategy } => zap(memory, strategy),
            Case::Busy { vcpus, host, threads } => busy(vcpus, host, threads),
            Case::Actors { actors } => growth::actors(sim(&vm(1.GiB(), 1, Workload::Idle)), actors),
            Case::Depth { steps } => growth::depth(steps),
            Case::Contended { window } => contended(window),
            Case::Words { ours } => words(ours == "tables"),
        }
    }
}

pub(super) fn timed(body: impl FnOnce() -> u64) -> Measured {
    let start = Instant::now();
    let cycles = black_box(body());
    Measured { seconds: start.elapsed().as_secs_f64(), cycles, phases: [0.0; 3], windows: 0 }
}

// ---- table memory ----

fn tables(format: &str, work: &str) -> Measured {
    match format {
        "ept" => {
            tables_of(EptConfig::new().walk_length(WalkLength::Five).max_phys_addr(52).build().expect("legal"), work)
        }
        "arm64" => {
            let features = Features { pa_bits: 52, granule_4k: GranuleSupport::Lpa2, ..Features::default() };
            tables_of(Stage2Config { ipa_bits: 52, features, ..Default::default() }.build().expect("legal"), work)
        }
        _ => tables_of(Radix::partition(BasePage::K4), work),
    }
}

fn tables_of<F: Format>(format: F, work: &str) -> Measured {
    let geometry = *format.geometry();
    let leaves = 4.PiB() >> geometry.shift(Level::LAST);
    let pool = RamRange { start: Hpa::new(1.TiB()), bytes: 16.TiB() };
    let mut memory = TableMemory::new(pool, format.present_mask()).expect("an aligned pool");
    let mut first = Hpa::new(0);
    let built = timed(|| {
        first = fill(&format, &mut memory, leaves);
        leaves
    });
    let word = leaf(&format, Hpa::new(0));
    let old = word & !format.accessed_mask();
    let masks = |from: u64, to: u64| Masks { keep: !(from & !to), set: to & !from };
    let clear = |memory: &mut TableMemory, steps: u64| {
        let stride = leaves / steps + 7 * u64::from(steps > 1);
        let mut done = 0;
        while done < leaves {
            let n = stride.min(leaves - done);
            memory.fill_run(first + 8 * done, n, Progression::ZERO).expect("live tables");
            done += n;
        }
        leaves
    };
    match work {
        "build" => built,
        "age" => timed(|| memory.map_run(first, leaves, masks(word, old)).expect("live tables")),
        "protect" => {
            timed(|| memory.map_run(first, leaves, masks(word, format.write_protect(word))).expect("live tables"))
        }
        "zap" => timed(|| clear(&mut memory, 1)),
        "steps" => timed(|| clear(&mut memory, 5000)),
        _ => timed(|| {
            memory.free_run(first, leaves / geometry.entries(Level::LAST) as u64).expect("live tables");
            leaves
        }),
    }
}

fn leaf<F: Format>(format: &F, output: Hpa) -> u64 {
    let leaf = Leaf { output, perms: Perms::RWX.with(Perms::DIRTY), accessed: true, attrs: F::Attrs::default() };
    format.encode_leaf(Level::LAST, &leaf).expect("an aligned page")
}

/// All levels, each pointing to the one below; the first leaf table.
fn fill<F: Format>(format: &F, memory: &mut TableMemory, leaves: u64) -> Hpa {
    let geometry = *format.geometry();
    let page = geometry.page_size(Level::LAST).bytes();
    let alloc = |memory: &mut TableMemory, level: Level, entries: u64| {
        let tables = entries.div_ceil(geometry.entries(level) as u64);
        memory.alloc_run(level, (geometry.table_bytes(level) / 8) as usize, tables, Progression::ZERO).expect("room")
    };
    let first = alloc(memory, Level::LAST, leaves);
    let mut done = 0;
    while done < leaves {
        let output = Hpa::new(done * page);
        let run = format.progression(Level::LAST, output).clamp(1, leaves - done);
        memory.fill_run(first + 8 * done, run, Progression::new(leaf(format, output), page)).expect("live tables");
        done += run;
    }
    let (mut below, mut entries) = (first, leaves.div_ceil(geometry.entries(Level::LAST) as u64));
    for level in (1..geometry.levels() as u8).map(Level::new) {
        let table = alloc(memory, level, entries);
        let step = geometry.table_bytes(level.down().expect("above the last"));
        let word = format.encode_table(level, below).expect("an aligned table");
        memory.fill_run(table, entries, Progression::new(word, step)).expect("live tables");
        (below, entries) = (table, entries.div_ceil(geometry.entries(level) as u64));
    }
    first
}

/// 2^25 words that are no progression.
fn words(ours: bool) -> Measured {
    const WORDS: u64 = 1 << 25;
    let mut scatter = Scatter(1);
    let mut word = move || scatter.below(1 << 27) << 12 | 7;
    if !ours {
        let mut words: Vec<u64> = (0..WORDS).map(|_| word()).collect();
        return timed(|| {
            black_box(words.iter_mut().map(std::mem::take).fold(0, |sum, old| sum ^ old));
            black_box(&words);
            WORDS
        });
    }
    let pool = RamRange { start: Hpa::new(1.TiB()), bytes: 1.TiB() };
    let mut memory = TableMemory::new(pool, 7).expect("an aligned pool");
    let first = memory.alloc_run(Level::LAST, 512, WORDS / 512, Progression::ZERO).expect("room");
    for w in 0..WORDS {
        memory.write(first + 8 * w, word()).expect("live tables");
    }
    timed(|| {
        for table in 0..WORDS / 512 {
            memory.fill_run(first + 4096 * table, 512, Progression::ZERO).expect("live tables");
        }
        WORDS
    })
}

// ---- the engine ----

fn sim(vm: &VmSpec) -> Sim<impl Arch> {
    let machine = Machine::builtin("intel-granite-rapids-host").expect("a machine of ours");
    let platform = Platform::new(arch::x86(&machine, vm.memory).expect("its own architecture"), &machine);
    build(&platform, vm).expect("a legal machine")
}

fn vm(memory: u64, vcpus: usize, workload: Workload) -> VmSpec {
    let (memory, page, populate) = (Bytes(memory), PageSize::SIZE_4K, Populate::Mapped);
    VmSpec { memory, vcpus, page, guest: GuestPaging::Flat, populate, workload, seed: Seed(1) }
}

pub(super) fn finish<A: Arch>(sim: &mut Sim<A>) {
    assert_eq!(sim.run(), Stopped::Finished);
    assert_eq!(sim.failure(), None);
}

fn zap(memory: u64, strategy: usize) -> Measured {
    let mut sim = sim(&vm(memory, 8, Workload::Idle));
    super::zap::spawn(&mut sim, memory, strategy);
    timed(|| {
        finish(&mut sim);
        memory
    })
}

/// Since the first call.
fn clock() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// Accesses of all vCPUs together, so that every case simulates about as much.
const ACCESSES: u64 = 1 << 19;

fn busy(vcpus: usize, host: &'static str, threads: usize) -> Measured {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads can be had");
    pool.install(|| busy_here(vcpus, host, threads))
}

fn busy_here(vcpus: usize, host: &'static str, threads: usize) -> Measured {
    let each = ACCESSES / vcpus as u64;
    let pattern = PatternSpec { bytes: 1.TiB(), mix: Mix::Uniform, writes_percent: 30, accesses: each };
    let mut sim = sim(&vm(1.TiB(), vcpus, Workload::Pattern(pattern)));
    // Random accesses to a terabyte take some hundred cycles each.
    let span = each * 300;
    match host {
        "zap" => {
            sim.spawn("zap", Cycles(10_000), move |host| {
                Box::pin(async move {
                    for step in 0..64 {
                        let range = GpaRange::new(Gpa::new(step * 16.GiB()), Bytes(2.MiB()));
                        notifier::invalidate_range(&host, range, &strategies()[2].policy).await;
                        host.sleep(Cycles(span / 64)).await;
                    }
                })
            });
        }
        "age" => {
            sim.spawn("age", Cycles(10_000), move |host| {
                Box::pin(async move {
                    for step in 0..64 {
                        let range = GpaRange::new(Gpa::new(step * 16.GiB()), Bytes(64.MiB()));
                        clear_young(&host, range, &AgingPolicy::V6_15).await;
                        host.sleep(Cycles(span / 64)).await;
                    }
                })
            });
        }
        "log" => {
            let slot = GpaRange::new(Gpa::new(0), Bytes(16.GiB()));
            let log = DirtyLog::new(slot, sim.new_var(0), PageSize::SIZE_4K, LogKind::Bitmap);
            let policy = DirtyPolicy { tracking: Tracking::Scan, ..DirtyPolicy::X86_PML };
            sim.spawn("log", Cycles(10_000), move |host| {
                Box::pin(async move {
                    enable(&host, &log, &policy).await.expect("flags that tell of writes");
                    for _ in 0..8 {
                        host.sleep(Cycles(span / 8)).await;
                        black_box(get_dirty_log(&host, &log, &policy).await.expect("a log that is on"));
                    }
                    disable(&host, &log, &policy, PageSize::SIZE_4K).await.expect("a log that is on");
                })
            });
        }
        _ => {}
    }
    if threads > 1 {
        sim.set_threads(Threads::Pool);
    }
    run(&mut sim)
}

/// vCPUs that contend for a gibibyte with a host that takes it away piece by piece, and for the lock when they fault it in again.
pub const CONTENDERS: usize = 16;

fn contended(window: u64) -> Measured {
    let accesses = ACCESSES / 16 / CONTENDERS as u64;
    let pattern = PatternSpec { bytes: 1.GiB(), mix: Mix::Uniform, writes_percent: 30, accesses };
    let mut sim = sim(&vm(1.GiB(), CONTENDERS, Workload::Pattern(pattern)));
    sim.set_window(Cycles(window));
    sim.spawn("zap", Cycles(10_000), move |host| {
        Box::pin(async move {
            for step in 0..256 {
                let range = GpaRange::new(Gpa::new(step * 37 % 512 * 2.MiB()), Bytes(2.MiB()));
                notifier::invalidate_range(&host, range, &strategies()[2].policy).await;
            }
        })
    });
    run(&mut sim)
}

fn run<A: Arch>(sim: &mut Sim<A>) -> Measured {
    sim.time_phases(clock);
    let measured = timed(|| {
        finish(sim);
        sim.vcpu_stats().iter().map(|vcpu| vcpu.finished.0).sum()
    });
    let times = sim.phase_times();
    let phases = [times.vcpus, times.applying, times.host].map(|phase| phase.as_secs_f64());
    Measured { phases, windows: sim.windows(), ..measured }
}
