//! How time and memory grow with the guest, its vCPUs and the length of windows.
//!
//! ```text
//! cargo bench --bench scale                 all series
//! cargo bench --bench scale -- --write      and into docs/performance.md
//! cargo bench --bench scale -- --test       everything once and small
//! ```
//!
//! Every case runs in a process of its own, so that its peak of memory is its own; it runs three times, and the fastest counts, as load only
//! adds. What a case simulates does not depend on the host.

mod cases;
mod growth;
mod petabytes;
#[path = "../shared/report.rs"]
mod report;
#[path = "../shared/scatter.rs"]
mod scatter;
mod touched;
#[path = "../shared/zap.rs"]
mod zap;

use std::process::Command;

use cases::{CONTENDERS, Case, Measured};
use mmusim::ByteUnits;
use report::{Asked, Table};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let Some(at) = args.iter().position(|arg| arg == "--case") {
        let case: Case = args[at + 1..].join(" ").parse().expect("a case that this program named");
        let measured = case.run();
        println!("{measured} {}", report::peak_mib());
        return;
    }
    let asked = report::asked();
    if asked == Asked::Once {
        return cases::smallest().iter().for_each(|case| {
            case.run();
        });
    }
    let text = [petabytes(), engine(), touches(), sizes(), vcpus(), growth(), threads(), windows(), words()].join("\n");
    report::publish(asked, "Scale", "cargo bench --bench scale -- --write", &text);
}

/// A case in a process of its own: what it measured, and the most memory it held in MiB.
fn measure(case: Case) -> (Measured, u64) {
    let program = std::env::current_exe().expect("this program");
    let once = || {
        let output =
            Command::new(&program).arg("--case").args(case.to_string().split(' ')).output().expect("this program");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{case}: {}", String::from_utf8_lossy(&output.stderr));
        let (measured, peak) = said.trim().rsplit_once(' ').expect("figures");
        (measured.parse::<Measured>().expect("figures"), peak.parse::<u64>().expect("MiB"))
    };
    let runs = [once(), once(), once()];
    runs.into_iter().min_by(|a, b| a.0.seconds.total_cmp(&b.0.seconds)).expect("three runs")
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.1}", 1e3 * seconds)
}

/// Size in the unit that fits.
fn size(bytes: u64) -> String {
    let units = [(1.PiB(), "PiB"), (1.TiB(), "TiB"), (1.GiB(), "GiB"), (1, "B")];
    let (unit, name) = units.into_iter().find(|&(unit, _)| bytes >= unit).unwrap_or((1, "B"));
    format!("{} {name}", bytes / unit)
}

/// 4 PiB through table memory, on three formats.
fn petabytes() -> String {
    let mut table =
        Table::new(&["4 PiB of tables", "build", "age", "write-protect", "zap", "zap in 5,000 steps", "free", "MiB"]);
    for format in cases::FORMATS {
        let mut row = vec![format.into()];
        let mut peak = 0;
        for work in cases::WORK {
            let (measured, mib) = measure(Case::Tables { format, work });
            row.push(milliseconds(measured.seconds));
            peak = peak.max(mib);
        }
        row.push(peak.to_string());
        table.row(row);
    }
    format!("Milliseconds, and the peak of the process:\n\n{table}")
}

/// 4 PiB through the engine, on three formats.
fn engine() -> String {
    let works = petabytes::WORK.map(|work| (work, work.to_owned()));
    let zaps = mmusim::strategies();
    let zaps = cases::STRATEGIES.into_iter().zip(zaps.iter().map(|strategy| format!("zap: {}", strategy.name)));
    let mut head = vec!["4 PiB through the engine".to_owned()];
    head.extend(cases::FORMATS.map(|format| format!("{format}: ms, MiB")));
    let mut table = Table::new(&head.iter().map(String::as_str).collect::<Vec<_>>());
    for (work, name) in works.into_iter().chain(zaps) {
        let mut row = vec![name];
        for format in cases::FORMATS {
            let (measured, mib) = measure(Case::Engine { format, memory: 4.PiB(), work });
            row.push(format!("{}, {mib}", milliseconds(measured.seconds)));
        }
        table.row(row);
    }
    format!(
        "Leaves of 4 KiB, memslots of 4 TiB that all stand for the same memory, nobody running; build counted in its own row only. `coalesce` and \
`split` are 300 blocks here and there:\n\n{table}"
    )
}

/// Single pages touched in guests of growing size.
fn touches() -> String {
    let mut table = Table::new(&["guest of 4K pages", "pages touched", "ns a page", "MiB", "bytes a page"]);
    for memory in [1.TiB(), 8.TiB(), 64.TiB()] {
        let (measured, mib) = measure(Case::Touched { memory });
        let ns = 1e9 * measured.seconds / measured.cycles as f64;
        let bytes = (mib << 20) as f64 / measured.cycles as f64;
        table.row(vec![
            size(memory),
            measured.cycles.to_string(),
            format!("{ns:.1}"),
            mib.to_string(),
            format!("{bytes:.1}"),
        ]);
    }
    format!(
        "One page of each hundred, anywhere among them, is accessed and written (the goal at 64 TiB is 3,072 MiB):\n\n{table}"
    )
}

/// The same zaps over guests of growing size, with idle vCPUs.
fn sizes() -> String {
    let mut head = vec!["guest of 4K pages".to_owned()];
    head.extend(cases::ZAPS.map(|(name, ..)| format!("{name}: ms, MiB")));
    let mut table = Table::new(&head.iter().map(String::as_str).collect::<Vec<_>>());
    for memory in [1.GiB(), 16.GiB(), 256.GiB(), 1.TiB(), 16.TiB(), 256.TiB()] {
        let mut row = vec![size(memory)];
        for (_, strategy) in cases::ZAPS {
            let (measured, mib) = measure(Case::Zap { memory, strategy });
            row.push(format!("{}, {mib}", milliseconds(measured.seconds)));
        }
        table.row(row);
    }
    format!("Zapping everything, build not counted:\n\n{table}")
}

