//! Arguments of `stage2_block_transitions`, which has none of its own.

use clap::Args;
use mmusim::sim::arch::Arch;
use mmusim::sim::selftests::block_transitions::{Options, run};
use mmusim::sim::selftests::{SelftestError, SelftestReport};
use mmusim::{ByteUnits, Bytes, Platform};

use super::{Common, Test};

/// Arguments.
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    common: Common,
}

impl Test for Arguments {
    fn common(&self) -> &Common {
        &self.common
    }
    fn memory(&self) -> Bytes {
        Bytes(64.MiB())
    }
    fn run<A: Arch>(&self, platform: &Platform<A>) -> Result<SelftestReport, SelftestError> {
        run(platform, &Options::default())
    }
}
