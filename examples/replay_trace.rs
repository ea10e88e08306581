//! Replay a recorded trace through one vCPU of each architecture: where do its translations come from?
//!
//! `cargo run --release --example replay_trace -- [TRACE]`; the default is the shipped trace.

use mmusim::sim::engine::VcpuStats;
use mmusim::sim::experiment::build;
use mmusim::{
    Arch, ByteUnits, Bytes, GuestPaging, Machine, PageSize, Platform, Populate, ReadOptions, Seed, TraceSpec, VmSpec,
    Workload, arch,
};

fn replay<A: Arch>(platform: &Platform<A>, page: PageSize, trace: &str) -> Result<VcpuStats, String> {
    let spec = TraceSpec { path: trace.into(), options: ReadOptions::default(), accesses: 2_000_000 };
    let vm = VmSpec {
        memory: Bytes(256.MiB()),
        vcpus: 1,
        page,
        guest: GuestPaging::FirstTouch(page),
        populate: Populate::Mapped,
        workload: Workload::Trace(spec),
        seed: Seed(1),
    };
    let mut sim = build(platform, &vm).map_err(|error| error.to_string())?;
    sim.run();
    match sim.failure() {
        Some(why) => Err(why),
        None => Ok(sim.vcpu_stats().iter().fold(VcpuStats::default(), VcpuStats::merge)),
    }
}

fn show(name: &str, stats: &VcpuStats) {
    let percent = |n: u64| 100.0 * n as f64 / stats.accesses as f64;
    println!(
        "{name:6} {:>9} accesses, {:6.3} % in the first-level TLB, {:6.3} % in the second, {:6.3} % walks of {:.2} + {:.2} references",
        stats.accesses,
        percent(stats.l1_hits),
        percent(stats.l2_hits),
        percent(stats.walks),
        stats.stage1_references as f64 / stats.walks as f64,
        stats.stage2_references as f64 / stats.walks as f64,
    );
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let trace = std::env::args().nth(1).unwrap_or_else(|| "traces/sqlite3.mmut.zst".to_owned());
    let sheet = |name| Machine::builtin(name).map_err(|errors| errors[0].clone());
    let memory = Bytes(256.MiB());
    let machine = sheet("intel-granite-rapids-host")?;
    show("x86", &replay(&Platform::new(arch::x86(&machine, memory)?, &machine), PageSize::SIZE_4K, &trace)?);
    let machine = sheet("arm-neoverse-n1")?;
    show("arm64", &replay(&Platform::new(arch::arm64(&machine, memory)?, &machine), PageSize::SIZE_4K, &trace)?);
    let machine = sheet("ibm-power9")?;
    show("power", &replay(&Platform::new(arch::power(&machine)?, &machine), PageSize::SIZE_64K, &trace)?);
    Ok(())
}
