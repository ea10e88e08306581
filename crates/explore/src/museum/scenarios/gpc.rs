//! `gfn_to_pfn_cache`: a mapping of one page outside the second stage.

use mmu_core::{Cycles, Hva};

use mmu_sim::arch::Arch;
use mmu_sim::engine::{Bed, Blockable, Wake};
use mmu_sim::experiment::vm::GUEST_MEMORY;
use mmu_sim::explore::{Explorable, Invariant, Mutation, Scenario, SmallVm};
use mmu_sim::protocols::notifier::{
    GpcInvalidation, Notifier, NotifierPolicy, RetryOrder, RetryTest, range_end, range_start,
};
use mmu_sim::protocols::pfncache::{
    CachedAddress, Gpc, GpcList, GpcPolicy, Place, SamePfn, Serialization, Staleness, access, refresh, use_for,
};
use mmu_sim::protocols::primary::madvise_dontneed;

use super::super::{Exhibit, Variant};
use super::{PAGE, hvas, unless};

pub(super) const EXHIBITS: &[Exhibit] = &[
    Exhibit {
        id: "G04",
        title: "a cache is valid before its page is known to be",
        breaks: &[Invariant::O2, Invariant::T1],
        arch: "x86",
        build: any!(g04),
    },
    Exhibit {
        id: "G05",
        title: "refreshes of one cache to different places interleave",
        breaks: &[Invariant::O2, Invariant::T1],
        arch: "x86",
        build: any!(g05),
    },
    Exhibit {
        id: "G06",
        title: "the offset in the page is folded into the cached address, which never compares equal",
        breaks: &[Invariant::T8],
        arch: "x86",
        build: any!(g06),
    },
    Exhibit {
        id: "G07",
        title: "a refresh that finds the same page leaks its reference",
        breaks: &[Invariant::R3],
        arch: "x86",
        build: any!(g07),
    },
    Exhibit {
        id: "G08",
        title: "a refresh does not end while anything in the process is being invalidated",
        breaks: &[Invariant::P2],
        arch: "x86",
        build: any!(g08),
    },
    Exhibit {
        id: "G09",
        title: "a cache is invalidated at the end of an invalidation only",
        breaks: &[Invariant::O2, Invariant::T1],
        arch: "x86",
        build: any!(g09),
    },
    Exhibit {
        id: "G10",
        title: "a refresh inside an invalidation that covers it does not wait for its end",
        breaks: &[Invariant::O2, Invariant::T1],
        arch: "x86",
        build: any!(g10),
    },
    Exhibit {
        id: "G14",
        title: "a refresh reads the sequence before the count: an invalidation that ends in between is missed",
        breaks: &[Invariant::O2, Invariant::T1],
        arch: "x86",
        build: any!(g14),
    },
];

/// Mutations that none of these scenarios notices, and why.
pub(super) const UNNOTICED: &[(Mutation, &str)] = &[(Mutation::RelaxedOrder, super::SLOTS)];

/// A user refreshes and uses a cache of a page that is being dropped.
fn used_and_dropped<A: Arch>(arch: A, name: &str, policy: GpcPolicy, gpc: GpcInvalidation) -> Scenario<A> {
    Scenario::new(name, arch, SmallVm::unmapped(2)).setup(move |build| {
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

fn g04<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let policy = variant.choose(GpcPolicy { max_rounds: 4, ..GpcPolicy::V5_18 }, FEW_ROUNDS);
    Box::new(used_and_dropped(arch, "G04", policy, GpcInvalidation::AtStart))
}

fn g14<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    // The fault path tests both under `mmu_lock`, which covers the order; a cache has a lock of its own.
    let order = variant.choose(RetryOrder::SequenceFirst, RetryOrder::CountFirst);
    Box::new(used_and_dropped(arch, "G14", GpcPolicy { order, ..FEW_ROUNDS }, GpcInvalidation::AtStart))
}

fn g09<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let at = variant.choose(GpcInvalidation::AtEnd, GpcInvalidation::AtStart);
    Box::new(used_and_dropped(arch, "G09", FEW_ROUNDS, at))
}

