//! Stage-1 descriptors and the walk's decisions.
//!
//! ```text
//!  63  62..59 58..55 54  53  52  51  50 49..........16 15..12 11 10 9  8 7  6 5 4    2 1 0
//! +---+------+------+---+---+---+---+--+--------------+------+--+--+----+----+--+-----+---+
//! | 0 | PBHA |  SW  |UXN|PXN| C |DBM|GP|output address|[51:48|nG|AF| SH | AP |NS| Attr|T V|
//! +---+------+------+---+---+---+---+--+--------------+------+--+--+----+----+--+-----+---+
//! table: NSTable 63, APTable 62:61, UXNTable 60, PXNTable 59
//! ```
//!
//! Before you work on this file read Arm ARM D8.3.1, D8.4.1 (stage-1 permissions and their hierarchy) and the
//! pseudo-code `AArch64.S1Translate`.

use mmu_core::access::AccessKind;
use mmu_core::format::{
    Begin, BreakRule, EncodeError, Entry, Flush, FlushPlan, FlushScope, Format, Leaf, Malformed, Mapped, NotPresent,
    PathPlace, Table, UpdateTime, Verdict, Walk, WalkCaches,
};
use mmu_core::tlb::Perms;
use mmu_core::walk::Stage;
use mmu_core::{Geometry, Hpa, Level};

use super::config::Stage1;
use crate::fault::{ArmFault, FaultKind};
use crate::features::{BbmLevel, HardwareUpdates};
use crate::flush::{RangePolicy, delivery, plan_range};
use crate::granule::ArmLevel;
use crate::layout::{AF, CONTIGUOUS, DBM, Kind, Layout, NT, SOFTWARE_SHIFT, Split, TABLE, VALID, bits};
use crate::memory_type::Shareability;
use crate::tlbi::{AddressOperand, BaseUnit, Space, Tlbi};

/// AP\[1\]: EL0 may access.
const USER: u64 = 1 << 6;
/// AP\[2\]: nobody may write.
const READ_ONLY: u64 = 1 << 7;
const NOT_GLOBAL: u64 = 1 << 11;
const GUARDED: u64 = 1 << 50;
const PXN: u64 = 1 << 53;
const UXN: u64 = 1 << 54;
const PBHA_SHIFT: u32 = 59;
/// Software bit that remembers a write permission taken away; Linux leaves 58 free where it has no uffd-wp.
const SAVED_WRITE: u64 = 1 << 58;
/// A locked entry: bit 10 of an invalid one, as at stage 2.
const LOCKED: u64 = 1 << 10;

/// What accumulates on the way down: the hierarchical bits, in the places that they have in a table descriptor shifted
/// down by 59.
mod hierarchy {
    pub(super) const SHIFT: u32 = 59;
    pub(super) const MASK: u64 = 0xf;
    /// No execution at EL1.
    pub(super) const PXN: u64 = 1;
    /// No execution at EL0.
    pub(super) const UXN: u64 = 1 << 1;
    /// No access from EL0.
    pub(super) const NO_USER: u64 = 1 << 2;
    /// No writes.
    pub(super) const READ_ONLY: u64 = 1 << 3;
}

/// What a stage-1 leaf holds besides address, permissions and access flag.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct S1Attrs {
    /// Index into `MAIR_EL1`, 0 to 7.
    pub attr_index: u8,
    /// NS, which does nothing outside the Secure state.
    pub non_secure: bool,
    /// Shareability; with DS=1 `TCR_EL1.SH0` applies and this stays at its default.
    pub shareability: Shareability,
    /// Tagged with the ASID.
    pub not_global: bool,
    /// Part of a contiguous run.
    pub contiguous: bool,
    /// nT, blocks only.
    pub not_table: bool,
    /// DBM is the opposite of what permissions imply (see `S2Attrs`).
    pub dbm_inverted: bool,
    /// Guarded page (`FEAT_BTI`).
    pub guarded: bool,
    /// Bits 58:55, left to software.
    pub software: u8,
    /// Bits 62:59, page-based hardware attributes.
    pub pbha: u8,
}

