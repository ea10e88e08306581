//! `tlbie`, `tlbiel` and `slbia` (ISA 3.1 Book III 6.9.3) and how Linux spends them.

use std::fmt;

use mmu_core::{Delivery, Flush, FlushPlan, FlushScope, Format, PageSize, Reach, WalkCaches};

use super::config::{Radix, Scope};

/// Which caches an instruction invalidates (RIC field).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TlbiRic {
    /// RIC=0: translations (TLB, and the ERATs with them). Page walk caches stay.
    Tlb,
    /// RIC=1: the page walk caches alone.
    WalkCache,
    /// RIC=2: translations, page walk caches, and cached partition- or process-table entries.
    All,
}

/// On which processors it acts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TlbiForm {
    /// `tlbie`: on all.
    Broadcast,
    /// `tlbiel`: on the executing one.
    Local,
}

/// Actual page size (AP field); an entry is invalidated only under the size it was cached with.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TlbiAp {
    /// AP=0.
    K4,
    /// AP=5.
    K64,
    /// AP=1.
    M2,
    /// AP=2.
    G1,
}

impl TlbiAp {
    /// The field's value.
    pub const fn bits(self) -> u8 {
        match self {
            TlbiAp::K4 => 0,
            TlbiAp::K64 => 5,
            TlbiAp::M2 => 1,
            TlbiAp::G1 => 2,
        }
    }
    /// The page size.
    pub const fn size(self) -> PageSize {
        match self {
            TlbiAp::K4 => PageSize::SIZE_4K,
            TlbiAp::K64 => PageSize::SIZE_64K,
            TlbiAp::M2 => PageSize::SIZE_2M,
            TlbiAp::G1 => PageSize::SIZE_1G,
        }
    }
    /// The field for a page size, if it has one.
    pub fn of(size: PageSize) -> Option<Self> {
        [TlbiAp::K4, TlbiAp::K64, TlbiAp::M2, TlbiAp::G1].into_iter().find(|ap| ap.size() == size)
    }
}

/// Which entries it invalidates (IS field).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TlbiSelect {
    /// IS=0: one page of the process (PRS=1) or partition (PRS=0).
    Page(TlbiAp),
    /// IS=1: the process.
    Process,
    /// IS=2: the partition.
    Partition,
    /// IS=3: everything.
    Everything,
}

/// An invalidating instruction with its fields; R=1 (radix) throughout.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tlbi {
    /// `tlbie` or `tlbiel`.
    Tlbie {
        /// On which processors.
        form: TlbiForm,
        /// Which caches.
        ric: TlbiRic,
        /// PRS: 0 for partition-scoped translations, 1 for process-scoped ones.
        prs: u8,
        /// Which entries.
        select: TlbiSelect,
    },
    /// `slbia IH`: the executing thread's ERATs, nothing else. Linux: 3 for user entries, 6 for a guest's, 7 for all.
    Slbia {
        /// Invalidation hint.
        ih: u8,
    },
}

impl Tlbi {
    /// Whether TLB entries go.
    pub const fn drops_tlb(self) -> bool {
        matches!(self, Tlbi::Tlbie { ric: TlbiRic::Tlb | TlbiRic::All, .. })
    }
    /// Whether page-walk-cache entries go. They are apart: RIC=0 leaves them, even those it walked through.
    pub const fn drops_walk_cache(self) -> bool {
        matches!(self, Tlbi::Tlbie { ric: TlbiRic::WalkCache | TlbiRic::All, .. })
    }
    /// Whether ERAT entries go: with the TLB's, and upon `slbia`.
    pub const fn drops_erat(self) -> bool {
        matches!(self, Tlbi::Slbia { .. }) || self.drops_tlb()
    }
    /// Whether cached partition-table (PRS=0) or process-table (PRS=1) entries go.
    pub const fn drops_root_tables(self) -> bool {
        matches!(self, Tlbi::Tlbie { ric: TlbiRic::All, .. })
    }
}

