//! A zap of everything, for benches.

use mmu_core::{Bytes, Cycles, Gpa, GpaRange};
use mmu_sim::arch::Arch;
use mmu_sim::engine::Sim;
use mmu_sim::experiment::zap::{Target, strategies};
use mmu_sim::protocols::{memslot, notifier};

/// Spawns a host actor that zaps all of a guest of so many bytes by one of the strategies of `compare zap`.
pub fn spawn<A: Arch>(sim: &mut Sim<A>, memory: u64, strategy: usize) {
    let strategy = strategies()[strategy];
    sim.spawn("zap", Cycles::ZERO, move |host| {
        Box::pin(async move {
            match strategy.target {
                Target::Range => {
                    let all = GpaRange::new(Gpa::new(0), Bytes(memory));
                    notifier::invalidate_range(&host, all, &strategy.policy).await;
                }
                Target::Root => memslot::zap_all_fast(&host, &strategy.policy).await.expect("room for a root"),
            }
        })
    });
}
