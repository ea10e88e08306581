//! From control registers and features to a second stage: which configurations are legal, and what hardware does with
//! the others.
//!
//! Before you work on this file read Arm ARM D8.2 (translation process, start levels and concatenation) and the
//! pseudo-code functions `AArch64.S2TxSZFaults`, `AArch64.S2InvalidSL`, `AArch64.S2InconsistentSL`.

use std::error::Error;
use std::fmt;

use mmu_core::{Geometry, Level};

use crate::features::{Features, GranuleSupport, HardwareUpdates};
use crate::granule::{ArmLevel, Granule};
use crate::layout::{Layout, Split};
use crate::registers::{Hcr, Vtcr};
use crate::stage2::{Options, Stage2, Start};

/// Why a configuration is illegal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigError {
    field: &'static str,
    what: String,
}

impl ConfigError {
    pub(crate) fn new(field: &'static str, what: impl Into<String>) -> Self {
        Self { field, what: what.into() }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.what)
    }
}
impl Error for ConfigError {}

/// Where a stage-2 walk starts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum StartLevel {
    /// As few levels as 16 concatenated tables allow, but two at least: Linux's choice.
    #[default]
    Fewest,
    /// This one.
    At(ArmLevel),
}

/// A second stage in the words of a hypervisor; [`Stage2Config::build`] checks it.
///
/// ```
/// use arch_arm64_s2::{Granule, Stage2Config};
/// use mmu_core::Format;
/// let stage2 = Stage2Config { granule: Granule::K4, ipa_bits: 40, ..Default::default() }.build()?;
/// // 40 bits need no fourth level: two tables are concatenated at level 1.
/// assert_eq!(stage2.geometry().levels(), 3);
/// assert_eq!(stage2.geometry().table_bytes(stage2.geometry().root()), 2 * 4096);
/// # Ok::<(), arch_arm64_s2::ConfigError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Stage2Config {
    /// Granule.
    pub granule: Granule,
    /// Width of an IPA in bits.
    pub ipa_bits: u32,
    /// Where walks start.
    pub start: StartLevel,
    /// Who keeps accessed and dirty state.
    pub updates: HardwareUpdates,
    /// What the processor implements. With 52-bit addresses, DS is set for 4K and 16K where the feature is there.
    pub features: Features,
    /// Most invalidations by address before everything is invalidated instead (Linux: `MAX_DVM_OPS`, one table's entries).
    pub max_invalidations: u32,
}

impl Default for Stage2Config {
    /// 4K, 40-bit IPAs, software-managed flags as in KVM, the default features, 512 invalidations.
    fn default() -> Self {
        Self {
            granule: Granule::K4,
            ipa_bits: 40,
            start: StartLevel::Fewest,
            updates: HardwareUpdates::None,
            features: Features::default(),
            max_invalidations: 512,
        }
    }
}

impl Stage2Config {
    /// The registers of this configuration, legal or not.
    ///
    /// # Errors
    /// When a field cannot be written in a register at all.
    pub fn registers(&self) -> Result<(Vtcr, Hcr), ConfigError> {
        let Self { granule, ipa_bits, features, .. } = *self;
        if !(16..=52).contains(&ipa_bits) {
            return Err(ConfigError::new("ipa_bits", format!("{ipa_bits} bits; 16 to 52 are possible")));
        }
        let wide = features.pa_bits == 52;
        let ds = wide && features.lpa2(granule);
        let start = match self.start {
            StartLevel::At(level) => level,
            StartLevel::Fewest => fewest_levels(granule, ipa_bits)?,
        };
        let (sl0, sl2) = encode_start(granule, start)?;
        let tg0 = match granule {
            Granule::K4 => 0,
            Granule::K64 => 1,
            Granule::K16 => 2u64,
        };
        let ps = encode_size(features.pa_bits)
            .ok_or_else(|| ConfigError::new("pa_bits", format!("{} is no address size", features.pa_bits)))?;
        let updates = match self.updates {
            HardwareUpdates::None => 0,
            HardwareUpdates::Accessed => 1,
            HardwareUpdates::AccessedAndDirty => 3u64,
        };
        const RES1: u64 = 1 << 31;
        const INNER_SHAREABLE: u64 = 3 << 12;
        let vtcr = RES1 | INNER_SHAREABLE | u64::from(64 - ipa_bits) | sl0 << 6 | tg0 << 14 | ps << 16 | updates << 21;
        let hcr = 1 | u64::from(features.fwb) << 46;
        Ok((Vtcr::new(vtcr | u64::from(ds) << 32 | sl2 << 33), Hcr::new(hcr)))
    }

    /// The configured second stage.
    ///
    /// # Errors
    /// The first rule of the architecture that the configuration breaks.
    pub fn build(&self) -> Result<Stage2, ConfigError> {
        let (vtcr, hcr) = self.registers()?;
        Ok(Stage2::new(vtcr, hcr, self.features)?.with_max_invalidations(self.max_invalidations))
    }
}

