//! All translation caches of one hardware thread together, as the walker and the invalidation instructions see them.

use super::invalidate::{Nothing, Select};
use super::{
    ArrayError, ArraySpec, Input, Invalidate, Kind, PscSet, PscSpec, TableCaches, Tag, Tlb, TlbArray, TlbEntry, TlbSpec,
};
use crate::addr::{Gpa, Gva, Level};
use crate::geometry::Geometry;
use crate::walk::{CachedTable, Stage, Translation, WalkCacheSet};

/// Description of all translation caches.
#[derive(Clone, PartialEq, Debug)]
pub struct CachesSpec {
    /// TLBs.
    pub tlb: TlbSpec,
    /// Paging-structure caches.
    pub psc: PscSpec,
    /// Guest-physical translations for the references of first-stage walks (nested TLB, IPA cache).
    pub nested: Option<ArraySpec>,
}

/// What an invalidation removed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Removed {
    /// TLB entries.
    pub translations: u64,
    /// Nested-TLB entries.
    pub nested: u64,
    /// Tables from the paging-structure caches.
    pub tables: u64,
}

/// TLBs, paging-structure caches and nested TLB of one hardware thread.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct TranslationCaches {
    /// TLBs.
    pub tlb: Tlb,
    /// Paging-structure caches.
    pub psc: PscSet,
    /// Nested TLB, where the machine has one.
    pub nested: Option<TlbArray>,
}

impl TranslationCaches {
    /// Empty caches for trees of these two shapes.
    pub fn new(spec: &CachesSpec, first: &Geometry, second: &Geometry, seed: u64) -> Result<Self, ArrayError> {
        let nested = spec.nested.as_ref().map(|array| TlbArray::new(array, spec.tlb.rules, seed.rotate_left(7)));
        Ok(Self {
            tlb: Tlb::new(&spec.tlb, seed)?,
            psc: PscSet::new(&spec.psc, first, second, seed),
            nested: nested.transpose()?,
        })
    }

    /// Carries an invalidation out in every cache.
    pub fn invalidate(&mut self, what: Invalidate, tables: TableCaches) -> Removed {
        let mut removed = Removed { tables: self.psc.invalidate(what, tables), ..Removed::default() };
        if tables != TableCaches::Only {
            removed.translations = self.tlb.invalidate(what);
            removed.nested = self.invalidate_nested(what);
        }
        removed
    }

    fn invalidate_nested(&mut self, what: Invalidate) -> u64 {
        match (&mut self.nested, Select::new(what, self.tlb.rules())) {
            (Some(nested), Ok(select)) => nested.invalidate(&select),
            (None, _) | (_, Err(Nothing)) => 0,
        }
    }

    /// These caches as a walk under a tag sees them. `first_stage` is the kind of the walk's first-stage tables:
    /// [`Kind::Combined`] under a second stage, else [`Kind::Linear`].
    pub fn for_walk(&mut self, tag: Tag, first_stage: Kind) -> WalkCaches<'_> {
        WalkCaches { caches: self, tag, first_stage }
    }
}

/// The caches of one walk.
#[derive(Debug)]
pub struct WalkCaches<'a> {
    caches: &'a mut TranslationCaches,
    tag: Tag,
    first_stage: Kind,
}

impl WalkCaches<'_> {
    fn input(&self, stage: Stage, raw: u64) -> Input {
        match (stage, self.first_stage) {
            (Stage::Two, _) => Input::GuestPhysical(Gpa::new(raw)),
            (Stage::One, Kind::Combined) => Input::Combined(Gva::new(raw)),
            (Stage::One, _) => Input::Linear(Gva::new(raw)),
        }
    }
}

impl WalkCacheSet for WalkCaches<'_> {
    fn deepest(&mut self, stage: Stage, input: u64) -> Option<CachedTable> {
        self.caches.psc.deepest(self.tag, self.input(stage, input))
    }

    fn fill(&mut self, stage: Stage, input: u64, found: CachedTable) {
        let input = self.input(stage, input);
        self.caches.psc.fill(self.tag, input, &found);
    }

    fn guest_physical(&mut self, gpa: Gpa) -> Option<Translation> {
        let input = Input::GuestPhysical(gpa);
        let entry = self.caches.nested.as_mut()?.lookup(self.tag, input)?;
        Some(Translation {
            output: entry.translate(input),
            size: entry.size,
            perms: entry.perms,
            level: Level::LAST,
            raw: 0,
        })
    }

    fn fill_guest_physical(&mut self, gpa: Gpa, found: &Translation) {
        if let Some(nested) = &mut self.caches.nested {
            nested.fill(self.tag, Input::GuestPhysical(gpa), TlbEntry::new(found.page(), found.size, found.perms));
        }
    }
}
