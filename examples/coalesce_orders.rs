//! What each way of turning pages back into blocks costs on Arm: the invalid window and the faults of each order, cache maintenance apart.
//!
//! The guest's 20 GiB are mapped by 4 KiB pages, as after dirty logging; then every vCPU writes to each of the twenty 1 GiB blocks that back them.
//! Published for this experiment (RFC of February 2021, without FEAT_S2FWB): 103.93 s at 40 vCPUs with maintenance for each fault, 2.96 s with maintenance by the
//! mapper, 0.37 s with the block installed first and no maintenance - which was the mistake. Run it with
//! `cargo run --release --example coalesce_orders`.

use std::cell::Cell;
use std::rc::Rc;

use mmusim::arm64::{Features, Stage1, Stage1Config, Stage2, Stage2Config};
use mmusim::core::{GpaRange, machine::MachineError};
use mmusim::sim::engine::{HostCounters, LockId, LockMode, Stopped, VcpuId};
use mmusim::sim::experiment::build_without_threads;
use mmusim::sim::protocols::coalesce::{CacheMaintenance, CoalescePolicy, Freeing, Order};
use mmusim::sim::protocols::fault::{FaultPolicy, Faults, LevelChoice, TableInTheWay};
use mmusim::sim::protocols::split::{SplitPolicy, eager_split};
use mmusim::sim::protocols::unmap::{UnmapPolicy, unmap_range};
use mmusim::sim::protocols::vcpu::run;
use mmusim::sim::selftests::phases::Phases;
use mmusim::sim::workload::GuestWork;
use mmusim::{
    Arch2, Bytes, Cycles, Gpa, GuestPaging, Gva, Machine, Mix, PageSize, PatternSpec, Platform, Populate, Seed, VmSpec,
    Workload,
};

const BLOCKS: u64 = 20;
const BLOCK: PageSize = PageSize::SIZE_1G;

/// What one way cost.
struct Row {
    rebuild: Cycles,
    host: HostCounters,
    faults: u64,
}

