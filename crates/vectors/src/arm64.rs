//! Arm stage-2 vectors: AT instructions executed at EL2, and real accesses of a guest with stage 1 off.
//!
//! Before you work on this file read Arm ARM C5.4 (`AT S12E1R`), D24.2.140 (`PAR_EL1`) and D24.2.39 (`ESR_EL2`).

use std::fmt;

use arch_arm64_s2::{
    ArmFault, FaultKind, Features, Granule, Hcr, IdRegisters, MemoryAttributes, Shareability, Stage2, Vtcr, Vttbr,
};
use mmu_core::image::MemoryImage;
use mmu_core::walk::{Reference, Step, Translation, WalkCursor};
use mmu_core::{Access, AccessKind, Entry, Format, Hpa, Privilege, Purpose};
use serde::Deserialize;

use crate::json::{Num, Words, changes, memory, parse, recorded_changes};
use crate::report::{Disagreement, FileReport, Quirk};
use crate::run::Place;

/// Address bits above 48 in descriptors of a processor that has them while a smaller size is configured.
const HIGH_ADDRESS_BITS: Quirk = Quirk {
    name: "arm64-high-address-bits-ignored",
    why: "QEMU ignores descriptor bits [15:12] (64K) or [9:8] (DS=1) when the configured size is below 52 bits; \
          AArch64.LeafBase and NextTableBase take them as address bits and AArch64.OAOutOfRange faults (Arm ARM D8.2.5)",
};
/// Any other departure that the file declares and in which the walker gives what the manual says.
const DECLARED: Quirk = Quirk {
    name: "arm64-declared-by-the-record",
    why: "the record is tagged as departing from the manual, and the walker gives the tagged expectation",
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "fields are named so that unknown ones are refused")]
struct Image {
    arch: String,
    emulator: String,
    #[serde(rename = "image")]
    name: String,
    config: Config,
    memory: Words,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(non_snake_case, dead_code, reason = "the file uses the architecture's names")]
struct Config {
    cpu: String,
    ID_AA64MMFR0_EL1: Num,
    ID_AA64MMFR1_EL1: Num,
    ID_AA64MMFR2_EL1: Num,
    ID_AA64ISAR0_EL1: Option<Num>,
    HCR_EL2: HcrFields,
    VTCR_EL2: VtcrFields,
    VTTBR_EL2: VttbrFields,
    SCTLR_EL1: SctlrFields,
    granule: String,
    ram: Option<Vec<(Num, Num)>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(non_snake_case, dead_code, reason = "the file uses the architecture's names")]
struct HcrFields {
    value: Num,
    VM: Option<Num>,
    DC: Option<Num>,
    RW: Option<Num>,
    FWB: Option<Num>,
    CD: Option<Num>,
    ID: Option<Num>,
    PTW: Option<Num>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(non_snake_case, dead_code, reason = "the file uses the architecture's names")]
struct VtcrFields {
    value: Num,
    T0SZ: Option<Num>,
    SL0: Option<Num>,
    IRGN0: Option<Num>,
    ORGN0: Option<Num>,
    SH0: Option<Num>,
    TG0: Option<Num>,
    PS: Option<Num>,
    VS: Option<Num>,
    HA: Option<Num>,
    HD: Option<Num>,
    HWU: Option<Num>,
    DS: Option<Num>,
    SL2: Option<Num>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(non_snake_case, dead_code, reason = "the file uses the architecture's names")]
struct VttbrFields {
    value: Num,
    VMID: Option<Num>,
    BADDR: Option<Num>,
    CnP: Option<Num>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(non_snake_case, dead_code, reason = "the file uses the architecture's names")]
struct SctlrFields {
    value: Num,
    M: Option<Num>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "fields are named so that unknown ones are refused")]
struct Case {
    access: CaseAccess,
    result: Recorded,
    memory_after: Option<Words>,
    by: Option<Vec<String>>,
    manual_differs: Option<String>,
    other: Option<Other>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "fields are named so that unknown ones are refused")]
