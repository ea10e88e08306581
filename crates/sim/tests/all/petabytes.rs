//! Sizes that only progressions can hold: 4 PiB of tables on three formats, terabytes through the engine with cycles that a formula says
//! beforehand, and the same runs entry by entry where that is still possible.

use crate::common::{arm64, power, small_vm, x86};
use arch_arm64_s2::{Features, GranuleSupport, Stage2Config};
use arch_ppc_radix::{BasePage, Radix};
use arch_x86_ept::{EptConfig, WalkLength};
use mmu_core::image::RamRange;
use mmu_core::memory::{Masks, Progression, TableMemory};
use mmu_core::{ByteUnits, Bytes, Cycles, Format, Gpa, GpaRange, Hpa, Leaf, Level, PageSize, Perms};
use mmu_sim::arch::Arch;
use mmu_sim::engine::{Costs, GuestPaging, HostCounters, Runs, Sim, Stopped};
use mmu_sim::experiment::zap::{Strategy, Target, strategies};
use mmu_sim::experiment::{Platform, VmSpec, build};
use mmu_sim::protocols::{memslot, notifier};
use mmu_sim::workload::Workload;

/// Host memory that 4 PiB of tables may take.
const MOST: u64 = 100_000_000;

/// The tables of a guest that is mapped from 0 on, level by level. They lie where guest pages lie too: no format has bits for both, and nobody
/// reads the pages.
struct Guest<F> {
    format: F,
    memory: TableMemory,
    /// First table and entries in use, by level.
    levels: Vec<(Hpa, u64)>,
}

impl<F: Format> Guest<F> {
    fn mapped(format: F, bytes: u64) -> Self {
        let geometry = *format.geometry();
        let pool = RamRange { start: Hpa::new(1.TiB()), bytes: 16.TiB() };
        let mut memory = TableMemory::new(pool, format.present_mask()).unwrap();
        let (mut entries, mut below, mut levels) = (bytes >> geometry.shift(Level::LAST), None, Vec::new());
        for level in (0..geometry.levels() as u8).map(Level::new) {
            let per_table = geometry.entries(level) as u64;
            let words = (geometry.table_bytes(level) / 8) as usize;
            let first = memory.alloc_run(level, words, entries.div_ceil(per_table), Progression::ZERO).unwrap();
            match below {
                None => fill_leaves(&format, &mut memory, first, entries),
                Some(table) => {
                    let word = format.encode_table(level, table).unwrap();
                    let step = geometry.table_bytes(level.down().unwrap());
                    memory.fill_run(first, entries, Progression::new(word, step)).unwrap();
                }
            }
            levels.push((first, entries));
            (below, entries) = (Some(first), entries.div_ceil(per_table));
        }
        Self { format, memory, levels }
    }

    fn leaves(&self) -> (Hpa, u64) {
        self.levels[0]
    }

    /// Where a walk from the root finds the leaf of an address.
    fn leaf_at(&self, gpa: u64) -> Hpa {
        let geometry = self.format.geometry();
        let root = geometry.root();
        let mut table = self.levels[root.index()].0;
        let mut level = root;
        while let Some(down) = level.down() {
            let word = self.memory.read(table + 8 * geometry.index(level, gpa) as u64).unwrap();
            table = self.format.next_table(level, word);
            level = down;
        }
        table + 8 * geometry.index(Level::LAST, gpa) as u64
    }

    fn small(&self, what: &str) {
        let bytes = self.memory.footprint();
        assert!(bytes < MOST, "{what}: {bytes} bytes");
    }
}

fn leaf<F: Format>(format: &F, level: Level, output: Hpa) -> u64 {
    let leaf = Leaf { output, perms: Perms::RWX.with(Perms::DIRTY), accessed: true, attrs: F::Attrs::default() };
    format.encode_leaf(level, &leaf).unwrap()
}

fn fill_leaves<F: Format>(format: &F, memory: &mut TableMemory, first: Hpa, leaves: u64) {
    let page = format.geometry().page_size(Level::LAST).bytes();
    let mut done = 0;
    while done < leaves {
        let output = Hpa::new(done * page);
        let run = format.progression(Level::LAST, output).clamp(1, leaves - done);
        memory.fill_run(first + 8 * done, run, Progression::new(leaf(format, Level::LAST, output), page)).unwrap();
        done += run;
    }
}

/// The masks that turn one word into another, for all words that differ from it in their address only.
fn masks(old: u64, new: u64) -> Masks {
    Masks { keep: !(old & !new), set: new & !old }
}

