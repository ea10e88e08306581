//! Aging, and what zapped entries know.

use std::cell::Cell;
use std::rc::Rc;

use mmu_sim::arch::Arch;
use mmu_sim::engine::{Bed, Handover, Rescan};
use mmu_sim::explore::{Explorable, Invariant, Limits, Mutation, Scenario, SmallVm, read};
use mmu_sim::protocols::aging::{
    AgeUpdate, Aged, AgingPolicy, LostRace, YoungFlush, clear_flush_young, clear_young, test_young,
};
use mmu_sim::protocols::notifier::{Notifier, NotifierPolicy, range_end, range_start};
use mmu_sim::protocols::vcpu;
use mmu_sim::workload::GuestWork;

use super::super::formats::x86_without_flags;
use super::super::{Exhibit, Make, Variant};
use super::{gpas, hvas, plain, thread, unless};

pub(super) const EXHIBITS: &[Exhibit] = &[
    Exhibit {
        id: "P11",
        title: "aging without a flush: a translation cached as accessed hides later accesses",
        breaks: &[Invariant::D5],
        arch: "x86",
        build: any!(p11),
    },
    Exhibit {
        id: "X42",
        title: "lockless aging tries a lost compare-and-swap again without bound",
        breaks: &[Invariant::D6],
        arch: "x86",
        build: Make::Own(x42),
    },
    Exhibit {
        id: "X43",
        title: "lockless aging goes on after a lost compare-and-swap as if it had worked",
        breaks: &[Invariant::D6],
        arch: "x86",
        build: Make::Own(x43),
    },
    Exhibit {
        id: "X46",
        title: "zapped entries do not say that their page was accessed",
        breaks: &[Invariant::D1],
        arch: "x86",
        build: any!(x46),
    },
];

/// Mutations that none of these scenarios notices, and why.
pub(super) const UNNOTICED: &[(Mutation, &str)] = &[
    (
        Mutation::LateFlush,
        "the only flush with a guest that has run is made by the thread of its own vCPU, which does not enter before the lock is back",
    ),
    (Mutation::OmitFence, super::FENCES),
];

/// Two agers and no accessed flag: what one makes old the other has read as young.
fn agers(
    name: &str,
    policy: AgingPolicy,
    judge: impl Fn(&Aged) -> Result<(), String> + Copy + Send + Sync + 'static,
) -> Box<dyn Explorable> {
    let scenario = Scenario::new(name, x86_without_flags(), SmallVm::mapped(1)).vcpu([read(0)], thread(plain()));
    Box::new(scenario.setup(move |build| {
        let sum = Rc::new(Cell::new(Aged::default()));
        for actor in ["first ager", "second ager"] {
            let sum = sum.clone();
            build.spawn(actor, move |host| {
                Box::pin(async move {
                    let mut aged = sum.get();
                    aged = merge(aged, clear_young(&host, gpas(0, 1), &policy).await);
                    sum.set(merge(sum.get(), aged));
                })
            });
        }
        build.finally(Invariant::D6, move |_| judge(&sum.get()));
    }))
}

fn merge(mut sum: Aged, more: Aged) -> Aged {
    sum.merge(&more);
    sum
}

const CMPXCHG: AgingPolicy = AgingPolicy { update: AgeUpdate::Cmpxchg, ..AgingPolicy::V6_15 };

fn x42(variant: Variant) -> Box<dyn Explorable> {
    let lost = variant.choose(LostRace::Retried, LostRace::LeftYoung);
    agers("X42", AgingPolicy { lost, ..CMPXCHG }, |aged| match aged.retries {
        0 => Ok(()),
        retries => Err(format!("{retries} compare-and-swaps tried again, as often as somebody is faster")),
    })
}

fn x43(variant: Variant) -> Box<dyn Explorable> {
    let lost = variant.choose(LostRace::TakenForDone, LostRace::LeftYoung);
    agers("X43", AgingPolicy { lost, ..CMPXCHG }, |aged| {
        if aged.made_old + aged.lost <= aged.young {
            return Ok(());
        }
        Err(format!(
            "{} leaves said to be made old, of {} young ones with {} races lost",
            aged.made_old, aged.young, aged.lost
        ))
    })
}

/// One after another: an access, aging, an access, a look.
fn p11<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let flush = variant.choose(YoungFlush::Elided, YoungFlush::IfYoung);
    let policy = AgingPolicy { flush, ..AgingPolicy::V6_12 };
    Box::new(Scenario::new("P11", arch, SmallVm::mapped(1)).setup(move |build| {
        let id = build.add_vcpu(vec![read(0)]);
        let hidden = Rc::new(Cell::new(false));
        let seen = hidden.clone();
        build.spawn_thread(id, move |host| {
            Box::pin(async move {
                vcpu::thread(host.clone(), id, plain()).await;
                clear_flush_young(&host, gpas(0, 1), &policy).await;
                host.assign(id, GuestWork::List(vec![read(0)]));
                vcpu::thread(host.clone(), id, plain()).await;
                let young = test_young(&host, gpas(0, 1), &policy).await.young;
                seen.set(young == 0);
            })
        });
        build.finally(Invariant::D5, move |_| {
            unless(hidden.get(), "the page was accessed after it was aged, and looks old")
        });
    }))
}

/// A page that the guest uses is unmapped from it, and then looked at by reclaim.
fn x46<A: Arch>(arch: A, variant: Variant) -> Box<dyn Explorable> {
    let handover = variant.choose(Handover::Dirty, Handover::AccessedAndDirty);
    let scenario = Scenario::new("X46", arch, SmallVm::mapped(1)).setup(|build| {
        let lost = Rc::new(Cell::new(false));
        let found = lost.clone();
        build.spawn("numa balancing", move |host| {
            Box::pin(async move {
                let notifier = Notifier::new(NotifierPolicy::V6_8);
                let invalidation = range_start(&host, &notifier, hvas(0, 1), mmu_sim::engine::Blockable::Yes).await;
                range_end(&host, &notifier, invalidation).await;
                found.set(matches!(host.rescan(hvas(0, 1)).await, Rescan::Old(_)));
            })
        });
        build.finally(Invariant::D1, move |_| {
            unless(lost.get(), "the entry was accessed, and its page is taken for idle")
        });
    });
    Box::new(scenario.limits(Limits { handover, ..Limits::default() }))
}