const fn on(set: bool, bit: u64) -> u64 {
    if set { bit } else { 0 }
}

impl Stage1 {
    /// The configuration it was built from.
    pub const fn config(&self) -> &super::Stage1Config {
        &self.config
    }

    const fn accessed_by_hardware(&self) -> bool {
        !matches!(self.config.updates, HardwareUpdates::None)
    }
    const fn dirtied_by_hardware(&self) -> bool {
        matches!(self.config.updates, HardwareUpdates::AccessedAndDirty)
    }
    const fn writable(&self, raw: u64) -> bool {
        raw & READ_ONLY == 0 || self.dirtied_by_hardware() && raw & DBM != 0
    }

    /// Permissions of a leaf word under the hierarchical bits `above` (Arm ARM D8.4.1).
    fn perms(&self, raw: u64, above: u64) -> Perms {
        let pick = |on: bool, perms: Perms| if on { perms } else { Perms::NONE };
        let user = raw & USER != 0 && above & hierarchy::NO_USER == 0;
        let write = self.writable(raw) && above & hierarchy::READ_ONLY == 0;
        let wxn = self.config.write_implies_xn;
        // What EL0 can write, EL1 never executes.
        let exec = raw & PXN == 0 && above & hierarchy::PXN == 0 && !(user && write) && !(wxn && write);
        let user_exec = raw & UXN == 0 && above & hierarchy::UXN == 0 && !(wxn && user && write);
        Perms::READ
            | pick(user, Perms::USER_READ)
            | pick(write, Perms::WRITE)
            | pick(user && write, Perms::USER_WRITE)
            | pick(write && raw & READ_ONLY == 0, Perms::DIRTY)
            | pick(exec, Perms::EXEC)
            | pick(user_exec, Perms::USER_EXEC)
    }

    fn encode_perms(&self, perms: Perms, dbm_inverted: bool) -> Result<u64, EncodeError> {
        let has = |one: Perms| perms.contains(one);
        let (user, write, dirty) = (has(Perms::USER_READ), has(Perms::WRITE), has(Perms::DIRTY));
        let implied = self.dirtied_by_hardware() && write;
        let raw = on(user, USER)
            | on(!dirty, READ_ONLY)
            | on(!has(Perms::EXEC), PXN)
            | on(!has(Perms::USER_EXEC), UXN)
            | on(implied != dbm_inverted, DBM);
        // Whatever the bits cannot say comes back as something else.
        if self.perms(raw, 0) == perms { Ok(raw) } else { Err(EncodeError::Perms { perms }) }
    }

    fn attrs(&self, level: Level, raw: u64) -> S1Attrs {
        let implied = self.dirtied_by_hardware() && self.writable(raw);
        S1Attrs {
            attr_index: bits(raw, 4, 2) as u8,
            non_secure: raw & 1 << 5 != 0,
            shareability: match self.layout.split {
                Split::Lpa2 => Shareability::default(),
                _ => Shareability::from_bits(raw >> 8),
            },
            not_global: raw & NOT_GLOBAL != 0,
            contiguous: raw & CONTIGUOUS != 0,
            not_table: level != Level::LAST && raw & NT != 0,
            dbm_inverted: (raw & DBM != 0) != implied,
            guarded: raw & GUARDED != 0,
            software: bits(raw, 58, 55) as u8,
            pbha: bits(raw, 62, 59) as u8,
        }
    }

