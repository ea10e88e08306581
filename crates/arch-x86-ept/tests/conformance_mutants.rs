//! The conformance kit finds what it promises to find: formats with one defect each.

use arch_x86_ept::{AccessedDirty, Ept, EptAttrs, EptConfig, EptFault, InvTlbi};
use mmu_core::conformance::{Effort, check_with};
use mmu_core::{
    AccessKind, Begin, BreakRule, EncodeError, Entry, Flush, FlushPlan, FlushScope, Format, Geometry, Hpa, Leaf, Level,
    NotPresent, PathPlace, UpdateTime, Verdict, Walk, WalkCaches,
};

/// One defect on top of EPT.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Defect {
    None,
    PresentMaskLacksExecute,
    LeafLosesAttributes,
    LeafSharesABit,
    TableBaseShifted,
    TableAtLastLevel,
    MisalignedTable,
    FrozenPresent,
    FrozenMapped,
    EmptyNotZero,
    OutputKeepsLowBits,
    IsLeafAlways,
    NextTableTooNarrow,
    ProgressionTooLong,
    AccessedMaskWrong,
    DirtyMaskWrong,
    WritableAlways,
    ProtectForgets,
    ProtectClearsRead,
    RestoreClean,
    RestoreAnything,
    OldKeepsFlag,
    OldTouchesDirty,
    YoungAgain,
    OldUnmapped,
    UpdateSetsDirtyOnRead,
    UpdateForgetsAccessed,
    UpdateNotIdempotent,
    BreakItself,
    BreakToMake,
    FlushTooSmall,
    FlushKeepsWalkCaches,
    FlushLocal,
    WalkSkipsALevel,
    WalkWrongPage,
    WalkBlamesNobody,
}

use Defect::*;

const ALL: [Defect; 35] = [
    PresentMaskLacksExecute,
    LeafLosesAttributes,
    LeafSharesABit,
    TableBaseShifted,
    TableAtLastLevel,
    MisalignedTable,
    FrozenPresent,
    FrozenMapped,
    EmptyNotZero,
    OutputKeepsLowBits,
    IsLeafAlways,
    NextTableTooNarrow,
    ProgressionTooLong,
    AccessedMaskWrong,
    DirtyMaskWrong,
    WritableAlways,
    ProtectForgets,
    ProtectClearsRead,
    RestoreClean,
    RestoreAnything,
    OldKeepsFlag,
    OldTouchesDirty,
    YoungAgain,
    OldUnmapped,
    UpdateSetsDirtyOnRead,
    UpdateForgetsAccessed,
    UpdateNotIdempotent,
    BreakItself,
    BreakToMake,
    FlushTooSmall,
    FlushKeepsWalkCaches,
    FlushLocal,
    WalkSkipsALevel,
    WalkWrongPage,
    WalkBlamesNobody,
];

const A: u64 = 1 << 8;
const D: u64 = 1 << 9;
const W: u64 = 2;

#[derive(Clone, Copy, PartialEq, Debug)]
struct Broken {
    ept: Ept,
    defect: Defect,
}

impl Broken {
    fn is(&self, defect: Defect) -> bool {
        self.defect == defect
    }
}

impl Format for Broken {
    type Attrs = EptAttrs;
    type Fault = EptFault;
    type Tlbi = InvTlbi;
    const NAME: &'static str = "broken";
    const UPDATE_TIME: UpdateTime = UpdateTime::BeforeNextStage;

