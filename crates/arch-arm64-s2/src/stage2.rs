//! The second stage as a [`Format`].
//!
//! ```text
//!  63  62 59 58 55 54 53 52  51  50 49..........16 15..12 11   10 9  8 7  6 5     2 1 0
//! +---+-----+-----+-----+---+---+--+---------------+------+----+--+----+----+-------+---+
//! | 0 |PBHA | SW  | XN  | C |DBM| 0| output address|[51:48|FnXS|AF| SH |S2AP|MemAttr|T V|
//! +---+-----+-----+-----+---+---+--+---------------+------+----+--+----+----+-------+---+
//!                                     nT in bit 16  64K LPA]        [51:50] with DS=1
//! ```
//!
//! Before you work on this file read Arm ARM D8.3.2 and D8.4.6 (stage-2 permissions), D8.5 (hardware updates) and the
//! pseudo-code `AArch64.S2Translate`, whose order of checks it follows: input size and start level, input range, table
//! base; for each descriptor validity, then address size; for the leaf access flag, then permission.

use mmu_core::access::{AccessKind, Purpose};
use mmu_core::format::{
    Begin, BreakRule, Denial, EncodeError, Entry, Flush, FlushPlan, Format, Leaf, Malformed, Mapped, NotPresent,
    Overlap, PathPlace, Table, Uncached, UpdateTime, Verdict, Walk,
};
use mmu_core::tlb::Perms;
use mmu_core::walk::Stage;
use mmu_core::{Geometry, Hpa, Level};

use crate::fault::{ArmFault, FaultKind};
use crate::features::{BbmLevel, HardwareUpdates};
use crate::granule::Granule;
use crate::layout::{AF, CONTIGUOUS, DBM, Kind, Layout, NT, SOFTWARE_SHIFT, Split, TABLE, VALID, bits};
use crate::memory_type::{S2Memory, Shareability, TypeControl};
use crate::registers::Vttbr;
use crate::tlbi::Tlbi;

const READ: u64 = 1 << 6;
const WRITE: u64 = 1 << 7;
const FNXS: u64 = 1 << 11;
const XN_SHIFT: u32 = 53;
const PBHA_SHIFT: u32 = 59;
/// Software bit that remembers a write permission taken away for dirty logging. KVM hands bits 55 and 56 to pKVM's page
/// states and leaves 58 free.
const SAVED_WRITE: u64 = 1 << 58;
/// KVM's marker of an entry whose break-before-make is under way (Linux 6.6 `pgtable.c`: bit 10 of an invalid entry).
const LOCKED: u64 = 1 << 10;
/// KVM's owner annotation: bits 9:2 of an invalid entry.
const OWNER_SHIFT: u32 = 2;

/// Whether walks may start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Start {
    Legal,
    /// Illegal input size or start level: a translation fault at level 0.
    Faults,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Options {
    pub(crate) updates: HardwareUpdates,
    pub(crate) xnx: bool,
    pub(crate) fwb: bool,
    pub(crate) ptw: bool,
    pub(crate) wide_base: bool,
    pub(crate) walk_shareability: Shareability,
    pub(crate) bbm: BbmLevel,
    pub(crate) ttl: bool,
    pub(crate) tlbi_range: bool,
    pub(crate) max_invalidations: u32,
}

/// Arm's second stage, configured.
///
/// Made by [`crate::Stage2Config::build`] or [`Stage2::new`], which refuse illegal configurations, or by
/// [`Stage2::as_hardware`] for what hardware makes of any register values.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Stage2 {
    pub(crate) layout: Layout,
    pub(crate) geometry: Geometry,
    pub(crate) start: Start,
    pub(crate) options: Options,
}

/// What a stage-2 leaf holds besides address, permissions and access flag.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct S2Attrs {
    /// Memory type.
    pub memory: S2Memory,
    /// Shareability. With DS=1 the descriptor has none: this stays at its default and [`Stage2::shareability`] tells
    /// what applies.
    pub shareability: Shareability,
    /// Part of a contiguous run: a TLB may keep one entry for it.
    pub contiguous: bool,
    /// nT, blocks only: `FEAT_BBM` level 1 may change the block's size in place.
    pub not_table: bool,
    /// DBM is the opposite of what permissions imply. They imply DBM for a writable leaf where hardware manages dirty state,
    /// and none elsewhere.
    pub dbm_inverted: bool,
    /// FnXS (`FEAT_XS`).
    pub fnxs: bool,
    /// Bits 58:55, left to software. KVM: 55 and 56 hold pKVM's page state; we save a write permission in 58.
    pub software: u8,
    /// Bits 62:59, page-based hardware attributes.
    pub pbha: u8,
}

