//! What a processor implements, as far as translation depends on it.

use crate::granule::Granule;
use crate::layout::bits;

/// How far the implementation relaxes break-before-make (`ID_AA64MMFR2_EL1.BBM`, Arm ARM D8.17).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum BbmLevel {
    /// Changing the size of a mapping needs break-before-make.
    #[default]
    Level0,
    /// It may be changed while the block has nT set.
    Level1,
    /// It may be changed; a TLB conflict abort can follow.
    Level2,
}

/// Who keeps the accessed flag and the dirty state (`ID_AA64MMFR1_EL1.HAFDBS`, `VTCR_EL2.{HA,HD}`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum HardwareUpdates {
    /// Software: a clear access flag faults.
    #[default]
    None,
    /// Hardware sets the access flag.
    Accessed,
    /// Hardware sets the access flag and, where DBM allows it, the write permission.
    AccessedAndDirty,
}

/// How a granule is supported at stage 2.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum GranuleSupport {
    /// Not at all.
    Absent,
    /// With 48-bit addresses (52 for 64K with `FEAT_LPA`).
    Plain,
    /// With 52-bit addresses when DS=1 (`FEAT_LPA2`).
    Lpa2,
}

/// What a processor implements.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Features {
    /// Physical address size in bits: 32, 36, 40, 42, 44, 48 or 52.
    pub pa_bits: u32,
    /// Stage-2 support of the 4K granule.
    pub granule_4k: GranuleSupport,
    /// Stage-2 support of the 16K granule.
    pub granule_16k: GranuleSupport,
    /// Stage-2 support of the 64K granule ([`GranuleSupport::Lpa2`] means nothing here).
    pub granule_64k: GranuleSupport,
    /// `FEAT_HAFDBS`.
    pub updates: HardwareUpdates,
    /// `FEAT_XNX`: execute-never apart for EL1 and EL0 at stage 2.
    pub xnx: bool,
    /// `FEAT_S2FWB`: stage 2 may force memory types.
    pub fwb: bool,
    /// `FEAT_TTST`: input addresses down to 16 bits (17 with 64K).
    pub ttst: bool,
    /// `FEAT_LVA`: 52-bit virtual addresses with 64K.
    pub lva: bool,
    /// `FEAT_BBM`.
    pub bbm: BbmLevel,
    /// `FEAT_TTL`: invalidations by address take a level hint.
    pub ttl: bool,
    /// `FEAT_TLBIRANGE`: invalidations by range.
    pub tlbi_range: bool,
}

impl Default for Features {
    /// A present-day server core without 52-bit addresses: 48-bit PA, every granule, hardware A and D, FWB, XNX, TTL and
    /// range invalidation.
    fn default() -> Self {
        Self {
            pa_bits: 48,
            granule_4k: GranuleSupport::Plain,
            granule_16k: GranuleSupport::Plain,
            granule_64k: GranuleSupport::Plain,
            updates: HardwareUpdates::AccessedAndDirty,
            xnx: true,
            fwb: true,
            ttst: true,
            lva: false,
            bbm: BbmLevel::Level0,
            ttl: true,
            tlbi_range: true,
        }
    }
}

/// The identification registers that [`Features`] are read from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct IdRegisters {
    /// `ID_AA64ISAR0_EL1`.
    pub isar0: u64,
    /// `ID_AA64MMFR0_EL1`.
    pub mmfr0: u64,
    /// `ID_AA64MMFR1_EL1`.
    pub mmfr1: u64,
    /// `ID_AA64MMFR2_EL1`.
    pub mmfr2: u64,
}

/// Address sizes by their encoding in `PARange`, `PS` and `IPS`; 52 stands for the reserved value 7 too, as larger sizes
/// need descriptors that are not modelled (`FEAT_D128`).
pub(crate) const fn address_bits(encoded: u64) -> u32 {
    match encoded {
        0 => 32,
        1 => 36,
        2 => 40,
        3 => 42,
        4 => 44,
        5 => 48,
        _ => 52,
    }
}

impl Features {
    /// Everything, with 52-bit addresses.
    pub const MAX: Features = Features {
        pa_bits: 52,
        granule_4k: GranuleSupport::Lpa2,
        granule_16k: GranuleSupport::Lpa2,
        granule_64k: GranuleSupport::Plain,
        updates: HardwareUpdates::AccessedAndDirty,
        xnx: true,
        fwb: true,
        ttst: true,
        lva: true,
        bbm: BbmLevel::Level2,
        ttl: true,
        tlbi_range: true,
    };

    /// Reads the identification registers (Arm ARM D23.2). Values newer than this model count as the newest known one.
    pub fn from_id_registers(id: IdRegisters) -> Self {
        let field = |register, low| bits(register, low + 3, low);
        let support = |stage1: u64, stage1_lpa2: u64, stage1_absent: u64, stage2: u64| match stage2 {
            0 if stage1 == stage1_absent => GranuleSupport::Absent,
            0 if stage1 == stage1_lpa2 => GranuleSupport::Lpa2,
            0 => GranuleSupport::Plain,
            1 => GranuleSupport::Absent,
            2 => GranuleSupport::Plain,
            _ => GranuleSupport::Lpa2,
        };
        Self {
            pa_bits: address_bits(field(id.mmfr0, 0)),
            granule_4k: support(field(id.mmfr0, 28), 1, 15, field(id.mmfr0, 40)),
            granule_16k: support(field(id.mmfr0, 20), 2, 0, field(id.mmfr0, 32)),
            granule_64k: support(field(id.mmfr0, 24), 16, 15, field(id.mmfr0, 36)),
            updates: match field(id.mmfr1, 0) {
                0 => HardwareUpdates::None,
                1 => HardwareUpdates::Accessed,
                _ => HardwareUpdates::AccessedAndDirty,
            },
            xnx: field(id.mmfr1, 28) != 0,
            fwb: field(id.mmfr2, 40) != 0,
            ttst: field(id.mmfr2, 28) != 0,
            lva: field(id.mmfr2, 16) != 0,
            bbm: match field(id.mmfr2, 52) {
                0 => BbmLevel::Level0,
                1 => BbmLevel::Level1,
                _ => BbmLevel::Level2,
            },
            ttl: field(id.mmfr2, 48) != 0,
            tlbi_range: field(id.isar0, 56) >= 2,
        }
    }

    /// Stage-2 support of a granule.
    pub const fn granule(&self, granule: Granule) -> GranuleSupport {
        match granule {
            Granule::K4 => self.granule_4k,
            Granule::K16 => self.granule_16k,
            Granule::K64 => self.granule_64k,
        }
    }
    /// Whether DS=1 means something with this granule.
    pub const fn lpa2(&self, granule: Granule) -> bool {
        !matches!(granule, Granule::K64) && matches!(self.granule(granule), GranuleSupport::Lpa2)
    }
    /// Narrowest input address in bits (pseudo-code `AArch64.MaxTxSZ`).
    pub const fn min_input_bits(&self, granule: Granule) -> u32 {
        match (self.ttst, granule) {
            (false, _) => 25,
            (true, Granule::K64) => 17,
            (true, _) => 16,
        }
    }
}
