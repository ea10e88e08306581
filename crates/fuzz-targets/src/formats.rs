//! One configuration of each kind of every architecture, chosen by a byte.

use arch_arm64_s2::{Granule, HardwareUpdates, Stage1Config, Stage2Config};
use arch_ppc_radix::{BasePage, Radix, RcUpdate};
use arch_x86_ept::{AccessedDirty, EptConfig, ExecuteOnly, LongModeConfig, WalkLength};
use mmu_core::Format;

/// Something done with a format of any type.
pub(crate) trait WithFormat {
    /// Does it.
    fn with<F: Format>(self, format: F);
}

/// Something done with a first-stage format over a second-stage one.
pub(crate) trait WithPair {
    /// Does it.
    fn with<F1: Format, F2: Format>(self, one: F1, two: F2);
}

const GRANULES: [Granule; 3] = Granule::ALL;

fn ept(choice: u8) -> EptConfig {
    let length = if choice & 1 == 0 { WalkLength::Four } else { WalkLength::Five };
    let flags = if choice & 2 == 0 { AccessedDirty::On } else { AccessedDirty::Off };
    let execute = if choice & 4 == 0 { ExecuteOnly::Supported } else { ExecuteOnly::Unsupported };
    EptConfig::new().walk_length(length).accessed_dirty(flags).execute_only(execute)
}

fn updates(choice: u8) -> HardwareUpdates {
    if choice & 1 == 0 { HardwareUpdates::None } else { HardwareUpdates::AccessedAndDirty }
}

fn stage2(choice: u8) -> Stage2Config {
    let granule = GRANULES[usize::from(choice >> 1) % 3];
    Stage2Config { granule, updates: updates(choice), ..Stage2Config::default() }
}

fn stage1(choice: u8) -> Stage1Config {
    let granule = GRANULES[usize::from(choice >> 1) % 3];
    Stage1Config { granule, updates: updates(choice), ..Stage1Config::default() }
}

fn base(choice: u8) -> BasePage {
    if choice & 1 == 0 { BasePage::K64 } else { BasePage::K4 }
}

fn rc(choice: u8) -> RcUpdate {
    if choice & 2 == 0 { RcUpdate::Hardware } else { RcUpdate::Interrupt }
}

/// Hands over the format that `choice` names. Every configuration above is legal; one that were not is a failed check.
pub(crate) fn one_format(choice: u8, visit: impl WithFormat) {
    let detail = choice / 6;
    match choice % 6 {
        0 => visit.with(ept(detail).build().expect("a legal EPT")),
        1 => visit.with(LongModeConfig::new().build().expect("legal long-mode tables")),
        2 => visit.with(stage2(detail).build().expect("a legal stage 2")),
        3 => visit.with(stage1(detail).build().expect("a legal stage 1")),
        4 => visit.with(Radix::partition(base(detail)).with_rc(rc(detail))),
        _ => visit.with(Radix::process(base(detail)).with_rc(rc(detail))),
    }
}

/// The same for a pair.
pub(crate) fn pair(choice: u8, visit: impl WithPair) {
    let detail = choice / 3;
    match choice % 3 {
        0 => visit.with(
            LongModeConfig::new().build().expect("legal long-mode tables"),
            ept(detail).build().expect("a legal EPT"),
        ),
        1 => visit
            .with(stage1(detail).build().expect("a legal stage 1"), stage2(detail).build().expect("a legal stage 2")),
        _ => visit
            .with(Radix::process(base(detail)).with_rc(rc(detail)), Radix::partition(base(detail)).with_rc(rc(detail))),
    }
}
