//! What the tests of curves share: the machine that was measured, and its formats.

use arch_x86_ept::{Ept, EptConfig, LongMode, LongModeConfig, WalkLength};
use mmu_core::machine::Machine;

/// Four-level tables of the guest over second-stage tables of that many levels.
pub fn formats(second: WalkLength) -> (LongMode, Ept) {
    let one = LongModeConfig::new().max_phys_addr(52).build().unwrap();
    let two = EptConfig::new().walk_length(second).max_phys_addr(52).build().unwrap();
    (one, two)
}

/// The machine whose curves were measured.
pub fn host() -> Machine {
    Machine::builtin("intel-granite-rapids-host").unwrap()
}
