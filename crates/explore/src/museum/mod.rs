//! The bug museum: defects of the past as scenarios, each with the defect on and off.
//!
//! A row is a scenario and a policy value. With the defect on, exploration must report the invariant that the row names; with it off the
//! same scenario must break nothing. The rows stand in `scenarios`, a file for each topic; [`tour()`] runs them.

pub(crate) mod formats;
mod mutants;
mod scenarios;
mod tour;

use mmu_sim::explore::{Explorable, Invariant};

pub use mutants::{Mutant, mutants, survivors};
pub use tour::{Entry, Plan, Row, Times, markdown, tour};

/// Whether a scenario has its defect.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Variant {
    /// With the defect.
    Broken,
    /// As it was fixed.
    Fixed,
}

/// A word that is no variant's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnknownVariant {
    /// What stands there.
    pub name: String,
}

impl std::fmt::Display for UnknownVariant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "bug {:?}; it is {} or {}", self.name, Variant::Broken.name(), Variant::Fixed.name())
    }
}
impl std::error::Error for UnknownVariant {}

impl std::str::FromStr for Variant {
    type Err = UnknownVariant;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let found = [Variant::Broken, Variant::Fixed].into_iter().find(|variant| variant.name() == name);
        found.ok_or_else(|| UnknownVariant { name: name.to_owned() })
    }
}

impl Variant {
    /// `on` or `off`, as files say it.
    pub const fn name(self) -> &'static str {
        match self {
            Variant::Broken => "on",
            Variant::Fixed => "off",
        }
    }

    /// One of two values.
    fn choose<T>(self, broken: T, fixed: T) -> T {
        match self {
            Variant::Broken => broken,
            Variant::Fixed => fixed,
        }
    }
}

/// An architecture that scenarios run on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Architecture {
    /// x86: EPT with accessed and dirty flags.
    X86,
    /// Arm: stage 2 with 4K pages.
    Arm64,
    /// POWER: a radix tree with 4K pages.
    Power,
}

impl Architecture {
    /// All of them.
    pub const ALL: [Architecture; 3] = [Architecture::X86, Architecture::Arm64, Architecture::Power];

    /// As the command line and [`Exhibit::arch`] name it.
    pub const fn name(self) -> &'static str {
        match self {
            Architecture::X86 => "x86",
            Architecture::Arm64 => "arm64",
            Architecture::Power => "power",
        }
    }
}

/// A name that is no architecture's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnknownArchitecture {
    /// What was asked for.
    pub name: String,
}

impl std::fmt::Display for UnknownArchitecture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [x86, arm64, power] = Architecture::ALL.map(Architecture::name);
        write!(f, "{:?} is no architecture; use {x86}, {arm64} or {power}", self.name)
    }
}
impl std::error::Error for UnknownArchitecture {}

impl std::str::FromStr for Architecture {
    type Err = UnknownArchitecture;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let found = Architecture::ALL.into_iter().find(|arch| arch.name() == name);
        found.ok_or_else(|| UnknownArchitecture { name: name.to_owned() })
    }
}

impl std::fmt::Display for Architecture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// How a scenario is made.
#[derive(Clone, Copy, Debug)]
enum Make {
    /// It is about something that its architecture alone has.
    Own(fn(Variant) -> Box<dyn Explorable>),
    /// Its protocol is the same on these.
    On(&'static [Architecture], fn(Architecture, Variant) -> Box<dyn Explorable>),
}

/// A row of the museum.
#[derive(Clone, Copy, Debug)]
pub struct Exhibit {
    /// Its number in the museum, as in `X05`.
    pub id: &'static str,
    /// The defect, in a few words.
    pub title: &'static str,
    /// Invariants that it may be reported as.
    pub breaks: &'static [Invariant],
    /// The architecture that it belongs to.
    pub arch: &'static str,
    build: Make,
}

impl Exhibit {
    /// The scenario, on the architecture that it belongs to. It declares the invariants that the row names: an exploration that never evaluates
    /// them proves nothing.
    pub fn scenario(&self, variant: Variant) -> Box<dyn Explorable> {
        self.finished(match self.build {
            Make::Own(build) => build(variant),
            Make::On(_, build) => build(self.arch.parse().unwrap_or(Architecture::X86), variant),
        })
    }

    /// The scenario on another architecture; `None` where it would mean nothing, because the defect is in what one architecture alone has.
    pub fn scenario_on(&self, arch: Architecture, variant: Variant) -> Option<Box<dyn Explorable>> {
        match self.build {
            _ if arch.name() == self.arch => Some(self.scenario(variant)),
            Make::On(known, build) if known.contains(&arch) => Some(self.finished(build(arch, variant))),
            Make::Own(_) | Make::On(..) => None,
        }
    }

    /// The architectures that it runs on.
    pub fn architectures(&self) -> Vec<Architecture> {
        let runs = |arch: Architecture| match self.build {
            Make::On(known, _) => known.contains(&arch),
            Make::Own(_) => arch.name() == self.arch,
        };
        Architecture::ALL.into_iter().filter(|&arch| runs(arch)).collect()
    }

    fn finished(&self, mut scenario: Box<dyn Explorable>) -> Box<dyn Explorable> {
        scenario.declare(self.breaks);
        if let Some(topic) = scenarios::topic_of(self.id) {
            scenario.limits_mut().sharing = topic.sharing;
        }
        scenario
    }
}

/// A row that no scenario can show.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unshown {
    /// Its number in the museum.
    pub id: &'static str,
    /// The defect, in a few words.
    pub title: &'static str,
    /// Why there is no scenario.
    pub why: &'static str,
}

/// Rows without a scenario.
pub const UNSHOWN: &[Unshown] = &[
    Unshown {
        id: "A25",
        title: "a root of several pages is allocated as one compound page and counted page by page",
        why: "it is a contract between the hypervisor and the host's page allocator; here a root is one frame, whatever its size",
    },
    Unshown {
        id: "T01",
        title: "a test warned when fewer than a tenth of the pages were still idle, instead of more",
        why: "a comparison in a test's report, behind everything that an order of steps could change",
    },
    Unshown {
        id: "T02",
        title: "the first report of a benchmark omitted one flag and one line of its set-up",
        why: "an omission in a message: there is no program to run",
    },
];

/// All rows, by number.
pub fn exhibits() -> Vec<Exhibit> {
    let mut all = scenarios::all();
    all.sort_by_key(|exhibit| exhibit.id);
    all
}

/// The row of a number.
pub fn exhibit(id: &str) -> Option<Exhibit> {
    exhibits().into_iter().find(|exhibit| exhibit.id.eq_ignore_ascii_case(id))
}
