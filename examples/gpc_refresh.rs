//! Does the refresh of a `gfn_to_pfn_cache` ever finish while other threads drop other pages, and is what it maps ever gone? Every form
//! that was or was proposed (seed thread 1, August 2024), on the three architectures.
//!
//! `cargo run --release --example gpc_refresh`

use mmusim::sim::experiment::gpc::{Refreshed, StormPlace, StormSpec, drop_a_page_in_use, refresh_in_storm};
use mmusim::sim::protocols::pfncache::forms;
use mmusim::{Arch, ByteUnits, Bytes, Cycles, Machine, Platform, arch};

/// Storms of one kind: its name, where, how many threads, and how long one invalidation and the pause after it last.
const STORMS: [(&str, StormPlace, u64, u64, u64); 5] = [
    ("2 threads drop pages below the cached one, briefly", StormPlace::Below, 2, 0, 500),
    ("8 threads drop pages below it, for long", StormPlace::Below, 8, 200_000, 1_000),
    ("64 threads drop pages below it, for long", StormPlace::Below, 64, 200_000, 1_000),
    ("8 threads drop pages on both sides of it, for long", StormPlace::BothSides, 8, 200_000, 1_000),
    ("8 threads drop pages that no memslot knows, for long", StormPlace::Elsewhere, 8, 200_000, 1_000),
];

fn outcome(refreshed: Refreshed) -> &'static str {
    match refreshed {
        Refreshed::InTheStorm => "in the storm",
        Refreshed::AfterTheStorm => "only after it",
        Refreshed::GivenUp => "STARVED",
    }
}

fn show<A: Arch>(platform: &Platform<A>) -> Result<(), Box<dyn std::error::Error>> {
    println!("{} ({})", platform.machine, platform.arch.name());
    for (name, place, threads, hold, pause) in STORMS {
        println!("\n  {name:<52} refreshed      rounds     time, us");
        for form in forms() {
            let spec = StormSpec { threads, place, hold: Cycles(hold), pause: Cycles(pause), times: 100 };
            let row = refresh_in_storm(platform, form, spec)?;
            let us = row.cycles.0 as f64 * 1e6 / platform.clock_hz as f64;
            println!("    {:50} {:<14} {:>6} {us:>12.1}", row.form, outcome(row.outcome), row.rounds);
        }
    }
    println!("\n  a page is dropped while its mapping is used, and refreshed meanwhile");
    for form in forms() {
        let found = drop_a_page_in_use(platform, form)?;
        println!("    {:50} {}", form.name, found.first().map_or("sound", |first| first));
    }
    println!();
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let memory = Bytes(64.MiB());
    let machine = |name| Machine::builtin(name).map_err(|errors| errors[0].clone());
    let (intel, arm, ibm) =
        (machine("intel-granite-rapids-host")?, machine("arm-neoverse-n1")?, machine("ibm-power9")?);
    show(&Platform::new(arch::x86(&intel, memory)?, &intel))?;
    show(&Platform::new(arch::arm64(&arm, memory)?, &arm))?;
    show(&Platform::new(arch::power(&ibm)?, &ibm))
}
