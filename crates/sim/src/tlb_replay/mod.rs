//! A trace through TLBs and paging-structure caches alone: no machine, no time, only counts.
//!
//! What it counts, other simulators count too, and independent ones agree on: DynamoRIO's `drcachesim`, ChampSim's TLBs and
//! page-table walker, and plain reference models give exactly these hits, misses and reads for the same trace. So this is
//! where the TLBs that vCPUs have ([`mmu_core::tlb`]) are held against the rest of the world, and where a geometry can be
//! tried without a machine's sheet.
//!
//! # Definitions
//!
//! Each of these changes counts. Defaults are what the named simulators do.
//!
//! - A look-up is by page number; the set is the page number modulo the number of sets. There is one address space.
//! - A first-level miss looks up the second level. A second-level miss walks, and fills the second level, then the first. A
//!   second-level hit fills the first. What leaves one level leaves the other alone ([`Inclusion`] has other disciplines).
//! - LRU is true LRU, updated by hits and fills; a first-level hit leaves the second level's order alone. FIFO ignores hits.
//!   Empty ways fill first.
//! - A modify is two references, a load, then a store. Without [`Crossing::Split`] a reference is one look-up, for the page
//!   of its first byte.
//! - Fetches are left out, or have a first level of their own with the shape of the data's; the second level is shared.
//! - A walk looks up the paging-structure cache of every level, and each that hits notes the use; it starts below the deepest
//!   hit, and what it reads is filled in. ChampSim's walker reads the entry that hit once more: [`Walker::ReadsHitAgain`].

mod shapes;

use std::fmt;

use mmu_core::assoc::Shape;
use mmu_core::tlb::{
    ArrayError, ArraySpec, Inclusion, Input, LargerPages, Lookup, Port, PscLevelSpec, PscSet, PscSpec, Tag, TagRules,
    Tlb, TlbEntry, TlbSpec,
};
use mmu_core::walk::CachedTable;
use mmu_core::{Cycles, Geometry, Gva, Hpa, Level, PageSize, Perms, Table};
use mmu_trace::{Access, AccessKind};

use crate::rng::Seed;

pub use shapes::{FirstNumber, ShapeTextError, shape_from_text, shape_to_text};

/// What becomes of a reference that touches several pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Crossing {
    /// One look-up, for the page of its first byte.
    #[default]
    FirstByte,
    /// One look-up for each page, from the lowest.
    Split,
}

/// What becomes of instruction fetches.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Fetches {
    /// They are left out.
    #[default]
    LeftOut,
    /// They ask a first level of their own, of the shape of the data's, and share the second.
    Replayed,
}

/// Levels of the page tables that walks read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TreeLevels {
    /// Four: 48 bits of address.
    #[default]
    Four,
    /// Five: 57 bits.
    Five,
}

impl TreeLevels {
    const fn count(self) -> usize {
        match self {
            TreeLevels::Four => 4,
            TreeLevels::Five => 5,
        }
    }
}

/// What a hit in a paging-structure cache spares a walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Walker {
    /// The entry that hit and all above it, as Intel SDM vol. 3, 4.10.3 has it.
    #[default]
    Architectural,
    /// All above the entry that hit, which is read again (ChampSim's `PageTableWalker`).
    ReadsHitAgain,
}

/// What to replay a trace through.
#[derive(Clone, PartialEq, Debug)]
pub struct TlbReplaySpec {
    /// First level.
    pub l1: Shape,
    /// Second level.
    pub l2: Option<Shape>,
    /// How the levels relate.
    pub inclusion: Inclusion,
    /// Size of all pages.
    pub page: PageSize,
    /// References that touch several pages.
    pub crossing: Crossing,
    /// Instruction fetches.
    pub fetches: Fetches,
    /// Paging-structure caches, that of the entries next above 4 KiB pages first (x86: PDE, PDPTE, PML4E, PML5E). None: walks
    /// read every level.
    pub psc: Vec<Shape>,
    /// Levels of the tables.
    pub levels: TreeLevels,
    /// What a paging-structure cache spares.
    pub walker: Walker,
    /// Of random replacement.
    pub seed: Seed,
}

impl TlbReplaySpec {
    /// Two levels of these shapes, and otherwise every default: pages of 4 KiB, no paging-structure caches.
    pub fn new(l1: Shape, l2: Option<Shape>) -> Self {
        Self {
            l1,
            l2,
            inclusion: Inclusion::NonInclusive,
            page: PageSize::SIZE_4K,
            crossing: Crossing::FirstByte,
            fetches: Fetches::LeftOut,
            psc: Vec::new(),
            levels: TreeLevels::Four,
            walker: Walker::Architectural,
            seed: Seed(0),
        }
    }
}

