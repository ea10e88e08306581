//! The POWER permission matrix: access authority, attribute and access against outcome, cause and R/C, each row through
//! a walk; entry layout and causes of failing walks besides.
//!
//! The matrix reports a fetch without execute permission as protection and keeps 0x10000000 for guarded storage
//! ([`FetchDenied::Protection`]); recorded vectors report both as 0x10000000. The ISA's wording admits either.

use arch_ppc_radix::{
    Att, BasePage, Cause, EffectiveAccess, FetchDenied, PartitionEntry, PowerMmu, PteAttrs, Radix, RadixFault, RootWord,
};
use mmu_core::image::MemoryImage;
use mmu_core::tlb::Perms;
use mmu_core::walk::{NoCaches, walk};
use mmu_core::{Access, AccessKind, Entry, Format, Gpa, Gva, Hpa, Leaf, Level, Privilege};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::report::{Disagreement, FileReport};
use crate::run::VectorError;

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
    bits: Bits,
    causes: Causes,
    partition_scoped: Section<PartitionRow>,
    process_scoped_no_amr: Section<ProcessRow>,
    walk_failures: Vec<WalkFailure>,
    #[serde(rename = "delivery", default)]
    _delivery: IgnoredAny,
    #[serde(rename = "kvm_handling", default)]
    _kvm_handling: IgnoredAny,
    #[serde(rename = "not_modelled_by_the_source", default)]
    _not_modelled: IgnoredAny,
    counts: Counts,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Bits {
    valid: u64,
    leaf: u64,
    rpn_mask: u64,
    #[serde(rename = "R")]
    referenced: u64,
    #[serde(rename = "C")]
    changed: u64,
    att_mask: u64,
    att: AttBits,
    eaa_priv: u64,
    eaa_read: u64,
    eaa_read_write: u64,
    eaa_exec: u64,
    next_level_base: u64,
    next_level_size: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AttBits {
    normal: u64,
    sao: u64,
    ni_io: u64,
    tolerant_io: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "SCREAMING_SNAKE_CASE")]
struct Causes {
    nopte: u32,
    protfault: u32,
    isstore: u32,
    badconfig: u32,
    rc_update_failed: u32,
    prtable: u32,
    noexec_guard: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Section<Row> {
    columns: Vec<String>,
    #[serde(rename = "note", default)]
    _note: IgnoredAny,
    rows: Vec<Row>,
}

#[derive(Deserialize, Clone, Copy, Debug)]
#[serde(rename_all = "snake_case")]
enum Attribute {
    Normal,
    Sao,
    NiIo,
    TolerantIo,
}

#[derive(Deserialize, Clone, Copy, Debug)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Load,
    Store,
    Fetch,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Debug)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Allowed,
    Fault,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Debug)]
enum RcSet {
    R,
    #[serde(rename = "R|C")]
    Both,
}

/// EAA, attribute, access, outcome, cause, R/C set.
#[derive(Deserialize, Debug)]
struct PartitionRow(u64, Attribute, Kind, Outcome, u32, Option<RcSet>);

