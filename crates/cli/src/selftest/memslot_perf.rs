//! Arguments of `memslot_perf_test`.

use clap::Args;
use mmusim::sim::arch::Arch;
use mmusim::sim::selftests::memslot_perf::{Checks, GUEST_BYTES, MOST_SLOTS, Options, SlotQuirk, run};
use mmusim::sim::selftests::{SelftestError, SelftestReport};
use mmusim::{Bytes, Platform};

use super::{Common, Test};

/// Arguments with the kernel test's letters.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Memslots at most; -1 for as many as there may be
    #[arg(short = 's', value_name = "N", default_value = "-1", allow_negative_numbers = true,
        value_parser = clap::value_parser!(i64).range(-1..=i64::from(MOST_SLOTS)))]
    slots: i64,
    /// First sub-test: 0 map, 1 unmap, 2 unmap chunked, 3 move active area, 4 move inactive area, 5 RW
    #[arg(short = 'f', value_name = "N", default_value = "0", value_parser = clap::value_parser!(u8).range(0..=5))]
    first: u8,
    /// Last sub-test
    #[arg(short = 'e', value_name = "N", default_value = "5", value_parser = clap::value_parser!(u8).range(0..=5))]
    last: u8,
    /// Simulated seconds for each sub-test, fractions too
    #[arg(short = 'l', value_name = "SECONDS", default_value = "5")]
    seconds: f64,
    /// Runs of each sub-test; the best one counts
    #[arg(short = 'r', value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Look at every page that the guest wrote, not only at the first and the last
    #[arg(short = 'd')]
    debug: bool,
    /// Moving a slot zaps its leaves only on x86, not the root
    #[arg(short = 'q')]
    quirk: bool,
    #[command(flatten)]
    common: Common,
}

impl Test for Arguments {
    fn common(&self) -> &Common {
        &self.common
    }
    fn memory(&self) -> Bytes {
        Bytes(GUEST_BYTES)
    }
    fn run<A: Arch>(&self, platform: &Platform<A>) -> Result<SelftestReport, SelftestError> {
        let options = Options {
            slots: u16::try_from(self.slots).ok(),
            first: usize::from(self.first),
            last: usize::from(self.last),
            seconds: self.seconds,
            runs: self.runs,
            checks: if self.debug { Checks::EveryPage } else { Checks::Ends },
            quirk: if self.quirk { SlotQuirk::LeafsOnly } else { SlotQuirk::ZapAll },
        };
        run(platform, &options)
    }
}