    fn encode_attrs(&self, level: Level, attrs: &S1Attrs) -> Result<u64, EncodeError> {
        let refuse = |what| Err(EncodeError::Attribute { what });
        let shareability = match self.layout.split {
            Split::Lpa2 if attrs.shareability == Shareability::default() => 0,
            Split::Lpa2 => return refuse("with DS=1 shareability is TCR_EL1's; leave it at its default"),
            _ => attrs.shareability.bits() << 8,
        };
        if attrs.not_table && level == Level::LAST {
            return refuse("nT is for blocks; clear it in pages");
        }
        if attrs.attr_index > 7 || attrs.software > 15 || attrs.pbha > 15 {
            return refuse("the attribute index has three bits, software bits and PBHA have four");
        }
        Ok(u64::from(attrs.attr_index) << 2
            | on(attrs.non_secure, 1 << 5)
            | shareability
            | on(attrs.not_global, NOT_GLOBAL)
            | on(attrs.contiguous, CONTIGUOUS)
            | on(attrs.not_table, NT)
            | on(attrs.guarded, GUARDED)
            | u64::from(attrs.software) << SOFTWARE_SHIFT
            | u64::from(attrs.pbha) << PBHA_SHIFT)
    }

    fn fault(level: Level, walk: &Walk, kind: FaultKind) -> Verdict<ArmFault> {
        Verdict::Fault(ArmFault::new(Stage::One, kind, level, walk))
    }

    fn leaf(&self, walk: &Walk, level: Level, raw: u64, above: u64) -> Verdict<ArmFault> {
        let output = self.layout.leaf(level, raw);
        if self.layout.too_wide(output) {
            return Self::fault(level, walk, FaultKind::AddressSize);
        }
        if raw & AF == 0 && !self.accessed_by_hardware() {
            return Self::fault(level, walk, FaultKind::AccessFlag);
        }
        // A store through DBM clears AP[2]; where the hierarchy or the privilege forbids it, `perms` says so anyway.
        let perms = self.perms(self.updated(walk, level, raw, PathPlace::Leaf), above);
        if !perms.contains(Perms::needed_by(&walk.access)) {
            return Self::fault(level, walk, FaultKind::Permission);
        }
        Verdict::Leaf(Mapped { output: Hpa::new(output), size: self.size(level), perms })
    }

    /// Size of a leaf, also at levels that only the upper half has.
    fn size(&self, level: Level) -> mmu_core::PageSize {
        mmu_core::PageSize::from_shift(self.layout.granule.level_shift(level)).unwrap_or(self.layout.granule.page())
    }

    /// Whether a leaf keeps what a TLB would remember of it, apart from permissions.
    fn leaf_change(&self, old: &Leaf<S1Attrs>, new: &Leaf<S1Attrs>) -> BreakRule {
        if !old.accessed || !new.accessed {
            return BreakRule::NotNeeded;
        }
        if old.attrs.attr_index != new.attrs.attr_index || old.attrs.shareability != new.attrs.shareability {
            return BreakRule::Needed("the memory type or shareability changes");
        }
        if old.output != new.output {
            return BreakRule::Needed("the output address changes");
        }
        if old.attrs.not_global && !new.attrs.not_global {
            return BreakRule::Needed("an ASID's mapping becomes global");
        }
        if old.attrs.contiguous != new.attrs.contiguous {
            return self.size_change(old.attrs.not_table || new.attrs.not_table);
        }
        BreakRule::NotNeeded
    }

    fn size_change(&self, not_table: bool) -> BreakRule {
        match self.config.features.bbm {
            BbmLevel::Level2 => BreakRule::Relaxed("FEAT_BBM level 2: a TLB conflict abort may follow until the flush"),
            BbmLevel::Level1 if not_table => BreakRule::Relaxed("FEAT_BBM level 1 with nT"),
            BbmLevel::Level0 | BbmLevel::Level1 => BreakRule::Needed("the size of a mapping changes"),
        }
    }
}

impl Format for Stage1 {
    type Attrs = S1Attrs;
    type Fault = ArmFault;
    type Tlbi = Tlbi;

