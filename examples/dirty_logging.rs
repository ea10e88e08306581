//! What does it cost to know which pages a guest writes? Three ways of noticing, two of keeping, lazy and eager splits, three architectures.
//!
//! `cargo run --release --example dirty_logging [MIB_PER_VCPU [VCPUS]]`: each vCPU writes all of its memory, backed by 2 MiB pages, once
//! unlogged and twice logged. Seconds are simulated. `per page` is what one logged 4K or 64K page costs the vCPU beyond an unlogged one.

use mmusim::core::{Format, Level};
use mmusim::sim::protocols::dirty_log::{DirtyPolicy, Manual, SplitWhen, Tracking};
use mmusim::sim::protocols::split::SplitPolicy;
use mmusim::sim::selftests::SelftestError;
use mmusim::sim::selftests::dirty_log_perf::{Options, run};
use mmusim::{Arch, ByteUnits, Bytes, Cycles, Machine, PageSize, Platform, arch};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let mib = arguments.next().map_or(Ok(16), |text| text.parse::<u64>())?;
    let vcpus = arguments.next().map_or(Ok(2), |text| text.parse::<usize>())?;
    let memory = Bytes(mib.MiB() * vcpus as u64);
    println!("{vcpus} vCPUs write {mib} MiB each, backed by 2 MiB pages; milliseconds of simulated time");
    println!(
        "{:<6} {:<14} {:<7} {:<6} {:>9} {:>9} {:>9} {:>8} {:>8} {:>8} {:>8}",
        "arch",
        "noticed by",
        "kept in",
        "split",
        "enable",
        "1st pass",
        "2nd pass",
        "read",
        "disable",
        "faults",
        "per page"
    );
    let machine = |name| Machine::builtin(name).map_err(|errors| errors[0].clone());
    let sheet = machine("intel-granite-rapids-host")?;
    table(&Platform::new(arch::x86(&sheet, memory)?, &sheet), mib, vcpus)?;
    let sheet = machine("arm-neoverse-n1")?;
    table(&Platform::new(arch::arm64(&sheet, memory)?, &sheet), mib, vcpus)?;
    let sheet = machine("ibm-power9")?;
    table(&Platform::new(arch::power(&sheet)?, &sheet), mib, vcpus)?;
    Ok(())
}

/// All ways that this architecture has.
fn table<A: Arch>(platform: &Platform<A>, mib: u64, vcpus: usize) -> Result<(), SelftestError> {
    let format = platform.arch.two();
    for tracking in [Tracking::WriteProtect, Tracking::ModificationLog, Tracking::Scan] {
        let policy = DirtyPolicy { tracking, ..DirtyPolicy::linux_6_6(format) };
        if policy.check(format).is_err() {
            continue;
        }
        let eager = if A::Two::LOGS_MODIFICATIONS { SplitPolicy::X86_5_18 } else { SplitPolicy::ARM64_6_5 };
        for (split, word) in [(SplitWhen::Lazily, "lazy"), (SplitWhen::Eagerly(eager), "eager")] {
            // A scan looks at entries: it has nothing to push into a ring.
            let rings: &[Option<u64>] = if tracking == Tracking::Scan { &[None] } else { &[None, Some(4096)] };
            for &ring in rings {
                let options = Options {
                    vcpus,
                    bytes_per_vcpu: Bytes(mib.MiB()),
                    page: Some(PageSize::SIZE_2M),
                    manual: Manual::Off,
                    tracking: Some(tracking),
                    split: Some(split),
                    ring,
                    ..Options::default()
                };
                row(platform, &options, tracking, word)?;
            }
        }
    }
    Ok(())
}

fn row<A: Arch>(
    platform: &Platform<A>,
    options: &Options,
    tracking: Tracking,
    split: &str,
) -> Result<(), SelftestError> {
    let report = run(platform, options)?;
    let of =
        |name: &str| report.phases.iter().find(|phase| phase.name == name).map_or(Cycles::ZERO, |phase| phase.cycles);
    let ms = |name: &str| 1e3 * report.seconds(of(name));
    // The same pass unlogged, with everything mapped already.
    let quiet = Options { write_percent: 0, ..options.clone() };
    let quiet = run(platform, &quiet)?;
    let unlogged = quiet.phases.iter().find(|phase| phase.name == "iteration 2 dirty memory");
    let small = platform.arch.two().geometry().page_size(Level::LAST);
    let pages = options.bytes_per_vcpu.0 / small.bytes();
    let extra = of("iteration 2 dirty memory").since(unlogged.map_or(Cycles::ZERO, |phase| phase.cycles));
    println!(
        "{:<6} {:<14} {:<7} {:<6} {:>9.4} {:>9.4} {:>9.4} {:>8.4} {:>8.4} {:>8} {:>8}",
        report.arch,
        match tracking {
            Tracking::WriteProtect => "write-protect",
            Tracking::ModificationLog => "PML",
            Tracking::Scan => "dirty flag",
        },
        if options.ring.is_some() { "ring" } else { "bitmap" },
        split,
        ms("enable dirty logging"),
        ms("iteration 1 dirty memory"),
        ms("iteration 2 dirty memory"),
        ms("iteration 2 get log"),
        ms("disable dirty logging"),
        report.figures.get("second-stage faults").copied().unwrap_or(0.0),
        extra.0 / pages.max(1),
    );
    Ok(())
}
