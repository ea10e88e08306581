//! `--timeline FILE` and `--events FILE`: recordings of runs, drawn in lanes, and where the time of the lanes went.

mod lines;
mod trace_events;

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::{Section, definitions, details, facts, figure};
use crate::markup::Markup;
use crate::number::{percent, seconds};
use crate::read::{Input, ReportError};
use crate::svg::{Lane, Lanes, Slice, key};
use crate::table::{Cell, Table};

pub(super) use lines::from_lines;
pub(super) use trace_events::from_trace_events;

/// Whose lane it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Whose {
    Vcpu,
    Actor,
    Rcu,
}

impl Whose {
    fn name(self) -> &'static str {
        match self {
            Whose::Vcpu => "vCPUs",
            Whose::Actor => "host actors",
            Whose::Rcu => "RCU",
        }
    }
}

/// A stretch of a lane's time, in seconds.
#[derive(Debug)]
struct Span<'a> {
    at: f64,
    took: f64,
    name: Cow<'a, str>,
    /// Its fields, for those who point at it.
    fields: String,
    unfinished: bool,
}

impl Span<'_> {
    fn end(&self) -> f64 {
        self.at + self.took
    }

    /// Waiting for others, which may take far longer than anything that is to be seen.
    fn waits(&self) -> bool {
        self.unfinished || matches!(&*self.name, "sim_synchronize_rcu" | "sim_waits" | "sim_sleeps")
    }
}

/// A lane of a recording.
#[derive(Debug)]
struct Track<'a> {
    name: String,
    whose: Whose,
    spans: Vec<Span<'a>>,
    moments: Vec<(f64, Cow<'a, str>)>,
}

/// What was recorded of one run.
#[derive(Debug, Default)]
struct Recording<'a> {
    name: String,
    /// What is known of it: machine, lost events.
    known: Vec<(&'static str, String)>,
    tracks: Vec<Track<'a>>,
}

/// Lanes in one image; a run may have thousands of vCPUs.
const MOST_LANES: usize = 48;
/// Recordings that are open at first.
const OPEN: usize = 4;
/// Slices that take this share of an image have a title.
const TITLED: f64 = 0.002;

const INTRODUCTION: &str = "Simulated time from left to right. A vCPU is in the guest or in the host; what happens inside a stretch lies on it: interrupts that take \
                            time from the guest, waits for locks, locks held, RCU read-side sections, flushes. Stretches too short to be seen are the fainter the less time they take. Ticks below a lane are moments: interrupts, kicks, faults.";

fn section(title: &str, machines: &[String], command: Option<String>, mut recordings: Vec<Recording<'_>>) -> Section {
    let mut facts = facts(None, None, machines.iter().map(String::as_str));
    facts.push(format!("{} recorded runs", recordings.len()));
    let mut body = Markup::default();
    body.leaf("p", &[], INTRODUCTION);
    legend(&mut body);
    for (index, recording) in recordings.iter_mut().enumerate() {
        recording.tracks.retain(|track| !track.spans.is_empty() || !track.moments.is_empty());
        recording.tracks.sort_by_key(|track| track.whose);
        let open: &[(&str, &str)] = if index < OPEN { &[("open", "")] } else { &[] };
        body.element("details", open, |out| {
            out.leaf("summary", &[], &recording.name);
            recording.write(out);
        });
    }
    Section { title: title.to_owned(), command, facts, body }
}

/// Class in the style sheet of a slice or moment.
fn class(name: &str) -> &'static str {
    CLASSES.iter().find(|(names, _, _)| names.contains(&name)).map_or("other", |(_, class, _)| class)
}

/// Names of slices and moments, their class, and what the legend calls them.
const CLASSES: [(&[&str], &str, &str); 7] = [
    (&["sim_guest"], "guest", "in the guest"),
    (
        &["sim_in_host", "kvm_exit", "kvm_page_fault", "kvm_guest_fault", "sim_radix_page_fault"],
        "host",
        "in the host, faults",
    ),
    (
        &["sim_interrupted", "sim_kick", "sim_ipi", "sim_ipi_done", "interrupt", "tlbie"],
        "interrupted",
        "interrupts, kicks, broadcasts",
    ),
    (&["sim_lock_wait", "sim_waits", "sim_sleeps"], "wait", "waiting for a lock or a wakeup"),
    (&["sim_lock_held"], "held", "holding a lock"),
    (&["sim_rcu_read", "sim_synchronize_rcu", "sim_call_rcu", "sim_grace_period_end"], "rcu", "RCU"),
    (&["sim_flush"], "flush", "flushing TLBs"),
];

