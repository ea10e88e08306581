//! criterion's loop, with a ledger of medians for ratios at the end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};

/// Runs cases and remembers what they took.
pub struct Rounds {
    criterion: Criterion,
    /// Nanoseconds of an operation in each batch of rounds, by `group/name`.
    ledger: BTreeMap<String, Vec<f64>>,
    /// Which case is to be divided by which, in the order declared.
    ratios: Vec<(String, String)>,
    goals: Vec<(String, f64)>,
}

impl Rounds {
    /// Short samples: ratios settle quickly, and there are many cases.
    pub fn from_args() -> Self {
        let criterion = Criterion::default()
            .sample_size(20)
            // The summary at the end is what is read; plots and a full bootstrap take longer than the cases.
            .nresamples(2000)
            .without_plots()
            .warm_up_time(Duration::from_millis(300))
            .measurement_time(Duration::from_secs(1))
            .configure_from_args();
        Self { criterion, ledger: BTreeMap::new(), ratios: Vec::new(), goals: Vec::new() }
    }

    /// Measures rounds of `operations` each.
    pub fn case(&mut self, group: &str, name: &str, operations: u64, mut round: impl FnMut()) {
        self.case_on(group, name, operations, || (), |()| round());
    }

    /// Measures rounds that each use something up; making it is not measured.
    pub fn case_on<T>(
        &mut self,
        group: &str,
        name: &str,
        operations: u64,
        mut make: impl FnMut() -> T,
        mut round: impl FnMut(&mut T),
    ) {
        let mut samples = Vec::new();
        let mut in_group = self.criterion.benchmark_group(group);
        in_group.throughput(Throughput::Elements(operations));
        if operations >= 1 << 20 {
            in_group.sample_size(10);
        }
        in_group.bench_function(name, |bencher| {
            bencher.iter_custom(|rounds| {
                let mut total = Duration::ZERO;
                for _ in 0..rounds {
                    let mut thing = make();
                    let start = Instant::now();
                    round(&mut thing);
                    total += start.elapsed();
                }
                samples.push(total.as_nanos() as f64 / (rounds * operations) as f64);
                total
            });
        });
        in_group.finish();
        self.ledger.insert(format!("{group}/{name}"), samples);
    }

    /// Asks for the ratio of two cases in the summary.
    pub fn ratio(&mut self, case: &str, to: &str) {
        self.ratios.push((case.into(), to.into()));
    }

    /// States the nanoseconds an operation should not exceed.
    pub fn goal(&mut self, case: &str, nanoseconds: f64) {
        self.goals.push((case.into(), nanoseconds));
    }

    /// Prints medians, ratios and goals of the cases that ran more than once.
    pub fn finish(self) {
        let medians: BTreeMap<&str, f64> = self
            .ledger
            .iter()
            .filter(|(_, samples)| samples.len() > 1)
            .map(|(name, samples)| (name.as_str(), median(samples)))
            .collect();
        if medians.is_empty() {
            return;
        }
        eprintln!("{:<44} {:>12}", "case", "ns/operation");
        for (name, ns) in &medians {
            let goal = self.goals.iter().find(|(of, _)| of == name);
            let goal = goal.map_or(String::new(), |(_, most)| format!("   goal {most}"));
            eprintln!("{name:<44} {ns:>12.2}{goal}");
        }
        eprintln!();
        for (case, to) in &self.ratios {
            if let (Some(case_ns), Some(to_ns)) = (medians.get(case.as_str()), medians.get(to.as_str())) {
                eprintln!("{case} / {to} = {:.2}", case_ns / to_ns);
            }
        }
        self.criterion.final_summary();
    }
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
