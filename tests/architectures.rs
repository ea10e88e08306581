//! The main job on all three architectures: every strategy, the same bits for any number of threads.

use mmusim::{
    Arch, ByteUnits, Bytes, Cycles, GuestPaging, Machine, Mix, PageSize, PatternSpec, Platform, Populate, Seed, Target,
    Threads, VmSpec, Workload, ZapReport, ZapRequest, arch, compare_zap, strategies,
};

const MEMORY: u64 = 64 << 20;

fn machine(name: &str) -> Machine {
    Machine::builtin(name).unwrap()
}

fn compare<A: Arch>(platform: &Platform<A>, page: PageSize, populate: Populate, threads: Threads) -> ZapReport {
    let pattern = PatternSpec { bytes: 4.MiB(), mix: Mix::Uniform, writes_percent: 30, accesses: 10_000 };
    let vm = VmSpec {
        memory: Bytes(MEMORY),
        vcpus: 3,
        page,
        guest: GuestPaging::FirstTouch(page),
        populate,
        workload: Workload::Pattern(pattern),
        seed: Seed(7),
    };
    let request = ZapRequest { range: Bytes(8.MiB()), after: Cycles(200_000) };
    compare_zap(platform, &vm, request, &strategies(), threads, || {}).unwrap()
}

fn check<A: Arch>(platform: &Platform<A>, page: PageSize) {
    for populate in [Populate::Mapped, Populate::ByFaults] {
        let one = compare(platform, page, populate, Threads::One);
        assert_eq!(one, compare(platform, page, populate, Threads::Pool), "{} {populate:?}", one.arch);
        for row in &one.rows {
            assert!(row.zap_cycles > Cycles::ZERO && row.host.zapped_leaves > 0, "{}: {row:?}", one.arch);
            if populate == Populate::Mapped {
                let least = if row.strategy.target == Target::Range { 8.MiB() } else { MEMORY } >> page.shift();
                assert!(row.host.zapped_leaves >= least, "{} {}", one.arch, row.strategy.name);
            }
        }
    }
}

#[test]
fn x86() {
    let machine = machine("intel-granite-rapids-host");
    check(&Platform::new(arch::x86(&machine, Bytes(MEMORY)).unwrap(), &machine), PageSize::SIZE_4K);
}

#[test]
fn arm64() {
    let machine = machine("arm-neoverse-n1");
    check(&Platform::new(arch::arm64(&machine, Bytes(MEMORY)).unwrap(), &machine), PageSize::SIZE_4K);
}

#[test]
fn power() {
    let machine = machine("ibm-power9");
    check(&Platform::new(arch::power(&machine).unwrap(), &machine), PageSize::SIZE_64K);
}

/// The largest guest that the hypervisor's changes were made for.
fn zaps_64_tebibytes<A: Arch>(platform: &Platform<A>, page: PageSize) {
    let vm = VmSpec {
        memory: Bytes(64.TiB()),
        vcpus: 1,
        page,
        guest: GuestPaging::Flat,
        populate: Populate::Mapped,
        workload: Workload::Idle,
        seed: Seed(0),
    };
    let request = ZapRequest { range: vm.memory, after: Cycles(1_000) };
    let report = compare_zap(platform, &vm, request, &strategies(), Threads::One, || {}).unwrap();
    for row in &report.rows {
        assert_eq!(row.host.zapped_leaves, 64.TiB() >> page.shift(), "{}: {}", report.arch, row.strategy.name);
    }
}

#[test]
fn every_strategy_zaps_64_tebibytes_on_every_built_in_machine() {
    for machine in Machine::names().map(machine) {
        let memory = Bytes(64.TiB());
        if let Ok(formats) = arch::x86(&machine, memory) {
            zaps_64_tebibytes(&Platform::new(formats, &machine), PageSize::SIZE_4K);
        } else if let Ok(formats) = arch::arm64(&machine, memory) {
            zaps_64_tebibytes(&Platform::new(formats, &machine), PageSize::SIZE_4K);
        } else {
            zaps_64_tebibytes(&Platform::new(arch::power(&machine).unwrap(), &machine), PageSize::SIZE_64K);
        }
    }
}