fn legend(out: &mut Markup) {
    out.element("ul", &[("class", "key")], |out| {
        for (class, name) in CLASSES.iter().map(|(_, class, name)| (*class, *name)).chain([("other", "anything else")])
        {
            out.element("li", &[], |out| {
                key(out, class);
                out.text(name);
            });
        }
    });
}

/// How often and how long something was, over some lanes.
#[derive(Clone, Copy, Default)]
struct Sum {
    count: u64,
    total: f64,
    longest: f64,
}

impl Recording<'_> {
    fn write(&self, out: &mut Markup) {
        let (shown, end) = (self.shown(), self.end());
        let mut known = self.known.clone();
        known.push(("time", format!("{} simulated", seconds(end))));
        definitions(out, &known);
        if end <= 0.0 {
            return;
        }
        let left_out = self.tracks.len().saturating_sub(MOST_LANES);
        let more = if left_out > 0 { format!(" {left_out} more lanes are in the tables only.") } else { String::new() };
        let rest = end > 1.25 * shown;
        let caption =
            if rest { format!("Until the vCPUs have finished.{more}") } else { format!("The whole run.{more}") };
        figure(out, &caption, |out| self.lanes(shown).write(out));
        if rest {
            details(out, &format!("The whole run, to {}", seconds(end)), |out| {
                figure(out, "What follows is waiting for grace periods and taking the VM apart.", |out| {
                    self.lanes(end).write(out);
                });
            });
        }
        details(out, "Where the time went", |out| self.times(end).write(out));
        details(out, "Events", |out| self.moments().write(out));
    }

    /// The end of everything.
    fn end(&self) -> f64 {
        let ends = self
            .tracks
            .iter()
            .flat_map(|track| track.spans.iter().map(Span::end).chain(track.moments.iter().map(|(at, _)| *at)));
        ends.fold(0.0, f64::max)
    }

    /// Until when there is something to be seen: while vCPUs run, and while what others began in that time goes on.
    fn shown(&self) -> f64 {
        let spans = |whose| self.tracks.iter().filter(move |track| track.whose == whose).flat_map(|track| &track.spans);
        let vcpus = spans(Whose::Vcpu).map(Span::end).fold(0.0, f64::max);
        let others =
            spans(Whose::Actor).filter(|span| span.at <= vcpus && !span.waits()).map(Span::end).fold(vcpus, f64::max);
        if others > 0.0 { others } else { self.end() }
    }

    fn lanes(&self, end: f64) -> Lanes {
        let lanes = self.tracks.iter().take(MOST_LANES).map(|track| track.lane(end)).collect();
        Lanes { name: format!("Timeline of {}", self.name), end, all: lanes }
    }

    fn times(&self, end: f64) -> Table {
        let mut table =
            Table::new([("", ""), ("times", ""), ("total", "all lanes"), ("longest", ""), ("share", "of lanes' time")]);
        for whose in [Whose::Vcpu, Whose::Actor, Whose::Rcu] {
            let tracks: Vec<&Track<'_>> = self.tracks.iter().filter(|track| track.whose == whose).collect();
            let mut sums: BTreeMap<&str, Sum> = BTreeMap::new();
            for span in tracks.iter().flat_map(|track| &track.spans) {
                let sum = sums.entry(&span.name).or_default();
                sum.count += 1;
                sum.total += span.took;
                sum.longest = sum.longest.max(span.took);
            }
            if !sums.is_empty() {
                table.group(format!("{}: {}", whose.name(), tracks.len()));
            }
            let whole = end * tracks.len() as f64;
            for (name, Sum { count, total, longest }) in sums {
                let times = [total, longest].map(|time| Cell::Number(seconds(time)));
                table.row(
                    [Cell::Code(name.to_owned()), Cell::Count(count)]
                        .into_iter()
                        .chain(times)
                        .chain([Cell::Number(percent(total / whole))]),
                );
            }
        }
        table
    }

    fn moments(&self) -> Table {
        let mut counts: BTreeMap<(Whose, &str), u64> = BTreeMap::new();
        for track in &self.tracks {
            for (_, name) in &track.moments {
                *counts.entry((track.whose, name)).or_default() += 1;
            }
        }
        let mut table = Table::new([("event", ""), ("of", ""), ("times", "")]);
        for ((whose, name), count) in counts {
            table.row([Cell::Code(name.to_owned()), Cell::text(whose.name()), Cell::Count(count)]);
        }
        table
    }
}