impl fmt::Display for Tlbi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tlbi::Tlbie { form, ric, prs, select } = *self else {
            let Tlbi::Slbia { ih } = *self else { return Ok(()) };
            return write!(f, "slbia {ih}");
        };
        let name = match form {
            TlbiForm::Broadcast => "tlbie",
            TlbiForm::Local => "tlbiel",
        };
        write!(f, "{name} RIC={} PRS={prs} R=1 ", ric as u8)?;
        match select {
            TlbiSelect::Page(ap) => write!(f, "IS=0 AP={} ({})", ap.bits(), ap.size()),
            TlbiSelect::Process => f.write_str("IS=1"),
            TlbiSelect::Partition => f.write_str("IS=2"),
            TlbiSelect::Everything => f.write_str("IS=3"),
        }
    }
}

/// The instructions around invalidations of this form, in order: stores to the tables are ordered before, and completion
/// on every processor is awaited after (ISA 3.1 Book III 6.10.1; Linux `book3s64/radix_tlb.c`).
///
/// ```
/// use arch_ppc_radix::{TlbiForm, invalidation_sequence};
/// assert_eq!(invalidation_sequence(TlbiForm::Broadcast), ["ptesync", "tlbie", "eieio", "tlbsync", "ptesync"]);
/// ```
pub const fn invalidation_sequence(form: TlbiForm) -> &'static [&'static str] {
    match form {
        TlbiForm::Broadcast => &["ptesync", "tlbie", "eieio", "tlbsync", "ptesync"],
        TlbiForm::Local => &["ptesync", "tlbiel", "ptesync"],
    }
}

/// Above so many pages Linux flushes the whole context with one `tlbie` (`tlb_single_page_flush_ceiling`).
const BROADCAST_CEILING: u64 = 33;
/// The same for `tlbiel` (`tlb_local_single_page_flush_ceiling`, twice the TLB's sets).
const LOCAL_CEILING: u64 = 256;
/// `tlbiel` of a whole context names one congruence class at a time: 128 on POWER9.
const TLB_SETS: u64 = 128;

/// The pages of a range flush that is worth doing page by page: AP, number, and the range they cover.
fn pages(radix: &Radix, flush: &Flush, ceiling: u64) -> Option<(TlbiAp, u64, FlushScope)> {
    let FlushScope::Range { start, bytes, level: Some(level) } = flush.scope else { return None };
    // RIC=1 and RIC=2 have no page form.
    if flush.walk_caches == WalkCaches::Drop || !radix.geometry().has_leaves_at(level) {
        return None;
    }
    let size = radix.geometry().page_size(level);
    let first = start.align_down(size);
    let count = (start.raw().checked_add(bytes)? - first.raw()).div_ceil(size.bytes());
    let covered = FlushScope::Range { start: first, bytes: count << size.shift(), level: Some(level) };
    (count <= ceiling).then_some((TlbiAp::of(size)?, count, covered))
}

/// The instructions for a flush. A range of unknown level goes as a whole: AP must name the cached size.
pub(super) fn plan(radix: &Radix, flush: Flush) -> FlushPlan<Tlbi> {
    let (form, ceiling, delivery, whole) = match flush.reach {
        Reach::Everyone => (TlbiForm::Broadcast, BROADCAST_CEILING, Delivery::Broadcast, 1),
        Reach::Local => (TlbiForm::Local, LOCAL_CEILING, Delivery::LocalInstruction, TLB_SETS),
    };
    let (prs, context) = match radix.scope() {
        Scope::Partition => (0, TlbiSelect::Partition),
        Scope::Process(_) => (1, TlbiSelect::Process),
    };
    if let Some((ap, repeats, scope)) = pages(radix, &flush, ceiling) {
        return FlushPlan {
            instruction: Tlbi::Tlbie { form, ric: TlbiRic::Tlb, prs, select: TlbiSelect::Page(ap) },
            repeats,
            delivery,
            covers: Flush { scope, ..flush },
        };
    }
    let ric = match flush.walk_caches {
        WalkCaches::Keep => TlbiRic::Tlb,
        WalkCaches::Drop => TlbiRic::All,
    };
    FlushPlan {
        instruction: Tlbi::Tlbie { form, ric, prs, select: context },
        repeats: whole,
        delivery,
        covers: Flush { scope: FlushScope::Vm, ..flush },
    }
}