/// Why a description cannot be replayed through.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TlbReplayError {
    /// No TLB can hold such pages.
    Array(ArrayError),
    /// The tables have no level with such leaves.
    PageTooLarge {
        /// The page.
        page: PageSize,
        /// Levels of the tables.
        levels: usize,
    },
    /// More paging-structure caches than levels above the last.
    TooManyPscs {
        /// So many were asked for.
        given: usize,
        /// So many have a use.
        most: usize,
    },
}

impl fmt::Display for TlbReplayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Array(error) => write!(f, "{error}: {}", error.help()),
            Self::PageTooLarge { page, levels } => {
                write!(f, "tables of {levels} levels have no leaves of {page}: use smaller pages, up to 1G")
            }
            Self::TooManyPscs { given, most } => {
                write!(
                    f,
                    "{given} paging-structure caches, but only {most} levels have tables below: give at most {most}"
                )
            }
        }
    }
}
impl std::error::Error for TlbReplayError {}

/// Look-ups of a level.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LevelCounts {
    /// Those it answered.
    pub hits: u64,
    /// The others.
    pub misses: u64,
}

/// What was counted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlbReplayCounts {
    /// References made, a modify counted twice; left-out fetches are none.
    pub references: u64,
    /// First level of loads and stores.
    pub l1_data: LevelCounts,
    /// First level of fetches; `None` where they are left out.
    pub l1_fetch: Option<LevelCounts>,
    /// Second level.
    pub l2: Option<LevelCounts>,
    /// Page walks: misses of the last level.
    pub walks: u64,
    /// Table entries that walks read.
    pub pte_reads: u64,
    /// Walks by the level of their deepest hit, as the caches are ordered in [`TlbReplaySpec::psc`].
    pub psc_deepest: Vec<u64>,
    /// Walks that hit in no paging-structure cache.
    pub psc_none: u64,
}

impl TlbReplayCounts {
    /// First level of all references.
    pub fn l1(&self) -> LevelCounts {
        let fetch = self.l1_fetch.unwrap_or_default();
        LevelCounts { hits: self.l1_data.hits + fetch.hits, misses: self.l1_data.misses + fetch.misses }
    }
}

/// TLBs and paging-structure caches that a trace goes through.
///
/// ```
/// use mmu_core::assoc::Shape;
/// use mmu_sim::tlb_replay::{LevelCounts, TlbReplay, TlbReplaySpec};
/// let spec = TlbReplaySpec::new(Shape::new(64, 4)?, Some(Shape::new(1536, 12)?));
/// let mut replay = TlbReplay::new(&spec)?;
/// replay.feed(&mmu_trace::synthetic::s1(1000).collect::<Vec<_>>());
/// assert_eq!(replay.counts().l1_data, LevelCounts { hits: 499, misses: 501 });
/// assert_eq!(replay.counts().l2, Some(LevelCounts { hits: 55, misses: 446 }));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct TlbReplay {
    tlb: Tlb,
    psc: Option<PscSet>,
    /// How many there are.
    pscs: usize,
    page: PageSize,
    crossing: Crossing,
    fetches: Fetches,
    walker: Walker,
    /// Levels of the tables' root and of the leaves, by distance from the last level.
    root: usize,
    leaf: usize,
    references: u64,
    walks: u64,
    pte_reads: u64,
}

/// Bits of an index into one table.
const INDEX_BITS: u8 = 9;

fn array(name: &str, shape: Shape, ports: &[Port], page: PageSize) -> ArraySpec {
    ArraySpec {
        name: name.to_owned(),
        shape,
        ports: ports.to_vec(),
        sizes: vec![page],
        coalesce: None,
        larger: LargerPages::Skip,
    }
}

fn tlb(spec: &TlbReplaySpec) -> Result<Tlb, ArrayError> {
    let mut l1 = vec![array("l1d", spec.l1, &[Port::Load, Port::Store], spec.page)];
    if spec.fetches == Fetches::Replayed {
        l1.push(array("l1i", spec.l1, &[Port::Fetch], spec.page));
    }
    let l2 = spec.l2.iter().map(|&shape| array("l2", shape, &Port::ALL, spec.page)).collect();
    let zero = Cycles::ZERO;
    let (inclusion, rules) = (spec.inclusion, TagRules::default());
    Tlb::new(&TlbSpec { l1, l2, inclusion, rules, l2_hit_extra: zero, l2_hit_extra_fetch: zero }, spec.seed.0)
}

fn psc(spec: &TlbReplaySpec) -> Option<PscSet> {
    let levels = spec.levels.count();
    let tree = Geometry::uniform(PageSize::SIZE_4K, &[INDEX_BITS; 5][..levels], 52, &[0, 1, 2]).ok()?;
    let cache = |(tables, &shape): (u8, &Shape)| PscLevelSpec { tables: Level::new(tables), shape };
    let levels: Vec<_> = (0..).zip(&spec.psc).map(cache).collect();
    let spec_of = PscSpec { levels, guest_physical: None, rules: TagRules::default() };
    (!spec.psc.is_empty()).then(|| PscSet::new(&spec_of, &tree, &tree, spec.seed.0))
}

