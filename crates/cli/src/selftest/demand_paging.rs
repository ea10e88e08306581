//! Arguments of `demand_paging_test`.

use clap::Args;
use mmusim::sim::arch::Arch;
use mmusim::sim::selftests::demand_paging::{Options, run};
use mmusim::sim::selftests::{SelftestError, SelftestReport};
use mmusim::{Bytes, PageSize, Platform};

use super::{Common, Test};

/// Arguments with the kernel test's letters.
#[derive(Args, Debug)]
pub struct Arguments {
    /// vCPUs
    #[arg(short = 'v', value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=4096))]
    vcpus: u32,
    /// Bytes that each vCPU touches
    #[arg(short = 'b', value_name = "SIZE", default_value = "1GiB")]
    bytes: Bytes,
    /// Size of the pages that back the guest [default: the machine's smallest]
    #[arg(short = 's', value_name = "SIZE")]
    source: Option<PageSize>,
    #[command(flatten)]
    common: Common,
}

impl Test for Arguments {
    fn common(&self) -> &Common {
        &self.common
    }
    fn memory(&self) -> Bytes {
        Bytes(self.bytes.0.saturating_mul(u64::from(self.vcpus)))
    }
    fn run<A: Arch>(&self, platform: &Platform<A>) -> Result<SelftestReport, SelftestError> {
        run(platform, &Options { vcpus: self.vcpus as usize, bytes_per_vcpu: self.bytes, page: self.source })
    }
}
