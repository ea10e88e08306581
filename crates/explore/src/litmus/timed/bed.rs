//! The virtual machine of a test: where its words lie.
//!
//! A page of the test has the same number of a physical and of an intermediate page as in its words, so that entries mean in the engine what they
//! mean in the test. Tables lie in the engine's table memory. Guest tables are words of host memory which the second stage maps beyond
//! the pages of the test:
//!
//! ```text
//! virtual     table t of the test, entry i   (t + 1) << 21 | i << 12
//! intermediate  page n of the test           (n + 1) << 12
//!               guest table k                1 GiB + (k << 12)     root, level 1, level 2, then the last-level tables
//! physical      page n of the test           (n + 1) << 12
//! ```

use std::cell::RefCell;
use std::rc::Rc;

use arch_arm64_s2::{HardwareUpdates, S2Attrs, Stage2};
use mmu_core::{Bytes, Cycles, Format, Gpa, Gva, Hpa, Leaf, Level, PageSize, Perms};
use mmu_sim::engine::{GuestPaging, Host, Sim, Stopped, VcpuId};
use mmu_sim::experiment::{Platform, Populate, VmSpec, build_without_threads};
use mmu_sim::rng::Seed;
use mmu_sim::workload::Workload;

use super::super::test::{Layout, Loc, Test};
use super::super::words::{Managed, Words};
use super::{Arm, TimedError, TimedMachine};

const PAGE: u64 = 4096;
/// Intermediate address of the first guest table.
const GUEST_TABLES: Gpa = Gpa::new(1 << 30);
/// Root, levels 1 and 2.
const UPPER: u64 = 3;

/// Where the words of a test are.
#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    /// Host address of the word of each table entry.
    entries: Vec<Hpa>,
    /// Words that differ in the engine: pointers to tables, in the test and in the engine.
    pointers: Vec<(u64, u64)>,
    /// Virtual address of each virtual page.
    virtuals: Vec<Gva>,
}

impl Places {
    pub(super) fn entry(&self, loc: Loc) -> Hpa {
        self.entries.get(usize::from(loc)).copied().unwrap_or_default()
    }
    pub(super) fn gva(&self, va: u8) -> Gva {
        self.virtuals.get(usize::from(va)).copied().unwrap_or_default()
    }
    /// An address in the last-level table of a virtual page that maps nothing: no test has so many pages.
    pub(super) fn beside(&self, va: u8) -> Gva {
        Gva::new(self.gva(va).raw() | 511 << 12)
    }
    /// A word of the test as the engine has it.
    pub(super) fn to_engine(&self, word: u64) -> u64 {
        self.pointers.iter().find(|(test, _)| *test == word).map_or(word, |&(_, engine)| engine)
    }
    /// The reverse.
    pub(super) fn to_test(&self, word: u64) -> u64 {
        self.pointers.iter().find(|(_, engine)| *engine == word).map_or(word, |&(test, _)| test)
    }
}

/// A test's virtual machine, ready to run.
pub(super) struct Bed {
    pub(super) sim: Sim<Arm>,
    pub(super) places: Rc<Places>,
    /// Threads start behind this moment.
    pub(super) start: Cycles,
}

/// Physical address of the word of a page.
pub(super) fn page_address(page: u32) -> u64 {
    u64::from(page + 1) * PAGE
}

fn refused(what: impl std::fmt::Display) -> TimedError {
    TimedError::Setup(what.to_string())
}

impl Bed {
    /// Builds tables and processors; thread `order[v]` runs on vCPU `v`.
    pub(super) fn new(test: &Test, seed: Seed, order: &[usize], machine: &TimedMachine) -> Result<Self, TimedError> {
        let words = &test.words;
        let platform = Platform::new(arm(words, Managed::default()), &machine.machine);
        let spec = VmSpec {
            memory: Bytes(1 << 20),
            vcpus: order.len().max(1),
            page: PageSize::SIZE_4K,
            guest: GuestPaging::Flat,
            populate: Populate::ByFaults,
            workload: Workload::Idle,
            seed,
        };
        let mut sim = build_without_threads(&platform, &spec).map_err(refused)?;
        let places = Rc::new(lay_out(&mut sim, test)?);
        for (vcpu, &number) in order.iter().enumerate() {
            let managed = test.threads.get(number).map_or(Managed::default(), |thread| thread.managed);
            sim.share_guest_tables(VcpuId(vcpu), arm(words, managed), GUEST_TABLES);
        }
        let pages = (0..).zip(&test.layout.initial[usize::from(test.layout.entries)..]);
        for (page, &word) in pages {
            sim.set_content(Hpa::new(page_address(page)), word);
        }
        let start = sim.now();
        Ok(Self { sim, places, start })
    }

    /// Every word of the test, in its order.
    pub(super) fn words(&self, test: &Test) -> Vec<u64> {
        let Layout { entries, initial, .. } = &test.layout;
        let world = self.sim.world();
        let entry = |loc| world.tables().read(self.places.entry(loc)).map_or(0, |word| self.places.to_test(word));
        let mut words: Vec<u64> = (0..*entries).map(entry).collect();
        let pages = (initial.len() - usize::from(*entries)) as u32;
        words.extend((0..pages).map(|page| self.sim.content(Hpa::new(page_address(page)))));
        words
    }
}

