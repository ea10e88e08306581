//! A protocol of one's own, run adversarially: an unmap that gives the lock back before it flushes, found in a few executions; and the same
//! with the flush in time, of which every order of steps is looked at.
//!
//! `cargo run --release --example explore`

use mmusim::core::WalkCaches;
use mmusim::sim::engine::{Apply, Atomicity, LockId, LockMode, ReschedCheck};
use mmusim::sim::explore::{Budget, Scenario, SmallVm, Strategy, read};
use mmusim::sim::protocols::fault::FaultPolicy;
use mmusim::sim::protocols::iter::{TdpIter, bulk};
use mmusim::sim::protocols::vcpu;
use mmusim::{Bytes, Gpa, GpaRange, Level, Machine, PageSize, arch};

/// When the unmap flushes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FlushTime {
    BeforeUnlock,
    AfterUnlock,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let machine = Machine::builtin("intel-granite-rapids-host").map_err(|errors| errors[0].clone())?;
    let x86 = arch::x86(&machine, Bytes(1 << 30))?;
    let page = GpaRange::new(Gpa::new(0), Bytes(4096));
    for time in [FlushTime::AfterUnlock, FlushTime::BeforeUnlock] {
        let policy = FaultPolicy::new(LockMode::Read, PageSize::SIZE_4K);
        let scenario = Scenario::new("unmap", x86, SmallVm::mapped(1))
            .vcpu([read(0)], move |host, id| Box::pin(vcpu::thread(host, id, policy)))
            .actor("unmap", move |host| {
                Box::pin(async move {
                    host.lock(LockId::MMU, LockMode::Write).await;
                    let root = host.root().await;
                    let mut iter = TdpIter::new(*host.format(), root, Level::LAST, page.start, page.end());
                    while iter.next(&host).await {
                        if iter.is_leaf() {
                            bulk(&host, &mut iter, Apply::Set(0), Atomicity::Atomic, None, ReschedCheck::Never).await;
                        }
                    }
                    if time == FlushTime::BeforeUnlock {
                        host.flush_range(page, WalkCaches::Keep).await;
                    }
                    host.unlock(LockId::MMU).await;
                    if time == FlushTime::AfterUnlock {
                        host.flush_range(page, WalkCaches::Keep).await;
                    }
                })
            });
        let report = scenario.explore(&Strategy::Exhaustive, Budget::schedules(100_000));
        println!("{} after {} executions", report.verdict.name(), report.stats.executions);
        if let Some(failure) = report.failure {
            println!("{}", failure.table());
        }
    }
    Ok(())
}
