//! x86 EPT vectors: an EPT pointer, its tables, and accesses of a guest in long mode.
//!
//! Judged are the physical address, the exit reason, the guest-physical address, the exit qualification, the failure of VM
//! entry, and every word that the walk changed. Not judged is the guest-linear address: the guest's own tables belong to
//! the recording program, whose CR3 is not part of the file.

use std::fmt;

use arch_x86_ept::{
    Ept, EptCapabilities, EptConfig, EptFault, Eptp, EptpError, EptpRule, ModeBasedExecute, Qualification,
};
use mmu_core::image::MemoryImage;
use mmu_core::walk::{Reference, Step, WalkCursor};
use mmu_core::{Access, AccessKind, Hpa};
use serde::Deserialize;

use crate::json::{Num, Words, changes, memory, parse, recorded_changes};
use crate::report::{Disagreement, FileReport, Quirk};
use crate::run::Place;

/// A tag of the recording that names another expectation than a bit of the qualification.
const OTHER_DIFFERENCE: Quirk = Quirk {
    name: "ept-manual-differs",
    why: "the recording says that the manual expects another answer, in words that no rule here reads",
};
/// Two emulators gave different answers, and ours is a third.
const EMULATORS_DISAGREE: Quirk =
    Quirk { name: "ept-emulators-disagree", why: "the recording holds two different answers; it judges nothing" };
/// Bit 0 of the qualification of a read-modify-write.
const EXCHANGE_READ_BIT: Quirk = Quirk {
    name: "ept-exchange-read-bit",
    why: "SDM 27.2.1, note on bits 0 and 1 of the qualification: a read-modify-write sets bit 1, and whether it sets \
          bit 0 as well is implementation-specific; Bochs leaves it clear",
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Image {
    #[serde(rename = "arch")]
    _arch: String,
    #[serde(rename = "emulator", default)]
    _emulator: Option<String>,
    #[serde(rename = "image")]
    name: String,
    config: Config,
    memory: Words,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    #[serde(rename = "cpu", default)]
    _cpu: Option<String>,
    #[serde(rename = "MAXPHYADDR")]
    max_phys_addr: u32,
    #[serde(rename = "IA32_VMX_EPT_VPID_CAP")]
    capabilities: Num,
    #[serde(rename = "IA32_VMX_BASIC", default)]
    _basic: Option<Num>,
    #[serde(rename = "EPTP")]
    eptp: Num,
    #[serde(rename = "EPTP_memtype", default)]
    memory_type: Option<u64>,
    #[serde(rename = "EPTP_walk_length_minus_1", default)]
    walk_length: Option<u64>,
    #[serde(rename = "EPTP_ad", default)]
    accessed_dirty: Option<u64>,
    #[serde(rename = "guest_CR0", default)]
    _guest_cr0: Option<Num>,
    #[serde(rename = "guest_EFER_LMA", default)]
    _guest_efer_lma: Option<u64>,
    #[serde(default)]
    mode_based_execute: u64,
    #[serde(rename = "stub_gpa", default)]
    _stub_gpa: Option<Num>,
    #[serde(rename = "stub_hpa", default)]
    _stub_hpa: Option<Num>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    access: CaseAccess,
    result: Recorded,
    #[serde(default)]
    memory_after: Option<Words>,
    #[serde(rename = "by", default)]
    _by: Option<serde_json::Value>,
    #[serde(default)]
    manual_differs: Option<String>,
    #[serde(default)]
    other: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseAccess {
    gpa: Num,
    kind: Kind,
    via: Via,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Debug)]
enum Kind {
    #[serde(rename = "r")]
    Read,
    #[serde(rename = "w")]
    Write,
    #[serde(rename = "x")]
    Execute,
    #[serde(rename = "rw")]
    ReadWrite,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Debug)]
#[serde(rename_all = "snake_case")]
enum Via {
    Load,
    Store,
    Fetch,
    Exchange,
    GuestTableRead,
}

