//! The rows, by topic. A scenario is as small as shows the defect.

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
use mmu_sim::protocols::fault::FaultPolicy;
use mmu_sim::protocols::vcpu;

use super::Exhibit;

/// A page of the smallest size.
const PAGE: u64 = 4096;
/// What one last-level table of 4K pages maps.
const TABLE: u64 = 2 << 20;

/// The rows of each topic, by the name of its file.
pub(super) fn topics() -> Vec<(&'static str, &'static [Exhibit])> {
    vec![
        ("zap", zap::EXHIBITS),
        ("roots", roots::EXHIBITS),
        ("nx", nx::EXHIBITS),
        ("notifier", notifier::EXHIBITS),
        ("gpc", gpc::EXHIBITS),
        ("aging", aging::EXHIBITS),
        ("resize", resize::EXHIBITS),
        ("dirty", dirty::EXHIBITS),
        ("power", power::EXHIBITS),
        ("mapping", mapping::EXHIBITS),
        ("shadow", shadow::EXHIBITS),
        ("tags", tags::EXHIBITS),
        ("walks", walks::EXHIBITS),
    ]
}

pub(super) fn all() -> Vec<Exhibit> {
    topics().into_iter().flat_map(|(_, exhibits)| exhibits).copied().collect()
}

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
