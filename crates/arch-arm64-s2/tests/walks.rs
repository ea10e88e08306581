//! One- and two-stage walks: textbook reference counts, order of checks, faults and hardware updates.

use arch_arm64_s2::{
    ArmFault, ArmLevel, FaultKind, Features, HardwareUpdates, Hcr, S1Attrs, S2Attrs, S2Memory, Stage1, Stage1Config,
    Stage2, Stage2Config, StartLevel, UpperHalf, Vtcr, Vttbr,
};
use mmu_core::format::{Format, Leaf};
use mmu_core::image::{MemoryImage, RamRange};
use mmu_core::tlb::Perms;
use mmu_core::walk::{NestedCursor, NestedFault, NoCaches, Reference, Stage, Step, Translation, WalkCursor, walk};
use mmu_core::{Access, AccessKind, Gpa, Hpa, Level, Purpose};

/// Tables for one stage, handed out from `next` on.
struct Builder {
    memory: MemoryImage,
    next: u64,
}

impl Builder {
    fn new(next: u64) -> Self {
        Self { memory: MemoryImage::everywhere(), next }
    }

    fn table(&mut self, bytes: u64) -> Hpa {
        let base = self.next.next_multiple_of(bytes.max(0x1_0000));
        self.next = base + bytes.max(0x1_0000);
        Hpa::new(base)
    }

    /// Maps `input` to `leaf` at `level`; table words are written where `place` puts them.
    fn map<F: Format>(
        &mut self,
        format: &F,
        root: Hpa,
        input: u64,
        level: Level,
        leaf: &Leaf<F::Attrs>,
        place: impl Fn(Hpa) -> Hpa,
    ) -> Hpa {
        let geometry = *format.geometry();
        let (mut base, mut at_level) = (root, geometry.root());
        loop {
            let at = place(base + 8 * geometry.index(at_level, input) as u64);
            if at_level == level {
                self.memory.set(at, format.encode_leaf(level, leaf).unwrap()).unwrap();
                return at;
            }
            let down = at_level.down().unwrap();
            let raw = self.memory.get(at);
            base = if raw == 0 {
                let table = self.table(geometry.table_bytes(down));
                self.memory.set(at, format.encode_table(at_level, table).unwrap()).unwrap();
                table
            } else {
                format.next_table(at_level, raw)
            };
            at_level = down;
        }
    }
}

fn rwx<A: Default>(output: u64) -> Leaf<A> {
    Leaf { output: Hpa::new(output), perms: Perms::RWX | Perms::DIRTY, accessed: true, attrs: A::default() }
}

/// A stage-1 leaf: what EL0 may write EL1 never executes.
fn kernel(output: u64) -> Leaf<S1Attrs> {
    Leaf { perms: Perms::READ | Perms::WRITE | Perms::EXEC | Perms::DIRTY, ..rwx(output) }
}

fn references(
    mut cursor: WalkCursor<Stage2>,
    memory: &mut MemoryImage,
) -> (Vec<Reference>, Result<Translation, ArmFault>) {
    let mut read = Vec::new();
    loop {
        match cursor.step(memory) {
            Step::Read(reference) => read.push(reference),
            Step::Update(_) | Step::Restart(_) => {}
            Step::Done(found) => return (read, Ok(found)),
            Step::Fault(fault) => return (read, Err(fault)),
        }
    }
}