/// Linux's start level: concatenation resolves up to four bits more.
fn fewest_levels(granule: Granule, ipa_bits: u32) -> Result<ArmLevel, ConfigError> {
    let resolved = ipa_bits.saturating_sub(4).saturating_sub(granule.shift());
    let levels =
        resolved.div_ceil(granule.stride()).max(if ipa_bits > granule.shift() + granule.stride() { 2 } else { 1 });
    ArmLevel::new(4 - levels as i8).ok_or_else(|| ConfigError::new("ipa_bits", "needs more levels than there are"))
}

/// `SL0` and `SL2` of a start level.
fn encode_start(granule: Granule, start: ArmLevel) -> Result<(u64, u64), ConfigError> {
    match (granule, start.number()) {
        (Granule::K4, -1) => Ok((0, 1)),
        (Granule::K4, 0) => Ok((2, 0)),
        (Granule::K4, 1) => Ok((1, 0)),
        (Granule::K4, 2) => Ok((0, 0)),
        (Granule::K4, 3) => Ok((3, 0)),
        (_, number @ 0..=3) => Ok((3 - number as u64, 0)),
        (_, number) => Err(ConfigError::new("start", format!("no {granule} walk starts at level {number}"))),
    }
}

/// `PS` of an address size.
pub(crate) const fn encode_size(bits: u32) -> Option<u64> {
    match bits {
        32 => Some(0),
        36 => Some(1),
        40 => Some(2),
        42 => Some(3),
        44 => Some(4),
        48 => Some(5),
        52 => Some(6),
        _ => None,
    }
}

/// The start level that the fields say, if that is legal (`AArch64.S2InvalidSL`, `AArch64.S2StartLevel`).
fn start_level(vtcr: Vtcr, granule: Granule, ds: bool, features: &Features) -> Result<ArmLevel, ConfigError> {
    let need = |ok: bool, level: i8, what: &str| match ArmLevel::new(level) {
        Some(level) if ok => Ok(level),
        _ => Err(ConfigError::new("SL0", what)),
    };
    let pa = features.pa_bits;
    // SL2 is RES0 but for 4K with DS=1.
    match (granule, vtcr.sl0(), ds && vtcr.sl2() == 1) {
        (Granule::K4, 0, true) => need(pa >= 52, -1, "level -1 needs 52-bit physical addresses"),
        (Granule::K4, _, true) => Err(ConfigError::new("SL2", "set: legal with SL0=0 only")),
        (Granule::K4, 0, _) => need(true, 2, ""),
        (Granule::K4, 1, _) => need(true, 1, ""),
        (Granule::K4, 2, _) => need(pa >= 44, 0, "level 0 needs 44-bit physical addresses; start at level 1"),
        (Granule::K4, _, _) => need(features.ttst, 3, "level 3 needs FEAT_TTST; start at level 2"),
        (Granule::K16, 3, _) => {
            need(ds && pa >= 52, 0, "level 0 needs DS=1 and 52-bit physical addresses; start at level 1")
        }
        (Granule::K16, 2, _) => need(pa >= 42, 1, "level 1 needs 42-bit physical addresses; start at level 2"),
        (Granule::K64, 3, _) => need(false, 0, "64K has no level 0"),
        (Granule::K64, 2, _) => need(pa >= 44, 1, "level 1 needs 44-bit physical addresses; start at level 2"),
        (_, sl0, _) => need(true, 3 - sl0 as i8, ""),
    }
}

/// Index bits of the start table, if the input width fits it: 1 bit at least, a full table and 16 concatenated ones at most
/// (`AArch64.S2InconsistentSL`).
fn root_bits(granule: Granule, ipa_bits: u32, start: ArmLevel) -> Result<u32, ConfigError> {
    let below = granule.level_shift(start.level());
    let (least, most) = (below + 1, below + granule.stride() + 4);
    if (least..=most).contains(&ipa_bits) {
        Ok(ipa_bits - below)
    } else {
        Err(ConfigError::new(
            "T0SZ",
            format!("{ipa_bits}-bit IPAs; a {granule} walk from level {start} resolves {least} to {most}"),
        ))
    }
}

/// `AArch64.S2TxSZFaults`.
fn check_input_size(granule: Granule, ipa_bits: u32, ds: bool, features: &Features) -> Result<(), ConfigError> {
    let wide = ds || granule == Granule::K64;
    let most = if wide { features.pa_bits } else { features.pa_bits.min(48) };
    let least = features.min_input_bits(granule);
    if (least..=most).contains(&ipa_bits) {
        Ok(())
    } else {
        Err(ConfigError::new("T0SZ", format!("{ipa_bits}-bit IPAs; this processor has {least} to {most}")))
    }
}

