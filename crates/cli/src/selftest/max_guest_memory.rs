//! Arguments of `max_guest_memory_test`.

use clap::Args;
use mmusim::sim::arch::Arch;
use mmusim::sim::selftests::max_guest_memory::{Options, run};
use mmusim::sim::selftests::{SelftestError, SelftestReport};
use mmusim::{ByteUnits, Bytes, PageSize, Platform};

use super::{Common, Test};

/// Arguments with the kernel test's letters.
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    pub(super) size: Size,
    #[command(flatten)]
    pub(super) common: Common,
}

/// How large the guest is.
#[derive(Args, Debug)]
pub struct Size {
    /// vCPUs
    #[arg(short = 'c', value_name = "N", default_value = "3", value_parser = clap::value_parser!(u32).range(1..=4096))]
    vcpus: u32,
    /// Guest memory in GB
    #[arg(short = 'm', value_name = "GB", default_value = "128", value_parser = clap::value_parser!(u64).range(1..=65536))]
    memory: u64,
    /// Size of a memslot in GB
    #[arg(short = 's', value_name = "GB", default_value = "2", value_parser = clap::value_parser!(u64).range(1..=65536))]
    slot: u64,
    /// Back the guest by 2M pages
    #[arg(short = 'H')]
    huge: bool,
}

impl Size {
    /// Guest memory.
    pub(super) fn memory(&self) -> Bytes {
        Bytes(self.memory.GiB())
    }
    /// As the test wants it.
    pub(super) fn options(&self) -> Options {
        Options {
            vcpus: self.vcpus as usize,
            memory: self.memory(),
            slot: Bytes(self.slot.GiB()),
            page: self.huge.then_some(PageSize::SIZE_2M),
            ..Options::default()
        }
    }
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
