//! POWER radix vectors: every case goes through [`PowerMmu`].
//!
//! A record is compared field by field; of SRR1 and HSRR1 the cause bits, of ASDR the bits above the low 12, and the words that
//! the access changed. A case tagged `manual_differs` is compared with what the tag says the manual expects, and counts
//! as excepted by the rule that its circumstances fall under.

use std::collections::BTreeMap;
use std::fmt;

use arch_ppc_radix::{
    Cause, EffectiveAccess, Interrupt, InterruptKind, Keys, MmuCursor, MmuReference, MmuStep, MmuTranslation, MsrMode,
    PowerMmu, RcUpdate, Relocation, Target,
};
use mmu_core::image::MemoryImage;
use mmu_core::walk::NoCaches;
use mmu_core::{Access, AccessKind, Gva, Privilege, Purpose};
use serde::Deserialize;

use crate::json::{Num, Words, changes, memory, parse, recorded_changes};
use crate::report::{Disagreement, FileReport, Quirk};
use crate::run::Place;

const TABLE_READ_IS_A_LOAD: Quirk = Quirk {
    name: "ppc-table-read-is-a-load",
    why: "a partition-scoped fault on a process-scoped table is raised as a data load whatever the access was; \
          the manual raises it for the access (ISA 3.1 Book III 7.5.16, 7.5.17)",
};
const UNTRANSLATED_TREE: Quirk = Quirk {
    name: "ppc-untranslated-guest-tree",
    why: "with HV=1 in quadrants 1 and 2 QEMU reads the process-scoped tree at untranslated addresses; the manual \
          translates them (ISA 3.1 Book III 6.7.10.3)",
};
const EARLY_UPDATE: Quirk = Quirk {
    name: "ppc-early-rc-update",
    why: "R and C of the process-scoped entry are set although the partition-scoped step faults; the manual sets \
          them for permitted accesses (ISA 3.1 Book III 6.7.12)",
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Image {
    #[serde(rename = "arch")]
    _arch: String,
    #[serde(rename = "emulator")]
    _emulator: String,
    #[serde(rename = "image")]
    name: String,
    config: Config,
    memory: Words,
    cases: Vec<Case>,
}

/// Registers. Those that no access here depends on are accepted and left alone.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(non_snake_case, reason = "fields are named after the registers")]
struct Config {
    #[serde(rename = "machine")]
    _machine: String,
    #[serde(rename = "PVR")]
    _pvr: Num,
    PTCR: Num,
    #[serde(rename = "LPCR")]
    _lpcr: Num,
    LPCR_UPRT: Option<Num>,
    LPCR_HR: Option<Num>,
    #[serde(rename = "LPCR_AIL", default)]
    _lpcr_ail: Num,
    #[serde(rename = "HRMOR", default)]
    _hrmor: Num,
    LPIDR: Num,
    PIDR: Num,
    AMR: Num,
    IAMR: Num,
    #[serde(rename = "AMOR", default)]
    _amor: Num,
    rc_update: Update,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Update {
    Hardware,
    Interrupt,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    access: CaseAccess,
    result: Answer,
    memory_after: Option<Words>,
    #[serde(rename = "by", default)]
    _by: Vec<String>,
    manual_differs: Option<String>,
    #[serde(rename = "other", default)]
    _other: serde_json::Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseAccess {
    ea: Num,
    kind: Kind,
    mode: Mode,
    msr: Msr,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
enum Kind {
    #[serde(rename = "r")]
    Read,
    #[serde(rename = "w")]
    Write,
    #[serde(rename = "x")]
    Execute,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Mode {
    GuestReal,
    GuestSuper,
    GuestUser,
    Hv,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(non_snake_case, reason = "fields are named after the register's bits")]
struct Msr {
    #[serde(rename = "SF", default)]
    _sf: Num,
    HV: Num,
    PR: Num,
    DR: Num,
    IR: Num,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    pa: Option<Num>,
    fault: Option<FaultAnswer>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FaultAnswer {
    interrupt: String,
    to: String,
    dsisr: Option<Num>,
    dar: Option<Num>,
    srr0: Option<Num>,
    srr1: Option<Num>,
    hdsisr: Option<Num>,
    hdar: Option<Num>,
    asdr: Option<Num>,
    hsrr0: Option<Num>,
    hsrr1: Option<Num>,
}

/// What is compared of an answer.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Outcome {
    Address(u64),
    Fault { kind: InterruptKind, to: Target, cause: u32, address: u64, asdr_frame: Asdr },
}

/// ASDR above its low 12 bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Asdr {
    Absent,
    Frame(u64),
    /// A tag names an interrupt that has an ASDR, but no value.
    Unrecorded,
}

/// An outcome with the words it changed; `None` where a tag leaves them open.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Expected {
    outcome: Outcome,
    changed: Option<Vec<(u64, u64)>>,
}

impl Expected {
    fn matches(&self, got: &Expected) -> bool {
        let mut got = got.clone();
        if self.changed.is_none() {
            got.changed = None;
        }
        if let (
            Outcome::Fault { asdr_frame: Asdr::Unrecorded, .. },
            Outcome::Fault { asdr_frame: frame @ Asdr::Frame(_), .. },
        ) = (&self.outcome, &mut got.outcome)
        {
            *frame = Asdr::Unrecorded;
        }
        *self == got
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            Outcome::Address(pa) => write!(f, "pa {pa:#x}")?,
            Outcome::Fault { kind, to, cause, address, asdr_frame } => {
                write!(f, "{kind} to the {to} at {address:#x}, cause {cause:#x}")?;
                if let Asdr::Frame(frame) = asdr_frame {
                    write!(f, ", ASDR {:#x}", frame << 12)?;
                }
            }
        }
        self.changed.iter().flatten().try_for_each(|(at, word)| write!(f, ", [{at:#x}] = {word:#x}"))
    }
}

pub(crate) fn check_image(text: &str, place: Place, report: &mut FileReport) -> Result<(), String> {
    let image: Image = parse(text)?;
    let fail = |what: String| format!("image {}: {what}", image.name);
    let mmu = image.config.mmu().map_err(fail)?;
    let before = memory(&image.memory, None).map_err(|error| fail(format!("memory: {error}")))?;
    for (index, case) in image.cases.iter().enumerate() {
        let fail = |what: String| format!("image {}: case {index}: {what}", image.name);
        let access = case.access.decode().map_err(fail)?;
        let recorded = case.recorded().map_err(fail)?;
        let got = replay(&mmu, access, &before);
        match case.judge(&image.config, &access, &recorded, &got) {
            Judgement::Agrees => report.agree(),
            Judgement::Excepted(quirk) => report.except(quirk),
            Judgement::Disagrees(expected) => report.disagree(Disagreement {
                image: image.name.clone(),
                line: place.line,
                case: index,
                access: format!("{:?}, EA {}: {}", access.mode, access.address, access.access),
                expected: expected.to_string(),
                got: format!("{got} after {}", trace(mmu.walk(access), &before)),
            }),
        }
    }
    Ok(())
}

/// What a case comes to.
enum Judgement {
    Agrees,
    Excepted(Quirk),
    Disagrees(Expected),
}

impl Config {
    fn mmu(&self) -> Result<PowerMmu, String> {
        for (field, bit) in [("LPCR_HR", self.LPCR_HR), ("LPCR_UPRT", self.LPCR_UPRT)] {
            if bit.is_some_and(|bit| bit.0 != 1) {
                return Err(format!("config.{field}: radix needs 1"));
            }
        }
        let narrow = |field: &str, number: Num| {
            u32::try_from(number.0).map_err(|_| format!("config.{field}: {:#x} is not a 32-bit number", number.0))
        };
        let rc = match self.rc_update {
            Update::Hardware => RcUpdate::Hardware,
            Update::Interrupt => RcUpdate::Interrupt,
        };
        let mmu = PowerMmu::new(self.PTCR.0).map_err(|error| format!("config.{error}"))?;
        Ok(mmu
            .with_lpid(narrow("LPIDR", self.LPIDR)?)
            .with_pid(narrow("PIDR", self.PIDR)?)
            .with_keys(Keys::new(self.AMR.0, self.IAMR.0))
            .with_rc(rc))
    }
}

impl CaseAccess {
    fn decode(&self) -> Result<EffectiveAccess, String> {
        let kind = match self.kind {
            Kind::Read => AccessKind::Read,
            Kind::Write => AccessKind::Write,
            Kind::Execute => AccessKind::Execute,
        };
        let bit = |name: &str, number: Num| match number.0 {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(format!("access.msr.{name}: {other} is not a bit")),
        };
        let relocated = if self.kind == Kind::Execute { bit("IR", self.msr.IR)? } else { bit("DR", self.msr.DR)? };
        let (hypervisor, problem) = (bit("HV", self.msr.HV)?, bit("PR", self.msr.PR)?);
        if hypervisor != (self.mode == Mode::Hv) || (problem && self.mode == Mode::GuestSuper) {
            return Err("access.msr does not fit access.mode".into());
        }
        Ok(EffectiveAccess {
            address: Gva::new(self.ea.0),
            access: Access {
                kind,
                privilege: if problem { Privilege::User } else { Privilege::Supervisor },
                purpose: Purpose::Data,
            },
            mode: if hypervisor { MsrMode::Hypervisor } else { MsrMode::Guest },
            relocation: if relocated { Relocation::On } else { Relocation::Off },
        })
    }
}

impl Case {
    fn recorded(&self) -> Result<Expected, String> {
        let outcome = match (&self.result.pa, &self.result.fault) {
            (Some(pa), None) => Outcome::Address(pa.0),
            (None, Some(fault)) => fault.outcome().map_err(|what| format!("result.fault.{what}"))?,
            _ => return Err("result: exactly one of `pa` and `fault` belongs here".into()),
        };
        Ok(Expected { outcome, changed: Some(recorded_changes(self.memory_after.as_ref())) })
    }

    /// Untagged cases must agree with the record. Tagged ones must agree with what the tag says, if it says so in a form we know, and
    /// differ from the record in the way of a known quirk.
    fn judge(&self, config: &Config, access: &EffectiveAccess, recorded: &Expected, got: &Expected) -> Judgement {
        let Some(tag) = &self.manual_differs else {
            return if recorded.matches(got) { Judgement::Agrees } else { Judgement::Disagrees(recorded.clone()) };
        };
        let manual = apply_tag(tag, recorded, access);
        let quirk = rule(config, access, recorded, got);
        match (manual, quirk) {
            (Some(manual), Some(quirk)) if manual.matches(got) => Judgement::Excepted(quirk),
            (Some(manual), _) => Judgement::Disagrees(manual),
            (None, _) if recorded.matches(got) => Judgement::Agrees,
            (None, Some(quirk)) => Judgement::Excepted(quirk),
            (None, None) => Judgement::Disagrees(recorded.clone()),
        }
    }
}

fn in_foreign_quadrant(access: &EffectiveAccess) -> bool {
    access.mode == MsrMode::Hypervisor && matches!(access.address.raw() >> 62, 1 | 2)
}

/// The rule that explains how the walker's answer differs from the record.
fn rule(config: &Config, access: &EffectiveAccess, recorded: &Expected, got: &Expected) -> Option<Quirk> {
    if in_foreign_quadrant(access) {
        return Some(UNTRANSLATED_TREE);
    }
    let (
        Outcome::Fault { kind, cause, asdr_frame, .. },
        Outcome::Fault { kind: own_kind, cause: own_cause, asdr_frame: own_frame, .. },
    ) = (&recorded.outcome, &got.outcome)
    else {
        return None;
    };
    let stage_two =
        matches!(own_kind, InterruptKind::HypervisorDataStorage | InterruptKind::HypervisorInstructionStorage);
    if recorded.outcome == got.outcome {
        return (config.rc_update == Update::Hardware && stage_two).then_some(EARLY_UPDATE);
    }
    // An R/C interrupt on the tree of LPID 0 is an ordinary storage interrupt and falls under the same rule.
    let as_load = matches!(kind, InterruptKind::HypervisorDataStorage | InterruptKind::DataStorage);
    let same = asdr_frame == own_frame && cause | Cause::STORE.bits() == own_cause | Cause::STORE.bits();
    let own = access.access.kind != AccessKind::Read;
    (as_load && same && own && recorded.changed == got.changed).then_some(TABLE_READ_IS_A_LOAD)
}

/// Tags: `model update {'0x..': '0x..'}` (the words the manual changes), `model cause 0x..` (its cause bits), and
/// `model HISI 0x..` (another interrupt; these cause bits, the store bit aside). `None` for any other text.
fn apply_tag(tag: &str, recorded: &Expected, access: &EffectiveAccess) -> Option<Expected> {
    let mut expected = recorded.clone();
    let words: Vec<&str> = tag.splitn(3, ' ').collect();
    let ["model", what, text] = words[..] else { return None };
    if what == "update" {
        expected.changed = Some(tagged_words(text)?);
        return Some(expected);
    }
    let number = hex(text)?;
    if what == "pa" {
        expected.outcome = Outcome::Address(number);
    } else if what == "cause" {
        let Outcome::Fault { cause, .. } = &mut expected.outcome else { return None };
        *cause = u32::try_from(number).ok()?;
    } else {
        expected.outcome = tagged_fault(interrupt(what)?, u32::try_from(number).ok()?, recorded, access);
    }
    if in_foreign_quadrant(access) {
        // The emulator did not walk the tables' addresses, so that its updates tell nothing.
        expected.changed = None;
    }
    Some(expected)
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// `{'0x..': '0x..', ...}`
fn tagged_words(text: &str) -> Option<Vec<(u64, u64)>> {
    let map: BTreeMap<String, String> = serde_json::from_str(&text.replace('\'', "\"")).ok()?;
    let mut words = map.iter().map(|(at, word)| Some((hex(at)?, hex(word)?))).collect::<Option<Vec<_>>>()?;
    words.sort_unstable();
    Some(words)
}

fn tagged_fault(kind: InterruptKind, cause: u32, recorded: &Expected, access: &EffectiveAccess) -> Outcome {
    let stage_two = matches!(kind, InterruptKind::HypervisorDataStorage | InterruptKind::HypervisorInstructionStorage);
    let asdr_frame = match &recorded.outcome {
        _ if !stage_two => Asdr::Absent,
        Outcome::Fault { asdr_frame: frame @ Asdr::Frame(_), .. } => *frame,
        _ => Asdr::Unrecorded,
    };
    let to = if stage_two || access.mode == MsrMode::Hypervisor { Target::Hypervisor } else { Target::Guest };
    let store = if access.access.kind.writes() { Cause::STORE.bits() } else { 0 };
    Outcome::Fault { kind, to, cause: cause | store, address: access.address.raw(), asdr_frame }
}

fn interrupt(name: &str) -> Option<InterruptKind> {
    Some(match name {
        "DSI" => InterruptKind::DataStorage,
        "ISI" => InterruptKind::InstructionStorage,
        "DSegI" => InterruptKind::DataSegment,
        "ISegI" => InterruptKind::InstructionSegment,
        "HDSI" => InterruptKind::HypervisorDataStorage,
        "HISI" => InterruptKind::HypervisorInstructionStorage,
        _ => return None,
    })
}

impl FaultAnswer {
    fn outcome(&self) -> Result<Outcome, String> {
        let kind = interrupt(&self.interrupt).ok_or_else(|| format!("interrupt: unknown `{}`", self.interrupt))?;
        let to = match self.to.as_str() {
            "guest" => Target::Guest,
            "hypervisor" => Target::Hypervisor,
            other => return Err(format!("to: `{other}` is neither guest nor hypervisor")),
        };
        let need = |name: &str, field: Option<Num>| {
            field.map(|number| number.0).ok_or_else(|| format!("{name}: missing for {kind}"))
        };
        let in_srr1 = |word: u64| word as u32 & Cause::IN_SRR1.bits();
        let (cause, address, asdr) = match kind {
            InterruptKind::DataStorage => (need("dsisr", self.dsisr)? as u32, need("dar", self.dar)?, None),
            InterruptKind::DataSegment => (0, need("dar", self.dar)?, None),
            InterruptKind::InstructionStorage => (in_srr1(need("srr1", self.srr1)?), need("srr0", self.srr0)?, None),
            InterruptKind::InstructionSegment => (0, need("srr0", self.srr0)?, None),
            InterruptKind::HypervisorDataStorage => {
                (need("hdsisr", self.hdsisr)? as u32, need("hdar", self.hdar)?, Some(need("asdr", self.asdr)?))
            }
            InterruptKind::HypervisorInstructionStorage => {
                (in_srr1(need("hsrr1", self.hsrr1)?), need("hsrr0", self.hsrr0)?, Some(need("asdr", self.asdr)?))
            }
            InterruptKind::MachineCheck => return Err("interrupt: machine checks are not recorded".into()),
        };
        Ok(Outcome::Fault {
            kind,
            to,
            cause,
            address,
            asdr_frame: asdr.map_or(Asdr::Absent, |asdr| Asdr::Frame(asdr >> 12)),
        })
    }
}

/// The walker's answer to one access on a copy of the image.
fn replay(mmu: &PowerMmu, access: EffectiveAccess, before: &MemoryImage) -> Expected {
    let mut after = before.clone();
    let outcome = match mmu.translate(access, &mut after, &mut NoCaches) {
        Ok(MmuTranslation { output, .. }) => Outcome::Address(output.raw()),
        Err(Interrupt { kind, to, cause, address, asdr, .. }) => Outcome::Fault {
            kind,
            to,
            cause: cause.bits(),
            address: address.raw(),
            asdr_frame: asdr.map_or(Asdr::Absent, |asdr| Asdr::Frame(asdr.raw() >> 12)),
        },
    };
    Expected { outcome, changed: Some(changes(before, &after)) }
}

/// The entries that the walk read, for explanations.
fn trace(mut cursor: MmuCursor, before: &MemoryImage) -> String {
    let mut image = before.clone();
    let mut text = Vec::new();
    loop {
        match cursor.step(&mut image, &mut NoCaches) {
            MmuStep::Read(MmuReference::PartitionTable { at, entry }) => {
                text.push(format!("partition entry at {at} = {:#x}, {:#x}", entry.tree.raw(), entry.process_table));
            }
            MmuStep::Read(MmuReference::ProcessTable { at, entry, .. }) => {
                text.push(format!("process entry at {at} = {:#x}", entry.tree.raw()));
            }
            MmuStep::Read(MmuReference::Tree(word)) => {
                text.push(format!("stage {:?} level {} at {} = {:#x}", word.stage, word.level, word.at, word.raw));
            }
            MmuStep::Update(word) => text.push(format!("set {} to {:#x}", word.at, word.raw)),
            MmuStep::Restart(_) => {}
            MmuStep::Done(_) | MmuStep::Interrupt(_) => return text.join("; "),
        }
    }
}
