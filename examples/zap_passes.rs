//! How long does a processor get no chance to reschedule while a whole root is zapped, and how does that grow with the guest?
//!
//! Up to Linux 5.17 each top-level entry was torn down without a break, and the last user of a root did not even pause between them: soft
//! lockups at 32 TB. 5.18 takes 1G entries first, 6.9 single pages. `cargo run --release --example zap_passes`

use mmusim::sim::engine::Stopped;
use mmusim::sim::experiment::build;
use mmusim::sim::protocols::iter::Yield;
use mmusim::sim::protocols::memslot;
use mmusim::sim::protocols::zap::ZapPolicy;
use mmusim::{
    Arch, ByteUnits, Bytes, Cycles, GuestPaging, Machine, PageSize, Platform, Populate, Seed, VmSpec, Workload, arch,
};

/// Total time, longest stretch without a chance to reschedule, longest RCU read section.
fn zap<A: Arch>(
    platform: &Platform<A>,
    page: PageSize,
    memory: Bytes,
    policy: ZapPolicy,
) -> Result<[Cycles; 3], String> {
    let vm = VmSpec {
        memory,
        vcpus: 1,
        page,
        guest: GuestPaging::Flat,
        populate: Populate::Mapped,
        workload: Workload::Idle,
        seed: Seed(1),
    };
    let mut sim = build(platform, &vm).map_err(|error| error.to_string())?;
    sim.spawn("zap", Cycles(1_000), move |host| {
        Box::pin(async move {
            // Out of tables nothing would be zapped, which the figures would show.
            let _ = memslot::zap_all_fast(&host, &policy).await;
        })
    });
    if sim.run() != Stopped::Finished {
        return Err("somebody waits for ever".to_owned());
    }
    let stats = sim.actors().map(|(_, stats)| *stats).next().unwrap_or_default();
    Ok([stats.finished.since(stats.started), stats.longest_unscheduled, stats.longest_rcu])
}

fn show<A: Arch>(platform: &Platform<A>, page: PageSize) -> Result<(), String> {
    println!(
        "{} ({}), {page} pages; seconds: total, longest stretch, longest RCU section",
        platform.machine,
        platform.arch.name()
    );
    let policies = [
        ("5.17, last user: one pass, never yields", ZapPolicy { yielding: Yield::Never, ..ZapPolicy::V5_17 }),
        ("5.17: one pass", ZapPolicy::V5_17),
        ("5.18: 1G, root", ZapPolicy::V5_18),
        ("6.9: 4K, 2M, 1G, root", ZapPolicy::V6_9),
    ];
    let seconds = |cycles: Cycles| cycles.0 as f64 / platform.clock_hz as f64;
    for terabytes in [1u64, 8, 32, 64] {
        for (name, policy) in policies {
            let [total, stretch, rcu] = zap(platform, page, Bytes(terabytes.TiB()), policy)?.map(seconds);
            println!("{terabytes:>3} TiB {total:>12.3} {stretch:>14.6} {rcu:>14.6}   {name}");
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let sheet = |name| Machine::builtin(name).map_err(|errors| errors[0].clone());
    let memory = Bytes(64.TiB());
    let machine = sheet("intel-granite-rapids-host")?;
    show(&Platform::new(arch::x86(&machine, memory)?, &machine), PageSize::SIZE_4K)?;
    let machine = sheet("arm-neoverse-n1")?;
    show(&Platform::new(arch::arm64(&machine, memory)?, &machine), PageSize::SIZE_4K)?;
    let machine = sheet("ibm-power9")?;
    show(&Platform::new(arch::power(&machine)?, &machine), PageSize::SIZE_64K)?;
    Ok(())
}