/// EAA, problem state, access, outcome, cause.
#[derive(Deserialize, Debug)]
struct ProcessRow(u64, u8, Kind, Outcome, u32);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WalkFailure {
    case: String,
    cause: Option<u32>,
    cause_or: Option<u32>,
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Counts {
    partition_scoped: usize,
    process_scoped: usize,
}

/// What one access through one leaf came to.
type Answer = (Outcome, u32, Option<RcSet>);

const ROOT: Hpa = Hpa::new(0x10_0000);
const LEAF_AT: Hpa = Hpa::new(0x20_0000);
const PAGE: u64 = 0x4000_0000;

/// Checks every row of the matrix `text`, called `name` in reports.
///
/// # Errors
/// When the text is not such a matrix. Rows that disagree are not errors.
pub fn check_power_matrix(name: &str, text: &str) -> Result<FileReport, VectorError> {
    let fail = |line, what| VectorError::Line { file: name.to_owned(), line, what };
    let matrix: Matrix = serde_json::from_str(text).map_err(|error| fail(error.line(), error.to_string()))?;
    matrix.check_shape().map_err(|what| fail(1, what))?;
    let mut checker = Checker { report: FileReport { file: name.to_owned(), images: 1, ..FileReport::default() } };
    checker.bits(&matrix.bits);
    checker.causes(&matrix.causes);
    for (i, row) in matrix.partition_scoped.rows.iter().enumerate() {
        let expected: Answer = (row.3, row.4, row.5);
        checker.compare("partition_scoped", i, format!("{row:?}"), &expected, &partition_answer(row));
    }
    for (i, row) in matrix.process_scoped_no_amr.rows.iter().enumerate() {
        let (outcome, cause, _) = process_answer(row);
        checker.compare("process_scoped_no_amr", i, format!("{row:?}"), &(row.3, row.4), &(outcome, cause));
    }
    for (i, failure) in matrix.walk_failures.iter().enumerate() {
        checker.walk_failure(i, failure).map_err(|what| fail(1, what))?;
    }
    Ok(checker.report)
}

impl Matrix {
    fn check_shape(&self) -> Result<(), String> {
        let columns = |section: &str, found: &[String], expected: &[&str]| {
            if found == expected { Ok(()) } else { Err(format!("{section}.columns: {found:?}; {expected:?} is read")) }
        };
        let partition = ["eaa", "attribute", "access", "outcome", "cause", "rc_set"];
        columns("partition_scoped", &self.partition_scoped.columns, &partition)?;
        let process = ["eaa", "problem_state", "access", "outcome", "cause"];
        columns("process_scoped_no_amr", &self.process_scoped_no_amr.columns, &process)?;
        for (field, found, expected) in [
            ("partition_scoped", self.partition_scoped.rows.len(), self.counts.partition_scoped),
            ("process_scoped", self.process_scoped_no_amr.rows.len(), self.counts.process_scoped),
        ] {
            if found != expected {
                return Err(format!("counts.{field}: {expected}, but {found} rows are there; fetch the file again"));
            }
        }
        let eaas = self.partition_scoped.rows.iter().map(|row| row.0);
        match eaas.chain(self.process_scoped_no_amr.rows.iter().map(|row| row.0)).find(|eaa| *eaa > 15) {
            Some(eaa) => Err(format!("eaa: {eaa} does not fit the four bits of the field")),
            None => Ok(()),
        }
    }
}

const fn access(kind: Kind, privilege: Privilege) -> Access {
    let kind = match kind {
        Kind::Load => AccessKind::Read,
        Kind::Store => AccessKind::Write,
        Kind::Fetch => AccessKind::Execute,
    };
    Access { kind, privilege, ..Access::READ }
}

const fn att(attribute: Attribute) -> Att {
    match attribute {
        Attribute::Normal => Att::Normal,
        Attribute::Sao => Att::StrongAccessOrder,
        Attribute::NiIo => Att::NonIdempotentIo,
        Attribute::TolerantIo => Att::TolerantIo,
    }
}

fn encode(radix: &Radix, perms: Perms, att: Att) -> u64 {
    let leaf = Leaf { output: Hpa::new(PAGE), perms, accessed: false, attrs: PteAttrs { att, ..PteAttrs::default() } };
    radix.encode_leaf(Level::new(2), &leaf).unwrap_or(0)
}

/// A root whose first entry points to a table whose first entry is `word`.
fn image(radix: &Radix, word: u64) -> MemoryImage {
    let mut image = MemoryImage::everywhere();
    let root = radix.encode_table(Level::new(3), LEAF_AT).unwrap_or(0);
    for (at, word) in [(ROOT, root), (LEAF_AT, word)] {
        // Aligned addresses inside RAM, as all here are, are never refused.
        let _ = image.set(at, word);
    }
    image
}

/// One access through a 1 GiB leaf with this EAA and attribute.
fn answer(radix: &Radix, eaa: u64, att: Att, access: Access) -> Answer {
    let word = encode(radix, Perms::NONE, att) & !0xf | eaa;
    let mut image = image(radix, word);
    let found = walk(radix, ROOT, 0x1000, access, &mut image);
    let rc = match image.get(LEAF_AT) ^ word {
        set if set == radix.accessed_mask() => Some(RcSet::R),
        set if set == radix.accessed_mask() | radix.dirty_mask() => Some(RcSet::Both),
        _ => None,
    };
    match found {
        Ok(_) => (Outcome::Allowed, 0, rc),
        Err(fault) => (Outcome::Fault, fault.cause().bits(), rc),
    }
}

fn partition_answer(row: &PartitionRow) -> Answer {
    let radix = Radix::partition(BasePage::K4).with_fetch_denied(FetchDenied::Protection);
    answer(&radix, row.0, att(row.1), access(row.2, Privilege::Supervisor))
}

fn process_answer(row: &ProcessRow) -> Answer {
    let radix = Radix::process(BasePage::K4).with_fetch_denied(FetchDenied::Protection);
    let privilege = if row.1 == 0 { Privilege::Supervisor } else { Privilege::User };
    answer(&radix, row.0, Att::Normal, access(row.2, privilege))
}

struct Checker {
    report: FileReport,
}

impl Checker {
    fn compare<T: PartialEq + std::fmt::Debug>(&mut self, section: &str, i: usize, what: String, want: &T, got: &T) {
        if want == got {
            return self.report.agree();
        }
        self.report.disagree(Disagreement {
            image: section.to_owned(),
            line: 1,
            case: i,
            access: what,
            expected: format!("{want:x?}"),
            got: format!("{got:x?}"),
        });
    }

