//! Platforms and guests that several tests use.

#![allow(dead_code, reason = "every test uses some of these")]

use arch_arm64_s2::{Features, GranuleSupport, Stage1, Stage1Config, Stage2, Stage2Config};
use arch_ppc_radix::{BasePage, Radix};
use arch_x86_ept::{EptConfig, LongModeConfig, WalkLength};
use mmu_core::machine::Machine;
use mmu_core::{ByteUnits, Bytes, PageSize};
use mmu_sim::arch::Arch2;
use mmu_sim::engine::GuestPaging;
use mmu_sim::experiment::{Platform, Populate, VmSpec};
use mmu_sim::rng::Seed;
use mmu_sim::workload::{Mix, PatternSpec, Workload};

/// x86 with four levels in both stages on the calibration host.
pub fn x86() -> Platform<Arch2<arch_x86_ept::LongMode, arch_x86_ept::Ept>> {
    let one = LongModeConfig::new().max_phys_addr(52).build().unwrap();
    let two = EptConfig::new().max_phys_addr(52).build().unwrap();
    let machine = Machine::builtin("intel-granite-rapids-host").unwrap();
    Platform::new(Arch2 { name: "x86", one, two }, &machine)
}

/// arm64 with 4K granules and 40-bit IPAs on Neoverse N1.
pub fn arm64() -> Platform<Arch2<Stage1, Stage2>> {
    let one = Stage1Config::default().build().unwrap();
    let two = Stage2Config::default().build().unwrap();
    Platform::new(Arch2 { name: "arm64", one, two }, &Machine::builtin("arm-neoverse-n1").unwrap())
}

/// POWER radix with 64K base pages on POWER9.
pub fn power() -> Platform<Arch2<Radix, Radix>> {
    let (one, two) = (Radix::process(BasePage::K64), Radix::partition(BasePage::K64));
    Platform::new(Arch2 { name: "power", one, two }, &Machine::builtin("ibm-power9").unwrap())
}

/// x86 whose second stage has five levels.
pub fn x86_five_levels() -> Platform<Arch2<arch_x86_ept::LongMode, arch_x86_ept::Ept>> {
    let platform = x86();
    let two = EptConfig::new().walk_length(WalkLength::Five).max_phys_addr(52).build().unwrap();
    Platform { arch: Arch2 { two, ..platform.arch }, ..platform }
}

/// arm64 with 4K granules and 52-bit IPAs, at the costs of Neoverse N1.
pub fn arm64_52_bits() -> Platform<Arch2<Stage1, Stage2>> {
    let platform = arm64();
    let features = Features { pa_bits: 52, granule_4k: GranuleSupport::Lpa2, ..Features::default() };
    let two = Stage2Config { ipa_bits: 52, features, ..Stage2Config::default() }.build().unwrap();
    Platform { arch: Arch2 { two, ..platform.arch }, ..platform }
}

/// POWER radix with 4K base pages on POWER9.
pub fn power_4k() -> Platform<Arch2<Radix, Radix>> {
    let platform = power();
    let (one, two) = (Radix::process(BasePage::K4), Radix::partition(BasePage::K4));
    Platform { arch: Arch2 { one, two, ..platform.arch }, ..platform }
}

/// A guest that touches a few megabytes per vCPU, uniformly.
pub fn small_vm(memory: u64, vcpus: usize, accesses: u64) -> VmSpec {
    let pattern = PatternSpec { bytes: 4.MiB(), mix: Mix::Uniform, writes_percent: 30, accesses };
    VmSpec {
        memory: Bytes(memory),
        vcpus,
        page: PageSize::SIZE_4K,
        guest: GuestPaging::FirstTouch(PageSize::SIZE_4K),
        populate: Populate::Mapped,
        workload: Workload::Pattern(pattern),
        seed: Seed(1),
    }
}
