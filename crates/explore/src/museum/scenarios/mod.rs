//! The rows, by topic. A scenario is as small as shows the defect.

/// A scenario of several architectures, of all unless told which.
macro_rules! any {
    ($build:ident) => {
        any!($build on X86, Arm64, Power)
    };
    ($build:ident on $($arch:ident),+) => {
        crate::museum::Make::On(&[$(crate::museum::Architecture::$arch),+], |arch, variant| match arch {
            crate::museum::Architecture::X86 => $build(crate::museum::formats::x86(), variant),
            crate::museum::Architecture::Arm64 => $build(crate::museum::formats::arm(), variant),
            crate::museum::Architecture::Power => $build(crate::museum::formats::power(), variant),
        })
    };
}

mod aging;
mod dirty;
mod gpc;
mod mapping;
mod notifier;
mod nx;
mod power;
mod resize;
mod roots;
mod shadow;
mod tags;
mod walks;
mod zap;

use mmu_core::{Bytes, Format, Gpa, GpaRange, Hva, HvaRange, PageSize};
use mmu_sim::engine::{ActorFuture, Host, LockMode, Var, VcpuId, WaitQueue};
use mmu_sim::experiment::vm::GUEST_MEMORY;
use mmu_sim::explore::{Mutation, Sharing};
use mmu_sim::protocols::fault::FaultPolicy;
use mmu_sim::protocols::vcpu;

use super::Exhibit;

/// A page of the smallest size.
const PAGE: u64 = 4096;
/// What one last-level table of 4K pages maps.
const TABLE: u64 = 2 << 20;

/// A file of rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Topic {
    /// The name of the file.
    pub(super) name: &'static str,
    pub(super) rows: &'static [Exhibit],
    /// What actors of these scenarios have in common beside operations.
    pub(super) sharing: Sharing,
    /// Mutations that no scenario of the topic notices, and why that is no gap; what can be told from who takes part needs no entry.
    pub(super) unnoticed: &'static [(Mutation, &'static str)],
}

/// The rows of each topic.
pub(super) fn topics() -> [Topic; 13] {
    use Sharing::{Memory, Operations};
    let topic = |name, rows, sharing, unnoticed| Topic { name, rows, sharing, unnoticed };
    [
        topic("zap", zap::EXHIBITS, Operations, zap::UNNOTICED),
        // Lists of roots and the queue of their workers.
        topic("roots", roots::EXHIBITS, Memory, roots::UNNOTICED),
        // The list of pages that were split.
        topic("nx", nx::EXHIBITS, Memory, nx::UNNOTICED),
        topic("notifier", notifier::EXHIBITS, Operations, notifier::UNNOTICED),
        // The list of caches.
        topic("gpc", gpc::EXHIBITS, Memory, gpc::UNNOTICED),
        topic("aging", aging::EXHIBITS, Operations, aging::UNNOTICED),
        topic("resize", resize::EXHIBITS, Operations, resize::UNNOTICED),
        // What a collector has found, in its order.
        topic("dirty", dirty::EXHIBITS, Memory, dirty::UNNOTICED),
        topic("power", power::EXHIBITS, Operations, power::UNNOTICED),
        topic("mapping", mapping::EXHIBITS, Operations, mapping::UNNOTICED),
        // What several actors note for the end.
        topic("shadow", shadow::EXHIBITS, Memory, shadow::UNNOTICED),
        topic("tags", tags::EXHIBITS, Operations, tags::UNNOTICED),
        topic("walks", walks::EXHIBITS, Operations, walks::UNNOTICED),
    ]
}

pub(super) fn all() -> Vec<Exhibit> {
    topics().into_iter().flat_map(|topic| topic.rows).copied().collect()
}

/// The topic that a row belongs to.
pub(super) fn topic_of(id: &str) -> Option<Topic> {
    topics().into_iter().find(|topic| topic.rows.iter().any(|row| row.id == id))
}

/// Why no fault misses its fences.
const FENCES: &str = "the read barrier of a fault orders its look at the sequence before the look-up of the page, and the primary MMU answers by what \
                      is so now; looks without the lock are repeated under mmu_lock, whose hand-over orders what range_end wrote";
/// Why entries need not be released where a leaf or an empty table is put in place.
const WHOLE: &str =
    "what is released is a leaf or a link to an empty table: there is nothing behind it that a reader could miss";
/// Why a version of the memslots need not be released.
const SLOTS: &str = "what is released is the number of a version of the memslots, which are Rust data: whoever reads it finds all of them";

/// A vCPU thread that handles faults by this policy.
fn thread<F: Format>(policy: FaultPolicy) -> impl Fn(Host<F>, VcpuId) -> ActorFuture + Send + Sync + 'static {
    move |host, id| Box::pin(vcpu::thread(host, id, policy))
}

/// The plainest fault handler.
fn plain() -> FaultPolicy {
    FaultPolicy::new(LockMode::Read, PageSize::SIZE_4K)
}

/// Host addresses of so many pages of guest memory from the `first` on.
fn hvas(first: u64, pages: u64) -> HvaRange {
    HvaRange::new(Hva::new(GUEST_MEMORY.raw() + first * PAGE), Bytes(pages * PAGE))
}

/// Their guest addresses.
fn gpas(first: u64, pages: u64) -> GpaRange {
    GpaRange::new(Gpa::new(first * PAGE), Bytes(pages * PAGE))
}

/// Waits until a variable is not 0; whoever sets it wakes the queue.
async fn wait_for<F: Format>(host: &Host<F>, done: Var, waiting: WaitQueue) {
    loop {
        host.prepare_to_wait(waiting).await;
        if host.load_acquire(done).await != 0 {
            return host.finish_wait(waiting).await;
        }
        host.schedule(waiting).await;
    }
}

/// What a scenario says when something is so that must not be.
fn unless(wrong: bool, what: &str) -> Result<(), String> {
    if wrong { Err(what.to_owned()) } else { Ok(()) }
}

/// What a scenario says when there is more of something than its bound.
fn at_most(bound: u64, found: u64, what: &str) -> Result<(), String> {
    if found <= bound { Ok(()) } else { Err(format!("{found} {what}; {bound} are allowed")) }
}