struct Other {
    emulator: String,
    result: Recorded,
    memory_after: Option<Words>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case")]
enum Via {
    AtS12e1r,
    AtS12e1w,
    AtS12e0r,
    AtS12e0w,
    LoadEl1,
    StoreEl1,
    FetchEl1,
    FetchEl0,
    LoadEl0,
    StoreEl0,
}

impl Via {
    const fn is_at(self) -> bool {
        matches!(self, Via::AtS12e1r | Via::AtS12e1w | Via::AtS12e0r | Via::AtS12e0w)
    }
    const fn access(self) -> Access {
        let (kind, privilege) = match self {
            Via::AtS12e1r | Via::LoadEl1 => (AccessKind::Read, Privilege::Supervisor),
            Via::AtS12e1w | Via::StoreEl1 => (AccessKind::Write, Privilege::Supervisor),
            Via::AtS12e0r | Via::LoadEl0 => (AccessKind::Read, Privilege::User),
            Via::AtS12e0w | Via::StoreEl0 => (AccessKind::Write, Privilege::User),
            Via::FetchEl1 => (AccessKind::Execute, Privilege::Supervisor),
            Via::FetchEl0 => (AccessKind::Execute, Privilege::User),
        };
        Access { kind, privilege, purpose: Purpose::Data }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseAccess {
    ipa: Num,
    kind: String,
    via: Via,
    privileged: bool,
}

impl CaseAccess {
    /// `via` says everything; the other two fields must agree with it.
    fn check(&self) -> Result<(), String> {
        let Access { kind, privilege, .. } = self.via.access();
        let letter = match kind {
            AccessKind::Read => "r",
            AccessKind::Write | AccessKind::ReadWrite => "w",
            AccessKind::Execute => "x",
        };
        if self.kind != letter {
            return Err(format!("access.kind is `{}`, but access.via {:?} is `{letter}`", self.kind, self.via));
        }
        if self.privileged != (privilege == Privilege::Supervisor) {
            return Err(format!("access.privileged is {}, which access.via {:?} is not", self.privileged, self.via));
        }
        Ok(())
    }
}

impl fmt::Display for CaseAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at IPA {:#x}", self.via, self.ipa.0)
    }
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Recorded {
    pa: Option<Num>,
    attrs: Option<RecordedAttrs>,
    par_el1: Option<Num>,
    executed: Option<bool>,
    fault: Option<RecordedFault>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct RecordedAttrs {
    par_attr: Num,
    par_sh: Num,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct RecordedFault {
    stage: u8,
    #[serde(rename = "type")]
    kind: RecordedKind,
    level: i8,
    fsc: Num,
    ptw: Option<Num>,
    par_el1: Option<Num>,
    s1ptw: Option<Num>,
    esr_el2: Option<Num>,
    far_el2: Option<Num>,
    hpfar_el2: Option<Num>,
    wnr: Option<Num>,
    exception: Option<Num>,
}

#[derive(Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum RecordedKind {
    Translation,
    AccessFlag,
    Permission,
    AddressSize,
    ExternalAbortWalk,
}

impl RecordedKind {
    const fn kind(self) -> FaultKind {
        match self {
            RecordedKind::Translation => FaultKind::Translation,
            RecordedKind::AccessFlag => FaultKind::AccessFlag,
            RecordedKind::Permission => FaultKind::Permission,
            RecordedKind::AddressSize => FaultKind::AddressSize,
            RecordedKind::ExternalAbortWalk => FaultKind::ExternalOnWalk,
        }
    }
}

/// One image, ready to be walked.
struct Machine {
    stage2: Stage2,
    hcr: Hcr,
    root: Hpa,
    memory: MemoryImage,
}

impl Machine {
    fn new(image: &Image) -> Result<Self, String> {
        let config = &image.config;
        let vtcr = Vtcr::new(config.VTCR_EL2.value.0);
        let hcr = Hcr::new(config.HCR_EL2.value.0);
        check_fields(config)?;
        let features = Features::from_id_registers(IdRegisters {
            isar0: config.ID_AA64ISAR0_EL1.map_or(0, |isar0| isar0.0),
            mmfr0: config.ID_AA64MMFR0_EL1.0,
            mmfr1: config.ID_AA64MMFR1_EL1.0,
            mmfr2: config.ID_AA64MMFR2_EL1.0,
        });
        let stage2 = Stage2::as_hardware(vtcr, hcr, features);
        if config.granule != stage2.granule().to_string() {
            return Err(format!("config.granule is `{}`, but VTCR_EL2 says {}", config.granule, stage2.granule()));
        }
        let root = stage2.root(Vttbr::new(config.VTTBR_EL2.value.0));
        let memory = memory(&image.memory, config.ram.as_deref()).map_err(|error| error.to_string())?;
        Ok(Self { stage2, hcr, root, memory })
    }
}

/// Fields written beside a register's value must agree with it.
fn check_fields(config: &Config) -> Result<(), String> {
    let (vtcr, hcr) = (&config.VTCR_EL2, &config.HCR_EL2);
    let fields = [
        ("VTCR_EL2.T0SZ", vtcr.value, 0, 6, vtcr.T0SZ),
        ("VTCR_EL2.SL0", vtcr.value, 6, 2, vtcr.SL0),
        ("VTCR_EL2.SH0", vtcr.value, 12, 2, vtcr.SH0),
        ("VTCR_EL2.TG0", vtcr.value, 14, 2, vtcr.TG0),
        ("VTCR_EL2.PS", vtcr.value, 16, 3, vtcr.PS),
        ("VTCR_EL2.HA", vtcr.value, 21, 1, vtcr.HA),
        ("VTCR_EL2.HD", vtcr.value, 22, 1, vtcr.HD),
        ("VTCR_EL2.DS", vtcr.value, 32, 1, vtcr.DS),
        ("VTCR_EL2.SL2", vtcr.value, 33, 1, vtcr.SL2),
        ("HCR_EL2.VM", hcr.value, 0, 1, hcr.VM),
        ("HCR_EL2.DC", hcr.value, 12, 1, hcr.DC),
        ("HCR_EL2.FWB", hcr.value, 46, 1, hcr.FWB),
        ("SCTLR_EL1.M", config.SCTLR_EL1.value, 0, 1, config.SCTLR_EL1.M),
    ];
    for (name, value, low, width, field) in fields {
        let have = value.0 >> low & ((1 << width) - 1);
        if field.is_some_and(|field| field.0 != have) {
            return Err(format!("config.{name} does not agree with the register's value {:#x}", value.0));
        }
    }
    if hcr.value.0 & 1 == 0 {
        return Err("config.HCR_EL2.VM is 0: without a second stage there is nothing to check".into());
    }
    Ok(())
}

pub(crate) fn check_image(text: &str, place: Place, report: &mut FileReport) -> Result<(), String> {
    let image: Image = parse(text)?;
    let machine = Machine::new(&image)?;
    for (index, case) in image.cases.iter().enumerate() {
        case.access.check().map_err(|what| format!("case {index}: {what}"))?;
        let run = Run::new(&machine, case);
        match run.judge(&machine, case) {
            Outcome::Agrees => report.agree(),
            Outcome::Excepted(quirk) => report.except(quirk),
            Outcome::Differs(why) => report.disagree(Disagreement {
                image: image.name.clone(),
                line: place.line,
                case: index,
                access: case.access.to_string(),
                expected: expectation(case),
                got: format!("{why}; {run}"),
            }),
        }
    }
    Ok(())
}

enum Outcome {
    Agrees,
    Excepted(Quirk),
    Differs(String),
}

/// What the walker did with one case.
struct Run {
    result: Result<Translation, ArmFault>,
    read: Vec<Reference>,
    changed: Vec<(u64, u64)>,
}

impl Run {
    fn new(machine: &Machine, case: &Case) -> Self {
        let mut memory = machine.memory.clone();
        let mut cursor = WalkCursor::new(machine.stage2, machine.root, case.access.ipa.0, case.access.via.access());
        let mut read = Vec::new();
        let result = loop {
            match cursor.step(&mut memory) {
                Step::Read(reference) => read.push(reference),
                Step::Update(_) | Step::Restart(_) => {}
                Step::Done(translation) => break Ok(translation),
                Step::Fault(fault) => break Err(fault),
            }
        };
        Self { result, read, changed: changes(&machine.memory, &memory) }
    }

    /// Compares with the record, or with the manual where the record is tagged.
    fn judge(&self, machine: &Machine, case: &Case) -> Outcome {
        let differences = self.differences(machine, case);
        let Some(manual) = &case.manual_differs else {
            return if differences.is_empty() { Outcome::Agrees } else { Outcome::Differs(differences.join(", ")) };
        };
        match self.is_what_the_manual_says(manual) {
            Some(true) if self.is_high_address_fault(machine) => Outcome::Excepted(HIGH_ADDRESS_BITS),
            Some(true) => Outcome::Excepted(DECLARED),
            Some(false) => Outcome::Differs(format!("the manual says {manual}")),
            None if differences.is_empty() => Outcome::Agrees,
            None => {
                Outcome::Differs(format!("{}; manual_differs `{manual}` names no known answer", differences.join(", ")))
            }
        }
    }

    /// `model ('fault', 'address_size', 1)`, `model ('pa', 0x1234)`: whether the walker gave that. `None` when the text is
    /// neither.
    fn is_what_the_manual_says(&self, text: &str) -> Option<bool> {
        let inside = text.split_once('(')?.1.rsplit_once(')')?.0;
        let mut words = inside.split(',').map(|word| word.trim().trim_matches('\''));
        match words.next()? {
            "fault" => {
                let kind = serde_json::from_value::<RecordedKind>(words.next()?.into()).ok()?.kind();
                let level: i8 = words.next()?.parse().ok()?;
                Some(self.result.is_err_and(|fault| fault.kind == kind && fault.level.number() == level))
            }
            "pa" | "ok" => {
                let word = words.next()?;
                let pa = match word.strip_prefix("0x") {
                    Some(hex) => u64::from_str_radix(hex, 16).ok()?,
                    None => word.parse().ok()?,
                };
                Some(self.result.is_ok_and(|translation| translation.output.raw() == pa))
            }
            _ => None,
        }
    }

    /// The rule of the quirk: the last word read has address bits above 48 where the configured size is smaller.
    fn is_high_address_fault(&self, machine: &Machine) -> bool {
        let Some(last) = self.read.last() else { return false };
        let wide = match machine.stage2.granule() {
            Granule::K64 => 0xf000,
            Granule::K4 | Granule::K16 => 0x300,
        };
        self.result.is_err_and(|fault| fault.kind == FaultKind::AddressSize)
            && machine.stage2.geometry().output_bits() < 52
            && last.raw & wide != 0
    }

    fn differences(&self, machine: &Machine, case: &Case) -> Vec<String> {
        let mut found = Differences::default();
        match (&self.result, &case.result.fault) {
            (Ok(translation), None) => compare_success(machine, case, translation, &mut found),
            (Err(fault), Some(recorded)) => compare_fault(case, fault, recorded, &mut found),
            (Ok(_), Some(_)) => found.0.push("translates".into()),
            (Err(_), None) => found.0.push("faults".into()),
        }
        // An AT instruction may leave flags alone or set them (Arm ARM D8.5.1).
        let at = case.access.via.is_at();
        if !at && self.changed != recorded_changes(case.memory_after.as_ref()) {
            found.0.push(format!("writes {}", list(&self.changed)));
        }
        found.0
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.result {
            Ok(translation) => write!(f, "pa {} as {}", translation.output, translation.perms)?,
            Err(fault) => write!(f, "{fault}")?,
        }
        for reference in &self.read {
            let level = arch_arm64_s2::ArmLevel::of(reference.level);
            write!(f, "; level {level} at {}: {:#x}", reference.at, reference.raw)?;
        }
        if self.changed.is_empty() { Ok(()) } else { write!(f, "; writes {}", list(&self.changed)) }
    }
}

fn compare_success(machine: &Machine, case: &Case, translation: &Translation, found: &mut Differences) {
    let pa = translation.output.raw();
    let recorded = &case.result;
    if case.access.via == Via::FetchEl0 {
        // The page is not identified.
        found.same("executed", u64::from(recorded.executed == Some(true) || recorded.pa.is_some()), 1);
    } else {
        match recorded.pa {
            Some(recorded) => found.same("pa", recorded.0, pa),
            None => found.0.push("record has neither pa nor fault".into()),
        }
    }
    let attributes = attributes(machine, translation);
    if let (Some(recorded), Some(attributes)) = (&recorded.attrs, attributes) {
        found.same("par_attr", recorded.par_attr.0, u64::from(attributes.attr));
        found.same("par_sh", recorded.par_sh.0, attributes.shareability.bits());
    }
    if let (Some(recorded), Some(attributes)) = (recorded.par_el1, attributes) {
        found.same("par_el1", recorded.0, par_success(pa, attributes));
    }
}

/// Memory attributes of the leaf together with those of a stage 1 that is off.
fn attributes(machine: &Machine, translation: &Translation) -> Option<MemoryAttributes> {
    let Entry::Leaf(leaf) = machine.stage2.decode(translation.level, translation.raw) else { return None };
    let shareability: Shareability = machine.stage2.shareability(&leaf.attrs);
    Some(MemoryAttributes::stage1_off(machine.hcr).with_stage2(leaf.attrs.memory, shareability, machine.hcr))
}

/// `PAR_EL1` of a translation: attributes, address bits 51:12, NS (the Non-secure state) and the RES1 bit 11.
fn par_success(pa: u64, attributes: MemoryAttributes) -> u64 {
    const NON_SECURE: u64 = 1 << 9;
    const RES1: u64 = 1 << 11;
    let address = pa & 0x000f_ffff_ffff_f000;
    u64::from(attributes.attr) << 56 | address | RES1 | NON_SECURE | attributes.shareability.bits() << 7
}

#[derive(Default)]
struct Differences(Vec<String>);

impl Differences {
    fn same(&mut self, field: &str, recorded: u64, ours: u64) {
        if recorded != ours {
            self.0.push(format!("{field} {recorded:#x} recorded, {ours:#x} walked"));
        }
    }
}

fn compare_fault(case: &Case, fault: &ArmFault, recorded: &RecordedFault, found: &mut Differences) {
    found.same("stage", u64::from(recorded.stage), 2);
    if fault.kind != recorded.kind.kind() || fault.level.number() != recorded.level {
        found.0.push(format!("{:?} level {} recorded", recorded.kind, recorded.level));
    }
    found.same("fsc", recorded.fsc.0, u64::from(fault.status()));
    let mut field = |name, recorded: Option<Num>, ours: u64| {
        if let Some(recorded) = recorded {
            found.same(name, recorded.0, ours);
        }
    };
    let walk = u64::from(fault.on_stage1_walk());
    field("ptw", recorded.ptw, walk);
    field("s1ptw", recorded.s1ptw, walk);
    field("par_el1", recorded.par_el1, fault.par());
    if case.access.via.is_at() {
        // An external abort is taken as an exception at EL2; WnR is 1 for every AT (Arm ARM D24.2.39, CM).
        let exception = fault.kind == FaultKind::ExternalOnWalk;
        field("exception", recorded.exception, u64::from(exception));
        field("wnr", recorded.wnr, 1);
        field("esr_el2", recorded.esr_el2, at_syndrome(fault));
    } else {
        field("wnr", recorded.wnr, u64::from(fault.write_not_read()));
        field("far_el2", recorded.far_el2, fault.input);
        field("esr_el2", recorded.esr_el2.map(translation_syndrome), fault.esr(case.access.via.access().kind));
    }
    if let Some(hpfar) = fault.hpfar() {
        field("hpfar_el2", recorded.hpfar_el2, hpfar);
    }
}

/// `ESR_EL2` of a data abort taken from EL2 itself by a cache or translation instruction: CM and WnR set.
fn at_syndrome(fault: &ArmFault) -> u64 {
    const DATA_ABORT_SAME_EL: u64 = 0x25 << 26;
    const INSTRUCTION_LENGTH_32: u64 = 1 << 25;
    DATA_ABORT_SAME_EL | INSTRUCTION_LENGTH_32 | 1 << 8 | 1 << 6 | u64::from(fault.status())
}

/// The fields of a syndrome that do not describe the instruction: without ISV, SAS, SSE, SRT, SF, AR of a data abort.
fn translation_syndrome(esr: Num) -> Num {
    const DATA_ABORT_LOWER_EL: u64 = 0x24;
    const INSTRUCTION: u64 = 0x01ff_c000;
    Num(if esr.0 >> 26 == DATA_ABORT_LOWER_EL { esr.0 & !INSTRUCTION } else { esr.0 })
}

fn list(words: &[(u64, u64)]) -> String {
    let words: Vec<String> = words.iter().map(|(at, word)| format!("[{at:#x}]={word:#x}")).collect();
    if words.is_empty() { "nothing".into() } else { words.join(" ") }
}

/// The recorded answer in words.
fn expectation(case: &Case) -> String {
    let answer = match (&case.result.fault, &case.result.pa) {
        (Some(fault), _) => format!("{:?} fault, level {}, FSC {:#x}", fault.kind, fault.level, fault.fsc.0),
        (None, Some(pa)) => format!("pa {:#x}", pa.0),
        (None, None) => "executed".into(),
    };
    let attrs = case.result.attrs.as_ref();
    let attrs = attrs.map(|attrs| format!(", attr {:#x} sh {}", attrs.par_attr.0, attrs.par_sh.0)).unwrap_or_default();
    let manual = case.manual_differs.as_ref().map(|manual| format!(" (the manual: {manual})")).unwrap_or_default();
    format!("{answer}{attrs}{manual}, writes {}", list(&recorded_changes(case.memory_after.as_ref())))
}
