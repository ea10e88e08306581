//! Arguments of `nx_huge_pages_test`.

use clap::Args;
use mmusim::sim::arch::Arch;
use mmusim::sim::selftests::nx_huge_pages::{Options, RebootPermission, run};
use mmusim::sim::selftests::{SelftestError, SelftestReport};
use mmusim::{ByteUnits, Bytes, Platform};

use super::{Common, Test};

/// Arguments with the kernel test's letters.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Recovery period in milliseconds
    #[arg(short = 'p', value_name = "MS", default_value = "100", value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    period: u64,
    /// The kernel test's token, which says that its script has set the host up; any number will do here
    #[arg(short = 't', value_name = "TOKEN")]
    token: Option<u64>,
    /// The process may reboot the host: run a second time without the mitigation
    #[arg(short = 'r')]
    reboot: bool,
    #[command(flatten)]
    common: Common,
}

impl Test for Arguments {
    fn common(&self) -> &Common {
        &self.common
    }
    fn memory(&self) -> Bytes {
        Bytes(6.MiB())
    }
    fn run<A: Arch>(&self, platform: &Platform<A>) -> Result<SelftestReport, SelftestError> {
        let reboot = if self.reboot { RebootPermission::Granted } else { RebootPermission::Denied };
        run(platform, &Options { period_ms: self.period, reboot })
    }
}
