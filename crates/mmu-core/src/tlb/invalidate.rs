//! The vocabulary of invalidation, and what each word reaches.
//!
//! Every instruction of the three architectures is one [`Invalidate`] value. Its reach is computed once into a
//! `Select`, which TLBs, nested TLBs and paging-structure caches all apply with [`TlbKey::belongs`], the function that
//! look-ups use as well.

use serde::{Deserialize, Serialize};

use super::key::{ASID_MASK, ROOT_MASK, VMID_MASK, context_word};
use super::{Asid, CombinedByGpa, Kind, RootId, Tag, TagRules, TlbEntry, TlbKey, Vmid};
use crate::addr::{Gpa, Gva};

/// Address spaces an invalidation by address reaches. Global entries are reached either way.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum AsidScope {
    /// One, and the global entries.
    One(Asid),
    /// All of the virtual machine.
    Any,
}

/// What happens to global entries.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Globals {
    /// They stay.
    Kept,
    /// They go as well.
    Dropped,
}

/// What to invalidate in one processor.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Invalidate {
    /// First-stage results (linear and combined) for one address: INVLPG, INVPCID type 0, INVVPID type 0; TLBI VAE1,
    /// VAAE1; tlbie with IS = 0. Removes the whole entry, however large its page.
    Page {
        /// Virtual machine.
        vmid: Vmid,
        /// Address spaces.
        asid: AsidScope,
        /// Any address of the page.
        va: Gva,
    },
    /// The same for every page that touches `bytes` bytes from `start`: TLBI RVAE1.
    Range {
        /// Virtual machine.
        vmid: Vmid,
        /// Address spaces.
        asid: AsidScope,
        /// First byte.
        start: Gva,
        /// Number of bytes; 0 reaches nothing.
        bytes: u64,
    },
    /// First-stage results of one address space: a write of CR3, INVPCID type 1; TLBI ASIDE1; tlbie with IS = 1.
    Asid {
        /// Virtual machine.
        vmid: Vmid,
        /// Address space.
        asid: Asid,
        /// Global entries of the virtual machine.
        globals: Globals,
    },
    /// First-stage results of a virtual machine: INVVPID type 1 or 3, INVPCID type 2 or 3; TLBI VMALLE1.
    Vmid {
        /// Virtual machine.
        vmid: Vmid,
        /// Its global entries.
        globals: Globals,
    },
    /// All results of a virtual machine: TLBI VMALLS12E1; tlbie with IS = 2.
    VmidBothStages {
        /// Virtual machine.
        vmid: Vmid,
    },
    /// Second-stage results for guest-physical addresses: TLBI IPAS2E1, RIPAS2E1; tlbie with R = 1, PRS = 0. Combined
    /// entries survive, unless the machine stores guest-physical addresses with them.
    GuestPhysical {
        /// Virtual machine (ignored where second-stage results are tagged by their root).
        vmid: Vmid,
        /// First byte.
        start: Gpa,
        /// Number of bytes; 0 reaches nothing.
        bytes: u64,
    },
    /// Guest-physical and combined results of one second-stage root: INVEPT type 1.
    Root {
        /// The root.
        root: RootId,
    },
    /// Everything: INVEPT type 2 with INVVPID type 2; TLBI ALLE1; tlbie with IS = 3.
    All,
}

/// What an invalidation does to the caches of upper-level tables (POWER: RIC).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum TableCaches {
    /// They stay: last-level TLBI forms, tlbie with RIC = 0.
    Kept,
    /// Entries that the invalidation covers go as well: INVEPT, TLBI without last-level hint, tlbie with RIC = 2.
    Dropped,
    /// All entries of the address space go, wherever they lie: INVLPG (Intel SDM vol. 3, 4.10.4.1).
    DroppedForContext,
    /// Only they go and translations stay: tlbie with RIC = 1.
    Only,
}

/// Kinds of entries as bits.
const FIRST_STAGE: u8 = 1 << Kind::Linear as u8 | 1 << Kind::Combined as u8;
const SECOND_STAGE: u8 = 1 << Kind::GuestPhysical as u8;
const COMBINED: u8 = 1 << Kind::Combined as u8;

/// Address space of a span.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Space {
    Virtual,
    GuestPhysical,
}

/// Inclusive stretch of addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Span {
    pub(super) first: u64,
    pub(super) last: u64,
}

impl Span {
    fn of(first: u64, bytes: u64) -> Option<Self> {
        Some(Self { first, last: first.saturating_add(bytes.checked_sub(1)?) })
    }
    fn meets(self, first: u64, last: u64) -> bool {
        self.first <= last && first <= self.last
    }
}

/// An invalidation worked out for one machine's tags.
#[derive(Clone, Copy, Debug)]
pub(super) struct Select {
    kinds: u8,
    context: u64,
    mask: u64,
    globals: Globals,
    space: Space,
    span: Option<Span>,
    rules: TagRules,
}

/// Reaches no entry at all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Nothing;