impl Stage2 {
    /// The same with this many invalidations by address before everything is invalidated.
    pub const fn with_max_invalidations(mut self, most: u32) -> Self {
        self.options.max_invalidations = most;
        self
    }
    /// The granule.
    pub const fn granule(&self) -> Granule {
        self.layout.granule
    }
    /// Whether walks can start at all; false only for values of [`Stage2::as_hardware`].
    pub fn is_legal(&self) -> bool {
        self.start == Start::Legal
    }
    /// Whether stage 2 forces memory types.
    pub const fn type_control(&self) -> TypeControl {
        if self.options.fwb { TypeControl::Force } else { TypeControl::Restrict }
    }
    /// The shareability that a leaf asks for: its own, or with DS=1 that of `VTCR_EL2.SH0`.
    pub fn shareability(&self, attrs: &S2Attrs) -> Shareability {
        if self.layout.split == Split::Lpa2 { self.options.walk_shareability } else { attrs.shareability }
    }
    /// Start table of this stage in `vttbr`, as the root of a walk. Misaligned low bits are dropped by the walk.
    pub fn root(&self, vttbr: Vttbr) -> Hpa {
        let low = vttbr.value() & 0xffff_ffff_fffe;
        Hpa::new(if self.options.wide_base { low & !0x3f | bits(vttbr.value(), 5, 2) << 48 } else { low })
    }
    /// Alignment of the start table: its size, and 64 bytes where its address has 52 bits.
    pub fn root_alignment(&self) -> u64 {
        let size = self.geometry.table_bytes(self.geometry.root());
        if self.options.wide_base { size.max(64) } else { size }
    }

    const fn accessed_by_hardware(&self) -> bool {
        !matches!(self.options.updates, HardwareUpdates::None)
    }
    const fn dirtied_by_hardware(&self) -> bool {
        matches!(self.options.updates, HardwareUpdates::AccessedAndDirty)
    }
    /// Stores are possible, perhaps after a hardware update.
    const fn writable(&self, raw: u64) -> bool {
        raw & WRITE != 0 || self.dirtied_by_hardware() && raw & DBM != 0
    }

    /// Permissions of a leaf word (Arm ARM D8.4.6). Execution does not ask for read permission.
    fn perms(&self, raw: u64) -> Perms {
        let pick = |on: bool, perms: Perms| if on { perms } else { Perms::NONE };
        let xn = bits(raw, 54, 53);
        let exec = match (self.options.xnx, xn) {
            (true, 0) => Perms::X,
            (true, 1) => Perms::USER_EXEC,
            (true, 3) => Perms::EXEC,
            (false, 0 | 1) => Perms::X,
            _ => Perms::NONE,
        };
        exec | pick(raw & READ != 0, Perms::R)
            | pick(self.writable(raw), Perms::W)
            | pick(raw & WRITE != 0, Perms::DIRTY)
    }

    fn encode_perms(&self, perms: Perms, dbm_inverted: bool) -> Result<u64, EncodeError> {
        let refuse = Err(EncodeError::Perms { perms });
        let both = |both: Perms| match (perms.contains(both), perms.intersects(both)) {
            (true, _) => Some(true),
            (false, false) => Some(false),
            _ => None,
        };
        let (Some(read), Some(write)) = (both(Perms::R), both(Perms::W)) else { return refuse };
        let xn = match (perms.contains(Perms::EXEC), perms.contains(Perms::USER_EXEC)) {
            (true, true) => 0,
            (false, false) => 2,
            (false, true) if self.options.xnx => 1,
            (true, false) if self.options.xnx => 3u64,
            _ => return refuse,
        };
        let dirty = perms.contains(Perms::DIRTY);
        let implied = self.dirtied_by_hardware() && write;
        // Without write permission nothing is dirty; without hardware management a writable page is; and a clean page
        // is writable through DBM alone.
        if dirty && !write
            || write && !dirty && (!implied || dbm_inverted)
            || self.dirtied_by_hardware() && !write && dbm_inverted
        {
            return refuse;
        }
        let on = |set: bool, bit: u64| if set { bit } else { 0 };
        Ok(on(read, READ) | on(dirty, WRITE) | on(implied != dbm_inverted, DBM) | xn << XN_SHIFT)
    }

