//! What each way of zapping costs, in *simulated* cycles: criterion compares the strategies, not the host it runs on.
//!
//! ```text
//! cargo bench --bench flush_strategies              ten strategies on three architectures
//! cargo bench --bench flush_strategies -- arm64     one architecture
//! ```
//!
//! The measurement is [`SimulatedCycles`], and a sample is one run with the next seed. So samples spread as guests
//! differ, not as the host is loaded, and criterion's "change" against the last run is a change of the simulated protocol
//! or machine: on an unchanged tree it is zero to the last digit. Throughput is in pages zapped per thousand cycles.

use std::cell::Cell;
use std::time::Duration;

use criterion::measurement::{Measurement, ValueFormatter};
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use mmusim::{
    Arch, ByteUnits, Bytes, Cycles, GuestPaging, Machine, Mix, PageSize, PatternSpec, Platform, Populate, Seed,
    Strategy, Threads, VmSpec, Workload, ZapRequest, arch, compare_zap, strategies,
};

/// Guest memory; all of it is zapped. A gigabyte's worth of leaf tables would only repeat what this shows.
const MEMORY: Bytes = Bytes(64 << 20);
/// Runs per strategy.
const SAMPLES: usize = 10;

/// Cycles of the simulated machine.
struct SimulatedCycles;

impl Measurement for SimulatedCycles {
    type Intermediate = ();
    type Value = u64;

    fn start(&self) {}
    /// Routines report their own cycles; host time between start and end means nothing.
    fn end(&self, (): ()) -> u64 {
        0
    }
    fn add(&self, a: &u64, b: &u64) -> u64 {
        a + b
    }
    fn zero(&self) -> u64 {
        0
    }
    fn to_f64(&self, cycles: &u64) -> f64 {
        *cycles as f64
    }
    fn formatter(&self) -> &dyn ValueFormatter {
        &CycleFormatter
    }
}

/// Prints cycles by thousands.
struct CycleFormatter;

impl ValueFormatter for CycleFormatter {
    fn scale_values(&self, typical: f64, values: &mut [f64]) -> &'static str {
        let (divisor, unit) = match typical {
            t if t < 1e3 => (1.0, "cycles"),
            t if t < 1e6 => (1e3, "kcyc"),
            t if t < 1e9 => (1e6, "Mcyc"),
            _ => (1e9, "Gcyc"),
        };
        for value in values.iter_mut() {
            *value /= divisor;
        }
        unit
    }

    fn scale_throughputs(&self, _: f64, throughput: &Throughput, values: &mut [f64]) -> &'static str {
        let (amount, unit) = match *throughput {
            Throughput::Elements(n) | Throughput::ElementsAndBytes { elements: n, .. } => (n, "pages/kcyc"),
            Throughput::Bytes(n) | Throughput::BytesDecimal(n) => (n, "bytes/kcyc"),
            Throughput::Bits(n) => (n, "bits/kcyc"),
        };
        for cycles in values.iter_mut() {
            *cycles = amount as f64 * 1e3 / *cycles;
        }
        unit
    }

    fn scale_for_machines(&self, _: &mut [f64]) -> &'static str {
        "cycles"
    }
}

/// A guest whose four vCPUs keep touching what is zapped under them.
fn guest(seed: Seed, page: PageSize) -> VmSpec {
    let pattern = PatternSpec { bytes: 2.MiB(), mix: Mix::Uniform, writes_percent: 30, accesses: 3000 };
    VmSpec {
        memory: MEMORY,
        vcpus: 4,
        page,
        guest: GuestPaging::FirstTouch(page),
        populate: Populate::Mapped,
        workload: Workload::Pattern(pattern),
        seed,
    }
}

/// Simulated cycles from the start of the zap to its end.
fn zap_cycles<A: Arch>(platform: &Platform<A>, page: PageSize, strategy: Strategy, seed: Seed) -> u64 {
    let request = ZapRequest { range: MEMORY, after: Cycles(50_000) };
    let report = compare_zap(platform, &guest(seed, page), request, &[strategy], Threads::One, || {});
    match report {
        Ok(report) => report.rows[0].zap_cycles.0,
        Err(error) => panic!("{} with seed {}: {error}", strategy.name, seed.0),
    }
}

fn compare<A: Arch>(criterion: &mut Criterion<SimulatedCycles>, platform: &Platform<A>, page: PageSize) {
    let mut group = criterion.benchmark_group(platform.arch.name());
    group.sampling_mode(SamplingMode::Flat);
    group.throughput(Throughput::Elements(MEMORY.0 / page.bytes()));
    for strategy in strategies() {
        let seed = Cell::new(0);
        group.bench_with_input(BenchmarkId::from_parameter(strategy.name), &strategy, |bencher, &strategy| {
            // How many iterations criterion asks for depends on the host. One run stands for all of them, so that the seeds
            // behind the samples are the same everywhere.
            bencher.iter_custom(|runs| {
                let seed = Seed(seed.replace(seed.get() + 1));
                runs * zap_cycles(platform, page, strategy, seed)
            });
        });
    }
    group.finish();
}

fn machine(name: &str) -> Machine {
    Machine::builtin(name).unwrap_or_else(|errors| panic!("{name}: {}", errors[0]))
}

fn main() {
    let mut criterion = Criterion::default()
        .with_measurement(SimulatedCycles)
        .sample_size(SAMPLES)
        // Ten deterministic numbers need no bootstrap of a hundred thousand and no density plots, which took minutes.
        .nresamples(2000)
        .without_plots()
        // Host time counts for nothing here: one run warms up, and the rest takes as long as it takes.
        .warm_up_time(Duration::from_nanos(1))
        .measurement_time(Duration::from_secs(60))
        .configure_from_args();
    let intel = machine("intel-granite-rapids-host");
    let neoverse = machine("arm-neoverse-n1");
    let power9 = machine("ibm-power9");
    match (arch::x86(&intel, MEMORY), arch::arm64(&neoverse, MEMORY), arch::power(&power9)) {
        (Ok(x86), Ok(arm64), Ok(power)) => {
            compare(&mut criterion, &Platform::new(x86, &intel), intel.stages.granule);
            compare(&mut criterion, &Platform::new(arm64, &neoverse), neoverse.stages.granule);
            compare(&mut criterion, &Platform::new(power, &power9), power9.stages.granule);
        }
        (x86, arm64, power) => panic!("{:?} {:?} {:?}", x86.err(), arm64.err(), power.err()),
    }
    criterion.final_summary();
}