impl Select {
    /// Which entries an invalidation reaches.
    pub(super) fn new(what: Invalidate, rules: TagRules) -> Result<Self, Nothing> {
        let any = Tag::default();
        let vm = |vmid| Tag { vmid, ..any };
        let base = Self {
            kinds: FIRST_STAGE,
            context: 0,
            mask: VMID_MASK,
            globals: Globals::Dropped,
            space: Space::Virtual,
            span: None,
            rules,
        };
        let scoped = |vmid, scope| match scope {
            AsidScope::One(asid) => {
                Self { context: context_word(Tag { asid, ..vm(vmid) }), mask: VMID_MASK | ASID_MASK, ..base }
            }
            AsidScope::Any => Self { context: context_word(vm(vmid)), ..base },
        };
        Ok(match what {
            Invalidate::Page { vmid, asid, va } => {
                Self { span: Some(Span { first: va.raw(), last: va.raw() }), ..scoped(vmid, asid) }
            }
            Invalidate::Range { vmid, asid, start, bytes } => {
                Self { span: Some(Span::of(start.raw(), bytes).ok_or(Nothing)?), ..scoped(vmid, asid) }
            }
            Invalidate::Asid { vmid, asid, globals } => Self { globals, ..scoped(vmid, AsidScope::One(asid)) },
            Invalidate::Vmid { vmid, globals } => Self { globals, ..scoped(vmid, AsidScope::Any) },
            Invalidate::VmidBothStages { vmid } => {
                Self { kinds: FIRST_STAGE | SECOND_STAGE, ..scoped(vmid, AsidScope::Any) }
            }
            Invalidate::GuestPhysical { vmid, start, bytes } => {
                let combined = if rules.combined_by_gpa == CombinedByGpa::Stored { COMBINED } else { 0 };
                let span = Some(Span::of(start.raw(), bytes).ok_or(Nothing)?);
                let kinds = SECOND_STAGE | combined;
                Self { kinds, space: Space::GuestPhysical, span, ..scoped(vmid, AsidScope::Any) }
            }
            Invalidate::Root { root } => Self {
                kinds: COMBINED | SECOND_STAGE,
                context: context_word(Tag { root, ..any }),
                mask: ROOT_MASK,
                ..base
            },
            Invalidate::All => Self { kinds: FIRST_STAGE | SECOND_STAGE, mask: 0, ..base },
        })
    }

    /// Exactly the entries that translate any part of one block for its own context: what an inclusive
    /// second level takes out of the first.
    pub(super) fn block(key: &TlbKey, rules: TagRules) -> Self {
        let kind = key.kind();
        Self {
            kinds: 1 << kind as u8,
            context: key.context(),
            mask: u64::MAX,
            globals: Globals::Dropped,
            space: if kind == Kind::GuestPhysical { Space::GuestPhysical } else { Space::Virtual },
            span: Some(Span { first: key.input().raw(), last: key.last() }),
            rules,
        }
    }

    /// The same without regard to addresses.
    pub(super) fn everywhere(self) -> Self {
        if self.space == Space::GuestPhysical { self } else { Self { span: None, ..self } }
    }

    /// The stretch of input addresses outside which no entry is reached.
    pub(super) fn input_span(&self) -> Option<Span> {
        let by_gpa = self.space == Space::GuestPhysical && self.kinds != SECOND_STAGE;
        if by_gpa { None } else { self.span }
    }

    /// The kinds reached.
    pub(super) fn kinds(&self) -> impl Iterator<Item = Kind> + use<> {
        let kinds = self.kinds;
        [Kind::Linear, Kind::GuestPhysical, Kind::Combined].into_iter().filter(move |&k| kinds >> k as u8 & 1 == 1)
    }

    /// Whether an entry with this key is reached, addresses aside.
    #[inline]
    pub(super) fn admits(&self, key: &TlbKey) -> bool {
        let kind = key.kind();
        self.kinds >> kind as u8 & 1 == 1
            && key.belongs(self.context, self.mask & self.rules.mask(kind))
            && (self.globals == Globals::Dropped || !key.is_global())
    }

    /// Whether the block of a key is reached, addresses included. For tables: a combined one has no guest-physical
    /// address to be found by.
    pub(super) fn covers(&self, key: &TlbKey) -> bool {
        let unknown = self.space == Space::GuestPhysical && key.kind() == Kind::Combined;
        self.admits(key) && !unknown && self.span.is_none_or(|span| span.meets(key.input().raw(), key.last()))
    }

    /// The pages of an entry that survive, as its mask of valid pages.
    #[inline]
    pub(super) fn survivors(&self, key: &TlbKey, entry: &TlbEntry) -> u8 {
        if !self.admits(key) {
            return entry.valid;
        }
        let Some(span) = self.span else { return 0 };
        let by_gpa = self.space == Space::GuestPhysical && key.kind() == Kind::Combined;
        let start = if by_gpa { entry.gpa.raw() } else { key.input().raw() };
        let page = entry.size.bytes();
        let pages = if key.is_grouped() { key.block().bytes() / page } else { 1 };
        (0..pages)
            .filter(|index| entry.valid >> index & 1 == 1)
            .filter(|index| !span.meets(start.wrapping_add(index * page), start.wrapping_add(index * page + page - 1)))
            .fold(0, |kept, index| kept | 1 << index)
    }
}
