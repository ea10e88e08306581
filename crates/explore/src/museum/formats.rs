//! The formats that scenarios run on: what the kernels of the day used.

use arch_arm64_s2::{Features, Granule, Stage1, Stage1Config, Stage2, Stage2Config};
use arch_ppc_radix::{BasePage, Radix, RcUpdate};
use arch_x86_ept::{AccessedDirty, Ept, EptConfig, LongMode, LongModeConfig};
use mmu_sim::arch::Arch2;

/// x86: long mode over EPT.
pub(crate) type X86 = Arch2<LongMode, Ept>;
/// Arm: stage 1 over stage 2.
pub(crate) type Arm = Arch2<Stage1, Stage2>;
/// POWER: a radix tree over another.
pub(crate) type Power = Arch2<Radix, Radix>;

/// EPT with accessed and dirty flags.
pub(crate) fn x86() -> X86 {
    ept(AccessedDirty::On)
}

/// EPT without them: aging takes permissions away.
pub(crate) fn x86_without_flags() -> X86 {
    ept(AccessedDirty::Off)
}

fn ept(flags: AccessedDirty) -> X86 {
    let one = LongModeConfig::new().max_phys_addr(46).build().expect("four levels and 46 bits are legal");
    let two = EptConfig::new().max_phys_addr(46).accessed_dirty(flags).build();
    Arch2 { name: "x86", one, two: two.expect("four levels and 46 bits are legal") }
}

/// Stage 2 with 4K pages, 40-bit addresses and software-managed flags.
pub(crate) fn arm() -> Arm {
    stage2(Features::default())
}

/// The same where a guest with its caches off sees what memory holds.
pub(crate) fn arm_without_forced_caching() -> Arm {
    stage2(Features { fwb: false, ..Features::default() })
}

fn stage2(features: Features) -> Arm {
    let one = Stage1Config::default().build().expect("the defaults are legal");
    let two = Stage2Config { features, ..Stage2Config::default() }.build();
    Arch2 { name: "arm64", one, two: two.expect("the defaults are legal") }
}

/// Stage 2 with 64K pages and 42-bit addresses: two levels, blocks of 512 MiB at the root.
pub(crate) fn arm_64k() -> Arm {
    let one = Stage1Config::default().build().expect("the defaults are legal");
    let two = Stage2Config { granule: Granule::K64, ipa_bits: 42, ..Stage2Config::default() }.build();
    Arch2 { name: "arm64", one, two: two.expect("64K pages with 42 bits are legal") }
}

/// Radix trees with 4K pages; R and C of the partition's tree are set upon an interrupt.
pub(crate) fn power() -> Power {
    radix(RcUpdate::Interrupt)
}

/// The same where walks set them.
pub(crate) fn power_with_flags() -> Power {
    radix(RcUpdate::Hardware)
}

fn radix(rc: RcUpdate) -> Power {
    let two = Radix::partition(BasePage::K4).with_rc(rc);
    Arch2 { name: "power", one: Radix::process(BasePage::K4), two }
}
