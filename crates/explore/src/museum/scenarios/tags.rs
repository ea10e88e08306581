//! Tags of translations, and processors that guests come back to.

use mmu_core::{Format, Gpa, Hpa};
use mmu_sim::engine::{Bed, ExitReason, Host, VcpuId};
use mmu_sim::explore::{Explorable, Invariant, Leaks, Limits, Mutation, Scenario, SmallVm, read};
use mmu_sim::protocols::tags::{Erat, LpidGuest, SecondaryThreads, SharedTlb, TagRead, TaggedGuest, ThreadPolicy};
use mmu_sim::workload::GuestWork;

use super::super::formats::{arm, power};
use super::super::{Exhibit, Make, Variant};
use super::gpas;

pub(super) const EXHIBITS: &[Exhibit] = &[
    Exhibit {
        id: "A20",
        title: "the VMID that is invalidated was read before the guest got another one",
        breaks: &[Invariant::T1],
        arch: "arm64",
        build: Make::Own(a20),
    },
    Exhibit {
        id: "P05",
        title: "threads of a core are taken to share a TLB, and one of two is not flushed",
        breaks: &[Invariant::T1],
        arch: "power",
        build: Make::Own(p05),
    },
    Exhibit {
        id: "P06",
        title: "the ERAT is forgotten when a guest comes back to a processor",
        breaks: &[Invariant::T1],
        arch: "power",
        build: Make::Own(p06),
    },
    Exhibit {
        id: "P07",
        title: "threads of a core but the first run a guest under the LPID that the last one left there",
        breaks: &[Invariant::T9],
        arch: "power",
        build: Make::Own(p07),
    },
];

/// Why the flush at a roll-over is not missed.
const OTHERS: &str = "it is for the guests that get the old tags next, and there is one guest";

/// Mutations that none of these scenarios notices, and why.
pub(super) const UNNOTICED: &[(Mutation, &str)] = &[(Mutation::OmitFlush, OTHERS), (Mutation::LateFlush, OTHERS)];

const LIMITS: Limits = Limits { leaks: Leaks::Ignored, ..Limits::DEFAULT };

/// Where the leaf of an address is.
async fn leaf_of<F: Format>(host: &Host<F>, gpa: Gpa) -> Hpa {
    let (format, mut table) = (*host.format(), host.root().await);
    let geometry = *format.geometry();
    let mut level = geometry.root();
    loop {
        let at = table + 8 * geometry.index(level, gpa.raw()) as u64;
        let word = host.read(at).await;
        match level.down() {
            Some(down) if format.is_mapped(word) && !format.is_leaf(level, word) => {
                (table, level) = (format.next_table(level, word), down);
            }
            _ => return at,
        }
    }
}

/// VMIDs roll over while a page is taken from a guest that runs.
fn a20(variant: Variant) -> Box<dyn Explorable> {
    let order = variant.choose(TagRead::BeforeStore, TagRead::AfterStore);
    let scenario = Scenario::new("A20", arm(), SmallVm::mapped(1)).setup(move |build| {
        let root = build.root();
        let guest = TaggedGuest::new(build, root, 1);
        let id = build.add_vcpu(vec![read(0), read(0)]);
        build.spawn_thread(id, move |host| {
            Box::pin(async move {
                guest.load(&host, id).await;
                // A fault ends it: its page is gone for good.
                while host.vcpu_run(id).await.reason == ExitReason::Kicked {
                    guest.load(&host, id).await;
                }
            })
        });
        build.spawn("unmap", move |host| {
            Box::pin(async move {
                let leaf = leaf_of(&host, Gpa::new(0)).await;
                guest.zap(&host, leaf, order).await;
                host.drop_pages(gpas(0, 1)).await;
            })
        });
        build.spawn("roll-over", move |host| Box::pin(async move { guest.roll_over(&host, 2).await }));
    });
    Box::new(scenario.limits(LIMITS))
}

const FIRST: VcpuId = VcpuId(0);
const SECOND: VcpuId = VcpuId(1);

/// A vCPU hops from one thread to another and back; while it is away a page goes.
fn hops(name: &str, policy: ThreadPolicy) -> Box<dyn Explorable> {
    let scenario = Scenario::new(name, power(), SmallVm::mapped(1)).setup(move |build| {
        for _ in [FIRST, SECOND] {
            build.add_vcpu(vec![read(0)]);
        }
        let root = build.root();
        let guest = LpidGuest::new(build, root, 1, policy);
        build.spawn("vcpu", move |host| {
            Box::pin(async move {
                guest.prepare(&host, FIRST).await;
                host.vcpu_run(FIRST).await;
                guest.moves(&host, FIRST, SECOND).await;
                guest.prepare(&host, SECOND).await;
                let leaf = leaf_of(&host, Gpa::new(0)).await;
                guest.zap_here(&host, leaf, SECOND).await;
                host.drop_pages(gpas(0, 1)).await;
                guest.moves(&host, SECOND, FIRST).await;
                guest.prepare(&host, FIRST).await;
                host.assign(FIRST, GuestWork::List(vec![read(0)]));
                host.vcpu_run(FIRST).await;
            })
        });
    });
    Box::new(scenario.limits(LIMITS))
}

fn p05(variant: Variant) -> Box<dyn Explorable> {
    let shared = variant.choose(SharedTlb::PerCore, SharedTlb::AsBuilt);
    hops("P05", ThreadPolicy { shared, ..ThreadPolicy::RIGHT })
}

fn p06(variant: Variant) -> Box<dyn Explorable> {
    let erat = variant.choose(Erat::Forgotten, Erat::Flushed);
    hops("P06", ThreadPolicy { erat, ..ThreadPolicy::RIGHT })
}

/// A guest runs on a core where another one ran on the second thread.
fn p07(variant: Variant) -> Box<dyn Explorable> {
    let secondary = variant.choose(SecondaryThreads::Skip, SecondaryThreads::Load);
    let scenario = Scenario::new("P07", power(), SmallVm::mapped(1)).setup(move |build| {
        for _ in [FIRST, SECOND] {
            build.add_vcpu(Vec::new());
        }
        let root = build.root();
        // Another guest's empty tables.
        let Some(other) = build.alloc_words(8192) else { return };
        let before = LpidGuest::new(build, other.first, 2, ThreadPolicy::RIGHT);
        let guest = LpidGuest::new(build, root, 1, ThreadPolicy { secondary, ..ThreadPolicy::RIGHT });
        build.spawn("core", move |host| {
            Box::pin(async move {
                before.prepare(&host, SECOND).await;
                host.vcpu_run(SECOND).await;
                for thread in [FIRST, SECOND] {
                    guest.prepare(&host, thread).await;
                    host.vcpu_run(thread).await;
                }
            })
        });
    });
    Box::new(scenario.limits(LIMITS))
}
