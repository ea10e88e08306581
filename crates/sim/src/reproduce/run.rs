//! Running the experiments.

use std::cell::Cell;
use std::rc::Rc;

use mmu_core::{Bytes, Cycles, Format, Gpa, GpaRange, PageSize};
use serde::Serialize;

use super::{Case, Experiment, Id, Row};
use crate::arch::Arch;
use crate::engine::{Costs, GuestPaging, LockMode, Premapped, Threads};
use crate::experiment::zap::{RunError, Strategy, Target, ZapRequest, compare_zap};
use crate::experiment::{Platform, Populate, VmSpec, build_without_threads};
use crate::protocols::coalesce::CoalescePolicy;
use crate::protocols::collapse::CollapsePolicy;
use crate::protocols::dirty_log::{Manual, SplitWhen};
use crate::protocols::split::{LazySplit, SplitPolicy};
use crate::protocols::unmap::{UnmapFlush, UnmapPolicy, unmap_range};
use crate::protocols::zap::{ZapLock, ZapPolicy};
use crate::rng::Seed;
use crate::selftests::access_tracking_perf::{self, Aging, Tracking, When};
use crate::selftests::dirty_log_perf::{self, Disabling};
use crate::selftests::{SelftestError, SelftestReport, finish, nx_huge_pages_perf, page_table};
use crate::workload::Workload;

/// Where the time of a run went, in seconds, all threads together.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Times {
    /// Waiting for `mmu_lock`.
    pub locks: f64,
    /// Waiting for flushes.
    pub flushes: f64,
    /// Cleaning caches.
    pub maintenance: f64,
    /// Hardware walks.
    pub walks: f64,
    /// Handling faults, waits included.
    pub faults: f64,
}

/// Runs one case of an experiment, before and after the change.
///
/// # Errors
/// A machine of another architecture than the experiment's, or a run that goes wrong.
pub fn run<A: Arch>(platform: &Platform<A>, experiment: &Experiment, case: Case) -> Result<Vec<Row>, SelftestError> {
    let mut rows = match experiment.id {
        Id::R1 => aging(platform, case),
        Id::R2 => root_zap(platform, case),
        Id::R3 => collapse(platform, case),
        Id::R4 => recovery(platform, case),
        Id::R5 => blocks(platform, case),
        Id::R6 => faults(platform, case),
        Id::R7 => unmap(platform, case),
        Id::R8 => eager_split(platform, case),
        Id::R9 => sparse(platform, case),
    }?;
    for row in &mut rows {
        row.published = experiment.values(&case, &row.what);
    }
    Ok(rows)
}

/// Memory of a run.
fn scaled(case: &Case, unit: u64) -> Bytes {
    Bytes((case.bytes.0 / case.scale.max(1) / unit).max(1) * unit)
}

/// By how much a run's memory is smaller.
fn factor(case: &Case, unit: u64) -> f64 {
    case.bytes.0 as f64 / scaled(case, unit).0 as f64
}

fn row(id: Id, case: Case, what: &str, unit: &'static str, simulated: [f64; 2], times: [Times; 2]) -> Row {
    Row { id, case, what: what.to_owned(), unit, published: None, simulated, times }
}

fn times(report: &SelftestReport, factor: f64) -> Times {
    let of = |name: &str| report.figures.get(&format!("time of {name} (s)")).copied().unwrap_or(0.0) * factor;
    Times {
        locks: of("locks"),
        flushes: of("flushes"),
        maintenance: of("maintenance"),
        walks: of("walks"),
        faults: of("faults"),
    }
}

fn phase(report: &SelftestReport, name: &str, factor: f64) -> f64 {
    let phase = report.phases.iter().find(|phase| phase.name == name);
    phase.map_or(0.0, |phase| report.seconds(phase.cycles)) * factor
}

fn both<T>(make: impl Fn(bool) -> Result<T, SelftestError>) -> Result<[T; 2], SelftestError> {
    Ok([make(false)?, make(true)?])
}

