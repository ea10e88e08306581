//! A protocol of one's own: age every page of a guest while its vCPUs run, with and without the lock.
//!
//! The `async fn` is all there is to write; a variant is a value passed to it. Run it with
//! `cargo run --release --example own_protocol`.

use mmusim::sim::engine::{Apply, Atomicity, Host, LockId, LockMode, ReschedCheck, Sim, Stopped};
use mmusim::sim::experiment::build;
use mmusim::sim::protocols::iter::{TdpIter, bulk, skip_run};
use mmusim::{
    Arch, ByteUnits, Bytes, Cycles, Format, Gpa, GuestPaging, Level, Machine, Mix, PageSize, PatternSpec, Platform,
    Populate, Seed, VmSpec, Workload, arch,
};

/// How the walk is protected.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Aging {
    /// Under `mmu_lock`, alone.
    Locked,
    /// Inside an RCU section only.
    Lockless,
}

/// Clears the accessed flag of every leaf below the VM's root. No flush: a cached translation may hide a later access
/// until it is evicted, which reclaim tolerates.
async fn age_all<F: Format>(host: Host<F>, bytes: u64, aging: Aging) {
    if aging == Aging::Locked {
        host.lock(LockId::MMU, LockMode::Write).await;
    }
    host.rcu_read_lock().await;
    let clear = Apply::Mask { and: !host.format().accessed_mask(), or: 0 };
    let root = host.root().await;
    let mut iter = TdpIter::new(*host.format(), root, Level::LAST, Gpa::new(0), Gpa::new(bytes));
    while iter.next(&host).await {
        if iter.is_leaf() {
            bulk(&host, &mut iter, clear, Atomicity::Atomic, None, ReschedCheck::Never).await;
        } else {
            skip_run(&host, &mut iter, ReschedCheck::Never).await;
        }
    }
    host.rcu_read_unlock().await;
    if aging == Aging::Locked {
        host.unlock(LockId::MMU).await;
    }
}

/// When the slowest vCPU finished, how long a pass took, and how long faults waited for the lock.
fn run<A: Arch>(platform: &Platform<A>, vm: &VmSpec, aging: Aging) -> Result<(Cycles, Cycles, Cycles), String> {
    let mut sim: Sim<A> = build(platform, vm).map_err(|error| error.to_string())?;
    let bytes = vm.memory.0;
    let aging = sim.spawn("age", Cycles(500_000), move |host| Box::pin(age_all(host, bytes, aging)));
    if sim.run() != Stopped::Finished {
        return Err(format!("actor {aging} waits for ever"));
    }
    let pass = sim.actors().map(|(_, stats)| stats.finished - stats.started).sum();
    let slowest = sim.vcpu_stats().iter().map(|stats| stats.finished).max().unwrap_or_default();
    Ok((slowest, pass, sim.world().lock_wait()))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let machine = Machine::builtin("intel-granite-rapids-host").map_err(|errors| errors[0].clone())?;
    let memory = Bytes(256.MiB());
    let platform = Platform::new(arch::x86(&machine, memory)?, &machine);
    // Faults all the way: the guest starts with nothing mapped, so that the lock matters.
    let pattern = PatternSpec { bytes: 16.MiB(), mix: Mix::Uniform, writes_percent: 50, accesses: 50_000 };
    let vm = VmSpec {
        memory,
        vcpus: 8,
        page: PageSize::SIZE_4K,
        guest: GuestPaging::Flat,
        populate: Populate::ByFaults,
        workload: Workload::Pattern(pattern),
        seed: Seed(1),
    };
    println!("8 vCPUs fault pages in while the host ages them; milliseconds");
    println!("{:<10} {:>12} {:>22} {:>20}", "aging", "one pass", "faults wait in all", "slowest vCPU done");
    let ms = |cycles: Cycles| cycles.0 as f64 * 1e3 / platform.clock_hz as f64;
    for (name, aging) in [("locked", Aging::Locked), ("lockless", Aging::Lockless)] {
        let (slowest, pass, wait) = run(&platform, &vm, aging)?;
        println!("{name:<10} {:>12.3} {:>22.3} {:>20.3}", ms(pass), ms(wait), ms(slowest));
    }
    Ok(())
}
