//! The EPT permission matrix: expectations of public hypervisor tests as data, held against decoder and walker.
//!
//! Every row becomes a tree with one entry under test and a walk of it. Checked are the permission rows (each level, large
//! or not, each feature set), their compact form, reserved and ignored bits, memory types, and the guest's own walks over a
//! restricted page. The rows about nested paging of another vendor are no EPT and are excepted.

use arch_x86_ept::{
    AccessedDirty, Ept, EptConfig, EptFault, ExecuteOnly, LongModeConfig, ModeBasedExecute, WalkLength,
};
use mmu_core::image::MemoryImage;
use mmu_core::walk::{NestedCursor, NestedFault, NoCaches, walk};
use mmu_core::{Access, Gpa, Hpa};
use serde::Deserialize;

use crate::report::{Disagreement, FileReport, Quirk};
use crate::run::VectorError;

/// Rows about nested paging of the other x86 vendor.
const NOT_EPT: Quirk =
    Quirk { name: "matrix-not-ept", why: "the row is about AMD nested paging (APM volume 2, 15.25), which is no EPT" };

/// Judges rows, section by section.
struct Checker {
    report: FileReport,
    section: &'static str,
    index: usize,
}

impl Checker {
    fn section(&mut self, name: &'static str) {
        self.section = name;
        self.index = 0;
    }

    /// One walk; `explain` gives the row and the walker's answer.
    fn judge(&mut self, agrees: bool, explain: impl FnOnce() -> (String, String)) {
        if agrees {
            self.report.agree();
        } else {
            let (expected, got) = explain();
            self.report.disagree(Disagreement {
                image: self.section.to_owned(),
                line: 0,
                case: self.index,
                access: "walk".to_owned(),
                expected,
                got,
            });
        }
        self.index += 1;
    }
}

#[derive(Deserialize)]
struct Matrix {
    rows: Vec<Row>,
    #[serde(rename = "compact_matrix")]
    compact: Vec<Compact>,
    reserved_bits: Vec<ReservedRule>,
    ignored_bits: IgnoredBits,
    leaf_memtype_xwr: MemoryTypes,
    guest_page_walk: GuestWalks,
    #[serde(default)]
    amd_npt_bonus: Option<OtherRows>,
}

#[derive(Deserialize, Clone, Copy, Debug)]
struct Features {
    mbec: bool,
    exec_only: bool,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Debug)]
#[serde(rename_all = "snake_case")]
enum MatrixAccess {
    Read,
    Write,
    Exec,
    ExecUser,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Debug)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    #[serde(alias = "translates")]
    Allowed,
    Violation,
    Misconfig,
}

#[derive(Deserialize, Debug)]
struct Row {
    features: Features,
    level: u32,
    large_page: bool,
    entry_perm: String,
    #[serde(default)]
    entry_perm_bits: Option<u64>,
    other_levels_perm: String,
    access: MatrixAccess,
    outcome: Outcome,
    #[serde(default)]
    exit_qualification: Option<u64>,
}

#[derive(Deserialize, Debug)]
struct Compact {
    #[serde(flatten)]
    features: Features,
    perm: String,
    access: MatrixAccess,
    outcome: Outcome,
    #[serde(default)]
    qual: Option<u64>,
}

#[derive(Deserialize, Debug)]
#[serde(untagged)]
enum Bits {
    List(Vec<u32>),
    Named(String),
}

#[derive(Deserialize, Debug)]
struct ReservedRule {
    rule: String,
    level: u32,
    large_page: Vec<bool>,
    bits: Bits,
    #[serde(default)]
    also_per_kvm_mask: Vec<u32>,
    present_outcome: Outcome,
    #[serde(default)]
    notpresent_outcome: Option<Outcome>,
    #[serde(default)]
    notpresent_access: Option<MatrixAccess>,
    #[serde(default)]
    notpresent_qual: Option<u64>,
}

#[derive(Deserialize, Debug)]
struct IgnoredBits {
    bits_always: Vec<u32>,
    bits_without_mbec: Vec<u32>,
    levels: Vec<u32>,
    accesses: Vec<MatrixAccess>,
    outcome: Outcome,
}