/// vCPUs at random over a terabyte while the host takes ranges away.
fn vcpus() -> String {
    let mut table = Table::new(&["vCPUs on 1 TiB", "M simulated vCPU cycles a second", "MiB"]);
    for vcpus in [1, 8, 64, 512] {
        let (measured, mib) = measure(Case::Busy { vcpus, host: "zap", threads: 1 });
        table.row(vec![vcpus.to_string(), format!("{:.1}", measured.rate() / 1e6), mib.to_string()]);
    }
    format!(
        "One thread, a host that takes 2 MiB ranges away (each vCPU has 3 MiB of TLBs and caches, which the host's hold for some of them):\n\n{table}"
    )
}

/// Host actors beside each other, and explored executions of growing length.
fn growth() -> String {
    let rows = |head: &str, cases: Vec<(u64, Case)>| {
        let mut table = Table::new(&[head, "ns a step", "MiB"]);
        for (size, case) in cases {
            let (measured, mib) = measure(case);
            let ns = 1e9 * measured.seconds / measured.cycles as f64;
            table.row(vec![size.to_string(), format!("{ns:.1}"), mib.to_string()]);
        }
        table
    };
    let actors = rows("host actors", [1, 8, 64, 512].map(|actors| (actors, Case::Actors { actors })).into());
    let depth = rows("steps of a thread", [10, 100, 1000, 2000].map(|steps| (steps, Case::Depth { steps })).into());
    format!(
        "Micro-operations of actors that take turns (one alone goes on without looking who is next; many are found in a heap):\n\n{actors}\nSteps of executions of two threads, explored at random and checked:\n\n{depth}"
    )
}

/// 64 busy vCPUs with each sort of host, on one thread and two, phase by phase, and what 64 threads would make of it.
fn threads() -> String {
    let mut table = Table::new(&[
        "64 vCPUs on 1 TiB, host",
        "one thread, M cycles/s",
        "two threads",
        "efficiency",
        "vCPUs, applying, host: s on one thread",
        "windows",
        "64 threads (model)",
        "MiB",
    ]);
    for host in cases::HOSTS {
        let case = |threads| Case::Busy { vcpus: 64, host, threads };
        let ((one, mib), (two, _)) = (measure(case(1)), measure(case(2)));
        let [vcpus, applying, host_seconds] = one.phases;
        table.row(vec![
            host.into(),
            format!("{:.1}", one.rate() / 1e6),
            format!("{:.1}", two.rate() / 1e6),
            format!("{:.0} %", 50.0 * two.rate() / one.rate()),
            format!("{vcpus:.3}, {applying:.3}, {host_seconds:.3}"),
            one.windows.to_string(),
            format!("{:.1}", one.cycles as f64 / 1e6 / modelled(&one, &two, 64.0)),
            mib.to_string(),
        ]);
    }
    format!(
        "Random accesses to a terabyte of 4K pages; the host takes ranges of 2 MiB away, ages 64 MiB, or reads the dirty log of 16 GiB.\n\n{table}\n\
Model: what one thread needs for applying and for the host stays serial; the vCPUs' time is shared by all threads; each window ends at a barrier, \
whose cost is what two threads need beyond half the time of one, per window, and grows with the logarithm of the threads.\n"
    )
}

/// Seconds that so many threads would need, from the phases on one thread and on two.
fn modelled(one: &Measured, two: &Measured, threads: f64) -> f64 {
    let [vcpus, applying, host] = one.phases;
    let barrier = (two.phases[0] - vcpus / 2.0).max(0.0) / one.windows.max(1) as f64;
    applying + host + vcpus / threads + one.windows as f64 * barrier * threads.log2()
}

/// What windows longer than the machine's latency between processors change.
fn windows() -> String {
    let mut table =
        Table::new(&["least window, cycles", "M cycles/s", "vCPUs end, mean cycles", "beside the shortest"]);
    let mut first = None;
    for window in [50, 100, 200, 400, 800, 1600, 3200] {
        let (measured, _) = measure(Case::Contended { window });
        let mean = measured.cycles as f64 / CONTENDERS as f64;
        let shortest = *first.get_or_insert(mean);
        table.row(vec![
            window.to_string(),
            format!("{:.1}", measured.rate() / 1e6),
            format!("{mean:.0}"),
            format!("{:+.3} %", 100.0 * (mean / shortest - 1.0)),
        ]);
    }
    format!(
        "{CONTENDERS} vCPUs touch a gibibyte at random while the host zaps it piece by piece, so that they fault and wait for the lock; the default \
window is the machine's smallest latency between processors, 800 cycles at most:\n\n{table}"
    )
}

/// Plain words beside the host's memory.
fn words() -> String {
    let mut table = Table::new(&["clearing plain words", "ns a word", "beside the vector"]);
    let (vector, _) = measure(Case::Words { ours: "vector" });
    for ours in ["vector", "tables"] {
        let (measured, _) = measure(Case::Words { ours });
        let ns = 1e9 * measured.seconds / measured.cycles as f64;
        table.row(vec![ours.into(), format!("{ns:.2}"), format!("{:.2}", measured.seconds / vector.seconds)]);
    }
    format!(
        "A terabyte's leaf tables are 2^28 words; an eighth of them, none on a progression, exchanged for zero word by word in a vector, \
and cleared table by table:\n\n{table}"
    )
}