    const NAME: &'static str = "arm64-stage1";
    const UPDATE_TIME: UpdateTime = UpdateTime::BeforeNextStage;

    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn decode(&self, level: Level, raw: u64) -> Entry<S1Attrs> {
        match self.layout.kind(level, raw) {
            Kind::Invalid if raw == 0 => Entry::NotPresent(NotPresent::Empty),
            Kind::Invalid if raw == LOCKED => Entry::NotPresent(NotPresent::Frozen),
            Kind::Invalid => Entry::NotPresent(NotPresent::Other(raw)),
            Kind::Reserved => Entry::Malformed(Malformed::LeafLevel),
            Kind::Table => match self.layout.table(raw) {
                base if self.layout.too_wide(base) => Entry::Malformed(Malformed::Address),
                base => Entry::Table(Table { base: Hpa::new(base), index_bits: self.layout.granule.stride() }),
            },
            Kind::Leaf => match self.layout.leaf(level, raw) {
                output if self.layout.too_wide(output) => Entry::Malformed(Malformed::Address),
                output => Entry::Leaf(Leaf {
                    output: Hpa::new(output),
                    perms: self.perms(raw, 0),
                    accessed: raw & AF != 0,
                    attrs: self.attrs(level, raw),
                }),
            },
        }
    }

    fn encode_leaf(&self, level: Level, leaf: &Leaf<S1Attrs>) -> Result<u64, EncodeError> {
        if level != Level::LAST && !self.layout.block_at(level) || level > self.geometry.root() {
            return Err(EncodeError::LeafLevel { level });
        }
        let align = self.size(level);
        if !leaf.output.is_aligned(align) || self.layout.too_wide(leaf.output.raw()) {
            return Err(EncodeError::Address { address: leaf.output, align, bits: self.layout.output_bits });
        }
        let perms = self.encode_perms(leaf.perms, leaf.attrs.dbm_inverted)?;
        let attrs = self.encode_attrs(level, &leaf.attrs)?;
        Ok(Layout::leaf_type(level) | self.layout.place(leaf.output.raw()) | perms | on(leaf.accessed, AF) | attrs)
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
            NotPresent::Other(raw) if raw & VALID == 0 && raw != 0 && raw != LOCKED => raw,
            NotPresent::Owner(_) | NotPresent::Other(_) => {
                return Err(EncodeError::Attribute {
                    what: "a first stage has no owners, and bit 0 of a payload is clear",
                });
            }
        };
        Ok(raw)
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
    /// 0: a dirty stage-1 leaf has AP\[2\] *clear*, so no bit is set in it; see [`Perms::DIRTY`] of the decoded leaf.
    fn dirty_mask(&self) -> u64 {
        0
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
        let protected = raw | READ_ONLY | SAVED_WRITE;
        if self.dirtied_by_hardware() { protected & !DBM } else { protected }
    }
    fn restore_write(&self, raw: u64) -> Option<u64> {
        let dbm = on(self.dirtied_by_hardware(), DBM);
        (raw & SAVED_WRITE != 0 && !self.writable(raw)).then_some(raw & !(SAVED_WRITE | READ_ONLY) | dbm)
    }
    fn mark_old(&self, raw: u64) -> u64 {
        raw & !AF
    }
    fn mark_young(&self, raw: u64) -> Option<u64> {
        (raw & AF == 0).then_some(raw | AF)
    }

    fn flush_plan(&self, flush: Flush) -> FlushPlan<Tlbi> {
        let level = match (flush.scope, flush.walk_caches) {
            (FlushScope::Range { level, .. }, WalkCaches::Keep) => level.filter(|&l| self.geometry.has_leaves_at(l)),
            _ => None,
        };
        let features = &self.config.features;
        let unit = if self.layout.split == Split::Lpa2 { BaseUnit::Kib64 } else { BaseUnit::Granule };
        let policy = RangePolicy {
            granule: self.layout.granule,
            range_unit: features.tlbi_range.then_some(unit),
            hint: level.map(ArmLevel::of).filter(|&l| features.ttl && AddressOperand::can_hint(l)),
            stride: level.map_or(self.layout.granule.page(), |l| self.size(l)).bytes(),
        };
        let asid = self.config.asid;
        plan_range(policy, Space::Va { asid }, flush, self.config.max_invalidations).unwrap_or_else(|| {
            let instruction = match flush.scope {
                FlushScope::Vm => Tlbi::Vmalle1(flush.reach),
                FlushScope::Range { .. } => Tlbi::Aside1 { asid, reach: flush.reach },
            };
            let covers = Flush { scope: FlushScope::Vm, walk_caches: WalkCaches::Drop, reach: flush.reach };
            FlushPlan { instruction, repeats: 1, delivery: delivery(flush.reach), covers }
        })
    }