#[derive(Deserialize, Debug)]
struct MemoryTypes {
    columns: Vec<String>,
    rows: Vec<(bool, u64, u64, Outcome)>,
}

#[derive(Deserialize, Debug)]
struct GuestWalks {
    rows: Vec<GuestWalk>,
}

#[derive(Deserialize, Debug)]
struct GuestWalk {
    ept_ad_enabled: bool,
    ept_perm_of_page_holding_guest_pte: String,
    guest_pte_ad: String,
    access: MatrixAccess,
    outcome: Outcome,
    #[serde(default)]
    exit_qualification: Option<u64>,
    #[serde(default)]
    after: Option<After>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
#[allow(non_snake_case)] // The file's own names.
struct After {
    #[serde(default)]
    guest_pte_A: Option<u64>,
    /// A number, or `"unchanged"`.
    #[serde(default)]
    guest_pte_D: Option<serde_json::Value>,
    #[serde(default)]
    ept_A_all_levels: Option<u64>,
    #[serde(default)]
    ept_D_leaf: Option<u64>,
    #[serde(default)]
    ept_D_nonleaf: Option<u64>,
}

#[derive(Deserialize)]
struct OtherRows {
    rows: Vec<serde_json::Value>,
}

const LARGE: u64 = 1 << 7;
const WRITE_BACK: u64 = 6 << 3;
/// A gigabyte boundary, so that leaves of every size may map it.
const OUTPUT: u64 = 4 << 30;

impl MatrixAccess {
    const fn access(self) -> Access {
        match self {
            MatrixAccess::Read => Access::READ,
            MatrixAccess::Write => Access::WRITE,
            MatrixAccess::Exec => Access::EXECUTE,
            MatrixAccess::ExecUser => Access::EXECUTE.user(),
        }
    }
}

impl Features {
    const PLAIN: Features = Features { mbec: false, exec_only: true };