    fn attrs(&self, level: Level, raw: u64) -> S2Attrs {
        let implied = self.dirtied_by_hardware() && self.writable(raw);
        let shareability = match self.layout.split {
            Split::Lpa2 => Shareability::default(),
            _ => Shareability::from_bits(raw >> 8),
        };
        S2Attrs {
            memory: S2Memory::from_bits(bits(raw, 5, 2) as u8, self.type_control()),
            shareability,
            contiguous: raw & CONTIGUOUS != 0,
            not_table: level != Level::LAST && raw & NT != 0,
            dbm_inverted: (raw & DBM != 0) != implied,
            fnxs: raw & FNXS != 0,
            software: bits(raw, 58, 55) as u8,
            pbha: bits(raw, 62, 59) as u8,
        }
    }

    fn encode_attrs(&self, level: Level, attrs: &S2Attrs) -> Result<u64, EncodeError> {
        let refuse = |what| Err(EncodeError::Attribute { what });
        let Some(memory) = attrs.memory.to_bits(self.type_control()) else {
            return refuse(
                "this memory type has no encoding here; FromStageOne needs FWB, Other takes unnamed encodings",
            );
        };
        let shareability = match self.layout.split {
            Split::Lpa2 if attrs.shareability == Shareability::default() => 0,
            Split::Lpa2 => return refuse("with DS=1 shareability is VTCR_EL2.SH0's; leave it at its default"),
            _ => attrs.shareability.bits() << 8,
        };
        if attrs.not_table && level == Level::LAST {
            return refuse("nT is for blocks; clear it in pages");
        }
        if attrs.software > 15 || attrs.pbha > 15 {
            return refuse("software bits and PBHA have four bits each");
        }
        let on = |set: bool, bit: u64| if set { bit } else { 0 };
        Ok(u64::from(memory) << 2
            | shareability
            | on(attrs.contiguous, CONTIGUOUS)
            | on(attrs.not_table, NT)
            | on(attrs.fnxs, FNXS)
            | u64::from(attrs.software) << SOFTWARE_SHIFT
            | u64::from(attrs.pbha) << PBHA_SHIFT)
    }

    fn fault(level: Level, walk: &Walk, kind: FaultKind) -> Verdict<ArmFault> {
        Verdict::Fault(ArmFault::new(Stage::Two, kind, level, walk))
    }

    /// The leaf's own checks: access flag, then permission.
    fn leaf(&self, walk: &Walk, level: Level, raw: u64) -> Verdict<ArmFault> {
        let output = self.layout.leaf(level, raw);
        if self.layout.too_wide(output) {
            return Self::fault(level, walk, FaultKind::AddressSize);
        }
        if raw & AF == 0 && !self.accessed_by_hardware() {
            return Self::fault(level, walk, FaultKind::AccessFlag);
        }
        let left = self.updated(walk, level, raw, PathPlace::Leaf);
        let perms = self.perms(left);
        let need = Perms::needed_by(&walk.access);
        // HCR_EL2.PTW: a guest's table in Device memory is nothing to walk through (Arm ARM D8.4.6).
        let device_walk = self.options.ptw
            && walk.access.purpose == Purpose::GuestTable
            && S2Memory::from_bits(bits(raw, 5, 2) as u8, self.type_control()).is_device();
        if !perms.contains(need) || device_walk {
            return Self::fault(level, walk, FaultKind::Permission);
        }
        Verdict::Leaf(Mapped { output: Hpa::new(output), size: self.geometry.page_size(level), perms })
    }
}

impl Format for Stage2 {
    type Attrs = S2Attrs;
    type Fault = ArmFault;
    type Tlbi = Tlbi;

