//! The invariants by name: what explorations are held to.

use std::fmt;

macro_rules! invariants {
    ($($id:ident $text:literal $past:literal;)*) => {
        /// An invariant. The letters group them: translation safety (T), accessed and dirty state (D), progress (P), reclamation (R),
        /// accounting and economy (N), what architectures ask for (B), ordering (O).
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize)]
        pub enum Invariant {
            $(#[doc = concat!($text, " Broken in history by ", $past, ".")] $id,)*
        }

        impl Invariant {
            /// All of them.
            pub const ALL: &'static [Invariant] = &[$(Invariant::$id),*];

            /// Its name, as in `T1`.
            pub const fn id(self) -> &'static str {
                match self { $(Invariant::$id => stringify!($id),)* }
            }
            /// What it says.
            pub const fn says(self) -> &'static str {
                match self { $(Invariant::$id => $text,)* }
            }
            /// Defects of the museum that broke it.
            pub const fn broken_by(self) -> &'static str {
                match self { $(Invariant::$id => $past,)* }
            }
        }
    };
}

invariants! {
    T1 "No access reaches a page that its owner has taken back." "X05 X06 X08 X11 A19 A20 P04 G04 G09";
    T2 "A permission that was taken away is not used any more once that has been announced." "X26 X28 X41 A19 A28";
    T3 "Translations come from entries that really stood in the tables since the last invalidation." "walker and TLB defects";
    T4 "Whoever gives mmu_lock back has flushed what he zapped, or handed the debt on." "X05 X07 X08 X20 X38";
    T5 "Nobody translates or walks through a table that was freed." "X20 A15 A26 P08 P10";
    T6 "A flush that was acknowledged covers accesses in flight." "X26";
    T7 "One translation size per address and processor." "A02 A27 P05";
    T8 "A leaf maps the page that the memslot and the primary MMU have there." "X36 A16 A03 A04 A05 G06 P03";
    T9 "A translation is used under the tag that it was made under." "A20 P06 P07";
    D1 "No accessed or dirty flag that hardware set is lost." "X26 X46 P02 A06";
    D2 "Hardware changes no entry that is not what it walked." "litmus tests";
    D3 "A store is in the dirty log of its time or in a later one." "A19 A28 G12 P12 P02";
    D4 "A page that was reported clean again cannot be written without being noticed." "A19 X28";
    D5 "Old means not accessed, but for accesses through a cached young translation." "P11 A06 X46";
    D6 "A compare-and-swap that failed has no effect." "X42 X43";
    P1 "A walk that yields goes on behind where it was." "X01 X04 A03 A16";
    P2 "A fault that no invalidation concerns gets through." "G01 G08 X25 X33 A17 P03";
    P3 "Work between two opportunities to reschedule is bounded." "X02 X16 X17 X32 A08";
    P4 "Nobody waits for ever." "G03 X34";
    P5 "Who must not block does not." "G11";
    P6 "Waiting for a lock is bounded by what others do with it." "X21 X31 X45 A29";
    R1 "A table is freed after it was unlinked, flushed and left by walkers." "X20 A15 A26 P08 P10";
    R2 "What is released was held, once." "X19 A14 G05 G07";
    R3 "Nothing is left over." "A13 A24 X09 X23 A30";
    R4 "A table that was given up accepts no entries." "X12 X13 X23";
    R5 "A root that is given up is not installed into." "X14 X15 X23 X24 X39 X40 X19";
    R6 "A table's count is its entries and its holders." "A01 A14 A25";
    R7 "Invalidations are counted in and out in pairs." "G02 G03";
    N1 "Statistics of pages are what the tables hold." "X12 X36";
    N2 "Bitmaps and rings hold what was written." "G12 T01";
    N3 "No needless work: flushes without a debt, atomics for nobody, work done twice." "X03 X18 X22 X27 X35 X37 X44 A10 A11 A21 A22";
    B1 "A live entry is replaced by way of an invalid one where the architecture asks for it." "A02 A27";
    B2 "An invalidation is complete before what depends on it." "A20";
    B3 "An invalidation covers what it was asked for." "A17 A18 A19 P05 P06 P07";
    B4 "A table is complete before it is linked." "X47 X30 P09";
    B5 "Every word written is legal." "A05 X10";
    B6 "No two live roots share a tag." "A20";
    B7 "Memory is cleaned before a guest without caches sees it." "A09 A11 A12";
    O1 "A fault installs only what no invalidation has made stale." "G04 G10 G13 G14 P01 X25";
    O2 "A cached page outside the tables is valid only while no invalidation concerns it." "G04 G05 G09 G10";
    O3 "Plain stores to live entries are made by who is alone." "X13 X29 A07 X26";
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

impl std::str::FromStr for Invariant {
    type Err = UnknownInvariant;

    fn from_str(text: &str) -> Result<Self, UnknownInvariant> {
        Self::ALL.iter().find(|known| known.id() == text).copied().ok_or_else(|| UnknownInvariant(text.to_owned()))
    }
}

/// No invariant has this name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnknownInvariant(pub String);

impl fmt::Display for UnknownInvariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no invariant is named {:?}; they are T1 to T9, D1 to D6, P1 to P6, R1 to R7, N1 to N3, B1 to B7, O1 to O3",
            self.0
        )
    }
}
impl std::error::Error for UnknownInvariant {}