impl TlbReplay {
    /// Empty caches.
    ///
    /// # Errors
    /// The page is below 4 KiB or above what the tables map, or there are more paging-structure caches than upper levels.
    pub fn new(spec: &TlbReplaySpec) -> Result<Self, TlbReplayError> {
        let tlb = tlb(spec).map_err(TlbReplayError::Array)?;
        let (levels, leaf) = (spec.levels.count(), leaf_level(spec.page));
        if leaf > 2 {
            return Err(TlbReplayError::PageTooLarge { page: spec.page, levels });
        }
        let most = levels - 1;
        if spec.psc.len() > most {
            return Err(TlbReplayError::TooManyPscs { given: spec.psc.len(), most });
        }
        Ok(Self {
            tlb,
            psc: psc(spec),
            pscs: spec.psc.len(),
            page: spec.page,
            crossing: spec.crossing,
            fetches: spec.fetches,
            walker: spec.walker,
            root: levels - 1,
            leaf,
            references: 0,
            walks: 0,
            pte_reads: 0,
        })
    }

    /// Replays some accesses after those before.
    pub fn feed(&mut self, accesses: &[Access]) {
        for access in accesses {
            match access.kind {
                AccessKind::Fetch if self.fetches == Fetches::LeftOut => {}
                AccessKind::Fetch => self.refer(Port::Fetch, access),
                // Loads and stores ask the same arrays; as one port they also share the simulator's short cuts.
                AccessKind::Load | AccessKind::Store => self.refer(Port::Load, access),
                AccessKind::Modify => {
                    self.refer(Port::Load, access);
                    self.refer(Port::Load, access);
                }
            }
        }
    }

    #[inline]
    fn refer(&mut self, port: Port, access: &Access) {
        self.references += 1;
        self.look_up(port, access.va);
        if self.crossing == Crossing::Split {
            self.look_up_rest(port, access);
        }
    }

    /// Looks up the pages of a reference after its first.
    fn look_up_rest(&mut self, port: Port, access: &Access) {
        let shift = self.page.shift();
        for page in (access.va.raw() >> shift) + 1..=access.last_byte().raw() >> shift {
            self.look_up(port, Gva::new(page << shift));
        }
    }

    #[inline(never)]
    fn look_up(&mut self, port: Port, va: Gva) {
        let input = Input::Linear(va);
        if self.tlb.lookup(port, Tag::default(), input) == Lookup::Miss {
            self.walk(port, input);
        }
    }

    fn walk(&mut self, port: Port, input: Input) {
        self.walks += 1;
        let mut start = self.root;
        if let Some(psc) = &mut self.psc {
            if let Some(found) = psc.deepest(Tag::default(), input) {
                start = found.level.index();
                self.pte_reads += u64::from(self.walker == Walker::ReadsHitAgain);
            }
            // The address of the table says nothing here.
            let table = Table { base: Hpa::new(0), index_bits: u32::from(INDEX_BITS) };
            for level in self.leaf..start {
                let level = Level::new(level as u8);
                psc.fill(Tag::default(), input, &CachedTable { level, table, host: None, acc: 0 });
            }
        }
        self.pte_reads += (start + 1 - self.leaf) as u64;
        let entry = TlbEntry::new(Hpa::new(input.raw()), self.page, Perms::RWX);
        self.tlb.fill_missed(port, Tag::default(), input, entry);
    }

    /// What has been counted so far.
    pub fn counts(&self) -> TlbReplayCounts {
        let (l1, l2) = (self.tlb.l1(), self.tlb.l2());
        let counts = |array: &mmu_core::tlb::LevelArray<'_>| {
            let stats = array.stats();
            LevelCounts { hits: stats.hits, misses: stats.misses }
        };
        let psc = self.psc.as_ref().map(PscSet::stats).unwrap_or_default();
        TlbReplayCounts {
            references: self.references,
            l1_data: l1.first().map(counts).unwrap_or_default(),
            l1_fetch: l1.get(1).map(counts),
            l2: l2.first().map(counts),
            walks: self.walks,
            pte_reads: self.pte_reads,
            psc_deepest: psc.deepest[..self.pscs].to_vec(),
            psc_none: if self.psc.is_some() { psc.misses } else { self.walks },
        }
    }
}

/// The level of the entries that map pages of a size: of such as lie between two levels' (64 KiB, say) a run of the lower's.
fn leaf_level(page: PageSize) -> usize {
    (page.shift().saturating_sub(PageSize::SIZE_4K.shift()) / u32::from(INDEX_BITS)) as usize
}
