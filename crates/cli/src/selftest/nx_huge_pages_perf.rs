//! Arguments of `nx_huge_pages_perf_test`.

use clap::{Args, ValueEnum};
use mmusim::sim::arch::Arch;
use mmusim::sim::protocols::zap::ZapLock;
use mmusim::sim::selftests::nx_huge_pages_perf::{Options, run};
use mmusim::sim::selftests::{SelftestError, SelftestReport};
use mmusim::{Bytes, PageSize, Platform};

use super::{Common, Test};

/// How recovery holds `mmu_lock`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Debug)]
enum Lock {
    /// Exclusively, as up to Linux 6.17
    Write,
    /// Shared with faults, since Linux 6.18
    Read,
}

/// Arguments with the proposed test's letters, and what its text varied.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Guest memory, half executed in and half written to
    #[arg(short = 'b', value_name = "SIZE", default_value = "16GiB")]
    bytes: Bytes,
    /// Largest page that the guest is backed by
    #[arg(short = 's', value_name = "SIZE", default_value = "1GiB")]
    source: PageSize,
    /// Recovery period in milliseconds
    #[arg(long, value_name = "MS", default_value = "100", value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    period: u64,
    /// One page in so many is recovered each period
    #[arg(long, value_name = "N", default_value = "4")]
    ratio: u32,
    /// How recovery holds mmu_lock
    #[arg(long, value_enum, default_value = "read")]
    lock: Lock,
    #[command(flatten)]
    common: Common,
}

impl Test for Arguments {
    fn common(&self) -> &Common {
        &self.common
    }
    fn memory(&self) -> Bytes {
        self.bytes
    }
    fn run<A: Arch>(&self, platform: &Platform<A>) -> Result<SelftestReport, SelftestError> {
        let lock = if self.lock == Lock::Write { ZapLock::Write } else { ZapLock::Read };
        let (bytes, page, period_ms, ratio) = (self.bytes, self.source, self.period, self.ratio);
        run(platform, &Options { bytes, page, period_ms, ratio, lock })
    }
}