    const NAME: &'static str = "arm64-stage2";
    const UPDATE_TIME: UpdateTime = UpdateTime::BeforeNextStage;

    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn decode(&self, level: Level, raw: u64) -> Entry<S2Attrs> {
        let malformed_address = Entry::Malformed(Malformed::Address);
        match self.layout.kind(level, raw) {
            Kind::Invalid => Entry::NotPresent(decode_invalid(raw)),
            Kind::Reserved => Entry::Malformed(Malformed::LeafLevel),
            Kind::Table => {
                let base = self.layout.table(raw);
                if self.layout.too_wide(base) {
                    return malformed_address;
                }
                Entry::Table(Table { base: Hpa::new(base), index_bits: self.layout.granule.stride() })
            }
            Kind::Leaf => {
                let output = self.layout.leaf(level, raw);
                if self.layout.too_wide(output) {
                    return malformed_address;
                }
                Entry::Leaf(Leaf {
                    output: Hpa::new(output),
                    perms: self.perms(raw),
                    accessed: raw & AF != 0,
                    attrs: self.attrs(level, raw),
                })
            }
        }
    }

    fn encode_leaf(&self, level: Level, leaf: &Leaf<S2Attrs>) -> Result<u64, EncodeError> {
        if !self.geometry.has_leaves_at(level) {
            return Err(EncodeError::LeafLevel { level });
        }
        let align = self.geometry.page_size(level);
        if !leaf.output.is_aligned(align) || self.layout.too_wide(leaf.output.raw()) {
            return Err(EncodeError::Address { address: leaf.output, align, bits: self.layout.output_bits });
        }
        let perms = self.encode_perms(leaf.perms, leaf.attrs.dbm_inverted)?;
        let accessed = if leaf.accessed { AF } else { 0 };
        let address = self.layout.place(leaf.output.raw());
        Ok(Layout::leaf_type(level) | address | perms | accessed | self.encode_attrs(level, &leaf.attrs)?)
    }

    fn encode_table(&self, level: Level, base: Hpa) -> Result<u64, EncodeError> {
        if level == Level::LAST {
            return Err(EncodeError::Attribute {
                what: "the last level holds pages only; link the table one level up",
            });
        }
        let align = self.layout.granule.page();
        if !base.is_aligned(align) || self.layout.too_wide(base.raw()) {
            return Err(EncodeError::Address { address: base, align, bits: self.layout.output_bits });
        }
        Ok(VALID | TABLE | self.layout.place(base.raw()))
    }

    fn encode_not_present(&self, entry: NotPresent) -> Result<u64, EncodeError> {
        let raw = match entry {
            NotPresent::Empty => 0,
            NotPresent::Frozen => LOCKED,
            NotPresent::Owner(owner) => u64::from(owner) << OWNER_SHIFT,
            NotPresent::Other(raw) => raw,
        };
        if raw & VALID == 0 && decode_invalid(raw) == entry {
            Ok(raw)
        } else {
            Err(EncodeError::Attribute {
                what: "payload is valid or has another name: owners are 1 to 255, bit 0 is clear",
            })
        }
    }

    fn present_mask(&self) -> u64 {
        VALID
    }
    fn is_leaf(&self, level: Level, raw: u64) -> bool {
        level == Level::LAST || raw & TABLE == 0
    }
    fn output(&self, level: Level, raw: u64) -> Hpa {
        Hpa::new(self.layout.leaf(level, raw))
    }
    fn next_table(&self, _level: Level, raw: u64) -> Hpa {
        Hpa::new(self.layout.table(raw))
    }
    fn progression(&self, level: Level, output: Hpa) -> u64 {
        self.layout.progression(level, output)
    }
    fn accessed_mask(&self) -> u64 {
        AF
    }
    fn dirty_mask(&self) -> u64 {
        if self.dirtied_by_hardware() { WRITE } else { 0 }
    }
    fn hardware_accessed(&self) -> bool {
        self.accessed_by_hardware()
    }
    fn hardware_dirty(&self) -> bool {
        self.dirtied_by_hardware()
    }
    fn is_writable(&self, raw: u64) -> bool {
        self.writable(raw)
    }
    fn write_protect(&self, raw: u64) -> u64 {
        if !self.writable(raw) {
            return raw;
        }
        let protected = raw & !WRITE | SAVED_WRITE;
        if self.dirtied_by_hardware() { protected & !DBM } else { protected }
    }
    fn restore_write(&self, raw: u64) -> Option<u64> {
        let dbm = if self.dirtied_by_hardware() { DBM } else { 0 };
        (raw & SAVED_WRITE != 0 && !self.writable(raw)).then_some(raw & !SAVED_WRITE | WRITE | dbm)
    }
    fn mark_old(&self, raw: u64) -> u64 {
        raw & !AF
    }
    fn mark_young(&self, raw: u64) -> Option<u64> {
        (raw & AF == 0).then_some(raw | AF)
    }