    fn config(self) -> EptConfig {
        EptConfig::new()
            .mode_based_execute(if self.mbec { ModeBasedExecute::On } else { ModeBasedExecute::Off })
            .execute_only(if self.exec_only { ExecuteOnly::Supported } else { ExecuteOnly::Unsupported })
    }
}

fn build(config: EptConfig) -> Result<Ept, String> {
    config.build().map_err(|error| error.to_string())
}

/// `r-xu` as entry bits.
fn permission_bits(text: &str) -> Result<u64, String> {
    text.chars().try_fold(0, |bits, c| match c {
        'r' => Ok(bits | 1),
        'w' => Ok(bits | 2),
        'x' => Ok(bits | 4),
        'u' => Ok(bits | 1 << 10),
        '-' => Ok(bits),
        other => Err(format!("permissions `{text}`: `{other}` is none of r, w, x, u and -")),
    })
}

/// The entry under test in a tree whose other entries allow `others`.
#[derive(Clone, Copy)]
struct Tested {
    /// As the manual counts: 1 is the last.
    level: u32,
    large: bool,
    /// The entry's bits besides the address, large and memory type, which are added.
    bits: u64,
    others: u64,
}

impl Tested {
    /// A tree of `levels` levels, its root at 0x1000; the walk of address 0 meets the entry.
    fn tree(self, levels: u32) -> Result<MemoryImage, String> {
        if self.level == 0 || self.level > levels || self.large && !(2..=3).contains(&self.level) {
            return Err(format!("no such entry: level {} of {levels}, large page {}", self.level, self.large));
        }
        let mut image = MemoryImage::everywhere();
        for level in (1..=levels).rev() {
            let tested = level == self.level;
            let leaf = level == 1 || tested && self.large;
            let large = if leaf && level > 1 { LARGE } else { 0 };
            let bits = if tested { self.bits } else { self.others };
            let at = 0x1000 * u64::from(levels - level + 1);
            let word = if leaf { OUTPUT | WRITE_BACK | large } else { at + 0x1000 };
            image.set(Hpa::new(at), word ^ bits).map_err(|error| error.to_string())?;
            if leaf {
                break;
            }
        }
        Ok(image)
    }
}

fn outcome(fault: Option<EptFault>) -> (Outcome, Option<u64>) {
    match fault {
        None => (Outcome::Allowed, None),
        Some(fault) => match fault.qualification() {
            Some(bits) => (Outcome::Violation, Some(bits.bits())),
            None => (Outcome::Misconfig, None),
        },
    }
}

fn run(ept: Ept, mut image: MemoryImage, access: MatrixAccess) -> (Outcome, Option<u64>) {
    outcome(walk(&ept, Hpa::new(0x1000), 0, access.access(), &mut image).err())
}

fn met(wanted: Outcome, qualification: Option<u64>, got: (Outcome, Option<u64>)) -> bool {
    wanted == got.0 && (qualification.is_none() || qualification == got.1)
}

fn rows(rows: &[Row], report: &mut Checker) -> Result<(), String> {
    report.section("rows");
    for row in rows {
        let bits = permission_bits(&row.entry_perm)?;
        if row.entry_perm_bits.is_some_and(|told| told != bits) {
            return Err(format!("permissions `{}` are not the bits of their row: {row:?}", row.entry_perm));
        }
        let others = permission_bits(&row.other_levels_perm)?;
        let tree = Tested { level: row.level, large: row.large_page, bits, others }.tree(4)?;
        let got = run(build(row.features.config())?, tree, row.access);
        report.judge(met(row.outcome, row.exit_qualification, got), || (format!("{row:?}"), format!("{got:?}")));
    }
    Ok(())
}

fn compact(rows: &[Compact], report: &mut Checker) -> Result<(), String> {
    report.section("compact_matrix");
    for row in rows {
        let others = if row.features.mbec { 0x407 } else { 7 };
        let bits = permission_bits(&row.perm)?;
        for (level, large) in [(1, false), (2, false), (2, true), (3, false), (3, true), (4, false)] {
            let got = run(build(row.features.config())?, Tested { level, large, bits, others }.tree(4)?, row.access);
            report.judge(met(row.outcome, row.qual, got), || (format!("{row:?} at level {level}"), format!("{got:?}")));
        }
    }
    Ok(())
}

fn reserved(rules: &[ReservedRule], report: &mut Checker) -> Result<(), String> {
    report.section("reserved_bits");
    for rule in rules {
        for width in [36, 40, 46] {
            let bits: Vec<u32> = match &rule.bits {
                Bits::List(bits) => bits.iter().chain(&rule.also_per_kvm_mask).copied().collect(),
                Bits::Named(name) if name == "MAXPHYADDR..51" => (width..52).collect(),
                Bits::Named(name) => return Err(format!("reserved bits `{name}` are not known")),
            };
            let length = if rule.level == 5 { WalkLength::Five } else { WalkLength::Four };
            let ept = build(Features::PLAIN.config().max_phys_addr(width).walk_length(length))?;
            for (&large, bit) in rule.large_page.iter().flat_map(|large| bits.iter().map(move |bit| (large, *bit))) {
                if bit > 63 {
                    return Err(format!("{}: there is no bit {bit}", rule.rule));
                }
                let tested = |bits| Tested { level: rule.level, large, bits, others: 7 }.tree(length.levels() as u32);
                let explain = |got| (format!("{}: bit {bit}, width {width}", rule.rule), format!("{got:?}"));
                let got = run(ept, tested(7 | 1 << bit)?, MatrixAccess::Read);
                report.judge(met(rule.present_outcome, None, got), || explain(got));
                if let Some(wanted) = rule.notpresent_outcome {
                    let access = rule.notpresent_access.unwrap_or(MatrixAccess::Read);
                    let got = run(ept, tested(1 << bit)?, access);
                    report.judge(met(wanted, rule.notpresent_qual, got), || explain(got));
                }
            }
        }
    }
    Ok(())
}

fn ignored(rule: &IgnoredBits, report: &mut Checker) -> Result<(), String> {
    report.section("ignored_bits");
    for mbec in [false, true] {
        let ept = build(Features { mbec, exec_only: true }.config())?;
        let others = if mbec { 0x407 } else { 7 };
        let without: &[u32] = if mbec { &[] } else { &rule.bits_without_mbec };
        for &bit in rule.bits_always.iter().chain(without).filter(|&&bit| bit < 64) {
            for &level in &rule.levels {
                for large in [false, true] {
                    if large && !(2..=3).contains(&level) {
                        continue;
                    }
                    for (&access, set) in rule.accesses.iter().flat_map(|access| [(access, 0), (access, 1 << bit)]) {
                        let tree = Tested { level, large, bits: others | set, others }.tree(4)?;
                        let got = run(ept, tree, access);
                        report.judge(met(rule.outcome, None, got), || {
                            (format!("ignored bit {bit} at level {level}"), format!("{got:?}"))
                        });
                    }
                }
            }
        }
    }
    Ok(())
}

fn memory_types(types: &MemoryTypes, report: &mut Checker) -> Result<(), String> {
    report.section("leaf_memtype_xwr");
    if types.columns != ["exec_only", "memtype", "xwr", "outcome"] {
        return Err(format!("leaf_memtype_xwr: columns {:?} are not known", types.columns));
    }
    for &(exec_only, memory_type, xwr, wanted) in &types.rows {
        if memory_type > 7 || xwr > 7 {
            return Err(format!("leaf_memtype_xwr: {memory_type} and {xwr} are fields of three bits"));
        }
        let ept = build(Features { mbec: false, exec_only }.config())?;
        let access = if xwr & 1 == 0 { MatrixAccess::Exec } else { MatrixAccess::Read };
        for (level, large) in [(1, false), (2, true), (3, true)] {
            // The tree adds write-back by exclusive or.
            let bits = xwr | (memory_type << 3) ^ WRITE_BACK;
            let got = run(ept, Tested { level, large, bits, others: 7 }.tree(4)?, access);
            report.judge(met(wanted, None, got), || {
                (format!("type {memory_type}, xwr {xwr:#b}: {wanted:?}"), format!("{got:?}"))
            });
        }
    }
    Ok(())
}

/// The guest of the page-walk rows: its tables at guest-physical 0x1000 to 0x4000, the last of them on the restricted page.
struct GuestTree {
    image: MemoryImage,
    guest_pte: Hpa,
    ept_leaf: Hpa,
}

const BACKING: u64 = 1 << 32;
const GUEST_ROOT: u64 = 0x1000;
const GUEST_TABLE: u64 = 0x4000;

impl GuestTree {
    fn new(row: &GuestWalk) -> Result<Self, String> {
        let mut image = MemoryImage::everywhere();
        let mut set = |at: u64, word: u64| image.set(Hpa::new(at), word).map_err(|error| error.to_string());
        // EPT: 0x1000 -> 0x2000 -> 0x3000 -> 0x4000, whose leaves back the first 2 MiB one to one.
        for table in [0x1000, 0x2000, 0x3000] {
            set(table, (table + 0x1000) | 7)?;
        }
        for page in 0..16 {
            let restricted = page << 12 == GUEST_TABLE;
            let permission = if restricted { permission_bits(&row.ept_perm_of_page_holding_guest_pte)? } else { 7 };
            set(0x4000 + 8 * page, (BACKING + (page << 12)) | WRITE_BACK | permission)?;
        }
        const PRESENT_WRITABLE_USER: u64 = 7;
        const A: u64 = 1 << 5;
        const D: u64 = 1 << 6;
        for table in [GUEST_ROOT, 0x2000, 0x3000] {
            set(BACKING + table, (table + 0x1000) | PRESENT_WRITABLE_USER | A)?;
        }
        let flags = match row.guest_pte_ad.as_str() {
            "--" => 0,
            "A-" => A,
            "AD" => A | D,
            other => return Err(format!("guest_pte_ad `{other}` is none of --, A- and AD")),
        };
        set(BACKING + GUEST_TABLE, 0x5000 | PRESENT_WRITABLE_USER | flags)?;
        Ok(Self {
            image,
            guest_pte: Hpa::new(BACKING + GUEST_TABLE),
            ept_leaf: Hpa::new(0x4000 + 8 * (GUEST_TABLE >> 12)),
        })
    }

