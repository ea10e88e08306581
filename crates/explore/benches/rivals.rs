//! Executions, steps and states per second: ours with the checker on, beside shuttle and loom on the same program, in one run.
//!
//! `cargo bench -p mmu-explore --bench rivals`; `-- --test` runs everything once and checks that it ends well. The program is that of both
//! threads setting a bit of their own in one word by a compare-and-swap loop, and then counting a flush.

use std::fmt::Write;
use std::time::Instant;

use arch_x86_ept::{EptConfig, LongModeConfig};
use mmu_core::{Bytes, PageSize};
use mmu_explore::museum::{Variant, exhibit};
use mmu_sim::arch::Arch2;
use mmu_sim::engine::{Bed, Cmpxchg, Host, LockId, LockMode, Var};
use mmu_sim::experiment::Populate;
use mmu_sim::explore::{
    Budget, Explorable, Limits, Report, Scenario, Sharing, Shrinking, SmallVm, Strategy, Verdict, read,
};
use mmu_sim::protocols::fault::FaultPolicy;
use mmu_sim::protocols::vcpu;
use mmu_sim::protocols::zap::{Passes, TableFlush, ZapLock, ZapPolicy, zap_root};
use mmu_sim::rng::Seed;

type X86 = Arch2<arch_x86_ept::LongMode, arch_x86_ept::Ept>;

fn x86() -> X86 {
    let one = LongModeConfig::new().max_phys_addr(46).build().expect("46 bits are legal");
    Arch2 { name: "x86", one, two: EptConfig::new().max_phys_addr(46).build().expect("46 bits are legal") }
}

async fn set_bit<F: Copy>(host: Host<F>, entry: Var, flushes: Var, bit: u64) {
    let mut old = host.load(entry).await;
    while let Cmpxchg::Failed(found) = host.cmpxchg_var(entry, old, old | 1 << bit).await {
        old = found;
    }
    host.add(flushes, 1).await;
}

/// The program, of so many actors.
fn program(actors: u64) -> Scenario<X86> {
    let limits = Limits { sharing: Sharing::Operations, ..Limits::default() };
    Scenario::new("cmpxchg and flush", x86(), SmallVm::unmapped(1)).limits(limits).setup(move |build| {
        let (entry, flushes) = (build.new_var(0), build.new_var(0));
        for bit in 0..actors {
            build.spawn("thread", move |host| Box::pin(set_bit(host, entry, flushes, bit)));
        }
    })
}

/// A zap of a root beside two guests with their threads, and somebody who wants the lock: five that take steps.
fn zap() -> Scenario<X86> {
    let policy = ZapPolicy {
        flush: TableFlush::DeferredRcu,
        passes: Passes::FourLevels,
        lock: ZapLock::Write,
        ..ZapPolicy::V5_18
    };
    let vm = SmallVm { memory: Bytes(4 << 20), page: PageSize::SIZE_4K, populate: Populate::Mapped };
    let thread = |host, id| -> mmu_sim::engine::ActorFuture {
        Box::pin(vcpu::thread(host, id, FaultPolicy::new(LockMode::Read, PageSize::SIZE_4K)))
    };
    let limits = Limits { sharing: Sharing::Operations, ..Limits::default() };
    let scenario = Scenario::new("zap", x86(), vm).pages([0, 2 << 20]).limits(limits);
    scenario.vcpu([read(0)], thread).vcpu([read(2 << 20)], thread).actor("zap", move |host| {
        Box::pin(async move {
            let root = host.root().await;
            host.lock(LockId::MMU, LockMode::Write).await;
            zap_root(&host, root, &policy).await;
            host.unlock(LockId::MMU).await;
        })
    })
}

fn on_threads(threads: usize, work: impl FnOnce() -> Report + Send) -> Report {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.expect("threads can be had").install(work)
}

/// A program of a rival: what two of its threads do.
macro_rules! rival_program {
    ($library:ident, $arc:path) => {
        || {
            use $library::sync::atomic::{AtomicU64, Ordering};
            let words = <$arc>::new((AtomicU64::new(0), AtomicU64::new(0)));
            let threads: Vec<_> = (0..2)
                .map(|bit| {
                    let words = words.clone();
                    $library::thread::spawn(move || {
                        let mut old = words.0.load(Ordering::SeqCst);
                        while let Err(found) =
                            words.0.compare_exchange(old, old | 1 << bit, Ordering::SeqCst, Ordering::SeqCst)
                        {
                            old = found;
                        }
                        words.1.fetch_add(1, Ordering::SeqCst);
                    })
                })
                .collect();
            for thread in threads {
                thread.join().expect("no thread panics");
            }
            assert_eq!((words.0.load(Ordering::SeqCst), words.1.load(Ordering::SeqCst)), (3, 2));
        }
    };
}

