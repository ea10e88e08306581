//! Machine descriptions: geometry of caches and TLBs, and the cost of events, read from TOML.
//!
//! # Design
//!
//! A sheet is strict: unknown keys, missing costs and impossible shapes are errors with their place in the file and a
//! remedy, all of them at once where the file is well-formed. So a sheet that loads is complete, and nobody meets a
//! default he did not choose. Every figure in the sheets shipped carries its confidence and its source in a comment;
//! guesses are marked.
//!
//! Durations carry their unit in the key (`_ns`, `_cycles`) and become [`Cycles`] of the machine's clock once, here.
//!
//! To add a machine: add `machines/<name>.toml` and its line in the table behind [`Machine::names`].

mod check;
mod cost;
mod error;
mod raw;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use cost::Costs;
pub use error::MachineError;

use crate::addr::{Cycles, PageSize, Share};
use crate::assoc::Shape;
use crate::geometry::Geometry;
use crate::tlb::{ArrayError, CacheSpec, CachesSpec, LatencyCache, TranslationCaches};

/// Architecture of a machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Arch {
    /// Intel and AMD.
    #[serde(rename = "x86_64")]
    X86_64,
    /// Arm, 64-bit.
    #[serde(rename = "aarch64")]
    Aarch64,
    /// POWER with radix tables.
    #[serde(rename = "power")]
    Power,
}

impl Arch {
    /// All of them.
    pub const ALL: [Arch; 3] = [Arch::X86_64, Arch::Aarch64, Arch::Power];
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Arch::X86_64 => "x86_64",
            Arch::Aarch64 => "aarch64",
            Arch::Power => "power",
        })
    }
}

/// Frequency of the core clock, in which all [`Cycles`] of a machine count.
#[derive(Clone, Copy, PartialEq, PartialOrd, Debug, Serialize)]
#[serde(transparent)]
pub struct Clock(f64);

impl Clock {
    /// A clock of so many cycles per nanosecond.
    pub const fn from_ghz(ghz: f64) -> Self {
        Self(ghz)
    }
    /// Cycles per nanosecond.
    pub const fn ghz(self) -> f64 {
        self.0
    }
    /// The nearest number of cycles; negative durations are none.
    pub fn cycles(self, nanoseconds: f64) -> Cycles {
        Cycles((nanoseconds * self.0).round() as u64)
    }
    /// How long so many cycles take.
    pub fn nanoseconds(self, cycles: Cycles) -> f64 {
        cycles.0 as f64 / self.0
    }
}

/// Trees the machine usually runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stages {
    /// Smallest page.
    pub granule: PageSize,
    /// Levels of the first stage.
    pub first_levels: u8,
    /// Levels of the second stage.
    pub second_levels: u8,
    /// Page size with which the hypervisor maps guest memory.
    pub host_page: PageSize,
}

/// The walker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WalkSpec {
    /// Walks that can run at the same time while caches serve them.
    pub walkers: u32,
    /// Walks that can be under way, those that wait for memory among them.
    pub in_flight: u32,
    /// Cycles of a walk besides its references.
    pub fixed: Cycles,
    /// Cycles of each reference besides the latency of whoever serves it: the walker works an address out and asks.
    pub per_reference: Cycles,
}

impl WalkSpec {
    /// Cycles that a walk takes for one reference which its server answers after `latency`. Whoever walks charges [`fixed`](Self::fixed)
    /// once and this for each reference; there is no other rule.
    pub const fn reference(&self, latency: Cycles) -> Cycles {
        Cycles(latency.0 + self.per_reference.0)
    }
}

/// How fast the front end follows jumps: places where it finds the next one, nearest first. Translation is not part of this.
#[derive(Clone, PartialEq, Debug)]
pub struct FetchSpec {
    /// The places.
    pub levels: Vec<FetchLevel>,
    /// Cycles of a jump that is in none of them.
    pub beyond: f64,
}

/// One of those places: a target buffer, or an instruction cache.
#[derive(Clone, PartialEq, Debug)]
pub struct FetchLevel {
    /// Name in the sheet.
    pub name: String,
    /// Jumps that it holds.
    pub shape: Shape,
    /// Cycles from one jump to the next.
    pub cycles: f64,
}

/// How invalidations reach other CPUs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Broadcast {
    /// Software interrupts them.
    Interrupt,
    /// The instruction reaches them (TLBI ..IS, tlbie, INVLPGB).
    Hardware,
}

/// Whether one instruction can invalidate a range.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RangeInvalidation {
    /// It cannot.
    None,
    /// It can (FEAT_TLBIRANGE).
    Instruction,
}

/// Invalidation habits.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct InvalidateSpec {
    /// How other CPUs are reached.
    pub broadcast: Broadcast,
    /// Range instructions.
    pub range: RangeInvalidation,
    /// Software flushes the whole context instead of more pages than this, when other CPUs are concerned.
    pub full_above_pages: u64,
    /// The same for the local CPU only.
    pub full_above_pages_local: u64,
    /// With `k` CPUs broadcasting at once each takes `1 + slope (k - 1)` times as long.
    pub contention_slope: f64,
}

/// Several processors' dies in one machine: a cache line that moves between them takes longer than on one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SocketSpec {
    /// Sockets.
    pub number: u32,
    /// Cores of each; threads are placed on the cores of one socket after the other.
    pub cores: u32,
    /// Moving a line from one socket to another.
    pub line_transfer: Cycles,
    /// How fast a thread runs while another one runs on the same core, of its speed alone; `None`: a core runs one thread.
    pub shared_core_speed: Option<Share>,
}