/// How often each invariant was looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Evaluations {
    counts: [u64; Invariant::ALL.len()],
    mutated: u64,
    mattering: u64,
}

impl Default for Evaluations {
    fn default() -> Self {
        Self { counts: [0; Invariant::ALL.len()], mutated: 0, mattering: 0 }
    }
}

impl Evaluations {
    pub(crate) fn count(&mut self, invariant: Invariant) {
        self.counts[invariant as usize] += 1;
    }
    pub(crate) fn merge(&mut self, other: &Evaluations) {
        for (mine, theirs) in self.counts.iter_mut().zip(other.counts) {
            *mine += theirs;
        }
        self.mutated += other.mutated;
        self.mattering += other.mattering;
    }
    pub(crate) fn count_mutated(&mut self) {
        self.mutated += 1;
    }
    /// How many steps went wrong because of a [`Mutation`](super::Mutation).
    pub fn mutated(&self) -> u64 {
        self.mutated
    }
    pub(crate) fn count_mattering(&mut self) {
        self.mattering += 1;
    }
    /// How often that could have been told: somebody else was there to be disturbed by the wrong step. How it is told apart from a harmless one
    /// depends on the mutation; for accesses that are ordered wrongly executions are counted, not steps.
    pub fn mattering(&self) -> u64 {
        self.mattering
    }
    /// How often an invariant was evaluated: one that never was proves nothing.
    pub fn of(&self, invariant: Invariant) -> u64 {
        self.counts[invariant as usize]
    }
    /// Those that were evaluated at all, with how often.
    pub fn evaluated(&self) -> impl Iterator<Item = (Invariant, u64)> + '_ {
        Invariant::ALL.iter().map(|&invariant| (invariant, self.of(invariant))).filter(|&(_, times)| times > 0)
    }
}

/// An invariant that was broken, where and by whom.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Broken {
    /// Which.
    pub invariant: Invariant,
    /// Who made the step.
    pub agent: super::Agent,
    /// The step's number in the execution.
    pub step: u64,
    /// What happened, with addresses.
    pub what: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: step {}: {}", self.invariant, self.step, self.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_forty_one_and_each_is_found_by_its_name() {
        assert_eq!(Invariant::ALL.len(), 41);
        assert!(Invariant::ALL.iter().all(|known| known.id().parse() == Ok(*known)));
        assert!("T10".parse::<Invariant>().is_err());
    }
}
