//! Which machines a command runs on, and the formats of each.

use mmusim::arch::{self, Arm64, Power, X86};
use mmusim::core::machine::Arch as MachineArch;
use mmusim::{Bytes, Machine};

use crate::CliError;
use crate::args::ArchName;
use crate::machine::load;

/// A machine's pair of formats.
#[derive(Clone, Copy, Debug)]
pub enum Formats {
    /// x86
    X86(X86),
    /// Arm
    Arm64(Arm64),
    /// POWER
    Power(Power),
}

fn arch_of(machine: &Machine) -> ArchName {
    match machine.arch {
        MachineArch::X86_64 => ArchName::X86,
        MachineArch::Aarch64 => ArchName::Arm64,
        MachineArch::Power => ArchName::Power,
    }
}

/// The machine that stands for an architecture when none is named.
fn default_machine(arch: ArchName) -> &'static str {
    match arch {
        ArchName::X86 => "intel-granite-rapids-host",
        ArchName::Arm64 => "arm-neoverse-n1",
        ArchName::Power => "ibm-power9",
    }
}

/// The machine that `--machine` names, or one for each architecture of `--arch` in its order, or one for each there is.
///
/// # Errors
/// A machine that cannot be loaded, or that is not of an architecture asked for.
pub fn machines(machine: Option<&str>, arch: &[ArchName]) -> Result<Vec<Machine>, CliError> {
    if let Some(name) = machine {
        let machine = load(name)?;
        if !arch.is_empty() && !arch.contains(&arch_of(&machine)) {
            let what =
                format!("machine {} is {}; leave --arch out or name another machine", machine.name, machine.arch);
            return Err(CliError::argument("--arch", what));
        }
        return Ok(vec![machine]);
    }
    let mut archs = Vec::new();
    let wanted = if arch.is_empty() { &[ArchName::X86, ArchName::Arm64, ArchName::Power][..] } else { arch };
    for &arch in wanted {
        if !archs.contains(&arch) {
            archs.push(arch);
        }
    }
    archs.into_iter().map(|arch| load(default_machine(arch))).collect()
}

/// The formats of a machine for a guest of so much memory.
///
/// # Errors
/// The machine's trees cannot hold it.
pub fn formats(machine: &Machine, memory: Bytes) -> Result<Formats, CliError> {
    let formats = match arch_of(machine) {
        ArchName::X86 => arch::x86(machine, memory).map(Formats::X86),
        ArchName::Arm64 => arch::arm64(machine, memory).map(Formats::Arm64),
        ArchName::Power => arch::power(machine).map(Formats::Power),
    };
    formats.map_err(CliError::input)
}
