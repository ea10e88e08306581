//! Arguments of `kvm_page_table_test`.

use clap::Args;
use mmusim::sim::arch::Arch;
use mmusim::sim::selftests::page_table::{Options, run};
use mmusim::sim::selftests::{SelftestError, SelftestReport};
use mmusim::{Bytes, PageSize, Platform};

use super::vm_options::GuestMode;
use super::{Common, Test};

/// Arguments with the kernel test's letters.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Guest-physical offset of the memory
    #[arg(short = 'p', value_name = "SIZE", default_value = "0")]
    offset: Bytes,
    /// Memory that all vCPUs map
    #[arg(short = 'b', value_name = "SIZE", default_value = "1GiB")]
    bytes: Bytes,
    /// vCPUs
    #[arg(short = 'v', value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=4096))]
    vcpus: u32,
    /// Size of the pages that back the guest [default: the machine's smallest]
    #[arg(short = 's', value_name = "SIZE")]
    source: Option<PageSize>,
    #[command(flatten)]
    mode: GuestMode,
    #[command(flatten)]
    common: Common,
}

impl Test for Arguments {
    fn common(&self) -> &Common {
        &self.common
    }
    fn memory(&self) -> Bytes {
        self.mode.memory(Bytes(self.offset.0.saturating_add(self.bytes.0)))
    }
    fn run<A: Arch>(&self, platform: &Platform<A>) -> Result<SelftestReport, SelftestError> {
        let options = Options {
            offset: self.offset,
            bytes: self.bytes,
            vcpus: self.vcpus as usize,
            page: self.source,
            coalesce: None,
            lock: None,
        };
        run(platform, &options)
    }
}
