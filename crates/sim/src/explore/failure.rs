//! A failure: what was broken, and the execution that breaks it, for people and for files.

use std::fmt::Write;

use super::choosers::Replay;
use super::decision::{Actors, Agent, Decision, Kind, Who};
use super::invariant::{Broken, Invariant};
use super::lab::Step;
use super::run::{Runner, verdict};
use crate::arch::Arch;

/// An execution that breaks an invariant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// What was broken, where.
    pub broken: Broken,
    /// Every decision of the execution.
    pub decisions: Vec<Decision>,
    /// What happened.
    pub steps: Vec<Step>,
    /// Names of host actors, by number.
    pub actors: Vec<String>,
    /// Actors that the failure does not need: they do nothing in it.
    pub without: Actors,
    /// How often somebody was stopped who could have gone on: the depth of the defect.
    pub preemptions: u64,
    /// Executions until it was found.
    pub executions: u64,
    /// What the execution amounts to; a replay must come to the same.
    pub digest: u64,
}

impl Failure {
    /// Executes the decisions once more and writes everything down.
    pub(crate) fn of<A: Arch>(
        runner: &mut Runner<'_, A>,
        decisions: Vec<Decision>,
        invariant: Invariant,
        executions: u64,
    ) -> Self {
        let (execution, steps) = runner.record(Box::new(Replay::new(decisions.clone())));
        let livelock = Some(invariant);
        let broken = verdict(&execution, livelock, true).unwrap_or(Broken {
            invariant,
            agent: Agent::RCU,
            step: execution.steps,
            what: "the execution cannot be repeated: an actor is not deterministic".to_owned(),
        });
        let (actors, without, preemptions) = (runner.names(), runner.without(), execution.preemptions);
        Self { broken, decisions, steps, actors, without, preemptions, executions, digest: execution.digest }
    }

    /// Decisions that are out of the ordinary: somebody else runs, a cached entry is used, something fails.
    pub fn choices(&self) -> u64 {
        let odd = self.decisions.iter().filter(|decision| decision.kind != Kind::Run && decision.chosen != 0);
        self.preemptions + odd.count() as u64
    }

    /// Who took part, in the order of their columns.
    fn columns(&self) -> Vec<Agent> {
        let mut columns: Vec<Agent> = Vec::new();
        for step in &self.steps {
            let agent = match step.agent.who() {
                Who::Buffer(actor) => Agent::actor(actor),
                Who::Arrival(vcpu) => Agent::guest(vcpu),
                _ => step.agent,
            };
            if !columns.contains(&agent) {
                columns.push(agent);
            }
        }
        columns.sort();
        columns
    }

    fn title(&self, agent: Agent) -> String {
        match agent.who() {
            Who::Actor(number) | Who::Buffer(number) => self.actors.get(number).cloned().unwrap_or_default(),
            Who::Guest(vcpu) | Who::Arrival(vcpu) => format!("vcpu {vcpu} (guest)"),
            Who::Rcu => "rcu".to_owned(),
        }
    }

    /// The execution as a table: a row for each step, a column for each who takes part. Wide text is broken.
    pub fn table(&self) -> String {
        let columns = self.columns();
        let width = (150 / columns.len().max(1)).clamp(24, 44);
        let mut text = String::new();
        let _ = writeln!(text, "{}", self.broken);
        let _ = writeln!(text, "{} ({})", self.broken.invariant.says(), self.broken.invariant.broken_by());
        let idle: Vec<&str> =
            self.without.iter().filter_map(|actor| self.actors.get(actor)).map(String::as_str).collect();
        if !idle.is_empty() {
            let _ = writeln!(text, "Not needed, and left out: {}", idle.join(", "));
        }
        let _ = write!(text, "\n{:>5}", "step");
        for &agent in &columns {
            let _ = write!(text, "  {:<width$}", cut(&self.title(agent), width));
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
        let mut last = None;
        for step in &self.steps {
            let agent = match step.agent.who() {
                Who::Buffer(actor) => Agent::actor(actor),
                Who::Arrival(vcpu) => Agent::guest(vcpu),
                _ => step.agent,
            };
            let column = columns.iter().position(|&known| known == agent).unwrap_or(0);
            if last.is_some_and(|last| last != column) {
                text.push('\n');
            }
            last = Some(column);
            for (line, piece) in pieces(&step.what, width).into_iter().enumerate() {
                let number = if line == 0 { step.number.to_string() } else { String::new() };
                let _ = writeln!(text, "{number:>5}  {:indent$}{piece}", "", indent = column * (width + 2));
            }
        }
        let _ = writeln!(text, "\n{}", self.broken);
        text
    }
}

fn cut(text: &str, width: usize) -> String {
    text.chars().take(width).collect()
}

/// Breaks text at blanks.
fn pieces(text: &str, width: usize) -> Vec<String> {
    let mut pieces = vec![String::new()];
    for word in text.split(' ') {
        let last = pieces.len() - 1;
        let piece = &mut pieces[last];
        if !piece.is_empty() && piece.len() + 1 + word.len() > width {
            pieces.push(format!("  {word}"));
        } else {
            if !piece.is_empty() {
                piece.push(' ');
            }
            piece.push_str(word);
        }
    }
    pieces
}
