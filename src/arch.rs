//! From a described machine to the pair of formats that its virtual machines run on.
//!
//! A machine's sheet says the granule and the levels that its kernels usually have. The second stage gets those levels, or
//! as many more as the guest's memory needs, up to what the architecture has. Whoever wants another choice builds the
//! formats with the builders of [`x86`](crate::x86), [`arm64`](crate::arm64) and [`power`](crate::power) and an [`Arch2`].
//!
//! ```
//! use mmusim::{ByteUnits, Bytes, Format, Machine, arch};
//! let machine = Machine::builtin("arm-neoverse-n1").map_err(|errors| errors[0].clone())?;
//! assert_eq!(arch::arm64(&machine, Bytes(64.GiB()))?.two.geometry().input_bits(), 40);
//! assert_eq!(arch::arm64(&machine, Bytes(64.TiB()))?.two.geometry().levels(), 4);
//! assert!(arch::x86(&machine, Bytes(64.GiB())).is_err());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::fmt;

use arch_arm64_s2::{ConfigError, Features, Granule, Stage1, Stage1Config, Stage2, Stage2Config};
use arch_ppc_radix::{BasePage, Radix, RcUpdate};
use arch_x86_ept::{Ept, EptConfig, LongMode, LongModeConfig, WalkLength};
use mmu_core::machine::{Arch, Machine, RangeInvalidation};
use mmu_core::{Bytes, Cycles, PageSize};
use mmu_sim::arch::Arch2;

/// x86: the guest's long mode over EPT.
pub type X86 = Arch2<LongMode, Ept>;
/// Arm: the guest's EL1&0 stage 1 over stage 2.
pub type Arm64 = Arch2<Stage1, Stage2>;
/// POWER: a process-scoped over a partition-scoped radix tree.
pub type Power = Arch2<Radix, Radix>;

/// A machine that cannot be given the formats asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ArchError {
    /// The machine is of another architecture.
    OtherArch {
        /// Name of the machine.
        machine: String,
        /// What it is.
        is: Arch,
        /// What was asked for.
        wanted: Arch,
    },
    /// Its sheet describes trees that the architecture does not have.
    Stages {
        /// Name of the machine.
        machine: String,
        /// What is wrong, and what would be right.
        what: String,
    },
}

impl fmt::Display for ArchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ArchError::OtherArch { machine, is, wanted } => {
                write!(f, "machine {machine} is {is}, not {wanted}; name a machine of that architecture")
            }
            ArchError::Stages { machine, what } => write!(f, "machine {machine}, [stages]: {what}"),
        }
    }
}
impl std::error::Error for ArchError {}

fn stages(machine: &Machine, what: impl fmt::Display) -> ArchError {
    ArchError::Stages { machine: machine.name.clone(), what: what.to_string() }
}

fn expect(machine: &Machine, wanted: Arch) -> Result<(), ArchError> {
    if machine.arch == wanted {
        return Ok(());
    }
    Err(ArchError::OtherArch { machine: machine.name.clone(), is: machine.arch, wanted })
}

/// Address bits that so much memory takes.
fn bits(memory: Bytes) -> u32 {
    64 - memory.0.saturating_sub(1).leading_zeros()
}

/// EPT with accessed and dirty flags under a long-mode guest. Physical addresses have 52 bits, so that whatever the tables
/// can translate has host memory behind it.
///
/// # Errors
/// A machine of another architecture, another granule than 4K, or another number of levels than 4 and 5.
pub fn x86(machine: &Machine, memory: Bytes) -> Result<X86, ArchError> {
    expect(machine, Arch::X86_64)?;
    if machine.stages.granule != PageSize::SIZE_4K {
        return Err(stages(machine, format_args!("granule {}; x86 has 4K", machine.stages.granule)));
    }
    let length = |key: &str, levels: u8| match levels {
        4 => Ok(WalkLength::Four),
        5 => Ok(WalkLength::Five),
        _ => Err(stages(machine, format_args!("{key} = {levels}; x86 has 4 and 5"))),
    };
    let first = length("first_levels", machine.stages.first_levels)?;
    let second = match length("second_levels", machine.stages.second_levels)? {
        WalkLength::Four if bits(memory) > 48 => WalkLength::Five,
        given => given,
    };
    let one = LongModeConfig::new().walk_length(first).max_phys_addr(52).build();
    let two = EptConfig::new().walk_length(second).max_phys_addr(52).build();
    Ok(Arch2 {
        name: "x86",
        one: one.map_err(|error| stages(machine, error))?,
        two: two.map_err(|error| stages(machine, error))?,
    })
}