    fn bits(&mut self, bits: &Bits) {
        let radix = Radix::partition(BasePage::K4);
        let process = Radix::process(BasePage::K4);
        let plain = encode(&radix, Perms::NONE, Att::Normal);
        let kernel = Perms::READ;
        let top =
            Leaf { output: Hpa::new(bits.rpn_mask), perms: Perms::NONE, accessed: false, attrs: PteAttrs::default() };
        // One page further would not fit any more.
        let rpn = radix.encode_leaf(Level::LAST, &top).map_or(0, |word| word & !(bits.valid | bits.leaf));
        let attribute = |att| encode(&radix, Perms::NONE, att) ^ plain;
        let table = radix.decode(Level::new(1), bits.valid | bits.next_level_base | 5);
        let (base, size) = match table {
            Entry::Table(table) => (table.base.raw(), table.index_bits),
            _ => (0, 0),
        };
        let rows = [
            ("valid", bits.valid, radix.present_mask()),
            ("leaf", bits.leaf, plain & !PAGE & !radix.present_mask()),
            ("rpn_mask", bits.rpn_mask, rpn),
            ("R", bits.referenced, radix.accessed_mask()),
            ("C", bits.changed, radix.dirty_mask()),
            ("att_mask", bits.att_mask, attribute(Att::TolerantIo) | attribute(Att::StrongAccessOrder)),
            ("att.normal", bits.att.normal, attribute(Att::Normal)),
            ("att.sao", bits.att.sao, attribute(Att::StrongAccessOrder)),
            ("att.ni_io", bits.att.ni_io, attribute(Att::NonIdempotentIo)),
            ("att.tolerant_io", bits.att.tolerant_io, attribute(Att::TolerantIo)),
            (
                "eaa_priv",
                bits.eaa_priv,
                encode(&process, kernel, Att::Normal) ^ encode(&process, Perms::R, Att::Normal),
            ),
            ("eaa_read", bits.eaa_read, encode(&radix, Perms::R, Att::Normal) ^ plain),
            (
                "eaa_read_write",
                bits.eaa_read_write,
                encode(&radix, Perms::RW, Att::Normal) ^ encode(&radix, Perms::R, Att::Normal),
            ),
            ("eaa_exec", bits.eaa_exec, encode(&radix, Perms::X, Att::Normal) ^ plain),
            ("next_level_base", bits.next_level_base, base),
            ("next_level_size", bits.next_level_size & 5, u64::from(size)),
        ];
        for (i, (name, want, got)) in rows.into_iter().enumerate() {
            self.compare("bits", i, name.to_owned(), &want, &got);
        }
    }

