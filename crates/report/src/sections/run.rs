//! `run --json`: one run.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value as Json;

use super::{Section, Spread, counters, definitions, facts, figure, gigahertz};
use crate::markup::Markup;
use crate::number::{compact, seconds};
use crate::read::{Input, Kind, ReportError, Versions, document};
use crate::svg::{self, Panel, Panels, Value};

#[derive(Deserialize)]
struct Document {
    versions: Versions,
    configuration: Configuration,
    report: Report,
}

#[derive(Deserialize)]
struct Configuration {
    arguments: BTreeMap<String, Json>,
}

#[derive(Deserialize)]
struct Report {
    arch: String,
    machine: String,
    clock_hz: u64,
    strategy: Option<String>,
    windows: u64,
    finished: Vec<u64>,
    spread: Spread,
    zap: Zap,
    lock_wait: u64,
    host: BTreeMap<String, u64>,
    guest: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
struct Zap {
    started: u64,
    finished: u64,
    longest_unscheduled: u64,
    longest_rcu: u64,
}

/// More vCPUs than these are shown by their spread alone.
const MOST_BARS: usize = 64;

pub(super) fn section(input: &Input) -> Result<Section, ReportError> {
    let Document { versions, configuration, report } = document(input, Kind::Run)?;
    let seed = configuration.arguments.get("seed").and_then(Json::as_u64);
    let facts = facts(Some(&versions), seed, [report.machine.as_str()]);
    let mut body = Markup::default();
    report.write(&mut body);
    let title = format!("One run: {}", report.strategy.as_deref().unwrap_or("no zap"));
    Ok(Section { title, command: Some(command(&configuration.arguments)), facts, body })
}

/// The command line that a configuration stands for.
fn command(arguments: &BTreeMap<String, Json>) -> String {
    let option = |(name, value): (&String, &Json)| {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        format!("--{} {}", name.replace('_', "-"), quoted(&value))
    };
    let options: Vec<String> = arguments.iter().map(option).collect();
    format!("mmusim run {} --json", options.join(" "))
}

/// A word as a shell wants it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./=:,+%@".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

impl Report {
    fn write(&self, out: &mut Markup) {
        let cycles = |value: u64| {
            format!("{} cycles ({})", compact(value as f64), seconds(value as f64 / self.clock_hz.max(1) as f64))
        };
        let took = self.zap.finished.saturating_sub(self.zap.started);
        let mut pairs = vec![("machine", format!("{} on {} at {}", self.arch, self.machine, gigahertz(self.clock_hz)))];
        if self.strategy.is_some() {
            pairs.push(("zap", format!("{}, begun at {}", cycles(took), cycles(self.zap.started))));
            pairs.push(("no reschedule", format!("{} at the longest", cycles(self.zap.longest_unscheduled))));
            pairs.push(("RCU", format!("{} at the longest", cycles(self.zap.longest_rcu))));
        }
        let Spread { mean, p50, p99, max } = self.spread;
        pairs.push((
            "vCPUs finish",
            format!("mean {}, p50 {}, p99 {}, max {}", cycles(mean), cycles(p50), cycles(p99), cycles(max)),
        ));
        pairs.push(("lock wait", format!("{}, all threads", cycles(self.lock_wait))));
        pairs.push(("windows", self.windows.to_string()));
        definitions(out, &pairs);
        if self.finished.len() <= MOST_BARS {
            figure(out, "When each vCPU finished its accesses, in simulated cycles.", |out| self.panels().write(out));
        }
        out.leaf("h3", &[], "Host");
        counters("counters", &[("host".to_owned(), &self.host)], out);
        out.leaf("h3", &[], "vCPUs, summed");
        counters("counters", &[("vCPUs".to_owned(), &self.guest)], out);
    }

    fn panels(&self) -> Panels {
        let values = self.finished.iter().map(|cycles| Value::Bar(*cycles as f64)).collect();
        Panels {
            name: "vCPUs".to_owned(),
            rows: (0..self.finished.len()).map(|vcpu| (format!("vCPU {vcpu}"), None)).collect(),
            across: vec![Panel {
                title: "Finished after",
                unit: "cycles",
                kind: svg::Kind::Linear,
                mark: None,
                values,
            }],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_a_command_line_that_a_shell_understands() {
        let arguments =
            serde_json::from_str(r#"{"seed": 3, "strategy": "it's (6.9)", "warm_up": 5, "arch": "x86"}"#).unwrap();
        assert_eq!(
            command(&arguments),
            "mmusim run --arch x86 --seed 3 --strategy 'it'\\''s (6.9)' --warm-up 5 --json"
        );
    }
}
