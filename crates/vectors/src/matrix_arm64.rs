//! The Arm stage-2 matrix (permissions, access flag and dirty state, kinds of descriptor, fault status codes), each row
//! through a walk, and the break-before-make rules, each row through [`Stage2::break_rule_for`].
//!
//! A row that does not name granule, level or privilege is tried with all of them; it agrees when all do.

use arch_arm64_s2::{
    ArmFault, ArmLevel, BbmLevel, FaultKind, Features, Granule, HardwareUpdates, Hcr, PageContents, S2Attrs, S2Memory,
    Shareability, Stage2, Stage2Config, StartLevel,
};
use mmu_core::format::{BreakRule, Format, Leaf};
use mmu_core::image::MemoryImage;
use mmu_core::tlb::Perms;
use mmu_core::walk::{Step, Translation, WalkCursor};
use mmu_core::{Access, Hpa, Level};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::BTreeMap;

use crate::report::{Disagreement, FileReport, Quirk};
use crate::run::VectorError;

/// Status codes of faults that no table walk raises.
const NOT_OF_A_WALK: Quirk = Quirk {
    name: "arm64-status-not-of-a-walk",
    why: "alignment and unsupported-atomic-update faults come from the access, not from its translation (Arm ARM D8.15)",
};

/// HA, HD, AF, DBM, S2AP, the access, what comes of it, the bits that hardware sets.
type UpdateRow = (u64, u64, u64, u64, u64, AccessName, Outcome, Updated);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Matrix {
    #[serde(rename = "title")]
    _title: String,
    #[serde(rename = "made", default)]
    _made: IgnoredAny,
    #[serde(rename = "sources", default)]
    _sources: IgnoredAny,
    #[serde(rename = "license_note", default)]
    _license_note: IgnoredAny,
    permission: Section<(bool, u64, u64, AccessName, Outcome)>,
    af_dirty: Section<UpdateRow>,
    descriptor_kind: Section<(String, i8, u64, String)>,
    fault_status: FaultStatus,
    #[serde(rename = "order_of_checks", default)]
    _order_of_checks: IgnoredAny,
    #[serde(rename = "tlb_rules", default)]
    _tlb_rules: IgnoredAny,
    counts: Counts,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Section<Row> {
    columns: Vec<String>,
    #[serde(rename = "note", default)]
    _note: IgnoredAny,
    rows: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FaultStatus {
    #[serde(rename = "note", default)]
    _note: IgnoredAny,
    #[serde(rename = "discrepancy", default)]
    _discrepancy: IgnoredAny,
    codes: BTreeMap<String, Codes>,
}

/// A code, or one for each level.
#[derive(Deserialize)]
#[serde(untagged)]
enum Codes {
    One(u8),
    ByLevel(BTreeMap<String, u8>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Counts {
    permission: usize,
    af_dirty: usize,
    descriptor_kind: usize,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case")]
enum AccessName {
    Read,
    Write,
    Exec,
    ExecEl1,
    ExecEl0,
}

impl AccessName {
    /// The accesses it stands for.
    fn accesses(self) -> Vec<Access> {
        match self {
            AccessName::Read => vec![Access::READ, Access::READ.user()],
            AccessName::Write => vec![Access::WRITE, Access::WRITE.user()],
            AccessName::Exec => vec![Access::EXECUTE, Access::EXECUTE.user()],
            AccessName::ExecEl1 => vec![Access::EXECUTE],
            AccessName::ExecEl0 => vec![Access::EXECUTE.user()],
        }
    }
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Allowed,
    Permission,
    AccessFlag,
}

/// Bits that hardware sets.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
#[serde(deny_unknown_fields)]
struct Updated {
    #[serde(rename = "AF", default)]
    accessed: u64,
    #[serde(rename = "S2AP1", default)]
    write: u64,
}

const AF: u64 = 1 << 10;
const S2AP_SHIFT: u32 = 6;
const S2AP1: u64 = 1 << 7;
const DBM: u64 = 1 << 51;
const XN_SHIFT: u32 = 53;
const WRITE_BACK: u64 = 0xf << 2;
const ROOT: Hpa = Hpa::new(0x100_0000);
const NEXT: u64 = 0x200_0000;

/// Checks every row of the stage-2 matrix `text`, called `name` in reports.
///
/// # Errors
/// When the text is not such a matrix. Rows that disagree are not errors.
pub fn check_arm64_matrix(name: &str, text: &str) -> Result<FileReport, VectorError> {
    let fail = |line, what| VectorError::Line { file: name.to_owned(), line, what };
    let matrix: Matrix = serde_json::from_str(text).map_err(|error| fail(error.line(), error.to_string()))?;
    matrix.check_shape().map_err(|what| fail(1, what))?;
    let mut rows = Rows::new(name);
    for (i, row) in matrix.permission.rows.iter().enumerate() {
        rows.add("permission", i, &format!("{row:?}"), check_permission(row));
    }
    for (i, row) in matrix.af_dirty.rows.iter().enumerate() {
        rows.add("af_dirty", i, &format!("{row:?}"), check_update(row));
    }
    for (i, row) in matrix.descriptor_kind.rows.iter().enumerate() {
        let found = check_kind(row).map_err(|what| fail(1, format!("descriptor_kind row {i}: {what}")))?;
        rows.add("descriptor_kind", i, &format!("{row:?}"), found);
    }
    rows.statuses(&matrix.fault_status.codes).map_err(|what| fail(1, what))?;
    Ok(rows.report)
}

impl Matrix {
    fn check_shape(&self) -> Result<(), String> {
        let columns = |section: &str, found: &[String], expected: &[&str]| {
            if found == expected { Ok(()) } else { Err(format!("{section}.columns: {found:?}; {expected:?} is read")) }
        };
        columns("permission", &self.permission.columns, &["xnx", "S2AP", "XN[1:0]", "access", "outcome"])?;
        let update = ["HA", "HD", "AF", "DBM", "S2AP", "access", "outcome", "hardware_update"];
        columns("af_dirty", &self.af_dirty.columns, &update)?;
        columns("descriptor_kind", &self.descriptor_kind.columns, &["granule", "level", "bits[1:0]", "meaning"])?;
        for (section, found, expected) in [
            ("permission", self.permission.rows.len(), self.counts.permission),
            ("af_dirty", self.af_dirty.rows.len(), self.counts.af_dirty),
            ("descriptor_kind", self.descriptor_kind.rows.len(), self.counts.descriptor_kind),
        ] {
            if found != expected {
                return Err(format!("counts.{section}: {expected}, but {found} rows are there; fetch the file again"));
            }
        }
        Ok(())
    }
}

/// Collects rows into a report.
struct Rows {
    report: FileReport,
}

impl Rows {
    fn new(name: &str) -> Self {
        Self { report: FileReport { file: name.to_owned(), images: 1, ..FileReport::default() } }
    }

    fn add(&mut self, section: &str, index: usize, row: &str, found: Result<(), String>) {
        match found {
            Ok(()) => self.report.agree(),
            Err(got) => self.report.disagree(Disagreement {
                image: section.to_owned(),
                line: 1,
                case: index,
                access: format!("row {index}"),
                expected: row.to_owned(),
                got,
            }),
        }
    }

    fn statuses(&mut self, codes: &BTreeMap<String, Codes>) -> Result<(), String> {
        for (index, (name, codes)) in codes.iter().enumerate() {
            let kind = match name.as_str() {
                "address_size" => FaultKind::AddressSize,
                "translation" => FaultKind::Translation,
                "access_flag" => FaultKind::AccessFlag,
                "permission" => FaultKind::Permission,
                "sync_external_on_walk" => FaultKind::ExternalOnWalk,
                "tlb_conflict" => FaultKind::TlbConflict,
                "alignment" | "unsupported_atomic_update" => {
                    self.report.except(NOT_OF_A_WALK);
                    continue;
                }
                other => return Err(format!("fault_status.codes: `{other}` is no known fault")),
            };
            let by_level = match codes {
                Codes::One(code) => vec![(ArmLevel::LAST, *code)],
                Codes::ByLevel(codes) => {
                    let levels = codes.iter().map(|(level, &code)| Some((ArmLevel::new(level.parse().ok()?)?, code)));
                    levels
                        .collect::<Option<Vec<_>>>()
                        .ok_or(format!("fault_status.codes.{name}: levels are -1 to 3"))?
                }
            };
            for (level, code) in by_level {
                let ours = kind.status(level);
                let found = if ours == code { Ok(()) } else { Err(format!("{ours:#x}")) };
                self.add("fault_status", index, &format!("{name} level {level}: {code:#x}"), found);
            }
        }
        Ok(())
    }
}

// ---- walks ----

/// A second stage whose walk starts at `level`, or `None` where this processor has none.
fn starting_at(granule: Granule, level: ArmLevel, updates: HardwareUpdates, features: Features) -> Option<Stage2> {
    let ipa_bits = granule.level_shift(level.level()) + 4;
    let config =
        Stage2Config { granule, ipa_bits, start: StartLevel::At(level), updates, features, ..Default::default() };
    // Without FWB, so that one encoding of write-back memory serves all.
    let (vtcr, hcr) = config.registers().ok()?;
    Stage2::new(vtcr, Hcr::new(hcr.value() & 1), features).ok()
}

/// One walk of address 0 through a start table whose first word is `word`: reads made, how it ended, the word after.
fn walk_one(stage2: Stage2, word: u64, access: Access) -> (usize, Result<Translation, ArmFault>, u64) {
    let mut memory = MemoryImage::everywhere();
    if memory.set(ROOT, word).is_err() {
        return (0, WalkCursor::new(stage2, ROOT, 0, access).run(&mut memory), word);
    }
    let mut cursor = WalkCursor::new(stage2, ROOT, 0, access);
    let mut reads = 0;
    loop {
        match cursor.step(&mut memory) {
            Step::Read(_) => reads += 1,
            Step::Update(_) | Step::Restart(_) => {}
            Step::Done(found) => return (reads, Ok(found), memory.get(ROOT)),
            Step::Fault(fault) => return (reads, Err(fault), memory.get(ROOT)),
        }
    }
}

fn outcome(end: &Result<Translation, ArmFault>) -> Option<Outcome> {
    match end {
        Ok(_) => Some(Outcome::Allowed),
        Err(fault) if fault.kind == FaultKind::Permission => Some(Outcome::Permission),
        Err(fault) if fault.kind == FaultKind::AccessFlag => Some(Outcome::AccessFlag),
        Err(_) => None,
    }
}

/// Walks one leaf word at every level of every granule that has leaves, by every access that the row stands for.
fn everywhere(
    features: Features,
    updates: HardwareUpdates,
    bits: u64,
    access: AccessName,
    judge: impl Fn(&Result<Translation, ArmFault>, u64, u64) -> bool,
) -> Result<(), String> {
    for granule in Granule::ALL {
        for level in (-1..=3).filter_map(ArmLevel::new) {
            let Some(stage2) = starting_at(granule, level, updates, features) else { continue };
            if !stage2.geometry().has_leaves_at(level.level()) {
                continue;
            }
            let word = bits | WRITE_BACK | if level == ArmLevel::LAST { 0b11 } else { 0b01 };
            for access in access.accesses() {
                let (_, end, after) = walk_one(stage2, word, access);
                if !judge(&end, word, after) {
                    return Err(format!(
                        "{granule}, level {level}, {access}: {end:?}, word {word:#x} becomes {after:#x}"
                    ));
                }
            }
        }
    }
    Ok(())
}

fn check_permission(row: &(bool, u64, u64, AccessName, Outcome)) -> Result<(), String> {
    let &(xnx, s2ap, xn, access, expected) = row;
    let features = Features { xnx, ..Features::MAX };
    let bits = AF | s2ap << S2AP_SHIFT | xn << XN_SHIFT;
    everywhere(features, HardwareUpdates::None, bits, access, |end, before, after| {
        outcome(end) == Some(expected) && before == after
    })
}

fn check_update(row: &UpdateRow) -> Result<(), String> {
    let &(ha, hd, af, dbm, s2ap, access, expected, set) = row;
    let updates = match (ha, hd) {
        (0, _) => HardwareUpdates::None,
        (_, 0) => HardwareUpdates::Accessed,
        _ => HardwareUpdates::AccessedAndDirty,
    };
    let bits = (af * AF) | (dbm * DBM) | s2ap << S2AP_SHIFT;
    let set = (set.accessed * AF) | (set.write * S2AP1);
    everywhere(Features::MAX, updates, bits, access, |end, before, after| {
        outcome(end) == Some(expected) && after == before | set
    })
}

/// What the type bits of a descriptor make of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Invalid,
    Table,
    Leaf,
}

fn check_kind(row: &(String, i8, u64, String)) -> Result<Result<(), String>, String> {
    let (granule, level, bits, meaning) = row;
    let granule = Granule::ALL.into_iter().find(|known| known.to_string() == *granule);
    let granule = granule.ok_or_else(|| format!("granule `{}`; 4K, 16K and 64K are known", row.0))?;
    let level = ArmLevel::new(*level).ok_or_else(|| format!("level {level}; -1 to 3 are known"))?;
    // With 52-bit addresses, and without.
    let (wide, plain) = match meaning.as_str() {
        "invalid -> translation fault" | "reserved encoding -> translation fault" => (Kind::Invalid, Kind::Invalid),
        "table" => (Kind::Table, Kind::Table),
        "block" | "page" => (Kind::Leaf, Kind::Leaf),
        "block only with 52-bit descriptors (DS=1)" | "block only with 52-bit PA (LPA)" => (Kind::Leaf, Kind::Invalid),
        other => return Err(format!("meaning `{other}` is not known")),
    };
    for (features, expected) in [(Features::MAX, wide), (Features::default(), plain)] {
        // A level where no walk of this processor starts.
        let Some(stage2) = starting_at(granule, level, HardwareUpdates::None, features) else { continue };
        let address = if expected == Kind::Table { NEXT } else { 0 };
        let word = address | AF | WRITE_BACK | 3 << S2AP_SHIFT | bits;
        let (reads, end, _) = walk_one(stage2, word, Access::READ);
        let found = match end {
            Err(fault) if reads == 1 && fault.kind == FaultKind::Translation && fault.level == level => Kind::Invalid,
            Err(_) if reads == 2 => Kind::Table,
            Ok(found) if reads == 1 && found.size == stage2.geometry().page_size(level.level()) => Kind::Leaf,
            _ => return Ok(Err(format!("{end:?} after {reads} reads"))),
        };
        if found != expected {
            return Ok(Err(format!("{found:?} with {}-bit addresses", features.pa_bits)));
        }
    }
    Ok(Ok(()))
}

// ---- break-before-make ----

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BbmRules {
    #[serde(rename = "title")]
    _title: String,
    #[serde(rename = "sources", default)]
    _sources: IgnoredAny,
    #[serde(rename = "rule", default)]
    _rule: IgnoredAny,
    rows: Vec<BbmRow>,
    #[serde(rename = "catalogue_tests", default)]
    _catalogue_tests: IgnoredAny,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct BbmRow {
    change: String,
    old: Option<String>,
    new: Option<String>,
    requires_bbm: bool,
    #[serde(rename = "herd_7_58_flag", default)]
    _herd: IgnoredAny,
    #[serde(rename = "exception", default)]
    _exception: IgnoredAny,
    #[serde(rename = "casemate_c", default)]
    _casemate: IgnoredAny,
}

/// Checks every row of the break-before-make rules `text`, called `name` in reports, without `FEAT_BBM`, and that its second
/// level relaxes changes of size and nothing else.
///
/// # Errors
/// When the text is not such a list. Rows that disagree are not errors.
pub fn check_bbm_rules(name: &str, text: &str) -> Result<FileReport, VectorError> {
    let fail = |line, what| VectorError::Line { file: name.to_owned(), line, what };
    let rules: BbmRules = serde_json::from_str(text).map_err(|error| fail(error.line(), error.to_string()))?;
    let mut rows = Rows::new(name);
    for (i, row) in rules.rows.iter().enumerate() {
        let found = check_bbm(row).map_err(|what| fail(1, format!("row {i}: {what}")))?;
        rows.add("rows", i, &format!("{}: requires_bbm {}", row.change, row.requires_bbm), found);
    }
    Ok(rows.report)
}

const BLOCK: Level = Level::new(1);
const PAGE_X: u64 = 0x4000_0000;
const PAGE_Y: u64 = 0x8000_0000;

fn with_bbm(bbm: BbmLevel) -> Option<Stage2> {
    starting_at(Granule::K4, ArmLevel::new(1)?, HardwareUpdates::None, Features { bbm, ..Features::default() })
}

fn check_bbm(row: &BbmRow) -> Result<Result<(), String>, String> {
    let (Some(strict), Some(relaxed)) = (with_bbm(BbmLevel::Level0), with_bbm(BbmLevel::Level2)) else {
        return Err("no second stage to ask".into());
    };
    let contents = if row.change.contains("same contents") { PageContents::Same } else { PageContents::MayDiffer };
    let (changes, of_size) = changes(&strict, row)?;
    for (old, new) in changes {
        let rule = strict.break_rule_for(BLOCK, old, new, contents);
        if matches!(rule, BreakRule::Needed(_)) != row.requires_bbm {
            return Ok(Err(format!("{rule:?} for {old:#x} to {new:#x}")));
        }
        let rule = relaxed.break_rule_for(BLOCK, old, new, contents);
        if matches!(rule, BreakRule::Relaxed(_)) != (of_size && row.requires_bbm) {
            return Ok(Err(format!("{rule:?} for {old:#x} to {new:#x} with FEAT_BBM level 2")));
        }
    }
    Ok(Ok(()))
}

/// The words before and after, and whether the change is one of size.
fn changes(stage2: &Stage2, row: &BbmRow) -> Result<(Vec<(u64, u64)>, bool), String> {
    if let (Some(old), Some(new)) = (&row.old, &row.new) {
        return Ok((vec![(word(stage2, old)?, word(stage2, new)?)], false));
    }
    let block = word(stage2, "oa:PA(x)")?;
    let contiguous = block | 1 << 52;
    let table = |base| stage2.encode_table(BLOCK, Hpa::new(base)).map_err(|error| error.to_string());
    let (one, other) = (table(NEXT)?, table(2 * NEXT)?);
    match row.change.split_whitespace().take(3).collect::<Vec<_>>().as_slice() {
        ["block", "to", "table"] => Ok((vec![(block, one), (one, block)], true)),
        ["block", "size", "change"] => Ok((vec![(block, contiguous), (contiguous, block)], true)),
        ["table", "pointer", "change"] => Ok((vec![(one, other)], false)),
        _ => Err(format!("change `{}` has no `old` and `new` and is not known", row.change)),
    }
}

/// The word of an entry such as `oa:PA(x),db:0,attrs:(Normal,NSH)`.
fn word(stage2: &Stage2, text: &str) -> Result<u64, String> {
    let mut leaf =
        Leaf { output: Hpa::new(PAGE_X), perms: Perms::RW | Perms::DIRTY, accessed: true, attrs: S2Attrs::default() };
    let mut valid = true;
    let fields = text.split_once(",attrs:").map_or((text, None), |(fields, attrs)| (fields, Some(attrs)));
    for field in fields.0.split(',') {
        match field {
            "oa:PA(x)" | "db:1" | "af:1" | "valid:1" | "dbm:0" => {}
            "oa:PA(y)" => leaf.output = Hpa::new(PAGE_Y),
            "db:0" => leaf.perms = Perms::R,
            "af:0" => leaf.accessed = false,
            "valid:0" => valid = false,
            "dbm:1" => leaf.attrs.dbm_inverted = true,
            other => return Err(format!("field `{other}` of entry `{text}` is not known")),
        }
    }
    match fields.1 {
        None => {}
        Some("(Device-nGnRnE)") => leaf.attrs.memory = S2Memory::DeviceNGnRnE,
        Some("(Normal,iNC,oNC)") => leaf.attrs.memory = S2Memory::NonCacheable,
        Some("(Normal,NSH)") => leaf.attrs.shareability = Shareability::Non,
        Some(other) => return Err(format!("attributes `{other}` of entry `{text}` are not known")),
    }
    let raw = stage2.encode_leaf(BLOCK, &leaf).map_err(|error| error.to_string())?;
    Ok(if valid { raw } else { raw & !1 })
}