#[test]
fn stage2_alone_reads_one_word_a_level() {
    for (ipa_bits, start, reads, root_tables) in [
        (39, None, 3, 1),
        // One more bit: two concatenated tables instead of a fourth level.
        (40, None, 3, 2),
        (43, None, 3, 16),
        (44, None, 4, 1),
        (40, Some(0), 4, 1),
        (48, None, 4, 1),
        (32, None, 2, 4),
        (34, Some(2), 2, 16),
    ] {
        let start = start.map_or(StartLevel::Fewest, |level| StartLevel::At(ArmLevel::new(level).unwrap()));
        let stage2 = Stage2Config { ipa_bits, start, ..Default::default() }.build().unwrap();
        let mut builder = Builder::new(0x100_0000);
        let root_bytes = stage2.geometry().table_bytes(stage2.geometry().root());
        assert_eq!(root_bytes.div_ceil(4096), root_tables, "{ipa_bits} bits");
        let root = builder.table(root_bytes);
        let input = (1 << ipa_bits) - 0x1000;
        builder.map(&stage2, root, input, Level::LAST, &rwx(0x55_5000), |at| at);
        let (read, found) = references(WalkCursor::new(stage2, root, input + 8, Access::READ), &mut builder.memory);
        assert_eq!(found.map(|t| t.output), Ok(Hpa::new(0x55_5008)), "{ipa_bits} bits");
        assert_eq!(read.len(), reads, "{ipa_bits} bits");
        // One address further on is out of range.
        let fault = walk(&stage2, root, 1 << ipa_bits, Access::READ, &mut builder.memory).unwrap_err();
        assert_eq!((fault.kind, fault.level.number()), (FaultKind::Translation, 0));
    }
}

/// A guest of one mapped page over a second stage that maps everything by 2 MiB blocks or 4 KiB pages, one to one.
struct Nested {
    one: Stage1,
    two: Stage2,
    root: Hpa,
    host_root: Hpa,
    builder: Builder,
    guest_leaf: Hpa,
}

const SHIFT: u64 = 1 << 33;

fn nested(one: Stage1Config, two: Stage2Config, va: u64, leaf: Leaf<S1Attrs>) -> Nested {
    let (one, two) = (one.build().unwrap(), two.build().unwrap());
    let mut builder = Builder::new(0x100_0000);
    let root = builder.table(one.geometry().table_bytes(one.geometry().root()));
    // Guest-physical g lives at host-physical g + SHIFT.
    let guest_leaf = builder.map(&one, root, va, Level::LAST, &leaf, |gpa| gpa + SHIFT);
    let guest_end = builder.next;
    let host_root = builder.table(two.geometry().table_bytes(two.geometry().root()));
    let pages = (0x100_0000..guest_end).step_by(0x1000).chain([leaf.output.raw()]);
    for gpa in pages {
        builder.map(&two, host_root, gpa, Level::LAST, &rwx(gpa + SHIFT), |at| at);
    }
    Nested { one, two, root, host_root, builder, guest_leaf }
}

type Ended = Result<Translation, NestedFault<ArmFault, ArmFault>>;

impl Nested {
    fn run(&mut self, va: u64, access: Access) -> ((usize, usize, usize), Ended) {
        let mut cursor = NestedCursor::new(self.one, Gpa::new(self.root.raw()), self.two, self.host_root, va, access);
        let (mut guest, mut host, mut updates) = (0, 0, 0);
        loop {
            match cursor.step(&mut self.builder.memory, &mut NoCaches) {
                Step::Read(Reference { stage: Stage::One, .. }) => guest += 1,
                Step::Read(_) => host += 1,
                Step::Update(_) | Step::Restart(_) => updates += 1,
                Step::Done(found) => return ((guest, host, updates), Ok(found)),
                Step::Fault(fault) => return ((guest, host, updates), Err(fault)),
            }
        }
    }

    /// The host's word for a guest-physical page.
    fn host_leaf(&self, gpa: u64) -> Hpa {
        let geometry = self.two.geometry();
        let (mut base, mut level) = (self.host_root, geometry.root());
        loop {
            let at = base + 8 * geometry.index(level, gpa) as u64;
            match level.down() {
                Some(down) => (base, level) = (self.two.next_table(level, self.builder.memory.get(at)), down),
                None => return at,
            }
        }
    }
}

const VA: u64 = 0x7fff_1234_5000;