/// Built, aged, write-protected, split and coalesced here and there, cleared as walks that stop and as walks that do not, freed.
fn four_pebibytes<F: Format>(format: F) {
    let mut guest = Guest::mapped(format, 4.PiB());
    let (geometry, (first, leaves)) = (*format.geometry(), guest.leaves());
    let page = geometry.page_size(Level::LAST).bytes();
    guest.small("built");
    // A root of few entries is plain words from the start.
    let dense = guest.memory.forms().dense;
    for gpa in [0, 1.PiB(), 4.PiB() - page, 3.PiB() + 123 * page] {
        let at = guest.leaf_at(gpa);
        assert_eq!(at, first + 8 * (gpa / page), "{gpa:#x}");
        assert_eq!(guest.memory.read(at), Ok(leaf(&format, Level::LAST, Hpa::new(gpa))), "{gpa:#x}");
    }

    let word = leaf(&format, Level::LAST, Hpa::new(0));
    let old = word & !format.accessed_mask();
    assert_eq!(guest.memory.map_run(first, leaves, masks(word, old)), Ok(leaves), "every page was young");
    assert_eq!(guest.memory.map_run(first, leaves, masks(word, old)), Ok(0));
    let protected = format.write_protect(old);
    assert_eq!(guest.memory.map_run(first, leaves, masks(old, protected)), Ok(leaves), "every page was writable");
    guest.small("aged and write-protected");

    coalesce_and_split(&mut guest);
    guest.small("split and coalesced here and there");

    // A walk that stops every so often, at no border of a table; then one that does not stop.
    let half = leaves / 2;
    let stride = half / 300 + 7;
    let mut done = 0;
    while done < half {
        let n = stride.min(half - done);
        guest.memory.fill_run(first + 8 * done, n, Progression::ZERO).unwrap();
        done += n;
    }
    assert_eq!(guest.memory.read(first + 8 * (half - 1)), Ok(0));
    assert!(format.is_mapped(guest.memory.read(first + 8 * half).unwrap()));
    guest.memory.fill_run(first + 8 * half, leaves - half, Progression::ZERO).unwrap();
    assert_eq!(guest.memory.forms().dense, dense, "no leaf table is left in plain words");
    guest.small("zapped");
    for (level, &(table, entries)) in guest.levels.clone().iter().enumerate() {
        let level = Level::new(level as u8);
        guest.memory.free_run(table, entries.div_ceil(geometry.entries(level) as u64)).unwrap();
    }
    assert_eq!(guest.memory.frames(), 0);
    guest.small("freed");
}

/// Here and there a block where a table was, and back.
fn coalesce_and_split<F: Format>(guest: &mut Guest<F>) {
    let geometry = *guest.format.geometry();
    let (up, entries) = guest.levels[1];
    let level = Level::new(1);
    let (block, page) = (geometry.page_size(level).bytes(), geometry.page_size(Level::LAST).bytes());
    let words = geometry.entries(Level::LAST) as u64;
    let frames = guest.memory.frames();
    for i in 0..300 {
        // An odd multiplier visits different tables.
        let n = i * 0x9e37_79b1 % entries;
        let (at, table) = (up + 8 * n, guest.leaf_at(n * block));
        let pointer = guest.memory.xchg(at, leaf(&guest.format, level, Hpa::new(n * block))).unwrap();
        guest.memory.free(table).unwrap();
        assert!(guest.memory.read(table).is_err(), "table {n} is freed");
        let again = guest.memory.alloc(Level::LAST, words as usize).unwrap();
        let first = leaf(&guest.format, Level::LAST, Hpa::new(n * block));
        guest.memory.fill_run(again, words, Progression::new(first, page)).unwrap();
        guest.memory.write(at, guest.format.encode_table(level, again).unwrap()).unwrap();
        assert_eq!(guest.leaf_at(n * block + 3 * page), again + 24);
        assert_eq!(pointer == guest.memory.read(at).unwrap(), again == table, "table {n}");
    }
    assert_eq!(guest.memory.frames(), frames);
}

#[test]
fn four_pebibytes_of_ept() {
    four_pebibytes(EptConfig::new().walk_length(WalkLength::Five).max_phys_addr(52).build().unwrap());
}

#[test]
fn four_pebibytes_of_arm_stage_two() {
    let features = Features { pa_bits: 52, granule_4k: GranuleSupport::Lpa2, ..Features::default() };
    four_pebibytes(Stage2Config { ipa_bits: 52, features, ..Default::default() }.build().unwrap());
}

#[test]
fn four_pebibytes_of_power_radix() {
    four_pebibytes(Radix::partition(BasePage::K4));
}

// ---- through the engine ----

/// What one zap did.
#[derive(PartialEq, Debug)]
struct Outcome {
    counters: HostCounters,
    finished: Cycles,
    tables: u128,
    bytes: u64,
}

