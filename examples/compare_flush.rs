//! What does it cost the running vCPUs when KVM zaps a whole root, and how much does the way of flushing matter?
//!
//! `cargo run --release --example compare_flush`

use mmusim::{ByteUnits, Bytes, Cycles, GuestPaging, Machine, Mix, PageSize, PatternSpec, Platform, Populate, Seed};
use mmusim::{Target, Threads, VmSpec, Workload, ZapRequest, arch, compare_zap, strategies};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let machine = Machine::builtin("intel-granite-rapids-host").map_err(|errors| errors[0].clone())?;
    let memory = Bytes(256.MiB());
    let platform = Platform::new(arch::x86(&machine, memory)?, &machine);
    let touched =
        PatternSpec { bytes: 16.MiB(), mix: Mix::Zipf { hundredths: 99 }, writes_percent: 30, accesses: 200_000 };
    let vm = VmSpec {
        memory,
        vcpus: 4,
        page: PageSize::SIZE_4K,
        guest: GuestPaging::FirstTouch(PageSize::SIZE_4K),
        populate: Populate::Mapped,
        workload: Workload::Pattern(touched),
        seed: Seed(1),
    };
    let roots: Vec<_> = strategies().into_iter().filter(|strategy| strategy.target == Target::Root).collect();
    let request = ZapRequest { range: memory, after: Cycles(1_000_000) };
    let report = compare_zap(&platform, &vm, request, &roots, Threads::Pool, || {})?;
    println!("4 vCPUs on {} ({}); the whole root is zapped under them", platform.machine, platform.arch.name);
    println!(
        "{:<48} {:>12} {:>15} {:>8} {:>8} {:>14}",
        "strategy", "zap, ms", "lost/vCPU, ms", "flushes", "faults", "no resched, ms"
    );
    let ms = |cycles: Cycles| cycles.0 as f64 * 1e3 / platform.clock_hz as f64;
    for row in &report.rows {
        println!(
            "{:<48} {:>12.3} {:>15.3} {:>8} {:>8} {:>14.4}",
            row.strategy.name,
            ms(row.zap_cycles),
            ms(Cycles(row.lost_cycles.mean)),
            row.remote_flushes,
            row.faults,
            ms(row.longest_unscheduled),
        );
    }
    Ok(())
}