    fn flags_are(&self, before: &MemoryImage, after: &After) -> bool {
        let bit = |at: Hpa, bit: u32| self.image.get(at) >> bit & 1;
        let dirty = match &after.guest_pte_D {
            None => true,
            Some(told) if told.as_str() == Some("unchanged") => {
                (before.get(self.guest_pte) ^ self.image.get(self.guest_pte)) >> 6 & 1 == 0
            }
            Some(told) => told.as_u64() == Some(bit(self.guest_pte, 6)),
        };
        let tables = [0x1000, 0x2000, 0x3000].map(Hpa::new);
        let all_accessed = tables.iter().chain([&self.ept_leaf]).all(|&at| bit(at, 8) == 1);
        let some_dirty = tables.iter().any(|&at| bit(at, 9) == 1);
        dirty
            && after.guest_pte_A.is_none_or(|told| told == bit(self.guest_pte, 5))
            && after.ept_A_all_levels.is_none_or(|told| told == u64::from(all_accessed))
            && after.ept_D_leaf.is_none_or(|told| told == bit(self.ept_leaf, 9))
            && after.ept_D_nonleaf.is_none_or(|told| told == u64::from(some_dirty))
    }
}

fn guest_walks(rows: &[GuestWalk], report: &mut Checker) -> Result<(), String> {
    report.section("guest_page_walk");
    let guest = LongModeConfig::new().build().map_err(|error| error.to_string())?;
    for row in rows {
        let flags = if row.ept_ad_enabled { AccessedDirty::On } else { AccessedDirty::Off };
        let ept = build(Features::PLAIN.config().accessed_dirty(flags))?;
        let mut tree = GuestTree::new(row)?;
        let before = tree.image.clone();
        let cursor = NestedCursor::new(guest, Gpa::new(GUEST_ROOT), ept, Hpa::new(0x1000), 0, row.access.access());
        let answer = cursor.run(&mut tree.image, &mut NoCaches);
        let (got, page) = match answer {
            Ok(_) => (outcome(None), GUEST_TABLE),
            Err(NestedFault::Two { fault, gpa, .. }) => (outcome(Some(fault)), gpa.raw() & !0xfff),
            Err(NestedFault::One(fault)) => return Err(format!("the guest's own tables are wrong: {fault}")),
        };
        let good = met(row.outcome, row.exit_qualification, got)
            && page == GUEST_TABLE
            && row.after.as_ref().is_none_or(|after| tree.flags_are(&before, after));
        report.judge(good, || (format!("{row:?}"), format!("{got:?} at page {page:#x}")));
    }
    Ok(())
}

/// Checks every row of the EPT matrix `text`, called `name` in reports. A row that holds for several entries (compact rows,
/// reserved and ignored bits) counts once for each.
///
/// # Errors
/// When the text is not such a matrix. Rows that disagree are not errors.
pub fn check_ept_matrix(name: &str, text: &str) -> Result<FileReport, VectorError> {
    let fail = |line, what| VectorError::Line { file: name.to_owned(), line, what };
    let matrix: Matrix = serde_json::from_str(text).map_err(|error| fail(error.line(), error.to_string()))?;
    let report = FileReport { file: name.to_owned(), images: 1, ..FileReport::default() };
    let mut checker = Checker { report, section: "", index: 0 };
    matrix
        .check(&mut checker)
        .map_err(|what| fail(1, format!("{}, item {}: {what}", checker.section, checker.index)))?;
    Ok(checker.report)
}

impl Matrix {
    fn check(&self, checker: &mut Checker) -> Result<(), String> {
        rows(&self.rows, checker)?;
        compact(&self.compact, checker)?;
        reserved(&self.reserved_bits, checker)?;
        ignored(&self.ignored_bits, checker)?;
        memory_types(&self.leaf_memtype_xwr, checker)?;
        guest_walks(&self.guest_page_walk.rows, checker)?;
        for _ in self.amd_npt_bonus.iter().flat_map(|other| &other.rows) {
            checker.report.except(NOT_EPT);
        }
        Ok(())
    }
}