fn g10<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let (w1, w3) = (GpcPolicy { max_rounds: 4, ..GpcPolicy::W1 }, GpcPolicy { max_rounds: 4, ..GpcPolicy::W3 });
    Box::new(used_and_dropped(arch, "G10", variant.choose(w1, w3), GpcInvalidation::AtStart))
}

/// Two users want one cache to map two different pages.
fn g05<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let serialization = variant.choose(Serialization::None, Serialization::Mutex);
    let policy = GpcPolicy { serialization, ..FEW_ROUNDS };
    Box::new(Scenario::new("G05", arch, SmallVm::unmapped(2)).setup(move |build| {
        let cache = Gpc::create(build, &GpcList::default());
        for (name, at) in [("first user", GUEST_MEMORY), ("second user", Hva::new(GUEST_MEMORY.raw() + PAGE))] {
            build.spawn(name, move |host| {
                Box::pin(async move {
                    let _ = refresh(&host, cache, Place::Host(at), &policy).await;
                })
            });
        }
    }))
}

/// One cache, refreshed twice; between the two the page may be invalidated without being taken away.
fn twice<A: Arch>(
    arch: A,
    name: &str,
    policy: GpcPolicy,
    between: bool,
    invariant: Invariant,
    judge: impl Fn(u64) -> Result<(), String> + Copy + Send + Sync + 'static,
) -> Box<dyn Explorable> {
    Box::new(Scenario::new(name, arch, SmallVm::unmapped(1)).setup(move |build| {
        let notifier = Notifier::new(NotifierPolicy::V5_15);
        let cache = Gpc::create(build, &notifier.gpcs);
        let rounds = std::rc::Rc::new(std::cell::Cell::new(0));
        let second = rounds.clone();
        build.spawn("user", move |host| {
            Box::pin(async move {
                let place = Place::Host(GUEST_MEMORY + 8);
                let _ = refresh(&host, cache, place, &policy).await;
                if between {
                    let invalidation = range_start(&host, &notifier, hvas(0, 1), Blockable::Yes).await;
                    range_end(&host, &notifier, invalidation).await;
                }
                second.set(refresh(&host, cache, place, &policy).await.unwrap_or(0));
            })
        });
        build.finally(invariant, move |_| judge(rounds.get()));
    }))
}

fn g06<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let address = variant.choose(CachedAddress::WithOffset, CachedAddress::Page);
    twice(arch, "G06", GpcPolicy { address, ..FEW_ROUNDS }, false, Invariant::T8, |rounds| {
        unless(rounds != 0, "a valid cache of the address is not recognized")
    })
}

fn g07<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let same_pfn = variant.choose(SamePfn::Leak, SamePfn::Put);
    twice(arch, "G07", GpcPolicy { same_pfn, ..FEW_ROUNDS }, true, Invariant::R3, |_| Ok(()))
}

/// An invalidation of another page that does not end before the refresh does.
fn g08<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let test = variant.choose(RetryTest::ActiveCount, RetryTest::ActiveRange);
    let policy = GpcPolicy { staleness: Staleness::Test(test), max_rounds: 20, ..GpcPolicy::V5_19 };
    Box::new(Scenario::new("G08", arch, SmallVm::unmapped(2)).setup(move |build| {
        let notifier = Notifier::new(NotifierPolicy::V5_15);
        let cache = Gpc::create(build, &notifier.gpcs);
        let (done, waiting) = (build.new_var(0), build.new_wait_queue());
        let starved = std::rc::Rc::new(std::cell::Cell::new(false));
        let found = starved.clone();
        build.spawn("user", move |host| {
            Box::pin(async move {
                found.set(refresh(&host, cache, Place::Host(GUEST_MEMORY), &policy).await.is_err());
                host.store_release(done, 1).await;
                host.wake_up(waiting, Wake::All).await;
            })
        });
        build.spawn("preempted madvise", move |host| {
            Box::pin(async move {
                let invalidation = range_start(&host, &notifier, hvas(1, 1), Blockable::Yes).await;
                super::wait_for(&host, done, waiting).await;
                range_end(&host, &notifier, invalidation).await;
            })
        });
        build.finally(Invariant::P2, move |_| {
            unless(starved.get(), "an invalidation elsewhere makes the refresh go round for ever")
        });
    }))
}
