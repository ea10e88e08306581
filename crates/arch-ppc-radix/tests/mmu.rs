//! Partition and process tables, quadrants, and the number of references.

use std::collections::BTreeMap;

use arch_ppc_radix::{
    BasePage, Cause, EffectiveAccess, InterruptKind, KnownTables, MmuReference, MmuStep, PartitionEntry, PowerMmu,
    ProcessEntry, PteAttrs, Radix, RcUpdate, RootWord, Target,
};
use mmu_core::image::MemoryImage;
use mmu_core::tlb::Perms;
use mmu_core::walk::{CachedTable, NoCaches, Stage, Translation, WalkCacheSet};
use mmu_core::{AccessKind, Format, Gpa, Gva, Hpa, Leaf, Level};

const PTCR: u64 = 0x10_0000;
const LPID: u32 = 5;
const PID: u32 = 3;
const PARTITION_ROOT: Hpa = Hpa::new(0x40_0000);
/// Guest real addresses; the partition maps them one to one 16 MiB further up.
const PROCESS_TABLE: Gpa = Gpa::new(0x2_0000);
const PROCESS_ROOT: Gpa = Gpa::new(0x4_0000);
const SHIFT: u64 = 0x100_0000;
const PAGE_EA: u64 = 0x1000_2000;
const PAGE_REAL: u64 = 0x9000;
const RC: u64 = 0x180;

fn leaf(output: u64, perms: Perms) -> Leaf<PteAttrs> {
    Leaf { output: Hpa::new(output), perms, accessed: true, attrs: PteAttrs::default() }
}

/// Maps one base page, with tables from `next` on.
fn map(image: &mut MemoryImage, radix: &Radix, at: impl Fn(u64) -> Hpa, root: u64, input: u64, word: u64, next: u64) {
    let mut table = root;
    for level in (1..4).rev() {
        let slot = at(table + radix.geometry().index(Level::new(level), input) as u64 * 8);
        if image.get(slot) == 0 {
            let below = next + u64::from(level) * 0x1000;
            image.set(slot, radix.encode_table(Level::new(level), Hpa::new(below)).unwrap()).unwrap();
        }
        table = image.get(slot) & 0x0fff_ffff_ffff_ff00;
    }
    image.set(at(table + radix.geometry().index(Level::LAST, input) as u64 * 8), word).unwrap();
}

/// One guest with one page, everything warm (R and C set).
fn guest() -> (MemoryImage, PowerMmu) {
    let mut image = MemoryImage::everywhere();
    let partition = Radix::partition(BasePage::K4);
    let process = Radix::process(BasePage::K4);
    let entry = PartitionEntry::radix(PARTITION_ROOT, PROCESS_TABLE, 4).unwrap();
    image.set(Hpa::new(PTCR + 16 * u64::from(LPID)), entry.tree.raw()).unwrap();
    image.set(Hpa::new(PTCR + 16 * u64::from(LPID) + 8), entry.process_table).unwrap();
    for page in 0..0x80 {
        let word = leaf((page << 12) + SHIFT, Perms::RWX | Perms::DIRTY);
        let word = partition.encode_leaf(Level::LAST, &word).unwrap();
        map(&mut image, &partition, Hpa::new, PARTITION_ROOT.raw(), page << 12, word, 0x50_0000);
    }
    let host = |real: u64| Hpa::new(real + SHIFT);
    let tree = RootWord::of(Hpa::new(PROCESS_ROOT.raw())).unwrap();
    image.set(host(PROCESS_TABLE.raw() + 16 * u64::from(PID)), tree.raw()).unwrap();
    let word = process.encode_leaf(Level::LAST, &leaf(PAGE_REAL, Perms::RWX | Perms::DIRTY)).unwrap();
    map(&mut image, &process, host, PROCESS_ROOT.raw(), PAGE_EA, word, 0x6_0000);
    (image, PowerMmu::new(PTCR).unwrap().with_lpid(LPID).with_pid(PID))
}

fn steps(
    mmu: &PowerMmu,
    access: EffectiveAccess,
    known: KnownTables,
    image: &mut MemoryImage,
) -> (Vec<MmuStep>, MmuStep) {
    let mut cursor = mmu.walk_knowing(access, known);
    let mut steps = Vec::new();
    loop {
        match cursor.step(image, &mut NoCaches) {
            end @ (MmuStep::Done(_) | MmuStep::Interrupt(_)) => return (steps, end),
            step => steps.push(step),
        }
    }
}

