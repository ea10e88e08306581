//! Arguments of `demand_paging_test`.

use clap::{Args, ValueEnum};
use mmusim::sim::arch::Arch;
use mmusim::sim::selftests::demand_paging::{Options, Regions, UserfaultMode, run};
use mmusim::sim::selftests::{SelftestError, SelftestReport};
use mmusim::{Bytes, PageSize, Platform};

use super::vm_options::{GuestMode, Pinning};
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
    /// What a user-space fault handler provides
    #[arg(short = 'u', value_name = "MODE")]
    userfault: Option<Mode>,
    /// Microseconds that the handler waits before it provides a page
    #[arg(short = 'd', value_name = "USEC", default_value = "0", requires = "userfault", value_parser = clap::value_parser!(u64).range(..=1_000_000_000))]
    delay: u64,
    /// All vCPUs touch the same memory
    #[arg(short = 'o')]
    overlap: bool,
    #[command(flatten)]
    pinning: Pinning,
    #[command(flatten)]
    mode: GuestMode,
    #[command(flatten)]
    common: Common,
}

/// The kernel's `UFFDIO_REGISTER_MODE_*`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
#[value(rename_all = "UPPER")]
enum Mode {
    /// Pages that are not there: it copies them
    Missing,
    /// Pages that are not mapped: it maps them
    Minor,
}

impl Test for Arguments {
    fn common(&self) -> &Common {
        &self.common
    }
    fn memory(&self) -> Bytes {
        self.mode.memory(Bytes(self.bytes.0.saturating_mul(u64::from(self.vcpus))))
    }
    fn run<A: Arch>(&self, platform: &Platform<A>) -> Result<SelftestReport, SelftestError> {
        self.pinning.check(self.vcpus)?;
        let userfault = self.userfault.map(|mode| match mode {
            Mode::Missing => UserfaultMode::Missing,
            Mode::Minor => UserfaultMode::Minor,
        });
        let options = Options {
            vcpus: self.vcpus as usize,
            bytes_per_vcpu: self.bytes,
            page: self.source,
            userfault,
            delay_us: self.delay,
            regions: if self.overlap { Regions::Overlapping } else { Regions::Partitioned },
        };
        run(platform, &options)
    }
}