impl Via {
    fn access(self) -> Access {
        match self {
            Via::Load => Access::READ,
            Via::Store => Access::WRITE,
            Via::Fetch => Access::EXECUTE,
            Via::Exchange => Access { kind: AccessKind::ReadWrite, ..Access::READ },
            Via::GuestTableRead => Access::GUEST_TABLE,
        }
    }
    fn kind(self) -> Kind {
        match self {
            Via::Load | Via::GuestTableRead => Kind::Read,
            Via::Store => Kind::Write,
            Via::Fetch => Kind::Execute,
            Via::Exchange => Kind::ReadWrite,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Recorded {
    #[serde(default)]
    pa: Option<Num>,
    /// False where the access went through and the page is the recorder's reading of the manual.
    #[serde(rename = "pa_checked", default)]
    _pa_checked: Option<bool>,
    #[serde(default)]
    executed: Option<bool>,
    #[serde(default)]
    fault: Option<RecordedFault>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordedFault {
    #[serde(default)]
    exit_reason: Option<u16>,
    #[serde(default)]
    qualification: Option<Num>,
    #[serde(rename = "guest_linear_address", default)]
    _guest_linear_address: Option<Num>,
    #[serde(default)]
    guest_physical_address: Option<Num>,
    #[serde(default)]
    vm_entry_failure: Option<u64>,
    #[serde(default)]
    vm_instruction_error: Option<u32>,
}

/// What an access gave, recorded or computed. In a recording `None` is "not told".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    Done { pa: Option<u64> },
    Exit { reason: u16, gpa: Option<u64>, qualification: Option<u64> },
    EntryFailure { error: Option<u32> },
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Outcome::Done { pa: Some(pa) } => write!(f, "pa {pa:#x}"),
            Outcome::Done { pa: None } => f.write_str("done"),
            Outcome::Exit { reason, gpa, qualification } => {
                write!(f, "exit {reason}")?;
                if let Some(gpa) = gpa {
                    write!(f, " at {gpa:#x}")?;
                }
                if let Some(qualification) = qualification {
                    write!(f, " qualification {qualification:#x}")?;
                }
                Ok(())
            }
            Outcome::EntryFailure { error: Some(error) } => write!(f, "VM entry fails with error {error}"),
            Outcome::EntryFailure { error: None } => f.write_str("VM entry fails"),
        }
    }
}

fn agree<T: PartialEq + Copy>(recorded: Option<T>, got: Option<T>) -> bool {
    recorded.is_none() || recorded == got
}

impl Outcome {
    /// Whether `got` is this recorded outcome in everything that the recording tells.
    fn is_met_by(&self, got: &Outcome) -> bool {
        match (*self, *got) {
            (Outcome::Done { pa }, Outcome::Done { pa: found }) => agree(pa, found),
            (
                Outcome::Exit { reason, gpa, qualification },
                Outcome::Exit { reason: found, gpa: at, qualification: why },
            ) => reason == found && agree(gpa, at) && agree(qualification, why),
            (Outcome::EntryFailure { error }, Outcome::EntryFailure { error: found }) => agree(error, found),
            _ => false,
        }
    }

    fn with_qualification(self, change: impl Fn(u64) -> u64) -> Self {
        match self {
            Outcome::Exit { reason, gpa, qualification } => {
                Outcome::Exit { reason, gpa, qualification: qualification.map(change) }
            }
            other => other,
        }
    }
}

impl Recorded {
    fn outcome(&self) -> Result<Outcome, String> {
        match (&self.pa, &self.executed, &self.fault) {
            (Some(pa), None, None) => Ok(Outcome::Done { pa: Some(pa.0) }),
            (None, Some(true), None) => Ok(Outcome::Done { pa: None }),
            (None, None, Some(fault)) => fault.outcome(),
            _ => Err("a result holds exactly one of `pa`, `executed: true` and `fault`".into()),
        }
    }
}

impl RecordedFault {
    fn outcome(&self) -> Result<Outcome, String> {
        match (self.exit_reason, self.vm_entry_failure) {
            (Some(reason), None) => Ok(Outcome::Exit {
                reason,
                gpa: self.guest_physical_address.map(|gpa| gpa.0),
                qualification: self.qualification.map(|bits| bits.0),
            }),
            (None, Some(_)) => Ok(Outcome::EntryFailure { error: self.vm_instruction_error }),
            _ => Err("a fault holds exactly one of `exit_reason` and `vm_entry_failure`".into()),
        }
    }
}

/// What the manual expects instead of the recorded outcome.
enum Manual {
    /// This.
    Expects(Outcome),
    /// Something that no rule here reads.
    Unknown,
}

/// Reads `qualification bit 0: expected set`, the only difference that recorders of EPT tag.
fn manual_expectation(text: &str, recorded: Outcome) -> Manual {
    let rule = text.strip_prefix("qualification bit ").and_then(|rest| rest.split_once(": expected "));
    let parsed = rule.and_then(|(bit, state)| Some((bit.parse::<u32>().ok().filter(|&bit| bit < 64)?, state)));
    match (parsed, recorded) {
        (Some((bit, "set")), Outcome::Exit { qualification: Some(_), .. }) => {
            Manual::Expects(recorded.with_qualification(|bits| bits | 1 << bit))
        }
        (Some((bit, "clear")), Outcome::Exit { qualification: Some(_), .. }) => {
            Manual::Expects(recorded.with_qualification(|bits| bits & !(1 << bit)))
        }
        _ => Manual::Unknown,
    }
}

impl Config {
    /// The fields that repeat parts of the pointer must agree with it: a file in which they do not is damaged.
    fn check(&self) -> Result<(), String> {
        let parts = [
            ("EPTP_memtype", self.memory_type, self.eptp.0 & 7),
            ("EPTP_walk_length_minus_1", self.walk_length, self.eptp.0 >> 3 & 7),
            ("EPTP_ad", self.accessed_dirty, self.eptp.0 >> 6 & 1),
        ];
        for (name, told, held) in parts {
            if told.is_some_and(|told| told != held) {
                return Err(format!("config: `{name}` is not what EPTP {:#x} holds ({held})", self.eptp.0));
            }
        }
        if self.mode_based_execute > 1 {
            return Err("config: `mode_based_execute` is 0 or 1".into());
        }
        Ok(())
    }