/// The textbook's numbers; see the table in the documentation of `mmu`.
#[test]
fn a_cold_guest_access_makes_thirty_references() {
    let (mut image, mmu) = guest();
    let access = EffectiveAccess::guest(Gva::new(PAGE_EA + 0x18), AccessKind::Write);
    let (cold, end) = steps(&mmu, access, KnownTables::default(), &mut image);
    let MmuStep::Done(done) = end else { panic!("{end:?}") };
    assert_eq!(done.output, Hpa::new(PAGE_REAL + SHIFT + 0x18));
    assert_eq!((done.lpid, done.pid), (LPID, PID));
    assert_eq!(cold.len(), 30);
    assert!(cold.iter().all(|step| matches!(step, MmuStep::Read(_))));
    let MmuStep::Read(MmuReference::PartitionTable { entry: partition, .. }) = cold[0] else { panic!("{:?}", cold[0]) };
    let MmuStep::Read(MmuReference::ProcessTable { entry: process, .. }) = cold[5] else { panic!("{:?}", cold[5]) };

    let known = KnownTables { partition: Some(partition), process: None };
    assert_eq!(steps(&mmu, access, known, &mut image).0.len(), 29);
    let known = KnownTables { process: Some(process), ..known };
    assert_eq!(steps(&mmu, access, known, &mut image).0.len(), 24);

    let real = EffectiveAccess::guest_real(Gva::new(PAGE_REAL), AccessKind::Read);
    assert_eq!(steps(&mmu, real, KnownTables::default(), &mut image).0.len(), 5);
}

/// Caches for the tests: translations of guest pages, and page-walk-cache entries of the last level.
#[derive(Default)]
struct Caches {
    pages: BTreeMap<u64, Translation>,
    tables: BTreeMap<(Stage, u64), CachedTable>,
}

impl WalkCacheSet for Caches {
    fn deepest(&mut self, stage: Stage, input: u64) -> Option<CachedTable> {
        self.tables.get(&(stage, input >> 21)).copied()
    }
    fn fill(&mut self, stage: Stage, input: u64, found: CachedTable) {
        if found.level == Level::LAST && found.host.is_none() {
            self.tables.insert((stage, input >> 21), found);
        }
    }
    fn guest_physical(&mut self, gpa: Gpa) -> Option<Translation> {
        self.pages.get(&(gpa.raw() >> 12)).copied()
    }
    fn fill_guest_physical(&mut self, gpa: Gpa, translation: &Translation) {
        self.pages.insert(gpa.raw() >> 12, *translation);
    }
}

/// With warm caches a walk reads the partition-table entry, the process-table entry, and one entry of either tree.
#[test]
fn caches_shorten_the_walk() {
    let (mut image, mmu) = guest();
    let access = EffectiveAccess::guest(Gva::new(PAGE_EA), AccessKind::Read);
    let mut caches = Caches::default();
    let mut count = || {
        let (mut cursor, mut count) = (mmu.walk(access), 0);
        while let MmuStep::Read(_) | MmuStep::Update(_) = cursor.step(&mut image, &mut caches) {
            count += 1;
        }
        count
    };
    // Cold, the page walk cache fills while the walk runs: the process table's address takes 4, the other five partition-scoped
    // walks one each, since the guest lies in one 2 MiB region.
    assert_eq!((count(), count()), (1 + 4 + 1 + 4 + 5, 4));
}

#[test]
fn the_hypervisor_walks_one_tree() {
    let (mut image, mmu) = guest();
    // LPID 0 gets the guest's partition tree for its process table, and a tree of its own at real addresses.
    for word in 0..2 {
        let at = Hpa::new(PTCR + 8 * word);
        image.set(at, image.get(Hpa::new(PTCR + 16 * u64::from(LPID) + 8 * word))).unwrap();
    }
    let root = 0x80_0000;
    let tree = RootWord::of(Hpa::new(root)).unwrap();
    image.set(Hpa::new(PROCESS_TABLE.raw() + SHIFT), tree.raw()).unwrap();
    let process = Radix::process(BasePage::K64);
    let word = process.encode_leaf(Level::LAST, &leaf(0x77_0000, Perms::READ)).unwrap();
    map(&mut image, &process, Hpa::new, root, 0x5_0000, word, 0x90_0000);
    let access = EffectiveAccess::hypervisor(Gva::new(3 << 62 | 0x5_1234), AccessKind::Read);
    let (cold, end) = steps(&mmu, access, KnownTables::default(), &mut image);
    assert!(matches!(end, MmuStep::Done(done) if done.output == Hpa::new(0x77_1234) && done.lpid == 0), "{end:?}");
    assert_eq!(cold.len(), 10);
    // The page is 64 KiB, and privileged.
    let user = mmu.translate(access.user(), &mut image, &mut NoCaches).unwrap_err();
    assert_eq!((user.kind, user.to, user.cause), (InterruptKind::DataStorage, Target::Hypervisor, Cause::PROTECTION));
}

