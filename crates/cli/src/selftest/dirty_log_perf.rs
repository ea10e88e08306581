//! Arguments of `dirty_log_perf_test`.

use clap::{Args, ValueEnum};
use mmusim::sim::arch::Arch;
use mmusim::sim::protocols::dirty_log::{Manual, SplitWhen, Tracking};
use mmusim::sim::protocols::split::SplitPolicy;
use mmusim::sim::selftests::dirty_log_perf::{Disabling, Guest, Options, Order, Pace, Regions, run};
use mmusim::sim::selftests::{SelftestError, SelftestReport};
use mmusim::{Bytes, PageSize, Platform};

use super::vm_options::{GuestMode, Pinning};
use super::{Common, Test};

/// How writes are noticed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum TrackingName {
    /// The first write to a page faults.
    WriteProtect,
    /// The processor logs pages that it makes dirty (x86).
    Pml,
    /// Reading the log looks at every entry's dirty flag.
    Scan,
}

impl TrackingName {
    fn value(self) -> Tracking {
        match self {
            TrackingName::WriteProtect => Tracking::WriteProtect,
            TrackingName::Pml => Tracking::ModificationLog,
            TrackingName::Scan => Tracking::Scan,
        }
    }
}

/// When large pages are split.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum SplitName {
    /// By the first write to each.
    Lazy,
    /// Before.
    Eager,
}

/// Arguments with the kernel test's letters.
#[derive(Args, Debug)]
pub struct Arguments {
    /// vCPUs
    #[arg(short = 'v', value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=4096))]
    vcpus: u32,
    /// Bytes of each vCPU
    #[arg(short = 'b', value_name = "SIZE", default_value = "1GiB")]
    bytes: Bytes,
    /// Iterations of writing and reading the log
    #[arg(short = 'i', value_name = "N", default_value = "2", value_parser = clap::value_parser!(u64).range(1..))]
    iterations: u64,
    /// Size of the pages that back the guest [default: the machine's smallest]
    #[arg(short = 's', value_name = "SIZE")]
    source: Option<PageSize>,
    /// Pages among a hundred that are written in an iteration
    #[arg(short = 'w', value_name = "PERCENT", default_value = "100", value_parser = clap::value_parser!(u32).range(0..=100))]
    write_percent: u32,
    /// Go over pages at random
    #[arg(short = 'a')]
    random: bool,
    /// All vCPUs go over the same memory
    #[arg(short = 'o')]
    overlap: bool,
    /// vCPUs go on writing while logging is disabled
    #[arg(short = 'e')]
    run_while_disabling: bool,
    /// Reading the log makes pages clean (no `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`)
    #[arg(short = 'g')]
    no_manual: bool,
    /// Seed of what is random
    #[arg(short = 'r', value_name = "SEED", default_value = "1")]
    seed: u64,
    /// How much is cleared by one call [default: everything]
    #[arg(short = 'k', value_name = "SIZE")]
    chunk: Option<Bytes>,
    /// Milliseconds between two calls that clear
    #[arg(short = 'l', value_name = "MS", default_value = "0")]
    clear_wait: u64,
    /// vCPUs go on writing whatever iteration the log is in
    #[arg(short = 'j')]
    independent: bool,
    /// vCPUs run a nested guest (x86)
    #[arg(short = 'n')]
    nested: bool,
    /// Guest-physical offset of the memory
    #[arg(short = 'p', value_name = "SIZE", default_value = "0")]
    offset: Bytes,
    /// Memslots of equal size that hold the memory
    #[arg(short = 'x', value_name = "N", default_value = "1", value_parser = clap::value_parser!(u64).range(1..=32767))]
    slots: u64,
    #[command(flatten)]
    pinning: Pinning,
    #[command(flatten)]
    mode: GuestMode,
    /// Entries of a ring for each vCPU, instead of a bitmap
    #[arg(long, value_name = "N")]
    ring: Option<u64>,
    /// How writes are noticed [default: as Linux 6.6 does on the architecture]
    #[arg(long, value_enum)]
    tracking: Option<TrackingName>,
    /// When large pages are split [default: as Linux 6.6 does on the architecture]
    #[arg(long, value_enum)]
    split: Option<SplitName>,
    #[command(flatten)]
    common: Common,
}

impl Arguments {
    fn options(&self, arch: &str) -> Options {
        let eagerly = if arch == "x86" { SplitPolicy::X86_5_18 } else { SplitPolicy::ARM64_6_5 };
        Options {
            vcpus: self.vcpus as usize,
            bytes_per_vcpu: self.bytes,
            iterations: self.iterations,
            page: self.source,
            write_percent: self.write_percent,
            order: if self.random { Order::Random } else { Order::Sequential },
            regions: if self.overlap { Regions::Overlapping } else { Regions::Partitioned },
            disabling: if self.run_while_disabling { Disabling::Running } else { Disabling::Idle },
            seed: self.seed,
            manual: if self.no_manual { Manual::Off } else { Manual::On },
            clear_chunk: self.chunk,
            clear_wait: self.clear_wait,
            pace: if self.independent { Pace::Independent } else { Pace::Iterations },
            guest: if self.nested { Guest::Nested } else { Guest::Direct },
            offset: self.offset,
            slots: self.slots,
            ring: self.ring,
            tracking: self.tracking.map(TrackingName::value),
            split: self.split.map(|split| match split {
                SplitName::Lazy => SplitWhen::Lazily,
                SplitName::Eager => SplitWhen::Eagerly(eagerly),
            }),
            ..Options::default()
        }
    }
}

impl Test for Arguments {
    fn common(&self) -> &Common {
        &self.common
    }
    fn memory(&self) -> Bytes {
        self.mode.memory(self.options("").memory())
    }
    fn run<A: Arch>(&self, platform: &Platform<A>) -> Result<SelftestReport, SelftestError> {
        self.pinning.check(self.vcpus)?;
        run(platform, &self.options(platform.arch.name()))
    }
}
