//! Arguments of `memslot_modification_stress_test`.

use clap::Args;
use mmusim::sim::arch::Arch;
use mmusim::sim::selftests::demand_paging::Regions;
use mmusim::sim::selftests::memslot_modification::{Options, SlotQuirk, run};
use mmusim::sim::selftests::{SelftestError, SelftestReport};
use mmusim::{Bytes, Platform};

use super::vm_options::GuestMode;
use super::{Common, Test};

/// Arguments with the kernel test's letters.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Microseconds between two modifications
    #[arg(short = 'd', value_name = "USEC", default_value = "0", value_parser = clap::value_parser!(u64).range(..=1_000_000_000))]
    delay: u64,
    /// Bytes that each vCPU uses
    #[arg(short = 'b', value_name = "SIZE", default_value = "1GiB")]
    bytes: Bytes,
    /// vCPUs
    #[arg(short = 'v', value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=4096))]
    vcpus: u32,
    /// All vCPUs use the same memory
    #[arg(short = 'o')]
    overlap: bool,
    /// Additions and deletions
    #[arg(short = 'i', value_name = "N", default_value = "10")]
    iterations: u64,
    /// Deleting a slot zaps its leaves only on x86, not the root
    #[arg(short = 'q')]
    quirk: bool,
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
        // And the slot above.
        self.mode.memory(Bytes(self.bytes.0.saturating_mul(u64::from(self.vcpus)).saturating_add(1 << 20)))
    }
    fn run<A: Arch>(&self, platform: &Platform<A>) -> Result<SelftestReport, SelftestError> {
        let options = Options {
            delay_us: self.delay,
            bytes_per_vcpu: self.bytes,
            vcpus: self.vcpus as usize,
            regions: if self.overlap { Regions::Overlapping } else { Regions::Partitioned },
            iterations: self.iterations,
            quirk: if self.quirk { SlotQuirk::LeafsOnly } else { SlotQuirk::ZapAll },
        };
        run(platform, &options)
    }
}
