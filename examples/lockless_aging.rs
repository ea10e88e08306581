//! Locked against lockless aging: what a page costs the ager, and what the lock costs the vCPUs that fault meanwhile.
//!
//! The guest populates its memory with 1 to 64 vCPUs while the host ages it over and over, one notifier call per page, as
//! `access_tracking_perf_test -l -p` does. Up to Linux 6.14 each call takes `mmu_lock` for write; since 6.15 x86 ages inside RCU sections. Run it
//! with `cargo run --release --example lockless_aging [vCPUs]`, the number being the most to try.

use mmusim::sim::selftests::access_tracking_perf::{Aging, Options, Point, Tracking, When, sweep};
use mmusim::{Arch, ByteUnits, Bytes, Format, Machine, Platform, arch};

/// One line per number of vCPUs: locked and lockless side by side.
fn table<A: Arch>(platform: &Platform<A>, most: usize) -> Result<(), String> {
    // 512 pages for each vCPU.
    let page = platform.arch.two().geometry().granule();
    let options = Options {
        bytes_per_vcpu: Bytes(512 * page.bytes()),
        tracking: Tracking::LruGen,
        when: When::WhileFaulting,
        ..Options::default()
    };
    let counts: Vec<usize> = [1, 2, 4, 8, 16, 32, 64].into_iter().filter(|&n| n <= most).collect();
    let (_, points) = sweep(platform, &options, &counts).map_err(|error| error.to_string())?;
    println!("{} ({})", platform.machine, platform.arch.name());
    println!("        |  aging, ns per page  | lock held |   vCPUs wait for the lock   |  longest fault, us");
    println!("  vCPUs |   locked   lockless  |  locked   |   locked         lockless   |   locked   lockless");
    for pair in points.chunks(2) {
        if let [locked, lockless] = pair {
            println!("{}", row(locked, lockless));
        }
    }
    println!();
    Ok(())
}

fn row(locked: &Point, lockless: &Point) -> String {
    debug_assert_eq!((locked.aging, lockless.aging), (Aging::Locked, Aging::Lockless));
    // A vCPU's share of the time that populating takes.
    let stalled = |point: &Point| 100.0 * point.wait_us / point.vcpus as f64 / (point.populate * 1e6);
    format!(
        "  {:5} | {:8.1}   {:8.1}  | {:6.1} ns | {:8.1} us {:3.0}% {:8.1} us {:3.0}% | {:8.1}   {:8.1}",
        locked.vcpus,
        locked.ns_per_page,
        lockless.ns_per_page,
        locked.held_ns_per_page,
        locked.wait_us,
        stalled(locked),
        lockless.wait_us,
        stalled(lockless),
        locked.longest_fault_us,
        lockless.longest_fault_us,
    )
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let most = std::env::args().nth(1).map_or(Ok(64), |text| text.parse())?;
    let machine = |name: &str| Machine::builtin(name).map_err(|errors| errors[0].clone());
    let memory = Bytes(most as u64 * 2.MiB());
    println!("{most} vCPUs at most populate 512 pages each (64K on POWER, else 4K) while the host ages all of it\n");
    let x86 = machine("intel-granite-rapids-host")?;
    table(&Platform::new(arch::x86(&x86, memory)?, &x86), most)?;
    let arm = machine("arm-neoverse-n1")?;
    table(&Platform::new(arch::arm64(&arm, memory)?, &arm), most)?;
    let power = machine("ibm-power9")?;
    table(&Platform::new(arch::power(&power)?, &power), most)?;
    println!("Published for x86 (112-thread host, 1 GiB per vCPU): locked 31 ns with 1 vCPU, 108 with 8, 518 with 32;");
    println!("lockless 28, 30 and 30.");
    Ok(())
}