fn aging<A: Arch>(platform: &Platform<A>, case: Case) -> Result<Vec<Row>, SelftestError> {
    let unit = PageSize::SIZE_2M.bytes();
    let options = |after| access_tracking_perf::Options {
        vcpus: case.vcpus,
        bytes_per_vcpu: scaled(&case, unit),
        tracking: Tracking::LruGen,
        when: When::WhileFaulting,
        aging: if after { Aging::Lockless } else { Aging::Locked },
        ..Default::default()
    };
    let [old, new] = both(|after| access_tracking_perf::run(platform, &options(after)))?;
    let factor = factor(&case, unit);
    let pass = |report: &SelftestReport| {
        let name = |name: &&String| name.starts_with("aging while faulting") && name.ends_with("(s per pass)");
        let found = report.figures.keys().find(name).and_then(|name| report.figures.get(name));
        found.copied().unwrap_or(0.0) * factor
    };
    let populate = |report: &SelftestReport| phase(report, "populating memory", factor);
    let times = [times(&old, factor), times(&new, factor)];
    Ok(vec![
        row(Id::R1, case, "one aging pass", "s", [pass(&old), pass(&new)], times),
        row(Id::R1, case, "populating memory meanwhile", "s", [populate(&old), populate(&new)], times),
    ])
}

fn root_zap<A: Arch>(platform: &Platform<A>, case: Case) -> Result<Vec<Row>, SelftestError> {
    let memory = scaled(&case, PageSize::SIZE_1G.bytes());
    let page = platform.arch.two().geometry().granule();
    let vm = VmSpec {
        memory,
        vcpus: case.vcpus,
        page,
        guest: GuestPaging::Flat,
        populate: Populate::Mapped,
        workload: Workload::Idle,
        seed: Seed(0),
    };
    let root = |name, policy| Strategy { name, target: Target::Root, policy };
    let strategies = [root("one pass", ZapPolicy::V5_17), root("two passes", ZapPolicy::V5_18)];
    let request = ZapRequest { range: memory, after: Cycles(1000) };
    let report =
        compare_zap(platform, &vm, request, &strategies, Threads::One, || {}).map_err(|error| match error {
            RunError::Build(error) => SelftestError::Build(error),
            other => SelftestError::Guest(other.to_string()),
        })?;
    let seconds = |cycles: Cycles| cycles.0 as f64 / report.clock_hz as f64;
    let times = |n: usize| Times {
        locks: seconds(report.rows[n].lock_wait),
        flushes: seconds(report.rows[n].host.flush_wait),
        ..Times::default()
    };
    let longest = |n: usize| seconds(report.rows[n].longest_unscheduled);
    let whole = |n: usize| seconds(report.rows[n].zap_cycles);
    let times = [times(0), times(1)];
    Ok(vec![
        row(Id::R2, case, "longest stretch without a reschedule", "s", [longest(0), longest(1)], times),
        row(Id::R2, case, "the whole zap", "s", [whole(0), whole(1)], times),
    ])
}

fn collapse<A: Arch>(platform: &Platform<A>, case: Case) -> Result<Vec<Row>, SelftestError> {
    let unit = PageSize::SIZE_2M.bytes();
    // Nobody waits for the processor of the test's main thread but RCU, twice in a grace period. First for the quiescent state, `HZ / 10` and three ticks into it
    // (kernel/rcu/tree.c, adjust_jiffies_till_sched_qs): jiffies are compared strictly, the next scan sees it, the next tick asks. Then for ksoftirqd, which
    // frees the thousands of tables that are due: more than softirqs free themselves (rcu_do_batch, `blimit`; __do_softirq, `MAX_SOFTIRQ_RESTART`).
    let grace = Cycles(platform.clock_hz / 10) + platform.costs.tick_period.times(3);
    let tick_period = Cycles(grace.0 / 2);
    let platform = &Platform { costs: Costs { tick_period, ..platform.costs.clone() }, ..platform.clone() };
    let run = |collapse| {
        let options = dirty_log_perf::Options {
            vcpus: case.vcpus,
            bytes_per_vcpu: scaled(&case, unit),
            page: Some(PageSize::SIZE_2M),
            disabling: Disabling::Running,
            // A pass of the published test takes so many times longer; 64 of ours leave the guest seldom enough.
            passes: case.scale.min(64),
            collapse: Some(collapse),
            ..Default::default()
        };
        dirty_log_perf::run(platform, &options)
    };
    let each = run(CollapsePolicy::X86_5_14)?;
    let batched = run(CollapsePolicy::X86_BATCHED)?;
    let recovered = run(CollapsePolicy::X86_6_13)?;
    let factor = factor(&case, unit);
    let flushes = |report: &SelftestReport| {
        let disable = report.phases.iter().find(|phase| phase.name == "disable dirty logging");
        disable.map_or(0.0, |phase| phase.host.remote_flushes as f64)
    };
    let seconds = |report| phase(report, "disable dirty logging", factor);
    // Flushes of zaps come one for each page; batched ones at the end of the walk and whenever it yields, which is as often as its time says.
    let yields = |seconds: f64| (seconds * platform.clock_hz as f64 / tick_period.0 as f64).floor();
    let batches = flushes(&batched) + yields(seconds(&batched)) - yields(seconds(&batched) / factor);
    let guest = [case.bytes, scaled(&case, unit)].map(|bytes| Bytes(bytes.0 * case.vcpus as u64));
    let upper = guest.map(|memory| upper_tables(platform, memory));
    let faults = |report| faults_of(report, factor, upper);
    let [t0, t1, t2] = [&each, &batched, &recovered].map(|report| times(report, factor));
    Ok(vec![
        // What the message has for the whole series its third patch has too, which batches the flushes of zaps.
        row(Id::R3, case, "disable dirty logging", "s", [seconds(&each), seconds(&batched)], [t0, t1]),
        row(Id::R3, case, "disable dirty logging, recovered", "s", [seconds(&each), seconds(&recovered)], [t0, t2]),
        row(Id::R3, case, "remote flushes", "", [flushes(&each) * factor, batches], [t0, t1]),
        row(Id::R3, case, "page faults", "", [faults(&each), faults(&recovered)], [t0, t2]),
    ])
}

