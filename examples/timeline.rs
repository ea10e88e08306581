//! What happens while KVM deletes a memslot under four running vCPUs? A timeline to look at, and the events behind it.
//!
//! `cargo run --release --example timeline [TIMELINE.json [EVENTS.jsonl]]`, then open the first file in <https://ui.perfetto.dev>: one track
//! per vCPU and host actor; lock waits, RCU sections, flushes and faults are slices; interrupts are arrows.

use std::collections::BTreeMap;
use std::{env, fs};

use mmusim::sim::events::chrome::Timeline;
use mmusim::sim::events::{Collector, Extent, Trace, json};
use mmusim::{ByteUnits, Bytes, Cycles, GuestPaging, Machine, Mix, PageSize, PatternSpec, Platform, Populate, Seed};
use mmusim::{Target, Threads, VmSpec, Workload, ZapRequest, arch, compare_zap, strategies};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let machine = Machine::builtin("intel-granite-rapids-host").map_err(|errors| errors[0].clone())?;
    let memory = Bytes(64.MiB());
    let collector = Collector::new();
    let platform = Platform::new(arch::x86(&machine, memory)?, &machine).recording(&collector);
    let touched = PatternSpec { bytes: 8.MiB(), mix: Mix::Uniform, writes_percent: 30, accesses: 20_000 };
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
    // Linux 5.17 and 5.18: a flush for every table, then none at all.
    let chosen = [roots[1], roots[5]];
    let request = ZapRequest { range: memory, after: Cycles(200_000) };
    compare_zap(&platform, &vm, request, &chosen, Threads::Pool, || {})?;

    let (mut text, mut lines, mut timeline) = (String::new(), String::new(), Timeline::new());
    for (run, recording) in collector.take().iter().enumerate() {
        timeline.write(&mut text, recording);
        json::write(&mut lines, run, recording);
        println!("{}: {} events", recording.name, recording.events.len());
        let mut slices: BTreeMap<&str, (u64, Cycles)> = BTreeMap::new();
        for event in &recording.events {
            if let (Extent::Slice { took, .. }, false) = (event.extent, matches!(event.what, Trace::Guest { .. })) {
                let (times, cycles) = slices.entry(event.what.name()).or_default();
                *times += 1;
                *cycles += took;
            }
        }
        for (name, (times, cycles)) in slices {
            println!("    {times:>6} x {name:<22} {cycles:>12} cycles");
        }
    }
    timeline.finish(&mut text);
    let mut files = env::args().skip(1);
    for content in [text, lines] {
        if let Some(file) = files.next() {
            fs::write(&file, content)?;
            println!("wrote {file}");
        }
    }
    Ok(())
}