impl Track<'_> {
    /// The lane up to a moment.
    fn lane(&self, end: f64) -> Lane {
        let mut spans: Vec<&Span<'_>> = self.spans.iter().filter(|span| span.at < end).collect();
        spans.sort_by(|a, b| a.at.total_cmp(&b.at).then(b.took.total_cmp(&a.took)));
        let mut open: Vec<f64> = Vec::new();
        let mut slices = Vec::with_capacity(spans.len());
        for span in spans {
            while open.last().is_some_and(|until| *until <= span.at) {
                open.pop();
            }
            let took = span.took.min(end - span.at);
            let title = if took >= TITLED * end { span.title() } else { String::new() };
            slices.push(Slice { at: span.at, took, depth: open.len(), class: class(&span.name), title });
            open.push(span.end());
        }
        let moments = self.moments.iter().filter(|(at, _)| *at <= end);
        let moments = moments
            .map(|(at, name)| (*at, class(name)))
            .filter(|(_, class)| matches!(*class, "interrupted" | "host"))
            .collect();
        Lane { name: self.name.clone(), slices, moments }
    }
}

impl Span<'_> {
    fn title(&self) -> String {
        let unfinished = if self.unfinished { ", until the run ended" } else { "" };
        format!("{}: {} from {} on{unfinished}{}", self.name, seconds(self.took), seconds(self.at), self.fields)
    }
}

/// Fields as text, for a title.
fn fields(all: &BTreeMap<Cow<'_, str>, serde_json::Value>) -> String {
    let mut text = String::new();
    for (name, value) in all {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        text.extend(["\n", name, " ", &value]);
    }
    text
}

fn whose(track: &str) -> Whose {
    match track.split(' ').next() {
        Some("vcpu") => Whose::Vcpu,
        Some("rcu") => Whose::Rcu,
        _ => Whose::Actor,
    }
}

/// A timeline needs something that took time.
fn nonempty<'a>(input: &Input, recordings: Vec<Recording<'a>>) -> Result<Vec<Recording<'a>>, ReportError> {
    if recordings.iter().all(|recording| recording.tracks.is_empty()) {
        let what = "holds no event; record with `mmusim compare zap --timeline FILE` or `--events FILE`";
        return Err(ReportError { file: input.name.clone(), what: what.to_owned() });
    }
    Ok(recordings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(at: f64, took: f64, name: &'static str) -> Span<'static> {
        Span { at, took, name: name.into(), fields: String::new(), unfinished: false }
    }

    fn track(whose: Whose, spans: Vec<Span<'static>>) -> Track<'static> {
        Track { name: "t".to_owned(), whose, spans, moments: Vec::new() }
    }

    #[test]
    fn slices_lie_as_deep_as_they_are_nested() {
        let spans = vec![span(2.0, 1.0, "sim_lock_wait"), span(0.0, 5.0, "sim_in_host"), span(5.0, 1.0, "sim_guest")];
        let lane = track(Whose::Vcpu, spans).lane(6.0);
        let depths: Vec<_> = lane.slices.iter().map(|slice| (slice.class, slice.depth)).collect();
        assert_eq!(depths, [("host", 0), ("wait", 1), ("guest", 0)]);
    }

    #[test]
    fn a_long_wait_behind_the_run_does_not_make_the_run_small() {
        let vcpu = track(Whose::Vcpu, vec![span(0.0, 1.0, "sim_guest")]);
        let actor = track(
            Whose::Actor,
            vec![
                span(0.5, 1.0, "sim_lock_held"),
                span(0.7, 90.0, "sim_synchronize_rcu"),
                span(91.0, 1.0, "sim_lock_held"),
            ],
        );
        let recording = Recording { name: "r".to_owned(), known: Vec::new(), tracks: vec![vcpu, actor] };
        assert!((recording.shown() - 1.5).abs() < 1e-12 && (recording.end() - 92.0).abs() < 1e-12);
    }
}
