//! Two walkers share a lock and yield to each other: with the yield rule of Linux 5.10 neither ever advances.
//!
//! `cargo run --release --example yielding_walkers`

use std::cell::RefCell;
use std::rc::Rc;

use mmusim::sim::engine::Stopped;
use mmusim::sim::experiment::build;
use mmusim::sim::protocols::iter::Yield;
use mmusim::sim::protocols::walkers::{Walked, write_protect};
use mmusim::{
    Arch, ByteUnits, Bytes, Cycles, Gpa, GpaRange, GuestPaging, Machine, PageSize, Platform, Populate, Seed, VmSpec,
    Workload, arch,
};

/// Yields in a row without progress after which a walker is taken for livelocked.
const PATIENCE: u32 = 1_000;

/// How both walkers ended, and when the later one did.
fn walk<A: Arch>(platform: &Platform<A>, page: PageSize, yielding: Yield) -> Result<(Vec<Walked>, Cycles), String> {
    let vm = VmSpec {
        memory: Bytes(64.MiB()),
        vcpus: 1,
        page,
        guest: GuestPaging::Flat,
        populate: Populate::Mapped,
        workload: Workload::Idle,
        seed: Seed(1),
    };
    let mut sim = build(platform, &vm).map_err(|error| error.to_string())?;
    let ended = Rc::new(RefCell::new(Vec::new()));
    for start in [Cycles(1_000), Cycles(1_500)] {
        let ended = Rc::clone(&ended);
        sim.spawn("walker", start, move |host| {
            Box::pin(async move {
                let range = GpaRange::new(Gpa::new(0), Bytes(64.MiB()));
                let walked = write_protect(&host, range, yielding, PATIENCE).await;
                ended.borrow_mut().push(walked);
            })
        });
    }
    if sim.run() != Stopped::Finished {
        return Err("somebody waits for ever".to_owned());
    }
    let last = sim.actors().map(|(_, stats)| stats.finished).max().unwrap_or_default();
    Ok((ended.take(), last))
}

fn show<A: Arch>(platform: &Platform<A>, page: PageSize) -> Result<(), String> {
    println!("{} ({}): two walkers write-protect the same 64 MiB", platform.machine, platform.arch.name());
    let rules = [
        ("5.10: after each write, start over at the entry just written", Yield::AfterWorkOnly),
        ("asking first, without a mark of progress", Yield::NoProgressRule),
        ("5.12: asking first, once for each frame", Yield::YieldedGfn),
    ];
    for (name, yielding) in rules {
        let (ended, at) = walk(platform, page, yielding)?;
        println!("  {name}");
        for (i, walked) in ended.iter().enumerate() {
            match walked {
                Walked::Through { writes } => println!("    walker {i}: through after {writes} writes"),
                Walked::NoProgress { at, yields, writes } => {
                    println!(
                        "    walker {i}: LIVELOCK at {at}: gave up after {yields} yields without progress, {writes} writes"
                    );
                }
            }
        }
        println!("    over after {:.3} ms", at.0 as f64 * 1e3 / platform.clock_hz as f64);
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let sheet = |name| Machine::builtin(name).map_err(|errors| errors[0].clone());
    let memory = Bytes(64.MiB());
    let machine = sheet("intel-granite-rapids-host")?;
    show(&Platform::new(arch::x86(&machine, memory)?, &machine), PageSize::SIZE_4K)?;
    let machine = sheet("arm-neoverse-n1")?;
    show(&Platform::new(arch::arm64(&machine, memory)?, &machine), PageSize::SIZE_4K)?;
    let machine = sheet("ibm-power9")?;
    show(&Platform::new(arch::power(&machine)?, &machine), PageSize::SIZE_64K)?;
    Ok(())
}