/// Executions per second of one way.
struct Row {
    name: String,
    executions: u64,
    seconds: f64,
    steps: u64,
    states: u64,
}

impl Row {
    fn of(name: &str, work: impl FnOnce() -> u64) -> Self {
        let begin = Instant::now();
        let executions = work();
        Self { name: name.to_owned(), executions, seconds: begin.elapsed().as_secs_f64(), steps: 0, states: 0 }
    }

    fn ours(name: &str, scenario: &dyn Explorable, strategy: &Strategy, schedules: u64, threads: usize) -> Self {
        let budget = Budget { schedules, seed: Seed(1), shrinking: Shrinking::Off };
        let begin = Instant::now();
        let report = on_threads(threads, || scenario.explore(strategy, budget));
        let seconds = begin.elapsed().as_secs_f64();
        assert_ne!(report.verdict, Verdict::Broken, "{name}: {:?}", report.failure);
        let (executions, steps, states) = (report.stats.executions, report.stats.steps, report.stats.states);
        Self { name: format!("{name}, {strategy}, {threads} threads"), executions, seconds, steps, states }
    }

    fn write(&self, text: &mut String, against: Option<f64>) {
        let rate = self.executions as f64 / self.seconds;
        let million =
            |count: u64| if count == 0 { "-".to_owned() } else { format!("{:.2}", count as f64 / self.seconds / 1e6) };
        let times = against.map_or_else(|| "-".to_owned(), |against| format!("{:.1}", rate / against));
        let (steps, states) = (million(self.steps), million(self.states));
        let _ = writeln!(text, "| {} | {} | {rate:.0} | {times} | {steps} | {states} |", self.name, self.executions);
    }
}

fn shuttle_runs(schedules: usize) -> Vec<Row> {
    let program = || rival_program!(shuttle, shuttle::sync::Arc<_>);
    vec![
        Row::of("shuttle, random", || {
            shuttle::check_random(program(), schedules);
            schedules as u64
        }),
        Row::of("shuttle, pct:3", || {
            shuttle::check_pct(program(), schedules, 3);
            schedules as u64
        }),
    ]
}

/// Loom looks at all executions; how many that are it does not say but by calling the program.
fn loom_runs() -> Row {
    use std::sync::atomic::{AtomicU64, Ordering};
    static EXECUTIONS: AtomicU64 = AtomicU64::new(0);
    Row::of("loom, all", || {
        let program = rival_program!(loom, loom::sync::Arc<_>);
        loom::model(move || {
            EXECUTIONS.fetch_add(1, Ordering::Relaxed);
            program();
        });
        EXECUTIONS.load(Ordering::Relaxed)
    })
}

fn main() {
    let once = std::env::args().any(|argument| argument == "--test");
    let many = |full: u64| if once { 50 } else { full };
    let mut rows = shuttle_runs(many(200_000) as usize);
    rows.push(loom_runs());
    let anchor = rows[0].executions as f64 / rows[0].seconds;
    let two = program(2);
    for strategy in [Strategy::Random, Strategy::Pct(3), Strategy::Uniform] {
        for threads in [1, 2] {
            rows.push(Row::ours("cmpxchg and flush", &two, &strategy, many(2_000_000), threads));
        }
    }
    let rivals = rows.len();
    let five = program(if once { 3 } else { 5 });
    for threads in [1, 2] {
        rows.push(Row::ours("cmpxchg and flush, five actors", &five, &Strategy::Exhaustive, many(200_000), threads));
        rows.push(Row::ours("zap beside two guests", &zap(), &Strategy::Random, many(100_000), threads));
        rows.push(Row::ours("zap beside two guests", &zap(), &Strategy::Exhaustive, many(20_000), threads));
        if let Some(row) = exhibit("G13") {
            let scenario = row.scenario(Variant::Fixed);
            rows.push(Row::ours("G13", scenario.as_ref(), &Strategy::Random, many(200_000), threads));
        }
    }
    let mut text = String::from(
        "| what | executions | per second | of shuttle's | M steps/s | M states/s |\n|---|---|---|---|---|---|\n",
    );
    for (n, row) in rows.iter().enumerate() {
        row.write(&mut text, (n < rivals).then_some(anchor));
    }
    println!("{text}");
}