/// How many upper tables a guest has; each is one fault.
fn upper_tables<A: Arch>(platform: &Platform<A>, memory: Bytes) -> f64 {
    let one = *platform.arch.one();
    Premapped::new(one, memory, one.geometry().granule()).map_or(0.0, |tables| tables.upper_tables() as f64)
}

/// Second-stage faults that have mapped something (`pf_fixed`) in a run of the published size, which has so many upper tables; the run that was made has so many.
/// Those that lose a race and try again are not in the published count: it has 383 faults beyond three for each page where a page is being zapped for 73 us, in which
/// a vCPU that needs it faults some twenty times, and 431 beyond two where none is.
fn faults_of(report: &SelftestReport, factor: f64, [upper, upper_here]: [f64; 2]) -> f64 {
    let all = report.figures.get("second-stage faults").copied().unwrap_or(0.0);
    let races: u64 = report.phases.iter().map(|phase| phase.host.spurious_faults + phase.host.retried_faults).sum();
    (all - races as f64 - upper_here) * factor + upper
}

fn recovery<A: Arch>(platform: &Platform<A>, case: Case) -> Result<Vec<Row>, SelftestError> {
    let options = |after| nx_huge_pages_perf::Options {
        bytes: scaled(&case, 2 * PageSize::SIZE_2M.bytes()),
        lock: if after { ZapLock::Read } else { ZapLock::Write },
        ..Default::default()
    };
    let [old, new] = both(|after| nx_huge_pages_perf::run(platform, &options(after)))?;
    let longest = |report: &SelftestReport| report.figures.get("max fault latency (cycles)").copied().unwrap_or(0.0);
    let times = [times(&old, 1.0), times(&new, 1.0)];
    Ok(vec![row(Id::R4, case, "maximum fault latency", "cycles", [longest(&old), longest(&new)], times)])
}

fn blocks<A: Arch>(platform: &Platform<A>, case: Case) -> Result<Vec<Row>, SelftestError> {
    let unit = PageSize::SIZE_1G.bytes();
    let factor = factor(&case, unit);
    let run = |coalesce| {
        let bytes = scaled(&case, unit);
        let page = Some(PageSize::SIZE_1G);
        let options = page_table::Options {
            vcpus: case.vcpus,
            bytes,
            page,
            coalesce: Some(coalesce),
            // Faults were exclusive up to 6.1.
            lock: Some(LockMode::Write),
            ..Default::default()
        };
        page_table::run(platform, &options)
    };
    let each = run(CoalescePolicy::V5_10)?;
    let mapper = run(CoalescePolicy::V5_14)?;
    let first = run(CoalescePolicy::RFC_2021)?;
    let [t0, t1, t2] = [&each, &mapper, &first].map(|report| times(report, factor));
    let create = |report| phase(report, "KVM_CREATE_MAPPINGS", factor);
    let rebuild = |report| phase(report, "KVM_ADJUST_MAPPINGS", factor);
    Ok(vec![
        row(Id::R5, case, "create mappings", "s", [create(&each), create(&mapper)], [t0, t1]),
        row(Id::R5, case, "rebuild mappings", "s", [rebuild(&each), rebuild(&mapper)], [t0, t1]),
        row(Id::R5, case, "rebuild, block first", "s", [rebuild(&mapper), rebuild(&first)], [t1, t2]),
    ])
}

