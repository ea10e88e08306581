//! Configuration of the first stage: what `TCR_EL1`, `TTBR1_EL1` and `SCTLR_EL1` say.
//!
//! Before you work on this file read Arm ARM D24.2.189 (`TCR_EL1`) and D8.2.4 (start level of stage 1).

use mmu_core::{Geometry, Gpa, Level};

use crate::config::{ConfigError, encode_size, geometry};
use crate::features::{Features, HardwareUpdates};
use crate::granule::Granule;
use crate::layout::{Layout, Split};

/// The upper half of the address space, translated by `TTBR1_EL1`. It has the granule of the lower half.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct UpperHalf {
    /// `TTBR1_EL1`: its start table.
    pub table: Gpa,
    /// Width of its addresses in bits (64 less `T1SZ`).
    pub va_bits: u32,
}

/// A first stage in the words of a guest kernel; [`Stage1Config::build`] checks it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Stage1Config {
    /// Granule.
    pub granule: Granule,
    /// Width of a virtual address of the lower half in bits (64 less `T0SZ`).
    pub va_bits: u32,
    /// The upper half, or `None` when only `TTBR0_EL1` is used (`EPD1` set): addresses there fault.
    pub upper: Option<UpperHalf>,
    /// Width of an output (intermediate physical) address in bits, as `TCR_EL1.IPS` can say it: 32, 36, 40, 42, 44, 48, 52.
    pub output_bits: u32,
    /// Who keeps accessed and dirty state (`TCR_EL1.{HA,HD}`).
    pub updates: HardwareUpdates,
    /// `SCTLR_EL1.WXN`: what can be written cannot be executed.
    pub write_implies_xn: bool,
    /// `TCR_EL1.TBI0/1`: the top byte of an address is ignored.
    pub top_byte_ignored: bool,
    /// The address space that flushes name.
    pub asid: u16,
    /// What the processor implements.
    pub features: Features,
    /// Most invalidations by address before the whole address space is invalidated.
    pub max_invalidations: u32,
}

impl Default for Stage1Config {
    /// 4K, 48-bit addresses through `TTBR0_EL1` alone, 48-bit output, hardware access flag and dirty state.
    fn default() -> Self {
        Self {
            granule: Granule::K4,
            va_bits: 48,
            upper: None,
            output_bits: 48,
            updates: HardwareUpdates::AccessedAndDirty,
            write_implies_xn: false,
            top_byte_ignored: false,
            asid: 0,
            features: Features::default(),
            max_invalidations: 512,
        }
    }
}

/// Arm's EL1&0 first stage, configured; made by [`Stage1Config::build`].
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Stage1 {
    pub(super) layout: Layout,
    pub(super) geometry: Geometry,
    pub(super) upper: Option<Upper>,
    pub(super) config: Stage1Config,
}

/// The upper half's start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Upper {
    pub(super) table: Gpa,
    pub(super) va_bits: u32,
    pub(super) root: Level,
    pub(super) root_bits: u32,
}

/// Start level and index bits of a half (Arm ARM D8.2.4): as many levels as the address needs.
fn start(granule: Granule, va_bits: u32) -> (Level, u32) {
    let above = (va_bits - granule.shift()).div_ceil(granule.stride()) - 1;
    (Level::new(above as u8), va_bits - granule.shift() - above * granule.stride())
}

impl Stage1Config {
    /// The configured first stage.
    ///
    /// # Errors
    /// The first rule of the architecture that the configuration breaks.
    pub fn build(&self) -> Result<Stage1, ConfigError> {
        let Self { granule, features, output_bits, .. } = *self;
        if encode_size(output_bits).is_none() {
            return Err(ConfigError::new(
                "IPS",
                format!("{output_bits} bits; 32, 36, 40, 42, 44, 48, 52 are possible"),
            ));
        }
        if self.updates > features.updates {
            return Err(ConfigError::new("HA", "this processor lacks that part of FEAT_HAFDBS"));
        }
        self.check_width("T0SZ", self.va_bits)?;
        if let Some(upper) = self.upper {
            self.check_width("T1SZ", upper.va_bits)?;
        }
        let split = match granule {
            Granule::K64 if features.pa_bits >= 52 => Split::Lpa,
            Granule::K64 => Split::None,
            _ if self.ds() => Split::Lpa2,
            _ => Split::None,
        };
        let widest = if split == Split::None { 48 } else { 52 };
        let layout = Layout { granule, split, output_bits: output_bits.min(features.pa_bits).min(widest) };
        let (root, root_bits) = start(granule, self.va_bits);
        let upper = self.upper.map(|half| {
            let (root, root_bits) = start(granule, half.va_bits);
            Upper { table: half.table, va_bits: half.va_bits, root, root_bits }
        });
        Ok(Stage1 { layout, geometry: geometry(layout, root, root_bits), upper, config: *self })
    }

    /// `TCR_EL1.DS` is set where it means something.
    fn ds(&self) -> bool {
        self.features.pa_bits >= 52 && self.features.lpa2(self.granule)
    }

    fn check_width(&self, field: &'static str, bits: u32) -> Result<(), ConfigError> {
        let wide = self.ds() || self.granule == Granule::K64 && self.features.lva;
        let (least, most) = (self.features.min_input_bits(self.granule), if wide { 52 } else { 48 });
        if (least..=most).contains(&bits) && bits > self.granule.shift() {
            Ok(())
        } else {
            Err(ConfigError::new(field, format!("{bits}-bit addresses; this processor has {least} to {most}")))
        }
    }
}