    fn flush_plan(&self, flush: Flush) -> FlushPlan<Tlbi> {
        self.plan(flush)
    }
    fn break_rule(&self, level: Level, old: u64, new: u64) -> BreakRule {
        self.break_rule_for(level, old, new, crate::PageContents::MayDiffer)
    }
    fn mark_resizing(&self, level: Level, raw: u64) -> Option<u64> {
        let marks = self.options.bbm >= BbmLevel::Level1 && self.layout.kind(level, raw) == Kind::Leaf;
        (marks && level != Level::LAST).then_some(raw | NT)
    }
    fn may_be_cached(&self, level: Level, raw: u64) -> bool {
        level == Level::LAST || self.options.bbm == BbmLevel::Level0 || raw & NT == 0
    }
    fn overlap(&self) -> Overlap {
        Overlap::Conflict
    }
    fn denial(&self) -> Denial {
        Denial::FaultsFromTlb
    }
    fn uncached(&self) -> Uncached {
        if self.options.fwb { Uncached::Coherent } else { Uncached::NeedsClean }
    }

    fn begin(&self, root: Hpa, walk: &Walk) -> Result<Begin, ArmFault> {
        let out_of_range = walk.input >> self.geometry.input_bits().min(63) != 0;
        if self.start == Start::Faults || out_of_range {
            return Err(ArmFault::before_walk(Stage::Two, FaultKind::Translation, walk));
        }
        if self.layout.too_wide(root.raw()) {
            return Err(ArmFault::before_walk(Stage::Two, FaultKind::AddressSize, walk));
        }
        let level = self.geometry.root();
        let base = Hpa::new(root.raw() & !(self.root_alignment() - 1));
        Ok(Begin { level, table: Table { base, index_bits: self.geometry.index_bits(level) }, acc: 0 })
    }

    fn entry(&self, walk: &Walk, level: Level, raw: u64, _acc: &mut u64) -> Verdict<ArmFault> {
        match self.layout.kind(level, raw) {
            Kind::Invalid | Kind::Reserved => Self::fault(level, walk, FaultKind::Translation),
            Kind::Table => {
                let base = self.layout.table(raw);
                if self.layout.too_wide(base) {
                    return Self::fault(level, walk, FaultKind::AddressSize);
                }
                Verdict::Table(Table { base: Hpa::new(base), index_bits: self.layout.granule.stride() })
            }
            Kind::Leaf => self.leaf(walk, level, raw),
        }
    }

    fn updated(&self, walk: &Walk, _level: Level, raw: u64, place: PathPlace) -> u64 {
        if place == PathPlace::Table {
            return raw;
        }
        let accessed = if self.accessed_by_hardware() { raw | AF } else { raw };
        let stores = matches!(walk.access.kind, AccessKind::Write | AccessKind::ReadWrite);
        if stores && self.dirtied_by_hardware() && raw & DBM != 0 { accessed | WRITE } else { accessed }
    }

    fn bus_fault(&self, walk: &Walk, level: Level) -> ArmFault {
        ArmFault::new(Stage::Two, FaultKind::ExternalOnWalk, level, walk)
    }
}

/// What software keeps in an invalid entry (facts from Linux 6.6 `arch/arm64/kvm/hyp/pgtable.c`).
fn decode_invalid(raw: u64) -> NotPresent {
    const OWNER_MASK: u64 = 0xff << OWNER_SHIFT;
    match raw {
        0 => NotPresent::Empty,
        LOCKED => NotPresent::Frozen,
        _ if raw & !OWNER_MASK == 0 => NotPresent::Owner((raw >> OWNER_SHIFT) as u8),
        _ => NotPresent::Other(raw),
    }
}