fn zap<A: Arch>(platform: &Platform<A>, memory: u64, strategy: Strategy, runs: Runs) -> Outcome {
    let page = platform.arch.two().geometry().page_size(Level::LAST);
    let vm = VmSpec { workload: Workload::Idle, guest: GuestPaging::Flat, page, ..small_vm(memory, 1, 0) };
    let mut sim = build(platform, &vm).unwrap();
    sim.set_runs(runs);
    let before = *sim.world().counters();
    spawn(&mut sim, memory, strategy);
    assert_eq!(sim.run(), Stopped::Finished);
    assert_eq!(sim.world().violations(), []);
    let finished = sim.actors().map(|(_, stats)| stats.finished).max().unwrap();
    let (counters, tables) = (sim.world().counters().since(&before), sim.world().tables().digest());
    let bytes = sim.world().tables().footprint();
    Outcome { counters, finished, tables, bytes }
}

fn spawn<A: Arch>(sim: &mut Sim<A>, memory: u64, strategy: Strategy) {
    sim.spawn("zap", Cycles(0), move |host| {
        Box::pin(async move {
            match strategy.target {
                Target::Range => {
                    let range = GpaRange::new(Gpa::new(0), Bytes(memory));
                    notifier::invalidate_range(&host, range, &strategy.policy).await;
                }
                Target::Root => memslot::zap_all_fast(&host, &strategy.policy).await.unwrap(),
            }
        })
    });
}

/// Entries above the leaves that a guest of this size uses: each is read, and read again on the way down.
fn table_entries<F: Format>(format: &F, memory: u64) -> u64 {
    let geometry = format.geometry();
    let above = (1..geometry.levels() as u8).map(Level::new);
    above.map(|level| memory.div_ceil(1 << geometry.shift(level))).sum()
}

/// What a walk that never yields costs for the entries of a guest, as the costs of single entries say it.
fn closed_form<F: Format>(format: &F, costs: &Costs, memory: u64) -> (u64, Cycles) {
    let leaves = memory >> format.geometry().shift(Level::LAST);
    let visits = leaves + 2 * table_entries(format, memory);
    (visits, costs.visit.times(visits) + (costs.atomic + costs.release_leaf).times(leaves))
}

fn terabytes_cost_what_the_formula_says<A: Arch>(platform: &Platform<A>, size: u64) {
    let (two, costs) = (platform.arch.two(), &platform.costs);
    let never = strategies()[0];
    assert_eq!(never.name, "range, never yields");
    let beside = [size, 2 * size, 4 * size].map(|memory| {
        let (done, (visits, cycles)) = (zap(platform, memory, never, Runs::Whole), closed_form(two, costs, memory));
        let leaves = memory >> two.geometry().shift(Level::LAST);
        assert_eq!((done.counters.visits, done.counters.zapped_leaves), (visits, leaves), "{memory:#x}");
        assert!(done.bytes < MOST, "{memory:#x}: {} bytes", done.bytes);
        let beside = done.finished.0 - cycles.0 - costs.page_release.times(leaves).0;
        assert!(beside < cycles.0 / 1000, "{memory:#x}: {beside} of {cycles} cycles are nobody's");
        beside
    });
    // Locks and the notifier cost the same at every size; Arm flushes by ranges of a fixed size.
    let [first, second, third] = beside;
    assert_eq!(
        third - second,
        2 * (second - first),
        "what is beside the entries and pages grows in proportion: {beside:?}"
    );
}

#[test]
fn terabytes_cost_what_the_formula_says_on_every_format() {
    terabytes_cost_what_the_formula_says(&x86(), 1.TiB());
    terabytes_cost_what_the_formula_says(&arm64(), 256.GiB());
    terabytes_cost_what_the_formula_says(&power(), 1.TiB());
}

fn runs_are_their_entries<A: Arch>(platform: &Platform<A>, memory: u64) {
    for strategy in strategies() {
        let run = |runs| Outcome { bytes: 0, ..zap(platform, memory, strategy, runs) };
        assert_eq!(run(Runs::Whole), run(Runs::Single), "{}", strategy.name);
    }
}

#[test]
fn a_zap_in_runs_is_the_zap_of_its_entries_on_every_format() {
    runs_are_their_entries(&x86(), 192.MiB());
    runs_are_their_entries(&arm64(), 192.MiB());
    runs_are_their_entries(&power(), 2.GiB());
}

/// Work behind a yield goes on where it stopped without a table in plain words.
#[test]
fn yields_do_not_cost_memory() {
    let mut platform = x86();
    platform.costs.tick_period = Cycles(1_000_003);
    let page = PageSize::SIZE_4K;
    for strategy in strategies() {
        let vm = VmSpec { workload: Workload::Idle, guest: GuestPaging::Flat, page, ..small_vm(16.GiB(), 1, 0) };
        let mut sim = build(&platform, &vm).unwrap();
        let before = sim.world().tables().footprint();
        spawn(&mut sim, 16.GiB(), strategy);
        assert_eq!(sim.run(), Stopped::Finished);
        let (forms, after) = (sim.world().tables().forms(), sim.world().tables().footprint());
        assert!(forms.dense < 8, "{}: {forms:?}", strategy.name);
        assert!(after < before + 4.MiB(), "{}: {after} bytes after {before}", strategy.name);
    }
}
