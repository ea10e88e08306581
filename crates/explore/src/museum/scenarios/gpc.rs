//! `gfn_to_pfn_cache`: a mapping of one page outside the second stage.

use mmu_core::{Cycles, Hva};

use mmu_sim::experiment::vm::GUEST_MEMORY;
use mmu_sim::explore::{Explorable, Invariant, Scenario, SmallVm};
use mmu_sim::protocols::notifier::{GpcInvalidation, Notifier, NotifierPolicy};
use mmu_sim::protocols::pfncache::{Gpc, GpcPolicy, Place, Serialization, access, refresh, use_for};
use mmu_sim::protocols::primary::madvise_dontneed;

use super::super::formats::{X86, x86};
use super::super::{Exhibit, Variant};
use super::{PAGE, hvas};

pub(super) const EXHIBITS: &[Exhibit] = &[
    Exhibit {
        id: "G04",
        title: "a cache is valid before its page is known to be",
        breaks: &[Invariant::O2, Invariant::T1],
        arch: "x86",
        build: g04,
    },
    Exhibit {
        id: "G05",
        title: "refreshes of one cache to different places interleave",
        breaks: &[Invariant::O2, Invariant::T1],
        arch: "x86",
        build: g05,
    },
    Exhibit {
        id: "G09",
        title: "a cache is invalidated at the end of an invalidation only",
        breaks: &[Invariant::O2, Invariant::T1],
        arch: "x86",
        build: g09,
    },
    Exhibit {
        id: "G10",
        title: "a refresh inside an invalidation that covers it does not wait for its end",
        breaks: &[Invariant::O2, Invariant::T1],
        arch: "x86",
        build: g10,
    },
];

/// A user refreshes and uses a cache of a page that is being dropped.
fn used_and_dropped(name: &str, policy: GpcPolicy, gpc: GpcInvalidation) -> Scenario<X86> {
    Scenario::new(name, x86(), SmallVm::unmapped(2)).setup(move |build| {
        let notifier = Notifier::new(NotifierPolicy { gpc, ..NotifierPolicy::V5_15 });
        let cache = Gpc::create(build, &notifier.gpcs);
        build.spawn("user", move |host| {
            Box::pin(async move {
                // Whether it could be used is the user's affair; that it was used rightly is the checker's.
                let _ = access(&host, cache, Place::Host(GUEST_MEMORY), &policy).await;
                use_for(&host, cache, Place::Host(GUEST_MEMORY), Cycles::ZERO).await;
            })
        });
        build.spawn("madvise", move |host| {
            Box::pin(async move {
                madvise_dontneed(&host, &notifier, hvas(0, 1)).await;
            })
        });
    })
}

const FEW_ROUNDS: GpcPolicy = GpcPolicy { max_rounds: 4, ..GpcPolicy::V5_19 };

fn g04(variant: Variant) -> Box<dyn Explorable> {
    let policy = variant.choose(GpcPolicy { max_rounds: 4, ..GpcPolicy::V5_18 }, FEW_ROUNDS);
    Box::new(used_and_dropped("G04", policy, GpcInvalidation::AtStart))
}

fn g09(variant: Variant) -> Box<dyn Explorable> {
    let at = variant.choose(GpcInvalidation::AtEnd, GpcInvalidation::AtStart);
    Box::new(used_and_dropped("G09", FEW_ROUNDS, at))
}

fn g10(variant: Variant) -> Box<dyn Explorable> {
    let (w1, w3) = (GpcPolicy { max_rounds: 4, ..GpcPolicy::W1 }, GpcPolicy { max_rounds: 4, ..GpcPolicy::W3 });
    Box::new(used_and_dropped("G10", variant.choose(w1, w3), GpcInvalidation::AtStart))
}

/// Two users want one cache to map two different pages.
fn g05(variant: Variant) -> Box<dyn Explorable> {
    let serialization = variant.choose(Serialization::None, Serialization::Mutex);
    let policy = GpcPolicy { serialization, ..FEW_ROUNDS };
    Box::new(Scenario::new("G05", x86(), SmallVm::unmapped(2)).setup(move |build| {
        let notifier = Notifier::new(NotifierPolicy::V5_15);
        let cache = Gpc::create(build, &notifier.gpcs);
        for (name, at) in [("first user", GUEST_MEMORY), ("second user", Hva::new(GUEST_MEMORY.raw() + PAGE))] {
            build.spawn(name, move |host| {
                Box::pin(async move {
                    let _ = refresh(&host, cache, Place::Host(at), &policy).await;
                })
            });
        }
    }))
}