/// The formats of a processor that manages flags so.
fn arm(words: &Words, managed: Managed) -> Arm {
    let updates = match managed {
        Managed { dirty: true, .. } => HardwareUpdates::AccessedAndDirty,
        Managed { accessed: true, .. } => HardwareUpdates::Accessed,
        Managed { .. } => HardwareUpdates::None,
    };
    let (one, two) = words.formats(updates);
    Arm { name: "arm64", one, two }
}

/// Makes all tables with the words that the test begins with.
fn lay_out(sim: &mut Sim<Arm>, test: &Test) -> Result<Places, TimedError> {
    let layout = &test.layout;
    // The virtual pages without a table of the test have one, too.
    let last = layout.tables.len() as u64 + 1;
    let frames = sim.alloc_words((UPPER + last) * PAGE / 8).ok_or_else(|| refused("no room for tables"))?;
    let table = |number: u64| frames.first + number * PAGE;
    let gpa = |number: u64| Hpa::new(GUEST_TABLES.raw() + number * PAGE);
    let (one, two) = test.words.formats(HardwareUpdates::None);
    let mut writes: Vec<(Hpa, u64)> = Vec::new();
    let link = |level, number| one.encode_table(Level::new(level), gpa(number)).map_err(refused);
    writes.push((table(0), link(3, 1)?));
    writes.push((table(1), link(2, 2)?));
    let mut places = Places::default();
    for number in 0..last {
        let pointer = table(2) + 8 * (number + 1);
        let word = link(1, UPPER + number)?;
        if number < layout.tables.len() as u64 {
            let of_test = test.words.encode_table(number as u32).map_err(refused)?;
            places.pointers.push((of_test, word));
        } else {
            writes.push((pointer, word));
        }
    }
    places.entries = vec![Hpa::new(0); usize::from(layout.entries)];
    for (index, page) in (0u64..).zip(&layout.virtuals) {
        let number = page.table.map_or(last - 1, u64::from);
        places.virtuals.push(Gva::new((number + 1) << 21 | index << 12));
        places.entries[usize::from(page.leaf)] = table(UPPER + number) + 8 * index;
    }
    for (number, pointer) in (1u64..).zip(&layout.tables) {
        places.entries[usize::from(pointer.loc)] = table(2) + 8 * number;
    }
    let stage2 = second_stage(layout, &two, UPPER + last, frames.first)?;
    let made = Rc::new(RefCell::new(Vec::new()));
    let done = made.clone();
    sim.spawn("tables", Cycles::ZERO, move |host| {
        Box::pin(async move {
            for (at, word) in writes {
                host.write(at, word).await;
            }
            for (gpa, word, loc) in stage2 {
                let at = leaf_entry(&host, gpa).await;
                host.write(at, word).await;
                done.borrow_mut().push((loc, at));
            }
        })
    });
    if sim.run() != Stopped::Finished {
        return Err(TimedError::Deadlock);
    }
    for &(loc, at) in made.borrow().iter() {
        if let Some(loc) = loc {
            places.entries[usize::from(loc)] = at;
        }
    }
    write_initial(sim, test, &places)?;
    Ok(places)
}

/// The leaves of the second stage: address, word, and whose word of the test it is.
fn second_stage(
    layout: &Layout,
    two: &Stage2,
    tables: u64,
    first: Hpa,
) -> Result<Vec<(Gpa, u64, Option<Loc>)>, TimedError> {
    let leaf = |output: Hpa| {
        let perms = Perms::R | Perms::W | Perms::DIRTY;
        let leaf = Leaf { output, perms, accessed: true, attrs: S2Attrs::default() };
        two.encode_leaf(Level::LAST, &leaf).map_err(refused)
    };
    let mut leaves = Vec::new();
    for number in 0..tables {
        leaves.push((GUEST_TABLES + number * PAGE, leaf(first + number * PAGE)?, None));
    }
    for page in 0..layout.pages.len() as u32 {
        let at = page_address(page);
        match &layout.second {
            None => leaves.push((Gpa::new(at), leaf(Hpa::new(at))?, None)),
            Some(_) => {
                if let Some(loc) = layout.second_entry(page) {
                    leaves.push((Gpa::new(at), 0, Some(loc)));
                }
            }
        }
    }
    Ok(leaves)
}

/// The last-level entry for an address, through tables that are made where there are none.
async fn leaf_entry(host: &Host<Stage2>, gpa: Gpa) -> Hpa {
    let format = *host.format();
    let geometry = *format.geometry();
    let (mut table, mut level) = (host.root().await, geometry.root());
    loop {
        let at = table + 8 * geometry.index(level, gpa.raw()) as u64;
        let Some(down) = level.down() else { return at };
        let word = host.read(at).await;
        table = if format.is_mapped(word) {
            format.next_table(level, word)
        } else {
            let made = host.alloc_table(down).await.unwrap_or_default();
            if let Ok(link) = format.encode_table(level, made) {
                host.write(at, link).await;
            }
            made
        };
        level = down;
    }
}

/// Writes the words that the test begins with.
fn write_initial(sim: &mut Sim<Arm>, test: &Test, places: &Places) -> Result<(), TimedError> {
    let entries = (0..test.layout.entries).zip(&test.layout.initial);
    let writes: Vec<(Hpa, u64)> = entries.map(|(loc, &word)| (places.entry(loc), places.to_engine(word))).collect();
    let now = sim.now();
    sim.spawn("entries", now, move |host| {
        Box::pin(async move {
            for (at, word) in writes {
                host.write(at, word).await;
            }
        })
    });
    if sim.run() == Stopped::Finished { Ok(()) } else { Err(TimedError::Deadlock) }
}