    fn break_rule(&self, level: Level, old: u64, new: u64) -> BreakRule {
        match (self.decode(level, old), self.decode(level, new)) {
            (Entry::Leaf(old), Entry::Leaf(new)) => self.leaf_change(&old, &new),
            (Entry::Table(old), Entry::Table(new)) if old.base != new.base => {
                BreakRule::Needed("a table pointer changes")
            }
            (Entry::Table(_), Entry::Leaf(leaf)) | (Entry::Leaf(leaf), Entry::Table(_)) if leaf.accessed => {
                self.size_change(leaf.attrs.not_table)
            }
            _ => BreakRule::NotNeeded,
        }
    }

    fn begin(&self, root: Hpa, walk: &Walk) -> Result<Begin, ArmFault> {
        let translation = ArmFault::before_walk(Stage::One, FaultKind::Translation, walk);
        // Bit 55 chooses the half, whether or not the top byte is ignored.
        let upper = walk.input >> 55 & 1 != 0;
        let (base, va_bits, level, root_bits) = match (upper, self.upper) {
            (false, _) => {
                let level = self.geometry.root();
                (root, self.config.va_bits, level, self.geometry.index_bits(level))
            }
            (true, Some(half)) => (Hpa::new(half.table.raw()), half.va_bits, half.root, half.root_bits),
            (true, None) => return Err(translation),
        };
        let ignored = if self.config.top_byte_ignored { 8 } else { 0 };
        // Bits above the configured width must all equal bit 55.
        let top = ((walk.input << ignored) as i64) >> (va_bits + ignored);
        if top != if upper { -1 } else { 0 } {
            return Err(translation);
        }
        if self.layout.too_wide(base.raw()) {
            return Err(ArmFault::before_walk(Stage::One, FaultKind::AddressSize, walk));
        }
        let size = (8u64 << root_bits).max(if self.layout.output_bits > 48 { 64 } else { 8 });
        let table = Table { base: Hpa::new(base.raw() & !(size - 1)), index_bits: root_bits };
        Ok(Begin { level, table, acc: 0 })
    }

    fn entry_index(&self, level: Level, table: Table, input: u64) -> u64 {
        input >> self.layout.granule.level_shift(level) & ((1 << table.index_bits) - 1)
    }

    fn entry(&self, walk: &Walk, level: Level, raw: u64, acc: &mut u64) -> Verdict<ArmFault> {
        match self.layout.kind(level, raw) {
            Kind::Invalid | Kind::Reserved => Self::fault(level, walk, FaultKind::Translation),
            Kind::Table => {
                let base = self.layout.table(raw);
                if self.layout.too_wide(base) {
                    return Self::fault(level, walk, FaultKind::AddressSize);
                }
                *acc |= raw >> hierarchy::SHIFT & hierarchy::MASK;
                Verdict::Table(Table { base: Hpa::new(base), index_bits: self.layout.granule.stride() })
            }
            Kind::Leaf => self.leaf(walk, level, raw, *acc),
        }
    }

    fn updated(&self, walk: &Walk, _level: Level, raw: u64, place: PathPlace) -> u64 {
        if place == PathPlace::Table {
            return raw;
        }
        let accessed = if self.accessed_by_hardware() { raw | AF } else { raw };
        let stores = matches!(walk.access.kind, AccessKind::Write | AccessKind::ReadWrite);
        if stores && self.dirtied_by_hardware() && raw & DBM != 0 { accessed & !READ_ONLY } else { accessed }
    }

    fn bus_fault(&self, walk: &Walk, level: Level) -> ArmFault {
        ArmFault::new(Stage::One, FaultKind::ExternalOnWalk, level, walk)
    }
}