#[test]
fn four_over_three_levels_make_nineteen_reads() {
    for (va_bits, ipa_bits, start, total) in [(48, 39, 1, 19), (48, 40, 1, 19), (48, 40, 0, 24), (39, 39, 1, 15)] {
        let two = Stage2Config { ipa_bits, start: StartLevel::At(ArmLevel::new(start).unwrap()), ..Default::default() };
        let va = VA & ((1 << va_bits) - 1);
        let mut nested = nested(Stage1Config { va_bits, ..Default::default() }, two, va, kernel(0x4000_0000));
        let ((guest, host, _), found) = nested.run(va + 0x10, Access::READ);
        assert_eq!(found.map(|t| t.output), Ok(Hpa::new(0x4000_0010 + SHIFT)));
        let levels = nested.one.geometry().levels();
        assert_eq!((guest, guest + host), (levels, total), "{va_bits} over {ipa_bits} from {start}");
    }
}

/// The guest's access flag and dirty state are set by hardware, which dirties the page of the guest's table in turn.
#[test]
fn guest_updates_dirty_the_tables_page() {
    let features = Features::default();
    let updates = HardwareUpdates::AccessedAndDirty;
    let two = Stage2Config { ipa_bits: 39, updates, features, ..Default::default() };
    let clean = Leaf { perms: Perms::READ | Perms::WRITE, accessed: false, ..kernel(0x4000_0000) };
    let mut nested = nested(Stage1Config::default(), two, VA, clean);
    let table_gpa = nested.guest_leaf.raw() - SHIFT;
    let host_leaf = nested.host_leaf(table_gpa & !0xfff);
    let page = Leaf { perms: Perms::R | Perms::W, ..rwx((table_gpa & !0xfff) + SHIFT) };
    let clean_page = nested.two.encode_leaf(Level::LAST, &page).unwrap();
    nested.builder.memory.set(host_leaf, clean_page).unwrap();
    let (_, found) = nested.run(VA, Access::WRITE);
    assert!(found.is_ok_and(|t| t.perms.contains(Perms::WRITE | Perms::DIRTY)), "{found:?}");
    let guest_word = nested.builder.memory.get(nested.guest_leaf);
    assert_eq!((guest_word >> 10 & 1, guest_word >> 7 & 1), (1, 0), "AF set, AP[2] cleared");
    assert_eq!(nested.builder.memory.get(host_leaf), clean_page | 1 << 7, "S2AP[1] set by the walk's own write");

    // Read-only for the host: the update faults, on the stage-1 walk.
    nested.builder.memory.set(nested.guest_leaf, guest_word & !(1 << 10)).unwrap();
    let read_only = Leaf { perms: Perms::R, ..page };
    nested.builder.memory.set(host_leaf, nested.two.encode_leaf(Level::LAST, &read_only).unwrap()).unwrap();
    let (_, found) = nested.run(VA, Access::READ);
    let Err(NestedFault::Two { fault, gpa, table }) = found else { panic!("{found:?}") };
    assert_eq!((fault.kind, gpa, table), (FaultKind::Permission, Gpa::new(table_gpa), Some(Level::LAST)));
    assert!(fault.on_stage1_walk());
    assert_eq!(fault.hpfar(), Some(table_gpa >> 12 << 4), "known, because it is on a stage-1 walk");
    assert_eq!(fault.esr(AccessKind::Read) & 0xff, 1 << 7 | 1 << 6 | 0x0f);
}

#[test]
fn a_guest_table_in_device_memory_faults_with_ptw() {
    let (vtcr, _) = Stage2Config { ipa_bits: 39, ..Default::default() }.registers().unwrap();
    let two = |hcr| Stage2::new(vtcr, Hcr::new(hcr), Features::default()).unwrap();
    let attrs = S2Attrs { memory: S2Memory::DeviceNGnRE, ..S2Attrs::default() };
    let mut builder = Builder::new(0x100_0000);
    let root = builder.table(0x1000);
    builder.map(&two(1), root, 0x5000, Level::LAST, &Leaf { attrs, ..rwx(0x9000) }, |at| at);
    let mut run = |hcr, access| walk(&two(hcr), root, 0x5000, access, &mut builder.memory).map_err(|fault| fault.kind);
    assert!(run(1, Access::GUEST_TABLE).is_ok());
    assert_eq!(run(1 | 1 << 2, Access::GUEST_TABLE), Err(FaultKind::Permission));
    assert!(run(1 | 1 << 2, Access::READ).is_ok());
}