    fn geometry(&self) -> &Geometry {
        self.ept.geometry()
    }
    fn decode(&self, level: Level, raw: u64) -> Entry<EptAttrs> {
        match self.ept.decode(level, raw) {
            Entry::Leaf(leaf) if self.is(LeafLosesAttributes) => {
                Entry::Leaf(Leaf { attrs: EptAttrs { software: 0, ..leaf.attrs }, ..leaf })
            }
            entry => entry,
        }
    }
    fn encode_leaf(&self, level: Level, leaf: &Leaf<EptAttrs>) -> Result<u64, EncodeError> {
        let raw = self.ept.encode_leaf(level, leaf)?;
        Ok(if self.is(LeafSharesABit) { raw | A } else { raw })
    }
    fn encode_table(&self, level: Level, base: Hpa) -> Result<u64, EncodeError> {
        match self.defect {
            TableBaseShifted => Ok(self.ept.encode_table(level, base)? ^ 1 << 12),
            TableAtLastLevel if level == Level::LAST => Ok(base.raw() | 7),
            MisalignedTable => self.ept.encode_table(level, Hpa::new(base.raw() & !0xfff)),
            _ => self.ept.encode_table(level, base),
        }
    }
    fn encode_not_present(&self, entry: NotPresent) -> Result<u64, EncodeError> {
        match (self.defect, entry) {
            (FrozenPresent, NotPresent::Frozen) => Ok(0x5a1),
            (EmptyNotZero, NotPresent::Empty) => Ok(0x1000),
            _ => self.ept.encode_not_present(entry),
        }
    }
    fn present_mask(&self) -> u64 {
        if self.is(PresentMaskLacksExecute) { 3 } else { self.ept.present_mask() }
    }
    fn is_mapped(&self, raw: u64) -> bool {
        match self.defect {
            FrozenMapped => raw != 0,
            OldUnmapped => raw & A != 0 && self.ept.is_mapped(raw),
            _ => self.ept.is_mapped(raw),
        }
    }
    fn is_leaf(&self, level: Level, raw: u64) -> bool {
        self.is(IsLeafAlways) || self.ept.is_leaf(level, raw)
    }
    fn output(&self, level: Level, raw: u64) -> Hpa {
        if self.is(OutputKeepsLowBits) { Hpa::new(raw & ((1 << 46) - 1)) } else { self.ept.output(level, raw) }
    }
    fn next_table(&self, level: Level, raw: u64) -> Hpa {
        let base = self.ept.next_table(level, raw);
        if self.is(NextTableTooNarrow) { Hpa::new(base.raw() & 0xffff_ffff) } else { base }
    }
    fn progression(&self, level: Level, output: Hpa) -> u64 {
        if self.is(ProgressionTooLong) { 0 } else { self.ept.progression(level, output) }
    }
    fn accessed_mask(&self) -> u64 {
        if self.is(AccessedMaskWrong) { D } else { self.ept.accessed_mask() }
    }
    fn dirty_mask(&self) -> u64 {
        if self.is(DirtyMaskWrong) { 1 << 11 } else { self.ept.dirty_mask() }
    }
    fn hardware_accessed(&self) -> bool {
        self.ept.hardware_accessed()
    }
    fn hardware_dirty(&self) -> bool {
        self.ept.hardware_dirty()
    }
    fn is_writable(&self, raw: u64) -> bool {
        self.is(WritableAlways) || self.ept.is_writable(raw)
    }
    fn write_protect(&self, raw: u64) -> u64 {
        match self.defect {
            ProtectForgets => raw & !W,
            ProtectClearsRead if raw & W != 0 => self.ept.write_protect(raw) & !1 | 4,
            _ => self.ept.write_protect(raw),
        }
    }
    fn restore_write(&self, raw: u64) -> Option<u64> {
        match self.defect {
            RestoreClean => self.ept.restore_write(raw).map(|word| word & !D),
            RestoreAnything => Some(raw | W | D),
            _ => self.ept.restore_write(raw),
        }
    }
    fn mark_old(&self, raw: u64) -> u64 {
        match self.defect {
            OldKeepsFlag => raw,
            OldTouchesDirty => raw & !(A | D),
            _ => self.ept.mark_old(raw),
        }
    }
    fn mark_young(&self, raw: u64) -> Option<u64> {
        if self.is(YoungAgain) { Some(raw | A) } else { self.ept.mark_young(raw) }
    }
    fn flush_plan(&self, flush: Flush) -> FlushPlan<InvTlbi> {
        let plan = self.ept.flush_plan(flush);
        let covers = match (self.defect, flush.scope) {
            (FlushTooSmall, FlushScope::Range { start, bytes, level }) => {
                Flush { scope: FlushScope::Range { start, bytes: bytes - 1, level }, ..plan.covers }
            }
            (FlushKeepsWalkCaches, _) => Flush { walk_caches: WalkCaches::Keep, ..plan.covers },
            _ => plan.covers,
        };
        let delivery = if self.is(FlushLocal) { mmu_core::Delivery::LocalInstruction } else { plan.delivery };
        FlushPlan { covers, delivery, ..plan }
    }
    fn break_rule(&self, level: Level, old: u64, new: u64) -> BreakRule {
        match self.defect {
            BreakItself if old == new => BreakRule::Needed("always"),
            BreakToMake if old == 0 && new != 0 => BreakRule::Needed("always"),
            _ => self.ept.break_rule(level, old, new),
        }
    }
    fn begin(&self, root: Hpa, walk: &Walk) -> Result<Begin, EptFault> {
        let begin = self.ept.begin(root, walk)?;
        Ok(if self.is(WalkSkipsALevel) { Begin { level: Level::new(2), ..begin } } else { begin })
    }
    fn entry(&self, walk: &Walk, level: Level, raw: u64, acc: &mut u64) -> Verdict<EptFault> {
        match self.ept.entry(walk, level, raw, acc) {
            Verdict::Leaf(mut mapped) if self.is(WalkWrongPage) => {
                mapped.output += 0x1000;
                Verdict::Leaf(mapped)
            }
            Verdict::Fault(fault) if self.is(WalkBlamesNobody) => {
                Verdict::Fault(EptFault { level: level.up(), ..fault })
            }
            verdict => verdict,
        }
    }
    fn updated(&self, walk: &Walk, level: Level, raw: u64, place: PathPlace) -> u64 {
        let new = self.ept.updated(walk, level, raw, place);
        match self.defect {
            UpdateSetsDirtyOnRead if place == PathPlace::Leaf => new | D,
            UpdateForgetsAccessed if walk.access.kind == AccessKind::Read => raw,
            UpdateNotIdempotent => new ^ 1 << 52,
            _ => new,
        }
    }
    fn bus_fault(&self, walk: &Walk, level: Level) -> EptFault {
        self.ept.bus_fault(walk, level)
    }
}

#[test]
fn the_kit_finds_every_defect() {
    let effort = Effort { words: 500, addresses: 1, seed: 3 };
    let ept = EptConfig::new().accessed_dirty(AccessedDirty::On).build().unwrap();
    check_with(&Broken { ept, defect: None }, effort).expect("without a defect it is EPT");
    for defect in ALL {
        let broken = check_with(&Broken { ept, defect }, effort).expect_err(&format!("{defect:?} is not found"));
        assert!(broken.count > 0 && !broken.first.is_empty() && broken.first.len() <= 20);
        assert!(broken.to_string().contains("level "), "{broken}");
    }
}
