//! Arguments of `dirty_log_page_splitting_test`.

use clap::Args;
use mmusim::sim::arch::Arch;
use mmusim::sim::protocols::dirty_log::Manual;
use mmusim::sim::selftests::dirty_log_page_splitting::{Options, run};
use mmusim::sim::selftests::{SelftestError, SelftestReport};
use mmusim::{Bytes, PageSize, Platform};

use super::{Common, Test};

/// Arguments with the kernel test's letters.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Bytes of each of the two vCPUs
    #[arg(short = 'b', value_name = "SIZE", default_value = "1GiB")]
    bytes: Bytes,
    /// Size of the pages that back the guest
    #[arg(short = 's', value_name = "SIZE", default_value = "2MiB")]
    source: PageSize,
    /// Reading the log makes pages clean (no `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`)
    #[arg(short = 'g')]
    no_manual: bool,
    #[command(flatten)]
    common: Common,
}

impl Test for Arguments {
    fn common(&self) -> &Common {
        &self.common
    }
    fn memory(&self) -> Bytes {
        Bytes(self.bytes.0.saturating_mul(2))
    }
    fn run<A: Arch>(&self, platform: &Platform<A>) -> Result<SelftestReport, SelftestError> {
        let manual = if self.no_manual { Manual::Off } else { Manual::On };
        run(platform, &Options { bytes_per_vcpu: self.bytes, page: self.source, manual })
    }
}