#[test]
fn the_upper_half_has_its_own_table_and_size() {
    let upper = UpperHalf { table: Gpa::new(0x200_0000), va_bits: 39 };
    let one = Stage1Config { upper: Some(upper), ..Default::default() }.build().unwrap();
    let three = Stage1Config { va_bits: 39, ..Default::default() }.build().unwrap();
    let mut builder = Builder::new(0x300_0000);
    let lower_root = builder.table(0x1000);
    builder.map(&one, lower_root, VA, Level::LAST, &kernel(0x1000), |at| at);
    builder.map(&three, Hpa::new(0x200_0000), 0x12_3456_7000, Level::LAST, &kernel(0x2000), |at| at);
    let mut run =
        |format: Stage1, va| walk(&format, lower_root, va, Access::READ, &mut builder.memory).map(|t| t.output);
    assert_eq!(run(one, VA), Ok(Hpa::new(0x1000)));
    assert_eq!(run(one, 0xffff_ffc0_0000_0000), Err(fault_at(0xffff_ffc0_0000_0000, 1)));
    assert_eq!(run(one, 0xffff_ff80_0000_0000 | 0x12_3456_7000), Ok(Hpa::new(0x2000)));
    // Outside both halves, or with the upper one disabled.
    for va in [1 << 48, 0xffff_0000_0000_0000] {
        assert_eq!(run(one, va), Err(fault_at(va, 0)));
    }
    let lower_only = Stage1Config::default().build().unwrap();
    assert_eq!(run(lower_only, u64::MAX - 7), Err(fault_at(u64::MAX - 7, 0)));
    let tagged = Stage1Config { top_byte_ignored: true, ..Default::default() }.build().unwrap();
    assert_eq!(run(tagged, 0x5a << 56 | VA), Ok(Hpa::new(0x1000)));
}

fn fault_at(va: u64, level: i8) -> ArmFault {
    let level = ArmLevel::new(level).unwrap();
    ArmFault { stage: Stage::One, kind: FaultKind::Translation, level, input: va, access: Access::READ }
}

/// APTable, UXNTable and PXNTable take away what the leaf allows, and nothing else.
#[test]
fn the_hierarchy_only_takes_away() {
    let one = Stage1Config::default().build().unwrap();
    let mut builder = Builder::new(0x100_0000);
    let root = builder.table(0x1000);
    let user = Leaf { perms: Perms::RW | Perms::USER_EXEC | Perms::DIRTY, ..kernel(0x8000) };
    builder.map(&one, root, 0x1000, Level::LAST, &user, |at| at);
    let table = builder.memory.get(root);
    for bits in 0..16u64 {
        builder.memory.set(root, table | bits << 59).unwrap();
        let found = walk(&one, root, 0x1000, Access::READ, &mut builder.memory).unwrap();
        let mut wanted = user.perms;
        if bits & 8 != 0 {
            wanted = wanted.without(Perms::W | Perms::DIRTY);
        }
        if bits & 4 != 0 {
            wanted = wanted.without(Perms::USER_READ | Perms::USER_WRITE);
        }
        if bits & 2 != 0 {
            wanted = wanted.without(Perms::USER_EXEC);
        }
        // EL1 executes once EL0 cannot write, unless PXN says no; the leaf was written with PXN.
        assert_eq!(found.perms, wanted, "hierarchical bits {bits:#06b}");
    }
    let wxn = Stage1Config { write_implies_xn: true, ..Default::default() }.build().unwrap();
    builder.memory.set(root, table).unwrap();
    let found = walk(&wxn, root, 0x1000, Access::READ, &mut builder.memory).unwrap();
    assert_eq!(found.perms, Perms::RW | Perms::DIRTY);
}