#[test]
fn quadrants_that_do_not_exist_are_segment_interrupts() {
    let (mut image, mmu) = guest();
    for (address, kind, expected) in [
        (1 << 62, AccessKind::Read, InterruptKind::DataSegment),
        (2 << 62, AccessKind::Execute, InterruptKind::InstructionSegment),
        (1 << 52, AccessKind::Write, InterruptKind::DataSegment),
    ] {
        let access = EffectiveAccess::guest(Gva::new(address), kind);
        let interrupt = mmu.translate(access, &mut image, &mut NoCaches).unwrap_err();
        assert_eq!((interrupt.kind, interrupt.to), (expected, Target::Guest));
    }
    let fetch = EffectiveAccess::hypervisor(Gva::new(1 << 62), AccessKind::Execute);
    let interrupt = mmu.translate(fetch, &mut image, &mut NoCaches).unwrap_err();
    assert_eq!((interrupt.kind, interrupt.to), (InterruptKind::InstructionSegment, Target::Hypervisor));
    // Quadrant 1 is the guest as the hypervisor sees it.
    let access = EffectiveAccess::hypervisor(Gva::new(1 << 62 | PAGE_EA), AccessKind::Read);
    assert_eq!(mmu.translate(access, &mut image, &mut NoCaches).unwrap().output, Hpa::new(PAGE_REAL + SHIFT));
}

/// Every point at which a walk can be refused R or C, with interrupts and with hardware updates.
#[test]
fn rc_updates_interrupt_or_happen() {
    let (image, mmu) = guest();
    let access = EffectiveAccess::guest(Gva::new(PAGE_EA), AccessKind::Write);
    let leaves: Vec<Hpa> =
        image.words().filter(|&(_, word)| word >> 62 == 3 && word & RC == RC).map(|(at, _)| at).collect();
    let (mut seen, mut after, total) = ([0; 3], [0; 3], leaves.len());
    for at in leaves {
        let mut stale = image.clone();
        stale.set(at, stale.get(at) & !RC).unwrap();
        match mmu.with_rc(RcUpdate::Interrupt).translate(access, &mut stale, &mut NoCaches) {
            Ok(_) => seen[0] += 1,
            Err(interrupt) => {
                assert_eq!(interrupt.cause, Cause::RC_UPDATE | Cause::STORE);
                seen[match interrupt.kind {
                    InterruptKind::DataStorage => 1,
                    InterruptKind::HypervisorDataStorage => 2,
                    other => panic!("{other}"),
                }] += 1;
            }
        }
        mmu.translate(access, &mut stale, &mut NoCaches).unwrap();
        match stale.get(at) & RC {
            0 => after[0] += 1,
            0x100 => after[1] += 1,
            _ => after[2] += 1,
        }
    }
    // One entry of the guest; the process table, four tables and the page in the partition's tree.
    assert_eq!(seen, [total - 7, 1, 6]);
    // With hardware updates tables are read (R), the page is written (R and C, in both trees), and other pages stay.
    assert_eq!(after, [total - 7, 5, 2]);
}

#[test]
fn missing_tables_are_reported_to_their_owner() {
    let (image, mmu) = guest();
    let access = EffectiveAccess::guest(Gva::new(PAGE_EA), AccessKind::Execute);
    let mut no_partition = image.clone();
    no_partition.set(Hpa::new(PTCR + 16 * u64::from(LPID)), 0).unwrap();
    let interrupt = mmu.translate(access, &mut no_partition, &mut NoCaches).unwrap_err();
    assert_eq!(interrupt.kind, InterruptKind::HypervisorInstructionStorage);
    assert_eq!((interrupt.cause, interrupt.asdr), (Cause::BAD_CONFIG, Some(Gpa::new(PAGE_EA))));

    // PID beyond the process table: 2^16 bytes hold 4096 entries.
    let interrupt = mmu.with_pid(4096).translate(access, &mut image.clone(), &mut NoCaches).unwrap_err();
    assert_eq!((interrupt.kind, interrupt.to), (InterruptKind::InstructionStorage, Target::Guest));
    assert_eq!(interrupt.cause, Cause::NO_ENTRY);

    // A guest table that the hypervisor has not mapped.
    let unmapped = EffectiveAccess::guest(Gva::new(PAGE_EA), AccessKind::Write);
    let tree = RootWord::of(Hpa::new(0x8000_0000)).unwrap();
    let partition = PartitionEntry::radix(PARTITION_ROOT, PROCESS_TABLE, 4).unwrap();
    let known = KnownTables { partition: Some(partition), process: Some(ProcessEntry { tree }) };
    let (_, end) = steps(&mmu, unmapped, known, &mut image.clone());
    let MmuStep::Interrupt(interrupt) = end else { panic!("{end:?}") };
    assert_eq!(interrupt.kind, InterruptKind::HypervisorDataStorage);
    assert_eq!(interrupt.cause, Cause::NO_ENTRY | Cause::TABLE | Cause::STORE);
    assert_eq!(interrupt.asdr, Some(Gpa::new(0x8000_0000)));
    assert_eq!(interrupt.address, Gva::new(PAGE_EA));
}

#[test]
fn oversized_partition_tables_are_refused() {
    assert!(PowerMmu::new(24).is_ok());
    let error = PowerMmu::new(25).unwrap_err();
    assert_eq!(error.to_string(), "PTCR: a partition table of 2^37 bytes; PATS is at most 24");
}