impl Stage2 {
    /// The second stage of these registers on a processor with these features.
    ///
    /// # Errors
    /// The first rule of the architecture that they break; [`Stage2::as_hardware`] says what hardware does then.
    pub fn new(vtcr: Vtcr, hcr: Hcr, features: Features) -> Result<Self, ConfigError> {
        let granule = vtcr.granule().ok_or_else(|| ConfigError::new("TG0", "the value 3 is reserved"))?;
        if features.granule(granule) == GranuleSupport::Absent {
            return Err(ConfigError::new("TG0", format!("this processor has no {granule} granule at stage 2")));
        }
        if vtcr.ps() == 7 {
            return Err(ConfigError::new("PS", "the value 7 is reserved"));
        }
        if vtcr.ds() && !features.lpa2(granule) {
            return Err(ConfigError::new("DS", format!("this processor has no FEAT_LPA2 with {granule}")));
        }
        if vtcr.updates() > features.updates {
            return Err(ConfigError::new("HA", "this processor lacks that part of FEAT_HAFDBS"));
        }
        if hcr.fwb() && !features.fwb {
            return Err(ConfigError::new("HCR_EL2.FWB", "this processor lacks FEAT_S2FWB"));
        }
        let shape = shape(vtcr, granule, &features)?;
        Ok(assemble(vtcr, hcr, &features, granule, Some(shape)))
    }

    /// What a processor makes of *any* register values: fields of features that it lacks are ignored, and an illegal
    /// input size or start level makes every walk end in a translation fault at level 0 (`AArch64.S2Translate`). An
    /// unsupported granule counts as the smallest supported one, an allowed choice.
    pub fn as_hardware(vtcr: Vtcr, hcr: Hcr, features: Features) -> Self {
        let supported = |granule: &Granule| features.granule(*granule) != GranuleSupport::Absent;
        let fallback = Granule::ALL.into_iter().find(supported).unwrap_or(Granule::K4);
        let granule = vtcr.granule().filter(supported).unwrap_or(fallback);
        let shape = shape(vtcr, granule, &features).ok();
        assemble(vtcr, hcr, &features, granule, shape)
    }
}

/// Start level and root index bits.
fn shape(vtcr: Vtcr, granule: Granule, features: &Features) -> Result<(ArmLevel, u32), ConfigError> {
    let ds = vtcr.ds() && features.lpa2(granule);
    let ipa_bits = 64 - vtcr.t0sz();
    check_input_size(granule, ipa_bits, ds, features)?;
    let start = start_level(vtcr, granule, ds, features)?;
    Ok((start, root_bits(granule, ipa_bits, start)?))
}

/// The tree's shape; `levels_below` are full.
pub(crate) fn geometry(layout: Layout, root_level: Level, root_bits: u32) -> Geometry {
    let mut index_bits = [layout.granule.stride() as u8; Level::MAX_LEVELS];
    let root = root_level.index().min(Level::MAX_LEVELS - 1);
    index_bits[root] = root_bits.clamp(1, 24) as u8;
    let leaves: Vec<u8> = (0..=root as u8).filter(|&l| l == 0 || layout.block_at(Level::new(l))).collect();
    let page = layout.granule.page();
    let shape = Geometry::uniform(page, &index_bits[..=root], layout.output_bits as u8, &leaves);
    // Five levels of at most 17 bits over a 64K page fit every bound that `uniform` checks.
    shape.unwrap_or_else(|_| unreachable!("{layout:?}, root {root_level} of {root_bits} bits"))
}

fn assemble(vtcr: Vtcr, hcr: Hcr, features: &Features, granule: Granule, shape: Option<(ArmLevel, u32)>) -> Stage2 {
    let split = match granule {
        Granule::K64 if features.pa_bits >= 52 => Split::Lpa,
        Granule::K64 => Split::None,
        _ if vtcr.ds() && features.lpa2(granule) => Split::Lpa2,
        _ => Split::None,
    };
    let widest = if split == Split::None { 48 } else { 52 };
    let output_bits = vtcr.output_bits().min(features.pa_bits).min(widest);
    let layout = Layout { granule, split, output_bits };
    let (start, (root_level, root_bits)) = match shape {
        Some((level, bits)) => (Start::Legal, (level.level(), bits)),
        None => (Start::Faults, (Level::LAST, granule.stride())),
    };
    Stage2 {
        layout,
        geometry: geometry(layout, root_level, root_bits),
        start,
        options: Options {
            updates: vtcr.updates().min(features.updates),
            xnx: features.xnx,
            fwb: hcr.fwb() && features.fwb,
            ptw: hcr.ptw(),
            // Bits 51:48 of the table address come from VTTBR bits 5:2 (`AArch64.S2TTBaseAddress`).
            wide_base: split == Split::Lpa2 || (split == Split::Lpa && vtcr.ps() == 6),
            walk_shareability: crate::Shareability::from_bits(vtcr.sh0()),
            bbm: features.bbm,
            ttl: features.ttl,
            tlbi_range: features.tlbi_range,
            max_invalidations: 512,
        },
    }
}
