//! The formats that scenarios run on: what the kernels of the day used.

use arch_x86_ept::{Ept, EptConfig, LongMode, LongModeConfig};
use mmu_sim::arch::Arch2;

/// x86: long mode over EPT.
pub(crate) type X86 = Arch2<LongMode, Ept>;

/// EPT with accessed and dirty flags.
pub(crate) fn x86() -> X86 {
    let one = LongModeConfig::new().max_phys_addr(46).build().expect("four levels and 46 bits are legal");
    let two = EptConfig::new().max_phys_addr(46).build().expect("four levels and 46 bits are legal");
    Arch2 { name: "x86", one, two }
}
