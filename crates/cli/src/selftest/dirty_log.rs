//! Arguments of `dirty_log_test`.

use clap::{Args, ValueEnum};
use mmusim::sim::arch::Arch;
use mmusim::sim::selftests::dirty_log::{LogMode, Options, run};
use mmusim::sim::selftests::{SelftestError, SelftestReport};
use mmusim::{Bytes, PageSize, Platform};

use super::vm_options::GuestMode;
use super::{Common, Test};

/// How the log is kept and read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum ModeName {
    /// Reading the bitmap makes pages clean.
    DirtyLog,
    /// A call of its own makes pages clean.
    ClearLog,
    /// Pages go through a ring.
    DirtyRing,
}

/// Arguments with the kernel test's letters.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Entries of the dirty ring
    #[arg(short = 'c', value_name = "N", default_value = "65536")]
    ring_size: u64,
    /// How often the log is read
    #[arg(short = 'i', value_name = "N", default_value = "32", value_parser = clap::value_parser!(u64).range(1..))]
    iterations: u64,
    /// Milliseconds between two times
    #[arg(short = 'I', value_name = "MS", default_value = "10", value_parser = clap::value_parser!(u64).range(1..))]
    interval: u64,
    /// How the log is kept and read
    #[arg(short = 'M', value_enum, value_name = "MODE", default_value = "dirty-log")]
    mode: ModeName,
    /// Guest-physical offset of the memory
    #[arg(short = 'p', value_name = "SIZE", default_value = "0")]
    offset: Bytes,
    /// Guest memory
    #[arg(short = 'b', value_name = "SIZE", default_value = "1GiB")]
    bytes: Bytes,
    /// Size of the pages that back the guest [default: the machine's smallest]
    #[arg(short = 's', value_name = "SIZE")]
    source: Option<PageSize>,
    #[command(flatten)]
    guest: GuestMode,
    #[command(flatten)]
    common: Common,
}

impl Test for Arguments {
    fn common(&self) -> &Common {
        &self.common
    }
    fn memory(&self) -> Bytes {
        self.guest.memory(Bytes(self.offset.0.saturating_add(self.bytes.0)))
    }
    fn run<A: Arch>(&self, platform: &Platform<A>) -> Result<SelftestReport, SelftestError> {
        let mode = match self.mode {
            ModeName::DirtyLog => LogMode::DirtyLog,
            ModeName::ClearLog => LogMode::ClearLog,
            ModeName::DirtyRing => LogMode::DirtyRing,
        };
        let Self { ring_size, iterations, interval, offset, .. } = *self;
        run(platform, &Options { ring_size, iterations, interval, mode, offset, memory: self.bytes, page: self.source })
    }
}