/// The order of the pseudo-code: an invalid descriptor, then its address size, then the access flag, then permission.
#[test]
fn checks_come_in_order() {
    let features = Features { pa_bits: 40, ..Features::default() };
    let stage2 = Stage2Config { ipa_bits: 39, features, ..Default::default() }.build().unwrap();
    let block = |bits: u64| 0b01 | 0xf << 2 | bits;
    let (wide, af, read) = (1u64 << 45, 1u64 << 10, 1u64 << 6);
    let mut memory = MemoryImage::new([RamRange { start: Hpa::new(0), bytes: 1 << 40 }]);
    let mut walk_with = |word: u64| {
        memory.set(Hpa::new(0x1000), word).unwrap();
        walk(&stage2, Hpa::new(0x1000), 0, Access::READ, &mut memory)
            .map_err(|fault| (fault.kind, fault.level.number()))
    };
    assert_eq!(walk_with(wide), Err((FaultKind::Translation, 1)));
    assert_eq!(walk_with(block(wide)), Err((FaultKind::AddressSize, 1)));
    assert_eq!(walk_with(block(wide | af | read)), Err((FaultKind::AddressSize, 1)));
    assert_eq!(walk_with(block(0)), Err((FaultKind::AccessFlag, 1)));
    assert_eq!(walk_with(block(af)), Err((FaultKind::Permission, 1)));
    assert!(walk_with(block(af | read)).is_ok());
    assert_eq!(walk_with(0b11 | wide), Err((FaultKind::AddressSize, 1)));
    assert_eq!(walk_with(0b11 | 0x20_0000), Err((FaultKind::Translation, 2)));
    assert_eq!(walk_with(0b11 | 1 << 39), Err((FaultKind::Translation, 2)));
    // The table itself: too wide, and outside memory.
    let begin = |root| walk(&stage2, Hpa::new(root), 0, Access::READ, &mut MemoryImage::new([]));
    assert_eq!(begin(1 << 40).map_err(|fault| fault.status()), Err(0x00));
    assert_eq!(begin(0x1000).map_err(|fault| fault.status()), Err(0x15));
}

/// Whatever the registers hold, hardware has an answer: an illegal start level is a level-0 translation fault.
#[test]
fn hardware_takes_any_registers() {
    for features in [Features::default(), Features::MAX, Features { pa_bits: 32, ttst: false, ..Features::default() }] {
        for value in (0..1u64 << 16).step_by(7).map(|low| low | 5 << 16 | 1 << 31) {
            for high in [0, 1 << 32, 3 << 32] {
                let vtcr = Vtcr::new(value | high);
                let stage2 = Stage2::as_hardware(vtcr, Hcr::new(1), features);
                let legal = Stage2::new(vtcr, Hcr::new(1), features).is_ok();
                assert!(stage2.is_legal() || !legal, "{vtcr:?}");
                let root = stage2.root(Vttbr::new(0x1_0000));
                let end = walk(&stage2, root, 0x100, Access::READ, &mut MemoryImage::everywhere());
                let fault = end.expect_err("memory is empty");
                assert_eq!(fault.kind, FaultKind::Translation);
                assert!(stage2.is_legal() || fault.level.number() == 0);
            }
        }
    }
}

#[test]
fn a_purpose_of_walking_shows_in_the_syndrome() {
    let stage2 = Stage2Config { ipa_bits: 39, ..Default::default() }.build().unwrap();
    let fault = walk(&stage2, Hpa::new(0x1000), 0x1234_5678, Access::GUEST_TABLE, &mut MemoryImage::everywhere());
    let fault = fault.unwrap_err();
    assert_eq!(fault.access.purpose, Purpose::GuestTable);
    assert_eq!(fault.esr(AccessKind::Execute), 0x8200_0085, "instruction abort, S1PTW, translation level 1");
    assert_eq!(fault.hpfar(), Some(0x12_3450));
    assert_eq!(fault.par(), 0xb0b);
    assert_eq!(
        fault.to_string(),
        "stage 2 translation fault, level 1 (FSC 0x05) at 0x12345678, supervisor read of a guest table"
    );
}