/// Rebuilds all blocks with `vcpus` vCPUs.
fn rebuild(platform: &Platform<Arch2<Stage1, Stage2>>, vcpus: usize, coalesce: CoalescePolicy) -> Result<Row, String> {
    let memory = Bytes(BLOCKS * BLOCK.bytes());
    let vm = VmSpec {
        memory,
        vcpus,
        page: BLOCK,
        guest: GuestPaging::Flat,
        populate: Populate::Mapped,
        workload: Workload::Idle,
        seed: Seed(1),
    };
    let mut sim = build_without_threads(platform, &vm).map_err(|error| error.to_string())?;
    let lock = if coalesce.freeing == Freeing::Immediate { LockMode::Write } else { LockMode::Read };
    let policy = FaultPolicy {
        level: LevelChoice::ByBacking,
        tables: TableInTheWay::Coalesce,
        coalesce,
        ..FaultPolicy::new(lock, BLOCK)
    };
    let phases = Phases::new(&mut sim);
    for vcpu in (0..vcpus).map(VcpuId) {
        sim.spawn_vcpu(vcpu, move |host| {
            Box::pin(async move {
                let mut faults = Faults::new(vcpu, policy);
                phases.wait_for(&host, 1).await;
                let mix = Mix::Strided { stride: BLOCK.bytes() };
                let spec = PatternSpec { bytes: memory.0, mix, writes_percent: 100, accesses: BLOCKS };
                host.assign(vcpu, GuestWork::Pattern { spec, base: Gva::new(0), seed: Seed(1) });
                // Every access completes: nothing here can make a run fail.
                let _ = run(&host, vcpu, &mut faults).await;
                phases.done(&host).await;
                faults.release(&host).await;
            })
        });
    }
    let taken = Rc::new(Cell::new((Cycles::ZERO, HostCounters::default())));
    let slot = Rc::clone(&taken);
    sim.spawn("main", Cycles::ZERO, move |host| {
        Box::pin(async move {
            let range = GpaRange::new(Gpa::new(0), memory);
            host.lock(LockId::MMU, LockMode::Write).await;
            let root = host.root().await;
            let policy = SplitPolicy::ARM64_6_5;
            // Tables for all of it fit: nothing is left to split later.
            let _ = eager_split(&host, root, range, PageSize::SIZE_4K, &policy).await;
            host.unlock(LockId::MMU).await;
            // The first page of each block is not mapped: what touches it finds a table where the block could be.
            for block in 0..BLOCKS {
                let first = GpaRange::new(Gpa::new(block * BLOCK.bytes()), PageSize::SIZE_4K.into());
                unmap_range(&host, first, UnmapPolicy::V6_6).await;
            }
            let before = host.counters();
            let cycles = phases.run(&host).await;
            slot.set((cycles, host.counters().since(&before)));
        })
    });
    if sim.run() != Stopped::Finished || sim.destroy() != Stopped::Finished {
        return Err("somebody waits for ever".to_owned());
    }
    if let Some(violation) = sim.world().violations().first() {
        return Err(violation.to_string());
    }
    let (rebuild, host) = taken.get();
    Ok(Row { rebuild, host, faults: sim.vcpu_stats().iter().map(|vcpu| vcpu.faults).sum() })
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let machine = Machine::builtin("arm-neoverse-n1").map_err(|errors: Vec<MachineError>| errors[0].clone())?;
    let features = Features { fwb: false, ..Features::default() };
    let one = Stage1Config { features, ..Stage1Config::default() }.build()?;
    let two = Stage2Config { features, ..Stage2Config::default() }.build()?;
    let platform = Platform::new(Arch2 { name: "arm64", one, two }, &machine);
    let seconds = |cycles: Cycles| cycles.0 as f64 / platform.clock_hz as f64;

    let orders = [("unmap first", Order::UnmapFirst), ("install first", Order::InstallFirst)];
    let maintenance = [
        ("per fault (5.10)", CacheMaintenance::PerFault),
        ("by the mapper (5.14)", CacheMaintenance::InMapHandler),
        ("skipped (RFC; wrong)", CacheMaintenance::Skipped),
    ];
    let forms = orders.iter().flat_map(|order| maintenance.map(|cmo| (order, cmo)));
    let mut rows: Vec<(String, CoalescePolicy)> = forms
        .map(|(&(order_name, order), (cmo_name, maintenance))| {
            (
                format!("{order_name:<13}  {cmo_name:<20}"),
                CoalescePolicy { order, maintenance, ..CoalescePolicy::V5_14 },
            )
        })
        .collect();
    rows.push((format!("{:<35}", "Linux 6.2: freed by RCU, shared lock"), CoalescePolicy::V6_2));
    rows.push((format!("{:<35}", "Linux 6.6: range invalidation"), CoalescePolicy::V6_6));

    let clean = platform.costs.clean_4k.times(BLOCK.bytes() >> 12);
    println!(
        "{BLOCKS} blocks of {BLOCK}; cleaning one takes {:.3} s, all {:.2} s\n",
        seconds(clean),
        seconds(clean.times(BLOCKS))
    );
    for vcpus in [1, 40] {
        println!("{vcpus} vCPUs");
        println!(
            "{:<36}  rebuild s  less cleaning s  invalid s  longest ms   faults  retried  cleaned",
            "order and maintenance"
        );
        for (name, policy) in &rows {
            let Row { rebuild, host, faults } = rebuild(&platform, vcpus, *policy)?;
            let cleaning = platform.costs.clean_4k.times(host.cleaned_bytes >> 12);
            println!(
                "{name:<36}  {:>9.3}  {:>15.3}  {:>9.3}  {:>10.3}  {faults:>7}  {:>7}  {:>7}",
                seconds(rebuild),
                seconds(rebuild.since(cleaning)),
                seconds(host.break_cycles),
                1e3 * seconds(host.longest_break),
                host.retried_faults,
                Bytes(host.cleaned_bytes).to_string(),
            );
        }
        println!();
    }
    Ok(())
}
