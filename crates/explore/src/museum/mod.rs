//! The bug museum: defects of the past as scenarios, each with the defect on and off.
//!
//! A row is a scenario and a policy value. With the defect on, exploration must report the invariant that the row names; with it off the
//! same scenario must break nothing. The rows stand in `scenarios`, a file for each topic; [`tour()`] runs them.

mod formats;
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
    build: fn(Variant) -> Box<dyn Explorable>,
}

impl Exhibit {
    /// The scenario. It declares the invariants that the row names: an exploration that never evaluates them proves nothing.
    pub fn scenario(&self, variant: Variant) -> Box<dyn Explorable> {
        let mut scenario = (self.build)(variant);
        scenario.declare(self.breaks);
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
