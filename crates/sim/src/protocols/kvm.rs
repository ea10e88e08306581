//! Whose KVM handles the second stage of a format, where what it does follows from nothing else that the format says.

use mmu_core::Format;

/// The KVM of an architecture.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kvm {
    /// `arch/x86/kvm`
    X86,
    /// `arch/arm64/kvm`
    Arm64,
    /// `arch/powerpc/kvm`, radix
    Power,
    /// None: the choices of a format of one's own follow from what it can do.
    None,
}

impl Kvm {
    /// By the format's name, the only place that goes by it.
    pub(crate) fn of<F: Format>() -> Kvm {
        match F::NAME {
            "x86-ept" => Kvm::X86,
            "arm64-stage2" => Kvm::Arm64,
            "power-radix" => Kvm::Power,
            _ => Kvm::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_second_stage_has_its_kvm() {
        let all =
            [Kvm::of::<arch_x86_ept::Ept>(), Kvm::of::<arch_arm64_s2::Stage2>(), Kvm::of::<arch_ppc_radix::Radix>()];
        assert_eq!(all, [Kvm::X86, Kvm::Arm64, Kvm::Power]);
        assert_eq!(Kvm::of::<arch_x86_ept::LongMode>(), Kvm::None);
    }
}