/// Stage 2 with software-managed flags, as KVM runs it, under a guest whose own flags hardware keeps. IPAs have as many bits
/// as full tables of the sheet's levels resolve, or 40 (KVM's default) where concatenated start tables reach that, or what
/// the memory needs, and 48 at most.
///
/// # Errors
/// A machine of another architecture, or a combination of granule and levels that the architecture does not have.
pub fn arm64(machine: &Machine, memory: Bytes) -> Result<Arm64, ArchError> {
    expect(machine, Arch::Aarch64)?;
    let granule = Granule::ALL.into_iter().find(|granule| granule.page() == machine.stages.granule);
    let granule = granule
        .ok_or_else(|| stages(machine, format_args!("granule {}; use 4K, 16K or 64K", machine.stages.granule)))?;
    let resolved = |levels: u8| granule.shift() + granule.stride() * u32::from(levels);
    let wrong = |error: ConfigError| stages(machine, error);
    let features = Features {
        tlbi_range: machine.invalidate.range == RangeInvalidation::Instruction,
        // A machine that forces write-back has nothing to clean.
        fwb: machine.costs.dcache_clean_4k == Cycles::ZERO,
        ..Features::default()
    };
    let most = u32::try_from(machine.invalidate.full_above_pages).unwrap_or(u32::MAX);
    let local = u32::try_from(machine.invalidate.full_above_pages_local).unwrap_or(u32::MAX);
    let va_bits = resolved(machine.stages.first_levels).min(48);
    let one = Stage1Config { granule, va_bits, features, max_invalidations: local, ..Stage1Config::default() };
    let full = resolved(machine.stages.second_levels);
    let ipa_bits = full.max(40.min(full + 4)).max(bits(memory)).min(48);
    let two = Stage2Config { granule, ipa_bits, features, max_invalidations: most, ..Stage2Config::default() };
    Ok(Arch2 { name: "arm64", one: one.build().map_err(wrong)?, two: two.build().map_err(wrong)? })
}

/// Radix trees of 52 bits, enough for any memory, with the sheet's base page. R and C of the second stage are set by the
/// hypervisor upon an interrupt, as on POWER9 and POWER10.
///
/// # Errors
/// A machine of another architecture, another granule than 4K and 64K, or another number of levels than 4.
pub fn power(machine: &Machine) -> Result<Power, ArchError> {
    expect(machine, Arch::Power)?;
    let base = match machine.stages.granule {
        PageSize::SIZE_4K => BasePage::K4,
        PageSize::SIZE_64K => BasePage::K64,
        other => return Err(stages(machine, format_args!("granule {other}; radix trees have 4K and 64K"))),
    };
    if (machine.stages.first_levels, machine.stages.second_levels) != (4, 4) {
        return Err(stages(machine, "radix trees have 4 levels: write first_levels = 4 and second_levels = 4"));
    }
    let two = Radix::partition(base).with_rc(RcUpdate::Interrupt);
    Ok(Arch2 { name: "power", one: Radix::process(base), two })
}

#[cfg(test)]
mod tests {
    use super::*;
    use mmu_core::{ByteUnits, Format};

    fn machine(name: &str) -> Machine {
        Machine::builtin(name).unwrap()
    }

    #[test]
    fn every_built_in_machine_has_the_formats_of_its_architecture() {
        for name in Machine::names() {
            let machine = machine(name);
            let memory = Bytes(1.TiB());
            let built = [
                x86(&machine, memory).map(|pair| pair.name),
                arm64(&machine, memory).map(|pair| pair.name),
                power(&machine).map(|pair| pair.name),
            ];
            assert_eq!(built.iter().filter(|result| result.is_ok()).count(), 1, "{name}: {built:?}");
        }
    }

    #[test]
    fn the_second_stage_grows_with_the_memory_and_only_then() {
        let (intel, arm) = (machine("intel-granite-rapids-host"), machine("arm-neoverse-n1"));
        let x86_bits = |memory| x86(&intel, Bytes(memory)).unwrap().two.geometry().input_bits();
        let arm_bits = |memory| arm64(&arm, Bytes(memory)).unwrap().two.geometry().input_bits();
        assert_eq!([x86_bits(1.GiB()), x86_bits(256.TiB()), x86_bits(1.PiB())], [48, 48, 57]);
        assert_eq!([arm_bits(1.GiB()), arm_bits(1.TiB()), arm_bits(2.TiB()), arm_bits(1.PiB())], [40, 40, 41, 48]);
    }

    #[test]
    fn impossible_stages_name_the_machine_and_the_remedy() {
        let mut intel = machine("intel-granite-rapids-host");
        intel.stages.second_levels = 3;
        let message = x86(&intel, Bytes(1.GiB())).unwrap_err().to_string();
        assert_eq!(message, "machine intel-granite-rapids-host, [stages]: second_levels = 3; x86 has 4 and 5");
        let mut power9 = machine("ibm-power9");
        power9.stages.granule = PageSize::SIZE_16K;
        assert!(power(&power9).unwrap_err().to_string().contains("4K and 64K"));
        let mut arm = machine("arm-neoverse-n1");
        arm.stages.granule = PageSize::SIZE_2M;
        assert!(arm64(&arm, Bytes(1.GiB())).is_err());
    }
}