    fn enter(&self) -> Result<(Ept, Hpa), EptpError> {
        let caps = EptCapabilities::from_msr(self.capabilities.0);
        let mode_based = if self.mode_based_execute == 1 { ModeBasedExecute::On } else { ModeBasedExecute::Off };
        let config = EptConfig::for_processor(caps, self.max_phys_addr).mode_based_execute(mode_based);
        Eptp::new(self.eptp.0).enter(config, caps)
    }
}

/// The walker's answer.
struct Answer {
    outcome: Outcome,
    changed: Vec<(u64, u64)>,
    read: Vec<Reference>,
    why: String,
}

fn exit(fault: &EptFault) -> Outcome {
    Outcome::Exit {
        reason: fault.exit_reason().number(),
        gpa: Some(fault.gpa.raw()),
        qualification: fault.qualification().map(Qualification::bits),
    }
}

fn walk(ept: Ept, root: Hpa, before: &MemoryImage, gpa: u64, access: Access) -> Answer {
    let mut image = before.clone();
    let mut cursor = WalkCursor::new(ept, root, gpa, access);
    let mut read = Vec::new();
    let (outcome, why) = loop {
        match cursor.step(&mut image) {
            Step::Read(entry) => read.push(entry),
            Step::Update(_) | Step::Restart(_) => {}
            Step::Done(found) => break (Outcome::Done { pa: Some(found.output.raw()) }, String::new()),
            Step::Fault(fault) => break (exit(&fault), format!(", {fault}")),
        }
    };
    Answer { outcome, changed: changes(before, &image), read, why }
}

impl fmt::Display for Answer {
    /// The outcome, the words changed, and the entries read (levels as the manual counts them).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.outcome, Changes(&self.changed))?;
        for entry in &self.read {
            write!(f, ", level {} at {} = {:#x}", entry.level.up(), entry.at, entry.raw)?;
        }
        f.write_str(&self.why)
    }
}

/// Words that a walk changed.
struct Changes<'a>(&'a [(u64, u64)]);

impl fmt::Display for Changes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(at, word)| write!(f, ", [{at:#x}] becomes {word:#x}"))
    }
}

struct Judged<'a> {
    case: &'a Case,
    answer: &'a Answer,
}

enum Judgement {
    Agrees,
    Excepted(Quirk),
    Disagrees(Outcome),
}

impl Judged<'_> {
    fn judge(&self, recorded: Outcome) -> Judgement {
        let words_agree = self.answer.changed == recorded_changes(self.case.memory_after.as_ref());
        let met = |expected: &Outcome| words_agree && expected.is_met_by(&self.answer.outcome);
        let expected = match self.case.manual_differs.as_deref().map(|text| manual_expectation(text, recorded)) {
            None => recorded,
            Some(Manual::Expects(expected)) => expected,
            Some(Manual::Unknown) if met(&recorded) => return Judgement::Agrees,
            Some(Manual::Unknown) => return Judgement::Excepted(OTHER_DIFFERENCE),
        };
        if met(&expected) {
            return Judgement::Agrees;
        }
        if self.case.other.is_some() {
            return Judgement::Excepted(EMULATORS_DISAGREE);
        }
        let either = expected.with_qualification(|bits| bits | 1);
        if self.case.access.via == Via::Exchange && met(&either) {
            return Judgement::Excepted(EXCHANGE_READ_BIT);
        }
        Judgement::Disagrees(expected)
    }
}

/// Checks one image.
pub(crate) fn check_image(text: &str, place: Place, report: &mut FileReport) -> Result<(), String> {
    let image: Image = parse(text)?;
    image.config.check()?;
    let before = memory(&image.memory, None).map_err(|error| error.to_string())?;
    let entered = image.config.enter();
    if let Err(EptpError { rule: EptpRule::Config(error), .. }) = entered {
        return Err(format!("config: {error}"));
    }
    for (index, case) in image.cases.iter().enumerate() {
        let access = &case.access;
        if access.kind != access.via.kind() {
            return Err(format!("case {index}: kind {:?} does not go with {:?}", access.kind, access.via));
        }
        let recorded = case.result.outcome().map_err(|what| format!("case {index}: {what}"))?;
        let answer = match &entered {
            Ok((ept, root)) => walk(*ept, *root, &before, access.gpa.0, access.via.access()),
            Err(error) => Answer {
                outcome: Outcome::EntryFailure { error: Some(error.vm_instruction_error()) },
                changed: Vec::new(),
                read: Vec::new(),
                why: format!(", {error}"),
            },
        };
        match (Judged { case, answer: &answer }).judge(recorded) {
            Judgement::Agrees => report.agree(),
            Judgement::Excepted(quirk) => report.except(quirk),
            Judgement::Disagrees(expected) => report.disagree(Disagreement {
                image: image.name.clone(),
                line: place.line,
                case: index,
                access: format!("{:?} at {:#x}", access.via, access.gpa.0),
                expected: format!("{expected}{}", Changes(&recorded_changes(case.memory_after.as_ref()))),
                got: answer.to_string(),
            }),
        }
    }
    Ok(())
}
