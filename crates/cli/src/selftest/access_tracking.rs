//! Arguments of `access_tracking_perf_test`.

use std::str::FromStr;

use clap::{Args, ValueEnum};
use mmusim::sim::arch::Arch;
use mmusim::sim::selftests::access_tracking_perf::{Aging, Options, Overlap, Tracking, When, run, sweep};
use mmusim::sim::selftests::{SelftestError, SelftestReport};
use mmusim::{Bytes, PageSize, Platform};

use super::vm_options::GuestMode;
use super::{Common, Test};

/// How the hypervisor ages.
#[derive(ValueEnum, Clone, Copy, Debug)]
enum AgingName {
    /// Under `mmu_lock` (Linux up to 6.14; Arm and POWER)
    Locked,
    /// Inside RCU sections (x86 since 6.15)
    Lockless,
}

/// Numbers of vCPUs: one, or a range whose bounds are doubled into each other.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Vcpus(Vec<usize>);

impl FromStr for Vcpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| match text.parse::<usize>() {
            Ok(n @ 1..=4096) => Ok(n),
            _ => Err(format!("{text:?} is no number of vCPUs: give 1 to 4096, or a range like 1..64")),
        };
        let Some((first, last)) = text.split_once("..") else { return Ok(Vcpus(vec![number(text)?])) };
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(format!("{text:?} is empty: give the smaller number first"));
        }
        let doubled = std::iter::successors(Some(first), |n| n.checked_mul(2)).take_while(|&n| n < last);
        Ok(Vcpus(doubled.chain([last]).collect()))
    }
}

/// Arguments with the kernel test's letters, and those proposed with lockless aging.
#[derive(Args, Debug)]
pub struct Arguments {
    /// vCPUs; a range A..B runs the test for A, 2A, 4A, ... B, locked and lockless, and compares
    #[arg(short = 'v', value_name = "N|A..B", default_value = "1")]
    vcpus: Vcpus,
    /// Bytes that each vCPU touches; many times what TLBs hold, or pages look idle that are not
    #[arg(short = 'b', value_name = "SIZE", default_value = "1GiB")]
    bytes: Bytes,
    /// Size of the pages that back the guest [default: the machine's smallest]
    #[arg(short = 's', value_name = "SIZE")]
    source: Option<PageSize>,
    /// Overlap the vCPUs' regions
    #[arg(short = 'o')]
    overlap: bool,
    /// Mark pages idle by passes of the multi-generational LRU, instead of by the idle page bitmap
    #[arg(short = 'l')]
    lru_gen: bool,
    /// Age while vCPUs populate their regions (needs -l)
    #[arg(short = 'p')]
    parallel: bool,
    /// How pages are aged; a range of vCPUs runs both
    #[arg(long, value_enum, default_value = "lockless")]
    aging: AgingName,
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
        let most = self.vcpus.0.iter().copied().max().unwrap_or(1);
        self.mode.memory(Bytes(self.bytes.0.saturating_mul(most as u64)))
    }
    fn run<A: Arch>(&self, platform: &Platform<A>) -> Result<SelftestReport, SelftestError> {
        let options = Options {
            vcpus: self.vcpus.0[0],
            bytes_per_vcpu: self.bytes,
            page: self.source,
            overlap: if self.overlap { Overlap::Overlapping } else { Overlap::Apart },
            tracking: if self.lru_gen { Tracking::LruGen } else { Tracking::IdleBitmap },
            when: if self.parallel { When::WhileFaulting } else { When::BetweenPhases },
            aging: match self.aging {
                AgingName::Locked => Aging::Locked,
                AgingName::Lockless => Aging::Lockless,
            },
        };
        match self.vcpus.0.as_slice() {
            [_] => run(platform, &options),
            many => sweep(platform, &options, many).map(|(report, _)| report),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_double() {
        let parse = |text: &str| text.parse::<Vcpus>().map(|vcpus| vcpus.0);
        assert_eq!(parse("8"), Ok(vec![8]));
        assert_eq!(parse("1..64"), Ok(vec![1, 2, 4, 8, 16, 32, 64]));
        assert_eq!(parse("3..8"), Ok(vec![3, 6, 8]));
        assert_eq!(parse("5..5"), Ok(vec![5]));
        assert!(parse("8..1").unwrap_err().contains("smaller"));
        assert!(parse("0").unwrap_err().contains("1..64"));
    }
}