impl SocketSpec {
    /// The socket on which the thread of this number runs.
    pub const fn of(&self, thread: usize) -> u32 {
        thread as u32 / self.cores % self.number
    }

    /// Cores of all sockets.
    pub const fn all_cores(&self) -> usize {
        self.number as usize * self.cores as usize
    }

    /// The thread that runs on the same core as this one: cores get a second thread when each has one.
    pub const fn sibling(&self, thread: usize) -> Option<usize> {
        let cores = self.all_cores();
        match (self.shared_core_speed, thread / cores) {
            (None, _) | (_, 2..) => None,
            (Some(_), 0) => Some(thread + cores),
            (Some(_), _) => Some(thread - cores),
        }
    }
}

/// A described machine.
///
/// ```
/// use mmu_core::machine::{Arch, Machine};
/// let host = Machine::builtin("intel-granite-rapids-host").unwrap();
/// assert_eq!((host.arch, host.translation.tlb.l2[0].shape.entries()), (Arch::X86_64, 2048));
/// let errors = Machine::from_toml("name = 'x'\narch = 'vax'").unwrap_err();
/// assert!(!errors[0].help.is_empty());
/// ```
#[derive(Clone, PartialEq, Debug)]
pub struct Machine {
    /// Name, as in the list of built-in machines.
    pub name: String,
    /// Architecture.
    pub arch: Arch,
    /// Core design.
    pub core: String,
    /// Core clock.
    pub clock: Clock,
    /// Translation trees.
    pub stages: Stages,
    /// Data caches and memory.
    pub caches: CacheSpec,
    /// TLBs, paging-structure caches and nested TLB.
    pub translation: CachesSpec,
    /// The walker.
    pub walk: WalkSpec,
    /// Invalidation.
    pub invalidate: InvalidateSpec,
    /// Costs of events.
    pub costs: Costs,
    /// How fast jumps are followed, where it is described.
    pub fetch: Option<FetchSpec>,
    /// Sockets, where there are several.
    pub sockets: Option<SocketSpec>,
    /// Measured costs of software paths by name, in nanoseconds; whoever predicts such paths knows the names.
    pub software_ns: BTreeMap<String, f64>,
}

macro_rules! sheet {
    ($name:literal) => {
        ($name, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../machines/", $name, ".toml")))
    };
}

/// Built-in sheets, in alphabetical order.
const SHEETS: &[(&str, &str)] = &[
    sheet!("amd-zen2"),
    sheet!("amd-zen3"),
    sheet!("amd-zen4"),
    sheet!("ampere-emag"),
    sheet!("arm-cortex-a72"),
    sheet!("arm-neoverse-n1"),
    sheet!("arm-neoverse-v1"),
    sheet!("arm-neoverse-v2"),
    sheet!("huawei-kunpeng-920"),
    sheet!("ibm-power10"),
    sheet!("ibm-power9"),
    sheet!("intel-granite-rapids-host"),
    sheet!("intel-ice-lake-sp"),
    sheet!("intel-sapphire-rapids"),
    sheet!("intel-skylake-sp"),
];

impl Machine {
    /// Reads a description.
    ///
    /// # Errors
    /// All defects when the file has the right form, else the first place where it has not.
    pub fn from_toml(source: &str) -> Result<Self, Vec<MachineError>> {
        let raw: raw::RawMachine = toml::from_str(source).map_err(|error| {
            vec![MachineError {
                span: error.span().unwrap_or(0..0),
                message: error.message().to_owned(),
                help: "the sheets under machines/ show every key".to_owned(),
            }]
        })?;
        check::machine(&raw)
    }

    /// Names of the built-in machines.
    pub fn names() -> impl Iterator<Item = &'static str> {
        SHEETS.iter().map(|(name, _)| *name)
    }

    /// The text of a built-in sheet, comments and all.
    pub fn sheet(name: &str) -> Option<&'static str> {
        SHEETS.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
    }

    /// A built-in machine.
    ///
    /// # Errors
    /// When there is none of this name; the help lists the names.
    pub fn builtin(name: &str) -> Result<Self, Vec<MachineError>> {
        match Self::sheet(name) {
            Some(text) => Self::from_toml(text),
            None => Err(vec![unknown(name)]),
        }
    }

    /// Empty translation caches for trees of these two shapes.
    ///
    /// # Errors
    /// Only for descriptions changed by hand into something impossible.
    pub fn translation_caches(
        &self,
        first: &Geometry,
        second: &Geometry,
        seed: u64,
    ) -> Result<TranslationCaches, ArrayError> {
        TranslationCaches::new(&self.translation, first, second, seed)
    }

    /// Empty data caches of one core.
    pub fn latency_cache(&self, seed: u64) -> LatencyCache {
        LatencyCache::new(&self.caches, seed)
    }
}

fn unknown(name: &str) -> MachineError {
    let names: Vec<&str> = Machine::names().collect();
    let help = match error::nearest(name, Machine::names()) {
        Some(near) => format!("did you mean `{near}`? known are {}", names.join(", ")),
        None => format!("known are {}", names.join(", ")),
    };
    MachineError { span: 0..0, message: format!("no built-in machine `{name}`"), help }
}