    fn causes(&mut self, causes: &Causes) {
        let rows = [
            ("NOPTE", causes.nopte, Cause::NO_ENTRY),
            ("PROTFAULT", causes.protfault, Cause::PROTECTION),
            ("ISSTORE", causes.isstore, Cause::STORE),
            ("BADCONFIG", causes.badconfig, Cause::BAD_CONFIG),
            ("RC_UPDATE_FAILED", causes.rc_update_failed, Cause::RC_UPDATE),
            ("PRTABLE", causes.prtable, Cause::TABLE),
            ("NOEXEC_GUARD", causes.noexec_guard, Cause::NO_EXECUTE),
        ];
        for (i, (name, want, got)) in rows.into_iter().enumerate() {
            self.compare("causes", i, name.to_owned(), &want, &got.bits());
        }
    }

    /// A failure that the matrix names: the cause of a load, or what a circumstance adds to the cause of a missing entry.
    fn walk_failure(&mut self, i: usize, failure: &WalkFailure) -> Result<(), String> {
        let radix = Radix::partition(BasePage::K4);
        let missing = |access| cause_of(walk(&radix, ROOT, 0, access, &mut image(&radix, 0)));
        let plain = Cause::NO_ENTRY.bits();
        let got: Vec<u32> = match failure.name.as_str() {
            "no translation" => vec![
                missing(Access::READ),
                cause_of(walk(&radix, ROOT, 0, Access::READ, &mut MemoryImage::everywhere())),
            ],
            "unsupported radix configuration" => (0..5).flat_map(|size| [bad_level(size), bad_root(size)]).collect(),
            "process-table / directory address fault" => vec![missing(Access::GUEST_TABLE) ^ plain],
            "store" => vec![missing(Access::WRITE) ^ plain],
            other => return Err(format!("walk_failures: `{other}` ({}) is not known", failure.case)),
        };
        let want = failure
            .cause
            .or(failure.cause_or)
            .ok_or_else(|| format!("walk_failures: `{}` has neither `cause` nor `cause_or`", failure.name))?;
        self.compare("walk_failures", i, failure.case.clone(), &vec![want; got.len()], &got);
        Ok(())
    }
}

fn cause_of<T>(found: Result<T, RadixFault>) -> u32 {
    found.err().map_or(0, |fault| fault.cause().bits())
}

/// A directory entry with this next-level size.
fn bad_level(size: u64) -> u32 {
    let radix = Radix::partition(BasePage::K4);
    let word = radix.present_mask() | 0x30_0000 | size;
    cause_of(walk(&radix, ROOT, 0, Access::READ, &mut image(&radix, word)))
}

/// A partition-table entry with this root size.
fn bad_root(size: u64) -> u32 {
    const PARTITION_TABLE: u64 = 0x40_0000;
    let mut image = MemoryImage::everywhere();
    let word = PartitionEntry::radix(ROOT, Gpa::new(0), 0).map_or(0, |entry| entry.tree.raw());
    let _ = image.set(Hpa::new(PARTITION_TABLE + 16), RootWord::new(word & !0x1f | size).raw());
    let access = EffectiveAccess::guest_real(Gva::new(0), AccessKind::Read);
    let mmu = PowerMmu::new(PARTITION_TABLE).map(|mmu| mmu.with_lpid(1));
    mmu.map_or(0, |mmu| mmu.translate(access, &mut image, &mut NoCaches).err().map_or(0, |int| int.cause.bits()))
}
