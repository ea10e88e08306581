//! criterion's loop, with a ledger of medians for ratios at the end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};

use super::report::{self, Asked, Samples, Table};

/// Runs cases and remembers what they took.
pub struct Rounds {
    criterion: Criterion,
    asked: Asked,
    /// Nanoseconds of an operation in each batch of rounds, by `group/name`.
    ledger: BTreeMap<String, Samples>,
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
            .measurement_time(Duration::from_secs(1));
        let asked = report::asked();
        // criterion does not know `--write`, with which all cases run.
        let criterion = if asked == Asked::Write { criterion } else { criterion.configure_from_args() };
        Self { criterion, asked, ledger: BTreeMap::new(), ratios: Vec::new(), goals: Vec::new() }
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
        let mut samples = Samples::default();
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
                samples.add(total.as_nanos() as f64 / (rounds * operations) as f64);
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

    /// Prints medians, ratios and goals of the cases that ran more than once, and writes them if that was asked for.
    pub fn finish(self) {
        let median = |name: &str| self.ledger.get(name).and_then(Samples::middle).map(|(ns, _)| ns);
        let mut table = Table::new(&["case", "ns an operation", "M/s", "at most", "times"]);
        for (name, samples) in self.ledger.iter().filter(|(_, samples)| samples.len() > 1) {
            let Some(ns) = median(name) else { continue };
            let goal = self.goals.iter().find(|(of, _)| of == name);
            let goal = goal.map_or_else(|| "-".to_owned(), |(_, most)| format!("{most:.1}"));
            let beside = self.ratios.iter().find(|(case, _)| case == name);
            let beside = beside.and_then(|(_, to)| Some(format!("{:.2} x {to}", ns / median(to)?)));
            let beside = beside.unwrap_or_else(|| "-".to_owned());
            table.row(vec![name.clone(), samples.to_string(), format!("{:.1}", 1e3 / ns), goal, beside]);
        }
        if !table.is_empty() {
            report::publish(self.asked, "Hot paths", "cargo bench --bench hot_paths -- --write", &table.to_string());
        }
        self.criterion.final_summary();
    }
}