fn faults<A: Arch>(platform: &Platform<A>, case: Case) -> Result<Vec<Row>, SelftestError> {
    let unit = PageSize::SIZE_2M.bytes();
    let options = |after| dirty_log_perf::Options {
        vcpus: case.vcpus,
        bytes_per_vcpu: scaled(&case, unit),
        iterations: 1,
        // Pages become clean by a walk when logging begins: each first write faults.
        manual: Manual::Off,
        page: Some(PageSize::SIZE_2M),
        lock: Some(if after { LockMode::Read } else { LockMode::Write }),
        ..Default::default()
    };
    let [old, new] = both(|after| dirty_log_perf::run(platform, &options(after)))?;
    let factor = factor(&case, unit);
    let dirty = |report| phase(report, "iteration 1 dirty memory", factor);
    let times = [times(&old, factor), times(&new, factor)];
    Ok(vec![row(Id::R6, case, "iteration 1 dirty memory", "s", [dirty(&old), dirty(&new)], times)])
}

fn unmap<A: Arch>(platform: &Platform<A>, case: Case) -> Result<Vec<Row>, SelftestError> {
    let memory = scaled(&case, PageSize::SIZE_2M.bytes());
    let factor = factor(&case, PageSize::SIZE_2M.bytes());
    let run = |after| {
        let spec = VmSpec {
            memory,
            vcpus: case.vcpus,
            page: platform.arch.two().geometry().granule(),
            guest: GuestPaging::Flat,
            populate: Populate::Mapped,
            workload: Workload::Idle,
            seed: Seed(0),
        };
        let mut sim = build_without_threads(platform, &spec)?;
        let flush = if after { UnmapFlush::Range } else { UnmapFlush::EachEntry };
        let policy = UnmapPolicy { flush, ..UnmapPolicy::V6_6 };
        let took = Rc::new(Cell::new(Cycles::ZERO));
        let slot = Rc::clone(&took);
        sim.spawn("main", Cycles::ZERO, move |host| {
            Box::pin(async move {
                let begun = host.now().await;
                unmap_range(&host, GpaRange::new(Gpa::new(0), memory), policy).await;
                slot.set(host.now().await.since(begun));
            })
        });
        finish(&mut sim)?;
        let seconds = |cycles: Cycles| cycles.0 as f64 / platform.clock_hz as f64 * factor;
        let flushes = seconds(sim.world().counters().flush_wait);
        Ok((seconds(took.get()), Times { flushes, ..Times::default() }))
    };
    let [(old, t0), (new, t1)] = both(run)?;
    Ok(vec![row(Id::R7, case, "unmap", "s", [old, new], [t0, t1])])
}

fn eager_split<A: Arch>(platform: &Platform<A>, case: Case) -> Result<Vec<Row>, SelftestError> {
    let unit = PageSize::SIZE_1G.bytes();
    let options = |after| dirty_log_perf::Options {
        vcpus: case.vcpus,
        bytes_per_vcpu: scaled(&case, unit),
        iterations: 1,
        page: Some(PageSize::SIZE_1G),
        manual: Manual::Off,
        split: Some(if after { SplitWhen::Eagerly(SplitPolicy::X86_5_18) } else { SplitWhen::Lazily }),
        // Up to 6.0 a fault cleared the large page and mapped one small one: every page faulted, under `mmu_lock`.
        lazily: Some(LazySplit::Zap),
        ..Default::default()
    };
    let [old, new] = both(|after| dirty_log_perf::run(platform, &options(after)))?;
    let factor = factor(&case, unit);
    let times = [times(&old, factor), times(&new, factor)];
    let of = |name: &'static str| {
        row(Id::R8, case, name, "s", [phase(&old, name, factor), phase(&new, name, factor)], times)
    };
    Ok(vec![of("enable dirty logging"), of("iteration 1 dirty memory")])
}

fn sparse<A: Arch>(platform: &Platform<A>, case: Case) -> Result<Vec<Row>, SelftestError> {
    let unit = PageSize::SIZE_2M.bytes();
    let options = |after| dirty_log_perf::Options {
        vcpus: case.vcpus,
        bytes_per_vcpu: scaled(&case, unit),
        iterations: 3,
        page: Some(PageSize::SIZE_2M),
        manual: Manual::Off,
        stride: Some(Bytes(unit)),
        split: Some(if after { SplitWhen::Eagerly(SplitPolicy::ARM64_6_5) } else { SplitWhen::Lazily }),
        ..Default::default()
    };
    let [old, new] = both(|after| dirty_log_perf::run(platform, &options(after)))?;
    let factor = factor(&case, unit);
    let first = |report| phase(report, "iteration 1 dirty memory", factor);
    let times = [times(&old, factor), times(&new, factor)];
    Ok(vec![row(Id::R9, case, "dirty memory", "s", [first(&old), first(&new)], times)])
}
