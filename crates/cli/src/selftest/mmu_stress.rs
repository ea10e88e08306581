//! Arguments of `mmu_stress_test`.

use clap::Args;
use mmusim::sim::arch::Arch;
use mmusim::sim::selftests::mmu_stress::run;
use mmusim::sim::selftests::{SelftestError, SelftestReport};
use mmusim::{Bytes, Platform};

use super::max_guest_memory::Size;
use super::{Common, Test};

/// Arguments with the kernel test's letters.
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    size: Size,
    #[command(flatten)]
    common: Common,
}

impl Test for Arguments {
    fn common(&self) -> &Common {
        &self.common
    }
    fn memory(&self) -> Bytes {
        self.size.memory()
    }
    fn run<A: Arch>(&self, platform: &Platform<A>) -> Result<SelftestReport, SelftestError> {
        run(platform, &self.size.options())
    }
}
