//! A platform for every kind of accessed state that there is. For tests of aging.
#![allow(dead_code, unused_macros)]

use arch_arm64_s2::{HardwareUpdates, Stage1Config, Stage2Config};
use arch_ppc_radix::{BasePage, Radix, RcUpdate};
use arch_x86_ept::{AccessedDirty, EptConfig, LongModeConfig};
use mmu_core::machine::Machine;
use mmu_sim::arch::{Arch, Arch2};
use mmu_sim::experiment::Platform;

/// A built-in machine.
pub fn machine(name: &str) -> Machine {
    Machine::builtin(name).unwrap()
}

/// x86 with or without accessed and dirty flags.
pub fn x86(flags: AccessedDirty) -> Platform<impl Arch> {
    let one = LongModeConfig::new().max_phys_addr(52).build().unwrap();
    let two = EptConfig::new().max_phys_addr(52).accessed_dirty(flags).build().unwrap();
    Platform::new(Arch2 { name: "x86", one, two }, &machine("intel-granite-rapids-host"))
}

/// Arm, the accessed flag kept by hardware or not.
pub fn arm64(updates: HardwareUpdates) -> Platform<impl Arch> {
    let mut two = Stage2Config { updates, ..Stage2Config::default() };
    two.features.updates = updates;
    let one = Stage1Config::default().build().unwrap();
    Platform::new(Arch2 { name: "arm64", one, two: two.build().unwrap() }, &machine("arm-neoverse-n1"))
}

/// POWER, R and C set by hardware or by interrupt.
pub fn power(rc: RcUpdate) -> Platform<Arch2<Radix, Radix>> {
    let two = Radix::partition(BasePage::K4).with_rc(rc);
    Platform::new(Arch2 { name: "power", one: Radix::process(BasePage::K4), two }, &machine("ibm-power9"))
}

/// Runs a check on every kind of accessed state there is.
macro_rules! everywhere {
    ($check:ident $(, $argument:expr)*) => {
        $check(&crate::accessed::x86(arch_x86_ept::AccessedDirty::On) $(, $argument)*);
        $check(&crate::accessed::x86(arch_x86_ept::AccessedDirty::Off) $(, $argument)*);
        $check(&crate::accessed::arm64(arch_arm64_s2::HardwareUpdates::None) $(, $argument)*);
        $check(&crate::accessed::arm64(arch_arm64_s2::HardwareUpdates::Accessed) $(, $argument)*);
        $check(&crate::accessed::power(arch_ppc_radix::RcUpdate::Interrupt) $(, $argument)*);
        $check(&crate::accessed::power(arch_ppc_radix::RcUpdate::Hardware) $(, $argument)*);
    };
}
